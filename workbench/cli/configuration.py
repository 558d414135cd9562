"""All mistakes of a relay.toml at once, each with its key and what was expected; the functions stop at the first."""

import difflib
import re
import tomllib
from collections.abc import Collection, Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec

from crm_relay.settings import ConfigurationError, Settings, load_settings
from workbench.cli.console import Problem

_EXPECTED = {
    "cartelcrm.base_url": "expected an address that begins with https:// and does not end with a slash",
    "amocrm.accounts.NAME": "expected a name of Latin small letters, digits, dashes and underscores, at most 40",
    "amocrm.accounts.NAME.host": "expected a host such as example.amocrm.ru, example.amocrm.com or example.kommo.com",
    "amocrm.accounts.NAME.subdomain": "expected the first part of the account's host, such as example",
    "bitrix24.oauth_host": "expected oauth.bitrix.info or oauth.bitrix24.tech",
    "bitrix24.portals.NAME.member_id": "expected 32 hexadecimal digits, as the portal's calls have them",
    "bitrix24.portals.NAME.domain": "expected a host such as example.bitrix24.ru",
    "bitrix24.portals.NAME.host": "expected a host such as example.bitrix24.ru",
    "bitrix24.routes.NAME.stages": "expected at least one stage of the source, each with the hub's",
    "bitrix24.routes.NAME.stages.NAME": "expected the id of a stage, such as NEW or C3:READY",
    "bitrix24.routes.NAME.fields.NAME": "expected a field in capitals, such as COMMENTS or UF_CRM_1747309879",
    "bitrix24.routes.NAME.fields.NAME.to": "expected a field in capitals, such as COMMENTS or UF_CRM_1747309879",
    "bitrix24.routes.NAME.constants.NAME": "expected a field in capitals, such as COMMENTS or UF_CRM_1747309879",
    "bitrix24.routes.NAME.products.table.NAME": "expected ids of products, the source's and the hub's",
    "bitrix24.routes.NAME.responsible": "expected an e-mail address",
}
"""What a regular expression would not tell a person."""


def unknown(what: str, table: str, name: str, known: Collection[str], *, stack: str | None) -> Problem:
    """Return the problem that relay.toml has no account, portal or route of this name in that table.

    `stack` is None for the local stack, whose copy of relay.toml has the sandbox's.
    """
    where = "relay.toml" if stack else "The local stack"
    if not known:
        return Problem(f"{where} has no {what} {name}. It would be [{table}.{name}].")
    return Problem(f"{where} has no {what} {name}. It has: {', '.join(sorted(known))}.")


@dataclass(frozen=True, slots=True)
class Finding:
    """What was checked, and what is to be said of it; `good` is None where nothing is wrong but worth knowing."""

    what: str
    good: bool | None
    says: str
    fix: str = ""


def findings(path: Path) -> Iterator[Finding]:
    """Check a relay.toml."""
    wrong = mistakes(path)
    for mistake in wrong:
        yield Finding("settings", False, mistake)
    if not wrong:
        yield Finding("settings", True, f"{path.name} is valid")


def mistakes(path: Path) -> list[str]:
    """Return what is wrong with a relay.toml; nothing if the functions can read it."""
    try:
        load_settings(path)
    except ConfigurationError as first:
        try:
            found = list(_of_struct(tomllib.loads(path.read_text("utf-8")), Settings, ""))
        except (OSError, ValueError):
            found = []
        return [f"{path.name}: {mistake}" for mistake in found] or [str(first)]
    return [f"{path.name}: {mistake}" for mistake in _contradictions(tomllib.loads(path.read_text("utf-8")))]


def _of_struct(table: Any, kind: type[msgspec.Struct], prefix: str) -> Iterator[str]:
    if not isinstance(table, dict):
        yield f"{prefix.rstrip('.')}: a table is expected, [{prefix.rstrip('.')}]"
        return
    fields = {field.encode_name: field.type for field in msgspec.structs.fields(kind)}
    good = deepcopy(table)
    known_whole = True
    for name, value in table.items():
        if name in fields:
            wrong = list(_of_value(value, fields[name], f"{prefix}{name}"))
        else:
            close = difflib.get_close_matches(name, fields, n=1)
            hint = f"is {close[0]} meant?" if close else f"known: {', '.join(fields)}"
            wrong = [f"{prefix}{name}: nobody reads this; {hint}"]
        yield from wrong
        inner = _of_mapping(fields.get(name))
        if wrong and inner and _struct(inner[1]) is inner[1]:
            known_whole = False  # what refers to these tables would be told of as well
        for mistake in wrong:
            entry = mistake.removeprefix(prefix).partition(":")[0].split(".")[:2]
            if not inner or not _dropped(good, entry) or not good.get(name):
                good.pop(name, None)
    if known_whole:
        yield from _of_whole(good, kind, prefix, told=table.keys() - good.keys())


