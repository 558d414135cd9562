"""POST /bitrix/{url_key}: rows C01 to C30 of the safety catalogue, through the real handlers.

An effect is a deal in the hub's sandbox: it counts after the worker has had its time.
"""

import json
import zlib
from collections.abc import Mapping
from dataclasses import replace
from threading import Barrier, Thread
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitrix_robot import carrier
from bitrix_robot.portal import Portal
from crm_relay.bitrix24 import items
from crm_relay.bitrix24.items import DEAL
from crm_relay.brackets import encode
from crm_relay.outcomes import NotExecuted
from tests.canaries import MARK
from tests.gateway import Response
from tests.relay import APP, APPLICATION_TOKEN, HUB_SECRET, START, URL_KEY, Crash, Relay
from workbench.sandboxes import faults
from workbench.sandboxes.bitrix24 import PARTNER, READY
from workbench.sandboxes.bitrix24.calls import Answer, Call, Method
from workbench.sandboxes.rates import busiest
from workbench.sandboxes.wire import SandboxRequest

ADDRESS = f"https://relay.test/bitrix/{URL_KEY}"
ORIGIN = {
    "domain": PARTNER.domain,
    "client_endpoint": f"https://{PARTNER.domain}/rest/",
    "server_endpoint": "https://oauth.bitrix.info/rest/",
    "member_id": PARTNER.member_id,
}
EVENT_TOKEN = "681b6392a30743.60451827|A88332_57464|Mr6J9oMP85JG." + "0a" * 32
LIMIT = 1_048_576


def event(deal: object = 1, name: str = "ONCRMDEALUPDATE", /, **auth: object) -> dict[str, Any]:
    """Return an outgoing webhook's call; `auth` differs from what is right."""
    return {
        "event": name,
        "event_handler_id": "975",
        "data": {"FIELDS": {"ID": deal}},
        "ts": int(START),
        "auth": {**ORIGIN, "application_token": APPLICATION_TOKEN, **auth},
    }


def webhook_robot(deal: object = 1, /, **auth: object) -> dict[str, Any]:
    """Return a call of the built-in Webhook robot, which has no secret in it."""
    return {"document_id": ["crm", "CCrmDocumentDeal", f"DEAL_{deal}"], "auth": {**ORIGIN, **auth}}


def app_robot(deal: object = 1, /, **changes: object) -> dict[str, Any]:
    """Return a call of an app's robot that waits for its answer."""
    return {
        "workflow_id": "681b6392a30743.60451827",
        "code": "send_to_hub",
        "document_id": ["crm", "CCrmDocumentDeal", f"DEAL_{deal}"],
        "document_type": ["crm", "CCrmDocumentDeal", "DEAL"],
        "event_token": EVENT_TOKEN,
        "properties": {"route": "main"},
        "use_subscription": "Y",
        "ts": int(START),
        "auth": {**ORIGIN, "application_token": APPLICATION_TOKEN},
    } | changes


class Desk:
    """A partner's portal with a deal in the right stage, of which nobody has told yet."""

    def __init__(self, relay: Relay) -> None:
        self.relay = relay
        self.partner = relay.partner
        self.hub = relay.hub
        self.partner.portal = replace(self.partner.portal, webhook_robots=())
        self.deal()

    def deal(self, stage: str = READY) -> int:
        return self.partner.add_deal(title="Окна", categoryId=3, stageId=stage, assignedById=7).id

    def post(self, tree: Mapping[str, Any], query: str = "", *, key: str = URL_KEY) -> tuple[int, Any]:
        """Send a form; return status and answer."""
        return self.verdict(self.relay.post_call(encode(tree).encode(), target=f"/bitrix/{key}{query}"))

    @staticmethod
    def verdict(response: Response) -> tuple[int, Any]:
        assert response.headers["content-type"] == "application/json"
        return response.status, response.json()

    def carried(self) -> int:
        """Return how many deals are in the hub once everything that was queued is done."""
        self.relay.run(3600)
        assert not self.relay.errors
        assert not self.relay.queues["deals"].messages
        return len(self.hub.deals)

    def quarantined(self) -> list[str]:
        found = self.relay.items("quarantine#").values()
        assert all(zlib.decompress(item["body"]) for item in found)
        return [item["reason"] for item in found]

    def as_app(self, **settings: Any) -> None:
        """Reach the partner's portal as its app alone."""
        secrets = self.relay.bitrix_secrets["partner"]
        self.relay.bitrix_secrets["partner"] = msgspec.structs.replace(secrets, webhook_url="")
        portals = dict(self.relay.settings.bitrix24.portals)
        portals["partner"] = msgspec.structs.replace(portals["partner"], **settings)
        self.relay.configure("bitrix24", portals=portals)

    def install(self) -> None:
        """An administrator installs our app."""
        self.partner.install(APP.client_id, ADDRESS)
        self.relay.run()

    def pair(self) -> Any:
        return self.relay.items("token#bitrix24#partner")["token#bitrix24#partner"]["pair"]

    def untouched(self) -> bool:
        """Tell whether nothing was queued or quarantined, and no request left."""
        portals = (self.partner, self.hub, self.relay.oauth)
        nothing = not self.relay.queues["deals"].messages and not self.quarantined()
        return nothing and not any(portal.received for portal in portals)

    def published(self) -> list[str]:
        return [name for name, _ in self.relay.bus.events]


