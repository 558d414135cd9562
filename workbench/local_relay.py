"""The relay on this machine: the local stack, and the sandboxes behind it."""

import asyncio
import errno
import hashlib
import json
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from itertools import count, repeat
from pathlib import Path
from secrets import token_hex
from typing import Any, Self

import tomlkit

from crm_relay.settings import ConfigurationError, load_settings, read_secrets
from workbench.local_crms import SANDBOXES, LocalCrm
from workbench.sandboxes import Sandbox, serve
from workbench.stack import AlreadyRunning, LocalStack, PortInUse, Published, running
from workbench.stack.gateway import bound

type Json = dict[str, Any]

_REMEMBERED_EVENTS = 1_000
_KEY_NAME = "local"


class Metrics:
    """What the functions count for CloudWatch: `by_function[logical id][metric]`."""

    def __init__(self) -> None:
        self.by_function: dict[str, Counter[str]] = {}

    def read(self, function: str, line: str) -> bool:
        """Take a line of a function's log; tell whether it held metrics (CloudWatch's embedded metric format)."""
        if not line.startswith('{"_aws"'):
            return False
        with suppress(ValueError, KeyError, TypeError):
            counted = json.loads(line)
            sums = self.by_function.setdefault(function, Counter())
            for directive in counted["_aws"]["CloudWatchMetrics"]:
                for metric in directive["Metrics"]:
                    values = counted[metric["Name"]]
                    sums[metric["Name"]] += int(sum(values) if isinstance(values, list) else values)
        return True


