"""Values of custom fields, read and set by a field's id, code or name (amoCRM reference, section 3.1)."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, Protocol

type Key = int | str
"""A field's id, its code such as "PHONE", or its name."""

_CODE = re.compile(r"[A-Z][A-Z0-9_]*")
_PARTS = frozenset({"value", "enum_id", "enum_code", "catalog_id", "catalog_element_id"})
"""What an item of `values` may have; any other object is itself a value."""
_DATES = frozenset({"date", "date_time", "birthday"})
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class HasFields(Protocol):
    """What has custom fields, such as a lead."""

    custom_fields_values: list[dict[str, Any]] | None


@dataclass(frozen=True, slots=True)
class FieldValue:
    """One value of a field. `raw` is the item as amoCRM gave it, whatever the type of the field.

    `value` is a text, a number, a bool, an aware datetime for dates, a dict for what has parts (legal_entity,
    items, file, payer, supplier, linked_entity); for a chained list it is the id of the list element.
    """

    value: Any
    enum_id: int | None = None
    enum_code: str | None = None
    raw: Mapping[str, Any] = field(default_factory=dict)


class CustomFields(Mapping[Key, Any]):
    """The custom fields of one entity.

    `fields["PHONE"]` is the first value, `fields.all("PHONE")` has all of them; a field without a value raises
    KeyError, as in a dict. `fields["PHONE"] = "+7…"` replaces all values. What can be set: a text, a number, a
    bool, a date or an aware datetime, an object, an item such as {"value": "+7…", "enum_code": "WORK"} or
    {"enum_id": 5}, or a list of these. None, or `del`, empties the field. A name that the entity has no field
    of is looked up in the account when the entity is written.
    """

    def __init__(self, owner: HasFields) -> None:
        self._owner = owner

    def __getitem__(self, key: Key) -> Any:
        return self.all(key)[0].value

    def __setitem__(self, key: Key, value: Any) -> None:
        self._put(key, _items(value))

    def __delitem__(self, key: Key) -> None:
        self._put(key, None)

    def __iter__(self) -> Iterator[Key]:
        for held in self._held():
            if held.get("values"):
                yield held.get("field_id") or held.get("field_code") or held["field_name"]

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def all(self, key: Key) -> list[FieldValue]:
        """Return the values of a field.

        Raises:
            KeyError: it has none here.
        """
        for held in self._held():
            if _is(held, key) and held.get("values"):
                return [_value(item, held.get("field_type")) for item in held["values"]]
        raise KeyError(key)

    def _held(self) -> list[dict[str, Any]]:
        return self._owner.custom_fields_values or []

    def _put(self, key: Key, values: list[dict[str, Any]] | None) -> None:
        # What is held is replaced, never changed: it may be what the entity was read from.
        put = [{**held, "values": values} if _is(held, key) else held for held in self._held()]
        if not any(_is(held, key) for held in put):
            put.append({**_named(key), "values": values})
        self._owner.custom_fields_values = put


def written(held: Mapping[str, Any]) -> dict[str, Any]:
    """Return a field as it is written: by id, else by code, else by a name that has to be looked up."""
    for name in ("field_id", "field_code", "field_name"):
        if held.get(name) is not None:
            return {name: held[name], "values": held.get("values") or None}
    return dict(held)


def _is(held: Mapping[str, Any], key: Key) -> bool:
    if isinstance(key, int):
        return held.get("field_id") == key
    return key in (held.get("field_code"), held.get("field_name"))


def _named(key: Key) -> dict[str, Any]:
    if isinstance(key, int):
        return {"field_id": key}
    return {"field_code": key} if _CODE.fullmatch(key) else {"field_name": key}


def _items(value: Any) -> list[dict[str, Any]] | None:
    if value is None:
        return None
    some = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    return [_item(one) for one in some] or None


def _item(value: Any) -> dict[str, Any]:
    match value:
        case FieldValue():
            return {name: part for name, part in value.raw.items() if name in _PARTS}
        case Mapping() if value and value.keys() <= _PARTS:
            return dict(value)
        case Decimal():
            return {"value": str(value)}
        case datetime() if value.tzinfo is None:
            raise ValueError("a time without a time zone is no moment")
        case datetime():
            return {"value": value.isoformat(timespec="seconds")}
        case date():
            return {"value": f"{value.isoformat()}T00:00:00+00:00"}
        case _:
            return {"value": value}


def _value(item: Any, kind: str | None) -> FieldValue:
    if not isinstance(item, Mapping):
        return FieldValue(item, raw={"value": item})
    value = item.get("value", item.get("catalog_element_id"))
    if kind in _DATES and isinstance(value, int):
        value = _EPOCH + timedelta(seconds=value)
    return FieldValue(value, item.get("enum_id"), item.get("enum_code"), item)
