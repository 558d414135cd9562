"""Requests to Bitrix24's REST API, one or fifty at once, and what its answers mean for a repeat.

Bitrix24 reference, sections 3.0, 4.2 and 4.3: an error is judged by its code first, by the HTTP status second.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit

import msgspec

from crm_relay.brackets import encode
from crm_relay.http_client import Exchange, Request, Response
from crm_relay.outcomes import (
    Blocked,
    NotConfigured,
    NotExecuted,
    Outcome,
    OutcomeUnknown,
    Rejected,
    Unauthorized,
    Unreachable,
)

DEADLINE = 60.0
"""Seconds for one request: Bitrix24's own limit."""
APPEARS_WITHIN = DEADLINE + 30.0
"""Seconds after which what a request without an answer was to write is there, or never will be."""
BATCH = 50
"""Commands of a batch at most."""
PAGE = 50
"""Rows of a list's page."""

_UNTOLD_WAIT = 1.0
"""Seconds after QUERY_LIMIT_EXCEEDED: the bucket drains two requests a second."""
_UNTOLD_OPERATING_WAIT = 60.0
"""Seconds after OPERATION_TIME_LIMIT without a time: used time is forgotten minute by minute."""
_LONGEST_OPERATING_WAIT = 600.0
_LONGEST_TEXT = 300
_HOST = re.compile(r"(?=.{4,253}\Z)([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z][a-z0-9-]{0,61}[a-z0-9]")
_LOCAL_HOST = re.compile(r"127\.0\.0\.1:[0-9]{1,5}")
_WEBHOOK = re.compile(r"(https?://[^/?#@\s]+)/rest/([0-9]{1,18}/[A-Za-z0-9_-]{1,100})/?")
_LABEL = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_CODE = re.compile(r"[a-z0-9_.-]{1,100}")
_TAG = re.compile(r"<[^>]*>")


@dataclass(frozen=True, slots=True)
class Access:
    """A way into one portal: as the incoming webhook "user/code", or with an app's access token."""

    host: str
    webhook: str = field(default="", repr=False)
    access_token: str = field(default="", repr=False)

    @classmethod
    def by_webhook(cls, url: str, *, host: str) -> "Access":
        """Read an incoming webhook's URL, such as https://example.bitrix24.ru/rest/1/code/.

        Raises:
            NotConfigured: it is no such URL, or leads to another host than the portal's.
        """
        found = _WEBHOOK.fullmatch(url)
        if not found or found[1] != origin(host):
            raise NotConfigured("webhook_url")
        return cls(host, webhook=found[2])


@dataclass(frozen=True, slots=True)
class Operation[T]:
    """One method with its parameters, and how its result is read; done alone by `call`, or with others by `batch`.

    `read` gets the answer's `result` and raises Unusable where that cannot be.
    """

    method: str
    params: Mapping[str, Any] = field(repr=False)
    read: Callable[[Any], T] = field(repr=False)

    @property
    def reads(self) -> bool:
        """Whether it changes nothing, so that it may simply be repeated."""
        return self.method.rpartition(".")[2] in ("get", "list", "fields", "findbycomm")


class Unusable(Exception):
    """A success whose result is not what the method returns."""


class TokenExpired(Unauthorized):
    """The access token is too old: refresh it, then once more."""


class OperatingLimit(NotExecuted):
    """This one method has worked too long in the last ten minutes; the others go on (reference, section 4.1)."""


class PageInstead(Blocked):
    """A page of a web server or firewall before the API; nothing was executed. About this request, or about all."""


class PortalMoved(Blocked):
    """The portal has another address now; nothing was executed, and nothing is sent there until it is configured."""

    def __init__(self, host: str) -> None:
        super().__init__(f"portal_moved_to {host}" if host else "redirected")
        self.host = host


class Refused(Rejected):
    """Bitrix24's refusal: `reason` is its code in lower case, `text` its sentence, for the user and not for a log."""

    def __init__(self, reason: str, text: str = "") -> None:
        super().__init__(reason)
        self.text = text


class BodyRefused(Refused):
    """The web server or firewall before the API does not let this very request through; a part of it may pass."""


def origin(host: str) -> str:
    """Return the address of a configured portal's host; a sandbox on this machine has no TLS.

    Raises:
        Blocked: it is no domain name, so nothing is sent there.
    """
    if _LOCAL_HOST.fullmatch(host):
        return f"http://{host}"
    if not _HOST.fullmatch(host):
        raise Blocked("foreign_host")
    return f"https://{host}"


def reference(label: str, *path: str | int) -> str:
    """Return what stands in a batch for a part of an earlier command's result: `$result[deal][item][id]`."""
    return "$result" + "".join(f"[{part}]" for part in (label, *path))


