"""The CPU time that the receiver itself takes for a callback: verify, parse, envelope, log. AWS takes none here."""

import gc
import json
import statistics
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crm_relay.delivery.memory import MemoryBus, MemoryQueue, MemoryStore
from crm_relay.delivery.ports import Ports
from crm_relay.settings import CallbackSecret, CartelCrmSecrets, Secrets, load_settings
from crm_relay.signing import signature_headers
from workbench.bench.here import FunctionHere
from workbench.stack.blueprint import FunctionPlan

SECRET = "benchmark"  # noqa: S105 (it protects nothing)
BUDGETS = {1: 1.0, 10: 2.0, 256: 20.0}
"""Milliseconds at the 99th percentile, by the body's size in KB."""

_SAMPLES = {1: 1000, 10: 1000, 256: 300}
_BATCHES = 3
"""Whatever else this machine does only adds to the time: of several batches the quietest counts."""
_WARM_UP = 20


@dataclass(frozen=True, slots=True)
class OwnTime:
    """CPU time of callbacks whose body has `kilobytes`; all times in milliseconds."""

    kilobytes: int
    p50: float
    p99: float
    budget: float

    @property
    def kept(self) -> bool:
        """Whether the budget is kept."""
        return self.p99 <= self.budget


def measure(plan: FunctionPlan, tick: Callable[[], None]) -> tuple[OwnTime, ...]:
    """Measure the receiver; `tick` is called after each size."""
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
    secrets = Secrets(CartelCrmSecrets(callback_secrets=(CallbackSecret(SECRET),)))
    settings = load_settings(Path(plan.environment["RELAY_CONFIG"]))
    receiver = FunctionHere(plan, {}, (ports, settings, lambda: secrets))
    times = []
    for kilobytes, budget in BUDGETS.items():
        batches = [_batch(receiver, queue, kilobytes) for _ in range(_BATCHES)]
        quietest = min(batches, key=_p99)
        times.append(OwnTime(kilobytes, statistics.median(quietest), _p99(quietest), budget))
        tick()
    return tuple(times)


def _batch(receiver: FunctionHere, queue: MemoryQueue, kilobytes: int) -> list[float]:
    """Return the milliseconds of each of a batch of callbacks."""
    events = [callback_event(kilobytes * 1024) for _ in range(_WARM_UP + _SAMPLES[kilobytes])]
    # What this benchmark holds in memory is not for the receiver's garbage collector to search through.
    gc.collect()
    gc.freeze()
    spent = []
    for event in events:
        invocation = receiver.invoke(event)
        assert invocation.answer["body"] == '{"ok":true}', invocation
        spent.append(invocation.cpu * 1000)
        queue.messages.clear()
    gc.unfreeze()
    return spent[_WARM_UP:]


def _p99(times: list[float]) -> float:
    return statistics.quantiles(times, n=100, method="inclusive")[98]


def callback_event(size: int, internal_id: str | None = None) -> dict[str, Any]:
    """Return a signed callback with a body of `size` bytes (at least 400), as API Gateway hands it over."""
    now = time.time()
    body = callback_body(size, internal_id or uuid.uuid4().hex, int(now))
    headers = {name.lower(): value for name, value in signature_headers(body, SECRET, now=now).items()}
    return http_event("POST /cartelcrm/callback", body, headers)


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
    return {
        "version": "2.0",
        "routeKey": route,
        "rawPath": path,
        "rawQueryString": "",
        "headers": {
            "content-type": "application/json",
            "host": "relay.example",
            "user-agent": "CartelCRM",
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
        "body": body.decode(),
        "isBase64Encoded": False,
    }


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
