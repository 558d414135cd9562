"""`relay leads`, against the real handlers and CartelCRM's sandbox, and against an API that is having a bad day."""

import asyncio
import json
import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.component.cli import LEADS_URL, Cli, api_of
from tests.relay import LEAD_KEY, Relay

LEAD = {"external_id": "order-17", "phone": "050 123 45 67", "country": "UA"}
OPTIONS = ("--external-id", "order-17", "--phone", "050 123 45 67", "--country", "UA")


@pytest.fixture
def cli(tmp_path: Path, relay: Relay) -> Cli:
    """The command beside a local stack that is the relay in memory."""
    cli = Cli(tmp_path, api_of(relay))
    cli.local_stack()
    return cli


def with_answers(folder: Path, answer: Callable[[httpx.Request], httpx.Response | Awaitable[httpx.Response]]) -> Cli:
    cli = Cli(folder, answer)
    cli.local_stack()
    return cli


def accepted(external_id: str) -> httpx.Response:
    return httpx.Response(200, json={"external_id": external_id, "status": "accepted", "id": f"crm-{external_id}"})


def csv_of(folder: Path, count: int) -> Path:
    rows = [f"o-{number},+38050{2_000_001 + number},UA" for number in range(count)]
    file = folder / "leads.csv"
    file.write_text("\n".join(["external_id,phone,country", *rows]), "utf-8")
    return file


def external_id(request: httpx.Request) -> str:
    return str(json.loads(request.content)["external_id"])


# submit, status, show


def test_a_lead_is_submitted_from_options_and_its_verdict_shown(cli: Cli, relay: Relay) -> None:
    result = cli("leads", "submit", *OPTIONS, "--first-name", "Олена", "--set", "utm=ads")
    [lead] = relay.crm.leads.values()
    assert lead.body == {**LEAD, "phone": "+380501234567", "first_name": "Олена", "utm": "ads"}
    assert "accepted" in result.stdout
    assert lead.id in result.stdout
    assert result.exit_code == 0


def test_a_lead_is_submitted_from_standard_input_and_from_a_file(cli: Cli, relay: Relay, tmp_path: Path) -> None:
    first = json.loads(cli("leads", "submit", "-", "--json", stdin=json.dumps(LEAD)).stdout)
    (tmp_path / "lead.json").write_text(json.dumps(LEAD), "utf-8")
    again = json.loads(cli("leads", "submit", tmp_path / "lead.json", "--json").stdout)
    assert first == again == {"external_id": "order-17", "status": "accepted", "id": next(iter(relay.crm.leads))}


@pytest.mark.parametrize(
    ("changed", "word", "reason"),
    [
        ({"phone": "050 123 00 00"}, "rejected", "blacklisted"),
        ({"phone": "12"}, "invalid", "phone: this is no valid number of its country"),
        ({"country": "XX"}, "invalid", "country: an ISO 3166-1 alpha-2 code is expected, such as DE"),
    ],
)
def test_a_refused_lead_is_told_with_its_reason_and_exit_code_1(
    cli: Cli, changed: dict[str, str], word: str, reason: str
) -> None:
    result = cli("leads", "submit", "-", stdin=json.dumps({**LEAD, **changed}))
    assert word in result.stdout
    assert reason in result.stdout
    assert result.exit_code == 1


def test_other_fields_under_a_known_external_id_are_a_conflict(cli: Cli) -> None:
    cli("leads", "submit", *OPTIONS)
    result = cli("leads", "submit", *OPTIONS, "--first-name", "Інна")
    assert "conflict" in result.stdout
    assert result.exit_code == 1


def test_a_lead_for_the_queue_does_not_wait_for_cartelcrm(cli: Cli, relay: Relay) -> None:
    result = cli("leads", "submit", *OPTIONS, "--queue", "--json")
    assert json.loads(result.stdout)["status"] == "queued"
    assert not relay.crm.leads
    relay.run(60)
    assert len(relay.crm.leads) == 1


def test_show_tells_the_verdict_and_what_was_called_back(cli: Cli, relay: Relay) -> None:
    cli("leads", "submit", *OPTIONS)
    relay.run(100_000)
    result = cli("leads", "show", "order-17")
    assert "accepted" in result.stdout
    assert "lead_accepted" in result.stdout
    [lead] = relay.crm.leads.values()
    assert json.loads(cli("leads", "show", "order-17", "--json").stdout)["lead_status"] == lead.status


