"""The inbox: durable first, remembered second; a crash may cost a copy but never a call."""

import hashlib
import random
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from crm_relay.delivery import inbox, outbox
from crm_relay.delivery.envelope import Envelope, NotOurs
from crm_relay.delivery.inbox import Receipt
from crm_relay.delivery.ports import Ports, StorageError
from crm_relay.http_api import Unavailable
from tests.relay import START, Crash, Relay

DAY = 86_400


@pytest.fixture
def ports(relay: Relay) -> Ports:
    return relay._runtimes["leads"].ports


def call(body: str = "a", *, key: str = "e1") -> Envelope:
    return Envelope("cartelcrm.lead", key, {"body": body}, int(START), "r-1")


def accept(ports: Ports, envelope: Envelope | None = None) -> Receipt:
    return inbox.accept(ports, envelope or call(), remember=30 * DAY)


def queued(relay: Relay) -> list[str]:
    """What a worker will get, from the queue and, after a drain, from the outbox."""
    relay.mend()
    relay.invoke("outbox_drain", {})
    return [Envelope.decode(message.body).payload["body"] for message in relay.queues["leads"].messages.values()]


def test_a_call_is_queued_once_and_its_copies_are_told_so(relay: Relay, ports: Ports) -> None:
    """The second copy is a replay and adds nothing to the queue."""
    assert accept(ports) is Receipt.ACCEPTED
    assert accept(ports) is Receipt.REPLAYED
    assert queued(relay) == ["a"]
    assert relay.items("inbound#")["inbound#cartelcrm.lead#e1"]["copies"] == 2


def test_accepting_takes_three_calls_to_aws(relay: Relay, ports: Ports) -> None:
    """The price of a call: two writes around one message. A replay costs two."""
    accept(ports)
    assert relay.calls == ["store.put", "queue.send", "store.put"]
    relay.calls.clear()
    accept(ports)
    assert relay.calls == ["store.put", "store.put"]


def test_another_body_under_a_known_key_is_not_queued(relay: Relay, ports: Ports) -> None:
    """The key decides what is the same call; the caller learns that the body is another."""
    accept(ports)
    assert accept(ports, call("b")) is Receipt.CONFLICTING
    assert queued(relay) == ["a"]


def test_a_call_is_remembered_as_long_as_it_is_asked_for(relay: Relay, ports: Ports) -> None:
    """Within the replay window a copy is a replay; after it the ledger is the judge."""
    accept(ports)
    relay.clock.sleep(30 * DAY - 1)
    assert accept(ports) is Receipt.REPLAYED
    relay.clock.sleep(1)
    assert accept(ports) is Receipt.ACCEPTED


def test_a_delay_is_the_queues_business(relay: Relay, ports: Ports) -> None:
    """A message that its caller tries himself is not seen by a worker meanwhile."""
    inbox.accept(ports, call(), remember=DAY, delay=30)
    assert not relay.queues["leads"].receive(limit=1, visibility=1)
    relay.clock.sleep(30)
    assert relay.queues["leads"].receive(limit=1, visibility=1)


def test_a_queue_that_is_down_is_replaced_by_the_outbox(relay: Relay, ports: Ports) -> None:
    """The call is accepted, kept in the table, and known as a replay when it comes again."""
    relay.fail("queue")
    assert accept(ports) is Receipt.ACCEPTED
    assert accept(ports) is Receipt.REPLAYED
    assert queued(relay) == ["a"]


def test_a_table_that_is_down_costs_a_copy_but_no_call(relay: Relay, ports: Ports) -> None:
    """The queue is the truth: what the table cannot remember is queued each time it comes."""
    relay.fail("store")
    assert accept(ports) is Receipt.ACCEPTED
    assert accept(ports) is Receipt.ACCEPTED
    assert queued(relay) == ["a", "a"]


