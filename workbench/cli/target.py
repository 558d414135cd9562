"""The stack that a command works on: the local one, or one that is deployed."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
from botocore import exceptions as aws
from botocore.config import Config

from crm_relay.delivery.aws import DynamoStore
from crm_relay.delivery.ports import StorageError
from workbench.cli.console import Problem
from workbench.cli.world import World

if TYPE_CHECKING:
    from types_boto3_dynamodb import DynamoDBClient
    from types_boto3_secretsmanager import SecretsManagerClient
    from types_boto3_sqs import SQSClient

_CONFIG = Config(connect_timeout=5, read_timeout=30, retries={"mode": "standard", "total_max_attempts": 3})
_DEAD_LETTERS = "DeadLetterQueueUrl"


@dataclass(frozen=True, slots=True)
class QueuePair:
    """A queue and where its dead letters go, by a short name: "lead" for LeadQueueUrl and LeadDeadLetterQueueUrl."""

    name: str
    url: str
    dead_letters_url: str


@dataclass(frozen=True)
class Target:
    """A stack. `name` is None for the local one; `endpoint` is the local AWS, None for the real one."""

    name: str | None
    region: str | None
    outputs: Mapping[str, str]
    endpoint: str | None = None
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    """The local stack's own keys."""
    run: str = ""
    """Tells one life of the local stack from the next: it forgets everything when it ends."""

    @classmethod
    def of(cls, world: World, stack: str | None, region: str | None) -> "Target":
        """Return the deployed stack of this name, or the local one if there is no name.

        Raises:
            Problem: there is none, or nobody may know.
        """
        return _deployed(stack, region) if stack else _local(world.local)

    def __str__(self) -> str:
        return f"stack {self.name}" if self.name else "the local stack"

    @property
    def option(self) -> str:
        """What a command line says to mean this stack."""
        return f" --stack {self.name}" if self.name else ""

    def output(self, name: str) -> str:
        """Return an output of the stack.

        Raises:
            Problem: it has none of this name.
        """
        try:
            return self.outputs[name]
        except KeyError:
            raise Problem(
                f"No output {name} in {self}: it is no CRM Relay, or an older one. Deploy it again."
            ) from None

    @cached_property
    def sqs(self) -> "SQSClient":
        """SQS."""
        return self._client("sqs")  # type: ignore[no-any-return]

    @cached_property
    def dynamodb(self) -> "DynamoDBClient":
        """DynamoDB."""
        return self._client("dynamodb")  # type: ignore[no-any-return]

    @cached_property
    def secretsmanager(self) -> "SecretsManagerClient":
        """Secrets Manager."""
        return self._client("secretsmanager")  # type: ignore[no-any-return]

    @cached_property
    def store(self) -> DynamoStore:
        """The table, read as the functions read it."""
        return DynamoStore(self.dynamodb, self.output("TableName"))

    @cached_property
    def queues(self) -> list[QueuePair]:
        """All queues that have dead letters."""
        pairs = []
        for output, url in sorted(self.outputs.items()):
            prefix = output.removesuffix(_DEAD_LETTERS)
            if prefix != output:
                pairs.append(
                    QueuePair(re.sub("(?<=.)(?=[A-Z])", "-", prefix).lower(), self.output(f"{prefix}QueueUrl"), url)
                )
        return pairs

    def read_secret(self) -> str:
        """Return the text of the secret, empty if it has no value yet."""
        try:
            return self.secretsmanager.get_secret_value(SecretId=self.output("SecretArn")).get("SecretString", "")
        except self.secretsmanager.exceptions.ResourceNotFoundException:
            return ""

    def write_secret(self, text: str) -> None:
        """Give the secret a new value."""
        self.secretsmanager.put_secret_value(SecretId=self.output("SecretArn"), SecretString=text)

    def depth(self, url: str) -> int:
        """Return about how many messages a queue has: those to be received now, delayed ones, and those in work."""
        kinds = ("", "Delayed", "NotVisible")
        names: list[Any] = [f"ApproximateNumberOfMessages{kind}" for kind in kinds]
        counts = self.sqs.get_queue_attributes(QueueUrl=url, AttributeNames=names)["Attributes"]
        return sum(int(counts[name]) for name in names)

    def _client(self, service: str) -> Any:
        return self._session.client(service, endpoint_url=self.endpoint, config=_CONFIG)  # type: ignore[call-overload]

    @cached_property
    def _session(self) -> boto3.Session:
        if self.endpoint:
            return boto3.Session("local", "local", region_name=self.region)
        return boto3.Session(region_name=self.region)


def explained(error: Exception) -> str | None:
    """Return a sentence for what AWS, or the way there, has against us; None if it is something else."""
    match error:
        case aws.NoCredentialsError() | aws.PartialCredentialsError():
            return "No AWS credentials found: log in with `aws sso login` or `aws configure`, or set AWS_PROFILE."
        case aws.TokenRetrievalError() | aws.UnauthorizedSSOTokenError() | aws.SSOTokenLoadError():
            return "Your AWS login has run out: `aws sso login`."
        case aws.NoRegionError():
            return "No AWS region: add --region, or set AWS_REGION."
        case aws.ProfileNotFound():
            return f"{error}: AWS_PROFILE names a profile that your AWS settings do not have."
        case aws.EndpointConnectionError() | aws.ConnectTimeoutError() | aws.ReadTimeoutError():
            return f"{error} Is the network there, and the region right?"
        case aws.ClientError():
            return _refused(error)
        case aws.BotoCoreError():
            return f"AWS cannot be asked: {error}"
        case StorageError():
            return f"AWS did not do it: {error}"
        case _:
            return None


def _refused(error: aws.ClientError) -> str:
    refusal: Any = error.response.get("Error", {})
    code, message = refusal.get("Code", "unknown"), refusal.get("Message", "")
    if code in ("ExpiredToken", "ExpiredTokenException", "RequestExpired"):
        return "Your AWS login has run out: log in again."
    if code in ("InvalidClientTokenId", "UnrecognizedClientException", "SignatureDoesNotMatch"):
        return "AWS does not know these credentials: log in again, or set AWS_PROFILE."
    return f"AWS refused {error.operation_name} ({code}): {message}"


def _local(path: Path) -> Target:
    nothing = Problem("Nothing runs here: start it with `make start`, or name a deployed stack with --stack.")
    try:
        known = json.loads(path.read_text("utf-8"))
        pid = int(known["pid"])
        os.kill(pid, 0)
        return Target(
            name=None,
            region=known["region"],
            outputs=known["outputs"],
            endpoint=known["endpoint_url"],
            secrets=known["secrets"],
            run=str(pid),
        )
    except (OSError, ValueError, KeyError, TypeError):
        # Not there, half written, of another version, or left over from a stack that was killed.
        raise nothing from None


def _deployed(stack: str, region: str | None) -> Target:
    session = boto3.Session(region_name=region)
    cloudformation = session.client("cloudformation", config=_CONFIG)
    where = cloudformation.meta.region_name
    try:
        [found] = cloudformation.describe_stacks(StackName=stack)["Stacks"]
    except aws.ClientError as error:
        if error.response["Error"].get("Code") != "ValidationError":
            raise
        raise Problem(
            f"There is no stack {stack} in {where}: look at the name, at --region, and at whose credentials these are."
        ) from None
    outputs = {output["OutputKey"]: output["OutputValue"] for output in found.get("Outputs", [])}
    if not outputs:
        raise Problem(f"Stack {stack} in {where} has no outputs: it is {found['StackStatus']}.")
    return Target(name=stack, region=where, outputs=outputs)
