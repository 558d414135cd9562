"""`relay bitrix`, and what `relay secrets` and `relay check` know of Bitrix24, on a deployed stack and the sandbox."""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from bitrix_robot import portal as bitrix_portal
from bitrix_robot.keys import app_key, portal_key
from bitrix_robot.order import Order, read_order
from crm_relay.bitrix24.oauth import TokenPair
from crm_relay.delivery.account import pause_key
from crm_relay.delivery.tokens import token_key
from crm_relay.http_client import HttpClient
from crm_relay.observability import logger
from crm_relay.settings import read_secrets
from tests.component.test_cli_stack import NAME, VALUES, Stack, stack
from workbench.sandboxes import MemoryTransport
from workbench.sandboxes.bitrix24 import (
    HUB,
    HUB_SCOPES,
    PARTNER,
    READY,
    SOURCE_SCOPES,
    App,
    Bitrix24OAuth,
    Bitrix24Sandbox,
    IncomingWebhook,
    add_whole_deal,
)
from workbench.sandboxes.bitrix24.calls import Answer, Call, Method, Refused
from workbench.sandboxes.bitrix24.oauth import HOST as OAUTH_HOST
from workbench.sandboxes.faults import Fault, Html, RateLimited, Redirect, Reset

__all__ = ["stack"]

URL_KEY = "url-key-0123456789abcdefgh"
CALL_URL = f"https://relay.test/bitrix/{URL_KEY}"
SOURCE_HOOK, HUB_HOOK = f"https://{PARTNER.domain}/rest/1/source/", f"https://{HUB.domain}/rest/1/hub/"
OURS = App(
    client_id="local.1",
    client_secret="client-secret",
    application_token="application-token",
    user_id=1,
    scopes=SOURCE_SCOPES,
)
APP_KEYS = {"client_id": OURS.client_id, "client_secret": OURS.client_secret}
CODE = "crm_relay.transfer"
SETTINGS = f"""
[bitrix24.portals.partner]
kind = "source"
member_id = "{PARTNER.member_id}"
domain = "{PARTNER.domain}"
[bitrix24.portals.hub]
kind = "hub"
member_id = "{HUB.member_id}"
domain = "{HUB.domain}"
[bitrix24.routes.main]
source = "partner"
hub = "hub"
stages = {{"{READY}" = "C5:NEW"}}
responsible = "gleb@example.com"
[bitrix24.routes.main.fields]
UF_CRM_1747309879 = "UF_CRM_CONTRACT"
UF_CRM_DELIVERY = "UF_CRM_DELIVERY"
UF_CRM_67BC9A01 = "UF_CRM_CONTRACT_FILE"
UF_CRM_PHOTOS = "UF_CRM_PHOTOS"
[bitrix24.routes.main.products]
match = "xml_id"
source_catalogs = [15]
hub_catalogs = [25]
"""


