"""The door to a CRM account: its pause after a refused credential, and its circuit during an outage."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from aws_lambda_powertools.utilities.circuit_breaker import base as circuit

from crm_relay.delivery.account import PAUSE, Account
from crm_relay.delivery.ports import Item, StorageError
from crm_relay.outcomes import Blocked, NotExecuted, OutcomeUnknown, Rejected, Unauthorized, Unreachable
from tests.relay import Crash, Relay

FAILURES = 5
RECOVERY = 30
SEEN_AFTER = 5


class Bench:
    """Workers' doors to one account, and a CRM that answers as it is told."""

    def __init__(self, relay: Relay) -> None:
        self.relay = relay
        self.requests = 0
        self.answer: Exception | None = None

    def worker(self) -> Account:
        return Account(self.relay._runtimes["leads"].ports, "cartelcrm", requests_per_second=1000)

    def send(self) -> str:
        self.requests += 1
        if self.answer:
            raise self.answer
        return "answered"

    def ask(self, worker: Account) -> str:
        """What a request comes to: "answered", or the type and the word of what was in the way."""
        try:
            return worker.request(self.send)
        except Exception as outcome:  # noqa: BLE001 (told to the test)
            return f"{type(outcome).__name__}: {outcome}"

    def break_items(self, prefix: str) -> None:
        """Make the store fail for items whose key begins so."""
        store = self.relay.store

        def breaking(method: Callable[..., Any]) -> Callable[..., Any]:
            def broken(key: str, *args: Any, **kwargs: Any) -> Any:
                if key.startswith(prefix):
                    raise StorageError("down")
                return method(key, *args, **kwargs)

            return broken

        store.put = breaking(store.put)  # type: ignore[method-assign]
        store.get = breaking(store.get)  # type: ignore[method-assign]

    def sent(self, worker: Account) -> int:
        """How many requests reach the CRM when a worker wants to make one."""
        before = self.requests
        self.ask(worker)
        return self.requests - before


@pytest.fixture
def bench(relay: Relay) -> Bench:
    return Bench(relay)


def test_an_open_door_changes_nothing(bench: Bench) -> None:
    """The answer comes through, and so does a refusal."""
    worker = bench.worker()
    assert bench.ask(worker) == "answered"
    bench.answer = Rejected("blacklisted")
    assert bench.ask(worker) == "Rejected: blacklisted"


@pytest.mark.parametrize("refusal", [Unauthorized("http_401"), Blocked("redirected")], ids=repr)
def test_d15_a_refused_credential_pauses_the_account_for_all_workers(bench: Bench, refusal: Exception) -> None:
    """D15: every other request would fail the same way, so none is made, by nobody; an operator is called."""
    mine, yours = bench.worker(), bench.worker()
    bench.answer = refusal
    assert bench.ask(mine) == f"{type(refusal).__name__}: {refusal}"
    for worker in (mine, yours, bench.worker()):
        assert bench.ask(worker) == "NotExecuted: account_paused"
        with pytest.raises(NotExecuted) as closed:
            worker.check()
        assert closed.value.retry_after == pytest.approx(PAUSE, abs=1)
    assert bench.requests == 1
    assert bench.relay.items("pause#")["pause#cartelcrm"]["reason"] == str(refusal)


def test_d15_workers_that_have_looked_lately_learn_of_the_pause_in_seconds(bench: Bench) -> None:
    """D15: a look at the pause is remembered for five seconds, no longer."""
    mine, yours = bench.worker(), bench.worker()
    bench.ask(yours)
    bench.answer = Unauthorized("http_401")
    bench.ask(mine)
    bench.relay.clock.sleep(SEEN_AFTER)
    assert bench.ask(yours) == "NotExecuted: account_paused"


def test_d15_after_the_pause_a_request_tries_whether_it_was_mended(bench: Bench) -> None:
    """D15: still refused, it pauses again at the price of one request; accepted, all goes on."""
    worker = bench.worker()
    bench.answer = Unauthorized("http_401")
    bench.ask(worker)
    for _ in range(3):
        bench.relay.clock.sleep(PAUSE)
        assert [bench.sent(worker), bench.sent(worker), bench.sent(worker)] == [1, 0, 0]
    bench.answer = None
    bench.relay.clock.sleep(PAUSE)
    assert [bench.ask(worker) for _ in range(3)] == ["answered"] * 3


