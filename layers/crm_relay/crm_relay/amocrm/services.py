"""The services of amoCRM, a row each (amoCRM reference, section 1), and what can be done with each.

Operations are written once. A client of `Sync` runs them and returns what they give; a client of `Async` returns
something to await, or an asynchronous iterator. All of them raise an `Outcome`, which says whether the request ran.
"""

from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import update_wrapper
from io import SEEK_END, BytesIO
from itertools import batched, groupby
from types import get_original_bases
from typing import Any, BinaryIO, ClassVar, Concatenate, Literal, Self, get_args, overload
from urllib.parse import quote

from crm_relay.amocrm import filters as f
from crm_relay.amocrm import models as m
from crm_relay.amocrm.client import ValidationFailed
from crm_relay.amocrm.resources import PAGE, embedded, every_page, page_of
from crm_relay.amocrm.session import Found, Session, Stream, Work
from crm_relay.outcomes import NotExecuted, Outcome, OutcomeUnknown, Rejected

WRITES = 50
"""Items of one write, as amoCRM advises; it takes 250."""


class Sync:
    """Operations return their results."""


class Async:
    """Operations return what is to be awaited."""


class Client[S]:
    """What operations belong to: it has a session, and something that carries them out."""

    session: Session

    def carry_out(self, work: Work[Any]) -> Any:
        """Return the result of an operation, or a coroutine that does."""
        raise NotImplementedError

    def hand_out(self, stream: Stream[Any]) -> Any:
        """Return an iterator over what an operation finds."""
        raise NotImplementedError


class operation[**P, T]:  # noqa: N801 (a decorator)
    """A method that is carried out: on a client of `Sync` it returns a T, on one of `Async` a coroutine that does."""

    def __init__(self, function: Callable[Concatenate[Any, P], Work[T]]) -> None:
        self.function = function
        self.__doc__ = function.__doc__

    @overload
    def __get__(self, owner: None, kind: Any) -> Self: ...
    @overload
    def __get__(self, owner: Client[Sync], kind: Any) -> Callable[P, T]: ...
    @overload
    def __get__(self, owner: Client[Async], kind: Any) -> Callable[P, Coroutine[Any, Any, T]]: ...
    def __get__(self, owner: Client[Any] | None, kind: Any) -> Any:
        """Return the method of a client."""
        if owner is None:
            return self

        def method(*args: P.args, **kwargs: P.kwargs) -> Any:
            return owner.carry_out(self.function(owner, *args, **kwargs))

        return update_wrapper(method, self.function)


class listing[**P, T]:  # noqa: N801 (a decorator)
    """A method that hands out what it reads: an iterator on a client of `Sync`, an asynchronous one on `Async`."""

    def __init__(self, function: Callable[Concatenate[Any, P], Stream[T]]) -> None:
        self.function = function
        self.__doc__ = function.__doc__

    @overload
    def __get__(self, owner: None, kind: Any) -> Self: ...
    @overload
    def __get__(self, owner: Client[Sync], kind: Any) -> Callable[P, Iterator[T]]: ...
    @overload
    def __get__(self, owner: Client[Async], kind: Any) -> Callable[P, AsyncIterator[T]]: ...
    def __get__(self, owner: Client[Any] | None, kind: Any) -> Any:
        """Return the method of a client."""
        if owner is None:
            return self

        def method(*args: P.args, **kwargs: P.kwargs) -> Any:
            return owner.hand_out(self.function(owner, *args, **kwargs))

        return update_wrapper(method, self.function)


@dataclass(frozen=True)
class Row:
    """A service as it is: where, under which key of `_embedded`, and what may come with its items.

    What its items are and what its list takes is said by the bases that the service has.

    Attributes:
        path: with places for what the service is of, such as {entity}.
        key: under `_embedded`; "" where the answer itself is the object.
        with_: what can be asked for in addition, with spaces between.
        paged: whether its list has pages.
        id: what an item is known by.
    """

    path: str
    key: str
    with_: str = ""
    paged: bool = True
    id: str = "id"


@dataclass(frozen=True)
class Page[M]:
    """One page of a list, and how to get to those beside it."""

    items: list[M]
    number: int
    has_next: bool
    query: Mapping[str, Any]

    def __iter__(self) -> Iterator[M]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)


@dataclass(frozen=True)
class Failure[M]:
    """An item that was not written: which, by its place in what was given, and why; `errors` are amoCRM's."""

    item: M
    place: int
    outcome: Outcome
    errors: tuple[str, ...] = ()


class UnknownField(Rejected, ValueError):
    """A custom field was set by a name that there is none of: nothing was sent of the entity."""

    def __init__(self, name: str) -> None:
        super().__init__(f"no custom field is named {name!r}")
        self.name = name


class NotAllWritten[M](Outcome):
    """Some items of a batch were not written: `failures` says which and why, `written` has the others.

    Whether an item that failed may be sent again is up to its own outcome.
    """

    def __init__(self, written: list[M], failures: list[Failure[M]]) -> None:
        super().__init__(f"{len(failures)} of {len(written) + len(failures)} not written: {failures[0].outcome}")
        self.written = written
        self.failures = failures


@dataclass(frozen=True)
class _Write[M]:
    """An item that is to be written: its place in what was given, and what is sent of it to where."""

    item: M
    place: int
    path: str
    body: dict[str, Any]


