"""The hub's deal that a transfer would make, field by field, before anything is written."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from bitrix_robot.cards import SourceCard, cards_of
from bitrix_robot.deal import Transfer
from bitrix_robot.mapping import Definition, Definitions, communications, marker
from bitrix_robot.order import Order
from bitrix_robot.portal import Portal, expect, portal
from bitrix_robot.transfer import preview
from crm_relay.bitrix24 import items
from crm_relay.bitrix24.client import Operation
from crm_relay.bitrix24.items import COMPANY, CONTACT, DEAL, MOST_VALUES, Item, item_name
from crm_relay.delivery.runtime import Runtime
from crm_relay.outcomes import Rejected
from crm_relay.settings import Bitrix24Route
from workbench.cli.console import out, say, shown, table

type Document = dict[str, Any]
"""What JSON and tables are made of: "deal", "stage", "hub_deal", "fields", "cards", "rows", "files", "left"."""

_ENTITIES: Mapping[str, tuple[int, Literal["CONTACT", "COMPANY"]]] = {
    "contact": (CONTACT, "CONTACT"),
    "company": (COMPANY, "COMPANY"),
}
_WAYS: tuple[Literal["PHONE", "EMAIL"], ...] = ("PHONE", "EMAIL")
_SAME = {"title": "TITLE", "stageId": "STAGE_ID", "opportunity": "OPPORTUNITY", "currencyId": "CURRENCY_ID"}
_SAME |= {"isManualOpportunity": "IS_MANUAL_OPPORTUNITY", "assignedById": "ASSIGNED_BY_ID"}
"""What is carried whether or not the map names it."""


def dry_run(relay: Runtime, order: Order) -> Document:
    """Read both portals and return what would be made.

    Raises:
        Outcome: the deal cannot be carried, or a portal not be read.
    """
    route = relay.settings.bitrix24.routes[order.route]
    source, hub = portal(relay, route.source), portal(relay, route.hub)
    transfer = preview(relay, order)
    assert transfer.wanted is not None
    assert transfer.hub_rows is not None
    made = items.find_by_origin(DEAL, *marker(source.settings.member_id, "deal", order.deal, order.route).values())
    found = hub.do(made)
    return {
        "deal": order.deal,
        "stage": transfer.stage,
        "hub_deal": int(found[0]["id"]) if found else None,
        "fields": list(_fields(transfer, route, source.definitions(), hub.definitions())),
        "cards": _cards(transfer.deal, source, hub) if route.contacts == "find_or_create" else [],
        "rows": [
            {name: row.get(name) for name in ("productName", "quantity", "price", "productId")}
            for row in transfer.hub_rows.rows
        ],
        "files": [
            {"from": each.source, "field": each.target, "ids": [link.id for link in each.links]}
            for each in transfer.wanted.files
        ],
        "left": {"fields": list(transfer.wanted.left), "rows": list(transfer.hub_rows.left)},
    }


def show(made: Document) -> None:
    """Print it for people."""
    if made["hub_deal"]:
        say(f"[yellow]The hub has it already, as deal {made['hub_deal']}.[/]")
    fields = table("hub", "value", "source", "its value")
    for each in made["fields"]:
        fields.add_row(*(shown(each[name]) for name in ("field", "value", "from", "source_value")))
    out.print(fields)
    if made["cards"]:
        cards = table("contact or company", "in the source", "in the hub")
        for card in made["cards"]:
            cards.add_row(shown(card["name"]), f"{card['kind']} {card['id']}", shown(_in_hub(card)))
        out.print(cards)
    if made["rows"]:
        rows = table("product row", "quantity", "price", "product of the hub")
        for row in made["rows"]:
            product = shown(row["productId"] or "free text")
            rows.add_row(shown(row["productName"]), shown(row["quantity"]), shown(row["price"]), product)
        out.print(rows)
    for file in made["files"]:
        say(f"Files: {len(file['ids'])} of {shown(file['from'])} → {shown(file['field'])}")
    for name in made["left"]["fields"]:
        say(f"[yellow]{shown(name)} has a value that finds nothing in the hub: it stays behind.[/]")
    for name in made["left"]["rows"]:
        say(f"[yellow]«{shown(name)}» is no product of the hub: it goes as free text.[/]")
    say("[dim]Nothing was written.[/]")


def _in_hub(card: Mapping[str, Any]) -> str:
    if card["gone"]:
        return "gone in the source: left out"
    return f"found: {card['hub_id']}" if card["hub_id"] else "new"


def _fields(transfer: Transfer, route: Bitrix24Route, source: Definitions, hub: Definitions) -> Iterator[Document]:
    assert transfer.wanted is not None
    origins = _SAME | {item_name(target): name for name, target in route.targets.items()}
    for name, value in sorted(transfer.wanted.fields.items()):
        origin = origins.get(name)
        before = transfer.deal.get(item_name(origin)) if origin else None
        yield {
            "field": name,
            "value": _in_words(value, hub.get(name)),
            "from": origin or "",
            "source_value": _in_words(before, source.get(item_name(origin))) if origin else "",
        }


def _in_words(value: Any, definition: Definition | None) -> Any:
    """Return a value; one that is chosen from a list with its text, such as "911 (Самовывоз)"."""
    if isinstance(value, list):
        return ", ".join(str(_in_words(each, definition)) for each in value)
    options = definition.options if definition else ()
    text = next((option.text for option in options if option.id == str(value)), None)
    return value if text is None else f"{value} ({text})"


def _cards(deal: Item, source: Portal, hub: Portal) -> list[Document]:
    cards = cards_of(deal)
    read = source.do_all({card: items.get(_ENTITIES[card.kind][0], card.id) for card in cards})
    present = {card: expect(item) for card, item in read.items() if not isinstance(item, Rejected)}
    member_id = source.settings.member_id
    lookups = {
        (card, n): each for card, item in present.items() for n, each in enumerate(_lookups(card, item, member_id))
    }
    answers = hub.do_all(lookups)
    hits: dict[SourceCard, list[int]] = {}
    for (card, _), answer in answers.items():
        hits.setdefault(card, []).extend(int(hit["id"] if isinstance(hit, dict) else hit) for hit in expect(answer))
    return [
        {
            "kind": card.kind,
            "id": card.id,
            "name": _name(present.get(card, {})),
            "gone": card not in present,
            "hub_id": next(iter(hits.get(card, [])), None),
        }
        for card in cards
    ]


def _lookups(card: SourceCard, item: Item, member_id: str) -> Iterator[Operation[Any]]:
    """Yield the searches of a card in the hub, the surest first."""
    kind, entity = _ENTITIES[card.kind]
    yield items.find_by_origin(kind, *marker(member_id, card.kind, card.id).values())
    for way in _WAYS:
        if values := communications(item, way)[:MOST_VALUES]:
            yield items.find_by_communication(way, values, entity)


def _name(item: Item) -> str:
    return str(item.get("title") or " ".join(str(item[each]) for each in ("name", "lastName") if item.get(each)))
