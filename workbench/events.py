"""The sample events in events/: found, told apart, signed afresh, and turned into what really travels."""

import base64
import hashlib
import hmac
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import reduce
from pathlib import Path
from secrets import token_hex
from typing import Any
from urllib.parse import parse_qsl, urlencode

from crm_relay.amocrm.oauth import sign_state
from crm_relay.signing import signature_headers

FOLDER = Path(__file__).parents[1] / "events"

type Json = dict[str, Any]
type Keys = Mapping[str, str]
"""What events are signed with: `lead_api_key`, `cartelcrm_callback_secret`, more of `amocrm_` and `bitrix24_`."""


class UnknownEvent(Exception):
    """There is no such event; the message lists those that are there."""


class MissingKey(Exception):
    """The event needs a key that was not given; the message is the key's name."""


class Trigger(Enum):
    """What hands an event to its function."""

    HTTP = "http"
    QUEUE = "queue"
    BUS = "bus"
    """An event of the bus, which a rule has put into a queue."""
    INVOKE = "invoke"
    """A direct invocation, or a schedule."""


def names() -> list[str]:
    """Return the names of all sample events: folder/what_happens."""
    return sorted(path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.rglob("*.json"))


def find(name: str) -> Path:
    """Return the file of an event, named as in `names`, with .json if you like, or by any path.

    Raises:
        UnknownEvent: there is no such file.
    """
    for path in (FOLDER / f"{name.removesuffix('.json')}.json", Path(name)):
        if path.is_file():
            return path
    known = "\n".join(f"  {each}" for each in names())
    raise UnknownEvent(f"There is no event {name}. There are:\n{known}")


def load(name: str) -> Json:
    """Return an event, see `find`.

    Raises:
        UnknownEvent: there is no such file, or it holds no JSON object.
    """
    path = find(name)
    try:
        event = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UnknownEvent(f"{path} is not JSON: {error}") from None
    if not isinstance(event, dict):
        raise UnknownEvent(f"{path} holds no JSON object.")
    return event


def trigger(event: Json) -> Trigger:
    """Tell what an event comes from."""
    match event:
        case {"requestContext": {"http": _}}:
            return Trigger.HTTP
        case {"Records": [{"eventSource": "aws:sqs"}, *_]}:
            return Trigger.BUS if all(bus_event(body) for _, body in messages(event)) else Trigger.QUEUE
        case _:
            return Trigger.INVOKE


def messages(event: Json) -> Iterator[tuple[str, str]]:
    """Yield (name of the queue, body) of each message in an SQS event."""
    for record in event["Records"]:
        yield record["eventSourceARN"].rpartition(":")[2], record["body"]


def bus_event(body: str) -> Json | None:
    """Return the EventBridge event that the body of a message is; None if it is none."""
    try:
        match json.loads(body):
            case {"detail-type": str(), "source": str(), "detail": dict()} as event:
                return dict(event)
            case _:
                return None
    except ValueError:
        return None


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """The request that API Gateway made an event of."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    @classmethod
    def of(cls, event: Json) -> "HttpRequest":
        """Return an event's request, without the headers that belong to its way through AWS."""
        query = event.get("rawQueryString")
        return cls(
            method=event["requestContext"]["http"]["method"],
            path=event["rawPath"] + (f"?{query}" if query else ""),
            headers={
                name: value
                for name, value in event["headers"].items()
                if name not in ("host", "content-length") and not name.startswith("x-forwarded-")
            },
            body=body_of(event),
        )


def body_of(event: Json) -> bytes:
    """Return the body of an HTTP event."""
    body: str = event.get("body", "")
    return base64.b64decode(body) if event.get("isBase64Encoded") else body.encode()


def with_body(event: Json, body: bytes) -> Json:
    """Return an HTTP event with another body."""
    encoded = bool(event.get("isBase64Encoded"))
    return {**event, "body": base64.b64encode(body).decode() if encoded else body.decode()}


def of_deal(event: Json, deal: int) -> Json:
    """Return a call of Bitrix24 about another deal."""
    return _with_fields(event, {"document_id[2]": f"DEAL_{deal}", "data[FIELDS][ID]": str(deal)})


def signed(event: Json, keys: Keys, *, now: float, replay: bool = False) -> Json:
    """Return an event with fresh proof of who sends it; one that needs none comes back as it is.

    Args:
        event: any event.
        keys: what to sign with.
        now: unix time in seconds.
        replay: leave the body as it is; otherwise its `timestamp` becomes `now`, so that it is a new callback.

    Raises:
        MissingKey: the event needs a key that is not among `keys`.
    """
    prove = _PROOFS.get(event.get("routeKey", ""))
    return prove(event, keys, now, replay) if prove else event


