"""What a note says: which entity, when, and which of its fields changed to what. Pure; texts come from relay.toml."""

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

from crm_relay.amocrm.resources import Card
from crm_relay.settings import AmoCrmTexts

LONGEST_VALUE = 200
"""Characters of a value that a note shows and a snapshot keeps: an item of the table must stay small."""
MOST_CHANGES = 30
"""Changed fields that a note names."""

_NOTHING = "—"
_ENTITY: Mapping[Card, str] = {"leads": "lead", "contacts": "contact", "companies": "company"}
_PLAIN_FIELDS = ("responsible_user_id", "pipeline_id", "status_id")
# Control characters, those without width, and those that turn the direction of what follows: a value must not look
# like another line, nor like another value. Joiners stay: emoji and some scripts are made with them.
_INVISIBLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]")


@dataclass(frozen=True, slots=True)
class Names:
    """What ids mean in one account: users, pipelines, stages (by (pipeline, stage)), and the account's time zone."""

    users: Mapping[int, str]
    pipelines: Mapping[int, str]
    stages: Mapping[tuple[int, int], str]
    time_zone: ZoneInfo

    def moment(self, timestamp: int) -> str:
        """Return a unix time as the account's people write it."""
        return self._written(timestamp, "%d.%m.%Y %H:%M:%S")

    def day(self, timestamp: int) -> str:
        """Return the day of a unix time."""
        return self._written(timestamp, "%d.%m.%Y")

    def _written(self, timestamp: int, pattern: str) -> str:
        try:
            return datetime.fromtimestamp(timestamp, UTC).astimezone(self.time_zone).strftime(pattern)
        except (ValueError, OverflowError, OSError):  # no calendar reaches there
            return str(timestamp)


