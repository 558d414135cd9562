"""Fifty bad days for the relay: nothing lost, nothing doubled, and each of them can be had again."""

import pytest

from tests.simulation.simulation import simulate


@pytest.mark.parametrize("seed", range(1, 51))
def test_nothing_is_lost_and_nothing_doubled(seed: int) -> None:
    """Whatever happens to a third of all I/O, what was taken is done once or waits for an operator."""
    report = simulate(seed, whole=False)
    assert not report.problems, "\n".join((report.replay, *report.problems))


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
