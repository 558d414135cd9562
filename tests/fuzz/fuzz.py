"""Hand inputs in, one after the other, and look at the clock."""

import time
from dataclasses import dataclass
from typing import Any

import hypothesis
from hypothesis import HealthCheck, given, settings

from tests.fuzz.targets import TARGETS, Take

LONGEST_TAKEN, LONGEST_REFUSED = 0.4, 0.05
"""Seconds of CPU for an input that is taken, and for one that is not."""
_MEASURED_AGAIN = 4


@dataclass
class Fuzzed:
    """How many inputs were taken and refused, and the longest CPU time of each, in seconds."""

    target: str
    taken: int = 0
    refused: int = 0
    longest_taken: float = 0.0
    longest_refused: float = 0.0

    def __add__(self, other: "Fuzzed") -> "Fuzzed":
        return Fuzzed(
            self.target,
            self.taken + other.taken,
            self.refused + other.refused,
            max(self.longest_taken, other.longest_taken),
            max(self.longest_refused, other.longest_refused),
        )


def fuzz(name: str, inputs: int, seed: int) -> Fuzzed:
    """Try inputs on a target.

    Raises:
        Exception: whatever an input, made as small as it gets, has caused.
    """
    target, found = TARGETS[name], Fuzzed(name)
    with target.opened() as take:

        @hypothesis.seed(seed)
        @settings(
            max_examples=inputs,
            derandomize=False,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(target.inputs)
        def one(value: Any) -> None:
            is_taken, seconds = timed(take, value)
            if is_taken:
                found.taken += 1
                found.longest_taken = max(found.longest_taken, seconds)
            else:
                found.refused += 1
                found.longest_refused = max(found.longest_refused, seconds)
            assert seconds <= (LONGEST_TAKEN if is_taken else LONGEST_REFUSED), seconds

        one()
    return found


def timed(take: Take, value: Any) -> tuple[bool, float]:
    """Return the verdict, and the CPU seconds that it takes: the least of several where it took long."""
    shortest = float("inf")
    for _ in range(_MEASURED_AGAIN):
        began = time.process_time()
        is_taken = take(value)
        shortest = min(shortest, time.process_time() - began)
        if shortest < LONGEST_REFUSED / 2:
            break
    return is_taken, shortest
