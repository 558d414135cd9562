"""The worker's loop: what becomes of an effect and of its message, whatever happens on the way."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crm_relay.delivery.attempt import MOST_TRIES, Dead, Ending, Try, Waiting, attempt, each
from crm_relay.delivery.envelope import Envelope
from crm_relay.delivery.ledger import Claim, Effect, Ledger, State
from crm_relay.delivery.ports import Ports, StorageError
from crm_relay.delivery.worker import Worker, lease
from crm_relay.outcomes import Blocked, NotConfigured, NotExecuted, OutcomeUnknown, Rejected, Unauthorized, Unreachable
from tests.gateway import Context
from tests.relay import START, Crash, Relay

DAY = 86_400


def call(key: str = "e1", body: str = "a") -> Envelope:
    return Envelope("cartelcrm.lead", key, {"body": body}, int(START), "r-1")


@dataclass
class Bench:
    """A worker with a job that does what a test wants, and the world around it."""

    relay: Relay
    job: Callable[[Envelope, Claim], Mapping[str, Any]] = lambda _, __: {"id": "7"}
    done: list[str] = field(default_factory=list)
    ready: Callable[[Envelope], None] = lambda _: None
    random: Callable[[], float] = lambda: 0.5

    @property
    def ports(self) -> Ports:
        return replace(self.relay._runtimes["leads"].ports, random=self.random)

    def do(self, envelope: Envelope, claim: Claim) -> Mapping[str, Any]:
        self.done.append(envelope.key)
        return self.job(envelope, claim)

    def attempt(self, envelope: Envelope | None = None, *, last: bool = False) -> Ending:
        (ending,) = attempt(self.ports, [Try(envelope or call(), last=last)], each(self.do), lease=90)
        return ending

    def context(self, seconds: float = 60) -> Context:
        return Context(self.relay.clock.time, self.relay.clock.time() + seconds, "worker")

    @property
    def worker(self) -> Worker:
        return Worker(self.ports, each(self.do), needs_seconds=20, give_up_after=DAY, ready=lambda _: self.ready(_))  # noqa: PLW0108

    def send(self, *keys: str) -> None:
        for key in keys:
            self.relay.queues["leads"].send(call(key).encode())

    def run(self, *, seconds: float = 60) -> list[str]:
        """Work off what is visible; return the keys (else the bodies) of the messages that stay, and keep these."""
        queue = self.relay.queues["leads"]
        batch = queue.receive(limit=10, visibility=360)
        answer = self.worker.run({"Records": [message.record() for message in batch]}, self.context(seconds))
        assert answer.keys() == {"batchItemFailures"}
        assert all(failure.keys() == {"itemIdentifier"} for failure in answer["batchItemFailures"])
        kept = [failure["itemIdentifier"] for failure in answer["batchItemFailures"]]
        stay = [Envelope.decode(message.body).key for message in batch if message.id in kept]
        for message in batch:
            if message.id not in kept:
                queue.delete(message.id)
        return stay

    def wait(self) -> None:
        """Let time pass until the next message can be seen."""
        messages = self.relay.queues["leads"].messages.values()
        self.relay.clock.now = min((message.visible_at for message in messages), default=self.relay.clock.now)

    @property
    def delay(self) -> float:
        """Seconds until the next message can be seen."""
        messages = self.relay.queues["leads"].messages.values()
        return min(message.visible_at for message in messages) - self.relay.clock.now

    def effect(self, key: str = "e1") -> Effect:
        effect = Ledger(self.relay.store, self.relay.clock).find(f"cartelcrm.lead#{key}")
        assert effect is not None
        return effect

    @property
    def dead(self) -> list[tuple[str, str | None]]:
        return [(message.body, message.reason) for message in self.relay.dead_letters["leads"].messages.values()]


@pytest.fixture
def bench(relay: Relay) -> Bench:
    return Bench(relay)


def raising(error: BaseException, *, sent: bool = False) -> Callable[[Envelope, Claim], Mapping[str, Any]]:
    """A job that fails, before or after it has said that its request leaves."""

    def job(_: Envelope, claim: Claim) -> Mapping[str, Any]:
        if sent:
            claim.sent({"generation": 1})
        raise error

    return job


# One effect


def test_a_job_that_succeeds_settles_its_effect(bench: Bench) -> None:
    """The result is kept, and a second attempt returns it without doing anything."""
    effect = bench.attempt()
    assert isinstance(effect, Effect)
    assert (effect.state, effect.result) == (State.CONFIRMED, {"id": "7"})
    assert bench.attempt() == effect
    assert bench.done == ["e1"]


def test_a_refusal_settles_an_effect_too(bench: Bench) -> None:
    """What the CRM refused for good is not tried again."""
    bench.job = raising(Rejected("blacklisted"), sent=True)
    effect = bench.attempt()
    assert isinstance(effect, Effect)
    assert (effect.state, effect.result) == (State.REJECTED, {"reason": "blacklisted"})
    assert bench.attempt() == effect
    assert bench.done == ["e1"]


@pytest.mark.parametrize(
    ("error", "sent", "state"),
    [
        (NotExecuted("rate_limited"), True, State.PLANNED),
        (Unreachable("http_503"), True, State.PLANNED),
        (Unauthorized("http_401"), True, State.PLANNED),
        (Blocked("redirected"), True, State.PLANNED),
        (OutcomeUnknown("ReadTimeout"), True, State.SENT),
        (NotConfigured(), False, State.PLANNED),
        (NotConfigured(), True, State.SENT),
        (StorageError("throttled"), False, State.PLANNED),
        (StorageError("throttled"), True, State.SENT),
        (KeyError("body"), False, State.PLANNED),
        (KeyError("body"), True, State.SENT),
    ],
    ids=repr,
)
def test_what_a_failure_says_decides_whether_there_is_doubt(
    bench: Bench, error: Exception, sent: bool, state: State
) -> None:
    """Only an answer that says so leaves no doubt; after anything else the next try looks first."""
    bench.job = raising(error, sent=sent)
    assert isinstance(bench.attempt(), Waiting)
    assert bench.effect().state is state
    assert bench.effect().owner is None


@pytest.mark.parametrize(
    "error", [NotExecuted("x"), OutcomeUnknown("x"), Unauthorized("x"), NotConfigured(), StorageError("x")], ids=repr
)
def test_waiting_for_others_uses_up_no_try(bench: Bench, error: Exception) -> None:
    """However often the CRM or a service of AWS says no, the message waits."""
    bench.job = raising(error)
    for _ in range(3 * MOST_TRIES):
        assert isinstance(bench.attempt(), Waiting)
    assert bench.effect().waits == 3 * MOST_TRIES


def test_a_job_that_fails_again_and_again_ends_with_the_dead_letters(bench: Bench) -> None:
    """A fault of our own code is tried five times; the message is then somebody's to look at."""
    bench.job = raising(KeyError("body"))
    for _ in range(MOST_TRIES):
        assert isinstance(bench.attempt(), Waiting)
    assert bench.attempt() == Dead("too_many_tries")
    assert bench.done == ["e1"] * MOST_TRIES


