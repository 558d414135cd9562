"""Shared tokens: whoever asks and whoever dies, one refresh at a time, and no pair is used before it is stored."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Event, Lock, Semaphore
from typing import Any

import pytest

from crm_relay.delivery.memory import MemoryBus, MemoryQueue, MemoryStore
from crm_relay.delivery.ports import Item, Ports, StorageError
from crm_relay.delivery.tokens import LEASE, Pair, SharedToken
from crm_relay.outcomes import Blocked, NotExecuted, Outcome, OutcomeUnknown, Unauthorized
from tests.relay import Clock, Crash


def pair(number: int) -> dict[str, Any]:
    return {"host": "example.amocrm.ru", "access_token": f"A{number}", "refresh_token": f"R{number}", "expires_at": 1}


class Crm:
    """A CRM whose refresh tokens rotate: the old one is good until the new pair is used, and dies then."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.during: Callable[[], object] = lambda: None
        self._latest = 1
        self._used = 1
        self._lock = Lock()

    def refresh(self, old: Pair) -> Pair:
        """Exchange a refresh token. `during` happens before the answer arrives."""
        with self._lock:
            self.calls.append(old["refresh_token"])
            if int(old["refresh_token"][1:]) < self._used:
                raise Unauthorized("revoked")
            self._latest += 1
            fresh = pair(self._latest)
        self.during()
        return fresh

    def use(self, used: Pair) -> None:
        """Make a request with a pair."""
        number = int(used["access_token"][1:])
        assert self._used <= number <= self._latest, "a dead token was used"
        self._used = number


