"""Sending a file of leads: a few at a time, as fast as the relay takes them, and never from the beginning again."""

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from workbench.cli.console import Problem
from workbench.cli.lead_file import Row
from workbench.cli.leads_api import Busy, LeadsApi, Verdict

MOST_TRIES = 6
"""Tries for one row, in a row, before the import gives up for now."""
_LONGEST_WAIT = 60.0


class Journal:
    """What became of each row, written down verdict by verdict, so that the same file goes on where it stopped."""

    def __init__(self, path: Path) -> None:
        """Read what is there; a last line that a crash cut off does not count."""
        self.path = path
        self.verdicts: dict[int, Verdict] = {}
        self._file: TextIO | None = None
        for line in path.read_text("utf-8").splitlines() if path.exists() else ():
            try:
                noted = json.loads(line)
                row = int(noted.pop("row"))
                self.verdicts[row] = Verdict(**noted)
            except (ValueError, KeyError, TypeError):
                continue

    @classmethod
    def of(cls, folder: Path, *identity: bytes) -> "Journal":
        """Return the journal of what `identity` says: the file's bytes, where they go, how they are read."""
        digest = hashlib.sha256()
        for part in identity:
            digest.update(hashlib.sha256(part).digest())
        return cls(folder / f"{digest.hexdigest()[:32]}.jsonl")

    def forget(self) -> None:
        """Start over."""
        self.path.unlink(missing_ok=True)
        self.verdicts.clear()

    @contextmanager
    def open(self) -> Iterator[None]:
        """Hold the file open for `note`."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as self._file:
            # After a line that was cut off, the next one must not be lost with it.
            self._file.write("\n")
            yield

    def note(self, row: int, verdict: Verdict) -> None:
        """Write down a verdict, at once."""
        assert self._file
        self.verdicts[row] = verdict
        self._file.write(json.dumps({"row": row, **verdict.as_json()}) + "\n")
        self._file.flush()


class Gate:
    """Holds all senders back while the relay has asked for a rest."""

    def __init__(self, rest: Callable[[float], Awaitable[object]]) -> None:
        """Make an open gate; `rest` waits for some seconds."""
        self._rest = rest
        self._resting = 0
        self._open = asyncio.Event()
        self._open.set()

    async def passed(self) -> None:
        """Wait until nobody rests."""
        await self._open.wait()

    async def close(self, seconds: float) -> None:
        """Close it for some seconds."""
        self._resting += 1
        self._open.clear()
        try:
            await self._rest(seconds)
        finally:
            self._resting -= 1
            if not self._resting:
                self._open.set()


async def send(
    rows: Iterable[Row],
    api: LeadsApi,
    *,
    parallel: int,
    queue: bool,
    rest: Callable[[float], Awaitable[object]],
    told: Callable[[Row, Verdict], None],
) -> None:
    """Submit rows and tell each one's verdict.

    Args:
        rows: those to submit.
        api: where.
        parallel: how many at a time.
        queue: do not wait for CartelCRM.
        rest: waits for some seconds.
        told: hears every verdict.

    Raises:
        Problem: the relay does not take leads, or not now. What was told was done.
    """
    gate = Gate(rest)
    waiting = iter(rows)

    async def work() -> None:
        for row in waiting:
            told(row, await _submit(row, api, gate, queue=queue))

    try:
        async with asyncio.TaskGroup() as tasks:
            for _ in range(parallel):
                tasks.create_task(work())
    except ExceptionGroup as group:
        raise group.exceptions[0] from None


async def _submit(row: Row, api: LeadsApi, gate: Gate, *, queue: bool) -> Verdict:
    reason = ""
    for attempt in range(MOST_TRIES):
        await gate.passed()
        try:
            # The same external_id and body again gets the same verdict, so a lost answer costs nothing.
            return await api.submit(row.fields, queue=queue)
        except Busy as busy:
            reason = str(busy)
            asked = 2.0**attempt if busy.retry_after is None else busy.retry_after
        if attempt < MOST_TRIES - 1:
            await gate.close(min(max(asked, 1.0), _LONGEST_WAIT))
    raise Problem(f"{reason}, {MOST_TRIES} times for row {row.number}.")
