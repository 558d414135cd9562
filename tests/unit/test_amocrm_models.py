"""Models of amoCRM's entities: what is kept, what counts as a change, what is written."""

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from crm_relay.amocrm import models, notes
from crm_relay.amocrm.models import LOST, Contact, CustomFieldGroup, Lead, Model, Note, Tag, Unsorted, User
from crm_relay.amocrm.notes import PARAMS, CallParams, Params

READ: dict[str, Any] = {
    "id": 1,
    "name": "Окна",
    "price": 100,
    "responsible_user_id": 7,
    "loss_reason_id": None,
    "something_new": {"a": [1]},
    "custom_fields_values": [
        {
            "field_id": 11,
            "field_name": "Телефон",
            "field_code": "PHONE",
            "field_type": "multitext",
            "values": [{"value": "+380501234567", "enum_id": 5, "enum_code": "WORK"}, {"value": "2", "enum_id": 6}],
        },
        {"field_id": 12, "field_name": "Замер", "field_type": "date", "values": [{"value": 1_700_000_000}]},
        {"field_id": 13, "field_name": "Чудо", "field_type": "miracle", "values": [{"spell": "x"}]},
    ],
    "_links": {"self": {"href": "https://example.amocrm.ru/api/v4/leads/1"}},
    "_embedded": {"tags": [{"id": 3, "name": "vip", "color": None}], "contacts": [{"id": 4, "is_main": True}]},
}
EVERY_MODEL = [
    one for one in vars(models).values() if isinstance(one, type) and issubclass(one, Model) and one is not Model
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def lead() -> Lead:
    return Lead.read(READ)


# Reading


def test_what_is_embedded_is_beside_the_rest() -> None:
    """Tags and contacts are models, and keys that nobody knows are kept."""
    read = lead()
    assert read.tags is not None
    assert read.contacts is not None
    assert [tag.name for tag in read.tags] == ["vip"]
    assert [contact.id for contact in read.contacts] == [4]
    assert (read.model_extra or {})["something_new"] == {"a": [1]}


@pytest.mark.parametrize("model", EVERY_MODEL, ids=lambda model: model.__name__)
@settings(max_examples=15)
@given(data=st.data())
def test_any_object_can_be_read(model: type[Model], data: st.DataObject) -> None:
    """A field of a type that nobody expects stays as it came, and nothing that was read counts as changed."""
    names = st.sampled_from([field.alias or name for name, field in model.model_fields.items()])
    answer = data.draw(st.dictionaries(names, JSON, max_size=4))
    if model is models.ComplexLead:
        answer["id"] = 1
    read = model.read(answer)
    assert read.changes() == {}
    for name, value in answer.items():
        if isinstance(value, int) and not isinstance(value, bool):
            key = next((key for key, field in model.model_fields.items() if field.alias == name), name)
            assert getattr(read, key) == value


def test_an_odd_value_is_found_by_the_name_that_we_use() -> None:
    """Also where amoCRM's name could not be ours."""
    odd: Any = CustomFieldGroup.read({"id": "g", "fields": 0})
    assert (odd.id, odd.fields_, odd.changes()) == ("g", 0, {})


def test_what_is_made_by_hand_is_held_to_types() -> None:
    """A mistake is told where it is made."""
    with pytest.raises(ValidationError):
        Lead(name=5)  # type: ignore[arg-type]
    with pytest.raises(ValidationError):
        lead().price = "many"  # type: ignore[assignment]


def test_a_price_may_have_a_fraction() -> None:
    """price_with_minor_units wins over the rounded price, and is written as the price."""
    read = Lead.read({"id": 1, "price": 5, "price_with_minor_units": 5.5})
    assert (read.price, read.changes()) == (5.5, {})
    read.price = 7.25
    assert read.changes() == {"price": 7.25}
    assert Lead.read({"price": 5, "price_with_minor_units": None}).price == 5


# Changes


def test_an_update_has_what_changed_alone() -> None:
    """Not the whole entity: somebody else may have changed the rest meanwhile."""
    read = lead()
    assert read.changes() == {}
    read.name = "Двери"
    read.price = 100  # as it was
    assert read.changes() == {"name": "Двери"}


def test_a_new_entity_has_what_was_set() -> None:
    """Including None, which clears; and what belongs under _embedded goes there."""
    made = Lead(name="Окна", price=None, tags=[Tag(name="vip")], contacts=[Contact(id=4, is_main=True)])
    assert made.changes() == {
        "name": "Окна",
        "price": None,
        "_embedded": {"tags": [{"name": "vip"}], "contacts": [{"id": 4, "is_main": True}]},
    }
    assert CustomFieldGroup(name="Замер", fields=[1]).changes() == {"name": "Замер", "fields": [1]}
    assert "category" not in Unsorted(category="sip", source_uid="1").changes()


def test_changes_inside_are_seen() -> None:
    """Of a list or an object that was changed where it is."""
    read = models.Role.read({"id": 1, "rights": {"leads": {"view": "A"}}, "users": [{"id": 1}]})
    assert read.rights is not None
    assert read.rights.leads is not None
    read.rights.leads["view"] = "D"
    assert read.changes() == {"rights": {"leads": {"view": "D"}}}


def test_what_was_written_is_no_change_any_more() -> None:
    """And what amoCRM says of it is taken over."""
    read = lead()
    read.name = "Двери"
    read.custom_fields["PHONE"] = "3"
    read.settle({"id": 1, "updated_at": 9, "request_id": "0", "_links": {}})
    assert (read.changes(), read.updated_at) == ({}, 9)
    read.name = "Окна"
    assert read.changes() == {"name": "Окна"}


def test_reading_anew_keeps_what_was_not_written_yet() -> None:
    """What changed at amoCRM is taken over, what changed here still counts."""
    read = lead()
    read.name = "Двери"
    read.sync({"id": 1, "name": "Чужое", "price": 200})
    assert (read.name, read.price, read.changes()) == ("Двери", 200, {"name": "Двери"})
    assert read.tags is not None  # the answer had no word of them


def test_why_a_lead_was_lost_is_said_of_a_lost_one() -> None:
    """AmoCRM takes loss_reason_id with the stage "lost" alone."""
    read = lead()
    read.loss_reason_id = 5
    assert read.changes() == {}
    read.status_id = LOST
    assert read.changes() == {"loss_reason_id": 5, "status_id": LOST}


def test_a_printed_model_shows_what_it_has() -> None:
    """And no password."""
    assert repr(Lead(name="Окна")) == "Lead(name='Окна')"
    assert "secret" not in repr(models.User(name="Пётр", password="secret"))


# Tags


def test_tags_can_be_replaced_and_cleared() -> None:
    """The whole set."""
    read = lead()
    read.tags = [Tag(id=9)]
    assert read.changes() == {"_embedded": {"tags": [{"id": 9}]}}
    read.tags = None
    assert read.changes() == {"_embedded": {"tags": None}}


def test_tags_can_be_added_and_removed_beside_others() -> None:
    """Without the set, which another writer may be changing."""
    read = lead()
    read.add_tags("new", 5)
    read.remove_tags("vip")
    assert read.changes() == {"tags_to_add": [{"name": "new"}, {"id": 5}], "tags_to_delete": [{"name": "vip"}]}
    read.settle({"id": 1})
    assert read.changes() == {}
    assert [(tag.id, tag.name) for tag in read.tags or ()] == [(None, "new"), (5, None)]


# Custom fields


def test_a_custom_field_is_read_by_id_code_and_name() -> None:
    """The first value, or all of them with their options."""
    fields = lead().custom_fields
    assert fields[11] == fields["PHONE"] == fields["Телефон"] == "+380501234567"
    assert [(one.value, one.enum_id, one.enum_code) for one in fields.all("PHONE")] == [
        ("+380501234567", 5, "WORK"),
        ("2", 6, None),
    ]
    assert fields["Замер"] == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
    assert fields.all("Чудо")[0].raw == {"spell": "x"}
    assert set(fields) == {11, 12, 13}
    assert fields.get("Нет такого") is None
    with pytest.raises(KeyError):
        fields["Нет такого"]


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("+7", [{"value": "+7"}]),
        (5, [{"value": 5}]),
        (True, [{"value": True}]),
        (Decimal("1.50"), [{"value": "1.50"}]),
        (date(2026, 1, 2), [{"value": "2026-01-02T00:00:00+00:00"}]),
        (datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC), [{"value": "2026-01-02T03:04:05+00:00"}]),
        ({"enum_id": 5}, [{"enum_id": 5}]),
        ({"catalog_id": 1, "catalog_element_id": 2}, [{"catalog_id": 1, "catalog_element_id": 2}]),
        ({"name": "ООО", "vat_id": "1"}, [{"value": {"name": "ООО", "vat_id": "1"}}]),
        ({"entity_id": 3}, [{"value": {"entity_id": 3}}]),
        (["+7", {"value": "+8", "enum_code": "MOB"}], [{"value": "+7"}, {"value": "+8", "enum_code": "MOB"}]),
        ([], None),
        (None, None),
    ],
)
def test_whatever_a_field_takes_can_be_set(value: object, written: object) -> None:
    """Plain values, items, objects, lists of these; nothing clears the field."""
    made = Lead()
    made.custom_fields["PHONE"] = value
    assert made.changes() == {"custom_fields_values": [{"field_code": "PHONE", "values": written}]}


