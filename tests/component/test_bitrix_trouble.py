"""Deals of Bitrix24 that meet what is no fault of theirs: missing rights, twins, links that lead away."""

from dataclasses import replace

from tests.relay import Relay
from workbench.sandboxes.bitrix24 import HUB_SCOPES, READY, IncomingWebhook, add_whole_deal
from workbench.sandboxes.bitrix24.calls import Answer, Call, Method, Refused
from workbench.sandboxes.faults import Redirect


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
