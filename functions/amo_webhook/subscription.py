"""The account's hooks that lead to us: where to, of what they must tell, and what is wrong with them."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from crm_relay.amocrm.client import Account
from crm_relay.amocrm.resources import subscribe
from crm_relay.http_client import Exchange
from crm_relay.settings import AmoCrmNotes

type Fault = Literal["missing", "switched_off", "lacks_events"]


def hook_url(api_url: str, hook_token: str) -> str:
    """Return the address of an account's hooks. Its last part is a secret."""
    return f"{api_url}/amo/{hook_token}"


def wanted_events(notes: AmoCrmNotes) -> set[str]:
    """Return what a hook must tell, as amoCRM names it, such as "add_lead"."""
    actions = {"lead": notes.lead, "contact": notes.contact, "company": notes.company}
    return {f"{action}_{entity}" for entity, wanted in actions.items() for action in wanted}


def our_hook(hooks: Iterable[Mapping[str, Any]], url: str) -> Mapping[str, Any] | None:
    """Return the hook that leads to `url`, with or without a slash at its end; None if there is none."""
    return next((hook for hook in hooks if str(hook.get("destination")).rstrip("/") == url), None)


def events_of(hook: Mapping[str, Any]) -> set[str]:
    """Return what a hook tells."""
    settings = hook.get("settings")
    return {str(event) for event in settings} if isinstance(settings, list) else set()


def fault_of(hook: Mapping[str, Any] | None, wanted: set[str]) -> Fault | None:
    """Return what is wrong with our hook; an account of which nothing is wanted needs none."""
    if not wanted:
        return None
    if hook is None:
        return "missing"
    if hook.get("disabled"):
        return "switched_off"
    return None if wanted <= events_of(hook) else "lacks_events"


def repair(
    account: Account, hook: Mapping[str, Any] | None, url: str, wanted: set[str], *, now: float
) -> Exchange[dict[str, Any]]:
    """Subscribe `url` to what is wanted, beside what somebody has added by hand; raises what `subscribe` does."""
    address, events = (str(hook["destination"]), wanted | events_of(hook)) if hook else (url, wanted)
    return subscribe(account, address, sorted(events), now=now)
