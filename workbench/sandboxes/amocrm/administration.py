"""What administrators change: pipelines and their stages, custom fields and their groups, users and roles."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from workbench.sandboxes.amocrm import furnishings
from workbench.sandboxes.amocrm.account import (
    CLOSED,
    KINDS,
    AmoCrmAccount,
    CustomField,
    Option,
    Pipeline,
    Status,
    User,
)
from workbench.sandboxes.amocrm.bodies import Id
from workbench.sandboxes.amocrm.calls import (
    NO_CONTENT,
    NOT_FOUND,
    Body,
    Call,
    Item,
    Mistake,
    Refused,
    hal,
    not_supported,
    problem,
    refuse,
)
from workbench.sandboxes.amocrm.entities import Entities
from workbench.sandboxes.amocrm.services import FIELD_GROUPS, ROLES
from workbench.sandboxes.amocrm.tables import Record, Table
from workbench.sandboxes.wire import SandboxResponse

MOST_PIPELINES = 50
MOST_STAGES = 100
MOST_ACTIVATED = 10
"""Users that one call activates or deactivates."""

_EVERYWHERE = frozenset({"text", "numeric", "checkbox", "select", "multiselect", "date", "url", "date_time"}) | {
    *("textarea", "radiobutton", "streetaddress")
}
_OF_CARDS = _EVERYWHERE | {"monetary", "file"}
_OF_DEALINGS = _OF_CARDS | {"smart_address", "birthday", "legal_entity"}
_OF_CATALOGS = _EVERYWHERE | {"price", "category", "items", "linked_entity", "payer", "supplier"}
_TYPES: Mapping[str, frozenset[str]] = {
    "leads": _OF_DEALINGS | {"tracking_data", "chained_list"},
    "contacts": _OF_DEALINGS | {"multitext"},
    "companies": _OF_DEALINGS | {"multitext"},
    "customers": _OF_CARDS | {"chained_list"},
    "customers/segments": _EVERYWHERE,
}
"""What kinds of fields there can be, by what they belong to; catalogs have those of their own."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _StatusBody(Body):
    id: Id | None = None
    name: str | None = None
    sort: int | None = None
    color: str | None = None
    descriptions: list[dict[str, Any]] | None = None


class _StatusesBody(_Part):
    statuses: list[_StatusBody] = []


class _PipelineBody(Body):
    id: Id | None = None
    name: str | None = None
    sort: int | None = None
    is_main: bool | None = None
    is_unsorted_on: bool | None = None
    embedded: _StatusesBody = Field(default_factory=_StatusesBody, alias="_embedded")


class _OptionBody(_Part):
    id: Id | None = None
    value: str
    sort: int | None = None
    code: str | None = None


class _FieldBody(Body):
    id: Id | None = None
    name: str | None = None
    type: str | None = None
    code: str | None = None
    enums: list[_OptionBody] | None = None
    sort: int | None = None
    group_id: str | None = None
    is_api_only: bool | None = None
    is_deletable: bool | None = None
    is_visible: bool | None = None
    is_required: bool | None = None
    required_statuses: list[dict[str, Any]] | None = None
    hidden_statuses: list[dict[str, Any]] | None = None
    nested: list[dict[str, Any]] | None = None
    chained_lists: list[dict[str, Any]] | None = None
    search_in: str | int | None = None
    tracking_callback: str | None = None
    currency: str | None = None
    remind: Literal["never", "day", "week", "month"] | None = None
    settings: list[str] | None = None


_KEPT = frozenset(_FieldBody.model_fields) - {"id", "name", "type", "code", "enums", "request_id"}


class _UserBody(Body):
    name: str
    email: str
    password: str | None = None
    rights: dict[str, Any] = Field(default_factory=dict)


class _IdBody(Body):
    id: Id


