"""Things that are to happen at a time."""

from collections.abc import Iterator
from heapq import heappop, heappush
from itertools import count


class Agenda[T]:
    """Items by the time they are due; those of one time in the order in which they were planned."""

    def __init__(self) -> None:
        self._entries: list[tuple[float, int, T]] = []
        self._numbers = count()

    def plan(self, at: float, item: T) -> None:
        """`item` is due from `at` on."""
        heappush(self._entries, (at, next(self._numbers), item))

    def due(self, now: float) -> Iterator[tuple[float, T]]:
        """Take out what is due, with its time; also what is planned meanwhile and due as well."""
        while self._entries and self._entries[0][0] <= now:
            at, _, item = heappop(self._entries)
            yield at, item

    @property
    def next_at(self) -> float | None:
        """When the next item is due; None: nothing is planned."""
        return self._entries[0][0] if self._entries else None
