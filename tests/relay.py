"""The relay in memory: the real handlers, virtual time, the CRMs' sandboxes, and ports that break on demand."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from io import StringIO
from itertools import count
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, Self
from urllib.parse import quote

import msgspec
import pytest
from aws_lambda_powertools.metrics import base as metrics_base
from aws_lambda_powertools.metrics.provider import cold_start
from aws_lambda_powertools.metrics.provider.cloudwatch_emf import cloudwatch
from aws_lambda_powertools.utilities.circuit_breaker import base as circuit
from aws_lambda_powertools.utilities.circuit_breaker.persistence import base as circuit_persistence

from amo_webhook import account as amo_account
from amo_webhook import add_notes, upkeep
from amo_webhook import receive as amo_receive
from bitrix_robot import install as bitrix_install
from bitrix_robot import portal as bitrix_portal
from bitrix_robot import receive as bitrix_receive
from bitrix_robot import sweep, transfer
from callback_receiver import process, receive
from crm_relay.delivery.memory import MemoryBus, MemoryQueue, MemoryStore
from crm_relay.delivery.ports import Ports, StorageError
from crm_relay.delivery.runtime import Runtime, install
from crm_relay.http_client import HttpClient
from crm_relay.observability import logger, metrics
from crm_relay.settings import (
    AmoCrmAccount,
    AmoCrmSecrets,
    AmoCrmSettings,
    Bitrix24Portal,
    Bitrix24Products,
    Bitrix24Route,
    Bitrix24Secrets,
    Bitrix24Settings,
    CallbackSecret,
    CartelCrmSecrets,
    Secrets,
    load_settings,
)
from crm_relay.signing import signature_headers
from lead_submitter import api, submission, submit
from outbox import drain
from tests import canaries
from tests.gateway import Context, Response, http_event
from workbench.sandboxes import AmoCrmAccount as AmoCrmTerms
from workbench.sandboxes import (
    AmoCrmSandbox,
    CartelCrmAccount,
    CartelCrmSandbox,
    Integration,
    MemoryTransport,
    Sandbox,
)
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
    WebhookRobot,
)
from workbench.sandboxes.bitrix24 import Bitrix24Portal as Bitrix24Terms

START = 1_760_000_000.0
VISIBILITY = {"callbacks": 360, "leads": 720, "notes": 721, "deals": 1_801}
TIMEOUT = {"callbacks": 60, "leads": 120, "notes": 120, "deals": 300}
BATCH = {"callbacks": 10, "leads": 10, "notes": 250, "deals": 50}
MOST_RECEIVES = 1_000
"""Of the queues and their workers, as in the template."""
API_KEY, HMAC_SECRET, CALLBACK_SECRET, LEAD_KEY, HOOK_TOKEN, APPLICATION_TOKEN, PARTNER_SECRET, HUB_SECRET = (
    f"{canaries.MARK}{name}"
    for name in ("api", "hmac", "callback", "lead", "hook", "partner-application", "partner-webhook", "hub-webhook")
)
AMO_HOST, AMO_SECRET = "example.amocrm.ru", f"{canaries.MARK}amocrm-client"
URL_KEY = f"{canaries.MARK}url-key-0123456789abcdefgh"
APP = App(
    client_id="local.app",
    client_secret=f"{canaries.MARK}app-secret",
    application_token=f"{canaries.MARK}app-token",
    user_id=1,
    scopes=SOURCE_SCOPES,
)
ROBOT = WebhookRobot(stage=READY, url=f"https://relay.test/bitrix/{URL_KEY}?route=main")
RELAY_TOML = Path(__file__).parents[1] / "layers/configuration/relay.toml"

HANDLERS: dict[str, tuple[str, Callable[[Any, Any], Any]]] = {
    "callback_receive": ("callbacks", receive.handler),
    "callback_process": ("callbacks", process.handler),
    "lead_api": ("leads", api.handler),
    "lead_submit": ("leads", submit.handler),
    "amo_receive": ("notes", amo_receive.handler),
    "amo_notes": ("notes", add_notes.handler),
    "amo_upkeep": ("notes", upkeep.handler),
    "bitrix_receive": ("deals", bitrix_receive.handler),
    "bitrix_transfer": ("deals", transfer.handler),
    "bitrix_sweep": ("deals", sweep.handler),
    "outbox_drain": ("leads", drain.handler),
}
"""Each function but AmoAuthorize, with the one queue that it sends to or consumes, or a queue that it never touches."""
WORKERS = {"callbacks": "callback_process", "leads": "lead_submit", "notes": "amo_notes", "deals": "bitrix_transfer"}
HTTP_CLIENTS = (submission, amo_account, bitrix_portal, bitrix_install)
"""Modules whose `http_client` is the process's own."""


