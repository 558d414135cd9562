"""Bitrix24's REST API: what is asked, alone and in batches, and what each answer means. Driven by hand."""

import json
from collections.abc import Mapping
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crm_relay.bitrix24.client import (
    Access,
    BodyRefused,
    OperatingLimit,
    Operation,
    PageInstead,
    PortalMoved,
    Refused,
    TokenExpired,
    batch,
    call,
    mapping,
    number,
    origin,
    reference,
    rows,
)
from crm_relay.brackets import decode
from crm_relay.http_client import Response
from crm_relay.outcomes import (
    Blocked,
    NotConfigured,
    NotExecuted,
    Outcome,
    OutcomeUnknown,
    Rejected,
    Unauthorized,
    Unreachable,
)
from tests.exchanges import Driven, drive, says

NOW = 1_760_000_000.0
HOST = "example.bitrix24.ru"
WEBHOOK = Access.by_webhook(f"https://{HOST}/rest/1/s3cret/", host=HOST)
APP = Access(HOST, access_token="the-token")
HTML = b"<html><head><title>504 Gateway Time-out</title></head></html>"
READ = Operation("crm.item.get", {"entityTypeId": 2, "id": 5}, mapping)
WRITE = Operation("crm.item.add", {"fields": {"title": "Окно"}}, mapping)


def ask(operation: Operation[Any], *answers: Response | Outcome, access: Access = WEBHOOK) -> Driven[Any]:
    return drive(call(access, operation, now=NOW), *answers)


def outcome_of(answer: Response | Outcome, operation: Operation[Any] = WRITE) -> Outcome:
    outcome = ask(operation, answer).outcome
    assert outcome is not None
    return outcome


def error(code: object, text: str = "", status: int = 400, **more: object) -> Response:
    return says(status, {"error": code, "error_description": text, **more})


# What is asked


def test_a_webhook_is_part_of_the_address() -> None:
    """User and code stand before the method; parameters are JSON."""
    (request,) = ask(WRITE, says(200, {"result": {}})).requests
    assert (request.method, request.url) == ("POST", f"https://{HOST}/rest/1/s3cret/crm.item.add")
    assert request.headers == {"Content-Type": "application/json", "Accept": "application/json"}
    assert json.loads(request.content) == {"fields": {"title": "Окно"}}
    assert request.deadline == 60


def test_an_apps_token_is_in_the_body() -> None:
    """An address may be logged on its way."""
    (request,) = ask(WRITE, says(200, {"result": {}}), access=APP).requests
    assert request.url == f"https://{HOST}/rest/crm.item.add"
    assert json.loads(request.content) == {"fields": {"title": "Окно"}, "auth": "the-token"}


def test_c23_no_secret_shows() -> None:
    """C23: neither in what is printed of an access, of a request, nor of an outcome."""
    for access in (WEBHOOK, APP):
        driven = ask(WRITE, error("INVALID_REQUEST", "s3cret the-token"), access=access)
        shown = f"{access} {driven} {driven.outcome!r} {WRITE}"
        assert "s3cret" not in shown
        assert "the-token" not in shown
        assert "Окно" not in shown


@pytest.mark.parametrize("url", [f"https://{HOST}/rest/1/s3cret/", f"https://{HOST}/rest/1/s3cret"])
def test_a_webhooks_url_is_read(url: str) -> None:
    """As the portal shows it, or without the last slash."""
    assert Access.by_webhook(url, host=HOST) == WEBHOOK


def test_a_sandboxs_webhook_has_no_tls() -> None:
    """It is on this machine."""
    access = Access.by_webhook("http://127.0.0.1:8005/rest/1/s3cret/", host="127.0.0.1:8005")
    (request,) = ask(WRITE, says(200, {"result": {}}), access=access).requests
    assert request.url == "http://127.0.0.1:8005/rest/1/s3cret/crm.item.add"


@pytest.mark.parametrize(
    "url",
    [
        "",
        f"https://{HOST}/rest/s3cret/",
        f"https://{HOST}/rest/1/s3cret/crm.item.add.json",
        f"https://{HOST}/rest/1/s3cret/?x=1",
        f"http://{HOST}/rest/1/s3cret/",
        f"https://{HOST}:8443/rest/1/s3cret/",
        f"https://{HOST}@evil.com/rest/1/s3cret/",
        "https://evil.com/rest/1/s3cret/",
        f"https://evil.com/rest/1/s3cret/#https://{HOST}/rest/1/s3cret/",
        f"https://{HOST}/rest/1/s3cret/\n",
    ],
)
def test_a_webhook_that_leads_elsewhere_is_no_configuration(url: str) -> None:
    """Nothing is sent, and the message holds nothing of it."""
    with pytest.raises(NotConfigured) as mistake:
        Access.by_webhook(url, host=HOST)
    assert str(mistake.value) == "webhook_url"


