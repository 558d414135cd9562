"""POST /cartelcrm/callback: rows A01 to A65 of the safety catalogue, through the real handlers.

An effect is one `CartelCallback` on the bus: it counts after the worker has had its time.
"""

import base64
import gzip
import inspect
import json
import sys
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from random import Random
from threading import Condition, Thread, current_thread
from typing import Any

import pytest

from callback_receiver import receive
from crm_relay import signing
from crm_relay.delivery.ports import StorageError
from crm_relay.settings import CallbackSecret, CartelCrmSecrets, ConfigurationError, Secrets, SecretSource
from crm_relay.signing import sign
from tests.gateway import Context, Response, http_event, with_body
from tests.relay import CALLBACK_SECRET, HMAC_SECRET, START, Crash, Relay, encoded

DAY = 86_400
LIMIT = 262_144
OK = 200, {"ok": True}
REPLAY = 200, {"ok": True, "replay": True}
BAD_TIMESTAMP = 401, {"error": "timestamp_out_of_range"}
BAD_SIGNATURE = 403, {"error": "bad_signature"}
NOT_CONFIGURED = 503, {"error": "not_configured"}
NOTHING_DURABLE = 503, {"error": "nothing_durable"}


def verdict(response: Response) -> tuple[int, Any]:
    assert response.headers["content-type"] == "application/json"
    return response.status, response.json()


def post(relay: Relay, body: object = None, **replaced: str | None) -> tuple[int, Any]:
    """POST a callback, signed well but for headers that are replaced (named with underscores) or left out (None)."""
    sent = encoded(relay.callback() if body is None else body)
    headers: dict[str, str | None] = dict(relay.signed(sent))
    headers |= {name.replace("_", "-").title(): value for name, value in replaced.items()}
    return verdict(relay.post_callback(sent, {name: value for name, value in headers.items() if value is not None}))


def effects(relay: Relay) -> int:
    """Count the effects once everything that was queued is done; no worker may have failed."""
    relay.run(3600)
    assert not relay.errors
    assert not relay.queues["callbacks"].messages
    return relay.effects("CartelCallback")


def quarantined(relay: Relay) -> list[tuple[str, bytes]]:
    return [
        (item["reason"], zlib.decompress(item["body"]))
        for item in relay.items("quarantine#cartelcrm.callback#").values()
    ]


def untouched(relay: Relay) -> bool:
    """Tell whether no store, queue or bus was asked for anything."""
    return not relay.calls


# The usual way


def test_a01_a_valid_callback_is_taken(relay: Relay) -> None:
    """A01: a callback that is signed well and new is acknowledged and has one effect."""
    assert post(relay) == OK
    assert len(relay.queues["callbacks"].messages) == 1
    assert effects(relay) == 1


def test_a01_it_costs_three_calls(relay: Relay) -> None:
    """A01: before the message a note that it comes, after it a note that it is there; nothing more."""
    post(relay)
    assert relay.calls == ["store.put", "queue.send", "store.put"]
    assert relay.metrics == Counter(Received=1)


def test_a02_the_same_request_again_is_a_replay(relay: Relay) -> None:
    """A02: repeating a callback is answered as the contract says and has no effect, before its work and after."""
    body = encoded(relay.callback())
    headers = relay.signed(body)
    assert verdict(relay.post_callback(body, headers)) == OK
    assert verdict(relay.post_callback(body, headers)) == REPLAY
    assert len(relay.queues["callbacks"].messages) == 1
    assert effects(relay) == 1
    assert post(relay, body) == REPLAY
    assert effects(relay) == 1
    assert relay.metrics["Replayed"] == 2


@pytest.mark.parametrize("later", [1, 3600, 25 * 3600, 29 * DAY], ids=["a03-1s", "a03-1h", "a04-25h", "a04-29d"])
def test_a03_a04_a_fresh_timestamp_does_not_revive_a_callback(relay: Relay, later: int) -> None:
    """A03, A04: the header's timestamp is not signed, so only our memory tells a replay, for as long as it is taken."""
    body = encoded(relay.callback())
    assert post(relay, body) == OK
    assert effects(relay) == 1
    relay.clock.sleep(later)
    assert post(relay, body) == REPLAY
    assert effects(relay) == 1


@pytest.mark.parametrize("days", [30, 90])
def test_a04_memory_reaches_as_far_as_callbacks_are_taken(relay: Relay, days: int) -> None:
    """A04: there is no second between "remembered" and "stale", even if the sender's clock is ahead."""
    relay.configure("relay", replay_window_days=days)
    sent_at = relay.clock.now
    body = encoded(relay.callback(timestamp=int(sent_at) + 300))
    assert post(relay, body) == OK
    assert effects(relay) == 1
    relay.clock.now = sent_at + 300 + days * DAY
    assert post(relay, body) == REPLAY
    relay.clock.now += 1
    assert post(relay, body) == (401, {"error": "stale_event"})
    assert effects(relay) == 1


