"""Bitrix24's job in the simulation: a partner's deals get to the hub, each once and whole."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from random import Random
from typing import Any, override

import msgspec

from bitrix_robot.keys import app_key, portal_key
from bitrix_robot.order import DEAL, KIND, Order
from crm_relay.bitrix24.calls import read_body, read_call
from crm_relay.bitrix24.client import APPEARS_WITHIN
from crm_relay.bitrix24.oauth import TokenPair
from crm_relay.delivery.account import pause_key
from crm_relay.delivery.memory import MemoryStore
from crm_relay.delivery.tokens import token_key
from crm_relay.settings import Bitrix24Field, Bitrix24Portal, Bitrix24Secrets, Bitrix24Settings
from tests.canaries import MARK
from tests.gateway import http_event
from tests.relay import ROUTE, START
from tests.simulation.job import IN_VAIN, Job, dead, end, in_vain_is_told
from tests.simulation.world import World
from workbench.sandboxes import faults
from workbench.sandboxes.bitrix24 import (
    HUB,
    HUB_SCOPES,
    PARTNER,
    READY,
    SOURCE_SCOPES,
    App,
    Bitrix24OAuth,
    Bitrix24Sandbox,
    IncomingWebhook,
    OutgoingWebhook,
    WebhookRobot,
)
from workbench.sandboxes.bitrix24 import Bitrix24Portal as Bitrix24Terms
from workbench.sandboxes.bitrix24.hooks import Robot, RobotRun
from workbench.sandboxes.bitrix24.items import Item
from workbench.sandboxes.bitrix24.oauth import ACCESS_SECONDS
from workbench.sandboxes.callbacks import CallbackDelivery
from workbench.sandboxes.wire import SandboxRequest, SandboxResponse

URL_KEYS = {"partner": f"{MARK}url-key-of-the-partner", "hub": f"{MARK}url-key-of-the-hub-00"}
APPLICATION_TOKEN, PERSON = f"{MARK}application-token", "Мария"
_APP_TOKEN, _APP_SECRET, _WEBHOOK = f"{MARK}app-token", f"{MARK}app-secret", f"{MARK}webhook"
_NEXT_WEBHOOK = f"{MARK}next-webhook"
_ROBOT = "send_to_hub"
_RELAY = "https://relay.test"
_LIMIT = 2.0
_OWN_FAULTS = (
    faults.CodedError(status=503, code="QUERY_LIMIT_EXCEEDED"),
    faults.RateLimited(code="OPERATION_TIME_LIMIT"),
    faults.CodedError(status=500, code="INTERNAL_SERVER_ERROR"),
    faults.CodedError(status=500, code="INTERNAL_SERVER_ERROR", when="after"),
    faults.Html(status=504, when="after"),
)
_ROUTE = msgspec.structs.replace(
    ROUTE, fields={**ROUTE.fields, "UF_CRM_SERVICES": Bitrix24Field("UF_CRM_SERVICES", match="xml_id")}
)
_FILE_FIELDS = {"UF_CRM_67BC9A01": "UF_CRM_CONTRACT_FILE", "UF_CRM_PHOTOS": "UF_CRM_PHOTOS"}
_PRODUCTS = {0: 0, 101: 2001, 102: 2002}
_SERVICES = {51: 921, 52: 920}
_MOVES_UNTIL = 0.8
"""Share of the storm in which people move deals."""


@dataclass(frozen=True)
class _Written:
    """Something that came to a portal: `held` seconds after its writer's last word of it in the ledger."""

    held: float
    skew: float


