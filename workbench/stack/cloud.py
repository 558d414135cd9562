"""AWS on this machine: moto in a process of its own, and the resources of a template in it."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import aiohttp

STACK_NAME = "crm-relay-local"
# Moto believes everybody, but boto3 wants to sign.
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": "local"}
_SERVER = Path(__file__).with_name("cloud_process.py")


class CloudError(Exception):
    """AWS on this machine refused something; the text says what."""


class Cloud:
    """Access to moto at `endpoint`: boto3 clients for everybody, and SQS for the event loop."""

    def __init__(self, endpoint: str, region: str, http: aiohttp.ClientSession) -> None:
        self.endpoint = endpoint
        self.region = region
        self._http = http
        self._clients: dict[str, Any] = {}

    @classmethod
    @asynccontextmanager
    async def started(cls, region: str, log: Path) -> AsyncIterator[Self]:
        """Start moto; it dies with the block, and with this process. What it complains about goes to `log`."""
        with log.open("wb") as complaints:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",
                str(_SERVER),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=complaints,
                start_new_session=True,  # Ctrl-C in the terminal is for the workbench, which then ends moto last
            )
        assert process.stdout
        try:
            port = await process.stdout.readline()
            if not port:
                raise CloudError(f"moto did not start; see {log}")
            async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
                yield cls(f"http://127.0.0.1:{int(port)}", region, http)
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()

    def client(self, service: str) -> Any:
        """A boto3 client of this cloud."""
        if service not in self._clients:
            import boto3  # noqa: PLC0415 - slow, and not needed before moto is up

            session: Any = boto3.Session(
                aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
                aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
                region_name=self.region,
            )
            self._clients[service] = session.client(service, endpoint_url=self.endpoint)
        return self._clients[service]

    def create(self, template: Mapping[str, Any], parameters: Mapping[str, str]) -> dict[str, str]:
        """Make the resources of a CloudFormation template; return the outputs. Raises CloudError."""
        from botocore.exceptions import ClientError  # noqa: PLC0415 - as boto3

        cloudformation = self.client("cloudformation")
        try:
            cloudformation.create_stack(
                StackName=STACK_NAME,
                TemplateBody=json.dumps(template),
                Parameters=[{"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()],
            )
        except ClientError as error:
            raise CloudError(f"the template's resources could not be made: {error}") from error
        [stack] = cloudformation.describe_stacks(StackName=STACK_NAME)["Stacks"]
        return {output["OutputKey"]: output["OutputValue"] for output in stack.get("Outputs", [])}

    async def sqs(self, action: str, queue_arn: str, **parameters: Any) -> dict[str, Any]:
        """Call SQS without a thread, in its JSON protocol. Raises CloudError, also when moto cannot be reached."""
        account, name = queue_arn.split(":")[-2:]
        headers = {
            "Content-Type": "application/x-amz-json-1.0",
            "X-Amz-Target": f"AmazonSQS.{action}",
            # Moto takes the region from here.
            "Authorization": f"AWS4-HMAC-SHA256 Credential=local/20260101/{self.region}/sqs/aws4_request",
        }
        body = {"QueueUrl": f"{self.endpoint}/{account}/{name}", **parameters}
        try:
            async with self._http.post(self.endpoint, json=body, headers=headers) as response:
                if response.status != 200:
                    raise CloudError(f"SQS {action} on {name}: {response.status} {await response.text()}")
                answer: dict[str, Any] = await response.json(content_type=None)
                return answer
        except aiohttp.ClientError as error:
            raise CloudError(f"SQS {action} on {name}: {error}") from error
