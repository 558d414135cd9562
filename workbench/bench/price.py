"""What a million calls cost: AWS's list prices, and what the code was seen to use.

Prices are list prices of us-east-1 as known in mid-2025, without free tiers, discounts and taxes. They change and
differ by region: before you build on them, check them on the pages that are named here.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal

REGION = "us-east-1"
AS_OF = "mid-2025"

MONTH = 30 * 86_400
"""Seconds of the month that prices by the month are reckoned with."""
MILLION = 1_000_000
GB = 10**9

VCPU_AT = 1769
"""MB of memory at which a function has one whole vCPU; with less it has that much less (AWS Lambda documentation)."""

AWS_CALL = 0.010
"""Seconds that a function waits for an answer of DynamoDB, SQS or EventBridge. Assumed."""
CRM_CALL = 0.5
"""Seconds that a function waits for a CRM's answer. Assumed."""
COLD_STARTS = 0.01
"""Share of invocations that start a new environment, which is billed too. Assumed; AWS speaks of less."""
TRACED = 0.75
"""Share of invocations that X-Ray records: by default the first in every second, of all functions together, and 5 %
of the others. A million a month is one in 2.6 seconds, twice that with its worker. Reckoned for random arrivals."""
MESSAGES_PER_BATCH = 1
"""Messages that one receive, one invocation and one delete share. Assumed; busy queues fill batches."""
EMPTY_RECEIVES = MONTH / 20 * 5
"""Receives of an empty queue in a month: Lambda keeps five pollers at it, each of which waits 20 s. Assumed."""
SECRET_READS = MONTH / 300
"""Reads of the secret in a month by a function that is always warm: the secret is kept for 300 s."""
ACCESS_RECORD = 350
"""Bytes that the API's access log takes for a request. Assumed, by its format in the template."""
LOG_RECORD = 26
"""Bytes that CloudWatch counts for a log record beside its text (Amazon CloudWatch pricing)."""


@dataclass(frozen=True, slots=True)
class Price:
    """`dollars` for so many (`per`) of what is billed, as the page of that name says."""

    what: str
    dollars: float
    per: float
    page: str


class Item(Enum):
    """Everything that is billed."""

    API_REQUEST = Price("HTTP API requests", 1.00, MILLION, "Amazon API Gateway pricing")
    FUNCTION_CALL = Price("Lambda requests", 0.20, MILLION, "AWS Lambda pricing")
    ARM_SECOND = Price("Lambda GB-seconds, arm64", 0.0000133334, 1, "AWS Lambda pricing")
    X86_SECOND = Price("Lambda GB-seconds, x86_64", 0.0000166667, 1, "AWS Lambda pricing")
    QUEUE_REQUEST = Price("SQS requests", 0.40, MILLION, "Amazon SQS pricing")
    WRITE_UNIT = Price("DynamoDB write units", 0.625, MILLION, "Amazon DynamoDB pricing (on-demand)")
    READ_UNIT = Price("DynamoDB read units", 0.125, MILLION, "Amazon DynamoDB pricing (on-demand)")
    STORED_MONTH = Price("DynamoDB GB-months with backup", 0.25 + 0.20, 1, "Amazon DynamoDB pricing (on-demand)")
    BUS_EVENT = Price("EventBridge events", 1.00, MILLION, "Amazon EventBridge pricing")
    SCHEDULED = Price("EventBridge Scheduler invocations", 1.00, MILLION, "Amazon EventBridge pricing")
    LOG_GB = Price("CloudWatch Logs GB", 0.50, 1, "Amazon CloudWatch pricing")
    TRACE = Price("X-Ray traces", 5.00, MILLION, "AWS X-Ray pricing")
    SECRET_READ = Price("Secrets Manager reads", 0.05, 10_000, "AWS Secrets Manager pricing")
    SECRET_MONTH = Price("Secrets", 0.40, 1, "AWS Secrets Manager pricing")
    ALARM_MONTH = Price("Metrics watched by alarms", 0.10, 1, "Amazon CloudWatch pricing")
    METRIC_MONTH = Price("Metrics of our own", 0.30, 1, "Amazon CloudWatch pricing")
    DASHBOARD_MONTH = Price("Dashboards", 3.00, 1, "Amazon CloudWatch pricing")

    def cost(self, quantity: float) -> float:
        """Return dollars."""
        return quantity * self.value.dollars / self.value.per


type Bill = Mapping[Item, float]
"""Quantities of what is billed."""
type Trigger = Literal["http", "queue", "schedule"]
type Architecture = Literal["arm64", "x86_64"]


@dataclass(frozen=True, slots=True)
class Usage:
    """One invocation of a function, on average over several.

    `memory` is in MB, `cpu` (own CPU time) and `init` (a cold start) in seconds, `log` in bytes with all that
    CloudWatch adds. `calls` counts AWS calls by operation, `most_calls` is the largest number of them in one
    invocation, `used` is what those calls are billed for.
    """

    what: str
    function: str
    trigger: Trigger
    memory: int
    cpu: float
    init: float
    calls: Mapping[str, float]
    most_calls: int
    crm_calls: float
    used: Bill
    log: float

    @property
    def seconds(self) -> float:
        """How long it takes in Lambda: computed, since this machine is no Lambda."""
        share = min(1.0, self.memory / VCPU_AT)
        return self.cpu / share + sum(self.calls.values()) * AWS_CALL + self.crm_calls * CRM_CALL


