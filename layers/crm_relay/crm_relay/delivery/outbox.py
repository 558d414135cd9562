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
        # Compressed, since an item holds 400 KB and a message may be larger.
        {"queue_url": queue.url, "body": zlib.compress(body.encode()), "delay": delay},
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
        more = True
        while more and ports.clock.time() < until:
            # A full page of which something went may have another behind it.
            page_sent, page_failed, full = _drain_page(ports, f"OUTBOX#{shard}", until)
            sent, failed = sent + page_sent, failed + page_failed
            more = full and page_sent > 0
    return sent, failed


def _drain_page(ports: Ports, attention: str, until: float) -> tuple[int, int, bool]:
    try:
        keys = ports.store.attention(attention, limit=_PAGE)
    except StorageError:
        return 0, 1, False
    sent = failed = 0
    for key in keys:
        if ports.clock.time() >= until:
            break
        try:
            item = ports.store.get(key)
            if item:
                _send(ports, item)
                sent += 1
        except StorageError:
            failed += 1
    return sent, failed, len(keys) == _PAGE


def kept_body(item: Item) -> bytes:
    """Return what an item of the outbox or of the quarantine keeps."""
    return zlib.decompress(item.attributes["body"])


def _send(ports: Ports, item: Item) -> None:
    kept = item.attributes
    ports.queue_at(kept["queue_url"]).send(kept_body(item).decode(), delay=kept["delay"])
    ports.store.delete(item)
