"""`relay bitrix`: check portals and routes of Bitrix24, list fields, install our robot, carry one deal by hand."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from bitrix_robot.order import Order
from crm_relay.bitrix24 import directory, robots
from crm_relay.bitrix24.client import Refused
from crm_relay.bitrix24.items import field_name
from crm_relay.delivery.ledger import Ledger, State
from crm_relay.delivery.runtime import Runtime
from crm_relay.observability import logger
from crm_relay.outcomes import NotConfigured, Outcome, Rejected
from crm_relay.settings import ConfigurationError
from workbench.cli import bitrix_check
from workbench.cli.check import report
from workbench.cli.console import (
    JsonOption,
    Problem,
    RegionOption,
    StackOption,
    YesOption,
    confirm,
    examples,
    flag,
    out,
    print_json,
    say,
    shown,
    table,
    tell,
)
from workbench.cli.portals import Connection, Portals, trouble
from workbench.cli.target import Target
from workbench.transfer_robot import CODE, NAME, transfer_robot

if TYPE_CHECKING:
    from workbench.cli.world import World

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Check the portals of Bitrix24, and carry deals between them."
)
robot = typer.Typer(no_args_is_help=True, add_completion=False, help="The app's robot, which people put on a stage.")
app.add_typer(robot, name="robot")

_WHY = {
    "wrong_stage": "it is not, and never was, in a stage of the route ({stages})",
    "deal_not_found": "its portal has no such deal, or does not show it to us",
    "came_from_hub": "it came from the hub itself",
}

PortalArgument = Annotated[str, typer.Argument(metavar="PORTAL", help="The portal, as relay.toml calls it.")]


@app.command(
    epilog=examples("relay bitrix check", "relay bitrix check main --stack crm-relay", "relay bitrix check --json")
)
def check(
    ctx: typer.Context,
    route: Annotated[
        str | None, typer.Argument(metavar="[ROUTE]", help="A route of relay.toml; else all, and all portals.")
    ] = None,
    *,
    stack: StackOption = None,
    region: RegionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check portals and routes, and say what to fix.

    Whether each portal lets us in, with which rights, and whether both
    portals of a route have the stages, fields, options, products and the
    responsible that it names. Nothing is changed.
    Exit code 1: something must be fixed.
    """
    known = _known(ctx.obj, stack, region)
    if not known.connections:
        raise Problem("relay.toml has no portal of Bitrix24. It would be [bitrix24.portals.NAME].")
    if route is None:
        report(bitrix_check.findings(known.connections, known.routes), as_json=as_json)
        return
    chosen = known.route(route)
    portals = {name: known.portal(name) for name in (chosen.source, chosen.hub)}
    report(bitrix_check.findings(portals, {route: chosen}), as_json=as_json)


