"""`python -m workbench.openapi`: describe the HTTP API in docs/openapi.json (OpenAPI 3.1), from the models and offline.

With --check nothing is written; it ends with 1 when the file is not what would be written.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import models_json_schema

from crm_relay import __version__
from crm_relay.cartelcrm.statuses import STATUSES
from crm_relay.settings import RelaySettings
from lead_submitter.lead import Lead

DOCUMENT = Path(__file__).parents[1] / "docs/openapi.json"

type Json = dict[str, Any]

_SCHEMAS = "#/components/schemas/{model}"
_LIMITS = RelaySettings()
_LOOKS_LATER = "Look again with GET /leads/{external_id}."


class Accepted(BaseModel):
    """The lead is in CartelCRM: this one, or another that CartelCRM holds for the same."""

    external_id: str
    status: Literal["accepted", "duplicate"]
    id: Annotated[str | None, Field(description="CartelCRM's id of the lead; null if it did not say.")]


class Queued(BaseModel):
    """CartelCRM has not answered yet. The lead is kept and will be submitted without you."""

    external_id: str
    status: Annotated[
        Literal["queued", "needs_reconcile"],
        Field(description="needs_reconcile: nobody knows whether CartelCRM has it, and an operator was told."),
    ]


class Problem(BaseModel):
    """What is wrong, in the manner of RFC 9457."""

    type: Literal["about:blank"]
    title: str
    status: int
    error: Annotated[str, Field(description="A constant word for programs.")]


class Fault(BaseModel):
    """What is wrong with one field. Values are never repeated."""

    field: Annotated[str, Field(examples=["phone"])]
    message: str


class InvalidLead(Problem):
    """The lead cannot be submitted as it is."""

    error: Literal["invalid_lead"]
    errors: list[Fault]


class RejectedLead(BaseModel):
    """CartelCRM has refused the lead for good."""

    type: Literal["about:blank"]
    title: str
    error: Literal["rejected"]
    external_id: str
    status: Literal[422]
    reason: Annotated[str, Field(description="CartelCRM's own word.")]


class Entry(BaseModel):
    """A callback in a lead's history."""

    key: str
    event: Annotated[str, Field(description="As CartelCRM called it.")]
    status: Annotated[str, Field(json_schema_extra={"enum": [*STATUSES, "unknown"]})]
    timestamp: Annotated[int, Field(description="As CartelCRM signed it, in unix seconds.")]
    applied: Annotated[bool, Field(description="Whether it set the status; an older one than the newest does not.")]


class KnownLead(BaseModel):
    """What the relay knows of a lead."""

    external_id: str
    status: Annotated[
        Literal["queued", "accepted", "duplicate", "rejected", "given_up", "needs_reconcile"],
        Field(description="What became of the submission."),
    ]
    id: Annotated[str | None, Field(description="CartelCRM's id, of an accepted or duplicate lead.")] = None
    reason: Annotated[str | None, Field(description="CartelCRM's word, of a rejected lead.")] = None
    lead_status: Annotated[
        str | None,
        Field(
            description="The lead's fate by its callbacks; null if there was none that says.",
            json_schema_extra={"enum": [*STATUSES, None]},
        ),
    ] = None
    lead_status_at: Annotated[int, Field(description="When, in unix seconds; 0 if there was no callback.")] = 0
    history: Annotated[list[Entry], Field(description="Its callbacks, newest last.")] = []


class LeadStatus(BaseModel):
    """A lead as CartelCRM knows it now."""

    external_id: str
    id: str | None
    lead_status: Annotated[str | None, Field(description="CartelCRM's own word.")]


class Callback(BaseModel):
    """What happened to a lead. Other fields are kept and passed on."""

    model_config = ConfigDict(extra="allow")

    internal_id: Annotated[str | int, Field(description="CartelCRM's id of the lead.")]
    event: Annotated[str, Field(min_length=1, max_length=100, examples=["lead.approved"])]
    timestamp: Annotated[
        str | int,
        Field(description="Unix seconds, as a number or in digits, or ISO 8601 with an offset.", examples=[1795300350]),
    ]


class Taken(BaseModel):
    """The callback is kept."""

    ok: Literal[True]
    replay: Annotated[Literal[True] | None, Field(description="There if it was known already.")] = None


