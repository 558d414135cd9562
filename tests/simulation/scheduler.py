"""Virtual time for code that blocks: threads of which one runs at a time, chosen by the time alone.

Who sleeps hands the baton to whoever is due next. So the same program makes the same steps in the same order,
and a wait of a day costs nothing.
"""

import math
from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count
from threading import Lock, Thread

type Step = Callable[[], None]


class _Thread:
    """An operating system's thread that runs one task after the other."""

    def __init__(self, scheduler: "Scheduler") -> None:
        self._baton = Lock()
        self._baton.acquire()
        self._scheduler = scheduler
        self.task: Step | None = None
        Thread(target=self._live, daemon=True).start()

    def give(self) -> None:
        """Let this thread go on; the caller must wait or end."""
        self._baton.release()

    def wait(self) -> None:
        """Wait until somebody gives the baton."""
        self._baton.acquire()

    def _live(self) -> None:
        self.wait()
        while self.task:
            self._scheduler.perform(self.task)
            self.task = None
            self._scheduler.retire(self)
            self.wait()


class Scheduler:
    """One timeline. `now` is in seconds; nothing here knows what the tasks do."""

    def __init__(self, start: float) -> None:
        self.now = start
        self.failure: BaseException | None = None
        self._agenda: list[tuple[float, int, Step | _Thread]] = []
        self._numbers = count()
        self._idle: list[_Thread] = []
        self._main = Lock()
        self._end = math.inf
        self._running: _Thread | None = None

    def at(self, time: float, step: Step) -> None:
        """Do something short at a time: it must not sleep."""
        heappush(self._agenda, (max(time, self.now), next(self._numbers), step))

    def start(self, task: Step) -> None:
        """Begin a task, which may sleep, now."""
        if not self._idle:
            self._idle.append(_Thread(self))
        thread = self._idle.pop()
        thread.task = task
        heappush(self._agenda, (self.now, next(self._numbers), thread))

    def sleep(self, seconds: float) -> None:
        """Let time pass for the running task."""
        me = self._running
        assert me is not None
        heappush(self._agenda, (self.now + max(0.0, seconds), next(self._numbers), me))
        following = self._following()
        if following is not me:
            self._hand_to(following)
            me.wait()
        self._running = me

    def run(self, until: float) -> None:
        """Let time pass until `until`, or until nothing is left to do; raise what a task or a step raised."""
        self._end = until
        self._main.acquire()
        self._hand_to(self._following())
        self._main.acquire()
        self._main.release()
        self.now = max(self.now, until if until < math.inf else self.now)
        if self.failure:
            raise self.failure

    def close(self) -> None:
        """End the threads that wait for a task. Those in the middle of one are left behind."""
        for thread in self._idle:
            thread.give()
        self._idle.clear()

    def perform(self, task: Step) -> None:
        """Run a task in the calling thread, and keep what it raises."""
        try:
            task()
        except BaseException as error:  # noqa: BLE001 (it belongs to whoever called `run`)
            self.failure = self.failure or error

    def retire(self, thread: _Thread) -> None:
        """Take a thread whose task has ended back."""
        self._idle.append(thread)
        self._hand_to(self._following())

    def _following(self) -> _Thread | None:
        """Do the steps that are due, and return the thread that has the next turn; None at the end."""
        while self._agenda and self._agenda[0][0] <= self._end and not self.failure:
            time, _, what = heappop(self._agenda)
            self.now = max(self.now, time)
            if isinstance(what, _Thread):
                return what
            self.perform(what)
        return None

    def _hand_to(self, thread: _Thread | None) -> None:
        if thread is None:
            self._running = None
            self._main.release()
        else:
            self._running = thread
            thread.give()