class _Portal(Bitrix24Sandbox):
    """A portal that remembers of what is written into it how late that came."""

    def __init__(self, terms: Bitrix24Terms, oauth: Bitrix24OAuth, world: World) -> None:
        super().__init__(terms, oauth, clock=world.time, random=Random(world.seed))
        self.written: defaultdict[str, list[_Written]] = defaultdict(list)
        self._world = world

    @override
    def handle(self, request: SandboxRequest) -> SandboxResponse:
        known = [len(items) for items in self.items.present.values()]
        comments, files = len(self.comments), len(self.files.stored)
        response = super().handle(request)
        for before, items in zip(known, self.items.present.values(), strict=True):
            for item in list(items.values())[before:]:
                self._remember(item["originId"], item["originId"])
        for comment in self.comments[comments:]:
            self._remember(f"comment:{comment.entity_id}", f"deal:{comment.entity_id}:main")
        if len(self.files.stored) > files:
            origin = self.deals[json.loads(request.body)["id"]]["originId"]
            self._remember(f"file:{origin}", origin)
        return response

    def _remember(self, what: str, origin: str) -> None:
        arrived = self._world.arrived
        assert arrived
        marked_at = arrived.marks.get(_effect_of(origin), arrived.at)
        self.written[what].append(_Written(arrived.at - marked_at, arrived.skew))

    def is_unprovable(self, what: str) -> bool:
        """Whether something came so late, or from workers whose clocks differ so much, that nobody can promise it."""
        writes = self.written[what]
        skews = [write.skew for write in writes]
        return max(write.held for write in writes) + max(skews) - min(skews) > APPEARS_WITHIN


@dataclass(frozen=True)
class _Call:
    """A call: what it is in the ledger, when it was made, how many numbers its deal had shown, and the answer."""

    name: str
    deal: int
    at: float
    shown: int
    status: int | None
    answer: Mapping[str, Any]

    @property
    def taken(self) -> bool:
        return self.status in range(200, 300)


