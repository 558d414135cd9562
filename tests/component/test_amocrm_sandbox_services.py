"""The services of the amoCRM sandbox beside leads, notes and hooks, as a caller of API v4 meets them."""

from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.component.test_amocrm_sandbox import (
    ADMIN,
    DECIDING,
    FIRST,
    HOST,
    MAIN,
    MANAGER,
    OURS,
    QUANTITY,
    TALKS,
    Bench,
    embedded,
    ids,
    mistakes,
)
from workbench.sandboxes.amocrm.drafts import Entity
from workbench.sandboxes.memory import MemoryTransport

PHONE = "+380501234567"


@pytest.fixture
def bench() -> Bench:
    return Bench()


def added(bench: Bench, path: str, *items: Any, key: str | None = None) -> list[dict[str, Any]]:
    """What a list that was POSTed to a service made."""
    return embedded(bench.post(path, list(items)), key or path.rpartition("/")[2])


def contact(bench: Bench, phone: str = PHONE) -> Entity:
    fields = [{"field_code": "PHONE", "values": [{"value": phone}]}]
    return bench.sandbox.add("contacts", name="Анна", custom_fields_values=fields)[0]


def delete(bench: Bench, path: str, body: object = None) -> httpx.Response:
    return bench.http.request("DELETE", f"/api/v4/{path}", json=body)


SHARED = Bench()
FIELDS = frozenset({"id", "name", "type", "text", "complete_till", "entity_id", "entity_type", "to_entity_id"}) | {
    *("to_entity_type", "metadata", "custom_fields_values", "field_id", "values", "value", "_embedded", "contacts"),
    *("leads", "settings", "file_uuid", "external_id", "source_name", "source_uid", "phone", "duration", "price"),
}
OTHERS = frozenset({"users", "users/activate", "calls", "leads/complex", "leads/link", "leads/unlink", "leads"}) | {
    *("leads/unsorted/forms", "contacts/chats", "customers/mode", "customers/segments", "products/settings"),
    *("website_buttons", "short_links", "widgets/relay_widget", "bots/run", "leads/tags", "webhooks", "contacts"),
}

# Plain services: what each has is said by its row


PLAIN: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
    ("tasks", "tasks", {"text": "Позвонить", "complete_till": 1_760_003_600}, {"text": "Написать"}),
    ("catalogs", "catalogs", {"name": "Профили"}, {"name": "Стёкла"}),
    ("roles", "roles", {"name": "Замерщик", "rights": {"leads": {"view": "A"}}}, {"name": "Монтажник"}),
    ("leads/loss_reasons", "loss_reasons", {"name": "Передумали"}, {"name": "Дорого"}),
    ("leads/pipelines", "pipelines", {"name": "Ремонт"}, {"name": "Гарантия"}),
    (f"leads/pipelines/{MAIN.id}/statuses", "statuses", {"name": "Замер"}, {"name": "Монтаж"}),
    ("customers/statuses", "statuses", {"name": "Ушёл"}, {"name": "Вернулся"}),
    ("sources", "sources", {"name": "Сайт", "external_id": "site"}, {"name": "Форма"}),
    ("chats/templates", "chat_templates", {"name": "Привет", "content": "Здравствуйте"}, {"content": "Добрый день"}),
    ("leads/custom_fields", "custom_fields", {"name": "Этаж", "type": "numeric"}, {"name": "Высота"}),
    ("customers/custom_fields", "custom_fields", {"name": "Этаж", "type": "text"}, {"name": "Высота"}),
    ("customers/segments/custom_fields", "custom_fields", {"name": "Этаж", "type": "text"}, {"name": "Высота"}),
    ("contacts/custom_fields/groups", "custom_field_groups", {"name": "Дом"}, {"name": "Дача"}),
    ("customers", "customers", {"name": "Олена"}, {"name": "Анна"}),
]


@pytest.mark.parametrize(("path", "key", "item", "change"), PLAIN)
def test_what_is_added_is_read_changed_and_listed(
    bench: Bench, path: str, key: str, item: dict[str, Any], change: dict[str, Any]
) -> None:
    """Results are found by their request_id; a change changes what it names, and nothing else."""
    twin = item | {"external_id": "other"} if path == "sources" else item
    one, other = added(bench, path, item | {"request_id": "one"}, twin, key=key)
    assert (one["request_id"], other["request_id"]) == ("one", "1")
    read = bench.get(f"{path}/{one['id']}").json()
    assert read.items() >= item.items()
    bench.clock.sleep(5)
    assert bench.patch(f"{path}/{one['id']}", change).json().items() >= change.items()
    again = bench.get(f"{path}/{one['id']}").json()
    assert {**again, "updated_at": None} == {**read, **change, "updated_at": None}
    assert again.get("updated_at") != (read.get("updated_at") or 0)
    assert {one["id"], other["id"]} <= set(ids(bench.get(path), key))


@pytest.mark.parametrize(
    ("path", "key", "item"),
    [(path, key, item) for path, key, item, _ in PLAIN if key not in {"tasks", "catalogs", "customers"}],
)
def test_what_can_be_deleted_is_gone(bench: Bench, path: str, key: str, item: dict[str, Any]) -> None:
    """204, and then 404."""
    (made,) = added(bench, path, item, key=key)
    assert delete(bench, f"{path}/{made['id']}").status_code == 204
    assert bench.get(f"{path}/{made['id']}").status_code == 404
    assert delete(bench, f"{path}/{made['id']}").status_code == 404


@pytest.mark.parametrize("path", ["tasks", "catalogs", "roles", "sources", "chats/templates", "leads/custom_fields"])
def test_many_are_changed_at_once(bench: Bench, path: str) -> None:
    """All, or if one is not there, none."""
    key, item, change = next((key, item, change) for known, key, item, change in PLAIN if known == path)
    (made,) = added(bench, path, item, key=key)
    wrong = bench.patch(path, [{"id": made["id"]} | change, {"id": 5} | change])
    assert mistakes(wrong) == {"1": [("NotFound", "id")]}
    assert bench.get(f"{path}/{made['id']}").json().items() >= item.items()
    (changed,) = embedded(bench.patch(path, [{"id": made["id"]} | change]), key)
    assert changed.items() >= (change | {"request_id": "0"}).items()


@pytest.mark.parametrize("path", ["sources", "chats/templates"])
def test_many_are_deleted_at_once(bench: Bench, path: str) -> None:
    """By a list of ids."""
    key, item = next((key, item) for known, key, item, _ in PLAIN if known == path)
    (made,) = added(bench, path, item, key=key)
    assert mistakes(delete(bench, path, [{"id": 5}])) == {"0": [("NotFound", "id")]}
    assert delete(bench, path, [{"id": made["id"]}]).status_code == 204
    assert bench.get(path).status_code == 204


