"""Incoming leads, which people accept, decline or link before they are leads."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from workbench.sandboxes.amocrm.account import AmoCrmAccount, Kind
from workbench.sandboxes.amocrm.bodies import CompanyBody, ContactBody, EntityBody, Id, LeadBody, Time
from workbench.sandboxes.amocrm.calls import (
    NOT_ALLOWED,
    NOT_FOUND,
    Body,
    Call,
    Item,
    Mistake,
    Refused,
    hal,
    not_supported,
    problem,
    refuse,
)
from workbench.sandboxes.amocrm.drafts import Draft, Entity
from workbench.sandboxes.amocrm.entities import Entities
from workbench.sandboxes.amocrm.filters import find
from workbench.sandboxes.amocrm.services import UNSORTED
from workbench.sandboxes.amocrm.tables import Record, Table
from workbench.sandboxes.wire import SandboxResponse

type Category = Literal["sip", "forms", "mail", "chats"]

CATEGORIES: tuple[Category, ...] = ("sip", "mail", "forms", "chats")
_NEEDS: Mapping[str, Sequence[str]] = {
    "sip": ("from", "phone", "called_at", "duration", "link", "service_code"),
    "forms": ("form_id", "form_name", "form_page", "form_sent_at"),
}
_CAN_BE_LINKED = frozenset({"mail", "chats"})
_PARTS: tuple[Kind, ...] = ("leads", "contacts", "companies")


class _EmbeddedBody(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    leads: list[LeadBody] = Field(default=[], max_length=1)
    contacts: list[ContactBody] = []
    companies: list[CompanyBody] = []


class UnsortedBody(Body):
    """An incoming lead with what it brings."""

    source_name: str
    source_uid: str
    pipeline_id: Id | None = None
    created_at: Time | None = None
    metadata: dict[str, Any]
    embedded: _EmbeddedBody = Field(default_factory=_EmbeddedBody, alias="_embedded")


class _DecisionBody(Body):
    user_id: Id | None = None
    status_id: Id | None = None


class _TargetBody(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    entity_type: Literal["leads"]
    entity_id: Id
    metadata: dict[str, Any] | None = None


class _LinkBody(Body):
    link: _TargetBody
    user_id: Id | None = None


class Unsorted:
    """The incoming leads that wait, and what became of the others."""

    def __init__(self, entities: Entities, hex_id: Callable[[], str]) -> None:
        self.waiting = Table(UNSORTED, hex_id)
        self._entities = entities
        self._all: list[Record] = []

    def answer(self, call: Call, path: Sequence[str]) -> SandboxResponse:
        """`api/v4/leads/unsorted…`."""
        match call.request.method, path:
            case "POST", ["sip" | "forms" as category]:
                return self._add(call, category)
            case "GET", ["summary"]:
                return self._summary(call)
            case "POST", [uid, "accept"]:
                return self._accept(call, self._found(uid))
            case "DELETE", [uid, "decline"]:
                return self._decline(call, self._found(uid))
            case "POST", [uid, "link"]:
                return self._link(call, self._found(uid))
            case _, [_, "accept" | "decline" | "link"]:
                return NOT_ALLOWED
            case _:
                return self.waiting.answer(call, path)

    def receive(self, account: AmoCrmAccount, category: Category, body: UnsortedBody, by: int, now: int) -> Record:
        """Somebody writes, calls or fills in a form. Invalid if what comes with it is."""
        parts: list[Entity] = []
        embedded = body.embedded
        leads: Sequence[LeadBody] = embedded.leads or [LeadBody()]
        brought: Mapping[Kind, Sequence[EntityBody]] = {
            "leads": leads,
            "contacts": embedded.contacts,
            "companies": embedded.companies,
        }
        for kind, bodies in brought.items():
            for each in bodies:
                ((_, entity),) = self._entities.make(account, kind, [Item("0", each)], by, now)
                self._entities.hide(entity)
                parts.append(entity)
        pipeline_id = body.pipeline_id or account.pipelines[0].id
        for lead in (part for part in parts if part.kind == "leads"):
            for other in (part for part in parts if part.kind != "leads"):
                self._entities.link(lead, other, is_main=True)
        record = self.waiting.put(
            {
                "source_uid": body.source_uid,
                "source_name": body.source_name,
                "category": category,
                "pipeline_id": pipeline_id,
                "created_at": body.created_at or now,
                "metadata": body.metadata,
                "account_id": account.id,
                "_embedded": {kind: [{"id": entity.id} for entity in parts if entity.kind == kind] for kind in _PARTS},
                "_parts": parts,
                "_sorted_at": None,
                "_outcome": None,
            }
        )
        self._all.append(record)
        return record

    def _add(self, call: Call, category: Literal["sip", "forms"]) -> SandboxResponse:
        items = call.items(UnsortedBody)
        refuse({item.request_id: item.mistakes or self._wrong(call.account, category, item.body) for item in items})
        added = [
            {
                **self.waiting.view(call, self.receive(call.account, category, item.body, call.by, call.now)),
                "request_id": item.request_id,
            }
            for item in items
        ]
        at = f"leads/unsorted/{category}"
        embedded = {"_embedded": {"unsorted": added}}
        return hal({"_total_items": len(added), "_links": {"self": call.href(at)}, **embedded})

    def _wrong(self, account: AmoCrmAccount, category: str, body: UnsortedBody) -> Sequence[Mistake]:
        mistakes = [
            Mistake("FieldMissing", f"metadata.{name}", "This field is missing.")
            for name in _NEEDS[category]
            if body.metadata.get(name) is None
        ]
        if body.pipeline_id and body.pipeline_id not in {pipeline.id for pipeline in account.pipelines}:
            mistakes.append(not_supported("pipeline_id"))
        brought: Mapping[Kind, Sequence[EntityBody]] = {
            "leads": body.embedded.leads,
            "contacts": body.embedded.contacts,
            "companies": body.embedded.companies,
        }
        for kind, bodies in brought.items():
            for place, each in enumerate(bodies):
                found = self._entities.mistakes(account, kind, each)
                mistakes += [mistake._replace(path=f"_embedded.{kind}.{place}.{mistake.path}") for mistake in found]
        return mistakes

    def _found(self, uid: str) -> Record:
        record = self.waiting.records.get(uid)
        if record is None:
            raise Refused(NOT_FOUND)
        return record

    def _accept(self, call: Call, record: Record) -> SandboxResponse:
        decision = _decision(call)
        parts: list[Entity] = record["_parts"]
        for lead in (part for part in parts if part.kind == "leads"):
            wanted = LeadBody(
                pipeline_id=None if decision.status_id else record["pipeline_id"],
                status_id=decision.status_id,
                responsible_user_id=decision.user_id or lead["responsible_user_id"],
            )
            draft = Draft("leads", wanted, lead)
            draft.check(call.account)
            refuse({"0": draft.mistakes})
            lead.fields |= draft.fields
        self._entities.reveal(call.account, parts)
        return self._done(call, record, "accepted")

    def _decline(self, call: Call, record: Record) -> SandboxResponse:
        _decision(call)
        return self._done(call, record, "declined")

    def _link(self, call: Call, record: Record) -> SandboxResponse:
        item = call.item(_LinkBody)
        lead = self._entities.find("leads", item.body.link.entity_id)
        if record["category"] not in _CAN_BE_LINKED:
            raise Refused(problem(400, "Only mails and chats can be linked"))
        if lead is None:
            refuse({item.request_id: [Mistake("NotFound", "link.entity_id", "Entity not found")]})
            return NOT_FOUND
        others = [part for part in record["_parts"] if part.kind != "leads"]
        self._entities.reveal(call.account, others)
        for other in others:
            self._entities.link(lead, other, is_main=False)
        record["_embedded"]["leads"] = [{"id": lead.id}]
        return self._done(call, record, "accepted")

    def _done(self, call: Call, record: Record, outcome: str) -> SandboxResponse:
        record |= {"_outcome": outcome, "_sorted_at": call.now}
        del self.waiting.records[record["uid"]]
        names = ("uid", "category", "pipeline_id", "created_at", "_embedded")
        return hal({name: record[name] for name in names})

    def _summary(self, call: Call) -> SandboxResponse:
        wanted = find(call, dict(enumerate(self._all)), {"created_at", "pipeline_id"}, orders=())
        took = [record["_sorted_at"] - record["created_at"] for record in wanted if record["_outcome"]]
        outcomes = [record["_outcome"] for record in wanted]
        categories = [record["category"] for record in wanted]
        return hal(
            {
                "total": len(wanted),
                "accepted": outcomes.count("accepted"),
                "declined": outcomes.count("declined"),
                "average_sort_time": sum(took) // len(took) if took else 0,
                "categories": {category: {"total": categories.count(category)} for category in CATEGORIES},
                "_links": {"self": call.href("leads/unsorted/summary")},
            }
        )


def _decision(call: Call) -> _DecisionBody:
    body = call.item(_DecisionBody).body if call.request.body else _DecisionBody()
    if body.user_id and body.user_id not in {user.id for user in call.account.users}:
        refuse({"0": [not_supported("user_id")]})
    return body