def test_nothing_is_accepted_when_nothing_durable_was_written(relay: Relay, ports: Ports) -> None:
    """With both stores down the caller is told to come again, and then it counts."""
    relay.fail("queue")
    relay.fail("store")
    with pytest.raises(Unavailable) as refusal:
        accept(ports)
    assert (refusal.value.error, refusal.value.retry_after) == ("nothing_durable", 30)
    assert queued(relay) == []
    assert accept(ports) is Receipt.ACCEPTED
    assert queued(relay) == ["a"]


def test_a_call_that_was_only_announced_is_queued_when_it_comes_again(relay: Relay, ports: Ports) -> None:
    """RECEIVED proves nothing: only ENQUEUED says that there is a message."""
    relay.fail("queue.send", error=Crash())
    with pytest.raises(Crash):
        accept(ports)
    relay.mend()
    assert accept(ports) is Receipt.ACCEPTED
    assert queued(relay) == ["a"]


def test_the_inbox_remembers_the_body_that_was_queued(relay: Relay, ports: Ports) -> None:
    """A first body that never got into the queue is not what a later one is measured by."""
    relay.fail("queue.send", error=Crash())
    with pytest.raises(Crash):
        accept(ports, call("a"))
    relay.mend()
    assert accept(ports, call("b")) is Receipt.ACCEPTED
    assert accept(ports, call("b")) is Receipt.REPLAYED
    assert accept(ports, call("a")) is Receipt.CONFLICTING
    assert queued(relay) == ["b"]


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_crash_anywhere_loses_nothing_that_is_sent_again(
    relay: Relay, ports: Ports, number: int, after: bool
) -> None:
    """Wherever the process dies, the sender's repeat leaves at least one message, and the answer tells the truth."""
    seen: list[str] = []

    def count_down(name: str) -> None:
        seen.append(name)
        if len(seen) == number:
            relay.fail(name, times=1, after=after, error=Crash())

    relay.before_call = count_down
    with pytest.raises(Crash):
        accept(ports)
    relay.before_call = lambda _: None
    receipt = accept(ports)
    assert set(queued(relay)) == {"a"}
    assert receipt is (Receipt.REPLAYED if (number, after) == (3, True) else Receipt.ACCEPTED)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_service_that_fails_once_loses_nothing(relay: Relay, ports: Ports, number: int, after: bool) -> None:
    """An error of one call, whether or not it took place, is no reason to refuse, and none to forget."""
    seen: list[str] = []

    def count_down(name: str) -> None:
        seen.append(name)
        if len(seen) == number:
            relay.fail(name, times=1, after=after)

    relay.before_call = count_down
    assert accept(ports) is Receipt.ACCEPTED
    assert set(queued(relay)) == {"a"}


def test_the_quarantine_keeps_what_nobody_understands_once(relay: Relay, ports: Ports) -> None:
    """Equal bodies are one item with its reason, listed for an operator; other bodies are others."""
    for body in (b"\x00odd", b"\x00odd", b"odder"):
        inbox.quarantine(ports, "cartelcrm.callback", body, "internal_id_invalid")
    items = relay.items("quarantine#cartelcrm.callback#").values()
    assert [zlib.decompress(item["body"]) for item in items] == [b"\x00odd", b"odder"]
    assert {item["reason"] for item in items} == {"internal_id_invalid"}
    assert len(relay.store.attention("QUARANTINE", limit=10)) == 2


def test_the_quarantine_keeps_the_beginning_of_what_no_item_can_hold(relay: Relay, ports: Ports) -> None:
    """An item of the table holds 400 KB."""
    body = random.Random(7).randbytes(1_000_000)
    inbox.quarantine(ports, "amocrm.hook", body, "id_invalid")
    [item] = relay.items("quarantine#").values()
    assert len(item["body"]) < 400_000
    assert body.startswith(zlib.decompress(item["body"]))


def test_what_cannot_be_put_into_quarantine_is_not_accepted(relay: Relay, ports: Ports) -> None:
    """An authentic body that nobody keeps must come again."""
    relay.fail("store")
    with pytest.raises(Unavailable, match=r"^nothing_durable$"):
        inbox.quarantine(ports, "cartelcrm.callback", b"odd", "internal_id_invalid")


