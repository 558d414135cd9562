"""The effect ledger: who may do an effect now, what is known of it, and never a blind second time.

PLANNED → SENT → CONFIRMED · REJECTED · GIVEN_UP (surely not done) · NEEDS_RECONCILE (nobody knows).
SENT is written before a request leaves, so an effect found in SENT may have happened: the next owner looks in
the CRM first. Nothing is deleted on failure. Every write replaces the version that its owner has read; an owner
whose lease was taken over finds another version there, and its writes are refused (Fenced).
"""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import Any, Self

from crm_relay.delivery.ports import Clock, Conflict, Item, Store

_KEPT = 400 * 86_400  # as long as leads are remembered, and longer than any replay window
_TURN_KEPT = 86_400


class State(StrEnum):
    """Where an effect stands."""

    PLANNED = "PLANNED"
    SENT = "SENT"
    CONFIRMED = "CONFIRMED"
    REJECTED = "REJECTED"
    GIVEN_UP = "GIVEN_UP"
    NEEDS_RECONCILE = "NEEDS_RECONCILE"


_IN_DOUBT = frozenset({State.SENT, State.NEEDS_RECONCILE})


@dataclass(frozen=True, slots=True)
class Effect:
    """One effect. Times are unix seconds.

    `tries` counts claims that did not end orderly (their owner died), `waits` how often it was handed back
    since; `notes` are what its job wants to find again, `result` what came of it.
    """

    state: State
    sha256: str
    owner: str | None = None
    lease_until: int = 0
    tries: int = 0
    waits: int = 0
    notes: Mapping[str, Any] | None = None
    result: Mapping[str, Any] | None = None
    last_error: str | None = None

    @property
    def settled(self) -> bool:
        """Whether it is over. What was given up is not: an operator who sends its message again means it."""
        return self.state in (State.CONFIRMED, State.REJECTED)

    @classmethod
    def read(cls, attributes: Mapping[str, Any]) -> Self:
        """Read what `attributes` wrote."""
        # By name: beside a newer version, behind a canary, there may be more than this one knows.
        known = {field.name: attributes[field.name] for field in fields(cls) if field.name in attributes}
        return cls(**{**known, "state": State(attributes["state"])})

    def attributes(self) -> dict[str, Any]:
        """Return the effect as plain data for the table."""
        return {
            "state": self.state.value,
            "sha256": self.sha256,
            "owner": self.owner,
            "lease_until": self.lease_until,
            "tries": self.tries,
            "waits": self.waits,
            "notes": self.notes,
            "result": self.result,
            "last_error": self.last_error,
        }


class Busy(Exception):
    """Somebody else is at it until `until` (unix seconds)."""

    def __init__(self, until: int) -> None:
        super().__init__("busy")
        self.until = until


class Fenced(Exception):
    """The lease was taken over while its owner was still at it: what it found out is not recorded."""


class OtherPayload(Exception):
    """The key is known with another payload."""


class Ledger:
    """Effects by name."""

    def __init__(self, store: Store, clock: Clock) -> None:
        """Make a ledger over a store."""
        self._store = store
        self._clock = clock

    def find(self, name: str) -> Effect | None:
        """Return an effect as it is now."""
        known = self.last_known(name)
        return known[0] if known else None

    def last_known(self, name: str) -> tuple[Effect, int] | None:
        """Return an effect as it is now, and the unix second in which that was written."""
        item = self._store.get(_key(name))
        return (Effect.read(item.attributes), item.updated_at) if item else None

    def claim(self, name: str, sha256: str, *, lease: int) -> "Claim | Effect":
        """Become the owner of an effect for `lease` seconds, or get it if it is settled.

        Raises:
            Busy: another owner's lease still runs.
            OtherPayload: another payload has this name.
            StorageError: the store did not answer; nothing may be assumed.
        """
        return self._claim(_key(name), sha256, lease)

    def reopen(self, name: str, *, lease: int) -> "Claim":
        """Become the owner of an effect, settled or not; it stays settled until something else is written.

        Raises:
            Busy, StorageError: as `claim`.
        """
        claim = self._claim(_key(name), "", lease, again=True)
        assert isinstance(claim, Claim)
        return claim

    def turn(self, name: str, *, lease: int) -> "Claim":
        """Become the only one at what may be done again and again; `Claim.release` ends a turn.

        A turn is no effect, though it may have the name of one. What is noted with it is kept for a day.

        Raises:
            Busy, StorageError: as `claim`.
        """
        claim = self._claim(f"turn#{name}", "", lease, kept=_TURN_KEPT)
        assert isinstance(claim, Claim)
        return claim

    def _claim(self, key: str, sha256: str, lease: int, *, again: bool = False, kept: int = _KEPT) -> "Claim | Effect":
        item = self._store.get(key)
        while True:
            effect = Effect.read(item.attributes) if item else Effect(State.PLANNED, sha256)
            if effect.sha256 != sha256:
                raise OtherPayload
            if effect.settled and not again:
                return effect
            now = int(self._clock.time())
            if effect.owner and effect.lease_until > now:
                raise Busy(effect.lease_until)
            claimed = replace(effect, owner=uuid.uuid4().hex, lease_until=now + lease, tries=effect.tries + 1)
            try:
                item = self._store.put(
                    key,
                    claimed.attributes(),
                    replaces=item,
                    expires_at=now + kept,
                    attention=item.attention if item else None,
                )
            except Conflict as conflict:
                item = conflict.current
            else:
                return Claim(self._store, self._clock, item, claimed, kept)


