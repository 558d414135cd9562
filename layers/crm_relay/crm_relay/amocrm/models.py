"""amoCRM's entities as models: unknown keys are kept, a write sends only what changed (amoCRM reference, appendix A).

All times are in unix seconds. Every field may be missing: what an answer holds depends on `with_`, and a model made by
hand has what was set. What amoCRM puts under `_embedded` is beside the rest here.
"""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Self, override

import msgspec
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, SerializeAsAny, ValidationError, model_validator

from crm_relay.amocrm.custom_fields import CustomFields, written
from crm_relay.amocrm.notes import Params, params_of

WON, LOST = 142, 143
"""Stages that every pipeline ends with."""


class Model(BaseModel):
    """What all entities can do. `_embedded_names` are the fields that the API wants under `_embedded`."""

    model_config = ConfigDict(extra="allow", validate_assignment=True, populate_by_name=True, protected_namespaces=())

    _embedded_names: ClassVar[frozenset[str]] = frozenset()
    _as_read: bytes = PrivateAttr(default=b"{}")

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> Self:
        """Make a model of an answer's item; a field of a type that nobody expects stays as it came."""
        try:
            model = cls.model_validate(data)
        except ValidationError as error:
            flat = _flat(data)
            odd = {str(mistake["loc"][0]) for mistake in error.errors() if mistake["loc"]}
            model = cls.model_validate({name: value for name, value in flat.items() if name not in odd})
            for name, field in cls.model_fields.items():
                if (field.alias or name) in odd:
                    model.__dict__[name] = flat[field.alias or name]
                    model.__pydantic_fields_set__.add(name)
        model._as_read = msgspec.json.encode(data)  # noqa: SLF001 (ours)
        return model

    @model_validator(mode="before")
    @classmethod
    def _unpack(cls, data: Any) -> Any:
        return _flat(data) if isinstance(data, dict) else data

    def written(self) -> dict[str, Any]:
        """Return the whole entity as the API takes it."""
        return self._packed(self._plain())

    def changes(self) -> dict[str, Any]:
        """Return what differs from what was read, as the API takes it: of a new entity everything that is set."""
        before = self._before()
        changed = self._changed(before)
        fields = changed.get("custom_fields_values")
        if fields is not None:
            had = before.get("custom_fields_values") or ()
            changed["custom_fields_values"] = [held for held in fields if held not in had]
        return self._packed(changed)

    def settle(self, answer: Mapping[str, Any]) -> None:
        """Take over what amoCRM made of a write; there is nothing left to send then."""
        made = type(self).read({name: value for name, value in answer.items() if name not in _OF_THE_ANSWER})
        for name in made.model_fields_set:
            self._set(name, getattr(made, name))
        self._as_read = msgspec.json.encode(self.written())

    def sync(self, answer: Mapping[str, Any]) -> None:
        """Take over the state of an entity that was read anew; what was changed here and not sent stays changed."""
        mine = self._changed(self._before()).keys()
        fresh = type(self).read(answer)
        for name in fresh.model_fields_set - mine:
            self._set(name, getattr(fresh, name))
        self._as_read = msgspec.json.encode(_flat(msgspec.json.decode(self._as_read)) | _flat(answer))

    def _changed(self, before: Mapping[str, Any]) -> dict[str, Any]:
        plain = self._plain()
        return {name: value for name, value in plain.items() if name not in before or before[name] != value}

    @override
    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        return [(name, value) for name, value in super().__repr_args__() if name in self.model_fields_set]

    def _before(self) -> dict[str, Any]:
        return type(self).read(msgspec.json.decode(self._as_read))._plain()  # noqa: SLF001 (ours)

    def _set(self, name: str, value: Any) -> None:
        # Without a validation: it has been validated, or could not be.
        if name in type(self).model_fields:
            self.__dict__[name] = value
            self.__pydantic_fields_set__.add(name)
        else:
            (self.__pydantic_extra__ or {})[name] = value

    def _plain(self) -> dict[str, Any]:
        names = [name for name in self.model_fields_set if name in type(self).model_fields]
        plain = {type(self).model_fields[name].alias or name: _plain(getattr(self, name)) for name in names}
        plain |= {name: _plain(value) for name, value in (self.model_extra or {}).items() if name not in _OF_THE_ANSWER}
        if isinstance(fields := plain.get("custom_fields_values"), list):
            plain["custom_fields_values"] = [written(held) if isinstance(held, dict) else held for held in fields]
        return plain

    def _packed(self, plain: dict[str, Any]) -> dict[str, Any]:
        embedded = {name: plain.pop(name) for name in self._embedded_names & plain.keys()}
        return {**plain, "_embedded": embedded} if embedded else plain