class World:
    """A stack that joins a partner's portal to the hub: `world("bitrix", "check")`."""

    def __init__(self, deployed: Stack, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stack = deployed
        self.config = folder / "relay.toml"
        self.configure()
        self.oauth = Bitrix24OAuth(clock=time.time, random=Random(7))
        source = replace(PARTNER, incoming=(IncomingWebhook(1, "source", SOURCE_SCOPES),), apps=(OURS,))
        hub = replace(HUB, incoming=(IncomingWebhook(1, "hub", HUB_SCOPES),))
        self.partner, self.hub = (
            Bitrix24Sandbox(terms, self.oauth, clock=time.time, random=Random(7)) for terms in (source, hub)
        )
        hosts = {PARTNER.domain: self.partner, HUB.domain: self.hub, OAUTH_HOST: self.oauth}
        sandboxes = MemoryTransport(hosts)
        transport = httpx.MockTransport(sandboxes.handle_request)
        deployed.cli._world = {"transport": transport, "config": self.config}
        http = HttpClient(transport)
        monkeypatch.setattr(bitrix_portal, "http_client", lambda: http)
        self.filled()

    def __call__(self, *arguments: object, **more: Any) -> Any:
        return self.stack(*arguments, **more)

    def configure(self, *changes: tuple[str, str]) -> None:
        text = SETTINGS
        for before, after in changes:
            assert before in text
            text = text.replace(before, after)
        self.config.write_text(text, "utf-8")

    def filled(self, source: Mapping[str, str] | None = None, hub: Mapping[str, str] | None = None) -> None:
        """Fill the secret; the portals have webhooks unless they are told to have something else."""
        ways = source or {"webhook_url": SOURCE_HOOK, "application_token": "partner-token"}
        portals = {"partner": {"url_key": URL_KEY, **ways}, "hub": hub or {"webhook_url": HUB_HOOK}}
        self.stack.filled(bitrix24=portals)

    def installed(self, **more: Any) -> TokenPair:
        """Install the app, as far as the table knows of it."""
        grant = self.partner.grant(OURS.client_id)
        pair = TokenPair(PARTNER.member_id, grant.access_token, grant.refresh_token, int(grant.expires_at))
        key = token_key(portal_key("partner"))
        attributes = {"pair": asdict(pair) | more, "lease_until": 0}
        self.stack.store.put(key, attributes, replaces=self.stack.store.get(key))
        return pair

    def whole_deal(self) -> int:
        deal = add_whole_deal(self.partner)
        self.partner.move(deal.id, READY)
        return deal.id

    def with_scopes(self, scopes: frozenset[str]) -> None:
        incoming = (IncomingWebhook(1, "source", scopes),)
        self.partner.portal = replace(self.partner.portal, incoming=incoming)

    def findings(self, *arguments: object) -> list[SimpleNamespace]:
        result = self("bitrix", "check", *arguments, "--json")
        found = [SimpleNamespace(**finding) for finding in json.loads(result.stdout)]
        assert result.exit_code == int(any(finding.good is False for finding in found))
        return found

    def bad(self, *arguments: object) -> list[str]:
        return [finding.says for finding in self.findings(*arguments) if finding.good is False]

    @property
    def secrets(self) -> Any:
        return self.stack.document["bitrix24"]

    @property
    def orders(self) -> list[Order]:
        """Take the orders out of the queue."""
        return [Order.of(read_order(body)) for body in self.stack.bodies("Bitrix")]


@pytest.fixture
def world(stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(stack, tmp_path, monkeypatch)


# relay bitrix check


def test_portals_and_a_route_in_good_order_pass(world: World) -> None:
    """Stages are told by the names that people know."""
    findings = world.findings()
    assert all(finding.good for finding in findings)
    assert [finding.what for finding in findings] == ["Bitrix24 partner", "Bitrix24 hub", "route main", "route main"]
    assert "«Готово к передаче в ЕСБ» (C3:READY) → hub: «Получена» (C5:NEW)" in findings[2].says
    result = world("bitrix", "check", "main")
    assert "✓" in result.stdout
    for secret in (URL_KEY, "/rest/1/", "partner-token"):
        assert secret not in result.output


def test_nothing_is_written_by_a_check(world: World) -> None:
    world.findings()
    written = {"crm.item.add", "crm.item.update", "crm.item.productrow.set", "bizproc.robot.add"}
    assert not written & (world.partner.calls.keys() | world.hub.calls.keys())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ((f'"{READY}" =', '"C3:REDY" ='), "stages.C3:REDY: the source has no such stage"),
        (('"C5:NEW"', '"C5:NOW"'), f"stages.{READY}: the hub has no stage C5:NOW"),
        (("UF_CRM_1747309879 =", "UF_CRM_1 ="), "fields.UF_CRM_1: the source has no such field"),
        (('"UF_CRM_CONTRACT"', '"UF_CRM_CONTRAKT"'), "fields.UF_CRM_1747309879: the hub has no field UF_CRM_CONTRAKT"),
        (("gleb@", "nobody@"), "responsible: the hub shows no active user with this e-mail"),
        (("[15]", "[15, 16]"), "products.source_catalogs: the source shows no product in catalog 16"),
        (
            ("hub_catalogs = [25]", "hub_catalogs = [26]"),
            "products.hub_catalogs: the hub shows no product in catalog 26",
        ),
        (
            ('match = "xml_id"', 'match = "xml_id"\ntable = {"101" = 2001, "999" = 2002}'),
            "products.table: the source shows no product 999 in catalogs 15",
        ),
        (
            ('match = "xml_id"', 'match = "xml_id"\ntable = {"101" = 99999, "102" = 2002}'),
            "products.table: the hub shows no product 99999 in catalogs 25",
        ),
        (
            ("stages = {", 'source_deal_field = "UF_NOWHERE"\nstages = {'),
            "source_deal_field: the hub has no field UF_NOWHERE",
        ),
    ],
)
def test_a_mistake_of_a_route_is_told_by_its_key(world: World, change: tuple[str, str], words: str) -> None:
    world.configure(change)
    assert world.bad() == [f"bitrix24.routes.main.{words}"]


