"""Leads, from whoever gives them to CartelCRM's verdict, through the real handlers: exactly once, whatever happens."""

import hashlib
import hmac
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from email.utils import formatdate
from functools import partial
from http import HTTPStatus
from itertools import pairwise
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crm_relay.delivery.envelope import Envelope
from crm_relay.delivery.memory import Message
from crm_relay.delivery.ports import Clock
from crm_relay.http_client import RESPONSE_LIMIT
from crm_relay.settings import CartelCrmSecrets, Secrets
from lead_submitter import api, lead, submission
from tests.gateway import Response, http_event
from tests.relay import API_KEY, HMAC_SECRET, LEAD_KEY, START, Crash, Relay
from workbench.sandboxes import cartelcrm, faults
from workbench.sandboxes.rates import busiest
from workbench.sandboxes.wire import SandboxRequest, SandboxResponse

DAY = 86_400
PAUSE = 300


def one(number: int = 1, **fields: object) -> dict[str, object]:
    """A lead as a website gives it."""
    return {"external_id": f"e{number}", "phone": f"+38050{1_234_500 + number}", "country": "UA", **fields}


def body_of(given: Mapping[str, object]) -> bytes:
    return lead.read_lead(given).body().encode()


class Desk:
    """A relay without callbacks, at a CartelCRM that takes every lead which does not repeat an Idempotency-Key."""

    def __init__(self, relay: Relay) -> None:
        self.relay = relay

    def post(self, given: Mapping[str, object] | None = None, **headers: str) -> Response:
        return self.relay.post_lead(one() if given is None else given, **headers)

    def queue(self, *leads: Mapping[str, object]) -> None:
        """Give leads to the queue alone."""
        for each in leads:
            assert self.post(each, prefer="respond-async").status == 202

    def work(self, *, seconds: float = 120) -> list[str]:
        """One invocation of the worker with what is visible; return the external_ids whose messages stay."""
        queue = self.relay.queues["leads"]
        batch = queue.receive(limit=10, visibility=720)
        answer = self.relay.invoke("lead_submit", records(batch), seconds=seconds)
        kept = {failure["itemIdentifier"] for failure in answer["batchItemFailures"]}
        for message in batch:
            if message.id not in kept:
                queue.delete(message.id)
        return [json.loads(message.body)["key"] for message in batch if message.id in kept]

    def requests(self, method: str = "POST") -> list[SandboxRequest]:
        return [received.request for received in self.relay.crm.received if received.request.method == method]

    def keys(self) -> list[str]:
        return [request.headers["idempotency-key"] for request in self.requests()]

    def effect(self, external_id: str = "e1") -> Mapping[str, Any]:
        return self.relay.items("effect#")[f"effect#cartelcrm.lead#{external_id}"]

    def verdict(self, external_id: str = "e1") -> tuple[str, str | None]:
        """The state of an effect, and the verdict in its result."""
        effect = self.effect(external_id)
        return effect["state"], (effect["result"] or {}).get("status")

    @property
    def created(self) -> list[str]:
        """The external_ids of the leads that CartelCRM has made."""
        return [made.external_id for made in self.relay.crm.leads.values()]

    @property
    def delay(self) -> float:
        """Seconds until the next message can be seen."""
        visible = [message.visible_at for message in self.relay.queues["leads"].messages.values()]
        return min(visible) - self.relay.clock.now

    @property
    def dead(self) -> list[str | None]:
        return [message.reason for message in self.relay.dead_letters["leads"].messages.values()]

    def redrive(self) -> None:
        """Send the dead letters again."""
        letters = self.relay.dead_letters["leads"].messages
        for message in letters.values():
            self.relay.queues["leads"].send(message.body)
        letters.clear()


def records(messages: list[Message]) -> dict[str, Any]:
    return {"Records": [message.record() for message in messages]}


TERMS: dict[str, Any] = {"callback_url": None, "duplicate_by": frozenset()}
"""CartelCRM makes a lead of everything whose Idempotency-Key is new: a relay that is careless makes two."""


@pytest.fixture
def desk() -> Iterator[Desk]:
    with Relay(**TERMS) as relay:
        yield Desk(relay)


# POST /leads


def test_a_lead_is_accepted_while_its_caller_waits(desk: Desk) -> None:
    """200 with CartelCRM's id; the message in the queue is seen later and finds it settled."""
    answer = desk.post()
    assert desk.delay == 30
    (made,) = desk.relay.crm.leads.values()
    assert (answer.status, answer.json()) == (200, {"external_id": "e1", "status": "accepted", "id": made.id})
    desk.relay.run(60)
    assert len(desk.requests()) == 1
    assert not desk.relay.queues["leads"].messages


def test_a_lead_is_sent_as_the_contract_says(desk: Desk) -> None:
    """Normalised, compact, signed; the signature is of the very bytes."""
    desk.post({"external_id": "e1", "phone": "050 123 45 67", "country": "ua", "first_name": "Оля/😀", "utm": [1]})
    (request,) = desk.requests()
    assert request.path == "/api/v1/inbound/leads"
    assert request.body.decode() == (
        '{"external_id":"e1","country":"UA","phone":"+380501234567","first_name":"Оля/😀","utm":[1]}'
    )
    assert request.headers["authorization"] == f"Bearer {API_KEY}"
    assert request.headers["x-signature"] == "sha256=" + hmac.digest(HMAC_SECRET.encode(), request.body, "sha256").hex()
    assert request.headers["x-timestamp"] == str(int(START))
    assert request.headers["content-type"] == "application/json"


def test_a_duplicate_is_a_verdict_with_the_id_of_the_lead_that_exists() -> None:
    """200: somebody else has brought this phone before."""
    with Relay(callback_url=None) as relay:
        desk = Desk(relay)
        first = desk.post(one(1)).json()["id"]
        answer = desk.post(one(1, external_id="other"))
        assert (answer.status, answer.json()) == (200, {"external_id": "other", "status": "duplicate", "id": first})
        assert relay.get_lead("other").json() == {"external_id": "other", "status": "duplicate", "id": first}


def test_a_rejected_lead_is_a_problem_with_the_crms_reason(desk: Desk) -> None:
    """422: it will not get better by being sent again."""
    answer = desk.post(one(phone="+380501230000"))
    assert answer.status == 422
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert (problem["external_id"], problem["status"], problem["error"]) == ("e1", 422, "rejected")
    assert problem["reason"] == "blacklisted"
    desk.relay.run(60)
    assert len(desk.requests()) == 1
    assert desk.relay.store.attention("REJECTED", limit=1) == ["effect#cartelcrm.lead#e1"]


@pytest.mark.parametrize("phone", ["+380501234567", "+380501230000"])
def test_the_same_lead_again_gets_the_stored_verdict(desk: Desk, phone: str) -> None:
    """In the same words or in others that mean the same: no second call to CartelCRM."""
    first = desk.post(one(phone=phone))
    again = desk.post({"phone": f" {phone} ", "external_id": " e1 ", "country": "ua"})
    assert (again.status, again.json()) == (first.status, first.json())
    desk.relay.clock.sleep(40 * DAY)
    late = desk.post(one(phone=phone))
    assert (late.status, late.json()) == (first.status, first.json())
    assert len(desk.requests()) == 1


def test_another_lead_under_a_known_id_is_a_conflict(desk: Desk) -> None:
    """409, and nothing is sent; also when it is only in the ledger that the id is known."""
    desk.post()
    for wait in (0, 40 * DAY):
        desk.relay.clock.sleep(wait)
        for prefer in ("", "respond-async"):
            answer = desk.post(one(first_name="Other"), prefer=prefer)
            assert (answer.status, answer.json()["error"]) == (409, "other_lead_with_this_external_id")
            assert answer.headers["content-type"] == "application/problem+json"
    assert len(desk.requests()) == 1