def test_only_the_fields_that_changed_are_written() -> None:
    """By id where it is known; a name that is not, is left for whoever knows the account's fields."""
    read = lead()
    read.custom_fields["Телефон"] = "3"
    del read.custom_fields["Замер"]
    read.custom_fields["Этаж"] = 5
    assert read.changes() == {
        "custom_fields_values": [
            {"field_id": 11, "values": [{"value": "3"}]},
            {"field_id": 12, "values": None},
            {"field_name": "Этаж", "values": [{"value": 5}]},
        ]
    }
    assert "Замер" not in read.custom_fields


def test_values_that_were_read_can_be_set_again() -> None:
    """One of several phones is taken away, the other one stays as it is."""
    read = lead()
    read.custom_fields["PHONE"] = read.custom_fields.all("PHONE")[1:]
    (held,) = read.changes()["custom_fields_values"]
    assert held["values"] == [{"value": "2", "enum_id": 6}]


def test_a_time_without_a_zone_is_refused() -> None:
    """Nobody knows which moment it is."""
    with pytest.raises(ValueError, match="time zone"):
        lead().custom_fields["Замер"] = datetime(2026, 1, 2)  # noqa: DTZ001


# Notes


@pytest.mark.parametrize("note_type", PARAMS)
def test_a_note_has_the_params_of_its_type(note_type: str) -> None:
    """What is not listed is kept too."""
    names = [field.alias or name for name, field in PARAMS[note_type].model_fields.items()]
    read = Note.read({"id": 1, "note_type": note_type, "params": {**dict.fromkeys(names), "more": 1}})
    assert type(read.params) is PARAMS[note_type]
    assert read.changes() == {}
    assert (read.params.model_extra or {})["more"] == 1


