"""`relay amo`, and what `relay secrets` and `relay check` know of amoCRM, on a deployed stack against the sandbox."""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from amo_webhook.account import amo_key
from amo_webhook.subscription import wanted_events
from crm_relay.amocrm.oauth import App, exchange_code, read_state
from crm_relay.delivery.account import pause_key
from crm_relay.delivery.tokens import token_key
from crm_relay.http_client import HttpClient
from crm_relay.settings import AmoCrmNotes, read_secrets
from tests.component.test_cli_stack import NAME, VALUES, Stack, stack
from workbench.sandboxes import AmoCrmAccount, AmoCrmSandbox, Integration, MemoryTransport
from workbench.sandboxes.amocrm.account import USERS as PEOPLE
from workbench.sandboxes.faults import Fault, Forbidden, Html, RateLimited, Redirect, Reset, Unauthorized

__all__ = ["stack"]

HOST, API_URL, HOOK_TOKEN = "example.amocrm.ru", "https://relay.test", "hook-token"
HOOK_URL = f"{API_URL}/amo/{HOOK_TOKEN}"
APP = App("client", "client-secret", f"{API_URL}/amo/oauth")
WANTED = wanted_events(AmoCrmNotes())


class World:
    """A stack that is connected to an account of amoCRM: `world("amo", "hooks", "main")`."""

    def __init__(self, deployed: Stack, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stack = deployed
        self.config = folder / "relay.toml"
        self.configure("32427762")
        ours = Integration(
            client_id=APP.client_id,
            client_secret=APP.client_secret,
            redirect_uri=APP.redirect_uri,
            user_id=PEOPLE[0].id,
        )
        self.crm = AmoCrmSandbox(AmoCrmAccount(integrations=(ours,)), clock=time.time, random=Random(7))
        self.transport = _Transport(MemoryTransport({HOST: self.crm}))
        deployed.cli._world = {"transport": self.transport, "config": self.config}
        self.token = self.crm.long_lived_token("client")
        self.opened: list[str] = []
        monkeypatch.setattr("typer.launch", self.opened.append)

    def __call__(self, *arguments: object, **more: Any) -> Any:
        return self.stack(*arguments, **more)

    def configure(self, account_id: str, more: str = "") -> None:
        text = f'[amocrm.accounts.main]\naccount_id = {account_id}\nhost = "{HOST}"\n{more}'
        self.config.write_text(text, "utf-8")

    def filled(self, **account: str) -> None:
        self.stack.filled(amocrm={"main": {"hook_token": HOOK_TOKEN, **account}})

    def with_integration(self, **more: str) -> None:
        keys = {"client_id": APP.client_id, "client_secret": APP.client_secret, "redirect_uri": APP.redirect_uri}
        self.filled(**(keys | more))

    def store_pair(self, **more: Any) -> None:
        http = HttpClient(self.transport)
        pair = asdict(http.run(exchange_code(APP, HOST, self.crm.authorize("client"), now=time.time())))
        attributes = {"pair": pair | more, "lease_until": 0}
        self.stack.store.put(token_key(amo_key("main")), attributes, replaces=None)

    @property
    def account(self) -> Any:
        return self.stack.document["amocrm"]["main"]

    def check(self) -> Mapping[str, SimpleNamespace]:
        """Return the findings by what was checked."""
        result = self("check", "--config", self.config, "--json")
        findings = [SimpleNamespace(**finding) for finding in json.loads(result.stdout)]
        return {finding.what: finding for finding in findings}


class _Transport(httpx.MockTransport):
    """AmoCRM's sandbox, and nobody elsewhere."""

    def __init__(self, sandbox: MemoryTransport) -> None:
        super().__init__(sandbox.handle_request)


@pytest.fixture
def world(stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(stack, tmp_path, monkeypatch)


# relay amo authorize


def test_the_address_of_the_consent_page_has_a_state_of_ours(world: World) -> None:
    """Which the functions can verify, for this account alone."""
    world.with_integration()
    result = world("amo", "authorize", "main")
    url = urlsplit(result.stdout.strip())
    assert (url.scheme, url.netloc, url.path) == ("https", "www.amocrm.ru", "/oauth")
    query = {name: values[0] for name, values in parse_qs(url.query).items()}
    assert query["client_id"] == APP.client_id
    known = read_state(query["state"], APP.client_secret, now=time.time())
    assert known is not None
    assert known[0] == "main"
    assert len(known[1]) == 32
    assert APP.client_secret not in result.output
    assert world("amo", "authorize", "main").stdout != result.stdout
    assert not world.opened


def test_the_page_opens_on_demand(world: World) -> None:
    world.with_integration()
    result = world("amo", "authorize", "main", "--open")
    assert world.opened == [result.stdout.strip()]


def test_who_needs_no_consent_is_told(world: World) -> None:
    world.filled(long_lived_token=world.token)
    result = world("amo", "authorize", "main")
    assert result.exit_code == 1
    assert "long-lived token" in result.stderr
    assert f"relay secrets unset amocrm.long_lived_token --account main --stack {NAME}" in result.stderr


def test_an_account_goes_over_from_a_long_lived_token_to_an_integration(world: World) -> None:
    world.filled(long_lived_token=world.token)
    told = world("secrets", "set", "amocrm.integration", stdin=f"{APP.client_id}\n{APP.client_secret}\n").stderr
    assert f"relay secrets unset amocrm.long_lived_token --account main --stack {NAME}" in told
    assert "--yes" in world("secrets", "unset", "amocrm.long_lived_token").stderr
    assert world("secrets", "unset", "amocrm.long_lived_token", "--yes").exit_code == 0
    assert world.account.keys() == {"hook_token", "client_id", "client_secret", "redirect_uri"}
    assert "no amocrm.long_lived_token of main" in world("secrets", "unset", "amocrm.long_lived_token").stderr
    assert world("amo", "authorize", "main").exit_code == 0


def test_an_account_of_which_all_is_taken_away_is_gone(world: World) -> None:
    """Also one that relay.toml has no more; what is CartelCRM's can only be replaced."""
    world.stack.filled(amocrm={"former": {"hook_token": HOOK_TOKEN}})
    assert world("secrets", "unset", "amocrm.hook_token", "--account", "former", "--yes").exit_code == 0
    assert world.stack.document == {"amocrm": {}}
    result = world("secrets", "unset", "cartelcrm.api_key", "--yes")
    assert "relay secrets revoke" in result.stderr
    assert result.exit_code == 1


def test_what_is_missing_is_told_with_the_command_that_sets_it(world: World) -> None:
    world.filled()
    result = world("amo", "authorize", "main")
    assert f"relay secrets set amocrm.integration --account main --stack {NAME}" in result.stderr
    assert result.exit_code == 1
    for command in ("authorize", "hooks"):
        result = world("amo", command, "other")
        assert "no amoCRM account other. It has: main." in result.stderr
        assert result.exit_code == 1


def test_an_integration_that_leads_elsewhere_is_told(world: World) -> None:
    world.with_integration(redirect_uri="https://old.test/amo/oauth")
    result = world("amo", "authorize", "main")
    assert "https://old.test/amo/oauth" in result.stderr
    assert result.exit_code == 0


# relay amo hooks


def test_hooks_are_shown_and_addresses_only_when_asked_for(world: World) -> None:
    """They are as good as keys: ours, and those of other integrations."""
    world.filled(long_lived_token=world.token)
    world.crm.subscribe(HOOK_URL, *WANTED)
    world.crm.subscribe("https://user:password@other.test/hook?token=secret", "add_task")
    result = world("amo", "hooks", "main")
    assert result.exit_code == 0
    for part in ("ours", "https://relay.test/…", "another's", "https://other.test/…", "add_task"):
        assert part in result.stdout
    for secret in (HOOK_TOKEN, "password", "token=secret", world.token):
        assert secret not in result.output
    lines = world("amo", "hooks", "main", "--reveal", COLUMNS="40").stdout.splitlines()
    assert HOOK_URL in lines
    revealed = json.loads(world("amo", "hooks", "main", "--reveal", "--json").stdout)
    assert revealed[0] == {"whose": "ours", "destination": HOOK_URL, "disabled": False, "events": sorted(WANTED)}


def test_a_missing_hook_is_told_and_repaired(world: World) -> None:
    world.filled(long_lived_token=world.token)
    result = world("amo", "hooks", "main")
    assert "No hooks." in result.stdout
    assert f"relay amo hooks main --repair --stack {NAME}" in result.stderr
    assert result.exit_code == 1
    assert world("amo", "hooks", "main", "--repair").exit_code == 0
    assert set(world.crm.hooks.subscriptions[HOOK_URL].settings) == WANTED


def test_a_hook_that_amocrm_switched_off_is_told_and_switched_on(world: World) -> None:
    """B24: by hand, as the schedule does it."""
    world.filled(long_lived_token=world.token)
    hook = world.crm.subscribe(HOOK_URL, *WANTED)
    hook.manner.stopped = True
    result = world("amo", "hooks", "main")
    assert "switched off" in result.stdout
    assert result.exit_code == 1
    assert world("amo", "hooks", "main", "--repair").exit_code == 0
    assert not hook.disabled


def test_the_hook_of_a_replaced_token_is_ended(world: World) -> None:
    """Nobody answers there any more; those of others stay."""
    world.filled(long_lived_token=world.token)
    world.crm.subscribe(f"{API_URL}/amo/old-token", "add_lead")
    world.crm.subscribe("https://other.test/hook", "add_lead")
    assert "stale" in world("amo", "hooks", "main").stdout
    assert world("amo", "hooks", "main", "--repair").exit_code == 0
    assert sorted(world.crm.hooks.subscriptions) == ["https://other.test/hook", HOOK_URL]


def test_hooks_are_read_with_the_stored_pair(world: World) -> None:
    """As it is: to refresh is the functions' business."""
    world.with_integration()
    assert "relay amo authorize main" in world("amo", "hooks", "main").stderr
    world.store_pair()
    assert world("amo", "hooks", "main", "--repair").exit_code == 0
    before = world.stack.store.get(token_key(amo_key("main")))
    assert before is not None
    pair = before.attributes["pair"]
    world.stack.store.put(before.key, {"pair": pair | {"expires_at": 1}, "lease_until": 0}, replaces=before)
    result = world("amo", "hooks", "main")
    assert "within the hour" in result.stderr
    assert result.exit_code == 1


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Unauthorized(), "does not take the token"),
        (Forbidden(), "rights of an administrator"),
        (Redirect(), "has moved"),
        (RateLimited(), "busy"),
        (Reset(), "cannot be reached"),
        (Html(status=403), "closed to us"),
    ],
    ids=repr,
)
def test_what_amocrm_has_against_it_is_told(world: World, fault: Fault, words: str) -> None:
    world.filled(long_lived_token=world.token)
    for command in ("hooks", "stages"):
        world.crm.faults.add(fault)
        result = world("amo", command, "main")
        assert words in result.stderr
        assert result.exit_code == 1


