"""The API: routes, events of payload format 2.0, limits, and what becomes of a function's answer."""

import asyncio
import base64
from typing import Any

import httpx
import pytest

from tests.stack.toy import Toy

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def event_of(toy: Toy, method: str, path: str, **request: Any) -> dict[str, Any]:
    response = await toy.http.request(method, path, **request)
    assert response.status_code == 200, response.text
    event: dict[str, Any] = response.json()["event"]
    return event


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/nowhere"),
        ("POST", "/items/7"),
        ("GET", "/items"),
        ("GET", "/items/"),
        ("GET", "/items/7/"),
        ("GET", "/files/"),
    ],
)
async def test_what_no_route_takes_is_not_found(toy: Toy, method: str, path: str) -> None:
    """An unknown path and an unknown method get the same answer."""
    response = await toy.http.request(method, path)
    assert (response.status_code, response.text) == (404, '{"message":"Not Found"}')
    assert response.headers["content-type"] == "application/json"


@pytest.mark.parametrize(
    ("method", "path", "key", "parameters"),
    [
        ("GET", "/items/7", "GET /items/{id}", {"id": "7"}),
        ("GET", "/items/special", "GET /items/special", None),
        ("PUT", "/items/a%20b/parts/%C3%BC", "PUT /items/{id}/parts/{part}", {"id": "a b", "part": "ü"}),
        ("GET", "/files/a/b/c.txt", "GET /files/{proxy+}", {"proxy": "a/b/c.txt"}),
        ("DELETE", "/echo", "ANY /echo", None),
    ],
)
async def test_the_most_specific_route_takes_a_request(
    toy: Toy, method: str, path: str, key: str, parameters: dict[str, str] | None
) -> None:
    """Its parameters arrive decoded, and so does the path."""
    event = await event_of(toy, method, path)
    assert (event["routeKey"], event.get("pathParameters")) == (key, parameters)
    assert event["rawPath"] == event["requestContext"]["http"]["path"] == str(httpx.URL(path).path)


async def test_an_event_has_all_that_aws_gives(toy: Toy) -> None:
    """Names are lower-case, repeated headers and parameters are joined, cookies stand apart."""
    headers = [
        ("X-Twice", "a"),
        ("x-twice", "b"),
        ("Cookie", "c=1; d=2"),
        ("User-Agent", "toy"),
        ("Content-Type", "text/plain"),
    ]
    event = await event_of(toy, "POST", "/echo?q=1&q=2&r=%20&s", headers=headers, content="hällo")
    assert event["version"] == "2.0"
    assert event["rawQueryString"] == "q=1&q=2&r=%20&s"
    assert event["queryStringParameters"] == {"q": "1,2", "r": " ", "s": ""}
    assert event["headers"]["x-twice"] == "a,b"
    assert event["cookies"] == ["c=1", "d=2"]
    assert "cookie" not in event["headers"]
    assert event["headers"]["x-forwarded-for"] == "127.0.0.1"
    context = event["requestContext"]
    assert context["http"] == {
        "method": "POST",
        "path": "/echo",
        "protocol": "HTTP/1.1",
        "sourceIp": "127.0.0.1",
        "userAgent": "toy",
    }
    assert context["stage"] == "$default"
    assert context["timeEpoch"] > 1_700_000_000_000
    assert event["body"] == "hällo"


@pytest.mark.parametrize(
    "kind",
    ["text/plain", "application/json", "application/json; charset=utf-8", "application/xml", "application/javascript"],
)
async def test_text_arrives_as_a_string(toy: Toy, kind: str) -> None:
    """Only these kinds do, as seen on AWS."""
    event = await event_of(toy, "POST", "/echo", content=b'{"a": 1}', headers={"content-type": kind})
    assert (event["body"], event["isBase64Encoded"]) == ('{"a": 1}', False)


@pytest.mark.parametrize(
    "kind", [None, "application/x-www-form-urlencoded", "application/octet-stream", "application/problem+json"]
)
async def test_everything_else_arrives_as_base64(toy: Toy, kind: str | None) -> None:
    """A form does, and so does a body without a type."""
    event = await event_of(toy, "POST", "/echo", content=b"a=1", headers={"content-type": kind} if kind else {})
    assert (event["body"], event["isBase64Encoded"]) == (base64.b64encode(b"a=1").decode(), True)


async def test_a_compressed_body_stays_compressed(toy: Toy) -> None:
    """The gateway inflates nothing."""
    headers = {"content-encoding": "gzip", "content-type": "application/octet-stream"}
    event = await event_of(toy, "POST", "/echo", content=b"no gzip at all", headers=headers)
    assert base64.b64decode(event["body"]) == b"no gzip at all"


@pytest.mark.parametrize(
    ("size", "status"),
    [(9_000, 200), (11_000, 431)],
)
async def test_request_line_and_headers_have_a_limit(toy: Toy, size: int, status: int) -> None:
    """10,240 bytes, all together."""
    response = await toy.http.get("/echo", headers={"x-long": "x" * size})
    assert response.status_code == status


@pytest.mark.parametrize("size", [5_000_000, 10_100_000])
async def test_a_body_beyond_the_limits_does_not_reach_the_function(toy: Toy, size: int) -> None:
    """10 MB is the gateway's limit; Lambda's of 6 MB comes sooner, base64 counted. No length needs to be announced."""

    async def chunks() -> Any:
        for _ in range(size // 100_000):
            yield b"x" * 100_000

    response = await toy.http.post("/echo", content=chunks())
    assert (response.status_code, response.json()) == (413, {"message": "Request Entity Too Large"})


async def test_a_client_that_asks_first_is_told_to_go_on(toy: Toy) -> None:
    """Curl does with larger bodies, and would wait a second."""
    url = httpx.URL(toy.stack.url)
    reader, writer = await asyncio.open_connection(url.host, url.port)
    head = "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n"
    writer.write(head.encode())
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(b"ab")
    assert (await reader.read()).startswith(b"HTTP/1.1 200 OK\r\n")
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize(
    ("answer", "status", "kind", "body"),
    [
        ({"statusCode": 201, "headers": {"Content-Type": "text/html"}, "body": "<p>"}, 201, "text/html", b"<p>"),
        ({"statusCode": "202", "body": "plain"}, 202, "text/plain; charset=utf-8", b"plain"),
        ({"statusCode": 200, "body": "AAE=", "isBase64Encoded": True}, 200, "text/plain; charset=utf-8", b"\0\1"),
        ({"some": "thing"}, 200, "application/json", b'{"some": "thing"}'),
        ("a word", 200, "application/json", b"a word"),
        ({"statusCode": 200, "body": {"not": "text"}}, 500, "application/json", b'{"message":"Internal Server Error"}'),
        ({"statusCode": "many"}, 500, "application/json", b'{"message":"Internal Server Error"}'),
        (
            {"statusCode": 200, "body": "?", "isBase64Encoded": True},
            500,
            "application/json",
            b'{"message":"Internal Server Error"}',
        ),
    ],
)
async def test_an_answer_becomes_a_response(toy: Toy, answer: object, status: int, kind: str, body: bytes) -> None:
    """With a status code as it says; without one it is the body itself; nonsense is an error of the function."""
    response = await toy.http.post("/obey", json={"answer": answer})
    assert (response.status_code, response.headers["content-type"], response.content) == (status, kind, body)


async def test_cookies_of_an_answer_are_set(toy: Toy) -> None:
    """Each in a header of its own."""
    response = await toy.http.post("/obey", json={"answer": {"statusCode": 200, "cookies": ["a=1", "b=2"]}})
    assert response.headers.get_list("set-cookie") == ["a=1", "b=2"]
