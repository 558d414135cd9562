"""Leads to CartelCRM: what is asked, and what each answer means. Driven by hand, without any network."""

import hashlib
import hmac
import json
from collections.abc import Mapping
from email.utils import formatdate

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crm_relay.cartelcrm.client import Accepted, Account, Duplicate, LeadStatus, lead_status, submit_lead
from crm_relay.http_client import Response
from crm_relay.outcomes import Blocked, NotExecuted, Outcome, OutcomeUnknown, Rejected, Unauthorized, Unreachable
from tests.exchanges import Driven, drive, says
from tests.relay import START
from workbench.sandboxes.wire import SandboxRequest

ACCOUNT = Account("https://cartelcrm.com/api", "the-api-key", "test_secret")
BODY = b'{"phone":"+380501234567"}'
HTML = b"<!doctype html><h1>502</h1>"


def submit(*answers: Response | Outcome, external_id: str = "e1", body: bytes = BODY) -> Driven[Accepted | Duplicate]:
    exchange = submit_lead(ACCOUNT, body, external_id=external_id, idempotency_key="k-1", now=START)
    return drive(exchange, *answers)


def ask(*answers: Response | Outcome, external_id: str = "e1") -> Driven[LeadStatus | None]:
    return drive(lead_status(ACCOUNT, external_id, now=START), *answers)


def signature(body: bytes) -> str:
    return "sha256=" + hmac.new(b"test_secret", body, hashlib.sha256).hexdigest()


def test_a_submission_is_what_the_contract_says() -> None:
    """Address, headers, signature (the contract's known answer), body and deadline."""
    (request,) = submit(says(200, {"id": "L-1"})).requests
    assert (request.method, request.url) == ("POST", "https://cartelcrm.com/api/v1/inbound/leads")
    assert request.headers == {
        "Authorization": "Bearer the-api-key",
        "X-Signature": "sha256=470ec5959a0a6b88df36072e68c5f53dbf06659e643410dc9e91b440bff1b904",
        "X-Timestamp": str(int(START)),
        "Idempotency-Key": "k-1",
        "Content-Type": "application/json",
    }
    assert (request.content, request.deadline) == (BODY, 15)


def test_a_status_call_is_what_the_contract_says() -> None:
    """The empty string is signed; there is no Idempotency-Key, for nothing is done."""
    (request,) = ask(says(200, {"id": "L-1"})).requests
    assert (request.method, request.url) == ("GET", "https://cartelcrm.com/api/v1/inbound/leads/e1/status")
    assert request.headers == {
        "Authorization": "Bearer the-api-key",
        "X-Signature": signature(b""),
        "X-Timestamp": str(int(START)),
    }
    assert (request.content, request.deadline) == (b"", 10)


@pytest.mark.parametrize(
    "name", ["Оля 😀", "עברית", 'quotes " \\ and / slashes', "line\nbreak", "\u2028", "naïve"], ids=ascii
)
def test_d22_what_is_signed_is_what_is_sent(name: str) -> None:
    """D22: whatever a name holds, the signature is that of the very bytes in the body."""
    body = json.dumps({"first_name": name}, ensure_ascii=False).encode()
    (request,) = submit(says(200, {"id": 1}), body=body).requests
    assert request.content == body
    assert request.headers["X-Signature"] == signature(request.content)


def test_the_account_does_not_show_its_secrets() -> None:
    """Printed by accident, it tells where CartelCRM is and no more."""
    assert "the-api-key" not in repr(ACCOUNT)
    assert "test_secret" not in repr(ACCOUNT)


# What an answer to a submission means


@pytest.mark.parametrize(
    ("answer", "lead_id"),
    [({"id": "L-1"}, "L-1"), ({"id": 77}, "77"), ({"id": 0}, "0"), ({"id": "L-1", "reason": "none"}, "L-1")],
)
def test_an_id_is_what_accepts_a_lead(answer: object, lead_id: str) -> None:
    """With an id the lead is CartelCRM's, be the id a number or a text."""
    assert submit(says(200, answer)).result == Accepted(lead_id)


@pytest.mark.parametrize("status", [200, 201, 202, 204])
@pytest.mark.parametrize(
    "answer",
    [b"", HTML, {}, [], None, {"id": None}, {"id": ""}, {"id": True}, {"id": {}}, {"id": ["L-1"]}, {"id": 1.5}],
)
def test_d11_a_success_without_an_id_proves_nothing(status: int, answer: object) -> None:
    """D11: no JSON, no id, no verdict: the status must be looked up."""
    assert isinstance(submit(says(status, answer)).outcome, OutcomeUnknown)


