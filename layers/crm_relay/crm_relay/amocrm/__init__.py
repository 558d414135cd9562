"""amoCRM and Kommo: hooks that come in, the API that goes out, OAuth, and the whole client for whoever wants that.

A receiver imports `hooks` alone, and functions get by with `client` and `resources`; the whole client brings httpx and
pydantic along. So nothing is imported here before it is asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crm_relay.amocrm.client import Problem as Problem
    from crm_relay.amocrm.client import ValidationFailed as ValidationFailed
    from crm_relay.amocrm.crm import AmoCrm as AmoCrm
    from crm_relay.amocrm.crm import AsyncAmoCrm as AsyncAmoCrm
    from crm_relay.amocrm.crm import AsyncHttpClient as AsyncHttpClient
    from crm_relay.amocrm.oauth import App as App
    from crm_relay.amocrm.oauth import TokenPair as TokenPair
    from crm_relay.amocrm.services import NotAllWritten as NotAllWritten
    from crm_relay.amocrm.services import UnknownField as UnknownField
    from crm_relay.amocrm.session import Limiter as Limiter
    from crm_relay.amocrm.session import LongLivedToken as LongLivedToken
    from crm_relay.amocrm.session import MemoryTokens as MemoryTokens
    from crm_relay.amocrm.session import StoredTokens as StoredTokens
    from crm_relay.amocrm.session import Terms as Terms
    from crm_relay.amocrm.session import TokenStore as TokenStore

_HOMES = {
    "client": ("Problem", "ValidationFailed"),
    "crm": ("AmoCrm", "AsyncAmoCrm", "AsyncHttpClient"),
    "oauth": ("App", "TokenPair"),
    "services": ("NotAllWritten", "UnknownField"),
    "session": ("Limiter", "LongLivedToken", "MemoryTokens", "StoredTokens", "Terms", "TokenStore"),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
