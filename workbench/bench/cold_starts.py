"""Cold starts of the built functions under the emulator, as ratios to a function that does next to nothing."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from workbench.build import precompile
from workbench.emulator import Built, Emulator
from workbench.stack.blueprint import Blueprint, FunctionPlan
from workbench.stack.environments import FunctionError

RECEIVER_BUDGET = 1.15
WORKER_BUDGET = 1.45
OTHER_BUDGETS = {
    # Its caller wants the verdict, so it validates with pydantic and talks to CartelCRM itself.
    "LeadApiFunction": 1.75,
    # An administrator waits while it asks amoCRM for the tokens.
    "AmoAuthorizeFunction": 1.75,
}

_FLOOR = Path(__file__).with_name("floor.py")


@dataclass(frozen=True, slots=True)
class ColdStart:
    """The cold starts of one function; durations in milliseconds, `budget` and `ratio` in floors."""

    function: str
    durations: tuple[float, ...]
    floor: tuple[float, ...]
    budget: float

    @property
    def ratio(self) -> float:
        """The fastest start over the floor's fastest: whatever else this machine does only makes both slower."""
        return min(self.durations) / min(self.floor)

    @property
    def kept(self) -> bool:
        """Whether the budget is kept."""
        return self.ratio <= self.budget


def budget(function: str, blueprint: Blueprint) -> float:
    """Return how many floors the start of a function may take: somebody waits for whatever has a route."""
    if function in OTHER_BUDGETS:
        return OTHER_BUDGETS[function]
    return RECEIVER_BUDGET if any(route.function == function for route in blueprint.routes) else WORKER_BUDGET


def measure(stack: Built, rounds: int, tick: Callable[[], None]) -> tuple[ColdStart, ...]:
    """Start every function `rounds` times, in turns, each in a fresh process; `tick` is called after each round."""
    functions = stack.blueprint.functions
    durations: dict[str, list[float]] = {name: [] for name in functions}
    floor: list[float] = []
    environment = {"AWS_ENDPOINT_URL": stack.cloud.endpoint}
    with _floor_plan(next(iter(functions.values()))) as floor_plan:
        for _ in range(rounds):
            floor.append(_start(Emulator(floor_plan, environment)))
            for name in functions:
                durations[name].append(_start(stack.emulator(name)))
            tick()
    return tuple(
        ColdStart(name, tuple(durations[name]), tuple(floor), budget(name, stack.blueprint)) for name in functions
    )


def _start(emulator: Emulator) -> float:
    with emulator:
        # The first event is what makes the emulator start the function; this one need not mean anything to it.
        with suppress(FunctionError):
            emulator.invoke({})
        return emulator.init_duration


@contextmanager
def _floor_plan(model: FunctionPlan) -> Iterator[FunctionPlan]:
    """Make the floor a built function with the layers and the environment of another one."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(_FLOOR, folder)
        precompile(Path(folder))
        yield replace(model, name="Floor", handler="floor.handler", code=Path(folder))