def test_d12_a_duplicate_with_an_id_names_the_lead_that_exists() -> None:
    """D12: one request is enough."""
    driven = submit(says(409, {"id": "L-1"}))
    assert driven.result == Duplicate("L-1")
    assert len(driven.requests) == 1


def test_d12_a_duplicate_without_an_id_is_looked_up() -> None:
    """D12: which lead exists is asked for by our own id."""
    driven = submit(says(409, {}), says(200, {"id": "L-1"}))
    assert driven.result == Duplicate("L-1")
    assert driven.requests[1].url.endswith("/v1/inbound/leads/e1/status")


@pytest.mark.parametrize(
    "answer",
    [says(404), says(200, {}), says(200, {"status": "new"}), says(400), says(500, HTML), OutcomeUnknown("ReadTimeout")],
    ids=repr,
)
def test_d12_a_duplicate_is_one_also_when_the_look_up_says_nothing(answer: Response | Outcome) -> None:
    """D12: a 409 is a verdict about this lead; that its id is unknown does not undo it."""
    assert submit(says(409, HTML), answer).result == Duplicate(None)


@pytest.mark.parametrize(
    ("answer", "outcome"), [(says(429), NotExecuted), (says(401), Unauthorized), (Unreachable("x"), Unreachable)]
)
def test_d12_a_look_up_that_may_yet_succeed_is_waited_for(answer: Response | Outcome, outcome: type[Outcome]) -> None:
    """D12: while CartelCRM is busy or does not know us, the whole is tried again later."""
    assert isinstance(submit(says(409), answer).outcome, outcome)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": formatdate(START + 60, usegmt=True)}, 60.0),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "abc"}, None),
        ({"retry-after": str(10**9)}, 1e9),
    ],
)
def test_d13_a_busy_crm_executed_nothing(headers: Mapping[str, str], seconds: float | None) -> None:
    """D13: 429 with whatever Retry-After: nothing was done, and it is no outage."""
    outcome = submit(says(429, {"error": "rate_limited"}, headers)).outcome
    assert isinstance(outcome, NotExecuted)
    assert not isinstance(outcome, Unreachable)
    assert outcome.retry_after == seconds


@pytest.mark.parametrize("status", [500, 502, 503, 504, 599])
@pytest.mark.parametrize("answer", [HTML, b"", {}, {"error": 5}, {"message": "Internal server error"}, []])
def test_d14_a_bare_5xx_leaves_doubt(status: int, answer: object) -> None:
    """D14: some proxy speaks, and does not know what CartelCRM did."""
    assert isinstance(submit(says(status, answer)).outcome, OutcomeUnknown)


@pytest.mark.parametrize("status", [500, 503])
@pytest.mark.parametrize("word", ["error", "reason", "code"])
def test_d14_a_coded_5xx_executed_nothing(status: int, word: str) -> None:
    """D14: CartelCRM's own error says that no lead was created, and for how long to stay away."""
    outcome = submit(says(status, {word: "maintenance"}, {"retry-after": "60"})).outcome
    assert isinstance(outcome, Unreachable)
    assert outcome.retry_after == 60


@pytest.mark.parametrize("status", [400, 402, 404, 405, 410, 413, 415, 418, 422, 451])
def test_d15_a_refusal_is_final_and_keeps_its_reason(status: int) -> None:
    """D15: repeating the same cannot help."""
    outcome = submit(says(status, {"reason": "blacklisted"})).outcome
    assert isinstance(outcome, Rejected)
    assert outcome.reason == "blacklisted"


@pytest.mark.parametrize("answer", [{}, {"reason": ""}, {"reason": None}, {"reason": {"a": 1}}, []])
def test_d15_a_refusal_without_a_reason_is_unknown(answer: object) -> None:
    """D15: the contract's word for it."""
    outcome = submit(says(422, answer)).outcome
    assert isinstance(outcome, Rejected)
    assert outcome.reason == "unknown"


@pytest.mark.parametrize("status", [400, 404, 422])
def test_a_page_instead_of_a_verdict_gives_up_no_lead(status: int) -> None:
    """A wrong base_url or a wall between us and CartelCRM stops the account; the leads wait."""
    assert isinstance(submit(says(status, HTML)).outcome, Blocked)


