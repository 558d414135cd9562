"""BitrixQueue: carry deals to the hub, many a request: read, map, create, rows, files, report; each step once."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any

from bitrix_robot.cards import Cards, Gone, cards_of
from bitrix_robot.deal import Transfer
from bitrix_robot.files import FileCarrier
from bitrix_robot.mapping import came_from, changes, hub_deal, hub_rows, marker, user_ids
from bitrix_robot.matches import Matches
from bitrix_robot.order import Order, read_order
from bitrix_robot.portal import expect, http_client, portal
from bitrix_robot.report import Reporter
from crm_relay.bitrix24 import items, products
from crm_relay.bitrix24.client import APPEARS_WITHIN, DEADLINE, PAGE, Operation, Refused
from crm_relay.bitrix24.items import DEAL, Item, item_name, moved_at
from crm_relay.delivery.attempt import Task, Try, attempt
from crm_relay.delivery.envelope import Envelope
from crm_relay.delivery.ledger import Busy, Claim, Effect, Fenced, Ledger
from crm_relay.delivery.runtime import Runtime, prepare, runtime
from crm_relay.delivery.worker import LambdaContext, Worker, lease
from crm_relay.http_api import Event
from crm_relay.observability import needs_attention, observed
from crm_relay.outcomes import NotExecuted, Outcome, OutcomeUnknown, Rejected
from crm_relay.settings import Bitrix24Route

TOGETHER = 50
"""Deals that share requests."""

_NEEDS_SECONDS = 2 * DEADLINE
_ENDS_BEFORE = 5
"""Seconds of an invocation that are left to the table, for what came of the transfers."""
_BUSY = 5
_EVENT_AFTER_MOVE = 3600
"""Seconds in which an event may be about a deal's coming to the stage that it has left; the sweep finds older moves."""
_RIGHTS = ("access_denied", "insufficient_scope", "invalid_credentials", "allowed_only_intranet_user")
_RIGHTS_MISSING = 300


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
    _carrier(relay, order.route).map_only(transfer)
    if transfer.failure:
        raise transfer.failure
    return transfer


def _transfer(relay: Runtime, tasks: Sequence[Task], *, until: float, lease: int, is_awaited: bool = False) -> None:
    by_route: dict[str, list[tuple[Task, Transfer]]] = defaultdict(list)
    for task in tasks:
        order = Order.of(task.envelope)
        transfer = Transfer(order, task.envelope.key, task.envelope.accepted_at, is_awaited)
        by_route[order.route].append((task, transfer))
    for route, some in by_route.items():
        transfers = [transfer for _, transfer in some]
        try:
            _carrier(relay, route).carry(transfers, until=until, lease=lease)
        except Exception as failure:  # noqa: BLE001 (one route's trouble is not another's)
            _fail(transfers, failure)
        for task, transfer in some:
            if transfer.failure is not None:
                task.fail(transfer.failure)
            else:
                task.done(transfer.result or {})


