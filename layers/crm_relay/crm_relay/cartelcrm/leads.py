"""A lead's fate in CartelCRM: its status, told in order of the signed timestamps, and how it came to be."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from crm_relay.cartelcrm.callbacks import Callback
from crm_relay.cartelcrm.statuses import STATUSES

SUBMISSION = "cartelcrm.lead"
"""The envelope kind of a lead's submission; its key is the external_id."""

EXTERNAL_ID_LENGTH = 200
"""Characters of our own id at most; with the rest of a key they fit into the table's 2,048 bytes."""

_WORD_LENGTH = 100

HISTORY_LENGTH = 100
"""Entries of a lead's history that are kept, newest last: an item in the table must stay small."""

KEPT = 400 * 86_400
"""Seconds for which a lead is remembered after its last news."""

_EVENT_PREFIXES = ("lead.", "lead_", "status.", "status_")


def lead_key(cartelcrm_id: str) -> str:
    """Return the key of a lead in the table."""
    return f"lead#{cartelcrm_id}"


def status_of(callback: Callback, aliases: Mapping[str, str]) -> str:
    """Return one of STATUSES, or "unknown".

    The callback's own `status` is asked first, then its event; an alias (keys in lower case) wins over the
    word itself.
    """
    for word in (callback.data.get("status"), callback.event):
        if isinstance(word, str):
            folded = word.strip().casefold()
            for prefix in _EVENT_PREFIXES:
                folded = folded if folded in aliases else folded.removeprefix(prefix)
            status = aliases.get(folded, folded)
            if status in STATUSES:
                return status
    return "unknown"


@dataclass(frozen=True, slots=True)
class Lead:
    """What is known of one lead under CartelCRM's id.

    `external_id` and `origin` come from our own submission, the rest from callbacks. `history` holds
    {"key", "event", "status", "word", "timestamp", "applied"}, where "word" is the status as CartelCRM said it.
    """

    external_id: str | None = None
    origin: Mapping[str, Any] | None = None
    status: str | None = None
    status_at: int = 0
    history: tuple[Mapping[str, Any], ...] = field(default=())

    @classmethod
    def read(cls, attributes: Mapping[str, Any]) -> Self:
        """Read what `attributes` wrote; an empty mapping is a lead of which nothing is known yet."""
        return cls(
            external_id=attributes.get("external_id"),
            origin=attributes.get("origin"),
            status=attributes.get("status"),
            status_at=attributes.get("status_at", 0),
            history=tuple(attributes.get("history", ())),
        )

    def attributes(self) -> dict[str, Any]:
        """Return the lead as plain data for the table."""
        return {
            "external_id": self.external_id,
            "origin": self.origin,
            "status": self.status,
            "status_at": self.status_at,
            "history": list(self.history),
        }

    def submitted(self, external_id: str, origin: Mapping[str, Any]) -> Self:
        """Return the lead with where it came from."""
        return replace(self, external_id=external_id, origin=dict(origin))

    def told(self, callback: Callback, status: str) -> Self:
        """Return the lead after a callback; one that is already in the history changes nothing.

        A callback older than the newest one, by the signed timestamp, is recorded and not applied; of two in
        the same second the one further down STATUSES holds. An unknown status is recorded and leaves the
        known one standing.
        """
        if any(entry["key"] == callback.key for entry in self.history):
            return self
        applied = status != "unknown" and (callback.timestamp, _rank(status)) >= (self.status_at, _rank(self.status))
        entry = {
            "key": callback.key,
            "event": callback.event,
            "status": status,
            "word": _word(callback),
            "timestamp": callback.timestamp,
            "applied": applied,
        }
        told = replace(self, history=(*self.history, entry)[-HISTORY_LENGTH:])
        return replace(told, status=status, status_at=callback.timestamp) if applied else told

    def applied(self, callback: Callback) -> bool:
        """Tell whether this callback set the status when it came."""
        return any(entry["key"] == callback.key and entry["applied"] for entry in self.history)


def _rank(status: str | None) -> int:
    return STATUSES.index(status) if status in STATUSES else -1


def _word(callback: Callback) -> str | None:
    word = callback.data.get("status")
    return word[:_WORD_LENGTH] if isinstance(word, str) else None
