"""The CartelCRM sandbox as a caller meets it: in memory for every rule and fault, and over real sockets."""

import asyncio
import hashlib
import hmac
import json
import socket
import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from random import Random
from typing import Any, override

import httpx
import pytest

from workbench.sandboxes.callbacks import CallbackDelivery
from workbench.sandboxes.cartelcrm import (
    PAID_LIFE,
    REJECTED_LIFE,
    TRASHED_LIFE,
    CartelCrmAccount,
    CartelCrmSandbox,
    Lead,
)
from workbench.sandboxes.faults import (
    CodedError,
    CutShort,
    Drip,
    Fault,
    Forbidden,
    Html,
    Oversized,
    RateLimited,
    Redirect,
    Replaced,
    Reset,
    Slow,
    Timeout,
    Unauthorized,
)
from workbench.sandboxes.memory import MemoryTransport
from workbench.sandboxes.rates import busiest
from workbench.sandboxes.sandbox import Sandbox
from workbench.sandboxes.server import serve
from workbench.sandboxes.wire import NEVER, SandboxRequest, SandboxResponse, json_answer

LEADS = "/api/v1/inbound/leads"
CALLBACK_URL = "https://relay.invalid/cartelcrm/callback"
PAYLOAD = {"external_id": "A-1", "phone": "+380501234567", "first_name": "Олена", "country": "UA", "source": "ads"}


class Clock:
    """Virtual time: it passes when somebody waits."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def account(**terms: Any) -> CartelCrmAccount:
    known: dict[str, Any] = {
        "api_key": "key",
        "hmac_secret": "test_secret",
        "callback_secret": "callback_secret",
        "callback_url": CALLBACK_URL,
        "lives": (PAID_LIFE,),
    }
    return CartelCrmAccount(**known | terms)


def signature(body: bytes, secret: str = "test_secret") -> str:
    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


class Caller:
    """Signs as the contract says; any header can be replaced, or left out with None."""

    def __init__(self, http: httpx.Client, clock: Callable[[], float]) -> None:
        self.http = http
        self._clock = clock

    def submit(
        self, payload: object = None, key: str | None = "key-1", headers: Mapping[str, str | None] | None = None
    ) -> httpx.Response:
        body = payload if isinstance(payload, bytes) else encoded(PAYLOAD if payload is None else payload)
        ours = {"Idempotency-Key": key, "Content-Type": "application/json"}
        return self._send("POST", LEADS, body, ours | dict(headers or {}))

    def status(self, external_id: str, headers: Mapping[str, str | None] | None = None) -> httpx.Response:
        return self._send("GET", f"{LEADS}/{external_id}/status", b"", dict(headers or {}))

    def _send(self, method: str, path: str, body: bytes, headers: Mapping[str, str | None]) -> httpx.Response:
        proof = {
            "Authorization": "Bearer key",
            "X-Timestamp": str(int(self._clock())),
            "X-Signature": signature(body),
        }
        sent = {name: value for name, value in (proof | dict(headers)).items() if value is not None}
        return self.http.request(method, path, content=body or None, headers=sent)


def encoded(payload: object) -> bytes:
    return json.dumps(payload, ensure_ascii=False).encode()


@pytest.fixture
def clock() -> Clock:
    return Clock()


class Bench:
    """A sandbox in memory and a caller of it."""

    def __init__(self, clock: Clock, **terms: Any) -> None:
        self.clock = clock
        self.sandbox = CartelCrmSandbox(account(**terms), clock=clock, random=Random(7))
        transport = MemoryTransport({"cartelcrm.com": self.sandbox}, clock.sleep)
        self.http = httpx.Client(base_url="https://cartelcrm.com", transport=transport, timeout=10)
        self.caller = Caller(self.http, clock)

    def lead(self, **fields: str) -> Lead:
        """A lead that was submitted and accepted."""
        payload = PAYLOAD | fields
        assert self.caller.submit(payload, key=f"lead {len(self.sandbox.leads)}").status_code == 200
        lead = self.sandbox.find(payload["external_id"])
        assert lead is not None
        return lead

    def run(self, seconds: float, status: int | None = 200) -> list[CallbackDelivery]:
        """Let time pass up to each due moment, answering every callback with `status`."""
        end = self.clock.now + seconds
        sent = []
        while (at := self.sandbox.next_at) is not None and at <= end:
            self.clock.now = max(self.clock.now, at)
            for delivery in self.sandbox.due(self.clock.now):
                self.sandbox.answered(delivery, status)
                sent.append(delivery)
        self.clock.now = end
        return sent


@pytest.fixture
def bench(clock: Clock) -> Bench:
    return Bench(clock)


def told(deliveries: list[CallbackDelivery]) -> list[str]:
    return [json.loads(delivery.body)["status"] for delivery in deliveries]


# Proof of the caller


def test_a_signed_lead_is_accepted(bench: Bench) -> None:
    """200 carries the id and the status, and there is one lead with what was sent."""
    answer = bench.caller.submit()
    (lead,) = bench.sandbox.leads.values()
    assert (answer.status_code, answer.json()) == (200, {"id": lead.id, "status": "new"})
    assert lead.body == PAYLOAD


def test_the_contracts_known_answer_is_a_valid_signature(bench: Bench) -> None:
    """What openssl prints for the contract's example gets past the signature check, to the verdict."""
    known = "sha256=470ec5959a0a6b88df36072e68c5f53dbf06659e643410dc9e91b440bff1b904"
    answer = bench.caller.submit(b'{"phone":"+380501234567"}', headers={"X-Signature": known})
    assert (answer.status_code, answer.json()) == (422, {"reason": "external_id_required"})


