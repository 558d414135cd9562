"""What a deal becomes in the hub: by the rules of a route, and without guessing."""

from collections.abc import Mapping
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitrix_robot.mapping import (
    Definition,
    FileField,
    HubDeal,
    HubRows,
    Option,
    came_from,
    category_of,
    changes,
    communications,
    definitions,
    hub_card,
    hub_deal,
    hub_rows,
    marker,
    match_users,
    mistakes,
    product_ids,
    user_ids,
)
from crm_relay.bitrix24.files import FileLink
from crm_relay.settings import Bitrix24Products, Bitrix24Route

NOW = 1_760_000_000.0
MEMBER = "0123456789abcdef0123456789abcdef"
URL = "https://partner.bitrix24.ru/rest/file"
SOURCE = {
    "title": Definition("string"),
    "assignedById": Definition("user"),
    "opportunity": Definition("double"),
    "currencyId": Definition("crm_currency"),
    "comments": Definition("text"),
    "companyId": Definition("crm_company"),
    "sourceId": Definition("crm_status", options=(Option("1", "Партнёр"), Option("WEB", "Веб-сайт"))),
    "UF_TEXT": Definition("string"),
    "UF_TAGS": Definition("string", multiple=True),
    "UF_NUMBER": Definition("double"),
    "UF_MONEY": Definition("money"),
    "UF_DAY": Definition("date"),
    "UF_MOMENT": Definition("datetime"),
    "UF_FLAG": Definition("boolean"),
    "UF_USER": Definition("employee"),
    "UF_LIST": Definition(
        "enumeration",
        multiple=True,
        options=(Option("51", "Монтаж", "mounting"), Option("52", "Замер", "measuring"), Option("53", "Вывоз", "x")),
    ),
    "UF_FILE": Definition("file"),
    "UF_FILES": Definition("file", multiple=True),
}
HUB = {
    **{name: each for name, each in SOURCE.items() if name not in ("UF_LIST", "sourceId")},
    "id": Definition("integer", read_only=True),
    "sourceId": Definition("crm_status", options=(Option("7", "Партнёр"), Option("WEB", "Сайт"))),
    "UF_LIST": Definition(
        "enumeration",
        multiple=True,
        options=(Option("920", "замер ", "measuring"), Option("921", "Монтаж", "other"), Option("922", "Прочее", "")),
    ),
    "UF_ONE": Definition("enumeration", options=(Option("1", "Да"), Option("2", "Нет"))),
    "UF_WHOLE": Definition("integer"),
    "UF_SOURCE_PORTAL": Definition("string"),
    "UF_SOURCE_DEAL_ID": Definition("integer"),
    "UF_TRANSFER_DATE": Definition("datetime"),
}
DEAL = {
    "id": 662,
    "title": "Окна",
    "assignedById": 7,
    "opportunity": 1000.5,
    "currencyId": "RUB",
    "stageId": "C3:READY",
}


def route(**more: Any) -> Bitrix24Route:
    basic = {"source": "partner", "hub": "esb", "stages": {"C3:READY": "C5:NEW", "C3:WON": "WON"}}
    return msgspec.convert({**basic, **more}, Bitrix24Route)


def mapped(
    deal: Mapping[str, Any], *, responsible: int | None = None, stage: str = "C3:READY", **rules: Any
) -> HubDeal:
    return hub_deal(
        route(**rules),
        {**DEAL, **deal},
        SOURCE,
        HUB,
        stage=stage,
        portal="partner.bitrix24.ru",
        users={7: 21},
        responsible=responsible,
        now=NOW,
    )


def one(value: Any, name: str, rule: Any = None) -> tuple[Any, tuple[str, ...]]:
    """Map one value; what it becomes under the same name or the rule's, and what was left."""
    rule = rule or name
    target = rule if isinstance(rule, str) else rule["to"]
    deal = mapped({name: value}, fields={name: rule})
    return deal.fields.get(target), deal.left


# What every deal has


def test_a_deal_says_where_it_is_from_and_where_it_belongs() -> None:
    """Without any map: title, amount, stage with its pipeline, responsible, origin as the seed names it."""
    deal = mapped({"isManualOpportunity": "Y"})
    assert deal == HubDeal(
        fields={
            "title": "Окна",
            "opportunity": 1000.5,
            "currencyId": "RUB",
            "isManualOpportunity": "Y",
            "stageId": "C5:NEW",
            "categoryId": 5,
            "assignedById": 21,
            "UF_SOURCE_PORTAL": "partner.bitrix24.ru",
            "UF_SOURCE_DEAL_ID": 662,
            "UF_TRANSFER_DATE": "2025-10-09T08:53:20+00:00",
        },
        emptied=(),
        files=(),
        left=(),
    )


