"""A stand-in for amoCRM and Kommo."""

from workbench.sandboxes.amocrm.account import AmoCrmAccount, Integration, PipelineHook
from workbench.sandboxes.amocrm.sandbox import AmoCrmSandbox, AmoCrmSwitches

__all__ = ["AmoCrmAccount", "AmoCrmSandbox", "AmoCrmSwitches", "Integration", "PipelineHook"]
