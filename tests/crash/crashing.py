"""The local stack whose time leaps, and whose functions die where they are told to."""

import asyncio
import os
import struct
import sys
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Self

import pytest

from tests.canaries import found_in_logs
from tests.crash.jobs import Job, Unanswered
from workbench.local_relay import LocalRelay
from workbench.stack import FunctionError, environments, functions
from workbench.stack.functions import Function
from workbench.stack.queues import drain

ROOT = Path(__file__).parents[2]
LEAP = 4_000.0
"""Seconds: longer than any message is invisible, any lease lasts, and anything read is remembered."""

_PROCESS = Path(__file__).with_name("process")
_PATIENCE = 120.0
_LOOK_EVERY = 0.03
_RESTS = 6


class Crashing:
    """A running relay. `boundaries` of a job are found by letting it happen; then it is let `crash` at one of them."""

    def __init__(self, folder: Path) -> None:
        self.relay: LocalRelay
        self._folder = folder
        self._clock = folder / "clock"
        self._clock.write_bytes(struct.pack("d", 0.0))
        self._leapt = 0.0
        self._under_way = 0

    @classmethod
    @asynccontextmanager
    async def started(cls, folder: Path) -> AsyncIterator[Self]:
        """Run everything for as long as the block lasts."""
        here = cls(folder)
        with pytest.MonkeyPatch.context() as patch:
            here._watch_functions(patch)
            here._let_time_leap(patch)
            template, config = ROOT / "template.yaml", ROOT / "layers/configuration/relay.toml"
            async with LocalRelay.started(template=template, config=config, state=folder / "relay", port=0) as relay:
                here.relay = relay
                await here._settled()  # what the schedules do at once
                yield here

    def _watch_functions(self, patch: pytest.MonkeyPatch) -> None:
        variables_of, invoke = environments.variables_of, Function.invoke

        def variables(*given: Any) -> dict[str, str]:
            told = variables_of(*given)
            return {**told, "PYTHONPATH": f"{_PROCESS}:{told['PYTHONPATH']}", "CRASH_FOLDER": str(self._folder)}

        async def counted(function: Function, event: Any) -> Any:
            self._under_way += 1
            try:
                return await invoke(function, event)
            finally:
                self._under_way -= 1

        patch.setattr(functions, "variables_of", variables)
        patch.setattr(Function, "invoke", counted)

    def _let_time_leap(self, patch: pytest.MonkeyPatch) -> None:
        now = time.time

        def drained(*given: Any, **more: Any) -> Awaitable[None]:
            return drain(*given, **{**more, "window": 0})  # it would only be waited for

        patch.setattr(time, "time", lambda: now() + self._leapt)
        patch.setattr("workbench.stack.local.drain", drained)
        patch.setenv("CRASH_FOLDER", str(self._folder))  # the cloud's process takes these from ours
        patch.setenv("PYTHONPATH", f"{_PROCESS}:{os.environ.get('PYTHONPATH', '')}".rstrip(":"))

    # Crashes

    @asynccontextmanager
    async def quick_starts(self, function: str) -> AsyncIterator[None]:
        """Start all processes of a function as forks of one that has loaded it."""
        started = self.relay.stack.functions[function]
        place = self._folder / f"{function}.mould"
        mould = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", str(_PROCESS / "mould.py"), started.plan.handler),
            str(place),
            env={**started._variables, "AWS_LAMBDA_RUNTIME_API": ""},
            cwd=started.plan.code,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert mould.stdout
        assert await mould.stdout.readline()
        try:
            yield
        finally:
            mould.kill()
            await mould.wait()
            place.unlink()

    async def boundaries(self, function: str, job: Job) -> list[str]:
        """Let a job happen to a new process of a function; return the names of its I/O calls, each once."""
        await self._prepare(job)
        self._restart(function)
        calls = self._folder / f"{function}.calls"
        before = len(_lines(calls))
        await self._done(job)
        return [line for line in dict.fromkeys(_lines(calls)[before:]) if line != "invocation"]

    async def crash(self, function: str, job: Job, where: str, *, cold: bool = False) -> bool:
        """Let a job happen while `function` dies at a boundary ("after PutItem effect 1"); tell whether it did.

        A process that is not new (`cold`) may have some calls behind it.
        """
        await self._prepare(job)
        if cold:
            self._restart(function)
        armed = self._folder / f"{function}.armed"
        fired = armed.with_suffix(".fired")
        fired.unlink(missing_ok=True)
        armed.write_text(where)
        await self._done(job)
        armed.unlink(missing_ok=True)
        return fired.exists()

    def _restart(self, function: str) -> None:
        self.relay.stack.functions[function].kill()

    async def calm(self, job: Job) -> None:
        """Let time pass until nothing more comes of a job."""
        await self._leap(job)
        await self._settled()

    def canaries(self) -> list[str]:
        """Find secrets and personal data in what the functions have logged so far."""
        return found_in_logs(self._folder / "relay/logs", self.relay.keys)

    async def dead_letters(self) -> int:
        """Count what was given up."""
        return sum(sum(depth.values()) for name, depth in (await self._queues()).items() if "DeadLetter" in name)

    async def _prepare(self, job: Job) -> None:
        await job.prepare()
        await self._settled()
        self._leap_by(LEAP)  # nothing that was read on the way is remembered

    async def _done(self, job: Job) -> None:
        """Let a job happen until all of it has been worked off, however long the relay's own clocks make it wait."""
        try:
            async with asyncio.timeout(_PATIENCE):
                while not await self._has_happened(job):
                    await self._leap(job)
                while not (await job.effects() and await self._is_empty()):
                    if await self._rests():
                        await self._leap(job)
        except TimeoutError:
            pytest.fail(
                f"no end within {_PATIENCE:.0f} s: {await job.effects()} effects, queues {await self._queues()}"
            )

    @staticmethod
    async def _has_happened(job: Job) -> bool:
        try:
            await job.happen()
        except (Unanswered, FunctionError):
            return False
        return True

    async def _settled(self) -> None:
        async with asyncio.timeout(_PATIENCE):
            while not (await self._rests() and await self._is_empty()):
                if not self._under_way:
                    self._leap_by(LEAP)

    async def _leap(self, job: Job) -> None:
        self._leap_by(LEAP)
        with suppress(FunctionError):
            await job.later()

    def _leap_by(self, seconds: float) -> None:
        self._leapt += seconds
        with self._clock.open("r+b") as clock:  # in its place: processes have it in their memory
            clock.write(struct.pack("d", self._leapt))

    async def _is_empty(self) -> bool:
        """Tell whether all messages have been worked off."""
        if self._under_way:
            return False
        return not any(
            sum(depth.values()) for name, depth in (await self._queues()).items() if "DeadLetter" not in name
        )

    async def _queues(self) -> dict[str, dict[str, int]]:
        queues: dict[str, dict[str, int]] = (await self.relay.stack.status())["queues"]
        return queues

    async def _rests(self) -> bool:
        """Tell whether no function works, and goes on not to."""
        for _ in range(_RESTS):
            if self._under_way:
                await asyncio.sleep(_LOOK_EVERY)
                return False
            await asyncio.sleep(_LOOK_EVERY)
        return True


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []
