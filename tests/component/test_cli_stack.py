"""`relay` on a deployed stack (moto): finding it, what waits in its table, its dead letters, its secret."""

import hashlib
import json
import time
import zlib
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from moto import mock_aws

from crm_relay.delivery import outbox
from crm_relay.delivery.aws import DynamoStore, SqsQueue
from crm_relay.delivery.envelope import Envelope
from crm_relay.delivery.ledger import Claim, Ledger
from crm_relay.settings import read_secrets
from tests.component.cli import CALLBACK_URL, LEADS_URL, Cli
from workbench.cli import console, dead_letters

NAME, REGION = "relay-test", "eu-central-1"
PORTALS = """
[bitrix24.portals.partner]
kind = "source"
member_id = "0123456789abcdef0123456789abcdef"
domain = "partner.bitrix24.ru"
[bitrix24.portals.hub]
kind = "hub"
member_id = "fedcba9876543210fedcba9876543210"
domain = "esb.bitrix24.ru"
[bitrix24.routes.main]
source = "partner"
hub = "hub"
stages = {"C3:READY" = "C5:NEW"}
"""
QUEUES = ("Bitrix", "Callback", "Lead")


@cache
def session() -> boto3.Session:
    """Return one session with one client per service: to read what AWS's services are like takes long."""
    shared = boto3.Session(region_name=REGION)
    made = cache(shared.client)
    shared.client = lambda service, **_: made(service)  # type: ignore[assignment, method-assign]
    return shared


class Stack:
    """A deployed stack, and the command that works on it: `stack("deliveries", "list")`."""

    def __init__(self, folder: Path) -> None:
        self.cli = Cli(folder)
        self.sqs: Any = session().client("sqs")
        self.secretsmanager: Any = session().client("secretsmanager")
        self.dynamodb: Any = session().client("dynamodb")
        self.dynamodb.create_table(
            TableName="relay",
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
        self.store = DynamoStore(self.dynamodb, "relay")
        self.urls = {
            f"{name}{kind}QueueUrl": self.sqs.create_queue(QueueName=f"{name}{kind}".lower())["QueueUrl"]
            for name in QUEUES
            for kind in ("", "DeadLetter")
        }
        self.secret: str = self.secretsmanager.create_secret(Name="relay")["ARN"]
        self._deploy({"TableName": "relay", "SecretArn": self.secret, "LeadsUrl": LEADS_URL, **self.urls})

    def _deploy(self, outputs: Mapping[str, str]) -> None:
        known = {**outputs, "CallbackUrl": CALLBACK_URL, "ApiUrl": "https://relay.test"}
        template = {
            "Parameters": {name: {"Type": "String"} for name in known},
            "Resources": {},
            "Outputs": {name: {"Value": {"Ref": name}} for name in known},
        }
        cloudformation: Any = session().client("cloudformation")
        cloudformation.create_stack(
            StackName=NAME,
            TemplateBody=json.dumps(template),
            Parameters=[{"ParameterKey": name, "ParameterValue": value} for name, value in known.items()],
        )

    def __call__(self, *arguments: object, **more: Any) -> Any:
        return self.cli(*arguments, "--stack", NAME, "--region", REGION, **more)

    def json(self, *arguments: object) -> Any:
        return json.loads(self(*arguments, "--json").stdout)

    # What the functions have left

    def claim(self, key: str, kind: str = "cartelcrm.lead") -> Claim:
        claim = Ledger(self.store, time).claim(f"{kind}#{key}", "f" * 64, lease=300)
        assert isinstance(claim, Claim)
        return claim

    def bury(self, body: str, *, queue: str = "Lead", reason: str | None = "gave_up") -> None:
        SqsQueue(self.sqs, self.urls[f"{queue}DeadLetterQueueUrl"]).send(body, reason=reason)

    def bodies(self, queue: str) -> list[str]:
        """Take all messages out of a queue."""
        bodies = []
        while messages := self.sqs.receive_message(
            QueueUrl=self.urls[f"{queue}QueueUrl"], MaxNumberOfMessages=10, MessageAttributeNames=["All"]
        ).get("Messages"):
            bodies += [message["Body"] for message in messages]
            if not queue.endswith("DeadLetter"):
                assert not any("MessageAttributes" in message for message in messages)
        return sorted(bodies)

    def filled(self, **secret: Any) -> None:
        self.secretsmanager.put_secret_value(SecretId=self.secret, SecretString=json.dumps(secret))

    @property
    def document(self) -> Any:
        return json.loads(self.secretsmanager.get_secret_value(SecretId=self.secret)["SecretString"])


@pytest.fixture
def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stack]:
    monkeypatch.setattr(dead_letters, "_LONG_POLL", 0)
    shared = session()
    monkeypatch.setattr(boto3, "Session", lambda **_: shared)
    with mock_aws():
        yield Stack(tmp_path)


