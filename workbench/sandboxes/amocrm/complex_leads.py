"""`leads/complex`: leads with their contact and company in one go, with control of duplicates."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field

from workbench.sandboxes.amocrm.account import Kind
from workbench.sandboxes.amocrm.bodies import CompanyBody, ContactBody, EmbeddedBody, EntityBody, LeadBody
from workbench.sandboxes.amocrm.calls import (
    Call,
    Item,
    Mistake,
    Refused,
    bare,
    not_supported,
    problem,
    read_items,
    refuse,
)
from workbench.sandboxes.amocrm.drafts import Entity
from workbench.sandboxes.amocrm.entities import Entities
from workbench.sandboxes.wire import SandboxResponse

MOST_LEADS = 50
MOST_VALUES = 40
"""Custom fields of one entity."""

_CODES_OF_TWINS = frozenset({"PHONE", "EMAIL"})


class _ContactBody(ContactBody):
    is_main: bool = False


class _EmbeddedBody(EmbeddedBody):
    contacts: list[_ContactBody] = Field(default=[], max_length=1)
    companies: list[CompanyBody] = Field(default=[], max_length=1)
    metadata: dict[str, Any] | None = None
    source: dict[str, Any] | None = None


class _ComplexBody(LeadBody):
    embedded: _EmbeddedBody = Field(default_factory=_EmbeddedBody, alias="_embedded")  # type: ignore[assignment]


def add_complex(call: Call, entities: Entities, *, control_duplicates: bool) -> SandboxResponse:
    """Add leads, each with the contact and the company that it names or describes; all or, if one is Invalid, none.

    With `control_duplicates` a lead whose contact has a phone or a mail that is known becomes one with that contact's
    newest lead. The answer is a bare list.
    """
    items = call.items(_ComplexBody)
    if len(items) > MOST_LEADS:
        raise Refused(problem(400, f"A list of 1 to {MOST_LEADS} entities is expected"))
    bodies = [_taken_apart(item.body) for item in items]
    mistakes: dict[str, Sequence[Mistake]] = {}
    for item, parts in zip(items, bodies, strict=True):
        mistakes[item.request_id] = item.mistakes or [
            mistake for kind, body in parts.items() for mistake in _wrong(call, entities, kind, body)
        ]
    refuse(mistakes)
    return bare(
        [_added(call, entities, item, parts, control_duplicates) for item, parts in zip(items, bodies, strict=True)]
    )


def _taken_apart(body: _ComplexBody) -> dict[Kind, EntityBody]:
    parts: dict[Kind, EntityBody] = {}
    if body.embedded.contacts:
        parts["contacts"] = body.embedded.contacts[0]
    if body.embedded.companies:
        parts["companies"] = body.embedded.companies[0]
    plain = body.model_dump(exclude_unset=True, by_alias=True, exclude={"embedded", "request_id", "id"})
    told = body.embedded.model_dump(exclude_unset=True, include={"tags", "source"})
    ((_, lead, wrong),) = read_items(LeadBody, [plain | ({"_embedded": told} if told else {})])
    assert not wrong
    return {"leads": lead, **parts}


def _wrong(call: Call, entities: Entities, kind: Kind, body: EntityBody) -> Sequence[Mistake]:
    at = "" if kind == "leads" else f"_embedded.{kind}.0."
    if body.id is not None:
        return [] if entities.find(kind, body.id) else [not_supported(f"{at}id")]
    found = list(entities.mistakes(call.account, kind, body))
    if len(body.custom_fields_values or ()) > MOST_VALUES:
        found.append(Mistake("TooMany", "custom_fields_values", f"At most {MOST_VALUES} custom fields"))
    return [mistake._replace(path=f"{at}{mistake.path}") for mistake in found]


def _added(
    call: Call, entities: Entities, item: Item[_ComplexBody], parts: Mapping[Kind, EntityBody], control_duplicates: bool
) -> dict[str, object]:
    twin = _twin(entities, parts.get("contacts")) if control_duplicates else None
    lead = _newest_lead(entities, twin)
    merged = lead is not None
    ids = {kind: _made(call, entities, kind, body, twin) for kind, body in parts.items() if kind != "leads"}
    if lead is None:
        lead = _add(call, entities, "leads", parts["leads"])
    for kind, other in ids.items():
        entities.link(lead, entities.present[kind][other], is_main=True)
    if "contacts" in ids and "companies" in ids:
        contact, company = (
            entities.present["contacts"][ids["contacts"]],
            entities.present["companies"][ids["companies"]],
        )
        entities.link(contact, company, is_main=True)
    return {
        "id": lead.id,
        "contact_id": ids.get("contacts"),
        "company_id": ids.get("companies"),
        "request_id": [item.request_id],
        "merged": merged,
    }


def _made(call: Call, entities: Entities, kind: Kind, body: EntityBody, twin: Entity | None) -> int:
    if body.id is not None:
        return body.id
    return twin.id if twin and kind == "contacts" else _add(call, entities, kind, body).id


def _add(call: Call, entities: Entities, kind: Kind, body: EntityBody) -> Entity:
    ((_, entity),) = entities.add(call.account, kind, [Item("0", body)], call.by, call.now)
    return entity


def _twin(entities: Entities, contact: EntityBody | None) -> Entity | None:
    if contact is None or contact.id is not None:
        return None
    fields = [field for field in contact.custom_fields_values or () if field.field_code in _CODES_OF_TWINS]
    sought = {value.get("value") for field in fields for value in field.values or ()}
    for known in entities.present["contacts"].values():
        for filled in known.custom_fields.values():
            if filled.definition.code in _CODES_OF_TWINS and sought & {value["value"] for value in filled.values}:
                return known
    return None


def _newest_lead(entities: Entities, contact: Entity | None) -> Entity | None:
    leads = [entities.present["leads"][id_] for id_ in contact.links["leads"]] if contact else []
    return max((lead for lead in leads if lead["closed_at"] is None), key=lambda lead: lead.id, default=None)