def snapshot(entity: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is compared of an entity: name, price, responsible, pipeline, stage, tags and custom fields.

    It is plain data for the table, so the price is a text and ids of fields are keys: {"name", "type", "text"}.
    Of a text that was cut there is a digest of the whole, too: "digest" of a field, "name_digest", "tags_digest".
    """
    kept: dict[str, Any] = {key: entity[key] for key in _PLAIN_FIELDS if entity.get(key) is not None}
    kept["price"] = _price(entity)
    tags = (entity.get("_embedded") or {}).get("tags") or ()
    texts = {"name": _line(entity.get("name")), "tags": ", ".join(sorted(_line(tag.get("name")) for tag in tags))}
    for key, text in texts.items():
        kept[key] = _cut(text)
        if len(text) > LONGEST_VALUE:
            kept[f"{key}_digest"] = _digest(text)
    kept["fields"] = {
        str(field["field_id"]): _field(field)
        for field in entity.get("custom_fields_values") or ()
        if field.get("values")
    }
    return kept


def note_text(
    card: Card,
    entity: Mapping[str, Any],
    before: Mapping[str, Any] | None,
    *,
    added: bool,
    texts: AmoCrmTexts,
    names: Names,
) -> str:
    """Return the note's text: plain, one line about the entity and one for each changed field.

    Args:
        card: the kind of entity.
        entity: as the API gives it now.
        before: the last snapshot; None at first sight, which names no differences.
        added: whether the entity is new. A hook of something else may have come before the one that says so.
        texts: the templates.
        names: what the ids mean.
    """
    template: str = getattr(texts, f"{_ENTITY[card]}_{'added' if added else 'changed'}")
    line = template.format(
        id=str(entity["id"]),
        name=_cut(_line(entity.get("name"))) or f"#{entity['id']}",
        responsible=_user(entity.get("responsible_user_id"), names),
        created_at=names.moment(entity.get("created_at") or 0),
        updated_at=names.moment(entity.get("updated_at") or 0),
    )
    changes = [] if before is None else differences(before, snapshot(entity), texts=texts, names=names)
    return "\n".join([line, *changes])


def differences(before: Mapping[str, Any], after: Mapping[str, Any], *, texts: AmoCrmTexts, names: Names) -> list[str]:
    """Return one line for each field that differs between two snapshots; the last may count those left out."""
    lines = [
        texts.changed_field.format(field=title, before=old or _NOTHING, after=new or _NOTHING)
        for title, old, new in _changed(before, after, texts, names)
    ]
    left_out = len(lines) - MOST_CHANGES
    return lines if left_out <= 0 else [*lines[:MOST_CHANGES], f"… (+{left_out})"]


type _Change = tuple[str, str, str]


def _changed(
    before: Mapping[str, Any], after: Mapping[str, Any], texts: AmoCrmTexts, names: Names
) -> Iterator[_Change]:
    def differs(*keys: str) -> bool:
        return any(before.get(key) != after.get(key) for key in keys)

    if differs("name", "name_digest"):
        yield texts.name, before.get("name", ""), after.get("name", "")
    if differs("price"):
        yield texts.price, _money(before.get("price", "")), _money(after.get("price", ""))
    if differs("responsible_user_id"):
        user = "responsible_user_id"
        yield texts.responsible, _user(before.get(user), names), _user(after.get(user), names)
    if differs("pipeline_id"):
        yield texts.pipeline, _pipeline(before, names), _pipeline(after, names)
    if differs("pipeline_id", "status_id"):
        yield texts.stage, _stage(before, names), _stage(after, names)
    if differs("tags", "tags_digest"):
        yield texts.tags, before.get("tags", ""), after.get("tags", "")
    old_fields, new_fields = before.get("fields", {}), after.get("fields", {})
    for field_id in {**old_fields, **new_fields}:
        old, new = old_fields.get(field_id, {}), new_fields.get(field_id, {})
        if (old.get("text", ""), old.get("digest")) != (new.get("text", ""), new.get("digest")):
            yield (new or old)["name"], _shown(old, texts, names), _shown(new, texts, names)


# Ids and amounts as people read them


def _user(user_id: int | None, names: Names) -> str:
    return "" if user_id is None else _line(names.users.get(user_id)) or str(user_id)


def _pipeline(values: Mapping[str, Any], names: Names) -> str:
    pipeline_id = values.get("pipeline_id")
    return "" if pipeline_id is None else _line(names.pipelines.get(pipeline_id)) or str(pipeline_id)


def _stage(values: Mapping[str, Any], names: Names) -> str:
    pipeline_id, status_id = values.get("pipeline_id"), values.get("status_id")
    if status_id is None:
        return ""
    return _line(names.stages.get((pipeline_id or 0, status_id))) or str(status_id)


def _price(entity: Mapping[str, Any]) -> str:
    # The price in minor units wins: `price` has none (amoCRM reference, 1.5).
    price = entity.get("price_with_minor_units")
    if price is None:
        price = entity.get("price")
    if price is None:
        return ""
    return str(price) if isinstance(price, int) else f"{price:.2f}".removesuffix(".00")


def _money(text: str) -> str:
    whole, _, fraction = text.partition(".")
    sign, digits = ("-", whole[1:]) if whole.startswith("-") else ("", whole)
    if not (digits.isascii() and digits.isdigit()):
        return text
    grouped = f"{int(digits):,}".replace(",", " ")
    return f"{sign}{grouped},{fraction}" if fraction else f"{sign}{grouped}"


# Custom fields


def _field(field: Mapping[str, Any]) -> dict[str, str]:
    text = ", ".join(filter(None, map(_value, field["values"])))
    kept = {
        "name": _cut(_line(field.get("field_name"))) or f"#{field['field_id']}",
        "type": str(field.get("field_type") or ""),
        "text": _cut(text),
    }
    if len(text) > LONGEST_VALUE:
        kept["digest"] = _digest(text)
    return kept


def _value(item: Mapping[str, Any]) -> str:
    match item:
        case {"value": bool() as flag}:
            return "true" if flag else "false"
        case {"value": {"file_name": str(name)}}:
            return _line(name)
        case {"value": dict(parts)}:  # a legal entity, a payer
            return ", ".join(line for part in parts.values() if isinstance(part, str) and (line := _line(part)))
        case {"value": str() | int() | float() as value}:
            return _line(str(value))
        case {"catalog_element_id": element_id}:
            return f"#{element_id}"
        case _:
            return ""


def _shown(field: Mapping[str, str], texts: AmoCrmTexts, names: Names) -> str:
    text = field.get("text", "")
    match field.get("type"), text:
        case "checkbox", "true":
            return texts.yes
        case "checkbox", "false":
            return texts.no
        case "date" | "birthday", _ if _is_whole(text):
            return names.day(int(text))
        case "date_time", _ if _is_whole(text):
            return names.moment(int(text))
        case "monetary" | "price", _:
            return _money(text)
        case _:
            return text


def _is_whole(text: str) -> bool:
    digits = text.removeprefix("-")
    return digits.isascii() and digits.isdigit()


def _line(text: object) -> str:
    """Return a text as one line; nothing in it is a formula, a tag or a template to anybody who shows it as text."""
    return " ".join(_INVISIBLE.sub(" ", str(text)).split()) if text else ""


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 1] + "…"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
