"""`relay amo`: let a relay into an amoCRM account, and see to it that the account's hooks reach it."""

import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer

from amo_webhook.account import amo_key, app_of
from amo_webhook.subscription import events_of, fault_of, hook_url, our_hook, repair, wanted_events
from crm_relay.amocrm.client import Account as Access
from crm_relay.amocrm.oauth import authorize_url, sign_state
from crm_relay.amocrm.resources import PIPELINES, WEBHOOKS, embedded, read_all, unsubscribe
from crm_relay.delivery.tokens import token_key
from crm_relay.http_client import HttpClient
from crm_relay.outcomes import Blocked, NotExecuted, Outcome, Rejected, Unauthorized, Unreachable
from crm_relay.settings import AmoCrmAccount, AmoCrmSecrets, ConfigurationError, load_settings, read_secrets
from workbench.cli.configuration import unknown
from workbench.cli.console import (
    JsonOption,
    Problem,
    RegionOption,
    StackOption,
    examples,
    flag,
    out,
    print_json,
    shown,
    table,
    tell,
)
from workbench.cli.target import Target

if TYPE_CHECKING:
    from workbench.cli.world import World

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Connect an amoCRM account, and look after its hooks."
)

FAULTS = {
    "missing": "no hook leads to this relay",
    "switched_off": "amoCRM has switched the hook off, after too many bad answers",
    "lacks_events": "the hook does not tell all that gets notes",
}
_STALE = "stale"
_NONCE_BYTES = 16

AccountArgument = Annotated[str, typer.Argument(metavar="NAME", help="The account, as relay.toml calls it.")]


@dataclass(frozen=True, slots=True)
class Connection:
    """What a stack needs for one amoCRM account: settings, secrets, and where its hooks are to lead."""

    name: str
    target: Target
    settings: AmoCrmAccount
    secrets: AmoCrmSecrets

    @property
    def hook_url(self) -> str:
        """Where the account's hooks are to lead; its last part is a secret."""
        return hook_url(self.target.output("ApiUrl"), self.secrets.hook_token)

    @property
    def redirect_uri(self) -> str:
        """Where administrators come back to."""
        return f"{self.target.output('ApiUrl')}/amo/oauth"

    def fix(self, what: str) -> str:
        """Return the command that sets a secret of the account."""
        return f"relay secrets set amocrm.{what} --account {self.name}{self.target.option}"

    @property
    def authorize(self) -> str:
        """The command that begins with an administrator's consent."""
        return f"relay amo authorize {self.name}{self.target.option}"

    def access(self, now: float) -> Access:
        """Return a way in, without changing anything: the functions refresh tokens, and nobody else.

        Raises:
            Problem: there is no token, or none that works any more.
        """
        if self.secrets.long_lived_token:
            return Access(self.settings.host, self.secrets.long_lived_token)
        if app_of(self.secrets) is None:
            raise Problem(f"{self.name} has neither a token nor an integration: {self.fix('long_lived_token')}")
        item = self.target.store.get(token_key(amo_key(self.name)))
        pair = item.attributes["pair"] if item else None
        if pair is None:
            raise Problem(f"Nobody has authorized {self.name}, or it was disconnected: {self.authorize}")
        if pair["expires_at"] <= now:
            raise Problem(f"The token of {self.name} has run out; the relay refreshes it within the hour.")
        return Access(pair["host"], pair["access_token"])


def connections(target: Target, config: Path) -> Iterator[Connection]:
    """Yield the accounts of relay.toml; one that the secret does not know has empty secrets.

    Raises:
        ConfigurationError: relay.toml or the secret cannot be read.
    """
    known = read_secrets(target.read_secret() or "{}").amocrm
    for name, settings in load_settings(config).amocrm.accounts.items():
        yield Connection(name, target, settings, known.get(name, AmoCrmSecrets()))


