"""Portals of Bitrix24 as a stack knows them: how to get into each, and what an answer means for a person."""

import random
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bitrix_robot.keys import portal_key
from bitrix_robot.portal import app_of
from crm_relay.bitrix24 import oauth
from crm_relay.bitrix24.client import Access, Operation, PortalMoved, Refused, call
from crm_relay.bitrix24.oauth import TokenPair
from crm_relay.delivery.aws import EventBridgeBus, SqsQueue
from crm_relay.delivery.ports import Ports
from crm_relay.delivery.runtime import Runtime
from crm_relay.delivery.tokens import Pair, SharedToken
from crm_relay.http_client import Exchange, HttpClient
from crm_relay.outcomes import Blocked, NotConfigured, NotExecuted, Outcome, Rejected, Unauthorized, Unreachable
from crm_relay.settings import Bitrix24Portal, Bitrix24Route, Bitrix24Secrets, load_settings, read_secrets
from workbench.cli.configuration import unknown
from workbench.cli.console import Problem
from workbench.cli.target import Target

if TYPE_CHECKING:
    from workbench.cli.world import World

_REFRESH_BEFORE = 60


@dataclass(frozen=True, slots=True)
class Connection:
    """What a stack needs for one portal: settings, secrets, and what the functions know of it."""

    name: str
    target: Target
    relay: Runtime
    http: HttpClient

    @property
    def settings(self) -> Bitrix24Portal:
        """What relay.toml says of it."""
        return self.relay.settings.bitrix24.portals[self.name]

    @property
    def secrets(self) -> Bitrix24Secrets:
        """What the secret has for it; one that the secret does not know has empty secrets."""
        return self.relay.secrets().bitrix24.get(self.name, Bitrix24Secrets())

    @property
    def has_app(self) -> bool:
        """Whether an app of ours is known there."""
        return bool(self.secrets.client_id and self.secrets.client_secret)

    @property
    def call_url(self) -> str:
        """Where the portal's calls are to lead; its last part is a secret.

        Raises:
            Problem: there is no such address yet.
        """
        if not self.secrets.url_key:
            raise Problem(f"{self.name} has no address for its calls yet: {self.fix('url_key')}")
        return f"{self.target.output('ApiUrl')}/bitrix/{self.secrets.url_key}"

    def fix(self, what: str) -> str:
        """Return the command that sets a secret of the portal."""
        return f"relay secrets set bitrix24.{what} --portal {self.name}{self.target.option}"

    def now(self) -> float:
        """Return unix seconds."""
        return self.relay.ports.clock.time()

    def do[T](self, operation: Operation[T]) -> T:
        """Do one operation as the functions do, by webhook or as the app; raises Outcome and Problem."""
        return self.run(lambda access: call(access, operation, now=self.now()))

    def run[T](self, exchange: Callable[[Access], Exchange[T]]) -> T:
        """Run an exchange as the functions do, by webhook or as the app; raises Outcome and Problem."""
        return self.http.run(exchange(self._access()))

    def do_as_app[T](self, operation: Operation[T]) -> T:
        """Do what only an app may do; raises Outcome and Problem."""
        if not self.has_app:
            raise Problem(
                f"Only an app may do this, and {self.name} has none: add a local application in the portal, "
                f"then {self.fix('app')}"
            )
        return self.http.run(call(self._app(), operation, now=self.now()))

    def _access(self) -> Access:
        if self.secrets.webhook_url:
            try:
                return Access.by_webhook(self.secrets.webhook_url, host=self.settings.host)
            except NotConfigured:
                raise Problem(
                    f"The webhook of {self.name} is not at {self.settings.host}: {self.fix('webhook_url')}, "
                    "or mend its host in relay.toml"
                ) from None
        if self.has_app:
            return self._app()
        if self.settings.use_token_of_call:
            return self._token_of_call()
        raise Problem(f"{self.name} has neither an incoming webhook nor an app: {self.fix('webhook_url')}")

    def _app(self) -> Access:
        token = SharedToken(self.relay.ports, portal_key(self.name))
        pair = token.read()
        if pair is None:
            raise Problem(
                f"The app is not installed in {self.name}, or was removed: the address for its initial installation "
                f"is that of the portal's calls; relay bitrix address {self.name} --reveal{self.target.option}"
            )
        if pair["expires_at"] <= self.now() + _REFRESH_BEFORE:
            pair = token.refreshed(pair, self._refresh)
        return Access(self.settings.host, access_token=pair["access_token"])

    def _refresh(self, stale: Pair) -> Pair:
        exchange = oauth.refresh(app_of(self.relay, self.name), TokenPair(**stale), now=self.now())
        return asdict(self.http.run(exchange))

    def _token_of_call(self) -> Access:
        pair = SharedToken(self.relay.ports, portal_key(self.name)).read()
        if pair is None or (pair["expires_at"] or 0) <= self.now():
            raise Problem(f"{self.name} is read with the tokens of its calls, and there is none that works just now.")
        return Access(self.settings.host, access_token=pair["access_token"])


