"""What a call asks for, as it travels through BitrixQueue: one deal by one route. More of it is not believed."""

import hashlib
from dataclasses import dataclass
from typing import Any, Self

from crm_relay.delivery.envelope import Envelope, NotOurs

KIND = "bitrix24.transfer"
"""Of calls."""
DEAL = "bitrix24.deal"
"""Of what calls are about."""


@dataclass(frozen=True, slots=True)
class Order:
    """One deal of a portal by one route, both by our names.

    `expected` tells that somebody waits to see the deal in the hub, whenever it was in a stage of the route; an event
    tells of any change of any deal.
    `event_token` answers an app's robot: the only secret that travels.
    """

    portal: str
    deal: int
    route: str
    expected: bool
    event_token: str = ""

    @property
    def transfer(self) -> str:
        """The name in the ledger of the deal's effect, and of turns to update or tell of it: the same for all calls."""
        return f"{DEAL}#{self.portal}#{self.deal}#{self.route}"

    @property
    def transfer_id(self) -> str:
        """What callers know the transfer by."""
        return f"{self.route}-{self.deal}"

    def envelope(self, *, call: str, now: float) -> Envelope:
        """Return the envelope of a call: one execution of a robot is one, however often we are told of it."""
        execution = hashlib.sha256(self.event_token.encode()).hexdigest()[:32] if self.event_token else call
        payload = {
            "portal": self.portal,
            "deal": self.deal,
            "route": self.route,
            "expected": self.expected,
            "event_token": self.event_token,
        }
        return Envelope(KIND, f"{self.portal}#{self.deal}#{self.route}#{execution}", payload, int(now), call)

    @classmethod
    def of(cls, envelope: Envelope) -> Self:
        """Read an envelope's payload."""
        payload: Any = envelope.payload
        return cls(**payload)


def read_order(body: str) -> Envelope:
    """Read a message of BitrixQueue.

    Raises:
        NotOurs: it is none of ours.
    """
    envelope = Envelope.decode(body)
    match envelope.payload:
        case {
            "portal": str(),
            "deal": int(),
            "route": str(),
            "expected": bool(),
            "event_token": str(),
        } if envelope.kind == KIND:
            return envelope
        case _:
            raise NotOurs("other_kind")
