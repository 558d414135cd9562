"""Whether portals of Bitrix24 let us in as far as their routes need it, and whether the routes can work."""

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import batched, product
from typing import Any

from bitrix_robot.keys import app_key, portal_key
from bitrix_robot.mapping import Definitions, definitions, mistakes
from crm_relay.bitrix24 import directory, items
from crm_relay.bitrix24.client import PAGE, Operation, batch
from crm_relay.bitrix24.products import catalog_products
from crm_relay.delivery.account import pause_key
from crm_relay.outcomes import Outcome
from crm_relay.settings import Bitrix24Field, Bitrix24Route
from workbench.cli.configuration import Finding
from workbench.cli.console import Problem, moment
from workbench.cli.portals import Connection, trouble

_MAIL = frozenset({"user", "user_basic"})
_STAGES = "DEAL_STAGE"


@dataclass(frozen=True, slots=True)
class Form:
    """What a portal says of its deals: fields, their titles, stages by id, and whether it tells options' XML_IDs."""

    definitions: Definitions
    titles: Mapping[str, str]
    stages: Mapping[str, str]
    tells_xml_ids: bool


@dataclass(frozen=True, slots=True)
class _Need:
    """One of `scopes` is needed; without it, `lacking` is what happens, and `good` says how bad that is."""

    scopes: frozenset[str]
    lacking: str
    good: bool | None = None


def findings(portals: Mapping[str, Connection], routes: Mapping[str, Bitrix24Route]) -> Iterator[Finding]:
    """Check these routes and their portals; portals without any route are checked beside them if all routes are."""
    known: dict[str, Form] = {}
    for name, connection in portals.items():
        form = yield from _portal(connection, [each for each in routes.values() if name in (each.source, each.hub)])
        if form is not None:
            known[name] = form
    for name, route in routes.items():
        if route.source in known and route.hub in known:
            yield from _route(name, route, portals, known)
        else:
            yield Finding(f"route {name}", None, "not checked: first mend what is said of its portals")


# Portals


def _portal(connection: Connection, routes: Sequence[Bitrix24Route]) -> Generator[Finding, None, Form | None]:
    what = f"Bitrix24 {connection.name}"
    yield from _calls(connection, what)
    pause = connection.relay.ports.store.get(pause_key(portal_key(connection.name)))
    if pause and pause.attributes["until"] > connection.now():
        until, why = moment(pause.attributes["until"]), pause.attributes["reason"]
        yield Finding(what, None, f"paused until {until} ({why}); deals wait, and go on by themselves then")
    host = connection.settings.host
    try:
        scopes = frozenset(connection.do(directory.scopes()))
        lacking = [need for need in _needs(connection, routes) if not need.scopes & scopes]
        for need in lacking:
            wanted = " or ".join(sorted(need.scopes))
            fix = f"tick {wanted} among the rights of the webhook or app in {connection.settings.domain}"
            yield Finding(what, need.good, f"the scope {wanted} is missing: {need.lacking}", fix)
        if any(need.good is False for need in lacking):
            return None
        form = read_form(connection)
    except Outcome as outcome:
        yield Finding(what, False, trouble(outcome, host), _fix(connection, outcome))
        return None
    except Problem as problem:
        yield Finding(what, False, str(problem))
        return None
    how = "by its webhook" if connection.secrets.webhook_url else "as an app"
    yield Finding(what, True, f"{host} lets us in {how}; scopes: {', '.join(sorted(scopes))}")
    return form


def _calls(connection: Connection, what: str) -> Iterator[Finding]:
    """Find what keeps a source from calling us."""
    if connection.settings.kind != "source":
        return
    if not connection.secrets.url_key:
        yield Finding(what, False, "there is no address that it could call", connection.fix("url_key"))
    if not connection.secrets.application_token and connection.relay.ports.store.get(app_key(connection.name)) is None:
        says = "without application_token only its built-in Webhook robot is let in: events and apps are refused"
        yield Finding(what, None, says, connection.fix("application_token"))


def _needs(connection: Connection, routes: Iterable[Bitrix24Route]) -> Iterator[_Need]:
    """Yield what we need of a portal (Bitrix24 reference, section 5)."""
    yield _Need(frozenset({"crm"}), "neither deals nor their fields can be read", good=False)
    yield _Need(_MAIL, "users cannot be matched by e-mail, so all deals get one responsible")
    if any(route.products.match != "none" for route in routes):
        yield _Need(frozenset({"catalog"}), "products cannot be matched, so rows go as free text")
    if connection.settings.kind == "source":
        yield _Need(frozenset({"im"}), "nobody is notified of a transfer")
        if connection.has_app:
            yield _Need(frozenset({"bizproc"}), "the app's robot can neither be installed nor answered")


def _fix(connection: Connection, outcome: Outcome) -> str:
    if type(outcome).__name__ not in ("Unauthorized", "TokenExpired"):
        return ""
    if connection.secrets.webhook_url:
        return connection.fix("webhook_url")
    return f"install the app in {connection.settings.domain} again"


