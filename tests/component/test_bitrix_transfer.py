"""A partner's deal gets to the hub: once, whole, and told of, whatever happens on the way. Rows D24 to D27.

The real handlers run against the sandboxes of both portals; an effect is what is in the hub, or in the partner's deal.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from random import Random
from typing import Any

import msgspec
import pytest

from bitrix_robot.carrier import Carrier, GaveUp
from bitrix_robot.deal import Transfer
from bitrix_robot.order import Order
from bitrix_robot.portal import Portal
from bitrix_robot.transfer import preview
from crm_relay.bitrix24 import items
from crm_relay.bitrix24.items import DEAL
from crm_relay.delivery.ports import StorageError
from crm_relay.outcomes import NotExecuted, Rejected
from crm_relay.settings import Bitrix24Products
from tests.relay import APP, HUB_SECRET, START, Crash, Relay
from workbench.sandboxes import faults
from workbench.sandboxes.bitrix24 import HUB, PARTNER, READY, Bitrix24Sandbox, WebhookRobot, add_whole_deal
from workbench.sandboxes.bitrix24.calls import Call, Refused
from workbench.sandboxes.bitrix24.hooks import Robot, RobotRun
from workbench.sandboxes.bitrix24.items import Item
from workbench.sandboxes.rates import busiest
from workbench.sandboxes.wire import NEVER, RESET, SandboxRequest, SandboxResponse

TRANSFERRED = "✅ Сделка #1 передана в ЕСБ, №1"


class Office:
    """People in the partner's portal, and what they find there and in the hub."""

    def __init__(self, relay: Relay) -> None:
        self.relay = relay
        self.partner = relay.partner
        self.hub = relay.hub

    def route(self, **changes: Any) -> None:
        """Change the route of relay.toml."""
        settings = self.relay.settings.bitrix24
        route = msgspec.structs.replace(settings.routes["main"], **changes)
        self.relay.configure("bitrix24", routes={"main": route})

    def deal(self, **fields: Any) -> Item:
        """Somebody makes a small deal, not yet to be carried."""
        made: dict[str, Any] = {"title": "Окна", "categoryId": 3, "stageId": "C3:NEW"} | fields
        return self.partner.add_deal(**made)

    def ready(self, **fields: Any) -> Item:
        """Somebody makes a small deal, and moves it to where it is carried."""
        deal = self.deal(**fields)
        self.partner.move(deal.id, READY)
        return deal

    def over(self, seconds: float = 3600) -> None:
        """Let everything that was begun come to its end."""
        self.relay.run(seconds)
        assert not self.relay.errors
        assert not self.relay.queues["deals"].messages

    @property
    def carried(self) -> Item:
        """The hub's one deal."""
        [deal] = self.hub.deals.values()
        return deal

    def comments(self, deal_id: int = 1) -> list[str]:
        return [comment.text for comment in self.partner.comments if comment.entity_id == deal_id]

    def told(self, kind: str = "DealTransferred") -> list[Mapping[str, Any]]:
        return [detail for name, detail in self.relay.bus.events if name == kind]

    def files(self, field: str) -> list[tuple[str, bytes]]:
        value = self.carried[field]
        numbers = value if isinstance(value, list) else [value]
        stored = [self.hub.files.stored[number] for number in numbers if number is not None]
        return [(file.name, file.content) for file in stored]

    def attention(self) -> list[str]:
        return [line["message"] for line in self.relay.logs if line["level"] == "ERROR"]

    def call(self, name: str, deal_id: int = 1, *, event_token: str = "") -> None:
        """A call for a deal comes to the queue."""
        order = Order("partner", deal_id, "main", expected=True, event_token=event_token)
        self.relay.queues["deals"].send(order.envelope(call=name, now=self.relay.clock.now).encode())

    def robot(self, token: str, deal_id: int = 1) -> None:
        """A robot of an app stops in a deal until it is answered."""
        robot = Robot(APP, "send_to_hub", "", 1, True, (), ("status", "esb_deal_id"))
        self.partner.hooks.runs[token] = RobotRun(robot, deal_id, token)

    def work_beside(self) -> None:
        """Let another process work off what is in the queue, in the middle of what one does."""
        first = self.relay._runtimes
        self.relay.restart()
        self.relay.work("deals")
        self.relay._runtimes = first

    def once_after(self, portal: Bitrix24Sandbox, method: str, act: Callable[[], SandboxResponse | None]) -> None:
        """Have something happen between the first time that a portal does a method and its answer, or another one."""
        handle, done = portal.handle, list[bool]()

        def watched(request: SandboxRequest) -> SandboxResponse:
            answer = handle(request)
            if method.encode() in request.body + request.path.encode() and not done:
                done.append(True)
                return act() or answer
            return answer

        portal.handle = watched  # type: ignore[method-assign]

    def refuse(self, portal: Bitrix24Sandbox, method: str, code: str, text: str = "") -> Callable[[], None]:
        """Have a portal refuse a method; return what ends that."""
        run = portal._run

        def refusing(call: Call) -> Any:
            if call.method == method:
                raise Refused(code, text)
            return run(call)

        portal._run = refusing  # type: ignore[method-assign]
        return lambda: setattr(portal, "_run", run)


@pytest.fixture
def office(relay: Relay) -> Office:
    return Office(relay)


