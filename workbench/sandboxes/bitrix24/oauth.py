"""A stand-in for Bitrix24's authorization server, which all portals share: tokens that expire and rotate."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any, override

from workbench.sandboxes.bitrix24.calls import Refused, envelope, read_params
from workbench.sandboxes.bitrix24.portal import App, Bitrix24Portal
from workbench.sandboxes.sandbox import Sandbox
from workbench.sandboxes.wire import SandboxRequest, SandboxResponse

HOST = "oauth.bitrix.info"
SERVER_ENDPOINT = f"https://{HOST}/rest/"
ACCESS_SECONDS = 3_600
REFRESH_SECONDS = 180 * 24 * 3_600
CODE_SECONDS = 30


@dataclass(slots=True, eq=False)
class Grant:
    """A pair of tokens by which an application acts as a user of one portal."""

    app: App
    member_id: str
    user_id: int
    access_token: str
    refresh_token: str
    expires_at: float
    refresh_until: float


class Bitrix24OAuth(Sandbox):
    """The server behind oauth.bitrix.info. `refreshes` counts refreshed pairs, and `issued` has all tokens."""

    def __init__(self, *, clock: Callable[[], float], random: Random) -> None:
        super().__init__(clock=clock, random=random)
        self.refreshes = 0
        self.issued: list[str] = []
        self._portals: dict[str, Callable[[], Bitrix24Portal]] = {}
        self._codes: dict[str, tuple[str, App, float]] = {}
        self._access: dict[str, Grant] = {}
        self._refresh: dict[str, Grant] = {}

    # What portals do

    def register(self, member_id: str, portal: Callable[[], Bitrix24Portal]) -> None:
        """Take a portal in; it may change later."""
        self._portals[member_id] = portal

    def grant(self, portal: Bitrix24Portal, app: App, user_id: int) -> Grant:
        """A new pair; those before it stay good."""
        now = self.clock()
        grant = Grant(
            app,
            portal.member_id,
            user_id,
            self.random.randbytes(35).hex(),
            self.random.randbytes(35).hex(),
            now + ACCESS_SECONDS,
            now + REFRESH_SECONDS,
        )
        self._access[grant.access_token] = self._refresh[grant.refresh_token] = grant
        self.issued += (grant.access_token, grant.refresh_token)
        return grant

    def code(self, portal: Bitrix24Portal, app: App) -> str:
        """An administrator lets an application in; the code is good once, for 30 seconds."""
        code = self.random.randbytes(25).hex()
        self._codes[code] = portal.member_id, app, self.clock() + CODE_SECONDS
        return code

    def holder(self, access_token: str, member_id: str) -> Grant:
        """Whose token this is. Refused if it is of another portal, unknown or too old."""
        grant = self._access.get(access_token)
        if grant is None or grant.member_id != member_id:
            raise Refused("invalid_token", "Unable to get application by token", 401)
        if self.clock() >= grant.expires_at:
            raise Refused("expired_token", "The access token provided has expired.", 401)
        return grant

    def revoke(self, portal: Bitrix24Portal, app: App) -> None:
        """What the application was granted in a portal is worth nothing any more."""
        gone = portal.member_id, app
        for tokens in (self._access, self._refresh):
            for token in [token for token, grant in tokens.items() if (grant.member_id, grant.app) == gone]:
                del tokens[token]

    # What applications do

    @override
    def answer(self, request: SandboxRequest) -> SandboxResponse:
        sent = read_params(request)
        try:
            match request.parts:
                case ("oauth", "token", *_):
                    return envelope(200, self._exchange(sent))
                case ("rest", "app.info"):
                    return envelope(200, {"result": self._info(sent)})
                case _:
                    return self.refusal(404, "ERROR_METHOD_NOT_FOUND")
        except Refused as refused:
            return envelope(refused.status, refused.told)

    @override
    def refusal(self, status: int, code: str) -> SandboxResponse:
        return envelope(status, {"error": code, "error_description": ""})

    def _exchange(self, sent: Mapping[str, Any]) -> dict[str, object]:
        match sent.get("grant_type"):
            case "refresh_token":
                old = self._refresh.get(str(sent.get("refresh_token")))
                if old is None or self.clock() >= old.refresh_until:
                    raise Refused("invalid_grant", "Invalid refresh token")
                member_id, app, user_id = old.member_id, old.app, old.user_id
                _prove(sent, app)
                del self._refresh[old.refresh_token]
                self.refreshes += 1
            case "authorization_code":
                known = self._codes.pop(str(sent.get("code")), None)
                if known is None or self.clock() >= known[2]:
                    raise Refused("invalid_grant", "Invalid authorization code")
                member_id, app, _ = known
                user_id = app.user_id
                _prove(sent, app)
            case _:
                raise Refused("invalid_request", "Invalid grant_type")
        portal = self._portals[member_id]()
        # The domain of this answer is the server's own: the portal is to be taken from client_endpoint.
        return token_fields(portal, self.grant(portal, app, user_id), self.clock()) | {"domain": HOST}

    def _info(self, sent: Mapping[str, Any]) -> dict[str, object]:
        """Tell what a token is of, so that a token in somebody's call can be checked (reference, section 2.5)."""
        token = str(sent.get("auth", ""))
        member_id = self._access[token].member_id if token in self._access else ""
        grant = self.holder(token, member_id)
        portal = self._portals[member_id]()
        installed = {
            "installed": True,
            "version": "1",
            "status": "L",
            "scope": ",".join(sorted(grant.app.scopes)),
            "domain": portal.domain,
            "uri": f"https://{portal.domain}",
            "client_endpoint": portal.endpoint,
            "member_id": member_id,
            "member_type": "BITRIX24",
        }
        return {
            "client_id": grant.app.client_id,
            "scope": sorted(grant.app.scopes),
            "expires": int(grant.expires_at),
            "user_id": grant.user_id,
            "install": installed,
        }


def token_fields(portal: Bitrix24Portal, grant: Grant, now: float) -> dict[str, object]:
    """A pair as it is told of, to the application that refreshes it as well as in calls of the portal."""
    return {
        "access_token": grant.access_token,
        "expires": int(grant.expires_at),
        "expires_in": max(0, int(grant.expires_at - now)),
        "scope": ",".join(sorted(grant.app.scopes)),
        "domain": portal.domain,
        "server_endpoint": SERVER_ENDPOINT,
        "status": "L",
        "client_endpoint": portal.endpoint,
        "member_id": portal.member_id,
        "user_id": grant.user_id,
        "refresh_token": grant.refresh_token,
    }


def _prove(sent: Mapping[str, Any], app: App) -> None:
    if (sent.get("client_id"), sent.get("client_secret")) != (app.client_id, app.client_secret):
        raise Refused("invalid_client", "The client credentials are invalid", 401)
