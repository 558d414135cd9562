"""What happens to the relay, for each of its functions: something that happens once, and the one effect of it."""

import asyncio
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count
from secrets import token_hex
from typing import Any

import aiohttp

from crm_relay.amocrm.oauth import sign_state
from crm_relay.delivery.aws import DynamoStore, SqsQueue
from crm_relay.delivery.envelope import Envelope
from crm_relay.delivery.memory import MemoryBus
from crm_relay.delivery.outbox import keep
from crm_relay.delivery.ports import Item, Ports
from crm_relay.signing import signature_headers
from lead_submitter.submission import submission
from workbench import events
from workbench.events import HttpRequest
from workbench.local_crms import AmoCrm, Bitrix24, CartelCrm
from workbench.local_relay import LocalRelay
from workbench.sandboxes import AmoCrmSandbox, CartelCrmSandbox
from workbench.sandboxes.bitrix24 import add_whole_deal

_numbers = count(1)
_TOKEN = "token#amocrm#main"
_TIMEOUT = aiohttp.ClientTimeout(40)
_WHOLE = 2, 3, 2
"""Contacts, product rows and files of a deal that is whole."""

_CARDS = 2, 1
"""Contacts and companies of its people."""


class Unanswered(Exception):
    """The caller got no good answer: a function died, or was not ready to serve."""


class Job(ABC):
    """Something that happens once, and the one effect that it must have."""

    def __init__(self, relay: LocalRelay) -> None:
        self.relay = relay
        self.number = next(_numbers)

    async def prepare(self) -> None:  # noqa: B027 (most need nothing)
        """Make what has to be there before."""

    @abstractmethod
    async def happen(self) -> None:
        """Let it happen, or be tried again. Raises Unanswered or FunctionError if it would be tried again later."""

    async def later(self) -> None:  # noqa: B027 (most go on by themselves)
        """Do what the world does by itself as time passes."""

    @abstractmethod
    async def effects(self) -> int:
        """Count the effects."""

    async def send(self, method: str, path: str, headers: Mapping[str, str] = {}, body: bytes = b"") -> bytes:
        """Call the API and return its answer. Raises Unanswered unless it is 2xx."""
        url = self.relay.stack.url + path
        async with (
            aiohttp.ClientSession(timeout=_TIMEOUT) as http,
            http.request(method, url, headers=headers, data=body) as response,
        ):
            answer = await response.read()
        if response.status not in range(200, 300):
            raise Unanswered(response.status, answer)
        return answer

    async def item(self, key: str) -> Item | None:
        """Read an item of the table."""
        return await asyncio.to_thread(DynamoStore(self.client("dynamodb"), self.outputs["TableName"]).get, key)

    def client(self, service: str) -> Any:
        """Return a client of the stack's AWS."""
        return self.relay.stack.client(service)

    @property
    def outputs(self) -> Mapping[str, str]:
        """What the template tells."""
        return self.relay.stack.outputs


# CartelCRM


class CallbackTold(Job):
    """CartelCRM calls back; it repeats what is answered badly."""

    def __init__(self, relay: LocalRelay) -> None:
        super().__init__(relay)
        self._at = int(time.time())

    async def happen(self) -> None:
        body = {"internal_id": f"crash-{self.number}", "event": "lead_approved", "timestamp": self._at}
        sent = json.dumps(body).encode()
        signed = signature_headers(sent, self.relay.keys["cartelcrm_callback_secret"], now=time.time())
        await self.send("POST", "/cartelcrm/callback", {"Content-Type": "application/json", **signed}, sent)

    async def effects(self) -> int:
        """Count changes of status that the bus knows of, by their id."""
        lead = await self.item(f"lead#crash-{self.number}")
        history = lead.attributes["history"] if lead else ()
        details = [published.event["detail"] for published in self.relay.published]
        ids = {detail["id"] for detail in details if detail.get("cartelcrm_id") == f"crash-{self.number}"}
        return max(len(history), len(ids)) if history and ids else 0


