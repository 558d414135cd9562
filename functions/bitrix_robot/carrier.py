"""The steps of carrying deals along one route: read, map, look up, create, rows, files, report; each once."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any

from bitrix_robot.cards import Cards, Gone, SourceCard, still_there
from bitrix_robot.deal import Standing, Transfer, fail
from bitrix_robot.files import FileCarrier
from bitrix_robot.mapping import came_from, changes, hub_deal, hub_rows, marker, user_ids
from bitrix_robot.matches import Matches
from bitrix_robot.portal import expect, portal
from bitrix_robot.report import Reporter, missing
from crm_relay.bitrix24 import items, products
from crm_relay.bitrix24.client import APPEARS_WITHIN, PAGE, Operation, Refused, row_id
from crm_relay.bitrix24.items import DEAL, Item, item_name, moved_at
from crm_relay.delivery.ledger import Busy, Claim, Fenced, Ledger
from crm_relay.delivery.ports import Ports
from crm_relay.delivery.runtime import Runtime
from crm_relay.observability import needs_attention
from crm_relay.outcomes import NotExecuted, Outcome, OutcomeUnknown, Rejected, Unreachable
from crm_relay.settings import Bitrix24Route

_BUSY = 5
_EVENT_AFTER_MOVE = 3600
"""Seconds in which an event may be about a deal's coming to the stage that it has left; the sweep finds older moves."""
_RIGHTS = ("access_denied", "insufficient_scope", "invalid_credentials", "allowed_only_intranet_user")
_RIGHTS_MISSING = 300


class GaveUp(Rejected):
    """It did not work for too long."""

    def __init__(self) -> None:
        super().__init__("gave_up")