def test_a_dead_token_comes_with_the_command_that_gives_another(world: World) -> None:
    world.filled(long_lived_token=world.token)
    world.crm.tokens.revoke()
    command = f"relay secrets set amocrm.long_lived_token --account main --stack {NAME}"
    assert command in world("amo", "hooks", "main").stderr
    assert world.check()["amoCRM main"].fix == command
    world.with_integration()
    world.store_pair()
    world.crm.tokens.revoke()
    assert f"relay amo authorize main --stack {NAME}" in world("amo", "hooks", "main").stderr


def test_stages_are_listed_with_their_ids(world: World) -> None:
    """As relay.toml takes them, and which of them get notes."""
    world.configure("32427762", "stages = [76789234]\n")
    world.filled(long_lived_token=world.token)
    lines = [line.split() for line in world("amo", "stages", "main").stdout.splitlines()]
    assert ["Воронка", "Переговоры", "76789234", "yes"] in lines
    assert ["Воронка", "Первичный", "контакт", "76789230", "no"] in lines
    listed = json.loads(world("amo", "stages", "main", "--json").stdout)
    assert {"id": 76789250, "name": "Новый запрос", "pipeline": "Повторные продажи"} in listed


def test_without_a_token_for_hooks_there_is_nothing_to_show(world: World) -> None:
    world.stack.filled()
    """The same command as `relay check` says."""
    assert "relay secrets set amocrm.long_lived_token --account main" in world("amo", "hooks", "main").stderr