class Administration:
    """The settings of an account, which `furnish` puts in the place of the old ones."""

    def __init__(self, entities: Entities, furnish: Callable[[AmoCrmAccount], None], hex_id: Callable[[], str]) -> None:
        self.roles = Table(ROLES, hex_id, show=_users)
        self.groups = Table(FIELD_GROUPS, hex_id)
        self._entities = entities
        self._furnish = furnish
        self._ids: Iterator[int] = count(90_000_001)

    # Pipelines and stages

    def pipelines(self, call: Call, path: Sequence[str]) -> SandboxResponse:
        """`api/v4/leads/pipelines…`."""
        if call.request.method == "GET":
            return furnishings.pipelines(call, path)
        known = {str(pipeline.id): pipeline for pipeline in call.account.pipelines}
        match call.request.method, path:
            case "POST", []:
                return self._add_pipelines(call)
            case "PATCH", [id_] if pipeline := known.get(id_):
                after = self._put_pipeline(call, _changed_pipeline(pipeline, call.item(_PipelineBody).body))
                return hal(furnishings.one_pipeline(after, pipeline.id))
            case "DELETE", [id_] if pipeline := known.get(id_):
                self._refuse_used("pipeline_id", pipeline.id)
                self._furnished(call, pipelines=tuple(each for each in call.account.pipelines if each is not pipeline))
                return NO_CONTENT
            case _, [id_, "statuses", *rest] if pipeline := known.get(id_):
                return self._statuses(call, pipeline, rest)
            case "PATCH" | "DELETE", [_]:
                return NOT_FOUND
            case _:
                return furnishings.pipelines(call, path)

    def _add_pipelines(self, call: Call) -> SandboxResponse:
        items = call.items(_PipelineBody)
        refuse({item.request_id: item.mistakes or _nameless(item.body.name) for item in items})
        if len(call.account.pipelines) + len(items) > MOST_PIPELINES:
            raise Refused(problem(400, f"At most {MOST_PIPELINES} pipelines can be there"))
        added = []
        for item in items:
            stages = [each for each in item.body.embedded.statuses if each.id not in {status.id for status in CLOSED}]
            statuses = tuple(self._status(stage) for stage in stages) or (Status(next(self._ids), "Новый этап"),)
            added.append(_changed_pipeline(Pipeline(next(self._ids), "", statuses), item.body))
        after = self._furnished(call, pipelines=(*call.account.pipelines, *added))
        shown = [
            {**furnishings.one_pipeline(after, pipeline.id), "request_id": item.request_id}
            for item, pipeline in zip(items, added, strict=True)
        ]
        return _written(call, "leads/pipelines", "pipelines", shown)

    def _statuses(self, call: Call, pipeline: Pipeline, path: Sequence[str]) -> SandboxResponse:
        known = {str(status.id): status for status in pipeline.statuses}
        match call.request.method, path:
            case "POST", []:
                items = call.items(_StatusBody)
                refuse({item.request_id: item.mistakes or _nameless(item.body.name) for item in items})
                if len(pipeline.statuses) + len(items) > MOST_STAGES:
                    raise Refused(problem(400, f"At most {MOST_STAGES} stages can be there"))
                added = [self._status(item.body) for item in items]
                after = self._put_pipeline(call, replace(pipeline, statuses=(*pipeline.statuses, *added)))
                shown = [
                    {**furnishings.one_status(after, pipeline.id, status.id), "request_id": item.request_id}
                    for item, status in zip(items, added, strict=True)
                ]
                return _written(call, f"leads/pipelines/{pipeline.id}/statuses", "statuses", shown)
            case "PATCH", [id_] if status := known.get(id_):
                changed = _changed_status(status, call.item(_StatusBody).body)
                statuses = tuple(changed if each is status else each for each in pipeline.statuses)
                after = self._put_pipeline(call, replace(pipeline, statuses=statuses))
                return hal(furnishings.one_status(after, pipeline.id, status.id))
            case "DELETE", [id_] if status := known.get(id_):
                self._refuse_used("status_id", status.id)
                statuses = tuple(each for each in pipeline.statuses if each is not status)
                self._put_pipeline(call, replace(pipeline, statuses=statuses))
                return NO_CONTENT
            case "PATCH" | "DELETE", [_]:
                return NOT_FOUND
            case _:
                return furnishings.pipelines(call, [str(pipeline.id), "statuses", *path])

    def _status(self, body: _StatusBody) -> Status:
        return _changed_status(Status(next(self._ids), ""), body)

    def _put_pipeline(self, call: Call, pipeline: Pipeline) -> Call:
        known = call.account.pipelines
        return self._furnished(call, pipelines=tuple(pipeline if each.id == pipeline.id else each for each in known))

    def _furnished(self, call: Call, **changes: Any) -> Call:
        # The call goes on in the account as it is now.
        account = replace(call.account, **changes)
        self._furnish(account)
        return replace(call, account=account)

    def _refuse_used(self, name: str, value: int) -> None:
        if any(lead[name] == value for lead in self._entities.present["leads"].values()):
            raise Refused(problem(400, "There are leads in it"))

    # Custom fields and their groups

    def custom_fields(self, call: Call, owner: str, path: Sequence[str]) -> SandboxResponse:
        """`api/v4/{owner}/custom_fields…`, where the owner is a kind of entity, `customers/segments` or a catalog."""
        known = {str(each.id): each for each in call.account.custom_fields.get(owner, ())}
        match call.request.method, path:
            case _, ["groups", *rest]:
                return self.groups.answer(call, rest, at=f"{owner}/custom_fields/groups", within={"entity_type": owner})
            case "POST", []:
                return self._add_fields(call, owner)
            case "PATCH", []:
                items = call.items(_FieldBody)
                return self._change_fields(call, owner, [(item, known.get(str(item.body.id))) for item in items])
            case "PATCH", [id_] if definition := known.get(id_):
                changed = self._defined(definition, call.item(_FieldBody).body)
                after = self._put_fields(call, owner, {definition.id: changed})
                return hal(furnishings.one_custom_field(after, owner, definition.id))
            case "DELETE", [id_] if definition := known.get(id_):
                self._put_fields(call, owner, {definition.id: None})
                return NO_CONTENT
            case "PATCH" | "DELETE", [_]:
                return NOT_FOUND
            case _:
                return furnishings.custom_fields(call, owner, path)

    def _add_fields(self, call: Call, owner: str) -> SandboxResponse:
        items = call.items(_FieldBody)
        types = _TYPES.get(owner, _OF_CATALOGS)
        refuse({item.request_id: item.mistakes or _wrong_field(item.body, types) for item in items})
        added = [self._defined(CustomField(next(self._ids), "", item.body.type or "text"), item.body) for item in items]
        return self._fields_written(call, owner, items, added)

    def _change_fields(
        self, call: Call, owner: str, items: Sequence[tuple[Item[_FieldBody], CustomField | None]]
    ) -> SandboxResponse:
        missing = [Mistake("NotFound", "id", "Entity not found")]
        refuse({item.request_id: item.mistakes or ([] if known else missing) for item, known in items})
        changed = [self._defined(known, item.body) for item, known in items if known]
        return self._fields_written(call, owner, [item for item, _ in items], changed)

    def _fields_written(
        self, call: Call, owner: str, items: Sequence[Item[_FieldBody]], definitions: Sequence[CustomField]
    ) -> SandboxResponse:
        after = self._put_fields(call, owner, {definition.id: definition for definition in definitions})
        shown = [
            {**furnishings.one_custom_field(after, owner, definition.id), "request_id": item.request_id}
            for item, definition in zip(items, definitions, strict=True)
        ]
        return _written(call, f"{owner}/custom_fields", "custom_fields", shown)

    def _defined(self, definition: CustomField, body: _FieldBody) -> CustomField:
        more = body.model_dump(exclude_none=True, include=set(_KEPT))
        options = definition.options
        if body.enums is not None:
            options = tuple(Option(each.id or next(self._ids), each.value, each.code) for each in body.enums)
        return replace(
            definition,
            name=definition.name if body.name is None else body.name,
            code=definition.code if body.code is None else body.code,
            options=options,
            more={**definition.more, **more},
        )

    def _put_fields(self, call: Call, owner: str, changes: Mapping[int, CustomField | None]) -> Call:
        """Change definitions, and what is filled in: None takes a field away."""
        before = call.account.custom_fields
        known = {**{definition.id: definition for definition in before.get(owner, ())}, **changes}
        fields = tuple(definition for definition in known.values() if definition)
        cards = [entity for kind in KINDS if kind == owner for entity in self._entities.present[kind].values()]
        for entity in cards:
            for id_ in entity.custom_fields.keys() & changes.keys():
                filled = entity.custom_fields.pop(id_)
                if definition := changes[id_]:
                    entity.custom_fields[id_] = replace(filled, definition=definition)
        return self._furnished(call, custom_fields={**before, owner: fields})

    # Users and roles

    def users(self, call: Call, path: Sequence[str]) -> SandboxResponse:
        """`api/v4/users…`."""
        match call.request.method, path:
            case "POST", []:
                return self._add_users(call)
            case "POST", ["activate" | "deactivate" as what]:
                return self._activate(call, is_active=what == "activate")
            case _:
                return furnishings.users(call, path, [*self.roles.records.values()])

    def _add_users(self, call: Call) -> SandboxResponse:
        items = call.items(_UserBody)
        emails = {user.email for user in call.account.users}
        twin = [Mistake("NotUnique", "email", "There is a user with this email.")]
        refuse({item.request_id: item.mistakes or (twin if item.body.email in emails else []) for item in items})
        added = [
            User(
                next(self._ids),
                item.body.name,
                item.body.email,
                is_admin=bool(item.body.rights.get("is_admin")),
                rights=item.body.rights,
            )
            for item in items
        ]
        after = self._furnished(call, users=(*call.account.users, *added))
        shown = [
            {**furnishings.one_user(after, user.id), "request_id": item.request_id}
            for item, user in zip(items, added, strict=True)
        ]
        return _written(call, "users", "users", shown)

    def _activate(self, call: Call, *, is_active: bool) -> SandboxResponse:
        items = call.items(_IdBody)
        if len(items) > MOST_ACTIVATED:
            raise Refused(problem(400, f"A list of 1 to {MOST_ACTIVATED} users is expected"))
        known = {user.id for user in call.account.users}
        missing = [Mistake("NotFound", "id", "User not found")]
        refuse({item.request_id: item.mistakes or ([] if item.body.id in known else missing) for item in items})
        meant = {item.body.id for item in items}
        users = call.account.users
        self._furnished(
            call, users=tuple(replace(user, is_active=is_active) if user.id in meant else user for user in users)
        )
        return NO_CONTENT


