"""Fields of deals, contacts and companies: their names in both spellings, and what each type makes of a value."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Any
from zoneinfo import ZoneInfo

from workbench.sandboxes.bitrix24.calls import Refused, as_int, as_list
from workbench.sandboxes.bitrix24.portal import COMPANY, CONTACT, DEAL, Bitrix24Portal, Option, UserField

_WORD = re.compile(r"(?<=[a-z0-9])([A-Z])")


@dataclass(frozen=True, slots=True)
class Field:
    """A field: `name` is camelCase, or the original name if people made it; `upper` is always the original."""

    name: str
    upper: str
    camel: str
    type: str
    title: str
    multiple: bool = False
    read_only: bool = False
    required: bool = False
    of_people: bool = False
    options: tuple[Option, ...] = ()

    def shown(self, original: bool) -> str:
        """The name in answers, which depends on useOriginalUfNames."""
        return self.name if original else self.camel

    @property
    def empty(self) -> Any:
        """What is there when nothing is."""
        if self.multiple:
            return []
        return {"string": "" if self.of_people else None, "crm_entity": 0}.get(self.type)


_COMMON = """
    id:integer:r xmlId:string createdTime:datetime:r updatedTime:datetime:r createdBy:user:r updatedBy:user:r
    assignedById:user opened:boolean comments:text sourceId:crm_status sourceDescription:text originatorId:string
    originId:string observers:user:m webformId:integer lastActivityTime:datetime:r
    utmSource:string utmMedium:string utmCampaign:string utmContent:string utmTerm:string
"""
_OWN: Mapping[int, str] = {
    DEAL: """
        title:string typeId:crm_status categoryId:crm_category stageId:crm_status previousStageId:crm_status:r
        stageSemanticId:string:r isRecurring:boolean probability:integer currencyId:crm_currency opportunity:double
        isManualOpportunity:boolean taxValue:double companyId:crm_entity contactId:crm_entity contactIds:crm_entity:m
        quoteId:crm_entity leadId:crm_entity begindate:date closedate:date closed:boolean:r additionalInfo:text
        locationId:string movedTime:datetime:r movedBy:user:r isReturnCustomer:boolean:r
    """,
    CONTACT: """
        honorific:crm_status name:string secondName:string lastName:string birthdate:date post:string
        typeId:crm_status companyId:crm_entity companyIds:crm_entity:m address:string export:boolean
        hasPhone:boolean:r hasEmail:boolean:r
    """,
    COMPANY: """
        title:string companyType:crm_status industry:crm_status employees:crm_status revenue:double
        currencyId:crm_currency bankingDetails:text address:string contactIds:crm_entity:m isMyCompany:boolean
        hasPhone:boolean:r hasEmail:boolean:r
    """,
}


@cache
def _standard(type_id: int) -> tuple[Field, ...]:
    fields = []
    for entry in f"{_COMMON} {_OWN[type_id]}".split():
        name, kind, *marks = entry.split(":")
        upper = _WORD.sub(r"_\1", name).upper()
        fields.append(Field(name, upper, name, kind, upper.capitalize(), multiple="m" in marks, read_only="r" in marks))
    return tuple(fields)


def fields_of(portal: Bitrix24Portal, type_id: int) -> dict[str, Field]:
    """All fields of a kind of entity, by name."""
    return _fields(type_id, portal.user_fields.get(type_id, ()))


@cache
def _fields(type_id: int, user_fields: tuple[UserField, ...]) -> dict[str, Field]:
    camels = [camel_case(field.name) for field in user_fields]
    made = [
        Field(
            name=field.name,
            upper=field.name,
            camel=field.name if camels.count(camel) > 1 else camel,
            type=field.type,
            title=field.title or field.name,
            multiple=field.multiple,
            required=field.required,
            of_people=True,
            options=field.options,
        )
        for field, camel in zip(user_fields, camels, strict=True)
    ]
    return {field.name: field for field in (*_standard(type_id), *made)}


def camel_case(name: str) -> str:
    """A user field's name as crm.item.* writes it (Bitrix24 reference, section 3.1)."""
    parts = re.fullmatch(r"UF_CRM_(?:([0-9]+)_)?(.+)", name)
    if parts is None:
        return _joined(name)
    prefix, tail = f"ufCrm{parts[1] or ''}", parts[2]
    return f"{prefix}_{tail}" if re.search("[0-9]", tail) else prefix + _joined(f"_{tail}")


def _joined(name: str) -> str:
    first, *rest = name.lower().split("_")
    return first + "".join(word.capitalize() for word in rest)