_OF_THE_ANSWER = frozenset({"request_id", "_links"})


def _flat(data: Mapping[str, Any]) -> dict[str, Any]:
    flat = dict(data)
    match flat.pop("_embedded", None):
        case dict() as embedded:
            return {**embedded, **flat}
        case _:
            return flat


def _plain(value: Any) -> Any:
    match value:
        case Model():
            return value.written()
        case list() | tuple():
            return [_plain(one) for one in value]
        case dict():
            return {name: _plain(one) for name, one in value.items()}
        case BaseModel():
            return value.model_dump(exclude_unset=True, by_alias=True)
        case _:
            return value


class Tag(Model):
    """A tag. `color`, of leads' tags alone, is one of TAG_COLORS."""

    id: int | None = None
    name: str | None = None
    color: str | None = None

    def is_same(self, other: "Tag") -> bool:
        """Tell whether both are one tag, as far as id or name tell."""
        return (self.id is not None and self.id == other.id) or (self.name is not None and self.name == other.name)


TAG_COLORS = (
    "EBEBEB D0D0D0 F2DDF7 D1A4DC FF8F92 FFC8C8 C7DB8C DDEBB5 8699DA AABDFF FFCE5A FFE193 90CDB0 C6F4DE "
    "A9A5D7 D8D5FF 86C0FC 832161 6A0F49 0C7C59 10599D 9D2B32 247BA0"
)
"""What tags of leads may be coloured in."""


class Named(Model):
    """What has an id and a name."""

    id: int | None = None
    name: str | None = None


class Stamped(Model):
    """What has an id, and says who made and changed it when."""

    id: int | None = None
    created_by: int | None = None
    updated_by: int | None = None
    created_at: int | None = None
    updated_at: int | None = None
    account_id: int | None = None


class WithFields(Model):
    """What has custom fields."""

    custom_fields_values: list[dict[str, Any]] | None = None

    @property
    def custom_fields(self) -> CustomFields:
        """The custom fields, by id, code or name."""
        return CustomFields(self)


class Tagged(WithFields):
    """What has tags. To set `tags` replaces all, None takes all away; add_tags and remove_tags leave the others."""

    _embedded_names = frozenset({"tags", "contacts", "companies", "source", "metadata", "segments", "catalog_elements"})

    tags: list[Tag] | None = None
    tags_to_add: list[Tag] | None = None
    tags_to_delete: list[Tag] | None = None

    def add_tags(self, *tags: str | int | Tag) -> None:
        """Add tags, by name or id, whatever there are."""
        self.tags_to_add = [*(self.tags_to_add or ()), *map(_tag, tags)]

    def remove_tags(self, *tags: str | int | Tag) -> None:
        """Take tags away, by name or id, and leave the others."""
        self.tags_to_delete = [*(self.tags_to_delete or ()), *map(_tag, tags)]

    @override
    def _packed(self, plain: dict[str, Any]) -> dict[str, Any]:
        if plain.get("tags_to_add") or plain.get("tags_to_delete"):
            plain.pop("tags", None)
        return super()._packed(plain)

    @override
    def settle(self, answer: Mapping[str, Any]) -> None:
        if self.tags is not None:
            gone, added = self.tags_to_delete or [], self.tags_to_add or []
            left = [tag for tag in self.tags if not any(map(tag.is_same, [*gone, *added]))]
            self._set("tags", left + added)
        for name in ("tags_to_add", "tags_to_delete"):
            self._set(name, None)
            self.__pydantic_fields_set__.discard(name)
        super().settle(answer)


def _tag(tag: str | int | Tag) -> Tag:
    match tag:
        case str():
            return Tag(name=tag)
        case int():
            return Tag(id=tag)
        case _:
            return tag


class Card(Tagged, Stamped):
    """What has a card in amoCRM."""

    name: str | None = None
    responsible_user_id: int | None = None
    group_id: int | None = None
    closest_task_at: int | None = None
    is_deleted: bool | None = None