class Refused(BaseModel):
    """The callback is not taken."""

    error: Annotated[str, Field(description="A constant word for programs.")]


class Throttled(BaseModel):
    """API Gateway's own answer to too many requests."""

    message: str


_MODELS: tuple[type[BaseModel], ...] = (
    *(Lead, Accepted, Queued, Problem, InvalidLead, RejectedLead, KnownLead, LeadStatus),
    *(Callback, Taken, Refused, Throttled),
)


def document() -> Json:
    """Return the description of the API."""
    _, schemas = models_json_schema([(model, "validation") for model in _MODELS], ref_template=_SCHEMAS)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "CRM Relay",
            "version": __version__,
            "description": "Leads go to CartelCRM, once; CartelCRM's callbacks come back.",
        },
        "servers": [
            {"url": "http://127.0.0.1:3000", "description": "The local stack."},
            {
                "url": "https://{api}.execute-api.{region}.amazonaws.com",
                "description": "A deployed stack; its output ApiUrl says which.",
                "variables": {"api": {"default": "api-id"}, "region": {"default": "eu-central-1"}},
            },
        ],
        "paths": {
            "/leads": {"post": _submit_lead()},
            "/leads/{external_id}": {"parameters": [_external_id()], "get": _show_lead()},
            "/leads/{external_id}/status": {"parameters": [_external_id()], "get": _ask_status()},
            "/cartelcrm/callback": {"post": _take_callback()},
        },
        "components": {
            "securitySchemes": {
                "leadApiKey": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "One of the keys whose digests are in the relay's secret.",
                }
            },
            "schemas": schemas["$defs"],
        },
    }


def _submit_lead() -> Json:
    return {
        "operationId": "submitLead",
        "summary": "Submit a lead to CartelCRM",
        "description": "The same external_id with the same lead again gets the stored verdict; nothing is sent twice.",
        "security": [{"leadApiKey": []}],
        "parameters": [
            {
                "name": "Prefer",
                "in": "header",
                "description": "respond-async: leave the lead to the queue and answer 202 at once.",
                "schema": {"type": "string", "examples": ["respond-async"]},
            }
        ],
        "requestBody": {
            "required": True,
            "description": f"At most {_LIMITS.lead_body_limit_bytes} bytes, unless configured otherwise.",
            "content": {"application/json": {"schema": _ref(Lead)}},
        },
        "responses": {
            "200": _answer("CartelCRM has the lead.", Accepted),
            "202": _answer(f"The lead is kept and its verdict open. {_LOOKS_LATER}", Queued),
            "400": _problem("The body is no JSON object.", "malformed_json", "json_object_expected", "broken_base64"),
            "401": _unauthenticated(),
            "409": _problem("The external_id is known with another lead.", "other_lead_with_this_external_id"),
            "413": _problem("The body is too large.", "body_too_large"),
            "415": _problem("Not JSON, or compressed.", "json_expected", "content_encoding_not_supported"),
            "422": {
                "description": "The lead is invalid, or CartelCRM has rejected it.",
                "content": {"application/problem+json": {"schema": {"anyOf": [_ref(InvalidLead), _ref(RejectedLead)]}}},
            },
            "503": _unavailable("not_configured", "nothing_durable"),
            **_any_time(_problem),
        },
    }


def _show_lead() -> Json:
    return {
        "operationId": "showLead",
        "summary": "What the relay knows of a lead",
        "security": [{"leadApiKey": []}],
        "responses": {
            "200": _answer("The lead's verdict and, once accepted, its history.", KnownLead),
            "401": _unauthenticated(),
            "404": _problem("No such lead was submitted here.", "not_found"),
            "503": _unavailable("not_configured", "table_unavailable"),
            **_any_time(_problem),
        },
    }


def _ask_status() -> Json:
    return {
        "operationId": "askStatus",
        "summary": "Ask CartelCRM for a lead's status",
        "security": [{"leadApiKey": []}],
        "responses": {
            "200": _answer("CartelCRM's answer.", LeadStatus),
            "401": _unauthenticated(),
            "404": _problem("CartelCRM has no such lead.", "not_found"),
            "503": _unavailable("not_configured", "cartelcrm_unavailable"),
            **_any_time(_problem),
        },
    }


