"""Every minute: send what waits in the outbox."""

from crm_relay.delivery.outbox import drain
from crm_relay.delivery.runtime import prepare, runtime
from crm_relay.delivery.worker import LambdaContext
from crm_relay.http_api import Event
from crm_relay.observability import count, logger, needs_attention, observed

_STOP_BEFORE = 5.0
"""Seconds before the function's end at which to stop."""


@observed(refuse=None)
def handler(_event: Event, context: LambdaContext) -> dict[str, int]:
    """Drain the outbox; return {"sent", "failed"}."""
    ports = runtime().ports
    left = context.get_remaining_time_in_millis() / 1000
    sent, failed = drain(ports, until=ports.clock.time() + left - _STOP_BEFORE)
    if sent:
        count("Done", sent)
    if failed:
        count("Waiting", failed)
        needs_attention("outbox not drained", sent=sent, failed=failed)
    elif sent:
        logger.info("outbox drained", sent=sent)
    return {"sent": sent, "failed": failed}


prepare()
