"""What a function process holds: the ports, the settings and the secrets, made once."""

import os
from collections.abc import Callable
from dataclasses import dataclass

from crm_relay.delivery import aws
from crm_relay.delivery.ports import Ports, StorageError
from crm_relay.http_api import Unavailable
from crm_relay.observability import log_failure
from crm_relay.settings import ConfigurationError, Secrets, SecretSource, Settings, settings


@dataclass(frozen=True, slots=True, eq=False)
class Runtime:
    """Everything that comes from outside."""

    ports: Ports
    settings: Settings
    secret_source: Callable[[], Secrets]

    def secrets(self) -> Secrets:
        """Return the secrets.

        Raises:
            Unavailable: there are none, or none that can be read.
        """
        try:
            return self.secret_source()
        except (StorageError, ConfigurationError):
            raise Unavailable("not_configured") from None


def _read_secret() -> str:
    try:
        return aws.secret_text()
    except StorageError as error:
        log_failure("secret not read", error)
        raise


_installed: Runtime | None = None


def runtime() -> Runtime:
    """Return this process's runtime: the one installed, or else the one that AWS and the environment make."""
    if _installed is None:
        ports = aws.ports()
        install(Runtime(ports, settings(), SecretSource(_read_secret, clock=ports.clock.time)))
    assert _installed is not None
    return _installed


def install(value: Runtime | None) -> None:
    """Put another runtime in the place of this process's own; None makes it anew when it is asked for."""
    global _installed  # noqa: PLW0603 (one process, one runtime)
    _installed = value


def prepare(*more: Callable[[], object]) -> None:
    """In Lambda, make the runtime, and `more`, while the function starts.

    That time has a whole CPU; an invocation of a small function has a fraction of one.
    """
    if "AWS_LAMBDA_RUNTIME_API" in os.environ:
        for make in (runtime, *more):
            make()
