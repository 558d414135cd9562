"""What template.yaml promises: E01 to E14 of the safety catalogue, and that code and template agree.

Every test looks at all resources of a kind, so that a new function, queue or route is held to the same.
"""

import ast
import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from botocore import xform_name
from samtranslator.yaml_helper import yaml_parse

from crm_relay.cartelcrm.client import STATUS_DEADLINE, SUBMIT_DEADLINE
from crm_relay.delivery.aws import DynamoStore
from crm_relay.settings import Environment
from tests.relay import BATCH, HANDLERS, MOST_RECEIVES, TIMEOUT, VISIBILITY, WORKERS
from workbench.stack.template import Json, transformed

ROOT = Path(__file__).parents[2]
TEMPLATE = ROOT / "template.yaml"
RUNTIME = "python" + (ROOT / ".python-version").read_text("utf-8").strip()
FOURTEEN_DAYS = 14 * 86_400

FUNCTION = "AWS::Lambda::Function"
SOURCE = "AWS::Lambda::EventSourceMapping"
QUEUE = "AWS::SQS::Queue"
TABLE = "AWS::DynamoDB::Table"
SECRET = "AWS::SecretsManager::Secret"
BUS = "AWS::Events::EventBus"
ROLE = "AWS::IAM::Role"
LOG_GROUP = "AWS::Logs::LogGroup"
ALARM = "AWS::CloudWatch::Alarm"
LAYER = "AWS::Lambda::LayerVersion"

LAMBDAS_OWN_ACTIONS = {
    "logs:CreateLogStream",
    "logs:PutLogEvents",
    "sqs:ReceiveMessage",
    "sqs:DeleteMessage",
    "sqs:GetQueueAttributes",
}
"""What the runtime and the queue's pollers do in the function's name."""

MANAGED_POLICIES = {
    # X-Ray knows no resources, so its statement is AWS's own; CodeDeploy's is what SAM gives it.
    "AWSXRayDaemonWriteAccess",
    "AWSCodeDeployRoleForLambda",
}


NAMESPACE = "CrmRelay/${AWS::StackName}"
"""Of our own metrics: one a stack, or two stacks of one account would set off each other's alarms."""


@cache
def plain(deployment: str = "AllAtOnce") -> Json:
    """The template as CloudFormation gets it."""
    return transformed(TEMPLATE, {"Deployment": deployment})


@cache
def written() -> Json:
    """The template as it stands in the file."""
    return yaml_parse(TEMPLATE.read_text("utf-8"))  # type: ignore[no-any-return]


def of_type(kind: str) -> dict[str, Json]:
    """Properties by logical id."""
    resources: Json = plain()["Resources"]
    return {name: each.get("Properties", {}) for name, each in resources.items() if each["Type"] == kind}


def target(value: object) -> str:
    """The logical id that a Ref, a GetAtt or a Sub of one resource points to."""
    match value:
        case {"Ref": str(name)} | {"Fn::GetAtt": [str(name), *_]}:
            return name
        case {"Fn::Sub": str(text)} if names := re.findall(r"\$\{([A-Za-z0-9]+)", text):
            return str(names[0])
    raise AssertionError(f"no reference: {value}")


def function_of(reference: object) -> str:
    """The function behind a reference to it or to its alias."""
    name = target(reference)
    resource = plain()["Resources"][name]
    return function_of(resource["Properties"]["FunctionName"]) if resource["Type"] != FUNCTION else name


def queue_sources() -> list[tuple[str, str, Json]]:
    """Function, queue and mapping of every queue that a function works off."""
    mappings = of_type(SOURCE).values()
    return [
        (function_of(mapping["FunctionName"]), target(mapping["EventSourceArn"]), mapping)
        for mapping in mappings
        if target(mapping["EventSourceArn"]) in of_type(QUEUE)
    ]


