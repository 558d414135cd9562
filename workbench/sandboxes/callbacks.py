"""Callbacks that a sandbox makes: when each is due, and when it is repeated.

Nothing is sent here. Who drives the sandbox takes what is `due`, sends it, and reports how it was `answered`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from workbench.sandboxes.agenda import Agenda

type Headers = Callable[[bytes, float], Mapping[str, str]]
"""The headers for a body that leaves at a time (unix seconds): a repetition may need fresh ones."""

_GOOD = range(200, 300)


@dataclass(frozen=True, slots=True)
class CallbackDelivery:
    """One attempt (the first is 1) to POST callback `number`."""

    number: int
    attempt: int
    url: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(slots=True)
class Callback:
    """A callback and what became of it.

    `about` says to people what it tells; `answers` has the time and the status of each attempt, None for no
    answer.
    """

    number: int
    url: str
    body: bytes
    headers: Headers
    about: Mapping[str, object]
    attempts: int = 0
    answers: list[tuple[float, int | None]] = field(default_factory=list)
    state: Literal["waiting", "delivered", "given_up"] = "waiting"


class Callbacks:
    """All callbacks of one sandbox.

    A bad answer is followed by another attempt after the next of the `repeat_after` delays (seconds), if
    one is left.
    """

    def __init__(self, clock: Callable[[], float], repeat_after: Sequence[float] = ()) -> None:
        self._clock = clock
        self._repeat_after = tuple(repeat_after)
        self._agenda = Agenda[Callback]()
        self._under_way: dict[int, Callback] = {}
        self.log: list[Callback] = []

    def plan(self, url: str, body: bytes, headers: Headers, about: Mapping[str, object]) -> Callback:
        """A callback that is due at once."""
        callback = Callback(len(self.log) + 1, url, body, headers, about)
        self.log.append(callback)
        self._agenda.plan(self._clock(), callback)
        return callback

    def due(self, now: float) -> list[CallbackDelivery]:
        """The attempts to make now; each must be `answered`, and until then its callback is not due again."""
        return [self._attempt(callback, now) for _, callback in self._agenda.due(now)]

    def answered(self, delivery: CallbackDelivery, status: int | None) -> None:
        """Take the answer to a delivery; None: there was none. KeyError if it is not under way."""
        callback = self._under_way.pop(delivery.number)
        now = self._clock()
        callback.answers.append((now, status))
        if status in _GOOD:
            callback.state = "delivered"
        elif callback.attempts <= len(self._repeat_after):
            self._agenda.plan(now + self._repeat_after[callback.attempts - 1], callback)
        else:
            callback.state = "given_up"

    @property
    def next_at(self) -> float | None:
        """When the next attempt is due; None: nothing waits."""
        return self._agenda.next_at

    def _attempt(self, callback: Callback, now: float) -> CallbackDelivery:
        callback.attempts += 1
        self._under_way[callback.number] = callback
        headers = callback.headers(callback.body, now)
        return CallbackDelivery(callback.number, callback.attempts, callback.url, headers, callback.body)
