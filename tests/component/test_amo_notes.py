"""AmoQueue's worker: what a note says, and that each change has one, whatever happens on the way."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from amo_webhook import add_notes
from amo_webhook.change import change_envelope
from amo_webhook.note_text import snapshot
from crm_relay.amocrm.hooks import Entity, HookEvent
from crm_relay.brackets import encode
from crm_relay.delivery.account import PAUSE
from crm_relay.delivery.memory import Message
from crm_relay.delivery.ports import Clock, StorageError
from crm_relay.settings import AmoCrmSecrets, AmoCrmTexts, Secrets
from tests.relay import HOOK_TOKEN, START, Crash, Relay
from workbench.sandboxes import faults
from workbench.sandboxes.amocrm.account import PIPELINES, USERS, Kind
from workbench.sandboxes.rates import busiest
from workbench.sandboxes.wire import SandboxRequest, SandboxResponse

DAY = 86_400
URL = f"https://relay.test/amo/{HOOK_TOKEN}"
NOTES = "/api/v4/leads/notes"
FIRST, TALKS, DECIDING = (status.id for status in PIPELINES[0].statuses)
ADMIN, MANAGER = (user.id for user in USERS)
SUBSCRIBED = [
    *("add_lead", "update_lead", "status_lead", "responsible_lead"),
    *("add_contact", "update_contact", "add_company", "update_company"),
]
ENTITIES: Mapping[Kind, Entity] = {"leads": "lead", "contacts": "contact", "companies": "company"}


class Office:
    """People at work in amoCRM, and a relay that hears of it.

    `told` is what messages are made of that nobody posts as a hook: a number that makes each its own version. `bad`
    are the cards whose notes amoCRM refuses.
    """

    def __init__(self, relay: Relay) -> None:
        self.relay = relay
        self.told = 0
        self.bad: set[int] = set()

    @property
    def amo(self) -> Any:
        return self.relay.amo

    def listen(self) -> None:
        """Let amoCRM send hooks from now on."""
        self.amo.subscribe(URL, *SUBSCRIBED)

    def add(self, kind: Kind = "leads", **fields: Any) -> int:
        (entity,) = self.amo.add(kind, **{"name": "Окна в дом"} | fields)
        return int(entity.id)

    def known(self, **fields: Any) -> int:
        """A lead that has its note."""
        lead_id = self.add(**{"price": 1000} | fields)
        self.hear(lead_id, "add")
        self.relay.run()
        assert len(self.texts(lead_id)) == 1
        return lead_id

    def hear(self, entity_id: int, *actions: Any, kind: Kind = "leads") -> None:
        """Queue what a hook would tell of an entity, one message an action."""
        for action in actions or ("update",):
            self.told += 1
            event = HookEvent(ENTITIES[kind], action, str(entity_id), {"last_modified": str(self.told)})
            envelope = change_envelope("main", event, request_id=f"r-{self.told}", now=self.relay.clock.now)
            self.relay.queues["notes"].send(envelope.encode())

    def work(self, *, seconds: float = 120) -> list[str]:
        """One invocation of the worker with what is visible; return the bodies of the messages that stay."""
        queue = self.relay.queues["notes"]
        batch = queue.receive(limit=250, visibility=900)
        answer = self.relay.invoke("amo_notes", records(batch), seconds=seconds)
        kept = {failure["itemIdentifier"] for failure in answer["batchItemFailures"]}
        for message in batch:
            if message.id not in kept:
                queue.delete(message.id)
        return [message.body for message in batch if message.id in kept]

    def texts(self, entity_id: int, kind: Kind = "leads") -> list[str]:
        """The notes in a card; none hides another."""
        card = self.amo.card(kind, entity_id)
        assert card.hidden == 0
        return list(card.texts)

    def lines(self, entity_id: int, kind: Kind = "leads") -> list[str]:
        """The lines below the first of the last note of a card."""
        return self.texts(entity_id, kind)[-1].splitlines()[1:]

    def requests(self, method: str = "POST") -> list[SandboxRequest]:
        return [received.request for received in self.amo.received if received.request.method == method]

    def effects(self) -> Counter[str]:
        """How many effects are in each state."""
        return Counter(effect["state"] for effect in self.relay.items("effect#amocrm.note#").values())

    def results(self) -> list[Mapping[str, Any]]:
        return [effect["result"] for effect in self.relay.items("effect#amocrm.note#").values()]

    @property
    def delay(self) -> float:
        """Seconds until the next message can be seen."""
        visible = [message.visible_at for message in self.relay.queues["notes"].messages.values()]
        return min(visible) - self.relay.clock.now

    @property
    def dead(self) -> list[str | None]:
        return [message.reason for message in self.relay.dead_letters["notes"].messages.values()]

    def over(self, seconds: float = 2 * 3600) -> None:
        """Let everything come to its end: nothing waits, nothing is lost, no worker has failed."""
        self.relay.run(seconds)
        assert not self.relay.queues["notes"].messages
        assert self.dead == []


def records(messages: Sequence[Message]) -> dict[str, Any]:
    return {"Records": [message.record() for message in messages]}


@pytest.fixture
def office(relay: Relay) -> Iterator[Office]:
    """An office at the end of which no log line tells the token or what is in a card."""
    token = relay.secret_source().amocrm["main"].long_lived_token
    yield Office(relay)
    for secret in (token, HOOK_TOKEN, "Окна в дом", "+380501234567"):
        assert secret not in relay.output


# What a note says


def test_a_lead_that_was_added_has_its_note(office: Office) -> None:
    """Who it belongs to and when it was made, in the account's time zone."""
    office.listen()
    lead_id = office.add()
    office.over()
    assert office.texts(lead_id) == [
        "Создана сделка: Окна в дом. Ответственный: Анна Администратор. Время добавления: 09.10.2025 11:53:20"
    ]
    assert office.relay.metrics["Done"] == 1


def test_a_change_is_told_field_by_field(office: Office) -> None:
    """Every field that changed, from what to what, ids by their names."""
    office.listen()
    lead_id = office.add(price=1000)
    office.over(60)
    fields = [
        {"field_id": 752009, "values": [{"value": "Позвонить завтра"}]},
        {"field_id": 752021, "values": [{"value": True}]},
    ]
    office.amo.change(
        "leads",
        lead_id,
        price=1500,
        name="Окна и двери",
        responsible_user_id=MANAGER,
        status_id=TALKS,
        custom_fields_values=fields,
        _embedded={"tags": [{"name": "срочно"}]},
    )
    office.over()
    first, *lines = office.texts(lead_id)[-1].splitlines()
    assert first == "Изменена сделка: Окна и двери. Время изменения: 09.10.2025 11:54:20"
    assert sorted(lines) == sorted(
        [
            "Название: Окна в дом → Окна и двери",
            "Бюджет: 1 000 → 1 500",
            "Ответственный: Анна Администратор → Борис Менеджер",
            "Этап: Первичный контакт → Переговоры",
            "Теги: — → срочно",
            "Комментарий: — → Позвонить завтра",
            "Договор подписан: — → да",
        ]
    )
    assert len(office.texts(lead_id)) == 2  # three hooks told of it: update, status, responsible