class Contact(Card):
    """A contact."""

    first_name: str | None = None
    last_name: str | None = None
    is_main: bool | None = None
    is_unsorted: bool | None = None
    companies: "list[Company] | None" = None
    leads: "list[Lead] | None" = None
    customers: "list[Customer] | None" = None
    catalog_elements: "list[CatalogElement] | None" = None
    social_profiles: "list[SocialProfile] | None" = None


class Company(Card):
    """A company."""

    contacts: list[Contact] | None = None
    leads: "list[Lead] | None" = None
    customers: "list[Customer] | None" = None
    catalog_elements: "list[CatalogElement] | None" = None


class Metadata(Model):
    """What is told of an incoming lead, by category; of a lead that complex creation makes it names its `category`."""

    category: str | None = None


class SipMetadata(Metadata):
    """A call; `called_at` in unix seconds, `duration` in seconds."""

    from_: str | None = Field(default=None, alias="from")
    phone: str | int | None = None
    called_at: int | None = None
    duration: int | None = None
    link: str | None = None
    service_code: str | None = None
    uniq: str | None = None
    is_call_event_needed: bool | None = None
    call_responsible: int | str | None = None


class FormsMetadata(Metadata):
    """A form; `form_sent_at` in unix seconds."""

    form_id: str | int | None = None
    form_name: str | None = None
    form_page: str | None = None
    form_sent_at: int | None = None
    form_type: int | str | None = None
    ip: str | None = None
    referer: str | None = None
    visitor_uid: str | None = None


class MailMetadata(Metadata):
    """A mail, read only; `from_` has email and name."""

    from_: dict[str, Any] | None = Field(default=None, alias="from")
    received_at: int | None = None
    subject: str | None = None
    thread_id: int | None = None
    message_id: int | None = None
    content_summary: str | None = None


class ChatsMetadata(Metadata):
    """A message, read only; `client` has name and avatar, `origin` chat_id, ref and visitor_uid."""

    from_: Any = Field(default=None, alias="from")
    to: Any = None
    received_at: int | None = None
    service: str | None = None
    client: dict[str, Any] | None = None
    origin: dict[str, Any] | None = None
    last_message_text: str | None = None
    source_name: str | None = None


METADATA: Mapping[str, type[Metadata]] = {
    "sip": SipMetadata,
    "forms": FormsMetadata,
    "mail": MailMetadata,
    "chats": ChatsMetadata,
}
"""What is told of an incoming lead, by its category."""


class WithMetadata(Model):
    """What has metadata of a category, its own or theirs."""

    metadata: SerializeAsAny[Metadata] | None = None

    @model_validator(mode="before")
    @classmethod
    def _typed_metadata(cls, data: Any) -> Any:
        match data:
            case {"metadata": dict() as raw}:
                kind = str(data.get("category", raw.get("category")))
                return {**data, "metadata": METADATA.get(kind, Metadata).read(raw)}
            case _:
                return data


class Lead(Card, WithMetadata):
    """A lead. `price` may have a fraction; `loss_reason_id` is sent of a lost lead alone.

    To a new lead `contacts` and `companies` can be linked by id; complex creation makes them, with all that they have.
    """

    price: int | float | None = None
    status_id: int | None = None
    pipeline_id: int | None = None
    loss_reason_id: int | None = None
    source_id: int | None = None
    source: Named | None = None
    closed_at: int | None = None
    is_price_modified_by_robot: bool | None = None
    score: int | None = None
    visitor_uid: str | None = None
    loss_reason: "list[LossReason] | None" = None
    contacts: list[Contact] | None = None
    companies: list[Company] | None = None
    catalog_elements: "list[CatalogElement] | None" = None

    @model_validator(mode="before")
    @classmethod
    def _exact_price(cls, data: Any) -> Any:
        if not isinstance(data, dict) or "price_with_minor_units" not in data:
            return data
        exact = data["price_with_minor_units"]
        rest = {name: value for name, value in data.items() if name != "price_with_minor_units"}
        return rest if exact is None else {**rest, "price": exact}

    @override
    def _packed(self, plain: dict[str, Any]) -> dict[str, Any]:
        if self.status_id != LOST:
            plain.pop("loss_reason_id", None)
        return super()._packed(plain)


class ComplexLead(Model):
    """What complex creation made of a lead. `merged` tells that duplicate control found it: nothing new was made."""

    id: int
    contact_id: int | None = None
    company_id: int | None = None
    merged: bool = False
    request_id: str | list[str] | None = None


