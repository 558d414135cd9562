"""amoCRM's API: what is asked, and what each answer means. Driven by hand, without any network."""

import json
from collections.abc import Mapping
from email.utils import formatdate
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crm_relay.amocrm import resources
from crm_relay.amocrm.client import (
    Account,
    TooMuch,
    TooMuchToRead,
    ValidationFailed,
    call,
    is_amocrm_host,
    origin,
)
from crm_relay.amocrm.resources import (
    CARDS,
    CONTACTS,
    LEADS,
    PAGE,
    PIPELINES,
    USERS,
    Page,
    Resource,
    account_info,
    add,
    read_all,
    read_by_ids,
    read_page,
    subscribe,
    unsubscribe,
)
from crm_relay.brackets import decode
from crm_relay.http_client import Exchange, Response
from crm_relay.outcomes import Blocked, NotExecuted, Outcome, OutcomeUnknown, Rejected, Unauthorized, Unreachable
from tests.exchanges import Driven, drive, says

NOW = 1_760_000_000.0
ACCOUNT = Account("example.amocrm.ru", "the-token")
HTML = b"<html>\r\n<head><title>403 Forbidden</title></head></html>"
PROBLEM = {"title": "Bad Request", "type": "https://httpstatus.es/400", "status": 400, "detail": "…"}
READS = ["GET"]
WRITES = ["POST", "PATCH", "DELETE"]


def ask(*answers: Response | Outcome, method: str = "POST", **more: Any) -> Driven[dict[str, Any]]:
    return drive(call(ACCOUNT, method, "api/v4/leads", now=NOW, **more), *answers)


def outcome_of(answer: Response | Outcome, method: str) -> Outcome:
    outcome = ask(answer, method=method).outcome
    assert outcome is not None
    return outcome


def page(key: str, items: object, **links: str) -> Response:
    return says(
        200, {"_page": 1, "_links": {name: {"href": link} for name, link in links.items()}, "_embedded": {key: items}}
    )


def query_of(driven: Driven[Any], number: int = 0) -> dict[str, Any]:
    return decode(urlsplit(driven.requests[number].url).query.encode())


# What is asked


def test_a_read_is_what_the_api_wants() -> None:
    """Account host, token, hal+json, a nested query; no body and nothing said of one."""
    (request,) = ask(says(200, {"_page": 1}), method="GET", query={"filter": {"id": [1]}, "page": 2}).requests
    assert (request.method, request.content, request.deadline) == ("GET", b"", 20)
    assert request.url == "https://example.amocrm.ru/api/v4/leads?filter[id][0]=1&page=2"
    assert request.headers == {"Authorization": "Bearer the-token", "Accept": "application/hal+json"}


def test_a_write_is_json() -> None:
    """The body says what it is."""
    (request,) = ask(says(200, {"_page": 1}), body=[{"name": "Оля"}]).requests
    assert request.headers["Content-Type"] == "application/json"
    assert json.loads(request.content) == [{"name": "Оля"}]
    assert request.url == "https://example.amocrm.ru/api/v4/leads"


def test_an_administrators_token_acts_as_a_user() -> None:
    """X-Context-User-ID names the user."""
    account = Account("example.kommo.com", "the-token", context_user_id=7)
    (request,) = drive(call(account, "GET", "api/v4/account", now=NOW), says(200, {"id": 1})).requests
    assert request.headers["X-Context-User-ID"] == "7"
    assert request.url == "https://example.kommo.com/api/v4/account"


def test_the_account_does_not_show_its_token() -> None:
    """Printed by accident, it tells where the account is and no more."""
    assert "the-token" not in repr(ACCOUNT)
    assert "the-token" not in repr(ask(says(204, b"")).requests)


@pytest.mark.parametrize(
    "host",
    [
        "example.amocrm.ru",
        "example.amocrm.com",
        "example.kommo.com",
        "a.kommo.com",
        "a-b-1.amocrm.ru",
        "api-b.amocrm.ru",
    ],
)
def test_the_accounts_of_amocrm_and_kommo_are_served_over_tls(host: str) -> None:
    """Any account, and the domain where the API tells of moved ones."""
    assert is_amocrm_host(host)
    assert origin(host) == f"https://{host}"


