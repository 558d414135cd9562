"""What the workbench has to run of a template, read from the outputs of the local stack."""

import json
import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.stack.localisation import ASKED, at_address
from workbench.stack.template import LOCAL_BUCKET, Json

_INVOKED = re.compile(r"functions/(?:[^/]*:)?(\w+)/invocations$")


class UnsupportedTemplate(Exception):
    """The template uses something that the workbench cannot run; the text says what and where."""


@dataclass(frozen=True, slots=True)
class FunctionPlan:
    """A function: `code` and `layers` are folders, `timeout` is in seconds, `memory` in MB."""

    name: str
    handler: str
    timeout: int
    memory: int
    environment: Mapping[str, str]
    code: Path
    layers: tuple[Path, ...]
    log_format: str
    log_level: str


@dataclass(frozen=True, slots=True)
class Route:
    """A route of the HTTP API; `method` may be ANY, `path` may be $default."""

    method: str
    path: str
    function: str


@dataclass(frozen=True, slots=True)
class QueueSource:
    """An event source mapping from a queue; `window` in seconds, `concurrency` None if the template sets no maximum."""

    name: str
    function: str
    queue_arn: str
    batch_size: int
    window: int
    concurrency: int | None
    partial_failures: bool


@dataclass(frozen=True, slots=True)
class Schedule:
    """A schedule of the service `source` that invokes a function, with `payload` (JSON) if the template gives one."""

    name: str
    source: str
    function: str
    expression: str
    timezone: str
    payload: str | None


@dataclass(frozen=True, slots=True)
class RuleTap:
    """A queue that stands between a rule of a bus and its target function."""

    name: str
    function: str
    queue_arn: str


@dataclass(frozen=True, slots=True)
class BusTap:
    """A queue in which the workbench finds every event of a bus."""

    bus: str
    queue_arn: str


@dataclass(frozen=True, slots=True)
class Blueprint:
    """All that the workbench runs, by logical ids of the template."""

    functions: Mapping[str, FunctionPlan]
    routes: tuple[Route, ...]
    queue_sources: tuple[QueueSource, ...]
    schedules: tuple[Schedule, ...]
    rule_taps: tuple[RuleTap, ...]
    bus_taps: tuple[BusTap, ...]
    queues: Mapping[str, str]
    outputs: Mapping[str, str]

    @classmethod
    def read(cls, outputs: Mapping[str, str], root: Path, url: str) -> "Blueprint":
        """Read the outputs of a `localised` template that lies in `root` and whose API is served at `url`."""
        local = {key: at_address(value, url) for key, value in outputs.items()}
        asked = {key.removeprefix(ASKED): json.loads(value) for key, value in local.items() if key.startswith(ASKED)}

        def properties(kind: str) -> dict[str, Json]:
            return {name: each["Properties"] for name, each in asked.items() if each["Type"] == kind}

        layers = {
            name: _folder(root, name, each.get("Content"))
            for name, each in properties("AWS::Lambda::LayerVersion").items()
        }
        mappings = properties("AWS::Lambda::EventSourceMapping").items()
        return cls(
            functions={
                name: _function(name, each, root, layers) for name, each in properties("AWS::Lambda::Function").items()
            },
            routes=tuple(route for each in properties("AWS::ApiGatewayV2::Api").values() for route in _routes(each)),
            queue_sources=tuple(_queue_source(name, each) for name, each in mappings if each.get("Enabled", True)),
            schedules=(
                *(
                    _schedule(name, each)
                    for name, each in properties("AWS::Scheduler::Schedule").items()
                    if _is_on(each)
                ),
                *(
                    _rule_schedule(name, each, target)
                    for name, each in properties("AWS::Events::Rule").items()
                    if _is_on(each)
                    for target in each["Targets"]
                ),
            ),
            rule_taps=tuple(
                RuleTap(name, each["Function"], each["QueueArn"])
                for name, each in properties("Workbench::RuleTap").items()
            ),
            bus_taps=tuple(BusTap(each["Bus"], each["QueueArn"]) for each in properties("Workbench::BusTap").values()),
            queues={name: each["Arn"] for name, each in properties("AWS::SQS::Queue").items()},
            outputs={key: value for key, value in local.items() if not key.startswith(ASKED)},
        )


