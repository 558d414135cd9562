"""API v4: all services of an account, and which of them answers which path."""

from collections.abc import Callable, Mapping, Sequence
from random import Random

from workbench.sandboxes.amocrm import furnishings
from workbench.sandboxes.amocrm.account import AmoCrmAccount, Kind
from workbench.sandboxes.amocrm.administration import Administration
from workbench.sandboxes.amocrm.bots import Bots
from workbench.sandboxes.amocrm.calls import NOT_ALLOWED, NOT_FOUND, Call, Mistake, not_supported, page
from workbench.sandboxes.amocrm.catalogs import Catalogs
from workbench.sandboxes.amocrm.channels import Channels
from workbench.sandboxes.amocrm.chats import Chats
from workbench.sandboxes.amocrm.complex_leads import add_complex
from workbench.sandboxes.amocrm.customers import Customers
from workbench.sandboxes.amocrm.drafts import Entity
from workbench.sandboxes.amocrm.drive import Drive
from workbench.sandboxes.amocrm.entities import Entities, Event
from workbench.sandboxes.amocrm.hooks import Hooks
from workbench.sandboxes.amocrm.journal import Journal
from workbench.sandboxes.amocrm.links import Links
from workbench.sandboxes.amocrm.notes import Note, Notes
from workbench.sandboxes.amocrm.services import CURRENCIES, LOSS_REASONS, TAG_COLORS, TAGS
from workbench.sandboxes.amocrm.tables import Record, Table
from workbench.sandboxes.amocrm.tasks import Tasks
from workbench.sandboxes.amocrm.telephony import Telephony
from workbench.sandboxes.amocrm.unsorted import Unsorted
from workbench.sandboxes.wire import SandboxResponse

type Route = Callable[[Call, Sequence[str]], SandboxResponse]


