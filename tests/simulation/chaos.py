"""What goes wrong: for every I/O of every process one draw of the seed's dice decides."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from random import Random
from typing import Self

from workbench.sandboxes import faults


class Trouble(Enum):
    """What happens to one I/O."""

    NONE = "ok"
    REFUSED = "refused"
    """An error, and nothing was done."""
    ANSWER_LOST = "answer lost"
    """It was done, and the caller gets an error."""
    LATE = "late"
    """The caller gets an error, and it is done a while later."""
    SLOW = "slow"
    STALLED = "stalled"
    """The process stands still for minutes."""
    ANSWERED_BADLY = "answered badly"
    """For a CRM: one of its sandbox's faults."""
    KILLED_BEFORE = "killed before"
    KILLED_AFTER = "killed after"
    KILLED_UNDER_WAY = "killed under way"
    """The process dies while its request goes on to where it is done."""


_PORT = {
    Trouble.REFUSED: 30.0,
    Trouble.ANSWER_LOST: 20.0,
    Trouble.LATE: 10.0,
    Trouble.SLOW: 18.0,
    Trouble.STALLED: 4.0,
    Trouble.KILLED_BEFORE: 4.0,
    Trouble.KILLED_AFTER: 5.0,
    Trouble.KILLED_UNDER_WAY: 4.0,
}
"""How often each meets a call of a port, beside the others."""
_CRM = {trouble: weight / 2 for trouble, weight in _PORT.items()} | {Trouble.ANSWERED_BADLY: 100}

_LONGEST_SKEW = 600


@dataclass
class Chaos:
    """The dice of one seed, and this seed's habits. After `calm` nothing goes wrong any more.

    `rate` is the share of I/O calls that meets trouble. It comes in gusts of `gust` calls on average, with as long a
    lull behind each, so that it also meets what has come far; a gust of one is no gust. `skews` are the seconds, one
    of which a new process's clock is off by.
    """

    random: Random
    rate: float
    gust: int
    skews: tuple[float, ...]
    recycled: float
    undead: float
    copies: int
    calls: int = 0
    troubles: int = 0
    storm: bool = True
    _blows: bool = True
    _ports: dict[Trouble, float] = field(default_factory=lambda: dict(_PORT))
    _crm: dict[Trouble, float] = field(default_factory=lambda: dict(_CRM))

    @classmethod
    def of(cls, random: Random, rate: float) -> Self:
        """Draw a seed's habits."""
        spread = random.choice((0.0, 0.0, 0.05, 5.0, 60.0, _LONGEST_SKEW))
        chaos = cls(
            random,
            rate,
            gust=random.choice((1, 30, 100, 200)),
            skews=(0.0, *(random.uniform(-spread, spread) for _ in range(4))),
            recycled=random.choice((0.02, 0.3)),
            undead=random.choice((0.0, 0.3)),
            copies=random.choice((1, 3, 5)),
        )
        for weights in (chaos._ports, chaos._crm):  # each seed has its own favourites
            for trouble in weights:
                weights[trouble] *= random.choice((0.3, 1.0, 1.0, 2.0))
        return chaos

    def calm(self) -> None:
        """End the storm: from now on everything works, and clocks are right."""
        self.storm = False

    def chance(self, probability: float) -> bool:
        """Throw a dice; in calm weather nothing happens by chance."""
        return self.storm and self.random.random() < probability

    def skew(self) -> float:
        """Return the seconds by which a new process's clock is off."""
        return self.random.choice(self.skews) if self.storm else 0.0

    def latency(self) -> float:
        """Return the seconds of an I/O's way there, or back, on a good day."""
        return 0.001 + 0.004 * self.random.random()

    def trouble(self, *, crm: bool = False) -> Trouble:
        """Decide about one I/O."""
        self.calls += self.storm
        if self.gust > 1 and self.chance(1 / self.gust):
            self._blows = not self._blows
        rate = self.rate if self.gust == 1 else 2 * self.rate * self._blows
        if not self.chance(rate):
            return Trouble.NONE
        self.troubles += 1
        weights = self._crm if crm else self._ports
        return self.random.choices(list(weights), list(weights.values()))[0]

    def pause(self, trouble: Trouble) -> float:
        """Return the seconds that a trouble takes."""
        match trouble:
            case Trouble.SLOW:
                return self.random.uniform(0.2, 12)
            case Trouble.STALLED:
                return self.random.uniform(20, 400)
            case Trouble.LATE | Trouble.KILLED_UNDER_WAY:
                return self.random.uniform(0.01, 9)
            case _:
                return 0.0

    def copies_of_one(self) -> int:
        """Return how often a sender sends the same."""
        return self.random.randint(1, self.copies)

    def bad_answer(self, own: Sequence[faults.Fault] = ()) -> faults.Fault:
        """Return what a CRM does instead of answering well, once; one time of three in one of its `own` ways."""
        when: faults.When = self.random.choice(("before", "after"))
        if own and self.random.random() < 0.33:
            return self.random.choice(own)
        return self.random.choice(
            (
                faults.RateLimited(retry_after=self.random.choice((None, 1, 7, 120, "soon"))),
                faults.CodedError(status=self.random.choice((500, 503))),
                faults.Html(status=self.random.choice((500, 502, 503, 504)), when=when),
                faults.Html(status=200, when=when),
                faults.Replaced(when=when),
                faults.Reset(when=when),
                faults.Timeout(when=when),
                faults.CutShort(),
                faults.Slow(seconds=self.random.choice((1.0, 9.0, 60.0))),
                faults.Drip(seconds=self.random.choice((0.5, 60.0))),
            )
        )
