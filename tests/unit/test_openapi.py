"""docs/openapi.json: valid, up to date, and true of what the handlers answer."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import validate
from samtranslator.yaml_helper import yaml_parse

from crm_relay.settings import Secrets
from tests.gateway import Response
from tests.relay import Relay
from workbench import openapi
from workbench.sandboxes.faults import CodedError

DOCUMENT = openapi.document()
LEAD = {"external_id": "e-1", "phone": "+380501234567", "country": "UA", "first_name": "Оля", "offer": "summer"}
UNPROVOKED = {"429"}
"""API Gateway answers these by itself."""


def no_secret(relay: Relay) -> None:
    relay.secret_source = Secrets


def accepted(relay: Relay) -> Response:
    return relay.post_lead(LEAD)


def duplicate(relay: Relay) -> Response:
    relay.post_lead(LEAD)
    return relay.post_lead(LEAD | {"external_id": "e-2"})


def queued(relay: Relay) -> Response:
    return relay.post_lead(LEAD, prefer="respond-async")


def conflict(relay: Relay) -> Response:
    relay.post_lead(LEAD)
    return relay.post_lead(LEAD | {"first_name": "Anna"})


def lead_not_durable(relay: Relay) -> Response:
    relay.fail("store")
    relay.fail("queue")
    return relay.post_lead(LEAD)


def lead_not_configured(relay: Relay) -> Response:
    no_secret(relay)
    return relay.post_lead(LEAD)


def lead_breaks(relay: Relay) -> Response:
    relay.fail("store", error=RuntimeError("a fault of ours"))
    return relay.post_lead(LEAD)


def shown(relay: Relay) -> Response:
    relay.post_lead(LEAD)
    relay.run(seconds=2 * 86_400)
    response = relay.get_lead("e-1")
    assert response.json()["history"]
    return response


def shown_rejected(relay: Relay) -> Response:
    relay.post_lead(LEAD | {"phone": "+380501230000"})
    return relay.get_lead("e-1")


def shown_not_configured(relay: Relay) -> Response:
    no_secret(relay)
    return relay.get_lead("e-1")


def shown_breaks(relay: Relay) -> Response:
    relay.fail("store", error=RuntimeError("a fault of ours"))
    return relay.get_lead("e-1")


def asked(relay: Relay) -> Response:
    relay.post_lead(LEAD)
    return relay.get_lead("e-1", status=True)


def asked_while_down(relay: Relay) -> Response:
    relay.crm.faults.add(CodedError())
    return relay.get_lead("e-1", status=True)


def asked_breaks(relay: Relay) -> Response:
    relay.fail("store", error=RuntimeError("a fault of ours"))
    return relay.get_lead("e-1", status=True)


def replayed(relay: Relay) -> Response:
    relay.post_callback()
    return relay.post_callback()


def stale_event(relay: Relay) -> Response:
    return relay.post_callback(relay.callback(timestamp=int(relay.clock.time()) - 40 * 86_400))


def callback_not_durable(relay: Relay) -> Response:
    relay.fail("store")
    relay.fail("queue")
    return relay.post_callback()


def callback_not_configured(relay: Relay) -> Response:
    no_secret(relay)
    return relay.post_callback()


def callback_breaks(relay: Relay) -> Response:
    relay.fail("queue", error=RuntimeError("a fault of ours"))
    return relay.post_callback()


def compressed_callback(relay: Relay) -> Response:
    body = relay.callback()
    return relay.post_callback(body, relay.signed(body) | {"Content-Encoding": "gzip"})


def callback_of_a_stranger(relay: Relay) -> Response:
    body = relay.callback()
    return relay.post_callback(body, relay.signed(body, secret="another"))


def callback_of_long_ago(relay: Relay) -> Response:
    body = relay.callback()
    return relay.post_callback(body, relay.signed(body, at=0))


type Scene = Callable[[Relay], Response]
SUBMIT, SHOW, ASK = "post /leads", "get /leads/{external_id}", "get /leads/{external_id}/status"
CALL_BACK = "post /cartelcrm/callback"
SCENES: tuple[tuple[str, str, Scene], ...] = (
    (SUBMIT, "200", accepted),
    (SUBMIT, "200", duplicate),
    (SUBMIT, "202", queued),
    (SUBMIT, "400", lambda relay: relay.post_lead(b"{")),
    (SUBMIT, "400", lambda relay: relay.post_lead([])),
    (SUBMIT, "401", lambda relay: relay.post_lead(LEAD, key=None)),
    (SUBMIT, "401", lambda relay: relay.post_lead(LEAD, key="another")),
    (SUBMIT, "409", conflict),
    (SUBMIT, "413", lambda relay: relay.post_lead(b" " * 300_000)),
    (SUBMIT, "415", lambda relay: relay.post_lead(LEAD, content_type="text/plain")),
    (SUBMIT, "415", lambda relay: relay.post_lead(LEAD, content_encoding="gzip")),
    (SUBMIT, "422", lambda relay: relay.post_lead({"external_id": "e-1"})),
    (SUBMIT, "422", lambda relay: relay.post_lead(LEAD | {"phone": "+380501230000"})),
    (SUBMIT, "500", lead_breaks),
    (SUBMIT, "503", lead_not_configured),
    (SUBMIT, "503", lead_not_durable),
    (SHOW, "200", shown),
    (SHOW, "200", shown_rejected),
    (SHOW, "401", lambda relay: relay.get_lead("e-1", key=None)),
    (SHOW, "404", lambda relay: relay.get_lead("e-1")),
    (SHOW, "500", shown_breaks),
    (SHOW, "503", shown_not_configured),
    (ASK, "200", asked),
    (ASK, "401", lambda relay: relay.get_lead("e-1", status=True, key=None)),
    (ASK, "404", lambda relay: relay.get_lead("e-1", status=True)),
    (ASK, "500", asked_breaks),
    (ASK, "503", asked_while_down),
    (CALL_BACK, "200", lambda relay: relay.post_callback()),
    (CALL_BACK, "200", replayed),
    (CALL_BACK, "400", lambda relay: relay.post_callback(b"{")),
    (CALL_BACK, "400", lambda relay: relay.post_callback([])),
    (CALL_BACK, "401", callback_of_long_ago),
    (CALL_BACK, "401", stale_event),
    (CALL_BACK, "403", callback_of_a_stranger),
    (CALL_BACK, "413", lambda relay: relay.post_callback(b" " * 300_000)),
    (CALL_BACK, "415", compressed_callback),
    (CALL_BACK, "422", lambda relay: relay.post_callback({"internal_id": "L-1"})),
    (CALL_BACK, "422", lambda relay: relay.post_callback(relay.callback(timestamp="soon"))),
    (CALL_BACK, "500", callback_breaks),
    (CALL_BACK, "503", callback_not_configured),
    (CALL_BACK, "503", callback_not_durable),
)


def operation(name: str) -> Any:
    method, _, path = name.partition(" ")
    return DOCUMENT["paths"][path][method]


def properties(schema: Any) -> Iterator[str]:
    """The names of all fields that a schema knows."""
    yield from schema.get("properties", {})
    for part in (*schema.get("allOf", ()), *schema.get("anyOf", ())):
        yield from properties(part)
    if "$ref" in schema:
        yield from properties(DOCUMENT["components"]["schemas"][schema["$ref"].rpartition("/")[2]])


def complaints(schema: Any, value: Any) -> list[str]:
    """What is wrong with a value, with the document's own schemas to refer to."""
    validator = OAS31Validator(schema | {"components": DOCUMENT["components"]})
    return [error.message for error in validator.iter_errors(value)]