class Deals(Job):
    """People make deals, fill them and move them on; robots, webhooks and scripts tell of it, or the sweep finds it."""

    kind = KIND
    parts = (DEAL, "bitrix24.card")

    def __init__(self, world: World) -> None:
        self._world = world
        random = world.random
        self._oauth = Bitrix24OAuth(clock=world.time, random=Random(world.seed))
        by_app = {name: random.random() < 0.5 for name in URL_KEYS}
        self._updates = random.random() < 0.5
        ways = {way for way in ("robot", "event", "app") if random.random() < 0.5}
        robots = (WebhookRobot(stage=READY, url=f"{_address('partner')}?route=main"),) if "robot" in ways else ()
        events = (OutgoingWebhook(id=1, url=_address("partner"), application_token=APPLICATION_TOKEN),)
        self._partner = self._portal(
            replace(
                PARTNER,
                webhook_robots=robots,
                outgoing=events if "event" in ways else (),
                link_seconds=random.choice((30.0, 3_600.0)),
            ),
            SOURCE_SCOPES,
        )
        self._hub = self._portal(HUB, HUB_SCOPES)
        if "app" in ways:
            robot = Robot(self._partner.portal.apps[0], _ROBOT, _address("partner"), 1, True, ("route",), _RETURNED)
            self._partner.hooks.robots[_ROBOT] = robot
            self._partner.place_robot(READY, _ROBOT, route="main")
        portals = {"partner": self._partner, "hub": self._hub}
        self._connect(portals, by_app)
        for name, portal in portals.items():
            world.add(portal.portal.domain, portal, limit=_LIMIT, deliver=self._deliver, own_faults=_OWN_FAULTS)
            if by_app[name]:
                self._look_after(name, portal)
            elif random.random() < 0.5:
                world.scheduler.at(START + random.uniform(0, world.storm_seconds), partial(self._rotate, name, portal))
        world.add(world.settings.bitrix24.oauth_host, self._oauth, limit=_LIMIT)
        self._calls: list[_Call] = []
        self._tellings = 0
        """Calls, but not their copies."""
        self._contracts: defaultdict[int, list[str]] = defaultdict(list)
        """Numbers that each deal has shown."""
        self._moved: dict[int, float] = {}
        """When each deal came to the stage."""

    def _portal(self, terms: Bitrix24Terms, scopes: frozenset[str]) -> _Portal:
        app = App(
            client_id="local.app",
            client_secret=_APP_SECRET,
            application_token=_APP_TOKEN,
            user_id=1,
            scopes=scopes,
        )
        furnished = replace(terms, incoming=(IncomingWebhook(1, _WEBHOOK, scopes),), apps=(app,))
        return _Portal(furnished, self._oauth, self._world)

    def _connect(self, portals: Mapping[str, _Portal], by_app: Mapping[str, bool]) -> None:
        """Let the relay in: by a webhook, or as an app whose token pair must be refreshed while the storm rages."""
        world = self._world
        settings = Bitrix24Settings(
            portals={
                "partner": Bitrix24Portal("source", PARTNER.member_id, PARTNER.domain),
                "hub": Bitrix24Portal("hub", HUB.member_id, HUB.domain),
            },
            routes={"main": msgspec.structs.replace(_ROUTE, on_repeat="update" if self._updates else "nothing")},
        )
        world.settings = msgspec.structs.replace(world.settings, bitrix24=settings)
        secrets = {}
        store = MemoryStore(world, world.items)
        store.put(f"sweep#{portal_key('partner')}", {"last": 0}, replaces=None)  # whatever is moved is ours to carry
        for name, portal in portals.items():
            webhook = "" if by_app[name] else _webhook_url(portal, _WEBHOOK)
            told = (URL_KEYS[name], webhook, APPLICATION_TOKEN, "local.app", _APP_SECRET)
            secrets[name] = Bitrix24Secrets(*told)
            store.put(app_key(name), {"application_token": _APP_TOKEN}, replaces=None)
            if by_app[name]:
                world.scheduler.now = START - ACCESS_SECONDS + world.random.uniform(0, world.storm_seconds)
                grant = portal.grant("local.app")
                world.scheduler.now = START
                pair = TokenPair(
                    portal.portal.member_id, grant.access_token, grant.refresh_token, int(grant.expires_at)
                )
                store.put(token_key(portal_key(name)), {"pair": asdict(pair), "lease_until": 0}, replaces=None)
        world.secrets = msgspec.structs.replace(world.secrets, bitrix24=secrets)

    def _rotate(self, name: str, portal: _Portal) -> None:
        """Make another webhook and let every process see it before the old one goes."""
        self._world.note("the operator", f"rotates the webhook of the portal {name}")
        (old,) = portal.portal.incoming
        new = replace(old, secret=_NEXT_WEBHOOK)
        portal.portal = replace(portal.portal, incoming=(old, new))
        secrets = self._world.secrets.bitrix24
        told = msgspec.structs.replace(secrets[name], webhook_url=_webhook_url(portal, _NEXT_WEBHOOK))
        self._world.secrets = msgspec.structs.replace(self._world.secrets, bitrix24={**secrets, name: told})
        self._world.scheduler.at(self._world.time() + 1_200, partial(self._forget, portal, new))

    @staticmethod
    def _forget(portal: _Portal, kept: IncomingWebhook) -> None:
        portal.portal = replace(portal.portal, incoming=(kept,))

    def _look_after(self, name: str, portal: _Portal) -> None:
        """Install the app anew where its refresh token is dead: the answer that brought the next one was lost."""
        world = self._world
        pause = world.items.get(pause_key(portal_key(name)))
        if pause and pause.attributes["reason"] == "invalid_grant" and pause.attributes["until"] > world.time():
            world.note("the operator", f"installs the app in the portal {name}")
            portal.install("local.app", _address(name))
            world.wake()
        if world.time() < START + world.storm_seconds + 7_200:
            world.scheduler.at(world.time() + 250, partial(self._look_after, name, portal))

    # What happens

    @override
    def start(self) -> None:
        world, random = self._world, self._world.random
        world.schedule("bitrix_sweep", every=600, timeout=300)
        people = [self._person(number) for number in range(4)]
        company = self._partner.add_company(title="ООО «Ромашка»").id
        burst = random.random() < 0.3
        for number in range(max(2, world.events // 10)):
            moves_at = START + (300 if burst else _MOVES_UNTIL * world.storm_seconds * random.random())
            made_at = START + (moves_at - START) * random.random()
            contacts = random.sample(people, random.choice((0, 1, 1, 2)))
            make = partial(self._make, number, contacts, random.choice((0, company)), moves_at)
            world.scheduler.at(made_at, make)
        for portal in (self._partner, self._hub):
            for _ in range(2):
                world.scheduler.at(START + world.storm_seconds * random.random(), partial(self._overwork, portal))
        world.scheduler.at(START + world.storm_seconds * random.random(), self._partner.files.kill_links)
        world.scheduler.at(START + world.storm_seconds, partial(self._rest, self._partner))
        world.scheduler.at(START + world.storm_seconds, partial(self._rest, self._hub))

    def _person(self, number: int) -> int:
        phone, address = f"+38067765{number:04d}", f"mail{number}@example.com"
        fm = [{"typeId": kind, "value": value} for kind, value in (("PHONE", phone), ("EMAIL", address))]
        return self._partner.add_contact(
            name=PERSON, lastName=str(number), fm=fm[: self._world.random.randint(0, 2)]
        ).id

    def _make(self, number: int, contacts: Sequence[int], company: int, moves_at: float) -> None:
        world, random = self._world, self._world.random
        rows = [
            {"productId": product, "productName": "Выезд", "price": 100 + number, "quantity": 1 + place}
            for place, product in enumerate(random.sample(list(_PRODUCTS), random.randint(0, 3)))
        ]
        deal = self._partner.add_deal(
            rows=rows,
            title=f"Остекление {number}",
            categoryId=3,
            stageId="C3:NEW",
            assignedById=random.choice((1, 7)),
            contactIds=contacts,
            companyId=company,
            UF_CRM_1747309879="Д-1",
            UF_CRM_DELIVERY=45,
            UF_CRM_SERVICES=random.choice(([], [51], [51, 52])),
        ).id
        self._contracts[deal].append("Д-1")
        for field in _FILE_FIELDS:
            if random.random() < 0.3:
                self._partner.attach_file(deal, field, f"{field}.txt", f"{number} {field}".encode())
        if random.random() < 0.2:
            self._partner.attach_file(deal, "UF_CRM_PHOTOS", "second.txt", f"{number} second".encode())
        world.note("somebody", f"makes deal {deal}")
        if random.random() < 0.95:
            world.scheduler.at(moves_at, partial(self._move, deal))
        for _ in range(random.choice((0, 1, 2))):
            world.scheduler.at(
                moves_at + random.choice((-100, 300, 900)) * random.random(), partial(self._change, deal)
            )
        if random.random() < 0.4:
            self._tell(deal, moves_at + random.choice((0, -60)) + 5 * random.random())
        world.wake()

    def _change(self, deal: int) -> None:
        number = f"Д-{len(self._contracts[deal]) + 1}"
        self._partner.change(deal, UF_CRM_1747309879=number)
        self._contracts[deal].append(number)
        if self._updates and deal in self._moved and self._world.random.random() < 0.8:
            self._tell(deal, self._world.time() + self._world.random.random())
        self._world.wake()

    def _tell(self, deal: int, tells_at: float) -> None:
        world, random = self._world, self._world.random
        self._tellings += 1
        for _ in range(world.chaos.copies_of_one()):
            told_at = tells_at + random.choice((0.0, 0.1, 40.0)) * random.random()
            world.scheduler.at(told_at, partial(world.scheduler.start, partial(self._by_script, deal)))

    def _move(self, deal: int) -> None:
        self._world.note("somebody", f"moves deal {deal}")
        self._partner.move(deal, READY)
        self._moved[deal] = self._world.time()
        if self._world.random.random() < 0.2:
            self._world.scheduler.at(self._world.time() + 20, partial(self._partner.move, deal, "C3:WON"))
        self._world.wake()

    def _overwork(self, portal: _Portal) -> None:
        """For a while, methods work for long, or batches break off in the middle."""
        random, switches = self._world.random, portal.switches
        if random.random() < 0.5:
            switches.operating_per_call = random.choice((60.0, 500.0))
            switches.refusals_tell_time = random.random() < 0.5
        else:
            switches.breaks_batches_after = random.randint(1, 6)
        self._world.note("Bitrix24", f"{portal.portal.domain} is overworked")
        self._world.scheduler.at(self._world.time() + random.uniform(20, 300), partial(self._rest, portal))

    @staticmethod
    def _rest(portal: _Portal) -> None:
        portal.switches.operating_per_call = 0.02
        portal.switches.breaks_batches_after = None

    # Calls

    def _deliver(self, delivery: CallbackDelivery) -> int | None:
        world = self._world
        target = delivery.url.removeprefix(_RELAY)
        self._tellings += 1
        return world.repeatedly(partial(self._call, target, delivery.headers, delivery.body, delivery.timeout))

    def _by_script(self, deal: int) -> None:
        world, wait = self._world, self._world.random.choice(("", "&wait=1"))
        origin = {"domain": PARTNER.domain, "member_id": PARTNER.member_id}
        body = json.dumps({"document_id": ["crm", "CCrmDocumentDeal", f"DEAL_{deal}"], "auth": origin}).encode()
        target = f"/bitrix/{URL_KEYS['partner']}?route=main{wait}"
        for _ in range(5):
            if self._call(target, {"content-type": "application/json"}, body, 29) in (200, 422):
                return
            world.sleep(world.random.uniform(1, 60))

    def _call(self, target: str, headers: Mapping[str, str], body: bytes, patience: float) -> int | None:
        path, _, query = target.partition("?")
        key = path.rpartition("/")[2]
        event = http_event("POST", target, headers, body, route="/bitrix/{url_key}", parameters={"url_key": key})
        request_id = event["requestContext"]["requestId"] = f"request-{len(self._calls)}"
        at = self._world.time()
        call = read_call(read_body(body), dict(pair.split("=") for pair in query.split("&") if pair), now=at)
        order = Order("partner", call.deal_id or 0, "main", expected=False, event_token=call.event_token)
        name = order.envelope(call=request_id, now=at).name
        place = len(self._calls)
        self._calls.append(_Call(name, order.deal, at, len(self._contracts[order.deal]), None, {}))
        response = self._world.request("bitrix_receive", event, patience=patience)
        if response:
            self._calls[place] = replace(self._calls[place], status=response.status, answer=response.json())
        return response.status if response else None

    # What came of it

    @property
    @override
    def events(self) -> int:
        return self._tellings + len(self._moved)

    @property
    @override
    def tokens(self) -> Iterable[str]:
        return [*self._oauth.issued, *(run.token for run in self._partner.hooks.runs.values())]

    @override
    def problems(self) -> Iterator[str]:
        for call in self._calls:
            if call.deal:
                yield from self._wrong_call(call)
        for key in self._world.items:
            if key.startswith(f"effect#{KIND}#"):
                yield from in_vain_is_told(self._world, key.removeprefix("effect#"), "deals")
        carried = self._by_origin(self._hub.deals)
        for origin in carried.keys() - {f"deal:{deal}:main" for deal in self._moved}:
            yield f"{_effect_of(origin)}: an effect without an event"
        for deal in self._moved:
            yield from self._wrong_deal(deal, carried[f"deal:{deal}:main"])
        for items in (self._hub.contacts, self._hub.companies):
            for origin, found in self._by_origin(items).items():
                if len(found) > 1 and self._is_promised(self._hub, origin):
                    yield f"{_effect_of(origin)}: DOUBLED, {len(found)} in the hub"
        yield from self._wrong_robots()

    def _is_promised(self, portal: _Portal, what: str) -> bool:
        """Whether what came twice should not have; counts what there is no promise for."""
        is_promised = not portal.is_unprovable(what)
        self.unprovable += not is_promised
        return is_promised

    @staticmethod
    def _by_origin(items: Mapping[int, Item]) -> defaultdict[str, list[Item]]:
        found: defaultdict[str, list[Item]] = defaultdict(list)
        for item in items.values():
            found[item["originId"]].append(item)
        return found

    def _wrong_call(self, call: _Call) -> Iterator[str]:
        effect = end(self._world, call.name)
        moved_at = self._moved.get(call.deal, float("inf"))
        transfer = end(self._world, f"{DEAL}#partner#{call.deal}#main")
        told = call.answer.get("esb_deal_id")
        if told and told != (transfer.get("result") or {}).get("hub_deal"):
            yield f"{call.name}: was told of the hub's deal {told}, and it ended {transfer.get('result')}"
        match effect.get("state"), effect.get("result"):
            case "CONFIRMED", {"hub_deal": None} if call.at > moved_at:
                yield f"{call.name}: LOST, not in the stage, it is said"
            case "REJECTED", {"reason": "wrong_stage"} if call.at < moved_at:
                pass
            case "REJECTED", result:
                yield f"{call.name}: refused, {result}"
            case state, _ if call.taken and not told and state not in ("CONFIRMED", *IN_VAIN):
                yield f"{call.name}: LOST, it was taken and is {state}"
            case _:
                pass

    def _wrong_deal(self, deal: int, carried: list[Item]) -> Iterator[str]:
        name, origin = f"{DEAL}#partner#{deal}#main", f"deal:{deal}:main"
        effect = end(self._world, name)
        comments = [each.text for each in self._partner.comments if each.entity_id == deal and each.text[0] == "✅"]
        if len(carried) > 1 and self._is_promised(self._hub, origin):
            yield f"{name}: DOUBLED, {len(carried)} deals in the hub"
        if len(comments) > 1 and self._is_promised(self._partner, f"comment:{deal}"):
            yield f"{name}: DOUBLED, told {len(comments)} times"
        if effect.get("state") != "CONFIRMED":
            if not any(end(self._world, each).get("state") in IN_VAIN for each in self._calls_for(deal)):
                yield f"{name}: LOST, it is {effect.get('state')}, and no call for it was given up"
            return
        found = [item for item in carried if item.id == effect["result"]["hub_deal"]]
        if not found:
            yield f"{name}: confirmed as {effect['result']}, the hub has {[item.id for item in carried]}"
            return
        if not comments:
            yield f"{name}: confirmed, and nobody was told"
        if not any(fact["deal"] == deal for kind, fact in self._world.bus.events if kind == "DealTransferred"):
            yield f"{name}: confirmed, and not published"
        for problem in self._not_whole(self._partner.deals[deal], found[0], "\n".join(comments)):
            yield f"{name}: {problem}"

    def _calls_for(self, deal: int) -> list[str]:
        prefix = f"effect#{KIND}#partner#{deal}#main#"
        return [key.removeprefix("effect#") for key in self._world.items if key.startswith(prefix)]

    def _not_whole(self, deal: Item, carried: Item, told: str) -> Iterator[str]:
        contacts = [self._hub.contacts[contact]["originId"] for contact in carried["contactIds"]]
        companies = [self._hub.companies[company]["originId"] for company in [carried["companyId"]] if company]
        facts: dict[str, tuple[Any, Any]] = {
            "title": (carried["title"], deal["title"]),
            "stage": (carried["stageId"], "C5:NEW"),
            "delivery": (carried["UF_CRM_DELIVERY"], 910),
            "services": (set(carried["UF_CRM_SERVICES"]), {_SERVICES[each] for each in deal["UF_CRM_SERVICES"]}),
            "rows": (
                [(row["productId"], row["price"], row["quantity"]) for row in carried.rows],
                [(_PRODUCTS[row["productId"]], row["price"], row["quantity"]) for row in deal.rows],
            ),
            "contacts": (contacts, [f"contact:{contact}" for contact in deal["contactIds"]]),
            "company": (companies, [f"company:{company}" for company in [deal["companyId"]] if company]),
        }
        for what, (has, wanted) in facts.items():
            if has != wanted:
                yield f"its {what} is {has}, not {wanted}; people were told: {told}"
        number, numbers = carried["UF_CRM_CONTRACT"], self._contracts[deal.id]
        if number not in numbers:
            yield f"it shows the number {number}, the partner's never did"
        elif self._updates and (told_of := self._told_of(deal.id)) > numbers.index(number) + 1:
            yield f"LOST, it shows the number {number}; a call came when it was {numbers[told_of - 1]}"
        for source, target in _FILE_FIELDS.items():
            yield from self._wrong_files(deal, source, carried, target, told)

    def _told_of(self, deal: int) -> int:
        """How many numbers a deal had shown when the last call came that was done; a copy of one is no other call."""
        calls = {call.name: call for call in reversed(self._calls) if call.deal == deal}
        done = [call for name, call in calls.items() if end(self._world, name).get("state") == "CONFIRMED"]
        return max((call.shown for call in done), default=0)

    def _wrong_files(self, deal: Item, source: str, carried: Item, target: str, told: str) -> Iterator[str]:
        files, wanted = _files(self._hub, carried[target]), _files(self._partner, deal[source])
        doubled = any(times > 1 for times in files.values())
        if doubled and self._is_promised(self._hub, f"file:{carried['originId']}"):
            yield f"DOUBLED, its files in {target} are {files}"
        for name, content in wanted.keys() - files.keys():
            if name not in told and f"{source} #" not in told:
                yield f"LOST, {name} ({content!r}); people were told: {told}"
        if strange := files.keys() - wanted.keys():
            yield f"its files in {target} are {strange}, the partner has {set(wanted)}"

    def _wrong_robots(self) -> Iterator[str]:
        given_up = dead(self._world, "deals")
        for run in self._partner.robot_results:
            name = f"{DEAL}#partner#{run.deal_id}#main"
            result = end(self._world, name).get("result") or {}
            if (run.returned or {}).get("status") == "failed" and self._call_of(run) in given_up:
                continue  # another call, or a copy of this one, may have carried the deal since
            if run.returned != {"status": "ok", "esb_deal_id": str(result.get("hub_deal"))}:
                yield f"{name}: a robot was told {run.returned}, it ended {result}"
        answered = {run.token for run in self._partner.robot_results}
        for run in self._partner.hooks.runs.values():
            name = self._call_of(run)
            if end(self._world, name).get("state") == "CONFIRMED" and run.token not in answered:
                yield f"{name}: confirmed, and the robot still waits"

    @staticmethod
    def _call_of(run: RobotRun) -> str:
        order = Order("partner", run.deal_id, "main", expected=True, event_token=run.token)
        return order.envelope(call="", now=0).name


_RETURNED = ("esb_deal_id", "status")


def _address(portal: str) -> str:
    return f"{_RELAY}/bitrix/{URL_KEYS[portal]}"


def _webhook_url(portal: _Portal, secret: str) -> str:
    return f"https://{portal.portal.domain}/rest/1/{secret}/"


def _effect_of(origin: str) -> str:
    """Return the name in the ledger of what is marked with `origin` in the hub."""
    kind, number, *_ = origin.split(":")
    return f"{DEAL}#partner#{number}#main" if kind == "deal" else f"bitrix24.card#hub#partner#{kind}#{number}"


def _files(portal: _Portal, value: Any) -> Counter[tuple[str, bytes]]:
    numbers = value if isinstance(value, list) else [value]
    stored = (portal.files.stored[number] for number in numbers if number is not None)
    return Counter((file.name, file.content) for file in stored)
