"""Notes of leads, contacts, companies and customers."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from workbench.sandboxes.amocrm.account import AmoCrmAccount, Kind
from workbench.sandboxes.amocrm.bodies import Id, Time, UserId
from workbench.sandboxes.amocrm.calls import (
    NO_CONTENT,
    NOT_ALLOWED,
    NOT_FOUND,
    Body,
    Call,
    Item,
    Mistake,
    hal,
    not_supported,
    page,
    refuse,
    whole,
)
from workbench.sandboxes.amocrm.drafts import Entity
from workbench.sandboxes.amocrm.entities import Entities
from workbench.sandboxes.amocrm.filters import find
from workbench.sandboxes.wire import SandboxResponse

type Note = dict[str, Any]

_FILTERED_BY = frozenset({"id", "entity_id", "note_type", "created_at", "updated_at"})
_CALL = {"uniq": str, "duration": int, "source": str, "link": str, "phone": str}
_PARAMS: Mapping[str, Mapping[str, type]] = {
    "common": {"text": str},
    "attachment": {"version_uuid": str, "file_uuid": str, "file_name": str},
    "call_in": _CALL,
    "call_out": _CALL,
    "sms_in": {"text": str, "phone": str},
    "sms_out": {"text": str, "phone": str},
    "service_message": {"service": str, "text": str},
    "extended_service_message": {"service": str, "text": str},
    "message_cashier": {"status": str, "text": str},
    "invoice_paid": {"service": str, "text": str, "icon_url": str},
    "bill_paid": {"service": str, "text": str, "icon_url": str},
    "geolocation": {"text": str, "address": str, "longitude": str, "latitude": str},
    "site_visit": {"url": str},
    "targeting_in": {"contacts": dict, "campaign": dict, "service": str},
    "targeting_out": {"contacts": dict, "campaign": dict, "service": str},
    "zoom_meeting": {"conference": dict, "recordings": list},
    "ai_result": {"text": str},
}
"""The types of notes that can be written, with the parameters that each must have; more are kept as they come."""


class NoteBody(Body):
    """A note to add, or with an `id` to change."""

    id: Id | None = None
    entity_id: Id | None = None
    note_type: str | None = None
    params: dict[str, Any] | None = None
    created_by: UserId | None = None
    responsible_user_id: Id | None = None
    created_at: Time | None = None
    updated_at: Time | None = None
    is_need_to_trigger_digital_pipeline: bool = True


@dataclass(frozen=True, slots=True)
class Card:
    """What a person sees who opens a card: the entity, and its notes as the card shows them.

    Of notes with equal `created_at` a card shows one, the last that was written; `hidden` are the others.
    """

    entity: Entity
    notes: Sequence[Note]
    hidden: int

    @property
    def texts(self) -> list[str]:
        """The texts of the notes that are shown, oldest first."""
        return [note["params"].get("text", "") for note in self.notes]


class Notes:
    """All notes of an account; `tell` hears of those that are added, with their entities."""

    def __init__(
        self, entities: Entities, tell: Callable[[AmoCrmAccount, Sequence[tuple[Entity, Note]], int], None]
    ) -> None:
        self.of_kind: Mapping[Kind, dict[int, Note]] = defaultdict(dict)
        self._of_entity: Mapping[tuple[Kind, int], dict[int, Note]] = defaultdict(dict)
        self._entities = entities
        self._ids = count(213313359)
        self._pinned: frozenset[int] = frozenset()
        self._tell = tell

    def answer(self, call: Call, kind: Kind, parent: str | None, path: Sequence[str]) -> SandboxResponse:
        """`api/v4/{kind}/notes…`, and with a `parent` `api/v4/{kind}/{parent}/notes…`."""
        entity = self._entities.find(kind, parent)
        if parent is not None and entity is None:
            return NO_CONTENT if call.request.method == "GET" else NOT_FOUND
        notes = self._of_entity[kind, entity.id] if entity else self.of_kind[kind]
        match path:
            case []:
                return self._all(call, kind, entity, notes)
            case [id_]:
                return self._one(call, kind, notes, id_)
            case [id_, "pin" | "unpin" as what] if note := notes.get(whole(id_) or 0):
                return self._pin(call, note, pinned=what == "pin")
            case _:
                return NOT_FOUND

    def _all(self, call: Call, kind: Kind, parent: Entity | None, notes: Mapping[int, Note]) -> SandboxResponse:
        match call.request.method:
            case "GET":
                return page(call, find(call, notes, _FILTERED_BY), "notes", lambda note: self._view(call, kind, note))
            case "POST":
                return _written(call, kind, self._add(call, kind, parent), "id", "entity_id")
            case "PATCH":
                changed = self._change(call, notes, call.items(NoteBody))
                return _written(call, kind, changed, "id", "entity_id", "updated_at")
            case _:
                return NOT_ALLOWED

    def _one(self, call: Call, kind: Kind, notes: Mapping[int, Note], id_: str) -> SandboxResponse:
        note = notes.get(whole(id_) or 0)
        match call.request.method:
            case "GET":
                return hal(self._view(call, kind, note)) if note else NO_CONTENT
            case "PATCH" if note:
                item = call.item(NoteBody)
                item.body.id = note["id"]
                self._change(call, notes, [item])
                return hal(_view(call, kind, note))
            case "PATCH":
                return NOT_FOUND
            case _:
                return NOT_ALLOWED

    def _pin(self, call: Call, note: Note, *, pinned: bool) -> SandboxResponse:
        if call.request.method != "POST":
            return NOT_ALLOWED
        self._pinned = self._pinned | {note["id"]} if pinned else self._pinned - {note["id"]}
        return NO_CONTENT

    def _view(self, call: Call, kind: Kind, note: Note) -> dict[str, object]:
        pinned = {"is_pinned": note["id"] in self._pinned} if "is_pinned" in call.with_ else {}
        return _view(call, kind, note) | pinned

    def card(self, entity: Entity) -> Card:
        """What the entity's card shows."""
        notes = self._of_entity[entity.kind, entity.id].values()
        shown = {note["created_at"]: note for note in notes}
        return Card(entity, [shown[at] for at in sorted(shown)], len(notes) - len(shown))

    def _add(self, call: Call, kind: Kind, parent: Entity | None) -> list[tuple[str, Note]]:
        items = call.items(NoteBody)
        targets = [(item, parent or self._entities.find(kind, item.body.entity_id)) for item in items]
        refuse({item.request_id: item.mistakes or _wrong(call.account, item.body, entity) for item, entity in targets})
        added = self.write(call, [(item.body, entity) for item, entity in targets if entity])
        return [(item.request_id, note) for item, note in zip(items, added, strict=True)]

    def write(self, call: Call, notes: Sequence[tuple[NoteBody, Entity]]) -> list[Note]:
        """Add notes that are known to be right, and tell of them."""
        added = [(entity, self._make(call, body, entity)) for body, entity in notes]
        self._tell(call.account, added, call.by)
        return [note for _, note in added]

    def _make(self, call: Call, body: NoteBody, entity: Entity) -> Note:
        by = call.by if body.created_by is None else body.created_by
        note: Note = {
            "id": next(self._ids),
            "entity_id": entity.id,
            "created_by": by,
            "updated_by": by,
            "created_at": body.created_at or call.now,
            "updated_at": body.updated_at or call.now,
            "responsible_user_id": body.responsible_user_id or entity["responsible_user_id"],
            "group_id": 0,
            "note_type": body.note_type,
            "params": body.params,
            "account_id": call.account.id,
        }
        self.of_kind[entity.kind][note["id"]] = note
        self._of_entity[entity.kind, entity.id][note["id"]] = note
        return note

    def _change(self, call: Call, notes: Mapping[int, Note], items: Sequence[Item[NoteBody]]) -> list[tuple[str, Note]]:
        targets = [(item, notes.get(item.body.id or 0)) for item in items]
        refuse({item.request_id: item.mistakes or _wrong_change(item.body, note) for item, note in targets})
        changed = []
        for (request_id, body, _), note in targets:
            assert note
            note |= {"updated_at": call.now, "updated_by": call.by, "params": note["params"] | (body.params or {})}
            changed.append((request_id, note))
        return changed