class Api:
    """The services. `furnish` takes the account as it was changed, `tell_of_notes` hears of notes that were added.

    `control_duplicates`: see `add_complex`.
    """

    def __init__(
        self,
        hooks: Hooks,
        clock: Callable[[], float],
        random: Random,
        furnish: Callable[[AmoCrmAccount], None],
        tell_of_notes: Callable[[AmoCrmAccount, Sequence[tuple[Entity, Note]], int], None],
    ) -> None:
        def hex_id() -> str:
            return f"{random.getrandbits(120):030x}"

        self.control_duplicates = False
        self.hooks = hooks
        self.journal = Journal(clock, lambda kind, id_: self.entities.present[kind][id_]["name"])
        self.tags = Table(TAGS, hex_id, check=_wrong_tag)
        self.channels = Channels(hex_id)
        self.entities = Entities(self._tell, self.tags, self._embed, self.channels.source_id)
        self.notes = Notes(self.entities, tell_of_notes)
        self.loss_reasons = Table(LOSS_REASONS, hex_id)
        self.currencies = Table(CURRENCIES, hex_id)
        self.administration = Administration(self.entities, furnish, hex_id)
        self.catalogs = Catalogs(hex_id)
        self.links = Links(self.entities, self.catalogs.elements)
        self.tasks = Tasks(self.entities, self.journal, hex_id)
        self.customers = Customers(self.entities, hex_id)
        self.unsorted = Unsorted(self.entities, hex_id)
        self.chats = Chats(self.entities, hex_id)
        self.telephony = Telephony(self.entities, self.notes)
        self.bots = Bots()
        self.drive = Drive(random)
        self._services: Mapping[str, Route] = {
            "account": lambda call, path: NOT_FOUND if path else furnishings.account(call, self.customers.mode),
            "users": self.administration.users,
            "roles": self.administration.roles.answer,
            "webhooks": lambda call, path: NOT_FOUND if path else self.hooks.answer(call),
            "tasks": self.tasks.answer,
            "events": self.journal.answer,
            "calls": self.telephony.answer,
            "currencies": self.currencies.answer,
            "talks": self.chats.of_talks,
            "chats": self.chats.of_templates,
            "sources": self.channels.sources.answer,
            "website_buttons": self.channels.website_buttons,
            "short_links": self.channels.short_links.answer,
            "widgets": self.channels.of_widgets,
            "bots": self.bots.answer,
            "products": self.catalogs.products,
            "catalogs": self._serve_catalogs,
        }
        self._of_cards: Mapping[tuple[Kind, str], Route] = {
            ("leads", "pipelines"): self.administration.pipelines,
            ("leads", "loss_reasons"): self.loss_reasons.answer,
            ("leads", "unsorted"): self.unsorted.answer,
            ("leads", "complex"): self._add_complex,
            ("contacts", "chats"): self.chats.of_contacts,
            ("customers", "mode"): self.customers.set_mode,
            ("customers", "statuses"): self.customers.statuses.answer,
            ("customers", "segments"): self._serve_segments,
            ("customers", "transactions"): self.customers.all_transactions,
        }

    def answer(self, call: Call, path: Sequence[str]) -> SandboxResponse:
        """`api/v4/…`."""
        match path:
            case ["leads" | "contacts" | "companies" | "customers" as kind, *rest]:
                return self._serve_cards(call, kind, rest)
            case [_, bot_id, "continue", continue_id]:
                return self.bots.go_on(call, bot_id, continue_id)
            case [service, *rest] if service in self._services:
                return self._services[service](call, rest)
            case _:
                return NOT_FOUND

    def _serve_catalogs(self, call: Call, path: Sequence[str]) -> SandboxResponse:
        match path:
            case ["products", *rest]:
                return self.catalogs.products(call, rest)
            case [catalog_id, "custom_fields", *rest] if self.catalogs.has(catalog_id):
                return self.administration.custom_fields(call, f"catalogs/{catalog_id}", rest)
            case [catalog_id, "elements", id_, "links" | "link" | "unlink" as what]:
                element = self.catalogs.element(catalog_id, id_)
                return self.links.of_element(call, element, what) if element else NOT_FOUND
            case [catalog_id, "elements", id_, "files"] | [catalog_id, id_, "files"]:
                element = self.catalogs.element(catalog_id, id_)
                return self.drive.of_entity(call, f"catalogs/{catalog_id}", element["id"]) if element else NOT_FOUND
            case _:
                return self.catalogs.answer(call, path)

    def _serve_segments(self, call: Call, path: Sequence[str]) -> SandboxResponse:
        if path[:1] == ["custom_fields"]:
            return self.administration.custom_fields(call, "customers/segments", path[1:])
        return self.customers.segments.answer(call, path)

    def _serve_cards(self, call: Call, kind: Kind, path: Sequence[str]) -> SandboxResponse:
        match path:
            case [service, *rest] if (kind, service) in self._of_cards:
                return self._of_cards[kind, service](call, rest)
            case ["custom_fields", *rest]:
                return self.administration.custom_fields(call, kind, rest)
            case ["notes", *rest]:
                return self.notes.answer(call, kind, None, rest)
            case ["tags", *rest]:
                return self._serve_tags(call, kind, rest)
            case ["links" | "link" | "unlink" as what]:
                return self.links.of_kind(call, kind, what)
            case [parent, "notes", *rest]:
                return self.notes.answer(call, kind, parent, rest)
            case [id_, below, *rest] if entity := self.entities.find(kind, id_):
                return self._serve_card(call, entity, below, rest)
            case _:
                return self.entities.answer(call, kind, path)

    def _serve_card(self, call: Call, entity: Entity, below: str, path: Sequence[str]) -> SandboxResponse:
        match entity.kind, below, path:
            case _, "links" | "link" | "unlink", []:
                return self.links.of_one(call, entity, below)
            case _, "files", []:
                return self.drive.of_entity(call, entity.kind, entity.id)
            case "leads" | "customers", "subscriptions", []:
                return _subscriptions(call, entity)
            case "customers", "transactions", _:
                return self.customers.transactions_of(call, entity, path)
            case "customers", "bonus_points", []:
                return self.customers.points_of(call, entity)
            case _:
                return NOT_FOUND

    def _serve_tags(self, call: Call, kind: Kind, path: Sequence[str]) -> SandboxResponse:
        if kind != "leads" and call.request.method == "PATCH":
            return NOT_ALLOWED
        return self.tags.answer(call, path, at=f"{kind}/tags", within={"_of": kind})

    def _add_complex(self, call: Call, path: Sequence[str]) -> SandboxResponse:
        if path:
            return NOT_FOUND
        if call.request.method != "POST":
            return NOT_ALLOWED
        return add_complex(call, self.entities, control_duplicates=self.control_duplicates)

    def _tell(self, account: AmoCrmAccount, events: Sequence[Event]) -> None:
        self.journal.tell(events)
        self.hooks.tell(account, events)

    def _embed(self, call: Call, entity: Entity) -> Mapping[str, object]:
        embedded: dict[str, object] = {}
        if entity.kind == "customers":
            embedded["segments"] = [{"id": id_} for id_ in entity.segments]
        if "loss_reason" in call.with_ and entity.kind == "leads":
            reason = self.loss_reasons.records.get(entity["loss_reason_id"])
            embedded["loss_reason"] = [self.loss_reasons.view(call, reason)] if reason else []
        if "source" in call.with_ and entity.kind == "leads":
            source = self.channels.sources.records.get(entity["source_id"])
            embedded["source"] = {"id": source["id"], "name": source["name"]} if source else None
        if "catalog_elements" in call.with_:
            embedded["catalog_elements"] = [
                {"id": id_, "metadata": metadata, **{name: metadata[name] for name in ("quantity", "catalog_id")}}
                for id_, metadata in entity.elements.items()
            ]
        if "social_profiles" in call.with_ and entity.kind == "contacts":
            embedded["social_profiles"] = []
        return embedded


def _subscriptions(call: Call, entity: Entity) -> SandboxResponse:
    if call.request.method != "GET":
        return NOT_ALLOWED
    subscribers = [{"subscriber_id": entity["responsible_user_id"], "type": "user"}]
    return page(call, subscribers, "subscriptions", lambda subscriber: subscriber)


def _wrong_tag(_call: Call, sent: Record, tag: Record | None) -> Sequence[Mistake]:
    color = sent.get("color")
    if color is None:
        return []
    of_leads = (tag or sent)["_of"] == "leads"
    return [] if of_leads and color.upper() in TAG_COLORS else [not_supported("color")]
