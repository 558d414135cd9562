"""The client, hooks, OAuth and texts for amoCRM against its sandbox: both sides were written apart from each other."""

import asyncio
import secrets
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from random import Random
from typing import Any
from urllib.parse import parse_qs, urlsplit
from zoneinfo import ZoneInfo

import pytest

from amo_webhook.note_text import Names, note_text, snapshot
from crm_relay.amocrm.client import Account, TooMuch, TooMuchToRead, ValidationFailed, call
from crm_relay.amocrm.hooks import HookEvent, read_hook
from crm_relay.amocrm.oauth import (
    App,
    TokenPair,
    account_host,
    authorize_url,
    exchange_code,
    expires_at,
    read_state,
    refresh,
    sign_state,
)
from crm_relay.amocrm.resources import (
    CARDS,
    COMPANIES,
    CONTACTS,
    LEADS,
    PIPELINES,
    USERS,
    WEBHOOKS,
    Card,
    Resource,
    account_info,
    add,
    notes,
    read_all,
    read_by_ids,
    subscribe,
    unsubscribe,
)
from crm_relay.brackets import decode
from crm_relay.delivery.memory import MemoryBus, MemoryQueue, MemoryStore
from crm_relay.delivery.ports import Ports
from crm_relay.delivery.tokens import Pair, SharedToken
from crm_relay.http_client import Exchange, HttpClient, Request, Response
from crm_relay.outcomes import Blocked, NotExecuted, Outcome, OutcomeUnknown, Rejected, Unauthorized, Unreachable
from crm_relay.settings import AmoCrmTexts
from tests.relay import Clock
from workbench.sandboxes import AmoCrmAccount, AmoCrmSandbox, Integration, MemoryTransport, PipelineHook, serve
from workbench.sandboxes.amocrm.account import PIPELINES as FUNNELS
from workbench.sandboxes.amocrm.account import USERS as PEOPLE
from workbench.sandboxes.faults import CutShort, Drip, Fault, Html, Oversized, RateLimited, Redirect, Reset, Timeout

HOST, MOVED = "example.amocrm.ru", "moved.amocrm.ru"
HOOK_URL, PIPELINE_URL = "https://relay.invalid/amo/token", "https://relay.invalid/amo/pipeline"
APP = App("client", "secret", "https://relay.invalid/amo/oauth")
ADMIN, MANAGER = (user.id for user in PEOPLE)
MAIN, REPEATED = FUNNELS
FIRST, TALKS, DECIDING = (status.id for status in MAIN.statuses)
COMMENT, QUANTITY, SOURCE, SERVICES, PAYMENT, MEASURING, SIGNED, UTM = range(752009, 752025, 2)


class Bench:
    """An account of amoCRM, and our client with a long-lived token of its."""

    def __init__(self, *, response_limit: int = 8 * 1024 * 1024, **terms: Any) -> None:
        self.clock = Clock()
        ours = Integration(
            client_id=APP.client_id, client_secret=APP.client_secret, redirect_uri=APP.redirect_uri, user_id=ADMIN
        )
        self.terms: dict[str, Any] = {"requests_per_second": 1_000_000, "requests_per_second_of_all": 1_000_000}
        account = AmoCrmAccount(integrations=(ours,), **(self.terms | terms))
        self.crm = AmoCrmSandbox(account, clock=self.clock.time, random=Random(7))
        hosts = (HOST, MOVED, "api-b.amocrm.ru", "www.amocrm.ru")
        transport = MemoryTransport(dict.fromkeys(hosts, self.crm), self.clock.sleep)
        self.http = HttpClient(transport, monotonic=self.clock.time, response_limit=response_limit)
        self.account = Account(HOST, self.crm.long_lived_token("client"))

    @property
    def now(self) -> float:
        return self.clock.now

    def run[T](self, exchange: Exchange[T], /) -> T:
        return self.http.run(exchange)

    def outcome(self, exchange: Exchange[Any]) -> Outcome:
        with pytest.raises(Outcome) as caught:
            self.run(exchange)
        return caught.value

    def read(self, resource: Resource, item_id: int, query: Any = None) -> dict[str, Any]:
        path = f"{resource.path}/{item_id}"
        return self.run(call(self.account, "GET", path, query=query, now=self.now))

    def lead(self, **fields: Any) -> int:
        """Somebody makes a lead."""
        return self.crm.add("leads", **{"name": "Окна"} | fields)[0].id

    def texts(self, lead_id: int) -> list[str]:
        """The notes that somebody sees in the lead's card."""
        return self.crm.card("leads", lead_id).texts

    def asked(self) -> int:
        return len(self.crm.received)

    def hooks(self, url: str = HOOK_URL) -> list[HookEvent]:
        """The events of the hooks that are due at this URL."""
        events: list[HookEvent] = []
        for delivery in self.crm.due(self.clock.now):
            self.crm.answered(delivery, 200)
            if delivery.url == url:
                hook = read_hook(decode(delivery.body))
                assert (hook.account_id, hook.subdomain) == (self.crm.account.id, "example")
                assert hook.unreadable == 0
                events += hook.events
        return events