def assert_whole(office: Office, context: str = "") -> None:
    """The furnished deal is in the hub with all that it has, once, and was told of once."""
    deal = office.carried
    assert deal["title"] == "Остекление дома", context
    assert (deal["originatorId"], deal["originId"]) == (f"b24:{PARTNER.member_id}", "deal:1:main"), context
    assert [(row["productId"], row["price"], row["quantity"]) for row in deal.rows] == [
        (2001, 14_500.5, 4),
        (2002, 1_200, 4),
        (0, 3_000, 1),
    ], context
    contacts = [office.hub.contacts[contact] for contact in deal["contactIds"]]
    assert [contact["name"] for contact in contacts] == ["Мария", "Павел"], context
    assert len(office.hub.contacts) == 2, context
    assert [company["title"] for company in office.hub.companies.values()] == ["ООО «Ромашка»"], context
    assert office.files("UF_CRM_CONTRACT_FILE") == [("Договор № 17.pdf", b"%PDF-1.4 " + bytes(2_000))], context
    assert office.files("UF_CRM_PHOTOS") == [("фасад.jpg", b"\xff\xd8\xff" + bytes(3_000))], context
    assert len(office.hub.files.stored) == 2, context
    assert office.comments() == [TRANSFERRED], context
    assert [each.user_id for each in office.partner.notifications] == [7], context
    assert {event["hub_deal"] for event in office.told()} == {1}, context
    assert len({event["id"] for event in office.told()}) == 1, context
    assert not office.told("DealTransferFailed"), context


# The usual way


def test_a_robot_carries_a_whole_deal(office: Office) -> None:
    """Fields, contacts, company, rows and files are in the hub; the responsible and the deal were told."""
    deal = add_whole_deal(office.partner)
    office.partner.move(deal.id, READY)
    office.over()
    assert_whole(office)
    carried = office.carried
    assert (carried["categoryId"], carried["stageId"], carried["assignedById"]) == (5, "C5:NEW", 21)
    assert carried["UF_CRM_CONTRACT"] == "Д-17/2026"
    assert carried["UF_CRM_AREA"] == 120.5
    assert carried["UF_CRM_DELIVERY"] == 910
    assert (carried["UF_SOURCE_PORTAL"], carried["UF_SOURCE_DEAL_ID"]) == (PARTNER.domain, deal.id)
    assert carried["UF_TRANSFER_DATE"]
    assert carried["opportunity"] == deal["opportunity"]
    assert carried.rows[0]["discountRate"] == 10
    assert office.attention() == []


def test_what_does_not_fit_goes_without_it_and_is_told_of(office: Office) -> None:
    """A row without a product in the hub is free text, an option without a counterpart is left; both are named."""
    office.deal()
    office.partner.rows.write(office.partner.deals[1], [{"productId": 103, "price": 500, "quantity": 2}])
    office.partner.change(1, UF_CRM_DELIVERY=44)
    office.route(fields={"UF_CRM_DELIVERY": "UF_CRM_SERVICES"})
    office.partner.move(1, READY)
    office.over()
    [row] = office.carried.rows
    assert (row["productId"], row["productName"], row["price"], row["quantity"]) == (0, "Монтаж", 500, 2)
    [comment] = office.comments()
    assert comment.splitlines() == [
        TRANSFERRED,
        "Не перенесены поля: UF_CRM_DELIVERY",
        "Товары без соответствия в каталоге: Монтаж",
    ]


@pytest.mark.parametrize("match", ["none", "name", "xml_id"])
def test_products_are_found_by_table_name_or_xml_id(office: Office, match: str) -> None:
    """What the table names is not looked for."""
    catalogs: Any = {} if match == "none" else {"source_catalogs": (15,), "hub_catalogs": (25,)}
    office.route(products=Bitrix24Products(table={"103": 2001}, match=match, **catalogs))  # type: ignore[arg-type]
    rows = [{"productId": 103, "price": 1}, {"productId": 102, "price": 1}]
    office.ready(rows=rows)
    office.over()
    assert [row["productId"] for row in office.carried.rows] == [2001, 0 if match == "none" else 2002]


def test_a_deal_with_more_rows_than_a_page_has_them_all(office: Office) -> None:
    """Fifty are a page; more than PHP takes as a form go as JSON."""
    office.ready(rows=[{"productName": f"Строка {place}", "price": place, "quantity": 1} for place in range(1, 131)])
    office.over()
    assert [row["price"] for row in office.carried.rows] == list(range(1, 131))


def test_rows_that_a_form_has_lost_go_as_json(office: Office) -> None:
    """PHP reads so many parameters of a form: the answer tells fewer rows than were sent."""
    handle, write = office.hub.handle, office.hub.rows.write
    paths: list[str] = []

    def watch(request: SandboxRequest) -> SandboxResponse:
        paths.append(request.path)
        return handle(request)

    def lossy(deal: Item, sent: list[Any]) -> Any:
        return write(deal, sent[:1] if paths[-1].endswith("/batch") else sent)

    office.hub.handle = watch  # type: ignore[method-assign]
    office.hub.rows.write = lossy  # type: ignore[method-assign]
    office.ready(rows=[{"productName": "А", "price": 1}, {"productName": "Б", "price": 2}])
    office.over()
    assert [row["productName"] for row in office.carried.rows] == ["А", "Б"]


@pytest.mark.parametrize(
    ("typed", "value"), [("PHONE", "+380501234567"), ("EMAIL", "maria@example.com")], ids=["phone", "e-mail"]
)
def test_a_contact_that_the_hub_has_is_found(office: Office, typed: str, value: str) -> None:
    """By phone, then by e-mail; none is made then."""
    fm = [{"typeId": typed, "valueType": "WORK", "value": value}]
    there = office.hub.add_contact(name="Мария К.", fm=fm)
    contact = office.partner.add_contact(name="Мария", fm=fm)
    office.ready(contactIds=[contact.id])
    office.over()
    assert office.carried["contactIds"] == [there.id]
    assert len(office.hub.contacts) == 1


def test_two_contacts_who_are_one_in_the_hub_are_one_there(office: Office) -> None:
    """The hub's deal names him once."""
    fm = [{"typeId": "PHONE", "valueType": "WORK", "value": "+380501234567"}]
    there = office.hub.add_contact(name="Мария К.", fm=fm)
    office.ready(contactIds=[office.partner.add_contact(name=name, fm=fm).id for name in ("Мария", "Маша")])
    office.over()
    assert office.carried["contactIds"] == [there.id]