FOREIGN = [
    "evil.com",
    "evil.com#.amocrm.ru",
    "evil.com/.amocrm.ru",
    "evil.com?.amocrm.ru",
    "evil.com\\.amocrm.ru",
    "evil.com%23.amocrm.ru",
    "example.amocrm.ru@evil.com",
    "x@example.amocrm.ru",
    "example.amocrm.ru.evil.com",
    "exampleamocrm.ru",
    "amocrm.ru",
    ".amocrm.ru",
    "-.amocrm.ru",
    "a.b.amocrm.ru",
    "example.amocrm.ru.",
    "example.amocrm.ru:443",
    "example.amocrm.ru/",
    "example.amocrm.ru\n",
    "example.amocrm.ru\r\nX: y",
    " example.amocrm.ru",
    "EXAMPLE.amocrm.ru",
    "example。amocrm.ru",
    "ⓔxample.amocrm.ru",
    "пример.amocrm.ru",
    "example.amocrm.com.ru",
    "example.kommo.ru",
    "example_1.amocrm.ru",
    "a" * 64 + ".amocrm.ru",
    "localhost",
    "127.0.0.1",
    "127.0.0.1:80@evil.com",
    "127.0.0.1:123456",
    "127.0.0.2:80",
    "[::1]:80",
    "169.254.169.254",
    "2130706433",
    "",
]


@pytest.mark.parametrize("host", FOREIGN, ids=ascii)
def test_a_foreign_host_gets_nothing(host: str) -> None:
    """No request is made, so no token leaves; somebody has to look."""
    assert not is_amocrm_host(host)
    driven = drive(call(Account(host, "the-token"), "GET", "api/v4/account", now=NOW))
    assert driven.requests == []
    assert isinstance(driven.outcome, Blocked)


@given(st.text(st.characters(codec="utf-8")), st.sampled_from(["", ".amocrm.ru", ".kommo.com", ".amocrm.com"]))
def test_what_counts_as_amocrms_is_where_we_connect_to(name: str, domain: str) -> None:
    """For whatever passes, the HTTP client and the eye see the same host, and it is amoCRM's or Kommo's."""
    host = name + domain
    if is_amocrm_host(host):
        url = httpx.URL(f"{origin(host)}/api/v4/account")
        assert (url.scheme, url.host, url.port, url.userinfo) == ("https", host, None, b"")
        assert url.host.endswith((".amocrm.ru", ".amocrm.com", ".kommo.com"))


def test_a_sandbox_on_this_machine_has_no_tls() -> None:
    """And it is no account of amoCRM's to a stranger who names it."""
    assert origin("127.0.0.1:8003") == "http://127.0.0.1:8003"
    assert not is_amocrm_host("127.0.0.1:8003")


# What an answer means


@pytest.mark.parametrize("status", [200, 201, 202])
def test_a_success_is_its_object(status: int) -> None:
    """Whatever its content type says."""
    headers = {"content-type": "application/hal+json"}
    assert ask(says(status, {"id": 1}, headers)).result == {"id": 1}


@pytest.mark.parametrize("method", [*READS, *WRITES])
def test_nothing_is_no_error(method: str) -> None:
    """204 is an empty answer, to a list and to a deletion alike."""
    assert ask(says(204, b""), method=method).result == {}


@pytest.mark.parametrize("answer", [{}, []])
def test_an_empty_object_is_one(answer: object) -> None:
    """PHP writes it as a list."""
    assert ask(says(200, answer)).result == {}


def test_accepted_needs_no_json() -> None:
    """202 comes with anything."""
    assert ask(says(202, b"OK")).result == {}


