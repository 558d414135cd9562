"""`relay deliveries`: what the table knows of calls and leads on their way, read as the functions read it."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from amo_webhook.change import KIND as NOTE
from bitrix_robot.order import DEAL
from bitrix_robot.order import KIND as TRANSFER
from crm_relay.amocrm.resources import Card
from crm_relay.cartelcrm.callbacks import KIND as CALLBACK
from crm_relay.cartelcrm.leads import SUBMISSION as LEAD
from crm_relay.cartelcrm.leads import Lead
from crm_relay.delivery.ledger import Effect, State
from crm_relay.delivery.outbox import SHARDS, kept_body
from crm_relay.delivery.ports import Item, Store
from crm_relay.settings import Settings, load_settings
from workbench.cli.console import (
    JsonOption,
    Problem,
    RegionOption,
    StackOption,
    age,
    examples,
    facts,
    flag,
    moment,
    out,
    print_json,
    print_keyed,
    say,
    shown,
    table,
    tell,
)
from workbench.cli.target import Target

if TYPE_CHECKING:
    from workbench.cli.world import World

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="See what is on its way, what waits, and what needs a person."
)

KINDS = (LEAD, CALLBACK, NOTE, TRANSFER, DEAL)
"""The kinds of effects: under which of them a bare key is looked for."""

_WAITING = "WAITING"
_QUARANTINE = "QUARANTINE"
_OUTBOX = "OUTBOX"
_ATTENTION = {
    _WAITING: (_WAITING,),
    State.REJECTED.value: (State.REJECTED.value,),
    State.GIVEN_UP.value: (State.GIVEN_UP.value,),
    State.NEEDS_RECONCILE.value: (State.NEEDS_RECONCILE.value,),
    _QUARANTINE: (_QUARANTINE,),
    _OUTBOX: tuple(f"{_OUTBOX}#{shard}" for shard in range(SHARDS)),
}
"""The states of `list`, and where the index has them."""
_COLOURS = {
    _WAITING: "yellow",
    "PLANNED": "yellow",
    "SENT": "yellow",
    "CONFIRMED": "green",
    "REJECTED": "red",
    "GIVEN_UP": "red bold",
    "NEEDS_RECONCILE": "red bold",
    _QUARANTINE: "magenta",
    _OUTBOX: "yellow",
}
_TITLES = {"effect": "Effect", "inbound": "Inbox", "lead": "Lead", "quarantine": "Quarantine", "outbox": "Outbox"}
_MOMENTS = ("lease_until", "status_at")
_NESTED = ("result", "notes", "origin")
_SEARCHED = 1000


@app.command(
    "list",
    epilog=examples(
        "relay deliveries list",
        "relay deliveries list --state REJECTED --json",
        "relay deliveries list --all --limit 500 --stack crm-relay",
    ),
)
def list_(
    ctx: typer.Context,
    *,
    state: Annotated[
        str | None, typer.Option(metavar="STATE", help=f"One of {', '.join([*_ATTENTION, 'CONFIRMED (with --all)'])}.")
    ] = None,
    all_: Annotated[bool, flag("--all", meaning="What is done, too: this reads the whole table.")] = False,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="How many to show, of each state.")] = 50,
    stack: StackOption = None,
    region: RegionOption = None,
    as_json: JsonOption = False,
) -> None:
    """List what waits, was refused, or needs a person.

    WAITING is for the CRM and needs nobody. REJECTED: the CRM refused.
    GIVEN_UP: it waited too long and was surely not done; its message is a
    dead letter. NEEDS_RECONCILE: nobody could find out whether it was done. QUARANTINE:
    genuine, but nothing can be made of it. OUTBOX: waits for a queue.
    """
    world: World = ctx.obj
    target = Target.of(world, stack, region)
    wanted = state.upper() if state else None
    if all_:
        tell("[dim]This reads the whole table.[/]")
        items = list(islice(_of_state(_scanned(target), wanted), limit))
    elif wanted and wanted not in _ATTENTION:
        raise typer.BadParameter(f"{wanted} is none of {', '.join(_ATTENTION)}; other states need --all")
    else:
        states = (wanted,) if wanted else tuple(_ATTENTION)
        items = [item for each in states for item in _attention(target.store, each, limit)]
    if as_json:
        print_json([_as_json(item) for item in items])
        return
    queued = {pair.name: target.depth(pair.url) for pair in target.queues}
    if not items and (all_ or wanted):
        say("Nothing is there.")
        return
    if not items and not any(queued.values()):
        say("[green]Nothing waits, and nothing needs anybody.[/]")
        return
    if any(queued.values()):
        # A message is in the list once a worker has looked at it.
        counts = ", ".join(f"{name} {number}" for name, number in queued.items())
        tell(f"[dim]In the queues, looked at or not: {counts}.[/]")
    now = world.clock.time()
    for item in items:
        _print_line(item, now)


@app.command(
    epilog=examples(
        "relay deliveries show order-17",
        "relay deliveries show 3f2a9c81d04b",
        "relay deliveries show 3f2a9c81d04b --reveal",
    )
)
def show(
    ctx: typer.Context,
    key: Annotated[
        str,
        typer.Argument(
            metavar="KEY",
            help="A key from the list, your external_id, CartelCRM's id of a lead; the id of a card or deal.",
        ),
    ],
    *,
    reveal: Annotated[bool, flag("--reveal", meaning="Bodies that are kept, too. They hold personal data.")] = False,
    stack: StackOption = None,
    region: RegionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show all that the table has of one delivery: its effect, when it came, its lead.

    By the id of a card in amoCRM, or of a deal in Bitrix24, it shows the
    note of the card's beginning, the deal's transfers, and what waits or
    needs a person; notes of changes that are done have keys of their own.
    """
    world: World = ctx.obj
    target = Target.of(world, stack, region)
    items = _found(target.store, key, lambda: _by_number(load_settings(world.config_of(target.name)), key))
    if not items:
        raise Problem(f"The table has nothing by the name of {key}.")
    if as_json:
        print_json([_as_json(item, reveal=reveal) for item in items])
        return
    for item in items:
        _print(item, reveal=reveal)


