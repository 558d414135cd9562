"""Design mistakes that others have made, planted into the running relay: each must be noticed."""

import tests.conftest  # noqa: F401, I001 (the environment of all tests, before anything reads it)

import json
import math
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import pytest

from amo_webhook import add_notes
from amo_webhook import receive as amo_receive
from amo_webhook.card import KnownCard
from bitrix_robot import cards, carrier, files, report
from bitrix_robot.report import Reporter
from callback_receiver import process, receive
from crm_relay import signing
from crm_relay.bitrix24 import items
from crm_relay.cartelcrm import callbacks
from crm_relay.cartelcrm.callbacks import Callback
from crm_relay.cartelcrm.leads import Lead
from crm_relay.delivery import attempt, inbox, outbox, tokens, worker
from crm_relay.delivery.attempt import Ending, Try, Waiting
from crm_relay.delivery.aws import SqsQueue
from crm_relay.delivery.budget import Budget
from crm_relay.delivery.envelope import Envelope
from crm_relay.delivery.inbox import Receipt
from crm_relay.delivery.ledger import Claim, Effect, Fenced, Ledger, State
from crm_relay.delivery.memory import MemoryStore
from crm_relay.delivery.ports import Conflict, Item, Ports, StorageError
from crm_relay.delivery.tokens import Pair, SharedToken
from crm_relay.delivery.worker import Worker
from crm_relay.http_api import Unavailable
from crm_relay.observability import logger
from crm_relay.outcomes import OutcomeUnknown
from lead_submitter import intake, submission

type Plant = Callable[[pytest.MonkeyPatch], None]


@dataclass(frozen=True)
class Mistake:
    """A mistake: `plant` makes it, and `tests` are those that notice what no seed brings to light soon."""

    name: str
    plant: Plant
    tests: str = ""


MISTAKES: dict[str, Mistake] = {}
_SUBMITTER = "tests/component/test_lead_submitter.py"


def mistake(name: str, *, tests: str = "") -> Callable[[Plant], Plant]:
    """Register a mistake under what it is."""

    def register(plant: Plant) -> Plant:
        MISTAKES[name] = Mistake(name, plant, tests)
        return plant

    return register


# At the door


@mistake("mark before enqueue")
def _mark_first(patch: pytest.MonkeyPatch) -> None:
    def accept(ports: Ports, envelope: Envelope, *, remember: int, delay: int = 0) -> Receipt:
        key, expires_at = f"inbound#{envelope.name}", int(ports.clock.time()) + remember
        marked = {"state": "ENQUEUED", "sha256": envelope.sha256, "copies": 1}
        try:
            ports.store.put(key, marked, replaces=None, expires_at=expires_at)
        except Conflict:
            return Receipt.REPLAYED
        except StorageError:
            pass
        inbox.make_durable(ports, envelope, delay=delay)
        return Receipt.ACCEPTED

    patch.setattr(receive, "accept", accept)
    patch.setattr(intake, "accept", accept)


@mistake("answer 200 when nothing is durable")
def _answer_anyway(patch: pytest.MonkeyPatch) -> None:
    durable = inbox.make_durable

    def make_durable(ports: Ports, envelope: Envelope, *, delay: int = 0) -> None:
        try:
            durable(ports, envelope, delay=delay)
        except Unavailable:
            logger.error("not durable")

    patch.setattr(inbox, "make_durable", make_durable)
    patch.setattr(intake, "make_durable", make_durable)


@mistake("what a batch of messages did not take is forgotten")
def _partial_batch(patch: pytest.MonkeyPatch) -> None:
    def make_all_durable(ports: Ports, envelopes: Sequence[Envelope]) -> None:
        ports.queue.send_all([envelope.encode() for envelope in envelopes])

    patch.setattr(amo_receive, "make_all_durable", make_all_durable)


@mistake("partial SendMessageBatch ignored", tests="tests/component/test_delivery_contract.py")
def _sent_is_sent(patch: pytest.MonkeyPatch) -> None:
    proper = SqsQueue._send_batch

    def send_batch(self: SqsQueue, bodies: Sequence[str]) -> list[str]:
        missing = proper(self, bodies)
        return missing if len(missing) == len(bodies) else []

    patch.setattr(SqsQueue, "_send_batch", send_batch)


@mistake("outbox: forget, then send")
def _forget_first(patch: pytest.MonkeyPatch) -> None:
    def send(ports: Ports, item: Item) -> None:
        ports.store.delete(item)
        ports.queue_at(item.attributes["queue_url"]).send(
            outbox.kept_body(item).decode(), delay=item.attributes["delay"]
        )

    patch.setattr(outbox, "_send", send)


@mistake("key without separator", tests="tests/unit/test_callbacks.py")
def _no_separator(patch: pytest.MonkeyPatch) -> None:
    proper = callbacks.callback_of

    def callback_of(data: dict[str, Any]) -> Callback:
        callback = proper(data)
        return replace(callback, key=f"{callback.internal_id}{callback.event}{callback.timestamp}")

    for module in (callbacks, process):
        patch.setattr(module, "callback_of", callback_of)


