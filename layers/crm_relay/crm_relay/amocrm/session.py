"""How operations of the whole client are carried out: with a token, within the rate, repeated where that is safe.

An operation is a generator, as in `http_client`, that may also ask for something else to be done (an `Act`) and, where
it reads a list, hand out what it has `Found`. The synchronous and the asynchronous client run the same generators.
"""

import threading
import time
from collections.abc import Awaitable, Callable, Generator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

from crm_relay import __version__
from crm_relay.amocrm.client import DEADLINE, Account, TooMuchToRead, call, send
from crm_relay.amocrm.oauth import LONGEST_REFRESH, App, TokenPair, expires_at, refresh
from crm_relay.http_client import Request
from crm_relay.outcomes import NotExecuted, Unauthorized

PER_SECOND = 7.0
"""Requests a second that amoCRM takes of one integration (amoCRM reference, section 6)."""

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


class Limiter:
    """Requests of this process, evenly apart. Any number of threads may take."""

    def __init__(self, per_second: float = PER_SECOND, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._apart = 1 / per_second
        self._monotonic = monotonic
        self._next = monotonic()
        self._lock = threading.Lock()

    def take(self) -> float:
        """Return the seconds to wait before the request that is taken."""
        with self._lock:
            now = self._monotonic()
            at = max(now, self._next)
            self._next = at + self._apart
            return at - now


class Access(Protocol):
    """Where the account is and its token."""

    def account(self, now: float, sleep: Callable[[float], Any], /, *, refused: str | None) -> Work[Account]:
        """Return the account with a token that amoCRM takes; `refused` is one that it has just refused.

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

    def account(self, now: float, _sleep: Callable[[float], Any], *, refused: str | None) -> Work[Account]:
        """Return the account.

        Raises:
            Unauthorized: the token has ended, or was refused.
        """
        if refused is not None or (self.expires_at or now) < now:
            raise Unauthorized("long_lived_token_ended")
        yield from ()
        return Account(self.host, self.token)


class TokenStore(Protocol):
    """Where the token pair of one account is kept, for all who use it. Methods may be coroutine functions."""

    def read(self) -> TokenPair | Awaitable[TokenPair | None] | None:
        """Return the pair, None if the account was never authorized."""

    def write(self, pair: TokenPair) -> Awaitable[None] | None:
        """Store the pair, with the host in it: the account may have moved."""

    def claim(self, seconds: float) -> bool | Awaitable[bool]:
        """Take the right to refresh, unless somebody has it; it lapses after so many seconds."""

    def release(self) -> Awaitable[None] | None:
        """Give the right to refresh back."""


class MemoryTokens:
    """The pair of one account in this process."""

    def __init__(self, pair: TokenPair | None = None, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.pair = pair
        self._monotonic = monotonic
        self._claimed_until = 0.0
        self._lock = threading.Lock()

    def read(self) -> TokenPair | None:
        """Return the pair."""
        return self.pair

    def write(self, pair: TokenPair) -> None:
        """Keep the pair."""
        self.pair = pair

    def claim(self, seconds: float) -> bool:
        """Take the right to refresh."""
        with self._lock:
            now = self._monotonic()
            free = self._claimed_until <= now
            if free:
                self._claimed_until = now + seconds
            return free

    def release(self) -> None:
        """Give the right to refresh back."""
        self._claimed_until = 0.0


class StoredTokens:
    """The pair of a store, refreshed by one at a time and stored before anybody uses it.

    To use a new pair kills the old one: had two refreshed at once, or had the new pair been lost, somebody would have
    to authorize the integration again (amoCRM reference, section 5.3).
    """

    def __init__(self, app: App, store: TokenStore) -> None:
        self._app = app
        self._store = store

    def account(self, now: float, sleep: Callable[[float], Any], *, refused: str | None) -> Work[Account]:
        """Return the account with a token that is neither over nor refused.

        Raises:
            Unauthorized: the account was never authorized, or its refresh token is dead.
            Outcome: what `oauth.refresh` raises.
        """
        waited = 0.0
        while not _is_good(pair := (yield from self._read()), now, refused):
            if (yield Act(partial(self._store.claim, LONGEST_REFRESH))):
                pair = yield from self._refreshed(now, refused)
                break
            if waited > LONGEST_REFRESH:
                raise NotExecuted("token_being_refreshed", _LOOK_AGAIN)
            yield Act(partial(sleep, _LOOK_AGAIN))
            waited += _LOOK_AGAIN
        return Account(pair.host, pair.access_token, headers={"X-Client-UUID": self._app.client_id})

    def _refreshed(self, now: float, refused: str | None) -> Work[TokenPair]:
        try:
            pair = yield from self._read()
            if not _is_good(pair, now, refused):
                pair = yield from refresh(self._app, pair, now=now)
                yield Act(partial(self._store.write, pair))
        finally:
            yield Act(self._store.release)
        return pair

    def _read(self) -> Work[TokenPair]:
        pair: TokenPair | None = yield Act(self._store.read)
        if pair is None:
            raise Unauthorized("not_authorized")
        return pair


def _is_good(pair: TokenPair, now: float, refused: str | None) -> bool:
    return pair.access_token != refused and pair.expires_at - _EXPIRES_SOON > now


@dataclass(frozen=True, kw_only=True)
class Terms:
    """How a client behaves.

    Attributes:
        user_agent: the application's name, which goes before the library's.
        context_user_id: the user whose rights an administrator's token is used with.
        deadline: seconds for one request.
        repeats: how often a request that was not executed is sent again.
        patience: seconds; amoCRM may ask to stay away for so long, then the request fails.
        drive_host: where files are; asked of the account if it is not given.
    """

    user_agent: str = ""
    context_user_id: int | None = None
    deadline: float = DEADLINE
    repeats: int = 3
    patience: float = 60.0
    drive_host: str | None = None


@dataclass
class Session:
    """What the services of one client share."""

    access: Access
    budget: Budget
    terms: Terms
    sleep: Callable[[float], Any]
    clock: Callable[[], float]
    monotonic: Callable[[], float]
    field_ids: dict[str, dict[str, int]] = field(default_factory=dict)
    _drive_host: str | None = None
    _not_before: float = 0.0

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
        """Return the host where the account's files are."""
        if self._drive_host is None:
            self._drive_host = self.terms.drive_host
        if self._drive_host is None:
            account = yield from self.call("GET", "api/v4/account", query={"with": "drive_url"})
            self._drive_host = str(account.get("drive_url", "")).partition("://")[2].strip("/")
        return self._drive_host

    def _repeated(self, attempt: Callable[[Account], Work[dict[str, Any]]]) -> Work[dict[str, Any]]:
        refused: str | None = None
        repeats = 0
        while True:
            account = yield from self.access.account(self.clock(), self.sleep, refused=refused)
            try:
                yield from self._wait()
                return (yield from attempt(self._presented(account)))
            except Unauthorized:
                if refused is not None or isinstance(self.access, LongLivedToken):
                    raise
                refused = account.access_token
            except NotExecuted as outcome:
                pause = 2.0**repeats / 2 if outcome.retry_after is None else outcome.retry_after
                if repeats == self.terms.repeats or pause > self.terms.patience or isinstance(outcome, TooMuchToRead):
                    raise
                repeats += 1
                self._not_before = max(self._not_before, self.monotonic() + pause)

    def _wait(self) -> Work[None]:
        taken: float | None = yield Act(self.budget.take)
        wait = max(taken or 0.0, self._not_before - self.monotonic())
        if wait > 0:
            yield Act(partial(self.sleep, wait))

    def _presented(self, account: Account) -> Account:
        library = f"crm-relay/{__version__}"
        agent = f"{self.terms.user_agent} ({library})" if self.terms.user_agent else library
        headers = {**account.headers, "User-Agent": agent, "X-Library-Version": __version__}
        return replace(account, context_user_id=self.terms.context_user_id, headers=headers)
