"""How other commands find a running `relay start` and ask it: local.json, and a small server on a port of its own.

Who asks must know the lead API key, which stands in that file: no other user and no web page does.
"""

import json
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from hmac import compare_digest
from pathlib import Path

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from workbench.local_relay import Json, LocalRelay
from workbench.stack import FunctionError

_LARGEST_EVENT = 8 * 1024 * 1024


@asynccontextmanager
async def announced(relay: LocalRelay, note: Path) -> AsyncIterator[None]:
    """Serve, and tell in the file `note` where, for as long as the block lasts.

    GET /status · POST /queues/{name} (a message) · POST /bus (an event) · POST /functions/{folder} (an event).
    """
    application = web.Application(middlewares=[_guard(relay.keys["lead_api_key"])], client_max_size=_LARGEST_EVENT)
    application.add_routes(_routes(relay))
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        with _told(note, _known(relay, f"http://127.0.0.1:{runner.addresses[0][1]}")):
            yield
    finally:
        await runner.cleanup()


def _routes(relay: LocalRelay) -> list[web.RouteDef]:
    async def status(_: web.Request) -> web.Response:
        return web.json_response(await relay.status())

    async def enqueue(request: web.Request) -> web.Response:
        return web.json_response({"message_id": await relay.enqueue(request.match_info["name"], await request.text())})

    async def publish(request: web.Request) -> web.Response:
        return web.json_response({"event_id": await relay.publish(await request.json())})

    async def invoke(request: web.Request) -> web.Response:
        return web.json_response(await relay.invoke(request.match_info["folder"], await request.json()))

    return [
        web.get("/status", status),
        web.post("/queues/{name}", enqueue),
        web.post("/bus", publish),
        web.post("/functions/{folder}", invoke),
    ]


def _guard(key: str) -> Middleware:
    @web.middleware
    async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
        given = request.headers.get("Authorization", "")
        if not compare_digest(given.encode("utf-8", "surrogateescape"), f"Bearer {key}".encode()):
            raise web.HTTPUnauthorized
        try:
            return await handler(request)
        except KeyError as missing:
            return web.json_response({"error": f"there is no {missing.args[0]} here"}, status=404)
        except FunctionError as error:
            return web.json_response({"error": str(error)}, status=502)

    return guarded


def _known(relay: LocalRelay, control: str) -> Json:
    return {
        "pid": os.getpid(),
        "url": relay.stack.url,
        "endpoint_url": relay.stack.endpoint,
        "region": relay.stack.region,
        "outputs": dict(relay.stack.outputs),
        "secrets": relay.keys,
        "sandboxes": dict(relay.urls),
        "control": control,
    }


@contextmanager
def _told(path: Path, known: Json) -> Iterator[None]:
    """Tell other processes of this user, and nobody else."""
    draft = path.with_suffix(".new")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        json.dump(known, file, indent=2)
    draft.replace(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
