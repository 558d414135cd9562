"""What customers have beside their cards: the mode, statuses, segments, purchases and bonus points."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from pydantic import NonNegativeInt

from workbench.sandboxes.amocrm.calls import NOT_ALLOWED, NOT_FOUND, Body, Call, Refused, hal, problem
from workbench.sandboxes.amocrm.catalogs import check_fields
from workbench.sandboxes.amocrm.drafts import Entity
from workbench.sandboxes.amocrm.entities import Entities
from workbench.sandboxes.amocrm.services import CUSTOMER_STATUSES, SEGMENTS, TRANSACTIONS
from workbench.sandboxes.amocrm.tables import Record, Table
from workbench.sandboxes.wire import SandboxResponse


class _ModeBody(Body):
    mode: Literal["periodicity", "segments"]
    is_enabled: bool = True


class _PointsBody(Body):
    earn: NonNegativeInt = 0
    redeem: NonNegativeInt = 0


class Customers:
    """The customers' side of an account; `mode` is what the account says of it."""

    def __init__(self, entities: Entities, hex_id: Callable[[], str]) -> None:
        self.mode = "unavailable"
        self.statuses = Table(CUSTOMER_STATUSES, hex_id)
        self.segments = Table(
            SEGMENTS,
            hex_id,
            check=lambda call, sent, segment: check_fields(call, SEGMENTS.path, sent, segment),
            show=lambda _call, segment: self._count(segment),
        )
        self.transactions = Table(TRANSACTIONS, hex_id, show=_customer, told=self._told)
        self.points: Counter[int] = Counter()
        self._entities = entities

    def all_transactions(self, call: Call, path: Sequence[str]) -> SandboxResponse:
        """`api/v4/customers/transactions…`, for reading."""
        return NOT_ALLOWED if call.request.method == "POST" else self.transactions.answer(call, path)

    def transactions_of(self, call: Call, customer: Entity, path: Sequence[str]) -> SandboxResponse:
        """`api/v4/customers/{id}/transactions…`."""
        at = f"customers/{customer.id}/transactions"
        return self.transactions.answer(call, path, at=at, within={"customer_id": customer.id})

    def set_mode(self, call: Call, path: Sequence[str]) -> SandboxResponse:
        """`api/v4/customers/mode`."""
        if path:
            return NOT_FOUND
        if call.request.method != "PATCH":
            return NOT_ALLOWED
        body = call.item(_ModeBody).body
        self.mode = body.mode if body.is_enabled else "disabled"
        return hal({"mode": body.mode, "is_enabled": body.is_enabled})

    def points_of(self, call: Call, customer: Entity) -> SandboxResponse:
        """`api/v4/customers/{id}/bonus_points`."""
        if call.request.method != "POST":
            return NOT_ALLOWED
        body = call.item(_PointsBody).body
        left = self.points[customer.id] + body.earn - body.redeem
        if left < 0:
            raise Refused(problem(400, "The customer has fewer bonus points"))
        self.points[customer.id] = left
        return hal({"bonus_points": left})

    def _told(self, call: Call, verb: str, transaction: Record) -> None:
        customer = self._entities.find("customers", transaction["customer_id"])
        if customer is None:
            return
        for name in ("next_date", "next_price"):
            if (value := transaction.pop(name, None)) is not None and verb == "added":
                customer.fields[name] = value
        bought = [each["price"] for each in self.transactions.records.values() if each["customer_id"] == customer.id]
        average = sum(bought) / len(bought) if bought else 0
        customer.fields |= {"ltv": sum(bought), "purchases_count": len(bought), "average_check": average}
        customer.fields |= {"updated_at": call.now, "updated_by": call.by}

    def _count(self, segment: Record) -> Mapping[str, object]:
        customers = self._entities.present["customers"].values()
        return {"customers_count": sum(segment["id"] in customer.segments for customer in customers)}


def _customer(call: Call, transaction: Record) -> Mapping[str, object]:
    id_ = transaction["customer_id"]
    embedded = {"customer": {"id": id_, "_links": {"self": call.href(f"customers/{id_}")}}}
    return {"_embedded": embedded | transaction.get("_embedded", {})}
