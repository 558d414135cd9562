"""Calls that the portal makes, in the true wire format: robots, outgoing webhooks and events of applications.

None is ever repeated: what is answered badly, or not at all, is lost (Bitrix24 reference, section 2).
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from workbench.sandboxes.bitrix24.calls import Answer, Call, Caller, Method, Methods, Refused, as_int
from workbench.sandboxes.bitrix24.items import Change, Item
from workbench.sandboxes.bitrix24.oauth import SERVER_ENDPOINT, Bitrix24OAuth, token_fields
from workbench.sandboxes.bitrix24.portal import NOBODY, App, Bitrix24Portal, PlacedRobot
from workbench.sandboxes.bitrix24.switches import Bitrix24Switches
from workbench.sandboxes.callbacks import Callback, Callbacks, Repeated

ONCE = Repeated(timeout=5.0)
"""How long the queue server waits is not documented; five seconds is what a third party claims."""

EVENTS = frozenset(
    {"ONCRMDEALADD", "ONCRMDEALUPDATE", "ONCRMDEALDELETE", "ONCRMDEALMOVETOCATEGORY", "ONAPPINSTALL", "ONAPPUNINSTALL"}
)
_OF_APPS = frozenset({"ONCRMDEALMOVETOCATEGORY", "ONAPPINSTALL", "ONAPPUNINSTALL"})
_HEADERS = {"Content-Type": "application/x-www-form-urlencoded", "User-Agent": "Bitrix24 Webhook Engine"}


@dataclass(frozen=True, slots=True)
class Robot:
    """A robot that an application registered."""

    app: App
    code: str
    handler: str
    user_id: int
    waits: bool
    properties: tuple[str, ...]
    returns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Binding:
    """A handler that an application bound to an event; `user_id` is whose token comes with it, 0 whoever did it."""

    app: App
    event: str
    handler: str
    user_id: int


@dataclass(slots=True)
class RobotRun:
    """One run of an application's robot in a deal; its first answer closes it, `log` grows until then and after."""

    robot: Robot
    deal_id: int
    token: str
    returned: Mapping[str, Any] | None = None
    log: list[str] = field(default_factory=list)


