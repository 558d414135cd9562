"""The leads API of a stack, as its callers see it."""

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self
from urllib.parse import quote

import httpx
import typer

from workbench.cli.console import Problem, interactive
from workbench.cli.target import Target
from workbench.cli.world import World

API_KEY = "RELAY_API_KEY"
"""The environment variable that holds the key of a deployed stack."""

# API Gateway gives up after 30 s, so an answer comes before that or never.
_TIMEOUT = httpx.Timeout(35.0, connect=5.0)
_REFUSED = frozenset({400, 413, 415})


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a lead.

    `status` is accepted, duplicate, queued, needs_reconcile, rejected (by CartelCRM), invalid (by us) or
    conflict (another lead has this external_id); `id` is CartelCRM's.
    """

    status: str
    id: str | None = None
    reason: str | None = None

    @property
    def refused(self) -> bool:
        """Whether the lead must be mended before it is sent again."""
        return self.status in ("rejected", "invalid", "conflict")

    def as_json(self) -> dict[str, str]:
        """Return what is known."""
        return {name: value for name, value in asdict(self).items() if value is not None}


class Busy(Exception):
    """The relay cannot take it now, or its answer was lost; the same may be sent again."""

    def __init__(self, reason: str, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class LeadsApi:
    """Submits leads and asks for them; an async context manager."""

    def __init__(self, target: Target, key: str, world: World) -> None:
        """Reach the API of `target` with a lead API key."""
        self.url = target.output("LeadsUrl")
        self._where = target
        self._client = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {key}"},
            timeout=_TIMEOUT,
            transport=world.transport,
            trust_env=target.endpoint is None,  # no proxy stands between here and 127.0.0.1
        )

    @classmethod
    def of(cls, target: Target, world: World) -> Self:
        """Reach the API of `target` with the local stack's own key, or the person's.

        Raises:
            Problem: there is no key.
        """
        return cls(target, _key(target), world)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def submit(self, lead: Mapping[str, Any], *, queue: bool = False) -> Verdict:
        """Submit a lead; `queue` does not wait for CartelCRM.

        Raises:
            Busy: not now.
            Problem: no lead at all can be submitted like this.
        """
        headers = {"Prefer": "respond-async"} if queue else {}
        response = await self._request("POST", self.url, json=lead, headers=headers)
        answer = _object(response)
        if response.status_code in (200, 202) and "status" in answer:
            return Verdict(answer["status"], answer.get("id"))
        if response.status_code == 422:
            if answer.get("error") == "rejected":
                return Verdict("rejected", reason=str(answer.get("reason", "")))
            return Verdict("invalid", reason=_mistakes(answer))
        if response.status_code == 409:
            return Verdict("conflict", reason="another lead with this external_id was submitted before")
        if response.status_code in _REFUSED:
            return Verdict("invalid", reason=str(answer.get("error", response.reason_phrase)))
        raise self._unexpected(response)

    async def find(self, external_id: str, *, ask_cartelcrm: bool = False) -> Mapping[str, Any] | None:
        """Return what the relay knows of a lead, or what CartelCRM knows; None if it knows none.

        Raises:
            Busy: not now.
            Problem: not with this key.
        """
        # A segment of dots alone would walk up the path.
        segment = quote(external_id, safe="") if external_id.strip(".") else external_id.replace(".", "%2E")
        response = await self._request("GET", f"{self.url}/{segment}{'/status' if ask_cartelcrm else ''}")
        answer = _object(response)
        if response.status_code == 200 and "external_id" in answer:
            return answer
        if response.status_code == 404 and "error" in answer:
            return None
        if response.status_code == 404 and "/" in external_id:
            raise Problem("API Gateway finds no lead whose external_id has a slash; `relay deliveries show` does.")
        raise self._unexpected(response)

    async def _request(self, method: str, url: str, **more: Any) -> httpx.Response:
        try:
            return await self._client.request(method, url, **more)
        except httpx.TransportError as error:
            raise Busy(f"{self.url} does not answer ({type(error).__name__})") from None

    def _unexpected(self, response: httpx.Response) -> Exception:
        error = _object(response).get("error")
        if response.status_code == 401:
            return Problem(f"The API of {self._where} does not know this key: put one of its own into {API_KEY}.")
        if error == "not_configured":
            return Problem(f"The API of {self._where} has no keys yet: relay secrets init{self._where.option}")
        if response.status_code in (429, 500, 502, 503, 504):
            wait = response.headers.get("Retry-After", "")
            return Busy(
                f"The API of {self._where} answers {response.status_code} {error or response.reason_phrase}",
                float(wait) if wait.isascii() and wait.isdigit() else None,
            )
        return Problem(f"{self.url} answers {response.status_code}: no leads API is there.")


def now[T](doing: Callable[[], T]) -> T:
    """Do something that cannot wait.

    Raises:
        Problem: it would have to.
    """
    try:
        return doing()
    except Busy as busy:
        after = f" in {busy.retry_after:.0f} s" if busy.retry_after else " later"
        raise Problem(f"{busy}; try again{after}.") from None


def _key(target: Target) -> str:
    if target.name is None:
        return target.secrets["lead_api_key"]
    if key := os.environ.get(API_KEY):
        return key
    if interactive():
        key = str(typer.prompt(f"Lead API key of {target}", hide_input=True, err=True)).strip()
        if key.isascii() and key.isprintable():
            return key
        raise Problem("An API key has only ASCII characters.")
    raise Problem(f"Put a lead API key of {target} into {API_KEY}.")


def _object(response: httpx.Response) -> Mapping[str, Any]:
    try:
        answer = response.json()
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def _mistakes(answer: Mapping[str, Any]) -> str:
    errors = answer.get("errors") or [{"field": "", "message": answer.get("error", "invalid")}]
    return "; ".join(f"{error['field']}: {error['message']}".removeprefix(": ") for error in errors)
