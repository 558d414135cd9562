"""What a note says: word for word, what changed to what, and nothing that a stranger's text could make of it."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amo_webhook.note_text import LONGEST_VALUE, MOST_CHANGES, Names, differences, note_text, snapshot
from crm_relay.amocrm.resources import Card
from crm_relay.delivery.memory import MemoryStore
from crm_relay.settings import AmoCrmTexts, ConfigurationError, load_settings
from tests.relay import Clock

TEXTS = AmoCrmTexts()
NAMES = Names(
    users={7: "Анна Администратор", 8: "Борис Менеджер"},
    pipelines={1: "Воронка", 2: "Повторные продажи"},
    stages={(1, 10): "Первичный контакт", (1, 11): "Переговоры", (2, 20): "Новый запрос", (1, 142): "Успешно"},
    time_zone=ZoneInfo("Europe/Moscow"),
)
ADDED_AT, UPDATED_AT = 1_760_000_000, 1_760_003_661


def lead(**more: Any) -> dict[str, Any]:
    known = {
        "id": 5,
        "name": "Окна",
        "price": 1000,
        "responsible_user_id": 7,
        "pipeline_id": 1,
        "status_id": 10,
        "created_at": ADDED_AT,
        "updated_at": UPDATED_AT,
        "custom_fields_values": None,
        "_embedded": {"tags": [], "companies": []},
    }
    return known | more


def field(kind: str, *values: object, name: str = "Поле", id_: int = 1) -> dict[str, Any]:
    """A custom field as the API gives it; what is no mapping is a value."""
    shown = [value if isinstance(value, dict) else {"value": value} for value in values]
    return {"field_id": id_, "field_name": name, "field_code": None, "field_type": kind, "values": shown}


def note(
    entity: dict[str, Any],
    before: dict[str, Any] | None = None,
    *,
    card: Card = "leads",
    added: bool = False,
    texts: AmoCrmTexts = TEXTS,
    names: Names = NAMES,
) -> str:
    """The note of an entity, after it was as `before`."""
    known = None if before is None else snapshot(before)
    return note_text(card, entity, known, added=added, texts=texts, names=names)


def changes(before: dict[str, Any], after: dict[str, Any], **more: Any) -> list[str]:
    return note(after, before, **more).splitlines()[1:]


# Word for word


@pytest.mark.parametrize(
    ("card", "added", "text"),
    [
        ("leads", True, "Создана сделка: Окна. Ответственный: Анна Администратор. Время добавления: {at}"),
        ("leads", False, "Изменена сделка: Окна. Время изменения: {at}"),
        ("contacts", True, "Создан контакт: Окна. Ответственный: Анна Администратор. Время добавления: {at}"),
        ("contacts", False, "Изменён контакт: Окна. Время изменения: {at}"),
        ("companies", True, "Создана компания: Окна. Ответственный: Анна Администратор. Время добавления: {at}"),
        ("companies", False, "Изменена компания: Окна. Время изменения: {at}"),
    ],
)
def test_a_note_says_what_happened(card: Card, text: str, *, added: bool) -> None:
    """The six texts as they are delivered, times in the account's time zone."""
    at = "09.10.2025 11:53:20" if added else "09.10.2025 12:54:21"
    assert note(lead(), card=card, added=added) == text.format(at=at)


def test_a_changed_lead_says_which_fields_changed_to_what() -> None:
    """One a line, below the first."""
    after = lead(name="Двери", price=1500, responsible_user_id=8, status_id=11, _embedded={"tags": [{"name": "vip"}]})
    assert note(after, lead()) == (
        "Изменена сделка: Двери. Время изменения: 09.10.2025 12:54:21\n"
        "Название: Окна → Двери\n"
        "Бюджет: 1 000 → 1 500\n"
        "Ответственный: Анна Администратор → Борис Менеджер\n"
        "Этап: Первичный контакт → Переговоры\n"
        "Теги: — → vip"
    )


def test_the_first_sight_names_no_differences() -> None:
    """There is nothing to compare with."""
    assert "\n" not in note(lead(price=1500))
    assert "\n" not in note(lead(price=1500), added=True)


