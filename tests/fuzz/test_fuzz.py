"""A small fuzz run: nothing that a stranger sends raises, is answered with a 5xx, or takes long."""

import pytest

from tests.fuzz.fuzz import LONGEST_TAKEN, fuzz, timed
from tests.fuzz.targets import TARGETS, Body


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", TARGETS)
def test_strangers(name: str) -> None:
    """Of five thousand inputs some are taken and some refused, and nothing else happens."""
    found = fuzz(name, inputs=5_000, seed=1)
    assert found.taken > 50
    assert found.refused > 5


@pytest.mark.parametrize("part", [b"~%9B", b"%41.", b"a.b ", b"&a[][]=%D0%B0"])
def test_the_longest_that_was_found(part: bytes) -> None:
    """A hook as large as one may be, of nothing but what takes long to read."""
    with TARGETS["forms"].opened() as take:
        _, seconds = timed(take, Body([part], huge=True))
    assert seconds <= LONGEST_TAKEN
