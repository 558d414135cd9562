"""What a job of the relay is to the simulation: where events come from, and what must have come of them."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from crm_relay.cartelcrm.leads import SUBMISSION
from tests.simulation.world import World

type Fields = Mapping[str, Any]

IN_VAIN = ("GIVEN_UP", "NEEDS_RECONCILE")
"""Ends that an operator is told of; each needs a dead letter."""


class Job(ABC):
    """One job: plans its events in the world, and in the end says what is wrong there.

    Its secrets and persons bear the marks of tests/canaries.py.
    """

    kind: str
    """Of the effects that its messages are about."""
    parts: tuple[str, ...] = ()
    """Kinds of effects that it has within these."""
    unprovable = 0
    """Effects that `problems` found twice and let pass: a request was held up for so long that nobody could know."""

    @abstractmethod
    def start(self) -> None:
        """Plan the events."""

    @property
    @abstractmethod
    def events(self) -> int:
        """How many events it has had, copies apart."""

    @property
    def tokens(self) -> Iterable[str]:
        """Secrets that a CRM has made, which bear no mark."""
        return ()

    @abstractmethod
    def problems(self) -> Iterator[str]:
        """Tell what is lost, doubled or otherwise wrong, each with the name of the effect."""


def end(world: World, name: str) -> Fields:
    """Return what the ledger says of an effect in the end; nothing if it does not know it."""
    item = world.items.get(f"effect#{name}")
    return item.attributes if item else {}


def in_vain_is_told(world: World, name: str, queue: str) -> Iterator[str]:
    """Tell if an effect has ended in vain, and nobody is told."""
    state = end(world, name).get("state")
    if state in IN_VAIN:
        if name not in dead(world, queue):
            yield f"{name}: {state} without a dead letter"
        if world.items[f"effect#{name}"].attention != state:
            yield f"{name}: {state}, and not in the index of what needs attention"


def dead(world: World, queue: str) -> set[str]:
    """Return the names of the effects whose messages are dead letters."""
    bodies = [json.loads(message.body) for message in world.dead_letters[queue].messages.values()]
    return {f"{body['kind']}#{body['key']}" if "kind" in body else _lead(body["detail"]) for body in bodies}


def _lead(lead: Fields) -> str:
    return f"{SUBMISSION}#{lead['external_id']}"