class Service[S, M: m.Model](Client[S]):
    """What all services have in common."""

    row: ClassVar[Row]
    model: ClassVar[type[m.Model]]
    """Of an item."""
    filter: ClassVar[type[f.Filter]]
    """Of the list."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for said in (argument for base in get_original_bases(cls) for argument in get_args(base)):
            if isinstance(said, type) and issubclass(said, m.Model):
                cls.model = said
            if isinstance(said, type) and issubclass(said, f.Filter):
                cls.filter = said

    def __init__(self, client: Client[S], **places: object) -> None:
        self._client = client
        self.session = client.session
        self._path = self.row.path.format(**places)
        self._places = places

    def carry_out(self, work: Work[Any]) -> Any:
        """Have the client carry an operation out."""
        return self._client.carry_out(work)

    def hand_out(self, stream: Stream[Any]) -> Any:
        """Have the client hand out what is found."""
        return self._client.hand_out(stream)

    def _host(self) -> Work[str | None]:
        yield from ()
        return None

    def _call(self, method: str, path: str = "", *, query: Any = None, body: Any = None) -> Work[dict[str, Any]]:
        host = yield from self._host()
        whole = f"{self._path}/{path}" if path else self._path
        return (yield from self.session.call(method, whole, query=query, body=body, host=host))

    def _read(self, item: Mapping[str, Any]) -> M:
        model: Any = self.model
        return model.read(item)  # type: ignore[no-any-return]

    def _query(self, filter_: f.Filter | None, with_: Iterable[str]) -> dict[str, Any]:
        query = filter_.parameters() if filter_ else {}
        wanted = list(with_)
        if unknown := set(wanted) - set(self.row.with_.split()):
            raise ValueError(f"{sorted(unknown)} cannot be asked for here, but {self.row.with_} can")
        if wanted:
            query["with"] = ",".join(wanted)
        return query

    def _page(self, query: Mapping[str, Any]) -> Work[Page[M]]:
        if self.row.paged:
            query = {**query, "limit": query.get("limit") or PAGE, "page": query.get("page") or 1}
        found = page_of((yield from self._call("GET", query=query)), self.row.key)
        return Page([self._read(item) for item in found.items], query.get("page", 1), found.has_next, query)

    def _each(self, query: Mapping[str, Any]) -> Stream[M]:
        has_next = True
        while has_next:
            page = yield from self._page(query)
            yield Found(page.items)
            query, has_next = {**page.query, "page": page.number + 1}, page.has_next and self.row.paged

    def _id(self, item: M | int | str) -> int | str:
        """Return what an item is known by.

        Raises:
            ValueError: it has no id yet.
        """
        known: int | str | None = getattr(item, self.row.id) if isinstance(item, m.Model) else item
        if known is None:
            raise ValueError(f"it has no {self.row.id} yet")
        return known

    def _of_item(self, item: M | int | str) -> str:
        """Return where an item is, below the service."""
        return quote(str(self._id(item)), safe="")


class Listed[S, M: m.Model, F: f.Filter](Service[S, M]):
    """A list."""

    @listing
    def list(self, where: F | None = None, *, with_: Iterable[str] = ()) -> Stream[M]:
        """Iterate over all items, page by page; a page is read when the one before it is used up."""
        yield from self._each(self._query(where, with_))

    @operation
    def page(self, where: F | None = None, *, with_: Iterable[str] = ()) -> Work[Page[M]]:
        """Read one page; an empty list is an empty page."""
        return (yield from self._page(self._query(where, with_)))

    @operation
    def next_page(self, page: Page[M]) -> Work[Page[M] | None]:
        """Read the page after this one; None if it is the last."""
        return (yield from self._page({**page.query, "page": page.number + 1})) if page.has_next else None

    @operation
    def previous_page(self, page: Page[M]) -> Work[Page[M] | None]:
        """Read the page before this one; None if it is the first."""
        return (yield from self._page({**page.query, "page": page.number - 1})) if page.number > 1 else None


class Got[S, M: m.Model](Service[S, M]):
    """Items one by one."""

    @operation
    def get(self, item_id: int | str, *, with_: Iterable[str] = ()) -> Work[M | None]:
        """Read an item; None if there is none."""
        answer = yield from _or_nothing(self._call("GET", self._of_item(item_id), query=self._query(None, with_)))
        return self._read(answer) if answer else None

    @operation
    def sync(self, item: M, *, with_: Iterable[str] = ()) -> Work[M]:
        """Read an item anew into its model; what was changed there and not written yet stays changed.

        Raises:
            Rejected: there is none any more.
        """
        answer = yield from self._call("GET", self._of_item(item), query=self._query(None, with_))
        if not answer:
            raise Rejected("http_404")
        item.sync(answer)
        return item


class Written[S, M: m.Model](Service[S, M]):
    """What writing has in common: any number of items, cut into requests."""

    fields_of: ClassVar[str] = ""
    """Where the definitions of the items' custom fields are, below api/v4."""
    by_place: ClassVar[bool] = False
    """Whether answers are matched by place, for want of a request_id."""

    def _add_path(self, _item: M) -> str:
        return self._path

    def _write(
        self,
        method: str,
        items: Sequence[M],
        writes: Iterable[_Write[M]],
        settle: Callable[[M, Mapping[str, Any]], None] = lambda item, answer: item.settle(answer),
    ) -> Work[None]:
        """Write in requests; whatever of an item is wrong before anybody is asked fails it alone."""
        waiting: list[_Write[M]] = []
        failures: list[Failure[M]] = []
        for write in writes:
            try:
                body = yield from self._with_field_ids(write.body, self.fields_of)
            except UnknownField as unknown:
                failures.append(Failure(write.item, write.place, unknown))
            else:
                named = body if self.by_place else {**body, "request_id": str(write.place)}
                waiting.append(replace(write, body=named))
        stopped: Outcome | None = None
        for path, same in groupby(waiting, key=lambda write: write.path):
            for some in batched(same, WRITES):
                outcome = stopped and NotExecuted("not_sent")
                try:
                    if outcome is None:
                        failures += yield from self._write_some(method, path, some, settle)
                except Outcome as failure:
                    outcome = failure
                    stopped = None if isinstance(failure, Rejected) else failure
                if outcome is not None:
                    failures += [Failure(write.item, write.place, outcome) for write in some]
        if failures:
            failures.sort(key=lambda failure: failure.place)
            failed = {failure.place for failure in failures}
            raise NotAllWritten([item for place, item in enumerate(items) if place not in failed], failures)

    def _write_some(
        self,
        method: str,
        path: str,
        writes: Sequence[_Write[M]],
        settle: Callable[[M, Mapping[str, Any]], None],
    ) -> Work[list[Failure[M]]]:
        failures: list[Failure[M]] = []
        while writes:
            sent = [write.body for write in writes]
            try:
                answer = yield from self.session.call(method, path, body=sent, host=(yield from self._host()))
            except ValidationFailed as refusal:
                errors = {write.place: refusal.items.get(str(write.place)) for write in writes}
                wrong = [
                    Failure(one.item, one.place, refusal, said)
                    for one in writes
                    if (said := errors[one.place]) is not None
                ]
                if not wrong:
                    raise
                # amoCRM has written nothing of the request, so what is right can be sent again.
                failures += wrong
                writes = [write for write in writes if errors[write.place] is None]
                continue
            made = self._made([write.place for write in writes], answer)
            for write in writes:
                if write.place in made:
                    settle(write.item, made[write.place])
                else:
                    failures.append(Failure(write.item, write.place, OutcomeUnknown("answer_incomplete")))
            break
        return failures

    def _made(self, places: Sequence[int], answer: Mapping[str, Any]) -> dict[int, Mapping[str, Any]]:
        """Return what amoCRM made of the items, by their places; leads that it merged share one answer."""
        made: list[dict[str, Any]] = answer["items"] if "items" in answer else embedded(answer, self.row.key) or []
        if self.by_place:
            return dict(zip(places, made, strict=False))
        found: dict[str, Mapping[str, Any]] = {}
        for one in made:
            names = one.get("request_id")
            found |= dict.fromkeys(map(str, names if isinstance(names, list) else [names]), one)
        return {place: found[str(place)] for place in places if str(place) in found}

    def _with_field_ids(self, body: dict[str, Any], fields_of: str) -> Work[dict[str, Any]]:
        """Return what is sent, where custom fields that were set by name, also of what is inside, have their ids."""
        parts = dict(body.get("_embedded", {}))
        for kind in parts.keys() & {"leads", "contacts", "companies"}:
            inside = []
            for part in parts[kind] or ():
                known_part = yield from self._with_field_ids(part, kind)
                inside.append(known_part)
            parts[kind] = inside
        if parts:
            body = {**body, "_embedded": parts}
        fields = body.get("custom_fields_values") or ()
        if not any("field_name" in held for held in fields):
            return body
        place = fields_of.format(**self._places)
        if place not in self.session.field_ids:
            self.session.field_ids[place] = yield from self._field_ids(place)
        ids = self.session.field_ids[place]
        known = []
        for held in fields:
            name = held.get("field_name")
            if name is not None and name not in ids:
                raise UnknownField(name)
            known.append(held if name is None else {"field_id": ids[name], "values": held["values"]})
        return {**body, "custom_fields_values": known}

    def _field_ids(self, place: str) -> Work[dict[str, int]]:
        path = f"api/v4/{place}/custom_fields"
        found = yield from every_page(
            lambda number: self.session.call("GET", path, query={"limit": PAGE, "page": number}), "custom_fields"
        )
        return {field["name"]: field["id"] for field in found}