@pytest.fixture
def desk(relay: Relay) -> Desk:
    return Desk(relay)


QUEUED = 200, {"success": True, "transfer": "queued", "transfer_id": "main-1"}
CARRIED = 200, {"success": True, "esb_deal_id": 1, "transfer_id": "main-1"}
NOT_OURS = 403, {"error": "portal_not_configured"}
NOT_PROVEN = 403, {"error": "application_token_invalid"}


# The usual way


@pytest.mark.parametrize(
    "tree", [event(), webhook_robot(), app_robot()], ids=["outgoing webhook", "webhook robot", "app robot"]
)
def test_c01_a_valid_call_is_queued(desk: Desk, tree: dict[str, Any]) -> None:
    """C01: answered before anything is done, and one deal in the hub."""
    assert desk.post(tree) == QUEUED
    assert not desk.hub.received
    assert desk.carried() == 1


def test_c01_every_kind_comes_as_the_portal_sends_it(desk: Desk) -> None:
    """C01: an app's events with and without tokens, and its robot, in the wire format of the sandbox."""
    desk.as_app()
    desk.install()
    api = desk.partner.grant(APP.client_id)
    for method, params in (
        ("event.bind", {"event": "ONCRMDEALUPDATE", "handler": ADDRESS}),
        ("bizproc.robot.add", ROBOT_PARAMS),
    ):
        body = json.dumps({**params, "auth": api.access_token}).encode()
        assert desk.partner.handle(_request(method, body)).status == 200
    desk.partner.place_robot(READY, "send_to_hub", route="main")
    desk.partner.change(1, title="Двери")  # by a person: with tokens
    desk.partner.change(1, title="Окна и двери", by=0)  # by a robot: without
    other = desk.deal("C3:NEW")
    desk.partner.move(other, READY)
    assert desk.carried() == 2
    [run] = desk.partner.robot_results
    assert (run.deal_id, run.returned) == (other, {"esb_deal_id": "2", "status": "ok"})
    assert {callback.answers[0][1] for callback in desk.partner.callbacks.log} == {200}


ROBOT_PARAMS = {
    "CODE": "send_to_hub",
    "HANDLER": ADDRESS,
    "NAME": "Передать в ЕСБ",
    "USE_SUBSCRIPTION": "Y",
    "PROPERTIES": {"route": {"Name": "Маршрут", "Type": "string"}},
    "RETURN_PROPERTIES": {"esb_deal_id": {"Name": "№", "Type": "string"}, "status": {"Name": "Итог", "Type": "string"}},
}


def _request(method: str, body: bytes) -> Any:
    return SandboxRequest.of("POST", f"/rest/{method}", {"Content-Type": "application/json"}, body)


def test_a_deal_that_was_carried_is_told_at_once(desk: Desk) -> None:
    """The hub's id is in the answer; nothing is queued again."""
    assert desk.post(event()) == QUEUED
    assert desk.carried() == 1
    assert desk.post(event()) == CARRIED
    assert not desk.relay.queues["deals"].messages
    assert desk.relay.metrics["Replayed"] == 1


@pytest.mark.parametrize("tree", [event(), webhook_robot(), app_robot()])
def test_a_caller_who_waits_gets_the_hubs_id(desk: Desk, tree: dict[str, Any]) -> None:
    """`?wait=1`: as the seed answers; the queue's copy finds it done."""
    assert desk.post(tree, "?wait=1") == CARRIED
    assert len(desk.relay.queues["deals"].messages) == 1
    assert desk.carried() == 1
    assert len(desk.partner.comments) == 1


def test_a_caller_who_waits_too_long_is_sent_to_the_queue(desk: Desk) -> None:
    """`?wait=1`: the hub is slow; the answer comes within 29 seconds, and the deal later, once."""
    desk.hub.faults.add(faults.Timeout(when="after"))
    begun = desk.relay.clock.now
    assert desk.post(event(), "?wait=1") == QUEUED
    assert desk.relay.clock.now - begun <= 25
    assert desk.carried() == 1
    assert len(desk.partner.comments) == 1


def test_a_caller_who_waits_does_not_wait_for_large_files(desk: Desk) -> None:
    """`?wait=1`: what takes longer than he waits, and more memory than the receiver has, is the queue's."""
    desk.partner.attach_file(1, "UF_CRM_67BC9A01", "план.pdf", bytes(6_000_000))
    assert desk.post(event(), "?wait=1") == QUEUED
    assert [deal["UF_CRM_CONTRACT_FILE"] for deal in desk.hub.deals.values()] == [None]
    desk.relay.clock.sleep(30)
    desk.relay.run(60)
    assert [each.name for each in desk.hub.files.stored.values()] == ["план.pdf"]
    assert desk.post(event()) == CARRIED


def test_a_caller_who_waits_is_told_why_not(desk: Desk) -> None:
    """`?wait=1`: an event for a deal in another stage is no mistake, a robot's is."""
    other = desk.deal("C3:NEW")
    told = {"success": True, "transfer": "not_in_stage", "transfer_id": f"main-{other}"}
    assert desk.post(event(other), "?wait=1") == (200, told)
    refused = {"error": "transfer_refused", "reason": "wrong_stage", "transfer_id": f"main-{other}"}
    assert desk.post(webhook_robot(other), "?wait=1") == (422, refused)
    assert desk.carried() == 0