def test_what_changed_before_the_addition_was_told_is_told_with_it() -> None:
    """Hooks overtake each other: that a lead is new may come after its first change."""
    assert note(lead(price=1500), lead(), added=True).endswith("\nБюджет: 1 000 → 1 500")


def test_nothing_changed_that_we_look_at() -> None:
    """The time alone is no difference, nor what we do not compare."""
    assert changes(lead(), lead(updated_at=UPDATED_AT + 1, closed_at=1, score=5, group_id=3)) == []


def test_the_time_zone_is_the_accounts() -> None:
    """Kamchatka is twelve hours ahead, and a day may have begun there."""
    names = Names({}, {}, {}, ZoneInfo("Asia/Kamchatka"))
    assert note(lead(), names=names).endswith("09.10.2025 21:54:21")
    day = changes(lead(), lead(custom_fields_values=[field("date", 1_760_011_200)]), names=names)
    assert day == ["Поле: — → 10.10.2025"]


def test_texts_are_a_deployers() -> None:
    """Any of the five facts, in any words."""
    texts = AmoCrmTexts(
        lead_added="{id}/{name}/{responsible}/{created_at}/{updated_at}",
        lead_changed="{id} «{name}»",
        changed_field="{field}: «{after}» (было «{before}»)",
        price="Цена",
        yes="yes",
    )
    assert note(lead(), added=True, texts=texts) == (
        "5/Окна/Анна Администратор/09.10.2025 11:53:20/09.10.2025 12:54:21"
    )
    after = lead(price=None, custom_fields_values=[field("checkbox", True)])
    assert note(after, lead(), texts=texts).splitlines() == [
        "5 «Окна»",
        "Цена: «—» (было «1 000»)",
        "Поле: «yes» (было «—»)",
    ]


# Names


def test_what_nobody_can_name_is_shown_by_its_id() -> None:
    """Users, pipelines and stages that were deleted, or that we may not read."""
    nobody = Names({}, {}, {}, NAMES.time_zone)
    assert "Ответственный: 7." in note(lead(), added=True, names=nobody)
    after = lead(responsible_user_id=8, pipeline_id=2, status_id=20)
    assert changes(lead(), after, names=nobody) == ["Ответственный: 7 → 8", "Воронка: 1 → 2", "Этап: 10 → 20"]


def test_a_lead_in_another_pipeline() -> None:
    """Pipeline and stage are named, also where the stage has the same id in both: «won» is 142 everywhere."""
    assert changes(lead(), lead(pipeline_id=2, status_id=20)) == [
        "Воронка: Воронка → Повторные продажи",
        "Этап: Первичный контакт → Новый запрос",
    ]
    assert changes(lead(status_id=142), lead(status_id=142, pipeline_id=2))[1:] == ["Этап: Успешно → 142"]


def test_two_users_of_one_name_are_two() -> None:
    """What is compared are ids."""
    names = Names({7: "Иван", 8: "Иван"}, {}, {}, NAMES.time_zone)
    assert changes(lead(), lead(responsible_user_id=8), names=names) == ["Ответственный: Иван → Иван"]


def test_an_entity_without_a_name_or_a_responsible_user() -> None:
    """A lead may have an empty name, and an account may have lost a user."""
    bare = {"id": 5, "name": "", "created_at": ADDED_AT}
    assert note(bare, added=True) == "Создана сделка: #5. Ответственный: . Время добавления: 09.10.2025 11:53:20"
    assert changes(lead(), bare)[0] == "Название: Окна → —"


# Amounts


@pytest.mark.parametrize(
    ("price", "shown"),
    [
        ({"price": 0}, "0"),
        ({"price": 999}, "999"),
        ({"price": 1500}, "1 500"),
        ({"price": 12_345_678}, "12 345 678"),
        ({"price": -1500}, "-1 500"),
        ({"price": 2**60}, "1 152 921 504 606 846 976"),
        ({"price": 1500, "price_with_minor_units": 1500.5}, "1 500,50"),
        ({"price": 1500, "price_with_minor_units": 1500.0}, "1 500"),
        ({"price": 1500, "price_with_minor_units": None}, "1 500"),
        ({"price": 0, "price_with_minor_units": 0.01}, "0,01"),
        ({"price": None}, "—"),
    ],
    ids=repr,
)
def test_a_price_is_grouped_and_knows_its_minor_units(price: dict[str, Any], shown: str) -> None:
    """«1 500,50», where amoCRM says both 1500 and 1500.5."""
    assert changes(lead(price=7), lead(**price)) == [f"Бюджет: 7 → {shown}"]


