"""One amoCRM account for all its requests: its token, its door, and what its ids mean."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from functools import cache, lru_cache, partial
from itertools import count as numbers
from typing import Any
from zoneinfo import ZoneInfo

from amo_webhook.note_text import Names
from crm_relay.amocrm import oauth
from crm_relay.amocrm.client import Account as Access
from crm_relay.amocrm.oauth import App, TokenPair
from crm_relay.amocrm.resources import PIPELINES, USERS, Resource, account_info, read_page
from crm_relay.delivery.account import Account as Door
from crm_relay.delivery.ports import Conflict, Item, StorageError
from crm_relay.delivery.runtime import Runtime
from crm_relay.delivery.tokens import Pair, SharedToken
from crm_relay.http_client import Exchange, HttpClient
from crm_relay.observability import log_failure, logger
from crm_relay.outcomes import (
    Blocked,
    NotConfigured,
    NotExecuted,
    Outcome,
    OutcomeUnknown,
    Rejected,
    Unauthorized,
    Unreachable,
)
from crm_relay.settings import AmoCrmSecrets

ENDS_SOON = 14 * 86_400
"""Seconds before its end at which somebody should make a new long-lived token."""
_RESPONSE_LIMIT = 8 * 1024 * 1024
"""Bytes: 250 entities with many custom fields are more than the client takes by default."""
_REFRESH_BEFORE = 300
"""Seconds before its end at which an access token is refreshed."""
_NAMES_KEPT = 3600
_NAMES_FRESH = 300
"""Seconds for which names are not read again, even if an id is not among them."""
_NAMES_READ_WITHIN = 3
"""Seconds in which one worker reads names for all; then the next one does."""
_LOOK_AGAIN = 0.2
_NO_NAMES = {"users": {}, "pipelines": {}, "stages": {}, "time_zone": "UTC", "read_at": 0}


class AmoAccount:
    """An account of relay.toml."""

    def __init__(self, relay: Runtime, name: str) -> None:
        """Open the account `name`.

        Raises:
            NotConfigured: relay.toml has none of this name.
        """
        settings = relay.settings.amocrm.accounts.get(name)
        if settings is None:
            raise NotConfigured
        self.settings = settings
        self._relay = relay
        self.name = name
        self._key = amo_key(name)
        self._names_key = f"names#{self._key}"
        self._door = Door(relay.ports, self._key, requests_per_second=settings.requests_per_second)
        self._token = SharedToken(relay.ports, self._key)

    @property
    def secrets(self) -> AmoCrmSecrets:
        """The account's secrets.

        Raises:
            NotConfigured: there are none.
        """
        secrets = self._relay.secrets().amocrm.get(self.name)
        if secrets is None:
            raise NotConfigured
        return secrets

    def now(self) -> float:
        """Return unix seconds."""
        return self._relay.ports.clock.time()

    def check(self) -> None:
        """Raise NotExecuted while the account is paused."""
        self._door.check()

    def run[T](self, operation: Callable[[Access], Exchange[T]]) -> T:
        """Run an operation, in one slot of the budget, with a token that works: the long-lived one, or else the pair's.

        Args:
            operation: called when its slot has come, and once more if amoCRM did not take the token.

        Raises:
            NotConfigured: there is neither a long-lived token nor an integration.
            NotExecuted: paused, no budget, the circuit is open, or another worker is refreshing the token.
            Unauthorized: nobody has authorized us, or somebody took it back. The account is paused for all workers.
            Outcome: whatever else the operation raises.
        """
        self._door.check()  # of a paused account not even a token is asked
        token = self.secrets.long_lived_token
        if token:
            return self._request(operation, Access(self.settings.host, token))
        pair = self._pair(_REFRESH_BEFORE)
        try:
            return self._request(lambda access: _or_expired(operation(access)), _access(pair))
        except _TokenExpired:
            return self._request(operation, _access(self._refreshed(pair, self._app)))

    def each(self, resource: Resource, *, query: Mapping[str, Any] | None = None) -> Iterator[dict[str, Any]]:
        """Yield the items of a list, each page in a slot of its own; raises what `run` does."""
        for number in numbers(1):
            page = self.run(partial(read_page, resource=resource, number=number, query=query, now=self.now()))
            yield from page.items
            if not page.has_next:
                return

    def renew(self, *, before: int) -> str:
        """Refresh a pair that ends within `before` seconds, and return where the account is; raises what `run` does.

        An account with a long-lived token is where relay.toml says.
        """
        self._door.check()
        return self.settings.host if self.secrets.long_lived_token else str(self._pair(before)["host"])

    def names(self, entities: Iterable[Mapping[str, Any]] = ()) -> Names:
        """Return what the account's ids mean, read once an hour for all workers together; raises what `run` does.

        What amoCRM refuses to tell (users, without an administrator's rights) is not among them.

        Args:
            entities: those that names are wanted for; an id in them that is new to us has the names read again.
        """
        entities = list(entities)
        ports = self._relay.ports
        item = ports.store.get(self._names_key)
        while item is None or not self._are_fresh(item, entities):
            if item and self._are_being_read(item):
                ports.clock.sleep(_LOOK_AGAIN)
                item = ports.store.get(self._names_key)
                continue
            try:
                claimed = self._claim_names(item)
            except Conflict as conflict:
                item = conflict.current
            else:
                return self._read_and_keep_names(claimed)
        return _names(item.attributes)

    def _are_being_read(self, item: Item) -> bool:
        left: int = item.attributes.get("reading_until", 0) - int(self.now())
        return 0 < left <= _NAMES_READ_WITHIN

    def _claim_names(self, item: Item | None) -> Item | None:
        """Tell other workers that we are reading names. Raises Conflict if one of them was faster."""
        now = int(self.now())
        claim = {**_NO_NAMES, **(item.attributes if item else {}), "reading_until": now + _NAMES_READ_WITHIN}
        try:
            return self._relay.ports.store.put(self._names_key, claim, replaces=item, expires_at=now + _NAMES_KEPT)
        except StorageError as error:
            log_failure("names not claimed", error, account=self.name)
            return item

    def _read_and_keep_names(self, item: Item | None) -> Names:
        known = self._read_names()
        expires_at = known["read_at"] + _NAMES_KEPT
        try:
            self._relay.ports.store.put(self._names_key, known, replaces=item, expires_at=expires_at)
        except Conflict:  # another worker has read the same
            pass
        except StorageError as error:  # of an account with very many users, say, more than an item holds
            log_failure("names not kept", error, account=self.name)
        return _names(known)

    def _are_fresh(self, item: Item, entities: Iterable[Mapping[str, Any]]) -> bool:
        age = self.now() - item.attributes["read_at"]
        return age <= _NAMES_FRESH or (age <= _NAMES_KEPT and _has_all(_names(item.attributes), entities))

    def _request[T](self, operation: Callable[[Access], Exchange[T]], access: Access) -> T:
        return self._door.request(lambda: http_client().run(self._paced(operation(access))))

    def _paced[T](self, exchange: Exchange[T]) -> Exchange[T]:
        """Let each request behind the first, which has its slot, wait for one of its own."""
        try:
            request = next(exchange)
            while True:
                try:
                    response = yield request
                except Outcome as outcome:
                    request = exchange.throw(outcome)
                else:
                    request = exchange.send(response)
                self._door.take()
        except StopIteration as done:
            result: T = done.value
            return result

    def _pair(self, before: int) -> Pair:
        """Return the pair, refreshed if it ends within `before` seconds; one that still works does if that fails."""
        app = self._app
        pair = self._token.read()
        if pair is None:
            refusal = Unauthorized("not_authorized")
            self._door.stop(refusal)
            raise refusal
        left = pair["expires_at"] - self.now()
        if left > before:
            return pair
        try:
            return self._refreshed(pair, app)
        except NotExecuted as outcome:
            if left <= 0:
                raise
            logger.warning("token not refreshed yet", account=self.name, reason=str(outcome), seconds_left=int(left))
            return pair

    def _refreshed(self, pair: Pair, app: App) -> Pair:
        def refresh(stale: Pair) -> Pair:
            return asdict(http_client().run(oauth.refresh(app, TokenPair(**stale), now=self.now())))

        # Not through the door: that somebody else is refreshing is no reason to pause the account.
        try:
            return self._token.refreshed(pair, refresh)
        except OutcomeUnknown as outcome:
            raise Unreachable(str(outcome)) from None  # of what the token was wanted for, nothing has happened
        except (Unauthorized, Blocked) as refusal:
            self._door.stop(refusal)
            raise

    @property
    def _app(self) -> App:
        app = app_of(self.secrets)
        if app is None:
            raise NotConfigured
        return app

    def _read_names(self) -> dict[str, Any]:
        users = self._unless_refused("users", lambda: list(self.each(USERS))) or []
        pipelines = self._unless_refused("pipelines", lambda: list(self.each(PIPELINES))) or []
        info = self._unless_refused("account", lambda: self.run(partial(account_info, now=self.now())))
        match info:
            case {"_embedded": {"datetime_settings": {"timezone": str(zone)}}}:
                pass
            case _:
                zone = "UTC"
        return {
            "users": {str(user["id"]): str(user.get("name", "")) for user in users},
            "pipelines": {str(pipeline["id"]): str(pipeline.get("name", "")) for pipeline in pipelines},
            "stages": {str(pipeline["id"]): _stages(pipeline) for pipeline in pipelines},
            "time_zone": zone,
            "read_at": int(self.now()),
        }

    def _unless_refused[T](self, what: str, read: Callable[[], T]) -> T | None:
        try:
            return read()
        except Rejected as refusal:
            logger.warning("names not read", account=self.name, what=what, reason=refusal.reason)
            return None


@lru_cache(maxsize=64)
def amo_account(relay: Runtime, name: str) -> AmoAccount:
    """Return this process's view of an account. Raises NotConfigured if relay.toml has none of this name."""
    return AmoAccount(relay, name)


@cache
def http_client() -> HttpClient:
    """Return this process's one HTTP client."""
    return HttpClient(response_limit=_RESPONSE_LIMIT)


def amo_key(name: str) -> str:
    """Return what the table calls an account: the last part of the keys of its token, its pause and its budget."""
    return f"amocrm#{name}"


def app_of(secrets: AmoCrmSecrets) -> App | None:
    """Return the integration in an account's secrets; None if it is not all there."""
    app = App(secrets.client_id, secrets.client_secret, secrets.redirect_uri)
    return app if app.client_id and app.client_secret and app.redirect_uri else None


def closed_if_forbidden[T](exchange: Exchange[T]) -> Exchange[T]:
    """Do what every note needs.

    Raises:
        Blocked: 403, which to this means that the account is closed to us, whatever amoCRM sends along.
        Outcome: whatever else the exchange raises.
    """
    try:
        return (yield from exchange)
    except Rejected as refusal:
        if refusal.reason != "http_403":
            raise
        raise Blocked(refusal.reason) from refusal


class _TokenExpired(NotExecuted):
    """401 with a token that can be refreshed: no reason to pause the account yet."""


def _or_expired[T](exchange: Exchange[T]) -> Exchange[T]:
    try:
        return (yield from exchange)
    except Unauthorized as refusal:
        raise _TokenExpired(str(refusal)) from None


def _access(pair: Pair) -> Access:
    return Access(pair["host"], pair["access_token"])


def _stages(pipeline: Mapping[str, Any]) -> dict[str, str]:
    statuses = (pipeline.get("_embedded") or {}).get("statuses") or ()
    return {str(status["id"]): str(status.get("name", "")) for status in statuses}


def _names(known: Mapping[str, Any]) -> Names:
    return Names(
        users={int(user): text for user, text in known["users"].items()},
        pipelines={int(pipeline): text for pipeline, text in known["pipelines"].items()},
        stages={
            (int(pipeline), int(stage)): text
            for pipeline, stages in known["stages"].items()
            for stage, text in stages.items()
        },
        time_zone=_zone(known["time_zone"]),
    )


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ValueError, OSError, KeyError):  # a name that is no path, or that nobody knows
        return ZoneInfo("UTC")


def _has_all(names: Names, entities: Iterable[Mapping[str, Any]]) -> bool:
    return all(
        (not entity.get("responsible_user_id") or entity["responsible_user_id"] in names.users)
        and (not entity.get("status_id") or (entity.get("pipeline_id"), entity["status_id"]) in names.stages)
        for entity in entities
    )
