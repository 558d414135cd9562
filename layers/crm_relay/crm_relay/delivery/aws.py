"""The ports on AWS: DynamoDB, SQS, EventBridge, Secrets Manager, over one session with one client each."""

import json
import random
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING, Any

import boto3
from boto3.dynamodb.types import Binary, TypeDeserializer, TypeSerializer
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from crm_relay.delivery.ports import Conflict, Item, Ports, StorageError
from crm_relay.settings import Environment

if TYPE_CHECKING:
    from types_boto3_dynamodb import DynamoDBClient
    from types_boto3_events import EventBridgeClient
    from types_boto3_sqs import SQSClient

_SOURCE = "crm-relay"
_THREADS = 16
_BATCH = 10
_OWN_ATTRIBUTES = {"key", "version", "write_id", "updated_at", "expires_at", "attention"}

# A caller waits for the answer, and a service that hangs must leave time for the outbox: short waits, one repeat.
_CONFIG = Config(
    connect_timeout=1,
    read_timeout=2,
    retries={"mode": "standard", "total_max_attempts": 2},
    parameter_validation=False,
    max_pool_connections=_THREADS,
)


@cache
def _session() -> boto3.Session:
    return boto3.Session()


@cache
def client(service: str) -> Any:
    """Return this process's one client of a service; the first costs far more than the next ones."""
    return _session().client(service, config=_CONFIG)  # type: ignore[call-overload]


class DynamoStore:
    """ports.Store over one DynamoDB table with the index `attention`."""

    def __init__(self, dynamodb: "DynamoDBClient", table: str) -> None:
        """Make a store over the table of this name."""
        self._dynamodb = dynamodb
        self._table = table
        self._serialize = TypeSerializer().serialize
        self._deserialize = TypeDeserializer().deserialize

    def get(self, key: str) -> Item | None:
        """See ports.Store."""
        try:
            answer = self._dynamodb.get_item(TableName=self._table, Key={"key": {"S": key}}, ConsistentRead=True)
        except (ClientError, BotoCoreError) as error:
            raise StorageError(_code(error)) from None
        return _unless_expired(self._item(answer.get("Item")))

    def put(
        self,
        key: str,
        attributes: Mapping[str, Any],
        *,
        replaces: Item | None,
        expires_at: int | None = None,
        attention: str | None = None,
    ) -> Item:
        """See ports.Store."""
        now = int(time.time())
        version = replaces.version + 1 if replaces else 1
        write_id = uuid.uuid4().hex
        own = {
            "key": key,
            "version": version,
            "write_id": write_id,
            "updated_at": now,
            "expires_at": expires_at,
            "attention": attention,
        }
        item = {**attributes, **{name: value for name, value in own.items() if value is not None}}
        if replaces:
            condition, values = "version = :version", {":version": {"N": str(replaces.version)}}
        else:
            # An item that TTL has not swept yet is as good as gone.
            condition, values = "attribute_not_exists(#key) OR expires_at <= :now", {":now": {"N": str(now)}}
        try:
            self._dynamodb.put_item(
                TableName=self._table,
                Item={name: self._serialize(value) for name, value in item.items()},
                ConditionExpression=condition,
                ExpressionAttributeValues=values,
                **({} if replaces else {"ExpressionAttributeNames": {"#key": "key"}}),  # type: ignore[arg-type]
                ReturnValuesOnConditionCheckFailure="ALL_OLD",
            )
        except self._dynamodb.exceptions.ConditionalCheckFailedException as error:
            standing: Any = error.response.get("Item")
            # botocore repeats a call whose answer it missed; the repeat then meets our own write.
            if not standing or standing.get("write_id") != {"S": write_id}:
                raise Conflict(_unless_expired(self._item(standing))) from None
        except (ClientError, BotoCoreError) as error:
            raise StorageError(_code(error)) from None
        return Item(key, dict(attributes), version, now, expires_at, attention)

    def delete(self, item: Item) -> None:
        """See ports.Store."""
        try:
            self._dynamodb.delete_item(
                TableName=self._table,
                Key={"key": {"S": item.key}},
                ConditionExpression="version = :version",
                ExpressionAttributeValues={":version": {"N": str(item.version)}},
            )
        except self._dynamodb.exceptions.ConditionalCheckFailedException:
            pass
        except (ClientError, BotoCoreError) as error:
            raise StorageError(_code(error)) from None

    def attention(self, value: str, *, limit: int) -> list[str]:
        """See ports.Store."""
        try:
            answer = self._dynamodb.query(
                TableName=self._table,
                IndexName="attention",
                KeyConditionExpression="attention = :attention",
                ExpressionAttributeValues={":attention": {"S": value}},
                Limit=limit,
            )
        except (ClientError, BotoCoreError) as error:
            raise StorageError(_code(error)) from None
        return [item["key"]["S"] for item in answer["Items"]]

    def _item(self, raw: Mapping[str, Any] | None) -> Item | None:
        if not raw:
            return None
        plain = {name: _plain(self._deserialize(value)) for name, value in raw.items()}
        return Item(
            key=plain["key"],
            attributes={name: value for name, value in plain.items() if name not in _OWN_ATTRIBUTES},
            version=plain["version"],
            updated_at=plain["updated_at"],
            expires_at=plain.get("expires_at"),
            attention=plain.get("attention"),
        )


