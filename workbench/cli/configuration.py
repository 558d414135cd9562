"""All mistakes of a relay.toml at once, each with its key and what was expected; the functions stop at the first."""

import difflib
import re
import tomllib
from collections.abc import Collection, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import msgspec

from crm_relay.settings import ConfigurationError, Settings, load_settings

_EXPECTED = {
    "cartelcrm.base_url": "expected an address that begins with https:// and does not end with a slash",
    "amocrm.accounts.NAME.host": "expected a host such as example.amocrm.ru, example.amocrm.com or example.kommo.com",
    "amocrm.accounts.NAME.subdomain": "expected the first part of the account's host, such as example",
}
"""What a regular expression would not tell a person."""


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
    for name, value in table.items():
        if name in fields:
            wrong = list(_of_value(value, fields[name], f"{prefix}{name}"))
        else:
            close = difflib.get_close_matches(name, fields, n=1)
            hint = f"is {close[0]} meant?" if close else f"known: {', '.join(fields)}"
            wrong = [f"{prefix}{name}: nobody reads this; {hint}"]
        yield from wrong
        for mistake in wrong:
            entry = mistake.removeprefix(prefix).partition(":")[0].split(".")[:2]
            if get_origin(fields.get(name)) is not Mapping or not _dropped(good, entry):
                good.pop(name, None)
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
            if missing or not _dropped(table, message.partition(":")[0].split(".")):
                return
        else:
            return


def _dropped(table: Any, path: list[str]) -> bool:
    """Take a value out, so that what comes after it can be judged; tell whether it was there."""
    for name in path[:-1]:
        table = table.get(name) if isinstance(table, dict) else None
    return isinstance(table, dict) and table.pop(path[-1], None) is not None


def _of_value(value: Any, kind: Any, key: str) -> Iterator[str]:
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        yield from _of_struct(value, kind, f"{key}.")
    elif get_origin(kind) is Mapping and isinstance(value, dict):
        _, inner = get_args(kind)
        for name, each in value.items():
            yield from _of_value(each, inner, f"{key}.{name}")
    else:
        try:
            msgspec.convert(value, kind)
        except msgspec.ValidationError as error:
            yield f"{key}: {_expected(key) or _in_words(str(error), kind)}; there is {value!r}"


def _expected(key: str) -> str | None:
    return _EXPECTED.get(re.sub(r"^(amocrm\.accounts)\..+(\.\w+)\Z", r"\1.NAME\2", key))


def _in_words(message: str, kind: Any) -> str:
    inner = next(iter(get_args(kind)), None)
    words = get_args(kind) if get_origin(kind) is Literal else get_args(inner)
    if words and "enum value" in message:
        return f"expected one of {', '.join(words)}"
    return message.partition(" - at ")[0].replace("`", "").replace("Expected", "expected", 1)


def _contradictions(table: Mapping[str, Any]) -> Iterator[str]:
    """Find what is good by itself and cannot be: words of two meanings."""
    meanings: dict[str, tuple[str, str]] = {}
    for word, status in table.get("cartelcrm", {}).get("statuses", {}).items():
        known, meaning = meanings.setdefault(word.casefold(), (word, status))
        if meaning != status:
            yield f"cartelcrm.statuses.{word}: {known} is the same word, and means {meaning}"
