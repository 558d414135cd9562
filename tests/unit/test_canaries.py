"""The search for secrets and personal data in all that a test's relay has told."""

from pathlib import Path

import pytest

from tests import canaries
from tests.relay import CALLBACK_SECRET, LEAD_KEY, Relay


@pytest.mark.parametrize(
    "text",
    [
        LEAD_KEY,
        f"Bearer {LEAD_KEY}",
        "/bitrix/canary%2Durl",
        "eyJhbGciOiJSUzI1NiJ9.eyJhdWQiOiJjbGllbnQifQ.c2ln",
        "+380501234567",
        "380501234567",
        "0501234567",
        "050 123 45 67",
        "olena%40example.com",
        "Мария",
        r"\u041e\u043b\u0435\u043d\u0430",
    ],
)
def test_marks_are_found_however_they_are_written(text: str) -> None:
    assert canaries.found(f'{{"told": "{text}"}}')


@pytest.mark.parametrize("text", ["", "crash-17", "1760380501234567", "request-0501234567x", "Окна", "eyJ"])
def test_what_bears_no_mark_is_let_through(text: str) -> None:
    assert canaries.found(text) == set()


@pytest.mark.parametrize(("text", "hits"), [("+380501234567", 0), (CALLBACK_SECRET, 1)])
def test_the_body_of_a_dead_letter_is_searched_for_secrets_alone(text: str, hits: int) -> None:
    assert len(canaries.found(text, personal=True)) == hits


@pytest.mark.parametrize(
    "leak",
    [
        lambda relay: relay._output.write(CALLBACK_SECRET),
        lambda relay: relay._refusals.append({"body": "Олена"}),
        lambda relay: relay.bus.publish("Told", {"phone": "+380501234567"}),
        lambda relay: relay.dead_letters["leads"].send("{}", reason="of o@example.com"),
        lambda relay: relay.dead_letters["leads"].send(LEAD_KEY),
    ],
)
def test_whatever_a_relay_tells_is_searched(leak: object) -> None:
    assert callable(leak)
    with pytest.raises(AssertionError), canaries.none_told(), Relay() as relay:
        leak(relay)


def test_logs_of_a_stack_are_searched_for_its_own_secrets(tmp_path: Path) -> None:
    (tmp_path / "LeadApi.log").write_text("of 5f2c9a from 77")
    keys = {"lead_api_key": "5f2c9a", "amocrm_client_id": "77"}
    assert canaries.found_in_logs(tmp_path, keys) == ["LeadApi.log: lead_api_key"]