@pytest.mark.parametrize(
    "fault",
    [
        faults.RateLimited(),
        faults.RateLimited(retry_after=7),
        faults.CodedError(),
        faults.Timeout(),
        faults.Reset(),
        faults.Html(status=502),
        faults.Replaced(),
        faults.Drip(),
        faults.Unauthorized(),
        faults.Redirect(),
    ],
    ids=lambda fault: fault.kind,
)
def test_a_lead_that_cannot_be_settled_now_is_queued(desk: Desk, fault: faults.Fault) -> None:
    """202 within the caller's patience; the queue settles it, once."""
    desk.relay.crm.faults.add(fault)
    answer = desk.post()
    assert (answer.status, answer.json()) == (202, {"external_id": "e1", "status": "queued"})
    assert desk.relay.clock.now - START < 20
    assert desk.relay.get_lead("e1").json() == {"external_id": "e1", "status": "queued"}
    desk.relay.run(3600)
    assert desk.relay.get_lead("e1").json()["status"] == "accepted"
    assert desk.created == ["e1"]


@pytest.mark.parametrize("prefer", ["respond-async", "respond-async, wait=10", "return=minimal, Respond-Async"])
def test_a_caller_in_a_hurry_is_not_made_to_wait(desk: Desk, prefer: str) -> None:
    """202 at once without a call to CartelCRM; the queue does it, without delay."""
    answer = desk.post(prefer=prefer)
    assert (answer.status, answer.json()) == (202, {"external_id": "e1", "status": "queued"})
    assert not desk.requests()
    desk.relay.run()
    assert desk.created == ["e1"]


def test_a_caller_in_a_hurry_gets_a_verdict_that_is_there(desk: Desk) -> None:
    """What is settled is told, whoever asks and how."""
    first = desk.post()
    assert desk.post(prefer="respond-async").json() == first.json()


def test_a_lead_comes_with_the_name_of_its_callers_key(desk: Desk) -> None:
    """Where it came from is kept for its callbacks."""
    lead_id = desk.post().json()["id"]
    assert desk.relay.items("lead#")[f"lead#{lead_id}"]["origin"] == {"trigger": "api", "key": "website"}


# Who may, and with what


@pytest.mark.parametrize("key", [None, "wrong", "", LEAD_KEY + " x", LEAD_KEY[:-1], "ключ"])
def test_a_stranger_is_asked_for_a_key(desk: Desk, key: str | None) -> None:
    """401 with the scheme that is expected; nothing is kept."""
    for answer in (desk.relay.post_lead(one(), key=key), desk.relay.get_lead("e1", key=key)):
        assert (answer.status, answer.json()["error"]) == (401, "api_key_required")
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.headers["content-type"] == "application/problem+json"
    assert not desk.relay.store.items
    assert not desk.relay.queues["leads"].messages


@pytest.mark.parametrize("authorization", [f"Basic {LEAD_KEY}", LEAD_KEY, f"Bearer{LEAD_KEY}", f"Bearer x,{LEAD_KEY}"])
def test_a_key_counts_only_as_a_bearer(desk: Desk, authorization: str) -> None:
    """Another scheme is another proof."""
    headers = {"Authorization": authorization, "Content-Type": "application/json"}
    event = http_event("POST", "/leads", headers, json.dumps(one()).encode())
    assert Response.of(desk.relay.invoke("lead_api", event)).status == 401


