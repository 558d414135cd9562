"""CartelCRM's callbacks: from bytes that are surely its own to an event with a key."""

import json
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from crm_relay.cartelcrm.callbacks import Callback, StaleEvent, callback_of, read_callback, without_personal_data
from crm_relay.http_api import Malformed, Meaningless, Refusal
from crm_relay.signing import TOLERANCE

NOW = 1_760_000_000.0
OLDEST = NOW - 30 * 86_400
FIELDS: dict[str, Any] = {"internal_id": "L-1", "event": "lead_approved", "timestamp": int(NOW)}

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters()), inner),
    max_leaves=10,
)
INTERNAL_IDS = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9_.:@=+-]{0,9}\Z")
EVENTS = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=10)
SECONDS = st.integers(0, 9_999_999_999)


def read(fields: object) -> Callback:
    return read_callback(json.dumps(fields).encode(), now=NOW, oldest=OLDEST)


def test_a_callback_is_read() -> None:
    """The three parts of the key are named, and everything that came is kept as it came."""
    data = FIELDS | {"payout": 12.5, "comment": "Привет"}
    callback = read(data)
    assert (callback.internal_id, callback.event, callback.timestamp) == ("L-1", "lead_approved", int(NOW))
    assert callback.data == data


@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
@example(b"")
@example(b"\xff")
@example(b"[" * 100_000)
@example(b'{"internal_id":' * 50_000)
@example(b"9" * 5_000)
def test_any_body_is_a_callback_or_refused(body: bytes) -> None:
    """Nothing that somebody can sign makes the reader raise anything but a refusal."""
    with suppress(Refusal):
        assert isinstance(read_callback(body, now=NOW, oldest=OLDEST), Callback)


@given(JSON, JSON, JSON)
@example("L-1", "lead_approved", 10**12 - 1)
@example("L-1", "lead_approved", "0001-01-01T00:00:00+23:59")
@example("L-1", "lead_approved", "9999-12-31T23:59:59-23:59")
def test_any_fields_are_a_callback_or_refused(internal_id: object, event: object, timestamp: object) -> None:
    """Whatever stands in the three fields, there is a callback or a refusal."""
    fields = {"internal_id": internal_id, "event": event, "timestamp": timestamp}
    with suppress(Meaningless):
        assert isinstance(callback_of(fields), Callback)


@pytest.mark.parametrize("body", [b"", b"{", b"null", b"[]", b'"x"', b"1", b"{} {}", b"\xef\xbb\xbf{}"])
def test_what_is_no_json_object_is_malformed(body: bytes) -> None:
    """Only an object can be a callback."""
    with pytest.raises(Malformed):
        read_callback(body, now=NOW, oldest=OLDEST)


@pytest.mark.parametrize("internal_id", ["5", 5, "a", "A-1_2.3:4@b=+", "x" * 200, 10**50])
def test_internal_ids_that_are_taken(internal_id: object) -> None:
    """An id is a number or a word of harmless characters, read as text."""
    assert read(FIELDS | {"internal_id": internal_id}).internal_id == str(internal_id)


@pytest.mark.parametrize(
    "internal_id",
    [None, "", " ", "x" * 201, "../../x", "a/b", "%00", "a\r\nb", "a b", "ключ", "a\n", "-1", -1, True, 1.5, ["a"], {}],
)
def test_internal_ids_that_are_refused(internal_id: object) -> None:
    """Nothing that could mean something in a key, a path or a log line is an id."""
    with pytest.raises(Meaningless, match="internal_id_invalid"):
        read(FIELDS | {"internal_id": internal_id})


@pytest.mark.parametrize("event", ["x", "lead.approved", "Статус изменён", "a:b", "x" * 100])
def test_events_that_are_taken(event: str) -> None:
    """An event may be any line of text: unknown ones are kept."""
    assert read(FIELDS | {"event": event}).event == event


@pytest.mark.parametrize("event", [None, "", "x" * 101, "a\nb", "a\x7f", 5, True, ["a"], {}])
def test_events_that_are_refused(event: object) -> None:
    """An event is one line of text."""
    with pytest.raises(Meaningless, match="event_invalid"):
        read(FIELDS | {"event": event})


@pytest.mark.parametrize(
    "timestamp",
    [
        1_760_000_000,
        "1760000000",
        "2025-10-09T08:53:20Z",
        "2025-10-09T08:53:20+00:00",
        "2025-10-09T11:53:20+03:00",
        "20251009T085320Z",
    ],
)
def test_spellings_of_one_moment_are_one_key(timestamp: object) -> None:
    """Seconds as a number or in digits and ISO 8601 with any offset name the same event."""
    callback = read(FIELDS | {"timestamp": timestamp})
    assert callback.timestamp == int(NOW)
    assert callback.key == read(FIELDS).key


