"""Bitrix24's OAuth: what is asked of whom, and what each answer means."""

from urllib.parse import parse_qs, urlsplit

import pytest

from crm_relay.bitrix24.client import PageInstead
from crm_relay.bitrix24.oauth import App, TokenPair, refresh
from crm_relay.http_client import Response
from crm_relay.outcomes import Blocked, NotExecuted, Outcome, OutcomeUnknown, Unauthorized, Unreachable
from tests.exchanges import Driven, drive, says

NOW = 1_760_000_000.0
MEMBER = "0123456789abcdef0123456789abcdef"
APP = App("oauth.bitrix.info", "local.5c8bb1b0891cf2.87252039", "app-secret")
OLD = TokenPair(MEMBER, "old-access", "old-refresh", int(NOW))
NEW = TokenPair(MEMBER, "new-access", "new-refresh", int(NOW) + 3600)
GRANTED = {
    "access_token": "new-access",
    "refresh_token": "new-refresh",
    "expires_in": 3600,
    "scope": "crm",
    "domain": "oauth.bitrix.info",
    "server_endpoint": "https://evil.com/rest/",
    "client_endpoint": "https://evil.com/rest/",
    "status": "L",
    "member_id": MEMBER,
}


def refreshed(*answers: Response | Outcome) -> Driven[TokenPair]:
    return drive(refresh(APP, OLD, now=NOW), *answers)


def test_a_refresh_token_is_exchanged_at_the_pinned_host() -> None:
    """C11: whatever endpoints an answer names; the sample of the documentation has no `expires`."""
    driven = refreshed(says(200, GRANTED))
    assert driven.result == NEW
    (request,) = driven.requests
    url = urlsplit(request.url)
    assert (request.method, url.scheme, url.netloc, url.path) == ("GET", "https", "oauth.bitrix.info", "/oauth/token/")
    assert parse_qs(url.query) == {
        "grant_type": ["refresh_token"],
        "client_id": [APP.client_id],
        "client_secret": ["app-secret"],
        "refresh_token": ["old-refresh"],
    }


def test_an_hour_is_what_a_token_lives_unless_told() -> None:
    """An answer without `expires_in` is usable."""
    without = {key: value for key, value in GRANTED.items() if key != "expires_in"}
    assert refreshed(says(200, without)).result == NEW
    assert refreshed(says(200, {**GRANTED, "expires_in": "x"})).result == NEW


def test_tokens_and_secrets_do_not_show() -> None:
    """C23: printed by accident, they tell nothing."""
    shown = f"{APP} {OLD} {refreshed(says(200, GRANTED))}"
    for secret in ("app-secret", "old-access", "old-refresh", "new-access", "new-refresh"):
        assert secret not in shown


@pytest.mark.parametrize("member_id", ["f" * 32, "", None])
def test_c14_another_portals_tokens_are_not_taken(member_id: str | None) -> None:
    """C14: an installation that names our portal and brings another one's refresh token."""
    outcome = refreshed(says(200, {**GRANTED, "member_id": member_id})).outcome
    assert type(outcome) is Unauthorized
    assert str(outcome) == "other_portal"


@pytest.mark.parametrize(
    "answer",
    [
        says(400, {"error": "invalid_grant", "error_description": "…"}),
        says(401, {"error": "invalid_grant"}),
        says(400, {"error": "invalid_client"}),
        says(400, {"error": "WRONG_CLIENT"}),
        says(400, {"error": "bad_verification_code"}),
        says(400, {"error": "invalid_request"}),
        says(401, b"<html>"),
        says(401, {"error": "expired_token"}),
    ],
    ids=repr,
)
def test_a_refused_token_is_dead(answer: Response) -> None:
    """The app is to be installed again; once refused it is not asked with again."""
    assert isinstance(refreshed(answer).outcome, Unauthorized)


LOST = [says(502, b"<html>"), says(200, b""), says(200, {**GRANTED, "access_token": ""}), OutcomeUnknown("ReadTimeout")]


@pytest.mark.parametrize("answer", LOST, ids=repr)
def test_a_lost_answer_is_asked_for_again(answer: Response | Outcome) -> None:
    """With the old token; lost twice, it says nothing of the token."""
    driven = refreshed(answer, says(200, GRANTED))
    assert driven.result == NEW
    assert driven.requests[0] == driven.requests[1]
    assert type(refreshed(answer, answer).outcome) is OutcomeUnknown


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (says(503, {"error": "QUERY_LIMIT_EXCEEDED"}), NotExecuted),
        (says(401, {"error": "PAYMENT_REQUIRED"}), Blocked),
        (says(403, b"<html>"), PageInstead),
        (Unreachable("ConnectError"), Unreachable),
    ],
    ids=repr,
)
def test_what_is_no_word_about_the_token_is_told_as_it_is(answer: Response | Outcome, outcome: type[Outcome]) -> None:
    """Busy, not paid, out of reach: the token is as good as before."""
    assert type(refreshed(answer).outcome) is outcome
