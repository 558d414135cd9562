"""A Bitrix24 portal: who works in it, its pipelines, fields and products, and who may call it or is called by it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

DEAL, CONTACT, COMPANY = 2, 3, 4
"""The entityTypeId of what has a card here."""
ENTITY_NAMES: Mapping[int, str] = {DEAL: "DEAL", CONTACT: "CONTACT", COMPANY: "COMPANY"}

NOBODY = 0
"""The user id of robots and agents."""

type UserFieldType = Literal[
    "string", "integer", "double", "money", "date", "datetime", "boolean", "enumeration", "employee", "file", "url"
]


@dataclass(frozen=True, slots=True)
class User:
    """Somebody who works in the portal."""

    id: int
    name: str
    last_name: str
    email: str
    is_admin: bool = False
    active: bool = True


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage; `id` is the STATUS_ID, in pipelines other than 0 with the prefix `C{category}:`."""

    id: str
    name: str
    semantics: Literal["S", "F"] | None = None


@dataclass(frozen=True, slots=True)
class Category:
    """A pipeline of deals."""

    id: int
    name: str
    stages: tuple[Stage, ...]


@dataclass(frozen=True, slots=True)
class Option:
    """A choice of a list field; ids differ from portal to portal."""

    id: int
    value: str
    xml_id: str


@dataclass(frozen=True, slots=True)
class UserField:
    """A field that the portal's people made; `name` is the original one (UF_…)."""

    name: str
    type: UserFieldType = "string"
    title: str = ""
    multiple: bool = False
    required: bool = False
    options: tuple[Option, ...] = ()


@dataclass(frozen=True, slots=True)
class Product:
    """A product of the catalog; `type` 1 is a simple product, 4 a variation."""

    id: int
    name: str
    xml_id: str = ""
    iblock_id: int = 15
    code: str = ""
    type: int = 1


@dataclass(frozen=True, slots=True)
class IncomingWebhook:
    """An address by which programs call the portal as `user_id`."""

    user_id: int
    secret: str
    scopes: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class App:
    """A local application; `user_id` is the administrator who installs it."""

    client_id: str
    client_secret: str
    application_token: str
    user_id: int
    scopes: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class OutgoingWebhook:
    """An address that the portal calls when one of `events` happens."""

    id: int
    url: str
    application_token: str
    events: frozenset[str] = frozenset({"ONCRMDEALUPDATE"})


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookRobot:
    """The built-in robot «Webhook» on a stage.

    `{{ID}}`, `{{STAGE_ID}}` … in the query of `url` become fields of the deal, unless they were `typed_by_hand`.
    """

    stage: str
    url: str
    typed_by_hand: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedRobot:
    """A robot of an application that somebody put on a stage, with his settings."""

    stage: str
    code: str
    properties: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bitrix24Portal:
    """A portal, and the limits that it holds callers to.

    Requests drain at `requests_per_second` and are refused above `burst`; a method may work `operating_seconds`
    in ten minutes. A link to a file lives `link_seconds`. A file over `largest_file` bytes is dropped in silence, a
    body over `largest_body` is refused.
    """

    domain: str
    member_id: str
    users: tuple[User, ...]
    categories: tuple[Category, ...]
    user_fields: Mapping[int, tuple[UserField, ...]] = field(default_factory=dict)
    dictionaries: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    products: tuple[Product, ...] = ()
    incoming: tuple[IncomingWebhook, ...] = ()
    apps: tuple[App, ...] = ()
    outgoing: tuple[OutgoingWebhook, ...] = ()
    webhook_robots: tuple[WebhookRobot, ...] = ()
    placed_robots: tuple[PlacedRobot, ...] = ()
    time_zone: str = "Europe/Moscow"
    currency: str = "RUB"
    requests_per_second: float = 2.0
    burst: int = 50
    operating_seconds: float = 480.0
    link_seconds: float = 3_600.0
    largest_file: int = 50_000_000
    largest_body: int = 100_000_000

    @property
    def endpoint(self) -> str:
        """The `client_endpoint` that the portal tells of."""
        return f"https://{self.domain}/rest/"

    def user(self, user_id: int) -> User | None:
        """The user of that id."""
        return next((user for user in self.users if user.id == user_id), None)

    def app(self, client_id: object) -> App | None:
        """The application of that id."""
        return next((app for app in self.apps if app.client_id == client_id), None)

    def category(self, category_id: int) -> Category | None:
        """The pipeline of that id."""
        return next((category for category in self.categories if category.id == category_id), None)

    def stage(self, stage_id: str) -> tuple[Category, Stage] | None:
        """The stage of that STATUS_ID, with its pipeline."""
        return next(
            ((category, stage) for category in self.categories for stage in category.stages if stage.id == stage_id),
            None,
        )
