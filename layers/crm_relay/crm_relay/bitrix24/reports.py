"""What people of a portal are told: a comment in the deal, a notification, a robot's answer.

Bitrix24 reference, sections 2.3 and 3.6.
"""

from collections.abc import Mapping
from typing import Any

from crm_relay.bitrix24.client import Operation, nothing, number, rows


def add_comment(deal_id: int, text: str) -> Operation[int]:
    """Write a comment into a deal's timeline; return its id. The same again is a second comment."""
    fields = {"ENTITY_ID": deal_id, "ENTITY_TYPE": "deal", "COMMENT": text}
    return Operation("crm.timeline.comment.add", {"fields": fields}, number)


def comments(deal_id: int) -> Operation[list[dict[str, Any]]]:
    """Read a deal's latest 50 comments, ID and COMMENT, to find one whose writing was in doubt."""
    params = {
        "filter": {"ENTITY_ID": deal_id, "ENTITY_TYPE": "deal"},
        "select": ["ID", "COMMENT"],
        "order": {"ID": "DESC"},
    }
    return Operation("crm.timeline.comment.list", params, rows)


def notify(user_id: int, text: str, *, tag: str) -> Operation[None]:
    """Notify a user from the system. The same tag replaces what it notified of before."""
    # A webhook may set a tag only with a client's name (reference, section 3.6).
    params = {"USER_ID": user_id, "MESSAGE": text, "TAG": tag, "CLIENT_ID": "crm-relay"}
    return Operation("im.notify.system.add", params, nothing)


def answer_robot(event_token: str, values: Mapping[str, str], *, log: str) -> Operation[None]:
    """Hand a waiting robot its return values and let its process go on. Only the first answer counts."""
    params = {"EVENT_TOKEN": event_token, "RETURN_VALUES": values, "LOG_MESSAGE": log}
    return Operation("bizproc.event.send", params, nothing)
