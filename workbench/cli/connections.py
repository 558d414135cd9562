"""The part of `relay check` that asks around: the stack, the CRMs, and the API from outside."""

import asyncio
import os
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

import httpx

from amo_webhook.account import ENDS_SOON, amo_key, app_of
from amo_webhook.subscription import fault_of, our_hook, wanted_events
from crm_relay.amocrm.client import Account as Access
from crm_relay.amocrm.oauth import expires_at
from crm_relay.amocrm.resources import PIPELINES, USERS, WEBHOOKS, account_info, read_all
from crm_relay.cartelcrm import client
from crm_relay.delivery.account import pause_key
from crm_relay.http_client import HttpClient
from crm_relay.outcomes import Blocked, NotExecuted, Outcome, Unauthorized, Unreachable
from crm_relay.settings import ConfigurationError, load_settings, read_secrets
from workbench.cli import amo, bitrix_check
from workbench.cli.configuration import Finding
from workbench.cli.console import Problem, moment
from workbench.cli.leads_api import API_KEY, Busy, LeadsApi
from workbench.cli.portals import Portals
from workbench.cli.secrets import missing_from, read_by_calls, state_of
from workbench.cli.target import Target, explained
from workbench.cli.world import World


def findings(world: World, config: Path, stack: str | None, region: str | None) -> Iterator[Finding]:
    """Ask everything that a stack needs, one after the other; what cannot be asked is a finding too.

    `config` has the addresses of the CRMs; the local stack has a copy that leads to its sandbox.
    """
    try:
        target = Target.of(world, stack, region)
        yield Finding("stack", True, f"{target}, in {target.region}")
    except Exception as error:  # noqa: BLE001 (told, or raised again)
        yield _failed("stack", error)
        return
    used = config if target.name else world.local_config
    asked: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
        ("secret", lambda: _secret(target, world, used)),
        ("table", lambda: _table(target)),
        ("queues", lambda: _queues(target)),
        ("CartelCRM", lambda: _cartelcrm(target, world, used)),
        ("amoCRM", lambda: _amocrm(target, world, used)),
        ("Bitrix24", lambda: _bitrix24(target, world, used)),
        ("callbacks", lambda: _callbacks(target, world)),
        ("leads API", lambda: _leads(target, world)),
    ]
    for what, ask in asked:
        try:
            yield from ask()
        except Exception as error:  # noqa: BLE001 (told, or raised again)
            yield _failed(what, error)


def _failed(what: str, error: Exception) -> Finding:
    explanation = str(error) if isinstance(error, Problem) else explained(error)
    if explanation is None:
        raise error
    return Finding(what, False, explanation)


def _secret(target: Target, world: World, config: Path) -> Iterator[Finding]:
    text = target.read_secret()
    if not text:
        yield Finding("secret", False, "it has no value yet", f"relay secrets init{target.option}")
        return
    states = state_of(text, world.clock.time(), read_by_calls=read_by_calls(config))
    for name in missing_from(states):
        yield Finding("secret", False, f"{name} is missing", f"relay secrets set {name}{target.option}")
    if not missing_from(states):
        yield Finding("secret", True, "all values are set")


def _table(target: Target) -> Iterator[Finding]:
    target.store.get("check")
    target.store.attention("WAITING", limit=1)
    yield Finding("table", True, f"{target.output('TableName')} and its index answer")


def _queues(target: Target) -> Iterator[Finding]:
    for pair in target.queues:
        waiting, dead = target.depth(pair.url), target.depth(pair.dead_letters_url)
        name = f"queue {pair.name}"
        if dead:
            yield Finding(name, None, f"dead letters: {dead}", f"relay dead-letters list{target.option}")
        else:
            yield Finding(name, True, f"waiting: {waiting}, dead letters: none")