def _changed_pipeline(pipeline: Pipeline, body: _PipelineBody) -> Pipeline:
    sent = body.model_dump(exclude_unset=True, include={"name", "sort", "is_main", "is_unsorted_on"})
    return replace(pipeline, **sent)


def _changed_status(status: Status, body: _StatusBody) -> Status:
    sent = body.model_dump(exclude_unset=True, include={"name", "sort", "color"})
    descriptions = tuple(body.descriptions) if body.descriptions is not None else status.descriptions
    return replace(status, descriptions=descriptions, **sent)


def _nameless(name: str | None) -> Sequence[Mistake]:
    return [] if name else [Mistake("FieldMissing", "name", "This field is missing.")]


def _wrong_field(body: _FieldBody, types: frozenset[str]) -> Sequence[Mistake]:
    mistakes = [*_nameless(body.name)]
    if body.type is None:
        mistakes.append(Mistake("FieldMissing", "type", "This field is missing."))
    elif body.type not in types:
        mistakes.append(not_supported("type"))
    return mistakes


def _users(call: Call, role: Record) -> Mapping[str, object]:
    if "users" not in call.with_:
        return {}
    users = [user.id for user in call.account.users if user.rights.get("role_id") == role["id"]]
    return {"_embedded": {"users": [{"id": id_, "_links": {"self": call.href(f"users/{id_}")}} for id_ in users]}}


def _written(call: Call, at: str, key: str, shown: Sequence[object]) -> SandboxResponse:
    return hal({"_total_items": len(shown), "_links": {"self": call.href(at)}, "_embedded": {key: shown}})
