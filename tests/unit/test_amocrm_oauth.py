"""amoCRM's OAuth: what is asked of whom, what each answer means, and whom we believe."""

import base64
import hashlib
import hmac
import json
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from crm_relay.amocrm.client import Problem
from crm_relay.amocrm.oauth import (
    LONGEST_REFRESH,
    STATE_SECONDS,
    AccountDomain,
    App,
    TokenPair,
    account_domain,
    account_host,
    authorize_url,
    button,
    current_host,
    exchange_api_key,
    exchange_code,
    expires_at,
    is_disconnect,
    read_state,
    refresh,
    sign_state,
)
from crm_relay.http_client import Response
from crm_relay.outcomes import Blocked, NotExecuted, Outcome, OutcomeUnknown, Rejected, Unauthorized, Unreachable
from tests.exchanges import Driven, drive, says

NOW = 1_760_000_000.0
APP = App("7fc58d5a-1f65-4b6e-9d3c-2f0d1c1e8a10", "app-secret", "https://relay.example/amo/oauth")
HTML = b"<html><h1>502</h1></html>"
REVOKED = {"title": "Token error", "status": 401, "hint": "Token has been revoked"}


def jwt(claims: object) -> str:
    payload = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return f"eyJhbGciOiJSUzI1NiJ9.{payload}.c2lnbmF0dXJl"


def pair(host: str = "example.amocrm.ru", access: str | None = None) -> TokenPair:
    return TokenPair(host, access or jwt({"api_domain": "api-b.amocrm.ru"}), "the-refresh-token", int(NOW))


def granted(**more: Any) -> Response:
    answer = {
        "token_type": "Bearer",
        "expires_in": 86_400,
        "access_token": "new-access",
        "refresh_token": "new-refresh",
    }
    return says(200, answer | more)


NEW = TokenPair("example.amocrm.ru", "new-access", "new-refresh", int(NOW) + 86_400)


def refreshed(*answers: Response | Outcome, old: TokenPair | None = None) -> Driven[TokenPair]:
    return drive(refresh(APP, old or pair(), now=NOW), *answers)


def hosts(driven: Driven[Any]) -> list[str]:
    return [urlsplit(request.url).netloc for request in driven.requests]


# The consent page


@pytest.mark.parametrize(
    ("host", "site"),
    [
        ("example.amocrm.ru", "https://www.amocrm.ru"),
        ("example.kommo.com", "https://www.kommo.com"),
        ("example.amocrm.com", "https://www.amocrm.com"),
        ("127.0.0.1:8003", "http://127.0.0.1:8003"),
    ],
)
def test_the_consent_page_is_at_the_accounts_own_site(host: str, site: str) -> None:
    """AmoCRM's, Kommo's, or the sandbox's; with our id and the state."""
    url = urlsplit(authorize_url(APP, "a.b.c&d", host=host))
    assert f"{url.scheme}://{url.netloc}{url.path}" == f"{site}/oauth"
    assert parse_qs(url.query) == {"client_id": [APP.client_id], "state": ["a.b.c&d"], "mode": ["popup"]}


@pytest.mark.parametrize("host", ["example.amocrm.ru", "moved.amocrm.ru", "example.kommo.com", "127.0.0.1:8003"])
def test_a_host_that_comes_back_with_a_code_is_amocrms_or_the_configured(host: str) -> None:
    """An account may have another host than it had when it was configured."""
    assert account_host(host, configured="127.0.0.1:8003") == host


STRANGERS = (
    "evil.com",
    "evil.com#.amocrm.ru",
    "evil.com/.amocrm.ru",
    "x@example.amocrm.ru",
    "example.amocrm.ru.evil.com",
)


@pytest.mark.parametrize("host", [*STRANGERS, "https://example.amocrm.ru", "example.amocrm.ru\n", "", "127.0.0.1:8004"])
def test_a_strangers_host_gets_no_secret(host: str) -> None:
    """It is not taken, and where it is used all the same nothing leaves."""
    assert account_host(host, configured="127.0.0.1:8003") is None
    if "127.0.0.1:" not in host:
        driven = drive(exchange_code(APP, host, "the-code", now=NOW))
        assert driven.requests == []
        assert isinstance(driven.outcome, Blocked)


# Codes and refresh tokens