@pytest.mark.parametrize("bearer", [None, "", "key", "Bearer", "Bearer other", "bearer key", "Basic key"])
def test_without_the_bearer_key_nobody_enters(bench: Bench, bearer: str | None) -> None:
    """401 for any other Authorization, and no lead."""
    answer = bench.caller.submit(headers={"Authorization": bearer})
    assert (answer.status_code, answer.json()) == (401, {"error": "unauthorized"})
    assert not bench.sandbox.leads


@pytest.mark.parametrize("offset", [-300, 0, 300])
def test_a_timestamp_within_the_window_is_taken(bench: Bench, offset: int) -> None:
    """The window of 300 seconds includes its ends."""
    stamp = str(int(bench.clock.now) + offset)
    assert bench.caller.submit(headers={"X-Timestamp": stamp}).status_code == 200


@pytest.mark.parametrize(
    "stamp",
    [
        None,
        "",
        "0",
        "1699999699",
        "1700000301",
        "1700000000000",
        "1700000000.0",
        "+1700000000",
        "1.7e9",
        "nan",
        "17_000_00_000",
    ],
)
def test_a_timestamp_outside_the_window_is_refused(bench: Bench, stamp: str | None) -> None:
    """401 for what is missing, late, early, or no plain number of seconds."""
    answer = bench.caller.submit(headers={"X-Timestamp": stamp})
    assert (answer.status_code, answer.json()) == (401, {"error": "timestamp_out_of_range"})
    assert not bench.sandbox.leads


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        "",
        "sha256=",
        signature(encoded(PAYLOAD)).removeprefix("sha256="),
        signature(encoded(PAYLOAD)).upper(),
        signature(encoded(PAYLOAD), "callback_secret"),
        signature(json.dumps(PAYLOAD).encode()),
        signature(encoded(PAYLOAD) + b"\n"),
        signature(b""),
    ],
)
def test_a_wrong_signature_is_refused(bench: Bench, wrong: str | None) -> None:
    """403 unless the header is `sha256=` and the lower-case hex of the very bytes under the right secret."""
    answer = bench.caller.submit(headers={"X-Signature": wrong})
    assert (answer.status_code, answer.json()) == (403, {"error": "bad_signature"})
    assert not bench.sandbox.leads


def test_a_signature_that_is_no_ascii_is_refused(bench: Bench) -> None:
    """Bytes that no signature can have are a wrong signature, not an accident."""
    headers = {"authorization": "Bearer key", "x-timestamp": "1700000000", "x-signature": "sha256=\udcff\u00e9"}
    answer = bench.sandbox.handle(SandboxRequest("POST", LEADS, headers=headers, body=b"{}"))
    assert answer.status == 403


def test_a_status_is_asked_with_the_signature_of_nothing(bench: Bench) -> None:
    """The status call signs the empty string; any other signature is refused."""
    bench.lead()
    assert bench.caller.status("A-1").status_code == 200
    refused = bench.caller.status("A-1", headers={"X-Signature": signature(b"A-1")})
    assert (refused.status_code, refused.json()) == (403, {"error": "bad_signature"})


# Verdicts on leads


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded"])
def test_only_json_is_taken(bench: Bench, content_type: str | None) -> None:
    """415 for a body that does not say that it is JSON."""
    answer = bench.caller.submit(headers={"Content-Type": content_type})
    assert (answer.status_code, answer.json()) == (415, {"error": "unsupported_media_type"})


@pytest.mark.parametrize("body", [b"{", b"\xff", b"[" * 100_000])
def test_malformed_json_is_refused(bench: Bench, body: bytes) -> None:
    """400 for a body that cannot be read."""
    answer = bench.caller.submit(body)
    assert (answer.status_code, answer.json()) == (400, {"error": "malformed_json"})


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        ([], "object_required"),
        ({"phone": "+380501234567"}, "external_id_required"),
        ({"external_id": " ", "phone": "+380501234567"}, "external_id_required"),
        ({"external_id": 1, "phone": "+380501234567"}, "external_id_required"),
        ({"external_id": "A-1"}, "phone_required"),
        ({"external_id": "A-1", "phone": ""}, "phone_required"),
        ({"external_id": "A-1", "phone": "+380501230000"}, "blacklisted"),
        ({"external_id": "A-1", "phone": "+380501234567", "country": "XX"}, "geo_not_accepted"),
        ({"external_id": "A-1", "phone": "+380501234567"}, "geo_not_accepted"),
    ],
)
def test_a_lead_is_rejected_with_a_reason(clock: Clock, payload: object, reason: str) -> None:
    """422 names why, and no lead is created."""
    bench = Bench(clock, countries=frozenset({"UA"}))
    answer = bench.caller.submit(payload)
    assert (answer.status_code, answer.json()) == (422, {"reason": reason})
    assert not bench.sandbox.leads


