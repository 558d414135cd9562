"""Every operation of every service of the amoCRM client against the sandbox, by both clients.

A scenario is written once, in the words of the asynchronous client, and run by either. It has to use all operations
of its service: one that is added without a scenario, or a service without an answer in the sandbox, fails.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from io import BytesIO
from typing import Any, override

import pytest

from crm_relay.amocrm import filters as f
from crm_relay.amocrm import models as m
from crm_relay.amocrm.client import Problem, ValidationFailed
from crm_relay.amocrm.crm import AmoCrm, AsyncAmoCrm
from crm_relay.amocrm.notes import CallParams
from crm_relay.amocrm.services import NotAllWritten, UnknownField
from crm_relay.amocrm.session import Stream, Work
from crm_relay.outcomes import NotExecuted, OutcomeUnknown, Rejected
from tests.amocrm import Office
from workbench.amocrm_table import accessors, operations_of
from workbench.sandboxes.amocrm.account import PIPELINES, USERS
from workbench.sandboxes.faults import Reset

ADMIN, MANAGER = (user.id for user in USERS)
MAIN = PIPELINES[0]
HOOK = "https://relay.invalid/amo/hook"


class Recorder:
    """Remembers which operations of which services were carried out."""

    def __init__(self) -> None:
        self.used: set[tuple[str, str]] = set()

    def saw(self, work: Any) -> None:
        owner = work.gi_frame.f_locals["self"]
        self.used.add((type(owner).__name__, work.__name__))


class RecordedCrm(Recorder, AmoCrm):
    """The synchronous client, seen as an asynchronous one."""

    def __init__(self, **options: Any) -> None:
        Recorder.__init__(self)
        AmoCrm.__init__(self, **options)

    @override
    def carry_out(self, work: Work[Any]) -> Any:
        self.saw(work)

        async def carried() -> Any:
            return AmoCrm.carry_out(self, work)

        return carried()

    @override
    def hand_out(self, stream: Stream[Any]) -> Any:
        self.saw(stream)

        async def handed() -> AsyncIterator[Any]:
            for item in AmoCrm.hand_out(self, stream):
                yield item

        return handed()


class RecordedAsyncCrm(Recorder, AsyncAmoCrm):
    """The asynchronous client."""

    def __init__(self, **options: Any) -> None:
        Recorder.__init__(self)
        AsyncAmoCrm.__init__(self, **options)

    @override
    def carry_out(self, work: Work[Any]) -> Any:
        self.saw(work)
        return AsyncAmoCrm.carry_out(self, work)

    @override
    def hand_out(self, stream: Stream[Any]) -> Any:
        self.saw(stream)
        return AsyncAmoCrm.hand_out(self, stream)


@pytest.fixture
def office() -> Office:
    return Office()


@pytest.fixture(params=["sync", "async"])
def crm(request: pytest.FixtureRequest, office: Office) -> Any:
    """A client of either kind; typed as neither, since a scenario awaits what both give."""
    if request.param == "sync":
        return RecordedCrm(**office.options)
    return RecordedAsyncCrm(**office.async_options)


async def all_of[T](found: AsyncIterator[T]) -> list[T]:
    return [item async for item in found]


# Scenarios


async def kept(service: Any, new: Any, *, change: Callable[[Any], None], **with_: Any) -> Any:
    """List, get, add, update, sync: what most services can do."""
    one = await service.add_one(new())
    (two, three) = await service.add([new(), new()])
    key = service.row.id
    ids = [getattr(item, key) for item in (one, two, three)]
    assert len(set(ids)) == 3
    listed = await all_of(service.list())
    assert {getattr(item, key) for item in listed} >= set(ids)
    page = await service.page()
    assert page.items
    assert await service.previous_page(page) is None
    assert await service.next_page(page) is None or page.has_next
    read = await service.get(ids[0], **with_)
    change(read)
    if hasattr(service, "update_one"):
        await service.update_one(read)
        assert read.changes() == {}
        assert (await service.get(ids[0])).written().items() >= {}.items()
    if hasattr(service, "update"):
        change(two)
        change(three)
        await service.update([two, three])
        assert two.changes() == {}
    before = one.updated_at if "updated_at" in type(one).model_fields else None
    assert await service.sync(one) is one
    assert one.changes() == {}
    assert before is None or one.updated_at >= before
    return one


async def linked(service: Any, item: Any, other: int, kind: str) -> None:
    link = m.Link(to_entity_id=other, to_entity_type=kind)
    assert [made.to_entity_id for made in await service.link(item, [link])] == [other]
    assert [made.to_entity_id for made in await service.links(item, f.LinksFilter(to_entity_type=kind))] == [other]
    await service.unlink(item, [link])
    assert await service.links(item) == []


def named(model: Any, **more: Any) -> Callable[[], Any]:
    names = iter(f"Имя {number}" for number in range(100))
    return lambda: model(name=next(names), **more)


def renamed(item: Any) -> None:
    item.name = f"{item.name}!"


async def account(crm: Any, office: Office) -> None:
    read = await crm.account.get(with_=["datetime_settings", "users_groups", "task_types", "drive_url", "uuid"])
    assert read.subdomain == "example"
    assert read.datetime_settings.timezone == "Europe/Moscow"
    assert all(kind.name for kind in read.task_types)
    assert all(isinstance(group, m.UsersGroup) for group in read.users_groups)


async def leads(crm: Any, office: Office) -> None:
    lead = await kept(crm.leads, named(m.Lead), change=renamed, with_=["contacts"])
    contact = await crm.contacts.add_one(m.Contact(name="Оля"))
    await linked(crm.leads, lead, contact.id, "contacts")
    made = await crm.leads.add_one_complex(
        m.Lead(
            name="Окна",
            price=1500,
            contacts=[m.Contact(first_name="Оля", custom_fields_values=_phone("+380501234567"))],
            companies=[m.Company(name="Окна и двери")],
        )
    )
    assert made.contact_id
    assert made.company_id
    (first, second) = await crm.leads.add_complex([m.Lead(name="а"), m.Lead(name="б")])
    assert first.id != second.id


def _phone(number: str) -> list[dict[str, Any]]:
    return [{"field_code": "PHONE", "values": [{"value": number, "enum_code": "WORK"}]}]


async def contacts(crm: Any, office: Office) -> None:
    contact = await kept(crm.contacts, named(m.Contact), change=renamed)
    lead = await crm.leads.add_one(m.Lead(name="Окна"))
    await linked(crm.contacts, contact, lead.id, "leads")
    chat = "f7432b58-39ed-4ee3-a39a-9bae88989406"
    (link,) = await crm.contacts.link_chats([m.ChatLink(contact_id=contact.id, chat_id=chat)])
    assert link.chat_id == chat
    (read,) = await crm.contacts.chats(f.ChatLinksFilter(contact_id=contact.id))
    assert (read.contact_id, read.chat_id) == (contact.id, chat)


async def companies(crm: Any, office: Office) -> None:
    company = await kept(crm.companies, named(m.Company), change=renamed)
    lead = await crm.leads.add_one(m.Lead(name="Окна"))
    await linked(crm.companies, company, lead.id, "leads")


async def customers(crm: Any, office: Office) -> None:
    assert await crm.customers.set_mode("segments") == "segments"
    assert await crm.customers.set_mode("periodicity") == "periodicity"
    new = named(m.Customer, next_date=int(office.clock.now) + 86400)
    customer = await kept(crm.customers, new, change=renamed)
    contact = await crm.contacts.add_one(m.Contact(name="Оля"))
    await linked(crm.customers, customer, contact.id, "contacts")


async def a_customer(crm: Any, office: Office) -> m.Customer:
    await crm.customers.set_mode("periodicity")
    made: m.Customer = await crm.customers.add_one(m.Customer(name="Оля", next_date=int(office.clock.now) + 86400))
    return made


async def customers_bonus_points(crm: Any, office: Office) -> None:
    customer = await a_customer(crm, office)
    points = crm.customers_bonus_points(customer.id)
    assert await points.earn(70) == 70
    assert await points.redeem(30) == 40


async def customers_segments(crm: Any, office: Office) -> None:
    segment = await crm.customers_segments.add_one(m.Segment(name="Свои", color="10599d"))
    assert [one.id for one in await all_of(crm.customers_segments.list())] == [segment.id]
    page = await crm.customers_segments.page()
    assert (await crm.customers_segments.next_page(page), await crm.customers_segments.previous_page(page)) == (
        None,
        None,
    )
    segment.name = "Наши"
    await crm.customers_segments.update_one(segment)
    assert (await crm.customers_segments.get(segment.id)).name == "Наши"
    await crm.customers_segments.sync(segment)


async def customers_statuses(crm: Any, office: Office) -> None:
    status = await kept(crm.customers_statuses, named(m.CustomerStatus), change=renamed)
    await crm.customers_statuses.delete_one(status)
    assert await crm.customers_statuses.get(status.id) is None


async def transactions(crm: Any, office: Office) -> None:
    customer = await a_customer(crm, office)
    service = crm.transactions(customer.id, accrue_bonus=True)
    bought = await kept(service, lambda: m.Transaction(price=100), change=lambda _: None)
    everybodys = await all_of(crm.transactions().list())
    assert {one.customer_id for one in everybodys} == {customer.id}
    await service.delete_one(bought)
    assert await service.get(bought.id) is None or (await service.get(bought.id)).is_deleted


async def catalogs(crm: Any, office: Office) -> None:
    await kept(crm.catalogs, named(m.Catalog, type="regular"), change=renamed)


async def catalog_elements(crm: Any, office: Office) -> None:
    catalog = await crm.catalogs.add_one(m.Catalog(name="Товары"))
    service = crm.catalog_elements(catalog.id)
    element = await kept(service, named(m.CatalogElement), change=renamed)
    lead = await crm.leads.add_one(m.Lead(name="Окна"))
    await linked(service, element, lead.id, "leads")


async def custom_fields(crm: Any, office: Office) -> None:
    field = await kept(crm.custom_fields("leads"), named(m.CustomField, type="text"), change=renamed)
    await crm.custom_fields("leads").delete_one(field)
    assert await crm.custom_fields("leads").get(field.id) is None
    catalog = await crm.catalogs.add_one(m.Catalog(name="Товары"))
    for entity in ("contacts", "companies", "customers", "segments", f"catalogs:{catalog.id}"):
        made = await crm.custom_fields(entity).add_one(m.CustomField(name="Ещё", type="text"))
        assert (await crm.custom_fields(entity).get(made.id)).name == "Ещё"


async def custom_field_groups(crm: Any, office: Office) -> None:
    service = crm.custom_field_groups("leads")
    group = await kept(service, named(m.CustomFieldGroup), change=renamed)
    await service.delete_one(group)
    assert await service.get(group.id) is None


async def notes(crm: Any, office: Office) -> None:
    lead = await crm.leads.add_one(m.Lead(name="Окна"))
    service = crm.notes("leads")
    note = await service.add_one(m.Note.common(lead.id, "Привет"))
    spoken = CallParams(uniq="7", duration=5, source="relay", link="https://example.com/7.mp3", phone="+380501234567")
    call = m.Note(entity_id=lead.id, note_type="call_in", params=spoken)
    await service.add([call])
    note.params.text = "Здравствуйте"
    await service.update_one(note)
    spoken.duration = 7
    await service.update([call])
    assert (await service.get(note.id)).params.text == "Здравствуйте"
    assert (await service.get(call.id, entity_id=lead.id)).params.duration == 7
    assert await service.sync(note) is note
    assert [one.id for one in await all_of(service.of(lead.id))] == [note.id, call.id]
    page = await service.page(f.NotesFilter(note_type="call_in"))
    assert [one.id for one in page] == [call.id]
    assert (await service.next_page(page), await service.previous_page(page)) == (None, None)
    await service.pin(note.id)
    assert {one.id: one.is_pinned for one in await all_of(service.list(with_=["is_pinned"]))} == {
        note.id: True,
        call.id: False,
    }
    await service.unpin(note.id)


async def tags(crm: Any, office: Office) -> None:
    service = crm.tags("leads")
    tag = await service.add_one(m.Tag(name="vip"))
    (other,) = await service.add([m.Tag(name="новый")])
    tag.color = m.TAG_COLORS.split()[3]
    await service.update([tag])
    other.name = "старый"
    await service.update_one(other)
    assert [(one.name, one.color) for one in await all_of(service.list(f.TagsFilter(id=tag.id)))] == [("vip", "D1A4DC")]
    page = await service.page()
    assert {one.name for one in page} == {"vip", "старый"}
    assert (await service.next_page(page), await service.previous_page(page)) == (None, None)


async def tasks(crm: Any, office: Office) -> None:
    def change(task: m.Task) -> None:
        task.is_completed = True
        task.result = {"text": "Готово"}

    await kept(crm.tasks, lambda: m.Task(text="Позвонить", complete_till=1_800_000_000), change=change)


async def links(crm: Any, office: Office) -> None:
    lead = await crm.leads.add_one(m.Lead(name="Окна"))
    contact = await crm.contacts.add_one(m.Contact(name="Оля"))
    service = crm.links("leads")
    link = m.Link(entity_id=lead.id, entity_type="leads", to_entity_id=contact.id, to_entity_type="contacts")
    assert len(await service.add([link])) == 1
    where = f.EntitiesLinksFilter(entity_id=lead.id)
    assert [one.to_entity_id for one in await all_of(service.list(where))] == [contact.id]
    page = await service.page(where)
    assert (await service.next_page(page), await service.previous_page(page)) == (None, None)
    await service.delete([link])
    assert await all_of(service.list(where)) == []


async def users(crm: Any, office: Office) -> None:
    rights = m.Rights(leads={"view": "A", "edit": "A", "add": "A", "delete": "D", "export": "D"})
    new = m.User(name="Пётр", email="petr@example.com", password="a-long-password", rights=rights)
    user = await crm.users.add_one(new)
    (other,) = await crm.users.add(
        [m.User(name="Анна", email="anna@example.com", password="a-password", rights=rights)]
    )
    assert {one.id for one in await all_of(crm.users.list(with_=["role"]))} == {ADMIN, MANAGER, user.id, other.id}
    page = await crm.users.page()
    assert (await crm.users.next_page(page), await crm.users.previous_page(page)) == (None, None)
    await crm.users.deactivate([user.id, other.id])
    assert (await crm.users.get(user.id)).rights.is_active is False
    await crm.users.activate([user.id])
    await crm.users.sync(user)
    assert user.rights.is_active is True


async def roles(crm: Any, office: Office) -> None:
    role = await kept(crm.roles, named(m.Role, rights=m.Rights(leads={"view": "A"})), change=renamed)
    await crm.roles.delete_one(role)
    assert await crm.roles.get(role.id) is None


async def pipelines(crm: Any, office: Office) -> None:
    new = named(m.Pipeline, sort=10, is_main=False, is_unsorted_on=True, statuses=[m.Status(name="Первый", sort=10)])
    pipeline = await kept(crm.pipelines, new, change=renamed)
    assert "Первый" in {status.name for status in pipeline.statuses}
    await crm.pipelines.delete_one(pipeline)
    assert await crm.pipelines.get(pipeline.id) is None


async def statuses(crm: Any, office: Office) -> None:
    service = crm.statuses(MAIN.id)
    status = await kept(service, named(m.Status, sort=50), change=renamed)
    await service.delete_one(status)
    assert await service.get(status.id) is None


async def loss_reasons(crm: Any, office: Office) -> None:
    reason = await kept(crm.loss_reasons, named(m.LossReason), change=renamed)
    await crm.loss_reasons.delete_one(reason)
    assert await crm.loss_reasons.get(reason.id) is None


def an_unsorted(category: str = "forms") -> m.Unsorted:
    metadata = {
        "forms": {
            "form_id": "1",
            "form_name": "Заявка",
            "form_page": "https://example.com",
            "form_sent_at": 1_700_000_000,
            "ip": "192.0.2.1",
            "referer": "https://example.com",
        },
        "sip": {
            "from": "+380501234567",
            "phone": "101",
            "called_at": 1_700_000_000,
            "duration": 7,
            "link": "https://example.com/a.mp3",
            "service_code": "relay",
            "uniq": "u-7",
            "is_call_event_needed": True,
        },
    }[category]
    return m.Unsorted(
        category=category,
        source_name="Сайт",
        source_uid="a1fee7c0fc436088e64ba2e8822ba2b3",
        pipeline_id=MAIN.id,
        created_at=1_700_000_000,
        metadata=m.METADATA[category].model_validate(metadata),
        leads=[m.Lead(name="Окна", price=100)],
        contacts=[m.Contact(name="Оля", custom_fields_values=_phone("+380501234567"))],
    )


async def unsorted(crm: Any, office: Office) -> None:
    service = crm.unsorted
    form = await service.add_one(an_unsorted())
    (call, other) = await service.add([an_unsorted("sip"), an_unsorted()])
    assert len({form.uid, call.uid, other.uid}) == 3
    assert {one.uid for one in await all_of(service.list(f.UnsortedFilter(category="sip")))} == {call.uid}
    page = await service.page()
    assert len(page) == 3
    assert (await service.next_page(page), await service.previous_page(page)) == (None, None)
    assert (await service.get(form.uid)).source_name == "Сайт"
    await service.sync(form)
    accepted = await service.accept(form.uid, user_id=ADMIN, status_id=MAIN.statuses[0].id)
    assert accepted.leads[0].id
    declined = await service.decline(call.uid, user_id=ADMIN)
    assert declined.uid == call.uid
    chat = office.a_chat()
    lead = await crm.leads.add_one(m.Lead(name="Окна"))
    assert (await service.link(chat, "leads", lead.id, user_id=ADMIN)).uid == chat
    summary = await service.summary(f.UnsortedSummaryFilter(pipeline_id=MAIN.id))
    assert (summary.accepted, summary.declined) >= (1, 1)


async def calls(crm: Any, office: Office) -> None:
    await crm.contacts.add_one(m.Contact(name="Оля", custom_fields_values=_phone("+380501234567")))

    def call() -> m.Call:
        return m.Call(direction="inbound", duration=7, source="relay", phone="+380501234567", call_status=4)

    one = await crm.calls.add_one(call())
    assert one.entity_id
    assert len(await crm.calls.add([call(), call()])) == 2


async def events(crm: Any, office: Office) -> None:
    lead = await crm.leads.add_one(m.Lead(name="Окна"))
    where = f.EventsFilter(entity="lead", entity_id=lead.id, type="lead_added")
    (event,) = await all_of(crm.events.list(where, with_=["lead_name"]))
    assert (event.type, event.entity_id) == ("lead_added", lead.id)
    page = await crm.events.page()
    assert (await crm.events.next_page(page), await crm.events.previous_page(page)) == (None, None)
    assert (await crm.events.get(event.id)).id == event.id
    await crm.events.sync(event)


async def event_types(crm: Any, office: Office) -> None:
    found = await all_of(crm.event_types.list(f.EventTypesFilter(language_code="ru")))
    assert "lead_added" in {one.key for one in found}
    page = await crm.event_types.page()
    assert (await crm.event_types.next_page(page), await crm.event_types.previous_page(page)) == (None, None)


async def webhooks(crm: Any, office: Office) -> None:
    assert (await crm.webhooks.subscribe(HOOK, ["add_lead"])).destination == HOOK
    (hook,) = await all_of(crm.webhooks.list(f.WebhooksFilter(destination=HOOK)))
    assert hook.settings == ["add_lead"]
    page = await crm.webhooks.page()
    assert (await crm.webhooks.next_page(page), await crm.webhooks.previous_page(page)) == (None, None)
    await crm.webhooks.unsubscribe(HOOK)
    assert await all_of(crm.webhooks.list()) == []


async def widgets(crm: Any, office: Office) -> None:
    (widget, *_) = await all_of(crm.widgets.list())
    page = await crm.widgets.page()
    assert (await crm.widgets.next_page(page), await crm.widgets.previous_page(page)) == (None, None)
    await crm.widgets.install(widget.code, {"token": "t"})
    assert (await crm.widgets.get(widget.code)).is_active_in_account is True
    await crm.widgets.uninstall(widget.code)
    await crm.widgets.sync(widget)
    assert widget.is_active_in_account is False


async def products(crm: Any, office: Office) -> None:
    assert (await crm.products.update_settings(is_enabled=True)).is_enabled is True
    assert (await crm.products.settings()).is_enabled is True


async def talks(crm: Any, office: Office) -> None:
    talk_id = office.a_talk()
    assert [one.talk_id for one in await all_of(crm.talks.list())] == [talk_id]
    page = await crm.talks.page()
    assert (await crm.talks.next_page(page), await crm.talks.previous_page(page)) == (None, None)
    talk = await crm.talks.get(talk_id)
    await crm.talks.close(talk_id, force=True)
    await crm.talks.sync(talk)
    assert talk.is_in_work is False


async def sources(crm: Any, office: Office) -> None:
    ids = iter(range(100))
    source = await kept(crm.sources, lambda: m.Source(name="Продажи", external_id=f"s-{next(ids)}"), change=renamed)
    assert [one.id for one in await all_of(crm.sources.list(f.SourcesFilter(external_id="s-0")))] == [source.id]
    await crm.sources.delete_one(source)
    await crm.sources.delete(await all_of(crm.sources.list()))
    assert await all_of(crm.sources.list()) == []


async def website_buttons(crm: Any, office: Office) -> None:
    service = crm.website_buttons
    button = await service.create(MAIN.id, ["example.com"], name="Кнопка", is_used_in_app=False)
    await service.update(button.source_id, add=["example.org"], name="Другая")
    await service.add_online_chat(button.source_id)
    assert [one.source_id for one in await all_of(service.list(with_=["scripts"]))] == [button.source_id]
    page = await service.page()
    assert (await service.next_page(page), await service.previous_page(page)) == (None, None)
    read = await service.get(button.source_id, with_=["scripts"])
    assert read.name == "Другая"
    await service.sync(read)


async def short_links(crm: Any, office: Office) -> None:
    contact = await crm.contacts.add_one(m.Contact(name="Оля"))
    owner = {"entity_id": contact.id, "entity_type": "contacts"}
    one = await crm.short_links.add_one(m.ShortLink(url="https://example.com/1", metadata=owner))
    (two, three) = await crm.short_links.add(
        [m.ShortLink(url=f"https://example.com/{number}", metadata=owner) for number in (2, 3)]
    )
    assert len({one.url, two.url, three.url}) == 3
    listed = await all_of(crm.short_links.list())
    assert len(listed) == 3
    page = await crm.short_links.page()
    assert (await crm.short_links.next_page(page), await crm.short_links.previous_page(page)) == (None, None)
    read = await crm.short_links.get(page.items[0].id)
    assert read is not None
    assert await crm.short_links.sync(read) is read


async def chat_templates(crm: Any, office: Office) -> None:
    service = crm.chat_templates
    ids = iter(range(100))

    def new() -> m.ChatTemplate:
        number = next(ids)
        return m.ChatTemplate(name=f"Шаблон {number}", content="Здравствуйте", external_id=f"t-{number}", type="waba")

    template = await kept(service, new, change=renamed, with_=["reviews"])
    (review,) = await service.send_on_review(template.id)
    said = await service.update_review_status(
        template.id, m.Review(id=review.id, source_id=review.source_id, status="approved", reject_reason="")
    )
    assert said.status == "approved"
    await service.delete_one(template)
    await service.delete([one.id for one in await all_of(service.list())])
    assert await all_of(service.list()) == []


async def entity_subscriptions(crm: Any, office: Office) -> None:
    lead = await crm.leads.add_one(m.Lead(name="Окна"))
    service = crm.entity_subscriptions("leads", lead.id)
    found = await all_of(service.list())
    assert found
    assert all(one.subscriber_id for one in found)
    page = await service.page()
    assert (await service.next_page(page), await service.previous_page(page)) == (None, None)


async def currencies(crm: Any, office: Office) -> None:
    found = await all_of(crm.currencies.list(f.CurrenciesFilter(limit=2)))
    assert "RUB" in {one.code for one in found}
    page = await crm.currencies.page(f.CurrenciesFilter(limit=2))
    following = await crm.currencies.next_page(page)
    assert following.items[0].code == found[2].code
    assert [one.code for one in await crm.currencies.previous_page(following)] == [one.code for one in page]


async def files(crm: Any, office: Office) -> None:
    content = bytes(range(256)) * 4096
    file = await crm.files.upload(BytesIO(content), "план.bin", with_preview=False, created_by=ADMIN)
    small = await crm.files.upload(b"text", "a.txt", "text/plain")
    newer = await crm.files.upload(b"text 2", "a.txt", "text/plain", new_version_of=small.uuid)
    assert (file.size, newer.uuid) == (len(content), small.uuid)
    assert {one.uuid for one in await all_of(crm.files.list(f.FilesFilter(name="a")))} >= {small.uuid}
    page = await crm.files.page()
    assert (await crm.files.next_page(page), await crm.files.previous_page(page)) == (None, None)
    read = await crm.files.get(file.uuid)
    read.name = "план"
    await crm.files.update_one(read)
    await crm.files.sync(file)
    assert file.name == "план"
    await crm.files.delete_one(file)
    await crm.files.delete([small])


async def entity_files(crm: Any, office: Office) -> None:
    lead = await crm.leads.add_one(m.Lead(name="Окна"))
    file = await crm.files.upload(b"text", "a.txt", "text/plain")
    service = crm.entity_files("leads", lead.id)
    await service.add([file.uuid])
    assert [one.file_uuid for one in await all_of(service.list())] == [file.uuid]
    page = await service.page()
    assert (await service.next_page(page), await service.previous_page(page)) == (None, None)
    await service.delete([file.uuid])
    assert await all_of(service.list()) == []


async def bots(crm: Any, office: Office) -> None:
    lead = await crm.leads.add_one(m.Lead(name="Окна"))
    (bot, *_) = await all_of(crm.bots.list())
    page = await crm.bots.page()
    assert (await crm.bots.next_page(page), await crm.bots.previous_page(page)) == (None, None)
    assert (await crm.bots.get(bot.id)).name == bot.name
    await crm.bots.sync(bot)
    await crm.bots.run([{"bot_id": bot.id, "entity_id": lead.id, "entity_type": 2}])
    await crm.bots.run_one(bot.id, lead.id, 2)
    await crm.bots.go_on(bot.id, 7, data={"status": "ok"})
    await crm.bots.stop(bot.id, lead.id, 2)


SCENARIOS: dict[str, Callable[[Any, Office], Awaitable[None]]] = {
    scenario.__name__: scenario
    for scenario in (
        account, leads, contacts, companies, customers, customers_bonus_points, customers_segments, customers_statuses,
        transactions, catalogs, catalog_elements, custom_fields, custom_field_groups, notes, tags, tasks, links, users,
        roles, pipelines, statuses, loss_reasons, unsorted, calls, events, event_types, webhooks, widgets, products,
        talks, sources, website_buttons, short_links, chat_templates, entity_subscriptions, currencies, files,
        entity_files, bots,
    )
}  # fmt: skip


@pytest.mark.parametrize("name", accessors())
async def test_every_operation_of_a_service_is_answered(name: str, crm: Any, office: Office) -> None:
    """Both clients do all that the service's row says, and its scenario leaves no operation out."""
    kind = accessors()[name]
    await SCENARIOS[name](crm, office)
    done = {operation for service, operation in crm.used if service == kind.__name__}
    assert set(operations_of(kind)) - done == set()