def _view(call: Call, kind: Kind, note: Note) -> dict[str, object]:
    return {**note, "_links": {"self": call.href(f"{kind}/{note['entity_id']}/notes/{note['id']}")}}


def _written(call: Call, kind: Kind, notes: Sequence[tuple[str, Note]], *names: str) -> SandboxResponse:
    shown = [
        {**{name: note[name] for name in names}, "request_id": request_id, "_links": _view(call, kind, note)["_links"]}
        for request_id, note in notes
    ]
    return hal({"_links": {"self": call.href(f"{kind}/notes")}, "_embedded": {"notes": shown}})


def _wrong(account: AmoCrmAccount, body: NoteBody, entity: Entity | None) -> list[Mistake]:
    mistakes = []
    if entity is None and body.entity_id is None:
        mistakes.append(Mistake("FieldMissing", "entity_id", "This field is missing."))
    elif entity is None:
        mistakes.append(Mistake("NotFound", "entity_id", "Entity not found"))
    users = {user.id for user in account.users}
    mistakes += [
        not_supported(name)
        for name in ("created_by", "responsible_user_id")
        if (user_id := getattr(body, name)) and user_id not in users
    ]
    if body.note_type is None:
        return [*mistakes, Mistake("FieldMissing", "note_type", "This field is missing.")]
    return mistakes + _wrong_params(body.note_type, body.params or {})


def _wrong_change(body: NoteBody, note: Note | None) -> list[Mistake]:
    if note is None:
        return [Mistake("NotFound", "id", "Note not found")]
    return _wrong_params(body.note_type or note["note_type"], note["params"] | (body.params or {}))


def _wrong_params(note_type: str, params: Mapping[str, Any]) -> list[Mistake]:
    if note_type not in _PARAMS:
        return [not_supported("note_type")]
    mistakes = []
    for name, kind in _PARAMS[note_type].items():
        path = f"params.{name}"
        if name not in params:
            mistakes.append(Mistake("FieldMissing", path, "This field is missing."))
        elif params[name] is None:
            mistakes.append(Mistake("NotNullable", path, "This value should not be null."))
        elif not isinstance(params[name], kind):
            mistakes.append(Mistake("InvalidType", path, f"This value should be of type {kind.__name__}."))
        elif params[name] == "" and name == "text":
            mistakes.append(Mistake("NotBlank", path, "This value should not be blank."))
    return mistakes