def test_each_caller_has_a_key_with_a_name(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any of them opens; all are compared, in constant time, whichever fits, and only by their digests."""
    known = desk.relay.secret_source().cartelcrm
    keys = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("shop", "landing", "partner")}
    desk.relay.secret_source = lambda: Secrets(known, keys)
    compared: list[tuple[str, str]] = []

    def compare(one: str, other: str) -> bool:
        compared.append((one, other))
        return hmac.compare_digest(one, other)

    monkeypatch.setattr(api, "hmac", type("Spy", (), {"compare_digest": staticmethod(compare)}))
    for number, name in enumerate(keys, 1):
        compared.clear()
        assert desk.relay.post_lead(one(number), key=name).status == 200
        assert [expected for _, expected in compared] == list(keys.values())
    origins = [item["origin"]["key"] for item in desk.relay.items("lead#").values()]
    assert origins == ["shop", "landing", "partner"]


def test_a_relay_without_keys_is_closed(desk: Desk) -> None:
    """503 and an alarm, not an open door."""
    known = desk.relay.secret_source().cartelcrm
    desk.relay.secret_source = lambda: Secrets(known, {})
    answer = desk.post()
    assert (answer.status, answer.json()["error"]) == (503, "not_configured")
    assert answer.headers["retry-after"] == "30"
    assert desk.relay.metrics["AttentionNeeded"] == 1
    assert not desk.relay.store.items


def test_a_relay_without_cartelcrms_secrets_keeps_its_leads(desk: Desk) -> None:
    """202: the lead waits until somebody has configured them, and an operator is told."""
    keys = desk.relay.secret_source().lead_api_keys
    known = desk.relay.secret_source().cartelcrm
    desk.relay.secret_source = lambda: Secrets(CartelCrmSecrets(), keys)
    assert desk.post().status == 202
    assert desk.relay.metrics["AttentionNeeded"] == 1
    desk.relay.run(600)
    assert not desk.relay.crm.received
    desk.relay.secret_source = lambda: Secrets(known, keys)
    desk.relay.run(3600)
    assert desk.created == ["e1"]
    assert desk.verdict() == ("CONFIRMED", "accepted")
    assert not desk.requests("GET")


def raw(desk: Desk, body: bytes, **headers: str) -> Response:
    sent = {"Authorization": f"Bearer {LEAD_KEY}", **{name.replace("_", "-"): text for name, text in headers.items()}}
    return Response.of(desk.relay.invoke("lead_api", http_event("POST", "/leads", sent, body)))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"x"',
        b"\xff\xfe{}",
        b'{"external_id":"e1","external_id":"e2"}',
        b'{"x":NaN}',
        b'{"x":1e999}',
        b'{"x":"\\ud800"}',
        b'{"x":"\\u0000"}',
        b"[" * 100_000,
        b'{"x":' + b"9" * 5000 + b"}",
    ],
    ids=range(13),
)
def test_what_is_no_json_object_is_malformed(desk: Desk, body: bytes) -> None:
    """400, never a 500, and nothing is kept."""
    answer = raw(desk, body, Content_Type="application/json")
    assert answer.status == 400
    assert answer.headers["content-type"] == "application/problem+json"
    assert set(answer.json()) == {"type", "title", "status", "error"}
    assert not desk.relay.store.items


@pytest.mark.parametrize("size", [262_144, 262_145])
def test_a_body_over_the_limit_is_refused(desk: Desk, size: int) -> None:
    """413 for one byte too many; the limit itself is within."""
    lead = json.dumps(one()).encode()
    answer = raw(desk, lead[:-1] + b" " * (size - len(lead)) + b"}", Content_Type="application/json")
    assert answer.status == (200 if size == 262_144 else 413)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content_Type": "application/json; charset=utf-8"}, 200),
        ({"Content_Type": "Application/JSON"}, 200),
        ({}, 200),
        ({"Content_Type": "application/json", "Content_Encoding": "identity"}, 200),
        ({"Content_Type": "text/plain"}, 415),
        ({"Content_Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content_Type": "multipart/form-data; boundary=x"}, 415),
        ({"Content_Type": "application/json", "Content_Encoding": "gzip"}, 415),
    ],
)
def test_a_body_is_json_and_plain(desk: Desk, headers: dict[str, str], status: int) -> None:
    """415 for other types and for anything packed."""
    assert raw(desk, json.dumps(one()).encode(), **headers).status == status


def test_d21_a_lead_that_cannot_be_is_refused_without_a_call(desk: Desk) -> None:
    """D21: 422 names each field and what is wrong, repeats no value, and nothing leaves or stays."""
    answer = desk.post({"external_id": "e1", "phone": "s3cret", "country": "s3cret-land", "first_name": ["s3cret"]})
    assert answer.status == 422
    problem = answer.json()
    assert (problem["status"], problem["error"], problem["title"]) == (422, "invalid_lead", HTTPStatus(422).phrase)
    assert {error["field"] for error in problem["errors"]} == {"country", "first_name"}
    assert "s3cret" not in answer.text
    assert "s3cret" not in desk.relay.output
    assert not desk.relay.crm.received
    assert not desk.relay.store.items


def test_no_log_line_tells_a_phone_a_name_or_a_key(desk: Desk) -> None:
    """What a caller entrusts to us is in the queue and in the table, and nowhere else."""
    desk.relay.crm.faults.add(faults.Timeout(), faults.CodedError(), faults.Html(status=502))
    for number in range(1, 4):
        desk.post(one(number, first_name="Оксана"))
    desk.relay.run(3600)
    assert len(desk.created) == 3
    for secret in ("Оксана", "1234501", API_KEY, HMAC_SECRET, LEAD_KEY):
        assert secret not in desk.relay.output


def test_a_route_that_does_not_exist_is_not_found(desk: Desk) -> None:
    """404, as a deployed API says it."""
    event = http_event("DELETE", "/leads", {"Authorization": f"Bearer {LEAD_KEY}"})
    answer = Response.of(desk.relay.invoke("lead_api", event))
    assert (answer.status, answer.json()["error"]) == (404, "not_found")


# What is known of a lead


@pytest.mark.parametrize("external_id", ["e1", "..", "a/b?c#d", "Оля", "x" * 200, "x" * 5000, "inbound#", ""])
def test_an_unknown_lead_is_not_found(desk: Desk, external_id: str) -> None:
    """404, however odd or long its id is; what can be no id is not asked for."""
    for status in (False, True):
        answer = desk.relay.get_lead(external_id, status=status)
        assert (answer.status, answer.json()["error"]) == (404, "not_found")
    assert len(desk.relay.crm.received) == (len(external_id) <= 200)


def test_a_lead_is_shown_with_its_history() -> None:
    """What became of it, from our own table, in the order in which CartelCRM told it."""
    with Relay(lives=[cartelcrm.PAID_LIFE]) as relay:
        lead_id = relay.post_lead(one()).json()["id"]
        relay.run(61)
        shown = relay.get_lead("e1").json()
        history = shown.pop("history")
        assert [entry["status"] for entry in history] == ["new", "accepted"]
        assert shown == {
            "external_id": "e1",
            "status": "accepted",
            "id": lead_id,
            "lead_status": "accepted",
            "lead_status_at": history[-1]["timestamp"],
        }
        assert len(relay.crm.received) == 1


def test_a_lead_of_which_nothing_was_told_yet_is_shown(desk: Desk) -> None:
    """Accepted, and no more than that."""
    lead_id = desk.post().json()["id"]
    assert desk.relay.get_lead("e1").json() == {
        "external_id": "e1",
        "status": "accepted",
        "id": lead_id,
        "lead_status": None,
        "lead_status_at": 0,
        "history": [],
    }


def test_the_status_is_cartelcrms_own(desk: Desk) -> None:
    """GET …/status asks CartelCRM, also for a lead that is not ours."""
    lead_id = desk.post().json()["id"]
    desk.relay.crm.move(desk.relay.crm.leads[lead_id], "hold")
    answer = desk.relay.get_lead("e1", status=True)
    assert (answer.status, answer.json()) == (200, {"external_id": "e1", "id": lead_id, "lead_status": "hold"})
    unknown = desk.relay.get_lead("e2", status=True)
    assert (unknown.status, unknown.json()["error"]) == (404, "not_found")


@pytest.mark.parametrize(
    "fault",
    [faults.RateLimited(), faults.CodedError(), faults.Timeout(), faults.Html(), faults.Unauthorized()],
    ids=lambda fault: fault.kind,
)
def test_a_status_that_cannot_be_had_is_unavailable(desk: Desk, fault: faults.Fault) -> None:
    """503 with a time to come again; not a 404, and not what we happen to know."""
    desk.relay.crm.faults.add(fault)
    answer = desk.relay.get_lead("e1", status=True)
    assert (answer.status, answer.json()["error"]) == (503, "cartelcrm_unavailable")
    assert answer.headers["retry-after"]


ODD_IDS = ["../x", "..", "a/b?c#d", "a%2fb", "Оля 😀", "a b", "@evil.com"]


@pytest.mark.parametrize("external_id", ODD_IDS)
def test_d23_an_odd_external_id_is_asked_for_as_it_is(desk: Desk, external_id: str) -> None:
    """D23: percent-encoded as one segment, at the same host; found again by the same id."""
    desk.relay.crm.faults.add(faults.Timeout(when="after", method="POST"))
    assert desk.post(one(external_id=external_id)).status == 202
    desk.relay.run(3600)
    assert desk.relay.get_lead(external_id, status=True).json()["external_id"] == external_id
    assert {request.parts[-2] for request in desk.requests("GET")} == {external_id}
    assert desk.created == [external_id]
    assert desk.verdict(external_id) == ("CONFIRMED", "accepted")


# When AWS fails


@pytest.mark.parametrize("prefer", ["", "respond-async"])
def test_a_lead_is_kept_while_sqs_is_down(desk: Desk, prefer: str) -> None:
    """The outbox takes it; it is submitted all the same, once."""
    desk.relay.fail("queue")
    assert desk.post(prefer=prefer).status == (202 if prefer else 200)
    desk.relay.mend()
    desk.relay.invoke("outbox_drain", {})
    desk.relay.run(60)
    assert desk.created == ["e1"]


@pytest.mark.parametrize("prefer", ["", "respond-async"])
def test_a_lead_is_queued_while_the_table_is_down(desk: Desk, prefer: str) -> None:
    """202: without the ledger nothing is sent, but nothing is lost either."""
    desk.relay.fail("store")
    answer = desk.post(prefer=prefer)
    assert (answer.status, answer.json()["status"]) == (202, "queued")
    assert not desk.relay.crm.received
    desk.relay.run(600)
    desk.relay.mend()
    desk.relay.run(3600)
    assert desk.created == ["e1"]


def test_nothing_is_promised_that_nobody_keeps(desk: Desk) -> None:
    """503 when neither the queue nor the table took it; the caller comes again."""
    desk.relay.fail("queue")
    desk.relay.fail("store")
    answer = desk.post()
    assert (answer.status, answer.json()["error"]) == (503, "nothing_durable")
    assert answer.headers["retry-after"]
    assert not desk.relay.crm.received


@pytest.mark.parametrize("status", [False, True])
def test_what_cannot_be_read_is_unavailable(desk: Desk, status: bool) -> None:
    """503, which is no fault of ours, and no word that the lead is unknown."""
    desk.relay.fail("store")
    answer = desk.relay.get_lead("e1", status=status)
    assert answer.status == 503
    assert answer.headers["retry-after"]
    assert desk.relay.metrics["UnhandledError"] == 0


# The queue, the bus, direct invoke


def test_a_lead_from_the_bus_is_submitted(desk: Desk) -> None:
    """`LeadSubmitted` from any source; a copy of the event changes nothing."""
    for _ in range(2):
        desk.relay.publish_lead(one(phone="050 123 45 67"), source="shop")
    desk.relay.run()
    assert desk.created == ["e1"]
    (item,) = desk.relay.items("lead#").values()
    assert (item["external_id"], item["origin"]) == ("e1", {"trigger": "bus", "source": "shop"})


@pytest.mark.parametrize(
    ("detail", "reason"),
    [({"external_id": "e1"}, "invalid_lead"), ("x", "invalid_lead"), (one(phone="12"), "invalid_lead")],
)
def test_a_lead_from_the_bus_that_cannot_be_is_a_dead_letter(desk: Desk, detail: object, reason: str) -> None:
    """Nobody waits for an answer, so it is kept, with a reason and an alarm."""
    desk.relay.publish_lead(detail)
    desk.relay.run()
    assert desk.dead == [reason]
    assert desk.relay.metrics["Lost"] == 1
    assert not desk.relay.crm.received


@pytest.mark.parametrize(
    "body",
    [
        "",
        "odd",
        "[]",
        "{}",
        '{"v":2,"kind":"cartelcrm.lead"}',
        '{"detail-type":"Other","detail":{},"id":"1","source":"x"}',
        '{"detail-type":"LeadSubmitted","detail":{}}',
        "[" * 100_000,
        Envelope("cartelcrm.callback", "e1", {"body": "{}"}, 1, "r-1").encode(),
    ],
    ids=range(9),
)
def test_d02_a_message_that_is_not_ours_is_a_dead_letter(desk: Desk, body: str) -> None:
    """D02: it goes aside at once, word for word and with a reason; nothing of it reaches CartelCRM."""
    desk.relay.queues["leads"].send(body)
    desk.relay.run()
    (letter,) = desk.relay.dead_letters["leads"].messages.values()
    assert letter.body == body
    assert letter.reason
    assert not desk.relay.crm.received
    assert not desk.relay.errors


def test_a_lead_by_direct_invoke_gets_its_verdict(desk: Desk) -> None:
    """The event is the lead; the answer is what POST /leads would say."""
    verdict = desk.relay.invoke("lead_submit", one(phone="050 123 45 67"))
    (made,) = desk.relay.crm.leads.values()
    assert verdict == {"external_id": "e1", "status": "accepted", "id": made.id}
    assert desk.relay.invoke("lead_submit", one(phone="+380501234567")) == verdict
    assert len(desk.requests()) == 1
    assert desk.relay.items("lead#")[f"lead#{made.id}"]["origin"] == {"trigger": "invoke"}


def test_a_direct_invoke_says_what_is_wrong(desk: Desk) -> None:
    """Invalid and conflicting leads are answers, not errors."""
    desk.relay.invoke("lead_submit", one())
    assert desk.relay.invoke("lead_submit", one(first_name="Other")) == {
        "status": "conflict",
        "error": "other_lead_with_this_external_id",
    }
    invalid = desk.relay.invoke("lead_submit", {"external_id": "e2"})
    assert invalid["status"] == "invalid"
    assert {error["field"] for error in invalid["errors"]} == {"phone", "country"}


def test_a_direct_invoke_that_cannot_be_settled_is_queued(desk: Desk) -> None:
    """It answers in time; the queue goes on."""
    desk.relay.crm.faults.add(faults.RateLimited())
    assert desk.relay.invoke("lead_submit", one()) == {"external_id": "e1", "status": "queued"}
    desk.relay.run(3600)
    assert desk.created == ["e1"]


# D: the worker, and what goes wrong outside


def test_d01_one_poisoned_message_of_ten_stays_alone(desk: Desk) -> None:
    """D01: only the id of the one that fails is in batchItemFailures."""
    desk.queue(*map(one, range(1, 11)))
    desk.relay.crm.faults.add(faults.Timeout(path="/api"))
    assert desk.work() == ["e1"]
    assert sorted(desk.created) == sorted(f"e{number}" for number in range(2, 11))


def test_d03_when_all_fail_all_messages_stay(desk: Desk) -> None:
    """D03: an outage is an answer with all ids, not an exception."""
    keys = [f"e{number}" for number in range(1, 11)]
    desk.queue(*map(one, range(1, 11)))
    desk.relay.crm.faults.add(faults.CodedError(times=None))
    assert desk.work() == keys
    assert not desk.relay.errors


def test_d05_one_message_at_two_workers_is_one_lead(desk: Desk) -> None:
    """D05: the second worker comes while the first one's request is under way."""
    desk.queue(one())
    (message,) = desk.relay.queues["leads"].messages.values()
    second: list[object] = []
    handle = desk.relay.crm.handle

    def meanwhile(request: SandboxRequest) -> SandboxResponse:
        second.append(desk.relay.invoke("lead_submit", records([message]), seconds=120))
        return handle(request)

    desk.relay.crm.handle = meanwhile  # type: ignore[method-assign]
    assert desk.work() == []
    assert second == [{"batchItemFailures": [{"itemIdentifier": message.id}]}]
    assert desk.created == ["e1"]


@dataclass
class Skewed:
    """A clock that is wrong by some seconds."""

    clock: Clock
    skew: float

    def time(self) -> float:
        return self.clock.time() + self.skew

    def sleep(self, seconds: float, /) -> None:
        self.clock.sleep(seconds)


def skew(relay: Relay, seconds: float) -> None:
    """Make the workers' clock wrong from now on."""
    right = relay._runtimes["leads"]
    relay._runtimes["leads"] = replace(right, ports=replace(right.ports, clock=Skewed(relay.clock, seconds)))


@pytest.mark.parametrize("wrong", [600, -600, 1200])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_d07_workers_with_wrong_clocks_make_no_second_lead(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, wrong: float, moment: str
) -> None:
    """D07: for a clock that is fast the lease is over while its owner's request is under way; it looks first.

    Its repeat goes out under the same key and with the same bytes, and the first owner's late report is fenced off.
    """
    monkeypatch.setattr(cartelcrm, "TIMESTAMP_WINDOW", 3600)
    desk.queue(one())
    (message,) = desk.relay.queues["leads"].messages.values()
    transport = desk.relay.http_client._client._transport
    send = transport.handle_request

    def meanwhile(request: httpx.Request) -> httpx.Response:
        transport.handle_request = send  # type: ignore[method-assign]
        answer = send(request) if moment == "after" else None
        skew(desk.relay, wrong)
        desk.relay.invoke("lead_submit", records([message]), seconds=120)
        desk.relay.restart()
        return answer or send(request)

    transport.handle_request = meanwhile  # type: ignore[method-assign]
    desk.work()
    desk.relay.run(3 * 3600)
    assert desk.created == ["e1"]
    assert len(set(desk.keys())) == 1
    assert desk.verdict() == ("CONFIRMED", "accepted")
    assert not desk.relay.queues["leads"].messages


@given(st.lists(st.tuples(st.sampled_from([0, 600, -600]), st.integers(0, 400), st.booleans()), max_size=8))
@settings(max_examples=40, deadline=None)
def test_d07_clocks_that_jump_between_tries_make_no_second_lead(turns: list[tuple[float, int, bool]]) -> None:
    """D07: whatever the clock says at each try, and whether or not the answer is lost, there is one lead."""
    with pytest.MonkeyPatch.context() as patch, Relay(**TERMS) as relay:
        patch.setattr(cartelcrm, "TIMESTAMP_WINDOW", 3600)
        desk = Desk(relay)
        desk.queue(one())
        for wrong, seconds, lost in turns:
            relay.restart()
            skew(relay, wrong)
            relay.clock.sleep(seconds)
            if lost:
                relay.crm.faults.add(faults.Timeout(when="after"))
            relay.work("leads")
        relay.restart()
        relay.crm.faults.clear()
        relay.run(3 * 3600)
        assert desk.created == ["e1"]
        assert desk.verdict() == ("CONFIRMED", "accepted")


def test_d08_a_lead_is_not_started_without_time_to_end_it(desk: Desk) -> None:
    """D08: handed back at once, untouched: neither claimed nor sent."""
    desk.queue(one())
    assert desk.work(seconds=59) == ["e1"]
    assert not desk.relay.items("effect#")
    assert desk.delay == 1


def test_d09_a_lead_that_kills_its_worker_is_a_dead_letter_after_five_tries(desk: Desk) -> None:
    """D09: with its reason and an alarm; sent again once that is mended, it is one lead."""
    desk.queue(one())
    handle = desk.relay.crm.handle

    def kill(request: SandboxRequest) -> SandboxResponse:
        handle(request)
        raise Crash

    desk.relay.crm.handle = kill  # type: ignore[method-assign]
    desk.relay.run(DAY)
    assert desk.dead == ["too_many_tries"]
    assert desk.relay.metrics["Lost"] == 1
    assert len(desk.relay.crm.received) == 5
    desk.relay.crm.handle = handle  # type: ignore[method-assign]
    desk.redrive()
    desk.relay.run(3600)
    assert desk.created == ["e1"]
    assert desk.verdict() == ("CONFIRMED", "accepted")
    assert desk.dead == []


def test_d10_a_great_redrive_makes_no_duplicate_and_keeps_to_the_rate() -> None:
    """D10: hundreds of dead letters, half of them leads that exist already, go through at the CRM's own pace."""
    with Relay(**TERMS) as relay:
        desk = Desk(relay)
        relay.configure("relay", give_up_after_seconds=60)
        desk.queue(*map(one, range(1, 301)))
        relay.crm.faults.add(faults.Timeout(when="after", times=None, probability=0.5))
        relay.crm.faults.add(faults.CodedError(times=None))
        relay.run(1800)
        assert set(desk.dead) <= {"gave_up", "needs_reconcile"}
        assert len(desk.dead) == 300
        relay.crm.faults.clear()
        relay.configure("relay", give_up_after_seconds=DAY)
        relay.clock.sleep(60)
        mended_at = relay.clock.now
        desk.redrive()
        relay.run(DAY)
        assert len(desk.created) == len(set(desk.created)) == 300
        assert {desk.verdict(f"e{number}") for number in range(1, 301)} == {("CONFIRMED", "accepted")}
        assert desk.dead == []
        times = [received.at for received in relay.crm.received if received.at >= mended_at]
        assert busiest(times) <= relay.settings.cartelcrm.requests_per_second


@pytest.mark.parametrize(
    "fault",
    [
        faults.Replaced(),
        faults.Replaced(text="[]"),
        faults.Html(),
        faults.Html(status=201),
        faults.Replaced(status=204),
    ],
    ids=["no_id", "no_object", "page", "created_page", "no_content"],
)
@pytest.mark.parametrize("when", ["before", "after"])
def test_d11_a_success_without_an_id_is_looked_up(desk: Desk, fault: faults.Replaced, when: faults.When) -> None:
    """D11: the status call decides whether there is a lead; only where there is none, the same goes out again."""
    desk.relay.crm.faults.add(fault.model_copy(update={"when": when, "method": "POST"}))
    assert desk.post().status == 202
    assert desk.effect()["state"] == "SENT"
    desk.relay.run(3600)
    assert desk.created == ["e1"]
    assert desk.verdict() == ("CONFIRMED", "accepted")
    assert len(desk.requests("GET")) == 1
    assert len(desk.requests()) == (1 if when == "after" else 2)
    assert len(set(desk.keys())) == 1


def test_d12_a_duplicate_without_an_id_is_looked_up(desk: Desk) -> None:
    """D12: the caller learns which lead exists, in the same call."""
    desk.relay.crm.faults.add(faults.Replaced(status=409, text="{}", when="after", method="POST"))
    answer = desk.post()
    (made,) = desk.relay.crm.leads.values()
    assert (answer.status, answer.json()) == (200, {"external_id": "e1", "status": "duplicate", "id": made.id})


def test_d12_a_duplicate_that_nobody_can_name_is_one_all_the_same(desk: Desk) -> None:
    """D12: without answer and look-up the id is unknown, the verdict is not."""
    desk.relay.crm.faults.add(faults.Replaced(status=409, text="{}"))
    answer = desk.post()
    assert (answer.status, answer.json()) == (200, {"external_id": "e1", "status": "duplicate", "id": None})


@pytest.mark.parametrize(
    ("retry_after", "least"),
    [
        (None, 1),
        (7, 7),
        (0, 1),
        (-1, 1),
        ("abc", 1),
        (10**9, 600),
        ("", 1),
        (formatdate(START + 120, usegmt=True), 119),
    ],
)
def test_d13_a_busy_crm_is_left_alone_as_long_as_it_asks(desk: Desk, retry_after: int | str | None, least: int) -> None:
    """D13: for at least a second, for at most fifteen minutes, whatever Retry-After says; never in a hot loop."""
    desk.queue(one())
    desk.relay.crm.faults.add(faults.RateLimited(retry_after=retry_after, times=5))
    for _ in range(5):
        assert desk.work() == ["e1"]
        assert least <= desk.delay <= 900
        least = min(least, 1) if isinstance(retry_after, str) else least
        desk.relay.clock.sleep(desk.delay)
    assert desk.work() == []
    assert desk.created == ["e1"]


def test_d13_leads_that_were_refused_together_come_back_apart(desk: Desk) -> None:
    """D13: with jitter, so that a limit is not hit by all again."""
    desk.queue(*map(one, range(1, 11)))
    desk.relay.crm.faults.add(faults.RateLimited(retry_after=7, times=None))
    desk.work()
    assert len({message.visible_at for message in desk.relay.queues["leads"].messages.values()}) > 1


@pytest.mark.parametrize("retry_after", [None, 1])
def test_d13_a_crm_that_is_busy_for_most_of_a_day_costs_no_lead(desk: Desk, retry_after: int | None) -> None:
    """D13: the queue would bury a message after 500 receives; delays grow, so that a day has room in them."""
    desk.queue(one())
    desk.relay.crm.faults.add(faults.RateLimited(retry_after=retry_after, times=None))
    desk.relay.run(DAY - 1800)
    desk.relay.crm.faults.clear()
    desk.relay.run(3600)
    assert desk.created == ["e1"]
    assert desk.dead == []
    assert len(desk.requests()) < 300


def test_d24_an_outage_of_most_of_a_day_costs_no_lead(desk: Desk) -> None:
    """D24: the circuit keeps the CRM from being hammered, and the queue's patience from being used up."""
    desk.queue(*map(one, range(1, 4)))
    desk.relay.crm.faults.add(faults.CodedError(times=None))
    desk.relay.run(DAY - 1800)
    assert max(message.receive_count for message in desk.relay.queues["leads"].messages.values()) < 300
    desk.relay.crm.faults.clear()
    desk.relay.run(3600)
    assert len(desk.created) == 3
    assert desk.dead == []


@pytest.mark.parametrize("status", [500, 502, 503, 504])
@pytest.mark.parametrize("when", ["before", "after"])
def test_d14_a_bare_5xx_is_repeated_with_the_same_key_and_bytes(desk: Desk, status: int, when: faults.When) -> None:
    """D14: a proxy's error says nothing of the lead: look first, then the very same again."""
    desk.relay.crm.faults.add(*[faults.Html(status=status, when=when, method="POST")] * (3 if when == "before" else 1))
    desk.queue(one())
    desk.relay.run(3600)
    assert desk.created == ["e1"]
    assert len(desk.requests()) == (4 if when == "before" else 1)
    assert_identical(desk)
    assert len(set(desk.keys())) == 1


def assert_identical(desk: Desk, body: bytes | None = None) -> None:
    """All submissions of the one lead are the same bytes under the same signature; only the time is their own."""
    posts = [received for received in desk.relay.crm.received if received.request.method == "POST"]
    assert {received.request.body for received in posts} == {body or body_of(one())}
    signature = hmac.digest(HMAC_SECRET.encode(), posts[0].request.body, "sha256").hex()
    for received in posts:
        headers = received.request.headers
        assert headers["x-signature"] == f"sha256={signature}"
        assert headers["x-timestamp"] == str(int(received.at))


def test_d20_a_repeat_is_identical_to_the_last_byte(desk: Desk) -> None:
    """D20: body, signature and key; the timestamp is fresh."""
    given = one(first_name='Оля "😀" / \\ \u2028 \uffff', note="עברית", n=1.50, big=2**70)
    desk.relay.crm.faults.add(*[faults.Timeout(method="POST")] * 4)
    assert desk.post(given).status == 202
    desk.relay.run(6 * 3600)
    assert len(desk.requests()) == 5
    assert_identical(desk, body_of(given))
    assert len(set(desk.keys())) == 1
    times = [request.headers["x-timestamp"] for request in desk.requests()]
    assert sorted(set(times)) == times
    assert desk.created == ["e1"]


@pytest.mark.parametrize("fault", [faults.RateLimited(), faults.CodedError(status=500)], ids=lambda fault: fault.kind)
def test_a_key_changes_after_an_answer_that_nothing_was_done(desk: Desk, fault: faults.Fault) -> None:
    """CartelCRM may have kept its refusal under the old key."""
    desk.relay.crm.faults.add(fault, fault)
    desk.post()
    desk.relay.run(3600)
    assert len(desk.keys()) == len(set(desk.keys())) == 3
    assert_identical(desk)
    assert desk.created == ["e1"]


def test_a_key_does_not_change_while_an_earlier_try_is_in_doubt(desk: Desk) -> None:
    """A 429 to the repeat does not say that the first request has not been taken."""
    desk.relay.crm.faults.add(
        faults.Timeout(method="POST"), faults.RateLimited(method="POST"), faults.CodedError(method="POST")
    )
    desk.post()
    desk.relay.run(3600)
    assert len(desk.keys()) == 4
    assert len(set(desk.keys())) == 1
    assert desk.created == ["e1"]


def test_leads_do_not_share_their_keys(desk: Desk) -> None:
    """Each lead has its own, in characters that any header takes."""
    for number, external_id in enumerate(("e1", "Оля 😀", "x" * 200)):
        desk.post(one(number, external_id=external_id))
    keys = desk.keys()
    assert len(set(keys)) == 3
    assert all(key.isascii() and len(key) <= 64 for key in keys)


def no_lead_is_made(fault: faults.Fault) -> bool:
    """Whether the fault is an answer that says that nothing was done."""
    return isinstance(fault, faults.RateLimited | faults.CodedError | faults.Unauthorized | faults.Redirect)


any_fault: st.SearchStrategy[faults.Fault] = st.sampled_from(
    [
        *[kind(method="POST", when=when) for kind in (faults.Timeout, faults.Reset) for when in ("before", "after")],
        faults.Html(method="POST", when="after", status=502),
        faults.Html(method="POST", when="before", status=200),
        faults.Replaced(method="POST", when="after"),
        faults.CutShort(method="POST"),
        faults.Drip(method="POST"),
        faults.Oversized(method="POST", size=2 * RESPONSE_LIMIT),
        faults.RateLimited(method="POST"),
        faults.RateLimited(method="POST", retry_after=30),
        faults.CodedError(method="POST"),
        faults.Unauthorized(method="POST"),
        faults.Redirect(method="POST"),
        faults.Timeout(method="GET"),
        faults.Html(method="GET", status=200),
        faults.CodedError(method="GET"),
        faults.Replaced(method="GET", status=400),
        faults.RateLimited(method="GET"),
        faults.Unauthorized(method="GET"),
    ]
)


@given(st.lists(any_fault, max_size=7), st.booleans())
@settings(max_examples=120, deadline=None)
def test_whatever_goes_wrong_in_whatever_order_there_is_one_lead(row: list[faults.Fault], inline: bool) -> None:
    """Any row of faults, from the API or from the queue.

    One lead, accepted; the same bytes each time; and a new key only after an answer that nothing was done, never
    once a request has been left without an answer.
    """
    with Relay(**TERMS) as relay:
        desk = Desk(relay)
        relay.crm.faults.add(*row)
        if inline:
            desk.post()
        else:
            desk.queue(one())
        relay.run(DAY)
        assert desk.created == ["e1"]
        assert desk.verdict() == ("CONFIRMED", "accepted")
        assert desk.dead == []
        assert_identical(desk)
        posts = [received for received in relay.crm.received if received.request.method == "POST"]
        in_doubt = False
        for before, after in pairwise(posts):
            in_doubt |= before.status not in (401, 429, 302, 503)
            if in_doubt:
                assert after.request.headers["idempotency-key"] == before.request.headers["idempotency-key"]


@pytest.mark.parametrize("status", [400, 404, 422])
def test_d15_a_refusal_of_the_lead_is_final(desk: Desk, status: int) -> None:
    """D15: recorded with its reason, done, never sent again."""
    desk.relay.crm.faults.add(faults.Replaced(status=status, text='{"reason":"bad_source"}', times=None))
    desk.queue(one())
    desk.relay.run(DAY)
    assert len(desk.requests()) == 1
    assert desk.effect()["result"] == {"reason": "bad_source"}
    assert desk.relay.metrics["Refused"] == 1
    assert desk.relay.get_lead("e1").json() == {"external_id": "e1", "status": "rejected", "reason": "bad_source"}


@pytest.mark.parametrize("refusal", [faults.Unauthorized, faults.Forbidden])
def test_d15_a_refused_credential_pauses_all_and_calls_an_operator(
    desk: Desk, refusal: type[faults.Unauthorized | faults.Forbidden]
) -> None:
    """D15: one request is spent, all messages stay, and after the pause one request looks whether it was mended."""
    desk.queue(*map(one, range(1, 6)))
    desk.relay.crm.faults.add(refusal(times=None))
    assert desk.work() == ["e1", "e2", "e3", "e4", "e5"]
    assert len(desk.requests()) == 1
    assert desk.relay.metrics["AttentionNeeded"] == 1
    assert desk.post(one(6)).status == 202
    desk.relay.run(PAUSE - 10)
    assert len(desk.requests()) == 1
    desk.relay.run(PAUSE)
    assert len(desk.requests()) == 2
    assert len(desk.relay.queues["leads"].messages) == 6
    desk.relay.crm.faults.clear()
    desk.relay.run(3600)
    assert sorted(desk.created) == [f"e{number}" for number in range(1, 7)]
    assert desk.dead == []


def test_d15_a_pause_of_most_of_a_day_costs_no_lead(desk: Desk) -> None:
    """D15: messages outlast a weekend day without an operator, and the CRM is asked once in five minutes at most."""
    desk.queue(one(1), one(2))
    desk.relay.crm.faults.add(faults.Unauthorized(times=None))
    desk.relay.run(DAY - 1800)
    assert len(desk.requests()) <= DAY / PAUSE
    desk.relay.crm.faults.clear()
    desk.relay.run(3600)
    assert sorted(desk.created) == ["e1", "e2"]


@pytest.mark.parametrize("inline", [True, False])
def test_d16_a_lead_whose_answer_was_lost_is_found(desk: Desk, inline: bool) -> None:
    """D16: CartelCRM took it and we timed out: the look-up finds it, nothing is sent again, the verdict is accepted."""
    desk.relay.crm.faults.add(faults.Timeout(when="after", method="POST"))
    desk.post() if inline else desk.queue(one())
    desk.relay.run(3600)
    (made,) = desk.relay.crm.leads.values()
    assert len(desk.requests()) == 1
    assert desk.effect()["result"] == {"status": "accepted", "id": made.id}
    assert desk.post().json() == {"external_id": "e1", "status": "accepted", "id": made.id}


@pytest.mark.parametrize("status", [409, 422])
def test_d16_a_repeat_that_is_refused_because_the_first_was_slow_is_looked_up(desk: Desk, status: int) -> None:
    """D16: the request that we gave up arrives after the look-up; the lead is ours, whatever the repeat is told."""
    refused = faults.Replaced(status=status, text='{"reason":"in_progress"}', when="after", method="POST")
    desk.relay.crm.faults.add(faults.Timeout(method="POST"), refused)
    desk.queue(one())
    desk.relay.run(3600)
    assert desk.created == ["e1"]
    assert desk.verdict() == ("CONFIRMED", "accepted")


def test_d16_a_caller_who_repeats_a_lead_in_doubt_is_not_kept_waiting(desk: Desk) -> None:
    """D16: settling it is the queue's; his repeat sends nothing."""
    desk.relay.crm.faults.add(faults.Timeout(when="after", method="POST"))
    desk.post()
    before = desk.relay.clock.now
    assert desk.post().status == 202
    assert desk.relay.clock.now == before
    assert len(desk.relay.crm.received) == 1


@pytest.mark.parametrize(
    "fault",
    [faults.Reset(), faults.Reset(when="after"), faults.CutShort(), faults.Slow(seconds=20), faults.Drip()],
    ids=["before", "after", "cut_short", "slow", "drip"],
)
def test_d17_a_broken_connection_is_settled_by_looking(desk: Desk, fault: faults.Fault) -> None:
    """D17: whether or not the lead was made, there is one in the end."""
    desk.relay.crm.faults.add(fault.model_copy(update={"method": "POST"}))
    desk.queue(one())
    desk.relay.run(3600)
    assert desk.created == ["e1"]
    assert len(desk.requests("GET")) == 1
    assert desk.verdict() == ("CONFIRMED", "accepted")


def test_d17_a_crm_out_of_reach_costs_no_look_up(desk: Desk) -> None:
    """D17: without a connection nothing was executed, and there is nothing to look for."""
    desk.relay.configure("cartelcrm", base_url="https://nowhere.invalid/api")
    desk.queue(one())
    assert desk.work() == ["e1"]
    assert desk.effect()["state"] == "PLANNED"
    desk.relay.configure("cartelcrm", base_url="https://cartelcrm.com/api")
    desk.relay.run(3600)
    assert desk.created == ["e1"]
    assert not desk.requests("GET")


@pytest.mark.parametrize("status", [301, 302, 307])
def test_d18_a_redirect_is_not_followed(desk: Desk, status: int) -> None:
    """D18: CartelCRM has moved, or somebody wants us to think so: pause, and somebody looks."""
    desk.relay.crm.faults.add(faults.Redirect(status=status, location="https://cartelcrm.com/api/v1/inbound/leads"))
    desk.queue(one())
    desk.work()
    assert len(desk.relay.crm.received) == 1
    assert desk.relay.metrics["AttentionNeeded"] == 1
    desk.relay.run(3600)
    assert desk.created == ["e1"]


def test_d19_an_answer_without_end_is_left(desk: Desk) -> None:
    """D19: cut at its cap, then looked up."""
    desk.relay.crm.faults.add(faults.Oversized(size=10 * RESPONSE_LIMIT, method="POST"))
    desk.queue(one())
    desk.relay.run(3600)
    assert desk.created == ["e1"]
    assert desk.verdict() == ("CONFIRMED", "accepted")


@pytest.mark.parametrize(
    "name", ["Оля 😀", "עברית", 'quotes " \\ /', "tab\tline\n", "\u2028\u2029", "\ufffe\uffff", "naïve"]
)
def test_d22_any_name_is_signed_as_it_is_sent(desk: Desk, name: str) -> None:
    """D22: the sandbox checks the signature itself; what it keeps is what the caller wrote."""
    desk.queue(one(first_name=name))
    desk.relay.run()
    (made,) = desk.relay.crm.leads.values()
    assert made.body["first_name"] == name


# Giving up, and what is in doubt


def test_a_lead_that_waited_too_long_is_a_dead_letter(desk: Desk) -> None:
    """After `give_up_after` with a reason and an alarm; redriven, it is accepted."""
    desk.queue(one())
    desk.relay.crm.faults.add(faults.RateLimited(times=None))
    desk.relay.run(DAY + 1000)
    assert desk.dead == ["gave_up"]
    assert desk.relay.metrics["Lost"] == 1
    desk.relay.crm.faults.clear()
    desk.redrive()
    desk.relay.run()
    assert desk.created == ["e1"]
    assert desk.verdict() == ("CONFIRMED", "accepted")


@pytest.mark.parametrize("prefer", ["", "respond-async"])
def test_a_lead_that_was_given_up_and_comes_again_is_queued_anew(desk: Desk, prefer: str) -> None:
    """Its message is a dead letter, so "queued" must put another into the queue; one lead comes of both."""
    desk.queue(one())
    desk.relay.crm.faults.add(faults.RateLimited(times=None))
    desk.relay.run(DAY + 1000)
    assert desk.dead == ["gave_up"]
    assert desk.relay.get_lead("e1").json() == {"external_id": "e1", "status": "given_up"}
    answer = desk.post(prefer=prefer)
    assert (answer.status, answer.json()) == (202, {"external_id": "e1", "status": "queued"})
    assert desk.post(prefer=prefer).status == 202
    desk.relay.crm.faults.clear()
    desk.relay.run(3600)
    assert desk.created == ["e1"]
    desk.redrive()
    desk.relay.run(3600)
    assert desk.created == ["e1"]
    assert desk.dead == []


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_lead_in_doubt_that_waited_too_long_needs_an_operator(desk: Desk, when: faults.When) -> None:
    """NEEDS_RECONCILE, never a guess; redriven, it is settled by looking first."""
    desk.relay.crm.faults.add(faults.Timeout(when=when, method="POST"), faults.Timeout(times=None))
    desk.queue(one())
    desk.relay.run(DAY + 2000)
    assert desk.dead == ["needs_reconcile"]
    assert desk.relay.store.attention("NEEDS_RECONCILE", limit=1) == ["effect#cartelcrm.lead#e1"]
    assert desk.relay.get_lead("e1").json() == {"external_id": "e1", "status": "needs_reconcile"}
    desk.relay.crm.faults.clear()
    posts = len(desk.requests())
    desk.redrive()
    desk.relay.run(3600)
    assert desk.created == ["e1"]
    assert len(desk.requests()) == posts + (when == "before")
    assert len(set(desk.keys())) == 1
    assert desk.relay.store.attention("NEEDS_RECONCILE", limit=1) == []


def test_a_caller_who_repeats_a_lead_that_needs_an_operator_does_not_hide_it(desk: Desk) -> None:
    """It stays in the operator's list, and the caller is told how it stands."""
    desk.relay.crm.faults.add(faults.Timeout(times=None))
    desk.queue(one())
    desk.relay.run(DAY + 2000)
    assert desk.dead == ["needs_reconcile"]
    answer = desk.post()
    assert (answer.status, answer.json()) == (202, {"external_id": "e1", "status": "needs_reconcile"})
    assert desk.relay.store.attention("NEEDS_RECONCILE", limit=1) == ["effect#cartelcrm.lead#e1"]


# D04: killed anywhere


def forgetful(relay: Relay) -> None:
    """Let CartelCRM ignore Idempotency-Keys: then only the ledger and the look-up stand against a second lead."""

    class Nothing(dict[str, tuple[bytes, SandboxResponse]]):
        def __contains__(self, key: object) -> bool:
            return False

    relay.crm._verdicts = Nothing()


def inline(desk: Desk) -> None:
    desk.post()


def from_the_queue(desk: Desk) -> None:
    desk.queue(one())
    desk.relay.work("leads")


def from_the_bus(desk: Desk) -> None:
    desk.relay.publish_lead(one())
    desk.relay.work("leads")


def after_a_lost_answer(desk: Desk) -> None:
    desk.relay.crm.faults.add(faults.Timeout(when="after", method="POST"))
    desk.queue(one())
    desk.relay.work("leads")
    desk.relay.clock.sleep(1000)
    desk.relay.work("leads")


def after_a_lost_request(desk: Desk) -> None:
    desk.relay.crm.faults.add(faults.Timeout(when="before", method="POST"))
    desk.queue(one())
    desk.relay.work("leads")
    desk.relay.clock.sleep(1000)
    desk.relay.work("leads")


def after_a_refusal(desk: Desk) -> None:
    desk.relay.crm.faults.add(faults.RateLimited(), faults.CodedError())
    desk.queue(one())
    for _ in range(3):
        desk.relay.work("leads")
        desk.relay.clock.sleep(1000)


def through_the_outbox(desk: Desk) -> None:
    desk.relay.fail("queue.send", times=1)
    desk.queue(one())
    desk.relay.invoke("outbox_drain", {})
    desk.relay.work("leads")


STORIES: list[Callable[[Desk], None]] = [
    inline,
    from_the_queue,
    from_the_bus,
    after_a_lost_answer,
    after_a_lost_request,
    after_a_refusal,
    through_the_outbox,
]


class Killer:
    """Counts every call that leaves the process, to a port or to the CRM, and kills the process at one of them."""

    def __init__(self, relay: Relay, victim: int, *, after: bool) -> None:
        self.calls: list[str] = []
        self._victim = victim
        self._after = after
        through, handle = relay._through, relay.crm.handle
        relay._through = lambda name, *args, **kwargs: self._do(name, lambda: through(name, *args, **kwargs))  # type: ignore[method-assign]
        relay.crm.handle = lambda request: self._do(request.method, lambda: handle(request))  # type: ignore[method-assign]
        relay.restart()

    def _do[T](self, name: str, call: Callable[[], T]) -> T:
        self.calls.append(name)
        if len(self.calls) != self._victim:
            return call()
        if self._after:
            call()
        raise Crash


def play(story: Callable[[Desk], None], victim: int = 0, *, after: bool = False) -> list[str]:
    """Tell a story in which the process dies at one call; check the end; return the calls that it made."""
    with Relay(**TERMS) as relay:
        desk = Desk(relay)
        forgetful(relay)
        killer = Killer(relay, victim, after=after)
        with suppress(Crash):
            story(desk)
        told = list(killer.calls)
        relay.restart()
        if not (relay.queues["leads"].messages or relay.items("effect#") or relay.items("outbox#")):
            desk.post()  # the caller had no answer and nothing was kept: he comes again
        relay.invoke("outbox_drain", {})
        relay.run(3 * 3600)
        context = f"killed {'after' if after else 'before'} call {victim} of {told}"
        assert desk.created == ["e1"], context
        assert desk.verdict() == ("CONFIRMED", "accepted"), context
        assert desk.relay.items("lead#").popitem()[1]["external_id"] == "e1", context
        assert desk.dead == [], context
        assert not relay.queues["leads"].messages, context
        assert_identical(desk)
        return told


@pytest.mark.everywhere
@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.__name__)
def test_d04_a_worker_killed_anywhere_makes_one_lead(story: Callable[[Desk], None]) -> None:
    """D04: before and after each call to the table, the queue and CartelCRM; redelivery ends it as if nothing was.

    CartelCRM forgets all Idempotency-Keys here.
    """
    calls = play(story)
    assert {"store.put", "store.get", "POST"} <= set(calls)
    for victim in range(1, len(calls) + 1):
        for after in (False, True):
            play(story, victim, after=after)