# What operations promise


async def test_a_long_list_is_cut_into_requests(crm: Any, office: Office) -> None:
    """50 items each, and every model gets its own id."""
    made = await crm.leads.add(m.Lead(name=f"Сделка {number}", price=number) for number in range(120))
    assert [len(body) for body in office.writes()] == [50, 50, 20]
    names = {lead.id: lead.name for lead in await all_of(crm.leads.list())}
    assert [names[lead.id] for lead in made] == [f"Сделка {number}" for number in range(120)]


async def test_wrong_items_do_not_keep_the_others_from_being_written(crm: Any, office: Office) -> None:
    """Each is named with its place and with what amoCRM says of it."""
    leads = [m.Lead(name=f"Сделка {number}") for number in range(70)]
    leads[3].status_id = leads[65].status_id = 1
    with pytest.raises(NotAllWritten) as caught:
        await crm.leads.add(leads)
    assert [(failure.place, failure.errors) for failure in caught.value.failures] == [
        (3, ("status_id:NotSupportedChoice",)),
        (65, ("status_id:NotSupportedChoice",)),
    ]
    assert all(isinstance(failure.outcome, ValidationFailed) for failure in caught.value.failures)
    assert len(caught.value.written) == 68
    assert len(await all_of(crm.leads.list())) == 68
    assert (leads[3].id, bool(leads[4].id)) == (None, True)
    with pytest.raises(ValidationFailed):
        await crm.leads.add_one(leads[3])


