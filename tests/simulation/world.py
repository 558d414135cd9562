"""The relay as a fleet of processes in a bad world: real handlers, virtual time, one seed."""

import tests.conftest  # noqa: F401, I001 (the environment of all tests, before anything reads it)

import hashlib
import linecache
import math
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from io import StringIO
from itertools import count
from random import Random
from types import SimpleNamespace
from typing import Any, NamedTuple, NoReturn, Self, override

import httpx
import msgspec
import pytest
from aws_lambda_powertools.utilities.circuit_breaker import base as circuit

from crm_relay.delivery.memory import MemoryBus, MemoryQueue, MemoryStore, Message
from crm_relay.delivery.ports import Conflict, Item, Ports, StorageError
from crm_relay.delivery.runtime import Runtime, install
from crm_relay.http_client import HttpClient
from crm_relay.observability import metrics
from crm_relay.settings import Secrets, SecretSource, load_settings
from tests import canaries
from tests.gateway import Context, Response
from tests.relay import (
    BATCH,
    HANDLERS,
    MOST_RECEIVES,
    RELAY_TOML,
    START,
    TIMEOUT,
    VISIBILITY,
    WORKERS,
    Crash,
    Port,
    QueuePort,
    surroundings,
)
from tests.simulation.chaos import Chaos, Trouble
from tests.simulation.scheduler import Scheduler
from workbench.sandboxes import MemoryTransport, Sandbox
from workbench.sandboxes.callbacks import CallbackDelivery
from workbench.sandboxes.faults import Fault
from workbench.sandboxes.wire import SandboxRequest

CONCURRENCY = 3
"""Invocations of one worker at a time."""
_IN_CALM = 6 * 3600
"""Seconds between two runs of what is scheduled: three days of minutes would be most of a run's time."""
CALM = 3 * 86_400
"""Seconds after the storm: whatever waits for something gives up within them."""

_LEAST_TIMEOUT = 10
"""Seconds that a receiver has, however soon its caller gives up."""

MOST_INVOCATIONS = 20_000
"""After so many a world is one that never comes to rest."""

type Deliver = Callable[[CallbackDelivery], int | None]
type _Memory = dict[tuple[object, str], Any]


def _memory() -> _Memory:
    """Return what Powertools keeps in a new process's memory: (object, attribute) to value."""
    local: dict[str, Any] = {"_LOCAL_FAILURES": {}, "_LOCAL_SUCCESSES": {}, "_LAST_OBSERVED_STATE": {}}
    counted: dict[str, Any] = {"metric_set": {}, "dimension_set": {}, "dimension_sets": [], "metadata_set": {}}
    return {
        **{(circuit, name): value for name, value in {**local, "_PROBE_OWNER": SimpleNamespace()}.items()},
        **{(metrics.provider, name): value for name, value in counted.items()},
    }


class Arrival(NamedTuple):
    """When a request came to a CRM, what its process's clock was off by, and when it was given its turn (-inf: never).

    `marks` says by effect when that process had last written it into the ledger before it sent the request.
    """

    at: float
    skew: float
    slot_at: float
    marks: Mapping[str, float]


@dataclass(frozen=True)
class _Queue(QueuePort):
    """A queue that leaves a line in the trace where it took only some of a batch."""

    note: Callable[[str, str], None]

    @override
    def send_all(self, bodies: Sequence[str]) -> list[str]:
        missing = super().send_all(bodies)
        if missing:
            self.note(f"{self.name}.send_all", f"{len(bodies) - len(missing)} of {len(bodies)} taken")
        return missing


