"""What takes input from strangers, and input that looks enough like theirs to get far in."""

import tests.conftest  # noqa: F401, I001 (the environment of all tests, before anything reads it)

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote_from_bytes

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from crm_relay.amocrm.hooks import read_hook
from crm_relay.brackets import TooComplex, decode
from crm_relay.settings import ConfigurationError, load_settings
from crm_relay.signing import sign
from tests.gateway import http_event
from tests.relay import CALLBACK_SECRET, RELAY_TOML, START, Relay

type Take = Callable[[Any], bool]
"""Hands one input in, and tells whether it was taken (True) or refused; what neither may be raises."""


@dataclass(frozen=True)
class Target:
    """`inputs` is what to try; `opened` has what takes it, for as long as it is wanted."""

    inputs: SearchStrategy[Any]
    opened: Callable[[], AbstractContextManager[Take]]


@dataclass(frozen=True)
class Body:
    """The bytes of a body: `parts`, one after the other, over and over again if it is to be `huge`."""

    parts: list[bytes]
    huge: bool

    def within(self, limit: int) -> bytes:
        """Return it, no longer than a body may be."""
        body = b"".join(self.parts)
        return (body * (limit // max(1, len(body)) if self.huge else 1))[:limit]


def _bodies(parts: SearchStrategy[bytes]) -> SearchStrategy[Body]:
    huge = st.integers(0, 299).map(lambda number: number == 299)
    return st.builds(Body, st.lists(parts, max_size=40), huge)


def _one_of(*words: bytes) -> SearchStrategy[bytes]:
    return st.sampled_from(words)


# CartelCRM's callbacks

_KEYS = st.sampled_from(["internal_id", "event", "timestamp", "status", "name", "phone", "sub"])
_GOOD = {"internal_id": "L-1", "event": "lead_paid", "timestamp": int(START)}
_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters())
    | st.sampled_from(["L-1", "lead_approved", int(START), str(int(START)), "2025-10-09T08:53:20Z", "+380501234567"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_KEYS | st.text(st.characters()), inner, max_size=6),
    max_leaves=12,
)
_WELL = st.fixed_dictionaries({}, optional=dict.fromkeys(("internal_id", "event", "timestamp", "status"), _JSON))
_JSON_BODIES = (_JSON | _WELL.map(lambda fields: _GOOD | fields)).map(
    lambda value: Body([json.dumps(value).encode()], huge=False)
) | _bodies(
    _one_of(
        *(
            b'{"internal_id":"L-1","event":"x","timestamp":1760000000}',
            b"[",
            b"]",
            b"{",
            b"}",
            b'"',
            b'"a":',
            b",",
            b"1",
        ),
        *(b"NaN", b"1e999", b"-0", b"\\u0000", b"\\ud800", b"\xff", b"\xef\xbb\xbf", b"9" * 5000, b" ", b'{"a":' * 50),
    )
    | st.binary(max_size=8),
)
_HEADER = st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), max_size=80) | st.sampled_from(
    ["sha256=", "nan", "1e9", "1_760_000_000", "+1760000000", str(int(START)), str(int(START) + 301), "١٧٦٠٠٠٠٠٠٠"]
)
_MADE_WELL = _WELL.map(lambda fields: Body([json.dumps(fields | _GOOD).encode()], huge=False))
_CALLS = st.fixed_dictionaries({"body": _MADE_WELL | _JSON_BODIES, "signed": st.just(True)}) | st.fixed_dictionaries(
    {"body": _MADE_WELL | _JSON_BODIES, "signed": st.booleans()},
    optional={"x-signature": _HEADER, "x-timestamp": _HEADER, "content-encoding": _HEADER, "content-type": _HEADER},
)


@contextmanager
def _callback_receiver() -> Iterator[Take]:
    with Relay() as relay:

        def take(call: dict[str, Any]) -> bool:
            body = call["body"].within(262_144)
            headers = {name: value for name, value in call.items() if isinstance(value, str)}
            if call["signed"]:
                headers = {"x-signature": sign(body, CALLBACK_SECRET), "x-timestamp": str(int(START))} | headers
            response = relay.receive(http_event("POST", "/cartelcrm/callback", headers, body))
            return _judged(response.status, {200}, {400, 401, 403, 413, 415, 422})

        yield take