def _attention(store: Store, state: str, limit: int) -> Iterator[Item]:
    keys = [key for place in _ATTENTION[state] for key in store.attention(place, limit=limit)]
    if len(keys) >= limit:
        tell(f"[yellow]There may be more in {state} than these {limit}; --limit shows them.[/]")
    for key in keys[:limit]:
        # The index lags behind the table, which has the last word.
        if (item := store.get(key)) and item.attention in _ATTENTION[state]:
            yield item


def _scanned(target: Target) -> Iterator[Item]:
    pages = target.dynamodb.get_paginator("scan").paginate(
        TableName=target.output("TableName"), ProjectionExpression="#key", ExpressionAttributeNames={"#key": "key"}
    )
    for page in pages:
        for found in page["Items"]:
            key = found["key"]["S"]
            if key.startswith(("effect#", "quarantine#", "outbox#")) and (item := target.store.get(key)):
                yield item


def _of_state(items: Iterable[Item], wanted: str | None) -> Iterator[Item]:
    return (item for item in items if wanted in (None, _state(item), _attention_of(item)))


def _found(store: Store, name: str, by_number: Callable[[], Iterable[str]]) -> list[Item]:
    """Return the items that a name may mean, and those that belong to them."""
    names = [name, f"effect#{name}", f"inbound#{name}", f"lead#{name}"]
    names += [f"{prefix}#{kind}#{name}" for kind in KINDS for prefix in ("effect", "inbound")]
    items = {key: item for key in names if (item := store.get(key))}
    if not items and name.isdecimal():
        keys = [*by_number(), *(key for key in _needing(store) if name in key.split("#")[2:])]
        items = {key: item for key in keys if (item := store.get(key))}
    if not items:
        items = {key: item for key in _abbreviated(store, name) if (item := store.get(key))}
    for item in list(items.values()):
        for key in _belonging(item):
            if key not in items and (other := store.get(key)):
                items[key] = other
    order = [*_TITLES, *map(_prefix, items.values())]
    return sorted(items.values(), key=lambda item: order.index(_prefix(item)))


def _abbreviated(store: Store, beginning: str) -> list[str]:
    """Return the one key, of what waits or needs a person, whose digest begins so."""
    matching = [key for key in _needing(store) if key.split("#", 2)[-1].startswith(beginning)]
    if len(matching) > 1:
        raise Problem(f"{beginning} is the beginning of {len(matching)} keys: {', '.join(matching[:5])}")
    return matching


