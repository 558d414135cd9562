"""The CRMs of `relay start`: what of relay.toml holds for their sandboxes, and what a person sees of them."""

from typing import TYPE_CHECKING, cast

import pytest
import tomlkit

from tests.component.test_story import Broken
from workbench.local_crms import AmoCrm
from workbench.sandboxes.wire import SandboxRequest
from workbench.story import Step, Story

if TYPE_CHECKING:
    from workbench.local_relay import LocalRelay

URL = "http://127.0.0.1:3002"
OUTPUTS = {"AmoHookUrl": "https://relay.test/amo/{hook_token}", "AmoOAuthUrl": "https://relay.test/amo/oauth"}
ACCOUNT = """
[amocrm.accounts.main]
account_id = 1
host = "shop.amocrm.ru"
"""


def configured(text: str) -> tuple[AmoCrm, dict[str, object]]:
    crm, document = AmoCrm(), tomlkit.parse(f"[amocrm.texts]\n{text}")
    table = cast("tomlkit.items.Table", document["amocrm"])
    crm.configure(table, {"amocrm": URL})
    crm.connect(OUTPUTS)
    return crm, table.unwrap()["accounts"]


@pytest.mark.parametrize("text", ["", ACCOUNT, ACCOUNT.replace("main", "shop")])
def test_the_only_account_here_is_the_sandbox(text: str) -> None:
    """Nothing that runs here may reach the real one."""
    crm, accounts = configured(text)
    assert accounts == {"main": {"account_id": 32427762, "host": "127.0.0.1:3002", "subdomain": "example"}}
    assert crm.notes_all


def test_what_gets_notes_is_what_relay_toml_says() -> None:
    chosen = 'stages = [142]\nown_user_ids = [7]\nrequests_per_second = 2.0\nnotes = {lead = ["add"], contact = []}\n'
    crm, accounts = configured(ACCOUNT + chosen)
    assert accounts["main"] == {
        "account_id": 32427762,
        "host": "127.0.0.1:3002",
        "subdomain": "example",
        "stages": [142],
        "own_user_ids": [7],
        "requests_per_second": 2.0,
        "notes": {"lead": ["add"], "contact": []},
    }
    [hook] = crm.sandbox.hooks.subscriptions.values()
    assert set(hook.settings) == {"add_lead", "add_company", "update_company"}
    assert not crm.notes_all


def test_an_account_of_which_nothing_is_wanted_has_no_hook() -> None:
    crm, _ = configured(ACCOUNT + "notes = {lead = [], contact = [], company = []}\n")
    assert not crm.sandbox.hooks.subscriptions


async def test_the_story_leaves_out_what_would_get_no_notes() -> None:
    broken, told = Broken(), list[Step]()
    broken.crms["amocrm"] = configured(ACCOUNT + "stages = [142]\n")[0]
    await Story(cast("LocalRelay", broken), told.append, patience=0.0).play()
    [step] = [step for step in told if step.ok]
    assert step.answer == "not played: relay.toml chooses what gets a note"


def test_what_the_controls_answer_can_be_read() -> None:
    """In its own letters, and with the prompt on the next line; to programs the API answers as amoCRM does."""
    crm = AmoCrm()
    [lead] = crm.sandbox.add("leads", name="Балкон")
    answer = crm.sandbox.handle(SandboxRequest("GET", f"/sandbox/leads/{lead.id}"))
    assert "Балкон" in answer.body.decode()
    assert answer.body.endswith(b"}\n")
    assert crm.sandbox.handle(SandboxRequest("GET", "/sandbox/nothing")).status == 404