def test_what_can_be_named_is_listed(world: World) -> None:
    """Stages and fields under the names of relay.toml, with the words by which people know them."""
    listed = json.loads(world("bitrix", "fields", "hub", "--json").stdout)
    assert listed["stages"]["C5:NEW"] == "Получена"
    assert listed["fields"]["UF_CRM_DELIVERY"] == {
        "title": "Доставка",
        "type": "enumeration",
        "multiple": False,
        "read_only": False,
        "options": ["Курьер", "Самовывоз"],
    }
    shown = world("bitrix", "fields", "partner").stdout
    for word in (READY, "Готово к передаче в ЕСБ", "UF_CRM_SERVICES", "multiple", "Самовывоз", "Монтаж"):
        assert word in shown


@pytest.mark.parametrize(
    ("change", "portal"), [((f'"{READY}" =', '"C3:REDY" ='), "partner"), (('"UF_CRM_CONTRACT"', '"UF_CRM_X"'), "hub")]
)
def test_a_wrong_name_is_told_with_where_to_look(world: World, change: tuple[str, str], portal: str) -> None:
    world.configure(change)
    [fix] = [finding.fix for finding in world.findings() if finding.good is False]
    assert fix.startswith(f"relay bitrix fields {portal}")


def test_a_portal_that_does_not_tell_its_fields_is_told_of(world: World) -> None:
    world.hub.faults.add(Reset())
    assert f"{HUB.domain} cannot be reached" in world("bitrix", "fields", "hub").stderr


def test_a_missing_scope_is_told_with_what_it_costs(world: World) -> None:
    """Without crm nothing goes at all; without the others transfers go on, and less comes of them."""
    world.with_scopes(SOURCE_SCOPES - {"crm"})
    findings = world.findings()
    assert [finding.says for finding in findings if finding.good is False] == [
        "the scope crm is missing: neither deals nor their fields can be read"
    ]
    assert PARTNER.domain in findings[0].fix
    assert findings[-1].says == "not checked: first mend what is said of its portals"
    world.with_scopes(SOURCE_SCOPES - {"im"})
    assert world.bad() == []
    assert "nobody is notified" in next(each.says for each in world.findings() if each.good is None)
    world.with_scopes(SOURCE_SCOPES - {"catalog"})
    [mistake] = world.bad()
    assert mistake.startswith("bitrix24.routes.main.products.source_catalogs: catalog 15 cannot be read")


def test_options_are_matched_by_xml_id_only_for_an_administrator(world: World) -> None:
    """Nobody else may read them, so all that is chosen would stay behind."""
    by_xml_id = ('UF_CRM_DELIVERY = "UF_CRM_DELIVERY"', 'UF_CRM_DELIVERY = {to = "UF_CRM_DELIVERY", match = "xml_id"}')
    world.configure(by_xml_id)
    assert world.bad() == []

    def refused(_: Call) -> Answer:
        raise Refused("ACCESS_DENIED", "Access denied", 403)

    world.hub._methods["crm.deal.userfield.list"] = Method(refused)
    first, *_ = world.bad()
    assert first == "bitrix24.routes.main.fields.UF_CRM_DELIVERY: XML_IDs of hub are for its CRM administrators alone"
    world.configure()
    assert world.bad() == []


