"""What moto can make of a template on this machine, and what it leaves to the workbench.

Tables, queues, buses, secrets and the like stay resources that moto creates. Functions, routes, event sources and
schedules are taken out for the workbench to run, and come back as outputs of the stack: so moto's evaluation of `!Ref`,
`!Sub`, `!If` and conditions is the only one.
"""

import re
from typing import Any

from workbench.stack.template import ACCOUNT, REFERENCE, Json, references

ASKED = "WorkbenchAsked"

_MADE = ("DynamoDB", "Events", "KMS", "Logs", "S3", "SecretsManager", "SNS", "SQS", "SSM")
_RUN = (
    "AWS::ApiGatewayV2::Api",
    "AWS::Events::Rule",
    "AWS::Lambda::EventSourceMapping",
    "AWS::Lambda::Function",
    "AWS::Lambda::LayerVersion",
    "AWS::Scheduler::Schedule",
)
_RULE_TARGETS = ("AWS::Events::EventBus", "AWS::Logs::LogGroup", "AWS::SQS::Queue")
_LONGEST_INVOCATION = 900
_EVERY_EVENT = {"source": [{"prefix": ""}]}
_EXECUTE_API = re.compile(r"https://\w+\.execute-api\.[\w.-]+")


def localised(template: Json, url: str, region: str = "eu-central-1") -> Json:
    """Return what moto's CloudFormation shall create of a `transformed` template whose API is served at `url`.

    Every resource that the workbench runs itself is an output `WorkbenchAsked<logical id>`: JSON of its type and
    resolved properties.
    """
    return _Localisation(template, url, region).result()


def at_address(value: str, url: str) -> str:
    """Replace the address that the API would have on AWS with `url`."""
    return _EXECUTE_API.sub(url, value)


