"""Signatures of CartelCRM: any input gets a verdict, and only the right key, body and time get a good one."""

import hmac
import math
from collections.abc import Callable, Mapping
from random import Random
from statistics import mean, variance
from time import perf_counter_ns

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crm_relay import signing
from crm_relay.signing import Verdict, sign, signature_headers, verify

NOW = 1_760_000_000.0
BODY = b'{"phone":"+380501234567"}'
ANY_TEXT = st.text(st.characters())  # half surrogate pairs included
SECRETS = st.text(min_size=1)


def headers(body: bytes = BODY, secret: str = "secret", at: float = NOW) -> dict[str, str]:
    return {name.lower(): value for name, value in signature_headers(body, secret, now=at).items()}


def test_the_known_answer_of_the_contract() -> None:
    """Anybody with openssl gets the same signature."""
    known = "470ec5959a0a6b88df36072e68c5f53dbf06659e643410dc9e91b440bff1b904"
    assert sign(BODY, "test_secret") == known
    assert signature_headers(BODY, "test_secret", now=1_717_751_234.9) == {
        "X-Signature": f"sha256={known}",
        "X-Timestamp": "1717751234",
    }


@given(st.binary(), SECRETS, st.floats(0, 9e11))
def test_what_is_signed_is_genuine(body: bytes, secret: str, now: float) -> None:
    """Whatever is signed now verifies now, with the prefix and without it."""
    signed = headers(body, secret, now)
    assert verify(body, signed, [secret], now=now, require_prefix=True) is Verdict.GENUINE
    signed["x-signature"] = signed["x-signature"].removeprefix("sha256=")
    assert verify(body, signed, [secret], now=now) is Verdict.GENUINE


@given(st.binary(), st.binary(), SECRETS, SECRETS)
def test_another_body_or_another_secret_is_forged(body: bytes, other: bytes, secret: str, wrong: str) -> None:
    """A signature fits one body and one secret."""
    assert (verify(other, headers(body, secret), [secret], now=NOW) is Verdict.GENUINE) == (body == other)
    # HMAC pads a key with zero bytes: by its definition "k" and "k\0" are one key.
    same = secret.encode().ljust(64, b"\0") == wrong.encode().ljust(64, b"\0")
    assert (verify(body, headers(body, wrong), [secret], now=NOW) is Verdict.GENUINE) == same


@given(
    st.binary(),
    st.dictionaries(st.sampled_from(["x-timestamp", "x-signature"]) | ANY_TEXT, ANY_TEXT),
    st.lists(st.text()),
    st.booleans(),
)
def test_any_input_gets_a_verdict(body: bytes, given_: Mapping[str, str], secrets: list[str], prefix: bool) -> None:
    """The verifier is total: no header, body or list of secrets makes it raise, and none is genuine by chance."""
    assert verify(body, given_, secrets, now=NOW, require_prefix=prefix) in set(Verdict) - {Verdict.GENUINE}


@given(ANY_TEXT | st.text(st.characters(), min_size=1).map(lambda more: headers()["x-signature"] + more))
def test_any_signature_beside_a_fresh_timestamp_gets_a_verdict(signature: str) -> None:
    """An odd signature, or the right one and more, is forged, not an error, once the timestamp let it through."""
    odd = {"x-timestamp": str(int(NOW)), "x-signature": signature}
    assert verify(BODY, odd, ["secret"], now=NOW) is Verdict.FORGED


@given(ANY_TEXT | st.integers().map(str) | st.floats().map(str))
def test_any_timestamp_gets_a_verdict(timestamp: str) -> None:
    """Only ASCII digits within the tolerance are a timestamp."""
    odd = headers() | {"x-timestamp": timestamp}
    plain = timestamp.isascii() and timestamp.isdigit()
    fresh = plain and len(timestamp) <= 12 and abs(int(timestamp) - NOW) <= signing.TOLERANCE
    assert (verify(BODY, odd, ["secret"], now=NOW) is Verdict.GENUINE) == fresh


@pytest.mark.parametrize(
    ("off", "verdict"),
    [(-301, Verdict.STALE), (-300, Verdict.GENUINE), (300, Verdict.GENUINE), (301, Verdict.STALE)],
)
@pytest.mark.parametrize("fraction", [0.0, 0.999])
def test_the_tolerance_is_inclusive(off: int, verdict: Verdict, fraction: float) -> None:
    """300 seconds off is fresh and 301 is not, whatever the fraction of our second."""
    assert verify(BODY, headers(at=NOW + off), ["secret"], now=NOW + fraction) is verdict


