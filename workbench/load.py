"""`make load RATE=… SECONDS=…`: load on the running `make start`, and then a look at what came of every call.

Callbacks and leads leave at their time, whether or not earlier ones have been answered; of each kind every tenth is
sent twice. What was answered with 2xx must be there once in the end: a callback in the history of its lead, a lead in
CartelCRM's sandbox.
"""

import argparse
import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import quantiles
from typing import Any
from uuid import uuid4
from zlib import crc32

import aiohttp
import boto3
from boto3.dynamodb.types import TypeDeserializer

from crm_relay.signing import signature_headers
from workbench.cli.control import Control
from workbench.cli.world import World

_LEADS_PER_SECOND = 5
"""Half of what CartelCRM's sandbox takes: its own callbacks about them come on top."""
_SETTLES_IN = 600
_TIMEOUT = aiohttp.ClientTimeout(30)


@dataclass
class Load:
    """What was sent, how it was answered, and how long that took, in milliseconds."""

    known: Mapping[str, Any]
    run: str = field(default_factory=lambda: uuid4().hex[:8])
    callbacks: set[str] = field(default_factory=set)
    leads: set[str] = field(default_factory=set)
    """Names of what was answered with 2xx."""
    answers: Counter[str] = field(default_factory=Counter)
    took: list[float] = field(default_factory=list)

    async def send(self, *, rate: float, seconds: float) -> None:
        """Send for `seconds`, at `rate` calls a second."""
        every = max(1, round(rate / _LEADS_PER_SECOND))
        began = time.monotonic()
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, timeout=_TIMEOUT) as http, asyncio.TaskGroup() as tasks:
            for number in range(round(rate * seconds)):
                await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
                one = self._lead if number % every == 0 else self._callback
                for _ in range(2 if number // every % 10 == 0 else 1):
                    tasks.create_task(one(http, f"load-{self.run}-{number}"))

    async def _callback(self, http: aiohttp.ClientSession, name: str) -> None:
        body = json.dumps({"internal_id": name, "event": "lead_approved", "timestamp": int(time.time()) // 300 * 300})
        secret = self.known["secrets"]["cartelcrm_callback_secret"]
        signed = signature_headers(body.encode(), secret, now=time.time())
        if await self._post(http, "CallbackUrl", body, signed):
            self.callbacks.add(name)

    async def _lead(self, http: aiohttp.ClientSession, name: str) -> None:
        phone = f"+38050{crc32(name.encode()) % 10**7:07}"  # of one phone there is one lead
        body = json.dumps({"external_id": name, "country": "UA", "phone": phone})
        key = {"Authorization": f"Bearer {self.known['secrets']['lead_api_key']}", "Prefer": "respond-async"}
        if await self._post(http, "LeadsUrl", body, key):
            self.leads.add(name)

    async def _post(self, http: aiohttp.ClientSession, url: str, body: str, headers: Mapping[str, str]) -> bool:
        headers = {"Content-Type": "application/json", **headers}
        began = time.monotonic()
        try:
            async with http.post(self.known["outputs"][url], data=body.encode(), headers=headers) as response:
                await response.read()
                status = response.status
        except (aiohttp.ClientError, TimeoutError) as error:
            self.answers[type(error).__name__] += 1
            return False
        self.took.append(1000 * (time.monotonic() - began))
        self.answers[str(status)] += 1
        return status in range(200, 300)

    async def effects(self) -> Counter[str]:
        """Count what came of each of our calls."""
        table = await asyncio.to_thread(self._histories)
        url = f"{self.known['sandboxes']['cartelcrm']}/sandbox/state"
        async with aiohttp.ClientSession(timeout=_TIMEOUT) as http, http.get(url) as response:
            state = await response.json()
        return table + Counter(lead["external_id"] for lead in state["leads"])

    def _histories(self) -> Counter[str]:
        client = boto3.client(
            "dynamodb",
            endpoint_url=self.known["endpoint_url"],
            region_name=self.known["region"],
            aws_access_key_id="local",
            aws_secret_access_key="local",  # noqa: S106 (the local stack takes any)
        )
        pages = client.get_paginator("scan").paginate(TableName=self.known["outputs"]["TableName"])
        told: Counter[str] = Counter()
        for item in (item for page in pages for item in page["Items"]):
            if (key := item["key"]["S"]).startswith("lead#load-"):
                told[key.removeprefix("lead#")] = len(TypeDeserializer().deserialize(item["history"]))
        return told


async def _measured(rate: float, seconds: float) -> int:
    load = Load(Control.of(World()).known)
    await load.send(rate=rate, seconds=seconds)
    accepted, sent_at = load.callbacks | load.leads, time.monotonic()
    effects = await load.effects()
    while not accepted <= effects.keys() and time.monotonic() - sent_at < _SETTLES_IN:
        await asyncio.sleep(2)
        effects = await load.effects()
    settled = time.monotonic() - sent_at
    await asyncio.sleep(10)  # for what would come twice
    effects = await load.effects()
    cuts = quantiles(load.took, n=100, method="inclusive")
    lost = sorted(accepted - effects.keys())
    doubled = sorted(name for name, times in effects.items() if name in accepted and times > 1)
    print(f"{rate:g}/s for {seconds:g} s: answers {dict(load.answers)}")
    print(f"p50 {cuts[49]:.0f} ms, p95 {cuts[94]:.0f} ms, p99 {cuts[98]:.0f} ms")
    print(f"accepted {len(load.callbacks)} callbacks and {len(load.leads)} leads, done {settled:.0f} s after the last")
    print(f"lost {len(lost)} {lost[:5] or ''}, doubled {len(doubled)} {doubled[:5] or ''}")
    return 1 if lost or doubled or not accepted else 0


def main() -> int:
    """Send, look, tell; return 1 if anything was lost or doubled."""
    parser = argparse.ArgumentParser(prog="make load", description="Load on the local stack, and its effects.")
    parser.add_argument("--rate", type=float, default=50, help="calls a second")
    parser.add_argument("--seconds", type=float, default=60)
    options = parser.parse_args()
    return asyncio.run(_measured(options.rate, options.seconds))


if __name__ == "__main__":
    sys.exit(main())
