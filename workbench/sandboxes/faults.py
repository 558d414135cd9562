"""The fault switches of every sandbox: what may go wrong with a request, and when it does.

A fault is a plan: it hits the requests that match its `method` and `path` prefix, each with its
`probability`, until it has hit `times` of them. Faults that stand in for the answer take `when`: "before"
the CRM does its work, which then never happens, or "after" it, so that the work is done and the caller is
not told.
"""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from email.utils import formatdate
from random import Random
from typing import Annotated, Any, Literal, override

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    TypeAdapter,
    ValidationError,
)

from workbench.sandboxes.wire import NEVER, RESET, Break, SandboxRequest, SandboxResponse, json_answer

type When = Literal["before", "after"]
type Status = Annotated[int, Field(ge=200, le=599)]


@dataclass(frozen=True, slots=True)
class Scene:
    """Where a fault strikes, at `now` (unix seconds).

    `genuine` lets the CRM do its work and gives its true answer; `refusal` makes an answer in the CRM's own
    shape of a status and an error code.
    """

    genuine: Callable[[], SandboxResponse]
    refusal: Callable[[int, str], SandboxResponse]
    now: float


def _endless_if_by_chance(fields: dict[str, Any]) -> int | None:
    return 1 if fields.get("probability", 1.0) == 1.0 else None


class Fault(BaseModel):
    """A plan for requests to go wrong.

    `method` empty means any; `path` is a prefix of the raw path; `times` null means no end, and is 1 by
    default, or null with a `probability` below 1.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: str
    method: str = ""
    path: str = ""
    probability: float = Field(default=1.0, gt=0.0, le=1.0)
    times: int | None = Field(default_factory=_endless_if_by_chance, ge=1)

    def matches(self, request: SandboxRequest) -> bool:
        """Whether the plan is about such requests."""
        return self.method in {"", request.method} and request.path.startswith(self.path)

    @abstractmethod
    def strike(self, scene: Scene) -> SandboxResponse:
        """What the caller gets."""


class _Instead(Fault):
    """Another answer than the true one, whether or not the CRM did its work."""

    when: When = "before"

    @override
    def strike(self, scene: Scene) -> SandboxResponse:
        if self.when == "after":
            scene.genuine()
        return self._answer()

    @abstractmethod
    def _answer(self) -> SandboxResponse: ...


class Timeout(_Instead):
    """No answer, ever: the connection stays open until the caller gives up."""

    kind: Literal["timeout"] = "timeout"

    @override
    def _answer(self) -> SandboxResponse:
        return NEVER


class Reset(_Instead):
    """The connection is reset without an answer."""

    kind: Literal["reset"] = "reset"

    @override
    def _answer(self) -> SandboxResponse:
        return RESET


class Html(_Instead):
    """A page of a proxy or a maintenance screen: with a 5xx an error without a code, with 200 a lie."""

    kind: Literal["html"] = "html"
    status: Status = 200

    @override
    def _answer(self) -> SandboxResponse:
        page = f"<!doctype html><html><body><h1>{self.status}</h1></body></html>"
        return SandboxResponse(self.status, page.encode(), {"content-type": "text/html; charset=utf-8"})


class Replaced(_Instead):
    """`text` for a body that claims to be JSON; by default an answer without an id."""

    kind: Literal["replaced"] = "replaced"
    status: Status = 200
    text: str = "{}"

    @override
    def _answer(self) -> SandboxResponse:
        return SandboxResponse(self.status, self.text.encode(), {"content-type": "application/json"})


class Redirect(Fault):
    """The caller is sent elsewhere."""

    kind: Literal["redirect"] = "redirect"
    status: int = Field(default=302, ge=300, le=399)
    location: str = "https://elsewhere.invalid/"

    @override
    def strike(self, scene: Scene) -> SandboxResponse:
        return SandboxResponse(self.status, headers={"location": self.location})


class _Refused(Fault):
    """The CRM's own refusal: its work is not done."""

    status: int
    code: str

    @override
    def strike(self, scene: Scene) -> SandboxResponse:
        return scene.refusal(self.status, self.code)


class RateLimited(_Refused):
    """429 with `retry_after` word for word, or an HTTP date `retry_after_date` seconds ahead, or neither."""

    kind: Literal["rate_limited"] = "rate_limited"
    status: Literal[429] = 429
    code: str = "rate_limited"
    retry_after: int | str | None = None
    retry_after_date: int | None = None

    @override
    def strike(self, scene: Scene) -> SandboxResponse:
        answer = super().strike(scene)
        if self.retry_after_date is not None:
            return answer.retry_after(formatdate(scene.now + self.retry_after_date, usegmt=True))
        return answer if self.retry_after is None else answer.retry_after(self.retry_after)


