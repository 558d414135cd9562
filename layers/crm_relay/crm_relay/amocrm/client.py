"""Requests to amoCRM's API v4, and what its answers mean for a repeat (amoCRM reference, sections 1.1, 4 and 6)."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import msgspec

from crm_relay.brackets import encode
from crm_relay.http_client import Exchange, Request, Response
from crm_relay.outcomes import Blocked, NotExecuted, Outcome, OutcomeUnknown, Rejected, Unauthorized, Unreachable

DEADLINE = 20.0
"""Seconds for one request."""

_UNTOLD_WAIT = 5.0
"""Seconds to stay away after a 429 without a number: whoever insists is blocked."""
_LONGEST_CODE = 200
_SECRET = re.compile(r"passw|pwd|secret|token|auth|credential|api_?key|^key$", re.IGNORECASE)
_HOST = re.compile(r"[a-z0-9][a-z0-9-]{0,62}\.(amocrm\.(ru|com)|kommo\.com)")
_LOCAL_HOST = re.compile(r"127\.0\.0\.1:[0-9]{1,5}")


@dataclass(frozen=True, slots=True)
class Account:
    """Where the account is and how we prove who we are. `context_user_id` lets an admin's token act as a user.

    `headers` are sent with every request, such as User-Agent.
    """

    host: str
    access_token: str = field(repr=False)
    context_user_id: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict, hash=False)


class Problem(Exception):
    """What was asked and what amoCRM said to it, as far as it said anything: the cause of an outcome.

    `path` holds the query too; there is no header in it, so no token, and what is named like a secret in `body` is
    blank. `title`, `hint` and `detail` are amoCRM's words; `detail` may quote what was sent, so, like `body`, it is no
    part of the message. `request_id` is X-Request-Id, which amoCRM's support asks for.
    """

    def __init__(
        self, request: Request, body: object, response: Response | None, answer: Mapping[str, Any] | None
    ) -> None:
        self.method = request.method
        self.path = "/" + request.url.partition("://")[2].partition("/")[2]
        self.body = _without_secrets(body)
        self.status = response.status if response else None
        self.request_id = response.headers.get("x-request-id") if response else None
        self.title = _word(answer, "title")
        self.hint = _word(answer, "hint")
        self.detail = _word(answer, "detail")
        path = self.path.partition("?")[0]
        super().__init__(f"{self.method} {path}: {self.status}, X-Request-Id {self.request_id}")

    @staticmethod
    def of(outcome: BaseException) -> "Problem | None":
        """Return the problem behind an outcome of `call`, None if it came from elsewhere."""
        cause = outcome.__cause__
        return cause if isinstance(cause, Problem) else None


class ValidationFailed(Rejected):
    """400 with validation errors: nothing of the request was written.

    `items` maps the request_id of each wrong item, "" where there was none, to errors such as
    "entity_id:NotFound".
    """

    def __init__(self, items: Mapping[str, tuple[str, ...]]) -> None:
        super().__init__("validation_failed")
        self.items = items


class TooMuch(OutcomeUnknown):
    """amoCRM did not get through a write in its time: look what is there, and send less at once."""


class TooMuchToRead(Unreachable):
    """amoCRM did not get through a read in its time, or the answer is too long: ask for less at once."""


def is_amocrm_host(host: str) -> bool:
    """Tell whether a host is an account of amoCRM or Kommo: what a stranger names gets no secret."""
    return bool(_HOST.fullmatch(host))


def origin(host: str) -> str:
    """Return the address of an account's host; a sandbox on this machine has no TLS.

    Raises:
        Blocked: it is neither amoCRM's nor Kommo's, so nothing is sent there.
    """
    if _LOCAL_HOST.fullmatch(host):
        return f"http://{host}"
    if not is_amocrm_host(host):
        raise Blocked("foreign_host")
    return f"https://{host}"


def beside(host: str, name: str) -> str:
    """Return the host of the same domain that has this name, such as "drive"; a sandbox here is all in one place."""
    return f"{name}.{host.partition('.')[2]}" if is_amocrm_host(host) else host


def call(
    account: Account,
    method: str,
    path: str,
    *,
    query: Mapping[str, Any] | None = None,
    body: Sequence[Mapping[str, Any]] | Mapping[str, Any] | None = None,
    now: float,
    deadline: float = DEADLINE,
) -> Exchange[dict[str, Any]]:
    """Do one request and return the decoded object; {} where amoCRM has nothing (204).

    A bare list, which complex creation alone answers with, comes as {"items": […]}. What is raised has a
    `Problem` as its cause, unless nothing was sent.

    Args:
        account: whose.
        method: HTTP method.
        path: behind the host, without a leading slash.
        query: nested as in PHP, such as {"filter": {"id": [1, 2]}}.
        body: sent as JSON.
        now: unix time in seconds.
        deadline: seconds.

    Raises:
        ValidationFailed, Rejected: refused for good.
        Unauthorized: 401.
        Blocked: 402, a redirect, a refusal that is no JSON (a page from before the API).
        NotExecuted: 429, with the seconds to stay away; 408, 425.
        TooMuch, TooMuchToRead: 413, 414, 504; reading, also an answer over the limit.
        OutcomeUnknown: any other 5xx, or no whole answer. Reading, Unreachable: a read can simply be repeated.
    """
    request = Request(
        method,
        f"{origin(account.host)}/{path}{_query(query)}",
        headers=_headers(account, "application/json" if body is not None else None),
        content=b"" if body is None else msgspec.json.encode(body),
        deadline=deadline,
    )
    answer = yield from asked(request, body, lambda response: _answer(request, response, now))
    match answer:
        case dict():
            return answer
        case [*items] if items:
            return {"items": items}
        case _:
            return {}


def send(
    account: Account, url: str, content: bytes, content_type: str, *, now: float, deadline: float = DEADLINE
) -> Exchange[dict[str, Any]]:
    """POST bytes, such as a part of a file, to an address that amoCRM gave; otherwise as `call`.

    Raises:
        Blocked: the address is none of amoCRM's, so it gets neither the bytes nor the token.
    """
    scheme, _, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    if not slash or f"{scheme}://{host}" != origin(host):
        raise Blocked("foreign_host")
    request = Request(
        "POST", f"{origin(host)}/{path}", headers=_headers(account, content_type), content=content, deadline=deadline
    )
    answer = yield from asked(request, f"{len(content)} bytes", lambda response: _answer(request, response, now))
    return answer if isinstance(answer, dict) else {}


def asked[T](request: Request, body: object, read: Callable[[Response], T]) -> Exchange[T]:
    """Do a request and return what `read` makes of the response; a read that is in doubt is Unreachable.

    What is raised has a `Problem`, with `body` in it, as its cause.
    """
    response = None
    try:
        response = yield request
        return read(response)
    except Outcome as outcome:
        problem = Problem(request, body, response, decoded(response) if response else None)
        unknown_read = request.method == "GET" and isinstance(outcome, OutcomeUnknown)
        raise (_of_read(outcome) if unknown_read else outcome) from problem


def _query(query: Mapping[str, Any] | None) -> str:
    # With its brackets written out, a filter of 250 ids stays below the 8 KB that servers take for a request line.
    return "?" + encode(query).replace("%5B", "[").replace("%5D", "]") if query else ""


def _headers(account: Account, content_type: str | None) -> dict[str, str]:
    bearer = f"Bearer {account.access_token}"
    headers = {**account.headers, "Authorization": bearer, "Accept": "application/hal+json"}
    if content_type is not None:
        headers["Content-Type"] = content_type
    if account.context_user_id is not None:
        headers["X-Context-User-ID"] = str(account.context_user_id)
    return headers


def _word(answer: Mapping[str, Any] | None, name: str) -> str | None:
    word = answer.get(name) if answer else None
    return word if isinstance(word, str) else None


def _of_read(outcome: Outcome) -> Outcome:
    reason = str(outcome)
    if isinstance(outcome, TooMuch) or reason == "response_too_large":
        return TooMuchToRead(reason)
    return Unreachable(reason)


def _without_secrets(body: object) -> object:
    match body:
        case Mapping():
            return {name: "…" if _SECRET.search(name) else _without_secrets(value) for name, value in body.items()}
        case list() | tuple():
            return [_without_secrets(one) for one in body]
        case _:
            return body


def _answer(request: Request, response: Response, now: float) -> Any:
    if response.status == 204:
        return {}
    if response.status not in (200, 201, 202):
        _refuse(response, decoded(response), now)
    try:
        answer = msgspec.json.decode(response.content)
    except (msgspec.DecodeError, RecursionError, ValueError):
        answer = None
    if not answer and request.method == "GET" and response.status == 200:
        raise OutcomeUnknown("success_without_content")  # nothing there is a 204
    if isinstance(answer, dict) or response.status == 202:
        return answer
    if not isinstance(answer, list) or not all(isinstance(item, dict) for item in answer):
        raise OutcomeUnknown("success_without_json")
    return answer


def decoded(response: Response) -> dict[str, Any] | None:
    """Return the body if it is a JSON object, else None. PHP writes an empty object as []."""
    try:
        body = msgspec.json.decode(response.content)
    except (msgspec.DecodeError, RecursionError, ValueError):
        return None
    if body == []:
        return {}
    return body if isinstance(body, dict) else None


def _refuse(response: Response, answer: Mapping[str, Any] | None, now: float) -> NoReturn:
    status = response.status
    if status == 429:
        raise rate_limited(response, answer, now)
    if status in (413, 414, 504):
        raise TooMuch(f"http_{status}")
    if status in (408, 425):
        raise NotExecuted(f"http_{status}")
    if not 300 <= status < 500:
        raise OutcomeUnknown(f"http_{status}")
    if status == 401:
        raise Unauthorized("http_401")
    if status == 402:
        raise Blocked("not_paid")
    if status < 400:
        raise Blocked("redirected")
    if answer is None:
        raise Blocked("account_blocked" if status == 403 else f"http_{status}_page")
    if status == 400 and (errors := _validation_errors(answer)):
        raise ValidationFailed(errors)
    raise Rejected(f"http_{status}")


def rate_limited(response: Response, answer: Mapping[str, Any] | None, now: float) -> NotExecuted:
    """Return what a 429 means; Kommo tells the seconds in JSON, amoCRM mostly not at all."""
    match answer:
        case {"retry_after": int() | float() as seconds} if not isinstance(seconds, bool) and seconds >= 0:
            return NotExecuted("rate_limited", float(seconds))
        case {"retry_after": str(text)} if text.isascii() and text.isdigit():
            return NotExecuted("rate_limited", float(text[:10]))
        case _:
            told = response.retry_after(now)
            return NotExecuted("rate_limited", _UNTOLD_WAIT if told is None else told)


def _validation_errors(answer: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    items = answer.get("validation-errors")
    for item in items if isinstance(items, list) else ():
        match item:
            case {"errors": [*errors]}:
                codes = tuple(_error(error) for error in errors if isinstance(error, dict))
                request_id = str(item.get("request_id", ""))
                found[request_id] = found.get(request_id, ()) + codes
            case _:
                pass
    return found


def _error(error: Mapping[str, Any]) -> str:
    # Without `detail`, which may quote what was sent.
    return f"{error.get('path', '')}:{error.get('code', '')}"[:_LONGEST_CODE]
