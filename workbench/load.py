"""`make load RATE=… SECONDS=…`: load on the running `make start`, and then a look at what came of every event.

Events leave at their time, whether or not earlier ones have been answered: callbacks of CartelCRM and leads, of which
every tenth is sent twice, cards that are added in amoCRM's sandbox, and deals that are moved in Bitrix24's, whose hooks
and calls the sandboxes send. What was accepted must be there once in the end: a callback in the history of its lead,
a lead in CartelCRM, a note on its card, a deal in the hub.
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
from boto3.dynamodb.types import TypeDeserializer

from crm_relay.signing import signature_headers
from workbench.cli.console import Problem, complain
from workbench.cli.control import Control
from workbench.cli.target import Target
from workbench.cli.world import World
from workbench.local_crms import Bitrix24

_MIX = ("lead", "card", "deal", "lead", "card", *["callback"] * 15)
"""Of twenty events. CartelCRM's sandbox adds five callbacks of its own for each lead."""
_TWICE = 10
_LOOK_EVERY = 5.0
_STALLED = 60.0
_STALLED_WITH_MESSAGES = 960.0
"""Seconds without anything more done after which no more is waited for; a message waits up to 900 between two tries."""
_SHOWN = 5
"""Names of what was lost or doubled that are printed."""
_QUIET = 20.0
"""Seconds after the last one in which something might come a second time."""
_TIMEOUT = aiohttp.ClientTimeout(60)


