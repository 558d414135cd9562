"""The whole template on this machine, with no more than a temporary AWS of its own."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from workbench.stack import schedules
from workbench.stack.blueprint import Blueprint, FunctionPlan
from workbench.stack.buses import Buses, Watch
from workbench.stack.cloud import CREDENTIALS, Cloud
from workbench.stack.functions import Function, LogListener
from workbench.stack.gateway import Gateway, bound
from workbench.stack.localisation import localised
from workbench.stack.lock import Running, held, tell
from workbench.stack.queues import drain, to_function, to_rule_target
from workbench.stack.routes import Routes
from workbench.stack.template import transformed


class LocalStack:
    """Runs a SAM template: `async with LocalStack(template=Path("template.yaml")) as stack`.

    Args:
        template: the SAM template; its folders are relative to it.
        parameters: values for the template's parameters.
        port: where the API listens on 127.0.0.1; 0 takes any free port.
        relay_config: stands for the RELAY_CONFIG of every function.
        environment: further environment variables that override the template's in every function.
        region: where everything believes to be.
        state_dir: gets the lock, `stack.json` for other processes, and logs/<function>.log.
        concurrency: how many processes a function may have.
        prepare: awaited when the resources are there, before any function is called.
        on_log: told (function, line) of every line that a function writes.
        now, sleep: the clock of the schedules.

    Entering raises AlreadyRunning, PortInUse, CloudError (resources), UnsupportedTemplate, or samtranslator's own
    exceptions. Leaving, or the death of this process in whatever manner, ends all processes.
    """

    def __init__(
        self,
        template: Path,
        *,
        parameters: Mapping[str, str] | None = None,
        port: int = 3000,
        relay_config: Path | None = None,
        environment: Mapping[str, str] | None = None,
        region: str = "eu-central-1",
        state_dir: Path = Path(".relay"),
        concurrency: int = 4,
        prepare: Callable[[], Awaitable[None]] | None = None,
        on_log: LogListener | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.region = region
        self.state_dir = state_dir
        self.url = ""
        self.functions: dict[str, Function] = {}
        self._template = template
        self._parameters = dict(parameters or {})
        self._port = port
        self._shared = {
            **(environment or {}),
            **({"RELAY_CONFIG": str(relay_config.resolve())} if relay_config else {}),
        }
        self._concurrency = concurrency
        self._prepare = prepare
        self._on_log = on_log
        self._now = now
        self._sleep = sleep
        self._buses = Buses()
        self._stop = asyncio.Event()

    async def __aenter__(self) -> Self:
        ready = asyncio.get_running_loop().create_future()
        # A task of its own: the block may be entered and left by different tasks, as fixtures are.
        self._life = asyncio.create_task(self._live(ready))
        try:
            await asyncio.wait([ready, self._life], return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self._life.cancel()
            await asyncio.wait([self._life])
            raise
        if not ready.done():
            await self._life
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop.set()
        await self._life

    async def wait(self) -> None:
        """Wait for ever; raises when the stack breaks."""
        await asyncio.shield(self._life)

    @property
    def outputs(self) -> Mapping[str, str]:
        """The outputs of the template, with the local address where AWS would give its own."""
        return self._blueprint.outputs

    @property
    def blueprint(self) -> Blueprint:
        """All that runs here."""
        return self._blueprint

    @property
    def endpoint(self) -> str:
        """Where the stack's AWS listens, for `AWS_ENDPOINT_URL`."""
        return self._cloud.endpoint

    def client(self, service: str) -> Any:
        """A boto3 client of the stack's AWS."""
        return self._cloud.client(service)

    def events(self) -> Watch:
        """Watch what is published on the template's buses from now on: `async for published in stack.events()`."""
        return self._buses.watch()

    async def invoke(self, function: str, event: Any) -> Any:
        """Invoke a function by its logical id, as `aws lambda invoke` does. Raises FunctionError."""
        return await self.functions[function].invoke(event)

    async def tick(self, schedule: str) -> Any:
        """Let a schedule, by its logical id, be due now; return its function's answer."""
        [due] = [each for each in self._blueprint.schedules if each.name == schedule]
        return await self.functions[due.function].invoke(schedules.event(due, self._now(), self.region))

    async def status(self) -> dict[str, Any]:
        """What runs, and how it has been doing."""
        return {
            "pid": os.getpid(),
            "url": self.url,
            "aws": self.endpoint,
            "functions": {
                name: {
                    "processes": function.processes,
                    "invocations": function.invocations,
                    "errors": function.errors,
                    "last_error": function.last_error,
                }
                for name, function in self.functions.items()
            },
            "queues": {name: await self._depth(arn) for name, arn in self._blueprint.queues.items()},
        }

    async def _depth(self, queue_arn: str) -> dict[str, int]:
        kinds = {"visible": "", "in_flight": "NotVisible", "delayed": "Delayed"}
        answer = await self._cloud.sqs("GetQueueAttributes", queue_arn, AttributeNames=["All"])
        return {kind: int(answer["Attributes"][f"ApproximateNumberOfMessages{name}"]) for kind, name in kinds.items()}

    async def _live(self, ready: asyncio.Future[None]) -> None:
        async with AsyncExitStack() as stack:
            stack.enter_context(held(self.state_dir))
            listener = stack.enter_context(bound(self._port))
            self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            tell(self.state_dir, Running(os.getpid(), self.url))
            await self._build(stack)
            if self._prepare:
                await self._prepare()
            async with Gateway(listener, Routes(self._blueprint.routes), self.functions), asyncio.TaskGroup() as tasks:
                runners = [tasks.create_task(runner) for runner in self._runners()]
                tell(self.state_dir, Running(os.getpid(), self.url, self.endpoint, self.region, self.outputs))
                ready.set_result(None)
                await self._stop.wait()
                for runner in runners:
                    runner.cancel()

    async def _build(self, stack: AsyncExitStack) -> None:
        logs = self.state_dir / "logs"
        logs.mkdir(exist_ok=True)
        plain = asyncio.create_task(asyncio.to_thread(transformed, self._template, self._parameters, self.region))
        self._cloud = await stack.enter_async_context(Cloud.started(self.region, logs / "aws.log"))
        local = localised(await plain, self.url, self.region)
        outputs = await asyncio.to_thread(self._cloud.create, local, self._parameters)
        self._blueprint = Blueprint.read(outputs, self._template.resolve().parent, self.url)
        for schedule in self._blueprint.schedules:
            schedules.due_times(schedule.expression, schedule.timezone, self._now())
        shared = {
            **CREDENTIALS,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            **self._shared,
        }
        for name, plan in self._blueprint.functions.items():
            self.functions[name] = self._function(plan, shared, logs)
            stack.push_async_callback(self.functions[name].close)
        await asyncio.gather(*(function.warm() for function in self.functions.values()))

    def _function(self, plan: FunctionPlan, shared: Mapping[str, str], logs: Path) -> Function:
        return Function(
            plan,
            region=self.region,
            shared=shared,
            concurrency=self._concurrency,
            log=logs / f"{plan.name}.log",
            listener=self._on_log,
        )

    def _runners(self) -> Iterator[Coroutine[Any, Any, None]]:
        cloud, most = self._cloud, self._concurrency
        for source in self._blueprint.queue_sources:
            handle = to_function(source, self.functions[source.function], self.region)
            yield drain(
                cloud,
                source.queue_arn,
                handle,
                size=source.batch_size,
                window=source.window,
                concurrency=min(most, source.concurrency or most),
            )
        for tap in self._blueprint.rule_taps:
            handle = to_rule_target(tap, self.functions[tap.function], cloud)
            yield drain(cloud, tap.queue_arn, handle, size=1, concurrency=most)
        for bus in self._blueprint.bus_taps:
            yield drain(cloud, bus.queue_arn, self._buses.publisher(bus))
        for schedule in self._blueprint.schedules:
            yield schedules.keep(schedule, self.functions[schedule.function], self.region, self._now, self._sleep)
