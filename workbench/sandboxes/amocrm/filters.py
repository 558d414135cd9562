"""`filter[…]`, `query` and `order[…]`: which of the things there are, and in what order."""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Protocol

from workbench.sandboxes.amocrm.calls import MOST_ITEMS, Call, Refused, problem, whole


class Thing(Protocol):
    """Something with fields, as dicts have items."""

    def __getitem__(self, name: str, /) -> Any: ...


type Test[T] = Callable[[T], bool]
type Tester[T] = Callable[[object], Test[T]]
"""Makes a test of what a filter wants: the subtree of the query under its name."""

ORDERS = frozenset({"id", "created_at", "updated_at"})


def find[K, T: Thing](
    call: Call,
    things: Mapping[K, T],
    by: Collection[str],
    *,
    orders: Collection[str] = ORDERS,
    testers: Mapping[str, Tester[T]] | None = None,
    text: Callable[[T], str] | None = None,
    at_top: bool = False,
) -> list[T]:
    """Those of `things`, which are by id, that the call's filter lets through, in the order that it asks for.

    `by` are the fields that can be filtered by; `statuses` stands for pairs of pipeline and status, `testers` are for
    filters of another kind, `text` is what `query` searches, of a thing. Some services have their filters `at_top`
    of the query. Filters by other names are ignored, as amoCRM does. Refused: too many ids, or the bound of a range
    is no number.
    """
    testers = testers or {}
    wanted = dict(call.query if at_top else tree(call.query.get("filter")))
    candidates: Iterable[T] = things.values()
    if "id" in wanted and "id" in by:
        ids = {value if (number := whole(value)) is None else number for value in leaves(wanted.pop("id"))}
        if len(ids) > MOST_ITEMS:
            raise Refused(problem(422, f"Limit {MOST_ITEMS} ids per filter"))
        known: Mapping[Any, T] = things
        candidates = [known[id_] for id_ in sorted(id_ for id_ in ids if id_ in things)]
    tests = [_test(name, value) for name, value in wanted.items() if name in by and name not in testers]
    tests += [testers[name](value) for name, value in wanted.items() if name in testers]
    if text and (sought := "".join(leaves(call.query.get("query"))).casefold()):
        tests.append(lambda thing: sought in text(thing).casefold())
    found = [thing for thing in candidates if all(test(thing) for test in tests)]
    for name, direction in tree(call.query.get("order")).items():
        if name in orders:
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


def tree(value: object) -> dict[str, Any]:
    """What a filter has below it, by name."""
    return value if isinstance(value, dict) else {}


def stages(wanted: object) -> set[tuple[str, str]]:
    """Pairs of pipeline and status that a filter wants."""
    return {(_one(stage, "pipeline_id"), _one(stage, "status_id")) for stage in tree(wanted).values()}


def matcher(wanted: object) -> Callable[[object], bool]:
    """A test of one value: whether it lies in the range that is wanted, or is one of the values."""
    ends = tree(wanted)
    if ends.keys() & {"from", "to"}:
        low, high = _bound(ends.get("from"), 0), _bound(ends.get("to"), 2**62)
        return lambda value: (number := _number(value)) is not None and low <= number <= high
    values = frozenset(leaves(wanted))
    return lambda value: _text(value) in values


def _test(name: str, wanted: object) -> Test[Any]:
    if name == "statuses":
        wanted_stages = stages(wanted)
        return lambda thing: (str(thing["pipeline_id"]), str(thing["status_id"])) in wanted_stages
    fits = matcher(wanted)
    return lambda thing: fits(thing[name])


def _text(value: object) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


def _number(value: object) -> float | None:
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return None
    return value if isinstance(value, int | float) else None


def _bound(value: object, otherwise: int) -> int:
    text = "".join(leaves(value))
    if not text:
        return otherwise
    number = whole(text)
    if number is None:
        raise Refused(problem(400, "The bound of a range is not a number"))
    return number


def _one(stage: object, name: str) -> str:
    return "".join(leaves(tree(stage).get(name)))