async def test_after_a_failure_that_concerns_all_nothing_more_is_sent(crm: Any, office: Office) -> None:
    """What came before is written, what was under way is unknown, the rest was not executed."""
    office.sandbox.faults.add(Reset(path="/api/v4/leads/unsorted/forms", when="after"))
    given = [an_unsorted(kind) for kind in ("sip", "forms", "sip") for _ in range(50)]
    with pytest.raises(NotAllWritten) as caught:
        await crm.unsorted.add(given)
    kinds = [type(failure.outcome) for failure in caught.value.failures]
    assert kinds == [OutcomeUnknown] * 50 + [NotExecuted] * 50
    assert caught.value.written == given[:50]
    assert len(office.writes()) == 2


async def test_an_update_sends_what_changed_and_no_more(crm: Any, office: Office) -> None:
    """Somebody else's change of another field stays; what has not changed is not sent."""
    leads = await crm.leads.add([m.Lead(name="Окна", price=100), m.Lead(name="Двери")])
    (first, second) = [await crm.leads.get(lead.id) for lead in leads]
    office.sandbox.change("leads", first.id, price=999)
    first.name = "Окна!"
    await crm.leads.update([first, second])
    await crm.leads.update_one(second)
    assert office.writes()[-1] == [{"id": first.id, "name": "Окна!", "request_id": "0"}]
    assert len(office.writes()) == 2
    assert (await crm.leads.get(first.id)).price == 999