def test_deals_that_share_a_contact_share_it_in_the_hub(office: Office) -> None:
    """In one batch, and later."""
    contact = office.partner.add_contact(name="Мария")
    for _ in range(3):
        office.ready(contactIds=[contact.id])
    office.over()
    office.ready(contactIds=[contact.id])
    office.over()
    assert [deal["contactIds"] for deal in office.hub.deals.values()] == [[1]] * 4
    assert len(office.hub.contacts) == 1


def test_contacts_can_go_as_ids_alone(office: Office) -> None:
    """The seed's way: CONTACT_ID and COMPANY_ID in fields of the hub."""
    office.route(contacts="ids", fields={"CONTACT_ID": "UF_PARTNER_CONTACT_ID", "COMPANY_ID": "UF_PARTNER_COMPANY_ID"})
    for _ in range(2):
        company = office.partner.add_company(title="ООО «Ромашка»")
    office.ready(contactIds=[office.partner.add_contact(name="Мария").id], companyId=company.id)
    office.over()
    assert (office.carried["UF_PARTNER_CONTACT_ID"], office.carried["UF_PARTNER_COMPANY_ID"]) == (1, 2)
    assert not office.hub.contacts
    assert not office.hub.companies


def test_a_deal_of_nobody_in_the_hub_goes_to_whom_the_route_names(office: Office) -> None:
    """By e-mail, whatever its case."""
    office.route(responsible="Boris@Example.com")
    office.ready(assignedById=1)
    office.over()
    assert office.carried["assignedById"] == 21


def test_without_the_scopes_for_users_and_catalog_the_deal_goes_all_the_same(office: Office) -> None:
    """Nobody is matched, rows are free text, and an operator is called."""
    webhook = replace(office.partner.portal.incoming[0], scopes=frozenset({"crm"}))
    office.partner.portal = replace(office.partner.portal, incoming=(webhook,))
    office.ready(assignedById=7, rows=[{"productId": 101, "price": 5}])
    office.over()
    assert (office.carried["assignedById"], office.carried.rows[0]["productId"]) == (1, 0)
    assert len(office.comments()) == 1
    assert office.partner.notifications == []  # without im nobody can be notified either
    assert set(office.attention()) == {"users or products cannot be read"}


def test_a_deal_that_moved_on_meanwhile_is_carried_from_the_stage_that_it_was_in(office: Office) -> None:
    """The history of its stages tells."""
    deal = office.ready()
    office.partner.move(deal.id, "C3:WON")
    office.over()
    assert office.carried["stageId"] == "C5:NEW"


# Files


def test_a_file_whose_link_died_is_fetched_by_a_fresh_one(office: Office) -> None:
    """The deal is read again."""
    deal = add_whole_deal(office.partner)
    office.partner.move(deal.id, READY)
    killed: list[int] = []
    handle = office.partner.handle

    def kill_links_once(request: SandboxRequest) -> SandboxResponse:
        if "getFile" in request.path and not killed:
            killed.append(1)
            office.partner.files.kill_links()
        return handle(request)

    office.partner.handle = kill_links_once  # type: ignore[method-assign]
    office.over()
    assert killed
    assert_whole(office)


@pytest.mark.parametrize("answer", [NEVER, RESET], ids=["time-out", "reset"])
def test_a_colleagues_file_is_not_taken_for_one_whose_upload_was_lost(office: Office, answer: SandboxResponse) -> None:
    """Somebody in the hub adds a photo while nobody knows what became of ours: in the end both are there."""
    deal = add_whole_deal(office.partner)
    office.partner.move(deal.id, READY)
    handle, lost = office.hub.handle, list[int]()

    def lose_the_photo(request: SandboxRequest) -> SandboxResponse:
        if b"UF_CRM_PHOTOS" in request.body and b"crm.item.update" in request.path.encode() and not lost:
            lost.append(1)
            office.hub.attach_file(1, "UF_CRM_PHOTOS", "коллега.jpg", b"\xff\xd8\xff")
            return answer
        return handle(request)

    office.hub.handle = lose_the_photo  # type: ignore[method-assign]
    office.over()
    assert lost
    assert sorted(name for name, _ in office.files("UF_CRM_PHOTOS")) == ["коллега.jpg", "фасад.jpg"]
    assert office.comments() == [TRANSFERRED]


def test_a_colleagues_file_that_comes_meanwhile_stays(office: Office) -> None:
    """What is in the hub's field is read when ours is about to be written, and not before it is fetched."""
    deal = add_whole_deal(office.partner)
    office.partner.move(deal.id, READY)
    handle = office.partner.handle

    def meanwhile(request: SandboxRequest) -> SandboxResponse:
        if "getFile" in request.path:
            office.hub.attach_file(1, "UF_CRM_PHOTOS", "коллега.jpg", b"\xff\xd8\xff")
        return handle(request)

    office.partner.handle = meanwhile  # type: ignore[method-assign]
    office.over()
    assert [name for name, _ in office.files("UF_CRM_PHOTOS")] == ["коллега.jpg", "коллега.jpg", "фасад.jpg"]


def test_a_file_that_is_too_large_is_left_and_told_of(office: Office) -> None:
    """The rest goes on."""
    office.route(max_file_bytes=2_500)
    deal = add_whole_deal(office.partner)
    office.partner.move(deal.id, READY)
    office.over()
    assert office.files("UF_CRM_CONTRACT_FILE")
    assert office.files("UF_CRM_PHOTOS") == []
    assert office.comments()[0].splitlines()[1].startswith("Не перенесены файлы: UF_CRM_PHOTOS #")


