"""Filters of amoCRM's lists: what goes over the wire is what the PHP library sends."""

from dataclasses import fields
from typing import Any

import pytest

from crm_relay.amocrm import filters as f
from crm_relay.brackets import encode


def query(where: f.Filter) -> str:
    return encode(where.parameters()).replace("%5B", "[").replace("%5D", "]").replace("%2C", ",")


CASES: list[tuple[f.Filter, str]] = [
    (f.LeadsFilter(), ""),
    (f.LeadsFilter(id=0), "filter[id][0]=0"),
    (f.LeadsFilter(id=["100", 5]), "filter[id][0]=100&filter[id][1]=5"),
    (f.LeadsFilter(id=[-1, 1, 2]), "filter[id][1]=1&filter[id][2]=2"),
    (f.LeadsFilter(id=[-1]), ""),
    (f.LeadsFilter(id=[]), ""),
    (f.LeadsFilter(name=["Окна", ""]), "filter[name][0]=%D0%9E%D0%BA%D0%BD%D0%B0"),
    (f.LeadsFilter(price=5), "filter[price]=5"),
    (f.LeadsFilter(price=f.Range(5, 7)), "filter[price][from]=5&filter[price][to]=7"),
    (f.LeadsFilter(price=-1), ""),
    (f.LeadsFilter(pipeline_id=[0, 3]), "filter[pipeline_id][1]=3"),
    (
        f.LeadsFilter(statuses=[f.Stage(pipeline_id=3, status_id=142)]),
        "filter[statuses][0][status_id]=142&filter[statuses][0][pipeline_id]=3",
    ),
    (
        f.LeadsFilter(custom_fields={7: ["a", "b"], 8: f.Range(1, 2), 9: 5}),
        (
            "filter[custom_fields_values][7][0]=a&filter[custom_fields_values][7][1]=b&filter[custom_fields_values][8][from]=1"
            "&filter[custom_fields_values][8][to]=2&filter[custom_fields_values][9][0]=5"
        ),
    ),
    (
        f.LeadsFilter(query=5, order=f.Order("updated_at"), limit=50, page=1),
        "limit=50&page=1&query=5&order[updated_at]=asc",
    ),
    (f.ContactsFilter(created_at=f.Range(1, 2)), "filter[created_at][from]=1&filter[created_at][to]=2"),
    (f.CompaniesFilter(updated_by=1), "filter[updated_by][0]=1"),
    (f.CustomersFilter(segments=[1], next_price=5), "filter[segments][0]=1&filter[next_price]=5"),
    (f.CatalogElementsFilter(id=1, query="x"), "id[0]=1&query=x"),
    (f.CatalogsFilter(type="invoices"), "type=invoices"),
    (f.ChatLinksFilter(contact_id=1, chat_id="c"), "contact_id=1&chat_id=c"),
    (f.CurrenciesFilter(limit=50, page=2), "limit=50&page=2"),
    (f.CustomFieldsFilter(type="text"), "filter[type][0]=text"),
    (
        f.LinksFilter(to_entity_id=1, to_entity_type="contacts"),
        "filter[to_entity_id]=1&filter[to_entity_type]=contacts",
    ),
    (f.EntitiesLinksFilter(entity_id=[1, 2]), "filter[entity_id][0]=1&filter[entity_id][1]=2"),
    (f.EventsFilter(type=["a", "b"], entity_id=[1, 2]), "filter[type]=a,b&filter[entity_id]=1,2"),
    (f.EventsFilter(created_by=[0, 5]), "filter[created_by]=0,5"),
    (f.EventsFilter(created_at=f.Range(1, 2)), "filter[created_at][from]=1&filter[created_at][to]=2"),
    (
        f.EventsFilter(value_after={"leads_statuses": [{"pipeline_id": 1, "status_id": 2}]}),
        "filter[value_after][leads_statuses][0][pipeline_id]=1&filter[value_after][leads_statuses][0][status_id]=2",
    ),
    (f.EventTypesFilter(language_code="ru"), "language_code=ru"),
    (f.FilesFilter(uuid=["a", "b"], deleted=True), "filter[uuid]=a,b&filter[deleted]=1"),
    (f.FilesFilter(deleted=False, size={"from": 1, "unit": "MB"}), "filter[size][from]=1&filter[size][unit]=MB"),
    (f.NotesFilter(note_type=["common"], entity_id=1), "filter[entity_id][0]=1&filter[note_type][0]=common"),
    (f.SourcesFilter(external_id="a"), "filter[external_id]=a"),
    (f.TemplatesFilter(external_id=["a", "b"]), "filter[external_id][0]=a&filter[external_id][1]=b"),
    (f.TagsFilter(name="vip", query="v"), "filter[name]=vip&query=v"),
    (f.TasksFilter(is_completed=False), "filter[is_completed]=0"),
    (f.TasksFilter(task_type_id=1), "filter[task_type_id][0]=1&filter[task_type][0]=1"),
    (f.TasksFilter(entity_id=1), ""),
    (f.TasksFilter(entity_id=1, entity_type="leads"), "filter[entity_type]=leads&filter[entity_id][0]=1"),
    (
        f.UnsortedFilter(uid="u", category=["sip", "forms"]),
        "filter[uid][0]=u&filter[category][0]=sip&filter[category][1]=forms",
    ),
    (f.UnsortedSummaryFilter(pipeline_id=3), "filter[pipeline_id]=3"),
    (f.WebhooksFilter(destination="https://example.com"), "filter[destination]=https%3A%2F%2Fexample.com"),
]


@pytest.mark.parametrize(("where", "sent"), CASES, ids=[f"{type(one).__name__}-{sent}"[:60] for one, sent in CASES])
def test_a_filter_is_what_the_php_library_sends(where: f.Filter, sent: str) -> None:
    """Name by name, index by index."""
    assert query(where) == sent


def test_every_filter_is_tried() -> None:
    """One that is added has to be added here."""
    kinds = {one for one in vars(f).values() if isinstance(one, type) and issubclass(one, f.Filter)}
    named = {kind for kind in kinds if not kind.__name__.startswith("_")}
    assert named - {type(where) for where, _ in CASES} == {f.Filter, f.PagesFilter}


@pytest.mark.parametrize("value", [True, "x", "1", [], object(), 1.5])
def test_what_no_time_can_be_is_not_sent(value: Any) -> None:
    """As in the PHP library: a number or a range, nothing else."""
    assert query(f.LeadsFilter(updated_at=value)) == ""


def test_every_field_has_a_place() -> None:
    """No field of a filter is forgotten on the wire."""
    for kind in vars(f).values():
        if isinstance(kind, type) and issubclass(kind, f.Filter):
            assert all(part.metadata["path"] for part in fields(kind))
