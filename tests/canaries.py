"""Secrets and personal data of the tests bear marks; whatever a test's relay says is searched for them afterwards.

Nothing that is logged, counted, answered, published or given as a dead letter's reason may hold either. A dead letter's
body is the message itself, which has to be there to be redriven: in it only secrets are looked for.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

from crm_relay.delivery.memory import MemoryBus, MemoryQueue

MARK = "canary-"
"""The beginning of every secret."""

_SECRET = re.compile(rf"{MARK}[\w-]+|eyJ[\w-]{{10,}}\.[\w-]{{10,}}")
_PERSONAL = re.compile(
    r"(?<!\w)(?:\+?38)?0(?:50|67|93) ?\d{3} ?\d\d ?\d\d(?!\w)"  # phones
    r"|(?<![\w.+-])[\w.+-]+@example\.(?:com|test)"
    r"|Олен|Оля|Мария|Павел|Петров|Клиентов|Прораб"
)
_ESCAPED = re.compile(r"\\u[0-9a-f]{4}")

type Told = Callable[[], Iterator[tuple[str, str, bool]]]
"""Yields (where it stands, text, whether it may hold personal data)."""

_watched: list[Told] = []


def told_by(
    output: str, answers: Sequence[object], bus: MemoryBus, dead_letters: Iterable[MemoryQueue]
) -> Iterator[tuple[str, str, bool]]:
    """Yield, as Told does, all that somebody may see who must see neither secrets nor, mostly, personal data."""
    yield "logs and metrics", output, False
    yield "answers", repr(answers), False
    yield "bus", repr(bus.events), False
    for queue in dead_letters:
        for letter in queue.messages.values():
            yield f"dead letter of {queue.url}", letter.body, True
            yield f"reason of a dead letter of {queue.url}", letter.reason or "", False


def watch(told: Told) -> None:
    """Search what something tells, when the test is over."""
    _watched.append(told)


@contextmanager
def none_told() -> Iterator[None]:
    """Raise AssertionError if what is watched since has told any canary."""
    _watched.clear()
    yield
    hits = [f"{place}: {hit}" for told in _watched for place, text, personal in told() for hit in found(text, personal)]
    _watched.clear()
    assert not hits, hits


def found(text: str, personal: bool = False) -> set[str]:
    """Return the canaries in a text, however they are written; personal data too, unless they may be there."""
    plain = unquote(_ESCAPED.sub(lambda escape: json.loads(f'"{escape[0]}"'), text))
    hits = {hit[0] for version in {text, plain} for hit in _SECRET.finditer(version)}
    if not personal:
        hits |= {hit[0] for version in {text, plain} for hit in _PERSONAL.finditer(version)}
    return hits


def found_in_logs(folder: Path, keys: Mapping[str, str]) -> list[str]:
    """Return the canaries in the logs of a local stack, which makes secrets of its own: `keys`, by name."""
    secrets = {name: value for name, value in keys.items() if not name.endswith("client_id")}
    hits = []
    for file in sorted(folder.glob("*.log")):
        text = file.read_text("utf-8")
        told = found(text) | {name for name, value in secrets.items() if value in text}
        hits += [f"{file.name}: {hit}" for hit in sorted(told)]
    return hits
