"""The amoCRM sandbox as a caller meets it: API v4, OAuth and hooks in memory, and a little of it over sockets."""

import asyncio
import json
import re
import time
from base64 import urlsafe_b64decode
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from random import Random
from typing import Any, override
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

import httpx
import pytest

from workbench.sandboxes.amocrm import AmoCrmAccount, AmoCrmSandbox, AmoCrmSwitches, Integration, PipelineHook
from workbench.sandboxes.amocrm.account import LOST, PIPELINES, USERS, WON, CustomField, Kind, Pipeline, Status
from workbench.sandboxes.amocrm.calls import Invalid
from workbench.sandboxes.amocrm.drafts import Entity
from workbench.sandboxes.amocrm.hooks import AccountManner
from workbench.sandboxes.callbacks import CallbackDelivery
from workbench.sandboxes.faults import CodedError, Forbidden, Html, RateLimited, Timeout, Unauthorized
from workbench.sandboxes.memory import MemoryTransport
from workbench.sandboxes.sandbox import Sandbox
from workbench.sandboxes.server import serve
from workbench.sandboxes.wire import NEVER, SandboxRequest, SandboxResponse, json_answer

HOST = "example.amocrm.ru"
HOOK_URL = "https://relay.invalid/amo/secret-path"
ADMIN, MANAGER = (user.id for user in USERS)
MAIN, REPEATED = PIPELINES
FIRST, TALKS, DECIDING = (status.id for status in MAIN.statuses)
OURS = Integration(
    client_id="client", client_secret="secret", redirect_uri="https://relay.invalid/amo/oauth", user_id=ADMIN
)
OTHERS = replace(OURS, client_id="another")
COMMENT, QUANTITY, SOURCE, SERVICES, PAYMENT, MEASURING, SIGNED, UTM = range(752009, 752025, 2)


class Clock:
    """Virtual time: it passes when somebody waits."""

    def __init__(self) -> None:
        self.now = 1_760_000_000.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def account(**terms: Any) -> AmoCrmAccount:
    known: dict[str, Any] = {"integrations": (OURS, OTHERS), "requests_per_second": 1_000_000}
    return AmoCrmAccount(**known | terms)


class Bench:
    """A sandbox in memory, reached under any of amoCRM's hosts, with a token of ours."""

    def __init__(self, **terms: Any) -> None:
        terms = {"requests_per_second_of_all": 1_000_000} | terms
        self.clock = Clock()
        self.sandbox = AmoCrmSandbox(account(**terms), clock=self.clock, random=Random(7))
        hosts = (HOST, "renamed.amocrm.ru", "api-b.amocrm.ru", "www.amocrm.ru", "example.kommo.com")
        self.http = httpx.Client(
            base_url=f"https://{self.sandbox.account.host}",
            transport=MemoryTransport(dict.fromkeys(hosts, self.sandbox), self.clock.sleep),
            headers={"Authorization": f"Bearer {self.sandbox.long_lived_token('client')}"},
            timeout=10,
        )

    def get(self, path: str, **query: Any) -> httpx.Response:
        return self.http.get(f"/api/v4/{path}", params=query or None)

    def post(self, path: str, body: object) -> httpx.Response:
        return self.http.post(f"/api/v4/{path}", json=body)

    def patch(self, path: str, body: object) -> httpx.Response:
        return self.http.patch(f"/api/v4/{path}", json=body)

    def lead(self, **fields: Any) -> Entity:
        """A lead that somebody added by hand."""
        return self.sandbox.add("leads", **{"name": "Окно"} | fields)[0]

    def note(self, lead: Entity, text: str = "Замер", **fields: Any) -> int:
        """A note that was added through the API."""
        note = {"entity_id": lead.id, "note_type": "common", "params": {"text": text}} | fields
        return int(embedded(self.post("leads/notes", [note]), "notes")[0]["id"])

    def subscribe(self, *settings: str, url: str = HOOK_URL) -> None:
        """Subscribe through the API."""
        assert self.post("webhooks", {"destination": url, "settings": settings}).status_code == 201

    def run(self, seconds: float = 0, status: int | None = 200) -> list[CallbackDelivery]:
        """Let time pass up to each due moment, answering every hook with `status`."""
        end = self.clock.now + seconds
        sent = []
        while (at := self.sandbox.next_at) is not None and at <= end:
            self.clock.now = max(self.clock.now, at)
            for delivery in self.sandbox.due(self.clock.now):
                self.sandbox.answered(delivery, status)
                sent.append(delivery)
        self.clock.now = end
        return sent

    def told(self) -> list[dict[str, str]]:
        """The fields of the hooks that are due."""
        return [fields(delivery) for delivery in self.run()]


def fields(delivery: CallbackDelivery) -> dict[str, str]:
    return dict(parse_qsl(delivery.body.decode(), keep_blank_values=True, strict_parsing=True))


def embedded(answer: httpx.Response, key: str) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["_embedded"][key]
    return found


def ids(answer: httpx.Response, key: str = "leads") -> list[int]:
    return [found["id"] for found in embedded(answer, key)]


def mistakes(answer: httpx.Response) -> dict[str, list[tuple[str, str]]]:
    """The validation errors by request_id, as (code, path)."""
    told = answer.json()
    assert (answer.status_code, told["status"], told["detail"]) == (400, 400, "Request validation failed")
    assert answer.headers["content-type"] == "application/problem+json"
    return {
        item["request_id"]: [(error["code"], error["path"]) for error in item["errors"]]
        for item in told["validation-errors"]
    }


@pytest.fixture
def bench() -> Bench:
    return Bench()


# The door


@pytest.mark.parametrize("authorization", [None, "", "Bearer", "Bearer other", "Basic other"])
def test_without_a_token_nobody_enters(bench: Bench, authorization: str | None) -> None:
    """401 with a status that is a string, as amoCRM writes it."""
    bench.http.headers.pop("authorization")
    headers = {} if authorization is None else {"authorization": authorization}
    answer = bench.http.get("/api/v4/account", headers=headers)
    assert (answer.status_code, answer.json()["title"], answer.json()["status"]) == (401, "Unauthorized", "401")


def test_a_long_lived_token_lives_until_its_exp(bench: Bench) -> None:
    """It is a JWT that says when it ends, and then it ends."""
    token = bench.sandbox.long_lived_token("client", days=1)
    bench.http.headers["authorization"] = f"Bearer {token}"
    assert claims(token)["exp"] == bench.clock.now + 86_400
    bench.clock.sleep(86_399)
    assert bench.get("account").status_code == 200
    bench.clock.sleep(1)
    assert bench.get("account").status_code == 401


def test_an_account_that_is_not_paid_answers_402(bench: Bench) -> None:
    """Until somebody pays."""
    bench.sandbox.switches.paid = False
    assert bench.get("account").status_code == 402
    bench.sandbox.switches.paid = True
    assert bench.get("account").status_code == 200


def test_seven_requests_a_second_are_taken() -> None:
    """The eighth within a second meets 429 and a page of HTML; another integration is not held back."""
    bench = Bench(requests_per_second=7)
    answers = [bench.get("account") for _ in range(8)]
    assert [answer.status_code for answer in answers] == [200] * 7 + [429]
    assert answers[-1].headers["content-type"] == "text/html; charset=utf-8"
    others = {"Authorization": f"Bearer {bench.sandbox.long_lived_token('another')}"}
    assert bench.http.get("/api/v4/account", headers=others).status_code == 200
    bench.clock.sleep(1)
    assert bench.get("account").status_code == 200


def test_the_account_has_a_limit_of_its_own() -> None:
    """All integrations together are held to it as well."""
    bench = Bench(requests_per_second=3, requests_per_second_of_all=4)
    others = {"Authorization": f"Bearer {bench.sandbox.long_lived_token('another')}"}
    answers = [*(bench.get("account") for _ in range(3))]
    answers += [bench.http.get("/api/v4/account", headers=others) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 200, 429]


def test_kommo_says_in_json_when_to_come_back() -> None:
    """429 at Kommo is JSON with `retry_after`."""
    bench = Bench(host="example.kommo.com", requests_per_second=1)
    bench.get("account")
    answer = bench.get("account")
    assert (answer.status_code, answer.json()["retry_after"]) == (429, 1)


def test_who_goes_on_and_on_is_blocked() -> None:
    """After too many 429 within a minute everything is 403 with a page, until the block is lifted."""
    bench = Bench(requests_per_second=1, block_after=3)
    assert [bench.get("account").status_code for _ in range(6)] == [200, 429, 429, 429, 429, 403]
    bench.clock.sleep(10_000)
    answer = bench.get("account")
    assert (answer.status_code, answer.headers["content-type"]) == (403, "text/html; charset=utf-8")
    assert bench.http.post("/oauth2/access_token", json={}).status_code == 403
    bench.sandbox.switches.blocked = False
    assert bench.get("account").status_code == 200


def test_refusals_far_apart_block_nobody() -> None:
    """Only those within a minute count."""
    bench = Bench(requests_per_second=1, block_after=3)
    for _ in range(10):
        bench.get("account")
        assert bench.get("account").status_code == 429
        bench.clock.sleep(30)
    assert bench.get("account").status_code == 200


@pytest.mark.parametrize(
    ("fault", "status", "content_type"),
    [
        (RateLimited(), 429, "text/html; charset=utf-8"),
        (CodedError(status=500), 500, "application/problem+json"),
        (Unauthorized(), 401, "application/problem+json"),
        (Forbidden(), 403, "application/problem+json"),
        (Html(status=403), 403, "text/html; charset=utf-8"),
    ],
)
def test_faults_come_in_amocrms_shapes(bench: Bench, fault: Any, status: int, content_type: str) -> None:
    """One request meets the fault; the next is answered as ever."""
    bench.sandbox.faults.add(fault)
    answer = bench.get("account")
    assert (answer.status_code, answer.headers["content-type"]) == (status, content_type)
    assert bench.get("account").status_code == 200


def test_a_note_may_be_written_although_nobody_is_told(bench: Bench) -> None:
    """A time-out after the work leaves one note, which can be found by its entity."""
    lead = bench.lead()
    bench.sandbox.faults.add(Timeout(when="after"))
    with pytest.raises(httpx.ReadTimeout):
        bench.note(lead)
    assert len(embedded(bench.get(f"leads/{lead.id}/notes"), "notes")) == 1


