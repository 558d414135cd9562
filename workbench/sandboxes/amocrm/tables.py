"""Plain services: a row says what can be read from one and written to it, a table remembers what was written."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import count
from typing import Any

from pydantic import Field, create_model

from workbench.sandboxes.amocrm.calls import (
    NO_CONTENT,
    NOT_ALLOWED,
    NOT_FOUND,
    Body,
    Call,
    Item,
    Mistake,
    Refused,
    hal,
    page,
    problem,
    refuse,
    whole,
)
from workbench.sandboxes.amocrm.filters import ORDERS, Tester, find
from workbench.sandboxes.wire import SandboxResponse

type Key = int | str
type Record = dict[str, Any]
"""Something that a service has; fields whose names begin with an underscore are not shown."""

NOTHING: Mapping[str, object] = {}

_ROUTES: Mapping[tuple[str, bool], str] = {
    ("GET", False): "list",
    ("POST", False): "add",
    ("PATCH", False): "update",
    ("DELETE", False): "delete",
    ("GET", True): "get",
    ("PATCH", True): "update_one",
    ("DELETE", True): "delete_one",
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Service:
    """A row: one plain service of the API.

    `key` is where lists of it are embedded, `id` the field that items are found by, with the first id of a row of
    them, or None for texts. `verbs` are those of `list get add update update_one delete delete_one`, where update and
    delete take lists. `takes` are the fields that can be written, with their types, of which new items need `needs`;
    `starts` are the fields of new items that nobody has written, `stamps` those that say who made them and when.
    `filters` and `orders` are fields, `searches` those that `query` looks into. At most `most` can be there. Who adds
    one that is there already by `unique`, a field, changes that. `single` items are added one by one, without a list.
    """

    path: str
    key: str
    verbs: frozenset[str]
    id: str = "id"
    first_id: int | None = None
    takes: Mapping[str, Any] = field(default_factory=dict)
    needs: Sequence[str] = ()
    starts: Mapping[str, object] = field(default_factory=dict)
    stamps: frozenset[str] = frozenset()
    filters: frozenset[str] = frozenset()
    filters_at_top: bool = False
    orders: frozenset[str] = ORDERS
    searches: Sequence[str] = ()
    paged: bool = True
    most: int | None = None
    unique: str | None = None
    single: bool = False
    seeds: Sequence[Mapping[str, object]] = ()


class _ItemBody(Body):
    """An item of a plain service; its fields are those of the row."""

    def sent(self) -> Record:
        """The fields that were sent, by their names in the API."""
        return self.model_dump(exclude_unset=True, by_alias=True, exclude={"request_id"})


@cache
def _body(service: Service) -> type[_ItemBody]:
    fields: dict[str, Any] = {
        name.lstrip("_"): (kind | None, Field(default=None, alias=name)) for name, kind in service.takes.items()
    }
    return create_model(f"{service.key}_body", __base__=_ItemBody, **{service.id: (int | str | None, None)} | fields)


type Check = Callable[[Call, Record, Record | None], Sequence[Mistake]]
"""Looks at what was sent for a record (None: a new one), may put it into shape, and says what is wrong with it."""
type Show = Callable[[Call, Record], Mapping[str, object]]
"""What the view of a record has beside its fields."""
type Told = Callable[[Call, str, Record], None]
"""Hears of what was done to a record: "added", "changed", "deleted"."""


class Table:
    """What there is of a service; `testers` are its filters that are no plain fields."""

    def __init__(
        self,
        service: Service,
        hex_id: Callable[[], str],
        *,
        check: Check = lambda _call, _sent, _record: (),
        show: Show = lambda _call, _record: NOTHING,
        told: Told = lambda _call, _verb, _record: None,
        testers: Mapping[str, Tester[Record]] | None = None,
    ) -> None:
        self.service = service
        self.records: dict[Key, Record] = {}
        self._hex_id = hex_id
        self._check, self._show, self._told = check, show, told
        self._testers = testers
        self._ids: Iterator[int] | None = None if service.first_id is None else count(service.first_id)
        for seed in service.seeds:
            self.put(seed)

    # As the API sees it

    def answer(
        self, call: Call, path: Sequence[str], *, at: str | None = None, within: Mapping[str, object] = NOTHING
    ) -> SandboxResponse:
        """The service, here `at` another path, where only what has the fields of `within` is seen and made."""
        if len(path) > 1:
            return NOT_FOUND
        verb = _ROUTES.get((call.request.method, bool(path)))
        if verb not in self.service.verbs:
            below = {found for (_, one), found in _ROUTES.items() if one == bool(path)}
            return NOT_ALLOWED if below & self.service.verbs else NOT_FOUND
        at = at or self.service.path
        known = self._known(within)
        if path:
            record = known.get(_key(path[0]))
            return NOT_FOUND if record is None else self._one(call, verb, record, at)
        return self._all(call, verb, known, at, within)

    def _one(self, call: Call, verb: str | None, record: Record, at: str) -> SandboxResponse:
        if verb == "update_one":
            item = call.item(_body(self.service))
            self._change(call, [(item, record)])
        if verb == "delete_one":
            self._drop(call, [record])
            return NO_CONTENT
        return hal(self.view(call, record, at))

    def _all(
        self, call: Call, verb: str | None, known: Mapping[Key, Record], at: str, within: Mapping[str, object]
    ) -> SandboxResponse:
        model = _body(self.service)
        match verb:
            case "list":
                return self._listed(call, known, at)
            case "add" if self.service.single:
                ((_, record),) = self._add(call, [call.item(model)], known, within)
                return hal(self.view(call, record, at))
            case "add":
                return self._written(call, self._add(call, call.items(model), known, within), at)
            case "update":
                items = [(item, self._meant(item, known)) for item in call.items(model)]
                return self._written(call, self._change(call, items), at)
            case _:
                found = [(item, self._meant(item, known)) for item in call.items(model)]
                refuse({item.request_id: item.mistakes or self._missing(record) for item, record in found})
                self._drop(call, [record for _, record in found if record])
                return NO_CONTENT

    def _listed(self, call: Call, known: Mapping[Key, Record], at: str) -> SandboxResponse:
        service = self.service
        found = find(
            call,
            known,
            service.filters,
            orders=service.orders & next(iter(known.values()), {}).keys(),
            testers=self._testers,
            text=(lambda record: " ".join(str(record.get(name)) for name in service.searches))
            if service.searches
            else None,
            at_top=service.filters_at_top,
        )
        if service.paged:
            return page(call, found, service.key, lambda record: self.view(call, record, at))
        if not found:
            return NO_CONTENT
        return self._embedded(call, [self.view(call, record, at) for record in found], at, _total_items=len(found))

    def _written(self, call: Call, done: Sequence[tuple[str, Record]], at: str) -> SandboxResponse:
        shown = [{**self.view(call, record, at), "request_id": request_id} for request_id, record in done]
        return self._embedded(call, shown, at)

    def _embedded(self, call: Call, shown: Sequence[object], at: str, **totals: int) -> SandboxResponse:
        return hal({**totals, "_links": {"self": call.href(at)}, "_embedded": {self.service.key: shown}})

    def view(self, call: Call, record: Record, at: str | None = None) -> dict[str, Any]:
        """A record as it is read."""
        shown = {name: value for name, value in record.items() if name == "_embedded" or not name.startswith("_")}
        account = {"account_id": call.account.id} if "account_id" in self.service.stamps else {}
        path = f"{at or self.service.path}/{record[self.service.id]}"
        return {**shown, **account, "_links": {"self": call.href(path)}, **self._show(call, record)}

    # What happens in it, whoever does it

    def put(self, fields: Mapping[str, object]) -> Record:
        """Put something in, with a new id unless it has one."""
        service = self.service
        id_ = fields.get(service.id) or (self._hex_id() if self._ids is None else next(self._ids))
        record: Record = {service.id: id_, **service.starts, **fields}
        record = {service.id: id_} | {name: _copied(value) for name, value in record.items()}
        self.records[_key(str(id_))] = record
        return record

    def _add(
        self,
        call: Call,
        items: Sequence[Item[_ItemBody]],
        known: Mapping[Key, Record],
        within: Mapping[str, object],
    ) -> list[tuple[str, Record]]:
        service = self.service
        sent = [{**self._sent(item), **within} for item in items]
        twins = [self._twin(known, fields) for fields in sent]
        mistakes = {}
        for item, fields, twin in zip(items, sent, twins, strict=True):
            missing = [] if twin else [name for name in service.needs if fields.get(name) is None]
            mistakes[item.request_id] = item.mistakes or [
                *(Mistake("FieldMissing", name, "This field is missing.") for name in missing),
                *([] if missing else self._check(call, fields, twin)),
            ]
        refuse(mistakes)
        if service.most is not None and len(known) + twins.count(None) > service.most:
            raise Refused(problem(400, f"At most {service.most} {service.key} can be there"))
        done = []
        for item, fields, twin in zip(items, sent, twins, strict=True):
            record = twin or self.put(_stamps(call, service.stamps))
            record |= fields
            self._told(call, "changed" if twin else "added", record)
            done.append((item.request_id, record))
        return done

    def _change(self, call: Call, items: Sequence[tuple[Item[_ItemBody], Record | None]]) -> list[tuple[str, Record]]:
        sent = [self._sent(item) for item, _ in items]
        mistakes = {}
        for (item, record), fields in zip(items, sent, strict=True):
            cleared = [name for name in self.service.needs if name in fields and fields[name] is None]
            mistakes[item.request_id] = (
                item.mistakes
                or self._missing(record)
                or [Mistake("NotNullable", name, "This value should not be null.") for name in cleared]
                or self._check(call, fields, record)
            )
        refuse(mistakes)
        stamps = _stamps(call, self.service.stamps & {"updated_at", "updated_by"})
        done = []
        for (item, record), fields in zip(items, sent, strict=True):
            assert record is not None
            record |= {**stamps, **fields}
            self._told(call, "changed", record)
            done.append((item.request_id, record))
        return done

    def _drop(self, call: Call, records: Sequence[Record]) -> None:
        for record in records:
            self.records.pop(_key(str(record[self.service.id])), None)
            self._told(call, "deleted", record)

    def _sent(self, item: Item[_ItemBody]) -> Record:
        # Who made a thing, and when, cannot be cleared.
        never = {self.service.id} | {name for name in self.service.stamps if getattr(item.body, name, None) is None}
        return {name: value for name, value in item.body.sent().items() if name not in never}

    def _known(self, within: Mapping[str, object]) -> Mapping[Key, Record]:
        if not within:
            return self.records
        return {key: record for key, record in self.records.items() if within.items() <= record.items()}

    def _meant(self, item: Item[_ItemBody], known: Mapping[Key, Record]) -> Record | None:
        return known.get(_key(str(getattr(item.body, self.service.id))))

    def _missing(self, record: Record | None) -> Sequence[Mistake]:
        return () if record else [Mistake("NotFound", self.service.id, "Entity not found")]

    def _twin(self, known: Mapping[Key, Record], fields: Record) -> Record | None:
        name = self.service.unique
        if name is None or fields.get(name) is None:
            return None
        return next((record for record in known.values() if record.get(name) == fields[name]), None)


def _key(text: str) -> Key:
    number = whole(text)
    return text if number is None else number


def _copied(value: object) -> object:
    return value.copy() if isinstance(value, list | dict) else value


def _stamps(call: Call, names: frozenset[str]) -> Mapping[str, object]:
    stamps = {"created_at": call.now, "updated_at": call.now, "created_by": call.by, "updated_by": call.by}
    return {name: value for name, value in stamps.items() if name in names}