def test_a05_an_event_older_than_our_memory_is_stale(relay: Relay) -> None:
    """A05: the signed timestamp bounds what our memory cannot; an operator is told."""
    body = relay.callback(timestamp=int(relay.clock.now) - 30 * DAY - 1)
    assert post(relay, body) == (401, {"error": "stale_event"})
    assert effects(relay) == 0
    assert relay.metrics == Counter(AttentionNeeded=1)
    assert post(relay, relay.callback(timestamp=int(relay.clock.now) - 30 * DAY + 1)) == OK


def test_a06_an_event_of_the_future_is_kept_aside(relay: Relay) -> None:
    """A06: 300 s ahead is a clock that differs, 301 s is meaningless: kept in quarantine, and an operator is told."""
    body = encoded(relay.callback(timestamp=int(relay.clock.now) + 301))
    assert post(relay, body) == (422, {"error": "timestamp_in_future"})
    assert quarantined(relay) == [("timestamp_in_future", body)]
    assert relay.metrics["AttentionNeeded"] == 1
    assert effects(relay) == 0


# The timestamp header


@pytest.mark.parametrize(
    ("row", "value"),
    [
        ("a07", None),
        *[("a08", value) for value in ("", " ", "\t")],
        *[("a09", value) for value in ("{-301}", "{+301}")],
        *[("a11", value) for value in ("{0}000", "{0}123")],
        *[("a12", value) for value in ("nan", "inf", "-inf", "1e9", "17.5", "{0}.0", "1.76e9", "0x68E77A40")],
        *[("a13", value) for value in ("١٧٦٠٠٠٠٠٠٠", "²", "1_760_000_000", "+{0}", " {0}", "{0} ", "{0}\n", "{0}abc")],
        *[("a14", value) for value in ("9" * 5000, "0" * 5000, "-1", "-{0}", "0", "00000{0}")],
        *[("a15", value) for value in ("{0},{0}", "{0}, {0}", "0,{0}", "{0},0")],
    ],
)
def test_a07_to_a15_a_timestamp_is_a_plain_number_of_now(relay: Relay, row: str, value: str | None) -> None:
    """A07–A09, A11–A15: what is no unix time of these five minutes in ASCII digits is refused, without an error."""
    now = int(relay.clock.now)
    known = {"{0}": str(now), "{-301}": str(now - 301), "{+301}": str(now + 301)}
    for name, number in known.items():
        value = value and value.replace(name, number)
    assert post(relay, x_timestamp=value) == BAD_TIMESTAMP
    assert untouched(relay)


@pytest.mark.parametrize("off", [-300, 300])
def test_a10_the_tolerance_is_inclusive(relay: Relay, off: int) -> None:
    """A10: exactly 300 s off, either way, is fresh."""
    assert post(relay, x_timestamp=str(int(relay.clock.now) + off)) == OK


# The signature header


SIGNATURES = [
    ("a16", None),
    *[("a17", value) for value in ("", " ", "sha256=", "sha256")],
    *[("a20", value) for value in ("sha256={other}", "sha256={hex[:63]}", "sha256={hex}0", "{hex}{hex}")],
    *[("a21", value) for value in ("sha256={HEX}", "{HEX}")],
    ("a22", "sha256={base64}"),
    *[("a23", f"{prefix}{{hex}}") for prefix in ("sha1=", "md5=", "SHA256=", "Sha256=", "sha256=sha256=", "sha256:")],
    *[
        ("a24", value)
        for value in (
            "sha256=ё{hex[:63]}",
            "sha256={hex[:63]}é",
            "sha256={hex}é",
            "ключ",
            "\ud800",
            "sha256={fullwidth}",
        )
    ],
    *[("a25", f"sha256={{hex[:32]}}{junk}{{hex[32:]}}") for junk in (" ", "\t", "\n", "\0")],
    *[("a25", value) for value in (" sha256={hex}", "sha256= {hex}", "sha256={hex} ", "sha256={hex}\n", "{hex}\n")],
    *[("a26", value) for value in ("{bad},sha256={hex}", "sha256={hex},{bad}", "sha256={hex},sha256={hex}")],
]


@pytest.mark.parametrize(("row", "value"), SIGNATURES)
def test_a16_to_a26_a_signature_is_the_one_hex_hmac(relay: Relay, row: str, value: str | None) -> None:
    """A16, A17, A20–A26: one signature in lower-case hex, whole and alone; no other spelling of it is understood."""
    body = encoded(relay.callback())
    good = sign(body, CALLBACK_SECRET)
    spellings = {
        "{hex}": good,
        "{hex[:63]}": good[:63],
        "{hex[:32]}": good[:32],
        "{hex[32:]}": good[32:],
        "{HEX}": good.upper(),
        "{base64}": base64.b64encode(bytes.fromhex(good)).decode(),
        "{other}": ("1" if good[0] == "0" else "0") + good[1:],
        "{bad}": "sha256=" + "0" * 64,
        "{fullwidth}": good.translate({ord(digit): ord(digit) + 0xFEE0 for digit in "0123456789abcdef"}),
    }
    for name, spelling in spellings.items():
        value = value and value.replace(name, spelling)
    assert post(relay, body, x_signature=value) == BAD_SIGNATURE
    assert untouched(relay)


