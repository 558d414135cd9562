"""A CRM's request limit, shared by all workers: time slots, 1/rate apart, handed out through one item."""

import math
from collections import deque
from contextlib import suppress

from crm_relay.delivery.ports import Conflict, Item, Ports
from crm_relay.outcomes import NotExecuted

LATE = 0.075
"""Seconds by which a slot may be used late. Slots lie apart by so much more that no second sees too many."""
_LONGEST_WAIT = 5.0
"""Seconds that a worker sleeps for its slot; for longer the message waits, not the function."""
_LEASE_SPAN = 0.2
"""Seconds of slots that one write may take: a process that dies loses no more, and one that waits for a CRM's answer
meanwhile hardly more."""
_RESERVATIONS = 3
"""Tries to get a slot that is not over before the table has said that it is ours."""
_LONGEST_WRITE = 0.5
"""Seconds of a write that the next slot waits for: a table that is slower once may be fast again."""
_KEPT = 3600


class Budget:
    """The slots of one CRM account. A process that uses all slots of a lease gets twice as many with the next."""

    def __init__(self, ports: Ports, account: str, *, per_second: float) -> None:
        """Make a budget; `account` names the item, `per_second` is the CRM's limit."""
        self._ports = ports
        self._key = f"budget#{account}"
        self._spacing = (1 + LATE) / per_second
        self._largest_lease = max(1, int(_LEASE_SPAN / self._spacing))
        self._lease = 1
        self._write_takes = 0.0
        self._slots: deque[float] = deque()

    def take(self) -> None:
        """Wait for the next slot.

        The limit holds among workers whose clocks agree.

        Raises:
            NotExecuted: it is too far away to wait for, `retry_after` says how far; or it is over before the
                table has said that it is ours.
            StorageError: the table did not answer.
        """
        clock = self._ports.clock
        self._forget_what_is_over()
        for _ in range(_RESERVATIONS):
            if self._slots:
                break
            self._reserve()
            self._lease = min(self._lease * 2, self._largest_lease)
            self._forget_what_is_over()
        if not self._slots:
            raise NotExecuted("budget_slow", retry_after=LATE)
        slot = self._slots.popleft()
        # Bounded for a clock that was set back meanwhile.
        clock.sleep(min(max(0.0, slot - clock.time()), _LONGEST_WAIT))

    def _forget_what_is_over(self) -> None:
        while self._slots and self._slots[0] + LATE < self._ports.clock.time():
            self._slots.popleft()
            self._lease = 1

    def _reserve(self) -> None:
        item = self._ports.store.get(self._key)
        while True:
            now = self._ports.clock.time()
            first = max(now + self._write_takes, _next_free(item))
            if first - now > _LONGEST_WAIT:
                raise NotExecuted("budget_exhausted", retry_after=first - now)
            after = first + self._lease * self._spacing
            with suppress(Conflict):
                self._ports.store.put(
                    self._key,
                    {"next_free_ms": math.ceil(after * 1000)},
                    replaces=item,
                    expires_at=int(after) + _KEPT,
                )
                self._slots.extend(first + number * self._spacing for number in range(self._lease))
                # A slot before the end of the next write would be lost.
                self._write_takes = min(max(0.0, self._ports.clock.time() - now), _LONGEST_WRITE)
                return
            item = self._ports.store.get(self._key)


def _next_free(item: Item | None) -> float:
    return item.attributes["next_free_ms"] / 1000 if item else 0.0
