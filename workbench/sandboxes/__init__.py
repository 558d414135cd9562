"""Small stand-ins for the CRMs: objects without I/O, and transports for them, in memory and over sockets."""

from workbench.sandboxes.cartelcrm import CartelCrmAccount, CartelCrmSandbox
from workbench.sandboxes.memory import MemoryTransport
from workbench.sandboxes.sandbox import Sandbox
from workbench.sandboxes.server import serve

__all__ = ["CartelCrmAccount", "CartelCrmSandbox", "MemoryTransport", "Sandbox", "serve"]