def test_the_first_sight_of_a_lead_names_no_differences(office: Office) -> None:
    """What it was before nobody knows; from then on it is known."""
    lead_id = office.add(price=1000)
    office.amo.change("leads", lead_id, price=1500)
    office.hear(lead_id)
    office.over()
    assert office.texts(lead_id) == ["Изменена сделка: Окна в дом. Время изменения: 09.10.2025 11:53:20"]
    office.amo.change("leads", lead_id, price=99.5)
    office.hear(lead_id)
    office.over()
    assert office.lines(lead_id) == ["Бюджет: 1 500 → 99,50"]


@pytest.mark.parametrize(
    ("kind", "added", "changed"),
    [("contacts", "Создан контакт: Олена.", "Изменён контакт: Олена."), ("companies", "Создана компания", "Изменена")],
)
def test_contacts_and_companies_have_notes_too(office: Office, kind: Kind, added: str, changed: str) -> None:
    """The same for all three kinds of cards."""
    office.listen()
    entity_id = office.add(kind, name="Олена")
    office.over()
    phone = 735649 if kind == "contacts" else 735661
    values = [{"value": "+380501234567", "enum_code": "WORK"}]
    office.amo.change(kind, entity_id, custom_fields_values=[{"field_id": phone, "values": values}])
    office.over()
    one, two = office.texts(entity_id, kind)
    assert one.startswith(added)
    assert two.startswith(changed)
    assert office.lines(entity_id, kind) == ["Телефон: — → +380501234567"]
    assert {(request.path, request.method) for request in office.requests()} == {(f"/api/v4/{kind}/notes", "POST")}


def test_texts_are_templates(office: Office) -> None:
    """Other words, the same facts."""
    texts = AmoCrmTexts(lead_added="New lead {id}: {name}", changed_field="{field} was {before}", price="Price")
    office.relay.configure("amocrm", texts=texts)
    lead_id = office.known()
    assert office.texts(lead_id) == [f"New lead {lead_id}: Окна в дом"]
    office.amo.change("leads", lead_id, price=5)
    office.hear(lead_id)
    office.over()
    assert office.lines(lead_id) == ["Price was 1 000"]


def test_only_leads_in_wanted_stages_have_notes(office: Office) -> None:
    """What happens elsewhere is remembered, so that a note names the last step alone; contacts have no stages."""
    office.relay.configure_amo(stages=(DECIDING,))
    office.listen()
    lead_id, contact_id = office.add(price=1), office.add("contacts")
    office.over()
    office.amo.change("leads", lead_id, price=2)
    office.over()
    assert office.texts(lead_id) == []
    assert len(office.texts(contact_id, "contacts")) == 1
    office.amo.change("leads", lead_id, status_id=DECIDING)
    office.over()
    assert office.lines(lead_id) == ["Этап: Первичный контакт → Принимают решение"]
    assert {"note": None, "reason": "nothing_to_say"} in office.results()


def test_what_changed_nothing_that_is_shown_has_no_note(office: Office) -> None:
    """A hook about something that no note names: somebody linked a contact, say."""
    lead_id = office.known()
    office.hear(lead_id, "update", "status")
    office.over()
    assert len(office.texts(lead_id)) == 1
    assert len(office.requests()) == 1


def test_a_lead_that_is_gone_by_then_has_no_note_and_is_counted(office: Office) -> None:
    """Nothing can be written there."""
    gone, there = office.add(), office.add()
    office.amo.delete("leads", gone)
    office.hear(gone)
    office.hear(there)
    office.over()
    assert len(office.texts(there)) == 1
    assert not office.amo.notes.card(office.amo.entities.deleted["leads"][gone]).notes
    assert office.relay.metrics["Gone"] == 1
    assert {"note": None, "reason": "gone"} in office.results()


def test_a_note_is_what_a_person_would_write(office: Office) -> None:
    """Plain, of no user, and no robot is set off by it."""
    office.known()
    ((sent,),) = [json.loads(request.body) for request in office.requests()]
    assert sent["note_type"] == "common"
    assert sent["is_need_to_trigger_digital_pipeline"] is False
    assert "created_by" not in sent


def answering(office: Office, judge: Callable[[httpx.Request], httpx.Response | None]) -> None:
    """Let `judge` answer requests in amoCRM's place; None leaves it to amoCRM."""
    transport = office.relay.http_client._client._transport
    send = transport.handle_request
    transport.handle_request = lambda request: judge(request) or send(request)  # type: ignore[method-assign]


def test_a_lead_that_the_list_does_not_show_yet_is_waited_for(office: Office) -> None:
    """A list may lag behind the hook by seconds; what is still not there after a minute is gone."""
    office.listen()
    shown_from = office.relay.clock.now + 5

    def lag(request: httpx.Request) -> httpx.Response | None:
        early = office.relay.clock.now < shown_from and request.url.path == "/api/v4/leads"
        return httpx.Response(204) if early else None

    answering(office, lag)
    lead_id = office.add()
    office.over()
    assert len(office.texts(lead_id)) == 1
    assert office.relay.metrics["Gone"] == 0


def forge(office: Office, action: str, *ids: int, **fields: object) -> None:
    """Post a hook as somebody does who has learned the address."""
    account = {"id": office.amo.account.id, "subdomain": "example"}
    body = encode({"leads": {action: [{"id": lead_id, **fields} for lead_id in ids]}, "account": account})
    office.relay.post_hook(body.encode())
    office.relay.run(120)


@pytest.mark.parametrize(
    "fields", [{}, {"date_create": 5}, {"created_at": "x" * 5000}], ids=["ids", "time", "nonsense"]
)
def test_a_forged_hook_about_a_lead_to_come_does_not_hide_the_true_one(
    office: Office, fields: Mapping[str, object]
) -> None:
    """When it will be added nobody knows."""
    lead_id = office.add()
    forge(office, "add", *range(lead_id + 1, lead_id + 10), **fields)
    assert office.relay.metrics["Gone"] == 9
    office.listen()
    new = office.add()
    office.over()
    assert office.texts(new)[0].startswith("Создана сделка")


def test_an_addition_is_told_once(office: Office) -> None:
    """However often, and with whatever times, somebody tells of it."""
    office.listen()
    lead_id = office.add()
    office.over(60)
    for created_at in range(5):
        forge(office, "add", lead_id, date_create=created_at)
    office.amo.change("leads", lead_id, price=7)
    forge(office, "add", lead_id, date_create=77)
    assert [text.partition(" ")[0] for text in office.texts(lead_id)] == ["Создана", "Изменена"]


def test_a_forged_hook_writes_nothing_into_old_cards(office: Office) -> None:
    """What is long over is no news; what changes in such a card from then on is told with its differences."""
    ids = [office.add(price=1) for _ in range(3)]
    office.relay.clock.sleep(90 * DAY)
    forge(office, "update", *ids)
    forge(office, "add", *ids)
    assert [office.texts(lead_id) for lead_id in ids] == [[]] * 3
    office.amo.change("leads", ids[0], price=2)
    forge(office, "add", ids[0], date_create=5)
    assert office.texts(ids[0])[0].startswith("Изменена сделка")
    assert office.lines(ids[0]) == ["Бюджет: 1 → 2"]


def test_a_hook_that_waited_for_days_is_still_news(office: Office) -> None:
    """Its age is compared with the entity's, not with the clock."""
    new, changed = office.add(), office.add()
    office.hear(new, "add")
    office.hear(changed)
    office.relay.clock.sleep(5 * DAY)
    office.over()
    assert office.texts(new)[0].startswith("Создана сделка")
    assert office.texts(changed)[0].startswith("Изменена сделка")


