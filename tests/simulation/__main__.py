"""`make simulate SEEDS=… FIRST=…`: many seeds on all cores; a failing one says how to see it again, and what it did."""

import argparse
import multiprocessing
import os
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tests.simulation.simulation import EVENTS, RATE, SITUATIONS, Report, simulate

CORES = os.cpu_count() or 1
_TRACE_LINES = 60
_ENOUGH = 50
"""Seeds in which everything should come up."""


def main() -> int:
    """Run the seeds; return 1 if one fails."""
    parser = argparse.ArgumentParser(prog="make simulate", description="Many bad days for the relay, one a seed.")
    parser.add_argument("--seeds", type=int, default=100, help="how many (default: 100)")
    parser.add_argument("--first", type=int, default=1, help="the first one")
    parser.add_argument(
        "--rate",
        type=float,
        default=RATE,
        help="share of I/O calls in trouble, over gusts and lulls (default: %(default)s)",
    )
    parser.add_argument(
        "--events",
        type=int,
        default=EVENTS,
        help="the size of a seed (default: %(default)s, for about 130 events)",
    )
    options = parser.parse_args()
    if options.seeds < 1:
        parser.error("--seeds must be 1 or more")
    console = Console()
    seeds = range(options.first, options.first + options.seeds)
    began = time.monotonic()
    totals: Counter[str] = Counter()
    events: Counter[str] = Counter()
    ends: defaultdict[str, Counter[str]] = defaultdict(Counter)
    met: set[str] = set()
    fewest = sys.maxsize
    failed: list[Report] = []
    reports = _simulate_all(seeds, rate=options.rate, events=options.events)
    columns = (TextColumn("seeds"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        for report in progress.track(reports, total=len(seeds)):
            totals += Counter(calls=report.calls, troubles=report.troubles, invocations=report.invocations)
            totals += Counter(unprovable=report.unprovable)
            events += Counter(report.events)
            met |= report.met
            for job, states in report.ends.items():
                ends[job].update(states)
            fewest = min(fewest, sum(report.events.values()))
            if not console.is_terminal and report.seed % 100 == 0:
                console.print(f"… seed {report.seed}, {time.monotonic() - began:.0f} s")
            if report.problems:
                failed.append(report)
                _show(console, report, whole=len(seeds) == 1)
    if len(seeds) == 1:
        console.print("\n".join(report.trace), markup=False, highlight=False, soft_wrap=True)
        console.print(f"digest {report.digest}")
    share = 100 * totals["troubles"] / max(1, totals["calls"])
    of_jobs = ", ".join(f"{job} {number:,}" for job, number in events.items())
    if (never := SITUATIONS.keys() - met) and len(seeds) >= _ENOUGH:
        console.print(f"never met: {', '.join(sorted(never))}")
    for job, states in ends.items():
        console.print(f"{job}: " + ", ".join(f"{number:,} {state}" for state, number in states.most_common()))
    console.print(
        f"{len(seeds)} seeds: events of {of_jobs}, at least {fewest} in a seed; {totals['invocations']:,} "
        f"invocations, {totals['calls']:,} I/O calls while the storm raged, {share:.1f} % of them in trouble; "
        f"{totals['unprovable']} effects came twice because of a request that arrived later than anybody waits; "
        f"{time.monotonic() - began:.0f} s on {CORES} cores"
    )
    verdict = "[bold red]LOOK ABOVE[/]" if failed else "[green]nothing lost, nothing doubled[/]"
    console.print(f"{len(seeds) - len(failed)} of {len(seeds)} seeds without a fault: {verdict}")
    return 1 if failed else 0


def _simulate_all(seeds: Sequence[int], *, rate: float, events: int) -> Iterator[Report]:
    """Run seeds on all cores and yield their reports, in their order. One alone brings its whole trace."""
    run = partial(simulate, rate=rate, events=events, whole=len(seeds) == 1)
    with ProcessPoolExecutor(min(len(seeds), CORES), mp_context=multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(run, seeds)


def _show(console: Console, report: Report, *, whole: bool) -> None:
    console.print(f"[bold red]seed {report.seed} failed[/]: {report.replay}")
    for problem in report.problems:
        console.print(f"  {problem}", markup=False, highlight=False, soft_wrap=True)
    if whole:
        return  # the trace follows
    lines = list(_about(report))
    console.print(f"  its trace, the last {min(len(lines), _TRACE_LINES)} lines about this:")
    console.print("\n".join(lines[-_TRACE_LINES:]), markup=False, highlight=False, soft_wrap=True)


def _about(report: Report) -> Iterable[str]:
    """Return the lines of the trace that name what the problems are about; all if none does."""
    subjects = {problem.split(": ", 1)[0] for problem in report.problems}
    near = [line for line in report.trace if any(subject in line for subject in subjects)]
    return near or report.trace


if __name__ == "__main__":
    sys.exit(main())
