"""A call of the API as all services see it: what was asked, on whose behalf, and the shapes of the answers."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.parse import urlencode

from pydantic import BaseModel, ConfigDict, ValidationError

from workbench.sandboxes.amocrm.account import AmoCrmAccount
from workbench.sandboxes.wire import SandboxRequest, SandboxResponse

MOST_ITEMS = 250
"""Entities of a page, of a write, and ids of a filter, at most."""

NO_CONTENT = SandboxResponse(204)


class Mistake(NamedTuple):
    """What is wrong with one item of a write; `path` leads to it through the item."""

    code: str
    path: str
    detail: str


class Refused(Exception):
    """The request goes no further; `answer` says so to the caller."""

    def __init__(self, answer: SandboxResponse) -> None:
        super().__init__(answer.body.decode())
        self.answer = answer


class Invalid(Refused):
    """Items of a write are wrong, so none is written. `mistakes` are by request_id."""

    def __init__(self, mistakes: Mapping[str, Sequence[Mistake]]) -> None:
        self.mistakes = mistakes
        errors = [
            {"request_id": request_id, "errors": [mistake._asdict() for mistake in found]}
            for request_id, found in mistakes.items()
        ]
        super().__init__(problem(400, "Request validation failed", **{"validation-errors": errors}))


class Body(BaseModel):
    """An item of a write: types are held to strictly, and unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    request_id: object = None


class Item[B: Body](NamedTuple):
    """An item of a write with the request_id by which its result is found in the answer.

    If it has the wrong form, `mistakes` say so, and there is nothing in the body.
    """

    request_id: str
    body: B
    mistakes: Sequence[Mistake] = ()


@dataclass(frozen=True)
class Call:
    """An authorised call.

    `origin` is the address that links begin with, `drive` where files are, `by` the user it acts as, `most_items` how
    many items of a write the API gets through before its gateway gives up.
    """

    request: SandboxRequest
    account: AmoCrmAccount
    origin: str
    by: int
    now: int
    drive: str = ""
    most_items: int | None = None

    @cached_property
    def parameters(self) -> Mapping[str, list[str]]:
        """The decoded query string, as it was sent."""
        return self.request.parameters

    @cached_property
    def query(self) -> dict[str, Any]:
        """The query with PHP's brackets taken apart; the leaves are lists of strings."""
        tree: dict[str, Any] = {}
        for name, values in self.parameters.items():
            *path, last = name.replace("]", "").split("[")
            node = tree
            for key in path:
                child = node.get(key)
                node[key] = node = child if isinstance(child, dict) else {}
            node[last] = values
        return tree

    @cached_property
    def with_(self) -> frozenset[str]:
        """What the answer shall hold beside the usual; what nobody knows is ignored."""
        return frozenset(name for value in self.parameters.get("with", ()) for name in value.split(","))

    def json(self) -> Any:
        """The body. Refused if it is no JSON."""
        try:
            return json.loads(self.request.body)
        except (ValueError, RecursionError):
            raise Refused(problem(400, "The body is not valid JSON")) from None

    def items[B: Body](self, model: type[B]) -> list[Item[B]]:
        """The items of a write: a list of 1 to 250. Refused if it is none."""
        sent = self.json()
        if not isinstance(sent, list) or not 0 < len(sent) <= MOST_ITEMS:
            raise Refused(problem(400, f"A list of 1 to {MOST_ITEMS} entities is expected"))
        if self.most_items is not None and len(sent) > self.most_items:
            raise Refused(page_of_html(504))
        return read_items(model, sent)

    def item[B: Body](self, model: type[B]) -> Item[B]:
        """The one object of a write. Invalid if it has the wrong form."""
        (item,) = read_items(model, [self.json()])
        refuse({item.request_id: item.mistakes})
        return item

    def href(self, path: str) -> dict[str, object]:
        """A link to a path of the API."""
        return {"href": f"{self.origin}/api/v4/{path}"}


