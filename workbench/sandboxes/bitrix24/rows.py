"""Product rows of deals, and the catalog that they are of."""

from collections.abc import Callable, Mapping
from typing import Any

from workbench.sandboxes.bitrix24.calls import Answer, Call, Method, Methods, Refused, as_int, as_list
from workbench.sandboxes.bitrix24.items import Item, Items
from workbench.sandboxes.bitrix24.lists import listed
from workbench.sandboxes.bitrix24.portal import DEAL, Bitrix24Portal

_MEASURES = {796: "шт", 6: "м", 112: "л", 163: "г", 166: "кг"}
_PRODUCT = ("id", "iblockId", "name", "xmlId", "code", "type", "active", "parentId")


class Rows:
    """crm.item.productrow.* and catalog.product.list."""

    def __init__(self, portal: Callable[[], Bitrix24Portal], items: Items) -> None:
        self._portal = portal
        self._items = items
        self._made = 0

    @property
    def methods(self) -> Methods:
        """By name."""
        return {
            "crm.item.productrow.list": Method(self._list, frozenset({"crm"})),
            "crm.item.productrow.set": Method(self._set, frozenset({"crm"})),
            "catalog.product.list": Method(self._products, frozenset({"catalog"})),
        }

    def write(self, deal: Item, sent: list[Any]) -> None:
        """Replace all rows of a deal, and its amount if that follows them. Refused if one is not valid."""
        made = self._made
        rows = [self._row(deal, each, place) for place, each in enumerate(sent, start=1)]
        for number, row in enumerate(rows, start=made + 1):
            row["id"] = number
        self._made = made + len(rows)
        deal.rows = rows
        if deal["isManualOpportunity"] != "Y":
            deal.fields["opportunity"] = round(sum(row["price"] * row["quantity"] for row in rows), 2)

    def _list(self, call: Call) -> Answer:
        conditions = call.mapping("filter")
        for name in ("=ownerType", "=ownerId"):
            if name not in conditions:
                raise Refused("100", f"Required fields are missing in filter: {name}")
        deal = self._owner(conditions["=ownerType"], conditions["=ownerId"])
        known = [*deal.rows[0]] if deal.rows else ["ownerType", "ownerId"]
        return listed(call, deal.rows, known, "productRows")

    def _set(self, call: Call) -> Answer:
        deal = self._owner(call.required("ownerType"), call.required("ownerId"))
        sent = call.required("productRows")
        if not isinstance(sent, list | dict):
            raise Refused("100", "Invalid value {productRows}: array expected")
        self.write(deal, as_list(sent))
        return Answer({"productRows": deal.rows})

    def _owner(self, kind: object, owner_id: object) -> Item:
        if kind != "D":
            raise Refused("ENTITY_TYPE_NOT_SUPPORTED", f"Owner type '{kind}' is not supported")
        deal = self._items.present[DEAL].get(as_int(owner_id) or 0)
        if deal is None:
            raise Refused("OWNER_NOT_FOUND", "Owner was not found")
        return deal

    def _row(self, deal: Item, sent: Any, place: int) -> dict[str, Any]:
        if not isinstance(sent, Mapping):
            raise Refused("0", "A product row must be an array")
        portal = self._portal()
        product_id = as_int(sent.get("productId")) or 0
        product = next((each for each in portal.products if each.id == product_id), None)
        if product_id and not product:
            raise Refused("0", f"Product {product_id} was not found")
        name = str(sent.get("productName") or (product.name if product else ""))
        if not name:
            raise Refused("0", "A product row needs productId or productName")
        price, quantity = _amount(sent.get("price", 0)), _amount(sent.get("quantity", 1))
        tax = sent.get("taxRate")
        share = 1 + (_amount(tax) if tax not in (None, "") else 0.0) / 100
        exclusive = price / share
        kind, rate, discount = as_int(sent.get("discountTypeId")) or 2, 0.0, 0.0
        if kind == 1:
            discount = _amount(sent.get("discountSum", 0))
            rate = 100 * discount / (exclusive + discount) if exclusive + discount else 0.0
        else:
            rate = _amount(sent.get("discountRate", 0))
            discount = exclusive * rate / (100 - rate) if rate < 100 else 0.0
        measure = as_int(sent.get("measureCode")) or 796
        return {
            "id": 0,
            "ownerId": deal.id,
            "ownerType": "D",
            "productId": product_id,
            "productName": name,
            "price": price,
            "priceAccount": price,
            "priceExclusive": round(exclusive, 2),
            "priceNetto": round(exclusive + discount, 2),
            "priceBrutto": round((exclusive + discount) * share, 2),
            "quantity": quantity,
            "discountTypeId": kind,
            "discountRate": round(rate, 2),
            "discountSum": round(discount, 2),
            "taxRate": None if tax in (None, "") else _amount(tax),
            "taxIncluded": "Y" if sent.get("taxIncluded") == "Y" else "N",
            "customized": "Y",
            "measureCode": measure,
            "measureName": _MEASURES.get(measure, ""),
            "sort": as_int(sent.get("sort")) or 10 * place,
            "xmlId": "",
            "type": product.type if product else 1,
            "storeId": None,
        }

    def _products(self, call: Call) -> Answer:
        selected = as_list(call.params.get("select"))
        if not {"id", "iblockId"} <= set(selected):
            raise Refused("200040300010", "Required select fields: id, iblockId")
        if not any(name.lstrip("=@") == "iblockId" for name in call.mapping("filter")):
            raise Refused("200040300010", "Required filter fields: iblockId")
        known = [
            {
                "id": product.id,
                "iblockId": product.iblock_id,
                "name": product.name,
                "xmlId": product.xml_id,
                "code": product.code or None,
                "type": product.type,
                "active": "Y",
                "parentId": None,
            }
            for product in self._portal().products
        ]
        return listed(call, known, _PRODUCT, "products")


def _amount(sent: Any) -> float:
    try:
        return float(sent or 0)
    except (TypeError, ValueError):
        raise Refused("0", f"Not a number: {sent}") from None
