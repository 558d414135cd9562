"""An amoCRM account: who works in it, its pipelines, its custom fields, its integrations."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

type Kind = Literal["leads", "contacts", "companies", "customers"]
"""Entities with a card, named as in paths."""

KINDS: tuple[Kind, ...] = ("leads", "contacts", "companies", "customers")
SINGULAR: Mapping[Kind, str] = {
    "leads": "lead",
    "contacts": "contact",
    "companies": "company",
    "customers": "customer",
}
ELEMENT_TYPES: Mapping[Kind, int] = {"contacts": 1, "leads": 2, "companies": 3, "customers": 12}

NOBODY = 0
"""The user id of robots, and of the API where it acts for no user."""
WON, LOST = 142, 143
"""The stages with which every pipeline ends."""


@dataclass(frozen=True, slots=True)
class User:
    """Somebody who works in the account."""

    id: int
    name: str
    email: str
    is_admin: bool = False
    is_active: bool = True
    rights: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Status:
    """A stage of a pipeline. `sort` None: it stands where it is listed."""

    id: int
    name: str
    color: str = "#99ccff"
    sort: int | None = None
    descriptions: tuple[Mapping[str, Any], ...] = ()


CLOSED = (Status(WON, "Успешно реализовано", "#CCFF66"), Status(LOST, "Закрыто и не реализовано", "#D5D8DB"))


@dataclass(frozen=True, slots=True)
class Pipeline:
    """A pipeline. `statuses` are those between the first contact and the end; won and lost follow by themselves."""

    id: int
    name: str
    statuses: tuple[Status, ...]
    sort: int | None = None
    is_main: bool | None = None
    is_unsorted_on: bool = False

    @property
    def all_statuses(self) -> tuple[Status, ...]:
        """The stages in order, the closed ones last."""
        return self.statuses + CLOSED


@dataclass(frozen=True, slots=True)
class Option:
    """A choice of a list field, or a kind of phone or e-mail."""

    id: int
    value: str
    code: str | None = None


@dataclass(frozen=True, slots=True)
class CustomField:
    """A custom field of one kind of entity; `type` is one of amoCRM's field types.

    `more` are further parts of its definition, which the API keeps as they were written.
    """

    id: int
    name: str
    type: str = "text"
    code: str | None = None
    options: tuple[Option, ...] = ()
    more: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Integration:
    """An integration; `user_id` is the user who lets it in, whose rights it has."""

    client_id: str
    client_secret: str
    redirect_uri: str
    user_id: int


@dataclass(frozen=True, slots=True)
class PipelineHook:
    """«Отправить webhook» of a digital pipeline: on leads that are made in, or moved to, `statuses` (None: any)."""

    url: str
    statuses: frozenset[int] | None = None

    def wants(self, stage: int | None) -> bool:
        """Whether leads in this stage are told of; who has no stage is no lead."""
        return stage is not None and (self.statuses is None or stage in self.statuses)


USERS = (
    User(10000698, "Анна Администратор", "anna@example.test", is_admin=True),
    User(10000702, "Борис Менеджер", "boris@example.test"),
)

PIPELINES = (
    Pipeline(
        9621010,
        "Воронка",
        (
            Status(76789230, "Первичный контакт"),
            Status(76789234, "Переговоры", "#ffff99"),
            Status(76789238, "Принимают решение", "#ffcc66"),
        ),
    ),
    Pipeline(9621014, "Повторные продажи", (Status(76789250, "Новый запрос"), Status(76789254, "Счёт выставлен"))),
)

_PHONES = tuple(
    Option(718321 + 2 * number, code, code)
    for number, code in enumerate(("WORK", "WORKDD", "MOB", "FAX", "HOME", "OTHER"))
)
_EMAILS = tuple(Option(718333 + 2 * number, code, code) for number, code in enumerate(("WORK", "PRIV", "OTHER")))

CUSTOM_FIELDS: Mapping[str, tuple[CustomField, ...]] = {
    "leads": (
        CustomField(752009, "Комментарий", "textarea"),
        CustomField(752011, "Количество", "numeric"),
        CustomField(752013, "Источник", "select", options=(Option(908107, "Сайт"), Option(908109, "Звонок"))),
        CustomField(752015, "Услуги", "multiselect", options=(Option(908111, "Монтаж"), Option(908113, "Доставка"))),
        CustomField(752017, "Оплата", "radiobutton", options=(Option(908115, "Наличные"), Option(908117, "Карта"))),
        CustomField(752019, "Дата замера", "date"),
        CustomField(752021, "Договор подписан", "checkbox"),
        CustomField(752023, "utm_source", "tracking_data", "UTM_SOURCE"),
    ),
    "contacts": (
        CustomField(735647, "Должность", "text", "POSITION"),
        CustomField(735649, "Телефон", "multitext", "PHONE", _PHONES),
        CustomField(735651, "Email", "multitext", "EMAIL", _EMAILS),
        CustomField(735653, "День рождения", "birthday"),
    ),
    "companies": (
        CustomField(735661, "Телефон", "multitext", "PHONE", _PHONES),
        CustomField(735663, "Email", "multitext", "EMAIL", _EMAILS),
        CustomField(735665, "Web", "url", "WEB"),
    ),
    "customers": (CustomField(735671, "Договор", "text"),),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class AmoCrmAccount:
    """An account of amoCRM or Kommo, and the limits that it is held to.

    `host` is where it lives and `api_domain` where it can be asked for when it has moved. After `block_after`
    refusals for the rate within a minute it is blocked. `repeat_scale` stretches the delays after badly
    answered hooks, and the time for which bad answers are held against them: 0.001 makes an hour 3.6 seconds.
    A hook carries at most `entities_per_hook` entities. Files are at `drive_host`, which takes parts of at most
    `part_size` bytes, of files of at most `file_size`. `custom_fields` are by what they belong to, named as in paths.
    `api_key` is the one that integrations had before OAuth.
    """

    integrations: tuple[Integration, ...] = ()
    id: int = 32427762
    host: str = "example.amocrm.ru"
    api_domain: str = "api-b.amocrm.ru"
    drive_host: str = "drive-b.amocrm.ru"
    name: str = "Окна"
    time_zone: str = "Europe/Moscow"
    users: tuple[User, ...] = USERS
    pipelines: tuple[Pipeline, ...] = PIPELINES
    custom_fields: Mapping[str, tuple[CustomField, ...]] = field(default_factory=lambda: CUSTOM_FIELDS)
    pipeline_hooks: tuple[PipelineHook, ...] = ()
    requests_per_second: int = 7
    requests_per_second_of_all: int = 50
    block_after: int = 50
    entities_per_hook: int = 50
    repeat_scale: float = 1.0
    api_key: str = "old-api-key"
    part_size: int = 524_288
    file_size: int = 314_572_800

    @property
    def subdomain(self) -> str:
        """The account's own part of its host."""
        return self.host.partition(".")[0]

    @property
    def is_kommo(self) -> bool:
        """Whether it lives with Kommo, which answers in JSON where amoCRM shows a page."""
        return self.host.endswith(".kommo.com")

    def integration(self, client_id: object) -> Integration | None:
        """The integration of that id."""
        return next((each for each in self.integrations if each.client_id == client_id), None)
