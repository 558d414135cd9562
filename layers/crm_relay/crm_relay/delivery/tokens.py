"""OAuth tokens shared by all workers: one refresh at a time, stored before it is used."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from crm_relay.delivery.ports import Conflict, Item, Ports, StorageError
from crm_relay.outcomes import NotExecuted, Unauthorized

LEASE = 90
"""Seconds for one refresh, with its repeats, and a margin: nobody may still be at it when the next one begins."""

_ASK_AGAIN = 2.0
"""Seconds after which a worker that found another one refreshing may look again."""

type Pair = Mapping[str, Any]
"""A token pair as plain data, whatever the CRM needs of it."""


class SharedToken:
    """The token pair of one account. All methods raise StorageError."""

    def __init__(self, ports: Ports, account: str) -> None:
        """Make a view of the item of this account, such as "amocrm#main"."""
        self._ports = ports
        self._key = token_key(account)

    def read(self) -> Pair | None:
        """Return the pair that is stored, None if the account was never authorized or is disconnected."""
        return _pair(self._ports.store.get(self._key))

    def write(self, pair: Pair | None) -> None:
        """Store a pair that did not come from a refresh; None forgets the account.

        It wins over a refresh that is under way.
        """
        item = self._ports.store.get(self._key)
        while True:
            try:
                self._put(pair, replaces=item)
            except Conflict as conflict:
                item = conflict.current
            else:
                return

    def refreshed(self, stale: Pair, refresh: Callable[[Pair], Pair]) -> Pair:
        """Return a pair newer than `stale`: the stored one if it is, else what `refresh` makes of it.

        Only one worker refreshes: it holds a lease meanwhile, and the new pair is stored before anybody uses
        it, since using it kills the old one. A new pair that could not be stored is dropped, and the old one
        is asked with again.

        Raises:
            NotExecuted: another worker is refreshing, or has stored a pair meanwhile.
            Unauthorized: the account is not authorized, or `refresh` found the token revoked.
            Exception: whatever else `refresh` raises; the lease is given back.
        """
        item = self._ports.store.get(self._key)
        pair = _pair(item)
        if item is None or pair is None:
            raise Unauthorized("not_authorized")
        if pair != stale:
            return pair
        now = int(self._ports.clock.time())
        if item.attributes["lease_until"] > now:
            raise _busy()
        try:
            item = self._put(pair, replaces=item, lease_until=now + LEASE)
            fresh = self._refresh(pair, refresh, item)
            self._put(fresh, replaces=item)
        except Conflict:
            # Whoever wrote first, or after our lease ran out, has the pair that counts.
            raise _busy() from None
        return fresh

    def _refresh(self, pair: Pair, refresh: Callable[[Pair], Pair], item: Item) -> Pair:
        try:
            return refresh(pair)
        except Exception:
            # A Conflict tells that "revoked" was said of a pair that is not stored any more.
            with suppress(StorageError):
                self._put(pair, replaces=item)
            raise

    def _put(self, pair: Pair | None, *, replaces: Item | None, lease_until: int = 0) -> Item:
        attributes = {"pair": pair, "lease_until": lease_until}
        return self._ports.store.put(self._key, attributes, replaces=replaces)


def token_key(account: str) -> str:
    """Return the key of an account's token: {"pair": the pair or None, "lease_until": unix seconds}."""
    return f"token#{account}"


def _pair(item: Item | None) -> Pair | None:
    pair: Pair | None = item.attributes["pair"] if item else None
    return pair


def _busy() -> NotExecuted:
    return NotExecuted("token_being_refreshed", retry_after=_ASK_AGAIN)
