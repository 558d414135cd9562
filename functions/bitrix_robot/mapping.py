"""What a deal of a source becomes in the hub: fields, product rows, contacts. Pure; the rules come from relay.toml."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any, Literal

from crm_relay.bitrix24.files import FileLink, links
from crm_relay.bitrix24.items import item_name
from crm_relay.settings import Bitrix24Field, Bitrix24Products, Bitrix24Route

_ORIGINATOR = "b24:"
_USERS = ("user", "employee")
_CHOICES = ("enumeration", "crm_status")
_NUMBERS = ("integer", "double")
_NOT_UPDATED = ("stageId", "categoryId", "originatorId", "originId", "assignedById")
_DICTIONARIES = {"sourceId": "SOURCE", "typeId": "DEAL_TYPE"}
"""Of fields whose definition does not name it."""
_CARRIED_OF_A_ROW = ("productName", "price", "quantity", "taxRate", "taxIncluded", "measureCode", "sort")
_CARRIED_OF_A_CARD = ("name", "secondName", "lastName", "post", "title")


@dataclass(frozen=True, slots=True)
class Option:
    """What can be chosen in a list or dictionary. Ids of lists differ from portal to portal."""

    id: str
    text: str
    xml_id: str = ""


@dataclass(frozen=True, slots=True)
class Definition:
    """What a portal says of a field. `type` is Bitrix24's word."""

    type: str
    multiple: bool = False
    read_only: bool = False
    required: bool = False
    options: tuple[Option, ...] = ()


type Definitions = Mapping[str, Definition]
"""By the name that `crm.item.*` has for the field."""


@dataclass(frozen=True, slots=True)
class FileField:
    """Files of a deal: the source's field as relay.toml names it, the hub's, and what is in it."""

    source: str
    target: str
    multiple: bool
    links: tuple[FileLink, ...]


@dataclass(frozen=True, slots=True)
class HubDeal:
    """A deal as it is to be in the hub.

    Attributes:
        fields: for `items.add`; files come later.
        emptied: fields of the map that have nothing in the source.
        files: what is to be carried.
        left: the source's fields, as relay.toml names them, whose value finds nothing in the hub.
    """

    fields: dict[str, Any]
    emptied: tuple[str, ...]
    files: tuple[FileField, ...]
    left: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class HubRows:
    """Product rows for `products.set_deal_rows`; `left` names those whose product the hub does not have."""

    rows: list[dict[str, Any]]
    left: tuple[str, ...]


def marker(
    member_id: str, kind: Literal["deal", "contact", "company"], item_id: int, route: str = ""
) -> dict[str, str]:
    """Return the fields that say in the hub what an item was made of; a deal may go by several routes."""
    origin_id = f"{kind}:{item_id}:{route}" if route else f"{kind}:{item_id}"
    return {"originatorId": f"{_ORIGINATOR}{member_id}", "originId": origin_id}


def came_from(deal: Mapping[str, Any]) -> str | None:
    """Return the member_id of the portal that a deal was carried from; None if it was made where it is."""
    originator = str(deal.get("originatorId") or "")
    return originator.removeprefix(_ORIGINATOR) if originator.startswith(_ORIGINATOR) else None


def definitions(
    fields: Mapping[str, Mapping[str, Any]],
    *,
    user_fields: Iterable[Mapping[str, Any]] = (),
    statuses: Iterable[Mapping[str, Any]] = (),
) -> dict[str, Definition]:
    """Read a portal's definitions.

    Args:
        fields: of `items.fields`.
        user_fields: of `items.deal_user_fields`, which alone tell XML_IDs.
        statuses: of `directory.statuses`: the entries of dictionaries.
    """
    lists = {str(each.get("FIELD_NAME")): each.get("LIST") for each in user_fields}
    entries: dict[str, list[Option]] = {}
    for status in statuses:
        option = Option(str(status.get("STATUS_ID")), str(status.get("NAME")))
        entries.setdefault(str(status.get("ENTITY_ID")), []).append(option)
    return {
        name: Definition(
            type=str(each.get("type")),
            multiple=_yes(each.get("isMultiple")),
            read_only=_yes(each.get("isReadOnly")),
            required=_yes(each.get("isRequired")),
            options=tuple(entries.get(str(each.get("statusType") or _DICTIONARIES.get(name)), ()))
            or _options(lists.get(name) or each.get("items")),
        )
        for name, each in fields.items()
    }


