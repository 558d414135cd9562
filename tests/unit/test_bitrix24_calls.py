"""Bitrix24's calls: whatever kind they are of, and whatever a stranger makes of them."""

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crm_relay.bitrix24.calls import (
    Call,
    DealIdRequired,
    NotADeal,
    PlaceholderNotReplaced,
    Proof,
    Tokens,
    proof_of,
    read_body,
    read_call,
)
from crm_relay.brackets import encode
from crm_relay.http_api import Malformed, Meaningless, Refusal, TooLarge

NOW = 1_760_000_000.0
MEMBER = "0123456789abcdef0123456789abcdef"
TOKEN = "abcdefghijklmnopqrstuvwxyz012345"
EVENT_TOKEN = "681b6392a30743.60451827|A88332_57464_28590_17664|Mr6J9oMP85JGmZ2MG5fLmJNKDYD8PYPc." + "0a" * 32
PORTAL = {
    "domain": "src.bitrix24.com",
    "client_endpoint": "https://src.bitrix24.com/rest/",
    "server_endpoint": "https://oauth.bitrix.info/rest/",
    "member_id": MEMBER,
}
APP = {
    **PORTAL,
    "access_token": "the-access",
    "expires": "1760003600",
    "expires_in": "3600",
    "scope": "crm,im,bizproc",
    "status": "L",
    "user_id": "1",
    "application_token": TOKEN,
}
WEBHOOK_EVENT = {
    "event": "ONCRMDEALUPDATE",
    "event_handler_id": "975",
    "data": {"FIELDS": {"ID": "662"}},
    "ts": "1724140800",
    "auth": {**PORTAL, "application_token": TOKEN},
}
WEBHOOK_ROBOT = {"document_id": ["crm", "CCrmDocumentDeal", "DEAL_4325"], "auth": PORTAL}
APP_ROBOT = {
    "workflow_id": "681b6392a30743.60451827",
    "code": "send_to_hub",
    "document_id": ["crm", "CCrmDocumentDeal", "DEAL_18"],
    "document_type": ["crm", "CCrmDocumentDeal", "DEAL"],
    "event_token": EVENT_TOKEN,
    "properties": {"route": "main", "fields": ["a", "b"]},
    "use_subscription": "Y",
    "timeout_duration": "0",
    "ts": "1746625426",
    "auth": {**APP, "refresh_token": "the-refresh"},
}
INSTALLED = {
    "event": "ONAPPINSTALL",
    "data": {"VERSION": "1", "ACTIVE": "Y", "INSTALLED": "Y", "LANGUAGE_ID": "en"},
    "ts": "1696527000",
    "auth": {**APP, "refresh_token": "the-refresh"},
}
UNINSTALLED = {
    "event": "ONAPPUNINSTALL",
    "data": {"LANGUAGE_ID": "en", "CLEAN": "1"},
    "ts": "1466439714",
    "auth": {**PORTAL, "application_token": TOKEN},
}


def form(tree: Mapping[str, Any]) -> bytes:
    return encode(tree).encode()


def as_json(tree: Mapping[str, Any]) -> bytes:
    return json.dumps(tree).encode()


def read_bytes(body: bytes, query: Mapping[str, str] | None = None) -> Call:
    """Read a body as the receiver does: its proof comes first."""
    tree = read_body(body)
    proof_of(tree)
    return read_call(tree, query, now=NOW)


def read(tree: Mapping[str, Any], query: Mapping[str, str] | None = None) -> Call:
    return read_bytes(form(tree), query)


def proof(tree: Mapping[str, Any]) -> Proof:
    return proof_of(read_body(form(tree)))


def without(tree: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in tree.items() if key not in keys}


# What Bitrix24 sends


@pytest.mark.parametrize("wire", [form, as_json])
def test_an_outgoing_webhook_is_an_event_with_a_proof(wire: Any) -> None:
    """The deal, the portal, the token; no tokens of an app."""
    assert read_bytes(wire(WEBHOOK_EVENT)) == Call(
        kind="event",
        event="ONCRMDEALUPDATE",
        deal_id=662,
        route="",
        event_token="",
        use_subscription=False,
        tokens=None,
    )
    assert proof_of(read_body(wire(WEBHOOK_EVENT))) == Proof("event", MEMBER, "src.bitrix24.com", TOKEN)


def test_an_events_handler_id_is_no_must() -> None:
    """Captured calls of 2018 and 2024 have none; `ts` is no must either."""
    assert read(without(WEBHOOK_EVENT, "event_handler_id", "ts")) == read(WEBHOOK_EVENT)


def test_an_event_has_no_case() -> None:
    """It is given in upper case."""
    assert read({**WEBHOOK_EVENT, "event": "OnCrmDealUpdate"}) == read(WEBHOOK_EVENT)


