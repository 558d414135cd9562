"""Filters of lists: typed on our side, on the wire what amoCRM's PHP library sends (amoCRM reference, section 2).

Every field may be left out. Numbers and names are taken one by one or as a list; what cannot be meant, such as a
negative id, is dropped, and a filter of which nothing is left is not sent (section 2.1). `page` and `limit` are for
reading a single page: iterating goes from `page` to the end.
"""

# ruff: noqa: RUF009 (what is called in the defaults is dataclasses' own `field`)

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NamedTuple


class Range(NamedTuple):
    """From and to, both included; times are in unix seconds."""

    start: int
    end: int


class Stage(NamedTuple):
    """A stage of a pipeline."""

    pipeline_id: int
    status_id: int


class Order(NamedTuple):
    """What a list is sorted by."""

    field: str
    direction: Literal["asc", "desc"] = "asc"


type Numbers = int | Sequence[int | str] | None
type Names = str | Sequence[str] | None
type Span = int | Range | None
type FieldFilters = Mapping[int, Numbers | Names | Range] | None


def _numbers(value: Any, least: int = 0) -> Any:
    some = value if isinstance(value, list | tuple | set | range) else [value]
    found = {place: int(one) for place, one in enumerate(some) if _is_number(one) and int(one) >= least}
    # As PHP has it: what stays keeps its place.
    return (list(found.values()) if len(found) == len(some) else found) or None


def _positive(value: Any) -> Any:
    return _numbers(value, 1)


def _is_number(value: Any) -> bool:
    return (isinstance(value, int) and not isinstance(value, bool)) or (
        isinstance(value, str) and value.isascii() and value.isdigit()
    )


def _names(value: Any) -> Any:
    some = value if isinstance(value, list | tuple | set) else [value]
    found = {place: one for place, one in enumerate(some) if isinstance(one, str) and one}
    return (list(found.values()) if len(found) == len(some) else found) or None


def _span(value: Any) -> Any:
    if isinstance(value, Range):
        return {"from": value.start, "to": value.end}
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _joined(value: Any) -> Any:
    some = value if isinstance(value, list | tuple | set) else [value]
    return ",".join(str(one) for one in some if one or one == 0) or None


def _one_or_more(value: Any) -> Any:
    names = _names(value)
    return names[0] if isinstance(names, list) and len(names) == 1 else names


def _stages(value: Any) -> Any:
    return [{"status_id": stage.status_id, "pipeline_id": stage.pipeline_id} for stage in value] or None


def _values(value: Any) -> Any:
    return {key: _span(one) if isinstance(one, Range) else _list(one) for key, one in value.items()} or None


def _list(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple | set) else [value]


def _direction(value: Any) -> Any:
    return {value.field: value.direction}


def _same(value: Any) -> Any:
    return value


def _at(path: str, form: Callable[[Any], Any] = _same) -> Any:
    return field(default=None, metadata={"path": tuple(path.split(".")), "form": form})


def _of(name: str, form: Callable[[Any], Any] = _same) -> Any:
    return _at(f"filter.{name}", form)


@dataclass(frozen=True, kw_only=True)
class Filter:
    """What a list is narrowed by."""

    def parameters(self) -> dict[str, Any]:
        """Return the query, nested as in PHP."""
        query: dict[str, Any] = {}
        for part in fields(self):
            value = getattr(self, part.name)
            if value is None or (value := part.metadata["form"](value)) is None:
                continue
            *path, last = part.metadata["path"]
            node = query
            for name in path:
                node = node.setdefault(name, {})
            node[last] = value
        return query


@dataclass(frozen=True, kw_only=True)
class PagesFilter(Filter):
    """Which page, from 1 on, and how many items there are on one, 250 at most."""

    limit: int | None = _at("limit")
    page: int | None = _at("page")


