"""A stand-in for CartelCRM: takes signed leads, answers for their status, and calls back through their life.

Its verdicts can be foreseen: a phone that ends in 0000 is `blacklisted`, a country that the account does
not buy is `geo_not_accepted`, and a lead whose external_id or phone is known is a duplicate.
"""

import hashlib
import hmac
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Any, Literal, override

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from workbench.sandboxes.callbacks import Callback
from workbench.sandboxes.faults import problems
from workbench.sandboxes.rates import SlidingWindow
from workbench.sandboxes.sandbox import Sandbox
from workbench.sandboxes.wire import SandboxRequest, SandboxResponse, json_answer

TIMESTAMP_WINDOW = 300
EARNING_STATUSES = frozenset({"approved", "paid"})

type Life = Sequence[tuple[float, str]]
"""The statuses of a lead, each with the seconds by which it follows the one before."""

PAID_LIFE: Life = ((1, "new"), (60, "accepted"), (600, "hold"), (3_600, "approved"), (86_400, "paid"))
REJECTED_LIFE: Life = ((1, "new"), (60, "accepted"), (600, "rejected"))
TRASHED_LIFE: Life = ((1, "new"), (300, "trash"))


@dataclass(frozen=True, slots=True, kw_only=True)
class CartelCrmAccount:
    """An account with CartelCRM: its secrets, its terms, and how fast life goes by.

    `countries` are those it buys leads from (None: all); `event` names a callback's event and may hold
    `{status}`. `life_scale` stretches the time between a lead's statuses, `repeat_scale` the delays
    (`repeat_after`, seconds) that follow badly answered callbacks: 0.001 makes an hour 3.6 seconds.
    """

    api_key: str
    hmac_secret: str
    callback_secret: str
    callback_url: str | None = None
    base_path: str = "/api"
    requests_per_second: int | None = None
    duplicate_by: frozenset[Literal["external_id", "phone"]] = frozenset({"external_id", "phone"})
    countries: frozenset[str] | None = None
    event: str = "lead_{status}"
    payout: float = 42.5
    currency: str = "USD"
    lives: Sequence[Life] = (PAID_LIFE, REJECTED_LIFE, TRASHED_LIFE)
    life_scale: float = 1.0
    repeat_after: Sequence[float] = (10, 60, 300, 1_800, 7_200)
    repeat_scale: float = 1.0


@dataclass(slots=True)
class Lead:
    """A lead that was created; `history` has its changes as (unix seconds, status), newest last."""

    id: str
    created_at: float
    body: Mapping[str, Any]
    status: str = "new"
    history: list[tuple[int, str]] = field(default_factory=list)
    by_hand: bool = False

    @property
    def external_id(self) -> str:
        """The caller's name for the lead."""
        return str(self.body["external_id"])

    @property
    def phone(self) -> str:
        """The phone as it was sent."""
        return str(self.body["phone"])