def test_the_document_is_valid_openapi() -> None:
    """Any tool that reads OpenAPI 3.1 can read it."""
    validate(DOCUMENT)


def test_the_file_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    """What is committed is what the code says; otherwise run make openapi."""
    openapi.main(["--check"])
    assert capsys.readouterr().out == ""


def test_a_drift_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is old, or not there, fails the check with a word of advice; writing it mends that."""
    file = tmp_path / "docs/openapi.json"
    monkeypatch.setattr(openapi, "DOCUMENT", file)
    with pytest.raises(SystemExit, match="run make openapi"):
        openapi.main(["--check"])
    openapi.main([])
    openapi.main(["--check"])
    file.write_text(file.read_text("utf-8").replace("CRM Relay", "CRM relay"), "utf-8")
    with pytest.raises(SystemExit, match="run make openapi"):
        openapi.main(["--check"])


def test_every_route_for_leads_and_cartelcrm_is_described() -> None:
    """The template's routes and the described ones are the same."""
    template = yaml_parse((Path(__file__).parents[2] / "template.yaml").read_text("utf-8"))
    routes = {
        f"{event['Properties']['Method'].lower()} {event['Properties']['Path']}"
        for resource in template["Resources"].values()
        for event in resource.get("Properties", {}).get("Events", {}).values()
        if event["Type"] == "HttpApi"
    }
    described = {
        f"{method} {path}" for path, item in DOCUMENT["paths"].items() for method in item if method != "parameters"
    }
    assert described == {route for route in routes if route.partition(" ")[2].startswith(("/leads", "/cartelcrm"))}