def test_the_timestamp_is_judged_before_the_signature() -> None:
    """The contract answers 401 to who is wrong in both."""
    assert verify(BODY, {"x-timestamp": "1", "x-signature": "00"}, ["secret"], now=NOW) is Verdict.STALE


@pytest.mark.parametrize("secrets", [[], [""], ["", ""]])
def test_without_a_secret_nothing_is_genuine(secrets: list[str]) -> None:
    """An empty secret is none: what was signed with "" is not accepted, and even the time is not looked at."""
    assert verify(BODY, headers(secret=""), secrets, now=NOW) is Verdict.NO_SECRET
    assert verify(BODY, {}, secrets, now=NOW) is Verdict.NO_SECRET


def test_every_secret_counts() -> None:
    """While secrets are rotated any of them is good, wherever it stands in the list."""
    for secret in ("old", "new"):
        assert verify(BODY, headers(secret=secret), ["old", "", "new"], now=NOW) is Verdict.GENUINE
    assert verify(BODY, headers(secret=""), ["old", "", "new"], now=NOW) is Verdict.FORGED


def test_the_prefix_may_be_required() -> None:
    """A strict receiver refuses the bare hex that the contract allows."""
    bare = headers() | {"x-signature": sign(BODY, "secret")}
    assert verify(BODY, bare, ["secret"], now=NOW) is Verdict.GENUINE
    assert verify(BODY, bare, ["secret"], now=NOW, require_prefix=True) is Verdict.FORGED


@pytest.mark.parametrize("decision", [True, False])
def test_a65_a_constant_time_comparison_alone_decides(monkeypatch: pytest.MonkeyPatch, decision: bool) -> None:
    """A65: every secret is compared once over its whole length, and nothing but that comparison decides."""
    compared: list[tuple[str, str]] = []

    def compare(expected: str, given_: str) -> bool:
        compared.append((expected, given_))
        return decision

    monkeypatch.setattr(hmac, "compare_digest", compare)
    good = headers(secret="first")
    for signature in (good["x-signature"], "sha256=" + "0" * 64, good["x-signature"][:-1] + "0"):
        compared.clear()
        verdict = verify(BODY, good | {"x-signature": signature}, ["first", "second"], now=NOW)
        assert verdict is (Verdict.GENUINE if decision else Verdict.FORGED)
        plain = signature.removeprefix("sha256=")
        assert compared == [(sign(BODY, "first"), plain), (sign(BODY, "second"), plain)]


def difference(judge: Callable[[str], object]) -> float:
    """Welch's t of the times that a signature takes which is wrong in its first digit and one wrong in its last."""
    good = sign(BODY, "secret")
    wrong = [("0" if good[0] != "0" else "1") + good[1:], good[:-1] + ("0" if good[-1] != "0" else "1")]
    times: tuple[list[int], list[int]] = ([], [])
    order = Random(1)
    for _ in range(20_000):
        which = order.getrandbits(1)
        start = perf_counter_ns()
        judge(wrong[which])
        times[which].append(perf_counter_ns() - start)
    # Without the slowest twentieth, which the machine made slow.
    kept = [sorted(some)[: len(some) * 19 // 20] for some in times]
    spread = sum(variance(some) / len(some) for some in kept)
    return abs(mean(kept[0]) - mean(kept[1])) / math.sqrt(spread)


def test_a65_where_a_signature_is_wrong_cannot_be_timed() -> None:
    """A65: ten thousand samples of each kind show no difference, while a comparison that stops early shows one.

    One quiet measurement of three is enough: noise passes by, a leak would stay.
    """
    good = sign(BODY, "secret")
    fresh = headers()

    def stops_early(signature: str) -> bool:
        sign(BODY, "secret")
        return all(ours == theirs for ours, theirs in zip(good, signature, strict=True))

    def verified(signature: str) -> Verdict:
        return verify(BODY, fresh | {"x-signature": signature}, ["secret"], now=NOW)

    assert difference(stops_early) > 5
    assert any(difference(verified) < 5 for _ in range(3))