def envelope(key: str, *, accepted_at: float = 0) -> str:
    payload = {"body": "{}", "origin": {}}
    return Envelope("cartelcrm.lead", key, payload, int(accepted_at or time.time()), "c", "f" * 64).encode()


# Which stack


def test_a_stack_that_is_not_there_is_one_sentence(stack: Stack) -> None:
    result = stack.cli("deliveries", "list", "--stack", "nobody", "--region", REGION)
    assert "There is no stack nobody in eu-central-1" in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.exit_code == 1


def test_without_credentials_the_way_to_them_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    result = Cli(tmp_path)("deliveries", "list", "--stack", NAME)
    assert "aws sso login" in result.stderr
    assert result.exit_code == 1


def test_without_a_region_the_way_to_one_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    assert "--region" in Cli(tmp_path)("deliveries", "list", "--stack", NAME).stderr


def test_a_stack_of_something_else_is_told(stack: Stack) -> None:
    cloudformation: Any = session().client("cloudformation")
    template = {"Resources": {}, "Outputs": {"Url": {"Value": "x"}}}
    cloudformation.create_stack(StackName="other", TemplateBody=json.dumps(template))
    result = stack.cli("deliveries", "list", "--stack", "other", "--region", REGION)
    assert "No output TableName in stack other" in result.stderr


def test_the_key_of_a_deployed_stack_comes_from_the_environment(stack: Stack) -> None:
    assert "RELAY_API_KEY" in stack("leads", "show", "order-17").stderr


# deliveries


@pytest.fixture
def deliveries(stack: Stack) -> Stack:
    """A stack with one delivery in every state."""
    stack.claim("waits").wait("circuit_open", happened=False)
    stack.claim("refused").reject("blacklisted")
    stack.claim("unclear").give_up("ReadTimeout")
    stack.claim("done").confirm({"status": "accepted", "id": "crm-1"})
    stack.store.put("inbound#cartelcrm.lead#done", {"state": "ENQUEUED", "sha256": "f", "copies": 1}, replaces=None)
    told = {"key": "k", "event": "lead_paid", "status": "paid", "timestamp": 1_760_000_000, "applied": True}
    lead = {"external_id": "done", "origin": {"key": "website"}, "status": "paid", "status_at": 1_760_000_000}
    stack.store.put("lead#crm-1", {**lead, "history": [told]}, replaces=None)
    digest = hashlib.sha256(b"+380501234567").hexdigest()
    stack.store.put(
        f"quarantine#cartelcrm.callback#{digest}",
        {"reason": "event_invalid", "body": zlib.compress(b'{"phone": "+380501234567\x1b[2J"}')},
        replaces=None,
        attention="QUARANTINE",
    )
    ports: Any = SimpleNamespace(store=stack.store, clock=time)
    outbox.keep(ports, "cartelcrm.lead", '{"phone": "+380501234567"}', SqsQueue(stack.sqs, stack.urls["LeadQueueUrl"]))
    return stack


def test_the_list_has_what_waits_or_needs_somebody_and_nothing_else(deliveries: Stack) -> None:
    listed = deliveries.json("deliveries", "list")
    assert [item["attention"].partition("#")[0] for item in listed] == [
        "WAITING",
        "REJECTED",
        "NEEDS_RECONCILE",
        "QUARANTINE",
        "OUTBOX",
    ]
    result = deliveries("deliveries", "list")
    for words in ("circuit_open", "blacklisted", "ReadTimeout", "event_invalid", "OUTBOX"):
        assert words in result.stdout
    assert "refused" in result.stdout.splitlines()
    assert "done" not in result.stdout


