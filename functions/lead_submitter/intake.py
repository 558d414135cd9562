"""Taking a lead from a caller who waits for the verdict: durable first, then tried at once."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from crm_relay.delivery.attempt import Try, attempt, each
from crm_relay.delivery.envelope import Envelope
from crm_relay.delivery.inbox import Receipt, accept, make_durable
from crm_relay.delivery.ledger import Claim, Effect, Ledger, State
from crm_relay.delivery.ports import Ports, StorageError
from crm_relay.delivery.runtime import runtime
from crm_relay.delivery.worker import LambdaContext, lease
from crm_relay.http_api import Refusal
from crm_relay.observability import log_failure
from crm_relay.outcomes import OutcomeUnknown
from lead_submitter.submission import submit

_WITHIN = 15.0
"""Seconds for the caller's own try; what takes longer is the queue's."""
_QUEUE_AFTER = 30
"""Seconds that the queue leaves to the caller's own try."""

_STATUS = {
    State.PLANNED: "queued",
    State.SENT: "queued",
    State.REJECTED: "rejected",
    State.GIVEN_UP: "given_up",
    State.NEEDS_RECONCILE: "needs_reconcile",
}


class OtherLead(Refusal):
    """The external_id is known with other fields: 409."""

    status = HTTPStatus.CONFLICT


def take(envelope: Envelope, context: LambdaContext, *, at_once: bool) -> dict[str, Any]:
    """Accept a lead and return its verdict, see `verdict`.

    The queue has the lead before CartelCRM is asked, so a crash of this try loses nothing; when its message
    comes up, a settled lead is settled.

    Args:
        envelope: what `submission` returned.
        context: of the invocation, whose end bounds the try.
        at_once: try it now; otherwise only the queue will.

    Raises:
        OtherLead: the external_id is known with another body.
        Unavailable: nothing durable could be written.
    """
    relay = runtime()
    delay = _QUEUE_AFTER if at_once else 0
    receipt = accept(relay.ports, envelope, remember=relay.settings.relay.replay_window, delay=delay)
    known = None if receipt is Receipt.ACCEPTED else _known(relay.ports, envelope)
    # Of two bodies at once the ledger has chosen one, whichever the inbox remembers.
    if receipt is Receipt.CONFLICTING and not (known and known.sha256 == envelope.sha256):
        raise OtherLead("other_lead_with_this_external_id")
    if again := known is not None and known.state is State.GIVEN_UP:
        # Its message is a dead letter: this copy takes its place.
        make_durable(relay.ports, envelope, delay=delay)
    endings = attempt(relay.ports, [Try(envelope)], each(_submit_once), lease=lease(context)) if at_once else []
    effect = next((ending for ending in endings if isinstance(ending, Effect)), None) or _known(relay.ports, envelope)
    if effect and effect.sha256 != envelope.sha256:
        raise OtherLead("other_lead_with_this_external_id")
    return verdict(envelope.key, None if again and effect and not effect.settled else effect)


def verdict(external_id: str, effect: Effect | None) -> dict[str, Any]:
    """Return what is known of a submission.

    {"external_id", "status"}, where status is queued, accepted, duplicate, rejected or needs_reconcile;
    with "id" (CartelCRM's) for accepted and duplicate, and "reason" for rejected.
    """
    if effect is None:
        return {"external_id": external_id, "status": "queued"}
    return {"external_id": external_id, "status": _STATUS.get(effect.state), **(effect.result or {})}


def _known(ports: Ports, envelope: Envelope) -> Effect | None:
    try:
        return Ledger(ports.store, ports.clock).find(envelope.name)
    except StorageError as error:
        # The lead is queued, whatever else is known of it.
        log_failure("ledger not read", error, key=envelope.key)
        return None


def _submit_once(envelope: Envelope, claim: Claim) -> Mapping[str, Any]:
    if claim.in_doubt:
        # Settling that takes longer than a caller should wait.
        raise OutcomeUnknown("earlier_try_in_doubt")
    return submit(envelope, claim, within=_WITHIN)
