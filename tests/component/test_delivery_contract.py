"""What delivery may count on, whoever provides it: one suite for the ports on AWS (moto) and in memory."""

import json
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from random import random
from typing import Any, Protocol

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import EndpointConnectionError
from moto import mock_aws

from crm_relay.delivery import aws, inbox, outbox
from crm_relay.delivery.account import Account
from crm_relay.delivery.attempt import each
from crm_relay.delivery.envelope import Envelope
from crm_relay.delivery.inbox import Receipt
from crm_relay.delivery.ledger import Busy, Claim, Effect, Fenced, Ledger, State
from crm_relay.delivery.memory import MemoryBus, MemoryQueue, MemoryStore
from crm_relay.delivery.ports import Conflict, Item, Ports, StorageError, update
from crm_relay.delivery.worker import Worker
from crm_relay.outcomes import NotExecuted, Unreachable
from crm_relay.settings import Environment, read_environment
from tests.gateway import Context

TABLE, QUEUE, DEAD_LETTERS, BUS = "relay", "leads", "leads-dead-letters", "relay-bus"
TTL = 3600
ATTRIBUTES: dict[str, Any] = {
    "text": "Оля 😀 \ufffe",
    "empty": "",
    "number": 1_760_000_000_123,
    "negative": -7,
    "yes": True,
    "no": False,
    "nothing": None,
    "bytes": b"\x00\xff",
    "list": ["a", 1, None, {"deep": [b"\x01"]}],
    "map": {"a": 1, "b": {}},
    "none_at_all": [],
}


class World(Protocol):
    """An adapter, and a look behind it."""

    ports: Ports

    def receive(self, name: str = QUEUE) -> list[dict[str, Any]]:
        """Return the visible messages as an event source mapping does, hidden from now on for five minutes."""

    def published(self) -> list[tuple[str, Mapping[str, Any]]]:
        """Return the events on the bus."""


class InMemory:
    """The ports in memory."""

    def __init__(self) -> None:
        self.queues = {name: MemoryQueue(time, name) for name in (QUEUE, DEAD_LETTERS)}
        self.bus = MemoryBus()
        queue, dead_letters = self.queues.values()
        self.ports = Ports(MemoryStore(time), queue, dead_letters, self.bus, time, random, self.queues.__getitem__)

    def receive(self, name: str = QUEUE) -> list[dict[str, Any]]:
        found = self.queues[name].receive(limit=10, visibility=300)
        return [message.record() | {"reason": message.reason} for message in found]

    def published(self) -> list[tuple[str, Mapping[str, Any]]]:
        return self.bus.events


class OnAws:
    """The ports on AWS, each test with a table and queues that nobody else has."""

    def __init__(self, number: int, patch: pytest.MonkeyPatch) -> None:
        self.urls = {
            name: aws.client("sqs").create_queue(QueueName=f"{name}-{number}")["QueueUrl"]
            for name in (QUEUE, DEAD_LETTERS, "events")
        }
        table, bus = f"{TABLE}-{number}", f"{BUS}-{number}"
        make_table(table)
        events = aws.client("events")
        events.create_event_bus(Name=bus)
        events.put_rule(Name="all", EventBusName=bus, EventPattern=json.dumps({"source": ["crm-relay"]}))
        arn = aws.client("sqs").get_queue_attributes(QueueUrl=self.urls["events"], AttributeNames=["QueueArn"])
        target = {"Id": "events", "Arn": arn["Attributes"]["QueueArn"]}
        events.put_targets(Rule="all", EventBusName=bus, Targets=[target])
        patch.setenv("TABLE_NAME", table)
        patch.setenv("BUS_NAME", bus)
        patch.setenv("QUEUE_URL", self.urls[QUEUE])
        patch.setenv("DEAD_LETTER_QUEUE_URL", self.urls[DEAD_LETTERS])
        self.ports = aws.ports(read_environment({**os.environ, "RELAY_CONFIG": "relay.toml"}))

    def receive(self, name: str = QUEUE) -> list[dict[str, Any]]:
        answer = aws.client("sqs").receive_message(
            QueueUrl=self.urls[name],
            MaxNumberOfMessages=10,
            VisibilityTimeout=300,
            AttributeNames=["All"],
            MessageAttributeNames=["All"],
        )
        return [
            {
                "messageId": message["MessageId"],
                "receiptHandle": message["ReceiptHandle"],
                "body": message["Body"],
                "attributes": message["Attributes"],
                "reason": message.get("MessageAttributes", {}).get("reason", {}).get("StringValue"),
            }
            for message in answer.get("Messages", [])
        ]

    def published(self) -> list[tuple[str, Mapping[str, Any]]]:
        events = [json.loads(record["body"]) for record in self.receive("events")]
        assert {event["source"] for event in events} <= {"crm-relay"}
        return [(event["detail-type"], event["detail"]) for event in events]


