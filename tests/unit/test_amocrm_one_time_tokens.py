"""One-time tokens of widgets and bots: who made them, for whom, until when."""

import time
from typing import Any

import jwt
import pytest

from crm_relay.amocrm.oauth import App
from crm_relay.amocrm.one_time_tokens import (
    Expired,
    Refused,
    VerificationFailed,
    WrongDestination,
    read_bot_token,
    read_widget_token,
)

SECRET = "s" * 64
APP = App("client", SECRET, "https://relay.invalid/amo/oauth")
WIDGET = {
    "iss": "https://example.amocrm.ru",
    "aud": "https://relay.invalid",
    "jti": "5e1d0a2c",
    "account_id": 32427762,
    "user_id": 7,
    "subdomain": "example",
    "client_uuid": "client",
    "is_admin": True,
}
BOT = {
    "iss": "https://example.amocrm.ru",
    "subdomain": "example",
    "account_id": 32427762,
    "client_uuid": "client",
    "entity_id": 15,
    "entity_type": 2,
    "bot_type": "salesbot",
}


def token(claims: dict[str, Any], algorithm: str = "HS256", *, secret: str = SECRET, **more: Any) -> str:
    return jwt.encode({"exp": int(time.time()) + 600, **claims, **more}, secret, algorithm)


def test_a_widgets_token_says_who_uses_it() -> None:
    """Account, user, and an id by which a replay is known."""
    read = read_widget_token(token(WIDGET), APP)
    assert (read.account_id, read.user_id, read.is_admin, read.token_uuid) == (32427762, 7, True, "5e1d0a2c")
    assert read.account_domain == "https://example.amocrm.ru"


def test_a_bots_token_says_what_it_is_about() -> None:
    """With or without a receiver to look at."""
    read = read_bot_token(token(BOT, "HS512"), APP)
    assert (read.entity_id, read.entity_type, read.bot_type) == (15, 2, "salesbot")
    meant = token(BOT, "HS512", aud="https://relay.invalid/bot")
    assert read_bot_token(meant, APP, receiver="https://relay.invalid/bot") == read_bot_token(meant, APP)


@pytest.mark.parametrize(
    ("given", "refusal"),
    [
        (token(WIDGET, secret="x" * 64), VerificationFailed),
        (token(WIDGET, "HS512"), VerificationFailed),
        (token(WIDGET, "none", secret=""), VerificationFailed),
        (token(WIDGET, client_uuid="other"), VerificationFailed),
        (token(WIDGET, user_id="seven"), VerificationFailed),
        ("", VerificationFailed),
        ("a.b.c", VerificationFailed),
        (jwt.encode(WIDGET, SECRET, "HS256"), VerificationFailed),
        (token(WIDGET, aud="https://other.invalid"), WrongDestination),
        (token({name: value for name, value in WIDGET.items() if name != "aud"}), WrongDestination),
        (token(WIDGET, exp=1_000_000_000), Expired),
    ],
)
def test_a_token_that_proves_nothing_is_refused(given: str, refusal: type[Refused]) -> None:
    """One of three ways; the algorithm is ours to choose, not the token's."""
    with pytest.raises(refusal):
        read_widget_token(given, APP)


def test_a_bots_token_for_another_receiver_is_refused() -> None:
    """Where the receiver matters."""
    with pytest.raises(WrongDestination):
        read_bot_token(token(BOT, "HS512", aud="https://other.invalid"), APP, receiver="https://relay.invalid/bot")


def test_an_app_without_a_secret_believes_nobody() -> None:
    """An empty key would let everybody sign."""
    with pytest.raises(VerificationFailed):
        read_widget_token(token(WIDGET), App("client", "", "https://relay.invalid/amo/oauth"))