def test_every_answer_has_a_request_id(bench: Bench) -> None:
    """Also a refusal, and no two the same."""
    answers = [bench.get("account"), bench.get("nothing"), bench.post("leads", [])]
    assert len({answer.headers["x-request-id"] for answer in answers}) == 3


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("DELETE", "leads", 405),
        ("PUT", "leads/1", 405),
        ("DELETE", "leads/1/notes/2", 405),
        ("DELETE", "contacts/notes", 405),
        ("POST", "account", 405),
        ("DELETE", "users", 405),
        ("DELETE", "leads/pipelines", 405),
        ("PUT", "webhooks", 405),
        ("GET", "nothing", 404),
        ("GET", "leads/1/2", 404),
        ("GET", "leads/notes/1/2", 404),
        ("GET", "users/1", 404),
        ("GET", "leads/custom_fields/1", 404),
        ("GET", "leads/pipelines/1", 404),
        ("GET", f"leads/pipelines/{MAIN.id}/other", 404),
        ("GET", f"leads/pipelines/{MAIN.id}/statuses/1", 404),
        ("PATCH", "leads/1", 404),
        ("PATCH", "leads/notes/1", 404),
        ("POST", "leads/1/notes", 404),
    ],
)
def test_other_routes_do_not_exist(bench: Bench, method: str, path: str, status: int) -> None:
    """405 for a route that has no such method, such as deleting leads; 404 for one that is not there."""
    bench.note(bench.lead())
    path = path.replace("leads/1/notes/2", f"leads/{bench.lead().id}/notes/2")
    assert bench.http.request(method, f"/api/v4/{path}", json=[]).status_code == status
    assert bench.http.get("/elsewhere").status_code == 404


def test_latency_passes_before_each_answer(bench: Bench) -> None:
    """Virtual time moves by the switch's seconds a request, and a caller's patience may end first."""
    bench.sandbox.switches.latency = 0.15
    before = bench.clock.now
    for _ in range(4):
        bench.get("account")
    assert bench.clock.now - before == pytest.approx(0.6)
    bench.sandbox.switches.latency = 11
    with pytest.raises(httpx.ReadTimeout):
        bench.get("account")


# What the account is furnished with


def test_the_account_says_who_it_is(bench: Bench) -> None:
    """Id and subdomain always; the time zone and the API's own facts when asked for; what is unknown is ignored."""
    told = bench.get("account", **{"with": "datetime_settings,version,nonsense"}).json()
    assert (told["id"], told["subdomain"]) == (32427762, "example")
    assert told["_embedded"]["datetime_settings"]["timezone"] == "Europe/Moscow"
    assert told["_embedded"]["datetime_settings"]["timezone_offset"] == "+03:00"
    assert "version" in told
    assert not bench.get("account").json().keys() & {"version", "uuid"}
    assert bench.get("account").headers["content-type"] == "application/hal+json"


def test_users_are_listed_and_found(bench: Bench) -> None:
    """With names and rights."""
    users = embedded(bench.get("users"), "users")
    assert [(user["id"], user["rights"]["is_admin"]) for user in users] == [(ADMIN, True), (MANAGER, False)]
    assert bench.get(f"users/{MANAGER}").json()["name"] == USERS[1].name


def test_pipelines_come_whole_with_their_stages(bench: Bench) -> None:
    """Won and lost end each of them under the same ids; one pipeline, its stages and one stage are found."""
    answer = bench.get("leads/pipelines", limit=1)
    assert answer.json()["_total_items"] == 2
    main, repeated = embedded(answer, "pipelines")
    assert (main["is_main"], repeated["is_main"]) == (True, False)
    stages = [status["id"] for status in main["_embedded"]["statuses"]]
    assert stages == [FIRST, TALKS, DECIDING, WON, LOST]
    assert bench.get(f"leads/pipelines/{MAIN.id}").json() == main
    assert ids(bench.get(f"leads/pipelines/{MAIN.id}/statuses"), "statuses") == stages
    assert bench.get(f"leads/pipelines/{MAIN.id}/statuses/{TALKS}").json()["name"] == "Переговоры"


def test_definitions_of_custom_fields_are_read(bench: Bench) -> None:
    """By page, by type, or one by its id, with their options."""
    answer = bench.get("leads/custom_fields", limit=3)
    assert (answer.json()["_total_items"], answer.json()["_page_count"]) == (8, 3)
    assert ids(bench.get("leads/custom_fields", **{"filter[type][]": "select"}), "custom_fields") == [SOURCE]
    source = bench.get(f"leads/custom_fields/{SOURCE}").json()
    assert [option["value"] for option in source["enums"]] == ["Сайт", "Звонок"]
    codes = {field["code"] for field in embedded(bench.get("contacts/custom_fields"), "custom_fields")}
    assert codes >= {"PHONE", "EMAIL", "POSITION"}


# Writing entities


@pytest.mark.parametrize("kind", ["leads", "contacts", "companies"])
def test_entities_are_added_changed_and_read(bench: Bench, kind: Kind) -> None:
    """Answers name each item by its request_id; one PATCH of one entity answers with the entity."""
    added = embedded(bench.post(kind, [{"name": "A", "request_id": "x"}, {"name": "B"}]), kind)
    assert [item["request_id"] for item in added] == ["x", "1"]
    first, second = (item["id"] for item in added)
    bench.clock.sleep(5)
    (changed,) = embedded(bench.patch(kind, [{"id": second, "name": "C"}]), kind)
    assert (changed["id"], changed["updated_at"], changed["request_id"]) == (second, bench.clock.now, "0")
    one = bench.patch(f"{kind}/{first}", {"name": "D", "responsible_user_id": MANAGER}).json()
    assert (one["name"], one["responsible_user_id"], one["updated_at"]) == ("D", MANAGER, bench.clock.now)
    assert bench.get(f"{kind}/{second}").json()["name"] == "C"
    assert one["_links"]["self"]["href"] == f"https://{HOST}/api/v4/{kind}/{first}"
    assert one["created_at"] == bench.clock.now - 5


def test_one_wrong_item_fails_the_whole_write(bench: Bench) -> None:
    """Nothing is added; every wrong item is named by its request_id, with the path of each mistake."""
    answer = bench.post(
        "leads",
        [
            {"name": "fine"},
            {"name": 5, "price": "1000", "colour": "red", "request_id": "two"},
            {"status_id": 1, "responsible_user_id": 1, "custom_fields_values": [{"field_id": 1, "values": []}]},
            {"custom_fields_values": [{"field_id": SOURCE, "values": [{"value": "Радио"}]}]},
        ],
    )
    assert mistakes(answer) == {
        "two": [("InvalidType", "name"), ("InvalidType", "price"), ("NotExpected", "colour")],
        "2": [
            ("NotSupportedChoice", "responsible_user_id"),
            ("NotSupportedChoice", "custom_fields_values.0.field_id"),
            ("NotSupportedChoice", "status_id"),
        ],
        "3": [("NotSupportedChoice", "custom_fields_values.0.values.0.value")],
    }
    assert mistakes(bench.post("leads", ["none"])) == {"0": [("InvalidType", "")]}
    assert bench.get("leads").status_code == 204
    lead = bench.lead()
    answer = bench.patch("leads", [{"id": lead.id, "name": "other"}, {"id": 5}, {"name": "no id"}])
    assert mistakes(answer) == {"1": [("NotFound", "id")], "2": [("NotFound", "id")]}
    assert ids(bench.get("leads")) == [lead.id]
    assert lead["name"] == "Окно"


@pytest.mark.parametrize("body", [b"", b"{", b"{}", b"[]", b"5", b"[" * 100_000, json.dumps([{}] * 251).encode()])
def test_a_write_is_a_list_of_at_most_250(bench: Bench, body: bytes) -> None:
    """400 without validation errors for any other body."""
    for path in ("leads", "leads/notes"):
        answer = bench.http.post(f"/api/v4/{path}", content=body)
        assert answer.status_code == 400
        assert "validation-errors" not in answer.json()
    assert len(embedded(bench.post("leads", [{}] * 250), "leads")) == 250


def test_too_much_work_in_one_request_ends_at_the_gateway(bench: Bench) -> None:
    """With the switch a larger write meets 504 with a page and does nothing; half of it goes through."""
    bench.sandbox.switches.gateway_timeout_over = 2
    answer = bench.post("leads", [{}] * 3)
    assert (answer.status_code, answer.headers["content-type"]) == (504, "text/html; charset=utf-8")
    assert bench.get("leads").status_code == 204
    assert bench.post("leads", [{}] * 2).status_code == 200


def test_a_stage_may_be_named_by_half(bench: Bench) -> None:
    """A status leads to its pipeline, a pipeline to its first stage; together they must fit; neither is the first."""
    other_stage = REPEATED.statuses[1].id

    def stage(**fields: int) -> tuple[int, int]:
        lead = bench.get(f"leads/{embedded(bench.post('leads', [fields]), 'leads')[0]['id']}").json()
        return lead["pipeline_id"], lead["status_id"]

    assert stage() == (MAIN.id, FIRST)
    assert stage(status_id=other_stage) == (REPEATED.id, other_stage)
    assert stage(pipeline_id=REPEATED.id) == (REPEATED.id, REPEATED.statuses[0].id)
    assert stage(pipeline_id=REPEATED.id, status_id=WON) == (REPEATED.id, WON)
    answer = bench.post("leads", [{"pipeline_id": MAIN.id, "status_id": other_stage}])
    assert mistakes(answer) == {"0": [("NotSupportedChoice", "status_id")]}
    assert mistakes(bench.post("leads", [{"pipeline_id": 1}])) == {"0": [("NotSupportedChoice", "pipeline_id")]}


def test_a_closed_lead_says_since_when(bench: Bench) -> None:
    """Won or lost sets `closed_at`, and going back clears it."""
    lead = bench.lead()
    bench.patch(f"leads/{lead.id}", {"status_id": LOST})
    assert lead["closed_at"] == bench.clock.now
    bench.patch(f"leads/{lead.id}", {"status_id": TALKS})
    assert lead["closed_at"] is None


def test_a_price_may_have_minor_units(bench: Bench) -> None:
    """The whole number is the price; the fraction stands beside it."""
    lead = bench.lead(price=1000.5)
    told = bench.get(f"leads/{lead.id}").json()
    assert (told["price"], told["price_with_minor_units"]) == (1000, 1000.5)


