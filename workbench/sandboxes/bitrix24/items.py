"""Deals, contacts and companies: crm.item.*, their stages and the history of these."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

from workbench.sandboxes.bitrix24.calls import Answer, Call, Method, Methods, Refused, as_int, as_list
from workbench.sandboxes.bitrix24.fields import (
    Field,
    described,
    described_user_fields,
    fields_of,
    file_id,
    read_value,
    shown_time,
)
from workbench.sandboxes.bitrix24.files import Files
from workbench.sandboxes.bitrix24.lists import chosen, listed, page
from workbench.sandboxes.bitrix24.portal import COMPANY, CONTACT, DEAL, ENTITY_NAMES, Bitrix24Portal
from workbench.sandboxes.bitrix24.switches import Bitrix24Switches

_CRM = frozenset({"crm"})
_HISTORY = ("ID", "TYPE_ID", "OWNER_ID", "CREATED_TIME", "CATEGORY_ID", "STAGE_SEMANTIC_ID", "STAGE_ID")
_USER_FIELD = ("ID", "ENTITY_ID", "FIELD_NAME", "USER_TYPE_ID", "XML_ID", "MULTIPLE", "MANDATORY")
_FM_TYPES = frozenset({"PHONE", "EMAIL", "WEB", "IM"})


@dataclass(slots=True)
class Item:
    """A deal, a contact or a company; `fields` are by name, user fields by their original one, files as ids."""

    type_id: int
    id: int
    fields: dict[str, Any]
    fm: list[dict[str, Any]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)

    def __getitem__(self, name: str) -> Any:
        return self.fields[name]


@dataclass(frozen=True, slots=True)
class Change:
    """What happened to a deal; `before` are the fields that it had, None when it is new; `by` 0 is a robot."""

    deal: Item
    by: int
    before: Mapping[str, Any] | None
    deleted: bool = False


class Items:
    """What has a card in the portal, by entityTypeId and id; `history` has the stages of deals."""

    def __init__(
        self,
        portal: Callable[[], Bitrix24Portal],
        switches: Callable[[], Bitrix24Switches],
        files: Files,
        clock: Callable[[], float],
        tell: Callable[[Change], None],
    ) -> None:
        self.present: dict[int, dict[int, Item]] = {DEAL: {}, CONTACT: {}, COMPANY: {}}
        self.history: list[dict[str, Any]] = []
        self._portal = portal
        self._switches = switches
        self._files = files
        self._clock = clock
        self._tell = tell
        self._made = dict.fromkeys(self.present, 0)
        self._fm_made = 100

    @property
    def methods(self) -> Methods:
        """crm.item.*, and what goes with it."""
        runs: dict[str, Callable[[Call], Answer]] = {
            "crm.item.get": lambda call: Answer({"item": self._shown(call, self._called(call))}),
            "crm.item.add": self._add,
            "crm.item.update": self._update,
            "crm.item.delete": self._delete,
            "crm.item.list": self._list,
            "crm.item.fields": self._fields,
            "crm.deal.contact.items.get": self._contacts,
            "crm.duplicate.findbycomm": self._duplicates,
            "crm.stagehistory.list": self._history,
        }
        for type_id, name in ENTITY_NAMES.items():
            runs[f"crm.{name.lower()}.userfield.list"] = partial(self._user_fields, type_id)
        return {name: Method(run, _CRM) for name, run in runs.items()}

    # What people and programs do

    def add(self, type_id: int, sent: Mapping[str, Any], by: int) -> Item:
        """Make an item of fields by their names. Refused if a value is not valid or a mandatory one is missing."""
        portal = self._portal()
        now = shown_time(portal, self._clock())
        fields = {name: known.empty for name, known in self._known(type_id).items()}
        assigned = by or portal.users[0].id
        fields |= {
            "createdTime": now,
            "updatedTime": now,
            "lastActivityTime": now,
            "createdBy": by,
            "updatedBy": by,
            "assignedById": assigned,
            "opened": "Y",
        }
        if type_id == DEAL:
            fields |= {"currencyId": portal.currency, "opportunity": 0.0, "isManualOpportunity": "N", "taxValue": 0.0}
            fields |= {"isRecurring": "N", "closed": "N", "isReturnCustomer": "N", "movedTime": now, "movedBy": by}
        item = Item(type_id, 0, fields)
        changes = self._draft(item, sent)
        missing = [
            known
            for known in self._known(type_id).values()
            if known.required and changes.get(known.name, known.empty) == known.empty
        ]
        if missing:
            raise Refused("CRM_FIELD_ERROR_REQUIRED", f"Field '{missing[0].title}' is required")
        self._made[type_id] += 1
        item.id = fields["id"] = self._made[type_id]
        self._apply(item, changes, sent, by)
        if type_id == DEAL and not item["title"]:
            fields["title"] = f"Сделка #{item.id}"
        self.present[type_id][item.id] = item
        if type_id == DEAL:
            self._remember_stage(item, 1)
            self._tell(Change(item, by, None))
        return item

    def change(self, item: Item, sent: Mapping[str, Any], by: int) -> None:
        """Change the fields that are named, and no others. Refused as in `add`."""
        before = dict(item.fields)
        self._apply(item, self._draft(item, sent), sent, by)
        portal = self._portal()
        now = shown_time(portal, self._clock())
        item.fields |= {"updatedTime": now, "updatedBy": by}
        if item.type_id != DEAL:
            return
        if item["stageId"] != before["stageId"]:
            item.fields |= {"previousStageId": before["stageId"], "movedTime": now, "movedBy": by}
            self._remember_stage(item, 3 if item["closed"] == "Y" else 2)
        self._tell(Change(item, by, before))

    def delete(self, item: Item, by: int) -> None:
        """Delete an item."""
        del self.present[item.type_id][item.id]
        if item.type_id == DEAL:
            self._tell(Change(item, by, dict(item.fields), deleted=True))

    def attach(self, item: Item, name: str, file_name: str, content: bytes) -> int:
        """Put a file into a field, beside those that a multiple field has. KeyError if it is no field for files."""
        known = self._known(item.type_id)[name]
        if known.type != "file":
            raise KeyError(name)
        number = self._files.put(file_name, content)
        item.fields[name] = [*item[name], number] if known.multiple else number
        return number

    def find(self, type_id: int, item_id: int) -> Item:
        """The item. Refused if there is none."""
        item = self.present.get(type_id, {}).get(item_id)
        if item is None:
            raise Refused("NOT_FOUND", "Element not found")
        return item

    # Drafts: all is checked before anything is written

    def _draft(self, item: Item, sent: Mapping[str, Any]) -> dict[str, Any]:
        known = self._known(item.type_id)
        portal = self._portal()
        changes = {
            name: self._read_files(item, known[name], value)
            if known[name].type == "file"
            else read_value(portal, known[name], value)
            for name, value in sent.items()
            if name in known and not known[name].read_only
        }
        if item.type_id == DEAL:
            self._draft_stage(item, changes)
        self._draft_links(known, changes)
        return changes

    def _read_files(self, item: Item, known: Field, sent: Any) -> Any:
        largest = self._portal().largest_file
        if not known.multiple:
            if file_id(sent) == item[known.name] and item[known.name] is not None:
                return item[known.name]
            return self._files.take(sent, largest)
        parts = as_list(sent)
        if len(parts) == 2 and all(isinstance(part, str) for part in parts):
            parts = [parts]
        kept = (
            file_id(part) if file_id(part) in item[known.name] else self._files.take(part, largest) for part in parts
        )
        return [number for number in kept if number is not None]

    def _draft_stage(self, deal: Item, changes: dict[str, Any]) -> None:
        portal = self._portal()
        old = deal["categoryId"] or 0
        category = portal.category(changes.get("categoryId", old) or 0)
        if category is None:
            raise Refused("CRM_FIELD_ERROR_VALUE_NOT_VALID", "Invalid value of field 'Category'")
        stays = deal["stageId"] if category.id == old else None
        stage_id = changes.get("stageId") or stays or category.stages[0].id
        stage = next((stage for stage in category.stages if stage.id == stage_id), None)
        if stage is None:
            raise Refused("CRM_FIELD_ERROR_VALUE_NOT_VALID", "Invalid value of field 'Stage'")
        changes |= {"categoryId": category.id, "stageId": stage.id, "stageSemanticId": stage.semantics or "P"}
        changes["closed"] = "Y" if stage.semantics else "N"

    def _draft_links(self, known: Mapping[str, Field], changes: dict[str, Any]) -> None:
        for one, many, type_id in (("contactId", "contactIds", CONTACT), ("companyId", "companyIds", COMPANY)):
            # The first of several is the primary one; a deal has one company alone, a company no primary contact.
            if many in changes and one in known:
                changes[one] = changes[many][0] if changes[many] else 0
            elif one in changes and many in known:
                changes[many] = [changes[one]] if changes[one] else []
            for linked in {changes.get(one, 0), *changes.get(many, ())} - {0}:
                if linked not in self.present[type_id]:
                    raise Refused("CRM_FIELD_ERROR_VALUE_NOT_VALID", f"Invalid value of field '{one}': {linked}")

    def _apply(self, item: Item, changes: Mapping[str, Any], sent: Mapping[str, Any], by: int) -> None:
        item.fields |= changes
        item.fields["updatedBy"] = by
        if item.type_id != DEAL and "fm" in sent:
            self._write_fm(item, sent["fm"])
            kinds = {each["typeId"] for each in item.fm}
            item.fields |= {"hasPhone": "Y" if "PHONE" in kinds else "N", "hasEmail": "Y" if "EMAIL" in kinds else "N"}

    def _write_fm(self, item: Item, sent: Any) -> None:
        entries = sent.items() if isinstance(sent, dict) else ((None, each) for each in as_list(sent))
        for key, entry in entries:
            if not isinstance(entry, dict):
                continue
            number = as_int(key) or as_int(entry.get("id"))
            here = next((each for each in item.fm if each["id"] == number), None)
            value = str(entry.get("value", here["value"] if here else "")).strip()
            if here:
                here.update({"valueType": entry.get("valueType", here["valueType"]), "value": value})
                if not value:
                    item.fm.remove(here)
            elif value and entry.get("typeId") in _FM_TYPES:
                self._fm_made += 1
                kind = {"valueType": entry.get("valueType", "WORK"), "value": value, "typeId": entry["typeId"]}
                item.fm.append({"id": self._fm_made, **kind})

    def _remember_stage(self, deal: Item, kind: int) -> None:
        self.history.append(
            {
                "ID": 1_000 + len(self.history),
                "TYPE_ID": kind,
                "OWNER_ID": deal.id,
                "CREATED_TIME": shown_time(self._portal(), self._clock()),
                "CATEGORY_ID": deal["categoryId"],
                "STAGE_SEMANTIC_ID": deal["stageSemanticId"],
                "STAGE_ID": deal["stageId"],
            }
        )

    # As callers see it

    def _known(self, type_id: int) -> dict[str, Field]:
        return fields_of(self._portal(), type_id)

    def _type(self, call: Call) -> int:
        type_id = call.number("entityTypeId")
        if type_id not in self.present:
            raise Refused("NOT_FOUND", "SPA not found")
        return type_id

    def _called(self, call: Call) -> Item:
        return self.find(self._type(call), call.number("id"))

    def _named(self, call: Call, type_id: int) -> dict[str, Any]:
        """Return the sent fields by their inner names: what nobody knows is dropped without a word."""
        if not isinstance(call.required("fields"), dict | list):
            raise Refused("100", "Parameter {fields} must be array")
        original = call.flag("useOriginalUfNames")
        names = {known.shown(original): name for name, known in self._known(type_id).items()} | {"fm": "fm"}
        return {names[name]: value for name, value in call.mapping("fields").items() if name in names}

    def _add(self, call: Call) -> Answer:
        type_id = self._type(call)
        item = self.add(type_id, self._named(call, type_id), call.caller.user_id)
        return Answer({"item": self._shown(call, item)})

    def _update(self, call: Call) -> Answer:
        item = self._called(call)
        self.change(item, self._named(call, item.type_id), call.caller.user_id)
        return Answer({"item": self._shown(call, item)})

    def _delete(self, call: Call) -> Answer:
        self.delete(self._called(call), call.caller.user_id)
        return Answer([])

    def _list(self, call: Call) -> Answer:
        type_id = self._type(call)
        original = call.flag("useOriginalUfNames")
        hidden = set() if self._switches().origin_can_be_filtered else {"originatorId", "originId"}
        names = {
            known.shown(original): name
            for name, known in self._known(type_id).items()
            if known.type != "file" and name not in hidden
        }
        present = self.present[type_id]
        shown, total, following = page(call, chosen(call, (item.fields for item in present.values()), names))
        wanted = {str(name) for name in as_list(call.params.get("select"))}
        whole = not wanted or "*" in wanted
        rows = [
            {
                name: value
                for name, value in self._shown(call, present[fields["id"]], None if whole else wanted | {"id"}).items()
                if name != "fm" or "*" in wanted
            }
            for fields in shown
        ]
        return Answer({"items": rows}, total, following)

    def _fields(self, call: Call) -> Answer:
        original = call.flag("useOriginalUfNames")
        known = self._known(self._type(call)).values()
        return Answer({"fields": {each.shown(original): described(each) for each in known}})

    def _user_fields(self, type_id: int, call: Call) -> Answer:
        rows = described_user_fields(ENTITY_NAMES[type_id], [*self._known(type_id).values()])
        return listed(call, rows, _USER_FIELD)

    def _shown(self, call: Call, item: Item, names: set[str] | None = None) -> dict[str, Any]:
        original = call.flag("useOriginalUfNames")
        shown = {}
        for name, known in self._known(item.type_id).items():
            label = known.shown(original)
            if names is None or label in names:
                shown[label] = self._linked(call, item, known) if known.type == "file" else item[name]
        if names is None:
            shown |= {"fm": [dict(each) for each in item.fm]} if item.type_id != DEAL else {}
            shown["entityTypeId"] = item.type_id
        return shown

    def _linked(self, call: Call, item: Item, known: Field) -> Any:
        seconds = self._portal().link_seconds
        place = {"entityTypeId": item.type_id, "id": item.id, "fieldName": known.camel}
        numbers = item[known.name] if known.multiple else [item[known.name]]
        links = [self._files.links(number, place, call.origin, seconds) for number in numbers if number is not None]
        return links if known.multiple else next(iter(links), None)

    def _contacts(self, call: Call) -> Answer:
        deal = self.present[DEAL].get(as_int(call.params.get("id")) or 0)
        if deal is None:
            raise Refused("", "Not found")
        return Answer(
            [
                {"CONTACT_ID": id_, "SORT": 10 * place, "ROLE_ID": 0, "IS_PRIMARY": "Y" if place == 1 else "N"}
                for place, id_ in enumerate(deal["contactIds"], start=1)
            ]
        )

    def _duplicates(self, call: Call) -> Answer:
        kind = call.params.get("type")
        if kind not in {"PHONE", "EMAIL"}:
            raise Refused("Communication type is not defined")
        wanted = {_compared(kind, str(value)) for value in as_list(call.params.get("values"))[:20]} - {""}
        if not wanted:
            raise Refused("Communication values is not defined")
        only = str(call.params.get("entity_type", "")).upper()
        found = {}
        for type_id in (CONTACT, COMPANY):
            name = ENTITY_NAMES[type_id]
            ids = [
                item.id
                for item in self.present[type_id].values()
                if any(each["typeId"] == kind and _compared(kind, each["value"]) in wanted for each in item.fm)
            ]
            if ids and only in {"", name}:
                found[name] = ids[:20]
        return Answer(found)

    def _history(self, call: Call) -> Answer:
        if as_int(call.params.get("entityTypeId")) != DEAL:
            raise Refused(0, "Entity type is not supported")
        return listed(call, self.history, _HISTORY, "items")


@lru_cache(100_000)
def _compared(kind: str, value: str) -> str:
    return "".join(filter(str.isdecimal, value)) if kind == "PHONE" else value.strip().casefold()
