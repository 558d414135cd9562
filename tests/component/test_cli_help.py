"""What every command owes to the person who types it."""

from pathlib import Path

import pytest

from tests.component.cli import Cli

COMMANDS = [
    "leads submit",
    "leads import",
    "leads status",
    "leads show",
    "deliveries list",
    "deliveries show",
    "dead-letters list",
    "dead-letters redrive",
    "secrets init",
    "secrets set",
    "secrets unset",
    "secrets revoke",
    "secrets check",
    "amo authorize",
    "amo hooks",
    "amo stages",
    "bitrix check",
    "bitrix fields",
    "bitrix address",
    "bitrix robot install",
    "bitrix robot list",
    "bitrix robot remove",
    "bitrix transfer",
    "check",
]
EVENTS_AND_STACK = ["start", "status", "send", "sign"]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_examples_of_this_very_command(tmp_path: Path, command: str) -> None:
    result = Cli(tmp_path)(*command.split(), "--help")
    _, _, examples = result.stdout.partition("Examples")
    assert f"relay {command}" in examples
    assert result.exit_code == 0


def test_help_names_all_commands(tmp_path: Path) -> None:
    result = Cli(tmp_path)("--help")
    for command in [*COMMANDS, *EVENTS_AND_STACK]:
        assert command.partition(" ")[0] in result.stdout
    assert result.exit_code == 0


def test_send_lists_the_events_that_it_can_send(tmp_path: Path) -> None:
    result = Cli(tmp_path)("send")
    assert "callback_receiver/lead_approved" in result.stdout.splitlines()
    assert result.exit_code == 0


@pytest.mark.parametrize("command", ["set", "unset"])
def test_the_names_of_secrets_are_not_broken(tmp_path: Path, command: str) -> None:
    words = Cli(tmp_path)("secrets", command, "--help", COLUMNS="80").stdout.replace(",", " ").split()
    assert {"cartelcrm.callback_secret", "amocrm.long_lived_token", "bitrix24.application_token"} <= set(words)


@pytest.mark.parametrize("command", ["--help", "leads submit --help", "check", "leads show order-17", "nonsense"])
def test_without_a_terminal_there_are_no_colours_and_no_line_is_longer_than_80(tmp_path: Path, command: str) -> None:
    result = Cli(tmp_path)(*command.split())
    assert "\x1b" not in result.output
    assert max(map(len, result.stdout.splitlines()), default=0) <= 80