def test_names_that_cannot_be_kept_stop_no_note(office: Office) -> None:
    """They are read again, for a request or three more."""
    lead_id = office.add()
    office.hear(lead_id)
    put = office.relay.store.put

    def refuse(key: str, *args: Any, **kwargs: Any) -> Any:
        if key.startswith("names#"):
            raise StorageError("too large")
        return put(key, *args, **kwargs)

    office.relay.store.put = refuse  # type: ignore[method-assign]
    assert office.work() == []
    assert len(office.texts(lead_id)) == 1


# Several hooks, one change


@pytest.mark.parametrize("together", [True, False])
def test_two_hooks_about_one_change_make_one_note(office: Office, together: bool) -> None:
    """A lead that moved is told of as an update and as a new status, in either order."""
    lead_id = office.known()
    office.amo.change("leads", lead_id, status_id=TALKS)
    for action in ("status", "update"):
        office.hear(lead_id, action)
        if not together:
            assert office.work() == []
    office.over()
    assert len(office.texts(lead_id)) == 2
    assert office.lines(lead_id) == ["Этап: Первичный контакт → Переговоры"]


def test_the_same_message_twice_makes_one_note(office: Office) -> None:
    """D05: also in one batch: the second copy finds the first settled."""
    lead_id = office.add()
    office.hear(lead_id)
    (message,) = office.relay.queues["notes"].messages.values()
    for _ in range(3):
        office.relay.queues["notes"].send(message.body)
    office.over()
    assert len(office.texts(lead_id)) == 1
    assert office.effects() == Counter(CONFIRMED=1)


def test_several_notes_of_one_card_have_seconds_of_their_own(office: Office) -> None:
    """Of notes with equal created_at a card would show one."""
    lead_id = office.known()
    for price in range(2000, 2010):
        office.amo.change("leads", lead_id, price=price)
        office.hear(lead_id)
        assert office.work() == []
    assert office.relay.clock.now - START < 9
    assert len(office.texts(lead_id)) == 11  # and none hidden
    assert office.lines(lead_id) == ["Бюджет: 2 008 → 2 009"]


def test_late_hooks_end_in_the_right_state(office: Office) -> None:
    """What the hooks said is long over: one note tells the difference to now, and the others find nothing more."""
    lead_id = office.known()
    for price in (2000, 3000, 4000):
        office.amo.change("leads", lead_id, price=price)
        office.hear(lead_id)
    office.over()
    assert len(office.texts(lead_id)) == 2
    assert office.lines(lead_id) == ["Бюджет: 1 000 → 4 000"]
    assert office.effects() == Counter(CONFIRMED=4)


def test_a_hook_of_ids_alone_is_enough(office: Office) -> None:
    """Of a digital pipeline; two of them are two, for they tell no version."""
    lead_id = office.add()
    body = encode(
        {
            "leads": {"status": [{"id": lead_id, "status_id": FIRST, "pipeline_id": PIPELINES[0].id}]},
            "account": {"id": office.amo.account.id, "subdomain": "example"},
        }
    )
    office.relay.post_hook(body.encode())
    office.over()
    assert office.texts(lead_id) == ["Изменена сделка: Окна в дом. Время изменения: 09.10.2025 11:53:20"]


# Fast, and within amoCRM's limits


def busiest_second(office: Office) -> int:
    return busiest([received.at for received in office.amo.received])


def test_a_bulk_change_of_200_leads_takes_few_requests(office: Office) -> None:
    """200 notes, each once: names once, one read and four writes; in seconds, and no second with more than seven."""
    office.listen()
    ids = [entity.id for entity in office.amo.add("leads", name="Окна", price=1, copies=200)]
    office.relay.run(30)
    assert all(len(office.texts(lead_id)) == 1 for lead_id in ids)
    office.amo.received.clear()
    office.amo.change("leads", *ids, price=2)
    office.relay.run(30)
    assert [office.lines(lead_id) for lead_id in ids] == [["Бюджет: 1 → 2"]] * 200
    assert [request.path for request in office.requests("GET")] == ["/api/v4/leads"]
    assert [len(json.loads(request.body)) for request in office.requests()] == [50] * 4
    assert not office.relay.queues["notes"].messages
    assert busiest_second(office) <= 7


def test_a_flood_is_worked_off_at_amocrms_pace(office: Office) -> None:
    """D10: 2,000 messages, half of them copies: no second with more than seven requests, no 429, each note once."""
    ids = [entity.id for entity in office.amo.add("leads", name="Окна", copies=1000)]
    for lead_id in ids:
        office.hear(lead_id)
    for message in list(office.relay.queues["notes"].messages.values()):
        office.relay.queues["notes"].send(message.body)
    office.over()
    assert all(len(office.texts(lead_id)) == 1 for lead_id in ids)
    assert busiest_second(office) <= 7
    assert {received.status for received in office.amo.received} == {200}
    assert len(office.requests()) == 20


def test_notes_per_request_are_configured(office: Office) -> None:
    """Up to amoCRM's own 250."""
    office.relay.configure_amo(notes_per_request=250)
    for entity in office.amo.add("leads", name="Окна", copies=120):
        office.hear(entity.id)
    office.over()
    assert [len(json.loads(request.body)) for request in office.requests()] == [120]


def test_a_read_that_amocrm_does_not_get_through_is_halved_at_its_pace(office: Office) -> None:
    """Every half takes a slot of its own."""
    for entity in office.amo.add("leads", name="Окна", copies=100):
        office.hear(entity.id)
    office.amo.faults.add(faults.Html(status=504, method="GET", path="/api/v4/leads", times=4))
    office.over()
    assert len(office.amo.notes.of_kind["leads"]) == 100
    assert busiest_second(office) <= 7


# Refusals


def bad(office: Office, *wrong: int) -> None:
    """Let amoCRM refuse notes in these cards, by name."""
    office.bad |= set(wrong)
    handle = office.amo.handle

    def judge(request: SandboxRequest) -> SandboxResponse:
        if request.method == "POST" and request.path.endswith("/notes"):
            items = [
                item | ({"note_type": "poem"} if item["entity_id"] in office.bad else {})
                for item in json.loads(request.body)
            ]
            request = replace(request, body=json.dumps(items).encode())
        answer: SandboxResponse = handle(request)
        return answer

    office.amo.handle = judge


def test_one_bad_note_of_fifty_costs_only_itself(office: Office) -> None:
    """The validation error names it; the others go again at once, and it is not tried any more."""
    ids = [entity.id for entity in office.amo.add("leads", name="Окна", copies=50)]
    bad(office, ids[7], ids[30])
    for lead_id in ids:
        office.hear(lead_id)
    office.over()
    assert [lead_id for lead_id in ids if not office.texts(lead_id)] == [ids[7], ids[30]]
    assert office.effects() == Counter(CONFIRMED=48, REJECTED=2)
    assert len(office.requests()) == 2
    assert {"reason": "validation_failed note_type:NotSupportedChoice"} in office.results()
    assert office.relay.metrics["Refused"] == 2
    assert office.relay.metrics["AttentionNeeded"] == 1