def bill(usage: Usage, architecture: Architecture) -> Bill:
    """Return what one such invocation is billed for."""
    trigger: Bill
    match usage.trigger:
        case "http":
            trigger = {Item.API_REQUEST: 1, Item.LOG_GB: (ACCESS_RECORD + LOG_RECORD) / GB}
        case "queue":
            trigger = {Item.QUEUE_REQUEST: 2 / MESSAGES_PER_BATCH}
        case "schedule":
            trigger = {Item.SCHEDULED: 1}
    second = Item.ARM_SECOND if architecture == "arm64" else Item.X86_SECOND
    function = {
        Item.FUNCTION_CALL: 1,
        second: (usage.seconds + COLD_STARTS * usage.init) * usage.memory / 1024,
        Item.LOG_GB: usage.log / GB,
        Item.TRACE: TRACED,
    }
    return together([usage.used, trigger, function])


def together(bills: Iterable[Bill], number: float = 1) -> Bill:
    """Return `number` times the sum of bills."""
    total: defaultdict[Item, float] = defaultdict(float)
    for each in bills:
        for item, quantity in each.items():
            total[item] += number * quantity
    return dict(total)


def cost(billed: Bill) -> float:
    """Return the dollars of a bill."""
    return sum(item.cost(quantity) for item, quantity in billed.items())


def standing(template: Mapping[str, Any], series: int) -> Bill:
    """Return what a month costs before the first call.

    Args:
        template: plain CloudFormation.
        series: how many metrics of our own there are; each is billed in the hours in which it has data.
    """
    resources = template["Resources"].values()
    kinds = Counter(resource["Type"] for resource in resources)
    return {
        Item.SECRET_MONTH: kinds["AWS::SecretsManager::Secret"],
        Item.SECRET_READ: sum(_reads_secret(resource) for resource in resources) * SECRET_READS,
        Item.QUEUE_REQUEST: kinds["AWS::Lambda::EventSourceMapping"] * EMPTY_RECEIVES,
        Item.DASHBOARD_MONTH: kinds["AWS::CloudWatch::Dashboard"],
        Item.ALARM_MONTH: sum(_watched(resource) for resource in resources),
        Item.METRIC_MONTH: series,
    }


def ticks(expression: str) -> float:
    """Return how often a month a schedule is due; `expression` is a rate, such as rate(5 minutes)."""
    rate = re.fullmatch(r"rate\((\d+) (minute|hour|day)s?\)", expression)
    if rate is None:
        raise ValueError(f"not a rate: {expression}")
    return MONTH / (int(rate[1]) * {"minute": 60, "hour": 3600, "day": 86_400}[rate[2]])


def _reads_secret(resource: Mapping[str, Any]) -> bool:
    environment = resource.get("Properties", {}).get("Environment", {})
    return resource["Type"] == "AWS::Lambda::Function" and "SECRET_ID" in environment.get("Variables", {})


def _watched(resource: Mapping[str, Any]) -> int:
    if resource["Type"] != "AWS::CloudWatch::Alarm":
        return 0
    return sum("MetricStat" in metric for metric in resource["Properties"].get("Metrics", [])) or 1


def billed_for(operation: str, request: Mapping[str, Any], answer: Mapping[str, Any]) -> Bill:
    """Return what one AWS call is billed for.

    Args:
        operation: service and operation, such as dynamodb:PutItem.
        request: its parameters.
        answer: what came back.

    Raises:
        NotImplementedError: an operation that nobody has told this table about.
    """
    match operation:
        case "dynamodb:PutItem":
            # The sparse index takes a write of its own for every item that is in it.
            indexed = 1 if "attention" in request["Item"] else 0
            return {Item.WRITE_UNIT: _units(item_size(request["Item"]), 1024) + indexed}
        case "dynamodb:GetItem":
            share = 1.0 if request.get("ConsistentRead") else 0.5
            return {Item.READ_UNIT: share * _units(item_size(answer.get("Item", {})), 4096)}
        case "dynamodb:Query":
            return {Item.READ_UNIT: 0.5 * _units(sum(map(item_size, answer["Items"])), 4096)}
        case "sqs:SendMessage":
            return {Item.QUEUE_REQUEST: _units(len(request["MessageBody"].encode()), 64 * 1024)}
        case "sqs:SendMessageBatch":
            size = sum(len(entry["MessageBody"].encode()) for entry in request["Entries"])
            return {Item.QUEUE_REQUEST: _units(size, 64 * 1024)}
        case "events:PutEvents":
            sizes = [len(entry["Detail"].encode()) for entry in request["Entries"]]
            return {Item.BUS_EVENT: sum(_units(size, 64 * 1024) for size in sizes)}
        case "secretsmanager:GetSecretValue":
            return {Item.SECRET_READ: 1}
        case _:
            raise NotImplementedError(operation)


def item_size(item: Mapping[str, Mapping[str, Any]]) -> int:
    """Return the bytes of a DynamoDB item in its wire form (Amazon DynamoDB documentation, item sizes)."""
    return sum(len(name.encode()) + _value_size(value) for name, value in item.items())


def _value_size(value: Mapping[str, Any]) -> int:
    match value:
        case {"S": str(text)}:
            return len(text.encode())
        case {"N": str(number)}:
            return math.ceil(len(number.strip("-0.")) / 2) + 1
        case {"B": bytes(octets)}:
            return len(octets)
        case {"L": list(values)}:
            return 3 + sum(1 + _value_size(inner) for inner in values)
        case {"M": dict(values)}:
            return 3 + len(values) + item_size(values)
        case _:  # NULL, BOOL
            return 1


def _units(size: int, unit: int) -> int:
    return max(1, math.ceil(size / unit))
