"""Every hour: tokens are refreshed before they die of idleness, and hooks that amoCRM switched off are switched on."""

import os
from typing import Literal

from amo_webhook.account import ENDS_SOON, AmoAccount, amo_account, amo_key, http_client
from amo_webhook.subscription import fault_of, hook_url, our_hook, repair, wanted_events
from crm_relay.amocrm.client import DEADLINE
from crm_relay.amocrm.oauth import LONGEST_REFRESH, expires_at
from crm_relay.amocrm.resources import WEBHOOKS
from crm_relay.delivery.ports import Conflict, StorageError
from crm_relay.delivery.runtime import prepare, runtime
from crm_relay.delivery.worker import LambdaContext
from crm_relay.http_api import Event
from crm_relay.observability import log_failure, log_fault, logger, needs_attention, observed
from crm_relay.outcomes import NotConfigured, Outcome, Rejected
from crm_relay.settings import read_environment

_NEEDS_SECONDS = LONGEST_REFRESH + 2 * DEADLINE
_RENEW_BEFORE = 2 * 3600
"""Seconds before its end at which an access token is refreshed. It lives for a day, so that is done daily."""
_DAY = 86_400

type Result = Literal["in_order", "repaired", "failed"]


@observed(refuse=None)
def handler(_event: Event, context: LambdaContext) -> dict[str, Result]:
    """Look after every account of relay.toml; return what came of it by name."""
    api_url = read_environment(os.environ).API_URL
    results: dict[str, Result] = {}
    for name in runtime().settings.amocrm.accounts:
        if context.get_remaining_time_in_millis() < _NEEDS_SECONDS * 1000:
            needs_attention("no time to look after all accounts", done=len(results))
            break
        results[name] = _looked_after(name, api_url)
    return results


def _looked_after(name: str, api_url: str) -> Result:
    try:
        account = amo_account(runtime(), name)
        _tell_of_end(account)
        _keep_token(account)
        return _keep_hook(account, api_url)
    except NotConfigured:
        needs_attention("account not configured", account=name)
    except Outcome as outcome:  # where somebody has to do something about it, the account's door has said so
        logger.warning("account not looked after", account=name, reason=str(outcome))
    except StorageError as error:
        log_failure("account not looked after", error, account=name)
    except Exception as error:  # noqa: BLE001 (one account must not cost the others)
        log_fault(error, account=name)
    return "failed"


def _tell_of_end(account: AmoAccount) -> None:
    ends = expires_at(account.secrets.long_lived_token)
    if ends is None:
        return
    left = ends - account.now()
    if left < ENDS_SOON and _first_today(account, "token_ends"):
        needs_attention("long-lived token ends soon", account=account.name, days_left=max(0, int(left // _DAY)))


def _keep_token(account: AmoAccount) -> None:
    host = account.renew(before=_RENEW_BEFORE)
    if host != account.settings.host and _first_today(account, "moved"):
        needs_attention("account moved, relay.toml has its old host", account=account.name, host=host)


def _keep_hook(account: AmoAccount, api_url: str) -> Result:
    url, wanted = hook_url(api_url, _hook_token(account)), wanted_events(account.settings.notes)
    try:
        hook = our_hook(account.each(WEBHOOKS), url)
        fault = fault_of(hook, wanted)
        if fault is None:
            return "in_order"
        account.run(lambda access: repair(access, hook, url, wanted, now=account.now()))
    except Rejected as refusal:  # hooks are for administrators, and not in every tariff
        if _first_today(account, "hooks"):
            needs_attention("hooks cannot be looked after", account=account.name, reason=refusal.reason)
        return "failed"
    needs_attention("hook repaired", account=account.name, fault=fault)
    return "repaired"


def _hook_token(account: AmoAccount) -> str:
    token = account.secrets.hook_token
    if not token:
        raise NotConfigured
    return token


def _first_today(account: AmoAccount, what: str) -> bool:
    """Tell whether this is the first time within a day: nobody reads what is said every hour."""
    try:
        key = f"told#{amo_key(account.name)}#{what}"
        runtime().ports.store.put(key, {}, replaces=None, expires_at=int(account.now()) + _DAY)
    except Conflict:
        return False
    return True


prepare(http_client)