def test_a_contact_has_a_name_and_its_parts(bench: Bench) -> None:
    """Whichever is sent makes the other."""
    (one,) = bench.sandbox.add("contacts", first_name="Анна", last_name="Ким")
    (two,) = bench.sandbox.add("contacts", name="Анна Ким")
    assert one["name"] == "Анна Ким"
    bench.sandbox.change("contacts", one.id, last_name="Ли")
    assert one["name"] == "Анна Ли"
    assert (two["first_name"], two["last_name"]) == ("Анна Ким", "")


def test_tags_are_replaced_or_added_and_taken_away(bench: Bench) -> None:
    """`_embedded.tags` is the whole set and null clears it; `tags_to_add` and `tags_to_delete` leave the rest alone."""
    lead = bench.lead(_embedded={"tags": [{"name": "vip"}, {"name": "old"}]})

    def tags() -> list[str]:
        return [tag["name"] for tag in bench.get(f"leads/{lead.id}").json()["_embedded"]["tags"]]

    assert tags() == ["vip", "old"]
    bench.patch(f"leads/{lead.id}", {"tags_to_add": [{"name": "new"}], "tags_to_delete": [{"name": "old"}]})
    assert tags() == ["vip", "new"]
    bench.patch(f"leads/{lead.id}", {"_embedded": {"tags": [{"id": next(iter(lead.tags))}]}})
    assert tags() == ["vip"]
    assert mistakes(bench.patch(f"leads/{lead.id}", {"tags_to_add": [{"id": 1}]}))
    bench.patch(f"leads/{lead.id}", {"_embedded": {"tags": None}})
    assert tags() == []


def test_contacts_and_companies_hang_on_a_lead_from_the_start(bench: Bench) -> None:
    """They are taken when the lead is made and shown from both ends, contacts only when asked for."""
    (contact,) = bench.sandbox.add("contacts", name="Анна")
    (company,) = bench.sandbox.add("companies", name="Завод")
    links = {"contacts": [{"id": contact.id}], "companies": [{"id": company.id}]}
    (lead,) = embedded(bench.post("leads", [{"_embedded": links}]), "leads")
    told = bench.get(f"leads/{lead['id']}", **{"with": "contacts"}).json()["_embedded"]
    assert [(link["id"], link["is_main"]) for link in told["contacts"]] == [(contact.id, True)]
    assert [link["id"] for link in told["companies"]] == [company.id]
    assert "contacts" not in bench.get(f"leads/{lead['id']}").json()["_embedded"]
    of_contact = bench.get(f"contacts/{contact.id}", **{"with": "leads"}).json()["_embedded"]
    assert [link["id"] for link in of_contact["leads"]] == [lead["id"]]
    assert mistakes(bench.post("leads", [{"_embedded": {"contacts": [{"id": 5}]}}])) == {
        "0": [("NotSupportedChoice", "_embedded.contacts.0.id")]
    }
    assert mistakes(bench.patch(f"leads/{lead['id']}", {"_embedded": links})) == {"0": [("NotExpected", "_embedded")]}


# Custom fields


@pytest.mark.parametrize(
    ("field", "values", "read"),
    [
        (COMMENT, [{"value": "Да"}], [{"value": "Да"}]),
        (QUANTITY, [{"value": 1.5}], [{"value": "1.5"}]),
        (SOURCE, [{"value": "Сайт"}], [{"value": "Сайт", "enum_id": 908107, "enum_code": None}]),
        (SOURCE, [{"enum_id": 908109}], [{"value": "Звонок", "enum_id": 908109, "enum_code": None}]),
        (MEASURING, [{"value": "2025-10-09T00:00:00+03:00"}], [{"value": 1_759_957_200}]),
        (MEASURING, [{"value": 1_759_957_200}], [{"value": 1_759_957_200}]),
        (SIGNED, [{"value": True}], [{"value": True}]),
        (UTM, [{"value": "ads"}], [{"value": "ads"}]),
    ],
)
def test_custom_fields_are_read_as_amocrm_shapes_them(
    bench: Bench, field: int, values: list[Any], read: list[Any]
) -> None:
    """Options get id and text, numbers become strings, dates become unix seconds; [] or null clears."""
    lead = bench.lead()
    bench.patch(f"leads/{lead.id}", {"custom_fields_values": [{"field_id": field, "values": values}]})
    (told,) = bench.get(f"leads/{lead.id}").json()["custom_fields_values"]
    assert (told["field_id"], told["values"]) == (field, read)
    assert told.keys() == {"field_id", "field_name", "field_code", "field_type", "values"}
    bench.patch(f"leads/{lead.id}", {"custom_fields_values": [{"field_id": field, "values": None}]})
    assert bench.get(f"leads/{lead.id}").json()["custom_fields_values"] is None


def test_a_field_of_another_type_is_kept_as_it_comes() -> None:
    """AmoCRM has more types than this sandbox knows."""
    bench = Bench(custom_fields={"leads": (CustomField(1, "Файл", "file"),), "contacts": (), "companies": ()})
    file = {"value": {"file_uuid": "x", "file_size": 5}}
    lead = bench.lead(custom_fields_values=[{"field_id": 1, "values": [file]}])
    (told,) = bench.get(f"leads/{lead.id}").json()["custom_fields_values"]
    assert (told["field_type"], told["values"]) == ("file", [file])


def test_phones_are_set_by_code(bench: Bench) -> None:
    """A field may be named by its code, and a phone has a kind, which is WORK if nothing is said."""
    phones = [{"value": "+15005550006"}, {"value": "+15005550007", "enum_code": "MOB"}]
    fields = [{"field_code": "PHONE", "values": phones}]
    (contact,) = bench.sandbox.add("contacts", custom_fields_values=fields)
    (told,) = bench.get(f"contacts/{contact.id}").json()["custom_fields_values"]
    assert [(phone["value"], phone["enum_code"]) for phone in told["values"]] == [
        ("+15005550006", "WORK"),
        ("+15005550007", "MOB"),
    ]
    phones = [{"value": "+15005550006", "enum_code": "PAGER"}]
    answer = bench.patch(
        "contacts", [{"id": contact.id, "custom_fields_values": [{"field_code": "PHONE", "values": phones}]}]
    )
    assert mistakes(answer) == {"0": [("NotSupportedChoice", "custom_fields_values.0.values.0.enum_code")]}


@pytest.mark.parametrize(
    ("field", "value", "code", "path"),
    [
        ({"field_id": 1}, {"value": "x"}, "NotSupportedChoice", "field_id"),
        ({"field_code": "PHONE"}, {"value": "x"}, "NotSupportedChoice", "field_code"),
        ({"field_id": SOURCE}, {"value": "Радио"}, "NotSupportedChoice", "values.0.value"),
        ({"field_id": SERVICES}, {"enum_id": 908107}, "NotSupportedChoice", "values.0.enum_id"),
        ({"field_id": PAYMENT}, {"enum_code": "CARD"}, "NotSupportedChoice", "values.0.enum_code"),
        ({"field_id": COMMENT}, {"value": 5}, "InvalidType", "values.0.value"),
        ({"field_id": QUANTITY}, {"value": "many"}, "InvalidType", "values.0.value"),
        ({"field_id": QUANTITY}, {"value": True}, "InvalidType", "values.0.value"),
        ({"field_id": MEASURING}, {"value": "soon"}, "InvalidType", "values.0.value"),
        ({"field_id": MEASURING}, {"value": 10**12}, "InvalidType", "values.0.value"),
        ({"field_id": MEASURING}, {"value": True}, "InvalidType", "values.0.value"),
        ({"field_id": MEASURING}, {}, "InvalidType", "values.0.value"),
        ({"field_id": SIGNED}, {"value": "yes"}, "InvalidType", "values.0.value"),
    ],
)
def test_a_value_that_does_not_fit_its_field_is_refused(
    bench: Bench, field: dict[str, Any], value: dict[str, Any], code: str, path: str
) -> None:
    """With the path to it, and nothing is written."""
    lead = bench.lead()
    answer = bench.patch("leads", [{"id": lead.id, "custom_fields_values": [{**field, "values": [value]}]}])
    assert mistakes(answer) == {"0": [(code, f"custom_fields_values.0.{path}")]}
    assert not lead.custom_fields


# Listing entities


def test_nothing_is_204(bench: Bench) -> None:
    """An empty list, a page beyond the end and an unknown id have no body at all."""
    for path in ("leads", "contacts", "companies", "leads/notes", "webhooks", "leads/1", "leads/1/notes", "leads/x"):
        answer = bench.get(path)
        assert (answer.status_code, answer.content) == (204, b"")
    bench.note(bench.lead())
    assert bench.get("leads", page=2).status_code == 204
    assert bench.get("leads/notes/1").status_code == 204


def test_lists_come_in_pages(bench: Bench) -> None:
    """50 at a time unless told otherwise; following `next` sees everything once, with the rest of the query kept."""
    made = [lead.id for lead in bench.sandbox.add("leads", copies=120, name="Окно")]
    assert len(ids(bench.get("leads"))) == 50
    answer = bench.get("leads", limit=50, **{"filter[name][]": "Окно"})
    seen = ids(answer)
    second = bench.http.get(answer.json()["_links"]["next"]["href"]).json()
    assert set(second["_links"]) == {"self", "next", "prev"}
    assert bench.http.get(second["_links"]["prev"]["href"]).json() == answer.json()
    while "next" in answer.json()["_links"]:
        answer = bench.http.get(answer.json()["_links"]["next"]["href"])
        seen += ids(answer)
    assert seen == made
    assert (answer.json()["_page"], set(answer.json()["_links"])) == (3, {"self", "prev"})


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ({"limit": 250}, 204),
        ({"limit": 251}, 422),
        ({"limit": 0}, 400),
        ({"page": 0}, 400),
        ({"page": "x"}, 400),
        ({"page": "9" * 5000}, 400),
        ({"filter[updated_at][from]": "yesterday"}, 400),
        ({f"filter[id][{n}]": n for n in range(1, 251)}, 204),
        ({f"filter[id][{n}]": n for n in range(1, 252)}, 422),
        ({"filter[id][]": "9" * 5000}, 204),
        ({"filter": "x"}, 204),
        ({"filter[id]": "1", "filter[id][from]": "1"}, 204),
    ],
)
def test_the_limits_of_a_list(bench: Bench, query: dict[str, Any], status: int) -> None:
    """At most 250 a page and 250 ids a filter."""
    assert bench.get("leads", **query).status_code == status


