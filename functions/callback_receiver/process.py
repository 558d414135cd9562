"""CallbackQueue: tell the lead what became of it, and publish that on the bus."""

from collections.abc import Mapping
from typing import Any

from crm_relay.cartelcrm.callbacks import Callback, callback_of, without_personal_data
from crm_relay.cartelcrm.leads import EXTERNAL_ID_LENGTH, KEPT, SUBMISSION, Lead, lead_key, status_of
from crm_relay.delivery.attempt import each
from crm_relay.delivery.envelope import Envelope
from crm_relay.delivery.ledger import Claim, Ledger
from crm_relay.delivery.ports import update
from crm_relay.delivery.runtime import prepare, runtime
from crm_relay.delivery.worker import LambdaContext, Worker
from crm_relay.http_api import Event, read_json
from crm_relay.observability import observed
from crm_relay.outcomes import NotExecuted

_NEEDS_SECONDS = 10
_LINK_WAIT = 45
"""Seconds that a callback waits for the answer to its lead's submission, which it may overtake."""


@observed(refuse=None)
def handler(event: Event, context: LambdaContext) -> dict[str, list[dict[str, str]]]:
    """Work off callbacks, in any order: the signed timestamp decides what applies."""
    relay = runtime()
    worker = Worker(
        relay.ports,
        job=each(_process),
        needs_seconds=_NEEDS_SECONDS,
        give_up_after=relay.settings.relay.give_up_after_seconds,
    )
    return worker.run(event, context)


def _process(envelope: Envelope, _claim: Claim) -> Mapping[str, Any]:
    relay = runtime()
    now = int(relay.ports.clock.time())
    callback = callback_of(read_json(envelope.payload["body"].encode()))
    status = status_of(callback, relay.settings.cartelcrm.aliases)
    lead = Lead.read(
        update(
            relay.ports.store,
            lead_key(callback.internal_id),
            lambda attributes: Lead.read(attributes).told(callback, status).attributes(),
            expires_at=now + KEPT,
        )
    )
    if lead.external_id is None and now - envelope.accepted_at < _LINK_WAIT and _may_be_ours(callback):
        raise NotExecuted("submission_not_answered_yet")
    applied = lead.applied(callback)
    # The bus takes no key, so a crash right here publishes twice; `id` is for subscribers to tell.
    relay.ports.bus.publish(
        "CartelCallback",
        {
            "id": callback.key,
            "cartelcrm_id": callback.internal_id,
            "external_id": lead.external_id or callback.data.get("external_id"),
            "origin": lead.origin,
            "event": callback.event,
            "status": status,
            "applied": applied,
            "timestamp": callback.timestamp,
            "callback": without_personal_data(callback.data),
        },
    )
    return {"status": status, "applied": applied}


def _may_be_ours(callback: Callback) -> bool:
    """Whether this may be a lead whose submission we have not seen the answer of."""
    external_id = callback.data.get("external_id")
    if not isinstance(external_id, str) or len(external_id) > EXTERNAL_ID_LENGTH:
        return external_id is None
    ports = runtime().ports
    submission = Ledger(ports.store, ports.clock).find(f"{SUBMISSION}#{external_id}")
    return submission is not None and not submission.settled


prepare()
