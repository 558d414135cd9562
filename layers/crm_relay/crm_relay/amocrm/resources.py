"""What amoCRM has, a row each, and the few things that can be done with a row (amoCRM reference, section 1)."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from crm_relay.amocrm.client import Account, TooMuchToRead, call
from crm_relay.http_client import Exchange
from crm_relay.outcomes import OutcomeUnknown, Rejected, Unreachable

PAGE = 250
"""Items of a page, and ids of a filter, at most."""

type Card = Literal["leads", "contacts", "companies"]
"""Entities that have a card with notes."""


@dataclass(frozen=True, slots=True)
class Resource:
    """One resource: where it is, the key of its list under `_embedded`, how many items one write takes."""

    path: str
    key: str
    writes: int = 250


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


def custom_fields(card: Card) -> Resource:
    """Return the definitions of a kind's custom fields."""
    return Resource(f"api/v4/{card}/custom_fields", "custom_fields")


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a list, and whether another follows."""

    items: list[dict[str, Any]]
    has_next: bool


class Run(Protocol):
    """Drives an exchange to its result, as HttpClient.run does."""

    def __call__[T](self, exchange: Exchange[T], /) -> T:
        """Return the exchange's result."""


# All of these raise what `call` raises.


def account_info(account: Account, *, now: float) -> Exchange[dict[str, Any]]:
    """Return the account: id, subdomain, name and, under `_embedded.datetime_settings`, its time zone."""
    return call(account, "GET", "api/v4/account", query={"with": "datetime_settings"}, now=now)


def read_page(
    account: Account, resource: Resource, number: int = 1, *, query: Mapping[str, Any] | None = None, now: float
) -> Exchange[Page]:
    """Read one page of a list, from 1 on; an empty list is one empty page, as amoCRM's 204 means."""
    whole_query = {**(query or {}), "limit": PAGE, "page": number}
    answer = yield from call(account, "GET", resource.path, query=whole_query, now=now)
    return page_of(answer, resource.key)


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


def read_each(
    run: Run, account: Account, resource: Resource, *, query: Mapping[str, Any] | None = None, now: float
) -> Iterator[dict[str, Any]]:
    """Yield the items of a list; a page is read, by its own `run`, when the one before it is used up."""
    number, has_next = 1, True
    while has_next:
        page = run(read_page(account, resource, number, query=query, now=now))
        yield from page.items
        number, has_next = number + 1, page.has_next


def read_all(
    account: Account, resource: Resource, *, query: Mapping[str, Any] | None = None, now: float
) -> Exchange[list[dict[str, Any]]]:
    """Read all pages of a list."""
    items: list[dict[str, Any]] = []
    number, has_next = 1, True
    while has_next:
        page = yield from read_page(account, resource, number, query=query, now=now)
        items += page.items
        number, has_next = number + 1, page.has_next
    return items


def read_one(
    account: Account, resource: Resource, item_id: int, *, query: Mapping[str, Any] | None = None, now: float
) -> Exchange[dict[str, Any] | None]:
    """Read one item; None if it is not there."""
    try:
        answer = yield from call(account, "GET", f"{resource.path}/{item_id}", query=query, now=now)
    except Rejected as refusal:
        if refusal.reason == "http_404":
            return None
        raise
    return answer or None


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
    """Add items, at most `resource.writes`, in one request; return what amoCRM made of each, in their order.

    Raises:
        ValidationFailed: items are wrong, none was written; its `items` are by the place of each ("0", "1" …).
        OutcomeUnknown: an item is missing in the answer.
    """
    return _write(account, "POST", resource, items, now)


def update(
    account: Account, resource: Resource, items: Sequence[Mapping[str, Any]], *, now: float
) -> Exchange[list[dict[str, Any]]]:
    """Change items, each with its `id` and only the fields that change; otherwise as `add`."""
    return _write(account, "PATCH", resource, items, now)


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


def _write(
    account: Account, method: str, resource: Resource, items: Sequence[Mapping[str, Any]], now: float
) -> Exchange[list[dict[str, Any]]]:
    assert 0 < len(items) <= resource.writes
    sent = [{**item, "request_id": str(place)} for place, item in enumerate(items)]
    answer = yield from call(account, method, resource.path, body=sent, now=now)
    made = {str(item.get("request_id")): item for item in embedded(answer, resource.key) or ()}
    try:
        return [made[item["request_id"]] for item in sent]
    except KeyError:
        raise OutcomeUnknown("answer_incomplete") from None


def embedded(answer: Mapping[str, Any], key: str) -> list[dict[str, Any]] | None:
    """Return the list of an answer, None if there is none under this key."""
    found = answer.get("_embedded")
    items = found.get(key) if isinstance(found, dict) else None
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else None
