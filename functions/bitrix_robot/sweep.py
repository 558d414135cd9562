"""Every ten minutes: deals that came to a route's stage, and of which no call has told, are put into the queue.

Bitrix24 never repeats a call (reference, section 2.0), but it keeps each move of a deal between stages. A move is a gap
if the ledger has not heard of its deal since. What it has heard of since has its message, or had it: one that was
refused was told of, and one that was given up is among the dead letters, where it is an operator's; both are taken up
when their deal comes to a stage of the route once more. Where a deal is in the hub, and stays there as it is, there is
no gap.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import takewhile
from typing import Any

from bitrix_robot.keys import portal_key
from bitrix_robot.order import Order
from bitrix_robot.portal import Portal, http_client, portal
from crm_relay.bitrix24.client import DEADLINE, PAGE, row_id
from crm_relay.bitrix24.items import latest_stage_history, moved_at, stage_history_after
from crm_relay.delivery.inbox import make_all_durable
from crm_relay.delivery.ledger import Effect, Ledger
from crm_relay.delivery.ports import StorageError, update
from crm_relay.delivery.runtime import Runtime, prepare, runtime
from crm_relay.delivery.worker import LambdaContext
from crm_relay.http_api import Event, Unavailable
from crm_relay.observability import count, log_failure, log_fault, logger, needs_attention, observed
from crm_relay.outcomes import NotConfigured, Outcome, Rejected, Unreachable
from crm_relay.settings import Bitrix24Route

_NEEDS_SECONDS = 2 * DEADLINE
_CALL_TAKES = 180
"""Seconds in which a call comes and its transfer begins: younger moves are left to the next sweep."""

type _Move = Mapping[str, Any]


@observed(refuse=None)
def handler(_event: Event, context: LambdaContext) -> dict[str, int | None]:
    """Sweep every source portal; return how many transfers were queued by portal, None where that failed."""
    relay = runtime()
    swept: dict[str, int | None] = {}
    for name, settings in relay.settings.bitrix24.portals.items():
        routes = {key: route for key, route in relay.settings.bitrix24.routes.items() if route.source == name}
        if settings.kind != "source" or not routes:
            continue
        if context.get_remaining_time_in_millis() < _NEEDS_SECONDS * 1000:
            needs_attention("no time to sweep all portals", done=len(swept))
            break
        until = relay.ports.clock.time() + context.get_remaining_time_in_millis() / 1000
        swept[name] = _swept(relay, name, routes, until)
    return swept


def _swept(relay: Runtime, name: str, routes: Mapping[str, Bitrix24Route], until: float) -> int | None:
    try:
        source = portal(relay, name)
        source.until = until
        return _sweep(relay, source, routes)
    except NotConfigured:
        needs_attention("portal not configured", portal=name)
    except Rejected as refusal:  # about which the portal's door has nothing to say
        needs_attention("portal cannot be swept", portal=name, reason=refusal.reason)
    except (Outcome, Unavailable) as outcome:  # where somebody has to do something, the portal's door has said so
        logger.warning("portal not swept", portal=name, reason=str(outcome))
    except StorageError as error:
        log_failure("portal not swept", error, portal=name)
    except Exception as error:  # noqa: BLE001 (one portal must not cost the others)
        log_fault(error, portal=name)
    return None


def _sweep(relay: Runtime, source: Portal, routes: Mapping[str, Bitrix24Route]) -> int:
    key = f"sweep#{portal_key(source.name)}"
    seen = relay.ports.store.get(key)
    if seen is None:  # what was before us is not ours to carry
        latest = source.do(latest_stage_history())
        _remember(relay, key, row_id(latest[0]) if latest else 0)
        return 0
    last, queued = int(seen.attributes["last"]), 0
    filters = {"@STAGE_ID": sorted({stage for route in routes.values() for stage in route.stages})}
    while True:
        page = source.do(stage_history_after(last, filters=filters))
        told_of = list(takewhile(lambda move: not _is_young(move, source.now()), page))
        if told_of:
            if row_id(told_of[-1]) <= last:
                raise Unreachable("list_out_of_order")
            queued += _queue_unknown(relay, source, routes, told_of)
            last = row_id(told_of[-1])
            _remember(relay, key, last)
        if len(told_of) < PAGE:
            return queued


def _queue_unknown(relay: Runtime, source: Portal, routes: Mapping[str, Bitrix24Route], moves: Sequence[_Move]) -> int:
    """Queue the transfers that the ledger has not heard of since these moves; return how many these are."""
    last_moves = {
        Order(source.name, int(move["OWNER_ID"]), name, expected=False): move
        for move in moves
        for name, route in routes.items()
        if move.get("STAGE_ID") in route.stages
    }
    ledger = Ledger(relay.ports.store, relay.ports.clock)
    known = relay.ports.parallel(lambda order: ledger.last_known(order.transfer), list(last_moves))
    gaps = {
        order: move
        for (order, move), effect in zip(last_moves.items(), known, strict=True)
        if effect is None or _is_gap(routes[order.route], move, *effect)
    }
    if gaps:
        # In the place of the calls that should have come then.
        calls = [order.envelope(call=f"sweep-{row_id(move)}", now=moved_at(move)) for order, move in gaps.items()]
        make_all_durable(relay.ports, calls)
        logger.warning("calls were lost", portal=source.name, deals=len(gaps))
        count("Swept", len(gaps))
    return len(gaps)


def _is_gap(route: Bitrix24Route, move: _Move, effect: Effect, written_at: int) -> bool:
    is_over = effect.settled and route.on_repeat == "nothing"
    return not is_over and written_at < moved_at(move)


def _is_young(move: _Move, now: float) -> bool:
    """Tell whether a move's call may still come; not of one in our future, where the portal's clock is ahead."""
    return now - _CALL_TAKES < moved_at(move) <= now


def _remember(relay: Runtime, key: str, last: int) -> None:
    update(relay.ports.store, key, partial(_later, last))


def _later(last: int, seen: Mapping[str, Any]) -> Mapping[str, Any]:
    return seen if seen.get("last", -1) >= last else {"last": last}


prepare(http_client)