def dead_letter_queues() -> dict[str, str]:
    """Dead-letter queue by source queue."""
    return {
        name: target(queue["RedrivePolicy"]["deadLetterTargetArn"])
        for name, queue in of_type(QUEUE).items()
        if "RedrivePolicy" in queue
    }


def variables(function: str) -> Json:
    """The environment of a function."""
    return of_type(FUNCTION)[function]["Environment"]["Variables"]  # type: ignore[no-any-return]


def services() -> set[str]:
    """The values of the dimension `service`."""
    return {variables(function)["POWERTOOLS_SERVICE_NAME"] for function in of_type(FUNCTION)}


def listed(value: Any) -> list[Any]:
    """IAM takes one or many."""
    return value if isinstance(value, list) else [value]


def statements(properties: object) -> Iterator[Json]:
    """All IAM statements below a resource's properties."""
    match properties:
        case {"Statement": found}:
            yield from listed(found)
        case dict():
            for value in properties.values():
                yield from statements(value)
        case list():
            for value in properties:
                yield from statements(value)
        case _:
            pass


def grants(function: str) -> list[tuple[str, str]]:
    """Action and logical id of the resource, for everything that a function may do."""
    role = of_type(ROLE)[target(of_type(FUNCTION)[function]["Role"])]
    return [
        (action, target(resource))
        for statement in statements({"Policies": role["Policies"]})
        for action in listed(statement["Action"])
        for resource in listed(statement["Resource"])
    ]


def metric_stats(alarm: Json) -> Iterator[Json]:
    """Every metric that an alarm looks at, in the long form."""
    if "MetricName" in alarm:
        metric = {key: alarm[key] for key in ("Namespace", "MetricName", "Dimensions")}
        yield {"Metric": metric, "Stat": alarm["Statistic"]}
    for query in alarm.get("Metrics", []):
        if "MetricStat" in query:
            yield {**query["MetricStat"], "Id": query["Id"]}


def alarmed(namespace: str, metric: str, stat: str, threshold: float) -> set[str]:
    """The values of the one dimension for which this metric alarms above the threshold."""
    return {
        value if isinstance(value := stats["Metric"]["Dimensions"][0]["Value"], str) else target(value)
        for alarm in of_type(ALARM).values()
        if alarm["ComparisonOperator"] == "GreaterThanThreshold" and alarm["Threshold"] <= threshold
        for stats in metric_stats(alarm)
        if (stats["Metric"]["Namespace"], stats["Metric"]["MetricName"], stats["Stat"]) == (namespace, metric, stat)
    }


def strings(tree: object) -> Iterator[str]:
    """Every string in a piece of template, keys included."""
    match tree:
        case str():
            yield tree
        case dict():
            for key, value in tree.items():
                yield str(key)
                yield from strings(value)
        case list():
            for value in tree:
                yield from strings(value)
        case _:
            pass


def sources() -> list[Path]:
    """The Python files that are deployed."""
    return sorted(path for folder in ("functions", "layers/crm_relay") for path in (ROOT / folder).rglob("*.py"))


# ── E01 to E14 ────────────────────────────────────────────────────────────────────────────────────────────


def test_e01_a_message_stays_hidden_for_six_timeouts_and_the_window() -> None:
    assert queue_sources()
    for function, queue, mapping in queue_sources():
        window = mapping.get("MaximumBatchingWindowInSeconds", 0)
        least = 6 * of_type(FUNCTION)[function]["Timeout"] + window
        assert of_type(QUEUE)[queue]["VisibilityTimeout"] >= least, queue


def test_e01_a_large_batch_has_a_window() -> None:
    """Lambda takes more than ten messages at once only from a mapping that waits for them."""
    for function, _, mapping in queue_sources():
        assert mapping["BatchSize"] <= 10 or mapping["MaximumBatchingWindowInSeconds"] >= 1, function


def test_e02_a_message_is_received_at_least_five_times_before_it_is_dead() -> None:
    for _, queue, _ in queue_sources():
        assert of_type(QUEUE)[queue]["RedrivePolicy"]["maxReceiveCount"] >= 5, queue