def test_an_owner_that_dies_again_and_again_ends_with_the_dead_letters(bench: Bench) -> None:
    """A message that kills its worker does so five times at most; in doubt it stays in doubt."""
    bench.job = raising(Crash(), sent=True)
    for _ in range(MOST_TRIES):
        with pytest.raises(Crash):
            bench.attempt()
        assert isinstance(bench.attempt(), Waiting)
        bench.relay.clock.sleep(90)
    assert bench.attempt() == Dead("too_many_tries")
    assert bench.effect().state is State.NEEDS_RECONCILE


def test_a_dead_letter_that_is_sent_again_has_all_its_tries(bench: Bench) -> None:
    """Once the fault is mended, one redrive is enough."""
    bench.job = raising(KeyError("body"))
    for _ in range(MOST_TRIES + 1):
        last = bench.attempt()
    assert last == Dead("too_many_tries")
    assert isinstance(bench.attempt(), Waiting)
    bench.job = lambda _, __: {"id": "7"}
    assert isinstance(bench.attempt(), Effect)


def test_what_waited_too_long_and_surely_did_nothing_is_given_up(bench: Bench) -> None:
    """It is on the operator's list, and sending its dead letter again starts it anew."""
    bench.job = raising(NotExecuted("rate_limited"), sent=True)
    assert bench.attempt(last=True) == Dead("gave_up")
    assert bench.effect().state is State.GIVEN_UP


