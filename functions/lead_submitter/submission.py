"""One lead to CartelCRM, exactly once: the same code from the API, the queue, the bus and a direct invoke."""

import hashlib
import math
from collections.abc import Mapping
from functools import cache
from typing import Any

from crm_relay.cartelcrm import client
from crm_relay.cartelcrm.client import Accepted, Duplicate, LeadStatus
from crm_relay.cartelcrm.leads import KEPT, SUBMISSION, Lead, lead_key
from crm_relay.delivery.account import Account
from crm_relay.delivery.envelope import Envelope
from crm_relay.delivery.ledger import Claim
from crm_relay.delivery.ports import update
from crm_relay.delivery.runtime import Runtime, runtime
from crm_relay.http_client import Exchange, HttpClient
from crm_relay.outcomes import NotConfigured, NotExecuted, OutcomeUnknown, Rejected

_BLIPS = 4
"""Tries of one lead that somebody before CartelCRM may refuse before it is this lead's refusal: about a minute."""


def submission(external_id: str, body: str, *, origin: Mapping[str, Any], now: float, correlation_id: str) -> Envelope:
    """Return the envelope of a lead; `body` is the JSON that will be signed and sent, byte for byte."""
    return Envelope(
        kind=SUBMISSION,
        key=external_id,
        payload={"body": body, "origin": origin},
        accepted_at=int(now),
        correlation_id=correlation_id,
        # Of the body alone: the same lead from another caller is the same lead.
        sha256=hashlib.sha256(body.encode()).hexdigest(),
    )


def submit(envelope: Envelope, claim: Claim, *, within: float = math.inf) -> Mapping[str, Any]:
    """Submit a lead and return {"status": "accepted" | "duplicate", "id": str | None}.

    After a try of unknown outcome CartelCRM is asked first, and the same bytes go out under the same
    Idempotency-Key. The key changes only after an answer that says that nothing was created.

    Args:
        envelope: what `submission` returned.
        claim: the effect.
        within: seconds for the submission, its wait for the budget included.

    Raises:
        Outcome: see `crm_relay.cartelcrm.client.submit_lead`.
    """
    if existing := _made_by_earlier_try(envelope, claim):
        return _accepted(envelope, existing.id)
    relay = runtime()
    until = relay.ports.clock.time() + within
    generation = _generation(claim)

    def send() -> Accepted | Duplicate:
        cartelcrm = _cartelcrm(relay)
        claim.sent({"generation": generation})
        exchange = client.submit_lead(
            cartelcrm,
            envelope.payload["body"].encode(),
            external_id=envelope.key,
            idempotency_key=_idempotency_key(envelope.key, generation),
            now=relay.ports.clock.time(),
        )
        is_final = claim.effect.waits >= _BLIPS
        return _run(relay, cartelcrm, exchange, within=until - relay.ports.clock.time(), is_final=is_final)

    try:
        answer = account(relay).request(send)
    except Rejected:
        if existing := _made_by_earlier_try(envelope, claim):
            return _accepted(envelope, existing.id)
        raise
    if isinstance(answer, Accepted):
        return _accepted(envelope, answer.id)
    if existing := _made_by_earlier_try(envelope, claim):
        return _accepted(envelope, existing.id)
    return {"status": "duplicate", "id": answer.id}


def lead_in_cartelcrm(external_id: str) -> LeadStatus | None:
    """Ask CartelCRM for a lead by our id; None if it has none.

    Raises:
        Outcome: see `crm_relay.cartelcrm.client.lead_status`.
    """
    relay = runtime()

    def ask() -> LeadStatus | None:
        cartelcrm = _cartelcrm(relay)
        exchange = client.lead_status(cartelcrm, external_id, now=relay.ports.clock.time())
        try:
            return _run(relay, cartelcrm, exchange)
        except Rejected as refusal:
            raise OutcomeUnknown(refusal.reason) from None

    return account(relay).request(ask)


def ask_for_caller(external_id: str) -> LeadStatus | None:
    """Ask CartelCRM as `lead_in_cartelcrm` does; whatever comes of it, leads go on.

    Raises:
        Outcome: see `crm_relay.cartelcrm.client.lead_status`.
    """
    relay = runtime()

    def ask() -> LeadStatus | None:
        return http_client().run(client.lead_status(_cartelcrm(relay), external_id, now=relay.ports.clock.time()))

    return account(relay).request(ask, guarded=False)


def _run[T](
    relay: Runtime,
    cartelcrm: client.Account,
    exchange: Exchange[T],
    *,
    within: float = math.inf,
    is_final: bool = True,
) -> T:
    """Run an exchange. A 403 or a page that is about this one request, and not about us, is Rejected.

    Otherwise one lead whose content some wall does not like would pause the account for all the others. If it is not
    to be final yet, it is NotExecuted: a wall that has a bad minute must not cost a lead.
    """
    try:
        return http_client().run(exchange, within=within)
    except (client.Forbidden, client.PageInsteadOfVerdict) as refusal:
        account(relay).take()
        if http_client().run(client.credentials_work(cartelcrm, now=relay.ports.clock.time())):
            raise (Rejected if is_final else NotExecuted)(str(refusal)) from None
        raise


def _made_by_earlier_try(envelope: Envelope, claim: Claim) -> LeadStatus | None:
    # Asked before a repeat, and again when the repeat is refused: the earlier request may have been slow.
    return lead_in_cartelcrm(envelope.key) if claim.in_doubt else None


@cache
def account(relay: Runtime) -> Account:
    """Return the door to CartelCRM."""
    rate = relay.settings.cartelcrm.requests_per_second
    return Account(relay.ports, "cartelcrm", requests_per_second=rate)


@cache
def http_client() -> HttpClient:
    """Return this process's one HTTP client."""
    return HttpClient()


def _cartelcrm(relay: Runtime) -> client.Account:
    secrets = relay.secrets().cartelcrm
    if not (secrets.api_key and secrets.hmac_secret):
        raise NotConfigured
    return client.Account(relay.settings.cartelcrm.base_url, secrets.api_key, secrets.hmac_secret)


def _generation(claim: Claim) -> int:
    earlier: int = (claim.effect.notes or {}).get("generation", 0)
    return earlier if claim.in_doubt else earlier + 1


def _idempotency_key(external_id: str, generation: int) -> str:
    # A digest, since an external_id need not fit into a header.
    return f"{hashlib.sha256(external_id.encode()).hexdigest()[:32]}-{generation}"


def _accepted(envelope: Envelope, lead_id: str | None) -> Mapping[str, Any]:
    if lead_id:
        relay = runtime()
        origin = envelope.payload["origin"]
        update(
            relay.ports.store,
            lead_key(lead_id),
            lambda known: Lead.read(known).submitted(envelope.key, origin).attributes(),
            expires_at=int(relay.ports.clock.time()) + KEPT,
        )
    return {"status": "accepted", "id": lead_id}
