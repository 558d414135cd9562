"""The Bitrix24 sandbox as a caller meets it: REST, batches, files, OAuth and robots; a little over sockets."""

import asyncio
import json
import re
from base64 import b64encode
from dataclasses import replace
from random import Random
from typing import Any, override
from urllib.parse import parse_qsl, quote, urlencode

import httpx
import pytest

from workbench.sandboxes.bitrix24 import (
    HUB,
    HUB_SCOPES,
    PARTNER,
    READY,
    SOURCE_SCOPES,
    App,
    Bitrix24OAuth,
    Bitrix24Sandbox,
    IncomingWebhook,
    OutgoingWebhook,
    WebhookRobot,
    add_whole_deal,
)
from workbench.sandboxes.bitrix24.fields import camel_case
from workbench.sandboxes.bitrix24.items import Item
from workbench.sandboxes.bitrix24.oauth import HOST as OAUTH_HOST
from workbench.sandboxes.bitrix24.portal import COMPANY, CONTACT, DEAL, UserField
from workbench.sandboxes.callbacks import CallbackDelivery
from workbench.sandboxes.faults import CodedError, Html, Timeout
from workbench.sandboxes.memory import MemoryTransport
from workbench.sandboxes.server import serve
from workbench.sandboxes.wire import SandboxRequest, SandboxResponse

HOOK_URL = "https://relay.invalid/bitrix/url-key"
OURS = App(
    client_id="local.1",
    client_secret="client-secret",
    application_token="application-token",
    user_id=1,
    scopes=SOURCE_SCOPES,
)


class Clock:
    """Virtual time: it passes when somebody waits."""

    def __init__(self) -> None:
        self.now = 1_760_000_000.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Bench:
    """The pair of portals in memory, each with an incoming webhook, and an application in the source."""

    def __init__(self, **terms: Any) -> None:
        self.clock = Clock()
        random = Random(7)
        self.oauth = Bitrix24OAuth(clock=self.clock, random=random)
        opening: dict[str, Any] = {"burst": 1_000_000, "apps": (OURS,)} | terms
        source = replace(PARTNER, incoming=(IncomingWebhook(1, "source", SOURCE_SCOPES),), **opening)
        hub = replace(HUB, incoming=(IncomingWebhook(1, "hub", HUB_SCOPES),), burst=1_000_000)
        self.source = Bitrix24Sandbox(source, self.oauth, clock=self.clock, random=random)
        self.hub = Bitrix24Sandbox(hub, self.oauth, clock=self.clock, random=random)
        sandboxes = {
            source.domain: self.source,
            "renamed.bitrix24.ru": self.source,
            hub.domain: self.hub,
            OAUTH_HOST: self.oauth,
        }
        self.http = httpx.Client(transport=MemoryTransport(sandboxes, self.clock.sleep), timeout=10)
        self.webhook = f"https://{source.domain}/rest/1/source/"
        self.hub_webhook = f"https://{hub.domain}/rest/1/hub/"
        self.app = f"https://{source.domain}/rest/"

    def post(self, method: str, /, **params: Any) -> httpx.Response:
        """A call of the source through its webhook."""
        return self.http.post(self.webhook + method, json=params)

    def call(self, method: str, /, **params: Any) -> Any:
        """The result of such a call."""
        return result(self.post(method, **params))

    def to_hub(self, method: str, /, **params: Any) -> Any:
        """The result of a call of the hub."""
        return result(self.http.post(self.hub_webhook + method, json=params))

    def as_app(self, method: str, token: str, /, **params: Any) -> httpx.Response:
        """A call of the source through the application."""
        return self.http.post(self.app + method, json={**params, "auth": token})

    def batch(self, **commands: str) -> Any:
        """The result of a batch that goes on after a refusal."""
        return self.call("batch", halt=0, cmd=commands)

    def fetch(self, url: str, **headers: str) -> httpx.Response:
        """A download, with the headers that Bitrix24 wants."""
        return self.http.get(
            url, headers={"Accept-Language": "ru", "Referer": "https://partner.bitrix24.ru/"} | headers
        )

    def told(self, status: int | None = 200) -> list[tuple[CallbackDelivery, dict[str, str]]]:
        """The calls that are due, answered with `status`, and their fields."""
        sent = self.source.due(self.clock.now)
        for delivery in sent:
            self.source.answered(delivery, status)
        return [(delivery, dict(parse_qsl(delivery.body.decode(), strict_parsing=True))) for delivery in sent]

    def robot(self, waits: str = "Y", **properties: object) -> str:
        """An application's robot on the stage READY; returns the application's token."""
        token = self.source.grant("local.1").access_token
        definition = {
            "CODE": "send_to_hub",
            "HANDLER": HOOK_URL,
            "NAME": "Передать в ЕСБ",
            "USE_SUBSCRIPTION": waits,
            "PROPERTIES": {"route": {"Name": "Маршрут"}, "note": {"Name": "Примечание"}},
            "RETURN_PROPERTIES": {"hub_deal_id": {"Name": "№"}, "Status": {"Name": "Итог"}},
        }
        assert result(self.as_app("bizproc.robot.add", token, **definition)) is True
        self.source.place_robot(READY, "send_to_hub", **properties)
        return token


def result(answer: httpx.Response) -> Any:
    assert answer.status_code == 200, answer.text
    return answer.json()["result"]


def refused(answer: httpx.Response) -> tuple[int, object]:
    assert "result" not in answer.json()
    assert isinstance(answer.json()["error_description"], str)
    return answer.status_code, answer.json()["error"]


@pytest.fixture
def bench() -> Bench:
    return Bench()


# Calls and who makes them


@pytest.mark.parametrize("method", ["crm.item.get", "crm.item.get.json", "CRM.Item.Get"])
def test_a_webhook_calls_a_method_by_any_of_its_spellings(bench: Bench, method: str) -> None:
    deal = bench.source.add_deal(title="Окно")
    assert bench.call(method, entityTypeId=2, id=deal.id)["item"]["title"] == "Окно"


def test_json_a_form_with_brackets_and_a_query_say_the_same(bench: Bench) -> None:
    form = {"entityTypeId": "2", "fields[title]": "Окно", "fields[contactIds][0]": "1", "fields[opportunity]": "10.5"}
    bench.source.add_contact(name="Мария")
    url = f"{bench.webhook}crm.item.add"
    fields = {"title": "Окно", "contactIds": [1], "opportunity": 10.5}
    answers = [
        bench.http.post(url, json={"entityTypeId": 2, "fields": fields}),
        bench.http.post(url, data=form),
        bench.http.get(url, params=form),
    ]
    items = [result(answer)["item"] for answer in answers]
    assert [{name: item[name] for name in fields} for item in items] == [fields] * 3


def test_a_wrong_code_is_401_and_a_forgotten_user_id_404(bench: Bench) -> None:
    host = "https://partner.bitrix24.ru/rest"
    assert refused(bench.http.post(f"{host}/1/wrong/profile")) == (401, "NO_AUTH_FOUND")
    assert refused(bench.http.post(f"{host}/7/source/profile")) == (401, "NO_AUTH_FOUND")
    assert refused(bench.http.post(f"{host}/profile")) == (401, "NO_AUTH_FOUND")
    assert refused(bench.http.post(f"{host}/source/profile")) == (404, "ERROR_METHOD_NOT_FOUND")
    assert refused(bench.post("crm.item.clone")) == (404, "ERROR_METHOD_NOT_FOUND")


def test_a_webhook_dies_with_its_user(bench: Bench) -> None:
    users = tuple(replace(user, active=user.id != 1) for user in bench.source.portal.users)
    bench.source.portal = replace(bench.source.portal, users=users)
    assert refused(bench.post("profile")) == (401, "NO_AUTH_FOUND")


def test_scopes_and_the_application_context_are_held_to(bench: Bench) -> None:
    assert refused(bench.http.post(f"{bench.hub_webhook}im.notify.system.add")) == (403, "insufficient_scope")
    answer = bench.post("bizproc.robot.add", CODE="a", HANDLER=HOOK_URL, NAME="A")
    assert refused(answer) == (403, "ACCESS_DENIED")
    assert answer.json()["error_description"] == "Application context required"
    assert refused(bench.post("app.info")) == (403, "ACCESS_DENIED")


def test_methods_that_need_no_scope_tell_who_calls(bench: Bench) -> None:
    assert bench.call("profile")["ID"] == "1"
    assert bench.call("scope") == sorted(SOURCE_SCOPES)
    assert bench.call("server.time") == "2025-10-09T11:53:20+03:00"
    assert bench.call("user.current")["EMAIL"] == "anna@example.com"


