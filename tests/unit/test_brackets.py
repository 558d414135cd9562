"""Forms with PHP's bracket keys: read as PHP reads them, written as PHP writes them, and bounded."""

import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from crm_relay.brackets import MOST_BRACKETS, MOST_FIELDS, MOST_LEVELS, TooComplex, Tree, decode, encode, select

# Random inputs and trees with the answers of a real PHP, whose version the file names: for each input
#     parse_str($input, $tree); [$input, (object) $tree]
# and for each tree [$tree, http_build_query($tree)]; then json_encode with JSON_INVALID_UTF8_SUBSTITUTE.
PHP = json.loads((Path(__file__).parents[1] / "fixtures/php_parse_str.json").read_text("utf-8"))

BRACKETS = ("[]", "[0]", "[1]", "[x]", "[9223372036854775807]", "&a[]=", "&a[x]=", "&a[0][]=", "&a[][0]=")
PIECES = st.sampled_from((*"ab017-[]&=. +%Я", *BRACKETS, "%5B", "%5d", "%00", "%ff", "%20", "%D0%AF"))
FORMS = st.lists(PIECES, max_size=60).map(lambda pieces: "".join(pieces).encode())


def refused(body: bytes) -> str:
    with pytest.raises(TooComplex) as refusal:
        decode(body)
    return str(refusal.value)


# Reading


def test_forms_are_read_as_php_reads_them() -> None:
    """Dots, blanks, appended and overwritten keys, sparse indices, brackets that do not match: PHP decides."""
    answers = {form: decode(form.encode()) for form, _ in PHP["parse_str"]}
    assert {form: answer for form, answer in PHP["parse_str"] if answers[form] != answer} == {}
    assert len(answers) >= 450


@given(st.one_of(st.binary(), FORMS))
def test_any_bytes_make_a_tree(body: bytes) -> None:
    """Short forms have no bound to pass, and nothing else is raised."""
    tree = decode(body)
    assert_tree(tree)
    json.dumps(tree, ensure_ascii=False).encode()  # whole characters only


def assert_tree(node: object) -> None:
    assert type(node) in (str, list, dict)
    if isinstance(node, dict):
        assert all(type(name) is str for name in node)
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        assert_tree(child)


def test_a_hook_is_read_as_it_was_meant() -> None:
    """Percent-encoded brackets, `+` for a blank, UTF-8, an empty value."""
    body = b"account%5Bid%5D=5&leads%5Badd%5D%5B0%5D%5Bname%5D=%D0%9E%D0%BB%D1%8F+K&leads%5Badd%5D%5B0%5D%5Btag%5D="
    assert decode(body) == {"account": {"id": "5"}, "leads": {"add": [{"name": "Оля K", "tag": ""}]}}


def test_an_array_is_a_list_only_while_its_keys_count_up_from_0() -> None:
    """A hole, another order or a name makes a dict of it, for good, and `[]` goes on behind the highest index."""
    assert decode(b"a[]=x&a[1]=y&a[0]=z") == {"a": ["z", "y"]}
    assert decode(b"a[1]=x&a[0]=y") == {"a": {"1": "x", "0": "y"}}
    assert decode(b"a[]=x&a[2]=y&a[]=z&a[1]=w") == {"a": {"0": "x", "2": "y", "3": "z", "1": "w"}}
    assert decode(b"a[0][]=x&a[0][k]=y&a[]=z") == {"a": [{"0": "x", "k": "y"}, "z"]}
    assert decode(b"0=x&1=y") == {"0": "x", "1": "y"}


def test_b09_an_index_is_a_key_and_reserves_nothing() -> None:
    """B09: a huge index, and amoCRM's own `linked_leads_id`, make one entry each."""
    assert decode(b"leads[add][999999999][id]=1") == {"leads": {"add": {"999999999": {"id": "1"}}}}
    linked = decode(b"contacts[update][0][linked_leads_id][15319601][ID]=15319601")
    assert linked == {"contacts": {"update": [{"linked_leads_id": {"15319601": {"ID": "15319601"}}}]}}
    for name in ("9223372036854775808", "-9223372036854775809", "9" * 5000):  # no integers to PHP
        assert decode(f"a[{name}]=1&a[]=2".encode()) == {"a": {name: "1", "0": "2"}}
    least = -(2**63)  # is one
    assert decode(f"a[{least}]=1&a[]=2".encode()) == {"a": {str(least): "1", str(least + 1): "2"}}


@pytest.mark.parametrize("name", ["__proto__", "constructor", "__class__", "__init__", "next_index"])
def test_b10_names_are_only_keys(name: str) -> None:
    """B10: what means something in some language is a string here."""
    assert decode(f"{name}=1&a[{name}][{name}]=2".encode()) == {name: "1", "a": {name: {name: "2"}}}


def test_b11_a_key_that_is_a_value_and_a_map_is_what_came_later() -> None:
    """B11: as in PHP."""
    assert decode(b"leads=1&leads[add][0][id]=2") == {"leads": {"add": [{"id": "2"}]}}
    assert decode(b"leads[add][0][id]=2&leads=1") == {"leads": "1"}
    assert decode(b"a[b]=1&a[b][]=2&a[b][]=3") == {"a": {"b": ["2", "3"]}}


