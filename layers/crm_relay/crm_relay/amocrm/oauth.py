"""amoCRM's OAuth: consent, code, refresh, moved accounts, disconnect (amoCRM reference, sections 5 and 7.9)."""

import base64
import hashlib
import hmac
import json
from dataclasses import dataclass, field
from html import escape
from typing import Any, Literal, NoReturn
from urllib.parse import urlencode

import msgspec

from crm_relay.amocrm.client import asked, beside, decoded, is_amocrm_host, origin, rate_limited
from crm_relay.http_client import Exchange, Request, Response
from crm_relay.outcomes import Blocked, OutcomeUnknown, Rejected, Unauthorized

DEADLINE = 15.0
"""Seconds for one token request."""
LONGEST_REFRESH = 4 * DEADLINE
"""Seconds for a refresh: asked, asked again after a lost answer, where the account is now, asked there."""
STATE_SECONDS = 20 * 60
"""Seconds for which a state, and amoCRM's code, are good."""


@dataclass(frozen=True, slots=True)
class App:
    """An integration, as amoCRM's settings show it."""

    client_id: str
    client_secret: str = field(repr=False)
    redirect_uri: str


@dataclass(frozen=True, slots=True)
class TokenPair:
    """An access token with the refresh token that follows it. `expires_at` is in unix seconds."""

    host: str
    access_token: str = field(repr=False)
    refresh_token: str = field(repr=False)
    expires_at: int


@dataclass(frozen=True, slots=True)
class AccountDomain:
    """Where an account is, as amoCRM says it: `domain` is its host."""

    id: int
    subdomain: str
    domain: str
    top_level_domain: str


type Mode = Literal["popup", "post_message"]
"""Where the consent ends: in the window that opened its own, or in its own."""

BUTTON_COLORS = {
    "default": "#339DC7",
    "blue": "#1976D2",
    "violet": "#6A1B9A",
    "green": "#388E3C",
    "orange": "#F57F17",
    "red": "#D84315",
}


def authorize_url(app: App, state: str, *, host: str, mode: Mode = "popup") -> str:
    """Return the address of the consent page for an account at `host`; it comes back to the app's redirect_uri."""
    return (
        f"{origin(beside(host, 'www'))}/oauth?{urlencode({'client_id': app.client_id, 'state': state, 'mode': mode})}"
    )


def button(
    app: App,
    state: str,
    *,
    title: str,
    host: str = "www.amocrm.ru",
    compact: bool = True,
    color: str = "default",
    class_name: str = "",
    error_callback: str = "",
    mode: Mode = "popup",
) -> str:
    """Return the HTML of amoCRM's button, or Kommo's, that asks for consent (amoCRM reference, section 5.2).

    Args:
        app: the integration.
        state: comes back with the code.
        title: on the button.
        host: of the account, or any other of the same site.
        compact: whether the button is small.
        color: a name of BUTTON_COLORS, or any "#RRGGBB".
        class_name: of CSS.
        error_callback: a function of the page's script.
        mode: where the consent ends.
    """
    site = beside(host, "www")
    attributes = {
        "class": "kommo_oauth" if site.endswith("kommo.com") else "amocrm_oauth",
        "charset": "utf-8",
        "data-client-id": app.client_id,
        "data-title": title,
        "data-compact": "true" if compact else "false",
        "data-class-name": class_name,
        "data-color": BUTTON_COLORS.get(color, color),
        "data-state": state,
        "data-error-callback": error_callback,
        "data-mode": mode,
        "src": f"{origin(site)}/auth/button.min.js",
    }
    return f"<script {' '.join(f'{name}="{escape(value)}"' for name, value in attributes.items())}></script>"


def account_host(referer: str, *, configured: str) -> str | None:
    """Return the host that came back with a code; None if it is neither amoCRM's, nor Kommo's, nor the configured."""
    return referer if is_amocrm_host(referer) or referer == configured else None


