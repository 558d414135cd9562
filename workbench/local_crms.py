"""The CRMs that have a sandbox here: their keys, their part of the configuration, and the table that lists them."""

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from random import Random
from secrets import token_hex
from typing import Any, override

from tomlkit.items import Table

from workbench.sandboxes import CartelCrmAccount, CartelCrmSandbox, Sandbox
from workbench.sandboxes.cartelcrm import Life

type Json = dict[str, Any]

LOCAL_LIFE: Life = ((1, "new"), (1, "accepted"), (2, "hold"), (2, "approved"), (2, "paid"))
"""What becomes of every lead that the sandbox accepts, within seconds."""

_REPEAT_SCALE = 0.1


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
        """Tell the sandbox where to call back; `outputs` are those of the template."""


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


SANDBOXES: tuple[type[LocalCrm], ...] = (CartelCrm,)
"""In the order of their ports, which follow that of the API."""
