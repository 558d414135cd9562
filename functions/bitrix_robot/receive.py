"""POST /bitrix/{url_key}: know the portal by its path, prove the call, make what it asks for durable, answer."""

import hmac
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from http import HTTPStatus

from bitrix_robot.keys import app_key, portal_key
from bitrix_robot.order import KIND, Order
from crm_relay.bitrix24.calls import Call, Proof, proof_of, read_body, read_call
from crm_relay.delivery.inbox import make_durable, quarantine
from crm_relay.delivery.ledger import Effect, Ledger, State
from crm_relay.delivery.ports import StorageError
from crm_relay.delivery.runtime import Runtime, prepare, runtime
from crm_relay.delivery.tokens import SharedToken
from crm_relay.delivery.worker import LambdaContext
from crm_relay.http_api import (
    Answer,
    Event,
    Forbidden,
    Meaningless,
    NotFound,
    Request,
    Unavailable,
    Unsupported,
    answer,
)
from crm_relay.observability import count, log_failure, needs_attention, observed
from crm_relay.settings import Bitrix24Secrets

_WITHIN = 25.0
"""Seconds that a caller waits for his transfer."""
_QUEUE_AFTER = 30
"""Seconds that the queue leaves to it."""
_TOKEN_LIVES = 3600
"""Seconds, where a call does not say."""
_LONGEST_TOLD = 64
"""Characters of what a log says of an unknown caller."""
_TYPES = ("application/x-www-form-urlencoded", "application/json")


@observed()
def handler(event: Event, context: LambdaContext) -> Answer:
    """Answer one call. Bitrix24 never repeats one, so what is authentic is kept, come what may."""
    relay = runtime()
    request = Request.read(event, body_limit=relay.settings.relay.hook_body_limit_bytes)
    request.expect("POST")
    if request.headers.get("content-type", _TYPES[0]).partition(";")[0].strip().lower() not in _TYPES:
        raise Unsupported("form_or_json_expected")
    name, secrets = _portal_of(request.path_parameters.get("url_key", ""), relay.secrets().bitrix24)
    tree = read_body(request.body)
    proof = proof_of(tree)
    _expect_proven(relay, name, secrets, proof)
    now = relay.ports.clock.time()
    try:
        call = read_call(tree, request.query, now=now)
        orders = _orders(relay, name, call)
    except Meaningless as refusal:
        quarantine(relay.ports, KIND, request.body, refusal.error)
        raise
    match call.kind:
        case "installed":
            return _installed(relay, name, call, proof.application_token)
        case "uninstalled":
            return _uninstalled(relay, name)
        case _:
            _keep_token(relay, name, secrets, call)
            return _ordered(relay, orders, request, context)


def _portal_of(key: str, portals: Mapping[str, Bitrix24Secrets]) -> tuple[str, Bitrix24Secrets]:
    """Return the portal whose path this is. All keys are compared, whichever fits."""
    given = key.encode("utf-8", "surrogatepass")
    found = [
        (name, secrets)
        for name, secrets in portals.items()
        if secrets.url_key and hmac.compare_digest(given, secrets.url_key.encode())
    ]
    if not found:
        raise NotFound("not_found")
    return found[0]


def _expect_proven(relay: Runtime, name: str, secrets: Bitrix24Secrets, proof: Proof) -> None:
    """Raise Forbidden unless the call is the portal's.

    The built-in Webhook robot carries no token: the path is its proof. An installation brings its token along, and is
    proven by the authorization server.
    """
    portal = relay.settings.bitrix24.portals.get(name)
    if portal is None or (proof.member_id, proof.domain) != (portal.member_id, portal.domain):
        # Whoever knows the key is the portal itself, renamed or not well described, or has the key from there.
        told = {"member_id": proof.member_id[:_LONGEST_TOLD], "domain": proof.domain[:_LONGEST_TOLD]}
        if any(told.values()):
            needs_attention("call of another portal", portal=name, **told)
        raise Forbidden("portal_not_configured")
    if proof.kind == "installed" and not secrets.client_id:
        raise Forbidden("installation_not_proven")
    if proof.kind in ("webhook_robot", "installed"):
        return
    given = proof.application_token.encode("utf-8", "surrogatepass")
    if not any(hmac.compare_digest(given, token.encode()) for token in _application_tokens(relay, name, secrets)):
        raise Forbidden("application_token_invalid")


def _application_tokens(relay: Runtime, name: str, secrets: Bitrix24Secrets) -> Iterator[str]:
    """Yield what a portal's outgoing webhook may show, and what its app may."""
    if secrets.application_token:
        yield secrets.application_token
    if secrets.client_id and (token := _installed_token(relay, name)):
        yield token


