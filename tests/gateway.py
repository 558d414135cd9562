"""API Gateway and Lambda as a handler meets them: events of payload format 2.0, contexts, answers."""

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import parse_qsl, unquote

_TEXT = ("text/", "application/json", "application/xml", "application/javascript")
_HOST = {"host": "relay.test", "x-forwarded-for": "203.0.113.7", "x-forwarded-proto": "https"}


def http_event(
    method: str,
    target: str,
    headers: Mapping[str, str],
    body: bytes = b"",
    *,
    route: str | None = None,
    parameters: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Return the event of a request; `target` is path and query as sent, `route` the path of the route.

    Header names come in lower case. A body is text if its type is, else base64, also where there is no type.
    """
    path, _, query = target.partition("?")
    lower = {name.lower(): value for name, value in headers.items()}
    key = f"{method} {route or path}"
    http = {"method": method, "path": unquote(path), "protocol": "HTTP/1.1", "sourceIp": "203.0.113.7", "userAgent": ""}
    event: dict[str, Any] = {
        "version": "2.0",
        "routeKey": key,
        "rawPath": unquote(path),
        "rawQueryString": query,
        "headers": _HOST | lower,
        "requestContext": {
            "accountId": "123456789012",
            "apiId": "a1b2c3d4e5",
            "domainName": "relay.test",
            "domainPrefix": "relay",
            "http": http,
            "requestId": "JKJaXmPLvHcESHA=",
            "routeKey": key,
            "stage": "$default",
            "time": "09/Oct/2025:08:53:20 +0000",
            "timeEpoch": 1_760_000_000_000,
        },
        "isBase64Encoded": False,
    }
    if query:
        event["queryStringParameters"] = dict(parse_qsl(query, keep_blank_values=True))
    if parameters:
        event["pathParameters"] = dict(parameters)
    return event | (with_body(body, lower.get("content-type", "")) if body else {})


def with_body(body: bytes, content_type: str) -> dict[str, Any]:
    """Return the part of an event that carries a body."""
    if content_type.startswith(_TEXT):
        try:
            return {"body": body.decode(), "isBase64Encoded": False}
        except UnicodeDecodeError:
            pass  # no string can carry it
    return {"body": base64.b64encode(body).decode(), "isBase64Encoded": True}


@dataclass(frozen=True)
class Response:
    """What the client gets of a handler's answer; header names in lower case."""

    status: int
    headers: Mapping[str, str]
    text: str

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> Self:
        assert answer.keys() == {"statusCode", "headers", "body"}
        assert isinstance(answer["body"], str)
        headers = {name.lower(): value for name, value in answer["headers"].items()}
        return cls(answer["statusCode"], headers, answer["body"])

    def json(self) -> Any:
        return json.loads(self.text)


@dataclass(frozen=True)
class Context:
    """Lambda's context; `deadline` is in the seconds of `time`."""

    time: Callable[[], float]
    deadline: float
    function_name: str
    memory_limit_in_mb: int = 512
    invoked_function_arn: str = "arn:aws:lambda:eu-central-1:123456789012:function:relay"
    aws_request_id: str = "c6af9ac6-7b61-11e6-9a41-93e8deadbeef"

    def get_remaining_time_in_millis(self) -> int:
        return max(0, int((self.deadline - self.time()) * 1000))
