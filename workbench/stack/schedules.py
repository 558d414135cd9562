"""Schedules: when they are due, and what their functions get.

Facts: docs.aws.amazon.com, "Schedule types in EventBridge Scheduler" and "Cron expressions".
"""

import asyncio
import calendar
import json
import logging
import re
import uuid
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from workbench.stack.blueprint import Schedule, UnsupportedTemplate
from workbench.stack.environments import FunctionError
from workbench.stack.functions import Function
from workbench.stack.template import ACCOUNT

_log = logging.getLogger(__name__)
# A machine that slept does not catch up: EventBridge would not have waited for it.
_MISSED = timedelta(seconds=30)
_RATE = re.compile(r"rate\((\d+) (minute|hour|day)s?\)")
_CRON = re.compile(r"cron\((\S+) (\S+) (\S+) (\S+) (\S+) (\S+)\)")
_AT = re.compile(r"at\((\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)\)")
_MONTHS = {name.upper(): number for number, name in enumerate(calendar.month_abbr) if name}
_WEEKDAYS = {name: number for number, name in enumerate(("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"), start=1)}
_LAST_YEAR = 2199


def due_times(expression: str, timezone: str, start: datetime) -> Iterator[datetime]:
    """Yield when `rate(…)`, `cron(…)` or `at(…)` is due, from `start` on; a rate at once.

    Raises UnsupportedTemplate for anything else, and for the letters L, W and # of cron.
    """
    if rate := _RATE.fullmatch(expression):
        step = timedelta(**{f"{rate[2]}s": int(rate[1])})
        return _every(step, start)
    if cron := _CRON.fullmatch(expression):
        return _cron(expression, cron.groups(), ZoneInfo(timezone), start)
    if at := _AT.fullmatch(expression):
        due = datetime.fromisoformat(at[1]).replace(tzinfo=ZoneInfo(timezone))
        return iter([due] if due >= start else [])
    raise UnsupportedTemplate(f"schedule {expression}: neither rate(…) nor cron(…) nor at(…)")


def event(schedule: Schedule, due: datetime, region: str) -> Any:
    """What the function gets: the template's own input, or the service's."""
    moment = due.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    service = schedule.source.removeprefix("aws.")
    resource = f"schedule/default/{schedule.name}" if service == "scheduler" else f"rule/{schedule.name}"
    arn = f"arn:aws:{service}:{region}:{ACCOUNT}:{resource}"
    if schedule.payload is not None:
        known = {
            "schedule-arn": arn,
            "scheduled-time": moment,
            "execution-id": str(uuid.uuid4()),
            "attempt-number": "1",
        }
        return json.loads(re.sub(r"<aws\.scheduler\.([a-z-]+)>", lambda name: known[name[1]], schedule.payload))
    return {
        "version": "0",
        "id": str(uuid.uuid4()),
        "detail-type": "Scheduled Event",
        "source": schedule.source,
        "account": ACCOUNT,
        "time": moment,
        "region": region,
        "resources": [arn],
        "detail": "{}" if service == "scheduler" else {},
    }


async def keep(
    schedule: Schedule,
    function: Function,
    region: str,
    now: Callable[[], datetime],
    sleep: Callable[[float], Awaitable[None]],
) -> None:
    """Invoke the function whenever the schedule is due, however long the invocation before takes."""
    async with asyncio.TaskGroup() as due_now:
        for due in due_times(schedule.expression, schedule.timezone, now()):
            await sleep(max(0.0, (due - now()).total_seconds()))
            if now() - due < _MISSED:
                due_now.create_task(_fire(schedule, function, event(schedule, due, region)))


async def _fire(schedule: Schedule, function: Function, payload: Any) -> None:
    try:
        await function.invoke(payload)
    except FunctionError as error:
        _log.warning("%s: %s failed: %s", schedule.name, function.plan.name, error)


def _every(step: timedelta, start: datetime) -> Iterator[datetime]:
    due = start
    while True:
        yield due
        due += step


def _cron(expression: str, fields: tuple[str, ...], zone: ZoneInfo, start: datetime) -> Iterator[datetime]:
    try:
        minutes, hours = _numbers(fields[0], 0, 59), _numbers(fields[1], 0, 23)
        days, months = _numbers(fields[2], 1, 31), _numbers(fields[3], 1, 12, _MONTHS)
        weekdays, years = _numbers(fields[4], 1, 7, _WEEKDAYS), _numbers(fields[5], 1970, _LAST_YEAR)
    except ValueError as error:
        raise UnsupportedTemplate(f"schedule {expression}: {error}") from None

    def moments() -> Iterator[datetime]:
        day = start.astimezone(zone).date()
        while day.year <= _LAST_YEAR:
            if day.year in years and day.month in months and day.day in days and _weekday(day) in weekdays:
                for hour in sorted(hours):
                    for minute in sorted(minutes):
                        yield datetime.combine(day, time(hour, minute), zone)
            day += timedelta(days=1)

    return (moment for moment in moments() if moment >= start)


def _weekday(day: date) -> int:
    return day.isoweekday() % 7 + 1


def _numbers(field: str, first: int, last: int, names: dict[str, int] | None = None) -> frozenset[int]:
    """The values of a cron field. Raises ValueError."""
    values: set[int] = set()
    for part in field.upper().split(","):
        span, _, step = part.partition("/")
        low, _, high = span.partition("-")
        if low in ("*", "?"):
            begin, end = first, last
        else:
            begin = _number(low, names)
            end = _number(high, names) if high else (last if step else begin)
        if not first <= begin <= end <= last:
            raise ValueError(f"{part} is not within {first}-{last}")
        values.update(range(begin, end + 1, int(step or 1)))
    return frozenset(values)


def _number(text: str, names: dict[str, int] | None) -> int:
    return (names or {}).get(text) or int(text)