@pytest.mark.parametrize("error", [OutcomeUnknown("ReadTimeout"), NotExecuted("rate_limited")], ids=repr)
def test_what_waited_too_long_in_doubt_needs_an_operator(bench: Bench, error: Exception) -> None:
    """What nobody can settle is called by its name, never guessed."""
    bench.job = raising(OutcomeUnknown("ReadTimeout"), sent=True)
    bench.attempt()
    bench.job = raising(error)
    assert bench.attempt(last=True) == Dead("needs_reconcile")
    assert bench.effect().state is State.NEEDS_RECONCILE


def test_the_last_try_may_succeed(bench: Bench) -> None:
    """A message that has waited for a day is tried once more before it is given up."""
    assert isinstance(bench.attempt(last=True), Effect)


def test_d05_two_workers_with_one_message_do_it_once(bench: Bench) -> None:
    """D05: the second one is told to wait while the first is at it, and finds it settled afterwards."""
    seen: list[object] = []

    def job(envelope: Envelope, _: Claim) -> Mapping[str, Any]:
        if not seen:
            seen.append(bench.attempt(envelope))
        return {"id": "7"}

    bench.job = job
    assert isinstance(bench.attempt(), Effect)
    assert seen == [Waiting("busy", 90)]
    assert isinstance(bench.attempt(), Effect)
    assert bench.done == ["e1"]


def test_d06_a_worker_that_lost_its_lease_reports_nothing(bench: Bench) -> None:
    """D06: what a stale owner found out is not recorded, and its message waits for the new owner's verdict."""

    def job(envelope: Envelope, claim: Claim) -> Mapping[str, Any]:
        claim.sent({"generation": 1})
        bench.job = lambda _, claim: {"id": "fresh", "in_doubt": claim.in_doubt}
        bench.relay.clock.sleep(90)
        assert isinstance(bench.attempt(envelope), Effect)
        return {"id": "stale"}

    bench.job = job
    waiting = bench.attempt()
    assert isinstance(waiting, Waiting)
    assert waiting.reason == "fenced"
    assert bench.effect().result == {"id": "fresh", "in_doubt": True}


def test_a_request_does_not_leave_when_sent_could_not_be_written(bench: Bench) -> None:
    """Without SENT in the table a crash would leave no trace of the request, so there is none."""
    left: list[int] = []

    def job(_: Envelope, claim: Claim) -> Mapping[str, Any]:
        bench.relay.fail("store.put", times=1)
        claim.sent({"generation": 1})
        left.append(1)
        return {}

    bench.job = job
    assert isinstance(bench.attempt(), Waiting)
    assert left == []
    assert bench.effect().state is State.PLANNED


@pytest.mark.parametrize("after", [False, True])
def test_a_result_that_could_not_be_written_is_looked_up(bench: Bench, after: bool) -> None:
    """Whether or not the lost write took place, the effect is settled or in doubt, never planned again."""

    def job(_: Envelope, claim: Claim) -> Mapping[str, Any]:
        claim.sent({"generation": 1})
        bench.relay.fail("store.put", times=1, after=after)
        return {"id": "7"}

    bench.job = job
    assert isinstance(bench.attempt(), Waiting)
    assert bench.effect().state is (State.CONFIRMED if after else State.SENT)


def test_a_lease_outlives_its_invocation_by_a_margin(bench: Bench) -> None:
    """A function cannot outlive its time-out, and clocks differ by less than half a minute."""
    assert lease(bench.context(60)) == 90


# One message


def test_d01_one_poisoned_message_of_ten_stays_alone(bench: Bench) -> None:
    """D01: the others are done; only the poisoned one's id is returned."""
    bench.job = lambda envelope, _: {"id": envelope.payload["missing" if envelope.key == "e4" else "body"]}
    bench.send(*(f"e{number}" for number in range(10)))
    assert bench.run() == ["e4"]
    assert sum(bench.effect(f"e{number}").settled for number in range(10)) == 9


