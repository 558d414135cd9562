"""Bots: which there are, and who was told to run."""

from collections.abc import Mapping, Sequence
from typing import Any

from workbench.sandboxes.amocrm.bodies import Id
from workbench.sandboxes.amocrm.calls import (
    NOT_ALLOWED,
    NOT_FOUND,
    Body,
    Call,
    Mistake,
    Refused,
    not_supported,
    problem,
    refuse,
    whole,
)
from workbench.sandboxes.amocrm.services import BOTS
from workbench.sandboxes.amocrm.tables import Table
from workbench.sandboxes.wire import SandboxResponse

MOST_RUNS = 100
_ENTITY_TYPES = frozenset({1, 2, 12, "1", "2", "12", "contacts", "leads", "customers"})
_ACCEPTED = SandboxResponse(202)


class _RunBody(Body):
    bot_id: Id | None = None
    entity_id: Id
    entity_type: int | str


class Bots:
    """The bots of an account; `runs` are the orders to run, stop and go on, in their order."""

    def __init__(self) -> None:
        self.bots = Table(BOTS, str)
        self.runs: list[Mapping[str, Any]] = []

    def answer(self, call: Call, path: Sequence[str]) -> SandboxResponse:
        """`api/v4/bots…`."""
        match call.request.method, path:
            case "POST", ["run"]:
                items = call.items(_RunBody)
                if len(items) > MOST_RUNS:
                    raise Refused(problem(400, f"A list of 1 to {MOST_RUNS} runs is expected"))
                refuse({item.request_id: item.mistakes or self._wrong(item.body, item.body.bot_id) for item in items})
                self.runs += [{"action": "run", **item.body.model_dump(exclude={"request_id"})} for item in items]
                return _ACCEPTED
            case "POST", [id_, "run" | "stop" as action] if whole(id_) in self.bots.records:
                item = call.item(_RunBody)
                refuse({item.request_id: self._wrong(item.body, int(id_))})
                order = item.body.model_dump(exclude={"request_id"}) | {"bot_id": int(id_)}
                self.runs.append({"action": action, **order})
                return _ACCEPTED
            case _, ["run"] | [_, "run" | "stop"]:
                return NOT_ALLOWED if call.request.method != "POST" else NOT_FOUND
            case _:
                return self.bots.answer(call, path)

    def go_on(self, call: Call, bot_id: str, continue_id: str) -> SandboxResponse:
        """`api/v4/{type of bot}/{id}/continue/{id}`: a widget's step is done."""
        if call.request.method != "POST":
            return NOT_ALLOWED
        self.runs.append(
            {"action": "continue", "bot_id": whole(bot_id), "continue_id": continue_id, "told": call.json()}
        )
        return _ACCEPTED

    def _wrong(self, body: _RunBody, bot_id: int | None) -> Sequence[Mistake]:
        mistakes = [] if bot_id in self.bots.records else [Mistake("NotFound", "bot_id", "Bot not found")]
        return mistakes if body.entity_type in _ENTITY_TYPES else [*mistakes, not_supported("entity_type")]
