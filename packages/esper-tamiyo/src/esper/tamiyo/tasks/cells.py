"""Reads CSV and Parquet files into columns of cells, each with its place in the file; hands them to `tables`.

Cells are texts, as a file has them; which of them are numbers, and which are missing, is told here too.
"""

import csv
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from esper.contracts import ConfigError
from esper.contracts.words import install_hint, plural

MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "?"})
"""What a cell without a value says, in capitals or not."""
MOSTLY = 0.9
"""A column of which at least so many cells are numbers is one of numbers, and the others are mistakes."""

_SEPARATORS = ",;\t|"
_SAMPLE = 100
"""Lines in which a separator is tried."""
_WITH_COMMAS = re.compile(
    r"[+-]?((\d{1,3}(\.\d{3})+|\d+),\d+|\d{1,3}(,\d{3})+(\.\d+)?)(e[+-]?\d+)?", re.IGNORECASE
)
"""1,5 or 1.234,5 or 1,234.5: what people write and `float` does not read, or reads as something else."""


@dataclass(frozen=True, kw_only=True)
class Cells:
    """What a file says, column by column."""

    path: Path
    columns: Mapping[str, Sequence[str]]
    lines: Sequence[int] | None
    """The line that each row begins in; None for a file without lines."""
    nested: Collection[str] = ()
    """Columns whose cells are no single values."""

    def place(self, row: int) -> str:
        """Return where a person finds a row, counted from 0 here and from 1 by people."""
        return f"row {row + 1}" if self.lines is None else f"line {self.lines[row]}"

    def numbers(
        self, name: str, *, instead: str = "leave it empty if it is not known"
    ) -> list[float | None] | None:
        """Return a column's numbers, None for each that is missing; None for a column of words.

        `instead` is what else can be done with a bad cell than correcting it.

        Raises:
            ConfigError: for a column that is of numbers but for a few cells.

        """
        cells = self.columns[name]
        numbers = [None if is_missing(cell) else _number(cell) for cell in cells]
        given = [row for row, cell in enumerate(cells) if not is_missing(cell)]
        bad = [row for row in given if numbers[row] is None]
        if given and not bad:
            return numbers
        num_numbers = len(given) - len(bad)
        if given and num_numbers >= MOSTLY * len(given):
            raise ConfigError(self._is_no_number(name, bad, len(given), instead))
        commas = [row for row in bad if _WITH_COMMAS.fullmatch(cells[row].strip())]
        if commas and num_numbers + len(commas) >= MOSTLY * len(given):
            row = commas[0]
            raise ConfigError(
                f"{self.path}, {self.place(row)}: column {name!r} has numbers with commas, such as "
                f"{cells[row]!r}; write decimals with a point and thousands with nothing between them"
            )
        return None

    def _is_no_number(self, name: str, bad: Sequence[int], num_given: int, instead: str) -> str:
        cell = self.columns[name][bad[0]]
        what = "no number" if _float(cell) is None else "no finite number"
        others = f" (like {plural(len(bad) - 1, 'other')})" if len(bad) > 1 else ""
        return (
            f"{self.path}, {self.place(bad[0])}: column {name!r} is {cell!r}, which is {what}{others}, while "
            f"{num_given - len(bad)} of its {num_given} cells are; correct it, or {instead} (for a column of "
            "words, put a letter before those that are numbers)"
        )


def is_missing(cell: str) -> bool:
    """Tell whether a cell stands for no value."""
    return cell.strip().lower() in MISSING


def _number(cell: str) -> float | None:
    number = _float(cell)
    return number if number is not None and math.isfinite(number) else None


def _float(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def read_cells(path: Path) -> Cells:
    """Read a file, Parquet by its ending or else CSV.

    Raises:
        ConfigError: if it cannot be read, and where and why.

    """
    return _read_parquet(path) if path.suffix.lower() in (".parquet", ".pq") else _read_csv(path)


def _read_csv(path: Path) -> Cells:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows, lines = _rows(path, list(file))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no CSV in UTF-8 ({error}); export it again") from error
    if len(rows) < 2:
        raise ConfigError(
            f"{path} has no rows; expected names of columns in the first line, then samples"
        )
    names = rows[0]
    if len(set(names)) != len(names) or not all(names):
        raise ConfigError(
            f"{path}: the first line names columns {names}; expected a different name for each"
        )
    for row, line in zip(rows[1:], lines[1:], strict=True):
        if len(row) != len(names):
            raise ConfigError(
                f"{path}, line {line}: {plural(len(row), 'value')} for {plural(len(names), 'column')}"
            )
    columns = {name: [row[index] for row in rows[1:]] for index, name in enumerate(names)}
    return Cells(path=path, columns=columns, lines=lines[1:])


def _rows(path: Path, text: Sequence[str]) -> tuple[list[list[str]], list[int]]:
    """Return the rows that are not blank, and the line that each begins in."""
    rows: list[list[str]] = []
    lines: list[int] = []
    line = 1
    try:
        for row, last_line in _parsed(text, _separator(text)):
            if row not in ([], [""]):
                rows.append(row)
                lines.append(line)
            line = last_line + 1
    except csv.Error as error:
        raise ConfigError(
            f"{path} is no CSV ({error}, in the row that begins in line {line}); export it again"
        ) from error
    return rows, lines


def _parsed(text: Sequence[str], separator: str) -> Iterator[tuple[list[str], int]]:
    """Yield each row with the line that it ends in."""
    quote = "'" if text and text[0].startswith("'") else '"'
    reader = csv.reader(
        text, delimiter=separator, quotechar=quote, skipinitialspace=True, strict=True
    )
    for row in reader:
        yield [cell.strip() for cell in row], reader.line_num


def _separator(text: Sequence[str]) -> str:
    """Return what stands between the cells: what gives most of the first rows as many cells as the header.

    What comes in the header not at all separates nothing: the comma in 1,5 where semicolons part the columns.
    """
    best, best_score = ",", (0, 0)
    for separator in _SEPARATORS:
        rows: list[list[str]] = []
        with suppress(csv.Error):  # a row that is cut off at the end of the sample, for example
            rows.extend(row for row, _ in _parsed(text[:_SAMPLE], separator) if row)
        if not rows or len(rows[0]) < 2:
            continue
        score = (sum(len(row) == len(rows[0]) for row in rows), len(rows[0]))
        if score > best_score:
            best, best_score = separator, score
    return best


def _read_parquet(path: Path) -> Cells:
    try:
        arrow: Any = import_module("pyarrow")
        parquet: Any = import_module("pyarrow.parquet")
    except ImportError as error:
        raise ConfigError(
            f"{path} is Parquet, which needs pyarrow; {install_hint('esper-tamiyo', 'parquet')}; or "
            "export it as CSV"
        ) from error
    try:
        columns: dict[str, list[object]] = parquet.read_table(path).to_pydict()
    except (arrow.ArrowException, OSError) as error:
        raise ConfigError(f"{path} is no Parquet file ({error}); export it again") from error
    return Cells(
        path=path,
        columns={
            name: ["" if value is None else str(value).strip() for value in values]
            for name, values in columns.items()
        },
        lines=None,
        nested=[
            name
            for name, values in columns.items()
            if any(isinstance(value, list | dict) for value in values)
        ],
    )
