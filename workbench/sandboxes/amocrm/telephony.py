"""Calls, which find their entity by the phone."""

from collections.abc import Mapping
from itertools import count
from typing import Literal

from pydantic import Field

from workbench.sandboxes.amocrm.account import SINGULAR
from workbench.sandboxes.amocrm.bodies import Id, Time, UserId
from workbench.sandboxes.amocrm.calls import NOT_ALLOWED, NOT_FOUND, Body, Call, Item, hal, refuse
from workbench.sandboxes.amocrm.drafts import Entity
from workbench.sandboxes.amocrm.entities import Entities
from workbench.sandboxes.amocrm.notes import NoteBody, Notes
from workbench.sandboxes.wire import SandboxResponse

_NOTE_TYPES: Mapping[str, str] = {"inbound": "call_in", "outbound": "call_out"}


class CallBody(Body):
    """A call."""

    uniq: str | None = None
    duration: int = Field(ge=0)
    source: str
    link: str | None = None
    phone: str
    call_result: str | None = None
    call_status: int | None = Field(default=None, ge=1, le=8)
    direction: Literal["inbound", "outbound"]
    responsible_user_id: Id | None = None
    call_responsible: int | str | None = None
    created_by: UserId | None = None
    updated_by: UserId | None = None
    created_at: Time | None = None
    updated_at: Time | None = None


class Telephony:
    """The calls of an account."""

    def __init__(self, entities: Entities, notes: Notes) -> None:
        self._entities = entities
        self._notes = notes
        self._ids = count(435_353)

    def answer(self, call: Call, path: object) -> SandboxResponse:
        """`api/v4/calls`: a note for each call whose phone somebody has, an error for each that nobody has."""
        if path:
            return NOT_FOUND
        if call.request.method != "POST":
            return NOT_ALLOWED
        items = call.items(CallBody)
        refuse({item.request_id: item.mistakes for item in items})
        found = [(item, self._whose(item.body.phone)) for item in items]
        known = [self._added(call, item, entity) for item, entity in found if entity]
        failed = [
            {"title": "Failed", "status": 263, "detail": "Entity not found", "request_id": item.request_id}
            for item, entity in found
            if entity is None
        ]
        links = {"self": call.href("calls")}
        shown = {"_links": links, "errors": failed, "_embedded": {"calls": known}}
        return hal({"_total_items": len(known), **shown}, 200 if known else 400)

    def _added(self, call: Call, item: Item[CallBody], entity: Entity) -> dict[str, object]:
        body = item.body
        params = body.model_dump(include={"uniq", "duration", "source", "link", "phone", "call_result", "call_status"})
        note = NoteBody(
            note_type=_NOTE_TYPES[body.direction],
            params=params | {"call_responsible": body.call_responsible},
            created_by=body.created_by,
            created_at=body.created_at,
            responsible_user_id=body.responsible_user_id,
        )
        self._notes.write(call, [(note, entity)])
        about = {"id": entity.id, "_links": {"self": call.href(f"{entity.kind}/{entity.id}")}}
        return {
            "id": next(self._ids),
            "entity_id": entity.id,
            "entity_type": SINGULAR[entity.kind],
            "account_id": call.account.id,
            "request_id": item.request_id,
            "_embedded": {"entity": about},
        }

    def _whose(self, phone: str) -> Entity | None:
        sought = _digits(phone)
        for kind in ("contacts", "companies"):
            for entity in self._entities.present[kind].values():
                for filled in entity.custom_fields.values():
                    if filled.definition.code == "PHONE" and sought in {
                        _digits(each["value"]) for each in filled.values
                    }:
                        return entity
        return None


def _digits(phone: str) -> str:
    return "".join(filter(str.isdigit, phone))