class Added[S, M: m.Model](Written[S, M]):
    """New items."""

    @operation
    def add(self, items: Iterable[M]) -> Work[list[M]]:
        """Add any number of items, 50 a request; each model gets its id.

        Raises:
            NotAllWritten: some were not added; it says which, and why.
        """
        given = [*items]
        yield from self._write("POST", given, self._new(given))
        return given

    @operation
    def add_one(self, item: M) -> Work[M]:
        """Add an item; its model gets its id."""
        yield from _of_one(self._write("POST", [item], self._new([item])))
        return item

    def _new(self, items: Iterable[M]) -> Iterator[_Write[M]]:
        return (_Write(item, place, self._add_path(item), item.changes()) for place, item in enumerate(items))


class Updated[S, M: m.Model](Written[S, M]):
    """Changes of many items."""

    @operation
    def update(self, items: Iterable[M]) -> Work[list[M]]:
        """Write what changed of any number of items, 50 a request; what has not changed is not sent.

        Raises:
            NotAllWritten: some were not written; it says which, and why.
        """
        given = [*items]
        writes = (
            _Write(item, place, self._path, {self.row.id: self._id(item), **changes})
            for place, item in enumerate(given)
            if (changes := item.changes())
        )
        yield from self._write("PATCH", given, writes)
        return given


class UpdatedOne[S, M: m.Model](Written[S, M]):
    """Changes of one item."""

    @operation
    def update_one(self, item: M) -> Work[M]:
        """Write what changed of an item; if nothing has, nothing is sent."""
        if changes := item.changes():
            body = yield from self._with_field_ids(changes, self.fields_of)
            item.settle((yield from self._call("PATCH", self._of_item(item), body=body)))
        return item


class Kept[S, M: m.Model, F: f.Filter](Listed[S, M, F], Got[S, M], Added[S, M], UpdatedOne[S, M]):
    """What most services can do."""


class DeletedOne[S, M: m.Model](Service[S, M]):
    """Items that can be deleted."""

    @operation
    def delete_one(self, item: M | int | str) -> Work[None]:
        """Delete an item, named by its model or id."""
        yield from self._call("DELETE", self._of_item(item))


class Settings[S, M: m.Model](Kept[S, M, f.PagesFilter], DeletedOne[S, M]):
    """What can be done with most of an account's settings."""


class Deleted[S, M: m.Model](DeletedOne[S, M]):
    """Items of which many can be deleted at once."""

    @operation
    def delete(self, items: Iterable[M | int | str]) -> Work[None]:
        """Delete any number of items, named by their models or ids, 50 a request."""
        for some in batched(items, WRITES):
            yield from self._call("DELETE", body=[{self.row.id: self._id(item)} for item in some])


class Linked[S, M: m.Model](Service[S, M]):
    """Entities that are linked with others: both ends are named by model or id."""

    @operation
    def links(self, item: M | int, where: f.LinksFilter | None = None) -> Work[list[m.Link]]:
        """Read what an entity is linked with."""
        answer = yield from self._call("GET", f"{self._of_item(item)}/links", query=self._query(where, ()))
        return [m.Link.read(link) for link in embedded(answer, "links") or ()]

    @operation
    def link(self, item: M | int, links: Iterable[m.Link]) -> Work[list[m.Link]]:
        """Link an entity with others: `to_entity_id`, `to_entity_type`, and `metadata` such as is_main or quantity."""
        body = [link.written() for link in links]
        answer = yield from self._call("POST", f"{self._of_item(item)}/link", body=body)
        return [m.Link.read(link) for link in embedded(answer, "links") or ()]

    @operation
    def unlink(self, item: M | int, links: Iterable[m.Link]) -> Work[None]:
        """Undo links."""
        yield from self._call("POST", f"{self._of_item(item)}/unlink", body=[link.written() for link in links])


