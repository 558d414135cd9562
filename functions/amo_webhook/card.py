"""What we know of a card: what its last note was written of, and a note that may be on its way into it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

from crm_relay.amocrm.resources import Card
from crm_relay.delivery.ports import Item, Store

_KEPT = 400 * 86_400


@dataclass(frozen=True, slots=True)
class Marks:
    """What tells one of our notes in its card: `created_at` (unix seconds) is its own there, by our own doing."""

    created_at: int
    text_sha256: str


@dataclass(frozen=True, slots=True)
class Proposal:
    """A note that the owner of `effect` may have written, or may write until `until` (unix seconds).

    Until then the card is his: two notes about one change would be one too many.
    """

    effect: str
    marks: Marks
    values: Mapping[str, Any]
    until: int

    @classmethod
    def read(cls, attributes: Mapping[str, Any]) -> Self:
        """Read what `asdict` made."""
        return cls(**{**attributes, "marks": Marks(**attributes["marks"])})


@dataclass(frozen=True, slots=True)
class KnownCard:
    """A card as it is known.

    `values` are what the last note was written of (see note_text.snapshot), None before the first; `noted_at`
    is that note's `created_at`. `dropped` is what was proposed before and is not there. `item` is where this stands
    in the table.
    """

    key: str
    values: Mapping[str, Any] | None = None
    noted_at: int = 0
    proposal: Proposal | None = None
    dropped: Proposal | None = None
    item: Item | None = None

    @classmethod
    def read(cls, store: Store, key: str) -> Self:
        """Read a card; one that was never seen is known by its key alone. Raises StorageError."""
        item = store.get(key)
        if item is None:
            return cls(key)
        kept = item.attributes
        proposal = Proposal.read(kept["proposal"]) if kept["proposal"] else None
        return cls(key, kept["values"], kept["noted_at"], proposal, item=item)

    @property
    def is_news(self) -> bool:
        """Whether something else stands in the table."""
        return self.item is None or self.item.attributes != self._attributes()

    def proposed(self, proposal: Proposal) -> Self:
        """Return the card with a note on its way."""
        return replace(self, proposal=proposal)

    def noted(self) -> Self:
        """Return the card with the proposed note in it."""
        assert self.proposal is not None
        return replace(self, values=self.proposal.values, noted_at=self.proposal.marks.created_at, proposal=None)

    def without_proposal(self) -> Self:
        """Return the card without the proposed note, which is not in it."""
        return replace(self, proposal=None, dropped=self.proposal)

    def write(self, store: Store, *, now: float) -> Self:
        """Write the card in the place of the one that was read, and return it as written.

        Raises:
            Conflict: somebody else wrote first.
            StorageError: nobody knows.
        """
        item = store.put(self.key, self._attributes(), replaces=self.item, expires_at=int(now) + _KEPT)
        return replace(self, item=item)

    def _attributes(self) -> dict[str, Any]:
        return {
            "values": self.values,
            "noted_at": self.noted_at,
            "proposal": asdict(self.proposal) if self.proposal else None,
        }


def card_key(account: str, card: Card, entity_id: int) -> str:
    """Return the key of a card's item."""
    return f"amo#{account}#{card}#{entity_id}"
