"""Trying effects: claim them, do them, record what came of it; many at once cost no longer than one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from crm_relay.delivery.envelope import Envelope
from crm_relay.delivery.ledger import Busy, Claim, Effect, Fenced, Ledger, OtherPayload, State
from crm_relay.delivery.ports import Ports, StorageError
from crm_relay.observability import log_failure, log_fault, logger, needs_attention
from crm_relay.outcomes import NotConfigured, NotExecuted, Outcome, OutcomeUnknown, Rejected

MOST_TRIES = 5
"""Claims whose owner died or failed in our own code, in a row, before a message goes to the dead letters."""

_FIRST_DELAY = 5
_LONGEST_DELAY = 900
_LONGEST_ASKED = 600

type Job = Callable[[Envelope, Claim], Mapping[str, Any]]
"""Does one effect and returns its result; raises an Outcome where that did not work."""


@dataclass(slots=True)
class Task:
    """One effect of a batch, claimed. Its job says what came of it: `done`, or `fail` with an Outcome."""

    envelope: Envelope
    claim: Claim
    result: Mapping[str, Any] | None = None
    failure: Exception | None = None

    @property
    def ended(self) -> bool:
        """Whether something was said of it."""
        return self.result is not None or self.failure is not None

    def done(self, result: Mapping[str, Any]) -> None:
        """Say that it is done, and what is to be kept of it."""
        self.result = result

    def fail(self, failure: Exception) -> None:
        """Say that it did not work."""
        self.failure = failure


type BatchJob = Callable[[Sequence[Task]], None]
"""Does many effects together and ends each task. What it raises is the failure of those that it has not ended."""

type Farewell = Callable[[Sequence[Task]], None]
"""Tells whoever waits for effects that no worker goes on with; once more, where the giving up is not recorded."""


def each(job: Job) -> BatchJob:
    """Return the job of one effect as a job of many, one after the other."""

    def batch_job(tasks: Sequence[Task]) -> None:
        for task in tasks:
            try:
                task.done(job(task.envelope, task.claim))
            except Exception as failure:  # noqa: BLE001 (it is this effect's alone)
                task.fail(failure)

    return batch_job


@dataclass(frozen=True, slots=True)
class Waiting:
    """The effect is to be tried again in `delay` seconds."""

    reason: str
    delay: int


@dataclass(frozen=True, slots=True)
class Dead:
    """No worker can go on with this: the message belongs to the dead letters."""

    reason: str


type Ending = Effect | Waiting | Dead
"""The settled effect (by us or by an earlier try), or what is to become of the message."""


@dataclass(frozen=True, slots=True)
class Try:
    """One effect to be tried once.

    `received` is how often its message has come: delays grow with it while the ledger cannot count. `last`
    says that it has waited long enough, and what does not work now is given up; `closed` that the CRM is not
    even to be asked, and why.
    """

    envelope: Envelope
    received: int = 0
    last: bool = False
    closed: NotExecuted | None = None


def attempt(
    ports: Ports, tries: Sequence[Try], job: BatchJob, *, lease: int, farewell: Farewell = lambda _: None
) -> list[Ending]:
    """Try effects once, together, and return what came of each, in their order.

    Args:
        ports: the world.
        tries: what to try.
        job: how to do it.
        lease: seconds for which they may be claimed.
        farewell: is told of those that are given up, before they are.
    """
    ledger = Ledger(ports.store, ports.clock)
    claims = ports.parallel(
        _caught, [partial(ledger.claim, tried.envelope.name, tried.envelope.sha256, lease=lease) for tried in tries]
    )
    endings: dict[int, Ending] = {}
    tasks: dict[int, Task] = {}
    for place, (tried, claim) in enumerate(zip(tries, claims, strict=True)):
        if isinstance(claim, Claim):
            tasks[place] = _task(tried, claim)
        else:
            endings[place] = _unclaimed(ports, tried, claim)
    _do([task for task in tasks.values() if not task.ended], job)
    _say(farewell, [task for place, task in tasks.items() if _is_given_up(task, last=tries[place].last)])
    writes = [_record(ports, task, last=tries[place].last) for place, task in tasks.items()]
    for place, written in zip(tasks, ports.parallel(_caught, writes), strict=True):
        endings[place] = _recorded(ports, tries[place], written, lease=lease)
    return [endings[place] for place in range(len(tries))]


class _TooManyTries(Exception):
    pass


def _caught[T](call: Callable[[], T]) -> T | Exception:
    try:
        return call()
    except Exception as error:  # noqa: BLE001 (one effect must not cost the others)
        return error


def _task(tried: Try, claim: Claim) -> Task:
    too_many = _TooManyTries() if claim.effect.tries > MOST_TRIES else None
    return Task(tried.envelope, claim, failure=too_many or tried.closed)


def _unclaimed(ports: Ports, tried: Try, found: Effect | Exception) -> Ending:
    match found:
        case Effect():
            return found
        case Busy(until=until):
            return Waiting("busy", max(1, until - int(ports.clock.time())))
        case OtherPayload():
            return Dead("other_payload")
        case StorageError():
            log_failure("ledger not read", found, key=tried.envelope.key)
            return Waiting("storage", delay(ports, tried.received))
        case _:
            return unhandled(ports, found, tried.received)


def unhandled(ports: Ports, error: Exception, received: int) -> Waiting:
    """Log and count a fault of ours; the message comes again, for which somebody may have mended it."""
    log_fault(error)
    return Waiting("unhandled", delay(ports, received))


def _do(tasks: Sequence[Task], job: BatchJob) -> None:
    failure: Exception = AssertionError("the job left this task alone")
    try:
        if tasks:
            job(tasks)
    except Exception as error:  # noqa: BLE001 (a fault of ours must not cost the messages)
        failure = error
    for task in tasks:
        if not task.ended:
            task.fail(failure)


def _is_given_up(task: Task, *, last: bool) -> bool:
    match task.failure:
        case None | Rejected() | Fenced():
            return False
        case _TooManyTries():
            return True
        case _:
            return last


def _say(farewell: Farewell, tasks: Sequence[Task]) -> None:
    try:
        if tasks:
            farewell(tasks)
    except Exception as error:  # noqa: BLE001 (they are given up all the same: the dead letters' alarm tells)
        log_fault(error)


def _record(ports: Ports, task: Task, *, last: bool) -> Callable[[], Ending | Exception]:
    """Return what writes a task's end into the ledger. It is called beside others: what is to be said is said here."""
    claim = task.claim
    match task.failure:
        case None:
            return partial(_confirm, claim, task.result or {})
        case Rejected(reason=reason):
            return partial(_reject, claim, reason)
        case Fenced() as fenced:
            return lambda: fenced
        case _TooManyTries():
            return partial(_give_up, claim, "too_many_tries", _happened(claim), word="too_many_tries")
        case failure:
            meaning = _meaning(task, failure)
            if last:
                return partial(_give_up, claim, meaning.reason, meaning.happened)
            return partial(_wait, ports, claim, meaning)


