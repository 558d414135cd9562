"""What ids mean in a portal: users, stages, dictionaries (Bitrix24 reference, section 3.5)."""

from collections.abc import Sequence
from typing import Any

from crm_relay.bitrix24.client import Operation, Unusable, mapping, rows, with_id


def users_by_email(emails: Sequence[str]) -> Operation[list[dict[str, Any]]]:
    """Look for active users by e-mail: id, EMAIL …; at most a page of 50."""
    return Operation("user.get", {"FILTER": {"EMAIL": list(emails), "ACTIVE": True}}, _users)


def users_by_id(ids: Sequence[int]) -> Operation[list[dict[str, Any]]]:
    """Read users: id, EMAIL …; at most a page of 50. Scope "user_brief" alone leaves EMAIL out."""
    return Operation("user.get", {"FILTER": {"ID": list(ids)}}, _users)


def statuses(entity_id: str | None = None) -> Operation[list[dict[str, Any]]]:
    """Read a dictionary such as SOURCE, DEAL_STAGE or DEAL_STAGE_5, or all: ENTITY_ID, STATUS_ID, NAME …."""
    filters = {} if entity_id is None else {"filter": {"ENTITY_ID": entity_id}}
    return Operation("crm.status.list", {"order": {"ID": "ASC"}, **filters}, rows)


def scopes() -> Operation[list[str]]:
    """Read what the webhook or app may touch, such as crm and im; it needs none of them itself."""

    def read(result: Any) -> list[str]:
        if not isinstance(result, list) or not all(isinstance(scope, str) for scope in result):
            raise Unusable
        return result

    return Operation("scope", {}, read)


def profile() -> Operation[dict[str, Any]]:
    """Read who we are in the portal, ID, ADMIN …; it needs no scope."""
    return Operation("profile", {}, mapping)


def _users(result: Any) -> list[dict[str, Any]]:
    return list(map(with_id, rows(result)))
