"""CartelCRM's callbacks: from signed bytes to a typed event with an unambiguous key (CartelCRM contract, inbound)."""

import hashlib
import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from crm_relay.http_api import Malformed, Meaningless, Unauthenticated, read_json
from crm_relay.signing import TOLERANCE

KIND = "cartelcrm.callback"
"""The envelope kind of a callback."""

_INTERNAL_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:@=+-]{0,199}")
_EVENT = re.compile(r"[^\x00-\x1f\x7f]{1,100}")
_DIGITS = re.compile(r"[0-9]{1,12}")


@dataclass(frozen=True, slots=True)
class Callback:
    """One callback. `timestamp` is in unix seconds, `data` the whole object as it was sent.

    `key` names (internal_id, event, timestamp) as no other triple is named: an internal_id of 5 and of "5"
    are the same, and the parts are framed as JSON, so that ("a:b", "c") and ("a", "b:c") differ.
    """

    key: str
    internal_id: str
    event: str
    timestamp: int
    data: dict[str, Any]


def read_callback(body: bytes, *, now: float, oldest: float) -> Callback:
    """Read an authentic body.

    Args:
        body: JSON, at least `internal_id`, `event`, `timestamp` (unix seconds, as a number or in digits,
            or ISO 8601 with an offset).
        now: unix time in seconds.
        oldest: unix time in seconds before which our memory of callbacks does not reach.

    Raises:
        Malformed: no JSON object.
        Meaningless: one of the three is missing or cannot be, or the timestamp lies in the future.
        Unauthenticated: the signed timestamp is older than `oldest`: a replay could not be told any more.
    """
    data = read_json(body)
    if not isinstance(data, dict):
        raise Malformed("json_object_expected")
    callback = callback_of(data)
    if callback.timestamp > now + TOLERANCE:
        raise Meaningless("timestamp_in_future")
    if callback.timestamp < oldest:
        raise StaleEvent("stale_event")
    return callback


class StaleEvent(Unauthenticated):
    """Authentic, but from before our memory of callbacks: refused, and somebody should ask why it came."""

    needs_attention = True


_PERSONAL_KEY = re.compile(
    r"phone|mail|(first|last|full|middle|sur|maiden)_?name|patronymic|birth|address|passport|^(tel|ip)$"
)
_ADDRESS_LENGTH = 320
_PERSONAL_TEXT = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+|\+[0-9][0-9 ().-]{7,}")


def without_personal_data(data: dict[str, Any]) -> dict[str, Any]:
    """Return a callback's data without what tells who the person is: the bus is open to more eyes than the queue.

    Fields go by their names, and texts that are an e-mail address or an international phone number by their
    look; of fields called just "name", only the lead's own, not an offer's.
    """
    cleaned: dict[str, Any] = _impersonal({key: value for key, value in data.items() if key.casefold() != "name"})
    return cleaned


def _impersonal(value: Any) -> Any:
    match value:
        case dict():
            kept = {key: inner for key, inner in value.items() if not _PERSONAL_KEY.search(key.casefold())}
            return {key: _impersonal(inner) for key, inner in kept.items() if not _is_personal(inner)}
        case list():
            return [_impersonal(inner) for inner in value if not _is_personal(inner)]
        case _:
            return value


def _is_personal(value: Any) -> bool:
    # Bounded, since the pattern tries every "." of a long text; no address is longer.
    return isinstance(value, str) and len(value) <= _ADDRESS_LENGTH and bool(_PERSONAL_TEXT.fullmatch(value.strip()))


def callback_of(data: dict[str, Any]) -> Callback:
    """Return the callback that a JSON object is.

    Raises:
        Meaningless: as `read_callback`.
    """
    internal_id = _internal_id(data.get("internal_id"))
    event = _event(data.get("event"))
    moment = _moment(data.get("timestamp"))
    parts = json.dumps([internal_id, event, moment.isoformat()])
    return Callback(
        key=hashlib.sha256(parts.encode()).hexdigest(),
        internal_id=internal_id,
        event=event,
        timestamp=int(moment.timestamp()),
        data=data,
    )


def _internal_id(value: object) -> str:
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if not isinstance(text, str) or not _INTERNAL_ID.fullmatch(text):
        raise Meaningless("internal_id_invalid")
    return text


def _event(value: object) -> str:
    if not isinstance(value, str) or not _EVENT.fullmatch(value):
        raise Meaningless("event_invalid")
    return value


def _moment(value: object) -> datetime:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if isinstance(value, str):
        try:
            if _DIGITS.fullmatch(value):
                return datetime.fromtimestamp(int(value), UTC)
            moment = datetime.fromisoformat(value)
            if moment.tzinfo is not None:
                return moment.astimezone(UTC)
        except (ValueError, OverflowError):
            pass
    raise Meaningless("timestamp_invalid")
