"""Custom fields: what may be written into them, how they are read, and how hooks show them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from workbench.sandboxes.amocrm.account import CustomField, Option
from workbench.sandboxes.amocrm.bodies import FieldBody
from workbench.sandboxes.amocrm.calls import Call, Mistake, not_supported

type Value = dict[str, Any]

_LATEST = 2**33
_TEXTS = frozenset({"text", "textarea", "url", "streetaddress", "tracking_data"})
_TIMES = frozenset({"date", "date_time", "birthday"})
_CHOICES = frozenset({"select", "multiselect", "radiobutton", "category"})
_KINDS_OF_TEXT = frozenset({"multitext", "smart_address"})


@dataclass(frozen=True, slots=True)
class Filled:
    """A custom field of an entity with its values, shaped as they are read."""

    definition: CustomField
    values: list[Value]

    def view(self) -> dict[str, object]:
        """As the API shows it."""
        return {
            "field_id": self.definition.id,
            "field_name": self.definition.name,
            "field_code": self.definition.code,
            "field_type": self.definition.type,
            "values": self.values,
        }

    def in_hook(self, time_zone: ZoneInfo) -> dict[str, object]:
        """As a hook shows it: a date is a bare number, a radio button no list, a UTM field has no values at all."""
        shown: dict[str, object] = {"id": self.definition.id, "name": self.definition.name}
        match self.definition.type:
            case "tracking_data":
                pass
            case "date" | "date_time":
                shown["values"] = [value["value"] for value in self.values]
            case "radiobutton":
                shown["values"] = _old(self.values[0])
            case "birthday":
                days = [datetime.fromtimestamp(value["value"], time_zone) for value in self.values]
                shown["values"] = [{"value": f"{day:%d.%m.%Y}"} for day in days]
            case _:
                shown["values"] = [_old(value) for value in self.values]
        return shown | ({"code": self.definition.code} if self.definition.code else {})


def _old(value: Value) -> dict[str, object]:
    return {"value": value.get("value"), "enum": value.get("enum_id")}


def fill(
    definitions: Sequence[CustomField], given: Sequence[FieldBody], mistakes: list[Mistake]
) -> dict[int, Filled | None]:
    """What becomes of the fields that were `given`, by id, None for those cleared; `mistakes` are added to."""
    filled: dict[int, Filled | None] = {}
    for place, field in enumerate(given):
        path = f"custom_fields_values.{place}"
        definition = next((each for each in definitions if _named(each, field)), None)
        if definition is None:
            mistakes.append(not_supported(f"{path}.field_{'id' if field.field_id else 'code'}"))
        elif not field.values:
            filled[definition.id] = None
        else:
            values = [_read(definition, value, f"{path}.values.{n}") for n, value in enumerate(field.values)]
            mistakes += [value for value in values if isinstance(value, Mistake)]
            filled[definition.id] = Filled(definition, [value for value in values if isinstance(value, dict)])
    return filled


def _named(definition: CustomField, field: FieldBody) -> bool:
    if field.field_id is not None:
        return definition.id == field.field_id
    return definition.code is not None and definition.code == field.field_code


def _read(definition: CustomField, given: Value, path: str) -> Value | Mistake:
    value = given.get("value")
    wrong = Mistake("InvalidType", f"{path}.value", f"This value does not suit a field of type {definition.type}.")
    if definition.type in _CHOICES:
        option = _chosen(definition, given)
        return _with(option.value, option) if option else not_supported(f"{path}.{_name_of_choice(given)}")
    if definition.type in _KINDS_OF_TEXT and definition.options:
        option = _chosen(definition, given) if given.keys() & {"enum_id", "enum_code"} else definition.options[0]
        if option is None:
            return not_supported(f"{path}.{_name_of_choice(given)}")
        return _with(value, option) if isinstance(value, str) else wrong
    if definition.type in _TIMES:
        moment = _moment(value)
        return wrong if moment is None else {"value": moment}
    if definition.type == "checkbox":
        return {"value": value} if isinstance(value, bool) else wrong
    if definition.type == "numeric":
        return {"value": str(value)} if _is_number(value) else wrong
    if definition.type in _TEXTS:
        return {"value": value} if isinstance(value, str) else wrong
    return dict(given)


def _with(value: object, option: Option) -> Value:
    return {"value": value, "enum_id": option.id, "enum_code": option.code}


def _chosen(definition: CustomField, given: Value) -> Option | None:
    of_option = {"enum_id": "id", "enum_code": "code", "value": "value"}[_name_of_choice(given)]
    wanted = given.get(_name_of_choice(given))
    return next((option for option in definition.options if getattr(option, of_option) == wanted), None)


def _name_of_choice(given: Value) -> str:
    return next((name for name in ("enum_id", "enum_code") if name in given), "value")


def _moment(value: object) -> int | None:
    match value:
        case bool():
            return None
        case int():
            return value if abs(value) < _LATEST else None
        case str():
            try:
                return int(datetime.fromisoformat(value).timestamp())
            except (ValueError, OverflowError):
                return None
        case _:
            return None


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return False
    try:
        float(value)
    except ValueError:
        return False
    return True


def view_definition(call: Call, owner: str, definition: CustomField, place: int) -> dict[str, object]:
    """The definition of a field as the API shows it, in its `place` among the others."""
    options: Iterator[Mapping[str, object]] = (
        {"id": option.id, "value": option.value, "sort": sort, "code": option.code}
        for sort, option in enumerate(definition.options)
    )
    return {
        "id": definition.id,
        "name": definition.name,
        "type": definition.type,
        "code": definition.code,
        "sort": 500 + place,
        "group_id": None,
        "entity_type": "catalogs" if owner.startswith("catalogs/") else owner.rpartition("/")[2],
        "account_id": call.account.id,
        "is_predefined": definition.code is not None,
        "is_api_only": False,
        "required_statuses": [],
        "enums": list(options) or None,
        **({"catalog_id": int(owner.partition("/")[2])} if owner.startswith("catalogs/") else {}),
        **definition.more,
        "_links": {"self": call.href(f"{owner}/custom_fields/{definition.id}")},
    }
