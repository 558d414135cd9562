"""GET /amo/oauth and GET /amo/disconnect: who may let us into an account, and who may take that back."""

import hashlib
import hmac
from dataclasses import replace
from typing import Any
from urllib.parse import urlencode

import msgspec
import pytest

from amo_webhook import authorize
from amo_webhook.account import amo_key
from crm_relay.amocrm.oauth import authorize_url, sign_state
from crm_relay.delivery.runtime import Runtime
from crm_relay.delivery.tokens import token_key
from crm_relay.outcomes import Unauthorized
from crm_relay.settings import AmoCrmSettings, Secrets
from tests.component.test_amo_account import APP, HOST, MOVED, Bench, bench, look, outcome
from tests.gateway import Response, http_event
from workbench.sandboxes.faults import CodedError, Redirect, Reset
from workbench.sandboxes.faults import Unauthorized as Unauthorised

__all__ = ["bench"]

KEY = token_key(amo_key("main"))


def call(bench: Bench, path: str, **query: str) -> Response:
    return Response.of(bench.invoke(authorize.handler, http_event("GET", f"{path}?{urlencode(query)}", {}), seconds=29))


def come_back(bench: Bench, **query: str) -> Response:
    return call(bench, "/amo/oauth", **query)


def state(bench: Bench, *, name: str = "main", nonce: str = "nonce", secret: str = APP.client_secret) -> str:
    return sign_state(name, nonce, secret, now=bench.clock.now)


def consented(bench: Bench) -> dict[str, str]:
    """An administrator has opened our link and agreed; what amoCRM sends along."""
    return bench.query_of(authorize_url(APP, state(bench), host=HOST))


def said(response: Response) -> str:
    """The page's one sentence."""
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    return response.text.partition("<p>")[2].partition("</p>")[0]


# Authorize


def test_an_administrator_lets_us_in(bench: Bench) -> None:
    """From our link over amoCRM's page back to us: the account works, and the page says so."""
    response = come_back(bench, **consented(bench))
    assert response.status == 200
    assert said(response) == "Доступ получен, аккаунт подключён. Это окно можно закрыть."
    assert look(bench.worker()) == bench.crm.account.id
    assert bench.relay.metrics["AttentionNeeded"] == 0


def test_the_page_reflects_nothing_and_its_address_does_not_travel_on(bench: Bench) -> None:
    """The address holds a code; what stands in the query never stands on the page."""
    query = {**consented(bench), "referer": "<script>alert(1)</script>", "error": "<script>alert(2)</script>"}
    response = come_back(bench, **query)
    assert response.status == 403
    for value in (query["code"], query["state"], query["referer"], query["error"]):
        assert value not in response.text
        assert value not in bench.relay.output
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["referrer-policy"] == "no-referrer"
    assert response.headers["content-security-policy"] == "default-src 'none'"


def test_whoever_authorizes_ends_the_pause(bench: Bench) -> None:
    """Messages that wait need not wait for its end."""
    worker = bench.worker()
    assert type(outcome(worker)) is Unauthorized
    assert come_back(bench, **consented(bench)).status == 200
    assert not bench.paused
    bench.clock.now += 5
    assert look(worker)


def test_a_state_is_good_once(bench: Bench) -> None:
    """Whoever has read the address out of a browser's history gets nowhere, whatever they change in it."""
    assert come_back(bench, **consented(bench)).status == 200
    stored = bench.stored
    asked = bench.asked()
    again = come_back(bench, code="another", referer=HOST, state=state(bench))
    assert again.status == 403
    assert "один раз" in said(again)
    assert bench.stored == stored
    assert bench.asked() == asked


def test_a_state_is_good_for_twenty_minutes(bench: Bench) -> None:
    """As amoCRM's code is."""
    old = consented(bench)
    bench.clock.now += 20 * 60 + 1
    response = come_back(bench, **old)
    assert response.status == 403
    assert "20 минут" in said(response)
    assert not bench.relay.items(KEY)


def test_a_state_stays_used_for_as_long_as_it_would_be_good(bench: Bench) -> None:
    """To the second."""
    query = {"code": "wrong", "referer": HOST, "state": state(bench)}
    come_back(bench, **query)
    bench.clock.now += 20 * 60
    assert "один раз" in said(come_back(bench, **query))