def test_a_bought_country_is_accepted(clock: Clock) -> None:
    """The list of countries refuses only what is not on it."""
    assert Bench(clock, countries=frozenset({"UA"})).caller.submit().status_code == 200


@pytest.mark.parametrize("fields", [{"phone": "+15005550006"}, {"external_id": "A-2", "phone": "+380 (50) 123-45-67"}])
def test_a_known_lead_is_a_duplicate(bench: Bench, fields: dict[str, str]) -> None:
    """409 with the existing id for a known external_id, and for a known phone however it is written."""
    known = bench.lead()
    answer = bench.caller.submit(PAYLOAD | fields, key="another")
    assert (answer.status_code, answer.json()) == (409, {"id": known.id})
    assert len(bench.sandbox.leads) == 1


def test_a_crm_that_knows_no_duplicates_doubles_leads(clock: Clock) -> None:
    """With `duplicate_by` empty a second try under another key makes a second lead, which the status then names."""
    bench = Bench(clock, duplicate_by=frozenset())
    first = bench.caller.submit(key="A-1-1").json()["id"]
    second = bench.caller.submit(key="A-1-2").json()["id"]
    assert list(bench.sandbox.leads) == [first, second]
    assert bench.caller.status("A-1").json()["id"] == second


# Idempotency


def test_the_same_key_and_body_get_the_same_answer(bench: Bench) -> None:
    """A repeated request is answered with the first id, and creates nothing."""
    first = bench.caller.submit()
    again = bench.caller.submit()
    assert (again.status_code, again.content) == (200, first.content)
    assert len(bench.sandbox.leads) == 1


def test_a_rejection_is_kept_too(bench: Bench) -> None:
    """A verdict under a key stays what it was, whatever has changed since."""
    assert bench.caller.submit(PAYLOAD | {"phone": "+380501230000"}).json() == {"reason": "blacklisted"}
    assert bench.caller.submit(PAYLOAD | {"phone": "+380501230000"}).json() == {"reason": "blacklisted"}
    assert bench.caller.submit().json() == {"reason": "idempotency_key_reused"}


def test_a_key_is_for_one_body(bench: Bench) -> None:
    """The same key with other bytes is refused and creates nothing."""
    bench.caller.submit()
    answer = bench.caller.submit({"external_id": "A-2", "phone": "+15005550006"})
    assert (answer.status_code, answer.json()) == (422, {"reason": "idempotency_key_reused"})
    assert len(bench.sandbox.leads) == 1


@pytest.mark.parametrize("key", [None, ""])
def test_a_lead_needs_a_key(bench: Bench, key: str | None) -> None:
    """A submission without Idempotency-Key is refused."""
    answer = bench.caller.submit(key=key)
    assert (answer.status_code, answer.json()) == (422, {"reason": "idempotency_key_required"})


def test_a_refusal_at_the_door_keeps_no_verdict(bench: Bench) -> None:
    """What was refused for its signature or the rate goes through later under the same key."""
    bench.sandbox.faults.add(RateLimited(), CodedError())
    assert bench.caller.submit(headers={"X-Signature": "sha256="}).status_code == 429
    assert bench.caller.submit().status_code == 503
    assert bench.caller.submit(headers={"X-Signature": "sha256="}).status_code == 403
    assert bench.caller.submit().status_code == 200


# Status and routes


def test_a_status_names_the_lead(bench: Bench) -> None:
    """200 with id, external_id and the present status; 404 with a reason for an unknown lead."""
    lead = bench.lead()
    bench.sandbox.move(lead, "hold")
    assert bench.caller.status("A-1").json() == {"id": lead.id, "external_id": "A-1", "status": "hold"}
    unknown = bench.caller.status("A-2")
    assert (unknown.status_code, unknown.json()) == (404, {"reason": "not_found"})


def test_an_external_id_survives_the_path(bench: Bench) -> None:
    """A percent-encoded slash, query sign or letter is part of the external_id."""
    bench.lead(external_id="../ü/x?y#z")
    assert bench.caller.status("..%2F%C3%BC%2Fx%3Fy%23z").json()["external_id"] == "../ü/x?y#z"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/inbound/leads"),
        ("POST", "/other/v1/inbound/leads"),
        ("PUT", LEADS),
        ("POST", f"{LEADS}/"),
        ("POST", f"{LEADS}/A-1/status"),
        ("POST", "/"),
    ],
)
def test_other_routes_do_not_exist(bench: Bench, method: str, path: str) -> None:
    """404 for what the contract does not name, also without the base path."""
    headers = {"Authorization": "Bearer key", "X-Timestamp": "1700000000", "X-Signature": signature(b"{}")}
    answer = bench.http.request(method, path, content=b"{}", headers=headers)
    assert (answer.status_code, answer.json()) == (404, {"error": "not_found"})


