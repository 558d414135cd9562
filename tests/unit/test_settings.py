"""Configuration: a mistake is named so that it can be mended, and a secret shows up nowhere."""

import json
import re
import traceback
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crm_relay.cartelcrm.statuses import STATUSES
from crm_relay.settings import (
    AmoCrmAccount,
    AmoCrmSettings,
    ConfigurationError,
    Secrets,
    SecretSource,
    Settings,
    load_settings,
    read_environment,
    read_secrets,
)
from tests.relay import RELAY_TOML

CANARY = "canary-7f3a"
GOOD = {
    "cartelcrm": {
        "api_key": CANARY,
        "hmac_secret": CANARY,
        "callback_secrets": [{"value": CANARY}, {"value": "old", "not_after": "2025-10-09T08:53:20Z"}],
    },
    "lead_api_keys": {"website": "0" * 64},
}


@pytest.fixture
def load(tmp_path: Path) -> Callable[[str], Settings]:
    def load_text(text: str) -> Settings:
        path = tmp_path / "relay.toml"
        path.write_text(text, "utf-8")
        return load_settings(path)

    return load_text


# relay.toml


def test_the_file_that_ships_shows_the_defaults() -> None:
    """A deployer who deletes a line changes nothing, the words for statuses aside."""
    shipped = load_settings(RELAY_TOML)
    assert shipped.relay == Settings().relay
    assert {**vars_of(shipped), "statuses": {}} == vars_of(Settings())
    assert set(shipped.cartelcrm.statuses.values()) <= set(STATUSES)


def vars_of(value: Settings) -> dict[str, object]:
    return {name: getattr(value.cartelcrm, name) for name in value.cartelcrm.__struct_fields__}


def test_the_example_of_an_amocrm_account_shows_the_defaults(tmp_path: Path) -> None:
    """It is a comment, so that nobody needs amoCRM; uncommented it works, and changes nothing but what it must say."""
    text = RELAY_TOML.read_text("utf-8")
    path = tmp_path / "relay.toml"
    path.write_text(re.sub(r"^# (?=\[|\w+ = )", "", text[text.index("# amoCRM") :], flags=re.MULTILINE), "utf-8")
    account = AmoCrmAccount(account_id=32427762, host="example.amocrm.ru")
    assert load_settings(path).amocrm == AmoCrmSettings(accounts={"main": account})
    assert load_settings(RELAY_TOML).amocrm == AmoCrmSettings()


def test_an_empty_file_is_the_defaults(load: Callable[[str], Settings]) -> None:
    """Nothing has to be set."""
    assert load("") == Settings()
    assert load("").relay.replay_window == 30 * 86_400


def test_aliases_have_no_case(load: Callable[[str], Settings]) -> None:
    """CartelCRM's words are found however they are written in the file."""
    assert load('[cartelcrm.statuses]\n"Отказ" = "rejected"\n').cartelcrm.aliases == {"отказ": "rejected"}


