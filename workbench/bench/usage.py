"""What a callback, a hook, a lead and a deal use of AWS: the real handlers and adapters, boto3, and moto behind it."""

import hashlib
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any
from unittest import mock

import httpx
import msgspec

from crm_relay.delivery.aws import client
from crm_relay.http_client import HttpClient
from crm_relay.settings import AmoCrmSecrets, Secrets, Settings
from workbench.bench.deals import add_deal, bitrix24_secrets, bitrix24_settings, portals
from workbench.bench.here import FunctionHere
from workbench.bench.notes import INTEGRATION
from workbench.bench.own_time import (
    SECRET,
    call_event,
    callback_event,
    changed_deal,
    hook_event,
    http_event,
    with_amocrm,
)
from workbench.bench.price import GB, LOG_RECORD, MONTH, Bill, Item, Trigger, Usage, billed_for, item_size, together
from workbench.emulator import REGION, Built
from workbench.sandboxes import AmoCrmAccount, AmoCrmSandbox, MemoryTransport
from workbench.sandboxes.bitrix24 import HUB, PARTNER
from workbench.stack.cloud import CREDENTIALS

CALLS_BUDGET = 3
"""AWS calls with which a receiver takes a callback."""
CALLBACK_BYTES = 1024
"""Bytes of the callbacks that are counted. Assumed."""

_API_KEY = "benchmark"
_WARM_UP = 2
_UNLIMITED = 10_000
"""Requests a second, of which nobody waits for one."""
_STORED_OVERHEAD = 100
"""Bytes that DynamoDB stores with every item (Amazon DynamoDB documentation)."""


@dataclass(frozen=True, slots=True)
class Measured:
    """The invocations that a callback, a hook on one lead, a lead, a deal and a look into the outbox take.

    `schedule` says how often the outbox is looked into, `series` counts the metrics of our own that were written.
    """

    callback: tuple[Usage, ...]
    hook: tuple[Usage, ...]
    lead: tuple[Usage, ...]
    deal: tuple[Usage, ...]
    outbox: tuple[Usage, ...]
    schedule: str
    series: int

    @property
    def kept(self) -> bool:
        """Whether the budget of the receiver is kept."""
        return self.callback[0].most_calls <= CALLS_BUDGET


def measure(stack: Built, starts: Mapping[str, float], samples: int, tick: Callable[[], None]) -> Measured:
    """Let leads and their callbacks, hooks and deals through all functions.

    Args:
        stack: the resources.
        starts: seconds of a cold start, by function.
        samples: how many leads are counted.
        tick: called after each of the nine steps.
    """
    stack.cloud.client("secretsmanager").put_secret_value(
        SecretId=stack.blueprint.outputs["SecretArn"], SecretString=json.dumps(_secret())
    )
    bench = _Bench(stack, starts, tick)
    names = [f"bench-{number}" for number in range(_WARM_UP + samples)]
    api, submit = bench.function("lead_submitter.api"), bench.function("lead_submitter.submit")
    with mock.patch("lead_submitter.submission.http_client", return_value=bench.http_client):
        submitted = bench.run("lead, POST /leads", api, "http", map(_lead, names))
        settled = bench.run("lead, its message", submit, "queue", bench.messages())
    receive, process = bench.function("callback_receiver.receive"), bench.function("callback_receiver.process")
    callbacks = (callback_event(CALLBACK_BYTES, name) for name in names)
    received = bench.run("callback, received", receive, "http", callbacks)
    processed = bench.run("callback, processed", process, "queue", bench.messages())
    hooked, noted = _hooks(bench, len(names))
    dealt = _deals(bench, len(names))
    drained = bench.run("outbox, empty", bench.function("outbox.drain"), "schedule", ({} for _ in names))
    [schedule] = [each.expression for each in stack.blueprint.schedules if each.function == drained.function]
    return Measured(
        callback=(received, processed),
        hook=(hooked, noted),
        lead=(submitted, settled),
        deal=dealt,
        outbox=(drained,),
        schedule=schedule,
        series=len(bench.series),
    )