def test_a_file_that_the_hub_does_not_take_is_left_and_told_of_by_name(office: Office) -> None:
    """Bitrix24 says nothing of it: the answer is looked at."""
    office.hub.portal = replace(office.hub.portal, largest_file=2_500)
    deal = add_whole_deal(office.partner)
    office.partner.move(deal.id, READY)
    office.over()
    assert len(office.files("UF_CRM_CONTRACT_FILE")) == 1
    assert office.comments()[0].splitlines()[1] == "Не перенесены файлы: фасад.jpg"


def test_a_body_that_the_web_server_does_not_take_costs_the_file_alone(office: Office) -> None:
    """413 with a page is about this file: the hub is not paused."""
    deal = office.deal()
    office.partner.attach_file(deal.id, "UF_CRM_67BC9A01", "большой.bin", bytes(60_000))
    office.hub.portal = replace(office.hub.portal, largest_body=50_000)
    office.partner.move(deal.id, READY)
    office.over()
    assert office.comments() == [f"{TRANSFERRED}\nНе перенесены файлы: большой.bin"]
    assert office.attention() == []


def test_of_several_files_a_field_for_one_takes_the_first(office: Office) -> None:
    """The others are told of, not uploaded one over the other."""
    office.route(fields={"UF_CRM_PHOTOS": "UF_CRM_CONTRACT_FILE"})
    deal = office.deal()
    for name in ("а.jpg", "б.jpg"):
        office.partner.attach_file(deal.id, "UF_CRM_PHOTOS", name, b"\xff")
    office.partner.move(deal.id, READY)
    office.over()
    assert [name for name, _ in office.files("UF_CRM_CONTRACT_FILE")] == ["а.jpg"]
    assert len(office.hub.files.stored) == 1
    assert office.comments()[0].splitlines()[1].startswith("Не перенесены файлы: UF_CRM_PHOTOS #")


# What cannot be carried


def test_a_deal_in_another_stage_is_refused_to_a_robot(office: Office) -> None:
    """It is told why, once, and subscribers too."""
    robot = WebhookRobot(stage="C3:NEW", url=office.partner.portal.webhook_robots[0].url)
    office.partner.portal = replace(office.partner.portal, webhook_robots=(robot,))
    office.deal(assignedById=7)
    office.over()
    assert not office.hub.deals
    assert office.comments() == ["❌ Сделка #1 не передана в ЕСБ: сделка не была на стадии, с которой её передают"]
    assert [each.user_id for each in office.partner.notifications] == [7]
    assert [event["reason"] for event in office.told("DealTransferFailed")] == ["wrong_stage"]
    assert office.relay.metrics["Refused"] == 1


def test_a_refusal_of_the_hub_is_told_in_its_own_words_and_a_later_call_tries_again(office: Office) -> None:
    """Somebody mends it and moves the deal once more."""
    broken = office.hub.portal
    fields = dict(broken.user_fields)
    fields[DEAL] = tuple(replace(each, required=each.name == "UF_CRM_BUDGET") for each in fields[DEAL])
    office.hub.portal = replace(broken, user_fields=fields)
    deal = office.ready()
    office.over()
    [comment] = office.comments()
    assert comment.startswith("❌ Сделка #1 не передана в ЕСБ: ")
    assert len(office.told("DealTransferFailed")) == 1
    office.hub.portal = broken
    office.partner.move(deal.id, "C3:NEW")
    office.partner.move(deal.id, READY)
    office.over()
    assert office.carried["originId"] == "deal:1:main"
    assert office.comments() == [comment, TRANSFERRED]


def test_two_calls_at_once_for_a_deal_in_another_stage_are_told_of_once(office: Office) -> None:
    """Each of them looks for the other's comment, and none is there yet."""
    office.deal(assignedById=7)
    office.call("first")
    office.call("second")
    office.once_after(office.partner, "crm.timeline.comment.list", office.work_beside)
    office.over()
    assert len(office.comments()) == 1
    assert {event["id"].rpartition("#")[2] for event in office.told("DealTransferFailed")} == {"first", "second"}
    assert not office.relay.items("effect#bitrix24.deal")  # else the sweep would take it for carried


def test_who_may_not_read_comments_is_told_once_and_subscribers_too(office: Office) -> None:
    """An answer was lost, and nobody can look whether the comment is there."""
    office.refuse(office.partner, "crm.timeline.comment.list", "ACCESS_DENIED")
    office.deal(assignedById=7)
    office.call("first")
    office.once_after(office.partner, "crm.timeline.comment.add", lambda: RESET)
    office.over()
    assert len(office.comments()) == 1
    assert len(office.told("DealTransferFailed")) == 1


def test_rows_that_the_hub_refuses_cost_no_files_and_are_told_of_with_the_hubs_id(office: Office) -> None:
    """The hub's deal stands on an operator's list until a later call finds the rows in order."""
    mended = office.refuse(office.hub, "crm.item.productrow.set", "100", "Не та ставка НДС")
    deal = add_whole_deal(office.partner)
    office.partner.move(deal.id, READY)
    office.over()
    assert office.files("UF_CRM_CONTRACT_FILE")
    half = "❌ Сделка #1 передана в ЕСБ не полностью, №1: Не та ставка НДС\nНе перенесены товары"
    assert office.comments() == [half]
    assert [each.text for each in office.partner.notifications] == [half]
    [event] = office.told("DealTransferFailed")
    assert (event["hub_deal"], event["missing"], event["reason"]) == (1, ["rows"], "100")
    assert office.attention() == ["deal is not whole in the hub"]
    assert office.relay.store.attention("NEEDS_RECONCILE", limit=9) == ["effect#bitrix24.deal#partner#1#main"]
    mended()
    office.call("later")
    office.over()
    assert len(office.carried.rows) == 3
    assert len(office.hub.files.stored) == 2
    assert office.comments() == [half, TRANSFERRED]
    assert office.relay.store.attention("NEEDS_RECONCILE", limit=9) == []


