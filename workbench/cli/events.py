"""`relay send` and `relay sign`: the sample events, signed afresh."""

import json
import os
from enum import StrEnum
from typing import Annotated, Any
from urllib.parse import quote

import httpx
import typer

from workbench import events
from workbench.cli.console import Problem, print_json, say, shown, tell
from workbench.cli.control import Control
from workbench.cli.world import World
from workbench.events import HttpRequest, Json, MissingKey, Trigger, UnknownEvent

ENVIRONMENT = {
    "cartelcrm_callback_secret": "CARTELCRM_CALLBACK_SECRET",
    "lead_api_key": "RELAY_API_KEY",
    "amocrm_hook_token": "AMOCRM_HOOK_TOKEN",
    "amocrm_client_id": "AMOCRM_CLIENT_ID",
    "amocrm_client_secret": "AMOCRM_CLIENT_SECRET",
    "bitrix24_url_key": "BITRIX24_URL_KEY",
    "bitrix24_application_token": "BITRIX24_APPLICATION_TOKEN",
}
"""Where `relay sign --secret-from env` finds each key."""

_TIMEOUT = httpx.Timeout(35.0, connect=2.0)


class SecretFrom(StrEnum):
    """Where the keys come from."""

    LOCAL = "local"
    ENV = "env"


def _complete(incomplete: str) -> list[str]:
    return [name for name in events.names() if name.startswith(incomplete)]


_EVENT: Any = typer.Argument(
    metavar="EVENT", help="folder/what_happens of events/, or a file.", autocompletion=_complete, show_default=False
)
EventArgument = Annotated[str, _EVENT]
ReplayOption = Annotated[
    bool, typer.Option("--replay", help="Keep the body's own timestamp: sent twice, the second is a replay.")
]


def send(ctx: typer.Context, event: Annotated[str | None, _EVENT] = None, replay: ReplayOption = False) -> None:
    """Send an event to the local stack, the way it would come on AWS, and show the answer.

    A request is signed afresh and goes to the API, a message into its queue, an event onto the bus; anything else
    invokes its function. The exit code is 1 when the answer is a refusal. Without an event it lists all that there are.

    For example: relay send callback_receiver/lead_approved
    """
    if event is None:
        typer.echo("\n".join(events.names()))
        return
    world: World = ctx.obj
    content = _load(event)
    control = Control.of(world)
    match events.trigger(content):
        case Trigger.HTTP:
            _send_request(control, _about_a_known_lead(control, content, world), replay=replay, world=world)
        case Trigger.QUEUE:
            for queue, body in events.messages(content):
                say(f"message [bold]{shown(control.enqueue(queue, body))}[/] in queue {shown(queue)}")
        case Trigger.BUS:
            for _, body in events.messages(content):
                published = events.bus_event(body)
                assert published is not None
                say(f"{shown(published['detail-type'])} [bold]{shown(control.publish(published))}[/] on the bus")
        case Trigger.INVOKE:
            print_json(control.invoke(events.find(event).absolute().parent.name, content))


def sign(
    ctx: typer.Context,
    event: EventArgument,
    secret_from: Annotated[
        SecretFrom,
        typer.Option(help=f"The local stack's keys, or {', '.join(ENVIRONMENT.values())} of the environment."),
    ] = SecretFrom.LOCAL,
    replay: ReplayOption = False,
) -> None:
    """Print an event, signed afresh, for `sam local invoke FUNCTION -e -`.

    For example: relay sign callback_receiver/lead_approved | sam local invoke CallbackReceiveFunction -e -
    """
    world: World = ctx.obj
    content = _load(event)
    keys = _environment() if secret_from is SecretFrom.ENV else Control.of(world).known["secrets"]
    typer.echo(json.dumps(_signed(content, keys, replay=replay, world=world), ensure_ascii=False, indent=2))


def _load(name: str) -> Json:
    try:
        return events.load(name)
    except UnknownEvent as unknown:
        raise Problem(str(unknown)) from None


def _environment() -> dict[str, str]:
    return {name: os.environ[variable] for name, variable in ENVIRONMENT.items() if os.environ.get(variable)}


def _signed(event: Json, keys: events.Keys, *, replay: bool, world: World) -> Json:
    try:
        return events.signed(event, keys, now=world.clock.time(), replay=replay)
    except MissingKey as missing:
        name = str(missing)
        raise Problem(f"This event needs {name}: put it into {ENVIRONMENT[name]} and use --secret-from env.") from None


def _send_request(control: Control, event: Json, *, replay: bool, world: World) -> None:
    request = HttpRequest.of(_signed(event, control.known["secrets"], replay=replay, world=world))
    # As it stands in the file: the path may be signed, too.
    tell(f"[dim]{shown(request.method)} {shown(control.known['url'] + HttpRequest.of(event).path)}[/]")
    response = _ask(control, request, world)
    colour = "red" if response.is_error else "green"
    tell(f"[{colour}]{response.status_code}[/] {shown(response.reason_phrase)}")
    try:
        print_json(response.json())
    except ValueError:
        typer.echo(shown(response.text))
    if response.is_error:
        raise typer.Exit(1)


def _about_a_known_lead(control: Control, event: Json, world: World) -> Json:
    """Let a callback tell of the lead that it names, under the id that this stack's CartelCRM gave it.

    A callback about a lead that nobody submitted waits two minutes for the submission.
    """
    if event.get("routeKey") != "POST /cartelcrm/callback":
        return event
    try:
        callback: dict[str, Any] = json.loads(events.body_of(event))
        path = f"/leads/{quote(callback['external_id'], safe='')}"
    except (ValueError, KeyError, TypeError):
        return event
    request = HttpRequest("GET", path, {"Authorization": f"Bearer {control.known['secrets']['lead_api_key']}"}, b"")
    known = _ask(control, request, world)
    if known.status_code != 200 or not known.json().get("id"):
        return event
    callback["internal_id"] = known.json()["id"]
    return events.with_body(event, json.dumps(callback, ensure_ascii=False, separators=(",", ":")).encode())


def _ask(control: Control, request: HttpRequest, world: World) -> httpx.Response:
    with httpx.Client(transport=world.transport, timeout=_TIMEOUT, trust_env=False) as client:
        try:
            return client.request(
                request.method,
                control.known["url"] + request.path,
                headers=dict(request.headers),
                content=request.body,
            )
        except httpx.TransportError as error:
            raise Problem(f"{control.known['url']} does not answer ({type(error).__name__}).") from None
