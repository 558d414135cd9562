"""The sample events: their functions accept them, and `relay sign` and `relay send` do with them what they say."""

import base64
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from samtranslator.yaml_helper import yaml_parse
from typer.testing import CliRunner, Result

from amo_webhook import authorize, upkeep
from bitrix_robot import sweep
from crm_relay.delivery.envelope import Envelope
from tests.canaries import MARK
from tests.gateway import Response
from tests.relay import (
    AMO_SECRET,
    API_KEY,
    APPLICATION_TOKEN,
    CALLBACK_SECRET,
    HANDLERS,
    HOOK_TOKEN,
    LEAD_KEY,
    URL_KEY,
    Clock,
    Relay,
)
from workbench import events
from workbench.cli import app
from workbench.cli.world import ROOT, World
from workbench.events import Json, MissingKey, Trigger, UnknownEvent
from workbench.sandboxes.amocrm.account import KINDS
from workbench.sandboxes.bitrix24 import READY, add_whole_deal

KEYS = {
    "lead_api_key": LEAD_KEY,
    "cartelcrm_callback_secret": CALLBACK_SECRET,
    "amocrm_hook_token": HOOK_TOKEN,
    "amocrm_client_id": "client",
    "amocrm_client_secret": AMO_SECRET,
    "bitrix24_url_key": URL_KEY,
    "bitrix24_application_token": APPLICATION_TOKEN,
}
NAMES = events.names()
CALLBACKS = [name for name in NAMES if name.startswith("callback_receiver/lead_")]
HOOKS = [name for name in NAMES if events.load(name).get("routeKey", "").startswith("POST /amo/")]
CALLS = [name for name in NAMES if events.load(name).get("routeKey", "").startswith("POST /bitrix/")]
CALLS_ABOUT_A_DEAL = [name for name in CALLS if "installed" not in name and "not_filled_in" not in name]
RECEIVERS = {
    "callback_receiver": "callback_receive",
    "lead_submitter": "lead_api",
    "amo_webhook": "amo_receive",
    "bitrix_robot": "bitrix_receive",
}
WORKERS = {
    "callback_receiver": "callback_process",
    "lead_submitter": "lead_submit",
    "amo_webhook": "amo_notes",
    "bitrix_robot": "bitrix_transfer",
    "outbox": "outbox_drain",
}


def signed(relay: Relay, event: Json, *, keys: events.Keys = KEYS, replay: bool = False) -> Json:
    return events.signed(event, keys, now=relay.clock.time(), replay=replay)


def play(relay: Relay, name: str) -> Any:
    """Hand an event to its function; return its answer."""
    event, folder = events.load(name), name.partition("/")[0]
    if events.trigger(event) is Trigger.HTTP:
        return Response.of(relay.invoke(RECEIVERS[folder], signed(relay, event)))
    return relay.invoke(WORKERS[folder], event)


# Each is accepted by the function that it is named for


def test_every_trigger_of_the_template_has_an_event() -> None:
    """A route by itself, a queue and a schedule by the folder of its function."""
    here = {(Trigger.HTTP, event["routeKey"]) for event in map(events.load, NAMES) if "routeKey" in event}
    here |= {(events.trigger(events.load(name)), name.partition("/")[0]) for name in NAMES}
    kinds = {"SQS": Trigger.QUEUE, "Schedule": Trigger.INVOKE, "ScheduleV2": Trigger.INVOKE}
    wanted = set()
    for resource in yaml_parse((ROOT / "template.yaml").read_text("utf-8"))["Resources"].values():
        folder = resource["Properties"].get("Handler", "").partition(".")[0]
        for source in resource["Properties"].get("Events", {}).values():
            if source["Type"] == "HttpApi":
                wanted.add((Trigger.HTTP, f"{source['Properties']['Method']} {source['Properties']['Path']}"))
            else:
                wanted.add((kinds[source["Type"]], folder))
    assert len(wanted) > 6
    assert wanted <= here


@pytest.mark.parametrize("name", CALLBACKS)
def test_a_callback_is_taken_and_published(relay: Relay, name: str) -> None:
    """With the status that the file is named for; other words are kept as they came."""
    response = play(relay, name)
    assert (response.status, response.json()) == (200, {"ok": True})
    relay.run(200)
    word = name.removeprefix("callback_receiver/lead_")
    [(_, published)] = relay.bus.events
    assert published["status"] == ("approved" if word == "in_other_words" else word)


def test_a_queued_callback_is_done(relay: Relay) -> None:
    assert play(relay, "callback_receiver/callback_queued") == {"batchItemFailures": []}
    assert relay.effects("CartelCallback") == 1