def test_origin_fields_have_the_names_of_the_route_or_none() -> None:
    """Their names are the hub's business."""
    deal = mapped({}, source_portal_field="UF_CRM_FROM", source_deal_field="", transfer_date_field="")
    assert deal.fields["UF_CRM_FROM"] == "partner.bitrix24.ru"
    assert not any(name.startswith(("UF_SOURCE", "UF_TRANSFER")) or not name for name in deal.fields)


def test_a_title_is_a_template() -> None:
    """With what a deal surely has; braces in a title are no template."""
    assert mapped({"title": "{x} Окна"}, title="{title} · {portal} №{id}").fields["title"] == (
        "{x} Окна · partner.bitrix24.ru №662"
    )
    assert mapped({"title": None}).fields["title"] == ""


def test_a_stage_knows_its_pipeline() -> None:
    """C5: before it, or nothing for the first one."""
    assert (category_of("C5:NEW"), category_of("NEW")) == (5, 0)
    assert mapped({}, stage="C3:WON").fields["categoryId"] == 0


@pytest.mark.parametrize(
    ("assigned", "responsible", "user"),
    [(7, None, 21), (7, 1, 21), (8, 1, 1), (8, None, None), (0, 1, 1), (None, 1, 1), ("7", None, 21)],
)
def test_a_deal_belongs_to_the_same_person_or_to_whom_the_route_says(
    assigned: object, responsible: int | None, user: int | None
) -> None:
    """By e-mail; nobody at all leaves it to Bitrix24."""
    assert mapped({"assignedById": assigned}, responsible=responsible).fields.get("assignedById") == user


# Values


@pytest.mark.parametrize(
    ("value", "name", "rule", "expected"),
    [
        ("№ 5", "UF_TEXT", None, "№ 5"),
        (["a", "b"], "UF_TAGS", None, ["a", "b"]),
        ("a", "UF_TEXT", "UF_TAGS", ["a"]),
        (["a"], "UF_TAGS", "UF_TEXT", "a"),
        (0, "UF_NUMBER", None, 0.0),
        ("12,50", "UF_TEXT", "UF_NUMBER", 12.5),
        (12.0, "UF_NUMBER", "UF_WHOLE", 12),
        ("100.50|USD", "UF_MONEY", None, "100.50|USD"),
        (100.5, "UF_NUMBER", "UF_MONEY", "100.5|RUB"),
        ("100.50|USD", "UF_MONEY", "UF_NUMBER", 100.5),
        ("2026-01-31T03:00:00+03:00", "UF_DAY", None, "2026-01-31"),
        ("2026-01-30T19:00:00-05:00", "UF_DAY", None, "2026-01-31"),
        ("2026-01-31T00:00:00+03:00", "UF_DAY", None, "2026-01-31"),
        ("2026-01-31", "UF_DAY", None, "2026-01-31"),
        ("2026-01-31T10:20:30+03:00", "UF_MOMENT", None, "2026-01-31T10:20:30+03:00"),
        ("2026-01-31T23:20:30+03:00", "UF_MOMENT", "UF_DAY", "2026-01-31"),
        (True, "UF_FLAG", None, "Y"),
        (False, "UF_FLAG", None, "N"),
        ("1", "UF_FLAG", None, "Y"),
        ("N", "UF_FLAG", None, "N"),
        (7, "UF_USER", None, 21),
        ("7", "UF_USER", None, 21),
        ([51, "52"], "UF_LIST", None, ["921", "920"]),
        ([52], "UF_LIST", {"to": "UF_LIST", "match": "xml_id"}, ["920"]),
        ([53], "UF_LIST", {"to": "UF_LIST", "values": {"Вывоз": "Прочее"}}, ["922"]),
        ([51], "UF_LIST", {"to": "UF_LIST", "values": {"Монтаж": "Прочее"}}, ["922"]),
        ([52, 51], "UF_LIST", "UF_TAGS", ["Замер", "Монтаж"]),
        ("нет", "UF_TEXT", "UF_ONE", "2"),
        ("", "UF_TEXT", {"to": "UF_ONE", "default": "Да"}, "1"),
        ("", "UF_TEXT", {"to": "UF_TEXT", "default": "—"}, "—"),
        ([], "UF_LIST", {"to": "UF_LIST", "default": "Прочее"}, ["922"]),
    ],
    ids=repr,
)
def test_a_value_becomes_what_the_hubs_field_holds(value: object, name: str, rule: Any, expected: object) -> None:
    """By both definitions; options by text, XML_ID or table, never by the other portal's id."""
    assert one(value, name, rule) == (expected, ())