def test_refusals_have_all_of_bitrix24s_shapes(bench: Bench) -> None:
    """Reference, section 3.0: a code, a sentence, nothing at all, a number, a number as text."""
    assert refused(bench.post("crm.item.get", entityTypeId=2, id=99)) == (400, "NOT_FOUND")
    assert refused(bench.post("crm.item.get", entityTypeId=999, id=1)) == (400, "NOT_FOUND")
    assert refused(bench.post("crm.item.get", entityTypeId=2, id="первая")) == (400, "100")
    assert refused(bench.post("crm.category.list", entityTypeId=3)) == (400, "ENTITY_TYPE_NOT_SUPPORTED")
    assert refused(bench.post("crm.duplicate.findbycomm")) == (400, "Communication type is not defined")
    assert refused(bench.post("crm.status.list", filter="x")) == (400, "Invalid parameters.")
    assert refused(bench.post("crm.deal.contact.items.get", id=99)) == (400, "")
    assert refused(bench.post("crm.stagehistory.list")) == (400, 0)
    answer = bench.post("crm.item.add", entityTypeId=2)
    assert refused(answer) == (400, "100")
    assert answer.json()["error_description"] == "Could not find value for parameter {fields}"


def test_the_switches_refuse_every_call(bench: Bench) -> None:
    for switch, told in {
        "overloaded": (503, "OVERLOAD_LIMIT"),
        "deleted": (500, "PORTAL_DELETED"),
    }.items():
        bench.http.post(f"https://{PARTNER.domain}/sandbox/switches", json={switch: True})
        assert refused(bench.post("profile")) == told
        bench.http.post(f"https://{PARTNER.domain}/sandbox/switches", json={switch: False})
    bench.http.post(f"https://{PARTNER.domain}/sandbox/switches", json={"paid": False})
    assert refused(bench.post("profile")) == (401, "PAYMENT_REQUIRED")


def test_a_renamed_portal_sends_callers_on_and_does_nothing(bench: Bench) -> None:
    bench.source.rename("renamed.bitrix24.ru")
    answer = bench.post("crm.item.add", entityTypeId=2, fields={"title": "Окно"})
    assert answer.status_code == 302
    assert answer.headers["location"] == "https://renamed.bitrix24.ru/rest/1/source/crm.item.add"
    assert not bench.source.deals
    again = bench.http.post(answer.headers["location"], json={"entityTypeId": 2, "fields": {"title": "Окно"}})
    assert result(again)["item"]["id"] == 1


def test_faults_strike_before_or_after_the_work(bench: Bench) -> None:
    add = {"entityTypeId": 2, "fields": {"title": "Окно"}}
    bench.source.faults.add(Timeout(when="after"), Html(status=502), CodedError(code="QUERY_LIMIT_EXCEEDED"))
    with pytest.raises(httpx.ReadTimeout):
        bench.post("crm.item.add", **add)
    assert len(bench.source.deals) == 1
    page = bench.post("crm.item.add", **add)
    assert (page.status_code, page.headers["content-type"]) == (502, "text/html; charset=utf-8")
    assert refused(bench.post("crm.item.add", **add)) == (503, "QUERY_LIMIT_EXCEEDED")
    assert len(bench.source.deals) == 1


# OAuth


def test_an_access_token_expires_and_is_refreshed_once(bench: Bench) -> None:
    grant = bench.source.grant("local.1")
    assert result(bench.as_app("app.info", grant.access_token))["STATUS"] == "L"
    bench.clock.sleep(3_600)
    assert refused(bench.as_app("profile", grant.access_token)) == (401, "expired_token")
    refresh = {
        "grant_type": "refresh_token",
        "client_id": "local.1",
        "client_secret": "client-secret",
        "refresh_token": grant.refresh_token,
    }
    url = f"https://{OAUTH_HOST}/oauth/token/"
    pair = bench.http.get(url, params=refresh).json()
    assert (pair["expires_in"], pair["member_id"], pair["user_id"]) == (3_600, PARTNER.member_id, 1)
    assert (pair["domain"], pair["client_endpoint"]) == (OAUTH_HOST, "https://partner.bitrix24.ru/rest/")
    assert pair["refresh_token"] != grant.refresh_token
    assert result(bench.as_app("profile", pair["access_token"]))["ADMIN"] is True
    assert refused(bench.http.get(url, params=refresh)) == (400, "invalid_grant")
    assert bench.oauth.refreshes == 1
    wrong = refresh | {"refresh_token": pair["refresh_token"], "client_secret": "guess"}
    assert refused(bench.http.get(url, params=wrong)) == (401, "invalid_client")
    assert refused(bench.http.get(url)) == (400, "invalid_request")


def test_a_code_is_good_once_for_thirty_seconds(bench: Bench) -> None:
    url = f"https://{OAUTH_HOST}/oauth/token/"
    terms = {"grant_type": "authorization_code", "client_id": "local.1", "client_secret": "client-secret"}
    code = bench.oauth.code(bench.source.portal, OURS)
    assert bench.http.get(url, params=terms | {"code": code}).json()["access_token"]
    assert refused(bench.http.get(url, params=terms | {"code": code})) == (400, "invalid_grant")
    late = bench.oauth.code(bench.source.portal, OURS)
    bench.clock.sleep(30)
    assert refused(bench.http.get(url, params=terms | {"code": late})) == (400, "invalid_grant")


def test_a_token_is_worth_nothing_in_another_portal(bench: Bench) -> None:
    token = bench.source.grant("local.1").access_token
    answer = bench.http.post(f"https://{HUB.domain}/rest/profile", json={"auth": token})
    assert refused(answer) == (401, "invalid_token")


def test_the_authorization_server_tells_what_a_token_is_of(bench: Bench) -> None:
    token = bench.source.grant("local.1").access_token
    told = result(bench.http.get(f"https://{OAUTH_HOST}/rest/app.info", params={"auth": token}))
    assert told["client_id"] == "local.1"
    assert (told["install"]["member_id"], told["install"]["status"]) == (PARTNER.member_id, "L")
    forged = bench.http.get(f"https://{OAUTH_HOST}/rest/app.info", params={"auth": "forged"})
    assert refused(forged) == (401, "invalid_token")


# Limits


def test_above_fifty_requests_the_bucket_refuses_and_two_a_second_drain() -> None:
    bench = Bench(burst=50)
    statuses = [bench.post("profile").status_code for _ in range(52)]
    assert statuses == [200] * 50 + [503] * 2
    assert refused(bench.post("profile")) == (503, "QUERY_LIMIT_EXCEEDED")
    bench.clock.sleep(1)
    assert [bench.post("profile").status_code for _ in range(3)] == [200, 200, 503]


def test_a_batch_is_one_request_of_the_bucket() -> None:
    bench = Bench(burst=1)
    assert len(bench.batch(**{f"p{number}": "profile" for number in range(50)})["result"]) == 50
    assert refused(bench.post("profile")) == (503, "QUERY_LIMIT_EXCEEDED")


