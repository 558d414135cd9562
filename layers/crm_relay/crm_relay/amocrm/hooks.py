"""amoCRM's hooks as typed events: account-level ones with whole entities, digital-pipeline ones with ids alone.

The format is amoCRM's old v2, form-encoded, every value a string (developers' pages "Webhooks format" and
"Digital pipeline"; amoCRM reference, section 7).
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

from crm_relay.brackets import TooComplex, Tree, decode, select

Entity = Literal[
    "lead", "contact", "company", "customer", "task", "note", "unsorted", "message", "talk", "catalog_element"
]
Action = Literal["add", "update", "delete", "restore", "status", "responsible"]


@dataclass(frozen=True, slots=True)
class CustomFieldValue:
    """One value of a custom field in a hook: a text, or an object where the field has parts.

    `enum` is the id of a chosen option.
    """

    value: Tree
    enum: str | None = None


@dataclass(frozen=True, slots=True)
class CustomField:
    """A custom field in a hook. UTM fields come without values."""

    id: str
    name: str
    code: str | None
    values: tuple[CustomFieldValue, ...]


@dataclass(frozen=True, slots=True)
class HookEvent:
    """What happened to one entity.

    `id` is a number in digits, but a uid for "unsorted" and a UUID for "message". `fields` are as amoCRM sent
    them; a digital-pipeline hook has few. `of` is the entity that a note hangs on, as (entity, id).
    """

    entity: Entity
    action: Action
    id: str
    fields: Mapping[str, Tree] = field(repr=False)
    of: tuple[Entity, str] | None = None

    @property
    def modified_by(self) -> int | None:
        """The user that caused it; 0 is a robot or the API, None that the hook does not say."""
        return self._first_number("modified_user_id", "modified_by")

    @property
    def modified_at(self) -> int | None:
        """When it was changed, in unix seconds; None that the hook does not say."""
        # A task's last_modified is no number but a date in the account's time zone.
        return self._first_number("last_modified", "updated_at", "date_modify")

    @property
    def custom_fields(self) -> tuple[CustomField, ...]:
        """The custom fields, whatever shape their values came in."""
        return tuple(
            CustomField(
                id=_text(raw.get("id")),
                name=_text(raw.get("name")),
                code=_text(raw.get("code")) or None,
                values=tuple(_values(raw.get("values"))),
            )
            for raw in _entries(self.fields.get("custom_fields"))
            if raw
        )

    def _first_number(self, *names: str) -> int | None:
        numbers = (_number(self.fields.get(name)) for name in names)
        return next((number for number in numbers if number is not None), None)


@dataclass(frozen=True, slots=True)
class Hook:
    """One hook: whose, what happened, and how many entries had no usable id."""

    account_id: int | None
    subdomain: str
    events: tuple[HookEvent, ...]
    unreadable: int


def read_hook(tree: Mapping[str, Tree]) -> Hook:
    """Read a decoded body; anything at all makes a hook, if only an empty one.

    Several entities and actions may come in one body, and the account first or last. What is no known action
    of a known entity is no event. An account that amoCRM could not have sent is None and "".
    """
    account_id, subdomain = _account(tree)
    read = list(_events(tree))
    events = tuple(event for event in read if event)
    return Hook(account_id, subdomain, events, unreadable=len(read) - len(events))


def read_account(body: bytes) -> tuple[int | None, str]:
    """Read from a hook's body the account's id and subdomain alone, so that a stranger's body costs little.

    Raises:
        TooComplex: no hook of amoCRM's has so much.
    """
    told = select(body, (b"account",))
    if len(told) > _LONGEST_ACCOUNT:
        raise TooComplex("account")
    return _account(decode(told))


_LONGEST_ACCOUNT = 16_384
"""Bytes of the fields about the account; captured hooks have less than two hundred."""
_ENTITIES: Mapping[str, Entity] = {
    "leads": "lead",
    "contacts": "contact",
    "customers": "customer",
    "task": "task",
    "unsorted": "unsorted",
    "message": "message",
    "outgoing_message": "message",
    "talk": "talk",
    "catalogs": "catalog_element",
}
_ACTIONS: Mapping[str, Action] = {action: action for action in get_args(Action)}
_ELEMENT_TYPES: Mapping[str, Entity] = {"1": "contact", "2": "lead", "3": "company", "12": "customer"}

_ID = re.compile(r"[1-9][0-9]{0,17}")
_TEXT_ID = re.compile(r"[0-9A-Za-z_-]{1,100}")
_SUBDOMAIN = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_KEY_OF_ID: Mapping[Entity, tuple[str, re.Pattern[str]]] = {
    "unsorted": ("uid", _TEXT_ID),
    "message": ("id", _TEXT_ID),
    "talk": ("talk_id", _ID),
}


def _account(tree: Mapping[str, Tree]) -> tuple[int | None, str]:
    account = _mapping(tree.get("account"))
    subdomain = _text(account.get("subdomain"))
    return _number(account.get("id")), subdomain if _SUBDOMAIN.fullmatch(subdomain) else ""


def _events(tree: Mapping[str, Tree]) -> Iterator[HookEvent | None]:
    for name, entity in _ENTITIES.items():
        for action, entries in _mapping(tree.get(name)).items():
            for fields in _entries(entries):
                if action == "note":
                    yield _note(entity, fields)
                elif action in _ACTIONS:
                    yield _event(entity, _ACTIONS[action], fields)
    # Messages were seen without the name around them, too.
    for fields in _entries(tree.get("add")):
        yield _event("message", "add", fields)


def _event(entity: Entity, action: Action, fields: Mapping[str, Tree]) -> HookEvent | None:
    if entity == "contact" and fields.get("type") == "company":
        entity = "company"
    key, pattern = _KEY_OF_ID.get(entity, ("id", _ID))
    entity_id = _text(fields.get(key))
    return HookEvent(entity, action, entity_id, fields) if pattern.fullmatch(entity_id) else None


def _note(parent: Entity, entry: Mapping[str, Tree]) -> HookEvent | None:
    fields = _mapping(entry.get("note")) or entry
    note_id, parent_id = _text(fields.get("id")), _text(fields.get("element_id"))
    if not (_ID.fullmatch(note_id) and _ID.fullmatch(parent_id)):
        return None
    if entry.get("type") == "company":
        parent = "company"
    parent = _ELEMENT_TYPES.get(_text(fields.get("element_type")), parent)
    return HookEvent("note", "add", note_id, fields, of=(parent, parent_id))


def _entries(value: Tree | None) -> Iterator[Mapping[str, Tree]]:
    """Yield the entries under `[0]`, `[1]` …; {} for one that has no fields.

    The indices may be sparse, and may be nested once more, as in a sample of amoCRM's.
    """
    match value:
        case list():
            children = value
        case dict():
            children = [child for name, child in value.items() if _is_index(name)]
        case _:
            return
    for child in children:
        if isinstance(child, list) or (isinstance(child, dict) and all(map(_is_index, child))):
            yield from _entries(child)
        else:
            yield _mapping(child)


def _values(values: Tree | None) -> Iterator[CustomFieldValue]:
    match values:
        case None:
            several: list[Tree] = []
        case list():
            several = values
        case dict() if all(map(_is_index, values)):
            several = list(values.values())
        case _:  # a radio button: one object, no list
            several = [values]
    for value in several:
        match value:
            case str():  # a date: a bare number
                yield CustomFieldValue(value)
            case {"value": content, **rest}:
                yield CustomFieldValue(content, _text(rest.get("enum")) or None)
            case _:
                pass


def _is_index(name: str) -> bool:
    return name.isascii() and name.isdigit()


def _mapping(value: Tree | None) -> Mapping[str, Tree]:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _number(value: Tree | None) -> int | None:
    text = _text(value)
    return int(text) if _is_index(text) and len(text) <= 18 else None
