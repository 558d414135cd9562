"""`relay leads`: submit leads and ask what became of them."""

import asyncio
import json
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from workbench.cli.console import (
    JsonOption,
    Problem,
    RegionOption,
    StackOption,
    err,
    examples,
    facts,
    flag,
    moment,
    out,
    print_json,
    say,
    shown,
    table,
    tell,
)
from workbench.cli.lead_file import LeadFile, Row
from workbench.cli.lead_import import Journal, send
from workbench.cli.leads_api import LeadsApi, Verdict, now
from workbench.cli.target import Target

if TYPE_CHECKING:
    from workbench.cli.world import World

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Submit leads and ask what became of them.")

_COLOURS = {
    "accepted": "green",
    "duplicate": "cyan",
    "queued": "yellow",
    "needs_reconcile": "yellow",
    "rejected": "red",
    "invalid": "red",
    "conflict": "red",
}
_MEANINGS = {
    "accepted": "CartelCRM took it",
    "duplicate": "CartelCRM had it already",
    "queued": "CartelCRM gets it as soon as it can be told",
    "needs_reconcile": "nobody knows whether CartelCRM has it: relay deliveries list",
    "rejected": "CartelCRM refused it",
    "invalid": "it cannot be sent as it is",
    "conflict": "its external_id was submitted before, with other fields",
}
_SHOWN_PROBLEMS = 20

QueueOption = Annotated[bool, flag("--queue", meaning="Do not wait for CartelCRM: the queue will tell it.")]
ExternalId = Annotated[str, typer.Argument(metavar="EXTERNAL_ID", help="Your own id of the lead.")]


@app.command(
    epilog=examples(
        "relay leads submit --external-id order-17 --phone '067 765 43 21' --country UA --first-name Олена",
        "relay leads submit lead.json",
        """echo '{"external_id": "order-17", "phone": "+380501234567", "country": "UA"}' | relay leads submit -""",
    )
)
def submit(
    ctx: typer.Context,
    *,
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE.json", help="A JSON file with the lead; - is standard input.")
    ] = None,
    external_id: Annotated[
        str | None, typer.Option(metavar="ID", help="Your own id: the same id is the same lead.")
    ] = None,
    phone: Annotated[str | None, typer.Option(metavar="PHONE", help="In any usual notation.")] = None,
    country: Annotated[str | None, typer.Option(metavar="CC", help="ISO 3166-1 alpha-2, such as UA.")] = None,
    first_name: Annotated[str | None, typer.Option(metavar="NAME")] = None,
    source: Annotated[str | None, typer.Option(metavar="NAME")] = None,
    fields: Annotated[
        list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Any further field; may be repeated.")
    ] = None,
    queue: QueueOption = False,
    stack: StackOption = None,
    region: RegionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Submit one lead to CartelCRM and show its verdict.

    Exit code 0: accepted, duplicate or queued. 1: refused, or not sent.
    """
    named = {
        "external_id": external_id,
        "phone": phone,
        "country": country,
        "first_name": first_name,
        "source": source,
    }
    given = {name: value for name, value in named.items() if value is not None}
    lead = {**(_lead_in(file) if file else {}), **given, **_pairs(fields)}
    if not lead:
        raise typer.BadParameter("give the lead's fields, a JSON file, or - for standard input")
    verdict: Verdict = _with_api(ctx, stack, region, lambda api: api.submit(lead, queue=queue))
    if as_json:
        print_json({"external_id": lead.get("external_id"), **verdict.as_json()})
    else:
        colour = _COLOURS.get(verdict.status, "yellow")
        say(f"[{colour} bold]{shown(verdict.status)}[/]  {_MEANINGS.get(verdict.status, '')}")
        out.print(facts({"CartelCRM's id": verdict.id, "reason": verdict.reason}))
    if verdict.refused:
        raise typer.Exit(1)


@app.command(
    "import",
    epilog=examples(
        "relay leads import leads.csv --dry-run",
        "relay leads import leads.csv --set country=UA --column external_id=Order --stack crm-relay",
        "relay leads import leads.refused.csv",
    ),
)
def import_(
    ctx: typer.Context,
    *,
    file: Annotated[Path, typer.Argument(metavar="FILE.csv", help="Its first row names the fields.")],
    dry_run: Annotated[bool, flag("--dry-run", meaning="Only say what would be sent.")] = False,
    columns: Annotated[
        list[str] | None,
        typer.Option("--column", metavar="FIELD=COLUMN", help="The column of a field; may be repeated."),
    ] = None,
    constants: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="FIELD=VALUE", help="A field of leads whose row has none; may be repeated."),
    ] = None,
    encoding: Annotated[str, typer.Option(metavar="NAME", help="Of the file, such as cp1251.")] = "utf-8",
    parallel: Annotated[int, typer.Option(min=1, max=16, metavar="N", help="How many leads to submit at a time.")] = 4,
    again: Annotated[bool, flag("--again", meaning="Start over with a file that was sent before.")] = False,
    queue: QueueOption = False,
    stack: StackOption = None,
    region: RegionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Submit a CSV file of leads.

    Columns external_id, phone and country are needed. All others go to
    CartelCRM too, except those whose name begins with an underscore.
    Comma, semicolon or tab: the delimiter is found out.

    An import that was interrupted goes on where it stopped when the same
    command is given again. Rows that were refused are written, with their
    reasons, to FILE.refused.csv, to be mended and imported in their turn.
    """
    leads = LeadFile.read(file, encoding=encoding, columns=_pairs(columns), constants=_pairs(constants))
    if dry_run:
        _rehearse(leads, as_json=as_json)
        return
    world: World = ctx.obj
    target = Target.of(world, stack, region)
    api = LeadsApi.of(target, world)
    how = json.dumps([api.url, target.run, encoding, sorted(columns or ()), sorted(constants or ())])
    journal = Journal.of(world.state / "imports", leads.content, how.encode())
    if again:
        journal.forget()
    earlier = len(journal.verdicts)
    invalid = {row.number: Verdict("invalid", reason=row.problem) for row in leads.rows if row.problem}
    waiting = [row for row in leads.rows if row.number not in journal.verdicts and not row.problem]
    try:
        _send(waiting, api, journal, parallel=parallel, queue=queue, rest=world.rest)
    finally:
        # Also when it was interrupted: what is known now is worth telling.
        verdicts = {**journal.verdicts, **invalid}
        refused = leads.write_refused({n: v.reason or v.status for n, v in verdicts.items() if v.refused})
        _report(leads, verdicts, earlier, refused, as_json=as_json)
    if any(verdict.refused for verdict in verdicts.values()):
        raise typer.Exit(1)


