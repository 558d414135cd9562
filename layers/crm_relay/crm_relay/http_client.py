"""What goes out: the one HTTP client for all CRMs, with a deadline, a response cap and no redirects.

An operation is a generator that yields requests and is sent responses; whoever drives it does the I/O
(the idea is httpx's own, `httpx/_auth.py`), so a test can drive it without any network.
"""

import json
import logging
import math
import socket
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from typing import Any, override

import httpcore
import httpx

from crm_relay import __version__
from crm_relay.outcomes import NotExecuted, Outcome, OutcomeUnknown, Unreachable

# At INFO it logs every URL, and the URLs of some CRMs hold a secret.
logging.getLogger("httpx").setLevel(logging.WARNING)

_THIS_MACHINE = "127.0.0.1"
"""Where sandboxes are: the one address that is not public and may stand in a configuration."""
CLIENT_OPTIONS: Mapping[str, Any] = {
    "headers": {"User-Agent": f"crm-relay/{__version__}", "Accept-Encoding": "identity"},
    "follow_redirects": False,
    "trust_env": False,
}
"""What every client of httpx is made with."""
RESPONSE_LIMIT = 1024 * 1024
"""Bytes of a response's body that are read; a longer one has no usable answer."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request to a CRM.

    `deadline` is in seconds and covers everything from connecting to the last byte. `response_limit` is in bytes;
    None leaves it to the client. The URL does not show: those of Bitrix24 hold a secret.
    """

    method: str
    url: str = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    content: bytes = field(default=b"", repr=False)
    deadline: float = 15.0
    response_limit: int | None = None