# Custom fields


LEGAL = {"name": "ООО «Окна»", "entity_type": 2, "vat_id": "7701234567", "kpp": None, "address": "Москва\nТверская, 1"}
FILE = {"file_uuid": "b26bbe6d", "version_uuid": "f7432b58", "file_name": "договор.pdf", "file_size": 5}


@pytest.mark.parametrize(
    ("kind", "values", "shown"),
    [
        ("text", ["Перезвонить"], "Перезвонить"),
        ("textarea", ["строка\r\n  другая\tстрока"], "строка другая строка"),
        ("url", ["https://example.test/?a=1&b=2"], "https://example.test/?a=1&b=2"),
        ("numeric", ["123.5"], "123.5"),
        ("numeric", [0], "0"),
        ("monetary", ["12500.50"], "12 500,50"),
        ("monetary", ["about 5"], "about 5"),
        ("price", [1500], "1 500"),
        ("checkbox", [True], "да"),
        ("checkbox", [False], "нет"),
        ("select", [{"value": "Сайт", "enum_id": 1, "enum_code": "site"}], "Сайт"),
        ("multiselect", [{"value": "Монтаж", "enum_id": 1}, {"value": "Доставка", "enum_id": 2}], "Монтаж, Доставка"),
        ("radiobutton", [{"value": "Карта", "enum_id": 1}], "Карта"),
        (
            "multitext",
            [{"value": "+7900", "enum_code": "WORK"}, {"value": "+7901", "enum_code": "MOB"}],
            "+7900, +7901",
        ),
        ("date", [1_760_000_000], "09.10.2025"),
        ("date_time", [1_760_000_000], "09.10.2025 11:53:20"),
        ("birthday", [-123_456_789], "02.02.1966"),
        ("date", ["2025-10-09T00:00:00+03:00"], "2025-10-09T00:00:00+03:00"),
        ("date", [10**15], str(10**15)),
        (
            "smart_address",
            [{"value": "Москва", "enum_code": "city"}, {"value": "RU", "enum_code": "country"}],
            "Москва, RU",
        ),
        ("legal_entity", [LEGAL], "ООО «Окна», 7701234567, Москва Тверская, 1"),
        ("file", [FILE], "договор.pdf"),
        ("chained_list", [{"catalog_id": 1, "catalog_element_id": 2}], "#2"),
        ("tracking_data", ["utm"], "utm"),
        ("something_new", ["as it is"], "as it is"),
    ],
    ids=repr,
)
def test_each_type_of_field_is_shown_as_people_read_it(kind: str, values: list[Any], shown: str) -> None:
    """What the API gives, as the card would show it; both where it appears and where it goes."""
    values = [{"value": value} if value in (LEGAL, FILE) else value for value in values]
    filled = lead(custom_fields_values=[field(kind, *values)])
    assert changes(lead(), filled) == [f"Поле: — → {shown}"]
    assert changes(filled, lead()) == [f"Поле: {shown} → —"]


def test_fields_are_told_apart_by_their_ids() -> None:
    """Also where two have one name; a field that was only renamed has not changed."""
    before = lead(custom_fields_values=[field("text", "a", id_=1), field("text", "b", id_=2)])
    after = lead(custom_fields_values=[field("text", "c", id_=2), field("text", "a", id_=1, name="Иначе")])
    assert changes(before, after) == ["Поле: b → c"]


def test_a_field_without_values_is_an_empty_one() -> None:
    """UTM fields come so, and cleared ones."""
    shapes: list[dict[str, Any]] = [{"values": None}, {"values": []}, {"values": [{}]}]
    for nothing in shapes:
        empty = lead(custom_fields_values=[field("text") | nothing])
        assert changes(lead(), empty) == []
        assert changes(lead(custom_fields_values=[field("text", "a")]), empty) == ["Поле: a → —"]


def test_a_field_without_a_name_is_shown_by_its_id() -> None:
    """Nothing has no title."""
    assert changes(lead(), lead(custom_fields_values=[field("text", "a", name="")])) == ["#1: — → a"]


def test_the_order_of_tags_is_no_difference() -> None:
    """They are a set."""
    before, after = (lead(_embedded={"tags": [{"name": name} for name in names]}) for names in ("ab", "ba"))
    assert changes(before, after) == []


# Bounds


def test_a_long_value_is_cut_and_a_change_behind_the_cut_still_noticed() -> None:
    """A novel in a field fills neither the card nor the table."""
    novel = "x" * 100_000
    before, after = (lead(custom_fields_values=[field("textarea", text)]) for text in (novel, novel + "y"))
    shown = "x" * (LONGEST_VALUE - 1) + "…"
    assert changes(lead(), before) == [f"Поле: — → {shown}"]
    assert changes(before, after) == [f"Поле: {shown} → {shown}"]
    assert changes(before, lead(custom_fields_values=[field("textarea", novel)])) == []
    kept = snapshot(before)["fields"]["1"]
    assert kept == {
        "name": "Поле",
        "type": "textarea",
        "text": shown,
        "digest": hashlib.sha256(novel.encode()).hexdigest()[:16],
    }


@pytest.mark.parametrize(
    ("title", "fields"),
    [
        ("Название", lambda last: {"name": "Ж" * LONGEST_VALUE + last}),
        ("Теги", lambda last: {"_embedded": {"tags": [{"name": "Ж" * LONGEST_VALUE}, {"name": f"Я{last}"}]}}),
    ],
)
def test_a_name_and_tags_that_differ_behind_the_cut_differ(title: str, fields: Callable[[str], dict[str, Any]]) -> None:
    """What is shown is the same, and the note still says which of them changed."""
    (line,) = changes(lead(**fields("а")), lead(**fields("б")))
    assert line.startswith(f"{title}: Ж")
    assert len(snapshot(lead(**fields("а")))[{"Название": "name", "Теги": "tags"}[title]]) == LONGEST_VALUE


def test_a_value_of_just_the_length_is_whole() -> None:
    """It is not cut for nothing."""
    text = "x" * LONGEST_VALUE
    assert changes(lead(), lead(custom_fields_values=[field("text", text)])) == [f"Поле: — → {text}"]


def test_a_note_names_so_many_changes_and_counts_the_others() -> None:
    """An import that fills everything makes one note that can be read."""
    filled = lead(custom_fields_values=[field("text", "x" * 500, name="n" * 500, id_=number) for number in range(300)])
    lines = note(filled, lead()).splitlines()
    assert len(lines) == 1 + MOST_CHANGES + 1
    assert lines[-1] == f"… (+{300 - MOST_CHANGES})"
    assert len("\n".join(lines)) < 20_000


def test_a_full_entity_fits_into_an_item_of_the_table() -> None:
    """DynamoDB takes 400 KB."""
    fields = [field("textarea", "я" * 500, name="ж" * 500, id_=10**9 + number) for number in range(300)]
    tags = [{"name": "ю" * 50} for _ in range(200)]
    kept = snapshot(lead(name="э" * 5000, custom_fields_values=fields, _embedded={"tags": tags}))
    assert len(json.dumps(kept, ensure_ascii=False).encode()) < 350_000


def test_a_snapshot_is_what_the_table_takes() -> None:
    """No float, keys that are texts; and what comes back from there compares equal."""
    before = lead(
        price_with_minor_units=1500.5,
        custom_fields_values=[field("numeric", 1.5), field("checkbox", True, id_=2), field("date", 5, id_=3)],
    )
    kept = snapshot(before)
    stored = MemoryStore(Clock()).put("amo#main#lead#5", kept, replaces=None).attributes
    assert differences(stored, kept, texts=TEXTS, names=NAMES) == []
    assert differences(json.loads(json.dumps(kept)), kept, texts=TEXTS, names=NAMES) == []


def test_a_snapshot_of_an_earlier_version_may_lack_things() -> None:
    """What it did not know is empty."""
    assert differences({}, snapshot(lead()), texts=TEXTS, names=NAMES)[:2] == [
        "Название: — → Окна",
        "Бюджет: — → 1 000",
    ]


# Inert


EVIL = [
    '=HYPERLINK("https://evil.example","x")',
    "+1+cmd|' /C calc'!A0",
    "@SUM(1)",
    "<script>alert(1)</script>",
    "<b>жирно</b> &amp; &lt;",
    "{name} {0} {} {{x}} %s ${x}",
    "{name.__class__.__mro__}",
    "[url](https://evil.example)",
]


@pytest.mark.parametrize("text", EVIL)
def test_b26_a_strangers_text_stays_text(text: str) -> None:
    """B26: a formula, HTML, a template: shown letter for letter, never acted on, never first in a note."""
    hostile = lead(
        name=text, custom_fields_values=[field("text", text, name=text)], _embedded={"tags": [{"name": text}]}
    )
    names = Names({7: text}, {}, {}, NAMES.time_zone)
    assert note(hostile, added=True, names=names) == (
        f"Создана сделка: {text}. Ответственный: {text}. Время добавления: 09.10.2025 11:53:20"
    )
    assert changes(lead(), hostile) == [f"Название: Окна → {text}", f"Теги: — → {text}", f"{text}: — → {text}"]


@pytest.mark.parametrize(
    "break_",
    ["\n", "\r\n", "\r", "\v", "\f", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029", "\0", "\x1b[2K"],
    ids=ascii,
)
def test_a_strangers_text_makes_no_line_of_its_own(break_: str) -> None:
    """Else a name could tell of changes that never were."""
    forged = f"Окна{break_}Бюджет: 1 → 2"
    text = note(lead(name=forged, custom_fields_values=[field("text", forged, name=forged)]), lead(), card="leads")
    assert len(text.splitlines()) == 3
    assert text.isprintable() or text.replace("\n", "").isprintable()


@pytest.mark.parametrize(
    "sign",
    ["\u202e", "\u2066", "\u202a", "\u2069", "\u061c", "\u200b", "\u200e", "\u200f", "\u2060", "\ufeff"],
    ids=ascii,
)
def test_a_strangers_text_turns_no_direction(sign: str) -> None:
    """Else what follows it would read backwards."""
    assert sign not in note(lead(name=f"a{sign}b"), lead())


@pytest.mark.parametrize("name", ["Оля 😀", "👩‍👩‍👧", "עברית", "naïve", "Ω≈ç"])
def test_ordinary_text_of_any_language_is_left_alone(name: str) -> None:
    """Only what cannot be seen is taken away."""
    assert f"Изменена сделка: {name}. " in note(lead(name=name))


# Whatever the API gives

VALUES = st.one_of(
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(codec="utf-8"), max_size=20),
    st.none(),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.sampled_from(["name", "file_name", "entity_id"]), st.one_of(st.none(), st.text(max_size=5))),
)
ITEMS = st.one_of(
    st.fixed_dictionaries({"value": VALUES}, optional={"enum_id": st.integers(), "enum_code": st.none()}),
    st.fixed_dictionaries({"catalog_id": st.integers(), "catalog_element_id": st.integers()}),
    st.just({}),
)
KINDS = st.sampled_from(["text", "date", "date_time", "birthday", "checkbox", "monetary", "price", "file", "new", None])
FIELDS = st.fixed_dictionaries(
    {"field_id": st.integers(1, 5), "field_type": KINDS, "values": st.one_of(st.none(), st.lists(ITEMS, max_size=3))},
    optional={"field_name": st.one_of(st.none(), st.text(max_size=10)), "field_code": st.none()},
)
IDS = st.one_of(st.none(), st.integers(0, 12))
ENTITIES = st.fixed_dictionaries(
    {"id": st.integers(1, 10**12)},
    optional={
        "name": st.one_of(st.none(), st.text(st.characters(codec="utf-8"), max_size=30)),
        "price": st.one_of(st.none(), st.integers()),
        "price_with_minor_units": st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False)),
        "responsible_user_id": IDS,
        "pipeline_id": IDS,
        "status_id": IDS,
        "created_at": st.one_of(st.none(), st.integers()),
        "updated_at": st.one_of(st.none(), st.integers()),
        "custom_fields_values": st.one_of(st.none(), st.lists(FIELDS, max_size=4)),
        "_embedded": st.one_of(
            st.none(),
            st.fixed_dictionaries(
                {},
                optional={
                    "tags": st.one_of(
                        st.none(),
                        st.lists(
                            st.fixed_dictionaries({"id": IDS}, optional={"name": st.one_of(st.none(), st.text())})
                        ),
                    )
                },
            ),
        ),
    },
)


