"""Who notices a mistake first: the simulation, seed by seed, or else the tests that are named with it."""

import os
import subprocess
import sys
import time
from dataclasses import dataclass

import pytest

from tests.planted.plants import MISTAKES
from tests.simulation.simulation import simulate

MOST_SEEDS = 4


@dataclass(frozen=True)
class Catch:
    """How a mistake was noticed: `by` is empty if it was not; `seconds` is the time that it took."""

    mistake: str
    by: str
    seconds: float
    says: str


def catch(name: str, *, most_seeds: int = MOST_SEEDS) -> Catch:
    """Plant a mistake and look who notices."""
    began = time.monotonic()
    mistake = MISTAKES[name]
    for seed in range(1, most_seeds + 1):
        with pytest.MonkeyPatch.context() as patch:
            mistake.plant(patch)
            problems = simulate(seed, whole=False).problems
        if problems:
            return Catch(name, f"simulation, seed {seed}", time.monotonic() - began, problems[0])
    if not mistake.tests:
        return Catch(name, "", time.monotonic() - began, f"{most_seeds} seeds noticed nothing")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "tests.planted.plugin", "--plant", name, mistake.tests]
    wide = {**os.environ, "COLUMNS": "300"}  # so that pytest's summary says why
    run = subprocess.run(command, env=wide, capture_output=True, text=True, check=False)  # noqa: S603 (our own tests)
    failed = [line.removeprefix("FAILED ") for line in run.stdout.splitlines() if line.startswith("FAILED ")]
    # A mistake of the wrong signature is noticed by everybody, and shows nothing.
    is_noticed = run.returncode == 1 and failed and "TypeError" not in failed[0]
    by = failed[0].split(" - ")[0].rpartition("/")[2] if is_noticed else ""
    says = failed[0].partition(" - ")[2] if by else "\n".join(failed) or run.stdout[-200:]
    return Catch(name, by, time.monotonic() - began, says or "fails")