def match_users(source: Iterable[Mapping[str, Any]], hub: Iterable[Mapping[str, Any]]) -> dict[int, int]:
    """Return the hub's user for each of the source's that has the same e-mail; rows of `directory.users_by_…`."""
    ids = {str(user["EMAIL"]).strip().casefold(): user["id"] for user in hub if user.get("EMAIL")}
    emails = {user["id"]: str(user.get("EMAIL") or "").strip().casefold() for user in source}
    return {user_id: ids[email] for user_id, email in emails.items() if email in ids}


def user_ids(route: Bitrix24Route, deal: Mapping[str, Any], source: Definitions) -> set[int]:
    """Return the users of the source that a deal names where it matters."""
    names = ["assignedById", *(item_name(name) for name in route.fields)]
    values = (value for name in names if _type(source, name) in _USERS for value in _values(deal.get(name)))
    return {int(value) for value in values if str(value).isdecimal() and int(value)}


def hub_deal(
    route: Bitrix24Route,
    deal: Mapping[str, Any],
    source: Definitions,
    hub: Definitions,
    *,
    stage: str,
    portal: str,
    users: Mapping[int, int],
    responsible: int | None,
    now: float,
) -> HubDeal:
    """Map a deal. The amount goes with its currency always, since the rows do.

    Args:
        route: the rules.
        deal: as `items.get` gives it.
        source: definitions of the source's fields.
        hub: definitions of the hub's.
        stage: the stage of the route that the deal is or was in.
        portal: the source's domain.
        users: of `match_users`.
        responsible: the hub's user for what belongs to nobody there.
        now: unix time in seconds.
    """
    mapper = _Mapper(source, hub, users, str(deal.get("currencyId") or ""))
    fields: dict[str, Any] = {
        name: deal[name] for name in ("opportunity", "currencyId", "isManualOpportunity") if deal.get(name) is not None
    }
    emptied, files, left = [], [], []
    assigned = users.get(int(deal.get("assignedById") or 0), responsible)
    if assigned is not None:
        fields["assignedById"] = assigned
    for name, rule in route.fields.items():
        rule = Bitrix24Field(to=rule) if isinstance(rule, str) else rule  # noqa: PLW2901 (the short form of the same)
        value, target = deal.get(item_name(name)), item_name(rule.to)
        if mapper.is_file(name, target):
            found = tuple(links(value))
            if found:
                files.append(FileField(name, target, hub[target].multiple, found))
            continue
        mapped, complete = mapper.map(name, rule, value)
        if mapped is not None:
            fields[target] = mapped
        elif complete:
            emptied.append(target)
        if not complete:
            left.append(name)
    for name, constant in route.constants.items():
        fields[item_name(name)] = mapper.constant(item_name(name), constant)
    hub_stage = route.stages[stage]
    told = {
        route.source_portal_field: portal,
        route.source_deal_field: deal["id"],
        route.transfer_date_field: datetime.fromtimestamp(int(now), UTC).isoformat(),
    }
    fields |= {item_name(name): value for name, value in told.items() if name}
    fields |= {
        "title": route.title.format(title=deal.get("title") or "", id=deal["id"], portal=portal),
        "stageId": hub_stage,
        "categoryId": category_of(hub_stage),
    }
    return HubDeal(fields, tuple(emptied), tuple(files), tuple(left))


def changes(
    wanted: HubDeal, present: Mapping[str, Any], hub: Definitions, *, except_for: Collection[str] = ()
) -> dict[str, Any]:
    """Return what an update of the hub's deal takes: the fields that differ from what it has now.

    Stage and responsible are the hub's own from the first day on. `except_for` names fields that differ each time,
    such as the transfer's date, as `crm.item.*` does.
    """
    fields = {**{name: [] if _multiple(hub, name) else "" for name in wanted.emptied}, **wanted.fields}
    return {
        name: value
        for name, value in fields.items()
        if name not in _NOT_UPDATED and name not in except_for and not _same(value, present.get(name))
    }


def category_of(stage: str) -> int:
    """Return the pipeline that a stage is in: C5:NEW is in 5, NEW in 0."""
    prefix, colon, _ = stage.partition(":")
    return int(prefix.removeprefix("C")) if colon else 0


# Product rows