@pytest.fixture
def bench() -> Bench:
    return Bench()


def said(text: str, lead_id: int, **more: Any) -> dict[str, Any]:
    """Return a note as it is written."""
    return {"entity_id": lead_id, "note_type": "common", "params": {"text": text}, **more}


# Reading


def test_the_account_says_who_it_is_and_what_time_it_has(bench: Bench) -> None:
    """What a connection is checked by."""
    info = bench.run(account_info(bench.account, now=bench.now))
    assert (info["id"], info["subdomain"]) == (32427762, "example")
    assert info["_embedded"]["datetime_settings"]["timezone"] == "Europe/Moscow"


def test_what_names_are_made_of_is_read(bench: Bench) -> None:
    """Users, pipelines with their stages, custom fields."""
    users = bench.run(read_all(bench.account, USERS, now=bench.now))
    assert [(user["id"], user["name"]) for user in users] == [(user.id, user.name) for user in PEOPLE]
    pipelines = bench.run(read_all(bench.account, PIPELINES, now=bench.now))
    assert [len(pipeline["_embedded"]["statuses"]) for pipeline in pipelines] == [5, 4]
    fields = bench.run(read_all(bench.account, Resource("api/v4/leads/custom_fields", "custom_fields"), now=bench.now))
    assert {field["id"] for field in fields} >= {COMMENT, UTM}


def test_all_leads_are_read_page_by_page(bench: Bench) -> None:
    """600 of them are three pages."""
    made = [lead.id for lead in bench.crm.add("leads", name="Окна", copies=600)]
    asked = bench.asked()
    assert [lead["id"] for lead in bench.run(read_all(bench.account, LEADS, now=bench.now))] == made
    assert bench.asked() == asked + 3


def test_an_empty_list_is_empty(bench: Bench) -> None:
    """AmoCRM answers 204."""
    assert bench.run(read_all(bench.account, LEADS, now=bench.now)) == []
    assert bench.run(read_by_ids(bench.account, LEADS, [1, 2], now=bench.now)) == {}
    assert bench.crm.received[-1].status == 204


def test_leads_are_read_by_their_ids(bench: Bench) -> None:
    """250 a request; what is gone is missing."""
    ids = [lead.id for lead in bench.crm.add("leads", name="Окна", copies=300)]
    bench.crm.delete("leads", ids[7])
    asked = bench.asked()
    found = bench.run(read_by_ids(bench.account, LEADS, [*ids, 1], now=bench.now))
    assert sorted(found) == [*ids[:7], *ids[8:]]
    assert found[ids[0]]["name"] == "Окна"
    assert bench.asked() == asked + 2
    assert bench.read(LEADS, ids[0], query={"with": "contacts"})["_embedded"]["contacts"] == []


def test_an_answer_that_is_too_long_is_asked_for_in_halves() -> None:
    """Entities may be large: what does not fit is asked for again, in less."""
    bench = Bench(response_limit=64 * 1024)
    ids = [lead.id for lead in bench.crm.add("leads", name="О" * 200, copies=250)]
    found = bench.run(read_by_ids(bench.account, LEADS, ids, now=bench.now))
    assert sorted(found) == ids


def test_a_filter_is_understood(bench: Bench) -> None:
    """Ranges and lists, as PHP nests them."""
    old = bench.lead(price=5)
    bench.clock.now += 60
    new = bench.lead(price=7)
    query = {"filter": {"updated_at": {"from": int(bench.now)}}, "order": {"id": "desc"}}
    assert [lead["id"] for lead in bench.run(read_all(bench.account, LEADS, query=query, now=bench.now))] == [new]
    query = {"filter": {"price": {"from": 1, "to": 6}}}
    assert [lead["id"] for lead in bench.run(read_all(bench.account, LEADS, query=query, now=bench.now))] == [old]


