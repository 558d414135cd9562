"""A CSV file of leads: reading it as spreadsheets write it, and writing down the rows that were refused."""

import csv
import io
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lead_submitter.lead import InvalidLead, Lead, read_lead
from workbench.cli.console import Problem

OURS = "_"
"""Columns whose name begins so are notes of ours, or of the person's: they are not sent."""

_REQUIRED = ("external_id", "phone", "country")
_DELIMITERS = ",;\t|"
_FORMULA = re.compile(r"\s*[=+\-@＝＋－＠\t\r]")
_NUMBER = re.compile(r"[+-][0-9][0-9 ().-]*")


@dataclass(frozen=True, slots=True)
class Row:
    """One row. `number` counts as spreadsheets do, the header being 1; `problem` is why it cannot be sent."""

    number: int
    cells: tuple[str, ...]
    fields: Mapping[str, str]
    problem: str = ""


@dataclass(frozen=True, slots=True)
class LeadFile:
    """A file that was read. `content` is the file, byte for byte."""

    path: Path
    content: bytes
    delimiter: str
    header: tuple[str, ...]
    rows: tuple[Row, ...]

    @classmethod
    def read(
        cls,
        path: Path,
        *,
        encoding: str = "utf-8",
        columns: Mapping[str, str] | None = None,
        constants: Mapping[str, str] | None = None,
    ) -> "LeadFile":
        """Read a file, without sending anything.

        Args:
            path: the file; its first row names the columns, its delimiter is found out.
            encoding: of the file; a byte order mark is understood.
            columns: field → column, where the column has another name than the field.
            constants: fields that all leads get, unless their row has a value.

        Raises:
            Problem: this is no table of leads.
        """
        try:
            content = path.read_bytes()
            text = content.decode("utf-8-sig" if encoding.lower().replace("_", "-") in ("utf-8", "utf8") else encoding)
        except OSError as error:
            raise Problem(f"{path} cannot be read: {error.strerror}.") from None
        except LookupError:
            raise Problem(f"Python knows no encoding {encoding}.") from None
        except UnicodeError:
            hint = "save it as “CSV UTF-8”, or name its encoding, such as --encoding cp1251"
            raise Problem(f"{path} is not in {encoding}: {hint}.") from None
        delimiter, records = _records(path, text)
        if not records:
            raise Problem(f"{path} is empty: its first row names the columns.")
        header = tuple(name.strip() for name in records[0][1])
        fields = _fields(path, header, columns or {}, constants or {})
        seen: dict[str, int] = {}
        rows = []
        for number, cells in records[1:]:
            if any(cells):
                lead = _lead(cells, fields, constants or {})
                surplus = any(cells[len(header) :])
                problem = "more cells than columns" if surplus else _problem(number, lead, seen)
                rows.append(Row(number, tuple(cells), lead, problem))
        return cls(path, content, delimiter, header, tuple(rows))

    @property
    def refused_path(self) -> Path:
        """Where the refused rows go."""
        return self.path.with_name(f"{self.path.stem}.refused.csv")

    def write_refused(self, reasons: Mapping[int, str]) -> Path | None:
        """Write the rows with these numbers, and why; None if there are none.

        The file can be mended and imported in its turn. A spreadsheet that opens it runs no formula from it.
        """
        if not reasons:
            return None
        kept = [index for index, name in enumerate(self.header) if not name.startswith(OURS)]
        text = io.StringIO(newline="")
        table = csv.writer(text, delimiter=self.delimiter)
        table.writerow([*(self.header[index] for index in kept), f"{OURS}row", f"{OURS}reason"])
        for row in self.rows:
            if row.number in reasons:
                cells = [row.cells[index] if index < len(row.cells) else "" for index in kept]
                table.writerow([*map(inert, cells), row.number, inert(reasons[row.number])])
        path = self.refused_path
        path.touch()
        shutil.copymode(self.path, path)
        path.write_text(text.getvalue(), "utf-8-sig", newline="")
        return path


def inert(cell: str) -> str:
    """Return a cell that no spreadsheet takes for a formula.

    A leading apostrophe says "text" to a spreadsheet, and `original` takes it off again. A number stays as it
    is, and so a phone with its plus does: digits can do no harm, and other programs can go on with it.
    """
    return cell if not _FORMULA.match(cell) or _NUMBER.fullmatch(cell) else f"'{cell}"


def original(cell: str) -> str:
    """Return what `inert` was given."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell[1:]) else cell


def _records(path: Path, text: str) -> tuple[str, list[tuple[int, list[str]]]]:
    """Return the delimiter, which is the one that makes most columns of the first line, and the numbered records."""
    try:
        first = text.splitlines()[:1]
        widths = {delimiter: len(next(csv.reader(first, delimiter=delimiter), ())) for delimiter in _DELIMITERS}
        delimiter = max(widths, key=lambda sign: widths[sign])
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        return delimiter, list(enumerate(reader, start=1))
    except csv.Error as error:
        raise Problem(f"{path} is no CSV file: {error}.") from None


def _fields(
    path: Path, header: tuple[str, ...], columns: Mapping[str, str], constants: Mapping[str, str]
) -> dict[int, str]:
    """Return the field of each column that has one."""
    given = {column.casefold(): name for name, column in columns.items()}
    if unknown := given.keys() - {name.casefold() for name in header}:
        raise Problem(f"{path} has no column {', '.join(sorted(unknown))}: {', '.join(header)}.")
    own = {name: name for name in Lead.model_fields}
    fields: dict[int, str] = {}
    for index, name in enumerate(header):
        folded = name.casefold()
        if not name or name.startswith(OURS):
            continue
        field = given.get(folded) or own.get(folded.replace(" ", "_"), name)
        if field in fields.values():
            raise Problem(f"{path} has two columns for {field}: name one of them {OURS}{name}, and it is left out.")
        fields[index] = field
    if missing := [name for name in _REQUIRED if name not in {*fields.values(), *constants}]:
        raise Problem(
            f"{path} has no column {', '.join(missing)}, only: {', '.join(header)}. "
            "--column FIELD=COLUMN says which one it is, --set FIELD=VALUE gives all leads the same."
        )
    return fields


def _lead(cells: Sequence[str], fields: Mapping[int, str], constants: Mapping[str, str]) -> dict[str, str]:
    values = {fields[index]: original(cell).strip() for index, cell in enumerate(cells) if index in fields}
    return {**constants, **{name: value for name, value in values.items() if value}}


def _problem(number: int, lead: Mapping[str, str], seen: dict[str, int]) -> str:
    try:
        external_id = read_lead(lead).external_id
    except InvalidLead as invalid:
        return "; ".join(f"{error['field']}: {error['message']}" for error in invalid.errors)
    first = seen.setdefault(external_id, number)
    return "" if first == number else f"external_id: row {first} has the same"
