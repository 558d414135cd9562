"""`relay check`: every mistake of relay.toml at once, every connection tried, and a way out of each trouble."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from crm_relay.settings import ConfigurationError, load_settings
from tests.component.cli import Cli
from tests.component.test_cli_stack import NAME, Stack, stack
from tests.relay import RELAY_TOML
from workbench.cli.configuration import mistakes

__all__ = ["stack"]

VALUES = "api-key\nhmac-secret\ncallback-secret\n"


def toml(folder: Path, text: str) -> Path:
    file = folder / "relay.toml"
    file.write_text(text, "utf-8")
    return file


# relay.toml


def test_the_file_that_is_deployed_is_valid() -> None:
    assert mistakes(RELAY_TOML) == []


def test_all_mistakes_are_told_at_once_each_with_its_key_and_what_was_expected(tmp_path: Path) -> None:
    file = toml(
        tmp_path,
        """
        colour = "red"
        [relay]
        give_up_after_seconds = "a day"
        replay_window_days = 7
        replay_window_day = 30
        [cartelcrm]
        base_url = "http://cartelcrm.com/api/"
        requests_per_second = 0
        require_signature_prefix = 1
        [cartelcrm.statuses]
        sale = "aproved"
        refund = "retuned"
        spam = 3
        """,
    )
    first, *others = (mistake.removeprefix("relay.toml: ") for mistake in mistakes(file))
    assert first.startswith("colour: nobody reads this; known: relay, cartelcrm")
    words = "expected one of new, accepted, hold, approved, paid, rejected, duplicate, trash, callback, returned"
    address = "expected an address that begins with https:// and does not end with a slash"
    assert others == [
        "relay.give_up_after_seconds: expected int, got str; there is 'a day'",
        "relay.replay_window_days: expected int >= 30; there is 7",
        "relay.replay_window_day: nobody reads this; is replay_window_days meant?",
        f"cartelcrm.base_url: {address}; there is 'http://cartelcrm.com/api/'",
        "cartelcrm.requests_per_second: expected float > 0.0; there is 0",
        "cartelcrm.require_signature_prefix: expected bool, got int; there is 1",
        "cartelcrm.statuses.spam: expected str, got int; there is 3",
        f"cartelcrm.statuses.sale: {words}",
        f"cartelcrm.statuses.refund: {words}",
    ]


@pytest.mark.parametrize(
    "text", ["relay = 1", "[relay", "[cartelcrm]\nstatuses = 1", "relay = [1]", "\x00", "[a]\n[a]"]
)
def test_whatever_the_functions_refuse_is_a_mistake(tmp_path: Path, text: str) -> None:
    file = toml(tmp_path, text)
    with pytest.raises(ConfigurationError):
        load_settings(file)
    assert mistakes(file)


def test_words_that_differ_in_case_alone_must_mean_the_same(tmp_path: Path) -> None:
    same = toml(tmp_path, '[cartelcrm.statuses]\nsale = "paid"\nSale = "paid"')
    assert mistakes(same) == []
    other = toml(tmp_path, '[cartelcrm.statuses]\nsale = "paid"\nSale = "approved"')
    assert mistakes(other) == ["relay.toml: cartelcrm.statuses.Sale: sale is the same word, and means paid"]


# relay check --offline


def test_offline_needs_nothing_but_the_file(tmp_path: Path) -> None:
    result = Cli(tmp_path)("check", "--offline")
    assert "relay.toml is valid" in result.stdout
    assert result.exit_code == 0


def test_a_mistake_is_exit_code_1(tmp_path: Path) -> None:
    file = toml(tmp_path, "[relay]\nreplay_window_days = 7")
    for arguments in (("--config", file), ("--config", file, "--json")):
        result = Cli(tmp_path)("check", "--offline", *arguments)
        assert "replay_window_days" in result.stdout
        assert result.exit_code == 1
    assert Cli(tmp_path)("check", "--offline", "--config", tmp_path / "nowhere.toml").exit_code == 1


def test_offline_loads_neither_aws_nor_http() -> None:
    """`make check` calls it each time."""
    code = """
import sys
from workbench.cli import app
try:
    app(["check", "--offline"])
except SystemExit as end:
    assert end.code == 0