@dataclass(frozen=True, kw_only=True)
class _CardsFilter(PagesFilter):
    """What leads, contacts, companies and customers are narrowed by alike.

    `custom_fields` are values, or a Range, by the id of the field. Works only where the account's API filter is on
    (`is_api_filter_enabled`).
    """

    id: Numbers = _of("id", _numbers)
    name: Names = _of("name", _names)
    created_by: Numbers = _of("created_by", _numbers)
    updated_by: Numbers = _of("updated_by", _numbers)
    responsible_user_id: Numbers = _of("responsible_user_id", _numbers)
    created_at: Span = _of("created_at", _span)
    updated_at: Span = _of("updated_at", _span)
    closest_task_at: Span = _of("closest_task_at", _span)
    custom_fields: FieldFilters = _of("custom_fields_values", _values)
    query: str | int | float | None = _at("query", str)
    order: Order | None = _at("order", _direction)


@dataclass(frozen=True, kw_only=True)
class LeadsFilter(_CardsFilter):
    """Leads."""

    price: Span = _of("price", _span)
    closed_at: Span = _of("closed_at", _span)
    statuses: Sequence[Stage] | None = _of("statuses", _stages)
    pipeline_id: Numbers = _of("pipeline_id", _positive)


@dataclass(frozen=True, kw_only=True)
class ContactsFilter(_CardsFilter):
    """Contacts."""


@dataclass(frozen=True, kw_only=True)
class CompaniesFilter(_CardsFilter):
    """Companies."""


@dataclass(frozen=True, kw_only=True)
class CustomersFilter(_CardsFilter):
    """Customers; beyond the PHP library, by segment, status, next purchase and its price."""

    segments: Numbers = _of("segments", _numbers)
    status_id: Numbers = _of("status_id", _numbers)
    next_date: Span = _of("next_date", _span)
    next_price: Span = _of("next_price", _span)


@dataclass(frozen=True, kw_only=True)
class CatalogElementsFilter(PagesFilter):
    """Elements of a list."""

    id: Numbers = _at("id", _numbers)
    query: str | None = _at("query", str)
    custom_fields: FieldFilters = _of("custom_fields_values", _values)
    order: Order | None = _at("order", _direction)


@dataclass(frozen=True, kw_only=True)
class CatalogsFilter(PagesFilter):
    """Lists, by type: regular, invoices, products, suppliers."""

    type: str | None = _at("type")


@dataclass(frozen=True, kw_only=True)
class ChatLinksFilter(Filter):
    """Links of contacts and chats."""

    contact_id: Numbers = _at("contact_id")
    chat_id: Names = _at("chat_id")


@dataclass(frozen=True, kw_only=True)
class CurrenciesFilter(PagesFilter):
    """Currencies."""


@dataclass(frozen=True, kw_only=True)
class CustomFieldsFilter(PagesFilter):
    """Definitions of custom fields."""

    id: Numbers = _of("id", _numbers)
    type: Names = _of("type", _names)
    order: Order | None = _at("order", _direction)


@dataclass(frozen=True, kw_only=True)
class LinksFilter(Filter):
    """Links of one entity."""

    to_entity_id: int | None = _of("to_entity_id")
    to_entity_type: str | None = _of("to_entity_type")
    to_catalog_id: int | None = _of("to_catalog_id")


@dataclass(frozen=True, kw_only=True)
class EntitiesLinksFilter(LinksFilter):
    """Links of several entities."""

    entity_id: Numbers = _of("entity_id", _numbers)


@dataclass(frozen=True, kw_only=True)
class EventsFilter(PagesFilter):
    """Events: lists are joined with commas; `entity_id`, 10 at most, needs exactly one `entity`.

    `value_before` and `value_after` are objects such as {"leads_statuses": [{"pipeline_id": 1, "status_id": 2}]}.
    """

    id: Names = _of("id", _joined)
    type: Names = _of("type", _joined)
    entity: Names = _of("entity", _joined)
    entity_id: Numbers = _of("entity_id", _joined)
    created_by: Numbers = _of("created_by", _joined)
    created_at: Span | Sequence[int] = _of(
        "created_at", lambda value: _span(value) if isinstance(value, Range) else _joined(value)
    )
    value_before: Mapping[str, Any] | None = _of("value_before")
    value_after: Mapping[str, Any] | None = _of("value_after")