class Carrier:
    """A route, with what was learnt of its portals."""

    def __init__(self, relay: Runtime, name: str, route: Bitrix24Route) -> None:
        self._ports = relay.ports
        self._ledger = Ledger(relay.ports.store, relay.ports.clock)
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
            partial(self._take_turns, lease=lease),
            self._read,
            self._find_stages,
            partial(self._claim_all, lease=lease),
            self._end_repeated,
            self._map,
            partial(self._look_up, lease=lease),
            self._create,
            self._update,
            self._set_rows,
            self._report_without_files,
            self._carry_files,
            self._report,
        ]
        self._go(steps, transfers)
        _wait_for_rights(transfers)
        self._refuse(transfers, lease=lease)
        self._ports.parallel(_give_back, transfers)

    def give_up(self, transfers: Sequence[Transfer], *, until: float, lease: int) -> None:
        """Tell people, robots and subscribers that nobody tries any more to carry these deals."""
        self._source.until = self._hub.until = until
        self._go([self._find, self._end_repeated, self._read, self._find_stages, self._map], transfers)
        given_up = [transfer for transfer in transfers if not transfer.result]
        for transfer in given_up:
            transfer.failure = GaveUp()
        self._refuse(given_up, lease=lease)
        self._ports.parallel(_give_back, given_up)
        # Another call has the turn to tell people, say; each robot waits for an answer of its own, and once.
        untold = [transfer for transfer in given_up if not isinstance(transfer.failure, GaveUp)]
        for transfer in untold:
            is_over = transfer.is_carried and self._route.on_repeat == "nothing"
            transfer.failure = None if is_over else GaveUp()
        self._reporter.answer_robots(untold)

    def map_only(self, transfer: Transfer) -> None:
        """Make of a deal what it is to be in the hub, and leave it at that."""
        self._go([self._read, self._find_stages, self._map], [transfer])

    def _go(self, steps: Sequence[Callable[[Sequence[Transfer]], None]], transfers: Sequence[Transfer]) -> None:
        for step in steps:
            going = [transfer for transfer in transfers if transfer.going]
            if not going:
                return
            try:
                step(going)
            except Rejected as refusal:  # of what all need, so it is nothing about a deal
                needs_attention("transfers are refused", route=self._name, reason=refusal.reason)
                fail(going, NotExecuted(refusal.reason, retry_after=_RIGHTS_MISSING))
            except Exception as failure:  # noqa: BLE001 (what a step raises is the failure of all who are still going)
                fail(going, failure)

    # What is known

    def _find(self, transfers: Sequence[Transfer]) -> None:
        """Look for what became of the transfers before."""
        found = self._ports.parallel(self._ledger.find, [transfer.order.transfer for transfer in transfers])
        for transfer, effect in zip(transfers, found, strict=True):
            if effect:
                transfer.learn(effect)

    def _end_repeated(self, transfers: Sequence[Transfer]) -> None:
        """End those whose deal was carried before, unless a later call brings it up to date."""
        if self._route.on_repeat == "update":
            return
        repeated = [transfer for transfer in transfers if transfer.is_carried]
        self._reporter.answer_robots(repeated)
        for transfer in repeated:
            if transfer.going:
                transfer.result = {"hub_deal": transfer.hub_deal, "repeated": True}

    def _take_turns(self, transfers: Sequence[Transfer], *, lease: int) -> None:
        """Let the calls for a deal that was carried update it one after the other: who reads last, writes last."""
        self._ports.parallel(partial(self._take_turn, lease), [each for each in transfers if each.is_carried])

    def _take_turn(self, lease: int, transfer: Transfer) -> None:
        with transfer.guarded(), _not_busy():
            transfer.hold(self._ledger.turn(transfer.order.transfer, lease=lease))

    def _read(self, transfers: Sequence[Transfer]) -> None:
        """Read deals and their rows."""
        reads: dict[tuple[Transfer, str], Operation[Any]] = {}
        for transfer in transfers:
            reads[transfer, "deal"] = items.get(DEAL, transfer.order.deal)
            reads[transfer, "rows"] = products.deal_rows(transfer.order.deal)
        answers = self._source.do_all(reads)
        for transfer in transfers:
            with transfer.guarded():
                deal = _present(answers[transfer, "deal"], else_="deal_not_found")
                transfer.deal = {"id": deal["id"]}  # there is somebody to tell of what may come now
                transfer.read(deal, self._all_rows(transfer, expect(answers[transfer, "rows"])))
                if came_from(transfer.deal) == self._hub.settings.member_id:
                    raise Rejected("came_from_hub")

    def _all_rows(self, transfer: Transfer, first: list[dict[str, Any]]) -> list[dict[str, Any]]:
        rows = page = first
        while len(page) == PAGE:
            page = self._source.do(products.deal_rows(transfer.order.deal, start=len(rows)))
            if page and row_id(page[-1]) <= row_id(rows[-1]):
                raise Unreachable("list_out_of_order")
            rows = rows + page
        return rows

    def _find_stages(self, transfers: Sequence[Transfer]) -> None:
        """Find the stage of the route that each deal is in, or was in last; others go no further."""
        elsewhere = []
        for transfer in transfers:
            if (stage := str(transfer.deal.get("stageId"))) in self._route.stages:
                transfer.stage = stage
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
                    transfer.stage = str(past[-1].get("STAGE_ID"))
                elif transfer.order.expected:
                    raise Rejected("wrong_stage")
                else:
                    transfer.result = {"hub_deal": None, "reason": "not_in_stage"}

    def _claim_all(self, transfers: Sequence[Transfer], *, lease: int) -> None:
        """Become the only one who carries each deal."""
        self._ports.parallel(partial(self._claim, lease), [each for each in transfers if not each.is_carried])

    def _claim(self, lease: int, transfer: Transfer) -> None:
        with transfer.guarded(), _not_busy():
            claimed = self._ledger.claim(transfer.order.transfer, "", lease=lease)
            if isinstance(claimed, Claim):
                transfer.own(claimed)
                return
            transfer.learn(claimed)
            if self._route.on_repeat == "update":  # with what was read before it was carried
                raise NotExecuted("carried_meanwhile", retry_after=_BUSY)

    def _map(self, transfers: Sequence[Transfer]) -> None:
        """Make of each deal what it is to be in the hub."""
        source, hub = self._source.definitions(), self._hub.definitions()
        self._matches.learn_users(id_ for each in transfers for id_ in user_ids(self._route, each.deal, source))
        self._matches.learn_products(row["productId"] for each in transfers for row in each.rows if row["productId"])
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

    def _look_up(self, transfers: Sequence[Transfer], *, lease: int) -> None:
        """Find the hub's deals that earlier tries have made, told or not, and for others their contacts and company."""
        new = [transfer for transfer in transfers if transfer.is_new]
        begun = [transfer for transfer in transfers if not (transfer.is_new or transfer.is_carried)]
        known = self._cards.known(self._cards_of(new))
        reads: dict[Any, Operation[list[Item]]] = {transfer: self._search(transfer) for transfer in new}
        reads |= {transfer: items.present(DEAL, [transfer.hub_deal]) for transfer in begun}
        answers = self._hub.do_all(reads | self._cards.checks(known))
        for answer in answers.values():
            if isinstance(answer, Refused):  # of what holds nothing but ids: it is nothing about a deal
                raise answer
        self._begin_deleted_anew(begun, answers)
        self._recognize(new, answers)
        still_new = [transfer for transfer in new if transfer.going and transfer.is_new]
        self._carry_cards(still_new, still_there(known, answers), lease=lease)

    @staticmethod
    def _begin_deleted_anew(begun: Sequence[Transfer], answers: Mapping[Any, list[Item] | Outcome]) -> None:
        """Of deals that are in the hub, but not whole, make those anew that were deleted there, with the next try."""
        for transfer in begun:
            with transfer.guarded():
                if not expect(answers[transfer]):
                    transfer.begin_anew()
                    raise NotExecuted("half_a_deal_was_deleted", retry_after=_BUSY)

    def _recognize(self, new: Sequence[Transfer], answers: Mapping[Any, list[Item] | Outcome]) -> None:
        """Take over deals that a try of unknown outcome has made, and wait for those that may still appear."""
        for transfer in new:
            with transfer.guarded():
                found = expect(answers[transfer])
                if len(found) > 1:
                    needs_attention("deal doubled in the hub", key=transfer.order.transfer, times=len(found))
                if found:
                    transfer.hub_deal = found[0]["id"]
                    transfer.mark(hub_deal=transfer.hub_deal)
                elif (wait := transfer.notes.get("creating", 0) + APPEARS_WITHIN - self._hub.now()) > 0:
                    raise NotExecuted("deal_may_still_appear", retry_after=wait)

    def _cards_of(self, transfers: Sequence[Transfer]) -> list[SourceCard]:
        if self._route.contacts != "find_or_create":
            return []
        return list(dict.fromkeys(card for transfer in transfers for card in transfer.source_cards))

    def _carry_cards(self, transfers: Sequence[Transfer], known: Mapping[SourceCard, int], *, lease: int) -> None:
        """Find or create contacts and companies in the hub."""
        found = self._cards.found_or_created(self._cards_of(transfers), known, lease=lease)
        for transfer in transfers:
            with transfer.guarded():
                for card in self._cards_of([transfer]):
                    match found[card]:
                        case Gone():
                            pass
                        case Exception() as failure:
                            raise failure
                        case hub_id if card.kind == "company":
                            transfer.hub_cards["companyId"] = hub_id
                        case hub_id:
                            contacts = transfer.hub_cards.setdefault("contactIds", [])
                            if hub_id not in contacts:
                                contacts.append(hub_id)

    def _create(self, transfers: Sequence[Transfer]) -> None:
        """Create the deals, each with its marker."""
        new = [transfer for transfer in transfers if transfer.is_new]
        self._mark(new, creating=int(self._hub.now()))
        creations = {transfer: self._creation(transfer) for transfer in new if transfer.going}
        answers = self._hub.do_all(creations, made=self._made)
        for transfer, answer in answers.items():
            with transfer.guarded():
                transfer.hub_deal = expect(answer)["id"]
                transfer.notes["hub_deal"] = transfer.hub_deal
        self._mark([transfer for transfer in answers if transfer.going])
        surely_not = [each for each in answers if isinstance(each.failure, NotExecuted | Rejected)]
        self._mark(surely_not, creating=0)

    def _made(self, transfers: Sequence[Transfer]) -> dict[Transfer, Item | Outcome]:
        found = self._hub.do_all({transfer: self._search(transfer) for transfer in transfers})
        return {each: hit if isinstance(hit, Outcome) else hit[0] for each, hit in found.items() if hit}

    def _search(self, transfer: Transfer) -> Operation[list[Item]]:
        marked = self._marker(transfer)
        return items.find_by_origin(DEAL, marked["originatorId"], marked["originId"])

    def _creation(self, transfer: Transfer) -> Operation[Item]:
        assert transfer.wanted is not None
        return items.add(DEAL, {**transfer.wanted.fields, **transfer.hub_cards, **self._marker(transfer)})

    def _marker(self, transfer: Transfer) -> dict[str, str]:
        return marker(self._source.settings.member_id, "deal", transfer.order.deal, self._name)

    def _update(self, transfers: Sequence[Transfer]) -> None:
        """Bring deals up to date that were carried before, and are still there: the fields that differ."""
        carried = [transfer for transfer in transfers if transfer.is_carried]
        present = self._hub.do_all({transfer: items.get(DEAL, transfer.hub_deal) for transfer in carried})
        definitions = self._hub.definitions() if carried else {}
        differs_each_time = (item_name(self._route.transfer_date_field),)
        writes = {}
        for transfer, answer in present.items():
            with transfer.guarded():
                assert transfer.wanted is not None
                there = _present(answer, else_="deleted_in_hub")
                changed = changes(transfer.wanted, there, definitions, except_for=differs_each_time)
                if changed:
                    writes[transfer] = items.update(DEAL, transfer.hub_deal, changed)
        for transfer, updated in self._hub.do_all(writes).items():
            with transfer.guarded():
                expect(updated)

    def _set_rows(self, transfers: Sequence[Transfer]) -> None:
        """Set product rows; the same again changes nothing."""
        wanted = {
            each: each.hub_rows.rows for each in transfers if each.hub_rows and (each.hub_rows.rows or each.is_carried)
        }
        in_batch = {each: products.set_deal_rows(each.hub_deal, rows) for each, rows in wanted.items() if rows}
        answers = self._hub.do_all(in_batch)
        for transfer, rows in wanted.items():
            with transfer.guarded():
                # PHP reads so many parameters of a form and forgets the rest, and an empty list is no parameter at all:
                # what did not arrive goes as JSON.
                try:
                    if not rows or len(expect(answers[transfer])) != len(rows):
                        self._hub.do(products.set_deal_rows(transfer.hub_deal, rows))
                except Rejected as refusal:  # the files go along all the same
                    transfer.rows_refused = refusal
                transfer.notes["rows_set"] = transfer.rows_refused is None

    def _carry_files(self, transfers: Sequence[Transfer]) -> None:
        for transfer in transfers:
            with transfer.guarded():
                self._files.carry(transfer)

    # What is told

    def _report_without_files(self, transfers: Sequence[Transfer]) -> None:
        """Settle the deals without files, who need not wait for those of the others."""
        self._report([each for each in transfers if each.is_carried or not (each.wanted and each.wanted.files)])

    def _report(self, transfers: Sequence[Transfer]) -> None:
        """Tell people and subscribers of deals that are in the hub, and settle them; those without rows fail."""
        for transfer in transfers:
            transfer.failure = transfer.rows_refused
        whole = [transfer for transfer in transfers if transfer.going]
        self._reporter.tell_success([transfer for transfer in whole if not transfer.is_carried])
        self._reporter.answer_robots([transfer for transfer in whole if transfer.is_carried])
        self._ports.parallel(self._settle, [transfer for transfer in whole if transfer.going])

    def _settle(self, transfer: Transfer) -> None:
        with transfer.guarded():
            if transfer.is_carried:
                transfer.result = {"hub_deal": transfer.hub_deal, "repeated": True}
            else:
                assert transfer.claim is not None
                _publish(self._ports, "DealTransferred", transfer, hub_deal=transfer.hub_deal)
                transfer.claim.confirm({"hub_deal": transfer.hub_deal})
                transfer.result = {"hub_deal": transfer.hub_deal}

    def _refuse(self, transfers: Sequence[Transfer], *, lease: int) -> None:
        """Tell of deals that are not carried, or not whole, where somebody waits for them."""
        awaited = [each for each in transfers if each.order.expected or each.stage or each.hub_deal]
        refusals = {each: each.failure for each in awaited if isinstance(each.failure, Rejected)}
        unclaimed = [transfer for transfer in refusals if transfer.claim is None]
        begun = [transfer for transfer in unclaimed if transfer.hub_deal and not transfer.is_carried]
        self._ports.parallel(partial(self._claim, lease), begun)
        for transfer in begun:
            if transfer.is_carried:
                del refusals[transfer]
                transfer.failure = NotExecuted("carried_meanwhile", retry_after=_BUSY)
        # What was never begun must stay unknown to the sweep.
        self._ports.parallel(partial(self._take_turn, lease), [each for each in unclaimed if each not in begun])
        try:
            self._reporter.tell_failure({each: why for each, why in refusals.items() if each.failure is why})
        except Exception as failure:  # noqa: BLE001 (who was not told is told at the next try)
            fail(awaited, failure)
        # What is given up has no other try: its subscribers are told even where its people cannot be.
        told = {each: why for each, why in refusals.items() if each.failure is why or isinstance(why, GaveUp)}
        self._ports.parallel(lambda refused: self._publish_failure(*refused), list(told.items()))
        for transfer, refusal in told.items():
            if transfer.hub_deal and not transfer.is_carried:
                facts = {"hub_deal": transfer.hub_deal, "missing": missing(transfer), "reason": refusal.reason}
                needs_attention("deal is not whole in the hub", key=transfer.order.transfer, **facts)

    def _publish_failure(self, transfer: Transfer, refusal: Rejected) -> None:
        there = {"hub_deal": transfer.hub_deal, "missing": missing(transfer)} if transfer.hub_deal else {}
        with transfer.guarded():
            _publish(self._ports, "DealTransferFailed", transfer, reason=refusal.reason, **there)

    def _mark(self, transfers: Sequence[Transfer], **notes: Any) -> None:
        def mark(transfer: Transfer) -> None:
            with transfer.guarded():
                transfer.mark(**notes)

        self._ports.parallel(mark, transfers)


