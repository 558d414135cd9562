"""Deals of Bitrix24 that meet what is no fault of theirs: missing rights, twins, links that lead away."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest

from bitrix_robot.portal import Portal
from crm_relay.bitrix24.items import CONTACT, list_after
from crm_relay.outcomes import Unreachable
from tests.relay import Relay
from workbench.sandboxes.bitrix24 import HUB_SCOPES, READY, IncomingWebhook, add_whole_deal
from workbench.sandboxes.bitrix24.calls import html_page
from workbench.sandboxes.faults import Redirect
from workbench.sandboxes.wire import SandboxRequest, SandboxResponse


def test_deals_wait_for_rights_that_were_taken_away(relay: Relay) -> None:
    """It is nothing about the deal: an operator is told, nobody else, and all arrive when it is mended."""
    deals = [add_whole_deal(relay.partner) for _ in range(2)]
    relay.hub.portal = replace(relay.hub.portal, incoming=(IncomingWebhook(1, "hub-secret", frozenset({"user"})),))
    for deal in deals:
        relay.partner.move(deal.id, READY)
    relay.run(60)
    assert (len(relay.hub.deals), relay.partner.comments) == (0, [])
    assert relay.metrics["AttentionNeeded"] > 0
    relay.hub.portal = replace(relay.hub.portal, incoming=(IncomingWebhook(1, "hub-secret", HUB_SCOPES),))
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