def test_a18_the_prefix_may_be_missing_unless_it_is_required(relay: Relay) -> None:
    """A18: the contract makes `sha256=` optional; who wants it strict, says so in relay.toml."""
    body = encoded(relay.callback())
    relay.configure("cartelcrm", require_signature_prefix=True)
    assert post(relay, body, x_signature=sign(body, CALLBACK_SECRET)) == BAD_SIGNATURE
    relay.configure("cartelcrm", require_signature_prefix=False)
    assert post(relay, body, x_signature=sign(body, CALLBACK_SECRET)) == OK


@pytest.mark.parametrize(
    "secret",
    ["another", CALLBACK_SECRET.upper(), CALLBACK_SECRET + " ", HMAC_SECRET, ""],
    ids=["a19-another", "a19-case", "a19-blank", "a29-outbound", "a32-empty"],
)
def test_a19_a29_a32_only_the_callback_secret_signs_callbacks(relay: Relay, secret: str) -> None:
    """A19, A29, A32: neither another secret, nor the one that we sign with, nor none."""
    body = encoded(relay.callback())
    assert post(relay, body, x_signature="sha256=" + sign(body, secret)) == BAD_SIGNATURE
    assert untouched(relay)


SIGNED = encoded({"internal_id": "L-1", "event": "lead_approved", "timestamp": int(START), "name": "Оля/"})
LINES = SIGNED.replace(b",", b",\r\n")


@pytest.mark.parametrize(
    ("signed", "sent"),
    [
        pytest.param(SIGNED, encoded(dict(reversed(json.loads(SIGNED).items()))), id="a27-reordered"),
        pytest.param(SIGNED, json.dumps(json.loads(SIGNED), separators=(",", ":")).encode(), id="a27-letters-escaped"),
        pytest.param(SIGNED, SIGNED.replace(b"/", rb"\/"), id="a27-slash-escaped"),
        pytest.param(SIGNED, SIGNED.replace(b":", b": "), id="a27-spaced"),
        pytest.param(SIGNED, SIGNED + b"\n", id="a28-newline"),
        pytest.param(SIGNED, b"\xef\xbb\xbf" + SIGNED, id="a28-bom"),
        pytest.param(LINES, LINES.replace(b"\r\n", b"\n"), id="a28-crlf-to-lf"),
        pytest.param(LINES.replace(b"\r\n", b"\n"), LINES, id="a28-lf-to-crlf"),
    ],
)
def test_a27_a28_the_signature_is_of_the_very_bytes(relay: Relay, signed: bytes, sent: bytes) -> None:
    """A27, A28: JSON that means the same, but is not what was signed, is forged."""
    assert sent != signed
    assert post(relay, sent, x_signature="sha256=" + sign(signed, CALLBACK_SECRET)) == BAD_SIGNATURE
    assert untouched(relay)


def secrets(*callback_secrets: CallbackSecret) -> Secrets:
    return Secrets(CartelCrmSecrets("key", HMAC_SECRET, callback_secrets), {})


@pytest.mark.parametrize(
    "known", [Secrets(), secrets(), secrets(CallbackSecret("")), secrets(CallbackSecret(""), CallbackSecret(""))]
)
@pytest.mark.parametrize("signed_with", ["", CALLBACK_SECRET, HMAC_SECRET])
def test_a30_without_a_secret_nothing_is_taken(relay: Relay, known: Secrets, signed_with: str) -> None:
    """A30: an empty or missing secret refuses everything for a while, alarms, and never accepts what "" signed."""
    relay.secret_source = lambda: known
    body = encoded(relay.callback())
    response = relay.post_callback(body, relay.signed(body, secret=signed_with))
    assert verdict(response) == NOT_CONFIGURED
    assert response.headers["retry-after"] == "30"
    assert relay.metrics == Counter(AttentionNeeded=1)
    assert untouched(relay)


def test_a30_an_unreadable_secret_fails_closed(relay: Relay) -> None:
    """A30: a secret of the wrong shape is none."""

    def unreadable() -> Secrets:
        raise ConfigurationError("secret: JSON expected")

    relay.secret_source = unreadable
    assert post(relay) == NOT_CONFIGURED


def test_a31_a_rotated_secret_is_good_until_its_end(relay: Relay) -> None:
    """A31: both secrets are good in the time of grace; afterwards, and without a deploy, the new one alone."""
    source = {
        "cartelcrm": {
            "callback_secrets": [{"value": "new"}, {"value": CALLBACK_SECRET, "not_after": "2025-10-09T09:00:00Z"}]
        }
    }
    relay.secret_source = SecretSource(lambda: json.dumps(source), clock=relay.clock.time, failed=lambda _: None)
    end = 1_760_000_400
    for number, (moment, answer) in enumerate([(end - 1, OK), (end, OK), (end + 1, BAD_SIGNATURE)]):
        relay.clock.now = moment
        assert post(relay, relay.callback(internal_id=f"old-{number}")) == answer
        body = encoded(relay.callback(internal_id=f"new-{number}"))
        assert post(relay, body, x_signature=sign(body, "new")) == OK


