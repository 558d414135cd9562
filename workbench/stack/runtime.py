"""The process of one function: AWS's own runtime client, for as long as the workbench lives.

Run by path with the handler as its argument, so that nothing of the workbench is loaded beside the function.
"""

import http.client
import os
import sys
from threading import Thread

import awslambdaric.__main__
from awslambdaric import lambda_runtime_client

_INVOCATION = "/2018-06-01/runtime/invocation"
_DEADLINE = "Lambda-Runtime-Deadline-Ms"


class PlainRuntimeClient:
    """The four calls of awslambdaric's native client, which is built on Linux only."""

    def __init__(self, address: str) -> None:
        self._address = address

    def next(self) -> tuple[bytes, dict[str, str | int]]:
        """Wait for the next event."""
        event, headers = self._call("GET", "next", None, {})
        return event, {**headers, _DEADLINE: int(headers[_DEADLINE])}

    def post_invocation_result(self, invoke_id: str, result: bytes, content_type: str, _invocation_id: str) -> None:
        """Hand in the answer of the function."""
        self._call("POST", f"{invoke_id}/response", result, {"Content-Type": content_type})

    def post_error(self, invoke_id: str, error: str, _xray_fault: str, _invocation_id: str) -> None:
        """Hand in what the function raised."""
        self._call("POST", f"{invoke_id}/error", error.encode(), {"Content-Type": "application/json"})

    def _call(
        self, method: str, what: str, body: bytes | None, headers: dict[str, str]
    ) -> tuple[bytes, http.client.HTTPMessage]:
        connection = http.client.HTTPConnection(self._address)
        try:
            connection.request(method, f"{_INVOCATION}/{what}", body, headers)
            response = connection.getresponse()
            if response.status not in (http.HTTPStatus.OK, http.HTTPStatus.ACCEPTED):
                raise RuntimeError(f"the Runtime API answered {response.status} to {method} {what}")
            return response.read(), response.headers
        finally:
            connection.close()


def leave_with_the_workbench() -> None:
    """End this process as soon as the workbench is gone, however it went: its end of standard input closes."""
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    Thread(target=leave_with_the_workbench, daemon=True).start()
    if lambda_runtime_client.runtime_client is None:
        lambda_runtime_client.runtime_client = PlainRuntimeClient(os.environ["AWS_LAMBDA_RUNTIME_API"])
    awslambdaric.__main__.main(sys.argv)
