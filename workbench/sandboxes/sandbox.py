"""What all sandboxes share: faults, a record of what came in, callbacks, and the controls under /sandbox."""

from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from pydantic import BaseModel, ConfigDict, NonNegativeFloat, TypeAdapter, ValidationError

from workbench.sandboxes.agenda import Agenda
from workbench.sandboxes.callbacks import CallbackDelivery, Callbacks, Repeated
from workbench.sandboxes.faults import Faults, Scene, problems
from workbench.sandboxes.rates import busiest
from workbench.sandboxes.wire import SandboxRequest, SandboxResponse, json_answer, readable

REMEMBERED_REQUESTS = 50_000


@dataclass(frozen=True, slots=True)
class Received:
    """A request, when it came (unix seconds), the status that went back, the kind of the fault it met."""

    at: float
    request: SandboxRequest
    status: int | None
    fault: str | None


class Switches(BaseModel):
    """What can be changed about a sandbox while it runs. `latency`: seconds that every answer takes."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, allow_inf_nan=False)

    latency: NonNegativeFloat = 0.0


_OBJECT = TypeAdapter(dict[str, Any])


class Sandbox(ABC):
    """A small stand-in for a CRM, without I/O: transports carry its requests and its callbacks.

    `clock` gives unix seconds; all chance comes from `random`: the same clock, seed and requests give the
    same answers. `events` is what happens in the CRM by itself; `received` has the last 50,000 requests.
    """

    def __init__(self, *, clock: Callable[[], float], random: Random, repeat_after: Sequence[float] = ()) -> None:
        self.clock = clock
        self.random = random
        self.faults = Faults(random)
        self.switches = Switches()
        self.events = Agenda[Callable[[float], None]]()
        self.callbacks = Callbacks(clock, Repeated(tuple(repeat_after)))
        self.received: deque[Received] = deque(maxlen=REMEMBERED_REQUESTS)
        self._counters: Counter[str] = Counter()

    @abstractmethod
    def answer(self, request: SandboxRequest) -> SandboxResponse:
        """The CRM's own answer, when nothing goes wrong on the way."""

    @abstractmethod
    def refusal(self, status: int, code: str) -> SandboxResponse:
        """A refusal in the shape in which this CRM refuses."""

    def handle(self, request: SandboxRequest) -> SandboxResponse:
        """Answer a caller, or, under /sandbox, whoever works the controls."""
        now = self.clock()
        self._advance(now)
        if request.parts[0] == "sandbox":
            return readable(self.control(request))
        fault = self.faults.take(request)
        if fault is None:
            response = self.answer(request)
        else:
            response = fault.strike(Scene(lambda: self.answer(request), self.refusal, now))
        if self.switches.latency:
            response = replace(response, delay=response.delay + self.switches.latency)
        received = Received(now, request, response.told, fault.kind if fault else None)
        self.received.append(received)
        self._counters["requests"] += 1
        self._counters[f"fault {received.fault}" if fault else f"status {received.status}"] += 1
        return response

    def due(self, now: float) -> list[CallbackDelivery]:
        """The callbacks to send now; each must be `answered`."""
        self._advance(now)
        return self.callbacks.due(now)

    def answered(self, delivery: CallbackDelivery, status: int | None) -> None:
        """How a delivery was answered; None: not at all."""
        self.callbacks.answered(delivery, status)

    @property
    def next_at(self) -> float | None:
        """When something is due next (unix seconds); None: nothing is, unless somebody calls."""
        times = [at for at in (self.events.next_at, self.callbacks.next_at) if at is not None]
        return min(times, default=None)

    def control(self, request: SandboxRequest) -> SandboxResponse:
        """`/sandbox/faults`, `/sandbox/switches` and `GET /sandbox/state`."""
        match request.method, request.parts[1:]:
            case _, ("faults",):
                return self.faults.control(request)
            case "GET", ("switches",):
                return json_answer(200, self.switches.model_dump(mode="json"))
            case "POST", ("switches",):
                return self._switch(request.body)
            case "GET", ("state",):
                return json_answer(200, self.state())
            case _:
                return json_answer(404, {"error": "not_found"})

    def state(self) -> dict[str, object]:
        """What came in, went out and waits, for people: no secret, and no phone that could be read."""
        return {
            "counters": dict(self._counters),
            "busiest_second": busiest([received.at for received in self.received]),
            "faults": self.faults.waiting(),
            "switches": self.switches.model_dump(mode="json"),
            "callbacks": [
                {
                    "number": callback.number,
                    **callback.about,
                    "state": callback.state,
                    "answers": [status for _, status in callback.answers],
                }
                for callback in self.callbacks.log
            ],
        }

    def _switch(self, body: bytes) -> SandboxResponse:
        try:
            changes = _OBJECT.validate_json(body)
            self.switches = type(self.switches).model_validate(self.switches.model_dump() | changes)
        except ValidationError as refused:
            return json_answer(422, {"error": "invalid_switches", "problems": problems(refused)})
        return json_answer(200, self.switches.model_dump(mode="json"))

    def _advance(self, now: float) -> None:
        for at, event in self.events.due(now):
            event(at)
