"""POST /amo/{hook_token}: rows B01 to B26 of the safety catalogue, through the real handlers.

An effect is one note in a card of the sandbox: it counts after the worker has had its time.
"""

import base64
import json
import time
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crm_relay.brackets import MOST_FIELDS, encode
from crm_relay.delivery.ports import StorageError
from crm_relay.settings import AmoCrmNotes, AmoCrmSecrets, ConfigurationError, Secrets
from tests.gateway import Response, http_event
from tests.relay import AMO_HOST, HOOK_TOKEN, START, Crash, Relay
from workbench.sandboxes import PipelineHook
from workbench.sandboxes.amocrm.account import USERS

FORM = "application/x-www-form-urlencoded"
URL = f"https://relay.test/amo/{HOOK_TOKEN}"
ADMIN = USERS[0].id
OK = 200, {"ok": True}
NOT_FOUND = 404, {"error": "not_found"}
NOT_OURS = 403, {"error": "account_not_configured"}
TOO_COMPLEX = 400, {"error": "too_complex"}
LIMIT = 1_048_576


def verdict(response: Response) -> tuple[int, Any]:
    assert response.headers["content-type"] == "application/json"
    return response.status, response.json()


def lead(relay: Relay, **fields: Any) -> int:
    """Make a lead that nobody tells of, and return its id."""
    known: dict[str, Any] = {"name": "Окна в дом", "price": 1000}
    (entity,) = relay.amo.add("leads", **known | fields)
    return entity.id


def told(lead_id: int | str, /, **fields: object) -> dict[str, object]:
    """Return what a hook says of a lead."""
    return {"id": lead_id, "name": "Окна в дом", "modified_user_id": ADMIN, "last_modified": int(START), **fields}


def tree(relay: Relay, /, **entities: object) -> dict[str, object]:
    """Return a hook of the account, about one entity or another."""
    account = {"id": relay.amo.account.id, "subdomain": relay.amo.account.subdomain}
    return {"account": account, **entities}


def hook(relay: Relay, action: str = "update", /, *leads: Mapping[str, object]) -> bytes:
    """Return the body of a hook about leads; by default about a new one."""
    return encode(tree(relay, leads={action: leads or [told(lead(relay))]})).encode()


def post(relay: Relay, body: bytes, headers: Mapping[str, str] | None = None) -> tuple[int, Any]:
    return verdict(relay.post_hook(body, headers))


def payloads(relay: Relay) -> list[Any]:
    """What is in the queue."""
    return [json.loads(message.body)["payload"] for message in relay.queues["notes"].messages.values()]


def notes(relay: Relay) -> list[str]:
    """The texts of all notes once everything that was queued is done; no worker may have failed."""
    relay.run(3600)
    assert not relay.errors
    assert not relay.queues["notes"].messages
    written = [note for kind in relay.amo.notes.of_kind.values() for note in kind.values()]
    return [note["params"]["text"] for note in written]


def quarantined(relay: Relay) -> list[tuple[str, bytes]]:
    items = relay.items("quarantine#amocrm.hook#").values()
    return [(item["reason"], zlib.decompress(item["body"])) for item in items]


def untouched(relay: Relay) -> bool:
    """Tell whether neither a store nor a queue was asked for anything, and no request left."""
    return not relay.calls and not relay.amo.received


def quickest(action: Any) -> float:
    """CPU seconds that it takes on a machine that does nothing else, about."""
    times = []
    for _ in range(3):
        begun = time.process_time()
        action()
        times.append(time.process_time() - begun)
    return min(times)


# The usual way


@pytest.mark.parametrize("content_type", [FORM, f"{FORM}; charset=UTF-8", "Application/X-WWW-Form-Urlencoded"])
def test_b01_a_form_in_base64_is_taken(relay: Relay, content_type: str) -> None:
    """B01: as a deployed HTTP API hands it over: acknowledged, and a note in the card."""
    body = hook(relay)
    event = http_event(
        "POST", f"/amo/{HOOK_TOKEN}", {"content-type": content_type}, body, parameters={"hook_token": HOOK_TOKEN}
    )
    assert event["isBase64Encoded"]
    assert base64.b64decode(event["body"]) == body
    assert verdict(Response.of(relay.invoke("amo_receive", event, seconds=10))) == OK
    assert len(notes(relay)) == 1