def test_an_event_of_a_deal_in_another_stage_is_quiet(desk: Desk) -> None:
    """Events tell of any change of any deal: no comment, no alarm."""
    other = desk.deal("C3:NEW")
    assert desk.post(event(other))[0] == 200
    assert desk.carried() == 0
    assert (desk.partner.comments, desk.partner.notifications, desk.published()) == ([], [], [])


def test_an_event_does_not_revive_a_deal_that_passed_the_stage_long_ago(desk: Desk) -> None:
    """Somebody corrects an old deal's comment: that is about something else; within the hour it is about the move."""
    desk.partner.move(1, "C3:NEW")
    desk.relay.clock.sleep(3000)
    young = desk.deal()
    desk.partner.move(young, "C3:NEW")
    desk.relay.clock.sleep(600)
    for deal in (1, young):
        assert desk.post(event(deal))[0] == 200
    assert desk.carried() == 1
    assert desk.hub.deals[1]["UF_SOURCE_DEAL_ID"] == young
    assert (len(desk.partner.comments), desk.published()) == (1, ["DealTransferred"])
    assert desk.post(webhook_robot())[0] == 200  # a robot means this very deal
    assert desk.carried() == 2


def test_an_event_that_waited_long_counts_from_when_it_came(desk: Desk) -> None:
    """The relay was busy or the portal paused for hours: that is nobody's fault of the deal."""
    assert desk.post(event())[0] == 200
    desk.partner.move(1, "C3:NEW")
    desk.relay.clock.sleep(5 * 3600)
    assert desk.carried() == 1


def test_an_event_brings_a_carried_deal_up_to_date_however_long_ago_it_was(desk: Desk) -> None:
    """Where the route updates, any later change goes along."""
    route = msgspec.structs.replace(desk.relay.settings.bitrix24.routes["main"], on_repeat="update")
    desk.relay.configure("bitrix24", routes={"main": route})
    desk.post(event())
    desk.carried()
    desk.partner.move(1, "C3:NEW")
    desk.relay.clock.sleep(30 * 86_400)
    desk.partner.change(1, title="Двери")
    desk.post(event())
    assert desk.carried() == 1
    assert desk.hub.deals[1]["title"] == "Двери"


# Proof


@pytest.mark.parametrize("token", [None, "", "wrong", "\udcff", "ё", APPLICATION_TOKEN.upper()])
@pytest.mark.parametrize("kind", [event, app_robot])
def test_c02_without_the_application_token_nothing_is_believed(desk: Desk, kind: Any, token: str | None) -> None:
    """C02: absent, empty, wrong, in the kinds that carry one; no error either."""
    tree = kind()
    tree["auth"] |= {"application_token": token.encode("utf-8", "replace").decode() if token else token}
    assert desk.post(tree) == NOT_PROVEN
    assert desk.untouched()


def test_c02_the_path_is_the_webhook_robots_proof(desk: Desk) -> None:
    """C02: it carries no token; without the key nobody gets that far."""
    assert desk.post(webhook_robot(), key=f"{URL_KEY[:-1]}X") == (404, {"error": "not_found"})
    assert desk.post(webhook_robot(), key="%FF") == (404, {"error": "not_found"})
    assert desk.untouched()
    assert desk.post(webhook_robot()) == QUEUED


@pytest.mark.parametrize("member", ["fedcba9876543210fedcba9876543210", "f" * 32, "", None])
def test_c03_c04_a_member_id_that_is_not_this_portals_is_refused(desk: Desk, member: str | None) -> None:
    """C03, C04: another portal's (the hub's), unknown, none; the token being right."""
    for tree in (event(1, member_id=member), webhook_robot(1, member_id=member)):
        assert desk.post(tree) == NOT_OURS
    assert desk.untouched()


def test_c05_a_call_with_our_key_from_another_portal_is_an_alarm(desk: Desk) -> None:
    """C05: the portal was renamed or is not well described, and its calls never come again; or the key is out."""
    desk.post(event(1, domain="renamed.bitrix24.ru" + "x" * 100))
    [told] = [line for line in desk.relay.logs if line["message"] == "call of another portal"]
    assert (told["portal"], told["member_id"]) == ("partner", PARTNER.member_id)
    assert told["domain"].startswith("renamed.bitrix24.ru")
    assert len(told["domain"]) == 64
    assert desk.relay.metrics["AttentionNeeded"] == 1
    assert desk.post({"hello": "world"}) == NOT_OURS  # there is nothing in it to tell an operator
    assert desk.relay.metrics["AttentionNeeded"] == 1


DOMAINS = [
    "partner.bitrix24.com",
    "esb.bitrix24.ru",
    "evil.com#.bitrix24.ru",
    "evil.com/.partner.bitrix24.ru",
    "evil.com?.partner.bitrix24.ru",
    "partner.bitrix24.ru@evil.com",
    "partner.bitrix24.ru.evil.com",
    "xpartner.bitrix24.ru",
    "127.0.0.1",
    "169.254.169.254",
    "[::1]",
    "0x7f000001",
    "2130706433",
    "::ffff:127.0.0.1",
    "partner.bitrix24.ru:443",
    "partner.bitrix24.ru.",
    "Partner.bitrix24.ru",
    "partner。bitrix24.ru",
    "ⓟartner.bitrix24.ru",
    "xn--prtner-bitrix24.ru",
    "partner.bitrix24.ru\r\nX-Evil: 1",
    "\r\n",
    " partner.bitrix24.ru",
    "",
    None,
]


