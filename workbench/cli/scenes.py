"""What `relay start` and `relay status` put on the terminal: calm, in columns, at any width from 80 on."""

import json
import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, override

from rich.padding import Padding
from rich.table import Table

from workbench.cli.console import facts, out, shown, table

if TYPE_CHECKING:
    from workbench.local_relay import LocalRelay
    from workbench.stack import Published
    from workbench.story import Step, Story

_INDENT = (0, 0, 0, 2)
_WHAT = 27
_METRICS = ("Received", "Replayed", "Done", "Waiting", "Refused", "Lost")
_STATES = {
    "done": ("CONFIRMED",),
    "waiting": ("WAITING", "PLANNED", "SENT"),
    "refused": ("REJECTED",),
    "to be looked at": ("GIVEN_UP", "NEEDS_RECONCILE"),
}


class Scenes(logging.Handler):
    """Everything that `relay start` shows; `logs` is the folder with the functions' logs.

    As a handler of log records it shows what the workbench itself complains of.
    """

    def __init__(self, logs: Path) -> None:
        super().__init__(logging.WARNING)
        self.logs = logs
        self._follows = False
        self._began = time.monotonic()
        self._complaint = ("", "")

    @contextmanager
    def starting(self) -> Iterator[None]:
        """Show that it takes a moment."""
        out.print()
        with out.status("[dim]Starting AWS, the functions and the sandboxes on this machine …[/]", spinner="dots"):
            yield

    def running(self, relay: "LocalRelay") -> None:
        """Say what runs where."""
        seconds = time.monotonic() - self._began
        out.print(f"  [bold]CRM Relay runs on this machine[/] [dim](started in {seconds:.1f} s)[/]\n")
        routes = sorted((route.path, route.method) for route in relay.stack.blueprint.routes)
        places = Table.grid(padding=(0, 2, 0, 0))
        places.add_column(style="dim", no_wrap=True)
        places.add_column(overflow="fold")
        places.add_row("API", f"[bold]{relay.stack.url}[/]")
        for path, method in routes:
            places.add_row("", f"{method:<4} {shown(path)}")
        for crm in relay.crms.values():
            for name in crm.sandboxes:
                part = name.removeprefix(f"{crm.name}_") if name != crm.name else "sandbox"
                places.add_row(f"{crm.title} {part}", relay.urls[name])
        places.add_row("Logs", shown(_short(self.logs)))
        places.add_row("Addresses, keys", "relay status --json")
        out.print(Padding(places, _INDENT))
        for name in relay.stack.functions:
            if trouble := relay.stack.functions[name].last_error:
                self._line("red", "", name, shown(f"cannot be loaded: {trouble}"))
                self._look((name,))
        for title in relay.real_crms:
            out.print(
                f"\n  [yellow]{title} is the real one: what is done there is real, and its calls do not come here."
                "\n  The sample events are not played.[/]"
            )

    def story(self) -> None:
        """Begin the story."""
        out.print("\n  [bold]The sample events[/]\n")

    def step(self, step: "Step") -> None:
        """Tell a step of the story."""
        colour = "green" if step.ok else "bold red"
        mark = "✓" if step.ok else "✗"
        self._line("default", step.lead, step.sent, f"[{colour}]{mark} {shown(step.answer)}[/]", at=step.at)
        self._look(() if step.ok else step.look)

    def table(self, relay: "LocalRelay", story: "Story") -> None:
        """Sum up what was sent, received and done."""
        leads = table("Lead", "Sent", "Answer", "Now")
        for lead in story.leads:
            leads.add_row(*map(shown, (lead.external_id, lead.sent, lead.answer, lead.status or "–")))
        notes = _numbers("In amoCRM", "Leads", "Hooks", "Notes")
        for told in story.notes:
            notes.add_row(shown(told.happened), str(told.leads), str(told.hooks), str(told.notes))
        deals = _numbers("In Bitrix24, told by", "Deal", "In the hub", "Contacts", "Rows", "Files")
        for deal in story.deals:
            hub_deals = ", ".join(map(str, deal.hub_deals)) or "–"
            parts = (deal.contacts, deal.rows, deal.files)
            deals.add_row(shown(deal.told_by), str(deal.deal), hub_deals, *(str(part or "–") for part in parts))
        counts = _numbers("Deliveries", "Received", *map(str.capitalize, _STATES))
        for kind, states in sorted(story.counts.items(), reverse=True):
            numbers = (sum(states[state] for state in group) for group in _STATES.values())
            counts.add_row(shown(f"{kind.rpartition('.')[2]}s"), str(states.total()), *map(str, numbers))
        out.print(Padding(leads, _INDENT))
        out.print(Padding(notes, _INDENT))
        out.print(Padding(deals, _INDENT))
        out.print(Padding(counts, _INDENT))
        routed = {route.function for route in relay.stack.blueprint.routes}
        metrics = [counted for name, counted in relay.metrics.by_function.items() if name in routed]
        at_the_door: Counter[str] = sum(metrics, Counter())
        out.print(
            f"  turned away {at_the_door['TurnedAway']} · replays {at_the_door['Replayed']}"
            f" · dead letters {story.dead_letters} · events on the bus {relay.event_counts.total()}"
        )
        if not story.ok:
            out.print("\n  [bold red]Something came otherwise than it must: see the lines marked ✗ above.[/]")

    def next_steps(self, relay: "LocalRelay") -> None:
        """Say what to try; from now on, follow what happens."""
        url, key = relay.stack.url, relay.keys["lead_api_key"]
        lines = [
            f"curl {url}/leads \\",
            f"  -H 'Authorization: Bearer {key}' \\",
            "  -H 'Content-Type: application/json' \\",
            """  -d '{"external_id":"site-1","phone":"050 765 43 21","country":"UA"}'""",
            "",
            f"curl {url}/leads/site-1 \\",
            f"  -H 'Authorization: Bearer {key}'",
        ]
        if sandbox := relay.urls.get("cartelcrm"):
            lines += [
                "",
                f"curl {sandbox}/sandbox/leads/site-1/status \\",
                """  -d '{"status":"returned"}'""",
                "",
                f"curl {sandbox}/sandbox/faults \\",
                """  -d '{"kind":"rate_limited","times":2}'""",
                "",
                "relay send callback_receiver/lead_approved",
            ]
        if sandbox := relay.urls.get("amocrm"):
            lines += ["", f"curl {sandbox}/sandbox/leads \\", """  -d '{"name":"Балкон","price":90000}'"""]
        if sandbox := relay.urls.get("bitrix24_partner"):
            lines += ["", f"curl {sandbox}/sandbox/deals/1"]
        out.print("\n  [bold]Try it from another terminal[/]\n")
        for line in lines:
            out.print(f"  {line}", soft_wrap=True, markup=False)
        out.print("\n  [dim]Bus events, and what needs a person, show below. Ctrl-C stops everything.[/]\n")
        self._follows = True

    def event(self, published: "Published") -> None:
        """Follow the bus."""
        if not self._follows:
            return
        kind, detail = str(published.event.get("detail-type")), published.event.get("detail", {})
        told = str(next((detail[name] for name in ("status", "reason", "hub_deal") if name in detail), ""))
        if detail.get("applied") is False:
            told += ", not applied"
        about = f"deal {detail['deal']}" if "deal" in detail else str(detail.get("external_id") or "")
        self._line("default", about, f"{kind} on the bus", shown(told))

    def log(self, function: str, line: str) -> None:
        """Show what a function logs as an error."""
        try:
            record = json.loads(line)
            if record["level"] in ("ERROR", "CRITICAL"):
                more = [str(record[name]) for name in ("reason", "error_type", "account") if name in record]
                told = ": ".join([str(record["message"]), *more[:1]])
                if (function, told) == self._complaint:  # of every message of a batch, perhaps
                    return
                self._complaint = (function, told)
                self._line("yellow", "", function, shown(told))
                self._look((function,))
        except (ValueError, KeyError, TypeError):
            return

    @override
    def emit(self, record: logging.LogRecord) -> None:
        self._line("yellow", "", "the local stack", shown(record.getMessage()))

    def _look(self, functions: Sequence[str]) -> None:
        for name in functions:
            out.print(f"            [dim]see {shown(_short(self.logs / name))}.log[/]", soft_wrap=True)

    def _line(self, style: str, lead: str, what: str, answer: str, *, at: float | None = None) -> None:
        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(width=8, style="dim", no_wrap=True)
        grid.add_column(width=8, style="bold", overflow="fold")
        grid.add_column(width=_WHAT, style=style, overflow="fold")
        grid.add_column(style=style, overflow="fold")
        moment = time.strftime("%H:%M:%S", time.localtime(time.time() if at is None else at))
        grid.add_row(moment, shown(lead), shown(what), answer)
        out.print(Padding(grid, _INDENT))


