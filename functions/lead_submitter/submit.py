"""LeadQueue (from the API and from `LeadSubmitted` on the bus), and direct invoke: submit leads to CartelCRM."""

import json
import uuid
from collections.abc import Mapping
from typing import Any

from crm_relay.cartelcrm.client import STATUS_DEADLINE, SUBMIT_DEADLINE
from crm_relay.cartelcrm.leads import SUBMISSION
from crm_relay.delivery.attempt import each
from crm_relay.delivery.envelope import Envelope, NotOurs
from crm_relay.delivery.runtime import prepare, runtime
from crm_relay.delivery.worker import LambdaContext, Worker
from crm_relay.http_api import Event
from crm_relay.observability import observed
from lead_submitter.intake import OtherLead, take
from lead_submitter.submission import account, http_client, submission, submit

NEEDS_SECONDS = 4 * STATUS_DEADLINE + SUBMIT_DEADLINE + 20
"""A look-up before, the submission with one more request, a look-up after with one more; four waits for the budget."""


@observed(refuse=None)
def handler(event: Event, context: LambdaContext) -> dict[str, Any]:
    """Work off an SQS event, or submit the one lead that the event is and return its verdict."""
    if "Records" not in event:
        return _submit_one(event, context)
    relay = runtime()
    worker = Worker(
        relay.ports,
        job=each(submit),
        needs_seconds=NEEDS_SECONDS,
        give_up_after=relay.settings.relay.give_up_after_seconds,
        read=_read,
        ready=lambda _: account(relay).check(),
    )
    return worker.run(event, context)


def _submit_one(event: Event, context: LambdaContext) -> dict[str, Any]:
    from lead_submitter.lead import InvalidLead  # noqa: PLC0415 (see _submission)

    try:
        return take(_submission(event, {"trigger": "invoke"}, uuid.uuid4().hex), context, at_once=True)
    except InvalidLead as invalid:
        return {"status": "invalid", "errors": invalid.errors}
    except OtherLead as refusal:
        return {"status": "conflict", "error": refusal.error}


def _read(body: str) -> Envelope:
    try:
        envelope = Envelope.decode(body)
    except NotOurs:
        return _read_bus_event(body)
    if envelope.kind != SUBMISSION:
        raise NotOurs("other_kind")  # a redrive into the wrong queue
    return envelope


def _read_bus_event(body: str) -> Envelope:
    from lead_submitter.lead import InvalidLead  # noqa: PLC0415 (see _submission)

    try:
        match json.loads(body):
            case {"detail-type": "LeadSubmitted", "detail": lead, "id": str(event_id), "source": str(source)}:
                return _submission(lead, {"trigger": "bus", "source": source}, event_id)
            case _:
                raise NotOurs
    except InvalidLead:
        raise NotOurs("invalid_lead") from None
    except (ValueError, RecursionError):
        raise NotOurs from None


def _submission(fields: object, origin: Mapping[str, Any], correlation_id: str) -> Envelope:
    # pydantic and the tables of phone numbers load here: a message from the API needs neither.
    from lead_submitter.lead import read_lead  # noqa: PLC0415 (see _submission)

    lead = read_lead(fields)
    now = runtime().ports.clock.time()
    return submission(lead.external_id, lead.body(), origin=origin, now=now, correlation_id=correlation_id)


prepare(http_client)
