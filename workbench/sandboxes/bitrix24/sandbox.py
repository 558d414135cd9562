"""A stand-in for one portal of Bitrix24: its REST API, its robots and hooks, and the people in it."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Any, override

from crm_relay.brackets import TooComplex
from workbench.sandboxes.bitrix24.batch import BrokenOff, run_batch
from workbench.sandboxes.bitrix24.calls import (
    Answer,
    Call,
    Caller,
    Method,
    Refused,
    envelope,
    html_page,
    read_params,
)
from workbench.sandboxes.bitrix24.controls import control
from workbench.sandboxes.bitrix24.fields import shown_time
from workbench.sandboxes.bitrix24.files import Files
from workbench.sandboxes.bitrix24.hooks import Hooks, RobotRun
from workbench.sandboxes.bitrix24.items import Item, Items
from workbench.sandboxes.bitrix24.limits import LeakyBucket, Operating
from workbench.sandboxes.bitrix24.oauth import Bitrix24OAuth, Grant
from workbench.sandboxes.bitrix24.portal import COMPANY, CONTACT, DEAL, App, Bitrix24Portal, PlacedRobot
from workbench.sandboxes.bitrix24.references import References
from workbench.sandboxes.bitrix24.rows import Rows
from workbench.sandboxes.bitrix24.switches import Bitrix24Switches
from workbench.sandboxes.bitrix24.talk import Comment, Notification, Talk
from workbench.sandboxes.callbacks import Callback
from workbench.sandboxes.sandbox import Sandbox
from workbench.sandboxes.wire import SandboxRequest, SandboxResponse

_LOCAL_HOST = re.compile(r"(127\.0\.0\.1|localhost)(:[0-9]+)?")


class Bitrix24Sandbox(Sandbox):
    """One portal. `items`, `rows`, `talk`, `files` and `hooks` are what there is in it; `calls` counts methods run."""

    switches: Bitrix24Switches

    def __init__(
        self, portal: Bitrix24Portal, oauth: Bitrix24OAuth, *, clock: Callable[[], float], random: Random
    ) -> None:
        super().__init__(clock=clock, random=random)
        self.portal = portal
        self.oauth = oauth
        self.switches = Bitrix24Switches()
        self.calls: Counter[str] = Counter()
        self.bucket = LeakyBucket()
        self.operating = Operating()
        self.files = Files(clock, random)
        self.hooks = Hooks(self._furnished, self._switched, oauth, self.callbacks, random)
        self.items = Items(self._furnished, self._switched, self.files, clock, self.hooks.tell)
        self.rows = Rows(self._furnished, self.items)
        self.talk = Talk(self._furnished, self.items, self.files)
        self._former_domains: set[str] = set()
        references = References(self._furnished)
        parts = (self.items, self.rows, self.talk, self.hooks, references)
        self._methods: dict[str, Method] = {name: method for part in parts for name, method in part.methods.items()}
        oauth.register(portal.member_id, self._furnished)

    # As callers see it

    @override
    def answer(self, request: SandboxRequest) -> SandboxResponse:
        try:
            return self._answer(request)
        except Refused as refused:
            return envelope(refused.status, refused.told)
        except TooComplex:
            return html_page(400, "Bad Request")

    @override
    def refusal(self, status: int, code: str) -> SandboxResponse:
        return envelope(status, {"error": code, "error_description": ""})

    def _answer(self, request: SandboxRequest) -> SandboxResponse:
        host = request.headers.get("host", self.portal.domain)
        if host in self._former_domains:
            query = f"?{request.query}" if request.query else ""
            return SandboxResponse(302, headers={"location": f"https://{self.portal.domain}{request.path}{query}"})
        if len(request.body) > self.portal.largest_body:
            return html_page(413, "413 Request Entity Too Large")
        match request.parts:
            case ("rest", *path):
                return self._serve(request, path, self._origin(host))
            case ("bitrix", *_):
                return html_page(200, "Авторизация")
            case _:
                return html_page(404, "404 Not Found")

    def _serve(self, request: SandboxRequest, path: Sequence[str], origin: str) -> SandboxResponse:
        self._admit()
        match path:
            case ["crm.controller.item.getFile.json"]:
                return self.files.fetch(request, self.switches.disposition)
            case [method]:
                params = read_params(request)
                caller = self._app_caller(str(params.get("auth", "")))
            case [user_id, secret, method]:
                params = read_params(request)
                caller = self._webhook_caller(user_id, secret)
            case _:
                raise Refused("ERROR_METHOD_NOT_FOUND", "Method not found!", 404)
        name = method.removesuffix(".json").lower()
        if name == "batch":
            return self._batch(params, caller, origin)
        try:
            answer, time = self._run(Call(name, params, caller, origin, self.clock()))
        except _OperatingLimit as refused:
            told = {"time": self._time(caller, name)} if self.switches.refusals_tell_time else {}
            return envelope(refused.status, refused.told | told)
        return envelope(200, answer.told | {"time": time})

    def _admit(self) -> None:
        if not self.bucket.take(self.clock(), self.portal.requests_per_second, self.portal.burst):
            raise Refused("QUERY_LIMIT_EXCEEDED", "Too many requests", 503)
        if self.switches.overloaded:
            raise Refused("OVERLOAD_LIMIT", "REST API is blocked due to overload.", 503)
        if self.switches.deleted:
            raise Refused("PORTAL_DELETED", "Portal was deleted", 500)
        if not self.switches.paid:
            raise Refused("PAYMENT_REQUIRED", "Payment required", 401)

    def _webhook_caller(self, user_id: str, secret: str) -> Caller:
        for webhook in self.portal.incoming:
            user = self.portal.user(webhook.user_id)
            if (str(webhook.user_id), webhook.secret) == (user_id, secret) and user and user.active:
                return Caller(f"webhook {secret}", webhook.user_id, webhook.scopes)
        raise Refused("NO_AUTH_FOUND", "Wrong authorization data", 401)

    def _app_caller(self, token: str) -> Caller:
        if not token:
            raise Refused("NO_AUTH_FOUND", "Wrong authorization data", 401)
        grant = self.oauth.holder(token, self.portal.member_id)
        return Caller(f"app {grant.app.client_id}", grant.user_id, grant.app.scopes, grant.app)

    def _run(self, call: Call) -> tuple[Answer, Mapping[str, object]]:
        method = self._methods.get(call.method)
        if method is None:
            raise Refused("ERROR_METHOD_NOT_FOUND", "Method not found!", 404)
        if method.scopes and method.scopes.isdisjoint(call.caller.scopes):
            raise Refused("insufficient_scope", "The request requires higher privileges than provided", 403)
        if method.of_apps and call.caller.app is None:
            raise Refused("ACCESS_DENIED", "Application context required", 403)
        # The limit is looked at before the work, so that one call may overshoot it.
        if self.operating.spent(call.caller.key, call.method, call.now) >= self.portal.operating_seconds:
            raise _OperatingLimit
        answer = method.run(call)
        self.calls[call.method] += 1
        self.operating.charge(call.caller.key, call.method, call.now, self.switches.operating_per_call)
        return answer, self._time(call.caller, call.method)

    def _batch(self, params: Mapping[str, Any], caller: Caller, origin: str) -> SandboxResponse:
        def run(method: str, sent: Mapping[str, Any]) -> tuple[Answer, object]:
            name = method.removesuffix(".json").lower()
            return self._run(Call(name, sent, caller, origin, self.clock()))

        try:
            done = run_batch(params, run, self.switches.breaks_batches_after)
        except BrokenOff:
            return html_page(504, "504 Gateway Time-out")
        return envelope(200, {"result": done.told, "time": self._time(caller, "batch")})

    def _time(self, caller: Caller, method: str) -> dict[str, object]:
        now = self.clock()
        written = shown_time(self.portal, now)
        return {
            "start": now,
            "finish": now,
            "duration": 0.0,
            "processing": 0.0,
            "date_start": written,
            "date_finish": written,
            **self.operating.time(caller.key, method, now),
        }

    def _origin(self, host: str) -> str:
        """Return the address of links: where the caller found us on this machine, else the portal's own."""
        return f"http://{host}" if _LOCAL_HOST.fullmatch(host) else f"https://{self.portal.domain}"

    # As people in the portal see it

    @property
    def deals(self) -> dict[int, Item]:
        """By id."""
        return self.items.present[DEAL]

    @property
    def contacts(self) -> dict[int, Item]:
        """By id."""
        return self.items.present[CONTACT]

    @property
    def companies(self) -> dict[int, Item]:
        """By id."""
        return self.items.present[COMPANY]

    @property
    def comments(self) -> list[Comment]:
        """Of all timelines, oldest first."""
        return self.talk.comments

    @property
    def notifications(self) -> list[Notification]:
        """Those that were not replaced, oldest first."""
        return self.talk.notifications

    @property
    def robot_results(self) -> list[RobotRun]:
        """The runs of applications' robots that were answered."""
        return [run for run in self.hooks.runs.values() if run.returned is not None]

    def add_deal(self, *, by: int | None = None, rows: Sequence[Mapping[str, Any]] = (), **fields: Any) -> Item:
        """Somebody makes a deal, with product rows; fields as in crm.item.add, UF names original. Refused as there."""
        deal = self.items.add(DEAL, fields, self.who(by))
        if rows:
            self.rows.write(deal, [*rows])
        return deal

    def add_contact(self, *, by: int | None = None, **fields: Any) -> Item:
        """Somebody makes a contact; `fm` has its phones and e-mails."""
        return self.items.add(CONTACT, fields, self.who(by))

    def add_company(self, *, by: int | None = None, **fields: Any) -> Item:
        """Somebody makes a company."""
        return self.items.add(COMPANY, fields, self.who(by))

    def change(self, deal_id: int, *, by: int | None = None, **fields: Any) -> Item:
        """Somebody changes a deal. Refused if there is no such deal, or a value is not valid."""
        deal = self.items.find(DEAL, deal_id)
        self.items.change(deal, fields, self.who(by))
        return deal

    def move(self, deal_id: int, stage: str, *, by: int | None = None) -> Item:
        """Somebody, or with `by=0` a robot, moves a deal, also to another pipeline. KeyError: no such stage."""
        return self.change(deal_id, by=by, categoryId=self.category_of(stage), stageId=stage)

    def attach_file(self, deal_id: int, field: str, name: str, content: bytes) -> int:
        """Somebody puts a file into a field of a deal; returns its id. KeyError if the field takes none."""
        return self.items.attach(self.items.find(DEAL, deal_id), field, name, content)

    def place_robot(self, stage: str, code: str, /, **properties: object) -> None:
        """An administrator puts a robot of an application on a stage."""
        placed = PlacedRobot(stage=stage, code=code, properties=properties)
        self.portal = replace(self.portal, placed_robots=(*self.portal.placed_robots, placed))

    def install(self, client_id: str, url: str) -> Callback:
        """An administrator installs an application; `url` is told. KeyError if there is no such application."""
        return self.hooks.install(self._app(client_id), url)

    def uninstall(self, client_id: str, url: str, *, clean: bool = False) -> Callback:
        """An administrator removes an application."""
        return self.hooks.uninstall(self._app(client_id), url, clean=clean)

    def grant(self, client_id: str) -> Grant:
        """Tokens for an application, as its installer's."""
        app = self._app(client_id)
        return self.oauth.grant(self.portal, app, app.user_id)

    def rename(self, domain: str) -> None:
        """The portal moves to another address, and sends callers there from the old one."""
        self._former_domains = (self._former_domains | {self.portal.domain}) - {domain}
        self.portal = replace(self.portal, domain=domain)

    def _app(self, client_id: str) -> App:
        app = self.portal.app(client_id)
        if app is None:
            raise KeyError(client_id)
        return app

    def _furnished(self) -> Bitrix24Portal:
        return self.portal

    def _switched(self) -> Bitrix24Switches:
        return self.switches

    def category_of(self, stage: str) -> int:
        """The pipeline of a stage. KeyError: there is no such stage."""
        found = self.portal.stage(stage)
        if found is None:
            raise KeyError(stage)
        return found[0].id

    def who(self, by: int | None) -> int:
        """The user who acts if nobody is named: the portal's first."""
        return self.portal.users[0].id if by is None else by

    # As the person at the controls sees it

    @override
    def control(self, request: SandboxRequest) -> SandboxResponse:
        """The controls of a portal under `/sandbox`, and what every sandbox has.

        `POST deals` adds, `POST deals/{id}` changes (a `stageId` moves), `POST deals/{id}/rows` and `…/files` fill it,
        `GET deals/{id}` shows all of it; `POST contacts` and `companies` add; `POST robots` puts a robot on a stage,
        `POST install` and `rename` do so, `DELETE links` lets the links to files die; `GET comments`, `notifications`
        and `robots` show what was reported.
        """
        answer = control(self, request)
        return super().control(request) if answer is None else answer

    @override
    def state(self) -> dict[str, object]:
        """Beside what all sandboxes tell: what there is, without names, and the methods that were run."""
        deals = [
            {
                "id": deal.id,
                "stageId": deal["stageId"],
                "originId": deal["originId"],
                "rows": len(deal.rows),
                "comments": sum((each.entity, each.entity_id) == ("deal", deal.id) for each in self.comments),
            }
            for deal in self.deals.values()
        ]
        counts = {"deals": len(self.deals), "contacts": len(self.contacts), "companies": len(self.companies)}
        return super().state() | {
            "counts": counts,
            "deals": deals,
            "calls": dict(self.calls),
            "bucket_level": round(self.bucket.level, 1),
            "notifications": len(self.notifications),
            "files": len(self.files.stored),
        }


class _OperatingLimit(Refused):
    def __init__(self) -> None:
        super().__init__("OPERATION_TIME_LIMIT", "Method is blocked due to operation time limit.", 429)
