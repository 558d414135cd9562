"""POST /leads, GET /leads/{external_id}, GET /leads/{external_id}/status: submit leads and ask for their fate."""

import hashlib
import hmac
from collections.abc import Mapping
from http import HTTPStatus

from crm_relay.cartelcrm.leads import SUBMISSION
from crm_relay.cartelcrm.leads import Lead as CartelCrmLead
from crm_relay.delivery.ledger import Ledger
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
from crm_relay.observability import observed
from crm_relay.outcomes import Outcome
from lead_submitter.intake import take, verdict
from lead_submitter.lead import InvalidLead, read_lead
from lead_submitter.submission import http_client, lead_in_cartelcrm, submission

_HTTP_STATUS = {
    "queued": HTTPStatus.ACCEPTED,
    "needs_reconcile": HTTPStatus.ACCEPTED,
    "rejected": HTTPStatus.UNPROCESSABLE_ENTITY,
}


class Invalid(Refusal):
    """The lead cannot be submitted as it is: 422, with what is wrong."""

    status = HTTPStatus.UNPROCESSABLE_ENTITY

    def __init__(self, errors: list[dict[str, str]]) -> None:
        super().__init__("invalid_lead")
        self.errors = errors


def problem(refusal: Refusal) -> Answer:
    """Return a refusal as application/problem+json (RFC 9457)."""
    status = HTTPStatus(refusal.status)
    headers = {"Content-Type": "application/problem+json"}
    if refusal.retry_after is not None:
        headers["Retry-After"] = str(refusal.retry_after)
    if status is HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    details = {"errors": refusal.errors} if isinstance(refusal, Invalid) else {}
    return answer(
        status,
        headers=headers,
        type="about:blank",
        title=status.phrase,
        status=status,
        error=refusal.error,
        **details,
    )


@observed(refuse=problem)
def handler(event: Event, context: LambdaContext) -> Answer:
    """Answer one request of the leads API."""
    relay = runtime()
    request = Request.read(event, body_limit=relay.settings.relay.lead_body_limit_bytes)
    caller = _authenticate(request, relay.secrets().lead_api_keys)
    match request.route:
        case "POST /leads":
            return _submit(request, caller, context)
        case "GET /leads/{external_id}":
            return _show(request.path_parameters["external_id"])
        case "GET /leads/{external_id}/status":
            return _ask(request.path_parameters["external_id"])
        case _:
            raise NotFound("not_found")


def _authenticate(request: Request, keys: Mapping[str, str]) -> str:
    """Return the name of the caller's key; every key is compared, whichever fits."""
    if not keys:
        raise Unavailable("not_configured")
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
    known = take(envelope, context, at_once="respond-async" not in request.headers.get("prefer", ""))
    status = _HTTP_STATUS.get(known["status"], HTTPStatus.OK)
    if known["status"] != "rejected":
        return answer(status, **known)
    headers = {"Content-Type": "application/problem+json"}
    return answer(status, headers=headers, type="about:blank", title="Rejected by CartelCRM", error="rejected", **known)


def _show(external_id: str) -> Answer:
    ports = runtime().ports
    effect = Ledger(ports.store, ports.clock).find(f"{SUBMISSION}#{external_id}")
    if effect is None and ports.store.get(f"inbound#{SUBMISSION}#{external_id}") is None:
        raise NotFound("not_found")
    known = verdict(external_id, effect)
    if known["status"] != "accepted" or known["id"] is None:
        return answer(200, **known)
    item = ports.store.get(f"lead#{known['id']}")
    lead = CartelCrmLead.read(item.attributes if item else {})
    return answer(200, **known, lead_status=lead.status, lead_status_at=lead.status_at, history=lead.history)


def _ask(external_id: str) -> Answer:
    try:
        lead = lead_in_cartelcrm(external_id)
    except Outcome:
        raise Unavailable("cartelcrm_unavailable") from None
    if lead is None:
        raise NotFound("not_found")
    return answer(200, external_id=external_id, id=lead.id, lead_status=lead.status)


prepare(http_client)
