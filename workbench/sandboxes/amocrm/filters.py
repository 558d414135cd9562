"""`filter[…]` and `order[…]`: which of the things there are, and in what order."""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Protocol

from workbench.sandboxes.amocrm.calls import MOST_ITEMS, Call, Refused, problem, whole


class Thing(Protocol):
    """Something with fields, as dicts have items."""

    def __getitem__(self, name: str, /) -> Any: ...


type _Test = Callable[[Thing], bool]


def find[T: Thing](call: Call, things: Mapping[int, T], by: Collection[str]) -> list[T]:
    """Those of `things`, which are by id, that the call's filter lets through, in the order that it asks for.

    `by` are the fields that can be filtered by; `statuses` stands for pairs of pipeline and status. Filters by other
    names are ignored, as amoCRM does. Refused: too many ids, or the bound of a range is no number.
    """
    wanted = dict(_tree(call.query.get("filter")))
    candidates: Iterable[T] = things.values()
    if "id" in wanted and "id" in by:
        ids = sorted({whole(value) or 0 for value in leaves(wanted.pop("id"))})
        if len(ids) > MOST_ITEMS:
            raise Refused(problem(422, f"Limit {MOST_ITEMS} ids per filter"))
        candidates = [things[id_] for id_ in ids if id_ in things]
    tests = [_test(name, value) for name, value in wanted.items() if name in by]
    found = [thing for thing in candidates if all(test(thing) for test in tests)]
    for name, direction in _tree(call.query.get("order")).items():
        if name in {"id", "created_at", "updated_at"}:
            found.sort(key=lambda thing: thing[name], reverse=leaves(direction) == ["desc"])
    return found


def leaves(value: object) -> list[str]:
    """All strings of a filter, whether it was sent as one, as a list or with indices."""
    match value:
        case dict():
            return [leaf for child in value.values() for leaf in leaves(child)]
        case list():
            return value
        case _:
            return []


def _test(name: str, wanted: object) -> _Test:
    tree = _tree(wanted)
    if name == "statuses":
        stages = {(_one(stage, "pipeline_id"), _one(stage, "status_id")) for stage in tree.values()}
        return lambda thing: (str(thing["pipeline_id"]), str(thing["status_id"])) in stages
    if tree.keys() & {"from", "to"}:
        low, high = _bound(tree.get("from"), 0), _bound(tree.get("to"), 2**62)
        return lambda thing: thing[name] is not None and low <= thing[name] <= high
    values = frozenset(leaves(wanted))
    return lambda thing: str(thing[name]) in values


def _bound(value: object, otherwise: int) -> int:
    text = "".join(leaves(value))
    if not text:
        return otherwise
    number = whole(text)
    if number is None:
        raise Refused(problem(400, "The bound of a range is not a number"))
    return number


def _one(stage: object, name: str) -> str:
    return "".join(leaves(_tree(stage).get(name)))


def _tree(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
