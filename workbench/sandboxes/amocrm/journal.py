"""Events: what happened in the account, for whoever asks afterwards."""

from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import NamedTuple

from workbench.sandboxes.amocrm.account import SINGULAR, Kind
from workbench.sandboxes.amocrm.calls import Call, Refused, problem
from workbench.sandboxes.amocrm.entities import Event
from workbench.sandboxes.amocrm.filters import Test, leaves, matcher, stages, tree
from workbench.sandboxes.amocrm.services import EVENT_TYPES, EVENTS
from workbench.sandboxes.amocrm.tables import Record, Table
from workbench.sandboxes.wire import SandboxResponse

MOST_NAMES = 10
"""Users and entities that a filter of events can name."""

_OF_NOTES: Mapping[str, str] = {
    "common": "common_note_added",
    "attachment": "attachment_note_added",
    "call_in": "incoming_call",
    "call_out": "outgoing_call",
    "sms_in": "incoming_sms",
    "sms_out": "outgoing_sms",
    "geolocation": "geo_note_added",
    "site_visit": "site_visit_note_added",
}


_KINDS: Mapping[str, Kind] = {singular: kind for kind, singular in SINGULAR.items()}


class Subject(NamedTuple):
    """What an event is about; the type is named in the singular."""

    type: str
    id: int
    account_id: int


class Journal:
    """What happened; `name` says what an entity is called that events are about."""

    def __init__(self, clock: Callable[[], float], name: Callable[[Kind, int], str]) -> None:
        self._clock = clock
        self._name = name
        ids = count(1)
        listed = {"id": "id", "type": "type", "entity": "entity_type", "created_by": "created_by"}
        self.events = Table(
            EVENTS,
            lambda: f"01{next(ids):024x}",
            show=self._entity,
            testers={
                **{name: _listed(field) for name, field in listed.items()},
                "entity_id": _listed("entity_id"),
                "created_at": _created,
                "value_after": _values("value_after"),
                "value_before": _values("value_before"),
            },
        )
        self._types = Table(EVENT_TYPES, lambda: f"{next(ids)}")

    def answer(self, call: Call, path: Sequence[str]) -> SandboxResponse:
        """`api/v4/events…`. Refused: a filter that names too many, or entities without one type."""
        if path[:1] == ["types"]:
            return self._types.answer(call, path[1:])
        wanted = tree(call.query.get("filter"))
        if max(len(_names(wanted.get(name))) for name in ("created_by", "entity_id")) > MOST_NAMES:
            raise Refused(problem(400, f"A filter can name {MOST_NAMES} of them"))
        if "entity_id" in wanted and len(_names(wanted.get("entity"))) != 1:
            raise Refused(problem(400, "A filter by entity_id needs one entity"))
        return self.events.answer(call, path)

    def tell(self, events: Sequence[Event]) -> None:
        """Write down what happened to entities; mere updates are not told."""
        for event in events:
            kind, was, entity = SINGULAR[event.entity.kind], event.was, event.entity
            about = Subject(kind, entity.id, entity["account_id"])
            match event.action:
                case "add" | "delete" | "restore":
                    self.write(f"{kind}_{event.action.rstrip('e')}ed", about, event.by)
                case "status":
                    before = {"id": was["old_status_id"], "pipeline_id": was["old_pipeline_id"]}
                    after = {"id": entity["status_id"], "pipeline_id": entity["pipeline_id"]}
                    self.write(
                        f"{kind}_status_changed", about, event.by, {"lead_status": after}, {"lead_status": before}
                    )
                case "note" if event.note:
                    told = _OF_NOTES.get(event.note["note_type"], "service_note_added")
                    self.write(told, about, event.by, {"note": {"id": event.note["id"]}})
            responsible = was.get("old_responsible_user_id", entity["responsible_user_id"])
            if event.action in {"update", "responsible"} and responsible != entity["responsible_user_id"]:
                changed = {"responsible_user": {"id": entity["responsible_user_id"]}}
                self.write(
                    "entity_responsible_changed", about, event.by, changed, {"responsible_user": {"id": responsible}}
                )

    def write(
        self,
        what: str,
        about: Subject,
        by: int,
        after: Mapping[str, object] | None = None,
        before: Mapping[str, object] | None = None,
    ) -> None:
        """Write one event down, with the values that it left and found."""
        self.events.put(
            {
                "type": what,
                "entity_id": about.id,
                "entity_type": about.type,
                "created_by": by,
                "created_at": int(self._clock()),
                "value_after": [after] if after else [],
                "value_before": [before] if before else [],
                "account_id": about.account_id,
            }
        )

    def _entity(self, call: Call, event: Record) -> Mapping[str, object]:
        id_, kind = event["entity_id"], _KINDS.get(event["entity_type"])
        about = {"id": id_, "_links": {"self": call.href(f"{kind or 'tasks'}/{id_}")}}
        if kind and f"{event['entity_type']}_name" in call.with_:
            about["name"] = self._name(kind, id_)
        return {"_embedded": {"entity": about}}


def _names(value: object) -> list[str]:
    return [name for leaf in leaves(value) for name in leaf.split(",")]


def _listed(field: str) -> Callable[[object], Test[Record]]:
    def tester(wanted: object) -> Test[Record]:
        names = frozenset(_names(wanted))
        return lambda event: str(event[field]) in names

    return tester


def _created(wanted: object) -> Test[Record]:
    fits = matcher(wanted) if tree(wanted) else matcher(_names(wanted))
    return lambda event: fits(event["created_at"])


def _values(field: str) -> Callable[[object], Test[Record]]:
    def tester(wanted: object) -> Test[Record]:
        moved = stages(tree(wanted).get("leads_statuses"))
        others = frozenset(
            leaf for name, value in tree(wanted).items() if name != "leads_statuses" for leaf in _names(value)
        )

        def fits(event: Record) -> bool:
            for value in event[field]:
                ((name, inner),) = value.items()
                if name == "lead_status" and (str(inner["pipeline_id"]), str(inner["id"])) in moved:
                    return True
                if name != "lead_status" and not others.isdisjoint(map(str, inner.values())):
                    return True
            return False

        return fits

    return tester