@pytest.mark.parametrize("answer", ["unnamed", "no_errors", "no_place"])
def test_a_bad_note_that_is_not_named_is_found(office: Office, answer: str) -> None:
    """Halves go again, and again, until it is alone: the others are written once each."""
    ids = [entity.id for entity in office.amo.add("leads", name="Окна", copies=50)]
    bad(office, ids[7])
    judge = office.amo.handle
    errors: dict[str, object] = {
        "unnamed": [{"errors": [{"code": "NotValid", "path": "x", "detail": "d"}]}],
        "no_place": [{"request_id": "777", "errors": [{"code": "NotValid", "path": "x", "detail": "d"}]}],
        "no_errors": [],
    }

    def silent(request: SandboxRequest) -> SandboxResponse:
        response: SandboxResponse = judge(request)
        if response.status == 400:
            response = replace(response, body=json.dumps({"status": 400, "validation-errors": errors[answer]}).encode())
        return response

    office.amo.handle = silent
    for lead_id in ids:
        office.hear(lead_id)
    office.over()
    assert [lead_id for lead_id in ids if not office.texts(lead_id)] == [ids[7]]
    assert office.effects() == Counter(CONFIRMED=49, REJECTED=1)
    assert len(office.requests()) <= 13
    assert busiest_second(office) <= 7


def test_a_change_after_a_bad_note_is_told(office: Office) -> None:
    """Whatever was wrong with one, the next is another."""
    lead_id = office.known()
    bad(office, lead_id)
    office.amo.change("leads", lead_id, price=2)
    office.hear(lead_id)
    office.over()
    office.bad.clear()
    office.amo.change("leads", lead_id, price=3)
    office.hear(lead_id)
    office.over()
    assert len(office.texts(lead_id)) == 2
    assert office.lines(lead_id) == ["Бюджет: 2 → 3"]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (faults.Unauthorized(), "http_401"),
        (faults.Html(status=403), "account_blocked"),
        (faults.Forbidden(), "http_403"),
        (faults.CodedError.model_construct(kind="coded_error", status=402, code="not_paid"), "not_paid"),
        (faults.Redirect(), "redirected"),
    ],
    ids=["401", "403 page", "403", "402", "moved"],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_d15_an_account_that_is_closed_to_us_is_paused(
    office: Office, fault: faults.Fault, reason: str, method: str
) -> None:
    """D15: all stop, the messages stay, an operator is called; when it is over each note is written, once."""
    ids = [office.known(), office.known()]
    office.amo.change("leads", *ids, price=2)
    for lead_id in ids:
        office.hear(lead_id)
    office.amo.faults.add(fault.model_copy(update={"method": method, "path": "", "times": 1}))
    office.amo.received.clear()
    assert len(office.work()) == 2
    assert office.relay.items("pause#")["pause#amocrm#main"]["reason"] == reason
    assert office.relay.metrics["AttentionNeeded"] == 1
    asked, claims = len(office.amo.received), list(office.relay.items("effect#").values())
    office.relay.run(PAUSE - 10)
    assert len(office.amo.received) == asked
    assert list(office.relay.items("effect#").values()) == claims, "a message that cannot be tried costs no write"
    assert len(office.relay.queues["notes"].messages) == 2
    office.over()
    assert [office.lines(lead_id) for lead_id in ids] == [["Бюджет: 1 000 → 2"]] * 2


def changed_together(office: Office, number: int = 5) -> list[int]:
    """Leads that have a note each, and a change that has none yet."""
    ids = [office.known() for _ in range(number)]
    office.amo.change("leads", *ids, price=2)
    for lead_id in ids:
        office.hear(lead_id)
    return ids


@pytest.mark.parametrize("status", [403, 404, 400])
def test_a_look_into_cards_that_is_refused_settles_nothing(office: Office, status: int) -> None:
    """The notes are in doubt until somebody may look; an operator is called."""
    ids = changed_together(office, 2)
    office.amo.faults.add(faults.Timeout(when="after", method="POST"))
    office.work()
    refusal = faults.Replaced(status=status, text='{"title":"No"}', method="GET", path=NOTES, times=None)
    office.amo.faults.add(refusal)
    office.relay.run(3600)
    assert office.effects() == Counter(CONFIRMED=2, SENT=2)
    assert office.relay.metrics["AttentionNeeded"] > 0
    office.amo.faults.clear()
    office.over()
    assert [office.lines(lead_id) for lead_id in ids] == [["Бюджет: 1 000 → 2"]] * 2


@pytest.mark.parametrize(("method", "path"), [("GET", "/api/v4/leads"), ("POST", NOTES)])
@pytest.mark.parametrize("status", [403, 404])
def test_a_refusal_of_all_costs_no_note(office: Office, method: str, path: str, status: int) -> None:
    """It says nothing of any one of them: they wait, an operator is called, and no change is lost."""
    ids = changed_together(office)
    refusal = faults.Replaced(status=status, text='{"title":"No"}', method=method, path=path, times=None)
    office.amo.faults.add(refusal)
    office.relay.run(1800)
    assert office.relay.metrics["AttentionNeeded"] > 0
    office.amo.faults.clear()
    office.over()
    assert [office.lines(lead_id) for lead_id in ids] == [["Бюджет: 1 000 → 2"]] * 5


@pytest.mark.parametrize("place", range(5))
def test_one_card_that_amocrm_stumbles_over_costs_the_others_a_few_tries(office: Office, place: int) -> None:
    """500 for it and all that are read with it: they come together each time, and are read apart in the end."""
    ids = changed_together(office)

    def judge(request: httpx.Request) -> httpx.Response | None:
        is_its = request.method == "GET" and request.url.path == "/api/v4/leads" and str(ids[place]) in str(request.url)
        return httpx.Response(500, json={"title": "x"}) if is_its else None

    answering(office, judge)
    for _ in range(12):
        office.work()
        office.relay.clock.sleep(1000)
    assert [len(office.texts(lead_id)) for lead_id in ids] == [2 - (place == which) for which in range(5)]


@pytest.mark.parametrize(("status", "state"), [(400, "REJECTED"), (404, "PLANNED")])
def test_one_card_that_amocrm_does_not_show_costs_only_itself(office: Office, status: int, state: str) -> None:
    """The others are read without it; only 400 says for good that it is wrong."""
    ids = changed_together(office)

    def judge(request: httpx.Request) -> httpx.Response | None:
        is_its = request.method == "GET" and request.url.path == "/api/v4/leads" and str(ids[2]) in str(request.url)
        return httpx.Response(status, json={"title": "x"}) if is_its else None

    answering(office, judge)
    office.relay.run(3 * 3600)
    assert [len(office.texts(lead_id)) for lead_id in ids] == [2, 2, 1, 2, 2]
    assert office.effects()[state] == 1
    assert office.relay.metrics["AttentionNeeded"] > 0


def test_a_note_without_a_text_does_not_hide_ours(office: Office) -> None:
    """Somebody else's, in the same card."""
    ids = changed_together(office, 2)
    for note, params in zip(office.amo.notes.of_kind["leads"].values(), [[], {"text": None}], strict=True):
        note["params"] = params
    office.amo.faults.add(faults.Timeout(when="after", method="POST"))
    office.over()
    assert office.effects() == Counter(CONFIRMED=4)
    assert len(office.amo.notes.of_kind["leads"]) == 2 + len(ids)