@pytest.mark.parametrize(
    ("path", "missing"),
    [
        ("tasks", "text"),
        ("catalogs", "name"),
        ("roles", "rights"),
        ("sources", "external_id"),
        ("chats/templates", "content"),
        ("leads/pipelines", "name"),
        ("leads/custom_fields", "type"),
        ("short_links", "url"),
        ("leads/tags", "name"),
    ],
)
def test_what_is_needed_is_asked_for(bench: Bench, path: str, missing: str) -> None:
    """A missing field is named, and so is one that nobody knows."""
    assert ("FieldMissing", missing) in mistakes(bench.post(path, [{}]))["0"]
    assert mistakes(bench.post(path, [{"nonsense": 1}])) == {"0": [("NotExpected", "nonsense")]}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("DELETE", "tasks", 405),
        ("DELETE", "tasks/1", 405),
        ("POST", "currencies", 405),
        ("GET", "calls", 405),
        ("PATCH", "talks/1", 405),
        ("POST", "customers/transactions", 405),
        ("GET", "customers/mode", 405),
        ("GET", "leads/complex", 405),
        ("PATCH", "contacts/tags", 405),
        ("GET", "leads/tags/1", 405),
        ("GET", "catalogs/1/elements", 404),
        ("GET", "contacts/1/subscriptions", 404),
        ("GET", "bots/1/run", 405),
        ("DELETE", "leads/custom_fields/1", 404),
        ("GET", "tasks/1/2", 404),
    ],
)
def test_what_a_service_cannot_do_it_refuses(bench: Bench, method: str, path: str, status: int) -> None:
    """405 where there is another method, 404 where there is nothing."""
    assert bench.http.request(method, f"/api/v4/{path}", json=[]).status_code == status


@pytest.mark.parametrize("path", ["users", "events/types", "currencies", "leads/custom_fields", "tasks", "leads/tags"])
def test_an_order_that_a_service_does_not_know_is_ignored(bench: Bench, path: str) -> None:
    """As amoCRM does with filters that it does not know."""
    added(bench, "tasks", {"text": "Звонок", "complete_till": 1_760_000_600})
    added(bench, "leads/tags", {"name": "vip"})
    for name in ("created_at", "nonsense"):
        assert bench.get(path, **{f"order[{name}]": "desc", "filter[nonsense]": "x"}).status_code == 200


def test_what_is_needed_cannot_be_cleared(bench: Bench) -> None:
    """And when it was made, stays."""
    (task,) = added(bench, "tasks", {"text": "Звонок", "complete_till": 1_760_000_600})
    path = f"tasks/{task['id']}"
    assert mistakes(bench.patch(path, {"complete_till": None})) == {"0": [("NotNullable", "complete_till")]}
    assert bench.patch(path, {"created_at": None}).json()["created_at"] == task["created_at"]


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(sorted(FIELDS)), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(
    method=st.sampled_from(["POST", "PATCH", "PUT", "DELETE"]),
    path=st.sampled_from(sorted({path for path, *_ in PLAIN} | OTHERS)),
    body=st.lists(st.dictionaries(st.sampled_from(sorted(FIELDS)), _JSON, max_size=4), min_size=1, max_size=2) | _JSON,
)
def test_whatever_is_sent_is_answered(method: str, path: str, body: object) -> None:
    """A body of any form gets an answer below 500."""
    answer = SHARED.http.request(method, f"/api/v4/{path}", json=body)
    assert answer.status_code < 500


# Leads and their like


def test_leads_are_searched_and_found_by_custom_fields(bench: Bench) -> None:
    """`query` looks into names and values; a field is matched by value or by range."""
    lead = bench.lead(name="Балкон", custom_fields_values=[{"field_id": QUANTITY, "values": [{"value": 7}]}])
    bench.lead(name="Окно", custom_fields_values=[{"field_id": QUANTITY, "values": [{"value": 50}]}])
    assert ids(bench.get("leads", query="балк")) == [lead.id]
    by = f"filter[custom_fields_values][{QUANTITY}]"
    assert ids(bench.get("leads", **{f"{by}[]": 7})) == [lead.id]
    assert ids(bench.get("leads", **{f"{by}[from]": 5, f"{by}[to]": 10})) == [lead.id]
    assert bench.get("leads", **{f"{by}[]": 8}).status_code == 204


def test_leads_tell_more_when_asked(bench: Bench) -> None:
    """Loss reason, source and elements are embedded by `with` alone."""
    (source,) = added(bench, "sources", {"name": "Сайт", "external_id": "site"})
    (reason,) = added(bench, "leads/loss_reasons", {"name": "Передумали"})
    lead = bench.lead(loss_reason_id=reason["id"], _embedded={"source": {"type": "widget", "external_id": "site"}})
    plain = bench.get(f"leads/{lead.id}").json()
    assert "source_id" not in plain
    assert plain["_embedded"].keys() == {"tags", "companies"}
    told = bench.get(f"leads/{lead.id}", **{"with": "loss_reason,source,source_id,catalog_elements"}).json()
    assert told["source_id"] == source["id"]
    assert told["_embedded"]["source"] == {"id": source["id"], "name": "Сайт"}
    assert told["_embedded"]["loss_reason"][0]["name"] == "Передумали"
    assert told["_embedded"]["catalog_elements"] == []


def test_complex_leads_bring_contact_and_company(bench: Bench) -> None:
    """The answer is a bare list of ids; the three hang on one another."""
    body = {
        "name": "Окно",
        "price": 10.5,
        "request_id": "x",
        "_embedded": {"contacts": [{"name": "Анна"}], "companies": [{"name": "Стройка"}], "tags": [{"name": "vip"}]},
    }
    ((made),) = bench.post("leads/complex", [body]).json()
    assert (made["request_id"], made["merged"]) == (["x"], False)
    lead = bench.get(f"leads/{made['id']}", **{"with": "contacts"}).json()
    assert lead["price_with_minor_units"] == 10.5
    assert lead["_embedded"]["contacts"][0].items() >= {"id": made["contact_id"], "is_main": True}.items()
    assert lead["_embedded"]["companies"][0]["id"] == made["company_id"]
    assert [tag["name"] for tag in lead["_embedded"]["tags"]] == ["vip"]


