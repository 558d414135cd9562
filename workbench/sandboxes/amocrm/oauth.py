"""OAuth: codes, token pairs that rotate, long-lived tokens, and where an account lives now."""

import json
from base64 import urlsafe_b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any
from urllib.parse import parse_qsl, urlencode
from uuid import UUID

from workbench.sandboxes.amocrm.account import AmoCrmAccount, Integration
from workbench.sandboxes.amocrm.calls import NOT_FOUND, Refused, problem
from workbench.sandboxes.wire import SandboxRequest, SandboxResponse, json_answer

CODE_SECONDS = 20 * 60
ACCESS_SECONDS = 24 * 3600
REFRESH_SECONDS = 90 * 24 * 3600


@dataclass(slots=True, eq=False)
class Pair:
    """An access token and the refresh token that follows it.

    `previous` is the pair that it was refreshed from: that one's refresh token works until this pair is used.
    """

    integration: Integration
    access_token: str
    refresh_token: str
    expires_at: float
    refresh_until: float
    previous: "Pair | None" = None
    following: "Pair | None" = None
    revoked: bool = False

    def use(self) -> None:
        """One of the tokens was used, so that the answer which brought them must have arrived."""
        if self.previous:
            self.previous.revoked = True
            self.previous = None


@dataclass(slots=True)
class _Code:
    integration: Integration
    expires_at: float
    used: bool = False


