"""A stand-in for Bitrix24: portals, and the authorization server that they share."""

from workbench.sandboxes.bitrix24.furnishings import HUB, HUB_SCOPES, PARTNER, READY, SOURCE_SCOPES, add_whole_deal
from workbench.sandboxes.bitrix24.oauth import Bitrix24OAuth
from workbench.sandboxes.bitrix24.portal import App, Bitrix24Portal, IncomingWebhook, OutgoingWebhook, WebhookRobot
from workbench.sandboxes.bitrix24.sandbox import Bitrix24Sandbox
from workbench.sandboxes.bitrix24.switches import Bitrix24Switches

__all__ = [
    "HUB",
    "HUB_SCOPES",
    "PARTNER",
    "READY",
    "SOURCE_SCOPES",
    "App",
    "Bitrix24OAuth",
    "Bitrix24Portal",
    "Bitrix24Sandbox",
    "Bitrix24Switches",
    "IncomingWebhook",
    "OutgoingWebhook",
    "WebhookRobot",
    "add_whole_deal",
]
