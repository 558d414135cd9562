"""Deals of Bitrix24 that meet what is no fault of theirs: missing rights, twins, links that lead away."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from bitrix_robot.portal import Portal
from crm_relay.bitrix24.items import CONTACT, list_after
from crm_relay.outcomes import Unreachable
from tests.relay import HUB_SECRET, Relay
from workbench.sandboxes.bitrix24 import HUB_SCOPES, READY, IncomingWebhook, add_whole_deal
from workbench.sandboxes.bitrix24.calls import Answer, Call, Method, Refused, html_page
from workbench.sandboxes.faults import Redirect
from workbench.sandboxes.wire import RESET, SandboxRequest, SandboxResponse


def test_deals_wait_for_rights_that_were_taken_away(relay: Relay) -> None:
    """It is nothing about the deal: an operator is told, nobody else, and all arrive when it is mended."""
    deals = [add_whole_deal(relay.partner) for _ in range(2)]
    relay.hub.portal = replace(relay.hub.portal, incoming=(IncomingWebhook(1, HUB_SECRET, frozenset({"user"})),))
    for deal in deals:
        relay.partner.move(deal.id, READY)
    relay.run(60)
    assert (len(relay.hub.deals), relay.partner.comments) == (0, [])
    assert relay.metrics["AttentionNeeded"] > 0
    relay.hub.portal = replace(relay.hub.portal, incoming=(IncomingWebhook(1, HUB_SECRET, HUB_SCOPES),))
    relay.run(3600)
    assert len(relay.hub.deals) == len(relay.partner.comments) == 2


def test_new_contacts_with_one_phone_become_one_in_the_hub(relay: Relay) -> None:
    """The first is made, the others find it."""
    phone = [{"typeId": "PHONE", "valueType": "WORK", "value": "+380501234567"}]
    for name in ("Мария", "Маша", "Марія"):
        contact = relay.partner.add_contact(name=name, fm=phone)
        deal = relay.partner.add_deal(title=name, contactIds=[contact.id], categoryId=3, stageId="C3:NEW")
        relay.partner.move(deal.id, READY)
    relay.run(600)
    assert len(relay.hub.deals) == 3
    assert len(relay.hub.contacts) == 1


def ready(relay: Relay, fm: list[dict[str, str]], **fields: Any) -> int:
    """A deal with a contact of its own comes to where it is carried."""
    contact = relay.partner.add_contact(name="Мария", fm=fm)
    deal = relay.partner.add_deal(contactIds=[contact.id], categoryId=3, stageId="C3:NEW", **fields)
    relay.partner.move(deal.id, READY)
    return contact.id


PHONE = [{"typeId": "PHONE", "valueType": "WORK", "value": "+380501234567"}]
PHONE_AND_EMAIL = [
    {"typeId": "PHONE", "valueType": "WORK", "value": "+38 (050) 123-45-67"},
    {"typeId": "EMAIL", "valueType": "WORK", "value": "maria@example.com"},
]


def test_new_contacts_with_one_phone_in_two_workers_become_one_in_the_hub() -> None:
    """Another process carries the second deal at any moment of the first one's transfer, both with a new contact."""

    def tell(place: int) -> int:
        with Relay() as relay:
            calls = 0

            def beside(_: str) -> None:
                nonlocal calls
                calls += 1
                if calls == place:
                    first = relay._runtimes
                    relay.restart()
                    ready(relay, PHONE_AND_EMAIL)
                    relay._call_back()
                    relay.work("deals")
                    relay._runtimes = first

            ready(relay, PHONE)
            relay._call_back()
            relay.before_call = beside
            relay.work("deals")
            relay.before_call = lambda _: None
            made = calls
            relay.run(3600)
            assert len(relay.hub.deals) == (2 if place else 1)
            assert len(relay.hub.contacts) == 1, f"at call {place} of {made}"
            return made

    for place in range(1, tell(0) + 1):
        tell(place)


