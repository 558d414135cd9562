"""Configuration: relay.toml (what a deployer edits) and one secret, as typed, frozen, validated data."""

import tomllib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from string import Formatter
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from crm_relay.cartelcrm.statuses import STATUSES

AccountName = Annotated[str, Meta(pattern=r"^[a-z0-9_-]{1,40}\Z")]
"""What we call an account: a part of keys, so without their separator."""
AmoCrmCardAction = Literal["add", "update", "responsible", "restore"]
AmoCrmLeadAction = Literal[AmoCrmCardAction, "status"]
_FieldName = Annotated[str, Meta(pattern=r"^[A-Z][A-Z0-9_]{0,99}\Z")]
_StageId = Annotated[str, Meta(pattern=r"^(C[1-9][0-9]{0,8}:)?[A-Za-z0-9_-]{1,50}\Z")]


class ConfigurationError(Exception):
    """relay.toml or the secret cannot be used. The message names the source, the key and what was expected."""


class Environment(msgspec.Struct, frozen=True):
    """What template.yaml tells a function; what it does not tell, the function never touches."""

    TABLE_NAME: Annotated[str, Meta(min_length=3)]
    RELAY_CONFIG: Annotated[str, Meta(min_length=1)]
    SECRET_ID: str = ""
    BUS_NAME: str = ""
    QUEUE_URL: str = ""
    DEAD_LETTER_QUEUE_URL: str = ""
    API_URL: str = ""
    """Where our own API is, without a slash at its end."""


def read_environment(variables: Mapping[str, str]) -> Environment:
    """Read a function's environment variables.

    Raises:
        ConfigurationError: one that every function needs is missing or empty.
    """
    return _convert(dict(variables), Environment, "environment")


class RelaySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[relay]: what holds for every CRM."""

    give_up_after_seconds: Annotated[int, Meta(ge=60, le=3 * 86_400)] = 86_400
    """How long a message may wait for a CRM; at most 3 days, since the queue keeps a message for 4."""
    replay_window_days: Annotated[int, Meta(ge=30, le=90)] = 30
    """How long a call is remembered, so that its replay has no effect."""
    callback_body_limit_bytes: Annotated[int, Meta(ge=1024, le=262_144)] = 262_144
    lead_body_limit_bytes: Annotated[int, Meta(ge=1024, le=262_144)] = 262_144
    hook_body_limit_bytes: Annotated[int, Meta(ge=1024, le=4_194_304)] = 1_048_576

    @property
    def replay_window(self) -> int:
        """The replay window in seconds."""
        return self.replay_window_days * 86_400


class CartelCrmSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[cartelcrm]."""

    base_url: Annotated[
        str, Meta(pattern=r"^(https://[^/?#@\s]+|http://127\.0\.0\.1:[0-9]+)(/[^?#\s]*[^/?#\s])?\Z")
    ] = "https://cartelcrm.com/api"
    requests_per_second: Annotated[float, Meta(gt=0, le=1000)] = 10.0
    require_signature_prefix: bool = False
    """Refuse callbacks whose X-Signature lacks "sha256="."""
    statuses: Mapping[str, str] = {}
    """CartelCRM's words for a lead's fate, beside ours; case does not matter."""

    def __post_init__(self) -> None:
        for word, status in self.statuses.items():
            if status not in STATUSES:
                raise ValueError(f"statuses.{word}: expected one of {', '.join(STATUSES)}")

    @property
    def aliases(self) -> dict[str, str]:
        """The alias table with folded keys."""
        return {word.casefold(): status for word, status in self.statuses.items()}


