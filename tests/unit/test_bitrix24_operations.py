"""What can be done in Bitrix24: the parameters as its documentation has them, and the shapes that come back."""

from collections.abc import Callable
from typing import Any

import pytest

from crm_relay.bitrix24 import directory, items, products, reports, robots
from crm_relay.bitrix24.client import Access, Operation, Unusable, batch
from crm_relay.outcomes import OutcomeUnknown
from tests.exchanges import drive, says

NOW = 1_760_000_000.0
ACCESS = Access("example.bitrix24.ru", webhook="1/s3cret")
UF = {"useOriginalUfNames": "Y"}
ROWS = [{"productId": 5, "price": 10.5}]


def row(operation: Operation[Any], method: str, params: object, *shapes: tuple[object, object]) -> Any:
    return pytest.param(operation, method, params, shapes, id=method)


@pytest.mark.parametrize(
    ("operation", "method", "params", "shapes"),
    [
        row(
            items.get(items.DEAL, 5),
            "crm.item.get",
            {"entityTypeId": 2, "id": 5, **UF},
            ({"item": {"id": 5, "title": "x"}}, {"id": 5, "title": "x"}),
        ),
        row(
            items.find_by_origin(items.DEAL, "b24:0a", "deal:5"),
            "crm.item.list",
            {
                "entityTypeId": 2,
                "select": ["id"],
                "filter": {"=originatorId": "b24:0a", "=originId": "deal:5", ">id": 0},
                "order": {"id": "ASC"},
                "start": -1,
                **UF,
            },
            ({"items": [{"id": 7}, {"id": 9}]}, [{"id": 7}, {"id": 9}]),
            ({"items": []}, []),
            ([], []),
        ),
        row(
            items.add(items.DEAL, {"title": "x", "UF_CRM_1": "y"}),
            "crm.item.add",
            {"entityTypeId": 2, "fields": {"title": "x", "UF_CRM_1": "y"}, **UF},
            ({"item": {"id": 5}}, {"id": 5}),
        ),
        row(
            items.update(items.CONTACT, 5, {"post": "x"}),
            "crm.item.update",
            {"entityTypeId": 3, "id": 5, "fields": {"post": "x"}, **UF},
            ({"item": {"id": "5"}}, {"id": 5}),
        ),
        row(
            items.fields(items.COMPANY),
            "crm.item.fields",
            {"entityTypeId": 4, **UF},
            ({"fields": {"title": {"type": "string"}}}, {"title": {"type": "string"}}),
        ),
        row(
            items.deal_user_fields(),
            "crm.deal.userfield.list",
            {"order": {"ID": "ASC"}},
            ([{"ID": "1"}], [{"ID": "1"}]),
        ),
        row(
            items.find_by_communication("PHONE", ["+380501234567"], "CONTACT"),
            "crm.duplicate.findbycomm",
            {"type": "PHONE", "values": ["+380501234567"], "entity_type": "CONTACT"},
            ({"CONTACT": [2297, "275"]}, [275, 2297]),
            ([], []),
            ({"COMPANY": [1]}, []),
        ),
        row(
            items.stage_history_after(17, filters={"STAGE_ID": ["C3:READY"]}),
            "crm.stagehistory.list",
            {
                "entityTypeId": 2,
                "filter": {"STAGE_ID": ["C3:READY"], ">ID": 17},
                "order": {"ID": "ASC"},
                "start": -1,
            },
            ({"items": [{"ID": "18", "OWNER_ID": "5"}]}, [{"ID": "18", "OWNER_ID": "5", "id": 18}]),
        ),
        row(
            products.deal_rows(5),
            "crm.item.productrow.list",
            {"filter": {"=ownerType": "D", "=ownerId": 5}, "order": {"id": "ASC"}, "start": 0},
            ({"productRows": ROWS}, ROWS),
            ({"productRows": []}, []),
        ),
        row(
            products.set_deal_rows(5, ROWS),
            "crm.item.productrow.set",
            {"ownerType": "D", "ownerId": 5, "productRows": ROWS},
            ({"productRows": ROWS}, ROWS),
        ),
        row(
            products.catalog_products(15, 0, filters={"@xmlId": ["a"]}),
            "catalog.product.list",
            {
                "select": ["id", "iblockId", "xmlId", "name"],
                "filter": {"@xmlId": ["a"], "iblockId": 15, ">id": 0},
                "order": {"id": "ASC"},
                "start": -1,
            },
            ({"products": [{"id": 5, "xmlId": "a"}]}, [{"id": 5, "xmlId": "a"}]),
        ),
        row(
            directory.users_by_email(["a@example.com"]),
            "user.get",
            {"FILTER": {"EMAIL": ["a@example.com"], "ACTIVE": True}},
            ([{"ID": "1"}], [{"ID": "1", "id": 1}]),
        ),
        row(directory.users_by_id([1]), "user.get", {"FILTER": {"ID": [1]}}, ([], []), (None, [])),
        row(directory.statuses(), "crm.status.list", {"order": {"ID": "ASC"}}, ([{"ID": "1"}], [{"ID": "1"}])),
        row(
            directory.statuses("SOURCE"),
            "crm.status.list",
            {"order": {"ID": "ASC"}, "filter": {"ENTITY_ID": "SOURCE"}},
            ([], []),
        ),
        row(
            reports.add_comment(5, "✅"),
            "crm.timeline.comment.add",
            {"fields": {"ENTITY_ID": 5, "ENTITY_TYPE": "deal", "COMMENT": "✅"}},
            (17, 17),
            ("17", 17),
        ),
        row(
            reports.comments(5),
            "crm.timeline.comment.list",
            {
                "filter": {"ENTITY_ID": 5, "ENTITY_TYPE": "deal"},
                "select": ["ID", "COMMENT"],
                "order": {"ID": "DESC"},
            },
            ([{"ID": "1", "COMMENT": "x"}], [{"ID": "1", "COMMENT": "x"}]),
        ),
        row(
            reports.notify(7, "✅", tag="deal-5"),
            "im.notify.system.add",
            {"USER_ID": 7, "MESSAGE": "✅", "TAG": "deal-5", "CLIENT_ID": "crm-relay"},
            (3, None),
            (False, None),
        ),
        row(
            reports.answer_robot("token", {"hub_id": "9"}, log="✅"),
            "bizproc.event.send",
            {"EVENT_TOKEN": "token", "RETURN_VALUES": {"hub_id": "9"}, "LOG_MESSAGE": "✅"},
            (True, None),
        ),
        row(
            robots.add_robot("r", "https://x.example/", "Имя", user_id=1, properties={"route": {}}, returns={"id": {}}),
            "bizproc.robot.add",
            {
                "CODE": "r",
                "HANDLER": "https://x.example/",
                "NAME": "Имя",
                "AUTH_USER_ID": 1,
                "USE_SUBSCRIPTION": "Y",
                "PROPERTIES": {"route": {}},
                "RETURN_PROPERTIES": {"id": {}},
                "DOCUMENT_TYPE": ["crm", "CCrmDocumentDeal", "DEAL"],
                "FILTER": {"INCLUDE": [["crm", "CCrmDocumentDeal"]]},
            },
            (True, None),
        ),
        row(robots.list_robots(), "bizproc.robot.list", {}, (["a"], ["a"]), ([], [])),
        row(robots.delete_robot("a"), "bizproc.robot.delete", {"CODE": "a"}, (True, None)),
    ],
)
def test_an_operation_is_its_method_its_parameters_and_its_result(
    operation: Operation[Any], method: str, params: object, shapes: tuple[tuple[object, object], ...]
) -> None:
    """As the documentation has them, in all the shapes that PHP gives a result."""
    assert (operation.method, operation.params) == (method, params)
    assert shapes
    for answered, read in shapes:
        assert operation.read(answered) == read