class Cards[S, M: m.Model, F: f.Filter](Kept[S, M, F], Updated[S, M], Linked[S, M]):
    """What can be done with all that has a card."""


def _of_one[T](work: Work[T]) -> Work[T]:
    """Raise what became of the one item."""
    try:
        return (yield from work)
    except NotAllWritten as batch:
        raise batch.failures[0].outcome from batch.failures[0].outcome.__cause__


def _or_nothing(work: Work[dict[str, Any]]) -> Work[dict[str, Any]]:
    try:
        return (yield from work)
    except Rejected as refusal:
        if refusal.reason != "http_404":
            raise
        return {}


def _place(entity: str) -> str:
    """Return the path of an entity's kind: "catalogs:1001" is a list, "segments" are the customers'."""
    return "customers/segments" if entity == "segments" else entity.replace(":", "/")


# The rows


class AccountService[S](Service[S, m.Account]):
    """The account."""

    row = Row(
        "api/v4/account",
        "",
        with_="amojo_id uuid amojo_rights users_groups task_types version datetime_settings invoices_settings "
        "is_api_filter_enabled drive_url",
    )

    @operation
    def get(self, *, with_: Iterable[str] = ()) -> Work[m.Account]:
        """Read the account."""
        return m.Account.read((yield from self._call("GET", query=self._query(None, with_))))


class Leads[S](Cards[S, m.Lead, f.LeadsFilter]):
    """Leads."""

    row = Row(
        "api/v4/leads",
        "leads",
        with_="catalog_elements is_price_modified_by_robot contacts source_id loss_reason only_deleted source",
    )
    fields_of = "leads"

    @operation
    def add_complex(self, leads: Iterable[m.Lead]) -> Work[list[m.ComplexLead]]:
        """Add leads, each with one contact and one company, under duplicate control, 50 a request.

        `merged` tells that amoCRM found the lead and made none. A company that exists may not be linked: look.

        Raises:
            NotAllWritten: some were not added; it says which, and why.
        """
        given = [*leads]
        made: dict[int, m.ComplexLead] = {}

        def settle(lead: m.Lead, answer: Mapping[str, Any]) -> None:
            lead.settle({"id": answer["id"]})
            made[id(lead)] = m.ComplexLead.read(answer)

        path = f"{self._path}/complex"
        writes = (_Write(lead, place, path, lead.written()) for place, lead in enumerate(given))
        yield from self._write("POST", given, writes, settle)
        return [made[id(lead)] for lead in given]

    @operation
    def add_one_complex(self, lead: m.Lead) -> Work[m.ComplexLead]:
        """Add a lead with one contact and one company."""
        (made,) = yield from _of_one(Leads.add_complex.function(self, [lead]))
        return made


class Contacts[S](Cards[S, m.Contact, f.ContactsFilter]):
    """Contacts."""

    row = Row("api/v4/contacts", "contacts", with_="leads customers catalog_elements social_profiles only_deleted")
    fields_of = "contacts"

    @operation
    def chats(self, where: f.ChatLinksFilter | None = None) -> Work[list[m.ChatLink]]:
        """Read which chats contacts have."""
        answer = yield from self._call("GET", "chats", query=self._query(where, ()))
        return [m.ChatLink.read(link) for link in embedded(answer, "chats") or ()]

    @operation
    def link_chats(self, links: Iterable[m.ChatLink]) -> Work[list[m.ChatLink]]:
        """Give chats to contacts."""
        body = [{**link.written(), "request_id": str(place)} for place, link in enumerate(links)]
        answer = yield from self._call("POST", "chats", body=body)
        return [m.ChatLink.read(link) for link in embedded(answer, "chats") or ()]


class Companies[S](Cards[S, m.Company, f.CompaniesFilter]):
    """Companies."""

    row = Row("api/v4/companies", "companies", with_="leads customers contacts catalog_elements only_deleted")
    fields_of = "companies"


class Customers[S](Cards[S, m.Customer, f.CustomersFilter]):
    """Customers."""

    row = Row("api/v4/customers", "customers", with_="catalog_elements companies contacts group_id")
    fields_of = "customers"

    @operation
    def set_mode(self, mode: Literal["periodicity", "segments"], *, is_enabled: bool = True) -> Work[str | None]:
        """Choose how customers are kept; return the mode that is on, None if customers are off."""
        answer = yield from self._call("PATCH", "mode", body={"mode": mode, "is_enabled": is_enabled})
        return answer.get("mode")


class CustomersBonusPoints[S](Service[S, m.Model]):
    """Bonus points of a customer."""

    row = Row("api/v4/customers/{customer_id}/bonus_points", "")

    @operation
    def earn(self, points: int) -> Work[int]:
        """Give the customer points; return how many there are now."""
        return int((yield from self._call("POST", body={"earn": points})).get("bonus_points", 0))

    @operation
    def redeem(self, points: int) -> Work[int]:
        """Take points off the customer; return how many are left."""
        return int((yield from self._call("POST", body={"redeem": points})).get("bonus_points", 0))


class CustomersSegments[S](Listed[S, m.Segment, f.PagesFilter], Got[S, m.Segment], UpdatedOne[S, m.Segment]):
    """Segments of customers."""

    row = Row("api/v4/customers/segments", "segments")
    fields_of = "customers/segments"

    @operation
    def add_one(self, item: m.Segment) -> Work[m.Segment]:
        """Add a segment; its model gets its id."""
        body = yield from self._with_field_ids(item.changes(), self.fields_of)
        answer = yield from self._call("POST", body=body)
        item.settle(next(iter(embedded(answer, "segments") or ()), answer))
        return item