@lru_cache(maxsize=16)
def carrier(relay: Runtime, route: str) -> Carrier:
    """Return this process's carrier of a route of relay.toml."""
    return Carrier(relay, route, relay.settings.bitrix24.routes[route])


def refuse_without_route(relay: Runtime, transfers: Sequence[Transfer], until: float) -> None:
    """Refuse deals whose route was taken out of relay.toml while they waited; who waits for them goes on."""
    gone = Rejected("route_gone")
    fail(transfers, gone)
    needs_attention("route is gone", route=transfers[0].order.route, deals=len(transfers))
    source = portal(relay, transfers[0].order.portal)
    source.until = until
    Reporter(relay.ports, source, relay.settings.bitrix24.texts).tell_failure(dict.fromkeys(transfers, gone))
    for transfer in transfers:
        if transfer.failure is gone:
            _publish(relay.ports, "DealTransferFailed", transfer, reason=gone.reason)


def _is_about(transfer: Transfer, move: Mapping[str, Any]) -> bool:
    """Tell whether a call is about a move that the deal has made: any change is an event, years later too."""
    asked_for = transfer.order.expected or transfer.is_carried
    return asked_for or transfer.called_at < moved_at(move) + _EVENT_AFTER_MOVE


def _present(answer: Item | Outcome, *, else_: str) -> Item:
    try:
        return expect(answer)
    except Refused as refusal:
        raise Rejected(else_) if refusal.reason == "not_found" else refusal from None


