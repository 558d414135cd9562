"""`make fuzz INPUTS=1000000`: inputs of all kinds on everything that takes input from strangers."""

import argparse
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from rich.console import Console

from tests.fuzz.fuzz import Fuzzed, fuzz
from tests.fuzz.targets import TARGETS

_CHUNK = 5_000
"""Inputs of one run: Hypothesis remembers all of them, so as not to try one twice."""


def main() -> int:
    """Fuzz all targets; return 1 if an input of one was too much."""
    parser = argparse.ArgumentParser(prog="make fuzz", description="Inputs of strangers, many.")
    parser.add_argument("--inputs", type=int, default=1_000_000, help="how many, over all targets")
    parser.add_argument("--first", type=int, default=1, help="the first seed")
    options = parser.parse_args()
    console, began, failures = Console(highlight=False, soft_wrap=True), time.monotonic(), 0
    chunks = max(1, options.inputs // len(TARGETS) // _CHUNK)
    size = min(_CHUNK, options.inputs // len(TARGETS))
    with ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("spawn")) as pool:
        for name in TARGETS:
            seeds = range(options.first, options.first + chunks)
            runs = [pool.submit(partial(fuzz, name, size, seed)) for seed in seeds]
            total = Fuzzed(name)
            for seed, run in zip(seeds, runs, strict=True):
                try:
                    total += run.result()
                except Exception as error:  # noqa: BLE001 (whatever it is, it is what was looked for)
                    failures += 1
                    console.print(f"{name}, seed {seed}: {error!r}"[:2000], markup=False)
                    console.print("\n".join(getattr(error, "__notes__", ()))[:4000], markup=False)
            console.print(
                f"{name:15} {total.taken:9,} taken, at most {1000 * total.longest_taken:4.0f} ms; "
                f"{total.refused:9,} refused, at most {1000 * total.longest_refused:4.0f} ms"
            )
    console.print(f"{failures} failures; {time.monotonic() - began:.0f} s on {os.cpu_count()} cores")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