class CustomersStatuses[S](Settings[S, m.CustomerStatus]):
    """Stages of customers."""

    row = Row("api/v4/customers/statuses", "statuses", paged=False)


class Transactions[S](
    Listed[S, m.Transaction, f.PagesFilter],
    Got[S, m.Transaction],
    Added[S, m.Transaction],
):
    """Purchases, of one customer or of all; a new one, or one to delete, needs its customer."""

    row = Row("api/v4/customers/transactions", "transactions")

    def __init__(self, client: Client[S], customer_id: int | None = None, *, accrue_bonus: bool = False) -> None:
        super().__init__(client)
        self._customer_id = customer_id
        self._accrue_bonus = accrue_bonus
        if customer_id is not None:
            self._path = self._of_customer(None)

    @operation
    def delete_one(self, item: m.Transaction | int) -> Work[None]:
        """Delete a purchase, named by its model or, of one customer, by id."""
        path = self._of_customer(item if isinstance(item, m.Transaction) else None)
        yield from self.session.call("DELETE", f"{path}/{self._of_item(item)}")

    def _add_path(self, item: m.Transaction) -> str:
        return f"{self._of_customer(item)}?accrue_bonus={str(self._accrue_bonus).lower()}"

    def _of_customer(self, item: m.Transaction | None) -> str:
        owner = self._customer_id if item is None or item.customer_id is None else item.customer_id
        if owner is None:
            raise ValueError("it has no customer_id yet")
        return f"api/v4/customers/{owner}/transactions"


class Catalogs[S](Kept[S, m.Catalog, f.CatalogsFilter], Updated[S, m.Catalog]):
    """Lists."""

    row = Row("api/v4/catalogs", "catalogs")


class CatalogElements[S](Cards[S, m.CatalogElement, f.CatalogElementsFilter]):
    """Elements of a list."""

    row = Row("api/v4/catalogs/{catalog_id}/elements", "elements", with_="invoice_link supplier_field_values")
    fields_of = "catalogs/{catalog_id}"


class CustomFieldDefinitions[S](
    Kept[S, m.CustomField, f.CustomFieldsFilter], Updated[S, m.CustomField], DeletedOne[S, m.CustomField]
):
    """Definitions of custom fields."""

    row = Row("api/v4/{entity}/custom_fields", "custom_fields")


class CustomFieldGroups[S](Settings[S, m.CustomFieldGroup]):
    """Tabs of custom fields."""

    row = Row("api/v4/{entity}/custom_fields/groups", "custom_field_groups", paged=False)


class Notes[S](Listed[S, m.Note, f.NotesFilter], Added[S, m.Note], Updated[S, m.Note], UpdatedOne[S, m.Note]):
    """Notes of all entities of a kind."""

    row = Row("api/v4/{entity}/notes", "notes", with_="is_pinned")

    @operation
    def get(self, note_id: int, *, entity_id: int | None = None, with_: Iterable[str] = ()) -> Work[m.Note | None]:
        """Read a note, by its id alone or in the card of an entity; None if there is none."""
        path = self._path if entity_id is None else f"api/v4/{self._places['entity']}/{entity_id}/notes"
        answer = yield from _or_nothing(self.session.call("GET", f"{path}/{note_id}", query=self._query(None, with_)))
        return m.Note.read(answer) if answer else None

    @operation
    def sync(self, item: m.Note, *, with_: Iterable[str] = ()) -> Work[m.Note]:
        """Read a note anew into its model; what was changed there and not written yet stays changed."""
        item.sync((yield from self.session.call("GET", self._own_path(item), query=self._query(None, with_))))
        return item

    @listing
    def of(self, entity_id: int, where: f.NotesFilter | None = None, *, with_: Iterable[str] = ()) -> Stream[m.Note]:
        """Iterate over the notes of one entity."""
        above = Notes[S](self, entity=f"{self._places['entity']}/{entity_id}")
        yield from above._each(self._query(where, with_))

    @operation
    def add(self, items: Iterable[m.Note]) -> Work[list[m.Note]]:
        """Add any number of notes, 50 a request.

        amoCRM shows notes of one card and one second as one, so those that share a `created_at` are set a second apart.

        Raises:
            NotAllWritten: some were not added; it says which, and why.
        """
        given = [*items]
        taken: set[tuple[int | None, int]] = set()
        for note in given:
            while note.created_at is not None and (note.entity_id, note.created_at) in taken:
                note.created_at += 1
            if note.created_at is not None:
                taken.add((note.entity_id, note.created_at))
        yield from self._write("POST", given, self._new(given))
        return given

    @operation
    def update_one(self, item: m.Note) -> Work[m.Note]:
        """Write what changed of a note, where its entity is known in that one's card."""
        if changes := item.changes():
            item.settle((yield from self.session.call("PATCH", self._own_path(item), body=changes)))
        return item

    @operation
    def pin(self, note_id: int) -> Work[None]:
        """Pin a note."""
        yield from self._call("POST", f"{note_id}/pin")

    @operation
    def unpin(self, note_id: int) -> Work[None]:
        """Unpin a note."""
        yield from self._call("POST", f"{note_id}/unpin")

    def _own_path(self, note: m.Note) -> str:
        card = "" if note.entity_id is None else f"/{note.entity_id}"
        return f"api/v4/{self._places['entity']}{card}/notes/{self._of_item(note)}"


class Tags[S](Listed[S, m.Tag, f.TagsFilter], Added[S, m.Tag], Updated[S, m.Tag], UpdatedOne[S, m.Tag]):
    """Tags of a kind of entities; those of leads alone can be changed."""

    row = Row("api/v4/{entity}/tags", "tags")


class Tasks[S](Kept[S, m.Task, f.TasksFilter], Updated[S, m.Task]):
    """Tasks."""

    row = Row("api/v4/tasks", "tasks")


