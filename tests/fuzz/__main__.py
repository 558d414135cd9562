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
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tests.fuzz.fuzz import REPORT, Fuzzed, Timed, timed
from tests.fuzz.targets import LONGEST_REFUSED, LONGEST_TAKEN, TARGETS

_MOST_OF_A_RUN = 100_000
"""Inputs of one process: many, since what one input has reached guides those after it."""


class Failed(Exception):
    """A run did not end well; `data` is the input that was too much, if it was one."""

    def __init__(self, data: bytes | None, says: str) -> None:
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
    if options.replay is not None and not options.only:
        parser.error("--replay needs --only")
    if options.inputs < 1:
        parser.error("--inputs must be 1 or more")
    console = Console(highlight=False, soft_wrap=True)
    if options.replay is not None:
        taken, seconds = _measured(options.only, options.replay)
        console.print(_told(taken, seconds))
        return 1 if TARGETS[options.only].slowness(taken, seconds) > 1 else 0
    if not find_spec("atheris"):
        console.print("atheris comes for Linux on x86-64 alone. Elsewhere there is `pytest tests/fuzz`.")
        return 2
    targets = [options.only] if options.only else list(TARGETS)
    each = -(-options.inputs // len(targets))
    runs = -(-each // _MOST_OF_A_RUN)
    of_a_run = -(-each // runs)
    jobs = [(name, options.first + number) for number in range(runs) for name in targets]
    console.print(f"{len(jobs)} runs of {of_a_run:,} inputs, seeds {options.first} to {options.first + runs - 1}")
    began, failures, found = time.monotonic(), 0, {name: Fuzzed() for name in targets}
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console) as progress, ThreadPoolExecutor(os.cpu_count()) as pool:
        bar = progress.add_task("inputs", total=of_a_run * len(jobs))
        started = {job: pool.submit(_run, *job, of_a_run, lambda number: progress.advance(bar, number)) for job in jobs}
        for (name, seed), run in started.items():
            try:
                found[name] += _measured_again(name, run.result())
            except Failed as failed:
                failures += 1
                console.print(f"{name}, seed {seed}: {failed}", markup=False)
                if failed.data is not None:
                    data = shlex.quote(repr(failed.data))
                    console.print(
                        f"Replay: python -m tests.fuzz --only {shlex.quote(name)} --replay {data}", markup=False
                    )
    for name, total in found.items():
        console.print(
            f"{name:15} {total.taken:9,} taken, at most {_milliseconds(total.slowest_taken)}; "
            f"{total.refused:9,} refused, at most {_milliseconds(total.slowest_refused)}"
        )
    console.print(f"{failures} failures; {time.monotonic() - began:.0f} s on {os.cpu_count()} cores")
    return 1 if failures else 0


def _run(name: str, seed: int, inputs: int, advance: Callable[[int], None]) -> Fuzzed:
    """Fuzz one target in a process of its own.

    Raises:
        Failed: an input raised, or the process ended before all were tried.
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
            raise Failed(left[0] if left else None, "".join(says or errors.readlines()[-20:]))
    if found.inputs < inputs:
        raise Failed(None, f"{found.inputs:,} of {inputs:,} inputs were tried")
    return found


def _read(line: str) -> Fuzzed:
    taken, refused, *slowest = json.loads(line)
    return Fuzzed(
        taken, refused, *(tuple((seconds, data.encode("latin-1")) for seconds, data in each) for each in slowest)
    )


def _measured_again(name: str, found: Fuzzed) -> Fuzzed:
    """Return what was found with the times that the slowest inputs take where nothing guides them.

    Raises:
        Failed: one took too long.
    """
    again = Fuzzed(found.taken, found.refused)
    for _, data in (*found.slowest_taken, *found.slowest_refused):
        taken, seconds = _measured(name, data)
        if TARGETS[name].slowness(taken, seconds) > 1:
            raise Failed(data, _told(taken, seconds))
        slow = ((seconds, data),)
        again += Fuzzed(slowest_taken=slow) if taken else Fuzzed(slowest_refused=slow)
    return again


def _measured(name: str, data: bytes) -> tuple[bool, float]:
    target = TARGETS[name]
    with target.opened() as take:
        return timed(take, target.whole(data))


def _told(taken: bool, seconds: float) -> str:
    word, limit = ("taken", LONGEST_TAKEN) if taken else ("refused", LONGEST_REFUSED)
    return f"{word} in {1000 * seconds:.0f} ms, of at most {1000 * limit:.0f} ms"


def _milliseconds(slowest: Sequence[Timed]) -> str:
    return f"{1000 * slowest[0][0]:4.0f} ms" if slowest else "   – ms"


if __name__ == "__main__":
    sys.exit(main())