def exchange_code(app: App, host: str, code: str, *, now: float) -> Exchange[TokenPair]:
    """Exchange a code for the first pair.

    Raises:
        Unauthorized: the code is used, older than 20 minutes, or not ours; or the app's secret is wrong.
        NotExecuted, OutcomeUnknown, Rejected, Blocked: no usable answer.
    """
    return _tokens(app, host, {"grant_type": "authorization_code", "code": code}, now)


def refresh(app: App, pair: TokenPair, *, now: float) -> Exchange[TokenPair]:
    """Exchange the refresh token. The old one dies when the new pair is first used, so a lost answer is asked again.

    Where the account has moved, its new host is asked for and taken.

    Raises:
        Unauthorized: the token is revoked; somebody has to authorize again.
        NotExecuted, OutcomeUnknown, Blocked: no usable answer; the old token is still the one to ask with.
    """
    grant = {"grant_type": "refresh_token", "refresh_token": pair.refresh_token}
    try:
        try:
            return (yield from _tokens(app, pair.host, grant, now))
        except OutcomeUnknown:
            return (yield from _tokens(app, pair.host, grant, now))
    except (Unauthorized, Rejected) as refusal:
        try:
            host = yield from current_host(pair, now=now)
        except Unauthorized:
            host = pair.host
        if host == pair.host:
            raise Unauthorized(str(refusal)) from refusal.__cause__
    try:
        return (yield from _tokens(app, host, grant, now))
    except Rejected as refusal:
        raise Unauthorized(str(refusal)) from refusal.__cause__


def exchange_api_key(app: App, host: str, login: str, api_key: str, *, now: float) -> Exchange[None]:
    """Exchange a user's old API key: the code comes to redirect_uri, with from_exchange=1.

    Raises:
        Unauthorized: amoCRM knows no such login and key.
        NotExecuted, OutcomeUnknown, Rejected, Blocked: no usable answer.
    """
    body = {"login": login, "api_key": api_key, "client_uuid": app.client_id, "client_secret": app.client_secret}

    def read(response: Response) -> None:
        if response.status != 202:
            _refuse(response, decoded(response), now)

    yield from asked(_post(f"{origin(host)}/oauth2/exchange_api_key", body), None, read)


def account_domain(host: str, access_token: str, *, now: float) -> Exchange[AccountDomain]:
    """Ask amoCRM's or Kommo's own site where the account of a token is; `host` is where it was.

    For a pair whose access token names an API domain, `refresh` asks there by itself.

    Raises:
        Unauthorized: the token is not accepted.
        NotExecuted, Rejected, Blocked: no usable answer.
    """

    def read(response: Response) -> AccountDomain:
        match decoded(response):
            case {
                "id": int(account_id),
                "subdomain": str(subdomain),
                "domain": str(domain),
                "top_level_domain": str(top_level_domain),
            } if response.status == 200:
                return AccountDomain(account_id, subdomain, domain, top_level_domain)
            case answer:
                _refuse(response, answer, now)

    url = f"{origin(beside(host, 'www'))}/oauth2/account/subdomain"
    return (yield from asked(_get(url, {"Authorization": f"Bearer {access_token}"}), None, read))


def current_host(pair: TokenPair, *, now: float) -> Exchange[str]:
    """Ask where the account is now, at the API domain that the access token names.

    Raises:
        Unauthorized: it names none, or the refresh token is dead there too.
        NotExecuted, Blocked: no usable answer.
    """
    domain = _claims(pair.access_token).get("api_domain")
    if not isinstance(domain, str) or not is_amocrm_host(domain):
        raise Unauthorized("no_api_domain")

    def read(response: Response) -> str:
        match decoded(response):
            case {"domain": str(host)} if response.status == 200:
                if is_amocrm_host(host):
                    return host
                raise Blocked("foreign_host")
            case answer:
                _refuse(response, answer, now)

    url = f"{origin(domain)}/oauth2/account/current/subdomain"
    try:
        return (yield from asked(_get(url, {"X-Refresh-Token": pair.refresh_token}), None, read))
    except Rejected as refusal:
        raise Unauthorized(str(refusal)) from refusal.__cause__