@pytest.mark.parametrize(
    "forged",
    [
        "",
        "main.nonce.1760001200",
        "main.nonce.1760001200.",
        f"main.nonce.1760001200.{'0' * 64}",
        "...",
        "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"),
    ],
)
def test_a_state_that_is_not_ours_is_refused(bench: Bench, forged: str) -> None:
    """Or anybody could connect an account of theirs to us; nothing is asked, nothing is stored."""
    response = come_back(bench, **{**consented(bench), "state": forged})
    assert response.status == 403
    assert bench.asked("access_token") == 0
    assert not bench.relay.items("token#")
    assert not bench.relay.items("state#")


def test_a_state_signed_with_another_secret_or_for_another_account_is_refused(bench: Bench) -> None:
    """Also where no integration is configured, whose secret would be empty."""
    code = bench.crm.authorize("client")
    for wrong in (state(bench, secret="other"), state(bench, name="other")):
        assert come_back(bench, code=code, referer=HOST, state=wrong).status == 403
    bench.secrets = msgspec.structs.replace(bench.secrets, client_secret="")
    assert come_back(bench, code=code, referer=HOST, state=state(bench, secret="")).status == 403
    assert bench.asked("access_token") == 0


@pytest.mark.parametrize(
    "referer",
    [
        "",
        "evil.example",
        "example.amocrm.ru.evil.example",
        "evil.example/example.amocrm.ru",
        "example.amocrm.ru@evil.example",
        "evil.example#.amocrm.ru",
        "a.b.amocrm.ru",
        "127.0.0.1:8000",
        "EXAMPLE.AMOCRM.RU",
        "example.amocrm.ru\r\nX: y",
    ],
)
def test_a_foreign_referer_gets_no_secret(bench: Bench, referer: str) -> None:
    """The client secret would go there."""
    response = come_back(bench, **{**consented(bench), "referer": referer})
    assert response.status == 403
    assert "Ключи туда не отправлены" in said(response)
    assert bench.asked("access_token") == 0
    assert not bench.relay.items("token#")


def test_an_account_that_moved_is_authorized_where_it_is(bench: Bench) -> None:
    """The referer says where."""
    bench.crm.move_to(MOVED)
    assert come_back(bench, **consented(bench)).status == 200
    assert bench.stored["host"] == MOVED


def test_another_account_than_the_configured_one_is_not_connected(bench: Bench) -> None:
    """An administrator of several accounts has picked the wrong one: its notes would go elsewhere."""
    query = consented(bench)
    bench.crm.account = replace(bench.crm.account, id=1)
    response = come_back(bench, **query)
    assert response.status == 403
    assert "не тому аккаунту" in said(response)
    assert not bench.relay.items("token#")


def test_an_administrator_who_refuses_is_told_what_that_means(bench: Bench) -> None:
    """AmoCRM sends them back with an error in the place of a code."""
    response = come_back(bench, error="access_denied", state=state(bench))
    assert response.status == 400
    assert "не предоставлен" in said(response)


@pytest.mark.parametrize(
    ("fault", "status", "words"),
    [
        (Unauthorised(), 400, "не приняла код"),
        (Redirect(), 400, "не приняла код"),
        (CodedError(), 503, "не отвечает"),
        (Reset(), 503, "не отвечает"),
    ],
    ids=repr,
)
def test_a_code_that_brings_no_tokens_is_told(bench: Bench, fault: Any, status: int, words: str) -> None:
    query = consented(bench)
    bench.crm.faults.add(fault)
    response = come_back(bench, **query)
    assert (response.status, words in said(response)) == (status, True)
    assert not bench.relay.items("token#")
    for secret in (query["code"], APP.client_secret):
        assert secret not in bench.relay.output


def test_amocrm_may_take_its_time_but_not_longer_than_the_person_is_answered(bench: Bench) -> None:
    """API Gateway answers after 30 s, whatever we do."""
    query = consented(bench)
    bench.crm.switches.latency = 14.0
    began = bench.clock.now
    assert come_back(bench, **query).status == 503
    assert bench.clock.now - began <= 29