def read_form(connection: Connection) -> Form:
    """Read what a portal says of its deals; raises Outcome and Problem."""
    read: dict[str, Operation[Any]] = {
        "fields": items.fields(items.DEAL),
        "user_fields": items.deal_user_fields(),
        "statuses": directory.statuses(),
    }
    told = connection.run(partial(batch, operations=read, now=connection.now()))
    fields, statuses = _unless_refused(told["fields"]), _unless_refused(told["statuses"])
    # The options' XML_IDs need more rights than all the rest.
    user_fields = told["user_fields"]
    stages = {
        str(each["STATUS_ID"]): str(each["NAME"]) for each in statuses if str(each["ENTITY_ID"]).startswith(_STAGES)
    }
    defined = definitions(
        fields, user_fields=() if isinstance(user_fields, Outcome) else user_fields, statuses=statuses
    )
    titles = {name: str(each.get("title") or "") for name, each in fields.items()}
    return Form(defined, titles, stages, not isinstance(user_fields, Outcome))


def _unless_refused(answer: Any) -> Any:
    if isinstance(answer, Outcome):
        raise answer
    return answer


# Routes


def _route(
    name: str, route: Bitrix24Route, portals: Mapping[str, Connection], known: Mapping[str, Form]
) -> Iterator[Finding]:
    what, key = f"route {name}", f"bitrix24.routes.{name}"
    source, hub = known[route.source], known[route.hub]
    wrong = [
        f"fields.{field}: XML_IDs of {portal} are for its CRM administrators alone"
        for field, rule in route.fields.items()
        if isinstance(rule, Bitrix24Field) and rule.match == "xml_id"
        for portal in (route.source, route.hub)
        if not known[portal].tells_xml_ids
    ]
    wrong += mistakes(
        route, source.definitions, hub.definitions, source_stages=source.stages.keys(), hub_stages=hub.stages.keys()
    )
    wrong += _of_responsible(route, portals[route.hub])
    for side in ("source", "hub"):
        wrong += _of_catalogs(route, side, portals[getattr(route, side)])
        wrong += _of_table(route, side, portals[getattr(route, side)])
    for mistake in wrong:
        yield Finding(what, False, f"{key}.{mistake}", _where_to_look(mistake, route, portals))
    for stage, target in route.stages.items():
        if stage in source.stages and target in hub.stages:
            from_, to = f"«{source.stages[stage]}» ({stage})", f"«{hub.stages[target]}» ({target})"
            yield Finding(what, True, f"{route.source}: {from_} → {route.hub}: {to}")
    if not wrong:
        yield Finding(what, True, f"both portals have all that it names; fields: {len(route.fields)}")


def _where_to_look(mistake: str, route: Bitrix24Route, portals: Mapping[str, Connection]) -> str:
    key, _, what = mistake.partition(": ")
    if not key.startswith(("stages", "fields", "constants")) and not key.endswith("_field"):
        return "mend it in relay.toml, or in the portal"
    name = route.source if what.startswith("the source") else route.hub
    return f"relay bitrix fields {name}{portals[name].target.option} shows what is there"


def _of_responsible(route: Bitrix24Route, hub: Connection) -> list[str]:
    if not route.responsible:
        return []
    try:
        found = hub.do(directory.users_by_email([route.responsible]))
    except Outcome as outcome:
        return [f"responsible: the hub's users cannot be read: {trouble(outcome, hub.settings.host)}"]
    if any(str(each.get("EMAIL")).casefold() == route.responsible.casefold() for each in found):
        return []
    return ["responsible: the hub shows no active user with this e-mail"]


def _of_catalogs(route: Bitrix24Route, side: str, connection: Connection) -> Iterator[str]:
    for catalog in getattr(route.products, f"{side}_catalogs"):
        try:
            if not connection.do(catalog_products(catalog, 0, filters={})):
                yield f"products.{side}_catalogs: the {side} shows no product in catalog {catalog}"
        except Outcome as outcome:
            why = trouble(outcome, connection.settings.host)
            yield f"products.{side}_catalogs: catalog {catalog} cannot be read: {why}"


def _of_table(route: Bitrix24Route, side: str, connection: Connection) -> Iterator[str]:
    table, catalogs = route.products.table, getattr(route.products, f"{side}_catalogs")
    named = set(map(int, table)) if side == "source" else set(table.values())
    if not catalogs:
        return  # nobody says where to look
    there: set[int] = set()
    for catalog, some in product(catalogs, list(batched(sorted(named), PAGE))):
        try:
            there |= {each["id"] for each in connection.do(catalog_products(catalog, 0, filters={"@id": some}))}
        except Outcome:
            return  # told of the catalog already
    for missing in sorted(named - there):
        yield f"products.table: the {side} shows no product {missing} in catalogs {', '.join(map(str, catalogs))}"
