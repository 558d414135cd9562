"""What takes input from strangers, and what input that gets far in is made of. All input is bytes."""

import tests.conftest  # noqa: F401, I001 (the environment of all tests, before anything reads it)

import json
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crm_relay.amocrm.hooks import read_hook
from crm_relay.brackets import TooComplex, decode, encode
from crm_relay.settings import ConfigurationError, load_settings
from crm_relay.signing import sign
from tests.gateway import http_event
from tests.relay import APPLICATION_TOKEN, CALLBACK_SECRET, RELAY_TOML, START, URL_KEY, Relay
from workbench.sandboxes.bitrix24 import PARTNER

type Take = Callable[[bytes], bool]
"""Hands one input in, and tells whether it was taken (True) or refused; what neither may be raises."""

HOOKS = json.loads((Path(__file__).parents[1] / "fixtures/amocrm_hooks.json").read_text("utf-8"))


LONGEST_TAKEN, LONGEST_REFUSED = 0.4, 0.05
"""Seconds of CPU for an input that is taken, and for one that is not."""


@dataclass(frozen=True)
class Target:
    """What takes inputs while it is `opened`; `words` and `samples` are to be varied.

    Data are repeated up to `limit` bytes, which 0 leaves as they are.
    """

    opened: Callable[[], AbstractContextManager[Take]]
    words: Sequence[bytes]
    samples: Sequence[bytes]
    limit: int

    def slowness(self, taken: bool, seconds: float) -> float:
        """Return how slow an input is; over 1 it is too slow."""
        return seconds / (LONGEST_TAKEN if taken else LONGEST_REFUSED)

    def whole(self, data: bytes) -> bytes:
        """Return the input that data stand for: one of 400 is about as large as an input may be, if that is larger.

        That is decided by the data alone, so that an input is known by them. What is repeated is what stands behind
        the last empty line, or all, if there is none.
        """
        head, line, body = data.rpartition(b"\n\n")
        if zlib.crc32(data) % 400 == 0 and body:
            return head + line + body * max(1, self.limit // len(body))
        return data


def _judged(status: int, refused: set[int]) -> bool:
    assert status in {200} | refused, status
    return status == 200


def _headers(head: bytes) -> dict[str, str]:
    lines = (line.partition(":") for line in head.decode("utf-8", "replace").splitlines())
    return {name.strip().lower(): value for name, _, value in lines}


# CartelCRM's callbacks: a body, or headers, an empty line and a body. What has no headers of its own is signed well.


@contextmanager
def _callback_receiver() -> Iterator[Take]:
    with Relay() as relay:

        def take(data: bytes) -> bool:
            head, _, body = data.rpartition(b"\n\n")
            headers = {"x-signature": sign(body, CALLBACK_SECRET), "x-timestamp": str(int(START)), **_headers(head)}
            event = http_event("POST", "/cartelcrm/callback", headers, body)
            return _judged(relay.receive(event).status, {400, 401, 403, 413, 415, 422})

        yield take


_CALLBACK = {"internal_id": "L-1", "event": "lead_paid", "timestamp": int(START)}
_CALLBACKS = Target(
    opened=_callback_receiver,
    limit=262_144,
    words=[
        *(b'{"', b'":', b',"', b"[", b"]", b"{", b"}", b"null", b"true", b"1", b"-0", b"1e999", b"NaN", b"9" * 5000),
        *(b"\\u0000", b"\\ud800", b"\xff", b"\xef\xbb\xbf", b'{"a":' * 50, b"[" * 120, b'"internal_id":', b'"event":'),
        *(b'"timestamp":', b'"status":', b'"name":', b'"phone":', b'"sub":', b'"L-1"', b'"lead_approved"', b'"odd"'),
        *(str(int(START)).encode(), b'"2025-10-09T08:53:20Z"', b'"+380501234567"', b"x-signature:", b"x-timestamp:"),
        *(b"content-type:", b"content-encoding:", b"sha256=", b"nan", b"1_760_000_000", b"+1760000000", b"\n\n"),
        *(str(int(START) + 301).encode(), "١٧٦٠٠٠٠٠٠٠".encode(), b"application/json", b"gzip", b"\0", b"\n"),
    ],
    samples=[
        json.dumps(_CALLBACK).encode(),
        json.dumps(_CALLBACK | {"status": "Approved", "timestamp": "2025-10-09T08:53:20+03:00"}).encode(),
        json.dumps(
            _CALLBACK | {"internal_id": 17, "sub": {"sub1": ["a", None, 1.5, {"b": True}]}, "name": "Оля"}
        ).encode(),
        b"x-timestamp:1760000000\nx-signature:sha256=" + b"0" * 64 + b"\n\n" + json.dumps(_CALLBACK).encode(),
        b'content-type:application/json; charset=utf-8\n\n{"internal_id":"L-2","event":"x","timestamp":1760000000.0}',
        b"[]",
        b'"text"',
    ],
)

# amoCRM's hooks, and the forms that they come in

_HOOK_LIMIT = 1_048_576
_FORM_WORDS = [
    *(b"&", b"&&", b"=", b"[", b"]", b"[]", b"[0]", b"[1]", b"[99999999999999999999]", b"[-1]", b"%5B", b"%5d", b"+"),
    *(b"%", b"%00", b"%ff", b"%F0%9F", b"%D0%90", b"\xd0\xb0", b"[[", b"]]", b"[a]" * 15, b"[a]" * 63, b"[a]" * 65),
    *(b"a.b c", b"&a[][]=1", b"~%9B", b"%41.", b"\0"),
]
_HOOK_WORDS = [
    *(b"leads", b"contacts", b"unsorted", b"message", b"talk", b"task", b"catalogs", b"account", b"add", b"=company"),
    *(b"[add]", b"[update]", b"[status]", b"[note]", b"[delete]", b"[id]", b"[uid]", b"[custom_fields]", b"[values]"),
    *(b"[last_modified]", b"[modified_user_id]", b"[type]", b"[enum]", b"[value]", b"=1", b"=0", b"=-1", b"=1e9"),
    *(b"&leads[update][0][id]=7", b"&leads[add][][id]=8", b"&contacts[add][0]", b"&leads[note][0][note][element_id]=1"),
]
_HOOK_SAMPLES = ["&".join(fields).encode() for fields in HOOKS.values()]


@contextmanager
def _forms() -> Iterator[Take]:
    def take(body: bytes) -> bool:
        try:
            hook = read_hook(decode(body))
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

        def take(body: bytes) -> bool:
            for queue in relay.queues.values():
                queue.messages.clear()
            return _judged(relay.post_hook((ours + body)[:_HOOK_LIMIT]).status, {400, 403, 413, 415})

        yield take


# Bitrix24's calls: a body, or the query of the URL, an empty line and a body. A form brings its proof along.

_ORIGIN = {"domain": PARTNER.domain, "member_id": PARTNER.member_id, "application_token": APPLICATION_TOKEN}
_TOKENS = {"access_token": "access", "refresh_token": "refresh", "expires": "1760003600", "expires_in": "3600"}
_DOCUMENT = ["crm", "CCrmDocumentDeal", "DEAL_7"]
_BITRIX_CALLS: list[dict[str, Any]] = [
    {"event": "ONCRMDEALUPDATE", "event_handler_id": "975", "data": {"FIELDS": {"ID": "7"}}, "ts": "1760000000"},
    {"document_id": _DOCUMENT},
    {
        "workflow_id": "681b6392a30743.60451827",
        "code": "send_to_hub",
        "document_id": _DOCUMENT,
        "event_token": "681b|A88332",
        "properties": {"route": "main"},
        "use_subscription": "Y",
        "auth": _TOKENS,
    },
    {"event": "ONAPPINSTALL", "data": {"VERSION": "1", "INSTALLED": "Y"}, "auth": _TOKENS},
    {"event": "ONAPPUNINSTALL", "data": {"LANGUAGE_ID": "en", "CLEAN": "1"}},
]


def _is_json(body: bytes) -> bool:
    return body.lstrip()[:1] in (b"{", b"[")


@contextmanager
def _bitrix_receiver() -> Iterator[Take]:
    ours = f"{encode({'auth': _ORIGIN})}&".encode()
    with Relay() as relay:

        def take(data: bytes) -> bool:
            for queue in relay.queues.values():
                queue.messages.clear()
            head, _, body = data.rpartition(b"\n\n")
            body = (body if _is_json(body) else ours + body)[:_HOOK_LIMIT]
            query = head.decode("utf-8", "replace")
            # Whoever waits for a transfer waits for CRMs, not for us.
            target = f"/bitrix/{URL_KEY}?{query}".replace("wait", "wai_")
            return _judged(relay.post_call(body, target=target).status, {400, 403, 413, 415, 422})

        yield take


_BITRIX24 = Target(
    opened=_bitrix_receiver,
    limit=_HOOK_LIMIT,
    words=[
        *_FORM_WORDS,
        *(b"event=", b"ONCRMDEALADD", b"ONCRMDEALUPDATE", b"ONCRMDEALMOVETOCATEGORY", b"ONAPPINSTALL", b"ONCRMLEADADD"),
        *(
            b"document_id",
            b"DEAL_",
            b"LEAD_7",
            b"crm",
            b"CCrmDocumentDeal",
            b"data",
            b"[FIELDS]",
            b"[ID]",
            b"auth",
            b"[2]",
        ),
        *(b"[access_token]=", b"[refresh_token]=", b"[expires]=", b"[expires_in]=", b"[member_id]", b"[domain]"),
        *(b"event_token=", b"workflow_id=", b"code=", b"properties", b"[route]=", b"use_subscription=Y", b"{{ID}}"),
        *(b'{"', b'":', b',"', b"{", b"}", b"null", b"1.5", b"9" * 5000, b'"event":', b'"auth":', b'"document_id":'),
        *(b"route=main\n\n", b"deal_id=7\n\n", b"route=", b"&deal_id=", b"\n\n"),
    ],
    samples=[
        *(encode(call).encode() for call in _BITRIX_CALLS),
        *(json.dumps(call | {"auth": _ORIGIN | call.get("auth", {})}).encode() for call in _BITRIX_CALLS),
        b"route=main&deal_id=7\n\nevent=ONCRMDEALADD",
    ],
)

# relay.toml, which no stranger writes: nothing bounds it, and it is not made larger than it is.

_TOML_WORDS = [
    *(line.encode() for line in RELAY_TOML.read_text("utf-8").splitlines() if line.strip()),
    *(
        b"\n",
        b"[",
        b"]",
        b"[[",
        b"]]",
        b"{",
        b"}",
        b"=",
        b'"',
        b"'",
        b'"""',
        b".",
        b",",
        b"#",
        b"\\",
        b"\\u0000",
        b"\xff",
    ),
    *(b"[amocrm.accounts.main]", b"account_id = 1", b'host = "example.amocrm.ru"', b"[amocrm.accounts.main.notes]"),
    *(
        b'lead = ["add"]',
        b"stages = [1, 2]",
        b"[amocrm.texts]",
        b'lead_added = "{id}"',
        b'lead_added = "{0.__class__}"',
    ),
    *(
        b'host = "evil.example#.amocrm.ru"',
        b"requests_per_second = nan",
        b"requests_per_second = inf",
        b"x = 1979-05-27",
    ),
    *(
        b"account_id = 99999999999999999999999999",
        b"notes_per_request = -1",
        b'confirmed = ""',
        b"[[relay]]",
        b"[relay.x]",
    ),
]
_TOML_SAMPLES = [
    RELAY_TOML.read_bytes(),
    b'[amocrm.accounts.main]\naccount_id = 1\nhost = "example.amocrm.ru"\nstages = [1, 2]',
    b'[amocrm.accounts.main.notes]\nlead = ["add"]\n[amocrm.texts]\nlead_added = "{id} {name}"',
    RELAY_TOML.read_bytes().replace(b"\n# ", b"\n").replace(b"\n#\n", b"\n"),
    b"[relay]\ngive_up_after_seconds = 3600\n",
    b"[relay]\ngive_up_after_seconds = " + b"[" * 2000,
]


@contextmanager
def _settings() -> Iterator[Take]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "relay.toml"

        def take(data: bytes) -> bool:
            path.write_bytes(data)
            try:
                load_settings(path)
            except ConfigurationError:
                return False
            return True

        yield take


TARGETS: dict[str, Target] = {
    "callbacks": _CALLBACKS,
    "forms": Target(_forms, _FORM_WORDS + _HOOK_WORDS, _HOOK_SAMPLES, _HOOK_LIMIT),
    "amocrm hooks": Target(_amo_receiver, _FORM_WORDS + _HOOK_WORDS, _HOOK_SAMPLES, _HOOK_LIMIT),
    "bitrix24 calls": _BITRIX24,
    "relay.toml": Target(_settings, _TOML_WORDS, _TOML_SAMPLES, 0),
}
