"""The HTTP client: what carries an exchange, and what its failures mean for a repeat."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import format_datetime

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crm_relay.http_client import RESPONSE_LIMIT, Exchange, HttpClient, Request, Response
from crm_relay.outcomes import NotExecuted, Outcome, OutcomeUnknown, Unreachable
from tests.relay import START, Clock

URL = "https://cartelcrm.com/api/v1/inbound/leads"


def one(request: Request) -> Exchange[Response]:
    return (yield request)


def get(url: str = URL, **fields: float) -> Request:
    return Request("GET", url, {}, **fields)  # type: ignore[arg-type]


def client(answer: Callable[[httpx.Request], httpx.Response], clock: Clock | None = None) -> HttpClient:
    return HttpClient(httpx.MockTransport(answer), monotonic=(clock or Clock()).time)


def raising(error: Exception) -> HttpClient:
    def answer(_: httpx.Request) -> httpx.Response:
        raise error

    return client(answer)


def test_what_is_yielded_is_sent_byte_for_byte() -> None:
    """Method, address, headers and body leave as the exchange said; only who we are is added."""
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, content=b"{}")

    body = '{"first_name":"Оля/😀"}'.encode()
    client(answer).run(one(Request("POST", URL, {"X-Signature": "sha256=ab"}, body)))
    assert (seen[0].method, str(seen[0].url), seen[0].content) == ("POST", URL, body)
    assert seen[0].headers["x-signature"] == "sha256=ab"
    assert seen[0].headers["user-agent"].startswith("crm-relay/")
    assert seen[0].headers["accept-encoding"] == "identity"


def test_what_comes_back_is_given_whole() -> None:
    """Status, headers in lower case, and the bytes."""
    answer = httpx.Response(429, headers={"Retry-After": "7"}, content=b"\x00\xff")
    assert client(lambda _: answer).run(one(get())) == Response(
        429, {"retry-after": "7", "content-length": "2"}, b"\x00\xff"
    )


@pytest.mark.parametrize(
    "error",
    [httpx.ConnectError("refused"), httpx.ConnectTimeout("slow"), httpx.PoolTimeout("full")],
    ids=lambda error: type(error).__name__,
)
def test_d17_without_a_connection_nothing_was_executed(error: Exception) -> None:
    """D17: what never left may leave again, under any key."""
    with pytest.raises(Unreachable, match=type(error).__name__):
        raising(error).run(one(get()))


@pytest.mark.parametrize(
    "error",
    [
        httpx.ReadError("reset"),
        httpx.WriteError("reset"),
        httpx.CloseError("reset"),
        httpx.ReadTimeout("slow"),
        httpx.WriteTimeout("slow"),
        httpx.RemoteProtocolError("closed"),
        httpx.DecodingError("gzip"),
        httpx.ProxyError("?"),
        httpx.TooManyRedirects("?"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_d17_once_connected_nobody_knows(error: Exception) -> None:
    """D17: a request that may have left may have been executed."""
    with pytest.raises(OutcomeUnknown, match=type(error).__name__):
        raising(error).run(one(get()))


@pytest.mark.parametrize("url", ["ftp://cartelcrm.com/", "https://", "/relative", "https://[::1"])
def test_an_address_that_cannot_be_is_never_asked(url: str) -> None:
    """A wrong address executes nothing; it is no outage either."""
    with pytest.raises(NotExecuted) as outcome:
        HttpClient().run(one(get(url)))
    assert not isinstance(outcome.value, Unreachable)


def test_an_outcome_tells_no_more_than_its_kind() -> None:
    """A library's message may quote an address with a secret; it stays out."""
    with pytest.raises(Unreachable) as outcome:
        raising(httpx.ConnectError("cannot reach https://x/hook/s3cret")).run(one(get()))
    assert str(outcome.value) == "ConnectError"
    assert outcome.value.__cause__ is None


def test_d18_a_redirect_is_an_answer_like_any_other() -> None:
    """D18: it is not followed; nothing goes where a Location points."""
    seen: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(str(request.url))
        return httpx.Response(302, headers={"Location": "https://elsewhere.invalid/"})

    assert client(answer).run(one(get())).status == 302
    assert seen == [URL]