def test_a_posted_lead_is_accepted_and_can_be_asked_for(relay: Relay) -> None:
    assert play(relay, "lead_submitter/post_lead").json()["status"] == "accepted"
    assert play(relay, "lead_submitter/get_lead").json()["status"] == "accepted"
    assert play(relay, "lead_submitter/lead_status").json()["lead_status"] == "new"


def test_the_known_phone_is_that_of_the_first_lead(relay: Relay) -> None:
    first = play(relay, "lead_submitter/post_lead").json()
    second = play(relay, "lead_submitter/post_lead_known_phone").json()
    assert second == {"external_id": "web-1002", "status": "duplicate", "id": first["id"]}


def test_the_unwanted_lead_is_refused_by_the_crm(relay: Relay) -> None:
    response = play(relay, "lead_submitter/post_lead_unwanted")
    assert (response.status, response.json()["reason"]) == (422, "blacklisted")


@pytest.mark.parametrize("name", ["lead_submitter/lead_queued", "lead_submitter/lead_submitted"])
def test_a_lead_in_the_queue_is_submitted(relay: Relay, name: str) -> None:
    assert play(relay, name) == {"batchItemFailures": []}
    assert len(relay.crm.leads) == 1


def test_a_lead_given_by_hand_is_accepted(relay: Relay) -> None:
    assert play(relay, "lead_submitter/direct_invoke")["status"] == "accepted"


@pytest.mark.parametrize("name", HOOKS)
def test_a_hook_becomes_a_note_in_each_card(relay: Relay, name: str) -> None:
    """The events are about the first leads, contact and company that a sandbox has."""
    sandbox = relay.amo
    sandbox.add("leads", copies=3, name="Окна на кухню")
    sandbox.add("contacts", name="Оля Петренко")
    sandbox.add("companies", name="Окна и двери")
    assert play(relay, name).json() == {"ok": True}
    relay.run(60)
    cards = [sandbox.card(kind, id_) for kind in KINDS for id_ in sandbox.entities.present[kind]]
    assert sum(len(card.notes) + card.hidden for card in cards) == (3 if "in_bulk" in name else 1)


def test_a_queued_change_becomes_a_note(relay: Relay) -> None:
    [lead] = relay.amo.add("leads", name="Окна на кухню")
    assert play(relay, "amo_webhook/change_queued") == {"batchItemFailures": []}
    assert len(relay.amo.card("leads", lead.id).notes) == 1


@pytest.fixture
def integrated(relay: Relay, monkeypatch: pytest.MonkeyPatch) -> Relay:
    """The relay with an OAuth integration and the functions that belong to it."""
    monkeypatch.setitem(HANDLERS, "amo_authorize", ("notes", authorize.handler))
    monkeypatch.setitem(HANDLERS, "amo_upkeep", ("notes", upkeep.handler))
    for name, value in {"TABLE_NAME": "table", "RELAY_CONFIG": "relay.toml", "API_URL": "https://relay.test"}.items():
        monkeypatch.setenv(name, value)
    secrets = relay.secret_source()
    account = msgspec.structs.replace(
        secrets.amocrm["main"],
        client_id=KEYS["amocrm_client_id"],
        client_secret=KEYS["amocrm_client_secret"],
        redirect_uri="https://relay.test/amo/oauth",
    )
    relay.secret_source = lambda: msgspec.structs.replace(secrets, amocrm={"main": account})
    return relay


def test_who_refuses_consent_reads_a_page(integrated: Relay) -> None:
    event = signed(integrated, events.load("amo_webhook/consent_refused"))
    answer = Response.of(integrated.invoke("amo_authorize", event))
    assert answer.status == 400
    assert answer.headers["content-type"].startswith("text/html")


def test_amocrm_tells_of_a_disconnected_account(integrated: Relay) -> None:
    unsigned = events.load("amo_webhook/disconnected")
    assert Response.of(integrated.invoke("amo_authorize", unsigned)).status == 403
    answer = Response.of(integrated.invoke("amo_authorize", signed(integrated, unsigned)))
    assert (answer.status, answer.json()) == (200, {"ok": True})


def test_the_schedule_makes_the_missing_hook(integrated: Relay) -> None:
    assert integrated.invoke("amo_upkeep", events.load("amo_webhook/upkeep"), seconds=300) == {"main": "repaired"}
    assert list(integrated.amo.hooks.subscriptions) == [f"https://relay.test/amo/{HOOK_TOKEN}"]


