"""A deal's files, from the source's fields into the hub's: one by one, each once, each marked in the ledger.

Notes of a transfer: {"files": {place: the file's id in the hub, `_UNDER_WAY` or `_LEFT`}, "files_left": [names],
"uploading": {"at": unix seconds when the last upload left, "sha256": of its bytes, "before": the field's files then}}.

One file at a time is held: of 30 MB, an upload takes 140 MB of memory, since its JSON grows beside its bytes.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bitrix_robot.deal import Transfer
from bitrix_robot.mapping import FileField
from bitrix_robot.portal import Portal
from crm_relay.bitrix24 import items
from crm_relay.bitrix24.client import APPEARS_WITHIN
from crm_relay.bitrix24.files import File, FileLink, FileTooLarge, LinkDead, add_file, download, links
from crm_relay.bitrix24.items import DEAL, item_name
from crm_relay.observability import logger
from crm_relay.outcomes import NotExecuted, Rejected

_UNDER_WAY, _LEFT = 0, -1
_MOST_AT_ONCE = 5_000_000
"""Bytes of a file that a waiting caller's seconds are enough for."""


@dataclass(frozen=True, slots=True)
class FileCarrier:
    """Carries files between two portals; one of more than `limit` bytes is left, and one that is refused."""

    source: Portal
    hub: Portal
    limit: int

    def carry(self, transfer: Transfer) -> None:
        """Carry the files of a deal that is in the hub; a large one not while a caller waits.

        Raises:
            Outcome, StorageError, Fenced: that was in the way; what is done is marked.
        """
        assert transfer.wanted is not None
        for field in transfer.wanted.files:
            for place, link in enumerate(field.links):
                if place and not field.multiple:
                    _leave(transfer, field, link, _number(field, link), "field_takes_one")
                elif not self._is_settled(transfer, field, link):
                    self._carry(transfer, field, link)

    def _is_settled(self, transfer: Transfer, field: FileField, link: FileLink) -> bool:
        """Tell whether a file is done with: carried, or left."""
        state = _known(transfer).get(_key(field, link))
        if state != _UNDER_WAY:
            return state is not None
        upload = transfer.notes["uploading"]
        if self._has_arrived(transfer, field, link, upload):
            return True
        if (wait := upload["at"] + APPEARS_WITHIN - self.hub.now()) > 0:
            raise NotExecuted("file_may_still_appear", retry_after=wait)
        return False

    def _has_arrived(self, transfer: Transfer, field: FileField, link: FileLink, upload: Mapping[str, Any]) -> bool:
        """Tell whether an upload without an answer has brought its file: a new one may be a colleague's, too."""
        known = _known(transfer)
        for new in self._in_hub(transfer, field):
            if new.id not in upload["before"] and self._digest(new) == upload["sha256"]:
                transfer.mark(files={**known, _key(field, link): new.id})
                return True
        return False

    def _digest(self, link: FileLink) -> str:
        try:
            return _sha256(_fetched(self.hub, link, self.limit))
        except Rejected:  # so it is none that we have sent
            return ""

    def _carry(self, transfer: Transfer, field: FileField, link: FileLink) -> None:
        key, name = _key(field, link), _number(field, link)
        known = {place: state for place, state in _known(transfer).items() if place != key}
        try:
            file = self._downloaded(transfer, field, link)
            name = file.name
            # Read as late as can be: what is in the field and not named in the write is gone from it.
            before = [each.id for each in self._in_hub(transfer, field)]
            upload = {"at": int(self.hub.now()), "sha256": _sha256(file), "before": before}
            transfer.mark(files={**known, key: _UNDER_WAY}, uploading=upload)
            write = add_file(transfer.hub_deal, field.target, file, kept=before, multiple=field.multiple)
            after = self.hub.do(write)
        except NotExecuted:
            if key in _known(transfer):
                transfer.mark(files=known)
            raise
        except Rejected as refusal:
            _leave(transfer, field, link, name, refusal.reason)
        else:
            transfer.mark(files={**known, key: min(set(after) - set(before))})

    def _in_hub(self, transfer: Transfer, field: FileField) -> list[FileLink]:
        return links(self.hub.do(items.get(DEAL, transfer.hub_deal)).get(field.target))

    def _downloaded(self, transfer: Transfer, field: FileField, link: FileLink) -> File:
        limit = min(self.limit, _MOST_AT_ONCE) if transfer.is_awaited else self.limit
        try:
            return _fetched(self.source, link, limit)
        except LinkDead:
            deal = self.source.do(items.get(DEAL, transfer.order.deal))
            fresh = [each for each in links(deal.get(item_name(field.source))) if each.id == link.id]
            if not fresh:
                raise
            return _fetched(self.source, fresh[0], limit)
        except FileTooLarge:
            if limit < self.limit:
                raise NotExecuted("file_too_large_to_wait_for") from None
            raise


def _fetched(portal: Portal, link: FileLink, limit: int) -> File:
    return portal.run(lambda access: download(access.host, link, limit=limit, now=portal.now()))


def _sha256(file: File) -> str:
    return hashlib.sha256(file.content).hexdigest()


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
