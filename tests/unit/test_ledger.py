"""The effect ledger: one owner at a time, no way out of doubt but an answer, nothing forgotten."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, precondition, rule

from crm_relay.delivery.ledger import Busy, Claim, Effect, Fenced, Ledger, OtherPayload, State
from crm_relay.delivery.memory import MemoryStore
from crm_relay.delivery.ports import Item, StorageError
from tests.relay import Clock

NAME = "cartelcrm.lead#e1"
LEASE = 60


@dataclass
class Bench:
    """A ledger over a store in memory, with the time in hand."""

    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.store = MemoryStore(self.clock)
        self.ledger = Ledger(self.store, self.clock)

    def claim(self, name: str = NAME, *, sha256: str = "a") -> Claim:
        claim = self.ledger.claim(name, sha256, lease=LEASE)
        assert isinstance(claim, Claim)
        return claim

    def expire(self) -> None:
        self.clock.sleep(LEASE)

    @property
    def effect(self) -> Effect:
        effect = self.ledger.find(NAME)
        assert effect is not None
        return effect

    @property
    def attention(self) -> str | None:
        return self.store.items[f"effect#{NAME}"].attention


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_an_effect_has_one_owner_until_its_lease_ends(bench: Bench) -> None:
    """Whoever comes second is told to come again when the first one's lease is over."""
    bench.claim()
    with pytest.raises(Busy) as busy:
        bench.claim()
    assert busy.value.until == bench.clock.time() + LEASE
    assert str(busy.value) == "busy"  # a reason for whoever waits
    bench.clock.sleep(LEASE - 1)
    with pytest.raises(Busy):
        bench.claim()
    bench.clock.sleep(1)
    assert bench.claim().effect.tries == 2


def test_names_do_not_share_an_owner(bench: Bench) -> None:
    """Two leads are worked on at the same time."""
    bench.claim("cartelcrm.lead#e1")
    bench.claim("cartelcrm.lead#e2")


@pytest.mark.parametrize(
    "write",
    [
        lambda claim: claim.sent({}),
        lambda claim: claim.confirm({"id": "stale"}),
        lambda claim: claim.reject("stale"),
        lambda claim: claim.wait("stale", happened=False),
        lambda claim: claim.give_up("stale"),
    ],
    ids=["sent", "confirm", "reject", "wait", "give_up"],
)
def test_d06_a_stale_owner_writes_nothing(bench: Bench, write: Callable[[Claim], None]) -> None:
    """D06: an owner whose lease was taken over is refused, whatever it wants to record."""
    stale = bench.claim()
    bench.expire()
    fresh = bench.claim()
    with pytest.raises(Fenced):
        write(stale)
    assert bench.effect == fresh.effect
    fresh.confirm({"id": "7"})
    with pytest.raises(Fenced):
        write(stale)
    assert bench.effect.result == {"id": "7"}


def test_an_owner_may_write_after_its_lease_while_nobody_else_came(bench: Bench) -> None:
    """An answer that came late is still worth recording: the version decides, not the clock."""
    claim = bench.claim()
    claim.sent({})
    bench.expire()
    claim.confirm({"id": "7"})
    assert bench.effect.state is State.CONFIRMED


@pytest.mark.parametrize("state", [State.CONFIRMED, State.REJECTED])
def test_what_is_settled_is_returned_and_never_claimed_again(bench: Bench, state: State) -> None:
    """A copy of a message that is done gets the stored result, and touches nothing."""
    claim = bench.claim()
    claim.confirm({"id": "7"}) if state is State.CONFIRMED else claim.reject("blacklisted")
    written = bench.store.items[f"effect#{NAME}"]
    bench.expire()
    assert bench.ledger.claim(NAME, "a", lease=LEASE) == bench.effect
    assert bench.effect.state is state
    assert bench.store.items[f"effect#{NAME}"] is written


def test_turns_are_taken_one_after_the_other(bench: Bench) -> None:
    """As often as somebody needs one; what one has noted the next finds, and nobody has to look at it."""
    for number in range(3):
        turn = bench.ledger.turn(NAME, lease=LEASE)
        assert (turn.effect.notes or {}).get("number", -1) == number - 1
        with pytest.raises(Busy):
            bench.ledger.turn(NAME, lease=LEASE)
        turn.sent({"number": number})
        turn.release()
    [(key, item)] = bench.store.items.items()
    assert (key, item.attributes["owner"], item.attention) == (f"turn#{NAME}", None, None)
    assert item.expires_at == bench.clock.time() + 24 * 3600