class _Carrier:
    """A route, with what was learnt of its portals."""

    def __init__(self, relay: Runtime, name: str, route: Bitrix24Route) -> None:
        self._ports = relay.ports
        self._name = name
        self._route = route
        self._source = portal(relay, route.source)
        self._hub = portal(relay, route.hub)
        self._matches = Matches(route, self._source, self._hub)
        self._cards = Cards(relay.ports, self._source, self._hub, self._matches)
        self._files = FileCarrier(self._source, self._hub, route.max_file_bytes)
        self._reporter = Reporter(relay.ports, self._source, relay.settings.bitrix24.texts)

    def carry(self, transfers: Sequence[Transfer], *, until: float, lease: int) -> None:
        """Carry deals until `until` (unix seconds); every transfer has ended then."""
        self._source.until = self._hub.until = until
        steps: list[Callable[[Sequence[Transfer]], None]] = [
            self._find,
            self._end_repeated,
            self._read,
            self._find_stages,
            partial(self._claim, lease=lease),
            self._end_repeated,
            self._map,
            self._look_up,
            partial(self._carry_cards, lease=lease),
            self._create,
            self._update,
            self._set_rows,
            self._report_without_files,
            self._carry_files,
            self._report,
        ]
        self._go(steps, transfers)
        _wait_for_rights(transfers)
        self._refuse([transfer for transfer in transfers if isinstance(transfer.failure, Rejected)])
        self._ports.parallel(_give_back, [transfer for transfer in transfers if transfer.failure])

    def map_only(self, transfer: Transfer) -> None:
        """Make of a deal what it is to be in the hub, and leave it at that."""
        self._go([self._read, self._find_stages, self._map], [transfer])

    @staticmethod
    def _go(steps: Sequence[Callable[[Sequence[Transfer]], None]], transfers: Sequence[Transfer]) -> None:
        for step in steps:
            going = [transfer for transfer in transfers if transfer.going]
            if not going:
                return
            try:
                step(going)
            except Exception as failure:  # noqa: BLE001 (what a step raises is the failure of all who are still going)
                _fail(going, failure)

    # What is known

    def _find(self, transfers: Sequence[Transfer]) -> None:
        """Look for what became of the transfers before."""
        ledger = Ledger(self._ports.store, self._ports.clock)
        found = self._ports.parallel(ledger.find, [transfer.order.transfer for transfer in transfers])
        for transfer, known in zip(transfers, found, strict=True):
            transfer.known = known if known and known.settled else None

    def _end_repeated(self, transfers: Sequence[Transfer]) -> None:
        """End those whose deal was carried before, unless a later call brings it up to date."""
        if self._route.on_repeat == "update":
            return
        repeated = [transfer for transfer in transfers if transfer.known]
        self._reporter.answer_robots(repeated)
        for transfer in repeated:
            if transfer.going:
                transfer.result = {"hub_deal": transfer.hub_deal, "repeated": True}

    def _read(self, transfers: Sequence[Transfer]) -> None:
        """Read deals and their rows."""
        reads: dict[tuple[Transfer, str], Operation[Any]] = {}
        for transfer in transfers:
            reads[transfer, "deal"] = items.get(DEAL, transfer.order.deal)
            reads[transfer, "rows"] = products.deal_rows(transfer.order.deal)
        answers = self._source.do_all(reads)
        for transfer in transfers:
            with transfer.guarded():
                transfer.deal = _present(answers[transfer, "deal"])
                transfer.rows = self._all_rows(transfer, expect(answers[transfer, "rows"]))
                if came_from(transfer.deal) == self._hub.settings.member_id:
                    raise Rejected("came_from_hub")

    def _all_rows(self, transfer: Transfer, first: list[dict[str, Any]]) -> list[dict[str, Any]]:
        rows = page = first
        while len(page) == PAGE:
            page = self._source.do(products.deal_rows(transfer.order.deal, start=len(rows)))
            rows = rows + page
        return rows

    def _find_stages(self, transfers: Sequence[Transfer]) -> None:
        """Find the stage of the route that each deal is in, or was in last; others go no further."""
        elsewhere = []
        for transfer in transfers:
            if transfer.deal.get("stageId") in self._route.stages:
                transfer.stage = transfer.deal["stageId"]
            else:
                elsewhere.append(transfer)
        stages = list(self._route.stages)
        moves = self._source.do_all(
            {
                transfer: items.stage_history_after(0, filters={"OWNER_ID": transfer.order.deal, "@STAGE_ID": stages})
                for transfer in elsewhere
            }
        )
        for transfer, answer in moves.items():
            with transfer.guarded():
                past = expect(answer)
                if past and _is_about(transfer, past[-1]):
                    transfer.stage = str(past[-1]["STAGE_ID"])
                elif transfer.order.expected:
                    raise Rejected("wrong_stage")
                else:
                    transfer.result = {"hub_deal": None, "reason": "not_in_stage"}

    def _claim(self, transfers: Sequence[Transfer], *, lease: int) -> None:
        """Become the only one who carries each deal."""
        ledger = Ledger(self._ports.store, self._ports.clock)

        def claim(transfer: Transfer) -> None:
            with transfer.guarded():
                try:
                    claimed = ledger.claim(transfer.order.transfer, "", lease=lease)
                except Busy:
                    raise NotExecuted("transfer_busy", retry_after=_BUSY) from None
                if isinstance(claimed, Claim):
                    transfer.claim = claimed
                    transfer.notes = dict(claimed.effect.notes or {})
                else:
                    transfer.known = claimed

        self._ports.parallel(claim, [transfer for transfer in transfers if transfer.known is None])

    def _map(self, transfers: Sequence[Transfer]) -> None:
        """Make of each deal what it is to be in the hub."""
        source, hub = self._source.definitions(), self._hub.definitions()
        self._matches.learn_users(id_ for each in transfers for id_ in user_ids(self._route, each.deal, source))
        self._matches.learn_products(
            int(row["productId"]) for each in transfers for row in each.rows if row.get("productId")
        )
        for transfer in transfers:
            with transfer.guarded():
                transfer.wanted = hub_deal(
                    self._route,
                    transfer.deal,
                    source,
                    hub,
                    stage=transfer.stage,
                    portal=self._source.settings.domain,
                    users=self._matches.users,
                    responsible=self._matches.responsible,
                    now=self._hub.now(),
                )
                transfer.hub_rows = hub_rows(transfer.rows, self._matches.products)

    # What is written into the hub

    def _look_up(self, transfers: Sequence[Transfer]) -> None:
        """Find the hub's deals that earlier tries have made, told or not."""
        searches = {transfer: self._search(transfer) for transfer in transfers if transfer.is_new}
        for transfer, answer in self._hub.do_all(searches).items():
            with transfer.guarded():
                found = expect(answer)
                if len(found) > 1:
                    needs_attention("deal doubled in the hub", key=transfer.order.transfer, times=len(found))
                if found:
                    transfer.mark(hub_deal=int(found[0]["id"]))
                elif (wait := transfer.notes.get("creating", 0) + APPEARS_WITHIN - self._hub.now()) > 0:
                    raise NotExecuted("deal_may_still_appear", retry_after=wait)

    def _carry_cards(self, transfers: Sequence[Transfer], *, lease: int) -> None:
        """Find or create contacts and companies in the hub."""
        if self._route.contacts != "find_or_create":
            return
        wanted = {transfer: cards_of(transfer.deal) for transfer in transfers if transfer.is_new}
        found = self._cards.found_or_created((card for cards in wanted.values() for card in cards), lease=lease)
        for transfer, cards in wanted.items():
            with transfer.guarded():
                for card in cards:
                    match found[card]:
                        case Gone():
                            pass
                        case Exception() as failure:
                            raise failure
                        case hub_id if card.kind == "company":
                            transfer.cards["companyId"] = hub_id
                        case hub_id:
                            contacts = transfer.cards.setdefault("contactIds", [])
                            if hub_id not in contacts:
                                contacts.append(hub_id)

    def _create(self, transfers: Sequence[Transfer]) -> None:
        """Create the deals, each with its marker."""
        new = [transfer for transfer in transfers if transfer.is_new]
        self._mark(new, creating=int(self._hub.now()))
        answers = self._hub.do_all({transfer: self._creation(transfer) for transfer in new if transfer.going})
        for transfer, answer in answers.items():
            with transfer.guarded():
                transfer.notes["hub_deal"] = int(expect(answer)["id"])
        self._mark([transfer for transfer in answers if transfer.going])
        surely_not = [each for each in answers if isinstance(each.failure, NotExecuted | Rejected)]
        self._mark(surely_not, creating=0)

    def _search(self, transfer: Transfer) -> Operation[list[Item]]:
        marked = self._marker(transfer)
        return items.find_by_origin(DEAL, marked["originatorId"], marked["originId"])

    def _creation(self, transfer: Transfer) -> Operation[Item]:
        assert transfer.wanted is not None
        return items.add(DEAL, {**transfer.wanted.fields, **transfer.cards, **self._marker(transfer)})

    def _marker(self, transfer: Transfer) -> dict[str, str]:
        return marker(self._source.settings.member_id, "deal", transfer.order.deal, self._name)

    def _update(self, transfers: Sequence[Transfer]) -> None:
        """Bring deals up to date that were carried before: the fields that differ."""
        known = [transfer for transfer in transfers if transfer.known]
        present = self._hub.do_all({transfer: items.get(DEAL, transfer.hub_deal) for transfer in known})
        definitions = self._hub.definitions() if known else {}
        differs_each_time = (item_name(self._route.transfer_date_field),)
        writes = {}
        for transfer, answer in present.items():
            with transfer.guarded():
                assert transfer.wanted is not None
                changed = changes(transfer.wanted, expect(answer), definitions, except_for=differs_each_time)
                if changed:
                    writes[transfer] = items.update(DEAL, transfer.hub_deal, changed)
        for transfer, updated in self._hub.do_all(writes).items():
            with transfer.guarded():
                expect(updated)

    def _set_rows(self, transfers: Sequence[Transfer]) -> None:
        """Set product rows; the same again changes nothing."""
        wanted = {
            each: each.hub_rows.rows for each in transfers if each.hub_rows and (each.hub_rows.rows or each.known)
        }
        in_batch = {each: products.set_deal_rows(each.hub_deal, rows) for each, rows in wanted.items() if rows}
        answers = self._hub.do_all(in_batch)
        for transfer, rows in wanted.items():
            with transfer.guarded():
                # PHP reads so many parameters of a form and forgets the rest, and an empty list is no parameter at all:
                # what did not arrive goes as JSON.
                if not rows or len(expect(answers[transfer])) != len(rows):
                    self._hub.do(products.set_deal_rows(transfer.hub_deal, rows))

    def _carry_files(self, transfers: Sequence[Transfer]) -> None:
        for transfer in transfers:
            with transfer.guarded():
                self._files.carry(transfer)

    # What is told

    def _report_without_files(self, transfers: Sequence[Transfer]) -> None:
        """Settle the deals without files, who need not wait for those of the others."""
        self._report([each for each in transfers if each.known or not (each.wanted and each.wanted.files)])

    def _report(self, transfers: Sequence[Transfer]) -> None:
        """Tell people and subscribers of deals that are in the hub, and settle them."""
        self._reporter.tell_success([transfer for transfer in transfers if transfer.claim])
        self._reporter.answer_robots([transfer for transfer in transfers if transfer.known])
        self._ports.parallel(self._settle, [transfer for transfer in transfers if transfer.going])

    def _settle(self, transfer: Transfer) -> None:
        with transfer.guarded():
            if transfer.claim:
                self._publish("DealTransferred", transfer, hub_deal=transfer.hub_deal)
                transfer.claim.confirm({"hub_deal": transfer.hub_deal})
                transfer.result = {"hub_deal": transfer.hub_deal}
            else:
                transfer.result = {"hub_deal": transfer.hub_deal, "repeated": True}

    def _refuse(self, transfers: Sequence[Transfer]) -> None:
        """Tell of deals that are not carried, where somebody waits for them."""
        awaited = [transfer for transfer in transfers if transfer.order.expected or transfer.stage]
        refusals = {each: each.failure for each in awaited if isinstance(each.failure, Rejected)}
        try:
            self._reporter.tell_failure(refusals)
        except Exception as failure:  # noqa: BLE001 (who was not told is told at the next try)
            _fail(awaited, failure)

        def publish(transfer: Transfer) -> None:
            with transfer.guarded():
                self._publish("DealTransferFailed", transfer, reason=refusals[transfer].reason)

        told = [transfer for transfer, refusal in refusals.items() if transfer.failure is refusal]
        self._ports.parallel(publish, told)

    def _publish(self, detail_type: str, transfer: Transfer, **facts: object) -> None:
        order = transfer.order
        name = {"id": f"{order.transfer}#{transfer.execution}", "portal": order.portal}
        self._ports.bus.publish(detail_type, {**name, "deal": order.deal, "route": order.route, **facts})

    def _mark(self, transfers: Sequence[Transfer], **notes: Any) -> None:
        def mark(transfer: Transfer) -> None:
            with transfer.guarded():
                transfer.mark(**notes)

        self._ports.parallel(mark, transfers)