async def test_a_field_can_be_set_by_a_name_that_the_entity_does_not_have_yet(crm: Any, office: Office) -> None:
    """The account's fields are read once; a name that there is not is refused before anything is sent."""
    lead = await crm.leads.add_one(m.Lead(name="Окна"))
    lead.custom_fields["Комментарий"] = "Позвонить"
    await crm.leads.update_one(lead)
    assert (await crm.leads.get(lead.id)).custom_fields["Комментарий"] == "Позвонить"
    lead.custom_fields["Комментарий"] = None
    await crm.leads.update([lead])
    assert "Комментарий" not in (await crm.leads.get(lead.id)).custom_fields
    assert sum("custom_fields" in one.request.path for one in office.sandbox.received) == 1
    lead.custom_fields["Нет такого"] = 1
    with pytest.raises(Rejected, match="Нет такого"):
        await crm.leads.update_one(lead)


async def test_a_field_that_there_is_not_fails_its_own_item_alone(crm: Any, office: Office) -> None:
    """The others are written; the item that has it is never sent."""
    leads = [m.Lead(name=f"Сделка {number}") for number in range(10)]
    leads[5].custom_fields["Нет такого"] = 1
    leads[3].status_id = 1
    with pytest.raises(NotAllWritten) as caught:
        await crm.leads.add(leads)
    (refused, unknown) = caught.value.failures
    assert (refused.place, unknown.place) == (3, 5)
    assert isinstance(unknown.outcome, UnknownField)
    assert isinstance(unknown.outcome, ValueError)
    assert unknown.outcome.name == "Нет такого"
    assert refused.errors == ("status_id:NotSupportedChoice",)
    assert [bool(lead.id) for lead in leads] == [True, True, True, False, True, False, True, True, True, True]
    assert "Сделка 5" not in str(office.writes())


