"""What travels through a queue: one call, or one part of a call, with a key that says what is the same."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

_VERSION = 1


class NotOurs(Exception):
    """A message body that is no envelope, or one of a version that this code does not know."""

    def __init__(self, reason: str = "not_ours") -> None:
        super().__init__(reason)


@dataclass(frozen=True, slots=True)
class Envelope:
    """One thing to do.

    `kind` names the job and `key` the thing within it; both together name the effect. `sha256` tells
    another payload under the same key. `accepted_at` is in unix seconds.
    """

    kind: str
    key: str
    payload: Mapping[str, Any]
    accepted_at: int
    correlation_id: str
    sha256: str = ""

    def __post_init__(self) -> None:
        if not self.sha256:
            digest = hashlib.sha256(_dump(self.payload).encode()).hexdigest()
            object.__setattr__(self, "sha256", digest)

    @property
    def name(self) -> str:
        """The name of the effect."""
        return f"{self.kind}#{self.key}"

    def encode(self) -> str:
        """Return the message body."""
        return _dump(
            {
                "v": _VERSION,
                "kind": self.kind,
                "key": self.key,
                "sha256": self.sha256,
                "accepted_at": self.accepted_at,
                "correlation_id": self.correlation_id,
                "payload": self.payload,
            }
        )

    @classmethod
    def decode(cls, body: str) -> Self:
        """Read a message body.

        Raises:
            NotOurs: it is none of ours.
        """
        try:
            match json.loads(body):
                case {
                    "v": int(version),
                    "kind": str(kind),
                    "key": str(key),
                    "sha256": str(sha256),
                    "accepted_at": int(accepted_at),
                    "correlation_id": str(correlation_id),
                    "payload": dict(payload),
                } if version == _VERSION:
                    return cls(kind, key, payload, accepted_at, correlation_id, sha256)
        except (ValueError, RecursionError):
            pass
        raise NotOurs


def _dump(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    # The two characters of JSON that SQS does not carry (SendMessage, "Unicode characters").
    return text.replace("\ufffe", r"\ufffe").replace("\uffff", r"\uffff")
