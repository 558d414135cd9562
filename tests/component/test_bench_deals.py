"""The bench of Bitrix24: what it says of speed is what the worker does."""

from pathlib import Path

from tests.relay import RELAY_TOML
from workbench.bench.deals import GOAL, rates
from workbench.stack.blueprint import FunctionPlan


def test_deals_share_requests() -> None:
    """Seconds are bought with requests: few where deals go together, six for each alone."""
    plan = FunctionPlan(
        name="BitrixTransfer",
        handler="bitrix_robot.transfer.handler",
        timeout=300,
        memory=1024,
        environment={"RELAY_CONFIG": str(RELAY_TOML)},
        code=Path(),
        layers=(),
        log_format="JSON",
        log_level="INFO",
    )
    ticks: list[int] = []
    found = rates(plan, 50, 300, lambda: ticks.append(1))
    assert len(ticks) == 3
    together, with_contacts, one_by_one = found.ways
    # Two a second to each of both portals.
    assert together.done / together.requests * 2 * found.limit > 2 * GOAL
    assert with_contacts.done / with_contacts.requests * 2 * found.limit > GOAL
    assert one_by_one.requests == 6 * one_by_one.done