def _unless_expired(item: Item | None) -> Item | None:
    expired = item is not None and item.expires_at is not None and item.expires_at <= time.time()
    return None if expired else item


def _plain(value: Any) -> Any:
    match value:
        case dict():
            return {name: _plain(inner) for name, inner in value.items()}
        case list():
            return [_plain(inner) for inner in value]
        case Binary():
            return bytes(value.value)  # type: ignore[attr-defined]
        case str() | bool() | None:
            return value
        case _:
            return int(value)


class SqsQueue:
    """ports.Queue over one SQS queue."""

    def __init__(self, sqs: "SQSClient", url: str) -> None:
        """Make a queue over this URL."""
        self._sqs = sqs
        self.url = url

    def send(self, body: str, *, delay: int = 0, reason: str | None = None) -> None:
        """See ports.Queue."""
        attributes = {"reason": {"DataType": "String", "StringValue": reason}} if reason else {}
        try:
            self._sqs.send_message(
                QueueUrl=self.url,
                MessageBody=body,
                DelaySeconds=delay,
                MessageAttributes=attributes,  # type: ignore[arg-type]
            )
        except (ClientError, BotoCoreError) as error:
            raise StorageError(_code(error)) from None

    def send_all(self, bodies: Sequence[str]) -> list[str]:
        """See ports.Queue."""
        batches = [bodies[start : start + _BATCH] for start in range(0, len(bodies), _BATCH)]
        return [body for missing in parallel(self._send_batch, batches) for body in missing]

    def _send_batch(self, bodies: Sequence[str]) -> list[str]:
        """Send up to ten messages, which must be small: all of them together are one request's payload."""
        entries = [{"Id": str(place), "MessageBody": body} for place, body in enumerate(bodies)]
        try:
            answer = self._sqs.send_message_batch(QueueUrl=self.url, Entries=entries)  # type: ignore[arg-type]
        except (ClientError, BotoCoreError):
            return list(bodies)
        sent = {entry["Id"] for entry in answer.get("Successful", ())}
        return [body for place, body in enumerate(bodies) if str(place) not in sent]

    def hand_back(self, receipt_handle: str, *, delay: int) -> None:
        """See ports.Queue."""
        try:
            self._sqs.change_message_visibility(
                QueueUrl=self.url, ReceiptHandle=receipt_handle, VisibilityTimeout=delay
            )
        except (ClientError, BotoCoreError) as error:
            raise StorageError(_code(error)) from None


class EventBridgeBus:
    """ports.Bus over one EventBridge bus."""

    def __init__(self, events: "EventBridgeClient | None", name: str) -> None:
        """Make a bus of this name; a function that never publishes needs no client."""
        self._events = events
        self._name = name

    def publish(self, detail_type: str, detail: Mapping[str, Any]) -> None:
        """See ports.Bus."""
        entry = {
            "EventBusName": self._name,
            "Source": _SOURCE,
            "DetailType": detail_type,
            "Detail": json.dumps(detail, ensure_ascii=False, separators=(",", ":")),
        }
        if self._events is None:
            raise StorageError("no_bus_name")
        try:
            answer = self._events.put_events(Entries=[entry])  # type: ignore[list-item]
        except (ClientError, BotoCoreError) as error:
            raise StorageError(_code(error)) from None
        if answer["FailedEntryCount"]:
            raise StorageError(answer["Entries"][0].get("ErrorCode", "unknown"))


def parallel[A, B](call: Callable[[A], B], arguments: Sequence[A], /) -> list[B]:
    """Be ports.Parallel: calls wait for AWS, not for each other."""
    if len(arguments) < 2:
        return [call(argument) for argument in arguments]
    return list(_threads().map(call, arguments))


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_THREADS)


@cache
def _queue(url: str) -> SqsQueue:
    return SqsQueue(client("sqs"), url)


def ports(environment: Environment) -> Ports:
    """Return the ports that a function's environment names."""
    return Ports(
        store=DynamoStore(client("dynamodb"), environment.TABLE_NAME),
        queue=_queue(environment.QUEUE_URL),
        dead_letters=_queue(environment.DEAD_LETTER_QUEUE_URL),
        bus=EventBridgeBus(client("events") if environment.BUS_NAME else None, environment.BUS_NAME),
        clock=time,
        random=random.random,
        queue_at=_queue,
        parallel=parallel,
    )


def secret_reader(environment: Environment) -> Callable[[], str]:
    """Return what reads the secret's text; it raises StorageError if the store is down or has no value yet."""
    secrets = client("secretsmanager") if environment.SECRET_ID else None

    def read() -> str:
        if secrets is None:
            raise StorageError("no_secret_id")
        try:
            return str(secrets.get_secret_value(SecretId=environment.SECRET_ID)["SecretString"])
        except (ClientError, BotoCoreError, KeyError) as error:
            raise StorageError(_code(error)) from None

    return read


def _code(error: Exception) -> str:
    if isinstance(error, ClientError):
        return error.response["Error"].get("Code", "unknown")
    return type(error).__name__
