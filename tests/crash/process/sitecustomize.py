"""Loaded by every process of the stack before anything else: its clock leaps, and its I/O may be its end.

`CRASH_FOLDER` holds `clock`, the seconds by which time has leapt (a double), `<function>.calls`, which gets a line for
each I/O call, `<function>.armed`: the call at which the function's next process to reach it kills itself, and, where
there is one, `<function>.mould`, the socket of the process to be forked from.
"""

import mmap
import os
import re
import signal
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from threading import Lock
from typing import Any

from mould import be_served_by  # type: ignore[import-not-found]  # its folder is on no path but here

_FOLDER = Path(os.environ["CRASH_FOLDER"])
_KEY = re.compile(rb'"key": ?\{"S": ?"(\w+(?:#[a-z][a-z0-9.]*(?=#))?)#')
_INVOCATION = "invocation"

with (_FOLDER / "clock").open("rb") as _file:
    _leapt = mmap.mmap(_file.fileno(), 8, access=mmap.ACCESS_READ)
_time, _sleep = time.time, time.sleep
_HURRY = 20
"""How much shorter a function's sleeps are: it only waits for its turn at a CRM, which takes more here."""


def _leaping_time() -> float:
    leapt: float = struct.unpack("d", _leapt)[0]
    return _time() + leapt


class _Boundaries:
    """The I/O calls of one function's process, named and numbered within an invocation."""

    def __init__(self, function: str) -> None:
        self._calls = (_FOLDER / f"{function}.calls").open("a", buffering=1)
        self._armed = _FOLDER / f"{function}.armed"
        self._met: Counter[str] = Counter()
        self._lock = Lock()
        self._httpx_is_watched = False

    def begin(self) -> None:
        self._met.clear()
        self._calls.write(f"{_INVOCATION}\n")
        self._watch_httpx()

    def cross[T](self, name: str, call: Callable[[], T]) -> T:
        """Do an I/O call, or die before or after it."""
        with self._lock:
            self._met[name] += 1
            boundary = f"{name} {self._met[name]}"
            self._calls.write(f"{boundary}\n")
        self._die_if_armed(f"before {boundary}")
        answer = call()
        self._die_if_armed(f"after {boundary}")
        self._watch_httpx()
        return answer

    def _die_if_armed(self, here: str) -> None:
        try:
            if self._armed.read_text() != here:
                return
            self._armed.rename(self._armed.with_suffix(".fired"))
        except FileNotFoundError:
            return
        os.kill(os.getpid(), signal.SIGKILL)

    def watch_botocore(self) -> None:
        from botocore.httpsession import URLLib3Session  # noqa: PLC0415 (the other processes do without)

        session: Any = URLLib3Session
        send = session.send

        def sent(self_: Any, request: Any) -> Any:
            return self.cross(_named(request), lambda: send(self_, request))

        session.send = sent

    def _watch_httpx(self) -> None:
        # Not every function imports it, and some late.
        if self._httpx_is_watched or "httpx" not in sys.modules:
            return
        self._httpx_is_watched = True
        client = sys.modules["httpx"].Client
        send = client.send

        def sent(self_: Any, request: Any, **options: Any) -> Any:
            # Neither an id nor a secret of the path is part of a name.
            last = re.sub(r"\d+", "", request.url.path.rpartition("/")[2])
            return self.cross(f"{request.method} {last}", lambda: send(self_, request, **options))

        client.send = sent


def _named(request: Any) -> str:
    target = request.headers.get("X-Amz-Target", "")
    name = (target if isinstance(target, str) else target.decode()).rpartition(".")[2]
    body = request.body if isinstance(request.body, bytes) else b""
    key = _KEY.search(body)
    return f"{name} {key[1].decode()}" if key else name


def _become_a_function(name: str) -> None:
    be_served_by(_FOLDER / f"{name}.mould")
    from awslambdaric import bootstrap  # noqa: PLC0415 (as above)

    boundaries = _Boundaries(name)
    boundaries.watch_botocore()
    handle = bootstrap.handle_event_request

    def handled(*given: Any, **more: Any) -> Any:
        boundaries.begin()
        return handle(*given, **more)

    bootstrap.handle_event_request = handled
    time.sleep = lambda seconds: _sleep(float(seconds) / _HURRY)


def _become_the_cloud() -> None:
    from moto.core import utils  # noqa: PLC0415 (as above)

    now = utils.utcnow
    utils.utcnow = lambda: now() + timedelta(seconds=_leaping_time() - _time())


time.time = _leaping_time
if "_HANDLER" in os.environ:
    _become_a_function(os.environ["AWS_LAMBDA_FUNCTION_NAME"])
else:
    _become_the_cloud()