@pytest.mark.parametrize(
    ("text", "key", "expected"),
    [
        ("[relay]\ngive_up_after_seconds = 59", "relay.give_up_after_seconds", "`int` >= 60"),
        ("[relay]\ngive_up_after_seconds = 259_201", "relay.give_up_after_seconds", "`int` <= 259200"),
        ('[relay]\ngive_up_after_seconds = "1 d"', "relay.give_up_after_seconds", "`int`, got `str`"),
        ("[relay]\nreplay_window_days = 29", "relay.replay_window_days", "`int` >= 30"),
        ("[relay]\nreplay_window_days = 91", "relay.replay_window_days", "`int` <= 90"),
        ("[relay]\ncallback_body_limit_bytes = 262145", "relay.callback_body_limit_bytes", "`int` <= 262144"),
        ("[relay]\nlead_body_limit_bytes = 1", "relay.lead_body_limit_bytes", "`int` >= 1024"),
        ("[relay]\nreplay_windows = 30", "relay", "unknown field `replay_windows`"),
        ("[relais]", "top level", "unknown field `relais`"),
        ("relay = 1", "relay", "`object`, got `int`"),
        ("[cartelcrm]\nrequests_per_second = 0", "cartelcrm.requests_per_second", "`float` > 0"),
        ("[cartelcrm]\nrequests_per_second = nan", "cartelcrm.requests_per_second", "`float` > 0"),
        ("[cartelcrm]\nrequests_per_second = inf", "cartelcrm.requests_per_second", "`float` <= 1000"),
        ("[cartelcrm]\nrequire_signature_prefix = 1", "cartelcrm.require_signature_prefix", "`bool`, got `int`"),
        ('[cartelcrm.statuses]\nsale = "aproved"', "statuses.sale", "expected one of new, accepted, hold, approved"),
        ("[relay", "relay.toml", "']'"),
        ("[relay]\n[relay]", "relay.toml", "twice"),
    ],
)
def test_a_mistake_is_named(load: Callable[[str], Settings], text: str, key: str, expected: str) -> None:
    """The message says which file, which key, and what belongs there."""
    with pytest.raises(ConfigurationError) as mistake:
        load(text)
    for part in ("relay.toml: ", key, expected):
        assert part in str(mistake.value)


@pytest.mark.parametrize(
    "url",
    ["https://cartelcrm.com/api", "https://crm.example", "https://crm.example:8443/a/b", "http://127.0.0.1:3001/api"],
)
def test_base_urls_that_are_taken(load: Callable[[str], Settings], url: str) -> None:
    """CartelCRM over TLS, or the sandbox on this machine."""
    assert load(f'[cartelcrm]\nbase_url = "{url}"').cartelcrm.base_url == url


@pytest.mark.parametrize(
    "url",
    [
        *("", "crm.example", "http://crm.example", "ftp://crm.example", "https://", "https:///api"),
        *("https://crm.example/", "https://crm.example/api/", "https://crm.example/api?x=1", "https://crm.example#x"),
        *("https://user:pass@crm.example", "https://crm.example/a b", "https://crm.example\\n", "https://a\\nb"),
        *(
            "http://127.0.0.1:1@evil.example/",
            "http://127.0.0.1.evil.example",
            "http://127.0.0.1:x",
            "http://127.0.0.1",
        ),
    ],
)
def test_base_urls_that_are_refused(load: Callable[[str], Settings], url: str) -> None:
    """Nothing that is unencrypted, ambiguous, or would put a path together wrongly."""
    with pytest.raises(ConfigurationError, match=r"relay\.toml: cartelcrm\.base_url: Expected"):
        load(f'[cartelcrm]\nbase_url = "{url}"')


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """Its name is in the message."""
    with pytest.raises(ConfigurationError, match=r"relay\.toml: .*No such file"):
        load_settings(tmp_path / "relay.toml")


def test_the_environment_is_typed() -> None:
    """What template.yaml gives a function is read as a whole; what every function needs is asked for by name."""
    environment = read_environment({"TABLE_NAME": "relay", "RELAY_CONFIG": "/opt/relay.toml", "PATH": "/bin"})
    assert (environment.TABLE_NAME, environment.SECRET_ID) == ("relay", "")
    with pytest.raises(ConfigurationError, match=r"environment: .*TABLE_NAME"):
        read_environment({"RELAY_CONFIG": "/opt/relay.toml"})
    with pytest.raises(ConfigurationError, match="environment: TABLE_NAME: Expected"):
        read_environment({"RELAY_CONFIG": "/opt/relay.toml", "TABLE_NAME": ""})


# Bitrix24

