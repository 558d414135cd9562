"""Deals a second at Bitrix24's limit: as the worker carries them, fifty a request, and with a request for each step.

One process of the worker carries deals between two sandboxes that take their time for every answer and refuse what is
over the limit, as Bitrix24 does. Waits are skipped and counted: the seconds are those that it would have taken.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import msgspec

from bitrix_robot.mapping import marker
from bitrix_robot.order import Order
from crm_relay.bitrix24 import items, products, reports
from crm_relay.bitrix24.items import DEAL
from crm_relay.delivery.memory import MemoryBus, MemoryQueue, MemoryStore
from crm_relay.delivery.ports import Ports
from crm_relay.http_client import HttpClient
from crm_relay.settings import (
    Bitrix24Portal,
    Bitrix24Products,
    Bitrix24Route,
    Bitrix24Secrets,
    Bitrix24Settings,
    Secrets,
    load_settings,
)
from workbench.bench.here import FunctionHere, Instead
from workbench.bench.rates import Rates, Way
from workbench.sandboxes import MemoryTransport
from workbench.sandboxes.bitrix24 import (
    HUB,
    HUB_SCOPES,
    PARTNER,
    READY,
    SOURCE_SCOPES,
    Bitrix24OAuth,
    Bitrix24Sandbox,
    IncomingWebhook,
)
from workbench.stack.blueprint import Blueprint, FunctionPlan

LATENCY = 0.2
"""Seconds that Bitrix24 takes for an answer. Assumed."""
GOAL = 10.0
"""Deals a second."""

_HANDLER = "bitrix_robot.transfer.handler"
_SLOWER = 20
"""So many times fewer deals are carried with a request for each step."""
_VISIBILITY = 1_801
_SECRET = "benchmark"  # noqa: S105 (it protects nothing)
_ROWS: tuple[Mapping[str, Any], ...] = (
    {"productId": 101, "price": 14_500.5, "quantity": 4, "taxRate": 20},
    {"productId": 102, "price": 1_200, "quantity": 4},
    {"productName": "Выезд за город", "price": 3_000, "quantity": 1},
)


def measure(blueprint: Blueprint, deals: int, tick: Callable[[], None]) -> Rates:
    """Carry so many deals with the template's worker, and fewer step by step; `tick` is called after each way."""
    [plan] = [plan for plan in blueprint.functions.values() if plan.handler == _HANDLER]
    [source] = [source for source in blueprint.queue_sources if source.function == plan.name]
    return rates(plan, source.batch_size, deals, tick)


