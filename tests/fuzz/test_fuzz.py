"""A small fuzz run: nothing that a stranger sends raises, is answered with a 5xx, or takes long."""

import shutil
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.fuzz import __main__ as command
from tests.fuzz.fuzz import Fuzzed, fuzz, timed
from tests.fuzz.targets import LONGEST_REFUSED, LONGEST_TAKEN, TARGETS, Take, Target


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", TARGETS)
def test_strangers(name: str) -> None:
    """Of four thousand inputs some are taken and some refused, and nothing else happens."""
    found = fuzz(name, inputs=4_000, seed=1)
    assert found.inputs >= 4_000
    assert found.taken > 50
    assert found.refused > 5


@pytest.mark.parametrize("part", [b"~%9B", b"%41.", b"a.b ", b"&a[][]=%D0%B0"])
def test_the_longest_that_was_found(part: bytes) -> None:
    """A hook as large as one may be, of nothing but what takes long to read."""
    target = TARGETS["forms"]
    with target.opened() as take:
        _, seconds = timed(take, part * (target.limit // len(part)))
    assert seconds <= LONGEST_TAKEN


@contextmanager
def _slow_for_one() -> Iterator[Take]:
    def take(data: bytes) -> bool:
        began = time.thread_time()
        while data == b"slow" and time.thread_time() - began <= LONGEST_REFUSED:
            pass
        return False

    yield take


@pytest.fixture
def slow_for_one(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(TARGETS, "slow for one", Target(_slow_for_one, [], [], 0))
    return "slow for one"


def test_of_the_slowest_twenty_are_kept() -> None:
    """Each once, with its longest time, the slowest first."""
    found = Fuzzed()
    for number in [*range(50), *range(40, 50)]:
        found += Fuzzed(1, 0, slowest_taken=((number / 100, b"%d" % number),))
        found += Fuzzed(1, 0, slowest_taken=((0.0, b"%d" % number),))
    assert found == Fuzzed(120, 0, tuple((number / 100, b"%d" % number) for number in range(49, 29, -1)))


def test_what_is_too_slow_hides_behind_nothing(slow_for_one: str) -> None:
    """Each of the slowest is tried again, not only the one that was slowest under instruments."""
    found = Fuzzed(0, 3, slowest_refused=((0.3, b"slower there"), (0.2, b"slow"), (0.1, b"fast")))
    with pytest.raises(command.Failed, match=r"^refused in [0-9]+ ms, of at most 50 ms$") as failed:
        command._measured_again(slow_for_one, found)
    assert failed.value.data == b"slow"


@pytest.mark.parametrize(("data", "code"), [(b"slow", 1), (b"fast", 0)])
def test_a_replay_fails_as_its_run_did(
    slow_for_one: str,
    data: bytes,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An input that is too slow alone ends the command with 1; the limit is said."""
    monkeypatch.setattr(sys, "argv", ["fuzz", "--only", slow_for_one, "--replay", repr(data)])
    assert command.main() == code
    assert "ms, of at most 50 ms" in capsys.readouterr().out


def test_a_run_that_ends_before_its_time_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that returns 0 with nothing done has found nothing, which proves nothing."""
    monkeypatch.setattr(sys, "executable", shutil.which("true"))
    with pytest.raises(command.Failed, match=r"^0 of 10 inputs were tried$") as failed:
        command._run("forms", 1, 10, lambda _: None)
    assert failed.value.data is None


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_made_larger_keeps_its_parts(name: str) -> None:
    """The head stays, and what is behind it is there at least once."""
    target = TARGETS[name]
    data = next(data for data in (b"head\n\n%d" % number for number in range(10_000)) if zlib.crc32(data) % 400 == 0)
    whole, body = target.whole(data), data.removeprefix(b"head\n\n")
    assert whole.removeprefix(b"head\n\n") == body * max(1, target.limit // len(body))
