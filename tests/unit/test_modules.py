"""What a function loads before its first call: a cold start is paid in modules, so they are counted."""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NEVER = {
    "aws_lambda_powertools.event_handler",
    "aws_lambda_powertools.utilities.parser",
    "aws_lambda_powertools.utilities.validation",
    "aws_xray_sdk",
    "requests",
    "workbench",
}
"""Nobody needs these."""
HTTP = {"httpx", "httpcore", "asyncio", "anyio"}
MODELS = {"pydantic", "pydantic_core", "phonenumbers"}


@dataclass(frozen=True)
class Row:
    """A handler's module, what it must not load beside `NEVER`, and how many modules it may load in all."""

    module: str
    denied: set[str]
    most: int


ROWS = [
    Row("callback_receiver.receive", HTTP | MODELS, 500),
    Row("callback_receiver.process", HTTP | MODELS, 500),
    Row("amo_webhook.receive", HTTP | MODELS, 500),
    Row("amo_webhook.add_notes", MODELS | {"asyncio"}, 620),
    Row("amo_webhook.authorize", MODELS | {"asyncio"}, 620),
    Row("amo_webhook.upkeep", MODELS | {"asyncio"}, 620),
    Row("bitrix_robot.receive", HTTP | MODELS, 500),
    Row("bitrix_robot.transfer", MODELS | {"asyncio"}, 620),
    Row("bitrix_robot.sweep", MODELS | {"asyncio"}, 620),
    Row("outbox.drain", HTTP | MODELS, 500),
    Row("lead_submitter.submit", MODELS | {"asyncio"}, 620),
    Row("lead_submitter.api", {"asyncio"}, 750),
]

# Lambda's python3.13 has boto3 with all that it requires, and our layer brings the rest. What else is installed here is
# hidden: botocore, for one, imports awscrt and pyOpenSSL where it finds them, which aws-sam-cli and moto bring along.
RUNTIME = {"boto3", "botocore", "jmespath", "python-dateutil", "s3transfer", "six", "urllib3"}
PROGRAM = """
import importlib, json, sys
module, paths, hidden = json.loads(sys.argv[1])
sys.modules |= {name: None for name in hidden if name not in sys.modules}
sys.path[:0] = paths
importlib.import_module(module)
json.dump([name for name, module in sys.modules.items() if module is not None], sys.stdout)
"""


@cache
def hidden() -> list[str]:
    """Return the importable names that are installed here and not in Lambda."""
    layer = (ROOT / "layers/dependencies/requirements.txt").read_text("utf-8")
    deployed = RUNTIME | {name.lower() for name in re.findall(r"^([\w.-]+)==", layer, re.MULTILINE)}
    names = packages_distributions().items()
    return [name for name, owners in names if not deployed & {owner.lower().replace("_", "-") for owner in owners}]


def loaded(module: str) -> set[str]:
    """Return the modules of a fresh process that has started as in Lambda: imported, settings read, clients made."""
    paths = [str(ROOT / "functions"), str(ROOT / "layers/crm_relay")]
    environment = {
        "PATH": os.environ["PATH"],
        "AWS_LAMBDA_RUNTIME_API": "127.0.0.1:9",  # makes `prepare` prepare; nobody listens there
        "AWS_REGION": "eu-central-1",
        "AWS_DEFAULT_REGION": "eu-central-1",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "TABLE_NAME": "table",
        "SECRET_ID": "secret",
        "API_URL": "https://relay.example",
        "BUS_NAME": "bus",
        "QUEUE_URL": "https://sqs.eu-central-1.amazonaws.com/123456789012/queue",
        "DEAD_LETTER_QUEUE_URL": "https://sqs.eu-central-1.amazonaws.com/123456789012/dead-letters",
        "RELAY_CONFIG": str(ROOT / "layers/configuration/relay.toml"),
        "POWERTOOLS_SERVICE_NAME": module.partition(".")[0],
        "POWERTOOLS_METRICS_NAMESPACE": "CrmRelay",
    }
    # -I: neither the environment nor the working directory adds anything.
    command = [sys.executable, "-I", "-c", PROGRAM, json.dumps([module, paths, hidden()])]
    done = subprocess.run(command, env=environment, capture_output=True, check=True, text=True)  # noqa: S603 (ours)
    return set(json.loads(done.stdout))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.module)
def test_a_function_loads_no_more_than_it_needs(row: Row) -> None:
    """Each handler starts without what its job does not need, and within its number of modules."""
    modules = loaded(row.module)
    assert "crm_relay.delivery.runtime" in modules, "it was not started"
    assert modules & (NEVER | row.denied) == set()
    assert len(modules) <= row.most


def test_every_function_has_a_row() -> None:
    """A function of the template that is not listed above would be measured by nobody."""
    template = (ROOT / "template.yaml").read_text("utf-8")
    handlers = {line.partition(":")[2].strip() for line in template.splitlines() if line.strip().startswith("Handler:")}
    assert handlers == {f"{row.module}.handler" for row in ROWS}


@pytest.mark.parametrize("module", ["hooks", "client", "resources", "oauth"])
def test_what_functions_use_of_amocrm_is_light(module: str) -> None:
    """Models, services and the whole client load when somebody asks for them."""
    program = f"import json, sys, crm_relay.amocrm.{module}; json.dump([*sys.modules], sys.stdout)"
    command = [
        sys.executable,
        "-I",
        "-c",
        f"import sys; sys.path.insert(0, {str(ROOT / 'layers/crm_relay')!r}); {program}",
    ]
    done = subprocess.run(command, capture_output=True, check=True, text=True)  # noqa: S603 (ours)
    modules = set(json.loads(done.stdout))
    assert modules & (MODELS | {"asyncio", "jwt"}) == set()
    assert {name for name in modules if name.startswith("crm_relay.amocrm.")} <= {
        f"crm_relay.amocrm.{name}" for name in ("hooks", "client", "resources", "oauth")
    }
    assert "httpx" not in modules or module != "hooks"