def test_a_blocked_account_keeps_its_messages_for_most_of_a_day(office: Office) -> None:
    """Until the vendor lifts the block."""
    lead_id = office.add()
    office.hear(lead_id)
    office.amo.switches.blocked = True
    office.relay.run(DAY - 3600)
    assert len(office.amo.received) < 300
    office.amo.switches.blocked = False
    office.over()
    assert len(office.texts(lead_id)) == 1


@pytest.mark.parametrize(("told", "least"), [(None, 5), (60, 60), (0, 0)])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_d13_a_busy_amocrm_is_left_alone_as_long_as_it_asks(
    office: Office, told: int | None, least: float, method: str
) -> None:
    """D13: with seconds and without; the whole account stays away, and nothing is in doubt."""
    lead_id, other = office.add(), office.known()
    office.hear(lead_id)
    office.amo.faults.add(faults.RateLimited(retry_after=told, method=method))
    refused_at = office.relay.clock.now
    office.amo.received.clear()
    office.work()
    assert office.effects()["SENT"] == 0
    office.hear(other)
    office.over()
    times = [received.at for received in office.amo.received]
    refused = next(place for place, received in enumerate(office.amo.received) if received.status == 429)
    assert times[refused + 1] - max(refused_at, times[refused]) >= least
    assert len(office.texts(lead_id)) == 1


def test_a_write_that_amocrm_does_not_get_through_goes_again_in_halves(office: Office) -> None:
    """504: 40 at once are too many, 20 too, 10 are not; each note is written once."""
    ids = [entity.id for entity in office.amo.add("leads", name="Окна", copies=40)]
    office.amo.switches.gateway_timeout_over = 10
    for lead_id in ids:
        office.hear(lead_id)
    for _ in range(3):
        office.work()
        office.relay.clock.sleep(1000)
    assert all(len(office.texts(lead_id)) == 1 for lead_id in ids)
    assert [len(json.loads(request.body)) for request in office.requests()] == [40, 20, 20, 10, 10, 10, 10]


LOST = [
    faults.Timeout(when="after"),
    faults.Reset(when="after"),
    faults.Html(status=502, when="after"),
    faults.Html(status=504, when="after"),
    faults.Html(when="after"),
    faults.Replaced(when="after"),
    faults.CutShort(),
    faults.Timeout(),
    faults.Reset(),
    faults.Html(status=500),
    faults.CodedError(),
    faults.Replaced(),
    faults.Oversized(size=20_000_000),
    faults.Drip(seconds=60),
]


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("fault", LOST, ids=lambda fault: f"{fault.kind} {getattr(fault, 'when', '')}")
def test_d16_d17_a_note_whose_answer_was_lost_is_written_once(office: Office, fault: faults.Fault, times: int) -> None:
    """D16, D17: whether or not it was written: the next try looks into the card first."""
    known, new = office.known(), office.add()
    office.amo.change("leads", known, price=2)
    office.hear(known, "update", "status")
    office.hear(new)
    office.amo.faults.add(fault.model_copy(update={"method": "POST", "times": times}))
    assert len(office.work()) == 3
    assert office.effects()["SENT"] == 3
    office.over()
    assert len(office.texts(known)) == 2
    assert office.lines(known) == ["Бюджет: 1 000 → 2"]
    assert len(office.texts(new)) == 1


def test_d16_a_request_that_arrives_late_is_waited_for(office: Office) -> None:
    """D16: amoCRM writes the note eight seconds after we have given up: nobody looks before that can be."""
    lead_id = office.known()
    office.amo.change("leads", lead_id, price=2)
    office.hear(lead_id)
    clock, transport = office.relay.clock, office.relay.http_client._client._transport
    send = transport.handle_request
    late: list[httpx.Request] = []
    arrives_at = clock.now + 28

    def arrive() -> None:
        while late:
            send(late.pop())

    def slow(request: httpx.Request) -> httpx.Response:
        if request.method == "POST" and clock.now < arrives_at - 20:
            late.append(request)
            clock.sleep(20)
            raise httpx.ReadTimeout("timed out")
        if clock.now >= arrives_at:
            arrive()
        return send(request)

    transport.handle_request = slow  # type: ignore[method-assign]
    office.over()
    arrive()
    assert len(office.texts(lead_id)) == 2
    assert office.lines(lead_id) == ["Бюджет: 1 000 → 2"]


def test_a_change_while_a_note_is_in_doubt_is_told_too(office: Office) -> None:
    """The one in doubt is found in its card; what came later has a note of its own, from where that one ended."""
    lead_id = office.known()
    office.amo.faults.add(faults.Timeout(when="after", method="POST"))
    office.amo.change("leads", lead_id, price=2)
    office.hear(lead_id)
    office.work()
    office.amo.change("leads", lead_id, price=3)
    office.relay.run(600)  # the hook about that is late
    assert len(office.texts(lead_id)) == 2
    office.hear(lead_id)
    office.over()
    assert len(office.texts(lead_id)) == 3
    assert office.lines(lead_id) == ["Бюджет: 2 → 3"]


@pytest.mark.parametrize("fault", LOST, ids=lambda fault: f"{fault.kind} {getattr(fault, 'when', '')}")
@pytest.mark.parametrize("path", ["/api/v4/leads", "/api/v4/users", "/api/v4/leads/pipelines", "/api/v4/account"])
def test_a_read_that_fails_is_repeated(office: Office, fault: faults.Fault, path: str) -> None:
    """Nothing has happened, so nothing is in doubt."""
    lead_id = office.add()
    office.hear(lead_id)
    if isinstance(fault, faults.Replaced):
        fault = fault.model_copy(update={"text": '{"_embedded":{}}'})
    office.amo.faults.add(fault.model_copy(update={"method": "GET", "path": path, "times": 1}))
    office.over()
    assert len(office.texts(lead_id)) == 1
    assert len(office.requests()) == 1


def test_an_outage_of_most_of_a_day_costs_no_note(office: Office) -> None:
    """D24: few requests go out meanwhile."""
    lead_id = office.add()
    office.hear(lead_id)
    office.amo.faults.add(faults.CodedError(times=None))
    office.relay.run(DAY - 3600)
    assert len(office.amo.received) < 500
    office.amo.faults.clear()
    office.over()
    assert len(office.texts(lead_id)) == 1


def test_what_waited_too_long_is_a_dead_letter_and_may_be_sent_again(office: Office) -> None:
    """D09: given up after a day; a redrive writes the note, once."""
    lead_id = office.add()
    office.hear(lead_id)
    office.amo.faults.add(faults.CodedError(times=None))
    office.relay.run(DAY + 2000)
    assert office.dead == ["gave_up"]
    assert office.relay.metrics["Lost"] == 1
    office.amo.faults.clear()
    letters = office.relay.dead_letters["notes"].messages
    for message in letters.values():
        office.relay.queues["notes"].send(message.body)
    letters.clear()
    office.over()
    assert len(office.texts(lead_id)) == 1


# One message must not cost the others