class Process:
    """One process of one function: its own clock, memory, HTTP client and view of the ports.

    `slot_at` is when it last waited, by the true time: for the turn of its next request. -inf: it has none.
    """

    def __init__(self, world: "World", function: str, number: int) -> None:
        self.world = world
        self.name = f"{function}/{number}"
        self.function = function
        self.skew = world.chaos.skew()
        self.deadline = math.inf
        self.undead = False
        self.dead = False
        self.slot_at = -math.inf
        self.marks: dict[str, float] = {}
        self.memory = _memory()
        self.http_client = HttpClient(_Wire(self), monotonic=self._monotonic)
        queue = HANDLERS[function][0]
        ports = Ports(
            store=self._port("store", MemoryStore(self, world.items)),
            queue=self._port("queue", world.queues[queue]),
            dead_letters=self._port("dead_letters", world.dead_letters[queue]),
            bus=self._port("bus", world.bus),
            clock=self,
            random=world.random.random,
            queue_at=lambda url: self._port("queue", world.queues[url]),
        )
        fetch = partial(self.call, "secrets.get", lambda: msgspec.json.encode(world.secrets).decode())
        source = SecretSource(fetch, clock=self.time, failed=lambda _: None)
        self.runtime = Runtime(ports, world.settings, source)

    # Its clock, as ports.Clock wants it

    def time(self) -> float:
        """Return unix seconds, as this process has them."""
        return self.world.scheduler.now + self.skew

    def sleep(self, seconds: float, /) -> None:
        """Wait, and have a turn."""
        self.pause(seconds)
        self.slot_at = self.world.scheduler.now

    def _monotonic(self) -> float:
        return self.world.scheduler.now

    # Its life

    def activate(self) -> None:
        """Make what is global in Python this process's own."""
        if self.world.active is not self:
            self.world.active = self
            install(self.runtime)
            for (holder, name), value in self.memory.items():
                setattr(holder, name, value)

    def pause(self, seconds: float) -> None:
        """Let time pass; Lambda ends the process at its deadline, unless it comes back from the dead."""
        if self.dead:
            raise Crash
        left = self.deadline - self.world.scheduler.now
        ends = seconds > left and not self.undead
        self.world.scheduler.sleep(max(0.0, left) if ends else seconds)
        self.activate()
        if ends:
            self.die("timed out")

    def die(self, how: str) -> NoReturn:
        """End the process in the middle of whatever it does."""
        self.world.note(self.name, how)
        self.dead = True
        raise Crash

    # Its I/O

    def _port(self, name: str, memory: object) -> Any:
        if isinstance(memory, MemoryQueue):
            return _Queue(name, memory, self._through, partial(self.world.note, self.name))
        return Port(name, memory, self._through)

    def _through(self, name: str, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        match args:
            case (Item(key=about), *_) | (str(about), *_) if name.startswith("store."):
                name = f"{name} {about}"
        try:
            result = self.call(name, partial(method, *args, **kwargs))
        finally:
            if name.startswith("queue."):
                self.world.wake()
        verb, _, effect = name.partition(" effect#")
        if verb == "store.put":
            self.marks[effect] = self.world.scheduler.now
        return result

    def call[T](self, name: str, effect: Callable[[], T]) -> T:
        """Do one call of a port, with what the seed has in store for it."""
        trouble = self.world.chaos.trouble()
        return self.io(name, trouble, effect, late=effect, error=StorageError("trouble"))

    def io[T](
        self, name: str, trouble: Trouble, effect: Callable[[], T], *, late: Callable[[], object], error: Exception
    ) -> T:
        """Do one I/O, or what `trouble` makes of it.

        `effect` does it for a caller who waits, `late` for one who has given up, and `error` is what he got.
        """
        world, latency = self.world, self.world.chaos.latency
        pause = world.chaos.pause(trouble)
        before = pause * world.random.random()
        match trouble:
            case Trouble.KILLED_BEFORE:
                self.die(f"killed before {name}")
            case Trouble.REFUSED:
                self.pause(latency())
                world.note(self.name, name, "refused")
                raise error
            case Trouble.LATE | Trouble.KILLED_UNDER_WAY:
                world.scheduler.at(world.scheduler.now + pause, partial(self._late, name, late))
                if trouble is Trouble.KILLED_UNDER_WAY:
                    self.die(f"killed during {name}")
                world.note(self.name, name, "error, will be done late")
                self.pause(before)
                raise error
            case Trouble.KILLED_AFTER | Trouble.ANSWER_LOST:
                self.pause(latency())
                with suppress(Conflict, httpx.RequestError):
                    self._done(name, trouble, effect)
                if trouble is Trouble.KILLED_AFTER:
                    self.die(f"killed after {name}")
                self.pause(latency())
                raise error
            case _:
                pass
        self.pause(before or latency())
        result = self._done(name, trouble, effect)
        self.pause(pause - before or latency())
        return result

    def _done[T](self, name: str, trouble: Trouble, effect: Callable[[], T]) -> T:
        try:
            result = effect()
        except Exception as error:
            self.world.note(self.name, name, f"{type(error).__name__} {trouble.value}")
            raise
        status = f"{result.status_code} " if isinstance(result, httpx.Response) else ""
        self.world.note(self.name, name, status + trouble.value)
        return result

    def _late(self, name: str, late: Callable[[], object]) -> None:
        self.world.note(self.name, name, "done late")
        with suppress(Conflict):
            late()
        self.world.wake()


class _Wire(httpx.BaseTransport):
    """The way from a process to the sandboxes."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self._inner = MemoryTransport(process.world.sandboxes, process.pause)

    @override
    def handle_request(self, request: httpx.Request) -> httpx.Response:
        process, world = self._process, self._process.world
        host, patience, sent_at = request.url.host, request.extensions["timeout"]["read"], world.scheduler.now
        sandbox = world.sandboxes[host]
        target = request.url.raw_path.decode()
        received = SandboxRequest.of(request.method, target, request.headers, request.read())
        trouble = world.chaos.trouble(crm=True)
        marks, slot_at = dict(process.marks), process.slot_at
        is_counted = not target.startswith("/oauth")  # no CRM counts them with the others
        if is_counted:
            process.slot_at = -math.inf

        def arrives() -> None:
            world.arrived = Arrival(world.scheduler.now, process.skew, slot_at, marks)
            if is_counted:
                world.arrivals[host].append(world.arrived)

        def unheard() -> None:
            arrives()
            sandbox.handle(received)

        def answered() -> httpx.Response:
            arrives()
            if trouble is Trouble.ANSWERED_BADLY:
                fault = world.chaos.bad_answer(world.own_faults[host])
                world.note(process.name, "bad answer", " ".join([fault.kind, getattr(fault, "when", "")]).strip())
                sandbox.faults.add(fault)
            return self._inner.handle_request(request)

        errors = [httpx.ReadError("reset"), httpx.ReadTimeout("timed out")]
        errors += [httpx.ConnectError("refused")] if trouble is Trouble.REFUSED else []
        error = world.random.choice(errors)
        try:
            response = process.io(f"{request.method} {host}{target}", trouble, answered, late=unheard, error=error)
        finally:
            world.wake()
        if world.scheduler.now - sent_at > patience:
            raise httpx.ReadTimeout("timed out")
        return response


class Source:
    """The event source mapping between a queue and its worker."""

    def __init__(self, world: "World", queue: str) -> None:
        self._world = world
        self._queue = world.queues[queue]
        self._name = queue
        self._running = 0
        self._polls_at = math.inf

    def wake(self) -> None:
        """See that there is a poll when the next message becomes visible."""
        if self._running >= CONCURRENCY or self._polls_at <= self._world.scheduler.now:
            return
        due = min((message.visible_at for message in self._queue.messages.values()), default=math.inf)
        if due < math.inf:
            at = max(due, self._world.scheduler.now) + self._world.chaos.latency()
            if at < self._polls_at:
                self._polls_at = at
                self._world.scheduler.at(at, partial(self._poll, at))

    def _poll(self, planned: float) -> None:
        if planned != self._polls_at:
            return  # another poll has been planned before this one
        self._polls_at = math.inf
        if self._world.invocations > MOST_INVOCATIONS:
            return
        if self._running < CONCURRENCY and (batch := self._receive()):
            self._running += 1
            self._world.scheduler.start(partial(self._work, batch))
        self.wake()

    def _receive(self) -> list[Message]:
        world, visibility = self._world, VISIBILITY[self._name]
        if world.chaos.storm:
            shuffled = list(self._queue.messages.items())
            world.random.shuffle(shuffled)  # a standard queue promises no order
            self._queue.messages = dict(shuffled)
        for message in self._queue.messages.values():
            if not message.receive_count and world.chaos.chance(0.1):  # nor that a message comes soon
                message.visible_at = world.scheduler.now + world.random.uniform(0, 300)
        batch = self._queue.receive(limit=world.random.randint(1, BATCH[self._name]), visibility=visibility)
        for message in batch:
            if world.chaos.chance(0.05):  # nor that a message comes once
                message.visible_at = world.scheduler.now + world.random.uniform(0, 90)
        return batch

    def _work(self, batch: list[Message]) -> None:
        world = self._world
        # As they are now: a second copy of a message counts its receives anew.
        event = {"Records": [message.record() for message in batch]}
        answer = world.invoke(WORKERS[self._name], event, TIMEOUT[self._name])
        if answer is not None:
            kept = {failure["itemIdentifier"] for failure in answer["batchItemFailures"]}
            for message in batch:
                if message.id not in kept and not world.chaos.chance(0.03):
                    self._queue.delete(message.id)
                elif message.receive_count >= MOST_RECEIVES:
                    world.dead_letters[self._name].send(message.body)
                    self._queue.delete(message.id)
        self._running -= 1
        self.wake()


class World:
    """Everything, from one seed. Use it as a context manager.

    `items`, `queues`, `dead_letters` and `bus` are what is durable; `trace` says what happened, line by line;
    `arrivals` has the requests to each CRM's host, `arrived` the last one, and `limits` those allowed in a second;
    `answers` are the bodies that callers got.
    Jobs add their `sandboxes` (by host) and `secrets`, and plan their events.
    """

    def __init__(self, seed: int, *, rate: float, events: int) -> None:
        self.seed = seed
        self.random = Random(seed)
        self.events = events
        self.scheduler = Scheduler(START)
        self.chaos = Chaos.of(self.random, rate)
        self.settings = load_settings(RELAY_TOML)
        self.secrets = Secrets()
        self.storm_seconds = self.random.choice((600, 1800, 3600, 10_800))
        self.items: dict[str, Item] = {}
        self.queues = {name: MemoryQueue(self, name) for name in VISIBILITY}
        self.dead_letters = {name: MemoryQueue(self, f"{name}-dead-letters") for name in VISIBILITY}
        self.bus = MemoryBus()
        self.sources = {name: Source(self, name) for name in self.queues}
        self.sandboxes: dict[str, Sandbox] = {}
        self.limits: dict[str, float] = {}
        self.own_faults: dict[str, tuple[Fault, ...]] = {}
        self._crms: list[_Crm] = []
        self.arrivals: defaultdict[str, list[Arrival]] = defaultdict(list)
        self.arrived: Arrival | None = None
        self.trace: list[str] = []
        self.answers: list[str] = []
        self.invocations = 0
        self.raised = 0
        """Invocations that raised after the storm, when nothing is left to raise for."""
        self.active: Process | None = None
        self._numbers = count(1)
        self._warm: defaultdict[str, list[Process]] = defaultdict(list)
        self._output = StringIO()
        self._exit = ExitStack()

    def __enter__(self) -> Self:
        patch = self._exit.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(uuid, "uuid4", lambda: uuid.UUID(int=self.random.getrandbits(128), version=4))
        patch.setattr(
            linecache, "checkcache", lambda *_: None
        )  # for every traceback in a log: no source changes meanwhile
        for name, value in {
            "TABLE_NAME": "table",
            "RELAY_CONFIG": "relay.toml",
            "API_URL": "https://relay.test",
        }.items():
            patch.setenv(name, value)
        patch.setattr(circuit, "os", SimpleNamespace(getpid=lambda: 1))
        for (holder, name), value in _memory().items():
            patch.setattr(holder, name, value)
        self._exit.enter_context(surroundings(self._time_of_active, self._http_client_of_active, self._output))
        return self

    def __exit__(self, *_: object) -> None:
        self._exit.close()

    def time(self) -> float:
        """Return the true time, in unix seconds."""
        return self.scheduler.now

    def sleep(self, seconds: float, /) -> None:
        """Wait, in a task that is no process."""
        self.scheduler.sleep(seconds)

    def _time_of_active(self) -> float:
        assert self.active
        return self.active.time()

    def _http_client_of_active(self) -> HttpClient:
        assert self.active
        return self.active.http_client

    def note(self, who: str, what: str, how: str = "") -> None:
        """Write a line of the trace."""
        self.trace.append(f"{self.scheduler.now - START:12.3f}  {who:<20} {what}{'  → ' + how if how else ''}")

    def wake(self) -> None:
        """Let every queue's poller look anew."""
        for source in self.sources.values():
            source.wake()
        for crm in self._crms:
            crm.wake()

    # Invocations

    def invoke(self, function: str, event: Mapping[str, Any], seconds: float) -> Any:
        """Invoke a function, in a task; None: it died, or raised."""
        process = self._process(function)
        self.invocations += 1
        process.deadline = self.scheduler.now + seconds
        process.undead = self.chaos.chance(self.chaos.undead)
        process.activate()
        is_off = abs(process.skew) >= 1
        self.note(process.name, "invoked", f"its clock is off by {process.skew:+.1f} s" if is_off else "")
        context = Context(self.time, process.deadline, function)
        try:
            answer = HANDLERS[function][1](event, context)
        except Crash:
            return None
        except Exception as error:  # noqa: BLE001 (Lambda counts it, and whoever invoked knows no more)
            self.note(process.name, "raised", type(error).__name__)
            self.raised += not self.chaos.storm
            return None
        finally:
            self.wake()
            if not process.dead and (self.chaos.storm or not process.skew):  # in calm weather clocks are right
                process.deadline = math.inf
                self._warm[function].append(process)
        self.note(process.name, "returned", str(answer.get("statusCode", answer)))
        return answer

    def request(self, function: str, event: Mapping[str, Any], *, patience: float) -> Response | None:
        """Send an HTTP request to a function, in a task; None: no answer came back in time."""
        if self.chaos.chance(self.chaos.rate / 6):
            return None
        began = self.scheduler.now
        answer = self.invoke(function, event, max(patience, _LEAST_TIMEOUT))
        if answer is None or self.scheduler.now - began > patience or self.chaos.chance(self.chaos.rate / 6):
            return None
        response = Response.of(answer)
        self.answers.append(response.text)
        return response

    def repeatedly(self, call: Callable[[], int | None]) -> int | None:
        """Make a sender's call, in a task, and copies of it now or a while later; return the first one's answer."""
        copies = self.chaos.copies_of_one() if self.random.random() < 0.4 else 1
        for _ in range(copies - 1):
            at = self.scheduler.now + self.random.choice((0.0, 1.0, 90.0)) * self.random.random()
            self.scheduler.at(at, partial(self.scheduler.start, call))
        return call()

    def _process(self, function: str) -> Process:
        warm = self._warm[function]
        if warm and not self.chaos.chance(self.chaos.recycled):
            return warm.pop(self.random.randrange(len(warm)))
        return Process(self, function, next(self._numbers))

    # The course of things

    def add(
        self,
        host: str,
        sandbox: Sandbox,
        *,
        limit: float,
        deliver: Deliver = lambda _: None,
        own_faults: tuple[Fault, ...] = (),
    ) -> None:
        """Put a CRM into the world that takes `limit` requests a second, and has faults that no other has.

        `deliver` takes one of its callbacks to the relay, in a task, and returns the status; None: no answer.
        """
        self.sandboxes[host] = sandbox
        self.limits[host] = limit
        self.own_faults[host] = own_faults
        self._crms.append(_Crm(self, sandbox, deliver))

    def schedule(self, function: str, *, every: int, timeout: int, needed: Callable[[], bool] = lambda: True) -> None:
        """Invoke a function again and again, with nobody to repeat what fails."""
        if needed():
            self.scheduler.start(lambda: self.invoke(function, {}, timeout))
        if self.scheduler.now < START + self.storm_seconds + CALM:
            pause = every if self.chaos.storm else _IN_CALM
            following = partial(self.schedule, function, every=every, timeout=timeout, needed=needed)
            self.scheduler.at(self.scheduler.now + pause, following)

    def run(self) -> None:
        """Let the storm rage, then let the world calm down until nothing is left to do."""
        self.schedule("outbox_drain", every=60, timeout=60, needed=self._keeps_messages)
        self.wake()
        calm_at = START + self.storm_seconds
        self.scheduler.run(calm_at)
        self.chaos.calm()
        self._warm.clear()
        self.note("the world", "calms down")
        self.wake()
        self.scheduler.run(calm_at + CALM)

    def _keeps_messages(self) -> bool:
        return any(key.startswith("outbox#") for key in self.items)

    # What came of it

    @property
    def output(self) -> str:
        """All that the functions wrote for CloudWatch."""
        return self._output.getvalue()

    @property
    def digest(self) -> str:
        """What two runs of a seed must agree on: every step, and what stands in the end, here and in the CRMs."""
        end = [
            self.trace,
            self.answers,
            self.bus.events,
            sorted((item.key, item.version, str(item.attributes)) for item in self.items.values()),
            [list(queue.messages.values()) for queue in (*self.queues.values(), *self.dead_letters.values())],
            [sandbox.state() for sandbox in self.sandboxes.values()],
        ]
        return hashlib.sha256(repr(end).encode()).hexdigest()

    def told(self) -> Iterator[tuple[str, str, bool]]:
        """Yield what was told, as canaries.Told does."""
        return canaries.told_by(self.output, self.answers, self.bus, self.dead_letters.values())


class _Crm:
    """Brings a sandbox's callbacks to the relay."""

    def __init__(self, world: World, sandbox: Sandbox, deliver: Deliver) -> None:
        self._world = world
        self._sandbox = sandbox
        self._reach = deliver
        self._looks_at = math.inf

    def wake(self) -> None:
        """See that somebody looks when the next callback is due."""
        due = self._sandbox.next_at
        if due is not None and due < self._looks_at:
            self._looks_at = due
            self._world.scheduler.at(due, self._look)

    def _look(self) -> None:
        if self._looks_at > self._world.scheduler.now:
            return
        self._looks_at = math.inf
        for delivery in self._sandbox.due(self._world.scheduler.now):
            self._world.scheduler.start(partial(self._deliver, delivery))
        self.wake()

    def _deliver(self, delivery: CallbackDelivery) -> None:
        self._sandbox.answered(delivery, self._reach(delivery))
        self.wake()
