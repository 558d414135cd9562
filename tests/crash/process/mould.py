"""A process that has loaded a function and never runs it: those that do are forked from it, and start in no time.

Run with the function's environment, its handler and the path of a socket. `sitecustomize` sends here whoever is to be a
process of the function; that one stays, as the process that the stack knows, for as long as its fork serves.
"""

import os
import random
import runpy
import signal
import sys
from importlib import import_module
from pathlib import Path
from select import select
from socket import AF_UNIX, SOCK_STREAM, recv_fds, send_fds, socket
from threading import Thread

_ADDRESS = "AWS_LAMBDA_RUNTIME_API"
_STANDARD = 0, 1, 2
_RUNTIME = Path(__file__).parents[3] / "workbench/stack/runtime.py"


def be_served_by(mould: Path) -> None:
    """Have a fork of the mould serve in our place, and end with it. Returns if there is no mould."""
    with socket(AF_UNIX, SOCK_STREAM) as fork:
        try:
            fork.connect(str(mould))
        except OSError:
            return
        send_fds(fork, [os.environ[_ADDRESS].encode()], _STANDARD)
        fork.recv(1)
    os.kill(os.getpid(), signal.SIGKILL)


def _serve(caller: socket, handler: str) -> None:
    address, given, _, _ = recv_fds(caller, 100, len(_STANDARD))
    for standard, file in zip(_STANDARD, given, strict=True):
        os.dup2(file, standard)
        os.close(file)
    os.environ[_ADDRESS] = address.decode()
    random.seed()
    Thread(target=_end_with, args=(caller,), daemon=True).start()
    sys.argv = [str(_RUNTIME), handler]
    runpy.run_path(str(_RUNTIME), run_name="__main__")


def _end_with(caller: socket) -> None:
    caller.recv(1)
    os.kill(os.getpid(), signal.SIGKILL)


def main(handler: str, place: str) -> None:
    """Load the function, listen at `place`, and fork for whoever comes, until standard input ends."""
    from awslambdaric import lambda_runtime_client  # noqa: PLC0415 (only here; whoever is served pays for no import)

    lambda_runtime_client.runtime_client = None  # the native one cannot be told another address
    import_module(handler.rpartition(".")[0])
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket(AF_UNIX, SOCK_STREAM) as door:
        door.bind(place)
        door.listen()
        print(flush=True)
        while sys.stdin not in (ready := select([door, sys.stdin], [], [])[0]) or door in ready:
            caller, _ = door.accept()
            if os.fork() == 0:
                door.close()
                _serve(caller, handler)
                return
            caller.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