def test_d01_one_poisoned_card_of_ten_stays_alone(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """D01: an entity that our code stumbles over costs its own tries, and no other's."""
    ids = [entity.id for entity in office.amo.add("leads", name="Окна", copies=10)]

    def stumble(entity: Mapping[str, Any]) -> dict[str, Any]:
        return snapshot(entity if entity["id"] != ids[3] else {**entity, "custom_fields_values": [{"values": [1]}]})

    monkeypatch.setattr(add_notes, "snapshot", stumble)
    for lead_id in ids:
        office.hear(lead_id)
    (stays,) = office.work()
    assert json.loads(stays)["payload"]["id"] == ids[3]
    office.relay.run(DAY)
    assert office.dead == ["too_many_tries"]
    assert [lead_id for lead_id in ids if not office.texts(lead_id)] == [ids[3]]
    assert office.relay.metrics["UnhandledError"] == 5


@pytest.mark.parametrize("broken", ["amo#main#leads#", "effect#amocrm.note#main#leads#"])
def test_d01_an_item_that_nobody_can_read_stays_alone(office: Office, broken: str) -> None:
    """D01: in the table, of a card or of an effect."""
    ids = [entity.id for entity in office.amo.add("leads", name="Окна", copies=10)]
    for lead_id in ids:
        office.hear(lead_id, "add")
    key = broken + (str(ids[3]) if broken.startswith("amo") else f"{ids[3]}#add#0")
    office.relay.store.put(key, {"state": "LIMBO"}, replaces=None)
    (stays,) = office.work()
    assert json.loads(stays)["payload"]["id"] == ids[3]
    assert [lead_id for lead_id in ids if not office.texts(lead_id)] == [ids[3]]


def test_d01_a_card_whose_item_cannot_be_had_stays_alone(office: Office) -> None:
    """D01: a table that refuses one call of many costs one message its time."""
    ids = [entity.id for entity in office.amo.add("leads", name="Окна", copies=10)]
    for lead_id in ids:
        office.hear(lead_id)
    get = office.relay.store.get
    asked: list[str] = []

    def refuse(key: str) -> Any:
        if key == f"amo#main#leads#{ids[3]}" and not asked:
            asked.append(key)
            raise StorageError("throttled")
        return get(key)

    office.relay.store.get = refuse  # type: ignore[method-assign]
    (stays,) = office.work()
    assert json.loads(stays)["payload"]["id"] == ids[3]
    office.over()
    assert all(len(office.texts(lead_id)) == 1 for lead_id in ids)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("", "not_ours"),
        ("{}", "not_ours"),
        ('{"leads":{}}', "not_ours"),
        ({"kind": "cartelcrm.lead"}, "other_kind"),
        ({"payload": {}}, "other_kind"),
        ({"payload": {"account": "main", "card": "robots", "id": 1, "added": True}}, "other_kind"),
        ({"payload": {"account": "main", "card": "leads", "id": "1", "added": True}}, "other_kind"),
        ({"v": 2}, "not_ours"),
    ],
)
def test_d02_a_message_that_is_not_ours_is_a_dead_letter(office: Office, body: Any, reason: str) -> None:
    """D02: at once, with a reason, word for word; the others of its batch are done."""
    lead_id = office.add()
    office.hear(lead_id)
    (good,) = office.relay.queues["notes"].messages.values()
    text = body if isinstance(body, str) else json.dumps(json.loads(good.body) | body)
    office.relay.queues["notes"].send(text)
    assert office.work() == []
    assert [(message.body, message.reason) for message in office.relay.dead_letters["notes"].messages.values()] == [
        (text, reason)
    ]
    assert len(office.texts(lead_id)) == 1


def test_d03_when_all_fail_all_stay(office: Office) -> None:
    """D03: an answer, not an exception."""
    for entity in office.amo.add("leads", name="Окна", copies=10):
        office.hear(entity.id)
    office.relay.fail("store")
    assert len(office.work()) == 10
    assert not office.amo.received


def test_d08_nothing_is_begun_without_time_to_end_it(office: Office) -> None:
    """D08: handed back untouched."""
    office.hear(office.add())
    assert len(office.work(seconds=59)) == 1
    assert not office.relay.items("effect#")
    assert office.delay == 1


def test_d08_what_is_not_begun_in_time_waits_for_the_next_worker(office: Office) -> None:
    """D08: amoCRM is slow: what was not announced yet is handed back, and written by the next, once."""
    ids = [entity.id for entity in office.amo.add("leads", name="Окна", copies=200)]
    office.amo.switches.latency = 15
    for lead_id in ids:
        office.hear(lead_id)
    stay = office.work()
    assert 0 < len(stay) < 200
    assert office.relay.clock.now - START < 120
    assert office.effects()["SENT"] == 0
    office.over()
    assert all(len(office.texts(lead_id)) == 1 for lead_id in ids)


def test_an_account_that_is_not_configured_waits_and_costs_no_other(office: Office) -> None:
    """Somebody may still add it to relay.toml; an operator is told."""
    lead_id = office.add()
    event = HookEvent("lead", "add", "1", {})
    office.relay.queues["notes"].send(change_envelope("other", event, request_id="r", now=START).encode())
    office.hear(lead_id)
    assert len(office.work()) == 1
    assert len(office.texts(lead_id)) == 1
    assert office.relay.metrics["AttentionNeeded"] == 1


def test_without_secrets_messages_wait(office: Office) -> None:
    """Nothing can be asked; nothing is lost."""
    honest = office.relay.secret_source
    office.relay.secret_source = lambda: Secrets(amocrm={"main": AmoCrmSecrets(HOOK_TOKEN)})
    lead_id = office.add()
    office.hear(lead_id)
    assert len(office.work()) == 1
    office.relay.secret_source = honest
    office.over()
    assert len(office.texts(lead_id)) == 1


# Killed anywhere, raced anywhere, and with any call failing


@dataclass
class Boundaries:
    """Counts every call that leaves the process, to a port or to amoCRM, and acts before or after one of them."""

    office: Office
    place: int = 0
    after: bool = False
    act: Callable[[], None] = lambda: None
    calls: list[str] = field(default_factory=list)
    _acts: bool = False

    def __post_init__(self) -> None:
        relay = self.office.relay
        transport = relay.http_client._client._transport
        through, send = relay._through, transport.handle_request
        relay._through = lambda name, *args, **kwargs: self._do(name, lambda: through(name, *args, **kwargs))  # type: ignore[method-assign]
        transport.handle_request = lambda request: self._do(request.method, lambda: send(request))  # type: ignore[method-assign]
        relay.restart()

    def _do[T](self, name: str, call: Callable[[], T]) -> T:
        if self._acts:
            return call()
        self.calls.append(name)
        if len(self.calls) != self.place:
            return call()
        result = call() if self.after else None
        self._acts = True
        try:
            self.act()
        finally:
            self._acts = False
        return result if self.after else call()  # type: ignore[return-value]


@dataclass
class Story:
    """What happens in the office before the worker is called, and what the cards must show in the end."""

    prepare: Callable[[Office], list[int]]
    tells: list[list[list[str]]]
    """For each card, for each of its notes, the lines below the first."""
    turns: int = 1
    """Times that the worker is called while it may be disturbed, with as many minutes between them."""


def first_sight(office: Office) -> list[int]:
    lead_id = office.add()
    office.hear(lead_id, "add")
    return [lead_id]


def first_sight_of_a_change(office: Office) -> list[int]:
    lead_id = office.add()
    office.hear(lead_id)
    return [lead_id]


