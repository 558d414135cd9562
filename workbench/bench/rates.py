"""How fast work goes at a CRM's limit: our way, and others beside it."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Way:
    """What was done one way; `seconds` are those from the first request, reads included, to the last answer."""

    name: str
    done: int
    requests: int
    seconds: float

    @property
    def per_second(self) -> float:
        """How many a second were done."""
        return self.done / self.seconds


@dataclass(frozen=True, slots=True)
class Rates:
    """Ways to do `what`, the first of them ours, with a `goal` a second, the last the usual one.

    `limit` is in requests a second, `latency` in seconds: what the CRM allows, and what it takes for an answer.
    """

    what: str
    limit: float
    latency: float
    goal: float
    ways: Sequence[Way]

    @property
    def ratio(self) -> float:
        """How many times faster our way is than the usual one."""
        return self.ways[0].per_second / self.ways[-1].per_second

    @property
    def kept(self) -> bool:
        """Whether the goal is reached."""
        return self.ways[0].per_second >= self.goal