def test_half_a_deal_that_somebody_deletes_in_the_hub_is_made_anew_by_a_later_call(office: Office) -> None:
    """Whole, with the files that the first had already."""
    mended = office.refuse(office.hub, "crm.item.productrow.set", "100", "Не та ставка НДС")
    deal = add_whole_deal(office.partner)
    office.partner.move(deal.id, READY)
    office.over()
    office.hub.items.delete(office.carried, 1)
    mended()
    office.call("later")
    office.over()
    assert office.carried.id == 2
    assert len(office.carried.rows) == 3
    assert office.files("UF_CRM_CONTRACT_FILE")
    assert office.files("UF_CRM_PHOTOS")
    assert office.comments()[1:] == ["✅ Сделка #1 передана в ЕСБ, №2"]


def test_a_hub_in_which_nobody_can_look_for_markers_is_no_deals_refusal(office: Office) -> None:
    """Its list does not take them for a filter: nothing is made blindly, and an operator is called."""
    office.hub.switches.origin_can_be_filtered = False
    office.ready()
    office.relay.run(60)
    assert not office.hub.deals
    assert office.comments() == []
    assert office.attention() == ["transfers are refused"]
    office.hub.switches.origin_can_be_filtered = True
    office.over()
    assert office.comments() == [TRANSFERRED]


def test_a_route_that_was_taken_away_answers_its_robot(office: Office) -> None:
    """A call for it waited in the queue."""
    office.partner.portal = replace(office.partner.portal, webhook_robots=())
    office.deal(stageId=READY)
    office.robot("first")
    office.call("first", event_token="first")
    office.relay.configure("bitrix24", routes={})
    office.over()
    assert [run.returned for run in office.partner.robot_results] == [{"status": "failed", "esb_deal_id": ""}]
    assert [event["reason"] for event in office.told("DealTransferFailed")] == ["route_gone"]
    assert office.attention() == ["route is gone"]


def test_a_deal_that_is_deleted_when_the_hub_has_half_of_it_is_told_of_with_the_hubs_id(office: Office) -> None:
    """Nobody is left to read a comment; a robot, subscribers and an operator are."""
    deal = add_whole_deal(office.partner)

    def delete() -> SandboxResponse:
        office.partner.items.delete(deal, 1)
        return RESET

    office.once_after(office.hub, "crm.item.productrow.set", delete)
    office.partner.move(deal.id, READY)
    office.over()
    assert len(office.hub.deals) == 1
    [event] = office.told("DealTransferFailed")
    assert (event["hub_deal"], event["reason"]) == (1, "deal_not_found")
    assert "deal is not whole in the hub" in office.attention()
    assert office.relay.store.attention("NEEDS_RECONCILE", limit=9) == ["effect#bitrix24.deal#partner#1#main"]


def test_a_deal_that_is_gone_is_refused(office: Office) -> None:
    """There is nowhere to tell it, but on the bus."""
    deal = office.ready()
    del office.partner.items.present[DEAL][deal.id]
    office.over()
    assert [event["reason"] for event in office.told("DealTransferFailed")] == ["deal_not_found"]


def test_d26_a_deal_that_came_from_the_hub_does_not_go_back(office: Office) -> None:
    """D26: A → B → A stops by the mark of origin."""
    deal = office.deal()
    office.partner.change(deal.id, originatorId=f"b24:{HUB.member_id}", originId="deal:77:back")
    office.partner.move(deal.id, READY)
    office.over()
    assert not office.hub.deals
    assert office.comments() == ["❌ Сделка #1 не передана в ЕСБ: сделка сама пришла из ЕСБ"]


# Given up


def test_a_deal_that_is_given_up_is_told_of_once(office: Office) -> None:
    """After a day people, subscribers and an operator know; each robot that waits for it goes on."""
    office.partner.portal = replace(office.partner.portal, webhook_robots=())
    office.hub.faults.add(faults.Reset(times=None, probability=0.999_999))
    office.deal(stageId=READY, assignedById=7)
    for token in ("first", "second"):
        office.robot(token)
        office.call(token, event_token=token)
    office.relay.run(3 * 86_400)
    said = "❌ Сделка #1 не передана в ЕСБ: долго не удавалось, больше не пробуем; нужна помощь администратора"
    assert office.comments() == [said]
    assert [each.text for each in office.partner.notifications] == [said]
    assert [run.returned for run in office.partner.robot_results] == [{"status": "failed", "esb_deal_id": ""}] * 2
    assert [event["reason"] for event in office.told("DealTransferFailed")] == ["gave_up"] * 2
    assert len(office.relay.dead_letters["deals"].messages) == 2
    assert len(office.relay.store.attention("GIVEN_UP", limit=9)) == 2


@pytest.mark.parametrize("half", [False, True], ids=["nothing", "half a deal"])
def test_all_robots_of_a_deal_that_is_given_up_go_on_together(office: Office, half: bool) -> None:
    """Their calls are given up in one batch: one of them tells people, each answers its robot."""
    office.partner.portal = replace(office.partner.portal, webhook_robots=())
    handle = office.hub.handle

    def down(request: SandboxRequest) -> SandboxResponse:
        return RESET if not half or b"crm.item.productrow.set" in request.body else handle(request)

    office.hub.handle = down  # type: ignore[method-assign]
    office.deal(stageId=READY, rows=[{"productName": "А"}])
    office.call("event")
    office.relay.run(30)
    for token in ("first", "second"):
        office.robot(token)
        office.call(token, event_token=token)
    office.relay.clock.sleep(90_000)
    office.over()
    assert len(office.comments()) == 1
    hub_deal = "1" if half else ""
    assert [run.returned for run in office.partner.robot_results] == [{"status": "failed", "esb_deal_id": hub_deal}] * 2