def one_change(office: Office) -> list[int]:
    lead_id = office.known()
    office.amo.change("leads", lead_id, price=2)
    office.hear(lead_id)
    return [lead_id]


def two_hooks(office: Office) -> list[int]:
    lead_id = office.known()
    office.amo.change("leads", lead_id, price=2)
    office.hear(lead_id, "status", "update")
    return [lead_id]


def several_cards(office: Office) -> list[int]:
    ids = [office.known() for _ in range(2)]
    office.amo.change("leads", *ids, price=2)
    for lead_id in ids:
        office.hear(lead_id)
    return ids


def one_bad_note(office: Office) -> list[int]:
    ids = [office.known() for _ in range(2)]
    office.amo.change("leads", *ids, price=2)
    for lead_id in ids:
        office.hear(lead_id)
    bad(office, ids[1])
    return ids


def a_lost_answer(office: Office) -> list[int]:
    ids = several_cards(office)
    office.amo.faults.add(faults.Timeout(when="after", method="POST"))
    return ids


def a_lost_request(office: Office) -> list[int]:
    ids = several_cards(office)
    office.amo.faults.add(faults.Timeout(method="POST"))
    return ids


def too_much_at_once(office: Office) -> list[int]:
    ids = several_cards(office)
    office.amo.switches.gateway_timeout_over = 1
    return ids


CHANGED = [[], ["Бюджет: 1 000 → 2"]]
STORIES = {
    "first sight": Story(first_sight, [[[]]]),
    "first sight of a change": Story(first_sight_of_a_change, [[[]]]),
    "one change": Story(one_change, [CHANGED]),
    "two hooks": Story(two_hooks, [CHANGED]),
    "several cards": Story(several_cards, [CHANGED] * 2),
    "one bad note": Story(one_bad_note, [CHANGED, [[]]]),
    "a lost answer": Story(a_lost_answer, [CHANGED] * 2, turns=2),
    "a lost request": Story(a_lost_request, [CHANGED] * 2, turns=2),
    "too much at once": Story(too_much_at_once, [CHANGED] * 2, turns=2),
}


def play(story: Story, place: int, act: Callable[[Office], None], *, after: bool = False) -> list[str]:
    """Tell a story that is disturbed at one call; check the end; return the calls that were made."""
    with Relay() as relay:
        office = Office(relay)
        ids = story.prepare(office)
        boundaries = Boundaries(office, place, after=after, act=lambda: act(office))
        for _ in range(story.turns):
            relay.work("notes")
            relay.clock.sleep(1000)
        told = list(boundaries.calls)
        boundaries.place = 0
        relay.restart()
        office.over()
        context = f"{'after' if after else 'before'} call {place} of {told}"
        assert [[text.splitlines()[1:] for text in office.texts(lead_id)] for lead_id in ids] == story.tells, context
        assert set(office.effects()) <= {"CONFIRMED", "REJECTED"}, context
        assert busiest_second(office) <= 7
        office.amo.change("leads", *ids, price=3)
        for lead_id in ids:
            office.hear(lead_id)
        office.over()
        for lead_id in set(ids) - office.bad:
            assert office.lines(lead_id)[0].endswith(" → 3"), context
        return told


def everywhere(story: Story, act: Callable[[Office], None]) -> None:
    calls = play(story, 0, act)
    assert {"store.put", "store.get", "GET", "POST"} <= set(calls)
    for place in range(1, len(calls) + 1):
        for after in (False, True):
            play(story, place, act, after=after)


def die(_: Office) -> None:
    raise Crash


@pytest.mark.everywhere
@pytest.mark.parametrize("name", STORIES)
def test_d04_a_worker_killed_anywhere_writes_each_note_once(name: str) -> None:
    """D04: before and after each call to the table, the queue and amoCRM; redelivery ends it as if nothing was."""
    everywhere(STORIES[name], die)


@pytest.mark.everywhere
@pytest.mark.parametrize("name", STORIES)
def test_an_error_of_any_one_call_to_aws_costs_no_note(name: str) -> None:
    """Each call to the table and the queues fails once, before or after its effect."""

    def tell(place: int, *, after: bool) -> list[str]:
        def fail(office: Office) -> None:
            raise StorageError("throttled")

        return play(STORIES[name], place, fail, after=after)

    calls = tell(0, after=False)
    for place, call in enumerate(calls, 1):
        if "." in call:
            for after in (False, True):
                tell(place, after=after)


@pytest.mark.everywhere
@pytest.mark.parametrize("outage", ["store", "store.put", "store.get", "queue"])
@pytest.mark.parametrize("name", STORIES)
def test_an_outage_that_begins_at_any_call_costs_no_note(name: str, outage: str) -> None:
    """The table or the queue is down from there on, for an hour."""

    def fail(office: Office) -> None:
        office.relay.fail(outage)

    def tell(place: int) -> list[str]:
        def act(office: Office) -> None:
            fail(office)
            # It is back when the worker has come to its end, and been called again in vain.
            office.relay.before_call = lambda _: office.relay.mend() if office.relay.clock.now > START + 900 else None

        return play(STORIES[name], place, act)

    calls = tell(0)
    for place in range(1, len(calls) + 1, 4):
        tell(place)


def second_worker(office: Office) -> None:
    """Another worker has a message about the same cards, from the same change."""
    relay = office.relay
    for lead_id in list(office.amo.entities.present["leads"]):
        office.hear(lead_id, "responsible")
    queue = relay.queues["notes"]
    batch = queue.receive(limit=250, visibility=900)
    relay.restart()
    with suppress(Crash):
        answer = relay.invoke("amo_notes", records(batch))
        kept = {failure["itemIdentifier"] for failure in answer["batchItemFailures"]}
        for message in batch:
            if message.id not in kept:
                queue.delete(message.id)


@pytest.mark.everywhere
@pytest.mark.parametrize("name", sorted(STORIES.keys() - {"first sight", "one bad note"}))
def test_d05_two_workers_at_one_card_write_each_change_once(name: str) -> None:
    """D05: the second comes, with another message about the same change, at any call of the first."""
    everywhere(STORIES[name], second_worker)


def same_message(office: Office) -> None:
    """Another worker has the very messages that the first one has."""
    messages = list(office.relay.queues["notes"].messages.values())
    office.relay.restart()
    office.relay.invoke("amo_notes", records(messages))


@pytest.mark.everywhere
@pytest.mark.parametrize("name", STORIES)
def test_d05_the_same_messages_at_two_workers_are_worked_off_once(name: str) -> None:
    """D05: SQS delivers at least once, also while the first copy is being worked off."""
    everywhere(STORIES[name], same_message)


def prices(office: Office, lead_id: int) -> list[tuple[str, str]]:
    """The changes of the price that a card tells of, as (before, after)."""
    found = []
    for text in office.texts(lead_id):
        for line in text.splitlines()[1:]:
            before, _, after = line.removeprefix("Бюджет: ").partition(" → ")
            found.append((before, after))
    return found


def assert_whole(office: Office, lead_id: int, first: str = "1 000") -> None:
    """Assert that the notes lead from the first price to the present one without a gap, a step back or a repeat."""
    told = prices(office, lead_id)
    steps = [first, *(after for _, after in told)]
    assert told == list(pairwise(steps))
    assert steps[-1] == f"{office.amo.entities.present['leads'][lead_id]['price']:,}".replace(",", " ")
    assert len(set(steps)) == len(steps)


