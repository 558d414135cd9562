"""Logs, metrics and the outermost frame of every handler.

A log line holds keys, states and counts; never a body, a header, a secret, a phone or an exception's message.
"""

import logging
import warnings
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from traceback import extract_tb
from typing import Any

from aws_lambda_powertools import Logger, Metrics
from aws_lambda_powertools.metrics import MetricUnit

from crm_relay.http_api import Answer, InternalError, Refusal, Unavailable
from crm_relay.outcomes import NotConfigured

type Handler = Callable[[Any, Any], Any]

_REQUEST_ID = "requestContext.requestId"

logger = Logger()
metrics = Metrics()

# At INFO it tells at every start where it found credentials.
logging.getLogger("botocore").setLevel(logging.WARNING)
# A receiver that only refused a stranger has nothing to count.
warnings.filterwarnings("ignore", "No application metrics to publish")


def count(metric: str, number: int = 1) -> None:
    """Count something.

    Received, Replayed, TurnedAway (at the door), Swept (no call told of it); Done, Waiting, Refused (by the CRM), Lost
    (to the dead letters); AttentionNeeded, UnhandledError.
    """
    metrics.add_metric(name=metric, unit=MetricUnit.Count, value=number)


def needs_attention(problem: str, **facts: Any) -> None:
    """Log and count something that an operator must look at; the metric AttentionNeeded alarms."""
    logger.error(problem, **facts)
    count("AttentionNeeded")


def log_failure(problem: str, error: BaseException, **facts: Any) -> None:
    """Log a failure by its type and place. Its message stays out: it may quote what it stumbled over."""
    places = [f"{Path(frame.filename).name}:{frame.lineno}" for frame in extract_tb(error.__traceback__)]
    logger.error(problem, error_type=type(error).__name__, error_places=places, **facts)


def log_fault(error: BaseException, **facts: Any) -> None:
    """Log and count a failure that nobody expected: a fault of ours."""
    log_failure("unhandled", error, **facts)
    count("UnhandledError")


def observed(
    refuse: Callable[[Refusal], Answer] | None = Refusal.answer,
) -> Callable[[Handler], Handler]:
    """Decorate a handler: context in logs, metrics flushed, refusals answered, surprises counted.

    Args:
        refuse: makes the answer to a Refusal. None for a worker, which answers nobody: its failures are
            raised, so that Lambda counts them and the messages stay in their queue.
    """

    def decorate(handler: Handler) -> Handler:
        @wraps(handler)
        def watched(event: Any, context: Any) -> Any:
            try:
                return handler(event, context)
            except NotConfigured:
                if refuse is None:
                    raise
                needs_attention("not configured")
                return refuse(Unavailable("not_configured"))
            except Refusal as refusal:
                if refuse is None:
                    raise
                if refusal.needs_attention:
                    needs_attention("refused", reason=refusal.error)
                else:
                    logger.info("refused", reason=refusal.error)
                    count("TurnedAway")
                return refuse(refusal)
            except Exception as error:  # noqa: BLE001 (the outermost frame)
                log_fault(error)
                if refuse is None:
                    raise UnhandledError(type(error).__name__) from None
                return refuse(InternalError("internal_error"))

        counted: Handler = metrics.log_metrics(capture_cold_start_metric=True)(watched)
        return logger.inject_lambda_context(correlation_id_path=_REQUEST_ID, clear_state=True)(counted)

    return decorate


class UnhandledError(Exception):
    """What Lambda is told when a worker fails: the type, not the message."""
