"""application/x-www-form-urlencoded with PHP bracket keys, both ways: `leads[add][0][id]=5` ⇄ nested dicts and lists.

Read as PHP's parse_str reads it (php_register_variable_ex in PHP's main/php_variables.c), but strictly bounded.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any
from urllib.parse import quote_plus, unquote_to_bytes

MOST_FIELDS = 20_000
MOST_LEVELS = 64
"""PHP's own max_input_nesting_level."""
MOST_BRACKETS = 200_000
"""In all fields together; amoCRM's deepest field has seven."""

type Tree = str | list["Tree"] | dict[str, "Tree"]


class TooComplex(ValueError):
    """More fields or deeper brackets than are taken."""


def decode(body: bytes, *, most_levels: int = MOST_LEVELS) -> dict[str, Tree]:
    """Read a form body; keys keep the order in which they first came.

    An array whose keys are 0, 1, 2 … in this order is a list, any other a dict. What is no UTF-8 becomes
    U+FFFD, a broken percent sequence stays as it is. The caller bounds the bytes.

    Raises:
        TooComplex: a bound is passed. It is found out before any field is read.
    """
    body = _with_brackets(body)
    if body.count(b"[") > MOST_BRACKETS:
        raise TooComplex("brackets")
    if _deeper_than(most_levels).search(b"&" + body):
        raise TooComplex("levels")
    form = _Form()
    for field in body.replace(b"+", b" ").split(b"&"):
        name, _, value = field.partition(b"=")
        if path := _path(_text(name)):
            form.put(path, _text(value))
    return form.root


def select(body: bytes, names: tuple[bytes, ...]) -> bytes:
    """Return of a form body those fields whose names begin so, to be decoded alone: a megabyte takes some milliseconds.

    A name is looked at as it stands, except that escaped brackets count as brackets.

    Raises:
        TooComplex: the body has too many fields.
    """
    return b"&".join(field for field in _with_brackets(body).split(b"&") if field.startswith(names))


def encode(tree: Mapping[str, Any]) -> str:
    """Write what PHP's http_build_query writes: None is left out, True is 1, False is 0, what is empty leaves no trace.

    Raises:
        TypeError: a value is none of str, int, bool, None, mapping and sequence.
    """
    return "&".join(f"{_quote(name)}={_quote(value)}" for name, value in _fields(tree, ""))


# A bracket's escape may be written out before the fields are parted: it parts nothing itself.
_BRACKETS = ((b"%5B", b"["), (b"%5b", b"["), (b"%5D", b"]"), (b"%5d", b"]"))
_BLANKS = frozenset(" \t\n\v\f\r")
_END = re.compile(r"\](?!\[)")
_INDEX = re.compile(r"0|-?[1-9][0-9]{0,18}")
_FIRST_INDEX, _LAST_INDEX = -(2**63), 2**63 - 1


@cache
def _deeper_than(levels: int) -> re.Pattern[bytes]:
    # Possessive quantifiers: every byte is looked at once.
    return re.compile(rb"&[^=&\[]*+(?:\[[^=&\]]*+\]){%d}\[" % levels)


def _with_brackets(body: bytes) -> bytes:
    if body.count(b"&") >= MOST_FIELDS:
        raise TooComplex("fields")
    for escaped, plain in _BRACKETS:
        body = body.replace(escaped, plain)
    return body


def _text(part: bytes) -> str:
    if b"%" in part:
        part = unquote_to_bytes(part)
    return part.decode("utf-8", "replace")


def _path(name: str) -> list[str]:
    """Return the keys from the outermost inwards, "" where `[]` appends; no keys if PHP ignores the field."""
    name = name.partition("\0")[0].lstrip(" ")
    top, bracket, rest = name.partition("[")
    if not top:
        return []
    if not bracket:
        return [_plain(top)]
    if end := _END.search(rest):
        keys = rest[: end.start()].split("][")
    else:
        *keys, _never_closed = rest.split("][")
        if not keys:  # then the bracket is part of the name, while further in PHP drops it
            return [_plain(name)]
    if not _BLANKS.isdisjoint(keys):
        keys = ["" if key in _BLANKS else key for key in keys]
    return [_plain(top), *keys]


def _plain(name: str) -> str:
    # Not str.translate: of a megabyte of letters that are no ASCII it takes a tenth of a second.
    return name.replace(" ", "_").replace(".", "_").replace("[", "_")


class _Form:
    """What the fields have made so far. An array is a list until a key comes that is not the next index."""

    def __init__(self) -> None:
        self.root: dict[str, Any] = {}
        # Dicts that `[]` was used in, by identity, each with the index that the next `[]` gives.
        self._appended: dict[int, tuple[dict[str, Any], int]] = {}

    def put(self, path: list[str], value: str) -> None:
        node: Any = self.root
        parent: Any = None
        place: Any = None
        key: Any
        last = len(path) - 1
        for level, name in enumerate(path):
            child = None
            if isinstance(node, dict):
                key = name or self._next_name(node)
                if key is None:
                    return
                child = node.get(key)
            elif (key := _position(name, node)) is None:
                node = parent[place] = {str(index): child for index, child in enumerate(node)}
                key = name
            elif key < len(node):
                child = node[key]
            if level == last or child is None or isinstance(child, str):
                self._set(node, key, _grown(path[level + 1 :], value))
                return
            node, parent, place = child, node, key

    def _set(self, node: Any, key: Any, value: Tree) -> None:
        if isinstance(node, list):
            node[key : key + 1] = [value]
            return
        node[key] = value
        if id(node) in self._appended and (index := _index(key)) is not None:
            _, following = self._appended[id(node)]
            self._appended[id(node)] = node, max(following, index + 1)

    def _next_name(self, node: dict[str, Any]) -> str | None:
        """Return the name that `[]` gives in a dict; None if there is no index left."""
        if id(node) not in self._appended:
            indices = [index for name in node if (index := _index(name)) is not None]
            self._appended[id(node)] = node, max(indices, default=-1) + 1
        _, index = self._appended[id(node)]
        return str(index) if index <= _LAST_INDEX else None


def _grown(path: list[str], value: Tree) -> Tree:
    """Return what a path makes where there is nothing yet."""
    for name in reversed(path):
        value = {name: value} if name and name != "0" else [value]
    return value


def _position(name: str, node: list[Tree]) -> int | None:
    """Return where in a list a key belongs; None if it is no list any more with this key."""
    if not name:
        return len(node)
    try:
        index = int(name)
    except ValueError:
        return None
    return index if 0 <= index <= len(node) and name == str(index) else None


def _index(name: str) -> int | None:
    """Return the integer that PHP makes of a key: plain decimal, no leading zero, 64 bits."""
    if not _INDEX.fullmatch(name):
        return None
    index = int(name)
    return index if _FIRST_INDEX <= index <= _LAST_INDEX else None


def _fields(value: Any, name: str) -> Iterator[tuple[str, str]]:
    children: Iterable[tuple[Any, Any]]
    match value:
        case None:
            return
        case str():
            yield name, value
            return
        case int():  # bool is one
            yield name, str(int(value))
            return
        case Mapping():
            children = value.items()
        case Sequence() if not isinstance(value, bytes):
            children = enumerate(value)
        case _:
            raise TypeError(f"no form holds a {type(value).__name__}")
    for key, child in children:
        yield from _fields(child, f"{name}[{key}]" if name else str(key))


def _quote(text: str) -> str:
    return quote_plus(text).replace("~", "%7E")
