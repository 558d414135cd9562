"""A stand-in for amoCRM: the whole API v4, the drive, OAuth, and hooks on what happens to cards."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Any, Literal, override
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError

from workbench.sandboxes.amocrm.account import KINDS, NOBODY, AmoCrmAccount, Integration, Kind
from workbench.sandboxes.amocrm.api import Api
from workbench.sandboxes.amocrm.bodies import BODIES
from workbench.sandboxes.amocrm.calls import NOT_FOUND, Call, Refused, page_of_html, problem, read_items
from workbench.sandboxes.amocrm.drafts import Entity
from workbench.sandboxes.amocrm.entities import Event
from workbench.sandboxes.amocrm.hooks import HookBody, Hooks, Subscription
from workbench.sandboxes.amocrm.notes import Card, Note
from workbench.sandboxes.amocrm.oauth import Tokens
from workbench.sandboxes.amocrm.tables import Record
from workbench.sandboxes.amocrm.unsorted import Category, UnsortedBody
from workbench.sandboxes.faults import problems
from workbench.sandboxes.rates import SlidingWindow
from workbench.sandboxes.sandbox import Sandbox, Switches
from workbench.sandboxes.wire import SandboxRequest, SandboxResponse, json_answer

_LOCAL_HOST = re.compile(r"(127\.0\.0\.1|localhost)(:[0-9]+)?")
_DAY = 24 * 3600


class AmoCrmSwitches(Switches):
    """What can be changed about amoCRM while it runs.

    Not `paid`: 402; `blocked`: 403 with a page, until it is lifted here. Writes of more items than
    `gateway_timeout_over` get a 504 and do nothing. `note_hooks`: a note added through the API is told of as a
    note, as an update of its entity, or both. What the API changes is nobody's, unless `api_acts_as_user`.
    `control_duplicates`: leads of a contact that is known are merged into its newest lead, by `leads/complex`.
    """

    paid: bool = True
    blocked: bool = False
    gateway_timeout_over: NonNegativeInt | None = None
    note_hooks: frozenset[Literal["note", "update"]] = frozenset()
    api_acts_as_user: bool = False
    control_duplicates: bool = False


class Order(BaseModel):
    """What `POST /sandbox/leads…` takes beside the fields of the lead, which are named as in the API.

    `by` is the user who does it, 0 a robot, nobody named the account's first user. `copies` makes that many
    leads, `ids` changes all these.
    """

    model_config = ConfigDict(extra="allow")

    by: int | None = None
    copies: int = Field(default=1, ge=1, le=100_000)
    ids: list[int] = []


class AmoCrmSandbox(Sandbox):
    """amoCRM with one account. `api`, `hooks` and `tokens` are what there is in it."""

    switches: AmoCrmSwitches

    def __init__(self, account: AmoCrmAccount, *, clock: Callable[[], float], random: Random) -> None:
        super().__init__(clock=clock, random=random)
        self.account = account
        self.switches = AmoCrmSwitches()
        self.tokens = Tokens(clock, random)
        self.hooks = Hooks(self.callbacks, random)
        self.api = Api(self.hooks, clock, random, self._furnish, self._tell_of_notes)
        self.entities, self.notes = self.api.entities, self.api.notes
        self._former_hosts: set[str] = set()
        self._window_of_all = SlidingWindow(account.requests_per_second_of_all)
        self._windows: dict[str, SlidingWindow] = {}
        self._refusals = SlidingWindow(account.block_after, 60)

    # As callers see it

    @override
    def answer(self, request: SandboxRequest) -> SandboxResponse:
        try:
            response = self._answer(request)
        except Refused as refused:
            response = refused.answer
        request_id = str(UUID(int=self.random.getrandbits(128), version=4))
        return replace(response, headers={**response.headers, "x-request-id": request_id})

    @override
    def refusal(self, status: int, code: str) -> SandboxResponse:
        """429 comes with a page from amoCRM, and with JSON from Kommo."""
        if status != 429:
            return problem(status, code)
        return problem(429, code, retry_after=1) if self.account.is_kommo else page_of_html(429)

    def _answer(self, request: SandboxRequest) -> SandboxResponse:
        if self.switches.blocked:
            return page_of_html(403)
        host = request.headers.get("host", self.account.host)
        match request.method, request.parts:
            case "GET", ("oauth", *_):
                return self.tokens.consent(self.account, request, self._own_host(host))
            case "GET", ("oauth2", "account", "current", "subdomain"):
                return self.tokens.subdomain(self.account, request)
            case "POST", ("oauth2", "access_token"):
                return NOT_FOUND if host in self._former_hosts else self.tokens.grant(self.account, request)
            case "POST", ("oauth2", "exchange_api_key"):
                return self.tokens.exchange(self.account, request, self._own_host(host))
            case "GET", ("oauth2", "account", "subdomain"):
                return self.tokens.subdomain_by_access_token(self.account, request)
            case _, ("v1.0", *path):
                return self.api.drive.answer(self._admit(request, host), path)
            case _, ("api", "v4", *path):
                self.api.control_duplicates = self.switches.control_duplicates
                return self.api.answer(self._admit(request, host), path)
            case _:
                return NOT_FOUND

    def _admit(self, request: SandboxRequest, host: str) -> Call:
        authorization = request.headers.get("authorization", "")
        integration = None if host in self._former_hosts else self.tokens.holder(authorization)
        if integration is None:
            raise Refused(problem(401, "Unauthorized"))
        if not self.switches.paid:
            raise Refused(problem(402, "The account is not paid for"))
        self._hold_to_rate(integration)
        return Call(
            request=request,
            account=self.account,
            origin=_origin(self._own_host(host)),
            drive=_origin(host if _LOCAL_HOST.fullmatch(host) else self.account.drive_host),
            by=self._user(request, integration),
            now=int(self.clock()),
            most_items=self.switches.gateway_timeout_over,
        )

    def _hold_to_rate(self, integration: Integration) -> None:
        now = self.clock()
        of_one = self._windows.setdefault(integration.client_id, SlidingWindow(self.account.requests_per_second))
        if not (of_one.take(now) or self._window_of_all.take(now)):
            return
        if self._refusals.take(now):
            self.switches.blocked = True
        raise Refused(self.refusal(429, "Too many requests"))

    def _user(self, request: SandboxRequest, integration: Integration) -> int:
        context = request.headers.get("x-context-user-id")
        if context is None:
            return integration.user_id if self.switches.api_acts_as_user else NOBODY
        if context not in {str(user.id) for user in self.account.users}:
            raise Refused(problem(403, "No such user"))
        return int(context)

    def _furnish(self, account: AmoCrmAccount) -> None:
        self.account = account

    def _own_host(self, asked: str) -> str:
        """Return where the caller is to go on: where it found us on this machine, else the account's host."""
        return asked if _LOCAL_HOST.fullmatch(asked) else self.account.host

    def _tell_of_notes(self, account: AmoCrmAccount, notes: Sequence[tuple[Entity, Note]], by: int) -> None:
        added = [Event("note", entity, note["created_by"], note=note) for entity, note in notes]
        self.api.journal.tell(added)
        events = added if "note" in self.switches.note_hooks else []
        if "update" in self.switches.note_hooks:
            now = int(self.clock())
            events = [*events, *(self.entities.touch(entity, by, now) for entity, _ in notes)]
        self.hooks.tell(account, events)

    # As people in the CRM see it

    def add(self, kind: Kind, /, *, by: int | None = None, copies: int = 1, **fields: Any) -> list[Entity]:
        """Somebody makes `copies` entities; `fields` are those of the API. Invalid if they are not."""
        items = read_items(BODIES[kind], [fields] * copies)
        return [entity for _, entity in self.entities.add(self.account, kind, items, self._who(by), self._now)]

    def change(self, kind: Kind, /, *ids: int, by: int | None = None, **fields: Any) -> list[Entity]:
        """Somebody, or with `by=0` a robot, changes entities, at once and in the same way. Invalid as in `add`."""
        items = [(item, id_) for id_, item in zip(ids, read_items(BODIES[kind], [fields] * len(ids)), strict=True)]
        return [entity for _, entity in self.entities.change(self.account, kind, items, self._who(by), self._now)]

    def delete(self, kind: Kind, *ids: int, by: int | None = None) -> None:
        """Somebody deletes entities, which the API cannot. KeyError if one is not there."""
        self.entities.delete(self.account, kind, ids, self._who(by), self._now)

    def restore(self, kind: Kind, *ids: int, by: int | None = None) -> None:
        """Somebody takes entities back from the bin. KeyError if one is not in it."""
        self.entities.restore(self.account, kind, ids, self._who(by), self._now)

    def card(self, kind: Kind, id_: int) -> Card:
        """What somebody sees who opens a card. KeyError if the entity is not there."""
        return self.notes.card(self.entities.present[kind][id_])

    def receive(self, category: Category, **fields: Any) -> Record:
        """Somebody calls, writes or fills in a form: an incoming lead, with `fields` as the API has them."""
        body = UnsortedBody.model_validate({"source_name": "Сайт", "source_uid": "site", "metadata": {}} | fields)
        return self.api.unsorted.receive(self.account, category, body, NOBODY, self._now)

    def talk(self, contact_id: int, lead_id: int | None = None) -> Record:
        """A contact begins to talk in a chat, about a lead or not."""
        return self.api.chats.begin(self.account.id, contact_id, self._now, lead_id)

    def subscribe(self, destination: str, *settings: str, by: int | None = None) -> Subscription:
        """An administrator subscribes an address to hooks, as `POST api/v4/webhooks` does."""
        body = HookBody(destination=destination, settings=list(settings))
        return self.hooks.subscribe(self.account, body, self._who(by), self._now)

    def authorize(self, client_id: str) -> str:
        """An administrator lets an integration in; returns the code. KeyError if there is no such integration."""
        return self.tokens.code(self._integration(client_id))

    def long_lived_token(self, client_id: str, days: int = 365) -> str:
        """An administrator makes a long-lived token. KeyError if there is no such integration."""
        return self.tokens.long_lived(self.account, self._integration(client_id), days * _DAY)

    def move_to(self, host: str) -> None:
        """The account gets another subdomain, and is no longer served at the old one."""
        self._former_hosts = (self._former_hosts | {self.account.host}) - {host}
        self.account = replace(self.account, host=host)

    def _integration(self, client_id: str) -> Integration:
        integration = self.account.integration(client_id)
        if integration is None:
            raise KeyError(client_id)
        return integration

    def _who(self, by: int | None) -> int:
        return self.account.users[0].id if by is None else by

    @property
    def _now(self) -> int:
        return int(self.clock())

    # As the person at the controls sees it

    @override
    def control(self, request: SandboxRequest) -> SandboxResponse:
        """Leads, contacts, companies and customers under `/sandbox/{kind}`, and what every sandbox has.

        `POST` there adds, `POST …/{id}` changes, `POST …/bulk` changes many, `DELETE …/{id}` deletes, `POST
        …/{id}/restore` takes back, `GET …/{id}` shows the card.
        """
        match request.parts[1:]:
            case ["leads" | "contacts" | "companies" | "customers" as kind, *path]:
                return self._control(request, kind, path)
            case _:
                return super().control(request)

    def _control(self, request: SandboxRequest, kind: Kind, path: Sequence[str]) -> SandboxResponse:
        try:
            order = Order.model_validate_json(request.body or b"{}")
            ids = [int(path[0])] if path and path[0] != "bulk" else order.ids
            done = self._order(request.method, kind, path[1:] if path else None, ids, order)
        except ValidationError as refused:
            return json_answer(422, {"error": "invalid_order", "problems": problems(refused)})
        except Refused as refused:
            return refused.answer
        except (KeyError, ValueError):
            return json_answer(404, {"error": "not_found"})
        return done

    def _order(
        self, method: str, kind: Kind, below: Sequence[str] | None, ids: Sequence[int], order: Order
    ) -> SandboxResponse:
        fields = order.model_extra or {}
        match method, below:
            case "POST", None:
                added = self.add(kind, by=order.by, copies=order.copies, **fields)
                ids = [entity.id for entity in added]
            case "POST", []:
                self.change(kind, *ids, by=order.by, **fields)
            case "POST", ["restore"]:
                self.restore(kind, *ids, by=order.by)
            case "DELETE", []:
                self.delete(kind, *ids, by=order.by)
            case "GET", [] if ids:
                return json_answer(200, _shown(self.card(kind, ids[0])))
            case _:
                return json_answer(404, {"error": "not_found"})
        return json_answer(200, {"ids": ids})

    @override
    def state(self) -> dict[str, object]:
        """Beside what all sandboxes tell: what there is, without names, and each lead with its count of notes."""
        cards = [self.card("leads", id_) for id_ in self.entities.present["leads"]]
        leads = [
            {
                "id": card.entity.id,
                "status_id": card.entity["status_id"],
                "updated_at": card.entity["updated_at"],
                "notes": len(card.notes),
                "hidden_notes": card.hidden,
            }
            for card in cards
        ]
        counts = {kind: len(self.entities.present[kind]) for kind in KINDS}
        hooks = [
            {"id": hook.id, "settings": hook.settings, "disabled": hook.disabled}
            for hook in self.hooks.subscriptions.values()
        ]
        return super().state() | {"counts": counts, "leads": leads, "webhooks": hooks}


def _origin(host: str) -> str:
    return f"{'http' if _LOCAL_HOST.fullmatch(host) else 'https'}://{host}"


def _shown(card: Card) -> Mapping[str, object]:
    return {**card.entity.fields, "notes": card.notes, "hidden_notes": card.hidden}