# amoCRM's hooks, and the forms that they come in

_FORM_PARTS = _one_of(
    *(b"&", b"&&", b"=", b"[", b"]", b"[]", b"[0]", b"[1]", b"[99999999999999999999]", b"[-1]", b"%5B", b"%5d", b"+"),
    *(b"leads", b"contacts", b"unsorted", b"message", b"talk", b"task", b"catalogs", b"account", b"add", b"a.b c"),
    *(b"[add]", b"[update]", b"[status]", b"[note]", b"[delete]", b"[id]", b"[uid]", b"[custom_fields]", b"[values]"),
    *(b"[last_modified]", b"[modified_user_id]", b"[type]", b"=company", b"=1", b"=0", b"=\xd0\xb0", b"%", b"%00"),
    *(
        b"%ff",
        b"%F0%9F",
        b"[enum]",
        b"[value]",
        b"&leads[update][0][id]=7",
        b"&leads[add][][id]=8",
        b"&contacts[add][0]",
    ),
    *(b"&leads[note][0][note][element_id]=1", b"[[", b"]]", b"[a]" * 63, b"[a]" * 65),
)
_ESCAPED = st.binary(max_size=6).map(lambda part: quote_from_bytes(part).encode())
_FORMS = _bodies(_FORM_PARTS | st.binary(max_size=6) | _ESCAPED)
_HOOK_LIMIT = 1_048_576


@contextmanager
def _brackets() -> Iterator[Take]:
    def take(body: Body) -> bool:
        try:
            hook = read_hook(decode(body.within(_HOOK_LIMIT)))
        except TooComplex:
            return False
        for event in hook.events:
            assert event.id
            assert event.modified_at is None or event.modified_at >= 0
            assert isinstance(event.custom_fields, tuple)
        return True

    yield take


@contextmanager
def _amo_receiver() -> Iterator[Take]:
    with Relay() as relay:
        account = relay.settings.amocrm.accounts["main"]
        ours = f"account[id]={account.account_id}&account[subdomain]={account.subdomain}&".encode()

        def take(body: Body) -> bool:
            for queue in relay.queues.values():
                queue.messages.clear()
            return _judged(
                relay.post_hook(ours + body.within(_HOOK_LIMIT - len(ours))).status, {200}, {400, 403, 413, 415}
            )

        yield take


# relay.toml

_TOML_LINES = [
    *RELAY_TOML.read_text("utf-8").splitlines(),
    *("[amocrm.accounts.main]", "account_id = 1", 'host = "example.amocrm.ru"', "[amocrm.accounts.main.notes]"),
    *('lead = ["add"]', "stages = [1, 2]", "[amocrm.texts]", 'lead_added = "{id}"', 'lead_added = "{0.__class__}"'),
    *('host = "evil.example#.amocrm.ru"', "requests_per_second = nan", "requests_per_second = inf", "x = 1979-05-27"),
    *("account_id = 99999999999999999999999999", "notes_per_request = -1", 'confirmed = ""', "[[relay]]", "[relay.x]"),
]
_TOML = st.tuples(
    st.lists(st.sampled_from(_TOML_LINES) | st.text(st.characters(), max_size=20), max_size=30),
    st.lists(st.tuples(st.integers(0, 2000), st.sampled_from("[]{}=\"'.,#\n\\1- \0")), max_size=3),
).map(lambda made: _spoilt("\n".join(made[0]), made[1]))


def _spoilt(text: str, changes: list[tuple[int, str]]) -> str:
    for place, character in changes:
        text = text[:place] + character + text[place + 1 :]
    return text


@contextmanager
def _settings() -> Iterator[Take]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "relay.toml"

        def take(text: str) -> bool:
            path.write_bytes(text.encode("utf-8", "surrogatepass"))
            try:
                load_settings(path)
            except ConfigurationError:
                return False
            return True

        yield take


def _judged(status: int, taken: set[int], refused: set[int]) -> bool:
    assert status in taken | refused, status
    return status in taken


TARGETS: dict[str, Target] = {
    "callbacks": Target(_CALLS, _callback_receiver),
    "forms": Target(_FORMS, _brackets),
    "amocrm hooks": Target(_FORMS, _amo_receiver),
    "relay.toml": Target(_TOML, _settings),
}
