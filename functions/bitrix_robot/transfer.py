"""BitrixQueue: carry the deals that calls are about to the hub, those of one route together."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import partial

from bitrix_robot.carrier import carrier, refuse_without_route
from bitrix_robot.deal import Transfer, fail
from bitrix_robot.order import Order, read_order
from bitrix_robot.portal import http_client
from crm_relay.bitrix24.client import DEADLINE
from crm_relay.delivery.attempt import Task, Try, attempt
from crm_relay.delivery.envelope import Envelope
from crm_relay.delivery.ledger import Effect
from crm_relay.delivery.runtime import Runtime, prepare, runtime
from crm_relay.delivery.worker import LambdaContext, Worker, lease
from crm_relay.http_api import Event
from crm_relay.observability import log_failure, observed

TOGETHER = 50
"""Deals that share requests."""

_NEEDS_SECONDS = 2 * DEADLINE
_ENDS_BEFORE = 5
"""Seconds of an invocation that are left to the table, for what came of the transfers."""


@observed(refuse=None)
def handler(event: Event, context: LambdaContext) -> dict[str, list[dict[str, str]]]:
    """Work off calls."""
    relay = runtime()
    until = relay.ports.clock.time() + context.get_remaining_time_in_millis() / 1000 - _ENDS_BEFORE
    worker = Worker(
        relay.ports,
        job=partial(_transfer, relay, until=until, lease=lease(context)),
        together=TOGETHER,
        needs_seconds=_NEEDS_SECONDS,
        give_up_after=relay.settings.relay.give_up_after_seconds,
        read=read_order,
        farewell=partial(_farewell, relay, until=until, lease=lease(context)),
    )
    return worker.run(event, context)


def transfer_at_once(relay: Runtime, envelope: Envelope, context: LambdaContext, *, within: float) -> Effect | None:
    """Carry the deal of a call whose caller waits, for `within` seconds; return what came of it, None if nothing yet.

    Its message is in the queue already, whatever becomes of this try.
    """
    job = partial(_transfer, relay, until=relay.ports.clock.time() + within, lease=lease(context), is_awaited=True)
    [ending] = attempt(relay.ports, [Try(envelope)], job, lease=lease(context))
    return ending if isinstance(ending, Effect) else None


def preview(relay: Runtime, order: Order) -> Transfer:
    """Return what a deal would be in the hub (`wanted`, `hub_rows`, `stage`); nothing is written anywhere.

    Raises:
        Outcome: it cannot be carried, or not be read.
        NotConfigured: relay.toml or the secret lacks something.
    """
    transfer = Transfer(order, "preview", relay.ports.clock.time())
    carrier(relay, order.route).map_only(transfer)
    if transfer.failure:
        raise transfer.failure
    return transfer


def _transfer(relay: Runtime, tasks: Sequence[Task], *, until: float, lease: int, is_awaited: bool = False) -> None:
    transfers = [_of(task, is_awaited=is_awaited) for task in tasks]
    for route, some in _by_route(transfers):
        try:
            if route in relay.settings.bitrix24.routes:
                carrier(relay, route).carry(some, until=until, lease=lease)
            else:
                refuse_without_route(relay, some, until)
        except Exception as failure:  # noqa: BLE001 (one route's trouble is not another's)
            fail(some, failure)
    for task, transfer in zip(tasks, transfers, strict=True):
        if transfer.failure is not None:
            task.fail(transfer.failure)
        else:
            task.done(transfer.result or {})


def _farewell(relay: Runtime, tasks: Sequence[Task], *, until: float, lease: int) -> None:
    for route, some in _by_route([_of(task) for task in tasks]):
        try:
            carrier(relay, route).give_up(some, until=until, lease=lease)
        except Exception as error:  # noqa: BLE001 (one route's trouble is not another's)
            log_failure("given up without a word", error, route=route)


def _of(task: Task, *, is_awaited: bool = False) -> Transfer:
    return Transfer(Order.of(task.envelope), task.envelope.key, task.envelope.accepted_at, is_awaited)


def _by_route(transfers: Sequence[Transfer]) -> Iterable[tuple[str, list[Transfer]]]:
    routes: dict[str, list[Transfer]] = defaultdict(list)
    for transfer in transfers:
        routes[transfer.order.route].append(transfer)
    return routes.items()


prepare(http_client)
