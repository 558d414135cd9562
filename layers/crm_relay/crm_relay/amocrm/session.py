"""How operations of the whole client are carried out: with a token, within the rate, repeated where that is safe.

An operation is a generator, as in `http_client`, that may also ask for something else to be done (an `Act`) and, where
it reads a list, hand out what it has `Found`. The synchronous and the asynchronous client run the same generators.
"""

import threading
import time
from collections.abc import Awaitable, Callable, Generator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple, Protocol

from crm_relay import __version__
from crm_relay.amocrm.client import DEADLINE, Account, TooMuchToRead, beside, call, send
from crm_relay.amocrm.oauth import LONGEST_REFRESH, App, TokenPair, expires_at, refresh
from crm_relay.http_client import Request
from crm_relay.outcomes import NotExecuted, Unauthorized

PER_SECOND = 7.0
"""Requests a second that amoCRM takes of one integration (amoCRM reference, section 6)."""

LEASE = 1.5 * LONGEST_REFRESH
"""Seconds for which the right to refresh is claimed: nobody may still be at it when the next one begins."""
_LOOK_AGAIN = 0.5
"""Seconds after which one who waits for another's refresh looks again."""
_EXPIRES_SOON = 60
"""Seconds before its end from which on an access token is not used any more."""


@dataclass(frozen=True, slots=True)
class Act:
    """Something beside HTTP that is to be done: it is called and, if that gives an awaitable, awaited."""

    do: Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Found[T]:
    """Items of a list, to be handed out before anything more is read."""

    items: list[T]


type Work[T] = Generator[Request | Act, Any, T]
"""An operation."""
type Stream[T] = Generator[Request | Act | Found[T], Any, None]
"""An operation that reads a list."""


class Progress[E, T]:
    """How far some work is: `effect` is what it wants done, None when it has come to its `result`."""

    effect: E | None
    result: T

    def __init__(self, work: Generator[E, Any, T]) -> None:
        self._work = work
        self._go(partial(next, work))

    def send(self, value: Any) -> None:
        """Go on with what came of the effect."""
        self._go(partial(self._work.send, value))

    def throw(self, error: BaseException) -> None:
        """Go on with what went wrong."""
        self._go(partial(self._work.throw, error))

    def _go(self, on: Callable[[], E]) -> None:
        try:
            self.effect = on()
        except StopIteration as done:
            self.effect, self.result = None, done.value


class Budget(Protocol):
    """A share of the requests that a CRM takes: `Limiter` of this process, or one of all processes together."""

    def take(self) -> float | Awaitable[float | None] | None:
        """Take a request; return the seconds to wait before it, unless it has waited itself.

        Raises:
            NotExecuted: there is none to be had for `retry_after` seconds.
        """

    def pause(self, seconds: float) -> Awaitable[None] | None:
        """Let nobody make a request for so many seconds, not even one that is taken."""

    def is_paused(self) -> bool | Awaitable[bool]:
        """Tell whether a pause is on: whoever has waited for a request takes another one then."""


_APART = 1.02
"""Times a second's share: requests that take longer or shorter on the way must not be one too many for amoCRM's."""