async def test_a_failure_is_named_by_its_place_in_what_was_given(crm: Any) -> None:
    """Also behind items that have not changed, of which nothing is sent."""
    leads = await crm.leads.add([m.Lead(name="а"), m.Lead(name="б"), m.Lead(name="в")])
    leads[2].status_id = 1
    with pytest.raises(NotAllWritten) as caught:
        await crm.leads.update(leads)
    (failure,) = caught.value.failures
    assert (failure.place, failure.item) == (2, leads[2])


async def test_an_item_without_an_id_is_seen_before_anything_is_written(crm: Any, office: Office) -> None:
    """Of fifty good ones before it nobody would know that they were sent."""
    leads = await crm.leads.add(m.Lead(name=f"Сделка {number}") for number in range(50))
    for lead in leads:
        lead.price = 5
    before = len(office.sandbox.received)
    with pytest.raises(ValueError, match="no id"):
        await crm.leads.update([*leads, m.Lead(name="x")])
    assert len(office.sandbox.received) == before


async def test_what_is_not_known_is_in_no_path(crm: Any, office: Office) -> None:
    """A note whose card is not known is found by its own id; a purchase of nobody is not sent."""
    (lead,) = await crm.leads.add([m.Lead(name="Окна")])
    made = await crm.notes("leads").add_one(m.Note.common(lead.id, "Привет"))
    note = m.Note.common(lead.id, "Пока")
    note.id, note.entity_id = made.id, None
    await crm.notes("leads").sync(note)
    before = len(office.sandbox.received)
    for work in (
        crm.notes("leads").update_one(m.Note.common(lead.id, "x")),
        crm.notes("leads").sync(m.Note()),
        crm.transactions().add([m.Transaction(price=1)]),
        crm.transactions().delete_one(5),
    ):
        with pytest.raises(ValueError, match="yet"):
            await work
    assert len(office.sandbox.received) == before
    assert not any("None" in one.request.path for one in office.sandbox.received)