class LeadPosted(Job):
    """A caller posts a lead, again and again until it is accepted."""

    prefer = "wait"

    @property
    def external_id(self) -> str:
        return f"crash-{self.number}"

    @property
    def body(self) -> dict[str, str]:
        return {"external_id": self.external_id, "country": "UA", "phone": f"+38050{self.number:07}"}

    @property
    def headers(self) -> dict[str, str]:
        return {
            "Authorization": f"Bearer {self.relay.keys['lead_api_key']}",
            "Content-Type": "application/json",
            "Prefer": self.prefer,
        }

    @property
    def crm(self) -> CartelCrmSandbox:
        crm = self.relay.crm(CartelCrm)
        assert crm
        crm.sandbox.account = replace(crm.sandbox.account, lives=((),))  # no callbacks but those of other jobs
        return crm.sandbox

    async def prepare(self) -> None:
        assert self.crm.find(self.external_id) is None

    async def happen(self) -> None:
        await self.send("POST", "/leads", self.headers, json.dumps(self.body).encode())

    async def effects(self) -> int:
        """Count CartelCRM's leads, once the ledger knows of them."""
        effect = await self.item(f"effect#cartelcrm.lead#{self.external_id}")
        if not (effect and effect.attributes["state"] == "CONFIRMED"):
            return 0
        return sum(lead.external_id == self.external_id for lead in self.crm.leads.values())


class LeadQueued(LeadPosted):
    """A caller posts a lead and does not wait for CartelCRM."""

    prefer = "respond-async"


class LeadAsked(LeadPosted):
    """A caller asks how a lead is doing, again and again until he is told."""

    told = 0

    async def prepare(self) -> None:
        await LeadPosted.happen(self)

    async def happen(self) -> None:
        answer = json.loads(await self.send("GET", f"/leads/{self.external_id}/status", self.headers))
        lead = self.crm.find(self.external_id)
        self.told += lead is not None and (answer["id"], answer["lead_status"]) == (lead.id, lead.status)

    async def effects(self) -> int:
        """Count the right answers; that he asked makes no second lead."""
        return self.told * await LeadPosted.effects(self)


class LeadKept(LeadPosted):
    """A lead waits in the outbox; the drain comes every minute."""

    async def prepare(self) -> None:
        body = json.dumps(self.body)
        lead = submission(self.external_id, body, origin={}, now=time.time(), correlation_id=token_hex(4))
        await asyncio.to_thread(self._keep, lead)

    def _keep(self, lead: Envelope) -> None:
        store = DynamoStore(self.client("dynamodb"), self.outputs["TableName"])
        queue, dead = (SqsQueue(self.client("sqs"), self.outputs[f"Lead{kind}QueueUrl"]) for kind in ("", "DeadLetter"))
        ports = Ports(store, queue, dead, MemoryBus(), time, lambda: 0.0, lambda _: queue)
        keep(ports, lead.kind, lead.encode(), queue)

    async def happen(self) -> None:
        await self.relay.invoke("outbox", {})


# amoCRM


class LeadAdded(Job):
    """Somebody adds a lead in amoCRM, which repeats hooks that are answered badly."""

    lead: int

    @property
    def crm(self) -> AmoCrmSandbox:
        crm = self.relay.crm(AmoCrm)
        assert crm
        return crm.sandbox

    async def happen(self) -> None:
        [lead] = self.crm.add("leads", name="Окна", price=60_000)
        self.lead = lead.id

    async def effects(self) -> int:
        """Count the notes of its card."""
        card = self.crm.card("leads", self.lead)
        return len(card.notes) + card.hidden


class PriceChanged(LeadAdded):
    """Somebody changes a lead that has a note."""

    async def prepare(self) -> None:
        await LeadAdded.happen(self)
        async with asyncio.timeout(30):
            while not await LeadAdded.effects(self):  # noqa: ASYNC110 (there is nothing to wait for but the sandbox)
                await asyncio.sleep(0.05)

    async def happen(self) -> None:
        self.crm.change("leads", self.lead, price=75_000)

    async def effects(self) -> int:
        """Count the notes that came since."""
        return await LeadAdded.effects(self) - 1


class Authorized(LeadAdded):
    """An administrator lets us in; if that goes wrong, he starts anew, as the page tells him."""

    async def prepare(self) -> None:
        if token := await self.item(_TOKEN):
            await asyncio.to_thread(DynamoStore(self.client("dynamodb"), self.outputs["TableName"]).delete, token)

    async def happen(self) -> None:
        keys = self.relay.keys
        state = sign_state("main", token_hex(16), keys["amocrm_client_secret"], now=time.time())
        code = self.crm.authorize(keys["amocrm_client_id"])
        host = self.relay.urls["amocrm"].removeprefix("http://")
        await self.send("GET", f"/amo/oauth?code={code}&state={state}&referer={host}")

    async def effects(self) -> int:
        """Tell whether there is a pair."""
        token = await self.item(_TOKEN)
        return int(token is not None and token.attributes["pair"] is not None)


