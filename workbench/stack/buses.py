"""Everything that is published on the buses of the stack, for whoever wants to watch."""

import asyncio
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from workbench.stack.blueprint import BusTap
from workbench.stack.queues import Handler, Message


@dataclass(frozen=True, slots=True)
class Published:
    """An event that somebody put on a bus; `bus` is the logical id."""

    bus: str
    event: Mapping[str, Any]


class Watch:
    """An endless iterator over what is published from its creation on."""

    def __init__(self, watchers: "set[Watch]") -> None:
        self._watchers = watchers
        self._published: asyncio.Queue[Published] = asyncio.Queue()
        watchers.add(self)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Published:
        return await self._published.get()

    def tell(self, published: Published) -> None:
        """Add an event."""
        self._published.put_nowait(published)

    def close(self) -> None:
        """Stop watching."""
        self._watchers.discard(self)


class Buses:
    """Hands every event to all who watch."""

    def __init__(self) -> None:
        self._watchers: set[Watch] = set()

    def watch(self) -> Watch:
        """Watch all buses from now on."""
        return Watch(self._watchers)

    def publisher(self, tap: BusTap) -> Handler:
        """Handle the messages of a tap by telling all who watch."""

        async def handle(batch: Sequence[Message]) -> Collection[Message]:
            for message in batch:
                published = Published(tap.bus, json.loads(message["Body"]))
                for watcher in tuple(self._watchers):
                    watcher.tell(published)
            return batch

        return handle
