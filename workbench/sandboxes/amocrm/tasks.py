"""Tasks, and the cards that they hang on."""

from collections.abc import Callable, Sequence

from workbench.sandboxes.amocrm.account import KINDS
from workbench.sandboxes.amocrm.calls import Call, Mistake, not_supported
from workbench.sandboxes.amocrm.drafts import Entity
from workbench.sandboxes.amocrm.entities import Entities
from workbench.sandboxes.amocrm.filters import Test, matcher, stages
from workbench.sandboxes.amocrm.journal import Journal, Subject
from workbench.sandboxes.amocrm.services import TASKS
from workbench.sandboxes.amocrm.tables import Record, Table


class Tasks(Table):
    """The tasks of an account."""

    def __init__(self, entities: Entities, journal: Journal, hex_id: Callable[[], str]) -> None:
        testers = {"task_type": _of_type, "lead_statuses": self._of_leads_in}
        super().__init__(TASKS, hex_id, check=self._wrong, told=self._hear, testers=testers)
        self._entities = entities
        self._journal = journal

    def _wrong(self, call: Call, sent: Record, task: Record | None) -> Sequence[Mistake]:
        users = {user.id for user in call.account.users}
        if task is None:
            sent.setdefault("responsible_user_id", call.by or call.account.users[0].id)
        mistakes = []
        if "responsible_user_id" in sent and sent["responsible_user_id"] not in users:
            mistakes.append(not_supported("responsible_user_id"))
        whole = {**(task or {}), **sent}
        if (whole.get("entity_id") is None) != (whole.get("entity_type") is None):
            mistakes.append(Mistake("FieldMissing", "entity_type", "An entity has an id and a type."))
        elif whole.get("entity_id") and not self._card(whole):
            mistakes.append(Mistake("NotFound", "entity_id", "Entity not found"))
        return mistakes

    def _hear(self, call: Call, verb: str, task: Record) -> None:
        card = self._card(task)
        if card:
            open_tasks = [
                each for each in self.records.values() if self._card(each) is card and not each["is_completed"]
            ]
            card.fields["closest_task_at"] = min((each["complete_till"] for each in open_tasks), default=None)
        about = Subject("task", task["id"], call.account.id)
        if verb == "added":
            self._journal.write("task_added", about, call.by)
        if task["is_completed"] and not task.get("_told"):
            task["_told"] = True
            self._journal.write("task_completed", about, call.by)

    def _card(self, task: Record) -> Entity | None:
        kind = next((kind for kind in KINDS if kind == task.get("entity_type")), None)
        return self._entities.find(kind, task["entity_id"]) if kind else None

    def _of_leads_in(self, wanted: object) -> Test[Record]:
        meant = stages(wanted)

        def fits(task: Record) -> bool:
            card = self._card(task)
            return (
                card is not None
                and card.kind == "leads"
                and (str(card["pipeline_id"]), str(card["status_id"])) in meant
            )

        return fits


def _of_type(wanted: object) -> Test[Record]:
    fits = matcher(wanted)
    return lambda task: fits(task["task_type_id"])