class Crash(BaseException):
    """The process dies here: no handler catches this, as none catches a kill."""


@dataclass
class Clock:
    """Virtual time: it passes when somebody sleeps."""

    now: float = START

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float, /) -> None:
        self.now += max(0.0, seconds)


@dataclass
class Fault:
    """`port` raises `error`, before or after the effect."""

    port: str
    times: float
    after: bool
    error: BaseException


@dataclass(frozen=True)
class Port:
    """A port as the functions hold it: every call of a method goes `through` the relay's faults."""

    name: str
    memory: object
    through: Callable[..., Any]

    def __getattr__(self, method: str) -> Any:
        attribute = getattr(self.memory, method)
        return partial(self.through, f"{self.name}.{method}", attribute) if callable(attribute) else attribute


class QueuePort(Port):
    """A queue as the functions hold it: of many messages each one is sent, or not, by itself."""

    def send_all(self, bodies: Sequence[str]) -> list[str]:
        """See ports.Queue."""
        return [body for body in bodies if not self._sends(body)]

    def _sends(self, body: str) -> bool:
        try:
            self.send(body)
        except StorageError:
            return False
        return True


def encoded(value: object) -> bytes:
    """Return the value as compact JSON; bytes are what they are."""
    return value if isinstance(value, bytes) else json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


@contextmanager
def surroundings(time: Callable[[], float], http_client: Callable[[], HttpClient], output: StringIO) -> Iterator[None]:
    """Give the functions their HTTP client, Powertools' breaker a clock, and logs and metrics a place to go."""
    with pytest.MonkeyPatch.context() as patch:
        now = SimpleNamespace(now=lambda: datetime.fromtimestamp(time(), UTC))
        for module in (circuit, circuit_persistence):  # Powertools' breaker takes no clock
            patch.setattr(module, "dt", SimpleNamespace(datetime=now))
        for module in HTTP_CLIENTS:
            patch.setattr(module, "http_client", http_client)
        for module in (cloudwatch, metrics_base):
            patch.setattr(module, "print", partial(print, file=output), raising=False)
        patch.setattr(logger.registered_handler, "stream", output)
        patch.setattr(cold_start, "is_cold_start", False)  # else the first test of a process counts one more
        metrics.clear_metrics()  # of what was counted outside of any handler before
        try:
            yield
        finally:
            install(None)


