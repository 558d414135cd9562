"""Whom and what in the hub the users and products of a source are: looked up as they come, kept for a while."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from itertools import batched, chain
from typing import Any

from bitrix_robot.mapping import match_users, product_ids
from bitrix_robot.portal import Portal
from crm_relay.bitrix24 import directory, products
from crm_relay.bitrix24.client import PAGE, Operation
from crm_relay.observability import needs_attention
from crm_relay.outcomes import Rejected
from crm_relay.settings import Bitrix24Route

_KEPT = 600
"""Seconds."""

type _Row = dict[str, Any]


class Matches:
    """The users and products of a route's hub for those of its source; the methods raise what `Portal.run` does.

    What a portal does not let us read is nobody and nothing there.
    """

    def __init__(self, route: Bitrix24Route, source: Portal, hub: Portal) -> None:
        """Match the portals of a route."""
        self._route = route
        self._source = source
        self._hub = hub
        self.users: dict[int, int] = {}
        """The hub's user for each of the source's that has the same e-mail."""
        self.responsible: int | None = None
        """The hub's user for what belongs to nobody there; None: whoever we are there."""
        self.products: dict[int, int] = {}
        """The hub's product for each of the source's."""
        self._asked: set[int | str] = set()
        self._asked_products: set[int] = set()
        self._read_at = 0.0

    def learn_users(self, ids: Iterable[int]) -> None:
        """Look up users of the source that are new to us."""
        self._forget()
        new = set(ids) - self._asked
        wanted = {self._route.responsible} - self._asked - {""}
        people = self._rows(self._source, directory.users_by_id, new)
        wanted |= {str(person["EMAIL"]) for person in people if person.get("EMAIL")}
        colleagues = self._rows(self._hub, directory.users_by_email, wanted)
        for person in colleagues:
            if self._route.responsible and _folded(person) == self._route.responsible.casefold():
                self.responsible = person["id"]
        self.users |= match_users(people, colleagues)
        self._asked |= new | wanted

    def learn_products(self, ids: Iterable[int]) -> None:
        """Look up products of the source that are new to us."""
        self._forget()
        rules = self._route.products
        new = set(ids) - self._asked_products - self.products.keys()
        if not new or rules.match == "none":
            return
        source = self._products_of(self._source, rules.source_catalogs, "id", new)
        key = "xmlId" if rules.match == "xml_id" else "name"
        words = {str(product[key]) for product in source if product.get(key)}
        hub = self._products_of(self._hub, rules.hub_catalogs, key, words)
        self.products |= product_ids(rules, source, hub)
        self._asked_products |= new

    def _forget(self) -> None:
        if self._hub.now() >= self._read_at + _KEPT:
            self._read_at = self._hub.now()
            self.users, self.responsible = {}, None
            self.products = product_ids(self._route.products)
            self._asked, self._asked_products = set(), set()

    def _rows[K: (int, str)](
        self, portal: Portal, read: Callable[[Sequence[K]], Operation[list[_Row]]], keys: Collection[K]
    ) -> list[_Row]:
        pages = (portal.do(read(page)) for page in batched(sorted(keys), PAGE))
        return _unless_refused(portal, lambda: list(chain.from_iterable(pages)))

    def _products_of(
        self, portal: Portal, catalogs: Iterable[int], key: str, values: Collection[int | str]
    ) -> list[_Row]:
        page = partial(products.catalog_products, filters={f"@{key}": sorted(values, key=str)})
        found = (portal.read_all(partial(page, catalog)) for catalog in catalogs if values)
        return _unless_refused(portal, lambda: list(chain.from_iterable(found)))


def _unless_refused(portal: Portal, read: Callable[[], list[_Row]]) -> list[_Row]:
    try:
        return read()
    except Rejected as refusal:
        needs_attention("users or products cannot be read", portal=portal.name, reason=refusal.reason)
        return []


def _folded(person: Mapping[str, Any]) -> str:
    return str(person.get("EMAIL") or "").strip().casefold()
