"""The CRMs that have a sandbox here: their keys, their part of the configuration, and the table that lists them."""

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from random import Random
from secrets import randbelow, token_hex, token_urlsafe
from typing import Any, override
from uuid import uuid4

import msgspec
from tomlkit.items import Table

from amo_webhook.subscription import wanted_events
from crm_relay.settings import AmoCrmNotes
from workbench.sandboxes import (
    AmoCrmAccount,
    AmoCrmSandbox,
    Bitrix24OAuth,
    Bitrix24Sandbox,
    CartelCrmAccount,
    CartelCrmSandbox,
    Integration,
    PipelineHook,
    Sandbox,
)
from workbench.sandboxes.bitrix24 import (
    HUB,
    HUB_SCOPES,
    PARTNER,
    READY,
    SOURCE_SCOPES,
    App,
    IncomingWebhook,
    OutgoingWebhook,
    WebhookRobot,
    add_whole_deal,
)
from workbench.sandboxes.callbacks import Callback
from workbench.sandboxes.cartelcrm import Life
from workbench.sandboxes.wire import SandboxRequest
from workbench.transfer_robot import CODE, transfer_robot

type Json = dict[str, Any]

LOCAL_LIFE: Life = ((1, "new"), (1, "accepted"), (2, "hold"), (2, "approved"), (2, "paid"))
"""What becomes of every lead that the sandbox accepts, within seconds."""

AMOCRM_ACCOUNT = "main"
"""What relay.toml and the secret call amoCRM's account."""
_CHOSEN = ("notes", "stages", "own_user_ids", "requests_per_second", "notes_per_request")
OLD_LEADS = 200
"""Leads that amoCRM has had since before anybody subscribed to hooks."""

OLD_DEALS = 100
"""Deals that the hub has had since before anybody carried one there."""

_PORTAL_RATE = 5.0
_PORTAL_BURST = 250
"""Requests a second, and at once, as the largest tariff of Bitrix24 has them."""
_REPEAT_SCALE = 0.1
_HOOK_REPEAT_SCALE = 0.05


class LocalCrm(ABC):
    """A CRM with sandboxes.

    `name` is its table in relay.toml and its part of the secret, `sandboxes` are by name in the order of their ports,
    `keys` are those that clients may know.
    """

    name: str
    title: str
    sandboxes: Mapping[str, Sandbox]
    keys: Mapping[str, str]

    @property
    @abstractmethod
    def secret(self) -> Json:
        """Its part of the secret."""

    @abstractmethod
    def configure(self, table: Table, urls: Mapping[str, str]) -> None:
        """Point its table of relay.toml to the sandboxes, whose addresses are `urls`."""

    @abstractmethod
    def connect(self, outputs: Mapping[str, str]) -> None:
        """Tell the sandbox where to call back; `outputs` are those of the template. It comes before `secret`."""


class CartelCrm(LocalCrm):
    """CartelCRM, with new secrets."""

    name = "cartelcrm"
    title = "CartelCRM"

    def __init__(self) -> None:
        account = CartelCrmAccount(
            api_key=token_hex(16),
            hmac_secret=token_hex(32),
            callback_secret=token_hex(32),
            lives=(LOCAL_LIFE,),
            repeat_scale=_REPEAT_SCALE,
        )
        self.sandbox = CartelCrmSandbox(account, clock=time.time, random=Random())
        self.sandboxes = {self.name: self.sandbox}
        names = ("api_key", "hmac_secret", "callback_secret")
        self.keys = {name: getattr(account, name) for name in names}

    @property
    @override
    def secret(self) -> Json:
        return {
            "api_key": self.keys["api_key"],
            "hmac_secret": self.keys["hmac_secret"],
            "callback_secrets": [{"value": self.keys["callback_secret"]}],
        }

    @override
    def configure(self, table: Table, urls: Mapping[str, str]) -> None:
        table["base_url"] = f"{urls[self.name]}{self.sandbox.account.base_path}"

    @override
    def connect(self, outputs: Mapping[str, str]) -> None:
        self.sandbox.account = replace(self.sandbox.account, callback_url=outputs["CallbackUrl"])


