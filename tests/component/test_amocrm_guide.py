"""docs/amocrm.md: each of its examples runs, and what it says of the services is what there is."""

import re
import shutil
import subprocess
import sys
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


def test_the_client_can_be_taken_alone(tmp_path: Path) -> None:
    """With the files that the guide names, and no others."""
    named = set(re.findall(r"`(\w+\.py)`", GUIDE))
    assert named == {"__init__.py", "brackets.py", "http_client.py", "outcomes.py"}
    source = Path(__file__).parents[2] / "layers/crm_relay/crm_relay"
    shutil.copytree(source / "amocrm", tmp_path / "crm_relay/amocrm", ignore=shutil.ignore_patterns("__pycache__"))
    for name in named:
        shutil.copy(source / name, tmp_path / "crm_relay")
    modules = [path.stem for path in (source / "amocrm").glob("[a-z]*.py")]
    program = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import " + ", ".join(
        f"crm_relay.amocrm.{module}" for module in modules
    )
    program += f"; assert all(m.__file__.startswith({str(tmp_path)!r}) for n, m in sys.modules.items() if 'relay' in n)"
    subprocess.run([sys.executable, "-I", "-c", program], check=True)  # noqa: S603 (ours)


def test_what_the_php_library_pages_is_known() -> None:
    """Pages are turned by those of its services that have the trait for it, and by no others (section 1.3)."""
    unpaged = {name for name, methods in amocrm_table.PHP.items() if "nextPage" not in methods and "get" in methods}
    assert unpaged == {
        *("account", "custom_field_groups", "links", "pipelines", "statuses", "loss_reasons", "customers_statuses"),
        *("transactions", "event_types", "webhooks", "talks", "sources", "short_links", "entity_files"),
    }