async def test_a_purchase_knows_its_customer(crm: Any, office: Office) -> None:
    """It can be deleted through the list of all."""
    customer = await a_customer(crm, office)
    (bought,) = await crm.transactions(customer.id).add([m.Transaction(price=100)])
    (read,) = await all_of(crm.transactions().list())
    assert read.id == bought.id
    await crm.transactions().delete_one(read)
    path = f"/api/v4/customers/{customer.id}/transactions/{bought.id}"
    assert (office.sandbox.received[-1].request.method, office.sandbox.received[-1].request.path) == ("DELETE", path)


@pytest.mark.parametrize("name", accessors())
def test_an_item_has_what_it_is_known_by(name: str) -> None:
    """Whatever is read, changed or deleted one by one."""
    kind = accessors()[name]
    if {"get", "sync", "update_one", "delete_one"} & {*operations_of(kind)} and name != "account":
        assert kind.row.id in kind.model.model_fields


def test_a_service_takes_its_model_and_filter_from_what_it_is() -> None:
    """So they are said once, where the types are checked."""
    leads = accessors()["leads"]
    assert (leads.model, leads.filter) == (m.Lead, f.LeadsFilter)
    assert accessors()["links"].filter is f.EntitiesLinksFilter


async def test_notes_of_one_second_are_set_apart(crm: Any, office: Office) -> None:
    """The card would show them as one."""
    (lead, other) = await crm.leads.add([m.Lead(name="Окна"), m.Lead(name="Двери")])
    texts = [m.Note.common(lead.id, text) for text in ("а", "б", "в")] + [m.Note.common(other.id, "г")]
    for note in texts:
        note.created_at = 1_700_000_000
    await crm.notes("leads").add(texts)
    assert [note.created_at for note in texts] == [1_700_000_000, 1_700_000_001, 1_700_000_002, 1_700_000_000]