def test_status_asks_cartelcrm(cli: Cli, relay: Relay) -> None:
    cli("leads", "submit", *OPTIONS)
    relay.crm.leads[next(iter(relay.crm.leads))].status = "hold"
    assert cli("leads", "status", "order-17").stdout.startswith("hold")
    assert json.loads(cli("leads", "status", "order-17", "--json").stdout)["lead_status"] == "hold"


@pytest.mark.parametrize("verb", ["show", "status"])
def test_an_unknown_lead_is_one_sentence_and_exit_code_1(cli: Cli, verb: str) -> None:
    result = cli("leads", verb, "nobody")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1


def test_any_external_id_travels_as_one_segment_of_the_path(tmp_path: Path) -> None:
    paths = []

    def answer(request: httpx.Request) -> httpx.Response:
        paths.append(request.url.raw_path)
        return httpx.Response(200, json={"external_id": "x", "status": "queued"})

    cli = with_answers(tmp_path, answer)
    for name in ("a/b?c#d", "..", "ü "):
        cli("leads", "show", name)
    assert paths == [b"/leads/a%2Fb%3Fc%23d", b"/leads/%2E%2E", b"/leads/%C3%BC%20"]


def test_what_a_crm_says_cannot_write_on_the_terminal(tmp_path: Path) -> None:
    answer = httpx.Response(422, json={"error": "rejected", "reason": "\x1b[2J\u202e[red]no[/red]"})
    result = with_answers(tmp_path, lambda _: answer)("leads", "submit", *OPTIONS)
    assert r"\x1b[2J\u202e[red]no[/red]" in result.stdout
    assert result.exit_code == 1


# What may be in the way


def test_without_a_stack_the_way_to_one_is_told(tmp_path: Path) -> None:
    cli = Cli(tmp_path)
    cli.local_stack(pid=2**22 + 1)  # beyond what Linux numbers processes with: left over from one that was killed
    result = cli("leads", "submit", *OPTIONS)
    assert "make start" in result.stderr
    assert "--stack" in result.stderr
    assert result.exit_code == 1


@pytest.mark.parametrize(
    ("response", "advice"),
    [
        (httpx.Response(401, json={"error": "api_key_required"}), "RELAY_API_KEY"),
        (httpx.Response(503, json={"error": "not_configured"}), "relay secrets init"),
        (httpx.Response(503, json={"error": "nothing_durable"}, headers={"Retry-After": "30"}), "again in 30 s"),
        (httpx.Response(404, json={"message": "Not Found"}), LEADS_URL),
        (httpx.Response(200, text="<html>"), LEADS_URL),
    ],
)
def test_an_answer_that_is_no_verdict_is_one_sentence(tmp_path: Path, response: httpx.Response, advice: str) -> None:
    result = with_answers(tmp_path, lambda _: response)("leads", "submit", *OPTIONS)
    assert advice in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.exit_code == 1


def test_an_api_that_does_not_answer_is_one_sentence(tmp_path: Path) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    result = with_answers(tmp_path, answer)("leads", "status", "order-17")
    assert LEADS_URL in result.stderr
    assert result.exit_code == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("leads", "submit"),
        ("leads", "submit", "--set", "no-value"),
        ("leads", "submit", "--nonsense"),
        ("leads", "nonsense"),
        ("nonsense",),
    ],
)
def test_a_wrong_command_line_is_exit_code_2(cli: Cli, arguments: tuple[str, ...]) -> None:
    assert cli(*arguments).exit_code == 2


def test_a_lead_that_is_no_json_object_is_refused_here(cli: Cli, relay: Relay) -> None:
    for text in ("[]", "{", "\xed\xa0\x80"):
        assert cli("leads", "submit", "-", stdin=text).exit_code == 1
    assert not relay.calls


# import


def test_a_file_is_imported_and_what_is_refused_is_written_down(cli: Cli, relay: Relay, tmp_path: Path) -> None:
    file = tmp_path / "leads.csv"
    file.write_text(
        "External ID;Phone;Country;comment\n"
        "o-1;050 123 45 67;UA;=1+1\n"
        "o-2;050 123 00 00;ua;black\n"
        "o-3;12;UA;no phone\n"
        "o-4;050 123 45 67;UA;twice\n",
        "utf-8",
    )
    result = cli("leads", "import", file, "--parallel", "1")
    assert [lead.body["comment"] for lead in relay.crm.leads.values()] == ["=1+1"]
    for line in ("1  accepted", "1  duplicate", "1  rejected", "1  invalid", "4  rows"):
        assert line in result.stdout
    assert (tmp_path / "leads.refused.csv").read_text("utf-8-sig").splitlines() == [
        "External ID;Phone;Country;comment;_row;_reason",
        "o-2;050 123 00 00;ua;black;3;blacklisted",
        "o-3;12;UA;no phone;4;phone: this is no valid number of its country",
    ]
    assert result.exit_code == 1