def test_what_keeps_a_source_from_calling_is_told(world: World) -> None:
    world.stack.filled(bitrix24={"partner": {"webhook_url": SOURCE_HOOK}, "hub": {"webhook_url": HUB_HOOK}})
    address, token, *_ = world.findings()
    assert (address.good, address.fix) == (False, f"relay secrets set bitrix24.url_key --portal partner --stack {NAME}")
    assert (token.good, token.fix) == (
        None,
        f"relay secrets set bitrix24.application_token --portal partner --stack {NAME}",
    )
    world.stack.store.put(app_key("partner"), {"application_token": "token"}, replaces=None)
    assert all("application_token" not in finding.says for finding in world.findings())


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Redirect(), "has moved to"),
        (RateLimited(), "busy"),
        (Reset(), "does not answer as Bitrix24 does"),
        (Html(status=403), "closed to us"),
    ],
    ids=repr,
)
def test_what_a_portal_has_against_it_is_told(world: World, fault: Fault, words: str) -> None:
    world.hub.faults.add(fault)
    [says] = world.bad()
    assert words in says


def test_a_webhook_that_is_not_taken_is_told_with_the_command_that_sets_another(world: World) -> None:
    world.filled(hub={"webhook_url": f"https://{HUB.domain}/rest/1/other/"})
    finding = next(finding for finding in world.findings() if finding.good is False)
    assert "does not take our webhook" in finding.says
    assert finding.fix == f"relay secrets set bitrix24.webhook_url --portal hub --stack {NAME}"
    assert "/rest/1/other" not in str(finding)


def test_ways_in_that_cannot_be_are_told(world: World) -> None:
    world.filled(hub={"webhook_url": SOURCE_HOOK})
    assert f"is not at {HUB.domain}" in world.bad()[0]
    world.filled(hub={"application_token": "token"})
    assert "neither an incoming webhook nor an app" in world.bad()[0]
    world.filled(APP_KEYS)
    assert "not installed in partner" in world.bad()[0]


def test_a_portal_is_read_as_the_app_and_its_token_refreshed_for_all(world: World) -> None:
    """By the same lease as the functions': the refresh token changes, and only the newest one works."""
    world.filled(APP_KEYS)
    world.installed(expires_at=int(time.time()) - 1)
    assert world.bad() == []
    assert world.oauth.refreshes == 1
    item = world.stack.store.get(token_key(portal_key("partner")))
    assert item is not None
    assert item.attributes["pair"]["expires_at"] > time.time()
    assert world.bad() == []
    assert world.oauth.refreshes == 1


def test_a_portal_that_is_read_with_the_tokens_of_its_calls_needs_one_that_works(world: World) -> None:
    world.configure(('kind = "source"', 'kind = "source"\nuse_token_of_call = true'))
    world.filled({"application_token": "partner-token"})
    assert "none that works just now" in world.bad()[0]
    pair = world.installed()
    assert world.bad() == []
    world.installed(expires_at=int(time.time()) - 1, access_token=pair.access_token)
    assert "none that works just now" in world.bad()[0]


def test_a_pause_is_told(world: World) -> None:
    until = int(time.time()) + 300
    pause = {"until": until, "reason": "no_auth_found"}
    world.stack.store.put(pause_key(portal_key("hub")), pause, replaces=None, expires_at=until)
    assert any("no_auth_found" in finding.says for finding in world.findings())
    assert world.bad() == []


def test_a_route_or_portal_that_nobody_knows_is_told(world: World) -> None:
    assert "no route other. It has: main." in world("bitrix", "check", "other").stderr
    assert "no portal other. It has: hub, partner." in world("bitrix", "address", "other").stderr
    world.config.write_text("", "utf-8")
    result = world("bitrix", "check")
    assert "[bitrix24.portals.NAME]" in " ".join(result.stderr.split())
    assert result.exit_code == 1


def test_relay_check_asks_the_same(world: World) -> None:
    def check() -> list[Any]:
        findings: list[Any] = json.loads(world("check", "--config", world.config, "--json").stdout)
        return findings

    assert [each["good"] for each in check() if each["what"].startswith(("Bitrix24", "route"))] == [True] * 4
    world.configure(('"C5:NEW"', '"C5:NOW"'))
    assert any("C5:NOW" in each["says"] for each in check() if each["what"] == "route main")
    world.config.write_text("", "utf-8")
    assert all(not each["what"].startswith("Bitrix24") for each in check())


# relay bitrix address


