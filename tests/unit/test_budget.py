"""The request budget: however many workers, and whatever happens to them, the CRM's limit holds."""

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crm_relay.delivery.budget import Budget
from crm_relay.delivery.memory import MemoryStore
from crm_relay.delivery.ports import Clock as ClockPort
from crm_relay.delivery.ports import Ports, StorageError
from crm_relay.outcomes import NotExecuted
from tests.relay import START, Clock, Relay
from workbench.sandboxes.rates import busiest


@pytest.fixture
def ports(relay: Relay) -> Ports:
    return relay._runtimes["leads"].ports


@dataclass
class Sleeper:
    """A worker's own view of the time: its sleep ends when it is due, while the others go on."""

    now: float = START

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float, /) -> None:
        self.now += seconds


@dataclass
class Crew:
    """Workers with one table. `takes` are the moments at which requests left."""

    rate: float
    store: MemoryStore = field(default_factory=lambda: MemoryStore(Clock()))
    takes: list[float] = field(default_factory=list)

    def worker(self, ports: Ports, clock: ClockPort) -> Budget:
        return Budget(replace(ports, store=self.store, clock=clock), "cartelcrm", per_second=self.rate)

    def take(self, budget: Budget, clock: ClockPort, late: float = 0.0) -> None:
        try:
            budget.take()
        except NotExecuted:
            return
        self.takes.append(clock.time() + late)

    def assert_held(self) -> None:
        assert busiest(sorted(self.takes)) <= max(1, self.rate)


def test_requests_keep_their_distance(ports: Ports) -> None:
    """One worker at full speed stays under the limit, and close to it."""
    clock = Sleeper()
    crew = Crew(rate=10)
    budget = crew.worker(ports, clock)
    for _ in range(200):
        crew.take(budget, clock)
    crew.assert_held()
    assert 200 / (clock.time() - START) > 8.5


@pytest.mark.parametrize("rate", [3, 7, 9, 13])
def test_rounding_in_the_table_gives_nothing_away(ports: Ports, rate: int) -> None:
    """The table keeps milliseconds; slots that pass through it are not a little closer together."""
    clock = Sleeper()
    crew = Crew(rate=rate)
    for _ in range(10 * rate + 1):
        crew.take(crew.worker(ports, clock), clock)
    assert clock.time() - START >= 10 * 1.075 - 1e-6


def test_the_first_request_does_not_wait(ports: Ports) -> None:
    """A relay with nothing to do has its budget at hand."""
    clock = Sleeper()
    Crew(rate=2).worker(ports, clock).take()
    assert clock.time() == START


def test_a_busy_worker_pays_less_than_a_write_for_a_request(relay: Relay, ports: Ports) -> None:
    """Leases grow while they are used up, to a fifth of a second of slots."""
    clock = Sleeper()
    budget = Budget(replace(ports, clock=clock), "cartelcrm", per_second=50)
    for _ in range(100):
        budget.take()
    assert relay.calls.count("store.put") < 25


def test_a_lease_that_was_used_up_is_followed_by_one_of_twice_its_size(relay: Relay, ports: Ports) -> None:
    """One slot, then two, four, eight: a worker with one request to make takes no more than it needs."""
    clock = Sleeper()
    budget = Budget(replace(ports, clock=clock), "cartelcrm", per_second=100)
    writes = []
    for _ in range(16):
        budget.take()
        writes.append(relay.calls.count("store.put"))
    assert writes == [1] + [2] * 2 + [3] * 4 + [4] * 8 + [5]


def test_a_worker_that_let_slots_go_by_starts_small_again(ports: Ports) -> None:
    """After a pause it takes one slot, and leaves the next one to others."""
    crew, clock = Crew(rate=20), Sleeper()
    budget = crew.worker(ports, clock)
    for _ in range(4):
        budget.take()
    clock.sleep(3)
    resumed = clock.time()
    budget.take()
    assert clock.time() == resumed
    crew.worker(ports, clock).take()
    assert clock.time() - resumed == pytest.approx(0.054, abs=0.001)


def test_under_a_low_limit_a_lease_is_a_single_slot(ports: Ports) -> None:
    """Where a fifth of a second holds no second slot, nobody takes one on stock."""
    crew, clock = Crew(rate=2), Sleeper()
    budget = crew.worker(ports, clock)
    budget.take()
    budget.take()
    crew.worker(ports, clock).take()
    assert clock.time() - START == pytest.approx(2 * 0.5375, abs=0.001)


@pytest.mark.parametrize(("away", "taken"), [(5_000, True), (5_001, False)])
def test_a_worker_waits_for_five_seconds_and_no_longer(ports: Ports, away: int, *, taken: bool) -> None:
    """What others have reserved, known under the account's name, decides how far away the next slot is."""
    crew, clock = Crew(rate=10), Sleeper()
    crew.store.put("budget#cartelcrm", {"next_free_ms": int(START) * 1000 + away}, replaces=None)
    budget = crew.worker(ports, clock)
    if taken:
        budget.take()
        assert clock.time() == START + 5
        return
    with pytest.raises(NotExecuted, match=r"^budget_exhausted$") as refusal:
        budget.take()
    assert refusal.value.retry_after == pytest.approx(5.001)