PORTALS = f"""
[bitrix24.portals.partner]
kind = "source"
member_id = "{"0a" * 16}"
domain = "partner.bitrix24.ru"

[bitrix24.portals.esb]
kind = "hub"
member_id = "{"0b" * 16}"
domain = "esb.bitrix24.ru"
host = "127.0.0.1:8006"
"""
ROUTE = """
[bitrix24.routes.main]
source = "partner"
hub = "esb"
stages = {"C3:READY" = "C5:NEW"}
"""
MAP = """
title = "{title} ({portal} №{id})"
responsible = "gleb@example.com"
contacts = "ids"
on_repeat = "update"
max_file_bytes = 10_000_000
source_portal_field = ""

[bitrix24.routes.main.fields]
OPPORTUNITY = "OPPORTUNITY"
COMPANY_ID = "UF_PARTNER_COMPANY_ID"
UF_CRM_DELIVERY = {to = "UF_CRM_DELIVERY", match = "xml_id", values = {"Почта" = "Курьер"}, default = "Самовывоз"}

[bitrix24.routes.main.constants]
SOURCE_ID = "PARTNER"
UF_CRM_TAGS = ["a", "b"]

[bitrix24.routes.main.products]
table = {"101" = 2001}
match = "xml_id"
source_catalogs = [15, 16]
hub_catalogs = [25]
"""


def test_portals_and_routes_are_read(load: Callable[[str], Settings]) -> None:
    """As an administrator of Bitrix24 names things; a portal's API is at its domain unless told otherwise."""
    bitrix24 = load(PORTALS + ROUTE + MAP).bitrix24
    partner, esb = bitrix24.portals["partner"], bitrix24.portals["esb"]
    assert (partner.host, esb.host, partner.requests_per_second) == ("partner.bitrix24.ru", "127.0.0.1:8006", 2.0)
    route = bitrix24.routes["main"]
    assert route.stages == {"C3:READY": "C5:NEW"}
    assert route.targets == {
        "OPPORTUNITY": "OPPORTUNITY",
        "COMPANY_ID": "UF_PARTNER_COMPANY_ID",
        "UF_CRM_DELIVERY": "UF_CRM_DELIVERY",
    }
    assert route.constants == {"SOURCE_ID": "PARTNER", "UF_CRM_TAGS": ("a", "b")}
    assert route.products.table == {"101": 2001}
    assert (route.source_portal_field, route.source_deal_field) == ("", "UF_SOURCE_DEAL_ID")


def test_a_route_needs_only_its_ends_and_stages(load: Callable[[str], Settings]) -> None:
    """Everything else is the seed's way."""
    route = load(PORTALS + ROUTE).bitrix24.routes["main"]
    assert (route.contacts, route.on_repeat, route.max_file_bytes) == ("find_or_create", "nothing", 30_000_000)
    assert (route.source_portal_field, route.transfer_date_field) == ("UF_SOURCE_PORTAL", "UF_TRANSFER_DATE")
    assert load("").bitrix24.texts.transferred.format(id=1, hub_id=2) == "✅ Сделка #1 передана в ЕСБ, №2"


