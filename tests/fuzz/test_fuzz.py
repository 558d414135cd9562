"""A small fuzz run: nothing that a stranger sends raises, is answered with a 5xx, or takes long."""

import pytest

from tests.fuzz.fuzz import fuzz, timed
from tests.fuzz.targets import LONGEST_TAKEN, TARGETS


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", TARGETS)
def test_strangers(name: str) -> None:
    """Of four thousand inputs some are taken and some refused, and nothing else happens."""
    found = fuzz(name, inputs=4_000, seed=1)
    assert found.taken > 50
    assert found.refused > 5


@pytest.mark.parametrize("part", [b"~%9B", b"%41.", b"a.b ", b"&a[][]=%D0%B0"])
def test_the_longest_that_was_found(part: bytes) -> None:
    """A hook as large as one may be, of nothing but what takes long to read."""
    target = TARGETS["forms"]
    with target.opened() as take:
        _, seconds = timed(take, part * (target.limit // len(part)))
    assert seconds <= LONGEST_TAKEN