def test_complex_leads_are_written_all_or_none(bench: Bench) -> None:
    """At most 50; a mistake inside is named by its path."""
    assert bench.post("leads/complex", [{}] * 51).status_code == 400
    wrong = {"_embedded": {"contacts": [{"responsible_user_id": 5}], "companies": [{"id": 5}]}}
    assert mistakes(bench.post("leads/complex", [{"name": "Окно"}, wrong])) == {
        "1": [
            ("NotSupportedChoice", "_embedded.contacts.0.responsible_user_id"),
            ("NotSupportedChoice", "_embedded.companies.0.id"),
        ]
    }
    assert bench.get("leads").status_code == 204
    assert mistakes(bench.post("leads/complex", [{"_embedded": {"contacts": [{}, {}]}}])).keys() == {"0"}


@pytest.mark.parametrize("control", [False, True])
def test_a_known_phone_merges_complex_leads(bench: Bench, *, control: bool) -> None:
    """Where duplicates are controlled, the lead becomes one with the contact's own."""
    bench.sandbox.switches.control_duplicates = control
    fields = [{"field_code": "PHONE", "values": [{"value": PHONE}]}]
    body = {"_embedded": {"contacts": [{"name": "Анна", "custom_fields_values": fields}]}}
    (first,) = bench.post("leads/complex", [body]).json()
    (second,) = bench.post("leads/complex", [body]).json()
    assert second["merged"] == control
    assert (second["id"] == first["id"], second["contact_id"] == first["contact_id"]) == (control, control)


def test_links_are_made_read_and_undone(bench: Bench) -> None:
    """From one entity or from many; both sides know."""
    lead, anna = bench.lead(), contact(bench)
    link = {"to_entity_id": anna.id, "to_entity_type": "contacts", "metadata": {"is_main": True}}
    (made,) = added(bench, f"leads/{lead.id}/link", link, key="links")
    assert made == {"entity_id": lead.id, "entity_type": "leads", **link}
    assert embedded(bench.get(f"leads/{lead.id}/links"), "links") == [made]
    (back,) = embedded(bench.get("contacts/links", **{"filter[entity_id][]": anna.id}), "links")
    assert (back["to_entity_id"], back["to_entity_type"]) == (lead.id, "leads")
    assert bench.get(f"leads/{lead.id}/links", **{"filter[to_entity_type]": "companies"}).status_code == 204
    many = {"entity_id": anna.id, "to_entity_id": lead.id, "to_entity_type": "leads"}
    assert bench.post("contacts/unlink", [many]).status_code == 204
    assert bench.get(f"leads/{lead.id}/links").status_code == 204
    assert bench.post("contacts/link", [many]).status_code == 200
    assert bench.get(f"leads/{lead.id}/links").status_code == 200


def test_wrong_links_are_refused(bench: Bench) -> None:
    """A lead cannot hang on a lead, nor on what is not there; a list of links wants to know whose."""
    lead = bench.lead()
    path = f"leads/{lead.id}/link"
    wrong = [{"to_entity_id": lead.id, "to_entity_type": "leads"}, {"to_entity_id": 5, "to_entity_type": "contacts"}]
    assert mistakes(bench.post(path, wrong)) == {
        "0": [("NotSupportedChoice", "to_entity_type")],
        "1": [("NotFound", "to_entity_id")],
    }
    assert bench.get("leads/links").status_code == 400
    assert bench.post("leads/5/link", wrong).status_code == 404


def test_tags_have_colors_and_keep_their_names_everywhere(bench: Bench) -> None:
    """A tag that is renamed is renamed on its leads; the same name is the same tag; only leads' tags have colors."""
    (tag,) = added(bench, "leads/tags", {"name": "vip", "color": "EBEBEB"})
    assert added(bench, "leads/tags", {"name": "vip"})[0]["id"] == tag["id"]
    lead = bench.lead(tags_to_add=[{"id": tag["id"]}])
    assert bench.patch("leads/tags", [{"id": tag["id"], "name": "gold"}]).status_code == 200
    (worn,) = bench.get(f"leads/{lead.id}").json()["_embedded"]["tags"]
    assert worn == {"id": tag["id"], "name": "gold", "color": "EBEBEB"}
    assert ids(bench.get("leads/tags", query="gol"), "tags") == [tag["id"]]
    assert bench.get("contacts/tags").status_code == 204
    for path, color in (("contacts/tags", "EBEBEB"), ("leads/tags", "000000")):
        assert mistakes(bench.post(path, [{"name": "x", "color": color}])) == {"0": [("NotSupportedChoice", "color")]}


def test_notes_are_pinned(bench: Bench) -> None:
    """By either path; `with=is_pinned` tells."""
    lead = bench.lead()
    note = bench.note(lead)
    path = f"leads/{lead.id}/notes/{note}"
    for where, pinned in ((f"leads/notes/{note}/pin", True), (f"{path}/unpin", False)):
        assert bench.http.post(f"/api/v4/{where}").status_code == 204
        assert bench.get(path, **{"with": "is_pinned"}).json()["is_pinned"] is pinned
    assert "is_pinned" not in bench.get(path).json()
    assert bench.http.post("/api/v4/leads/notes/5/pin").status_code == 404


def test_subscriptions_name_the_responsible_user(bench: Bench) -> None:
    """Whoever is responsible is told of changes."""
    lead = bench.lead(responsible_user_id=MANAGER)
    (subscriber,) = embedded(bench.get(f"leads/{lead.id}/subscriptions"), "subscriptions")
    assert subscriber == {"subscriber_id": MANAGER, "type": "user"}


# Tasks


def test_tasks_hang_on_cards_and_are_found(bench: Bench) -> None:
    """By card, state and the stage of the lead; the card knows the closest."""
    lead = bench.lead()
    on = {"entity_id": lead.id, "entity_type": "leads"}
    late, soon = (
        task["id"]
        for task in added(
            bench, "tasks", *({"text": "Звонок", "complete_till": at} | on for at in (1_760_009_000, 1_760_000_600))
        )
    )
    assert bench.get(f"leads/{lead.id}").json()["closest_task_at"] == 1_760_000_600
    assert bench.patch(f"tasks/{soon}", {"is_completed": True, "result": {"text": "Да"}}).status_code == 200
    assert bench.get(f"leads/{lead.id}").json()["closest_task_at"] == 1_760_009_000
    by_card = {f"filter[{name}][]": value for name, value in on.items()}
    assert ids(bench.get("tasks", **by_card, **{"order[complete_till]": "asc"}), "tasks") == [soon, late]
    assert ids(bench.get("tasks", **{"filter[is_completed]": 0}), "tasks") == [late]
    stage = "filter[lead_statuses][0]"
    for status, count in ((FIRST, 2), (TALKS, 0)):
        found = bench.get("tasks", **{f"{stage}[pipeline_id]": MAIN.id, f"{stage}[status_id]": status})
        assert len(found.json()["_embedded"]["tasks"] if found.content else []) == count
    assert bench.get("tasks", **{"filter[task_type][]": 2}).status_code == 204
    wrong = {"text": "Звонок", "complete_till": 1_760_000_600, "entity_type": "leads", "entity_id": 5}
    assert mistakes(bench.post("tasks", [wrong])) == {"0": [("NotFound", "entity_id")]}


