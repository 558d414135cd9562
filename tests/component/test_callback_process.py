"""CallbackQueue's worker: what a lead is told, and what subscribers hear of it."""

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest

from tests.relay import Crash, Relay
from workbench.sandboxes.faults import Timeout

LEAD = {"external_id": "e-1", "phone": "+380501234567", "country": "UA", "first_name": "Олена"}
LINK_WAIT = 45


@pytest.fixture
def relay() -> Any:
    """A relay whose sandbox never calls back by itself."""
    with Relay(callback_url=None) as relay:
        yield relay


def submitted(relay: Relay) -> str:
    """Submit a lead and return CartelCRM's id of it."""
    return str(relay.post_lead(LEAD).json()["id"])


def published(relay: Relay) -> list[Mapping[str, Any]]:
    return [detail for kind, detail in relay.bus.events if kind == "CartelCallback"]


def effect(relay: Relay) -> Mapping[str, Any]:
    (only,) = relay.items("effect#cartelcrm.callback#").values()
    return only


def test_subscribers_hear_what_became_of_a_lead(relay: Relay) -> None:
    """The event names the lead by both ids, says where it came from, what happened, and whether that applies."""
    lead_id = submitted(relay)
    callback = relay.callback(internal_id=lead_id, event="lead_approved", payout=12.5)
    relay.post_callback(callback)
    relay.run()
    (detail,) = published(relay)
    (key,) = relay.items("inbound#cartelcrm.callback#")
    assert detail == {
        "id": key.removeprefix("inbound#cartelcrm.callback#"),
        "cartelcrm_id": lead_id,
        "external_id": "e-1",
        "origin": {"trigger": "api", "key": "website"},
        "event": "lead_approved",
        "status": "approved",
        "applied": True,
        "timestamp": callback["timestamp"],
        "callback": {name: callback[name] for name in ("internal_id", "event", "timestamp", "payout")},
    }
    assert (effect(relay)["state"], effect(relay)["result"]) == ("CONFIRMED", {"status": "approved", "applied": True})
    assert relay.metrics["Done"] == 1


def test_the_lead_knows_its_fate(relay: Relay) -> None:
    """GET /leads/{external_id} shows the status and how it came about."""
    lead_id = submitted(relay)
    now = int(relay.clock.now)
    for event, timestamp in (("lead_hold", now - 9), ("lead_paid", now - 1), ("lead_approved", now - 5)):
        relay.post_callback(relay.callback(internal_id=lead_id, event=event, timestamp=timestamp))
    relay.run()
    shown = relay.get_lead("e-1").json()
    assert (shown["lead_status"], shown["lead_status_at"]) == ("paid", now - 1)
    assert [(entry["status"], entry["applied"]) for entry in shown["history"]] == [
        ("hold", True),
        ("paid", True),
        ("approved", False),
    ]


def test_words_are_read_through_the_alias_table(relay: Relay) -> None:
    """relay.toml translates CartelCRM's words, whatever their case."""
    relay.configure("cartelcrm", statuses={"Сделка": "paid"})
    relay.post_callback(relay.callback(internal_id=submitted(relay), event="x", status=" СДЕЛКА "))
    relay.run()
    assert [detail["status"] for detail in published(relay)] == ["paid"]


def test_personal_data_do_not_reach_the_bus(relay: Relay) -> None:
    """Subscribers know the lead by its ids; phones, names and addresses stay behind, however deep they lie."""
    personal = {"phone": "+380501234567", "Email": "o@example.com", "FIRST_NAME": "Олена", "ip": "203.0.113.7"}
    fields = {**personal, "kept": 1, "deep": [{**personal, "kept": 2}], "status": "approved"}
    relay.post_callback(relay.callback(internal_id=submitted(relay), **fields))
    relay.run()
    (detail,) = published(relay)
    assert detail["callback"]["deep"] == [{"kept": 2}]
    assert detail["callback"]["kept"] == 1
    for value in personal.values():
        assert value not in json.dumps(detail, ensure_ascii=False)


# Callbacks that overtake the answer to the submission


def test_a_callback_waits_for_the_submission_that_it_overtook(relay: Relay) -> None:
    """While we do not know what became of a submission, CartelCRM may know more: the event waits, and is complete."""
    relay.crm.faults.add(Timeout(when="after"))
    assert relay.post_lead(LEAD).json()["status"] == "queued"
    (lead_id,) = relay.crm.leads
    relay.post_callback(relay.callback(internal_id=lead_id, event="lead_new"))
    relay.run()
    assert published(relay) == []
    assert (effect(relay)["state"], effect(relay)["last_error"]) == ("PLANNED", "submission_not_answered_yet")
    relay.run(600)
    (detail,) = published(relay)
    assert (detail["external_id"], detail["origin"]["trigger"], detail["applied"]) == ("e-1", "api", True)