def test_a_twin_waits_while_nobody_knows_whether_the_first_was_made(relay: Relay) -> None:
    """The request for it has left, and may still arrive: forty seconds later it does."""
    late: list[Callable[[], object]] = []
    handle = relay.hub.handle

    def slow(request: SandboxRequest) -> SandboxResponse:
        if b"crm.item.add" in request.body and not late:
            late.append(lambda: relay.hub.answer(request))
            return RESET
        return handle(request)

    relay.hub.handle = slow  # type: ignore[method-assign]
    ready(relay, PHONE)
    relay.run(1)
    ready(relay, PHONE)
    relay.run(40)
    late[0]()
    relay.run(3600)
    assert len(relay.hub.deals) == 2
    assert len(relay.hub.contacts) == 1


@pytest.mark.parametrize("merged", [False, True], ids=["deleted", "merged"])
def test_a_contact_that_is_not_in_the_hub_any_more_is_found_or_made_again(relay: Relay, merged: bool) -> None:
    """Deals of that contact go on, with whom it was merged into, or with one who is made again."""
    contact = ready(relay, PHONE)
    relay.run(600)
    if merged:
        relay.hub.add_contact(name="Мария К.", fm=PHONE)
    relay.hub.items.delete(relay.hub.contacts[1], 1)
    for _ in range(2):
        deal = relay.partner.add_deal(contactIds=[contact], categoryId=3, stageId="C3:NEW")
        relay.partner.move(deal.id, READY)
        relay.run(600)
    assert [deal["contactIds"] for deal in relay.hub.deals.values()][1:] == [[2], [2]]
    assert list(relay.hub.contacts) == [2]


def test_whether_a_contact_is_still_there_costs_no_request(relay: Relay) -> None:
    """It is asked for beside the deal's marker."""
    contact = ready(relay, PHONE)
    relay.run(60)
    for contacts in ([], [contact]):
        before = len(relay.hub.received), len(relay.partner.received)
        deal = relay.partner.add_deal(title="Окна", contactIds=contacts, categoryId=3, stageId="C3:NEW")
        relay.partner.move(deal.id, READY)
        relay.run(60)
        assert len(relay.hub.received) - before[0] == 2  # the look-up and the creation
        assert len(relay.partner.received) - before[1] == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("contactIds", ["x"]),
        ("contactIds", [-5]),
        ("contactIds", {"a": {"b": "c"}}),
        ("contactId", "1,5"),
        ("companyId", [True]),
        ("productId", "12,5"),
        ("productId", {"id": "x"}),
        ("discountTypeId", "two"),
    ],
    ids=repr,
)
def test_a_deal_that_nobody_can_read_is_refused_alone(relay: Relay, name: str, value: object) -> None:
    """Its people are told; the others of its batch arrive."""
    oddly(relay, name, value)
    for number in range(3):
        deal = relay.partner.add_deal(title=str(number), rows=[{"productName": "А"}], categoryId=3, stageId="C3:NEW")
        relay.partner.move(deal.id, READY)
    relay.run(60)
    assert [deal["title"] for deal in relay.hub.deals.values()] == ["0", "2"]
    [refused] = [comment.text for comment in relay.partner.comments if comment.entity_id == 2]
    assert refused == "❌ Сделка #2 не передана в ЕСБ: в сделке есть то, чего мы не понимаем"
    assert relay.metrics["UnhandledError"] == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("contactIds", {"1": "1", "3": 2}),
        ("contactIds", None),
        ("contactIds", False),
        ("contactId", "0"),
        ("companyId", []),
        ("assignedById", ["x"]),
        ("stageId", [READY]),
        ("productId", None),
    ],
    ids=repr,
)
def test_a_deal_is_read_whatever_php_makes_of_it(relay: Relay, name: str, value: object) -> None:
    """Lists with gaps, and what it has for nothing."""
    for _ in range(2):
        relay.partner.add_contact(name="Мария")
    oddly(relay, name, value)
    for _ in range(2):
        deal = relay.partner.add_deal(title="Окна", rows=[{"productName": "А"}], categoryId=3, stageId="C3:NEW")
        relay.partner.move(deal.id, READY)
    relay.run(60)
    assert len(relay.hub.deals) == 2
    assert len(relay.hub.contacts) == (2 if isinstance(value, dict) else 0)