@pytest.mark.parametrize(("value", "expected"), [("1", "7"), ("WEB", "WEB"), ("NEW_ONE", None)])
def test_a_dictionarys_entry_is_found_by_its_name_else_by_its_word(value: str, expected: str | None) -> None:
    """Own entries have numbers for ids, which mean something else in the other portal."""
    deal = mapped({"sourceId": value}, fields={"SOURCE_ID": "SOURCE_ID"})
    assert deal.fields.get("sourceId") == expected
    assert deal.left == (() if expected else ("SOURCE_ID",))


@pytest.mark.parametrize(
    ("value", "name", "rule", "expected"),
    [
        ([51, 53], "UF_LIST", None, ["921"]),
        ([53], "UF_LIST", {"to": "UF_LIST", "default": "Прочее"}, ["922"]),
        ([53, 51], "UF_LIST", {"to": "UF_LIST", "match": "xml_id"}, None),
        (["a", "b"], "UF_TAGS", "UF_TEXT", "a"),
        (8, "UF_USER", None, None),
        ("9999-12-31T23:00:00-05:00", "UF_DAY", None, None),
        ("завтра", "UF_TEXT", "UF_DAY", None),
        ("много", "UF_TEXT", "UF_NUMBER", None),
        ("NaN", "UF_TEXT", "UF_NUMBER", None),
        (1.5, "UF_NUMBER", "UF_WHOLE", None),
        ("x|RUB", "UF_TEXT", "UF_MONEY", None),
        ({"street": "x"}, "UF_TEXT", None, None),
        ("x", "UF_TEXT", "UF_NO_SUCH", None),
    ],
    ids=repr,
)
def test_what_finds_nothing_is_left_and_named(value: object, name: str, rule: Any, expected: object) -> None:
    """As relay.toml names it; the rest of the field goes, and an update leaves alone what it could not translate."""
    assert one(value, name, rule) == (expected, (name,))
    assert mapped({name: value}, fields={name: rule or name}).emptied == ()


EMPTY: Mapping[str, list[object]] = {
    "UF_TEXT": [None, "", [], {}, False],
    "UF_USER": [None, 0, "0", False],
    "UF_LIST": [None, [], False, [0], ["0"], ""],
    "UF_DAY": [False],
    "UF_MONEY": [""],
}


@pytest.mark.parametrize(("value", "name"), [(value, name) for name, values in EMPTY.items() for value in values])
def test_nothing_is_nothing(value: object, name: str) -> None:
    """Whatever PHP makes of it: not written, not left, but an update would empty it."""
    deal = mapped({name: value}, fields={name: name})
    assert name not in deal.fields
    assert (deal.emptied, deal.left) == ((name,), ())


@pytest.mark.parametrize("name", ["UF_NUMBER", "UF_MONEY"])
def test_a_number_beyond_all_numbers_is_left(name: str) -> None:
    """What somebody has typed into a text costs the deal nothing; nor does it where an update compares texts."""
    deal = {"id": 5, "UF_TEXT": "1e9999999", "currencyId": "RUB"}
    result = mapped(deal, fields={"UF_TEXT": name})
    assert name not in result.fields
    assert result.left == ("UF_TEXT",)
    assert changes(result, {}, HUB)["title"]
    wanted = HubDeal({"UF_TEXT": "1e9999999"}, (), (), ())
    assert changes(wanted, {"UF_TEXT": "1e9999999"}, HUB) == {}


def test_constants_are_written_as_they_are_or_as_options_by_text() -> None:
    """Lists too."""
    constants = {"SOURCE_ID": "партнёр", "UF_LIST": ["Прочее", "920"], "UF_TEXT": "x", "UF_WHOLE": 5}
    fields = mapped({}, constants=constants).fields
    assert (fields["sourceId"], fields["UF_LIST"]) == ("7", ["922", "920"])
    assert (fields["UF_TEXT"], fields["UF_WHOLE"]) == ("x", 5)