def test_a_request_is_read_part_by_part() -> None:
    """Path and query are kept as they came, decoded on demand, and headers are found in lower case."""
    request = SandboxRequest.of("GET", "/a%2Fb/c?x=1&x=%C3%BC&y=", {"X-Name": "v"}, b"")
    assert (request.path, request.query) == ("/a%2Fb/c", "x=1&x=%C3%BC&y=")
    assert request.parts == ("a/b", "c")
    assert request.parameters == {"x": ["1", "ü"], "y": [""]}
    assert request.headers == {"x-name": "v"}


def test_the_base_path_is_a_setting(clock: Clock) -> None:
    """An account may live at the root, or anywhere."""
    for base in ("", "/crm/api"):
        sandbox = CartelCrmSandbox(account(base_path=base), clock=clock, random=Random(1))
        http = httpx.Client(base_url=f"https://c{base}", transport=MemoryTransport({"c": sandbox}))
        body = encoded(PAYLOAD)
        headers = {
            "Authorization": "Bearer key",
            "X-Timestamp": "1700000000",
            "X-Signature": signature(body),
            "Idempotency-Key": "1",
            "Content-Type": "application/json; charset=utf-8",
        }
        assert http.post("/v1/inbound/leads", content=body, headers=headers).status_code == 200


# The rate


def test_the_rate_is_held_in_a_sliding_window(clock: Clock) -> None:
    """Beyond the limit 429 says when there is room again; refused requests use up none of it."""
    bench = Bench(clock, requests_per_second=2)
    assert bench.caller.status("x").status_code == 404
    clock.sleep(0.5)
    assert [bench.caller.status("x").status_code for _ in range(3)] == [404, 429, 429]
    refused = bench.caller.status("x")
    assert (refused.json(), refused.headers["retry-after"]) == ({"error": "rate_limited"}, "1")
    clock.sleep(0.5)
    assert [bench.caller.status("x").status_code for _ in range(2)] == [404, 429]


def test_a_caller_at_exactly_the_rate_is_not_refused(clock: Clock) -> None:
    """Rounding of times costs nobody a request."""
    bench = Bench(clock, requests_per_second=7)
    answers = []
    for _ in range(700):
        answers.append(bench.caller.status("x").status_code)
        clock.sleep(1 / 7)
    assert set(answers) == {404}


def test_the_busiest_window_is_measured(bench: Bench) -> None:
    """What came in is kept with its times, so that the highest rate can be told."""
    for pause in (0.6, 0.3, 0.2, 0.2, 5.0):
        bench.caller.status("x")
        bench.clock.sleep(pause)
    times = [received.at for received in bench.sandbox.received]
    assert busiest(times) == 4
    assert busiest(times, seconds=0.25) == 2
    assert busiest([]) == 0


def test_what_came_in_is_recorded_as_it_was_sent(bench: Bench) -> None:
    """Body bytes, headers, status and fault of each request can be compared afterwards."""
    bench.sandbox.faults.add(Reset(when="after"))
    with pytest.raises(httpx.ReadError):
        bench.caller.submit()
    bench.caller.submit()
    lost, kept = bench.sandbox.received
    assert (lost.status, lost.fault) == (None, "reset")
    assert (kept.status, kept.fault) == (200, None)
    assert lost.request.body == kept.request.body == encoded(PAYLOAD)
    assert lost.request.headers["idempotency-key"] == "key-1"


# Faults, in memory


@pytest.mark.parametrize(("when", "leads"), [("before", 0), ("after", 1)])
@pytest.mark.parametrize(("kind", "error"), [(Timeout, httpx.ReadTimeout), (Reset, httpx.ReadError)])
def test_a_lost_answer_is_an_httpx_error(
    bench: Bench, kind: Any, error: type[Exception], when: str, leads: int
) -> None:
    """The caller cannot tell from the error whether the lead was created; the sandbox can."""
    bench.sandbox.faults.add(kind(when=when))
    with pytest.raises(error):
        bench.caller.submit()
    assert len(bench.sandbox.leads) == leads
    assert bench.caller.submit().status_code == 200
    assert len(bench.sandbox.leads) == 1


def test_a_timeout_takes_as_long_as_the_caller_waits(bench: Bench) -> None:
    """Virtual time moves by the read time-out, and by nothing else."""
    bench.sandbox.faults.add(Timeout())
    before = bench.clock.now
    with pytest.raises(httpx.ReadTimeout):
        bench.caller.submit()
    assert bench.clock.now - before == 10


def test_waiting_for_ever_is_a_mistake(bench: Bench) -> None:
    """A caller without a read time-out is told so instead of hanging."""
    bench.http.timeout = None
    bench.sandbox.faults.add(Timeout())
    with pytest.raises(RuntimeError, match="time-out"):
        bench.caller.submit()