class Hooks:
    """Who is called, and the runs of robots by event_token, newest last."""

    def __init__(
        self,
        portal: Callable[[], Bitrix24Portal],
        switches: Callable[[], Bitrix24Switches],
        oauth: Bitrix24OAuth,
        callbacks: Callbacks,
        random: Random,
    ) -> None:
        self.robots: dict[str, Robot] = {}
        self.bindings: list[Binding] = []
        self.runs: dict[str, RobotRun] = {}
        self._portal = portal
        self._switches = switches
        self._oauth = oauth
        self._callbacks = callbacks
        self._random = random

    @property
    def methods(self) -> Methods:
        """bizproc.* and event.*."""
        bizproc = frozenset({"bizproc"})
        return {
            "bizproc.robot.add": Method(self._add_robot, bizproc, of_apps=True),
            "bizproc.robot.list": Method(self._list_robots, bizproc, of_apps=True),
            "bizproc.robot.delete": Method(self._delete_robot, bizproc, of_apps=True),
            "bizproc.event.send": Method(self._send, bizproc),
            "bizproc.activity.log": Method(self._log, bizproc),
            "event.bind": Method(self._bind, of_apps=True),
            "event.unbind": Method(self._unbind, of_apps=True),
            "event.get": Method(self._bound, of_apps=True),
        }

    # What the portal tells

    def tell(self, change: Change) -> None:
        """Run the robots of the stage that a deal came to, and send the events of what happened."""
        deal, before = change.deal, change.before
        fields: dict[str, object] = {"ID": deal.id}
        if change.deleted:
            self._event("ONCRMDEALDELETE", fields, change.by)
            return
        if before is None or before["stageId"] != deal["stageId"]:
            self._run_robots(deal)
        if before is None:
            self._event("ONCRMDEALADD", fields, change.by)
        elif before["categoryId"] != deal["categoryId"]:
            # A move to another pipeline is no update (reference, section 2.1).
            fields |= {"CATEGORY_ID": deal["categoryId"], "STAGE_ID": deal["stageId"]}
            self._event("ONCRMDEALMOVETOCATEGORY", fields, change.by)
        else:
            self._event("ONCRMDEALUPDATE", fields, change.by)

    def install(self, app: App, url: str) -> Callback:
        """The application is installed: its address gets the first tokens, and its application_token."""
        portal = self._portal()
        grant = self._oauth.grant(portal, app, app.user_id)
        data = {"VERSION": 1, "ACTIVE": "Y", "INSTALLED": "Y", "LANGUAGE_ID": "ru"}
        auth = token_fields(portal, grant, self._now) | {"application_token": app.application_token}
        return self._post(url, {"event": "ONAPPINSTALL", "data": data, "ts": int(self._now), "auth": auth})

    def uninstall(self, app: App, url: str, *, clean: bool = False) -> Callback:
        """The application goes, its tokens before it; `clean`: its settings shall go as well."""
        self.robots = {code: robot for code, robot in self.robots.items() if robot.app != app}
        self.bindings = [binding for binding in self.bindings if binding.app != app]
        self._oauth.revoke(self._portal(), app)
        data = {"LANGUAGE_ID": "ru", "CLEAN": int(clean)}
        auth = self._origin() | {"application_token": app.application_token}
        return self._post(url, {"event": "ONAPPUNINSTALL", "data": data, "ts": int(self._now), "auth": auth})

    def _event(self, name: str, fields: Mapping[str, object], by: int) -> None:
        portal = self._portal()
        for webhook in portal.outgoing:
            if name in webhook.events and name not in _OF_APPS:
                auth = self._origin() | {"application_token": webhook.application_token}
                self._send_event(webhook.url, name, webhook.id, fields, auth)
        for number, binding in enumerate(self.bindings, start=1):
            if binding.event == name:
                self._send_event(
                    binding.handler, name, number, fields, self._app_auth(binding.app, binding.user_id or by)
                )

    def _send_event(
        self, url: str, name: str, handler_id: int, fields: Mapping[str, object], auth: Mapping[str, object]
    ) -> None:
        told: dict[str, Any] = {"event": name}
        if self._switches().tells_handler_id:
            told["event_handler_id"] = handler_id
        self._post(url, told | {"data": {"FIELDS": fields}, "ts": int(self._now), "auth": auth})

    def _app_auth(self, app: App, user_id: int) -> dict[str, object]:
        """Return what an event proves itself with: tokens if a person did it, none if a robot or an agent did."""
        auth = self._origin() | {"application_token": app.application_token}
        if user_id == NOBODY:
            return auth
        tokens = token_fields(self._portal(), self._oauth.grant(self._portal(), app, user_id), self._now)
        return auth | {name: value for name, value in tokens.items() if name != "refresh_token"}

    def _run_robots(self, deal: Item) -> None:
        portal = self._portal()
        document = ["crm", "CCrmDocumentDeal", f"DEAL_{deal.id}"]
        for webhook in portal.webhook_robots:
            if webhook.stage == deal["stageId"]:
                url = webhook.url if webhook.typed_by_hand else _filled(webhook.url, deal)
                self._post(url, {"document_id": document, "auth": self._origin()}, robot="webhook")
        for placed in portal.placed_robots:
            robot = self.robots.get(placed.code)
            if robot and placed.stage == deal["stageId"]:
                self._run(robot, placed, deal, document)

    def _run(self, robot: Robot, placed: PlacedRobot, deal: Item, document: list[str]) -> None:
        workflow = f"{self._random.getrandbits(56):014x}.{self._random.randrange(10**8):08}"
        activity = "_".join(str(self._random.randrange(10_000, 100_000)) for _ in range(4))
        signature = self._random.randbytes(32).hex()
        token = f"{workflow}|A{activity}|{self._random.randbytes(16).hex()}.{signature}"
        self.runs[token] = RobotRun(robot, deal.id, token)
        auth = token_fields(self._portal(), self._oauth.grant(self._portal(), robot.app, robot.user_id), self._now)
        told: dict[str, Any] = {
            "workflow_id": workflow,
            "code": robot.code,
            "document_id": document,
            "document_type": ["crm", "CCrmDocumentDeal", "DEAL"],
            "event_token": token,
            "properties": {name: placed.properties.get(name, "") for name in robot.properties},
        }
        if self._switches().tells_subscription:
            told["use_subscription"] = "Y" if robot.waits else "N"
        told |= {"timeout_duration": 0, "ts": int(self._now)}
        told["auth"] = auth | {"application_token": robot.app.application_token}
        self._post(robot.handler, told, robot=robot.code)

    def _post(self, url: str, told: Mapping[str, Any], **about: object) -> Callback:
        about |= {name: told[name] for name in ("event",) if name in told}
        if "document_id" in told:
            about["document"] = told["document_id"][2]
        body = urlencode([*_flattened(told)]).encode()
        return self._callbacks.plan(url, body, lambda _body, _now: _HEADERS, about, ONCE)

    def _origin(self) -> dict[str, object]:
        portal = self._portal()
        return {
            "domain": portal.domain,
            "client_endpoint": portal.endpoint,
            "server_endpoint": SERVER_ENDPOINT,
            "member_id": portal.member_id,
        }

    @property
    def _now(self) -> float:
        return self._oauth.clock()

    # What applications ask for

    def _add_robot(self, call: Call) -> Answer:
        app = self._administered(call.caller)
        code, handler = str(call.params.get("CODE", "")), str(call.params.get("HANDLER", ""))
        if not re.fullmatch(r"[a-zA-Z0-9._-]+", code) or not call.params.get("NAME"):
            raise Refused("ERROR_ACTIVITY_VALIDATION_FAILURE", "Wrong activity code or name")
        if not handler:
            raise Refused("ERROR_WRONG_HANDLER_URL", "Wrong handler URL")
        if urlsplit(handler).scheme not in {"http", "https"}:
            raise Refused("ERROR_UNSUPPORTED_PROTOCOL", "Unsupported event handler protocol")
        if code in self.robots:
            raise Refused("ERROR_ACTIVITY_ALREADY_INSTALLED", "Activity or Robot already installed")
        self.robots[code] = Robot(
            app,
            code,
            handler,
            as_int(call.params.get("AUTH_USER_ID")) or call.caller.user_id,
            # Without an answer to the question the robot's own setting decides, which is not to wait.
            call.params.get("USE_SUBSCRIPTION") == "Y",
            tuple(call.mapping("PROPERTIES")),
            tuple(call.mapping("RETURN_PROPERTIES")),
        )
        return Answer(True)

    def _list_robots(self, call: Call) -> Answer:
        app = self._administered(call.caller)
        return Answer([robot.code for robot in self.robots.values() if robot.app == app])

    def _delete_robot(self, call: Call) -> Answer:
        app = self._administered(call.caller)
        robot = self.robots.get(str(call.params.get("CODE", "")))
        if robot is None or robot.app != app:
            raise Refused("ERROR_ACTIVITY_NOT_FOUND", "Activity or Robot not found")
        del self.robots[robot.code]
        return Answer(True)

    def _send(self, call: Call) -> Answer:
        run = self._run_of(call)
        sent = {str(name).lower(): value for name, value in call.mapping("RETURN_VALUES").items()}
        if message := call.params.get("LOG_MESSAGE"):
            run.log.append(str(message))
        if run.robot.waits and run.returned is None:
            run.returned = {name: sent[name.lower()] for name in run.robot.returns if name.lower() in sent}
        return Answer(True)

    def _log(self, call: Call) -> Answer:
        self._run_of(call).log.append(str(call.params.get("LOG_MESSAGE", "")))
        return Answer(True)

    def _run_of(self, call: Call) -> RobotRun:
        run = self.runs.get(str(call.params.get("EVENT_TOKEN", "")))
        if run is None:
            raise Refused("ACCESS_DENIED", "Access denied!", 403)
        return run

    def _bind(self, call: Call) -> Answer:
        app = self._administered(call.caller)
        binding = self._binding(call, app)
        if binding.event not in EVENTS:
            raise Refused("ERROR_EVENT_NOT_FOUND", "Event not found")
        if urlsplit(binding.handler).scheme not in {"http", "https"}:
            raise Refused("ERROR_UNSUPPORTED_PROTOCOL", "Unsupported event handler protocol")
        if binding in self.bindings:
            raise Refused("ERROR_EVENT_BINDING_EXISTS", "Handler already binded")
        self.bindings.append(binding)
        return Answer(True)

    def _unbind(self, call: Call) -> Answer:
        app = self._administered(call.caller)
        gone = self._binding(call, app)
        kept = [
            each for each in self.bindings if (each.app, each.event, each.handler) != (app, gone.event, gone.handler)
        ]
        count = len(self.bindings) - len(kept)
        self.bindings = kept
        return Answer({"count": count})

    def _bound(self, call: Call) -> Answer:
        bound = [binding for binding in self.bindings if binding.app == call.caller.app]
        return Answer(
            [
                {"event": each.event, "handler": each.handler, "auth_type": str(each.user_id), "offline": "0"}
                for each in bound
            ]
        )

    def _binding(self, call: Call, app: App) -> Binding:
        event, handler = str(call.params.get("event", "")).upper(), str(call.params.get("handler", ""))
        return Binding(app, event, handler, as_int(call.params.get("auth_type")) or NOBODY)

    def _administered(self, caller: Caller) -> App:
        user = self._portal().user(caller.user_id)
        if caller.app is None or user is None or not user.is_admin:
            raise Refused("ACCESS_DENIED", "Access denied!", 403)
        return caller.app


def _filled(url: str, deal: Item) -> str:
    def value(placeholder: re.Match[str]) -> str:
        first, *rest = placeholder[1].lower().split("_")
        name = first + "".join(word.capitalize() for word in rest)
        found = deal.fields.get(placeholder[1], deal.fields.get(name))
        return quote("" if found is None else str(found), safe="")

    return re.sub(r"\{\{([^{}]+)\}\}", value, url)


def _flattened(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """What http_build_query makes: None and empty arrays vanish. The relay reads this with code of its own."""
    if isinstance(value, Mapping | list | tuple):
        pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, each in pairs:
            yield from _flattened(each, f"{name}[{key}]" if name else str(key))
    elif value is not None:
        yield name, str(int(value)) if isinstance(value, bool) else str(value)
