"""Virtual time for code that blocks: tasks that take turns, whoever is due first.

Who sleeps hands over, and nobody else does. So the same program makes the same steps in the same order, and a
wait of a day costs nothing.
"""

from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count

from greenlet import getcurrent, greenlet

type Step = Callable[[], object]


class Scheduler:
    """One timeline. `now` is in seconds; nothing here knows what the tasks do."""

    def __init__(self, start: float) -> None:
        self.now = start
        self._agenda: list[tuple[float, int, Step]] = []
        self._numbers = count()
        self._loop = getcurrent()

    def at(self, time: float, step: Step) -> None:
        """Do something at a time; it must not sleep."""
        heappush(self._agenda, (max(time, self.now), next(self._numbers), step))

    def start(self, task: Step) -> None:
        """Begin a task, which may sleep, now."""
        self.at(self.now, greenlet(task, self._loop).switch)

    def sleep(self, seconds: float) -> None:
        """Let time pass for the running task."""
        self.at(self.now + seconds, getcurrent().switch)
        self._loop.switch()

    def run(self, until: float) -> None:
        """Let time pass until `until`, or until nothing is left to do; raise what a task or a step raises."""
        while self._agenda and self._agenda[0][0] <= until:
            self.now, _, step = heappop(self._agenda)
            step()