class Limiter:
    """Requests of this process, evenly apart, after a pause too. Any number of threads may take."""

    def __init__(self, per_second: float = PER_SECOND, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._apart = _APART / per_second
        self._monotonic = monotonic
        self._next = self._paused_until = monotonic()
        self._lock = threading.Lock()

    def take(self) -> float:
        """Return the seconds to wait before the request that is taken."""
        with self._lock:
            now = self._monotonic()
            at = max(now, self._next, self._paused_until)
            self._next = at + self._apart
            return at - now

    def pause(self, seconds: float) -> None:
        """Let nobody make a request for so many seconds."""
        with self._lock:
            self._paused_until = max(self._paused_until, self._monotonic() + seconds)

    def is_paused(self) -> bool:
        """Tell whether a pause is on."""
        return self._monotonic() < self._paused_until


class Refusal(NamedTuple):
    """A token that amoCRM has just refused, and what came of that."""

    token: str
    outcome: Unauthorized


class Access(Protocol):
    """Where the account is and its token."""

    def account(self, now: float, sleep: Callable[[float], Any], /, *, refused: Refusal | None) -> Work[Account]:
        """Return the account with a token that amoCRM takes, another one than was refused.

        Raises:
            Unauthorized: there is none.
        """


@dataclass(frozen=True, slots=True)
class LongLivedToken:
    """A token of a private integration: it is never refreshed, and ends when its own `exp` says."""

    host: str
    token: str = field(repr=False)

    @property
    def expires_at(self) -> int | None:
        """When it ends, in unix seconds, if it says."""
        return expires_at(self.token)

    def account(self, now: float, _sleep: Callable[[float], Any], *, refused: Refusal | None) -> Work[Account]:
        """Return the account.

        Raises:
            Unauthorized: the token has ended, or was refused.
        """
        if refused is not None:
            raise refused.outcome
        if (self.expires_at or now) < now:
            raise Unauthorized("long_lived_token_ended")
        yield from ()
        return Account(self.host, self.token)


class TokenStore(Protocol):
    """Where the token pair of one account is kept, for all who use it.

    A claim is the right to refresh: None, or something that tells it from any other. With the asynchronous client,
    and with it alone, methods may be coroutine functions.
    """

    def read(self) -> TokenPair | Awaitable[TokenPair | None] | None:
        """Return the pair, None if the account was never authorized."""

    def claim(self, seconds: float) -> object | Awaitable[object]:
        """Take the right to refresh, None if somebody else has it; it lapses after so many seconds."""

    def write(self, pair: TokenPair, claim: Any) -> bool | Awaitable[bool]:
        """Store the pair, with the host in it: the account may have moved. If the claim is another's now, do nothing.

        Returns:
            Whether it is stored.
        """

    def release(self, claim: Any) -> Awaitable[None] | None:
        """Give the right to refresh back, if it is not another's now."""


class MemoryTokens:
    """The pair of one account in this process."""

    def __init__(self, pair: TokenPair | None = None, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.pair = pair
        self._monotonic = monotonic
        self._claim: object | None = None
        self._claimed_until = 0.0
        self._lock = threading.Lock()

    def read(self) -> TokenPair | None:
        """Return the pair."""
        return self.pair

    def claim(self, seconds: float) -> object | None:
        """Take the right to refresh."""
        with self._lock:
            now = self._monotonic()
            if self._claim is not None and now < self._claimed_until:
                return None
            self._claim, self._claimed_until = object(), now + seconds
            return self._claim

    def write(self, pair: TokenPair, claim: object) -> bool:
        """Keep the pair."""
        with self._lock:
            is_ours = claim is self._claim
            if is_ours:
                self.pair = pair
            return is_ours

    def release(self, claim: object) -> None:
        """Give the right to refresh back."""
        with self._lock:
            if claim is self._claim:
                self._claim = None


class StoredTokens:
    """The pair of a store, refreshed by one at a time and stored before anybody uses it.

    To use a new pair kills the old one: had two refreshed at once, or had the new pair been lost, somebody would have
    to authorize the integration again (amoCRM reference, section 5.3).
    """

    def __init__(self, app: App, store: TokenStore) -> None:
        self._app = app
        self._store = store

    def account(self, now: float, sleep: Callable[[float], Any], *, refused: Refusal | None) -> Work[Account]:
        """Return the account with a token that is neither over nor refused.

        Raises:
            Unauthorized: the account was never authorized, or its refresh token is dead.
            Outcome: what `oauth.refresh` raises.
        """
        waited = 0.0
        while not _is_good(pair := (yield from self._read()), now, refused):
            claim: object = yield Act(partial(self._store.claim, LEASE))
            if claim is not None and (fresh := (yield from self._refreshed(claim, now, refused))):
                pair = fresh
                break
            if waited > LEASE:
                raise NotExecuted("token_being_refreshed", _LOOK_AGAIN)
            yield Act(partial(sleep, _LOOK_AGAIN))
            waited += _LOOK_AGAIN
        return Account(pair.host, pair.access_token, headers={"X-Client-UUID": self._app.client_id})

    def _refreshed(self, claim: object, now: float, refused: Refusal | None) -> Work[TokenPair | None]:
        """Return a good pair that is in the store; None if the claim lapsed before there was one."""
        try:
            pair = yield from self._read()
            if _is_good(pair, now, refused):
                return pair
            pair = yield from refresh(self._app, pair, now=now)
            return pair if (yield Act(partial(self._store.write, pair, claim))) else None
        finally:
            yield Act(partial(self._store.release, claim))

    def _read(self) -> Work[TokenPair]:
        pair: TokenPair | None = yield Act(self._store.read)
        if pair is None:
            raise Unauthorized("not_authorized")
        return pair


def _is_good(pair: TokenPair, now: float, refused: Refusal | None) -> bool:
    is_refused = refused is not None and refused.token == pair.access_token
    return not is_refused and pair.expires_at - _EXPIRES_SOON > now


@dataclass(frozen=True, kw_only=True)
class Terms:
    """How a client behaves.

    Attributes:
        user_agent: the application's name, which goes before the library's.
        context_user_id: the user whose rights an administrator's token is used with.
        deadline: seconds for one request.
        repeats: how often a request that was not executed is sent again.
        patience: seconds; amoCRM may ask to stay away for so long, then the request fails.
    """

    user_agent: str = ""
    context_user_id: int | None = None
    deadline: float = DEADLINE
    repeats: int = 3
    patience: float = 60.0


@dataclass
class Session:
    """What the services of one client share."""

    access: Access
    budget: Budget
    terms: Terms
    sleep: Callable[[float], Any]
    clock: Callable[[], float]
    field_ids: dict[str, dict[str, int]] = field(default_factory=dict)
    drive_host: str | None = None

    def call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        body: Any = None,
        host: str | None = None,
    ) -> Work[dict[str, Any]]:
        """Do one request as `client.call` does, at the account's host or another one of amoCRM's.

        An access token that is refused is renewed once. What was not executed is sent again, so is every read.

        Raises:
            Outcome: what `client.call` raises.
        """
        return (
            yield from self._repeated(
                lambda account: call(
                    replace(account, host=host) if host else account,
                    method,
                    path,
                    query=query,
                    body=body,
                    now=self.clock(),
                    deadline=self.terms.deadline,
                )
            )
        )

    def upload(self, url: str, content: bytes, content_type: str) -> Work[dict[str, Any]]:
        """Send a part of a file to an address that amoCRM gave; otherwise as `call`."""
        return (
            yield from self._repeated(
                lambda account: send(
                    account, url, content, content_type, now=self.clock(), deadline=self.terms.deadline
                )
            )
        )

    def drive(self) -> Work[str]:
        """Return the host where the account's files are: where the account says, else at its domain's own drive."""
        if self.drive_host is None:
            told = (yield from self.call("GET", "api/v4/account", query={"with": "drive_url"})).get("drive_url")
            account = yield from self.access.account(self.clock(), self.sleep, refused=None)
            host = told.partition("://")[2].strip("/") if isinstance(told, str) else ""
            self.drive_host = host or beside(account.host, "drive")
        return self.drive_host

    def _repeated(self, attempt: Callable[[Account], Work[dict[str, Any]]]) -> Work[dict[str, Any]]:
        refused: Refusal | None = None
        repeats = 0
        while True:
            account = yield from self.access.account(self.clock(), self.sleep, refused=refused)
            try:
                yield from self._wait()
                return (yield from attempt(self._presented(account)))
            except Unauthorized as outcome:
                if refused is not None:
                    raise
                refused = Refusal(account.access_token, outcome)
            except NotExecuted as outcome:
                pause = 2.0**repeats / 2 if outcome.retry_after is None else outcome.retry_after
                if repeats == self.terms.repeats or pause > self.terms.patience or isinstance(outcome, TooMuchToRead):
                    raise
                repeats += 1
                yield Act(partial(self.budget.pause, pause))

    def _wait(self) -> Work[None]:
        paused = True
        while paused:
            wait: float | None = yield Act(self.budget.take)
            if wait:
                yield Act(partial(self.sleep, wait))
            paused = yield Act(self.budget.is_paused)

    def _presented(self, account: Account) -> Account:
        library = f"crm-relay/{__version__}"
        agent = f"{self.terms.user_agent} ({library})" if self.terms.user_agent else library
        headers = {**account.headers, "User-Agent": agent, "X-Library-Version": __version__}
        return replace(account, context_user_id=self.terms.context_user_id, headers=headers)