@pytest.mark.parametrize("event", ["ONCRMDEALADD", "ONCRMDEALUPDATE", "ONCRMDEALMOVETOCATEGORY"])
def test_an_apps_event_brings_tokens_if_somebody_is_behind_it(event: str) -> None:
    """C16: done by a robot or an agent it has none, and is a call all the same."""
    tree = {"event": event, "data": {"FIELDS": {"ID": "662", "CATEGORY_ID": "3", "STAGE_ID": "C3:NEW"}}}
    call = read({**tree, "auth": APP})
    assert (call.kind, call.event, call.deal_id) == ("event", event, 662)
    assert call.tokens == Tokens("the-access", "", 1_760_003_600)
    assert read({**tree, "auth": WEBHOOK_EVENT["auth"]}).tokens is None


@pytest.mark.parametrize(
    "body",
    [
        form(WEBHOOK_ROBOT),
        as_json(WEBHOOK_ROBOT),
        form(WEBHOOK_ROBOT).replace(b"%5B", b"[").replace(b"%5D", b"]"),
        form({"auth": PORTAL, "document_id": {"2": "DEAL_4325", "1": "CCrmDocumentDeal", "0": "crm"}}),
        form({"auth": PORTAL, "document_id": {"2": "DEAL_4325"}}),
    ],
)
def test_the_built_in_robot_has_a_document_and_no_secret(body: bytes) -> None:
    """Brackets escaped or not, its parts in any order."""
    call = read_bytes(body)
    assert (call.kind, call.event, call.deal_id) == ("webhook_robot", "", 4325)
    assert (call.event_token, call.tokens) == ("", None)
    assert proof_of(read_body(body)) == Proof("webhook_robot", MEMBER, "src.bitrix24.com", "")


@pytest.mark.parametrize("missing", [(), ("use_subscription",), ("workflow_id",), ("timeout_duration", "ts", "code")])
def test_an_apps_robot_waits_for_an_answer(missing: tuple[str, ...]) -> None:
    """Event token, route and tokens; captured calls have no `use_subscription`."""
    call = read(without(APP_ROBOT, *missing))
    assert (call.kind, call.deal_id, call.route, call.event_token) == ("app_robot", 18, "main", EVENT_TOKEN)
    assert proof(APP_ROBOT).application_token == TOKEN
    assert call.use_subscription is ("use_subscription" not in missing)
    assert call.tokens == Tokens("the-access", "the-refresh", 1_760_003_600)


def test_c17_a_robot_that_waits_must_say_how_it_is_answered() -> None:
    """C17: the subscription is on and there is no token; one that does not wait needs none."""
    with pytest.raises(Meaningless) as refusal:
        read(without(APP_ROBOT, "event_token"))
    assert refusal.value.error == "event_token_required"
    assert read({**without(APP_ROBOT, "event_token"), "use_subscription": "N"}).event_token == ""


def test_an_installation_brings_the_first_tokens() -> None:
    """It names no deal, nor does the end of one, which has no tokens any more."""
    call = read(INSTALLED)
    assert (call.kind, call.deal_id, proof(INSTALLED).application_token) == ("installed", None, TOKEN)
    assert call.tokens == Tokens("the-access", "the-refresh", 1_760_003_600)
    call = read(UNINSTALLED)
    assert (call.kind, call.deal_id, call.tokens) == ("uninstalled", None, None)
    assert proof(UNINSTALLED) == Proof("uninstalled", MEMBER, "src.bitrix24.com", TOKEN)


@pytest.mark.parametrize(
    ("expiry", "moment"),
    [
        ({"expires": "1760003600"}, 1_760_003_600),
        ({"expires": 1760003600}, 1_760_003_600),
        ({"expires_in": "3600"}, 1_760_003_600),
        ({"expires_in": 60, "expires": ""}, 1_760_000_060),
        ({"expires": "soon"}, None),
        ({}, None),
    ],
)
def test_a_tokens_end_is_told_in_two_ways_or_not(expiry: dict[str, Any], moment: int | None) -> None:
    """As a moment or in seconds from now."""
    auth = {**without(APP, "expires", "expires_in"), **expiry}
    tokens = read_bytes(as_json({**WEBHOOK_EVENT, "auth": auth})).tokens
    assert tokens is not None
    assert tokens.expires_at == moment


def test_c30_the_seeds_test_call_is_a_call() -> None:
    """C30: JSON with a domain, an access token and nothing else."""
    body = b"""{
        "event": "ONCRMDEALUPDATE",
        "data": {"FIELDS": {"ID": "123"}},
        "auth": {"domain": "partner.bitrix24.ru", "access_token": "test_token"}
    }"""
    call = read_bytes(body)
    assert (call.kind, call.deal_id) == ("event", 123)
    assert proof_of(read_body(body)) == Proof("event", "", "partner.bitrix24.ru", "")
    assert call.tokens == Tokens("test_token", "", None)