@pytest.mark.parametrize(
    ("text", "key", "expected"),
    [
        (PORTALS.replace("0a" * 16, "0A" * 16), "bitrix24.portals", "regex"),
        (PORTALS.replace("0a" * 16, "0b" * 16), "bitrix24", "portals: each has a member_id of its own"),
        (PORTALS.replace('"hub"', '"target"'), "bitrix24.portals", "Invalid enum value 'target'"),
        (PORTALS.replace("partner.bitrix24.ru", "https://partner.bitrix24.ru"), "bitrix24.portals", "regex"),
        (PORTALS.replace("partner.bitrix24.ru", "partner.bitrix24.ru."), "bitrix24.portals", "regex"),
        (PORTALS.replace("partner.bitrix24.ru", "PARTNER.bitrix24.ru"), "bitrix24.portals", "regex"),
        (PORTALS.replace("partner.bitrix24.ru", "169.254.169.254"), "bitrix24.portals", "regex"),
        (PORTALS.replace("127.0.0.1:8006", "10.0.0.1:80"), "bitrix24.portals", "regex"),
        (PORTALS + "requests_per_second = 6", "requests_per_second", "<= 5"),
        (PORTALS + ROUTE.replace('"partner"', '"esb"'), "routes.main.source", 'a portal of kind "source": partner'),
        (PORTALS + ROUTE.replace('"esb"', '"partner"'), "routes.main.hub", 'a portal of kind "hub": esb'),
        (PORTALS + ROUTE.replace('"partner"', '"partners"'), "routes.main.source", "expected a portal of kind"),
        (PORTALS + ROUTE.replace('{"C3:READY" = "C5:NEW"}', "{}"), "bitrix24.routes", "length >= 1"),
        (PORTALS + ROUTE.replace("C3:READY", "C0:READY"), "bitrix24.routes", "regex"),
        (
            PORTALS + ROUTE + 'title = "{name}"',
            "bitrix24.routes",
            "title: only these placeholders may be used",
        ),
        (PORTALS + ROUTE + 'contacts = "create"', "bitrix24.routes", "Invalid enum value 'create'"),
        (PORTALS + ROUTE + 'responsible = "gleb"', "bitrix24.routes", "regex"),
        (PORTALS + ROUTE + "max_file_bytes = -1", "bitrix24.routes", ">= 0"),
        (PORTALS + ROUTE + 'fields = {ufCrm = "UF_CRM_1"}', "bitrix24.routes", "regex"),
        (PORTALS + ROUTE + 'fields = {UF_A = {too = "UF_B"}}', "bitrix24.routes", "unknown field `too`"),
        (
            PORTALS + ROUTE + 'fields = {STAGE_ID = "STAGE_ID"}',
            "bitrix24.routes",
            "is not for a map, see stages",
        ),
        (PORTALS + ROUTE + 'fields = {UF_A = {to = "CONTACT_ID"}}', "bitrix24.routes", "CONTACT_ID is not for a map"),
        (PORTALS + ROUTE + 'constants = {TITLE = "x"}', "bitrix24.routes", "TITLE: TITLE is not for a map, see title"),
        (
            PORTALS + ROUTE + 'products = {match = "name"}',
            "bitrix24.routes",
            "source_catalogs and hub_catalogs expected",
        ),
        (PORTALS + ROUTE + 'products = {table = {"x" = 1}}', "bitrix24.routes", "regex"),
        ('[bitrix24.texts]\nfailed = "{text}"', "bitrix24.texts", "failed: only these placeholders may be used: {id}"),
        ('[bitrix24]\noauth_host = "evil.com"', "bitrix24.oauth_host", "regex"),
        ('[bitrix24]\noauth_host = "oauth.bitrix.info.evil.com"', "bitrix24.oauth_host", "regex"),
    ],
)
def test_a_mistake_in_bitrix24_is_named(load: Callable[[str], Settings], text: str, key: str, expected: str) -> None:
    """Which key, and what belongs there."""
    with pytest.raises(ConfigurationError) as mistake:
        load(text)
    for part in ("relay.toml: ", key, expected):
        assert part in str(mistake.value)


@pytest.mark.parametrize("text", ["{name.__class__}", "{name[0]}", "{name!r}", "{id:9}", "{}", "{0}", "{client}"])
def test_a_placeholder_is_one_of_the_known_and_nothing_more(load: Callable[[str], Settings], text: str) -> None:
    """Whoever edits texts learns which one is wrong."""
    with pytest.raises(ConfigurationError) as mistake:
        load(f'[amocrm.texts]\nlead_added = "Сделка {text}"')
    assert "lead_added: only these placeholders may be used: {id}, {name}" in str(mistake.value)
    assert str(mistake.value).endswith(f"there is {text}")
    assert load('[amocrm.texts]\nlead_added = "{{}} {name}"').amocrm.texts.lead_added == "{{}} {name}"