@pytest.mark.parametrize("domain", DOMAINS)
def test_c05_to_c10_only_the_configured_domain_passes_and_none_is_called(desk: Desk, domain: str | None) -> None:
    """C05 to C10: exactly as configured, or 403; no request leaves."""
    assert desk.post(event(1, domain=domain)) == NOT_OURS
    assert desk.untouched()


def test_c11_endpoints_of_a_call_choose_nothing(desk: Desk) -> None:
    """C11: forged, they are ignored: the portal is asked at its own address, tokens at the pinned one."""
    desk.as_app()
    desk.install()
    forged = {"client_endpoint": "https://evil.example.com/rest/", "server_endpoint": "https://evil.example.com/rest/"}
    assert desk.post(event(1, **forged)) == QUEUED
    desk.relay.clock.sleep(7200)
    assert desk.carried() == 1  # a host without a sandbox could not be reached
    assert desk.relay.oauth.refreshes == 2


def test_c13_a_portal_that_moved_is_paused_with_an_alarm(desk: Desk) -> None:
    """C13: not followed, nothing is re-sent; the alarm names the new host."""
    assert desk.post(event()) == QUEUED
    desk.partner.portal, was = replace(desk.partner.portal, domain="renamed.bitrix24.ru"), desk.partner.portal
    desk.partner._former_domains = {was.domain}
    desk.relay.run(200)
    assert len(desk.partner.received) == 1
    [alarm] = [line for line in desk.relay.logs if line["message"] == "account paused"]
    assert alarm["reason"] == "portal_moved_to renamed.bitrix24.ru"
    desk.partner.portal, desk.partner._former_domains = was, set()
    assert desk.carried() == 1


# Apps


def test_an_installation_is_proven_and_kept(desk: Desk) -> None:
    """The app's token is refreshed once at the authorization server; its calls are believed from then on."""
    desk.as_app()
    desk.install()
    assert desk.pair()["member_id"] == PARTNER.member_id
    assert desk.post(event(1, application_token=APP.application_token)) == QUEUED
    assert desk.post(event(1)) == QUEUED  # an outgoing webhook of the same portal has a token of its own
    assert desk.carried() == 1


@pytest.mark.parametrize("refresh_token", ["stolen", "", None])
def test_c14_a_forged_installation_is_refused(desk: Desk, refresh_token: str | None) -> None:
    """C14: the authorization server does not know its token; what was kept before stays."""
    desk.as_app()
    desk.install()
    before = dict(desk.relay.store.items)
    forged = {**ORIGIN, "access_token": "x", "refresh_token": refresh_token, "application_token": "attacker"}
    assert desk.post({"event": "ONAPPINSTALL", "auth": forged}) == (403, {"error": "installation_not_proven"})
    assert dict(desk.relay.store.items) == before
    assert desk.post(event(1, application_token="attacker")) == NOT_PROVEN


def test_c14_an_installation_in_another_portal_is_refused(desk: Desk) -> None:
    """C14: its token is our app's, but of the attacker's own portal."""
    desk.hub.portal = replace(desk.hub.portal, apps=(APP,))
    grant = desk.hub.grant(APP.client_id)
    auth = {**ORIGIN, "access_token": grant.access_token, "refresh_token": grant.refresh_token}
    forged = {"event": "ONAPPINSTALL", "auth": auth | {"application_token": "attacker"}}
    assert desk.post(forged) == (403, {"error": "installation_not_proven"})
    assert not desk.relay.items("token#")
    assert not desk.relay.items("app#")


def test_c14_an_installation_that_cannot_be_checked_is_to_be_tried_again(desk: Desk) -> None:
    """C14: the server is down: 503, and nothing is kept."""
    desk.relay.oauth.faults.add(faults.Reset(times=2))
    desk.install()
    [callback] = desk.partner.callbacks.log
    assert callback.answers[0][1] == 503
    assert not desk.relay.items("token#")


def test_c15_an_uninstallation_is_proven_by_its_token(desk: Desk) -> None:
    """C15: a forged one is 403; a true one forgets the tokens, and an operator hears of it."""
    desk.as_app()
    desk.install()
    for token in (None, "", "wrong"):
        forged = {"event": "ONAPPUNINSTALL", "auth": {**ORIGIN, "application_token": token}}
        assert desk.post(forged) == NOT_PROVEN
    assert desk.pair()
    desk.partner.uninstall(APP.client_id, ADDRESS)
    desk.relay.run()
    assert desk.pair() is None
    assert desk.relay.metrics["AttentionNeeded"] == 1


def test_c16_a_call_without_tokens_uses_what_is_stored(desk: Desk) -> None:
    """C16: a robot or an agent did it."""
    desk.as_app()
    desk.install()
    assert desk.post(event()) == QUEUED
    assert desk.carried() == 1


