"""The CPU time that a receiver itself takes for a call: verify, parse, envelopes, log. AWS takes none here."""

import gc
import json
import statistics
import time
import uuid
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import urlencode

import msgspec

from crm_relay.delivery.memory import MemoryBus, MemoryQueue, MemoryStore
from crm_relay.delivery.ports import Ports
from crm_relay.settings import (
    AmoCrmAccount,
    AmoCrmSecrets,
    AmoCrmSettings,
    Bitrix24Secrets,
    CallbackSecret,
    CartelCrmSecrets,
    Secrets,
    Settings,
    load_settings,
)
from crm_relay.signing import signature_headers
from workbench import sandboxes
from workbench.bench.deals import bitrix24_settings
from workbench.bench.here import FunctionHere
from workbench.sandboxes.bitrix24 import PARTNER
from workbench.sandboxes.bitrix24.oauth import SERVER_ENDPOINT
from workbench.stack.blueprint import FunctionPlan

SECRET = "benchmark"  # noqa: S105 (it protects nothing)
BUDGETS = {1: 1.0, 10: 2.0, 256: 20.0}
"""Milliseconds at the 99th percentile of a callback, by the body's size in KB."""
HOOK_BUDGET = 5.0
"""Milliseconds at the 99th percentile of a typical hook of amoCRM, and of a call of Bitrix24."""

_SAMPLES = {1: 3000, 10: 3000, 256: 900}
_HOOKS = 3000
_WARM_UP = 20
_SANDBOX = sandboxes.AmoCrmAccount()


@dataclass(frozen=True, slots=True)
class OwnTime:
    """CPU time of `samples` calls; all times in milliseconds, the 99th percentile over every one of them."""

    what: str
    samples: int
    p50: float
    p99: float
    budget: float

    @property
    def kept(self) -> bool:
        """Whether the budget is kept."""
        return self.p99 <= self.budget


def measure(plans: Mapping[str, FunctionPlan], tick: Callable[[], None]) -> tuple[OwnTime, ...]:
    """Measure the receivers.

    Args:
        plans: the functions of the template by handler.
        tick: called after each row.
    """
    queue = MemoryQueue(time)
    ports = Ports(
        store=MemoryStore(time),
        queue=queue,
        dead_letters=MemoryQueue(time),
        bus=MemoryBus(),
        clock=time,
        random=lambda: 0.5,
        queue_at=lambda _: queue,
    )
    plan = plans["callback_receiver.receive.handler"]
    settings = with_amocrm(load_settings(Path(plan.environment["RELAY_CONFIG"])))
    settings = msgspec.structs.replace(settings, bitrix24=bitrix24_settings())
    instead = (ports, settings, secrets)
    callbacks = FunctionHere(plan, {}, instead)
    hooks = FunctionHere(plans["amo_webhook.receive.handler"], {}, instead)
    calls = FunctionHere(plans["bitrix_robot.receive.handler"], {}, instead)
    times = []
    for kilobytes, budget in BUDGETS.items():
        events = (callback_event(kilobytes * 1024) for _ in range(_WARM_UP + _SAMPLES[kilobytes]))
        times.append(_timed(f"callback of {kilobytes} KB", callbacks, events, queue, budget))
        tick()
    events = (hook_event(changed_lead(number)) for number in range(_WARM_UP + _HOOKS))
    times.append(_timed("hook on a lead with two custom fields", hooks, events, queue, HOOK_BUDGET))
    tick()
    events = (call_event(changed_deal(number)) for number in range(_WARM_UP + _HOOKS))
    times.append(_timed("call of Bitrix24 on a deal", calls, events, queue, HOOK_BUDGET))
    tick()
    return tuple(times)


def _timed(
    what: str, receiver: FunctionHere, events: Iterator[dict[str, Any]], queue: MemoryQueue, budget: float
) -> OwnTime:
    # As every function does when it has started; an event is made when its turn comes, so that there is no heap
    # of them for the receiver's garbage collector to search through.
    gc.collect()
    gc.freeze()
    spent = []
    for event in events:
        invocation = receiver.invoke(event)
        assert invocation.answer["statusCode"] == 200, invocation
        assert queue.messages
        spent.append(invocation.cpu * 1000)
        queue.messages.clear()
    gc.unfreeze()
    counted = spent[_WARM_UP:]
    p99 = statistics.quantiles(counted, n=100, method="inclusive")[98]
    return OwnTime(what, len(counted), statistics.median(counted), p99, budget)


def secrets() -> Secrets:
    """Return what callbacks are signed with, and what hooks and calls have in their path."""
    return Secrets(
        cartelcrm=CartelCrmSecrets(callback_secrets=(CallbackSecret(SECRET),)),
        amocrm={"benchmark": AmoCrmSecrets(hook_token=SECRET, long_lived_token=SECRET)},
        bitrix24={"partner": Bitrix24Secrets(url_key=SECRET, application_token=SECRET)},
    )


