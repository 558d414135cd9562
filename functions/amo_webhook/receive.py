"""POST /amo/{hook_token}: know the account by its path, read the hook, make each entity's change durable, answer."""

import hmac
from collections.abc import Mapping
from typing import Any

import msgspec

from amo_webhook.change import change_envelope, gets_note
from crm_relay.amocrm.hooks import read_account, read_hook
from crm_relay.brackets import TooComplex, decode
from crm_relay.delivery.inbox import make_all_durable, quarantine
from crm_relay.delivery.runtime import prepare, runtime
from crm_relay.http_api import Answer, Event, Forbidden, Malformed, NotFound, Request, Unsupported, answer
from crm_relay.observability import count, observed
from crm_relay.settings import AmoCrmSecrets

_MOST_CHANGES = 1000
"""Entities of a hook; amoCRM packs some dozens, and SQS takes ten a request."""
_FORM = "application/x-www-form-urlencoded"


class OtherAccount(Forbidden):
    """Who calls knows an account's path and is not that account: relay.toml is wrong, or the path is known: 403."""

    needs_attention = True


@observed()
def handler(event: Event, _context: Any) -> Answer:
    """Answer one hook. amoCRM switches a hook off after 100 bad answers, so what can be read at all gets a 200."""
    relay = runtime()
    request = Request.read(event, body_limit=relay.settings.relay.hook_body_limit_bytes)
    request.expect("POST")
    name = _account_of(request.path_parameters.get("hook_token", ""), relay.secrets().amocrm)
    account = relay.settings.amocrm.accounts.get(name)
    _expect_form(request)
    try:
        if account is None or read_account(request.body) != (account.account_id, account.subdomain):
            raise OtherAccount("account_not_configured")
        hook = read_hook(decode(request.body))
    except TooComplex:
        raise Malformed("too_complex") from None
    # What our own integration has caused would go round for ever.
    wanted = [
        event
        for event in hook.events
        if gets_note(event, account.notes) and event.modified_by not in account.own_user_ids
    ]
    if len(wanted) > _MOST_CHANGES:
        # Without the rest, which may be more than an item holds.
        ids = msgspec.json.encode([(event.entity, event.action, event.id) for event in wanted])
        quarantine(relay.ports, "amocrm.hook", ids, "too_many_entities")
        wanted = []
    now = relay.ports.clock.time()
    make_all_durable(relay.ports, [change_envelope(name, event, request_id=request.id, now=now) for event in wanted])
    if hook.unreadable:
        quarantine(relay.ports, "amocrm.hook", request.body, "id_invalid")
    count("Received", len(wanted))
    count("Ignored", len(hook.events) - len(wanted))
    return answer(200, ok=True)


def _account_of(token: str, secrets: Mapping[str, AmoCrmSecrets]) -> str:
    """Return the account whose path this is. All tokens are compared, whichever fits."""
    given = token.encode("utf-8", "surrogatepass")
    names = [
        name
        for name, secret in secrets.items()
        if secret.hook_token and hmac.compare_digest(given, secret.hook_token.encode())
    ]
    if not names:
        raise NotFound("not_found")
    return names[0]


def _expect_form(request: Request) -> None:
    content_type = request.headers.get("content-type", _FORM).partition(";")[0].strip().lower()
    if content_type == "application/json" or request.body.lstrip()[:1] in (b"{", b"["):
        raise Malformed("form_expected")
    if content_type != _FORM:
        raise Unsupported("form_expected")


prepare()
