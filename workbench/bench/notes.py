"""Notes a second at amoCRM's limit: as the worker writes them, and one a request.

Real processes of the worker share a store and a queue in memory, and reach a sandbox over sockets: it takes its time
for every answer, and refuses what is over the limit, as amoCRM does.
"""

import asyncio
import copyreg
import multiprocessing
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import cache
from multiprocessing.managers import BaseManager
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from amo_webhook.change import change_envelope
from crm_relay.amocrm.hooks import HookEvent
from crm_relay.delivery.memory import MemoryBus, MemoryQueue, MemoryStore, Message
from crm_relay.delivery.ports import Conflict, Ports
from crm_relay.settings import AmoCrmSecrets, Secrets, Settings, load_settings
from workbench.bench.here import FunctionHere
from workbench.bench.own_time import with_amocrm
from workbench.bench.rates import Rates, Way
from workbench.sandboxes import AmoCrmAccount, AmoCrmSandbox, Integration, serve
from workbench.sandboxes.amocrm.account import USERS
from workbench.stack.blueprint import Blueprint, FunctionPlan, QueueSource

if TYPE_CHECKING:
    from threading import Barrier

LATENCY = 0.15
"""Seconds that amoCRM takes for an answer. Assumed."""
GOAL = 250.0
"""Notes a second."""

INTEGRATION = Integration(
    client_id="benchmark",
    client_secret="benchmark",  # noqa: S106 (it protects nothing)
    redirect_uri="https://relay.example/amo/oauth",
    user_id=USERS[0].id,
)
"""What we are to amoCRM."""

_ACCOUNT = "benchmark"
_HANDLER = "amo_webhook.add_notes.handler"
_SLOWER = 80
"""So many times fewer notes are written where each has a request of its own."""
_VISIBILITY = 721
_BREATH = 0.02
_PATIENCE = 300.0

copyreg.pickle(Conflict, lambda conflict: (Conflict, (conflict.current,)))  # between processes


async def measure(blueprint: Blueprint, notes: int, tick: Callable[[], None]) -> Rates:
    """Write so many notes with the template's worker; `tick` is called after each way."""
    [plan] = [plan for plan in blueprint.functions.values() if plan.handler == _HANDLER]
    [source] = [source for source in blueprint.queue_sources if source.function == plan.name]
    ways = []
    for name, number, terms in (
        (f"many a request, {_workers(source)} workers", notes, {}),
        ("one a request", max(1, notes // _SLOWER), {"notes_per_request": 1}),
    ):
        ways.append(await _written(name, plan, source, number, terms))
        tick()
    return Rates("Notes to amoCRM", AmoCrmAccount().requests_per_second, LATENCY, GOAL, ways)


def _workers(source: QueueSource) -> int:
    return source.concurrency or 1


async def _written(name: str, plan: FunctionPlan, source: QueueSource, number: int, terms: dict[str, Any]) -> Way:
    sandbox = AmoCrmSandbox(AmoCrmAccount(integrations=(INTEGRATION,)), clock=time.time, random=Random(1))
    secrets = Secrets(
        amocrm={_ACCOUNT: AmoCrmSecrets(long_lived_token=sandbox.long_lived_token(INTEGRATION.client_id))}
    )
    leads = [lead.id for lead in sandbox.add("leads", copies=number, name="Заявка с сайта", price=30_000)]
    sandbox.switches.latency = LATENCY
    async with AsyncExitStack() as stack:
        url = await stack.enter_async_context(serve(sandbox))
        shared = _Shared(ctx=multiprocessing.get_context("spawn"))
        await asyncio.to_thread(shared.start)
        stack.callback(shared.shutdown)
        shared.queue().send_all([_message(lead) for lead in leads])
        settings = with_amocrm(
            load_settings(Path(plan.environment["RELAY_CONFIG"])), host=url.removeprefix("http://"), **terms
        )
        await asyncio.to_thread(_work, shared.address, plan, source, settings, secrets)
    cards = [sandbox.card("leads", lead) for lead in leads]
    if any((len(card.notes), card.hidden) != (1, 0) for card in cards):
        raise RuntimeError("not every lead has one note")
    times = [received.at for received in sandbox.received]
    return Way(name, number, len(times), times[-1] - times[0] + LATENCY)


def _message(lead: int) -> str:
    event = HookEvent("lead", "update", str(lead), {"id": str(lead), "last_modified": "1750000000"})
    return change_envelope(_ACCOUNT, event, request_id="benchmark", now=time.time()).encode()


class _Queue(MemoryQueue):
    """A queue that can be asked from other processes whether it is empty."""

    def is_empty(self) -> bool:
        return not self.messages


@cache
def _store() -> MemoryStore:
    return MemoryStore(time)


@cache
def _queue() -> _Queue:
    return _Queue(time)


class _Shared(BaseManager):
    """The process that holds what all workers share; it does one thing at a time for each of them."""

    store: Callable[[], Any]
    queue: Callable[[], Any]


_Shared.register("store", _store)
_Shared.register("queue", _queue)


def _work(address: Any, plan: FunctionPlan, source: QueueSource, settings: Settings, secrets: Secrets) -> None:
    """Have workers, each a process of its own, work off the queue."""
    context = multiprocessing.get_context("spawn")
    ready = context.Barrier(_workers(source))
    task = _Task(address, bytes(context.Process().authkey), plan, source.batch_size, settings, secrets)
    workers = [context.Process(target=_worker, args=(task, ready)) for _ in range(_workers(source))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(_PATIENCE)
        worker.kill()


@dataclass(frozen=True, slots=True)
class _Task:
    """What a worker is told: where the shared process is and the key to it, and what its function is given."""

    address: Any
    key: bytes
    plan: FunctionPlan
    batch: int
    settings: Settings
    secrets: Secrets


def _worker(task: _Task, ready: "Barrier") -> None:
    shared = _Shared(task.address, task.key)
    shared.connect()
    queue = shared.queue()
    ports = Ports(
        store=shared.store(),
        queue=queue,
        dead_letters=MemoryQueue(time),
        bus=MemoryBus(),
        clock=time,
        random=Random().random,
        queue_at=lambda _: queue,
    )
    function = FunctionHere(task.plan, {}, (ports, task.settings, lambda: task.secrets))
    ready.wait()
    while not queue.is_empty():
        messages: list[Message] = queue.receive(limit=task.batch, visibility=_VISIBILITY)
        if not messages:
            time.sleep(_BREATH)
            continue
        answer = function.invoke({"Records": [message.record() for message in messages]}).answer
        failed = {failure["itemIdentifier"] for failure in answer["batchItemFailures"]}
        for message in messages:
            if message.id not in failed:
                queue.delete(message.id)
