"""amoCRM's hooks: whatever was captured in the wild is read, and whatever a stranger makes up raises nothing."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args
from urllib.parse import quote_plus

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from crm_relay.amocrm.hooks import (
    Action,
    CustomField,
    CustomFieldValue,
    Entity,
    Hook,
    HookEvent,
    read_account,
    read_hook,
)
from crm_relay.brackets import TooComplex, Tree, decode, encode

# Captured bodies and amoCRM's own samples, decoded, a field each; people's names and addresses are made up.
CAPTURED: Mapping[str, Sequence[str]] = json.loads(
    (Path(__file__).parents[1] / "fixtures/amocrm_hooks.json").read_text("utf-8")
)


def wire(fields: Sequence[str]) -> bytes:
    return "&".join("=".join(map(quote_plus, field.split("=", 1))) for field in fields).encode()


def read(tree: Mapping[str, Any]) -> Hook:
    """Read a tree as it arrives: through the form, where every value is a string."""
    return read_hook(decode(encode(tree).encode()))


def only(hook: Hook) -> HookEvent:
    (event,) = hook.events
    assert hook.unreadable == 0
    return event


# What was captured


@pytest.mark.parametrize(
    ("name", "account", "entity", "action", "id_"),
    [
        ("a lead added", (16700680, "example1"), "lead", "add", "30052055"),
        ("a lead updated by a robot", (16700680, "example1"), "lead", "update", "30052055"),
        ("a lead deleted", (16700680, "example1"), "lead", "delete", "30052055"),
        ("b lead updated", (32427762, "example2"), "lead", "update", "32966269"),
        ("c contact updated", (32427762, "example2"), "contact", "update", "37054081"),
        ("c contact added", (32427762, "example2"), "contact", "add", "37054081"),
        ("d lead noted", (15109720, "example3"), "note", "add", "213313359"),
        ("e lead noted", (None, ""), "note", "add", "4600471"),
        ("f lead moved", (None, ""), "lead", "status", "15318175"),
        ("f contact with a radio button and a birthday", (32427762, "example2"), "contact", "update", "15319605"),
        ("f company with linked leads", (32427762, "example2"), "company", "update", "15319603"),
        ("f lead moved in 2018", (20067000, "example7"), "lead", "status", "10701093"),
        ("g message", (31579862, "example4"), "message", "add", "b26bbe6d-a691-4a8b-b269-29df5fb9dbea"),
        ("g message with an attachment", (31579862, "example4"), "message", "add", None),
        ("g talk added", (31579862, "example4"), "talk", "add", "106564"),
        ("h task completed", (None, ""), "task", "update", "1564845"),
        ("i lead moved, digital pipeline", (30307558, "example5"), "lead", "status", "10754147"),
        ("j lead added, digital pipeline", (32491523, "example6"), "lead", "add", "22791302"),
        ("k incoming lead accepted", (None, ""), "unsorted", "delete", None),
        ("k incoming lead declined", (None, ""), "unsorted", "delete", None),
    ],
)
def test_a_captured_hook_is_one_event(
    name: str, account: tuple[int | None, str], entity: str, action: str, id_: str | None
) -> None:
    """Both kinds of hook, old and new, with the account first, last or missing."""
    hook = read_hook(decode(wire(CAPTURED[name])))
    event = only(hook)
    assert (hook.account_id, hook.subdomain) == account == read_account(wire(CAPTURED[name]))
    assert (event.entity, event.action, event.id) == (entity, action, id_ or event.id)


def test_every_captured_hook_is_tried() -> None:
    """The table above misses none."""
    (marks,) = test_a_captured_hook_is_one_event.pytestmark  # type: ignore[attr-defined]
    assert {row[0] for row in marks.args[1]} == set(CAPTURED)


def captured(name: str) -> HookEvent:
    return only(read_hook(decode(wire(CAPTURED[name]))))


def test_who_changed_it_and_when() -> None:
    """A person, a robot or the API (0), or nobody that the hook would name; a note says it in its own words."""
    assert (captured("b lead updated").modified_by, captured("b lead updated").modified_at) == (10000698, 1748268812)
    assert (captured("a lead updated by a robot").modified_by, captured("a lead deleted").modified_by) == (0, None)
    assert captured("i lead moved, digital pipeline").modified_at is None
    assert (captured("d lead noted").modified_by, captured("d lead noted").modified_at) == (1608151, 1601242011)
    assert captured("k incoming lead accepted").modified_by == 11087123


def test_a_task_tells_its_time_in_two_ways() -> None:
    """Its last_modified is a local date, which nobody can place; its updated_at counts."""
    task = captured("h task completed")
    assert task.fields["last_modified"] == "2024-09-17 13:21:09"
    assert task.modified_at == 1726579269


def test_a_note_knows_what_it_hangs_on() -> None:
    """By its own element_type, else by what amoCRM wrote around it."""
    note = {"id": 7, "element_id": 5}
    assert captured("d lead noted").of == ("lead", "22060555")
    for prefix, more, parent in [
        ("leads", {}, "lead"),
        ("contacts", {}, "contact"),
        ("contacts", {"type": "company"}, "company"),
        ("customers", {}, "customer"),
    ]:
        assert only(read({prefix: {"note": [{"note": note, **more}]}})).of == (parent, "5")
        assert only(read({prefix: {"note": [{**note, **more}]}})).of == (parent, "5")
    for element_type, parent in [(1, "contact"), (2, "lead"), (3, "company"), (12, "customer"), (4, "contact")]:
        tree = {"contacts": {"note": [{"note": {**note, "element_type": element_type}}]}}
        assert only(read(tree)).of == (parent, "5")


@pytest.mark.parametrize("lost", ["id", "element_id"])
def test_a_note_without_its_ids_is_unreadable(lost: str) -> None:
    """A note that cannot be named, or hangs on nothing, is counted."""
    note = {"id": "7", "element_id": "5"} | {lost: "0"}
    assert read({"leads": {"note": [{"note": note}]}}) == Hook(None, "", (), 1)


# Every name and action


@pytest.mark.parametrize(
    ("prefix", "entity", "key", "id_"),
    [
        ("leads", "lead", "id", "5"),
        ("contacts", "contact", "id", "5"),
        ("customers", "customer", "id", "5"),
        ("task", "task", "id", "5"),
        ("unsorted", "unsorted", "uid", "f575b754b0d1eb1c"),
        ("message", "message", "id", "b26bbe6d-a691-4a8b-b269-29df5fb9dbea"),
        ("outgoing_message", "message", "id", "b26bbe6d-a691-4a8b-b269-29df5fb9dbea"),
        ("talk", "talk", "talk_id", "166"),
        ("catalogs", "catalog_element", "id", "5"),
    ],
)
@pytest.mark.parametrize("action", get_args(Action))
def test_every_kind_of_entity_and_action_is_read(prefix: str, entity: str, key: str, id_: str, action: str) -> None:
    """Each has its name on the wire, and its own key for the id."""
    event = only(read({prefix: {action: [{key: id_}]}}))
    assert (event.entity, event.action, event.id, event.of) == (entity, action, id_, None)


def test_entities_are_all_there_are() -> None:
    """What an event may be about."""
    assert set(get_args(Entity)) == {
        *("lead", "contact", "company", "customer", "task", "note", "unsorted", "message", "talk", "catalog_element")
    }


def test_a_message_without_the_name_around_it() -> None:
    """One client saw messages at the top."""
    message = {"id": "b26bbe6d", "text": "x"}
    assert read({"add": [message]}).events == read({"message": {"add": [message]}}).events


def test_a_company_comes_among_the_contacts() -> None:
    """Also when it was deleted, which tells nothing else of it."""
    events = read({"contacts": {"delete": [{"id": 5, "type": "company"}, {"id": 6, "type": "contact"}]}}).events
    assert [(event.entity, event.id) for event in events] == [("company", "5"), ("contact", "6")]


def test_b16_all_entities_and_actions_of_a_hook_are_read() -> None:
    """B16: a bulk change and others beside it, in the order in which they came."""
    hook = read(
        {
            "leads": {"update": [{"id": 1}, {"id": 2}], "status": {3: {"id": 1}, 17: {"id": 4}}},
            "contacts": {"add": [{"id": 5, "type": "company"}]},
            "account": {"id": 9, "subdomain": "example"},
        }
    )
    assert [(event.entity, event.action, event.id) for event in hook.events] == [
        ("lead", "update", "1"),
        ("lead", "update", "2"),
        ("lead", "status", "1"),
        ("lead", "status", "4"),
        ("company", "add", "5"),
    ]
    assert (hook.account_id, hook.subdomain, hook.unreadable) == (9, "example", 0)


@pytest.mark.parametrize(
    "entries",
    [
        [[{"id": 5}]],
        {0: {0: {"id": 5}}},
        {7: {3: {"id": 5}}},
        [{0: [{"id": 5}]}],
    ],
)
def test_indices_may_be_sparse_or_nested(entries: object) -> None:
    """A sample of amoCRM's nests tasks once more."""
    assert only(read({"task": {"update": entries}})).id == "5"