# Writing


def test_notes_go_to_their_cards_many_at_once(bench: Bench) -> None:
    """50 leads, one request; what amoCRM made of each is returned in order."""
    ids = [lead.id for lead in bench.crm.add("leads", name="Окна", copies=50)]
    asked = bench.asked()
    drafts = [said(f"Замер {lead_id}", lead_id) for lead_id in ids]
    made = bench.run(add(bench.account, notes("leads"), drafts, now=bench.now))
    assert bench.asked() == asked + 1
    assert [note["entity_id"] for note in made] == ids
    assert len({note["id"] for note in made}) == 50
    assert all(bench.texts(lead_id) == [f"Замер {lead_id}"] for lead_id in ids)


def test_one_bad_note_costs_only_itself(bench: Bench) -> None:
    """The validation error names it by its place, nothing was written, and the others go again."""
    good = [bench.lead() for _ in range(3)]
    gone = bench.lead()
    bench.crm.delete("leads", gone)
    drafts = [said("a", good[0]), said("b", gone), said("c", good[1]), said("", good[2]), said("d", good[2])]
    failed = bench.outcome(add(bench.account, notes("leads"), drafts, now=bench.now))
    assert isinstance(failed, ValidationFailed)
    assert failed.items == {"1": ("entity_id:NotFound",), "3": ("params.text:NotBlank",)}
    assert [bench.texts(lead_id) for lead_id in good] == [[], [], []]
    others = [draft for place, draft in enumerate(drafts) if str(place) not in failed.items]
    bench.run(add(bench.account, notes("leads"), others, now=bench.now))
    assert [bench.texts(lead_id) for lead_id in good] == [["a"], ["c"], ["d"]]


def test_notes_of_one_second_collapse_and_of_different_ones_do_not(bench: Bench) -> None:
    """Why whoever writes gives each note of a card its own second."""
    same, apart = bench.lead(), bench.lead()
    now = int(bench.now)
    drafts = [said(f"{number}", same, created_at=now) for number in range(3)]
    drafts += [said(f"{number}", apart, created_at=now + number) for number in range(3)]
    bench.run(add(bench.account, notes("leads"), drafts, now=bench.now))
    assert bench.texts(same) == ["2"]
    assert bench.texts(apart) == ["0", "1", "2"]


def test_what_was_written_is_found_again(bench: Bench) -> None:
    """By the card: how an earlier try of unknown outcome is settled."""
    mine, other = bench.lead(), bench.lead()
    bench.crm.faults.add(Timeout(when="after"))
    drafts = [said("a", mine), said("b", other)]
    assert type(bench.outcome(add(bench.account, notes("leads"), drafts, now=bench.now))) is OutcomeUnknown
    query = {"filter": {"entity_id": [mine], "note_type": ["common"]}}
    found = bench.run(read_all(bench.account, notes("leads"), query=query, now=bench.now))
    assert [(note["entity_id"], note["params"]["text"]) for note in found] == [(mine, "a")]


def test_entities_are_changed_field_by_field(bench: Bench) -> None:
    """Only what is sent changes."""
    lead_id = bench.lead(price=5)
    bench.run(call(bench.account, "PATCH", LEADS.path, body=[{"id": lead_id, "name": "Двери"}], now=bench.now))
    lead = bench.read(LEADS, lead_id)
    assert (lead["name"], lead["price"]) == ("Двери", 5)


def test_an_administrators_token_acts_as_a_user(bench: Bench) -> None:
    """The note is then the manager's."""
    lead_id = bench.lead()
    account = replace(bench.account, context_user_id=MANAGER)
    bench.run(add(account, notes("leads"), [said("a", lead_id)], now=bench.now))
    (note,) = bench.crm.card("leads", lead_id).notes
    assert note["created_by"] == MANAGER


def test_too_many_for_one_request(bench: Bench) -> None:
    """504: nothing was written here, and half as many pass."""
    bench.crm.switches.gateway_timeout_over = 2
    drafts = [said("a", bench.lead()) for _ in range(4)]
    assert type(bench.outcome(add(bench.account, notes("leads"), drafts, now=bench.now))) is TooMuch
    for half in (drafts[:2], drafts[2:]):
        assert len(bench.run(add(bench.account, notes("leads"), half, now=bench.now))) == 2


