"""The controls of a portal over HTTP, for the person who works them."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pydantic import Base64Bytes, BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError

from workbench.sandboxes.bitrix24.calls import Refused, envelope
from workbench.sandboxes.bitrix24.items import Item
from workbench.sandboxes.bitrix24.portal import COMPANY, CONTACT, DEAL
from workbench.sandboxes.faults import problems
from workbench.sandboxes.wire import SandboxRequest, SandboxResponse, json_answer

if TYPE_CHECKING:
    from workbench.sandboxes.bitrix24.sandbox import Bitrix24Sandbox


class Order(BaseModel):
    """What the controls for deals take beside the deal's fields, named as in the API with original names of UF fields.

    `by` is the user who does it, 0 a robot, nobody named the portal's first user; `copies` makes that many.
    """

    model_config = ConfigDict(extra="allow")

    by: int | None = None
    copies: int = Field(default=1, ge=1, le=100_000)


class RowsOrder(BaseModel):
    """Product rows for a deal."""

    rows: list[dict[str, Any]]


class FileOrder(BaseModel):
    """A file for a field of a deal; `content` is base64, or `size` makes that many bytes."""

    model_config = ConfigDict(extra="forbid")

    field: str
    name: str
    content: Base64Bytes = b""
    size: NonNegativeInt = 0


class RobotOrder(BaseModel):
    """A robot of an application for a stage, with its settings."""

    model_config = ConfigDict(extra="forbid")

    stage: str
    code: str
    properties: dict[str, Any] = {}


class InstallOrder(BaseModel):
    """An application, and where its `ONAPPINSTALL` goes."""

    model_config = ConfigDict(extra="forbid")

    client_id: str
    url: str


class RenameOrder(BaseModel):
    """The portal's new address."""

    model_config = ConfigDict(extra="forbid")

    domain: str = Field(min_length=1)


def control(sandbox: "Bitrix24Sandbox", request: SandboxRequest) -> SandboxResponse | None:
    """What was ordered or asked under /sandbox; None if this is not among a portal's own controls."""
    try:
        return _order(sandbox, request)
    except ValidationError as refused:
        return json_answer(422, {"error": "invalid_order", "problems": problems(refused)})
    except Refused as refused:
        return envelope(refused.status, refused.told)
    except (KeyError, ValueError):
        return json_answer(404, {"error": "not_found"})


def _order(sandbox: "Bitrix24Sandbox", request: SandboxRequest) -> SandboxResponse | None:
    body = request.body or b"{}"
    match request.method, request.parts[1:]:
        case "POST", ("deals" | "contacts" | "companies" as kind,):
            order = Order.model_validate_json(body)
            type_id = {"deals": DEAL, "contacts": CONTACT, "companies": COMPANY}[kind]
            fields, by = order.model_extra or {}, sandbox.who(order.by)
            made = [sandbox.items.add(type_id, fields, by).id for _ in range(order.copies)]
            return json_answer(200, {"ids": made})
        case method, ("deals", id_, *path):
            return _of_deal(sandbox, sandbox.items.find(DEAL, int(id_)), method, path, body)
        case "POST", ("robots",):
            robot = RobotOrder.model_validate_json(body)
            sandbox.place_robot(robot.stage, robot.code, **robot.properties)
            return json_answer(200, {"robots": len(sandbox.portal.placed_robots)})
        case "POST", ("install",):
            install = InstallOrder.model_validate_json(body)
            return json_answer(200, {"callback": sandbox.install(install.client_id, install.url).number})
        case "POST", ("rename",):
            sandbox.rename(RenameOrder.model_validate_json(body).domain)
            return json_answer(200, {"domain": sandbox.portal.domain})
        case "DELETE", ("links",):
            sandbox.files.kill_links()
            return json_answer(200, {})
        case "GET", (name,):
            return _reported(sandbox, name)
        case _:
            return None


def _of_deal(
    sandbox: "Bitrix24Sandbox", deal: Item, method: str, path: Sequence[str], body: bytes
) -> SandboxResponse | None:
    match method, path:
        case "GET", []:
            return json_answer(200, _card(sandbox, deal))
        case "POST", []:
            order = Order.model_validate_json(body)
            fields = order.model_extra or {}
            if "stageId" in fields:
                fields = {"categoryId": sandbox.category_of(fields["stageId"])} | fields
            sandbox.change(deal.id, by=order.by, **fields)
            return json_answer(200, {"id": deal.id, "stageId": deal["stageId"]})
        case "POST", ["rows"]:
            sandbox.rows.write(deal, [*RowsOrder.model_validate_json(body).rows])
            return json_answer(200, {"id": deal.id, "rows": len(deal.rows)})
        case "POST", ["files"]:
            file = FileOrder.model_validate_json(body)
            content = file.content or bytes(file.size)
            return json_answer(200, {"file_id": sandbox.attach_file(deal.id, file.field, file.name, content)})
        case _:
            return None


def _reported(sandbox: "Bitrix24Sandbox", name: str) -> SandboxResponse | None:
    match name:
        case "comments":
            return json_answer(200, {name: [asdict(each) for each in sandbox.comments]})
        case "notifications":
            return json_answer(200, {name: [asdict(each) for each in sandbox.notifications]})
        case "robots":
            runs = [
                {"code": run.robot.code, "deal_id": run.deal_id, "returned": run.returned, "log": run.log}
                for run in sandbox.hooks.runs.values()
            ]
            return json_answer(200, {"robots": [*sandbox.hooks.robots], "runs": runs})
        case _:
            return None


def _card(sandbox: "Bitrix24Sandbox", deal: Item) -> dict[str, Any]:
    comments = [each.text for each in sandbox.comments if (each.entity, each.entity_id) == ("deal", deal.id)]
    fields = [field for field in sandbox.portal.user_fields.get(DEAL, ()) if field.type == "file"]
    numbers = {field.name: deal[field.name] if field.multiple else [deal[field.name]] for field in fields}
    names = {
        name: [sandbox.files.stored[number].name for number in some if number is not None]
        for name, some in numbers.items()
    }
    return {**deal.fields, "rows": deal.rows, "comments": comments, "files": names}
