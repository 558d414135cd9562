"""Leads, contacts, companies and customers: read, written and listed."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any, Literal

from workbench.sandboxes.amocrm.account import KINDS, LOST, WON, AmoCrmAccount, Kind
from workbench.sandboxes.amocrm.bodies import (
    BODIES,
    CustomerBody,
    EntityBody,
    LeadBody,
    LeadEmbeddedBody,
    LinkBody,
    TagBody,
)
from workbench.sandboxes.amocrm.calls import (
    NO_CONTENT,
    NOT_ALLOWED,
    NOT_FOUND,
    Call,
    Item,
    Mistake,
    hal,
    not_supported,
    page,
    refuse,
    whole,
)
from workbench.sandboxes.amocrm.drafts import Draft, Entity, blank
from workbench.sandboxes.amocrm.filters import Test, find, leaves, matcher, tree
from workbench.sandboxes.amocrm.tables import Record, Table
from workbench.sandboxes.wire import SandboxResponse

type Action = Literal["add", "update", "status", "responsible", "delete", "restore", "note"]

_FIRST_IDS: Mapping[Kind, int] = {
    "leads": 32966269,
    "contacts": 37054081,
    "companies": 37060001,
    "customers": 1299001,
}
_FILTERED_BY = frozenset({"id", "name", "responsible_user_id", "created_by", "updated_by"}) | {
    *("created_at", "updated_at", "closest_task_at")
}
_ALSO_FILTERED_BY: Mapping[Kind, frozenset[str]] = {
    "leads": frozenset({"price", "pipeline_id", "statuses", "closed_at"}),
    "customers": frozenset({"status_id", "next_date", "next_price"}),
}
_ONLY_WITH = frozenset({"source_id", "is_price_modified_by_robot"})
"""Fields that are shown when asked for."""
_EMBEDDED: Mapping[Kind, tuple[frozenset[Kind], frozenset[Kind]]] = {
    "leads": (frozenset({"companies"}), frozenset({"companies", "contacts"})),
    "contacts": (frozenset({"companies"}), frozenset({"companies", "leads", "customers"})),
    "companies": (frozenset(), frozenset({"contacts", "leads", "customers"})),
    "customers": (frozenset(), frozenset({"contacts", "companies"})),
}
"""What is embedded always, and at most, when asked for by `with`."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something happened to an entity, caused by the user `by`; `was` has fields as hooks name their old values."""

    action: Action
    entity: Entity
    by: int
    was: Mapping[str, object] = field(default_factory=dict)
    note: Mapping[str, Any] | None = None


