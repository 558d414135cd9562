"""Batches: up to fifty commands in one request, of which later ones may use what earlier ones gave."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from crm_relay.brackets import TooComplex, decode
from workbench.sandboxes.bitrix24.calls import Answer, Refused

MOST_COMMANDS = 50
_BARRED = frozenset({"batch", "disk.folder.uploadfile", "disk.file.uploadversion", "crm.controller.item.getfile"})
_REFERENCE = re.compile(r"\$result((?:\[[^\[\]]*\])+)")


@dataclass(slots=True)
class Results:
    """What the commands of a batch came to, by label."""

    results: dict[str, object] = field(default_factory=dict)
    errors: dict[str, object] = field(default_factory=dict)
    totals: dict[str, object] = field(default_factory=dict)
    nexts: dict[str, object] = field(default_factory=dict)
    times: dict[str, object] = field(default_factory=dict)

    @property
    def told(self) -> dict[str, object]:
        """The `result` of the answer."""
        return {
            "result": _keyed(self.results),
            "result_error": _keyed(self.errors),
            "result_total": _keyed(self.totals),
            "result_next": _keyed(self.nexts),
            "result_time": _keyed(self.times),
        }


type Run = Callable[[str, Mapping[str, Any]], tuple[Answer, object]]
"""Runs a method with its parameters; gives its answer and its time. Refused if it does not."""


class BrokenOff(Exception):
    """The gateway gave up in the middle: what was done until then is done."""


def run_batch(sent: Mapping[str, Any], run: Run, breaks_after: int | None) -> Results:
    """Run the commands in order; with `halt` none follows one that was refused.

    Raises:
        Refused: there are too many commands, or `cmd` is none.
        BrokenOff: `breaks_after` commands are done and there are more.
    """
    commands = sent.get("cmd")
    if not isinstance(commands, list | dict):
        raise Refused("ERROR_ARGUMENT", "Wrong value of parameter cmd")
    labelled = commands.items() if isinstance(commands, dict) else ((str(n), each) for n, each in enumerate(commands))
    if len(commands) > MOST_COMMANDS:
        raise Refused("ERROR_BATCH_LENGTH_EXCEEDED", "Max batch length exceeded")
    halts = str(sent.get("halt", "0")).upper() in {"1", "TRUE", "Y"}
    done = Results()
    for number, (label, command) in enumerate(labelled):
        if number == breaks_after:
            raise BrokenOff
        try:
            method, params = _parsed(command)
            answer, time = run(method, _filled(params, done.results))
        except Refused as refused:
            done.errors[label] = refused.told
            if halts:
                break
            continue
        done.results[label] = answer.result
        done.times[label] = time
        if answer.total is not None:
            done.totals[label] = answer.total
        if answer.following is not None:
            done.nexts[label] = answer.following
    return done


def _parsed(command: object) -> tuple[str, dict[str, Any]]:
    method, _, query = str(command).partition("?")
    if method.lower() in _BARRED:
        raise Refused("ERROR_BATCH_METHOD_NOT_ALLOWED", "Method is not allowed for batch usage", 405)
    try:
        return method, dict(decode(query.encode()))
    except TooComplex:
        raise Refused("ERROR_ARGUMENT", "The command is too complex") from None


def _filled(value: Any, results: Mapping[str, object]) -> Any:
    """Put results in the place of references; one to what is not there stays as text."""
    match value:
        case dict():
            return {key: _filled(each, results) for key, each in value.items()}
        case list():
            return [_filled(each, results) for each in value]
        case str() if whole := _REFERENCE.fullmatch(value):
            found = _found(whole[1], results)
            return value if found is None else found
        case _:
            return _REFERENCE.sub(lambda part: str(_scalar(_found(part[1], results), part[0])), value)


def _found(path: str, results: Mapping[str, object]) -> Any:
    node: Any = results
    for key in path[1:-1].split("]["):
        if isinstance(node, Mapping):
            node = node.get(key)
        elif isinstance(node, list) and key.isdecimal() and int(key) < len(node):
            node = node[int(key)]
        else:
            return None
    return node


def _scalar(found: Any, text: str) -> Any:
    return found if isinstance(found, str | int | float) else text


def _keyed(entries: dict[str, object]) -> object:
    """With numbers for labels PHP makes a list of what is there: after a refusal the places shift."""
    return list(entries.values()) if all(label.isdecimal() for label in entries) else entries