def test_d19_a_response_is_cut_at_its_cap() -> None:
    """D19: a long body costs a megabyte, not the memory of the function; the rest is not even read."""
    sent = 0

    class Long(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            nonlocal sent
            while sent < 10 * RESPONSE_LIMIT:
                sent += 65_536
                yield bytes(65_536)

    with pytest.raises(OutcomeUnknown, match="response_too_large"):
        client(lambda _: httpx.Response(200, stream=Long())).run(one(get()))
    assert sent <= RESPONSE_LIMIT + 2 * 65_536


def test_a_response_of_just_the_cap_is_taken() -> None:
    """The limit is inclusive."""
    body = bytes(RESPONSE_LIMIT)
    assert client(lambda _: httpx.Response(200, content=body)).run(one(get())).content == body


@pytest.mark.parametrize("limit", [0, 10, 2 * RESPONSE_LIMIT])
def test_a_request_may_have_a_cap_of_its_own(limit: int) -> None:
    """A file may be longer than an answer may, or must be shorter; nobody's URL is shown."""
    request = Request("GET", URL, {}, response_limit=limit)
    assert client(lambda _: httpx.Response(200, content=bytes(limit))).run(one(request)).content == bytes(limit)
    with pytest.raises(OutcomeUnknown, match="response_too_large"):
        client(lambda _: httpx.Response(200, content=bytes(limit + 1))).run(one(request))
    assert URL not in repr(request)


def drip(clock: Clock, seconds: float) -> Callable[[httpx.Request], httpx.Response]:
    class Drip(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            while True:
                clock.sleep(seconds)
                yield b" "

    return lambda _: httpx.Response(200, stream=Drip())


def test_d19_a_body_that_drips_is_left_at_the_deadline() -> None:
    """D19: each byte in time is not the answer in time."""
    clock = Clock()
    with pytest.raises(OutcomeUnknown, match="deadline_passed"):
        client(drip(clock, 1), clock).run(one(get(deadline=15)))
    assert clock.now - START == 16


def test_an_exchange_has_one_time_for_all_its_requests() -> None:
    """A caller who waits is not made to wait for the sum of all deadlines."""
    clock = Clock()
    with pytest.raises(OutcomeUnknown, match="deadline_passed"):
        client(drip(clock, 1), clock).run(one(get(deadline=15)), within=4)
    assert clock.now - START == 5


def test_a_deadline_starts_with_its_own_request() -> None:
    """The second request of an exchange has all of its time."""
    clock = Clock()

    def answer(_: httpx.Request) -> httpx.Response:
        clock.sleep(14)
        return httpx.Response(200, stream=httpx.ByteStream(b"{}"))

    def two() -> Exchange[int]:
        first = yield get(deadline=15)
        second = yield get(deadline=15)
        return first.status + second.status

    assert client(answer, clock).run(two()) == 400


def test_an_exchange_hears_of_a_failure_and_may_go_on() -> None:
    """The outcome is thrown where the request was yielded; what the exchange does not catch comes out."""

    def stubborn() -> Exchange[str]:
        try:
            yield get()
        except OutcomeUnknown as outcome:
            return f"heard {outcome}"
        return "heard nothing"

    assert raising(httpx.ReadTimeout("slow")).run(stubborn()) == "heard ReadTimeout"

    def again() -> Exchange[Response]:
        with suppress(OutcomeUnknown):
            yield get()
        return (yield get(URL + "/again"))

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("again"):
            return httpx.Response(204)
        raise httpx.ReadTimeout("slow")

    assert client(answer).run(again()).status == 204


def test_an_exchange_without_requests_just_returns() -> None:
    """The driver needs nothing of it."""

    def nothing() -> Exchange[int]:
        return 7
        yield

    assert HttpClient().run(nothing()) == 7


def test_requests_and_responses_do_not_show_what_they_carry() -> None:
    """Printed by accident, they tell no header and no body."""
    request = Request("POST", URL, {"Authorization": "Bearer s3cret"}, b"+380501234567")
    response = Response(200, {"set-cookie": "s3cret"}, b"+380501234567")
    assert "s3cret" not in f"{request!r} {response!r}"
    assert "380501234567" not in f"{request!r} {response!r}"


# What a response says


def retry_after(value: str) -> float | None:
    return Response(429, {"retry-after": value}, b"").retry_after(START)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0),
        (" 7 ", 7.0),
        ("0", 0.0),
        ("1000000000", 1e9),
        (format_datetime(datetime.fromtimestamp(START + 90, UTC), usegmt=True), 90.0),
        (format_datetime(datetime.fromtimestamp(START - 90, UTC), usegmt=True), 0.0),
        ("", None),
        ("-1", None),
        ("abc", None),
        ("1.5", None),
        ("+7", None),
        ("٧", None),
        ("²", None),
        ("7, 8", None),
    ],
)
def test_d13_retry_after_is_seconds_or_a_date_or_nothing(value: str, seconds: float | None) -> None:
    """D13: what is neither counts as not given."""
    assert retry_after(value) == seconds


def test_d13_no_retry_after_is_none() -> None:
    """D13: without the header the delay is ours to choose."""
    assert Response(429, {}, b"").retry_after(START) is None


@given(st.text() | st.from_regex(r"[0-9]{1,4000}", fullmatch=True) | st.from_regex(r"\w{3}, \d+ \w{3} \d+ [\d:]+ GMT"))
def test_any_retry_after_is_read_without_an_error(value: str) -> None:
    """D13: a CRM's odd header must not cost an attempt."""
    seconds = retry_after(value)
    assert seconds is None or seconds >= 0


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[]", b'"x"', b"null", b"1", b"\xff", b"{" * 100_000, b"[" * 100_000, b"9" * 5000]
)
def test_d11_what_is_no_object_answers_nothing(body: bytes) -> None:
    """D11: an HTML page, a list or a broken body is an empty answer, never an error."""
    assert Response(200, {}, body).json_object() == {}


def test_an_object_is_an_object() -> None:
    """JSON is read whatever its Content-Type says."""
    assert Response(200, {"content-type": "text/html"}, b'{"id":7}').json_object() == {"id": 7}


@given(st.binary())
def test_any_body_is_read_without_an_error(body: bytes) -> None:
    """Whatever a CRM sends, the worker lives."""
    assert isinstance(Response(200, {}, body).json_object(), dict)


def test_outcomes_are_one_family() -> None:
    """Who catches Outcome has caught all that a CRM can do to us; an outage is a kind of NotExecuted."""
    assert issubclass(Unreachable, NotExecuted)
    assert issubclass(NotExecuted, Outcome)
    assert issubclass(OutcomeUnknown, Outcome)
