"""CartelCRM's two jobs in the simulation: leads go there, callbacks come from there."""

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
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
from tests.canaries import MARK
from tests.gateway import http_event
from tests.relay import START
from tests.simulation.job import IN_VAIN, Fields, Job, end, in_vain_is_told
from tests.simulation.world import World
from workbench.sandboxes import CartelCrmAccount, CartelCrmSandbox
from workbench.sandboxes.callbacks import Callback as SentCallback
from workbench.sandboxes.callbacks import CallbackDelivery

_DUPLICATE_BY: tuple[frozenset[Literal["external_id", "phone"]], ...] = (
    frozenset(),
    frozenset({"external_id"}),
    frozenset({"external_id", "phone"}),
)

_FORGER = f"{MARK}forged"


class CartelCrm:
    """CartelCRM's side, which its two jobs share."""

    API_KEYS = (f"{MARK}api-key-1", f"{MARK}api-key-2")
    HMAC_SECRET, LEAD_KEY = f"{MARK}hmac-secret-77c", f"{MARK}lead-key-0a9"
    CALLBACK_SECRETS = (f"{MARK}callback-secret-1", f"{MARK}callback-secret-2")

    def __init__(self, world: World) -> None:
        random = world.random
        self.world = world
        account = CartelCrmAccount(
            api_key=self.API_KEYS[0],
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
        self.refused: list[str] = []
        """Genuine callbacks that were refused, and how."""
        digest = hashlib.sha256(self.LEAD_KEY.encode()).hexdigest()
        secrets = CartelCrmSecrets(self.API_KEYS[0], self.HMAC_SECRET, (CallbackSecret(self.CALLBACK_SECRETS[0]),))
        world.secrets = msgspec.structs.replace(world.secrets, cartelcrm=secrets, lead_api_keys={"website": digest})
        for rotate in (self._rotate_callback_secret, self._rotate_api_key):
            if random.random() < 0.5:
                world.scheduler.at(START + random.uniform(0, world.storm_seconds), rotate)

    def _deliver(self, delivery: CallbackDelivery) -> int | None:
        event = http_event("POST", urlsplit(delivery.url).path, delivery.headers, delivery.body)

        def call() -> int | None:
            response = self.world.request("callback_receive", event, patience=delivery.timeout)
            # Of the storm's processes some have a clock that is off, or know yesterday's secret alone.
            refused = (400, 422) if self.world.chaos.storm else (400, 403, 422)
            if response and response.status in refused and not _is_forged(delivery.body, delivery.headers):
                self.refused.append(f"{delivery.body.decode()}: a genuine callback, refused with {response.status}")
            return response.status if response else None

        return self.world.repeatedly(call)

    def _trust(self, **secrets: object) -> None:
        cartelcrm = msgspec.structs.replace(self.world.secrets.cartelcrm, **secrets)
        self.world.secrets = msgspec.structs.replace(self.world.secrets, cartelcrm=cartelcrm)

    def _rotate_callback_secret(self) -> None:
        """Add the next secret, let every process see it, and only then sign with it."""
        old, new = self.CALLBACK_SECRETS
        now = self.world.time()
        self.world.note("the operator", "rotates the callback secret")
        ends = datetime.fromtimestamp(now + 86_400, UTC)
        self._trust(callback_secrets=(CallbackSecret(old, ends), CallbackSecret(new)))
        self.world.scheduler.at(now + 600, partial(self._use, callback_secret=new))

    def _rotate_api_key(self) -> None:
        """Make another key in CartelCRM, which forgets the old one at once, and tell the relay a while later."""
        new = self.API_KEYS[1]
        self.world.note("the operator", "rotates CartelCRM's key")
        self._use(api_key=new)
        told_at = self.world.time() + self.world.random.uniform(1, 600)
        self.world.scheduler.at(told_at, partial(self._trust, api_key=new))

    def _use(self, **secrets: str) -> None:
        for name, secret in secrets.items():
            object.__setattr__(self.sandbox.account, name, secret)


def _is_forged(body: bytes, headers: Mapping[str, str]) -> bool:
    return headers["X-Signature"] == signature_headers(body, _FORGER, now=0)["X-Signature"]


class Leads(Job):
    """Leads come by the API, from the bus and by direct invocation; each is in CartelCRM once."""

    kind = SUBMISSION

    def __init__(self, world: World, cartelcrm: CartelCrm) -> None:
        self._world = world
        self._crm = cartelcrm.sandbox
        self._bodies: dict[str, list[Fields]] = {}
        self._taken: set[str] = set()
        """Names of effects that somebody was told we have taken."""
        self._told: defaultdict[str, list[Fields]] = defaultdict(list)
        self._refused: list[str] = []

    @override
    def start(self) -> None:
        world, random = self._world, self._world.random
        burst = random.random() < 0.3
        for number in range(max(1, world.events // 3)):
            phone = f"+38050{number % 1000:03d}{random.choice(('0000', '4567', '1234')) if number % 7 == 0 else '4567'}"
            lead = {"external_id": f"lead-{number}", "country": "UA", "phone": phone, "first_name": "Олена"}
            bodies: list[Fields] = [lead]
            if random.random() < 0.05:
                bodies.append({**lead, "first_name": "Павел"})
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
                elif response.status != 409:  # of two leads with the same external_id
                    self._refused.append(f"{_effect(lead)}: refused with {response.status} {response.json()}")
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
        yield from self._refused
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

    kind = KIND

    def __init__(self, world: World, cartelcrm: CartelCrm) -> None:
        self._world = world
        self._cartelcrm = cartelcrm
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
        return len({sent.body for sent in self._crm.callbacks.log})

    @override
    def problems(self) -> Iterator[str]:
        published = Counter(detail["id"] for kind, detail in self._world.bus.events if kind == "CartelCallback")
        yield from self._cartelcrm.refused
        genuine = {callback.key: callback for callback, _ in self._genuine()}
        # The keys are the relay's own; that it tells callbacks apart is seen by their bodies.
        bodies = len({sent.body for sent in self._sent()})
        if bodies != len(genuine):
            yield f"{KIND}: {bodies} callbacks have {len(genuine)} keys"
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

    def _sent(self) -> Iterator[SentCallback]:
        return (sent for sent in self._crm.callbacks.log if not _is_forged(sent.body, sent.headers(sent.body, 0)))

    def _genuine(self) -> Iterator[tuple[Callback, str]]:
        return ((callback_of(json.loads(sent.body)), sent.state) for sent in self._sent())

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
