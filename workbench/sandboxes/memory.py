"""Sandboxes as an httpx transport: no socket, no thread, and no time but what `sleep` lets pass."""

import math
from collections.abc import Callable, Iterator, Mapping
from threading import Lock
from typing import override

import httpx

from workbench.sandboxes.sandbox import Sandbox
from workbench.sandboxes.wire import Break, SandboxRequest, SandboxResponse


def _no_time(_seconds: float) -> None:
    """Time passes for nobody."""


class MemoryTransport(httpx.BaseTransport):
    """Carries each request to its host's sandbox and acts the answer out in httpx's own terms.

    `sleep` is told how long the caller waits: for an answer, for dripping bytes, or until its read time-
    out. A host without a sandbox raises httpx.ConnectError. Any number of threads may call.
    """

    def __init__(self, sandboxes: Mapping[str, Sandbox], sleep: Callable[[float], None] = _no_time) -> None:
        self._sandboxes = sandboxes
        self._sleep = sleep
        self._lock = Lock()

    @override
    def handle_request(self, request: httpx.Request) -> httpx.Response:
        sandbox = self._sandboxes.get(request.url.host)
        if sandbox is None:
            raise httpx.ConnectError(f"no sandbox at {request.url.host}", request=request)
        target = request.url.raw_path.decode("ascii")
        received = SandboxRequest.of(request.method, target, request.headers, request.read())
        with self._lock:
            response = sandbox.handle(received)
        caller = _Caller(request.extensions.get("timeout", {}).get("read"), self._sleep)
        caller.wait(response.delay)
        if response.breaks is Break.BEFORE_ANSWER:
            raise httpx.ReadError("connection reset by peer")
        headers = dict(response.headers)
        if response.announced:
            headers["content-length"] = str(len(response.body))
        return httpx.Response(response.status, headers=headers, stream=_Body(response, caller))


class _Caller:
    def __init__(self, patience: float | None, sleep: Callable[[float], None]) -> None:
        self._patience = math.inf if patience is None else patience
        self._sleep = sleep

    def wait(self, seconds: float) -> None:
        if seconds > self._patience:
            self._sleep(self._patience)
            raise httpx.ReadTimeout("timed out")
        if seconds == math.inf:
            raise RuntimeError("a request without a read time-out waits for an answer that never comes")
        if seconds:
            self._sleep(seconds)


class _Body(httpx.SyncByteStream):
    def __init__(self, response: SandboxResponse, caller: _Caller) -> None:
        self._response = response
        self._caller = caller

    @override
    def __iter__(self) -> Iterator[bytes]:
        body = self._response.body
        if self._response.breaks is Break.IN_BODY:
            yield body[: len(body) // 2]
            raise httpx.ReadError("connection reset by peer")
        if not self._response.drip:
            yield body
            return
        for byte in body:
            self._caller.wait(self._response.drip / len(body))
            yield bytes((byte,))
