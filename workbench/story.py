"""The story that `relay start` plays: leads, callbacks, hooks and deals, and what must come of them."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from secrets import token_hex
from typing import Any

import aiohttp

from workbench import events
from workbench.events import HttpRequest, Json
from workbench.local_crms import AmoCrm, Bitrix24, CartelCrm
from workbench.local_relay import LocalRelay
from workbench.sandboxes.amocrm.account import NOBODY
from workbench.sandboxes.bitrix24 import add_whole_deal
from workbench.sandboxes.callbacks import Callback
from workbench.sandboxes.cartelcrm import Lead
from workbench.sandboxes.faults import RateLimited, Reset

PATIENCE = 45.0
"""Seconds after which what has not come is not expected any more."""

_LOOK_EVERY = 0.1
_SUBMIT_PATH = "/api/v1/inbound/leads"
_CALLBACK_PATH = "/cartelcrm/callback"
_LIFE = ("new", "accepted", "hold", "approved", "paid")
_OPEN = {"WAITING", "PLANNED", "SENT"}
_WHOLE = 2, 3, 2
"""Contacts, product rows and files of a deal that is whole."""
_SUBMIT = "LeadSubmitFunction"
_LEAD_API = ("LeadApiFunction",)
_LEAD_SUBMIT = (_SUBMIT,)
_CALLBACK = ("CallbackReceiveFunction", "CallbackProcessFunction")
_HOOK = ("AmoReceiveFunction", "AmoNoteFunction")
_DEAL = ("BitrixReceiveFunction", "BitrixTransferFunction")


@dataclass(frozen=True, slots=True)
class Step:
    """Something that was done with a lead, at unix time `at`, and what came of it.

    If that is not `ok`, `look` names the functions whose logs may tell why.
    """

    at: float
    lead: str
    sent: str
    answer: str
    ok: bool = True
    look: tuple[str, ...] = ()


@dataclass(slots=True)
class LeadTold:
    """A lead of the story: how it was sent, the answer, and the status that callbacks have given it since."""

    external_id: str
    sent: str
    answer: str
    status: str = ""


@dataclass(frozen=True, slots=True)
class NotesTold:
    """Something that happened in amoCRM, to so many leads: the hooks that told of it, and the notes of those leads."""

    happened: str
    leads: int
    hooks: int
    notes: int


@dataclass(frozen=True, slots=True)
class DealTold:
    """A deal of Bitrix24's partner: what told the relay of it, the hub's deals made of it, and what these have."""

    deal: int
    told_by: str
    hub_deals: tuple[int, ...]
    contacts: int = 0
    rows: int = 0
    files: int = 0


class Unexpected(Exception):
    """Something else came than the story wants. It has been told."""


@dataclass
class Story:
    """Plays on a relay whose CRMs are all sandboxes, and tells each step."""

    relay: LocalRelay
    tell: Callable[[Step], None]
    patience: float = PATIENCE
    steps: list[Step] = field(default_factory=list)
    leads: list[LeadTold] = field(default_factory=list)
    notes: list[NotesTold] = field(default_factory=list)
    deals: list[DealTold] = field(default_factory=list)
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    """Deliveries by kind and state, when the story was over."""
    dead_letters: int = 0

    def __post_init__(self) -> None:
        cartelcrm, amocrm = self.relay.crm(CartelCrm), self.relay.crm(AmoCrm)
        bitrix24 = self.relay.crm(Bitrix24)
        assert cartelcrm
        assert amocrm
        assert bitrix24
        self._crm = cartelcrm.sandbox
        self._amo, self._notes_all = amocrm.sandbox, amocrm.notes_all
        self._bitrix = bitrix24
        self._told_by: dict[int, str] = {}  # by deal
        self._due: Counter[int] = Counter()  # notes by lead
        self._http: aiohttp.ClientSession
        self._asking = asyncio.Lock()

    @property
    def ok(self) -> bool:
        """Whether all came as it must."""
        return all(step.ok for step in self.steps)

    def report(self) -> Json:
        """Return the story as JSON."""
        return {
            "ok": self.ok,
            "steps": [asdict(step) for step in self.steps],
            "leads": [asdict(lead) for lead in self.leads],
            "notes": [asdict(notes) for notes in self.notes],
            "deals": [asdict(deal) for deal in self.deals],
            "deliveries": self.counts,
            "dead_letters": self.dead_letters,
        }

    async def play(self) -> None:
        """Play. What goes wrong is told, not raised, and ends its chapter alone."""
        async with aiohttp.ClientSession() as self._http:
            with self._lives_by_hand():
                async with asyncio.TaskGroup() as meanwhile:
                    meanwhile.create_task(self._chapter(self._cards()))
                    meanwhile.create_task(self._chapter(self._deals()))
                    await self._chapter(self._first_lead())
                    await self._chapter(self._busy_crm(meanwhile))
                    await self._chapter(self._unlucky_leads())
                    await self._chapter(self._lost_answer())
                    await self._chapter(self._lead_from_the_bus())
                    await self._chapter(self._callbacks())
            await self._chapter(self._end())

    # Chapters

    async def _first_lead(self) -> None:
        event = events.load("lead_submitter/post_lead")
        await self._post(event, "POST /leads", 200, "accepted")
        asked = len(self._crm.received)
        await self._post(event, "POST /leads, once more", 200, "accepted", ", as stored")
        if len(self._crm.received) != asked:
            self._tell("web-1001", "POST /leads, once more", "CartelCRM was asked again", ok=False, look=_LEAD_API)

    async def _unlucky_leads(self) -> None:
        known = events.load("lead_submitter/post_lead_known_phone")
        await self._post(known, "POST /leads, known phone", 200, "duplicate")
        unwanted = events.load("lead_submitter/post_lead_unwanted")
        await self._post(unwanted, "POST /leads, bad phone", 422, "rejected")

    async def _busy_crm(self, meanwhile: asyncio.TaskGroup) -> None:
        event = _bus_lead(external_id="bus-2002", phone="+380931112233")
        self._crm.faults.add(RateLimited(path=_SUBMIT_PATH, retry_after=1))
        await self._publish_and_wait(event, "LeadSubmitted, busy CRM", "429: it waits")
        meanwhile.create_task(self._chapter(self._second_try(event)))

    async def _second_try(self, event: Json) -> None:
        lead = await self._submitted(event, "the second try", "accepted")
        self.leads.append(LeadTold(lead.external_id, "LeadSubmitted, busy CRM", "accepted"))
        await self._call_back(lead, "approved")

    async def _lost_answer(self) -> None:
        event = _bus_lead(external_id="bus-2003", phone="+380671112233")
        self._crm.faults.add(Reset(path=_SUBMIT_PATH, when="after"))
        await self._publish_and_wait(event, "LeadSubmitted, answer lost", "outcome unknown: it waits")
        # A bus may deliver twice; here that saves waiting for the queue.
        await self.relay.publish(event)
        lead = await self._submitted(event, "LeadSubmitted, once more", "found there: accepted")
        sent = [each for each in self._crm.received if lead.external_id.encode() in each.request.body]
        if len(sent) != 1:
            self._tell(lead.external_id, "LeadSubmitted, once more", f"sent {len(sent)} times", ok=False)
        self.leads.append(LeadTold(lead.external_id, "LeadSubmitted, answer lost", "accepted"))
        await self._call_back(lead, "hold")

    async def _lead_from_the_bus(self) -> None:
        event = _bus_lead()
        await self.relay.publish(event)
        lead = await self._submitted(event, "LeadSubmitted", "accepted")
        self.leads.append(LeadTold(lead.external_id, "LeadSubmitted", "accepted"))
        await self._call_back(lead, "rejected")

    async def _callbacks(self) -> None:
        if not (self.leads and (lead := self._crm.find(self.leads[0].external_id))):
            return
        for status in _LIFE:
            last = await self._call_back(lead, status)
        [late] = self._crm.announce(lead, "hold", lead.history[0][0] - 60)
        await self._answered(late, lead, "callback: hold, too late", "200, kept, not applied", applied=False)
        replay = HttpRequest("POST", _CALLBACK_PATH, last.headers(last.body, time.time()), last.body)
        got = await self._send(replay)
        ok = got == (200, {"ok": True, "replay": True})
        self._check(lead.external_id, "the last callback again", "200, done only once", ok=ok, look=_CALLBACK)
        keys = {**self.relay.keys, "cartelcrm_callback_secret": token_hex(32)}
        forged = events.signed(events.load("callback_receiver/lead_approved"), keys, now=time.time())
        got = await self._send(HttpRequest.of(forged))
        ok = got == (403, {"error": "bad_signature"})
        self._check("", "a forged callback", "403 bad_signature", ok=ok, look=_CALLBACK)

    async def _cards(self) -> None:
        if not self._notes_all:
            self._tell("", "amoCRM", "not played: relay.toml chooses what gets a note", ok=True)
            return
        old = list(self._amo.entities.present["leads"])
        hooks = self._hooks
        [lead] = self._amo.add("leads", name="Окна", price=60_000)
        await self._noted("lead added", [lead.id], self._hooks - hooks)
        for happened, ids, by, fields in (
            ("price changed", [lead.id], None, {"price": 75_000}),
            ("moved by a robot", [lead.id], NOBODY, {"status_id": self._amo.account.pipelines[0].statuses[1].id}),
            (f"{len(old)} leads changed", old, None, {"price": 45_000}),
        ):
            hooks = self._hooks
            self._amo.change("leads", *ids, by=by, **fields)
            await self._noted(happened, ids, self._hooks - hooks)

    async def _deals(self) -> None:
        partner, stages = self._bitrix.partner, self._bitrix
        first = self._bitrix.deal
        partner.move(first, stages.ROBOT_STAGE)
        await self._carried(first, "robot")
        by_webhook = add_whole_deal(partner).id
        partner.move(by_webhook, stages.WEBHOOK_STAGE)
        await self._carried(by_webhook, "webhook")
        await self._app_robot()
        # No call of the portal tells of this one.
        by_json = add_whole_deal(partner, stage=stages.WEBHOOK_STAGE).id
        call = self._call("test_call", deal=by_json, query="route=main&wait=1")
        await self._answered_deal(call, by_json, "a script's call, JSON", 200)
        await self._carried(by_json, "JSON, waits")
        again = self._call("robot_called", deal=first, query="route=main")
        await self._answered_deal(again, first, "the robot once more", 200)
        forged = self._call("deal_updated", deal=first, bitrix24_application_token=token_hex(16))
        got = await self._send(forged)
        ok = got == (403, {"error": "application_token_invalid"})
        self._check(f"deal {first}", "a forged webhook", "403 application_token_invalid", ok=ok, look=_DEAL)
        stray = add_whole_deal(partner).id
        partner.move(stray, stages.STRAY_STAGE)
        await self._refused(stray)

    async def _app_robot(self) -> None:
        installation = self._bitrix.install_app()

        async def believed() -> bool | None:
            return installation.state == "delivered" or None

        self._check("", "Bitrix24: app installed", "200, proven", ok=await self._until(believed), look=_DEAL)
        self._bitrix.place_robot()
        deal = add_whole_deal(self._bitrix.partner).id
        self._bitrix.partner.move(deal, self._bitrix.APP_STAGE)
        await self._carried(deal, "app's robot")

        async def answered() -> Mapping[str, Any] | None:
            runs = (run for run in self._bitrix.partner.robot_results if run.deal_id == deal)
            return next((run.returned for run in runs), None)

        got = await self._until(answered)
        ok = got == {"status": "ok", "esb_deal_id": str(self._in_hub(deal, "").hub_deals[0])}
        told = f"esb_deal_id {got['esb_deal_id']}" if got else "an answer"
        self._check(f"deal {deal}", "the app's robot goes on", told, ok=ok, look=_DEAL)

    async def _end(self) -> None:
        async def settled() -> bool | None:
            self.counts = await self.relay.deliveries()
            return None if any(_OPEN & states.keys() for states in self.counts.values()) else True

        if not await self._until(settled):
            every = _LEAD_SUBMIT + _CALLBACK + _HOOK + _DEAL
            self._tell("", "the last messages", "they still wait", ok=False, look=every)
        queues = (await self.relay.stack.status())["queues"]
        written = Counter({lead_id: self._written(lead_id) for lead_id in self._amo.entities.present["leads"]})
        if written != self._due:
            told = f"{written.total()} notes, not {self._due.total()}"
            self._tell("", "amoCRM: each note once", told, ok=False, look=_HOOK)
        self.deals = [self._in_hub(deal, told_by) for deal, told_by in self._told_by.items()]
        if carried := [told.deal for told in self.deals if len(told.hub_deals) > 1]:
            self._tell("", "Bitrix24: each deal once", f"more than once: {carried}", ok=False, look=_DEAL)
        self.dead_letters = sum(depth["visible"] for name, depth in queues.items() if "DeadLetter" in name)
        for lead in self.leads:
            lead.status = str((await self._get(lead.external_id)).get("lead_status") or "")

    # Sentences

    async def _post(self, event: Json, sent: str, code: int, status: str, remark: str = "") -> None:
        external_id = json.loads(event["body"])["external_id"]
        got, answer = await self._send(HttpRequest.of(events.signed(event, self.relay.keys, now=time.time())))
        told = f"{got} {_verdict(answer, self._crm.leads)}{remark}"
        # A problem's `status` is its HTTP status; what became of the lead is its `error`.
        word = answer.get("error") or answer.get("status")
        ok = (got, word, answer.get("external_id")) == (code, status, external_id)
        if not remark:
            self.leads.append(LeadTold(external_id, sent, told))
        self._tell(external_id, sent, told if ok else f"{told}, not {code} {status}", ok=ok, look=_LEAD_API)
        if not ok:
            raise Unexpected(sent)

    async def _publish_and_wait(self, event: Json, sent: str, answer: str) -> None:
        waited = self._waits
        await self.relay.publish(event)

        async def waits() -> bool | None:
            return self._waits > waited or None

        self._check(event["detail"]["external_id"], sent, answer, ok=await self._until(waits), look=_LEAD_SUBMIT)

    async def _submitted(self, event: Json, sent: str, answer: str) -> Lead:
        external_id = event["detail"]["external_id"]

        async def accepted() -> Lead | None:
            if self._crm.find(external_id) is None:
                return None
            return self._crm.leads.get((await self._get(external_id)).get("id", ""))

        lead = await self._until(accepted)
        self._check(external_id, sent, answer, ok=lead, look=_LEAD_SUBMIT)
        assert lead
        return lead

    async def _call_back(self, lead: Lead, status: str) -> Callback:
        [callback] = self._crm.move(lead, status)
        await self._answered(callback, lead, f"callback: {status}", "200, applied, on the bus", applied=True)
        return callback

    async def _answered(self, callback: Callback, lead: Lead, sent: str, answer: str, *, applied: bool) -> None:
        async def told() -> Json | None:
            return self._published(callback.about) if callback.state == "delivered" else None

        detail = await self._until(told)
        ok = detail is not None and detail["applied"] is applied
        self._check(lead.external_id, sent, answer, ok=ok, look=_CALLBACK)

    async def _noted(self, happened: str, ids: Sequence[int], hooks: int) -> None:
        """Tell what has happened to leads when each has one more note."""
        before = sum(map(self._written, ids))
        self._due.update(ids)

        async def written() -> bool | None:
            return all(self._written(lead_id) >= self._due[lead_id] for lead_id in ids) or None

        found = await self._until(written)
        [*texts] = self._amo.card("leads", ids[0]).texts
        # Of an addition the first sentence, of a change its last line, which names what is different.
        said = texts[-1].splitlines()[-1].partition(". ")[0] if texts else "a note"
        lead, told = (str(ids[0]), said) if len(ids) == 1 else ("", f"{len(ids)} notes")
        self._check(lead, f"amoCRM: {happened}", told, ok=found, look=_HOOK)
        self.notes.append(NotesTold(happened, len(ids), hooks, sum(map(self._written, ids)) - before))

    async def _answered_deal(self, call: HttpRequest, deal: int, sent: str, code: int) -> None:
        """Tell of a call about a deal that is answered with the hub's, or with a word that it waits."""
        got, answer = await self._send(call)
        known, hub_deals = answer.get("esb_deal_id"), self._in_hub(deal, "").hub_deals
        ok = got == code and (answer.get("transfer") == "queued" or (known,) == hub_deals)
        told = f"{got} {f'esb_deal_id {known}' if known else answer.get('transfer', answer)}"
        self._tell(f"deal {deal}", sent, told, ok=ok, look=_DEAL)
        if not ok:
            raise Unexpected(sent)

    async def _carried(self, deal: int, told_by: str) -> None:
        """Tell of a deal when the partner reads that it is in the hub, and all of it is there."""
        self._told_by[deal] = told_by
        comment = await self._commented(deal, "✅")
        there = self._in_hub(deal, told_by)
        whole = (len(there.hub_deals), there.contacts, there.rows, there.files) == (1, *_WHOLE)
        ok = comment and whole and str(there.hub_deals[0]) in comment
        told = f"№{there.hub_deals[0]} in the hub, commented" if ok else f"{comment}: {there}"
        self._check(f"deal {deal}", f"Bitrix24: {told_by}", told, ok=ok, look=_DEAL)

    async def _refused(self, deal: int) -> None:
        self._told_by[deal] = "robot, wrong stage"
        comment = await self._commented(deal, "❌")
        ok = comment and not self._in_hub(deal, "").hub_deals
        reason = comment.partition(": ")[2] if comment else "a comment"
        self._check(f"deal {deal}", "Bitrix24: wrong stage", f"refused: {reason}", ok=ok, look=_DEAL)

    async def _commented(self, deal: int, mark: str) -> str | None:
        async def written() -> str | None:
            comments = (each for each in self._bitrix.partner.comments if each.entity_id == deal)
            return next((each.text for each in comments if each.text.startswith(mark)), None)

        return await self._until(written)

    # Words

    async def _chapter(self, chapter: Coroutine[Any, Any, None]) -> None:
        try:
            await chapter
        except Unexpected:
            pass
        except Exception as error:  # noqa: BLE001 (a stack in trouble may fail in any manner)
            self._tell("", "the story cannot go on", f"{type(error).__name__}: {error}", ok=False)

    def _check(self, lead: str, sent: str, answer: str, *, ok: object, look: tuple[str, ...]) -> None:
        if not ok:
            self._tell(lead, sent, f"did not come: {answer}", ok=False, look=look)
            raise Unexpected(sent)
        self._tell(lead, sent, answer)

    def _tell(self, lead: str, sent: str, answer: str, *, ok: bool = True, look: tuple[str, ...] = ()) -> None:
        step = Step(time.time(), lead, sent, answer, ok, look)
        self.steps.append(step)
        self.tell(step)

    @contextmanager
    def _lives_by_hand(self) -> Iterator[None]:
        """Have no lead live by itself, so that the story decides what becomes of it, and when."""
        account = self._crm.account
        self._crm.account = replace(account, lives=((),))
        try:
            yield
        finally:
            self._crm.account = account

    async def _send(self, request: HttpRequest) -> tuple[int, Json]:
        url = self.relay.stack.url + request.path
        sending = self._http.request(request.method, url, headers=request.headers, data=request.body)
        async with sending as response:
            return response.status, await response.json(content_type=None)

    async def _get(self, external_id: str) -> Json:
        headers = {"Authorization": f"Bearer {self.relay.keys['lead_api_key']}"}
        async with self._asking:  # two at once would start a second process of the function
            _, known = await self._send(HttpRequest("GET", f"/leads/{external_id}", headers, b""))
        return known

    async def _until[T](self, look: Callable[[], Coroutine[Any, Any, T | None]]) -> T | None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self.patience):
                found = await look()
                while found is None:
                    await asyncio.sleep(_LOOK_EVERY)
                    found = await look()
                return found
        return None

    def _call(self, name: str, *, deal: int, query: str = "", **keys: str) -> HttpRequest:
        """Return a sample call of Bitrix24, about another deal."""
        event = events.of_deal(events.load(f"bitrix_robot/{name}"), deal)
        signed = events.signed(event, {**self.relay.keys, **keys}, now=time.time())
        return HttpRequest.of({**signed, "rawQueryString": query})

    def _in_hub(self, deal: int, told_by: str) -> DealTold:
        """Return what the hub has of a deal."""
        made = [each for each in self._bitrix.hub.deals.values() if each["UF_SOURCE_DEAL_ID"] == deal]
        return DealTold(
            deal,
            told_by,
            tuple(each.id for each in made),
            contacts=sum(len(each["contactIds"]) for each in made),
            rows=sum(len(each.rows) for each in made),
            files=sum(len(each["UF_CRM_PHOTOS"]) + bool(each["UF_CRM_CONTRACT_FILE"]) for each in made),
        )

    @property
    def _hooks(self) -> int:
        """How many hooks amoCRM has made so far."""
        return len(self._amo.callbacks.log)

    def _written(self, lead_id: int) -> int:
        """How many notes a lead has, those included that its card does not show."""
        card = self._amo.card("leads", lead_id)
        return len(card.notes) + card.hidden

    @property
    def _waits(self) -> int:
        """How often a lead went back to the queue to wait."""
        counts = self.relay.metrics.by_function.get(_SUBMIT)
        return counts["Waiting"] if counts else 0

    def _published(self, about: Mapping[str, object]) -> Json | None:
        wanted = (about["internal_id"], about["event"], about["timestamp"])
        for published in self.relay.published:
            detail = published.event["detail"]
            if wanted == (detail.get("cartelcrm_id"), detail.get("event"), detail.get("timestamp")):
                return dict(detail)
        return None


def _bus_lead(**changes: str) -> Json:
    [(_, body)] = events.messages(events.load("lead_submitter/lead_submitted"))
    event = events.bus_event(body)
    assert event
    return {**event, "detail": {**event["detail"], **changes}}


def _verdict(answer: Json, leads: Mapping[str, Lead]) -> str:
    match answer:
        case {"status": "duplicate", "id": str(lead_id)} if lead_id in leads:
            return f"duplicate of {leads[lead_id].external_id}"
        case {"error": "rejected", "reason": reason}:
            return f"rejected: {reason}"
        case _:
            return str(answer.get("status", answer))
