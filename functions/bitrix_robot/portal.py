"""One portal of Bitrix24 for all its requests: how we get in, its limits, and what its fields and users are."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, lru_cache, partial
from itertools import batched, chain
from typing import Any

from bitrix_robot.keys import portal_key
from bitrix_robot.mapping import Definitions, definitions
from crm_relay.bitrix24 import directory, items, oauth
from crm_relay.bitrix24.client import (
    BATCH,
    PAGE,
    Access,
    BodyRefused,
    OperatingLimit,
    Operation,
    PageInstead,
    TokenExpired,
    batch,
    call,
    row_id,
)
from crm_relay.bitrix24.oauth import App, TokenPair
from crm_relay.delivery.account import Account as Door
from crm_relay.delivery.runtime import Runtime
from crm_relay.delivery.tokens import Pair, SharedToken
from crm_relay.http_client import Exchange, HttpClient
from crm_relay.outcomes import NotConfigured, NotExecuted, Outcome, OutcomeUnknown, Rejected, Unauthorized, Unreachable
from crm_relay.settings import Bitrix24Portal, Bitrix24Secrets

_REFRESH_BEFORE = 60
"""Seconds before its end at which an access token is refreshed. Bitrix24 frowns on those who do it much earlier."""
_DEFINITIONS_KEPT = 600
_OPTIONS = ("user_fields", "statuses")
_NEEDS_SECONDS = 10
"""Seconds that a request is given at least, with its wait for a slot: what is cut off leaves doubts behind."""
_RESPONSE_LIMIT = 32 * 1024 * 1024
"""Bytes: fifty deals with hundreds of custom fields are more than the client takes by default."""

type _Made[K, T] = Callable[[Sequence[K]], dict[K, T | Outcome]]


class Portal:
    """A portal of relay.toml. No request begins shortly before `until` (unix seconds), or goes on after it."""

    def __init__(self, relay: Runtime, name: str) -> None:
        """Open the portal `name`.

        Raises:
            NotConfigured: relay.toml has none of this name.
        """
        settings = relay.settings.bitrix24.portals.get(name)
        if settings is None:
            raise NotConfigured
        self.name = name
        self.settings: Bitrix24Portal = settings
        self.until = math.inf
        self._relay = relay
        self._door = Door(relay.ports, portal_key(name), requests_per_second=settings.requests_per_second)
        self._token = SharedToken(relay.ports, portal_key(name))
        self._definitions: Definitions = {}
        self._definitions_read_at = 0.0

    def now(self) -> float:
        """Return unix seconds."""
        return self._relay.ports.clock.time()

    def check(self) -> None:
        """Raise NotExecuted while the portal is paused."""
        self._door.check()

    def run[T](self, exchange: Callable[[Access], Exchange[T]]) -> T:
        """Run an exchange of one request in a slot of the budget: by the webhook, or else with the app's token.

        Raises:
            NotConfigured: there is neither.
            NotExecuted: no time is left, paused, no budget, the circuit is open, or another worker is refreshing the
                token.
            BodyRefused: a page came in the place of an answer, and something harmless is answered all the same.
            Outcome: whatever the exchange raises. Unauthorized and Blocked pause the portal for all workers.
        """
        match self._run(lambda access: _set_apart(exchange(access))):
            case _Apart(PageInstead() as page):
                self._run(partial(call, operation=directory.profile(), now=self.now()))
                raise BodyRefused(str(page))
            case _Apart(outcome):
                raise outcome
            case answer:
                return answer

    def _run[T](self, exchange: Callable[[Access], Exchange[T]]) -> T:
        if self.now() + _NEEDS_SECONDS > self.until:
            raise NotExecuted("out_of_time")
        self._door.check()
        webhook = self._secrets.webhook_url
        if webhook:
            return self._request(exchange(Access.by_webhook(webhook, host=self.settings.host)))
        pair = self._pair()
        try:
            return self._request(_or_expired(exchange(self._access(pair))))
        except _Expired:
            return self._request(exchange(self._access(self._refreshed(pair))))

    def do[T](self, operation: Operation[T]) -> T:
        """Do one operation; raises what `run` does."""
        return self.run(lambda access: call(access, operation, now=self.now()))

    def do_all[K, T](
        self, operations: Mapping[K, Operation[T]], *, made: _Made[K, T] | None = None
    ) -> dict[K, T | Outcome]:
        """Do operations, fifty a request, in their order; return each one's result or outcome under its key.

        Args:
            operations: what to do.
            made: looks which of what the operations make is there, before they are done a second time: who sends a
                page in the place of an answer may do so when all is done.

        Raises:
            NotConfigured, StorageError: as `run`.
        """
        answers: dict[K, T | Outcome] = {}
        for keys in batched(operations, BATCH):
            answers |= self._together({key: operations[key] for key in keys}, made)
        return answers

    def _together[K, T](self, operations: Mapping[K, Operation[T]], made: _Made[K, T] | None) -> dict[K, T | Outcome]:
        """Do operations in one request; in two, where the web server does not let the body of one through."""
        labelled = {f"n{place}": operation for place, operation in enumerate(operations.values())}
        try:
            told = self.run(partial(_batch, labelled, self.now()))
            return dict(zip(operations, told.values(), strict=True))
        except BodyRefused as refusal:
            there = made(list(operations)) if made else {}
            others = {key: operation for key, operation in operations.items() if key not in there}
            if len(operations) == 1 or not others:
                return dict.fromkeys(others, refusal) | there
            halves = batched(others.items(), math.ceil(len(others) / 2))
            return dict(chain.from_iterable(self._together(dict(half), made).items() for half in halves)) | there
        except Outcome as outcome:
            return dict.fromkeys(operations, outcome)

    def read_all(self, page: Callable[[int], Operation[list[dict[str, Any]]]]) -> list[dict[str, Any]]:
        """Read a list by id, each page in a slot of its own: `page(last)` reads the rows with ids above `last`.

        It costs the same however long the list is; counting pages does not (Bitrix24 reference, section 4.1).

        Raises:
            Unreachable: the portal does not go on with the list, but begins anew.
            Exception: as `run`.
        """
        rows: list[dict[str, Any]] = []
        last = 0
        while True:
            found = self.do(page(last))
            rows += found
            if len(found) < PAGE:
                return rows
            if (following := row_id(found[-1])) <= last:
                raise Unreachable("list_out_of_order")
            last = following

    def definitions(self) -> Definitions:
        """Return what the portal says of its deals' fields, read every ten minutes; raises what `run` does."""
        if self.now() >= self._definitions_read_at + _DEFINITIONS_KEPT:
            read: dict[str, Operation[Any]] = {
                "fields": items.fields(items.DEAL),
                "user_fields": items.deal_user_fields(),
                "statuses": directory.statuses(),
            }
            found = self.do_all(read)
            # Options may be kept from us for good; what is only late would be missed by all deals of ten minutes.
            options = {name: () if isinstance(found[name], Rejected) else expect(found[name]) for name in _OPTIONS}
            self._definitions = definitions(expect(found["fields"]), **options)
            self._definitions_read_at = self.now()
        return self._definitions

    def _request[T](self, exchange: Exchange[T]) -> T:
        return self._door.request(lambda: http_client().run(exchange, within=self.until - self.now()))

    @property
    def _secrets(self) -> Bitrix24Secrets:
        secrets = self._relay.secrets().bitrix24.get(self.name)
        if secrets is None:
            raise NotConfigured
        return secrets

    def _access(self, pair: Pair) -> Access:
        return Access(self.settings.host, access_token=pair["access_token"])

    def _pair(self) -> Pair:
        pair = self._token.read()
        if pair is None and self._has_tokens_of_calls:
            raise NotExecuted("no_call_with_a_token")
        if pair is None:
            refusal = Unauthorized("not_installed")
            self._door.stop(refusal)
            raise refusal
        return pair if pair["expires_at"] > self.now() + _REFRESH_BEFORE else self._refreshed(pair)

    @property
    def _has_tokens_of_calls(self) -> bool:
        return self.settings.use_token_of_call and not self._secrets.client_id

    def _refreshed(self, pair: Pair) -> Pair:
        if self._has_tokens_of_calls:
            raise NotExecuted("token_of_call_expired")
        app = app_of(self._relay, self.name)

        def refresh(stale: Pair) -> Pair:
            fresh = http_client().run(
                oauth.refresh(app, TokenPair(**stale), now=self.now()), within=self.until - self.now()
            )
            return asdict(fresh)

        # Not through the door: that somebody else is refreshing is no reason to pause the portal.
        try:
            return self._token.refreshed(pair, refresh)
        except OutcomeUnknown as outcome:
            raise Unreachable(str(outcome)) from None  # of what the token was wanted for, nothing has happened
        except Unauthorized as refusal:
            self._door.stop(refusal)
            raise