class Store(MemoryStore):
    """A table that breaks on demand, before or after the write, and says what it was told."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.fail_before: BaseException | None = None
        self.fail_after: BaseException | None = None
        self.log: list[tuple[str, int]] = []

    def put(self, key: str, attributes: Mapping[str, Any], *, replaces: Item | None, **more: Any) -> Item:
        """See ports.Store."""
        if self.fail_before:
            raise self.fail_before
        item = super().put(key, attributes, replaces=replaces, **more)
        self.log.append(((attributes["pair"] or {}).get("access_token", ""), attributes["lease_until"]))
        if self.fail_after:
            raise self.fail_after
        return item


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock) -> Store:
    return Store(clock)


@pytest.fixture
def ports(clock: Clock, store: Store) -> Ports:
    queue = MemoryQueue(clock)
    return Ports(store, queue, queue, MemoryBus(), clock, lambda: 0.5, lambda _: queue)


@pytest.fixture
def crm() -> Crm:
    return Crm()


@pytest.fixture
def token(ports: Ports, store: Store) -> SharedToken:
    token = SharedToken(ports, "amocrm#main")
    token.write(pair(1))
    store.log.clear()
    return token


def refused(token: SharedToken, crm: Crm, stale: int = 1) -> BaseException:
    with pytest.raises((Outcome, StorageError)) as caught:
        token.refreshed(pair(stale), crm.refresh)
    return caught.value


def raising(error: BaseException) -> Callable[[], object]:
    def during() -> None:
        raise error

    return during


# What is stored


def test_what_is_written_is_read(token: SharedToken, ports: Ports) -> None:
    """By every worker; None is an account that was never authorized, or is disconnected."""
    assert SharedToken(ports, "amocrm#other").read() is None
    assert SharedToken(ports, "amocrm#main").read() == pair(1)
    token.write(None)
    assert SharedToken(ports, "amocrm#main").read() is None


def test_accounts_have_tokens_of_their_own(ports: Ports, token: SharedToken) -> None:
    """One's refresh is not the other's."""
    SharedToken(ports, "amocrm#other").write(pair(7))
    assert token.read() == pair(1)


# One refresh


def test_a_stale_pair_is_refreshed_and_stored(token: SharedToken, crm: Crm, store: Store, clock: Clock) -> None:
    """Under a lease that is gone afterwards."""
    assert token.refreshed(pair(1), crm.refresh) == pair(2)
    assert token.read() == pair(2)
    assert crm.calls == ["R1"]
    assert store.log == [("A1", int(clock.now) + LEASE), ("A2", 0)]


def test_a_pair_that_somebody_has_refreshed_is_taken_as_it_is(token: SharedToken, crm: Crm) -> None:
    """A worker that comes with an old pair needs no refresh of its own."""
    token.refreshed(pair(1), crm.refresh)
    assert token.refreshed(pair(1), crm.refresh) == pair(2)
    assert crm.calls == ["R1"]
    assert token.refreshed(pair(2), crm.refresh) == pair(3)


def test_fifty_workers_at_once_make_one_refresh(ports: Ports, token: SharedToken, crm: Crm) -> None:
    """All end with the new pair: one by the call, which ends when the others were all sent away to ask again."""
    went_on, done = Semaphore(0), Event()

    def others() -> None:
        crm.during = lambda: None  # whoever else calls is one too many, and need not wait
        for _ in range(49):
            assert went_on.acquire(timeout=30)

    def worker() -> Pair:
        mine = SharedToken(ports, "amocrm#main")
        try:
            fresh = mine.refreshed(pair(1), crm.refresh)
        except NotExecuted:
            went_on.release()
            assert done.wait(timeout=30)
            return mine.refreshed(pair(1), crm.refresh)
        went_on.release()
        done.set()
        return fresh

    crm.during = others
    with ThreadPoolExecutor(50) as pool:
        got = [future.result() for future in [pool.submit(worker) for _ in range(50)]]
    assert got == [pair(2)] * 50
    assert crm.calls == ["R1"]


def test_while_one_refreshes_the_others_wait(ports: Ports, token: SharedToken, crm: Crm) -> None:
    """They find the lease, and do not call."""
    met: list[BaseException] = []
    crm.during = lambda: met.append(refused(SharedToken(ports, "amocrm#main"), Crm()))
    assert token.refreshed(pair(1), crm.refresh) == pair(2)
    (busy,) = met
    assert isinstance(busy, NotExecuted)
    assert busy.retry_after == 2


def test_of_two_that_reach_for_the_lease_one_gets_it(token: SharedToken, crm: Crm, ports: Ports) -> None:
    """The other reads before, and writes after: its write is refused, and it does not call."""
    store: Any = ports.store

    class Late:
        """A store on which another worker refreshes between our read and our write."""

        def get(self, key: str) -> Any:
            item = store.get(key)
            token.refreshed(pair(1), crm.refresh)
            return item

        def __getattr__(self, name: str) -> Any:
            return getattr(store, name)

    theirs: Any = Late()
    mine = Crm()
    assert isinstance(refused(SharedToken(replace(ports, store=theirs), "amocrm#main"), mine), NotExecuted)
    assert (mine.calls, crm.calls) == ([], ["R1"])


def test_a_pair_is_stored_before_anybody_uses_it(ports: Ports, store: Store, crm: Crm, token: SharedToken) -> None:
    """Using it kills the old one: a pair that is not stored must not get out."""
    crm.during = lambda: setattr(store, "fail_before", StorageError("down"))
    assert isinstance(refused(token, crm), StorageError)
    assert token.read() == pair(1)


# Who dies, and when


def test_after_a_crash_in_the_middle_the_old_token_is_asked_with_again(
    ports: Ports, token: SharedToken, crm: Crm, clock: Clock, store: Store
) -> None:
    """The pair of the dead worker was never used, so the old token still works, once its lease is over."""
    crm.during = raising(Crash())
    with pytest.raises(Crash):
        token.refreshed(pair(1), crm.refresh)
    crm.during = lambda: None
    other = SharedToken(ports, "amocrm#main")
    assert isinstance(refused(other, crm), NotExecuted)
    clock.now += LEASE - 1
    assert isinstance(refused(other, crm), NotExecuted)
    clock.now += 1
    fresh = other.refreshed(pair(1), crm.refresh)
    assert crm.calls == ["R1", "R1"]
    crm.use(fresh)
    assert other.read() == fresh == pair(3)


@pytest.mark.parametrize("after", [False, True])
def test_a_crash_while_storing_costs_nothing(
    ports: Ports, token: SharedToken, crm: Crm, clock: Clock, store: Store, *, after: bool
) -> None:
    """Either the new pair is there, or the old one still works."""
    crm.during = lambda: setattr(store, "fail_after" if after else "fail_before", Crash())
    with pytest.raises(Crash):
        token.refreshed(pair(1), crm.refresh)
    store.fail_before = store.fail_after = None
    crm.during = lambda: None
    clock.now += LEASE
    fresh = SharedToken(ports, "amocrm#main").refreshed(pair(1), crm.refresh)
    crm.use(fresh)
    assert fresh == pair(2 if after else 3)


@pytest.mark.parametrize("after", [False, True])
def test_a_table_that_fails_while_storing_costs_nothing(
    ports: Ports, token: SharedToken, crm: Crm, clock: Clock, store: Store, *, after: bool
) -> None:
    """The same where it is the table that dies, and nobody knows whether it wrote."""
    crm.during = lambda: setattr(store, "fail_after" if after else "fail_before", StorageError("down"))
    assert isinstance(refused(token, crm), StorageError)
    store.fail_before = store.fail_after = None
    crm.during = lambda: None
    clock.now += LEASE
    crm.use(SharedToken(ports, "amocrm#main").refreshed(pair(1), crm.refresh))


def test_a_table_that_is_down_makes_no_refresh(token: SharedToken, crm: Crm, store: Store) -> None:
    """Without a lease there is no call."""
    store.fail_before = StorageError("down")
    assert isinstance(refused(token, crm), StorageError)
    assert crm.calls == []


def test_a_lease_whose_write_got_no_answer_runs_out(token: SharedToken, crm: Crm, store: Store, clock: Clock) -> None:
    """Nobody knows who holds it, so nobody calls until then."""
    store.fail_after = StorageError("no answer")
    assert isinstance(refused(token, crm), StorageError)
    store.fail_after = None
    assert isinstance(refused(token, crm), NotExecuted)
    assert crm.calls == []
    clock.now += LEASE
    assert token.refreshed(pair(1), crm.refresh) == pair(2)


@pytest.mark.parametrize(
    "outcome", [OutcomeUnknown("ReadTimeout"), NotExecuted("rate_limited", 7), Blocked("not_paid"), ValueError("a bug")]
)
def test_whatever_goes_wrong_gives_the_lease_back(
    token: SharedToken, crm: Crm, store: Store, outcome: Exception
) -> None:
    """The next worker need not wait, and asks with the old token."""
    crm.during = raising(outcome)
    with pytest.raises(type(outcome)) as caught:
        token.refreshed(pair(1), crm.refresh)
    assert caught.value is outcome
    crm.during = lambda: None
    crm.use(token.refreshed(pair(1), crm.refresh))
    assert crm.calls == ["R1", "R1"]


def test_what_went_wrong_is_told_even_if_the_lease_cannot_be_given_back(
    token: SharedToken, crm: Crm, store: Store, clock: Clock
) -> None:
    """The reason matters more; the lease runs out by itself."""

    def lost() -> None:
        store.fail_before = StorageError("down")
        raise OutcomeUnknown("ReadTimeout")

    crm.during = lost
    assert isinstance(refused(token, crm), OutcomeUnknown)
    store.fail_before, crm.during = None, lambda: None
    clock.now += LEASE
    assert token.refreshed(pair(1), crm.refresh) == pair(3)


# Revoked


def test_a_revoked_token_is_told(token: SharedToken, crm: Crm) -> None:
    """Somebody has to authorize again; the stored pair stays what it was, and is tried again when asked."""
    crm.use(crm.refresh(pair(1)))
    assert isinstance(refused(token, crm), Unauthorized)
    assert token.read() == pair(1)
    assert isinstance(refused(token, crm), Unauthorized)


def test_revoked_is_no_last_word_where_somebody_stored_a_newer_pair(
    ports: Ports, token: SharedToken, crm: Crm, clock: Clock
) -> None:
    """Storage is asked once more: another worker, or a person, may have been faster."""

    def meanwhile() -> None:
        SharedToken(ports, "amocrm#main").write(pair(9))
        raise Unauthorized("revoked")

    crm.during = meanwhile
    assert isinstance(refused(token, crm), NotExecuted)
    assert token.refreshed(pair(1), Crm().refresh) == pair(9)


def test_a_worker_whose_lease_ran_out_gives_way(ports: Ports, token: SharedToken, crm: Crm, clock: Clock) -> None:
    """The pair of the one who came after it is the one that lives."""
    taken: list[Pair] = []

    def overslept() -> None:
        crm.during = lambda: None
        clock.now += LEASE
        taken.append(SharedToken(ports, "amocrm#main").refreshed(pair(1), crm.refresh))

    crm.during = overslept
    assert isinstance(refused(token, crm), NotExecuted)
    assert token.read() == taken[0] == pair(3)


# People


@pytest.mark.parametrize("account", [None, "forgotten"])
def test_an_account_without_tokens_is_not_authorized(
    ports: Ports, token: SharedToken, crm: Crm, account: str | None
) -> None:
    """Never authorized, or disconnected: there is nothing to refresh."""
    if account:
        token.write(None)
    else:
        token = SharedToken(ports, "amocrm#other")
    assert isinstance(refused(token, crm), Unauthorized)
    assert crm.calls == []


@pytest.mark.parametrize("written", [pair(9), None])
def test_what_a_person_does_wins_over_a_refresh_under_way(
    ports: Ports, token: SharedToken, crm: Crm, written: dict[str, Any] | None
) -> None:
    """Authorized anew, or disconnected: the refreshed pair is dropped, and nobody waits for its lease."""
    crm.during = lambda: SharedToken(ports, "amocrm#main").write(written)
    assert isinstance(refused(token, crm), NotExecuted)
    assert token.read() == written
    crm.during = lambda: None
    if written:
        assert token.refreshed(pair(1), crm.refresh) == written
    else:
        assert isinstance(refused(token, crm), Unauthorized)


def test_two_people_at_once_do_not_disturb_each_other(ports: Ports, token: SharedToken) -> None:
    """Both write; one of them is the last."""
    with ThreadPoolExecutor(8) as pool:
        for future in [pool.submit(SharedToken(ports, "amocrm#main").write, pair(number)) for number in range(2, 10)]:
            future.result()
    assert token.read() in [pair(number) for number in range(2, 10)]


def test_an_account_can_be_authorized_again(token: SharedToken, crm: Crm) -> None:
    """After a disconnect it is as at first."""
    token.write(None)
    token.write(pair(1))
    assert token.refreshed(pair(1), crm.refresh) == pair(2)
