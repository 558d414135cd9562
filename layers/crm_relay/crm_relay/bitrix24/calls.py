"""Bitrix24's calls as one type: events, the built-in Webhook robot, an app's robot, installation and its end.

Bitrix24 reference, sections 2.1 to 2.3 and 5. They come as forms; JSON of the same shape is read too. Every key that
captured calls lack may be absent.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from crm_relay.brackets import TooComplex, decode, select
from crm_relay.http_api import Malformed, Meaningless, TooLarge, read_json

Kind = Literal["event", "webhook_robot", "app_robot", "installed", "uninstalled"]


class DealIdRequired(Meaningless):
    """No deal is named."""

    def __init__(self) -> None:
        super().__init__("deal_id_required")


class NotADeal(Meaningless):
    """The call is about something else, or about a deal that is gone."""

    def __init__(self) -> None:
        super().__init__("not_a_deal")


class PlaceholderNotReplaced(Meaningless):
    """Where a value should be, its placeholder stands, such as {{ID}}: it must be picked in the robot's form."""

    def __init__(self) -> None:
        super().__init__("placeholder_not_replaced")


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of an app that came with a call. `expires_at` is in unix seconds, None if the call does not say."""

    access_token: str = field(repr=False)
    refresh_token: str = field(repr=False)
    expires_at: int | None


@dataclass(frozen=True, slots=True)
class Proof:
    """What a call shows of where it is from. What it does not show is "".

    `member_id` is the portal and `domain` the portal's own word for its host, never where we connect;
    `application_token` is the secret of the kinds that carry one.
    """

    kind: Kind
    member_id: str
    domain: str
    application_token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Call:
    """One call. What it does not say is "" or None; none of it is believed but the ids.

    Attributes:
        kind: "event" is an outgoing webhook's or an app's, which look alike where nobody is behind the event.
        event: in upper case; robots have none.
        deal_id: None in "installed" and "uninstalled".
        route: from the URL's query, else from the robot's properties.
        event_token: answers an app's robot, and is new at each of its executions.
        use_subscription: whether the robot waits for the answer.
        tokens: with an access token, if it came.
    """

    kind: Kind
    event: str
    deal_id: int | None
    route: str
    event_token: str = field(repr=False)
    use_subscription: bool
    tokens: Tokens | None


_NAMES = (
    b"auth[",
    b"code=",
    b"data[FIELDS]",
    b"document_id",
    b"event=",
    b"event_token=",
    b"properties[route]",
    b"use_subscription=",
    b"workflow_id=",
)
"""The fields of a form that are read."""
_LONGEST_READ = 32_768
"""Bytes of them; captured calls have less than two thousand."""
_LONGEST_JSON = 524_288
_MOST_LEVELS = 16
_LONGEST_TEXT = 2048
_LONGEST_ROUTE = 100
_DEAL_EVENTS = ("", "ONCRMDEALADD", "ONCRMDEALUPDATE", "ONCRMDEALMOVETOCATEGORY")
_LIFE: Mapping[str, Kind] = {"ONAPPINSTALL": "installed", "ONAPPUNINSTALL": "uninstalled"}
_ID = re.compile(r"[1-9][0-9]{0,17}")
_DOCUMENT = re.compile(r"DEAL_([1-9][0-9]{0,17})")


def read_body(body: bytes) -> Mapping[str, Any]:
    """Decode a body: a form or JSON, whatever its content type says. Of a form, what calls are made of is read.

    Raises:
        Malformed: neither, or too deep, or more than calls are made of.
        TooLarge: JSON over 512 KiB.
    """
    if body.lstrip()[:1] in (b"{", b"["):
        if len(body) > _LONGEST_JSON:
            raise TooLarge("body_too_large")
        tree = read_json(body)
        if not isinstance(tree, dict):
            raise Malformed("json_object_expected")
        return tree
    try:
        form = select(body, _NAMES)
        if len(form) > _LONGEST_READ:
            raise Malformed("form_too_complex")
        return decode(form, most_levels=_MOST_LEVELS)
    except TooComplex:
        raise Malformed("form_too_complex") from None


def proof_of(tree: Mapping[str, Any]) -> Proof:
    """Return what a decoded body shows of where it is from.

    Raises:
        Malformed: a key of another shape than Bitrix24 gives it.
    """
    auth = _map(tree.get("auth"))
    return Proof(
        kind=_kind(tree),
        member_id=_text(auth.get("member_id")),
        domain=_text(auth.get("domain")),
        application_token=_text(auth.get("application_token")),
    )


def read_call(tree: Mapping[str, Any], query: Mapping[str, str] | None = None, *, now: float) -> Call:
    """Read a decoded body, once it is proven.

    Args:
        tree: what `read_body` returned.
        query: of the URL: `route`, and `deal_id` where the body names no deal.
        now: unix time in seconds.

    Raises:
        Malformed: a key of another shape than Bitrix24 gives it.
        DealIdRequired, NotADeal, PlaceholderNotReplaced: nothing can be carried.
        Meaningless: an id or a route that cannot be, or a waiting robot without its token.
    """
    query = query or {}
    kind = _kind(tree)
    event = _event(tree)
    event_token = _text(tree.get("event_token"))
    use_subscription = _text(tree.get("use_subscription")).upper() == "Y"
    if kind == "app_robot" and use_subscription and not event_token:
        raise Meaningless("event_token_required")
    return Call(
        kind=kind,
        event=event,
        deal_id=None if kind in ("installed", "uninstalled") else _deal_id(tree, event, query),
        route=_route(query.get("route") or _map(tree.get("properties")).get("route")),
        event_token=event_token,
        use_subscription=use_subscription,
        tokens=_tokens(_map(tree.get("auth")), now),
    )


def _event(tree: Mapping[str, Any]) -> str:
    return _text(tree.get("event")).upper()


def _kind(tree: Mapping[str, Any]) -> Kind:
    event = _event(tree)
    if event in _LIFE:
        return _LIFE[event]
    if any(tree.get(key) for key in ("event_token", "workflow_id", "code")):
        return "app_robot"
    return "webhook_robot" if tree.get("document_id") else "event"


def _deal_id(tree: Mapping[str, Any], event: str, query: Mapping[str, str]) -> int:
    if document := tree.get("document_id"):
        return _deal_of_document(document)
    if event not in _DEAL_EVENTS:
        raise NotADeal
    fields = _map(_map(tree.get("data")).get("FIELDS"))
    text = _told(fields.get("ID")) or _told(query.get("deal_id"))
    if text in ("", "0"):
        raise DealIdRequired
    if not _ID.fullmatch(text):
        raise Meaningless("deal_id_invalid")
    return int(text)


def _deal_of_document(document: Any) -> int:
    parts = dict(enumerate(document)) if isinstance(document, list) else document
    if not isinstance(parts, dict) or not {str(key) for key in parts} <= {"0", "1", "2"}:
        raise Malformed("document_id_malformed")
    module, entity, document_id = (_told(parts.get(place, parts.get(str(place)))) for place in range(3))
    if not document_id:
        raise DealIdRequired
    found = _DOCUMENT.fullmatch(document_id)
    if not found or module not in ("", "crm") or entity not in ("", "CCrmDocumentDeal"):
        raise NotADeal
    return int(found[1])


def _route(value: Any) -> str:
    route = _told(value)
    if len(route) > _LONGEST_ROUTE:
        raise Meaningless("route_invalid")
    return route


def _told(value: Any) -> str:
    """Return what an administrator's form has filled in."""
    text = _text(value).strip()
    if "{" in text or "}" in text:
        raise PlaceholderNotReplaced
    return text


def _tokens(auth: Mapping[str, Any], now: float) -> Tokens | None:
    access_token = _text(auth.get("access_token"))
    if not access_token:
        return None
    expires, seconds = _text(auth.get("expires")), _text(auth.get("expires_in"))
    expires_at = int(expires) if _ID.fullmatch(expires) else int(now) + int(seconds) if _ID.fullmatch(seconds) else None
    return Tokens(access_token, _text(auth.get("refresh_token")), expires_at)


def _map(value: Any) -> Mapping[str, Any]:
    """Return a map; PHP writes an empty one as [], or not at all."""
    if isinstance(value, dict):
        return value
    if value in (None, "", []):
        return {}
    raise Malformed("call_malformed")


def _text(value: Any) -> str:
    """Return a text; numbers come as digits or, in JSON, as numbers."""
    match value:
        case str() if len(value) <= _LONGEST_TEXT:
            return value
        case bool():
            pass
        case int() if abs(value) < 10**18:
            return str(value)
        case None | []:
            return ""
        case _:
            pass
    raise Malformed("call_malformed")
