"""`make fuzz INPUTS=1000000`: inputs of all kinds on everything that takes input from strangers."""

import argparse
import ast
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tests.fuzz.fuzz import REPORT, Fuzzed, timed
from tests.fuzz.targets import TARGETS

_MOST_OF_A_RUN = 100_000
"""Inputs of one process: many, since what one input has reached guides those after it."""


class Failed(Exception):
    """An input was too much for a target."""

    def __init__(self, data: bytes, says: str) -> None:
        super().__init__(says)
        self.data = data


def main() -> int:
    """Fuzz all targets; return 1 if an input of one was too much."""
    parser = argparse.ArgumentParser(prog="make fuzz", description="Inputs of strangers, many.")
    parser.add_argument("--inputs", type=int, default=1_000_000, help="how many, over all targets")
    parser.add_argument("--first", type=int, default=1, help="the first seed")
    parser.add_argument("--only", choices=TARGETS, help="one target alone")
    parser.add_argument("--replay", type=ast.literal_eval, help="one input, as it was printed, on that target")
    options = parser.parse_args()
    console = Console(highlight=False, soft_wrap=True)
    if options.replay is not None:
        taken, seconds = _measured(options.only, options.replay)
        console.print(f"{'taken' if taken else 'refused'} in {1000 * seconds:.0f} ms")
        return 0
    if not find_spec("atheris"):
        console.print("atheris comes for Linux on x86-64 alone. Elsewhere there is `pytest tests/fuzz`.")
        return 2
    targets = [options.only] if options.only else list(TARGETS)
    each = max(1, options.inputs // len(targets))
    runs = -(-each // _MOST_OF_A_RUN)
    jobs = [(name, options.first + number) for number in range(runs) for name in targets]
    console.print(f"{len(jobs)} runs of {each // runs:,} inputs, seeds {options.first} to {options.first + runs - 1}")
    began, failures, found = time.monotonic(), 0, {name: Fuzzed() for name in targets}
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console) as progress, ThreadPoolExecutor(os.cpu_count()) as pool:
        bar = progress.add_task("inputs", total=each // runs * len(jobs))
        started = {
            job: pool.submit(_run, *job, each // runs, lambda number: progress.advance(bar, number)) for job in jobs
        }
        for (name, seed), run in started.items():
            try:
                found[name] += _measured_again(name, run.result())
            except Failed as failed:
                failures += 1
                replay = f"python -m tests.fuzz --only {shlex.quote(name)} --replay {shlex.quote(repr(failed.data))}"
                console.print(f"{name}, seed {seed}: {failed}\nReplay: {replay}", markup=False)
    for name, total in found.items():
        console.print(
            f"{name:15} {total.taken:9,} taken, at most {1000 * total.slowest_taken[0]:4.0f} ms; "
            f"{total.refused:9,} refused, at most {1000 * total.slowest_refused[0]:4.0f} ms"
        )
    console.print(f"{failures} failures; {time.monotonic() - began:.0f} s on {os.cpu_count()} cores")
    return 1 if failures else 0


def _run(name: str, seed: int, inputs: int, advance: Callable[[int], None]) -> Fuzzed:
    """Fuzz one target in a process of its own.

    Raises:
        Failed: an input raised, or took too long.
    """
    found, says = Fuzzed(), []
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "errors").open("w+") as errors:
        command = [sys.executable, "-m", "tests.fuzz.guided", name, str(inputs), str(seed), folder]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process:  # noqa: S603
            for line in process.stdout or ():
                if line.startswith(REPORT):
                    before, found = found.inputs, _read(line.removeprefix(REPORT))
                    advance(found.inputs - before)
                else:
                    says.append(line)
        if process.returncode:
            left = [path.read_bytes() for path in Path(folder).glob("*-*") if path.is_file()]
            errors.seek(0)
            # Of libFuzzer, which talks of every input that it likes, the last words are enough.
            raise Failed(left[0] if left else b"", "".join(says or errors.readlines()[-20:]))
    return found


def _read(line: str) -> Fuzzed:
    taken, refused, *slowest = json.loads(line)
    return Fuzzed(taken, refused, *((seconds, data.encode("latin-1")) for seconds, data in slowest))


def _measured_again(name: str, found: Fuzzed) -> Fuzzed:
    """Return what was found with the times that the slowest inputs take where nothing guides them.

    Raises:
        Failed: one took too long.
    """
    times = []
    for _, data in (found.slowest_taken, found.slowest_refused):
        taken, seconds = _measured(name, data)
        if TARGETS[name].slowness(taken, seconds) > 1:
            raise Failed(data, f"{'taken' if taken else 'refused'} in {1000 * seconds:.0f} ms")
        times.append((seconds, data))
    return Fuzzed(found.taken, found.refused, *times)


def _measured(name: str, data: bytes) -> tuple[bool, float]:
    target = TARGETS[name]
    with target.opened() as take:
        return timed(take, target.whole(data))


if __name__ == "__main__":
    sys.exit(main())