@pytest.mark.parametrize("signature", ["", "sha256=" + "0" * 64, "\0"])
def test_a33_the_timestamp_is_judged_first(relay: Relay, signature: str) -> None:
    """A33: who is wrong in both is told the first."""
    assert post(relay, x_timestamp="1", x_signature=signature) == BAD_TIMESTAMP


# The body


JSON_REFUSED = 400, {"error": "malformed_json"}
NO_OBJECT = 400, {"error": "json_object_expected"}


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        *[
            pytest.param(body, JSON_REFUSED, id=f"a35-{body[:9]!r}")
            for body in (b"hello", b"{", b"a=1", b"<x/>", b"{}{}")
        ],
        *[
            pytest.param(body, NO_OBJECT, id=f"a35-{body!r}")
            for body in (b"null", b"[]", b'"x"', b"1", b"true", b"[{}]")
        ],
        pytest.param(b"", JSON_REFUSED, id="a34"),
        pytest.param(b"\xff\xfe\xfd", JSON_REFUSED, id="a36-bytes"),
        pytest.param(b'{"internal_id":"\xd0"}', JSON_REFUSED, id="a36-half-a-letter"),
        pytest.param('{"internal_id":"1"}'.encode("utf-16"), JSON_REFUSED, id="a36-utf-16"),
        pytest.param('{"internal_id":"1"}'.encode("utf-16-le"), JSON_REFUSED, id="a36-utf-16-le"),
        pytest.param(b'\xef\xbb\xbf{"internal_id":"1"}', JSON_REFUSED, id="a36-bom"),
        pytest.param(b"[" * 100_000, JSON_REFUSED, id="a37-arrays"),
        pytest.param(b'{"a":' * 50_000, JSON_REFUSED, id="a37-objects"),
        pytest.param(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", JSON_REFUSED, id="a37-closed"),
        *[
            pytest.param(b'{"internal_id":"1","x":%s}' % number, JSON_REFUSED, id=f"a38-{number[:9].decode()}")
            for number in (b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e999", b"9" * 5000, b"-" + b"1" * 5000)
        ],
        pytest.param(b'{"event":"a","event":"b"}', JSON_REFUSED, id="a39"),
        pytest.param(rb'{"event":"a","\u0065vent":"b"}', JSON_REFUSED, id="a39-escaped"),
        pytest.param(b'{"x":{"a":1,"a":1}}', JSON_REFUSED, id="a39-inner"),
        pytest.param(rb'{"x":"\ud800"}', JSON_REFUSED, id="a40-surrogate"),
        pytest.param(rb'{"\udc00":1}', JSON_REFUSED, id="a40-key"),
        pytest.param(rb'{"x":["\u0000"]}', JSON_REFUSED, id="a40-nul"),
        pytest.param(b'{"x":"\x00"}', JSON_REFUSED, id="a40-raw-nul"),
    ],
)
def test_a34_to_a40_what_is_no_json_object_is_malformed(relay: Relay, body: bytes, answer: tuple[int, Any]) -> None:
    """A34–A40: though authentic, what parsers could read differently, or what kills one, is 400 and goes nowhere."""
    assert post(relay, body) == answer
    assert untouched(relay)


def without(fields: dict[str, object], name: str) -> dict[str, object]:
    return {key: value for key, value in fields.items() if key != name}


@pytest.mark.parametrize(
    ("row", "name", "error"),
    [
        ("a41", "internal_id", "internal_id_invalid"),
        ("a42", "event", "event_invalid"),
        ("a42", "timestamp", "timestamp_invalid"),
    ],
)
@pytest.mark.parametrize("value", ["missing", None, "", [], True])
def test_a41_a42_without_a_part_of_the_key_it_is_kept_aside(
    relay: Relay, row: str, name: str, error: str, value: object
) -> None:
    """A41, A42: an authentic callback without one of the three is meaningless; two different ones are both kept."""
    bodies = []
    for number in (1, 2):
        fields = relay.callback(number=number)
        fields = without(fields, name) if value == "missing" else fields | {name: value}
        bodies.append(encoded(fields))
        assert post(relay, bodies[-1]) == (422, {"error": error})
        assert post(relay, bodies[-1]) == (422, {"error": error})
    assert quarantined(relay) == [(error, body) for body in bodies]
    assert relay.store.attention("QUARANTINE", limit=10) == list(relay.items("quarantine#"))
    assert relay.metrics["AttentionNeeded"] == 4
    assert effects(relay) == 0


def test_a41_what_cannot_be_kept_aside_is_not_answered_for(relay: Relay) -> None:
    """A41: if the quarantine is out of reach the sender keeps it, and comes again."""
    relay.fail("store")
    response = relay.post_callback(relay.callback(internal_id=""))
    assert verdict(response) == NOTHING_DURABLE
    assert response.headers["retry-after"] == "30"