class AmoCrmNotes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[amocrm.accounts.NAME.notes]: which events of which entities get a note."""

    lead: tuple[AmoCrmLeadAction, ...] = ("add", "update", "status", "responsible")
    contact: tuple[AmoCrmCardAction, ...] = ("add", "update")
    company: tuple[AmoCrmCardAction, ...] = ("add", "update")


class AmoCrmAccount(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[amocrm.accounts.NAME]."""

    account_id: Annotated[int, Meta(gt=0)]
    host: Annotated[
        str,
        Meta(pattern=r"^([a-z0-9][a-z0-9-]{0,62}\.(amocrm\.ru|amocrm\.com|kommo\.com)|127\.0\.0\.1:[0-9]{1,5})\Z"),
    ]
    subdomain: Annotated[str, Meta(pattern=r"^([a-z0-9][a-z0-9-]{0,62})?\Z")] = ""
    """The account's name in its hooks; by default the first part of the host."""
    requests_per_second: Annotated[float, Meta(gt=0, le=50)] = 7.0
    notes_per_request: Annotated[int, Meta(ge=1, le=250)] = 50
    own_user_ids: tuple[int, ...] = ()
    """Users whose changes are our own integration's: their hooks are dropped."""
    stages: tuple[int, ...] = ()
    """Stage ids in which leads get notes; empty means all."""
    notes: AmoCrmNotes = AmoCrmNotes()

    def __post_init__(self) -> None:
        if not self.subdomain:
            msgspec.structs.force_setattr(self, "subdomain", self.host.partition(".")[0])


class AmoCrmTexts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[amocrm.texts]: what notes say.

    In the first six may stand {id}, {name}, {responsible}, {created_at}, {updated_at}; in `changed_field`
    {field}, {before}, {after}.
    """

    lead_added: str = "Создана сделка: {name}. Ответственный: {responsible}. Время добавления: {created_at}"
    lead_changed: str = "Изменена сделка: {name}. Время изменения: {updated_at}"
    contact_added: str = "Создан контакт: {name}. Ответственный: {responsible}. Время добавления: {created_at}"
    contact_changed: str = "Изменён контакт: {name}. Время изменения: {updated_at}"
    company_added: str = "Создана компания: {name}. Ответственный: {responsible}. Время добавления: {created_at}"
    company_changed: str = "Изменена компания: {name}. Время изменения: {updated_at}"
    changed_field: str = "{field}: {before} → {after}"
    name: str = "Название"
    price: str = "Бюджет"
    responsible: str = "Ответственный"
    pipeline: str = "Воронка"
    stage: str = "Этап"
    tags: str = "Теги"
    yes: str = "да"
    no: str = "нет"

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            text: str = getattr(self, name)
            if not text.strip():
                raise ValueError(f"{name}: must not be empty, since amoCRM takes no empty note")
            if name == "changed_field":
                _check_template(name, text, ("field", "before", "after"))
            elif name.endswith(("_added", "_changed")):
                _check_template(name, text, ("id", "name", "responsible", "created_at", "updated_at"))


def _check_template(name: str, text: str, placeholders: tuple[str, ...]) -> None:
    known = ", ".join(f"{{{placeholder}}}" for placeholder in placeholders)
    try:
        parts = list(Formatter().parse(text))
    except ValueError:
        raise ValueError(f"{name}: only these placeholders may be used: {known}; there is a brace alone") from None
    for _, field, form, conversion in parts:
        # Exactly these: "{name.__class__}" would tell the card what we are made of.
        if field is not None and (field not in placeholders or form or conversion):
            wrong = f"{field}{f'!{conversion}' if conversion else ''}{f':{form}' if form else ''}"
            raise ValueError(f"{name}: only these placeholders may be used: {known}; there is {{{wrong}}}")


class AmoCrmSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[amocrm]: the accounts by our name for them, and what notes say."""

    accounts: Mapping[AccountName, AmoCrmAccount] = {}
    texts: AmoCrmTexts = AmoCrmTexts()


class Bitrix24Portal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[bitrix24.portals.NAME]."""

    kind: Literal["source", "hub"]
    member_id: Annotated[str, Meta(pattern=r"^[0-9a-f]{32}\Z")]
    """What does not change when the portal is renamed; every call names it."""
    domain: Annotated[str, Meta(pattern=r"^([a-z0-9][a-z0-9-]{0,62}\.)+[a-z][a-z0-9-]{0,61}[a-z0-9]\Z")]
    """As the portal's calls name it, compared exactly."""
    host: Annotated[
        str, Meta(pattern=r"^(([a-z0-9][a-z0-9-]{0,62}\.)+[a-z][a-z0-9-]{0,61}[a-z0-9]|127\.0\.0\.1:[0-9]{1,5}|)\Z")
    ] = ""
    """Where its REST API is; by default the domain."""
    requests_per_second: Annotated[float, Meta(gt=0, le=5)] = 2.0
    use_token_of_call: bool = False
    """Read with the access token that came with a call, where the portal has neither webhook nor app of ours."""

    def __post_init__(self) -> None:
        if not self.host:
            msgspec.structs.force_setattr(self, "host", self.domain)