def _of_whole(table: dict[str, Any], kind: type[msgspec.Struct], prefix: str, told: Collection[str]) -> Iterator[str]:
    """Find what a table lacks, and what its values, each good by itself, cannot be together."""
    while True:
        try:
            msgspec.convert(table, kind)
        except msgspec.ValidationError as error:
            message = str(error).partition(" - at `$")[0]
            missing = re.fullmatch("Object missing required field `(.+)`", message)
            if missing and missing[1] in told:
                return
            yield f"{prefix}{missing[1]}: it must be given" if missing else f"{prefix}{message}"
            if missing or not _dropped(table, message.partition(":")[0].split(".")[:2]):
                return
        else:
            return


def _dropped(table: Any, path: list[str]) -> bool:
    """Take a value out, so that what comes after it can be judged; tell whether it was there."""
    for name in path[:-1]:
        table = table.get(name) if isinstance(table, dict) else None
    return isinstance(table, dict) and table.pop(path[-1], None) is not None


def _of_value(value: Any, kind: Any, key: str) -> Iterator[str]:
    struct, mapping = _struct(kind), _of_mapping(kind)
    if struct is not None and (struct is kind or isinstance(value, dict)):
        yield from _of_struct(value, struct, f"{key}.")
    elif mapping and isinstance(value, dict) and value:
        names, inner = mapping
        for name, each in value.items():
            wrong = list(_of_plain(name, names, f"{key}.{name}"))
            yield from wrong or _of_value(each, inner, f"{key}.{name}")
    else:
        yield from _of_plain(value, kind, key)


def _of_plain(value: Any, kind: Any, key: str) -> Iterator[str]:
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        yield f"{key}: {_expected(key) or _in_words(str(error), kind)}; there is {value!r}"


def _struct(kind: Any) -> type[msgspec.Struct] | None:
    """Return the struct that a kind is, or that it may be beside something else."""
    kinds = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    return next((each for each in kinds if isinstance(each, type) and issubclass(each, msgspec.Struct)), None)


def _of_mapping(kind: Any) -> tuple[Any, Any] | None:
    """Return of what kinds the names and the values are, if it is a mapping."""
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    return get_args(kind) if get_origin(kind) is Mapping else None


def _expected(key: str) -> str | None:
    for place, words in _EXPECTED.items():
        if re.fullmatch(re.escape(place).replace("NAME", "[^.]+"), key):
            return words
    return None


def _in_words(message: str, kind: Any) -> str:
    inner = next(iter(get_args(kind)), None)
    words = get_args(kind) if get_origin(kind) is Literal else get_args(inner)
    if words and "enum value" in message:
        return f"expected one of {', '.join(words)}"
    return message.partition(" - at ")[0].replace("`", "").replace("Expected", "expected", 1)


def _contradictions(table: Mapping[str, Any]) -> Iterator[str]:
    """Find what is good by itself and cannot be: a word of two meanings, a field that is written twice …."""
    meanings: dict[str, tuple[str, str]] = {}
    for word, status in table.get("cartelcrm", {}).get("statuses", {}).items():
        known, meaning = meanings.setdefault(word.casefold(), (word, status))
        if meaning != status:
            yield f"cartelcrm.statuses.{word}: {known} is the same word, and means {meaning}"
    for name, route in table.get("bitrix24", {}).get("routes", {}).items():
        for mistake in _written_twice(route):
            yield f"bitrix24.routes.{name}.{mistake}"


def _written_twice(route: Mapping[str, Any]) -> Iterator[str]:
    writers: dict[str, str] = {}
    written = [
        (f"fields.{name}", rule if isinstance(rule, str) else rule["to"]) for name, rule in _items(route, "fields")
    ]
    written += [(f"constants.{name}", name) for name, _ in _items(route, "constants")]
    for key, target in written:
        first = writers.setdefault(target, key)
        if first != key:
            yield f"{key}: {target} is written by {first} already"


def _items(table: Mapping[str, Any], name: str) -> Iterable[tuple[str, Any]]:
    found: Mapping[str, Any] = table.get(name, {})
    return found.items()
