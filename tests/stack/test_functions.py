"""Functions run in processes of their own, see what the template gives them, and may die without harm to others."""

import asyncio
from pathlib import Path

import httpx
import pytest

from tests.stack.toy import Toy, eventually
from workbench.stack import FunctionError
from workbench.stack.blueprint import FunctionPlan, Route
from workbench.stack.functions import Function
from workbench.stack.gateway import Gateway, bound
from workbench.stack.routes import Routes

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_a_function_sees_what_the_template_gives_it(toy: Toy) -> None:
    """Parameters, references, conditions and files of layers are resolved; the API's address is the local one."""
    seen = (await toy.http.get("/echo")).json()
    environment = seen["environment"]
    assert environment["GREETING"] == "hello from crm-relay-local"
    assert environment["QUEUE_URL"] == toy.stack.outputs["WorkQueueUrl"]
    assert environment["TABLE_ARN"].endswith(toy.stack.outputs["TableName"])
    assert "EXTRAS" not in environment
    assert environment["NOTE_FILE"].endswith("toy_stack/layer/note.txt")
    assert environment["SECRET_ID"] == toy.stack.outputs["SecretArn"]
    assert environment["API_URL"] == toy.stack.outputs["EchoUrl"] == f"{toy.stack.url}/echo"
    assert environment["AWS_ENDPOINT_URL"] == toy.stack.endpoint
    assert environment["AWS_REGION"] == toy.stack.region
    assert "HOME" not in environment
    assert (seen["layer"], seen["name"]) == ("layered", "EchoFunction")
    assert 0 < seen["remaining"] <= 10_000


async def test_the_outputs_of_the_template_are_evaluated(toy: Toy) -> None:
    """With the local address where AWS would give its own."""
    assert toy.stack.outputs["ApiUrl"] == toy.stack.url
    assert toy.stack.outputs["BusName"] == "crm-relay-local-toys"
    assert toy.stack.outputs["EchoArn"] == "arn:aws:lambda:eu-central-1:123456789012:function:EchoFunction"
    assert set(toy.stack.functions) == {
        "EchoFunction",
        "ObedientFunction",
        "BrokenFunction",
        "WorkFunction",
        "ListenFunction",
    }


async def test_secrets_have_the_value_of_the_template_or_none(toy: Toy) -> None:
    """A secret without a value is there, but cannot be read, as on AWS."""
    secrets = toy.stack.client("secretsmanager")
    value = await asyncio.to_thread(secrets.get_secret_value, SecretId=toy.stack.outputs["SecretArn"])
    assert value["SecretString"] == '{"word": "sesame"}'
    with pytest.raises(secrets.exceptions.ResourceNotFoundException):
        await asyncio.to_thread(secrets.get_secret_value, SecretId=toy.stack.outputs["EmptySecretArn"])


async def test_a_process_is_kept_warm(toy: Toy) -> None:
    """One after the other, invocations meet the same process."""
    pids = {(await toy.http.post("/obey", json={})).headers["x-pid"] for _ in range(3)}
    assert len(pids) == 1


async def test_a_busy_function_gets_further_processes(toy: Toy) -> None:
    """As many as there are invocations, up to the cap; the rest wait their turn."""
    answers = await asyncio.gather(*(toy.http.post("/obey", json={"sleep": 0.3}) for _ in range(6)))
    assert {answer.status_code for answer in answers} == {204}
    assert 1 < len({answer.headers["x-pid"] for answer in answers}) <= 4


@pytest.mark.parametrize("fate", [{"raise": "secret words"}, {"exit": 3}, {"sleep": 20}])
async def test_a_failing_function_is_an_internal_error(toy: Toy, fate: dict[str, object]) -> None:
    """Whether it raises, dies or runs out of time, the client learns nothing more; the next invocation is served."""
    errors = (await toy.stack.status())["functions"]["ObedientFunction"]["errors"]
    response = await toy.http.post("/obey", json=fate)
    assert (response.status_code, response.text) == (500, '{"message":"Internal Server Error"}')
    assert (await toy.http.post("/obey", json={})).status_code == 204
    assert (await toy.stack.status())["functions"]["ObedientFunction"]["errors"] == errors + 1


async def test_running_out_of_time_kills_the_process(toy: Toy) -> None:
    """As Lambda does, so that no half-done work goes on behind its back."""
    before = (await toy.http.post("/obey", json={})).headers["x-pid"]
    with pytest.raises(FunctionError, match=r"Sandbox\.Timedout: Task timed out after 1\.00 seconds"):
        await toy.stack.invoke("ObedientFunction", {"body": '{"sleep": 20}'})
    after = (await toy.http.post("/obey", json={})).headers["x-pid"]
    assert before != after


