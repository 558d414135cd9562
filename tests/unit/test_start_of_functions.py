"""How a function starts: without a garbage collector, which must be back for the first call."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from samtranslator.yaml_helper import yaml_parse

ROOT = Path(__file__).parents[2]
HANDLERS = [
    resource["Properties"]["Handler"].removesuffix(".handler")
    for resource in yaml_parse((ROOT / "template.yaml").read_text("utf-8"))["Resources"].values()
    if resource["Type"] == "AWS::Serverless::Function"
]
PROGRAM = """
import gc, importlib, sys
importlib.import_module("crm_relay.delivery")
began = gc.isenabled()
importlib.import_module(sys.argv[1])
print(began, gc.isenabled(), gc.get_freeze_count() > 0)
"""


def started(module: str, **environment: str) -> list[str]:
    """Whether the collector was on when a start began, whether it is when it is over, whether anything is frozen."""
    variables = {
        "PATH": os.environ["PATH"],
        "AWS_DEFAULT_REGION": "eu-central-1",
        "TABLE_NAME": "table",
        "SECRET_ID": "secret",
        "QUEUE_URL": "https://sqs.eu-central-1.amazonaws.com/123456789012/queue",
        "RELAY_CONFIG": str(ROOT / "layers/configuration/relay.toml"),
        "POWERTOOLS_SERVICE_NAME": "tests",
        "POWERTOOLS_METRICS_NAMESPACE": "CrmRelay",
    }
    command = [sys.executable, "-c", PROGRAM, module]
    done = subprocess.run(command, env=variables | environment, capture_output=True, check=True, text=True)  # noqa: S603
    return done.stdout.split()


@pytest.mark.parametrize("module", HANDLERS)
def test_the_collector_rests_while_a_function_starts_and_no_longer(module: str) -> None:
    """A handler that forgot `prepare()` would never collect again."""
    assert started(module, AWS_LAMBDA_RUNTIME_API="127.0.0.1:9") == ["False", "True", "True"]


def test_elsewhere_the_collector_is_left_alone() -> None:
    """Whoever imports this outside Lambda keeps the collector as it was."""
    assert started(HANDLERS[0]) == ["True", "True", "False"]
