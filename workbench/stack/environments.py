"""One process of a function, driven over the Lambda Runtime API as on AWS: one invocation at a time."""

import asyncio
import json
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from aiohttp import web

from workbench.stack.blueprint import FunctionPlan
from workbench.stack.template import ACCOUNT

PAYLOAD_LIMIT = 6 * 1024 * 1024
# Lambda's is 10 s; here all functions start at once on few cores.
INIT_TIMEOUT = 60.0
_RESPONSE_LIMIT = PAYLOAD_LIMIT + 100 * 1024
_RUNTIME = Path(__file__).with_name("runtime.py")
_LINE_LIMIT = 16 * 1024 * 1024


class FunctionError(Exception):
    """A function raised, crashed, could not be loaded or ran out of time."""

    def __init__(self, kind: str, message: str, trace: tuple[str, ...] = ()) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind = kind
        self.message = message
        self.trace = trace

    @classmethod
    def read(cls, body: bytes) -> "FunctionError":
        """Read what the runtime client posts about an error."""
        try:
            error = json.loads(body)
            return cls(str(error["errorType"]), str(error["errorMessage"]), tuple(error.get("stackTrace", ())))
        except (ValueError, KeyError, TypeError):
            return cls("Runtime.Unknown", body.decode("utf-8", "replace"))


class Invocation:
    """An event on its way to a process, and the answer that it will get."""

    def __init__(self, event: bytes) -> None:
        self.id = str(uuid.uuid4())
        self.event = event
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        # An error that nobody waits for any more is no news.
        self.answer.add_done_callback(lambda answer: answer.cancelled() or answer.exception())

    def succeed(self, answer: bytes) -> None:
        """Give the function's answer."""
        if not self.answer.done():
            self.answer.set_result(answer)

    def fail(self, error: FunctionError) -> None:
        """Tell why there is no answer."""
        if not self.answer.done():
            self.answer.set_exception(error)