def test_e03_dead_letters_are_kept_for_fourteen_days_and_may_only_come_from_their_queue() -> None:
    queues = of_type(QUEUE)
    assert set(dead_letter_queues()) == {queue for _, queue, _ in queue_sources()}
    for source, dead in dead_letter_queues().items():
        assert queues[dead]["MessageRetentionPeriod"] == FOURTEEN_DAYS, dead
        assert queues[source]["MessageRetentionPeriod"] < FOURTEEN_DAYS, source
        allowed = queues[dead]["RedriveAllowPolicy"]
        name = queues[source]["QueueName"]["Fn::Sub"]
        arn = f"arn:${{AWS::Partition}}:sqs:${{AWS::Region}}:${{AWS::AccountId}}:{name}"
        assert allowed == {"redrivePermission": "byQueue", "sourceQueueArns": [{"Fn::Sub": arn}]}, dead


def test_e04_a_failed_message_does_not_bring_back_its_batch() -> None:
    for function, _, mapping in queue_sources():
        assert mapping["FunctionResponseTypes"] == ["ReportBatchItemFailures"], function


def test_e05_the_concurrency_of_workers_is_bounded() -> None:
    for function, _, mapping in queue_sources():
        assert 2 <= mapping["ScalingConfig"]["MaximumConcurrency"] <= 100, function


class RecordingDynamoDB:
    """Stands in for the client and keeps what is written."""

    def put_item(self, **request: Any) -> None:
        self.item = request["Item"]


def test_e06_the_table_is_keyed_indexed_and_expired_by_the_attributes_that_the_code_writes() -> None:
    dynamodb: Any = RecordingDynamoDB()
    DynamoStore(dynamodb, "table").put("key", {}, replaces=None, expires_at=2, attention="LOOK")
    for table in of_type(TABLE).values():
        expiry = table["TimeToLiveSpecification"]
        assert expiry["Enabled"] is True
        assert dynamodb.item[expiry["AttributeName"]] == {"N": "2"}
        for definition in table["AttributeDefinitions"]:
            assert list(dynamodb.item[definition["AttributeName"]]) == [definition["AttributeType"]]


def test_e07_no_statement_has_a_star() -> None:
    every = list(statements(plain()["Resources"]))
    assert len(every) > 20
    for statement in every:
        assert statement["Effect"] == "Allow"
        assert not {"NotAction", "NotResource", "NotPrincipal"} & set(statement)
        starred = [
            text for key in ("Action", "Resource", "Principal") for text in strings(statement.get(key)) if "*" in text
        ]
        assert not starred, statement


def test_e07_every_function_has_a_role_of_its_own_and_no_ready_made_policy() -> None:
    roles = [target(function["Role"]) for function in of_type(FUNCTION).values()]
    assert len(set(roles)) == len(roles)
    for name, role in of_type(ROLE).items():
        policies = [list(strings(arn))[-1].rsplit("/", 1)[-1] for arn in role.get("ManagedPolicyArns", [])]
        assert set(policies) <= MANAGED_POLICIES, name
    for name, resource in written()["Resources"].items():
        assert "Connectors" not in resource, name
        assert "Policies" not in resource["Properties"] or resource["Type"] == ROLE, name


def test_e08_secrets_are_in_the_secret_store_alone() -> None:
    assert not [text for text in strings(written()) if "{{resolve:" in text]
    assert not [name for name, parameter in written()["Parameters"].items() if "NoEcho" in parameter]
    for secret in of_type(SECRET).values():
        assert not {"SecretString", "GenerateSecretString"} & set(secret)
    for function in of_type(FUNCTION):
        for name, value in variables(function).items():
            if re.search("SECRET|TOKEN|PASSWORD|API_KEY", name):
                assert target(value) in of_type(SECRET), f"{function}: {name}"


