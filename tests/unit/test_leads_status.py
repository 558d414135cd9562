"""A lead's fate: whatever the order in which callbacks arrive, the newest one decides."""

from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crm_relay.cartelcrm.callbacks import Callback, callback_of
from crm_relay.cartelcrm.leads import HISTORY_LENGTH, Lead, status_of
from crm_relay.cartelcrm.statuses import STATUSES

ALIASES = {"confirmed": "approved", "отказ": "rejected", "lead_sale": "paid", "new": "hold"}


def told(event: str = "lead_approved", timestamp: int = 100, **fields: Any) -> Callback:
    return callback_of({"internal_id": "L-1", "event": event, "timestamp": timestamp, **fields})


@pytest.mark.parametrize(
    ("event", "status", "expected"),
    [
        ("x", "approved", "approved"),
        ("x", " Approved ", "approved"),
        ("x", "APPROVED", "approved"),
        ("x", "Confirmed", "approved"),
        ("x", "ОТКАЗ", "rejected"),
        ("lead_rejected", None, "rejected"),
        ("lead.rejected", None, "rejected"),
        ("status_rejected", None, "rejected"),
        ("Status.Rejected", None, "rejected"),
        ("lead_status_confirmed", None, "approved"),
        ("lead_sale", None, "paid"),
        ("lead_rejected", "approved", "approved"),
        ("lead_rejected", "no such word", "rejected"),
        ("lead_rejected", 5, "rejected"),
        ("x", "new", "hold"),
        ("lead_called", "no such word", "unknown"),
        ("lead_", None, "unknown"),
        ("unknown", None, "unknown"),
    ],
)
def test_a_status_is_read(event: str, status: object, expected: str) -> None:
    """The callback's `status` is asked before its event, an alias before the word itself, and case never matters."""
    assert status_of(told(event, status=status), ALIASES) == expected


@given(st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=100), st.text())
def test_any_word_has_a_status(event: str, status: str) -> None:
    """A word that nobody knows is unknown, never an error."""
    assert status_of(told(event, status=status), ALIASES) in {*STATUSES, "unknown"}


def test_a_lead_survives_the_table() -> None:
    """What is written is what is read; nothing is known of a lead that is not there."""
    lead = Lead().submitted("e-1", {"trigger": "api"}).told(told(), "approved")
    assert Lead.read(lead.attributes()) == lead
    assert Lead.read({}) == Lead()


def test_a_callback_is_applied_and_recorded() -> None:
    """The lead has the status, when it got it, and how."""
    lead = Lead().told(told(), "approved")
    assert (lead.status, lead.status_at) == ("approved", 100)
    assert lead.history == (
        {
            "key": told().key,
            "event": "lead_approved",
            "status": "approved",
            "word": told().data.get("status"),
            "timestamp": 100,
            "applied": True,
        },
    )
    assert lead.applied(told())
    assert not lead.applied(told(timestamp=101))


def test_a47_an_older_callback_is_recorded_and_not_applied() -> None:
    """A47: the signed timestamp decides, not the arrival."""
    lead = Lead().told(told("lead_paid", 200), "paid").told(told("lead_hold", 100), "hold")
    assert (lead.status, lead.status_at) == ("paid", 200)
    assert [entry["applied"] for entry in lead.history] == [True, False]
    assert not lead.applied(told("lead_hold", 100))


def test_an_unknown_status_leaves_the_known_one_standing() -> None:
    """News that we cannot read are kept, but do not make a paid lead an unknown one, nor a later word an old one."""
    lead = Lead().told(told("lead_hold", 100), "hold").told(told("lead_called", 300), "unknown")
    assert (lead.status, lead.status_at) == ("hold", 100)
    assert [entry["applied"] for entry in lead.history] == [True, False]
    assert lead.told(told("lead_paid", 200), "paid").status == "paid"


def test_of_two_callbacks_of_one_second_the_later_to_arrive_applies() -> None:
    """The contract has no finer order than seconds."""
    lead = Lead().told(told("lead_hold", 100), "hold").told(told("lead_paid", 100), "paid")
    assert lead.status == "paid"


def test_submission_and_callbacks_leave_each_other_alone() -> None:
    """Whichever comes first, where a lead came from and what became of it are both known."""
    origin = {"trigger": "api", "key": "website"}
    before = Lead().submitted("e-1", origin).told(told(), "approved")
    assert before == Lead().told(told(), "approved").submitted("e-1", origin)
    assert (before.external_id, before.origin, before.status) == ("e-1", origin, "approved")


def test_the_history_is_bounded() -> None:
    """A hundred entries, newest last: an item must stay small."""
    lead = Lead()
    for timestamp in range(HISTORY_LENGTH + 20):
        lead = lead.told(told(timestamp=timestamp), "approved")
    assert [entry["timestamp"] for entry in lead.history] == list(range(20, HISTORY_LENGTH + 20))


CALLBACKS = st.lists(
    st.tuples(st.integers(1, 10**9), st.sampled_from([*STATUSES, "unknown"])),
    unique_by=lambda told_: told_[0],
    max_size=12,
)


@given(CALLBACKS, st.randoms(use_true_random=False))
def test_order_and_copies_do_not_matter(callbacks: list[tuple[int, str]], random: Random) -> None:
    """Told in any order, each any number of times, a lead ends with the newest known status and each entry once."""
    arrivals = callbacks + [random.choice(callbacks) for _ in callbacks]
    random.shuffle(arrivals)
    lead = Lead()
    for timestamp, status in arrivals:
        lead = lead.told(told(timestamp=timestamp), status)
        assert lead.told(told(timestamp=timestamp), status) == lead
    known = [(timestamp, status) for timestamp, status in callbacks if status != "unknown"]
    assert (lead.status_at, lead.status) == max(known, default=(0, None))
    assert sorted(entry["timestamp"] for entry in lead.history) == sorted(timestamp for timestamp, _ in callbacks)
