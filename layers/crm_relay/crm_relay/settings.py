"""Configuration: relay.toml (what a deployer edits) and one secret, as typed, frozen, validated data."""

import tomllib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from crm_relay.cartelcrm.statuses import STATUSES

AccountName = Annotated[str, Meta(pattern=r"^[a-z0-9_-]{1,40}\Z")]
"""What we call an account: a part of keys, so without their separator."""
AmoCrmCardAction = Literal["add", "update", "responsible", "restore"]
AmoCrmLeadAction = Literal[AmoCrmCardAction, "status"]


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
    try:
        text.format_map(dict.fromkeys(placeholders, ""))
    except (KeyError, ValueError, IndexError, AttributeError):
        known = ", ".join(f"{{{placeholder}}}" for placeholder in placeholders)
        raise ValueError(f"{name}: only these placeholders may be used: {known}") from None


class AmoCrmSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[amocrm]: the accounts by our name for them, and what notes say."""

    accounts: Mapping[AccountName, AmoCrmAccount] = {}
    texts: AmoCrmTexts = AmoCrmTexts()


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """relay.toml."""

    relay: RelaySettings = RelaySettings()
    cartelcrm: CartelCrmSettings = CartelCrmSettings()
    amocrm: AmoCrmSettings = AmoCrmSettings()


def load_settings(path: Path) -> Settings:
    """Read relay.toml.

    Raises:
        ConfigurationError: it is not there, not TOML, has a key that nobody reads, or a value that cannot be.
    """
    try:
        table = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
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


class Secrets(msgspec.Struct, frozen=True):
    """The one secret.

    `lead_api_keys` maps a key's name to the SHA-256 hex of the key, `amocrm` the name of an account in
    relay.toml to its secrets.
    """

    cartelcrm: CartelCrmSecrets = CartelCrmSecrets()
    lead_api_keys: Mapping[str, Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]] = {}
    amocrm: Mapping[str, AmoCrmSecrets] = {}

    def __repr__(self) -> str:
        return "Secrets(…)"


def read_secrets(text: str) -> Secrets:
    """Read the secret's JSON.

    Raises:
        ConfigurationError: it is no JSON or has the wrong shape; the message never holds a value.
    """
    try:
        raw = msgspec.json.decode(text)
    except msgspec.DecodeError:
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