@mistake("timestamp as float", tests="tests/unit/test_signing.py")
def _float_timestamp(patch: pytest.MonkeyPatch) -> None:
    def is_fresh(timestamp: str, now: float) -> bool:
        try:
            return not abs(float(timestamp) - now) > signing.TOLERANCE
        except ValueError:
            return False

    patch.setattr(signing, "_is_fresh", is_fresh)


# In the ledger


@mistake("no fence", tests="tests/unit/test_ledger.py")
def _no_fence(patch: pytest.MonkeyPatch) -> None:
    proper = Claim._write

    def write(self: Claim, effect: Effect, attention: str | None = None) -> None:
        try:
            proper(self, effect, attention)
        except Fenced:
            current = self._store.get(self._item.key)
            assert current
            self._item = current
            write(self, effect, attention)

    patch.setattr(Claim, "_write", write)


@mistake("delete on error", tests="tests/unit/test_ledger.py")
def _delete_on_error(patch: pytest.MonkeyPatch) -> None:
    def wait(self: Claim, *_: object, **__: object) -> None:
        self._store.delete(self._item)

    patch.setattr(Claim, "wait", wait)


@mistake("repeat after an unknown outcome")
def _blind_repeat(patch: pytest.MonkeyPatch) -> None:
    proper = Claim.__init__

    def init(self: Claim, *args: Any) -> None:
        proper(self, *args)
        self.in_doubt = False

    patch.setattr(Claim, "__init__", init)


@mistake(
    "SENT written after the call",
    tests=f"{_SUBMITTER}::test_d04_a_worker_killed_anywhere_makes_one_lead",
)
def _sent_afterwards(patch: pytest.MonkeyPatch) -> None:
    proper_sent, proper_run = Claim.sent, submission._run
    waiting: list[Callable[[], None]] = []

    def sent(self: Claim, notes: Mapping[str, Any]) -> None:
        waiting.append(lambda: proper_sent(self, notes))

    def run(*args: Any, **kwargs: Any) -> Any:
        result = proper_run(*args, **kwargs)
        while waiting:
            waiting.pop()()
        return result

    patch.setattr(Claim, "sent", sent)
    patch.setattr(submission, "_run", run)


@mistake("the lock never released")
def _locked_for_ever(patch: pytest.MonkeyPatch) -> None:
    proper = Ledger.claim

    def claim(self: Ledger, name: str, sha256: str, *, lease: int) -> Claim | Effect:
        return proper(self, name, sha256, lease=lease + 10**9)

    patch.setattr(Ledger, "claim", claim)


@mistake("given up in doubt, told as never done", tests="tests/unit/test_ledger.py")
def _sure_of_itself(patch: pytest.MonkeyPatch) -> None:
    def give_up(self: Claim, reason: str, *, happened: bool | None = None) -> None:
        self._write(replace(self._free(), state=State.GIVEN_UP, last_error=reason), State.GIVEN_UP.value)

    patch.setattr(Claim, "give_up", give_up)


# In the worker


@mistake("a failed message is reported as done")
def _all_done(patch: pytest.MonkeyPatch) -> None:
    proper = Worker.run

    def run(self: Worker, *args: Any) -> dict[str, list[dict[str, str]]]:
        proper(self, *args)
        return {"batchItemFailures": []}

    patch.setattr(Worker, "run", run)


@mistake("receive count ignored", tests="tests/unit/test_worker.py")
def _endless_tries(patch: pytest.MonkeyPatch) -> None:
    proper = Ledger.claim

    def claim(self: Ledger, *args: Any, **kwargs: Any) -> Claim | Effect:
        claimed = proper(self, *args, **kwargs)
        if isinstance(claimed, Claim):
            claimed.effect = replace(claimed.effect, tries=1)
        return claimed

    patch.setattr(Ledger, "claim", claim)


@mistake("a message that failed is dropped, not buried", tests="tests/unit/test_worker.py")
def _dropped(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Worker, "_bury", lambda *_: True)


@mistake("an unreadable ledger counts as an empty one")
def _fail_open(patch: pytest.MonkeyPatch) -> None:
    proper = Ledger.claim

    def claim(self: Ledger, name: str, sha256: str, *, lease: int) -> Claim | Effect:
        try:
            return proper(self, name, sha256, lease=lease)
        except StorageError:
            apart = MemoryStore(self._clock)
            return proper(Ledger(apart, self._clock), name, sha256, lease=lease)

    patch.setattr(Ledger, "claim", claim)


@mistake("an error line that quotes what failed")
def _talkative(patch: pytest.MonkeyPatch) -> None:
    proper = attempt.attempt

    def talkative(ports: Ports, tries: Sequence[Try], *args: Any, **kwargs: Any) -> list[Ending]:
        endings = proper(ports, tries, *args, **kwargs)
        for tried, ending in zip(tries, endings, strict=True):
            if isinstance(ending, Waiting):
                logger.error("failed", payload=json.dumps(tried.envelope.payload))
        return endings

    for module in (worker, intake):
        patch.setattr(module, "attempt", talkative)