class Customer(Card):
    """A customer. `next_price` and `periodicity` are of periodic customers, `segments` of segmented ones."""

    next_price: int | None = None
    next_date: int | None = None
    status_id: int | None = None
    periodicity: int | None = None
    ltv: int | None = None
    purchases_count: int | None = None
    average_check: int | None = None
    segments: "list[Segment] | None" = None
    companies: list[Company] | None = None
    contacts: list[Contact] | None = None
    catalog_elements: "list[CatalogElement] | None" = None


class SocialProfile(Named):
    """A contact's profile in a messenger."""

    avatar: str | None = None
    source_name: str | None = None
    data: Any = None


class ChatLink(Model):
    """A chat of a contact."""

    contact_id: int | None = None
    chat_id: str | None = None


class Link(Model):
    """A link of two entities; `entity_id` and `entity_type` are known where one entity is asked about.

    `metadata` may have is_main, updated_by, and for an element of a list catalog_id, quantity and price_id.
    """

    entity_id: int | None = None
    entity_type: str | None = None
    to_entity_id: int | None = None
    to_entity_type: str | None = None
    metadata: dict[str, Any] | None = None


class Catalog(Stamped):
    """A list. `type` is regular, invoices, products or suppliers."""

    name: str | None = None
    type: str | None = None
    sort: int | None = None
    can_add_elements: bool | None = None
    can_link_multiple: bool | None = None
    can_show_in_cards: bool | None = None
    can_be_deleted: bool | None = None
    sdk_widget_code: str | int | None = None


class InvoiceWarning(Model):
    """What is wrong with an invoice."""

    message: str | None = None


class CatalogElement(WithFields, Stamped):
    """An element of a list. Where it is linked to a card, `metadata` has quantity, catalog_id and price_id."""

    name: str | None = None
    catalog_id: int | None = None
    currency_id: int | None = None
    is_deleted: bool | None = None
    invoice_link: str | None = None
    to_element_id: int | None = None
    quantity: float | None = None
    price_id: int | None = None
    metadata: dict[str, Any] | None = None
    warning: InvoiceWarning | None = None


class CustomField(Named):
    """The definition of a custom field.

    Options in `enums` that exist keep their `id`; to leave them out may delete them.
    """

    type: str | None = None
    code: str | None = None
    sort: int | None = None
    group_id: str | None = None
    entity_type: str | None = None
    account_id: int | None = None
    catalog_id: int | None = None
    is_predefined: bool | None = None
    is_api_only: bool | None = None
    is_deletable: bool | None = None
    is_visible: bool | None = None
    is_required: bool | None = None
    search_in: str | int | None = None
    tracking_callback: str | None = None
    currency: str | None = None
    remind: str | None = None
    enums: list[dict[str, Any]] | None = None
    nested: list[dict[str, Any]] | None = None
    chained_lists: list[dict[str, Any]] | None = None
    required_statuses: list[dict[str, Any]] | None = None
    hidden_statuses: list[dict[str, Any]] | None = None


class CustomFieldGroup(Model):
    """A tab of custom fields; `fields_` are their ids."""

    id: str | None = None
    name: str | None = None
    sort: int | None = None
    is_predefined: bool | None = None
    entity_type: str | None = None
    fields_: list[int] | None = Field(default=None, alias="fields")


class Note(Stamped):
    """A note. What `params` may hold is in `notes.PARAMS`, by type; of other types it is left as it is.

    `is_need_to_trigger_digital_pipeline=False` keeps robots from starting on it.
    """

    entity_id: int | None = None
    note_type: str | None = None
    params: SerializeAsAny[Params] | None = None
    responsible_user_id: int | None = None
    group_id: int | None = None
    is_pinned: bool | None = None
    is_need_to_trigger_digital_pipeline: bool | None = None

    @model_validator(mode="before")
    @classmethod
    def _typed_params(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("params"), dict | list):
            return {**data, "params": params_of(data.get("note_type"), dict(data["params"]))}
        return data

    @classmethod
    def common(cls, entity_id: int, text: str) -> Self:
        """Make a note with a text."""
        return cls(entity_id=entity_id, note_type="common", params=params_of("common", {"text": text}))