print(sorted({"boto3", "httpx", "aiohttp", "phonenumbers"} & sys.modules.keys()))
"""
    command = [sys.executable, "-c", code]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)  # noqa: S603 (our own words)
    assert ran.stdout.splitlines()[-1] == "[]"


# relay check


class World:
    """A stack whose CartelCRM and API answer as they are told; an exception is raised."""

    def __init__(self, deployed: Stack) -> None:
        self.stack = deployed
        self.cartelcrm: Any = httpx.Response(404, json={"error": "not_found"})
        self.callbacks: Any = httpx.Response(401, json={"error": "timestamp_out_of_range"})
        self.leads: Any = httpx.Response(404, json={"error": "not_found"})
        deployed.cli._answer = self._answer
        deployed("secrets", "init", stdin=VALUES)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        if request.url.host == "cartelcrm.com":
            answer = self.cartelcrm
        else:
            answer = self.callbacks if request.method == "POST" else self.leads
        if isinstance(answer, Exception):
            raise answer
        response: httpx.Response = answer
        return response

    def check(self, **environment: str) -> dict[str, SimpleNamespace]:
        """Return the findings by what was checked."""
        result = self.stack("check", "--json", RELAY_API_KEY="key", **environment)
        findings = [SimpleNamespace(**finding) for finding in json.loads(result.stdout)]
        assert result.exit_code == int(any(finding.good is False for finding in findings))
        return {finding.what: finding for finding in findings}


@pytest.fixture
def world(stack: Stack) -> World:
    return World(stack)


def test_a_stack_in_good_order_passes(world: World) -> None:
    findings = world.check()
    assert findings.keys() == {
        "settings",
        "stack",
        "secret",
        "table",
        "queue bitrix",
        "queue callback",
        "queue lead",
        "CartelCRM",
        "callbacks",
        "leads API",
    }
    assert all(finding.good for finding in findings.values())
    assert "✓" in world.stack("check", RELAY_API_KEY="key").stdout


@pytest.mark.parametrize(
    ("answer", "good", "words"),
    [
        (httpx.Response(401), False, "does not take the credentials"),
        (httpx.Response(403), False, "does not take the credentials"),
        (httpx.Response(429), None, "busy"),
        (httpx.Response(302, headers={"Location": "https://elsewhere.test"}), False, "elsewhere"),
        (httpx.Response(502, text="<html>"), False, "does not answer as CartelCRM does"),
        (httpx.Response(200, text="<html>"), False, "does not answer as CartelCRM does"),
        (httpx.Response(200, json={"id": 1, "status": "new"}), None, "nobody ever submitted"),
        (httpx.ConnectError("refused"), False, "cannot be reached"),
        (httpx.ReadTimeout("slow"), False, "does not answer as CartelCRM does"),
    ],
)
def test_cartelcrm_is_asked_for_a_lead_that_nobody_has(
    world: World, answer: Any, good: bool | None, words: str
) -> None:
    world.cartelcrm = answer
    finding = world.check()["CartelCRM"]
    assert finding.good is good
    assert words in finding.says


@pytest.mark.parametrize(
    ("answer", "good", "words"),
    [
        (httpx.Response(503, json={"error": "not_configured"}), False, "no callback secret"),
        (httpx.Response(429), None, "busy"),
        (httpx.Response(200, json={"ok": True}), False, "answers 200 to an unsigned callback"),
        (httpx.Response(404), False, "answers 404"),
        (httpx.ConnectError("refused"), False, "cannot be reached"),
    ],
)
def test_an_unsigned_callback_must_be_refused(world: World, answer: Any, good: bool | None, words: str) -> None:
    world.callbacks = answer
    finding = world.check()["callbacks"]
    assert finding.good is good
    assert words in finding.says


def test_a_lead_api_key_is_tried(world: World) -> None:
    world.leads = httpx.Response(401, json={"error": "api_key_required"})
    assert "does not know this key" in world.check()["leads API"].says
    world.leads = httpx.Response(503)
    assert world.check()["leads API"].good is False
    assert "not asked" in world.stack("check").stdout


def test_what_the_secret_lacks_is_told_with_the_command_that_sets_it(world: World) -> None:
    world.stack.filled(cartelcrm={"api_key": "k"})
    findings = world.check()
    assert findings["secret"].fix == f"relay secrets set lead_api_key --stack {NAME}"
    assert findings["CartelCRM"].good is None
    world.stack.secretsmanager.put_secret_value(SecretId=world.stack.secret, SecretString="not json")
    assert "relay secrets init" in world.check()["secret"].says


def test_dead_letters_are_told(world: World) -> None:
    world.stack.bury("lead")
    finding = world.check()["queue lead"]
    assert finding.good is None
    assert finding.fix == f"relay dead-letters list --stack {NAME}"


def test_what_aws_refuses_is_a_finding_and_the_rest_is_checked_all_the_same(world: World) -> None:
    world.stack.dynamodb.delete_table(TableName="relay")
    findings = world.check()
    assert findings["table"].good is False
    assert "ResourceNotFoundException" in findings["table"].says
    assert findings["leads API"].good is True


def test_without_a_stack_the_files_are_checked_and_the_way_is_told(tmp_path: Path) -> None:
    result = Cli(tmp_path)("check")
    assert "relay.toml is valid" in result.stdout
    assert "make start" in " ".join(result.stdout.split())
    assert result.exit_code == 1
