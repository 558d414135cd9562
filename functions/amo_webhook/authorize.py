"""GET /amo/oauth, GET /amo/disconnect: an administrator lets us into an account, or takes that back."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from http import HTTPStatus

from amo_webhook.account import amo_key, app_of, http_client
from crm_relay.amocrm.client import Account
from crm_relay.amocrm.oauth import (
    STATE_SECONDS,
    App,
    TokenPair,
    account_host,
    exchange_code,
    is_disconnect,
    read_state,
)
from crm_relay.amocrm.resources import account_info
from crm_relay.delivery.account import pause_key
from crm_relay.delivery.ports import Conflict, StorageError, update
from crm_relay.delivery.runtime import Runtime, prepare, runtime
from crm_relay.delivery.tokens import SharedToken
from crm_relay.http_api import Answer, Event, Forbidden, Malformed, NotFound, Refusal, Request, Unavailable, answer
from crm_relay.http_client import Exchange
from crm_relay.observability import log_failure, logger, needs_attention, observed
from crm_relay.outcomes import Blocked, Outcome, Rejected, Unauthorized
from crm_relay.settings import AmoCrmAccount

_WITHIN = 20.0
"""Seconds for all that amoCRM is asked while a person waits."""
_BODY_LIMIT = 1024
_PAUSE_FORGOTTEN = 600

_CONNECTED = "Доступ получен, аккаунт подключён. Это окно можно закрыть."
_REFUSED: Mapping[str, str] = {
    "state_invalid": "Ссылка не наша или устарела: она действует 20 минут. Запросите новую.",
    "state_used": "По этой ссылке уже приходили: она действует один раз. Запросите новую.",
    "consent_refused": "Доступ не предоставлен. Чтобы подключить аккаунт, запросите новую ссылку и разрешите доступ.",
    "foreign_host": "Адрес аккаунта не принадлежит amoCRM или Kommo. Ключи туда не отправлены.",
    "other_account": "Доступ предоставлен не тому аккаунту. Войдите в настроенный и запросите новую ссылку.",
    "code_refused": "amoCRM не приняла код доступа. Проверьте ключи интеграции и запросите новую ссылку.",
    "amocrm_unavailable": "amoCRM сейчас не отвечает. Запросите новую ссылку и попробуйте ещё раз.",
    "table_unavailable": "Доступ не удалось сохранить. Запросите новую ссылку и попробуйте ещё раз.",
    "not_configured": "Интеграция ещё не настроена.",
}
_NOT_DONE = "Запрос не принят."
_PAGE = """<!doctype html>
<html lang="ru">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>CRM Relay</title>
<p>{sentence}</p>
</html>
"""


class AmoCrmUnavailable(Refusal):
    """amoCRM does not answer now: 503. The person who waits reads it, and nobody else need look."""

    status = HTTPStatus.SERVICE_UNAVAILABLE


def page(status: int, sentence: str) -> Answer:
    """Return a page of one sentence. The address it stands at has a code in it, which must not travel on."""
    headers = {
        "Content-Type": "text/html; charset=utf-8",
        "Cache-Control": "no-store",
        "Referrer-Policy": "no-referrer",
        "Content-Security-Policy": "default-src 'none'",
        "X-Content-Type-Options": "nosniff",
    }
    return {"statusCode": int(status), "headers": headers, "body": _PAGE.format(sentence=sentence)}


def explained(refusal: Refusal) -> Answer:
    """Return a refusal as a page."""
    return page(refusal.status, _REFUSED.get(refusal.error, _NOT_DONE))


@observed(refuse=explained)
def handler(event: Event, _context: object) -> Answer:
    """Answer an administrator who comes back from the consent page, or amoCRM that tells of a disconnected account."""
    request = Request.read(event, body_limit=_BODY_LIMIT)
    try:
        match request.route:
            case "GET /amo/oauth":
                _authorize(runtime(), request.query)
                return page(HTTPStatus.OK, _CONNECTED)
            case "GET /amo/disconnect":
                _disconnect(runtime(), request.query)
                return answer(HTTPStatus.OK, ok=True)
            case _:
                raise NotFound("not_found")
    except StorageError as error:
        log_failure("table not used", error)
        raise Unavailable("table_unavailable") from None


def _authorize(relay: Runtime, query: Mapping[str, str]) -> None:
    now = relay.ports.clock.time()
    name, settings, app, nonce = _expected(relay, query.get("state", ""), now)
    try:
        relay.ports.store.put(f"state#{nonce}", {}, replaces=None, expires_at=int(now) + STATE_SECONDS + 1)
    except Conflict:
        raise Forbidden("state_used") from None
    code = query.get("code")
    if not code:
        raise Malformed("consent_refused")
    host = account_host(query.get("referer", ""), configured=settings.host)
    if host is None:
        raise Forbidden("foreign_host")
    try:
        pair = http_client().run(_pair_of(app, host, code, settings.account_id, now=now), within=_WITHIN)
    except (Unauthorized, Rejected, Blocked) as refusal:
        logger.warning("code not exchanged", account=name, reason=str(refusal))
        raise Malformed("code_refused") from None
    except Outcome as outcome:
        logger.warning("code not exchanged", account=name, reason=str(outcome))
        raise AmoCrmUnavailable("amocrm_unavailable") from None
    SharedToken(relay.ports, amo_key(name)).write(asdict(pair))
    update(relay.ports.store, pause_key(amo_key(name)), _ended, expires_at=int(now) + _PAUSE_FORGOTTEN)
    logger.info("account authorized", account=name)


def _expected(relay: Runtime, state: str, now: float) -> tuple[str, AmoCrmAccount, App, str]:
    """Return (name, settings, integration, nonce) of the account that a state was made for."""
    for name, settings, app in _integrations(relay):
        match read_state(state, app.client_secret, now=now):
            case (signed, nonce) if signed == name:
                return name, settings, app, nonce
            case _:
                pass
    raise Forbidden("state_invalid")


def _pair_of(app: App, host: str, code: str, account_id: int, *, now: float) -> Exchange[TokenPair]:
    """Exchange the code, and ask whose it was: an administrator of several accounts may have picked another."""
    pair = yield from exchange_code(app, host, code, now=now)
    info = yield from account_info(Account(pair.host, pair.access_token), now=now)
    if info.get("id") != account_id:
        raise Forbidden("other_account")
    return pair


def _ended(pause: Mapping[str, object]) -> Mapping[str, object]:
    return {**pause, "until": 0} if pause else pause


def _disconnect(relay: Runtime, query: Mapping[str, str]) -> None:
    account_id, client_uuid = query.get("account_id", ""), query.get("client_uuid", "")
    names = [
        name
        for name, settings, app in _integrations(relay)
        if is_disconnect(app, client_uuid=client_uuid, account_id=account_id, signature=query.get("signature", ""))
        and account_id == str(settings.account_id)
    ]
    if not names:
        raise Forbidden("signature_invalid")
    for name in names:
        SharedToken(relay.ports, amo_key(name)).write(None)
        needs_attention("account disconnected", account=name)


def _integrations(relay: Runtime) -> Iterator[tuple[str, AmoCrmAccount, App]]:
    secrets = relay.secrets().amocrm
    for name, settings in relay.settings.amocrm.accounts.items():
        app = app_of(secrets[name]) if name in secrets else None
        if app:
            yield name, settings, app


prepare(http_client)