def test_a_table_that_is_down_is_told(bench: Bench) -> None:
    """And without it, no code is exchanged."""
    query = consented(bench)
    bench.relay.fail("store")
    response = come_back(bench, **query)
    assert response.status == 503
    assert "сохранить" in said(response)
    assert bench.asked("access_token") == 0
    assert bench.relay.metrics["AttentionNeeded"] == 1


def test_without_secrets_nobody_is_let_in(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """No account has an integration then, and no state can be ours."""
    query = consented(bench)
    monkeypatch.setattr(bench, "runtime", lambda: replace(Bench.runtime(bench), secret_source=Secrets))
    assert come_back(bench, **query).status == 403


def test_each_of_several_accounts_has_a_pair_of_its_own(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """They may share one public integration: the state says which of them is meant."""

    def both() -> Runtime:
        one = Bench.runtime(bench)
        other = msgspec.structs.replace(bench.settings, account_id=1)
        settings = msgspec.structs.replace(one.settings, amocrm=AmoCrmSettings({"b": other, "main": bench.settings}))
        return replace(
            one, settings=settings, secret_source=lambda: Secrets(amocrm=dict.fromkeys(["b", "main"], bench.secrets))
        )

    monkeypatch.setattr(bench, "runtime", both)
    assert come_back(bench, **consented(bench)).status == 200
    assert list(bench.relay.items("token#")) == [KEY]


# Disconnect


def signature(text: str, secret: str = APP.client_secret) -> str:
    return hmac.new(secret.encode(), text.encode(), hashlib.sha256).hexdigest()


def disconnect(bench: Bench, **query: str) -> Response:
    account_id = str(bench.crm.account.id)
    right = {
        "client_uuid": APP.client_id,
        "account_id": account_id,
        "signature": signature(f"{APP.client_id}|{account_id}"),
    }
    return call(bench, "/amo/disconnect", **(right | query))


def test_an_account_that_disconnects_is_left_alone_and_an_operator_is_called(bench: Bench) -> None:
    """Its tokens are forgotten; messages wait for somebody to authorize again."""
    bench.authorized()
    assert disconnect(bench).json() == {"ok": True}
    assert bench.stored is None
    assert [line["account"] for line in bench.told("account disconnected")] == ["main"]
    assert bench.relay.metrics["AttentionNeeded"] == 1
    asked = bench.asked()
    assert str(outcome(bench.worker())) == "not_authorized"
    assert bench.asked() == asked
    assert come_back(bench, **consented(bench)).status == 200
    assert look(bench.worker())


@pytest.mark.parametrize(
    "wrong",
    [
        {"signature": ""},
        {"signature": "0" * 64},
        {"signature": "ключ"},
        {"signature": signature("client|32427762", "other")},
        {"signature": signature("32427762|client")},
        {"client_uuid": "other"},
        {"client_uuid": ""},
        {"account_id": "1"},
        {"account_id": "1", "signature": signature("client|1")},
        {"account_id": "032427762", "signature": signature("client|032427762")},
    ],
    ids=repr,
)
def test_whoever_cannot_sign_disconnects_nothing(bench: Bench, wrong: dict[str, str]) -> None:
    """Nor does what was signed for an account that is not ours."""
    bench.authorized()
    assert disconnect(bench, **wrong).status == 403
    assert bench.stored
    assert look(bench.worker())


def test_a_state_is_no_signature_of_a_disconnected_account(bench: Bench) -> None:
    """Both are made with one key, which must not make one out of the other."""
    bench.authorized()
    ours = sign_state("client|32427762", "n", APP.client_secret, now=bench.clock.now)
    assert disconnect(bench, signature=ours.rpartition(".")[2]).status == 403
    assert bench.stored


def test_a_disconnect_that_cannot_be_kept_is_told(bench: Bench) -> None:
    """So that amoCRM may come again."""
    bench.authorized()
    bench.relay.fail("store.put")
    assert disconnect(bench).status == 503


def test_what_has_no_route_is_not_found(bench: Bench) -> None:
    assert call(bench, "/amo/other").status == 404