def product_ids(
    rules: Bitrix24Products, source: Iterable[Mapping[str, Any]] = (), hub: Iterable[Mapping[str, Any]] = ()
) -> dict[int, int]:
    """Return the hub's product for each of the source's; one that two products fit is left out.

    Args:
        rules: the table, and what to look for beside it.
        source: the source's products, rows of `products.catalog_products`.
        hub: the hub's.
    """
    key = {"xml_id": "xmlId", "name": "name", "none": ""}[rules.match]
    found: dict[str, list[int]] = {}
    for product in hub:
        if word := _word(product.get(key)):
            found.setdefault(word, []).append(product["id"])
    fits = {product["id"]: found.get(_word(product.get(key)), []) for product in source}
    matched = {product: hits[0] for product, hits in fits.items() if len(hits) == 1}
    return matched | {int(product): target for product, target in rules.table.items()}


def hub_rows(rows: Iterable[Mapping[str, Any]], products: Mapping[int, int]) -> HubRows:
    """Map product rows, in their order; what the hub does not have becomes a row of free text."""
    mapped, left = [], []
    for row in rows:
        new = {name: row[name] for name in _CARRIED_OF_A_ROW if row.get(name) is not None}
        new |= _discount(row)
        product = int(row.get("productId") or 0)
        if product in products:
            new["productId"] = products[product]
        elif product:
            left.append(str(row.get("productName") or product))
        mapped.append({**new, "productName": str(row.get("productName") or "—")})
    return HubRows(mapped, tuple(left))


def _discount(row: Mapping[str, Any]) -> dict[str, Any]:
    # 1 is an amount, 2 a percentage; the other of the two is computed by the hub.
    kind = int(row.get("discountTypeId") or 0)
    name = {1: "discountSum", 2: "discountRate"}.get(kind)
    value = row.get(name) if name else None
    return {} if name is None or not value else {"discountTypeId": kind, name: value}


# Contacts and companies


def communications(item: Mapping[str, Any], kind: Literal["PHONE", "EMAIL"]) -> list[str]:
    """Return the phones or addresses of a contact or company, each once."""
    found = (str(each.get("value") or "").strip() for each in item.get("fm") or () if each.get("typeId") == kind)
    return list(dict.fromkeys(filter(None, found)))


def hub_card(
    item: Mapping[str, Any], *, marked: Mapping[str, str], users: Mapping[int, int], responsible: int | None
) -> dict[str, Any]:
    """Return the fields of a contact or company that is new in the hub.

    Args:
        item: the source's, as `items.get` gives it.
        marked: of `marker`.
        users: of `match_users`.
        responsible: the hub's user for what belongs to nobody there.
    """
    fields: dict[str, Any] = {name: item[name] for name in _CARRIED_OF_A_CARD if item.get(name)}
    fields["fm"] = [
        {name: each[name] for name in ("typeId", "valueType", "value")}
        for each in item.get("fm") or ()
        if each.get("typeId") and each.get("valueType") and each.get("value")
    ]
    assigned = users.get(int(item.get("assignedById") or 0), responsible)
    return fields | dict(marked) | ({} if assigned is None else {"assignedById": assigned})


# The check of a route against both portals


def mistakes(
    route: Bitrix24Route,
    source: Definitions,
    hub: Definitions,
    *,
    source_stages: Collection[str],
    hub_stages: Collection[str],
) -> list[str]:
    """Return what cannot work, each with its key below [bitrix24.routes.NAME].

    Args:
        route: the rules.
        source: definitions of the source's fields.
        hub: definitions of the hub's.
        source_stages: ids of all stages of deals.
        hub_stages: ids of all stages of deals.
    """
    found = [f"stages.{stage}: the source has no such stage" for stage in route.stages if stage not in source_stages]
    found += [
        f"stages.{stage}: the hub has no stage {target}"
        for stage, target in route.stages.items()
        if target not in hub_stages
    ]
    for name, rule in route.fields.items():
        found += (f"fields.{name}: {mistake}" for mistake in _mistakes_of(name, rule, source, hub))
    for key in ("source_portal_field", "source_deal_field", "transfer_date_field"):
        if field := getattr(route, key):
            found += (f"{key}: {mistake}" for mistake in _mistakes_of_target(field, hub))
    for name, constant in route.constants.items():
        found += (f"constants.{name}: {mistake}" for mistake in _mistakes_of_target(name, hub))
        found += (f"constants.{name}: {mistake}" for mistake in _mistakes_of_choice(constant, name, hub))
    written = {item_name(name) for name in (*route.targets.values(), *route.constants)}
    written |= {"title", "stageId", "categoryId", "opportunity", "currencyId", "assignedById"}
    found += [f"fields: the hub requires {name}" for name, each in hub.items() if each.required and name not in written]
    return found


