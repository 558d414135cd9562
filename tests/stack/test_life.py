"""One stack at a time, and nothing is left of it, however it ends."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.stack.toy import eventually
from workbench.stack import AlreadyRunning, LocalStack, PortInUse, UnsupportedTemplate, running

TEMPLATE = """
Transform: AWS::Serverless-2016-10-31
Resources:
  SleepyFunction:
    Type: AWS::Serverless::Function
    Properties: {Runtime: python3.13, Handler: sleepy.handler, CodeUri: code, Timeout: 60}
  Queue:
    Type: AWS::SQS::Queue
"""
PROGRAM = """
import asyncio, sys
from pathlib import Path
from workbench.stack import LocalStack

async def main():
    async with LocalStack(template=Path(sys.argv[1]), port=0, state_dir=Path(sys.argv[2])) as stack:
        print(stack.url, flush=True)
        await stack.invoke("SleepyFunction", {})

asyncio.run(main())
"""


@pytest.fixture
def template(tmp_path: Path) -> Path:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "sleepy.py").write_text("import time\n\ndef handler(event, context):\n    time.sleep(50)\n")
    path = tmp_path / "template.yaml"
    path.write_text(TEMPLATE)
    return path


@pytest.fixture
def unsupported(template: Path) -> Path:
    template.write_text(TEMPLATE.replace("CodeUri: code", "InlineCode: pass"))
    return template


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@asynccontextmanager
async def started(template: Path, state: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """A stack in a process of its own that is busy with an invocation."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, template, state, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    assert process.stdout
    try:
        yield process, (await process.stdout.readline()).decode().strip()
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.mark.skipif(not Path("/proc").exists(), reason="finds children in /proc")
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
async def test_no_process_survives_the_stack(template: Path, tmp_path: Path, end: signal.Signals) -> None:
    """Not even when it is killed in the middle of an invocation; and then its note counts for nothing."""
    state = tmp_path / "state"
    async with started(template, state) as (process, url):
        note = running(state)
        assert note
        assert (note.pid, note.url) == (process.pid, url)
        children = descendants(process.pid)
        assert len(children) == 2
        process.send_signal(end)
        await process.wait()
        await eventually(lambda: not alive(children))
        assert running(state) is None


async def test_a_second_start_says_who_runs(template: Path, tmp_path: Path) -> None:
    """With the process and the address of the first."""
    state = tmp_path / "state"
    async with started(template, state) as (process, url):
        with pytest.raises(AlreadyRunning, match=url) as refusal:
            await LocalStack(template=template, port=0, state_dir=state).__aenter__()
        assert refusal.value.pid == process.pid


async def test_a_port_in_use_is_named(template: Path, tmp_path: Path, taken_port: int) -> None:
    """Before anything else has started; and the state directory is free again."""
    with pytest.raises(PortInUse, match=str(taken_port)):
        await LocalStack(template=template, port=taken_port, state_dir=tmp_path / "state").__aenter__()
    assert running(tmp_path / "state") is None


async def test_a_template_that_cannot_run_here_is_refused(unsupported: Path, tmp_path: Path) -> None:
    """With what and where; nothing stays behind."""
    before = descendants(os.getpid())
    with pytest.raises(UnsupportedTemplate, match="SleepyFunction"):
        await LocalStack(template=unsupported, port=0, state_dir=tmp_path / "state").__aenter__()
    assert descendants(os.getpid()) == before


def alive(pids: set[int]) -> set[int]:
    return {pid for pid in pids if Path(f"/proc/{pid}").exists()}


def descendants(pid: int) -> set[int]:
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[0] != "Z":
            parents[int(stat.parent.name)] = int(fields[1])
    found: set[int] = set()
    while more := {child for child, parent in parents.items() if parent in found | {pid}} - found:
        found |= more
    return found