def read_value(portal: Bitrix24Portal, field: Field, sent: Any) -> Any:
    """What is stored of a value that was sent. Refused if its type does not take it; files are not for here."""
    if field.multiple:
        if not isinstance(sent, list | dict) and sent not in (None, ""):
            raise Refused("100", "Expected iterable value for multiple field, but got a single one")
        return [_read_one(portal, field, each) for each in as_list(sent) if each not in (None, "")]
    return _read_one(portal, field, sent)


def shown_time(portal: Bitrix24Portal, seconds: float) -> str:
    """A moment as the portal writes it, in its own zone."""
    return datetime.fromtimestamp(int(seconds), ZoneInfo(portal.time_zone)).isoformat()


def _read_one(portal: Bitrix24Portal, field: Field, sent: Any) -> Any:
    if sent is None or sent == "" or (sent is False and field.type != "boolean"):
        return "N" if field.type == "boolean" and not field.of_people else field.empty if not field.multiple else None
    if isinstance(sent, list | dict):
        raise _not_valid(field)
    try:
        return _converted(portal, field, sent)
    except (ValueError, OverflowError):
        raise _not_valid(field) from None


def _converted(portal: Bitrix24Portal, field: Field, sent: Any) -> Any:
    match field.type:
        case "integer" | "crm_entity" | "crm_category":
            return int(sent)
        case "double":
            return float(sent)
        case "boolean":
            return "Y" if str(sent).upper() in {"Y", "1", "TRUE"} else "N"
        case "money":
            return _money(portal, str(sent))
        case "date":
            # A date is midnight in UTC, which the portal then writes in its own zone.
            day = _moment(str(sent), UTC)
            return shown_time(portal, datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())
        case "datetime":
            return shown_time(portal, _moment(str(sent), ZoneInfo(portal.time_zone)).timestamp())
        case "user" | "employee":
            return _among(int(sent), (user.id for user in portal.users))
        case "enumeration":
            return _among(int(sent), (option.id for option in field.options))
        case _:
            return str(sent)


def _among(number: int, known: Iterable[int]) -> int:
    if number not in known:
        raise ValueError(number)
    return number


def _money(portal: Bitrix24Portal, sent: str) -> str:
    amount, _, currency = sent.partition("|")
    if not re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", amount) or not re.fullmatch("([A-Z]{3})?", currency):
        raise ValueError(sent)
    return f"{amount}|{currency or portal.currency}"


def _moment(sent: str, zone: Any) -> datetime:
    if re.match(r"\d\d\.\d\d\.\d{4}", sent):
        form = "%d.%m.%Y %H:%M:%S" if ":" in sent else "%d.%m.%Y"
        return datetime.strptime(sent, form).replace(tzinfo=zone)
    moment = datetime.fromisoformat(sent)
    return moment if moment.tzinfo else moment.replace(tzinfo=zone)


def _not_valid(field: Field) -> Refused:
    return Refused("CRM_FIELD_ERROR_VALUE_NOT_VALID", f"Invalid value of field '{field.title}'")


def described(field: Field) -> dict[str, Any]:
    """A field as crm.item.fields describes it."""
    told: dict[str, Any] = {
        "type": field.type,
        "isRequired": field.required,
        "isReadOnly": field.read_only,
        "isImmutable": False,
        "isMultiple": field.multiple,
        "isDynamic": field.of_people,
        "title": field.title,
        "upperName": field.upper,
    }
    if field.type == "enumeration":
        told["items"] = [{"ID": str(option.id), "VALUE": option.value} for option in field.options]
    return told


def described_user_fields(type_name: str, fields: Sequence[Field]) -> list[dict[str, Any]]:
    """The fields that people made as crm.deal.userfield.list and its siblings describe them."""
    return [
        {
            "ID": str(100 + place),
            "ENTITY_ID": f"CRM_{type_name}",
            "FIELD_NAME": field.name,
            "USER_TYPE_ID": field.type,
            "XML_ID": None,
            "MULTIPLE": "Y" if field.multiple else "N",
            "MANDATORY": "Y" if field.required else "N",
            **({"LIST": _choices(field.options)} if field.type == "enumeration" else {}),
        }
        for place, field in enumerate((each for each in fields if each.of_people), start=1)
    ]


def _choices(options: Sequence[Option]) -> list[dict[str, str]]:
    return [
        {"ID": str(option.id), "SORT": str(10 * place), "VALUE": option.value, "DEF": "N", "XML_ID": option.xml_id}
        for place, option in enumerate(options, start=1)
    ]


def file_id(sent: Any) -> int | None:
    """The id by which an update keeps a file that is there: `{"id": 5}`, or the id alone."""
    return as_int(sent.get("id", sent.get("ID"))) if isinstance(sent, dict) else as_int(sent)