class StatusChange(BaseModel):
    """What `POST /sandbox/leads/{id}/status` takes.

    With `seconds_ago` the lead does not move: its callback tells, late, of a change that was then. `copies`
    sends the callback several times; `secret` signs it in place of the account's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    status: str = Field(min_length=1, max_length=100)
    seconds_ago: int = Field(default=0, ge=0)
    copies: int = Field(default=1, ge=1, le=100)
    secret: str | None = None


class CartelCrmSandbox(Sandbox):
    """CartelCRM as one account sees it. `leads` has every lead that was created, by id, in order."""

    def __init__(self, account: CartelCrmAccount, *, clock: Callable[[], float], random: Random) -> None:
        repeat_after = [delay * account.repeat_scale for delay in account.repeat_after]
        super().__init__(clock=clock, random=random, repeat_after=repeat_after)
        self.account = account
        self.leads: dict[str, Lead] = {}
        self._known: dict[tuple[str, str], Lead] = {}
        self._verdicts: dict[str, tuple[bytes, SandboxResponse]] = {}
        self._window = SlidingWindow(account.requests_per_second) if account.requests_per_second else None

    # As callers see it

    @override
    def answer(self, request: SandboxRequest) -> SandboxResponse:
        refused = self._prove(request) or self._hold_to_rate()
        if refused:
            return refused
        base = tuple(self.account.base_path.split("/")[1:])
        if request.parts[: len(base)] != base:
            return self.refusal(404, "not_found")
        match request.method, request.parts[len(base) :]:
            case "POST", ("v1", "inbound", "leads"):
                return self._submit(request)
            case "GET", ("v1", "inbound", "leads", external_id, "status"):
                return self._status(external_id)
            case _:
                return self.refusal(404, "not_found")

    @override
    def refusal(self, status: int, code: str) -> SandboxResponse:
        return json_answer(status, {"error": code})

    def find(self, external_id: str) -> Lead | None:
        """The lead that was created last for the caller's `external_id`."""
        return self._known.get(("external_id", external_id))

    def _prove(self, request: SandboxRequest) -> SandboxResponse | None:
        headers = request.headers
        if not _same(headers.get("authorization", ""), f"Bearer {self.account.api_key}"):
            return self.refusal(401, "unauthorized")
        timestamp = headers.get("x-timestamp", "")
        if not re.fullmatch("[0-9]{1,12}", timestamp) or abs(self.clock() - int(timestamp)) > TIMESTAMP_WINDOW:
            return self.refusal(401, "timestamp_out_of_range")
        if not _same(headers.get("x-signature", ""), _signature(request.body, self.account.hmac_secret)):
            return self.refusal(403, "bad_signature")
        return None

    def _hold_to_rate(self) -> SandboxResponse | None:
        wait = self._window.take(self.clock()) if self._window else 0.0
        return self.refusal(429, "rate_limited").retry_after(math.ceil(wait)) if wait else None

    def _submit(self, request: SandboxRequest) -> SandboxResponse:
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            return self.refusal(415, "unsupported_media_type")
        key = request.headers.get("idempotency-key", "")
        if not key:
            return _rejected("idempotency_key_required")
        if key in self._verdicts:
            body, verdict = self._verdicts[key]
            return verdict if body == request.body else _rejected("idempotency_key_reused")
        try:
            submitted = json.loads(request.body.decode())
        except (ValueError, RecursionError):
            return self.refusal(400, "malformed_json")
        verdict = self._judge(submitted)
        self._verdicts[key] = request.body, verdict
        return verdict

    def _judge(self, submitted: object) -> SandboxResponse:
        if not isinstance(submitted, dict):
            return _rejected("object_required")
        for name in ("external_id", "phone"):
            if not (isinstance(submitted.get(name), str) and submitted[name].strip()):
                return _rejected(f"{name}_required")
        if submitted["phone"].endswith("0000"):
            return _rejected("blacklisted")
        if self.account.countries is not None and submitted.get("country") not in self.account.countries:
            return _rejected("geo_not_accepted")
        names = {"external_id": submitted["external_id"], "phone": re.sub("[^0-9]", "", submitted["phone"])}
        for kind in sorted(self.account.duplicate_by):
            if known := self._known.get((kind, names[kind])):
                return json_answer(409, {"id": known.id})
        lead = self._create(submitted)
        self._known |= dict.fromkeys(names.items(), lead)
        return json_answer(200, {"id": lead.id, "status": lead.status})

    def _create(self, submitted: Mapping[str, Any]) -> Lead:
        now = self.clock()
        lead = Lead(f"{self.random.getrandbits(48):012x}", now, submitted)
        self.leads[lead.id] = lead
        self._live(lead, self.random.choice(self.account.lives), now)
        return lead

    def _status(self, external_id: str) -> SandboxResponse:
        lead = self.find(external_id)
        if lead is None:
            return json_answer(404, {"reason": "not_found"})
        return json_answer(200, {"id": lead.id, "external_id": lead.external_id, "status": lead.status})

    # A lead's life

    def move(self, lead: Lead, status: str, *, copies: int = 1, secret: str | None = None) -> list[Callback]:
        """Move `lead` by hand, which ends the life it would have had; returns its callbacks."""
        lead.by_hand = True
        return self._move(lead, status, self.clock(), copies, secret)

    def announce(
        self, lead: Lead, status: str, timestamp: int, *, copies: int = 1, secret: str | None = None
    ) -> list[Callback]:
        """Call back that `lead` came to `status` at `timestamp` (unix seconds), whether it did or not."""
        if self.account.callback_url is None:
            return []
        event = self.account.event.format(status=status)
        about = {"internal_id": lead.id, "event": event, "status": status, "timestamp": timestamp}
        told = about | {"external_id": lead.external_id}
        if status in EARNING_STATUSES:
            told |= {"payout": self.account.payout, "currency": self.account.currency}
        body = json.dumps(told).encode()
        headers = partial(_signed_headers, self.account.callback_secret if secret is None else secret)
        return [self.callbacks.plan(self.account.callback_url, body, headers, about) for _ in range(copies)]

    def _live(self, lead: Lead, life: Life, since: float) -> None:
        if not life:
            return
        (seconds, status), *rest = life

        def step(at: float) -> None:
            if not lead.by_hand:
                self._move(lead, status, at)
                self._live(lead, rest, at)

        self.events.plan(since + seconds * self.account.life_scale, step)

    def _move(self, lead: Lead, status: str, at: float, copies: int = 1, secret: str | None = None) -> list[Callback]:
        # However short a life is made, no two of its changes share a second, as they never do at full length.
        timestamp = max(int(at), lead.history[-1][0] + 1) if lead.history else int(at)
        lead.status = status
        lead.history.append((timestamp, status))
        return self.announce(lead, status, timestamp, copies=copies, secret=secret)

    # As the person at the controls sees it

    @override
    def control(self, request: SandboxRequest) -> SandboxResponse:
        """`POST /sandbox/leads/{id or external_id}/status`, and what every sandbox has."""
        match request.method, request.parts[1:]:
            case "POST", ("leads", name, "status"):
                lead = self.leads.get(name) or self.find(name)
                return self._change(lead, request.body) if lead else self.refusal(404, "not_found")
            case _:
                return super().control(request)

    @override
    def state(self) -> dict[str, object]:
        leads = [
            {
                "id": lead.id,
                "external_id": lead.external_id,
                "phone": lead.phone[-2:].rjust(len(lead.phone), "*"),
                "created_at": lead.created_at,
                "status": lead.status,
                "history": lead.history,
            }
            for lead in self.leads.values()
        ]
        return super().state() | {"leads": leads}

    def _change(self, lead: Lead, body: bytes) -> SandboxResponse:
        try:
            change = StatusChange.model_validate_json(body)
        except ValidationError as refused:
            return json_answer(422, {"error": "invalid_change", "problems": problems(refused)})
        if change.seconds_ago:
            then = int(self.clock()) - change.seconds_ago
            callbacks = self.announce(lead, change.status, then, copies=change.copies, secret=change.secret)
        else:
            callbacks = self.move(lead, change.status, copies=change.copies, secret=change.secret)
        numbers = [callback.number for callback in callbacks]
        return json_answer(200, {"id": lead.id, "status": lead.status, "callbacks": numbers})


def _rejected(reason: str) -> SandboxResponse:
    return json_answer(422, {"reason": reason})


# Signatures follow the contract alone: code shared with the relay would agree with the relay's mistakes.


def _signature(body: bytes, secret: str) -> str:
    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def _same(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), expected.encode())


def _signed_headers(secret: str, body: bytes, now: float) -> Mapping[str, str]:
    return {
        "Content-Type": "application/json",
        "X-Timestamp": str(int(now)),
        "X-Signature": _signature(body, secret),
    }
