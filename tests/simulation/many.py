"""Many seeds, on all cores."""

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from tests.simulation.simulation import EVENTS, RATE, Report, simulate

CORES = os.cpu_count() or 1


def simulate_all(seeds: Sequence[int], *, rate: float = RATE, events: int = EVENTS) -> Iterator[Report]:
    """Run seeds and yield their reports, in their order. One alone brings its whole trace."""
    run = partial(simulate, rate=rate, events=events, whole=len(seeds) == 1)
    with ProcessPoolExecutor(min(len(seeds), CORES), mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(run, seeds, chunksize=1)