# The door


def test_a_token_that_is_none_is_told_apart(bench: Bench) -> None:
    """It is refreshed, or somebody is asked."""
    stranger = replace(bench.account, access_token="other")
    assert type(bench.outcome(account_info(stranger, now=bench.now))) is Unauthorized


def test_an_account_that_is_not_paid_or_blocked_is_for_somebody_to_look_at(bench: Bench) -> None:
    """402, and the page of a 403."""
    bench.crm.switches.paid = False
    assert str(bench.outcome(account_info(bench.account, now=bench.now))) == "not_paid"
    bench.crm.switches.paid, bench.crm.switches.blocked = True, True
    for exchange in (
        account_info(bench.account, now=bench.now),
        add(bench.account, notes("leads"), [said("a", 1)], now=bench.now),
    ):
        outcome = bench.outcome(exchange)
        assert isinstance(outcome, Blocked)
        assert str(outcome) == "account_blocked"


def test_no_rights_are_a_refusal(bench: Bench) -> None:
    """403 in JSON closes nothing."""
    outcome = bench.outcome(account_info(replace(bench.account, context_user_id=1), now=bench.now))
    assert type(outcome) is Rejected


def test_more_requests_than_allowed_are_not_executed() -> None:
    """429 with a page from amoCRM and with JSON from Kommo; whoever insists is blocked."""
    amocrm = Bench(requests_per_second=7, block_after=3)
    for _ in range(7):
        amocrm.run(account_info(amocrm.account, now=amocrm.now))
    for _ in range(4):
        outcome = amocrm.outcome(account_info(amocrm.account, now=amocrm.now))
        assert type(outcome) is NotExecuted
        assert outcome.retry_after == 5
    assert type(amocrm.outcome(account_info(amocrm.account, now=amocrm.now))) is Blocked
    kommo = Bench(requests_per_second=1, host="example.kommo.com")
    kommo.http = HttpClient(MemoryTransport({"example.kommo.com": kommo.crm}))
    account = replace(kommo.account, host="example.kommo.com")
    kommo.run(account_info(account, now=kommo.now))
    outcome = kommo.outcome(account_info(account, now=kommo.now))
    assert isinstance(outcome, NotExecuted)
    assert outcome.retry_after == 1


@pytest.mark.parametrize(
    ("fault", "read", "written"),
    [
        (Timeout(), Unreachable, OutcomeUnknown),
        (Reset(when="after"), Unreachable, OutcomeUnknown),
        (CutShort(), Unreachable, OutcomeUnknown),
        (Drip(seconds=100), Unreachable, OutcomeUnknown),
        (Oversized(size=20_000_000), TooMuchToRead, OutcomeUnknown),
        (Html(), Unreachable, OutcomeUnknown),
        (Html(status=502), Unreachable, OutcomeUnknown),
        (Html(status=504), TooMuchToRead, TooMuch),
        (Html(status=404), Blocked, Blocked),
        (Redirect(), Blocked, Blocked),
        (RateLimited(retry_after=7), NotExecuted, NotExecuted),
    ],
    ids=lambda value: repr(value) if isinstance(value, Fault) else "",
)
def test_what_goes_wrong_says_what_may_be_done_next(
    bench: Bench, fault: Fault, read: type[Outcome], written: type[Outcome]
) -> None:
    """A read that failed is repeated; a write that may have been done is looked up first."""
    lead_id = bench.lead()
    bench.crm.faults.add(fault)
    assert type(bench.outcome(read_all(bench.account, LEADS, now=bench.now))) is read
    bench.crm.faults.add(fault)
    assert type(bench.outcome(add(bench.account, notes("leads"), [said("a", lead_id)], now=bench.now))) is written


def test_a_redirect_takes_no_token_anywhere(bench: Bench) -> None:
    """The other host is not asked."""
    bench.crm.faults.add(Redirect(location=f"https://{MOVED}/api/v4/account"))
    bench.outcome(account_info(bench.account, now=bench.now))
    assert bench.asked() == 1


# Hooks that are subscribed


