"""HTTP requests as events of payload format 2.0, and functions' answers as HTTP responses.

Facts: docs.aws.amazon.com, "Create AWS Lambda proxy integrations for HTTP APIs".
"""

import base64
import binascii
import json
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl, unquote

from workbench.stack.routes import Match
from workbench.stack.template import ACCOUNT

# Seen on AWS: everything else, a form and a body without a type included, arrives as base64.
_TEXT = ("text/", "application/json", "application/xml", "application/javascript")


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A request as it came in; `target` is the request line's path and query."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    source_ip: str
    protocol: str = "HTTP/1.1"

    @property
    def path(self) -> str:
        """The path as API Gateway sees it: decoded, and cut at a question mark that the decoding brought to light."""
        return unquote(self.target.partition("?")[0]).partition("?")[0]


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """What the client gets."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


def message(status: int, text: str) -> HttpResponse:
    """An answer of API Gateway itself."""
    return HttpResponse(status, (("content-type", "application/json"),), f'{{"message":"{text}"}}'.encode())


def event(request: HttpRequest, match: Match, host: str) -> dict[str, Any]:
    """The event that the function of the matched route gets."""
    headers = _joined((name.lower(), value) for name, value in request.headers if name.lower() != "cookie")
    cookies = [
        cookie.strip() for name, value in request.headers if name.lower() == "cookie" for cookie in value.split(";")
    ]
    content_type = headers.get("content-type", "")
    now = datetime.now(UTC)
    query = request.target.partition("?")[2]
    return {
        "version": "2.0",
        "routeKey": match.key,
        "rawPath": request.path,
        "rawQueryString": query,
        **({"cookies": cookies} if cookies else {}),
        "headers": {
            **headers,
            "x-amzn-trace-id": f"Root=1-{int(time.time()):08x}-{uuid.uuid4().hex[:24]}",
            "x-forwarded-for": ", ".join(filter(None, [headers.get("x-forwarded-for"), request.source_ip])),
            "x-forwarded-port": host.rpartition(":")[2],
            "x-forwarded-proto": "http",
        },
        **({"queryStringParameters": _joined(parse_qsl(query, keep_blank_values=True))} if query else {}),
        "requestContext": {
            "accountId": ACCOUNT,
            "apiId": "local",
            "domainName": host,
            "domainPrefix": host.partition(".")[0],
            "http": {
                "method": request.method,
                "path": request.path,
                "protocol": request.protocol,
                "sourceIp": request.source_ip,
                "userAgent": headers.get("user-agent", ""),
            },
            "requestId": str(uuid.uuid4()),
            "routeKey": match.key,
            "stage": "$default",
            "time": now.strftime("%d/%b/%Y:%H:%M:%S +0000"),
            "timeEpoch": int(now.timestamp() * 1000),
        },
        **({"pathParameters": dict(match.parameters)} if match.parameters else {}),
        **_body(request.body, content_type),
    }


def _joined(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    values: dict[str, str] = {}
    for name, value in pairs:
        values[name] = f"{values[name]},{value}" if name in values else value
    return values


def _body(body: bytes, content_type: str) -> dict[str, Any]:
    if not body:
        return {"isBase64Encoded": False}
    if content_type.strip().lower().startswith(_TEXT):
        try:
            return {"body": body.decode("utf-8"), "isBase64Encoded": False}
        except UnicodeDecodeError:
            pass  # it cannot be a string of the event
    return {"body": base64.b64encode(body).decode(), "isBase64Encoded": True}


def response(answer: Any) -> HttpResponse:
    """The response that a function's answer stands for; an answer without `statusCode` is the body itself."""
    if not (isinstance(answer, Mapping) and "statusCode" in answer):
        text = answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)
        return HttpResponse(200, (("content-type", "application/json"),), text.encode())
    try:
        headers = [(str(name).lower(), _header(value)) for name, value in (answer.get("headers") or {}).items()]
        headers += [("set-cookie", _header(cookie)) for cookie in answer.get("cookies") or ()]
        if not any(name == "content-type" for name, _ in headers):
            headers.append(("content-type", "text/plain; charset=utf-8"))
        body = _bytes(answer.get("body"), encoded=bool(answer.get("isBase64Encoded")))
        return HttpResponse(_status(answer["statusCode"]), tuple(headers), body)
    except (ValueError, TypeError, AttributeError):
        return message(500, "Internal Server Error")


def _header(value: object) -> str:
    if not isinstance(value, str | int | float) or "\n" in str(value) or "\r" in str(value):
        raise ValueError("not a header value")
    return str(value).lower() if isinstance(value, bool) else str(value)


def _status(status: object) -> int:
    if not 100 <= (number := int(str(status))) <= 599:
        raise ValueError("not a status code")
    return number


def _bytes(body: object, *, encoded: bool) -> bytes:
    if body is None:
        return b""
    if not isinstance(body, str):
        raise TypeError("a body is a string")
    try:
        return base64.b64decode(body, validate=True) if encoded else body.encode()
    except binascii.Error as error:
        raise ValueError("not base64") from error