def test_a_pause_that_cannot_be_written_is_told_all_the_same(bench: Bench) -> None:
    """The refusal comes through, this worker keeps to it for now, and the others find out themselves."""
    worker = bench.worker()
    worker.check()
    bench.answer = Unauthorized("http_401")
    bench.break_items("pause#")
    assert bench.ask(worker) == "Unauthorized: http_401"
    assert bench.ask(worker) == "NotExecuted: account_paused"
    assert any(line["message"] == "account paused" for line in bench.relay.logs)


def test_d13_a_retry_after_binds_all_workers(bench: Bench) -> None:
    """D13: what the CRM says to one request holds for the account, for ten minutes at most."""
    mine, yours = bench.worker(), bench.worker()
    bench.answer = NotExecuted("rate_limited")
    assert bench.ask(mine) == bench.ask(mine) == "NotExecuted: rate_limited"
    bench.answer = NotExecuted("rate_limited", retry_after=10**9)
    bench.ask(mine)
    assert [bench.ask(worker) for worker in (mine, yours)] == ["NotExecuted: account_paused"] * 2
    bench.relay.clock.sleep(601)
    bench.answer = None
    assert [bench.ask(worker) for worker in (mine, yours)] == ["answered"] * 2
    assert bench.relay.logs == []


def test_a_short_pause_does_not_end_a_long_one(bench: Bench) -> None:
    """A request that was under way when another was refused may be told: come back in a second."""
    mine, yours = bench.worker(), bench.worker()

    def meanwhile() -> None:
        bench.answer = Unauthorized("http_401")
        bench.ask(yours)
        raise NotExecuted("rate_limited", retry_after=1)

    with pytest.raises(NotExecuted, match="rate_limited"):
        mine.request(meanwhile)
    bench.relay.clock.sleep(PAUSE - 1)
    assert [bench.ask(worker) for worker in (mine, yours)] == ["NotExecuted: account_paused"] * 2
    bench.relay.clock.sleep(2)
    bench.answer = None
    assert bench.ask(mine) == "answered"


def test_looking_at_the_pause_costs_a_read_every_five_seconds(bench: Bench) -> None:
    """A busy worker does not read the table for each message."""
    worker = bench.worker()
    for _ in range(50):
        worker.check()
    assert bench.relay.calls == ["store.get"]
    bench.relay.clock.sleep(SEEN_AFTER)
    worker.check()
    assert bench.relay.calls == ["store.get"] * 2


def test_a_pause_that_cannot_be_read_is_no_leave_to_go_on(bench: Bench) -> None:
    """While the table does not answer, no request is made."""
    bench.relay.fail("store.get")
    assert bench.ask(bench.worker()) == "StorageError: down"
    assert bench.requests == 0


def test_a_paused_account_takes_no_slots(bench: Bench) -> None:
    """Nothing is reserved for requests that are not made."""
    worker = bench.worker()
    bench.answer = Unauthorized("http_401")
    bench.ask(worker)
    taken = bench.relay.items("budget#")
    bench.ask(worker)
    assert bench.relay.items("budget#") == taken


def as_another_process() -> None:
    """Forget who this process is, as Powertools tells the owner of a probe."""
    circuit._PROBE_OWNER.__dict__.clear()


def trip(bench: Bench, worker: Account, error: Exception) -> None:
    bench.answer = error
    for _ in range(FAILURES):
        assert bench.sent(worker) == 1


@pytest.mark.parametrize("error", [Unreachable("ConnectError"), OutcomeUnknown("ReadTimeout")], ids=repr)
def test_d24_an_outage_opens_the_circuit_for_all_workers(bench: Bench, error: Exception) -> None:
    """D24: after five failures in a row nobody knocks for half a minute."""
    mine, yours = bench.worker(), bench.worker()
    trip(bench, mine, error)
    for worker in (mine, yours):
        with pytest.raises(NotExecuted, match="circuit_open") as closed:
            worker.request(bench.send)
        assert closed.value.retry_after == RECOVERY
    assert bench.requests == FAILURES