class Task(Stamped):
    """A task. `task_type_id` 1 is a follow-up, 2 a meeting, others are the account's own; `duration` is in seconds."""

    text: str | None = None
    task_type_id: int | None = None
    responsible_user_id: int | None = None
    group_id: int | None = None
    entity_type: str | None = None
    entity_id: int | None = None
    is_completed: bool | None = None
    complete_till: int | None = None
    duration: int | None = None
    result: dict[str, Any] | list[Any] | None = None


class Rights(Model):
    """What a user or a role may do: of leads, contacts and companies view, edit, add, delete, export.

    Each is A allowed, G to the group, L to what is linked, M to the one responsible, or D denied.
    """

    leads: dict[str, str] | None = None
    contacts: dict[str, str] | None = None
    companies: dict[str, str] | None = None
    tasks: dict[str, str] | None = None
    status_rights: list[dict[str, Any]] | None = None
    catalog_rights: list[dict[str, Any]] | None = None
    mail_access: bool | None = None
    catalog_access: bool | None = None
    files_access: bool | None = None
    is_admin: bool | None = None
    is_free: bool | None = None
    is_active: bool | None = None
    group_id: int | None = None
    role_id: int | None = None


class UsersGroup(Named):
    """A group of users."""

    uuid: str | None = None


class User(Named):
    """A user. `password` is of a new one alone."""

    email: str | None = None
    password: str | None = Field(default=None, repr=False)
    lang: str | None = None
    uuid: str | None = None
    amojo_id: str | None = None
    user_rank: str | None = None
    phone_number: str | None = None
    rights: Rights | None = None
    groups: list[UsersGroup] | None = None
    roles: "list[Role] | None" = None

    @override
    def settle(self, answer: Mapping[str, Any]) -> None:
        self._set("password", None)
        self.__pydantic_fields_set__.discard("password")
        super().settle(answer)


class Role(Named):
    """A role."""

    rights: Rights | None = None
    users: list[User] | None = None


class StatusDescription(Stamped):
    """What is said of a stage to users of a `level`: newbie, candidate, master."""

    pipeline_id: int | None = None
    status_id: int | None = None
    level: str | None = None
    description: str | None = None


class Status(Named):
    """A stage of a pipeline."""

    _embedded_names = frozenset({"descriptions"})

    sort: int | None = None
    color: str | None = None
    type: int | None = None
    is_editable: bool | None = None
    pipeline_id: int | None = None
    account_id: int | None = None
    descriptions: list[StatusDescription] | None = None


class Pipeline(Named):
    """A pipeline of leads."""

    _embedded_names = frozenset({"statuses"})

    sort: int | None = None
    is_main: bool | None = None
    is_unsorted_on: bool | None = None
    is_archive: bool | None = None
    account_id: int | None = None
    statuses: list[Status] | None = None


class LossReason(Named):
    """Why a lead was lost."""

    sort: int | None = None
    created_at: int | None = None
    updated_at: int | None = None


class CustomerStatus(Named):
    """A stage of customers."""

    sort: int | None = None
    color: str | None = None
    type: int | None = None
    is_default: bool | None = None
    conditions: list[dict[str, Any]] | None = None
    account_id: int | None = None


class Segment(WithFields):
    """A segment of customers."""

    id: int | None = None
    name: str | None = None
    color: str | None = None
    available_products_price_types: list[int] | None = None
    customers_count: int | None = None
    created_at: int | None = None
    updated_at: int | None = None


class Transaction(Stamped):
    """A purchase of a customer. `metadata` may have receipt_link and external_id."""

    _embedded_names = frozenset({"catalog_elements"})

    price: int | None = None
    completed_at: int | None = None
    comment: str | None = None
    next_date: int | None = None
    next_price: int | None = None
    metadata: dict[str, Any] | None = None
    customer_id: int | None = None
    is_deleted: bool | None = None
    catalog_elements: list[CatalogElement] | None = None


class Unsorted(WithMetadata):
    """An incoming lead. `category` is sip, forms, mail or chats, of which the first two can be added."""

    _embedded_names = frozenset({"leads", "contacts", "companies"})

    uid: str | None = None
    category: str | None = None
    source_uid: str | None = None
    source_name: str | None = None
    pipeline_id: int | None = None
    created_at: int | None = None
    leads: list[Lead] | None = None
    contacts: list[Contact] | None = None
    companies: list[Company] | None = None

    @override
    def _packed(self, plain: dict[str, Any]) -> dict[str, Any]:
        # It is in the path.
        plain.pop("category", None)
        return super()._packed(plain)