def call[T](access: Access, operation: Operation[T], *, now: float) -> Exchange[T]:
    """Do one operation. Parameters go as JSON, in which an empty list and a number survive.

    Args:
        access: to which portal, and how.
        operation: what.
        now: unix time in seconds.

    Raises:
        Refused: refused for good.
        TokenExpired, Unauthorized: the token or webhook is not accepted.
        PageInstead: a page from before the API.
        PortalMoved, Blocked: not paid, deleted, manually blocked, a redirect.
        NotExecuted: over a limit, with the seconds to stay away.
        OutcomeUnknown: the answer to a write is lost. Reading, Unreachable: it can simply be repeated.
    """
    try:
        body = yield from _post(access, operation.method, operation.params, now)
        return _read(operation, body["result"])
    except OutcomeUnknown as outcome:
        raise _lost(outcome, reads=operation.reads) from None


def batch[T](
    access: Access, operations: Mapping[str, Operation[T]], *, halt: bool = False, now: float
) -> Exchange[dict[str, T | Outcome]]:
    """Do up to 50 operations in one request, in their order.

    Each result is under the operation's label, or the outcome that `call` would have raised. Parameters go as a form:
    None and what is empty leave no trace. Later operations may use parts of earlier results by `reference`; then
    `halt`, since a reference to what failed is sent as it stands.

    Args:
        access: to which portal, and how.
        operations: by label: letters, digits and "_", no digit first.
        halt: stop at the first that fails; those behind it are NotExecuted("halted").
        now: unix time in seconds.

    Raises:
        Outcome: as `call`, of all of them: an OutcomeUnknown if there is a write among them.
    """
    assert 0 < len(operations) <= BATCH
    assert all(map(_LABEL.fullmatch, operations)), "PHP would renumber the results"
    commands = {label: f"{each.method}?{encode(_as_form(each.params))}" for label, each in operations.items()}
    try:
        body = yield from _post(access, "batch", {"halt": int(halt), "cmd": commands}, now)
        answers = mapping(body["result"])
        done, failed = mapping(answers.get("result")), mapping(answers.get("result_error"))
        times = mapping(answers.get("result_time"))
    except (OutcomeUnknown, Unusable) as outcome:
        reads = all(each.reads for each in operations.values())
        raise _lost(OutcomeUnknown(str(outcome) or "answer_malformed"), reads=reads) from None
    outcomes: dict[str, T | Outcome] = {}
    halted = False
    for label, operation in operations.items():
        try:
            if label in failed:
                halted = halt
                raise _refusal(200, failed[label], times.get(label) or body.get("time"), now)
            if label not in done:
                raise NotExecuted("halted") if halted else OutcomeUnknown("answer_incomplete")
            outcomes[label] = _read(operation, done[label])
        except OutcomeUnknown as outcome:
            outcomes[label] = _lost(outcome, reads=operation.reads)
        except Outcome as outcome:
            outcomes[label] = outcome
    return outcomes


# What PHP makes of results: {} is [], ids are numbers or digits, nothing is null, false, "" or [].


def mapping(value: Any) -> dict[str, Any]:
    """Return a map, whatever its emptiness looks like.

    Raises:
        Unusable: it is none.
    """
    if isinstance(value, dict):
        return value
    if value in (None, False, "", []):
        return {}
    raise Unusable


def rows(value: Any) -> list[dict[str, Any]]:
    """Return a list of maps; PHP writes one with gaps as a map.

    Raises:
        Unusable: it is none.
    """
    found = list(value.values()) if isinstance(value, dict) else value or []
    if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
        raise Unusable
    return found


def number(value: Any) -> int:
    """Return an id.

    Raises:
        Unusable: it is no positive whole number.
    """
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 19:
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise Unusable
    return value


def ids(value: Any) -> list[int]:
    """Return the ids in a field: one, several, or none.

    Raises:
        Unusable: there is something else among them.
    """
    found = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
    return [number(each) for each in found if each not in (None, False, "", 0, "0", [])]


def row_id(row: Mapping[str, Any]) -> int:
    """Return the id of a row, which is `id` in new methods and `ID` in old ones.

    Raises:
        Unusable: it has none.
    """
    return number(row.get("id", row.get("ID")))