@pytest.mark.parametrize("fm", [{"1": PHONE[0]}, [PHONE[0], "x", None], "x", None], ids=repr)
def test_a_contact_is_read_whatever_php_makes_of_it(relay: Relay, fm: object) -> None:
    """Phones and addresses that are none do not count."""
    run = relay.partner._run

    def odd(call: Call) -> Any:
        answer, time = run(call)
        if call.method == "crm.item.get" and str(call.params["entityTypeId"]) == str(CONTACT):
            answer = replace(answer, result={"item": answer.result["item"] | {"fm": fm}})  # type: ignore[index]
        return answer, time

    relay.partner._run = odd  # type: ignore[method-assign]
    ready(relay, [])
    relay.run(60)
    assert len(relay.hub.contacts) == 1


def oddly(relay: Relay, name: str, value: object) -> None:
    """Have the partner's portal tell one field of deal 2, or of its rows, in its own way."""
    run = relay.partner._run

    def odd(call: Call) -> Any:
        answer, time = run(call)
        result: Any = answer.result
        if call.method == "crm.item.get" and (call.params["entityTypeId"], call.params["id"]) == ("2", "2"):
            if name in result["item"]:
                answer = replace(answer, result={"item": result["item"] | {name: value}})
        elif call.method == "crm.item.productrow.list" and call.params["filter"]["=ownerId"] == "2":
            rows = [row | {name: value} if name in row else row for row in result["productRows"]]
            answer = replace(answer, result={"productRows": rows})
        return answer, time

    relay.partner._run = odd  # type: ignore[method-assign]


def test_rows_that_begin_anew_are_not_read_for_ever(relay: Relay) -> None:
    """A portal that overlooks where a page is to start answers the same one again."""
    run = relay.partner._run

    def first_page(call: Call) -> Any:
        if call.method == "crm.item.productrow.list":
            call = replace(call, params={**call.params, "start": "0"})
        return run(call)

    relay.partner._run = first_page  # type: ignore[method-assign]
    rows = [{"productName": f"Строка {place}", "price": place} for place in range(1, 61)]
    deal = relay.partner.add_deal(title="Окна", rows=rows, categoryId=3, stageId="C3:NEW")
    relay.partner.move(deal.id, READY)
    relay.run(1)
    assert not relay.hub.deals
    assert len(relay.queues["deals"].messages) == 1
    assert len(relay.partner.received) < 10


def test_a_file_whose_link_leads_away_costs_only_itself(relay: Relay) -> None:
    """The deal arrives without it; that is no rename of the portal."""
    deal = add_whole_deal(relay.partner)
    relay.partner.faults.add(Redirect(method="GET", times=None))
    relay.partner.move(deal.id, READY)
    relay.run(60)
    assert len(relay.hub.deals) == 1
    [comment] = relay.partner.comments
    assert "Не перенесены файлы" in comment.text
    assert relay.items("pause#") == {}


def hub_wall(relay: Relay, stops: Callable[[bytes], bool]) -> None:
    """Put a firewall before the hub that answers some bodies with a page of its own."""
    handle = relay.hub.handle

    def guarded(request: SandboxRequest) -> SandboxResponse:
        return html_page(403, "Forbidden") if stops(request.body) else handle(request)

    relay.hub.handle = guarded  # type: ignore[method-assign]


def test_a_deal_that_a_firewall_does_not_let_through_is_refused_alone(relay: Relay) -> None:
    """The page comes for a batch: it is halved until the one deal is found, and the hub goes on for all others."""
    hub_wall(relay, lambda body: b"%3Cscript%3E" in body or b"<script>" in body)
    for place in range(8):
        title = "<script>" if place == 5 else "Окна"
        deal = relay.partner.add_deal(title=title, categoryId=3, stageId="C3:NEW", assignedById=7)
        relay.partner.move(deal.id, READY)
    relay.run(60)
    assert len(relay.hub.deals) == 7
    [refused] = [comment for comment in relay.partner.comments if comment.entity_id == 6]
    assert "защитный экран портала не пропустил данные сделки" in refused.text
    assert not relay.items("pause#")
    assert not relay.queues["deals"].messages


