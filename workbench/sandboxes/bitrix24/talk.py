"""What people in the portal read: comments in a card's timeline, and notifications."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from workbench.sandboxes.bitrix24.calls import Answer, Call, Method, Methods, Refused, as_int, as_list
from workbench.sandboxes.bitrix24.fields import shown_time
from workbench.sandboxes.bitrix24.files import Files
from workbench.sandboxes.bitrix24.items import Items
from workbench.sandboxes.bitrix24.lists import listed
from workbench.sandboxes.bitrix24.portal import ENTITY_NAMES, Bitrix24Portal

_COMMENT = ("ID", "ENTITY_ID", "ENTITY_TYPE", "CREATED", "COMMENT", "AUTHOR_ID")
_LONGEST_ATTACH = 60_000


@dataclass(frozen=True, slots=True)
class Comment:
    """A comment; `entity` is deal, contact or company. `files` are ids."""

    id: int
    entity: str
    entity_id: int
    text: str
    author_id: int
    created: str
    files: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Notification:
    """A notification for a user; a `tag` is one of the program that sent it."""

    id: int
    user_id: int
    text: str
    of_system: bool
    tag: tuple[str, str] | None = None


class Talk:
    """crm.timeline.comment.* and im.notify*; newest last."""

    def __init__(self, portal: Callable[[], Bitrix24Portal], items: Items, files: Files) -> None:
        self.comments: list[Comment] = []
        self.notifications: list[Notification] = []
        self._portal = portal
        self._items = items
        self._files = files
        self._notified = 0

    @property
    def methods(self) -> Methods:
        """By name."""
        im = frozenset({"im"})
        return {
            "crm.timeline.comment.add": Method(self._comment, frozenset({"crm"})),
            "crm.timeline.comment.list": Method(self._comments, frozenset({"crm"})),
            "im.notify": Method(lambda call: self._notify(call, call.params.get("TYPE") == "SYSTEM"), im),
            "im.notify.system.add": Method(lambda call: self._notify(call, True), im),
            "im.notify.personal.add": Method(lambda call: self._notify(call, False), im),
        }

    def _comment(self, call: Call) -> Answer:
        call.required("fields")
        sent = call.mapping("fields")
        for name in ("ENTITY_ID", "ENTITY_TYPE"):
            if name not in sent:
                raise Refused("100", f"Could not find value for parameter {{{name}}}")
        entity, entity_id = str(sent["ENTITY_TYPE"]).lower(), as_int(sent["ENTITY_ID"]) or 0
        type_id = next((id_ for id_, name in ENTITY_NAMES.items() if name.lower() == entity), 0)
        if entity_id not in self._items.present.get(type_id, {}):
            raise Refused("OWNER_NOT_FOUND", "Owner was not found")
        text = str(sent.get("COMMENT", "")).strip()
        if not text:
            raise Refused("INVALID_ARG_VALUE", "Empty comment message.")
        largest = self._portal().largest_file
        taken = [self._files.take(file, largest) for file in as_list(sent.get("FILES"))]
        files = tuple(number for number in taken if number is not None)
        made = shown_time(self._portal(), call.now)
        number = 1 + len(self.comments)
        self.comments.append(Comment(number, entity, entity_id, text, call.caller.user_id, made, files))
        return Answer(number)

    def _comments(self, call: Call) -> Answer:
        rows = [
            {
                "ID": str(comment.id),
                "ENTITY_ID": comment.entity_id,
                "ENTITY_TYPE": comment.entity,
                "CREATED": comment.created,
                "COMMENT": comment.text,
                "AUTHOR_ID": str(comment.author_id),
                "FILES": {str(number): self._drive_file(number) for number in comment.files},
            }
            for comment in self.comments
        ]
        return listed(call, rows, _COMMENT)

    def _drive_file(self, number: int) -> dict[str, Any]:
        file = self._files.stored[number]
        return {"id": number, "type": "file", "name": file.name, "size": len(file.content), "urlDownload": ""}

    def _notify(self, call: Call, of_system: bool) -> Answer:
        user_id = as_int(call.params.get("USER_ID")) or 0
        if user_id <= 0:
            raise Refused("USER_ID_EMPTY", "User ID can't be empty")
        text = str(call.params.get("MESSAGE", "")).strip()
        if not text:
            raise Refused("MESSAGE_EMPTY", "Message can't be empty")
        if len(str(call.params.get("ATTACH", ""))) > _LONGEST_ATTACH:
            raise Refused("ATTACH_OVERSIZE", "You have exceeded the maximum allowable size of attach")
        if self._portal().user(user_id) is None:
            return Answer(False)
        # A webhook is no application: unless it says which client it is, its tags tell nothing apart.
        client = call.caller.app.client_id if call.caller.app else str(call.params.get("CLIENT_ID", ""))
        sent_tag = str(call.params.get("TAG", ""))
        tag = (client, sent_tag) if client and sent_tag else None
        if tag:
            self.notifications = [each for each in self.notifications if (each.user_id, each.tag) != (user_id, tag)]
        self._notified += 1
        self.notifications.append(Notification(self._notified, user_id, text, of_system, tag))
        return Answer(self._notified)