class Claim:
    """An effect that is ours until the lease ends. Every method raises Fenced if it is not ours any more."""

    def __init__(self, store: Store, clock: Clock, item: Item, effect: Effect, kept: int) -> None:
        """Hold `item`, which says what `effect` says, for `kept` seconds from each write on."""
        self._store = store
        self._clock = clock
        self._item = item
        self._kept = kept
        self.effect = effect
        self.in_doubt = effect.state in _IN_DOUBT
        """Whether an earlier try may have done it: look in the CRM first."""

    def sent(self, notes: Mapping[str, Any]) -> None:
        """Write, before the request leaves, that it may have happened from now on."""
        self._write(replace(self.effect, state=State.SENT, notes=notes))

    def confirm(self, result: Mapping[str, Any]) -> None:
        """Record success."""
        self._write(replace(self._free(), state=State.CONFIRMED, result=result, last_error=None))

    def reject(self, reason: str) -> None:
        """Record that the CRM refused for good."""
        self._write(replace(self._free(), state=State.REJECTED, result={"reason": reason}), State.REJECTED.value)

    def release(self) -> None:
        """End a turn: the next one may begin. What is noted stays."""
        self._write(replace(self._free(), state=State.PLANNED))

    def wait(self, reason: str, *, happened: bool | None, orderly: bool = True) -> None:
        """Give the effect back for a later try.

        Args:
            reason: a word for what was in the way.
            happened: False if this try surely did nothing, None if nobody knows. An effect that was in doubt
                before this try stays so: its request may still arrive.
            orderly: False leaves the try counted, as if its owner had died.
        """
        doubt = happened is None or self.in_doubt
        # What an operator must settle stays in his list, unless this try has sent it anew.
        unsettled = self.effect.state is State.NEEDS_RECONCILE
        free = self._free()
        self._write(
            replace(
                free,
                state=free.state if unsettled else State.SENT if doubt else State.PLANNED,
                tries=free.tries if orderly else self.effect.tries,
                waits=free.waits + 1,
                last_error=reason,
            ),
            free.state.value if unsettled else "WAITING",
        )

    def give_up(self, reason: str, *, happened: bool | None = None) -> None:
        """Record that no worker goes on with this; an operator must. `happened` as in `wait`."""
        doubt = happened is None or self.in_doubt
        state = State.NEEDS_RECONCILE if doubt else State.GIVEN_UP
        self._write(replace(self._free(), state=state, last_error=reason), state.value)

    def _free(self) -> Effect:
        return replace(self.effect, owner=None, lease_until=0, tries=0)

    def _write(self, effect: Effect, attention: str | None = None) -> None:
        try:
            self._item = self._store.put(
                self._item.key,
                effect.attributes(),
                replaces=self._item,
                expires_at=int(self._clock.time()) + self._kept,
                attention=attention,
            )
        except Conflict:
            raise Fenced from None
        self.effect = effect


def _key(name: str) -> str:
    return f"effect#{name}"
