"""Messages that SQS did not take, kept in the table until it does: not every CRM repeats a call."""

import uuid
import zlib

from crm_relay.delivery.ports import Item, Ports, Queue, StorageError

SHARDS = 10
"""The index partitions of the outbox: one alone takes 1,000 writes a second, and throttles the table above that."""

_KEPT = 14 * 86_400
_PAGE = 100


def keep(ports: Ports, kind: str, body: str, queue: Queue, *, delay: int = 0) -> None:
    """Keep a message for `queue`.

    Raises:
        StorageError: the table did not take it either.
    """
    key = f"outbox#{kind}#{uuid.uuid4().hex}"
    ports.store.put(
        key,
        {"queue_url": queue.url, "body": body, "delay": delay},
        replaces=None,
        expires_at=int(ports.clock.time()) + _KEPT,
        attention=f"OUTBOX#{zlib.crc32(key.encode()) % SHARDS}",
    )


def drain(ports: Ports, *, until: float) -> tuple[int, int]:
    """Send what is kept, oldest first, and forget what was sent.

    A crash between the two sends a message twice, which the ledger is there for.

    Args:
        ports: the world.
        until: unix time in seconds at which to stop.

    Returns:
        How many were sent, and how many queues or table calls failed.
    """
    sent = failed = 0
    for shard in range(SHARDS):
        for key in ports.store.attention(f"OUTBOX#{shard}", limit=_PAGE):
            if ports.clock.time() >= until:
                return sent, failed
            try:
                item = ports.store.get(key)
                if item:
                    _send(ports, item)
                    sent += 1
            except StorageError:
                failed += 1
    return sent, failed


def _send(ports: Ports, item: Item) -> None:
    kept = item.attributes
    ports.queue_at(kept["queue_url"]).send(kept["body"], delay=kept["delay"])
    ports.store.delete(item)