def test_hooks_are_shown_subscribed_repaired_and_ended(bench: Bench) -> None:
    """One that amoCRM has switched off shows so, and the same subscription switches it on."""
    made = bench.run(subscribe(bench.account, HOOK_URL, ["add_lead"], now=bench.now))
    assert (made["destination"], made["disabled"], made["settings"]) == (HOOK_URL, False, ["add_lead"])
    bench.crm.hooks.subscriptions[HOOK_URL].manner.stopped = True
    (shown,) = bench.run(read_all(bench.account, WEBHOOKS, now=bench.now))
    assert shown["disabled"]
    mended = bench.run(subscribe(bench.account, HOOK_URL, ["add_lead", "update_lead"], now=bench.now))
    assert (mended["id"], mended["disabled"], mended["settings"]) == (made["id"], False, ["add_lead", "update_lead"])
    for _ in range(2):
        bench.run(unsubscribe(bench.account, HOOK_URL, now=bench.now))
    assert bench.run(read_all(bench.account, WEBHOOKS, now=bench.now)) == []


def test_a_wrong_subscription_says_what_is_wrong(bench: Bench) -> None:
    """One object has no place, but its errors have a path."""
    outcome = bench.outcome(subscribe(bench.account, "no url", ["milk_cow"], now=bench.now))
    assert isinstance(outcome, ValidationFailed)
    errors = [error for errors in outcome.items.values() for error in errors]
    assert errors == ["settings.0:NotSupportedChoice", "destination:InvalidUrl"]


# Hooks that come in

ACTIONS = ("add", "update", "delete", "restore", "status", "responsible", "note")


@pytest.fixture
def told() -> Bench:
    """Return an account that tells us everything, by both kinds of hook."""
    bench = Bench(pipeline_hooks=(PipelineHook(PIPELINE_URL),))
    settings = [f"{action}_{entity}" for entity in ("contact", "company") for action in ACTIONS if action != "status"]
    settings += [f"{action}_lead" for action in ACTIONS]
    bench.run(subscribe(bench.account, HOOK_URL, settings, now=bench.now))
    return bench


def events(hooks: Sequence[HookEvent]) -> list[tuple[str, str, str]]:
    return [(event.entity, event.action, event.id) for event in hooks]


def test_a_lead_that_is_added_is_told_of_by_both_kinds_of_hook(told: Bench) -> None:
    """With everything in it by the account's, with its ids by the pipeline's."""
    lead_id = str(told.lead(price=1000, tags_to_add=[{"name": "vip"}]))
    (event,) = told.hooks()
    assert (event.entity, event.action, event.id) == ("lead", "add", lead_id)
    assert (event.modified_by, event.modified_at) == (ADMIN, int(told.now))
    assert (event.fields["price"], event.fields["name"]) == ("1000", "Окна")
    told.lead()
    (event,) = told.hooks(PIPELINE_URL)
    assert (event.modified_by, event.modified_at, event.fields["status_id"]) == (None, None, str(FIRST))


def test_whatever_happens_to_a_lead_is_told(told: Bench) -> None:
    """Changed, moved, handed over, deleted, restored."""
    lead_id = told.lead()
    told.hooks()
    told.crm.change("leads", lead_id, name="Двери", by=MANAGER)
    (event,) = told.hooks()
    assert (event.action, event.id, event.modified_by) == ("update", str(lead_id), MANAGER)
    told.crm.change("leads", lead_id, status_id=TALKS, by=0)
    moved = told.hooks()
    assert {event.action for event in moved} == {"update", "status"}
    assert [event.modified_by for event in moved] == [0, 0]
    told.crm.change("leads", lead_id, responsible_user_id=MANAGER)
    assert {event.action for event in told.hooks()} == {"update", "responsible"}
    told.crm.delete("leads", lead_id)
    assert events(told.hooks()) == [("lead", "delete", str(lead_id))]
    told.crm.restore("leads", lead_id)
    assert events(told.hooks()) == [("lead", "restore", str(lead_id))]


@pytest.mark.parametrize(("kind", "entity"), [("contacts", "contact"), ("companies", "company")])
def test_contacts_and_companies_are_told_apart(told: Bench, kind: Any, entity: str) -> None:
    """They come under one name."""
    (made,) = told.crm.add(kind, name="Имя Фамилия")
    assert events(told.hooks()) == [(entity, "add", str(made.id))]
    told.crm.change(kind, made.id, responsible_user_id=MANAGER)
    assert events(told.hooks()) == [(entity, "update", str(made.id))]
    told.crm.delete(kind, made.id)
    assert events(told.hooks()) == [(entity, "delete", str(made.id))]