async def test_a_killed_process_is_replaced(toy: Toy) -> None:
    """What it was working on fails at once; the next invocation starts another one."""
    work = asyncio.create_task(toy.stack.invoke("ObedientFunction", {"body": '{"sleep": 0.87}'}))
    await eventually(lambda: ("ObedientFunction", "asleep for 0.87 s") in toy.logs)
    toy.stack.functions["ObedientFunction"].kill()
    with pytest.raises(FunctionError, match=r"Runtime\.ExitError"):
        await work
    assert (await toy.http.post("/obey", json={})).status_code == 204


async def test_a_function_that_cannot_be_loaded_says_why(toy: Toy) -> None:
    """In its status from the start, in its log, and as an internal error to whoever calls it."""
    assert "toy.nowhere" in (await toy.stack.status())["functions"]["BrokenFunction"]["last_error"]
    assert (await toy.http.get("/broken")).status_code == 500
    assert any(function == "BrokenFunction" and "toy.nowhere" in line for function, line in toy.logs)


async def test_every_line_of_a_function_is_logged(toy: Toy) -> None:
    """In its file, and to the listener; a traceback line by line."""
    await toy.http.post("/obey", json={"print": "first\nsecond"})
    await eventually(lambda: ("ObedientFunction", "second") in toy.logs)
    await toy.http.post("/obey", json={"raise": "sad"})
    file = toy.stack.state_dir / "logs" / "ObedientFunction.log"
    await eventually(
        lambda: any(line.startswith("[ERROR] RuntimeError: sad") for line in file.read_text().splitlines())
    )
    assert ("ObedientFunction", "first") in toy.logs


async def test_without_aws_s_native_client_functions_run_all_the_same(tmp_path: Path) -> None:
    """It is built on Linux only."""
    (tmp_path / "runtime_client.py").write_text("raise ImportError")
    (tmp_path / "any.py").write_text(
        "def handler(event, context):\n"
        "    left = context.get_remaining_time_in_millis()\n"
        "    return {'got': event, 'id': context.aws_request_id, 'left': left, 'odd': 1 / event['n']}\n"
    )
    plan = FunctionPlan("Any", "any.handler", 5, 128, {}, tmp_path, (), "Text", "INFO")
    function = Function(plan, region="eu-central-1", shared={}, concurrency=1, log=tmp_path / "log")
    try:
        answer = await function.invoke({"n": 1})
        assert answer["got"] == {"n": 1}
        assert answer["id"]
        assert 0 < answer["left"] <= 5_000
        with pytest.raises(FunctionError, match="ZeroDivisionError: division by zero"):
            await function.invoke({"n": 0})
        assert (await function.invoke({"n": 2}))["odd"] == 0.5
    finally:
        await function.close()


async def test_the_gateway_stops_waiting_but_the_function_goes_on(tmp_path: Path) -> None:
    """API Gateway's patience, here a moment, ends before that of Lambda."""
    (tmp_path / "any.py").write_text(
        "import pathlib, time\n\ndef handler(event, context):\n    time.sleep(0.5)\n    pathlib.Path('done').touch()\n"
    )
    plan = FunctionPlan("Any", "any.handler", 5, 128, {}, tmp_path, (), "Text", "INFO")
    function = Function(plan, region="eu-central-1", shared={}, concurrency=1, log=tmp_path / "log")
    await function.warm()
    try:
        with bound(0) as listener:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            gateway = Gateway(listener, Routes([Route("GET", "/", "Any")]), {"Any": function}, timeout=0.1)
            async with gateway, httpx.AsyncClient(base_url=url) as http:
                response = await http.get("/")
                assert (response.status_code, response.text) == (503, '{"message":"Service Unavailable"}')
                await eventually((tmp_path / "done").exists)
    finally:
        await function.close()


async def test_resources_are_there(toy: Toy) -> None:
    """The table can be used, and the status counts what is in the queues."""
    table = toy.stack.outputs["TableName"]
    await asyncio.to_thread(toy.stack.client("dynamodb").put_item, TableName=table, Item={"key": {"S": "a"}})
    assert set((await toy.stack.status())["queues"]["WorkDeadLetterQueue"]) == {"visible", "in_flight", "delayed"}
