"""Leads to CartelCRM, signed, and what its answers mean for a repeat (CartelCRM contract, outbound)."""

from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NoReturn
from urllib.parse import quote

from crm_relay.http_client import Exchange, Request, Response
from crm_relay.outcomes import Blocked, NotExecuted, OutcomeUnknown, Rejected, Unauthorized, Unreachable
from crm_relay.signing import signature_headers

SUBMIT_DEADLINE = 15.0
"""Seconds for a submission (contract)."""
STATUS_DEADLINE = 10.0
"""Seconds for a status call (contract)."""

_REASON_LENGTH = 200
_ID_LENGTH = 200
_NO_LEAD = "crm-relay-asks-whether-its-key-works"


@dataclass(frozen=True, slots=True)
class Account:
    """Where CartelCRM is and how we prove who we are."""

    base_url: str
    api_key: str = field(repr=False)
    hmac_secret: str = field(repr=False)


class Forbidden(Unauthorized):
    """403: our key, or what we have sent; `credentials_work` tells which."""


class PageInsteadOfVerdict(Blocked):
    """HTML where CartelCRM answers JSON: a wrong base_url, or somebody between us."""


@dataclass(frozen=True, slots=True)
class Accepted:
    """CartelCRM has taken the lead under this id."""

    id: str


@dataclass(frozen=True, slots=True)
class Duplicate:
    """CartelCRM already has such a lead; `id` is that lead's, None if neither answer nor look-up told it."""

    id: str | None


@dataclass(frozen=True, slots=True)
class LeadStatus:
    """A lead as CartelCRM knows it. `status` is its own word, None if the answer had none."""

    id: str | None
    status: str | None


def submit_lead(
    account: Account, body: bytes, *, external_id: str, idempotency_key: str, now: float
) -> Exchange[Accepted | Duplicate]:
    """Submit a lead.

    Args:
        account: whose.
        body: the JSON to be signed and sent, byte for byte.
        external_id: the caller's id of the lead, asked for when a 409 does not say which lead exists.
        idempotency_key: the same for every try whose predecessor may have been executed.
        now: unix time in seconds.

    Raises:
        NotExecuted: 408, 425, 429, or a 5xx with an error code in JSON (Unreachable): no lead was created.
        OutcomeUnknown: a 5xx without a code, 502, 504, a success without an id, or no whole answer.
        Rejected: any other refusal, with CartelCRM's reason.
        Unauthorized: 401, 403. Blocked: a redirect, or a page where a verdict should be.
    """
    response = yield Request(
        "POST",
        f"{account.base_url}/v1/inbound/leads",
        headers={
            **_headers(account, body, now),
            "Idempotency-Key": idempotency_key,
            "Content-Type": "application/json",
        },
        content=body,
        deadline=SUBMIT_DEADLINE,
    )
    answer = response.json_object()
    lead_id = _id(answer)
    if response.status in (200, 201) and lead_id:
        return Accepted(lead_id)
    if response.status == 409:
        if lead_id is None:
            # Without an answer it is a duplicate all the same: doubt would make it look like our own lead later.
            with suppress(OutcomeUnknown):
                existing = yield from lead_status(account, external_id, now=now)
                lead_id = existing.id if existing else None
        return Duplicate(lead_id)
    _refuse(response, answer, now)


def lead_status(account: Account, external_id: str, *, now: float) -> Exchange[LeadStatus | None]:
    """Ask for a lead by our own id; None if CartelCRM has none.

    Raises:
        NotExecuted, OutcomeUnknown, Unauthorized, Blocked: as `submit_lead`; any other refusal is
            OutcomeUnknown.
    """
    response = yield Request(
        "GET",
        f"{account.base_url}/v1/inbound/leads/{_path_segment(external_id)}/status",
        headers=_headers(account, b"", now),
        deadline=STATUS_DEADLINE,
    )
    answer = response.json_object()
    if response.status == 404:
        return None
    if response.status == 200 and answer:
        status = answer.get("status")
        return LeadStatus(_id(answer), status if isinstance(status, str) else None)
    try:
        _refuse(response, answer, now)
    except (Rejected, PageInsteadOfVerdict):
        # That the question was refused says nothing about the lead.
        raise OutcomeUnknown(f"status_http_{response.status}") from None


def credentials_work(account: Account, *, now: float) -> Exchange[bool]:
    """Ask for a lead that cannot be; tell whether CartelCRM itself has answered.

    Raises:
        OutcomeUnknown, Unreachable: no whole answer.
    """
    response = yield Request(
        "GET",
        f"{account.base_url}/v1/inbound/leads/{_NO_LEAD}/status",
        headers=_headers(account, b"", now),
        deadline=STATUS_DEADLINE,
    )
    return response.status in (200, 404) and bool(response.json_object())


def _headers(account: Account, body: bytes, now: float) -> dict[str, str]:
    return {
        "Authorization": f"Bearer {account.api_key}",
        **signature_headers(body, account.hmac_secret, now=now),
    }


def _path_segment(text: str) -> str:
    # quote() leaves dots alone, and "." or ".." as a whole segment would walk up the path.
    return quote(text, safe="") if text.strip(".") else text.replace(".", "%2E")


def _id(answer: dict[str, Any]) -> str | None:
    match answer.get("id"):
        case bool() | None | "":
            return None
        case str() | int() as value if len(str(value)) <= _ID_LENGTH and str(value).isprintable():
            return str(value)
        case _:
            return None


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text)


def _refuse(response: Response, answer: dict[str, Any], now: float) -> NoReturn:
    status = response.status
    if 200 <= status < 300:
        raise OutcomeUnknown("success_without_id")
    if 300 <= status < 400:
        raise Blocked("redirected")
    if status == 401:
        raise Unauthorized("http_401")
    if status == 403:
        raise Forbidden("http_403")
    if status == 429:
        raise NotExecuted("rate_limited", response.retry_after(now))
    if status >= 500:
        # CartelCRM's own error has a code and means that nothing was created. A bare 5xx is some proxy's, which does
        # not know; 502 and 504 always are.
        if status not in (502, 504) and isinstance(
            answer.get("error") or answer.get("reason") or answer.get("code"), str
        ):
            raise Unreachable(f"http_{status}", response.retry_after(now))
        raise OutcomeUnknown(f"http_{status}")
    if status in (408, 425):
        raise NotExecuted(f"http_{status}")
    if response.content.lstrip().startswith(b"<"):
        # A page instead of a verdict: a wrong base_url or somebody between us, and no reason to give up leads.
        raise PageInsteadOfVerdict(f"http_{status}_page")
    reason = answer.get("reason")
    raise Rejected(_printable(reason[:_REASON_LENGTH]) if isinstance(reason, str) and reason else "unknown")
