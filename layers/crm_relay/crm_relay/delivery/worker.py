"""The worker's loop: claim, do, record; and what happens to the message then."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from crm_relay.delivery.envelope import Envelope, NotOurs
from crm_relay.delivery.ledger import Busy, Claim, Effect, Fenced, Ledger, OtherPayload, State
from crm_relay.delivery.ports import Ports, StorageError
from crm_relay.observability import count, log_failure, logger, needs_attention
from crm_relay.outcomes import NotConfigured, NotExecuted, Outcome, OutcomeUnknown, Rejected

MOST_TRIES = 5
"""Claims whose owner died or failed in our own code, in a row, before a message goes to the dead letters."""
_LEASE_MARGIN = 30
"""Seconds that a claim outlives its invocation, for clocks that differ."""

_FIRST_DELAY = 5
_LONGEST_DELAY = 900
_LONGEST_ASKED = 600
_HAND_BACK = 1


class LambdaContext(Protocol):
    """What we need of Lambda's context object."""

    def get_remaining_time_in_millis(self) -> int:
        """Return the milliseconds until this invocation is stopped."""


type Job = Callable[[Envelope, Claim], Mapping[str, Any]]
"""Does one effect and returns its result; raises an Outcome where that did not work."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """The effect is to be tried again in `delay` seconds."""

    reason: str
    delay: int


@dataclass(frozen=True, slots=True)
class Dead:
    """No worker can go on with this: the message belongs to the dead letters."""

    reason: str


def lease(context: LambdaContext) -> int:
    """Return the seconds for which an invocation may claim effects: it cannot outlive its own time-out."""
    return context.get_remaining_time_in_millis() // 1000 + _LEASE_MARGIN


def attempt(
    ports: Ports, envelope: Envelope, job: Job, *, lease: int, received: int = 0, last: bool = False
) -> Effect | Waiting | Dead:
    """Try one effect once.

    Args:
        ports: the world.
        envelope: what to do.
        job: how to do it.
        lease: seconds, see `lease`.
        received: how often the message has come; delays grow with it while the ledger cannot count.
        last: the message has waited long enough; what does not work now is given up.

    Returns:
        The settled effect (by us or by an earlier try), or what is to become of the message.
    """
    try:
        claim = Ledger(ports.store, ports.clock).claim(envelope.name, envelope.sha256, lease=lease)
    except Busy as busy:
        return Waiting("busy", max(1, busy.until - int(ports.clock.time())))
    except OtherPayload:
        return Dead("other_payload")
    except StorageError as error:
        log_failure("ledger not read", error, key=envelope.key)
        return Waiting("storage", _delay(ports, received, None))
    if isinstance(claim, Effect):
        return claim
    try:
        if claim.effect.tries > MOST_TRIES:
            claim.give_up("too_many_tries", happened=_happened(claim))
            return Dead("too_many_tries")
        return _do(ports, envelope, claim, job, last=last)
    except Fenced:
        logger.warning("lease lost", key=envelope.key)
        return Waiting("fenced", _delay(ports, 0, None))
    except StorageError as error:
        # Nobody knows whether the write took place: the lease must run out.
        log_failure("ledger not written", error, key=envelope.key)
        return Waiting("storage", lease)


def _do(ports: Ports, envelope: Envelope, claim: Claim, job: Job, *, last: bool) -> Effect | Waiting | Dead:
    retry_after = None
    orderly = True
    try:
        claim.confirm(job(envelope, claim))
        return claim.effect
    except Rejected as refusal:
        claim.reject(refusal.reason)
        return claim.effect
    except NotExecuted as outcome:
        reason, happened, retry_after = str(outcome), False, outcome.retry_after
    except OutcomeUnknown as outcome:
        reason, happened = str(outcome), None
    except Outcome as outcome:  # Unauthorized, Blocked: the account is paused
        reason, happened = str(outcome), False
    except NotConfigured:
        needs_attention("not configured", key=envelope.key)
        reason, happened = "not_configured", _happened(claim)
    except StorageError as error:
        # If it was the claim that could not be written, giving it back may find that it was: Fenced.
        log_failure("storage failed", error, key=envelope.key)
        reason, happened = "storage", _happened(claim)
    except Fenced:
        raise
    except Exception as error:  # noqa: BLE001 (a fault of ours must not cost the message)
        log_failure("unhandled", error, key=envelope.key)
        count("UnhandledError")
        reason, happened, orderly = type(error).__name__, _happened(claim), False
    if last:
        claim.give_up(reason, happened=happened)
        return Dead("gave_up" if claim.effect.state is State.GIVEN_UP else "needs_reconcile")
    claim.wait(reason, happened=happened, orderly=orderly)
    return Waiting(reason, _delay(ports, claim.effect.waits, retry_after))


def _raising(outcome: Outcome) -> Job:
    def job(_envelope: Envelope, _claim: Claim) -> Mapping[str, Any]:
        raise outcome

    return job


def _happened(claim: Claim) -> bool | None:
    return None if claim.effect.state is State.SENT else False


def _delay(ports: Ports, waits: int, retry_after: float | None) -> int:
    """Return seconds to wait: full jitter over a growing span, behind the CRM's own Retry-After.

    It grows even where the CRM names a short time again and again: the queue counts how often a message comes.
    """
    span = min(_LONGEST_DELAY, _FIRST_DELAY * 2 ** min(max(waits - 1, 0), 10))
    # Clamped below the longest delay, so that there is room for jitter behind it.
    asked = min(max(retry_after or 0.0, 0.0), _LONGEST_ASKED)
    return 1 + int(asked + ports.random() * min(span, _LONGEST_DELAY - 1 - asked))


def _received(record: Mapping[str, Any]) -> int:
    return int(record["attributes"]["ApproximateReceiveCount"])


@dataclass(frozen=True, slots=True)
class Worker:
    """Works off the messages of one queue.

    `read` turns a message body into an envelope (NotOurs if it is none), `ready` raises NotExecuted while
    there is no sense in trying. A message is not started with less than `needs_seconds` left, nor tried
    again when it has waited for `give_up_after` seconds.
    """

    ports: Ports
    job: Job
    needs_seconds: float
    give_up_after: int
    read: Callable[[str], Envelope] = Envelope.decode
    ready: Callable[[], None] = lambda: None

    def run(self, event: Mapping[str, Any], context: LambdaContext) -> dict[str, list[dict[str, str]]]:
        """Work off an SQS event; return the ids that stay in the queue, as ReportBatchItemFailures wants them."""
        records: Iterable[Mapping[str, Any]] = event["Records"]
        kept = [record["messageId"] for record in records if not self._handle(record, context)]
        return {"batchItemFailures": [{"itemIdentifier": message_id} for message_id in kept]}

    def _handle(self, record: Mapping[str, Any], context: LambdaContext) -> bool:
        """Return whether the message is done with."""
        if context.get_remaining_time_in_millis() < self.needs_seconds * 1000:
            self._hand_back(record, _HAND_BACK)
            return False
        try:
            outcome = self._outcome(record, lease(context))
        except Exception as error:  # noqa: BLE001 (one message must not cost the others of its batch)
            log_failure("unhandled", error)
            count("UnhandledError")
            outcome = Waiting("unhandled", _delay(self.ports, _received(record), None))
        match outcome:
            case Waiting(reason, delay):
                logger.info("waiting", reason=reason, delay=delay)
                count("Waiting")
                self._hand_back(record, delay)
                return False
            case Dead(reason):
                return self._bury(record, reason)
            case Effect(state=state):
                count("Done" if state is State.CONFIRMED else "Refused")
                return True

    def _outcome(self, record: Mapping[str, Any], seconds: int) -> Effect | Waiting | Dead:
        try:
            envelope = self.read(record["body"])
        except NotOurs as problem:
            return Dead(str(problem))
        logger.set_correlation_id(envelope.correlation_id)
        sent_at = int(record["attributes"]["SentTimestamp"]) / 1000
        last = self.ports.clock.time() - sent_at > self.give_up_after
        try:
            self.ready()
        except NotExecuted as closed:
            if last:
                return attempt(self.ports, envelope, _raising(closed), lease=seconds, last=True)
            return Waiting(str(closed), _delay(self.ports, 0, closed.retry_after))
        except StorageError:
            return Waiting("storage", _delay(self.ports, _received(record), None))
        return attempt(self.ports, envelope, self.job, lease=seconds, received=_received(record), last=last)

    def _hand_back(self, record: Mapping[str, Any], delay: int) -> None:
        try:
            self.ports.queue.hand_back(record["receiptHandle"], delay=delay)
        except StorageError as error:
            # It comes back when its visibility timeout ends: late, not lost.
            log_failure("message not handed back", error)

    def _bury(self, record: Mapping[str, Any], reason: str) -> bool:
        try:
            self.ports.dead_letters.send(record["body"], reason=reason)
        except StorageError as error:
            log_failure("dead letter not sent", error, reason=reason)
            return False
        logger.error("dead letter", reason=reason)
        count("Lost")
        return True