def test_e09_every_log_has_a_retention() -> None:
    groups = of_type(LOG_GROUP)
    for name, group in groups.items():
        assert group["RetentionInDays"] == {"Ref": "LogRetentionDays"}, name
    logs = [target(function["LoggingConfig"]["LogGroup"]) for function in of_type(FUNCTION).values()]
    logs += [
        target(stage["AccessLogSettings"]["DestinationArn"]) for stage in of_type("AWS::ApiGatewayV2::Stage").values()
    ]
    assert sorted(logs) == sorted(groups)


def test_e09_a_function_writes_json_to_its_own_log_alone() -> None:
    for name, function in of_type(FUNCTION).items():
        config = function["LoggingConfig"]
        assert config["LogFormat"] == "JSON"
        assert config["ApplicationLogLevel"] == variables(name)["POWERTOOLS_LOG_LEVEL"]
        assert [place for action, place in grants(name) if action == "logs:PutLogEvents"] == [
            target(config["LogGroup"])
        ]


def test_e10_dead_letters_and_old_messages_alarm() -> None:
    waiting = {queue for _, queue, _ in queue_sources()}
    assert alarmed("AWS/SQS", "ApproximateNumberOfMessagesVisible", "Maximum", 0) == set(dead_letter_queues().values())
    assert alarmed("AWS/SQS", "ApproximateAgeOfOldestMessage", "Maximum", 3600) == waiting


def test_e10_errors_and_throttles_of_every_function_alarm() -> None:
    assert alarmed("AWS/Lambda", "Errors", "Sum", 0) == set(of_type(FUNCTION))
    assert alarmed("AWS/Lambda", "Throttles", "Sum", 0) == set(of_type(FUNCTION))


def test_e10_a_function_that_takes_80_percent_of_its_timeout_alarms() -> None:
    watched = {}
    for alarm in of_type(ALARM).values():
        parts = {each["Id"]: each for each in metric_stats(alarm) if each["Metric"]["MetricName"] == "Duration"}
        if parts:
            (expression,) = [query["Expression"] for query in alarm["Metrics"] if "Expression" in query]
            assert re.fullmatch(r"100 \* MAX\(\[(\w+ / \d+(, )?)+\]\)", expression)
            limits = dict(re.findall(r"(\w+) / (\d+)", expression))
            assert set(limits) == set(parts)
            assert alarm["Threshold"] == 80
            for name, part in parts.items():
                assert part["Stat"] == "p99"
                watched[target(part["Metric"]["Dimensions"][0]["Value"])] = int(limits[name])
    assert watched == {name: function["Timeout"] * 1000 for name, function in of_type(FUNCTION).items()}


def test_e10_whatever_needs_a_person_alarms() -> None:
    namespace = written()["Globals"]["Function"]["Environment"]["Variables"]["POWERTOOLS_METRICS_NAMESPACE"]
    assert alarmed(namespace, "AttentionNeeded", "Sum", 0) == services()
    assert alarmed(namespace, "UnhandledError", "Sum", 0) == services()
    assert alarmed("AWS/ApiGateway", "5xx", "Sum", 0) == set(of_type("AWS::ApiGatewayV2::Api"))


def test_e10_every_alarm_tells_somebody_and_is_calm_without_data() -> None:
    for name, alarm in of_type(ALARM).items():
        assert alarm["AlarmActions"] == [{"Ref": "AlarmTopic"}], name
        assert alarm["TreatMissingData"] == "notBreaching", name
        assert alarm["AlarmDescription"], name
        for query in alarm.get("Metrics", []):
            # CloudWatch wants exactly one result.
            assert query.get("ReturnData", True) == ("Expression" in query), name


def test_e10_no_alarm_looks_at_more_metrics_than_cloudwatch_allows() -> None:
    """Ten for one expression; the eleventh is refused at the deployment, not before."""
    for name, alarm in of_type(ALARM).items():
        assert len(list(metric_stats(alarm))) <= 10, name