def test_d04_an_api_that_dies_after_the_enqueue_has_kept_the_lead(desk: Desk) -> None:
    """D04: the caller got no answer, the queue has the message: it submits the lead, once, also if he comes again."""
    desk.relay.fail("store.get", error=Crash())
    with pytest.raises(Crash):
        desk.post()
    desk.relay.mend()
    assert not desk.relay.crm.received
    desk.relay.run(3600)
    assert desk.created == ["e1"]
    assert desk.post().status == 200
    assert desk.created == ["e1"]


@pytest.mark.everywhere
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("story", [inline, from_the_queue, after_a_lost_answer], ids=lambda story: story.__name__)
def test_an_error_of_any_one_call_to_aws_makes_one_lead(story: Callable[[Desk], None], after: bool) -> None:
    """Each call to the table and the queues fails once, before or after its effect: one lead, no dead letter."""

    def tell(victim: int) -> int:
        with Relay(**TERMS) as relay:
            desk = Desk(relay)
            forgetful(relay)
            count = 0

            def fail_at_last(name: str) -> None:
                nonlocal count
                count += 1
                if count == victim:
                    relay.fail(name, times=1, after=after)

            relay.before_call = fail_at_last
            story(desk)
            relay.before_call = lambda _: None
            told = count
            relay.mend()
            relay.invoke("outbox_drain", {})
            relay.run(3 * 3600)
            assert desk.created == ["e1"], relay.calls[:victim]
            assert desk.verdict() == ("CONFIRMED", "accepted")
            assert desk.dead == []
            return told

    for victim in range(1, tell(0) + 1):
        tell(victim)