def test_leads_are_found_by_their_fields(bench: Bench) -> None:
    """By id in any notation, by values, by ranges with both ends included, by stage; unknown filters are ignored."""
    one = bench.lead(price=100)
    bench.clock.sleep(60)
    two = bench.lead(price=200, responsible_user_id=MANAGER, status_id=TALKS)
    bench.clock.sleep(60)
    three = bench.lead(price=300, pipeline_id=REPEATED.id)

    def found(**query: Any) -> list[int]:
        answer = bench.get("leads", **query)
        return ids(answer) if answer.content else []

    assert found(**{"filter[id][0]": three.id, "filter[id][1]": one.id, "filter[id][2]": 5}) == [one.id, three.id]
    assert found(**{"filter[id]": two.id}) == [two.id]
    assert found(**{"filter[id][]": [one.id, two.id]}) == [one.id, two.id]
    assert found(**{"filter[responsible_user_id][]": MANAGER}) == [two.id]
    assert found(**{"filter[price][from]": 200, "filter[price][to]": 300}) == [two.id, three.id]
    assert found(**{"filter[updated_at][from]": two["updated_at"]}) == [two.id, three.id]
    assert found(**{"filter[closed_at][from]": 1}) == []
    stage = {"filter[statuses][0][pipeline_id]": MAIN.id, "filter[statuses][0][status_id]": TALKS}
    assert found(**stage) == [two.id]
    assert found(**{"filter[nonsense]": 1, "with": "nonsense"}) == [one.id, two.id, three.id]
    assert found(**{"order[nonsense]": "desc"}) == [one.id, two.id, three.id]
    assert found(**{"order[updated_at]": "desc"}) == [three.id, two.id, one.id]


def test_the_bin_is_listed_apart(bench: Bench) -> None:
    """A deleted lead is in no list and under no id but `with=only_deleted`, and comes back when restored."""
    kept, deleted = bench.lead(), bench.lead()
    bench.sandbox.delete("leads", deleted.id)
    assert ids(bench.get("leads")) == [kept.id]
    assert bench.get(f"leads/{deleted.id}").status_code == 204
    (binned,) = embedded(bench.get("leads", **{"with": "only_deleted"}), "leads")
    assert (binned["id"], binned["is_deleted"]) == (deleted.id, True)
    bench.sandbox.restore("leads", deleted.id)
    assert bench.get(f"leads/{deleted.id}").json()["is_deleted"] is False
    with pytest.raises(KeyError):
        bench.sandbox.restore("leads", deleted.id)


# Notes


@pytest.mark.parametrize("kind", ["leads", "contacts", "companies"])
def test_notes_are_added_and_read(bench: Bench, kind: Kind) -> None:
    """One request carries notes for many cards; they are found by card, by id and by filter."""
    one, two = bench.sandbox.add(kind, copies=2, name="X")
    notes = [
        {"entity_id": one.id, "note_type": "common", "params": {"text": "а"}, "request_id": "x"},
        {
            "entity_id": two.id,
            "note_type": "sms_out",
            "params": {"text": "б", "phone": "1"},
            "created_at": 1_700_000_000,
        },
    ]
    added = embedded(bench.post(f"{kind}/notes", notes), "notes")
    assert [(note["request_id"], note["entity_id"]) for note in added] == [("x", one.id), ("1", two.id)]
    first, second = (note["id"] for note in added)
    told = bench.get(f"{kind}/{one.id}/notes/{first}").json()
    assert (told["note_type"], told["params"], told["created_at"]) == ("common", {"text": "а"}, bench.clock.now)
    assert bench.get(f"{kind}/notes/{second}").json()["created_at"] == 1_700_000_000
    assert ids(bench.get(f"{kind}/{one.id}/notes"), "notes") == [first]
    assert ids(bench.get(f"{kind}/notes"), "notes") == [first, second]
    assert ids(bench.get(f"{kind}/notes", **{"filter[entity_id][]": two.id}), "notes") == [second]
    assert ids(bench.get(f"{kind}/notes", **{"filter[note_type][]": "common"}), "notes") == [first]
    assert ids(bench.get(f"{kind}/notes", **{"filter[id][0]": second}), "notes") == [second]
    updated = {"filter[updated_at][from]": int(bench.clock.now)}
    assert ids(bench.get(f"{kind}/notes", **updated, **{"order[id]": "desc"}), "notes") == [second, first]


def test_a_note_is_added_below_its_card(bench: Bench) -> None:
    """There it needs no entity_id."""
    lead = bench.lead()
    (note,) = embedded(
        bench.post(f"leads/{lead.id}/notes", [{"note_type": "common", "params": {"text": "x"}}]), "notes"
    )
    assert note["entity_id"] == lead.id


def test_notes_are_changed(bench: Bench) -> None:
    """Many at once or one; an unknown one is a mistake, as is a text that is none."""
    lead = bench.lead()
    note = bench.note(lead)
    bench.clock.sleep(5)
    (changed,) = embedded(bench.patch("leads/notes", [{"id": note, "params": {"text": "б"}}]), "notes")
    assert (changed["id"], changed["updated_at"]) == (note, bench.clock.now)
    assert bench.patch(f"leads/{lead.id}/notes/{note}", {"params": {"text": "в"}}).json()["params"] == {"text": "в"}
    answer = bench.patch("leads/notes", [{"id": note, "params": {"text": "г"}}, {"id": 5}])
    assert mistakes(answer) == {"1": [("NotFound", "id")]}
    assert mistakes(bench.patch("leads/notes", [{"id": note, "params": {"text": None}}]))
    assert bench.sandbox.card("leads", lead.id).texts == ["в"]


def test_one_bad_note_fails_all_and_is_named(bench: Bench) -> None:
    """Nothing of the batch is written; without the bad ones it goes through."""
    lead, gone = bench.lead(), bench.lead()
    bench.sandbox.delete("leads", gone.id)
    good = {"entity_id": lead.id, "note_type": "common", "params": {"text": "x"}}
    bad: dict[str, dict[str, Any]] = {
        "gone": good | {"entity_id": gone.id},
        "nobody": {"note_type": "common", "params": {"text": "x"}},
        "type": good | {"note_type": "amomail_message"},
        "no type": {"entity_id": lead.id},
        "text": good | {"params": {"text": 5}},
        "blank": good | {"params": {"text": ""}},
        "call": good | {"note_type": "call_in", "params": {"uniq": "1", "duration": 5, "source": "x", "link": None}},
        "user": good | {"created_by": 1},
        "time": good | {"created_at": 2**33},
    }
    notes = [good, *({**note, "request_id": name} for name, note in bad.items())]
    assert mistakes(bench.post("leads/notes", notes)) == {
        "gone": [("NotFound", "entity_id")],
        "nobody": [("FieldMissing", "entity_id")],
        "type": [("NotSupportedChoice", "note_type")],
        "no type": [("FieldMissing", "note_type")],
        "text": [("InvalidType", "params.text")],
        "blank": [("NotBlank", "params.text")],
        "call": [("NotNullable", "params.link"), ("FieldMissing", "params.phone")],
        "user": [("NotSupportedChoice", "created_by")],
        "time": [("InvalidType", "created_at")],
    }
    assert bench.get("leads/notes").status_code == 204
    assert bench.post("leads/notes", [good]).status_code == 200


def test_a_card_shows_one_note_a_second(bench: Bench) -> None:
    """Of notes with equal `created_at` the card shows the last that was written; the API has them all."""
    lead, other = bench.lead(), bench.lead()
    for text, at in (("а", 1_700_000_000), ("б", 1_700_000_000), ("в", 1_700_000_001)):
        bench.note(lead, text, created_at=at)
    bench.note(other, "г", created_at=1_700_000_000)
    card = bench.sandbox.card("leads", lead.id)
    assert (card.texts, card.hidden) == (["б", "в"], 1)
    assert bench.sandbox.card("leads", other.id).texts == ["г"]
    assert len(embedded(bench.get(f"leads/{lead.id}/notes"), "notes")) == 3


def test_the_api_acts_for_nobody_or_for_a_user(bench: Bench) -> None:
    """0 unless the switch, X-Context-User-ID or the body itself names a user."""
    lead = bench.lead()

    def author(context: int | None = None, **fields: int) -> int:
        headers = {} if context is None else {"X-Context-User-ID": str(context)}
        note = {"entity_id": lead.id, "note_type": "common", "params": {"text": "x"}} | fields
        (added,) = embedded(bench.http.post("/api/v4/leads/notes", json=[note], headers=headers), "notes")
        return int(bench.get(f"leads/notes/{added['id']}").json()["created_by"])

    assert (author(), author(context=MANAGER), author(created_by=MANAGER)) == (0, MANAGER, MANAGER)
    bench.sandbox.switches.api_acts_as_user = True
    assert (author(), author(context=MANAGER), author(created_by=0)) == (ADMIN, MANAGER, 0)
    bench.patch(f"leads/{lead.id}", {"price": 5})
    assert lead["updated_by"] == ADMIN
    bench.patch(f"leads/{lead.id}", {"price": 6, "updated_by": 0})
    assert lead["updated_by"] == 0
    assert mistakes(bench.post("leads", [{"created_by": 1}])) == {"0": [("NotSupportedChoice", "created_by")]}
    answer = bench.http.get("/api/v4/account", headers={"X-Context-User-ID": "5"})
    assert answer.status_code == 403


# OAuth


def grant(bench: Bench, host: str = HOST, **changes: str | None) -> httpx.Response:
    sent = {
        "client_id": "client",
        "client_secret": "secret",
        "redirect_uri": OURS.redirect_uri,
        "grant_type": "refresh_token",
    } | changes
    return bench.http.post(f"https://{host}/oauth2/access_token", json=sent)


def by_code(bench: Bench) -> dict[str, Any]:
    answer = grant(bench, grant_type="authorization_code", code=bench.sandbox.authorize("client"))
    assert answer.status_code == 200
    pair: dict[str, Any] = answer.json()
    return pair


def refresh(bench: Bench, pair: Mapping[str, Any], host: str = HOST) -> httpx.Response:
    return grant(bench, host, refresh_token=pair["refresh_token"])


