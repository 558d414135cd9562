"""What people of the source are told of a transfer: a comment in their deal, a notification, a robot's answer."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from bitrix_robot.deal import Standing, Transfer
from bitrix_robot.files import not_carried
from bitrix_robot.portal import Portal, expect
from crm_relay.bitrix24 import reports
from crm_relay.bitrix24.client import APPEARS_WITHIN, BodyRefused, Operation, Refused
from crm_relay.delivery.ports import Ports
from crm_relay.observability import logger
from crm_relay.outcomes import NotExecuted, Outcome, Rejected
from crm_relay.settings import Bitrix24Texts


def _success_text(texts: Bitrix24Texts, transfer: Transfer) -> str:
    """Return what is said of a deal that was carried, and of what could not go along."""
    assert transfer.wanted is not None
    assert transfer.hub_rows is not None
    left = (
        (texts.fields_left, transfer.wanted.left),
        (texts.rows_left, transfer.hub_rows.left),
        (texts.files_left, not_carried(transfer)),
    )
    lines = [texts.transferred.format(id=transfer.order.deal, hub_id=transfer.hub_deal)]
    return "\n".join([*lines, *(text.format(names=", ".join(names)) for text, names in left if names)])


def missing(transfer: Transfer) -> list[str]:
    """Return what a deal that is in the hub lacks there, as far as we know: "rows", "files"."""
    return [*(["rows"] if transfer.lacks_rows else []), *(["files"] if not_carried(transfer) else [])]


def _failure_text(texts: Bitrix24Texts, transfer: Transfer, refusal: Rejected) -> str:
    """Return what is said of a deal that was not carried, or not whole."""
    own: Mapping[str, str] = {
        "wrong_stage": texts.wrong_stage,
        "deal_not_found": texts.deal_not_found,
        "came_from_hub": texts.came_from_hub,
        "deleted_in_hub": texts.deleted_in_hub,
        "deal_unreadable": texts.deal_unreadable,
        "gave_up": texts.gave_up,
    }
    match refusal:
        case BodyRefused():
            reason = texts.body_refused
        case Refused(text=str(sentence)) if sentence:  # Bitrix24's own is written for its users
            reason = sentence
        case _:
            reason = own.get(refusal.reason, refusal.reason)
    if not transfer.hub_deal:
        return texts.failed.format(id=transfer.order.deal, reason=reason)
    half = texts.not_updated if transfer.is_carried else texts.incomplete
    lines = [half.format(id=transfer.order.deal, hub_id=transfer.hub_deal, reason=reason)]
    if transfer.lacks_rows:
        lines.append(texts.rows_missing)
    if files := not_carried(transfer):
        lines.append(texts.files_left.format(names=", ".join(files)))
    return "\n".join(lines)


class Reporter:
    """Tells the people of one source; what is in the way becomes the failure of the transfer concerned."""

    def __init__(self, ports: Ports, source: Portal, texts: Bitrix24Texts) -> None:
        """Report to `source`."""
        self._ports = ports
        self._source = source
        self._texts = texts

    def tell_success(self, transfers: Sequence[Transfer]) -> None:
        """Tell of deals that are in the hub now."""
        self._tell({transfer: _success_text(self._texts, transfer) for transfer in transfers})

    def tell_failure(self, refusals: Mapping[Transfer, Rejected]) -> None:
        """Tell of deals that are not, of the same refusal once; where there is no deal, a waiting robot at least."""
        texts = {transfer: _failure_text(self._texts, transfer, refusal) for transfer, refusal in refusals.items()}
        self._tell({transfer: text for transfer, text in texts.items() if transfer.deal})
        nowhere = {transfer: text for transfer, text in texts.items() if not transfer.deal}
        self._do({(transfer, "robot"): _robot_answer(transfer, text) for transfer, text in nowhere.items()})

    def answer_robots(self, transfers: Sequence[Transfer]) -> None:
        """Let the robots go on that wait for deals which were carried before."""
        self._do({(transfer, "robot"): _robot_answer(transfer, "") for transfer in transfers})

    def _tell(self, texts: Mapping[Transfer, str]) -> None:
        told = self._were_told(texts)
        new = [transfer for transfer in texts if transfer not in told and _may_go_on(transfer)]
        now = int(self._source.now())
        self._ports.parallel(partial(_mark_commenting, now), new)
        writes: dict[tuple[Transfer, str], Operation[Any] | None] = {}
        for transfer, text in texts.items():
            if not _may_go_on(transfer):
                continue
            if transfer not in told:
                # The comment is the last: where it is, the notification has been sent.
                if responsible := transfer.deal.get("assignedById"):
                    tag = f"CRM_RELAY|{transfer.order.transfer}"
                    writes[transfer, "notification"] = reports.notify(responsible, text, tag=tag)
                writes[transfer, "comment"] = reports.add_comment(transfer.order.deal, text)
            writes[transfer, "robot"] = _robot_answer(transfer, text)
        self._do(writes)

    def _were_told(self, texts: Mapping[Transfer, str]) -> set[Transfer]:
        """Return the transfers whose comment is there, of those that an earlier try may have written it for."""
        doubtful = [each for each in texts if each.standing is not Standing.OURS or each.notes.get("commenting")]
        comments = self._source.do_all({transfer: reports.comments(transfer.order.deal) for transfer in doubtful})
        told = set()
        for transfer, answer in comments.items():
            if isinstance(answer, Refused):  # nobody can look: rather none than two
                told |= {transfer} if transfer.notes.get("commenting") else set()
                continue
            with transfer.guarded():
                first_line = texts[transfer].partition("\n")[0]
                if any(str(each.get("COMMENT")).partition("\n")[0] == first_line for each in expect(answer)):
                    told.add(transfer)
                elif (wait := transfer.notes.get("commenting", 0) + APPEARS_WITHIN - self._source.now()) > 0:
                    raise NotExecuted("comment_may_still_appear", retry_after=wait)
        return told

    def _do(self, writes: Mapping[tuple[Transfer, str], Operation[Any] | None]) -> None:
        answers = self._source.do_all({key: write for key, write in writes.items() if write})
        for (transfer, what), answer in answers.items():
            if isinstance(answer, Refused):  # they can do without; the deal is where it belongs
                logger.warning("not told", key=transfer.order.transfer, what=what, reason=answer.reason)
            elif isinstance(answer, Outcome) and what != "notification":
                transfer.failure = answer


def _may_go_on(transfer: Transfer) -> bool:
    return transfer.failure is None or isinstance(transfer.failure, Rejected)


def _mark_commenting(now: int, transfer: Transfer) -> None:
    with transfer.guarded():
        transfer.mark(commenting=now)


def _robot_answer(transfer: Transfer, text: str) -> Operation[None] | None:
    """Return what lets a waiting robot go on: `status` is "ok" or "failed", `esb_deal_id` "" without a deal there."""
    if not transfer.order.event_token:
        return None
    if isinstance(transfer.failure, Rejected):
        values = {"status": "failed", "esb_deal_id": str(transfer.hub_deal or "")}
    else:
        values = {"status": "ok", "esb_deal_id": str(transfer.hub_deal)}
    return reports.answer_robot(transfer.order.event_token, values, log=text or values["esb_deal_id"])
