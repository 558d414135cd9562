"""What it takes to read 10,000 leads from amoCRM: our client beside the `amocrm-api` package from the registry."""

import asyncio
import json
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random

from workbench.sandboxes import AmoCrmAccount, AmoCrmSandbox, Integration, serve
from workbench.sandboxes.amocrm.account import USERS

LEADS = 10_000
CLIENTS = ("ours", "amocrm-api")
MOST_CPU = 2.0
"""Seconds that our client may take."""
MOST_MEMORY = 60 * 1024 * 1024
"""Bytes that our client may take beyond what it has when it is made."""

_FIELDS = [
    {"field_id": 752_009, "values": [{"value": "Просили позвонить после шести, во двор въезд с улицы"}]},
    {"field_id": 752_011, "values": [{"value": "12"}]},
    {"field_id": 752_023, "values": [{"value": "spring"}]},
]


@dataclass(frozen=True, slots=True)
class Reading:
    """What reading took: seconds of CPU, and bytes over the client at rest, at the peak."""

    client: str
    leads: int
    cpu: float
    memory: int

    @property
    def is_fast_enough(self) -> bool:
        """Whether it keeps within what our client may take."""
        return self.leads == LEADS and self.cpu < MOST_CPU and self.memory < MOST_MEMORY


def measure() -> tuple[Reading, ...]:
    """Have each client read all leads, in a process of its own, over a real socket."""
    us = Integration(
        client_id="client",
        client_secret=secrets.token_hex(16),
        redirect_uri="https://relay.invalid",
        user_id=USERS[0].id,
    )
    account = AmoCrmAccount(integrations=(us,), requests_per_second=1_000_000, requests_per_second_of_all=1_000_000)
    sandbox = AmoCrmSandbox(account, clock=time.time, random=Random(7))
    sandbox.add("leads", name="Окна", copies=LEADS, custom_fields_values=_FIELDS)
    with _served(sandbox) as host:
        return tuple(_read(client, host, sandbox.long_lived_token("client")) for client in CLIENTS)


def _read(client: str, host: str, token: str) -> Reading:
    command = [sys.executable, "-m", "workbench.bench.amocrm_reader", client, host, token]
    done = subprocess.run(command, capture_output=True, check=True, text=True)
    return Reading(client, **json.loads(done.stdout))


@contextmanager
def _served(sandbox: AmoCrmSandbox) -> Iterator[str]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    server = serve(sandbox)
    address = asyncio.run_coroutine_threadsafe(server.__aenter__(), loop).result()
    try:
        yield address.removeprefix("http://")
    finally:
        asyncio.run_coroutine_threadsafe(server.__aexit__(None, None, None), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