def make_table(name: str) -> None:
    """Make a table as the template has it."""
    aws.client("dynamodb").create_table(
        TableName=name,
        BillingMode="PAY_PER_REQUEST",
        KeySchema=[{"AttributeName": "key", "KeyType": "HASH"}],
        AttributeDefinitions=[
            {"AttributeName": "key", "AttributeType": "S"},
            {"AttributeName": "attention", "AttributeType": "S"},
            {"AttributeName": "updated_at", "AttributeType": "N"},
        ],
        GlobalSecondaryIndexes=[
            {
                "IndexName": "attention",
                "KeySchema": [
                    {"AttributeName": "attention", "KeyType": "HASH"},
                    {"AttributeName": "updated_at", "KeyType": "RANGE"},
                ],
                "Projection": {"ProjectionType": "KEYS_ONLY"},
            }
        ],
    )


@pytest.fixture(scope="module")
def cloud() -> Iterator[Iterator[int]]:
    """AWS in this process, and numbers to tell tests apart."""

    def forget() -> None:
        for cached in (aws.client, aws._session, aws._queue):
            cached.cache_clear()

    forget()
    endpoint = os.environ.pop("AWS_ENDPOINT_URL", None)
    with mock_aws():
        yield iter(range(1000))
    if endpoint:
        os.environ["AWS_ENDPOINT_URL"] = endpoint
    forget()