class LocalRelay:
    """A relay that runs here; see `started`.

    `crms` are the sandboxed CRMs by name and `urls` where each sandbox is, `keys` what clients may know,
    `published` the last events of the buses, and `story` what was played, once it was.
    """

    def __init__(
        self, stack: LocalStack, metrics: Metrics, crms: Mapping[str, LocalCrm], urls: Mapping[str, str]
    ) -> None:
        self.stack = stack
        self.metrics = metrics
        self.crms = crms
        self.urls = urls
        self.keys = {
            "lead_api_key": token_hex(16),
            **{f"{crm.name}_{name}": key for crm in crms.values() for name, key in crm.keys.items()},
        }
        self.published: deque[Published] = deque(maxlen=_REMEMBERED_EVENTS)
        self.event_counts: Counter[str] = Counter()
        self.story: Json | None = None

    @classmethod
    @asynccontextmanager
    async def started(
        cls,
        *,
        template: Path,
        config: Path,
        state: Path,
        port: int = 3000,
        live: Path | None = None,
        on_log: Callable[[str, str], None] | None = None,
        on_event: Callable[[Published], None] | None = None,
    ) -> AsyncIterator[Self]:
        """Run everything for as long as the block lasts.

        Args:
            template: the SAM template.
            config: relay.toml, of which a copy is made that points to the sandboxes.
            state: gets the copy, and what LocalStack keeps.
            port: where the API listens; the sandboxes take the next ones. 0: any free ports.
            live: a file with the JSON of the secret; the CRMs that have a part in it are the real ones.
            on_log: told (function, line) of what a function writes, metrics excepted.
            on_event: told of what is published on a bus.

        Raises:
            AlreadyRunning, PortInUse, ConfigurationError, or what LocalStack raises.
        """
        if first := running(state):
            raise AlreadyRunning(first.pid, first.url)
        given = _read_live(live) if live else {}
        # Asked first: if another workbench has all the ports, the API's is the one to be named.
        with bound(port):
            pass
        metrics = Metrics()

        def read_log(function: str, line: str) -> None:
            if not metrics.read(function, line) and on_log:
                on_log(function, line)

        async with AsyncExitStack() as stack:
            crms: dict[str, LocalCrm] = {}
            urls: dict[str, str] = {}
            ports = count(port + 1) if port else repeat(0)
            for make in SANDBOXES:
                crm = make()
                # Also of a CRM that is the real one: those of the others stay what they are.
                numbers = {name: next(ports) for name in crm.sandboxes}
                if not given.get(crm.name):
                    crms[crm.name] = crm
                    for name, sandbox in crm.sandboxes.items():
                        urls[name] = await _served(stack, crm.title, sandbox, numbers[name])
            here = LocalStack(
                template,
                port=port,
                relay_config=_configured(config, state / "relay.toml", crms, urls),
                state_dir=state,
                prepare=lambda: relay._open(given),
                on_log=read_log,
            )
            relay = cls(here, metrics, crms, urls)
            await stack.enter_async_context(here)
            stack.callback(asyncio.create_task(relay._watch(on_event)).cancel)
            yield relay

    def crm[T: LocalCrm](self, kind: type[T]) -> T | None:
        """Return a sandboxed CRM; None if it is the real one."""
        found = self.crms.get(kind.name)
        return found if isinstance(found, kind) else None

    @property
    def real_crms(self) -> list[str]:
        """The titles of the CRMs that are the real ones."""
        return [kind.title for kind in SANDBOXES if kind.name not in self.crms]

    async def enqueue(self, queue: str, body: str) -> str:
        """Send a message to a queue, by its name; return the message's id. Raises KeyError if there is none."""
        url = next((each for each in self.stack.outputs.values() if each.endswith(f"/{queue}")), None)
        if url is None:
            raise KeyError(queue)
        send = self.stack.client("sqs").send_message
        return str((await asyncio.to_thread(send, QueueUrl=url, MessageBody=body))["MessageId"])

    async def publish(self, event: Json) -> str:
        """Put an EventBridge event on the bus; return its new id."""
        entry = {
            "EventBusName": self.stack.outputs["BusName"],
            "Source": event["source"],
            "DetailType": event["detail-type"],
            "Detail": json.dumps(event["detail"], ensure_ascii=False),
        }
        answer = await asyncio.to_thread(self.stack.client("events").put_events, Entries=[entry])
        return str(answer["Entries"][0]["EventId"])

    async def invoke(self, folder: str, event: Json) -> Any:
        """Invoke the function of a folder in functions/ that has a schedule, or else no route; return its answer.

        Raises KeyError if there is none, and FunctionError.
        """
        blueprint = self.stack.blueprint
        scheduled = {schedule.function for schedule in blueprint.schedules}
        routed = {route.function for route in blueprint.routes}
        here = [name for name, plan in blueprint.functions.items() if plan.handler.startswith(f"{folder}.")]
        names = sorted((name for name in here if name not in routed), key=lambda name: name not in scheduled)
        if not names:
            raise KeyError(folder)
        return await self.stack.invoke(names[0], event)

    async def deliveries(self) -> dict[str, Counter[str]]:
        """Count what the table knows, by kind and state; what no worker has taken yet is "WAITING"."""
        states: dict[str, str] = {}
        for item in await asyncio.to_thread(lambda: list(self._scan())):
            prefix, _, name = item["key"]["S"].partition("#")
            if prefix == "effect":
                states[name] = item["state"]["S"]
            elif prefix == "inbound":
                states.setdefault(name, "WAITING")
        counts: dict[str, Counter[str]] = {}
        for name, state in states.items():
            counts.setdefault(name.partition("#")[0], Counter())[state] += 1
        return counts

    async def status(self) -> Json:
        """Return what runs, how it has been doing, and how the story went."""
        return {
            **await self.stack.status(),
            "metrics": {name: dict(counts) for name, counts in sorted(self.metrics.by_function.items())},
            "events": dict(self.event_counts),
            "story": self.story,
        }

    def _scan(self) -> Iterator[Json]:
        pages = (
            self.stack.client("dynamodb")
            .get_paginator("scan")
            .paginate(
                TableName=self.stack.outputs["TableName"],
                ProjectionExpression="#key, #state",
                ExpressionAttributeNames={"#key": "key", "#state": "state"},
            )
        )
        for page in pages:
            yield from page["Items"]

    async def _open(self, given: Json) -> None:
        """Let the sandboxes call back, and fill the secret."""
        for crm in self.crms.values():
            crm.connect(self.stack.outputs)
        digest = hashlib.sha256(self.keys["lead_api_key"].encode()).hexdigest()
        secret = {
            **given,
            **{crm.name: crm.secret for crm in self.crms.values()},
            "lead_api_keys": {**given.get("lead_api_keys", {}), _KEY_NAME: digest},
        }
        put = self.stack.client("secretsmanager").put_secret_value
        await asyncio.to_thread(put, SecretId=self.stack.outputs["SecretArn"], SecretString=json.dumps(secret))

    async def _watch(self, on_event: Callable[[Published], None] | None) -> None:
        async for published in self.stack.events():
            self.published.append(published)
            self.event_counts[str(published.event.get("detail-type"))] += 1
            if on_event:
                on_event(published)


def _read_live(path: Path) -> Json:
    try:
        text = path.read_text("utf-8")
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path}: {error}") from None
    try:
        read_secrets(text)
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: {error}") from None
    given: Json = json.loads(text)
    return given


def _configured(config: Path, copy: Path, crms: Mapping[str, LocalCrm], urls: Mapping[str, str]) -> Path:
    load_settings(config)
    document = tomlkit.parse(config.read_text("utf-8"))
    for name, crm in crms.items():
        table = document.setdefault(name, tomlkit.table())
        crm.configure(table, {each: urls[each] for each in crm.sandboxes})
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_text(tomlkit.dumps(document), "utf-8")
    load_settings(copy)
    return copy


async def _served(stack: AsyncExitStack, title: str, sandbox: Sandbox, port: int) -> str:
    try:
        return await stack.enter_async_context(serve(sandbox, port))
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise PortInUse(
            f"another program listens on 127.0.0.1:{port}, where {title}'s sandbox belongs; "
            "RELAY_PORT chooses another port for the API, and the sandboxes take the next ones"
        ) from None