@dataclass(frozen=True, slots=True)
class _Meaning:
    """What a failure means for the next try; `happened` and `orderly` as in Claim.wait."""

    reason: str
    happened: bool | None = False
    retry_after: float | None = None
    orderly: bool = True


def _meaning(task: Task, failure: Exception) -> _Meaning:
    key = task.envelope.key
    match failure:
        case NotExecuted(retry_after=retry_after):
            return _Meaning(str(failure), retry_after=retry_after)
        case OutcomeUnknown():
            return _Meaning(str(failure), happened=None)
        case Outcome():  # Unauthorized, Blocked: the account is paused
            return _Meaning(str(failure))
        case NotConfigured():
            needs_attention("not configured", key=key)
            return _Meaning("not_configured", happened=_happened(task.claim))
        case StorageError():
            # If it was the claim that could not be written, giving it back may find that it was: Fenced.
            log_failure("storage failed", failure, key=key)
            return _Meaning("storage", happened=_happened(task.claim))
        case _:  # a fault of ours must not cost the message
            log_fault(failure, key=key)
            return _Meaning(type(failure).__name__, happened=_happened(task.claim), orderly=False)


def _happened(claim: Claim) -> bool | None:
    return None if claim.effect.state is State.SENT else False


def _confirm(claim: Claim, result: Mapping[str, Any]) -> Ending:
    claim.confirm(result)
    return claim.effect


def _reject(claim: Claim, reason: str) -> Ending:
    claim.reject(reason)
    return claim.effect


def _give_up(claim: Claim, reason: str, happened: bool | None, *, word: str | None = None) -> Ending:
    claim.give_up(reason, happened=happened)
    return Dead(word or ("gave_up" if claim.effect.state is State.GIVEN_UP else "needs_reconcile"))


def _wait(ports: Ports, claim: Claim, meaning: _Meaning) -> Ending:
    claim.wait(meaning.reason, happened=meaning.happened, orderly=meaning.orderly)
    return Waiting(meaning.reason, delay(ports, claim.effect.waits, meaning.retry_after))


def _recorded(ports: Ports, tried: Try, written: Ending | Exception, *, lease: int) -> Ending:
    match written:
        case Fenced():
            logger.warning("lease lost", key=tried.envelope.key)
            return Waiting("fenced", delay(ports, 0))
        case Exception():
            # Nobody knows whether the write took place: the lease must run out.
            log_failure("ledger not written", written, key=tried.envelope.key)
            return Waiting("storage", lease)
        case _:
            return written


def delay(ports: Ports, waits: int, retry_after: float | None = None) -> int:
    """Return seconds to wait: full jitter over a growing span, behind the CRM's own Retry-After.

    It grows even where the CRM names a short time again and again: the queue counts how often a message comes.
    """
    span = min(_LONGEST_DELAY, _FIRST_DELAY * 2 ** min(max(waits - 1, 0), 10))
    # Clamped below the longest delay, so that there is room for jitter behind it.
    asked = min(max(retry_after or 0.0, 0.0), _LONGEST_ASKED)
    return 1 + int(asked + ports.random() * min(span, _LONGEST_DELAY - 1 - asked))
