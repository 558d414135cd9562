"""A stack for each worker, and at the end the list of all boundaries."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.crash.crashing import Crashing


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def crashing(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Crashing]:
    """The stack."""
    async with Crashing.started(tmp_path_factory.mktemp("crash")) as crashing:
        yield crashing


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """List the boundaries that were found, by function and by what happened to it."""
    for report in terminalreporter.getreports("passed"):
        for name, found in report.user_properties:
            if found:
                terminalreporter.write_line(f"{name}: {len(found)} boundaries: {', '.join(found)}")