class Tokens:
    """All that was ever granted. Tokens are JWTs in form; the signatures are noise, and only the sandbox knows them.

    `redirects` are the addresses at which codes for old API keys arrive.
    """

    def __init__(self, clock: Callable[[], float], random: Random) -> None:
        self._clock = clock
        self._random = random
        self._codes: dict[str, _Code] = {}
        self._pairs: dict[str, Pair] = {}
        self._access: dict[str, tuple[Integration, float, Pair | None]] = {}
        self.redirects: list[str] = []

    # What people do

    def code(self, integration: Integration) -> str:
        """Let an integration in; the code is good once, for 20 minutes."""
        code = self._random.randbytes(64).hex()
        self._codes[code] = _Code(integration, self._clock() + CODE_SECONDS)
        return code

    def long_lived(self, account: AmoCrmAccount, integration: Integration, seconds: float) -> str:
        """A long-lived token, as the settings of a private integration make it."""
        token = self._jwt(account, integration, self._clock() + seconds)
        self._access[token] = integration, self._clock() + seconds, None
        return token

    def revoke(self) -> None:
        """All tokens of all integrations are worth nothing any more."""
        self._access.clear()
        for pair in self._pairs.values():
            pair.revoked = True

    # What integrations do

    def holder(self, authorization: str) -> Integration | None:
        """Whose token this is, if it is good; using it uses its pair."""
        scheme, _, token = authorization.partition(" ")
        integration, until, pair = self._access.get(token, (None, 0.0, None))
        if scheme != "Bearer" or self._clock() >= until:
            return None
        if pair:
            pair.use()
        return integration

    def consent(self, account: AmoCrmAccount, request: SandboxRequest, host: str) -> SandboxResponse:
        """`GET /oauth`, where the user agrees at once: back to the integration, with a code and where we are."""
        sent = {name: values[-1] for name, values in request.parameters.items()}
        integration = account.integration(sent.get("client_id"))
        if integration is None:
            return NOT_FOUND
        location = self._redirect(account, integration, referer=host, state=sent.get("state", ""))
        return SandboxResponse(302, headers={"location": location})

    def exchange(self, account: AmoCrmAccount, request: SandboxRequest, host: str) -> SandboxResponse:
        """`POST /oauth2/exchange_api_key`: 202, and a code for the old API key goes to the redirect URI."""
        sent = _sent(request)
        integration = account.integration(sent.get("client_uuid"))
        if integration is None or sent.get("client_secret") != integration.client_secret:
            return _denied(401, "Client authentication failed")
        if sent.get("login") not in {user.email for user in account.users} or sent.get("api_key") != account.api_key:
            return _denied(401, "The login or the API key is wrong")
        self.redirects.append(self._redirect(account, integration, referer=host, from_exchange=1))
        return SandboxResponse(202)

    def _redirect(self, account: AmoCrmAccount, integration: Integration, **more: object) -> str:
        told = {
            "code": self.code(integration),
            **more,
            "client_id": integration.client_id,
            "platform": 2 if account.is_kommo else 1,
        }
        separator = "&" if "?" in integration.redirect_uri else "?"
        return f"{integration.redirect_uri}{separator}{urlencode(told)}"

    def grant(self, account: AmoCrmAccount, request: SandboxRequest) -> SandboxResponse:
        """`POST /oauth2/access_token`, in JSON or as a form."""
        sent = _sent(request)
        integration = account.integration(sent.get("client_id"))
        if integration is None or sent.get("client_secret") != integration.client_secret:
            return _denied(401, "Client authentication failed")
        if sent.get("redirect_uri") != integration.redirect_uri:
            return _denied(401, "The redirect URI is not the registered one")
        previous = None
        match sent.get("grant_type"):
            case "authorization_code":
                self._spend_code(integration, str(sent.get("code")))
            case "refresh_token":
                previous = self._by_refresh_token(integration, str(sent.get("refresh_token")))
            case _:
                return _denied(400, "Check the grant_type parameter")
        pair = self._pair(account, integration, previous)
        return json_answer(
            200,
            {
                "token_type": "Bearer",
                "expires_in": ACCESS_SECONDS,
                "access_token": pair.access_token,
                "refresh_token": pair.refresh_token,
            },
        )

    def subdomain(self, account: AmoCrmAccount, request: SandboxRequest) -> SandboxResponse:
        """`GET /oauth2/account/current/subdomain`: where the account of a refresh token lives now."""
        pair = self._pairs.get(request.headers.get("x-refresh-token", ""))
        if pair is None or pair.revoked or self._clock() >= pair.refresh_until:
            return _denied(401, "The refresh token is invalid")
        return _whereabouts(account)

    def subdomain_by_access_token(self, account: AmoCrmAccount, request: SandboxRequest) -> SandboxResponse:
        """`GET /oauth2/account/subdomain`, the older way."""
        if self.holder(request.headers.get("authorization", "")) is None:
            return _denied(401, "The access token is invalid")
        return _whereabouts(account)

    def _spend_code(self, integration: Integration, given: str) -> None:
        code = self._codes.get(given)
        if code is None or code.integration != integration:
            raise Refused(_denied(400, "Cannot decrypt the authorization code"))
        if code.used:
            raise Refused(_denied(400, "Authorization code has been revoked"))
        if self._clock() >= code.expires_at:
            raise Refused(_denied(400, "Authorization code has expired"))
        code.used = True

    def _by_refresh_token(self, integration: Integration, given: str) -> Pair:
        pair = self._pairs.get(given)
        if pair is None or pair.integration != integration:
            raise Refused(_denied(401, "Cannot decrypt the refresh token"))
        if pair.revoked:
            raise Refused(_denied(401, "Token has been revoked"))
        if self._clock() >= pair.refresh_until:
            raise Refused(_denied(401, "Token has expired"))
        pair.use()
        if pair.following:
            pair.following.revoked = True
        return pair

    def _pair(self, account: AmoCrmAccount, integration: Integration, previous: Pair | None) -> Pair:
        now = self._clock()
        access_token = self._jwt(account, integration, now + ACCESS_SECONDS)
        refresh_token = self._random.randbytes(64).hex()
        pair = Pair(integration, access_token, refresh_token, now + ACCESS_SECONDS, now + REFRESH_SECONDS, previous)
        if previous:
            previous.following = pair
        self._pairs[refresh_token] = pair
        self._access[access_token] = integration, pair.expires_at, pair
        return pair

    def _jwt(self, account: AmoCrmAccount, integration: Integration, until: float) -> str:
        now = int(self._clock())
        claims = {
            "aud": integration.client_id,
            "jti": self._random.randbytes(32).hex(),
            "iat": now,
            "nbf": now,
            "exp": int(until),
            "sub": str(integration.user_id),
            "account_id": account.id,
            "base_domain": account.host.partition(".")[2],
            "version": 2,
            "scopes": ["crm", "notifications"],
            "hash_uuid": str(UUID(int=self._random.getrandbits(128), version=4)),
            "api_domain": account.api_domain,
        }
        parts = [json.dumps({"typ": "JWT", "alg": "RS256"}).encode(), json.dumps(claims).encode()]
        return ".".join(_base64(part) for part in [*parts, self._random.randbytes(256)])


def _base64(data: bytes) -> str:
    return urlsafe_b64encode(data).decode().rstrip("=")


def _sent(request: SandboxRequest) -> Mapping[str, Any]:
    if "json" not in request.headers.get("content-type", ""):
        return dict(parse_qsl(request.body.decode(errors="replace"), keep_blank_values=True))
    try:
        sent = json.loads(request.body)
    except (ValueError, RecursionError):
        return {}
    return sent if isinstance(sent, dict) else {}


def _whereabouts(account: AmoCrmAccount) -> SandboxResponse:
    top_level_domain = account.host.rpartition(".")[2]
    told = {"subdomain": account.subdomain, "domain": account.host, "top_level_domain": top_level_domain}
    return json_answer(200, {"id": account.id, **told})


def _denied(status: int, hint: str) -> SandboxResponse:
    return problem(status, "The request lacks parameters, or they are not valid", hint=hint)
