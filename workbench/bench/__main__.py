"""Measure, print, and end with 1 when a budget is missed."""

import argparse
import asyncio
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from workbench.bench import amocrm_reading, cold_starts, deals, notes, own_time, price, usage
from workbench.bench.amocrm_reading import Reading
from workbench.bench.cold_starts import ColdStart
from workbench.bench.own_time import OwnTime
from workbench.bench.price import Architecture, Bill, Item, Usage
from workbench.bench.rates import Rates
from workbench.bench.usage import Measured
from workbench.emulator import ROOT, EmulatorError, built
from workbench.stack.template import transformed

_UNREST = 1.5
"""Median over minimum above which starts tell more of the machine than of the functions."""


@dataclass(frozen=True, slots=True)
class Results:
    """Everything that was measured."""

    starts: tuple[ColdStart, ...]
    times: tuple[OwnTime, ...]
    notes: Rates
    deals: Rates
    readings: tuple[Reading, ...]
    """Ours first."""
    measured: Measured

    def missed(self) -> Iterator[str]:
        """Name what is over its budget."""
        yield from (f"cold start of {start.function}" for start in self.starts if not start.kept)
        yield from (f"CPU time of a {each.what}" for each in self.times if not each.kept)
        if not self.notes.kept:
            yield "notes a second"
        if not self.deals.kept:
            yield "deals a second"
        if not self.readings[0].is_fast_enough:
            yield "reading of leads"
        if not self.measured.kept:
            yield "AWS calls per callback"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m workbench.bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="cold starts of each function (15)")
    parser.add_argument("--samples", type=int, default=20, help="leads and callbacks whose AWS calls are counted (20)")
    parser.add_argument("--notes", type=int, default=6000, help="notes that are written to amoCRM's sandbox (6000)")
    parser.add_argument("--deals", type=int, default=500, help="deals that are carried by Bitrix24's sandboxes (500)")
    parser.add_argument("--built", type=Path, default=ROOT / ".aws-sam/build-x86_64", help="what to measure")
    options = parser.parse_args(arguments)
    if not (options.built / "template.yaml").is_file():
        sys.exit(f"bench: nothing is built in {options.built}; `make bench` builds and measures")
    # Not the stream of the moment: the handlers' output is turned aside while they run.
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 110)
    try:
        results = asyncio.run(_measure(options, console))
    except EmulatorError as error:
        sys.exit(f"bench: {error}")
    _print(results, console)
    unrest = statistics.median(results.starts[0].floor) / min(results.starts[0].floor)
    if unrest > _UNREST:
        console.print(
            f"[yellow]This machine was busy: half of the floor's starts took more than {unrest:.1f} times its fastest. "
            "Measure again when nothing else runs.[/]"
        )
    if missed := list(results.missed()):
        console.print(f"[bold red]Over budget:[/] {', '.join(missed)}.")
        sys.exit(1)
    console.print("[green]All budgets are kept.[/]")


async def _measure(options: argparse.Namespace, console: Console) -> Results:
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("Starting AWS on this machine", total=options.rounds + len(own_time.BUDGETS) + 17)

        def tick() -> None:
            progress.advance(task)

        progress.update(task, description="Reading leads of amoCRM")
        read = amocrm_reading.measure()
        tick()
        async with built(options.built.resolve()) as stack:
            progress.update(task, description="Cold starts")
            starts = cold_starts.measure(stack, options.rounds, tick)
            progress.update(task, description="CPU time of a call")
            plans = {plan.handler: plan for plan in stack.blueprint.functions.values()}
            times = own_time.measure(plans, tick)
            progress.update(task, description="Notes of amoCRM")
            written = await notes.measure(stack.blueprint, options.notes, tick)
            progress.update(task, description="Deals of Bitrix24")
            carried = deals.measure(stack.blueprint, options.deals, tick)
            progress.update(task, description="AWS calls")
            seconds = {start.function: min(start.durations) / 1000 for start in starts}
            used = usage.measure(stack, seconds, options.samples, tick)
            return Results(starts, times, written, carried, read, used)


def _print(results: Results, console: Console) -> None:
    template = transformed(ROOT / "template.yaml")
    architecture: Architecture = template["Parameters"]["Architecture"]["Default"]
    measured = results.measured
    prices = {
        "callbacks": price.together((price.bill(each, architecture) for each in measured.callback), price.MILLION),
        "hooks": price.together((price.bill(each, architecture) for each in measured.hook), price.MILLION),
        "leads": price.together((price.bill(each, architecture) for each in measured.lead), price.MILLION),
        "deals": price.together((price.bill(each, architecture) for each in measured.deal), price.MILLION),
        "waiting": price.together(
            [
                price.standing(template, measured.series),
                price.together(
                    (price.bill(each, architecture) for each in measured.outbox), price.ticks(measured.schedule)
                ),
            ]
        ),
    }
    for table in (
        _cold_starts(results.starts),
        _own_times(results.times),
        _rates(results.notes),
        _rates(results.deals),
        _readings(results.readings),
        _aws_calls(measured),
        _prices(prices),
    ):
        console.print(table)
        console.print()
    console.print(_small_print(architecture), style="dim", highlight=False)
    console.print()