@pytest.mark.parametrize(
    ("operation", "result"),
    [
        (items.get(items.DEAL, 5), []),
        (items.get(items.DEAL, 5), None),
        (items.get(items.DEAL, 5), {"item": []}),
        (items.get(items.DEAL, 5), {"item": {"id": 0}}),
        (items.get(items.DEAL, 5), {"item": 5}),
        (items.add(items.DEAL, {}), True),
        (items.list_after(items.DEAL, 0), {"items": [{"title": "x"}]}),
        (items.list_after(items.DEAL, 0), {"items": "x"}),
        (items.stage_history_after(0), {"items": [5]}),
        (items.find_by_communication("EMAIL", ["a@example.com"], "CONTACT"), {"CONTACT": "5"}),
        (items.find_by_communication("EMAIL", ["a@example.com"], "CONTACT"), {"CONTACT": [None]}),
        *((reports.add_comment(5, "x"), result) for result in (0, False, True, None, "x", -1, 1.5)),
        (products.catalog_products(1, 0, filters={}), {"products": [{}]}),
        (products.deal_rows(5), {"productRows": 5}),
        (robots.list_robots(), {"a": 1}),
        (robots.list_robots(), [1]),
    ],
)
def test_a_result_that_cannot_be_is_none(operation: Operation[Any], result: object) -> None:
    """An item without an id, above all, is no proof that there is one."""
    with pytest.raises(Unusable):
        operation.read(result)


def test_an_item_without_an_id_leaves_a_creation_in_doubt() -> None:
    """In a batch, too."""
    answer = says(200, {"result": {"result": {"deal": {"item": {"title": "x"}}}, "result_error": []}})
    result = drive(batch(ACCESS, {"deal": items.add(items.DEAL, {})}, now=NOW), answer).result
    assert result is not None
    assert type(result["deal"]) is OutcomeUnknown


@pytest.mark.parametrize("values", [[], ["+380501234567"] * 21])
def test_a_search_takes_twenty_values(values: list[str]) -> None:
    """Bitrix24's own limit."""
    with pytest.raises(AssertionError):
        items.find_by_communication("PHONE", values, "CONTACT")


@pytest.mark.parametrize(
    ("name", "new"),
    [
        ("TITLE", "title"),
        ("STAGE_ID", "stageId"),
        ("ASSIGNED_BY_ID", "assignedById"),
        ("UTM_SOURCE", "utmSource"),
        ("IS_MANUAL_OPPORTUNITY", "isManualOpportunity"),
        ("BEGINDATE", "begindate"),
        ("PARENT_ID_128", "parentId128"),
        ("DATE_CREATE", "createdTime"),
        ("UF_CRM_1747309879", "UF_CRM_1747309879"),
        ("UF_SOURCE_PORTAL", "UF_SOURCE_PORTAL"),
        ("stageId", "stageId"),
    ],
)
def test_a_fields_name_is_found_in_crm_item(name: str, new: str) -> None:
    """People know the old names; custom fields have but one."""
    assert items.item_name(name) == new
    assert name == new or items.field_name(new) == name


READERS: list[Callable[[], Operation[Any]]] = [directory.statuses, robots.list_robots]


@pytest.mark.parametrize("operation", READERS)
def test_what_is_looked_up_changes_nothing(operation: Callable[[], Operation[Any]]) -> None:
    """So a lost answer is simply asked for again."""
    assert operation().reads
