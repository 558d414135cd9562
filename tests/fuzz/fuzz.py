"""Hand inputs in, one after the other, and look at the clock."""

import time
from contextlib import ExitStack
from dataclasses import dataclass
from heapq import nlargest
from typing import Self

import hypothesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import LONGEST_REFUSED, TARGETS, Take, Target

FRESH_AFTER = 1_000
"""Inputs after which a target is opened anew, since what it keeps grows."""
REPORT = "found: "
"""What a line of `tests.fuzz.guided` begins with that says what it has found; others are of libFuzzer."""
_MEASURED = 4
_KEPT = 20

type Timed = tuple[float, bytes]
"""Seconds of CPU, and the input that took them."""


@dataclass(frozen=True)
class Fuzzed:
    """How many inputs were taken and refused, and the slowest 20 of each, the slowest first."""

    taken: int = 0
    refused: int = 0
    slowest_taken: tuple[Timed, ...] = ()
    slowest_refused: tuple[Timed, ...] = ()

    def __add__(self, other: "Fuzzed") -> "Fuzzed":
        return Fuzzed(
            self.taken + other.taken,
            self.refused + other.refused,
            _slowest(*self.slowest_taken, *other.slowest_taken),
            _slowest(*self.slowest_refused, *other.slowest_refused),
        )

    @property
    def inputs(self) -> int:
        """How many there were."""
        return self.taken + self.refused


def _slowest(*several: Timed) -> tuple[Timed, ...]:
    # An input that comes again and again, with its longest time, takes the place of no other one.
    longest = {data: seconds for seconds, data in sorted(several)}
    return tuple(nlargest(_KEPT, ((seconds, data) for data, seconds in longest.items())))


class Fuzzing:
    """Tries inputs on one target; `found` is what came of them. Use it as a context manager."""

    def __init__(self, target: Target) -> None:
        self.found = Fuzzed()
        self._target = target
        self._opened = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def one(self, data: bytes, *, measured: int = _MEASURED) -> float:
        """Try one input; return how slow it is."""
        if self.found.inputs % FRESH_AFTER == 0:
            self._opened.close()
            self._take = self._opened.enter_context(self._target.opened())
        taken, seconds = timed(self._take, self._target.whole(data), measured)
        slow = ((seconds, data),)
        self.found += Fuzzed(1, 0, slowest_taken=slow) if taken else Fuzzed(0, 1, slowest_refused=slow)
        return self._target.slowness(taken, seconds)


def timed(take: Take, value: bytes, measured: int = _MEASURED) -> tuple[bool, float]:
    """Return the verdict, and the CPU seconds of this thread that it takes: the least of several where it took long."""
    shortest = float("inf")
    for _ in range(measured):
        began = time.thread_time()
        taken = take(value)
        shortest = min(shortest, time.thread_time() - began)
        if shortest < LONGEST_REFUSED / 2:
            break
    return taken, shortest


def fuzz(name: str, inputs: int, seed: int) -> Fuzzed:
    """Try inputs of Hypothesis on a target.

    Raises:
        Exception: whatever an input, made as small as it gets, has caused.
    """
    target = TARGETS[name]
    parts = st.sampled_from(target.words) | st.binary(max_size=6)
    made = st.lists(parts, max_size=20).map(b"".join)
    changes = st.lists(st.tuples(st.integers(0, 400), st.integers(0, 20), parts), max_size=2)
    varied = st.builds(_varied, st.sampled_from(target.samples), changes)
    with Fuzzing(target) as fuzzing:

        @hypothesis.seed(seed)
        @settings(
            max_examples=inputs,
            derandomize=False,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(made | varied)
        def one(data: bytes) -> None:
            assert fuzzing.one(data) <= 1

        one()
        return fuzzing.found


def _varied(sample: bytes, changes: list[tuple[int, int, bytes]]) -> bytes:
    for place, length, part in changes:
        sample = sample[:place] + part + sample[place + length :]
    return sample
