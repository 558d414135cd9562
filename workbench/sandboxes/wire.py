"""What crosses the wire between a caller and a sandbox, free of any transport."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Self
from urllib.parse import parse_qs, unquote


@dataclass(frozen=True, slots=True)
class SandboxRequest:
    """One HTTP request: `path` and `query` as they were sent, header names in lower case, raw body."""

    method: str
    path: str
    query: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    @classmethod
    def of(cls, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Self:
        """The request whose request line names `target`: path, and query if any, still percent-encoded."""
        path, _, query = target.partition("?")
        return cls(method, path, query, {name.lower(): value for name, value in headers.items()}, body)

    @property
    def parts(self) -> tuple[str, ...]:
        """The path's segments, each decoded by itself: an encoded slash stays inside its segment."""
        return tuple(unquote(part) for part in self.path.removeprefix("/").split("/"))

    @property
    def parameters(self) -> dict[str, list[str]]:
        """The decoded query string."""
        return parse_qs(self.query, keep_blank_values=True)


class Break(Enum):
    """Where the connection breaks off."""

    NOWHERE = "nowhere"
    BEFORE_ANSWER = "before_answer"
    IN_BODY = "in_body"


@dataclass(frozen=True, slots=True)
class SandboxResponse:
    """One HTTP answer and the manner of its delivery, which each transport acts out in its own way.

    `delay` seconds pass before the first byte (infinite: the answer never comes); the body then takes `drip`
    seconds, byte by byte; if not `announced`, no Content-Length tells how long it is.
    """

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    delay: float = 0.0
    drip: float = 0.0
    announced: bool = True
    breaks: Break = Break.NOWHERE

    @property
    def told(self) -> int | None:
        """The status, if the caller ever hears of it."""
        return None if self.delay == math.inf or self.breaks is Break.BEFORE_ANSWER else self.status

    def retry_after(self, value: object) -> Self:
        """The same answer with a Retry-After header."""
        return replace(self, headers={**self.headers, "retry-after": str(value)})


NEVER = SandboxResponse(status=504, delay=math.inf)
RESET = SandboxResponse(status=502, breaks=Break.BEFORE_ANSWER)


def json_answer(status: int, content: object) -> SandboxResponse:
    """An answer whose body is `content` as JSON."""
    return SandboxResponse(status, json.dumps(content).encode(), {"content-type": "application/json"})


def readable(response: SandboxResponse) -> SandboxResponse:
    """The same answer for a person at a terminal: JSON in its own letters, and a line end."""
    if response.headers.get("content-type") != "application/json":
        return response
    text = json.dumps(json.loads(response.body), ensure_ascii=False)
    return replace(response, body=f"{text}\n".encode())
