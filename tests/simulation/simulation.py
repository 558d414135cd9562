"""One seed, from the first event to the verdict."""

import tests.conftest  # noqa: F401, I001 (the environment of all tests, before anything reads it)

import gc
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from crm_relay.delivery.budget import LATE
from tests import canaries
from tests.relay import START
from tests.simulation.job import IN_VAIN, Job
from tests.simulation.jobs import CACHES, jobs
from tests.simulation.world import MOST_INVOCATIONS, World
from workbench.sandboxes.rates import busiest

RATE, EVENTS = 0.3, 60


SITUATIONS = {
    **{
        trouble: f"→ {trouble}|  {trouble}"
        for trouble in ("refused", "answer lost", "done late", "slow", "killed before", "killed during", "killed after")
    },
    **{
        f"a CRM's {fault}": f"bad answer  → {fault}"
        for fault in (
            *("rate_limited", "coded_error before", "coded_error after", "html before", "html after", "cut_short"),
            *("replaced before", "replaced after", "reset before", "reset after", "timeout before", "timeout after"),
            *("slow", "drip"),
        )
    },
    "a stall": "→ stalled",
    "a function's time-out": "  timed out",
    "a clock that is off by minutes": r"clock is off by [+-][2-6]\d\d\.",
    "none of a batch taken": r"send_all  → 0 of \d+ taken",
    "some of a batch taken": r"send_all  → [1-9]\d* of \d+ taken",
    "a lease that ends under its owner": '"lease lost"',
    "two workers who refresh a token": "token_being_refreshed",
    "a forged callback": r"callback_receive/\d+ +returned  → 403",
    "a callback secret that rotates": "rotates the callback secret",
    "an API key that rotates": "rotates CartelCRM's key",
    "a webhook that rotates": "rotates the webhook",
    "a long-lived token that rotates": "puts in a new long-lived token",
}
"""What a storm is made of, and how the trace or a log tells of it."""


@dataclass(frozen=True)
class Report:
    """What came of a seed: of its I/O `calls` so many met `troubles`.

    `events` and `ends` are by job: how many, copies apart; and how many effects stand in each state of the ledger in
    the end. `met` are those of SITUATIONS that came up, and `unprovable` is as in Job.
    """

    seed: int
    rate: float
    wanted_events: int
    problems: tuple[str, ...]
    digest: str
    calls: int
    troubles: int
    invocations: int
    events: Mapping[str, int]
    ends: Mapping[str, Mapping[str, int]]
    met: frozenset[str]
    unprovable: int
    trace: tuple[str, ...]

    @property
    def replay(self) -> str:
        """The line that runs this seed again."""
        if (self.rate, self.wanted_events) == (RATE, EVENTS):
            return f"make simulate SEEDS=1 FIRST={self.seed}"
        options = f"--seeds 1 --first {self.seed} --rate {self.rate} --events {self.wanted_events}"
        return f"python -m tests.simulation {options}"


def simulate(seed: int, *, rate: float = RATE, events: int = EVENTS, whole: bool = True) -> Report:
    """Run one seed. If not `whole`, only a seed that fails brings its trace: millions of lines need not travel."""
    gc.disable()  # to search for garbage all the time took a tenth of it
    try:
        with World(seed, rate=rate, events=events) as world:
            work = jobs(world)
            for job in work:
                job.start()
            problems: list[str] = []
            try:
                world.run()
                problems += _problems(world, work)
            except Exception as error:  # noqa: BLE001 (a fault of the simulation is a failing seed, too)
                problems.append(f"the simulation itself: {error!r}")
            return Report(
                seed,
                rate,
                events,
                tuple(problems),
                world.digest,
                world.chaos.calls,
                world.chaos.troubles,
                world.invocations,
                {type(job).__name__: job.events for job in work},
                {type(job).__name__: _ends(world, job.kind) for job in work},
                _met(world),
                sum(job.unprovable for job in work),
                tuple(world.trace) if whole or problems else (),
            )
    finally:
        for cache in CACHES:
            cache.cache_clear()
        gc.enable()
        gc.collect(0)


def _problems(world: World, work: list[Job]) -> Iterator[str]:
    for job in work:
        yield from job.problems()
    yield from _leaks(world, sorted({token for job in work for token in job.tokens}))
    if world.invocations > MOST_INVOCATIONS:
        yield f"the world: never comes to rest, {world.invocations} invocations"
    if world.raised:
        yield f"the world: {world.raised} invocations raised when the storm was over"
    yield from _rates(world)
    yield from _left(world, work)


def _ends(world: World, kind: str) -> Counter[str]:
    prefix = f"effect#{kind}#"
    return Counter(str(item.attributes["state"]) for key, item in world.items.items() if key.startswith(prefix))


def _met(world: World) -> frozenset[str]:
    told = "\n".join([*world.trace, world.output])
    return frozenset(name for name, pattern in SITUATIONS.items() if re.search(pattern, told))


def _leaks(world: World, tokens: Sequence[str]) -> Iterator[str]:
    """Tell what secrets, and what of persons, stands where nobody may see it."""
    for place, text, personal in world.told():
        for hit in sorted(canaries.found(text, personal)):
            yield f"{hit}: in {place}"
        if not personal:
            yield from (f"{token}: in {place}" for token in tokens if token in text)


def _left(world: World, work: Sequence[Job]) -> Iterator[str]:
    for queue in world.queues.values():
        for message in queue.messages.values():
            yield f"{queue.url}: {message.id} is still there, received {message.receive_count} times"
    for queue in world.dead_letters.values():
        for message in queue.messages.values():
            if not message.reason:
                yield f"{queue.url}: {message.id} is dead without a reason"
    effects = {key: item.attributes for key, item in world.items.items() if key.startswith("effect#")}
    given_up = {key.split("#")[1] for key, effect in effects.items() if effect["state"] in IN_VAIN}
    parts = {part for job in work for part in job.parts if job.kind in given_up}
    for key, effect in effects.items():
        # A copy of a message that was given up may have been claimed once more: its dead letter stands all the same.
        # With a call that was given up, its deal and that one's contacts may have lost their owner in the middle. And
        # what is settled was opened again by somebody who never heard that he had succeeded.
        if effect["owner"] and key.split("#")[1] not in parts and effect["state"] not in ("CONFIRMED", *IN_VAIN):
            yield f"{key.removeprefix('effect#')}: still owned"
    for key in world.items:
        if key.startswith("outbox#"):
            yield f"{key}: still in the outbox"


def _rates(world: World) -> Iterator[str]:
    for host, arrivals in world.arrivals.items():
        limit = world.limits[host]
        if out_of_turn := sum(one.slot_at == -math.inf for one in arrivals):
            yield f"{host}: {out_of_turn} requests out of turn"
        most = math.ceil(limit)
        # Slots are times: workers whose clocks differ hold the limit each among themselves.
        for skew in {arrival.skew for arrival in arrivals}:
            in_time = sorted(one.at for one in arrivals if one.skew == skew and one.at - one.slot_at <= LATE)
            if busiest(in_time) > most:
                crowd = next(b for a, b in zip(in_time, in_time[most:], strict=False) if b - a < 1)
                yield f"{host}: {busiest(in_time)} requests in the second before {crowd - START:.3f}, {limit} allowed"