@pytest.mark.parametrize(("card", "entity"), [("leads", "lead"), ("contacts", "contact"), ("companies", "company")])
def test_a_note_is_told_with_what_it_hangs_on(told: Bench, card: Any, entity: str) -> None:
    """Our own come back too, as notes, as updates or both, by nobody: that is where loops begin."""
    (made,) = told.crm.add(card, name="x")
    told.hooks()
    told.crm.switches.note_hooks = frozenset({"note", "update"})
    (note,) = told.run(add(told.account, notes(card), [said("<b>&</b>", made.id)], now=told.now))
    note_event, update_event = sorted(told.hooks(), key=lambda event: event.entity != "note")
    assert (note_event.entity, note_event.action, note_event.id) == ("note", "add", str(note["id"]))
    assert note_event.of == (entity, str(made.id))
    assert note_event.modified_by == update_event.modified_by == 0
    assert (update_event.entity, update_event.action, update_event.id) == (entity, "update", str(made.id))


def test_a_bulk_change_is_many_events(told: Bench) -> None:
    """200 leads at once come in a few hooks."""
    ids = [lead.id for lead in told.crm.add("leads", name="Окна", copies=200)]
    told.hooks()
    told.crm.change("leads", *ids, price=7)
    assert sorted(int(event.id) for event in told.hooks()) == ids


def test_custom_fields_come_in_all_their_shapes(told: Bench) -> None:
    """As the account shows them in hooks: dates as bare numbers, a radio button as one object, UTM without values."""
    told.lead(custom_fields_values=FILLED)
    (event,) = told.hooks()
    fields = {int(field.id): [value.value for value in field.values] for field in event.custom_fields}
    assert fields == {
        COMMENT: ["Перезвонить\nпосле обеда"],
        QUANTITY: ["12.5"],
        SOURCE: ["Сайт"],
        SERVICES: ["Монтаж", "Доставка"],
        PAYMENT: ["Карта"],
        MEASURING: ["1760000000"],
        SIGNED: ["1"],
        UTM: [],
    }


# What a note says of a real entity

FILLED = [
    {"field_id": COMMENT, "values": [{"value": "Перезвонить\nпосле обеда"}]},
    {"field_id": QUANTITY, "values": [{"value": "12.5"}]},
    {"field_id": SOURCE, "values": [{"value": "Сайт"}]},
    {"field_id": SERVICES, "values": [{"value": "Монтаж"}, {"value": "Доставка"}]},
    {"field_id": PAYMENT, "values": [{"value": "Карта"}]},
    {"field_id": MEASURING, "values": [{"value": 1_760_000_000}]},
    {"field_id": SIGNED, "values": [{"value": True}]},
    {"field_id": UTM, "values": [{"value": "ads"}]},
]


def names(bench: Bench) -> Names:
    """Resolve what ids mean, all from the API."""
    users = bench.run(read_all(bench.account, USERS, now=bench.now))
    pipelines = bench.run(read_all(bench.account, PIPELINES, now=bench.now))
    info = bench.run(account_info(bench.account, now=bench.now))
    return Names(
        users={user["id"]: user["name"] for user in users},
        pipelines={pipeline["id"]: pipeline["name"] for pipeline in pipelines},
        stages={
            (pipeline["id"], status["id"]): status["name"]
            for pipeline in pipelines
            for status in pipeline["_embedded"]["statuses"]
        },
        time_zone=ZoneInfo(info["_embedded"]["datetime_settings"]["timezone"]),
    )


