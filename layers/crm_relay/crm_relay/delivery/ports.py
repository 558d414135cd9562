"""What delivery needs of the world: a store, a queue, a bus and a clock. `aws` and `memory` provide them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


class StorageError(Exception):
    """The store, the queue or the bus did not do it, or did not say that it did. Nobody knows which."""


@dataclass(frozen=True, slots=True)
class Item:
    """One item of the table.

    `version` starts at 1 and grows with every write; a write names the version that it replaces, which is
    the fence that keeps a stale owner out. `attention` puts the item into the index of what somebody or
    something must still look at. Times are unix seconds. `attributes` are str, int, bool, bytes, None,
    lists and dicts of these; no float.
    """

    key: str
    attributes: Mapping[str, Any]
    version: int
    updated_at: int
    expires_at: int | None = None
    attention: str | None = None


class Conflict(Exception):
    """Somebody else wrote first. `current` is what stands there now, None if it is gone."""

    def __init__(self, current: Item | None) -> None:
        super().__init__("conflict")
        self.current = current


class Store(Protocol):
    """Items by key, written only against the version that was read. All methods raise StorageError."""

    def get(self, key: str) -> Item | None:
        """Return the item as it is now (strongly consistent); an expired one is none."""

    def put(
        self,
        key: str,
        attributes: Mapping[str, Any],
        *,
        replaces: Item | None,
        expires_at: int | None = None,
        attention: str | None = None,
    ) -> Item:
        """Write an item in the place of `replaces`, or where there is none; return it as written.

        A write whose answer got lost and that is repeated inside the adapter succeeds once.

        Raises:
            Conflict: something else stands there.
        """

    def delete(self, item: Item) -> None:
        """Delete this version of an item; if it is gone or newer, do nothing."""

    def attention(self, value: str, *, limit: int) -> list[str]:
        """Return up to `limit` keys of items with this `attention`, oldest first, eventually consistent."""


class Queue(Protocol):
    """One SQS queue."""

    @property
    def url(self) -> str:
        """The queue's URL."""

    def send(self, body: str, *, delay: int = 0, reason: str | None = None) -> None:
        """Send a message, visible after `delay` seconds; `reason` says why it is a dead letter.

        Raises:
            StorageError: it is not known to be there.
        """

    def send_all(self, bodies: Sequence[str]) -> list[str]:
        """Send messages, ten a request; return those that are not known to be there."""

    def hand_back(self, receipt_handle: str, *, delay: int) -> None:
        """Make a received message visible again in `delay` seconds.

        Raises:
            StorageError: it will appear when its visibility timeout ends.
        """


class Bus(Protocol):
    """The event bus."""

    def publish(self, detail_type: str, detail: Mapping[str, Any]) -> None:
        """Publish an event.

        Raises:
            StorageError: it is not known to be there.
        """


class Clock(Protocol):
    """Time; the module `time` is one."""

    def time(self) -> float:
        """Return unix seconds."""

    def sleep(self, seconds: float, /) -> None:
        """Wait."""


class Parallel(Protocol):
    """Does many calls of the world at once where that is faster."""

    def __call__[A, B](self, call: Callable[[A], B], arguments: Sequence[A], /) -> list[B]:
        """Return what `call` returns for each of the arguments, in their order; raise what one of them raises."""


def in_turn[A, B](call: Callable[[A], B], arguments: Sequence[A], /) -> list[B]:
    """Be a Parallel that does one call after the other."""
    return [call(argument) for argument in arguments]


def update(
    store: Store,
    key: str,
    change: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    *,
    expires_at: int | None = None,
) -> Mapping[str, Any]:
    """Apply a pure change to an item's attributes (empty if there is none) and return the new ones.

    Writes nothing where the change changes nothing; starts over when somebody else wrote in between.
    """
    item = store.get(key)
    while True:
        before = item.attributes if item else {}
        after = change(before)
        if after == before:
            return after
        try:
            return store.put(key, after, replaces=item, expires_at=expires_at).attributes
        except Conflict as conflict:
            item = conflict.current


@dataclass(frozen=True, slots=True)
class Ports:
    """All of the world that a function is given."""

    store: Store
    queue: Queue
    dead_letters: Queue
    bus: Bus
    clock: Clock
    random: Callable[[], float]
    queue_at: Callable[[str], Queue]
    """Any queue by its URL: the outbox keeps messages of all queues."""
    parallel: Parallel = in_turn
