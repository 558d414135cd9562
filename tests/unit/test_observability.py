"""The outermost frame of every handler: refusals are answered, surprises counted, secrets and messages kept."""

import traceback
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from crm_relay.http_api import Answer, Malformed, Refusal, Unavailable, answer
from crm_relay.observability import UnhandledError, count, log_failure, logger, needs_attention, observed
from tests.gateway import Context
from tests.relay import Relay

CANARY = "canary-7f3a"


def invoke(handler: Callable[[Any, Any], Any]) -> Any:
    return handler({}, Context(lambda: 0.0, 60.0, "function"))


def raising(error: BaseException) -> Callable[[Any, Any], Any]:
    def handler(_event: Any, _context: Any) -> Any:
        raise error

    return handler


def test_an_answer_passes(relay: Relay) -> None:
    """What goes well is neither logged nor counted by the frame."""
    assert invoke(observed()(lambda _event, _context: answer(200, ok=True)))["statusCode"] == 200
    assert relay.metrics == Counter()
    assert relay.logs == []


def test_a_refusal_is_the_answer(relay: Relay) -> None:
    """A handler refuses by raising; the refusal's own answer goes out, and its word into the log."""
    assert invoke(observed()(raising(Malformed("broken")))) == Malformed("broken").answer()
    assert relay.metrics == Counter(TurnedAway=1)
    (line,) = relay.logs
    assert (line["level"], line["message"], line["reason"]) == ("INFO", "refused", "broken")


def test_a_refusal_may_be_answered_in_another_shape(relay: Relay) -> None:
    """The leads API speaks application/problem+json."""

    def shape(refusal: Refusal) -> Answer:
        return answer(refusal.status, title=refusal.error)

    assert invoke(observed(shape)(raising(Malformed("broken"))))["body"] == '{"title":"broken"}'


def test_a_refusal_that_an_operator_should_see_is_an_alarm(relay: Relay) -> None:
    """It counts as AttentionNeeded, and not as one of the many refusals."""
    assert invoke(observed()(raising(Unavailable("not_configured"))))["statusCode"] == 503
    assert relay.metrics == Counter(AttentionNeeded=1)
    assert [line["level"] for line in relay.logs] == ["ERROR"]


def test_a_surprise_is_a_constant_500(relay: Relay) -> None:
    """The answer tells nothing, the log where it was, and the metric that it was."""
    assert invoke(observed()(raising(ValueError(CANARY)))) == answer(500, error="internal_error")
    assert relay.metrics == Counter(UnhandledError=1)
    (line,) = relay.logs
    assert line["error_type"] == "ValueError"
    assert line["error_places"][-1].startswith("test_observability.py:")
    assert CANARY not in relay.output


@pytest.mark.parametrize(
    ("error", "raised", "metrics"),
    [
        (ValueError(CANARY), UnhandledError, Counter(UnhandledError=1)),
        (Malformed("broken"), Malformed, Counter()),
    ],
)
def test_a_worker_that_fails_fails(
    relay: Relay, error: Exception, raised: type[Exception], metrics: Counter[str]
) -> None:
    """Lambda must know, so that the messages stay in their queue; of a surprise it is told the type alone."""
    with pytest.raises(raised) as failure:
        invoke(observed(refuse=None)(raising(error)))
    assert CANARY not in "".join(traceback.format_exception(failure.value))
    assert CANARY not in relay.output
    assert relay.metrics == metrics


def test_metrics_are_written_even_if_the_handler_fails(relay: Relay) -> None:
    """What was counted before the failure is not lost, and does not count for the next invocation."""

    def handler(_event: Any, _context: Any) -> Any:
        count("Done", 3)
        raise ValueError

    with pytest.raises(UnhandledError):
        invoke(observed(refuse=None)(handler))
    assert relay.metrics == Counter(Done=3, UnhandledError=1)
    invoke(observed()(lambda _event, _context: answer(200)))
    assert relay.metrics == Counter(Done=3, UnhandledError=1)


def test_a_log_line_says_which_invocation_it_was(relay: Relay) -> None:
    """The request id and the function's name stand in each line; what it appended ends with it."""

    def handler(event: Any, _context: Any) -> Answer:
        if event:
            logger.append_keys(kind="one")
        logger.info("said")
        return answer(200)

    watched = observed()(handler)
    context = Context(lambda: 0.0, 60.0, "function")
    watched({"kind": True}, context)
    watched({}, context)
    first, second = relay.logs
    assert (first["function_request_id"], first["function_name"]) == (context.aws_request_id, "function")
    assert (first["kind"], "kind" in second) == ("one", False)


def test_a_failure_is_logged_by_type_and_place(relay: Relay) -> None:
    """An exception's message may quote what it stumbled over, so it stays out."""
    with pytest.raises(KeyError) as failure:
        invoke(raising(KeyError(CANARY)))
    log_failure("not found", failure.value, key="k")
    (line,) = relay.logs
    assert (line["message"], line["error_type"], line["key"]) == ("not found", "KeyError", "k")
    assert CANARY not in relay.output


def test_what_needs_attention_is_logged_and_counted(relay: Relay) -> None:
    """The log says what it is about, the metric alarms."""

    def handler(_event: Any, _context: Any) -> Answer:
        needs_attention("paused", account="cartelcrm")
        return answer(200)

    invoke(observed()(handler))
    assert relay.metrics == Counter(AttentionNeeded=1)
    assert [(line["message"], line["account"]) for line in relay.logs] == [("paused", "cartelcrm")]