def test_a_change_is_told_in_the_card_field_by_field(bench: Bench) -> None:
    """From the hook's id alone to the text in the card, each kind of field as people read it."""
    lead_id = bench.lead(price=1000)
    before = bench.run(read_by_ids(bench.account, LEADS, [lead_id], now=bench.now))[lead_id]
    moved: dict[str, Any] = {
        "price": 1500.5,
        "pipeline_id": REPEATED.id,
        "responsible_user_id": MANAGER,
        "name": "Двери",
    }
    bench.clock.now += 61
    bench.crm.change("leads", lead_id, custom_fields_values=FILLED, tags_to_add=[{"name": "vip"}], **moved)
    after = bench.run(read_by_ids(bench.account, LEADS, [lead_id], now=bench.now))[lead_id]
    text = note_text("leads", after, snapshot(before), added=False, texts=AmoCrmTexts(), names=names(bench))
    bench.run(add(bench.account, notes("leads"), [said(text, lead_id)], now=bench.now))
    (shown,) = bench.texts(lead_id)
    assert shown == (
        "Изменена сделка: Двери. Время изменения: 09.10.2025 11:54:21\n"
        "Название: Окна → Двери\n"
        "Бюджет: 1 000 → 1 500,50\n"
        "Ответственный: Анна Администратор → Борис Менеджер\n"
        "Воронка: Воронка → Повторные продажи\n"
        "Этап: Первичный контакт → Новый запрос\n"
        "Теги: — → vip\n"
        "Комментарий: — → Перезвонить после обеда\n"
        "Количество: — → 12.5\n"
        "Источник: — → Сайт\n"
        "Услуги: — → Монтаж, Доставка\n"
        "Оплата: — → Карта\n"
        "Дата замера: — → 09.10.2025\n"
        "Договор подписан: — → да\n"
        "utm_source: — → ads"
    )


@pytest.mark.parametrize(("card", "what"), [("contacts", "Изменён контакт"), ("companies", "Изменена компания")])
def test_phones_of_contacts_and_companies_are_told(bench: Bench, card: Card, what: str) -> None:
    """The same for all three kinds of card."""
    (made,) = bench.crm.add(card, name="Имя")
    before = bench.read(CARDS[card], made.id)
    bench.crm.change(card, made.id, custom_fields_values=[{"field_code": "PHONE", "values": [{"value": "+7900"}]}])
    after = bench.read(CARDS[card], made.id)
    text = note_text(card, after, snapshot(before), added=False, texts=AmoCrmTexts(), names=names(bench))
    assert text == f"{what}: Имя. Время изменения: 09.10.2025 11:53:20\nТелефон: — → +7900"
    assert {CARDS["contacts"], CARDS["companies"]} == {CONTACTS, COMPANIES}


# OAuth


def visit(url: str) -> Exchange[Response]:
    """Open a page, as a browser does."""
    return (yield Request("GET", url, headers={}))


def authorized(bench: Bench) -> TokenPair:
    """Somebody agrees, and we exchange the code."""
    return bench.run(exchange_code(APP, HOST, bench.crm.authorize("client"), now=bench.now))


def opened(bench: Bench, pair: TokenPair) -> bool:
    """Whether the pair lets us in; trying uses it."""
    account = Account(pair.host, pair.access_token)
    try:
        return bool(bench.run(account_info(account, now=bench.now)))
    except Unauthorized:
        return False


def test_from_the_consent_page_to_a_token(bench: Bench) -> None:
    """The state comes back as it was, the host is amoCRM's, and the code is good once."""
    state = sign_state("main", secrets.token_hex(8), APP.client_secret, now=bench.now)
    crm = bench.run(visit(authorize_url(APP, state, host=HOST)))
    assert crm.status == 302
    back = {name: values[0] for name, values in parse_qs(urlsplit(crm.headers["location"]).query).items()}
    assert read_state(back["state"], APP.client_secret, now=bench.now) is not None
    host = account_host(back["referer"], configured=HOST)
    assert host == HOST
    pair = bench.run(exchange_code(APP, host, back["code"], now=bench.now))
    assert pair.expires_at == int(bench.now) + 86_400
    assert opened(bench, pair)
    assert type(bench.outcome(exchange_code(APP, host, back["code"], now=bench.now))) is Unauthorized


def test_a_code_grows_old(bench: Bench) -> None:
    """In twenty minutes."""
    code = bench.crm.authorize("client")
    bench.clock.now += 20 * 60
    assert type(bench.outcome(exchange_code(APP, HOST, code, now=bench.now))) is Unauthorized


def test_a_wrong_secret_is_told(bench: Bench) -> None:
    """Whoever configured it hears of it."""
    wrong = replace(APP, client_secret="other")
    outcome = bench.outcome(exchange_code(wrong, HOST, bench.crm.authorize("client"), now=bench.now))
    assert type(outcome) is Unauthorized


def test_tokens_rotate(bench: Bench) -> None:
    """The old refresh token is good until a new pair is used; then it is dead, and so are the pairs in between."""
    first = authorized(bench)
    second = bench.run(refresh(APP, first, now=bench.now))
    third = bench.run(refresh(APP, first, now=bench.now))
    assert opened(bench, third)
    for dead in (first, second):
        assert type(bench.outcome(refresh(APP, dead, now=bench.now))) is Unauthorized
    assert opened(bench, bench.run(refresh(APP, third, now=bench.now)))