def _cold_starts(starts: Sequence[ColdStart]) -> Table:
    table = _table("Cold start under Lambda's emulator", "fastest", "median", "floors", "budget")
    floor = starts[0].floor
    table.add_row("floor: boto3, two clients, Powertools", *_milliseconds(floor), "1.00", "")
    for start in starts:
        ratio = _judged(f"{start.ratio:.2f}", kept=start.kept)
        table.add_row(start.function, *_milliseconds(start.durations), ratio, f"{start.budget:.2f}")
    return table


def _milliseconds(durations: Sequence[float]) -> tuple[str, str]:
    return f"{min(durations):.0f} ms", f"{statistics.median(durations):.0f} ms"


def _own_times(times: Sequence[OwnTime]) -> Table:
    table = _table("Own CPU time of a call", "calls", "p50", "p99 of all", "budget")
    for each in times:
        p99 = _judged(f"{each.p99:.2f} ms", kept=each.kept)
        table.add_row(each.what, f"{each.samples}", f"{each.p50:.2f} ms", p99, f"{each.budget:.0f} ms")
    return table


def _rates(rates: Rates) -> Table:
    title = f"{rates.what}, {rates.limit:.0f} requests a second, {rates.latency * 1000:.0f} ms each"
    table = _table(title, "done", "requests", "a second", "times", "goal")
    ours, usual = rates.ways[0], rates.ways[-1]
    for way in rates.ways:
        figure = f"{way.per_second:.2f}"
        times = f"{rates.ratio:.0f}" if way is ours else "1" if way is usual else ""
        table.add_row(
            way.name,
            str(way.done),
            str(way.requests),
            _judged(figure, kept=rates.kept) if way is ours else figure,
            times,
            f"{rates.goal:.0f}" if way is ours else "",
        )
    return table


def _readings(readings: Sequence[Reading]) -> Table:
    title = f"Reading {amocrm_reading.LEADS:,} leads of amoCRM, 250 a page"
    table = _table(title, "leads", "CPU", "budget", "memory", "budget")
    for reading in readings:
        cpu, memory = f"{reading.cpu:.2f} s", f"{reading.memory / 2**20:.1f} MB"
        if reading is readings[0]:
            cpu, memory = (_judged(figure, kept=reading.is_fast_enough) for figure in (cpu, memory))
            most = f"{amocrm_reading.MOST_CPU:.0f} s", f"{amocrm_reading.MOST_MEMORY / 2**20:.0f} MB"
        else:
            most = "", ""
        table.add_row(reading.client, str(reading.leads), cpu, most[0], memory, most[1])
    return table


def _aws_calls(measured: Measured) -> Table:
    table = _table("AWS calls of an invocation", "most", "budget", "CPU", "log", "on average")
    for each in (*measured.callback, *measured.hook, *measured.lead, *measured.deal, *measured.outbox):
        budgeted = each is measured.callback[0]
        table.add_row(
            each.what,
            _judged(str(each.most_calls), kept=measured.kept) if budgeted else str(each.most_calls),
            str(usage.CALLS_BUDGET) if budgeted else "",
            f"{each.cpu * 1000:.1f} ms",
            f"{each.log:.0f} B",
            _which(each),
        )
    table.columns[-1].justify = "left"
    return table


def _which(each: Usage) -> str:
    counted = sorted(each.calls.items(), key=lambda call: -call[1])
    return ", ".join(f"{count:.3g} {name.partition(':')[2]}" for name, count in counted)


def _prices(prices: Mapping[str, Bill]) -> Table:
    table = _table(
        f"List price in US dollars, {price.REGION}, {price.AS_OF}",
        "1 M callbacks",
        "1 M hooks",
        "1 M leads",
        "1 M deals",
        "a month of waiting",
    )
    for item in Item:
        if any(item in billed for billed in prices.values()):
            table.add_row(item.value.what, *(_dollars(item.cost(billed.get(item, 0))) for billed in prices.values()))
    table.add_section()
    table.add_row("[bold]together[/]", *(f"[bold]{price.cost(billed):.2f}[/]" for billed in prices.values()))
    return table


def _dollars(amount: float) -> str:
    return f"{amount:.2f}" if amount else ""


def _small_print(architecture: Architecture) -> str:
    pages = "; ".join(sorted({item.value.page for item in Item}))
    return (
        "Measured here: cold starts, CPU time (boto3's with it), AWS calls and the sizes of what they carry, bytes "
        "logged, metrics. From the template: memory, processor, queues, alarms, schedule. Assumed, since this machine "
        f"is no Lambda: {price.AWS_CALL * 1000:.0f} ms for an AWS call, {price.CRM_CALL * 1000:.0f} ms for a CRM, "
        f"a vCPU ({architecture}) as fast as one here, {price.COLD_STARTS:.0%} cold starts, {price.TRACED:.0%} of "
        f"invocations traced, {price.MESSAGES_PER_BATCH} message per batch, callbacks of {usage.CALLBACK_BYTES} bytes, "
        "deals with a contact, three rows and no files. "
        "Stored items are paid until they expire. Left out: free tiers, data transfer, taxes. A lead's callbacks "
        f"count as callbacks. Prices are to be checked on AWS's pages: {pages}."
    )


def _table(title: str, *columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="dim")
    table.add_column(f"[bold not dim]{title}[/]")
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _judged(figure: str, *, kept: bool) -> str:
    return f"[green]{figure}[/]" if kept else f"[bold red]{figure}[/]"


if __name__ == "__main__":
    main()
