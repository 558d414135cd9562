"""When schedules are due, and what their functions get."""

from datetime import UTC, datetime
from itertools import islice

import pytest

from workbench.stack import UnsupportedTemplate, schedules
from workbench.stack.blueprint import Schedule

START = datetime(2026, 2, 27, 22, 58, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("expression", "timezone", "expected"),
    [
        ("rate(1 minute)", "UTC", ["2026-02-27T22:58:30", "2026-02-27T22:59:30", "2026-02-27T23:00:30"]),
        ("rate(12 hours)", "UTC", ["2026-02-27T22:58:30", "2026-02-28T10:58:30", "2026-02-28T22:58:30"]),
        ("cron(0/30 * * * ? *)", "UTC", ["2026-02-27T23:00:00", "2026-02-27T23:30:00", "2026-02-28T00:00:00"]),
        ("cron(15 8,20 ? * MON-FRI *)", "UTC", ["2026-03-02T08:15:00", "2026-03-02T20:15:00", "2026-03-03T08:15:00"]),
        ("cron(0 12 1 JAN ? 2028-2029)", "UTC", ["2028-01-01T12:00:00", "2029-01-01T12:00:00"]),
        ("cron(0 9 * * ? *)", "Europe/Berlin", ["2026-02-28T08:00:00", "2026-03-01T08:00:00", "2026-03-02T08:00:00"]),
        ("at(2026-03-01T00:00:00)", "UTC", ["2026-03-01T00:00:00"]),
        ("at(2025-03-01T00:00:00)", "UTC", []),
    ],
)
def test_due_times(expression: str, timezone: str, expected: list[str]) -> None:
    """From the start on, in the schedule's own time zone; a rate is due at once."""
    due = islice(schedules.due_times(expression, timezone, START), 3)
    assert [moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S") for moment in due] == expected


@pytest.mark.parametrize("expression", ["every day", "rate(1 fortnight)", "cron(0 12 L * ? *)", "cron(0 25 * * ? *)"])
def test_what_cannot_be_read_is_refused(expression: str) -> None:
    """With the expression in the text, before anything starts."""
    with pytest.raises(UnsupportedTemplate, match="schedule"):
        schedules.due_times(expression, "UTC", START)


def test_a_schedule_without_input_sends_its_service_s_event() -> None:
    """EventBridge Scheduler and a rule differ in source and detail."""
    schedule = Schedule("Nightly", "aws.scheduler", "F", "rate(1 day)", "UTC", None)
    event = schedules.event(schedule, START, "eu-central-1")
    assert event["source"] == "aws.scheduler"
    assert event["detail"] == "{}"
    assert event["time"] == "2026-02-27T22:58:30Z"
    assert event["resources"] == ["arn:aws:scheduler:eu-central-1:123456789012:schedule/default/Nightly"]
    rule = Schedule("Nightly", "aws.events", "F", "rate(1 day)", "UTC", None)
    assert schedules.event(rule, START, "eu-central-1")["detail"] == {}
