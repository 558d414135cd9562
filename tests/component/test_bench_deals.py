"""The bench of Bitrix24: what it says of speed is what the worker does."""

from pathlib import Path

from tests.relay import RELAY_TOML
from workbench.bench.deals import GOAL, rates
from workbench.stack.blueprint import FunctionPlan


def test_deals_share_requests() -> None:
    """Ten a second and more at two requests a second, contacts included; a request for each step is far slower."""
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
    assert found.kept
    assert found.together.per_second > found.with_contacts.per_second > GOAL * 0.8
    assert found.one_by_one.requests == 6 * found.one_by_one.deals
    assert found.ratio > 20