def use(bench: Bench, pair: Mapping[str, Any], host: str = HOST) -> int:
    headers = {"Authorization": f"Bearer {pair['access_token']}"}
    return bench.http.get(f"https://{host}/api/v4/account", headers=headers).status_code


def claims(token: str) -> dict[str, Any]:
    payload = token.split(".")[1]
    decoded: dict[str, Any] = json.loads(urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return decoded


def test_a_code_buys_a_pair_of_tokens(bench: Bench) -> None:
    """The access token is a JWT that works for 24 hours and says where its account can be asked for."""
    pair = by_code(bench)
    assert (pair["token_type"], pair["expires_in"]) == ("Bearer", 86_400)
    told = claims(pair["access_token"])
    assert (told["aud"], told["exp"], told["api_domain"]) == ("client", bench.clock.now + 86_400, "api-b.amocrm.ru")
    bench.clock.sleep(86_399)
    assert use(bench, pair) == 200
    bench.clock.sleep(1)
    assert use(bench, pair) == 401


def test_a_code_is_good_once_for_twenty_minutes(bench: Bench) -> None:
    """400 with a hint for one that is used, old, unknown, or another integration's."""

    def hint(code: str) -> str:
        answer = grant(bench, grant_type="authorization_code", code=code)
        assert answer.status_code == 400
        return str(answer.json()["hint"])

    used, old = bench.sandbox.authorize("client"), bench.sandbox.authorize("client")
    assert grant(bench, grant_type="authorization_code", code=used).status_code == 200
    assert hint(used) == "Authorization code has been revoked"
    bench.clock.sleep(1_200)
    assert hint(old) == "Authorization code has expired"
    assert hint(bench.sandbox.authorize("another")) == hint("unknown") == "Cannot decrypt the authorization code"


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"client_id": "unknown"}, 401),
        ({"client_id": None}, 401),
        ({"client_secret": "wrong"}, 401),
        ({"redirect_uri": "https://evil.invalid/"}, 401),
        ({"grant_type": "password"}, 400),
        ({"grant_type": None}, 400),
    ],
)
def test_only_the_integration_itself_gets_tokens(bench: Bench, changes: dict[str, Any], status: int) -> None:
    """Id, secret and redirect URI are checked, and the code is not spent on a wrong one."""
    code = bench.sandbox.authorize("client")
    assert grant(bench, **{"grant_type": "authorization_code", "code": code, **changes}).status_code == status
    assert grant(bench, grant_type="authorization_code", code=code).status_code == 200


def test_tokens_are_granted_to_forms_too(bench: Bench) -> None:
    """What is no JSON is read as a form; nonsense is refused."""
    sent = {"client_id": "client", "client_secret": "secret", "redirect_uri": OURS.redirect_uri}
    sent |= {"grant_type": "authorization_code", "code": bench.sandbox.authorize("client")}
    assert bench.http.post("/oauth2/access_token", data=sent).status_code == 200
    for content_type in ("application/json", "application/x-www-form-urlencoded"):
        for body in (b"", b"[]", b"{", b"\xff"):
            answer = bench.http.post("/oauth2/access_token", content=body, headers={"Content-Type": content_type})
            assert answer.status_code == 401


def test_a_refresh_token_is_replaced_when_the_new_pair_is_used(bench: Bench) -> None:
    """After the first use of the new access token the old refresh token is revoked, as its hint says."""
    first = by_code(bench)
    second = refresh(bench, first).json()
    assert use(bench, second) == 200
    answer = refresh(bench, first)
    assert (answer.status_code, answer.json()["hint"]) == (401, "Token has been revoked")
    assert refresh(bench, second).status_code == 200


def test_refreshing_again_is_a_use_too(bench: Bench) -> None:
    """The new refresh token ends the old one as well."""
    first = by_code(bench)
    second = refresh(bench, first).json()
    assert refresh(bench, second).status_code == 200
    assert refresh(bench, first).status_code == 401


def test_a_lost_answer_is_asked_for_again(bench: Bench) -> None:
    """Until the new pair is used the old token may be sent again, and brings a pair that works."""
    first = by_code(bench)
    bench.sandbox.faults.add(Timeout(when="after"))
    with pytest.raises(httpx.ReadTimeout):
        refresh(bench, first)
    second = refresh(bench, first).json()
    assert use(bench, second) == 200
    assert refresh(bench, second).status_code == 200


def test_two_who_refresh_at_once_lose_a_pair(bench: Bench) -> None:
    """Of two pairs for one token the earlier is revoked: who saved it needs a new authorization."""
    first = by_code(bench)
    earlier, later = refresh(bench, first).json(), refresh(bench, first).json()
    assert use(bench, earlier) == 200
    assert refresh(bench, earlier).json()["hint"] == "Token has been revoked"
    assert refresh(bench, later).status_code == 200


def test_a_refresh_token_lives_three_months(bench: Bench) -> None:
    """Then it has expired, whoever sends it; another integration's was never good."""
    pair = by_code(bench)
    foreign = grant(bench, client_id="another", refresh_token=pair["refresh_token"])
    assert (foreign.status_code, foreign.json()["hint"]) == (401, "Cannot decrypt the refresh token")
    bench.clock.sleep(90 * 86_400)
    assert refresh(bench, pair).json()["hint"] == "Token has expired"


def test_everything_can_be_revoked(bench: Bench) -> None:
    """Access tokens, long-lived tokens and refresh tokens are all worth nothing then."""
    pair = by_code(bench)
    bench.sandbox.tokens.revoke()
    assert (use(bench, pair), bench.get("account").status_code) == (401, 401)
    assert refresh(bench, pair).json()["hint"] == "Token has been revoked"


def test_consent_leads_back_with_a_code(bench: Bench) -> None:
    """The user is sent to the redirect URI with code, state and the account's host, and the code works there."""
    query = urlencode({"client_id": "client", "state": "s t", "mode": "popup"})
    answer = bench.http.get(f"https://www.amocrm.ru/oauth?{query}")
    assert answer.status_code == 302
    location = urlsplit(answer.headers["location"])
    told = {name: value for name, (value,) in parse_qs(location.query).items()}
    assert f"{location.scheme}://{location.netloc}{location.path}" == OURS.redirect_uri
    assert (told["referer"], told["state"], told["client_id"], told["platform"]) == (HOST, "s t", "client", "1")
    assert grant(bench, grant_type="authorization_code", code=told["code"]).status_code == 200
    assert bench.http.get("https://www.amocrm.ru/oauth?client_id=unknown").status_code == 404


def test_an_account_that_moved_is_found_through_the_api_domain(bench: Bench) -> None:
    """The old host knows no token and grants none; the refresh token asks for the new one, where all goes on."""
    pair = by_code(bench)
    bench.sandbox.move_to("renamed.amocrm.ru")
    assert use(bench, pair) == 401
    assert refresh(bench, pair).status_code == 404
    headers = {"X-Refresh-Token": pair["refresh_token"]}
    domain = claims(pair["access_token"])["api_domain"]
    answer = bench.http.get(f"https://{domain}/oauth2/account/current/subdomain", headers=headers)
    assert answer.json() == {
        "id": 32427762,
        "subdomain": "renamed",
        "domain": "renamed.amocrm.ru",
        "top_level_domain": "ru",
    }
    assert use(bench, pair, "renamed.amocrm.ru") == 200
    assert refresh(bench, pair, "renamed.amocrm.ru").status_code == 200
    url = f"https://{domain}/oauth2/account/current/subdomain"
    assert bench.http.get(url, headers={"X-Refresh-Token": "unknown"}).status_code == 401
    bench.sandbox.move_to(HOST)
    assert use(bench, pair) == 200


def test_many_threads_may_call_at_once(bench: Bench) -> None:
    """Each of 50 concurrent refreshes gets an answer, and exactly one of the pairs is good for another."""
    pair = by_code(bench)
    with ThreadPoolExecutor(50) as threads:
        pairs = [answer.json() for answer in threads.map(lambda _: refresh(bench, pair), range(50))]
    assert [refresh(bench, each).status_code for each in pairs].count(200) == 1


# Subscriptions


def test_hooks_are_subscribed_shown_and_ended(bench: Bench) -> None:
    """201 with the hook; the same address again updates it; the end is 204."""
    made = bench.post("webhooks", {"destination": HOOK_URL, "settings": ["add_lead"]})
    assert made.status_code == 201
    assert made.json() == {
        "id": made.json()["id"],
        "destination": HOOK_URL,
        "created_at": bench.clock.now,
        "updated_at": bench.clock.now,
        "account_id": 32427762,
        "created_by": 0,
        "sort": 10,
        "disabled": False,
        "settings": ["add_lead"],
    }
    bench.clock.sleep(5)
    again = bench.post("webhooks", {"destination": HOOK_URL, "settings": ["update_lead"], "sort": 1})
    assert (again.status_code, again.json()["id"]) == (201, made.json()["id"])
    bench.subscribe("add_lead", url="https://other.invalid/")
    assert len(set(ids(bench.get("webhooks"), "webhooks"))) == 2
    (found,) = embedded(bench.get("webhooks", **{"filter[destination]": HOOK_URL}), "webhooks")
    assert (found["settings"], found["updated_at"] - found["created_at"]) == (["update_lead"], 5)
    gone = {"destination": HOOK_URL}
    assert bench.http.request("DELETE", "/api/v4/webhooks", json=gone).status_code == 204
    assert bench.http.request("DELETE", "/api/v4/webhooks", json=gone).status_code == 404
    assert len(embedded(bench.get("webhooks"), "webhooks")) == 1


@pytest.mark.parametrize(
    ("body", "code", "path"),
    [
        ({"destination": HOOK_URL, "settings": ["add_lead", "nonsense"]}, "NotSupportedChoice", "settings.1"),
        ({"destination": HOOK_URL, "settings": ["restore_customer"]}, "NotSupportedChoice", "settings.0"),
        ({"destination": HOOK_URL, "settings": []}, "NotBlank", "settings"),
        ({"destination": "ftp://relay.invalid/", "settings": ["add_lead"]}, "InvalidUrl", "destination"),
        ({"destination": "https://relay.invalid", "settings": ["add_lead"]}, "InvalidUrl", "destination"),
        ({"destination": "https:///x", "settings": ["add_lead"]}, "InvalidUrl", "destination"),
        ({"settings": ["add_lead"]}, "FieldMissing", "destination"),
    ],
)
def test_a_wrong_subscription_is_refused(bench: Bench, body: object, code: str, path: str) -> None:
    """An unknown setting, none at all, or an address without a path."""
    assert mistakes(bench.post("webhooks", body)) == {"0": [(code, path)]}