class Links[S](Listed[S, m.Link, f.EntitiesLinksFilter]):
    """Links of many entities of a kind at once; the list needs a filter with `entity_id`."""

    row = Row("api/v4/{entity}/links", "links", paged=False)

    @operation
    def add(self, links: Iterable[m.Link]) -> Work[list[m.Link]]:
        """Link entities, 50 a request."""
        made: list[m.Link] = []
        for some in batched(links, WRITES):
            answer = yield from self._of_all("link", some)
            made += [m.Link.read(link) for link in embedded(answer, "links") or ()]
        return made

    @operation
    def delete(self, links: Iterable[m.Link]) -> Work[None]:
        """Undo links, 50 a request."""
        for some in batched(links, WRITES):
            yield from self._of_all("unlink", some)

    def _of_all(self, action: str, links: Iterable[m.Link]) -> Work[dict[str, Any]]:
        path = f"api/v4/{self._places['entity']}/{action}"
        return (yield from self.session.call("POST", path, body=[link.written() for link in links]))


class Users[S](Listed[S, m.User, f.PagesFilter], Got[S, m.User], Added[S, m.User]):
    """Users."""

    row = Row("api/v4/users", "users", with_="role uuid group amojo_id user_rank phone_number")

    @operation
    def activate(self, ids: Iterable[int]) -> Work[None]:
        """Let users in again, 10 a request."""
        yield from self._switch("activate", ids)

    @operation
    def deactivate(self, ids: Iterable[int]) -> Work[None]:
        """Keep users out, 10 a request."""
        yield from self._switch("deactivate", ids)

    def _switch(self, action: str, ids: Iterable[int]) -> Work[None]:
        for some in batched(ids, 10):
            yield from self._call("POST", action, body=[{"id": one} for one in some])


class Roles[S](Kept[S, m.Role, f.PagesFilter], Updated[S, m.Role], DeletedOne[S, m.Role]):
    """Roles."""

    row = Row("api/v4/roles", "roles", with_="users")


class Pipelines[S](Settings[S, m.Pipeline]):
    """Pipelines of leads; their stages come along."""

    row = Row("api/v4/leads/pipelines", "pipelines", paged=False)


class Statuses[S](Settings[S, m.Status]):
    """Stages of a pipeline."""

    row = Row("api/v4/leads/pipelines/{pipeline_id}/statuses", "statuses", with_="descriptions", paged=False)


class LossReasons[S](Settings[S, m.LossReason]):
    """Why leads are lost."""

    row = Row("api/v4/leads/loss_reasons", "loss_reasons", paged=False)


class UnsortedService[S](Listed[S, m.Unsorted, f.UnsortedFilter], Got[S, m.Unsorted], Added[S, m.Unsorted]):
    """Incoming leads; new ones are of the category sip or forms."""

    row = Row("api/v4/leads/unsorted", "unsorted", id="uid")

    @operation
    def accept(self, uid: str, *, user_id: int | None = None, status_id: int | None = None) -> Work[m.Unsorted]:
        """Accept, in the name of a user, into a stage; the answer has the lead."""
        body = _given(user_id=user_id, status_id=status_id)
        return m.Unsorted.read((yield from self._call("POST", f"{self._of_item(uid)}/accept", body=body)))

    @operation
    def decline(self, uid: str, *, user_id: int | None = None) -> Work[m.Unsorted]:
        """Decline, in the name of a user."""
        return m.Unsorted.read(
            (yield from self._call("DELETE", f"{self._of_item(uid)}/decline", body=_given(user_id=user_id)))
        )

    @operation
    def link(self, uid: str, entity_type: str, entity_id: int, *, user_id: int | None = None) -> Work[m.Unsorted]:
        """Add what came, a chat or a mail, to an entity that exists."""
        body = {"link": {"entity_type": entity_type, "entity_id": entity_id}, **_given(user_id=user_id)}
        return m.Unsorted.read((yield from self._call("POST", f"{self._of_item(uid)}/link", body=body)))

    @operation
    def summary(self, where: f.UnsortedSummaryFilter | None = None) -> Work[m.UnsortedSummary]:
        """Count what came."""
        return m.UnsortedSummary.read((yield from self._call("GET", "summary", query=self._query(where, ()))))

    def _add_path(self, item: m.Unsorted) -> str:
        return f"{self._path}/{item.category}"


class Calls[S](Added[S, m.Call]):
    """Calls; a call that is added gets to the card of whoever has its phone."""

    row = Row("api/v4/calls", "calls")


class Events[S](Listed[S, m.Event, f.EventsFilter], Got[S, m.Event]):
    """Events."""

    row = Row(
        "api/v4/events",
        "events",
        with_="contact_name lead_name company_name catalog_element_name customer_name catalog_name note",
    )


class EventTypes[S](Listed[S, m.EventType, f.EventTypesFilter]):
    """Types of events."""

    row = Row("api/v4/events/types", "events_types", paged=False)


class Webhooks[S](Listed[S, m.Webhook, f.WebhooksFilter]):
    """Hooks."""

    row = Row("api/v4/webhooks", "webhooks", paged=False)

    @operation
    def subscribe(self, destination: str, settings: Iterable[str], *, sort: int | None = None) -> Work[m.Webhook]:
        """Have hooks such as "add_lead" sent to a URL; one that is subscribed already gets these."""
        body = {"destination": destination, "settings": [*settings], **_given(sort=sort)}
        return m.Webhook.read((yield from self._call("POST", body=body)))

    @operation
    def unsubscribe(self, destination: str) -> Work[None]:
        """End the hooks of a URL."""
        yield from self._call("DELETE", body={"destination": destination})


class Widgets[S](Listed[S, m.Widget, f.PagesFilter], Got[S, m.Widget]):
    """Widgets, by code."""

    row = Row("api/v4/widgets", "widgets", id="code")

    @operation
    def install(self, code: str, settings: Mapping[str, Any]) -> Work[m.Widget]:
        """Install a widget, or change its settings."""
        return m.Widget.read((yield from self._call("POST", self._of_item(code), body=settings)))

    @operation
    def uninstall(self, code: str) -> Work[None]:
        """Uninstall a widget."""
        yield from self._call("DELETE", self._of_item(code))


class Products[S](Service[S, m.ProductsSettings]):
    """Products."""

    row = Row("api/v4/catalogs/products/settings", "")

    @operation
    def settings(self) -> Work[m.ProductsSettings]:
        """Read whether products are on."""
        return m.ProductsSettings.read((yield from self._call("GET")))

    @operation
    def update_settings(self, *, is_enabled: bool) -> Work[m.ProductsSettings]:
        """Switch products on or off."""
        return m.ProductsSettings.read((yield from self._call("PATCH", body={"is_enabled": is_enabled})))