@pytest.mark.parametrize("answer", [HTML, b"", b"null", b'"x"', [1], b"\xff", b"[" * 100_000, b'{"a":' + b"9" * 5000])
def test_a_success_that_cannot_be_read_proves_nothing(answer: object) -> None:
    """A write may have been done; a read is simply asked again."""
    assert type(outcome_of(says(200, answer), "POST")) is OutcomeUnknown
    assert type(outcome_of(says(200, answer), "GET")) is Unreachable


def test_validation_errors_name_the_items() -> None:
    """By their request_id, with path and code and without the detail, which may quote what was sent."""
    errors = [
        {"code": "NotSupportedChoice", "path": "custom_fields_values.0.values.0", "detail": "+7900"},
        {"code": "NotBlank", "path": "name"},
    ]
    body = {"validation-errors": [{"request_id": "0", "errors": errors}, {"request_id": 3, "errors": errors[1:]}]}
    outcome = outcome_of(says(400, PROBLEM | body), "POST")
    assert isinstance(outcome, ValidationFailed)
    assert outcome.items == {
        "0": ("custom_fields_values.0.values.0:NotSupportedChoice", "name:NotBlank"),
        "3": ("name:NotBlank",),
    }
    assert (str(outcome), outcome.reason) == ("validation_failed", "validation_failed")


def test_validation_errors_of_a_single_object_have_no_item() -> None:
    """There is no request_id where one object was sent."""
    body = {"validation-errors": [{"errors": [{"code": "InvalidUrl", "path": "destination"}]}]}
    outcome = outcome_of(says(400, PROBLEM | body), "POST")
    assert isinstance(outcome, ValidationFailed)
    assert outcome.items == {"": ("destination:InvalidUrl",)}


def test_a_validation_error_is_kept_within_bounds() -> None:
    """A novel in the place of a code fills no table."""
    body = {"validation-errors": [{"request_id": "0", "errors": [{"code": "x" * 10_000, "path": "p"}]}]}
    outcome = outcome_of(says(400, body), "POST")
    assert isinstance(outcome, ValidationFailed)
    assert len(outcome.items["0"][0]) == 200


@pytest.mark.parametrize("errors", [None, [], "x", ["x"], [{}], [{"errors": "x"}], {"0": "x"}])
def test_validation_errors_of_another_shape_are_a_plain_refusal(errors: object) -> None:
    """Then no item is to blame."""
    outcome = outcome_of(says(400, PROBLEM | {"validation-errors": errors}), "POST")
    assert type(outcome) is Rejected
    assert outcome.reason == "http_400"


@pytest.mark.parametrize("method", [*READS, *WRITES])
@pytest.mark.parametrize("status", [400, 403, 404, 405, 409, 410, 415, 422])
def test_a_refusal_in_json_is_final(status: int, method: str) -> None:
    """No rights, no such thing, too many to a page: repeating the same cannot help."""
    outcome = outcome_of(says(status, PROBLEM), method)
    assert type(outcome) is Rejected
    assert outcome.reason == f"http_{status}"


@pytest.mark.parametrize("method", [*READS, *WRITES])
@pytest.mark.parametrize("answer", [{"title": "Unauthorized", "status": "401"}, HTML, b""])
def test_a_refused_token_is_one_whatever_the_page(answer: object, method: str) -> None:
    """401 in JSON and in HTML alike: the token is to be refreshed."""
    assert type(outcome_of(says(401, answer), method)) is Unauthorized


@pytest.mark.parametrize("method", [*READS, *WRITES])
@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (says(402, PROBLEM), "not_paid"),
        (says(402, HTML), "not_paid"),
        (says(403, HTML), "account_blocked"),
        (says(403, b""), "account_blocked"),
        (says(400, HTML), "http_400_page"),
        (says(404, HTML), "http_404_page"),
        (says(301, b"", {"location": "https://evil.example/"}), "redirected"),
        (says(302, HTML), "redirected"),
        (says(307, {"a": 1}), "redirected"),
    ],
    ids=repr,
)
def test_a_closed_account_is_for_somebody_to_look_at(answer: Response, reason: str, method: str) -> None:
    """Not paid, blocked for too many requests, moved, or a page from before the API: nothing is given up."""
    outcome = outcome_of(answer, method)
    assert type(outcome) is Blocked
    assert str(outcome) == reason