def _orders(relay: Runtime, portal: str, call: Call) -> list[Order]:
    if call.deal_id is None:
        return []
    routes = [name for name, route in relay.settings.bitrix24.routes.items() if route.source == portal]
    if call.route:
        routes = [name for name in routes if name == call.route]
    if not routes:
        raise Meaningless("route_unknown")
    if len(routes) > 1 and call.event_token:
        raise Meaningless("route_required")  # a robot gets one answer
    expected = call.kind != "event" and len(routes) == 1
    return [Order(portal, call.deal_id, route, expected, call.event_token) for route in routes]


def _ordered(relay: Runtime, orders: Sequence[Order], request: Request, context: LambdaContext) -> Answer:
    order = orders[0]
    known = _known(relay, order) if len(orders) == 1 else None
    if known and known.settled and not order.event_token and _is_over(relay, order):
        count("Replayed")
        return _answer(order, known)
    inline = len(orders) == 1 and request.query.get("wait") == "1"
    now = relay.ports.clock.time()
    for each in orders:
        make_durable(relay.ports, each.envelope(call=request.id, now=now), delay=_QUEUE_AFTER if inline else 0)
        count("Received")
    if inline:
        # Only who waits pays for the start of the client.
        from bitrix_robot.transfer import transfer_at_once  # noqa: PLC0415 (see above)

        known = transfer_at_once(relay, order.envelope(call=request.id, now=now), context, within=_WITHIN)
    return _answer(order, known)


def _answer(order: Order, known: Effect | None) -> Answer:
    """Return what is known of a transfer; nothing in it comes from Bitrix24 but the hub's id and a refusal's code."""
    told = partial(answer, transfer_id=order.transfer_id)
    match known:
        case Effect(state=State.CONFIRMED, result={"hub_deal": int(hub_deal)}):
            return told(HTTPStatus.OK, success=True, esb_deal_id=hub_deal)
        case Effect(state=State.CONFIRMED):
            return told(HTTPStatus.OK, success=True, transfer="not_in_stage")
        case Effect(state=State.REJECTED, result={"reason": str(reason)}):
            return told(HTTPStatus.UNPROCESSABLE_ENTITY, error="transfer_refused", reason=reason)
        case _:
            return told(HTTPStatus.OK, success=True, transfer="queued")


def _known(relay: Runtime, order: Order) -> Effect | None:
    try:
        return Ledger(relay.ports.store, relay.ports.clock).find(order.transfer)
    except StorageError as error:
        log_failure("ledger not read", error, key=order.transfer)
        return None


def _is_over(relay: Runtime, order: Order) -> bool:
    """Whether a later call for a deal that was carried changes nothing."""
    return relay.settings.bitrix24.routes[order.route].on_repeat == "nothing"


# Apps


def _installed(relay: Runtime, portal: str, call: Call, application_token: str) -> Answer:
    from bitrix_robot.install import install  # noqa: PLC0415 (once in a portal's life)

    install(relay, portal, call, application_token=application_token)
    return answer(HTTPStatus.OK, success=True)


def _uninstalled(relay: Runtime, portal: str) -> Answer:
    try:
        SharedToken(relay.ports, portal_key(portal)).write(None)
    except StorageError as error:
        log_failure("uninstallation not written", error, portal=portal)
        raise Unavailable("nothing_durable") from None
    needs_attention("app uninstalled", portal=portal)
    return answer(HTTPStatus.OK, success=True)


def _installed_token(relay: Runtime, portal: str) -> str:
    try:
        item = relay.ports.store.get(app_key(portal))
    except StorageError as error:
        log_failure("application token not read", error, portal=portal)
        raise Unavailable("application_token_unavailable") from None
    return str(item.attributes["application_token"]) if item else ""


def _keep_token(relay: Runtime, portal: str, secrets: Bitrix24Secrets, call: Call) -> None:
    """Keep the token that came with a proven call, where relay.toml says so and we have nothing better."""
    settings = relay.settings.bitrix24.portals[portal]
    if not (call.tokens and settings.use_token_of_call) or call.kind == "webhook_robot":
        return
    if secrets.webhook_url or secrets.client_id:
        return
    pair = {
        "member_id": settings.member_id,
        "access_token": call.tokens.access_token,
        "refresh_token": call.tokens.refresh_token,
        "expires_at": call.tokens.expires_at or int(relay.ports.clock.time()) + _TOKEN_LIVES,
    }
    try:
        SharedToken(relay.ports, portal_key(portal)).write(pair)
    except StorageError as error:
        log_failure("token of the call not kept", error, portal=portal)  # the next call brings another


prepare()