def _mistakes_of(name: str, rule: str | Bitrix24Field, source: Definitions, hub: Definitions) -> list[str]:
    rule = Bitrix24Field(to=rule) if isinstance(rule, str) else rule
    found = _mistakes_of_target(rule.to, hub)
    field, target = source.get(item_name(name)), hub.get(item_name(rule.to))
    if field is None:
        return ["the source has no such field", *found]
    if target is None:
        return found
    if (field.type == "file") != (target.type == "file"):
        return [*found, f"{field.type} does not fit {rule.to}, which is {target.type}"]
    if target.type in _CHOICES and field.type in _CHOICES and not rule.default:
        unnamed = [option for option in field.options if option.text not in rule.values]
        lost = [option.text for option in unnamed if _choice(option, rule, target) is None]
        found += (f'{rule.to} has no option for "{text}", but {_texts(target)}' for text in lost)
    if field.type in _CHOICES:
        unknown = rule.values.keys() - {option.text for option in field.options}
        found += (f'the source has no option "{text}", but {_texts(field)}' for text in sorted(unknown))
    for text in filter(None, (rule.default, *rule.values.values())):
        found += _mistakes_of_choice(text, rule.to, hub)
    return found


def _mistakes_of_choice(chosen: Any, name: str, hub: Definitions) -> list[str]:
    target = hub.get(item_name(name))
    if target is None or target.type not in _CHOICES or not target.options:
        return []
    wrong = [str(each) for each in _values(list(chosen) if isinstance(chosen, tuple) else chosen)]
    return [f'{name} has no option "{text}", but {_texts(target)}' for text in wrong if _chosen(text, target) is None]


def _texts(definition: Definition) -> str:
    return ", ".join(f'"{option.text}"' for option in definition.options) or "none"


def _mistakes_of_target(name: str, hub: Definitions) -> list[str]:
    target = hub.get(item_name(name))
    if target is None:
        return [f"the hub has no field {name}"]
    return [f"the hub's {name} cannot be written"] if target.read_only else []


# Values


@dataclass(frozen=True, slots=True)
class _Mapper:
    source: Definitions
    hub: Definitions
    users: Mapping[int, int]
    currency: str

    def is_file(self, name: str, target: str) -> bool:
        return _type(self.source, item_name(name)) == "file" and _type(self.hub, target) == "file"

    def map(self, name: str, rule: Bitrix24Field, value: Any) -> tuple[Any, bool]:
        """Return the hub's value, None if there is none, and whether nothing of the source's was lost."""
        target = self.hub.get(item_name(rule.to))
        field = self.source.get(item_name(name), Definition("string"))
        present = _present(value, field)
        if target is None:
            return None, not present
        converted = [self._convert(each, field, rule, target) for each in present]
        kept = [each for each in converted if each is not None]
        complete = len(kept) == len(converted)
        if not kept and rule.default:
            default = self.constant(item_name(rule.to), rule.default)
            return ([default] if target.multiple else default), complete
        if target.multiple:
            return (kept or None), complete
        return (kept[0] if kept else None), complete and len(kept) < 2

    def constant(self, target: str, value: Any) -> Any:
        """Return a value of relay.toml; options may be named by their text."""
        definition = self.hub.get(target)
        if definition is None or definition.type not in _CHOICES:
            return list(value) if isinstance(value, tuple) else value
        if isinstance(value, tuple):
            return [self.constant(target, each) for each in value]
        return _chosen(str(value), definition) or value

    def _convert(self, value: Any, field: Definition, rule: Bitrix24Field, target: Definition) -> Any:
        option = _option_of(value, field)
        match target.type:
            case "enumeration" | "crm_status":
                return _choice(option, rule, target)
            case "user" | "employee" if field.type in _USERS:
                return self.users.get(int(value)) if str(value).isdecimal() else None
            case "boolean":
                return "Y" if _yes(value) else "N"
            case "money":
                return _money(value, self.currency)
            case "date" | "datetime":
                return _moment(value, field.type, target.type)
            case "integer" | "double":
                return _number(value.partition("|")[0] if isinstance(value, str) else value, target.type)
            case _ if isinstance(value, dict | list):
                return None
            case _ if field.type in _CHOICES:
                return option.text
            case _:
                return value


def _option_of(value: Any, field: Definition) -> Option:
    text = str(value)
    return next((option for option in field.options if option.id == text), Option(text, text))