@pytest.mark.parametrize("number", [1, 2])
def test_what_a_queue_did_not_take_of_many_is_in_the_outbox(relay: Relay, ports: Ports, number: int) -> None:
    """Each call is in one or the other, to be seen at once, and how many had to wait is told."""
    relay.fail("queue.send", times=number)
    inbox.make_all_durable(ports, [call(body) for body in "ab"[:number]])
    assert [(line["message"], line["missing"]) for line in relay.logs] == [("queue did not take messages", number)]
    assert len(relay.items("outbox#")) == number
    assert sorted(queued(relay)) == list("ab"[:number])
    assert {message.visible_at for message in relay.queues["leads"].messages.values()} == {START}
    inbox.make_all_durable(ports, [call("c")])
    assert not relay.items("outbox#")


def test_nobody_waits_for_what_need_not_wait(relay: Relay, ports: Ports) -> None:
    """Unless told otherwise a message can be seen at once, whichever way it took."""
    accept(ports)
    inbox.make_durable(ports, call("b"))
    relay.fail("queue")
    inbox.make_durable(ports, call("c"))
    assert sorted(queued(relay)) == ["a", "b", "c"]
    assert {message.visible_at for message in relay.queues["leads"].messages.values()} == {START}


def test_calls_and_copies_are_counted(ports: Ports, monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator sees how many came, and how many came again; a copy is no new call."""
    counted: list[str] = []
    monkeypatch.setattr(inbox, "count", counted.append)
    for body in "aab":
        accept(ports, call(body))
    assert counted == ["Received", "Replayed", "Replayed"]


def test_what_failed_on_the_way_is_told(relay: Relay, ports: Ports) -> None:
    """Nothing of it is lost, but an operator must be able to see why there were copies and detours."""
    relay.fail("store.put", times=1)
    relay.fail("queue.send", times=1)
    accept(ports)
    assert [line["message"] for line in relay.logs] == ["inbox not written", "queue did not take a message"]


def test_quarantine_tells_an_operator_every_time(relay: Relay, ports: Ports, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the key to find the body by; a body that is known already is told so."""
    told: list[tuple[str, dict[str, str]]] = []
    monkeypatch.setattr(inbox, "needs_attention", lambda problem, **facts: told.append((problem, facts)))
    key = f"quarantine#amocrm.hook#{hashlib.sha256(b'odd').hexdigest()}"
    for _ in range(2):
        inbox.quarantine(ports, "amocrm.hook", b"odd", "id_invalid")
    assert told == [("quarantined", {"key": key, "reason": "id_invalid"})] * 2
    assert [line["message"] for line in relay.logs] == ["already in quarantine"]
    assert relay.store.get(key)


def test_the_quarantine_keeps_a_body_for_ninety_days(relay: Relay, ports: Ports) -> None:
    """Time enough for somebody to come back from his holidays."""
    inbox.quarantine(ports, "amocrm.hook", b"odd", "id_invalid")
    [key] = relay.items("quarantine#")
    relay.clock.sleep(90 * DAY - 1)
    assert relay.store.get(key)
    relay.clock.sleep(1)
    assert not relay.store.get(key)


ODD = 'quotes " \\ / \n \r\n \t émoji 😀 עברית \u2028 \ufffe\uffff \x7f'


def test_an_envelope_survives_the_way_through_a_queue() -> None:
    """Whatever a caller wrote comes out as it went in; SQS carries neither U+FFFE nor U+FFFF."""
    envelope = call(ODD, key=ODD)
    text = envelope.encode()
    assert not {"\ufffe", "\uffff"} & set(text)
    assert Envelope.decode(text) == envelope


@pytest.mark.parametrize(
    "text",
    [
        "",
        "odd",
        "null",
        "[]",
        "1" * 5000,
        "[" * 100_000,
        "{}",
        call().encode().replace('"v":1', '"v":2'),
        call().encode().replace('"v":1', '"v":"1"'),
        call().encode().replace('"kind":"cartelcrm.lead"', '"kind":null'),
        call().encode().replace('"payload":{', '"payload":[{').replace("}}", "}]}"),
    ],
    ids=["empty", "text", "null", "array", "number", "deep", "object", "version", "type", "kind", "payload"],
)
def test_d02_what_is_no_envelope_is_told_apart(text: str) -> None:
    """D02: a body that is not ours, or of another version, is refused and breaks nothing."""
    with pytest.raises(NotOurs):
        Envelope.decode(text)


def test_an_envelope_tells_other_payloads_by_their_digest() -> None:
    """The digest is of the payload alone, whoever accepted it and whenever."""
    first, later = call("a"), Envelope("cartelcrm.lead", "e1", {"body": "a"}, int(START) + 5, "r-2")
    assert first.sha256 == later.sha256 != call("b").sha256


@dataclass(frozen=True)
class Trouble:
    """The port call with this `number` fails, before or after it took place, or the process dies there."""

    number: int
    after: bool
    dies: bool

    def strike(self, relay: Relay) -> None:
        """Lie in wait."""
        calls = 0

        def count(name: str) -> None:
            nonlocal calls
            calls += 1
            if calls == self.number:
                relay.fail(name, times=1, after=self.after, error=Crash() if self.dies else StorageError("down"))

        relay.before_call = count


class InboxMachine(RuleBasedStateMachine):
    """Senders who repeat, two at once, a worker and a drain, over stores that fail and processes that die.

    `owed` is what somebody was told that we have it: message bodies by key. It must be in the queue, in the outbox, or
    with the worker (`taken`), whatever happens.
    """

    troubles = st.none() | st.builds(Trouble, st.integers(1, 6), st.booleans(), st.booleans())
    calls = st.builds(call, st.sampled_from("ab"), key=st.sampled_from(["e1", "e2"]))
    remembered_for = 4 * 3600

    def __init__(self) -> None:
        super().__init__()
        self.relay = Relay()
        self.relay.__enter__()
        self.ports = self.relay._runtimes["leads"].ports
        self.owed: set[tuple[str, str]] = set()
        self.taken: Counter[tuple[str, str]] = Counter()
        self.known: dict[str, tuple[str, float]] = {}
        self.quarantined: set[bytes] = set()

    def teardown(self) -> None:
        """In the end all of it is in the queue, and the outbox is empty."""
        self.drained()
        assert not self.relay.items("outbox#")
        assert self.owed <= self.queued.keys() | self.taken.keys()
        self.relay.__exit__()

    @property
    def queued(self) -> Counter[tuple[str, str]]:
        return Counter(map(identity, (message.body for message in self.relay.queues["leads"].messages.values())))

    @property
    def durable(self) -> Counter[tuple[str, str]]:
        items = [item for key, item in self.relay.store.items.items() if key.startswith("outbox#")]
        return self.queued + self.taken + Counter(identity(outbox.kept_body(item).decode()) for item in items)

    def ends_well(self, trouble: Trouble | None, act: Callable[[], None]) -> bool:
        """Do something in trouble; tell whether it came to its end, so that the sender gets a 2xx."""
        if trouble:
            trouble.strike(self.relay)
        try:
            act()
            return True
        except (Crash, Unavailable):
            assert trouble, "a refusal without a reason"
            return False
        finally:
            self.relay.before_call = lambda _: None
            self.relay.mend()

    def accept(self, envelope: Envelope) -> Receipt:
        return inbox.accept(self.ports, envelope, remember=self.remembered_for)

    def drained(self) -> None:
        outbox.drain(self.ports, until=self.relay.clock.time() + 60)

    @rule(envelope=calls, trouble=troubles)
    def call(self, envelope: Envelope, trouble: Trouble | None) -> None:
        """A sender calls, for the first time or again."""
        before = self.durable
        body, until = self.known.get(envelope.key, ("", 0.0))
        receipts: list[Receipt] = []
        self.ends_well(trouble, lambda: receipts.append(self.accept(envelope)))
        receipt = receipts[0] if receipts else None
        this = envelope.key, envelope.sha256
        match receipt:
            case Receipt.ACCEPTED:
                assert self.durable[this] > before[this]
                self.owed.add(this)
            case Receipt.REPLAYED:
                assert before[this], "a copy of what we do not have"
                assert self.durable == before
                self.owed.add(this)
            case Receipt.CONFLICTING:
                assert any(key == envelope.key and sha256 != envelope.sha256 for key, sha256 in before)
                assert self.durable == before
            case None:
                pass
        if trouble is None and until > self.relay.clock.time():
            assert receipt is (Receipt.REPLAYED if body == envelope.sha256 else Receipt.CONFLICTING)
        elif trouble is None and receipt is Receipt.ACCEPTED:
            # Only a call that nothing disturbed is sure to be remembered, for as long as its first try said.
            until = self.relay.store.items[f"inbound#{envelope.name}"].expires_at or 0.0
            self.known[envelope.key] = envelope.sha256, until

    @rule(envelope=calls, other=calls, number=st.integers(1, 3))
    def call_during_a_call(self, envelope: Envelope, other: Envelope, number: int) -> None:
        """Two senders at once: the second one comes and goes before a port call of the first."""
        calls = 0

        def barge_in(_: str) -> None:
            nonlocal calls
            calls += 1
            if calls == number:
                self.relay.before_call = lambda _: None
                self.call(other, None)

        self.relay.before_call = barge_in
        receipt = self.accept(envelope)
        self.relay.before_call = lambda _: None
        if receipt is not Receipt.CONFLICTING:
            self.owed.add((envelope.key, envelope.sha256))

    @rule(envelope=calls, trouble=troubles)
    def put_by(self, envelope: Envelope, trouble: Trouble | None) -> None:
        """A receiver that needs no memory makes one call durable."""
        before = self.durable
        if self.ends_well(trouble, lambda: inbox.make_durable(self.ports, envelope)):
            self.owed.add((envelope.key, envelope.sha256))
            assert before + Counter([(envelope.key, envelope.sha256)]) <= self.durable

    @rule(envelopes=st.lists(calls, min_size=1, max_size=4), trouble=troubles)
    def put_all_by(self, envelopes: list[Envelope], trouble: Trouble | None) -> None:
        """A receiver makes many durable at once; the queue may take some of them."""
        before = self.durable
        if self.ends_well(trouble, lambda: inbox.make_all_durable(self.ports, envelopes)):
            these = Counter((envelope.key, envelope.sha256) for envelope in envelopes)
            self.owed |= these.keys()
            assert before + these <= self.durable

    @rule(body=st.sampled_from([b"odd", b"odder"]), trouble=troubles)
    def put_into_quarantine(self, body: bytes, trouble: Trouble | None) -> None:
        """A receiver keeps what it cannot read."""
        if self.ends_well(trouble, lambda: inbox.quarantine(self.ports, "amocrm.hook", body, "id_invalid")):
            self.quarantined.add(body)

    @rule(trouble=troubles)
    def drain(self, trouble: Trouble | None) -> None:
        """The outbox is emptied, or not."""
        self.ends_well(trouble, self.drained)

    @rule()
    def work(self) -> None:
        """A worker takes a message and is done with it."""
        for message in self.relay.queues["leads"].receive(limit=1, visibility=60):
            self.taken[identity(message.body)] += 1
            self.relay.queues["leads"].delete(message.id)

    @rule(seconds=st.sampled_from([1, 3600, remembered_for]))
    def time_passes(self, seconds: int) -> None:
        self.relay.clock.sleep(seconds)

    @invariant()
    def nothing_is_lost(self) -> None:
        assert self.owed <= self.durable.keys()

    @invariant()
    def what_is_in_quarantine_stands_there_once(self) -> None:
        kept = [zlib.decompress(item["body"]) for item in self.relay.items("quarantine#").values()]
        assert len(kept) == len(set(kept))
        assert self.quarantined <= set(kept)


def identity(body: str) -> tuple[str, str]:
    """Return the key and the digest of a message."""
    envelope = Envelope.decode(body)
    return envelope.key, envelope.sha256


InboxMachine.TestCase.settings = settings(stateful_step_count=30)
test_senders_in_any_order_lose_nothing = InboxMachine.TestCase
