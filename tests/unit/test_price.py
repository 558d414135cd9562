"""What the benchmark computes: the price of calls, and which budgets hold for whom."""

import math
from pathlib import Path
from typing import Any

import pytest

from workbench.bench import price
from workbench.bench.__main__ import Results
from workbench.bench.amocrm_reading import LEADS, MOST_CPU, MOST_MEMORY, Reading
from workbench.bench.cold_starts import RECEIVER_BUDGET, WORKER_BUDGET, ColdStart, budget
from workbench.bench.own_time import BUDGETS, OwnTime, callback_body
from workbench.bench.price import Item, Usage, bill, billed_for, cost, item_size, standing, ticks, together
from workbench.bench.rates import Rates, Way
from workbench.bench.usage import Measured
from workbench.stack.blueprint import Blueprint, Route
from workbench.stack.template import transformed

TEMPLATE = Path(__file__).parents[2] / "template.yaml"


def usage(**changes: Any) -> Usage:
    """A call that takes half a vCPU-second at 1 vCPU, two AWS calls, and nothing else."""
    plain: dict[str, Any] = {
        "what": "call",
        "function": "Function",
        "trigger": "http",
        "memory": price.VCPU_AT,
        "cpu": 0.5,
        "init": 0.0,
        "calls": {"dynamodb:PutItem": 2.0},
        "most_calls": 2,
        "crm_calls": 0.0,
        "used": {Item.WRITE_UNIT: 2.0},
        "log": 0.0,
    }
    return Usage(**plain | changes)


def put(**item: Any) -> price.Bill:
    return billed_for("dynamodb:PutItem", {"Item": item}, {})


def test_an_item_is_as_large_as_its_names_and_values() -> None:
    """By DynamoDB's rules: UTF-8, a byte for two digits and one more, three for a container and one for each in it."""
    assert item_size({"key": {"S": "ab"}}) == 3 + 2
    assert item_size({"n": {"S": "Оля"}}) == 1 + 6
    assert item_size({"n": {"N": "1795300350"}}) == 1 + 1 + math.ceil(9 / 2)
    assert item_size({"n": {"N": "-7"}}) == 1 + 1 + 1
    assert item_size({"n": {"BOOL": True}, "m": {"NULL": True}}) == 4
    assert item_size({"b": {"B": b"\0" * 10}}) == 11
    assert item_size({"l": {"L": [{"S": "ab"}, {"S": "c"}]}}) == 1 + 3 + (1 + 2) + (1 + 1)
    assert item_size({"m": {"M": {"a": {"S": "b"}}}}) == 1 + 3 + 1 + (1 + 1)


def test_a_write_is_billed_by_the_started_kilobyte_and_once_more_where_it_is_indexed() -> None:
    assert put(key={"S": "a"}) == {Item.WRITE_UNIT: 1}
    assert put(key={"S": "a" * 1021}) == {Item.WRITE_UNIT: 1}
    assert put(key={"S": "a" * 1022}) == {Item.WRITE_UNIT: 2}
    assert put(key={"S": "a"}, attention={"S": "WAITING"}) == {Item.WRITE_UNIT: 2}


def test_a_read_is_billed_by_what_is_found_and_half_if_it_need_not_be_the_newest() -> None:
    large = {"Item": {"key": {"S": "a" * 5000}}}
    assert billed_for("dynamodb:GetItem", {"ConsistentRead": True}, {}) == {Item.READ_UNIT: 1}
    assert billed_for("dynamodb:GetItem", {"ConsistentRead": True}, large) == {Item.READ_UNIT: 2}
    assert billed_for("dynamodb:GetItem", {}, large) == {Item.READ_UNIT: 1}
    assert billed_for("dynamodb:Query", {}, {"Items": []}) == {Item.READ_UNIT: 0.5}