@pytest.mark.parametrize("method", [*READS, *WRITES])
@pytest.mark.parametrize(
    ("answer", "headers", "seconds"),
    [
        ({"status": 429, "retry_after": 300}, {}, 300),
        ({"retry_after": 0}, {}, 0),
        ({"retry_after": 1.5}, {}, 1.5),
        ({"retry_after": "30"}, {}, 30),
        ({"retry_after": 3}, {"retry-after": "9"}, 3),
        ({"retry_after": -1}, {"retry-after": "9"}, 9),
        ({"retry_after": True}, {"retry-after": "9"}, 9),
        ({"retry_after": "²"}, {"retry-after": formatdate(NOW + 60, usegmt=True)}, 60),
        ({"retry_after": None}, {}, 5),
        ({}, {}, 5),
        (HTML, {}, 5),
        (HTML, {"retry-after": "7"}, 7),
        (b"", {"retry-after": "soon"}, 5),
    ],
)
def test_a_busy_api_did_nothing_and_tells_when_to_come_again(
    answer: object, headers: Mapping[str, str], seconds: float, method: str
) -> None:
    """429: in Kommo's JSON, in a header, or not at all: then a while, since whoever insists is blocked."""
    outcome = outcome_of(says(429, answer, headers), method)
    assert type(outcome) is NotExecuted
    assert (str(outcome), outcome.retry_after) == ("rate_limited", seconds)


@pytest.mark.parametrize("status", [408, 425])
def test_too_slow_or_too_early_is_tried_again(status: int) -> None:
    """By their meaning these were not executed."""
    assert type(outcome_of(says(status, HTML), "POST")) is NotExecuted


@pytest.mark.parametrize("status", [413, 414, 504])
@pytest.mark.parametrize("answer", [HTML, b"", PROBLEM])
def test_too_much_for_one_request_is_told_apart(status: int, answer: object) -> None:
    """A write may have been done in part, a read is asked for less."""
    assert type(outcome_of(says(status, answer), "POST")) is TooMuch
    assert issubclass(TooMuch, OutcomeUnknown)
    assert type(outcome_of(says(status, answer), "GET")) is TooMuchToRead
    assert issubclass(TooMuchToRead, Unreachable)


@pytest.mark.parametrize("status", [500, 502, 503, 520, 599, 206, 600])
@pytest.mark.parametrize("answer", [HTML, b"", {"title": "Internal", "trace_id": "x"}])
def test_a_failure_of_the_server_leaves_doubt_about_a_write_only(status: int, answer: object) -> None:
    """What was read was not changed by it."""
    for method in WRITES:
        assert type(outcome_of(says(status, answer), method)) is OutcomeUnknown
    assert type(outcome_of(says(status, answer), "GET")) is Unreachable


@pytest.mark.parametrize("reason", ["ReadTimeout", "deadline_passed", "response_too_large"])
def test_a_lost_answer_leaves_doubt_about_a_write_only(reason: str) -> None:
    """A read is repeated; one whose answer was too long is asked for less."""
    assert type(outcome_of(OutcomeUnknown(reason), "POST")) is OutcomeUnknown
    expected = TooMuchToRead if reason == "response_too_large" else Unreachable
    outcome = outcome_of(OutcomeUnknown(reason), "GET")
    assert type(outcome) is expected
    assert str(outcome) == reason


@pytest.mark.parametrize("method", [*READS, *WRITES])
def test_what_never_left_comes_out_as_it_is(method: str) -> None:
    """The client of the network knows that nothing was sent."""
    unreachable = Unreachable("ConnectError")
    assert outcome_of(unreachable, method) is unreachable