def test_an_account_has_at_most_100_hooks(bench: Bench) -> None:
    """The 101st is refused; one that is there is still updated."""
    for number in range(100):
        bench.subscribe("add_lead", url=f"https://relay.invalid/{number}")
    body = {"destination": HOOK_URL, "settings": ["add_lead"]}
    assert bench.post("webhooks", body).status_code == 400
    bench.subscribe("update_lead", url="https://relay.invalid/7")


# Hooks on the wire


def test_an_added_lead_is_told_as_it_was_seen_in_the_wild() -> None:
    """The body is, byte for byte, that of a captured hook: names, order, encoding, every value a string."""
    bench = Bench(id=16700680, host="example1.amocrm.ru", pipelines=(Pipeline(936736, "П", (Status(17944873, "С"),)),))
    bench.sandbox.subscribe(HOOK_URL, "add_lead")
    lead = bench.lead(name="TEST LEAD")
    (delivery,) = bench.run()
    assert delivery.body.decode() == (
        "account%5Bsubdomain%5D=example1&account%5Bid%5D=16700680"
        "&account%5B_links%5D%5Bself%5D=https%3A%2F%2Fexample1.amocrm.ru"
        f"&leads%5Badd%5D%5B0%5D%5Bid%5D={lead.id}&leads%5Badd%5D%5B0%5D%5Bname%5D=TEST+LEAD"
        "&leads%5Badd%5D%5B0%5D%5Bstatus_id%5D=17944873&leads%5Badd%5D%5B0%5D%5Bprice%5D=0"
        f"&leads%5Badd%5D%5B0%5D%5Bresponsible_user_id%5D={ADMIN}&leads%5Badd%5D%5B0%5D%5Blast_modified%5D=1760000000"
        f"&leads%5Badd%5D%5B0%5D%5Bmodified_user_id%5D={ADMIN}&leads%5Badd%5D%5B0%5D%5Bcreated_user_id%5D={ADMIN}"
        "&leads%5Badd%5D%5B0%5D%5Bdate_create%5D=1760000000&leads%5Badd%5D%5B0%5D%5Bpipeline_id%5D=936736"
        "&leads%5Badd%5D%5B0%5D%5Baccount_id%5D=16700680&leads%5Badd%5D%5B0%5D%5Bcreated_at%5D=1760000000"
        "&leads%5Badd%5D%5B0%5D%5Bupdated_at%5D=1760000000"
    )
    assert (delivery.url, delivery.timeout) == (HOOK_URL, 2.0)
    headers = dict(delivery.headers)
    assert re.fullmatch(
        r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", headers.pop("X-Amocrm-Requestid")
    )
    assert headers == {
        "Content-Type": "application/x-www-form-urlencoded",
        "User-Agent": "amoCRM-Webhooks/3.0",
        "Accept-Encoding": "gzip",
    }


def test_a_changed_lead_is_told_with_all_that_it_has(bench: Bench) -> None:
    """Custom fields come in v2's shapes: a bare date, a radio button that is no list, a UTM field without values."""
    (company,) = bench.sandbox.add("companies", name="Завод")
    lead = bench.lead(_embedded={"companies": [{"id": company.id}]})
    bench.subscribe("update_lead")
    bench.clock.sleep(60)
    written = [
        (COMMENT, {"value": "a+b & ё~"}),
        (QUANTITY, {"value": 7}),
        (SOURCE, {"enum_id": 908107}),
        (PAYMENT, {"enum_id": 908117}),
        (MEASURING, {"value": 1_725_915_600}),
        (SIGNED, {"value": True}),
        (UTM, {"value": "ads"}),
    ]
    values = [{"field_id": field, "values": [value]} for field, value in written]
    body = {"price": 5, "custom_fields_values": values, "tags_to_add": [{"name": "vip"}]}
    assert bench.patch(f"leads/{lead.id}", body).status_code == 200
    (delivery,) = bench.run()
    assert b"~" not in delivery.body
    told = fields(delivery)
    inner = {name.removeprefix("leads[update][0]"): value for name, value in told.items() if name.startswith("leads")}
    assert {name: value for name, value in inner.items() if name.startswith("[custom_fields]")} == {
        "[custom_fields][0][id]": str(COMMENT),
        "[custom_fields][0][name]": "Комментарий",
        "[custom_fields][0][values][0][value]": "a+b & ё~",
        "[custom_fields][1][id]": str(QUANTITY),
        "[custom_fields][1][name]": "Количество",
        "[custom_fields][1][values][0][value]": "7",
        "[custom_fields][2][id]": str(SOURCE),
        "[custom_fields][2][name]": "Источник",
        "[custom_fields][2][values][0][value]": "Сайт",
        "[custom_fields][2][values][0][enum]": "908107",
        "[custom_fields][3][id]": str(PAYMENT),
        "[custom_fields][3][name]": "Оплата",
        "[custom_fields][3][values][value]": "Карта",
        "[custom_fields][3][values][enum]": "908117",
        "[custom_fields][4][id]": str(MEASURING),
        "[custom_fields][4][name]": "Дата замера",
        "[custom_fields][4][values][0]": "1725915600",
        "[custom_fields][5][id]": str(SIGNED),
        "[custom_fields][5][name]": "Договор подписан",
        "[custom_fields][5][values][0][value]": "1",
        "[custom_fields][6][id]": str(UTM),
        "[custom_fields][6][name]": "utm_source",
        "[custom_fields][6][code]": "UTM_SOURCE",
    }
    assert (inner["[price]"], inner["[modified_user_id]"], inner["[created_user_id]"]) == ("5", "0", str(ADMIN))
    assert (inner["[tags][0][name]"], inner["[linked_company_id]"]) == ("vip", str(company.id))
    assert int(inner["[last_modified]"]) - int(inner["[date_create]"]) == 60
    assert (told["account[id]"], told["account[subdomain]"]) == ("32427762", "example")


def test_contacts_and_companies_are_told_as_contacts(bench: Bench) -> None:
    """`type` tells which; an update has the former responsible user; linked leads stand under their own ids."""
    bench.subscribe("add_contact", "update_contact", "add_company", "delete_company")
    birthday = [
        {"field_code": "PHONE", "values": [{"value": "333"}]},
        {"field_id": 735653, "values": [{"value": 316_472_400}]},
    ]
    (contact,) = bench.sandbox.add("contacts", name="Имя", custom_fields_values=birthday)
    (company,) = bench.sandbox.add("companies", name="Завод")
    lead = bench.lead(_embedded={"contacts": [{"id": contact.id}]})
    bench.sandbox.delete("companies", company.id)
    bench.sandbox.change("contacts", contact.id, name="Имя Фамилия")
    added, of_company, deleted, updated = bench.told()
    assert (added["contacts[add][0][type]"], of_company["contacts[add][0][type]"]) == ("contact", "company")
    assert added["contacts[add][0][custom_fields][0][values][0][enum]"] == "718321"
    assert added["contacts[add][0][custom_fields][0][code]"] == "PHONE"
    assert added["contacts[add][0][custom_fields][1][values][0][value]"] == "12.01.1980"
    assert {name: value for name, value in deleted.items() if name.startswith("contacts")} == {
        "contacts[delete][0][id]": str(company.id),
        "contacts[delete][0][type]": "company",
    }
    assert updated["contacts[update][0][old_responsible_user_id]"] == str(ADMIN)
    assert updated[f"contacts[update][0][linked_leads_id][{lead.id}][ID]"] == str(lead.id)


def test_a_moved_lead_is_told_twice(bench: Bench) -> None:
    """As an update and as a status with where it came from; a robot's move is user 0's."""
    lead = bench.lead()
    bench.subscribe("update_lead", "status_lead", "responsible_lead")
    bench.sandbox.change("leads", lead.id, by=0, status_id=TALKS)
    update, status = bench.told()
    assert update["leads[update][0][modified_user_id]"] == "0"
    assert status["leads[status][0][status_id]"] == str(TALKS)
    assert status["leads[status][0][old_status_id]"] == str(FIRST)
    assert "leads[status][0][old_pipeline_id]" not in status
    bench.sandbox.change("leads", lead.id, pipeline_id=REPEATED.id, responsible_user_id=MANAGER)
    _, status, responsible = bench.told()
    assert status["leads[status][0][old_pipeline_id]"] == str(MAIN.id)
    assert responsible["leads[responsible][0][old_responsible_user_id]"] == str(ADMIN)


def test_a_new_responsible_user_of_a_contact_is_an_update(bench: Bench) -> None:
    """Who subscribed to nothing else is told of that alone."""
    (contact,) = bench.sandbox.add("contacts", name="Имя")
    bench.subscribe("responsible_contact")
    bench.sandbox.change("contacts", contact.id, name="Другое")
    assert bench.told() == []
    bench.sandbox.change("contacts", contact.id, responsible_user_id=MANAGER)
    (told,) = bench.told()
    assert told["contacts[update][0][old_responsible_user_id]"] == str(ADMIN)


def test_deleted_and_restored_leads_are_told(bench: Bench) -> None:
    """A deletion has three fields, a restoration them all."""
    bench.subscribe("delete_lead", "restore_lead")
    lead = bench.lead()
    bench.sandbox.delete("leads", lead.id)
    bench.sandbox.restore("leads", lead.id)
    deleted, restored = bench.told()
    assert {name: value for name, value in deleted.items() if name.startswith("leads")} == {
        "leads[delete][0][id]": str(lead.id),
        "leads[delete][0][status_id]": str(FIRST),
        "leads[delete][0][pipeline_id]": str(MAIN.id),
    }
    assert restored["leads[restore][0][name]"] == "Окно"


def test_only_what_was_subscribed_is_told(bench: Bench) -> None:
    """Each address hears of its own settings, and one that has ended of nothing."""
    bench.subscribe("add_lead", url="https://one.invalid/")
    bench.subscribe("update_lead", "status_lead", url="https://two.invalid/")
    lead = bench.lead()
    bench.patch(f"leads/{lead.id}", {"price": 1})
    assert [delivery.url for delivery in bench.run()] == ["https://one.invalid/", "https://two.invalid/"]
    bench.http.request("DELETE", "/api/v4/webhooks", json={"destination": "https://one.invalid/"})
    bench.lead()
    assert bench.run() == []