class Talks[S](Listed[S, m.Talk, f.PagesFilter], Got[S, m.Talk]):
    """Conversations."""

    row = Row("api/v4/talks", "talks", id="talk_id")

    @operation
    def close(self, talk_id: int, *, force: bool = False) -> Work[None]:
        """Close a conversation; the bot that asks for a mark comes first, unless `force`."""
        yield from self._call("POST", f"{talk_id}/close", body={"force_close": force})


class Sources[S](Kept[S, m.Source, f.SourcesFilter], Updated[S, m.Source], Deleted[S, m.Source]):
    """Sources of chats."""

    row = Row("api/v4/sources", "sources", paged=False)


class WebsiteButtons[S](Listed[S, m.WebsiteButton, f.PagesFilter], Got[S, m.WebsiteButton]):
    """Buttons on web sites, by the id of their source."""

    row = Row("api/v4/website_buttons", "website_buttons", with_="scripts deleted", id="source_id")

    @operation
    def create(
        self,
        pipeline_id: int,
        trusted_websites: Iterable[str],
        *,
        name: str | None = None,
        is_used_in_app: bool | None = None,
    ) -> Work[m.WebsiteButton]:
        """Begin to make a button; `creation_status` tells later how far it is."""
        body = {
            "pipeline_id": pipeline_id,
            "trusted_websites": [*trusted_websites],
            **_given(name=name, is_used_in_app=is_used_in_app),
        }
        return m.WebsiteButton.read((yield from self._call("POST", body=body)))

    @operation
    def update(self, source_id: int, *, add: Iterable[str] = (), name: str | None = None) -> Work[m.WebsiteButton]:
        """Add trusted sites, or give a name."""
        sites = [*add]
        body = {**_given(trusted_websites={"add": sites} if sites else None), **_given(name=name)}
        return m.WebsiteButton.read((yield from self._call("PATCH", str(source_id), body=body)))

    @operation
    def add_online_chat(self, source_id: int) -> Work[None]:
        """Begin to add an online chat to a button."""
        yield from self._call("POST", f"{source_id}/online_chat")


class ShortLinks[S](Listed[S, m.ShortLink, f.PagesFilter], Got[S, m.ShortLink], Added[S, m.ShortLink]):
    """Short links."""

    row = Row("api/v4/short_links", "short_links")
    by_place = True


class ChatTemplates[S](
    Kept[S, m.ChatTemplate, f.TemplatesFilter], Updated[S, m.ChatTemplate], Deleted[S, m.ChatTemplate]
):
    """Templates of messages."""

    row = Row("api/v4/chats/templates", "chat_templates", with_="reviews")

    @operation
    def send_on_review(self, template_id: int) -> Work[list[m.Review]]:
        """Have WhatsApp look at a template."""
        answer = yield from self._call("POST", f"{template_id}/review")
        return [m.Review.read(review) for review in embedded(answer, "reviews") or ()]

    @operation
    def update_review_status(self, template_id: int, review: m.Review) -> Work[m.Review]:
        """Tell what WhatsApp said: `status` and, where it refused, `reject_reason`."""
        return m.Review.read(
            (yield from self._call("POST", f"{template_id}/review/{review.id}", body=review.written()))
        )


class EntitySubscriptions[S](Listed[S, m.Subscription, f.PagesFilter]):
    """Who is told of an entity's changes."""

    row = Row("api/v4/{entity}/{entity_id}/subscriptions", "subscriptions")


class Currencies[S](Listed[S, m.Currency, f.CurrenciesFilter]):
    """Currencies."""

    row = Row("api/v4/currencies", "currencies")


class Files[S](Listed[S, m.File, f.FilesFilter], Got[S, m.File], UpdatedOne[S, m.File], Deleted[S, m.File]):
    """Files on the drive."""

    row = Row("v1.0/files", "files", with_="deleted unbilled", id="uuid")

    def _host(self) -> Work[str | None]:
        return (yield from self.session.drive())

    @operation
    def delete_one(self, item: m.File | int | str) -> Work[None]:
        """Delete a file, named by its model or uuid."""
        yield from self._call("DELETE", body=[{"uuid": self._id(item)}])

    @operation
    def upload(
        self,
        content: bytes | BinaryIO,
        name: str,
        content_type: str = "application/octet-stream",
        *,
        new_version_of: str | None = None,
        with_preview: bool | None = None,
        created_by: int | None = None,
    ) -> Work[m.File]:
        """Upload a file in as many parts as the drive wants.

        Args:
            content: bytes, or a file that is open for reading.
            name: of the file.
            content_type: of the file.
            new_version_of: the uuid of a file that this is a new version of.
            with_preview: whether to make previews.
            created_by: the user in whose name.

        Raises:
            OutcomeUnknown: the drive ended the upload without a file.
        """
        file = BytesIO(content) if isinstance(content, bytes) else content
        size = file.seek(0, SEEK_END)
        file.seek(0)
        author = None if created_by is None else {"id": created_by, "type": "internal"}
        body = {
            "file_name": name,
            "file_size": size,
            "content_type": content_type,
            **_given(file_uuid=new_version_of, with_preview=with_preview, created_by=author),
        }
        session = yield from self.session.call("POST", "v1.0/sessions", body=body, host=(yield from self._host()))
        match session:
            case {"upload_url": str(first), "max_part_size": int(most)} if most > 0:
                url: str | None = first
            case _:
                raise OutcomeUnknown("answer_malformed")
        answer: dict[str, Any] = {}
        while url and (file.tell() < size or not answer):
            answer = yield from self.session.upload(url, file.read(most), content_type)
            url = answer.get("next_url")
        if not answer.get("uuid"):
            raise OutcomeUnknown("upload_incomplete")
        return m.File.read(answer)