def test_the_address_of_calls_is_shown_whole_only_when_asked_for(world: World) -> None:
    assert world("bitrix", "address", "partner").stdout.strip() == "https://relay.test/bitrix/…"
    result = world("bitrix", "address", "partner", "--reveal", "--route", "main")
    assert result.stdout.strip() == f"{CALL_URL}?route=main"
    assert "begins at partner" in world("bitrix", "address", "hub", "--route", "main").stderr
    assert f"bitrix24.url_key --portal hub --stack {NAME}" in world("bitrix", "address", "hub").stderr


# relay bitrix robot


def test_the_robot_is_registered_listed_and_removed(world: World) -> None:
    world.filled(APP_KEYS)
    world.installed()
    result = world("bitrix", "robot", "install", "partner")
    assert result.exit_code == 0
    assert URL_KEY not in result.output
    robot = world.partner.hooks.robots[CODE]
    assert (robot.handler, robot.user_id, robot.waits) == (CALL_URL, 1, True)
    assert (robot.properties, robot.returns) == (("route",), ("esb_deal_id", "status"))
    assert "ours" in world("bitrix", "robot", "list", "partner").stdout
    assert json.loads(world("bitrix", "robot", "list", "partner", "--json").stdout) == [{"code": CODE, "ours": True}]
    assert "--yes" in world("bitrix", "robot", "remove", "partner").stderr
    assert CODE in world.partner.hooks.robots
    assert world("bitrix", "robot", "remove", "partner", "--yes").exit_code == 0
    assert not world.partner.hooks.robots
    assert "No robots." in world("bitrix", "robot", "list", "partner").stdout
    assert f"no robot {CODE}" in world("bitrix", "robot", "remove", "partner", "--yes").stderr


def test_the_robot_is_registered_anew_only_after_a_question(world: World) -> None:
    world.filled(APP_KEYS)
    world.installed()
    world("bitrix", "robot", "install", "partner")
    result = world("bitrix", "robot", "install", "partner", "--user", 7)
    assert "--yes" in result.stderr
    assert result.exit_code == 1
    assert world("bitrix", "robot", "install", "partner", "--user", 7, "--yes").exit_code == 0
    assert world.partner.hooks.robots[CODE].user_id == 7


def test_the_robot_needs_an_app_an_address_and_a_route(world: World) -> None:
    result = world("bitrix", "robot", "install", "partner")
    assert f"relay secrets set bitrix24.app --portal partner --stack {NAME}" in " ".join(result.stderr.split())
    assert result.exit_code == 1
    assert "No route" in world("bitrix", "robot", "install", "hub").stderr
    world.stack.filled(bitrix24={"partner": APP_KEYS})
    assert "bitrix24.url_key --portal partner" in world("bitrix", "robot", "install", "partner").stderr
    world.filled(APP_KEYS)
    assert "not installed" in world("bitrix", "robot", "install", "partner").stderr
    assert not world.partner.hooks.robots


def test_what_the_portal_has_against_the_robot_is_told(world: World) -> None:
    world.filled(APP_KEYS)
    world.installed(access_token="other")
    for command in ("install", "list", "remove"):
        result = world("bitrix", "robot", command, "partner")
        assert "does not take our webhook or token" in result.stderr
        assert result.exit_code == 1


# relay bitrix transfer


def test_a_deal_is_queued_as_its_portals_call_would(world: World) -> None:
    result = world("bitrix", "transfer", 662, "--route", "main")
    assert result.exit_code == 0
    assert "main-662" in result.stderr
    assert f"relay deliveries show 662 --stack {NAME}" in result.stdout
    assert world.orders == [Order("partner", 662, "main", expected=True)]
    told = json.loads(world("bitrix", "transfer", 662, "--route", "main", "--json").stdout)
    assert told == {"transfer_id": "main-662", "queued": True, "delivery": "bitrix24.deal#partner#662#main"}


def test_a_deal_that_is_in_the_hub_is_queued_only_if_its_route_updates(world: World) -> None:
    claim = world.stack.claim("partner#662#main", "bitrix24.deal")
    claim.confirm({"hub_deal": 9001})
    result = world("bitrix", "transfer", 662, "--route", "main")
    assert "9001" in result.stderr
    assert world.orders == []
    assert "relay deliveries show 662" in result.stdout
    assert "9001" in world("deliveries", "show", "bitrix24.deal#partner#662#main").stdout
    world.configure(('hub = "hub"', 'hub = "hub"\non_repeat = "update"'))
    assert world("bitrix", "transfer", 662, "--route", "main").exit_code == 0
    assert len(world.orders) == 1