def test_b17_what_is_not_known_is_no_event() -> None:
    """B17: other names, other actions, entries that are none."""
    tree = {
        "cows": {"add": [{"id": 1}]},
        "leads": {"milk": [{"id": 1}], "mail_in": [{"id": 2}], "add": {"id": 3}, "update": "4"},
        "talk": "1",
        "add": "5",
    }
    assert read(tree) == read({}) == Hook(None, "", (), 0)


@pytest.mark.parametrize(
    "id_",
    [
        "0",
        "-1",
        "1e3",
        "1" * 19,
        "9" * 30,
        "",
        " 5",
        "5 ",
        "+5",
        "05",
        "5.0",
        "٥",
        "²",
        "5\n",
        "five",
        ["5"],
        {"a": "5"},
    ],
    ids=repr,
)
def test_b18_an_id_that_cannot_be_is_counted_and_not_guessed(id_: object) -> None:
    """B18: and it costs the other entries of the hook nothing."""
    hook = read({"leads": {"update": [{"id": id_, "name": "x"}, {"id": "6"}]}})
    assert [event.id for event in hook.events] == ["6"]
    assert hook.unreadable == 1


@pytest.mark.parametrize("entry", ["x", {"name": "no id"}, {"uid": "5"}, [["x"]]])
def test_an_entry_without_an_id_is_counted(entry: object) -> None:
    """Whatever stands in its place."""
    assert read({"leads": {"add": [entry]}}) == Hook(None, "", (), 1)


