"""A running toy stack, shared by all tests of a session."""

from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio

from tests.stack.toy import TEMPLATE, Toy
from workbench.stack import LocalStack


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def toy(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Toy]:
    state = tmp_path_factory.mktemp("state")
    seen = state / "seen.jsonl"
    seen.touch()
    logs: list[tuple[str, str]] = []
    stack = LocalStack(
        template=TEMPLATE,
        port=0,
        state_dir=state,
        environment={"SEEN": str(seen)},
        on_log=lambda function, line: logs.append((function, line)),
    )
    async with stack, httpx.AsyncClient(base_url=stack.url, timeout=40) as http:
        yield Toy(stack, http, seen, logs)