def test_the_refused_file_can_be_mended_and_imported(cli: Cli, relay: Relay, tmp_path: Path) -> None:
    file = tmp_path / "leads.csv"
    file.write_text("external_id,phone,country,first_name\no-3,12,UA,=cmd|' /C calc'!A0\n", "utf-8")
    cli("leads", "import", file)
    refused = tmp_path / "leads.refused.csv"
    refused.write_text(refused.read_text("utf-8-sig").replace(",12,", ",+380501234567,"), "utf-8")
    result = cli("leads", "import", refused)
    [lead] = relay.crm.leads.values()
    assert lead.body == {
        "external_id": "o-3",
        "phone": "+380501234567",
        "country": "UA",
        "first_name": "=cmd|' /C calc'!A0",
    }
    assert result.exit_code == 0


def test_the_same_file_again_sends_nothing_unless_it_is_told_to(cli: Cli, relay: Relay, tmp_path: Path) -> None:
    file = csv_of(tmp_path, 3)
    cli("leads", "import", file)
    calls = len(relay.calls)
    again = json.loads(cli("leads", "import", file, "--json").stdout)
    assert (again["accepted"], again["sent_before"], len(relay.calls)) == (3, 3, calls)
    anew = json.loads(cli("leads", "import", file, "--json", "--again").stdout)
    assert (anew["accepted"], anew["sent_before"]) == (3, 0)
    assert len(relay.crm.leads) == 3


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C as a terminal has it: whoever runs in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_an_interrupted_import_goes_on_where_it_stopped(tmp_path: Path) -> None:
    sent: list[str] = []

    async def answer(request: httpx.Request) -> httpx.Response:
        sent.append(external_id(request))
        if sent.count("o-4") == 1 and sent[-1] == "o-4":
            signal.raise_signal(signal.SIGINT)  # Ctrl-C, while this answer is on its way
            await asyncio.Event().wait()
        return accepted(sent[-1])

    cli = with_answers(tmp_path, answer)
    file = csv_of(tmp_path, 8)
    stopped = cli("leads", "import", file, "--parallel", "1")
    assert stopped.exit_code == 130
    assert "4  not sent" in stopped.stdout
    assert "Stopped." in stopped.stderr
    result = json.loads(cli("leads", "import", file, "--parallel", "1", "--json").stdout)
    assert (result["accepted"], result["sent_before"], result["not_sent"]) == (8, 4, 0)
    # The row whose answer was lost went twice, under the same external_id; no other did.
    assert Counter(sent) == {f"o-{number}": 2 if number == 4 else 1 for number in range(8)}


def test_a_journal_that_a_crash_cut_off_loses_its_last_line_alone(tmp_path: Path) -> None:
    sent = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(external_id(request))
        return accepted(sent[-1])

    cli = with_answers(tmp_path, answer)
    file = csv_of(tmp_path, 3)
    cli("leads", "import", file, "--parallel", "1")
    [journal] = (tmp_path / "state" / "imports").iterdir()
    journal.write_text(journal.read_text("utf-8")[:-20], "utf-8")
    for _ in range(2):
        cli("leads", "import", file)
    assert sent == ["o-0", "o-1", "o-2", "o-2"]


def test_a_verdict_is_on_disk_before_the_next_lead_is_sent(tmp_path: Path) -> None:
    known = []

    def answer(request: httpx.Request) -> httpx.Response:
        [journal] = (tmp_path / "state" / "imports").iterdir()
        known.append(journal.read_text("utf-8").count("accepted"))
        return accepted(external_id(request))

    cli = with_answers(tmp_path, answer)
    cli("leads", "import", csv_of(tmp_path, 3), "--parallel", "1")
    assert known == [0, 1, 2]