def test_a_code_is_exchanged_at_the_account() -> None:
    """In JSON, with the registered redirect_uri; the pair remembers its host and when it ends."""
    driven = drive(exchange_code(APP, "example.amocrm.ru", "the-code", now=NOW), granted())
    assert driven.result == NEW
    (request,) = driven.requests
    assert (request.method, request.url) == ("POST", "https://example.amocrm.ru/oauth2/access_token")
    assert request.headers == {"Content-Type": "application/json"}
    assert request.deadline == 15
    assert json.loads(request.content) == {
        "client_id": APP.client_id,
        "client_secret": "app-secret",
        "grant_type": "authorization_code",
        "code": "the-code",
        "redirect_uri": "https://relay.example/amo/oauth",
    }


def test_a_refresh_token_is_exchanged_at_the_account() -> None:
    """The same with the old token."""
    driven = refreshed(granted())
    assert driven.result == NEW
    (request,) = driven.requests
    assert request.url == "https://example.amocrm.ru/oauth2/access_token"
    sent = json.loads(request.content)
    assert (sent["grant_type"], sent["refresh_token"]) == ("refresh_token", "the-refresh-token")
    assert "code" not in sent


def test_tokens_and_secrets_do_not_show() -> None:
    """Printed by accident, they tell nothing."""
    driven = refreshed(granted())
    shown = f"{APP} {pair()} {driven}"
    for secret in ("app-secret", "the-refresh-token", "new-refresh", "new-access", pair().access_token):
        assert secret not in shown


UNUSABLE = [
    granted(access_token=""),
    granted(refresh_token=""),
    granted(access_token=None),
    granted(expires_in="86400"),
    says(200, {}),
    says(200, HTML),
    says(200, b""),
    says(204, b""),
    says(500, HTML),
    says(502, {}),
    says(504, HTML),
    OutcomeUnknown("ReadTimeout"),
]


@pytest.mark.parametrize("answer", UNUSABLE, ids=repr)
def test_a_code_whose_answer_is_lost_is_lost(answer: Response | Outcome) -> None:
    """It was good once; somebody has to agree again."""
    driven = drive(exchange_code(APP, "example.amocrm.ru", "the-code", now=NOW), answer)
    assert type(driven.outcome) is OutcomeUnknown


@pytest.mark.parametrize("answer", UNUSABLE, ids=repr)
def test_a_lost_answer_is_asked_for_again_with_the_old_token(answer: Response | Outcome) -> None:
    """The old one is good until the new pair is used."""
    driven = refreshed(answer, granted())
    assert driven.result == NEW
    assert driven.requests[0] == driven.requests[1]


@pytest.mark.parametrize("answer", UNUSABLE, ids=repr)
def test_an_answer_that_is_lost_twice_leaves_the_old_token(answer: Response | Outcome) -> None:
    """That is no word about the token."""
    driven = refreshed(answer, answer)
    assert type(driven.outcome) is OutcomeUnknown
    assert len(driven.requests) == 2


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (says(429, HTML), NotExecuted),
        (says(402, {}), Blocked),
        (says(403, HTML), Blocked),
        (says(301, b"", {"location": "https://evil.com/"}), Blocked),
        (Unreachable("ConnectError"), Unreachable),
    ],
)
def test_what_is_no_word_about_the_token_is_told_as_it_is(answer: Response | Outcome, outcome: type[Outcome]) -> None:
    """Busy, not paid, blocked, redirected, out of reach: the token is as good as before."""
    assert type(refreshed(answer).outcome) is outcome
    assert type(drive(exchange_code(APP, "example.amocrm.ru", "c", now=NOW), answer).outcome) is outcome


def test_a_busy_server_tells_when_to_come_again() -> None:
    """As any other request does."""
    outcome = refreshed(says(429, {"retry_after": 30})).outcome
    assert isinstance(outcome, NotExecuted)
    assert outcome.retry_after == 30


@pytest.mark.parametrize("status", [400, 401])
@pytest.mark.parametrize("answer", [REVOKED, {}, HTML, b""])
def test_a_refused_code_is_refused(status: int, answer: object) -> None:
    """Used, too old, not ours, or our own secret is wrong."""
    driven = drive(exchange_code(APP, "example.amocrm.ru", "c", now=NOW), says(status, answer))
    assert type(driven.outcome) is Unauthorized


# Accounts that have moved


