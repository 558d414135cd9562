"""CartelCRM's two jobs in the simulation: leads go there, callbacks come from there."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from random import Random
from typing import Literal, override
from urllib.parse import urlsplit

import msgspec

from crm_relay.cartelcrm.callbacks import KIND, Callback, callback_of
from crm_relay.cartelcrm.leads import SUBMISSION, Lead, lead_key, status_of
from crm_relay.cartelcrm.statuses import STATUSES
from crm_relay.settings import CallbackSecret, CartelCrmSecrets
from crm_relay.signing import signature_headers
from tests.gateway import http_event
from tests.relay import START
from tests.simulation.job import IN_VAIN, Fields, Job, end, in_vain_is_told
from tests.simulation.world import World
from workbench.sandboxes import CartelCrmAccount, CartelCrmSandbox
from workbench.sandboxes.callbacks import CallbackDelivery

_DUPLICATE_BY: tuple[frozenset[Literal["external_id", "phone"]], ...] = (
    frozenset(),
    frozenset({"external_id"}),
    frozenset({"external_id", "phone"}),
)

_FORGER = "mark-forged"


class CartelCrm:
    """CartelCRM's side, which its two jobs share."""

    API_KEY, HMAC_SECRET, LEAD_KEY = "mark-api-key-5d1", "mark-hmac-secret-77c", "mark-lead-key-0a9"
    CALLBACK_SECRETS = ("mark-callback-secret-1", "mark-callback-secret-2")

    def __init__(self, world: World) -> None:
        random = world.random
        self.world = world
        account = CartelCrmAccount(
            api_key=self.API_KEY,
            hmac_secret=self.HMAC_SECRET,
            callback_secret=self.CALLBACK_SECRETS[0],
            callback_url="https://relay.test/cartelcrm/callback",
            # Without a look of its own at duplicates, a second submission would be a second lead.
            duplicate_by=random.choice(_DUPLICATE_BY),
            life_scale=random.choice((0.001, 0.01, 0.05)),
        )
        self.sandbox = CartelCrmSandbox(account, clock=world.time, random=Random(world.seed))
        rate = random.choice((1.0, 2.0, 10.0))
        world.add("cartelcrm.com", self.sandbox, limit=rate, deliver=self._deliver)
        cartelcrm = msgspec.structs.replace(world.settings.cartelcrm, requests_per_second=rate)
        world.settings = msgspec.structs.replace(world.settings, cartelcrm=cartelcrm)
        self._trust(CallbackSecret(self.CALLBACK_SECRETS[0]))
        if random.random() < 0.5:
            rotates_at = START + random.uniform(0, world.storm_seconds)
            world.scheduler.at(rotates_at, partial(self._rotate, rotates_at))

    def _deliver(self, delivery: CallbackDelivery) -> int | None:
        event = http_event("POST", urlsplit(delivery.url).path, delivery.headers, delivery.body)
        response = self.world.request("callback_receive", event, patience=delivery.timeout)
        return response.status if response else None

    def _trust(self, *callback_secrets: CallbackSecret) -> None:
        digest = hashlib.sha256(self.LEAD_KEY.encode()).hexdigest()
        cartelcrm = CartelCrmSecrets(self.API_KEY, self.HMAC_SECRET, callback_secrets)
        self.world.secrets = msgspec.structs.replace(
            self.world.secrets, cartelcrm=cartelcrm, lead_api_keys={"website": digest}
        )

    def _rotate(self, now: float) -> None:
        """Add the next secret, let every process see it, and only then sign with it."""
        old, new = self.CALLBACK_SECRETS
        self.world.note("the operator", "rotates the callback secret")
        self._trust(CallbackSecret(old, datetime.fromtimestamp(now + 86_400, UTC)), CallbackSecret(new))
        self.world.scheduler.at(now + 600, self._sign_anew)

    def _sign_anew(self) -> None:
        account = self.sandbox.account
        object.__setattr__(account, "callback_secret", self.CALLBACK_SECRETS[1])