@given(
    st.integers(100, 599),
    st.one_of(
        st.binary(max_size=50),
        st.recursive(
            st.one_of(st.none(), st.booleans(), st.integers(), st.text()),
            lambda inner: st.one_of(
                st.lists(inner, max_size=3),
                st.dictionaries(
                    st.sampled_from(["_embedded", "leads", "_links", "next", "href", "retry_after", "errors", "id"])
                    | st.just("validation-errors"),
                    inner,
                    max_size=4,
                ),
            ),
        ),
    ),
    st.sampled_from([*READS, *WRITES]),
)
def test_any_answer_is_a_result_or_an_outcome(status: int, answer: object, method: str) -> None:
    """Nothing that a server can say raises anything else, whatever reads it."""
    driven = ask(says(status, answer), method=method)
    assert (driven.result is None) != (driven.outcome is None)
    exchanges: list[Exchange[Any]] = [
        read_page(ACCOUNT, LEADS, now=NOW),
        add(ACCOUNT, LEADS, [{}], now=NOW),
    ]
    for exchange in exchanges:
        drive(exchange, says(status, answer))


# Lists


@pytest.mark.parametrize(
    ("resource", "path", "key"),
    [
        (LEADS, "leads", "leads"),
        (CONTACTS, "contacts", "contacts"),
        (CARDS["companies"], "companies", "companies"),
        (USERS, "users", "users"),
        (PIPELINES, "leads/pipelines", "pipelines"),
        (resources.WEBHOOKS, "webhooks", "webhooks"),
        (resources.notes("leads"), "leads/notes", "notes"),
    ],
)
def test_every_row_is_where_the_api_has_it(resource: Resource, path: str, key: str) -> None:
    """A list is read from its path, from under its key, 250 a page."""
    driven = drive(read_page(ACCOUNT, resource, now=NOW), page(key, [{"id": 1}], self="https://…"))
    assert driven.result == Page([{"id": 1}], has_next=False)
    assert driven.requests[0].url == f"https://example.amocrm.ru/api/v4/{path}?limit=250&page=1"


def test_an_empty_list_is_empty() -> None:
    """204, as amoCRM says it, or a page of nothing."""
    for nothing in (says(204, b""), page("leads", [])):
        assert drive(read_all(ACCOUNT, LEADS, now=NOW), nothing).result == []


@pytest.mark.parametrize("body", [{}, []])
def test_an_answer_with_nothing_in_it_is_no_empty_list(body: object) -> None:
    """Whoever took it for one would take what was asked for as deleted."""
    assert isinstance(drive(read_all(ACCOUNT, LEADS, now=NOW), says(200, body)).outcome, Unreachable)


def test_all_pages_are_read() -> None:
    """By their numbers, with the same filter, until there is none after it."""
    driven = drive(
        read_all(ACCOUNT, LEADS, query={"with": "contacts"}, now=NOW),
        page("leads", [{"id": 1}, {"id": 2}], next="https://example.amocrm.ru/api/v4/leads?page=2"),
        page("leads", [{"id": 3}], next="x"),
        says(204, b""),
    )
    assert driven.result == [{"id": 1}, {"id": 2}, {"id": 3}]
    queries = [query_of(driven, number) for number in range(3)]
    assert queries == [{"with": "contacts", "limit": "250", "page": page} for page in ("1", "2", "3")]


@pytest.mark.parametrize("link", ["https://evil.com/api/v4/leads?page=2", "//evil.com/x", "http://example.amocrm.ru/"])
def test_a_link_is_never_followed(link: str) -> None:
    """That there is a next page is believed, where it is is not."""
    driven = drive(read_all(ACCOUNT, LEADS, now=NOW), page("leads", [{"id": 1}], next=link), page("leads", [{"id": 2}]))
    assert driven.result == [{"id": 1}, {"id": 2}]
    assert {urlsplit(request.url)[:3] for request in driven.requests} == {
        ("https", "example.amocrm.ru", "/api/v4/leads")
    }


@pytest.mark.parametrize(
    "links", [None, [], {}, {"next": None}, {"next": {"href": ""}}, {"next": {"href": 5}}, {"next": []}]
)
def test_a_page_without_a_link_is_the_last(links: object) -> None:
    """Whatever stands in its place."""
    answer = says(200, {"_links": links, "_embedded": {"leads": [{"id": 1}]}})
    assert drive(read_page(ACCOUNT, LEADS, now=NOW), answer).result == Page([{"id": 1}], has_next=False)