def expires_at(token: str) -> int | None:
    """Return when a long-lived token ends, in unix seconds, from its own `exp`; None if it does not say."""
    match _claims(token).get("exp"):
        case bool():
            return None
        case int() as seconds:
            return seconds
        case _:
            return None


def sign_state(name: str, nonce: str, secret: str, *, now: float) -> str:
    """Return a state that only we can have made, for the account `name`, good for 20 minutes; no dot in `nonce`."""
    text = f"{name}.{nonce}.{int(now) + STATE_SECONDS}"
    return f"{text}.{_state_signature(secret, text)}"


def read_state(state: str, secret: str, *, now: float) -> tuple[str, str] | None:
    """Return (name, nonce) of a state that is ours and still good, else None. Single use is the caller's to see to."""
    text, _, signature = state.rpartition(".")
    if not secret or not _same(signature, _state_signature(secret, text)):
        return None
    name, nonce, until = text.rsplit(".", 2)
    return (name, nonce) if now <= int(until) else None


def is_disconnect(app: App, *, client_uuid: str, account_id: str, signature: str) -> bool:
    """Tell whether a call that says that an account disconnected the integration is amoCRM's."""
    if not app.client_secret or not _same(client_uuid, app.client_id):
        return False
    return _same(signature, _hmac(app.client_secret, f"{client_uuid}|{account_id}"))


def _tokens(app: App, host: str, grant: dict[str, str], now: float) -> Exchange[TokenPair]:
    body = {
        "client_id": app.client_id,
        "client_secret": app.client_secret,
        "redirect_uri": app.redirect_uri,
        **grant,
    }

    def read(response: Response) -> TokenPair:
        match decoded(response):
            case {"access_token": str(access), "refresh_token": str(following), "expires_in": int(seconds)} if (
                response.status == 200 and access and following
            ):
                return TokenPair(host, access, following, int(now) + seconds)
            case answer:
                _refuse(response, answer, now)

    return (yield from asked(_post(f"{origin(host)}/oauth2/access_token", body), None, read))


def _get(url: str, headers: dict[str, str]) -> Request:
    return Request("GET", url, headers=headers, deadline=DEADLINE)


def _post(url: str, body: dict[str, str]) -> Request:
    headers = {"Content-Type": "application/json"}
    return Request("POST", url, headers=headers, content=msgspec.json.encode(body), deadline=DEADLINE)


def _refuse(response: Response, answer: dict[str, Any] | None, now: float) -> NoReturn:
    match response.status:
        case 429:
            raise rate_limited(response, answer, now)
        case 402:
            raise Blocked("not_paid")
        case 403 if answer is None:
            raise Blocked("account_blocked")
        case 400 | 401 | 403:
            raise Unauthorized(f"http_{response.status}")
        case status if 300 <= status < 400:
            raise Blocked("redirected")
        case status if 400 <= status < 500:  # 404 is a moved account's
            raise Rejected(f"http_{status}")
        case status:
            raise OutcomeUnknown(f"http_{status}")


def _claims(token: str) -> dict[str, Any]:
    """Read a JWT's claims unverified: they only say where and until when, never who."""
    try:
        payload = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (IndexError, ValueError, RecursionError):
        return {}
    return claims if isinstance(claims, dict) else {}


def _state_signature(secret: str, text: str) -> str:
    # Under a name of its own: the same key signs what amoCRM says of a disconnected account.
    return _hmac(secret, f"state:{text}")


def _hmac(secret: str, text: str) -> str:
    return hmac.new(secret.encode(), text.encode("utf-8", "surrogatepass"), hashlib.sha256).hexdigest()


def _same(given: str, right: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), right.encode())
