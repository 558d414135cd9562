"""The outbox: what SQS did not take gets there after all, at least once."""

import pytest

from crm_relay.delivery import outbox
from crm_relay.delivery.ports import Ports, StorageError
from tests.relay import START, Crash, Relay


@pytest.fixture
def ports(relay: Relay) -> Ports:
    return relay._runtimes["leads"].ports


def keep(ports: Ports, *bodies: str, queue: str = "leads", delay: int = 0) -> None:
    for body in bodies:
        outbox.keep(ports, "cartelcrm.lead", body, ports.queue_at(queue), delay=delay)


def drain(ports: Ports, *, seconds: float = 60) -> tuple[int, int]:
    return outbox.drain(ports, until=START + seconds)


def bodies(relay: Relay, queue: str = "leads") -> list[str]:
    return sorted(message.body for message in relay.queues[queue].messages.values())


def test_what_is_kept_is_sent_and_forgotten(relay: Relay, ports: Ports) -> None:
    """A drain empties the outbox into the queues; the next one finds nothing."""
    keep(ports, "a", "b", "c")
    assert drain(ports) == (3, 0)
    assert bodies(relay) == ["a", "b", "c"]
    assert relay.items("outbox#") == {}
    assert drain(ports) == (0, 0)


def test_each_message_goes_to_its_own_queue(relay: Relay, ports: Ports) -> None:
    """One outbox serves all queues."""
    keep(ports, "lead")
    keep(ports, "callback", queue="callbacks")
    assert drain(ports) == (2, 0)
    assert (bodies(relay, "leads"), bodies(relay, "callbacks")) == (["lead"], ["callback"])


def test_the_delay_is_kept(relay: Relay, ports: Ports) -> None:
    """A message that was to be seen later is not seen at once."""
    keep(ports, "a", delay=30)
    drain(ports)
    assert [message.visible_at for message in relay.queues["leads"].messages.values()] == [START + 30]


def test_equal_messages_are_kept_apart(relay: Relay, ports: Ports) -> None:
    """Two calls with the same body are two messages: the ledger tells copies apart, not the outbox."""
    keep(ports, "a", "a")
    assert drain(ports) == (2, 0)
    assert bodies(relay) == ["a", "a"]


def test_the_oldest_of_a_partition_goes_first(relay: Relay, ports: Ports) -> None:
    """What has waited longest is not passed by."""
    for number in range(30):
        keep(ports, str(number))
        relay.clock.sleep(1)
    assert outbox.drain(ports, until=relay.clock.time() + 1) == (30, 0)
    for shard in range(outbox.SHARDS):
        assert relay.store.attention(f"OUTBOX#{shard}", limit=1) == []
    sent = [message.body for message in relay.queues["leads"].messages.values()]
    assert sorted(sent, key=int) == [str(number) for number in range(30)]


def test_messages_spread_over_all_partitions_of_the_index(relay: Relay, ports: Ports) -> None:
    """An outage of SQS must not throttle the table through one partition of its index."""
    keep(ports, *map(str, range(300)))
    sizes = [len(relay.store.attention(f"OUTBOX#{shard}", limit=300)) for shard in range(outbox.SHARDS)]
    assert sum(sizes) == 300
    assert min(sizes) > 0


def test_a_queue_that_is_still_down_keeps_its_messages(relay: Relay, ports: Ports) -> None:
    """Nothing is forgotten that was not sent, and the failures are told."""
    keep(ports, "a", "b")
    relay.fail("queue.send")
    assert drain(ports) == (0, 2)
    relay.mend()
    assert drain(ports) == (2, 0)
    assert bodies(relay) == ["a", "b"]


def test_one_message_that_fails_does_not_hold_up_the_others(relay: Relay, ports: Ports) -> None:
    """A drain goes on after a failure."""
    keep(ports, "a", "b", "c")
    relay.fail("queue.send", times=1)
    assert drain(ports) == (2, 1)
    assert drain(ports) == (1, 0)
    assert bodies(relay) == ["a", "b", "c"]


@pytest.mark.parametrize("call", ["store.get", "queue.send", "store.delete"])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("error", [StorageError("down"), Crash()])
def test_a_failure_or_a_crash_anywhere_sends_twice_rather_than_never(
    relay: Relay, ports: Ports, call: str, after: bool, error: BaseException
) -> None:
    """Between sending and forgetting, the only harm is a copy."""
    keep(ports, "a")
    relay.fail(call, times=1, after=after, error=error)
    try:
        drain(ports)
    except Crash:
        assert isinstance(error, Crash)
    drain(ports)
    assert set(bodies(relay)) == {"a"}
    assert len(bodies(relay)) <= 2
    assert relay.items("outbox#") == {}


def test_a_drain_stops_in_time(relay: Relay, ports: Ports) -> None:
    """It ends before its function does; the rest waits for the next minute."""
    keep(ports, "a", "b", "c")
    relay.before_call = lambda name: relay.clock.sleep(10) if name == "queue.send" else None
    assert drain(ports, seconds=15) == (2, 0)
    assert len(relay.items("outbox#")) == 1


def test_what_cannot_be_kept_is_not_kept_silently(relay: Relay, ports: Ports) -> None:
    """Without table the caller learns that nothing is durable."""
    relay.fail("store")
    with pytest.raises(StorageError):
        keep(ports, "a")


def test_the_drain_function_alarms_while_it_cannot_send(relay: Relay, ports: Ports) -> None:
    """An operator hears of an outbox that does not empty, and only then."""
    assert relay.invoke("outbox_drain", {}) == {"sent": 0, "failed": 0}
    keep(ports, "a")
    relay.fail("queue")
    assert relay.invoke("outbox_drain", {}) == {"sent": 0, "failed": 1}
    assert relay.metrics["AttentionNeeded"] == 1
    relay.mend()
    assert relay.invoke("outbox_drain", {}) == {"sent": 1, "failed": 0}
    assert relay.metrics["AttentionNeeded"] == 1


def test_the_drain_function_leaves_itself_time_to_end(relay: Relay, ports: Ports) -> None:
    """With five seconds left it starts nothing more."""
    keep(ports, "a")
    assert relay.invoke("outbox_drain", {}, seconds=5) == {"sent": 0, "failed": 0}
    assert relay.invoke("outbox_drain", {}, seconds=6) == {"sent": 1, "failed": 0}