def test_a_slow_answer_arrives_or_is_given_up(bench: Bench) -> None:
    """The answer comes late by the seconds ordered, unless the caller's patience ends first."""
    bench.sandbox.faults.add(Slow(seconds=8), Slow(seconds=12))
    before = bench.clock.now
    assert bench.caller.submit().status_code == 200
    assert bench.clock.now - before == 8
    with pytest.raises(httpx.ReadTimeout):
        bench.caller.submit()
    assert bench.clock.now - before == 18


def test_a_drip_outlasts_a_read_timeout(bench: Bench) -> None:
    """Bytes arrive one by one, each in time, and the whole takes the seconds ordered."""
    whole = bench.caller.submit().content
    bench.sandbox.faults.add(Drip(seconds=60))
    before = bench.clock.now
    with bench.http.stream("GET", f"{LEADS}/A-1/status") as refused:
        chunks = list(refused.iter_raw())
    assert b"".join(chunks) == b'{"error": "unauthorized"}'
    assert {len(chunk) for chunk in chunks} == {1}
    assert bench.clock.now - before == pytest.approx(60)
    assert bench.caller.submit().content == whole


def test_a_drip_slower_than_the_patience_times_out(bench: Bench) -> None:
    """One byte in more than the read time-out is too slow."""
    bench.sandbox.faults.add(Drip(seconds=10_000))
    with pytest.raises(httpx.ReadTimeout):
        bench.caller.submit()


def test_an_answer_cut_short_breaks_in_its_body(bench: Bench) -> None:
    """Half of the body arrives and then an error; the lead is there."""
    bench.sandbox.faults.add(CutShort())
    with pytest.raises(httpx.ReadError):
        bench.caller.submit()
    assert len(bench.sandbox.leads) == 1


def test_an_oversized_answer_does_not_announce_itself(bench: Bench) -> None:
    """The body is as large as ordered, still JSON, and no Content-Length warns of it."""
    bench.sandbox.faults.add(Oversized(size=100_000))
    answer = bench.caller.submit()
    assert len(answer.content) == 100_000
    assert "content-length" not in answer.headers
    assert answer.json()["status"] == "new"


@pytest.mark.parametrize(
    ("fault", "status", "body"),
    [
        (RateLimited(retry_after=7), 429, b'{"error": "rate_limited"}'),
        (CodedError(), 503, b'{"error": "internal_error"}'),
        (Unauthorized(), 401, b'{"error": "unauthorized"}'),
        (Forbidden(), 403, b'{"error": "forbidden"}'),
        (Html(status=502), 502, b"<!doctype html><html><body><h1>502</h1></body></html>"),
        (Html(), 200, b"<!doctype html><html><body><h1>200</h1></body></html>"),
        (Replaced(), 200, b"{}"),
        (Redirect(), 302, b""),
    ],
)
def test_a_fault_answers_in_place_of_the_crm(bench: Bench, fault: Fault, status: int, body: bytes) -> None:
    """One request meets the fault, in CartelCRM's shape; the next is answered as ever."""
    bench.sandbox.faults.add(fault)
    answer = bench.caller.submit()
    assert (answer.status_code, answer.content) == (status, body)
    assert not bench.sandbox.leads
    assert bench.caller.submit().status_code == 200


@pytest.mark.parametrize("fault", [Html(status=504, when="after"), Html(when="after"), Replaced(when="after")])
def test_a_useless_answer_may_hide_a_lead(bench: Bench, fault: Fault) -> None:
    """The lead was created although its answer says nothing of the kind, and the status finds it."""
    bench.sandbox.faults.add(fault)
    assert b'"id"' not in bench.caller.submit().content
    (lead,) = bench.sandbox.leads.values()
    assert bench.caller.status("A-1").json()["id"] == lead.id


def test_an_unknown_host_cannot_be_reached(clock: Clock) -> None:
    """A host without a sandbox refuses the connection."""
    with httpx.Client(transport=MemoryTransport({})) as http, pytest.raises(httpx.ConnectError):
        http.get("https://elsewhere.invalid/")


# Callbacks


def test_a_lead_lives_and_tells(bench: Bench) -> None:
    """Every status of its life is called back once, in order, at its time, and ends in the lead."""
    lead = bench.lead()
    start = int(bench.clock.now)
    deliveries = bench.run(seconds=200_000)
    callbacks = [json.loads(delivery.body) for delivery in deliveries]
    assert [callback["status"] for callback in callbacks] == ["new", "accepted", "hold", "approved", "paid"]
    assert [callback["timestamp"] - start for callback in callbacks] == [1, 61, 661, 4_261, 90_661]
    assert callbacks[0] == {
        "internal_id": lead.id,
        "event": "lead_new",
        "timestamp": start + 1,
        "status": "new",
        "external_id": "A-1",
    }
    assert [(c.get("payout"), c.get("currency")) for c in callbacks[2:]] == [(None, None), (42.5, "USD"), (42.5, "USD")]
    assert {delivery.url for delivery in deliveries} == {CALLBACK_URL}
    assert lead.status == "paid"
    assert lead.history[-1] == (start + 90_661, "paid")
    assert bench.sandbox.next_at is None