class Entities:
    """All leads, contacts, companies and customers of an account.

    `tell` hears of what happens to them, `tags` are all there are, `embed` says what else is embedded in one,
    `source_id` which source is meant where a lead is made.
    """

    def __init__(
        self,
        tell: Callable[[AmoCrmAccount, Sequence[Event]], None],
        tags: Table,
        embed: Callable[[Call, Entity], Mapping[str, object]],
        source_id: Callable[[Mapping[str, Any]], int | None],
    ) -> None:
        self.present: Mapping[Kind, dict[int, Entity]] = {kind: {} for kind in KINDS}
        self.deleted: Mapping[Kind, dict[int, Entity]] = {kind: {} for kind in KINDS}
        self._ids = {kind: count(first) for kind, first in _FIRST_IDS.items()}
        self._tags = tags
        self._embed = embed
        self._source_id = source_id
        self._tell = tell

    # As the API sees them

    def answer(self, call: Call, kind: Kind, path: Sequence[str]) -> SandboxResponse:
        """`api/v4/{kind}` and `api/v4/{kind}/{id}`."""
        match call.request.method, path:
            case "GET", []:
                things = self.deleted if "only_deleted" in call.with_ else self.present
                return page(call, _found(call, kind, things[kind]), kind, partial(self.view, call))
            case "POST", []:
                added = self.add(call.account, kind, call.items(BODIES[kind]), call.by, call.now)
                return _written(call, kind, added, "id")
            case "PATCH", []:
                items = [(item, item.body.id) for item in call.items(BODIES[kind])]
                changed = self.change(call.account, kind, items, call.by, call.now)
                return _written(call, kind, changed, "id", "updated_at")
            case "GET", [id_]:
                entity = self.find(kind, id_)
                return hal(self.view(call, entity)) if entity else NO_CONTENT
            case "PATCH", [id_] if entity := self.find(kind, id_):
                self.change(call.account, kind, [(call.item(BODIES[kind]), entity.id)], call.by, call.now)
                return hal(self.view(call, entity))
            case "PATCH", [_]:
                return NOT_FOUND
            case _, [] | [_]:
                return NOT_ALLOWED
            case _:
                return NOT_FOUND

    def find(self, kind: Kind, id_: str | int | None) -> Entity | None:
        """The entity that is there under an id, however that is written."""
        return self.present[kind].get(whole(str(id_)) or 0)

    # What happens to them, whoever does it

    def add(
        self, account: AmoCrmAccount, kind: Kind, items: Sequence[Item[EntityBody]], by: int, now: int
    ) -> list[tuple[str, Entity]]:
        """Make entities and tell of them; all or, if one is Invalid, none. Returns them with their request_ids."""
        added = self.make(account, kind, items, by, now)
        self._tell(account, [Event("add", entity, entity["created_by"]) for _, entity in added])
        return added

    def make(
        self, account: AmoCrmAccount, kind: Kind, items: Sequence[Item[EntityBody]], by: int, now: int
    ) -> list[tuple[str, Entity]]:
        """As `add`, without telling."""
        drafts = self._checked(account, [(item, Draft(kind, item.body, None)) for item in items])
        added = []
        for item, draft in drafts:
            draft.entity = entity = Entity(kind, blank(account, kind, next(self._ids[kind]), by, now))
            self.present[kind][entity.id] = entity
            self._write(draft)
            added.append((item.request_id, entity))
        return added

    def hide(self, entity: Entity) -> None:
        """Put away an entity that waits for people to look at it."""
        self.present[entity.kind].pop(entity.id)

    def reveal(self, account: AmoCrmAccount, entities: Iterable[Entity]) -> None:
        """Bring out entities that were put away, and tell of them as new."""
        events = []
        for entity in entities:
            self.present[entity.kind][entity.id] = entity
            events.append(Event("add", entity, entity["created_by"]))
        self._tell(account, events)

    def change(
        self,
        account: AmoCrmAccount,
        kind: Kind,
        items: Sequence[tuple[Item[EntityBody], int | None]],
        by: int,
        now: int,
    ) -> list[tuple[str, Entity]]:
        """Change the entities with these ids; all or, if one is Invalid, none."""
        drafts = [(item, Draft(kind, item.body, self.find(kind, id_))) for item, id_ in items]
        for _, draft in drafts:
            if draft.entity is None:
                draft.mistakes.append(Mistake("NotFound", "id", "Entity not found"))
        changed = []
        events: list[Event] = []
        for item, draft in self._checked(account, drafts):
            assert draft.entity
            before = dict(draft.entity.fields)
            draft.entity.fields |= {"updated_at": now, "updated_by": by}
            self._write(draft)
            events += _differences(draft.entity, before)
            changed.append((item.request_id, draft.entity))
        self._tell(account, events)
        return changed

    def touch(self, entity: Entity, by: int, now: int) -> Event:
        """Something near the entity changed, and that counts as its own change."""
        entity.fields |= {"updated_at": now, "updated_by": by}
        return Event("update", entity, by)

    def delete(self, account: AmoCrmAccount, kind: Kind, ids: Iterable[int], by: int, now: int) -> None:
        """Put entities into the bin. KeyError if one is not there."""
        self._move(account, "delete", [self.present[kind][id_] for id_ in ids], by, now)

    def restore(self, account: AmoCrmAccount, kind: Kind, ids: Iterable[int], by: int, now: int) -> None:
        """Take entities out of the bin. KeyError if one is not in it."""
        self._move(account, "restore", [self.deleted[kind][id_] for id_ in ids], by, now)

    def _move(
        self,
        account: AmoCrmAccount,
        action: Literal["delete", "restore"],
        entities: Sequence[Entity],
        by: int,
        now: int,
    ) -> None:
        source, target = (self.present, self.deleted) if action == "delete" else (self.deleted, self.present)
        for entity in entities:
            target[entity.kind][entity.id] = source[entity.kind].pop(entity.id)
            entity.fields |= {"is_deleted": action == "delete", "updated_at": now, "updated_by": by}
        self._tell(account, [Event(action, entity, by) for entity in entities])

    def mistakes(self, account: AmoCrmAccount, kind: Kind, body: EntityBody) -> Sequence[Mistake]:
        """What would be wrong with a new entity."""
        draft = Draft(kind, body, None)
        self._check(account, draft)
        return draft.mistakes

    def _check(self, account: AmoCrmAccount, draft: Draft) -> None:
        draft.check(account)
        self._check_tags(draft)
        if isinstance(draft.body, LeadBody):
            self._check_links(draft, draft.body.embedded)

    def _checked(
        self, account: AmoCrmAccount, drafts: Sequence[tuple[Item[EntityBody], Draft]]
    ) -> Sequence[tuple[Item[EntityBody], Draft]]:
        for _, draft in drafts:
            self._check(account, draft)
        refuse({item.request_id: item.mistakes or draft.mistakes for item, draft in drafts})
        return drafts

    def _check_tags(self, draft: Draft) -> None:
        for tag in (*(draft.body.embedded.tags or ()), *draft.body.tags_to_add, *draft.body.tags_to_delete):
            if tag.name is None and self._tag_of(draft.kind, "id", tag.id) is None:
                draft.mistakes.append(not_supported("tags"))

    def _check_links(self, draft: Draft, embedded: LeadEmbeddedBody) -> None:
        if draft.entity and (embedded.contacts or embedded.companies):
            draft.mistakes.append(Mistake("NotExpected", "_embedded", "Links are taken when a lead is made"))
        both: Mapping[Kind, Sequence[LinkBody]] = {"contacts": embedded.contacts, "companies": embedded.companies}
        for kind, links in both.items():
            for place, link in enumerate(links):
                if not self.find(kind, link.id):
                    draft.mistakes.append(not_supported(f"_embedded.{kind}.{place}.id"))

    def _write(self, draft: Draft) -> None:
        entity = draft.entity
        assert entity
        entity.fields |= {name: value for name, value in draft.fields.items() if value is not None}
        for id_, filled in draft.custom_fields.items():
            if filled:
                entity.custom_fields[id_] = filled
            else:
                entity.custom_fields.pop(id_, None)
        self._tag(entity, draft.body)
        if isinstance(draft.body, CustomerBody) and "segments" in draft.body.embedded.model_fields_set:
            entity.segments = [segment.id for segment in draft.body.embedded.segments or ()]
        if isinstance(draft.body, LeadBody):
            for contact in draft.body.embedded.contacts:
                self.link(entity, self.present["contacts"][contact.id], is_main=contact.is_main)
            for company in draft.body.embedded.companies:
                self.link(entity, self.present["companies"][company.id], is_main=True)
            if draft.body.embedded.source:
                entity.fields["source_id"] = self._source_id(draft.body.embedded.source)
            if "status_id" in draft.fields:
                closed = entity["status_id"] in {WON, LOST}
                entity.fields["closed_at"] = (entity["closed_at"] or entity["updated_at"]) if closed else None

    def _tag(self, entity: Entity, body: EntityBody) -> None:
        if "tags" in body.embedded.model_fields_set:
            entity.tags = dict(self._named(entity.kind, tag) for tag in body.embedded.tags or ())
        for tag in body.tags_to_add:
            entity.tags |= [self._named(entity.kind, tag)]
        for tag in body.tags_to_delete:
            entity.tags.pop(self._named(entity.kind, tag)[0], None)

    def _tag_of(self, kind: Kind, name: str, value: object) -> Record | None:
        known = self._tags.records.values()
        return next((tag for tag in known if tag[name] == value and tag["_of"] == kind), None)

    def _named(self, kind: Kind, tag: TagBody) -> tuple[int, Record]:
        found = self._tag_of(kind, "name", tag.name) if tag.name else self._tag_of(kind, "id", tag.id)
        found = found or self._tags.put({"name": tag.name, "_of": kind})
        return found["id"], found

    def link(self, one: Entity, other: Entity, *, is_main: bool) -> None:
        """Hang two entities on one another."""
        one.links[other.kind][other.id] = is_main or not one.links[other.kind]
        other.links[one.kind][one.id] = is_main

    def unlink(self, one: Entity, other: Entity) -> None:
        """Take two entities apart."""
        one.links[other.kind].pop(other.id, None)
        other.links[one.kind].pop(one.id, None)

    def view(self, call: Call, entity: Entity) -> dict[str, object]:
        """An entity as the API shows it."""
        always, at_most = _EMBEDDED[entity.kind]
        embedded: dict[str, object] = {
            "tags": [{name: tag[name] for name in ("id", "name", "color")} for tag in entity.tags.values()]
        }
        for kind in KINDS:
            if kind in always or kind in at_most & call.with_:
                embedded[kind] = [
                    {
                        "id": id_,
                        **({"is_main": is_main} if kind == "contacts" else {}),
                        "_links": {"self": call.href(f"{kind}/{id_}")},
                    }
                    for id_, is_main in entity.links[kind].items()
                ]
        hidden = _ONLY_WITH - call.with_
        return {
            **{name: value for name, value in entity.fields.items() if name not in hidden},
            "custom_fields_values": [filled.view() for filled in entity.custom_fields.values()] or None,
            "_links": _links(call, entity),
            "_embedded": {**embedded, **self._embed(call, entity)},
        }


