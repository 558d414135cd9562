"""amoCRM's job in the simulation: people change cards, and notes tell each change once."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from itertools import pairwise
from random import Random
from typing import Any, override
from urllib.parse import urlsplit

import msgspec

from amo_webhook.account import amo_key
from amo_webhook.change import KIND, change_envelope
from crm_relay.amocrm.hooks import read_hook
from crm_relay.amocrm.oauth import TokenPair
from crm_relay.brackets import decode
from crm_relay.delivery.memory import MemoryStore
from crm_relay.delivery.tokens import token_key
from crm_relay.settings import AmoCrmAccount, AmoCrmSecrets, AmoCrmSettings, AmoCrmTexts
from tests.canaries import MARK
from tests.gateway import http_event
from tests.relay import START
from tests.simulation.job import IN_VAIN, Job, end, in_vain_is_told
from tests.simulation.world import World
from workbench.sandboxes import AmoCrmAccount as AmoCrmTerms
from workbench.sandboxes import AmoCrmSandbox, Integration, faults
from workbench.sandboxes.amocrm.account import PIPELINES, USERS, Kind
from workbench.sandboxes.amocrm.oauth import ACCESS_SECONDS
from workbench.sandboxes.callbacks import CallbackDelivery
from workbench.sandboxes.wire import SandboxRequest

HOST = "example.amocrm.ru"
HOOK_TOKEN, CLIENT_SECRET, PERSON = f"{MARK}hook-token-3c8", f"{MARK}client-secret-b12", "Олена"
SUBSCRIBED = ("add_lead", "update_lead", "status_lead", "add_contact", "update_contact")
_OWN_FAULTS = (faults.CodedError(status=500, when="after"), faults.CodedError(status=503))
_CARDS: tuple[Kind, ...] = ("leads", "leads", "contacts")
_POSITION = 735647
_ADDED = "Создан"
_STEP = re.compile(r"^(?:Price|Должность): (\S+) → (\S+)$", re.MULTILINE)


class Notes(Job):
    """Leads and contacts are made and changed; from its first to its last value a card has notes without a gap."""

    kind = KIND

    def __init__(self, world: World) -> None:
        self._world = world
        random = world.random
        ours = Integration(
            client_id="client", client_secret=CLIENT_SECRET, redirect_uri="https://relay.test", user_id=USERS[0].id
        )
        rate = random.choice((2.0, 7.0))
        terms = AmoCrmTerms(
            integrations=(ours,), host=HOST, requests_per_second=int(rate), repeat_scale=random.choice((0.01, 0.1, 1.0))
        )
        self._crm = AmoCrmSandbox(terms, clock=world.time, random=Random(world.seed))
        world.add(HOST, self._crm, limit=rate, deliver=self._deliver, own_faults=_OWN_FAULTS)
        account = AmoCrmAccount(
            account_id=terms.id,
            host=HOST,
            requests_per_second=rate,
            notes_per_request=random.choice((1, 3, 50)),
        )
        settings = AmoCrmSettings({"main": account}, AmoCrmTexts(price="Price"))
        world.settings = msgspec.structs.replace(world.settings, amocrm=settings)
        self._connect(ours)
        self._crm.subscribe(f"https://relay.test/amo/{HOOK_TOKEN}", *SUBSCRIBED)
        self._values: dict[tuple[Kind, int], list[str]] = {}
        """What each card has shown, in order: a lead's price, a contact's position."""

    def _connect(self, ours: Integration) -> None:
        """Let the relay in, by a long-lived token or by a pair that must be refreshed while the storm rages."""
        world = self._world
        if world.random.random() < 0.3:
            self._trust_token(ours)
            world.scheduler.at(START + world.random.uniform(0, world.storm_seconds), partial(self._trust_token, ours))
            return
        self._trust(AmoCrmSecrets(HOOK_TOKEN, "", ours.client_id, CLIENT_SECRET, ours.redirect_uri))
        world.scheduler.now = START - ACCESS_SECONDS + world.random.uniform(0, world.storm_seconds)
        granted = json.loads(self._crm.handle(self._consented(ours)).body)
        pair = TokenPair(HOST, granted["access_token"], granted["refresh_token"], int(world.time() + ACCESS_SECONDS))
        world.scheduler.now = START
        store = MemoryStore(world, world.items)
        store.put(token_key(amo_key("main")), {"pair": asdict(pair), "lease_until": 0}, replaces=None)

    def _consented(self, ours: Integration) -> SandboxRequest:
        code = self._crm.authorize(ours.client_id)
        sent = {
            "client_id": ours.client_id,
            "client_secret": ours.client_secret,
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": ours.redirect_uri,
        }
        headers = {"content-type": "application/json"}
        return SandboxRequest.of("POST", "/oauth2/access_token", headers, json.dumps(sent).encode())

    def _trust_token(self, ours: Integration) -> None:
        self._world.note("the operator", "puts in a new long-lived token of amoCRM")
        self._trust(AmoCrmSecrets(HOOK_TOKEN, self._crm.long_lived_token(ours.client_id)))

    def _trust(self, secrets: AmoCrmSecrets) -> None:
        self._world.secrets = msgspec.structs.replace(self._world.secrets, amocrm={"main": secrets})

    def _deliver(self, delivery: CallbackDelivery) -> int | None:
        path = urlsplit(delivery.url).path
        event = http_event(
            "POST",
            path,
            delivery.headers,
            delivery.body,
            route="/amo/{hook_token}",
            parameters={"hook_token": path.rpartition("/")[2]},
        )

        def call() -> int | None:
            response = self._world.request("amo_receive", event, patience=delivery.timeout)
            return response.status if response else None

        return self._world.repeatedly(call)

    @override
    def start(self) -> None:
        world, random = self._world, self._world.random
        burst = random.random() < 0.3
        world.schedule("amo_upkeep", every=3600, timeout=300)
        for _ in range(max(1, world.events // 20)):
            due = START + random.uniform(0, world.storm_seconds * 0.3)
            world.scheduler.at(due, partial(self._make, random.choice(_CARDS)))
        for _ in range(world.events // 5):
            since = 0.31 * world.storm_seconds
            due = START + since + (random.uniform(0, 10) if burst else random.uniform(0, 0.5 * world.storm_seconds))
            world.scheduler.at(due, self._change_some)
        world.scheduler.at(START + world.storm_seconds, self._unblock)

    def _make(self, kind: Kind) -> None:
        (entity,) = self._crm.add(kind, name=PERSON, **_shown(kind, 1))
        self._values[kind, entity.id] = ["1"]
        self._world.note("somebody", f"makes {kind}#{entity.id}")
        self._world.wake()

    def _change_some(self) -> None:
        """Change one card, or all of a kind at once: amoCRM tells of them in one hook."""
        random = self._world.random
        kind, entity_id = random.choice(list(self._values))
        ids = [id_ for other, id_ in self._values if other == kind] if random.random() < 0.3 else [entity_id]
        number = 1 + max(int(self._values[kind, id_][-1]) for id_ in ids)
        moved: dict[str, Any] = {"status_id": random.choice(PIPELINES[0].statuses).id} if kind == "leads" else {}
        self._crm.change(kind, *ids, **_shown(kind, number), **(moved if random.random() < 0.3 else {}))
        for id_ in ids:
            self._values[kind, id_].append(str(number))
            self._world.note("somebody", f"changes {kind}#{id_}", str(number))
        self._world.wake()

    def _unblock(self) -> None:
        """Let the relay in again, should amoCRM have had enough of what clocks that differ had it do."""
        self._crm.switches.blocked = False

    # What came of it

    @property
    @override
    def events(self) -> int:
        return len(self._told())

    @override
    def problems(self) -> Iterator[str]:
        told = self._told()
        for name, delivered in told.items():
            yield from in_vain_is_told(self._world, name, "notes")
            state = end(self._world, name).get("state")
            if delivered and state not in ("CONFIRMED", *IN_VAIN):
                yield f"{name}: LOST, it was taken and is {state}"
        prefix = f"effect#{KIND}#"
        for key in self._world.items:
            if key.startswith(prefix) and key.removeprefix("effect#") not in told:
                yield f"{key.removeprefix('effect#')}: an effect without an event"
        for kind, entity_id in self._values:
            yield from self._wrong_card(kind, entity_id, told)

    def _told(self) -> dict[str, bool]:
        """Return the names of all effects that hooks ask for, and whether one of these hooks was answered with 2xx."""
        told: defaultdict[str, bool] = defaultdict(bool)
        for sent in self._crm.callbacks.log:
            for event in read_hook(decode(sent.body)).events:
                told[change_envelope("main", event, request_id="", now=0).name] |= sent.state == "delivered"
        return told

    def _wrong_card(self, kind: Kind, entity_id: int, told: dict[str, bool]) -> Iterator[str]:
        card, values = f"main#{kind}#{entity_id}", self._values[kind, entity_id]
        ends = {name: end(self._world, name) for name in told if name.startswith(f"{KIND}#{card}#")}
        texts = self._crm.card(kind, entity_id).texts
        for problem in (*_repeated(texts), *_gaps(texts)):
            yield f"{card}: {problem}"
        written = {note["id"] for note in self._crm.notes.of_kind[kind].values() if note["entity_id"] == entity_id}
        for name, ended in ends.items():
            note = (ended.get("result") or {}).get("note")
            if note and note not in written:
                yield f"{name}: confirmed with note {note}, which is not in its card"
        if all(told[name] and ended.get("state") == "CONFIRMED" for name, ended in ends.items()):
            last = [after for text in texts for _, after in _STEP.findall(text)][-1:]
            if last and last != values[-1:]:
                yield f"{card}: all is confirmed, its notes end with {last}, and its value is {values[-1]}"
            if not texts:
                yield f"{card}: LOST, all is confirmed, and there is no note"


def _repeated(texts: Sequence[str]) -> Iterator[str]:
    added = [text for text in texts if text.startswith(_ADDED)]
    if len(added) > 1:
        yield f"DOUBLED, {len(added)} notes say that it was made"
    mute = [text for text in texts[1:] if not (_STEP.search(text) or text.startswith(_ADDED))]
    if mute:  # the first note of a card may find nothing to compare it with
        yield f"REPEATED, {len(mute)} notes say nothing new"
    for step, times in Counter(step for text in texts for step in _STEP.findall(text)).items():
        if times > 1:
            yield f"DOUBLED, {times} notes tell {step[0]} → {step[1]}"


def _gaps(texts: Sequence[str]) -> Iterator[str]:
    steps = dict.fromkeys(step for text in texts for step in _STEP.findall(text))
    for (_, before), (after, _) in pairwise(steps):
        if before != after:
            yield f"a gap between {before} and {after}"


def _shown(kind: Kind, number: int) -> dict[str, Any]:
    if kind == "leads":
        return {"price": number}
    return {"custom_fields_values": [{"field_id": _POSITION, "values": [{"value": str(number)}]}]}