FOREIGN = [
    "evil.com#.bitrix24.ru",
    "evil.com/.bitrix24.ru",
    "evil.com?.bitrix24.ru",
    "x@example.bitrix24.ru",
    "example.bitrix24.ru:443",
    "example.bitrix24.ru.",
    "example.bitrix24.ru\n",
    "EXAMPLE.bitrix24.ru",
    "example。bitrix24.ru",
    "ⓔxample.bitrix24.ru",
    "127.0.0.1",
    "127.0.0.2:80",
    "169.254.169.254",
    "2130706433",
    "0x7f000001",
    "[::1]",
    "::ffff:127.0.0.1",
    "localhost",
    "",
]


@pytest.mark.parametrize("host", FOREIGN, ids=ascii)
def test_c06_to_c10_what_is_no_domain_name_gets_nothing(host: str) -> None:
    """C06 to C10: no request is made, so no token leaves."""
    driven = ask(READ, access=Access(host, access_token="the-token"))
    assert driven.requests == []
    assert isinstance(driven.outcome, Blocked)


@given(st.text(st.characters(codec="utf-8")), st.sampled_from(["", ".bitrix24.ru", ".example.com"]))
def test_a_host_that_passes_is_the_host_we_connect_to(name: str, domain: str) -> None:
    """The HTTP client and the eye see the same one."""
    host = name + domain
    try:
        address = origin(host)
    except Blocked:
        return
    url = httpx.URL(f"{address}/rest/profile")
    assert (url.scheme, url.host, url.port, url.userinfo) == ("https", host, None, b"")


# What an answer means


@pytest.mark.parametrize("result", [{}, [], None, False, ""])
def test_nothing_has_many_shapes(result: object) -> None:
    """PHP writes an empty map as anything."""
    assert ask(READ, says(200, {"result": result})).result == {}


@pytest.mark.parametrize(
    "answer",
    [
        says(200, HTML),
        says(200, b""),
        says(200, []),
        says(200, {}),
        says(200, {"result": "x"}),
        says(200, {"result": [1]}),
        says(200, b"[" * 100_000),
        says(500, HTML),
        says(502, HTML),
        says(503, HTML),
        says(504, b""),
        says(500, {"error": "INTERNAL_SERVER_ERROR", "error_description": "Internal server error"}),
        says(200, {"error": "ERROR_UNEXPECTED_ANSWER"}),
        says(500, {"error": "SOMETHING_NEW"}),
        OutcomeUnknown("ReadTimeout"),
    ],
    ids=repr,
)
def test_a_lost_answer_leaves_a_write_in_doubt_and_a_read_to_be_repeated(answer: Response | Outcome) -> None:
    """A page, a crash, a time-out, a success that says nothing."""
    assert type(outcome_of(answer, WRITE)) is OutcomeUnknown
    assert type(outcome_of(answer, READ)) is Unreachable


@pytest.mark.parametrize(
    ("method", "reads"),
    [
        *((f"crm.item.{verb}", True) for verb in ("get", "list", "fields")),
        *(("crm.duplicate.findbycomm", True), ("user.get", True), ("crm.stagehistory.list", True)),
        *((f"crm.item.{verb}", False) for verb in ("add", "update", "delete", "import")),
        *(("crm.item.productrow.set", False), ("bizproc.event.send", False), ("event.bind", False), ("list", True)),
    ],
)
def test_what_only_reads_is_known_by_its_name(method: str, reads: bool) -> None:
    """By the last word."""
    assert Operation(method, {}, mapping).reads is reads


@pytest.mark.parametrize("operation", [READ, WRITE])
@pytest.mark.parametrize("code", ["QUERY_LIMIT_EXCEEDED", "query_limit_exceeded", "Query_Limit_Exceeded"])
@pytest.mark.parametrize(("headers", "seconds"), [({}, 1), ({"retry-after": "7"}, 7)])
def test_a_full_bucket_did_nothing(
    code: str, operation: Operation[Any], headers: Mapping[str, str], seconds: float
) -> None:
    """503 by its code, which has any case."""
    outcome = outcome_of(says(503, {"error": code, "error_description": "Too many requests"}, headers), operation)
    assert type(outcome) is NotExecuted
    assert (str(outcome), outcome.retry_after) == ("query_limit_exceeded", seconds)