# Events


def test_events_tell_what_happened(bench: Bench) -> None:
    """Additions, stages, responsible users, notes, tasks; with values before and after."""
    lead = bench.lead()
    bench.patch(f"leads/{lead.id}", {"status_id": TALKS, "responsible_user_id": MANAGER})
    note = bench.note(lead)
    added(bench, "tasks", {"text": "Звонок", "complete_till": 1_760_000_600})
    told = embedded(bench.get("events"), "events")
    types = ["lead_added", "lead_status_changed", "entity_responsible_changed", "common_note_added", "task_added"]
    assert [event["type"] for event in told] == types
    assert told[1]["value_before"] == [{"lead_status": {"id": FIRST, "pipeline_id": MAIN.id}}]
    assert told[1]["value_after"] == [{"lead_status": {"id": TALKS, "pipeline_id": MAIN.id}}]
    assert told[3]["value_after"] == [{"note": {"id": note}}]
    assert isinstance(told[0]["id"], str)
    assert bench.get(f"events/{told[0]['id']}", **{"with": "lead_name"}).json()["_embedded"]["entity"]["name"] == "Окно"


def test_events_are_filtered_by_lists_of_names(bench: Bench) -> None:
    """Joined by commas; entities need exactly one type, and a filter names at most ten."""
    lead, other = bench.lead(), bench.lead()
    bench.patch(f"leads/{lead.id}", {"status_id": TALKS})

    def found(**filters: str | int) -> list[tuple[str, int]]:
        answer = bench.get("events", **{f"filter[{name}]": value for name, value in filters.items()})
        events = answer.json()["_embedded"]["events"] if answer.content else []
        return [(event["type"], event["entity_id"]) for event in events]

    assert found(type="lead_status_changed,task_added") == [("lead_status_changed", lead.id)]
    assert found(entity="lead", entity_id=f"{other.id},5") == [("lead_added", other.id)]
    assert found(created_by=ADMIN, type="lead_added") == [("lead_added", lead.id), ("lead_added", other.id)]
    assert found(created_by=MANAGER) == []
    after = {"filter[value_after][leads_statuses][0][pipeline_id]": MAIN.id}
    moved = bench.get("events", **after, **{"filter[value_after][leads_statuses][0][status_id]": TALKS})
    assert [event["entity_id"] for event in embedded(moved, "events")] == [lead.id]
    for wrong in ({"entity_id": 5}, {"created_by": ",".join(map(str, range(11)))}):
        assert bench.get("events", **{f"filter[{name}]": value for name, value in wrong.items()}).status_code == 400
    keys = [event["key"] for event in embedded(bench.get("events/types", language_code="ru"), "events_types")]
    assert {"lead_added", "lead_status_changed", "common_note_added"} <= set(keys)


# Catalogs


def test_elements_belong_to_their_catalog(bench: Bench) -> None:
    """With custom fields of the catalog; filters stand at the top of the query."""
    catalog, other = (made["id"] for made in added(bench, "catalogs", {"name": "Профили"}, {"name": "Стёкла"}))
    added(bench, f"catalogs/{catalog}/custom_fields", {"name": "Артикул", "type": "text", "code": "SKU"})
    sku = [{"field_code": "SKU", "values": [{"value": "P-70"}]}]
    (made,) = added(bench, f"catalogs/{catalog}/elements", {"name": "Профиль", "custom_fields_values": sku})
    path = f"catalogs/{catalog}/elements"
    assert made["custom_fields_values"][0]["values"] == [{"value": "P-70"}]
    assert ids(bench.get(path, query="p-70"), "elements") == [made["id"]]
    assert ids(bench.get(path, **{"id[]": made["id"]}), "elements") == [made["id"]]
    assert bench.get(path, **{"id[]": 5}).status_code == 204
    assert bench.get(f"catalogs/{other}/elements").status_code == 204
    assert bench.get(f"catalogs/{other}/elements/{made['id']}").status_code == 404
    assert "invoice_link" in bench.get(f"{path}/{made['id']}", **{"with": "invoice_link"}).json()
    wrong = {"name": "x", "custom_fields_values": [{"field_id": 5, "values": [{"value": "x"}]}]}
    assert mistakes(bench.post(path, [wrong])) == {"0": [("NotSupportedChoice", "custom_fields_values.0.field_id")]}
    cleared = bench.patch(f"{path}/{made['id']}", {"custom_fields_values": [sku[0] | {"values": None}]})
    assert cleared.json()["custom_fields_values"] is None


def test_elements_are_linked_with_a_quantity(bench: Bench) -> None:
    """From the lead and from the element."""
    (catalog,) = added(bench, "catalogs", {"name": "Профили"})
    (element,) = added(bench, f"catalogs/{catalog['id']}/elements", {"name": "Профиль"})
    lead, second = bench.lead(), bench.lead()
    metadata = {"quantity": 3, "catalog_id": catalog["id"]}
    link = {"to_entity_id": element["id"], "to_entity_type": "catalog_elements", "metadata": metadata}
    assert bench.post(f"leads/{lead.id}/link", [link]).status_code == 200
    (shown,) = bench.get(f"leads/{lead.id}", **{"with": "catalog_elements"}).json()["_embedded"]["catalog_elements"]
    assert (shown["id"], shown["quantity"], shown["catalog_id"]) == (element["id"], 3, catalog["id"])
    below = f"catalogs/{catalog['id']}/elements/{element['id']}"
    assert bench.post(f"{below}/link", [{"to_entity_id": second.id, "to_entity_type": "leads"}]).status_code == 200
    assert [link["to_entity_id"] for link in embedded(bench.get(f"{below}/links"), "links")] == [lead.id, second.id]
    by_catalog = {"filter[to_catalog_id]": catalog["id"]}
    assert len(embedded(bench.get(f"leads/{lead.id}/links", **by_catalog), "links")) == 1
    assert bench.post(f"{below}/unlink", [{"to_entity_id": second.id, "to_entity_type": "leads"}]).status_code == 204
    assert bench.get(f"leads/{second.id}/links").status_code == 204


@pytest.mark.parametrize("path", ["catalogs/products/settings", "products/settings"])
def test_products_are_switched_on(bench: Bench, path: str) -> None:
    """And then there is a catalog of them."""
    assert bench.get(path).json()["is_enabled"] is False
    settings = bench.patch(path, {"is_enabled": True}).json()
    assert settings["is_enabled"] is True
    assert ids(bench.get("catalogs", type="products"), "catalogs") == [settings["catalog_id"]]