def test_another_file_or_other_options_are_another_import(tmp_path: Path) -> None:
    sent = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(json.loads(request.content))
        return accepted("x")

    cli = with_answers(tmp_path, answer)
    file = csv_of(tmp_path, 1)
    cli("leads", "import", file)
    cli("leads", "import", file, "--set", "source=fair")
    file.write_text(file.read_text("utf-8") + "\no-9,+380502000999,UA", "utf-8")
    cli("leads", "import", file)
    assert [lead.get("source") for lead in sent] == [None, "fair", None, None]


@pytest.mark.parametrize(
    ("headers", "rests"), [({"Retry-After": "7"}, [7, 7]), ({}, [1, 2]), ({"Retry-After": "86400"}, [60, 60])]
)
def test_a_busy_relay_is_given_its_rest(tmp_path: Path, headers: dict[str, str], rests: list[float]) -> None:
    answers = [httpx.Response(429, headers=headers), httpx.Response(503, headers=headers), accepted("o-0")]
    cli = with_answers(tmp_path, lambda _: answers.pop(0))
    result = cli("leads", "import", csv_of(tmp_path, 1))
    assert cli.rests == rests
    assert result.exit_code == 0


def test_nobody_sends_while_the_relay_rests(tmp_path: Path) -> None:
    resting = False
    tries: Counter[str] = Counter()

    async def answer(request: httpx.Request) -> httpx.Response:
        assert not resting
        name = external_id(request)
        tries[name] += 1
        await asyncio.sleep(0)
        return httpx.Response(429) if name == "o-3" and tries[name] == 1 else accepted(name)

    async def rest(_: float) -> None:
        nonlocal resting
        resting = True
        for _ in range(20):
            await asyncio.sleep(0)
        resting = False

    cli = Cli(tmp_path, answer, rest=rest)
    cli.local_stack()
    assert cli("leads", "import", csv_of(tmp_path, 12), "--parallel", "3").exit_code == 0
    assert tries["o-3"] == 2


def test_a_relay_that_stays_busy_ends_the_import_for_now(tmp_path: Path) -> None:
    busy = True
    cli = with_answers(tmp_path, lambda request: httpx.Response(503) if busy else accepted(external_id(request)))
    file = csv_of(tmp_path, 2)
    result = cli("leads", "import", file, "--parallel", "1")
    assert cli.rests == [1, 2, 4, 8, 16]
    assert "row 2" in result.stderr
    assert "2  not sent" in result.stdout
    assert result.exit_code == 1
    busy = False
    assert cli("leads", "import", file).exit_code == 0


def test_a_wrong_key_stops_an_import_at_once(tmp_path: Path) -> None:
    asked = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return httpx.Response(401, json={"error": "api_key_required"})

    result = with_answers(tmp_path, answer)("leads", "import", csv_of(tmp_path, 50), "--parallel", "2")
    assert len(asked) <= 2
    assert "RELAY_API_KEY" in result.stderr
    assert result.exit_code == 1


def test_never_more_leads_are_under_way_than_asked_for(tmp_path: Path) -> None:
    under_way = most = 0

    async def answer(request: httpx.Request) -> httpx.Response:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        under_way -= 1
        return accepted(external_id(request))

    with_answers(tmp_path, answer)("leads", "import", csv_of(tmp_path, 20), "--parallel", "3")
    assert most == 3


def test_a_dry_run_validates_all_and_asks_nobody(tmp_path: Path) -> None:
    cli = Cli(tmp_path)
    file = csv_of(tmp_path, 30)
    good = cli("leads", "import", file, "--dry-run")
    assert "30 of 30 leads would be sent" in good.stdout
    assert good.exit_code == 0
    file.write_text(file.read_text("utf-8") + "\n" + "\n".join(f"bad-{n},1,UA" for n in range(25)), "utf-8")
    bad = cli("leads", "import", file, "--dry-run")
    assert "30 of 55 leads would be sent" in bad.stdout
    assert "5 more" in bad.stdout
    assert bad.exit_code == 1
    assert len(json.loads(cli("leads", "import", file, "--dry-run", "--json").stdout)["invalid"]) == 25
    assert not list(cli.state.iterdir())


def test_the_key_of_the_local_stack_is_sent_and_printed_nowhere(tmp_path: Path) -> None:
    keys = []

    def answer(request: httpx.Request) -> httpx.Response:
        keys.append(request.headers["Authorization"])
        return accepted("order-17")

    result = with_answers(tmp_path, answer)("leads", "submit", *OPTIONS)
    assert keys == [f"Bearer {LEAD_KEY}"]
    assert LEAD_KEY not in result.output