def test_the_seeds_map_of_ids_is_possible() -> None:
    """A partner's company as a number in a field of the hub."""
    assert mapped({"companyId": 12}, fields={"COMPANY_ID": "UF_WHOLE"}).fields["UF_WHOLE"] == 12


def test_files_are_not_fields() -> None:
    """They are told apart, with their links; an empty field has none."""
    deal = mapped(
        {"UF_FILE": {"id": 5, "urlMachine": URL}, "UF_FILES": []}, fields={"UF_FILE": "UF_FILES", "UF_FILES": "UF_FILE"}
    )
    assert deal.files == (FileField("UF_FILE", "UF_FILES", True, (FileLink(5, URL),)),)
    assert not {"UF_FILE", "UF_FILES"} & set(deal.fields)
    assert (deal.emptied, deal.left) == ((), ())


ANYTHING: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
NAMES = st.sampled_from([name for name in HUB if name.startswith("UF_")])


@given(st.sampled_from([name for name in SOURCE if name.startswith("UF_")]), NAMES, ANYTHING)
def test_any_value_is_written_left_or_nothing(name: str, target: str, value: Any) -> None:
    """Nothing is raised, and what is written has the shape of the hub's field."""
    deal = mapped({name: value}, fields={name: target})
    if target in deal.fields and not target.startswith(("UF_SOURCE", "UF_TRANSFER")):
        assert isinstance(deal.fields[target], list) is HUB[target].multiple
        changes(deal, {target: value}, HUB)


@given(st.dictionaries(st.text(), st.fixed_dictionaries({}, optional={"type": ANYTHING, "items": ANYTHING})))
def test_any_definitions_are_read(fields: dict[str, Any]) -> None:
    """A portal may say anything of its fields."""
    assert set(definitions(fields)) == set(fields)


# Definitions and people


def test_definitions_are_put_together_from_three_answers() -> None:
    """Fields, the XML_IDs of their options, the entries of dictionaries."""
    fields: dict[str, dict[str, Any]] = {
        "title": {"type": "string", "isRequired": True, "isReadOnly": False, "isMultiple": False},
        "id": {"type": "integer", "isReadOnly": True},
        "sourceId": {"type": "crm_status"},
        "honorific": {"type": "crm_status", "statusType": "X"},
        "UF_A": {"type": "enumeration", "isMultiple": True, "items": [{"ID": "44", "VALUE": "Да"}]},
        "UF_B": {"type": "enumeration", "items": [{"ID": 1, "VALUE": "x"}]},
        "UF_C": {"type": "enumeration", "items": []},
    }
    user_fields = [{"FIELD_NAME": "UF_A", "LIST": [{"ID": "44", "VALUE": "Да", "XML_ID": "yes"}]}]
    statuses = [
        {"ENTITY_ID": "SOURCE", "STATUS_ID": "WEB", "NAME": "Сайт"},
        {"ENTITY_ID": "X", "STATUS_ID": "Y", "NAME": "Г-жа"},
    ]
    assert definitions(fields, user_fields=user_fields, statuses=statuses) == {
        "title": Definition("string", required=True),
        "id": Definition("integer", read_only=True),
        "sourceId": Definition("crm_status", options=(Option("WEB", "Сайт"),)),
        "honorific": Definition("crm_status", options=(Option("Y", "Г-жа"),)),
        "UF_A": Definition("enumeration", multiple=True, options=(Option("44", "Да", "yes"),)),
        "UF_B": Definition("enumeration", options=(Option("1", "x"),)),
        "UF_C": Definition("enumeration"),
    }


def test_people_are_the_same_by_their_address() -> None:
    """Whatever its case; who has none is nobody."""
    source: list[dict[str, Any]] = [{"id": 7, "EMAIL": "Boris@example.com "}, {"id": 8, "EMAIL": ""}, {"id": 9}]
    hub: list[dict[str, Any]] = [{"id": 21, "EMAIL": "boris@example.com"}, {"id": 22, "EMAIL": ""}, {"id": 23}]
    assert match_users(source, hub) == {7: 21}


def test_the_users_that_matter_are_known_before() -> None:
    """The responsible and those in fields of the map; not somebody in a field that nobody maps."""
    deal = {**DEAL, "UF_USER": ["8", 9, "x", 0]}
    assert user_ids(route(fields={"UF_USER": "UF_USER"}), deal, SOURCE) == {7, 8, 9}
    assert user_ids(route(), deal, SOURCE) == {7}


# The mark, and updates


def test_d26_a_deal_tells_where_it_came_from() -> None:
    """D26: so it never goes back."""
    marked = marker(MEMBER, "deal", 662, "main")
    assert marked == {"originatorId": f"b24:{MEMBER}", "originId": "deal:662:main"}
    assert marker(MEMBER, "contact", 5) == {"originatorId": f"b24:{MEMBER}", "originId": "contact:5"}
    assert came_from(marked) == MEMBER
    for own in ({}, {"originatorId": None}, {"originatorId": "1c"}):
        assert came_from(own) is None


def test_an_update_takes_what_differs() -> None:
    """Spellings are no differences; what is empty in the source is emptied; the hub's own stage and people stay."""
    fields = ("UF_NUMBER", "UF_DAY", "UF_MOMENT", "UF_FLAG", "UF_LIST", "UF_TEXT", "UF_TAGS", "UF_USER")
    source = {
        "UF_NUMBER": 5,
        "UF_DAY": "2026-01-31",
        "UF_MOMENT": "2026-01-31T10:00:00+03:00",
        "UF_FLAG": True,
        "UF_LIST": [51, 52],
        "UF_TEXT": None,
        "UF_TAGS": [],
        "UF_USER": 7,
    }
    wanted = mapped(source, fields=dict(zip(fields, fields, strict=True)))
    same = {
        "title": "Окна",
        "opportunity": "1000.50",
        "currencyId": "RUB",
        "stageId": "C5:WON",
        "categoryId": 9,
        "assignedById": 99,
        "UF_NUMBER": "5.0",
        "UF_DAY": "2026-01-31T03:00:00+03:00",
        "UF_MOMENT": "2026-01-31T07:00:00+00:00",
        "UF_FLAG": True,
        "UF_LIST": [921, 920],
        "UF_TEXT": "",
        "UF_TAGS": False,
        "UF_USER": "21",
        "UF_SOURCE_PORTAL": "partner.bitrix24.ru",
        "UF_SOURCE_DEAL_ID": "662",
    }
    assert changes(wanted, {**same, "UF_TAGS": []}, HUB, except_for=["UF_TRANSFER_DATE"]) == {}
    other = {
        **same,
        "title": "Двери",
        "opportunity": 1000.51,
        "UF_FLAG": False,
        "UF_LIST": [920, 921],
        "UF_TEXT": "old",
        "UF_TAGS": ["old"],
    }
    assert changes(wanted, other, HUB, except_for=["UF_TRANSFER_DATE"]) == {
        "title": "Окна",
        "opportunity": 1000.5,
        "UF_FLAG": "Y",
        "UF_LIST": ["921", "920"],
        "UF_TEXT": "",
        "UF_TAGS": [],
    }


# Product rows


ROW = {
    "id": 1,
    "ownerId": 662,
    "productId": 101,
    "productName": "Окно",
    "price": 90.0,
    "priceNetto": 100.0,
    "quantity": 2,
    "discountTypeId": 2,
    "discountRate": 10,
    "discountSum": 10.0,
    "taxRate": 20,
    "taxIncluded": "Y",
    "measureCode": 796,
    "measureName": "шт",
    "sort": 10,
    "xmlId": "",
    "type": 1,
    "storeId": None,
}


def test_a_row_goes_with_its_price_discount_and_tax() -> None:
    """Only what can be set; the product is the hub's."""
    new = {
        "productId": 2001,
        "productName": "Окно",
        "price": 90.0,
        "quantity": 2,
        "discountTypeId": 2,
        "discountRate": 10,
        "taxRate": 20,
        "taxIncluded": "Y",
        "measureCode": 796,
        "sort": 10,
    }
    assert hub_rows([ROW], {101: 2001}) == HubRows([new], ())


def test_a_product_that_the_hub_does_not_have_becomes_free_text_and_is_named() -> None:
    """The order stays; what was free text before is nothing to report."""
    rows: list[dict[str, Any]] = [
        {**ROW, "productId": 102, "productName": "Монтаж"},
        {"productId": 0, "productName": "Доставка", "price": 5, "taxRate": None},
        {"productId": 103, "productName": None},
        {**ROW},
    ]
    found = hub_rows(rows, {101: 2001})
    assert found.left == ("Монтаж", "103")
    assert [(row.get("productId"), row["productName"]) for row in found.rows] == [
        (None, "Монтаж"),
        (None, "Доставка"),
        (None, "—"),
        (2001, "Окно"),
    ]
    assert found.rows[1] == {"productName": "Доставка", "price": 5}


@pytest.mark.parametrize(
    ("row", "discount"),
    [
        ({"discountTypeId": 1, "discountRate": 5, "discountSum": 7}, {"discountTypeId": 1, "discountSum": 7}),
        ({"discountTypeId": "2", "discountRate": 5, "discountSum": 7}, {"discountTypeId": 2, "discountRate": 5}),
        ({"discountTypeId": 2, "discountRate": 0}, {}),
        ({"discountTypeId": None, "discountRate": 5}, {}),
        ({}, {}),
    ],
)
def test_a_discount_is_of_one_kind(row: Mapping[str, Any], discount: Mapping[str, Any]) -> None:
    """The other value is computed."""
    (new,) = hub_rows([{"productName": "x", **row}], {}).rows
    assert new == {"productName": "x", **discount}


SOURCE_PRODUCTS: list[dict[str, Any]] = [
    {"id": 101, "xmlId": "window", "name": "Окно  ПВХ"},
    {"id": 102, "xmlId": "sill", "name": "Подоконник"},
    {"id": 103, "xmlId": "", "name": ""},
]
HUB_PRODUCTS: list[dict[str, Any]] = [
    {"id": 2001, "xmlId": "window", "name": "Подоконник"},
    {"id": 2002, "xmlId": "sill", "name": "окно пвх"},
    {"id": 2003, "xmlId": "sill", "name": ""},
    {"id": 2004, "xmlId": "", "name": "x"},
]


@pytest.mark.parametrize(
    ("match", "expected"),
    [("none", {101: 9}), ("xml_id", {101: 9}), ("name", {101: 9, 102: 2001})],
)
def test_products_are_matched_by_the_table_first(match: str, expected: Mapping[int, int]) -> None:
    """Then by XML_ID or name; what fits two, or nothing, fits none."""
    rules = {"table": {"101": 9}, "match": match, "source_catalogs": [15], "hub_catalogs": [25]}
    assert product_ids(msgspec.convert(rules, Bitrix24Products), SOURCE_PRODUCTS, HUB_PRODUCTS) == expected


def test_products_are_matched_by_xml_id() -> None:
    """Without a table."""
    rules = {"match": "xml_id", "source_catalogs": [15], "hub_catalogs": [25]}
    assert product_ids(msgspec.convert(rules, Bitrix24Products), SOURCE_PRODUCTS, HUB_PRODUCTS) == {101: 2001}


# Contacts and companies


def test_a_card_that_is_new_in_the_hub_has_its_names_and_communications() -> None:
    """And its mark; ids of the other portal stay where they are."""
    contact = {
        "id": 5,
        "name": "Оля",
        "lastName": "Петрова",
        "secondName": None,
        "companyId": 7,
        "assignedById": 7,
        "fm": [
            {"id": 1, "typeId": "PHONE", "valueType": "WORK", "value": "+380501234567"},
            {"id": 2, "typeId": "EMAIL", "valueType": "WORK", "value": "olya@example.com"},
            {"id": 3, "typeId": "EMAIL", "valueType": "HOME", "value": ""},
            {"id": 4, "typeId": "", "valueType": "HOME", "value": "x"},
        ],
    }
    assert communications(contact, "PHONE") == ["+380501234567"]
    assert communications(contact, "EMAIL") == ["olya@example.com"]
    assert communications({}, "EMAIL") == []
    marked = marker(MEMBER, "contact", 5)
    assert hub_card(contact, marked=marked, users={7: 21}, responsible=None) == {
        "name": "Оля",
        "lastName": "Петрова",
        "fm": [
            {"typeId": "PHONE", "valueType": "WORK", "value": "+380501234567"},
            {"typeId": "EMAIL", "valueType": "WORK", "value": "olya@example.com"},
        ],
        "assignedById": 21,
        **marked,
    }


def test_a_phone_is_looked_for_once() -> None:
    """However often it stands there."""
    phones = [{"typeId": "PHONE", "value": value} for value in ("1", " 1", "2", None)]
    assert communications({"fm": phones}, "PHONE") == ["1", "2"]


# The check of a route


def mistakes_of(**rules: Any) -> list[str]:
    return mistakes(route(**rules), SOURCE, HUB, source_stages={"C3:READY", "C3:WON"}, hub_stages={"C5:NEW", "WON"})


def test_a_route_that_fits_has_no_mistakes() -> None:
    """Fields, constants, stages, the fields of the origin."""
    fields = {"UF_TEXT": "UF_TEXT", "UF_FILE": "UF_FILES", "COMPANY_ID": "UF_WHOLE"}
    assert mistakes_of(fields=fields, constants={"SOURCE_ID": "WEB"}) == []


@pytest.mark.parametrize(
    ("rules", "mistake"),
    [
        ({"stages": {"C3:X": "C5:NEW"}}, "stages.C3:X: the source has no such stage"),
        ({"stages": {"C3:READY": "C5:X"}}, "stages.C3:READY: the hub has no stage C5:X"),
        ({"fields": {"UF_X": "UF_TEXT"}}, "fields.UF_X: the source has no such field"),
        ({"fields": {"UF_TEXT": "UF_X"}}, "fields.UF_TEXT: the hub has no field UF_X"),
        ({"fields": {"UF_TEXT": "ID"}}, "fields.UF_TEXT: the hub's ID cannot be written"),
        ({"fields": {"UF_FILE": "UF_TEXT"}}, "fields.UF_FILE: file does not fit UF_TEXT, which is string"),
        ({"fields": {"UF_TEXT": "UF_FILE"}}, "fields.UF_TEXT: string does not fit UF_FILE, which is file"),
        (
            {"fields": {"UF_LIST": "UF_LIST"}},
            'fields.UF_LIST: UF_LIST has no option for "Вывоз", but "замер ", "Монтаж", "Прочее"',
        ),
        (
            {"fields": {"UF_LIST": {"to": "UF_LIST", "values": {"Вывоз": "Дрон"}}}},
            'fields.UF_LIST: UF_LIST has no option "Дрон", but "замер ", "Монтаж", "Прочее"',
        ),
        (
            {"fields": {"UF_LIST": {"to": "UF_LIST", "default": "Прочее", "values": {"Вывос": "Прочее"}}}},
            'fields.UF_LIST: the source has no option "Вывос", but "Монтаж", "Замер", "Вывоз"',
        ),
        (
            {"constants": {"UF_LIST": ("Прочее", "Дрон")}},
            'constants.UF_LIST: UF_LIST has no option "Дрон", but "замер ", "Монтаж", "Прочее"',
        ),
        (
            {"constants": {"SOURCE_ID": "NOPE"}},
            'constants.SOURCE_ID: SOURCE_ID has no option "NOPE", but "Партнёр", "Сайт"',
        ),
        (
            {"fields": {"UF_TEXT": {"to": "UF_ONE", "default": "Может быть"}}},
            'fields.UF_TEXT: UF_ONE has no option "Может быть", but "Да", "Нет"',
        ),
        ({"constants": {"UF_X": 1}}, "constants.UF_X: the hub has no field UF_X"),
        ({"source_portal_field": "UF_X"}, "source_portal_field: the hub has no field UF_X"),
    ],
)
def test_a_mistake_in_a_route_is_named(rules: dict[str, Any], mistake: str) -> None:
    """By its key, and what is wrong."""
    assert mistakes_of(**rules) == [mistake]


def test_a_default_helps_options_out() -> None:
    """Then nothing is lost without a word."""
    assert mistakes_of(fields={"UF_LIST": {"to": "UF_LIST", "default": "Прочее"}}) == []


def test_what_the_hub_requires_must_come_from_somewhere() -> None:
    """A field of the map, a constant, or what every deal has."""
    hub = {**HUB, "UF_TEXT": Definition("string", required=True), "title": Definition("string", required=True)}

    def found(**rules: Any) -> list[str]:
        return mistakes(route(**rules), SOURCE, hub, source_stages=["C3:READY", "C3:WON"], hub_stages=["C5:NEW", "WON"])

    assert found() == ["fields: the hub requires UF_TEXT"]
    assert found(constants={"UF_TEXT": "x"}) == found(fields={"UF_NUMBER": "UF_TEXT"}) == []