def test_the_token_of_a_call_is_used_if_configured_and_there_is_nothing_better(desk: Desk) -> None:
    """A proven call's alone; the Webhook robot's is not."""
    secrets = desk.relay.bitrix_secrets["partner"]
    desk.relay.bitrix_secrets["partner"] = msgspec.structs.replace(secrets, client_id="", client_secret="")
    desk.as_app(use_token_of_call=True)
    assert desk.post(webhook_robot(1, access_token=f"{MARK}planted", expires_in=3600)) == QUEUED
    desk.relay.run(60)
    assert not desk.relay.items("token#")
    assert not desk.partner.received
    token = desk.partner.grant(APP.client_id).access_token
    assert desk.post(event(1, access_token=token)) == QUEUED
    assert desk.carried() == 1


def test_a_call_leaves_the_apps_own_token_alone(desk: Desk) -> None:
    """Its refresh token is worth more than one hour."""
    desk.as_app(use_token_of_call=True)
    desk.install()
    before = desk.pair()
    assert desk.post(event(1, access_token=f"{MARK}hers", expires_in=3600)) == QUEUED
    assert desk.pair() == before


# Robots


def test_c17_a_waiting_robot_without_its_token_is_kept_aside(desk: Desk) -> None:
    """C17: nobody could answer it."""
    tree = app_robot()
    del tree["event_token"]
    assert desk.post(tree) == (422, {"error": "event_token_required"})
    assert desk.quarantined() == ["event_token_required"]
    assert desk.carried() == 0


def test_c18_one_execution_of_a_robot_is_answered_once(desk: Desk) -> None:
    """C18: the same event_token twice: one deal, one bizproc.event.send."""
    for _ in range(2):
        assert desk.post(app_robot())[0] == 200
    assert desk.carried() == 1
    assert desk.post(app_robot())[0] == 200
    assert desk.carried() == 1
    assert _sends(desk) == 1


def test_another_execution_for_a_carried_deal_is_answered_too(desk: Desk) -> None:
    """A robot that waits must go on, whoever carried the deal."""
    desk.post(event())
    desk.carried()
    for execution in ("a", "b"):
        assert desk.post(app_robot(event_token=f"{execution}{EVENT_TOKEN}"))[0] == 200
    assert desk.carried() == 1
    assert _sends(desk) == 2
    assert len(desk.partner.comments) == 1


def test_a_robot_of_a_deal_that_cannot_be_carried_goes_on_too(desk: Desk) -> None:
    """It is told so."""
    assert desk.post(app_robot(77))[0] == 200
    assert desk.carried() == 0
    assert _sends(desk) == 1


def _sends(desk: Desk) -> int:
    return sum(each.request.body.count(b"bizproc.event.send") for each in desk.partner.received)


def test_c19_the_same_event_at_another_time_has_no_effect(desk: Desk) -> None:
    """C19: `ts` is no part of what tells deals apart."""
    for second in range(5):
        assert desk.post(event() | {"ts": int(START) + second})[0] == 200
    assert desk.carried() == 1
    assert len(desk.partner.comments) == 1
    assert desk.published() == ["DealTransferred"]


@pytest.mark.parametrize(
    "document",
    [
        ["crm", "CCrmDocumentLead", "LEAD_5"],
        ["crm", "CCrmDocumentDeal", "DEAL_x"],
        ["crm", "CCrmDocumentDeal", "DEAL_0"],
        ["lists", "BizprocDocument", "5"],
    ],
)
def test_c20_what_is_no_deal_is_kept_aside(desk: Desk, document: list[str]) -> None:
    """C20: 422, and quarantine."""
    assert desk.post(webhook_robot() | {"document_id": document}) == (422, {"error": "not_a_deal"})
    assert desk.quarantined() == ["not_a_deal"]


@pytest.mark.parametrize("document", [["crm", "CCrmDocumentDeal", "DEAL_1", "x"], {"0": {"0": "crm"}}, {"a": "b"}])
def test_c21_a_document_of_another_shape_is_malformed(desk: Desk, document: Any) -> None:
    """C21: too long, nested, named."""
    assert desk.post(webhook_robot() | {"document_id": document})[0] == 400
    assert desk.untouched()


@pytest.mark.parametrize(
    "tree", [event(""), event("0"), event() | {"data": []}, webhook_robot() | {"document_id": ["", "", ""]}]
)
def test_without_a_deal_the_seed_is_answered_as_it_expects(desk: Desk, tree: dict[str, Any]) -> None:
    """`deal_id_required`."""
    assert desk.post(tree) == (422, {"error": "deal_id_required"})


def test_a_placeholder_that_was_typed_by_hand_is_told_of(desk: Desk) -> None:
    """{{ID}} as it stands."""
    assert desk.post(event("{{ID}}")) == (422, {"error": "placeholder_not_replaced"})
    assert desk.post(event(), "?route={{STAGE_ID}}") == (422, {"error": "placeholder_not_replaced"})


def test_a_route_of_nobody_is_refused(desk: Desk) -> None:
    """It would never come anywhere."""
    assert desk.post(event(), "?route=other") == (422, {"error": "route_unknown"})
    assert desk.quarantined() == ["route_unknown"]


def test_c22_the_envelope_carries_only_what_the_transfer_needs(desk: Desk) -> None:
    """C22: 300 KB of properties leave no trace; a body over the limit is 413."""
    properties = {"route": "main", **{f"p{number}": "x" * 1000 for number in range(300)}}
    assert desk.post(app_robot(properties=properties)) == QUEUED
    [message] = desk.relay.queues["deals"].messages.values()
    assert len(message.body) < 1000
    assert desk.post(app_robot(properties={"p": "x" * LIMIT}))[0] == 413