# Towards the CRM


@mistake("retry of a create", tests=f"{_SUBMITTER}::test_a_lead_that_cannot_be_settled_now_is_queued")
def _retried_create(patch: pytest.MonkeyPatch) -> None:
    proper = submission.submit

    def submit(envelope: Envelope, claim: Claim, **within: float) -> Mapping[str, Any]:
        try:
            return proper(envelope, claim, **within)
        except OutcomeUnknown:
            claim.effect = replace(claim.effect, notes={"generation": submission._generation(claim) + 1})
            return proper(envelope, claim, **within)

    _replace_submit(patch, submit)


@mistake(
    "a fresh Idempotency-Key for every try",
    tests=f"{_SUBMITTER}::test_d07_workers_with_wrong_clocks_make_no_second_lead",
)
def _fresh_keys(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(submission, "_idempotency_key", lambda *_: uuid.uuid4().hex)


@mistake("budget per process", tests="tests/unit/test_budget.py")
def _own_budget(patch: pytest.MonkeyPatch) -> None:
    proper = Budget.__init__

    def init(self: Budget, ports: Ports, *args: Any, **kwargs: Any) -> None:
        proper(self, replace(ports, store=MemoryStore(ports.clock)), *args, **kwargs)

    patch.setattr(Budget, "__init__", init)


@mistake("no budget at all", tests="tests/unit/test_budget.py")
def _no_budget(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Budget, "take", lambda _: None)


@mistake("a note is written again without a look into its card", tests="tests/component/test_amo_notes.py")
def _blind_note(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(add_notes._Notes, "_written", lambda *_: {})


@mistake("a note is written before the card says so", tests="tests/component/test_amo_notes.py")
def _unannounced(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(add_notes._Notes, "_announced", lambda _self, drafts: drafts)


@mistake("a card does not remember what its note said")
def _forgetful_card(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(KnownCard, "noted", lambda self: replace(self, proposal=None))


@mistake("two notes of one card within a second", tests="tests/component/test_amo_notes.py")
def _same_second(patch: pytest.MonkeyPatch) -> None:
    proper = KnownCard.noted
    patch.setattr(KnownCard, "noted", lambda self: replace(proper(self), noted_at=0))


@mistake("every worker refreshes the token", tests="tests/unit/test_tokens.py")
def _refresh_race(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(tokens, "LEASE", 0)


@mistake("a token pair is used before it is stored", tests="tests/unit/test_tokens.py")
def _unstored_pair(patch: pytest.MonkeyPatch) -> None:
    def refreshed(_self: SharedToken, stale: Pair, refresh: Callable[[Pair], Pair]) -> Pair:
        return refresh(stale)

    patch.setattr(SharedToken, "refreshed", refreshed)


@mistake("the last callback to come counts")
def _last_come(patch: pytest.MonkeyPatch) -> None:
    proper = Lead.told

    def told(self: Lead, callback: Callback, status: str) -> Lead:
        now = int(datetime.now(UTC).timestamp())
        lead = proper(self, replace(callback, timestamp=now), status)
        return lead if lead is self else replace(lead, status_at=0)

    patch.setattr(Lead, "told", told)


def _replace_submit(patch: pytest.MonkeyPatch, submit: Callable[..., Mapping[str, Any]]) -> None:
    from lead_submitter import submit as consumer  # noqa: PLC0415 (a module and a function share the name)

    patch.setattr(consumer, "submit", submit)
    patch.setattr(intake, "submit", submit)


_TRANSFER = "tests/component/test_bitrix_transfer.py"
_KILLED_ANYWHERE = f"{_TRANSFER}::test_d04_a_process_killed_anywhere_carries_the_deal_once"
_ARRIVES_LATE = f"{_TRANSFER}::test_d25_a_request_that_arrives_late_carries_the_deal_once"
_BRINGS_UP_TO_DATE = f"{_TRANSFER}::test_a_later_call_brings_the_deal_up_to_date_if_configured"


@mistake("a deal is made again without a look into the hub", tests=_KILLED_ANYWHERE)
def _blind_deal(patch: pytest.MonkeyPatch) -> None:
    nothing = items.find_by_origin(items.DEAL, "nobody", "nothing")
    patch.setattr(carrier.Carrier, "_search", lambda *_: nothing)


@mistake("people are told again without a look at what they were told", tests=_KILLED_ANYWHERE)
def _told_again(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Reporter, "_were_told", lambda *_: set())


@mistake("what is under way to the hub is not waited for", tests=_ARRIVES_LATE)
def _impatient(patch: pytest.MonkeyPatch) -> None:
    for module in (carrier, cards, files, report):
        patch.setattr(module, "APPEARS_WITHIN", -math.inf)


@mistake("a later call changes nothing", tests=_BRINGS_UP_TO_DATE)
def _never_up_to_date(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(carrier.Carrier, "_update", lambda *_: None)
