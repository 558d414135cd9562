"""A proof that notices nothing proves nothing: mistakes that the simulation, or a test, must notice, and at once."""

import pytest

from tests.planted.catch import SEEDS, catch, complaint
from tests.planted.plants import MISTAKES


@pytest.mark.parametrize("seed", SEEDS)
def test_without_a_mistake_a_seed_notices_nothing(seed: int) -> None:
    """Or else what it says below would say nothing."""
    assert complaint(seed) == ""


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_noticed(name: str) -> None:
    """By the tests that are named with it, or within a few seeds where there are none."""
    noticed = catch(name, seeds=() if MISTAKES[name].tests else SEEDS)
    assert noticed.by, noticed.says
