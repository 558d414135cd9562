"""docs/amocrm.md: each of its examples runs, and what it says of the services is what there is."""

import re
from pathlib import Path
from typing import Any

import pytest

from crm_relay.amocrm.crm import AmoCrm, AsyncAmoCrm
from crm_relay.http_client import HttpClient
from tests.amocrm import HOST, Office
from workbench import amocrm_table
from workbench.sandboxes.amocrm.account import PIPELINES, USERS

GUIDE = (Path(__file__).parents[2] / "docs/amocrm.md").read_text("utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names that an example does not define itself; clients that it makes talk to the sandbox."""
    office = Office()
    for kind, options in ((AmoCrm, office.options), (AsyncAmoCrm, office.async_options)):
        defaults: Any = kind.__init__.__kwdefaults__
        for name in ("transport", "sleep", "clock", "monotonic"):
            monkeypatch.setitem(defaults, name, options[name])
    (lead,) = office.sandbox.add("leads", name="Окна")
    (contact,) = office.sandbox.add("contacts", name="Оля")
    office.a_talk()
    return {
        "crm": AmoCrm(office.access),
        "http": HttpClient(office.transport, monotonic=office.clock.time),
        "token": office.access.token,
        "code": office.sandbox.authorize("client"),
        "now": office.clock.now,
        "lead_id": lead.id,
        "contact_id": contact.id,
        "user_id": USERS[0].id,
        "pipeline_id": PIPELINES[0].id,
        "host": HOST,
    }


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.strip().splitlines()[-1][:60])
def test_an_example_runs(example: str, known: dict[str, Any]) -> None:
    """As it stands in the guide."""
    exec(compile(example, "docs/amocrm.md", "exec"), known)  # noqa: S102 (our own guide)


def test_every_service_has_an_example() -> None:
    """And none is named that there is not."""
    named = set(re.findall(r"\bcrm\.(\w+)", "\n".join(EXAMPLES))) - {"as_user", "request"}
    assert named == set(amocrm_table.accessors())


def test_the_table_is_the_code() -> None:
    """Nobody writes it by hand, and it has no gap."""
    assert amocrm_table.gaps() == []
    assert amocrm_table.text(GUIDE) == GUIDE


def test_a_gap_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were the PHP library to learn something, the check would say so."""
    monkeypatch.setattr(amocrm_table, "PHP", {"leads": "get teleport", "spells": "get"})
    assert amocrm_table.gaps() == ["leads.teleport", "spells.get"]
