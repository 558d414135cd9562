"""Leads, contacts, companies and customers, and writes to them that are being checked."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from workbench.sandboxes.amocrm.account import KINDS, AmoCrmAccount, Kind
from workbench.sandboxes.amocrm.bodies import ContactBody, CustomerBody, EntityBody, LeadBody
from workbench.sandboxes.amocrm.calls import Mistake, not_supported
from workbench.sandboxes.amocrm.custom_fields import Filled, fill


@dataclass(slots=True, eq=False)
class Entity:
    """A lead, contact, company or customer.

    `fields` are the plain ones as they are read; `links` lead to is_main, `elements` of catalogs to what the link
    says; `tags` are by id, `segments` are ids.
    """

    kind: Kind
    fields: dict[str, Any]
    custom_fields: dict[int, Filled] = field(default_factory=dict)
    tags: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    links: dict[Kind, dict[int, bool]] = field(default_factory=lambda: {kind: {} for kind in KINDS})
    elements: dict[int, dict[str, Any]] = field(default_factory=dict)
    segments: list[int] = field(default_factory=list)

    @property
    def id(self) -> int:
        """The id among its kind."""
        return int(self.fields["id"])

    def __getitem__(self, name: str) -> Any:
        """A plain field."""
        return self.fields[name]


@dataclass(slots=True)
class Draft:
    """A write that is being checked: what it makes of its `entity` (None: a new one), and what is wrong with it."""

    kind: Kind
    body: EntityBody
    entity: Entity | None
    fields: dict[str, Any] = field(default_factory=dict)
    custom_fields: dict[int, Filled | None] = field(default_factory=dict)
    mistakes: list[Mistake] = field(default_factory=list)

    def sent(self, *names: str) -> Mapping[str, Any]:
        """Those of the named fields that were sent, with their values."""
        return {name: getattr(self.body, name) for name in names if name in self.body.model_fields_set}

    def check(self, account: AmoCrmAccount) -> None:
        """Find out what the write makes of the plain and the custom fields."""
        self.fields |= self.sent("name", "created_at", "updated_at", "closed_at", "loss_reason_id")
        users = {user.id for user in account.users}
        for name, user_id in self.sent("responsible_user_id", "created_by", "updated_by").items():
            if user_id in users or (user_id == 0 and name != "responsible_user_id"):
                self.fields[name] = user_id
            else:
                self.mistakes.append(not_supported(name))
        given = self.body.custom_fields_values or ()
        self.custom_fields = fill(account.custom_fields.get(self.kind, ()), given, self.mistakes)
        if isinstance(self.body, LeadBody):
            self._check_lead(account, self.body)
        if isinstance(self.body, ContactBody):
            self._check_names()
        if isinstance(self.body, CustomerBody):
            self.fields |= self.sent("next_price", "next_date", "periodicity", "status_id")

    def _check_lead(self, account: AmoCrmAccount, body: LeadBody) -> None:
        if body.price is not None:
            self.fields |= {"price": int(body.price), "price_with_minor_units": body.price}
        if self.entity and not self.sent("status_id", "pipeline_id"):
            return
        stage = _stage(account, self.entity, body.status_id, body.pipeline_id)
        if isinstance(stage, Mistake):
            self.mistakes.append(stage)
        else:
            self.fields["pipeline_id"], self.fields["status_id"] = stage

    def _check_names(self) -> None:
        # A contact has a whole name and its parts; whichever is sent makes the other.
        self.fields |= self.sent("first_name", "last_name")
        before = self.entity.fields if self.entity else {}
        parts = [self.fields.get(name, before.get(name)) for name in ("first_name", "last_name")]
        if self.sent("first_name", "last_name"):
            self.fields.setdefault("name", " ".join(filter(None, parts)))
        elif self.sent("name"):
            self.fields |= {"first_name": self.fields["name"], "last_name": ""}


def _stage(
    account: AmoCrmAccount, lead: Entity | None, status_id: int | None, pipeline_id: int | None
) -> tuple[int, int] | Mistake:
    """Find the stage that is meant: a status alone leads to its pipeline, a pipeline alone to its first status."""
    pipelines = {pipeline.id: pipeline for pipeline in account.pipelines}
    if pipeline_id is not None and pipeline_id not in pipelines:
        return not_supported("pipeline_id")
    here = pipelines[pipeline_id or (lead["pipeline_id"] if lead else account.pipelines[0].id)]
    if status_id is None:
        return here.id, here.statuses[0].id
    for pipeline in (here,) if pipeline_id else (here, *pipelines.values()):
        if any(status.id == status_id for status in pipeline.all_statuses):
            return pipeline.id, status_id
    return not_supported("status_id")


def blank(account: AmoCrmAccount, kind: Kind, id_: int, by: int, now: int) -> dict[str, Any]:
    """Return a new entity's fields."""
    of_kind: Mapping[Kind, dict[str, Any]] = {
        "leads": {
            "price": 0,
            "price_with_minor_units": 0.0,
            "status_id": None,
            "pipeline_id": None,
            "loss_reason_id": None,
            "closed_at": None,
            "score": None,
            "source_id": None,
            "is_price_modified_by_robot": False,
        },
        "contacts": {"first_name": "", "last_name": "", "is_unsorted": False},
        "companies": {},
        "customers": {
            "next_price": 0,
            "next_date": None,
            "status_id": None,
            "periodicity": 0,
            "ltv": 0,
            "purchases_count": 0,
            "average_check": 0,
        },
    }
    return {
        "id": id_,
        "name": "",
        "responsible_user_id": by or account.users[0].id,
        "group_id": 0,
        "created_by": by,
        "updated_by": by,
        "created_at": now,
        "updated_at": now,
        "closest_task_at": None,
        "is_deleted": False,
        "account_id": account.id,
        **of_kind[kind],
    }
