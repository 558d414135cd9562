"""Many effects tried together: each has its own end, whatever becomes of the others."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from crm_relay.delivery.attempt import MOST_TRIES, BatchJob, Dead, Ending, Task, Try, Waiting, attempt, each
from crm_relay.delivery.envelope import Envelope
from crm_relay.delivery.ledger import Effect, Fenced, Ledger, State
from crm_relay.delivery.ports import Ports, StorageError
from crm_relay.delivery.worker import Worker
from crm_relay.outcomes import NotExecuted, Outcome, OutcomeUnknown, Rejected, Unauthorized
from tests.gateway import Context
from tests.relay import START, Relay

LEASE = 90


def call(number: int, body: str = "a") -> Envelope:
    return Envelope("amocrm.note", f"e{number}", {"body": body}, int(START), f"r-{number}")


def do_all(tasks: Sequence[Task]) -> None:
    for task in tasks:
        task.done({"id": task.envelope.key})


def failing(failure: Exception) -> BatchJob:
    """Return a job that fails all tasks in this way."""

    def job(tasks: Sequence[Task]) -> None:
        for task in tasks:
            task.fail(failure)

    return job


@dataclass
class Bench:
    """A job of many effects that does what a test wants, and the world around it."""

    relay: Relay
    job: BatchJob = do_all
    batches: list[list[str]] = field(default_factory=list)

    @property
    def ports(self) -> Ports:
        return self.relay._runtimes["notes"].ports

    def do(self, tasks: Sequence[Task]) -> None:
        self.batches.append([task.envelope.key for task in tasks])
        self.job(tasks)

    def attempt(self, *tries: Try) -> list[Ending]:
        return attempt(self.ports, tries or [Try(call(number)) for number in range(5)], self.do, lease=LEASE)

    def effect(self, number: int) -> Effect:
        effect = Ledger(self.relay.store, self.relay.clock).find(call(number).name)
        assert effect is not None
        return effect

    def run(self, *bodies: str, seconds: float = 120, together: int = 250) -> list[int]:
        """Work off messages as one batch; return the places of those that stay."""
        queue = self.relay.queues["notes"]
        for body in bodies:
            queue.send(body)
        batch = queue.receive(limit=250, visibility=900)
        worker = Worker(self.ports, self.do, needs_seconds=60, give_up_after=86_400, together=together)
        context = Context(self.relay.clock.time, self.relay.clock.time() + seconds, "worker")
        answer = worker.run({"Records": [message.record() for message in batch]}, context)
        kept = {failure["itemIdentifier"] for failure in answer["batchItemFailures"]}
        return [place for place, message in enumerate(batch) if message.id in kept]


@pytest.fixture
def bench(relay: Relay) -> Bench:
    return Bench(relay)


def ending(special: int, end: Callable[[Task], Any]) -> BatchJob:
    """Return a job that ends one task in its own way and is done with the others."""

    def job(tasks: Sequence[Task]) -> None:
        for task in tasks:
            if task.envelope.key == f"e{special}":
                end(task)
            else:
                task.done({"id": task.envelope.key})

    return job


def is_done(ending: Ending) -> bool:
    return isinstance(ending, Effect) and ending.state is State.CONFIRMED


def test_all_are_done_together_and_in_their_order(bench: Bench) -> None:
    """One call of the job; the endings are in the order of the tries; a second attempt does nothing more."""
    endings = bench.attempt()
    assert [e.result for e in endings if isinstance(e, Effect)] == [{"id": f"e{number}"} for number in range(5)]
    assert bench.attempt() == endings
    assert bench.batches == [["e0", "e1", "e2", "e3", "e4"]]


def test_nothing_is_tried_where_there_is_nothing(bench: Bench) -> None:
    """No call of the job, none to the table."""
    assert attempt(bench.ports, [], bench.do, lease=LEASE) == []
    assert (bench.batches, bench.relay.calls) == ([], [])


def test_one_that_is_busy_waits_alone(bench: Bench) -> None:
    """Somebody else is at it: until his lease ends; the others are done."""
    Ledger(bench.relay.store, bench.relay.clock).claim(call(2).name, call(2).sha256, lease=40)
    endings = bench.attempt()
    assert endings[2] == Waiting("busy", 40)
    assert [is_done(e) for e in endings] == [True, True, False, True, True]
    assert bench.batches == [["e0", "e1", "e3", "e4"]]


def test_of_two_copies_in_one_batch_one_is_done(bench: Bench) -> None:
    """The second is told to wait, and finds the first settled afterwards."""
    tries = [Try(call(1)), Try(call(1))]
    endings = bench.attempt(*tries)
    assert is_done(endings[0])
    assert endings[1] == Waiting("busy", LEASE)
    assert all(map(is_done, bench.attempt(*tries)))
    assert bench.batches == [["e1"]]


def test_one_whose_key_is_known_with_another_payload_is_dead_alone(bench: Bench) -> None:
    """An operator decides; the others are done."""
    bench.attempt(Try(call(2, "b")))
    endings = bench.attempt()
    assert endings[2] == Dead("other_payload")
    assert [is_done(e) for e in endings] == [True, True, False, True, True]


def test_one_whose_item_nobody_can_read_waits_alone(bench: Bench) -> None:
    """It comes again, for which somebody may have mended it."""
    bench.relay.store.put(f"effect#{call(2).name}", {"state": "LIMBO"}, replaces=None)
    endings = bench.attempt()
    assert isinstance(endings[2], Waiting)
    assert endings[2].reason == "unhandled"
    assert sum(map(is_done, endings)) == 4
    assert bench.relay.logs[-1]["error_type"] == "ValueError"


def test_one_that_killed_its_owners_before_is_not_given_to_the_job(bench: Bench) -> None:
    """Its sixth claim goes to the dead letters, and the others are done without it."""
    ledger = Ledger(bench.relay.store, bench.relay.clock)
    for _ in range(MOST_TRIES):
        ledger.claim(call(2).name, call(2).sha256, lease=1)
        bench.relay.clock.sleep(1)
    endings = bench.attempt()
    assert endings[2] == Dead("too_many_tries")
    assert sum(map(is_done, endings)) == 4
    assert bench.batches == [["e0", "e1", "e3", "e4"]]


@pytest.mark.parametrize(
    ("failure", "state", "reason"),
    [
        (NotExecuted("rate_limited", 7), State.PLANNED, "rate_limited"),
        (OutcomeUnknown("ReadTimeout"), State.SENT, "ReadTimeout"),
        (Unauthorized("http_401"), State.PLANNED, "http_401"),
        (StorageError("throttled"), State.PLANNED, "storage"),
        (KeyError("x"), State.PLANNED, "KeyError"),
    ],
    ids=repr,
)
def test_one_that_fails_waits_alone(bench: Bench, failure: Exception, state: State, reason: str) -> None:
    """What its failure says decides about it, and about no other."""
    bench.job = ending(2, lambda task: task.fail(failure))
    endings = bench.attempt()
    assert isinstance(endings[2], Waiting)
    assert endings[2].reason == reason
    assert bench.effect(2).state is state
    assert sum(map(is_done, endings)) == 4


def test_one_that_is_refused_is_settled_alone(bench: Bench) -> None:
    """It is not tried again."""
    bench.job = ending(2, lambda task: task.fail(Rejected("validation_failed")))
    endings = bench.attempt()
    assert isinstance(endings[2], Effect)
    assert (endings[2].state, endings[2].result) == (State.REJECTED, {"reason": "validation_failed"})
    assert sum(map(is_done, endings)) == 4


def test_one_whose_lease_was_taken_over_reports_nothing(bench: Bench) -> None:
    """What its job says of it is not recorded, whether it noticed or not."""

    def steal(task: Task) -> None:
        bench.relay.clock.sleep(LEASE)
        Ledger(bench.relay.store, bench.relay.clock).claim(task.envelope.name, task.envelope.sha256, lease=50)
        task.done({"id": "stale"})

    bench.job = ending(2, steal)
    endings = bench.attempt()
    assert isinstance(endings[2], Waiting)
    assert endings[2].reason == "fenced"
    assert bench.effect(2).result is None
    assert sum(map(is_done, endings)) == 4


def test_a_job_may_find_out_itself_that_it_was_fenced(bench: Bench) -> None:
    """Nothing is written then: the item belongs to somebody else."""
    bench.job = ending(2, lambda task: task.fail(Fenced()))
    endings = bench.attempt()
    assert isinstance(endings[2], Waiting)
    assert endings[2].reason == "fenced"
    assert bench.effect(2).owner is not None


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("place", range(1, 11))
def test_storage_that_fails_for_one_costs_no_other(bench: Bench, place: int, after: bool) -> None:
    """Any one of the writes of five claims and five results fails, before or after its effect."""
    tries = [Try(call(number)) for number in range(5)]
    writes = 0

    def fail_at_last(name: str) -> None:
        nonlocal writes
        writes += name == "store.put"
        if writes == place and name == "store.put":
            bench.relay.fail("store.put", times=1, after=after)

    bench.relay.before_call = fail_at_last
    endings = bench.attempt(*tries)
    bench.relay.before_call = lambda _: None
    (waiting,) = [e for e in endings if not is_done(e)]
    assert isinstance(waiting, Waiting)
    assert waiting.reason == "storage"
    bench.relay.clock.sleep(LEASE)
    assert all(map(is_done, bench.attempt(*tries)))
    times = [key for batch in bench.batches for key in batch]
    assert len(times) == (5 if place <= 5 or after else 6)


def test_a_result_that_was_not_written_waits_for_its_lease_to_end(bench: Bench) -> None:
    """Nobody knows whether it was: before that nobody could claim it."""

    def job(tasks: Sequence[Task]) -> None:
        do_all(tasks)
        bench.relay.fail("store.put", times=1)

    bench.job = job
    assert bench.attempt()[0] == Waiting("storage", LEASE)


def test_what_a_job_raises_midway_is_the_failure_of_those_that_it_had_not_ended(bench: Bench) -> None:
    """Those that it had ended stay ended."""

    def job(tasks: Sequence[Task]) -> None:
        tasks[0].done({"id": "e0"})
        tasks[1].fail(Rejected("invalid"))
        raise OutcomeUnknown("ReadTimeout")

    bench.job = job
    first, second, *others = bench.attempt()
    assert is_done(first)
    assert isinstance(second, Effect)
    assert second.state is State.REJECTED
    assert {e.reason for e in others if isinstance(e, Waiting)} == {"ReadTimeout"}
    assert {bench.effect(number).state for number in (2, 3, 4)} == {State.SENT}


def test_a_task_that_its_job_left_alone_is_a_fault_of_ours(bench: Bench) -> None:
    """It is neither done nor lost: counted, logged, and given up after five times."""
    bench.job = lambda tasks: do_all(tasks[:-1])
    for _ in range(MOST_TRIES):
        last = bench.attempt()[-1]
        assert isinstance(last, Waiting)
        assert last.reason == "AssertionError"
        bench.job = lambda _: None
    assert bench.attempt()[-1] == Dead("too_many_tries")
    assert sum(line["message"] == "unhandled" for line in bench.relay.logs) == MOST_TRIES


def test_of_the_last_tries_only_the_failing_are_given_up(bench: Bench) -> None:
    """Each by its own age."""
    bench.job = failing(NotExecuted("rate_limited"))
    tries = [Try(call(number), last=number % 2 == 0) for number in range(4)]
    endings = bench.attempt(*tries)
    assert [isinstance(e, Dead) for e in endings] == [True, False, True, False]


def test_what_is_closed_is_not_given_to_the_job(bench: Bench) -> None:
    """Its claim is taken only to be given up."""
    closed = NotExecuted("account_paused")
    endings = bench.attempt(Try(call(0), last=True, closed=closed), Try(call(1)))
    assert endings[0] == Dead("gave_up")
    assert is_done(endings[1])
    assert bench.batches == [["e1"]]


def test_whoever_waits_for_what_is_given_up_is_told(bench: Bench) -> None:
    """Before it is recorded, whatever the reason; of what goes on, is done or was refused nothing is said."""
    ledger = Ledger(bench.relay.store, bench.relay.clock)
    for _ in range(MOST_TRIES):
        ledger.claim(call(5).name, call(5).sha256, lease=1)
        bench.relay.clock.sleep(1)
    ends = {"e0": None, "e1": Rejected("no"), "e2": Fenced(), "e3": NotExecuted("rate_limited"), "e4": KeyError("x")}

    def job(tasks: Sequence[Task]) -> None:
        for task in tasks:
            failure = ends[task.envelope.key]
            task.done({}) if failure is None else task.fail(failure)

    said: list[tuple[str, bool]] = []

    def farewell(tasks: Sequence[Task]) -> None:
        said.extend((task.envelope.key, task.claim.effect.owner is not None) for task in tasks)
        raise ValueError

    bench.job = job
    closed = NotExecuted("account_paused")
    tries = [Try(call(number), last=True) for number in range(6)] + [Try(call(6), last=True, closed=closed)]
    endings = attempt(bench.ports, tries, bench.do, lease=LEASE, farewell=farewell)
    assert said == [(key, True) for key in ("e3", "e4", "e5", "e6")]
    assert [isinstance(end, Dead) for end in endings] == [False, False, False, True, True, True, True]
    said.clear()
    attempt(bench.ports, [Try(call(3))], bench.do, lease=LEASE, farewell=farewell)
    assert not said


def test_the_job_of_one_effect_can_be_done_for_many(bench: Bench) -> None:
    """One after the other; what one raises is its own."""

    def job(envelope: Envelope, _: object) -> dict[str, str]:
        if envelope.key == "e2":
            raise OutcomeUnknown("ReadTimeout")
        return {"id": envelope.key}

    bench.job = each(job)
    assert [is_done(e) for e in bench.attempt()] == [True, True, False, True, True]


def test_claims_and_results_go_to_the_table_together(bench: Bench) -> None:
    """A batch costs two rounds of calls, not two a message."""
    rounds: list[int] = []

    def parallel(call: Callable[[Any], Any], arguments: Sequence[Any]) -> list[Any]:
        rounds.append(len(arguments))
        return [call(argument) for argument in arguments]

    ports = replace(bench.ports, parallel=parallel)
    attempt(ports, [Try(call(number)) for number in range(5)], bench.do, lease=LEASE)
    assert rounds == [5, 5]


# The worker's loop around it


def test_a_batch_is_worked_off_in_parts(bench: Bench) -> None:
    """As many together as the worker takes; the ids that stay are those of all parts."""
    bench.job = ending(3, lambda task: task.fail(NotExecuted("rate_limited")))
    assert bench.run(*(call(number).encode() for number in range(5)), together=2) == [3]
    assert bench.batches == [["e0", "e1"], ["e2", "e3"], ["e4"]]


def test_out_of_time_all_are_handed_back_untouched(bench: Bench) -> None:
    """D08: with a second's delay, so that the next worker has them soon."""
    assert bench.run(*(call(number).encode() for number in range(3)), seconds=59) == [0, 1, 2]
    assert (bench.batches, bench.relay.items("effect#")) == ([], {})
    queue = bench.relay.queues["notes"]
    assert {message.visible_at - bench.relay.clock.now for message in queue.messages.values()} == {1}


