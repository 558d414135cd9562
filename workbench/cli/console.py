"""What the person at the terminal sees: one manner for all commands, and no stranger's text that could spoil it."""

import json
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

out = Console(highlight=False, emoji=False)
"""Results go here: what a script may want to read."""
err = Console(stderr=True, highlight=False, emoji=False)
"""All else goes here: questions, progress, warnings, problems."""


def flag(*names: str, meaning: str) -> Any:
    """Return an option without a value."""
    return typer.Option(*names, help=meaning, metavar="")


StackOption = Annotated[
    str | None, typer.Option("--stack", metavar="NAME", help="A deployed stack; else the local one.")
]
RegionOption = Annotated[
    str | None, typer.Option("--region", metavar="REGION", help="Its AWS region; else that of your AWS settings.")
]
JsonOption = Annotated[bool, flag("--json", meaning="Print JSON, for scripts.")]
YesOption = Annotated[bool, flag("--yes", "-y", meaning="Do not ask.")]


class Problem(Exception):
    """Something that the person at the terminal can mend; the message says what and how, and exit code is 1."""


def examples(*lines: str) -> str:
    """Return the end of a command's help."""
    return "\n".join(["[bold]Examples[/]", *(f"[dim]$[/] {escape(line)}" for line in lines)])


def shown(value: object) -> str:
    """Return data for a line or a cell: no markup of ours in it, no control character and no escape sequence."""
    text = "" if value is None else str(value)
    return escape("".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text))


def say(sentence: str) -> None:
    """Print a line of markup, whole where nobody's terminal would have to wrap it."""
    out.print(sentence, soft_wrap=not out.is_terminal)


def tell(sentence: str) -> None:
    """Print a line of markup beside the results."""
    err.print(sentence, soft_wrap=not err.is_terminal)


def complain(sentence: str) -> None:
    """Print what is wrong."""
    for line in sentence.splitlines():
        tell(f"[red]{shown(line)}[/]")


def print_json(value: object) -> None:
    """Print JSON that is safe on any terminal."""
    typer.echo(json.dumps(value, indent=2, default=_bytes_as_text))


def table(*columns: str) -> Table:
    """Return an empty table; its columns are broken where there is no room."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, header_style="bold")
    for column in columns:
        made.add_column(column, overflow="fold")
    return made


def print_keyed(key: str, told: Iterable[str]) -> None:
    """Print a key whole, on a line of its own, since other commands take it; below, what is told of it, in markup."""
    out.print(f"[bold]{shown(key)}[/]", soft_wrap=True)
    say("  ".join(["", *told]))


def facts(pairs: Mapping[str, object]) -> Table:
    """Return names and values, one pair a line; what is None or empty is left out."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in pairs.items():
        if value not in (None, ""):
            grid.add_row(name, shown(value))
    return grid


def age(seconds: float) -> str:
    """Return a span in its one largest unit."""
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit}"
    return f"{max(0, int(seconds))} s"


def moment(timestamp: float) -> str:
    """Return unix seconds as a date and time."""
    return datetime.fromtimestamp(timestamp, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def interactive() -> bool:
    """Tell whether somebody is there to be asked."""
    return sys.stdin.isatty()


def confirm(question: str, *, yes: bool) -> None:
    """Ask before something is changed; `yes` is the answer given beforehand.

    Raises:
        Problem: the answer is no, or nobody is there to answer.
    """
    if yes:
        return
    if not interactive():
        raise Problem(f"{question} Nobody is here to answer; --yes does.")
    if not typer.confirm(question, err=True):
        raise Problem("Nothing was changed.")


def _bytes_as_text(value: object) -> str:
    assert isinstance(value, bytes)
    return value.decode("utf-8", "backslashreplace")
