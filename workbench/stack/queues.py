"""Event source mappings: messages of queues brought to functions with the semantics of Lambda's pollers.

Facts: docs.aws.amazon.com, "Using Lambda with Amazon SQS" and "Handling errors for an SQS event source".
"""

import asyncio
import json
import logging
import math
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any

from workbench.stack.blueprint import QueueSource, RuleTap
from workbench.stack.cloud import Cloud, CloudError
from workbench.stack.environments import FunctionError
from workbench.stack.functions import EventTooLarge, Function

type Message = dict[str, Any]
# Gets a batch, returns those of it that are dealt with.
type Handler = Callable[[Sequence[Message]], Awaitable[Collection[Message]]]

LONG_POLL = 5
_ASYNCHRONOUS_TRIES = 3
_BREATH = 0.5
_log = logging.getLogger(__name__)


async def drain(
    cloud: Cloud, queue_arn: str, handle: Handler, *, size: int = 10, window: int = 0, concurrency: int = 1
) -> None:
    """Bring the messages of a queue to `handle` for ever, in batches, and delete those that it has dealt with.

    At most `concurrency` batches are under way. A batch is complete with `size` messages, or `window` seconds after
    its first one.
    """
    free = asyncio.Semaphore(concurrency)

    async def deliver(batch: Sequence[Message]) -> None:
        try:
            done = await handle(batch)
            await _delete(cloud, queue_arn, done)
        except CloudError as error:
            _log.warning("messages will come again: %s", error)
        finally:
            free.release()

    async with asyncio.TaskGroup() as deliveries:
        while True:
            await free.acquire()
            while not (batch := await _batch(cloud, queue_arn, size, window)):
                pass
            deliveries.create_task(deliver(batch))


async def _batch(cloud: Cloud, queue_arn: str, size: int, window: int) -> list[Message]:
    clock = asyncio.get_running_loop().time
    batch = await _receive(cloud, queue_arn, size, LONG_POLL)
    end = clock() + window
    while batch and len(batch) < size and (left := end - clock()) > 0:
        batch += await _receive(cloud, queue_arn, size - len(batch), min(LONG_POLL, math.ceil(left)))
    return batch


async def _receive(cloud: Cloud, queue_arn: str, most: int, wait: int) -> list[Message]:
    try:
        answer = await cloud.sqs(
            "ReceiveMessage",
            queue_arn,
            MaxNumberOfMessages=min(10, most),
            WaitTimeSeconds=wait,
            AttributeNames=["All"],
            MessageAttributeNames=["All"],
        )
    except CloudError as error:
        _log.warning("%s", error)
        await asyncio.sleep(_BREATH)
        return []
    messages: list[Message] = answer.get("Messages", [])
    return messages


async def _delete(cloud: Cloud, queue_arn: str, messages: Collection[Message]) -> None:
    entries = [{"Id": str(n), "ReceiptHandle": message["ReceiptHandle"]} for n, message in enumerate(messages)]
    for start in range(0, len(entries), 10):
        await cloud.sqs("DeleteMessageBatch", queue_arn, Entries=entries[start : start + 10])


def to_function(source: QueueSource, function: Function, region: str) -> Handler:
    """Handle batches by invoking a function; what it does not report as failed is dealt with."""

    async def handle(batch: Sequence[Message]) -> Collection[Message]:
        try:
            answer = await function.invoke(
                {"Records": [record(message, source.queue_arn, region) for message in batch]}
            )
        except (FunctionError, EventTooLarge) as error:
            _log.warning("%s failed with %d messages: %s", function.plan.name, len(batch), error)
            return ()
        return succeeded(batch, answer) if source.partial_failures else batch

    return handle


def record(message: Message, queue_arn: str, region: str) -> dict[str, Any]:
    """A message as functions see it."""
    return {
        "messageId": message["MessageId"],
        "receiptHandle": message["ReceiptHandle"],
        "body": message["Body"],
        "attributes": message["Attributes"],
        "messageAttributes": {name: _attribute(each) for name, each in message.get("MessageAttributes", {}).items()},
        **(
            {"md5OfMessageAttributes": message["MD5OfMessageAttributes"]} if "MD5OfMessageAttributes" in message else {}
        ),
        "md5OfBody": message["MD5OfBody"],
        "eventSource": "aws:sqs",
        "eventSourceARN": queue_arn,
        "awsRegion": region,
    }


def _attribute(attribute: dict[str, Any]) -> dict[str, Any]:
    values = {name[0].lower() + name[1:]: value for name, value in attribute.items()}
    return {**values, "stringListValues": [], "binaryListValues": []}


def succeeded(batch: Sequence[Message], answer: Any) -> Collection[Message]:
    """The messages that a function with `ReportBatchItemFailures` did not report; none if its report makes no sense."""
    if answer is None or answer == {}:
        return batch
    try:
        failed = {failure["itemIdentifier"] for failure in answer.get("batchItemFailures") or ()}
    except (AttributeError, TypeError, KeyError):
        return ()
    if failed - {message["MessageId"] for message in batch}:
        return ()
    return [message for message in batch if message["MessageId"] not in failed]


def to_rule_target(tap: RuleTap, function: Function, cloud: Cloud) -> Handler:
    """Handle the events of a bus that a rule chose for a function, one by one.

    It is an asynchronous invocation: tried again after one and after two more minutes, then dropped.
    """

    async def handle(batch: Sequence[Message]) -> Collection[Message]:
        [message] = batch
        try:
            await function.invoke(json.loads(message["Body"]))
        except (FunctionError, EventTooLarge) as error:
            tries = int(message["Attributes"]["ApproximateReceiveCount"])
            _log.warning("%s: %s failed at try %d: %s", tap.name, function.plan.name, tries, error)
            if tries < _ASYNCHRONOUS_TRIES:
                pause = {"ReceiptHandle": message["ReceiptHandle"], "VisibilityTimeout": 60 * tries}
                await cloud.sqs("ChangeMessageVisibility", tap.queue_arn, **pause)
                return ()
        return batch

    return handle
