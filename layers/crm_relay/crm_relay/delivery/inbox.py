"""Accepting a call: durable first, remembered second, so that a crash can cost a copy but never a call."""

import hashlib
import zlib
from collections.abc import Sequence
from contextlib import suppress
from enum import Enum

from crm_relay.delivery import outbox
from crm_relay.delivery.envelope import Envelope
from crm_relay.delivery.ports import Conflict, Item, Ports, StorageError
from crm_relay.http_api import Unavailable
from crm_relay.observability import count, log_failure, logger, needs_attention

_QUARANTINE_KEPT = 90 * 86_400
_MOST_KEPT = 350_000
"""Bytes, since an item holds 400 KB."""


class Receipt(Enum):
    """What `accept` found."""

    ACCEPTED = "accepted"
    REPLAYED = "replayed"
    CONFLICTING = "conflicting"
    """The key is known with another payload; nothing was queued."""


def accept(ports: Ports, envelope: Envelope, *, remember: int, delay: int = 0) -> Receipt:
    """Queue an envelope unless it is queued already.

    The item goes RECEIVED → (the message is durable) → ENQUEUED. Only ENQUEUED proves that a message
    exists; whatever else is found, and whenever the table does not answer, the message is sent again and
    the worker's ledger tells the copies apart.

    Args:
        ports: the world; three calls on the usual way.
        envelope: what to queue.
        remember: seconds for which a copy is recognised.
        delay: seconds before a worker may see the message.

    Raises:
        Unavailable: neither the queue nor the outbox has it.
    """
    key = f"inbound#{envelope.name}"
    expires_at = int(ports.clock.time()) + remember
    received = {"state": "RECEIVED", "sha256": envelope.sha256, "copies": 1}
    item: Item | None = None
    try:
        item = ports.store.put(key, received, replaces=None, expires_at=expires_at)
    except Conflict as conflict:
        item = conflict.current
    except StorageError as error:
        log_failure("inbox not written", error, key=key)
    if item and item.attributes["state"] == "ENQUEUED":
        return _known(ports, item, envelope)
    make_durable(ports, envelope, delay=delay)
    count("Received")
    if item:
        # With this body's digest: what stood there as RECEIVED may have been another body that was never queued.
        enqueued = {**item.attributes, "state": "ENQUEUED", "sha256": envelope.sha256}
        with suppress(Conflict, StorageError):
            ports.store.put(key, enqueued, replaces=item, expires_at=item.expires_at)
    return Receipt.ACCEPTED


def _known(ports: Ports, item: Item, envelope: Envelope) -> Receipt:
    count("Replayed")
    copies = item.attributes["copies"] + 1
    with suppress(Conflict, StorageError):
        ports.store.put(item.key, {**item.attributes, "copies": copies}, replaces=item, expires_at=item.expires_at)
    return Receipt.REPLAYED if item.attributes["sha256"] == envelope.sha256 else Receipt.CONFLICTING


def make_durable(ports: Ports, envelope: Envelope, *, delay: int = 0) -> None:
    """Put an envelope into the queue, or else into the outbox, whether or not it was there before.

    Raises:
        Unavailable: neither has it.
    """
    body = envelope.encode()
    try:
        ports.queue.send(body, delay=delay)
    except StorageError as error:
        log_failure("queue did not take a message", error, key=envelope.key)
        _keep(ports, envelope.kind, [body], delay=delay)


def make_all_durable(ports: Ports, envelopes: Sequence[Envelope]) -> None:
    """Put small envelopes of one kind into the queue, or else into the outbox.

    Raises:
        Unavailable: neither has one of them. Others may be there: whoever sent them is to send them all again.
    """
    if missing := ports.queue.send_all([envelope.encode() for envelope in envelopes]):
        logger.error("queue did not take messages", missing=len(missing))
        _keep(ports, envelopes[0].kind, missing)


def _keep(ports: Ports, kind: str, bodies: Sequence[str], *, delay: int = 0) -> None:
    try:
        ports.parallel(lambda body: outbox.keep(ports, kind, body, ports.queue, delay=delay), bodies)
    except StorageError:
        raise Unavailable("nothing_durable") from None


def quarantine(ports: Ports, kind: str, body: bytes, reason: str) -> None:
    """Keep an authentic body that nothing can be made of; equal bodies are kept once.

    Raises:
        Unavailable: the table did not take it.
    """
    key = f"quarantine#{kind}#{hashlib.sha256(body).hexdigest()}"
    kept = zlib.compress(body, zlib.Z_BEST_SPEED)
    if len(kept) > _MOST_KEPT:  # no CRM sends anything so dense; the beginning tells what it is
        kept = zlib.compress(body[: _MOST_KEPT // 2], zlib.Z_BEST_SPEED)
    try:
        ports.store.put(
            key,
            {"reason": reason, "body": kept},
            replaces=None,
            expires_at=int(ports.clock.time()) + _QUARANTINE_KEPT,
            attention="QUARANTINE",
        )
    except Conflict:
        logger.info("already in quarantine", key=key)
    except StorageError:
        raise Unavailable("nothing_durable") from None
    needs_attention("quarantined", key=key, reason=reason)
