"""The local stack: everything that a SAM template deploys, on this machine."""

from workbench.stack.blueprint import UnsupportedTemplate
from workbench.stack.buses import Published
from workbench.stack.cloud import CloudError
from workbench.stack.environments import FunctionError
from workbench.stack.gateway import PortInUse
from workbench.stack.local import LocalStack
from workbench.stack.lock import AlreadyRunning, Running, running
from workbench.stack.template import transformed

__all__ = [
    "AlreadyRunning",
    "CloudError",
    "FunctionError",
    "LocalStack",
    "PortInUse",
    "Published",
    "Running",
    "UnsupportedTemplate",
    "running",
    "transformed",
]
