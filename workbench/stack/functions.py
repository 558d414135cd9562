"""Functions: as many processes as their work needs, up to a cap, kept warm between invocations."""

import asyncio
import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from workbench.stack.blueprint import FunctionPlan
from workbench.stack.environments import PAYLOAD_LIMIT, Environment, FunctionError, variables_of

_PATIENCE = 0.3
"""Seconds for which an invocation waits for a process that is at work: to start another takes longer."""

type LogListener = Callable[[str, str], None]


class EventTooLarge(Exception):
    """The event exceeds what Lambda takes in one call."""


class Function:
    """A function of the template.

    Args:
        plan: what the template says of it.
        region: where it believes to be.
        shared: environment variables that override the template's.
        concurrency: how many processes there may be at once; further invocations wait.
        log: the file that gets every line of its output, from this start on.
        listener: told (function, line) of every line, too.
    """

    def __init__(
        self,
        plan: FunctionPlan,
        *,
        region: str,
        shared: Mapping[str, str],
        concurrency: int,
        log: Path,
        listener: LogListener | None = None,
    ) -> None:
        self.plan = plan
        self.invocations = 0
        self.errors = 0
        self.last_error: str | None = None
        self._region = region
        self._variables = variables_of(plan, region, shared, os.environ.get("PATH", os.defpath))
        self._free = asyncio.Semaphore(concurrency)
        self._log_file = log.open("w", encoding="utf-8", buffering=1)
        self._listener = listener
        self._environments: set[Environment] = set()
        self._idle: list[Environment] = []
        self._freed = asyncio.Event()

    @property
    def processes(self) -> int:
        """How many processes of the function there are."""
        return sum(environment.alive for environment in self._environments)

    async def invoke(self, event: Any) -> Any:
        """Have an event handled; return the function's answer.

        Raises FunctionError, or EventTooLarge before anything has happened.
        """
        body = json.dumps(event, separators=(",", ":")).encode()
        if len(body) > PAYLOAD_LIMIT:
            raise EventTooLarge(f"{len(body)} bytes are more than {PAYLOAD_LIMIT}")
        async with self._free:
            environment = await self._environment()
            self.invocations += 1
            try:
                answer = await environment.invoke(body)
            except FunctionError as error:
                self.errors += 1
                self.last_error = str(error)
                raise
            finally:
                if environment.alive:
                    self._idle.append(environment)
                    self._freed.set()
        return json.loads(answer)

    async def warm(self) -> None:
        """Start a first process, so that the first invocation finds it ready; what goes wrong shows in `last_error`."""
        environment = await self._environment()
        self._idle.append(environment)  # whoever comes meanwhile shall wait for this one
        try:
            await environment.ready()
        except FunctionError as error:
            self.last_error = str(error)

    def kill(self) -> None:
        """End all its processes at once, as a crash would; the next invocation starts a new one."""
        for environment in self._environments:
            environment.kill()

    async def close(self) -> None:
        """End all its processes."""
        await asyncio.gather(*(environment.close() for environment in self._environments))
        self._environments.clear()
        self._log_file.close()

    async def _environment(self) -> Environment:
        with suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                while self.processes:
                    while self._idle:
                        if (environment := self._idle.pop()).alive:
                            return environment
                    self._freed.clear()
                    await self._freed.wait()
        for environment in [each for each in self._environments if not each.alive]:
            self._environments.discard(environment)
            await environment.close()
        environment = Environment(self.plan, self._variables, self._region, self._log)
        self._environments.add(environment)
        return environment

    def _log(self, line: str) -> None:
        if not self._log_file.closed:
            self._log_file.write(f"{line}\n")
        if self._listener:
            self._listener(self.plan.name, line)
