"""Hooks: who has subscribed, what is told to whom, and how it is told again after a bad answer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import batched
from random import Random
from urllib.parse import urlsplit
from uuid import UUID

from workbench.sandboxes.amocrm.account import SINGULAR, AmoCrmAccount
from workbench.sandboxes.amocrm.calls import (
    NO_CONTENT,
    NOT_ALLOWED,
    NOT_FOUND,
    Body,
    Call,
    Mistake,
    Refused,
    hal,
    not_supported,
    page,
    problem,
    refuse,
)
from workbench.sandboxes.amocrm.entities import Action, Event
from workbench.sandboxes.amocrm.filters import leaves
from workbench.sandboxes.amocrm.hook_bodies import account_hook, pipeline_hook
from workbench.sandboxes.callbacks import Callbacks, Manner, Next
from workbench.sandboxes.rates import SlidingWindow
from workbench.sandboxes.wire import SandboxResponse

_ACTIONS_OF: Mapping[str, str] = {
    "lead": "add update delete restore status responsible note",
    "contact": "add update delete restore responsible note",
    "company": "add update delete restore responsible note",
    "customer": "add update delete responsible note",
    "task": "add update delete responsible",
    "unsorted": "add update delete",
    "talk": "add update",
    "message": "add",
    "outgoing_message": "add",
    "chat_template_review": "add",
}
SETTINGS = frozenset(f"{action}_{entity}" for entity, actions in _ACTIONS_OF.items() for action in actions.split())
"""What can be subscribed to; of these, leads, contacts and companies happen here."""

MOST_SUBSCRIPTIONS = 100
_ACTIONS: tuple[Action, ...] = ("add", "update", "status", "responsible", "delete", "restore", "note")
_MOST_BAD_ANSWERS = 100
_GOOD = range(100, 300)


class AccountManner:
    """Five attempts, the last two only after a 499 or a 5xx; no answer is code 0.

    Switched off after more than 100 bad answers within two hours, of which the latest is one.
    """

    timeout = 2.0
    _DELAYS = (300, 900, 900, 3_600)

    def __init__(self, scale: float) -> None:
        self.stopped = False
        self._scale = scale
        self._bad_answers = SlidingWindow(_MOST_BAD_ANSWERS, 7_200 * scale)

    def after(self, attempt: int, status: int | None, now: float) -> Next:
        """Judge an answer."""
        if status in _GOOD:
            return "delivered"
        if self._bad_answers.take(now):
            self.stopped = True
        insists = attempt < 3 or status == 499 or status in range(500, 600)
        if self.stopped or not insists or attempt > len(self._DELAYS):
            return "given_up"
        return self._DELAYS[attempt - 1] * self._scale


class PipelineManner:
    """Four repetitions within an hour, held back for 5 minutes after more than 100 bad answers within 5."""

    timeout = 2.0
    stopped = False
    _DELAYS = (300, 900, 900, 1_500)

    def __init__(self, scale: float) -> None:
        self._scale = scale
        self._bad_answers = SlidingWindow(_MOST_BAD_ANSWERS, 300 * scale)

    def after(self, attempt: int, status: int | None, now: float) -> Next:
        """Judge an answer."""
        if status in _GOOD:
            return "delivered"
        suspended = bool(self._bad_answers.take(now))
        if attempt > len(self._DELAYS):
            return "given_up"
        return max(self._DELAYS[attempt - 1], 300 if suspended else 0) * self._scale


@dataclass(slots=True, kw_only=True)
class Subscription:
    """A hook of the account's settings."""

    id: int
    destination: str
    settings: list[str]
    sort: int
    created_by: int
    created_at: int
    updated_at: int
    manner: AccountManner

    @property
    def disabled(self) -> bool:
        """Whether amoCRM has switched it off."""
        return self.manner.stopped

    def wants(self, event: Event) -> bool:
        """Whether it is told; of contacts and companies a new responsible user is told as an update."""
        kind = SINGULAR[event.entity.kind]
        if f"{event.action}_{kind}" in self.settings:
            return True
        responsible = event.was.get("old_responsible_user_id", event.entity["responsible_user_id"])
        moved = event.action == "update" and responsible != event.entity["responsible_user_id"]
        return moved and f"responsible_{kind}" in self.settings


class HookBody(Body):
    """A subscription as it is written."""

    destination: str
    settings: list[str]
    sort: int = 10


class DestinationBody(Body):
    """The address of a subscription that ends."""

    destination: str


class Hooks:
    """The subscriptions of an account and what is sent to them, and to the addresses in its digital pipelines."""

    def __init__(self, callbacks: Callbacks, random: Random) -> None:
        self.subscriptions: dict[str, Subscription] = {}
        self._callbacks = callbacks
        self._random = random
        self._pipeline_manners: dict[str, PipelineManner] = {}
        self._created = 0

    # As the API sees them

    def answer(self, call: Call) -> SandboxResponse:
        """`api/v4/webhooks`."""
        match call.request.method:
            case "GET":
                wanted = leaves(call.query.get("filter"))
                found = [each for each in self.subscriptions.values() if not wanted or each.destination in wanted]
                return page(call, found, "webhooks", lambda each: _view(call.account, each))
            case "POST":
                item = call.item(HookBody)
                refuse({item.request_id: _wrong(item.body)})
                if item.body.destination not in self.subscriptions and len(self.subscriptions) >= MOST_SUBSCRIPTIONS:
                    raise Refused(problem(400, f"At most {MOST_SUBSCRIPTIONS} webhooks per account"))
                subscription = self.subscribe(call.account, item.body, call.by, call.now)
                return hal(_view(call.account, subscription), 201)
            case "DELETE":
                destination = call.item(DestinationBody).body.destination
                if destination not in self.subscriptions:
                    return NOT_FOUND
                self.subscriptions.pop(destination).manner.stopped = True
                return NO_CONTENT
            case _:
                return NOT_ALLOWED

    def subscribe(self, account: AmoCrmAccount, body: HookBody, by: int, now: int) -> Subscription:
        """Subscribe; an address that is subscribed already is updated, and switched on again."""
        subscription = self.subscriptions.get(body.destination)
        if subscription is None:
            self._created += 1
            subscription = self.subscriptions[body.destination] = Subscription(
                id=41_000_000 + self._created,
                destination=body.destination,
                settings=body.settings,
                sort=body.sort,
                created_by=by,
                created_at=now,
                updated_at=now,
                manner=AccountManner(account.repeat_scale),
            )
        subscription.settings = list(body.settings)
        subscription.sort = body.sort
        subscription.updated_at = now
        subscription.manner.stopped = False
        return subscription

    # What is sent

    def tell(self, account: AmoCrmAccount, events: Sequence[Event]) -> None:
        """Send hooks about events that happened together: those of one kind travel together."""
        for subscription in self.subscriptions.values():
            if subscription.disabled:
                continue
            for action in _ACTIONS:
                told = [event for event in events if event.action == action and subscription.wants(event)]
                for some in batched(told, account.entities_per_hook):
                    about = {"hook": subscription.id, **_about(some)}
                    self._send(subscription.destination, account_hook(account, some), about, subscription.manner)
        for hook in account.pipeline_hooks:
            manner = self._pipeline_manners.setdefault(hook.url, PipelineManner(account.repeat_scale))
            for action in ("add", "status"):
                told = [
                    event
                    for event in events
                    if event.action == action and hook.wants(event.entity.fields.get("status_id"))
                ]
                for some in batched(told, account.entities_per_hook):
                    self._send(hook.url, pipeline_hook(account, some), {"hook": "pipeline", **_about(some)}, manner)

    def _send(self, url: str, body: bytes, about: Mapping[str, object], manner: Manner) -> None:
        self._callbacks.plan(url, body, self._headers, about, manner)

    def _headers(self, _body: bytes, _now: float) -> Mapping[str, str]:
        # A new id for every attempt: nobody is known to have seen that it stays the same.
        return {
            "Content-Type": "application/x-www-form-urlencoded",
            "User-Agent": "amoCRM-Webhooks/3.0",
            "Accept-Encoding": "gzip",
            "X-Amocrm-Requestid": str(UUID(int=self._random.getrandbits(128), version=4)),
        }


def _about(events: Sequence[Event]) -> dict[str, object]:
    first = events[0]
    return {"event": f"{first.action}_{SINGULAR[first.entity.kind]}", "ids": [event.entity.id for event in events]}


def _wrong(body: HookBody) -> Sequence[Mistake]:
    mistakes = [not_supported(f"settings.{place}") for place, name in enumerate(body.settings) if name not in SETTINGS]
    address = urlsplit(body.destination)
    if address.scheme not in {"http", "https"} or not address.hostname or not address.path:
        mistakes.append(Mistake("InvalidUrl", "destination", "Invalid URL"))
    if not body.settings:
        mistakes.append(Mistake("NotBlank", "settings", "This value should not be blank."))
    return mistakes


def _view(account: AmoCrmAccount, subscription: Subscription) -> dict[str, object]:
    return {
        "id": subscription.id,
        "destination": subscription.destination,
        "created_at": subscription.created_at,
        "updated_at": subscription.updated_at,
        "account_id": account.id,
        "created_by": subscription.created_by,
        "sort": subscription.sort,
        "disabled": subscription.disabled,
        "settings": subscription.settings,
    }