class Disconnected(Authorized):
    """amoCRM tells that an account has disconnected us."""

    async def prepare(self) -> None:
        await Authorized.happen(self)

    async def happen(self) -> None:
        event = events.signed(events.load("amo_webhook/disconnected"), self.relay.keys, now=time.time())
        request = HttpRequest.of(event)
        await self.send(request.method, request.path, request.headers)

    async def effects(self) -> int:
        """Tell whether the pair is forgotten."""
        return 1 - await Authorized.effects(self)


class HookSwitchedOff(LeadAdded):
    """amoCRM has switched our hook off; upkeep comes every hour."""

    async def prepare(self) -> None:
        for subscription in self._ours:
            subscription.manner.stopped = True

    async def happen(self) -> None:
        await self.relay.invoke("amo_webhook.upkeep", {})

    async def effects(self) -> int:
        """Count the hooks that are on."""
        return sum(not subscription.disabled for subscription in self._ours)

    @property
    def _ours(self) -> Sequence[Any]:
        return list(self.crm.hooks.subscriptions.values())


# Bitrix24


class DealMoved(Job):
    """A deal of the partner comes to a stage where a robot calls us, once; the sweep looks for calls that were lost."""

    deal: int

    @property
    def crm(self) -> Bitrix24:
        crm = self.relay.crm(Bitrix24)
        assert crm
        crm.partner.portal = replace(crm.partner.portal, outgoing=())  # one call for one move
        return crm

    async def prepare(self) -> None:
        self.deal = add_whole_deal(self.crm.partner).id
        for cards in (self.crm.hub.contacts, self.crm.hub.companies):
            cards.clear()  # those of other jobs' deals, which are of the same people

    async def happen(self) -> None:
        self.crm.partner.move(self.deal, self.crm.ROBOT_STAGE)

    async def later(self) -> None:
        await self.relay.invoke("bitrix_robot", {})

    async def effects(self) -> int:
        """Count the hub's deals, once the partner's comment tells of them; each must be whole."""
        made = [deal for deal in self.crm.hub.deals.values() if deal["UF_SOURCE_DEAL_ID"] == self.deal]
        comments = [each for each in self.crm.partner.comments if each.entity_id == self.deal]
        for deal in made if comments else ():
            files = len(deal["UF_CRM_PHOTOS"]) + bool(deal["UF_CRM_CONTRACT_FILE"])
            assert (len(deal["contactIds"]), len(deal.rows), files) == _WHOLE
            assert (len(self.crm.hub.contacts), len(self.crm.hub.companies)) == _CARDS
        return max(len(made), len(comments)) if made and comments else 0


class DealUntold(DealMoved):
    """A deal comes to a stage of the route, and no call tells of it."""

    async def prepare(self) -> None:
        await DealMoved.prepare(self)
        portal = self.crm.partner.portal
        self.crm.partner.portal = replace(portal, webhook_robots=())
        self.crm.partner.move(self.deal, self.crm.ROBOT_STAGE)
        self.crm.partner.portal = portal

    async def happen(self) -> None:
        """Nobody calls."""


JOBS: Mapping[str, tuple[type[Job], ...]] = {
    "BitrixTransferFunction": (DealMoved,),
    "CallbackReceiveFunction": (CallbackTold,),
    "CallbackProcessFunction": (CallbackTold,),
    "LeadApiFunction": (LeadPosted, LeadAsked),
    "LeadSubmitFunction": (LeadQueued,),
    "AmoReceiveFunction": (LeadAdded,),
    "AmoNoteFunction": (LeadAdded, PriceChanged),
    "AmoAuthorizeFunction": (Authorized, Disconnected),
    "AmoUpkeepFunction": (HookSwitchedOff,),
    "BitrixReceiveFunction": (DealMoved,),
    "BitrixSweepFunction": (DealUntold,),
    "OutboxDrainFunction": (LeadKept,),
}
"""For each function of the template, what calls it; the longest first."""