def _choice(option: Option, rule: Bitrix24Field, target: Definition) -> str | None:
    """Return the id of the hub's option for one of the source's."""
    if option.text in rule.values:
        return _chosen(rule.values[option.text], target)
    if rule.match == "xml_id":
        found = (each.id for each in target.options if option.xml_id and each.xml_id == option.xml_id)
        return next(found, None)
    # Bitrix24's own entries have words for ids, such as WEB; those that people add have numbers, each portal its own.
    is_word = target.type == "crm_status" and not option.id.isdecimal()
    return _chosen(option.text, target) or (_chosen(option.id, target) if is_word else None)


def _chosen(text: str, target: Definition) -> str | None:
    """Return the id of an option by its text, else by itself as an id."""
    word = _word(text)
    by_text = (each.id for each in target.options if _word(each.text) == word)
    return next(by_text, None) or next((each.id for each in target.options if each.id == text), None)


def _options(items: Any) -> tuple[Option, ...]:
    found = items.values() if isinstance(items, dict) else items if isinstance(items, list) else ()
    return tuple(
        Option(str(each.get("ID")), str(each.get("VALUE")), str(each.get("XML_ID") or ""))
        for each in found
        if isinstance(each, Mapping)
    )


def _values(value: Any) -> list[Any]:
    """Return what a field has: nothing for what PHP calls empty, but False and 0, which are values."""
    found: Sequence[Any] = value if isinstance(value, list) else [value]
    return [each for each in found if each is not None and each not in ("", [], {})]


def _present(value: Any, field: Definition) -> list[Any]:
    """Return what a field has, without the 0 and False that some types have for nothing."""
    empty: tuple[Any, ...] = ("0", 0) if field.type in (*_USERS, *_CHOICES) else ()
    answers = field.type in ("boolean", "char", *_NUMBERS)
    return [each for each in _values(value) if (answers or each is not False) and each not in empty]


def _money(value: Any, currency: str) -> str | None:
    """Return money as custom fields have it: "100.50|RUB"."""
    amount, _, own = str(value).partition("|")
    own = own or currency
    return f"{amount}|{own}" if own and _decimal(amount) is not None else None


def _moment(value: Any, kind: str, wanted: str) -> str | None:
    try:
        moment = datetime.fromisoformat(str(value))
    except ValueError:
        return None
    if wanted == "datetime":
        return str(value)
    try:
        return (_day(moment) if kind == "date" else moment.date()).isoformat()
    except OverflowError:  # at the ends of the calendar
        return None


def _day(moment: datetime) -> date:
    """Return the day that Bitrix24 means by a moment: it writes a date as midnight, UTC's, in the portal's zone.

    Midnight of the zone itself means the same day.
    """
    return (moment.astimezone(UTC) + timedelta(hours=12)).date() if moment.tzinfo else moment.date()


def _number(value: Any, kind: str) -> int | float | None:
    number = _decimal(value)
    if number is None:
        return None
    return (int(number) if number == int(number) else None) if kind == "integer" else float(number)


def _decimal(value: Any) -> Decimal | None:
    try:
        number = Decimal(str(value).strip().replace(",", "."))
    except InvalidOperation:
        return None
    # Not abs: it overflows where the exponent is beyond the context's.
    return number if number.is_finite() and number.copy_abs() < 10**18 else None


def _yes(value: Any) -> bool:
    return value is True or str(value).strip().casefold() in ("y", "1", "true", "yes", "да")


def _word(text: Any) -> str:
    return " ".join(str(text or "").split()).casefold()


def _type(definitions: Definitions, name: str) -> str:
    definition = definitions.get(name)
    return definition.type if definition else ""


def _multiple(definitions: Definitions, name: str) -> bool:
    definition = definitions.get(name)
    return definition is not None and definition.multiple


def _same(wanted: Any, present: Any) -> bool:
    """Tell whether two values mean the same: 5 and "5", two spellings of a moment, Y and True, nothing and ""."""
    ours, theirs = _values(wanted), _values(present)
    return len(ours) == len(theirs) and all(map(_same_value, ours, theirs))


def _same_value(one: Any, other: Any) -> bool:
    if isinstance(other, bool):
        return _yes(one) == other
    first, second = _decimal(one), _decimal(other)
    if first is not None and second is not None:
        return first == second
    ours, theirs = str(one), str(other)
    try:
        moment = datetime.fromisoformat(theirs)
        return _day(moment).isoformat() == ours if _is_day(ours) else datetime.fromisoformat(ours) == moment
    except (ValueError, OverflowError):
        return ours == theirs


def _is_day(text: str) -> bool:
    return len(text) == len("2026-01-31")
