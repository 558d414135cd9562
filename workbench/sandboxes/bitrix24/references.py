"""What a portal is furnished with, for reading: dictionaries, pipelines, people, and who the caller is."""

from collections.abc import Callable
from typing import Any

from workbench.sandboxes.bitrix24.calls import Answer, Call, Method, Methods, Refused
from workbench.sandboxes.bitrix24.fields import shown_time
from workbench.sandboxes.bitrix24.lists import listed
from workbench.sandboxes.bitrix24.portal import DEAL, Bitrix24Portal, Stage, User

_PEOPLE = frozenset({"user", "user_basic", "user_brief"})


class References:
    """crm.status.list, crm.category.list, user.*, and the methods that need no scope."""

    def __init__(self, portal: Callable[[], Bitrix24Portal]) -> None:
        self._portal = portal

    @property
    def methods(self) -> Methods:
        """By name."""
        return {
            "crm.status.list": Method(self._statuses, frozenset({"crm"})),
            "crm.category.list": Method(self._categories, frozenset({"crm"})),
            "user.get": Method(self._users, _PEOPLE),
            "user.current": Method(lambda call: Answer(_told(call, self._caller(call))), _PEOPLE),
            "profile": Method(self._profile),
            "scope": Method(lambda call: Answer(sorted(call.caller.scopes))),
            "server.time": Method(lambda call: Answer(shown_time(self._portal(), call.now))),
            "app.info": Method(self._app, of_apps=True),
        }

    def _caller(self, call: Call) -> User:
        user = self._portal().user(call.caller.user_id)
        assert user
        return user

    def _statuses(self, call: Call) -> Answer:
        if not isinstance(call.params.get("filter", {}), dict | list):
            raise Refused("Invalid parameters.")
        portal = self._portal()
        statuses: list[dict[str, Any]] = []
        for category in portal.categories:
            kind = f"DEAL_STAGE_{category.id}" if category.id else "DEAL_STAGE"
            statuses += [
                _status(kind, category.id, stage, 10 * place) for place, stage in enumerate(category.stages, 1)
            ]
        for kind, entries in portal.dictionaries.items():
            stages = [Stage(code, name) for code, name in entries.items()]
            statuses += [_status(kind, None, stage, 10 * place) for place, stage in enumerate(stages, 1)]
        rows = [{"ID": str(number)} | status for number, status in enumerate(statuses, start=1)]
        return listed(call, rows, rows[0])

    def _categories(self, call: Call) -> Answer:
        if call.number("entityTypeId") != DEAL:
            raise Refused("ENTITY_TYPE_NOT_SUPPORTED", "Entity type is not supported")
        categories = [
            {
                "id": category.id,
                "name": category.name,
                "sort": 100 * place,
                "entityTypeId": DEAL,
                "isDefault": "N" if category.id else "Y",
                "originId": "",
                "originatorId": "",
            }
            for place, category in enumerate(self._portal().categories, start=1)
        ]
        return Answer({"categories": categories}, total=len(categories))

    def _users(self, call: Call) -> Answer:
        # The filter's name has no case, and its fields may stand beside it as well.
        params = {name.lower(): value for name, value in call.params.items()}
        conditions = params.get("filter") or {
            name.upper(): value for name, value in params.items() if name in {"id", "email", "active"}
        }
        seen = Call(call.method, {**call.params, "filter": conditions}, call.caller, call.origin, call.now)
        users = [_told(call, user) | {"EMAIL": user.email} for user in self._portal().users]
        answer = listed(seen, users, [*users[0], "NAME", "LAST_NAME"])
        if call.caller.scopes.isdisjoint({"user", "user_basic"}):
            rows = answer.result
            assert isinstance(rows, list)
            return Answer([row | {"EMAIL": ""} for row in rows], answer.total, answer.following)
        return answer

    def _profile(self, call: Call) -> Answer:
        user = self._caller(call)
        return Answer(
            {
                "ID": str(user.id),
                "ADMIN": user.is_admin,
                "NAME": user.name,
                "LAST_NAME": user.last_name,
                "PERSONAL_GENDER": "",
                "TIME_ZONE": "",
            }
        )

    def _app(self, call: Call) -> Answer:
        assert call.caller.app
        return Answer(
            {
                "ID": 1,
                "CODE": call.caller.app.client_id,
                "VERSION": 1,
                "STATUS": "L",
                "INSTALLED": True,
                "PAYMENT_EXPIRED": "N",
                "DAYS": None,
                "LANGUAGE_ID": "ru",
                "LICENSE": "ru_basic",
            }
        )


def _status(kind: str, category_id: int | None, stage: Stage, sort: int) -> dict[str, Any]:
    meaning = {"S": "success", "F": "failure", None: "process"}[stage.semantics]
    return {
        "ENTITY_ID": kind,
        "STATUS_ID": stage.id,
        "NAME": stage.name,
        "NAME_INIT": "",
        "SORT": str(sort),
        "SYSTEM": "N",
        "CATEGORY_ID": None if category_id is None else str(category_id),
        "COLOR": "#39A8EF",
        "SEMANTICS": stage.semantics,
        "EXTRA": {} if category_id is None else {"SEMANTICS": meaning, "COLOR": "#39A8EF"},
    }


def _told(call: Call, user: User) -> dict[str, Any]:
    shows_mail = not call.caller.scopes.isdisjoint({"user", "user_basic"})
    return {
        "ID": str(user.id),
        "XML_ID": None,
        "ACTIVE": user.active,
        "NAME": user.name,
        "LAST_NAME": user.last_name,
        "EMAIL": user.email if shows_mail else "",
        "IS_ONLINE": "N",
        "USER_TYPE": "employee",
    }
