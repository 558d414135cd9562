"""What a portal lets callers have: requests that drain from a bucket, and working time for each method."""

from collections import defaultdict
from collections.abc import Mapping

_MINUTE = 60
_MINUTES = 10
# Unix seconds as floats are coarse: who waits for exactly one request must not fail by rounding.
_ROUNDING = 1e-6


class LeakyBucket:
    """Requests come in at any pace while the level is at most `burst`, and drain at `per_second`."""

    def __init__(self) -> None:
        self.level = 0.0
        self._seen = 0.0

    def take(self, now: float, per_second: float, burst: int) -> bool:
        """Whether the request goes in; one that does not, leaves the level as it is."""
        self.level = max(0.0, self.level - (now - self._seen) * per_second)
        self._seen = now
        if self.level + 1 > burst + _ROUNDING:
            return False
        self.level += 1
        return True


class Operating:
    """The seconds that each caller's methods worked in the last ten minutes, in buckets of a minute."""

    def __init__(self) -> None:
        self._spent: defaultdict[tuple[str, str], dict[int, float]] = defaultdict(dict)

    def charge(self, key: str, method: str, now: float, seconds: float) -> None:
        """The method worked for so long."""
        minutes = self._spent[key, method]
        minute = int(now // _MINUTE)
        minutes[minute] = minutes.get(minute, 0.0) + seconds

    def spent(self, key: str, method: str, now: float) -> float:
        """The seconds that count against the method."""
        return sum(self._live(key, method, now).values())

    def time(self, key: str, method: str, now: float) -> dict[str, object]:
        """What an answer tells of it: the sum so far, and when the oldest minute drops."""
        live = self._live(key, method, now)
        oldest = min(live, default=int(now // _MINUTE))
        return {
            "operating_reset_at": (oldest + _MINUTES) * _MINUTE,
            "operating": round(sum(live.values()), 6),
        }

    def _live(self, key: str, method: str, now: float) -> Mapping[int, float]:
        first = int(now // _MINUTE) - _MINUTES + 1
        minutes = self._spent[key, method]
        for minute in [minute for minute in minutes if minute < first]:
            del minutes[minute]
        return minutes