def test_the_modules_under_test_are_the_ones_that_run() -> None:
    """The fixture puts its client in the place of the one that every submission uses."""
    with Relay(**TERMS) as relay:
        assert submission.http_client() is relay.http_client


WALLS = [partial(faults.Forbidden, method="POST"), partial(faults.Html, status=400, method="POST", when="before")]
"""Between us and CartelCRM: a 403 or a page about one lead's content, while our key works."""


@pytest.mark.parametrize("wall", WALLS, ids=["403", "page"])
def test_one_lead_that_a_wall_does_not_like_stops_no_other(desk: Desk, wall: Callable[..., faults.Fault]) -> None:
    """It is this lead's refusal, after some tries, and no other's pause."""
    desk.relay.crm.faults.add(wall(times=5))
    assert desk.post(one()).status == 202
    desk.relay.run(600)
    assert desk.post(one()).status == 422
    assert desk.relay.items("pause#") == {}
    assert desk.post(one(external_id="e2", phone="+380501234568")).json()["status"] == "accepted"


@pytest.mark.parametrize("wall", WALLS, ids=["403", "page"])
def test_a_wall_with_a_bad_minute_costs_no_lead(desk: Desk, wall: Callable[..., faults.Fault]) -> None:
    """It lets the same lead through a little later."""
    desk.relay.crm.faults.add(wall(times=4))
    assert desk.post(one()).status == 202
    desk.relay.run(600)
    assert desk.post(one()).json()["status"] == "accepted"