class Leads(Job):
    """Leads come by the API, from the bus and by direct invocation; each is in CartelCRM once."""

    def __init__(self, world: World, cartelcrm: CartelCrm) -> None:
        self._world = world
        self._crm = cartelcrm.sandbox
        self._bodies: dict[str, list[Fields]] = {}
        self._taken: set[str] = set()
        """Names of effects that somebody was told we have taken."""
        self._told: defaultdict[str, list[Fields]] = defaultdict(list)
        self.marks = (*CartelCrm.CALLBACK_SECRETS, CartelCrm.API_KEY, CartelCrm.HMAC_SECRET, CartelCrm.LEAD_KEY)

    @override
    def start(self) -> None:
        world, random = self._world, self._world.random
        burst = random.random() < 0.3
        for number in range(max(1, world.events // 4)):
            phone = f"+38050{number % 1000:03d}{random.choice(('0000', '4567', '1234')) if number % 7 == 0 else '4567'}"
            lead = {"external_id": f"lead-{number}", "country": "UA", "phone": phone, "first_name": "Mark-Ivanna"}
            self.marks += (phone, "Mark-Ivanna")
            bodies: list[Fields] = [lead]
            if random.random() < 0.05:
                bodies.append({**lead, "first_name": "Mark-Petro"})
            self._bodies[f"lead-{number}"] = bodies
            due = START + random.uniform(0, 5 if burst else world.storm_seconds * 0.8)
            for body in bodies:
                way = random.choice((self._by_api, self._by_api, self._by_api, self._by_bus, self._by_invocation))
                for _ in range(world.chaos.copies_of_one()):
                    at = due + random.choice((0.0, 0.01, 1.0, 40.0, 300.0)) * random.random()
                    world.scheduler.at(at, partial(world.scheduler.start, partial(way, body)))

    def _by_api(self, lead: Fields) -> None:
        headers = {"content-type": "application/json", "authorization": f"Bearer {CartelCrm.LEAD_KEY}"}
        if self._world.random.random() < 0.3:
            headers["prefer"] = "respond-async"
        event = http_event("POST", "/leads", headers, json.dumps(lead).encode())
        for _ in range(20):
            response = self._world.request("lead_api", event, patience=29)
            if response and response.status < 500:
                if response.status in (200, 202, 422):
                    self._answered(lead, response.json())
                return
            self._world.sleep(self._world.random.uniform(1, 120))

    def _by_bus(self, lead: Fields) -> None:
        event = {"version": "0", "id": "6a7e8feb-b491", "detail-type": "LeadSubmitted", "source": "shop"}
        self._world.queues["leads"].send(json.dumps(event | {"detail": lead}))
        self._taken.add(_effect(lead))
        self._world.wake()

    def _by_invocation(self, lead: Fields) -> None:
        for _ in range(20):
            verdict = self._world.invoke("lead_submit", lead, 120)
            if verdict is not None:
                if verdict["status"] != "conflict":
                    self._answered(lead, verdict)
                return
            self._world.sleep(self._world.random.uniform(1, 120))

    def _answered(self, lead: Fields, verdict: Fields) -> None:
        self._taken.add(_effect(lead))
        self._told[lead["external_id"]].append(verdict)

    @property
    @override
    def events(self) -> int:
        return sum(map(len, self._bodies.values()))

    @override
    def problems(self) -> Iterator[str]:
        made: defaultdict[str, list[str]] = defaultdict(list)
        for lead in self._crm.leads.values():
            made[lead.external_id].append(lead.id)
        for external_id in made.keys() - self._bodies.keys():
            yield f"{external_id}: an effect without an event"
        for external_id, (body, *_) in self._bodies.items():
            name, ids = _effect(body), made[external_id]
            yield from in_vain_is_told(self._world, name, "leads")
            if len(ids) > 1:
                yield f"{name}: DOUBLED, {len(ids)} leads"
            if wrong := self._wrong_end(name, ids, blacklisted=body["phone"].endswith("0000")):
                yield f"{name}: {wrong}; CartelCRM has {ids}"
            for told in self._told[external_id]:
                lies = told["status"] == "rejected" if ids else told["status"] in ("accepted", "duplicate")
                if lies or (told.get("id") and told["id"] not in ids):
                    yield f"{name}: a caller was told {told}; CartelCRM has {ids}"

    def _wrong_end(self, name: str, ids: list[str], *, blacklisted: bool) -> str | None:
        effect = end(self._world, name)
        match effect.get("state"):
            case "CONFIRMED":
                return None if [effect["result"]["id"]] == ids else f"confirmed as {effect['result']}"
            case "REJECTED":
                return None if blacklisted and not ids else f"rejected: {effect['result']}"
            case "GIVEN_UP":
                return "given up as never done" if ids else None
            case "NEEDS_RECONCILE":
                return None
            case state:
                return f"LOST, it was taken and is {state}" if name in self._taken else None


class Callbacks(Job):
    """CartelCRM calls back; each callback is told to its lead once, and the newest one counts."""

    def __init__(self, world: World, cartelcrm: CartelCrm) -> None:
        self._world = world
        self._crm = cartelcrm.sandbox

    @override
    def start(self) -> None:
        """Beside what the leads' own lives bring: forged and repeated calls."""
        random, world = self._world.random, self._world
        for _ in range(world.events // 10):
            world.scheduler.at(START + random.uniform(0, world.storm_seconds), self._meddle)

    def _meddle(self) -> None:
        random, leads = self._world.random, list(self._crm.leads.values())
        if not leads:
            return
        lead, copies = random.choice(leads), self._world.chaos.copies_of_one()
        if random.random() < 0.3:
            self._crm.announce(lead, "returned", int(self._world.time()), copies=copies, secret=_FORGER)
        else:
            told_late = int(self._world.time()) - random.randint(0, 900)
            self._crm.announce(lead, random.choice(("accepted", "hold", "no_such_word")), told_late, copies=copies)
        self._world.wake()

    @property
    @override
    def events(self) -> int:
        return len(self._crm.callbacks.log)

    @override
    def problems(self) -> Iterator[str]:
        published = Counter(detail["id"] for kind, detail in self._world.bus.events if kind == "CartelCallback")
        genuine = {callback.key: callback for callback, _ in self._genuine()}
        taken = {callback.key for callback, state in self._genuine() if state == "delivered"}
        told = Counter(entry["key"] for lead_id in self._crm.leads for entry in self._lead(lead_id).history)
        for key in (told.keys() | published.keys()) - genuine.keys():
            yield f"{KIND}#{key}: an effect without an event"
        for key in genuine:
            name = f"{KIND}#{key}"
            state = end(self._world, name).get("state")
            yield from in_vain_is_told(self._world, name, "callbacks")
            if told[key] > 1:
                yield f"{name}: DOUBLED, told {told[key]} times"
            if state == "CONFIRMED" and not (told[key] and published[key]):
                yield f"{name}: confirmed, told {told[key]} times, published {published[key]} times"
            if key in taken and state not in ("CONFIRMED", *IN_VAIN):
                yield f"{name}: LOST, it was taken and is {state}"
        for lead_id in self._crm.leads:
            yield from self._newest_counts(
                lead_id, [one for one in genuine.values() if one.internal_id == lead_id and told[one.key]]
            )

    def _genuine(self) -> Iterator[tuple[Callback, str]]:
        for sent in self._crm.callbacks.log:
            forged = signature_headers(sent.body, _FORGER, now=0)
            if sent.headers(sent.body, 0)["X-Signature"] != forged["X-Signature"]:
                yield callback_of(json.loads(sent.body)), sent.state

    def _newest_counts(self, internal_id: str, callbacks: list[Callback]) -> Iterator[str]:
        aliases = self._world.settings.cartelcrm.aliases
        known = [(callback.timestamp, status_of(callback, aliases)) for callback in callbacks]
        ranked = [(at, STATUSES.index(status), status) for at, status in known if status in STATUSES]
        lead = self._lead(internal_id)
        if ranked and lead.status != max(ranked)[2]:
            yield f"{lead_key(internal_id)}: stands at {lead.status}, and the newest callback says {max(ranked)[2]}"

    def _lead(self, internal_id: str) -> Lead:
        item = self._world.items.get(lead_key(internal_id))
        return Lead.read(item.attributes if item else {})


def _effect(lead: Fields) -> str:
    return f"{SUBMISSION}#{lead['external_id']}"