def test_messages_and_events_are_billed_by_64_kb() -> None:
    assert billed_for("sqs:SendMessage", {"MessageBody": "a" * 65_536}, {}) == {Item.QUEUE_REQUEST: 1}
    assert billed_for("sqs:SendMessage", {"MessageBody": "я" * 65_536}, {}) == {Item.QUEUE_REQUEST: 2}
    batch = {"Entries": [{"MessageBody": "a" * 65_536}, {"MessageBody": "a"}]}
    assert billed_for("sqs:SendMessageBatch", batch, {}) == {Item.QUEUE_REQUEST: 2}
    entries = {"Entries": [{"Detail": "{}"}, {"Detail": "a" * 65_537}]}
    assert billed_for("events:PutEvents", entries, {}) == {Item.BUS_EVENT: 3}


def test_an_unknown_call_is_not_free() -> None:
    """A call that nobody has priced stops the benchmark instead of making it cheaper."""
    with pytest.raises(NotImplementedError, match="dynamodb:Scan"):
        billed_for("dynamodb:Scan", {}, {})


def test_a_function_is_billed_for_memory_and_time() -> None:
    """Own time at the share of a vCPU that the memory brings, and the waiting; a hundredth of starts are cold."""
    seconds = 0.5 + 2 * price.AWS_CALL
    assert usage().seconds == pytest.approx(seconds)
    assert usage(memory=price.VCPU_AT // 2).seconds == pytest.approx(1.0 + 2 * price.AWS_CALL, rel=1e-3)
    assert usage(memory=10_240).seconds == pytest.approx(seconds)
    assert usage(crm_calls=1.0).seconds == pytest.approx(seconds + price.CRM_CALL)
    gigabytes = price.VCPU_AT / 1024
    assert bill(usage(), "arm64")[Item.ARM_SECOND] == pytest.approx(seconds * gigabytes)
    cold = bill(usage(init=2.0), "x86_64")[Item.X86_SECOND]
    assert cold == pytest.approx((seconds + 2.0 * price.COLD_STARTS) * gigabytes)


def test_what_starts_a_function_is_billed_too() -> None:
    assert bill(usage(), "arm64")[Item.API_REQUEST] == 1
    queued = bill(usage(trigger="queue", used={Item.QUEUE_REQUEST: 1}), "arm64")
    assert queued[Item.QUEUE_REQUEST] == 1 + 2
    assert Item.API_REQUEST not in queued
    assert bill(usage(trigger="schedule"), "arm64")[Item.SCHEDULED] == 1


def test_a_million_is_a_million_times_one() -> None:
    """Two writes at 0.625 dollars a million each, a request at one dollar."""
    million = together([bill(usage(), "arm64")], price.MILLION)
    assert Item.WRITE_UNIT.cost(million[Item.WRITE_UNIT]) == pytest.approx(1.25)
    assert Item.API_REQUEST.cost(million[Item.API_REQUEST]) == pytest.approx(1.00)
    assert cost(million) == pytest.approx(sum(item.cost(quantity) for item, quantity in million.items()))


def test_arm_is_cheaper() -> None:
    assert cost(bill(usage(), "arm64")) < cost(bill(usage(), "x86_64"))


def test_a_month_without_calls_is_read_from_the_template() -> None:
    """One secret, two queues that are polled, and every metric that an alarm looks at."""
    template = transformed(TEMPLATE)
    monthly = standing(template, series=9)
    alarms = [each for each in template["Resources"].values() if each["Type"] == "AWS::CloudWatch::Alarm"]
    sources = [each for each in template["Resources"].values() if each["Type"] == "AWS::Lambda::EventSourceMapping"]
    assert monthly[Item.SECRET_MONTH] == 1
    assert monthly[Item.QUEUE_REQUEST] == len(sources) * price.EMPTY_RECEIVES
    assert monthly[Item.ALARM_MONTH] > len(alarms) > 0
    assert monthly[Item.METRIC_MONTH] == 9


def test_a_rate_says_how_often_a_month() -> None:
    assert ticks("rate(1 minute)") == 43_200
    assert ticks("rate(12 hours)") == 60
    with pytest.raises(ValueError, match="not a rate"):
        ticks("cron(0 9 * * ? *)")


@pytest.mark.parametrize("item", Item)
def test_every_price_names_the_page_to_check_it_on(item: Item) -> None:
    assert item.value.dollars > 0
    assert "pricing" in item.value.page
    assert "://" not in item.value.page


def test_who_has_a_route_is_a_receiver() -> None:
    """A new function needs no entry in a list: the template says what starts it. The leads' API is the exception."""
    routes = tuple(Route("POST", f"/{name}", name) for name in ("HookFunction", "LeadApiFunction"))
    blueprint = Blueprint({}, routes, (), (), (), (), {}, {})
    assert budget("HookFunction", blueprint) == RECEIVER_BUDGET
    assert budget("NoteFunction", blueprint) == WORKER_BUDGET
    assert budget("LeadApiFunction", blueprint) > WORKER_BUDGET


def test_the_fastest_starts_are_compared() -> None:
    """A slow start tells more about the machine than about the function."""
    start = ColdStart("Function", (900.0, 460.0, 470.0), (405.0, 400.0, 700.0), budget=1.15)
    assert start.ratio == 1.15
    assert start.kept
    assert not ColdStart("Function", (461.0,), (400.0,), budget=1.15).kept


@pytest.mark.parametrize(
    ("ratio", "p99", "seconds", "deals", "read", "calls", "missed"),
    [
        (1.15, 2.0, 4.0, 10, LEADS, 3, []),
        (1.16, 2.0, 4.0, 10, LEADS, 3, ["cold start of Function"]),
        (1.15, 2.1, 4.0, 10, LEADS, 3, ["CPU time of a callback"]),
        (1.15, 2.0, 4.1, 10, LEADS, 3, ["notes a second"]),
        (1.15, 2.0, 4.0, 9, LEADS, 3, ["deals a second"]),
        (1.15, 2.0, 4.0, 10, LEADS - 1, 3, ["reading of leads"]),
        (1.15, 2.0, 4.0, 10, LEADS, 4, ["AWS calls per callback"]),
    ],
)
def test_what_is_over_its_budget_is_named(
    *, ratio: float, p99: float, seconds: float, deals: int, read: int, calls: int, missed: list[str]
) -> None:
    """And whatever is named makes the benchmark fail; what others take is only shown."""
    start = ColdStart("Function", (400 * ratio,), (400.0,), budget=1.15)
    times = OwnTime("callback", 3000, 0.5, p99, 2.0)
    slow = Way("usual", 1, 6, 3.0)
    rates = Rates("Notes", 7.0, 0.15, 250.0, (Way("ours", 1000, 24, seconds), slow))
    carried = Rates("Deals", 2.0, 0.2, 10.0, (Way("ours", deals, 6, 1.0), Way("another", 8, 9, 1.0), slow))
    readings = (Reading("ours", read, 1.0, 2**20), Reading("another", LEADS, 90.0, 2**30))
    measured = Measured((usage(most_calls=calls), usage(most_calls=9)), (), (), (), (), "rate(1 minute)", 0)
    assert list(Results((start,), (times,), rates, carried, readings, measured).missed()) == missed


@pytest.mark.parametrize(("cpu", "memory"), [(MOST_CPU, 0), (0.0, MOST_MEMORY)])
def test_reading_is_held_to_cpu_and_memory(cpu: float, memory: int) -> None:
    assert not Reading("ours", LEADS, cpu, memory).is_fast_enough


def test_ways_are_compared_as_ratio() -> None:
    ways = (Way("ours", 1000, 24, 4.0), Way("another", 1, 1, 1.0), Way("usual", 25, 29, 5.0))
    assert Rates("Notes", 7.0, 0.15, 250.0, ways).ratio == pytest.approx(50.0)


@pytest.mark.parametrize("kilobytes", BUDGETS)
def test_a_callback_of_the_benchmark_has_exactly_the_size_it_says(kilobytes: int) -> None:
    assert len(callback_body(kilobytes * 1024, "a" * 32, 1_760_000_000)) == kilobytes * 1024
