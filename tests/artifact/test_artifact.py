"""What `make artifact` has built, run as Lambda runs it: under AWS's emulator, with the build alone on its path."""

import hashlib
import importlib.util
import json
import marshal
import re
import time
from asyncio import to_thread
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
import pytest_asyncio
import tomlkit
from samtranslator.yaml_helper import yaml_parse

from crm_relay.delivery.aws import DynamoStore
from workbench import events
from workbench.build import DEPENDENCIES_LIMIT, ROOT, BuildError, precompile, require_runtime
from workbench.emulator import Built, Emulator, built
from workbench.local_crms import Bitrix24
from workbench.sandboxes import (
    AmoCrmAccount,
    AmoCrmSandbox,
    CartelCrmAccount,
    CartelCrmSandbox,
    Integration,
    serve,
)

BUILT = ROOT / ".aws-sam/build-x86_64"
if not BUILT.is_dir():
    raise pytest.UsageError("nothing is built: `make artifact` builds it first")

FUNCTIONS: Mapping[str, str] = {
    name: resource["Properties"]["Handler"]
    for name, resource in yaml_parse((BUILT / "template.yaml").read_text("utf-8"))["Resources"].items()
    if resource["Type"] == "AWS::Serverless::Function"
}
FOLDERS = sorted(folder.name for folder in BUILT.iterdir() if folder.is_dir())
INTEGRATION = Integration(client_id="client", client_secret="secret", redirect_uri="https://relay.test", user_id=0)
KEYS = {
    "lead_api_key": "lead-key",
    "cartelcrm_callback_secret": "callback",
    "amocrm_hook_token": "hook-token",
    "amocrm_client_id": "client",
    "amocrm_client_secret": "secret",
}
SECRET = {
    "cartelcrm": {"api_key": "key", "hmac_secret": "hmac", "callback_secrets": [{"value": "callback"}]},
    "lead_api_keys": {"website": hashlib.sha256(b"lead-key").hexdigest()},
}

in_the_world = pytest.mark.asyncio(loop_scope="module")


@dataclass(frozen=True)
class World:
    """The build, the AWS that its functions reach, and the CRMs' sandboxes."""

    stack: Built
    cartelcrm: CartelCrmSandbox
    amocrm: AmoCrmSandbox
    bitrix24: Bitrix24
    environment: Mapping[str, str]

    def item(self, key: str) -> Mapping[str, Any]:
        """The attributes of an item in the table."""
        item = DynamoStore(self.stack.cloud.client("dynamodb"), self._output("TableName")).get(key)
        assert item
        return item.attributes

    def callbacks(self) -> list[Any]:
        """The callbacks that wait in the queue, as they were sent."""
        url = self._output("CallbackQueueUrl")
        answer = self.stack.cloud.client("sqs").receive_message(QueueUrl=url, MaxNumberOfMessages=10)
        return [json.loads(json.loads(message["Body"])["payload"]["body"]) for message in answer.get("Messages", [])]

    def payloads(self, queue: str) -> list[Any]:
        """What waits in a queue, by its output in the template."""
        answer = self.stack.cloud.client("sqs").receive_message(QueueUrl=self._output(queue))
        return [json.loads(message["Body"])["payload"] for message in answer.get("Messages", [])]

    def _output(self, name: str) -> str:
        return self.stack.blueprint.outputs[name]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    account = CartelCrmAccount(api_key="key", hmac_secret="hmac", callback_secret="callback")
    cartelcrm = CartelCrmSandbox(account, clock=time.time, random=Random(1))
    amocrm = AmoCrmSandbox(AmoCrmAccount(integrations=(INTEGRATION,)), clock=time.time, random=Random(1))
    amocrm.add("leads", name="Окна на кухню")
    ours = {
        "hook_token": "hook-token",
        "long_lived_token": amocrm.long_lived_token("client"),
        "client_id": "client",
        "client_secret": "secret",
        "redirect_uri": "https://relay.test",
    }
    bitrix24 = Bitrix24()
    bitrix24.partner.move(bitrix24.deal, bitrix24.ROBOT_STAGE)
    async with AsyncExitStack() as exits:
        url, amocrm_url = [await exits.enter_async_context(serve(sandbox)) for sandbox in (cartelcrm, amocrm)]
        urls = {name: await exits.enter_async_context(serve(each)) for name, each in bitrix24.sandboxes.items()}
        stack = await exits.enter_async_context(built(BUILT))
        config = tmp_path_factory.mktemp("configuration") / "relay.toml"
        document = tomlkit.parse(pointed_at(url, stack) + with_account(amocrm.account, amocrm_url))
        bitrix24.configure(document.setdefault("bitrix24", tomlkit.table()), urls)
        config.write_text(tomlkit.dumps(document), "utf-8")
        secret = {**SECRET, "amocrm": {"main": ours}, "bitrix24": bitrix24.secret}
        stack.cloud.client("secretsmanager").put_secret_value(
            SecretId=stack.blueprint.outputs["SecretArn"], SecretString=json.dumps(secret)
        )
        # What is not compiled beforehand must not be left behind compiled, and Lambda's folders are read-only.
        yield World(stack, cartelcrm, amocrm, bitrix24, {"RELAY_CONFIG": str(config), "PYTHONDONTWRITEBYTECODE": "1"})