def test_b12_of_two_values_the_later_counts() -> None:
    """B12: as in PHP; the key keeps its place."""
    tree = decode(b"a=1&b=2&a=3&c[x]=4&c[y]=5&c[x]=6")
    assert tree == {"a": "3", "b": "2", "c": {"x": "6", "y": "5"}}
    assert list(tree) == ["a", "b", "c"]


def test_b13_brackets_that_do_not_match() -> None:
    """B13: as in PHP."""
    assert decode(b"a[=1&b[]=2&b[]=3&]c[=4&[d]=5&e[f=6&g[h][i=7&k[l]m[n]=8") == {
        "a_": "1",
        "b": ["2", "3"],
        "]c_": "4",
        "e_f": "6",
        "g": {"h": "7"},
        "k": {"l": "8"},
    }


def test_b14_what_is_no_text_spoils_nothing_else() -> None:
    """B14: U+FFFD in the place of what is no UTF-8, a broken escape as it is, NUL within a value, ids intact."""
    tree = decode(b"leads[add][0][id]=5&leads[add][0][name]=%ff%zz%00\xc3&x%00y=1&%ff=2&a[%]=3")
    assert tree == {"leads": {"add": [{"id": "5", "name": "�%zz\0�"}]}, "x": "1", "�": "2", "a": {"%": "3"}}


def test_an_escape_is_read_once() -> None:
    """What an escape gives is no escape, no bracket of a level that it was not, and parts no fields."""
    assert decode(b"a=%255B%2526&b=%26c%3D1&d%26e%3Df=2") == {"a": "%5B%26", "b": "&c=1", "d&e=f": "2"}
    assert decode(b"a%%5Bb%5D=1&c=%5%5B%2") == {"a%": {"b": "1"}, "c": "%5[%2"}


# Bounds


def test_b06_as_many_fields_as_are_taken_and_no_more() -> None:
    """B06: 20,000 are read; of more, none."""
    fields = [f"a[{number}]=1" for number in range(MOST_FIELDS)]
    assert len(decode("&".join(fields).encode())["a"]) == MOST_FIELDS == 20_000
    assert refused("&".join([*fields, "b=1"]).encode()) == "fields"
    assert refused(b"&" * MOST_FIELDS) == "fields"


@pytest.mark.parametrize("opening", [b"[", b"%5B", b"%5b"])
@pytest.mark.parametrize("closing", [b"]", b"%5D", b"%5d"])
@pytest.mark.parametrize("key", [b"b", b"", b"0", b"[", b"%26"])
def test_b08_as_many_levels_as_php_takes_and_no_more(opening: bytes, closing: bytes, key: bytes) -> None:
    """B08: 64 brackets, however they are written; a key of 65 is refused, wherever it stands, closed or not."""
    assert MOST_LEVELS == 64
    bracket = opening + key + closing
    tree: Any = decode(b"a" + bracket * MOST_LEVELS + b"=1")["a"]
    for _ in range(MOST_LEVELS):
        tree = tree[0] if isinstance(tree, list) else next(iter(tree.values()))
    assert tree == "1"
    for excess in (bracket, opening, bracket * 36):
        deep = b"a" + bracket * MOST_LEVELS + excess
        assert refused(deep) == refused(b"x=1&" + deep + b"=1&y=2") == "levels"


def test_brackets_in_values_and_behind_the_name_make_no_levels() -> None:
    """Only keys count: a text may be full of brackets."""
    text = "[x]" * 1000
    assert decode(f"a={text}&b=c={text}".encode()) == {"a": text, "b": f"c={text}"}
    assert decode(f"a[b]c{text}=1".encode()) == {"a": {"b": "1"}}