def test_notes_of_any_type_are_harmless() -> None:
    """Unknown ones, ones whose params are odd, and ones without."""
    assert Note.read({"note_type": "miracle", "params": {"a": 1}}).params == Params.model_validate({"a": 1})
    assert type(Note.read({"note_type": "call_in", "params": {"duration": "long"}}).params) is Params
    assert Note.read({"note_type": "chat", "params": []}).params == Params()
    assert notes.params_of(None, {"x": 1}) == Params.model_validate({"x": 1})


def test_a_note_is_written_with_what_was_set() -> None:
    """Params as a model or as an object."""
    assert Note.common(5, "Привет").changes() == {
        "entity_id": 5,
        "note_type": "common",
        "params": {"text": "Привет"},
    }
    call = Note(entity_id=5, note_type="call_in", params=CallParams(phone="1", duration=5))
    assert call.changes()["params"] == {"phone": "1", "duration": 5}


def test_a_password_is_forgotten_once_it_is_written() -> None:
    """Nothing keeps it that may be logged, stored or sent again."""
    user = User(name="Пётр", email="petr@example.com", password="a-long-password")
    user.settle({"id": 7, "name": "Пётр", "email": "petr@example.com", "request_id": "0"})
    assert (user.id, user.password, user.changes()) == (7, None, {})
    assert "a-long-password" not in repr(vars(user)) + repr(user.__pydantic_private__)


