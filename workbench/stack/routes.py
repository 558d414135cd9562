"""Which route of an HTTP API takes a request."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from workbench.stack.blueprint import Route

DEFAULT = "$default"


@dataclass(frozen=True, slots=True)
class Match:
    """The route that takes a request, and the values of its path parameters."""

    route: Route
    parameters: Mapping[str, str]

    @property
    def key(self) -> str:
        """The route as API Gateway names it."""
        return DEFAULT if self.route.path == DEFAULT else f"{self.route.method} {self.route.path}"


class Routes:
    """The routes of an API, the most specific first.

    As API Gateway picks them: a static segment before a parameter, both before a greedy `{proxy+}`, `$default` last;
    for the same path the method itself before ANY.
    """

    def __init__(self, routes: Iterable[Route]) -> None:
        ordered = sorted(routes, key=_rank)
        self._routes = [(route, _pattern(route.path)) for route in ordered]

    def match(self, method: str, path: str) -> Match | None:
        """Find the route for a request; `path` is percent-decoded."""
        for route, pattern in self._routes:
            if route.method in (method, "ANY") and (found := pattern.fullmatch(path)):
                names = re.findall(r"\{(\w[\w.-]*)\+?\}", route.path)
                return Match(route, dict(zip(names, found.groups(), strict=True)))
        return None


def _rank(route: Route) -> tuple[list[int], bool]:
    if route.path == DEFAULT:
        return [3], True
    kinds = [_kind(segment) for segment in route.path.removeprefix("/").split("/")]
    return kinds, route.method == "ANY"


def _kind(segment: str) -> int:
    if segment.endswith("+}"):
        return 2
    return 1 if segment.startswith("{") else 0


def _pattern(path: str) -> re.Pattern[str]:
    if path == DEFAULT:
        return re.compile(".*", re.DOTALL)
    segments = path.removeprefix("/").split("/")
    patterns = ((re.escape(segment), "([^/]+)", "(.+)")[_kind(segment)] for segment in segments)
    return re.compile("/" + "/".join(patterns), re.DOTALL)