def test_e11_queues_and_tables_are_encrypted_and_tables_can_be_restored() -> None:
    for name, queue in of_type(QUEUE).items():
        assert queue["SqsManagedSseEnabled"] is True, name
    for name, table in of_type(TABLE).items():
        assert table["SSESpecification"] == {"SSEEnabled": True}, name
        assert table["PointInTimeRecoverySpecification"] == {"PointInTimeRecoveryEnabled": True}, name
    for name, bucket in of_type("AWS::S3::Bucket").items():
        assert "BucketEncryption" in bucket, name


def test_e11_data_and_secrets_outlive_the_stack() -> None:
    for name in (*of_type(TABLE), *of_type(SECRET)):
        resource = plain()["Resources"][name]
        assert (resource["DeletionPolicy"], resource["UpdateReplacePolicy"]) == ("Retain", "Retain"), name


def routes() -> dict[str, str]:
    """Function by route key."""
    return {
        f"{event['Properties']['Method']} {event['Properties']['Path']}": name
        for name, resource in written()["Resources"].items()
        for event in resource["Properties"].get("Events", {}).values()
        if event["Type"] == "HttpApi"
    }


def test_e12_every_route_is_throttled_and_what_changes_something_has_its_own_limit() -> None:
    (stage,) = of_type("AWS::ApiGatewayV2::Stage").values()
    own = stage["RouteSettings"]
    assert set(own) <= set(routes())
    assert set(own) >= {route for route in routes() if not route.startswith("GET ")}
    for limits in (stage["DefaultRouteSettings"], *own.values()):
        assert 0 < limits["ThrottlingRateLimit"] <= 500
        assert 0 < limits["ThrottlingBurstLimit"] <= 1000


def test_e13_a_function_outlives_the_calls_that_it_makes() -> None:
    deadlines = SUBMIT_DEADLINE + STATUS_DEADLINE
    for function in {worker for worker, _, _ in queue_sources()} | {routes()["POST /leads"]}:
        assert of_type(FUNCTION)[function]["Timeout"] > deadlines, function


def test_e13_a_worker_has_time_for_a_message_that_takes_long_and_then_for_others() -> None:
    for worker, _, _ in queue_sources():
        function = of_type(FUNCTION)[worker]
        module = import_module(function["Handler"].rpartition(".")[0])
        [needs] = [value for name, value in vars(module).items() if name.lstrip("_") == "NEEDS_SECONDS"]
        assert function["Timeout"] >= 1.5 * needs, worker


def test_e13_a_function_answers_before_the_gateway_gives_up() -> None:
    for route, function in routes().items():
        assert of_type(FUNCTION)[function]["Timeout"] < 30, route


def test_e14_runtime_and_architecture_are_pinned() -> None:
    architecture = {"Ref": "Architecture"}
    assert plain()["Parameters"]["Architecture"]["Default"] == "arm64"
    assert plain()["Parameters"]["Architecture"]["AllowedValues"] == ["arm64", "x86_64"]
    for name, function in of_type(FUNCTION).items():
        assert (function["Runtime"], function["Architectures"]) == (RUNTIME, [architecture]), name
    for name, layer in of_type(LAYER).items():
        assert (layer["CompatibleRuntimes"], layer["CompatibleArchitectures"]) == (
            [RUNTIME],
            [architecture],
        ), name
    for name, resource in written()["Resources"].items():
        if build := resource.get("Metadata"):
            assert build == {"BuildMethod": RUNTIME, "BuildArchitecture": architecture}, name


# ── Code and template ─────────────────────────────────────────────────────────────────────────────────────


def test_every_handler_exists_and_has_one_function() -> None:
    handlers = [function["Handler"] for function in of_type(FUNCTION).values()]
    assert len(set(handlers)) == len(handlers)
    for handler in handlers:
        module, _, name = handler.rpartition(".")
        path = ROOT / "functions" / f"{module.replace('.', '/')}.py"
        defined = {
            found
            for node in ast.parse(path.read_text("utf-8")).body
            for found in (
                [node.name]
                if isinstance(node, ast.FunctionDef)
                else [each.id for each in getattr(node, "targets", []) if isinstance(each, ast.Name)]
            )
        }
        assert name in defined, handler


