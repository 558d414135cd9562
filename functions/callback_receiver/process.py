"""CallbackQueue: tell the lead what became of it, and publish that on the bus."""

from collections.abc import Mapping
from typing import Any

from crm_relay.cartelcrm.callbacks import Callback, callback_of
from crm_relay.cartelcrm.leads import SUBMISSION, Lead, status_of
from crm_relay.delivery.envelope import Envelope
from crm_relay.delivery.ledger import Claim, Ledger
from crm_relay.delivery.ports import update
from crm_relay.delivery.runtime import prepare, runtime
from crm_relay.delivery.worker import LambdaContext, Worker
from crm_relay.http_api import Event, read_json
from crm_relay.observability import observed
from crm_relay.outcomes import NotExecuted

_NEEDS_SECONDS = 10
_LEAD_KEPT = 400 * 86_400
_LINK_WAIT = 120
"""Seconds that a callback waits for the answer to its lead's submission, which it may overtake."""

_PERSONAL = frozenset({"phone", "email", "name", "first_name", "last_name", "full_name", "ip"})


@observed(refuse=None)
def handler(event: Event, context: LambdaContext) -> dict[str, list[dict[str, str]]]:
    """Work off callbacks, in any order: the signed timestamp decides what applies."""
    relay = runtime()
    worker = Worker(
        relay.ports,
        job=_process,
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
            f"lead#{callback.internal_id}",
            lambda attributes: Lead.read(attributes).told(callback, status).attributes(),
            expires_at=now + _LEAD_KEPT,
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
            "callback": _without_personal_data(callback),
        },
    )
    return {"status": status, "applied": applied}


def _may_be_ours(callback: Callback) -> bool:
    """Whether this may be a lead whose submission we have not seen the answer of."""
    external_id = callback.data.get("external_id")
    if not isinstance(external_id, str):
        return True
    ports = runtime().ports
    submission = Ledger(ports.store, ports.clock).find(f"{SUBMISSION}#{external_id}")
    return submission is not None and not submission.settled


def _without_personal_data(callback: Callback) -> Any:
    def clean(value: Any) -> Any:
        match value:
            case dict():
                return {name: clean(inner) for name, inner in value.items() if name.lower() not in _PERSONAL}
            case list():
                return [clean(inner) for inner in value]
            case _:
                return value

    return clean(callback.data)


prepare()
