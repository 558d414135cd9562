"""One deal on its way to the hub: what is known of it so far, and how it ended."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from bitrix_robot.cards import SourceCard, cards_of, user_of
from bitrix_robot.mapping import HubDeal, HubRows
from bitrix_robot.order import Order
from crm_relay.bitrix24.client import Unusable, ids
from crm_relay.bitrix24.items import Item
from crm_relay.delivery.ledger import Claim, Effect, State
from crm_relay.outcomes import Rejected

_IDS_OF_A_ROW = ("productId", "discountTypeId")


class Standing(Enum):
    """Where a deal stands between all who may carry it."""

    OPEN = "open"
    """It was not carried to its end, and is not ours: nobody's, or somebody else's."""
    OURS = "ours"
    """Nobody else carries it now."""
    CARRIED = "carried"
    """It was carried before."""


@dataclass(slots=True, eq=False)
class Transfer:
    """One order at work. It has ended when there is a `result` or a `failure`.

    Attributes:
        order: what is asked for.
        execution: the name of the call that asks.
        called_at: unix seconds when it came.
        is_awaited: whether its caller waits for the answer.
        deal: as the source has it.
        rows: its product rows.
        source_cards: its contacts and company.
        stage: of the route's stages the one that it is in, or was in last.
        standing: whose it is.
        claim: what keeps others away: on the deal's own effect if it is ours, else on a turn to update or to tell.
        notes: what the ledger keeps with the claim: {"creating": unix seconds when the request for the hub's deal
            left, 0 if it was surely not made, "hub_deal": its id, "rows_set": whether the hub has taken the rows,
            "files": see `files`, "commenting": unix seconds when people were about to be told}.
        hub_deal: its id in the hub; 0 if there is none, or nobody knows of it.
        wanted: what it is to be in the hub.
        hub_rows: what its rows are to be.
        rows_refused: why the hub does not take them.
        hub_cards: the hub's contacts and company: {"contactIds", "companyId"}.
    """

    order: Order
    execution: str
    called_at: float
    is_awaited: bool = False
    deal: Item = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    source_cards: Sequence[SourceCard] = ()
    stage: str = ""
    standing: Standing = Standing.OPEN
    claim: Claim | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    hub_deal: int = 0
    wanted: HubDeal | None = None
    hub_rows: HubRows | None = None
    rows_refused: Rejected | None = None
    hub_cards: dict[str, Any] = field(default_factory=dict)
    result: Mapping[str, Any] | None = None
    failure: Exception | None = None

    @property
    def going(self) -> bool:
        """Whether it has not ended."""
        return self.result is None and self.failure is None

    @property
    def is_new(self) -> bool:
        """Whether its deal is still to be made, by us."""
        return self.standing is Standing.OURS and not self.hub_deal

    @property
    def is_carried(self) -> bool:
        """Whether it was carried before."""
        return self.standing is Standing.CARRIED

    @property
    def lacks_rows(self) -> bool:
        """Whether its deal is in the hub without the rows that it is to have."""
        return bool(self.rows) and not (self.is_carried or self.notes.get("rows_set"))

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Keep what is raised inside as its failure: it is this transfer's alone."""
        try:
            yield
        except Exception as failure:  # noqa: BLE001 (see above)
            self.failure = failure

    def read(self, deal: Item, rows: Sequence[Mapping[str, Any]]) -> None:
        """Take over what the source says.

        Raises:
            Rejected: there are ids in it that are none.
        """
        self.deal = {**deal, "assignedById": user_of(deal)}
        try:
            self.source_cards = cards_of(deal)
            self.rows = [{**row, **{name: sum(ids(row.get(name))[:1]) for name in _IDS_OF_A_ROW}} for row in rows]
        except Unusable:
            raise Rejected("deal_unreadable") from None

    def learn(self, effect: Effect) -> None:
        """Take over what the ledger knows of the deal."""
        if effect.state is State.CONFIRMED:
            self.standing = Standing.CARRIED
        known = effect.result if self.is_carried else effect.notes
        self.hub_deal = int((known or {}).get("hub_deal", 0))

    def own(self, claim: Claim) -> None:
        """Be the one who carries the deal."""
        self.learn(claim.effect)
        self.standing = Standing.OURS
        self.hold(claim)

    def begin_anew(self) -> None:
        """Forget what was done, since it is not there any more. Raises as `mark`."""
        self.hub_deal = 0
        self.mark(hub_deal=0, creating=0, rows_set=False, files={}, files_left=[])

    def hold(self, claim: Claim) -> None:
        """Go on under a claim, with what its notes tell."""
        self.claim = claim
        self.notes = dict(claim.effect.notes or {})

    def mark(self, **notes: Any) -> None:
        """Write into the ledger how far it has come. Raises Fenced, StorageError."""
        assert self.claim is not None
        self.notes |= notes
        self.claim.sent(dict(self.notes))


def fail(transfers: Iterable[Transfer], failure: Exception) -> None:
    """Say of transfers that they did not work, but for those that have ended well."""
    for transfer in transfers:
        if transfer.result is None:
            transfer.failure = failure