def test_c23_no_secret_in_logs_answers_messages_and_events(desk: Desk) -> None:
    """C23: whatever becomes of the call, dead letters included; of the message only the event_token travels."""
    desk.as_app()
    desk.install()
    tokens = {"access_token": f"{MARK}call-access", "refresh_token": f"{MARK}call-refresh"}
    auth = {**ORIGIN, "application_token": APPLICATION_TOKEN, **tokens}
    told = [desk.post(app_robot(auth=auth)), desk.post(app_robot("x", auth=auth)), desk.post(event(1, **tokens))]
    bodies = "".join(message.body for message in desk.relay.queues["deals"].messages.values())
    desk.partner.faults.add(faults.Html(status=500), faults.Timeout(), faults.CodedError(), faults.Unauthorized())
    desk.carried()
    desk.relay.configure("relay", give_up_after_seconds=900)
    desk.hub.switches.overloaded = True
    assert desk.post(event(desk.deal()))[0] == 200
    desk.relay.run(7200)
    [letter] = desk.relay.dead_letters["deals"].messages.values()
    bodies += repr(letter)
    events = json.dumps(desk.relay.bus.events, default=dict)
    pair = desk.pair()
    secrets = [*tokens.values(), APPLICATION_TOKEN, URL_KEY, HUB_SECRET, APP.client_secret, pair["access_token"]]
    for secret in [*secrets, pair["refresh_token"]]:
        assert secret not in desk.relay.output + json.dumps(told) + bodies + events
    assert EVENT_TOKEN not in desk.relay.output + json.dumps(told) + events


def test_c24_a_fault_of_ours_shows_nothing(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """C24: neither the caller nor the deal's people read an exception's text."""

    def fault(*_: object, **__: object) -> None:
        raise ValueError(f"https://esb.bitrix24.ru/rest/1/{HUB_SECRET}/")

    monkeypatch.setattr(carrier, "hub_deal", fault)
    assert desk.post(event(), "?wait=1") == QUEUED
    desk.relay.run(31)
    assert HUB_SECRET not in desk.relay.output
    assert desk.partner.comments == []
    monkeypatch.undo()
    assert desk.carried() == 1


# What fails


def test_c25_without_the_queue_the_outbox_takes_it(desk: Desk) -> None:
    """C25: 200, since Bitrix24 will not come again."""
    desk.relay.fail("queue.send")
    assert desk.post(event()) == QUEUED
    desk.relay.mend()
    desk.relay.invoke("outbox_drain", {})
    assert desk.carried() == 1


def test_c26_without_both_it_is_503_and_the_sweep_finds_it(desk: Desk) -> None:
    """C26: an alarm; the reconciliation closes the gap within 15 minutes, and says so."""
    desk.relay.invoke("bitrix_sweep", {}, seconds=300)
    deal = desk.deal("C3:NEW")
    desk.partner.move(deal, READY)
    moved = desk.relay.clock.now
    desk.relay.fail("queue.send")
    desk.relay.fail("store.put")
    assert desk.post(event(deal)) == (503, {"error": "nothing_durable"})
    assert desk.relay.metrics["AttentionNeeded"] == 1
    desk.relay.mend()
    for pause in (170, 600):  # at its worst: a sweep comes just before the move is old enough for it
        desk.relay.run(moved + pause - desk.relay.clock.now)
        desk.relay.invoke("bitrix_sweep", {}, seconds=300)
        moved += pause
    desk.relay.run(120)
    [carried] = desk.hub.deals.values()
    assert carried["originId"] == f"deal:{deal}:main"
    assert desk.relay.metrics["Swept"] == 1
    assert [line["deals"] for line in desk.relay.logs if line["message"] == "calls were lost"] == [1]


def test_c27_a_thousand_calls_at_once_are_taken_and_the_limits_kept(desk: Desk) -> None:
    """C27: all accepted within ten seconds; no portal sees more than two requests in any second."""
    deals = [1, *(desk.deal() for _ in range(199))]
    for call in range(1000):
        assert desk.post(event(deals[call % 200]))[0] == 200
        desk.relay.clock.sleep(0.01)
    desk.partner.switches.latency = desk.hub.switches.latency = 0.2
    assert desk.carried() == 200
    for portal in (desk.partner, desk.hub):
        assert busiest([received.at for received in portal.received]) <= 2
    assert {received.status for received in desk.hub.received} == {200}


def test_c28_a_token_that_expires_meanwhile_is_refreshed_once(desk: Desk) -> None:
    """C28: one refresh, one deal."""
    desk.as_app()
    desk.install()
    assert desk.post(event()) == QUEUED
    for grant in desk.relay.oauth._access.values():
        grant.expires_at = desk.relay.clock.now  # before its time
    assert desk.carried() == 1
    assert desk.relay.oauth.refreshes == 2


def test_c29_fifty_workers_refresh_once(desk: Desk) -> None:
    """C29: the others wait for the one, and go on with what it got."""
    desk.as_app()
    desk.install()
    desk.relay.clock.sleep(7200)
    portals = [Portal(desk.relay._runtime("deals"), "partner") for _ in range(50)]
    titles: list[str] = []
    barrier = Barrier(50)

    def work(portal: Portal) -> None:
        barrier.wait()
        for _ in range(50):
            try:
                titles.append(portal.do(items.get(DEAL, 1))["title"])
            except NotExecuted:
                continue
            return

    threads = [Thread(target=work, args=(portal,)) for portal in portals]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert desk.relay.oauth.refreshes == 2  # the installation's was the first
    assert titles


def test_c30_json_of_the_same_shape_is_the_same(desk: Desk) -> None:
    """C30: the seed's own test sends it; numbers may be numbers."""
    body = json.dumps(event(1)).encode()
    for content_type in ("application/json", "application/x-www-form-urlencoded"):
        response = desk.relay.post_call(body, {"Content-Type": content_type})
        assert desk.verdict(response) == QUEUED
    assert desk.carried() == 1


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"[[[", b"a[b", b"\xff\xfe", b'{"auth": []}', b"auth=x", b"\x00"])
def test_what_is_no_call_is_a_client_error(desk: Desk, body: bytes) -> None:
    """Whatever comes to the right address."""
    assert desk.relay.post_call(body).status in (400, 403)
    assert desk.untouched()


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=9),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(
                    ["event", "auth", "data", "FIELDS", "ID", "document_id", "event_token", "domain", "member_id", "0"]
                ),
                inner,
                max_size=5,
            )
        ),
        max_leaves=12,
    )
)
def test_nothing_that_comes_is_an_error_of_ours(tree: Any) -> None:
    """Any JSON at all, with the right proof or without."""
    with Relay() as relay:
        for sent in (tree, event() | tree if isinstance(tree, dict) else tree):
            response = relay.post_call(json.dumps(sent).encode(), {"Content-Type": "application/json"})
            assert response.status < 500


