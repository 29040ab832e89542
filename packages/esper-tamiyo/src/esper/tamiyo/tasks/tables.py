"""Tables: CSV and Parquet files with one row per sample and the target in one of the columns.

What is done with the columns is said in the task's notes: numbers are scaled by the train rows' mean and
deviation, missing ones become the median, words become one column for each, a missing word a word of its own.
"""

import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import torch
from torch import Tensor

from esper.contracts import ConfigError
from esper.contracts.words import plural
from esper.tamiyo.tasks.cells import MISSING, Cells, is_missing, read_cells
from esper.tamiyo.tasks.goals import Goal
from esper.tamiyo.tasks.source import Source
from esper.tamiyo.tasks.task import Task, parts, shuffled

_LARGE = 1e100
"""The sum of a million such numbers, and their squares, are still numbers."""

MAX_WORDS = 50
"""A column with more different words is left out: a name, not a category."""
MAX_CLASSES = 20
"""A target of whole numbers with more different values is a regression."""
NUM_PARTS = 3
"""Rows to learn from, for decisions, and for the end."""
_MIN_ROWS = 20
_SHOWN = 5
_MISSING_WORD = "(missing)"
_DATE = re.compile(r"(\d{4}-\d{1,2}-\d{1,2}|\d{1,2}[./]\d{1,2}[./]\d{2,4})([ T].*)?")


@dataclass(frozen=True, kw_only=True)
class _Made:
    """What became of a column."""

    note: str
    columns: Sequence[Tensor] = ()
    """None for a column that was left out."""
    encoding: Mapping[str, Any] | None = None
    """How it was done, for the `encoding` of the task."""


@dataclass(frozen=True, kw_only=True)
class _Target:
    """What is to be learned."""

    goal: Goal
    values: Tensor
    num_classes: int
    note: str
    encoding: dict[str, Any]


