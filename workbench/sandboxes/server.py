"""Sandboxes over real sockets on 127.0.0.1, and the loop that sends their callbacks."""

import asyncio
import math
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import aiohttp
from aiohttp import web

from workbench.sandboxes.callbacks import CallbackDelivery
from workbench.sandboxes.sandbox import Sandbox
from workbench.sandboxes.wire import Break, SandboxRequest, SandboxResponse

_LOOK_EVERY = 0.05
_GRACE = 0.1  # seconds; to aiohttp 0 means for ever


@asynccontextmanager
async def serve(sandbox: Sandbox, port: int = 0) -> AsyncIterator[str]:
    """Serve `sandbox` on 127.0.0.1 and send its callbacks; yields its address, without a trailing slash.

    Port 0 takes a free one. OSError if the port is taken.
    """

    async def respond(incoming: web.BaseRequest) -> web.StreamResponse:
        return await _deliver(sandbox.handle(await _read(incoming)), incoming)

    # A body is signed as it was sent, so nothing is inflated; and a handler that holds a line ends with it.
    server = web.Server(respond, auto_decompress=False, handler_cancellation=True, access_log=None)
    runner = web.ServerRunner(server, shutdown_timeout=_GRACE)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        sender = asyncio.create_task(_send_callbacks(sandbox))
        try:
            yield "http://{}:{}".format(*runner.addresses[0])
        finally:
            sender.cancel()
            with suppress(asyncio.CancelledError):
                await sender
    finally:
        await runner.cleanup()


async def _read(incoming: web.BaseRequest) -> SandboxRequest:
    # Repeated headers are joined, as API Gateway and httpx do.
    headers = {name: ", ".join(incoming.headers.getall(name)) for name in incoming.headers}
    return SandboxRequest.of(incoming.method, incoming.raw_path, headers, await incoming.content.read())


async def _deliver(response: SandboxResponse, incoming: web.BaseRequest) -> web.StreamResponse:
    if response.delay == math.inf:
        await asyncio.get_running_loop().create_future()
    await asyncio.sleep(response.delay)
    if response.breaks is Break.BEFORE_ANSWER:
        _reset(incoming)
        return web.Response()
    outgoing = web.StreamResponse(status=response.status, headers=response.headers)
    if response.announced:
        outgoing.content_length = len(response.body)
    else:
        outgoing.enable_chunked_encoding()
    await outgoing.prepare(incoming)
    await _write(response, outgoing)
    if response.breaks is Break.IN_BODY:
        _reset(incoming)
    return outgoing


async def _write(response: SandboxResponse, outgoing: web.StreamResponse) -> None:
    body = response.body
    if response.breaks is Break.IN_BODY:
        await outgoing.write(body[: len(body) // 2])
    elif response.drip:
        for byte in body:
            await asyncio.sleep(response.drip / len(body))
            await outgoing.write(bytes((byte,)))
    else:
        await outgoing.write(body)


def _reset(incoming: web.BaseRequest) -> None:
    transport = incoming.transport
    if transport is None:
        return
    # Lingering for zero seconds makes the close a reset: the caller sees an error instead of an orderly end.
    connection = transport.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


async def _send_callbacks(sandbox: Sandbox) -> None:
    async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as tasks:
        while True:
            for delivery in sandbox.due(sandbox.clock()):
                tasks.create_task(_send(sandbox, delivery, session))
            await asyncio.sleep(_LOOK_EVERY)


async def _send(sandbox: Sandbox, delivery: CallbackDelivery, session: aiohttp.ClientSession) -> None:
    status = None
    timeout = aiohttp.ClientTimeout(total=delivery.timeout)
    with suppress(aiohttp.ClientError, TimeoutError):
        async with session.post(
            delivery.url, data=delivery.body, headers=delivery.headers, allow_redirects=False, timeout=timeout
        ) as response:
            status = response.status
    sandbox.answered(delivery, status)
