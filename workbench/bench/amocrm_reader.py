"""Reads all leads of an account with one of two clients and says what that took, on Linux, in a process of its own."""

import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

type Reader = Callable[[], Iterator[Any]]


def ours(host: str, token: str) -> Reader:
    """Return what iterates over the leads with `crm_relay.amocrm`."""
    from crm_relay.amocrm import AmoCrm, Limiter, LongLivedToken  # noqa: PLC0415 (only one of the two is loaded)

    crm = AmoCrm(LongLivedToken(host, token), budget=Limiter(per_second=1_000_000))
    return lambda: crm.leads.list(with_=["contacts", "loss_reason"])


def amocrm_api(host: str, token: str) -> Reader:
    """Return what iterates over the leads with the `amocrm-api` package."""
    from amocrm.v2 import Lead  # noqa: PLC0415 (only one of the two is loaded)
    from amocrm.v2.entity.lead import LeadsInteraction  # noqa: PLC0415

    class Local(LeadsInteraction):  # type: ignore[misc]
        def _get_auth_headers(self) -> dict[str, str]:
            return {"Authorization": f"Bearer {token}"}

        def _get_url(self, path: str) -> str:
            return f"http://{host}/api/v4/{path}"

    Lead.objects._interaction = Local()  # noqa: SLF001 (it has no other way to a sandbox)
    every: Reader = Lead.objects.all
    return every


def main() -> None:
    """Print, as JSON, how many leads there were, the seconds of CPU and the bytes over the client at rest."""
    client, host, token = sys.argv[1:]
    reader = {"ours": ours, "amocrm-api": amocrm_api}[client](host, token)
    Path("/proc/self/clear_refs").write_text("5", "ascii")  # the peak begins anew
    at_rest = _peak()
    before = time.process_time()
    count = sum(1 for lead in reader() if lead.id)
    cpu = time.process_time() - before
    json.dump({"leads": count, "cpu": cpu, "memory": _peak() - at_rest}, sys.stdout)


def _peak() -> int:
    # Not getrusage's, which a process inherits from its parent.
    status = Path("/proc/self/status").read_text("ascii")
    (kilobytes,) = re.findall(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    return int(kilobytes) * 1024


if __name__ == "__main__":
    main()
