"""The `relay start` that runs on this machine, asked over its control address."""

import json
from collections.abc import Mapping
from typing import Any, Self

import httpx

from workbench.cli.console import Problem
from workbench.cli.world import World

_TIMEOUT = httpx.Timeout(130.0, connect=2.0)


class Control:
    """A running `relay start`; `known` is what it wrote into local.json."""

    def __init__(self, known: Mapping[str, Any], transport: httpx.BaseTransport | None = None) -> None:
        self.known = known
        self._client = httpx.Client(
            base_url=known["control"],
            headers={"Authorization": f"Bearer {known['secrets']['lead_api_key']}"},
            timeout=_TIMEOUT,
            transport=transport,
            trust_env=False,
        )

    @classmethod
    def of(cls, world: World) -> Self:
        """Find it.

        Raises:
            Problem: none runs here.
        """
        try:
            return cls(json.loads(world.local.read_text("utf-8")), world.transport)
        except (OSError, ValueError, KeyError, TypeError):
            raise _nothing_runs() from None

    def status(self) -> dict[str, Any]:
        """Return where everything is, and how it has been doing."""
        return {**self.known, **self._ask("GET", "/status")}

    def enqueue(self, queue: str, body: str) -> str:
        """Send a message to a queue, by the queue's name; return the message's id."""
        return str(self._ask("POST", f"/queues/{queue}", content=body)["message_id"])

    def publish(self, event: Mapping[str, Any]) -> str:
        """Put an event on the bus; return its id."""
        return str(self._ask("POST", "/bus", json=event)["event_id"])

    def invoke(self, folder: str, event: Mapping[str, Any]) -> Any:
        """Invoke the function of a folder that has no route; return its answer."""
        return self._ask("POST", f"/functions/{folder}", json=event)

    def _ask(self, method: str, path: str, **more: Any) -> Any:
        try:
            response = self._client.request(method, path, **more)
        except httpx.ConnectError:
            raise _nothing_runs() from None
        except httpx.TransportError as error:
            raise Problem(f"The local stack does not answer ({type(error).__name__}).") from None
        if response.is_error:
            raise Problem(f"The local stack could not do that: {_error(response)}.")
        return response.json()


def _error(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        return f"{response.status_code} {response.reason_phrase}"


def _nothing_runs() -> Problem:
    return Problem("Nothing runs here: start it with `make start`.")