def test_what_is_settled_can_be_taken_up_again(bench: Bench) -> None:
    """By one owner, as ever; for all others it stays settled until he writes something else."""
    bench.claim(sha256="").confirm({"id": 5})
    turn = bench.ledger.reopen(NAME, lease=LEASE)
    with pytest.raises(Busy):
        bench.ledger.reopen(NAME, lease=LEASE)
    assert isinstance(bench.ledger.claim(NAME, "", lease=LEASE), Effect)
    turn.confirm({"id": 6})
    assert bench.effect.result == {"id": 6}


def test_another_payload_under_a_known_name_is_refused(bench: Bench) -> None:
    """The same id with other content is no repeat: not while it runs, not when it is settled."""
    claim = bench.claim(sha256="a")
    with pytest.raises(OtherPayload):
        bench.claim(sha256="b")
    claim.confirm({})
    with pytest.raises(OtherPayload):
        bench.claim(sha256="b")


def test_an_effect_that_was_sent_is_in_doubt_for_its_next_owner(bench: Bench) -> None:
    """SENT is written before the request leaves, so whoever finds it must look in the CRM first."""
    claim = bench.claim()
    assert not claim.in_doubt
    claim.sent({"generation": 1})
    bench.expire()
    heir = bench.claim()
    assert heir.in_doubt
    assert heir.effect.notes == {"generation": 1}


def test_a_definite_no_ends_the_doubt_of_its_own_try(bench: Bench) -> None:
    """After a 429 nothing has happened, so the next owner need not look."""
    claim = bench.claim()
    claim.sent({"generation": 1})
    claim.wait("rate_limited", happened=False)
    assert bench.effect.state is State.PLANNED
    assert not bench.claim().in_doubt


def test_a_definite_no_does_not_end_an_earlier_doubt(bench: Bench) -> None:
    """A 429 to the repeat says nothing of the first request, which may still arrive."""
    first = bench.claim()
    first.sent({"generation": 1})
    first.wait("ReadTimeout", happened=None)
    second = bench.claim()
    second.sent({"generation": 1})
    second.wait("rate_limited", happened=False)
    assert bench.effect.state is State.SENT
    assert bench.claim().in_doubt


def test_an_effect_that_was_given_up_is_in_doubt_for_whom_an_operator_sends(bench: Bench) -> None:
    """NEEDS_RECONCILE is not the end: a message sent again may settle it, by looking first."""
    claim = bench.claim()
    claim.sent({})
    claim.give_up("ReadTimeout")
    assert not bench.effect.settled
    assert bench.claim().in_doubt


def test_what_surely_did_not_happen_is_given_up_without_doubt(bench: Bench) -> None:
    """GIVEN_UP is over for the workers, is listed, and whom an operator sends need not look in the CRM."""
    claim = bench.claim()
    claim.sent({})
    claim.give_up("rate_limited", happened=False)
    assert bench.effect == Effect(State.GIVEN_UP, "a", notes={}, last_error="rate_limited")
    assert bench.attention == "GIVEN_UP"
    heir = bench.claim()
    assert not heir.in_doubt
    heir.confirm({"id": "7"})
    assert bench.attention is None


def test_giving_up_does_not_end_an_earlier_doubt(bench: Bench) -> None:
    """A last try that surely did nothing says nothing of the one before: an operator must look."""
    bench.claim().sent({})
    bench.expire()
    bench.claim().give_up("rate_limited", happened=False)
    assert bench.effect.state is State.NEEDS_RECONCILE
    assert bench.effect.owner is None
    assert bench.attention == "NEEDS_RECONCILE"


def test_only_an_owner_who_died_uses_up_a_try(bench: Bench) -> None:
    """Waiting for a CRM costs nothing; dying in the middle is counted; what ends orderly starts anew."""
    bench.claim().wait("busy", happened=False)
    assert (bench.effect.tries, bench.effect.waits) == (0, 1)
    bench.claim()
    bench.expire()
    bench.claim()
    bench.expire()
    claim = bench.claim()
    assert claim.effect.tries == 3
    claim.wait("KeyError", happened=False, orderly=False)
    assert (bench.effect.tries, bench.effect.waits) == (3, 2)
    bench.claim().wait("busy", happened=False)
    assert (bench.effect.tries, bench.effect.waits) == (0, 3)


def test_waiting_lets_the_next_owner_in_at_once(bench: Bench) -> None:
    """An effect that was given back needs no lease to run out."""
    bench.claim().wait("busy", happened=False)
    bench.claim()