def test_half_a_deal_that_is_carried_while_it_is_given_up_is_carried(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another call gets through meanwhile: nobody is told of a failure, and the robot of the first goes on."""
    office.partner.portal = replace(office.partner.portal, webhook_robots=())
    refuse, handle = Carrier._refuse, office.hub.handle

    def without_rows(request: SandboxRequest) -> SandboxResponse:
        return RESET if b"crm.item.productrow.set" in request.body else handle(request)

    def meanwhile(carrier: Carrier, transfers: Sequence[Transfer], *, lease: int) -> None:
        if any(isinstance(transfer.failure, GaveUp) for transfer in transfers) and not office.told():
            office.hub.handle = handle  # type: ignore[method-assign]
            office.call("second")
            office.work_beside()
        refuse(carrier, transfers, lease=lease)

    office.hub.handle = without_rows  # type: ignore[method-assign]
    office.deal(stageId=READY, rows=[{"productName": "А"}])
    office.robot("first")
    office.call("first", event_token="first")
    office.relay.run(30)
    office.relay.clock.sleep(90_000)
    monkeypatch.setattr(Carrier, "_refuse", meanwhile)
    office.over()
    assert office.comments() == [TRANSFERRED]
    assert not office.told("DealTransferFailed")
    assert [run.returned for run in office.partner.robot_results] == [{"status": "ok", "esb_deal_id": "1"}]


def test_half_a_deal_that_is_given_up_is_told_of_with_the_hubs_id(office: Office) -> None:
    """What is there, and what is not."""
    add_whole_deal(office.partner)
    office.partner.move(1, READY)
    handle = office.hub.handle

    def without_rows(request: SandboxRequest) -> SandboxResponse:
        return RESET if b"crm.item.productrow.set" in request.body else handle(request)

    office.hub.handle = without_rows  # type: ignore[method-assign]
    office.relay.run(3 * 86_400)
    [comment] = office.comments()
    told, rows, files = comment.splitlines()
    assert told.startswith("❌ Сделка #1 передана в ЕСБ не полностью, №1: долго не удавалось")
    assert rows == "Не перенесены товары"
    assert files.startswith("Не перенесены файлы: ")
    [event] = office.told("DealTransferFailed")
    assert (event["hub_deal"], event["missing"]) == (1, ["rows", "files"])


def test_an_update_that_is_given_up_is_told_of_too(office: Office) -> None:
    """The deal is in the hub, as it was before; the robot goes on."""
    office.route(on_repeat="update")
    deal = add_whole_deal(office.partner)
    office.partner.move(deal.id, READY)
    office.over()
    office.hub.faults.add(faults.Reset(times=None, probability=0.999_999))
    office.robot("later")
    office.call("later", event_token="later")
    office.relay.run(3 * 86_400)
    reason = "долго не удавалось, больше не пробуем; нужна помощь администратора"
    assert office.comments()[1:] == [f"❌ Сделка #1 не обновлена в ЕСБ, №1: {reason}"]
    assert [run.returned for run in office.partner.robot_results] == [{"status": "failed", "esb_deal_id": "1"}]
    assert [event["reason"] for event in office.told("DealTransferFailed")] == ["gave_up"]


def test_where_nobody_can_be_told_of_a_deal_that_is_given_up_subscribers_are(office: Office) -> None:
    """The portal that asked is down."""
    office.ready()
    office.partner.faults.add(faults.Reset(times=None, probability=0.999_999))
    office.relay.run(3 * 86_400)
    assert [event["reason"] for event in office.told("DealTransferFailed")] == ["gave_up"]
    assert len(office.relay.dead_letters["deals"].messages) == 1


# Again


def test_a_later_call_changes_nothing_by_default(office: Office) -> None:
    """The deal was carried."""
    deal = office.ready()
    office.over()
    office.partner.change(deal.id, title="Двери")
    office.partner.move(deal.id, "C3:NEW")
    office.partner.move(deal.id, READY)
    office.over()
    assert office.carried["title"] == "Окна"
    assert len(office.comments()) == 1


def test_a_later_call_brings_the_deal_up_to_date_if_configured(office: Office) -> None:
    """What differs is written: fields, emptied ones, rows, none at all; stage and responsible are the hub's."""
    office.route(on_repeat="update")
    deal = office.ready(comments="Позвонить", UF_CRM_1747309879="1", rows=[{"productName": "А", "price": 5}])
    office.over()
    office.hub.move(1, "C5:CHECKED")
    office.hub.change(1, assignedById=1)
    office.partner.change(deal.id, title="Двери", UF_CRM_1747309879="2", comments="", assignedById=7)
    office.partner.rows.write(deal, [{"productName": "Б", "price": 7}])
    office.partner.move(deal.id, "C3:NEW")
    office.partner.move(deal.id, READY)
    office.over()
    carried = office.carried
    assert (carried["title"], carried["UF_CRM_CONTRACT"], carried["comments"] or "") == ("Двери", "2", "")
    assert (carried["stageId"], carried["assignedById"]) == ("C5:CHECKED", 1)
    assert [row["productName"] for row in carried.rows] == ["Б"]
    office.partner.rows.write(deal, [])
    office.partner.move(deal.id, "C3:NEW")
    office.partner.move(deal.id, READY)
    office.over()
    assert office.carried.rows == []
    assert len(office.comments()) == 1


@pytest.mark.parametrize("known", [True, False], ids=["update", "creation"])
def test_of_two_calls_at_once_the_later_values_stay(office: Office, known: bool) -> None:
    """The first has read the deal; it is changed, and a second call brings it up to date before the first does."""
    office.route(on_repeat="update")
    deal = office.ready(title="Один") if known else office.deal(title="Один", stageId=READY)
    office.over()
    office.partner.portal = replace(office.partner.portal, webhook_robots=())
    office.partner.change(deal.id, title="Два")

    def change() -> None:
        office.partner.change(deal.id, title="Три")
        office.call("second")
        office.work_beside()

    office.once_after(office.partner, "crm.item.get", change)
    office.call("first")
    office.over()
    assert office.carried["title"] == "Три"
    assert not office.relay.store.attention("WAITING", limit=9)


def test_a_deal_that_the_hub_has_deleted_is_not_brought_up_to_date(office: Office) -> None:
    """Somebody there has meant it: people of the source are told."""
    office.route(on_repeat="update")
    office.ready()
    office.over()
    office.hub.items.delete(office.carried, 1)
    office.call("later")
    office.over()
    assert not office.hub.deals
    assert office.comments()[1:] == ["❌ Сделка #1 не обновлена в ЕСБ, №1: в ЕСБ её удалили"]


def test_two_deals_with_one_marker_are_reported_and_the_first_is_kept(office: Office) -> None:
    """Somebody copied the hub's deal; the ledger was lost."""
    for _ in range(2):
        office.hub.add_deal(title="Окна", originatorId=f"b24:{PARTNER.member_id}", originId="deal:1:main")
    office.ready()
    office.over()
    assert len(office.hub.deals) == 2
    assert office.comments() == [TRANSFERRED]
    assert office.attention() == ["deal doubled in the hub"]


# D25, D04: broken off anywhere


def test_d25_a_report_that_fails_makes_no_second_deal(office: Office) -> None:
    """D25: the deal is in the hub, the partner's portal is down: it is told later, and nothing is done twice."""
    deal = add_whole_deal(office.partner)
    office.partner.move(deal.id, READY)
    handle = office.partner.handle

    def down_after_the_files(request: SandboxRequest) -> SandboxResponse:
        if b"crm.timeline.comment.add" in request.body and office.relay.clock.now < START + 1800:
            return RESET
        return handle(request)

    office.partner.handle = down_after_the_files  # type: ignore[method-assign]
    office.relay.run(1200)
    assert len(office.hub.deals) == 1
    assert office.comments() == []
    office.over(2 * 3600)
    assert_whole(office)


class Boundaries:
    """Counts every call that leaves the process, to a port or a portal, and has `act` happen at one of them.

    Where `act` returns an answer, it stands in for the portal's.
    """

    def __init__(
        self,
        relay: Relay,
        place: int,
        act: Callable[[], SandboxResponse | None],
        *,
        after: bool,
        portals: bool = True,
    ) -> None:
        self.calls: list[str] = []
        self.place = place
        self._act = act
        self._after = after
        through = relay._through
        relay._through = lambda name, *args, **kwargs: self._do(name, lambda: through(name, *args, **kwargs))  # type: ignore[method-assign]
        for portal in (relay.partner, relay.hub) if portals else ():
            self._watch(portal)
        relay.restart()

    def _watch(self, portal: Any) -> None:
        handle = portal.handle
        portal.handle = lambda request: self._do(f"{request.method} {request.path}", lambda: handle(request))

    def _do(self, name: str, call: Callable[[], Any]) -> Any:
        self.calls.append(name)
        if len(self.calls) != self.place:
            return call()
        if self._after:
            result = call()
            return self._act() or result
        return self._act() or call()


def by_robot(office: Office) -> None:
    deal = add_whole_deal(office.partner)
    office.partner.move(deal.id, READY)
    office.relay.run(0)


def play(
    story: Callable[[Office], None], place: int, act: Callable[[], SandboxResponse | None], *, after: bool
) -> list[str]:
    """Tell a story that is disturbed at one call; check the end; return the calls that it made."""
    with Relay() as relay:
        office = Office(relay)
        relay.invoke("bitrix_sweep", {}, seconds=300)
        boundaries = Boundaries(relay, place, act, after=after)
        with suppress(Crash):
            story(office)
        told = list(boundaries.calls)
        boundaries.place = 0
        relay.restart()
        relay.clock.sleep(600)
        relay.invoke("bitrix_sweep", {}, seconds=300)
        relay.run(3 * 3600)
        assert not relay.queues["deals"].messages
        assert not relay.dead_letters["deals"].messages
        assert_whole(office, f"{'after' if after else 'before'} call {place} of {told}")
        return told


def die() -> SandboxResponse | None:
    raise Crash


def nothing() -> None:
    """Let it be."""


@pytest.mark.everywhere
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_d04_a_process_killed_anywhere_carries_the_deal_once(after: bool) -> None:
    """D04: before and after each call to the table, the queue, the bus and both portals; the sweep finds lost calls."""
    calls = play(by_robot, 0, nothing, after=False)
    assert {"store.put", "store.get", "queue.send", "bus.publish"} <= set(calls)
    assert sum(call.startswith(("POST", "GET")) for call in calls) > 12
    for place in range(1, len(calls) + 1):
        play(by_robot, place, die, after=after)


@pytest.mark.everywhere
@pytest.mark.parametrize("answer", [NEVER, RESET], ids=["time-out", "reset"])
@pytest.mark.parametrize("after", [False, True], ids=["lost request", "lost answer"])
def test_d25_an_answer_lost_anywhere_carries_the_deal_once(answer: SandboxResponse, after: bool) -> None:
    """D25: no answer, be it before or after the portal did its work, to each of the requests."""
    calls = play(by_robot, 0, nothing, after=False)
    for place, call in enumerate(calls, 1):
        if call.startswith(("POST", "GET")):
            play(by_robot, place, lambda: answer, after=after)


def test_d25_a_request_that_arrives_late_carries_the_deal_once() -> None:
    """D25: the connection breaks, and the portal does its work forty seconds later, when somebody has asked again."""

    def tell(place: int) -> list[str]:
        with Relay() as relay:
            office = Office(relay)
            told, late = 0, list[tuple[float, Callable[[], object]]]()
            for portal in (relay.partner, relay.hub):
                handle = portal.handle

                def watch(request: SandboxRequest, portal: Any = portal, handle: Any = handle) -> SandboxResponse:
                    nonlocal told
                    told += 1
                    if late and late[0][0] <= relay.clock.now:
                        late.pop()[1]()
                    if told != place:
                        return handle(request)  # type: ignore[no-any-return]
                    late.append((relay.clock.now + 40, lambda: portal.answer(request)))
                    return RESET

                portal.handle = watch  # type: ignore[method-assign]
            by_robot(office)
            requests = told
            office.over(3 * 3600)
            for _, arrives in late:  # nobody has asked again
                arrives()
            assert_whole(office, f"late request {place} of {requests}")
            return [""] * requests

    for place in range(1, len(tell(0)) + 1):
        tell(place)


@pytest.mark.everywhere
@pytest.mark.parametrize("after", [False, True])
def test_an_error_of_any_one_call_to_aws_costs_nothing(after: bool) -> None:
    """Each call to the table, the queue and the bus fails once, before or after its effect."""

    def fail() -> SandboxResponse | None:
        raise StorageError("throttled")

    calls = play(by_robot, 0, nothing, after=False)
    for place, call in enumerate(calls, 1):
        if "." in call and not call.startswith(("POST", "GET")):
            play(by_robot, place, fail, after=after)


@pytest.mark.everywhere
def test_a_second_worker_at_any_moment_makes_no_second_deal() -> None:
    """Another call for the same deal is worked off by another process in the middle of the first."""

    def tell(place: int) -> list[str]:
        with Relay() as relay:
            office = Office(relay)

            def second() -> SandboxResponse | None:
                boundaries.place = 0
                office.call("second")
                office.work_beside()
                return None

            boundaries = Boundaries(relay, place, second, after=True, portals=False)
            by_robot(office)
            told = list(boundaries.calls)
            office.over(3 * 3600)
            assert_whole(office, f"at call {place} of {told}")
            return told

    calls = tell(0)
    for place in range(1, len(calls) + 1):
        tell(place)


# Limits


def test_a_method_that_worked_too_long_waits_alone(office: Office) -> None:
    """OPERATION_TIME_LIMIT: the deal waits until it may again; the portal is not paused for other methods."""
    deal = office.deal()
    office.partner.attach_file(deal.id, "UF_CRM_67BC9A01", "Договор.pdf", b"%PDF")
    office.partner.move(deal.id, READY)
    office.hub.operating.charge(f"webhook {HUB_SECRET}", "crm.item.update", office.relay.clock.now, 480)
    office.relay.run(300)
    assert office.carried["UF_CRM_CONTRACT_FILE"] is None
    office.ready()
    office.relay.run(60)
    assert len(office.hub.deals) == 2
    assert office.comments(2) == ["✅ Сделка #2 передана в ЕСБ, №2"]
    assert len(office.hub.received) < 40
    office.over()
    assert office.hub.deals[1]["UF_CRM_CONTRACT_FILE"] is not None
    assert office.comments(1) == [TRANSFERRED]
    assert office.attention() == []


@pytest.mark.parametrize("switch", ["overloaded", "deleted"])
def test_a_portal_that_is_closed_is_paused_with_an_alarm(office: Office, switch: str) -> None:
    """Nothing is lost: the deal goes when it is open again."""
    setattr(office.hub.switches, switch, True)
    office.ready()
    office.relay.run(280)
    assert len(office.hub.received) == 1
    assert office.attention() == ["account paused"]
    setattr(office.hub.switches, switch, False)
    office.over()
    assert office.comments() == [TRANSFERRED]


def test_d24_a_portal_that_is_down_is_left_alone(office: Office) -> None:
    """D24: after five failures in a row there are only probes, one in half a minute; an operator hears of the wait."""
    office.hub.faults.add(faults.Reset(times=None, probability=0.999_999))
    for _ in range(20):
        office.ready()
    office.relay.run(600)
    assert len(office.hub.received) <= 5 + 600 / 30
    office.relay.run(600)
    assert "messages have been waiting for long" in office.attention()
    office.hub.faults = type(office.hub.faults)(Random(0))
    office.over(2 * 3600)
    assert len(office.hub.deals) == 20


def test_d27_twenty_workers_share_a_portals_limit(office: Office) -> None:
    """D27: never more than two requests in any second, also when a worker dies and its slots with it."""
    deal = office.deal().id
    portals = [Portal(office.relay._runtime("deals"), "partner") for _ in range(20)]
    for call in range(200):
        if call % 37 == 0:
            portals[call % 20] = Portal(office.relay._runtime("deals"), "partner")
        try:
            portals[call % 20].do(items.get(DEAL, deal))
        except NotExecuted as outcome:
            office.relay.clock.sleep(outcome.retry_after or 1)
    times = [received.at for received in office.partner.received]
    assert busiest(times) <= 2
    assert len(times) / (times[-1] - times[0]) > 1.2


# Beforehand


def test_a_preview_shows_the_hubs_deal_and_writes_nothing(office: Office) -> None:
    """What `--dry-run` prints."""
    deal = add_whole_deal(office.partner)
    order = Order("partner", deal.id, "main", expected=True)
    runtime = office.relay._runtime("deals")
    with pytest.raises(Rejected, match="wrong_stage"):
        preview(runtime, order)
    office.partner.portal = replace(office.partner.portal, webhook_robots=())
    office.partner.move(deal.id, READY)
    shown = preview(runtime, order)
    assert shown.wanted is not None
    assert shown.hub_rows is not None
    assert shown.wanted.fields["title"] == "Остекление дома"
    assert [row["productName"] for row in shown.hub_rows.rows][-1] == "Выезд за город"
    assert [field.target for field in shown.wanted.files] == ["UF_CRM_CONTRACT_FILE", "UF_CRM_PHOTOS"]
    assert not office.hub.deals
    assert not office.hub.contacts
    assert not office.partner.comments
    assert not office.relay.items("effect#")