@pytest.mark.parametrize(
    "fault", [Reset(when="after"), Timeout(when="after"), CutShort(), Html(when="after")], ids=repr
)
def test_a_lost_answer_is_asked_for_again(bench: Bench, fault: Fault) -> None:
    """AmoCRM had made a new pair; with the old token it makes another."""
    first = authorized(bench)
    bench.crm.faults.add(fault)
    second = bench.run(refresh(APP, first, now=bench.now))
    assert opened(bench, second)


def test_an_account_that_moved_is_found(bench: Bench) -> None:
    """At its new host, with the old token; the pair goes on from there."""
    first = authorized(bench)
    bench.crm.move_to(MOVED)
    assert not opened(bench, first)
    second = bench.run(refresh(APP, first, now=bench.now))
    assert second.host == MOVED
    assert opened(bench, second)
    assert bench.run(refresh(APP, second, now=bench.now)).host == MOVED


def test_a_revoked_token_is_for_somebody_to_authorize_again(bench: Bench) -> None:
    """The account is where it was, and does not know us any more."""
    first = authorized(bench)
    bench.crm.tokens.revoke()
    assert type(bench.outcome(refresh(APP, first, now=bench.now))) is Unauthorized


def test_an_idle_integration_is_forgotten_after_three_months(bench: Bench) -> None:
    """Why tokens are refreshed on a schedule: a day before, it still works."""
    first = authorized(bench)
    bench.clock.now += 89 * 86_400
    second = bench.run(refresh(APP, first, now=bench.now))
    bench.clock.now += 90 * 86_400
    assert type(bench.outcome(refresh(APP, second, now=bench.now))) is Unauthorized


def test_a_long_lived_token_tells_its_end(bench: Bench) -> None:
    """And ends then."""
    token = bench.crm.long_lived_token("client", days=30)
    assert expires_at(token) == int(bench.now) + 30 * 86_400
    bench.clock.now += 30 * 86_400
    assert type(bench.outcome(account_info(Account(HOST, token), now=bench.now))) is Unauthorized


def test_fifty_workers_with_one_dead_token_refresh_once(bench: Bench) -> None:
    """Over threads, over our store and amoCRM's rotation: one call, and all go on with what it gave."""
    queue = MemoryQueue(bench.clock)
    store = MemoryStore(bench.clock)
    ports = Ports(store, queue, queue, MemoryBus(), bench.clock, lambda: 0.5, lambda _: queue)
    SharedToken(ports, "amocrm#main").write(asdict(authorized(bench)))
    stale = SharedToken(ports, "amocrm#main").read()
    assert stale is not None
    asked = bench.asked()

    def renew(pair: Pair) -> Pair:
        return asdict(bench.run(refresh(APP, TokenPair(**pair), now=bench.now)))

    def worker() -> Pair | None:
        try:
            return SharedToken(ports, "amocrm#main").refreshed(stale, renew)
        except NotExecuted:  # the message would come again
            return None

    with ThreadPoolExecutor(50) as pool:
        got = [future.result() for future in [pool.submit(worker) for _ in range(50)]]
    fresh = SharedToken(ports, "amocrm#main").read()
    assert fresh is not None
    assert fresh != stale
    assert [pair for pair in got if pair not in (None, fresh)] == []
    assert bench.asked() == asked + 1
    assert opened(bench, TokenPair(**fresh))


async def test_the_same_over_real_sockets(bench: Bench) -> None:
    """An account on this machine is reached without TLS: read, noted, refreshed."""
    async with serve(bench.crm) as address:
        host = urlsplit(address).netloc

        def connect() -> TokenPair:
            http = HttpClient()
            account = replace(bench.account, host=host)
            lead_id = bench.lead()
            http.run(add(account, notes("leads"), [said("a", lead_id)], now=bench.now))
            assert [lead["id"] for lead in http.run(read_all(account, LEADS, now=bench.now))] == [lead_id]
            pair = http.run(exchange_code(APP, host, bench.crm.authorize("client"), now=bench.now))
            pair = http.run(refresh(APP, pair, now=bench.now))
            http._client.close()
            return pair

        assert (await asyncio.to_thread(connect)).host == host