@pytest.mark.parametrize(
    ("name", "status", "scene"),
    SCENES,
    ids=[f"{name} {status} {number}" for number, (name, status, _) in enumerate(SCENES)],
)
def test_answers_are_as_described(relay: Relay, name: str, status: str, scene: Scene) -> None:
    """Status, content type, headers and body of a real answer are those that the document promises."""
    response = scene(relay)
    assert str(response.status) == status, response
    described = operation(name)["responses"][status]
    schema = described["content"][response.headers["content-type"]]["schema"]
    assert complaints(schema, response.json()) == []
    assert response.json().keys() <= set(properties(schema))
    for header, promise in described.get("headers", {}).items():
        assert complaints(promise["schema"], response.headers[header.lower()]) == []


def test_every_described_answer_was_seen() -> None:
    """No answer is described that nothing can provoke."""
    described = {
        (f"{method} {path}", status)
        for path, item in DOCUMENT["paths"].items()
        for method, described in item.items()
        if method != "parameters"
        for status in described["responses"]
        if status not in UNPROVOKED
    }
    assert described == {(name, status) for name, status, _ in SCENES}


def test_a_wrong_answer_would_be_noticed() -> None:
    """The check above does tell a promise that is not kept."""
    schema = operation(SUBMIT)["responses"]["200"]["content"]["application/json"]["schema"]
    assert complaints(schema, {"external_id": "e-1", "status": "accepted", "id": None}) == []
    assert complaints(schema, {"external_id": "e-1", "status": "queued", "id": None})
    assert complaints(schema, {"external_id": "e-1", "status": "accepted"})


def test_the_described_lead_is_the_one_that_is_taken(relay: Relay) -> None:
    """What the document's schema lets through in its simple bounds, and only that, is no 422 for its shape."""
    schema = operation(SUBMIT)["requestBody"]["content"]["application/json"]["schema"]
    assert complaints(schema, LEAD) == []
    assert relay.post_lead(LEAD).status == 200
    for wrong in ({"external_id": ""}, {"external_id": "x" * 201}, {"country": "UKR"}, {"phone": None}):
        assert complaints(schema, LEAD | wrong)
        assert relay.post_lead(LEAD | wrong).status == 422


def test_the_written_text_is_plain_json() -> None:
    """It is what a reader of diffs wants: indented, with letters as letters, and ending in a newline."""
    assert json.loads(openapi.text()) == DOCUMENT
    assert openapi.text().endswith("}\n")
