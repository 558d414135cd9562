"""POST /leads, GET /leads/{external_id}, GET /leads/{external_id}/status: submit leads and ask for their fate."""

import hashlib
import hmac
import math
from collections.abc import Mapping
from http import HTTPStatus

from crm_relay.cartelcrm.leads import EXTERNAL_ID_LENGTH, SUBMISSION, lead_key
from crm_relay.cartelcrm.leads import Lead as CartelCrmLead
from crm_relay.delivery.ledger import Ledger
from crm_relay.delivery.ports import StorageError
from crm_relay.delivery.runtime import prepare, runtime
from crm_relay.delivery.worker import LambdaContext
from crm_relay.http_api import (
    Answer,
    Event,
    Malformed,
    NotFound,
    Refusal,
    Request,
    Unauthenticated,
    Unavailable,
    Unsupported,
    answer,
    read_json,
)
from crm_relay.observability import log_failure, observed
from crm_relay.outcomes import NotConfigured, NotExecuted, Outcome
from lead_submitter.intake import take, verdict
from lead_submitter.lead import InvalidLead, read_lead
from lead_submitter.submission import ask_for_caller, http_client, submission

_LONGEST_RETRY_AFTER = 900
_HTTP_STATUS = {
    "queued": HTTPStatus.ACCEPTED,
    "given_up": HTTPStatus.ACCEPTED,
    "needs_reconcile": HTTPStatus.ACCEPTED,
    "rejected": HTTPStatus.UNPROCESSABLE_ENTITY,
}


class Invalid(Refusal):
    """The lead cannot be submitted as it is: 422, with what is wrong."""

    status = HTTPStatus.UNPROCESSABLE_ENTITY

    def __init__(self, errors: list[dict[str, str]]) -> None:
        super().__init__("invalid_lead")
        self.errors = errors


class CartelCrmUnavailable(Refusal):
    """CartelCRM cannot be asked now: 503. What is wrong with it is for others to alarm about."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    retry_after = 30

    def __init__(self, outcome: Outcome) -> None:
        super().__init__("cartelcrm_unavailable")
        if isinstance(outcome, NotExecuted) and outcome.retry_after:
            self.retry_after = math.ceil(min(outcome.retry_after, _LONGEST_RETRY_AFTER))


def problem(refusal: Refusal) -> Answer:
    """Return a refusal as application/problem+json (RFC 9457)."""
    status = HTTPStatus(refusal.status)
    headers = refusal.headers()
    if status is HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    details = {"errors": refusal.errors} if isinstance(refusal, Invalid) else {}
    return _problem(status, status.phrase, headers=headers, error=refusal.error, **details)


def _problem(status: HTTPStatus, title: str, *, headers: Mapping[str, str] | None = None, **details: object) -> Answer:
    headers = {"Content-Type": "application/problem+json", **(headers or {})}
    return answer(status, headers=headers, type="about:blank", title=title, status=status, **details)


@observed(refuse=problem)
def handler(event: Event, context: LambdaContext) -> Answer:
    """Answer one request of the leads API."""
    relay = runtime()
    request = Request.read(event, body_limit=relay.settings.relay.lead_body_limit_bytes)
    caller = _authenticate(request, relay.secrets().lead_api_keys)
    try:
        match request.route:
            case "POST /leads":
                return _submit(request, caller, context)
            case "GET /leads/{external_id}":
                return _show(_external_id(request))
            case "GET /leads/{external_id}/status":
                return _ask(_external_id(request))
            case _:
                raise NotFound("not_found")
    except StorageError as error:
        log_failure("table not read", error)
        raise Unavailable("table_unavailable") from None


def _authenticate(request: Request, keys: Mapping[str, str]) -> str:
    """Return the name of the caller's key; every key is compared, whichever fits."""
    if not keys:
        raise NotConfigured
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    digest = hashlib.sha256(key.strip().encode("utf-8", "surrogatepass")).hexdigest()
    names = [name for name, expected in keys.items() if hmac.compare_digest(digest, expected)]
    if scheme.lower() != "bearer" or not names:
        raise Unauthenticated("api_key_required")
    return names[0]


def _submit(request: Request, caller: str, context: LambdaContext) -> Answer:
    content_type = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if content_type != "application/json":
        raise Unsupported("json_expected")
    fields = read_json(request.body)
    if not isinstance(fields, dict):
        raise Malformed("json_object_expected")
    try:
        lead = read_lead(fields)
    except InvalidLead as invalid:
        raise Invalid(invalid.errors) from None
    envelope = submission(
        lead.external_id,
        lead.body(),
        origin={"trigger": "api", "key": caller},
        now=runtime().ports.clock.time(),
        correlation_id=request.id,
    )
    known = take(envelope, context, at_once="respond-async" not in request.headers.get("prefer", "").lower())
    status = _HTTP_STATUS.get(known["status"], HTTPStatus.OK)
    if known["status"] != "rejected":
        return answer(status, **known)
    return _problem(
        status, "Rejected by CartelCRM", error="rejected", external_id=lead.external_id, reason=known["reason"]
    )


def _external_id(request: Request) -> str:
    external_id = request.path_parameters["external_id"]
    if len(external_id) > EXTERNAL_ID_LENGTH or not external_id.isprintable():
        raise NotFound("not_found")
    return external_id


def _show(external_id: str) -> Answer:
    ports = runtime().ports
    effect = Ledger(ports.store, ports.clock).find(f"{SUBMISSION}#{external_id}")
    if effect is None and ports.store.get(f"inbound#{SUBMISSION}#{external_id}") is None:
        raise NotFound("not_found")
    known = verdict(external_id, effect)
    if known["status"] != "accepted" or known["id"] is None:
        return answer(200, **known)
    item = ports.store.get(lead_key(known["id"]))
    lead = CartelCrmLead.read(item.attributes if item else {})
    return answer(200, **known, lead_status=lead.status, lead_status_at=lead.status_at, history=lead.history)


def _ask(external_id: str) -> Answer:
    try:
        lead = ask_for_caller(external_id)
    except Outcome as outcome:
        raise CartelCrmUnavailable(outcome) from None
    if lead is None:
        raise NotFound("not_found")
    return answer(200, external_id=external_id, id=lead.id, lead_status=lead.status)


prepare(http_client)