def pointed_at(url: str, stack: Built) -> str:
    """Return the relay.toml of the built layer with the sandbox in the place of CartelCRM."""
    [layered] = {Path(function.environment["RELAY_CONFIG"]) for function in stack.blueprint.functions.values()}
    text = layered.read_text("utf-8")
    assert text.count("https://cartelcrm.com/api") == 1
    return text.replace("https://cartelcrm.com/api", f"{url}/api")


def with_account(account: AmoCrmAccount, url: str) -> str:
    """Return the table of relay.toml for an account whose sandbox is at `url`."""
    host = url.removeprefix("http://")
    values = f'account_id = {account.id}\nhost = "{host}"\nsubdomain = "{account.subdomain}"\n'
    return f"\n[amocrm.accounts.main]\n{values}"


def callback_is_queued(world: World, answer: Any) -> None:
    assert (answer["statusCode"], json.loads(answer["body"])) == (200, {"ok": True})
    assert "web-1001" in [callback["external_id"] for callback in world.callbacks()]


def lead_is_approved(world: World, answer: Any) -> None:
    assert answer == {"batchItemFailures": []}
    assert world.item("lead#7c04be1190aa")["status"] == "approved"


def lead_is_accepted(world: World, answer: Any) -> None:
    lead = world.cartelcrm.find("web-1001")
    assert lead
    known = {"external_id": "web-1001", "status": "accepted", "id": lead.id}
    assert (answer["statusCode"], json.loads(answer["body"])) == (200, known)


def lead_is_submitted(world: World, answer: Any) -> None:
    assert answer == {"batchItemFailures": []}
    assert world.cartelcrm.find("queue-3001")


def nothing_is_drained(_world: World, answer: Any) -> None:
    assert answer == {"sent": 0, "failed": 0}


def change_is_queued(world: World, answer: Any) -> None:
    assert (answer["statusCode"], json.loads(answer["body"])) == (200, {"ok": True})
    assert {"account": "main", "card": "leads", "id": 32966269, "added": False} in world.payloads("AmoQueueUrl")


def note_is_written(world: World, answer: Any) -> None:
    assert answer == {"batchItemFailures": []}
    assert len(world.amocrm.card("leads", 32966269).notes) == 1


def consent_is_refused(_world: World, answer: Any) -> None:
    assert answer["statusCode"] == 400
    assert "<p>" in answer["body"]


def call_is_queued(world: World, answer: Any) -> None:
    assert (answer["statusCode"], json.loads(answer["body"])["transfer"]) == (200, "queued")
    order = {"portal": "partner", "deal": world.bitrix24.deal, "route": "main", "expected": False, "event_token": ""}
    assert order in world.payloads("BitrixQueueUrl")


def deal_is_carried(world: World, answer: Any) -> None:
    assert answer == {"batchItemFailures": []}
    deals = [deal["UF_SOURCE_DEAL_ID"] for deal in world.bitrix24.hub.deals.values()]
    assert deals.count(world.bitrix24.deal) == 1


def nothing_is_swept(_world: World, answer: Any) -> None:
    assert answer == {"partner": 0}


def hook_is_looked_after(world: World, answer: Any) -> None:
    assert answer["main"] in ("repaired", "in_order")
    assert len(world.amocrm.hooks.subscriptions) == 1


CASES: Mapping[str, tuple[str, Callable[[World, Any], None]]] = {
    "callback_receiver.receive.handler": ("callback_receiver/lead_approved", callback_is_queued),
    "callback_receiver.process.handler": ("callback_receiver/callback_queued", lead_is_approved),
    "lead_submitter.api.handler": ("lead_submitter/post_lead", lead_is_accepted),
    "lead_submitter.submit.handler": ("lead_submitter/lead_queued", lead_is_submitted),
    "amo_webhook.receive.handler": ("amo_webhook/lead_changed", change_is_queued),
    "amo_webhook.add_notes.handler": ("amo_webhook/change_queued", note_is_written),
    "amo_webhook.authorize.handler": ("amo_webhook/consent_refused", consent_is_refused),
    "amo_webhook.upkeep.handler": ("amo_webhook/upkeep", hook_is_looked_after),
    "bitrix_robot.receive.handler": ("bitrix_robot/deal_updated", call_is_queued),
    "bitrix_robot.transfer.handler": ("bitrix_robot/transfer_queued", deal_is_carried),
    "bitrix_robot.sweep.handler": ("bitrix_robot/sweep", nothing_is_swept),
    "outbox.drain.handler": ("outbox/drain", nothing_is_drained),
}
"""The event that a function gets, by its handler, and what must be so when it has answered."""