def test_a_callback_is_signed_at_the_moment_it_leaves(bench: Bench) -> None:
    """The signature covers the raw body under the callback secret; a repetition has a fresh timestamp only."""
    bench.lead()
    first, second = bench.run(seconds=12, status=500)
    assert first.headers["X-Signature"] == signature(first.body, "callback_secret")
    assert first.headers["Content-Type"] == "application/json"
    assert (second.body, second.headers["X-Signature"]) == (first.body, first.headers["X-Signature"])
    assert int(second.headers["X-Timestamp"]) - int(first.headers["X-Timestamp"]) == 10


@pytest.mark.parametrize("status", [None, 199, 301, 401, 500])
def test_a_bad_answer_is_followed_by_growing_delays(clock: Clock, status: int | None) -> None:
    """Anything but a 2xx, and no answer at all, is repeated after each delay, then given up."""
    bench = Bench(clock, lives=(((1, "new"),),))
    bench.lead()
    deliveries = bench.run(seconds=100_000, status=status)
    assert [delivery.attempt for delivery in deliveries] == [1, 2, 3, 4, 5, 6]
    (callback,) = bench.sandbox.callbacks.log
    times = [at for at, _ in callback.answers]
    assert [after - before for before, after in pairwise(times)] == [10, 60, 300, 1_800, 7_200]
    assert (callback.state, bench.sandbox.next_at) == ("given_up", None)


def test_a_good_answer_ends_the_repetition(clock: Clock) -> None:
    """A 2xx on a later attempt delivers the callback."""
    bench = Bench(clock, lives=(((1, "new"),),))
    bench.lead()
    bench.run(seconds=5, status=503)
    bench.run(seconds=100_000, status=204)
    (callback,) = bench.sandbox.callbacks.log
    assert [status for _, status in callback.answers] == [503, 204]
    assert callback.state == "delivered"


def test_a_delivery_under_way_is_not_due_again(bench: Bench) -> None:
    """A callback waits for its answer, which can be given only once."""
    bench.sandbox.move(bench.lead(), "accepted")
    (delivery,) = bench.sandbox.due(bench.clock.now)
    assert bench.sandbox.due(bench.clock.now + 1_000_000) == []
    bench.sandbox.answered(delivery, 200)
    with pytest.raises(KeyError):
        bench.sandbox.answered(delivery, 200)


def test_time_can_be_compressed(clock: Clock) -> None:
    """A scale shortens life and repetition; still no two changes of a lead share a second."""
    bench = Bench(clock, life_scale=1e-6, repeat_scale=0.01)
    bench.lead()
    start = bench.clock.now
    deliveries = bench.run(seconds=0.5, status=500)
    first_attempts = [delivery for delivery in deliveries if delivery.attempt == 1]
    stamps = [json.loads(delivery.body)["timestamp"] for delivery in first_attempts]
    assert told(first_attempts) == ["new", "accepted", "hold", "approved", "paid"]
    assert [stamp - int(start) for stamp in stamps] == [0, 1, 2, 3, 4]
    assert [delivery.attempt for delivery in deliveries].count(2) == 5


def test_lives_are_drawn_from_the_seed(clock: Clock) -> None:
    """Leads end differently, and the same seed gives the same ids and ends."""

    def ends() -> list[tuple[str, str]]:
        bench = Bench(clock, lives=(PAID_LIFE, REJECTED_LIFE, TRASHED_LIFE))
        for number in range(30):
            bench.lead(external_id=f"A-{number}", phone=f"+38050123{number + 1000}9")
        bench.run(seconds=200_000)
        return [(lead.id, lead.status) for lead in bench.sandbox.leads.values()]

    assert ends() == ends()
    assert {status for _, status in ends()} == {"paid", "rejected", "trash"}


def test_life_goes_on_while_nobody_takes_callbacks(bench: Bench) -> None:
    """Whoever asks for the status is told the one that is due by then."""
    bench.lead()
    bench.clock.sleep(700)
    assert bench.caller.status("A-1").json()["status"] == "hold"


def test_the_name_of_the_event_is_a_setting(clock: Clock) -> None:
    """An event may be the same for every status."""
    bench = Bench(clock, event="lead.status_changed")
    bench.sandbox.move(bench.lead(), "accepted")
    (delivery,) = bench.sandbox.due(bench.clock.now)
    assert json.loads(delivery.body)["event"] == "lead.status_changed"


def test_without_an_address_there_are_no_callbacks(clock: Clock) -> None:
    """A lead lives all the same, and its status can be asked for."""
    bench = Bench(clock, callback_url=None)
    bench.lead()
    assert bench.run(seconds=200_000) == []
    assert bench.caller.status("A-1").json()["status"] == "paid"


def test_a_hand_ends_a_life(bench: Bench) -> None:
    """A lead that was moved by hand stays where it was put."""
    lead = bench.lead()
    bench.run(seconds=61)
    (callback,) = bench.sandbox.move(lead, "rejected")
    assert told(bench.run(seconds=200_000)) == ["rejected"]
    assert (lead.status, callback.state) == ("rejected", "delivered")


# The controls


def change(bench: Bench, name: str, **order: Any) -> httpx.Response:
    return bench.http.post(f"/sandbox/leads/{name}/status", json=order)