@pytest.mark.parametrize("status", [408, 425])
def test_too_slow_or_too_early_is_tried_again(status: int) -> None:
    """By their meaning these were not executed."""
    assert isinstance(submit(says(status, {"reason": "x"})).outcome, NotExecuted)


def test_a_reason_is_kept_within_bounds() -> None:
    """A CRM that writes a novel fills no table with it."""
    outcome = submit(says(422, {"reason": "x" * 100_000})).outcome
    assert isinstance(outcome, Rejected)
    assert outcome.reason == "x" * 200


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("answer", [{"reason": "blacklisted"}, HTML])
def test_d15_a_refused_credential_is_no_refusal_of_the_lead(status: int, answer: object) -> None:
    """D15: the lead is not to blame, and every other one would fare the same."""
    assert isinstance(submit(says(status, answer)).outcome, Unauthorized)
    assert isinstance(ask(says(status, answer)).outcome, Unauthorized)


@pytest.mark.parametrize("status", [300, 301, 302, 303, 307, 308])
def test_d18_a_redirect_is_for_somebody_to_look_at(status: int) -> None:
    """D18: a CRM that has moved is not followed with a lead and a key."""
    answer = says(status, b"", {"location": "https://elsewhere.invalid/"})
    assert isinstance(submit(answer).outcome, Blocked)
    assert isinstance(ask(answer).outcome, Blocked)


@pytest.mark.parametrize("outcome", [OutcomeUnknown("ReadTimeout"), Unreachable("ConnectError")])
def test_what_happens_on_the_way_comes_out_as_it_is(outcome: Outcome) -> None:
    """The client of the network knows better than we what may have left."""
    assert submit(outcome).outcome is outcome


# What an answer to a status call means


def test_a_status_is_the_crms_own_word() -> None:
    """An answer may lack the id or the status; what it has is taken."""
    assert ask(says(200, {"id": 7, "status": "Hold"})).result == LeadStatus("7", "Hold")
    assert ask(says(200, {"status": "hold"})).result == LeadStatus(None, "hold")
    assert ask(says(200, {"id": "L-1", "status": 3})).result == LeadStatus("L-1", None)


@pytest.mark.parametrize("answer", [{"reason": "not_found"}, b"", HTML])
def test_a_lead_that_is_not_there_is_none(answer: object) -> None:
    """404 is the answer to the question."""
    driven = ask(says(404, answer))
    assert (driven.result, driven.outcome) == (None, None)


@pytest.mark.parametrize("answer", [says(200, HTML), says(200, []), says(204, b""), says(500, HTML), says(502)])
def test_a_status_call_without_an_answer_settles_nothing(answer: Response) -> None:
    """A page where a lead should be is not the absence of a lead."""
    assert isinstance(ask(answer).outcome, OutcomeUnknown)


@pytest.mark.parametrize("status", [400, 405, 410, 422])
def test_a_refused_question_says_nothing_about_the_lead(status: int) -> None:
    """Only a refused submission refuses a lead."""
    assert isinstance(ask(says(status, {"reason": "bad_request"})).outcome, OutcomeUnknown)


# Where an external_id goes


ODD_IDS = [
    "../x",
    "..",
    ".",
    "...",
    "a/b?c#d",
    "a%2fb",
    "Оля",
    "😀",
    " ",
    "a b",
    "a+b&c=d",
    "\\",
    "a;b",
    "@evil.com",
    "//x",
]


@pytest.mark.parametrize("external_id", ODD_IDS)
def test_d23_an_external_id_stays_one_segment_of_the_path(external_id: str) -> None:
    """D23: whatever it holds, the same host is asked for the same id."""
    (request,) = ask(says(404), external_id=external_id).requests
    assert_asked_for(request.url, external_id)


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=50))
def test_d23_any_external_id_comes_through(external_id: str) -> None:
    """D23: as httpx sends it and a server reads it, it is the id that we meant."""
    (request,) = ask(says(404), external_id=external_id).requests
    assert_asked_for(request.url, external_id)


def assert_asked_for(address: str, external_id: str) -> None:
    url = httpx.URL(address)
    assert (url.scheme, url.host, url.query, url.fragment) == ("https", "cartelcrm.com", b"", "")
    target = url.raw_path.decode("ascii")
    parts = SandboxRequest.of("GET", target, {}, b"").parts
    assert parts == ("api", "v1", "inbound", "leads", external_id, "status")
