"""Tables: CSV and Parquet files with one row per sample and the target in one of the columns.

What is done with the columns is said in the task's notes: numbers are scaled by the train rows' mean and
deviation, missing ones become the median, words become one column for each, a missing word a word of its own.
"""

import csv
import math
import statistics
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from esper.contracts import ConfigError
from esper.contracts.words import install_hint, plural
from esper.tamiyo.tasks.goals import Goal
from esper.tamiyo.tasks.source import Source
from esper.tamiyo.tasks.task import Task, parts, shuffled

_LARGE = 1e100
"""The sum of a million such numbers, and their squares, are still numbers."""

MAX_WORDS = 50
"""A column with more different words is left out: a name, not a category."""
MAX_CLASSES = 20
"""A target of whole numbers with more different values is a regression."""
_MIN_ROWS = 20
_MISSING = frozenset({"", "na", "n/a", "nan", "null", "none", "?"})
_SHOWN = 5

type Column = Sequence[str]


def table(source: Source) -> Task:
    """Return the rows of a CSV or Parquet file; the target column decides the kind of task.

    Words, or at most `MAX_CLASSES` different whole numbers, are classes; other numbers a regression,
    with the target scaled like the columns. A tenth of the rows is kept for decisions, a fifth for the end.

    Raises:
        ConfigError: for a table that cannot be read, a target that is not there or has gaps.

    """
    path = source.file("table", "a .csv or .parquet with one row per sample, and --target COLUMN")
    columns = _read_parquet(path) if path.suffix == ".parquet" else _read_csv(path)
    names = list(columns)
    if source.target is None:
        raise ConfigError(f"task 'table' needs --target COLUMN; {path} has {', '.join(names)}")
    if source.target not in columns:
        raise ConfigError(f"{path} has no column {source.target!r}; it has {', '.join(names)}")
    num_rows = len(columns[source.target])
    if num_rows < _MIN_ROWS:
        raise ConfigError(f"{path} has {plural(num_rows, 'row')}; expected at least {_MIN_ROWS}")
    held_out = (max(1, num_rows // 10), max(1, num_rows // 5))
    train_rows: list[int] = [int(row) for row in parts(num_rows, held_out)[0]]
    goal, targets, num_classes, notes = _target(path, source.target, columns, train_rows)
    features: list[Tensor] = []
    for name in names:
        if name != source.target:
            made, note = _feature(path, name, columns[name], train_rows)
            features += made
            notes += note
    if not features:
        raise ConfigError(
            f"{path} has no usable column besides {source.target!r}: {'; '.join(notes)}"
        )
    return shuffled(
        "table",
        torch.stack(features, dim=1),
        targets,
        num_classes=num_classes,
        held_out=held_out,
        goal=goal,
        notes=tuple(notes),
    )


def _target(
    path: Path, name: str, columns: Mapping[str, Column], train_rows: Sequence[int]
) -> tuple[Goal, Tensor, int, list[str]]:
    values = columns[name]
    if missing := [row for row, value in enumerate(values) if _is_missing(value)]:
        shown = ", ".join(str(row + 1) for row in missing[:_SHOWN])
        raise ConfigError(
            f"{path}: the target {name!r} is missing in {plural(len(missing), 'row')} (the first: row "
            f"{shown}); fill or remove them, for nothing can be learned from them"
        )
    numbers = _numbers(values)
    whole = numbers is not None and all(number == int(number) for number in numbers)
    if numbers is not None and not (whole and len(set(numbers)) <= MAX_CLASSES):
        scaled, said = _scaled(f"{path}: the target {name!r}", numbers, train_rows)
        note = f"target {name!r}: a number to predict, {said}; losses are in squared deviations"
        return Goal.REGRESSION, scaled, 1, [note]
    classes = (
        sorted(set(values), key=lambda value: (len(value), value)) if whole else sorted(set(values))
    )
    if len(classes) < 2:
        raise ConfigError(
            f"{path}: the target {name!r} is {classes[0]!r} in every row; nothing to learn"
        )
    if len(classes) > len(values) // 2:
        raise ConfigError(
            f"{path}: the target {name!r} has {len(classes)} different words in {len(values)} rows; expected "
            "few classes, or numbers"
        )
    indices = {value: index for index, value in enumerate(classes)}
    targets = torch.tensor([indices[value] for value in values])
    note = f"target {name!r}: {len(classes)} classes, {', '.join(classes[:MAX_CLASSES])}"
    return Goal.CLASSIFICATION, targets, len(classes), [note]


def _feature(
    path: Path, name: str, values: Column, train_rows: Sequence[int]
) -> tuple[list[Tensor], list[str]]:
    """Return the columns of numbers that a column becomes, and what was done."""
    numbers = _numbers([value for value in values if not _is_missing(value)])
    missing = sum(_is_missing(value) for value in values)
    if numbers is not None and numbers:
        known = [float(values[row]) for row in train_rows if not _is_missing(values[row])]
        if not known:
            return [], [f"column {name!r} was left out: it is empty in all train rows"]
        unit = _unit(known)
        middle = statistics.median(number / unit for number in known) * unit
        filled = [middle if _is_missing(value) else float(value) for value in values]
        column, said = _scaled(f"{path}: column {name!r}", filled, train_rows)
        gaps = f"; {missing} missing values became the median, {middle:g}" if missing else ""
        return [column], [f"column {name!r}: {said}{gaps}"]
    words = ["(missing)" if _is_missing(value) else value for value in values]
    seen = sorted({words[row] for row in train_rows})
    if len(seen) > MAX_WORDS:
        return [], [
            f"column {name!r} was left out: {len(seen)} different words, more than {MAX_WORDS}"
        ]
    if len(seen) < 2:
        return [], [f"column {name!r} was left out: it is {seen[0]!r} in all train rows"]
    columns = [torch.tensor([float(word == each) for word in words]) for each in seen]
    gaps = f"; {missing} missing ones are a word of their own" if missing else ""
    return columns, [f"column {name!r}: {plural(len(seen), 'word')}, a column each{gaps}"]


def _scaled(what: str, numbers: Sequence[float], train_rows: Sequence[int]) -> tuple[Tensor, str]:
    known = [numbers[row] for row in train_rows]
    unit = _unit(known)
    mean = statistics.fmean(number / unit for number in known)
    deviation = statistics.pstdev(number / unit for number in known) or 1.0
    scaled = [(number / unit - mean) / deviation for number in numbers]
    column = torch.tensor(scaled, dtype=torch.float32)
    if len(odd := torch.nonzero(~column.isfinite())):
        row = int(odd[0])
        raise ConfigError(
            f"{what} is {numbers[row]:g} in row {row + 1}, too far from the mean {mean * unit:g} of the rows "
            f"to learn from (deviation {deviation * unit:g}); mend or remove it"
        )
    return column, f"scaled by mean {mean * unit:g} and deviation {deviation * unit:g}"


def _unit(numbers: Sequence[float]) -> float:
    """Return what to divide numbers by whose sum would overflow; 1 for all others."""
    largest = max(map(abs, numbers))
    return largest if largest > _LARGE else 1.0


def _numbers(values: Sequence[str]) -> list[float] | None:
    """Return the values as finite numbers, or None if one is none."""
    try:
        numbers = [float(value) for value in values]
    except ValueError:
        return None
    return numbers if all(math.isfinite(number) for number in numbers) else None


def _is_missing(value: str) -> bool:
    return value.strip().lower() in _MISSING


def _read_csv(path: Path) -> dict[str, Column]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            sample = file.read(64 * 1024)
            file.seek(0)
            rows = list(csv.reader(file, _dialect(sample), strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path} is no CSV in UTF-8 ({error}); export it again") from error
    if len(rows) < 2:
        raise ConfigError(
            f"{path} has no rows; expected names of columns in the first line, then samples"
        )
    names, samples = [name.strip() for name in rows[0]], [row for row in rows[1:] if row]
    if len(set(names)) != len(names) or not all(names):
        raise ConfigError(
            f"{path}: the first line names columns {names}; expected a different name for each"
        )
    for number, row in enumerate(samples, start=2):
        if len(row) != len(names):
            raise ConfigError(
                f"{path}, line {number}: {plural(len(row), 'value')} for {plural(len(names), 'column')}"
            )
    return {name: [row[index].strip() for row in samples] for index, name in enumerate(names)}


def _dialect(sample: str) -> type[csv.Dialect]:
    try:
        return csv.Sniffer().sniff(sample, delimiters=",;\t|")
    except csv.Error:  # one column, for example
        return csv.excel


def _read_parquet(path: Path) -> dict[str, Column]:
    try:
        arrow: Any = import_module("pyarrow")
        parquet: Any = import_module("pyarrow.parquet")
    except ImportError as error:
        raise ConfigError(
            f"{path} is Parquet, which needs pyarrow; {install_hint('esper-tamiyo', 'parquet')}; or export "
            "it as CSV"
        ) from error
    try:
        columns: dict[str, list[object]] = parquet.read_table(path).to_pydict()
    except (arrow.ArrowException, OSError) as error:
        raise ConfigError(f"{path} is no Parquet file ({error}); export it again") from error
    return {
        name: ["" if value is None else str(value) for value in values]
        for name, values in columns.items()
    }