PARTS = [
    (models.Account, "task_types", [{"id": 1, "name": "Звонок", "code": "FOLLOW_UP"}], models.TaskType),
    (models.Account, "users_groups", [{"id": 0, "name": "Отдел", "uuid": None}], models.UsersGroup),
    (models.Account, "amojo_rights", {"can_direct": True, "new": 1}, models.AmojoRights),
    (models.Account, "datetime_settings", {"timezone": "Europe/Moscow"}, models.DateTimeSettings),
    (models.Account, "invoices_settings", {"lang": "ru", "invoices_catalog_id": 7}, models.InvoicesSettings),
    (models.Status, "descriptions", [{"id": 1, "level": "newbie", "description": "x"}], models.StatusDescription),
    (models.Source, "services", [{"type": "whatsapp", "pages": [{"id": "1"}]}], models.SourceService),
    (models.ChatTemplate, "buttons", [{"type": "url", "text": "Сайт", "url": "https://example.com"}], models.Button),
    (models.ChatTemplate, "attachment", {"type": "file", "id": "u"}, models.Attachment),
    (models.File, "previews", [{"download_link": "https://example.com", "width": 5}], models.FilePreview),
    (models.CatalogElement, "warning", {"message": "x"}, models.InvoiceWarning),
    (models.Widget, "settings_template", [{"key": "login", "is_required": True}], models.SettingTemplate),
]


@pytest.mark.parametrize(("whole", "name", "raw", "kind"), PARTS, ids=lambda value: getattr(value, "__name__", ""))
def test_what_is_inside_has_a_model_too(whole: type[Model], name: str, raw: Any, kind: type[Model]) -> None:
    """It is written as it was read; PHP's empty list for an empty object harms nobody."""
    read = whole.read({"id": 7, name: raw})
    part = getattr(read, name)
    assert isinstance(part[0] if isinstance(part, list) else part, kind)
    assert read.changes() == {}
    written = read.written()
    assert (written.get(name) or written["_embedded"][name]) == raw
    assert whole.read({"id": 7, name: []}).changes() == {}


@pytest.mark.parametrize("category", models.METADATA)
def test_what_is_told_of_an_incoming_lead_is_typed_by_its_category(category: str) -> None:
    """Also of a lead that complex creation makes, where the category is inside."""
    raw = {"received_at": 5, "source_name": "x", "form_id": "1"}
    read = Unsorted.read({"uid": "u", "category": category, "metadata": raw})
    assert type(read.metadata) is models.METADATA[category]
    assert read.written()["metadata"] == raw
    lead = Lead.model_validate({"name": "Окна", "metadata": {"category": category, "form_id": "1"}})
    assert type(lead.metadata) is models.METADATA[category]
    assert lead.written()["_embedded"]["metadata"] == {"category": category, "form_id": "1"}
    assert type(Unsorted.read({"category": "new", "metadata": raw}).metadata) is models.Metadata
