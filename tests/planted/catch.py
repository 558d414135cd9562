"""Who notices a mistake first: the simulation, seed by seed, or else the tests that are named with it."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from crm_relay import observability
from tests.planted.plants import MISTAKES, Plant
from tests.simulation.simulation import simulate

SEEDS = range(1, 5)


@dataclass(frozen=True)
class Catch:
    """How a mistake was noticed: `by` is empty if it was not; `seconds` is the time that it took."""

    mistake: str
    by: str
    seconds: float
    says: str


def catch(name: str, seeds: Sequence[int] = SEEDS) -> Catch:
    """Plant a mistake and look who notices."""
    began = time.monotonic()
    mistake = MISTAKES[name]
    for seed in seeds:
        if says := _seed_says(seed, mistake.plant):
            return Catch(name, f"simulation, seed {seed}", time.monotonic() - began, says)
    if not mistake.tests:
        return Catch(name, "", time.monotonic() - began, f"{len(seeds)} seeds noticed nothing")
    by, says = _failure(mistake.tests, "-p", "tests.planted.plugin", "--plant", name)
    # A mistake of the wrong signature is noticed by everybody, and shows nothing.
    return Catch(name, "" if "TypeError" in says else by, time.monotonic() - began, says)


def complaint(who: int | str) -> str:
    """Return what a seed, or tests, have against the relay as it is, a line each; who has something notices nothing."""
    if isinstance(who, int):
        return "".join(f"seed {who}: {problem}\n" for problem in simulate(who, whole=False).problems)
    by, says = _failure(who)
    return f"{by or who}: {says}\n" if says else ""


def _seed_says(seed: int, plant: Plant) -> str:
    """Return what a seed notices of a mistake; nothing where a TypeError was raised, or the end was not reached."""
    raised: set[str] = set()
    log_failure = observability.log_failure

    def logged(problem: str, error: BaseException, **facts: Any) -> None:
        raised.add(type(error).__name__)
        log_failure(problem, error, **facts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(observability, "log_failure", logged)  # all that functions did not expect comes this way
        plant(patch)
        problems = simulate(seed, whole=False).problems
    is_broken = "TypeError" in raised or any(problem.startswith("the simulation itself") for problem in problems)
    return problems[0] if problems and not is_broken else ""


def _failure(tests: str, *options: str) -> tuple[str, str]:
    """Return the first test that fails, and why; "", and what pytest says, if it comes to nothing; "" twice if none."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", *options, tests]
    wide = {**os.environ, "COLUMNS": "300"}  # so that pytest's summary says why
    run = subprocess.run(command, env=wide, capture_output=True, text=True, check=False)  # noqa: S603 (our own tests)
    failed = [line.removeprefix("FAILED ") for line in run.stdout.splitlines() if line.startswith("FAILED ")]
    if run.returncode == 0:
        return "", ""
    if run.returncode != 1 or not failed:
        return "", run.stdout[-200:] + run.stderr[-200:]
    test, _, why = failed[0].partition(" - ")
    return test.rpartition("/")[2], why or "fails"