@pytest.fixture
def robotless(relay: Relay) -> Relay:
    """The relay with a deal in the route's stage of which no robot tells: events are about a portal's first deal."""
    relay.partner.portal = replace(relay.partner.portal, webhook_robots=())
    add_whole_deal(relay.partner, stage=READY)
    return relay


@pytest.mark.parametrize("name", CALLS_ABOUT_A_DEAL)
def test_a_call_carries_the_deal(robotless: Relay, name: str) -> None:
    answer = play(robotless, name)
    assert (answer.status, answer.json()["success"]) == (200, True)
    robotless.run(120)
    [deal] = robotless.hub.deals.values()
    assert (deal["UF_SOURCE_DEAL_ID"], len(deal.rows)) == (1, 3)


def test_who_waits_is_told_the_hubs_deal(robotless: Relay) -> None:
    """As in the seed's way, with the proof that it did not ask for."""
    answer = play(robotless, "bitrix_robot/test_call").json()
    assert answer["esb_deal_id"] in robotless.hub.deals


def test_a_robot_whose_form_was_not_filled_in_is_told_so(robotless: Relay) -> None:
    answer = play(robotless, "bitrix_robot/robot_not_filled_in")
    assert (answer.status, answer.json()) == (422, {"error": "placeholder_not_replaced"})


def test_an_installation_is_not_believed(robotless: Relay) -> None:
    """Its refresh token is no portal's: only a real one is known to the authorization server."""
    secrets = robotless.secret_source()
    partner = msgspec.structs.replace(secrets.bitrix24["partner"], client_id="client", client_secret=f"{MARK}app")
    robotless.secret_source = lambda: msgspec.structs.replace(secrets, bitrix24={"partner": partner})
    answer = play(robotless, "bitrix_robot/app_installed")
    assert (answer.status, answer.json()) == (403, {"error": "installation_not_proven"})


def test_an_uninstalled_app_is_told_of(robotless: Relay) -> None:
    assert play(robotless, "bitrix_robot/app_uninstalled").json() == {"success": True}
    assert robotless.metrics["AttentionNeeded"] == 1


def test_a_queued_call_carries_the_deal(robotless: Relay) -> None:
    assert play(robotless, "bitrix_robot/transfer_queued") == {"batchItemFailures": []}
    assert len(robotless.hub.deals) == 1