def test_an_empty_page_ends_a_list_that_promises_more() -> None:
    """Nobody is sent in circles."""
    assert drive(read_all(ACCOUNT, LEADS, now=NOW), page("leads", [], next="x")).result == []


@pytest.mark.parametrize(
    "answer", [{"_page": 1}, {"_embedded": []}, {"_embedded": {"leads": {}}}, {"_embedded": {"cows": []}}]
)
def test_a_list_of_another_shape_is_no_empty_list(answer: object) -> None:
    """Else everything would look deleted."""
    outcome = drive(read_page(ACCOUNT, LEADS, now=NOW), says(200, answer)).outcome
    assert isinstance(outcome, Unreachable)


def test_an_outcome_comes_through_the_pages() -> None:
    """A list that could not be read to its end is not taken for a shorter one."""
    driven = drive(read_all(ACCOUNT, LEADS, now=NOW), page("leads", [{"id": 1}], next="x"), says(429, HTML))
    assert (driven.result, type(driven.outcome)) == (None, NotExecuted)


# Items by id


def test_items_are_read_by_their_ids_250_at_once() -> None:
    """Each id once; what is gone is missing; the filter and what else is asked for come along."""
    ids = [*range(1, 301), 5]
    driven = drive(
        read_by_ids(ACCOUNT, LEADS, ids, query={"with": "contacts", "filter": {"name": "x"}}, now=NOW),
        page("leads", [{"id": 251}, {"id": 300}]),
        page("leads", [{"id": 1}, {"id": 7}]),
    )
    assert driven.result == {251: {"id": 251}, 300: {"id": 300}, 1: {"id": 1}, 7: {"id": 7}}
    queries = [query_of(driven, number) for number in (0, 1)]
    assert [sorted(map(int, query["filter"]["id"])) for query in queries] == [[*range(251, 301)], [*range(1, 251)]]
    assert {(query["with"], query["filter"]["name"], query["page"]) for query in queries} == {("contacts", "x", "1")}


def test_the_longest_filter_fits_into_a_request_line() -> None:
    """250 ids of nine digits: servers take 8 KB."""
    driven = drive(read_by_ids(ACCOUNT, LEADS, range(999_999_750, 1_000_000_000), now=NOW), says(204, b""))
    (request,) = driven.requests
    assert len(httpx.URL(request.url).raw_path) < 8000
    assert len(query_of(driven)["filter"]["id"]) == PAGE


def test_no_ids_ask_for_nothing() -> None:
    """An empty filter would be all leads."""
    driven = drive(read_by_ids(ACCOUNT, LEADS, [], now=NOW))
    assert (driven.requests, driven.result) == ([], {})


@pytest.mark.parametrize("too_much", [says(504, HTML), OutcomeUnknown("response_too_large")], ids=repr)
def test_too_many_ids_are_halved(too_much: Response | Outcome) -> None:
    """Until amoCRM gets through; none is lost, none asked for once more."""
    driven = drive(
        read_by_ids(ACCOUNT, LEADS, [1, 2, 3, 4, 5], now=NOW),
        too_much,
        page("leads", [{"id": 1}, {"id": 2}]),
        too_much,
        page("leads", [{"id": 3}]),
        page("leads", [{"id": 4}, {"id": 5}]),
    )
    assert driven.result == {number: {"id": number} for number in (1, 2, 3, 4, 5)}
    asked = [query_of(driven, number)["filter"]["id"] for number in range(5)]
    assert asked == [["1", "2", "3", "4", "5"], ["1", "2"], ["3", "4", "5"], ["3"], ["4", "5"]]


def test_one_id_that_is_too_much_is_an_outage() -> None:
    """There is nothing left to halve."""
    outcome = drive(read_by_ids(ACCOUNT, LEADS, [1], now=NOW), says(504, HTML)).outcome
    assert type(outcome) is TooMuchToRead