class Bitrix24Field(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A field's target where its name alone does not say enough: SOURCE_FIELD = {to = "HUB_FIELD", …}."""

    to: _FieldName
    match: Literal["text", "xml_id"] = "text"
    """How the options of lists find each other."""
    values: Mapping[str, str] = {}
    """Options, stages or dictionary entries by text, beside those of the same text: {"Розница" = "Частные лица"}."""
    default: str = ""
    """What stands where the source has nothing or nothing matches."""


class Bitrix24Products(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[bitrix24.routes.NAME.products]: which product of the hub a product of the source is."""

    table: Mapping[Annotated[str, Meta(pattern=r"^[1-9][0-9]{0,17}\Z")], Annotated[int, Meta(gt=0)]] = {}
    """Ids of products or variations, {"101" = 2001}; what it names is not looked for."""
    match: Literal["none", "xml_id", "name"] = "none"
    source_catalogs: tuple[Annotated[int, Meta(gt=0)], ...] = ()
    """Where to look for the source's XML_IDs and names: ids of catalogs, those of variations too."""
    hub_catalogs: tuple[Annotated[int, Meta(gt=0)], ...] = ()

    def __post_init__(self) -> None:
        if self.match != "none" and not (self.source_catalogs and self.hub_catalogs):
            raise ValueError(f'match = "{self.match}": source_catalogs and hub_catalogs expected')


class Bitrix24Route(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[bitrix24.routes.NAME]: which deals of a source go to a hub, and what becomes of their fields.

    Fields are named as in Bitrix24's forms: TITLE, STAGE_ID, OPPORTUNITY, UF_CRM_1747309879.
    """

    source: str
    hub: str
    stages: Annotated[Mapping[_StageId, _StageId], Meta(min_length=1)]
    """The source's stages whose deals are carried, each with the stage that they get in the hub."""
    fields: Mapping[_FieldName, _FieldName | Bitrix24Field] = {}
    """The source's fields, each with the hub's."""
    constants: Mapping[_FieldName, str | int | float | bool | tuple[str | int | float, ...]] = {}
    """The hub's fields that are the same in every deal."""
    title: str = "{title}"
    """May hold {title}, {id}, {portal} (the source's domain)."""
    responsible: Annotated[str, Meta(pattern=r"^([^@\s]+@[^@\s]+)?\Z")] = ""
    """E-mail of the hub's user who gets what belongs to nobody of the same e-mail; by default whose webhook it is."""
    contacts: Literal["find_or_create", "ids"] = "find_or_create"
    """What becomes of contacts and company; with "ids" only what `fields` makes of CONTACT_ID and COMPANY_ID."""
    products: Bitrix24Products = Bitrix24Products()
    max_file_bytes: Annotated[int, Meta(ge=0, le=100_000_000)] = 30_000_000
    on_repeat: Literal["nothing", "update"] = "nothing"
    """What a later call for a deal does that has been carried."""
    source_portal_field: str = "UF_SOURCE_PORTAL"
    source_deal_field: str = "UF_SOURCE_DEAL_ID"
    transfer_date_field: str = "UF_TRANSFER_DATE"
    """Where the hub's deal says where it is from; "" for nowhere."""

    def __post_init__(self) -> None:
        _check_template("title", self.title, ("title", "id", "portal"))
        written = {f"fields.{name}": target for name, target in self.targets.items()}
        written |= {f"constants.{name}": name for name in self.constants}
        for key, hub_field in written.items():
            if hub_field in _OURS:
                raise ValueError(f"{key}: {hub_field} is not for a map, see {_OURS[hub_field]}")

    @property
    def targets(self) -> dict[str, str]:
        """The hub's field for each of the source's."""
        return {name: rule if isinstance(rule, str) else rule.to for name, rule in self.fields.items()}


_OURS = {
    "STAGE_ID": "stages",
    "CATEGORY_ID": "stages",
    "TITLE": "title",
    "CONTACT_ID": "contacts",
    "CONTACT_IDS": "contacts",
    "COMPANY_ID": "contacts",
    "ORIGINATOR_ID": "source",
    "ORIGIN_ID": "source",
}


class Bitrix24Texts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[bitrix24.texts]: what the source's people read."""

    transferred: str = "✅ Сделка #{id} передана в ЕСБ, №{hub_id}"
    failed: str = "❌ Сделка #{id} не передана в ЕСБ: {reason}"
    incomplete: str = "❌ Сделка #{id} передана в ЕСБ не полностью, №{hub_id}: {reason}"
    not_updated: str = "❌ Сделка #{id} не обновлена в ЕСБ, №{hub_id}: {reason}"
    fields_left: str = "Не перенесены поля: {names}"
    rows_left: str = "Товары без соответствия в каталоге: {names}"
    files_left: str = "Не перенесены файлы: {names}"
    rows_missing: str = "Не перенесены товары"
    wrong_stage: str = "сделка не была на стадии, с которой её передают"
    deal_not_found: str = "сделки нет или к ней нет доступа"
    deal_unreadable: str = "в сделке есть то, чего мы не понимаем"
    came_from_hub: str = "сделка сама пришла из ЕСБ"
    deleted_in_hub: str = "в ЕСБ её удалили"
    body_refused: str = "веб-сервер или защитный экран портала не пропустил данные сделки"
    gave_up: str = "долго не удавалось, больше не пробуем; нужна помощь администратора"

    def __post_init__(self) -> None:
        _check_template("transferred", self.transferred, ("id", "hub_id"))
        _check_template("failed", self.failed, ("id", "reason"))
        for name in ("incomplete", "not_updated"):
            _check_template(name, getattr(self, name), ("id", "hub_id", "reason"))
        for name in ("fields_left", "rows_left", "files_left"):
            _check_template(name, getattr(self, name), ("names",))


class Bitrix24Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[bitrix24]: portals and routes by our names for them, and what is told of transfers."""

    portals: Mapping[str, Bitrix24Portal] = {}
    routes: Mapping[str, Bitrix24Route] = {}
    texts: Bitrix24Texts = Bitrix24Texts()
    oauth_host: Annotated[
        str, Meta(pattern=r"^(oauth\.bitrix\.info|oauth\.bitrix24\.tech|127\.0\.0\.1:[0-9]{1,5})\Z")
    ] = "oauth.bitrix.info"
    """The authorization server; no call may choose it."""

    def __post_init__(self) -> None:
        member_ids = [portal.member_id for portal in self.portals.values()]
        if len(set(member_ids)) < len(member_ids):
            raise ValueError("portals: each has a member_id of its own")
        for name, route in self.routes.items():
            for key, portal in (("source", route.source), ("hub", route.hub)):
                known = [each for each, settings in self.portals.items() if settings.kind == key]
                if portal not in known:
                    raise ValueError(f'routes.{name}.{key}: expected a portal of kind "{key}": {", ".join(known)}')


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """relay.toml."""

    relay: RelaySettings = RelaySettings()
    cartelcrm: CartelCrmSettings = CartelCrmSettings()
    amocrm: AmoCrmSettings = AmoCrmSettings()
    bitrix24: Bitrix24Settings = Bitrix24Settings()


def load_settings(path: Path) -> Settings:
    """Read relay.toml.

    Raises:
        ConfigurationError: it is not there, not TOML, has a key that nobody reads, or a value that cannot be.
    """
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path.name}: {error}") from None
    return _convert(table, Settings, path.name)


class CallbackSecret(msgspec.Struct, frozen=True):
    """One secret that callbacks may be signed with, until `not_after` if there is an end."""

    value: str
    not_after: datetime | None = None

    def __repr__(self) -> str:
        return f"CallbackSecret(not_after={self.not_after})"


class CartelCrmSecrets(msgspec.Struct, frozen=True):
    """What CartelCRM gave us: the API key, the secret that we sign with, the secrets that it signs with."""

    api_key: str = ""
    hmac_secret: str = ""
    callback_secrets: tuple[CallbackSecret, ...] = ()

    def __repr__(self) -> str:
        return "CartelCrmSecrets(…)"

    def callback_secrets_at(self, now: float) -> list[str]:
        """Return the values that are valid at `now` (unix seconds)."""
        moment = datetime.fromtimestamp(now, UTC)
        return [
            secret.value
            for secret in self.callback_secrets
            if secret.not_after is None or moment <= _aware(secret.not_after)
        ]


class AmoCrmSecrets(msgspec.Struct, frozen=True):
    """What belongs to one account of amoCRM: the last part of its hooks' URL, and a token or an OAuth integration."""

    hook_token: str = ""
    long_lived_token: str = ""
    client_id: str = ""
    client_secret: str = ""
    redirect_uri: str = ""

    def __repr__(self) -> str:
        return "AmoCrmSecrets(…)"


class Bitrix24Secrets(msgspec.Struct, frozen=True):
    """What belongs to one portal of Bitrix24.

    `url_key` is the last part of the URL that it calls, `application_token` what its outgoing webhook or app shows in
    its calls; we call it by the incoming webhook's URL or as the app.
    """

    url_key: Annotated[str, Meta(pattern=r"^([A-Za-z0-9_-]{22,100})?\Z")] = ""
    webhook_url: Annotated[str, Meta(pattern=r"^(https?://[^/?#@\s]+/rest/[0-9]{1,18}/[A-Za-z0-9_-]{1,100}/?)?\Z")] = ""
    application_token: str = ""
    client_id: str = ""
    client_secret: str = ""

    def __repr__(self) -> str:
        return "Bitrix24Secrets(…)"


class Secrets(msgspec.Struct, frozen=True):
    """The one secret.

    `lead_api_keys` maps a key's name to the SHA-256 hex of the key, `amocrm` and `bitrix24` the name of an account
    or portal in relay.toml to its secrets.
    """

    cartelcrm: CartelCrmSecrets = CartelCrmSecrets()
    lead_api_keys: Mapping[str, Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]] = {}
    amocrm: Mapping[str, AmoCrmSecrets] = {}
    bitrix24: Mapping[str, Bitrix24Secrets] = {}

    def __repr__(self) -> str:
        return "Secrets(…)"


def read_secrets(text: str) -> Secrets:
    """Read the secret's JSON.

    Raises:
        ConfigurationError: it is no JSON or has the wrong shape; the message never holds a value.
    """
    try:
        raw = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        raise ConfigurationError("secret: JSON expected") from None
    return _convert(raw, Secrets, "secret")


class SecretSource:
    """The secret, read again by age, and the last good one while the store is down."""

    def __init__(
        self,
        fetch: Callable[[], str],
        *,
        clock: Callable[[], float],
        failed: Callable[[Exception], None],
        max_age: float = 300,
        retry_after: float = 30,
    ) -> None:
        """Make a source.

        Args:
            fetch: reads the secret's text from the store.
            clock: unix time in seconds.
            failed: told what `fetch` or `read_secrets` raised, each time.
            max_age: seconds after which the store is asked again.
            retry_after: seconds before a store that failed is asked again, while an older value serves.
        """
        self._fetch = fetch
        self._clock = clock
        self._failed = failed
        self._max_age = max_age
        self._retry_after = retry_after
        self._secrets: Secrets | None = None
        self._read_again_at = 0.0

    def __call__(self) -> Secrets:
        """Return the secrets.

        Raises:
            Exception: whatever `fetch` or `read_secrets` raised, if there is no earlier value to go on with.
        """
        now = self._clock()
        if self._secrets is None or now >= self._read_again_at:
            try:
                self._secrets = read_secrets(self._fetch())
                self._read_again_at = now + self._max_age
            except Exception as error:
                self._failed(error)
                if self._secrets is None:
                    raise
                self._read_again_at = now + self._retry_after
        return self._secrets


def _convert[T](raw: Any, kind: type[T], source: str) -> T:
    try:
        return msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$")
        key = where.strip("`.") or "top level"
        raise ConfigurationError(f"{source}: {key}: {what}") from None


def _aware(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
