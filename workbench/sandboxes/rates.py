"""Requests in a sliding window: a limit to hold callers to, and a measure of what they did."""

from bisect import bisect_right
from collections import deque
from collections.abc import Sequence

# Unix seconds as floats lie about 2.4e-7 s apart: who waits for exactly the window must not fail by rounding.
_ROUNDING = 1e-6


class SlidingWindow:
    """At most `limit` requests in any `seconds`."""

    def __init__(self, limit: int, seconds: float = 1.0) -> None:
        self._limit = limit
        self._seconds = seconds
        self._times: deque[float] = deque()

    def take(self, now: float) -> float:
        """0.0 and the request counts, or the seconds until there is room."""
        while self._times and now - self._times[0] >= self._seconds - _ROUNDING:
            self._times.popleft()
        if len(self._times) >= self._limit:
            return self._times[0] + self._seconds - now
        self._times.append(now)
        return 0.0


def busiest(times: Sequence[float], seconds: float = 1.0) -> int:
    """The most of the sorted `times` that lie in one window of `seconds`."""
    windows = (bisect_right(times, end) - bisect_right(times, end - seconds + _ROUNDING) for end in times)
    return max(windows, default=0)