@pytest.mark.parametrize(
    "timestamp",
    [
        *(None, "", True, [], {}, 1.76e9, -1, 1_760_000_000_000, "9" * 12),
        *("-1", "+1760000000", " 1760000000", "1_760_000_000", "١٧٦٠٠٠٠٠٠٠", "²", "nan", "1e9", "yesterday"),
        *("2025-10-09T08:53:20", "2025-10-09", "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59"),
    ],
)
def test_timestamps_that_are_refused(timestamp: object) -> None:
    """A timestamp is a moment beyond doubt: no fraction, no milliseconds, no local time."""
    with pytest.raises(Meaningless, match="timestamp_invalid"):
        read(FIELDS | {"timestamp": timestamp})


@given(st.tuples(INTERNAL_IDS, EVENTS, SECONDS), st.tuples(INTERNAL_IDS, EVENTS, SECONDS))
@example(("ab", "c", 1), ("a", "bc", 1))
@example(("a", "b1", 1), ("a", "b", 11))
@example(("a:b", "c", 1), ("a", "b:c", 1))
@example(("a", 'b","1970-01-01T00:00:01+00:00', 1), ("a", "b", 1))
def test_a44_the_key_is_unambiguous(one: tuple[str, str, int], other: tuple[str, str, int]) -> None:
    """A44: two callbacks share a key if they share all three parts, and only then."""
    keys = [callback_of(dict(zip(FIELDS, parts, strict=True))).key for parts in (one, other)]
    assert (keys[0] == keys[1]) == (one == other)


@given(st.integers(0, 10**60), EVENTS, SECONDS)
def test_a43_a_number_is_the_same_id_as_its_digits(number: int, event: str, timestamp: int) -> None:
    """A43: 5 and "5" are one lead, in seconds as a number or in digits."""
    as_number = callback_of({"internal_id": number, "event": event, "timestamp": timestamp})
    as_text = callback_of({"internal_id": str(number), "event": event, "timestamp": str(timestamp)})
    assert as_number.key == as_text.key


@given(st.datetimes(datetime(1970, 1, 2), datetime(9999, 12, 30), timezones=st.timezones()))  # noqa: DTZ001 (bounds)
def test_a_moment_is_the_same_in_every_zone(moment: datetime) -> None:
    """The zone in which a moment is told does not change its key."""
    told = callback_of(FIELDS | {"timestamp": moment.isoformat()})
    assert told.key == callback_of(FIELDS | {"timestamp": moment.astimezone(UTC).isoformat()}).key
    assert told.timestamp == int(moment.timestamp())


@pytest.mark.parametrize("ahead", [0, TOLERANCE])
def test_a_timestamp_may_lie_ahead_by_the_tolerance(ahead: int) -> None:
    """Clocks differ."""
    assert read(FIELDS | {"timestamp": int(NOW) + ahead}).timestamp == NOW + ahead


def test_a_timestamp_of_the_future_is_refused() -> None:
    """What has not happened yet is not news."""
    with pytest.raises(Meaningless, match="timestamp_in_future"):
        read(FIELDS | {"timestamp": int(NOW) + TOLERANCE + 1})


def test_an_event_from_before_our_memory_is_stale() -> None:
    """At the edge of what we remember an event is taken; before it a replay could not be told, and somebody looks."""
    assert read(FIELDS | {"timestamp": int(OLDEST)}).timestamp == OLDEST
    with pytest.raises(StaleEvent, match="stale_event") as refusal:
        read(FIELDS | {"timestamp": int(OLDEST) - 1})
    assert refusal.value.status == 401
    assert refusal.value.needs_attention


def test_personal_data_goes_and_the_rest_stays() -> None:
    """The bus hears of the lead's fate, not of who the person is."""
    data = {
        "name": "Олена",
        "customer_email": "a@b.ua",
        "offer": {"id": 7, "name": "Crypto", "contact_phone": "1"},
        "note": "+380 50 123-45-67",
        "tags": ["x@y.de", "vip"],
        "status": "approved",
    }
    assert without_personal_data(data) == {"offer": {"id": 7, "name": "Crypto"}, "tags": ["vip"], "status": "approved"}


def test_a_text_longer_than_any_address_is_not_searched() -> None:
    """The pattern's work on a hostile text would grow with its square."""
    comment = "a@" + "." * 100_000 + " b"
    assert without_personal_data({"comment": comment}) == {"comment": comment}
