"""Product rows of deals, and the products that they name (Bitrix24 reference, section 3.4)."""

from collections.abc import Mapping, Sequence
from typing import Any

from crm_relay.bitrix24.client import Operation, mapping, rows, with_id

type Row = dict[str, Any]


def deal_rows(deal_id: int | str, *, start: int = 0) -> Operation[list[Row]]:
    """Read a page of a deal's rows; a page of 50 may have another behind it, at `start` + 50."""
    params = {"filter": {"=ownerType": "D", "=ownerId": deal_id}, "order": {"id": "ASC"}, "start": start}
    return Operation("crm.item.productrow.list", params, _rows)


def set_deal_rows(deal_id: int | str, new: Sequence[Mapping[str, Any]]) -> Operation[list[Row]]:
    """Replace all rows of a deal, which the same call again would not change; return them as they were saved.

    An empty list needs `client.call`: it leaves no trace in the form of a batch, which is then refused.
    """
    params = {"ownerType": "D", "ownerId": deal_id, "productRows": [dict(row) for row in new]}
    return Operation("crm.item.productrow.set", params, _rows)


def catalog_products(catalog_id: int, last: int, *, filters: Mapping[str, Any]) -> Operation[list[dict[str, Any]]]:
    """Read the 50 products or variations of a catalog that follow the id `last`: `id`, `xmlId`, `name`.

    `filters` such as {"@id": [12, 13]}, {"@xmlId": […]} or {"@name": […]}.
    """
    params = {
        "select": ["id", "iblockId", "xmlId", "name"],
        "filter": {**filters, "iblockId": catalog_id, ">id": last},
        "order": {"id": "ASC"},
        "start": -1,
    }
    return Operation(
        "catalog.product.list", params, lambda result: list(map(with_id, rows(mapping(result).get("products"))))
    )


def _rows(result: Any) -> list[Row]:
    return rows(mapping(result).get("productRows"))
