"""The drive: files that are uploaded in parts, their versions, and which file hangs on which entity."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import PurePosixPath
from random import Random
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

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
    hal,
    page,
    problem,
    refuse,
)
from workbench.sandboxes.amocrm.filters import Test, leaves, matcher, tree
from workbench.sandboxes.amocrm.services import FILES
from workbench.sandboxes.amocrm.tables import Record, Table
from workbench.sandboxes.wire import SandboxResponse

_UNITS: Mapping[str, int] = {"b": 1, "kb": 1024, "mb": 1024**2, "gb": 1024**3}


class _AuthorBody(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    id: int | str
    type: str


class _SessionBody(Body):
    file_name: str = Field(min_length=1)
    file_size: int = Field(gt=0)
    content_type: str = "application/octet-stream"
    with_preview: bool = False
    file_uuid: str | None = None
    created_by: _AuthorBody | None = None


class _FileBody(Body):
    file_uuid: str
    id: Id | None = None


@dataclass(slots=True)
class _Session:
    id: int
    body: _SessionBody
    parts: list[bytes] = field(default_factory=list)

    @property
    def size(self) -> int:
        return sum(map(len, self.parts))


class Drive:
    """The files of an account; `contents` are what is in them, by version."""

    def __init__(self, random: Random) -> None:
        self.files = Table(
            FILES,
            self._uuid,
            show=self._links,
            testers={
                "uuid": _listed("uuid"),
                "name": lambda wanted: _holds("name", wanted),
                "term": lambda wanted: _holds("name", wanted),
                "extensions": lambda wanted: lambda file: file["metadata"]["extension"] in leaves(wanted),
                "source_id": _listed("source_id"),
                "size": _sized,
                "date": _dated,
                "created_by": _by("created_by"),
                "updated_by": _by("updated_by"),
            },
        )
        self.contents: dict[str, bytes] = {}
        self._random = random
        self._sessions: dict[str, _Session] = {}
        self._hung: dict[tuple[str, int], dict[str, int]] = {}
        self._trash: dict[str, Record] = {}
        self._session_ids = count(1)

    def answer(self, call: Call, path: Sequence[str]) -> SandboxResponse:
        """`v1.0/…` of the drive's host: sessions, the parts that go into them, files, and downloads."""
        match call.request.method, path:
            case "POST", ["sessions"]:
                return self._begin(call)
            case "POST", ["sessions", "upload", token]:
                return self._take(call, token)
            case "GET", ["files"] if "".join(leaves(tree(call.query.get("filter")).get("deleted"))) in {"1", "true"}:
                return page(call, list(self._trash.values()), "files", lambda file: self.files.view(call, file))
            case "DELETE", ["files"]:
                return self._delete(call)
            case _, ["files", *rest]:
                return self.files.answer(call, rest)
            case "GET", ["download", version, _] if version in self.contents:
                return SandboxResponse(200, self.contents[version], {"content-type": "application/octet-stream"})
            case _, ["sessions"] | ["sessions", "upload", _]:
                return NOT_ALLOWED if call.request.method != "POST" else NOT_FOUND
            case _:
                return NOT_FOUND

    def of_entity(self, call: Call, kind: str, id_: int) -> SandboxResponse:
        """`api/v4/{entity}/{id}/files`."""
        hung = self._hung.setdefault((kind, id_), {})
        match call.request.method:
            case "GET":
                found = [{"file_uuid": uuid, "id": number} for uuid, number in hung.items()]
                return page(call, found, "files", lambda file: file)
            case "PUT":
                items = call.items(_FileBody)
                refuse({item.request_id: item.mistakes or self._unknown(item.body) for item in items})
                for item in items:
                    hung.setdefault(item.body.file_uuid, len(hung) + 1)
                files = [{"file_uuid": item.body.file_uuid, "id": hung[item.body.file_uuid]} for item in items]
                return hal({"_links": {"self": call.href(f"{kind}/{id_}/files")}, "_embedded": {"files": files}})
            case "DELETE":
                items = call.items(_FileBody)
                refuse({item.request_id: item.mistakes for item in items})
                for item in items:
                    hung.pop(item.body.file_uuid, None)
                return NO_CONTENT
            case _:
                return NOT_ALLOWED

    def _begin(self, call: Call) -> SandboxResponse:
        body = call.item(_SessionBody).body
        if body.file_size > call.account.file_size:
            raise Refused(problem(400, "The file is too large"))
        if body.file_uuid and body.file_uuid not in self.files.records:
            raise Refused(problem(404, "There is no such file"))
        session = _Session(next(self._session_ids), body)
        return bare(
            {
                "session_id": session.id,
                "upload_url": self._next(call, session),
                "max_file_size": call.account.file_size,
                "max_part_size": call.account.part_size,
            }
        )

    def _next(self, call: Call, session: _Session) -> str:
        token = self._random.randbytes(24).hex()
        self._sessions[token] = session
        return f"{call.drive}/v1.0/sessions/upload/{token}"

    def _take(self, call: Call, token: str) -> SandboxResponse:
        session = self._sessions.get(token)
        if session is None:
            return NOT_FOUND
        part = call.request.body
        if not 0 < len(part) <= call.account.part_size:
            raise Refused(problem(413, f"A part of 1 to {call.account.part_size} bytes is expected"))
        if session.size + len(part) > session.body.file_size:
            raise Refused(problem(400, "The file is larger than was said"))
        session.parts.append(part)
        # The address of a part is good once.
        del self._sessions[token]
        if session.size < session.body.file_size:
            return bare({"session_id": session.id, "next_url": self._next(call, session)}, 202)
        return bare(self.files.view(call, self._store(call, session)))

    def _store(self, call: Call, session: _Session) -> Record:
        body, version = session.body, self._uuid()
        self.contents[version] = b"".join(session.parts)
        author = body.created_by.model_dump() if body.created_by else {"id": call.by, "type": "user"}
        name = PurePosixPath(body.file_name)
        stamps = {"updated_at": call.now, "updated_by": author}
        of_version = {
            "version_uuid": version,
            "size": body.file_size,
            "metadata": {"extension": name.suffix.lstrip("."), "mime_type": body.content_type},
        }
        if body.file_uuid:
            file = self.files.records[body.file_uuid]
            file |= {**of_version, **stamps, "has_multiple_versions": True}
            return file
        return self.files.put(
            {
                "name": name.stem,
                "sanitized_name": body.file_name,
                "type": _kind(body.content_type),
                **of_version,
                **stamps,
                "created_at": call.now,
                "created_by": author,
                "deleted_at": None,
                "deleted_by": None,
                "is_trashed": False,
                "has_multiple_versions": False,
                "source_id": None,
                "previews": [],
            }
        )

    def _delete(self, call: Call) -> SandboxResponse:
        sent = call.json()
        uuids = (
            [str(each.get("uuid")) if isinstance(each, dict) else "" for each in sent] if isinstance(sent, list) else []
        )
        if not uuids or any(uuid not in self.files.records for uuid in uuids):
            raise Refused(problem(404, "There is no such file"))
        for uuid in uuids:
            file = self.files.records.pop(uuid)
            file |= {"is_trashed": True, "deleted_at": call.now, "deleted_by": {"id": call.by, "type": "user"}}
            self._trash[uuid] = file
        return NO_CONTENT

    def _unknown(self, body: _FileBody) -> Sequence[Mistake]:
        return [] if body.file_uuid in self.files.records else [Mistake("NotFound", "file_uuid", "File not found")]

    def _links(self, call: Call, file: Record) -> Mapping[str, object]:
        own = f"{call.drive}/v1.0/files/{file['uuid']}"
        download = {"href": f"{call.drive}/v1.0/download/{file['version_uuid']}/{file['sanitized_name']}"}
        return {"_links": {"self": {"href": own}, "download": download, "download_version": download}}

    def _uuid(self) -> str:
        return str(UUID(int=self._random.getrandbits(128), version=4))


