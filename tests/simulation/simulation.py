"""One seed, from the first event to the verdict."""

import tests.conftest  # noqa: F401, I001 (the environment of all tests, before anything reads it)

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from bitrix_robot.order import DEAL, KIND
from tests.relay import START
from tests.simulation.job import IN_VAIN, Job
from tests.simulation.jobs import CACHES, jobs
from tests.simulation.world import MOST_INVOCATIONS, World
from workbench.sandboxes.rates import busiest

RATE, EVENTS = 0.3, 70
_PARTS = (DEAL, "bitrix24.card")
"""Effects without a message of their own."""
_LATE = 0.075
"""Seconds after its turn for which a request may be under way; what the world held up for longer does not count."""


@dataclass(frozen=True)
class Report:
    """What came of a seed. `events` by job; `unprovable` as in Job."""

    seed: int
    problems: tuple[str, ...]
    digest: str
    calls: int
    troubles: int
    invocations: int
    events: Mapping[str, int]
    unprovable: int
    trace: tuple[str, ...]

    @property
    def replay(self) -> str:
        """The line that runs this seed again."""
        return f"make simulate SEEDS=1 FIRST={self.seed}"


def simulate(seed: int, *, rate: float = RATE, events: int = EVENTS, whole: bool = True) -> Report:
    """Run one seed. If not `whole`, only a seed that fails brings its trace: millions of lines need not travel."""
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
                tuple(problems),
                world.digest,
                world.chaos.calls,
                world.chaos.troubles,
                world.invocations,
                {type(job).__name__: job.events for job in work},
                sum(job.unprovable for job in work),
                tuple(world.trace) if whole or problems else (),
            )
    finally:
        for cache in CACHES:
            cache.cache_clear()


def _problems(world: World, work: list[Job]) -> Iterator[str]:
    for job in work:
        yield from job.problems()
        for mark in set(job.marks):
            if mark in world.output or any(mark in answer for answer in world.answers):
                yield f"{mark}: in a log line, a metric or an answer"
    if world.invocations > MOST_INVOCATIONS:
        yield f"the world: never comes to rest, {world.invocations} invocations"
    yield from _rates(world)
    yield from _left(world)


def _left(world: World) -> Iterator[str]:
    for queue in world.queues.values():
        for message in queue.messages.values():
            yield f"{queue.url}: {message.id} is still there, received {message.receive_count} times"
    for queue in world.dead_letters.values():
        for message in queue.messages.values():
            if not message.reason:
                yield f"{queue.url}: {message.id} is dead without a reason"
    effects = {key: item.attributes for key, item in world.items.items() if key.startswith("effect#")}
    given_up = {key.split("#")[1] for key, effect in effects.items() if effect["state"] in IN_VAIN}
    for key, effect in effects.items():
        # A copy of a message that was given up may have been claimed once more: its dead letter stands all the same.
        # With a call that was given up, its deal and that one's contacts may have lost their owner in the middle. And
        # what is settled was opened again by somebody who never heard that he had succeeded.
        is_part = key.split("#")[1] in _PARTS and KIND in given_up
        if effect["owner"] and not is_part and effect["state"] not in ("CONFIRMED", *IN_VAIN):
            yield f"{key.removeprefix('effect#')}: still owned"
    for key in world.items:
        if key.startswith("outbox#"):
            yield f"{key}: still in the outbox"


def _rates(world: World) -> Iterator[str]:
    for host, arrivals in world.arrivals.items():
        limit = world.limits[host]
        most = math.ceil(limit)
        # Slots are times: workers whose clocks differ hold the limit each among themselves.
        for skew in {arrival.skew for arrival in arrivals}:
            in_time = sorted(one.at for one in arrivals if one.skew == skew and one.at - one.slot_at <= _LATE)
            if busiest(in_time) > most:
                crowd = next(b for a, b in zip(in_time, in_time[most:], strict=False) if b - a < 1)
                yield f"{host}: {busiest(in_time)} requests in the second before {crowd - START:.3f}, {limit} allowed"