class AmoCrm(LocalCrm):
    """amoCRM, with a private integration that has a long-lived token, and with hooks on what happens to cards.

    `chosen` is what relay.toml says of the account `main` that holds for the sandbox, too.
    """

    name = "amocrm"
    title = "amoCRM"

    def __init__(self) -> None:
        self.chosen: Json = {}
        account = AmoCrmAccount(repeat_scale=_HOOK_REPEAT_SCALE)
        self._integration = Integration(
            client_id=str(uuid4()), client_secret=token_hex(32), redirect_uri="", user_id=account.users[0].id
        )
        account = replace(account, integrations=(self._integration,))
        self.sandbox = AmoCrmSandbox(account, clock=time.time, random=Random())
        self.sandboxes = {self.name: self.sandbox}
        self.sandbox.add("leads", copies=OLD_LEADS, name="Заявка с сайта", price=30_000)
        self.keys = {
            "hook_token": token_urlsafe(32),
            "long_lived_token": self.sandbox.long_lived_token(self._integration.client_id),
            "client_id": self._integration.client_id,
            "client_secret": self._integration.client_secret,
        }

    @property
    def notes_all(self) -> bool:
        """Whether every change of a lead gets a note."""
        return not self.chosen.keys() & {"notes", "stages", "own_user_ids"}

    @property
    @override
    def secret(self) -> Json:
        return {AMOCRM_ACCOUNT: {**self.keys, "redirect_uri": self._integration.redirect_uri}}

    @override
    def configure(self, table: Table, urls: Mapping[str, str]) -> None:
        account = self.sandbox.account
        host = urls[self.name].removeprefix("http://")
        given = table.unwrap().get("accounts", {}).get(AMOCRM_ACCOUNT, {})
        self.chosen = {name: given[name] for name in _CHOSEN if name in given}
        ours = {"account_id": account.id, "host": host, "subdomain": account.subdomain}
        table["accounts"] = {AMOCRM_ACCOUNT: {**ours, **self.chosen}}

    @override
    def connect(self, outputs: Mapping[str, str]) -> None:
        url = outputs["AmoHookUrl"].replace("{hook_token}", self.keys["hook_token"])
        self._integration = replace(self._integration, redirect_uri=outputs["AmoOAuthUrl"])
        account = self.sandbox.account
        # In the second stage of the first pipeline a robot tells of the leads that it is given.
        robot = PipelineHook(url, frozenset({account.pipelines[0].statuses[1].id}))
        self.sandbox.account = replace(account, integrations=(self._integration,), pipeline_hooks=(robot,))
        if wanted := wanted_events(msgspec.convert(self.chosen.get("notes", {}), AmoCrmNotes)):
            self.sandbox.subscribe(url, *sorted(wanted))