@pytest.mark.everywhere
def test_a_change_at_any_call_of_a_worker_is_told_once() -> None:
    """Somebody changes the card, and another worker hears of it and writes, in the middle of the first one's work.

    No note tells a state that was over when the card last got one.
    """

    def tell(place: int, *, after: bool) -> list[str]:
        with Relay() as relay:
            office = Office(relay)
            (lead_id,) = one_change(office)

            def act() -> None:
                office.amo.change("leads", lead_id, price=3)
                second_worker(office)

            boundaries = Boundaries(office, place, after=after, act=act)
            relay.work("notes")
            told = list(boundaries.calls)
            office.over()
            assert_whole(office, lead_id)
            return told

    for place in range(1, len(tell(0, after=False)) + 1):
        for after in (False, True):
            tell(place, after=after)


def test_d06_a_worker_whose_lease_is_over_while_it_writes_does_no_harm() -> None:
    """D06: its request arrives after another has written the same: the card shows one, and its report is fenced off."""
    with Relay() as relay:
        office = Office(relay)
        (lead_id,) = one_change(office)
        (message,) = relay.queues["notes"].messages.values()
        transport = relay.http_client._client._transport
        send = transport.handle_request

        def meanwhile(request: httpx.Request) -> httpx.Response:
            if request.method == "POST":
                transport.handle_request = send  # type: ignore[method-assign]
                relay.clock.sleep(1000)
                relay.restart()
                assert relay.invoke("amo_notes", records([message])) == {"batchItemFailures": []}
            return send(request)

        transport.handle_request = meanwhile  # type: ignore[method-assign]
        assert len(office.work()) == 1
        assert "lease lost" in {line["message"] for line in relay.logs}
        assert relay.amo.card("leads", lead_id).texts[1:] == [relay.amo.card("leads", lead_id).texts[-1]]
        office.over()
        assert len(relay.amo.card("leads", lead_id).texts) == 2
        assert office.effects() == Counter(CONFIRMED=2)


@dataclass
class Skewed:
    """A clock that is wrong by some seconds."""

    clock: Clock
    skew: float

    def time(self) -> float:
        return self.clock.time() + self.skew

    def sleep(self, seconds: float, /) -> None:
        self.clock.sleep(seconds)


def skew(relay: Relay, seconds: float) -> None:
    """Make the workers' clock wrong from now on."""
    right = relay._runtimes["notes"]
    relay._runtimes["notes"] = replace(right, ports=replace(right.ports, clock=Skewed(relay.clock, seconds)))


@pytest.mark.parametrize("wrong", [600, -600])
@pytest.mark.parametrize("same", [True, False], ids=["same message", "another message"])
def test_d07_a_worker_with_a_wrong_clock_makes_no_second_note_in_a_card(wrong: float, same: bool) -> None:
    """D07: it comes at any call of the first, whose lease and whose note it takes for long over."""

    def tell(place: int, *, after: bool) -> list[str]:
        with Relay() as relay:
            office = Office(relay)
            (lead_id,) = one_change(office)

            def act() -> None:
                if not same:
                    office.hear(lead_id, "status")
                messages = list(relay.queues["notes"].messages.values())[0 if same else 1 :]
                relay.restart()
                skew(relay, wrong)
                relay.invoke("amo_notes", records(messages))
                relay.restart()

            boundaries = Boundaries(office, place, after=after, act=act)
            relay.work("notes")
            told = list(boundaries.calls)
            relay.run(3 * 3600)
            assert not relay.queues["notes"].messages
            card = relay.amo.card("leads", lead_id)
            assert [text.splitlines()[1:] for text in card.texts] == CHANGED, (place, after, told)
            return told

    for place in range(1, len(tell(0, after=False)) + 1):
        for after in (False, True):
            tell(place, after=after)


def raising(error: BaseException) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


TURNS = st.one_of(
    st.just("change"),
    st.sampled_from([1, 40, 1000]),
    st.tuples(st.just("kill"), st.integers(1, 40), st.booleans()),
    st.tuples(st.just("error"), st.integers(1, 40), st.booleans()),
    st.sampled_from(
        [
            faults.Timeout(when="after", method="POST"),
            faults.Timeout(method="POST"),
            faults.Reset(when="after", method="POST"),
            faults.CodedError(method="POST"),
            faults.RateLimited(method="POST"),
            faults.Html(status=504, when="after", method="POST"),
            faults.Reset(method="GET"),
            faults.CutShort(),
        ]
    ),
)


@given(st.lists(TURNS, max_size=14))
@settings(max_examples=60)
def test_whatever_goes_wrong_in_whatever_order_the_notes_tell_all_that_happened(turns: list[Any]) -> None:
    """Changes, crashes, errors, lost answers: each step of the price is told once, and in its order."""
    with Relay() as relay:
        office = Office(relay)
        lead_id = office.known()
        boundaries = Boundaries(office)
        price = 1000
        for turn in turns:
            match turn:
                case "change":
                    price += 1000
                    office.amo.change("leads", lead_id, price=price)
                    office.hear(lead_id, "update", "status")
                case int(seconds):
                    relay.clock.sleep(seconds)
                case "kill" | "error" as how, place, after:
                    boundaries.calls.clear()
                    boundaries.place, boundaries.after = place, after
                    boundaries.act = raising(Crash() if how == "kill" else StorageError("throttled"))
                case fault:
                    relay.amo.faults.add(fault)
            relay.work("notes")
        boundaries.place = 0
        relay.amo.faults.clear()
        relay.restart()
        office.over(6 * 3600)
        assert_whole(office, lead_id)


# A card and its notes, from the hook to the end


@pytest.mark.parametrize(
    "hooks", [frozenset(), frozenset({"note"}), frozenset({"update"}), frozenset({"note", "update"})]
)
@pytest.mark.parametrize("acts_as_user", [False, True])
@pytest.mark.parametrize("own_user_ids", [(), (ADMIN,)])
def test_b22_nothing_goes_round_for_ever(
    office: Office, hooks: frozenset[Any], acts_as_user: bool, own_user_ids: tuple[int, ...]
) -> None:
    """B22: a note that amoCRM tells of again makes one round at most, whoever it says has written it."""
    office.relay.configure_amo(own_user_ids=own_user_ids)
    office.amo.switches.note_hooks = hooks
    office.amo.switches.api_acts_as_user = acts_as_user
    office.amo.subscribe(URL, *SUBSCRIBED, "note_lead")
    (entity,) = office.amo.add("leads", by=MANAGER, name="Окна", price=1)
    office.over()
    office.amo.change("leads", entity.id, by=MANAGER, price=2)
    office.over()
    assert [text.splitlines()[1:] for text in office.texts(entity.id)] == [[], ["Бюджет: 1 → 2"]]
    assert len(office.requests()) == 2


def test_hooks_that_were_answered_badly_come_again_and_make_one_note(office: Office) -> None:
    """B25: both stores down for ten minutes; amoCRM repeats, and the card has one note a change."""
    office.listen()
    office.relay.fail("queue")
    office.relay.fail("store")
    lead_id = office.add()
    office.relay.run(200)
    assert office.texts(lead_id) == []
    office.relay.mend()
    office.over()
    assert len(office.texts(lead_id)) == 1
