"""Bitrix24's OAuth: a refresh token for a new pair, at one pinned host (Bitrix24 reference, section 5)."""

from dataclasses import dataclass, field
from urllib.parse import urlencode

from crm_relay.bitrix24.client import decoded, origin, refused
from crm_relay.http_client import Exchange, Request
from crm_relay.outcomes import OutcomeUnknown, Rejected, Unauthorized

DEADLINE = 15.0
"""Seconds for one token request."""
LONGEST_REFRESH = 2 * DEADLINE
"""Seconds for a refresh: asked, and asked again after a lost answer."""


@dataclass(frozen=True, slots=True)
class App:
    """An app as its developer's page shows it, and the authorization server, which no call may choose."""

    host: str
    client_id: str
    client_secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class TokenPair:
    """An access token with the refresh token that follows it, for one portal. `expires_at` is in unix seconds."""

    member_id: str
    access_token: str = field(repr=False)
    refresh_token: str = field(repr=False)
    expires_at: int


def refresh(app: App, pair: TokenPair, *, now: float) -> Exchange[TokenPair]:
    """Exchange the refresh token; a lost answer is asked for again.

    It also proves an installation: with the refresh token that came along, only a portal where this very app was
    installed gets an answer, and the answer names the portal.

    Raises:
        Unauthorized: the token is dead, the app's secret wrong, or the answer another portal's: to be installed again.
        NotExecuted, OutcomeUnknown, Blocked: no usable answer; the old token is still the one to ask with.
    """
    try:
        return (yield from _tokens(app, pair, now))
    except OutcomeUnknown:
        return (yield from _tokens(app, pair, now))


def _tokens(app: App, pair: TokenPair, now: float) -> Exchange[TokenPair]:
    query = {
        "grant_type": "refresh_token",
        "client_id": app.client_id,
        "client_secret": app.client_secret,
        "refresh_token": pair.refresh_token,
    }
    response = yield Request(
        "GET",
        f"{origin(app.host)}/oauth/token/?{urlencode(query)}",
        headers={"Accept": "application/json"},
        deadline=DEADLINE,
    )
    match decoded(response):
        case {"access_token": str(access), "refresh_token": str(following), **more} if (
            response.status == 200 and access and following
        ):
            if more.get("member_id") != pair.member_id:
                raise Unauthorized("other_portal")
            return TokenPair(pair.member_id, access, following, int(now) + _seconds(more.get("expires_in")))
        case answer:
            outcome = refused(response, answer, now)
            if isinstance(outcome, Rejected):  # whatever its word: this server talks about tokens alone
                raise Unauthorized(outcome.reason)
            raise outcome


def _seconds(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 3600
