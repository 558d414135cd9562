"""`make load` is content only if all of what it sent was taken, and answered, and done once."""

import pytest

from workbench.cli.control import Control
from workbench.cli.target import Target
from workbench.load import Load


def _load(answers: list[str]) -> Load:
    """Return a load, one event for each answer, each in 7 ms: "lead 200" is a lead that was accepted."""
    load = Load(Control({"control": "http://127.0.0.1:9", "secrets": {"lead_api_key": "key"}}), Target(None, None, {}))
    for number, answer in enumerate(answers):
        kind, status = answer.split()
        load.sent[kind] += 1
        load.answers[status] += 1
        load.took.append(7.0)
        if status == "200":
            load.accepted[f"{kind}-{number}"] = kind
    return load


def test_the_report_says_how_many_and_how_fast() -> None:
    """A refusal beside others of its kind that were accepted is an answer as good as any."""
    load = _load(["lead 200", "lead 422", "callback 200"])
    load.took = [float(number) for number in range(101)]
    report, well = load.report({"lead-0": 1, "callback-2": 1})
    assert well
    assert report.splitlines() == [
        "answers: 200 × 2, 422 × 1; p50 50 ms, p95 95 ms, p99 99 ms",
        "accepted 2: lead × 1, callback × 1",
        "done 2, lost 0, doubled 0",
    ]


@pytest.mark.parametrize(
    ("answers", "effects", "told"),
    [
        (["lead 200", "callback 403", "callback 401"], {"lead-0": 1}, "of 2 events none was accepted: callback"),
        (["lead 200", "lead 503"], {"lead-0": 1}, "answers 503: 1"),
        (["lead 200", "lead TimeoutError"], {"lead-0": 1}, "answers TimeoutError: 1"),
        (["lead 200", "lead 200"], {"lead-0": 1}, "lost: lead-1"),
        (["lead 200", "lead 200"], {"lead-0": 1, "lead-1": 2}, "doubled: lead-1"),
        ([], {}, "nothing was sent"),
    ],
)
def test_what_a_load_is_not_content_with(answers: list[str], effects: dict[str, int], told: str) -> None:
    """Something lost, doubled, refused as a whole kind, answered with a 5xx, or not at all."""
    report, well = _load(answers).report(effects)
    assert not well
    assert told in report.splitlines()


def test_a_report_of_few_answers() -> None:
    """Of one the percentiles are that one, and of none the rest of the report is there all the same."""
    assert "p50 7 ms, p95 7 ms, p99 7 ms" in _load(["lead 200"]).report({"lead-0": 1})[0]
    assert "p50, p95, p99: nothing was answered" in _load([]).report({})[0]