@pytest.mark.parametrize("status", [400, 401, 404])
@pytest.mark.parametrize("answer", [REVOKED, HTML])
def test_a_moved_account_is_followed(status: int, answer: object) -> None:
    """Where the token is refused, the API domain of the token tells the host of today; the pair remembers it."""
    driven = refreshed(says(status, answer), says(200, {"id": 1, "domain": "moved.amocrm.ru"}), granted())
    assert driven.result == TokenPair("moved.amocrm.ru", "new-access", "new-refresh", int(NOW) + 86_400)
    assert hosts(driven) == ["example.amocrm.ru", "api-b.amocrm.ru", "moved.amocrm.ru"]
    question = driven.requests[1]
    assert (question.method, question.url) == ("GET", "https://api-b.amocrm.ru/oauth2/account/current/subdomain")
    assert question.headers == {"X-Refresh-Token": "the-refresh-token"}
    assert question.content == b""
    assert driven.requests[0].content == driven.requests[2].content


def test_a_moved_account_is_followed_after_a_lost_answer_too() -> None:
    """All four requests fit into the longest refresh."""
    driven = refreshed(says(502), says(404), says(200, {"domain": "moved.amocrm.ru"}), granted())
    assert driven.result is not None
    assert sum(request.deadline for request in driven.requests) == LONGEST_REFRESH


@pytest.mark.parametrize(
    ("answers", "old"),
    [
        ([], pair(access="opaque")),
        ([says(401, {"hint": "another"})], pair()),
        ([says(200, {"domain": "example.amocrm.ru"})], pair()),
    ],
    ids=["no API domain", "refused there", "not moved"],
)
def test_a_dead_token_tells_what_amocrm_said_of_it(answers: list[Response], old: TokenPair) -> None:
    """The first refusal, at the account itself; without the secrets that were sent."""
    driven = refreshed(says(401, REVOKED, {"x-request-id": "r-1"}), *answers, old=old)
    assert isinstance(driven.outcome, Unauthorized)
    assert str(driven.outcome) == "http_401"
    problem = Problem.of(driven.outcome)
    assert problem is not None
    assert (problem.path, problem.status, problem.title) == ("/oauth2/access_token", 401, "Token error")
    assert (problem.hint, problem.request_id, problem.body) == ("Token has been revoked", "r-1", None)


def test_every_question_tells_what_went_wrong() -> None:
    """Whoever asks amoCRM's support needs the request."""
    for question in (
        exchange_code(APP, "example.amocrm.ru", "c", now=NOW),
        exchange_api_key(APP, "example.amocrm.ru", "a@example.com", "the-key", now=NOW),
        account_domain("example.amocrm.ru", "the-token", now=NOW),
        current_host(pair(), now=NOW),
    ):
        outcome = drive(question, says(400, REVOKED)).outcome
        assert outcome is not None
        problem = Problem.of(outcome)
        assert problem is not None
        assert problem.hint == "Token has been revoked"
        assert not {"the-key", "the-token", "app-secret"} & set(map(str, vars(problem).values()))


def test_a_revoked_token_of_an_account_that_has_not_moved_is_dead() -> None:
    """Nothing is asked twice at the same place."""
    driven = refreshed(says(401, REVOKED), says(200, {"domain": "example.amocrm.ru"}))
    assert type(driven.outcome) is Unauthorized
    assert len(driven.requests) == 2


@pytest.mark.parametrize("answer", [says(401, REVOKED), says(400, {}), says(403, {}), says(404, HTML), says(404, {})])
def test_a_token_that_is_refused_everywhere_is_dead(answer: Response) -> None:
    """At its old host, at the API domain, or at its new host."""
    assert type(refreshed(says(401, REVOKED), answer).outcome) is Unauthorized
    driven = refreshed(says(401, REVOKED), says(200, {"domain": "moved.amocrm.ru"}), answer)
    assert type(driven.outcome) is Unauthorized


@pytest.mark.parametrize(
    "domain",
    ["evil.com", "evil.com#.amocrm.ru", "evil.com/.amocrm.ru", "127.0.0.1:80", "", None, 5, ["api-b.amocrm.ru"]],
    ids=repr,
)
def test_an_access_token_that_names_a_foreign_domain_is_not_believed(domain: object) -> None:
    """Its signature is not checked, so it must not choose who gets the refresh token."""
    driven = refreshed(says(401, REVOKED), old=pair(access=jwt({"api_domain": domain})))
    assert type(driven.outcome) is Unauthorized
    assert hosts(driven) == ["example.amocrm.ru"]


