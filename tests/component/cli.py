"""The command `relay` in a world of its own: files in a folder, HTTP by hand, waiting that takes no time."""

import json
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx
from typer.testing import CliRunner, Result

from tests.gateway import Response, http_event
from tests.relay import LEAD_KEY, Relay
from workbench.cli import app
from workbench.cli.world import World

LEADS_URL = "https://relay.test/leads"
CALLBACK_URL = "https://relay.test/cartelcrm/callback"


class FreeClock:
    """Real time, in which to sleep costs nothing and is written down."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def time(self) -> float:
        return time.time()

    def sleep(self, seconds: float, /) -> None:
        self.slept.append(seconds)


class Cli:
    """`cli("leads", "show", "order-17")` is `relay leads show order-17`. `rests` are the waits of an import."""

    def __init__(
        self,
        folder: Path,
        answer: Callable[[httpx.Request], httpx.Response | Awaitable[httpx.Response]] | None = None,
        **world: Any,
    ) -> None:
        self.rests: list[float] = []
        self.clock = FreeClock()
        self.state = folder / "state"
        self.state.mkdir(exist_ok=True)
        self._answer = answer
        self._world = world

    def __call__(self, *arguments: object, stdin: str | None = None, **environment: str) -> Result:
        transport = httpx.MockTransport(self._answer or _unexpected)  # type: ignore[arg-type]
        known: dict[str, Any] = {
            "state": self.state,
            "clock": self.clock,
            "rest": self._rest,
            "transport": transport,
            **self._world,
        }
        result = CliRunner(env={"RELAY_API_KEY": None, **environment}).invoke(
            app, [str(argument) for argument in arguments], input=stdin, obj=World(**known)
        )
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    def local_stack(self, pid: int | None = None, **outputs: str) -> None:
        """Write what `relay start` writes."""
        known = {
            "pid": pid or os.getpid(),
            "url": "https://relay.test",
            "endpoint_url": "http://127.0.0.1:1",
            "region": "eu-central-1",
            "outputs": {"LeadsUrl": LEADS_URL, "CallbackUrl": CALLBACK_URL, **outputs},
            "secrets": {"lead_api_key": LEAD_KEY},
            "sandboxes": {},
        }
        (self.state / "local.json").write_text(json.dumps(known), "utf-8")

    async def _rest(self, seconds: float) -> None:
        self.rests.append(seconds)


def api_of(relay: Relay) -> Callable[[httpx.Request], httpx.Response]:
    """Return a relay's API for a transport."""

    def answer(request: httpx.Request) -> httpx.Response:
        return _http(relay.invoke(*_invocation(request), seconds=29))

    return answer


def _invocation(request: httpx.Request) -> tuple[str, Mapping[str, object]]:
    path = request.url.raw_path.decode()
    if request.url.path == "/cartelcrm/callback":
        return "callback_receive", http_event(request.method, path, request.headers, request.content)
    route, parameters = "/leads", {}
    if request.method == "GET":
        external_id, _, status = path.removeprefix("/leads/").partition("/")
        route = "/leads/{external_id}/status" if status else "/leads/{external_id}"
        parameters = {"external_id": unquote(external_id)}
    event = http_event(request.method, path, request.headers, request.content, route=route, parameters=parameters)
    return "lead_api", event


def _http(answer: Mapping[str, object]) -> httpx.Response:
    response = Response.of(answer)
    return httpx.Response(response.status, headers=dict(response.headers), text=response.text)


def _unexpected(request: httpx.Request) -> httpx.Response:
    raise AssertionError(f"{request.method} {request.url} was not expected")
