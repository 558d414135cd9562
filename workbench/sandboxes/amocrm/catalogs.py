"""Catalogs (lists) with their elements, and the settings of products."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from workbench.sandboxes.amocrm.bodies import FieldBody
from workbench.sandboxes.amocrm.calls import NOT_ALLOWED, NOT_FOUND, Body, Call, Mistake, hal, whole
from workbench.sandboxes.amocrm.custom_fields import fill
from workbench.sandboxes.amocrm.services import CATALOGS, ELEMENTS
from workbench.sandboxes.amocrm.tables import Record, Table
from workbench.sandboxes.wire import SandboxResponse


class _SettingsBody(Body):
    is_enabled: bool


class Catalogs:
    """The catalogs of an account."""

    def __init__(self, hex_id: Callable[[], str]) -> None:
        self.catalogs = Table(CATALOGS, hex_id)
        self.elements = Table(ELEMENTS, hex_id, check=_check_fields, show=_invoice)
        self._products_enabled = False
        self._products: int | None = None

    def answer(self, call: Call, path: Sequence[str]) -> SandboxResponse:
        """`api/v4/catalogs…`: the catalogs and their elements."""
        match path:
            case [id_, "elements", *rest] if self.has(id_):
                return self.elements.answer(call, rest, at=f"catalogs/{id_}/elements", within={"catalog_id": int(id_)})
            case _:
                return self.catalogs.answer(call, path)

    def has(self, id_: str) -> bool:
        """Whether there is a catalog of that id."""
        return whole(id_) in self.catalogs.records

    def element(self, catalog_id: str, id_: str) -> Record | None:
        """One element of a catalog."""
        element = self.elements.records.get(whole(id_) or 0)
        return element if element and element["catalog_id"] == whole(catalog_id) else None

    def products(self, call: Call, path: Sequence[str]) -> SandboxResponse:
        """`api/v4/catalogs/products/settings`, which vendor pages call `api/v4/products/settings`."""
        match call.request.method, path:
            case "GET", ["settings"]:
                pass
            case "PATCH", ["settings"]:
                self._products_enabled = call.item(_SettingsBody).body.is_enabled
                if self._products_enabled and self._products is None:
                    by = {"created_by": call.by, "updated_by": call.by, "created_at": call.now, "updated_at": call.now}
                    self._products = self.catalogs.put({"name": "Товары", "type": "products", **by})["id"]
            case _, ["settings"]:
                return NOT_ALLOWED
            case _:
                return NOT_FOUND
        links = {"self": call.href("catalogs/products/settings")}
        return hal({"is_enabled": self._products_enabled, "catalog_id": self._products, "_links": links})


def _check_fields(call: Call, sent: Record, record: Record | None) -> Sequence[Mistake]:
    return check_fields(call, f"catalogs/{sent.get('catalog_id') or (record or {})['catalog_id']}", sent, record)


def check_fields(call: Call, owner: str, sent: Record, record: Record | None) -> Sequence[Mistake]:
    """Put the custom fields that were sent into the shape in which they are read, beside those that there were."""
    given = sent.get("custom_fields_values")
    if given is None:
        return []
    mistakes: list[Mistake] = []
    bodies = [FieldBody.model_validate(each) for each in given]
    filled = fill(call.account.custom_fields.get(owner, ()), bodies, mistakes)
    before = (record or {}).get("custom_fields_values") or []
    kept: list[dict[str, Any]] = [field for field in before if field["field_id"] not in filled]
    sent["custom_fields_values"] = [*kept, *(field.view() for field in filled.values() if field)] or None
    return mistakes


def _invoice(call: Call, element: Record) -> Mapping[str, object]:
    if "invoice_link" not in call.with_:
        return {}
    return {"invoice_link": f"https://{call.account.host}/invoices/{element['id']}"}