def rates(plan: FunctionPlan, batch: int, deals: int, tick: Callable[[], None]) -> Rates:
    """Do as `measure`, with this function and `batch` messages an invocation."""
    ways = []
    for name, number, contacts, carry in (
        ("fifty a request, three rows each", deals, False, partial(_together, plan=plan, batch=batch)),
        ("and a new contact each", deals, True, partial(_together, plan=plan, batch=batch)),
        ("a request for each step, no contacts", max(1, deals // _SLOWER), False, _one_by_one),
    ):
        requests, seconds = _carried(plan, number, carry, contacts=contacts)
        ways.append(Way(name, number, requests, seconds))
        tick()
    return Rates("Deals to Bitrix24's hub", PARTNER.requests_per_second, LATENCY, GOAL, ways)


class _Clock:
    """Time that passes by itself, and at once where somebody sleeps."""

    def __init__(self) -> None:
        self._slept = 0.0

    def time(self) -> float:
        return time.time() + self._slept

    def sleep(self, seconds: float, /) -> None:
        self._slept += max(0.0, seconds)


@dataclass(frozen=True, slots=True)
class _World:
    """Both portals, and the relay between them."""

    clock: _Clock
    partner: Bitrix24Sandbox
    hub: Bitrix24Sandbox
    queue: MemoryQueue
    instead: Instead


def _carried(
    plan: FunctionPlan, number: int, carry: Callable[[_World, list[int]], None], *, contacts: bool
) -> tuple[int, float]:
    """Carry so many deals, and return the requests and the seconds that it took."""
    world = _world(Path(plan.environment["RELAY_CONFIG"]))
    deals = [add_deal(world.partner, place, contacts=contacts) for place in range(number)]
    both = {PARTNER.domain: world.partner, HUB.domain: world.hub}
    client = HttpClient(MemoryTransport(both, world.clock.sleep), monotonic=world.clock.time)
    begun = world.clock.time()
    with mock.patch("bitrix_robot.portal.http_client", return_value=client):
        carry(world, deals)
    if [len(deal.rows) for deal in world.hub.deals.values()] != [len(_ROWS)] * number:
        raise RuntimeError("not every deal is in the hub, once and with its rows")
    requests = [received.at for sandbox in both.values() for received in sandbox.received]
    return len(requests), max(requests) + LATENCY - begun


def _world(relay_toml: Path) -> _World:
    clock = _Clock()
    partner, hub = portals(clock.time)
    partner.switches.latency = hub.switches.latency = LATENCY
    queue = MemoryQueue(clock)
    ports = Ports(
        store=MemoryStore(clock),
        queue=queue,
        dead_letters=MemoryQueue(clock),
        bus=MemoryBus(),
        clock=clock,
        random=Random(1).random,
        queue_at=lambda _: queue,
    )
    settings = msgspec.structs.replace(load_settings(relay_toml), bitrix24=bitrix24_settings())
    secrets = Secrets(bitrix24=bitrix24_secrets())
    return _World(clock, partner, hub, queue, (ports, settings, lambda: secrets))


def portals(clock: Callable[[], float], **terms: Any) -> tuple[Bitrix24Sandbox, Bitrix24Sandbox]:
    """Return the partner's portal and the hub, which let the relay in; `terms` are other limits of both."""
    oauth = Bitrix24OAuth(clock=clock, random=Random(1))
    partner, hub = (
        Bitrix24Sandbox(
            replace(portal, incoming=(IncomingWebhook(1, _SECRET, scopes),), **terms),
            oauth,
            clock=clock,
            random=Random(1),
        )
        for portal, scopes in ((PARTNER, SOURCE_SCOPES), (HUB, HUB_SCOPES))
    )
    return partner, hub


def bitrix24_secrets(**keys: str) -> dict[str, Bitrix24Secrets]:
    """Return the ways into both portals; `keys` are what the partner's calls prove themselves with."""
    partner, hub = (f"https://{portal.domain}/rest/1/{_SECRET}/" for portal in (PARTNER, HUB))
    return {"partner": Bitrix24Secrets(webhook_url=partner, **keys), "hub": Bitrix24Secrets(webhook_url=hub)}


def bitrix24_settings(**terms: Any) -> Bitrix24Settings:
    """Return the sandbox's portals of Bitrix24, whose other settings `terms` are, and a route between them."""
    route = Bitrix24Route(
        source="partner",
        hub="hub",
        stages={READY: "C5:NEW"},
        fields={"UF_CRM_1747309879": "UF_CRM_CONTRACT", "COMMENTS": "COMMENTS"},
        products=Bitrix24Products(match="xml_id", source_catalogs=(15,), hub_catalogs=(25,)),
    )
    partner = Bitrix24Portal("source", PARTNER.member_id, PARTNER.domain, **terms)
    hub = Bitrix24Portal("hub", HUB.member_id, HUB.domain, **terms)
    return Bitrix24Settings({"partner": partner, "hub": hub}, {"main": route})


def add_deal(partner: Bitrix24Sandbox, place: int, *, contacts: bool) -> int:
    """Have a deal with three product rows in the stage of the route, with a contact of its own if wanted."""
    fields: dict[str, Any] = {"title": f"Сделка {place}", "categoryId": 3, "stageId": READY, "assignedById": 7}
    if contacts:
        phone = {"typeId": "PHONE", "valueType": "WORK", "value": f"+38050{place:07}"}
        email = {"typeId": "EMAIL", "valueType": "WORK", "value": f"client-{place}@example.com"}
        fields["contactIds"] = [partner.add_contact(name=f"Клиент {place}", fm=[phone, email]).id]
    return partner.add_deal(rows=_ROWS, comments="Позвонить", UF_CRM_1747309879=f"Д-{place}", **fields).id


def _together(world: _World, deals: list[int], *, plan: FunctionPlan, batch: int) -> None:
    function = FunctionHere(plan, {}, world.instead)
    for deal in deals:
        order = Order("partner", deal, "main", expected=True)
        world.queue.send(order.envelope(call="benchmark", now=world.clock.time()).encode())
    while messages := world.queue.receive(limit=batch, visibility=_VISIBILITY):
        answer = function.invoke({"Records": [message.record() for message in messages]}).answer
        if answer["batchItemFailures"]:
            raise RuntimeError("a deal was not carried at the first try")
        for message in messages:
            world.queue.delete(message.id)


def _one_by_one(world: _World, deals: list[int]) -> None:
    """Read the deal and its rows, create, set rows, comment, notify: six requests a deal, within the same limit."""
    from bitrix_robot.portal import Portal  # noqa: PLC0415 (with it comes Powertools, see FunctionHere)
    from crm_relay.delivery.runtime import Runtime  # noqa: PLC0415

    source, hub = (Portal(Runtime(*world.instead), name) for name in ("partner", "hub"))
    for deal_id in deals:
        deal = source.do(items.get(DEAL, deal_id))
        rows = source.do(products.deal_rows(deal_id))
        fields = {"title": deal["title"], "stageId": "C5:NEW", "categoryId": 5}
        made = hub.do(items.add(DEAL, fields | marker(PARTNER.member_id, "deal", deal_id, "main")))
        new = [{name: row[name] for name in ("productName", "price", "quantity")} for row in rows]
        hub.do(products.set_deal_rows(made["id"], new))
        text = f"Сделка #{deal_id} передана, №{made['id']}"
        source.do(reports.add_comment(deal_id, text))
        source.do(reports.notify(deal["assignedById"], text, tag=str(deal_id)))