def test_the_list_can_be_narrowed_to_a_state(deliveries: Stack) -> None:
    [item] = deliveries.json("deliveries", "list", "--state", "rejected")
    assert item["key"] == "effect#cartelcrm.lead#refused"
    assert deliveries("deliveries", "list", "--state", "nonsense").exit_code == 2


def test_the_whole_table_is_read_only_when_asked_for_and_says_so(deliveries: Stack) -> None:
    result = deliveries("deliveries", "list", "--all", "--json")
    assert "reads the whole table" in result.stderr
    keys = {item["key"] for item in json.loads(result.stdout)}
    assert "effect#cartelcrm.lead#done" in keys
    assert len(keys) == 6
    assert len(deliveries.json("deliveries", "list", "--all", "--limit", "2")) == 2
    [done] = deliveries.json("deliveries", "list", "--all", "--state", "confirmed")
    assert done["result"] == {"status": "accepted", "id": "crm-1"}


def test_a_list_that_is_cut_off_says_so(stack: Stack) -> None:
    for number in range(3):
        stack.claim(f"refused-{number}").reject("blacklisted")
    result = stack("deliveries", "list", "--limit", "2", "--json")
    assert len(json.loads(result.stdout)) == 2
    assert "There may be more in REJECTED" in result.stderr


def test_nothing_to_do_is_good_news(stack: Stack) -> None:
    assert "nothing needs anybody" in stack("deliveries", "list").stdout
    assert stack.json("deliveries", "list") == []


@pytest.mark.parametrize("name", ["done", "cartelcrm.lead#done", "effect#cartelcrm.lead#done", "crm-1"])
def test_a_delivery_is_shown_with_its_inbox_and_its_lead(deliveries: Stack, name: str) -> None:
    assert [item["key"] for item in deliveries.json("deliveries", "show", name)] == [
        "effect#cartelcrm.lead#done",
        "inbound#cartelcrm.lead#done",
        "lead#crm-1",
    ]
    result = deliveries("deliveries", "show", name)
    for words in ("CONFIRMED", "ENQUEUED", "lead_paid", "website"):
        assert words in result.stdout


def test_a_key_from_the_list_can_be_shown_as_it_stands_there(deliveries: Stack) -> None:
    digest = hashlib.sha256(b"+380501234567").hexdigest()
    assert digest in deliveries("deliveries", "list", COLUMNS="40").stdout.splitlines()
    for name in (digest[:12], digest):
        [item] = deliveries.json("deliveries", "show", name)
        assert item["key"] == f"quarantine#cartelcrm.callback#{digest}"


def test_cards_and_deals_are_found_by_their_ids(stack: Stack, tmp_path: Path) -> None:
    """What a person sees in the CRM; changes of a card have keys of their own, unless they need somebody."""
    config = tmp_path / "relay.toml"
    account = '[amocrm.accounts.main]\naccount_id = 1\nhost = "example.amocrm.ru"\n'
    config.write_text(account + PORTALS, "utf-8")
    stack.cli._world = {"config": config}
    note, deal = "main#leads#4711#add#0", "partner#4711#main"
    stack.claim(note, "amocrm.note").confirm({"notes": [1]})
    stack.claim("main#leads#4711#update#17-ab", "amocrm.note").give_up("http_500")
    stack.claim("main#leads#4711#update#18-cd", "amocrm.note").confirm({"notes": [2]})
    stack.claim(deal, "bitrix24.deal").confirm({"id": 5})
    assert {item["key"] for item in stack.json("deliveries", "show", "4711")} == {
        f"effect#amocrm.note#{note}",
        "effect#amocrm.note#main#leads#4711#update#17-ab",
        f"effect#bitrix24.deal#{deal}",
    }
    assert stack("deliveries", "show", "4712").exit_code == 1


