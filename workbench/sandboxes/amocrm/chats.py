"""Chats: talks, templates with their reviews, and which chats are whose."""

from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Literal

from workbench.sandboxes.amocrm.bodies import Id
from workbench.sandboxes.amocrm.calls import (
    NO_CONTENT,
    NOT_ALLOWED,
    NOT_FOUND,
    Body,
    Call,
    Mistake,
    bare,
    hal,
    refuse,
    whole,
)
from workbench.sandboxes.amocrm.entities import Entities
from workbench.sandboxes.amocrm.filters import find
from workbench.sandboxes.amocrm.services import CHAT_TEMPLATES, TALKS
from workbench.sandboxes.amocrm.tables import Record, Table
from workbench.sandboxes.wire import SandboxResponse


class _CloseBody(Body):
    force_close: bool = False


class _ChatBody(Body):
    contact_id: Id
    chat_id: str


class _ReviewBody(Body):
    id: Id | None = None
    source_id: Id | None = None
    status: Literal["review", "approved", "rejected", "paused"] | None = None
    reject_reason: str | None = None


class Chats:
    """The chats of an account."""

    def __init__(self, entities: Entities, hex_id: Callable[[], str]) -> None:
        self.talks = Table(TALKS, hex_id)
        self.templates = Table(CHAT_TEMPLATES, hex_id, show=_reviews)
        self._entities = entities
        self._hex_id = hex_id
        self._chats: list[Record] = []
        self._review_ids = count(1)

    def of_talks(self, call: Call, path: Sequence[str]) -> SandboxResponse:
        """`api/v4/talks…`."""
        match path:
            case [id_, "close"]:
                return self._close(call, self.talks.records.get(whole(id_) or 0))
            case _:
                return self.talks.answer(call, path)

    def of_templates(self, call: Call, path: Sequence[str]) -> SandboxResponse:
        """`api/v4/chats/templates…`."""
        match path:
            case ["templates", id_, "review", *rest] if template := self.templates.records.get(whole(id_) or 0):
                return self._review(call, template, rest)
            case ["templates", *rest]:
                return self.templates.answer(call, rest)
            case _:
                return NOT_FOUND

    def begin(self, account_id: int, contact_id: int, now: int, lead_id: int | None = None) -> Record:
        """A contact begins to talk, about a lead or not."""
        return self.talks.put(
            {
                "created_at": now,
                "updated_at": now,
                "rate": 0,
                "contact_id": contact_id,
                "chat_id": self._hex_id(),
                "entity_id": lead_id,
                "entity_type": "lead" if lead_id else None,
                "is_in_work": True,
                "is_read": False,
                "origin": "onlinechat",
                "missed_at": None,
                "account_id": account_id,
            }
        )

    def of_contacts(self, call: Call, path: Sequence[str]) -> SandboxResponse:
        """`api/v4/contacts/chats`."""
        match call.request.method:
            case _ if path:
                return NOT_FOUND
            case "GET":
                found = find(call, dict(enumerate(self._chats)), {"contact_id", "chat_id"}, orders=(), at_top=True)
                return _chats(call, found) if found else NO_CONTENT
            case "POST":
                items = call.items(_ChatBody)
                missing = [Mistake("NotFound", "contact_id", "Entity not found")]
                known = self._entities.present["contacts"]
                refuse({i.request_id: i.mistakes or ([] if i.body.contact_id in known else missing) for i in items})
                links = [{"contact_id": item.body.contact_id, "chat_id": item.body.chat_id} for item in items]
                self._chats += [link for link in links if link not in self._chats]
                return _chats(
                    call, [{**link, "request_id": i.request_id} for i, link in zip(items, links, strict=True)]
                )
            case _:
                return NOT_ALLOWED

    def _close(self, call: Call, talk: Record | None) -> SandboxResponse:
        if talk is None:
            return NOT_FOUND
        if call.request.method != "POST":
            return NOT_ALLOWED
        if call.request.body:
            call.item(_CloseBody)
        talk |= {"is_in_work": False, "is_read": True, "updated_at": call.now}
        return SandboxResponse(202)

    def _review(self, call: Call, template: Record, path: Sequence[str]) -> SandboxResponse:
        if call.request.method != "POST":
            return NOT_ALLOWED
        reviews: list[Record] = template.setdefault("_reviews", [])
        match path:
            case []:
                reviews.append(
                    {"id": next(self._review_ids), "source_id": None, "status": "review", "reject_reason": ""}
                )
                return hal({"_embedded": {"reviews": reviews}})
            case [id_]:
                review = next((review for review in reviews if str(review["id"]) == id_), None)
                if review is None:
                    return NOT_FOUND
                sent = call.item(_ReviewBody).body.model_dump(exclude_unset=True, exclude={"id", "request_id"})
                review |= sent
                return bare(review)
            case _:
                return NOT_FOUND


def _chats(call: Call, chats: Sequence[Mapping[str, object]]) -> SandboxResponse:
    return hal({"_links": {"self": call.href("contacts/chats")}, "_embedded": {"chats": chats}})


def _reviews(call: Call, template: Record) -> Mapping[str, object]:
    return {"_embedded": {"reviews": template.get("_reviews", [])}} if "reviews" in call.with_ else {}
