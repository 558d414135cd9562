"""What a hook tells, as it travels through AmoQueue: which entity was added or changed. More of it is not believed."""

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import msgspec

from crm_relay.amocrm.hooks import Entity, HookEvent
from crm_relay.delivery.envelope import Envelope, NotOurs
from crm_relay.settings import AmoCrmNotes

if TYPE_CHECKING:
    from crm_relay.amocrm.resources import Card  # with httpx behind it, which a receiver must not load

KIND = "amocrm.note"

_CARDS: dict[Entity, "Card"] = {"lead": "leads", "contact": "contacts", "company": "companies"}
_SECONDS = re.compile(r"[0-9]{1,18}")


@dataclass(frozen=True, slots=True)
class Change:
    """One entity of an account that was added or changed."""

    account: str
    card: "Card"
    id: int
    added: bool

    @classmethod
    def read(cls, envelope: Envelope) -> Self:
        """Read an envelope's payload."""
        payload: Any = envelope.payload
        return cls(payload["account"], payload["card"], payload["id"], payload["added"])


def gets_note(event: HookEvent, notes: AmoCrmNotes) -> bool:
    """Tell whether the configuration wants a note for such an event."""
    match event.entity:
        case "lead":
            return event.action in notes.lead
        case "contact":
            return event.action in notes.contact
        case "company":
            return event.action in notes.company
        case _:
            return False


def change_envelope(account: str, event: HookEvent, *, request_id: str, now: float) -> Envelope:
    """Return the envelope of an event that gets a note.

    A hook that amoCRM repeats has the same key, another change of the same entity another: amoCRM counts time
    in seconds, so what the hook says of the entity is part of its version. A hook of ids alone tells no version,
    and each one counts. An entity is added once, at a time that nobody can name beforehand.
    """
    card = _CARDS[event.entity]
    added = event.action == "add"
    if added:
        version = _created_at(event)
    elif event.modified_at is None:
        version = request_id
    else:
        digest = hashlib.sha256(msgspec.json.encode(event.fields, order="sorted")).hexdigest()
        version = f"{event.modified_at}-{digest[:16]}"
    payload = {"account": account, "card": card, "id": int(event.id), "added": added}
    key = f"{account}#{card}#{event.id}#{event.action}#{version}"
    return Envelope(KIND, key, payload, int(now), request_id)


def _created_at(event: HookEvent) -> str:
    told = (event.fields.get(name) for name in ("date_create", "created_at"))
    return next((text for text in told if isinstance(text, str) and _SECONDS.fullmatch(text)), "0")


def read_change(body: str) -> Envelope:
    """Read a message of AmoQueue.

    Raises:
        NotOurs: it is none of ours.
    """
    envelope = Envelope.decode(body)
    match envelope.payload:
        case {"account": str(), "card": "leads" | "contacts" | "companies", "id": int(), "added": bool()} if (
            envelope.kind == KIND
        ):
            return envelope
        case _:
            raise NotOurs("other_kind")