@dataclass(frozen=True, slots=True)
class Portals:
    """All portals of relay.toml, by name, and the routes between them."""

    relay: Runtime
    connections: Mapping[str, Connection]
    stack: str | None

    @classmethod
    def of(cls, target: Target, world: "World", config: Path) -> "Portals":
        """Read what a stack knows.

        Raises:
            ConfigurationError: relay.toml or the secret cannot be read.
        """
        relay, http = _runtime(target, world, config), HttpClient(world.transport)
        names = relay.settings.bitrix24.portals
        return cls(relay, {name: Connection(name, target, relay, http) for name in names}, target.name)

    @property
    def routes(self) -> Mapping[str, Bitrix24Route]:
        """The routes of relay.toml by name."""
        return self.relay.settings.bitrix24.routes

    def portal(self, name: str) -> Connection:
        """Return a portal.

        Raises:
            Problem: relay.toml has none of this name.
        """
        if name not in self.connections:
            raise unknown("portal", "bitrix24.portals", name, self.connections, stack=self.stack)
        return self.connections[name]

    def route(self, name: str) -> Bitrix24Route:
        """Return a route.

        Raises:
            Problem: relay.toml has none of this name.
        """
        if name not in self.routes:
            raise unknown("route", "bitrix24.routes", name, self.routes, stack=self.stack)
        return self.routes[name]


def _runtime(target: Target, world: "World", config: Path) -> Runtime:
    """Return what the functions hold, as far as portals are concerned: nothing is published from here."""
    queue_at = partial(SqsQueue, target.sqs)
    ports = Ports(
        store=target.store,
        queue=queue_at(target.output("BitrixQueueUrl")),
        dead_letters=queue_at(target.output("BitrixDeadLetterQueueUrl")),
        bus=EventBridgeBus(None, ""),
        clock=world.clock,
        random=random.random,
        queue_at=queue_at,
    )
    secrets = read_secrets(target.read_secret() or "{}")
    return Runtime(ports, load_settings(config), lambda: secrets)


def trouble(outcome: Outcome, host: str) -> str:
    """Return what an outcome of asking a portal means for a person."""
    match outcome:
        case PortalMoved(host=str(moved)) if moved:
            return f"{host} has moved to {moved}: mend domain and host of the portal in relay.toml"
        case Unauthorized():
            return f"{host} does not take our webhook or token ({outcome})"
        case Blocked():
            return f"{host} is closed to us ({outcome})"
        case Unreachable():
            return f"{host} cannot be reached ({outcome})"
        case NotExecuted():
            return f"{host} is busy ({outcome}); try again later"
        case Refused(reason="insufficient_scope"):
            return f"{host} refuses: our webhook or app lacks a scope"
        case Refused(text=str(text)) if text:
            return f"{host} refuses ({outcome}): {text}"
        case Rejected():
            return f"{host} refuses ({outcome})"
        case _:
            return f"{host} does not answer as Bitrix24 does ({outcome})"