async def test_pages_can_be_turned_both_ways(crm: Any, office: Office) -> None:
    """And end at both ends."""
    office.sandbox.add("leads", name="Окна", copies=5)
    page = await crm.leads.page(f.LeadsFilter(limit=2))
    pages = [page]
    while (page := await crm.leads.next_page(page)) is not None:
        pages.append(page)
    assert [(page.number, len(page)) for page in pages] == [(1, 2), (2, 2), (3, 1)]
    back = await crm.leads.previous_page(pages[2])
    assert [lead.id for lead in back] == [lead.id for lead in pages[1]]


async def test_a_page_is_read_when_it_is_needed(crm: Any, office: Office) -> None:
    """An iterator that nobody goes on with costs nothing."""
    office.sandbox.add("leads", name="Окна", copies=300)
    found = crm.leads.list()
    for _ in range(250):
        await anext(found)
    assert len(office.sandbox.received) == 1
    await anext(found)
    assert len(office.sandbox.received) == 2


async def test_an_unknown_with_is_a_mistake(crm: Any) -> None:
    """AmoCRM would ignore it without a word."""
    with pytest.raises(ValueError, match="contcats"):
        await crm.leads.get(1, with_=["contcats"])


async def test_an_administrator_acts_as_a_user(crm: Any, office: Office) -> None:
    """The other client is a copy: this one stays who it is."""
    await crm.as_user(MANAGER).account.get()
    await crm.account.get()
    headers = [one.request.headers.get("x-context-user-id") for one in office.sandbox.received]
    assert headers == [str(MANAGER), None]