@dataclass(frozen=True, slots=True)
class Response:
    """One whole response. Header names are lower-case."""

    status: int
    headers: Mapping[str, str] = field(repr=False)
    content: bytes = field(repr=False)

    def json_object(self) -> dict[str, Any]:
        """Return the body if it is a JSON object, else an empty dict: an HTML page answers nothing."""
        try:
            body = json.loads(self.content)
        except (ValueError, RecursionError):
            return {}
        return body if isinstance(body, dict) else {}

    def retry_after(self, now: float) -> float | None:
        """Return the seconds that Retry-After asks for, as a number or as an HTTP date; None if it is neither."""
        value = self.headers.get("retry-after", "").strip()
        if value.isascii() and value.isdigit():
            return float(value[:10])
        try:
            date = parsedate_to_datetime(value)
            return max(0.0, (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - now)
        except (ValueError, OverflowError):
            return None


type Exchange[T] = Generator[Request, Response, T]
"""An operation: it yields requests, is sent responses (or thrown an Outcome), and returns its result."""


class HttpClient:
    """Drives exchanges over real connections, which it keeps open between calls."""

    def __init__(
        self,
        transport: httpx.BaseTransport | None = None,
        *,
        response_limit: int = RESPONSE_LIMIT,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make a client.

        Args:
            transport: what carries the requests; by default TCP and TLS under the request's deadline.
            response_limit: bytes.
            monotonic: a clock in seconds that never goes back.
        """
        self._monotonic = monotonic
        self._limit = response_limit
        self._client = httpx.Client(transport=transport or _DeadlineTransport(monotonic), **CLIENT_OPTIONS)

    def run[T](self, exchange: Exchange[T], *, within: float = math.inf) -> T:
        """Drive an exchange to its result.

        Args:
            exchange: the operation.
            within: seconds for all its requests together, beside each one's own deadline.

        Raises:
            Unreachable: no connection came about, so nothing was sent.
            OutcomeUnknown: the connection broke, the deadline passed or the response was too long.
            Outcome: whatever the exchange itself makes of the responses.
        """
        latest = self._monotonic() + within
        try:
            request = next(exchange)
            while True:
                try:
                    response = self.send(request, latest=latest)
                except Outcome as outcome:
                    request = exchange.throw(outcome)
                else:
                    request = exchange.send(response)
        except StopIteration as done:
            result: T = done.value
            return result

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def send(self, request: Request, *, latest: float = math.inf) -> Response:
        """Make one request, which has its own deadline and, by the monotonic clock, `latest`.

        Raises:
            Outcome: what `failure_of` makes of an error; OutcomeUnknown, if the response was too long.
        """
        deadline = min(latest, self._monotonic() + request.deadline)
        token = _deadline.set(deadline)
        try:
            with self._client.stream(
                request.method,
                request.url,
                headers=dict(request.headers),
                content=request.content,
                timeout=max(0.0, deadline - self._monotonic()),
            ) as response:
                limit = self._limit if request.response_limit is None else request.response_limit
                return whole(response, self._read(response, deadline, limit))
        except (httpx.RequestError, httpx.InvalidURL) as error:
            raise failure_of(error) from None
        finally:
            _deadline.reset(token)

    def _read(self, response: httpx.Response, deadline: float, limit: int) -> bytearray:
        content = bytearray()
        for chunk in response.iter_bytes():
            content += chunk
            if len(content) > limit:
                raise OutcomeUnknown("response_too_large")
            if self._monotonic() > deadline:
                raise OutcomeUnknown("deadline_passed")
        return content


def whole(response: httpx.Response, content: bytearray) -> Response:
    """Return a response whose body has been read."""
    headers = {name.lower(): value for name, value in response.headers.items()}
    return Response(response.status_code, headers, bytes(content))


def failure_of(error: Exception) -> Outcome:
    """Return what an error of httpx, or a deadline that passed, means for a repeat."""
    match error:
        case httpx.ConnectError() | httpx.ConnectTimeout() | httpx.PoolTimeout():
            return Unreachable(type(error).__name__)
        case httpx.UnsupportedProtocol() | httpx.InvalidURL() | httpx.LocalProtocolError():
            return NotExecuted(type(error).__name__)
        case _:
            return OutcomeUnknown(type(error).__name__)


# httpx bounds each read, not their sum: a peer that sends a byte now and then would hold a worker for ever.
# So every operation on the socket gets what is left of its request's deadline.
_deadline: ContextVar[float] = ContextVar("deadline")
_PIECE = 65_536
"""Bytes that go to the socket in one operation."""


class _DeadlineTransport(httpx.HTTPTransport):
    def __init__(self, monotonic: Callable[[], float]) -> None:
        context = httpx.create_ssl_context(trust_env=False)
        super().__init__(verify=context)
        self._pool = httpcore.ConnectionPool(
            ssl_context=context, keepalive_expiry=30.0, network_backend=_DeadlineBackend(monotonic)
        )


class _DeadlineBackend(httpcore.NetworkBackend):
    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._backend = httpcore.SyncBackend()

    @override
    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        # The socket module would give each address of a name all of the time.
        addresses = _addresses(host, port)
        failure: Exception = httpcore.ConnectError()
        for untried, address in zip(range(len(addresses), 0, -1), addresses, strict=True):
            share = _left(self._monotonic, httpcore.ConnectTimeout) / untried
            try:
                stream = self._backend.connect_tcp(address, port, share, local_address, socket_options)
                return _DeadlineStream(stream, self._monotonic)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure


class _DeadlineStream(httpcore.NetworkStream):
    def __init__(self, stream: httpcore.NetworkStream, monotonic: Callable[[], float]) -> None:
        self._stream = stream
        self._monotonic = monotonic

    @override
    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left(self._monotonic, httpcore.ReadTimeout))

    @override
    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for start in range(0, len(buffer), _PIECE):
            self._stream.write(buffer[start : start + _PIECE], _left(self._monotonic, httpcore.WriteTimeout))

    @override
    def close(self) -> None:
        self._stream.close()

    @override
    def start_tls(
        self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        left = _left(self._monotonic, httpcore.ConnectTimeout)
        return _DeadlineStream(self._stream.start_tls(ssl_context, server_hostname, left), self._monotonic)

    @override
    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _addresses(host: str, port: int) -> list[str]:
    """Return the addresses of a host; a name leads nowhere inside our own network, whoever has made it do so."""
    try:
        found = [str(address[0]) for *_, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    except OSError as error:
        raise httpcore.ConnectError from error
    public = [address for address in found if host == _THIS_MACHINE or _is_public(address)]
    if not public:
        raise httpcore.ConnectError
    return public


def _is_public(address: str) -> bool:
    return ip_address(address).is_global


def _left(monotonic: Callable[[], float], passed: type[Exception]) -> float:
    left = _deadline.get() - monotonic()
    if left <= 0:
        raise passed
    return left
