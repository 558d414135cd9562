"""Fifty bad days for the relay: nothing lost, nothing doubled, and each of them can be had again."""

from collections import Counter

import pytest

from tests.simulation.many import simulate_all
from tests.simulation.simulation import simulate


@pytest.mark.timeout(600)
def test_nothing_is_lost_and_nothing_doubled() -> None:
    """Whatever happens to a third of all I/O, what was taken is done once or waits for an operator."""
    failed = [report for report in simulate_all(range(1, 51)) if report.problems]
    assert not failed, "\n".join(line for report in failed for line in (report.replay, *report.problems))


def test_a_seed_is_the_same_every_time() -> None:
    """Every step and the end are the same."""
    one, another = simulate(7), simulate(7)
    assert one.trace == another.trace
    assert one.digest == another.digest


def test_the_storm_is_one() -> None:
    """Of the I/O calls, three of ten meet trouble, and of every kind."""
    report = simulate(3)
    assert 0.25 < report.troubles / report.calls < 0.35
    for trouble in ("refused", "answer lost", "done late", "slow", "stalled", "killed before", "killed after"):
        assert any(trouble in line for line in report.trace), trouble


def test_every_job_is_in_it() -> None:
    """Processes of all functions, of the notes several at once."""
    processes = Counter(line.split()[1].partition("/")[0] for seed in (1, 2) for line in simulate(seed).trace)
    for function in ("callback_receive", "callback_process", "lead_api", "lead_submit", "amo_receive", "amo_notes"):
        assert processes[function] > 100, processes