class EntityFiles[S](Listed[S, m.EntityFile, f.PagesFilter]):
    """Files in the card of an entity, by uuid."""

    row = Row("api/v4/{entity}/{entity_id}/files", "files")

    @operation
    def add(self, uuids: Iterable[str]) -> Work[None]:
        """Put files of the drive into the card."""
        yield from self._call("PUT", body=[{"file_uuid": uuid} for uuid in uuids])

    @operation
    def delete(self, uuids: Iterable[str]) -> Work[None]:
        """Take files out of the card; they stay on the drive."""
        yield from self._call("DELETE", body=[{"file_uuid": uuid} for uuid in uuids])


class Bots[S](Listed[S, m.Bot, f.PagesFilter], Got[S, m.Bot]):
    """Salesbots."""

    row = Row("api/v4/bots", "bots")

    @operation
    def run(self, runs: Iterable[Mapping[str, Any]]) -> Work[None]:
        """Start bots, 100 a request: each as {"bot_id", "entity_id", "entity_type"}; 2 is a lead, 12 a customer."""
        for some in batched(runs, 100):
            yield from self._call("POST", "run", body=[dict(one) for one in some])

    @operation
    def run_one(self, bot_id: int, entity_id: int, entity_type: int) -> Work[None]:
        """Start a bot in an entity."""
        yield from self._call("POST", f"{bot_id}/run", body={"entity_id": entity_id, "entity_type": entity_type})

    @operation
    def stop(self, bot_id: int, entity_id: int, entity_type: int) -> Work[None]:
        """Stop a bot in an entity."""
        yield from self._call("POST", f"{bot_id}/stop", body={"entity_id": entity_id, "entity_type": entity_type})

    @operation
    def go_on(
        self,
        bot_id: int,
        continue_id: int,
        *,
        data: Mapping[str, Any] | None = None,
        execute_handlers: Sequence[Mapping[str, Any]] = (),
        bot_type: Literal["salesbot", "marketingbot"] = "salesbot",
    ) -> Work[None]:
        """Let a bot go on that waits at a step of a widget."""
        body = {"data": dict(data or {}), "execute_handlers": [*execute_handlers]}
        path = f"api/v4/{bot_type}/{bot_id}/continue/{continue_id}"
        yield from self.session.call("POST", path, body=body)


def _given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


class Services[S](Client[S]):
    """The services of an account. `entity` is "leads", "contacts", "companies" or "customers" unless it says more."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.account = AccountService(self)
        self.leads = Leads(self)
        self.contacts = Contacts(self)
        self.companies = Companies(self)
        self.customers = Customers(self)
        self.customers_segments = CustomersSegments(self)
        self.customers_statuses = CustomersStatuses(self)
        self.catalogs = Catalogs(self)
        self.tasks = Tasks(self)
        self.users = Users(self)
        self.roles = Roles(self)
        self.pipelines = Pipelines(self)
        self.loss_reasons = LossReasons(self)
        self.unsorted = UnsortedService(self)
        self.calls = Calls(self)
        self.events = Events(self)
        self.event_types = EventTypes(self)
        self.webhooks = Webhooks(self)
        self.widgets = Widgets(self)
        self.products = Products(self)
        self.talks = Talks(self)
        self.sources = Sources(self)
        self.website_buttons = WebsiteButtons(self)
        self.short_links = ShortLinks(self)
        self.chat_templates = ChatTemplates(self)
        self.currencies = Currencies(self)
        self.files = Files(self)
        self.bots = Bots(self)

    def as_user(self, user_id: int) -> Self:
        """Return a client that acts with a user's rights, by an administrator's token."""
        other = copy(self)
        terms = replace(self.session.terms, context_user_id=user_id)
        Services.__init__(other, replace(self.session, terms=terms))
        return other

    @operation
    def request(
        self, method: str, path: str, *, query: Mapping[str, Any] | None = None, body: Any = None
    ) -> Work[dict[str, Any]]:
        """Ask for what no service has; `path` is behind the host, a bare list comes as {"items": […]}."""
        return (yield from self.session.call(method, path, query=query, body=body))

    def notes(self, entity: str) -> Notes[S]:
        """Return the notes of a kind of entities."""
        return Notes(self, entity=entity)

    def tags(self, entity: str) -> Tags[S]:
        """Return the tags of a kind of entities."""
        return Tags(self, entity=entity)

    def links(self, entity: str) -> Links[S]:
        """Return the links of a kind of entities."""
        return Links(self, entity=entity)

    def custom_fields(self, entity: str) -> CustomFieldDefinitions[S]:
        """Return the custom fields of a kind of entities, also of "segments", or of a list, as "catalogs:1001"."""
        return CustomFieldDefinitions(self, entity=_place(entity))

    def custom_field_groups(self, entity: str) -> CustomFieldGroups[S]:
        """Return the tabs of custom fields of a kind of entities, or of a list, as "catalogs:1001"."""
        return CustomFieldGroups(self, entity=_place(entity))

    def statuses(self, pipeline_id: int) -> Statuses[S]:
        """Return the stages of a pipeline."""
        return Statuses(self, pipeline_id=pipeline_id)

    def catalog_elements(self, catalog_id: int) -> CatalogElements[S]:
        """Return the elements of a list."""
        return CatalogElements(self, catalog_id=catalog_id)

    def customers_bonus_points(self, customer_id: int) -> CustomersBonusPoints[S]:
        """Return the bonus points of a customer."""
        return CustomersBonusPoints(self, customer_id=customer_id)

    def transactions(self, customer_id: int | None = None, *, accrue_bonus: bool = False) -> Transactions[S]:
        """Return the purchases of a customer, or of all; a new one may bring the customer bonus points."""
        return Transactions(self, customer_id, accrue_bonus=accrue_bonus)

    def entity_subscriptions(self, entity: str, entity_id: int) -> EntitySubscriptions[S]:
        """Return the subscriptions of a lead or a customer."""
        return EntitySubscriptions(self, entity=entity, entity_id=entity_id)

    def entity_files(self, entity: str, entity_id: int) -> EntityFiles[S]:
        """Return the files in the card of an entity, or of an element of a list, as "catalogs:1001"."""
        return EntityFiles(self, entity=_place(entity), entity_id=entity_id)