def trouble(outcome: Outcome, host: str) -> str:
    """Return what an outcome of asking amoCRM means for a person."""
    match outcome:
        case Unauthorized():
            return f"{host} does not take the token ({outcome})"
        case Blocked():
            return f"{host} is closed to us, or has moved ({outcome})"
        case Unreachable():
            return f"{host} cannot be reached ({outcome})"
        case NotExecuted():
            return f"{host} is busy ({outcome}); try again later"
        case Rejected(reason="http_403"):
            return f"{host} refuses ({outcome}): the token needs the rights of an administrator"
        case Rejected():
            return f"{host} refuses ({outcome})"
        case _:
            return f"{host} does not answer as amoCRM does ({outcome})"


def mended(outcome: Outcome, connection: Connection) -> str:
    """Return what to do about an outcome of asking amoCRM; "" where time alone mends it."""
    match outcome:
        case Unauthorized() | Rejected(reason="http_403"):
            return connection.fix("long_lived_token") if connection.secrets.long_lived_token else connection.authorize
        case Blocked():
            return f"look at amocrm.accounts.{connection.name}.host in relay.toml, and whether the account is paid for"
        case Unreachable():
            return f"look at amocrm.accounts.{connection.name}.host in relay.toml, and at the network here"
        case _:
            return ""


@app.command(epilog=examples("relay amo authorize main", "relay amo authorize main --open --stack crm-relay"))
def authorize(
    ctx: typer.Context,
    name: AccountArgument,
    *,
    open_: Annotated[bool, flag("--open", meaning="Open the page in a browser.")] = False,
    stack: StackOption = None,
    region: RegionOption = None,
) -> None:
    """Print the address at which an administrator lets the relay in.

    It is good once, and for 20 minutes. Accounts with a long-lived token
    need none of this.
    """
    world: World = ctx.obj
    connection = _connection(world, Target.of(world, stack, region), name)
    if connection.secrets.long_lived_token:
        raise Problem(
            f"{name} has a long-lived token, which needs nobody's consent. For an integration instead, take it away: "
            f"relay secrets unset amocrm.long_lived_token --account {name}{connection.target.option}"
        )
    integration = app_of(connection.secrets)
    if integration is None:
        raise Problem(f"{name} has no integration: {connection.fix('integration')}")
    if integration.redirect_uri != connection.redirect_uri:
        tell(
            f"[yellow]The integration leads back to {shown(integration.redirect_uri)}, "
            f"this relay listens at {shown(connection.redirect_uri)}[/]"
        )
    nonce = secrets.token_hex(_NONCE_BYTES)
    state = sign_state(name, nonce, integration.client_secret, now=world.clock.time())
    url = authorize_url(integration, state, host=connection.settings.host)
    tell(f"Open this as an administrator of {shown(connection.settings.host)}, within 20 minutes:")
    typer.echo(url)
    if open_:
        typer.launch(url)