@pytest.mark.parametrize("deal_id", [123, "123", " 123 "])
def test_an_id_is_a_number_or_digits(deal_id: int | str) -> None:
    """In JSON both come."""
    assert read_bytes(as_json({"data": {"FIELDS": {"ID": deal_id}}})).deal_id == 123


def test_the_query_routes_and_helps_out() -> None:
    """Its route wins over the robot's own; its deal is taken where the body names none, and only there."""
    assert read(APP_ROBOT, {"route": "other"}).route == "other"
    assert read(WEBHOOK_ROBOT, {"deal_id": "7"}).deal_id == 4325
    assert read({"auth": PORTAL}, {"deal_id": "7"}).deal_id == 7


def test_secrets_do_not_show() -> None:
    """C23: printed by accident, a call tells who calls and about what."""
    shown = repr((read(APP_ROBOT), proof_of(APP_ROBOT)))
    assert MEMBER in shown
    for secret in (TOKEN, EVENT_TOKEN, "the-access", "the-refresh"):
        assert secret not in shown


def test_c22_what_the_transfer_does_not_need_is_not_kept() -> None:
    """C22: hundreds of kilobytes of properties leave no trace."""
    properties = {"route": "main", **{f"p{number}": "x" * 1000 for number in range(300)}}
    body = form({**APP_ROBOT, "properties": properties})
    assert len(body) > 300_000
    assert read_bytes(body) == read(APP_ROBOT)


# What nothing can be made of


@pytest.mark.parametrize(
    "tree",
    [
        {},
        {"auth": PORTAL},
        without(WEBHOOK_EVENT, "data"),
        {**WEBHOOK_EVENT, "data": []},
        {**WEBHOOK_EVENT, "data": {"FIELDS": []}},
        {**WEBHOOK_EVENT, "data": {"FIELDS": {"ID": ""}}},
        {**WEBHOOK_EVENT, "data": {"FIELDS": {"ID": None}}},
        {**WEBHOOK_EVENT, "data": {"FIELDS": {"ID": 0}}},
        {**WEBHOOK_ROBOT, "document_id": ["crm", "CCrmDocumentDeal", ""]},
        {**WEBHOOK_ROBOT, "document_id": ["crm", "CCrmDocumentDeal"]},
    ],
    ids=repr,
)
def test_a_call_without_a_deal_is_told_so(tree: dict[str, Any]) -> None:
    """The word is the seed's."""
    with pytest.raises(DealIdRequired) as refusal:
        read_bytes(as_json(tree))
    assert (refusal.value.status, refusal.value.error) == (422, "deal_id_required")


def test_an_empty_body_names_no_deal() -> None:
    """It is an empty form."""
    with pytest.raises(DealIdRequired):
        read_bytes(b"")


@pytest.mark.parametrize("placeholder", ["{{ID}}", "{{ ID }}", "DEAL_{{ID}}", "{=Document:ID}", "{{ID", "{ID}"])
@pytest.mark.parametrize("where", ["event", "robot", "query", "route", "property"])
def test_a_placeholder_is_no_value(placeholder: str, where: str) -> None:
    """Typed by hand it stays as it is: the answer says what is wrong."""
    tree: dict[str, Any] = dict(WEBHOOK_EVENT)
    query: dict[str, str] = {}
    match where:
        case "event":
            tree["data"] = {"FIELDS": {"ID": placeholder}}
        case "robot":
            tree = {**WEBHOOK_ROBOT, "document_id": ["crm", "CCrmDocumentDeal", placeholder]}
        case "query":
            tree, query = {"auth": PORTAL}, {"deal_id": placeholder}
        case "route":
            query = {"route": placeholder}
        case _:
            tree["properties"] = {"route": placeholder}
    with pytest.raises(PlaceholderNotReplaced) as refusal:
        read(tree, query)
    assert (refusal.value.status, refusal.value.error) == (422, "placeholder_not_replaced")


@pytest.mark.parametrize("deal_id", ["abc", "-1", "1.5", "007", "1e3", "²", "9" * 19, "1 2", "../1", "DEAL_1"])
def test_an_id_that_cannot_be_is_refused(deal_id: str) -> None:
    """And is no missing one."""
    with pytest.raises(Meaningless) as refusal:
        read({**WEBHOOK_EVENT, "data": {"FIELDS": {"ID": deal_id}}})
    assert refusal.value.error == "deal_id_invalid"


