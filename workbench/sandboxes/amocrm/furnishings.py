"""What an account is furnished with, for reading: itself, its users, pipelines and custom fields."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

from workbench.sandboxes.amocrm.account import CLOSED, LOST, WON, Pipeline, Status, User
from workbench.sandboxes.amocrm.calls import NOT_ALLOWED, NOT_FOUND, Call, hal, page
from workbench.sandboxes.amocrm.custom_fields import view_definition
from workbench.sandboxes.amocrm.filters import find
from workbench.sandboxes.wire import SandboxResponse

_ORDERS = frozenset({"id", "sort"})


def account(call: Call, customers_mode: str) -> SandboxResponse:
    """`api/v4/account`."""
    if call.request.method != "GET":
        return NOT_ALLOWED
    us = call.account
    roots = {
        "version": 12,
        "is_api_filter_enabled": True,
        "uuid": "5f1b2f3a-3d62-4f0e-9d5c-1f2a3b4c5d6e",
        "amojo_id": "9a1c7f62-0f0b-4d5c-8f4e-2b6a0c9d7e13",
        "drive_url": call.drive,
    }
    embedded = {
        "amojo_rights": {"can_direct": True, "can_create_groups": True},
        "invoices_settings": {"lang": "ru", "invoices_catalog_id": None},
        "datetime_settings": _times(us.time_zone, call.now),
        "users_groups": [{"id": 0, "name": "Отдел продаж", "uuid": None}],
        "task_types": [
            {"id": 1, "name": "Связаться", "color": None, "icon_id": None, "code": "FOLLOW_UP"},
            {"id": 2, "name": "Встреча", "color": None, "icon_id": None, "code": "MEETING"},
        ],
    }
    return hal(
        {
            "id": us.id,
            "name": us.name,
            "subdomain": us.subdomain,
            "created_at": 1_600_000_000,
            "created_by": 0,
            "updated_at": 1_600_000_000,
            "updated_by": 0,
            "current_user_id": call.by or us.users[0].id,
            "country": "RU",
            "currency": "RUB",
            "currency_symbol": "₽",
            "customers_mode": customers_mode,
            "is_unsorted_on": True,
            "mobile_feature_version": 0,
            "is_loss_reason_enabled": True,
            "is_helpbot_enabled": False,
            "is_technical_account": False,
            "contact_name_display_order": 1,
            **{name: value for name, value in roots.items() if name in call.with_},
            "_links": {"self": call.href("account")},
            "_embedded": {name: value for name, value in embedded.items() if name in call.with_},
        }
    )


def users(call: Call, path: Sequence[str], roles: Sequence[Mapping[str, Any]]) -> SandboxResponse:
    """`api/v4/users` and one of them."""
    known = {user.id: _user(call, user, roles) for user in call.account.users}
    return _read(call, known, path, "users", frozenset())


def one_user(call: Call, id_: int) -> Mapping[str, Any]:
    """A user of that id."""
    return next(_user(call, user) for user in call.account.users if user.id == id_)


def one_pipeline(call: Call, id_: int) -> Mapping[str, Any]:
    """The pipeline of that id."""
    pipelines = call.account.pipelines
    return next(_pipeline(call, each, sort) for sort, each in enumerate(pipelines, start=1) if each.id == id_)


def one_status(call: Call, pipeline_id: int, id_: int) -> Mapping[str, Any]:
    """The stage of that id in a pipeline."""
    statuses = one_pipeline(call, pipeline_id)["_embedded"]["statuses"]
    return next(status for status in statuses if status["id"] == id_)


def one_custom_field(call: Call, owner: str, id_: int) -> Mapping[str, Any]:
    """The definition of that id."""
    return _custom_fields(call, owner)[id_]


def pipelines(call: Call, path: Sequence[str]) -> SandboxResponse:
    """`api/v4/leads/pipelines`, one of them, its statuses, one of these. None of it comes in pages."""
    known = {
        pipeline.id: _pipeline(call, pipeline, sort) for sort, pipeline in enumerate(call.account.pipelines, start=1)
    }
    if call.request.method != "GET":
        return NOT_ALLOWED
    match path:
        case []:
            return _whole(call, "leads/pipelines", "pipelines", list(known.values()))
        case [pipeline_id, *rest] if pipeline_id in map(str, known):
            pipeline = known[int(pipeline_id)]
        case _:
            return NOT_FOUND
    statuses = pipeline["_embedded"]["statuses"]
    match rest:
        case []:
            return hal(pipeline)
        case ["statuses"]:
            return _whole(call, f"leads/pipelines/{pipeline_id}/statuses", "statuses", statuses)
        case ["statuses", status_id]:
            status = next((status for status in statuses if str(status["id"]) == status_id), None)
            return hal(status) if status else NOT_FOUND
        case _:
            return NOT_FOUND


def custom_fields(call: Call, owner: str, path: Sequence[str]) -> SandboxResponse:
    """`api/v4/{owner}/custom_fields` and one of them."""
    return _read(call, _custom_fields(call, owner), path, "custom_fields", frozenset({"id", "type"}))


def _custom_fields(call: Call, owner: str) -> dict[int, dict[str, Any]]:
    return {
        definition.id: view_definition(call, owner, definition, place)
        for place, definition in enumerate(call.account.custom_fields.get(owner, ()))
    }


def _read(
    call: Call, known: Mapping[int, dict[str, Any]], path: Sequence[str], key: str, filtered_by: frozenset[str]
) -> SandboxResponse:
    if call.request.method != "GET":
        return NOT_ALLOWED
    match path:
        case []:
            orders = _ORDERS & next(iter(known.values()), {}).keys()
            return page(call, find(call, known, filtered_by, orders=orders), key, lambda thing: thing, totals=True)
        case [id_] if id_ in map(str, known):
            return hal(known[int(id_)])
        case _:
            return NOT_FOUND


def _whole(call: Call, path: str, key: str, things: Sequence[object]) -> SandboxResponse:
    return hal({"_total_items": len(things), "_links": {"self": call.href(path)}, "_embedded": {key: things}})


def _times(time_zone: str, now: int) -> dict[str, object]:
    offset = datetime.fromtimestamp(now, ZoneInfo(time_zone))
    return {
        "date_pattern": "d.m.Y H:i",
        "short_date_pattern": "d.m.Y",
        "short_time_pattern": "H:i",
        "date_format": "d.m.Y",
        "time_format": "H:i:s",
        "timezone": time_zone,
        "timezone_offset": f"{offset:%:z}",
    }


def _user(call: Call, user: User, roles: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    allowed = dict.fromkeys(("view", "edit", "add", "delete", "export"), "A")
    more = {"uuid": f"00000000-0000-4000-8000-{user.id:012d}", "user_rank": "newbie", "phone_number": None}
    more["amojo_id"] = f"00000000-0000-4000-9000-{user.id:012d}"
    role_id = user.rights.get("role_id")
    embedded = {
        "role": {"roles": [dict(role) for role in roles if role["id"] == role_id]},
        "group": {"groups": [{"id": user.rights.get("group_id") or 0, "name": "Отдел продаж"}]},
    }
    return {
        "id": user.id,
        "name": user.name,
        "email": user.email,
        "lang": "ru",
        "rights": {
            **dict.fromkeys(("leads", "contacts", "companies"), allowed),
            "tasks": {"edit": "A", "delete": "A"},
            "mail_access": user.is_admin,
            "catalog_access": user.is_admin,
            "status_rights": None,
            "is_admin": user.is_admin,
            "is_free": False,
            "group_id": None,
            "role_id": None,
            **user.rights,
            "is_active": user.is_active,
        },
        **{name: value for name, value in more.items() if name in call.with_},
        "_links": {"self": call.href(f"users/{user.id}")},
        "_embedded": {key: value for name in embedded.keys() & call.with_ for key, value in embedded[name].items()},
    }


def _pipeline(call: Call, pipeline: Pipeline, sort: int) -> dict[str, Any]:
    return {
        "id": pipeline.id,
        "name": pipeline.name,
        "sort": sort if pipeline.sort is None else pipeline.sort,
        "is_main": sort == 1 if pipeline.is_main is None else pipeline.is_main,
        "is_unsorted_on": pipeline.is_unsorted_on,
        "is_archive": False,
        "account_id": call.account.id,
        "_links": {"self": call.href(f"leads/pipelines/{pipeline.id}")},
        "_embedded": {
            "statuses": [
                _status(call, pipeline, status, 10 * place)
                for place, status in enumerate(pipeline.all_statuses, start=1)
            ]
        },
    }


def _status(call: Call, pipeline: Pipeline, status: Status, sort: int) -> dict[str, Any]:
    return {
        "id": status.id,
        "name": status.name,
        "sort": {WON: 10_000, LOST: 11_000}.get(status.id, sort if status.sort is None else status.sort),
        "is_editable": status not in CLOSED,
        "pipeline_id": pipeline.id,
        "color": status.color,
        "type": 0,
        "account_id": call.account.id,
        **({"descriptions": list(status.descriptions)} if "descriptions" in call.with_ else {}),
        "_links": {"self": call.href(f"leads/pipelines/{pipeline.id}/statuses/{status.id}")},
    }