def test_a43_a_number_is_the_same_id_as_its_digits(relay: Relay) -> None:
    """A43: 5 and "5" are one key, so the second is a replay; its bytes differ, so it is kept aside as well."""
    assert post(relay, relay.callback(internal_id="5")) == OK
    assert post(relay, relay.callback(internal_id=5)) == REPLAY
    assert effects(relay) == 1
    assert post(relay, relay.callback(internal_id=5)) == OK, "the clock has gone on: another timestamp, another event"


def test_a44_no_separator_joins_two_callbacks_into_one(relay: Relay) -> None:
    """A44: ("a:b", "c") is not ("a", "b:c")."""
    assert post(relay, relay.callback(internal_id="a:b", event="c")) == OK
    assert post(relay, relay.callback(internal_id="a", event="b:c")) == OK
    assert effects(relay) == 2


def test_a45_another_body_under_the_same_key_is_kept_aside(relay: Relay) -> None:
    """A45: refusing it would only make the sender repeat it; an operator is told."""
    other = encoded(relay.callback(payout=99))
    assert post(relay) == OK
    assert relay.metrics["AttentionNeeded"] == 0
    assert post(relay, other) == REPLAY
    assert quarantined(relay) == [("other_body_for_the_same_key", other)]
    assert relay.metrics["AttentionNeeded"] == 1
    assert effects(relay) == 1


def test_a46_an_unknown_event_is_kept(relay: Relay) -> None:
    """A46: CartelCRM may say what we have no word for; subscribers get it as it came."""
    assert post(relay, relay.callback(event="lead.teleported", status="gone", extra={"deep": [1]})) == OK
    assert effects(relay) == 1
    ((_, detail),) = relay.bus.events
    assert (detail["event"], detail["status"], detail["applied"]) == ("lead.teleported", "unknown", False)
    assert detail["callback"]["extra"] == {"deep": [1]}


def test_a47_an_older_status_is_recorded_and_not_applied(relay: Relay) -> None:
    """A47: arriving later does not make it newer."""
    now = int(relay.clock.now)
    assert post(relay, relay.callback(event="lead_paid", timestamp=now)) == OK
    assert post(relay, relay.callback(event="lead_hold", timestamp=now - 60)) == OK
    assert effects(relay) == 2
    (lead,) = relay.items("lead#").values()
    assert (lead["status"], lead["status_at"]) == ("paid", now)
    assert {(entry["status"], entry["applied"]) for entry in lead["history"]} == {("paid", True), ("hold", False)}
    assert {(detail["status"], detail["applied"]) for _, detail in relay.bus.events} == {
        ("paid", True),
        ("hold", False),
    }


# The transport


def padded(relay: Relay, size: int) -> bytes:
    body = encoded(relay.callback(padding=""))
    return body.replace(b'"padding":""', b'"padding":"' + b"x" * (size - len(body)) + b'"')


@pytest.mark.parametrize("content_type", ["application/json", "application/octet-stream"])
def test_a48_one_byte_too_many_is_refused_before_any_work(
    relay: Relay, monkeypatch: pytest.MonkeyPatch, content_type: str
) -> None:
    """A48: 256 KiB are taken; one byte more costs neither an HMAC nor a parse, nor any I/O."""
    assert post(relay, padded(relay, LIMIT), content_type=content_type) == OK
    relay.calls.clear()
    body = padded(relay, LIMIT + 1)
    event = http_event("POST", "/cartelcrm/callback", relay.signed(body) | {"Content-Type": content_type}, body)
    monkeypatch.delattr(signing, "sign")
    monkeypatch.delattr(json, "loads")
    response = relay.receive(event)
    assert (response.status, response.text) == (413, '{"error":"body_too_large"}')
    assert untouched(relay)


@pytest.mark.parametrize("told", [{"Content-Length": "10"}, {"Transfer-Encoding": "chunked"}, {"Content-Length": "x"}])
def test_a49_the_size_is_what_came_not_what_was_told(relay: Relay, told: dict[str, str]) -> None:
    """A49: Content-Length decides nothing."""
    big = padded(relay, LIMIT + 1)
    assert verdict(relay.post_callback(big, relay.signed(big) | told)) == (413, {"error": "body_too_large"})
    assert verdict(relay.post_callback(relay.callback(), relay.signed(relay.callback()) | told)) == OK


@pytest.mark.parametrize("content_type", [None, "application/x-www-form-urlencoded", "application/vnd.crm+json"])
def test_a50_base64_is_decoded_before_the_signature(relay: Relay, content_type: str | None) -> None:
    """A50: without a type that is text the body comes in base64; the signature is of what was sent."""
    body = encoded(relay.callback(comment="Привет"))
    assert with_body(body, content_type or "")["isBase64Encoded"]
    assert post(relay, body, content_type=content_type) == OK
    assert effects(relay) == 1