def _kind(content_type: str) -> str:
    kind = content_type.partition("/")[0]
    return kind if kind in {"image", "video", "audio"} else "file"


def _listed(name: str) -> Callable[[object], Test[Record]]:
    def tester(wanted: object) -> Test[Record]:
        names = frozenset(part for leaf in leaves(wanted) for part in leaf.split(","))
        return lambda file: str(file[name]) in names

    return tester


def _by(name: str) -> Callable[[object], Test[Record]]:
    def tester(wanted: object) -> Test[Record]:
        fits = matcher(wanted)
        return lambda file: fits(file[name]["id"])

    return tester


def _holds(name: str, wanted: object) -> Test[Record]:
    sought = "".join(leaves(wanted)).casefold()
    return lambda file: sought in file[name].casefold()


def _sized(wanted: object) -> Test[Record]:
    unit = _UNITS.get("".join(leaves(tree(wanted).get("unit"))).lower(), 1)
    fits = matcher({name: value for name, value in tree(wanted).items() if name in {"from", "to"}})
    return lambda file: fits(file["size"] // unit)


def _dated(wanted: object) -> Test[Record]:
    field_ = "updated_at" if "".join(leaves(tree(wanted).get("type"))) == "updated_at" else "created_at"
    fits = matcher({name: value for name, value in tree(wanted).items() if name in {"from", "to"}})
    return lambda file: fits(file[field_])
