"""The edge: API Gateway's events as plain data, JSON that means one thing, and the answers."""

import base64
import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from crm_relay import http_api
from crm_relay.http_api import (
    Malformed,
    Refusal,
    Request,
    TooLarge,
    Unavailable,
    Unsupported,
    WrongMethod,
    answer,
    read_json,
)
from tests.gateway import http_event

LIMIT = 1000


def read(event: dict[str, Any]) -> Request:
    return Request.read(event, body_limit=LIMIT)


def posted(body: bytes, **headers: str) -> dict[str, Any]:
    return http_event("POST", "/x", {name.replace("_", "-"): value for name, value in headers.items()}, body)


def test_a_request_is_read() -> None:
    """Method, route, parameters, query and headers come as API Gateway gives them, header names in lower case."""
    event = http_event(
        "POST", "/leads/a%2Fb?x=1", {"X-Odd": "Да"}, b"{}", route="/leads/{id}", parameters={"id": "a/b"}
    )
    event["headers"]["X-UPPER"] = "1"
    request = read(event)
    assert (request.method, request.route, request.body) == ("POST", "POST /leads/{id}", b"{}")
    assert (request.path_parameters, request.query) == ({"id": "a/b"}, {"x": "1"})
    assert (request.headers["x-odd"], request.headers["x-upper"]) == ("Да", "1")
    assert request.id == event["requestContext"]["requestId"]


def test_what_api_gateway_leaves_out_is_empty() -> None:
    """No body, no query and no parameters are no error."""
    request = read(http_event("GET", "/x", {}))
    assert (request.body, request.query, request.path_parameters) == (b"", {}, {})


@given(st.binary(max_size=LIMIT), st.sampled_from(["application/json", "text/plain", "application/octet-stream", ""]))
def test_the_body_is_the_bytes_that_were_sent(body: bytes, content_type: str) -> None:
    """Text or base64, the bytes are the sender's: a signature depends on each of them."""
    assert read(posted(body, content_type=content_type)).body == body


@pytest.mark.parametrize("content_type", ["application/json", "application/octet-stream"])
def test_the_limit_is_of_the_decoded_body(content_type: str) -> None:
    """A body of exactly the limit is taken, one byte more is not, in base64 too."""
    assert len(read(posted(b"x" * LIMIT, content_type=content_type)).body) == LIMIT
    with pytest.raises(TooLarge, match="body_too_large"):
        read(posted(b"x" * (LIMIT + 1), content_type=content_type))


