"""`relay check`: whether everything is as it must be, and if not, what to do about it."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from workbench.cli import configuration
from workbench.cli.configuration import Finding
from workbench.cli.console import JsonOption, RegionOption, StackOption, flag, out, print_json, shown

if TYPE_CHECKING:
    from workbench.cli.world import World

_MARKS = {True: "[green]✓[/]", False: "[red]✗[/]", None: "[yellow]–[/]"}
_WIDEST = 14


def check(
    ctx: typer.Context,
    *,
    offline: Annotated[bool, flag("--offline", meaning="Only the files: no stack, no network.")] = False,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The relay.toml; else layers/configuration/relay.toml.")
    ] = None,
    stack: StackOption = None,
    region: RegionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check configuration and connections, and say what to fix.

    The files first; then the secret, table and queues of the stack, the
    CRMs with the stack's credentials, and the API from outside.
    Exit code 1: something must be fixed.

    [bold]Examples[/]
    [dim]$[/] relay check
    [dim]$[/] relay check --stack crm-relay --region eu-central-1
    [dim]$[/] relay check --offline
    """
    world: World = ctx.obj
    report(_findings(world, config or world.config, stack, region, offline=offline), as_json=as_json)


def report(findings: Iterable[Finding], *, as_json: bool) -> None:
    """Print findings as they come, and end with exit code 1 if one of them is bad."""
    told = []
    for finding in findings:
        told.append(finding)
        if not as_json:
            _print(finding)
    if as_json:
        print_json([asdict(finding) for finding in told])
    if any(finding.good is False for finding in told):
        raise typer.Exit(1)


def _findings(
    world: "World", config: Path, stack: str | None, region: str | None, *, offline: bool
) -> Iterator[Finding]:
    yield from configuration.findings(config)
    if not offline:
        # boto3 and httpx: `make check` need not wait for them.
        from workbench.cli import connections  # noqa: PLC0415

        yield from connections.findings(world, config, stack, region)


def _print(finding: Finding) -> None:
    line = Table.grid(padding=(0, 2))
    line.add_column(width=1)
    line.add_column(width=_WIDEST)
    line.add_column(overflow="fold")
    line.add_row(_MARKS[finding.good], shown(finding.what), shown(finding.says))
    if finding.fix:
        line.add_row("", "", f"[bold]→ {shown(finding.fix)}[/]")
    out.print(line)