def test_b01_it_costs_one_message(relay: Relay) -> None:
    """B01: nothing but the message is written before the answer, and no request leaves."""
    assert post(relay, hook(relay)) == OK
    assert relay.calls == ["queue.send"]
    assert not relay.amo.received
    assert relay.metrics["Received"] == 1


def test_b02_a_form_as_text_is_taken(relay: Relay) -> None:
    """B02: as an emulator hands it over."""
    event = http_event("POST", f"/amo/{HOOK_TOKEN}", {"content-type": FORM}, parameters={"hook_token": HOOK_TOKEN}) | {
        "body": hook(relay).decode(),
        "isBase64Encoded": False,
    }
    assert verdict(Response.of(relay.invoke("amo_receive", event, seconds=10))) == OK
    assert len(notes(relay)) == 1


def test_b02_a_form_without_a_type_is_taken(relay: Relay) -> None:
    """B02: who sends no Content-Type sends a form."""
    assert post(relay, hook(relay), {}) == OK
    assert len(notes(relay)) == 1


@pytest.mark.parametrize("slash", ["", "/"])
def test_the_path_may_end_with_a_slash(relay: Relay, slash: str) -> None:
    """People paste URLs with and without one."""
    path = f"/amo/{HOOK_TOKEN}{slash}"
    event = http_event(
        "POST",
        path,
        {"content-type": FORM},
        hook(relay),
        route=f"/amo/{{hook_token}}{slash}",
        parameters={"hook_token": HOOK_TOKEN},
    )
    assert Response.of(relay.invoke("amo_receive", event, seconds=10)).status == 200
    assert len(notes(relay)) == 1


# Who calls


@pytest.mark.parametrize(
    "token", ["", "x", HOOK_TOKEN + "x", HOOK_TOKEN[:-1], HOOK_TOKEN.upper(), "ключ", "\ud800", "%"]
)
def test_b03_a_path_that_nobody_has_is_not_found(relay: Relay, token: str) -> None:
    """B03: not a word of whether there is anything; the body is not read."""
    event = http_event(
        "POST",
        "/amo/x",
        {"content-type": FORM},
        b"[" * 100,
        route="/amo/{hook_token}",
        parameters={"hook_token": token},
    )
    assert verdict(Response.of(relay.invoke("amo_receive", event, seconds=10))) == NOT_FOUND
    assert untouched(relay)


def test_b03_no_token_at_all_is_not_found(relay: Relay) -> None:
    """B03: nor does an account whose token is not set have an address."""
    relay.secret_source = lambda: Secrets(amocrm={"main": AmoCrmSecrets()})
    assert verdict(relay.post_hook(hook(relay), token="")) == NOT_FOUND
    event = http_event("POST", "/amo/", {"content-type": FORM}, hook(relay))
    assert verdict(Response.of(relay.invoke("amo_receive", event, seconds=10))) == NOT_FOUND