# Incoming leads


def form(**embedded_: Any) -> dict[str, Any]:
    metadata = {
        "form_id": "1",
        "form_name": "Заявка",
        "form_page": "https://example.com",
        "form_sent_at": 1_760_000_000,
    }
    return {"source_name": "Сайт", "source_uid": "site", "metadata": metadata, "_embedded": embedded_}


def test_an_incoming_lead_is_no_lead_until_it_is_accepted(bench: Bench) -> None:
    """Its contact neither; who accepts names the stage and the user."""
    bench.subscribe("add_lead")
    body = form(leads=[{"name": "Балкон"}], contacts=[{"name": "Анна"}])
    (waiting,) = added(bench, "leads/unsorted/forms", body, key="unsorted")
    assert bench.get("leads").status_code == 204
    assert bench.told() == []
    assert bench.get(f"leads/unsorted/{waiting['uid']}").json()["category"] == "forms"
    accepted = bench.post(f"leads/unsorted/{waiting['uid']}/accept", {"user_id": MANAGER, "status_id": DECIDING}).json()
    (lead,) = accepted["_embedded"]["leads"]
    read = bench.get(f"leads/{lead['id']}", **{"with": "contacts"}).json()
    assert (read["name"], read["status_id"], read["responsible_user_id"]) == ("Балкон", DECIDING, MANAGER)
    assert [each["id"] for each in read["_embedded"]["contacts"]] == [accepted["_embedded"]["contacts"][0]["id"]]
    assert bench.get(f"leads/unsorted/{waiting['uid']}").status_code == 404
    assert len(bench.told()) == 1


def test_incoming_leads_are_declined_and_counted(bench: Bench) -> None:
    """The summary counts by category and by outcome."""
    one, other = (made["uid"] for made in added(bench, "leads/unsorted/forms", form(), form(), key="unsorted"))
    bench.clock.sleep(10)
    assert delete(bench, f"leads/unsorted/{one}/decline", {"user_id": ADMIN}).json()["uid"] == one
    assert delete(bench, f"leads/unsorted/{one}/decline").status_code == 404
    assert bench.get("leads").status_code == 204
    summary = bench.get("leads/unsorted/summary").json()
    assert (summary["total"], summary["accepted"], summary["declined"], summary["average_sort_time"]) == (2, 0, 1, 10)
    assert summary["categories"]["forms"] == {"total": 2}
    assert bench.get("leads/unsorted/summary", **{"filter[created_at][from]": 2_000_000_000}).json()["total"] == 0
    assert [each["uid"] for each in embedded(bench.get("leads/unsorted"), "unsorted")] == [other]
    assert bench.get("leads/unsorted", **{"filter[category][]": "sip"}).status_code == 204


def test_only_mails_and_chats_are_linked(bench: Bench) -> None:
    """To a lead that is there, which gets their contact; such incoming leads come from people alone."""
    lead = bench.lead()
    link = {"link": {"entity_type": "leads", "entity_id": lead.id}, "user_id": ADMIN}
    (waiting,) = added(bench, "leads/unsorted/forms", form(), key="unsorted")
    assert bench.post(f"leads/unsorted/{waiting['uid']}/link", link).status_code == 400
    mail = bench.sandbox.receive("mail", _embedded={"contacts": [{"name": "Анна"}]})
    linked = bench.post(f"leads/unsorted/{mail['uid']}/link", link).json()
    assert linked["_embedded"]["leads"] == [{"id": lead.id}]
    (anna,) = bench.get(f"leads/{lead.id}", **{"with": "contacts"}).json()["_embedded"]["contacts"]
    assert anna["id"] == linked["_embedded"]["contacts"][0]["id"]


def test_a_wrong_incoming_lead_is_refused(bench: Bench) -> None:
    """Its metadata are asked for by category, and what it brings is checked."""
    wrong = form(leads=[{"status_id": 5}]) | {"metadata": {}}
    told = mistakes(bench.post("leads/unsorted/sip", [wrong]))["0"]
    assert ("FieldMissing", "metadata.phone") in told
    assert ("NotSupportedChoice", "_embedded.leads.0.status_id") in told
    assert bench.post("leads/unsorted/mail", [form()]).status_code == 405


# Customers


def test_the_mode_of_customers_is_the_accounts(bench: Bench) -> None:
    """Switched on with a mode, and off."""
    assert bench.get("account").json()["customers_mode"] == "unavailable"
    assert bench.patch("customers/mode", {"mode": "segments", "is_enabled": True}).json()["mode"] == "segments"
    assert bench.get("account").json()["customers_mode"] == "segments"
    bench.patch("customers/mode", {"mode": "segments", "is_enabled": False})
    assert bench.get("account").json()["customers_mode"] == "disabled"


def test_segments_are_added_one_by_one_and_count_their_customers(bench: Bench) -> None:
    """One object makes one segment."""
    segment = bench.post("customers/segments", {"name": "Постоянные"}).json()["id"]
    (customer,) = added(bench, "customers", {"name": "Олена", "_embedded": {"segments": [{"id": segment}]}})
    assert bench.get(f"customers/segments/{segment}").json()["customers_count"] == 1
    assert bench.get(f"customers/{customer['id']}").json()["_embedded"]["segments"] == [{"id": segment}]
    assert ids(bench.get("customers", **{"filter[segments][]": segment}), "customers") == [customer["id"]]
    assert bench.patch(f"customers/segments/{segment}", {"name": "Новые"}).json()["name"] == "Новые"
    assert bench.post("customers/segments", [{"name": "Постоянные"}]).status_code == 400


def test_purchases_add_up(bench: Bench) -> None:
    """Sum, count, average and the next purchase are the customer's."""
    (customer,) = added(bench, "customers", {"name": "Олена"})
    path = f"customers/{customer['id']}/transactions"
    first, _ = added(bench, path, {"price": 100, "next_price": 70, "next_date": 1_770_000_000}, {"price": 300})
    read = bench.get(f"customers/{customer['id']}").json()
    assert (read["ltv"], read["purchases_count"], read["average_check"], read["next_price"]) == (400, 2, 200, 70)
    assert bench.get(f"customers/transactions/{first['id']}").json()["customer_id"] == customer["id"]
    assert delete(bench, f"{path}/{first['id']}").status_code == 204
    assert bench.get(f"customers/{customer['id']}").json()["ltv"] == 300
    assert len(embedded(bench.get("customers/transactions"), "transactions")) == 1


def test_bonus_points_are_earned_and_redeemed(bench: Bench) -> None:
    """Not more than there are."""
    (customer,) = added(bench, "customers", {"name": "Олена"})
    path = f"customers/{customer['id']}/bonus_points"
    assert bench.post(path, {"earn": 10}).json() == {"bonus_points": 10}
    assert bench.post(path, {"redeem": 4}).json() == {"bonus_points": 6}
    assert bench.post(path, {"redeem": 7}).status_code == 400