@given(st.sampled_from(["leads", "contacts", "companies"]), ENTITIES, st.one_of(st.none(), ENTITIES), st.booleans())
def test_any_entity_makes_a_note(
    card: Card,
    entity: dict[str, Any],
    before: dict[str, Any] | None,
    added: bool,
) -> None:
    """Nothing that the API could give raises; the note is never empty, and its lines are ours."""
    text = note(entity, before, card=card, added=added)
    first, *rest = text.split("\n")
    assert first
    assert text.splitlines() == [first, *rest]
    if before is None:
        assert rest == []
    MemoryStore(Clock()).put("snapshot", snapshot(entity), replaces=None)


@given(ENTITIES)
def test_an_entity_does_not_differ_from_itself(entity: dict[str, Any]) -> None:
    """Seen twice, it names no differences."""
    assert changes(entity, entity) == []


# The templates


@pytest.fixture
def configured(tmp_path: Path) -> Callable[[str], AmoCrmTexts]:
    def load(line: str) -> AmoCrmTexts:
        path = tmp_path / "relay.toml"
        path.write_text(f"[amocrm.texts]\n{line}\n", "utf-8")
        return load_settings(path).amocrm.texts

    return load


@pytest.mark.parametrize("name", ["lead_added", "lead_changed", "contact_changed", "company_added"])
@pytest.mark.parametrize(
    "text", ["{nmae}", "{field}", "{before}", "{}", "{0}", "{name", "name}", "{name:d}", "{name[0]}"]
)
def test_a_template_that_could_not_be_filled_is_found_at_once(
    configured: Callable[[str], AmoCrmTexts], name: str, text: str
) -> None:
    """Not when the first note is written; the message names the key and what may stand there."""
    with pytest.raises(ConfigurationError, match=rf"relay.toml: amocrm.texts: {name}: .*\{{name\}}"):
        configured(f'{name} = "{text}"')


@pytest.mark.parametrize("text", ["{name}", "{}", "{before", "{after!x}"])
def test_the_line_of_a_change_has_facts_of_its_own(configured: Callable[[str], AmoCrmTexts], text: str) -> None:
    """What is changed has a field, a before and an after."""
    with pytest.raises(ConfigurationError, match=r"changed_field: .*\{before\}"):
        configured(f'changed_field = "{text}"')


def test_titles_are_no_templates(configured: Callable[[str], AmoCrmTexts]) -> None:
    """A brace in one is a brace."""
    texts = configured('price = "Бюджет {₽}"')
    assert changes(lead(), lead(price=5), texts=texts) == ["Бюджет {₽}: 1 000 → 5"]


@pytest.mark.parametrize("name", ["lead_added", "changed_field", "price", "yes"])
@pytest.mark.parametrize("text", ["", "  "])
def test_a_text_is_not_empty(configured: Callable[[str], AmoCrmTexts], name: str, text: str) -> None:
    """There is no empty note, and no change without a title."""
    with pytest.raises(ConfigurationError, match=f"{name}: must not be empty"):
        configured(f'{name} = "{text}"')


@given(st.text(st.characters(codec="utf-8", categories=["L", "P", "N", "S", "Zs"]), max_size=20), ENTITIES)
def test_a_template_that_is_taken_can_be_filled(template: str, entity: dict[str, Any]) -> None:
    """Whatever a deployer writes is refused at once, or makes notes."""
    try:
        texts = AmoCrmTexts(lead_changed=template + "{name}", changed_field=template + "{after}")
    except ValueError:
        return
    note(entity, lead(), texts=texts)