def test_a_route_that_is_not_there_queues_nothing(world: World) -> None:
    assert "no route other" in world("bitrix", "transfer", 662, "--route", "other").stderr
    assert world.orders == []


@pytest.fixture
def quiet_again() -> Any:
    level = logger.log_level
    yield
    logger.setLevel(level)


@pytest.mark.usefixtures("quiet_again")
def test_a_dry_run_shows_the_hubs_deal_and_writes_nothing(world: World) -> None:
    """The options of lists with their texts, contacts by whether the hub has them, rows by what they become."""
    known = world.hub.add_contact(name="Мария", fm=[{"typeId": "PHONE", "valueType": "WORK", "value": "+380501234567"}])
    deal = world.whole_deal()
    result = world("bitrix", "transfer", deal, "--route", "main", "--dry-run", "--json")
    assert result.exit_code == 0, result.stderr
    made = json.loads(result.stdout)
    assert (made["deal"], made["stage"], made["hub_deal"]) == (deal, READY, None)
    fields = {each["field"]: each for each in made["fields"]}
    assert fields["UF_CRM_DELIVERY"] == {
        "field": "UF_CRM_DELIVERY",
        "value": "910 (Курьер)",
        "from": "UF_CRM_DELIVERY",
        "source_value": "45 (Курьер)",
    }
    assert fields["UF_CRM_CONTRACT"]["value"] == "Д-17/2026"
    assert fields["assignedById"] == {
        "field": "assignedById",
        "value": 21,
        "from": "ASSIGNED_BY_ID",
        "source_value": 7,
    }
    assert fields["UF_SOURCE_DEAL_ID"]["value"] == deal
    assert fields["UF_SOURCE_DEAL_ID"]["from"] == ""
    assert [(card["kind"], card["name"], card["hub_id"]) for card in made["cards"]] == [
        ("contact", "Мария Клиентова", known.id),
        ("contact", "Павел Прорабов", None),
        ("company", "ООО «Ромашка»", None),
    ]
    assert [row["productId"] for row in made["rows"]] == [2001, 2002, None]
    assert [(file["field"], len(file["ids"])) for file in made["files"]] == [
        ("UF_CRM_CONTRACT_FILE", 1),
        ("UF_CRM_PHOTOS", 1),
    ]
    assert made["left"] == {"fields": [], "rows": []}
    assert not world.hub.deals
    assert [*world.hub.contacts] == [known.id]
    assert not world.partner.comments
    assert world.orders == []
    for prefix in ("effect#bitrix24.deal", "effect#bitrix24.card"):
        assert world.stack.store.get(f"{prefix}#partner#{deal}#main") is None


@pytest.mark.usefixtures("quiet_again")
def test_a_dry_run_is_shown_to_people(world: World) -> None:
    world.configure(("[15]", "[16]"), ('"UF_CRM_CONTRACT"', '"UF_CRM_START"'))
    deal = world.whole_deal()
    result = world("bitrix", "transfer", deal, "--route", "main", "--dry-run")
    shown = " ".join(result.stdout.split())
    assert "«Окно ПВХ 1400×1200» is no product of the hub" in shown
    assert "«Выезд за город» is no product" not in shown
    assert "UF_CRM_1747309879 has a value that finds nothing" in shown
    for part in ("910 (Курьер)", "Мария Клиентова", "new", "free text", "UF_CRM_PHOTOS", "Nothing was"):
        assert part in shown
    assert "urlMachine" not in result.output
    assert "auth=" not in result.output


@pytest.mark.usefixtures("quiet_again")
def test_why_a_deal_would_not_be_carried_is_told(world: World) -> None:
    deal = add_whole_deal(world.partner).id
    for number, words in ((deal, f"never was, in a stage of the route ({READY}"), (999, "no such deal")):
        result = world("bitrix", "transfer", number, "--route", "main", "--dry-run")
        assert words in " ".join(result.stderr.split())
        assert result.exit_code == 1
    world.stack.filled()
    result = world("bitrix", "transfer", deal, "--route", "main", "--dry-run")
    assert "relay bitrix check main" in " ".join(result.stderr.split())