@app.command(epilog=examples("relay bitrix fields partner", "relay bitrix fields hub --stack crm-relay"))
def fields(
    ctx: typer.Context,
    name: PortalArgument,
    *,
    stack: StackOption = None,
    region: RegionOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the stages and fields of a portal's deals, as relay.toml names them.

    A deal's stages and its fields, with their titles, types and options:
    what a route's stages, fields and constants may name.
    """
    connection = _known(ctx.obj, stack, region).portal(name)
    with _in_words(connection):
        form = bitrix_check.read_form(connection)
    if as_json:
        listed = {
            field_name(field): {
                "title": form.titles[field],
                "type": each.type,
                "multiple": each.multiple,
                "read_only": each.read_only,
                "options": [option.text for option in each.options],
            }
            for field, each in form.definitions.items()
        }
        print_json({"stages": form.stages, "fields": listed})
        return
    stages, rows = table("stage", "title"), table("field", "title", "type", "options")
    for stage, title in form.stages.items():
        stages.add_row(shown(stage), shown(title))
    for field, each in sorted(form.definitions.items()):
        kind = [each.type, *["multiple"] * each.multiple, *["read only"] * each.read_only]
        options = [option.text for option in each.options]
        rows.add_row(*map(shown, (field_name(field), form.titles[field], ", ".join(kind), ", ".join(options))))
    for listed_names in (stages, rows):
        listed_names.columns[0].no_wrap = True  # to be copied
        out.print(listed_names)


@app.command(epilog=examples("relay bitrix address partner", "relay bitrix address partner --reveal --route main"))
def address(
    ctx: typer.Context,
    name: PortalArgument,
    *,
    route: Annotated[str | None, typer.Option(metavar="NAME", help="The route, where the portal has several.")] = None,
    reveal: Annotated[bool, flag("--reveal", meaning="Print it whole; it is as good as a key.")] = False,
    stack: StackOption = None,
    region: RegionOption = None,
) -> None:
    """Show where a portal's calls are to lead.

    To be pasted into its Webhook robot, its outgoing webhook, or its app.
    """
    known = _known(ctx.obj, stack, region)
    connection = known.portal(name)
    if route is not None and known.route(route).source != name:
        raise Problem(f"The route {route} begins at {known.route(route).source}, not at {name}.")
    url = connection.call_url if reveal else _masked(connection.call_url)
    typer.echo(f"{url}?route={route}" if route else url)


# The robot


@robot.command(
    epilog=examples(
        "relay bitrix robot install partner", "relay bitrix robot install partner --user 7 --yes --stack crm-relay"
    )
)
def install(
    ctx: typer.Context,
    name: PortalArgument,
    *,
    user: Annotated[
        int | None,
        typer.Option(min=1, metavar="ID", help="Whose token comes in its calls; else who installed the app."),
    ] = None,
    title: Annotated[str, typer.Option("--name", metavar="NAME", help="As people see it.")] = NAME,
    yes: YesOption = False,
    stack: StackOption = None,
    region: RegionOption = None,
) -> None:
    """Register the app's robot in a portal, or register it anew.

    People then find it under the automation of deals. It asks for the
    route, waits until the deal is in the hub, and gives back esb_deal_id
    and status. No incoming webhook may do this: it takes an app.
    """
    known = _known(ctx.obj, stack, region)
    connection = known.portal(name)
    routes = sorted(key for key, each in known.routes.items() if each.source == name)
    if not routes:
        raise Problem(f"No route of relay.toml begins at {name}, so a robot would have nothing to do.")
    handler = connection.call_url
    with _in_words(connection):
        installed = CODE in connection.do_as_app(robots.list_robots())
        if installed:
            confirm(f"The robot is in {name} already. Register it anew?", yes=yes)
            connection.do_as_app(robots.delete_robot(CODE))
        user_id = user or int(connection.do_as_app(directory.profile())["ID"])
        connection.do_as_app(transfer_robot(handler, routes, user_id=user_id, name=title))
    say(f"The robot «{shown(title)}» is in {shown(name)}, and calls {shown(_masked(handler))}")
    tell(f"Routes to choose from: {', '.join(routes)}. After a change of routes, install it again.")


@robot.command("list", epilog=examples("relay bitrix robot list partner", "relay bitrix robot list partner --json"))
def list_(
    ctx: typer.Context,
    name: PortalArgument,
    *,
    stack: StackOption = None,
    region: RegionOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the app's robots in a portal."""
    connection = _known(ctx.obj, stack, region).portal(name)
    with _in_words(connection):
        codes = connection.do_as_app(robots.list_robots())
    if as_json:
        print_json([{"code": code, "ours": code == CODE} for code in codes])
        return
    rows = table("robot", "whose")
    for code in codes:
        rows.add_row(shown(code), "ours" if code == CODE else "another's")
    out.print(rows if codes else "No robots.")


@robot.command(epilog=examples("relay bitrix robot remove partner", "relay bitrix robot remove partner --yes"))
def remove(
    ctx: typer.Context,
    name: PortalArgument,
    *,
    code: Annotated[str, typer.Option(metavar="CODE", help="Another robot of the app.")] = CODE,
    yes: YesOption = False,
    stack: StackOption = None,
    region: RegionOption = None,
) -> None:
    """Remove the app's robot from a portal: where people have put it, it does nothing any more."""
    connection = _known(ctx.obj, stack, region).portal(name)
    with _in_words(connection):
        if code not in connection.do_as_app(robots.list_robots()):
            raise Problem(f"The app has no robot {code} in {name}.")
        confirm(f"Remove the robot {code} from {name}? Stages that have it do not call us any more.", yes=yes)
        connection.do_as_app(robots.delete_robot(code))
    tell(f"The robot {shown(code)} is removed from {shown(name)}.")


# One deal


@app.command(
    epilog=examples(
        "relay bitrix transfer 662 --route main --dry-run", "relay bitrix transfer 662 --route main --stack crm-relay"
    )
)
def transfer(
    ctx: typer.Context,
    deal: Annotated[int, typer.Argument(min=1, metavar="DEAL", help="The deal's id in the source.")],
    *,
    route: Annotated[str, typer.Option(metavar="NAME", help="The route of relay.toml.")],
    dry_run: Annotated[
        bool, flag("--dry-run", meaning="Show the hub's deal that would be made, and write nothing.")
    ] = False,
    stack: StackOption = None,
    region: RegionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Have a deal carried to the hub, as its portal's call would.

    It is queued; a deal that is in the hub already stays as it is, unless
    its route updates. --dry-run reads both portals and changes nothing.
    """
    known = _known(ctx.obj, stack, region)
    settings, ports = known.route(route), known.relay.ports
    order = Order(settings.source, deal, route, expected=True)
    if dry_run:
        _show_dry_run(known.relay, order, as_json=as_json)
        return
    effect = Ledger(ports.store, ports.clock).find(order.transfer)
    if effect and effect.state is State.CONFIRMED and settings.on_repeat == "nothing":
        told = {"transfer_id": order.transfer_id, "queued": False, **(effect.result or {})}
    else:
        ports.queue.send(order.envelope(call=str(uuid.uuid4()), now=ports.clock.time()).encode())
        told = {"transfer_id": order.transfer_id, "queued": True}
    if as_json:
        print_json({**told, "delivery": order.transfer})
        return
    if not told["queued"]:
        tell(
            f"Deal {deal} is in the hub already, as {told['hub_deal']}; {shown(route)} changes nothing there any more."
        )
    else:
        tell(f"Queued as {shown(order.transfer_id)}. Once a worker has it, this tells how it goes:")
    say(f"relay deliveries show {deal}{known.portal(settings.source).target.option}")


def _show_dry_run(relay: Runtime, order: Order, *, as_json: bool) -> None:
    from workbench.cli import dry_run  # noqa: PLC0415 (slow: all of the worker)

    logger.setLevel("CRITICAL")  # what matters is shown
    try:
        made = dry_run.dry_run(relay, order)
    except Refused as refusal:
        raise Problem(f"Bitrix24 refuses ({refusal}): {refusal.text}") from None
    except Rejected as refusal:
        stages = ", ".join(relay.settings.bitrix24.routes[order.route].stages)
        why = _WHY.get(refusal.reason, refusal.reason).format(stages=stages)
        raise Problem(f"Deal {order.deal} would not be carried: {why}.") from None
    except NotConfigured:
        raise Problem(f"A portal has no way in yet; `relay bitrix check {order.route}` says which.") from None
    except Outcome as outcome:
        raise Problem(f"{trouble(outcome, 'a portal')}; `relay bitrix check {order.route}` says more.") from None
    if as_json:
        print_json(made)
    else:
        dry_run.show(made)


def _known(world: "World", stack: str | None, region: str | None) -> Portals:
    target = Target.of(world, stack, region)
    try:
        return Portals.of(target, world, world.config if target.name else world.local_config)
    except ConfigurationError as error:
        raise Problem(f"{error}; `relay check` says more.") from None


@contextmanager
def _in_words(connection: Connection) -> Iterator[None]:
    """Turn what a portal has against it into a Problem."""
    try:
        yield
    except Outcome as outcome:
        raise Problem(f"{trouble(outcome, connection.settings.host)}.") from None


def _masked(call_url: str) -> str:
    return f"{call_url.rpartition('/')[0]}/…"
