"""Requests to amoCRM's API v4, and what its answers mean for a repeat (amoCRM reference, sections 1.1, 4 and 6)."""

import re
from collections.abc import Mapping, Sequence
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
_HOST = re.compile(r"[a-z0-9][a-z0-9-]{0,62}\.(amocrm\.(ru|com)|kommo\.com)")
_LOCAL_HOST = re.compile(r"127\.0\.0\.1:[0-9]{1,5}")


@dataclass(frozen=True, slots=True)
class Account:
    """Where the account is and how we prove who we are. `context_user_id` lets an admin's token act as a user."""

    host: str
    access_token: str = field(repr=False)
    context_user_id: int | None = None


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


def call(
    account: Account,
    method: str,
    path: str,
    *,
    query: Mapping[str, Any] | None = None,
    body: Sequence[Mapping[str, Any]] | Mapping[str, Any] | None = None,
    now: float,
) -> Exchange[dict[str, Any]]:
    """Do one request and return the decoded object; {} where amoCRM has nothing (204).

    Args:
        account: whose.
        method: HTTP method.
        path: behind the host, without a leading slash.
        query: nested as in PHP, such as {"filter": {"id": [1, 2]}}.
        body: sent as JSON.
        now: unix time in seconds.

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
        headers=_headers(account, has_body=body is not None),
        content=b"" if body is None else msgspec.json.encode(body),
        deadline=DEADLINE,
    )
    try:
        response = yield request
        return _answer(response, now)
    except OutcomeUnknown as outcome:
        raise _of_read(outcome) if method == "GET" else outcome from None


def _query(query: Mapping[str, Any] | None) -> str:
    # With its brackets written out, a filter of 250 ids stays below the 8 KB that servers take for a request line.
    return "?" + encode(query).replace("%5B", "[").replace("%5D", "]") if query else ""


def _headers(account: Account, *, has_body: bool) -> dict[str, str]:
    headers = {"Authorization": f"Bearer {account.access_token}", "Accept": "application/hal+json"}
    if has_body:
        headers["Content-Type"] = "application/json"
    if account.context_user_id is not None:
        headers["X-Context-User-ID"] = str(account.context_user_id)
    return headers


def _of_read(outcome: OutcomeUnknown) -> Outcome:
    reason = str(outcome)
    if isinstance(outcome, TooMuch) or reason == "response_too_large":
        return TooMuchToRead(reason)
    return Unreachable(reason)


def _answer(response: Response, now: float) -> dict[str, Any]:
    if response.status == 204:
        return {}
    answer = decoded(response)
    if response.status not in (200, 201, 202):
        _refuse(response, answer, now)
    if answer is None and response.status != 202:
        raise OutcomeUnknown("success_without_json")
    return answer or {}


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
