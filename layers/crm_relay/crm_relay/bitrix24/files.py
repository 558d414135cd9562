"""Files of items: their links, their bytes, and how they go into a field (Bitrix24 reference, section 3.7)."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

from crm_relay.bitrix24.client import Operation, decoded, origin, refused
from crm_relay.bitrix24.items import DEAL, update
from crm_relay.http_client import Exchange, Request, Response
from crm_relay.outcomes import OutcomeUnknown, Rejected, Unreachable

DEADLINE = 60.0
"""Seconds for one file."""

_LONGEST_NAME = 150
_UNSAFE = re.compile(r'[\ud800-\udfff\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069<>:"/\\|?*]+')
_EXTENDED = re.compile(r"filename\*\s*=\s*([A-Za-z0-9_-]+)'[^']*'([^;\s]+)", re.IGNORECASE)
_QUOTED = re.compile(r'filename\s*=\s*"((?:[^"\\]|\\.)*)"', re.IGNORECASE)
_BARE = re.compile(r"filename\s*=\s*([^;\s\"]+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class FileLink:
    """A file in a field of an item that was just read. Its URL holds a token and dies: it is never stored."""

    id: int
    url: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class File:
    """A file's name, fit for any file system, and its bytes."""

    name: str
    content: bytes = field(repr=False)

    def as_value(self) -> list[str | bytes]:
        """Return what a single file field takes; a multiple one takes a list of these. Bytes are base64 in JSON."""
        return [self.name, self.content]


class FileTooLarge(Rejected):
    """The file is over the limit; it was not read to its end."""

    def __init__(self) -> None:
        super().__init__("file_too_large")


class LinkDead(Rejected):
    """No file comes by this link: the item must be read again for a fresh one."""

    def __init__(self) -> None:
        super().__init__("file_link_dead")


class FileRefused(Rejected):
    """The write succeeded, and the file is not in the item: Bitrix24 says nothing of files that it does not take."""

    def __init__(self) -> None:
        super().__init__("file_refused")


def links(value: Any) -> list[FileLink]:
    """Return the files of a field, single or multiple; what is none is passed over."""
    found = value if isinstance(value, list) else [value]
    return [
        FileLink(int(each["id"]), each["urlMachine"])
        for each in found
        if isinstance(each, dict) and str(each.get("id", "")).isdecimal() and isinstance(each.get("urlMachine"), str)
    ]


def download(host: str, link: FileLink, *, limit: int, now: float) -> Exchange[File]:
    """Fetch a file of at most `limit` bytes from the portal at `host`.

    Raises:
        FileTooLarge: it is longer.
        LinkDead: the link has died, or leads away from the portal.
        NotExecuted, Unauthorized, Blocked: as `client.call`; Unreachable where the answer is lost.
    """
    home = origin(host)
    url = home + link.url if link.url.startswith("/") and not link.url.startswith("//") else link.url
    if not _is_at(url, home):
        raise LinkDead
    try:
        response = yield Request(
            "GET",
            url,
            headers={"Accept": "*/*", "Accept-Language": "ru,en", "Referer": f"{home}/"},
            deadline=DEADLINE,
            response_limit=limit,
        )
    except OutcomeUnknown as outcome:
        if str(outcome) == "response_too_large":
            raise FileTooLarge from None
        raise Unreachable(str(outcome)) from None
    disposition = response.headers.get("content-disposition", "")
    if response.status == 200 and disposition:
        return File(file_name(disposition) or f"file-{link.id}", response.content)
    raise _no_file(response, now)


def file_name(disposition: str) -> str:
    """Return the name in a Content-Disposition header, without what a file system refuses; "" if there is none.

    An extended name (RFC 5987) wins over a plain one, whose bytes are UTF-8 as often as Latin-1.
    """
    if found := _EXTENDED.search(disposition):
        try:
            return _safe(unquote_to_bytes(found[2]).decode(found[1]))
        except (LookupError, UnicodeError):
            pass
    if found := _QUOTED.search(disposition):
        return _safe(_plain(re.sub(r"\\(.)", r"\1", found[1])))
    found = _BARE.search(disposition)
    return _safe(_plain(found[1])) if found else ""


def field_value(kept: Sequence[int], new: Sequence[File], *, multiple: bool) -> Any:
    """Return what an update takes to add files to a field.

    A multiple field loses the files whose ids are left out; a single one has its file replaced.
    """
    if multiple:
        return [*({"id": file_id} for file_id in kept), *(file.as_value() for file in new)]
    assert len(new) == 1
    return new[0].as_value()


def add_file(deal_id: int, field_name: str, file: File, *, kept: Sequence[int], multiple: bool) -> Operation[list[int]]:
    """Put one more file into a field of a deal; return the ids of the field's files. Barred from batches.

    Raises (when read):
        FileRefused: no file has come to the field's.
    """
    operation = update(DEAL, deal_id, {field_name: field_value(kept, [file], multiple=multiple)})

    def read(result: Any) -> list[int]:
        found = file_ids(operation.read(result), field_name)
        if not set(found) - set(kept):
            raise FileRefused
        return found

    return Operation(operation.method, operation.params, read)


def file_ids(item: Mapping[str, Any], field_name: str) -> list[int]:
    """Return the ids of a field's files."""
    return [link.id for link in links(item.get(field_name))]


def _is_at(url: str, home: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return f"{parts.scheme}://{parts.netloc}" == home and not re.search(r"[\s\\]", url)


def _no_file(response: Response, now: float) -> Exception:
    body = decoded(response)
    if response.status in (401, 403, 404, 410) or (response.status == 200 and not (body and "error" in body)):
        return LinkDead()
    if body is None and 300 <= response.status < 500 and response.status not in (408, 425, 429):
        return LinkDead()  # a page about this link, and not about the portal
    outcome = refused(response, body, now)
    if isinstance(outcome, OutcomeUnknown):
        return Unreachable(str(outcome))
    return LinkDead() if isinstance(outcome, Rejected) else outcome


def _plain(name: str) -> str:
    if "%" in name:
        try:
            return unquote_to_bytes(name).decode()
        except UnicodeDecodeError:
            return name
    try:
        return name.encode("latin-1").decode()
    except UnicodeError:
        return name


def _safe(name: str) -> str:
    name = " ".join(_UNSAFE.sub("_", name).split()).strip(". ")
    stem, dot, extension = name.rpartition(".")
    if len(name) <= _LONGEST_NAME:
        return name
    return (
        stem[: _LONGEST_NAME - len(extension) - 1] + dot + extension
        if dot and len(extension) < 20
        else name[:_LONGEST_NAME]
    )