def test_d01_a_poisoned_ledger_item_stays_alone(bench: Bench) -> None:
    """D01: an item that nobody can read any more costs its own message's time, not the batch's."""
    bench.relay.store.put("effect#cartelcrm.lead#e1", {"state": "LIMBO"}, replaces=None)
    bench.send("e0", "e1", "e2")
    assert bench.run() == ["e1"]
    assert bench.done == ["e0", "e2"]
    assert bench.delay >= 1


@pytest.mark.parametrize("body", ["", "odd", "{}", '{"v":2}', call().encode().replace('"v":1', '"v":0')])
def test_d02_a_message_that_is_not_ours_is_a_dead_letter_at_once(bench: Bench, body: str) -> None:
    """D02: no crash loop; it is put aside with a reason, word for word."""
    bench.relay.queues["leads"].send(body)
    assert bench.run() == []
    assert bench.dead == [(body, "not_ours")]


def test_d03_when_all_fail_all_ids_are_returned(bench: Bench) -> None:
    """D03: a batch that fails as a whole is an answer, not an exception."""
    bench.job = raising(OutcomeUnknown("ReadTimeout"), sent=True)
    keys = [f"e{number}" for number in range(10)]
    bench.send(*keys)
    assert bench.run() == keys


@pytest.mark.parametrize("port", ["store", "store.get", "store.put"])
def test_d03_a_table_that_is_down_keeps_all_messages(bench: Bench, port: str) -> None:
    """D03: without the ledger nothing is tried, and nothing is lost."""
    bench.relay.fail(port)
    bench.send("e1", "e2")
    assert bench.run() == ["e1", "e2"]
    assert bench.done == []


def test_a_table_that_stays_down_does_not_use_up_the_queues_patience(bench: Bench) -> None:
    """Delays grow with the receive count: 500 receives, after which SQS itself buries a message, outlast two days."""
    bench.relay.fail("store")
    bench.send("e1")
    for _ in range(20):
        bench.wait()
        bench.run()
    assert bench.delay * (500 - 20) > 2 * DAY


def test_d08_a_message_is_not_started_without_time_to_end_it(bench: Bench) -> None:
    """D08: what cannot be finished is handed back at once, untouched."""

    def job(_: Envelope, __: Claim) -> Mapping[str, Any]:
        bench.relay.clock.sleep(15)
        return {}

    bench.job = job
    bench.send("e1", "e2", "e3")
    assert bench.run(seconds=40) == ["e3"]
    assert bench.done == ["e1", "e2"]
    assert "effect#cartelcrm.lead#e3" not in bench.relay.items("effect#")
    assert bench.delay == 1


def test_a_copy_of_a_settled_message_is_done(bench: Bench) -> None:
    """The queue delivers at least once; the ledger makes that once."""
    bench.send("e1", "e1")
    assert bench.run() == []
    assert bench.done == ["e1"]


def test_another_payload_under_a_known_key_is_a_dead_letter(bench: Bench) -> None:
    """It is neither done nor forgotten: an operator decides."""
    bench.send("e1")
    other = call("e1", "b").encode()
    bench.relay.queues["leads"].send(other)
    assert bench.run() == []
    assert bench.dead == [(other, "other_payload")]


def test_a_closed_account_leaves_messages_untouched(bench: Bench) -> None:
    """While there is no sense in trying, nothing is claimed, and the message waits as long as it is told."""
    bench.ready = lambda _: (_ for _ in ()).throw(NotExecuted("account_paused", retry_after=200))
    bench.send("e1")
    assert bench.run() == ["e1"]
    assert bench.relay.items("effect#") == {}
    assert bench.delay >= 200


def test_a_message_that_waited_for_a_day_is_given_up(bench: Bench) -> None:
    """Its age counts from when it was sent; the reason goes with it."""
    bench.job = raising(NotExecuted("rate_limited"))
    bench.send("e1")
    bench.relay.clock.sleep(DAY)
    assert bench.run() == ["e1"]
    bench.wait()
    assert bench.run() == []
    assert [reason for _, reason in bench.dead] == ["gave_up"]


