"""Files of fields: taken in as base64, shown as links, and fetched by links that die."""

import re
from base64 import b64decode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hmac import compare_digest
from mimetypes import guess_type
from random import Random
from typing import Any, Literal
from urllib.parse import quote, urlencode

from workbench.sandboxes.bitrix24.calls import as_list, envelope, html_page
from workbench.sandboxes.wire import SandboxRequest, SandboxResponse

type Disposition = Literal["both", "plain", "extended"]

_FETCHING_HEADERS = ("user-agent", "accept", "accept-language", "referer")


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of one field; the id is an internal one, which Drive does not know."""

    id: int
    name: str
    content: bytes


class Files:
    """The files of a portal, by id, and the links to them that are alive."""

    def __init__(self, clock: Callable[[], float], random: Random) -> None:
        self.stored: dict[int, StoredFile] = {}
        self._clock = clock
        self._random = random
        self._links: dict[str, tuple[int, float]] = {}

    def put(self, name: str, content: bytes) -> int:
        """Store a file; the same content twice is two files."""
        number = 30_577 + len(self.stored)
        self.stored[number] = StoredFile(number, name, content)
        return number

    def take(self, sent: Any, largest: int) -> int | None:
        """Store what came as `[name, base64]`; None if it is nothing of the kind or too large, which is no error."""
        match as_list(sent):
            case [str(name), str(text)] if name:
                content = _decoded(text)
                return self.put(name, content) if content is not None and len(content) <= largest else None
            case _:
                return None

    def links(self, number: int, place: Mapping[str, object], origin: str, seconds: float) -> dict[str, Any]:
        """A file as crm.item.* shows it: `url` wants a browser's session, `urlMachine` lives for `seconds`.

        `place` says of which field of which item it is, for people who read the addresses.
        """
        token = self._random.randbytes(32).hex()
        self._links[token] = number, self._clock() + seconds
        action = {"action": "crm.controller.item.getFile", "SITE_ID": "s1"}
        query = urlencode({**place, "fileId": number})
        return {
            "id": number,
            "url": f"{origin}/bitrix/services/main/ajax.php?{urlencode(action)}&{query}",
            "urlMachine": f"{origin}/rest/crm.controller.item.getFile.json?auth={token}&{query}",
        }

    def kill_links(self) -> None:
        """No link that was given works any more."""
        self._links.clear()

    def fetch(self, request: SandboxRequest, disposition: Disposition) -> SandboxResponse:
        """What is behind a `urlMachine`: the bytes, with the name in a header."""
        if missing := [name for name in _FETCHING_HEADERS if name not in request.headers]:
            return html_page(403, f"Access denied ({', '.join(missing)})")
        sent = {name: values[-1] for name, values in request.parameters.items()}
        number, until = self._links.get(sent.get("auth", ""), (0, 0.0))
        if not number or not compare_digest(sent.get("fileId", "").encode(), str(number).encode()):
            return envelope(401, {"error": "invalid_token", "error_description": "Unable to get file by token"})
        if self._clock() >= until:
            return envelope(401, {"error": "expired_token", "error_description": "The link has expired"})
        file = self.stored[number]
        headers = {
            "content-type": guess_type(file.name)[0] or "application/octet-stream",
            "content-disposition": _disposition(file.name, disposition),
        }
        return SandboxResponse(200, file.content, headers)


def _decoded(text: str) -> bytes | None:
    try:
        return b64decode(text, validate=True)
    except ValueError:
        return None


def _disposition(name: str, form: Disposition) -> str:
    plain = re.sub(r'[^ -~]|["\\]', "_", name)
    parts = {"plain": f'filename="{plain}"', "extended": f"filename*=utf-8''{quote(name, safe='')}"}
    wanted = parts.values() if form == "both" else [parts[form]]
    return "; ".join(["attachment", *wanted])