@pytest.fixture(params=["memory", "aws"])
def world(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> World:
    if request.param == "memory":
        return InMemory()
    return OnAws(next(request.getfixturevalue("cloud")), monkeypatch)


@pytest.fixture
def ports(world: World) -> Ports:
    return world.ports


def now() -> int:
    return int(time.time())


# Store


def test_an_item_is_read_as_it_was_written(ports: Ports) -> None:
    """Every type that an item may hold comes back as itself, whoever reads it."""
    written = ports.store.put("a#1", ATTRIBUTES, replaces=None, expires_at=now() + TTL, attention="WAITING")
    assert written.attributes == ATTRIBUTES
    read = ports.store.get("a#1")
    assert read == written
    assert read.version == 1
    assert abs(read.updated_at - now()) <= 5
    assert {type(value) for value in read.attributes.values()} == {str, int, bool, type(None), bytes, list, dict}
    assert ports.store.get("a#2") is None


@pytest.mark.parametrize("value", [1.5, object()], ids=["float", "object"])
def test_what_no_item_may_hold_is_refused(ports: Ports, value: object) -> None:
    """A value that one adapter would bend is taken by none."""
    with pytest.raises(TypeError):
        ports.store.put("a#1", {"deep": [{"value": value}]}, replaces=None)
    assert ports.store.get("a#1") is None


def test_what_an_item_holds_is_its_own(ports: Ports) -> None:
    """It does not change with what it was made of; a tuple is read as a list."""
    made_of: dict[str, Any] = {"list": ["a"], "tuple": ("b",)}
    ports.store.put("a#1", made_of, replaces=None)
    made_of["list"].append("c")
    item = ports.store.get("a#1")
    assert item is not None
    assert item.attributes == {"list": ["a"], "tuple": ["b"]}


def test_a_write_replaces_only_the_version_that_it_names(ports: Ports) -> None:
    """The fence: whoever comes second is told what stands there now, and changes nothing."""
    first = ports.store.put("a#1", {"n": 1}, replaces=None)
    with pytest.raises(Conflict) as conflict:
        ports.store.put("a#1", {"n": 99}, replaces=None)
    assert conflict.value.current == first
    second = ports.store.put("a#1", {"n": 2}, replaces=first)
    assert second.version == 2
    with pytest.raises(Conflict) as conflict:
        ports.store.put("a#1", {"n": 99}, replaces=first)
    assert conflict.value.current == second == ports.store.get("a#1")


def test_a_write_in_the_place_of_what_is_gone_is_refused(ports: Ports) -> None:
    """An item that somebody deleted is not brought back by whoever read it before."""
    first = ports.store.put("a#1", {"n": 1}, replaces=None)
    ports.store.delete(first)
    assert ports.store.get("a#1") is None
    with pytest.raises(Conflict) as conflict:
        ports.store.put("a#1", {"n": 2}, replaces=first)
    assert conflict.value.current is None


def test_deleting_takes_one_version_and_no_other(ports: Ports) -> None:
    """A newer version stays; what is gone may be deleted again."""
    first = ports.store.put("a#1", {"n": 1}, replaces=None)
    second = ports.store.put("a#1", {"n": 2}, replaces=first)
    ports.store.delete(first)
    assert ports.store.get("a#1") == second
    ports.store.delete(second)
    ports.store.delete(second)
    assert ports.store.get("a#1") is None


def test_an_expired_item_is_none(ports: Ports) -> None:
    """Whether or not it was swept, it is not read, and a new one may stand in its place."""
    ports.store.put("a#1", {"n": 1}, replaces=None, expires_at=now())
    assert ports.store.get("a#1") is None
    fresh = ports.store.put("a#1", {"n": 2}, replaces=None, expires_at=now() + TTL)
    assert fresh.version == 1
    assert ports.store.get("a#1") == fresh


def test_attention_lists_what_waits_oldest_first(ports: Ports) -> None:
    """The index holds what has the mark now: the next write moves an item or takes it out."""
    items = [ports.store.put(f"a#{number}", {}, replaces=None, attention="WAITING") for number in range(3)]
    ports.store.put("b#1", {}, replaces=None, attention="REJECTED")
    ports.store.put("c#1", {}, replaces=None)
    assert sorted(ports.store.attention("WAITING", limit=10)) == ["a#0", "a#1", "a#2"]
    assert len(ports.store.attention("WAITING", limit=2)) == 2
    ports.store.put("a#0", {}, replaces=items[0], attention="REJECTED")
    ports.store.put("a#1", {}, replaces=items[1])
    assert ports.store.attention("WAITING", limit=10) == ["a#2"]
    assert sorted(ports.store.attention("REJECTED", limit=10)) == ["a#0", "b#1"]
    assert ports.store.attention("NOBODY", limit=10) == []


def test_an_update_starts_over_when_somebody_was_faster(ports: Ports) -> None:
    """Two counters that count at once count both; what changes nothing writes nothing."""
    interfered: list[int] = []

    def count(attributes: Mapping[str, Any]) -> dict[str, Any]:
        if not interfered:
            interfered.append(1)
            update(ports.store, "a#1", count, expires_at=now() + TTL)
        return {"n": attributes.get("n", 0) + 1}

    assert update(ports.store, "a#1", count, expires_at=now() + TTL) == {"n": 2}
    before = ports.store.get("a#1")
    update(ports.store, "a#1", dict)
    assert ports.store.get("a#1") == before


# Queue and bus


ODD = 'quotes " \\ Оля 😀 עברית \u2028 \ufffe\uffff \x7f'


def test_a_message_arrives_as_it_was_sent(world: World) -> None:
    """Body and reason come through; a message that was received is hidden."""
    envelope = Envelope("cartelcrm.lead", ODD, {"body": ODD}, now(), "r-1")
    world.ports.queue.send(envelope.encode())
    world.ports.dead_letters.send("as it came", reason="not_ours")
    (record,) = world.receive()
    assert Envelope.decode(record["body"]) == envelope
    assert record["attributes"]["ApproximateReceiveCount"] == "1"
    assert abs(int(record["attributes"]["SentTimestamp"]) / 1000 - time.time()) < 60
    assert world.receive() == []
    (dead,) = world.receive(DEAD_LETTERS)
    assert (dead["body"], dead["reason"]) == ("as it came", "not_ours")


def test_many_messages_arrive_once_each(world: World) -> None:
    """More than one request of SQS takes, and nothing is told to be missing."""
    bodies = [f'{{"number": {number}}}' for number in range(23)]
    assert world.ports.queue.send_all(bodies) == []
    received: list[str] = []
    while some := world.receive():
        received += [record["body"] for record in some]
    assert sorted(received) == sorted(bodies)
    assert world.ports.queue.send_all([]) == []


def test_calls_side_by_side_answer_in_their_order(ports: Ports) -> None:
    """However many there are; and what one of them raises is raised."""
    assert ports.parallel(lambda number: number * 2, range(100)) == [number * 2 for number in range(100)]
    assert ports.parallel(str, [7]) == ["7"]
    assert ports.parallel(str, []) == []
    with pytest.raises(ZeroDivisionError):
        ports.parallel(lambda number: 1 // number, [1, 0, 2])


def test_a_delayed_message_is_not_seen(world: World) -> None:
    """It is there, but not yet."""
    world.ports.queue.send("later", delay=60)
    assert world.receive() == []


def test_a_message_that_was_handed_back_comes_again_and_is_counted(world: World) -> None:
    """With no delay at once; with one later."""
    world.ports.queue.send("a")
    (record,) = world.receive()
    world.ports.queue.hand_back(record["receiptHandle"], delay=0)
    (again,) = world.receive()
    assert (again["messageId"], again["attributes"]["ApproximateReceiveCount"]) == (record["messageId"], "2")
    world.ports.queue.hand_back(again["receiptHandle"], delay=900)
    assert world.receive() == []


def test_a_queue_is_found_by_its_url(world: World) -> None:
    """The outbox keeps messages of all queues."""
    world.ports.queue_at(world.ports.queue.url).send("a")
    assert [record["body"] for record in world.receive()] == ["a"]


def test_an_event_arrives_as_it_was_published(world: World) -> None:
    """Type and detail, to the last character."""
    detail = {"id": "k", "origin": {"key": "website"}, "text": ODD, "applied": True, "nothing": None}
    world.ports.bus.publish("CartelCallback", detail)
    assert world.published() == [("CartelCallback", detail)]


# What is built on them


def claimed(ports: Ports, seconds: int = 60) -> Claim:
    claim = Ledger(ports.store, ports.clock).claim("cartelcrm.lead#e1", "a", lease=seconds)
    assert isinstance(claim, Claim)
    return claim


def test_an_effect_lives_through_all_its_states(ports: Ports) -> None:
    """Claimed, sent, given back, claimed again, given up, settled: and found so each time."""
    ledger = Ledger(ports.store, ports.clock)
    claim = claimed(ports)
    with pytest.raises(Busy):
        claimed(ports)
    claim.sent({"generation": 1})
    claim.wait("ReadTimeout", happened=None)
    assert ports.store.attention("WAITING", limit=10) == ["effect#cartelcrm.lead#e1"]
    heir = claimed(ports)
    assert (heir.in_doubt, heir.effect.notes, heir.effect.waits) == (True, {"generation": 1}, 1)
    with pytest.raises(Fenced):
        claim.confirm({"id": "stale"})
    heir.give_up("ReadTimeout")
    assert ports.store.attention("NEEDS_RECONCILE", limit=10) == ["effect#cartelcrm.lead#e1"]
    claimed(ports).confirm({"id": "7", "status": "accepted"})
    settled = ledger.claim("cartelcrm.lead#e1", "a", lease=60)
    assert isinstance(settled, Effect)
    assert (settled.state, settled.result) == (State.CONFIRMED, {"id": "7", "status": "accepted"})
    assert settled == ledger.find("cartelcrm.lead#e1")
    assert ports.store.attention("NEEDS_RECONCILE", limit=10) == []


def test_a_lease_that_is_over_is_taken_over(ports: Ports) -> None:
    """D06: the stale owner finds another version there."""
    stale = claimed(ports, seconds=0)
    heir = claimed(ports)
    assert heir.effect.tries == 2
    with pytest.raises(Fenced):
        stale.sent({})


def test_a_call_goes_from_the_inbox_through_the_worker(world: World) -> None:
    """Accepted once, done once, and its copies are told so; what is not ours ends with the dead letters."""
    ports = world.ports
    envelope = Envelope("cartelcrm.lead", "e1", {"body": "a"}, now(), "r-1")
    assert inbox.accept(ports, envelope, remember=TTL) is Receipt.ACCEPTED
    assert inbox.accept(ports, envelope, remember=TTL) is Receipt.REPLAYED
    ports.queue.send(envelope.encode())
    ports.queue.send("odd")
    outcomes: list[NotExecuted | None] = [NotExecuted("rate_limited"), None]

    def job(_: Envelope, claim: Claim) -> Mapping[str, Any]:
        claim.sent({"generation": 1})
        if outcome := outcomes.pop(0):
            raise outcome
        return {"id": "7"}

    worker = Worker(ports, each(job), needs_seconds=1, give_up_after=TTL)
    context = Context(time.time, time.time() + 60, "worker")
    records = world.receive()
    assert len(records) == 3
    answer = worker.run({"Records": records}, context)
    first = next(record for record in records if record["body"] != "odd")
    assert answer == {"batchItemFailures": [{"itemIdentifier": first["messageId"]}]}
    assert outcomes == []
    assert [dead["reason"] for dead in world.receive(DEAD_LETTERS)] == ["not_ours"]
    assert worker.run({"Records": [first]}, context) == {"batchItemFailures": []}


def test_what_the_queue_did_not_take_gets_there_from_the_outbox(world: World) -> None:
    """Kept, found by the index, sent, forgotten."""
    outbox.keep(world.ports, "cartelcrm.lead", ODD.replace("\ufffe\uffff", ""), world.ports.queue)
    assert outbox.drain(world.ports, until=time.time() + 60) == (1, 0)
    assert outbox.drain(world.ports, until=time.time() + 60) == (0, 0)
    assert [record["body"] for record in world.receive()] == [ODD.replace("\ufffe\uffff", "")]


def test_odd_bodies_are_kept_in_quarantine_as_bytes(ports: Ports) -> None:
    """What nobody understands is kept to the last bit."""
    inbox.quarantine(ports, "cartelcrm.callback", b"\x00\xffodd", "internal_id_invalid")
    inbox.quarantine(ports, "cartelcrm.callback", b"\x00\xffodd", "internal_id_invalid")
    (key,) = ports.store.attention("QUARANTINE", limit=10)
    kept = ports.store.get(key)
    assert isinstance(kept, Item)
    assert kept.attributes["reason"] == "internal_id_invalid"
    assert outbox.kept_body(kept) == b"\x00\xffodd"


def test_an_outage_opens_the_circuit_for_who_comes_next(ports: Ports) -> None:
    """D24: what Powertools' breaker writes can be kept and read; so can the budget."""
    mine, yours = (Account(ports, "cartelcrm", requests_per_second=1000) for _ in range(2))

    def fail() -> None:
        raise Unreachable("ConnectError")

    for _ in range(5):
        with pytest.raises(Unreachable):
            mine.request(fail)
    with pytest.raises(NotExecuted, match="circuit_open"):
        yours.request(fail)


# What only a service can do to us


@pytest.fixture
def on_aws(cloud: Iterator[int], monkeypatch: pytest.MonkeyPatch) -> Ports:
    return OnAws(next(cloud), monkeypatch).ports


def test_a_write_whose_answer_was_missed_succeeds_once(on_aws: Ports, monkeypatch: pytest.MonkeyPatch) -> None:
    """AWS's library repeats a call that it heard nothing of; the repeat finds its own write and calls it done."""
    same = uuid.uuid4()  # makes two calls a call and its repeat
    monkeypatch.setattr(uuid, "uuid4", lambda: same)
    first = on_aws.store.put("a#1", {"n": 1}, replaces=None)
    assert on_aws.store.put("a#1", {"n": 1}, replaces=None) == first
    second = on_aws.store.put("a#1", {"n": 2}, replaces=first)
    assert on_aws.store.put("a#1", {"n": 2}, replaces=first) == second
    assert on_aws.store.get("a#1") == second


def test_of_a_batch_that_sqs_took_in_part_the_rest_is_named(on_aws: Ports, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row D28: an answer of 200 with entries that failed is no success; an answer that never came is none either."""
    sqs = aws.client("sqs")
    answers: list[Any] = [
        {"Successful": [{"Id": "0"}], "Failed": [{"Id": "1"}]},
        EndpointConnectionError(endpoint_url=""),
    ]

    def send_message_batch(**_: Any) -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(sqs, "send_message_batch", send_message_batch)
    assert on_aws.queue.send_all(["a", "b"]) == ["b"]
    assert on_aws.queue.send_all(["a", "b"]) == ["a", "b"]


def test_whatever_aws_says_is_a_storage_error(on_aws: Ports) -> None:
    """No error of a library comes through a port; its code is told, its message is not."""
    store = aws.DynamoStore(aws.client("dynamodb"), "no-such-table")
    item = Item("a#1", {}, 1, now())
    nowhere = on_aws.queue.url.replace("leads", "nowhere")
    calls: list[Callable[[], object]] = [
        lambda: store.get("a#1"),
        lambda: store.put("a#1", {}, replaces=None),
        lambda: store.delete(item),
        lambda: store.attention("WAITING", limit=1),
        lambda: aws.SqsQueue(aws.client("sqs"), nowhere).send("a"),
        lambda: on_aws.queue.hand_back("no-such-receipt", delay=1),
        lambda: on_aws.store.put("a#1", {"large": "x" * 410_000}, replaces=None),
    ]
    for call in calls:
        with pytest.raises(StorageError, match=r"^\w[\w.]*$"):
            call()


@pytest.fixture
def nowhere() -> Iterator[str]:
    """An address whose port is taken and where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


def test_a_service_that_cannot_be_reached_is_a_storage_error(nowhere: str) -> None:
    """So is a connection that does not come about; and it is not waited for."""
    config = aws._CONFIG.merge(Config(retries={"total_max_attempts": 1}))
    session = boto3.Session()
    dynamodb = session.client("dynamodb", endpoint_url=nowhere, config=config)
    sqs: Any = session.client("sqs", endpoint_url=nowhere, config=config)
    events: Any = session.client("events", endpoint_url=nowhere, config=config)
    store = aws.DynamoStore(dynamodb, "relay")
    calls: list[Callable[[], object]] = [
        lambda: store.get("a#1"),
        lambda: store.put("a#1", {}, replaces=None),
        lambda: aws.SqsQueue(sqs, f"{nowhere}/1/leads").send("a"),
        lambda: aws.EventBridgeBus(events, "relay").publish("CartelCallback", {}),
    ]
    for call in calls:
        with pytest.raises(StorageError, match="EndpointConnectionError"):
            call()


def test_the_secret_is_read_from_its_store(cloud: Iterator[int]) -> None:
    """A secret without a value, or without a store, is a storage error: the relay fails closed."""
    secrets = aws.client("secretsmanager")
    name = f"relay-{next(cloud)}"
    read = aws.secret_reader(Environment("table", "relay.toml", SECRET_ID=name))
    with pytest.raises(StorageError):
        read()
    secrets.create_secret(Name=name)
    with pytest.raises(StorageError):
        read()
    secrets.put_secret_value(SecretId=name, SecretString='{"cartelcrm":{}}')
    assert read() == '{"cartelcrm":{}}'
    with pytest.raises(StorageError):
        aws.secret_reader(Environment("table", "relay.toml"))()