def test_somebody_is_told_of_messages_that_wait_for_long(bench: Bench) -> None:
    """After a quarter of an hour, once for all of a batch: SQS' age leaves out what comes again and again."""
    bench.job = raising(NotExecuted("rate_limited"))
    bench.send("e1", "e2")
    assert len(bench.run()) == 2
    assert not [line for line in bench.relay.logs if line["message"] == "messages have been waiting for long"]
    bench.relay.clock.sleep(1000)
    assert len(bench.run()) == 2
    [line] = [line for line in bench.relay.logs if line["message"] == "messages have been waiting for long"]
    assert (line["messages"], line["oldest_seconds"]) == (2, 1000)


def test_a_dead_letter_that_cannot_be_sent_stays_in_the_queue(bench: Bench) -> None:
    """A message is deleted only when it is somewhere else."""
    bench.relay.fail("dead_letters")
    bench.send("e1")
    bench.relay.queues["leads"].send(call("e1", "b").encode())
    assert bench.run() == ["e1"]
    assert bench.dead == []


def test_a_message_that_cannot_be_handed_back_stays_in_the_queue(bench: Bench) -> None:
    """It comes back when its visibility ends: late, not lost."""
    bench.job = raising(NotExecuted("rate_limited"))
    bench.relay.fail("queue.hand_back")
    bench.send("e1")
    assert bench.run() == ["e1"]
    assert bench.delay == 360


# How long it waits


def waited(bench: Bench, retry_after: float | None, *, waits: int, chance: float) -> float:
    bench.random = lambda: chance
    bench.job = raising(NotExecuted("rate_limited", retry_after))
    bench.send("e1")
    for _ in range(waits):
        bench.wait()
        bench.run()
    return bench.delay


@pytest.mark.parametrize("retry_after", [None, 0, 1, 7, 60, 899, 900, 901, 10.0**9, -1.0])
@pytest.mark.parametrize("chance", [0.0, 0.5, 0.999999])
@pytest.mark.parametrize("waits", [1, 4, 20])
def test_a_delay_is_bounded_and_never_ends_before_the_crm_said(
    bench: Bench, retry_after: float | None, chance: float, waits: int
) -> None:
    """At least a second, so that no loop runs hot; at most 15 minutes, so that nothing is forgotten."""
    delay = waited(bench, retry_after, waits=waits, chance=chance)
    assert max(1, min(retry_after or 0, 600)) <= delay <= 900


@pytest.mark.parametrize("retry_after", [None, 0, 7])
def test_delays_are_jittered(retry_after: float | None) -> None:
    """Messages that were refused together do not come back together."""
    with Relay() as one, Relay() as other:
        soon = waited(Bench(one), retry_after, waits=1, chance=0.0)
        late = waited(Bench(other), retry_after, waits=1, chance=0.999)
    assert late - soon >= 4


@pytest.mark.parametrize("retry_after", [None, 1])
def test_delays_grow(bench: Bench, retry_after: float | None) -> None:
    """Each wait is longer than the one before, also where the CRM keeps saying: in a second."""
    bench.random = lambda: 0.5
    bench.job = raising(NotExecuted("rate_limited", retry_after))
    bench.send("e1")
    delays = []
    for _ in range(10):
        bench.run()
        delays.append(bench.delay)
        bench.wait()
    assert delays == sorted(delays)
    assert delays[-1] >= 400


@given(chance=st.floats(0, 1, exclude_max=True), retry_after=st.none() | st.floats(allow_nan=False))
def test_any_retry_after_gives_a_whole_number_of_seconds(chance: float, retry_after: float | None) -> None:
    """Whatever a CRM says, the queue gets a delay that it takes."""
    with Relay() as relay:
        bench = Bench(relay, random=lambda: chance, job=raising(NotExecuted("rate_limited", retry_after)))
        waiting = bench.attempt()
    assert isinstance(waiting, Waiting)
    assert isinstance(waiting.delay, int)
    assert 1 <= waiting.delay <= 900
