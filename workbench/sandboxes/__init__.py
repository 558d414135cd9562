"""Small stand-ins for the CRMs: objects without I/O, and transports for them, in memory and over sockets."""

from workbench.sandboxes.amocrm import AmoCrmAccount, AmoCrmSandbox, Integration, PipelineHook
from workbench.sandboxes.bitrix24 import Bitrix24OAuth, Bitrix24Portal, Bitrix24Sandbox
from workbench.sandboxes.cartelcrm import CartelCrmAccount, CartelCrmSandbox
from workbench.sandboxes.memory import MemoryTransport
from workbench.sandboxes.sandbox import Sandbox
from workbench.sandboxes.server import serve

__all__ = [
    "AmoCrmAccount",
    "AmoCrmSandbox",
    "Bitrix24OAuth",
    "Bitrix24Portal",
    "Bitrix24Sandbox",
    "CartelCrmAccount",
    "CartelCrmSandbox",
    "Integration",
    "MemoryTransport",
    "PipelineHook",
    "Sandbox",
    "serve",
]