def test_personal_data_is_printed_only_when_asked_for(deliveries: Stack) -> None:
    keys = [item["key"] for item in deliveries.json("deliveries", "list", "--all")]
    outputs = [deliveries("deliveries", "list", "--all", *more).output for more in ((), ("--json",))]
    outputs += [deliveries("deliveries", "show", key, *more).output for key in keys for more in ((), ("--json",))]
    assert "+380501234567" not in "".join(outputs)
    for kind in ("quarantine", "outbox"):
        [key] = [key for key in keys if key.startswith(kind)]
        for more in ((), ("--json",)):
            revealed = deliveries("deliveries", "show", key, "--reveal", *more).stdout
            assert "+380501234567" in revealed
            assert "\x1b" not in revealed


def test_an_unknown_key_is_one_sentence(stack: Stack) -> None:
    result = stack("deliveries", "show", "nobody")
    assert "nobody" in result.stderr
    assert result.exit_code == 1


# dead letters


def test_dead_letters_are_listed_with_why_and_stay_where_they_are(stack: Stack) -> None:
    stack.claim("order-17").wait("rate_limited", happened=False)
    stack.bury(envelope("order-17", accepted_at=time.time() - 90_000))
    stack.bury("no envelope", queue="Callback", reason="not_ours")
    stack.bury(envelope("order-18"), reason=None)
    for _ in range(2):
        callback, first, second = stack.json("dead-letters", "list")
        assert (callback["queue"], callback["kind"], callback["reason"]) == ("callback", None, "not_ours")
        assert (first["key"], first["reason"], first["last_error"]) == ("order-17", "gave_up", "rate_limited")
        assert (second["key"], second["reason"]) == ("order-18", "too_many_receives")
    result = stack("dead-letters", "list", "--queue", "lead")
    assert "gave_up" in result.stdout
    assert "1 d" in result.stdout
    assert "order-17" in result.stdout.splitlines()
    assert f"relay dead-letters redrive --stack {NAME}" in result.stdout
    assert "not_ours" not in result.stdout


def test_bodies_of_dead_letters_are_printed_only_when_asked_for(stack: Stack) -> None:
    stack.bury("+380501234567")
    assert "+380501234567" not in stack("dead-letters", "list").output
    assert "body" not in stack.json("dead-letters", "list")[0]
    assert stack.json("dead-letters", "list", "--reveal")[0]["body"] == "+380501234567"


def test_no_dead_letters_are_good_news(stack: Stack) -> None:
    assert "No dead letters" in stack("dead-letters", "list").stdout
    assert "No dead letters" in stack("dead-letters", "redrive").stdout
    assert "callback, lead" in stack("dead-letters", "list", "--queue", "nobody").stderr


def test_a_redrive_sends_every_dead_letter_to_its_own_queue_at_its_rate(stack: Stack) -> None:
    bodies = sorted(envelope(f"order-{number}") for number in range(13))
    for body in bodies:
        stack.bury(body)
    stack.bury("callback", queue="Callback")
    result = stack("dead-letters", "redrive", "--yes", "--rate", "4")
    assert "14 sent again" in result.stdout
    assert stack.bodies("Lead") == bodies
    assert stack.bodies("Callback") == ["callback"]
    assert not stack.bodies("LeadDeadLetter")
    assert stack.cli.clock.slept == [0.25] * 14


def test_a_redrive_can_be_rehearsed_and_narrowed(stack: Stack) -> None:
    stack.bury("lead")
    stack.bury("callback", queue="Callback")
    assert "Nothing was sent" in stack("dead-letters", "redrive", "--dry-run").stdout
    assert not stack.bodies("Lead")
    stack("dead-letters", "redrive", "--queue", "lead", "--yes")
    assert stack.bodies("Lead") == ["lead"]
    assert stack.bodies("CallbackDeadLetter") == ["callback"]