class CodedError(_Refused):
    """A 5xx of the CRM itself, with an error code; "after" it has done its work all the same."""

    kind: Literal["coded_error"] = "coded_error"
    status: int = Field(default=503, ge=500, le=599)
    code: str = "internal_error"
    when: When = "before"

    @override
    def strike(self, scene: Scene) -> SandboxResponse:
        if self.when == "after":
            scene.genuine()
        return super().strike(scene)


class Unauthorized(_Refused):
    """401, whatever the caller shows."""

    kind: Literal["unauthorized"] = "unauthorized"
    status: Literal[401] = 401
    code: str = "unauthorized"


class Forbidden(_Refused):
    """403, whatever the caller shows."""

    kind: Literal["forbidden"] = "forbidden"
    status: Literal[403] = 403
    code: str = "forbidden"


class Slow(Fault):
    """The true answer, `seconds` late."""

    kind: Literal["slow"] = "slow"
    seconds: NonNegativeFloat = 5.0

    @override
    def strike(self, scene: Scene) -> SandboxResponse:
        return replace(scene.genuine(), delay=self.seconds)


class Drip(Fault):
    """The true answer, its body byte by byte over `seconds`."""

    kind: Literal["drip"] = "drip"
    seconds: NonNegativeFloat = 30.0

    @override
    def strike(self, scene: Scene) -> SandboxResponse:
        return replace(scene.genuine(), drip=self.seconds)


class CutShort(Fault):
    """The true answer, broken off in the middle of its body."""

    kind: Literal["cut_short"] = "cut_short"

    @override
    def strike(self, scene: Scene) -> SandboxResponse:
        return replace(scene.genuine(), breaks=Break.IN_BODY)


class Oversized(Fault):
    """The true answer, still valid JSON, filled up with blanks to `size` bytes of which no header warns."""

    kind: Literal["oversized"] = "oversized"
    size: NonNegativeInt = 100_000_000

    @override
    def strike(self, scene: Scene) -> SandboxResponse:
        answer = scene.genuine()
        return replace(answer, body=answer.body.ljust(self.size), announced=False)


type AnyFault = (
    Timeout
    | Reset
    | Html
    | Replaced
    | Redirect
    | RateLimited
    | CodedError
    | Unauthorized
    | Forbidden
    | Slow
    | Drip
    | CutShort
    | Oversized
)
_FROM_JSON = TypeAdapter[Fault](Annotated[AnyFault, Field(discriminator="kind")])


@dataclass(slots=True, eq=False)
class _Plan:
    fault: Fault
    hits: int = 0

    @property
    def spent(self) -> bool:
        return self.fault.times is not None and self.hits >= self.fault.times


class Faults:
    """The faults that one sandbox has before it; the first that hits a request has it alone."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._plans: list[_Plan] = []

    def add(self, *faults: Fault) -> None:
        """Queue `faults` behind those that wait."""
        self._plans.extend(_Plan(fault) for fault in faults)

    def clear(self) -> None:
        """Forget every plan."""
        self._plans.clear()

    def take(self, request: SandboxRequest) -> Fault | None:
        """The fault that hits `request`, if any; it is used up by one."""
        for plan in self._plans:
            if plan.fault.matches(request) and self._hits(plan.fault):
                plan.hits += 1
                if plan.spent:
                    self._plans.remove(plan)
                return plan.fault
        return None

    def waiting(self) -> list[dict[str, object]]:
        """The plans that are not used up, in order, with the `hits` that they have had."""
        return [plan.fault.model_dump() | {"hits": plan.hits} for plan in self._plans]

    def control(self, request: SandboxRequest) -> SandboxResponse:
        """`POST` queues the fault in the body, `GET` shows what waits, `DELETE` clears it."""
        match request.method:
            case "POST":
                try:
                    self.add(_FROM_JSON.validate_json(request.body))
                except ValidationError as refused:
                    return json_answer(422, {"error": "invalid_fault", "problems": problems(refused)})
            case "DELETE":
                self.clear()
            case "GET":
                pass
            case _:
                return json_answer(405, {"error": "method_not_allowed"})
        return json_answer(200, {"faults": self.waiting()})

    def _hits(self, fault: Fault) -> bool:
        # A certain fault draws no number, so that it does not shift what a seed makes of the others.
        return fault.probability == 1.0 or self._random.random() < fault.probability


def problems(refused: ValidationError) -> list[str]:
    """What was wrong with a body, one line a mistake."""
    return [f"{'.'.join(map(str, error['loc'])) or 'body'}: {error['msg']}" for error in refused.errors()]