@pytest.mark.parametrize("items", [[{"id": 6}], [{"name": "x"}], [{"id": "5"}], [{"id": {}}], ["x"], [None]])
def test_what_was_not_asked_for_is_not_taken(items: object) -> None:
    """An answer may hold anything."""
    assert drive(read_by_ids(ACCOUNT, LEADS, [5], now=NOW), page("leads", items)).result == {}


def test_the_account_tells_its_time_zone() -> None:
    """When it is asked to."""
    driven = drive(account_info(ACCOUNT, now=NOW), says(200, {"id": 7}))
    assert driven.result == {"id": 7}
    assert driven.requests[0].url == "https://example.amocrm.ru/api/v4/account?with=datetime_settings"


# Writes


def test_a_write_is_matched_by_request_id() -> None:
    """Each item has its place for a request_id; results come in the order of the items, whatever order they had."""
    driven = drive(
        add(ACCOUNT, LEADS, [{"name": "a"}, {"name": "b", "request_id": "mine"}], now=NOW),
        page("leads", [{"id": 8, "request_id": "1"}, {"id": 7, "request_id": 0}]),
    )
    assert driven.result == [{"id": 7, "request_id": 0}, {"id": 8, "request_id": "1"}]
    (request,) = driven.requests
    assert (request.method, request.url) == ("POST", "https://example.amocrm.ru/api/v4/leads")
    assert json.loads(request.content) == [{"name": "a", "request_id": "0"}, {"name": "b", "request_id": "1"}]


@pytest.mark.parametrize(
    "answer",
    [
        page("leads", [{"id": 7, "request_id": "0"}]),
        page("leads", [{"id": 7}, {"id": 8}]),
        page("leads", []),
        page("cows", [{"id": 7, "request_id": "0"}, {"id": 8, "request_id": "1"}]),
        says(200, {}),
        says(204, b""),
    ],
)
def test_an_item_that_the_answer_does_not_name_may_have_been_written(answer: Response) -> None:
    """Nobody knows; it must be looked up."""
    outcome = drive(add(ACCOUNT, LEADS, [{}, {}], now=NOW), answer).outcome
    assert type(outcome) is OutcomeUnknown


def test_a_bad_item_is_named_by_its_place() -> None:
    """So that the others can go again without it."""
    errors = [{"request_id": "1", "errors": [{"code": "NotFound", "path": "entity_id"}]}]
    outcome = drive(
        add(ACCOUNT, resources.notes("leads"), [{}, {}, {}], now=NOW), says(400, {"validation-errors": errors})
    ).outcome
    assert isinstance(outcome, ValidationFailed)
    assert outcome.items == {"1": ("entity_id:NotFound",)}


def test_a_write_of_none_or_too_many_is_not_made() -> None:
    """The whole of it would be refused."""
    for count in (0, 251):
        with pytest.raises(AssertionError):
            drive(add(ACCOUNT, LEADS, [{}] * count, now=NOW))


def test_hooks_are_subscribed_and_ended_by_their_url() -> None:
    """One object each; what is not there any more is ended."""
    url = "https://relay.example/amo/token/"
    driven = drive(subscribe(ACCOUNT, url, ["add_lead", "update_lead"], now=NOW), says(201, {"id": 1}))
    assert driven.result == {"id": 1}
    (request,) = driven.requests
    assert (request.method, request.url) == ("POST", "https://example.amocrm.ru/api/v4/webhooks")
    assert json.loads(request.content) == {"destination": url, "settings": ["add_lead", "update_lead"]}
    for answer in (says(204, b""), says(404, PROBLEM)):
        ended = drive(unsubscribe(ACCOUNT, url, now=NOW), answer)
        assert (ended.result, ended.outcome) == (None, None)
        assert ended.requests[0].method == "DELETE"
        assert json.loads(ended.requests[0].content) == {"destination": url}
    assert isinstance(drive(unsubscribe(ACCOUNT, url, now=NOW), says(403, PROBLEM)).outcome, Rejected)