class Relay:
    """One deployed relay. Use it as a context manager: inside, its runtime is the process's own.

    `crm` is CartelCRM's sandbox (`terms` are those of its account), `amo` amoCRM's with an account `main`, `partner`
    and `hub` are portals of Bitrix24, `oauth` their authorization server; `store`, `queues`, `dead_letters` and `bus`
    are the memory behind the ports; `calls` has the port calls made ("store.put"), `errors` what workers' invocations
    raised. `clock`, `secret_source`, `bitrix_secrets` (by portal) and `before_call` (told each port call's name) are
    there to be played with.
    """

    def __init__(self, *, seed: int = 0, **terms: Any) -> None:
        self.clock = Clock()
        self.random = Random(seed)
        self.settings = load_settings(RELAY_TOML)
        self.amo = AmoCrmSandbox(_amo_terms(), clock=self.clock.time, random=Random(seed))
        amo = AmoCrmAccount(account_id=self.amo.account.id, host=AMO_HOST)
        self.settings = msgspec.structs.replace(self.settings, amocrm=AmoCrmSettings({"main": amo}))
        amo_secrets = {"main": AmoCrmSecrets(HOOK_TOKEN, self.amo.long_lived_token("client"))}
        self.oauth = Bitrix24OAuth(clock=self.clock.time, random=Random(seed))
        self.partner, self.hub = (
            Bitrix24Sandbox(terms, self.oauth, clock=self.clock.time, random=Random(seed)) for terms in _portals()
        )
        bitrix24 = Bitrix24Settings(
            portals={
                "partner": Bitrix24Portal("source", PARTNER.member_id, PARTNER.domain),
                "hub": Bitrix24Portal("hub", HUB.member_id, HUB.domain),
            },
            routes={"main": ROUTE},
        )
        self.settings = msgspec.structs.replace(self.settings, bitrix24=bitrix24)
        webhook = f"https://{PARTNER.domain}/rest/1/{PARTNER_SECRET}/"
        self.bitrix_secrets = {
            "partner": Bitrix24Secrets(URL_KEY, webhook, APPLICATION_TOKEN, APP.client_id, APP.client_secret),
            "hub": Bitrix24Secrets("", f"https://{HUB.domain}/rest/1/{HUB_SECRET}/"),
        }
        secrets = CartelCrmSecrets(API_KEY, HMAC_SECRET, (CallbackSecret(CALLBACK_SECRET),))
        keys = {"website": hashlib.sha256(LEAD_KEY.encode()).hexdigest()}
        self.secret_source: Callable[[], Secrets] = lambda: Secrets(secrets, keys, amo_secrets, self.bitrix_secrets)
        terms = {"callback_url": "https://relay.test/cartelcrm/callback", **terms}
        account = CartelCrmAccount(api_key=API_KEY, hmac_secret=HMAC_SECRET, callback_secret=CALLBACK_SECRET, **terms)
        self.crm = CartelCrmSandbox(account, clock=self.clock.time, random=Random(seed))
        hosts = {"cartelcrm.com": self.crm, AMO_HOST: self.amo, PARTNER.domain: self.partner}
        hosts |= {HUB.domain: self.hub, self.settings.bitrix24.oauth_host: self.oauth}
        transport = MemoryTransport(hosts, self.clock.sleep)
        self.http_client = HttpClient(transport, monotonic=self.clock.time)
        self.store = MemoryStore(self.clock)
        self.queues = {name: MemoryQueue(self.clock, name) for name in VISIBILITY}
        self.dead_letters = {name: MemoryQueue(self.clock, f"{name}-dead-letters") for name in VISIBILITY}
        self.bus = MemoryBus()
        self.calls: list[str] = []
        self.before_call: Callable[[str], None] = lambda _: None
        self.errors: list[BaseException] = []
        self._requests = count(1)
        self._faults: list[Fault] = []
        self._output = StringIO()
        self._refusals: list[Mapping[str, Any]] = []
        self._exit = ExitStack()

    def __enter__(self) -> Self:
        canaries.watch(self._told)
        self._exit.enter_context(surroundings(self.clock.time, lambda: self.http_client, self._output))
        self.restart()
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    def restart(self) -> None:
        """Start all functions in new processes: what was only in their memory is gone."""
        for local in (circuit._LOCAL_FAILURES, circuit._LOCAL_SUCCESSES, circuit._LAST_OBSERVED_STATE):
            local.clear()
        self._runtimes = {name: self._runtime(name) for name in self.queues}

    def _runtime(self, queue: str) -> Runtime:
        def port(name: str, memory: object) -> Any:
            kind = QueuePort if isinstance(memory, MemoryQueue) else Port
            return kind(name, memory, self._through)

        ports = Ports(
            store=port("store", self.store),
            queue=port("queue", self.queues[queue]),
            dead_letters=port("dead_letters", self.dead_letters[queue]),
            bus=port("bus", self.bus),
            clock=self.clock,
            random=self.random.random,
            queue_at=lambda url: port("queue", self.queues[url]),
        )
        return Runtime(ports, self.settings, lambda: self.secret_source())  # noqa: PLW0108 (it may be replaced)

    def configure(self, table: str, **values: object) -> None:
        """Change settings of one table of relay.toml; the functions start anew with them."""
        changed = msgspec.structs.replace(getattr(self.settings, table), **values)
        self.settings = msgspec.structs.replace(self.settings, **{table: changed})
        self.restart()

    def configure_amo(self, **values: object) -> None:
        """Change settings of the account of amoCRM."""
        account = msgspec.structs.replace(self.settings.amocrm.accounts["main"], **values)
        self.configure("amocrm", accounts={"main": account})

    # Faults

    def fail(
        self, port: str, *, times: float = math.inf, after: bool = False, error: BaseException | None = None
    ) -> None:
        """Make a port ("store") or one of its methods ("store.put") raise, StorageError unless told otherwise."""
        self._faults.append(Fault(port, times, after, error or StorageError("down")))

    def mend(self) -> None:
        """End all faults."""
        self._faults.clear()

    def _through(self, name: str, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.calls.append(name)
        self.before_call(name)
        fault = next(
            (fault for fault in self._faults if fault.times > 0 and f"{name}.".startswith(f"{fault.port}.")), None
        )
        if fault is None:
            return method(*args, **kwargs)
        fault.times -= 1
        if fault.after:
            method(*args, **kwargs)
        raise fault.error

    # Calls

    def invoke(self, function: str, event: Mapping[str, Any], *, seconds: float = 120) -> Any:
        """Invoke a function as Lambda does, with `seconds` to run."""
        queue, handler = HANDLERS[function]
        install(self._runtimes[queue])
        answer = handler(event, Context(self.clock.time, self.clock.time() + seconds, function))
        if isinstance(answer, Mapping) and answer.get("statusCode", 0) >= 400:
            self._refusals.append(answer)
        return answer

    def callback(self, **fields: object) -> dict[str, object]:
        """Return a callback of now about a person, with other or further fields."""
        told = {"internal_id": "L-1", "event": "lead_approved", "timestamp": int(self.clock.time())}
        return {**told, "phone": "+380501234567", "email": "olena@example.com", "first_name": "Олена", **fields}

    def signed(self, body: object, *, secret: str = CALLBACK_SECRET, at: float | None = None) -> dict[str, str]:
        """Return the headers of a callback with this body that CartelCRM sends at unix time `at`."""
        headers = signature_headers(encoded(body), secret, now=self.clock.time() if at is None else at)
        return {"Content-Type": "application/json", **headers}

    def post_callback(self, body: object = None, headers: Mapping[str, str] | None = None) -> Response:
        """POST a callback; by default one of now, signed well."""
        sent = encoded(self.callback() if body is None else body)
        return self.receive(http_event("POST", "/cartelcrm/callback", headers or self.signed(sent), sent))

    def receive(self, event: Mapping[str, Any]) -> Response:
        """Hand an event to the callback receiver."""
        return Response.of(self.invoke("callback_receive", event, seconds=10))

    def post_lead(self, lead: object, *, key: str | None = LEAD_KEY, **headers: str) -> Response:
        """POST a lead; headers are named with underscores."""
        sent = {"Content-Type": "application/json"} | {name.replace("_", "-"): text for name, text in headers.items()}
        event = http_event("POST", "/leads", _bearer(key) | sent, encoded(lead))
        return Response.of(self.invoke("lead_api", event, seconds=29))

    def get_lead(self, external_id: str, *, status: bool = False, key: str | None = LEAD_KEY) -> Response:
        """GET a lead as the ledger knows it, or its status as CartelCRM knows it."""
        tail = "/status" if status else ""
        target, route = f"/leads/{quote(external_id, safe='')}{tail}", f"/leads/{{external_id}}{tail}"
        event = http_event("GET", target, _bearer(key), route=route, parameters={"external_id": external_id})
        return Response.of(self.invoke("lead_api", event, seconds=29))

    def post_hook(self, body: bytes, headers: Mapping[str, str] | None = None, *, token: str = HOOK_TOKEN) -> Response:
        """POST a hook of amoCRM to the account's address."""
        sent = {"Content-Type": "application/x-www-form-urlencoded"} if headers is None else headers
        event = http_event(
            "POST", f"/amo/{token}", sent, body, route="/amo/{hook_token}", parameters={"hook_token": token}
        )
        return Response.of(self.invoke("amo_receive", event, seconds=10))

    def post_call(
        self, body: bytes, headers: Mapping[str, str] | None = None, *, target: str = f"/bitrix/{URL_KEY}"
    ) -> Response:
        """POST a call of Bitrix24 to a portal's address, query included."""
        sent = {"Content-Type": "application/x-www-form-urlencoded"} if headers is None else headers
        key = target.partition("?")[0].rpartition("/")[2]
        event = http_event("POST", target, sent, body, route="/bitrix/{url_key}", parameters={"url_key": key})
        event["requestContext"]["requestId"] = f"request-{next(self._requests)}"
        return Response.of(self.invoke("bitrix_receive", event, seconds=29))

    def publish_lead(self, lead: object, *, source: str = "shop") -> None:
        """Publish `LeadSubmitted`, which a rule of the bus takes to the queue of leads."""
        event = {"version": "0", "id": "6a7e8feb-b491", "detail-type": "LeadSubmitted", "source": source}
        self.queues["leads"].send(json.dumps(event | {"detail": lead}))

    # Time

    def work(self, queue: str) -> bool:
        """Hand what is visible to the queue's worker as an event source mapping does; tell whether there was any."""
        source, any_ = self.queues[queue], False
        while batch := source.receive(limit=BATCH[queue], visibility=VISIBILITY[queue]):
            any_ = True
            try:
                records = {"Records": [message.record() for message in batch]}
                answer = self.invoke(WORKERS[queue], records, seconds=TIMEOUT[queue])
            except (Exception, Crash) as error:  # noqa: BLE001 (the batch comes back when its visibility ends)
                self.errors.append(error)
                continue
            kept = {failure["itemIdentifier"] for failure in answer["batchItemFailures"]}
            for message in batch:
                if message.id not in kept:
                    source.delete(message.id)
                elif message.receive_count >= MOST_RECEIVES:
                    self.dead_letters[queue].send(message.body)
                    source.delete(message.id)
        return any_

    def run(self, seconds: float = 0) -> None:
        """Let time pass; workers, CartelCRM's callbacks and its leads' lives do what falls due on the way."""
        end = self.clock.now + seconds
        while True:
            while any([self._call_back(), *map(self.work, self.queues)]):
                pass
            due = [message.visible_at for queue in self.queues.values() for message in queue.messages.values()]
            due += [sandbox.next_at for sandbox in self._sandboxes if sandbox.next_at is not None]
            following = min(due, default=math.inf)
            self.clock.now = max(self.clock.now, min(following, end))
            if following > end:
                return

    @property
    def _sandboxes(self) -> tuple[Sandbox, ...]:
        return self.crm, self.amo, self.partner, self.hub

    def _call_back(self) -> bool:
        callbacks = self.crm.due(self.clock.now)
        for callback in callbacks:
            self.crm.answered(callback, self.post_callback(callback.body, callback.headers).status)
        hooks = self.amo.due(self.clock.now)
        for hook in hooks:
            self.amo.answered(hook, self.post_hook(hook.body, hook.headers, token=hook.url.rpartition("/")[2]).status)
        calls = self.partner.due(self.clock.now)
        for call in calls:
            target = call.url.removeprefix("https://relay.test")
            self.partner.answered(call, self.post_call(call.body, call.headers, target=target).status)
        return bool(callbacks or hooks or calls)

    # What came of it

    def _told(self) -> Iterator[tuple[str, str, bool]]:
        return canaries.told_by(self.output, self._refusals, self.bus, self.dead_letters.values())

    def effects(self, detail_type: str) -> int:
        """Return how many events of this type were published."""
        return sum(published == detail_type for published, _ in self.bus.events)

    def items(self, prefix: str) -> dict[str, Mapping[str, Any]]:
        """Return the table's items whose key begins so, as attributes by key."""
        return {key: item.attributes for key, item in self.store.items.items() if key.startswith(prefix)}

    @property
    def output(self) -> str:
        """All that the functions wrote for CloudWatch."""
        return self._output.getvalue()

    @property
    def logs(self) -> list[dict[str, Any]]:
        """The log lines."""
        return [line for line in map(json.loads, self.output.splitlines()) if "_aws" not in line]

    @property
    def metrics(self) -> Counter[str]:
        """The sums of the metrics by name."""
        sums: Counter[str] = Counter()
        for line in map(json.loads, self.output.splitlines()):
            for metric in line["_aws"]["CloudWatchMetrics"][0]["Metrics"] if "_aws" in line else ():
                sums[metric["Name"]] += int(sum(line[metric["Name"]]))
        return sums


ROUTE = Bitrix24Route(
    source="partner",
    hub="hub",
    stages={READY: "C5:NEW"},
    fields={
        "UF_CRM_1747309879": "UF_CRM_CONTRACT",
        "UF_CRM_OBJECT_AREA": "UF_CRM_AREA",
        "UF_CRM_DELIVERY": "UF_CRM_DELIVERY",
        "UF_CRM_67BC9A01": "UF_CRM_CONTRACT_FILE",
        "UF_CRM_PHOTOS": "UF_CRM_PHOTOS",
        "COMMENTS": "COMMENTS",
    },
    products=Bitrix24Products(match="xml_id", source_catalogs=(15,), hub_catalogs=(25,)),
)
"""Of deals of the partner to the hub."""


def _portals() -> tuple[Bitrix24Terms, Bitrix24Terms]:
    incoming = (IncomingWebhook(1, PARTNER_SECRET, SOURCE_SCOPES),)
    partner = replace(PARTNER, incoming=incoming, webhook_robots=(ROBOT,), apps=(APP,))
    return partner, replace(HUB, incoming=(IncomingWebhook(1, HUB_SECRET, HUB_SCOPES),))


def _amo_terms() -> AmoCrmTerms:
    ours = Integration(
        client_id="client", client_secret=AMO_SECRET, redirect_uri="https://relay.test", user_id=10000698
    )
    return AmoCrmTerms(integrations=(ours,))


def _bearer(key: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"} if key else {}