def test_a_person_moves_a_lead(bench: Bench) -> None:
    """A lead is found by either of its names, moved, and the callback's number comes back."""
    lead = bench.lead()
    answer = change(bench, lead.id, status="hold")
    assert answer.json() == {"id": lead.id, "status": "hold", "callbacks": [1]}
    assert change(bench, "A-1", status="Whatever it is").json()["callbacks"] == [2]
    assert told(bench.run(seconds=0)) == ["hold", "Whatever it is"]
    assert change(bench, "nobody", status="hold").status_code == 404


def test_an_older_status_can_come_after_a_newer(bench: Bench) -> None:
    """With `seconds_ago` the callback is dated back, and the lead stays where it is."""
    change(bench, bench.lead().external_id, status="approved")
    late = change(bench, "A-1", status="hold", seconds_ago=3_600)
    assert late.json()["status"] == "approved"
    newer, older = [json.loads(delivery.body) for delivery in bench.run(seconds=0)]
    assert (newer["status"], older["status"]) == ("approved", "hold")
    assert newer["timestamp"] - older["timestamp"] == 3_600


def test_a_callback_can_come_in_copies(bench: Bench) -> None:
    """`copies` sends the very same callback that often."""
    bench.lead()
    change(bench, "A-1", status="hold", copies=3)
    deliveries = bench.run(seconds=0)
    assert len(deliveries) == 3
    assert len({(delivery.body, tuple(delivery.headers.items())) for delivery in deliveries}) == 1


def test_a_callback_can_be_signed_with_another_secret(bench: Bench) -> None:
    """`secret` signs this callback alone; an empty one is a secret as well."""
    bench.lead()
    for order in ({"secret": "other"}, {"secret": ""}, {}):
        change(bench, "A-1", status="hold", **order)
    deliveries = bench.run(seconds=0)
    signatures = [delivery.headers["X-Signature"] for delivery in deliveries]
    secrets = ["other", "", "callback_secret"]
    assert signatures == [signature(d.body, s) for d, s in zip(deliveries, secrets, strict=True)]


@pytest.mark.parametrize("order", [{}, {"status": ""}, {"status": "hold", "copies": 0}, {"status": "hold", "x": 1}])
def test_a_mistaken_change_is_refused(bench: Bench, order: dict[str, Any]) -> None:
    """422 names the mistake, and nothing moves."""
    lead = bench.lead()
    answer = change(bench, "A-1", **order)
    assert (answer.status_code, answer.json()["error"]) == (422, "invalid_change")
    assert answer.json()["problems"]
    assert lead.status == "new"


def test_faults_are_queued_over_http(bench: Bench) -> None:
    """Control requests are neither hit by faults nor counted as the CRM's."""
    assert bench.http.post("/sandbox/faults", json={"kind": "forbidden", "times": 2}).status_code == 200
    (waiting,) = bench.http.get("/sandbox/faults").json()["faults"]
    assert (waiting["kind"], waiting["times"], waiting["hits"]) == ("forbidden", 2, 0)
    assert bench.caller.submit().status_code == 403
    assert bench.http.delete("/sandbox/faults").json() == {"faults": []}
    assert bench.caller.submit().status_code == 200
    assert len(bench.sandbox.received) == 2
    assert bench.http.get("/sandbox/unknown").status_code == 404


def test_the_state_shows_the_story_and_hides_the_person(bench: Bench) -> None:
    """Leads, callbacks and counters are shown; neither secrets nor names nor whole phones are."""
    lead = bench.lead()
    bench.caller.submit(PAYLOAD | {"external_id": "A-2"}, key="other")
    bench.sandbox.faults.add(Timeout(), Html())
    with pytest.raises(httpx.ReadTimeout):
        bench.caller.submit()
    bench.run(seconds=1)
    answer = bench.http.get("/sandbox/state")
    state = answer.json()
    assert state["counters"] == {"requests": 3, "status 200": 1, "status 409": 1, "fault timeout": 1}
    assert state["busiest_second"] == 3
    assert [fault["kind"] for fault in state["faults"]] == ["html"]
    (shown,) = state["leads"]
    assert (shown["id"], shown["external_id"], shown["phone"]) == (lead.id, "A-1", "***********67")
    (callback,) = state["callbacks"]
    assert (callback["event"], callback["state"], callback["answers"]) == ("lead_new", "delivered", [200])
    for hidden in ("test_secret", "callback_secret", "380501234567", "Олена", "\\u041e"):
        assert hidden not in answer.text


# Over real sockets


class Receiver(Sandbox):
    """Takes callbacks, with the statuses that it was given, then with 200."""

    def __init__(self, *statuses: int) -> None:
        super().__init__(clock=time.time, random=Random(1))
        self._statuses = list(statuses)

    @override
    def answer(self, request: SandboxRequest) -> SandboxResponse:
        return json_answer(self._statuses.pop(0) if self._statuses else 200, {"ok": True})

    @override
    def refusal(self, status: int, code: str) -> SandboxResponse:
        return json_answer(status, {"error": code})


