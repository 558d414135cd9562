"""Small stand-ins for the CRMs: objects without I/O, and transports for them, in memory and over sockets."""

from workbench.sandboxes.amocrm import AmoCrmAccount, AmoCrmSandbox, Integration, PipelineHook
from workbench.sandboxes.cartelcrm import CartelCrmAccount, CartelCrmSandbox
from workbench.sandboxes.memory import MemoryTransport
from workbench.sandboxes.sandbox import Sandbox
from workbench.sandboxes.server import serve

__all__ = [
    "AmoCrmAccount",
    "AmoCrmSandbox",
    "CartelCrmAccount",
    "CartelCrmSandbox",
    "Integration",
    "MemoryTransport",
    "PipelineHook",
    "Sandbox",
    "serve",
]
