"""Built functions as Lambda starts them: under AWS's own Runtime Interface Emulator, and without Docker.

The emulator's binary comes with aws-sam-cli and runs on Linux only. What Lambda has beside the function and its
layers, boto3 and the runtime client, is installed from tests/artifact/requirements.txt into a folder of its own, so
that a package that is missing from the layers is missing here too.
"""

import hashlib
import http.client
import importlib.util
import json
import os
import platform
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from workbench.stack.blueprint import Blueprint, FunctionPlan
from workbench.stack.cloud import CREDENTIALS, Cloud
from workbench.stack.environments import FunctionError, variables_of
from workbench.stack.localisation import localised
from workbench.stack.template import transformed

ROOT = Path(__file__).parents[1]
REGION = "eu-central-1"

_REQUIREMENTS = ROOT / "tests/artifact/requirements.txt"
_PROCESSORS = {"x86_64": "x86_64", "aarch64": "arm64"}
_INVOCATIONS = "/2015-03-31/functions/function/invocations"
_START_WITHIN = 10.0
_END_WITHIN = 5.0
_INIT_ENDED = re.compile(r"INIT RTDONE\(status: (\w+)\)")
_INIT_TOOK = re.compile(r"INIT REPORT\(durationMs: ([0-9.]+)\)")
# Lambda signs with credentials of three parts; the emulator warns when the third is not there.
_SESSION = {"AWS_SESSION_TOKEN": "local"}


class EmulatorError(Exception):
    """The emulator did not start, or the function did not get through its initialisation; the text has the log."""


@dataclass(frozen=True, slots=True)
class Built:
    """A built template, and the AWS of its own that its resources live in."""

    cloud: Cloud
    blueprint: Blueprint

    def emulator(self, function: str, environment: Mapping[str, str] | None = None) -> "Emulator":
        """Return the emulator of a function, by its logical id; `environment` overrides the template's variables."""
        endpoint = {"AWS_ENDPOINT_URL": self.cloud.endpoint}
        return Emulator(self.blueprint.functions[function], {**endpoint, **(environment or {})})


@asynccontextmanager
async def built(folder: Path) -> AsyncIterator[Built]:
    """Read what `workbench.build` left in `folder` and make the template's resources in a moto of their own.

    Raises:
        FileNotFoundError: there is nothing built.
    """
    template = transformed(folder / "template.yaml", region=REGION)
    with tempfile.TemporaryDirectory() as logs:
        async with Cloud.started(REGION, Path(logs, "aws.log")) as cloud:
            outputs = cloud.create(localised(template, "http://127.0.0.1", REGION), {})
            yield Built(cloud, Blueprint.read(outputs, folder, "http://127.0.0.1"))


class Emulator:
    """One execution environment of a built function, from its cold start on: `with Emulator(plan) as emulator`.

    Args:
        plan: the function.
        environment: variables that override the template's.
    """

    def __init__(self, plan: FunctionPlan, environment: Mapping[str, str] | None = None) -> None:
        self._plan = plan
        self._environment = dict(environment or {})

    def __enter__(self) -> Self:
        variables = variables_of(self._plan, REGION, {**CREDENTIALS, **_SESSION, **self._environment}, os.defpath)
        variables["PYTHONPATH"] += f":{runtime_folder()}"
        variables["AWS_LAMBDA_FUNCTION_TIMEOUT"] = str(self._plan.timeout)
        self._address, runtime_api = (f"127.0.0.1:{port}" for port in _free_ports(2))
        self._log = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [
                str(_binary()),
                *("--runtime-interface-emulator-address", self._address),
                *("--runtime-api-address", runtime_api),
                # Without `site`: nothing of .venv may be found.
                *(sys.executable, "-S", "-m", "awslambdaric", self._plan.handler),
            ],
            cwd=self._plan.code,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            self._wait_until_it_listens()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        # Asked to, the emulator ends the function's process, which is in a group of its own, and then itself.
        self._process.terminate()
        try:
            self._process.wait(_END_WITHIN)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def invoke(self, event: Any) -> Any:
        """Have an event handled; the first one initialises the function. Return its answer.

        Raises:
            FunctionError: the function raised, ended or ran out of time.
        """
        connection = http.client.HTTPConnection(self._address, timeout=self._plan.timeout + _START_WITHIN)
        try:
            connection.request("POST", _INVOCATIONS, json.dumps(event).encode())
            response = connection.getresponse()
            body = response.read()
        finally:
            connection.close()
        if response.status != http.HTTPStatus.OK:
            raise FunctionError.read(body)
        answer = json.loads(body) if body else None
        if isinstance(answer, dict) and {"errorType", "errorMessage"} <= answer.keys():
            raise FunctionError.read(body)
        return answer

    @property
    def log(self) -> str:
        """Everything that emulator and function have written."""
        self._log.seek(0)
        return self._log.read().decode("utf-8", "replace")

    @property
    def init_duration(self) -> float:
        """Milliseconds from the start of the function's process until it was ready for its first event.

        Raises:
            EmulatorError: there was no event yet, or the function could not be initialised.
        """
        log = self.log
        ended, took = _INIT_ENDED.search(log), _INIT_TOOK.search(log)
        if not (ended and took) or ended[1] != "success":
            raise EmulatorError(f"{self._plan.name} was not initialised\n{log}")
        return float(took[1])

    def _wait_until_it_listens(self) -> None:
        host, _, port = self._address.rpartition(":")
        latest = time.monotonic() + _START_WITHIN
        while True:
            try:
                socket.create_connection((host, int(port)), timeout=_START_WITHIN).close()
                return
            except OSError:
                if self._process.poll() is not None or time.monotonic() > latest:
                    raise EmulatorError(f"the emulator did not start\n{self.log}") from None
                time.sleep(0.01)


def runtime_folder() -> Path:
    """Return the folder with what Lambda's runtime brings along, installed when its requirements are new.

    Raises:
        EmulatorError: pip could not install it; the text is pip's output.
    """
    digest = hashlib.sha256(_REQUIREMENTS.read_bytes()).hexdigest()[:16]
    folder = ROOT / f".aws-sam/runtime-{sys.version_info[0]}.{sys.version_info[1]}-{digest}"
    if not folder.is_dir():
        folder.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as unfinished:
            target = Path(unfinished, "runtime")
            _install(target)
            with suppress(OSError):  # somebody else was faster
                target.rename(folder)
    return folder


def _install(target: Path) -> None:
    command = (sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--require-hashes")
    pip = subprocess.run(
        [*command, "--target", str(target), "-r", str(_REQUIREMENTS)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if pip.returncode:
        raise EmulatorError(f"the runtime's packages could not be installed\n{pip.stdout}")


def _binary() -> Path:
    processor = _PROCESSORS.get(platform.machine()) if sys.platform == "linux" else None
    samcli = importlib.util.find_spec("samcli")
    if processor is None or samcli is None or samcli.origin is None:
        raise EmulatorError("the Lambda runtime interface emulator needs Linux and aws-sam-cli")
    return Path(samcli.origin).with_name("local") / f"rapid/aws-lambda-rie-{processor}"


def _free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