@pytest.mark.parametrize(
    ("row", "spoil"),
    [
        ("a51", lambda text: text + "="),
        ("a51", lambda text: text.rstrip("=")[:-1]),
        ("a51", lambda text: "%%%" + text),
        ("a51", lambda text: "ключ" + text),
        ("a52", lambda text: text[:8] + "\n" + text[8:]),
        ("a52", lambda text: " " + text),
        ("a52", lambda text: text[:8] + "!" + text[8:]),
        ("a52", lambda text: text + "\0"),
    ],
)
def test_a51_a52_broken_base64_is_malformed(relay: Relay, row: str, spoil: Any) -> None:
    """A51, A52: nothing that a lenient decoder would drop is dropped here."""
    body = padded(relay, 199)
    event = http_event("POST", "/cartelcrm/callback", {**relay.signed(body), "Content-Type": ""}, body)
    assert verdict(relay.receive({**event, "body": spoil(event["body"])})) == (400, {"error": "broken_base64"})
    assert verdict(relay.receive(event)) == OK


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "deflate", "br", "gzip, identity"])
def test_a53_a_compressed_body_is_not_inflated(relay: Relay, monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    """A53: neither a body in gzip nor a bomb of a thousand times its size is opened."""
    for plain in (encoded(relay.callback()), b"0" * 10_000_000):
        body = gzip.compress(plain)
        with monkeypatch.context() as patch:
            patch.delattr(gzip, "decompress")
            assert post(relay, body, content_encoding=encoding) == (415, {"error": "content_encoding_not_supported"})
    assert untouched(relay)


@pytest.mark.parametrize("spell", [str.lower, str.upper, str.title, str.swapcase])
def test_a54_header_names_have_no_case(relay: Relay, spell: Any) -> None:
    """A54: API Gateway sends them in lower case, an emulator may not."""
    body = encoded(relay.callback())
    event = http_event("POST", "/cartelcrm/callback", {}, body)
    event |= {
        "headers": {spell(name): value for name, value in relay.signed(body).items()},
        **with_body(body, "text/json"),
    }
    assert verdict(relay.receive(event)) == OK


def test_a55_headers_up_to_the_gateways_limit_change_nothing(relay: Relay) -> None:
    """A55: below the gateway's own 10,240 bytes there is the normal verdict, for good requests and bad ones."""
    crowd = {f"x_filler_{number}": "x" * 900 for number in range(10)}
    assert post(relay, **crowd) == OK
    assert post(relay, **crowd, x_timestamp="x" * 900) == BAD_TIMESTAMP
    assert post(relay, **crowd, x_signature="sha256=" + "0" * 9000) == BAD_SIGNATURE


@pytest.mark.parametrize(
    "internal_id", ["x" * 200_000, "../../x", "%00", "a\r\nb", "a\nlevel=ERROR", "<script>", "${jndi:x}"]
)
def test_a56_an_id_with_a_meaning_of_its_own_is_kept_aside(relay: Relay, internal_id: str) -> None:
    """A56: it is part of no key and of no log line."""
    body = encoded(relay.callback(internal_id=internal_id))
    assert post(relay, body) == (422, {"error": "internal_id_invalid"})
    assert quarantined(relay) == [("internal_id_invalid", body)]
    assert not any(internal_id in key for key in relay.store.items)
    assert internal_id not in relay.output
    assert json.dumps(internal_id)[1:-1] not in relay.output


def test_a56_an_id_of_a_megabyte_is_too_large(relay: Relay) -> None:
    """A56: a body over the limit is not even read."""
    assert post(relay, relay.callback(internal_id="x" * 1_000_000)) == (413, {"error": "body_too_large"})


@pytest.mark.parametrize("method", ["GET", "PUT", "OPTIONS", "DELETE", "HEAD", "PATCH"])
def test_a62_only_post_is_a_callback(relay: Relay, method: str) -> None:
    """A62: should anything route another method here, it is refused, however well it is signed."""
    body = encoded(relay.callback())
    event = http_event(method, "/cartelcrm/callback", relay.signed(body), body)
    assert verdict(relay.receive(event)) == (405, {"error": "method_not_allowed"})
    assert untouched(relay)


def test_a63_a_signature_in_the_query_is_none(relay: Relay) -> None:
    """A63: what proves the sender comes in headers."""
    body = encoded(relay.callback())
    proof = relay.signed(body)
    target = f"/cartelcrm/callback?X-Signature={proof['X-Signature']}&X-Timestamp={proof['X-Timestamp']}"
    kept = without(dict(proof), "X-Signature")
    event = http_event("POST", target, {name: str(value) for name, value in kept.items()}, body)
    assert verdict(relay.receive(event)) == BAD_SIGNATURE
    assert verdict(relay.receive(http_event("POST", target, {}, body))) == BAD_TIMESTAMP
    assert untouched(relay)


# Copies at once


class Turns:
    """Threads that take turns: only one runs at a time, and at every port call chance says who goes on."""

    def __init__(self, relay: Relay, seed: int) -> None:
        self._random = Random(seed)
        self._condition = Condition()
        self._running: Thread | None = None
        self._alive: list[Thread] = []
        relay.before_call = lambda _: self._pass_on()

    def run(self, target: Any, copies: int) -> None:
        self._alive = [Thread(target=self._take_part, args=(target,)) for _ in range(copies)]
        threads = list(self._alive)
        self._running = self._random.choice(threads)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _take_part(self, target: Any) -> None:
        me = current_thread()
        with self._condition:
            self._condition.wait_for(lambda: self._running is me)
        try:
            target()
        finally:
            self._alive.remove(me)
            self._pass_on(wait=False)

    def _pass_on(self, *, wait: bool = True) -> None:
        with self._condition:
            me = current_thread()
            self._running = self._random.choice(self._alive) if self._alive else None
            self._condition.notify_all()
            if wait:
                self._condition.wait_for(lambda: self._running is me)


@pytest.mark.parametrize("seed", range(5))
def test_a57_fifty_copies_in_any_order_have_one_effect(relay: Relay, seed: int) -> None:
    """A57: however fifty copies interleave at the store and the queue, all are acknowledged and one has the effect."""
    answers: list[tuple[int, Any]] = []
    Turns(relay, seed).run(lambda: answers.append(post(relay)), 50)
    relay.before_call = lambda _: None
    assert len(answers) == 50
    assert all(answer in (OK, REPLAY) for answer in answers)
    assert len(relay.queues["callbacks"].messages) == answers.count(OK) >= 1
    assert effects(relay) == 1


def test_a57_fifty_threads_have_one_effect(relay: Relay) -> None:
    """A57: the same where threads really run at once (without Powertools, which serves one call at a time)."""
    post(relay, relay.callback(internal_id="first"))  # puts the runtime in place
    bare = inspect.unwrap(receive.handler)
    body = encoded(relay.callback())
    event = http_event("POST", "/cartelcrm/callback", relay.signed(body), body)
    context = Context(relay.clock.time, relay.clock.now + 10, "callback_receive")
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(50) as threads:
            answers = list(threads.map(lambda _: verdict(Response.of(bare(event, context))), range(50)))
    finally:
        sys.setswitchinterval(interval)
    assert set(map(str, answers)) <= {str(OK), str(REPLAY)}
    assert effects(relay) == 2


# Faults


def test_a58_while_the_queue_is_down_the_outbox_keeps_callbacks(relay: Relay) -> None:
    """A58: the sender sees no difference, a copy is told, and when the queue is back the outbox is drained into it."""
    relay.fail("queue.send")
    assert post(relay) == OK
    assert post(relay) == REPLAY
    assert len(relay.items("outbox#cartelcrm.callback#")) == 1
    assert not relay.queues["callbacks"].messages
    assert relay.invoke("outbox_drain", {}) == {"sent": 0, "failed": 1}
    relay.mend()
    assert relay.invoke("outbox_drain", {}) == {"sent": 1, "failed": 0}
    assert relay.items("outbox#") == {}
    assert effects(relay) == 1


def test_a58_where_nothing_is_durable_the_sender_keeps_it(relay: Relay) -> None:
    """A58: with both stores down the answer is 503 and when to come again; the next try is not taken for a copy."""
    relay.fail("queue.send")
    relay.fail("store")
    response = relay.post_callback()
    assert verdict(response) == NOTHING_DURABLE
    assert response.headers["retry-after"] == "30"
    assert relay.metrics["AttentionNeeded"] == 1
    relay.mend()
    assert post(relay) == OK
    assert effects(relay) == 1


@pytest.mark.parametrize("seed", range(10))
def test_a58_as_many_good_answers_as_durable_events(relay: Relay, seed: int) -> None:
    """A58: whatever fails, before or after its effect, exactly what was acknowledged has its effect in the end."""
    random = Random(seed)
    acknowledged = set()
    for number in range(40):
        relay.mend()
        for port in ("store.put", "store.get", "queue.send"):
            if random.random() < 0.5:
                relay.fail(port, times=random.choice([1, 2, 9]), after=random.random() < 0.3)
        status, _ = post(relay, relay.callback(internal_id=f"L-{number}"))
        assert status in (200, 503)
        if status == 200:
            acknowledged.add(f"L-{number}")
    relay.mend()
    relay.invoke("outbox_drain", {})
    effects(relay)
    published = Counter(detail["cartelcrm_id"] for _, detail in relay.bus.events)
    assert set(published.values()) == {1}
    assert acknowledged <= published.keys()  # a 503 after its effect may have one too: the sender will repeat it


def test_a59_a_throttled_table_costs_a_copy_at_most(relay: Relay) -> None:
    """A59: the queue alone suffices; copies that the table could not tell are told by the worker."""
    relay.fail("store")
    assert post(relay) == OK
    assert post(relay) == OK
    relay.mend()
    assert post(relay) == OK
    assert len(relay.queues["callbacks"].messages) == 3
    assert effects(relay) == 1


@pytest.mark.parametrize("call", [1, 2])
def test_a59_a_single_throttle_is_not_seen(relay: Relay, call: int) -> None:
    """A59: the note before the message, or the one after it, may fail."""
    relay.before_call = lambda name: relay.fail("store.put", times=1) if relay.calls.count(name) == call else None
    assert post(relay) == OK
    relay.before_call = lambda _: None
    relay.mend()
    assert effects(relay) == 1


@pytest.mark.parametrize("warm", [True, False])
def test_a60_while_the_secret_store_is_down(relay: Relay, warm: bool) -> None:
    """A60: a warm function goes on with what it knows, a cold one answers 503, and neither accepts a forgery."""
    value = json.dumps({"cartelcrm": {"callback_secrets": [{"value": CALLBACK_SECRET}]}})
    down = not warm

    def fetch() -> str:
        if down:
            raise StorageError("ThrottlingException")
        return value

    relay.secret_source = SecretSource(fetch, clock=relay.clock.time, failed=lambda _: None)
    if warm:
        assert post(relay) == OK
    down = True
    relay.clock.sleep(3600)
    assert post(relay) == (OK if warm else NOT_CONFIGURED)
    assert post(relay, x_signature="sha256=" + "0" * 64) == (BAD_SIGNATURE if warm else NOT_CONFIGURED)
    down = False
    relay.clock.sleep(3600)
    assert post(relay) == OK


@pytest.mark.parametrize(
    ("call", "after", "again"),
    [("store.put", True, OK), ("queue.send", False, OK), ("queue.send", True, OK)],
    ids=["after the first note", "before the message", "after the message"],
)
def test_a61_a_crash_loses_nothing_and_doubles_nothing(
    relay: Relay, call: str, after: bool, again: tuple[int, Any]
) -> None:
    """A61: the sender had no answer and comes again; the callback has one effect."""
    relay.fail(call, times=1, after=after, error=Crash())
    with pytest.raises(Crash):
        post(relay)
    assert post(relay) == again
    assert effects(relay) == 1


def test_a61_a_crash_after_the_last_note_makes_a_replay(relay: Relay) -> None:
    """A61: everything was done but the answer."""

    def crash(name: str) -> None:
        if relay.calls == ["store.put", "queue.send", "store.put"]:
            relay.fail("store.put", times=1, after=True, error=Crash())

    relay.before_call = crash
    with pytest.raises(Crash):
        post(relay)
    assert post(relay) == REPLAY
    assert effects(relay) == 1


# What is told to strangers and to logs


CANARY = "canary-7f3a"


def bad_requests(relay: Relay) -> Iterator[dict[str, Any]]:
    """Yield a request for every refusal, each with the canary wherever the sender can put it."""
    good = encoded(relay.callback(phone=CANARY))
    tagged = relay.signed(good) | {"X-Canary": CANARY, "User-Agent": CANARY}

    def event(body: bytes, method: str = "POST", **headers: str) -> dict[str, Any]:
        replaced = {name.replace("_", "-").title(): value for name, value in headers.items()}
        return http_event(method, f"/cartelcrm/callback?{CANARY}={CANARY}", tagged | replaced, body)

    yield event(good, x_timestamp=CANARY)
    yield event(good, x_signature=CANARY)
    yield event(good, x_signature=f"sha256={sign(good, CANARY)}")
    yield event(good, content_encoding=CANARY)
    yield event(good, method="PUT")
    yield {**event(good), "isBase64Encoded": True, "body": CANARY}
    yield event(CANARY.encode() * 30_000)
    for body in (CANARY.encode(), encoded([CANARY]), encoded({"internal_id": CANARY, CANARY: CANARY})):
        yield event(body, x_signature=sign(body, CALLBACK_SECRET))
    for fields in ({"event": f"{CANARY}\n"}, {"timestamp": CANARY}, {"timestamp": 1}, {"internal_id": f"/{CANARY}"}):
        body = encoded(relay.callback(phone=CANARY, **fields))
        yield event(body, x_signature=sign(body, CALLBACK_SECRET))


def test_a64_refusals_tell_nothing(relay: Relay) -> None:
    """A64: each answer is one constant word; neither it nor a log line has input, secret, right signature or trace."""
    words = set()
    for event in bad_requests(relay):
        response = relay.receive(event)
        assert 400 <= response.status < 500
        assert response.json().keys() == {"error"}
        assert len(response.text) < 60
        words.add(response.json()["error"])
        body = base64.b64decode(event["body"] + "==") if event["isBase64Encoded"] else event["body"].encode()
        for told in (response.text, relay.output):
            assert CANARY not in told
            assert CALLBACK_SECRET not in told
            assert sign(body, CALLBACK_SECRET) not in told
            assert "Traceback" not in told
    assert len(words) == 12


def test_a64_an_error_of_ours_tells_nothing(relay: Relay) -> None:
    """A64: what nobody foresaw is a constant 500 that is counted, and logged by its type and place only."""
    relay.fail("store.put", error=RuntimeError(CANARY))
    assert post(relay) == (500, {"error": "internal_error"})
    assert CANARY not in relay.output
    assert relay.metrics == Counter(UnhandledError=1)
    (line,) = relay.logs
    assert line["error_type"] == "RuntimeError"
    assert line["error_places"]


def test_a64_good_callbacks_leave_no_personal_data_in_logs(relay: Relay) -> None:
    """A64: phones, names and signatures of accepted callbacks stay out of the logs too, on the whole way."""
    assert post(relay, relay.callback(phone="+380501234567", name="Олена", email="o@example.com")) == OK
    assert effects(relay) == 1
    for personal in ("380501234567", "Олена", "o@example.com", "sha256="):
        assert personal not in relay.output