def table(source: Source) -> Task:
    """Return the rows of a CSV or Parquet file; the target column decides the kind of task.

    Words, or at most `MAX_CLASSES` different whole numbers, are classes; other numbers a regression,
    with the target scaled like the columns. A tenth of the rows is kept for decisions, a fifth for the end.

    Raises:
        ConfigError: for a table that cannot be read, a column of numbers with cells that are none, a
            target that is not there, has gaps or is always the same.

    """
    path = source.file(
        "table", "a .csv, .parquet or .pq with a row per sample, and --target COLUMN"
    )
    cells = read_cells(path)
    names = list(cells.columns)
    if source.target is None:
        raise ConfigError(f"task 'table' needs --target COLUMN; {path} has {', '.join(names)}")
    if source.target not in names:
        raise ConfigError(f"{path} has no column {source.target!r}; it has {', '.join(names)}")
    num_rows = len(cells.columns[source.target])
    if num_rows < _MIN_ROWS:
        raise ConfigError(f"{path} has {plural(num_rows, 'row')}; expected at least {_MIN_ROWS}")
    held_out = (max(1, num_rows // 10), max(1, num_rows // 5))
    train_rows: list[int] = [int(row) for row in parts(num_rows, held_out)[0]]
    target = _target(cells, source.target, train_rows)
    made = {name: _feature(cells, name, train_rows) for name in names if name != source.target}
    features = [column for each in made.values() for column in each.columns]
    notes = [each.note for each in made.values()]
    if not features:
        raise ConfigError(
            f"{path} has no usable column besides {source.target!r}: {'; '.join(notes)}"
        )
    return shuffled(
        "table",
        torch.stack(features, dim=1),
        target.values,
        num_classes=target.num_classes,
        held_out=held_out,
        goal=target.goal,
        notes=(target.note, *notes),
        encoding={
            "kind": "table",
            "missing": sorted(MISSING),
            "columns": [each.encoding for each in made.values() if each.encoding is not None],
            "left_out": [name for name, each in made.items() if each.encoding is None],
            "target": target.encoding,
        },
    )


def _target(cells: Cells, name: str, train_rows: Sequence[int]) -> _Target:
    values = cells.columns[name]
    if name in cells.nested:
        raise ConfigError(
            f"{cells.path}: the cells of the target {name!r} are lists or records; expected one value in each"
        )
    if missing := [row for row, value in enumerate(values) if is_missing(value)]:
        shown = ", ".join(cells.place(row) for row in missing[:_SHOWN])
        raise ConfigError(
            f"{cells.path}: the target {name!r} is missing in {plural(len(missing), 'row')} (the first: "
            f"{shown}); fill or remove them, for nothing can be learned from them"
        )
    numbers = cells.numbers(name, instead="remove the row")
    if numbers is None:
        return _classes(cells, name, values, sorted(set(values)), train_rows)
    known = [number for number in numbers if number is not None]
    if len(set(known)) > MAX_CLASSES or not all(number.is_integer() for number in known):
        _check_varied(cells, name, known, train_rows)
        scaled, said, scaling = _scaled(cells, name, known, train_rows)
        return _Target(
            goal=Goal.REGRESSION,
            values=scaled,
            num_classes=1,
            note=f"target {name!r}: a number to predict, {said}; losses are in squared deviations",
            encoding={"name": name, "kind": "number", **scaling},
        )
    # 1, 1.0 and 01 are one class. Shorter names first: for whole numbers that is their order.
    whole = [str(int(Decimal(value))) for value in values]
    classes = sorted(set(whole), key=lambda value: (len(value), value))
    return _classes(cells, name, whole, classes, train_rows)


def _classes(
    cells: Cells,
    name: str,
    values: Sequence[str],
    classes: Sequence[str],
    train_rows: Sequence[int],
) -> _Target:
    _check_varied(cells, name, values, train_rows)
    if len(classes) > len(values) // 2:
        raise ConfigError(
            f"{cells.path}: the target {name!r} has {len(classes)} different words in {len(values)} rows; "
            "expected few classes, or numbers"
        )
    indices = {value: index for index, value in enumerate(classes)}
    return _Target(
        goal=Goal.CLASSIFICATION,
        values=torch.tensor([indices[value] for value in values]),
        num_classes=len(classes),
        note=f"target {name!r}: {len(classes)} classes, {', '.join(classes[:MAX_CLASSES])}{_rare(values)}",
        encoding={"name": name, "kind": "classes", "classes": list(classes)},
    )


def _rare(values: Sequence[str]) -> str:
    """Say which classes have too few rows for each part of the data to have one."""
    rare = [value for value, count in Counter(values).items() if count < NUM_PARTS]
    if not rare:
        return ""
    shown = ", ".join(sorted(rare)[:_SHOWN])
    return f"; fewer than {NUM_PARTS} rows to learn, decide and measure with have {shown}"


def _check_varied(
    cells: Cells, name: str, values: Sequence[object], train_rows: Sequence[int]
) -> None:
    learned = {values[row] for row in train_rows}
    if len(learned) > 1:
        return
    others = len(values) - len(train_rows)
    where = (
        "in every row"
        if len(set(values)) == 1
        else f"in all {len(train_rows)} rows to learn from (the other {others} are for decisions and the end)"
    )
    raise ConfigError(
        f"{cells.path}: the target {name!r} is {cells.columns[name][train_rows[0]]!r} {where}; nothing to "
        "learn, choose another column with --target or add rows in which it differs"
    )


def _feature(cells: Cells, name: str, train_rows: Sequence[int]) -> _Made:
    """Return the columns of numbers that a column becomes, and what was done."""
    values = cells.columns[name]
    numbers = cells.numbers(name)
    num_missing = sum(map(is_missing, values))
    if numbers is not None:
        known = [number for row in train_rows if (number := numbers[row]) is not None]
        if not known:
            return _Made(note=f"column {name!r} was left out: it is empty in all train rows")
        unit = _unit(known)
        middle = statistics.median(number / unit for number in known) * unit
        filled = [middle if number is None else number for number in numbers]
        if len({filled[row] for row in train_rows}) < 2:
            rows = "all train rows that have it" if num_missing else "all train rows"
            return _Made(note=f"column {name!r} was left out: it is {middle:.10g} in {rows}")
        column, said, scaling = _scaled(cells, name, filled, train_rows)
        gaps = f"; {num_missing} missing values became the median, {middle:g}"
        return _Made(
            note=f"column {name!r}: {said}{gaps if num_missing else ''}",
            columns=[column],
            encoding={"name": name, "kind": "number", "if_missing": middle, **scaling},
        )
    if name in cells.nested:
        return _Made(
            note=f"column {name!r} was left out: its cells are lists or records, not values"
        )
    words = [_MISSING_WORD if is_missing(value) else value for value in values]
    seen = sorted({words[row] for row in train_rows})
    if len(seen) > MAX_WORDS:
        why = f"{len(seen)} different words, more than {MAX_WORDS}{_hint(seen)}"
        return _Made(note=f"column {name!r} was left out: {why}")
    if len(seen) < 2:
        return _Made(
            note=f"column {name!r} was left out: it is {seen[0]!r} in all train rows",
        )
    gaps = f"; {num_missing} missing ones are a word of their own" if num_missing else ""
    return _Made(
        note=f"column {name!r}: {plural(len(seen), 'word')}, a column each{gaps}{_hint(seen)}",
        columns=[torch.tensor([float(word == each) for word in words]) for each in seen],
        encoding={"name": name, "kind": "words", "if_missing": _MISSING_WORD, "words": seen},
    )


def _hint(words: Sequence[str]) -> str:
    """Say what to do with words that are dates."""
    if not all(word == _MISSING_WORD or _DATE.fullmatch(word) for word in words):
        return ""
    return "; if they are dates, give them as numbers, for example days since the first"


def _scaled(
    cells: Cells, name: str, numbers: Sequence[float], train_rows: Sequence[int]
) -> tuple[Tensor, str, dict[str, float]]:
    """Return the numbers scaled by their mean and deviation in the train rows, a note, and by what."""
    known = [numbers[row] for row in train_rows]
    unit = _unit(known)
    mean = statistics.fmean(number / unit for number in known)
    deviation = statistics.pstdev(number / unit for number in known) or 1.0
    scaled = [(number / unit - mean) / deviation for number in numbers]
    column = torch.tensor(scaled, dtype=torch.float32)
    if len(odd := torch.nonzero(~column.isfinite())):
        row = int(odd[0])
        raise ConfigError(
            f"{cells.path}, {cells.place(row)}: column {name!r} is {numbers[row]:g}, too far from the mean "
            f"{mean * unit:g} of the rows to learn from (deviation {deviation * unit:g}); mend or remove it"
        )
    said = f"scaled by mean {mean * unit:g} and deviation {deviation * unit:g}"
    return column, said, {"unit": unit, "mean": mean, "deviation": deviation}


def _unit(numbers: Sequence[float]) -> float:
    """Return what to divide numbers by whose sum would overflow; 1 for all others."""
    largest = max(map(abs, numbers))
    return largest if largest > _LARGE else 1.0