def read_items[B: Body](model: type[B], sent: Sequence[object]) -> list[Item[B]]:
    """Read all items, named by their request_id or their place."""
    items: list[Item[B]] = []
    for place, each in enumerate(sent):
        request_id = str(each.get("request_id", place)) if isinstance(each, dict) else str(place)
        try:
            items.append(Item(request_id, model.model_validate(each)))
        except ValidationError as refused:
            items.append(Item(request_id, model.model_construct(), [*_mistakes(refused)]))
    return items


def refuse(mistakes: Mapping[str, Sequence[Mistake]]) -> None:
    """Invalid if there are any mistakes, which are by request_id."""
    if found := {request_id: some for request_id, some in mistakes.items() if some}:
        raise Invalid(found)


_CODES = {"missing": "FieldMissing", "extra_forbidden": "NotExpected", "literal_error": "NotSupportedChoice"}


def _mistakes(refused: ValidationError) -> Iterable[Mistake]:
    for error in refused.errors(include_url=False):
        path = ".".join(map(str, error["loc"]))
        code = "NotNullable" if error["input"] is None else _CODES.get(error["type"], "InvalidType")
        yield Mistake(code, path, error["msg"])


def whole(text: str) -> int | None:
    """The whole number that a text is: ASCII digits, of which a database takes 18."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else None


def not_supported(path: str) -> Mistake:
    """A value that is not among those that can be chosen."""
    return Mistake("NotSupportedChoice", path, "The value you selected is not a valid choice.")


# Answers


def hal(content: Mapping[str, object], status: int = 200) -> SandboxResponse:
    """An answer with what was asked for."""
    return bare(content, status)


def bare(content: object, status: int = 200) -> SandboxResponse:
    """An answer without an envelope."""
    return SandboxResponse(status, json.dumps(content).encode(), {"content-type": "application/hal+json"})


def problem(status: int, detail: str, **more: object) -> SandboxResponse:
    """An answer that says what was wrong. The status of a 401 is a string, as amoCRM writes it."""
    content = {
        **more,
        "title": HTTPStatus(status).phrase,
        "type": f"https://httpstatus.es/{status}",
        "status": str(status) if status == 401 else status,
        "detail": detail,
    }
    return SandboxResponse(status, json.dumps(content).encode(), {"content-type": "application/problem+json"})


def page_of_html(status: int) -> SandboxResponse:
    """The page of the server in front of the API."""
    title = f"{status} {HTTPStatus(status).phrase}"
    page = f"<html>\r\n<head><title>{title}</title></head>\r\n<body>\r\n<center><h1>{title}</h1></center>\r\n"
    page += "<hr><center>nginx</center>\r\n</body>\r\n</html>\r\n"
    return SandboxResponse(status, page.encode(), {"content-type": "text/html; charset=utf-8"})


NOT_FOUND = problem(404, "Not found")
NOT_ALLOWED = problem(405, "Method not allowed")


def page[T](
    call: Call, found: Sequence[T], key: str, view: Callable[[T], object], *, totals: bool = False
) -> SandboxResponse:
    """One page of what was found: 204 if there is nothing on it. `totals` counts all there is."""
    limit, number = _number(call, "limit", 50), _number(call, "page", 1)
    if limit > MOST_ITEMS:
        raise Refused(problem(422, f"Limit {MOST_ITEMS} per page"))
    start = (number - 1) * limit
    shown = found[start : start + limit]
    if not shown:
        return NO_CONTENT
    links = {"self": _page_link(call, number)}
    if start + limit < len(found):
        links["next"] = _page_link(call, number + 1)
    if number > 1:
        links["prev"] = _page_link(call, number - 1)
    counted = {"_total_items": len(found), "_page_count": -(-len(found) // limit)} if totals else {}
    return hal({"_page": number, **counted, "_links": links, "_embedded": {key: [view(each) for each in shown]}})


def _number(call: Call, name: str, otherwise: int) -> int:
    number = whole(call.parameters.get(name, [str(otherwise)])[-1])
    if not number:
        raise Refused(problem(400, f"{name} is not a positive number"))
    return number


def _page_link(call: Call, number: int) -> dict[str, object]:
    query = {**call.parameters, "page": [number]}
    return {"href": f"{call.origin}{call.request.path}?{urlencode(query, doseq=True)}"}