def _hooks(bench: "_Bench", number: int) -> tuple[Usage, Usage]:
    """Let hooks, each on another lead, become notes in amoCRM's sandbox."""
    sandbox = AmoCrmSandbox(
        AmoCrmAccount(integrations=(INTEGRATION,), requests_per_second=1000), clock=time.time, random=Random(1)
    )
    token = sandbox.long_lived_token(INTEGRATION.client_id)
    secrets = Secrets(amocrm={"benchmark": AmoCrmSecrets(hook_token=SECRET, long_lived_token=token)})
    sandbox.subscribe("https://relay.example/amo", "update_lead")
    leads = sandbox.add("leads", copies=number, name="Окна на кухню", price=60_000)
    for lead in leads:
        sandbox.change("leads", lead.id, price=75_000)
    hooks = [hook_event(callback.body) for callback in sandbox.callbacks.log]
    client = HttpClient(bench.counted(MemoryTransport({sandbox.account.host: sandbox})))
    with mock.patch("amo_webhook.account.http_client", return_value=client):
        receive, note = (
            bench.function(f"amo_webhook.{name}", with_amocrm, secrets) for name in ("receive", "add_notes")
        )
        hooked = bench.run("hook, received", receive, "http", hooks)
        return hooked, bench.run("hook, its note", note, "queue", bench.messages())


def _deals(bench: "_Bench", number: int) -> tuple[Usage, Usage]:
    """Let calls of an outgoing webhook, each about another deal, become deals in the hub's sandbox."""
    partner, hub = portals(time.time, requests_per_second=_UNLIMITED, burst=_UNLIMITED)
    for place in range(number):
        add_deal(partner, place, contacts=True)
    secrets = Secrets(bitrix24=bitrix24_secrets(url_key=SECRET, application_token=SECRET))

    def with_portals(settings: Settings) -> Settings:
        return msgspec.structs.replace(settings, bitrix24=bitrix24_settings(requests_per_second=_UNLIMITED))

    client = HttpClient(bench.counted(MemoryTransport({PARTNER.domain: partner, HUB.domain: hub})))
    with mock.patch("bitrix_robot.portal.http_client", return_value=client):
        receive, transfer = (
            bench.function(f"bitrix_robot.{name}", with_portals, secrets) for name in ("receive", "transfer")
        )
        called = bench.run("deal, its call", receive, "http", (call_event(changed_deal(n)) for n in range(number)))
        carried = bench.run("deal, carried", transfer, "queue", bench.messages())
    if len(hub.deals) < number:
        raise RuntimeError("not every deal is in the hub")
    return called, carried


@dataclass(frozen=True, slots=True)
class _Run:
    cpu: float
    calls: Counter[str]
    used: Bill
    crm_calls: int
    log: int


class _Bench:
    """All functions in this process, with a meter at their AWS clients and a CartelCRM that accepts everything."""

    def __init__(self, stack: Built, starts: Mapping[str, float], tick: Callable[[], None]) -> None:
        self.series: set[str] = set()
        self.http_client = HttpClient(httpx.MockTransport(self._accept))
        self._crm_calls = 0
        self._plans = {plan.handler: plan for plan in stack.blueprint.functions.values()}
        self._starts = starts
        self._tick = tick
        self._environment = {**CREDENTIALS, "AWS_ENDPOINT_URL": stack.cloud.endpoint, "AWS_DEFAULT_REGION": REGION}
        with mock.patch.dict("os.environ", self._environment):
            self._meter = _Meter([client(name) for name in ("dynamodb", "sqs", "events", "secretsmanager")])

    def function(
        self, module: str, configured: Callable[[Settings], Settings] | None = None, secrets: Secrets | None = None
    ) -> FunctionHere:
        """Load a function; settings and secrets of a CRM, if given, are in the place of what is in the store."""
        plan = self._plans[f"{module}.handler"]
        function = FunctionHere(plan, self._environment)
        if configured is None or secrets is None:
            return function
        settings = configured(function.runtime.settings)
        return FunctionHere(plan, self._environment, (function.runtime.ports, settings, lambda: secrets))

    def counted(self, transport: httpx.BaseTransport) -> httpx.BaseTransport:
        """Return a transport that counts what goes to the CRM."""

        def handle(request: httpx.Request) -> httpx.Response:
            self._crm_calls += 1
            return transport.handle_request(request)

        return httpx.MockTransport(handle)

    def run(self, what: str, function: FunctionHere, trigger: Trigger, events: Iterable[Any]) -> Usage:
        """Have all events handled and return what one of them took; the first ones only warm the function up."""
        plan = function.plan
        runs = [self._invoke(function, event) for event in events][_WARM_UP:]
        self._tick()
        calls = sum((run.calls for run in runs), Counter[str]())
        return Usage(
            what=what,
            function=plan.name,
            trigger=trigger,
            memory=plan.memory,
            cpu=statistics.mean(run.cpu for run in runs),
            init=self._starts[plan.name],
            calls={name: count / len(runs) for name, count in calls.items()},
            most_calls=max(run.calls.total() for run in runs),
            crm_calls=statistics.mean(run.crm_calls for run in runs),
            used=together((run.used for run in runs), 1 / len(runs)),
            log=statistics.mean(run.log for run in runs),
        )

    def messages(self) -> Iterator[Any]:
        """Take the messages that were sent since the last time, each as a queue hands it to a function."""
        for number, body in enumerate(self._meter.take_messages()):
            attributes = {"ApproximateReceiveCount": "1", "SentTimestamp": str(int(time.time() * 1000))}
            record = {"messageId": str(number), "receiptHandle": str(number), "body": body, "attributes": attributes}
            yield {"Records": [record]}

    def _invoke(self, function: FunctionHere, event: Any) -> _Run:
        self._crm_calls = 0
        invocation = function.invoke(event)
        if not _succeeded(invocation.answer):
            raise RuntimeError(f"{function.plan.name} answered {invocation.answer}\n{invocation.log}")
        records = invocation.log.splitlines()
        # The first invocation of a new process adds one that the handlers here, which share one, write only once.
        self.series.add(f"ColdStart {function.plan.name}")
        service = function.plan.environment["POWERTOOLS_SERVICE_NAME"]
        self.series.update(f"{name} {service}" for name in _metrics(records))
        log = len(invocation.log.encode()) + len(records) * LOG_RECORD
        return _Run(invocation.cpu, *self._meter.take(), self._crm_calls, log)

    def _accept(self, request: httpx.Request) -> httpx.Response:
        self._crm_calls += 1
        # CartelCRM's id is ours, so that the callbacks know it.
        return httpx.Response(200, json={"id": json.loads(request.content)["external_id"]})