def test_a_broken_relay_toml_is_told(world: World) -> None:
    world.configure("0")
    result = world("amo", "hooks", "main")
    assert "account_id" in result.stderr
    assert result.exit_code == 1


# relay secrets


def test_a_long_lived_token_is_set_and_the_hooks_get_an_address(world: World) -> None:
    result = world("secrets", "set", "amocrm.long_lived_token", stdin=world.token)
    assert result.exit_code == 0
    assert world.account["long_lived_token"] == world.token
    hook_token = world.account["hook_token"]
    assert len(hook_token) >= 40
    assert world.token not in result.output
    assert hook_token not in result.output
    assert "--yes" in world("secrets", "set", "amocrm.long_lived_token", stdin="other").stderr
    assert world("secrets", "set", "amocrm.long_lived_token", "--yes", stdin="other").exit_code == 0
    assert world.account == {"hook_token": hook_token, "long_lived_token": "other"}


def test_an_integration_is_set_with_the_address_that_it_must_lead_back_to(world: World) -> None:
    world.configure("32427762", f'[amocrm.accounts.second]\naccount_id = 2\nhost = "{HOST}"\n')
    result = world("secrets", "set", "amocrm.integration", "--account", "second", stdin="the-id\nthe-secret\n")
    known = read_secrets(json.dumps(world.stack.document)).amocrm["second"]
    assert (known.client_id, known.client_secret) == ("the-id", "the-secret")
    assert known.redirect_uri == f"{API_URL}/amo/oauth"
    assert known.redirect_uri in result.stderr
    assert f"relay amo authorize second --stack {NAME}" in result.stderr
    assert "the-secret" not in result.output


