"""What amoCRM has, a row each, and the few things that can be done with a row (amoCRM reference, section 1)."""

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any, Literal

from crm_relay.amocrm.client import Account, TooMuchToRead, call
from crm_relay.http_client import Exchange
from crm_relay.outcomes import OutcomeUnknown, Rejected, Unreachable

PAGE = 250
"""Items of a page or of a write, and ids of a filter, at most."""

type Card = Literal["leads", "contacts", "companies"]
"""Entities that have a card with notes."""


@dataclass(frozen=True, slots=True)
class Resource:
    """One resource: where it is, and the key of its list under `_embedded`."""

    path: str
    key: str


LEADS = Resource("api/v4/leads", "leads")
CONTACTS = Resource("api/v4/contacts", "contacts")
COMPANIES = Resource("api/v4/companies", "companies")
USERS = Resource("api/v4/users", "users")
PIPELINES = Resource("api/v4/leads/pipelines", "pipelines")
WEBHOOKS = Resource("api/v4/webhooks", "webhooks")
CARDS: Mapping[Card, Resource] = {"leads": LEADS, "contacts": CONTACTS, "companies": COMPANIES}


def notes(card: Card) -> Resource:
    """Return the notes of all cards of a kind."""
    return Resource(f"api/v4/{card}/notes", "notes")


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a list, and whether another follows."""

    items: list[dict[str, Any]]
    has_next: bool


# All of these raise what `call` raises.


def account_info(account: Account, *, now: float) -> Exchange[dict[str, Any]]:
    """Return the account: id, subdomain, name and, under `_embedded.datetime_settings`, its time zone."""
    return call(account, "GET", "api/v4/account", query={"with": "datetime_settings"}, now=now)


def read_page(
    account: Account, resource: Resource, number: int = 1, *, query: Mapping[str, Any] | None = None, now: float
) -> Exchange[Page]:
    """Read one page of a list, from 1 on; an empty list is one empty page, as amoCRM's 204 means."""
    return page_of((yield from _read_page(account, resource, number, query, now)), resource.key)


def _read_page(
    account: Account, resource: Resource, number: int, query: Mapping[str, Any] | None, now: float
) -> Exchange[dict[str, Any]]:
    return call(account, "GET", resource.path, query={**(query or {}), "limit": PAGE, "page": number}, now=now)


def page_of(answer: Mapping[str, Any], key: str) -> Page:
    """Read a page out of an answer.

    Raises:
        Unreachable: it is no list of this kind.
    """
    items = embedded(answer, key)
    if items is None and answer:
        raise Unreachable("answer_malformed")
    # Only that there is a next page is taken from the link, never where it points.
    match answer:
        case {"_links": {"next": {"href": str(href)}}} if items and href:
            return Page(items, has_next=True)
        case _:
            return Page(items or [], has_next=False)


def read_all(
    account: Account, resource: Resource, *, query: Mapping[str, Any] | None = None, now: float
) -> Exchange[list[dict[str, Any]]]:
    """Read all pages of a list."""
    return every_page(lambda number: _read_page(account, resource, number, query, now), resource.key)


def every_page[E](read: Callable[[int], Generator[E, Any, dict[str, Any]]], key: str) -> Generator[E, Any, list[Any]]:
    """Return the items of all pages of a list; `read` asks for one by its number."""
    items: list[Any] = []
    for number in count(1):
        page = page_of((yield from read(number)), key)
        items += page.items
        if not page.has_next:
            break
    return items


def read_by_ids(
    account: Account, resource: Resource, ids: Iterable[int], *, query: Mapping[str, Any] | None = None, now: float
) -> Exchange[dict[int, dict[str, Any]]]:
    """Read items by id, 250 a request, or fewer where amoCRM finds that too much; what is gone is not in the answer."""
    query = query or {}
    wanted = sorted(set(ids))
    waiting = [wanted[start : start + PAGE] for start in range(0, len(wanted), PAGE)]
    found: dict[int, dict[str, Any]] = {}
    while waiting:
        some = waiting.pop()
        filtered = {**query, "filter": {**query.get("filter", {}), "id": some}}
        try:
            page = yield from read_page(account, resource, query=filtered, now=now)
        except TooMuchToRead:
            if len(some) == 1:
                raise
            middle = len(some) // 2
            waiting += [some[middle:], some[:middle]]
            continue
        found |= {item["id"]: item for item in page.items if item.get("id") in some}
    return found


def add(
    account: Account, resource: Resource, items: Sequence[Mapping[str, Any]], *, now: float
) -> Exchange[list[dict[str, Any]]]:
    """Add items, 250 at most, in one request; return what amoCRM made of each, in their order.

    Raises:
        ValidationFailed: items are wrong, none was written; its `items` are by the place of each ("0", "1" …).
        OutcomeUnknown: an item is missing in the answer.
    """
    assert 0 < len(items) <= PAGE
    sent = [{**item, "request_id": str(place)} for place, item in enumerate(items)]
    answer = yield from call(account, "POST", resource.path, body=sent, now=now)
    made = {str(item.get("request_id")): item for item in embedded(answer, resource.key) or ()}
    try:
        return [made[item["request_id"]] for item in sent]
    except KeyError:
        raise OutcomeUnknown("answer_incomplete") from None


def subscribe(account: Account, destination: str, settings: Sequence[str], *, now: float) -> Exchange[dict[str, Any]]:
    """Subscribe a URL to hooks such as "add_lead"; one that is subscribed already gets these, and is switched on."""
    body = {"destination": destination, "settings": list(settings)}
    return call(account, "POST", WEBHOOKS.path, body=body, now=now)


def unsubscribe(account: Account, destination: str, *, now: float) -> Exchange[None]:
    """End the hooks of a URL; one that has none is let be."""
    try:
        yield from call(account, "DELETE", WEBHOOKS.path, body={"destination": destination}, now=now)
    except Rejected as refusal:
        if refusal.reason != "http_404":
            raise


def embedded(answer: Mapping[str, Any], key: str) -> list[dict[str, Any]] | None:
    """Return the list of an answer, None if there is none under this key."""
    found = answer.get("_embedded")
    items = found.get(key) if isinstance(found, dict) else None
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else None