@pytest.mark.parametrize(
    "tree",
    [
        *({"document_id": ["crm", "CCrmDocumentDeal", what]} for what in ("LEAD_1", "DEAL_0", "DEAL_x", "deal_1", "7")),
        {"document_id": ["crm", "CCrmDocumentLead", "DEAL_1"]},
        {"document_id": ["crm", "Bitrix\\Crm\\Integration\\BizProc\\Document\\Dynamic", "DYNAMIC_177_1"]},
        {"document_id": ["lists", "BizprocDocument", "DEAL_1"]},
        {"document_id": ["lists", "CCrmDocumentDeal", "DEAL_1"]},
        *(
            {"event": event, "data": {"FIELDS": {"ID": "1", "ENTITY_TYPE_ID": "177"}}}
            for event in ("ONCRMLEADADD", "ONCRMDYNAMICITEMUPDATE", "ONCRMDEALDELETE", "ONCRMCONTACTADD", "ONAPPTEST")
        ),
        {"event": "ONOFFLINEEVENT"},
    ],
    ids=repr,
)
def test_c20_what_is_no_deal_is_refused(tree: dict[str, Any]) -> None:
    """C20: leads, smart processes, deals that are gone."""
    with pytest.raises(NotADeal) as refusal:
        read(tree)
    assert (refusal.value.status, refusal.value.error) == (422, "not_a_deal")


@pytest.mark.parametrize(
    "document",
    [
        ["crm", "CCrmDocumentDeal", "DEAL_1", "DEAL_2"],
        ["crm", "CCrmDocumentDeal", ["DEAL_1"]],
        [["crm", "CCrmDocumentDeal", "DEAL_1"]],
        {"0": "crm", "1": "CCrmDocumentDeal", "2": {"id": "DEAL_1"}},
        {"module": "crm", "id": "DEAL_1"},
        "DEAL_1",
    ],
    ids=repr,
)
def test_c21_a_document_of_another_shape_is_refused(document: Any) -> None:
    """C21: longer, nested, or no list at all."""
    with pytest.raises(Malformed) as refusal:
        read({"document_id": document})
    assert refusal.value.status == 400


@pytest.mark.parametrize(
    "body",
    [
        b"[1]",
        b"{",
        b'{"auth": 1, "data": {"FIELDS": {"ID": 1}}}',
        b'{"auth": {"member_id": {"a": 1}}, "data": {"FIELDS": {"ID": 1}}}',
        b'{"data": {"FIELDS": {"ID": true}}}',
        b'{"data": {"FIELDS": {"ID": [1]}}}',
        b'{"data": "x"}',
        b'{"event": "' + b"x" * 3000 + b'"}',
        b"auth[member_id][]=1&data[FIELDS][ID]=1",
        b"&".join(b"a%d=1" % number for number in range(20_001)),
        b"document_id" + b"[b]" * 17 + b"=1",
        b"document_id=" + b"1" * 65_536,
        b'{"a":' * 101 + b"1" + b"}" * 101,
    ],
    ids=lambda body: repr(body[:60]),
)
def test_another_shape_is_refused(body: bytes) -> None:
    """400, whatever it is."""
    with pytest.raises(Malformed):
        read_bytes(body)


def test_of_a_form_only_what_calls_are_made_of_is_read() -> None:
    """The rest may be long and odd: it costs nothing and decides nothing."""
    body = b"x" + b"[a]" * 17 + b"=1&properties[text]=" + b"%41" * 100_000
    call = read_bytes(b"&".join([body, form(WEBHOOK_EVENT), b"properties%5Broute%5D=main"]))
    assert (call.kind, call.route) == ("event", "main")


def test_json_is_bounded_as_everywhere() -> None:
    """512 KiB; Bitrix24 itself sends forms."""
    body = b'{"event": "%s"}' % (b"x" * 524_288)
    with pytest.raises(TooLarge):
        read_bytes(body)


def test_a_route_is_a_name() -> None:
    """Not a novel."""
    assert read(WEBHOOK_ROBOT, {"route": "р" * 100}).route == "р" * 100
    with pytest.raises(Meaningless):
        read(WEBHOOK_ROBOT, {"route": "р" * 101})


KEYS = st.sampled_from(
    ["event", "data", "FIELDS", "ID", "auth", "member_id", "document_id", "0", "2", "code", "expires"]
)
TREES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.sampled_from(["DEAL_1", "{{ID}}", "ONAPPINSTALL"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS | st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(KEYS, TREES).map(as_json) | st.binary())
def test_any_body_is_a_call_or_a_refusal(body: bytes) -> None:
    """Nothing else comes out, and a deal's id is one."""
    with suppress(Refusal):
        call = read_bytes(body)
        assert call.deal_id is None or call.deal_id > 0


@given(st.lists(st.tuples(st.text(), st.text()), max_size=20))
def test_any_form_is_a_call_or_a_refusal(fields: list[tuple[str, str]]) -> None:
    """Around a robot's document, too."""
    noise = "&".join(f"{quote_plus(name)}={quote_plus(value)}" for name, value in fields)
    with suppress(Refusal):
        read_bytes(f"{noise}&{encode(WEBHOOK_ROBOT)}".encode(), {"route": "main"})