def test_the_address_of_hooks_can_be_replaced(world: World) -> None:
    """It has leaked, say; what is written is never shown."""
    world.filled(long_lived_token=world.token)
    assert "--yes" in world("secrets", "set", "amocrm.hook_token").stderr
    result = world("secrets", "set", "amocrm.hook_token", "--yes")
    fresh = world.account["hook_token"]
    assert fresh != HOOK_TOKEN
    assert fresh not in result.output
    assert world.account["long_lived_token"] == world.token


@pytest.mark.parametrize("stdin", ["", "with blank", "ключ", "a\nb"])
def test_a_token_that_could_not_work_is_not_written(world: World, stdin: str) -> None:
    assert world("secrets", "set", "amocrm.long_lived_token", stdin=stdin).exit_code == 1
    assert world("secrets", "set", "amocrm.long_lived_token", "--account", "no/name", stdin="x").exit_code == 1
    assert world.stack.secretsmanager.list_secret_version_ids(SecretId=world.stack.secret)["Versions"] == []


def test_an_account_or_a_portal_that_relay_toml_does_not_have_gets_nothing(world: World) -> None:
    """A slip of the fingers would else stay in the secret, unread."""
    result = world("secrets", "set", "amocrm.long_lived_token", "--account", "nope", stdin=world.token)
    assert "relay.toml has no amoCRM account nope. It has: main." in result.stderr
    assert result.exit_code == 1
    result = world("secrets", "set", "bitrix24.application_token", "--portal", "nope", stdin="token")
    assert "relay.toml has no portal nope. It would be [bitrix24.portals.nope]." in result.stderr
    assert result.exit_code == 1
    assert world.stack.secretsmanager.list_secret_version_ids(SecretId=world.stack.secret)["Versions"] == []


