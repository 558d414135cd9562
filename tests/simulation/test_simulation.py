"""Fifty bad days for the relay: nothing lost, nothing doubled, and each of them can be had again."""

import os
import subprocess
import sys
from collections import Counter

import pytest

from tests.relay import HANDLERS
from tests.simulation.simulation import SITUATIONS, simulate

pytestmark = pytest.mark.timeout(600)


@pytest.mark.parametrize("first", [1, 26])
def test_nothing_is_lost_and_nothing_doubled(first: int) -> None:
    """Whatever happens to a third of all I/O, what was taken is done once or waits for an operator."""
    reports = [simulate(seed, whole=False) for seed in range(first, first + 25)]
    failed = [report for report in reports if report.problems]
    assert not failed, "\n".join(line for report in failed for line in (report.replay, *report.problems))
    assert all(sum(report.events.values()) >= 100 for report in reports)
    assert sum(report.unprovable for report in reports) <= 2
    calls, troubles = (sum(getattr(report, name) for report in reports) for name in ("calls", "troubles"))
    assert 0.25 < troubles / calls < 0.35
    assert SITUATIONS.keys() == set().union(*(report.met for report in reports))
    for job in ("Leads", "Callbacks", "Notes", "Deals"):  # to refuse everything, or to give it up, loses nothing either
        ends = sum((Counter(report.ends[job]) for report in reports), Counter[str]())
        assert ends["CONFIRMED"] > 0.85 * ends.total(), (job, ends)
        assert ends["CONFIRMED"] > 0.7 * sum(report.events[job] for report in reports), (job, ends)


def test_a_seed_is_the_same_every_time() -> None:
    """Every step and the end are the same, in every process: also where sets have another order."""
    program = "from tests.simulation.simulation import simulate; print(simulate(7).digest)"
    runs = [
        subprocess.Popen(  # noqa: S603 (our own program)
            [sys.executable, "-c", program], env={**os.environ, "PYTHONHASHSEED": seed}, stdout=subprocess.PIPE
        )
        for seed in ("1", "2")
    ]
    one, another = (run.communicate()[0] for run in runs)
    assert one == another
    assert len(one.strip()) == 64


def test_every_job_is_in_it() -> None:
    """Processes of all functions do their part."""
    storms = [simulate(seed) for seed in (1, 2, 3)]
    returned = [line for report in storms for line in report.trace if line.split()[2] == "returned"]
    processes = Counter(line.split()[1].partition("/")[0] for line in returned)
    for function in HANDLERS:
        assert processes[function] > 20, processes