def test_a_key_that_is_refused_everywhere_stops_all(desk: Desk) -> None:
    """A 403 that the status call gets as well is about us: leads wait, and none is refused."""
    desk.relay.crm.faults.add(faults.Forbidden(times=2))
    assert desk.post(one()).json()["status"] == "queued"
    assert desk.post(one(external_id="e2", phone="+380501234568")).json()["status"] == "queued"
    assert desk.relay.items("pause#")


def test_of_two_bodies_at_once_the_one_that_was_submitted_keeps_its_verdict(desk: Desk) -> None:
    """Which of them the inbox remembers is chance; the ledger knows which one CartelCRM has."""
    assert desk.post(one()).json()["status"] == "accepted"
    [key] = [key for key in desk.relay.store.items if key.startswith("inbound#")]
    item = desk.relay.store.items[key]
    desk.relay.store.put(key, {**item.attributes, "sha256": "0" * 64}, replaces=item, expires_at=item.expires_at)
    assert desk.post(one()).json()["status"] == "accepted"
    assert desk.post(one(first_name="Other")).status == 409


def test_what_a_caller_asks_for_stops_no_submission(desk: Desk) -> None:
    """A status call that CartelCRM refuses or does not answer is the caller's bad luck, not the circuit's."""
    assert desk.post(one()).json()["status"] == "accepted"
    desk.relay.crm.faults.add(faults.Html(status=400, method="GET", when="before", times=None))
    for _ in range(10):
        assert desk.relay.get_lead("e1", status=True).status == 503
    assert desk.post(one(external_id="e2", phone="+380501234568")).json()["status"] == "accepted"