@pytest.mark.usefixtures("quiet_again")
def test_a_dry_run_of_a_deal_that_is_there_says_so(world: World) -> None:
    deal = world.whole_deal()
    there = world.hub.add_deal(
        title="Остекление дома", originatorId=f"b24:{PARTNER.member_id}", originId=f"deal:{deal}:main"
    )
    result = world("bitrix", "transfer", deal, "--route", "main", "--dry-run")
    assert f"has it already, as deal {there.id}" in result.stdout


# relay secrets


def test_a_webhook_is_set_and_a_source_gets_an_address(world: World) -> None:
    world.stack.filled()
    result = world("secrets", "set", "bitrix24.webhook_url", "--portal", "partner", stdin=SOURCE_HOOK)
    assert result.exit_code == 0
    known = read_secrets(json.dumps(world.stack.document)).bitrix24["partner"]
    assert known.webhook_url == SOURCE_HOOK
    assert len(known.url_key) >= 40
    for secret in (SOURCE_HOOK, known.url_key):
        assert secret not in result.output
    assert f"relay bitrix check --stack {NAME}" in result.stderr
    world("secrets", "set", "bitrix24.webhook_url", "--portal", "hub", stdin=HUB_HOOK)
    assert world.secrets["hub"] == {"webhook_url": HUB_HOOK}
    assert "--yes" in world("secrets", "set", "bitrix24.webhook_url", "--portal", "hub", stdin=HUB_HOOK).stderr


def test_an_app_and_an_application_token_are_set(world: World) -> None:
    result = world("secrets", "set", "bitrix24.app", "--portal", "hub", stdin="local.2\nits-secret\n")
    assert world.secrets["hub"] == {"webhook_url": HUB_HOOK, "client_id": "local.2", "client_secret": "its-secret"}
    assert "its-secret" not in result.output
    assert f"relay bitrix robot install hub --stack {NAME}" in " ".join(result.stderr.split())
    world("secrets", "set", "bitrix24.application_token", "--portal", "partner", "--yes", stdin="other")
    assert world.secrets["partner"]["application_token"] == "other"


def test_the_address_of_calls_can_be_replaced(world: World) -> None:
    """It has leaked, say; what is written is never shown."""
    assert "--yes" in world("secrets", "set", "bitrix24.url_key", "--portal", "partner").stderr
    result = world("secrets", "set", "bitrix24.url_key", "--portal", "partner", "--yes")
    fresh = world.secrets["partner"]["url_key"]
    assert fresh != URL_KEY
    assert fresh not in result.output
    assert world.secrets["partner"]["webhook_url"] == SOURCE_HOOK


@pytest.mark.parametrize(
    "url",
    ["", HUB_HOOK, f"https://{PARTNER.domain}/rest/source/", f"https://{PARTNER.domain}/rest/1/a/crm.deal.get", "x"],
)
def test_a_webhook_that_could_not_work_is_not_written(world: World, url: str) -> None:
    before = world.secrets
    result = world("secrets", "set", "bitrix24.webhook_url", "--portal", "partner", "--yes", stdin=url)
    assert result.exit_code == 1
    assert world.secrets == before


def test_a_portal_must_be_named(world: World) -> None:
    result = world("secrets", "set", "bitrix24.url_key")
    assert "hub, partner" in result.stderr
    assert result.exit_code == 1


def test_init_makes_addresses_for_all_sources(world: World) -> None:
    """And names what follows; what is there already stays."""
    world.stack.filled()
    result = world("secrets", "init", stdin=VALUES)
    assert len(world.secrets["partner"]["url_key"]) >= 40
    assert world.secrets["hub"] == {}
    for portal in ("partner", "hub"):
        assert f"relay secrets set bitrix24.webhook_url --portal {portal} --stack {NAME}" in result.stderr
    before = world.secrets
    world("secrets", "init", "--yes", stdin=VALUES)
    assert world.secrets == before


