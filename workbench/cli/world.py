"""What commands take from outside: folders, time and the network. Tests give their own."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from crm_relay.delivery.ports import Clock

if TYPE_CHECKING:
    import httpx

ROOT = Path(__file__).parents[2]
"""The project's folder."""


@dataclass(frozen=True, slots=True)
class World:
    """Where files are, what time it is, how to wait, and what carries HTTP (None: real connections)."""

    state: Path = ROOT / ".relay"
    config: Path = ROOT / "layers/configuration/relay.toml"
    clock: Clock = time
    rest: Callable[[float], Awaitable[object]] = asyncio.sleep
    transport: "httpx.MockTransport | None" = None

    @property
    def local(self) -> Path:
        """What `relay start` writes for the other commands."""
        return self.state / "local.json"

    @property
    def local_config(self) -> Path:
        """The relay.toml of the local stack, which leads to its sandboxes."""
        return self.state / "relay.toml"

    def config_of(self, stack: str | None) -> Path:
        """The relay.toml of a deployed stack; of the local one if there is no name."""
        return self.config if stack else self.local_config