async def test_what_no_service_has_can_be_asked_for(crm: Any) -> None:
    """With the client's token, rate and repeats."""
    answer = await crm.request("POST", "api/v4/leads", body=[{"name": "Окна"}])
    assert answer["_embedded"]["leads"][0]["id"]


async def test_a_refusal_is_told_with_its_request(crm: Any) -> None:
    """To whoever writes to amoCRM's support."""
    with pytest.raises(Rejected) as caught:
        await crm.leads.update_one(m.Lead(id=1, name="Нет такой"))
    problem = Problem.of(caught.value)
    assert problem is not None
    assert (problem.method, problem.path) == ("PATCH", "/api/v4/leads/1")
    assert problem.request_id


async def test_an_asynchronous_client_closes_its_connections(office: Office) -> None:
    """As a context manager."""
    async with AsyncAmoCrm(**office.async_options) as crm:
        assert (await crm.account.get()).subdomain == "example"
    with pytest.raises(RuntimeError, match="closed"):
        await crm.account.get()


def test_a_synchronous_client_closes_its_connections(office: Office) -> None:
    """As a context manager."""
    with AmoCrm(**office.options) as crm:
        assert crm.account.get().subdomain == "example"
    with pytest.raises(RuntimeError, match="closed"):
        crm.account.get()


async def test_what_is_named_by_a_text_stays_one_segment_of_the_path(crm: Any, office: Office) -> None:
    """A code from elsewhere leads nowhere else."""
    assert await crm.widgets.get("../leads?x=1") is None
    assert office.sandbox.received[-1].request.path == "/api/v4/widgets/..%2Fleads%3Fx%3D1"


async def test_what_has_no_id_is_not_sent(crm: Any, office: Office) -> None:
    """An update of nobody, a link of nothing: told before anything is asked."""
    for work in (
        crm.leads.update([m.Lead(name="x")]),
        crm.leads.update_one(m.Lead(name="x")),
        crm.leads.sync(m.Lead()),
    ):
        with pytest.raises(ValueError, match="no id"):
            await work
    assert not office.sandbox.received