def test_customers_have_cards_like_leads(bench: Bench) -> None:
    """Notes, tags, links, subscriptions and hooks."""
    bench.subscribe("add_customer")
    (made,) = added(bench, "customers", {"name": "Олена", "tags_to_add": [{"name": "vip"}]})
    (hook,) = bench.told()
    assert (hook["customers[add][0][id]"], hook["customers[add][0][name]"]) == (str(made["id"]), "Олена")
    note = {"entity_id": made["id"], "note_type": "common", "params": {"text": "Замер"}}
    assert bench.post("customers/notes", [note]).status_code == 200
    anna = contact(bench)
    link = {"to_entity_id": anna.id, "to_entity_type": "contacts"}
    assert bench.post(f"customers/{made['id']}/link", [link]).status_code == 200
    read = bench.get(f"customers/{made['id']}", **{"with": "contacts"}).json()
    assert [each["id"] for each in read["_embedded"]["contacts"]] == [anna.id]
    assert [tag["name"] for tag in read["_embedded"]["tags"]] == ["vip"]


# Settings


def test_users_are_added_and_let_in(bench: Bench) -> None:
    """With rights and a role; ten at most are switched on or off at once."""
    (role,) = added(bench, "roles", {"name": "Замерщик", "rights": {}})
    (made,) = added(bench, "users", {"name": "Олена", "email": "olena@example.com", "rights": {"role_id": role["id"]}})
    told = bench.get(f"users/{made['id']}", **{"with": "role,uuid,user_rank"}).json()
    assert told["_embedded"]["roles"][0]["name"] == "Замерщик"
    assert told["rights"]["role_id"] == role["id"]
    assert {"uuid", "user_rank"} <= told.keys()
    assert bench.get(f"roles/{role['id']}", **{"with": "users"}).json()["_embedded"]["users"][0]["id"] == made["id"]
    for action, active in (("deactivate", False), ("activate", True)):
        assert bench.post(f"users/{action}", [{"id": made["id"]}]).status_code == 204
        assert bench.get(f"users/{made['id']}").json()["rights"]["is_active"] is active
    assert bench.post("users/activate", [{"id": made["id"]}] * 11).status_code == 400
    assert mistakes(bench.post("users/activate", [{"id": 5}])) == {"0": [("NotFound", "id")]}
    twin = {"name": "Олена", "email": "olena@example.com"}
    assert mistakes(bench.post("users", [twin])) == {"0": [("NotUnique", "email")]}


def test_a_new_pipeline_takes_leads(bench: Bench) -> None:
    """With its stages; one with leads in it stays."""
    stages = {"statuses": [{"name": "Замер", "color": "#fffeb2"}, {"id": 142, "name": "Готово"}]}
    (pipeline,) = added(bench, "leads/pipelines", {"name": "Ремонт", "is_main": False, "_embedded": stages})
    names = [status["name"] for status in pipeline["_embedded"]["statuses"]]
    assert (names[0], len(names)) == ("Замер", 3)
    (stage,) = added(
        bench,
        f"leads/pipelines/{pipeline['id']}/statuses",
        {"name": "Монтаж", "descriptions": [{"level": "newbie", "description": "Как"}]},
    )
    (lead,) = added(bench, "leads", {"pipeline_id": pipeline["id"], "status_id": stage["id"]})
    assert bench.get(f"leads/{lead['id']}").json()["status_id"] == stage["id"]
    path = f"leads/pipelines/{pipeline['id']}"
    told = bench.get(f"{path}/statuses/{stage['id']}", **{"with": "descriptions"}).json()
    assert told["descriptions"] == [{"level": "newbie", "description": "Как"}]
    assert delete(bench, path).status_code == 400
    assert delete(bench, f"{path}/statuses/{stage['id']}").status_code == 400


def test_custom_fields_are_defined_and_filled(bench: Bench) -> None:
    """A new field takes values; renamed or deleted, it is so on every card; not every type is for every kind."""
    enums = {"enums": [{"value": "Да"}, {"value": "Нет"}]}
    (field,) = added(bench, "leads/custom_fields", {"name": "Срочно", "type": "select", "code": "URGENT"} | enums)
    lead = bench.lead(custom_fields_values=[{"field_code": "URGENT", "values": [{"value": "Да"}]}])
    path = f"leads/custom_fields/{field['id']}"
    bench.patch(path, {"name": "Горит", "enums": [field["enums"][0], {"value": "Завтра"}], "sort": 3})
    (filled,) = bench.get(f"leads/{lead.id}").json()["custom_fields_values"]
    assert (filled["field_name"], filled["values"][0]["enum_id"]) == ("Горит", field["enums"][0]["id"])
    assert [option["value"] for option in bench.get(path).json()["enums"]] == ["Да", "Завтра"]
    assert bench.get(path).json()["sort"] == 3
    assert delete(bench, path).status_code == 204
    assert bench.get(f"leads/{lead.id}").json()["custom_fields_values"] is None
    wrong = [{"name": "Цена", "type": "price"}]
    assert mistakes(bench.post("leads/custom_fields", wrong)) == {"0": [("NotSupportedChoice", "type")]}


def test_groups_of_fields_belong_to_their_kind(bench: Bench) -> None:
    """Their ids are texts."""
    (group,) = added(
        bench, "leads/custom_fields/groups", {"name": "Дом", "fields": [QUANTITY]}, key="custom_field_groups"
    )
    assert isinstance(group["id"], str)
    assert bench.get("contacts/custom_fields/groups").status_code == 204
    assert bench.get(f"contacts/custom_fields/groups/{group['id']}").status_code == 404


def test_the_account_tells_all_that_can_be_asked(bench: Bench) -> None:
    """The drive's address among it."""
    wanted = "amojo_id uuid amojo_rights users_groups task_types version datetime_settings invoices_settings "
    names = (wanted + "is_api_filter_enabled drive_url").split()
    told = bench.get("account", **{"with": ",".join(names)}).json()
    assert set(names) <= told.keys() | told["_embedded"].keys()
    assert told["drive_url"] == "https://drive-b.amocrm.ru"


# Calls, chats, channels, bots


