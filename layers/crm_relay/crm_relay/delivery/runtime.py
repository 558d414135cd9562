"""What a function process holds: the ports, the settings and the secrets, made once."""

import gc
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from crm_relay.delivery import aws
from crm_relay.delivery.ports import Ports, StorageError
from crm_relay.observability import log_failure, needs_attention
from crm_relay.outcomes import NotConfigured
from crm_relay.settings import ConfigurationError, Secrets, SecretSource, Settings, load_settings, read_environment


@dataclass(frozen=True, slots=True, eq=False)
class Runtime:
    """Everything that comes from outside."""

    ports: Ports
    settings: Settings
    secret_source: Callable[[], Secrets]

    def secrets(self) -> Secrets:
        """Return the secrets.

        Raises:
            NotConfigured: there are none, or none that can be read.
        """
        try:
            return self.secret_source()
        except (StorageError, ConfigurationError):
            raise NotConfigured from None


def _secret_failed(error: Exception) -> None:
    if isinstance(error, ConfigurationError):
        needs_attention(str(error))  # it names the key, never a value
    else:
        log_failure("secret not read", error)


_installed: Runtime | None = None


def runtime() -> Runtime:
    """Return this process's runtime: the one installed, or else the one that AWS and the environment make."""
    if _installed is None:
        environment = read_environment(os.environ)
        ports = aws.ports(environment)
        source = SecretSource(aws.secret_reader(environment), clock=ports.clock.time, failed=_secret_failed)
        install(Runtime(ports, load_settings(Path(environment.RELAY_CONFIG)), source))
    assert _installed is not None
    return _installed


def install(value: Runtime | None) -> None:
    """Put another runtime in the place of this process's own; None makes it anew when it is asked for."""
    global _installed  # noqa: PLW0603 (one process, one runtime)
    _installed = value


def prepare(*more: Callable[[], object]) -> None:
    """In Lambda, make the runtime, and `more`, while the function starts; every handler's module ends with this.

    That time has a whole CPU; an invocation of a small function has a fraction of one.
    """
    if "AWS_LAMBDA_RUNTIME_API" in os.environ:
        for make in (runtime, *more):
            make()
        gc.freeze()  # nor need any invocation look through it
        gc.enable()