# The sweep


def sweep(desk: Desk) -> Any:
    return desk.relay.invoke("bitrix_sweep", {}, seconds=300)


def test_the_first_sweep_leaves_the_past_alone(desk: Desk) -> None:
    """What was in the stage before us is not ours to carry."""
    desk.relay.clock.sleep(3600)
    assert [sweep(desk), sweep(desk)] == [{"partner": 0}] * 2
    assert desk.carried() == 0


def test_a_sweep_leaves_alone_what_calls_have_told_of(desk: Desk) -> None:
    """It waits for the call of a young move, and knows what the ledger knows."""
    sweep(desk)
    deal = desk.deal("C3:NEW")
    desk.partner.move(deal, READY)
    assert sweep(desk) == {"partner": 0}
    assert desk.post(event(deal))[0] == 200
    assert desk.carried() == 1
    assert [sweep(desk), sweep(desk)] == [{"partner": 0}] * 2


def test_a_sweep_finds_everything_once_however_much_it_is(desk: Desk) -> None:
    """More than a page, deals that moved on meanwhile, and none of other stages."""
    sweep(desk)
    deals = [desk.deal("C3:NEW") for _ in range(120)]
    for deal in deals:
        desk.partner.move(deal, READY)
    desk.partner.move(deals[0], "C3:WON")
    desk.relay.clock.sleep(600)
    assert [sweep(desk), sweep(desk)] == [{"partner": 120}, {"partner": 0}]
    assert desk.carried() == 120


def test_a_portal_that_answers_the_same_page_again_is_not_swept_for_ever(desk: Desk) -> None:
    """It overlooks where the list is to begin; what was found is queued once."""
    sweep(desk)
    for _ in range(50):
        desk.partner.move(desk.deal("C3:NEW"), READY)
    desk.relay.clock.sleep(600)
    methods = desk.partner._methods
    read = methods["crm.stagehistory.list"]

    def overlooks(call: Call) -> Answer:
        filters = {name: value for name, value in call.params["filter"].items() if not name.startswith(">")}
        return read.run(replace(call, params={**call.params, "filter": filters}))

    methods["crm.stagehistory.list"] = Method(overlooks, read.scopes)
    assert sweep(desk) == {"partner": None}
    assert desk.carried() == 50


def test_a_sweep_that_breaks_off_goes_on_where_it_was(desk: Desk) -> None:
    """The portal, the queue or the process fails: nothing is left out, nothing is carried twice."""
    sweep(desk)
    for _ in range(60):
        desk.partner.move(desk.deal("C3:NEW"), READY)
    desk.relay.clock.sleep(600)
    desk.partner.faults.add(faults.Reset())
    assert sweep(desk) == {"partner": None}
    desk.relay.fail("queue.send", times=1, after=True, error=Crash())
    with pytest.raises(Crash):
        sweep(desk)
    desk.relay.mend()
    sweep(desk)
    assert desk.carried() == 60


def moved(desk: Desk) -> int:
    """A deal comes to the stage, and nobody tells of it."""
    deal = desk.deal("C3:NEW")
    desk.partner.move(deal, READY)
    return deal


def test_a_deal_that_moved_on_while_there_was_no_sweep_is_carried(desk: Desk) -> None:
    """The schedule stood still for days: a sweep's order is as old as the move."""
    sweep(desk)
    deal = moved(desk)
    desk.relay.clock.sleep(60)
    desk.partner.move(deal, "C3:NEW")
    desk.relay.clock.sleep(3 * 86_400)
    assert sweep(desk) == {"partner": 1}
    assert desk.carried() == 1