def test_b03_a_wrong_token_takes_as_long_as_a_right_one(relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    """B03: every account's token is compared, by hmac.compare_digest, whichever fits."""
    compared: list[bytes] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append(other)
        return one == other

    known = {name: AmoCrmSecrets(f"token-{name}") for name in ("a", "b", "c")}
    relay.secret_source = lambda: Secrets(amocrm=known)
    monkeypatch.setattr("amo_webhook.receive.hmac.compare_digest", compare)
    for token in ("token-a", "token-c", "nobody's"):
        relay.post_hook(b"", token=token)
    assert compared == [b"token-a", b"token-b", b"token-c"] * 3


def test_without_secrets_no_account_can_be_known(relay: Relay) -> None:
    """Fail closed: 503, so that amoCRM comes again."""

    def fetch() -> Secrets:
        raise ConfigurationError("secret: JSON expected")

    relay.secret_source = fetch
    assert post(relay, hook(relay)) == (503, {"error": "not_configured"})
    assert relay.metrics["AttentionNeeded"] == 1


@pytest.mark.parametrize(
    "account",
    [
        {"id": 1},
        {"subdomain": "another"},
        {"id": None},
        {"subdomain": None},
        {"id": "32427762.0"},
        {"id": "032427762x"},
        {"subdomain": "EXAMPLE"},
        {"subdomain": ["example"]},
        {"id": {"0": 32427762}},
    ],
    ids=repr,
)
def test_b04_another_account_is_refused(relay: Relay, account: Mapping[str, object]) -> None:
    """B04: the path says which account it must be; both its id and its subdomain count, and an operator is told."""
    sent = tree(relay, leads={"update": [told(1)]})
    sent["account"] = {"id": relay.amo.account.id, "subdomain": relay.amo.account.subdomain, **account}
    assert post(relay, encode(sent).encode()) == NOT_OURS
    assert untouched(relay)
    assert relay.metrics["AttentionNeeded"] == 1


def test_b04_a_hook_of_no_account_is_refused(relay: Relay) -> None:
    """B04: an empty body is of nobody."""
    assert post(relay, b"") == NOT_OURS
    assert post(relay, b"account=example") == NOT_OURS


def test_b04_a_token_without_an_account_is_refused(relay: Relay) -> None:
    """B04: secrets may be ahead of relay.toml."""
    relay.configure("amocrm", accounts={})
    assert post(relay, hook(relay)) == NOT_OURS
    assert relay.calls == []


@pytest.mark.parametrize("subdomain", ["evil.com/", "x@evil", "example.amocrm.ru", "example#", "example\0", " example"])
def test_b05_no_subdomain_leads_anywhere(relay: Relay, subdomain: str) -> None:
    """B05: a host is never made of what a hook says."""
    sent = tree(relay, leads={"update": [told(1)]})
    sent["account"] = {"id": relay.amo.account.id, "subdomain": subdomain}
    assert post(relay, encode(sent).encode()) == NOT_OURS
    assert untouched(relay)


def test_b05_links_of_a_hook_are_not_followed(relay: Relay) -> None:
    """B05: what stands in `_links` is not even read; all requests go to the host of relay.toml."""
    account = {"id": relay.amo.account.id, "subdomain": "example", "_links": {"self": "https://evil.com"}}
    sent = {"account": account, "leads": {"update": [told(lead(relay))]}}
    assert post(relay, encode(sent).encode()) == OK
    assert len(notes(relay)) == 1
    assert {received.request.headers["host"] for received in relay.amo.received} == {AMO_HOST}


# Bodies of any size and shape


def test_b06_a_bulk_hook_of_fifty_leads_with_many_fields_is_taken(relay: Relay) -> None:
    """B06: 50 leads with 70 custom fields each."""
    fields = [{"id": 700_000 + n, "name": f"Поле {n}", "values": [{"value": "текст"}]} for n in range(70)]
    body = hook(relay, "update", *(told(lead_id, custom_fields=fields) for lead_id in range(1, 51)))
    assert 10_000 < body.count(b"&") < MOST_FIELDS
    assert post(relay, body) == OK
    assert len(payloads(relay)) == 50


def test_b06_more_fields_than_the_limit_are_refused_at_once(relay: Relay) -> None:
    """B06: 400 before any of them is read."""
    body = hook(relay) + b"&a=1" * MOST_FIELDS
    relay.calls.clear()
    assert post(relay, body) == TOO_COMPLEX
    assert untouched(relay)
    assert quickest(lambda: post(relay, body)) < 0.05


def test_more_entities_than_a_hook_ever_has_are_kept_aside(relay: Relay) -> None:
    """A receiver has no time to make a thousand jobs: acknowledged, the ids in quarantine, an operator told."""
    names = (f"{number:x}" * 50 for number in range(10**6, 10**6 + 1001))
    body = hook(relay, "update", *({"id": number, "name": name} for number, name in enumerate(names, 1)), {"id": "x"})
    assert post(relay, body) == OK
    kept = dict(quarantined(relay))
    assert kept.keys() == {"too_many_entities", "id_invalid"}  # one of them has an id that is none
    assert json.loads(kept["too_many_entities"]) == [["lead", "update", str(number)] for number in range(1, 1002)]
    assert not payloads(relay)


def test_b07_a_body_over_the_limit_is_refused_at_once(relay: Relay) -> None:
    """B07: half a million fields, two megabytes: 413; a megabyte is the last that is taken."""
    body = b"a=1&" * 500_000
    assert post(relay, body) == (413, {"error": "body_too_large"})
    assert untouched(relay)
    assert quickest(lambda: post(relay, body)) < 0.05
    whole = hook(relay) + b"&a="
    assert post(relay, whole + b"x" * (LIMIT - len(whole))) == OK
    assert post(relay, whole + b"x" * (LIMIT - len(whole) + 1)) == (413, {"error": "body_too_large"})


@pytest.mark.parametrize(
    ("levels", "answer"), [(64, OK), (65, TOO_COMPLEX), (100, TOO_COMPLEX), (100_000, TOO_COMPLEX)]
)
def test_b08_a_key_with_too_many_brackets_is_refused(relay: Relay, levels: int, answer: object) -> None:
    """B08: 64 levels, as PHP; one more is too many."""
    assert post(relay, hook(relay) + b"&a" + b"[b]" * levels + b"=1") == answer
    assert len(payloads(relay)) == (answer == OK)


def test_b09_a_great_index_is_a_key(relay: Relay) -> None:
    """B09: no list is made as long as it says; so amoCRM writes a contact's leads."""
    contact = {**told(7, type="contact"), "linked_leads_id": {15319601: {"ID": 15319601}}}
    sent = tree(relay, contacts={"update": [contact]}, leads={"update": {999_999_999: told(8)}})
    begun = time.process_time()
    assert post(relay, encode(sent).encode()) == OK
    assert time.process_time() - begun < 0.5
    assert [(payload["card"], payload["id"]) for payload in payloads(relay)] == [("leads", 8), ("contacts", 7)]


@pytest.mark.parametrize("name", ["__proto__", "constructor", "__class__", "__init__", "__dict__", "keys", "items"])
def test_b10_names_of_attributes_are_keys_like_any_other(relay: Relay, name: str) -> None:
    """B10: they are ignored wherever they stand."""
    more = f"&{name}=1&{name}[x]=1&leads[{name}][0][id]=1&leads[update][0][{name}]=1&account[{name}][{name}]=1"
    assert post(relay, hook(relay) + more.encode()) == OK
    assert len(payloads(relay)) == 1


def test_b11_of_a_scalar_and_a_map_the_later_counts(relay: Relay) -> None:
    """B11: as in PHP, and never an exception; what is left of it may be nothing."""
    account = encode(tree(relay)).encode()
    assert post(relay, account + b"&leads=1&leads[add][0][id]=2") == OK
    assert [payload["id"] for payload in payloads(relay)] == [2]
    for ruined in (b"&leads[add][0][id]=2&leads=1", b"&leads[add]=3", b"&leads[add][0]=4", b"&leads[add][0][id][x]=5"):
        assert post(relay, account + ruined) == OK
    assert len(payloads(relay)) == 1


def test_b12_of_two_values_the_later_counts(relay: Relay) -> None:
    """B12: a hook cannot be one thing to us and another to PHP."""
    account = encode(tree(relay)).encode()
    assert post(relay, account + b"&leads[update][0][id]=1&leads[update][0][id]=2") == OK
    assert [payload["id"] for payload in payloads(relay)] == [2]
    assert post(relay, account + b"&account[id]=1") == NOT_OURS


@pytest.mark.parametrize(
    "key", ["a[", "a[]", "]a[", "[]", "[a]", "a]", "a[[b]", "a[b", "", "=", "[", "]", "leads[", "&&&"]
)
def test_b13_odd_brackets_are_read_as_php_reads_them(relay: Relay, key: str) -> None:
    """B13: nothing meaningful comes of them, and nothing that stands beside them is lost."""
    body = encode(tree(relay)).encode() + f"&{key}=1&leads[update][0][id]=2".encode()
    assert post(relay, body) == OK
    assert [payload["id"] for payload in payloads(relay)] == [2]


@pytest.mark.parametrize("odd", [b"%ff", b"%zz", b"%00", b"%", b"\xff", b"\x00", b"%ED%A0%80", b"%F0%9F"])
def test_b14_what_is_no_utf8_spoils_no_id(relay: Relay, odd: bytes) -> None:
    """B14: in a value or in a key."""
    body = encode(tree(relay)).encode() + b"&leads[update][0][name]=a" + odd + b"z&leads[update][0][id]=2"
    assert post(relay, body + b"&" + odd + b"=1") == OK
    assert [payload["id"] for payload in payloads(relay)] == [2]


@pytest.mark.parametrize(
    ("content_type", "body", "answer"),
    [
        (FORM, b'{"leads":{}}', 400),
        (FORM, b"[]", 400),
        ("application/json", b"", 400),
        ("application/json; charset=utf-8", b"a=1", 400),
        ("application/json", b"{}", 400),
        ("multipart/form-data; boundary=x", b"--x--", 415),
        ("application/xml", b"<a/>", 415),
        ("text/plain", b"a=1", 415),
        ("text/html", b"<p>", 415),
    ],
)
def test_b15_what_is_no_form_is_refused(relay: Relay, content_type: str, body: bytes, answer: int) -> None:
    """B15: JSON that calls itself a form and a form that calls itself JSON are malformed, other types unsupported."""
    assert post(relay, body, {"Content-Type": content_type}) == (answer, {"error": "form_expected"})
    assert untouched(relay)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br"])
def test_b15_a_compressed_form_is_not_inflated(relay: Relay, encoding: str) -> None:
    """B15: nobody asked for that."""
    headers = {"Content-Type": FORM, "Content-Encoding": encoding}
    assert post(relay, hook(relay), headers) == (415, {"error": "content_encoding_not_supported"})


def test_broken_base64_is_malformed(relay: Relay) -> None:
    """What the gateway calls base64 is."""
    event = http_event(
        "POST", f"/amo/{HOOK_TOKEN}", {"content-type": FORM}, hook(relay), parameters={"hook_token": HOOK_TOKEN}
    )
    broken = {**event, "body": event["body"] + "%"}
    answer = Response.of(relay.invoke("amo_receive", broken, seconds=10))
    assert verdict(answer) == (400, {"error": "broken_base64"})


@given(st.binary(max_size=300) | st.text("&=[]%+.leadsuptiond0123456789", max_size=200).map(str.encode))
@settings(max_examples=200)
def test_any_body_gets_an_answer_and_never_a_5xx(body: bytes) -> None:
    """Whatever comes behind an authentic account, amoCRM gets a 200, or a refusal that says why."""
    with Relay() as relay:
        status, answer = post(relay, encode(tree(relay)).encode() + b"&" + body)
        assert (status, answer) in (OK, TOO_COMPLEX, NOT_OURS)


# What a hook says


def test_b16_each_entity_of_a_hook_is_a_job(relay: Relay) -> None:
    """B16: several entities and actions at once."""
    sent = tree(
        relay,
        leads={"add": [told(1), told(2)], "status": [told(3)], "responsible": {"7": told(4)}},
        contacts={"update": [told(5, type="contact"), told(6, type="company")], "add": [told(7, type="contact")]},
        unsorted={"add": [{"uid": "u"}]},
    )
    assert post(relay, encode(sent).encode()) == OK
    assert [(payload["card"], payload["id"], payload["added"]) for payload in payloads(relay)] == [
        ("leads", 1, True),
        ("leads", 2, True),
        ("leads", 3, False),
        ("leads", 4, False),
        ("contacts", 5, False),
        ("companies", 6, False),
        ("contacts", 7, True),
    ]
    assert all(payload.keys() == {"account", "card", "id", "added"} for payload in payloads(relay))
    assert relay.metrics["Received"] == 7
    assert relay.metrics["Ignored"] == 1


@pytest.mark.parametrize(
    "entities",
    [
        {},
        {"leads": {}},
        {"leads": {"delete": [told(1)]}},
        {"leads": {"note": [{"note": {"id": 1, "element_id": 2}}]}},
        {"task": {"add": [{"id": 1}]}},
        {"talk": {"add": [{"talk_id": 1}]}},
        {"message": {"add": [{"id": "6a7e8feb"}]}},
        {"catalogs": {"add": [{"id": 1}]}},
        {"customers": {"update": [told(1)]}},
        {"leads": {"teleported": [told(1)]}, "robots": {"add": [told(1)]}},
    ],
    ids=lambda entities: json.dumps(entities)[:40],
)
def test_b17_a_hook_without_work_is_acknowledged_and_counted(relay: Relay, entities: dict[str, object]) -> None:
    """B17: amoCRM would switch it off if it were refused."""
    assert post(relay, encode(tree(relay, **entities)).encode()) == OK
    assert relay.calls == []
    known = entities and "teleported" not in str(entities) and entities != {"leads": {}}
    assert relay.metrics == Counter({"Ignored": 1} if known else {})


def test_which_events_get_a_note_is_configured(relay: Relay) -> None:
    """Of each kind of entity its own."""
    relay.configure_amo(notes=AmoCrmNotes(lead=("status",), contact=(), company=("add",)))
    people = [told(5, type="contact"), told(6, type="company")]
    sent = tree(
        relay,
        leads={"add": [told(1)], "update": [told(2)], "status": [told(3)], "responsible": [told(4)]},
        contacts={"add": people, "update": people},
    )
    assert post(relay, encode(sent).encode()) == OK
    assert [(payload["card"], payload["id"]) for payload in payloads(relay)] == [("leads", 3), ("companies", 6)]
    assert relay.metrics["Ignored"] == 6


@pytest.mark.parametrize("lead_id", ["0", "-1", "1e3", "9" * 30, "", "１２", "1 2", "null", "1.0", "0x10", "+5"])
def test_b18_an_id_that_is_none_is_kept_aside(relay: Relay, lead_id: str) -> None:
    """B18: acknowledged, the body in quarantine, an operator told; what stands beside it is done."""
    body = hook(relay, "update", told(lead_id), told(2))
    assert post(relay, body) == OK
    assert [payload["id"] for payload in payloads(relay)] == [2]
    assert quarantined(relay) == [("id_invalid", body)]
    assert relay.metrics["AttentionNeeded"] == 1
    assert post(relay, body) == OK
    assert len(quarantined(relay)) == 1


def test_b18_what_cannot_be_kept_aside_is_sent_again(relay: Relay) -> None:
    """B18: while the table is down there is no quarantine: 503, and amoCRM keeps it."""
    relay.fail("store")
    assert post(relay, hook(relay, "update", told("0"))) == (503, {"error": "nothing_durable"})


def test_b19_the_same_hook_twice_is_one_effect(relay: Relay) -> None:
    """B19: amoCRM repeats what it found badly answered, and tells of a change more than once."""
    body = hook(relay)
    for _ in range(3):
        assert post(relay, body) == OK
    assert len(notes(relay)) == 1
    assert post(relay, body) == OK
    assert len(notes(relay)) == 1
    assert len(relay.items("effect#amocrm.note#")) == 1


def test_b19_another_version_is_another_effect(relay: Relay) -> None:
    """B19: a later last_modified, or other values in the same second; nothing new in the card is no news there."""
    lead_id = lead(relay)
    for fields in ({}, {"last_modified": int(START) + 1}, {"price": 2}):
        assert post(relay, hook(relay, "update", told(lead_id, **fields))) == OK
    assert len(notes(relay)) == 1
    assert len(relay.items("effect#amocrm.note#")) == 3


def test_b19_an_entity_is_added_once(relay: Relay) -> None:
    """B19: whatever else the hooks that say so say."""
    lead_id = lead(relay)
    for at in (0, 1):
        assert post(relay, hook(relay, "add", told(lead_id, last_modified=int(START) + at))) == OK
    assert len(notes(relay)) == 1


def test_b20_an_update_that_overtakes_the_add_changes_nothing_in_the_end(relay: Relay) -> None:
    """B20: each has its note, and what is known of the card is its present state."""
    lead_id = lead(relay)
    relay.amo.change("leads", lead_id, price=2000)
    assert post(relay, hook(relay, "update", told(lead_id))) == OK
    (changed,) = notes(relay)
    assert changed.startswith("Изменена сделка: Окна в дом.")
    assert post(relay, hook(relay, "add", told(lead_id))) == OK
    added = notes(relay)[-1]
    assert added.startswith("Создана сделка: Окна в дом. Ответственный: Анна Администратор.")
    (card,) = relay.items("amo#main#leads#").values()
    assert card["values"]["price"] == "2000"
    assert len(relay.amo.card("leads", lead_id).texts) == 2


def test_b21_a_leaked_url_puts_no_words_into_a_card(relay: Relay) -> None:
    """B21: all that a hook says beyond the id is forged here; none of it appears anywhere."""
    lead_id = lead(relay)
    forged = told(
        lead_id,
        name="КУПИ СЛОНА",
        price=666_666,
        responsible_user_id=USERS[1].id,
        status_id=142,
        tags=[{"id": 1, "name": "КУПИ СЛОНА"}],
        custom_fields=[{"id": 752009, "name": "КУПИ СЛОНА", "values": [{"value": "КУПИ СЛОНА"}]}],
        created_at=1,
        updated_at=1,
    )
    for action in ("add", "update", "status", "responsible"):
        assert post(relay, hook(relay, action, forged)) == OK
    texts = notes(relay)
    assert texts
    kept = [relay.items(prefix) for prefix in ("amo#", "effect#", "inbound#", "quarantine#")]
    everything = json.dumps([texts, kept, relay.logs], ensure_ascii=False, default=repr)
    for word in ("СЛОНА", "666666", "666 666", USERS[1].name, "01.01.1970"):
        assert word not in everything


def test_b21_a_lead_that_is_none_of_the_account_gets_no_note(relay: Relay) -> None:
    """B21: it is asked for, not found, and counted."""
    assert post(relay, hook(relay, "update", told(1))) == OK
    assert notes(relay) == []
    assert relay.metrics["Gone"] == 1


def test_b22_what_we_have_caused_is_dropped(relay: Relay) -> None:
    """B22: a change by our own integration's user makes no note; that of anybody else does."""
    relay.configure_amo(own_user_ids=(ADMIN, 0))
    ours = [told(lead(relay)), told(lead(relay), modified_user_id=0)]
    theirs = told(lead(relay), modified_user_id=USERS[1].id)
    assert post(relay, hook(relay, "update", *ours, theirs)) == OK
    assert len(notes(relay)) == 1
    assert relay.metrics["Ignored"] == 2


@pytest.mark.parametrize("acts_as_user", [False, True])
def test_b22_a_note_that_comes_back_as_an_update_goes_round_once(relay: Relay, acts_as_user: bool) -> None:
    """B22: even where nothing tells that it was us: the card has not changed, and that ends it."""
    relay.amo.switches.note_hooks = frozenset({"note", "update"})
    relay.amo.switches.api_acts_as_user = acts_as_user
    relay.amo.subscribe(URL, "add_lead", "update_lead", "note_lead")
    relay.amo.add("leads", name="Окна")
    assert len(notes(relay)) == 1
    hooks = [json.loads(json.dumps(dict(delivery.about)))["event"] for delivery in relay.amo.callbacks.log]
    assert hooks == ["add_lead", "update_lead", "note_lead"]
    assert len([received for received in relay.amo.received if received.request.method == "POST"]) == 1


def test_b23_a_burst_of_hooks_is_answered_in_time(relay: Relay) -> None:
    """B23: of 200 hooks the slowest takes a fraction of amoCRM's two seconds; each is acknowledged and queued."""
    bodies = [hook(relay, "update", told(lead_id, custom_fields=[])) for lead_id in range(1, 201)]
    times = []
    for body in bodies:
        begun = time.perf_counter()
        assert post(relay, body) == OK
        times.append(time.perf_counter() - begun)
    assert sorted(times)[197] < 1
    assert sum(times) < 20
    assert len(payloads(relay)) == 200


# Nothing durable, nothing promised


def test_b25_while_the_queue_is_down_the_outbox_keeps_hooks(relay: Relay) -> None:
    """B25: 200 all the same; when SQS is back the drain sends them."""
    relay.fail("queue.send")
    assert post(relay, hook(relay, "update", told(lead(relay)), told(lead(relay)))) == OK
    assert len(relay.items("outbox#amocrm.note#")) == 2
    relay.mend()
    relay.invoke("outbox_drain", {})
    assert len(notes(relay)) == 2
    assert not relay.items("outbox#")


def test_b25_where_nothing_is_durable_amocrm_keeps_it(relay: Relay) -> None:
    """B25: 503 with a Retry-After, and an alarm; the repeat finds all as it was."""
    relay.fail("queue")
    relay.fail("store")
    body = hook(relay)
    answer = relay.post_hook(body)
    assert verdict(answer) == (503, {"error": "nothing_durable"})
    assert int(answer.headers["retry-after"]) > 0
    assert relay.metrics["AttentionNeeded"] == 1
    relay.mend()
    assert post(relay, body) == OK
    assert len(notes(relay)) == 1


def test_b25_a_table_that_is_down_costs_no_hook(relay: Relay) -> None:
    """B25: the queue is all that a hook needs."""
    relay.fail("store")
    assert post(relay, hook(relay)) == OK
    relay.mend()
    assert len(notes(relay)) == 1


@pytest.mark.parametrize("times", range(1, 12))
def test_d28_a_batch_that_was_taken_in_part_is_made_whole_by_the_outbox(relay: Relay, times: int) -> None:
    """D28: what SQS did not take of eleven messages is in the outbox; none is lost, none is twice in a card."""
    body = hook(relay, "update", *(told(lead(relay)) for _ in range(11)))
    relay.fail("queue.send", times=times)
    assert post(relay, body) == OK
    assert len(relay.items("outbox#")) == times
    assert len(payloads(relay)) == 11 - times
    relay.mend()
    relay.invoke("outbox_drain", {})
    assert len(notes(relay)) == 11


def test_d28_a_batch_that_was_kept_in_part_is_sent_again(relay: Relay) -> None:
    """D28: eight of ten are in the queue, nothing takes the others: 503; the repeat makes no second note."""
    body = hook(relay, "update", *(told(lead(relay)) for _ in range(10)))
    relay.fail("queue.send", times=2)
    relay.fail("store")
    assert post(relay, body) == (503, {"error": "nothing_durable"})
    relay.mend()
    assert post(relay, body) == OK
    assert len(notes(relay)) == 10


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("error", [Crash(), StorageError("down")], ids=["killed", "error"])
def test_d04_a_receiver_that_dies_anywhere_leaves_nothing_half_done(
    relay: Relay, error: BaseException, after: bool
) -> None:
    """D04: before or after any of its messages; amoCRM repeats the hook, and each lead has one note."""
    body = hook(relay, "update", *(told(lead(relay)) for _ in range(3)))
    for victim in range(3):
        relay.calls.clear()

        def fail_at_last(_name: str, victim: int = victim) -> None:
            if len(relay.calls) == victim + 1:
                relay.fail("queue.send", times=1, after=after, error=error)

        relay.before_call = fail_at_last
        try:
            assert post(relay, body)[0] == 200
        except Crash:
            relay.restart()
        relay.mend()
    relay.before_call = lambda _: None
    assert post(relay, body) == OK
    relay.invoke("outbox_drain", {})
    assert len(notes(relay)) == 3


# What comes out of it


NAMES = ['=HYPERLINK("https://evil.example")', "<script>alert(1)</script>", "{id}{0}%s${x}", "a\nb\r\nБюджет: 1 → 2"]


@pytest.mark.parametrize("name", NAMES)
def test_b26_a_name_is_text_and_nothing_else(relay: Relay, name: str) -> None:
    """B26: no formula, no tag, no template and no second line comes of it."""
    lead_id = lead(relay, name=name)
    assert post(relay, hook(relay, "add", told(lead_id))) == OK
    (text,) = notes(relay)
    assert text == (
        f"Создана сделка: {' '.join(name.split())}. Ответственный: Анна Администратор. "
        "Время добавления: 09.10.2025 11:53:20"
    )
    assert name not in relay.output


def test_no_log_line_tells_a_name_or_the_token(relay: Relay) -> None:
    """Logs tell keys, states and counts."""
    assert post(relay, hook(relay, "add", told(lead(relay, name="Олена +380501234567")))) == OK
    post(relay, hook(relay, "add", told("0", name="Олена +380501234567")))
    relay.fail("queue")
    relay.fail("store")
    post(relay, hook(relay, "add", told(lead(relay, name="Олена +380501234567"))))
    relay.mend()
    notes(relay)
    assert relay.logs
    for secret in ("Олена", "380501234567", HOOK_TOKEN, relay.secret_source().amocrm["main"].long_lived_token):
        assert secret not in relay.output


def test_an_error_of_ours_tells_nothing(relay: Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody outside learns what went wrong inside."""

    def read_hook(_: object) -> object:
        raise ValueError("Олена")

    monkeypatch.setattr("amo_webhook.receive.read_hook", read_hook)
    assert post(relay, hook(relay)) == (500, {"error": "internal_error"})
    assert "Олена" not in relay.output
    assert relay.metrics["UnhandledError"] == 1


@pytest.mark.parametrize("method", ["GET", "PUT", "OPTIONS", "DELETE"])
def test_a_hook_is_posted(relay: Relay, method: str) -> None:
    """A deployed API has no other route; the function itself says 405."""
    event = http_event(method, f"/amo/{HOOK_TOKEN}", {}, parameters={"hook_token": HOOK_TOKEN})
    assert Response.of(relay.invoke("amo_receive", event, seconds=10)).status == 405


# A digital pipeline's hook


def test_a_hook_of_ids_alone_is_enough(relay: Relay) -> None:
    """Names and values are read from the API; each such hook counts, for it tells no version."""
    relay.amo.account = replace(relay.amo.account, pipeline_hooks=(PipelineHook(URL),))
    (entity,) = relay.amo.add("leads", name="Окна")
    assert [text.partition(". ")[0] for text in notes(relay)] == ["Создана сделка: Окна"]
    relay.amo.change("leads", entity.id, by=0, status_id=76789234)
    assert notes(relay)[-1].splitlines()[1:] == ["Этап: Первичный контакт → Переговоры"]
    (first, second) = relay.amo.callbacks.log
    assert b"name" not in first.body + second.body