@lru_cache(maxsize=64)
def portal(relay: Runtime, name: str) -> Portal:
    """Return this process's view of a portal. Raises NotConfigured if relay.toml has none of this name."""
    return Portal(relay, name)


@cache
def http_client() -> HttpClient:
    """Return this process's one HTTP client."""
    return HttpClient(response_limit=_RESPONSE_LIMIT)


def app_of(relay: Runtime, name: str) -> App:
    """Return a portal's app. Raises NotConfigured if its secrets have none."""
    secrets = relay.secrets().bitrix24.get(name, Bitrix24Secrets())
    if not (secrets.client_id and secrets.client_secret):
        raise NotConfigured
    return App(relay.settings.bitrix24.oauth_host, secrets.client_id, secrets.client_secret)


def expect[T](answer: T | Outcome) -> T:
    """Return a result of `Portal.do_all`, or raise the outcome."""
    if isinstance(answer, Outcome):
        raise answer
    return answer


def _batch[T](operations: Mapping[str, Operation[T]], now: float, access: Access) -> Exchange[dict[str, T | Outcome]]:
    return batch(access, operations, now=now)


@dataclass(frozen=True, slots=True)
class _Apart:
    """What is the trouble of one method or one request, and no reason to pause the portal: its door lets it pass."""

    outcome: OperatingLimit | PageInstead


def _set_apart[T](exchange: Exchange[T]) -> Exchange[T | _Apart]:
    try:
        return (yield from exchange)
    except (OperatingLimit, PageInstead) as outcome:
        return _Apart(outcome)


class _Expired(NotExecuted):
    """The access token is too old: no reason to pause the portal."""


def _or_expired[T](exchange: Exchange[T]) -> Exchange[T]:
    try:
        return (yield from exchange)
    except TokenExpired as refusal:
        raise _Expired(str(refusal)) from None
