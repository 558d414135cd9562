"""A running toy stack in tests, and the means to wait for what it does."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx

from workbench.stack import LocalStack

TEMPLATE = Path(__file__).parents[1] / "fixtures" / "toy_stack" / "template.yaml"


async def eventually(probe: Callable[[], Any], within: float = 30.0) -> Any:
    """Ask until the answer is true, and return it; an answer that stays false fails. `probe` may be asynchronous."""
    async with asyncio.timeout(within):
        while True:
            found = probe()
            if isinstance(found, Awaitable):
                found = await found
            if found:
                return found
            await asyncio.sleep(0.05)


class Toy:
    """The toy stack with a client for its API, what its functions have noted, and their logs."""

    def __init__(self, stack: LocalStack, http: httpx.AsyncClient, seen: Path, logs: list[tuple[str, str]]) -> None:
        self.stack = stack
        self.http = http
        self.logs = logs
        self._seen = seen

    def seen(self, name: str) -> list[dict[str, Any]]:
        """What the functions have noted under a name, oldest first."""
        notes = [json.loads(line) for line in self._seen.read_text("utf-8").splitlines()]
        return [note for note in notes if note["name"] == name]

    async def send(self, *orders: dict[str, Any]) -> None:
        """Put messages into the work queue, all in one call."""
        entries = [{"Id": str(n), "MessageBody": json.dumps(order)} for n, order in enumerate(orders)]
        url = self.stack.outputs["WorkQueueUrl"]
        await asyncio.to_thread(self.stack.client("sqs").send_message_batch, QueueUrl=url, Entries=entries)

    async def publish(self, detail_type: str, detail: dict[str, Any]) -> None:
        """Put an event on the toy bus."""
        entry = {
            "Source": "toys",
            "DetailType": detail_type,
            "Detail": json.dumps(detail),
            "EventBusName": self.stack.outputs["BusName"],
        }
        await asyncio.to_thread(self.stack.client("events").put_events, Entries=[entry])