def with_amocrm(settings: Settings, **terms: Any) -> Settings:
    """Return settings with an account of amoCRM, the sandbox's; `terms` are other settings of it."""
    account = AmoCrmAccount(account_id=_SANDBOX.id, subdomain=_SANDBOX.subdomain, **{"host": _SANDBOX.host, **terms})
    return msgspec.structs.replace(settings, amocrm=AmoCrmSettings(accounts={"benchmark": account}))


def changed_deal(number: int) -> bytes:
    """Return the body with which an outgoing webhook of Bitrix24 tells of a deal."""
    auth = {
        "domain": PARTNER.domain,
        "client_endpoint": PARTNER.endpoint,
        "server_endpoint": SERVER_ENDPOINT,
        "member_id": PARTNER.member_id,
        "application_token": SECRET,
    }
    told = {"event": "ONCRMDEALUPDATE", "event_handler_id": 975, "data[FIELDS][ID]": 1 + number, "ts": 1_750_000_000}
    return urlencode(told | {f"auth[{name}]": value for name, value in auth.items()}).encode()


def call_event(body: bytes) -> dict[str, Any]:
    """Return a call of Bitrix24 as API Gateway hands it over."""
    headers = {"content-type": "application/x-www-form-urlencoded", "user-agent": "Bitrix24 Webhook Engine"}
    event = http_event("POST /bitrix/{url_key}", body, headers)
    return {**event, "rawPath": f"/bitrix/{SECRET}", "pathParameters": {"url_key": SECRET}}


def changed_lead(number: int) -> bytes:
    """Return the body of amoCRM's hook on a lead of which a price and a custom field were changed."""
    sandbox = sandboxes.AmoCrmSandbox(_SANDBOX, clock=lambda: 1_750_000_000.0 + number, random=Random(number))
    sandbox.subscribe("https://relay.example/amo", "update_lead")
    comment, quantity = _SANDBOX.custom_fields["leads"][:2]
    fields = [
        {"field_id": comment.id, "values": [{"value": "Перезвонить после обеда"}]},
        {"field_id": quantity.id, "values": [{"value": "3"}]},
    ]
    [lead] = sandbox.add("leads", name="Окна на кухню", price=60_000, custom_fields_values=fields)
    sandbox.change("leads", lead.id, price=75_000 + number)
    [callback] = sandbox.callbacks.log
    return callback.body


def hook_event(body: bytes) -> dict[str, Any]:
    """Return a hook as API Gateway hands it over."""
    headers = {"content-type": "application/x-www-form-urlencoded", "user-agent": "amoCRM-Webhooks/3.0"}
    event = http_event("POST /amo/{hook_token}", body, headers)
    return {**event, "rawPath": f"/amo/{SECRET}", "pathParameters": {"hook_token": SECRET}}


def callback_event(size: int, internal_id: str | None = None) -> dict[str, Any]:
    """Return a signed callback with a body of `size` bytes (at least 400), as API Gateway hands it over."""
    now = time.time()
    body = callback_body(size, internal_id or uuid.uuid4().hex, int(now))
    headers = {name.lower(): value for name, value in signature_headers(body, SECRET, now=now).items()}
    return http_event("POST /cartelcrm/callback", body, {"user-agent": "CartelCRM", **headers})


def callback_body(size: int, internal_id: str, timestamp: int) -> bytes:
    """Return a callback that is mostly order lines: a long text would cost a parser next to nothing."""
    data: dict[str, Any] = {
        "internal_id": internal_id,
        "event": "lead.approved",
        "timestamp": timestamp,
        "status": "approved",
        "external_id": internal_id,
        "phone": "+380501234567",
        "comment": "Перезвонить после обеда",
        "positions": [],
        "note": "",
    }
    position = {"id": 48151, "sku": "SN-2342", "title": "Кроссовки, 42", "quantity": 1, "price": 1999.9, "paid": True}
    room = size - len(_json(data))
    data["positions"] = [position] * (room // (len(_json(position)) + 1))
    data["note"] = "x" * (size - len(_json(data)))
    return _json(data)


def http_event(route: str, body: bytes, headers: Mapping[str, str]) -> dict[str, Any]:
    """Return a request as an event of payload format 2.0, with what API Gateway adds to every one."""
    method, _, path = route.partition(" ")
    is_text = headers.get("content-type", "application/json") == "application/json"
    return {
        "version": "2.0",
        "routeKey": route,
        "rawPath": path,
        "rawQueryString": "",
        "headers": {
            "content-type": "application/json",
            "host": "relay.example",
            "x-amzn-trace-id": "Root=1-68a1b2c3-0123456789abcdef01234567",
            "x-forwarded-for": "203.0.113.7",
            "x-forwarded-port": "443",
            "x-forwarded-proto": "https",
            **headers,
        },
        "requestContext": {
            "accountId": "123456789012",
            "apiId": "local",
            "http": {"method": method, "path": path, "protocol": "HTTP/1.1", "sourceIp": "203.0.113.7"},
            "requestId": "JKJaXmPLvHcESHA=",
            "routeKey": route,
            "stage": "$default",
        },
        "body": body.decode() if is_text else b64encode(body).decode(),
        "isBase64Encoded": not is_text,
    }


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
