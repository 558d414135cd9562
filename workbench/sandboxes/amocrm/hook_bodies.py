"""Hooks on the wire: amoCRM's old format, v2, with PHP's brackets, percent-encoded, every value a string.

This shares nothing with the relay's own reading of it: the two would agree in their mistakes.
"""

import html
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any
from urllib.parse import urlencode
from zoneinfo import ZoneInfo

from workbench.sandboxes.amocrm.account import ELEMENT_TYPES, SINGULAR, AmoCrmAccount
from workbench.sandboxes.amocrm.drafts import Entity
from workbench.sandboxes.amocrm.entities import Event

_NOTE_TYPES = {"common": 4, "attachment": 5, "call_in": 10, "call_out": 11}


def account_hook(account: AmoCrmAccount, events: Sequence[Event]) -> bytes:
    """The body of a hook of the account's settings, with whole entities; its events are of one kind and action."""
    first = events[0]
    prefix = "contacts" if first.entity.kind == "companies" else first.entity.kind
    told = {
        "account": {
            "subdomain": account.subdomain,
            "id": account.id,
            "_links": {"self": f"https://{account.host}"},
        },
        prefix: {first.action: [_told(account, event) for event in events]},
    }
    return _encoded(told)


def pipeline_hook(account: AmoCrmAccount, events: Sequence[Event]) -> bytes:
    """The body of a hook of a digital pipeline: ids alone, and no link to the account."""
    told = [
        {
            "id": event.entity.id,
            "status_id": event.entity["status_id"],
            "pipeline_id": event.entity["pipeline_id"],
            **event.was,
        }
        for event in events
    ]
    return _encoded({"leads": {events[0].action: told}, "account": {"id": account.id, "subdomain": account.subdomain}})


def _told(account: AmoCrmAccount, event: Event) -> dict[str, object]:
    entity = event.entity
    time_zone = ZoneInfo(account.time_zone)
    if event.note is not None:
        return {"note": _note(entity, event.note, time_zone), "type": _type(entity)}
    if event.action == "delete":
        names = ("id", "status_id", "pipeline_id") if entity.kind == "leads" else ("id",)
        return {**{name: entity[name] for name in names}, "type": _type(entity)}
    return _lead(event, time_zone) if entity.kind == "leads" else _contact(event, time_zone)


def _lead(event: Event, time_zone: ZoneInfo) -> dict[str, object]:
    lead, was = event.entity, event.was
    moved = was.get("old_pipeline_id", lead["pipeline_id"]) != lead["pipeline_id"]
    return {
        "id": lead.id,
        "name": lead["name"],
        "status_id": lead["status_id"],
        "old_status_id": was.get("old_status_id"),
        "price": lead["price"],
        "responsible_user_id": lead["responsible_user_id"],
        "old_responsible_user_id": was.get("old_responsible_user_id"),
        "last_modified": lead["updated_at"],
        "modified_user_id": event.by,
        "created_user_id": lead["created_by"],
        "date_create": lead["created_at"],
        "pipeline_id": lead["pipeline_id"],
        "old_pipeline_id": was["old_pipeline_id"] if moved else None,
        "account_id": lead["account_id"],
        "tags": _tags(lead),
        "custom_fields": _custom_fields(lead, time_zone),
        "linked_company_id": next(iter(lead.links["companies"]), None),
        "created_at": lead["created_at"],
        "updated_at": lead["updated_at"],
    }


def _contact(event: Event, time_zone: ZoneInfo) -> dict[str, object]:
    contact = event.entity
    return {
        "id": contact.id,
        "name": contact["name"],
        "responsible_user_id": contact["responsible_user_id"],
        "date_create": contact["created_at"],
        "last_modified": contact["updated_at"],
        "created_user_id": contact["created_by"],
        "modified_user_id": event.by,
        "account_id": contact["account_id"],
        "tags": _tags(contact),
        "custom_fields": _custom_fields(contact, time_zone),
        "linked_leads_id": {lead_id: {"ID": lead_id} for lead_id in contact.links["leads"]},
        "old_responsible_user_id": event.was.get("old_responsible_user_id"),
        "created_at": contact["created_at"],
        "updated_at": contact["updated_at"],
        "type": _type(contact),
    }


def _type(entity: Entity) -> str | None:
    # Contacts and companies share a key of the body.
    return SINGULAR[entity.kind] if entity.kind in {"contacts", "companies"} else None


def _note(entity: Entity, note: Mapping[str, Any], time_zone: ZoneInfo) -> dict[str, object]:
    params = note["params"]
    # Texts come escaped for HTML, and a call comes as JSON with names in capitals.
    text = params["text"] if "text" in params else json.dumps({name.upper(): params[name] for name in params})
    return {
        "text": html.escape(text, quote=False),
        "attachement": "",
        "note_type": _NOTE_TYPES.get(note["note_type"], note["note_type"]),
        "element_type": ELEMENT_TYPES[entity.kind],
        "element_id": entity.id,
        "catalog_id": 0,
        "group_id": note["group_id"],
        "account_id": note["account_id"],
        "date_create": f"{datetime.fromtimestamp(note['created_at'], time_zone):%Y-%m-%d %H:%M:%S}",
        "timestamp_x": f"{datetime.fromtimestamp(note['updated_at'], time_zone):%Y-%m-%d %H:%M:%S}",
        "created_by": note["created_by"],
        "modified_by": note["updated_by"],
        "main_user_id": note["responsible_user_id"],
        "id": note["id"],
        "created_at": note["created_at"],
        "updated_at": note["updated_at"],
    }


def _tags(entity: Entity) -> list[dict[str, object]]:
    return [{"id": tag["id"], "name": tag["name"]} for tag in entity.tags.values()]


def _custom_fields(entity: Entity, time_zone: ZoneInfo) -> list[dict[str, object]]:
    return [filled.in_hook(time_zone) for filled in entity.custom_fields.values()]


def _encoded(tree: Mapping[str, object]) -> bytes:
    return urlencode(list(_fields(tree, "")), errors="replace").replace("~", "%7E").encode()


def _fields(value: object, name: str) -> Iterator[tuple[str, str]]:
    match value:
        case None:
            pass
        case dict():
            for key, child in value.items():
                yield from _fields(child, f"{name}[{key}]" if name else str(key))
        case list():
            for place, child in enumerate(value):
                yield from _fields(child, f"{name}[{place}]")
        case bool():
            yield name, str(int(value))
        case _:
            yield name, str(value)