def test_a_method_that_worked_too_long_is_blocked_until_its_oldest_minute_drops() -> None:
    bench = Bench(operating_seconds=1.0)
    bench.source.switches.operating_per_call = 0.6
    time = bench.post("profile").json()["time"]
    assert (time["operating"], time["operating_reset_at"]) == (0.6, (1_760_000_000 // 60 + 10) * 60)
    # What is looked at before the work, one call may overshoot.
    assert bench.post("profile").json()["time"]["operating"] == 1.2
    answer = bench.post("profile")
    assert refused(answer) == (429, "OPERATION_TIME_LIMIT")
    assert answer.json()["time"]["operating_reset_at"] == time["operating_reset_at"]
    assert bench.post("scope").status_code == 200
    token = bench.source.grant("local.1").access_token
    assert bench.as_app("profile", token).status_code == 200
    done = bench.batch(who="profile", where="scope")
    assert done["result_error"]["who"]["error"] == "OPERATION_TIME_LIMIT"
    assert list(done["result"]) == ["where"]
    bench.clock.now = time["operating_reset_at"]
    assert bench.post("profile").json()["time"]["operating"] == 0.6


def test_a_refusal_for_working_time_may_leave_the_time_out() -> None:
    bench = Bench(operating_seconds=0.0)
    bench.source.switches.refusals_tell_time = False
    assert set(bench.post("profile").json()) == {"error", "error_description"}


# Batches


def test_later_commands_use_what_earlier_ones_gave(bench: Bench) -> None:
    deal = add_whole_deal(bench.source)
    done = bench.batch(
        deal=f"crm.item.get?entityTypeId=2&id={deal.id}",
        company="crm.item.get?entityTypeId=4&id=$result[deal][item][companyId]",
        second="crm.item.get?" + urlencode({"entityTypeId": 3, "id": "$result[deal][item][contactIds][1]"}),
        both="crm.item.list?" + urlencode({"entityTypeId": 3, "filter[@id]": "$result[deal][item][contactIds]"}),
        said="crm.timeline.comment.add?"
        + urlencode(
            {
                "fields[ENTITY_ID]": deal.id,
                "fields[ENTITY_TYPE]": "deal",
                "fields[COMMENT]": "№ $result[deal][item][id]!",
            }
        ),
    )
    assert done["result_error"] == []
    assert done["result"]["company"]["item"]["title"] == "ООО «Ромашка»"
    assert done["result"]["second"]["item"]["name"] == "Павел"
    assert (len(done["result"]["both"]["items"]), done["result_total"]) == (2, {"both": 2})
    assert bench.source.comments[0].text == f"№ {deal.id}!"
    assert done["result_time"]["deal"]["operating"] > 0
    assert done["result_next"] == []


def test_a_batch_tells_where_lists_go_on_and_takes_from_them(bench: Bench) -> None:
    for number in range(51):
        bench.source.add_deal(title=f"Окно {number}")
    done = bench.batch(
        people="user.get?FILTER[EMAIL]=boris@example.com",
        deals="crm.item.list?entityTypeId=2&filter[0][logic]=OR&filter[0][0][>id]=0&filter[0][1][id]=0",
        mine="crm.item.list?entityTypeId=2&filter[@assignedById][0]=$result[people][0][ID]",
        lost="crm.item.get?entityTypeId=2&id=$result[people][5][ID]",
    )
    assert (done["result_next"], done["result_total"]["deals"]) == ({"deals": 50}, 51)
    assert done["result"]["mine"]["items"] == []
    assert done["result_error"]["lost"]["error"] == "100"


def test_what_is_too_deep_or_no_json_does_nothing(bench: Bench) -> None:
    deep = "a" + "[b]" * 70 + "=1"
    page = bench.http.get(f"{bench.webhook}profile?{deep}")
    assert (page.status_code, page.headers["content-type"]) == (400, "text/html; charset=UTF-8")
    assert bench.batch(deep=f"profile?{deep}")["result_error"]["deep"]["error"] == "ERROR_ARGUMENT"
    for body in ("{", "[1]", "5"):
        headers = {"Content-Type": "application/json; charset=utf-8"}
        answer = bench.http.post(f"{bench.webhook}crm.item.add", content=body, headers=headers)
        assert refused(answer) == (400, "100")
    assert not bench.source.deals
    assert bench.http.get("https://partner.bitrix24.ru/elsewhere").status_code == 404
    assert refused(bench.http.get(f"https://{OAUTH_HOST}/elsewhere")) == (404, "ERROR_METHOD_NOT_FOUND")


def test_without_halt_a_reference_to_a_failed_command_stays_as_text(bench: Bench) -> None:
    bench.source.add_deal(title="Окно")
    commands = {
        "lost": "crm.item.get?entityTypeId=2&id=99",
        "made": "crm.item.add?entityTypeId=2&fields[title]=" + quote("$result[lost][item][title]"),
    }
    done = bench.batch(**commands)
    assert done["result_error"]["lost"]["error"] == "NOT_FOUND"
    assert done["result"]["made"]["item"]["title"] == "$result[lost][item][title]"
    halted = bench.call("batch", halt=1, cmd=commands)
    assert (halted["result"], list(halted["result_error"])) == ([], ["lost"])
    assert len(bench.source.deals) == 2


def test_with_numbers_for_labels_places_shift_after_a_refusal(bench: Bench) -> None:
    assert bench.call("batch", cmd=["profile", "scope"])["result"][1] == sorted(SOURCE_SCOPES)
    done = bench.call("batch", cmd=["no.such.method", "scope"])
    assert done["result"] == [sorted(SOURCE_SCOPES)]


def test_a_batch_takes_fifty_commands_and_no_batch(bench: Bench) -> None:
    many = {f"p{number}": "profile" for number in range(51)}
    assert refused(bench.post("batch", cmd=many)) == (400, "ERROR_BATCH_LENGTH_EXCEEDED")
    assert refused(bench.post("batch")) == (400, "ERROR_ARGUMENT")
    assert (
        bench.batch(inner="batch?cmd[a]=profile")["result_error"]["inner"]["error"] == "ERROR_BATCH_METHOD_NOT_ALLOWED"
    )


def test_a_batch_that_breaks_off_leaves_a_part_done(bench: Bench) -> None:
    bench.source.switches.breaks_batches_after = 2
    add = "crm.item.add?entityTypeId=2&fields[title]=a"
    answer = bench.post("batch", cmd={"a": add, "b": add, "c": add})
    assert (answer.status_code, answer.headers["content-type"]) == (504, "text/html; charset=UTF-8")
    assert len(bench.source.deals) == 2


# Deals


def test_unknown_fields_are_ignored_without_a_word(bench: Bench) -> None:
    sent = {"title": "Окно", "TITLE": "Дверь", "titel": "Опечатка", "UF_CRM_1747309879": "1", "id": 77}
    item = bench.call("crm.item.add", entityTypeId=2, fields=sent)["item"]
    assert (item["id"], item["title"], item["ufCrm_1747309879"]) == (1, "Окно", "")
    again = bench.call("crm.item.add", entityTypeId=2, fields=sent, useOriginalUfNames="Y")["item"]
    assert (again["UF_CRM_1747309879"], "ufCrm_1747309879" in again) == ("1", False)


@pytest.mark.parametrize(
    ("original", "camel"),
    [
        ("UF_CRM_1747309879", "ufCrm_1747309879"),
        ("UF_CRM_3_1747309727", "ufCrm3_1747309727"),
        ("UF_CRM_3_DIGIT", "ufCrm3Digit"),
        ("UF_CRM_67BC9A01", "ufCrm_67BC9A01"),
        ("UF_CRM_OBJECT_AREA", "ufCrmObjectArea"),
        ("UF_SOURCE_DEAL_ID", "ufSourceDealId"),
    ],
)
def test_names_of_user_fields_are_turned_as_bitrix24_turns_them(original: str, camel: str) -> None:
    assert camel_case(original) == camel


def test_names_that_would_collide_stay_as_they_are() -> None:
    made = (UserField("UF_CRM_A_B"), UserField("UF_CRM_A__B"))
    assert camel_case(made[0].name) == camel_case(made[1].name)
    fields = Bench(user_fields={DEAL: made}).call("crm.item.fields", entityTypeId=2)["fields"]
    assert {"UF_CRM_A_B", "UF_CRM_A__B"} <= set(fields)


def test_every_type_of_field_comes_back_as_crm_item_shows_it(bench: Bench) -> None:
    sent = {
        "UF_CRM_1747309879": 17,
        "UF_CRM_OBJECT_AREA": "120.5",
        "UF_CRM_FLOORS": "2",
        "UF_CRM_BUDGET": "250000.50",
        "UF_CRM_START_DATE": "01.12.2026",
        "UF_CRM_VISIT_TIME": "2026-11-25T06:30:00Z",
        "UF_CRM_URGENT": 1,
        "UF_CRM_DELIVERY": "45",
        "UF_CRM_SERVICES": {"0": "51", "1": 52},
        "UF_CRM_ENGINEER": "7",
        "UF_CRM_TAGS": ["дом"],
        "isManualOpportunity": "Y",
        "opportunity": "99.90",
    }
    item = bench.call("crm.item.add", entityTypeId=2, fields=sent, useOriginalUfNames="Y")["item"]
    assert {name: item[name] for name in sent} == {
        "UF_CRM_1747309879": "17",
        "UF_CRM_OBJECT_AREA": 120.5,
        "UF_CRM_FLOORS": 2,
        "UF_CRM_BUDGET": "250000.50|RUB",
        "UF_CRM_START_DATE": "2026-12-01T03:00:00+03:00",
        "UF_CRM_VISIT_TIME": "2026-11-25T09:30:00+03:00",
        "UF_CRM_URGENT": "Y",
        "UF_CRM_DELIVERY": 45,
        "UF_CRM_SERVICES": [51, 52],
        "UF_CRM_ENGINEER": 7,
        "UF_CRM_TAGS": ["дом"],
        "isManualOpportunity": "Y",
        "opportunity": 99.9,
    }


def test_what_is_absent_is_zero_null_nothing_or_a_list(bench: Bench) -> None:
    item = bench.call("crm.item.add", entityTypeId=2, fields=[], useOriginalUfNames="Y")["item"]
    empties = {name: item[name] for name in ("companyId", "contactIds", "originId", "UF_CRM_1747309879")}
    assert empties == {"companyId": 0, "contactIds": [], "originId": None, "UF_CRM_1747309879": ""}
    assert (item["UF_CRM_67BC9A01"], item["UF_CRM_PHOTOS"], item["UF_CRM_DELIVERY"]) == (None, [], None)
    assert item["title"] == "Сделка #1"


@pytest.mark.parametrize(
    "field",
    [
        {"UF_CRM_FLOORS": "два"},
        {"UF_CRM_BUDGET": "много"},
        {"UF_CRM_START_DATE": "завтра"},
        {"UF_CRM_DELIVERY": "Курьер"},
        {"UF_CRM_DELIVERY": 910},
        {"assignedById": 55},
        {"UF_CRM_1747309879": {"a": 1}},
        {"contactIds": [55]},
        {"companyId": 55},
        {"categoryId": 55},
        {"stageId": "C3:WRONG"},
        {"categoryId": 0, "stageId": "C3:NEW"},
    ],
)
def test_a_value_that_a_field_does_not_take_is_refused(bench: Bench, field: dict[str, object]) -> None:
    answer = bench.post("crm.item.add", entityTypeId=2, fields=field, useOriginalUfNames="Y")
    assert refused(answer) == (400, "CRM_FIELD_ERROR_VALUE_NOT_VALID")
    assert not bench.source.deals


def test_a_multiple_field_wants_a_list_and_a_mandatory_one_a_value() -> None:
    field = UserField("UF_CRM_MUST", required=True)
    bench = Bench(user_fields={DEAL: (field, UserField("UF_CRM_TAGS", multiple=True))})
    assert refused(bench.post("crm.item.add", entityTypeId=2, fields={})) == (400, "CRM_FIELD_ERROR_REQUIRED")
    answer = bench.post("crm.item.add", entityTypeId=2, fields={"ufCrmMust": "a", "ufCrmTags": "b"})
    assert refused(answer) == (400, "100")


def test_an_update_changes_what_is_named_and_nothing_else(bench: Bench) -> None:
    deal = add_whole_deal(bench.source)
    bench.clock.sleep(60)
    before = dict(deal.fields)
    item = bench.call("crm.item.update", entityTypeId=2, id=deal.id, fields={"comments": "Перезвонить"})["item"]
    changed = {name for name in before if deal.fields[name] != before[name]}
    assert changed == {"comments", "updatedTime"}
    assert item["comments"] == "Перезвонить"
    assert (
        bench.call("crm.item.update", entityTypeId=2, id=deal.id, fields={"comments": None})["item"]["comments"] is None
    )
    assert refused(bench.post("crm.item.update", entityTypeId=2, id=deal.id, fields="a")) == (400, "100")
    assert bench.call("crm.item.delete", entityTypeId=2, id=deal.id) == []
    assert refused(bench.post("crm.item.delete", entityTypeId=2, id=deal.id)) == (400, "NOT_FOUND")


def test_fields_are_described_with_their_original_names_and_choices(bench: Bench) -> None:
    fields = bench.call("crm.item.fields", entityTypeId=2)["fields"]
    assert fields["stageId"]["upperName"] == "STAGE_ID"
    assert fields["id"]["isReadOnly"] is True
    delivery = fields["ufCrmDelivery"]
    assert (delivery["upperName"], delivery["type"], delivery["isDynamic"]) == ("UF_CRM_DELIVERY", "enumeration", True)
    assert delivery["items"] == [{"ID": "44", "VALUE": "Самовывоз"}, {"ID": "45", "VALUE": "Курьер"}]
    assert "UF_CRM_DELIVERY" in bench.call("crm.item.fields", entityTypeId=2, useOriginalUfNames="Y")["fields"]
    listed = bench.call("crm.deal.userfield.list", filter={"FIELD_NAME": "UF_CRM_DELIVERY"})
    assert [(choice["ID"], choice["XML_ID"]) for choice in listed[0]["LIST"]] == [("44", "pickup"), ("45", "courier")]


# Lists


def test_lists_come_in_pages_of_fifty(bench: Bench) -> None:
    for number in range(120):
        bench.source.add_deal(title=f"Окно {number}")
    first = bench.post("crm.item.list", entityTypeId=2, select=["id", "title"]).json()
    assert (first["total"], first["next"], len(first["result"]["items"])) == (120, 50, 50)
    assert first["result"]["items"][0] == {"id": 1, "title": "Окно 0"}
    last = bench.post("crm.item.list", entityTypeId=2, start=100).json()
    assert ("next" in last, len(last["result"]["items"])) == (False, 20)
    uncounted = bench.post(
        "crm.item.list", entityTypeId=2, order={"id": "DESC"}, filter={">id": 100}, start=-1, select=["id"]
    ).json()
    assert ("total" in uncounted, "next" in uncounted) == (False, False)
    assert [item["id"] for item in uncounted["result"]["items"]] == [*range(120, 100, -1)]


@pytest.mark.parametrize(
    ("conditions", "found"),
    [
        ({"=originatorId": "b24:source", "=originId": "deal:2"}, [2]),
        ({"originId": "deal:3"}, [3]),
        ({"@id": [1, "3"]}, [1, 3]),
        ({"!@id": [1, 3]}, [2]),
        ({"!=originId": "deal:1"}, [2, 3]),
        ({">=opportunity": "20", "<opportunity": 30}, [2]),
        ({"%title": "дв"}, [2, 3]),
        ({"contactId": 2}, [2]),
        ({"contactIds": 2}, [1, 2]),
        ({"companyId": ""}, []),
        ({"sourceId": ""}, [1, 2, 3]),
        ({"=ufCrmUrgent": 1}, [3]),
        ({"<=id": 2, "opportunity": "нисколько"}, []),
        ({">id": "много"}, []),
        ({">title": "Дверца"}, [1, 2]),
        ({">createdTime": "вчера"}, []),
        ({"!%title": "дв"}, [1]),
        ({">createdTime": "2025-10-09T11:54:00+03:00"}, [3]),
        ({">createdTime": "2025-10-09 11:54:00"}, [3]),
        ({"logic": "OR", "0": {"id": 1}, "1": {"title": "Дверца"}}, [1, 3]),
        ({"0": {"logic": "OR", "0": {"id": 1}, "1": {"id": 3}}, "!id": 1}, [3]),
    ],
)
def test_filters_mean_what_their_prefixes_say(bench: Bench, conditions: dict[str, object], found: list[int]) -> None:
    bench.source.add_contact(name="Мария")
    bench.source.add_contact(name="Павел")
    for number, (title, contacts) in enumerate([("Окно", [1, 2]), ("Дверь", [2]), ("Дверца", [1])], start=1):
        bench.source.add_deal(
            title=title,
            contactIds=contacts,
            opportunity=10 * number,
            originatorId="b24:source",
            originId=f"deal:{number}",
            UF_CRM_URGENT="Y" if number == 3 else "N",
        )
        bench.clock.sleep(30)
    items = bench.call("crm.item.list", entityTypeId=2, filter=conditions, select=["id"])["items"]
    assert [item["id"] for item in items] == found


def test_a_filter_by_an_unknown_field_is_refused(bench: Bench) -> None:
    """Reference, sections 3.2 and 11: whether the origin can be filtered by is not known, so both are to be met."""
    answer = bench.post("crm.item.list", entityTypeId=2, filter={"=originID": "deal:1"})
    assert refused(answer) == (400, "INVALID_ARG_VALUE")
    bench.source.switches.origin_can_be_filtered = False
    answer = bench.post("crm.item.list", entityTypeId=2, filter={"=originId": "deal:1"})
    assert refused(answer) == (400, "INVALID_ARG_VALUE")


# Contacts and companies


def test_phones_are_written_by_type_and_updated_by_id(bench: Bench) -> None:
    phone = {"typeId": "PHONE", "valueType": "WORK", "value": "+380501234567"}
    lost = {"valueType": "WORK", "value": "+380507654321"}
    item = bench.call("crm.item.add", entityTypeId=3, fields={"name": "Мария", "fm": [phone, lost]})["item"]
    assert item["fm"] == [{"id": 101, **{name: phone[name] for name in ("valueType", "value", "typeId")}}]
    assert (item["hasPhone"], item["hasEmail"]) == ("Y", "N")
    email = {"typeId": "EMAIL", "valueType": "WORK", "value": "maria@example.com"}
    changes = {"101": {"value": "+380500000001"}, "n0": email}
    item = bench.call("crm.item.update", entityTypeId=3, id=1, fields={"fm": changes})["item"]
    assert [each["value"] for each in item["fm"]] == ["+380500000001", "maria@example.com"]
    changes = {"101": {"valueType": "HOME"}, "102": {"value": ""}}
    item = bench.call("crm.item.update", entityTypeId=3, id=1, fields={"fm": changes})["item"]
    assert [(each["valueType"], each["value"]) for each in item["fm"]] == [("HOME", "+380500000001")]
    assert "fm" in bench.call("crm.item.list", entityTypeId=3, select=["*"])["items"][0]
    assert "fm" not in bench.call("crm.item.list", entityTypeId=3, select=["id", "fm"])["items"][0]


def test_duplicates_are_found_by_phone_in_any_spelling(bench: Bench) -> None:
    add_whole_deal(bench.source)
    find = "crm.duplicate.findbycomm"
    phone = {"type": "PHONE", "values": ["+38 (050) 123-45-67"]}
    assert bench.call(find, **phone) == {"CONTACT": [1]}
    assert bench.call(find, **phone, entity_type="COMPANY") == []
    assert bench.call(find, type="EMAIL", values=["Maria@example.com"]) == {"CONTACT": [1]}
    assert refused(bench.post(find, type="PHONE")) == (400, "Communication values is not defined")


def test_of_many_duplicates_twenty_are_told(bench: Bench) -> None:
    phone = {"typeId": "PHONE", "value": "+380501234567"}
    for _ in range(25):
        bench.source.add_contact(name="Мария", fm=[phone])
    assert bench.call("crm.duplicate.findbycomm", type="PHONE", values=["380501234567"]) == {"CONTACT": [*range(1, 21)]}


def test_contacts_of_a_deal_have_a_first(bench: Bench) -> None:
    deal = add_whole_deal(bench.source)
    contacts = bench.call("crm.deal.contact.items.get", id=deal.id)
    assert [(each["CONTACT_ID"], each["IS_PRIMARY"]) for each in contacts] == [(1, "Y"), (2, "N")]
    item = bench.call("crm.item.update", entityTypeId=2, id=deal.id, fields={"contactId": 2})["item"]
    assert (item["contactId"], item["contactIds"]) == (2, [2])
    assert bench.source.contacts[2]["companyIds"] == [1]


# Product rows and catalog


def test_rows_are_replaced_as_a_whole_and_make_the_amount(bench: Bench) -> None:
    deal = bench.source.add_deal(title="Окно", opportunity=1)
    row = {"productId": 101, "price": 120, "quantity": 2, "discountTypeId": 2, "discountRate": 20, "taxRate": 20}
    sent = {"ownerType": "D", "ownerId": deal.id, "productRows": [row, {"productName": "Выезд", "price": 5.5}]}
    first = bench.call("crm.item.productrow.set", **sent)["productRows"]
    again = bench.call("crm.item.productrow.set", **sent)["productRows"]
    assert [{**row, "id": 0} for row in first] == [{**row, "id": 0} for row in again]
    window, visit = again
    assert (window["productName"], window["priceExclusive"]) == ("Окно ПВХ 1400×1200", 100.0)
    assert (window["priceNetto"], window["priceBrutto"], window["discountSum"]) == (125.0, 150.0, 25.0)
    assert (visit["productId"], visit["quantity"], visit["taxRate"], visit["measureCode"]) == (0, 1.0, None, 796)
    assert (window["sort"], visit["sort"], deal["opportunity"]) == (10, 20, 245.5)
    listed = bench.post("crm.item.productrow.list", filter={"=ownerType": "D", "=ownerId": deal.id}).json()
    assert (listed["result"]["productRows"], listed["total"]) == (again, 2)


def test_a_discount_may_be_a_sum(bench: Bench) -> None:
    deal = bench.source.add_deal(title="Окно")
    sent = {"productName": "a", "price": "75", "discountTypeId": "1", "discountSum": "25", "measureCode": 6}
    bench.call("crm.item.productrow.set", ownerType="D", ownerId=deal.id, productRows={"0": sent})
    (row,) = deal.rows
    assert (row["priceNetto"], row["discountRate"], row["measureName"]) == (100.0, 25.0, "м")


def test_a_written_amount_stays_whatever_the_rows(bench: Bench) -> None:
    deal = bench.source.add_deal(title="Окно", opportunity=1, isManualOpportunity="Y")
    bench.call(
        "crm.item.productrow.set", ownerType="D", ownerId=deal.id, productRows=[{"productName": "a", "price": 5}]
    )
    assert deal["opportunity"] == 1.0


def test_wrong_rows_are_refused_and_change_nothing(bench: Bench) -> None:
    deal = bench.source.add_deal(rows=[{"productName": "Окно", "price": 5}])
    method = "crm.item.productrow.set"
    rows = [{"productName": "Дверь", "price": 5}]
    assert refused(bench.post(method, ownerType="D", ownerId=99, productRows=rows)) == (400, "OWNER_NOT_FOUND")
    assert refused(bench.post(method, ownerType="L", ownerId=1, productRows=rows)) == (400, "ENTITY_TYPE_NOT_SUPPORTED")
    assert refused(bench.post(method, ownerType="D", ownerId=deal.id)) == (400, "100")
    assert refused(bench.post(method, ownerType="D", ownerId=deal.id, productRows="a")) == (400, "100")
    for wrong in ({"productId": 999, "price": 5}, {"price": 5}, {"productName": "a", "price": "b"}, "c"):
        assert refused(bench.post(method, ownerType="D", ownerId=deal.id, productRows=[*rows, wrong])) == (400, "0")
    assert [row["productName"] for row in deal.rows] == ["Окно"]
    assert refused(bench.post("crm.item.productrow.list", filter={"ownerId": deal.id})) == (400, "100")


def test_the_catalog_is_read_by_xml_id_or_name(bench: Bench) -> None:
    method, select = "catalog.product.list", ["id", "iblockId", "name", "xmlId"]
    found = bench.to_hub(method, select=select, filter={"iblockId": 25, "@xmlId": ["sill-300", "none"]})
    assert found["products"] == [{"id": 2002, "iblockId": 25, "name": "Подоконник 300 мм", "xmlId": "sill-300"}]
    by_name = bench.to_hub(method, select=select, filter={"iblockId": 25, "name": "Окно ПВХ 1400×1200"})
    assert [product["id"] for product in by_name["products"]] == [2001]
    assert bench.http.post(bench.hub_webhook + method, json={"select": ["name"]}).status_code == 400


# References


def test_stages_and_pipelines_have_the_ids_that_deals_have(bench: Bench) -> None:
    stages = bench.call("crm.status.list", filter={"ENTITY_ID": "DEAL_STAGE_3"}, order={"SORT": "ASC"})
    assert [(stage["STATUS_ID"], stage["SEMANTICS"]) for stage in stages] == [
        ("C3:NEW", None),
        (READY, None),
        ("C3:WON", "S"),
        ("C3:LOSE", "F"),
    ]
    sources = bench.call("crm.status.list", filter={"ENTITY_ID": "SOURCE"})
    assert {source["STATUS_ID"]: source["NAME"] for source in sources}["PARTNER"] == "Партнёр"
    categories = bench.call("crm.category.list", entityTypeId=2)["categories"]
    assert [(category["id"], category["isDefault"]) for category in categories] == [(0, "Y"), (3, "N")]


def test_people_are_found_by_mail_which_the_brief_scope_hides(bench: Bench) -> None:
    found = bench.call("user.get", FILTER={"EMAIL": "boris@example.com", "ACTIVE": True})
    assert [(user["ID"], user["EMAIL"]) for user in found] == [("7", "boris@example.com")]
    assert bench.call("user.get", FILTER={"EMAIL": "vera@example.com", "ACTIVE": True}) == []
    brief = IncomingWebhook(1, "source", frozenset({"user_brief"}))
    bench.source.portal = replace(bench.source.portal, incoming=(brief,))
    assert [user["EMAIL"] for user in bench.call("user.get", ID=7)] == [""]


def test_the_history_tells_each_stage_that_a_deal_came_to(bench: Bench) -> None:
    deal = bench.source.add_deal(categoryId=3)
    other = bench.source.add_deal()
    bench.source.move(deal.id, READY)
    bench.source.move(deal.id, "C3:WON")
    bench.source.change(deal.id, comments="Готово")
    rows = bench.call("crm.stagehistory.list", entityTypeId=2, filter={"OWNER_ID": deal.id})["items"]
    assert [(row["TYPE_ID"], row["STAGE_ID"], row["STAGE_SEMANTIC_ID"]) for row in rows] == [
        (1, "C3:NEW", "P"),
        (2, READY, "P"),
        (3, "C3:WON", "S"),
    ]
    later = bench.call("crm.stagehistory.list", entityTypeId=2, filter={">ID": rows[0]["ID"]}, select=["OWNER_ID"])
    assert [row["OWNER_ID"] for row in later["items"]] == [other.id, deal.id, deal.id]
    item = bench.call("crm.item.get", entityTypeId=2, id=deal.id)["item"]
    assert (item["previousStageId"], item["closed"]) == (READY, "Y")


# Files


def linked(bench: Bench, deal: Item, field: str) -> Any:
    item = bench.call("crm.item.get", entityTypeId=2, id=deal.id, useOriginalUfNames="Y")["item"]
    return item[field]


def test_a_file_is_fetched_by_its_machine_link_alone(bench: Bench) -> None:
    deal = add_whole_deal(bench.source)
    link = linked(bench, deal, "UF_CRM_67BC9A01")
    assert set(link) == {"id", "url", "urlMachine"}
    answer = bench.fetch(link["urlMachine"])
    assert (answer.content[:4], answer.headers["content-type"]) == (b"%PDF", "application/pdf")
    assert int(answer.headers["content-length"]) == 2_009
    name = quote("Договор № 17.pdf", safe="")
    disposition = answer.headers["content-disposition"]
    assert disposition == f"attachment; filename=\"_______ _ 17.pdf\"; filename*=utf-8''{name}"
    login = bench.fetch(link["url"])
    assert (login.status_code, login.headers["content-type"]) == (200, "text/html; charset=UTF-8")
    assert [photo["id"] for photo in linked(bench, deal, "UF_CRM_PHOTOS")] == deal["UF_CRM_PHOTOS"]


def test_the_name_of_a_file_comes_in_either_form_or_both(bench: Bench) -> None:
    deal = add_whole_deal(bench.source)
    link = linked(bench, deal, "UF_CRM_67BC9A01")["urlMachine"]
    bench.source.switches.disposition = "plain"
    assert bench.fetch(link).headers["content-disposition"] == 'attachment; filename="_______ _ 17.pdf"'
    bench.source.switches.disposition = "extended"
    assert bench.fetch(link).headers["content-disposition"].startswith("attachment; filename*=utf-8''%D0%94")


def test_links_to_files_die_and_are_new_each_time(bench: Bench) -> None:
    deal = add_whole_deal(bench.source)
    old = linked(bench, deal, "UF_CRM_67BC9A01")["urlMachine"]
    assert refused(bench.fetch(old.replace("auth=", "auth=0"))) == (401, "invalid_token")
    bench.clock.sleep(PARTNER.link_seconds)
    assert refused(bench.fetch(old)) == (401, "expired_token")
    fresh = linked(bench, deal, "UF_CRM_67BC9A01")["urlMachine"]
    assert bench.fetch(fresh).status_code == 200
    bench.http.delete(f"https://{PARTNER.domain}/sandbox/links")
    assert refused(bench.fetch(fresh)) == (401, "invalid_token")


@pytest.mark.parametrize("missing", ["User-Agent", "Accept", "Accept-Language", "Referer"])
def test_a_download_without_the_advised_headers_fails(bench: Bench, missing: str) -> None:
    deal = add_whole_deal(bench.source)
    request = bench.http.build_request(
        "GET",
        linked(bench, deal, "UF_CRM_67BC9A01")["urlMachine"],
        headers={"Accept-Language": "ru", "Referer": "https://partner.bitrix24.ru/"},
    )
    del request.headers[missing]
    assert bench.http.send(request).status_code == 403


def test_files_are_written_as_base64_and_shown_by_the_answer(bench: Bench) -> None:
    content = b64encode(b"text").decode()
    fields = {"ufCrmContractFile": ["Договор.pdf", content], "ufCrmPhotos": [["a.jpg", content], ["b.jpg", content]]}
    item = bench.to_hub("crm.item.add", entityTypeId=2, fields=fields)["item"]
    assert bench.fetch(item["ufCrmContractFile"]["urlMachine"]).content == b"text"
    first, second = item["ufCrmPhotos"]
    sent = {"ufCrmPhotos": [{"id": second["id"]}, ["c.jpg", content]]}
    changed = bench.to_hub("crm.item.update", entityTypeId=2, id=1, fields=sent)["item"]
    assert [photo["id"] for photo in changed["ufCrmPhotos"]] == [second["id"], second["id"] + 1]
    assert first["id"] not in [photo["id"] for photo in changed["ufCrmPhotos"]]
    kept = bench.to_hub("crm.item.update", entityTypeId=2, id=1, fields={"title": "Окно"})["item"]
    assert kept["ufCrmContractFile"]["id"] == item["ufCrmContractFile"]["id"]
    same = {"ufCrmContractFile": {"id": item["ufCrmContractFile"]["id"]}, "ufCrmPhotos": ["d.jpg", content]}
    kept = bench.to_hub("crm.item.update", entityTypeId=2, id=1, fields=same)["item"]
    assert kept["ufCrmContractFile"]["id"] == item["ufCrmContractFile"]["id"]
    assert len(kept["ufCrmPhotos"]) == 1
    cleared = bench.to_hub("crm.item.update", entityTypeId=2, id=1, fields={"ufCrmContractFile": ""})["item"]
    assert cleared["ufCrmContractFile"] is None


@pytest.mark.parametrize(
    "sent",
    [
        ["a.pdf", "data:application/pdf;base64,AAAA"],
        ["a.pdf", "not base64!"],
        {"fileData": ["a.pdf", "AAAA"]},
        "AAAA",
        ["a.pdf", b64encode(bytes(101)).decode()],
    ],
)
def test_a_file_that_does_not_go_in_is_no_error(sent: object) -> None:
    bench = Bench(largest_file=100)
    item = bench.call("crm.item.add", entityTypeId=2, fields={"ufCrm_67BC9A01": sent})["item"]
    assert item["ufCrm_67BC9A01"] is None
    good = ["a.pdf", b64encode(bytes(100)).decode()]
    assert bench.call("crm.item.add", entityTypeId=2, fields={"ufCrm_67BC9A01": good})["item"]["ufCrm_67BC9A01"]["id"]


def test_a_body_that_is_too_large_meets_a_page(bench: Bench) -> None:
    bench.source.portal = replace(bench.source.portal, largest_body=100)
    answer = bench.post("crm.item.add", entityTypeId=2, fields={"title": "а" * 100})
    assert (answer.status_code, answer.headers["content-type"]) == (413, "text/html; charset=UTF-8")
    assert not bench.source.deals


# Comments and notifications


def test_comments_are_added_each_time_and_listed(bench: Bench) -> None:
    deal = bench.source.add_deal()
    fields = {"ENTITY_ID": deal.id, "ENTITY_TYPE": "deal", "COMMENT": "✅ Передана"}
    content = b64encode(b"text").decode()
    assert bench.call("crm.timeline.comment.add", fields=fields | {"FILES": [["акт.txt", content]]}) == 1
    assert bench.call("crm.timeline.comment.add", fields=fields) == 2
    listed = bench.call("crm.timeline.comment.list", filter={"ENTITY_ID": deal.id, "ENTITY_TYPE": "deal"})
    assert [(each["ID"], each["COMMENT"]) for each in listed] == [("1", "✅ Передана"), ("2", "✅ Передана")]
    (attached,) = listed[0]["FILES"].values()
    assert (attached["name"], attached["size"], listed[1]["FILES"]) == ("акт.txt", 4, [])
    assert [comment.text for comment in bench.source.comments] == ["✅ Передана"] * 2


def test_wrong_comments_are_refused(bench: Bench) -> None:
    deal = bench.source.add_deal()
    method = "crm.timeline.comment.add"
    whole = {"ENTITY_ID": deal.id, "ENTITY_TYPE": "deal", "COMMENT": "a"}
    assert refused(bench.post(method, FIELDS=whole)) == (400, "100")
    assert refused(bench.post(method, fields={"COMMENT": "a"})) == (400, "100")
    assert refused(bench.post(method, fields=whole | {"ENTITY_ID": 99})) == (400, "OWNER_NOT_FOUND")
    assert refused(bench.post(method, fields=whole | {"COMMENT": " "})) == (400, "INVALID_ARG_VALUE")
    assert not bench.source.comments


def test_a_tag_replaces_the_notification_that_had_it(bench: Bench) -> None:
    """Reference, section 3.6: under a webhook the tag is one only together with a CLIENT_ID."""
    method = "im.notify.system.add"
    first = bench.call(method, USER_ID=7, MESSAGE="1", TAG="deal:1", CLIENT_ID="relay")
    assert bench.call(method, USER_ID=7, MESSAGE="2", TAG="deal:1", CLIENT_ID="relay") == first + 1
    assert [each.text for each in bench.source.notifications] == ["2"]
    bench.call(method, USER_ID=7, MESSAGE="3", TAG="deal:1")
    bench.call(method, USER_ID=7, MESSAGE="4", TAG="deal:1")
    token = bench.source.grant("local.1").access_token
    bench.as_app(method, token, USER_ID=7, MESSAGE="5", TAG="deal:1")
    bench.as_app(method, token, USER_ID=7, MESSAGE="6", TAG="deal:1")
    assert [each.text for each in bench.source.notifications] == ["2", "3", "4", "6"]
    assert bench.call(method, USER_ID=55, MESSAGE="7") is False
    assert refused(bench.post(method, MESSAGE="7")) == (400, "USER_ID_EMPTY")
    assert refused(bench.post(method, USER_ID=7, MESSAGE=" ")) == (400, "MESSAGE_EMPTY")
    long = "a" * 60_001
    assert refused(bench.post(method, USER_ID=7, MESSAGE="7", ATTACH=long)) == (400, "ATTACH_OVERSIZE")


# Calls that the portal makes


def test_the_webhook_robot_sends_a_document_and_no_secret() -> None:
    url = f"{HOOK_URL}?key=k&deal_id={{{{ID}}}}&stage={{{{STAGE_ID}}}}"
    bench = Bench(webhook_robots=(WebhookRobot(stage=READY, url=url),))
    deal = bench.source.add_deal(categoryId=3)
    assert bench.told() == []
    bench.source.move(deal.id, READY)
    ((delivery, fields),) = bench.told()
    assert delivery.url == f"{HOOK_URL}?key=k&deal_id=1&stage=C3%3AREADY"
    assert delivery.headers["Content-Type"] == "application/x-www-form-urlencoded"
    assert delivery.headers["User-Agent"] == "Bitrix24 Webhook Engine"
    assert delivery.body.startswith(b"document_id%5B0%5D=crm&document_id%5B1%5D=CCrmDocumentDeal")
    assert fields == {
        "document_id[0]": "crm",
        "document_id[1]": "CCrmDocumentDeal",
        "document_id[2]": "DEAL_1",
        "auth[domain]": "partner.bitrix24.ru",
        "auth[client_endpoint]": "https://partner.bitrix24.ru/rest/",
        "auth[server_endpoint]": "https://oauth.bitrix.info/rest/",
        "auth[member_id]": PARTNER.member_id,
    }
    bench.source.change(deal.id, comments="Робот не запускается")
    assert bench.told() == []


def test_placeholders_that_were_typed_by_hand_stay_literal() -> None:
    robot = WebhookRobot(stage="NEW", url=f"{HOOK_URL}?deal_id={{{{ID}}}}", typed_by_hand=True)
    bench = Bench(webhook_robots=(robot,))
    bench.source.add_deal()
    ((delivery, _),) = bench.told()
    assert delivery.url == f"{HOOK_URL}?deal_id={{{{ID}}}}"


@pytest.mark.parametrize("status", [500, None])
def test_no_call_is_ever_repeated(status: int | None) -> None:
    bench = Bench(webhook_robots=(WebhookRobot(stage="NEW", url=HOOK_URL),))
    bench.source.add_deal()
    assert len(bench.told(status)) == 1
    assert bench.source.next_at is None
    assert bench.source.callbacks.log[0].state == "given_up"


def test_an_outgoing_webhook_tells_an_id_and_its_token() -> None:
    webhook = OutgoingWebhook(id=975, url=HOOK_URL, application_token="webhook-token")
    bench = Bench(outgoing=(webhook,))
    deal = bench.source.add_deal(categoryId=3)
    bench.source.move(deal.id, READY)
    ((_, fields),) = bench.told()
    assert fields == {
        "event": "ONCRMDEALUPDATE",
        "event_handler_id": "975",
        "data[FIELDS][ID]": "1",
        "ts": "1760000000",
        "auth[domain]": "partner.bitrix24.ru",
        "auth[client_endpoint]": "https://partner.bitrix24.ru/rest/",
        "auth[server_endpoint]": "https://oauth.bitrix.info/rest/",
        "auth[member_id]": PARTNER.member_id,
        "auth[application_token]": "webhook-token",
    }
    bench.source.move(deal.id, "NEW")
    assert bench.told() == [], "a move to another pipeline is no update"
    bench.source.switches.tells_handler_id = False
    bench.call("crm.item.update", entityTypeId=2, id=1, fields={"comments": "a"})
    ((_, fields),) = bench.told()
    assert (fields["event"], "event_handler_id" in fields) == ("ONCRMDEALUPDATE", False)


def test_events_of_applications_have_tokens_only_of_people(bench: Bench) -> None:
    token = bench.source.grant("local.1").access_token
    for event in ("onCrmDealUpdate", "ONCRMDEALMOVETOCATEGORY"):
        assert result(bench.as_app("event.bind", token, event=event, handler=HOOK_URL)) is True
    for event, handler, error in (
        ("ONNOTHING", HOOK_URL, "ERROR_EVENT_NOT_FOUND"),
        ("ONCRMDEALADD", "relay", "ERROR_UNSUPPORTED_PROTOCOL"),
        ("ONCRMDEALUPDATE", HOOK_URL, "ERROR_EVENT_BINDING_EXISTS"),
    ):
        assert refused(bench.as_app("event.bind", token, event=event, handler=handler)) == (400, error)
    assert [each["event"] for each in result(bench.as_app("event.get", token))] == [
        "ONCRMDEALUPDATE",
        "ONCRMDEALMOVETOCATEGORY",
    ]
    deal = bench.source.add_deal()
    bench.source.change(deal.id, by=7, comments="a")
    ((_, of_person),) = bench.told()
    assert (of_person["auth[user_id]"], of_person["auth[expires_in]"]) == ("7", "3600")
    assert (of_person["auth[status]"], "auth[refresh_token]" in of_person) == ("L", False)
    assert result(bench.as_app("profile", of_person["auth[access_token]"]))["ID"] == "7"
    bench.source.move(deal.id, READY, by=0)
    ((_, of_robot),) = bench.told()
    assert of_robot["event"] == "ONCRMDEALMOVETOCATEGORY"
    assert (of_robot["data[FIELDS][CATEGORY_ID]"], of_robot["data[FIELDS][STAGE_ID]"]) == ("3", READY)
    assert of_robot["auth[application_token]"] == "application-token"
    assert "auth[access_token]" not in of_robot
    assert result(bench.as_app("event.unbind", token, event="ONCRMDEALUPDATE", handler=HOOK_URL)) == {"count": 1}


def test_an_applications_robot_sends_all_that_its_answer_needs(bench: Bench) -> None:
    token = bench.robot(route="main")
    deal = bench.source.add_deal(categoryId=3)
    bench.source.move(deal.id, READY)
    ((delivery, fields),) = bench.told()
    assert delivery.url == HOOK_URL
    assert (fields["code"], fields["document_id[2]"], fields["document_type[2]"]) == ("send_to_hub", "DEAL_1", "DEAL")
    assert fields["properties[route]"] == "main"
    assert b"&properties%5Bnote%5D=&" in delivery.body
    assert (fields["use_subscription"], fields["timeout_duration"], fields["ts"]) == ("Y", "0", "1760000000")
    assert re.fullmatch(r"[0-9a-f.]+\|A[0-9_]+\|[0-9a-f]{32}\.[0-9a-f]{64}", fields["event_token"])
    assert fields["event_token"].startswith(fields["workflow_id"] + "|")
    auth = {name[5:-1] for name in fields if name.startswith("auth[")}
    assert auth == {
        *("access_token", "expires", "expires_in", "scope", "domain", "server_endpoint", "status"),
        *("client_endpoint", "member_id", "user_id", "refresh_token", "application_token"),
    }
    bench.source.move(deal.id, "C3:NEW")
    bench.source.switches.tells_subscription = False
    bench.source.move(deal.id, READY)
    ((_, again),) = bench.told()
    assert again["event_token"] != fields["event_token"]
    assert "use_subscription" not in again
    assert result(bench.as_app("bizproc.robot.list", token)) == ["send_to_hub"]


def test_the_first_answer_to_a_robot_counts(bench: Bench) -> None:
    bench.robot()
    bench.source.add_deal(categoryId=3, stageId=READY)
    ((_, fields),) = bench.told()
    answer = {"EVENT_TOKEN": fields["event_token"], "RETURN_VALUES": {"HUB_DEAL_ID": 5, "status": "ok", "other": 1}}
    assert bench.call("bizproc.activity.log", EVENT_TOKEN=fields["event_token"], LOG_MESSAGE="Принята") is True
    assert bench.source.robot_results == []
    assert bench.call("bizproc.event.send", **answer, LOG_MESSAGE="Передана") is True
    again = answer | {"RETURN_VALUES": {"hub_deal_id": 6}}
    assert bench.call("bizproc.event.send", **again) is True
    (run,) = bench.source.robot_results
    assert (run.deal_id, run.returned, run.log) == (1, {"hub_deal_id": 5, "Status": "ok"}, ["Принята", "Передана"])
    forged = bench.post("bizproc.event.send", EVENT_TOKEN="forged", RETURN_VALUES={})
    assert refused(forged) == (403, "ACCESS_DENIED")


def test_a_robot_that_does_not_wait_takes_no_values(bench: Bench) -> None:
    bench.robot(waits="N")
    bench.source.add_deal(categoryId=3, stageId=READY)
    ((_, fields),) = bench.told()
    bench.call("bizproc.event.send", EVENT_TOKEN=fields["event_token"], RETURN_VALUES={"hub_deal_id": 5})
    assert bench.source.robot_results == []


def test_robots_are_registered_once_and_by_administrators(bench: Bench) -> None:
    token = bench.robot()
    definition = {"CODE": "send_to_hub", "HANDLER": HOOK_URL, "NAME": "A"}
    add = "bizproc.robot.add"
    assert refused(bench.as_app(add, token, **definition)) == (400, "ERROR_ACTIVITY_ALREADY_INSTALLED")
    wrong = definition | {"CODE": "с пробелом"}
    assert refused(bench.as_app(add, token, **wrong)) == (400, "ERROR_ACTIVITY_VALIDATION_FAILURE")
    wrong = definition | {"CODE": "b", "HANDLER": ""}
    assert refused(bench.as_app(add, token, **wrong)) == (400, "ERROR_WRONG_HANDLER_URL")
    wrong = definition | {"CODE": "b", "HANDLER": "ftp://relay.invalid"}
    assert refused(bench.as_app(add, token, **wrong)) == (400, "ERROR_UNSUPPORTED_PROTOCOL")
    clerk = bench.oauth.grant(bench.source.portal, OURS, 7).access_token
    assert refused(bench.as_app(add, clerk, **definition)) == (403, "ACCESS_DENIED")
    assert result(bench.as_app("bizproc.robot.delete", token, CODE="send_to_hub")) is True
    missing = bench.as_app("bizproc.robot.delete", token, CODE="send_to_hub")
    assert refused(missing) == (400, "ERROR_ACTIVITY_NOT_FOUND")
    bench.source.add_deal(categoryId=3, stageId=READY)
    assert bench.told() == []


def test_an_installation_brings_tokens_and_a_removal_takes_them(bench: Bench) -> None:
    bench.source.install("local.1", HOOK_URL)
    ((_, fields),) = bench.told()
    assert (fields["event"], fields["data[INSTALLED]"]) == ("ONAPPINSTALL", "Y")
    assert fields["auth[application_token]"] == "application-token"
    assert "event_handler_id" not in fields
    token = fields["auth[access_token]"]
    assert result(bench.as_app("profile", token))["ID"] == "1"
    bench.source.portal = replace(bench.source.portal, apps=(OURS, replace(OURS, client_id="local.2")))
    others = bench.source.grant("local.2").access_token
    bench.source.uninstall("local.1", HOOK_URL, clean=True)
    ((_, fields),) = bench.told()
    assert (fields["event"], fields["data[CLEAN]"]) == ("ONAPPUNINSTALL", "1")
    assert {name for name in fields if "token" in name} == {"auth[application_token]"}
    assert refused(bench.as_app("profile", token)) == (401, "invalid_token")
    assert result(bench.as_app("profile", others))["ID"] == "1"


# Controls


def test_the_controls_make_move_and_show_deals() -> None:
    bench = Bench(webhook_robots=(WebhookRobot(stage=READY, url=HOOK_URL),))
    control = f"https://{PARTNER.domain}/sandbox/"

    def order(path: str, **body: Any) -> httpx.Response:
        return bench.http.post(control + path, json=body)

    assert order("contacts", name="Мария").json() == {"ids": [1]}
    assert order("deals", title="Окно", categoryId=3, contactId=1, copies=2).json() == {"ids": [1, 2]}
    assert order("deals/1/rows", rows=[{"productName": "Окно", "price": 5}]).status_code == 200
    assert order("deals/1/files", field="UF_CRM_PHOTOS", name="a.jpg", size=10).status_code == 200
    content = b64encode(b"text").decode()
    assert order("deals/1/files", field="UF_CRM_67BC9A01", name="b.txt", content=content).status_code == 200
    assert order("deals/1", stageId=READY).json() == {"id": 1, "stageId": READY}
    assert len(bench.told()) == 1
    card = bench.http.get(control + "deals/1").json()
    assert (card["stageId"], len(card["rows"]), card["comments"]) == (READY, 1, [])
    assert card["files"] == {"UF_CRM_67BC9A01": ["b.txt"], "UF_CRM_PHOTOS": ["a.jpg"]}
    assert order("robots", stage=READY, code="send_to_hub", properties={"route": "main"}).status_code == 200
    assert bench.source.portal.placed_robots[0].properties == {"route": "main"}
    assert order("deals/1", stageId="C9:NEW").status_code == 404
    assert order("deals/9", title="a").json()["error"] == "NOT_FOUND"
    assert order("deals/1/files", field="title", name="a").status_code == 404
    assert order("deals/1/files", name="a").status_code == 422
    assert order("install", client_id="local.1", url=HOOK_URL).json() == {"callback": 2}
    assert order("rename", domain="renamed.bitrix24.ru").json() == {"domain": "renamed.bitrix24.ru"}


def test_the_controls_show_what_was_reported_and_what_was_called(bench: Bench) -> None:
    bench.robot()
    bench.source.add_deal(categoryId=3, stageId=READY)
    ((_, fields),) = bench.told()
    bench.call("bizproc.event.send", EVENT_TOKEN=fields["event_token"], RETURN_VALUES={"hub_deal_id": 5})
    bench.call("im.notify.system.add", USER_ID=7, MESSAGE="Готово")
    bench.call("crm.timeline.comment.add", fields={"ENTITY_ID": 1, "ENTITY_TYPE": "deal", "COMMENT": "Готово"})
    control = f"https://{PARTNER.domain}/sandbox/"
    shown = {name: bench.http.get(control + name).json() for name in ("comments", "notifications", "robots", "state")}
    assert shown["comments"]["comments"][0]["text"] == "Готово"
    assert shown["notifications"]["notifications"][0]["user_id"] == 7
    assert shown["robots"]["runs"] == [{"code": "send_to_hub", "deal_id": 1, "returned": {"hub_deal_id": 5}, "log": []}]
    assert shown["state"]["calls"]["im.notify.system.add"] == 1
    assert shown["state"]["deals"] == [{"id": 1, "stageId": READY, "originId": None, "rows": 0, "comments": 1}]
    assert shown["state"]["busiest_second"] == 4
    said = json.dumps(shown)
    assert all(secret not in said for secret in ("source-secret", "application-token", fields["auth[access_token]"]))


def test_the_furnished_pair_has_all_that_a_transfer_maps(bench: Bench) -> None:
    deal = add_whole_deal(bench.source)
    fields = bench.call("crm.item.get", entityTypeId=DEAL, id=deal.id, useOriginalUfNames="Y")["item"]
    assert not [name for name in fields if name.startswith("UF_") and fields[name] in (None, "", [])]
    assert len(deal.rows) == 3
    assert [*bench.source.contacts] == [1, 2]
    assert bench.call("crm.item.get", entityTypeId=COMPANY, id=1)["item"]["ufCrmInn"] == "7701234567"
    assert bench.call("crm.item.get", entityTypeId=CONTACT, id=2)["item"]["companyId"] == 1
    hub = bench.to_hub("crm.item.fields", entityTypeId=DEAL, useOriginalUfNames="Y")["fields"]
    assert {"UF_SOURCE_PORTAL", "UF_SOURCE_DEAL_ID", "UF_TRANSFER_DATE"} <= set(hub)


# Over sockets


async def test_over_sockets_links_lead_back_and_robots_call() -> None:
    bench = Bench()
    called = asyncio.Event()
    taken: list[bytes] = []

    class Taking(Bitrix24OAuth):
        @override
        def answer(self, request: SandboxRequest) -> SandboxResponse:
            taken.append(request.body)
            called.set()
            return SandboxResponse(200)

    deal = add_whole_deal(bench.source)
    async with (
        serve(Taking(clock=bench.clock, random=Random(1))) as receiver,
        serve(bench.source) as url,
        httpx.AsyncClient(headers={"Accept-Language": "ru", "Referer": url}) as client,
    ):
        params = {"entityTypeId": 2, "id": deal.id}
        answer = await client.post(f"{url}/rest/1/source/crm.item.get", json=params)
        link = result(answer)["item"]["ufCrm_67BC9A01"]["urlMachine"]
        assert link.startswith(f"{url}/rest/")
        assert (await client.get(link)).content == bench.source.files.stored[deal["UF_CRM_67BC9A01"]].content
        robots = (WebhookRobot(stage=READY, url=f"{receiver}/bitrix?deal_id={{{{ID}}}}"),)
        bench.source.portal = replace(bench.source.portal, webhook_robots=robots)
        await client.post(f"{url}/sandbox/deals/{deal.id}", json={"stageId": READY})
        async with asyncio.timeout(5):
            await called.wait()
    assert b"document_id%5B2%5D=DEAL_1" in taken[0]