def event_for(world: World, function: str) -> Mapping[str, Any]:
    """Return the event of a function's case, signed as of now."""
    name, _ = CASES[FUNCTIONS[function]]
    keys = KEYS | {f"bitrix24_{name}": key for name, key in world.bitrix24.keys.items()}
    return events.signed(events.load(name), keys, now=time.time())


@in_the_world
@pytest.mark.parametrize("function", FUNCTIONS)
async def test_a_built_function_answers(world: World, function: str) -> None:
    _, check = CASES[FUNCTIONS[function]]
    with world.stack.emulator(function, world.environment) as emulator:
        check(world, await to_thread(emulator.invoke, event_for(world, function)))


def compiled(log: str) -> list[str]:
    """The modules that Python had to compile, as PYTHONVERBOSE tells; those from bytecode end in .pyc."""
    return re.findall(r"^# code object from '?(\S+\.py)'?$", log, re.MULTILINE)


@in_the_world
@pytest.mark.parametrize("function", FUNCTIONS)
async def test_nothing_is_compiled_at_start(world: World, function: str) -> None:
    """Up to the first answer, every module of function and layers comes from the bytecode in the build."""
    environment = {**world.environment, "PYTHONVERBOSE": "1"}
    with world.stack.emulator(function, environment) as emulator:
        await to_thread(emulator.invoke, event_for(world, function))
        log = emulator.log
    assert f"{BUILT}/CrmRelayLayer/python/crm_relay/__pycache__/settings.cpython-313.pyc" in log
    assert [module for module in compiled(log) if module.startswith(str(ROOT / ".aws-sam/build"))] == []


@in_the_world
async def test_a_compilation_is_noticed(world: World, tmp_path: Path) -> None:
    """What the test above goes by does tell a module without bytecode from one with."""
    module = tmp_path / "late.py"
    module.write_text("def handler(event, context):\n    return event\n", "utf-8")
    any_function = next(iter(world.stack.blueprint.functions.values()))
    plan = replace(any_function, code=tmp_path, layers=(), handler="late.handler")
    for precompiled in (False, True):
        if precompiled:
            precompile(tmp_path)
        with Emulator(plan, {**world.environment, "PYTHONVERBOSE": "1"}) as emulator:
            assert await to_thread(emulator.invoke, {"a": 1}) == {"a": 1}
            assert (str(module) in compiled(emulator.log)) is not precompiled


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_module_has_bytecode_that_needs_no_check(folder: str) -> None:
    """Of the runtime's version, unchecked, of this very source, and named as the file is named in Lambda."""
    root = BUILT / folder
    place = "/opt" if (root / "python").is_dir() else "/var/task"
    sources = sorted(root.rglob("*.py"))
    assert sources
    for source in sources:
        bytecode = Path(importlib.util.cache_from_source(str(source))).read_bytes()
        flags = int.from_bytes(bytecode[4:8], "little")
        assert bytecode[:4] == importlib.util.MAGIC_NUMBER, source
        assert flags == 0b01, f"{source}: by hash, and the hash not checked"
        assert bytecode[8:16] == importlib.util.source_hash(source.read_bytes()), source
        assert marshal.loads(bytecode[16:]).co_filename == f"{place}/{source.relative_to(root)}"  # noqa: S302


def test_the_dependencies_are_small() -> None:
    files = [path for path in (BUILT / "DependenciesLayer").rglob("*") if path.is_file()]
    assert sum(file.stat().st_size for file in files) <= DEPENDENCIES_LIMIT


def test_another_python_is_refused_with_a_word_of_advice() -> None:
    require_runtime((3, 13))
    with pytest.raises(BuildError, match=r"run on Python 3\.13 .* this is 3\.12\. Install Python 3\.13"):
        require_runtime((3, 12))


def test_what_does_not_compile_is_not_built(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.py").write_text("def handler(:", "utf-8")
    with pytest.raises(BuildError, match="does not compile"):
        precompile(tmp_path)
    assert "broken.py" in capsys.readouterr().out
