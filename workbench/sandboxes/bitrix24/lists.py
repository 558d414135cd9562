"""Lists: filters with prefixes, order, and pages of fifty."""

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any, TypeGuard

from workbench.sandboxes.bitrix24.calls import Answer, Call, Refused, as_int, as_list

PAGE = 50
_CONDITION = re.compile(r"(!?)(>=|<=|=|>|<|%|@)?(.+)")
_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT")

type Record = Mapping[str, Any]
type Names = Mapping[str, str]
"""The fields that may be named in a filter or an order, and what they are called in records."""


def chosen(call: Call, records: Iterable[Record], names: Names) -> list[Record]:
    """The records that `filter` leaves, in the order of `order`. Refused if the filter names what is not in `names`."""
    meets = _all_of(call.mapping("filter"), names)
    found = [record for record in records if meets(record)]
    for name, direction in reversed([*call.mapping("order").items()]):
        key = names.get(name, name)
        found.sort(key=partial(_sortable, key), reverse=str(direction).upper() == "DESC")
    return found


def page[T](call: Call, records: Sequence[T]) -> tuple[Sequence[T], int | None, int | None]:
    """A page, the total and where the next one starts; with `start` -1 nothing is counted."""
    start = as_int(call.params.get("start", 0)) or 0
    if start < 0:
        return records[:PAGE], None, None
    start -= start % PAGE
    following = start + PAGE
    return records[start:following], len(records), following if following < len(records) else None


def listed(call: Call, records: Iterable[Record], known: Collection[str], key: str | None = None) -> Answer:
    """A page of what is `chosen` by `known` fields, showing those of `select`; as a list, or as one under `key`."""
    shown, total, following = page(call, chosen(call, records, {name: name for name in known}))
    names = {str(name) for name in as_list(call.params.get("select"))} - {"*"}
    rows = [{name: row[name] for name in row if not names or name in names} for row in shown]
    return Answer({key: rows} if key else rows, total, following)


def _all_of(conditions: Mapping[str, Any], names: Names) -> Callable[[Record], bool]:
    parts = [
        _all_of(wanted, names) if name.isdecimal() and isinstance(wanted, dict) else _condition(name, wanted, names)
        for name, wanted in conditions.items()
        if name != "logic"
    ]
    enough = any if str(conditions.get("logic", "")).upper() == "OR" else all
    return lambda record: enough(part(record) for part in parts)


def _condition(condition: str, wanted: Any, names: Names) -> Callable[[Record], bool]:
    parts = _CONDITION.fullmatch(condition)
    negated, sign, name = parts.groups() if parts else ("", None, condition)
    if name not in names:
        raise Refused("INVALID_ARG_VALUE", f"Invalid filter: field '{name}' is not allowed in filter")
    key, choices = names[name], as_list(wanted) or [None]
    texts = frozenset(str(choice).casefold() for choice in choices if choice is not None)

    def meets(record: Record) -> bool:
        value = record.get(key)
        if sign in {None, "=", "@"} and _is_plain(value):
            # Of thousands of records nearly all end here, which lets a look-up take milliseconds.
            return (value.casefold() in texts) is not bool(negated)
        values = value if isinstance(value, list) and value else [value]
        return any(_compares(each, sign or "=", choice) for each in values for choice in choices) is not bool(negated)

    return meets


def _is_plain(value: object) -> TypeGuard[str]:
    """Whether this is a text that is compared as such: neither empty, nor a moment, nor Y or N."""
    return isinstance(value, str) and len(value) > 1 and value[10:11] != "T"


def _compares(value: Any, sign: str, wanted: Any) -> bool:
    if sign == "%":
        return str(wanted).casefold() in str(value or "").casefold()
    left, right = _comparable(value, value), _comparable(wanted, value)
    if sign in "=@":
        return bool(left == right)
    if left is None or type(left) is not type(right):
        return False
    match sign:
        case ">":
            return bool(left > right)
        case "<":
            return bool(left < right)
        case ">=":
            return bool(left >= right)
        case _:
            return bool(left <= right)


def _comparable(value: Any, like: Any) -> Any:
    """Read a value as the kind of thing that the record's own value is."""
    if value is None or value in ("", []):
        return None
    match like:
        case bool():
            return value in (True, "Y", "1", "true")
        case int() | float():
            return _number(value)
        case "Y" | "N":
            return value in (True, 1, "Y", "1")
        case str() if _MOMENT.match(like):
            return _seconds(str(value), like)
        case _:
            return str(value).casefold()


def _number(value: Any) -> float | str:
    try:
        return float(value)
    except (TypeError, ValueError):
        return str(value)


def _seconds(value: str, like: str) -> float | str:
    """Return a moment; one without a zone is in that of the moment beside it."""
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        return value
    return (moment if moment.tzinfo else moment.replace(tzinfo=datetime.fromisoformat(like).tzinfo)).timestamp()


def _sortable(key: str, record: Record) -> tuple[int, float, str]:
    value = record.get(key)
    if value is None:
        return 0, 0.0, ""
    return (1, float(value), "") if isinstance(value, int | float) else (2, 0.0, str(value))