def _with_signature(event: Json, keys: Keys, now: float, replay: bool) -> Json:
    secret = _key(keys, "cartelcrm_callback_secret")
    if not replay:
        event = _of_now(event, now)
    return _with_headers(event, signature_headers(body_of(event), secret, now=now))


def _of_now(event: Json, now: float) -> Json:
    try:
        fields = json.loads(body_of(event))
    except ValueError:
        return event
    if not (isinstance(fields, dict) and "timestamp" in fields):
        return event
    fields["timestamp"] = int(now)
    return with_body(event, json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode())


def _with_lead_key(event: Json, keys: Keys, _now: float, _replay: bool) -> Json:
    return _with_headers(event, {"Authorization": f"Bearer {_key(keys, 'lead_api_key')}"})


def _at_hook_token(event: Json, keys: Keys, _now: float, _replay: bool) -> Json:
    """Put the token into the address: amoCRM signs nothing, and nobody else knows where its hooks go."""
    return _at(event, hook_token=_key(keys, "amocrm_hook_token"))


def _at_url_key(event: Json, keys: Keys, _now: float, _replay: bool) -> Json:
    """Put the portal's key into the address, and its token where a call shows one: Bitrix24 signs nothing."""
    event = _at(event, url_key=_key(keys, "bitrix24_url_key"))
    return _with_fields(event, {"auth[application_token]": _key(keys, "bitrix24_application_token")})


def _at(event: Json, **parameters: str) -> Json:
    """Return an HTTP event whose path has these parameters."""
    context = event["requestContext"]
    path = event["routeKey"].partition(" ")[2].format_map(parameters)
    http = {**context["http"], "path": path}
    return {**event, "rawPath": path, "pathParameters": parameters, "requestContext": {**context, "http": http}}


def _with_fields(event: Json, fields: Mapping[str, str]) -> Json:
    """Return an HTTP event whose body has other values in those of the fields that are there.

    They are named as forms name them, `auth[domain]`, and found in JSON as well.
    """
    body = body_of(event)
    if body.startswith(b"{"):
        tree = json.loads(body)
        for name, value in fields.items():
            *way, last = re.findall(r"[^\[\]]+", name)
            branch = reduce(lambda found, key: found.get(key, {}), way, tree)
            if last in branch:
                branch[last] = value
        return with_body(event, json.dumps(tree, ensure_ascii=False, separators=(",", ":")).encode())
    pairs = parse_qsl(body.decode(), keep_blank_values=True)
    return with_body(event, urlencode([(name, fields.get(name, value)) for name, value in pairs]).encode())


def _with_state(event: Json, keys: Keys, now: float, _replay: bool) -> Json:
    """Give an answer of amoCRM's consent page the state that `relay amo authorize` would have sent there."""
    query = event["queryStringParameters"]
    name = query["state"].partition(".")[0]
    state = sign_state(name, token_hex(16), _key(keys, "amocrm_client_secret"), now=now)
    return _with_query(event, {**query, "state": state})


def _as_amocrm_signs(event: Json, keys: Keys, _now: float, _replay: bool) -> Json:
    query = {**event["queryStringParameters"], "client_uuid": _key(keys, "amocrm_client_id")}
    text = f"{query['client_uuid']}|{query['account_id']}"
    digest = hmac.new(_key(keys, "amocrm_client_secret").encode(), text.encode(), hashlib.sha256).hexdigest()
    return _with_query(event, {**query, "signature": digest})


def _with_query(event: Json, query: Mapping[str, str]) -> Json:
    return {**event, "rawQueryString": urlencode(query), "queryStringParameters": dict(query)}


def _with_headers(event: Json, headers: Mapping[str, str]) -> Json:
    return {**event, "headers": {**event["headers"], **{name.lower(): value for name, value in headers.items()}}}


def _key(keys: Keys, name: str) -> str:
    try:
        return keys[name]
    except KeyError:
        raise MissingKey(name) from None


_PROOFS: Mapping[str, Callable[[Json, Keys, float, bool], Json]] = {
    "POST /cartelcrm/callback": _with_signature,
    "POST /leads": _with_lead_key,
    "GET /leads/{external_id}": _with_lead_key,
    "GET /leads/{external_id}/status": _with_lead_key,
    "POST /amo/{hook_token}": _at_hook_token,
    "POST /amo/{hook_token}/": _at_hook_token,
    "POST /bitrix/{url_key}": _at_url_key,
    "POST /bitrix/{url_key}/": _at_url_key,
    "GET /amo/oauth": _with_state,
    "GET /amo/disconnect": _as_amocrm_signs,
}
