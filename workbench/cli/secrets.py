"""`relay secrets`: what CRMs and the callers of the leads API share with a stack. Values never come out."""

import hashlib
import json
import re
import secrets
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from crm_relay.amocrm.oauth import expires_at
from crm_relay.bitrix24.client import Access
from crm_relay.outcomes import Blocked, NotConfigured
from crm_relay.settings import (
    AmoCrmSecrets,
    Bitrix24Portal,
    Bitrix24Secrets,
    ConfigurationError,
    Settings,
    load_settings,
    read_secrets,
)
from workbench.cli.configuration import unknown
from workbench.cli.console import (
    JsonOption,
    Problem,
    RegionOption,
    StackOption,
    YesOption,
    age,
    confirm,
    examples,
    interactive,
    moment,
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
    no_args_is_help=True,
    add_completion=False,
    help="Fill a stack's secret, and replace what is in it without an outage.",
)

type Document = dict[str, Any]

_READ_AGAIN = "Running functions know it within five minutes."
_KEY_BYTES = 32
_SPAN = re.compile(r"([0-9]{1,4})([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_OF_WHICH_PORTAL = "Of which portal? --portal says it; known: {names}."
_KEY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


class Name(StrEnum):
    """What can be set."""

    API_KEY = "cartelcrm.api_key"
    HMAC_SECRET = "cartelcrm.hmac_secret"  # noqa: S105 (its name)
    CALLBACK_SECRET = "cartelcrm.callback_secret"  # noqa: S105 (its name)
    LEAD_API_KEY = "lead_api_key"
    LONG_LIVED_TOKEN = "amocrm.long_lived_token"  # noqa: S105 (its name)
    INTEGRATION = "amocrm.integration"
    HOOK_TOKEN = "amocrm.hook_token"  # noqa: S105 (its name)
    WEBHOOK_URL = "bitrix24.webhook_url"
    APPLICATION_TOKEN = "bitrix24.application_token"  # noqa: S105 (its name)
    APP = "bitrix24.app"
    URL_KEY = "bitrix24.url_key"


_CLIENT_ID, _CLIENT_SECRET = "amocrm.client_id", "amocrm.client_secret"
_OF_CARTELCRM = (Name.API_KEY, Name.HMAC_SECRET, Name.CALLBACK_SECRET)
_OF_AMOCRM: Mapping[Name, tuple[str, ...]] = {
    Name.LONG_LIVED_TOKEN: ("long_lived_token",),
    Name.INTEGRATION: ("client_id", "client_secret", "redirect_uri"),
    Name.HOOK_TOKEN: ("hook_token",),
}
"""What can be set of an amoCRM account, and where the secret has it."""
_APP_ID, _APP_SECRET = "bitrix24.client_id", "bitrix24.client_secret"
_OF_BITRIX24: Mapping[Name, tuple[str, ...]] = {
    Name.WEBHOOK_URL: ("webhook_url",),
    Name.APPLICATION_TOKEN: ("application_token",),
    Name.APP: ("client_id", "client_secret"),
    Name.URL_KEY: ("url_key",),
}
"""What can be set of a portal of Bitrix24, and where the secret has it."""
_QUESTIONS: Mapping[str, str] = {
    Name.API_KEY: "CartelCRM's API key",
    Name.HMAC_SECRET: "CartelCRM's HMAC secret, which signs what we send",
    Name.CALLBACK_SECRET: "CartelCRM's callback secret, which signs what it sends",
    Name.LONG_LIVED_TOKEN: "The long-lived token of amoCRM's private integration",
    _CLIENT_ID: "The integration's ID, as amoCRM shows it under its keys",
    _CLIENT_SECRET: "The integration's secret key",
    Name.WEBHOOK_URL: "The portal's incoming webhook, https://…/rest/1/…/",
    Name.APPLICATION_TOKEN: "The application token of the portal's outgoing webhook or app",
    _APP_ID: "The app's client_id",
    _APP_SECRET: "The app's client_secret",
}
_IN_HEADER = (Name.API_KEY, Name.LONG_LIVED_TOKEN)

WhatArgument = Annotated[
    Name, typer.Argument(metavar="WHAT", show_choices=False, help=f"One of {', '.join(Name)}.", show_default=False)
]
KeyName = Annotated[str, typer.Option("--name", metavar="NAME", help="Of a lead API key: whose it is.")]
AccountName = Annotated[
    str, typer.Option("--account", metavar="NAME", help="Of what amoCRM gave: which account of relay.toml.")
]
PortalName = Annotated[
    str | None, typer.Option("--portal", metavar="NAME", help="Of what Bitrix24 gave: which portal of relay.toml.")
]


@app.command(
    epilog=examples(
        "relay secrets init --stack crm-relay",
        """printf '%s\\n' "$API_KEY" "$HMAC_SECRET" "$CALLBACK_SECRET" | relay secrets init --stack crm-relay --yes""",
    )
)
def init(
    ctx: typer.Context,
    *,
    name: KeyName = "website",
    yes: YesOption = False,
    stack: StackOption = None,
    region: RegionOption = None,
) -> None:
    """Ask for CartelCRM's three secrets and make a first lead API key.

    Nothing is echoed. The lead API key is printed once and kept nowhere:
    callers of POST /leads send it as "Authorization: Bearer …". Without a
    terminal, the three values are read from standard input, a line each.
    The amoCRM accounts of relay.toml, and its portals of Bitrix24 that
    deals come from, get addresses for their hooks; what amoCRM and
    Bitrix24 gave is then for `relay secrets set`.
    """
    world: World = ctx.obj
    target = Target.of(world, stack, region)
    document = _document(target, broken_is_empty=True)
    if document.get("cartelcrm") or name in document.get("lead_api_keys", {}):
        confirm(f"The secret of {target} is filled already. Replace what it has for CartelCRM and {name}?", yes=yes)
    known = _settings(world, target)
    accounts, portals = sorted(known.amocrm.accounts), known.bitrix24.portals
    values = _asked(_OF_CARTELCRM)
    document["cartelcrm"] = {
        "api_key": values[Name.API_KEY],
        "hmac_secret": values[Name.HMAC_SECRET],
        "callback_secrets": [{"value": values[Name.CALLBACK_SECRET]}],
    }
    key = _with_new_key(document, name)
    for account in accounts:
        _of_account(document, account)
    for portal, settings in portals.items():
        _of_portal(document, portal, settings)
    _write(target, document)
    _print_key(key, name)
    for account in accounts:
        tell(f"amoCRM has its own part: relay secrets set amocrm.long_lived_token --account {account}{target.option}")
    for portal in portals:
        tell(f"Bitrix24 has its own part: relay secrets set bitrix24.webhook_url --portal {portal}{target.option}")
    tell(f"The secret of {target} is filled. {_READ_AGAIN} Try it: relay check{target.option}")


@app.command(
    "set",
    epilog=examples(
        "relay secrets set cartelcrm.callback_secret --keep-old 7d --stack crm-relay",
        "relay secrets set lead_api_key --name partner --stack crm-relay",
        """printf %s "$API_KEY" | relay secrets set cartelcrm.api_key --stack crm-relay --yes""",
        "relay secrets set amocrm.long_lived_token --account main --stack crm-relay",
        "relay secrets set bitrix24.webhook_url --portal hub --stack crm-relay",
    ),
)
def set_(
    ctx: typer.Context,
    what: WhatArgument,
    *,
    name: KeyName = "website",
    keep_old: Annotated[
        str, typer.Option(metavar="SPAN", help="How long the present callback secret stays valid: 12h, 7d, 0s.")
    ] = "7d",
    account: AccountName = "main",
    portal: PortalName = None,
    yes: YesOption = False,
    stack: StackOption = None,
    region: RegionOption = None,
) -> None:
    """Set one value, or replace it.

    A new callback secret is valid beside the present one for as long as
    --keep-old says. Change it here first, wait five minutes, until every
    function has read it, and only then change it in CartelCRM. A lead
    API key is made, printed once, and replaces the one of the same name.

    What amoCRM gave is one account's: amocrm.long_lived_token, or else
    amocrm.integration, which asks for its ID and its secret key and is
    followed by `relay amo authorize`. The address of the account's hooks
    is made with the first of them; amocrm.hook_token makes another.

    What Bitrix24 gave is one portal's: bitrix24.webhook_url or else
    bitrix24.app, which asks for its client_id and client_secret, by which
    we call it; and bitrix24.application_token, which proves its calls.
    Their address is made with the first; bitrix24.url_key makes another.
    """
    world: World = ctx.obj
    seconds = _seconds(keep_old)
    target = Target.of(world, stack, region)
    document = _document(target)
    if what is Name.LEAD_API_KEY:
        if name in document.get("lead_api_keys", {}):
            confirm(
                f"There is a lead API key {name} in {target}. Replace it? Who uses it is refused from then on.", yes=yes
            )
        key = _with_new_key(document, name)
        _write(target, document)
        _print_key(key, name)
        tell(_READ_AGAIN)
        return
    if what in _OF_AMOCRM:
        accounts = _settings(world, target).amocrm.accounts
        if account not in accounts:
            raise unknown("amoCRM account", "amocrm.accounts", account, accounts, stack=target.name)
        _set_of_amocrm(target, document, what, account, yes=yes)
        return
    if what in _OF_BITRIX24:
        portals = _settings(world, target).bitrix24.portals
        if portal is None:
            raise Problem(_OF_WHICH_PORTAL.format(names=", ".join(sorted(portals)) or "none"))
        if portal not in portals:
            raise unknown("portal", "bitrix24.portals", portal, portals, stack=target.name)
        _set_of_bitrix24(target, document, what, portal, portals[portal], yes=yes)
        return
    ours = document.setdefault("cartelcrm", {})
    if what is Name.CALLBACK_SECRET:
        value = _asked([what])[what]
        ours["callback_secrets"] = _rotated(ours.get("callback_secrets", []), value, world.clock.time(), seconds)
        _write(target, document)
        tell(f"{what} is set; older ones are valid for {keep_old} at most. {_READ_AGAIN}")
        return
    field = what.partition(".")[2]
    if ours.get(field):
        confirm(f"{what} is set in {target}. Replace it?", yes=yes)
    ours[field] = _asked([what])[what]
    _write(target, document)
    tell(f"{what} is set. {_READ_AGAIN}")


def _set_of_amocrm(target: Target, document: Document, what: Name, account: str, *, yes: bool) -> None:
    before = document.get("amocrm", {}).get(account, {})
    if any(before.get(field) for field in _OF_AMOCRM[what]):
        confirm(f"{what} of {account} is set in {target}. Replace it?", yes=yes)
    ours = _of_account(document, account)
    match what:
        case Name.HOOK_TOKEN:
            ours["hook_token"] = secrets.token_urlsafe(_KEY_BYTES)
            following = f"relay amo hooks {account} --repair{target.option}"
        case Name.LONG_LIVED_TOKEN:
            ours["long_lived_token"] = token = _asked([what])[what]
            if expires_at(token) is None:
                tell(
                    "[yellow]This does not look like amoCRM's: a long-lived token has three parts and ends some day.[/]"
                )
            following = f"relay amo hooks {account} --repair{target.option}"
        case _:
            asked = _asked([_CLIENT_ID, _CLIENT_SECRET])
            redirect_uri = f"{target.output('ApiUrl')}/amo/oauth"
            ours |= {
                "client_id": asked[_CLIENT_ID],
                "client_secret": asked[_CLIENT_SECRET],
                "redirect_uri": redirect_uri,
            }
            tell(f"In amoCRM, the integration's redirect address must be {shown(redirect_uri)}")
            following = f"relay amo authorize {account}{target.option}"
            if ours.get("long_lived_token"):
                following = (
                    f"{_unset(Name.LONG_LIVED_TOKEN, account, target)}, which is used before it, and {following}"
                )
    _write(target, document)
    tell(f"{what} of {account} is set. {_READ_AGAIN} Then: {following}")


def _set_of_bitrix24(
    target: Target,
    document: Document,
    what: Name,
    portal: str,
    settings: Bitrix24Portal,
    *,
    yes: bool,
) -> None:
    before = document.get("bitrix24", {}).get(portal, {})
    if any(before.get(field) for field in _OF_BITRIX24[what]):
        confirm(f"{what} of {portal} is set in {target}. Replace it?", yes=yes)
    ours = _of_portal(document, portal, settings)
    following = f"relay bitrix check{target.option}"
    match what:
        case Name.URL_KEY:
            ours["url_key"] = secrets.token_urlsafe(_KEY_BYTES)
            following = f"put it into the portal, relay bitrix address {portal} --reveal{target.option}"
        case Name.APP:
            asked = _asked([_APP_ID, _APP_SECRET])
            ours |= {"client_id": asked[_APP_ID], "client_secret": asked[_APP_SECRET]}
            following = f"install the app in the portal, then relay bitrix robot install {portal}{target.option}"
        case Name.WEBHOOK_URL:
            ours["webhook_url"] = _webhook(_asked([what])[what], settings)
        case _:
            ours["application_token"] = _asked([what])[what]
    _write(target, document)
    tell(f"{what} of {portal} is set. {_READ_AGAIN} Then: {following}")


def _webhook(url: str, portal: Bitrix24Portal) -> str:
    try:
        Access.by_webhook(url, host=portal.host)
    except (NotConfigured, Blocked, ValueError):
        raise Problem(f"An incoming webhook of this portal looks like https://{portal.host}/rest/1/…/") from None
    return url


@app.command(
    epilog=examples(
        "relay secrets unset amocrm.long_lived_token --account main --stack crm-relay",
        "relay secrets unset bitrix24.webhook_url --portal partner --stack crm-relay",
    )
)
def unset(
    ctx: typer.Context,
    what: WhatArgument,
    *,
    account: AccountName = "main",
    portal: PortalName = None,
    yes: YesOption = False,
    stack: StackOption = None,
    region: RegionOption = None,
) -> None:
    """Take away what amoCRM or Bitrix24 gave.

    An account goes over from a long-lived token to an integration, or a
    portal from a webhook to an app: the first of the two is used as long
    as it is there. CartelCRM's values can only be replaced, and a lead
    API key is ended by `relay secrets revoke`.
    """
    world: World = ctx.obj
    target = Target.of(world, stack, region)
    document = _document(target)
    if what in _OF_AMOCRM:
        part, fields = document.get("amocrm", {}), _OF_AMOCRM[what]
    elif what in _OF_BITRIX24:
        part, fields = document.get("bitrix24", {}), _OF_BITRIX24[what]
    else:
        raise Problem(f"{what} is not taken away, only replaced or revoked: relay secrets set, relay secrets revoke.")
    owner = account if what in _OF_AMOCRM else portal
    if owner is None:
        raise Problem(_OF_WHICH_PORTAL.format(names=", ".join(sorted(part)) or "none"))
    ours = part.get(owner, {})
    if not any(ours.get(field) for field in fields):
        raise Problem(f"There is no {what} of {owner} in {target}.")
    confirm(f"Take away the {what} of {owner} in {target}?", yes=yes)
    for field in fields:
        ours.pop(field, None)
    if not ours:
        del part[owner]
    _write(target, document)
    tell(f"{what} of {owner} is taken away. {_READ_AGAIN}")


def _unset(what: Name, account: str, target: Target) -> str:
    return f"relay secrets unset {what} --account {account}{target.option}"


@app.command(epilog=examples("relay secrets revoke partner --stack crm-relay"))
def revoke(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose lead API key ends.")],
    *,
    yes: YesOption = False,
    stack: StackOption = None,
    region: RegionOption = None,
) -> None:
    """Take a lead API key back: its owner is refused from then on."""
    world: World = ctx.obj
    target = Target.of(world, stack, region)
    document = _document(target)
    keys = document.get("lead_api_keys", {})
    if name not in keys:
        raise Problem(f"No lead API key {name} in {target}, only: {', '.join(sorted(keys)) or 'none'}.")
    confirm(f"Take back the lead API key {name} of {target}?", yes=yes)
    del keys[name]
    _write(target, document)
    tell(f"{name} is taken back. {_READ_AGAIN}")


@app.command(epilog=examples("relay secrets check --stack crm-relay", "relay secrets check --json"))
def check(
    ctx: typer.Context, *, stack: StackOption = None, region: RegionOption = None, as_json: JsonOption = False
) -> None:
    """Say what is set and until when it is valid; never a value.

    Exit code 1: something is missing.
    """
    world: World = ctx.obj
    target = Target.of(world, stack, region)
    known = state_of(
        target.read_secret(), world.clock.time(), read_by_calls=read_by_calls(world.config_of(target.name))
    )
    if as_json:
        print_json([{"name": name, "valid": valid, "state": state} for name, valid, state in known])
    else:
        rows = table("secret", "state")
        for name, valid, state in known:
            rows.add_row(shown(name), f"[{'green' if valid else 'red'}]{shown(state)}[/]")
        out.print(rows)
    if missing := missing_from(known):
        raise Problem(f"Missing: {', '.join(missing)}. Set it: relay secrets set {missing[0]}{target.option}")


def read_by_calls(config: Path) -> frozenset[str]:
    """Return the portals of a relay.toml that are read with the tokens of their calls, and need nothing else."""
    try:
        portals = load_settings(config).bitrix24.portals
    except ConfigurationError:
        return frozenset()
    return frozenset(name for name, portal in portals.items() if portal.use_token_of_call)


def state_of(text: str, now: float, *, read_by_calls: Collection[str] = ()) -> list[tuple[str, bool, str]]:
    """Return (name, whether it is valid, what is to be said) of everything in a secret, and of what it lacks.

    Args:
        text: the secret's.
        now: unix time in seconds.
        read_by_calls: see the function of that name.

    Raises:
        Problem: it is none that a function can read.
    """
    try:
        known = read_secrets(text or "{}")
    except ConfigurationError as error:
        raise Problem(f"{error}; `relay secrets init` fills it anew.") from None
    ours = known.cartelcrm
    states = [
        (name.value, bool(value), "set" if value else "missing")
        for name, value in ((Name.API_KEY, ours.api_key), (Name.HMAC_SECRET, ours.hmac_secret))
    ]
    valid = ours.callback_secrets_at(now)
    for secret in ours.callback_secrets:
        end = _utc(secret.not_after) if secret.not_after else None
        if not secret.value:
            states.append((Name.CALLBACK_SECRET, False, "empty"))
        elif end is None:
            states.append((Name.CALLBACK_SECRET, True, "set"))
        elif secret.value in valid:
            left = age(end.timestamp() - now)
            states.append((Name.CALLBACK_SECRET, True, f"set, until {end:%Y-%m-%d %H:%M} UTC ({left} left)"))
        else:
            states.append((Name.CALLBACK_SECRET, False, f"ended {end:%Y-%m-%d %H:%M} UTC"))
    if not ours.callback_secrets:
        states.append((Name.CALLBACK_SECRET, False, "missing"))
    states += [(f"{Name.LEAD_API_KEY} {name}", True, "set") for name in sorted(known.lead_api_keys)]
    if not known.lead_api_keys:
        states.append((Name.LEAD_API_KEY, False, "missing"))
    for name, account in sorted(known.amocrm.items()):
        states += [(f"{what} --account {name}", valid, state) for what, valid, state in _state_of_account(account, now)]
    for name, portal in sorted(known.bitrix24.items()):
        found = _state_of_portal(portal, has_way_in=name in read_by_calls)
        states += [(f"{what} --portal {name}", valid, state) for what, valid, state in found]
    return states


def _state_of_account(ours: AmoCrmSecrets, now: float) -> Iterator[tuple[Name, bool, str]]:
    yield Name.HOOK_TOKEN, bool(ours.hook_token), "set" if ours.hook_token else "missing"
    if ours.long_lived_token:
        ends = expires_at(ours.long_lived_token)
        if ends is None:
            yield Name.LONG_LIVED_TOKEN, True, "set"
        elif ends <= now:
            yield Name.LONG_LIVED_TOKEN, False, f"ended {moment(ends)}"
        else:
            yield Name.LONG_LIVED_TOKEN, True, f"set, until {moment(ends)} ({age(ends - now)} left)"
    elif ours.client_id and ours.client_secret and ours.redirect_uri:
        yield Name.INTEGRATION, True, "set"
    elif ours.client_id or ours.client_secret:
        yield Name.INTEGRATION, False, "not whole"
    else:
        yield Name.LONG_LIVED_TOKEN, False, f"missing, and so is {Name.INTEGRATION}"


def _state_of_portal(ours: Bitrix24Secrets, *, has_way_in: bool) -> Iterator[tuple[Name, bool, str]]:
    if ours.url_key:
        yield Name.URL_KEY, True, "set"
    if ours.application_token:
        yield Name.APPLICATION_TOKEN, True, "set"
        if not ours.url_key:
            yield Name.URL_KEY, False, "missing"
    if ours.webhook_url:
        yield Name.WEBHOOK_URL, True, "set"
    if ours.client_id and ours.client_secret:
        yield Name.APP, True, "set"
    elif ours.client_id or ours.client_secret:
        yield Name.APP, False, "not whole"
    elif not (ours.webhook_url or has_way_in):
        yield Name.WEBHOOK_URL, False, f"missing, and so is {Name.APP}"


def missing_from(states: Sequence[tuple[str, bool, str]]) -> list[str]:
    """Return the names of which nothing valid is there, as `relay secrets set` takes them."""
    there = {name.partition(" ")[0] for name, valid, _ in states if valid}
    needed = [name.value for name in (*_OF_CARTELCRM, Name.LEAD_API_KEY) if name not in there]
    return needed + [name for name, valid, _ in states if not valid and name.startswith(("amocrm.", "bitrix24."))]


def _document(target: Target, *, broken_is_empty: bool = False) -> Document:
    """Return the secret as it is, with what other versions of us may have put there."""
    text = target.read_secret()
    try:
        read_secrets(text or "{}")
    except ConfigurationError as error:
        if broken_is_empty:
            return {}
        raise Problem(f"{error}; `relay secrets init` fills it anew.") from None
    document: Document = json.loads(text or "{}")
    return document


def _write(target: Target, document: Document) -> None:
    text = json.dumps(document, ensure_ascii=False)
    read_secrets(text)
    target.write_secret(text)


def _asked(names: Sequence[str]) -> Mapping[str, str]:
    if interactive():
        return {name: _usable(name, typer.prompt(_QUESTIONS[name], hide_input=True, err=True)) for name in names}
    lines = sys.stdin.read().splitlines()
    if len(lines) != len(names):
        wanted = ", ".join(names)
        raise Problem(f"Standard input has {len(lines)} lines, {len(names)} expected: {wanted}.")
    return {name: _usable(name, line) for name, line in zip(names, lines, strict=True)}


def _usable(name: str, value: str) -> str:
    value = value.strip()
    if not value or not value.isprintable():
        raise Problem(f"{name} is empty or has characters that cannot be typed.")
    if name in _IN_HEADER and not (value.isascii() and " " not in value):
        raise Problem(f"{name} travels in a header: ASCII without blanks.")
    return value


def _settings(world: "World", target: Target) -> Settings:
    try:
        return load_settings(world.config_of(target.name))
    except ConfigurationError as error:
        raise Problem(f"{error}; `relay check --offline` says more.") from None


def _of_account(document: Document, account: str) -> Document:
    """Return the part of an amoCRM account, which has an address for its hooks from the beginning."""
    ours: Document = document.setdefault("amocrm", {}).setdefault(account, {})
    if not ours.get("hook_token"):
        ours["hook_token"] = secrets.token_urlsafe(_KEY_BYTES)
    return ours


def _of_portal(document: Document, portal: str, settings: Bitrix24Portal | None) -> Document:
    """Return the part of a portal, which has an address for its calls from the beginning if deals come from there."""
    _check_name(portal)
    ours: Document = document.setdefault("bitrix24", {}).setdefault(portal, {})
    if settings and settings.kind == "source" and not ours.get("url_key"):
        ours["url_key"] = secrets.token_urlsafe(_KEY_BYTES)
    return ours


def _check_name(name: str) -> None:
    if not _KEY_NAME.fullmatch(name):
        raise Problem(f"A name has letters, digits, dot, dash and underscore; {name} has others.")


def _with_new_key(document: Document, name: str) -> str:
    _check_name(name)
    key = secrets.token_urlsafe(_KEY_BYTES)
    document.setdefault("lead_api_keys", {})[name] = hashlib.sha256(key.encode()).hexdigest()
    return key


def _print_key(key: str, name: str) -> None:
    tell(f"The lead API key of {shown(name)}. It is shown this once, so keep it:")
    typer.echo(key)


def _rotated(old: Sequence[Mapping[str, Any]], value: str, now: float, keep_old: int) -> list[Mapping[str, Any]]:
    """Return the callback secrets with a new one that has no end; the others end, and what has ended is dropped."""
    end = datetime.fromtimestamp(int(now) + keep_old, UTC)
    kept: list[Mapping[str, Any]] = []
    for secret in old:
        not_after = secret.get("not_after")
        ends = min(end, _utc(datetime.fromisoformat(not_after))) if not_after else end
        if secret["value"] != value and ends.timestamp() > now:
            kept.append({"value": secret["value"], "not_after": f"{ends:%Y-%m-%dT%H:%M:%SZ}"})
    return [*kept, {"value": value}]


def _utc(moment: datetime) -> datetime:
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)


def _seconds(span: str) -> int:
    found = _SPAN.fullmatch(span)
    if not found:
        raise typer.BadParameter(f"{span} is no span of time such as 30m, 12h, 7d")
    return int(found[1]) * _SECONDS[found[2]]