def test_all_brackets_together_are_bounded() -> None:
    """A megabyte of `[]` is half a million lists: refused, while ten levels in each field pass."""
    field = b"a" + b"[]" * (MOST_BRACKETS // MOST_FIELDS)
    assert len(decode(b"&".join([field] * MOST_FIELDS))["a"]) == MOST_FIELDS
    assert refused(b"&".join([*[field] * (MOST_FIELDS - 1), field + b"[]"])) == "brackets"
    assert refused(b"a" + b"%5B" * (MOST_BRACKETS + 1)) == "brackets"


SHAPES: dict[str, Callable[[int], Iterable[str]]] = {
    "appended to a list": lambda n: ("a[]=1" for _ in range(n)),
    "appended to a map": lambda n: ["a[x]=1", *("a[]=1" for _ in range(n))],
    "appended and set in turn": lambda n: ["a[x]=1", *(f"a[{i}]=1&a[]=2" for i in range(n // 2))],
    "a map that grew from a list": lambda n: [*("a[]=1" for _ in range(n)), "a[x]=2", *("a[]=1" for _ in range(n))],
    "lists that become maps": lambda n: (f"a[{i}][]=1&a[{i}][x]=2" for i in range(n // 2)),
    "values and maps in turn": lambda n: ("a=1&a[b][c]=2" for _ in range(n // 2)),
    "appended to a map that is replaced": lambda n: ("a[x]=1&a[]=2&a=3" for _ in range(n // 3)),
    "one long name": lambda n: ["a" + "[b]x" * n],
    "an unclosed name": lambda n: ["a" + "[" * n],
    "escapes": lambda n: ["%41x" * n + "=" + "%zz" * n],
}


@pytest.mark.parametrize("shape", SHAPES)
def test_twice_the_form_is_twice_the_work(shape: str) -> None:
    """No shape of a form makes reading it quadratic. Steps of the interpreter are counted, so no clock is asked."""
    small, large = (steps("&".join(SHAPES[shape](n)).encode()) for n in (400, 800))
    assert large < 2.3 * small


def steps(body: bytes) -> int:
    """Return the lines, jumps and calls that reading takes."""
    monitoring = sys.monitoring
    tool = next(tool for tool in range(6) if monitoring.get_tool(tool) is None)
    count = 0

    def step(*_: object) -> None:
        nonlocal count
        count += 1

    events = (monitoring.events.LINE, monitoring.events.JUMP, monitoring.events.CALL)
    monitoring.use_tool_id(tool, "steps")
    try:
        for event in events:
            monitoring.register_callback(tool, event, step)
        monitoring.set_events(tool, sum(events))
        decode(body)
    finally:
        monitoring.set_events(tool, 0)
        monitoring.free_tool_id(tool)
    return count


BLANKS_BEFORE_NAMES = re.compile(rb"(^|&)(?:[ +]|%20)+")


@given(FORMS.map(lambda form: BLANKS_BEFORE_NAMES.sub(rb"\1", form)))
@example(b"0")
@example(b"0.x=1&0[]=2")
@example(b"0=1&x=%00")
def test_what_is_selected_is_read_as_in_the_whole(form: bytes) -> None:
    """A tree of its own: no other field reaches into it.

    But for one with blanks before its name, which PHP drops, or with escaped letters in it: `+account` is read as
    `account` in the whole, and is not selected.
    """
    body = form + b"&account%5Bid%5D=5&account[id]=6&b%5B0%5D=account[&" + form.replace(b"0", b"account")
    told = decode(select(body, (b"account",)))
    assert told == {name: tree for name, tree in decode(body).items() if name in told}
    assert "account" in told


def test_what_is_selected_from_is_bounded() -> None:
    """By its fields, before any is looked at."""
    with pytest.raises(TooComplex):
        select(b"&" * MOST_FIELDS, (b"a",))


# Writing


def test_trees_are_written_as_php_writes_them() -> None:
    """None and what is empty leave no trace, True is 1, lists have indices, everything is escaped as in a query."""
    assert [text for tree, text in PHP["http_build_query"] if encode(tree) != text] == []
    assert len(PHP["http_build_query"]) >= 100


def test_a_filter_as_the_api_wants_it() -> None:
    """The nested query of a list of leads."""
    query = {"filter": {"id": [1, 2], "updated_at": {"from": 5}}, "with": "contacts", "page": 1}
    assert encode(query) == (
        "filter%5Bid%5D%5B0%5D=1&filter%5Bid%5D%5B1%5D=2&filter%5Bupdated_at%5D%5Bfrom%5D=5&with=contacts&page=1"
    )


@pytest.mark.parametrize("value", [1.5, b"x", object(), {1, 2}], ids=lambda value: type(value).__name__)
def test_what_php_would_write_otherwise_is_not_written(value: object) -> None:
    """A float has no one spelling."""
    with pytest.raises(TypeError, match=f"^no form holds a {type(value).__name__}$"):
        encode({"a": {"b": value}})


def keys(unfit: str) -> st.SearchStrategy[str]:
    return st.text(st.characters(codec="utf-8", exclude_characters=unfit), min_size=1, max_size=8)


TOP = keys("\0 .[")
INNER = keys("\0]").filter(lambda key: key not in " \t\n\v\f\r")
VALUES = st.text(st.characters(codec="utf-8"), max_size=10)


def grown(children: st.SearchStrategy[Tree]) -> st.SearchStrategy[Tree]:
    return st.one_of(
        st.lists(children, min_size=1, max_size=4),
        st.dictionaries(st.one_of(INNER, st.integers().map(str)), children, min_size=1, max_size=4).filter(
            lambda tree: list(tree) != [str(index) for index in range(len(tree))]  # that would be a list
        ),
    )


@given(st.dictionaries(TOP, st.recursive(VALUES, grown, max_leaves=30), max_size=5))
@example({"a": {"0": "x", "2": "y"}, "Я~": ["+&=%", ["\0", {"[x": ""}]]})
def test_what_is_written_is_read_back(tree: dict[str, Tree]) -> None:
    """There and back: nothing is lost of what a form can hold."""
    assert decode(encode(tree).encode()) == tree
