"""What can be written to leads, contacts, companies and customers."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from workbench.sandboxes.amocrm.account import Kind
from workbench.sandboxes.amocrm.calls import Body

type Id = Annotated[int, Field(gt=0)]
type UserId = Annotated[int, Field(ge=0)]
type Time = Annotated[int, Field(gt=0, lt=2**33)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class FieldBody(_Part):
    """Values for one custom field, named by id or code; None or [] clears it."""

    field_id: Id | None = None
    field_code: str | None = None
    values: list[dict[str, Any]] | None


class TagBody(_Part):
    """A tag by id or name; a new name makes a new tag."""

    id: Id | None = None
    name: str | None = None
    color: str | None = None


class LinkBody(_Part):
    """Another entity that hangs on this one."""

    id: Id
    is_main: bool = False


class EmbeddedBody(_Part):
    """What is written with an entity. `tags` replace all that there were, None clears them."""

    tags: list[TagBody] | None = None


class LeadEmbeddedBody(EmbeddedBody):
    """Contacts and companies are taken when a lead is made, and only then."""

    contacts: Sequence[LinkBody] = ()
    companies: Sequence[LinkBody] = ()
    source: dict[str, Any] | None = None


class EntityBody(Body):
    """What all of them have. What is not sent stays as it is."""

    id: Id | None = None
    name: str | None = None
    responsible_user_id: Id | None = None
    created_by: UserId | None = None
    updated_by: UserId | None = None
    created_at: Time | None = None
    updated_at: Time | None = None
    custom_fields_values: list[FieldBody] | None = None
    tags_to_add: Sequence[TagBody] = ()
    tags_to_delete: Sequence[TagBody] = ()
    embedded: EmbeddedBody = Field(default_factory=EmbeddedBody, alias="_embedded")


class LeadBody(EntityBody):
    """A lead."""

    price: float | None = None
    status_id: Id | None = None
    pipeline_id: Id | None = None
    loss_reason_id: Id | None = None
    closed_at: Time | None = None
    visitor_uid: str | None = None
    embedded: LeadEmbeddedBody = Field(default_factory=LeadEmbeddedBody, alias="_embedded")


class ContactBody(EntityBody):
    """A contact."""

    first_name: str | None = None
    last_name: str | None = None


class CompanyBody(EntityBody):
    """A company."""


class SegmentBody(_Part):
    """A segment that a customer is in."""

    id: Id


class CustomerEmbeddedBody(EmbeddedBody):
    """`segments` replace all that there were, None clears them."""

    segments: list[SegmentBody] | None = None


class CustomerBody(EntityBody):
    """A customer."""

    next_price: int | None = None
    next_date: Time | None = None
    periodicity: int | None = None
    status_id: Id | None = None
    embedded: CustomerEmbeddedBody = Field(default_factory=CustomerEmbeddedBody, alias="_embedded")


BODIES: Mapping[Kind, type[EntityBody]] = {
    "leads": LeadBody,
    "contacts": ContactBody,
    "companies": CompanyBody,
    "customers": CustomerBody,
}