def test_a_long_lived_token_that_does_not_look_like_one_is_set_with_a_warning(world: World) -> None:
    assert "does not look like" in world("secrets", "set", "amocrm.long_lived_token", stdin="opaque").stderr
    result = world("secrets", "set", "amocrm.long_lived_token", "--yes", stdin=world.token)
    assert "does not look like" not in result.stderr
    assert result.exit_code == 0


def test_init_makes_addresses_for_the_hooks_of_all_accounts(world: World) -> None:
    """And names what follows; what is there already stays."""
    result = world("secrets", "init", stdin=VALUES)
    assert len(world.account["hook_token"]) >= 40
    assert f"relay secrets set amocrm.long_lived_token --account main --stack {NAME}" in result.stderr
    before = world.account
    world("secrets", "init", "--yes", stdin=VALUES)
    assert world.account == before


def test_check_tells_of_every_account_and_until_when_its_token_is_good(world: World) -> None:
    def states() -> dict[str, Any]:
        return {item["name"]: item for item in world.stack.json("secrets", "check") if "amocrm" in item["name"]}

    world.filled(long_lived_token=world.crm.long_lived_token("client", days=30))
    known = states()
    assert known["amocrm.hook_token --account main"]["state"] == "set"
    assert "29 d left" in known["amocrm.long_lived_token --account main"]["state"]
    world.filled(long_lived_token=world.crm.long_lived_token("client", days=-1))
    known = states()
    assert not known["amocrm.long_lived_token --account main"]["valid"]
    assert "ended" in known["amocrm.long_lived_token --account main"]["state"]
    world.filled(long_lived_token="opaque")
    assert states()["amocrm.long_lived_token --account main"]["state"] == "set"
    world.with_integration()
    assert states()["amocrm.integration --account main"]["valid"]
    world.filled(client_id="id")
    assert not states()["amocrm.integration --account main"]["valid"]
    world.filled()
    assert not states()["amocrm.long_lived_token --account main"]["valid"]
    world("secrets", "init", "--yes", stdin=VALUES)
    missing = f"relay secrets set amocrm.long_lived_token --account main --stack {NAME}"
    assert missing in world("secrets", "check").stderr
    world("secrets", "set", "amocrm.long_lived_token", stdin="token")
    assert world("secrets", "check").exit_code == 0


# relay check


def test_an_account_in_good_order_passes(world: World) -> None:
    world.filled(long_lived_token=world.token)
    world.crm.subscribe(HOOK_URL, *WANTED)
    findings = world.check()
    assert findings["amoCRM main"].good is True
    assert findings["hooks main"].good is True
    assert "add_lead" in findings["hooks main"].says


def test_an_account_that_the_secret_does_not_know_is_told(world: World) -> None:
    world.stack.filled()
    finding = world.check()["amoCRM main"]
    assert finding.good is False
    assert finding.fix == f"relay secrets set amocrm.long_lived_token --account main --stack {NAME}"


def test_an_account_that_nobody_authorized_is_told(world: World) -> None:
    world.with_integration()
    finding = world.check()["amoCRM main"]
    assert finding.good is False
    assert f"relay amo authorize main --stack {NAME}" in finding.says
    world.store_pair()
    assert world.check()["amoCRM main"].good is True


def test_the_token_of_another_account_is_told(world: World) -> None:
    world.configure("1")
    world.filled(long_lived_token=world.token)
    finding = world.check()["amoCRM main"]
    assert finding.good is False
    assert "account_id is 32427762, not 1" in finding.says
    assert "amocrm.accounts.main.account_id" in finding.fix


def test_another_subdomain_is_told(world: World) -> None:
    """Its hooks would be refused."""
    world.configure("32427762", 'subdomain = "former"\n')
    world.filled(long_lived_token=world.token)
    finding = world.check()["amoCRM main"]
    assert finding.good is False
    assert "subdomain is example, not former" in finding.says
    assert "amocrm.accounts.main.subdomain" in finding.fix