def test_the_limit_counts_bytes_not_characters() -> None:
    """Cyrillic letters are two bytes each."""
    with pytest.raises(TooLarge):
        read(posted("я".encode() * (LIMIT // 2 + 1), content_type="application/json"))


def test_a_huge_base64_body_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its length alone refuses it."""
    monkeypatch.delattr(base64, "b64decode")
    with pytest.raises(TooLarge):
        read({**posted(b"x"), "body": "A" * 10_000_000, "isBase64Encoded": True})


@pytest.mark.parametrize("text", ["e30", "e3=0", "e30=\n", " e30=", "e30=e30=", "e_0=", "ё30=", "e30==", "="])
def test_broken_base64_is_malformed(text: str) -> None:
    """Nothing is guessed: what a lenient decoder would drop is refused."""
    with pytest.raises(Malformed, match="broken_base64"):
        read({**posted(b"x"), "body": text, "isBase64Encoded": True})


@given(st.text(st.characters()))
def test_any_text_body_is_read(text: str) -> None:
    """An emulator may send what is no text, half surrogate pairs included: that is no error of ours."""
    event = {**posted(b""), "body": text}
    assert Request.read(event, body_limit=10**9).body == text.encode("utf-8", "surrogatepass")


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate", "GZIP", "identity, gzip", "x"])
def test_a_content_encoding_is_not_supported(encoding: str) -> None:
    """Nothing is inflated here, so nothing can explode."""
    with pytest.raises(Unsupported, match="content_encoding_not_supported"):
        read(posted(b"x", content_encoding=encoding))


@pytest.mark.parametrize("encoding", ["", "identity", "Identity"])
def test_no_encoding_may_be_named(encoding: str) -> None:
    """`identity` says that there is none."""
    assert read(posted(b"x", content_encoding=encoding)).body == b"x"


def test_the_method_is_checked() -> None:
    """An emulator may route what API Gateway would not."""
    read(posted(b"")).expect("POST")
    with pytest.raises(WrongMethod, match="method_not_allowed"):
        read(posted(b"")).expect("PUT")


NUMBERS = st.sampled_from(
    ["0", "-0", "1.5", "1e308", "1e309", "-1e999", "9" * 5000, "NaN", "Infinity", "01", "1.", "+1"]
)
STRINGS = st.sampled_from(
    [
        '"a"',
        '"a" ',
        '":"',
        r'"\":"',
        '" :"',
        '"ж"',
        r'"\u0000"',
        r'"\ud800"',
        r'"\ud83d\ude00"',
        r'"\\u0000"',
        '"\x00"',
        '"\t"',
    ]
)
TEXTS = st.recursive(
    NUMBERS | STRINGS | st.sampled_from(["true", "null", "nul", "", "'a'", "[", "}"]),
    lambda inner: (
        st.lists(inner, max_size=4).map(lambda items: f"[{','.join(items)}]")
        | st.lists(st.tuples(STRINGS, inner), max_size=4).map(
            lambda pairs: "{" + ",".join(f"{name}:{value}" for name, value in pairs) + "}"
        )
    ),
)


@given(st.binary() | TEXTS.map(str.encode))
@example(b"[" * 100_000)
@example(b'{"a":' * 100_000)
@example(b"\xef\xbb\xbf{}")
@example("{}".encode("utf-16"))
@example(b'{"a":1e999}')
@example(rb'{"a":["\udfff"]}')
def test_json_is_malformed_or_can_be_written_again(body: bytes) -> None:
    """Whatever is accepted is plain JSON in UTF-8 all the way down the line; everything else is Malformed."""
    with suppress(Malformed):
        written = json.dumps(read_json(body), ensure_ascii=False, allow_nan=False)
        written.encode()
        assert r"\u0000" not in written.replace(r"\\", "")


@given(TEXTS)
def test_json_is_what_a_strict_reading_by_another_parser_gives(text: str) -> None:
    """Every name in every object stands there once, whatever else its strings hold."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len(dict(pairs)) == len(pairs)
        return dict(pairs)

    with suppress(Malformed):
        assert read_json(text.encode()) == json.loads(text, object_pairs_hook=unique)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"{}{}",
        b"\xff",
        b'{"a":1,"a":1}',
        b'{"a":{"b":1,"b":2}}',
        rb'{"a":1,"\u0061":2}',
        b'{"a" :1,"a"\n:1}',
        rb'{"a":"\":","a":2}',
        b"NaN",
        b"-Infinity",
        b'[{"a":1e999}]',
        b"[-1e999]",
        b"9" * 5000,
        rb'["\ud800"]',
        rb'{"\udc00":1}',
        rb'{"a":[{"b":"x\u0000"}]}',
    ],
)
def test_json_that_is_malformed(body: bytes) -> None:
    """What two parsers could read differently, or what cannot be stored, is refused."""
    with pytest.raises(Malformed, match="malformed_json"):
        read_json(body)


def test_json_that_is_read() -> None:
    """Escapes that mean text are text, and numbers are numbers."""
    assert read_json(rb'{"a":["\u0416\\u0000\ud83d\ude00",1.5,-2,true,null,{}]}') == {
        "a": ["Ж\\u0000😀", 1.5, -2, True, None, {}]
    }


def refusals(of: type[Refusal] = Refusal) -> list[type[Refusal]]:
    return [
        of,
        *(deeper for kind in of.__subclasses__() if kind.__module__ == http_api.__name__ for deeper in refusals(kind)),
    ]


def test_every_refusal_has_its_status() -> None:
    """One type, one status; an unnamed refusal is the sender's fault."""
    assert {kind.__name__: int(kind.status) for kind in refusals()} == {
        "Refusal": 400,
        "Malformed": 400,
        "Unauthenticated": 401,
        "Forbidden": 403,
        "NotFound": 404,
        "WrongMethod": 405,
        "TooLarge": 413,
        "Unsupported": 415,
        "Meaningless": 422,
        "Unavailable": 503,
        "InternalError": 500,
    }


def test_a_refusal_answers_with_its_word_alone() -> None:
    """The answer is constant and small."""
    assert Malformed("broken").answer() == {
        "statusCode": 400,
        "headers": {"Content-Type": "application/json"},
        "body": '{"error":"broken"}',
    }


def test_who_is_unavailable_says_when_to_come_again() -> None:
    """A 503 of ours is for the sender to repeat, and for an operator to see."""
    assert Unavailable("down").answer()["headers"]["Retry-After"] == "30"
    assert [kind.__name__ for kind in refusals() if kind.needs_attention] == ["Unavailable"]


def test_an_answer_is_compact_json() -> None:
    """Text is not escaped, and headers can be added."""
    assert answer(200, headers={"X-Y": "1"}, ok=True, name="Ж") == {
        "statusCode": 200,
        "headers": {"Content-Type": "application/json", "X-Y": "1"},
        "body": '{"ok":true,"name":"Ж"}',
    }


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_json_is_read_to_a_depth_that_others_can_follow(opening: str, closing: str) -> None:
    """100 levels are more than anybody means; what works on the value later may recurse."""
    assert read_json((opening * 99 + "1" + closing * 99).encode())
    with pytest.raises(Malformed):
        read_json((opening * 101 + "1" + closing * 101).encode())


def test_json_is_bounded_in_what_it_holds() -> None:
    """20,000 lists and objects are more than anybody sends, and take no time; in a text they are letters."""
    assert read_json(b"[" + b"{}," * 19_999 + b"1]")
    with pytest.raises(Malformed):
        read_json(b"[" + b"{}," * 20_000 + b"1]")
    assert read_json(b'"' + b"[" * 30_000 + b'"')
    assert read_json(b"[" + b"1e300," * 30_000 + b"1]")
    with pytest.raises(Malformed):
        read_json(b"[" + b"1e300," * 30_001 + b"1]")


@pytest.mark.parametrize("number", ["1e300", "-9e306", "1e-320", "1.7976931348623157e308", "1e200", "0.1", "-0.0"])
def test_numbers_are_read_as_python_reads_them(number: str) -> None:
    """Also those for which msgspec's own way takes a microsecond each."""
    assert repr(read_json(f"[{number}]".encode())) == repr([float(number)])


@pytest.mark.parametrize("backslashes", range(1, 6))
def test_a_nul_is_one_only_if_its_escape_is_none(backslashes: int) -> None:
    """Escaped backslashes may stand before the letters u0000."""
    body = b'{"a": "%su0000"}' % (b"\\" * backslashes)
    if backslashes % 2:
        with pytest.raises(Malformed):
            read_json(body)
    else:
        assert read_json(body) == json.loads(body)
