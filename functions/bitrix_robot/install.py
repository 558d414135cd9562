"""An app was installed in a portal: proven by the authorization server, its tokens and its proof are kept."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from bitrix_robot.keys import app_key, portal_key
from bitrix_robot.portal import app_of, http_client
from crm_relay.bitrix24 import oauth
from crm_relay.bitrix24.calls import Call
from crm_relay.bitrix24.oauth import TokenPair
from crm_relay.delivery.account import pause_key
from crm_relay.delivery.ports import StorageError, update
from crm_relay.delivery.runtime import Runtime
from crm_relay.delivery.tokens import SharedToken
from crm_relay.http_api import Forbidden, Unavailable
from crm_relay.observability import log_failure, logger
from crm_relay.outcomes import Outcome, Unauthorized

_WITHIN = 20.0
_PAUSE_FORGOTTEN = 600


def install(relay: Runtime, portal: str, call: Call, *, application_token: str) -> None:
    """Keep what an installation brings, if the authorization server knows it as our app's in this very portal.

    Raises:
        NotConfigured: the portal has no app in the secret.
        Forbidden: it brings no refresh token, or one that is not our app's; what was kept before stays.
        Unavailable: the server or the table cannot be reached; the app is to be installed again.
    """
    if call.tokens is None or not call.tokens.refresh_token or not application_token:
        raise Forbidden("installation_not_proven")
    now = relay.ports.clock.time()
    member_id = relay.settings.bitrix24.portals[portal].member_id
    told = TokenPair(member_id, call.tokens.access_token, call.tokens.refresh_token, int(now))
    try:
        pair = http_client().run(oauth.refresh(app_of(relay, portal), told, now=now), within=_WITHIN)
        token = {"application_token": application_token}
        update(relay.ports.store, app_key(portal), lambda _: token)
        SharedToken(relay.ports, portal_key(portal)).write(asdict(pair))
        update(relay.ports.store, pause_key(portal_key(portal)), _ended, expires_at=int(now) + _PAUSE_FORGOTTEN)
    except Unauthorized as refusal:
        logger.warning("installation not proven", portal=portal, reason=str(refusal))
        raise Forbidden("installation_not_proven") from None
    except Outcome as outcome:
        logger.warning("installation not checked", portal=portal, reason=str(outcome))
        raise Unavailable("authorization_server_unavailable") from None
    except StorageError as error:
        log_failure("installation not kept", error, portal=portal)
        raise Unavailable("nothing_durable") from None
    logger.info("app installed", portal=portal)


def _ended(pause: Mapping[str, Any]) -> Mapping[str, Any]:
    return {**pause, "until": 0} if pause else pause
