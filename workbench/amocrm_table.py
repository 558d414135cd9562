"""The table of services in docs/amocrm.md, made from the rows: our client beside amoCRM's PHP library."""

import argparse
import inspect
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crm_relay.amocrm.services import Service, Services, listing, operation

GUIDE = Path(__file__).parents[1] / "docs/amocrm.md"
_BEGIN, _END = "<!-- services: begin -->\n", "<!-- services: end -->\n"

PHP: Mapping[str, str] = {  # amocrm-api-php 1.17, which added talks.get, users.activate and users.deactivate
    "account": "getCurrent",
    "leads": "get getOne add addOne update updateOne syncOne nextPage prevPage addComplex addOneComplex link unlink "
    "getLinks",
    "contacts": "get getOne add addOne update updateOne syncOne nextPage prevPage link unlink getLinks getChats "
    "linkChats",
    "companies": "get getOne add addOne update updateOne syncOne nextPage prevPage link unlink getLinks",
    "customers": "get getOne add addOne update updateOne syncOne nextPage prevPage link unlink getLinks setMode",
    "catalogs": "get getOne add addOne update updateOne syncOne nextPage prevPage",
    "catalog_elements": "get getOne add addOne update updateOne syncOne nextPage prevPage link unlink getLinks",
    "custom_fields": "get getOne add addOne updateOne syncOne deleteOne nextPage prevPage",
    "custom_field_groups": "get getOne add addOne updateOne syncOne deleteOne",
    "notes": "get getOne add addOne update updateOne syncOne nextPage prevPage getByParentId pin unpin",
    "tags": "get add addOne update updateOne nextPage prevPage",
    "tasks": "get getOne add addOne update updateOne syncOne nextPage prevPage",
    "links": "get add addOne delete",
    "users": "get getOne add addOne syncOne nextPage prevPage activate deactivate",
    "roles": "get getOne add addOne update updateOne syncOne deleteOne nextPage prevPage",
    "pipelines": "get getOne add addOne updateOne syncOne deleteOne",
    "statuses": "get getOne add addOne updateOne syncOne deleteOne",
    "loss_reasons": "get getOne add addOne updateOne syncOne deleteOne",
    "unsorted": "get getOne add addOne syncOne nextPage prevPage accept decline link summary",
    "customers_statuses": "get getOne add addOne updateOne syncOne deleteOne",
    "customers_segments": "get getOne addOne updateOne syncOne nextPage prevPage",
    "transactions": "get getOne add addOne syncOne deleteOne",
    "customers_bonus_points": "earnPoints redeemPoints",
    "calls": "add addOne",
    "events": "get getOne nextPage prevPage",
    "event_types": "get",
    "webhooks": "get subscribe unsubscribe",
    "widgets": "get getOne nextPage prevPage install uninstall",
    "products": "settings updateSettings",
    "talks": "get getOne close",
    "sources": "get getOne add addOne update updateOne syncOne deleteOne delete",
    "website_buttons": "get getOne nextPage prevPage createAsync updateAsync addOnlineChatAsync",
    "short_links": "get getOne add addOne",
    "chat_templates": "get getOne add addOne update updateOne syncOne deleteOne delete nextPage prevPage sendOnReview "
    "updateReviewStatus",
    "entity_subscriptions": "getByParentId nextPage prevPage",
    "currencies": "get nextPage prevPage",
    "files": "get getOne uploadOne updateOne syncOne deleteOne delete nextPage prevPage",
    "entity_files": "get add addOne deleteOne delete",
}
"""The methods of amocrm-api-php 1.17 by service (amoCRM reference, sections 1.2 to 1.4)."""

_OURS: Mapping[str, str] = {
    "getCurrent": "get",
    "get": "list",
    "getOne": "get",
    "addOne": "add_one add",
    "syncOne": "sync",
    "prevPage": "previous_page",
    "addOneComplex": "add_one_complex",
    "getLinks": "links",
    "getByParentId": "of list",
    "earnPoints": "earn",
    "redeemPoints": "redeem",
    "createAsync": "create",
    "updateAsync": "update",
    "addOnlineChatAsync": "add_online_chat",
    "uploadOne": "upload",
    "deleteOne": "delete_one delete",
    "getChats": "chats",
}
"""What we call them, where it is not the same but for its spelling; the first that a service has."""


def accessors() -> dict[str, type[Service[Any, Any]]]:
    """Return the services by the name that a client has them under."""
    found = {name: type(one) for name, one in vars(Services(None)).items() if isinstance(one, Service)}  # type: ignore[arg-type]
    for name, method in inspect.getmembers(Services, inspect.isfunction):
        kind = method.__annotations__.get("return")
        kind = getattr(kind, "__origin__", None)
        if inspect.isclass(kind) and issubclass(kind, Service):
            found[name] = kind
    return found


def operations_of(kind: type[Service[Any, Any]]) -> list[str]:
    """Return the names of what can be done with a service."""
    return [name for name, one in inspect.getmembers_static(kind) if isinstance(one, operation | listing)]


def gaps() -> list[str]:
    """Return the methods of the PHP library that we have nothing for."""
    ours = accessors()
    return [
        f"{name}.{method}"
        for name, methods in PHP.items()
        for method in methods.split()
        if name not in ours or _our(ours[name], method) is None
    ]


def table() -> str:
    """Return the table."""
    lines = [
        "| Service | Path | Items come with (`with_`) | Filter | Ours | The PHP library's |",
        "|---|---|---|---|---|---|",
    ]
    for name, kind in sorted(accessors().items()):
        has = operations_of(kind)
        cells = (
            f"`{name}`",
            f"`{kind.row.path}`",
            _code(kind.row.with_.split()),
            f"`{kind.filter.__name__}`" if "list" in has else "",
            _code(has),
            _code(PHP.get(name, "").split()),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def text(guide: str) -> str:
    """Return the guide with the table in its place."""
    before, begin, rest = guide.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    return f"{before}{begin}\n{table()}\n{end}{after}"


def _our(kind: type[Service[Any, Any]], method: str) -> str | None:
    has = operations_of(kind)
    names = _OURS.get(method, re.sub(r"(?=[A-Z])", "_", method).lower()).split()
    return next((name for name in names if name in has), None)


def _code(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the table into the guide, or check that it is there as it should be."""
    parser = argparse.ArgumentParser(prog="python -m workbench.amocrm_table", description="List amoCRM's services.")
    parser.add_argument("--check", action="store_true", help="only tell whether the table is up to date, without gaps")
    checks = parser.parse_args(arguments).check
    if missing := gaps():
        sys.exit(f"the PHP library can do what we cannot: {', '.join(missing)}")
    guide = GUIDE.read_text("utf-8")
    if not checks:
        GUIDE.write_text(text(guide), "utf-8")
    elif text(guide) != guide:
        sys.exit("docs/amocrm.md does not list the services as they are; run python -m workbench.amocrm_table")


if __name__ == "__main__":
    main()