@dataclass(frozen=True, kw_only=True)
class EventTypesFilter(Filter):
    """Types of events, named in a language such as "ru"."""

    language_code: str | None = _at("language_code")


@dataclass(frozen=True, kw_only=True)
class FilesFilter(PagesFilter):
    """Files.

    `size` has from, to and unit; `date` has from, to, type and date_preset. Files that are deleted come along only if
    `deleted` is true.
    """

    uuid: Names = _of("uuid", _joined)
    name: str | None = _of("name")
    extensions: Names = _of("extensions", _names)
    term: str | None = _of("term")
    source_id: int | None = _of("source_id")
    deleted: bool | None = _of("deleted", lambda value: value or None)
    size: Mapping[str, int | str] | None = _of("size")
    date: Mapping[str, int | str] | None = _of("date")
    created_by: Numbers = _of("created_by", _numbers)
    updated_by: Numbers = _of("updated_by", _numbers)


@dataclass(frozen=True, kw_only=True)
class NotesFilter(PagesFilter):
    """Notes."""

    id: Numbers = _of("id", _numbers)
    entity_id: Numbers = _of("entity_id", _numbers)
    note_type: Names = _of("note_type", _names)
    updated_at: Span = _of("updated_at", _span)
    order: Order | None = _at("order", _direction)


@dataclass(frozen=True, kw_only=True)
class SourcesFilter(Filter):
    """Sources."""

    external_id: Names = _of("external_id", _one_or_more)


@dataclass(frozen=True, kw_only=True)
class TemplatesFilter(PagesFilter):
    """Templates of chats."""

    external_id: Names = _of("external_id", _one_or_more)


@dataclass(frozen=True, kw_only=True)
class TagsFilter(PagesFilter):
    """Tags."""

    id: Numbers = _of("id", _numbers)
    name: str | None = _of("name")
    query: str | None = _at("query", str)


@dataclass(frozen=True, kw_only=True)
class TasksFilter(PagesFilter):
    """Tasks; `entity_id` only together with `entity_type`."""

    id: Numbers = _of("id", _numbers)
    created_by: Numbers = _of("created_by", _numbers)
    is_completed: bool | None = _of("is_completed")
    task_type_id: Numbers = _of("task_type_id", _numbers)
    responsible_user_id: Numbers = _of("responsible_user_id", _numbers)
    entity_type: str | None = _of("entity_type")
    entity_id: Numbers = _of("entity_id", _numbers)
    updated_at: Span = _of("updated_at", _span)
    lead_statuses: Sequence[Stage] | None = _of("lead_statuses", _stages)
    order: Order | None = _at("order", _direction)

    def parameters(self) -> dict[str, Any]:
        """Return the query; the type of a task goes by its old name too."""
        query = super().parameters()
        filtered = query.get("filter", {})
        if "task_type_id" in filtered:
            filtered["task_type"] = filtered["task_type_id"]
        if "entity_type" not in filtered:
            filtered.pop("entity_id", None)
        return query


@dataclass(frozen=True, kw_only=True)
class UnsortedFilter(PagesFilter):
    """Incoming leads."""

    uid: Names = _of("uid", _names)
    category: Names = _of("category", _names)
    pipeline_id: int | None = _of("pipeline_id")
    order: Order | None = _at("order", _direction)


@dataclass(frozen=True, kw_only=True)
class UnsortedSummaryFilter(Filter):
    """What the summary of incoming leads counts."""

    created_at: Span = _of("created_at", _span)
    pipeline_id: int | None = _of("pipeline_id")


@dataclass(frozen=True, kw_only=True)
class WebhooksFilter(Filter):
    """Hooks."""

    destination: str | None = _of("destination")
