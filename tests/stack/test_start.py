"""`relay start` as a person starts it: in a process of its own, on free ports, with the repository's own template."""

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import canaries
from tests.stack.toy import eventually
from workbench import events

PROGRAM = """
import sys
from pathlib import Path
from workbench.cli import main
from workbench.cli.world import World

main(sys.argv[2:], obj=World(state=Path(sys.argv[1])))
"""
READY = "Ctrl-C stops everything"


class Started:
    """A `relay start` under way; `output` is what it has printed so far."""

    def __init__(self, process: subprocess.Popen[str], state: Path) -> None:
        self.process = process
        self.state = state
        self.output = ""

    def until(self, text: str) -> str:
        """Read on until a line holds `text`; return that line."""
        assert self.process.stdout
        for line in self.process.stdout:
            self.output += line
            if text in line:
                return line
        pytest.fail(f"ended with {self.process.wait()}:\n{self.output}")

    def end(self, number: signal.Signals) -> int:
        """Send a signal, read the rest, return the exit code."""
        self.process.send_signal(number)
        return self.rest()

    def rest(self) -> int:
        """Read to the end, return the exit code."""
        assert self.process.stdout
        self.output += self.process.stdout.read()
        return self.process.wait()

    @property
    def known(self) -> dict[str, Any]:
        known: dict[str, Any] = json.loads((self.state / "local.json").read_text())
        return known

    def relay(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run another command beside it."""
        return subprocess.run(  # noqa: S603 (our own command)
            command(self.state, *arguments), capture_output=True, text=True, check=False, env=environment()
        )


def command(state: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-c", PROGRAM, str(state), *arguments]


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "POWERTOOLS_", "RELAY_"))}
    return kept | {"COLUMNS": "80"}


@contextmanager
def started(state: Path, *arguments: str, port: int = 0) -> Iterator[Started]:
    with subprocess.Popen(  # noqa: S603 (our own command)
        command(state, "start", "--port", str(port), *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
    ) as process:
        try:
            yield Started(process, state)
        finally:
            process.kill()


def children(process: subprocess.Popen[str]) -> set[str]:
    return set(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())


def living(pids: set[str]) -> set[str]:
    return {pid for pid in pids if Path(f"/proc/{pid}").exists()}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    """One that has played its story and stays up."""
    with started(tmp_path_factory.mktemp("start") / "state") as here:
        here.until(READY)
        yield here


@pytest.fixture(scope="module")
def status(here: Started) -> dict[str, Any]:
    """What `relay status --json` says of it, before the tests have done anything."""
    answered: dict[str, Any] = json.loads(here.relay("status", "--json").stdout)
    return answered


@pytest.fixture
def client(here: Started) -> Iterator[httpx.Client]:
    """Another terminal."""
    headers = {"Authorization": f"Bearer {here.known['secrets']['lead_api_key']}"}
    with httpx.Client(base_url=here.known["url"], headers=headers, timeout=30, trust_env=False) as client:
        yield client


@pytest.fixture
def neighbours() -> tuple[int, int]:
    """Two free ports in a row."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as first:
            port = first.getsockname()[1]
            with suppress(OSError), socket.create_server(("127.0.0.1", port + 1)):
                return port, port + 1


# The story


def test_the_story_ends_as_it_must(status: Mapping[str, Any]) -> None:
    """Accepted, duplicate, rejected, retried and then accepted, and what callbacks have told of them since."""
    story = status["story"]
    assert story["ok"], [step for step in story["steps"] if not step["ok"]]
    leads = {lead["external_id"]: (lead["answer"], lead["status"]) for lead in story["leads"]}
    assert leads == {
        "web-1001": ("200 accepted", "paid"),
        "web-1002": ("200 duplicate of web-1001", ""),
        "web-1003": ("422 rejected: blacklisted", ""),
        "bus-2001": ("accepted", "rejected"),
        "bus-2002": ("accepted", "approved"),
        "bus-2003": ("accepted", "hold"),
    }


def test_what_happens_in_amocrm_is_noted_once(status: Mapping[str, Any]) -> None:
    """However many hooks have told of it."""
    told = {notes["happened"]: (notes["leads"], notes["notes"]) for notes in status["story"]["notes"]}
    assert told == {
        "lead added": (1, 1),
        "price changed": (1, 1),
        "moved by a robot": (1, 1),
        "200 leads changed": (200, 200),
    }


def test_a_deal_is_in_the_hub_once_and_whole(status: Mapping[str, Any]) -> None:
    """However many calls have told of it; one from a stage that is not in the route is not there."""
    told = {deal["told_by"]: deal for deal in status["story"]["deals"]}
    assert list(told) == ["robot", "webhook", "app's robot", "JSON, waits", "robot, wrong stage"]
    refused = told.pop("robot, wrong stage")
    assert refused["hub_deals"] == []
    for deal in told.values():
        assert (len(deal["hub_deals"]), deal["contacts"], deal["rows"], deal["files"]) == (1, 2, 3, 2)


def test_all_that_was_sent_is_done_or_refused(status: Mapping[str, Any]) -> None:
    deliveries = status["story"]["deliveries"]
    assert deliveries["cartelcrm.lead"] == {"CONFIRMED": 5, "REJECTED": 1}
    assert deliveries["cartelcrm.callback"] == {"CONFIRMED": 9}
    # A lead that a robot moves is told of more than once; each telling is settled.
    assert deliveries["amocrm.note"].keys() == {"CONFIRMED"}
    assert deliveries["amocrm.note"]["CONFIRMED"] >= 203
    assert deliveries["bitrix24.deal"] == {"CONFIRMED": 4}
    assert deliveries["bitrix24.transfer"].keys() == {"CONFIRMED", "REJECTED"}
    assert status["story"]["dead_letters"] == 0
    assert status["events"]["CartelCallback"] == 9
    assert (status["events"]["DealTransferred"], status["events"]["DealTransferFailed"]) == (4, 1)
    assert [name for name, function in status["functions"].items() if function["errors"]] == []


def test_the_terminal_says_what_runs_where_and_what_came_of_it(here: Started) -> None:
    """Without colours, since nobody looks, and without a word of a library."""
    story = here.output
    assert "\x1b" not in story
    assert here.known["url"] in story
    assert here.known["sandboxes"]["cartelcrm"] in story
    assert "POST /cartelcrm/callback" in story
    assert "✗" not in story
    for word in ("Traceback", "WARNING", "INFO", "botocore", "moto", "aiohttp"):
        assert word not in story
    assert max(map(len, story.splitlines())) <= 80


# Another terminal


def test_only_this_user_may_read_the_keys(here: Started) -> None:
    assert stat.S_IMODE((here.state / "local.json").stat().st_mode) == 0o600


def test_a_lead_by_hand_lives_its_life(here: Started, client: httpx.Client) -> None:
    """As the printed curl lines do it."""
    lead = {"external_id": "my-1", "phone": "050 765 43 21", "country": "UA"}
    response = client.post("/leads", json=lead)
    assert (response.status_code, response.json()["status"]) == (200, "accepted")
    assert "my-1" in here.until("paid")
    known = client.get("/leads/my-1").json()
    assert [change["status"] for change in known["history"]] == ["new", "accepted", "hold", "approved", "paid"]
    changed = httpx.post(
        f"{here.known['sandboxes']['cartelcrm']}/sandbox/leads/my-1/status", content='{"status":"returned"}'
    )
    assert changed.status_code == 200
    assert "my-1" in here.until("returned")


@pytest.mark.parametrize("kind", events.Trigger)
def test_events_of_every_kind_can_be_sent(here: Started, kind: events.Trigger) -> None:
    name = next(name for name in events.names() if events.trigger(events.load(name)) is kind)
    sent = here.relay("send", name)
    assert (sent.returncode, "Traceback" in sent.stderr) == (0, False)


@pytest.mark.parametrize("name", ["lead_changed", "contact_added"])
def test_a_hook_of_amocrm_is_taken_with_and_without_a_slash(here: Started, name: str) -> None:
    """Nor does the token in its address come out."""
    sent = here.relay("send", f"amo_webhook/{name}")
    assert (sent.returncode, json.loads(sent.stdout)) == (0, {"ok": True})
    assert here.known["secrets"]["amocrm_hook_token"] not in sent.stdout + sent.stderr


def test_a_signed_event_is_taken_by_the_api(here: Started, client: httpx.Client) -> None:
    event = json.loads(here.relay("sign", "callback_receiver/lead_hold").stdout)
    response = client.post(event["rawPath"], content=event["body"], headers=event["headers"] | {"host": "here"})
    assert (response.status_code, response.json()) == (200, {"ok": True})


@pytest.mark.parametrize("authorization", [None, "Bearer", "Bearer wrong"])
def test_who_does_not_know_the_key_is_not_answered(here: Started, authorization: str | None) -> None:
    """Nor is a web page that finds the port of the controls."""
    headers = {"Authorization": authorization} if authorization else {}
    assert httpx.get(f"{here.known['control']}/status", headers=headers).status_code == 401
    assert httpx.post(f"{here.known['control']}/functions/outbox", headers=headers, content="{}").status_code == 401


@pytest.mark.parametrize(("path", "content"), [("/queues/nowhere", "{}"), ("/functions/nowhere", "{}")])
def test_what_is_not_here_is_named(here: Started, path: str, content: str) -> None:
    headers = {"Authorization": f"Bearer {here.known['secrets']['lead_api_key']}"}
    response = httpx.post(here.known["control"] + path, headers=headers, content=content)
    assert (response.status_code, response.json()) == (404, {"error": "there is no nowhere here"})


def test_status_is_for_people_too(here: Started) -> None:
    shown = here.relay("status").stdout
    assert here.known["url"] in shown
    assert "CallbackReceive" in shown
    assert "LeadDeadLetterQueue" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_a_second_start_says_who_runs(here: Started) -> None:
    again = here.relay("start")
    assert again.returncode == 1
    assert here.known["url"] in again.stderr
    assert f"kill {here.process.pid}" in again.stderr


@pytest.mark.parametrize(("taken", "named"), [((0,), 0), ((1,), 1), ((0, 1), 0)])
def test_a_taken_port_names_the_variable(
    neighbours: tuple[int, int], tmp_path: Path, taken: tuple[int, ...], named: int
) -> None:
    """Be it the port of the API or that of a sandbox, the next one; if it is both, another workbench has them."""
    with ExitStack() as others:
        for number in taken:
            others.enter_context(socket.create_server(("127.0.0.1", neighbours[number])))
        here = others.enter_context(started(tmp_path, port=neighbours[0]))
        assert here.rest() == 1
        assert f"127.0.0.1:{neighbours[named]}" in here.output
        assert "RELAY_PORT" in here.output
        assert "Traceback" not in here.output


def test_no_log_holds_a_secret_or_personal_data(here: Started) -> None:
    """Of all that these tests have made the functions do."""
    assert (here.state / "logs/LeadApiFunction.log").stat().st_size > 0
    assert canaries.found_in_logs(here.state / "logs", here.known["secrets"]) == []


async def test_ctrl_c_leaves_nothing_behind(here: Started) -> None:
    """The last test of this stack."""
    processes = children(here.process)
    assert len(processes) >= 6
    assert here.end(signal.SIGINT) == 0
    assert here.output.endswith("Stopped.\n")
    assert not (here.state / "local.json").exists()
    await eventually(lambda: not living(processes))


# Other starts


def test_once_ends_well_after_the_story(tmp_path: Path) -> None:
    with started(tmp_path, "--once") as here:
        assert here.rest() == 0, here.output
        assert "bus-2002" in here.output
        assert not (tmp_path / "local.json").exists()


async def test_a_start_can_be_stopped_while_it_starts(tmp_path: Path) -> None:
    """By Ctrl-C or by kill: calmly, and without a process that stays."""
    with started(tmp_path) as here:
        processes = await eventually(lambda: children(here.process))
        assert here.end(signal.SIGTERM) == 0
        assert "Traceback" not in here.output
        assert here.output.endswith("Stopped.\n")
        await eventually(lambda: not living(processes))


def test_with_real_credentials_nothing_is_played(tmp_path: Path) -> None:
    """What is submitted then is real, and that is said."""
    secret = {"cartelcrm": {"api_key": "real", "hmac_secret": "real", "callback_secrets": [{"value": "real"}]}}
    (tmp_path / "real.json").write_text(json.dumps(secret))
    with started(tmp_path / "state", "--live", str(tmp_path / "real.json")) as here:
        here.until(READY)
        assert "real" in here.output
        assert "bus-2002" not in here.output
        assert set(here.known["sandboxes"]) == {"amocrm", "bitrix24_partner", "bitrix24_hub", "bitrix24_oauth"}
        assert not [name for name in here.known["secrets"] if name.startswith("cartelcrm")]
        event = json.loads(here.relay("sign", "lead_submitter/get_lead").stdout)
        answer = httpx.get(
            here.known["url"] + event["rawPath"], headers={"authorization": event["headers"]["authorization"]}
        )
        assert answer.status_code == 404


@pytest.mark.parametrize(
    ("secret", "problem"),
    [("{", "JSON"), ('{"cartelcrm": {"api_key": 5}}', "cartelcrm.api_key"), ("[]", "secret")],
)
def test_a_secret_that_cannot_be_used_is_explained(tmp_path: Path, secret: str, problem: str) -> None:
    (tmp_path / "real.json").write_text(secret)
    with started(tmp_path / "state", "--live", str(tmp_path / "real.json")) as here:
        assert here.rest() == 1
        assert problem in here.output
        assert "Traceback" not in here.output