def _found(call: Call, kind: Kind, entities: Mapping[int, Entity]) -> list[Entity]:
    by = _FILTERED_BY | _ALSO_FILTERED_BY.get(kind, frozenset())
    testers = {"custom_fields_values": _of_custom_fields, "segments": _of_segments}
    return find(call, entities, by, testers=testers, text=_text)


def _of_custom_fields(wanted: object) -> Test[Entity]:
    tests = [(whole(field_id) or 0, matcher(value)) for field_id, value in tree(wanted).items()]

    def fits(entity: Entity) -> bool:
        for field_id, test in tests:
            filled = entity.custom_fields.get(field_id)
            if not any(test(value.get(name)) for value in (filled.values if filled else ()) for name in _READ_AS):
                return False
        return True

    return fits


_READ_AS = ("value", "enum_id")


def _of_segments(wanted: object) -> Test[Entity]:
    ids = frozenset(leaves(wanted))
    return lambda entity: not ids.isdisjoint(map(str, entity.segments))


def _text(entity: Entity) -> str:
    values = (value.get("value") for filled in entity.custom_fields.values() for value in filled.values)
    return " ".join(map(str, (entity.id, entity["name"], *values)))


def _differences(entity: Entity, before: Mapping[str, Any]) -> list[Event]:
    """What hooks tell of a change: of contacts and companies, a new responsible user is an update like any other."""
    by = entity["updated_by"]
    old_responsible = {"old_responsible_user_id": before["responsible_user_id"]}
    if entity.kind != "leads":
        return [Event("update", entity, by, old_responsible)]
    events = [Event("update", entity, by)]
    stage = {"old_status_id": before["status_id"], "old_pipeline_id": before["pipeline_id"]}
    if (entity["status_id"], entity["pipeline_id"]) != tuple(stage.values()):
        events.append(Event("status", entity, by, stage))
    if entity["responsible_user_id"] != before["responsible_user_id"]:
        events.append(Event("responsible", entity, by, old_responsible))
    return events


def _written(call: Call, kind: Kind, entities: Sequence[tuple[str, Entity]], *names: str) -> SandboxResponse:
    shown = [
        {**{name: entity[name] for name in names}, "request_id": request_id, "_links": _links(call, entity)}
        for request_id, entity in entities
    ]
    return hal({"_links": {"self": call.href(kind)}, "_embedded": {kind: shown}})


def _links(call: Call, entity: Entity) -> dict[str, object]:
    return {"self": call.href(f"{entity.kind}/{entity.id}")}
