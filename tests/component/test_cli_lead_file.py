"""CSV files of leads, as spreadsheets and other CRMs write them."""

import csv
import io
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from workbench.cli.console import Problem
from workbench.cli.lead_file import LeadFile, inert, original

HEADER = "external_id,phone,country"
GOOD = "o-1,+380501234567,UA"
LEAD = {"external_id": "o-1", "phone": "+380501234567", "country": "UA"}


def written(folder: Path, text: str | bytes) -> Path:
    file = folder / "leads.csv"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


@pytest.mark.parametrize(
    "content",
    [
        f"{HEADER}\n{GOOD}\n",
        f"{HEADER}\r\n{GOOD}\r\n",
        f"{HEADER}\r{GOOD}",
        f"\ufeff{HEADER}\n{GOOD}\n",
        f"{HEADER}\n{GOOD}\n".replace(",", ";"),
        f"\ufeff{HEADER}\n{GOOD}\n".replace(",", "\t"),
        f"External ID,Phone, COUNTRY \n{GOOD}\n",
        '"external_id","phone","country"\n"o-1","+380501234567","UA"\n',
        f"{HEADER}\n\n,,\n{GOOD}\n\n",
        f"{HEADER},\n{GOOD},\n",
        f"{HEADER},first_name\n{GOOD}\n",
        f"{HEADER},_row,_reason\n{GOOD},7,blacklisted\n",
        f"{HEADER}\no-1,'+380501234567,UA\n",
    ],
)
def test_the_same_lead_is_read_however_it_is_written(tmp_path: Path, content: str) -> None:
    [row] = LeadFile.read(written(tmp_path, content)).rows
    assert row.fields == LEAD
    assert row.problem == ""


def test_all_other_columns_are_passed_on_as_they_are(tmp_path: Path) -> None:
    text = f'{HEADER},Click ID,note\n{GOOD}, 007 ,"two\nlines; ""quoted"", and a comma"\n'
    [row] = LeadFile.read(written(tmp_path, text)).rows
    assert row.fields == {**LEAD, "Click ID": "007", "note": 'two\nlines; "quoted", and a comma'}


def test_rows_are_numbered_as_a_spreadsheet_numbers_them(tmp_path: Path) -> None:
    text = f'{HEADER},note\n{GOOD},"a\nb"\n\no-2,+380501234568,UA,\n'
    assert [row.number for row in LeadFile.read(written(tmp_path, text)).rows] == [2, 4]


def test_columns_can_be_named_and_fields_given_to_all(tmp_path: Path) -> None:
    text = "Заказ;Телефон;source\no-1;050 123 45 67;\no-2;050 123 45 68;fair\n"
    file = LeadFile.read(
        written(tmp_path, text),
        columns={"external_id": "заказ", "phone": "Телефон"},
        constants={"country": "UA", "source": "file"},
    )
    assert [(row.fields["country"], row.fields["source"], row.problem) for row in file.rows] == [
        ("UA", "file", ""),
        ("UA", "fair", ""),
    ]


def test_an_encoding_can_be_named(tmp_path: Path) -> None:
    content = f"{HEADER},first_name\n{GOOD},Олена\n".encode("cp1251")
    [row] = LeadFile.read(written(tmp_path, content), encoding="cp1251").rows
    assert row.fields["first_name"] == "Олена"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is empty"),
        (f"{HEADER},first_name\n{GOOD},Олена\n".encode("cp1251"), "--encoding"),
        (b"external_id,phone\no-1,1\n", "no column country, only: external_id, phone"),
        (b"Order;Tel\no-1;1\n", "no column external_id, phone, country"),
        (b"external_id,phone,country,Phone\n", "two columns for phone"),
        (b'external_id,phone,country\n"o-1,1,UA\n', "no CSV"),
    ],
)
def test_what_is_no_table_of_leads_is_told_before_anything_is_sent(tmp_path: Path, content: bytes, told: str) -> None:
    with pytest.raises(Problem, match=told):
        LeadFile.read(written(tmp_path, content))


def test_a_file_that_is_not_there_and_an_encoding_that_is_none_are_told(tmp_path: Path) -> None:
    with pytest.raises(Problem, match="cannot be read"):
        LeadFile.read(tmp_path / "nowhere.csv")
    with pytest.raises(Problem, match="no encoding"):
        LeadFile.read(written(tmp_path, HEADER), encoding="utf-9")
    with pytest.raises(Problem, match="no column order"):
        LeadFile.read(written(tmp_path, HEADER), columns={"external_id": "Order"})


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("o-2,12,UA", "phone: this is no valid number of its country"),
        (",+380501234567,UA", "external_id: Field required"),
        ("o-2,+380501234567,Ukraine", "country: "),
        ("o-2,+380501234567,UA,surplus", "more cells than columns"),
        ("o-1,+380501234999,UA", "external_id: row 2 has the same"),
    ],
)
def test_a_row_that_cannot_be_sent_says_why(tmp_path: Path, row: str, problem: str) -> None:
    assert LeadFile.read(written(tmp_path, f"{HEADER}\n{GOOD}\n{row}\n")).rows[1].problem.startswith(problem)


@pytest.mark.parametrize(
    "cell",
    ['=HYPERLINK("http://x")', "+cmd|' /C calc'!A0", "-2+3+cmd|x", "@SUM(1)", " =1+1", "\t=1", "\r=1", "＝1", "-", "+"],
)
def test_b26_no_cell_of_the_refused_file_is_a_formula(tmp_path: Path, cell: str) -> None:
    """A spreadsheet takes what begins with an apostrophe for text."""
    text = io.StringIO()
    csv.writer(text).writerows([["external_id", "phone", "country", "name"], ["o-1", "12", "UA", cell]])
    file = LeadFile.read(written(tmp_path, text.getvalue()))
    path = file.write_refused({2: "=bad()"})
    assert path
    with path.open(encoding="utf-8-sig", newline="") as refused:
        [_, row] = csv.reader(refused)
    assert row == ["o-1", "12", "UA", f"'{cell}", "2", "'=bad()"]


@pytest.mark.parametrize("phone", ["+380501234567", "+38 (050) 123-45-67", "-5", "-12.50"])
def test_a_phone_keeps_its_plus_in_the_refused_file(phone: str) -> None:
    assert inert(phone) == phone


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(st.text())
def test_what_was_made_inert_is_read_back_as_it_was(cell: str) -> None:
    assert original(inert(cell)) == (original(cell) if cell.startswith("'") else cell)


def test_without_refused_rows_there_is_no_refused_file(tmp_path: Path) -> None:
    file = LeadFile.read(written(tmp_path, f"{HEADER}\n{GOOD}\n"))
    assert file.write_refused({}) is None
    assert not file.refused_path.exists()


def test_the_refused_file_is_as_private_as_the_file_itself(tmp_path: Path) -> None:
    path = written(tmp_path, f"{HEADER}\n{GOOD}\n")
    path.chmod(0o600)
    refused = LeadFile.read(path).write_refused({2: "blacklisted"})
    assert refused
    assert refused.stat().st_mode & 0o777 == 0o600