def test_a_firewall_that_stops_an_answer_makes_no_second_deal(relay: Relay) -> None:
    """All is done when the page comes: it is looked up before anything is done again."""
    handle = relay.hub.handle

    def guarded(request: SandboxRequest) -> SandboxResponse:
        answer = handle(request)
        return html_page(403, "Forbidden") if b"<script>" in answer.body and b"item.add" in request.body else answer

    relay.hub.handle = guarded  # type: ignore[method-assign]
    for place in range(8):
        contact = relay.partner.add_contact(name="<script>" if place == 3 else "Мария")
        comments = "<script>" if place == 5 else ""
        deal = relay.partner.add_deal(
            title="Окна", comments=comments, contactIds=[contact.id], categoryId=3, stageId="C3:NEW"
        )
        relay.partner.move(deal.id, READY)
    relay.run(60)
    assert len(relay.hub.deals) == len(relay.hub.contacts) == 8
    assert all(comment.text.startswith("✅") for comment in relay.partner.comments)
    assert len(relay.partner.comments) == 8


def test_a_firewall_that_lets_nothing_through_pauses_the_hub(relay: Relay) -> None:
    """It is nothing about a deal: an operator is told, nobody else, and all arrive when it opens."""
    closed = True
    hub_wall(relay, lambda _: closed)
    for _ in range(4):
        deal = relay.partner.add_deal(title="Окна", categoryId=3, stageId="C3:NEW")
        relay.partner.move(deal.id, READY)
    relay.run(280)
    assert list(relay.items("pause#")) == ["pause#bitrix24#hub"]
    assert relay.partner.comments == []
    closed = False
    relay.run(3600)
    assert len(relay.hub.deals) == 4


def test_a_page_for_what_all_need_is_nobodys_refusal(relay: Relay) -> None:
    """The definitions of the fields are no deal's body."""
    hub_wall(relay, lambda body: b"crm.item.fields" in body)
    deal = relay.partner.add_deal(title="Окна", categoryId=3, stageId="C3:NEW")
    relay.partner.move(deal.id, READY)
    relay.run(60)
    assert relay.partner.comments == []
    assert "transfers are refused" in {line["message"] for line in relay.logs}
    assert len(relay.queues["deals"].messages) == 1


def test_a_list_that_begins_anew_is_not_read_for_ever(relay: Relay) -> None:
    """A portal that overlooks the filter answers the same page again."""
    for _ in range(60):
        relay.hub.add_contact(name="Мария")
    hub = Portal(relay._runtime("deals"), "hub")
    assert len(hub.read_all(partial(list_after, CONTACT))) == 60
    with pytest.raises(Unreachable, match="list_out_of_order"):
        hub.read_all(lambda _: list_after(CONTACT, 0))


def test_options_that_come_late_are_waited_for(relay: Relay) -> None:
    """The hub's lists are over a limit for a while: no deal goes without its choices meanwhile."""
    methods = relay.hub._methods
    read = methods["crm.status.list"]

    def limited(_: Call) -> Answer:
        raise Refused("OPERATION_TIME_LIMIT", "Method is blocked due to operation time limit.", 429)

    methods["crm.status.list"] = Method(limited, read.scopes)
    deal = add_whole_deal(relay.partner)
    relay.partner.move(deal.id, READY)
    relay.run(120)
    assert not relay.hub.deals
    methods["crm.status.list"] = read
    relay.run(1200)
    [comment] = relay.partner.comments
    assert "Не перенесены" not in comment.text
    assert len(relay.hub.deals) == 1


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        ("user.get", [{"EMAIL": "boris@example.com"}]),
        ("user.get", [{"ID": "x", "EMAIL": "boris@example.com"}]),
        ("crm.item.fields", {"fields": {"title": "string"}}),
        ("crm.item.list", {"items": [{"title": "Окна"}]}),
        ("catalog.product.list", {"products": [{"name": "Окно"}]}),
    ],
)
def test_an_answer_for_many_deals_that_nobody_can_read_costs_none(relay: Relay, method: str, answer: Any) -> None:
    """They wait until the portal has come to itself."""
    methods = relay.hub._methods
    sound = methods[method]
    methods[method] = Method(lambda _: Answer(answer), sound.scopes)
    for _ in range(3):
        relay.partner.move(add_whole_deal(relay.partner).id, READY)
    relay.run(1800)
    assert not relay.hub.deals
    assert not relay.dead_letters["deals"].messages
    methods[method] = sound
    relay.run(3600)
    assert len(relay.hub.deals) == 3