def test_a_redrive_asks_first_and_does_nothing_where_nobody_answers(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack.bury("lead")
    assert "--yes" in stack("dead-letters", "redrive").stderr
    monkeypatch.setattr(console, "interactive", lambda: True)
    assert stack("dead-letters", "redrive", stdin="n\n").exit_code == 1
    assert not stack.bodies("Lead")
    assert stack("dead-letters", "redrive", stdin="y\n").exit_code == 0
    assert stack.bodies("Lead") == ["lead"]


def test_an_interrupted_redrive_loses_nothing(stack: Stack) -> None:
    bodies = sorted(envelope(f"order-{number}") for number in range(12))
    for body in bodies:
        stack.bury(body)

    def interrupt(_: float) -> None:
        stack.cli.clock.slept.append(0)
        if len(stack.cli.clock.slept) == 3:
            raise KeyboardInterrupt

    clock: Any = stack.cli.clock
    clock.sleep = interrupt
    result = stack("dead-letters", "redrive", "--yes")
    assert "3 sent again" in result.stdout
    assert result.exit_code == 130
    sent = stack.bodies("Lead")
    left = stack.bodies("LeadDeadLetter")  # visible again at once
    assert sorted(sent + left) == bodies
    assert len(sent) == 3


def test_a_redrive_that_cannot_delete_sends_twice_at_most(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    stack.bury("lead")

    def interrupt(**_: str) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(stack.sqs, "delete_message", interrupt)
        assert stack("dead-letters", "redrive", "--yes").exit_code == 130
    stack("dead-letters", "redrive", "--yes")
    assert stack.bodies("Lead") == ["lead", "lead"]
    assert not stack.bodies("LeadDeadLetter")


def test_what_dies_again_meanwhile_does_not_go_round(stack: Stack) -> None:
    stack.bury("dies at once")

    def die_again(_: float) -> None:
        for body in stack.bodies("Lead"):
            stack.bury(body)

    clock: Any = stack.cli.clock
    clock.sleep = die_again
    assert "1 sent again" in stack("dead-letters", "redrive", "--yes").stdout
    assert stack.bodies("LeadDeadLetter") == ["dies at once"]


# secrets

VALUES = "api-key\nhmac-secret\ncallback-secret\n"


def test_a_secret_is_filled_from_standard_input_and_no_value_comes_out(stack: Stack) -> None:
    result = stack("secrets", "init", stdin=VALUES)
    assert result.exit_code == 0
    key = result.stdout.strip()
    known = read_secrets(json.dumps(stack.document))
    assert (known.cartelcrm.api_key, known.cartelcrm.hmac_secret) == ("api-key", "hmac-secret")
    assert known.cartelcrm.callback_secrets_at(time.time()) == ["callback-secret"]
    assert known.lead_api_keys == {"website": hashlib.sha256(key.encode()).hexdigest()}
    assert len(key) >= 40
    for value in VALUES.split():
        assert value not in result.output
        assert value not in stack("secrets", "check").output
    assert key not in json.dumps(stack.document)


def test_a_person_is_asked_and_what_they_type_is_not_echoed(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workbench.cli.secrets.interactive", lambda: True)
    result = stack("secrets", "init", stdin=VALUES)
    assert "CartelCRM's API key" in result.output
    for value in VALUES.split():
        assert value not in result.output
    assert stack.document["cartelcrm"]["api_key"] == "api-key"


@pytest.mark.parametrize(
    "stdin", ["", "one\n", VALUES + "four\n", "api-key\n\ncallback-secret\n", "api key\nh\nc\n", "a\nh\x07\nc\n"]
)
def test_a_secret_that_could_not_work_is_not_written(stack: Stack, stdin: str) -> None:
    stack.filled(keep="me")
    result = stack("secrets", "init", stdin=stdin)
    assert result.exit_code == 1
    assert stack.document == {"keep": "me"}


def test_a_filled_secret_is_not_overwritten_unasked(stack: Stack) -> None:
    stack("secrets", "init", stdin=VALUES)
    before = stack.document
    assert "--yes" in stack("secrets", "init", stdin=VALUES).stderr
    assert "--yes" in stack("secrets", "set", "cartelcrm.api_key", stdin="other\n").stderr
    assert "--yes" in stack("secrets", "set", "lead_api_key", stdin="").stderr
    assert stack.document == before
    stack("secrets", "set", "cartelcrm.api_key", "--yes", stdin="other\n")
    assert stack.document["cartelcrm"] == {**before["cartelcrm"], "api_key": "other"}


def test_what_others_keep_in_the_secret_stays_there(stack: Stack) -> None:
    stack.filled(of_another_version={"client_secret": "x"}, lead_api_keys={"shop": "0" * 64})
    stack("secrets", "init", stdin=VALUES)
    assert stack.document["of_another_version"] == {"client_secret": "x"}
    assert stack.document["lead_api_keys"].keys() == {"shop", "website"}


def test_a31_a_new_callback_secret_is_valid_at_once_beside_the_old_one_until_its_end(stack: Stack) -> None:
    now = time.time()
    stack("secrets", "init", stdin=VALUES)
    for value in ("second", "third"):
        assert stack("secrets", "set", "cartelcrm.callback_secret", "--keep-old", "12h", stdin=value).exit_code == 0
    ours = read_secrets(json.dumps(stack.document)).cartelcrm
    assert ours.callback_secrets_at(now) == ["callback-secret", "second", "third"]
    assert ours.callback_secrets_at(now + 43_100) == ["callback-secret", "second", "third"]
    assert ours.callback_secrets_at(now + 43_300) == ["third"]
    assert "11 h left" in stack("secrets", "check").stdout
    stack("secrets", "set", "cartelcrm.callback_secret", "--keep-old", "0s", stdin="fourth")
    assert stack.document["cartelcrm"]["callback_secrets"] == [{"value": "fourth"}]


def test_a_rotation_does_not_prolong_a_secret_that_ends_sooner(stack: Stack) -> None:
    soon = "2999-01-01T00:00:00"  # without an offset, which means UTC
    past = "2020-01-01T00:00:00Z"
    olds = [{"value": "a", "not_after": soon}, {"value": "b", "not_after": past}, {"value": "c"}]
    stack.filled(cartelcrm={"api_key": "k", "hmac_secret": "h", "callback_secrets": olds})
    stack("secrets", "set", "cartelcrm.callback_secret", "--keep-old", "9999d", stdin="c")
    kept = stack.document["cartelcrm"]["callback_secrets"]
    assert [secret["value"] for secret in kept] == ["a", "c"]
    assert kept[0]["not_after"] < "2999"


def test_a_span_that_is_none_is_exit_code_2(stack: Stack) -> None:
    assert stack("secrets", "set", "cartelcrm.callback_secret", "--keep-old", "soon", stdin="x").exit_code == 2


def test_lead_api_keys_are_made_by_name_and_taken_back(stack: Stack) -> None:
    stack("secrets", "init", stdin=VALUES)
    key = stack("secrets", "set", "lead_api_key", "--name", "partner").stdout.strip()
    assert stack.document["lead_api_keys"]["partner"] == hashlib.sha256(key.encode()).hexdigest()
    assert stack("secrets", "revoke", "partner", "--yes").exit_code == 0
    assert stack.document["lead_api_keys"].keys() == {"website"}
    assert "website" in stack("secrets", "revoke", "partner", "--yes").stderr
    assert stack("secrets", "set", "lead_api_key", "--name", "no/name").exit_code == 1


def test_check_says_what_is_missing_and_how_to_set_it(stack: Stack) -> None:
    result = stack("secrets", "check")
    assert result.exit_code == 1
    assert f"relay secrets set cartelcrm.api_key --stack {NAME}" in result.stderr
    ended = [{"value": "old", "not_after": "2020-01-01T00:00:00Z"}]
    stack.filled(cartelcrm={"api_key": "k", "hmac_secret": "h", "callback_secrets": ended})
    states = {item["name"]: item["state"] for item in stack.json("secrets", "check")}
    assert states["cartelcrm.callback_secret"] == "ended 2020-01-01 00:00 UTC"
    assert states["lead_api_key"] == "missing"
    stack("secrets", "init", "--yes", stdin=VALUES)
    assert stack("secrets", "check").exit_code == 0


def test_a_secret_that_no_function_can_read_is_told_and_can_be_filled_anew(stack: Stack) -> None:
    stack.secretsmanager.put_secret_value(SecretId=stack.secret, SecretString="not json")
    for command in (("check",), ("set", "cartelcrm.api_key", "--yes")):
        result = stack("secrets", *command, stdin="x")
        assert "relay secrets init" in result.stderr
        assert result.exit_code == 1
    assert stack("secrets", "init", stdin=VALUES).exit_code == 0