def test_a_callback_for_a_lead_of_others_is_published_in_the_end(relay: Relay) -> None:
    """A callback that does not name our id may be of a submission under way: it waits for that, but not for ever."""
    relay.post_callback(relay.callback())
    relay.run(LINK_WAIT - 1)
    assert published(relay) == []
    relay.run(LINK_WAIT * 3)
    (detail,) = published(relay)
    assert (detail["external_id"], detail["origin"], detail["applied"]) == (None, None, True)
    assert effect(relay)["tries"] == 0, "waiting is no failure"


def test_a_callback_that_names_a_lead_of_others_does_not_wait(relay: Relay) -> None:
    """A lead that somebody submitted without us is news at once, under the external_id that the callback names."""
    relay.post_callback(relay.callback(external_id="theirs"))
    relay.run()
    (detail,) = published(relay)
    assert (detail["external_id"], detail["origin"], detail["applied"]) == ("theirs", None, True)


# Faults


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("port", ["store.get", "store.put", "bus.publish"])
@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_fault_delays_a_callback_and_no_more(relay: Relay, port: str, call: int, after: bool) -> None:
    """Whatever the table or the bus does once, the lead is told once, and subscribers hear of it under one id."""
    relay.post_callback(relay.callback(internal_id=submitted(relay)))
    relay.calls.clear()
    relay.before_call = lambda name: (
        relay.fail(name, times=1, after=after) if name == port and relay.calls.count(name) == call else None
    )
    relay.run(3600)
    assert effect(relay)["state"] == "CONFIRMED"
    assert len({detail["id"] for detail in published(relay)}) == 1
    told_before_the_fault = after or (port, call) == ("store.put", 3)
    assert len(published(relay)) == 1 or told_before_the_fault
    (lead,) = relay.items("lead#").values()
    assert len(lead["history"]) == 1
    assert not relay.queues["callbacks"].messages


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("call", range(1, 8))
def test_a_crash_anywhere_leaves_one_outcome(relay: Relay, call: int, after: bool) -> None:
    """A worker that dies before or after any of its calls is followed by one that ends the work."""
    relay.post_callback(relay.callback(internal_id=submitted(relay)))
    relay.calls.clear()
    relay.before_call = lambda name: (
        relay.fail(name, times=1, after=after, error=Crash()) if len(relay.calls) == call else None
    )
    relay.run(3600)
    assert effect(relay)["state"] == "CONFIRMED"
    assert len({detail["id"] for detail in published(relay)}) == 1
    (lead,) = relay.items("lead#").values()
    assert [entry["applied"] for entry in lead["history"]] == [True]


def test_the_same_message_again_does_nothing(relay: Relay) -> None:
    """The queue may deliver twice; the ledger does not."""
    relay.post_callback(relay.callback(internal_id=submitted(relay)))
    (message,) = relay.queues["callbacks"].messages.values()
    relay.run()
    relay.queues["callbacks"].send(message.body)
    relay.run()
    assert len(published(relay)) == 1
    assert relay.metrics["Done"] == 2


@pytest.mark.parametrize("body", ["", "hello", "{}", '{"v":2}', "[" * 100_000])
def test_d02_what_is_not_ours_goes_to_the_dead_letters(relay: Relay, body: str) -> None:
    """D02: a message that is no envelope is buried with the reason, and does not come back."""
    relay.queues["callbacks"].send(body)
    relay.run()
    assert [(letter.body, letter.reason) for letter in relay.dead_letters["callbacks"].messages.values()] == [
        (body, "not_ours")
    ]
    assert not relay.queues["callbacks"].messages
    assert relay.metrics == Counter(Lost=1)


def test_d01_one_bad_message_does_not_hold_up_the_others(relay: Relay) -> None:
    """D01: of a batch of ten with one that cannot be worked off, nine are done and that one alone comes back."""
    relay.configure("relay", give_up_after_seconds=60)
    lead_id = submitted(relay)
    for number in range(10):
        relay.post_callback(relay.callback(internal_id=lead_id, event=f"event-{number}"))
    messages = relay.queues["callbacks"].messages
    poison = list(messages.values())[4]
    poison.body = poison.body.replace('\\"internal_id\\"', '\\"internal_odd\\"')
    relay.work("callbacks")
    assert len(published(relay)) == 9
    assert list(messages.values()) == [poison]
    assert relay.metrics["UnhandledError"] == 1
    relay.run(3600)
    assert [letter.body for letter in relay.dead_letters["callbacks"].messages.values()] == [poison.body]


def test_d08_what_cannot_be_finished_is_not_begun(relay: Relay) -> None:
    """D08: with less time left than a callback may need, it goes back to the queue untouched."""
    relay.post_callback(relay.callback(internal_id=submitted(relay)))
    relay.calls.clear()
    batch = relay.queues["callbacks"].receive(limit=10, visibility=360)
    answer = relay.invoke("callback_process", {"Records": [message.record() for message in batch]}, seconds=9)
    assert answer == {"batchItemFailures": [{"itemIdentifier": message.id} for message in batch]}
    assert relay.calls == ["queue.hand_back"]
    relay.run(1)
    assert len(published(relay)) == 1