def test_what_was_given_up_is_an_operators_until_its_deal_comes_to_the_stage_once_more(desk: Desk) -> None:
    """Its message is among the dead letters; sent again or queued anew, the deal is carried once."""
    desk.relay.configure("relay", give_up_after_seconds=900)
    sweep(desk)
    deal = moved(desk)
    desk.post(event(deal))
    desk.hub.switches.overloaded = True
    desk.relay.run(7200)
    [letter] = desk.relay.dead_letters["deals"].messages.values()
    desk.hub.switches.overloaded = False
    assert sweep(desk) == {"partner": 0}
    assert desk.carried() == 0
    desk.partner.move(deal, "C3:NEW")
    desk.partner.move(deal, READY)
    desk.relay.clock.sleep(600)
    assert sweep(desk) == {"partner": 1}
    desk.relay.queues["deals"].send(letter.body)
    assert desk.carried() == 1


def test_a_deal_that_was_refused_is_tried_again_when_it_comes_once_more(desk: Desk) -> None:
    """Not before: it was told of."""
    sweep(desk)
    deal = moved(desk)
    portal = desk.hub.portal
    fields = {**portal.user_fields, DEAL: tuple(replace(each, required=True) for each in portal.user_fields[DEAL])}
    desk.hub.portal = replace(portal, user_fields=fields)
    desk.post(event(deal))
    desk.relay.run(600)
    assert desk.published() == ["DealTransferFailed"]
    desk.hub.portal = portal
    assert sweep(desk) == {"partner": 0}
    desk.partner.move(deal, "C3:NEW")
    desk.partner.move(deal, READY)
    desk.relay.clock.sleep(600)
    assert sweep(desk) == {"partner": 1}
    assert desk.carried() == 1


@pytest.mark.parametrize("on_repeat", ["nothing", "update"])
def test_a_carried_deal_that_comes_once_more_is_a_gap_where_the_route_updates(desk: Desk, on_repeat: Any) -> None:
    """Its call got lost like any other."""
    route = msgspec.structs.replace(desk.relay.settings.bitrix24.routes["main"], on_repeat=on_repeat)
    desk.relay.configure("bitrix24", routes={"main": route})
    sweep(desk)
    deal = moved(desk)
    desk.post(event(deal))
    desk.carried()
    assert sweep(desk) == {"partner": 0}
    desk.partner.move(deal, "C3:NEW")
    desk.partner.change(deal, title="Двери")
    desk.partner.move(deal, READY)
    desk.relay.clock.sleep(600)
    updates = on_repeat == "update"
    assert sweep(desk) == {"partner": int(updates)}
    assert desk.carried() == 1
    assert desk.hub.deals[1]["title"] == ("Двери" if updates else "Окна")


@pytest.mark.parametrize("ahead", [-7200, 7200])
def test_a_portal_whose_clock_is_wrong_is_swept_in_time(desk: Desk, ahead: float) -> None:
    """Its history is of its own time."""
    sweep(desk)
    desk.partner.items._clock = lambda: desk.relay.clock.now + ahead
    deals = {moved(desk) for _ in range(3)}
    queued = 0
    for _ in range(2):
        desk.relay.clock.sleep(400)
        queued += sweep(desk)["partner"]
    assert queued == len(deals)
    assert desk.carried() == len(deals)


def test_two_sweeps_at_once_carry_each_deal_once(desk: Desk) -> None:
    """The schedule is at least once; what one has found, the other may find too."""
    sweep(desk)
    for _ in range(60):
        moved(desk)
    desk.relay.clock.sleep(600)
    calls = 0

    def second(name: str) -> None:
        nonlocal calls
        calls += name == "queue.send_all"
        if calls == 1:
            calls += 1
            sweep(desk)

    desk.relay.before_call = second
    sweep(desk)
    assert desk.carried() == 60
    assert len(desk.partner.comments) == 60
    assert sweep(desk) == {"partner": 0}


def test_a_portal_that_refuses_costs_the_others_nothing(desk: Desk) -> None:
    """Each has its own place in its history; whoever can mend it is told."""
    settings = desk.relay.settings.bitrix24
    other, unknown = (
        msgspec.structs.replace(settings.portals["partner"], member_id=digit * 32, host=PARTNER.domain)
        for digit in "01"
    )
    route = msgspec.structs.replace(settings.routes["main"], source="other")
    portals = {"other": other, "without_key": unknown, **settings.portals}
    routes = {"other": route, "third": msgspec.structs.replace(route, source="without_key"), **settings.routes}
    wrong = f"https://{PARTNER.domain}/rest/1/wrong/"
    desk.relay.bitrix_secrets["other"] = msgspec.structs.replace(
        desk.relay.bitrix_secrets["partner"], webhook_url=wrong
    )
    desk.relay.configure("bitrix24", portals=portals, routes=routes)
    assert sweep(desk) == {"other": None, "without_key": None, "partner": 0}
    moved(desk)
    desk.relay.clock.sleep(600)
    assert sweep(desk) == {"other": None, "without_key": None, "partner": 1}
    assert desk.carried() == 1
    assert "portal not configured" in [line["message"] for line in desk.relay.logs]