class UnsortedSummary(Model):
    """How many incoming leads there were, by category too. `average_sort_time` is in seconds."""

    total: int | None = None
    accepted: int | None = None
    declined: int | None = None
    average_sort_time: int | None = None
    categories: dict[str, Any] | None = None


class Call(Model):
    """A call. amoCRM finds the entity by `phone`; `direction` is inbound or outbound, `call_status` 1 to 8."""

    uniq: str | None = None
    duration: int | None = None
    source: str | None = None
    link: str | None = None
    phone: str | None = None
    call_result: str | None = None
    call_status: int | None = None
    direction: str | None = None
    call_responsible: int | str | None = None
    responsible_user_id: int | None = None
    created_by: int | None = None
    updated_by: int | None = None
    created_at: int | None = None
    updated_at: int | None = None
    id: int | None = None
    entity_id: int | None = None
    entity_type: str | None = None


class Event(Model):
    """Something that happened. `created_by` 0 is a robot."""

    id: str | None = None
    type: str | None = None
    entity_id: int | None = None
    entity_type: str | None = None
    created_by: int | None = None
    created_at: int | None = None
    value_before: list[dict[str, Any]] | None = None
    value_after: list[dict[str, Any]] | None = None
    account_id: int | None = None
    entity: dict[str, Any] | None = None


class EventType(Model):
    """A type of events; `key` is its name in filters."""

    key: str | None = None
    type: int | None = None
    lang: str | None = None


class Webhook(Model):
    """A subscription to hooks."""

    id: int | None = None
    destination: str | None = None
    settings: list[str] | None = None
    sort: int | None = None
    disabled: bool | None = None
    created_by: int | None = None
    created_at: int | None = None
    updated_at: int | None = None
    account_id: int | None = None


class SettingTemplate(Model):
    """A setting that a widget asks for."""

    key: str | None = None
    name: str | None = None
    type: str | None = None
    is_required: bool | None = None


class Widget(Model):
    """A widget."""

    id: int | None = None
    code: str | None = None
    version: str | None = None
    rating: float | str | None = None
    settings_template: list[SettingTemplate] | None = None
    settings: dict[str, Any] | list[Any] | None = None
    is_lead_source: bool | None = None
    is_work_with_dp: bool | None = None
    is_crm_template: bool | None = None
    is_active_in_account: bool | None = None
    pipeline_id: int | None = None
    client_uuid: str | None = None


class ProductsSettings(Model):
    """Whether products are on."""

    is_enabled: bool | None = None
    catalog_id: int | None = None


class Talk(Model):
    """A conversation in a chat."""

    talk_id: int | None = None
    created_at: int | None = None
    updated_at: int | None = None
    rate: int | None = None
    contact_id: int | None = None
    chat_id: str | None = None
    entity_id: int | None = None
    entity_type: str | None = None
    is_in_work: bool | None = None
    is_read: bool | None = None
    origin: str | None = None
    missed_at: int | None = None
    account_id: int | None = None


class SourcePage(Model):
    """A page of a messenger: for WhatsApp `link` is a phone, `id` and `name` are of our choice."""

    id: str | int | None = None
    name: str | None = None
    link: str | None = None


class SourceParams(Model):
    """What a messenger can do."""

    waba: bool | None = None
    is_supports_list_message: bool | None = None


class SourceService(Model):
    """A messenger of a source; `type` is such as whatsapp."""

    type: str | None = None
    pages: list[SourcePage] | None = None
    params: SourceParams | None = None


class Source(Named):
    """A source of chats."""

    external_id: str | None = None
    pipeline_id: int | None = None
    default: bool | None = None
    origin_code: str | None = None
    services: list[SourceService] | None = None


class WebsiteButton(Model):
    """A button on a web site; it is known by the id of its source."""

    source_id: int | None = None
    name: str | None = None
    button_id: int | None = None
    pipeline_id: int | None = None
    trusted_websites: list[str] | None = None
    is_used_in_app: bool | None = None
    is_duplication_control_enabled: bool | None = None
    creation_status: str | None = None
    script: str | None = None
    is_deleted: bool | None = None
    account_id: int | None = None