@pytest.mark.parametrize("host", ["evil.com", "evil.com#.amocrm.ru", "127.0.0.1:80", ""])
def test_an_account_does_not_move_to_a_foreign_host(host: str) -> None:
    """Not even if the API domain says so."""
    driven = refreshed(says(401, REVOKED), says(200, {"domain": host}))
    assert type(driven.outcome) is Blocked
    assert len(driven.requests) == 2


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (says(429, HTML), NotExecuted),
        (says(403, HTML), Blocked),
        (says(302), Blocked),
        (says(500, HTML), Unreachable),
        (says(200, HTML), Unreachable),
        (says(200, {"domain": None}), Unreachable),
        (OutcomeUnknown("ReadTimeout"), Unreachable),
        (Unreachable("ConnectError"), Unreachable),
    ],
    ids=repr,
)
def test_a_question_without_an_answer_condemns_no_token(answer: Response | Outcome, outcome: type[Outcome]) -> None:
    """That the account's host is not told today does not make the token dead."""
    assert type(refreshed(says(401, REVOKED), answer).outcome) is outcome
    assert type(drive(current_host(pair(), now=NOW), answer).outcome) is outcome


# Tokens as such


@pytest.mark.parametrize(
    ("token", "until"),
    [
        (jwt({"exp": 1_790_000_000}), 1_790_000_000),
        (jwt({"exp": "1790000000"}), None),
        (jwt({"exp": True}), None),
        (jwt({"exp": None}), None),
        (jwt({}), None),
        (jwt([1]), None),
        ("a.b.c", None),
        ("a..c", None),
        ("", None),
        ("x", None),
        ("a.й.c", None),
        ("a." + base64.urlsafe_b64encode(b"[" * 200_000).decode() + ".c", None),
        ("a." + base64.urlsafe_b64encode(b"\xff\xfe").decode() + ".c", None),
    ],
    ids=range(13),
)
def test_a_long_lived_token_tells_when_it_ends(token: str, until: int | None) -> None:
    """If it is a JWT that says so; anything else says nothing."""
    assert expires_at(token) == until


@given(st.text(st.characters()))
def test_any_text_is_a_token_that_says_nothing(token: str) -> None:
    """A secret that was pasted wrongly breaks nothing."""
    assert expires_at(token) is None


# State


def test_a_state_is_good_for_twenty_minutes() -> None:
    """To the second, and not before its key is known."""
    state = sign_state("main.eu", "0f3a", "secret", now=NOW)
    assert read_state(state, "secret", now=NOW) == ("main.eu", "0f3a")
    assert read_state(state, "secret", now=NOW + STATE_SECONDS) == ("main.eu", "0f3a")
    assert read_state(state, "secret", now=NOW + STATE_SECONDS + 1) is None
    assert read_state(state, "other", now=NOW) is None
    assert read_state(sign_state("main", "0f3a", "", now=NOW), "", now=NOW) is None
    assert STATE_SECONDS == 20 * 60


def test_no_part_of_a_state_can_be_changed() -> None:
    """Neither the account, nor the nonce, nor the end, nor the signature."""
    state = sign_state("main", "0f3a", "secret", now=NOW)
    for place in range(len(state)):
        other = state[:place] + ("0" if state[place] != "0" else "1") + state[place + 1 :]
        assert read_state(other, "secret", now=NOW) is None
    assert read_state(state + "0", "secret", now=NOW) is None
    assert read_state(state.upper(), "secret", now=NOW) is None
    assert read_state(sign_state("main", "0f3b", "secret", now=NOW), "secret", now=NOW) != ("main", "0f3a")


@example("\ud800.\ud800.1.\ud800")
@given(st.one_of(st.text(st.characters()), st.lists(st.text(st.characters(), max_size=4), max_size=5).map(".".join)))
def test_any_text_is_a_verdict(state: str) -> None:
    """Half surrogate pairs included: a stranger's state is none."""
    assert read_state(state, "secret", now=NOW) is None


@given(st.text(st.characters(codec="utf-8")), st.uuids(), st.text(st.characters(codec="utf-8"), min_size=1))
def test_what_is_signed_is_read_back(name: str, nonce: object, secret: str) -> None:
    """Whatever an account is called."""
    state = sign_state(name, str(nonce), secret, now=NOW)
    assert read_state(state, secret, now=NOW) == (name, str(nonce))


# Disconnect


def signature(client_uuid: str, account_id: str, secret: str = "app-secret") -> str:
    return hmac.new(secret.encode(), f"{client_uuid}|{account_id}".encode(), hashlib.sha256).hexdigest()


def told(**more: str) -> bool:
    call = {"client_uuid": APP.client_id, "account_id": "5", "signature": signature(APP.client_id, "5")}
    return is_disconnect(APP, **(call | more))