@app.command(epilog=examples("relay leads status order-17", "relay leads status order-17 --json --stack crm-relay"))
def status(
    ctx: typer.Context,
    external_id: ExternalId,
    stack: StackOption = None,
    region: RegionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask CartelCRM for a lead's status.

    Exit code 1: CartelCRM does not know the lead, or does not answer.
    """
    known = _with_api(ctx, stack, region, lambda api: api.find(external_id, ask_cartelcrm=True))
    if known is None:
        raise Problem(f"CartelCRM does not know the lead {external_id}.")
    if as_json:
        print_json(known)
    else:
        say(
            f"[bold]{shown(known.get('lead_status') or 'no status')}[/]  [dim]is what CartelCRM says of its lead[/] "
            f"{shown(known.get('id') or 'without an id')}"
        )


@app.command(epilog=examples("relay leads show order-17", "relay leads show order-17 --json --stack crm-relay"))
def show(
    ctx: typer.Context,
    external_id: ExternalId,
    stack: StackOption = None,
    region: RegionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what the relay itself knows of a lead.

    That is the verdict, and what CartelCRM has called back since.
    """
    known = _with_api(ctx, stack, region, lambda api: api.find(external_id))
    if known is None:
        raise Problem(f"No lead {external_id} was submitted here.")
    if as_json:
        print_json(known)
        return
    colour = _COLOURS.get(known["status"], "yellow")
    say(f"[{colour} bold]{shown(known['status'])}[/]  {_MEANINGS.get(known['status'], '')}")
    since = known.get("lead_status_at")
    out.print(
        facts(
            {
                "CartelCRM's id": known.get("id"),
                "reason": known.get("reason"),
                "CartelCRM's status": known.get("lead_status"),
                "since": moment(since) if since else None,
            }
        )
    )
    if history := known.get("history"):
        callbacks = table("when", "event", "status", "applied")
        for entry in history:
            applied = "yes" if entry["applied"] else "[dim]no[/]"
            callbacks.add_row(moment(entry["timestamp"]), shown(entry["event"]), shown(entry["status"]), applied)
        out.print(callbacks)


def _with_api[T](
    ctx: typer.Context, stack: str | None, region: str | None, ask: Callable[[LeadsApi], Awaitable[T]]
) -> T:
    world: World = ctx.obj
    api = LeadsApi.of(Target.of(world, stack, region), world)

    async def asked() -> T:
        async with api:
            return await ask(api)

    return now(lambda: asyncio.run(asked()))


def _lead_in(file: Path) -> dict[str, Any]:
    try:
        lead = json.loads(sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes())
    except OSError as error:
        raise Problem(f"{file} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise Problem(f"{file} is no JSON: {error}.") from None
    if not isinstance(lead, dict):
        raise Problem(f"{file} holds no JSON object: a lead is one, with external_id, phone, country.")
    return lead


def _pairs(texts: list[str] | None) -> dict[str, str]:
    pairs = [text.partition("=") for text in texts or ()]
    if wrong := [name for name, sign, _ in pairs if not (name and sign)]:
        raise typer.BadParameter(f"NAME=VALUE expected, not {wrong[0]}")
    return {name: value for name, _, value in pairs}


def _send(
    rows: Sequence[Row],
    api: LeadsApi,
    journal: Journal,
    *,
    parallel: int,
    queue: bool,
    rest: Callable[[float], Awaitable[object]],
) -> None:
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=err,
        disable=not err.is_terminal,
        transient=True,
    )
    with bar, journal.open():
        task = bar.add_task("Submitting", total=len(rows))

        def told(row: Row, verdict: Verdict) -> None:
            journal.note(row.number, verdict)
            bar.advance(task)

        async def all_of_them() -> None:
            async with api:
                await send(rows, api, parallel=parallel, queue=queue, rest=rest, told=told)

        asyncio.run(all_of_them())


def _rehearse(leads: LeadFile, *, as_json: bool) -> None:
    wrong = [row for row in leads.rows if row.problem]
    good = len(leads.rows) - len(wrong)
    if as_json:
        problems = [{"row": row.number, "reason": row.problem} for row in wrong]
        print_json({"file": str(leads.path), "rows": len(leads.rows), "would_be_sent": good, "invalid": problems})
    else:
        say(f"{good} of {len(leads.rows)} leads would be sent. Nothing was sent.")
        if wrong:
            rows = table("row", "external_id", "what is wrong")
            for row in wrong[:_SHOWN_PROBLEMS]:
                rows.add_row(str(row.number), shown(row.fields.get("external_id")), shown(row.problem))
            out.print(rows)
            if len(wrong) > _SHOWN_PROBLEMS:
                say(f"… and {len(wrong) - _SHOWN_PROBLEMS} more; --json has them all.")
    if wrong:
        raise typer.Exit(1)


def _report(
    leads: LeadFile, verdicts: Mapping[int, Verdict], earlier: int, refused: Path | None, *, as_json: bool
) -> None:
    counts = Counter(verdict.status for verdict in verdicts.values())
    left = len(leads.rows) - len(verdicts)
    if as_json:
        print_json(
            {
                "file": str(leads.path),
                "rows": len(leads.rows),
                "sent_before": earlier,
                "not_sent": left,
                **{status: counts[status] for status in _MEANINGS},
                "refused_file": str(refused) if refused else None,
            }
        )
        return
    summary = Table.grid(padding=(0, 2))
    summary.add_column(justify="right")
    for status, meaning in _MEANINGS.items():
        if counts[status]:
            summary.add_row(str(counts[status]), f"[{_COLOURS[status]}]{status}[/]", f"[dim]{meaning}[/]")
    if left:
        summary.add_row(str(left), "[yellow]not sent[/]", "[dim]the same command goes on from here[/]")
    summary.add_row(f"[bold]{len(leads.rows)}[/]", "[bold]rows[/]", f"[dim]{shown(leads.path)}[/]")
    out.print(summary)
    if earlier:
        tell(f"{earlier} of them were sent before; --again sends them once more.")
    if refused:
        tell(f"What was refused, and why: [bold]{shown(refused)}[/]. Mend it there and import that file.")
        if counts["rejected"]:
            tell("What CartelCRM has rejected is settled under its external_id: mended, it needs a new one.")
