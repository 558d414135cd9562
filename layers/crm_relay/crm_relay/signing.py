"""HMAC-SHA256 signatures of CartelCRM: sign what we send, judge what we receive."""

import hashlib
import hmac
import re
from collections.abc import Iterable, Mapping
from enum import Enum

TOLERANCE = 300
"""Seconds that X-Timestamp may differ from our clock, in either direction, inclusive (CartelCRM contract)."""

_PREFIX = "sha256="
_HEX = re.compile(r"[0-9a-f]{64}")
_UNIX_SECONDS = re.compile(r"[0-9]{1,12}")


class Verdict(Enum):
    """What a request's headers prove."""

    GENUINE = "genuine"
    STALE = "stale"
    FORGED = "forged"
    NO_SECRET = "no_secret"  # noqa: S105 (no password but its absence)


def sign(body: bytes, secret: str) -> str:
    """Return the lower-case hex HMAC-SHA256 of `body` under `secret`."""
    return hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def signature_headers(body: bytes, secret: str, *, now: float) -> dict[str, str]:
    """Return the X-Signature and X-Timestamp headers that CartelCRM asks for and sends."""
    return {"X-Signature": _PREFIX + sign(body, secret), "X-Timestamp": str(int(now))}


def verify(
    body: bytes,
    headers: Mapping[str, str],
    secrets: Iterable[str],
    *,
    now: float,
    require_prefix: bool = False,
) -> Verdict:
    """Judge a signed request; any input gets a verdict, none an exception.

    Args:
        body: the raw bytes as they were sent.
        headers: names in lower case.
        secrets: those valid now; empty ones do not count, since anybody can sign with "".
        now: unix time in seconds.
        require_prefix: refuse signatures without "sha256=", which the contract makes optional.

    The timestamp is judged first, as in the contract. All secrets are tried even after a match, and each
    comparison takes the same time wherever the difference is.
    """
    keys = [secret for secret in secrets if secret]
    if not keys:
        return Verdict.NO_SECRET
    if not _is_fresh(headers.get("x-timestamp", ""), now):
        return Verdict.STALE
    signature = headers.get("x-signature", "")
    if signature.startswith(_PREFIX):
        signature = signature.removeprefix(_PREFIX)
    elif require_prefix:
        return Verdict.FORGED
    if not _HEX.fullmatch(signature):
        return Verdict.FORGED
    matches = [hmac.compare_digest(sign(body, key), signature) for key in keys]
    return Verdict.GENUINE if any(matches) else Verdict.FORGED


def _is_fresh(timestamp: str, now: float) -> bool:
    # Not int() alone: it takes "+17", "1_7", blanks and other scripts' digits, and float() takes "nan".
    return bool(_UNIX_SECONDS.fullmatch(timestamp)) and abs(int(timestamp) - int(now)) <= TOLERANCE