def on_sockets(
    play: Callable[[CartelCrmSandbox, Caller], None], receiver: Receiver | None = None, **terms: Any
) -> None:
    """Serve a sandbox, and a receiver of its callbacks if there is one, while `play` calls it from a thread."""

    async def run() -> None:
        async with serve(receiver or Receiver()) as callback_address:
            url = f"{callback_address}/callback" if receiver else None
            sandbox = CartelCrmSandbox(account(callback_url=url, **terms), clock=time.time, random=Random(1))
            async with serve(sandbox) as address:
                assert address.startswith("http://127.0.0.1:")
                with httpx.Client(base_url=address, timeout=5) as http:
                    await asyncio.to_thread(play, sandbox, Caller(http, time.time))

    asyncio.run(run())


def test_leads_and_callbacks_travel_over_sockets() -> None:
    """A lead submitted over HTTP comes back as a signed callback, repeated when it was answered badly."""
    receiver = Receiver(500)

    def play(sandbox: CartelCrmSandbox, caller: Caller) -> None:
        assert caller.submit(PAYLOAD | {"external_id": "../ü"}).status_code == 200
        assert caller.status("..%2F%C3%BC").json()["external_id"] == "../ü"
        while len(receiver.received) < 2:
            assert caller.http.get("/sandbox/state").status_code == 200

    on_sockets(play, receiver, lives=(((0, "accepted"),),), repeat_scale=0)
    first, second = (received.request for received in receiver.received)
    assert first.body == second.body
    assert json.loads(first.body)["status"] == "accepted"
    assert first.headers["x-signature"] == signature(first.body, "callback_secret")
    assert first.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Timeout(when="after"), httpx.ReadTimeout),
        (Reset(when="after"), httpx.ReadError),
        (CutShort(), (httpx.ReadError, httpx.RemoteProtocolError)),
        (Slow(seconds=60), httpx.ReadTimeout),
        (Drip(seconds=60_000), httpx.ReadTimeout),
    ],
)
def test_a_fault_over_sockets_is_the_same_error(fault: Fault, error: Any) -> None:
    """What the memory transport raises is what httpx meets on a socket; the lead is there all the same."""

    def play(sandbox: CartelCrmSandbox, caller: Caller) -> None:
        sandbox.faults.add(fault)
        caller.http.timeout = httpx.Timeout(5, read=0.2)
        with pytest.raises(error):
            caller.submit()
        assert len(sandbox.leads) == 1
        caller.http.timeout = httpx.Timeout(5)
        assert caller.submit().status_code == 200

    on_sockets(play)


def test_odd_bodies_arrive_over_sockets() -> None:
    """A dripping body is whole in the end, and an oversized one comes without Content-Length."""

    def play(sandbox: CartelCrmSandbox, caller: Caller) -> None:
        sandbox.faults.add(Drip(seconds=0.05), Oversized(size=300_000))
        assert caller.submit().json()["status"] == "new"
        oversized = caller.submit()
        assert len(oversized.content) == 300_000
        assert "content-length" not in oversized.headers

    on_sockets(play)


def test_a_compressed_body_is_not_inflated() -> None:
    """The bytes that came are the bytes that are checked, whatever Content-Encoding claims."""

    def play(sandbox: CartelCrmSandbox, caller: Caller) -> None:
        assert caller.submit(headers={"Content-Encoding": "gzip"}).status_code == 200

    on_sockets(play)


def test_a_server_ends_though_a_caller_waits() -> None:
    """An answer that never comes does not keep the sandbox up; the caller loses its connection."""

    async def run() -> None:
        arrived = asyncio.Event()

        class Silent(Receiver):
            @override
            def answer(self, request: SandboxRequest) -> SandboxResponse:
                arrived.set()
                return NEVER

        async with httpx.AsyncClient(timeout=60) as http, asyncio.timeout(5):
            async with serve(Silent()) as address:
                waiting = asyncio.create_task(http.get(address))
                await arrived.wait()
            with pytest.raises(httpx.TransportError):
                await waiting

    asyncio.run(run())


def test_a_taken_port_is_an_error() -> None:
    """Two sandboxes cannot share a port, and the second says so."""

    async def run() -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            with pytest.raises(OSError, match="in use"):
                async with serve(Receiver(), taken.getsockname()[1]):
                    pass

    asyncio.run(run())


def test_a_callback_to_a_dead_address_is_repeated() -> None:
    """A refused connection counts as no answer, and the loop goes on."""

    async def run() -> None:
        terms = account(callback_url="http://127.0.0.1:9/callback", lives=(((0, "new"),),), repeat_scale=0)
        sandbox = CartelCrmSandbox(terms, clock=time.time, random=Random(1))
        async with serve(sandbox) as address:
            with httpx.Client(base_url=address) as http:
                await asyncio.to_thread(Caller(http, time.time).submit)
                while not (log := sandbox.callbacks.log) or log[0].state == "waiting":
                    await asyncio.to_thread(http.get, "/sandbox/state")
        assert (log[0].state, [status for _, status in log[0].answers]) == ("given_up", [None] * 6)

    asyncio.run(run())
