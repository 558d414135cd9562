"""A lead as callers give it: validated, its phone in E.164, everything else passed on as it came."""

import json
import re
from typing import Annotated

import phonenumbers
from phonenumbers.phonenumberutil import NumberParseException
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_core import PydanticCustomError

from crm_relay.cartelcrm.leads import EXTERNAL_ID_LENGTH

# Regions with phone numbers, but for two codes that ISO 3166-1 does not have, and the countries that have no numbers.
_COUNTRIES = (phonenumbers.SUPPORTED_REGIONS - {"AC", "TA"}) | {"AQ", "BV", "GS", "HM", "PN", "TF", "UM"}
_PHONE = re.compile(r"\+?[0-9()./\s-]{3,40}")


def _printable(text: str) -> str:
    if not text.isprintable():
        raise PydanticCustomError("not_printable", "only printable characters are allowed")
    return text


def _supported(country: str) -> str:
    if country not in _COUNTRIES:
        raise PydanticCustomError("not_a_country", "an ISO 3166-1 alpha-2 code is expected, such as DE")
    return country


class Lead(BaseModel):
    """A lead to submit. Fields beside these are passed on to CartelCRM unchanged."""

    model_config = ConfigDict(extra="allow", frozen=True)

    external_id: Annotated[
        str,
        StringConstraints(strip_whitespace=True, min_length=1, max_length=EXTERNAL_ID_LENGTH),
        AfterValidator(_printable),
        Field(description="Your own id of the lead: the same id is the same lead."),
    ]
    country: Annotated[
        str,
        StringConstraints(strip_whitespace=True, to_upper=True, min_length=2, max_length=2),
        AfterValidator(_supported),
        Field(description="ISO 3166-1 alpha-2.", examples=["UA"]),
    ]
    phone: Annotated[
        str,
        StringConstraints(strip_whitespace=True, max_length=40),
        Field(
            description="In any usual notation; a national number is read as one of `country`. Sent in E.164.",
            examples=["+380501234567", "050 123-45-67"],
        ),
    ]
    first_name: Annotated[str, Field(max_length=200)] | None = None
    source: Annotated[str, Field(max_length=200)] | None = None

    @field_validator("phone")
    @classmethod
    def _e164(cls, phone: str, info: ValidationInfo) -> str:
        country = info.data.get("country")
        return phone if country is None else _e164(phone, country)

    def body(self) -> str:
        """Return the JSON text that is signed and sent: compact, non-ASCII and slashes unescaped.

        The fields that are not ours come in alphabetical order, so that their order makes no other lead.
        """
        fields = self.model_dump(exclude_unset=True)
        order = [*type(self).model_fields, *sorted(self.model_extra or ())]
        fields = {name: fields[name] for name in order if name in fields}
        return json.dumps(fields, ensure_ascii=False, separators=(",", ":"))


class InvalidLead(Exception):
    """A lead that cannot be submitted. `errors` is a list of {"field", "message"}; values are never repeated."""

    def __init__(self, errors: list[dict[str, str]]) -> None:
        super().__init__("invalid_lead")
        self.errors = errors


def read_lead(fields: object) -> Lead:
    """Return the lead that a JSON value is.

    Raises:
        InvalidLead: with what is wrong, field by field.
    """
    try:
        return Lead.model_validate(fields)
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=False, include_input=False)
        raise InvalidLead(
            [{"field": ".".join(map(str, detail["loc"])), "message": detail["msg"]} for detail in details]
        ) from None


def _e164(phone: str, country: str) -> str:
    wrong = PydanticCustomError("not_a_phone", "this is no valid number of its country")
    if not _PHONE.fullmatch(phone):
        raise wrong
    # "00" is the international prefix of most countries but not of all; callers mean "+" everywhere.
    digits = re.sub(r"^00", "+", re.sub(r"[^0-9+]", "", phone))
    try:
        number = phonenumbers.parse(digits, country)
    except NumberParseException:
        raise wrong from None
    if not phonenumbers.is_valid_number(number):
        raise wrong
    return phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.E164)