@pytest.mark.parametrize("text", ["{", "}", "{name", "name}"])
def test_a_brace_alone_is_a_mistake(load: Callable[[str], Settings], text: str) -> None:
    with pytest.raises(ConfigurationError, match="there is a brace alone"):
        load(f'[amocrm.texts]\nlead_added = "{text}"')


BITRIX24_SECRETS = {
    "url_key": f"{CANARY}-0123456789abcdef",
    "webhook_url": f"https://esb.bitrix24.ru/rest/1/{CANARY}/",
    "application_token": CANARY,
    "client_id": "local.5c8bb1b0891cf2.87252039",
    "client_secret": CANARY,
}


def test_a_portals_secrets_are_read_and_do_not_show() -> None:
    """Beside those of the other CRMs."""
    secrets = read_secrets(json.dumps({"bitrix24": {"esb": BITRIX24_SECRETS}}))
    assert secrets.bitrix24["esb"].webhook_url == BITRIX24_SECRETS["webhook_url"]
    assert CANARY not in f"{secrets} {secrets.bitrix24}"


@pytest.mark.parametrize(
    "secrets",
    [
        {"webhook_url": f"https://esb.bitrix24.ru/rest/{CANARY}/"},
        {"webhook_url": f"https://esb.bitrix24.ru/rest/1/{CANARY}/crm.deal.add.json"},
        {"webhook_url": f"https://esb.bitrix24.ru@evil.com/rest/1/{CANARY}/"},
        {"url_key": CANARY},
        {"url_key": f"{CANARY}/0123456789abcdef"},
    ],
    ids=repr,
)
def test_a_mistake_in_a_portals_secrets_is_named_without_a_value(secrets: dict[str, str]) -> None:
    """A webhook's URL without its user, a URL key that can be guessed."""
    with pytest.raises(ConfigurationError, match=r"secret: bitrix24") as mistake:
        read_secrets(json.dumps({"bitrix24": {"esb": secrets}}))
    assert CANARY not in str(mistake.value)


# The secret


def test_the_secret_is_read() -> None:
    """Everything is there, and nothing has to be."""
    secrets = read_secrets(json.dumps(GOOD))
    assert (secrets.cartelcrm.api_key, secrets.cartelcrm.hmac_secret) == (CANARY, CANARY)
    assert secrets.lead_api_keys == {"website": "0" * 64}
    assert read_secrets("{}") == Secrets()


@pytest.mark.parametrize(
    ("now", "valid"),
    [
        (1_760_000_000 - 1, ["canary-7f3a", "old"]),
        (1_760_000_000, ["canary-7f3a", "old"]),
        (1_760_000_000.5, ["canary-7f3a"]),
    ],
)
def test_a_callback_secret_is_valid_until_its_end(now: float, valid: list[str]) -> None:
    """The end itself is inside; a secret without an end stays."""
    assert read_secrets(json.dumps(GOOD)).cartelcrm.callback_secrets_at(now) == valid


def test_an_end_without_a_zone_is_utc() -> None:
    """The clock of the machine that reads it does not matter."""
    secret = {"cartelcrm": {"callback_secrets": [{"value": "x", "not_after": "2025-10-09T08:53:20"}]}}
    cartelcrm = read_secrets(json.dumps(secret)).cartelcrm
    moment = datetime(2025, 10, 9, 8, 53, 20, tzinfo=UTC).timestamp()
    assert (cartelcrm.callback_secrets_at(moment), cartelcrm.callback_secrets_at(moment + 1)) == (["x"], [])