@pytest.mark.parametrize(
    "answer",
    [lambda: None, lambda: Rejected("blacklisted"), lambda: NotExecuted("rate_limited"), lambda: StorageError("x")],
    ids=["success", "rejected", "rate_limited", "storage"],
)
def test_only_an_outage_opens_the_circuit(bench: Bench, answer: Callable[[], Exception | None]) -> None:
    """A CRM that answers is there, whatever it says."""
    bench.answer = answer()
    worker = bench.worker()
    for _ in range(4 * FAILURES):
        assert bench.sent(worker) == 1


def test_d24_one_request_probes_and_its_success_opens_the_door(bench: Bench) -> None:
    """D24: half a minute later one request goes out; if it is answered, all do."""
    worker = bench.worker()
    trip(bench, worker, Unreachable("ConnectError"))
    bench.relay.clock.sleep(RECOVERY)
    bench.answer = None
    assert bench.ask(worker) == "answered"
    bench.relay.clock.sleep(SEEN_AFTER)
    assert bench.ask(bench.worker()) == "answered"


def test_d24_a_failed_probe_closes_the_door_again(bench: Bench) -> None:
    """D24: an outage that goes on costs one request every half minute."""
    worker = bench.worker()
    trip(bench, worker, Unreachable("ConnectError"))
    for _ in range(4):
        bench.relay.clock.sleep(RECOVERY)
        assert [bench.sent(worker) for _ in range(5)] == [1, 0, 0, 0, 0]


def test_d24_while_one_probes_the_others_wait(bench: Bench) -> None:
    """D24: whoever writes first probes; a second worker that comes meanwhile does not."""
    mine, yours = bench.worker(), bench.worker()
    trip(bench, mine, Unreachable("ConnectError"))
    bench.relay.clock.sleep(RECOVERY)
    heard: list[str] = []

    def probe() -> str:
        as_another_process()
        heard.append(bench.ask(yours))
        return "answered"

    assert mine.request(probe) == "answered"
    assert heard == ["NotExecuted: circuit_open"]


def test_d24_two_that_want_to_probe_at_once_do_not_both(bench: Bench) -> None:
    """D24: between reading that the time has come and saying so, another may have said so."""
    mine, yours = bench.worker(), bench.worker()
    trip(bench, mine, Unreachable("ConnectError"))
    bench.relay.clock.sleep(RECOVERY)
    bench.answer = None
    heard: list[str] = []
    put = bench.relay.store.put

    def barge_in(key: str, attributes: Mapping[str, Any], **kwargs: Any) -> Item:
        if attributes.get("state") == "HALF_OPEN" and not heard:
            heard.append("")
            heard[0] = bench.ask(yours)
        return put(key, attributes, **kwargs)

    bench.relay.store.put = barge_in  # type: ignore[method-assign]
    assert bench.ask(mine) == "NotExecuted: circuit_open"
    assert heard == ["answered"]


def crash() -> None:
    raise Crash


def test_d24_a_probe_whose_worker_died_is_taken_over(bench: Bench) -> None:
    """D24: a lost probe closes the account for another half minute, not for ever."""
    mine, yours = bench.worker(), bench.worker()
    trip(bench, mine, Unreachable("ConnectError"))
    bench.relay.clock.sleep(RECOVERY)
    with pytest.raises(Crash):
        mine.request(crash)
    bench.answer = None
    as_another_process()
    assert bench.ask(yours) == "NotExecuted: circuit_open"
    bench.relay.clock.sleep(RECOVERY)
    assert bench.ask(yours) == "answered"


def test_a_circuit_that_cannot_be_kept_closes_nothing(bench: Bench) -> None:
    """The breaker must not become the outage that it is there for."""
    bench.break_items("circuit#")
    worker = bench.worker()
    bench.answer = Unreachable("ConnectError")
    assert {bench.ask(worker) for _ in range(3 * FAILURES)} <= {
        "Unreachable: ConnectError",
        "NotExecuted: circuit_open",
    }
    bench.answer = None
    bench.relay.clock.sleep(RECOVERY + SEEN_AFTER)
    assert bench.ask(bench.worker()) == "answered"