@pytest.mark.parametrize("id_", ["../x", "a b", "x" * 101, "", "я", "a\n"])
def test_a_text_that_is_no_uid_is_no_id(id_: str) -> None:
    """A uid goes into keys, so it is letters, digits and hyphens."""
    assert read({"unsorted": {"add": [{"uid": id_}]}}).unreadable == 1
    assert read({"message": {"add": [{"id": id_}]}}).unreadable == 1


# The account


@pytest.mark.parametrize("id_", ["-1", "1e3", "", " 5", "²", "9" * 19, ["5"], {"a": "5"}], ids=repr)
def test_an_account_id_that_cannot_be_is_none(id_: object) -> None:
    """It then matches no account."""
    assert read({"account": {"id": id_}}).account_id is None
    assert read({"account": "5"}).account_id is None


@pytest.mark.parametrize(
    "subdomain",
    ["evil.com/", "x@evil", "evil.com#", "EVIL", "a.b", "", "-a", "a" * 64, "a\n", "я", ["example"], {"a": "x"}],
    ids=repr,
)
def test_b05_a_subdomain_that_cannot_be_is_empty(subdomain: object) -> None:
    """B05: it then matches no account; where we go is never taken from here anyway."""
    assert read({"account": {"subdomain": subdomain}}).subdomain == ""


# Custom fields


def test_custom_fields_in_all_their_shapes() -> None:
    """A text, a choice, a date as a bare number, a radio button as one object, a UTM field without values."""
    assert captured("f lead moved").custom_fields == (
        CustomField("1118164", "Benefit", None, (CustomFieldValue("1000"),)),
        CustomField("1246489", "Select", None, (CustomFieldValue("2", "908107"),)),
        CustomField("1246491", "Date", None, (CustomFieldValue("1725915600"),)),
    )
    assert captured("f contact with a radio button and a birthday").custom_fields == (
        CustomField("782386", "Birthday", None, (CustomFieldValue("12.01.1980"),)),
        CustomField("791730", "Any radiobutton", None, (CustomFieldValue("2", "566642"),)),
        CustomField("791732", "utm_source", "UTM_SOURCE", ()),
    )
    assert captured("c contact updated").custom_fields[1] == CustomField(
        "735649", "Телефон", "PHONE", (CustomFieldValue("333", "718321"),)
    )
    assert captured("i lead moved, digital pipeline").custom_fields == ()


