"""What every test may count on: no network, no AWS, and a relay of its own that is gone afterwards."""

import gc
import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

# Powertools reads these when crm_relay.observability is imported; boto3 must find nothing that is real.
os.environ.update(
    POWERTOOLS_METRICS_NAMESPACE="CrmRelay",
    POWERTOOLS_SERVICE_NAME="tests",
    POWERTOOLS_LOG_LEVEL="INFO",
    AWS_ACCESS_KEY_ID="testing",
    AWS_SECRET_ACCESS_KEY="testing",
    AWS_DEFAULT_REGION="eu-central-1",
    AWS_EC2_METADATA_DISABLED="true",
    AWS_CONFIG_FILE=os.devnull,
    AWS_SHARED_CREDENTIALS_FILE=os.devnull,
)
os.environ.pop("AWS_PROFILE", None)

from tests import canaries
from tests.relay import Relay

# A test that passed here passes there: the same examples everywhere, however slow the machine.
settings.register_profile("tests", derandomize=True, deadline=None)
settings.load_profile("tests")


def pytest_configure(config: pytest.Config) -> None:
    """Warnings are errors here, but for one that the relay itself silences."""
    config.addinivalue_line("filterwarnings", "ignore:No application metrics to publish:UserWarning")


def pytest_collection_finish() -> None:
    """Spare the garbage collector the thousands of tests: searching them took a sixth of all time."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Unit tests open no socket at all, the others none that leaves this machine."""
    for item in items:
        unit = "unit" in item.path.parts
        item.add_marker(pytest.mark.disable_socket if unit else pytest.mark.allow_hosts(["127.0.0.1", "::1"]))


@pytest.fixture(autouse=True)
def no_canary_is_told() -> Iterator[None]:
    """What a relay told while a test ran holds no secret, and no personal data."""
    with canaries.none_told():
        yield


@pytest.fixture
def relay() -> Iterator[Relay]:
    """A relay in memory."""
    with Relay() as relay:
        yield relay
