"""What comes in: an API Gateway HTTP API event (payload 2.0) as plain data, and the answers that go back."""

import base64
import binascii
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import msgspec

type Event = Mapping[str, Any]
type Answer = dict[str, Any]


class Refusal(Exception):
    """A request that gets one constant answer. `error` is the word in that answer: never input, never detail."""

    status = HTTPStatus.BAD_REQUEST
    retry_after: int | None = None
    """Seconds after which the sender should come again."""
    needs_attention = False
    """Whether an operator must look: counted as AttentionNeeded, which alarms."""

    def __init__(self, error: str) -> None:
        super().__init__(error)
        self.error = error

    def headers(self) -> dict[str, str]:
        """Return the headers that belong to the answer, beside the content type."""
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}

    def answer(self) -> Answer:
        """Return the answer for API Gateway."""
        return answer(self.status, headers=self.headers(), error=self.error)


class Malformed(Refusal):
    """The transport or the JSON is broken: 400."""


class Unauthenticated(Refusal):
    """Who calls, or when, is not proven: 401."""

    status = HTTPStatus.UNAUTHORIZED


class Forbidden(Refusal):
    """The proof is wrong: 403."""

    status = HTTPStatus.FORBIDDEN


class NotFound(Refusal):
    """There is no such thing, or the caller may not know: 404."""

    status = HTTPStatus.NOT_FOUND


class WrongMethod(Refusal):
    """The route exists, the method does not: 405. A deployed HTTP API answers 404 before we are asked."""

    status = HTTPStatus.METHOD_NOT_ALLOWED


class TooLarge(Refusal):
    """The body is over the limit: 413."""

    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE


class Unsupported(Refusal):
    """A content type or content encoding that is not taken: 415."""

    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE


class Meaningless(Refusal):
    """Authentic, but nothing can be made of it: 422, and the body goes to quarantine."""

    status = HTTPStatus.UNPROCESSABLE_ENTITY


class Unavailable(Refusal):
    """Nothing durable could be written, or no secret is configured: 503, and the sender should come again."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    retry_after = 30
    needs_attention = True


class InternalError(Refusal):
    """A fault of ours that nobody expected: 500."""

    status = HTTPStatus.INTERNAL_SERVER_ERROR


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request. Header names are lower-case; path parameters are decoded by API Gateway."""

    method: str
    route: str
    headers: Mapping[str, str]
    path_parameters: Mapping[str, str]
    query: Mapping[str, str]
    body: bytes
    id: str

    @classmethod
    def read(cls, event: Event, *, body_limit: int) -> "Request":
        """Read a payload 2.0 event.

        Args:
            event: as API Gateway sends it; a body that is neither text nor JSON comes in base64.
            body_limit: bytes of the decoded body.

        Raises:
            Unsupported: there is a Content-Encoding: nothing is inflated here.
            TooLarge: the body is over `body_limit`, whatever Content-Length says.
            Malformed: broken base64.
        """
        context = event["requestContext"]
        headers = {name.lower(): value for name, value in event.get("headers", {}).items()}
        if headers.get("content-encoding", "identity").lower() not in ("", "identity"):
            raise Unsupported("content_encoding_not_supported")
        return cls(
            method=context["http"]["method"],
            route=event.get("routeKey", "$default"),
            headers=headers,
            path_parameters=event.get("pathParameters") or {},
            query=event.get("queryStringParameters") or {},
            body=_body(event, body_limit),
            id=context["requestId"],
        )

    def expect(self, method: str) -> None:
        """Raise WrongMethod unless the request was made with `method`."""
        if self.method != method:
            raise WrongMethod("method_not_allowed")


def _body(event: Event, limit: int) -> bytes:
    text: str = event.get("body") or ""
    if not event.get("isBase64Encoded"):
        # "surrogatepass": an emulator may hand over what is no text; the signature then decides, not we.
        body = text.encode("utf-8", "surrogatepass")
    elif len(text) > (limit + 2) // 3 * 4:
        raise TooLarge("body_too_large")
    else:
        try:
            body = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raise Malformed("broken_base64") from None
    if len(body) > limit:
        raise TooLarge("body_too_large")
    return body


_DEEPEST = 100
"""Levels of JSON, so that what works on it later may recurse."""
_MOST_CONTAINERS, _MOST_COMMAS = 20_000, 30_000
"""Nobody means so many, and they keep us busy: 90,000 objects, or numbers, take longer than a refusal may."""
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*+\\u0000")
"""The escape, and not an escaped backslash with u0000 behind it."""
_ENDS_OF_NAMES = (b'":', b" :", b"\n:", b"\t:", b"\r:")


def read_json(body: bytes) -> Any:
    """Read JSON that means the same to everybody.

    Raises:
        Malformed: not UTF-8, a byte order mark, not JSON, NaN or Infinity, a number too large, half a surrogate
            pair, nested more than 100 deep, a name given twice in one object, a NUL in a string, more than 20,000
            objects and arrays, more than 30,000 commas.
    """
    if body.count(b",") > _MOST_COMMAS or (rb"\u0000" in body and _NUL.search(body)):
        raise Malformed("malformed_json")
    try:
        value = _DECODER.decode(body)
        # Each name in the text has one such end, and so may have parts of strings: if the objects hold as many
        # names, none was given twice. Only else it takes a second and slower reading to know.
        if _names(value) < sum(map(body.count, _ENDS_OF_NAMES)):
            json.loads(body, object_pairs_hook=_unique_names)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise Malformed("malformed_json") from None
    return value


def _names(value: Any) -> int:
    """Return how many names the objects hold together; raise ValueError if they are too many, or nested too deep."""
    names = containers = 0
    # Level by level, and containers alone: a visit to every value would take longer than reading the body did.
    level: list[Any] = [[value]]
    for _ in range(_DEEPEST + 1):
        below = []
        for each in level:
            if type(each) is dict:
                names += len(each)
                below += [item for item in each.values() if type(item) is dict or type(item) is list]
            else:
                below += [item for item in each if type(item) is dict or type(item) is list]
        if not below:
            return names
        containers += len(below)
        if containers > _MOST_CONTAINERS:
            break
        level = below
    raise ValueError


def _unique_names(pairs: list[tuple[str, Any]]) -> None:
    if len(dict(pairs)) != len(pairs):
        raise ValueError


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError
    return value


# By itself msgspec takes a microsecond and more for a number such as 1e300: a second for a large body.
_DECODER = msgspec.json.Decoder(float_hook=_finite)


def answer(status: int, /, *, headers: Mapping[str, str] | None = None, **body: object) -> Answer:
    """Return a small JSON answer for API Gateway."""
    return {
        "statusCode": int(status),
        "headers": {"Content-Type": "application/json", **(headers or {})},
        "body": json.dumps(body, ensure_ascii=False, separators=(",", ":")),
    }