class _Meter:
    """Counts what boto3's clients do, and what it is billed for."""

    def __init__(self, clients: Iterable[Any]) -> None:
        self._calls: Counter[str] = Counter()
        self._bills: list[Bill] = []
        self._messages: list[str] = []
        self._stored: dict[str, float] = {}
        for each in clients:
            each.meta.events.register("provide-client-params", self._before)
            each.meta.events.register("after-call", self._after)

    def take(self) -> tuple[Counter[str], Bill]:
        """Return the calls and their bill since the last time."""
        taken = self._calls, together(self._bills)
        self._calls, self._bills = Counter(), []
        return taken

    def take_messages(self) -> list[str]:
        """Return the bodies of the messages that were sent since the last time."""
        taken, self._messages = self._messages, []
        return taken

    def _before(self, params: Mapping[str, Any], context: dict[str, Any], **_: Any) -> None:
        context["metered"] = params

    def _after(self, parsed: Mapping[str, Any], model: Any, context: Mapping[str, Any], **_: Any) -> None:
        operation = f"{model.service_model.service_name}:{model.name}"
        params = context["metered"]
        self._calls[operation] += 1
        self._bills.append(billed_for(operation, params, parsed))
        match operation:
            case "sqs:SendMessage":
                self._messages.append(params["MessageBody"])
            case "sqs:SendMessageBatch":
                self._messages += [entry["MessageBody"] for entry in params["Entries"]]
            case _:
                pass
        if operation == "dynamodb:PutItem":
            self._bills.append({Item.STORED_MONTH: self._store(params["Item"])})

    def _store(self, item: Mapping[str, Any]) -> float:
        """Return the GB-months by which the table grows with an item, until it expires."""
        kept = int(item["expires_at"]["N"]) - int(item["updated_at"]["N"])
        stored = (item_size(item) + _STORED_OVERHEAD) / GB * kept / MONTH
        before = self._stored.get(item["key"]["S"], 0.0)
        self._stored[item["key"]["S"]] = stored
        return stored - before


def _secret() -> Any:
    return {
        "cartelcrm": {"api_key": "key", "hmac_secret": "secret", "callback_secrets": [{"value": SECRET}]},
        "lead_api_keys": {"benchmark": hashlib.sha256(_API_KEY.encode()).hexdigest()},
    }


def _lead(external_id: str) -> dict[str, Any]:
    lead = {
        "external_id": external_id,
        "phone": "+380501234567",
        "country": "UA",
        "first_name": "Оля",
        "source": "landing",
        "offer": "summer-sale",
    }
    body = json.dumps(lead, ensure_ascii=False).encode()
    return http_event("POST /leads", body, {"authorization": f"Bearer {_API_KEY}"})


def _succeeded(answer: Any) -> bool:
    return answer.get("statusCode", 200) == 200 and not answer.get("batchItemFailures") and not answer.get("failed")


def _metrics(records: Iterable[str]) -> Iterator[str]:
    """Yield the names of the metrics, but for cold starts, that a log holds in embedded metric format."""
    for record in records:
        for metrics in json.loads(record).get("_aws", {}).get("CloudWatchMetrics", []):
            yield from (metric["Name"] for metric in metrics["Metrics"] if metric["Name"] != "ColdStart")
