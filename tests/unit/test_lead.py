"""A lead as callers give it: normalised or refused here, so that CartelCRM gets nothing it cannot use."""

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lead_submitter.lead import InvalidLead, read_lead

LEAD = {"external_id": "e1", "phone": "+380501234567", "country": "UA"}


def lead(**fields: Any) -> dict[str, Any]:
    return {**LEAD, **fields}


def problems(fields: object) -> dict[str, str]:
    with pytest.raises(InvalidLead) as invalid:
        read_lead(fields)
    return {error["field"]: error["message"] for error in invalid.value.errors}


@pytest.mark.parametrize(
    ("phone", "country", "sent"),
    [
        ("+380501234567", "UA", "+380501234567"),
        ("050 123-45-67", "UA", "+380501234567"),
        ("(050) 123.45.67", "UA", "+380501234567"),
        ("380501234567", "UA", "+380501234567"),
        ("00380501234567", "UA", "+380501234567"),
        ("00 380 50 123 45 67", "UA", "+380501234567"),
        ("  +380 50 123 45 67  ", "UA", "+380501234567"),
        ("030 123456", "DE", "+4930123456"),
        ("0049 30 123456", "DE", "+4930123456"),
        ("8 (912) 345-67-89", "RU", "+79123456789"),
        ("0049 30 123456", "RU", "+4930123456"),
        ("00380501234567", "US", "+380501234567"),
        ("+49 30/123456", "UA", "+4930123456"),
        ("+1 212-555-0123", "UA", "+12125550123"),
    ],
)
def test_d21_a_phone_in_any_usual_notation_is_sent_in_e164(phone: str, country: str, sent: str) -> None:
    """D21: blanks, brackets, dots and prefixes are the caller's taste; a national number belongs to `country`."""
    assert read_lead(lead(phone=phone, country=country)).phone == sent


@pytest.mark.parametrize(
    "phone",
    [
        "",
        " ",
        "12",
        "call me",
        "+38050123456x",
        "+380501234567 ext. 5",
        "+3805012345678901",
        "1" * 41,
        "+",
        "++380501234567",
        "+38 050 123 45 67 89",
        "٠٥٠١٢٣٤٥٦٧",
        "+380501234567;phone-context=x",
        "tel:+380501234567",
        "0501234567,0671234567",
        "050\u00001234567",
        380501234567,
        None,
        ["+380501234567"],
    ],
    ids=repr,
)
def test_d21_what_is_no_phone_is_refused_here(phone: object) -> None:
    """D21: letters, lists, other scripts' digits, too short or too long: no call to CartelCRM is made of it."""
    assert list(problems(lead(phone=phone))) == ["phone"]


@pytest.mark.parametrize("country", ["UA", "ua", " ua "])
def test_a_country_is_two_letters_in_capitals(country: str) -> None:
    """The caller's spelling is mended."""
    assert read_lead(lead(country=country)).country == "UA"


@pytest.mark.parametrize("country", ["", "U", "UKR", "XX", "ZZ", "00", "Україна", None, 380, "001"])
def test_what_is_no_country_is_refused(country: object) -> None:
    """ISO 3166-1 alpha-2, and only countries that have phones."""
    assert "country" in problems(lead(country=country))


@pytest.mark.parametrize("external_id", ["e1", "a/b?c#d", "../x", "Оля 😀", "x" * 200, '"', "a b"])
def test_an_external_id_is_the_callers_own(external_id: str) -> None:
    """Any printable text up to 200 characters is an id, unchanged."""
    assert read_lead(lead(external_id=external_id)).external_id == external_id


@pytest.mark.parametrize(
    "external_id",
    ["", "  ", "x" * 201, "a\nb", "a\x00b", "a\u200bb", "a\u2028b", "\ufeffa", "\x7f", 7, None, True, ["a"]],
)
def test_what_is_no_external_id_is_refused(external_id: object) -> None:
    """Empty, too long, invisible characters, or no text: two ids that look alike must be alike."""
    assert list(problems(lead(external_id=external_id))) == ["external_id"]


@pytest.mark.parametrize("field", ["external_id", "phone", "country"])
def test_what_is_missing_is_named(field: str) -> None:
    """Each required field is asked for by its name."""
    fields = lead()
    del fields[field]
    assert list(problems(fields)) == [field]


def test_all_problems_are_told_at_once() -> None:
    """Nobody should have to mend a lead field by field."""
    assert set(problems({"country": "XX", "first_name": 5})) == {"external_id", "phone", "country", "first_name"}


@pytest.mark.parametrize("fields", [None, [], "x", 5, [LEAD], True])
def test_what_is_no_object_is_refused(fields: object) -> None:
    """A lead is an object."""
    assert problems(fields)


SECRET = "s3cret-value"


@pytest.mark.parametrize(
    "fields",
    [
        lead(phone=SECRET),
        lead(country=SECRET),
        lead(external_id=SECRET * 20),
        lead(external_id=f"{SECRET}\n{SECRET}"),
        lead(first_name=[SECRET]),
        lead(source=SECRET * 20),
        SECRET,
        [SECRET],
    ],
    ids=repr,
)
def test_a_problem_never_repeats_the_value(fields: object) -> None:
    """What is told to the caller, and logged by his side, holds no phone and no name."""
    with pytest.raises(InvalidLead) as invalid:
        read_lead(fields)
    assert SECRET not in json.dumps(invalid.value.errors)
    assert SECRET not in str(invalid.value)


def test_further_fields_are_passed_on_as_they_came() -> None:
    """CartelCRM may know more of a lead than we do."""
    fields = lead(first_name="Оля", utm={"source": ["a/b", 1, 2.5, None, True]}, source=None)
    sent = json.loads(read_lead(fields).body())
    assert sent == fields


def test_the_body_is_compact_and_unescaped() -> None:
    """The contract's serialisation: non-ASCII and slashes as they are."""
    body = read_lead(lead(first_name='Оля "😀"', url="https://x/y")).body()
    assert body == (
        '{"external_id":"e1","country":"UA","phone":"+380501234567","first_name":"Оля \\"😀\\"","url":"https://x/y"}'
    )


def test_the_same_lead_in_other_words_is_the_same_body() -> None:
    """Order of the known fields and notation of the phone make no other lead."""
    one = read_lead({"external_id": "e1", "phone": "050 123 45 67", "country": "ua"}).body()
    other = read_lead({"country": "UA", "phone": "+380501234567", "external_id": " e1 "}).body()
    assert one == other


def test_a_field_that_was_not_given_is_not_sent() -> None:
    """Absent and null are different things to whoever reads the lead."""
    assert "first_name" not in read_lead(LEAD).body()
    assert '"first_name":null' in read_lead(lead(first_name=None)).body()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(st.fixed_dictionaries({}, optional=dict.fromkeys((*LEAD, "first_name", "source", "x"), json_values)))
def test_any_object_is_a_lead_or_says_what_it_lacks(fields: dict[str, Any]) -> None:
    """No input makes anything but a lead or a list of problems."""
    with suppress(InvalidLead):
        body = read_lead(fields).body()
        assert json.loads(body)["external_id"]


@given(phone=st.text(max_size=45))
def test_any_phone_is_e164_or_refused(phone: str) -> None:
    """What goes out begins with + and has at most 15 digits."""
    try:
        sent = read_lead(lead(phone=phone)).phone
    except InvalidLead:
        return
    assert sent[0] == "+"
    assert sent[1:].isascii()
    assert sent[1:].isdigit()
    assert len(sent) <= 16