def _publish(ports: Ports, detail_type: str, transfer: Transfer, **facts: object) -> None:
    order = transfer.order
    name = {"id": f"{order.transfer}#{transfer.execution}", "portal": order.portal}
    ports.bus.publish(detail_type, {**name, "deal": order.deal, "route": order.route, **facts})


def _wait_for_rights(transfers: Sequence[Transfer]) -> None:
    """Keep deals that were read, and are refused for what we may not do: it is nothing about the deal."""
    for transfer in transfers:
        refusal = transfer.failure
        if transfer.deal and isinstance(refusal, Refused) and refusal.reason in _RIGHTS:
            needs_attention("rights are missing", key=transfer.order.transfer, reason=refusal.reason)
            transfer.failure = NotExecuted(refusal.reason, retry_after=_RIGHTS_MISSING)


def _give_back(transfer: Transfer) -> None:
    """Leave a deal that could not be carried to a later call, or to a later try of this one; end a turn."""
    failure, claim = transfer.failure, transfer.claim
    if isinstance(failure, Fenced):
        transfer.failure = NotExecuted("taken_over", retry_after=_BUSY)
    elif claim and transfer.standing is not Standing.OURS:
        with transfer.guarded():
            claim.release()
    elif claim and failure:
        with transfer.guarded():
            if isinstance(failure, Rejected) and transfer.hub_deal:
                claim.give_up(failure.reason)  # until somebody has mended it, and calls for it again
            else:
                happened = None if isinstance(failure, OutcomeUnknown) else False
                claim.wait(str(failure) if isinstance(failure, Outcome) else "error", happened=happened)


@contextmanager
def _not_busy() -> Iterator[None]:
    try:
        yield
    except Busy:
        raise NotExecuted("transfer_busy", retry_after=_BUSY) from None