@app.command(epilog=examples("relay amo hooks main", "relay amo hooks main --repair --stack crm-relay"))
def hooks(
    ctx: typer.Context,
    name: AccountArgument,
    *,
    repair_: Annotated[bool, flag("--repair", meaning="Subscribe, switch on, or complete the relay's hook.")] = False,
    reveal: Annotated[bool, flag("--reveal", meaning="Print addresses whole; they are as good as keys.")] = False,
    stack: StackOption = None,
    region: RegionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the hooks of an account, and repair the one that leads here.

    The relay looks after it every hour by itself. --reveal prints its
    address, to be pasted where amoCRM wants one: into a robot, say.
    Exit code 1: the hook is not as it must be.
    """
    world: World = ctx.obj
    connection = _connection(world, Target.of(world, stack, region), name)
    if not connection.secrets.hook_token:
        raise Problem(f"The secret has nothing for {name}: {connection.fix('long_lived_token')}")
    access, http = connection.access(world.clock.time()), HttpClient(world.transport)
    url, wanted = connection.hook_url, wanted_events(connection.settings.notes)
    try:
        known = http.run(read_all(access, WEBHOOKS, now=world.clock.time()))
        if repair_:
            ours = our_hook(known, url)
            if fault_of(ours, wanted):
                http.run(repair(access, ours, url, wanted, now=world.clock.time()))
            for hook in known:
                if _whose(hook, connection) == _STALE:
                    http.run(unsubscribe(access, str(hook["destination"]), now=world.clock.time()))
            known = http.run(read_all(access, WEBHOOKS, now=world.clock.time()))
    except Outcome as outcome:
        raise _problem(outcome, connection) from None
    rows = [_row(hook, connection, reveal=reveal) for hook in known]
    if as_json:
        print_json(rows)
    else:
        _print(rows, reveal=reveal)
    if fault := fault_of(our_hook(known, url), wanted):
        raise Problem(f"{name}: {FAULTS[fault]}. Mend it: relay amo hooks {name} --repair{connection.target.option}")


@app.command(epilog=examples("relay amo stages main", "relay amo stages main --json --stack crm-relay"))
def stages(
    ctx: typer.Context,
    name: AccountArgument,
    *,
    stack: StackOption = None,
    region: RegionOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the stages of an account with their ids, for relay.toml.

    Leads get notes in the stages that `stages` names there, in all if it
    names none. The closed ones, 142 and 143, are in every pipeline.
    """
    world: World = ctx.obj
    connection = _connection(world, Target.of(world, stack, region), name)
    now = world.clock.time()
    try:
        known = stages_of(HttpClient(world.transport).run(read_all(connection.access(now), PIPELINES, now=now)))
    except Outcome as outcome:
        raise _problem(outcome, connection) from None
    if as_json:
        print_json(known)
        return
    wanted = connection.settings.stages
    rows = table("pipeline", "stage", "id", "notes")
    for stage in known:
        noted = "[green]yes[/]" if not wanted or stage["id"] in wanted else "[dim]no[/]"
        rows.add_row(shown(stage["pipeline"]), shown(stage["name"]), str(stage["id"]), noted)
    out.print(rows)


def stages_of(pipelines: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return id, name and pipeline's name of each stage, in the order of amoCRM."""
    return [
        {"id": stage["id"], "name": str(stage.get("name", "")), "pipeline": str(pipeline.get("name", ""))}
        for pipeline in pipelines
        for stage in embedded(pipeline, "statuses") or ()
    ]


def _problem(outcome: Outcome, connection: Connection) -> Problem:
    says, fix = trouble(outcome, connection.settings.host), mended(outcome, connection)
    return Problem(f"{says}. Mend it: {fix}" if fix else f"{says}.")


def _connection(world: "World", target: Target, name: str) -> Connection:
    try:
        known = {each.name: each for each in connections(target, world.config_of(target.name))}
    except ConfigurationError as error:
        raise Problem(f"{error}; `relay check` says more.") from None
    if name not in known:
        raise unknown("amoCRM account", "amocrm.accounts", name, known, stack=target.name)
    return known[name]


def _whose(hook: Mapping[str, Any], connection: Connection) -> str:
    if our_hook([hook], connection.hook_url):
        return "ours"
    # Of a token that was replaced: nobody answers there any more.
    ends_here = str(hook.get("destination")).startswith(hook_url(connection.target.output("ApiUrl"), ""))
    return _STALE if ends_here else "another's"


def _row(hook: Mapping[str, Any], connection: Connection, *, reveal: bool) -> dict[str, Any]:
    destination = str(hook.get("destination"))
    return {
        "whose": _whose(hook, connection),
        "destination": destination if reveal else _masked(destination),
        "disabled": bool(hook.get("disabled")),
        "events": sorted(events_of(hook)),
    }


def _masked(url: str) -> str:
    """Return an address without what may be a key: path, query, user."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "…"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}/…"


def _print(rows: list[dict[str, Any]], *, reveal: bool) -> None:
    listed = table("hook", "leads to", "state", "tells")
    for row in rows:
        state = "[red]switched off[/]" if row["disabled"] else "[green]on[/]"
        destination = _masked(row["destination"])
        listed.add_row(shown(row["whose"]), shown(destination), state, shown(", ".join(row["events"])))
    out.print(listed if rows else "No hooks.")
    if reveal:
        for row in rows:
            # To be copied: a cell would break it.
            typer.echo(shown(row["destination"]))
