"""Where leads come from: sources, website buttons, short links, and widgets."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from workbench.sandboxes.amocrm.bodies import Id
from workbench.sandboxes.amocrm.calls import (
    NO_CONTENT,
    NOT_ALLOWED,
    NOT_FOUND,
    Body,
    Call,
    Mistake,
    Refused,
    bare,
    not_supported,
    problem,
    refuse,
    whole,
)
from workbench.sandboxes.amocrm.services import SHORT_LINKS, SOURCES, WEBSITE_BUTTONS, WIDGETS
from workbench.sandboxes.amocrm.tables import Record, Table
from workbench.sandboxes.wire import SandboxResponse


class _ButtonBody(Body):
    pipeline_id: Id
    is_used_in_app: bool = False
    trusted_websites: Sequence[str] = ()
    name: str | None = None


class _MoreWebsites(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    add: Sequence[str] = ()


class _ButtonChange(Body):
    trusted_websites: _MoreWebsites = _MoreWebsites()
    name: str | None = None


class Channels:
    """The channels of an account."""

    def __init__(self, hex_id: Callable[[], str]) -> None:
        self.sources = Table(SOURCES, hex_id, check=self._check_source, told=self._one_default)
        self.buttons = Table(WEBSITE_BUTTONS, hex_id, show=_script)
        self.short_links = Table(SHORT_LINKS, hex_id, told=_shorten)
        self.widgets = Table(WIDGETS, hex_id)

    def website_buttons(self, call: Call, path: Sequence[str]) -> SandboxResponse:
        """`api/v4/website_buttons…`."""
        match call.request.method, path:
            case "POST", []:
                return self._add_button(call)
            case _, [id_, *rest] if button := self.buttons.records.get(whole(id_) or 0):
                return self._button(call, button, rest)
            case _:
                return self.buttons.answer(call, path)

    def of_widgets(self, call: Call, path: Sequence[str]) -> SandboxResponse:
        """`api/v4/widgets…`."""
        match call.request.method, path:
            case "POST" | "DELETE", [code] if widget := self.widgets.records.get(code):
                return self._install(call, widget)
            case _:
                return self.widgets.answer(call, path)

    def source_id(self, meant: Mapping[str, Any]) -> int | None:
        """The source that a lead names by its external_id."""
        known = self.sources.records.values()
        return next((each["id"] for each in known if each["external_id"] == meant.get("external_id")), None)

    def _check_source(self, call: Call, sent: Record, source: Record | None) -> Sequence[Mistake]:
        mistakes = []
        if sent.get("pipeline_id") and sent["pipeline_id"] not in {pipeline.id for pipeline in call.account.pipelines}:
            mistakes.append(not_supported("pipeline_id"))
        others = [each for each in self.sources.records.values() if each is not source]
        if sent.get("external_id") in {each["external_id"] for each in others}:
            mistakes.append(Mistake("NotUnique", "external_id", "There is a source with this external_id."))
        return mistakes

    def _one_default(self, _call: Call, verb: str, source: Record) -> None:
        if verb != "deleted" and source["default"]:
            for other in self.sources.records.values():
                other["default"] = other is source

    def _add_button(self, call: Call) -> SandboxResponse:
        item = call.item(_ButtonBody)
        body = item.body
        if body.pipeline_id not in {pipeline.id for pipeline in call.account.pipelines}:
            refuse({item.request_id: [not_supported("pipeline_id")]})
        button = self.buttons.put(
            {
                "account_id": call.account.id,
                "name": body.name or "Кнопка на сайт",
                "button_id": None,
                "pipeline_id": body.pipeline_id,
                "is_duplication_control_enabled": False,
                "creation_status": "ready",
                "is_deleted": False,
                "_trusted": list(body.trusted_websites),
                "_online_chat": False,
            }
        )
        button["button_id"] = button["source_id"] + 30_000
        return bare(_created(button), 202)

    def _button(self, call: Call, button: Record, path: Sequence[str]) -> SandboxResponse:
        match call.request.method, path:
            case "GET", []:
                return self.buttons.answer(call, [str(button["source_id"])])
            case "PATCH", []:
                body = call.item(_ButtonChange).body
                button["name"] = body.name or button["name"]
                button["_trusted"] += body.trusted_websites.add
                return bare(self.buttons.view(call, button) | {"trusted_websites": button["_trusted"]}, 202)
            case "POST", ["online_chat"]:
                button["_online_chat"] = True
                return SandboxResponse(202)
            case _, [] | ["online_chat"]:
                return NOT_ALLOWED
            case _:
                return NOT_FOUND

    def _install(self, call: Call, widget: Record) -> SandboxResponse:
        if call.request.method == "DELETE":
            widget |= {"is_active_in_account": False, "settings": None}
            return NO_CONTENT
        sent = call.json() if call.request.body else {}
        given: Mapping[str, Any] = (sent.get("settings") or sent) if isinstance(sent, dict) else sent
        if not isinstance(given, dict):
            raise Refused(problem(400, "A map of settings is expected"))
        needed = [setting["key"] for setting in widget["settings_template"] if setting["is_required"]]
        refuse({"0": [Mistake("FieldMissing", name, "This field is missing.") for name in needed if name not in given]})
        widget |= {"is_active_in_account": True, "settings": dict(given)}
        return bare(self.widgets.view(call, widget))


def _created(button: Record) -> Mapping[str, object]:
    return {name: button[name] for name in ("source_id", "name")} | {"trusted_websites": button["_trusted"]}


def _script(call: Call, button: Record) -> Mapping[str, object]:
    if "scripts" not in call.with_:
        return {}
    return {"script": f'<script async src="https://{call.account.host}/buttons/{button["button_id"]}.js"></script>'}


def _shorten(call: Call, _verb: str, link: Record) -> None:
    about = link.get("metadata") or {}
    link |= {"entity_id": about.get("entity_id"), "entity_type": about.get("entity_type"), "_leads_to": link["url"]}
    link["url"] = f"https://{call.account.host}/s/{link['id']:x}"