class ShortLink(Model):
    """A short link. `metadata` of a new one names the entity: entity_id and entity_type."""

    id: int | None = None
    url: str | None = None
    metadata: dict[str, Any] | None = None
    entity_id: int | None = None
    entity_type: str | None = None


class Review(Model):
    """What a messenger says to a template."""

    id: int | None = None
    source_id: int | None = None
    status: str | None = None
    reject_reason: str | None = None


class Button(Model):
    """A button under a message; `type` is inline, or url, which has a `url`."""

    type: str | None = None
    text: str | None = None
    url: str | None = None


class Attachment(Model):
    """A file of the drive, by its uuid, that goes with a message; `type` is such as file or picture."""

    type: str | None = None
    id: str | int | None = None
    name: str | None = None


class ChatTemplate(Named):
    """A template of messages.

    `type` is amocrm or waba, and what begins with waba is WhatsApp's.
    """

    content: str | None = None
    type: str | None = None
    external_id: str | None = None
    is_editable: bool | None = None
    buttons: list[Button] | None = None
    attachment: Attachment | None = None
    waba_header: str | None = None
    waba_footer: str | None = None
    waba_category: str | None = None
    waba_language: str | None = None
    waba_examples: dict[str, Any] | list[Any] | None = None
    created_at: int | None = None
    updated_at: int | None = None
    account_id: int | None = None
    reviews: list[Review] | None = None


class Subscription(Model):
    """Somebody who is told of an entity's changes."""

    subscriber_id: int | None = None
    type: str | None = None


class Currency(Model):
    """A currency of the account."""

    code: str | None = None


class FilePreview(Model):
    """A smaller picture of a file, in pixels."""

    download_link: str | None = None
    width: int | None = None
    height: int | None = None


class File(Model):
    """A file on the drive. `size` is in bytes."""

    id: int | None = None
    uuid: str | None = None
    version_uuid: str | None = None
    name: str | None = None
    sanitized_name: str | None = None
    type: str | None = None
    size: int | None = None
    is_trashed: bool | None = None
    has_multiple_versions: bool | None = None
    source_id: int | None = None
    metadata: dict[str, Any] | None = None
    previews: list[FilePreview] | None = None
    created_by: dict[str, Any] | None = None
    updated_by: dict[str, Any] | None = None
    deleted_by: dict[str, Any] | None = None
    created_at: int | None = None
    updated_at: int | None = None
    deleted_at: int | None = None


class EntityFile(Model):
    """A file in a card."""

    file_uuid: str | None = None
    id: int | None = None


class Bot(Named):
    """A salesbot."""


class AmojoRights(Model):
    """What users may do in chats."""

    can_direct: bool | None = None
    can_create_groups: bool | None = None


class TaskType(Named):
    """A type of tasks."""

    color: str | None = None
    icon_id: int | None = None
    code: str | None = None


class DateTimeSettings(Model):
    """How the account writes times; `timezone` is a name such as Europe/Moscow."""

    date_pattern: str | None = None
    short_date_pattern: str | None = None
    short_time_pattern: str | None = None
    date_format: str | None = None
    time_format: str | None = None
    timezone: str | None = None
    timezone_offset: str | None = None


class InvoicesSettings(Model):
    """In which language and which list invoices are."""

    lang: str | None = None
    invoices_catalog_id: int | None = None


class Account(Named):
    """The account; what comes with it is up to `with_`."""

    subdomain: str | None = None
    created_at: int | None = None
    created_by: int | None = None
    updated_at: int | None = None
    updated_by: int | None = None
    current_user_id: int | None = None
    country: str | None = None
    currency: str | None = None
    currency_symbol: str | None = None
    customers_mode: str | None = None
    is_unsorted_on: bool | None = None
    is_loss_reason_enabled: bool | None = None
    is_helpbot_enabled: bool | None = None
    is_technical_account: bool | None = None
    is_api_filter_enabled: bool | None = None
    mobile_feature_version: int | None = None
    contact_name_display_order: int | None = None
    amojo_id: str | None = None
    uuid: str | None = None
    version: int | None = None
    drive_url: str | None = None
    amojo_rights: AmojoRights | None = None
    users_groups: list[UsersGroup] | None = None
    task_types: list[TaskType] | None = None
    datetime_settings: DateTimeSettings | None = None
    invoices_settings: InvoicesSettings | None = None