def test_a_call_finds_its_contact_by_phone(bench: Bench) -> None:
    """However the phone is written; one that nobody has is an error beside the others."""
    anna = contact(bench)
    call = {"duration": 60, "source": "АТС", "direction": "inbound", "uniq": "u", "link": "https://example.com/1.mp3"}
    answer = bench.post("calls", [call | {"phone": "+38 (050) 123-45-67"}, call | {"phone": "1", "request_id": "x"}])
    (made,) = embedded(answer, "calls")
    assert (made["entity_id"], made["entity_type"], made["request_id"]) == (anna.id, "contact", "0")
    (failed,) = answer.json()["errors"]
    assert (failed["request_id"], failed["detail"]) == ("x", "Entity not found")
    (note,) = embedded(bench.get(f"contacts/{anna.id}/notes"), "notes")
    assert (note["note_type"], note["params"]["duration"]) == ("call_in", 60)
    assert mistakes(bench.post("calls", [call | {"phone": "1", "call_status": 9}])).keys() == {"0"}


def test_talks_are_listed_and_closed(bench: Bench) -> None:
    """202 without a body."""
    talk = bench.sandbox.talk(contact(bench).id)["talk_id"]
    assert embedded(bench.get("talks"), "talks")[0]["is_in_work"] is True
    answer = bench.post(f"talks/{talk}/close", {"force_close": True})
    assert (answer.status_code, answer.content) == (202, b"")
    assert bench.get(f"talks/{talk}").json()["is_in_work"] is False
    assert bench.post("talks/5/close", {}).status_code == 404


def test_chats_are_given_to_contacts(bench: Bench) -> None:
    """And found by contact or chat."""
    anna = contact(bench)
    link = {"contact_id": anna.id, "chat_id": "chat-1", "request_id": "x"}
    assert added(bench, "contacts/chats", link) == [link]
    assert len(embedded(bench.get("contacts/chats", contact_id=anna.id), "chats")) == 1
    assert bench.get("contacts/chats", chat_id="chat-2").status_code == 204
    assert mistakes(bench.post("contacts/chats", [{"contact_id": 5, "chat_id": "x"}])) == {
        "0": [("NotFound", "contact_id")]
    }


def test_templates_are_reviewed(bench: Bench) -> None:
    """Sent on review, and judged; `with=reviews` tells."""
    (template,) = added(bench, "chats/templates", {"name": "Привет", "content": "Здравствуйте"}, key="chat_templates")
    path = f"chats/templates/{template['id']}"
    (review,) = embedded(bench.http.post(f"/api/v4/{path}/review"), "reviews")
    assert review["status"] == "review"
    judged = bench.post(f"{path}/review/{review['id']}", {"status": "rejected", "reject_reason": "Спам"}).json()
    assert (judged["status"], judged["reject_reason"]) == ("rejected", "Спам")
    assert bench.get(path, **{"with": "reviews"}).json()["_embedded"]["reviews"] == [judged]
    assert bench.post(f"{path}/review/5", {"status": "approved"}).status_code == 404


def test_one_source_is_the_default(bench: Bench) -> None:
    """The last that was named; external ids are unique, and there are 50 at most."""
    source = {"name": "Сайт", "default": True}
    one, other = added(bench, "sources", source | {"external_id": "1"}, source | {"external_id": "2"})
    assert bench.get(f"sources/{one['id']}").json()["default"] is False
    assert bench.get(f"sources/{other['id']}").json()["default"] is True
    assert ids(bench.get("sources", **{"filter[external_id]": "2"}), "sources") == [other["id"]]
    assert mistakes(bench.post("sources", [source | {"external_id": "1"}])) == {"0": [("NotUnique", "external_id")]}
    many = [{"name": "Сайт", "external_id": f"x{number}"} for number in range(49)]
    assert bench.post("sources", many).status_code == 400
    assert bench.post("sources", many[:48]).status_code == 200


def test_website_buttons_are_made_and_changed(bench: Bench) -> None:
    """Asynchronously: 202; scripts are told when asked for."""
    sent = {"pipeline_id": MAIN.id, "trusted_websites": ["example.com"], "name": "Кнопка"}
    answer = bench.post("website_buttons", sent)
    button = answer.json()["source_id"]
    assert (answer.status_code, answer.json()["trusted_websites"]) == (202, ["example.com"])
    changed = bench.patch(f"website_buttons/{button}", {"trusted_websites": {"add": ["a.example.com"]}}).json()
    assert (changed["trusted_websites"], changed["name"]) == (["example.com", "a.example.com"], "Кнопка")
    assert "script" not in bench.get(f"website_buttons/{button}").json()
    assert "script" in embedded(bench.get("website_buttons", **{"with": "scripts"}), "website_buttons")[0]
    assert bench.http.post(f"/api/v4/website_buttons/{button}/online_chat").status_code == 202
    assert mistakes(bench.post("website_buttons", sent | {"pipeline_id": 5})).keys() == {"0"}


def test_links_are_shortened_in_their_order(bench: Bench) -> None:
    """Each gets an address of its own."""
    about = {"metadata": {"entity_id": 1, "entity_type": "contacts"}}
    one, other = added(bench, "short_links", *({"url": f"https://example.com/{n}"} | about for n in range(2)))
    assert one["url"] != other["url"]
    assert (one["entity_id"], one["entity_type"]) == (1, "contacts")


def test_widgets_are_installed_with_their_settings(bench: Bench) -> None:
    """Which are asked for; and taken away."""
    (widget,) = embedded(bench.get("widgets"), "widgets")
    path = f"widgets/{widget['code']}"
    assert mistakes(bench.post(path, {})) == {"0": [("FieldMissing", "token")]}
    assert bench.post(path, {"token": "x"}).json()["is_active_in_account"] is True
    assert delete(bench, path).status_code == 204
    assert bench.get(path).json()["is_active_in_account"] is False
    assert bench.post("widgets/other", {}).status_code in {404, 405}


def test_bots_are_told_to_run_and_stop(bench: Bench) -> None:
    """202 each; a hundred at most; a widget's step lets a bot go on."""
    lead = bench.lead()
    bot = embedded(bench.get("bots"), "bots")[0]["id"]
    run = {"bot_id": bot, "entity_id": lead.id, "entity_type": 2}
    answers = [
        bench.post("bots/run", [run]),
        bench.post(f"bots/{bot}/run", {"entity_id": lead.id, "entity_type": "leads"}),
        bench.post(f"bots/{bot}/stop", {"entity_id": lead.id, "entity_type": "leads"}),
        bench.post(f"salesbot/{bot}/continue/7", {"data": {"status": "success"}}),
    ]
    assert [answer.status_code for answer in answers] == [202] * 4
    assert [order["action"] for order in bench.sandbox.api.bots.runs] == ["run", "run", "stop", "continue"]
    assert bench.post("bots/run", [run] * 101).status_code == 400
    assert mistakes(bench.post("bots/run", [run | {"bot_id": 5}])) == {"0": [("NotFound", "bot_id")]}