def _cartelcrm(target: Target, world: World, config: Path) -> Iterator[Finding]:
    try:
        ours = read_secrets(target.read_secret() or "{}").cartelcrm
        base_url = load_settings(config).cartelcrm.base_url
    except ConfigurationError:
        yield Finding("CartelCRM", None, "not asked: first mend what is said above")
        return
    if not (ours.api_key and ours.hmac_secret):
        yield Finding("CartelCRM", None, "not asked: there are no credentials")
        return
    pause = target.store.get(pause_key("cartelcrm"))
    if pause and pause.attributes["until"] > world.clock.time():
        until = moment(pause.attributes["until"])
        why = pause.attributes["reason"]
        yield Finding("submissions", None, f"paused until {until} ({why}); leads wait, and go on by themselves then")
    account = client.Account(base_url, ours.api_key, ours.hmac_secret)
    nobody = f"relay-check-{uuid.uuid4().hex}"
    try:
        found = HttpClient(world.transport).run(client.lead_status(account, nobody, now=world.clock.time()))
    except Outcome as outcome:
        yield _refusal(outcome, base_url, target)
    else:
        if found is None:
            yield Finding("CartelCRM", True, f"{base_url} answers and takes the credentials")
        else:
            yield Finding("CartelCRM", None, f"{base_url} says it has a lead that nobody ever submitted")


def _refusal(outcome: Outcome, base_url: str, target: Target) -> Finding:
    address = "look at cartelcrm.base_url in relay.toml, and at the network here"
    match outcome:
        case Unauthorized():
            fix = f"relay secrets set cartelcrm.api_key{target.option}, or cartelcrm.hmac_secret; is this clock right?"
            return Finding("CartelCRM", False, f"{base_url} does not take the credentials ({outcome})", fix)
        case Blocked():
            return Finding("CartelCRM", False, f"{base_url} sends us elsewhere ({outcome})", address)
        case Unreachable():
            return Finding("CartelCRM", False, f"{base_url} cannot be reached ({outcome})", address)
        case NotExecuted():
            return Finding("CartelCRM", None, f"{base_url} is busy ({outcome})", "try again later")
        case _:
            return Finding("CartelCRM", False, f"{base_url} does not answer as CartelCRM does ({outcome})", address)


def _amocrm(target: Target, world: World, config: Path) -> Iterator[Finding]:
    try:
        accounts = list(amo.connections(target, config))
    except ConfigurationError:
        yield Finding("amoCRM", None, "not asked: first mend what is said above")
        return
    for account in accounts:
        try:
            yield from _amo_account(account, world)
        except Problem as problem:
            yield Finding(f"amoCRM {account.name}", False, str(problem))


def _amo_account(account: amo.Connection, world: World) -> Iterator[Finding]:
    what, now, target = f"amoCRM {account.name}", world.clock.time(), account.target
    if not account.secrets.hook_token:
        yield Finding(what, False, "the secret has nothing for it", account.fix("long_lived_token"))
        return
    integration = app_of(account.secrets)
    if integration and not account.secrets.long_lived_token and integration.redirect_uri != account.redirect_uri:
        fix = f"{account.fix('integration')}, and in amoCRM"
        yield Finding(what, None, f"administrators come back to {integration.redirect_uri}, not here", fix)
    ends = expires_at(account.secrets.long_lived_token)
    if ends is not None and ends - now < ENDS_SOON:
        yield Finding(what, None, f"its long-lived token ends {moment(ends)}", account.fix("long_lived_token"))
    pause = target.store.get(pause_key(amo_key(account.name)))
    if pause and pause.attributes["until"] > now:
        until, why = moment(pause.attributes["until"]), pause.attributes["reason"]
        yield Finding(what, None, f"paused until {until} ({why}); notes wait, and go on by themselves then")
    access, http = account.access(now), HttpClient(world.transport)
    try:
        info = http.run(account_info(access, now=now))
    except Outcome as outcome:
        yield Finding(what, False, amo.trouble(outcome, access.host), amo.mended(outcome, account))
        return
    for key, has in (("account_id", info.get("id")), ("subdomain", info.get("subdomain"))):
        ours = getattr(account.settings, key)
        if has != ours:
            fix = f"look at amocrm.accounts.{account.name}.{key} in relay.toml"
            yield Finding(what, False, f"the token is of an account whose {key} is {has}, not {ours}", fix)
            return
    yield Finding(what, True, f"{access.host} answers and takes the token")
    yield from _amo_ids(account, access, http, now)
    yield _amo_hook(account, access, http, now)