@pytest.mark.parametrize(
    ("values", "read_as"),
    [
        ([{"value": "a"}, {"value": "b", "enum": "2"}], (CustomFieldValue("a"), CustomFieldValue("b", "2"))),
        ({3: {"value": "a"}, 7: {"value": "b"}}, (CustomFieldValue("a"), CustomFieldValue("b"))),
        ({4: "1729717200"}, (CustomFieldValue("1729717200"),)),
        ("1729717200", (CustomFieldValue("1729717200"),)),
        ([{"value": {"name": "ООО", "vat_id": "77"}}], (CustomFieldValue({"name": "ООО", "vat_id": "77"}),)),
        ([{"value": ""}], (CustomFieldValue(""),)),
        ([{"enum": "5"}, {"catalog_id": "1"}], ()),
        ([["a"]], ()),
    ],
)
def test_values_of_a_field(values: object, read_as: tuple[CustomFieldValue, ...]) -> None:
    """Sparse, scalar or with parts; what is no value is none."""
    (field,) = only(read({"leads": {"add": [{"id": 5, "custom_fields": [{"id": 1, "values": values}]}]}})).custom_fields
    assert field == CustomField("1", "", None, read_as)


@pytest.mark.parametrize("fields", ["x", {"id": 1}, ["x"], [[["x"]]]])
def test_custom_fields_that_are_none(fields: object) -> None:
    """Nothing is made up."""
    assert only(read({"leads": {"add": [{"id": 5, "custom_fields": fields}]}})).custom_fields == ()


# Whatever comes


NAMES = ("account", "leads", "contacts", "task", "talk", "message", "unsorted", "custom_fields", "values", "note")
WORDS = st.sampled_from((*NAMES, "add", "update", "status", "id", "uid", "talk_id", "type", "subdomain", "element_id"))
KEYS = st.one_of(WORDS, WORDS, st.sampled_from(["0", "1", "7"]), st.text(max_size=3))
LEAVES = st.one_of(st.sampled_from(["5", "0", "company", "example", "1729717200"]), st.text(max_size=5))


def grown(children: st.SearchStrategy[Tree]) -> st.SearchStrategy[Tree]:
    return st.one_of(st.lists(children, max_size=3), st.dictionaries(KEYS, children, max_size=4))


@given(st.dictionaries(KEYS, st.recursive(LEAVES, grown, max_leaves=40), max_size=5))
def test_any_tree_makes_a_hook(tree: dict[str, Tree]) -> None:
    """Nothing that a form can hold raises, neither now nor when an event is looked at."""
    look_at(read_hook(tree))


@given(st.lists(st.tuples(st.lists(KEYS, min_size=1, max_size=7), LEAVES), max_size=20))
@example([(["account", "id"], "5"), (["account"], "x")])
@example([(["account"], "x"), (["account", "id"], "5")])
@example([(["account", "id"], "5"), (["account.id"], "6")])
def test_any_form_makes_a_hook(fields: list[tuple[list[str], str]]) -> None:
    """The same from the wire, and the account is the same when it is read alone.

    Not where a name has blanks before it or letters escaped, as no CRM writes it: then only the whole form has it.
    """
    names = ["".join([path[0], *(f"[{key}]" for key in path[1:])]) for path, _ in fields]
    body = "&".join(f"{quote_plus(name)}={quote_plus(value)}" for name, (_, value) in zip(names, fields, strict=True))
    hook = read_hook(decode(body.encode()))
    look_at(hook)
    assert read_account(body.encode()) == (hook.account_id, hook.subdomain)


def test_of_an_account_no_more_is_read_than_amocrm_says() -> None:
    """Whoever is not the account is told so before his hook is read, however long it is."""
    with pytest.raises(TooComplex):
        read_account(b"account[id]=" + b"%31" * 10_000)


def look_at(hook: Hook) -> None:
    for event in hook.events:
        assert event.id.isascii()
        assert event.modified_by is None or event.modified_by >= 0
        assert event.modified_at is None or event.modified_at >= 0
        for field in event.custom_fields:
            assert all(value.enum != "" for value in field.values)


def test_an_event_does_not_show_what_it_carries() -> None:
    """Printed by accident, it tells no name and no phone."""
    event = only(read({"leads": {"add": [{"id": 5, "name": "Имя", "custom_fields": [{"id": 1, "name": "+7900"}]}]}}))
    assert "Имя" not in repr(event)