@pytest.mark.parametrize(
    ("time", "seconds"),
    [
        ({"operating_reset_at": NOW + 90}, 90),
        ({"operating_reset_at": NOW + 90_000}, 600),
        ({"operating_reset_at": NOW - 5}, 1),
        ({"operating_reset_at": "x"}, 60),
        ({}, 60),
        ([], 60),
        (None, 60),
    ],
)
def test_a_method_that_worked_too_long_tells_when_it_may_again(time: object, seconds: float) -> None:
    """429 with the moment in `time`; ten minutes at most."""
    outcome = outcome_of(error("OPERATION_TIME_LIMIT", "Method is blocked", 429, time=time))
    assert isinstance(outcome, OperatingLimit)
    assert (str(outcome), outcome.retry_after) == ("operation_time_limit", seconds)


@pytest.mark.parametrize(
    ("answer", "kind", "reason"),
    [
        (error("expired_token", "The access token has expired", 401), TokenExpired, "expired_token"),
        (error("EXPIRED_TOKEN", "", 401), TokenExpired, "expired_token"),
        (error("expired_token", "", 200), TokenExpired, "expired_token"),
        (error("invalid_token", "", 401), Unauthorized, "invalid_token"),
        (error("NO_AUTH_FOUND", "Wrong authorization data", 401), Unauthorized, "no_auth_found"),
        (error("user_access_error", "", 403), Unauthorized, "user_access_error"),
        (says(401, HTML), Unauthorized, "http_401"),
        (error("OVERLOAD_LIMIT", "REST API is blocked", 503), Blocked, "overload_limit"),
        (error("PAYMENT_REQUIRED", "", 401), Blocked, "payment_required"),
        (error("PORTAL_DELETED", "", 500), Blocked, "portal_deleted"),
        (error("PORTAL_DELETED", "", 410), Blocked, "portal_deleted"),
        (says(403, HTML), PageInstead, "http_403_page"),
        (says(413, HTML), BodyRefused, "http_413"),
        (says(404, HTML), PageInstead, "http_404_page"),
        (says(429, HTML), NotExecuted, "http_429"),
        (error("SLOW_DOWN", "", 429), NotExecuted, "slow_down"),
        (says(408, HTML), NotExecuted, "http_408"),
        (error("ACCESS_DENIED", "", 403), Refused, "access_denied"),
        (error("insufficient_scope", "", 403), Refused, "insufficient_scope"),
        (error("INVALID_CREDENTIALS", "", 403), Refused, "invalid_credentials"),
        (error("ERROR_METHOD_NOT_FOUND", "", 404), Refused, "error_method_not_found"),
        (error("ERROR_BATCH_METHOD_NOT_ALLOWED", "", 405), Refused, "error_batch_method_not_allowed"),
        (error("CRM_FIELD_ERROR_REQUIRED", "", 400), Refused, "crm_field_error_required"),
        (error("NOT_FOUND", "", 400), Refused, "not_found"),
        (says(400, {"x": 1}), Refused, "http_400"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("operation", [READ, WRITE])
def test_an_error_is_judged_by_its_code_first(
    answer: Response, kind: type[Outcome], reason: str, operation: Operation[Any]
) -> None:
    """Whatever the status says; to reads and writes alike."""
    outcome = outcome_of(answer, operation)
    assert type(outcome) is kind
    assert str(outcome) == reason


@pytest.mark.parametrize(
    ("code", "text", "reason", "shown"),
    [
        ("", "Not found", "not_found", "Not found"),
        ("", "Access denied.", "refused", "Access denied."),
        (0, "Invalid", "0", "Invalid"),
        ("100", "Could not find value for parameter {x}", "100", "Could not find value for parameter {x}"),
        (100, "", "100", ""),
        ("Communication type is not defined", "", "refused", "Communication type is not defined"),
        ("Invalid parameters.", "", "refused", "Invalid parameters."),
        ({"code": "BITRIX_REST_V3", "message": "No"}, "", "bitrix_rest_v3", "No"),
        ("CRM_FIELD_ERROR_REQUIRED", "Поле <b>«Сумма»</b><br>обязательно", "crm_field_error_required", None),
        (None, "", "refused", ""),
        (["x"], "", "refused", "['x']"),
        ("CODE", "x" * 1000, "code", "x" * 300),
    ],
    ids=repr,
)
def test_errors_come_in_all_shapes(code: object, text: str, reason: str, shown: str | None) -> None:
    """Empty, a number, a sentence, an object; the sentence is for the user, without tags and within bounds."""
    outcome = outcome_of(error(code, text))
    assert isinstance(outcome, Refused)
    assert (outcome.reason, outcome.text) == (reason, "Поле «Сумма» обязательно" if shown is None else shown)


@pytest.mark.parametrize(
    ("location", "host", "told"),
    [
        ("https://renamed.bitrix24.ru/rest/1/s3cret/x", "renamed.bitrix24.ru", "portal_moved_to renamed.bitrix24.ru"),
        ("https://user@evil.com/", "", "redirected"),
        ("https://[::1", "", "redirected"),
        ("/login", "", "redirected"),
        ("", "", "redirected"),
    ],
)
def test_c13_a_portal_that_moved_is_not_followed(location: str, host: str, told: str) -> None:
    """C13: nothing is sent again, and the new host is named, without the webhook in its address."""
    driven = ask(WRITE, says(302, b"", {"location": location}))
    assert len(driven.requests) == 1
    assert isinstance(driven.outcome, PortalMoved)
    assert (driven.outcome.host, str(driven.outcome)) == (host, told)


@pytest.mark.parametrize("outcome", [Unreachable("ConnectError"), NotExecuted("account_paused", 5)])
def test_what_did_not_leave_is_told_as_it_is(outcome: Outcome) -> None:
    """To reads and writes alike."""
    assert outcome_of(outcome, WRITE) is outcome
    assert outcome_of(outcome, READ) is outcome


CODES = st.none() | st.integers() | st.text(max_size=20) | st.sampled_from(["QUERY_LIMIT_EXCEEDED", "expired_token"])


@given(st.integers(200, 599), CODES | st.dictionaries(st.sampled_from(["code", "message"]), CODES), CODES)
def test_any_error_is_an_outcome(status: int, code: object, text: object) -> None:
    """Whatever PHP makes of it."""
    outcome = outcome_of(says(status, {"error": code, "error_description": text, "time": code}))
    assert isinstance(outcome, Outcome)
    assert len(str(outcome)) < 120


# Batches


def ask_all(
    operations: Mapping[str, Operation[Any]], *answers: Response | Outcome, halt: bool = False
) -> Driven[dict[str, Any]]:
    return drive(batch(WEBHOOK, operations, halt=halt, now=NOW), *answers)


def told(result: object, errors: object = (), **more: object) -> Response:
    return says(200, {"result": {"result": result, "result_error": errors or [], **more}, "time": {}})


def test_a_batch_is_commands_with_forms() -> None:
    """Numbers are written out, texts are encoded once, references stay references; what is None is left out."""
    operations: dict[str, Operation[Any]] = {
        "deal": WRITE,
        "rows": Operation(
            "crm.item.productrow.set",
            {
                "ownerId": reference("deal", "item", "id"),
                "productRows": [{"productName": "Окно & рама", "price": 1e-7, "quantity": 2.5, "taxRate": None}],
                "start": -1,
                "flag": True,
            },
            mapping,
        ),
    }
    (request,) = ask_all(operations, told({"deal": {}, "rows": {}}), halt=True).requests
    assert request.url == f"https://{HOST}/rest/1/s3cret/batch"
    sent = json.loads(request.content)
    assert (sent["halt"], list(sent["cmd"])) == (1, ["deal", "rows"])
    method, _, form = sent["cmd"]["rows"].partition("?")
    assert method == "crm.item.productrow.set"
    assert decode(form.encode()) == {
        "ownerId": "$result[deal][item][id]",
        "productRows": [{"productName": "Окно & рама", "price": "0.0000001", "quantity": "2.5"}],
        "start": "-1",
        "flag": "1",
    }


def test_each_command_has_its_own_outcome() -> None:
    """One fails, the other does not; the codes mean what they mean alone."""
    errors = {
        "b": {"error": "NOT_FOUND", "error_description": "Not found"},
        "c": {"error": "QUERY_LIMIT_EXCEEDED"},
        "d": {"error": "OPERATION_TIME_LIMIT"},
        "e": "Access denied",
        "f": {"error": "expired_token"},
        "g": {"error": ""},
        "h": {"error": "INTERNAL_SERVER_ERROR"},
    }
    answer = told({"a": {"item": {"id": 1}}}, errors, result_time={"d": {"operating_reset_at": NOW + 33}})
    result = ask_all(dict.fromkeys("abcdefgh", READ) | {"h": WRITE}, answer).result
    assert result is not None
    assert result.pop("a") == {"item": {"id": 1}}
    assert {label: (type(each), str(each)) for label, each in result.items()} == {
        "b": (Refused, "not_found"),
        "c": (NotExecuted, "query_limit_exceeded"),
        "d": (OperatingLimit, "operation_time_limit"),
        "e": (Refused, "refused"),
        "f": (TokenExpired, "expired_token"),
        "g": (Refused, "refused"),
        "h": (OutcomeUnknown, "internal_server_error"),
    }
    assert result["d"].retry_after == 33


@pytest.mark.parametrize("empty", [[], {}, None, False, ""])
def test_a_commands_empty_result_is_one(empty: object) -> None:
    """Under its label stands whatever PHP makes of nothing."""
    assert ask_all({"a": READ}, told({"a": empty})).result == {"a": {}}


def test_what_stands_behind_a_failure_was_not_done() -> None:
    """With halt; what stands before it and is not in the answer is in doubt."""
    result = ask_all({"a": WRITE, "b": READ, "c": WRITE}, told([], {"b": {"error": "X"}}), halt=True).result
    assert result is not None
    assert {label: (type(each), str(each)) for label, each in result.items()} == {
        "a": (OutcomeUnknown, "answer_incomplete"),
        "b": (Refused, "x"),
        "c": (NotExecuted, "halted"),
    }


def test_without_halt_a_missing_result_is_in_doubt() -> None:
    """A read is to be repeated."""
    result = ask_all({"a": READ, "b": READ, "c": WRITE}, told([], {"a": {"error": "X"}})).result
    assert result is not None
    assert [type(each) for each in result.values()] == [Refused, Unreachable, OutcomeUnknown]


@pytest.mark.parametrize(
    "answer",
    [
        says(504, HTML),
        OutcomeUnknown("ReadTimeout"),
        says(200, {"result": "x"}),
        says(200, {"result": {"result": [1]}}),
        says(200, {"result": {"result": {}, "result_error": "x"}}),
    ],
    ids=repr,
)
def test_a_lost_batch_is_in_doubt_if_there_is_a_write_in_it(answer: Response | Outcome) -> None:
    """Nobody knows how far it came."""
    assert type(ask_all({"a": READ, "b": WRITE}, answer).outcome) is OutcomeUnknown
    assert type(ask_all({"a": READ, "b": READ}, answer).outcome) is Unreachable


def test_a_batch_may_be_refused_as_a_whole() -> None:
    """As any other request."""
    outcome = ask_all({"a": WRITE}, error("QUERY_LIMIT_EXCEEDED", status=503)).outcome
    assert type(outcome) is NotExecuted


@pytest.mark.parametrize("labels", [[], [f"l{number}" for number in range(51)], ["1"], ["a b"], ["a[b]"], [""]])
def test_a_batch_that_php_would_not_give_back_is_a_mistake_of_ours(labels: list[str]) -> None:
    """No commands, more than fifty, or labels that it renumbers."""
    with pytest.raises(AssertionError):
        ask_all(dict.fromkeys(labels, READ))


# Lists and scalars


@pytest.mark.parametrize(("value", "id_"), [(5, 5), ("5", 5), (10**17, 10**17)])
def test_an_id_is_a_number_or_digits(value: object, id_: int) -> None:
    """It depends on the method."""
    assert number(value) == id_


def test_a_map_with_gaps_is_a_list() -> None:
    """PHP writes a list that lost its first row as a map."""
    assert rows({"1": {"id": 1}, "3": {"id": 3}}) == [{"id": 1}, {"id": 3}]


def test_a_refusal_is_final() -> None:
    """So a worker that knows nothing of Bitrix24 gives it up."""
    assert issubclass(Refused, Rejected)
    assert issubclass(TokenExpired, Unauthorized)
    assert issubclass(PortalMoved, Blocked)
    assert issubclass(PageInstead, Blocked)