def show_status(found: Mapping[str, Any]) -> None:
    """Show what `relay start` answers about itself."""
    places = {
        "API": found["url"],
        **{f"{name} sandbox": url for name, url in found["sandboxes"].items()},
        "AWS": found["endpoint_url"],
        "Process": found["pid"],
        "Lead API key": found["secrets"]["lead_api_key"],
    }
    out.print(facts(places))
    functions = _numbers("Function", "Calls", "Errors", *_METRICS)
    for name, function in found["functions"].items():
        counted = found["metrics"].get(name, {})
        counts = [function["invocations"], function["errors"], *(counted.get(metric, 0) for metric in _METRICS)]
        functions.add_row(shown(name.removesuffix("Function")), *(str(count or "–") for count in counts))
    queues = _numbers("Queue", "Visible", "In flight", "Delayed")
    for name, depth in found["queues"].items():
        queues.add_row(shown(name), *(str(depth[kind] or "–") for kind in ("visible", "in_flight", "delayed")))
    out.print(functions)
    out.print(queues)


def _numbers(*columns: str) -> Table:
    """Return a table with numbers in all columns but the first, narrow enough for many of them."""
    made = table(*columns)
    made.padding = 0
    for column in made.columns[1:]:
        column.justify = "right"
    return made


def _short(path: Path) -> str:
    """A path as one would type it here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