@dataclass
class Load:
    """What was sent, how it was answered, and how long that took, in milliseconds.

    Names in `accepted` are those by which `effects` finds what came of them.
    """

    control: Control
    target: Target
    run: str = field(default_factory=lambda: uuid4().hex[:8])
    accepted: dict[str, str] = field(default_factory=dict)
    """The kind of each event by its name."""
    sent: Counter[str] = field(default_factory=Counter)
    """How many events of each kind."""
    answers: Counter[str] = field(default_factory=Counter)
    took: list[float] = field(default_factory=list)

    async def send(self, *, rate: float, seconds: float) -> None:
        """Send for `seconds`, at `rate` events a second."""
        began = time.monotonic()
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, timeout=_TIMEOUT) as http, asyncio.TaskGroup() as tasks:
            for number in range(round(rate * seconds)):
                await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
                kind = _MIX[number % len(_MIX)]
                self.sent[kind] += 1
                times = 2 if kind in ("callback", "lead") and number // len(_MIX) % _TWICE == 0 else 1
                for _ in range(times):
                    tasks.create_task(self._event(http, kind, f"load-{self.run}-{number}"))

    async def _event(self, http: aiohttp.ClientSession, kind: str, name: str) -> None:
        match kind:
            case "callback":
                await self._callback(http, name)
            case "lead":
                await self._lead(http, name)
            case "card":
                [card] = (await self._order(http, "amocrm", "leads", name=name))["ids"]
                self.accepted[f"card-{card}"] = kind
            case _:
                deal = {"title": name, "categoryId": 3, "stageId": "C3:NEW"}
                [made] = (await self._order(http, "bitrix24_partner", "deals", **deal))["ids"]
                await self._order(http, "bitrix24_partner", f"deals/{made}", stageId=Bitrix24.ROBOT_STAGE)
                self.accepted[f"deal-{made}"] = kind

    async def _callback(self, http: aiohttp.ClientSession, name: str) -> None:
        told = {"internal_id": name, "external_id": name, "event": "lead_approved"}
        body = json.dumps({**told, "timestamp": int(time.time()) // 300 * 300})
        secret = self.control.known["secrets"]["cartelcrm_callback_secret"]
        signed = signature_headers(body.encode(), secret, now=time.time())
        if await self._post(http, "CallbackUrl", body, signed):
            self.accepted[name] = "callback"

    async def _lead(self, http: aiohttp.ClientSession, name: str) -> None:
        phone = f"+38050{crc32(name.encode()) % 10**7:07}"  # of one phone there is one lead
        body = json.dumps({"external_id": name, "country": "UA", "phone": phone})
        key = {"Authorization": f"Bearer {self.control.known['secrets']['lead_api_key']}", "Prefer": "respond-async"}
        if await self._post(http, "LeadsUrl", body, key):
            self.accepted[name] = "lead"

    async def _post(self, http: aiohttp.ClientSession, url: str, body: str, headers: Mapping[str, str]) -> bool:
        headers = {"Content-Type": "application/json", **headers}
        began = time.monotonic()
        try:
            async with http.post(self.control.known["outputs"][url], data=body.encode(), headers=headers) as response:
                await response.read()
                status = response.status
        except (aiohttp.ClientError, TimeoutError) as error:
            self.answers[type(error).__name__] += 1
            return False
        self.took.append(1000 * (time.monotonic() - began))
        self.answers[str(status)] += 1
        return status in range(200, 300)

    async def _order(self, http: aiohttp.ClientSession, sandbox: str, path: str, **order: object) -> dict[str, Any]:
        url = f"{self.control.known['sandboxes'][sandbox]}/sandbox/{path}"
        async with http.post(url, data=json.dumps(order).encode()) as response:
            response.raise_for_status()
            answer: dict[str, Any] = await response.json()
            return answer

    def report(self, effects: Mapping[str, int]) -> tuple[str, bool]:
        """Return what to print, and whether all is well; `effects` as `effects()` counts them.

        It is not if anything was lost or doubled, a whole kind of event was refused, or a call was answered with a
        5xx or not at all.
        """
        accepted = Counter(self.accepted.values())
        lost = sorted(self.accepted.keys() - effects.keys())
        doubled = sorted(name for name, times in effects.items() if times > 1)
        refused = [kind for kind in self.sent if not accepted[kind]]
        faults = [f"of {self.sent[kind]} events none was accepted: {kind}" for kind in refused]
        faults += [f"answers {answer}: {number}" for answer, number in self.answers.items() if answer[0] not in "1234"]
        if not self.sent:
            faults = ["nothing was sent"]
        lines = [
            f"answers: {_listed(self.answers)}; {_percentiles(self.took)}",
            f"accepted {len(self.accepted)}: {_listed(accepted)}",
            f"done {len(effects)}, lost {len(lost)}, doubled {len(doubled)}",
            *(f"lost: {name}" for name in lost[:_SHOWN]),
            *(f"doubled: {name}" for name in doubled[:_SHOWN]),
            *faults,
        ]
        return "\n".join(lines), not (lost or doubled or faults)

    async def effects(self) -> Counter[str]:
        """Count what came of each of our events."""
        told = await asyncio.to_thread(self._histories)
        async with aiohttp.ClientSession(timeout=_TIMEOUT) as http:
            told += Counter(lead["external_id"] for lead in (await self._state(http, "cartelcrm"))["leads"])
            for card in (await self._state(http, "amocrm"))["leads"]:
                told[f"card-{card['id']}"] += card["notes"] + card["hidden_notes"]
            for deal in (await self._state(http, "bitrix24_hub"))["deals"]:
                told["-".join(str(deal["originId"]).split(":")[:2])] += 1
        return Counter({name: told[name] for name in self.accepted if told[name]})

    async def _state(self, http: aiohttp.ClientSession, sandbox: str) -> dict[str, Any]:
        async with http.get(f"{self.control.known['sandboxes'][sandbox]}/sandbox/state") as response:
            state: dict[str, Any] = await response.json()
            return state

    def _histories(self) -> Counter[str]:
        scan = self.target.dynamodb.get_paginator("scan")
        pages = scan.paginate(TableName=self.target.output("TableName"))
        told: Counter[str] = Counter()
        for item in (item for page in pages for item in page["Items"]):
            if (key := item["key"]["S"]).startswith("lead#load-"):
                told[key.removeprefix("lead#")] = len(TypeDeserializer().deserialize(item["history"]))
        return told

    def _messages(self) -> int:
        queues = self.control.status()["queues"]
        return sum(sum(depth.values()) for name, depth in queues.items() if "DeadLetter" not in name)

    async def settled(self) -> float:
        """Wait until all that was accepted is done, or nothing more gets done; return the seconds until the last."""
        began = last = time.monotonic()
        done = -1
        while True:
            now, before, done = time.monotonic(), done, len(await self.effects())
            last = now if done > before else last
            waiting = await asyncio.to_thread(self._messages)
            told = f"{done} of {len(self.accepted)} done, {waiting} messages wait"
            print(f"  {now - began:.0f} s after the last event: {told}", flush=True)
            if done == len(self.accepted) or now - last > (_STALLED_WITH_MESSAGES if waiting else _STALLED):
                return last - began
            await asyncio.sleep(_LOOK_EVERY)


async def _measured(rate: float, seconds: float) -> int:
    load = Load(Control.of(World()), Target.of(World(), None, None))
    await load.send(rate=rate, seconds=seconds)
    settled = await load.settled()
    await asyncio.sleep(_QUIET)
    effects = await load.effects()
    report, well = load.report(effects)
    print(f"{rate:g}/s for {seconds:g} s, all done {settled:.0f} s after the last\n{report}")
    return 0 if well else 1


def _listed(numbers: Mapping[str, int]) -> str:
    return ", ".join(f"{name} × {number}" for name, number in numbers.items()) or "none"


def _percentiles(took: list[float]) -> str:
    if not took:
        return "p50, p95, p99: nothing was answered"
    cuts = quantiles(took if len(took) > 1 else took * 2, n=100, method="inclusive")  # of one there are none
    return f"p50 {cuts[49]:.0f} ms, p95 {cuts[94]:.0f} ms, p99 {cuts[98]:.0f} ms"


def main() -> int:
    """Send, look, tell; return 1 if not all is well."""
    parser = argparse.ArgumentParser(prog="make load", description="Load on the local stack, and its effects.")
    parser.add_argument("--rate", type=float, default=50, help="events a second (default: 50)")
    parser.add_argument("--seconds", type=float, default=60, help="for how long (default: 60)")
    options = parser.parse_args()
    try:
        return asyncio.run(_measured(options.rate, options.seconds))
    except Problem as problem:
        complain(str(problem))
        return 1


if __name__ == "__main__":
    sys.exit(main())
