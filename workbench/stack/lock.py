"""One stack at a time per state directory, and who runs it."""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TextIO


@dataclass(frozen=True, slots=True)
class Running:
    """What a stack tells to other processes: where its API and its AWS are, and the outputs of the template.

    While it starts, only `pid` and `url` are known.
    """

    pid: int
    url: str
    aws: str = ""
    region: str = ""
    outputs: Mapping[str, str] = field(default_factory=dict)


class AlreadyRunning(Exception):
    """Another process runs the stack."""

    def __init__(self, pid: int, url: str) -> None:
        super().__init__(f"the local stack already runs at {url or 'an address not known yet'} (process {pid})")
        self.pid = pid
        self.url = url


def running(directory: Path) -> Running | None:
    """The stack that runs on `directory` at the moment; a leftover of one that was killed counts as none."""
    note = _read(directory)
    if note is None:
        return None
    with (directory / "lock").open("a") as file:
        return None if _take(file) else note


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """Be the only one on `directory`. Raises AlreadyRunning.

    The lock is the kernel's and ends with the process: a note without a lock is left over from one that was killed.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("a") as file:
        if not _take(file):
            holder = _read(directory) or Running(0, "")
            raise AlreadyRunning(holder.pid, holder.url)
        tell(directory, Running(os.getpid(), ""))
        try:
            yield
        finally:
            _note(directory).unlink()


def tell(directory: Path, note: Running) -> None:
    """Tell other processes; in one step, so that nobody reads half of it."""
    draft = directory / "stack.json.new"
    draft.write_text(json.dumps(asdict(note), indent=2), "utf-8")
    draft.replace(_note(directory))


def _note(directory: Path) -> Path:
    return directory / "stack.json"


def _read(directory: Path) -> Running | None:
    try:
        return Running(**json.loads(_note(directory).read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _take(file: TextIO) -> bool:
    """Take the lock, which ends when the file is closed; False when another process has it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
