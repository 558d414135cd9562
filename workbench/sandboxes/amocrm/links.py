"""Links between entities, and from entities to elements of catalogs."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from workbench.sandboxes.amocrm.account import KINDS, Kind
from workbench.sandboxes.amocrm.bodies import Id
from workbench.sandboxes.amocrm.calls import (
    NO_CONTENT,
    NOT_ALLOWED,
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
from workbench.sandboxes.amocrm.drafts import Entity
from workbench.sandboxes.amocrm.entities import Entities
from workbench.sandboxes.amocrm.filters import find, leaves, tree
from workbench.sandboxes.amocrm.tables import Record, Table
from workbench.sandboxes.wire import SandboxResponse

type Link = dict[str, Any]

ELEMENTS = "catalog_elements"
_CAN_LINK: Mapping[str, frozenset[str]] = {
    "leads": frozenset({"contacts", "companies", ELEMENTS}),
    "contacts": frozenset({"leads", "customers", "companies", ELEMENTS}),
    "companies": frozenset({"contacts", "leads", "customers", ELEMENTS}),
    "customers": frozenset({"contacts", "companies", ELEMENTS}),
    ELEMENTS: frozenset({"leads", "customers"}),
}
_FILTERED_BY = frozenset({"entity_id", "to_entity_id", "to_entity_type"})


class LinkBody(Body):
    """A link to make or to undo; whose it is, is said where the path does not."""

    entity_id: Id | None = None
    entity_type: str | None = None
    to_entity_id: Id
    to_entity_type: str
    metadata: dict[str, Any] | None = None


class Links:
    """The links of all entities, of which each side knows."""

    def __init__(self, entities: Entities, elements: Table) -> None:
        self._entities = entities
        self._elements = elements

    def of_kind(self, call: Call, kind: Kind, what: str) -> SandboxResponse:
        """`api/v4/{kind}/links`, which wants a filter by entity_id, `…/link` and `…/unlink`."""
        match call.request.method, what:
            case "GET", "links":
                owners = leaves(tree(call.query.get("filter")).get("entity_id"))
                if not owners:
                    raise Refused(problem(400, "A filter by entity_id is needed"))
                found = [entity for id_ in owners if (entity := self._entities.find(kind, id_))]
                return self._shown(call, kind, [link for entity in found for link in self._of(entity)])
            case "POST", "link" | "unlink":
                return self._write(call, kind, None, what)
            case _:
                return NOT_ALLOWED

    def of_one(self, call: Call, entity: Entity, what: str) -> SandboxResponse:
        """`api/v4/{kind}/{id}/links`, `…/link` and `…/unlink`."""
        match call.request.method, what:
            case "GET", "links":
                return self._shown(call, f"{entity.kind}/{entity.id}", list(self._of(entity)))
            case "POST", "link" | "unlink":
                return self._write(call, entity.kind, entity, what)
            case _:
                return NOT_ALLOWED

    def of_element(self, call: Call, element: Record, what: str) -> SandboxResponse:
        """`…/elements/{id}/links`, `…/link` and `…/unlink`."""
        match call.request.method, what:
            case "GET", "links":
                return self._shown(
                    call, f"catalogs/{element['catalog_id']}/elements/{element['id']}", self._to(element)
                )
            case "POST", "link" | "unlink":
                items = self._items(call)
                ends = [(item, self._end(item.body)) for item in items]
                refuse({item.request_id: _wrong(ELEMENTS, item, end) for item, end in ends})
                for item, entity in ends:
                    if isinstance(entity, Entity):
                        _hang(entity, element, item.body, what)
                return self._written(call, items, what, ELEMENTS, element["id"])
            case _:
                return NOT_ALLOWED

    def _write(self, call: Call, kind: Kind, entity: Entity | None, what: str) -> SandboxResponse:
        items = self._items(call)
        ends = [
            (item, entity or self._entities.find(kind, item.body.entity_id), self._end(item.body)) for item in items
        ]
        refuse(
            {
                item.request_id: _wrong(kind, item, end) if owner else [Mistake("NotFound", "entity_id", "Not found")]
                for item, owner, end in ends
            }
        )
        for item, owner, end in ends:
            assert owner
            if not isinstance(end, Entity):
                _hang(owner, end or {}, item.body, what)
            elif what == "link":
                self._entities.link(owner, end, is_main=bool((item.body.metadata or {}).get("is_main")))
            else:
                self._entities.unlink(owner, end)
        return self._written(call, items, what, kind, entity.id if entity else None)

    def _items(self, call: Call) -> list[Item[LinkBody]]:
        items = call.items(LinkBody)
        refuse({item.request_id: item.mistakes for item in items})
        return items

    def _end(self, body: LinkBody) -> Entity | Record | None:
        if body.to_entity_type in KINDS:
            return self._entities.find(body.to_entity_type, body.to_entity_id)
        return self._elements.records.get(body.to_entity_id) if body.to_entity_type == ELEMENTS else None

    def _written(
        self, call: Call, items: Sequence[Item[LinkBody]], what: str, owner_type: str, owner_id: int | None
    ) -> SandboxResponse:
        if what == "unlink":
            return NO_CONTENT
        made = [
            {
                "entity_id": owner_id or item.body.entity_id,
                "entity_type": owner_type,
                "to_entity_id": item.body.to_entity_id,
                "to_entity_type": item.body.to_entity_type,
                "metadata": item.body.metadata,
            }
            for item in items
        ]
        return _embedded(call, owner_type, made)

    def _shown(self, call: Call, at: str, links: Sequence[Link]) -> SandboxResponse:
        catalogs = leaves(tree(call.query.get("filter")).get("to_catalog_id"))
        if catalogs:
            links = [link for link in links if str((link["metadata"] or {}).get("catalog_id")) in catalogs]
        found = find(call, dict(enumerate(links)), _FILTERED_BY, orders=())
        return _embedded(call, f"{at}/links", found)

    def _of(self, entity: Entity) -> Iterable[Link]:
        owner = {"entity_id": entity.id, "entity_type": entity.kind}
        for kind, linked in entity.links.items():
            for id_, is_main in linked.items():
                metadata = {"is_main": is_main} if kind == "contacts" else None
                yield {**owner, "to_entity_id": id_, "to_entity_type": kind, "metadata": metadata}
        for id_, metadata in entity.elements.items():
            yield {**owner, "to_entity_id": id_, "to_entity_type": ELEMENTS, "metadata": metadata}

    def _to(self, element: Record) -> list[Link]:
        owner = {"entity_id": element["id"], "entity_type": ELEMENTS}
        return [
            {
                **owner,
                "to_entity_id": entity.id,
                "to_entity_type": entity.kind,
                "metadata": entity.elements[element["id"]],
            }
            for kind in KINDS
            for entity in self._entities.present[kind].values()
            if element["id"] in entity.elements
        ]


def _hang(entity: Entity, element: Record, body: LinkBody, what: str) -> None:
    if what == "unlink":
        entity.elements.pop(element["id"], None)
        return
    told = body.metadata or {}
    entity.elements[element["id"]] = {
        "catalog_id": element["catalog_id"],
        "quantity": told.get("quantity", 1),
        "price_id": told.get("price_id"),
    }


def _wrong(kind: str, item: Item[LinkBody], end: object) -> Sequence[Mistake]:
    if item.body.to_entity_type not in _CAN_LINK[kind]:
        return [not_supported("to_entity_type")]
    return [] if end else [Mistake("NotFound", "to_entity_id", "Entity not found")]


def _embedded(call: Call, at: str, links: Sequence[Link]) -> SandboxResponse:
    if not links:
        return NO_CONTENT
    return hal({"_total_items": len(links), "_links": {"self": call.href(at)}, "_embedded": {"links": links}})
