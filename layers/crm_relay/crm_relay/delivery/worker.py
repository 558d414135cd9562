"""The worker's loop: take the messages of a batch, try their effects, and say what becomes of each message."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from crm_relay.delivery.attempt import (
    BatchJob,
    Dead,
    Ending,
    Farewell,
    Try,
    Waiting,
    attempt,
    delay,
    unhandled,
)
from crm_relay.delivery.envelope import Envelope, NotOurs
from crm_relay.delivery.ledger import Effect, State
from crm_relay.delivery.ports import Ports, StorageError
from crm_relay.observability import count, log_failure, logger, needs_attention
from crm_relay.outcomes import NotExecuted

_LEASE_MARGIN = 30
"""Seconds that a claim outlives its invocation, for clocks that differ."""
_HAND_BACK = 1
_OVERDUE = 900
"""Seconds that a message may wait before an operator is told."""

type Record = Mapping[str, Any]
"""One message of an SQS event."""


class LambdaContext(Protocol):
    """What we need of Lambda's context object."""

    def get_remaining_time_in_millis(self) -> int:
        """Return the milliseconds until this invocation is stopped."""


def lease(context: LambdaContext) -> int:
    """Return the seconds for which an invocation may claim effects: it cannot outlive its own time-out."""
    return context.get_remaining_time_in_millis() // 1000 + _LEASE_MARGIN


@dataclass(frozen=True, slots=True)
class Worker:
    """Works off the messages of one queue, up to `together` of them in one go of the job.

    `read` turns a message body into an envelope (NotOurs if it is none), `ready` raises NotExecuted while
    there is no sense in trying it. Nothing is started with less than `needs_seconds` left, nor tried again when
    its message has waited for `give_up_after` seconds; `farewell` is told then.
    """

    ports: Ports
    job: BatchJob
    needs_seconds: float
    give_up_after: int
    together: int = 1
    read: Callable[[str], Envelope] = Envelope.decode
    ready: Callable[[Envelope], None] = lambda _: None
    farewell: Farewell = lambda _: None

    def run(self, event: Mapping[str, Any], context: LambdaContext) -> dict[str, list[dict[str, str]]]:
        """Work off an SQS event; return the ids that stay in the queue, as ReportBatchItemFailures wants them."""
        records: Sequence[Record] = event["Records"]
        done = [
            done
            for start in range(0, len(records), self.together)
            for done in self._work(records[start : start + self.together], context)
        ]
        kept = [record for record, is_done in zip(records, done, strict=True) if not is_done]
        self._tell_of_overdue(kept)
        return {"batchItemFailures": [{"itemIdentifier": record["messageId"]} for record in kept]}

    def _tell_of_overdue(self, kept: Sequence[Record]) -> None:
        # SQS' own ApproximateAgeOfOldestMessage leaves out what was received three times.
        ages = [self._age(record) for record in kept]
        if overdue := [age for age in ages if age > _OVERDUE]:
            needs_attention(
                "messages have been waiting for long", messages=len(overdue), oldest_seconds=int(max(overdue))
            )

    def _age(self, record: Record) -> float:
        """Return the seconds since a message was sent."""
        return self.ports.clock.time() - int(record["attributes"]["SentTimestamp"]) / 1000

    def _work(self, records: Sequence[Record], context: LambdaContext) -> list[bool]:
        """Return which messages are done with."""
        if context.get_remaining_time_in_millis() < self.needs_seconds * 1000:
            for record in records:
                self._hand_back(record, _HAND_BACK)
            return [False] * len(records)
        tried = [self._tried(record) for record in records]
        tries = [each for each in tried if isinstance(each, Try)]
        if len(tries) != 1:
            logger.set_correlation_id(None)
        endings = iter(attempt(self.ports, tries, self.job, lease=lease(context), farewell=self.farewell))
        settled = []
        for record, each in zip(records, tried, strict=True):
            logger.set_correlation_id(each.envelope.correlation_id if isinstance(each, Try) else None)
            settled.append(self._settle(record, next(endings) if isinstance(each, Try) else each))
        return settled

    def _tried(self, record: Record) -> Try | Ending:
        received = int(record["attributes"]["ApproximateReceiveCount"])
        try:
            envelope = self.read(record["body"])
            logger.set_correlation_id(envelope.correlation_id)
            last = self._age(record) > self.give_up_after
            self.ready(envelope)
            return Try(envelope, received, last)
        except NotOurs as problem:
            return Dead(str(problem))
        except NotExecuted as closed:
            if last:
                return Try(envelope, received, last, closed)
            return Waiting(str(closed), delay(self.ports, 0, closed.retry_after))
        except StorageError:
            return Waiting("storage", delay(self.ports, received))
        except Exception as error:  # noqa: BLE001 (one message must not cost the others of its batch)
            return unhandled(self.ports, error, received)

    def _settle(self, record: Record, ending: Ending) -> bool:
        match ending:
            case Waiting(reason, seconds):
                logger.info("waiting", reason=reason, delay=seconds)
                count("Waiting")
                self._hand_back(record, seconds)
                return False
            case Dead(reason):
                return self._bury(record, reason)
            case Effect(state=state):
                count("Done" if state is State.CONFIRMED else "Refused")
                return True

    def _hand_back(self, record: Record, seconds: int) -> None:
        try:
            self.ports.queue.hand_back(record["receiptHandle"], delay=seconds)
        except StorageError as error:
            # It comes back when its visibility timeout ends: late, not lost.
            log_failure("message not handed back", error)

    def _bury(self, record: Record, reason: str) -> bool:
        try:
            self.ports.dead_letters.send(record["body"], reason=reason)
        except StorageError as error:
            log_failure("dead letter not sent", error, reason=reason)
            return False
        logger.error("dead letter", reason=reason)
        count("Lost")
        return True