def test_a_bulk_change_is_told_in_few_hooks() -> None:
    """200 leads go 50 to a hook, each one once; so does a write through the API."""
    bench = Bench(entities_per_hook=50)
    leads = bench.sandbox.add("leads", copies=200, name="Окно")
    bench.subscribe("update_lead")
    bench.sandbox.change("leads", *(lead.id for lead in leads), responsible_user_id=MANAGER)
    hooks = bench.told()
    told = [
        value for hook in hooks for name, value in hook.items() if re.fullmatch(r"leads\[update\]\[\d+\]\[id\]", name)
    ]
    assert len(hooks) == 4
    assert told == [str(lead.id) for lead in leads]
    bench.patch("leads", [{"id": lead.id, "price": 1} for lead in leads[:40]])
    assert len(bench.told()) == 1


def test_a_digital_pipeline_tells_ids_alone() -> None:
    """On leads made in, or moved to, its stages, and with no link to the account."""
    hook = PipelineHook(HOOK_URL, frozenset({TALKS}))
    bench = Bench(pipeline_hooks=(hook,))
    lead = bench.lead()
    bench.sandbox.add("contacts", name="Имя")
    bench.sandbox.change("leads", lead.id, by=0, status_id=TALKS)
    bench.sandbox.change("leads", lead.id, price=5)
    created = bench.lead(status_id=TALKS)
    status, add = bench.told()
    assert list(status.items()) == [
        ("leads[status][0][id]", str(lead.id)),
        ("leads[status][0][status_id]", str(TALKS)),
        ("leads[status][0][pipeline_id]", str(MAIN.id)),
        ("leads[status][0][old_status_id]", str(FIRST)),
        ("leads[status][0][old_pipeline_id]", str(MAIN.id)),
        ("account[id]", "32427762"),
        ("account[subdomain]", "example"),
    ]
    assert list(add.items()) == [
        ("leads[add][0][id]", str(created.id)),
        ("leads[add][0][status_id]", str(TALKS)),
        ("leads[add][0][pipeline_id]", str(MAIN.id)),
        ("account[id]", "32427762"),
        ("account[subdomain]", "example"),
    ]


def test_a_pipeline_hook_may_stand_on_every_stage() -> None:
    """Without stages it tells of all of them, and nothing of contacts."""
    bench = Bench(pipeline_hooks=(PipelineHook(HOOK_URL),))
    bench.sandbox.add("companies", name="Завод")
    bench.lead()
    assert len(bench.told()) == 1


def test_notes_of_the_api_are_silent_unless_switched(bench: Bench) -> None:
    """With the switch a note is told as a note, as an update of its card that is changed by it, or as both."""
    bench.subscribe("note_lead", "update_lead")
    lead = bench.lead()
    bench.note(lead)
    assert bench.told() == []
    bench.sandbox.switches = AmoCrmSwitches(note_hooks=frozenset({"note", "update"}), api_acts_as_user=True)
    bench.clock.sleep(60)
    note = bench.note(lead, "Замер & <монтаж>")
    update, told = bench.told()
    assert update["leads[update][0][modified_user_id]"] == str(ADMIN)
    assert lead["updated_at"] == bench.clock.now
    inner = {name.removeprefix("leads[note][0][note]"): value for name, value in told.items() if "[note]" in name}
    assert inner == {
        "[text]": "Замер &amp; &lt;монтаж&gt;",
        "[attachement]": "",
        "[note_type]": "4",
        "[element_type]": "2",
        "[element_id]": str(lead.id),
        "[catalog_id]": "0",
        "[group_id]": "0",
        "[account_id]": "32427762",
        "[date_create]": "2025-10-09 11:54:20",
        "[timestamp_x]": "2025-10-09 11:54:20",
        "[created_by]": str(ADMIN),
        "[modified_by]": str(ADMIN),
        "[main_user_id]": str(ADMIN),
        "[id]": str(note),
        "[created_at]": "1760000060",
        "[updated_at]": "1760000060",
    }


def test_a_note_of_a_contact_says_whose_it_is(bench: Bench) -> None:
    """Beside the note stands `type`; a call's text is JSON."""
    bench.subscribe("note_company")
    bench.sandbox.switches.note_hooks = frozenset({"note"})
    (company,) = bench.sandbox.add("companies", name="Завод")
    call = {"uniq": "1", "duration": 5, "source": "x", "link": "https://x.invalid/", "phone": "1"}
    bench.post("companies/notes", [{"entity_id": company.id, "note_type": "call_in", "params": call}])
    (told,) = bench.told()
    assert (told["contacts[note][0][type]"], told["contacts[note][0][note][element_type]"]) == ("company", "3")
    assert told["contacts[note][0][note][note_type]"] == "10"
    assert json.loads(told["contacts[note][0][note][text]"])["UNIQ"] == "1"


def test_odd_texts_survive_the_wire(bench: Bench) -> None:
    """Signs that mean something in forms, and what is no text at all, break nothing."""
    bench.subscribe("add_lead")
    bench.lead(name="a=b&c[d]=%41 +\n\u2028")
    bench.lead(name="\ud800")
    first, second = bench.told()
    assert first["leads[add][0][name]"] == "a=b&c[d]=%41 +\n\u2028"
    assert second["leads[add][0][name]"] == "?"


# Delivery


def told_once(bench: Bench, status: int | None) -> list[float]:
    """Answer every attempt at one hook with `status`; return the pauses between them."""
    bench.subscribe("add_lead")
    bench.lead()
    bench.run(100_000, status)
    (callback,) = bench.sandbox.callbacks.log
    return [after - before for (before, _), (after, _) in pairwise(callback.answers)]


@pytest.mark.parametrize("status", [499, 500, 503, 599])
def test_a_server_error_is_repeated_four_times(bench: Bench, status: int) -> None:
    """After 5 minutes, 15, 15 and an hour."""
    assert told_once(bench, status) == [300, 900, 900, 3_600]
    assert bench.sandbox.callbacks.log[0].state == "given_up"


@pytest.mark.parametrize("status", [None, 99, 301, 404, 429, 498, 600])
def test_another_bad_answer_is_repeated_twice(bench: Bench, status: int | None) -> None:
    """Silence, redirects and refusals are tried after 5 minutes and 15, and no more."""
    assert told_once(bench, status) == [300, 900]


@pytest.mark.parametrize("status", [100, 200, 202, 204, 299])
def test_a_good_answer_ends_it(bench: Bench, status: int) -> None:
    """Anything from 100 to 299."""
    assert told_once(bench, status) == []
    assert bench.sandbox.callbacks.log[0].state == "delivered"


def test_a_repetition_is_the_same_hook(bench: Bench) -> None:
    """The same body under a fresh request id, even if the lead has changed since."""
    bench.subscribe("add_lead")
    lead = bench.lead()
    (first,) = bench.run(status=500)
    bench.sandbox.change("leads", lead.id, name="Дверь")
    (second,) = bench.run(300)
    assert (first.body, first.attempt, second.attempt) == (second.body, 1, 2)
    assert first.headers["X-Amocrm-Requestid"] != second.headers["X-Amocrm-Requestid"]


def test_time_between_attempts_can_be_compressed() -> None:
    """A scale of a thousandth makes five minutes 0.3 seconds."""
    bench = Bench(repeat_scale=0.001)
    assert told_once(bench, 500) == pytest.approx([0.3, 0.9, 0.9, 3.6], abs=1e-5)


def answered_badly(bench: Bench, times: int) -> None:
    for _ in range(times):
        bench.lead()
        assert len(bench.run(status=404)) == 1


def is_disabled(bench: Bench) -> bool:
    (hook,) = embedded(bench.get("webhooks"), "webhooks")
    return bool(hook["disabled"])


def test_a_hook_is_switched_off_after_100_bad_answers(bench: Bench) -> None:
    """The 101st within two hours ends it and what waits for repetition; subscribing again switches it on."""
    bench.subscribe("add_lead")
    answered_badly(bench, 100)
    assert not is_disabled(bench)
    answered_badly(bench, 1)
    assert is_disabled(bench)
    bench.lead()
    assert bench.run(100_000) == []
    assert {callback.state for callback in bench.sandbox.callbacks.log} == {"given_up"}
    bench.subscribe("add_lead")
    assert not is_disabled(bench)
    bench.lead()
    assert len(bench.run()) == 1


def test_a_good_answer_switches_nothing_off(bench: Bench) -> None:
    """Not until the latest answer is bad."""
    bench.subscribe("add_lead")
    answered_badly(bench, 100)
    bench.lead()
    bench.run()
    assert not is_disabled(bench)


def test_bad_answers_are_forgotten(bench: Bench) -> None:
    """Those older than two hours do not count."""
    bench.subscribe("add_lead")
    answered_badly(bench, 60)
    bench.run(7_200)
    answered_badly(bench, 60)
    assert not is_disabled(bench)


def test_a_digital_pipeline_repeats_four_times_within_an_hour() -> None:
    """After any bad answer, and it is never switched off."""
    bench = Bench(pipeline_hooks=(PipelineHook(HOOK_URL),))
    bench.lead()
    assert len(bench.run(3_600, 404)) == 5
    (callback,) = bench.sandbox.callbacks.log
    assert callback.state == "given_up"
    bench.lead()
    assert len(bench.run()) == 1


def test_a_digital_pipeline_pauses_after_100_bad_answers() -> None:
    """What is repeated after more than 100 bad answers in 5 minutes waits 5 minutes at least."""
    bench = Bench(pipeline_hooks=(PipelineHook(HOOK_URL),), repeat_scale=0.001)
    for _ in range(101):
        bench.lead()
        bench.run(status=500)
    last = bench.sandbox.callbacks.log[-1]
    bench.run(0.3)
    assert last.state == "delivered"


# The controls