def test_time_is_looked_at_before_each_part(bench: Bench) -> None:
    """D08: the part that could not be ended is not begun."""

    def job(tasks: Sequence[Task]) -> None:
        bench.relay.clock.sleep(40)
        do_all(tasks)

    bench.job = job
    assert bench.run(*(call(number).encode() for number in range(6)), together=2) == [4, 5]
    assert bench.batches == [["e0", "e1"], ["e2", "e3"]]


def test_foreign_messages_among_others_are_dead_letters(bench: Bench) -> None:
    """D02: wherever they stand in the batch, each ending reaches its own message."""
    bench.job = ending(1, lambda task: task.fail(NotExecuted("rate_limited")))
    assert bench.run("odd", call(0).encode(), "{}", call(1).encode(), call(2).encode(), "") == [3]
    letters = bench.relay.dead_letters["notes"].messages.values()
    assert [(letter.body, letter.reason) for letter in letters] == [(body, "not_ours") for body in ("odd", "{}", "")]


def test_a_log_line_names_the_message_that_it_is_about(bench: Bench) -> None:
    """Of a batch as of one: its correlation id, and never that of another."""
    bench.job = failing(OutcomeUnknown("ReadTimeout"))
    bench.run(*(call(number).encode() for number in range(3)))
    waiting = [line for line in bench.relay.logs if line["message"] == "waiting"]
    assert [line["correlation_id"] for line in waiting] == ["r-0", "r-1", "r-2"]


def test_what_concerns_a_whole_batch_carries_no_ones_id(bench: Bench) -> None:
    """What is logged while many are done together is of none of them."""

    def job(tasks: Sequence[Task]) -> None:
        raise Outcome("http_402")

    bench.job = job
    bench.run(call(0).encode(), call(1).encode())
    bench.relay.fail("store")
    bench.run(call(2).encode(), call(3).encode())
    lines = [line for line in bench.relay.logs if line["message"] == "ledger not read"]
    assert [line["key"] for line in lines] == ["e2", "e3"]
    assert not any(line.get("correlation_id") for line in lines)