class Bitrix24(LocalCrm):
    """Bitrix24: a partner's portal, the hub, and the authorization server that they share.

    Three stages of the partner's are in the route. In one a robot calls the relay, as it does in a stage that is not;
    in another, which is of another pipeline, the app's robot does, once it is there. The outgoing webhook tells of
    whatever is changed.
    """

    name = "bitrix24"
    title = "Bitrix24"

    ROBOT_STAGE = READY
    """In the route, with a robot."""
    WEBHOOK_STAGE = "C3:WON"
    """In the route, without a robot."""
    APP_STAGE = "PREPARATION"
    """In the route, for the app's robot; who comes there from the other pipeline is told of by no webhook."""
    STRAY_STAGE = "C3:LOSE"
    """Not in the route, with a robot."""

    def __init__(self) -> None:
        self._app = App(
            client_id=f"local.{token_hex(7)}.{randbelow(10**8):08}",
            client_secret=token_hex(25),
            application_token=token_hex(16),
            user_id=PARTNER.users[0].id,
            scopes=SOURCE_SCOPES,
        )
        incoming = {
            name: IncomingWebhook(portal.users[0].id, token_hex(8), scopes)
            for name, portal, scopes in (("partner", PARTNER, SOURCE_SCOPES), ("hub", HUB, HUB_SCOPES))
        }
        self.oauth = Bitrix24OAuth(clock=time.time, random=Random())
        self.partner, self.hub = (
            Bitrix24Sandbox(
                replace(portal, incoming=(incoming[name],), requests_per_second=_PORTAL_RATE, burst=_PORTAL_BURST),
                self.oauth,
                clock=time.time,
                random=Random(),
            )
            for name, portal in (("partner", replace(PARTNER, apps=(self._app,))), ("hub", HUB))
        )
        self.sandboxes = {"bitrix24_partner": self.partner, "bitrix24_hub": self.hub, "bitrix24_oauth": self.oauth}
        for _ in range(OLD_DEALS):
            self.hub.add_deal(title="Заявка с сайта")
        self.deal = add_whole_deal(self.partner).id
        self._url = ""
        self._webhooks = {name: f"/rest/{webhook.user_id}/{webhook.secret}/" for name, webhook in incoming.items()}
        self.keys = {
            "url_key": token_urlsafe(32),
            "application_token": self._app.application_token,
            "client_id": self._app.client_id,
            "client_secret": self._app.client_secret,
        }

    @property
    @override
    def secret(self) -> Json:
        hub, partner = ({"webhook_url": self._webhooks[name]} for name in ("hub", "partner"))
        return {"partner": {**self.keys, **partner}, "hub": hub}

    @override
    def configure(self, table: Table, urls: Mapping[str, str]) -> None:
        self._webhooks = {name: urls[f"bitrix24_{name}"] + path for name, path in self._webhooks.items()}
        hosts = {name: url.removeprefix("http://") for name, url in urls.items()}
        table["oauth_host"] = hosts["bitrix24_oauth"]
        table["portals"] = {
            name: {
                "kind": kind,
                "member_id": portal.member_id,
                "domain": portal.domain,
                "host": hosts[f"bitrix24_{name}"],
                "requests_per_second": _PORTAL_RATE,
            }
            for name, kind, portal in (("partner", "source", PARTNER), ("hub", "hub", HUB))
        }
        table["routes"] = {
            "main": {
                "source": "partner",
                "hub": "hub",
                "stages": {self.ROBOT_STAGE: "C5:NEW", self.WEBHOOK_STAGE: "C5:CHECKED", self.APP_STAGE: "C5:NEW"},
                "fields": {
                    "UF_CRM_1747309879": "UF_CRM_CONTRACT",
                    "UF_CRM_OBJECT_AREA": "UF_CRM_AREA",
                    "UF_CRM_BUDGET": "UF_CRM_BUDGET",
                    "UF_CRM_DELIVERY": "UF_CRM_DELIVERY",
                    "UF_CRM_67BC9A01": "UF_CRM_CONTRACT_FILE",
                    "UF_CRM_PHOTOS": "UF_CRM_PHOTOS",
                    "COMMENTS": "COMMENTS",
                },
                "products": {"match": "xml_id", "source_catalogs": [15], "hub_catalogs": [25]},
            }
        }

    @override
    def connect(self, outputs: Mapping[str, str]) -> None:
        url = self._url = outputs["BitrixUrl"].replace("{url_key}", self.keys["url_key"])
        robots = tuple(
            WebhookRobot(stage=stage, url=f"{url}?route=main") for stage in (self.ROBOT_STAGE, self.STRAY_STAGE)
        )
        webhook = OutgoingWebhook(id=1, url=url, application_token=self.keys["application_token"])
        self.partner.portal = replace(self.partner.portal, webhook_robots=robots, outgoing=(webhook,))

    def install_app(self) -> Callback:
        """An administrator installs the relay's app in the partner's portal, which tells the relay."""
        return self.partner.install(self._app.client_id, self._url)

    def place_robot(self) -> None:
        """The app registers its robot, and an administrator puts it on a stage."""
        register = transfer_robot(self._url, ["main"], user_id=self._app.user_id)
        token = self.partner.grant(self._app.client_id).access_token
        body = json.dumps({**register.params, "auth": token}).encode()
        headers = {"Content-Type": "application/json"}
        self.partner.handle(SandboxRequest.of("POST", f"/rest/{register.method}", headers, body))
        self.partner.place_robot(self.APP_STAGE, CODE, route="main")


SANDBOXES: tuple[type[LocalCrm], ...] = (CartelCrm, AmoCrm, Bitrix24)
"""In the order of their ports, which follow that of the API."""