def test_attention_marks_what_somebody_must_look_at(bench: Bench) -> None:
    """The index lists what waits, was refused or needs an operator, and nothing else."""
    claim = bench.claim()
    assert bench.attention is None
    claim.sent({})
    assert bench.attention is None
    claim.wait("busy", happened=None)
    assert bench.attention == "WAITING"
    claim = bench.claim()
    assert bench.attention == "WAITING"
    claim.give_up("ReadTimeout")
    assert bench.attention == "NEEDS_RECONCILE"
    bench.claim().confirm({})
    assert bench.attention is None


def test_what_needs_an_operator_stays_in_his_list_until_it_is_settled(bench: Bench) -> None:
    """A try in between that settles nothing does not take NEEDS_RECONCILE off the list."""
    claim = bench.claim()
    claim.sent({})
    claim.give_up("ReadTimeout")
    bench.claim().wait("earlier_try_in_doubt", happened=None)
    assert bench.effect.state is State.NEEDS_RECONCILE
    assert bench.attention == "NEEDS_RECONCILE"


def test_a_refusal_is_kept_with_its_reason(bench: Bench) -> None:
    """What the CRM refused can be looked up, and is listed."""
    bench.claim().reject("blacklisted")
    assert bench.effect.result == {"reason": "blacklisted"}
    assert bench.attention == "REJECTED"


def test_an_effect_is_remembered_longer_than_any_replay_window(bench: Bench) -> None:
    """The ledger outlives the longest replay window that can be configured, 90 days, counted from the last write."""
    claim = bench.claim()
    bench.clock.sleep(86_400)
    claim.confirm({"id": "7"})
    bench.clock.sleep(90 * 86_400 + 600)
    assert bench.effect.state is State.CONFIRMED


def test_the_table_names_states_as_operators_and_newer_versions_know_them() -> None:
    """What stands in the table outlives the code: a state is never spelt otherwise."""
    words = ["PLANNED", "SENT", "CONFIRMED", "REJECTED", "GIVEN_UP", "NEEDS_RECONCILE"]
    assert [Effect.read({"state": word, "sha256": "a"}).state.name for word in words] == words


def test_an_effect_is_read_as_it_was_written() -> None:
    """What the table keeps is the whole effect."""
    effect = Effect(State.SENT, "a", "me", 5, 2, 3, {"generation": 1}, {"id": "7"}, "ReadTimeout")
    assert Effect.read(effect.attributes()) == effect


def test_a_claim_that_the_store_did_not_answer_is_nobodys(bench: Bench) -> None:
    """Whether the write took place is unknown: its lease runs out, then the next owner comes in."""
    bench.store.put = breaking(bench.store.put, after=True)  # type: ignore[method-assign]
    with pytest.raises(StorageError):
        bench.claim()
    del bench.store.put
    with pytest.raises(Busy):
        bench.claim()
    bench.expire()
    assert bench.claim().effect.tries == 2


def breaking(put: Callable[..., Item], *, after: bool) -> Callable[..., Item]:
    """A put whose answer gets lost, after or before it took place."""

    def broken(*args: Any, **kwargs: Any) -> Item:
        if after:
            put(*args, **kwargs)
        raise StorageError

    return broken


@dataclass(eq=False)
class Owner:
    """A worker with its claim; `try_number` is the request that it has let out and not heard of."""

    claim: Claim
    doubt_when_claimed: bool
    sent: bool = False
    try_number: int | None = None