def test_the_schedule_finds_the_deal_that_no_call_told_of(robotless: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first sweep only notes where it begins."""
    monkeypatch.setitem(HANDLERS, "bitrix_sweep", ("deals", sweep.handler))
    event = events.load("bitrix_robot/sweep")
    assert robotless.invoke("bitrix_sweep", event, seconds=300) == {"partner": 0}
    missed = add_whole_deal(robotless.partner, stage=READY)
    robotless.clock.sleep(600)
    assert robotless.invoke("bitrix_sweep", event, seconds=300) == {"partner": 1}
    robotless.run(120)
    assert [deal["UF_SOURCE_DEAL_ID"] for deal in robotless.hub.deals.values()] == [missed.id]


def test_the_schedule_drains_an_empty_outbox(relay: Relay) -> None:
    assert play(relay, "outbox/drain") == {"sent": 0, "failed": 0}


def test_leads_do_not_get_into_each_others_way(relay: Relay) -> None:
    """Played one after the other, only the lead with the known phone is a duplicate."""
    for name in NAMES:
        if name.startswith("lead_submitter/") and name not in ("lead_submitter/get_lead", "lead_submitter/lead_status"):
            play(relay, name)
    assert [lead.external_id for lead in relay.crm.leads.values()] == [
        "invoke-4001",
        "queue-3001",
        "bus-2001",
        "web-1001",
    ]


# They are what AWS would send


@pytest.mark.parametrize("name", [name for name in NAMES if "Records" in events.load(name)])
def test_a_message_is_whole(name: str) -> None:
    """Its digest is right, and an envelope's own digest is that of what it carries."""
    for record in events.load(name)["Records"]:
        assert record["md5OfBody"] == hashlib.md5(record["body"].encode(), usedforsecurity=False).hexdigest()
        if events.bus_event(record["body"]):
            continue
        envelope = Envelope.decode(record["body"])
        carried: Any = envelope.payload["body"] if envelope.kind == "cartelcrm.lead" else envelope.payload
        text = carried if isinstance(carried, str) else json.dumps(carried, ensure_ascii=False, separators=(",", ":"))
        assert envelope.sha256 == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize("name", [name for name in NAMES if "requestContext" in events.load(name)])
def test_a_request_agrees_with_its_context(name: str) -> None:
    event = events.load(name)
    context = event["requestContext"]
    assert event["routeKey"] == context["routeKey"]
    assert (context["http"]["method"], context["http"]["path"]) == (event["routeKey"].split()[0], event["rawPath"])
    assert all(header == header.lower() for header in event["headers"])


# Signing


def test_as_it_lies_there_a_callback_is_refused(relay: Relay) -> None:
    """No file holds a proof that anybody could use."""
    assert relay.receive(events.load(CALLBACKS[0])).status == 401


def test_a_signature_by_another_secret_is_forged(relay: Relay) -> None:
    forged = signed(relay, events.load(CALLBACKS[0]), keys={"cartelcrm_callback_secret": "another"})
    assert relay.receive(forged).json() == {"error": "bad_signature"}


def test_signed_anew_a_callback_is_a_new_one(relay: Relay) -> None:
    event = events.load(CALLBACKS[0])
    assert relay.receive(signed(relay, event)).json() == {"ok": True}
    relay.clock.sleep(1)
    assert relay.receive(signed(relay, event)).json() == {"ok": True}


def test_replayed_it_is_not(relay: Relay) -> None:
    """`replay` makes the header fresh and leaves the body alone."""
    event = signed(relay, events.load(CALLBACKS[0]))
    assert relay.receive(event).json() == {"ok": True}
    relay.clock.sleep(400)
    again = signed(relay, event, replay=True)
    assert again["body"] == event["body"]
    assert relay.receive(again).json() == {"ok": True, "replay": True}


def test_a_body_in_base64_stays_so(relay: Relay) -> None:
    event = events.load(CALLBACKS[0])
    event = {**event, "body": base64.b64encode(event["body"].encode()).decode(), "isBase64Encoded": True}
    again = signed(relay, event)
    assert again["isBase64Encoded"] is True
    assert relay.receive(again).json() == {"ok": True}


@pytest.mark.parametrize("body", ["[1]", "no json", '{"internal_id":"1"}'])
def test_whatever_the_body_is_it_can_be_signed(relay: Relay, body: str) -> None:
    """The receiver is to be tried with bad bodies, too."""
    event = signed(relay, {**events.load(CALLBACKS[0]), "body": body})
    assert event["body"] == body
    assert relay.receive(event).status in (400, 422)


def test_what_needs_no_proof_stays_as_it_is(relay: Relay) -> None:
    event = events.load("outbox/drain")
    assert signed(relay, event, keys={}) == event


def test_a_key_that_is_not_there_is_named(relay: Relay) -> None:
    with pytest.raises(MissingKey, match="lead_api_key"):
        signed(relay, events.load("lead_submitter/post_lead"), keys={})


# Finding


def test_an_event_is_found_by_name_and_by_path(tmp_path: Path) -> None:
    own = tmp_path / "own.json"
    own.write_text("{}")
    assert (
        events.find("outbox/drain")
        == events.find("outbox/drain.json")
        == events.find(str(events.FOLDER / "outbox/drain.json"))
    )
    assert events.load(str(own)) == {}


def test_an_event_that_is_not_there_gets_a_list_of_those_that_are() -> None:
    with pytest.raises(UnknownEvent, match="outbox/drain"):
        events.load("outbox/drian")


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_file_that_holds_no_event_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "own.json").write_text(text)
    with pytest.raises(UnknownEvent, match=r"own\.json"):
        events.load(str(tmp_path / "own.json"))


# The commands


class Stack:
    """A `relay start` that notes what it is asked; `answers` by path."""

    def __init__(self, state: Path) -> None:
        self.asked: list[httpx.Request] = []
        self.answers: dict[str, tuple[int, Json]] = {}
        self.clock = Clock()
        self.world = World(state=state, clock=self.clock, transport=httpx.MockTransport(self._answer))
        known = {
            "url": "http://127.0.0.1:3000",
            "control": "http://127.0.0.1:4000",
            "secrets": KEYS | {"other": API_KEY},
        }
        self.world.local.write_text(json.dumps(known))

    def __call__(self, *arguments: str, **environment: str) -> Result:
        return CliRunner().invoke(app, arguments, obj=self.world, env=environment)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        status, answer = self.answers.get(request.url.path, (200, {"ok": True, "message_id": "m-1", "event_id": "e-1"}))
        return httpx.Response(status, json=answer)


@pytest.fixture
def stack(tmp_path: Path) -> Stack:
    return Stack(tmp_path)