def with_id(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row whose `id` is a number, whatever its method calls it; raises as `row_id`."""
    return {**row, "id": row_id(row)}


def nothing(_: Any) -> None:
    """Read a result that says no more than that there is one."""


def decoded(response: Response) -> dict[str, Any] | None:
    """Return the body if it is a JSON object, else None."""
    try:
        body = msgspec.json.decode(response.content)
    except (msgspec.DecodeError, RecursionError, ValueError):
        return None
    return body if isinstance(body, dict) else None


def refused(response: Response, body: Mapping[str, Any] | None, now: float) -> Outcome:
    """Return what an answer without a result means."""
    status = response.status
    if 300 <= status < 400:
        return PortalMoved(_host_of(response.headers.get("location", "")))
    if body is not None and "error" in body:
        return _refusal(status, body, body.get("time"), now, response.retry_after(now))
    if status == 429:
        return NotExecuted("http_429", response.retry_after(now) or _UNTOLD_WAIT)
    if status in (408, 425):
        return NotExecuted(f"http_{status}")
    if status == 401:
        return Unauthorized("http_401")
    if status == 413:  # a page of the web server, but about this very request
        return BodyRefused("http_413")
    if 400 <= status < 500:
        return PageInstead(f"http_{status}_page") if body is None else Refused(f"http_{status}")
    return OutcomeUnknown(f"http_{status}" if status >= 500 else "success_without_result")


def _post(access: Access, method: str, params: Mapping[str, Any], now: float) -> Exchange[dict[str, Any]]:
    path = f"{access.webhook}/{method}" if access.webhook else method
    sent = params if access.webhook else {**params, "auth": access.access_token}
    response = yield Request(
        "POST",
        f"{origin(access.host)}/rest/{path}",
        headers={"Content-Type": "application/json", "Accept": "application/json"},
        content=msgspec.json.encode(sent),
        deadline=DEADLINE,
    )
    body = decoded(response)
    if response.status == 200 and body is not None and "result" in body:
        return body
    raise refused(response, body, now)


def _read[T](operation: Operation[T], result: Any) -> T:
    try:
        return operation.read(result)
    except Unusable:
        raise OutcomeUnknown("answer_malformed") from None


def _lost(outcome: OutcomeUnknown, *, reads: bool) -> Outcome:
    return Unreachable(str(outcome)) if reads else outcome


def _as_form(value: Any) -> Any:
    match value:
        case float():
            return format(Decimal(repr(value)), "f")
        case Mapping():
            return {key: _as_form(each) for key, each in value.items()}
        case list() | tuple():
            return [_as_form(each) for each in value]
        case _:
            return value


_UNAUTHORIZED = frozenset(
    {
        *("invalid_token", "no_auth_found", "authorization_error", "error_oauth", "application_not_found"),
        *("method_confirm_waiting", "user_access_error", "invalid_grant", "invalid_client", "wrong_client"),
    }
)
_BLOCKED = frozenset({"overload_limit", "payment_required", "portal_deleted"})
_CRASHED = frozenset({"internal_server_error", "error_unexpected_answer"})


def _refusal(status: int, error: Any, time: Any, now: float, retry_after: float | None = None) -> Outcome:
    code, text = _code_and_text(error)
    match code:
        case "query_limit_exceeded":
            return NotExecuted(code, _UNTOLD_WAIT if retry_after is None else retry_after)
        case "operation_time_limit":
            return OperatingLimit(code, _operating_wait(time, now))
        case "expired_token":
            return TokenExpired(code)
        case _ if code in _UNAUTHORIZED:
            return Unauthorized(code)
        case _ if code in _BLOCKED:
            return Blocked(code)
        case _ if code in _CRASHED or status >= 500:
            return OutcomeUnknown(code)
        case _ if status == 429:
            return NotExecuted(code, retry_after or _UNTOLD_WAIT)
        case _:
            return Refused(code, text)


def _code_and_text(error: Any) -> tuple[str, str]:
    """Return the code in lower case, and the sentence.

    The code may be "", a number, a sentence, or an object with a code in it.
    """
    code: Any = error
    text: Any = ""
    if isinstance(error, dict):
        code, text = error.get("error"), error.get("error_description")
    if isinstance(code, dict):
        code, text = code.get("code"), code.get("message")
    folded = str(code).casefold() if isinstance(code, str | int) else ""
    sentence = " ".join(_TAG.sub(" ", str(text or ("" if _CODE.fullmatch(folded) else code or ""))).split())
    if folded in ("", "0") and sentence.casefold().rstrip(".") in ("not found", "deal is not found"):
        folded = "not_found"
    return folded if _CODE.fullmatch(folded) else "refused", sentence[:_LONGEST_TEXT]


def _operating_wait(time: Any, now: float) -> float:
    match time:
        case {"operating_reset_at": int() | float() as moment}:
            return min(max(moment - now, 1.0), _LONGEST_OPERATING_WAIT)
        case _:
            return _UNTOLD_OPERATING_WAIT


def _host_of(url: str) -> str:
    try:
        host = urlsplit(url).netloc
    except ValueError:
        return ""
    return host if _HOST.fullmatch(host) or _LOCAL_HOST.fullmatch(host) else ""