class Environment:
    """An execution environment: a process, its Runtime API on a port of its own, one invocation at a time."""

    def __init__(
        self, plan: FunctionPlan, variables: Mapping[str, str], region: str, log: Callable[[str], None]
    ) -> None:
        self._plan = plan
        self._variables = variables
        self._arn = f"arn:aws:lambda:{region}:{ACCOUNT}:function:{plan.name}"
        self._log = log
        self._next: asyncio.Queue[Invocation] = asyncio.Queue()
        self._current: Invocation | None = None
        self._deadline = 0.0
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ready.add_done_callback(lambda ready: ready.cancelled() or ready.exception())
        self._process: asyncio.subprocess.Process | None = None
        self._doomed = False
        self._life = asyncio.create_task(self._live())

    @property
    def alive(self) -> bool:
        """Whether it can take an invocation, now or as soon as it has started."""
        return not (self._doomed or self._life.done())

    async def ready(self) -> None:
        """Wait until the function is loaded. Raises FunctionError when it cannot be."""
        try:
            await asyncio.wait_for(asyncio.shield(self._ready), INIT_TIMEOUT)
        except TimeoutError:
            self.kill()
            raise FunctionError("Sandbox.Timedout", f"not loaded after {INIT_TIMEOUT:.0f} s") from None

    async def invoke(self, event: bytes) -> bytes:
        """Have the event handled. Raises FunctionError; a process that ran out of time, or is abandoned, is killed."""
        await self.ready()
        invocation = Invocation(event)
        self._deadline = time.time() + self._plan.timeout
        self._current = invocation
        self._next.put_nowait(invocation)
        try:
            async with asyncio.timeout(self._plan.timeout):
                return await invocation.answer
        except TimeoutError:
            text = f"Task timed out after {self._plan.timeout:.2f} seconds"
            self._log(f"{invocation.id} {text}")
            raise FunctionError("Sandbox.Timedout", text) from None
        finally:
            self._current = None
            if not invocation.answer.done() or invocation.answer.cancelled():
                self.kill()

    def kill(self) -> None:
        """End the process at once; what it is working on fails."""
        self._doomed = True
        if self._process and self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.kill()

    async def close(self) -> None:
        """End the process and its Runtime API."""
        self._life.cancel()
        with suppress(asyncio.CancelledError):
            await self._life

    async def _live(self) -> None:
        routes = web.Application(client_max_size=_RESPONSE_LIMIT)
        routes.add_routes(
            [
                web.get("/2018-06-01/runtime/invocation/next", self._get_next),
                web.post("/2018-06-01/runtime/invocation/{id}/response", self._post_response),
                web.post("/2018-06-01/runtime/invocation/{id}/error", self._post_error),
                web.post("/2018-06-01/runtime/init/error", self._post_init_error),
            ]
        )
        runner = web.AppRunner(routes, access_log=None, handler_cancellation=True, shutdown_timeout=0)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            await self._run(runner.addresses[0][1])
        except OSError as error:
            self._fail(FunctionError("Runtime.StartError", str(error)))
        finally:
            await runner.cleanup()

    async def _run(self, port: int) -> None:
        self._process = process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            str(_RUNTIME),
            self._plan.handler,
            env={**self._variables, "AWS_LAMBDA_RUNTIME_API": f"127.0.0.1:{port}"},
            cwd=self._plan.code,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=_LINE_LIMIT,
            start_new_session=True,  # Ctrl-C in the terminal is for the workbench
        )
        assert process.stdout
        try:
            async for line in process.stdout:
                # The runtime client joins the lines of a traceback with carriage returns.
                for part in line.decode("utf-8", "replace").rstrip("\r\n").split("\r"):
                    self._log(part)
            self._fail(FunctionError("Runtime.ExitError", f"the process ended with {await process.wait()}"))
        finally:
            self.kill()
            await process.wait()

    def _fail(self, error: FunctionError) -> None:
        self._doomed = True
        if not self._ready.done():
            self._ready.set_exception(error)
        if self._current:
            self._current.fail(error)

    async def _get_next(self, _request: web.Request) -> web.Response:
        if not self._ready.done():
            self._ready.set_result(None)
        invocation = await self._next.get()
        headers = {
            "Lambda-Runtime-Aws-Request-Id": invocation.id,
            "Lambda-Runtime-Deadline-Ms": str(int(self._deadline * 1000)),
            "Lambda-Runtime-Invoked-Function-Arn": self._arn,
            "Lambda-Runtime-Trace-Id": f"Root=1-{int(time.time()):08x}-{uuid.uuid4().hex[:24]};Sampled=0",
        }
        return web.Response(body=invocation.event, content_type="application/json", headers=headers)

    async def _post_response(self, request: web.Request) -> web.Response:
        invocation = self._invocation(request)
        try:
            invocation.succeed(await request.read())
        except web.HTTPRequestEntityTooLarge:
            kind, limit = "Function.ResponseSizeTooLarge", _RESPONSE_LIMIT
            invocation.fail(FunctionError(kind, f"the answer is larger than {limit} bytes"))
            raise
        return web.Response(status=202)

    async def _post_error(self, request: web.Request) -> web.Response:
        self._invocation(request).fail(FunctionError.read(await request.read()))
        return web.Response(status=202)

    async def _post_init_error(self, request: web.Request) -> web.Response:
        self._fail(FunctionError.read(await request.read()))
        return web.Response(status=202)

    def _invocation(self, request: web.Request) -> Invocation:
        if self._current is None or self._current.id != request.match_info["id"]:
            raise web.HTTPBadRequest(text="no such invocation")
        return self._current


def variables_of(plan: FunctionPlan, region: str, shared: Mapping[str, str], path: str) -> dict[str, str]:
    """The environment of a function's processes: Lambda's own variables, the template's, and `shared`, which wins."""
    folders = [plan.code, *(layer / "python" if (layer / "python").is_dir() else layer for layer in plan.layers)]
    own: dict[str, Any] = {
        "AWS_EXECUTION_ENV": f"AWS_Lambda_python3.{sys.version_info.minor}",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": plan.memory,
        "AWS_LAMBDA_FUNCTION_NAME": plan.name,
        "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
        "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
        "AWS_LAMBDA_LOG_FORMAT": plan.log_format.upper() if plan.log_format == "JSON" else plan.log_format,
        "AWS_LAMBDA_LOG_GROUP_NAME": f"/aws/lambda/{plan.name}",
        "AWS_LAMBDA_LOG_STREAM_NAME": "local",
        "AWS_DEFAULT_REGION": region,
        "AWS_REGION": region,
        "LAMBDA_TASK_ROOT": plan.code,
        "LANG": "en_US.UTF-8",
        "PATH": path,
        "PYTHONPATH": ":".join(str(folder) for folder in folders),
        "PYTHONUNBUFFERED": "1",
        "TZ": ":UTC",
        "_HANDLER": plan.handler,
    }
    if plan.log_format == "JSON":
        own["AWS_LAMBDA_LOG_LEVEL"] = plan.log_level
    return {key: str(value) for key, value in {**own, **plan.environment, **shared}.items()}