def test_slots_that_were_not_used_in_time_are_not_used_late(ports: Ports) -> None:
    """Old slots cannot be saved up for a burst."""
    clock = Sleeper()
    crew = Crew(rate=10)
    budget = crew.worker(ports, clock)
    for _ in range(5):
        for _ in range(12):
            crew.take(budget, clock)
        clock.sleep(3)
    crew.assert_held()


def test_what_is_too_far_away_is_left_to_the_queue(relay: Relay, ports: Ports) -> None:
    """A function does not sleep for more than five seconds: the message waits, and is told how long."""
    clock = Sleeper()
    slow = Crew(rate=0.1).worker(ports, clock)
    slow.take()
    with pytest.raises(NotExecuted) as refusal:
        slow.take()
    assert refusal.value.retry_after == pytest.approx(10.75)
    assert clock.time() == START
    clock.sleep(10.75)
    slow.take()


def test_a_worker_that_dies_takes_no_more_than_time_with_it(ports: Ports) -> None:
    """Slots lost by a crash delay the next worker by a fifth of a second at most, and are given to nobody twice."""
    clock = Sleeper()
    crew = Crew(rate=10)
    for _ in range(20):
        budget = crew.worker(ports, clock)
        for _ in range(8):
            crew.take(budget, clock)
        before = clock.time()
        heir = crew.worker(ports, clock)
        crew.take(heir, clock)
        assert clock.time() - before <= 0.2 + 2 * 0.1075
    crew.assert_held()


@pytest.mark.parametrize("after", [False, True])
def test_a_table_that_does_not_answer_gives_no_slot(relay: Relay, ports: Ports, after: bool) -> None:
    """Without the shared count nobody may send; a write that was lost on the way back costs its slots."""
    budget = Budget(ports, "cartelcrm", per_second=10)
    relay.fail("store.put", times=1, after=after)
    with pytest.raises(StorageError):
        budget.take()
    budget.take()
    assert relay.clock.now - START == pytest.approx(0.108 if after else 0)


@pytest.mark.parametrize(("slow", "taken"), [(2, True), (3, False)])
def test_a_slot_that_a_slow_table_hands_out_too_late_is_not_used(
    relay: Relay, ports: Ports, slow: int, *, taken: bool
) -> None:
    """Used late it would meet the slots of others: who waited for the table takes another, a few times."""
    budget = Budget(ports, "cartelcrm", per_second=10)
    writes = 0

    def slowly(name: str) -> None:
        nonlocal writes
        writes += name == "store.put"
        if name == "store.put" and writes <= slow:
            relay.clock.sleep(3)

    relay.before_call = slowly
    if taken:
        budget.take()
        # A table that was slow is not waited for as if it stayed so.
        assert relay.clock.now - START == pytest.approx(3 + 3 + 0.5, abs=0.001)
        return
    with pytest.raises(NotExecuted, match=r"^budget_slow$"):
        budget.take()
    budget.take()


def test_where_the_table_is_slow_the_slot_lies_behind_its_answer(relay: Relay, ports: Ports) -> None:
    """One that is over before it is known to be ours would be lost, and the limit never reached."""
    budget = Budget(ports, "cartelcrm", per_second=2)

    def slowly(name: str) -> None:
        if name == "store.put":
            relay.clock.sleep(0.2)

    relay.before_call = slowly
    for _ in range(10):
        budget.take()
        relay.clock.sleep(5)
    assert relay.calls.count("store.put") == 11


def test_two_workers_that_reserve_at_once_get_different_slots(relay: Relay, ports: Ports) -> None:
    """The one that wrote second reads again."""
    crew = Crew(rate=10, store=relay.store)
    mine, yours = Sleeper(), Sleeper()

    def barge_in(name: str) -> None:
        if name == "store.put":
            relay.before_call = lambda _: None
            crew.take(Budget(replace(ports, clock=yours), "cartelcrm", per_second=10), yours)

    relay.before_call = barge_in
    crew.take(Budget(replace(ports, clock=mine), "cartelcrm", per_second=10), mine)
    assert [at - START for at in sorted(crew.takes)] == [0, pytest.approx(0.1075, abs=0.001)]


@given(
    rate=st.sampled_from([1.0, 2.0, 3.0, 7.0, 9.0, 10.0, 13.0, 50.0]),
    workers=st.integers(1, 20),
    breaks=st.lists(
        st.tuples(st.booleans(), st.sampled_from([0.0, 0.0, 0.004, 0.0749, 0.0999, 0.3, 2.0])), min_size=1, max_size=50
    ),
)
def test_d27_no_second_sees_more_requests_than_the_limit(
    rate: float, workers: int, breaks: list[tuple[bool, float]]
) -> None:
    """D27: any number of workers in any order, some idle for a while, some dying with slots in hand."""
    with Relay() as relay:
        ports = relay._runtimes["leads"].ports
        crew = Crew(rate=rate)
        clocks = [Sleeper() for _ in range(workers)]
        budgets = [crew.worker(ports, clock) for clock in clocks]
        for dies, idle in breaks * 4:
            # Whose time is the earliest has the next turn, so that all meet the table in the order of time.
            number = min(range(workers), key=lambda number: clocks[number].now)
            clocks[number].now += idle
            if dies:
                budgets[number] = crew.worker(ports, clocks[number])
            crew.take(budgets[number], clocks[number])
            clocks[number].now += 0.001
        crew.assert_held()