def _function(name: str, properties: Json, root: Path, layers: Mapping[str, Path]) -> FunctionPlan:
    used = tuple(layers[layer] for layer in properties.get("Layers", []) if layer in layers)
    variables = properties.get("Environment", {}).get("Variables", {})
    logging = properties.get("LoggingConfig", {})
    return FunctionPlan(
        name=name,
        handler=properties["Handler"],
        timeout=int(properties.get("Timeout", 3)),
        memory=int(properties.get("MemorySize", 128)),
        environment={key: _unpacked(str(value), used) for key, value in variables.items()},
        code=_folder(root, name, properties.get("Code")),
        layers=used,
        log_format=logging.get("LogFormat", "Text"),
        log_level=logging.get("ApplicationLogLevel", "INFO"),
    )


def _folder(root: Path, name: str, place: Json | None) -> Path:
    match place:
        case {"S3Bucket": bucket, "S3Key": str(key)} if bucket == LOCAL_BUCKET:
            return (root / key).resolve()
    raise UnsupportedTemplate(f"{name}: only code in a folder can run here, not {place}")


def _unpacked(value: str, layers: tuple[Path, ...]) -> str:
    """The file that a path below /opt, where Lambda unpacks layers, is on this machine."""
    if value.startswith("/opt/"):
        for layer in layers:
            if (file := layer / posixpath.relpath(value, "/opt")).exists():
                return str(file)
    return value


def _routes(api: Json) -> list[Route]:
    routes = []
    for path, methods in api.get("Body", {}).get("paths", {}).items():
        for method, operation in methods.items():
            integration = operation.get("x-amazon-apigateway-integration", {}) if isinstance(operation, dict) else {}
            invoked = _INVOKED.search(str(integration.get("uri", "")))
            if not invoked:
                continue
            if integration.get("payloadFormatVersion") != "2.0":
                raise UnsupportedTemplate(f"{method} {path}: only payload format 2.0 is served here")
            verb = "ANY" if method == "x-amazon-apigateway-any-method" else method.upper()
            routes.append(Route(verb, path, invoked[1]))
    return routes


def _queue_source(name: str, properties: Json) -> QueueSource:
    if ":sqs:" not in properties["EventSourceArn"]:
        raise UnsupportedTemplate(f"{name}: only queues can be event sources here, not {properties['EventSourceArn']}")
    maximum = properties.get("ScalingConfig", {}).get("MaximumConcurrency")
    return QueueSource(
        name=name,
        function=_function_of(properties["FunctionName"]),
        queue_arn=properties["EventSourceArn"],
        batch_size=int(properties.get("BatchSize", 10)),
        window=int(properties.get("MaximumBatchingWindowInSeconds", 0)),
        concurrency=None if maximum is None else int(maximum),
        partial_failures="ReportBatchItemFailures" in properties.get("FunctionResponseTypes", []),
    )


def _is_on(properties: Json) -> bool:
    return bool(properties.get("State", "ENABLED") == "ENABLED")


def _schedule(name: str, properties: Json) -> Schedule:
    target = properties["Target"]
    timezone = properties.get("ScheduleExpressionTimezone", "UTC")
    expression = properties["ScheduleExpression"]
    return Schedule(
        name, "aws.scheduler", _function_of(target["Arn"]), expression, timezone, _text(target.get("Input"))
    )


def _rule_schedule(name: str, rule: Json, target: Json) -> Schedule:
    expression = rule["ScheduleExpression"]
    return Schedule(name, "aws.events", _function_of(target["Arn"]), expression, "UTC", _text(target.get("Input")))


def _text(payload: Any) -> str | None:
    return payload if payload is None or isinstance(payload, str) else json.dumps(payload)


def _function_of(arn: str) -> str:
    return arn.rsplit(":", 1)[-1]