def test_a_disconnect_is_amocrms_if_it_is_signed_with_our_secret() -> None:
    """Over our id and the account's."""
    assert told()
    assert not told(account_id="6")
    assert not told(client_uuid="other", signature=signature("other", "5"))
    assert not told(signature=signature(APP.client_id, "5", "other"))
    assert not told(signature=signature(APP.client_id, "5").upper())
    assert not told(signature="")
    nobody = App(APP.client_id, "", APP.redirect_uri)
    assert not is_disconnect(
        nobody, client_uuid=APP.client_id, account_id="5", signature=signature(APP.client_id, "5", "")
    )


def test_what_amocrm_signs_makes_no_state() -> None:
    """The same key signs both, each under its own name."""
    text = f"main.0f3a.{int(NOW) + 60}"
    forged = hmac.new(b"app-secret", text.encode(), hashlib.sha256).hexdigest()
    assert read_state(f"{text}.{forged}", "app-secret", now=NOW) is None


@example("\ud800", "\ud800", "\ud800")
@given(st.text(st.characters()), st.text(st.characters()), st.text(st.characters()))
def test_any_disconnect_is_a_verdict(client_uuid: str, account_id: str, given_signature: str) -> None:
    """A stranger's call is none."""
    assert not is_disconnect(APP, client_uuid=client_uuid, account_id=account_id, signature=given_signature)
    assert not told(account_id=account_id, signature=given_signature)


def test_a_refusal_of_another_kind_is_final() -> None:
    """Nothing else to do with a code."""
    driven = drive(exchange_code(APP, "example.amocrm.ru", "c", now=NOW), says(422, {}))
    assert type(driven.outcome) is Rejected


# The button, old API keys, where an account is


def test_the_button_is_amocrms_own() -> None:
    """Its attributes say who asks for what; nothing in them can end the tag."""
    html = button(APP, "the-state", title='Подключить "всё"', color="violet", compact=False, error_callback="failed")
    assert html.startswith('<script class="amocrm_oauth" charset="utf-8"')
    for part in (
        f'data-client-id="{APP.client_id}"',
        'data-title="Подключить &quot;всё&quot;"',
        'data-color="#6A1B9A"',
        'data-compact="false"',
        'data-state="the-state"',
        'data-error-callback="failed"',
        'data-mode="popup"',
        'src="https://www.amocrm.ru/auth/button.min.js"',
    ):
        assert part in html
    assert APP.client_secret not in html
    kommo = button(APP, "s", title="t", host="example.kommo.com", color="#123456")
    assert 'class="kommo_oauth"' in kommo
    assert "https://www.kommo.com/auth/button.min.js" in kommo
    assert 'data-color="#123456"' in kommo


def test_an_old_api_key_is_exchanged_for_a_code() -> None:
    """The code comes to redirect_uri; the answer only says that it will."""
    driven = drive(exchange_api_key(APP, "example.amocrm.ru", "a@example.com", "the-key", now=NOW), says(202, b""))
    (request,) = driven.requests
    assert (request.method, request.url) == ("POST", "https://example.amocrm.ru/oauth2/exchange_api_key")
    assert json.loads(request.content) == {
        "login": "a@example.com",
        "api_key": "the-key",
        "client_uuid": APP.client_id,
        "client_secret": APP.client_secret,
    }
    assert (driven.outcome, driven.result) == (None, None)
    refused = drive(exchange_api_key(APP, "example.amocrm.ru", "a@example.com", "no", now=NOW), says(401, {}))
    assert isinstance(refused.outcome, Unauthorized)


def test_amocrm_says_where_the_account_of_a_token_is() -> None:
    """At its own site, or Kommo's."""
    answer = {"id": 5, "subdomain": "new", "domain": "new.amocrm.ru", "top_level_domain": "ru"}
    driven = drive(account_domain("old.amocrm.ru", "the-token", now=NOW), says(200, answer))
    (request,) = driven.requests
    assert request.url == "https://www.amocrm.ru/oauth2/account/subdomain"
    assert request.headers["Authorization"] == "Bearer the-token"
    assert driven.result == AccountDomain(5, "new", "new.amocrm.ru", "ru")
    refused = drive(account_domain("old.kommo.com", "the-token", now=NOW), says(401, {}))
    assert refused.requests[0].url.startswith("https://www.kommo.com/")
    assert isinstance(refused.outcome, Unauthorized)


def test_consent_may_end_in_its_own_window() -> None:
    """As the page that asks for it wants."""
    assert "mode=post_message" in authorize_url(APP, "s", host="example.amocrm.ru", mode="post_message")
