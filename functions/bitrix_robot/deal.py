"""One deal on its way to the hub: what is known of it so far, and how it ended."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from bitrix_robot.mapping import HubDeal, HubRows
from bitrix_robot.order import Order
from crm_relay.bitrix24.items import Item
from crm_relay.delivery.ledger import Claim, Effect


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
        stage: of the route's stages the one that it is in, or was in last.
        claim: ours, if it is not carried yet.
        known: what became of it, if it was carried before.
        wanted: what it is to be in the hub.
        hub_rows: what its rows are to be.
        cards: the hub's contacts and company: {"contactIds", "companyId"}.
        notes: what the ledger keeps of its steps: {"creating": unix seconds when the request for the hub's deal left,
            0 if it was surely not made, "hub_deal": its id, "files": see `files`, "commenting": unix seconds when
            people were about to be told}.
    """

    order: Order
    execution: str
    called_at: float
    is_awaited: bool = False
    deal: Item = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    stage: str = ""
    claim: Claim | None = None
    known: Effect | None = None
    wanted: HubDeal | None = None
    hub_rows: HubRows | None = None
    cards: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    result: Mapping[str, Any] | None = None
    failure: Exception | None = None

    @property
    def going(self) -> bool:
        """Whether it has not ended."""
        return self.result is None and self.failure is None

    @property
    def is_new(self) -> bool:
        """Whether its deal is still to be made."""
        return self.claim is not None and "hub_deal" not in self.notes

    @property
    def hub_deal(self) -> int:
        """The id of its deal in the hub, which has been made."""
        made = self.known.result if self.known and self.known.result else self.notes
        return int(made["hub_deal"])

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Keep what is raised inside as its failure: it is this transfer's alone."""
        try:
            yield
        except Exception as failure:  # noqa: BLE001 (see above)
            self.failure = failure

    def mark(self, **notes: Any) -> None:
        """Write into the ledger how far it has come. Raises Fenced, StorageError."""
        assert self.claim is not None
        self.notes |= notes
        self.claim.sent(dict(self.notes))
