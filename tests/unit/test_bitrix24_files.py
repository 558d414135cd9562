"""Files of Bitrix24: links that die, names in three spellings, and a field that says nothing of what it refuses."""

import base64
import json
import tracemalloc
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crm_relay.bitrix24.client import Access, Operation, Unusable, call
from crm_relay.bitrix24.files import (
    File,
    FileLink,
    FileRefused,
    FileTooLarge,
    LinkDead,
    add_file,
    download,
    field_value,
    file_ids,
    file_name,
    links,
)
from crm_relay.http_client import Response
from crm_relay.outcomes import Blocked, NotExecuted, Outcome, OutcomeUnknown, Rejected, Unreachable
from tests.exchanges import Driven, drive, says

NOW = 1_760_000_000.0
HOST = "example.bitrix24.ru"
URL = f"https://{HOST}/rest/crm.controller.item.getFile.json?auth=t0ken&fileId=30577"
LINK = FileLink(30577, URL)
PDF = b"%PDF-1.7\x00\xff"


def fetch(*answers: Response | Outcome, link: FileLink = LINK, host: str = HOST) -> Driven[File]:
    return drive(download(host, link, limit=1000, now=NOW), *answers)


def sent(disposition: str, content: bytes = PDF, status: int = 200, **headers: str) -> Response:
    return says(status, content, {"content-disposition": disposition, **headers})


def test_a_field_has_one_file_or_several() -> None:
    """With a link for machines; the other needs a browser."""
    one = {"id": 30577, "url": f"https://{HOST}/bitrix/…", "urlMachine": URL}
    assert links(one) == [LINK]
    assert links([one, {**one, "id": "5"}]) == [LINK, FileLink(5, URL)]
    assert file_ids({"UF_CRM_1": [one]}, "UF_CRM_1") == [30577]


@pytest.mark.parametrize("value", [None, "", [], False, 5, {}, {"id": 5}, {"id": "x", "urlMachine": URL}, ["x"]])
def test_what_is_no_file_is_passed_over(value: object) -> None:
    """Nothing has many shapes."""
    assert links(value) == []


def test_a_link_does_not_show() -> None:
    """C23: it holds a token; what is in a file is nobody's business either."""
    shown = f"{LINK} {fetch(sent('attachment; filename=a.pdf'))}"
    assert "t0ken" not in shown
    assert "PDF-" not in shown


def test_a_file_is_asked_for_as_a_browser_would() -> None:
    """Without these headers a valid link may fail; no more bytes than the limit are read."""
    driven = fetch(sent('attachment; filename="a.pdf"'))
    assert driven.result == File("a.pdf", PDF)
    (request,) = driven.requests
    assert (request.method, request.url, request.response_limit) == ("GET", URL, 1000)
    assert request.headers == {"Accept": "*/*", "Accept-Language": "ru,en", "Referer": f"https://{HOST}/"}


def test_a_link_may_be_relative() -> None:
    """Then it is the portal's own."""
    link = FileLink(1, "/rest/crm.controller.item.getFile.json?auth=t0ken")
    (request,) = fetch(sent("attachment"), link=link).requests
    assert request.url == f"https://{HOST}{link.url}"


@pytest.mark.parametrize(
    "url",
    [
        "https://evil.com/file",
        f"https://{HOST}.evil.com/file",
        f"https://{HOST}@evil.com/file",
        f"https://evil.com\\@{HOST}/file",
        f"https://{HOST}:8443/file",
        f"http://{HOST}/file",
        "//evil.com/file",
        "http://169.254.169.254/latest/meta-data",
        f"https://{HOST}/a b",
        "file:///etc/passwd",
        "https://[::1",
        "",
    ],
)
def test_a_link_that_leads_away_is_not_followed(url: str) -> None:
    """The portal's own host or none."""
    driven = fetch(link=FileLink(1, url))
    assert driven.requests == []
    assert isinstance(driven.outcome, LinkDead)


def test_a_foreign_portal_gets_nothing() -> None:
    """As in any other request."""
    assert isinstance(fetch(host="evil.com#.bitrix24.ru").outcome, Blocked)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (OutcomeUnknown("response_too_large"), FileTooLarge),
        (OutcomeUnknown("ReadTimeout"), Unreachable),
        (says(200, b"<html>sign in</html>", {"content-type": "text/html"}), LinkDead),
        (says(200, {"result": True}), LinkDead),
        (says(200, b""), LinkDead),
        (says(200, {"error": "NOT_FOUND"}), LinkDead),
        (says(400, {"error": "ACCESS_DENIED"}), LinkDead),
        (says(401, {"error": "expired_token"}), LinkDead),
        (says(403, b"<html>"), LinkDead),
        (says(404, b"<html>"), LinkDead),
        (says(503, {"error": "QUERY_LIMIT_EXCEEDED"}), NotExecuted),
        (says(503, b"<html>"), Unreachable),
        (says(500, {"error": "INTERNAL_SERVER_ERROR"}), Unreachable),
        (says(400, b"<html>"), LinkDead),
        (says(302, b"", {"location": "https://evil.com/"}), LinkDead),
    ],
    ids=repr,
)
def test_what_is_no_file_is_no_file(answer: Response | Outcome, kind: type[Outcome]) -> None:
    """A page, an error, a JSON answer: only what calls itself a file is one."""
    assert isinstance(fetch(answer).outcome, kind)


def test_a_json_file_is_a_file() -> None:
    """Because it says so."""
    content = b'{"error": "mine"}'
    assert fetch(sent("attachment; filename=a.json", content)).result == File("a.json", content)


