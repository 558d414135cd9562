"""POST /cartelcrm/callback: prove the sender, make the callback durable, answer."""

import hashlib
from typing import Any

from crm_relay.cartelcrm.callbacks import KIND, read_callback
from crm_relay.delivery.envelope import Envelope
from crm_relay.delivery.inbox import Receipt, accept, quarantine
from crm_relay.delivery.runtime import prepare, runtime
from crm_relay.http_api import (
    Answer,
    Event,
    Forbidden,
    Meaningless,
    Request,
    Unauthenticated,
    answer,
)
from crm_relay.observability import observed
from crm_relay.outcomes import NotConfigured
from crm_relay.signing import TOLERANCE, Verdict, verify


@observed()
def handler(event: Event, _context: Any) -> Answer:
    """Answer one callback as the CartelCRM contract says."""
    relay = runtime()
    window = relay.settings.relay.replay_window
    request = Request.read(event, body_limit=relay.settings.relay.callback_body_limit_bytes)
    request.expect("POST")
    now = relay.ports.clock.time()
    match verify(
        request.body,
        request.headers,
        relay.secrets().cartelcrm.callback_secrets_at(now),
        now=now,
        require_prefix=relay.settings.cartelcrm.require_signature_prefix,
    ):
        case Verdict.NO_SECRET:
            raise NotConfigured
        case Verdict.STALE:
            raise Unauthenticated("timestamp_out_of_range")
        case Verdict.FORGED:
            raise Forbidden("bad_signature")
        case Verdict.GENUINE:
            pass
    try:
        callback = read_callback(request.body, now=now, oldest=now - window)
    except Meaningless as refusal:
        quarantine(relay.ports, KIND, request.body, refusal.error)
        raise
    digest = hashlib.sha256(request.body).hexdigest()
    envelope = Envelope(KIND, callback.key, {"body": request.body.decode()}, int(now), request.id, digest)
    # Until it is stale: its timestamp may lie ahead of our clock by the tolerance.
    receipt = accept(relay.ports, envelope, remember=window + TOLERANCE + 1)
    if receipt is Receipt.ACCEPTED:
        return answer(200, ok=True)
    if receipt is Receipt.CONFLICTING:
        # Refusing would only make CartelCRM repeat it.
        quarantine(relay.ports, KIND, request.body, "other_body_for_the_same_key")
    return answer(200, ok=True, replay=True)


prepare()