def test_secrets_check_tells_of_every_portal(world: World) -> None:
    def states() -> dict[str, Any]:
        return {item["name"]: item for item in world.stack.json("secrets", "check") if "bitrix24" in item["name"]}

    assert {name: item["state"] for name, item in states().items()} == {
        "bitrix24.webhook_url --portal hub": "set",
        "bitrix24.url_key --portal partner": "set",
        "bitrix24.application_token --portal partner": "set",
        "bitrix24.webhook_url --portal partner": "set",
    }
    world.filled({"application_token": "token"}, hub={"client_id": "local.2"})
    known = states()
    assert not known["bitrix24.app --portal hub"]["valid"]
    assert not known["bitrix24.webhook_url --portal partner"]["valid"]
    missing = f"relay secrets set bitrix24.app --portal hub --stack {NAME}"
    world("secrets", "set", "bitrix24.webhook_url", "--portal", "partner", stdin=SOURCE_HOOK)
    world("secrets", "init", "--yes", stdin=VALUES)
    assert missing in world("secrets", "check").stderr
    world("secrets", "set", "bitrix24.app", "--portal", "hub", "--yes", stdin="local.2\nits-secret")
    assert world("secrets", "check").exit_code == 0
    world.stack.filled(bitrix24={"partner": {"application_token": "token", "webhook_url": SOURCE_HOOK}})
    assert not states()["bitrix24.url_key --portal partner"]["valid"]


def test_a_portal_that_is_read_with_the_tokens_of_its_calls_lacks_no_webhook(world: World) -> None:
    world.configure(('kind = "source"', 'kind = "source"\nuse_token_of_call = true'))
    world.filled({"application_token": "token"})
    states = {item["name"]: item["valid"] for item in world.stack.json("secrets", "check")}
    assert "bitrix24.webhook_url --portal partner" not in states


# relay.toml


def test_mistakes_of_portals_and_routes_are_told_in_words(world: World) -> None:
    def told() -> list[str]:
        findings = json.loads(world("check", "--offline", "--config", world.config, "--json").stdout)
        return [
            finding["says"].removeprefix("relay.toml: bitrix24.").partition("; there is")[0] for finding in findings
        ]

    world.configure(
        ('kind = "source"', 'kind = "sorce"'),
        (f'member_id = "{HUB.member_id}"', 'member_id = "1"'),
        (f'domain = "{HUB.domain}"', 'domain = "https://esb.bitrix24.ru/"'),
        (f'"{READY}" =', '"Готово" ='),
        ("gleb@example.com", "gleb"),
        ('"UF_CRM_CONTRACT"', '"contract"'),
        ('UF_CRM_DELIVERY = "UF_CRM_DELIVERY"', 'UF_CRM_DELIVERY = {to = "UF_CRM_DELIVERY", mach = "xml_id"}'),
    )
    field = "expected a field in capitals, such as COMMENTS or UF_CRM_1747309879"
    assert told() == [
        "portals.partner.kind: expected one of source, hub",
        "portals.hub.member_id: expected 32 hexadecimal digits, as the portal's calls have them",
        "portals.hub.domain: expected a host such as example.bitrix24.ru",
        "routes.main.stages.Готово: expected the id of a stage, such as NEW or C3:READY",
        "routes.main.responsible: expected an e-mail address",
        f"routes.main.fields.UF_CRM_1747309879: {field}",
        "routes.main.fields.UF_CRM_DELIVERY.mach: nobody reads this; is match meant?",
    ]
    world.configure(('source = "partner"', 'source = "hub"'))
    assert told() == ['routes.main.source: expected a portal of kind "source": partner']
    world.configure(('"UF_CRM_CONTRACT"', '"STAGE_ID"'))
    assert told() == ["routes.main.fields.UF_CRM_1747309879: STAGE_ID is not for a map, see stages"]
    world.configure(('"UF_CRM_CONTRACT"', '"UF_CRM_PHOTOS"'))
    assert told() == ["routes.main.fields.UF_CRM_PHOTOS: UF_CRM_PHOTOS is written by fields.UF_CRM_1747309879 already"]
    world.configure((f'{{"{READY}" = "C5:NEW"}}', "{}"))
    assert told() == ["routes.main.stages: expected at least one stage of the source, each with the hub's"]