def test_stages_and_users_that_the_account_does_not_have_are_told(world: World) -> None:
    world.filled(long_lived_token=world.token)
    world.configure("32427762", "stages = [142, 1]\nown_user_ids = [10000698, 2]\n")
    known = world.check()
    assert known["stages main"].good is known["users main"].good is False
    assert known["stages main"].says.endswith(": 1")
    assert f"relay amo stages main --stack {NAME}" in known["stages main"].fix
    assert known["users main"].says.endswith(": 2")
    assert "10000702" in known["users main"].fix
    world.configure("32427762", "stages = [142]\nown_user_ids = [10000698]\n")
    known = world.check()
    assert known["stages main"].good is known["users main"].good is True
    world.crm.faults.add(Forbidden(path="/api/v4/users"))
    assert "users main" not in world.check()


def test_a_refused_token_and_a_hook_that_is_not_there_are_told(world: World) -> None:
    world.filled(long_lived_token=world.token)
    assert world.check()["hooks main"].fix == f"relay amo hooks main --repair --stack {NAME}"
    world.crm.faults.add(Forbidden(path="/api/v4/webhooks"))
    assert world.check()["hooks main"].good is None
    world.crm.tokens.revoke()
    finding = world.check()["amoCRM main"]
    assert finding.good is False
    assert "does not take the token" in finding.says


def test_a_pause_and_an_integration_that_leads_elsewhere_are_told(world: World) -> None:
    """Both before what is asked of amoCRM, which may be in order by now."""
    world.with_integration(redirect_uri="https://old.test/amo/oauth")
    result = world("check", "--config", world.config)
    assert "https://old.test/amo/oauth" in " ".join(result.stdout.split())
    until = int(time.time()) + 300
    pause = {"until": until, "reason": "http_401"}
    world.stack.store.put(pause_key(amo_key("main")), pause, replaces=None, expires_at=until)
    assert "http_401" in world("check", "--config", world.config).stdout


def test_a_long_lived_token_that_ends_soon_is_told(world: World) -> None:
    """Nobody can refresh it."""
    world.filled(long_lived_token=world.crm.long_lived_token("client", days=13))
    result = world("check", "--config", world.config)
    assert "long-lived token ends" in result.stdout
    assert f"relay secrets set amocrm.long_lived_token --account main --stack {NAME}" in " ".join(result.stdout.split())
    world.filled(long_lived_token=world.token)
    assert "long-lived token ends" not in world("check", "--config", world.config).stdout


def test_mistakes_of_accounts_are_told_in_words(world: World) -> None:
    world.configure("0", 'subdomain = "A"\n[amocrm.accounts.main.notes]\ncontact = ["status"]\n')
    text = world.config.read_text("utf-8").replace(HOST, "https://example.amocrm.ru/")
    world.config.write_text(text, "utf-8")
    findings = json.loads(world("check", "--offline", "--config", world.config, "--json").stdout)
    assert [finding["says"].partition("; there is")[0] for finding in findings] == [
        "relay.toml: amocrm.accounts.main.account_id: expected int >= 1",
        (
            "relay.toml: amocrm.accounts.main.host: expected a host such as example.amocrm.ru, example.amocrm.com "
            "or example.kommo.com"
        ),
        "relay.toml: amocrm.accounts.main.subdomain: expected the first part of the account's host, such as example",
        "relay.toml: amocrm.accounts.main.notes.contact: expected one of add, update, responsible, restore",
    ]


def test_a_name_that_cannot_be_is_told_in_words(world: World) -> None:
    world.config.write_text(f'[amocrm.accounts."сайт"]\naccount_id = 1\nhost = "{HOST}"\n', "utf-8")
    [finding] = json.loads(world("check", "--offline", "--config", world.config, "--json").stdout)
    assert "amocrm.accounts.сайт: expected a name of Latin small letters" in finding["says"]