@pytest.mark.parametrize(
    ("text", "key", "expected"),
    [
        (CANARY, "secret", "JSON expected"),
        (f'{{"api_key": "{CANARY}', "secret", "JSON expected"),
        (f'"{CANARY}"', "top level", "`object`, got `str`"),
        (f'{{"cartelcrm": "{CANARY}"}}', "cartelcrm", "`object`, got `str`"),
        (f'{{"cartelcrm": {{"api_key": ["{CANARY}"]}}}}', "cartelcrm.api_key", "`str`, got `array`"),
        (
            f'{{"cartelcrm": {{"callback_secrets": ["{CANARY}"]}}}}',
            "cartelcrm.callback_secrets[0]",
            "`object`, got `str`",
        ),
        (
            '{"cartelcrm": {"callback_secrets": [{}]}}',
            "cartelcrm.callback_secrets[0]",
            "missing required field `value`",
        ),
        (
            f'{{"cartelcrm": {{"callback_secrets": [{{"value": "{CANARY}", "not_after": "{CANARY}"}}]}}}}',
            "cartelcrm.callback_secrets[0].not_after",
            "RFC3339",
        ),
        (f'{{"lead_api_keys": {{"website": "{CANARY}"}}}}', "lead_api_keys", "`str` matching regex '^[0-9a-f]{64}$'"),
    ],
)
def test_a_mistake_in_the_secret_is_named_without_a_value(text: str, key: str, expected: str) -> None:
    """The message says where and what belongs there; the value is in neither the message nor the traceback."""
    with pytest.raises(ConfigurationError) as mistake:
        read_secrets(text)
    for part in ("secret: ", key, expected):
        assert part in str(mistake.value)
    assert CANARY not in "".join(traceback.format_exception(mistake.value, limit=0))


@given(st.text() | st.recursive(st.none() | st.text(), lambda inner: st.dictionaries(st.text(), inner)).map(json.dumps))
def test_any_text_is_a_secret_or_a_mistake(text: str) -> None:
    """Whatever stands in the store, nothing but ConfigurationError comes out."""
    with suppress(ConfigurationError):
        assert isinstance(read_secrets(text), Secrets)


def test_secrets_do_not_show() -> None:
    """Nobody prints or logs a secret by printing or logging what holds it."""
    secrets = read_secrets(json.dumps(GOOD))
    for value in (secrets, secrets.cartelcrm, *secrets.cartelcrm.callback_secrets):
        for shown in (repr(value), str(value), f"{value}", f"{[value]}"):
            assert CANARY not in shown
            assert "old" not in shown
            assert "0" * 64 not in shown


# Reading it again


class Store:
    """A secret store that counts and can be down."""

    def __init__(self) -> None:
        self.now = 0.0
        self.asked = 0
        self.text: str | None = "{}"
        self.failures: list[Exception] = []
        self.source = SecretSource(
            self.fetch, clock=lambda: self.now, failed=self.failures.append, max_age=300, retry_after=30
        )

    def fetch(self) -> str:
        self.asked += 1
        if self.text is None:
            raise OSError("down")
        return self.text


def test_the_store_is_asked_again_by_age() -> None:
    """A rotated secret is known five minutes later, and until then the store is left in peace."""
    store = Store()
    first = store.source()
    store.text, store.now = json.dumps(GOOD), 299.9
    assert store.source() is first
    store.now = 300
    assert store.source().cartelcrm.api_key == CANARY
    assert store.asked == 2


@pytest.mark.parametrize("bad", [None, "", "{", '{"cartelcrm": 1}'])
def test_a60_while_the_store_is_down_the_last_good_secret_serves(bad: str | None) -> None:
    """A60: a store that fails or holds nonsense is asked every 30 seconds, and what was known stays good."""
    store = Store()
    first = store.source()
    store.text, store.now = bad, 300
    assert store.source() is first
    store.now = 329
    assert store.source() is first
    assert store.asked == 2
    store.text, store.now = json.dumps(GOOD), 330
    assert store.source().cartelcrm.api_key == CANARY
    assert store.asked == 3


def test_a60_a_cold_start_without_the_store_fails() -> None:
    """A60: with nothing known there is nothing to go on with, and each call asks again."""
    store = Store()
    store.text = None
    for _ in range(2):
        with pytest.raises(OSError, match="down"):
            store.source()
    store.text = "{}"
    assert store.source() == Secrets()
