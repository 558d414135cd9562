"""An app's robots in a portal; no webhook may touch them (Bitrix24 reference, section 2.3)."""

from collections.abc import Mapping
from typing import Any

from crm_relay.bitrix24.client import Operation, Unusable, nothing


def add_robot(
    code: str,
    handler: str,
    name: str,
    *,
    user_id: int,
    properties: Mapping[str, Mapping[str, Any]],
    returns: Mapping[str, Mapping[str, Any]],
) -> Operation[None]:
    """Register a robot for deals that waits for its answer; one that is there already is Refused.

    Args:
        code: its name in the app: a-z, A-Z, 0-9, ".", "_", "-".
        handler: the URL that it calls.
        name: as people see it.
        user_id: whose token comes in its calls.
        properties: what people fill in: {code: {"Name", "Type", "Required": "Y"}}.
        returns: what it gives back, in the same shape.
    """
    params = {
        "CODE": code,
        "HANDLER": handler,
        "NAME": name,
        "AUTH_USER_ID": user_id,
        "USE_SUBSCRIPTION": "Y",
        "PROPERTIES": properties,
        "RETURN_PROPERTIES": returns,
        "DOCUMENT_TYPE": ["crm", "CCrmDocumentDeal", "DEAL"],
        "FILTER": {"INCLUDE": [["crm", "CCrmDocumentDeal"]]},
    }
    return Operation("bizproc.robot.add", params, nothing)


def list_robots() -> Operation[list[str]]:
    """Read the codes of the app's robots."""

    def read(result: Any) -> list[str]:
        if not isinstance(result, list) or not all(isinstance(code, str) for code in result):
            raise Unusable
        return result

    return Operation("bizproc.robot.list", {}, read)


def delete_robot(code: str) -> Operation[None]:
    """Remove a robot; one that is not there is Refused("error_activity_not_found")."""
    return Operation("bizproc.robot.delete", {"CODE": code}, nothing)