class _Localisation:
    def __init__(self, template: Json, url: str, region: str) -> None:
        self.template = template
        self.url = url
        self.region = region
        self.resources: Json = template["Resources"]
        self.made = {name for name, resource in self.resources.items() if _is_made(resource)}

    def result(self) -> Json:
        made = {name: self._made(name) for name in self.resources if name in self.made}
        asked = {
            name: resource
            for name, resource in self.resources.items()
            if name not in self.made and resource["Type"] in _RUN
        }
        for name in list(made):
            match made[name]["Type"]:
                case "AWS::SQS::Queue":
                    asked[name] = _tap_of(made[name], "AWS::SQS::Queue", {"Arn": _arn(name)})
                case "AWS::Events::EventBus":
                    self._tap_bus(name, made, asked)
                case "AWS::Events::Rule":
                    self._tap_functions(name, made, asked)
                case _:
                    pass
        outputs = {**self.template.get("Outputs", {}), **{ASKED + name: _question(asked[name]) for name in asked}}
        return self._with_stand_ins({**self.template, "Resources": made, "Outputs": outputs})  # type: ignore[no-any-return]

    def _made(self, name: str) -> Json:
        resource = dict(self.resources[name])
        depends = resource.pop("DependsOn", [])
        kept = [other for other in ([depends] if isinstance(depends, str) else depends) if other in self.made]
        return {**resource, "DependsOn": kept} if kept else resource

    def _tap_bus(self, bus: str, made: Json, asked: Json) -> None:
        """Let the workbench see all events of a bus: a rule and a queue of its own."""
        tap = f"{bus}Tap"
        made[tap] = _tap_of(made[bus], "AWS::SQS::Queue", {"QueueName": f"workbench-tap-{bus}"})
        made[f"{tap}Rule"] = _tap_of(
            made[bus],
            "AWS::Events::Rule",
            {
                "EventBusName": {"Ref": bus},
                "EventPattern": _EVERY_EVENT,
                "Targets": [{"Id": "tap", "Arn": _arn(tap)}],
            },
        )
        asked[tap] = _tap_of(made[bus], "Workbench::BusTap", {"Bus": bus, "QueueArn": _arn(tap)})

    def _tap_functions(self, rule: str, made: Json, asked: Json) -> None:
        """Rules of moto reach queues, log groups and buses: a target that is a function gets a queue between."""
        properties = made[rule]["Properties"]
        is_off = properties.get("State") == "DISABLED"  # moto 5.2.5 delivers all the same
        targets = []
        for target in [] if is_off else properties.get("Targets", []):
            ends = [name for name in references(target["Arn"]) if name in self.resources]
            function = next((self._function(name) for name in ends if self._function(name)), None)
            if function:
                tap = f"{rule}{function}Tap"
                queue = {"QueueName": f"workbench-tap-{rule}-{function}", "VisibilityTimeout": _LONGEST_INVOCATION}
                made[tap] = _tap_of(made[rule], "AWS::SQS::Queue", queue)
                asked[tap] = _tap_of(made[rule], "Workbench::RuleTap", {"Function": function, "QueueArn": _arn(tap)})
                targets.append({**_with_input_as_transformer(target), "Arn": _arn(tap)})
            elif any(self.resources[name]["Type"] in _RULE_TARGETS for name in ends):
                targets.append(_with_input_as_transformer(target))
        made[rule] = {**made[rule], "Properties": {**properties, "Targets": targets}}

    def _function(self, name: str) -> str | None:
        """The function that a logical id stands for: its own or that of one of its aliases."""
        match self.resources[name]:
            case {"Type": "AWS::Lambda::Function"}:
                return name
            case {"Type": "AWS::Lambda::Alias" | "AWS::Lambda::Version", "Properties": {"FunctionName": target}}:
                return next((end for end in references(target) if end in self.resources), None)
            case _:
                return None

    def _with_stand_ins(self, tree: Any) -> Any:
        """Replace references to resources that moto is not given with plausible values."""
        match tree:
            case {"Ref": str(name)} if self._is_taken_out(name):
                return self._stand_in(name, None)
            case {"Ref": str(name)} if self._is_bus(name):
                return {"Fn::GetAtt": [name, "Name"]}
            case {"Fn::GetAtt": [str(name), str(attribute)]} if self._is_taken_out(name):
                return self._stand_in(name, attribute)
            case {"Fn::Sub": [str(text), dict(values)]}:
                return {"Fn::Sub": [self._substituted(text), self._with_stand_ins(values)]}
            case {"Fn::Sub": str(text)}:
                return {"Fn::Sub": self._substituted(text)}
            case dict():
                return {key: self._with_stand_ins(branch) for key, branch in tree.items()}
            case list():
                return [self._with_stand_ins(branch) for branch in tree]
            case _:
                return tree

    def _substituted(self, text: str) -> str:
        def value(match: re.Match[str]) -> str:
            if self._is_taken_out(match[1]):
                return self._stand_in(match[1], match[2])
            return f"${{{match[1]}.Name}}" if self._is_bus(match[1]) and not match[2] else match[0]

        return REFERENCE.sub(value, text)

    def _is_bus(self, name: str) -> bool:
        """Moto 5.2.5 has no `Ref` of an event bus, only its attributes."""
        return name in self.resources and self.resources[name]["Type"] == "AWS::Events::EventBus"

    def _is_taken_out(self, name: str) -> bool:
        return name in self.resources and name not in self.made

    def _stand_in(self, name: str, attribute: str | None) -> str:
        name = self._function(name) or name
        if attribute == "ApiEndpoint":
            return self.url
        if attribute and attribute.endswith("Arn"):
            service = self.resources[name]["Type"].split("::")[1].lower()
            return f"arn:aws:{service}:{self.region}:{ACCOUNT}:function:{name}"
        return name


def _is_made(resource: Json) -> bool:
    if resource["Type"] == "AWS::Events::Rule":
        return "ScheduleExpression" not in resource["Properties"]
    vendor, service, *_ = resource["Type"].split("::")
    return vendor == "AWS" and service in _MADE


def _arn(name: str) -> Json:
    return {"Fn::GetAtt": [name, "Arn"]}


def _tap_of(owner: Json, kind: str, properties: Json) -> Json:
    """A resource that exists under the same condition as its owner."""
    return {"Type": kind, "Properties": properties} | {key: owner[key] for key in ("Condition",) if key in owner}


def _question(resource: Json) -> Json:
    answer = {"Type": resource["Type"], "Properties": resource.get("Properties", {})}
    return {"Value": {"Fn::ToJsonString": answer}} | {key: resource[key] for key in ("Condition",) if key in resource}


def _with_input_as_transformer(target: Json) -> Json:
    """Moto 5.2.5 knows `InputTransformer` and ignores `Input` and `InputPath`, which say the same more briefly."""
    rest = {key: value for key, value in target.items() if key not in ("Input", "InputPath")}
    if "Input" in target:
        return {**rest, "InputTransformer": {"InputTemplate": target["Input"]}}
    if "InputPath" in target:
        whole = {"InputPathsMap": {"whole": target["InputPath"]}, "InputTemplate": "<whole>"}
        return {**rest, "InputTransformer": whole}
    return rest