def _needing(store: Store) -> Iterator[str]:
    """Yield the keys of what waits or needs a person."""
    for places in _ATTENTION.values():
        for place in places:
            yield from store.attention(place, limit=_SEARCHED)


def _by_number(settings: Settings, number: str) -> Iterator[str]:
    """Yield the keys of effects that a card of amoCRM, or a deal of Bitrix24, has once."""
    for account in settings.amocrm.accounts:
        for card in get_args(Card.__value__):
            yield f"effect#{NOTE}#{account}#{card}#{number}#add#0"
    for name, route in settings.bitrix24.routes.items():
        yield f"effect#{DEAL}#{route.source}#{number}#{name}"


def _belonging(item: Item) -> Iterator[str]:
    prefix, _, name = item.key.partition("#")
    attributes = item.attributes
    match prefix:
        case "effect":
            yield f"inbound#{name}"
            if name.startswith(f"{LEAD}#") and (lead_id := (attributes["result"] or {}).get("id")):
                yield f"lead#{lead_id}"
        case "inbound":
            yield f"effect#{name}"
        case "lead" if attributes["external_id"]:
            yield f"effect#{LEAD}#{attributes['external_id']}"
            yield f"inbound#{LEAD}#{attributes['external_id']}"
        case _:
            pass


def _prefix(item: Item) -> str:
    return item.key.partition("#")[0]


def _attention_of(item: Item) -> str | None:
    return item.attention.partition("#")[0] if item.attention else None


def _state(item: Item) -> str:
    return Effect.read(item.attributes).state if _prefix(item) == "effect" else (_attention_of(item) or "")


def _print_line(item: Item, now: float) -> None:
    _, kind, key = [*item.key.split("#", 2), ""][:3]
    parts = [kind, f"for {age(now - item.updated_at)}"]
    why = item.attributes.get("reason", "")
    if _prefix(item) == "effect":
        effect = Effect.read(item.attributes)
        parts += [f"retries: {retries}"] if (retries := effect.tries + effect.waits) else []
        why = effect.last_error or (effect.result or {}).get("reason", "")
    state = _attention_of(item) or _state(item)
    colour = _COLOURS.get(state, "default")
    print_keyed(key, [f"[{colour}]{shown(state)}[/]", *map(shown, [*parts, why] if why else parts)])


def _as_json(item: Item, *, reveal: bool = False) -> dict[str, Any]:
    attributes = {name: value for name, value in item.attributes.items() if name != "body"}
    if reveal and "body" in item.attributes:
        attributes["body"] = kept_body(item).decode("utf-8", "backslashreplace")
    return {
        "key": item.key,
        "attention": item.attention,
        "updated_at": item.updated_at,
        "expires_at": item.expires_at,
        **attributes,
    }


def _print(item: Item, *, reveal: bool) -> None:
    prefix = _prefix(item)
    say(f"[bold]{_TITLES.get(prefix, prefix)}[/]  {shown(item.key.partition('#')[2])}")
    known = {
        name: value
        for name, value in item.attributes.items()
        if name not in ("body", "history", "sha256", *_MOMENTS, *_NESTED)
    }
    for name in _MOMENTS:
        if at := item.attributes.get(name):
            known[name] = moment(at)
    for name in _NESTED:
        if inner := item.attributes.get(name):
            known |= {f"{name}.{key}": value for key, value in inner.items()}
    out.print(facts({**known, "written": moment(item.updated_at), "attention": item.attention}))
    if prefix == "lead":
        _print_history(Lead.read(item.attributes))
    if "body" in item.attributes:
        _print_body(kept_body(item), reveal=reveal)
    out.print()


def _print_history(lead: Lead) -> None:
    rows = table("when", "event", "status", "applied")
    for entry in lead.history:
        applied = "yes" if entry["applied"] else "[dim]no[/]"
        rows.add_row(moment(entry["timestamp"]), shown(entry["event"]), shown(entry["status"]), applied)
    if lead.history:
        out.print(rows)


def _print_body(body: bytes, *, reveal: bool) -> None:
    if reveal:
        text = body.decode("utf-8", "backslashreplace")
        out.print("\n".join(shown(line) for line in text.splitlines()), soft_wrap=True)
    else:
        say(f"[dim]Its body has {len(body)} bytes; --reveal shows them, personal data included.[/]")
