"""One account at one CRM: its request budget, its circuit, and its pause after a refused credential."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any, override

from aws_lambda_powertools.utilities.circuit_breaker import (
    CircuitBreakerConfig,
    CircuitBreakerOpenError,
    circuit_breaker,
)
from aws_lambda_powertools.utilities.circuit_breaker.persistence.base import (
    CircuitBreakerExistingLockError,
    CircuitBreakerPersistenceLayer,
)
from aws_lambda_powertools.utilities.circuit_breaker.persistence.record import CircuitStateRecord
from aws_lambda_powertools.utilities.circuit_breaker.states import CircuitState

from crm_relay.delivery.budget import Budget
from crm_relay.delivery.ports import Clock, Conflict, Item, Ports, StorageError, Store, update
from crm_relay.observability import log_failure, needs_attention
from crm_relay.outcomes import Blocked, NotExecuted, Outcome, OutcomeUnknown, Unauthorized, Unreachable

PAUSE = 300
"""Seconds for which a refused credential stops an account; after that requests try whether it was mended."""
LONGEST_PAUSE = 600
"""Seconds of a CRM's own Retry-After that bind the whole account."""

_PAUSE_SEEN = 5
_CIRCUIT = CircuitBreakerConfig(
    failure_threshold=5,
    recovery_timeout=30,
    success_threshold=1,
    handled_exceptions=(Unreachable, OutcomeUnknown),
)


class Account:
    """The door to one CRM account, the same for all workers through the table."""

    def __init__(self, ports: Ports, name: str, *, requests_per_second: float) -> None:
        """Make the door; `name` is the CRM and, where there are several, the account."""
        self._ports = ports
        self._name = name
        self._budget = Budget(ports, name, per_second=requests_per_second)
        self._paused_until = 0
        self._pause_read_at = 0.0
        self._guarded: Callable[[Callable[[], object]], object] = circuit_breaker(
            name=name, persistence_store=_CircuitPersistence(ports.store, ports.clock), config=_CIRCUIT
        )(lambda request: request())

    def check(self) -> None:
        """Raise NotExecuted while the account is paused. Costs a table read every few seconds at most."""
        now = self._ports.clock.time()
        if now >= self._pause_read_at + _PAUSE_SEEN:
            pause = self._ports.store.get(pause_key(self._name))
            self._paused_until = pause.attributes["until"] if pause else 0
            self._pause_read_at = now
        if now < self._paused_until:
            raise NotExecuted("account_paused", retry_after=self._paused_until - now)

    def take(self) -> None:
        """Wait for a slot of the budget, for a request inside another's."""
        self._budget.take()

    def request[T](self, send: Callable[[], T], *, guarded: bool = True) -> T:
        """Do one request inside the budget and the circuit.

        Args:
            send: the request.
            guarded: False for what a caller asks for: its failures neither open the circuit nor pause the account.

        Raises:
            NotExecuted: paused, no budget, or the circuit is open.
            Outcome: whatever `send` raises. Unauthorized and Blocked pause the account for all workers, and
                so does a Retry-After.
        """
        self.check()
        self._budget.take()
        if not guarded:
            return send()
        try:
            result = self._guarded(partial(_answered, send))
            if isinstance(result, Outcome):
                raise result
            return result  # type: ignore[return-value]
        except CircuitBreakerOpenError:
            raise NotExecuted("circuit_open", retry_after=_CIRCUIT.recovery_timeout) from None
        except NotExecuted as outcome:
            if outcome.retry_after:
                self._pause(min(outcome.retry_after, LONGEST_PAUSE), str(outcome))
            raise
        except (Unauthorized, Blocked) as refusal:
            self.stop(refusal)
            raise

    def stop(self, refusal: Unauthorized | Blocked) -> None:
        """Pause the account for all workers, and call an operator: every request would be refused the same way."""
        self._pause(PAUSE, str(refusal))
        needs_attention("account paused", account=self._name, reason=str(refusal), seconds=PAUSE)

    def _pause(self, seconds: float, reason: str) -> None:
        until = self._paused_until = math.ceil(self._ports.clock.time() + seconds)

        def prolonged(pause: Mapping[str, Any]) -> Mapping[str, Any]:
            # A busy CRM's "in a second" does not end the pause of a refused credential.
            return pause if pause.get("until", 0) >= until else {"until": until, "reason": reason}

        try:
            pause = update(self._ports.store, pause_key(self._name), prolonged, expires_at=until + LONGEST_PAUSE)
            self._paused_until = pause["until"]
        except StorageError as error:
            log_failure("pause not written, other workers will find out themselves", error, account=self._name)


def _answered(send: Callable[[], object]) -> object:
    """Return what the CRM has answered, a refusal too: only what is no answer counts against the circuit."""
    try:
        return send()
    except (Unreachable, OutcomeUnknown):
        raise
    except Outcome as outcome:
        return outcome


class _CircuitPersistence(CircuitBreakerPersistenceLayer):
    """Powertools' breaker on our store, so that it runs on AWS and in memory alike."""

    def __init__(self, store: Store, clock: Clock) -> None:
        super().__init__()
        self._store = store
        self._clock = clock

    @override
    def _get_record(self, name: str) -> CircuitStateRecord | None:
        item = self._store.get(_circuit_key(name))
        return _circuit(item) if item else None

    @override
    def _put_record(
        self, record: CircuitStateRecord, condition: str | None = None, expected_opened_at: int | None = None
    ) -> None:
        item = self._store.get(_circuit_key(record.name))
        if condition == "half_open" and not self._may_probe(item, expected_opened_at):
            raise CircuitBreakerExistingLockError
        try:
            self._store.put(
                _circuit_key(record.name),
                {**asdict(record), "state": str(record.state)},
                replaces=item,
                expires_at=record.expiry_timestamp,
            )
        except Conflict:
            # Another process saw the same and wrote first: its word is as good as ours.
            if condition == "half_open":
                raise CircuitBreakerExistingLockError from None

    @override
    def _update_record(self, record: CircuitStateRecord) -> None:
        self._put_record(record)

    def _may_probe(self, item: Item | None, expected_opened_at: int | None) -> bool:
        if item is None:
            return False
        circuit = _circuit(item)
        if circuit.state is CircuitState.OPEN:
            return circuit.opened_at == expected_opened_at
        lease_over = (circuit.probe_lease_expiry or 0) <= self._clock.time()
        return circuit.state is CircuitState.HALF_OPEN and lease_over


def pause_key(name: str) -> str:
    """Return the key of an account's pause: {"until": unix seconds, "reason"}."""
    return f"pause#{name}"


def _circuit_key(name: str) -> str:
    return f"circuit#{name}"


def _circuit(item: Item) -> CircuitStateRecord:
    attributes = item.attributes
    return CircuitStateRecord(**{**attributes, "state": CircuitState(attributes["state"])})