def test_the_relay_of_the_tests_has_the_figures_of_the_template() -> None:
    ours = {
        f"{HANDLERS[worker][1].__module__}.handler": (TIMEOUT[queue], BATCH[queue], VISIBILITY[queue], MOST_RECEIVES)
        for queue, worker in WORKERS.items()
    }
    theirs = {}
    for worker, name, mapping in queue_sources():
        function, queue = of_type(FUNCTION)[worker], of_type(QUEUE)[name]
        receives = queue["RedrivePolicy"]["maxReceiveCount"]
        batch = mapping["BatchSize"]
        theirs[function["Handler"]] = (function["Timeout"], batch, queue["VisibilityTimeout"], receives)
    assert ours == theirs


def test_a_function_calls_itself_by_its_folder() -> None:
    for name, function in of_type(FUNCTION).items():
        assert variables(name)["POWERTOOLS_SERVICE_NAME"] == function["Handler"].split(".")[0]


def environment_reads() -> set[str]:
    """The names that deployed code looks up in the environment, Lambda's own aside."""
    found = set()
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            match node:
                case (
                    ast.Subscript(value=ast.Attribute(attr="environ"), slice=ast.Constant(value=str(name)))
                    | ast.Call(
                        func=ast.Attribute(value=ast.Attribute(attr="environ"), attr="get"),
                        args=[ast.Constant(value=str(name)), *_],
                    )
                    | ast.Call(func=ast.Attribute(attr="getenv"), args=[ast.Constant(value=str(name)), *_])
                ) if not name.startswith(("AWS_", "LAMBDA_")):
                    found.add(name)
                case _:
                    pass
    return found


def test_the_environment_is_what_the_code_reads() -> None:
    read = environment_reads() | set(Environment.__struct_fields__)
    given = {name for function in of_type(FUNCTION) for name in variables(function)}
    ours = {name for name in given if not name.startswith("POWERTOOLS_")}
    assert {"TABLE_NAME", "SECRET_ID", "QUEUE_URL", "RELAY_CONFIG"} <= read
    assert ours == read


def test_every_function_knows_its_table_and_its_configuration() -> None:
    for function in of_type(FUNCTION):
        assert variables(function)["TABLE_NAME"] == {"Ref": "RelayTable"}
        assert variables(function)["RELAY_CONFIG"] == "/opt/relay.toml"


def test_what_the_environment_names_may_be_used() -> None:
    """Only the API's address needs no right: it is told to others."""
    resources = plain()["Resources"]
    for function in of_type(FUNCTION):
        usable = {place for _, place in grants(function)} | set(of_type("AWS::ApiGatewayV2::Api"))
        named = {name: target(value) for name, value in variables(function).items() if not isinstance(value, str)}
        for name, place in named.items():
            assert place in usable or place not in resources, f"{function}: {name}"


def test_what_may_be_read_or_published_is_named_in_the_environment() -> None:
    for function in of_type(FUNCTION):
        named = {target(value) for value in variables(function).values() if not isinstance(value, str)}
        for action, place in grants(function):
            if place in {**of_type(SECRET), **of_type(BUS), **of_type(TABLE)}:
                assert place in named, f"{function} may {action} on {place} and does not know it"


def test_a_worker_may_consume_its_queue_and_give_up_into_its_dead_letters() -> None:
    for function, queue, _ in queue_sources():
        rights = set(grants(function))
        consume = ("ReceiveMessage", "DeleteMessage", "GetQueueAttributes", "ChangeMessageVisibility")
        assert {(f"sqs:{action}", queue) for action in consume} <= rights
        assert ("sqs:SendMessage", dead_letter_queues()[queue]) in rights
        assert target(variables(function)["QUEUE_URL"]) == queue
        assert target(variables(function)["DEAD_LETTER_QUEUE_URL"]) == dead_letter_queues()[queue]