@pytest.fixture
def without_a_stack(tmp_path: Path) -> Callable[..., Result]:
    return lambda *arguments, **environment: CliRunner().invoke(
        app, arguments, obj=World(state=tmp_path), env=environment
    )


def test_sign_prints_an_event_that_the_receiver_takes(relay: Relay, stack: Stack) -> None:
    result = stack("sign", "callback_receiver/lead_approved")
    assert result.exit_code == 0
    assert relay.receive(json.loads(result.stdout)).json() == {"ok": True}


def test_sign_takes_keys_from_the_environment(relay: Relay, without_a_stack: Callable[..., Result]) -> None:
    """Then it needs no stack; the time is that of this machine."""
    result = without_a_stack("sign", "lead_submitter/post_lead.json", "--secret-from", "env", RELAY_API_KEY=LEAD_KEY)
    assert Response.of(relay.invoke("lead_api", json.loads(result.stdout))).status == 200


def test_sign_says_which_variable_it_wants(without_a_stack: Callable[..., Result]) -> None:
    result = without_a_stack("sign", "callback_receiver/lead_approved", "--secret-from", "env")
    assert result.exit_code == 1
    assert "CARTELCRM_CALLBACK_SECRET" in result.stderr


@pytest.mark.parametrize("command", ["send", "sign", "status"])
def test_without_a_stack_it_says_how_to_start_one(without_a_stack: Callable[..., Result], command: str) -> None:
    result = without_a_stack(command, *(["outbox/drain"] if command != "status" else []))
    assert result.exit_code == 1
    assert "make start" in result.stderr


def test_send_posts_a_request_signed_afresh(relay: Relay, stack: Stack) -> None:
    stack.answers["/leads/web-1001"] = (404, {"error": "not_found"})
    assert stack("send", "callback_receiver/lead_approved").exit_code == 0
    request = stack.asked[-1]
    assert (request.method, str(request.url)) == ("POST", "http://127.0.0.1:3000/cartelcrm/callback")
    assert relay.post_callback(request.content, dict(request.headers)).json() == {"ok": True}


def test_send_lets_a_callback_tell_of_the_lead_that_it_names(stack: Stack) -> None:
    """The file cannot know the id that this stack's CartelCRM has given it."""
    stack.answers["/leads/web-1001"] = (200, {"external_id": "web-1001", "status": "accepted", "id": "c0ffee"})
    assert stack("send", "callback_receiver/lead_approved").exit_code == 0
    assert json.loads(stack.asked[-1].content)["internal_id"] == "c0ffee"


def test_send_shows_a_refusal_and_fails(stack: Stack) -> None:
    stack.answers["/leads"] = (422, {"error": "rejected", "reason": "blacklisted"})
    result = stack("send", "lead_submitter/post_lead_unwanted")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["reason"] == "blacklisted"


def test_send_puts_a_message_into_its_queue(stack: Stack) -> None:
    assert "m-1" in stack("send", "lead_submitter/lead_queued").stdout
    assert stack.asked[-1].url.path == "/queues/crm-relay-local-leads"
    assert Envelope.decode(stack.asked[-1].content.decode()).key == "queue-3001"


def test_send_puts_an_event_onto_the_bus(stack: Stack) -> None:
    assert "e-1" in stack("send", "lead_submitter/lead_submitted").stdout
    assert stack.asked[-1].url.path == "/bus"
    assert json.loads(stack.asked[-1].content)["detail"]["external_id"] == "bus-2001"


@pytest.mark.parametrize("name", ["lead_submitter/direct_invoke", "outbox/drain"])
def test_send_invokes_a_function_with_anything_else(stack: Stack, name: str) -> None:
    assert json.loads(stack("send", name).stdout)["ok"] is True
    assert stack.asked[-1].url.path == f"/functions/{name.partition('/')[0]}"
    assert json.loads(stack.asked[-1].content) == events.load(name)


def test_send_says_why_the_stack_could_not(stack: Stack) -> None:
    stack.answers["/functions/outbox"] = (502, {"error": "Sandbox.Timedout: too slow"})
    result = stack("send", "outbox/drain")
    assert result.exit_code == 1
    assert "too slow" in result.stderr


def test_no_command_shows_a_key(stack: Stack) -> None:
    """`sign` alone puts the key for leads into what it prints: that is its job."""
    stack.answers["/leads/web-1001"] = (404, {"error": "not_found"})
    for name in NAMES:
        result = stack("send", name)
        assert not any(key in result.output for key in (LEAD_KEY, CALLBACK_SECRET, API_KEY))
