"""The real handlers in this process, one invocation at a time, with their CPU time and their log."""

import importlib
import io
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any
from unittest import mock

from crm_relay.delivery.ports import Ports
from crm_relay.settings import Secrets, Settings
from workbench.stack.blueprint import FunctionPlan

type Instead = tuple[Ports, Settings, Callable[[], Secrets]]

# Powertools looks at the environment and at standard output once, when the first handler is imported.
_LOG = io.StringIO()


@dataclass(frozen=True, slots=True)
class Invocation:
    """What became of an event; `cpu` is this process's own time in seconds, `log` what would go to CloudWatch."""

    answer: Any
    cpu: float
    log: str


class FunctionHere:
    """A function of the template in this process.

    Args:
        plan: the function.
        environment: variables that override the template's.
        instead: ports, settings and secrets in the place of those that the environment names.
    """

    def __init__(self, plan: FunctionPlan, environment: Mapping[str, str], instead: Instead | None = None) -> None:
        self.plan = plan
        self._environment = {**plan.environment, **environment}
        module, _, name = plan.handler.rpartition(".")
        with self._at_home():
            self._handler = getattr(importlib.import_module(module), name)
            from crm_relay.delivery import runtime  # noqa: PLC0415 (see _LOG)

            self._install = runtime.install
            self._install(runtime.Runtime(*instead) if instead else None)
            self.runtime = runtime.runtime()
        self._context = _Context(plan)

    def invoke(self, event: Any) -> Invocation:
        """Have an event handled."""
        with self._at_home():
            self._install(self.runtime)
            _LOG.seek(0)
            _LOG.truncate()
            before = time.process_time()
            answer = self._handler(event, self._context)
            cpu = time.process_time() - before
        return Invocation(answer, cpu, _LOG.getvalue())

    @contextmanager
    def _at_home(self) -> Iterator[None]:
        with mock.patch.dict(os.environ, self._environment), redirect_stdout(_LOG):
            yield


class _Context:
    def __init__(self, plan: FunctionPlan) -> None:
        self.function_name = plan.name
        self.memory_limit_in_mb = plan.memory
        self.invoked_function_arn = f"arn:aws:lambda:eu-central-1:123456789012:function:{plan.name}:live"
        self.aws_request_id = "5c1f0e9a-7f7b-4f4e-9d3e-3b1e0f5d2c11"
        self._timeout = plan.timeout * 1000

    def get_remaining_time_in_millis(self) -> int:
        return self._timeout