def aws_calls() -> set[str]:
    """The IAM actions of the AWS calls in the deployed code."""
    session = botocore.session.get_session()
    known = {
        # SQS has no actions of its own for batches.
        xform_name(operation): f"{service}:{operation.removesuffix('Batch')}"
        for service in ("dynamodb", "sqs", "events", "secretsmanager")
        for operation in session.get_service_model(service).operation_names
    }
    called = {
        node.func.attr
        for path in sources()
        if "boto3" in path.read_text("utf-8")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    }
    return {action for name, action in known.items() if name in called}


def test_the_functions_may_do_what_the_code_does_and_nothing_else() -> None:
    granted = {action for function in of_type(FUNCTION) for action, _ in grants(function)}
    assert granted - LAMBDAS_OWN_ACTIONS == aws_calls()


def test_the_access_log_holds_no_path_no_header_and_no_query() -> None:
    (stage,) = of_type("AWS::ApiGatewayV2::Stage").values()
    line = json.loads(stage["AccessLogSettings"]["Format"])
    assert set(line.values()) == {
        "$context.requestId",
        "$context.requestTime",
        "$context.identity.sourceIp",
        "$context.routeKey",
        "$context.status",
        "$context.responseLength",
        "$context.responseLatency",
        "$context.integrationLatency",
        "$context.integrationStatus",
        "$context.error.responseType",
    }


def test_leads_on_the_bus_reach_the_queue_or_the_dead_letters() -> None:
    policies = {target(policy["Queues"][0]): policy for policy in of_type("AWS::SQS::QueuePolicy").values()}
    reached = set()
    for name, rule in of_type("AWS::Events::Rule").items():
        for goal in rule["Targets"]:
            assert goal["RetryPolicy"]["MaximumRetryAttempts"] > 0
            for queue in (target(goal["Arn"]), target(goal["DeadLetterConfig"]["Arn"])):
                (statement,) = statements(policies[queue])
                assert statement["Principal"] == {"Service": "events.amazonaws.com"}
                assert statement["Condition"] == {"ArnEquals": {"aws:SourceArn": {"Fn::GetAtt": [name, "Arn"]}}}
                reached.add(queue)
    assert reached == set(policies)


def test_a_new_layer_alone_makes_a_new_version() -> None:
    for name, resource in written()["Resources"].items():
        if resource["Type"] == "AWS::Serverless::Function":
            assert resource["Properties"]["AutoPublishAliasAllProperties"] is True, name


@pytest.mark.parametrize("deployment", ["AllAtOnce", "Canary10Percent5Minutes"])
def test_traffic_moves_as_the_parameter_says_and_back_when_functions_fail(deployment: str) -> None:
    groups = [
        resource["Properties"]
        for resource in plain(deployment)["Resources"].values()
        if resource["Type"] == "AWS::CodeDeploy::DeploymentGroup"
    ]
    assert len(groups) == len(of_type(FUNCTION))
    error_alarms = [
        name
        for name, alarm in of_type(ALARM).items()
        if {"Errors"} == {stats["Metric"]["MetricName"] for stats in metric_stats(alarm)}
    ]
    assert len(error_alarms) == 2
    for group in groups:
        assert group["DeploymentConfigName"]["Fn::Sub"][1] == {"ConfigName": deployment}
        assert group["AlarmConfiguration"] == {
            "Enabled": True,
            "Alarms": [{"Name": {"Ref": name}} for name in error_alarms],
        }


def dashboard_metrics() -> set[tuple[str, ...]]:
    """Namespace, name and dimensions of everything on the dashboard, abbreviations spelled out."""
    (dashboard,) = of_type("AWS::CloudWatch::Dashboard").values()
    found = set()
    for widget in json.loads(dashboard["DashboardBody"]["Fn::Sub"])["widgets"]:
        row: list[str] = []
        for metric in widget["properties"]["metrics"]:
            words = [word for word in metric if isinstance(word, str)]
            row = [row[place] if word == "." else word for place, word in enumerate(words)]
            found.add(tuple(row))
    return found


