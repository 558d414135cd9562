"""Queues, buses and schedules bring their events to functions as AWS does."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.stack.toy import TEMPLATE, Toy, eventually
from workbench.stack import LocalStack

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_a_message_arrives_in_the_shape_of_sqs(toy: Toy) -> None:
    """With its attributes, hash and source."""
    await asyncio.to_thread(
        toy.stack.client("sqs").send_message,
        QueueUrl=toy.stack.outputs["WorkQueueUrl"],
        MessageBody='{"name": "shape"}',
        MessageAttributes={
            "reason": {"DataType": "String", "StringValue": "why not"},
            "raw": {"DataType": "Binary", "BinaryValue": b"\0\1"},
        },
    )
    [note] = await eventually(lambda: toy.seen("shape"))
    record = note["record"]
    assert record["body"] == '{"name": "shape"}'
    assert record["attributes"]["ApproximateReceiveCount"] == "1"
    assert int(record["attributes"]["SentTimestamp"]) > 1_700_000_000_000
    nothing: dict[str, list[str]] = {"stringListValues": [], "binaryListValues": []}
    assert record["messageAttributes"] == {
        "reason": {"dataType": "String", "stringValue": "why not", **nothing},
        "raw": {"dataType": "Binary", "binaryValue": "AAE=", **nothing},
    }
    assert record["eventSource"] == "aws:sqs"
    assert record["eventSourceARN"] == toy.stack.blueprint.queues["WorkQueue"]
    assert record["awsRegion"] == "eu-central-1"
    assert record.keys() >= {"messageId", "receiptHandle", "md5OfBody", "md5OfMessageAttributes"}


async def test_only_the_message_that_failed_comes_again(toy: Toy) -> None:
    """After its visibility timeout; the others of its batch are done."""
    await toy.send({"name": "good"}, {"name": "bad", "fail": 1}, {"name": "fine"})
    await eventually(lambda: len(toy.seen("bad")) == 2)
    assert [note["tries"] for note in toy.seen("bad")] == [1, 2]
    assert [note["batch"] for note in toy.seen("bad")] == [3, 1]
    assert [len(toy.seen(name)) for name in ("good", "fine")] == [1, 1]
    await eventually(lambda: is_empty(toy, "WorkQueue"))


async def test_a_batch_stops_at_its_size(toy: Toy) -> None:
    """Seven messages are a batch of five and one of two."""
    await toy.send(*({"name": "crowd"} for _ in range(7)))
    notes = await eventually(lambda: len(toy.seen("crowd")) == 7 and toy.seen("crowd"))
    assert sorted(note["batch"] for note in notes) == [2, 2, 5, 5, 5, 5, 5]


async def test_a_crash_brings_the_whole_batch_again(toy: Toy) -> None:
    """Nothing of it is deleted."""
    await toy.send({"name": "innocent"}, {"name": "crasher", "crash": True})
    await eventually(lambda: [note["tries"] for note in toy.seen("crasher")] == [1, 2])
    await eventually(lambda: toy.seen("innocent")[-1]["tries"] == 2)
    await eventually(lambda: is_empty(toy, "WorkQueue"))


async def test_a_message_that_always_fails_becomes_a_dead_letter(toy: Toy) -> None:
    """After as many receives as the queue allows."""
    await toy.send({"name": "poison", "fail": 99})
    await eventually(lambda: holds(toy, "WorkDeadLetterQueue", 1))
    assert [note["tries"] for note in toy.seen("poison")] == [1, 2, 3]


async def test_a_rule_brings_an_event_through_its_queue(toy: Toy) -> None:
    """The whole event is the body of the message."""
    await toy.publish("Queued", {"name": "from the bus"})
    [note] = await eventually(lambda: toy.seen("from the bus"))
    assert '"detail-type": "Queued"' in note["record"]["body"]


async def test_a_rule_brings_an_event_straight_to_its_function(toy: Toy) -> None:
    """What `InputPath` says of it; an event that no rule wants goes nowhere."""
    await toy.publish("Unwanted", {"kind": "unwanted"})
    await toy.publish("Direct", {"kind": "direct", "n": 1})
    [note] = await eventually(lambda: toy.seen("direct"))
    assert note["event"] == {"kind": "direct", "n": 1}
    assert not toy.seen("unwanted")


async def test_a_rule_that_is_off_brings_nothing(toy: Toy) -> None:
    """Though it would want everything."""
    await toy.publish("Off", {"name": "off"})
    await toy.publish("Queued", {"name": "after off"})
    await eventually(lambda: toy.seen("after off"))
    assert not toy.seen("off")


async def test_everything_published_can_be_watched(toy: Toy) -> None:
    """By any number of watchers, whether a rule wants it or not."""
    first, second = toy.stack.events(), toy.stack.events()
    await toy.publish("Watched", {"n": 1})
    for watch in (first, second):
        async with asyncio.timeout(10):
            async for published in watch:
                if published.event["detail-type"] == "Watched":
                    break
        assert (published.bus, published.event["detail"]) == ("ToyBus", {"n": 1})
        watch.close()


async def test_a_schedule_fires(toy: Toy) -> None:
    """A rate at once when the stack comes up, and whenever it is told to; its input has the time in it."""
    [first, *_] = await eventually(lambda: toy.seen("tick"))
    assert abs(datetime.now(UTC) - datetime.fromisoformat(first["event"]["at"])).total_seconds() < 600
    before = len(toy.seen("tick"))
    await toy.stack.tick("ListenFunctionHourly")
    assert len(toy.seen("tick")) == before + 1
    assert [schedule.name for schedule in toy.stack.blueprint.schedules] == ["ListenFunctionHourly"]


async def test_parameters_and_the_clock_come_from_outside(tmp_path: Path) -> None:
    """A condition that a parameter makes true brings a function to life; hours pass in a moment."""
    seen = tmp_path / "seen.jsonl"
    time = datetime(2026, 5, 1, 12, tzinfo=UTC)
    enough = asyncio.Event()

    async def sleep(seconds: float) -> None:
        nonlocal time
        time += timedelta(seconds=seconds)
        if time.hour > 14:
            await enough.wait()

    stack = LocalStack(
        template=TEMPLATE,
        parameters={"Extras": "yes", "Greeting": "good morning"},
        environment={"SEEN": str(seen)},
        port=0,
        state_dir=tmp_path / "state",
        now=lambda: time,
        sleep=sleep,
    )
    async with stack:
        environment = stack.functions["ExtraFunction"].plan.environment
        assert environment["EXTRAS"] == "with extras"
        assert environment["GREETING"] == "good morning from crm-relay-local"
        await eventually(lambda: seen.exists() and seen.read_text().count("\n") == 3)
        notes = [json.loads(line)["event"]["at"] for line in seen.read_text().splitlines()]
        assert sorted(notes) == ["2026-05-01T12:00:00Z", "2026-05-01T13:00:00Z", "2026-05-01T14:00:00Z"]


async def holds(toy: Toy, queue: str, messages: int) -> bool:
    depth = (await toy.stack.status())["queues"][queue]
    return bool(depth["visible"] == messages)


async def is_empty(toy: Toy, queue: str) -> bool:
    return not any((await toy.stack.status())["queues"][queue].values())
