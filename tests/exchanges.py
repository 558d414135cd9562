"""Exchanges driven by hand: a test answers each request, and sees what was asked and what came of it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from crm_relay.http_client import Exchange, Request, Response
from crm_relay.outcomes import Outcome


@dataclass
class Driven[T]:
    """An exchange that was driven by hand: the requests that it made, and what came of it."""

    requests: list[Request]
    result: T | None = None
    outcome: Outcome | None = None


def drive[T](exchange: Exchange[T], *answers: Response | Outcome) -> Driven[T]:
    """Answer an exchange's requests in order; all answers are used, and no request is left without one."""
    driven = Driven[T]([])
    waiting = list(answers)
    try:
        request = next(exchange)
        while True:
            driven.requests.append(request)
            assert waiting, f"nothing answers {request.method} {request.url}"
            answer = waiting.pop(0)
            request = exchange.throw(answer) if isinstance(answer, Outcome) else exchange.send(answer)
    except StopIteration as done:
        driven.result = done.value
    except Outcome as outcome:
        driven.outcome = outcome
    assert not waiting, "nobody asked for the last answers"
    return driven


def says(status: int, answer: object = None, headers: Mapping[str, str] | None = None) -> Response:
    """Return an answer; bytes are sent as they are, everything else as JSON."""
    return Response(status, headers or {}, answer if isinstance(answer, bytes) else json.dumps(answer).encode())