def test_the_dashboard_shows_every_service_queue_and_function() -> None:
    metrics = dashboard_metrics()
    every = {"Done", "Waiting", "AttentionNeeded", "UnhandledError"}
    for service in services():
        own = set() if service == "outbox" else {"Received", "TurnedAway", "Refused", "Lost"}
        for name in every | own:
            assert (NAMESPACE, name, "service", service) in metrics
    for source, dead in dead_letter_queues().items():
        assert (
            "AWS/SQS",
            "ApproximateAgeOfOldestMessage",
            "QueueName",
            f"${{{source}.QueueName}}",
        ) in metrics
        visible = ("AWS/SQS", "ApproximateNumberOfMessagesVisible", "QueueName", f"${{{dead}.QueueName}}")
        assert visible in metrics
    for function in of_type(FUNCTION):
        reference = f"${{{function}}}"
        service = variables(function)["POWERTOOLS_SERVICE_NAME"]
        assert ("AWS/Lambda", "Duration", "FunctionName", reference) in metrics
        assert (NAMESPACE, "ColdStart", "function_name", reference, "service", service) in metrics


def test_the_addresses_to_paste_are_addresses_that_exist() -> None:
    outputs = {name: output["Value"] for name, output in plain()["Outputs"].items()}
    pasted = {
        match[1]
        for value in outputs.values()
        if (match := re.search(r"ApiEndpoint\}(/.*)$", str(value.get("Fn::Sub", ""))))
    }
    assert len(pasted) >= 5
    assert pasted <= {route.partition(" ")[2] for route in routes()}


# ── What is deployed ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("environment", ["dev", "prod"])
def test_samconfig_sets_parameters_that_exist_to_values_that_are_allowed(environment: str) -> None:
    config = tomllib.loads((ROOT / "samconfig.toml").read_text("utf-8"))[environment]["global"]["parameters"]
    for pair in config["parameter_overrides"].split():
        name, _, value = pair.partition("=")
        allowed = written()["Parameters"][name].get("AllowedValues", [value])
        assert value in map(str, allowed), pair


def pins(requirements: Path) -> Mapping[str, str]:
    """Version by package; every one must have a hash."""
    text = requirements.read_text("utf-8")
    assert "://" not in text
    blocks = re.findall(r"^([\w.-]+)==(\S+) \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", text, re.MULTILINE)
    assert len(blocks) == len(re.findall(r"^\w", text, re.MULTILINE))
    return {name: pin for name, pin, _ in blocks}


@pytest.mark.parametrize("requirements", ["layers/dependencies/requirements.txt", "tests/artifact/requirements.txt"])
def test_what_is_deployed_is_what_is_tested(requirements: str) -> None:
    for name, pin in pins(ROOT / requirements).items():
        assert version(name) == pin, name


def test_the_layer_leaves_out_what_the_runtime_has() -> None:
    deployed = pins(ROOT / "layers/dependencies/requirements.txt")
    assert not {"boto3", "botocore"} & set(deployed)


def asked_packages(lines: Iterable[str]) -> set[str]:
    """The names in a requirements.in."""
    return {line.strip() for line in lines if line.strip() and not line.startswith("#")}


def test_the_layer_holds_no_package_that_nothing_imports() -> None:
    modules = {"aws-lambda-powertools": "aws_lambda_powertools", "tzdata": "zoneinfo"}
    imported = set()
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            match node:
                case ast.Import(names=names):
                    imported |= {name.name.split(".")[0] for name in names}
                case ast.ImportFrom(module=str(module)):
                    imported.add(module.split(".")[0])
                case _:
                    pass
    asked = asked_packages((ROOT / "layers/dependencies/requirements.in").read_text("utf-8").splitlines())
    assert {modules.get(name, name) for name in asked} <= imported
