"""Deals, contacts and companies, their fields and their past (Bitrix24 reference, sections 3.1 to 3.3).

Names are those of `crm.item.*`, such as `stageId`; custom fields keep their own, such as `UF_CRM_1747309879`.
All functions return operations for `client.call` and `client.batch`.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

from crm_relay.bitrix24.client import PAGE, Operation, Unusable, mapping, number, rows, with_id

DEAL = 2
CONTACT = 3
COMPANY = 4

MOST_VALUES = 20
"""Phones or addresses of one search for duplicates."""

type Item = dict[str, Any]
"""One item. Contacts and companies have phones and addresses in `fm`: [{"typeId", "valueType", "value"}]."""

_ORIGINAL_NAMES = {"useOriginalUfNames": "Y"}


def item_name(name: str) -> str:
    """Return the name that `crm.item.*` has for a field: STAGE_ID → stageId; custom fields keep theirs."""
    if name.startswith("UF_") or not name.isupper():
        return name
    if name in _RENAMED:
        return _RENAMED[name]
    first, *others = name.lower().split("_")
    return first + "".join(part.capitalize() for part in others)


_RENAMED: Mapping[str, str] = {
    "DATE_CREATE": "createdTime",
    "DATE_MODIFY": "updatedTime",
    "CREATED_BY_ID": "createdBy",
    "MODIFY_BY_ID": "updatedBy",
}
"""Where the old names of deals are no spelling of the new ones."""


def field_name(name: str) -> str:
    """Return the name of a field in capitals, as relay.toml has it: the way back from `item_name`."""
    if name.startswith("UF_"):
        return name
    renamed = {new: old for old, new in _RENAMED.items()}
    return renamed.get(name) or re.sub("[A-Z]|[0-9]+", lambda part: f"_{part[0]}", name).upper()


def get(kind: int, item_id: int | str) -> Operation[Item]:
    """Read an item; one that is not there, or not for our eyes, is Refused("not_found")."""
    params = {"entityTypeId": kind, "id": item_id, **_ORIGINAL_NAMES}
    return Operation("crm.item.get", params, _item)


def list_after(
    kind: int, last: int, *, filters: Mapping[str, Any] | None = None, select: Sequence[str] = ("*",)
) -> Operation[list[Item]]:
    """Read the 50 items that follow the id `last`, for reading all; an unknown field in a filter is refused."""
    params = {
        "entityTypeId": kind,
        "select": list(select),
        "filter": {**(filters or {}), ">id": last},
        "order": {"id": "ASC"},
        "start": -1,
        **_ORIGINAL_NAMES,
    }
    return Operation("crm.item.list", params, lambda result: _rows_of(result, "items"))


def present(kind: int, item_ids: Sequence[int]) -> Operation[list[Item]]:
    """Read which of at most 50 items there are: `id`. Who was merged into another is there no more."""
    assert 0 < len(item_ids) <= PAGE
    return list_after(kind, 0, filters={"@id": list(item_ids)}, select=("id",))


def find_by_origin(kind: int, originator_id: str, origin_id: str) -> Operation[list[Item]]:
    """Look for the items that carry a marker: `id`; the lowest first."""
    filters = {"=originatorId": originator_id, "=originId": origin_id}
    return list_after(kind, 0, filters=filters, select=("id",))


def add(kind: int, fields: Mapping[str, Any]) -> Operation[Item]:
    """Create an item and return it whole. Unknown fields are ignored, duplicates are not looked for."""
    params = {"entityTypeId": kind, "fields": fields, **_ORIGINAL_NAMES}
    return Operation("crm.item.add", params, _item)


def update(kind: int, item_id: int, fields: Mapping[str, Any]) -> Operation[Item]:
    """Change the fields that are passed and return the item whole; for files see `files.field_value`."""
    params = {"entityTypeId": kind, "id": item_id, "fields": fields, **_ORIGINAL_NAMES}
    return Operation("crm.item.update", params, _item)


def fields(kind: int) -> Operation[dict[str, dict[str, Any]]]:
    """Read the definitions of the fields, by name: `type`, `isMultiple`, `isReadOnly`, `isRequired`, `items` …."""
    params = {"entityTypeId": kind, **_ORIGINAL_NAMES}

    def read(result: Any) -> dict[str, dict[str, Any]]:
        return {name: mapping(each) for name, each in mapping(mapping(result).get("fields")).items()}

    return Operation("crm.item.fields", params, read)


def deal_user_fields() -> Operation[list[dict[str, Any]]]:
    """Read the custom fields of deals, with the XML_ID of each option under LIST; needs the rights of a CRM admin."""
    return Operation("crm.deal.userfield.list", {"order": {"ID": "ASC"}}, rows)


def find_by_communication(
    kind: Literal["PHONE", "EMAIL"], values: Sequence[str], entity: Literal["CONTACT", "COMPANY"]
) -> Operation[list[int]]:
    """Look for contacts or companies by phone or address; their ids, lowest first."""
    assert 0 < len(values) <= MOST_VALUES

    def read(result: Any) -> list[int]:
        found = mapping(result).get(entity) or []
        if not isinstance(found, list):
            raise Unusable
        return sorted(map(number, found))

    params = {"type": kind, "values": list(values), "entity_type": entity}
    return Operation("crm.duplicate.findbycomm", params, read)


def stage_history_after(last: int, *, filters: Mapping[str, Any] | None = None) -> Operation[list[dict[str, Any]]]:
    """Read the 50 moves of deals that follow the id `last`.

    Each has ID, OWNER_ID (the deal), CREATED_TIME, CATEGORY_ID, STAGE_ID.
    """
    params = {
        "entityTypeId": DEAL,
        "filter": {**(filters or {}), ">ID": last},
        "order": {"ID": "ASC"},
        "start": -1,
    }
    return Operation("crm.stagehistory.list", params, lambda result: _rows_of(result, "items"))


def latest_stage_history() -> Operation[list[dict[str, Any]]]:
    """Read the latest 50 moves of deals, the last one first."""
    params = {"entityTypeId": DEAL, "order": {"ID": "DESC"}, "start": -1}
    return Operation("crm.stagehistory.list", params, lambda result: _rows_of(result, "items"))


def moved_at(move: Mapping[str, Any]) -> float:
    """Return when a move of the stage history was made: unix seconds by the portal's clock, 0.0 if it does not say."""
    try:
        moment = datetime.fromisoformat(str(move.get("CREATED_TIME")))
    except ValueError:
        return 0.0
    return moment.timestamp() if moment.tzinfo else 0.0


def _item(result: Any) -> Item:
    return with_id(mapping(mapping(result).get("item")))


def _rows_of(result: Any, key: str) -> list[dict[str, Any]]:
    return list(map(with_id, rows(mapping(result).get(key))))
