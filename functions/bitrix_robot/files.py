"""A deal's files, from the source's fields into the hub's: one by one, each once, each marked in the ledger.

Notes of a transfer: {"files": {place: the file's id in the hub, `_UNDER_WAY` or `_LEFT`}, "uploading": unix seconds
when the last upload left, "files_left": [names]}.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from bitrix_robot.deal import Transfer
from bitrix_robot.mapping import FileField
from bitrix_robot.portal import Portal
from crm_relay.bitrix24 import items
from crm_relay.bitrix24.client import APPEARS_WITHIN
from crm_relay.bitrix24.files import File, FileLink, LinkDead, add_file, download, file_ids, links
from crm_relay.bitrix24.items import DEAL, item_name
from crm_relay.observability import logger
from crm_relay.outcomes import NotExecuted, Rejected

_UNDER_WAY, _LEFT = 0, -1


@dataclass(frozen=True, slots=True)
class FileCarrier:
    """Carries files between two portals; one of more than `limit` bytes is left, and one that is refused."""

    source: Portal
    hub: Portal
    limit: int

    def carry(self, transfer: Transfer) -> None:
        """Carry the files of a deal that is in the hub.

        Raises:
            Outcome, StorageError, Fenced: that was in the way; what is done is marked.
        """
        assert transfer.wanted is not None
        present = self.hub.do(items.get(DEAL, transfer.hub_deal))
        for field in transfer.wanted.files:
            there = file_ids(present, field.target)
            for place, link in enumerate(field.links):
                if place and not field.multiple:
                    _leave(transfer, field, link, _number(field, link), "field_takes_one")
                elif not self._is_settled(transfer, field, link, there):
                    there = self._carry(transfer, field, link, there)

    def _is_settled(self, transfer: Transfer, field: FileField, link: FileLink, there: list[int]) -> bool:
        """Tell whether a file is done with: carried, or left."""
        known, key = _known(transfer), _key(field, link)
        state = known.get(key)
        if state != _UNDER_WAY:
            return state is not None
        if arrived := set(there) - set(known.values()):
            transfer.mark(files={**known, key: min(arrived)})
            return True
        if (wait := transfer.notes["uploading"] + APPEARS_WITHIN - self.hub.now()) > 0:
            raise NotExecuted("file_may_still_appear", retry_after=wait)
        return False

    def _carry(self, transfer: Transfer, field: FileField, link: FileLink, there: list[int]) -> list[int]:
        """Carry one file; return the ids of those that are in the hub's field now."""
        known, key = _known(transfer), _key(field, link)
        name = _number(field, link)
        try:
            file = self._downloaded(transfer, field, link)
            name = file.name
            transfer.mark(files={**known, key: _UNDER_WAY}, uploading=int(self.hub.now()))
            write = add_file(transfer.hub_deal, field.target, file, kept=there, multiple=field.multiple)
            now_there = self.hub.do(write)
        except NotExecuted:
            if key in _known(transfer):
                transfer.mark(files=known)
            raise
        except Rejected as refusal:
            _leave(transfer, field, link, name, refusal.reason)
            return there
        transfer.mark(files={**known, key: min(set(now_there) - set(there))})
        return now_there

    def _downloaded(self, transfer: Transfer, field: FileField, link: FileLink) -> File:
        try:
            return self._fetched(link)
        except LinkDead:
            deal = self.source.do(items.get(DEAL, transfer.order.deal))
            fresh = [each for each in links(deal.get(item_name(field.source))) if each.id == link.id]
            if not fresh:
                raise
            return self._fetched(fresh[0])

    def _fetched(self, link: FileLink) -> File:
        return self.source.run(lambda access: download(access.host, link, limit=self.limit, now=self.source.now()))


def not_carried(transfer: Transfer) -> list[str]:
    """Return what the files of a deal are called that are not in the hub: left, or not come to."""
    known = _known(transfer)
    fields = transfer.wanted.files if transfer.wanted and not transfer.is_carried else ()
    links = ((field, link) for field in fields for link in field.links)
    open_ = [_number(field, link) for field, link in links if known.get(_key(field, link), _UNDER_WAY) == _UNDER_WAY]
    return [*transfer.notes.get("files_left", ()), *open_]


def _known(transfer: Transfer) -> Mapping[str, int]:
    known: Mapping[str, int] = transfer.notes.get("files", {})
    return known


def _key(field: FileField, link: FileLink) -> str:
    return f"{field.target}#{link.id}"


def _number(field: FileField, link: FileLink) -> str:
    """Return what a file is called whose name nobody knows."""
    return f"{field.source} #{link.id}"


def _leave(transfer: Transfer, field: FileField, link: FileLink, name: str, reason: str) -> None:
    known, key = _known(transfer), _key(field, link)
    if known.get(key) != _LEFT:
        logger.warning("file left", key=transfer.order.transfer, reason=reason)
        left = [*transfer.notes.get("files_left", ()), name]
        transfer.mark(files={**known, key: _LEFT}, files_left=left)