def order(bench: Bench, method: str, path: str, body: object = None) -> Any:
    answer = bench.http.request(method, f"/sandbox/{path}", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_people_play_with_leads_over_http(bench: Bench) -> None:
    """Add, change, move by a robot, change in bulk, delete and restore; each is told, and the card can be seen."""
    settings = ("add_lead", "update_lead", "status_lead", "delete_lead", "restore_lead")
    bench.sandbox.subscribe(HOOK_URL, *settings)
    (lead,) = order(bench, "POST", "leads", {"name": "Окно", "price": 1_000})["ids"]
    order(bench, "POST", f"leads/{lead}", {"price": 1_500, "by": MANAGER})
    order(bench, "POST", f"leads/{lead}", {"status_id": TALKS, "by": 0})
    many = order(bench, "POST", "leads", {"name": "Окно", "copies": 200})["ids"]
    order(bench, "POST", "leads/bulk", {"ids": many, "responsible_user_id": MANAGER})
    order(bench, "DELETE", f"leads/{lead}")
    order(bench, "POST", f"leads/{lead}/restore")
    order(bench, "POST", "contacts", {"name": "Анна"})
    actions = [
        re.findall(r"leads\[(\w+)\]", next(n for n in told if n.startswith("leads")))[0] for told in bench.told()
    ]
    assert actions == ["add", "update", "update", "status", *["add"] * 4, *["update"] * 4, "delete", "restore"]
    bench.note(bench.sandbox.entities.present["leads"][lead], "Замер")
    card = order(bench, "GET", f"leads/{lead}")
    assert (card["price"], card["status_id"], card["hidden_notes"]) == (1_500, TALKS, 0)
    assert [note["params"]["text"] for note in card["notes"]] == ["Замер"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "leads", {"nonsense": 1}, 400),
        ("POST", "leads", {"kind": "leads", "self": 1}, 400),
        ("POST", "leads", {"copies": 0}, 422),
        ("POST", "leads", [], 422),
        ("POST", "leads/5", {"price": 1}, 400),
        ("GET", "leads/5", None, 404),
        ("GET", "leads/bulk", None, 404),
        ("GET", "leads", None, 404),
        ("DELETE", "leads/5", None, 404),
        ("POST", "leads/x", {}, 404),
        ("POST", "leads/5/restore", {}, 404),
        ("POST", "leads/5/nonsense", {}, 404),
        ("POST", "nonsense", {}, 404),
        ("POST", "switches", {"latency": -1}, 422),
        ("POST", "switches", {"nonsense": 1}, 422),
        ("POST", "switches", [], 422),
    ],
)
def test_a_mistaken_order_is_refused(bench: Bench, method: str, path: str, body: object, status: int) -> None:
    """And nothing happens."""
    assert bench.http.request(method, f"/sandbox/{path}", json=body).status_code == status
    assert bench.get("leads").status_code == 204
    assert bench.sandbox.switches == AmoCrmSwitches()


def test_a_mistake_in_python_is_an_exception(bench: Bench) -> None:
    """Invalid names what is wrong; who is not there is a KeyError."""
    with pytest.raises(Invalid, match="NotSupportedChoice"):
        bench.lead(status_id=1)
    with pytest.raises(Invalid, match="NotFound"):
        bench.sandbox.change("leads", 5, price=1)
    with pytest.raises(KeyError):
        bench.sandbox.authorize("unknown")
    with pytest.raises(KeyError):
        bench.sandbox.card("leads", 5)


def test_switches_are_set_over_http(bench: Bench) -> None:
    """What is not named stays as it is."""
    order(bench, "POST", "switches", {"latency": 0.5, "note_hooks": ["update"]})
    told = order(bench, "POST", "switches", {"gateway_timeout_over": 10})
    assert told == order(bench, "GET", "switches")
    assert (told["latency"], told["note_hooks"], told["gateway_timeout_over"]) == (0.5, ["update"], 10)
    assert bench.sandbox.switches.latency == 0.5


def test_the_state_tells_the_story_without_names_and_secrets(bench: Bench) -> None:
    """Counts, leads with their notes, hooks and their answers; neither tokens nor addresses nor names."""
    bench.subscribe("add_lead")
    lead = bench.lead(name="Олена")
    bench.sandbox.add(
        "contacts", name="Анна", custom_fields_values=[{"field_code": "PHONE", "values": [{"value": "+15005550006"}]}]
    )
    for _ in range(2):
        bench.note(lead)
    pair = by_code(bench)
    bench.run(status=500)
    answer = bench.http.get("/sandbox/state")
    state = answer.json()
    assert state["counts"] == {"leads": 1, "contacts": 1, "companies": 0, "customers": 0}
    (shown,) = state["leads"]
    assert (shown["id"], shown["notes"], shown["hidden_notes"]) == (lead.id, 1, 1)
    (hook,) = state["webhooks"]
    assert (hook["settings"], hook["disabled"]) == (["add_lead"], False)
    (callback,) = state["callbacks"]
    assert (callback["event"], callback["ids"], callback["answers"]) == ("add_lead", [lead.id], [500])
    for hidden in ("secret", pair["access_token"], pair["refresh_token"], "15005550006", "Олена", "\\u041e", "Анна"):
        assert hidden not in answer.text


# Speed, and the same over sockets


def test_thousands_of_leads_are_no_burden(bench: Bench) -> None:
    """7 requests a second suffice for 300 notes a second with 150 ms a request, reading the leads included."""
    bench.sandbox.switches.latency = 0.15
    leads = bench.sandbox.add("leads", copies=3_000, name="Окно")
    start, worked = bench.clock.now, time.process_time()
    for first in range(0, len(leads), 250):
        some = leads[first : first + 250]
        wanted = {f"filter[id][{place}]": lead.id for place, lead in enumerate(some)}
        assert len(ids(bench.get("leads", limit=250, **wanted))) == 250
        for part in range(0, 250, 50):
            for lead in some[part : part + 50]:
                assert lead["name"]
            notes = [
                {"entity_id": lead.id, "note_type": "common", "params": {"text": "x"}}
                for lead in some[part : part + 50]
            ]
            assert bench.post("leads/notes", notes).status_code == 200
    assert len(leads) / (bench.clock.now - start) > 270
    assert len(leads) / (time.process_time() - worked) > 1_000


class Receiver(Sandbox):
    """Takes hooks, with the statuses that it was given, then with 200."""

    def __init__(self, *statuses: int) -> None:
        super().__init__(clock=time.time, random=Random(1))
        self._statuses = list(statuses)

    @override
    def answer(self, request: SandboxRequest) -> SandboxResponse:
        return json_answer(self._statuses.pop(0) if self._statuses else 200, {"ok": True})

    @override
    def refusal(self, status: int, code: str) -> SandboxResponse:
        return json_answer(status, {"error": code})


def on_sockets(play: Callable[[AmoCrmSandbox, httpx.Client, str], None], receiver: Receiver, **terms: Any) -> None:
    """Serve a sandbox and a receiver while `play` calls from a thread; it is told the receiver's address."""

    async def run() -> None:
        sandbox = AmoCrmSandbox(account(**terms), clock=time.time, random=Random(1))
        headers = {"Authorization": f"Bearer {sandbox.long_lived_token('client')}"}
        async with serve(receiver) as hooks, serve(sandbox) as address:
            with httpx.Client(base_url=address, headers=headers, timeout=5) as http:
                await asyncio.to_thread(play, sandbox, http, f"{hooks}/amo/token/")

    asyncio.run(run())


def test_hooks_travel_over_sockets() -> None:
    """A lead added by hand comes as a form to the address subscribed, again after a bad answer."""
    receiver = Receiver(500)

    def play(_sandbox: AmoCrmSandbox, http: httpx.Client, address: str) -> None:
        http.post("/api/v4/webhooks", json={"destination": address, "settings": ["add_lead"]}).raise_for_status()
        http.post("/sandbox/leads", json={"name": "Окно"}).raise_for_status()
        while len(receiver.received) < 2:
            assert http.get("/sandbox/state").status_code == 200

    on_sockets(play, receiver, repeat_scale=0)
    first, second = (received.request for received in receiver.received)
    assert first.body == second.body
    assert b"leads%5Badd%5D%5B0%5D%5Bname%5D=%D0%9E" in first.body
    assert (first.path, first.headers["user-agent"]) == ("/amo/token/", "amoCRM-Webhooks/3.0")
    assert first.headers["content-type"] == "application/x-www-form-urlencoded"
    assert first.headers["x-amocrm-requestid"] != second.headers["x-amocrm-requestid"]


def test_silence_over_sockets_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who does not answer within the time that a hook has gets it three times."""
    monkeypatch.setattr(AccountManner, "timeout", 0.05)

    class Silent(Receiver):
        @override
        def answer(self, request: SandboxRequest) -> SandboxResponse:
            return NEVER

    def play(sandbox: AmoCrmSandbox, http: httpx.Client, address: str) -> None:
        sandbox.subscribe(address, "add_lead")
        http.post("/sandbox/leads", json={}).raise_for_status()
        while sandbox.callbacks.log[0].state == "waiting":
            assert http.get("/sandbox/state").status_code == 200
        assert [status for _, status in sandbox.callbacks.log[0].answers] == [None] * 3

    on_sockets(play, Silent(), repeat_scale=0)


def test_over_sockets_links_and_consent_lead_back_to_the_socket() -> None:
    """Whoever finds the sandbox on this machine stays there."""

    def play(_sandbox: AmoCrmSandbox, http: httpx.Client, _address: str) -> None:
        http.post("/sandbox/leads", json={"name": "Окно", "copies": 2}).raise_for_status()
        following = http.get("/api/v4/leads", params={"limit": 1}).json()["_links"]["next"]["href"]
        assert following.startswith(f"{http.base_url.copy_with(path='/api/v4/leads')}?")
        assert http.get(following).status_code == 200
        consent = http.get("/oauth", params={"client_id": "client"})
        assert parse_qs(urlsplit(consent.headers["location"]).query)["referer"] == [http.base_url.netloc.decode()]

    on_sockets(play, Receiver())


def test_latency_over_sockets_holds_nobody_else_up() -> None:
    """Ten requests at once wait together."""

    def play(sandbox: AmoCrmSandbox, http: httpx.Client, _address: str) -> None:
        sandbox.switches.latency = 0.2
        start = time.monotonic()
        with ThreadPoolExecutor(10) as threads:
            answers = list(threads.map(lambda _: http.get("/api/v4/account").status_code, range(10)))
        assert set(answers) == {200}
        assert 0.2 <= time.monotonic() - start < 2

    on_sockets(play, Receiver())
