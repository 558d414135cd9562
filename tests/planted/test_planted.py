"""A simulation that notices nothing proves nothing: mistakes that it must notice, and at once."""

import pytest

from tests.planted.catch import catch
from tests.planted.plants import MISTAKES


@pytest.mark.parametrize("name", [name for name, mistake in MISTAKES.items() if not mistake.tests])
def test_the_simulation_notices(name: str) -> None:
    """Within a few seeds it says what is lost, doubled or told."""
    assert catch(name).by.startswith("simulation")