class LedgerMachine(RuleBasedStateMachine):
    """Workers that claim, send, die, come back late and meet a store that fails, in any order.

    `open_tries` are requests that have left and whose fate nobody has been told: a ledger that calls the
    effect PLANNED while there is one would let it be done twice.
    """

    owners = Bundle("owners")

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.store = MemoryStore(self.clock)
        self.open_tries: set[int] = set()
        self.tries = 0
        self.settled: Mapping[str, Any] | None = None
        self.fault: str | None = None
        self.genuine_put = self.store.put
        self.store.put = self.put  # type: ignore[method-assign]
        self.writes: list[tuple[int, str | None]] = []

    def put(self, key: str, attributes: Mapping[str, Any], *, replaces: Item | None, **kwargs: Any) -> Item:
        """The store's put, which fails before or after its effect when a rule says so."""
        fault, self.fault = self.fault, None
        if fault == "before":
            raise StorageError
        item = self.genuine_put(key, attributes, replaces=replaces, **kwargs)
        self.writes.append((item.version, attributes["owner"]))
        if fault == "after":
            raise StorageError
        return item

    @property
    def effect(self) -> Effect | None:
        return Ledger(self.store, self.clock).find(NAME)

    faults = st.sampled_from([None, None, "before", "after"])

    @rule(target=owners, skew=st.sampled_from([0, 0, 0, -600, 600]), fault=faults)
    def claim(self, skew: int, fault: str | None) -> Any:
        """A worker, whose clock may be wrong, asks for the effect."""
        before = self.effect
        self.fault = fault
        try:
            claim = Ledger(self.store, Clock(self.clock.now + skew)).claim(NAME, "a", lease=LEASE)
        except Busy:
            assert before is not None
            assert before.owner is not None
            return multiple()
        except StorageError:
            return multiple()
        finally:
            self.fault = None
        if isinstance(claim, Effect):
            assert claim.attributes() == self.settled
            return multiple()
        assert self.settled is None
        assert claim.in_doubt or not self.open_tries, "an owner that will not look, while a request may be under way"
        return Owner(claim, bool(self.open_tries))

    def write(self, owner: Owner, fault: str | None, change: Callable[[], None]) -> bool:
        """Let an owner write; tell whether it may believe that it did."""
        stands = self.effect
        assert stands is not None
        was_owner = stands.owner == owner.claim.effect.owner
        self.fault = fault
        try:
            change()
        except Fenced:
            assert not was_owner or stands.attributes() != owner.claim.effect.attributes()
            return False
        except StorageError:
            return False
        finally:
            self.fault = None
        assert was_owner, "the write of an owner that had lost the effect"
        return True

    @rule(owner=owners, fault=faults)
    def send(self, owner: Owner, fault: str | None) -> None:
        """An owner writes SENT; only when that is known to stand does its request leave."""
        if owner.sent:
            return
        owner.sent = True
        if self.write(owner, fault, lambda: owner.claim.sent({"n": 1})):
            self.tries += 1
            owner.try_number = self.tries
            self.open_tries.add(self.tries)

    @rule(owner=consumes(owners), fault=faults)
    def refused(self, owner: Owner, fault: str | None) -> None:
        """The answer says that nothing happened; the owner gives the effect back."""
        self.open_tries.discard(owner.try_number or 0)
        self.write(owner, fault, lambda: owner.claim.wait("rate_limited", happened=False))

    @rule(owner=consumes(owners), fault=faults)
    def unanswered(self, owner: Owner, fault: str | None) -> None:
        """No answer came: nobody knows."""
        happened = None if owner.claim.effect.state is State.SENT else False
        self.write(owner, fault, lambda: owner.claim.wait("ReadTimeout", happened=happened))

    @rule(owner=consumes(owners), fault=faults)
    def given_up(self, owner: Owner, fault: str | None) -> None:
        """The message has waited too long."""
        happened = None if owner.claim.effect.state is State.SENT else False
        self.write(owner, fault, lambda: owner.claim.give_up("ReadTimeout", happened=happened))

    @rule(owner=consumes(owners), accepted=st.booleans(), fault=faults)
    @precondition(lambda self: self.tries)
    def answered(self, owner: Owner, accepted: bool, fault: str | None) -> None:
        """The verdict is in."""
        claim = owner.claim
        self.write(owner, fault, lambda: claim.confirm({"id": "7"}) if accepted else claim.reject("no"))

    @rule(owner=consumes(owners))
    def die(self, owner: Owner) -> None:
        """The process is gone; its request, if one had left, is not."""

    @rule(seconds=st.sampled_from([1, LEASE // 2, LEASE, 700]))
    def time_passes(self, seconds: int) -> None:
        self.clock.sleep(seconds)

    @invariant()
    def doubt_is_never_forgotten(self) -> None:
        effect = self.effect
        assert not (effect and effect.state in (State.PLANNED, State.GIVEN_UP) and self.open_tries)

    @invariant()
    def what_an_operator_must_see_is_listed(self) -> None:
        item = self.store.get(f"effect#{NAME}")
        if item and item.attributes["state"] in ("REJECTED", "GIVEN_UP", "NEEDS_RECONCILE"):
            assert item.attention == item.attributes["state"]

    @invariant()
    def what_is_settled_stays_settled(self) -> None:
        effect = self.effect
        if self.settled is not None:
            assert effect is not None
            assert effect.attributes() == self.settled
        elif effect and effect.settled:
            self.settled = effect.attributes()

    @invariant()
    def no_version_was_written_twice(self) -> None:
        versions = [version for version, _ in self.writes]
        assert versions == list(range(1, len(versions) + 1))


LedgerMachine.TestCase.settings = settings(stateful_step_count=30)
test_workers_in_any_order_keep_the_ledger_true = LedgerMachine.TestCase
