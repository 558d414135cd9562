"""The HTTP API: takes requests on 127.0.0.1, has functions answer them, and keeps API Gateway's limits.

Limits: docs.aws.amazon.com, "Quotas for configuring and running an HTTP API".
"""

import asyncio
import errno
import logging
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from socket import SO_REUSEADDR, SOL_SOCKET, socket
from typing import Self

from aiohttp import web

from workbench.stack.environments import FunctionError
from workbench.stack.functions import EventTooLarge, Function
from workbench.stack.payload import HttpRequest, HttpResponse, event, message, response
from workbench.stack.routes import Routes

BODY_LIMIT = 10 * 1000 * 1000
HEADER_LIMIT = 10_240
INTEGRATION_TIMEOUT = 30.0
# Above this aiohttp refuses by itself, with 400 instead of API Gateway's own answers.
_PARSER_LIMIT = 1024 * 1024
_log = logging.getLogger(__name__)


class PortInUse(Exception):
    """Another program listens on the port that the API should get."""


@contextmanager
def bound(port: int) -> Iterator[socket]:
    """Have a port of 127.0.0.1, 0 for any, before there is anything to serve on it. Raises PortInUse."""
    with socket() as listener:
        listener.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            raise PortInUse(f"another program listens on 127.0.0.1:{port}; RELAY_PORT chooses another port") from None
        yield listener


class Gateway:
    """Serves `routes` on a bound socket for as long as the block lasts."""

    def __init__(
        self, listener: socket, routes: Routes, functions: Mapping[str, Function], timeout: float = INTEGRATION_TIMEOUT
    ) -> None:
        self._listener = listener
        self._routes = routes
        self._functions = functions
        self._timeout = timeout
        self._at_work: set[asyncio.Task[object]] = set()

    async def __aenter__(self) -> Self:
        server = web.Server(
            self._serve,
            access_log=None,
            auto_decompress=False,
            max_line_size=_PARSER_LIMIT,
            max_field_size=_PARSER_LIMIT,
        )
        self._runner = web.ServerRunner(server, shutdown_timeout=1)
        await self._runner.setup()
        await web.SockSite(self._runner, self._listener).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._at_work:
            task.cancel()
        await asyncio.gather(*self._at_work, return_exceptions=True)
        await self._runner.cleanup()

    async def _serve(self, raw: web.BaseRequest) -> web.StreamResponse:
        answer = await self._answer(raw)
        reply = web.Response(status=answer.status, body=answer.body)
        for name, value in answer.headers:
            reply.headers.add(name, value)
        reply.headers["apigw-requestid"] = uuid.uuid4().hex[:16]
        return reply

    async def _answer(self, raw: web.BaseRequest) -> HttpResponse:
        line = len(raw.method) + len(raw.raw_path)
        if line + sum(len(name) + len(value) for name, value in raw.raw_headers) > HEADER_LIMIT:
            return message(431, "Request Header Fields Too Large")
        if raw.headers.get("Expect", "").lower() == "100-continue":
            await raw.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await _read(raw)
        if body is None:
            return message(413, "Request Entity Too Large")
        request = HttpRequest(
            method=raw.method,
            target=raw.raw_path,
            headers=tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in raw.raw_headers),
            body=body,
            source_ip=raw.remote or "127.0.0.1",
        )
        match = self._routes.match(request.method, request.path)
        if match is None:
            return message(404, "Not Found")
        host = "{}:{}".format(*self._listener.getsockname())
        return await self._integrate(self._functions[match.route.function], event(request, match, host))

    async def _integrate(self, function: Function, incoming: Mapping[str, object]) -> HttpResponse:
        task: asyncio.Task[object] = asyncio.create_task(function.invoke(incoming))
        self._at_work.add(task)
        task.add_done_callback(self._at_work.discard)
        # API Gateway stops waiting; Lambda goes on.
        await asyncio.wait([task], timeout=self._timeout)
        if not task.done():
            task.add_done_callback(lambda late: late.cancelled() or late.exception())
            return message(503, "Service Unavailable")
        try:
            return response(task.result())
        except EventTooLarge:
            return message(413, "Request Entity Too Large")
        except FunctionError as error:
            _log.warning("%s failed: %s", function.plan.name, error)
            return message(500, "Internal Server Error")


async def _read(raw: web.BaseRequest) -> bytes | None:
    """The body as sent, or None when it exceeds the limit, whatever its Content-Length says."""
    body = bytearray()
    async for chunk in raw.content.iter_any():
        body += chunk
        if len(body) > BODY_LIMIT:
            return None
    return bytes(body)
