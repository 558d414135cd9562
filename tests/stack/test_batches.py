"""How messages become a batch, and what a function's report about it means."""

import asyncio
from collections.abc import Collection, Sequence
from typing import Any, cast

import pytest

from workbench.stack.queues import Message, drain, succeeded

BATCH = [{"MessageId": "a"}, {"MessageId": "b"}]


@pytest.mark.parametrize(
    ("answer", "done"),
    [
        (None, "ab"),
        ({}, "ab"),
        ({"batchItemFailures": []}, "ab"),
        ({"batchItemFailures": None}, "ab"),
        ({"statusCode": 200}, "ab"),
        ({"batchItemFailures": [{"itemIdentifier": "a"}]}, "b"),
        ({"batchItemFailures": [{"itemIdentifier": "a"}, {"itemIdentifier": "b"}]}, ""),
        ({"batchItemFailures": [{"itemIdentifier": ""}]}, ""),
        ({"batchItemFailures": [{"itemIdentifier": None}]}, ""),
        ({"batchItemFailures": [{"itemIdentifier": "c"}]}, ""),
        ({"batchItemFailures": [{"wrong": "a"}]}, ""),
        ({"batchItemFailures": "a"}, ""),
        ("a word", ""),
    ],
)
def test_a_report_decides_what_is_deleted(answer: object, done: str) -> None:
    """A report that makes no sense brings the whole batch again, as on AWS."""
    assert "".join(message["MessageId"] for message in succeeded(BATCH, answer)) == done


class ScriptedQueue:
    """Gives what it was told to, receive by receive, and remembers what was asked and deleted."""

    def __init__(self, *receives: str) -> None:
        self._receives = list(receives)
        self.asked: list[int] = []
        self.deleted = ""

    async def sqs(self, action: str, _queue_arn: str, **parameters: Any) -> dict[str, Any]:
        if action == "DeleteMessageBatch":
            self.deleted += "".join(entry["ReceiptHandle"] for entry in parameters["Entries"])
            return {}
        self.asked.append(parameters["MaxNumberOfMessages"])
        if not self._receives:
            await asyncio.Event().wait()
        return {"Messages": [{"MessageId": name, "ReceiptHandle": name} for name in self._receives.pop(0)]}


async def batches_of(queue: ScriptedQueue, expected: int, *, size: int, window: int) -> list[str]:
    batches: list[str] = []
    complete = asyncio.Event()

    async def handle(batch: Sequence[Message]) -> Collection[Message]:
        batches.append("".join(message["MessageId"] for message in batch))
        if len(batches) == expected:
            complete.set()
        return batch[:1]

    poller = asyncio.create_task(drain(cast("Any", queue), "arn", handle, size=size, window=window))
    async with asyncio.timeout(10):
        await complete.wait()
    poller.cancel()
    await asyncio.wait([poller])
    return batches


async def test_a_batch_is_complete_with_its_size() -> None:
    """Within its window, however many receives it takes; no more is asked for than fits."""
    queue = ScriptedQueue("ab", "", "cd", "e", "fghij")
    assert await batches_of(queue, 2, size=5, window=60) == ["abcde", "fghij"]
    assert queue.asked[:5] == [5, 3, 3, 1, 5]


async def test_without_a_window_a_batch_is_what_was_there() -> None:
    """Nobody waits for more."""
    queue = ScriptedQueue("ab", "", "c")
    assert await batches_of(queue, 2, size=5, window=0) == ["ab", "c"]


async def test_only_what_is_dealt_with_is_deleted() -> None:
    """The handler says what that is."""
    queue = ScriptedQueue("ab", "cd", "e")
    await batches_of(queue, 3, size=2, window=0)
    assert queue.deleted.startswith("ac")