def _take_callback() -> Json:
    return {
        "operationId": "takeCallback",
        "summary": "For CartelCRM: tell what happened to a lead",
        "security": [],
        "parameters": [
            {
                "name": "X-Timestamp",
                "in": "header",
                "required": True,
                "description": "Unix seconds, at most 300 from now.",
                "schema": {"type": "string", "pattern": "^[0-9]{1,12}$"},
            },
            {
                "name": "X-Signature",
                "in": "header",
                "required": True,
                "description": "HMAC-SHA256 of the body under the callback secret, in lower-case hex.",
                "schema": {"type": "string", "pattern": "^(sha256=)?[0-9a-f]{64}$"},
            },
        ],
        "requestBody": {
            "required": True,
            "description": f"At most {_LIMITS.callback_body_limit_bytes} bytes, unless configured otherwise.",
            "content": {"application/json": {"schema": _ref(Callback)}},
        },
        "responses": {
            "200": _answer("The callback is kept; with replay, it was before.", Taken),
            "400": _refused("The body is no JSON object.", "malformed_json", "json_object_expected", "broken_base64"),
            "401": _refused("Too old, or not of now.", "timestamp_out_of_range", "stale_event"),
            "403": _refused("The signature is wrong.", "bad_signature"),
            "413": _refused("The body is too large.", "body_too_large"),
            "415": _refused("The body is compressed.", "content_encoding_not_supported"),
            "422": _refused(
                "Authentic, but nothing can be made of it: kept for an operator.",
                "internal_id_invalid",
                "event_invalid",
                "timestamp_invalid",
                "timestamp_in_future",
            ),
            "503": _refused("Come again.", "not_configured", "nothing_durable") | {"headers": _retry_after()},
            **_any_time(_refused),
        },
    }


def _external_id() -> Json:
    return {
        "name": "external_id",
        "in": "path",
        "required": True,
        "description": "Your own id of the lead, percent-encoded.",
        "schema": {"type": "string", "minLength": 1, "maxLength": 200},
    }


def _answer(description: str, model: type[BaseModel]) -> Json:
    return {"description": description, "content": {"application/json": {"schema": _ref(model)}}}


def _problem(description: str, *words: str) -> Json:
    return {"description": description, "content": {"application/problem+json": {"schema": _with(Problem, words)}}}


def _refused(description: str, *words: str) -> Json:
    return {"description": description, "content": {"application/json": {"schema": _with(Refused, words)}}}


def _unauthenticated() -> Json:
    headers = {"WWW-Authenticate": {"schema": {"type": "string", "const": "Bearer"}}}
    return _problem("No bearer key, or a wrong one.", "api_key_required") | {"headers": headers}


def _unavailable(*words: str) -> Json:
    return _problem("Come again.", *words) | {"headers": _retry_after()}


def _retry_after() -> Json:
    return {"Retry-After": {"description": "Seconds.", "schema": {"type": "string", "pattern": "^[0-9]+$"}}}


def _any_time(problem: Callable[..., Json]) -> Json:
    return {
        str(HTTPStatus.TOO_MANY_REQUESTS.value): _answer("Too many requests, says API Gateway.", Throttled),
        str(HTTPStatus.INTERNAL_SERVER_ERROR.value): problem("A fault of ours; it is logged.", "internal_error"),
    }


def _with(model: type[BaseModel], words: Sequence[str]) -> Json:
    return {"allOf": [_ref(model)], "properties": {"error": {"enum": list(words)}}}


def _ref(model: type[BaseModel]) -> Json:
    return {"$ref": _SCHEMAS.format(model=model.__name__)}


def text() -> str:
    """Return what docs/openapi.json has to hold."""
    return json.dumps(document(), ensure_ascii=False, indent=2) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the description, or check that it is up to date."""
    parser = argparse.ArgumentParser(prog="python -m workbench.openapi", description="Describe the HTTP API.")
    parser.add_argument("--check", action="store_true", help="only tell whether docs/openapi.json is up to date")
    if not parser.parse_args(arguments).check:
        DOCUMENT.parent.mkdir(exist_ok=True)
        DOCUMENT.write_text(text(), "utf-8")
    elif not DOCUMENT.is_file() or DOCUMENT.read_text("utf-8") != text():
        sys.exit("docs/openapi.json does not describe the code any more; run make openapi")


if __name__ == "__main__":
    main()
