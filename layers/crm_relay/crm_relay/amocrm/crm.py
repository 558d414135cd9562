"""The whole client: `AmoCrm` and `AsyncAmoCrm` differ in who carries an operation out, and in nothing else."""

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from types import TracebackType
from typing import Any, Self

import httpx

from crm_relay.amocrm.services import Async, Services, Sync
from crm_relay.amocrm.session import (
    Access,
    Act,
    Budget,
    Found,
    Limiter,
    Progress,
    Session,
    Stream,
    Terms,
    Work,
)
from crm_relay.http_client import CLIENT_OPTIONS, Exchange, HttpClient, Request, Response, failure_of, whole
from crm_relay.outcomes import Outcome, OutcomeUnknown

_RESPONSE_LIMIT = 32 * 1024 * 1024
"""Bytes of one answer: 250 leads with many custom fields are a few million."""
_CONNECTING = 10.0
"""Seconds to connect within."""


class AmoCrm(Services[Sync]):
    """A client of one account, for synchronous code; any number of threads may use it.

    `AmoCrm(LongLivedToken("example.amocrm.ru", "…"))`, or `AmoCrm(StoredTokens(app, store))` for a pair of OAuth.
    """

    def __init__(
        self,
        access: Access,
        *,
        terms: Terms | None = None,
        budget: Budget | None = None,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make a client.

        Args:
            access: where the account is, and its token.
            terms: how the client behaves.
            budget: the requests it may make; by default 7 a second in this process.
            transport: what carries the requests.
            sleep: waits so many seconds.
            clock: unix time in seconds.
            monotonic: a clock in seconds that never goes back.
        """
        self._http = HttpClient(transport, response_limit=_RESPONSE_LIMIT, monotonic=monotonic)
        super().__init__(Session(access, budget or Limiter(monotonic=monotonic), terms or Terms(), sleep, clock))

    def carry_out[T](self, work: Work[T]) -> T:
        """Return the result of an operation."""
        progress = Progress(work)
        while progress.effect is not None:
            self._do(progress, progress.effect)
        return progress.result

    def hand_out[T](self, stream: Stream[T]) -> Iterator[T]:
        """Yield what an operation finds."""
        progress = Progress(stream)
        while progress.effect is not None:
            if isinstance(progress.effect, Found):
                yield from progress.effect.items
                progress.send(None)
            else:
                self._do(progress, progress.effect)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _do(self, progress: Progress[Any, Any], effect: Request | Act) -> None:
        done: Any
        try:
            done = self._http.send(effect) if isinstance(effect, Request) else effect.do()
        except BaseException as error:  # noqa: BLE001 (it is the operation's to deal with)
            progress.throw(error)
        else:
            progress.send(done)


class AsyncAmoCrm(Services[Async]):
    """The same for asynchronous code: what returns there is awaited here, what iterates there, asynchronously here."""

    def __init__(
        self,
        access: Access,
        *,
        terms: Terms | None = None,
        budget: Budget | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make a client, as `AmoCrm` does."""
        self._http = AsyncHttpClient(transport)
        super().__init__(Session(access, budget or Limiter(monotonic=monotonic), terms or Terms(), sleep, clock))

    async def carry_out[T](self, work: Work[T]) -> T:
        """Return the result of an operation."""
        progress = Progress(work)
        while progress.effect is not None:
            await self._do(progress, progress.effect)
        return progress.result

    async def hand_out[T](self, stream: Stream[T]) -> AsyncIterator[T]:
        """Yield what an operation finds."""
        progress = Progress(stream)
        while progress.effect is not None:
            if isinstance(progress.effect, Found):
                for item in progress.effect.items:
                    yield item
                progress.send(None)
            else:
                await self._do(progress, progress.effect)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _do(self, progress: Progress[Any, Any], effect: Request | Act) -> None:
        try:
            if isinstance(effect, Request):
                done = await self._http.send(effect)
            else:
                done = effect.do()
                done = await done if inspect.isawaitable(done) else done
        except BaseException as error:  # noqa: BLE001 (it is the operation's to deal with)
            progress.throw(error)
        else:
            progress.send(done)


class AsyncHttpClient:
    """Drives exchanges as `HttpClient` does, asynchronously."""

    def __init__(
        self, transport: httpx.AsyncBaseTransport | None = None, *, response_limit: int = _RESPONSE_LIMIT
    ) -> None:
        self._limit = response_limit
        self._client = httpx.AsyncClient(transport=transport, **CLIENT_OPTIONS)

    async def run[T](self, exchange: Exchange[T]) -> T:
        """Drive an exchange to its result.

        Raises:
            Outcome: what `HttpClient.run` raises.
        """
        progress = Progress(exchange)
        while progress.effect is not None:
            try:
                response = await self.send(progress.effect)
            except Outcome as outcome:
                progress.throw(outcome)
            else:
                progress.send(response)
        return progress.result

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def send(self, request: Request) -> Response:
        """Make one request.

        Raises:
            Outcome: what `HttpClient.send` raises.
        """
        timeout = httpx.Timeout(request.deadline, connect=min(_CONNECTING, request.deadline))
        content = bytearray()
        try:
            async with (
                asyncio.timeout(request.deadline),
                self._client.stream(
                    request.method,
                    request.url,
                    headers=dict(request.headers),
                    content=request.content,
                    timeout=timeout,
                ) as response,
            ):
                async for chunk in response.aiter_bytes():
                    content += chunk
                    if len(content) > self._limit:
                        raise OutcomeUnknown("response_too_large")
                return whole(response, content)
        except (httpx.RequestError, httpx.InvalidURL, TimeoutError) as error:
            raise failure_of(error) from None
