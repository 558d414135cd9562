"""The story of `relay start`, where nothing comes as it must; where all does, see tests/stack."""

import json
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from typer.testing import CliRunner

from workbench.cli import app, start
from workbench.cli.world import World
from workbench.local_crms import AmoCrm, Bitrix24, CartelCrm, LocalCrm
from workbench.local_relay import LocalRelay, Metrics
from workbench.sandboxes import CartelCrmSandbox
from workbench.story import Step, Story


class Broken:
    """A relay that is gone."""

    def __init__(self) -> None:
        self.crms = {crm.name: crm for crm in (CartelCrm(), AmoCrm(), Bitrix24())}
        self.keys = {"lead_api_key": "key", "cartelcrm_callback_secret": "secret"}
        self.metrics = Metrics()
        self.published: deque[Any] = deque()
        self.stack = SimpleNamespace(url="http://127.0.0.1:1")

    def crm(self, kind: type[LocalCrm]) -> LocalCrm:
        return self.crms[kind.name]

    async def publish(self, _event: object) -> str:
        raise ConnectionError("gone")

    async def deliveries(self) -> dict[str, object]:
        raise ConnectionError("gone")


async def test_whatever_goes_wrong_is_told_and_the_story_ends() -> None:
    """Each chapter for itself; and leads live by themselves again."""
    broken, told = Broken(), list[Step]()
    cartelcrm = broken.crms["cartelcrm"].sandboxes["cartelcrm"]
    assert isinstance(cartelcrm, CartelCrmSandbox)
    lives = cartelcrm.account.lives
    story = Story(cast("LocalRelay", broken), told.append, patience=0.0)
    await story.play()
    assert not story.ok
    assert len(told) >= 5
    assert [step for step in told if step.ok] == []
    assert json.loads(json.dumps(story.report()))["ok"] is False
    assert cartelcrm.account.lives == lives


@pytest.mark.parametrize(("as_told", "code"), [(True, 0), (False, 1)])
def test_the_exit_code_says_whether_all_came_as_it_must(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, as_told: bool, code: int
) -> None:
    async def run(*_: object, **__: object) -> bool:
        return as_told

    monkeypatch.setattr(start, "_run", run)
    assert CliRunner().invoke(app, ["start", "--once"], obj=World(state=tmp_path)).exit_code == code


def test_metrics_are_summed_by_function() -> None:
    """As CloudWatch reads them from the same lines."""
    metrics = Metrics()
    line = {
        "_aws": {"CloudWatchMetrics": [{"Metrics": [{"Name": "Done"}, {"Name": "Waiting"}]}]},
        "Done": [1.0, 1.0],
        "Waiting": 1,
    }
    assert metrics.read("LeadSubmitFunction", json.dumps(line))
    assert metrics.read("LeadSubmitFunction", json.dumps(line))
    assert metrics.by_function == {"LeadSubmitFunction": {"Done": 4, "Waiting": 2}}


@pytest.mark.parametrize("line", ["", "words", '{"level":"INFO"}'])
def test_other_lines_are_no_metrics(line: str) -> None:
    metrics = Metrics()
    assert not metrics.read("LeadApiFunction", line)
    assert metrics.by_function == {}


def test_metrics_that_make_no_sense_count_nothing() -> None:
    metrics = Metrics()
    assert metrics.read("LeadApiFunction", '{"_aws": {"CloudWatchMetrics": [{"Metrics": [{"Name": "Done"}]}]}}')
    assert metrics.by_function["LeadApiFunction"].total() == 0