@pytest.mark.parametrize(
    ("disposition", "name"),
    [
        ('attachment; filename="contract.pdf"', "contract.pdf"),
        ("attachment; filename=contract.pdf", "contract.pdf"),
        ("attachment; FileName = contract.pdf ; x=1", "contract.pdf"),
        ("attachment; filename*=utf-8''%D0%94%D0%BE%D0%B3%D0%BE%D0%B2%D0%BE%D1%80%20%E2%84%961.pdf", "Договор №1.pdf"),
        ("attachment; filename=\"?.pdf\"; filename*=UTF-8'ru'%D0%94.pdf", "Д.pdf"),
        ("attachment; filename*=windows-1251''%C4.pdf", "Д.pdf"),
        ("attachment; filename*=no-such''%C4.pdf; filename=\"a.pdf\"", "a.pdf"),
        ("attachment; filename*=UTF-8''%C4.pdf; filename=\"a.pdf\"", "a.pdf"),
        ('attachment; filename="Ð\x94.pdf"', "Д.pdf"),
        ('attachment; filename="%D0%94.pdf"', "Д.pdf"),
        ('attachment; filename="100%.pdf"', "100%.pdf"),
        ('attachment; filename="a\\"b.pdf"', "a_b.pdf"),
        ('attachment; filename="a;b.pdf"', "a;b.pdf"),
        ('attachment; filename="../../etc/passwd"', "_.._etc_passwd"),
        ('attachment; filename="C:\\\\a.exe"', "C_a.exe"),
        ("attachment; filename*=UTF-8''a%00%0d%0ab.pdf", "a_b.pdf"),
        ("attachment; filename*=UTF-8''a%E2%80%AEfdp.exe", "a_fdp.exe"),
        (f'attachment; filename="{"x" * 300}.pdf"', "x" * 146 + ".pdf"),
        (f'attachment; filename="{"x" * 300}"', "x" * 150),
        ('attachment; filename="..."', ""),
        ("attachment", ""),
        ("inline", ""),
    ],
    ids=ascii,
)
def test_a_files_name_is_read_and_made_harmless(disposition: str, name: str) -> None:
    """Extended, quoted, bare; UTF-8 raw or escaped; nothing of a path or of an invisible sign is left."""
    assert file_name(disposition) == name


def test_a_file_without_a_name_gets_one() -> None:
    """By its id."""
    result = fetch(sent("attachment")).result
    assert result is not None
    assert result.name == "file-30577"


@given(st.text())
def test_any_name_is_harmless(name: str) -> None:
    """Whatever stands in the header."""
    for disposition in (f'attachment; filename="{name}"', f"attachment; filename*=UTF-8''{name}", name):
        found = file_name(disposition)
        assert len(found) <= 150
        assert not set(found) & set('/\\:*?"<>|\r\n\0')
        assert found not in (".", "..")


def test_a_file_goes_as_base64() -> None:
    """The name before it, without a prefix; in a multiple field the old ones stay by their ids."""
    file = File("a.pdf", PDF)
    encoded = base64.b64encode(PDF).decode()
    for value, sent in (
        (field_value([], [file], multiple=False), ["a.pdf", encoded]),
        (field_value([7], [file, file], multiple=True), [{"id": 7}, ["a.pdf", encoded], ["a.pdf", encoded]]),
    ):
        operation = Operation("crm.item.update", {"fields": value}, read=lambda result: result)
        request = next(call(Access(HOST, webhook="1/code"), operation, now=0))
        assert json.loads(request.content) == {"fields": sent}
    with pytest.raises(AssertionError):
        field_value([], [file, file], multiple=False)


def test_an_upload_holds_a_file_no_more_than_thrice() -> None:
    """A function has so much memory: there is no base64 of it beside the request."""
    file = File("a.pdf", bytes(3_000_000))
    tracemalloc.start()
    request = next(
        call(Access(HOST, webhook="1/code"), add_file(5, "UF_CRM_1", file, kept=[], multiple=False), now=NOW)
    )
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(request.content) > 4_000_000
    assert most < 3 * len(file.content)


def item(*ids: int, single: bool = False) -> Mapping[str, Any]:
    found = [{"id": each, "urlMachine": URL} for each in ids]
    return {"item": {"id": 5, "UF_CRM_1": found[0] if single else found}}


def test_a_file_that_went_in_is_seen_in_the_answer() -> None:
    """The new id beside the old ones, or instead of the old one."""
    several = add_file(5, "UF_CRM_1", File("a", b"x"), kept=[7], multiple=True)
    assert several.params["fields"] == {"UF_CRM_1": [{"id": 7}, ["a", b"x"]]}
    assert not several.reads
    assert several.read(item(7, 9)) == [7, 9]
    single = add_file(5, "UF_CRM_1", File("a", b"x"), kept=[7], multiple=False)
    assert single.read(item(9, single=True)) == [9]


@pytest.mark.parametrize("answer", [item(7), item(), {"item": {"id": 5}}, {"item": {"id": 5, "UF_CRM_1": False}}])
def test_a_file_that_did_not_go_in_is_refused(answer: Mapping[str, Any]) -> None:
    """Bitrix24 says nothing: the field is as it was, or empty."""
    with pytest.raises(FileRefused):
        add_file(5, "UF_CRM_1", File("a", b"x"), kept=[7], multiple=True).read(answer)
    with pytest.raises(Unusable):
        add_file(5, "UF_CRM_1", File("a", b"x"), kept=[7], multiple=True).read({"item": []})


def test_what_cannot_be_carried_is_final() -> None:
    """It is reported, and the rest goes on."""
    for outcome in (FileTooLarge(), LinkDead(), FileRefused()):
        assert isinstance(outcome, Rejected)
