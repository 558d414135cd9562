"""A call of the REST API as all methods see it: what was sent, by whom, and the shapes of the answers."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from crm_relay.brackets import decode
from workbench.sandboxes.bitrix24.portal import App
from workbench.sandboxes.wire import SandboxRequest, SandboxResponse, json_answer


class Refused(Exception):
    """The call goes no further. `code` may be empty, a sentence or a number, as Bitrix24's own are."""

    def __init__(self, code: str | int, description: str = "", status: int = 400) -> None:
        super().__init__(code, description, status)
        self.code = code
        self.description = description
        self.status = status

    @property
    def told(self) -> dict[str, object]:
        """What the caller reads."""
        return {"error": self.code, "error_description": self.description}


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls: a user through an incoming webhook or, if `app` is there, through an application."""

    key: str
    user_id: int
    scopes: frozenset[str]
    app: App | None = None


@dataclass(frozen=True, slots=True)
class Call:
    """A call of one method, alone or inside a batch. `origin` is the address that links begin with."""

    method: str
    params: Mapping[str, Any]
    caller: Caller
    origin: str
    now: float

    def required(self, name: str) -> Any:
        """A parameter by its exact name. Refused if it is missing."""
        if name not in self.params:
            raise Refused("100", f"Could not find value for parameter {{{name}}}")
        return self.params[name]

    def number(self, name: str) -> int:
        """A parameter that is an id. Refused if it is missing or is none."""
        value = as_int(self.required(name))
        if value is None:
            raise Refused("100", f"Invalid value {{{self.params[name]}}} to match with parameter {{{name}}}")
        return value

    def mapping(self, name: str) -> Mapping[str, Any]:
        """A parameter that is a map; an empty list, which PHP cannot tell from one, is an empty map."""
        value = self.params.get(name)
        if isinstance(value, list):
            return {str(place): each for place, each in enumerate(value)}
        return value if isinstance(value, dict) else {}

    def flag(self, name: str) -> bool:
        """A parameter that is Y or N."""
        return str(self.params.get(name, "N")).upper() in {"Y", "1", "TRUE"}


@dataclass(frozen=True, slots=True)
class Answer:
    """What a method gives; `following` is the `start` of the next page."""

    result: object
    total: int | None = None
    following: int | None = None

    @property
    def told(self) -> dict[str, object]:
        """What the caller reads, without the time."""
        pages = {"total": self.total, "next": self.following}
        return {"result": self.result} | {name: value for name, value in pages.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Method:
    """A method: any of `scopes` opens it, and nothing does if `of_apps` and the caller is a webhook."""

    run: Callable[[Call], Answer]
    scopes: frozenset[str] = frozenset()
    of_apps: bool = False


type Methods = Mapping[str, Method]
"""By name, in lower case: names of methods have no case."""


def as_int(value: object) -> int | None:
    """An id, whether it came as a number or as text; None: it is none."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    return int(value) if isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,18}", value) else None


def as_list(value: object) -> list[Any]:
    """A list, whatever keys it had in a form; a single thing is a list of one, nothing is none."""
    if isinstance(value, dict):
        return list(value.values())
    if isinstance(value, list):
        return value
    return [] if value in {None, ""} else [value]


def read_params(request: SandboxRequest) -> dict[str, Any]:
    """Query and body together, the body's values first; a body that is no JSON though it says so sends nothing."""
    params: dict[str, Any] = dict(decode(request.query.encode()))
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        try:
            sent = json.loads(request.body or b"{}")
        except (ValueError, RecursionError):
            sent = {}
        return params | sent if isinstance(sent, dict) else params
    return params | dict(decode(request.body)) if kind == "application/x-www-form-urlencoded" else params


def php(value: Any) -> Any:
    """What PHP makes of a value in JSON: it cannot tell an empty map from an empty list."""
    match value:
        case dict():
            return {key: php(each) for key, each in value.items()} or []
        case list() | tuple():
            return [php(each) for each in value]
        case _:
            return value


def envelope(status: int, content: Mapping[str, object]) -> SandboxResponse:
    """An answer in JSON."""
    return json_answer(status, php(dict(content)))


def html_page(status: int, title: str) -> SandboxResponse:
    """A page for people, where a program expects JSON."""
    page = f"<!DOCTYPE html><html><head><title>{title}</title></head><body><h1>{title}</h1></body></html>"
    return SandboxResponse(status, page.encode(), {"content-type": "text/html; charset=UTF-8"})