@lru_cache(maxsize=16)
def _carrier(relay: Runtime, route: str) -> _Carrier:
    settings = relay.settings.bitrix24.routes.get(route)
    if settings is None:
        raise Rejected("route_gone")
    return _Carrier(relay, route, settings)


def _is_about(transfer: Transfer, move: Mapping[str, Any]) -> bool:
    """Tell whether a call is about a move that the deal has made: any change is an event, years later too."""
    asked_for = transfer.order.expected or transfer.known is not None
    return asked_for or transfer.called_at < moved_at(move) + _EVENT_AFTER_MOVE


def _present(answer: Item | Outcome) -> Item:
    try:
        return expect(answer)
    except Refused as refusal:
        raise Rejected("deal_not_found") if refusal.reason == "not_found" else refusal from None


def _fail(transfers: Sequence[Transfer], failure: Exception) -> None:
    for transfer in transfers:
        if transfer.result is None:
            transfer.failure = failure


def _wait_for_rights(transfers: Sequence[Transfer]) -> None:
    """Keep deals that were read, and are refused for what we may not do: it is nothing about the deal."""
    for transfer in transfers:
        refusal = transfer.failure
        if transfer.deal and isinstance(refusal, Refused) and refusal.reason in _RIGHTS:
            needs_attention("rights are missing", key=transfer.order.transfer, reason=refusal.reason)
            transfer.failure = NotExecuted(refusal.reason, retry_after=_RIGHTS_MISSING)


def _give_back(transfer: Transfer) -> None:
    """Leave a deal that could not be carried to a later call, or to a later try of this one."""
    failure = transfer.failure
    if isinstance(failure, Fenced):
        transfer.failure = NotExecuted("taken_over", retry_after=_BUSY)
    elif transfer.claim:
        happened = None if isinstance(failure, OutcomeUnknown) else False
        with transfer.guarded():
            transfer.claim.wait(str(failure) if isinstance(failure, Outcome) else "error", happened=happened)


prepare(http_client)
