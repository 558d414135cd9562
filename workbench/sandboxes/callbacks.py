"""Callbacks that a sandbox makes: when each is due, and when it is repeated.

Nothing is sent here. Who drives the sandbox takes what is `due`, sends it, and reports how it was `answered`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

from workbench.sandboxes.agenda import Agenda

type Headers = Callable[[bytes, float], Mapping[str, str]]
"""The headers for a body that leaves at a time (unix seconds): a repetition may need fresh ones."""

type Next = float | Literal["delivered", "given_up"]
"""What an answer leads to: another attempt after so many seconds, or an end."""


class Manner(Protocol):
    """How a CRM sends one kind of callback, and what it makes of the answers."""

    @property
    def timeout(self) -> float:
        """The seconds that the other side has to answer in."""

    @property
    def stopped(self) -> bool:
        """Whether the CRM has left off: what still waits is given up."""

    def after(self, attempt: int, status: int | None, now: float) -> Next:
        """What follows when attempt number `attempt` (from 1) was answered so; None: not at all."""


@dataclass(frozen=True, slots=True)
class Repeated:
    """Good is a 2xx; anything else is followed by another attempt after the next of `delays` (seconds)."""

    delays: tuple[float, ...] = ()
    timeout: float = 10.0
    stopped: bool = False

    def after(self, attempt: int, status: int | None, now: float) -> Next:  # noqa: ARG002 (only the answer matters)
        """Count the attempts, whatever the time."""
        if status in range(200, 300):
            return "delivered"
        return self.delays[attempt - 1] if attempt <= len(self.delays) else "given_up"


@dataclass(frozen=True, slots=True)
class CallbackDelivery:
    """One attempt (the first is 1) to POST callback `number`, with `timeout` seconds for the answer."""

    number: int
    attempt: int
    url: str
    headers: Mapping[str, str]
    body: bytes
    timeout: float


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
    manner: Manner
    attempts: int = 0
    answers: list[tuple[float, int | None]] = field(default_factory=list)
    state: Literal["waiting", "delivered", "given_up"] = "waiting"


class Callbacks:
    """All callbacks of one sandbox, sent in `manner` unless they are planned with another."""

    def __init__(self, clock: Callable[[], float], manner: Manner) -> None:
        self._clock = clock
        self._manner = manner
        self._agenda = Agenda[Callback]()
        self._under_way: dict[int, Callback] = {}
        self.log: list[Callback] = []

    def plan(
        self, url: str, body: bytes, headers: Headers, about: Mapping[str, object], manner: Manner | None = None
    ) -> Callback:
        """A callback that is due at once."""
        callback = Callback(len(self.log) + 1, url, body, headers, about, manner or self._manner)
        self.log.append(callback)
        self._agenda.plan(self._clock(), callback)
        return callback

    def due(self, now: float) -> list[CallbackDelivery]:
        """The attempts to make now; each must be `answered`, and until then its callback is not due again."""
        deliveries = []
        for _, callback in self._agenda.due(now):
            if callback.manner.stopped:
                callback.state = "given_up"
            else:
                deliveries.append(self._attempt(callback, now))
        return deliveries

    def answered(self, delivery: CallbackDelivery, status: int | None) -> None:
        """Take the answer to a delivery; None: there was none. KeyError if it is not under way."""
        callback = self._under_way.pop(delivery.number)
        now = self._clock()
        callback.answers.append((now, status))
        match callback.manner.after(callback.attempts, status, now):
            case "delivered" | "given_up" as state:
                callback.state = state
            case seconds:
                self._agenda.plan(now + seconds, callback)

    @property
    def next_at(self) -> float | None:
        """When the next attempt is due; None: nothing waits."""
        return self._agenda.next_at

    def _attempt(self, callback: Callback, now: float) -> CallbackDelivery:
        callback.attempts += 1
        self._under_way[callback.number] = callback
        headers = callback.headers(callback.body, now)
        return CallbackDelivery(
            callback.number, callback.attempts, callback.url, headers, callback.body, callback.manner.timeout
        )
