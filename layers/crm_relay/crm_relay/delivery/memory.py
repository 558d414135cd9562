"""The ports in memory: for tests and the simulation, under the same contract suite as `aws`."""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import count
from threading import Lock
from typing import Any

from crm_relay.delivery.ports import Clock, Conflict, Item


@dataclass
class MemoryStore:
    """A dict with versions."""

    clock: Clock
    items: dict[str, Item] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock, repr=False)

    def get(self, key: str) -> Item | None:
        """See ports.Store."""
        item = self.items.get(key)
        if item is None or (item.expires_at is not None and item.expires_at <= self.clock.time()):
            return None
        return item

    def put(
        self,
        key: str,
        attributes: Mapping[str, Any],
        *,
        replaces: Item | None,
        expires_at: int | None = None,
        attention: str | None = None,
    ) -> Item:
        """See ports.Store."""
        version = replaces.version + 1 if replaces else 1
        item = Item(key, _as_kept(dict(attributes)), version, int(self.clock.time()), expires_at, attention)
        with self._lock:
            current = self.get(key)
            if (current and current.version) != (replaces and replaces.version):
                raise Conflict(current)
            self.items[key] = item
        return item

    def delete(self, item: Item) -> None:
        """See ports.Store."""
        current = self.items.get(item.key)
        if current and current.version == item.version:
            del self.items[item.key]

    def attention(self, value: str, *, limit: int) -> list[str]:
        """See ports.Store."""
        found = [item for item in self.items.values() if item.attention == value]
        return [item.key for item in sorted(found, key=lambda item: item.updated_at)][:limit]


def _as_kept(value: Any) -> Any:
    match value:
        case dict():
            return {name: _as_kept(inner) for name, inner in value.items()}
        case list() | tuple():
            return [_as_kept(inner) for inner in value]
        case str() | bool() | int() | bytes() | None:
            return value
        case _:
            raise TypeError(f"no item holds a {type(value).__name__}")


@dataclass
class Message:
    """A message in a MemoryQueue; times are unix seconds."""

    id: str
    body: str
    sent_at: float
    visible_at: float
    reason: str | None = None
    receive_count: int = 0

    def record(self) -> dict[str, Any]:
        """Return the message as an SQS event source mapping hands it to a function."""
        return {
            "messageId": self.id,
            "receiptHandle": self.id,
            "body": self.body,
            "attributes": {
                "ApproximateReceiveCount": str(self.receive_count),
                "SentTimestamp": str(int(self.sent_at * 1000)),
            },
            "messageAttributes": {},
            "eventSource": "aws:sqs",
        }


@dataclass
class MemoryQueue:
    """A queue with visibility; messages stay until they are deleted."""

    clock: Clock
    url: str = "memory"
    messages: dict[str, Message] = field(default_factory=dict)
    _ids: Any = field(default_factory=count)

    def send(self, body: str, *, delay: int = 0, reason: str | None = None) -> None:
        """See ports.Queue."""
        now = self.clock.time()
        message = Message(f"message-{next(self._ids)}", body, now, now + delay, reason)
        self.messages[message.id] = message

    def send_all(self, bodies: Sequence[str]) -> list[str]:
        """See ports.Queue."""
        for body in bodies:
            self.send(body)
        return []

    def hand_back(self, receipt_handle: str, *, delay: int) -> None:
        """See ports.Queue."""
        if receipt_handle in self.messages:
            self.messages[receipt_handle].visible_at = self.clock.time() + delay

    def receive(self, *, limit: int, visibility: float) -> list[Message]:
        """Return up to `limit` visible messages and hide them for `visibility` seconds."""
        now = self.clock.time()
        visible = [message for message in self.messages.values() if message.visible_at <= now][:limit]
        for message in visible:
            message.receive_count += 1
            message.visible_at = now + visibility
        return visible

    def delete(self, message_id: str) -> None:
        """Delete a message, as the event source mapping does after success."""
        self.messages.pop(message_id, None)


@dataclass
class MemoryBus:
    """A list of what was published."""

    events: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)

    def publish(self, detail_type: str, detail: Mapping[str, Any]) -> None:
        """See ports.Bus."""
        self.events.append((detail_type, deepcopy(dict(detail))))