def test_currencies_are_listed(bench: Bench) -> None:
    """By their codes, in pages."""
    assert embedded(bench.get("currencies", limit=1), "currencies")[0]["code"] == "RUB"


# The drive


class DriveBench(Bench):
    """A bench whose drive takes parts of 4 bytes."""

    def __init__(self) -> None:
        super().__init__(part_size=4, file_size=100)
        self.drive = httpx.Client(
            base_url="https://drive-b.amocrm.ru",
            transport=MemoryTransport(dict.fromkeys((HOST, "drive-b.amocrm.ru"), self.sandbox), self.clock.sleep),
            headers=dict(self.http.headers),
            timeout=10,
        )

    def session(self, size: int, **more: Any) -> httpx.Response:
        return self.drive.post("/v1.0/sessions", json={"file_name": "План.txt", "file_size": size, **more})

    def upload(self, content: bytes, **more: Any) -> dict[str, Any]:
        told = self.session(len(content), content_type="text/plain", **more).json()
        assert told["max_part_size"] == 4
        url = told["upload_url"]
        for start in range(0, len(content), 4):
            told = self.drive.post(url, content=content[start : start + 4]).json()
            url = told.get("next_url")
        assert url is None
        return dict(told)


def test_a_file_is_uploaded_in_parts() -> None:
    """The last answer is the file; what went in comes out."""
    bench = DriveBench()
    file = bench.upload(b"0123456789")
    assert (file["size"], file["metadata"]) == (10, {"extension": "txt", "mime_type": "text/plain"})
    assert bench.drive.get(file["_links"]["download"]["href"]).content == b"0123456789"
    assert bench.drive.get(f"/v1.0/files/{file['uuid']}").json()["uuid"] == file["uuid"]
    assert bench.drive.patch(f"/v1.0/files/{file['uuid']}", json={"name": "Смета"}).json()["name"] == "Смета"


def test_a_file_has_versions() -> None:
    """The same file, another version."""
    bench = DriveBench()
    first = bench.upload(b"01234")
    second = bench.upload(b"56", file_uuid=first["uuid"])
    assert second["uuid"] == first["uuid"]
    assert second["version_uuid"] != first["version_uuid"]
    assert (first["has_multiple_versions"], second["has_multiple_versions"]) == (False, True)
    assert bench.drive.get(first["_links"]["download"]["href"]).content == b"01234"


def test_the_drive_has_limits() -> None:
    """Of files, of parts, of what was said; an address for a part is good once."""
    bench = DriveBench()
    assert bench.session(101).status_code == 400
    assert bench.session(5, file_uuid="unknown").status_code == 404
    url = bench.session(5).json()["upload_url"]
    assert bench.drive.post(url, content=b"01234").status_code == 413
    following = bench.drive.post(url, content=b"0123").json()["next_url"]
    assert bench.drive.post(url, content=b"4").status_code == 404
    assert bench.drive.post(following, content=b"45").status_code == 400
    assert bench.drive.post(following, content=b"4").status_code == 200
    bench.drive.headers.pop("authorization")
    assert bench.drive.get("/v1.0/files").status_code == 401


def test_files_are_found_and_thrown_away() -> None:
    """By name, extension, size and uuid; what is deleted is listed apart."""
    bench = DriveBench()
    file, other = bench.upload(b"01234"), bench.upload(b"0", file_name="Фото.png")

    def found(**filters: str | int) -> list[str]:
        answer = bench.drive.get("/v1.0/files", params={f"filter[{name}]": value for name, value in filters.items()})
        return [each["uuid"] for each in answer.json()["_embedded"]["files"]] if answer.content else []

    assert found() == [file["uuid"], other["uuid"]]
    assert found(uuid=f"{file['uuid']},x") == found(name="план") == found(**{"size][from": 2}) == [file["uuid"]]
    assert found(**{"extensions][": "png"}) == [other["uuid"]]
    gone = bench.drive.request("DELETE", "/v1.0/files", json=[{"uuid": other["uuid"]}])
    assert (gone.status_code, found()) == (204, [file["uuid"]])
    assert found(deleted=1) == [other["uuid"]]


def test_files_hang_on_entities() -> None:
    """Put there, listed, taken away; elements of catalogs too."""
    bench = DriveBench()
    uuid = bench.upload(b"01234")["uuid"]
    (catalog,) = added(bench, "catalogs", {"name": "Профили"})
    (element,) = added(bench, f"catalogs/{catalog['id']}/elements", {"name": "Профиль"})
    for path in (f"leads/{bench.lead().id}/files", f"catalogs/{catalog['id']}/{element['id']}/files"):
        assert bench.get(path).status_code == 204
        put = bench.http.put(f"/api/v4/{path}", json=[{"file_uuid": uuid}])
        assert [file["file_uuid"] for file in embedded(put, "files")] == [uuid]
        assert [file["file_uuid"] for file in embedded(bench.get(path), "files")] == [uuid]
        assert delete(bench, path, [{"file_uuid": uuid}]).status_code == 204
        assert bench.get(path).status_code == 204
        unknown = bench.http.put(f"/api/v4/{path}", json=[{"file_uuid": "unknown"}])
        assert mistakes(unknown) == {"0": [("NotFound", "file_uuid")]}


# OAuth's extras


def test_an_old_api_key_buys_a_code(bench: Bench) -> None:
    """202, and the code arrives at the redirect URI."""
    sent = {"login": "anna@example.test", "api_key": "old-api-key", "client_uuid": "client", "client_secret": "secret"}
    assert bench.http.post("/oauth2/exchange_api_key", json=sent).status_code == 202
    (location,) = bench.sandbox.tokens.redirects
    told = httpx.URL(location).params
    assert told["from_exchange"] == "1"
    grant = {"client_id": "client", "client_secret": "secret", "redirect_uri": OURS.redirect_uri}
    grant |= {"grant_type": "authorization_code", "code": told["code"]}
    assert bench.http.post("/oauth2/access_token", json=grant).status_code == 200
    for wrong in ({"api_key": "x"}, {"login": "x"}, {"client_secret": "x"}, {"client_uuid": "x"}):
        assert bench.http.post("/oauth2/exchange_api_key", json=sent | wrong).status_code == 401
    assert len(bench.sandbox.tokens.redirects) == 1


def test_an_access_token_leads_to_its_account(bench: Bench) -> None:
    """The older way, at www."""
    told = bench.http.get("https://www.amocrm.ru/oauth2/account/subdomain").json()
    assert told == {"id": 32427762, "subdomain": "example", "domain": HOST, "top_level_domain": "ru"}
    bench.http.headers.pop("authorization")
    assert bench.http.get("https://www.amocrm.ru/oauth2/account/subdomain").status_code == 401
