"""The CRMs that have a sandbox here: their keys, their part of the configuration, and the table that lists them."""

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from random import Random
from secrets import token_hex, token_urlsafe
from typing import Any, override
from uuid import uuid4

from tomlkit.items import Table

from amo_webhook.subscription import wanted_events
from crm_relay.settings import AmoCrmNotes
from workbench.sandboxes import (
    AmoCrmAccount,
    AmoCrmSandbox,
    CartelCrmAccount,
    CartelCrmSandbox,
    Integration,
    PipelineHook,
    Sandbox,
)
from workbench.sandboxes.cartelcrm import Life

type Json = dict[str, Any]

LOCAL_LIFE: Life = ((1, "new"), (1, "accepted"), (2, "hold"), (2, "approved"), (2, "paid"))
"""What becomes of every lead that the sandbox accepts, within seconds."""

AMOCRM_ACCOUNT = "main"
"""What relay.toml and the secret call amoCRM's account."""
OLD_LEADS = 200
"""Leads that amoCRM has had since before anybody subscribed to hooks."""

_REPEAT_SCALE = 0.1
_HOOK_REPEAT_SCALE = 0.05


class LocalCrm(ABC):
    """A CRM with a sandbox.

    `name` is its table in relay.toml and its part of the secret, `keys` are those that clients may know.
    """

    name: str
    title: str
    sandbox: Sandbox
    keys: Mapping[str, str]

    @property
    @abstractmethod
    def secret(self) -> Json:
        """Its part of the secret."""

    @abstractmethod
    def configure(self, table: Table, url: str) -> None:
        """Point its table of relay.toml to the sandbox at `url`."""

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
        self.sandbox: CartelCrmSandbox = CartelCrmSandbox(account, clock=time.time, random=Random())
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
    def configure(self, table: Table, url: str) -> None:
        table["base_url"] = f"{url}{self.sandbox.account.base_path}"

    @override
    def connect(self, outputs: Mapping[str, str]) -> None:
        self.sandbox.account = replace(self.sandbox.account, callback_url=outputs["CallbackUrl"])


class AmoCrm(LocalCrm):
    """amoCRM, with a private integration that has a long-lived token, and with hooks on what happens to cards."""

    name = "amocrm"
    title = "amoCRM"

    def __init__(self) -> None:
        account = AmoCrmAccount(repeat_scale=_HOOK_REPEAT_SCALE)
        self._integration = Integration(
            client_id=str(uuid4()), client_secret=token_hex(32), redirect_uri="", user_id=account.users[0].id
        )
        account = replace(account, integrations=(self._integration,))
        self.sandbox: AmoCrmSandbox = AmoCrmSandbox(account, clock=time.time, random=Random())
        self.sandbox.add("leads", copies=OLD_LEADS, name="Заявка с сайта", price=30_000)
        self.keys = {
            "hook_token": token_urlsafe(32),
            "long_lived_token": self.sandbox.long_lived_token(self._integration.client_id),
            "client_id": self._integration.client_id,
            "client_secret": self._integration.client_secret,
        }

    @property
    @override
    def secret(self) -> Json:
        return {AMOCRM_ACCOUNT: {**self.keys, "redirect_uri": self._integration.redirect_uri}}

    @override
    def configure(self, table: Table, url: str) -> None:
        account = self.sandbox.account
        host = url.removeprefix("http://")
        table["accounts"] = {AMOCRM_ACCOUNT: {"account_id": account.id, "host": host, "subdomain": account.subdomain}}

    @override
    def connect(self, outputs: Mapping[str, str]) -> None:
        url = outputs["AmoHookUrl"].replace("{hook_token}", self.keys["hook_token"])
        self._integration = replace(self._integration, redirect_uri=outputs["AmoOAuthUrl"])
        account = self.sandbox.account
        # In the second stage of the first pipeline a robot tells of the leads that it is given.
        robot = PipelineHook(url, frozenset({account.pipelines[0].statuses[1].id}))
        self.sandbox.account = replace(account, integrations=(self._integration,), pipeline_hooks=(robot,))
        self.sandbox.subscribe(url, *sorted(wanted_events(AmoCrmNotes())))


SANDBOXES: tuple[type[LocalCrm], ...] = (CartelCrm, AmoCrm)
"""In the order of their ports, which follow that of the API."""