def _amo_ids(account: amo.Connection, access: Access, http: HttpClient, now: float) -> Iterator[Finding]:
    """Look whether the account has the stages and users that relay.toml names."""
    stages, users = account.settings.stages, account.settings.own_user_ids
    try:
        if stages:
            known = {stage["id"] for stage in amo.stages_of(http.run(read_all(access, PIPELINES, now=now)))}
            fix = f"relay amo stages {account.name}{account.target.option} lists those that it has"
            yield _named(f"stages {account.name}", stages, known, fix)
        if users:
            known = {user["id"] for user in http.run(read_all(access, USERS, now=now))}
            fix = f"look at own_user_ids in relay.toml; the account has {', '.join(map(str, sorted(known)))}"
            yield _named(f"users {account.name}", users, known, fix)
    except Outcome as outcome:
        yield Finding(f"amoCRM {account.name}", None, amo.trouble(outcome, access.host), amo.mended(outcome, account))


def _named(what: str, ids: Iterable[int], known: Collection[int], fix: str) -> Finding:
    lacking = [str(each) for each in ids if each not in known]
    if lacking:
        return Finding(what, False, f"relay.toml names some that the account does not have: {', '.join(lacking)}", fix)
    return Finding(what, True, "the account has all that relay.toml names")


def _amo_hook(account: amo.Connection, access: Access, http: HttpClient, now: float) -> Finding:
    what, wanted = f"hooks {account.name}", wanted_events(account.settings.notes)
    try:
        hooks = http.run(read_all(access, WEBHOOKS, now=now))
    except Outcome as outcome:
        return Finding(what, None, amo.trouble(outcome, access.host), amo.mended(outcome, account))
    fault = fault_of(our_hook(hooks, account.hook_url), wanted)
    if fault:
        return Finding(
            what, False, amo.FAULTS[fault], f"relay amo hooks {account.name} --repair{account.target.option}"
        )
    return Finding(what, True, f"subscribed: {', '.join(sorted(wanted)) or 'nothing is wanted'}")


def _bitrix24(target: Target, world: World, config: Path) -> Iterator[Finding]:
    try:
        if not load_settings(config).bitrix24.portals:
            return
        known = Portals.of(target, world, config)
    except ConfigurationError:
        yield Finding("Bitrix24", None, "not asked: first mend what is said above")
        return
    yield from bitrix_check.findings(known.connections, known.routes)


def _callbacks(target: Target, world: World) -> Iterator[Finding]:
    url = target.output("CallbackUrl")
    try:
        with httpx.Client(transport=world.transport, timeout=15, trust_env=target.endpoint is None) as http:
            status = http.post(url, json={}).status_code
    except httpx.TransportError as error:
        yield Finding(
            "callbacks", False, f"{url} cannot be reached ({type(error).__name__})", "look at the network here"
        )
        return
    match status:
        case 401:
            yield Finding("callbacks", True, f"{url} is open, and takes nothing unsigned")
        case 503:
            fix = f"relay secrets check{target.option}; functions read the secret again within five minutes"
            yield Finding("callbacks", False, f"{url} has no callback secret", fix)
        case 429:
            yield Finding("callbacks", None, f"{url} is busy", "try again later")
        case _:
            fix = f"look at the logs of {target}, or deploy it again"
            yield Finding("callbacks", False, f"{url} answers {status} to an unsigned callback; 401 is expected", fix)


def _leads(target: Target, world: World) -> Iterator[Finding]:
    if target.name and not os.environ.get(API_KEY):
        yield Finding("leads API", None, "not asked: no key", f"put a lead API key into {API_KEY}")
        return
    api = LeadsApi.of(target, world)

    async def look() -> None:
        async with api:
            await api.find(f"relay-check-{uuid.uuid4().hex}")

    try:
        asyncio.run(look())
        yield Finding("leads API", True, f"{api.url} answers and takes the key")
    except Busy as busy:
        yield Finding("leads API", False, str(busy), "try again later")
