"""Tables cell by cell: what is a number, a word or a mistake, and where in the file it is."""

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from esper.contracts import ConfigError
from esper.tamiyo import Task, load_task
from esper.tamiyo.tasks import Goal, Source, Split


def write(folder: Path, rows: list[str], header: str = "x,y", name: str = "t.csv") -> Path:
    path = folder / name
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def load(path: Path, target: str = "y") -> Task:
    return load_task("table", Source(path=path, target=target))


def refusal(path: Path, target: str = "y") -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, target)
    return str(caught.value)


def floats(values: torch.Tensor) -> list[float]:
    return [float(value) for value in values]


def numbers_with(cell: str, *, at: int = 57) -> list[str]:
    """A hundred different numbers, but for one cell."""
    return [cell if row == at else f"{row}.5" for row in range(100)]


@pytest.mark.parametrize(
    ("cell", "what"),
    [
        ("oops", "'oops', which is no number,"),
        ("12 kg", "'12 kg', which is no number,"),
        ('"1,5"', "'1,5', which is no number,"),
        ("inf", "'inf', which is no finite number,"),
        ("-Infinity", "'-Infinity', which is no finite number,"),
        ("1e999", "'1e999', which is no finite number,"),
    ],
)
def test_one_bad_cell_among_numbers_is_named_with_its_line(
    tmp_path: Path, cell: str, what: str
) -> None:
    feature = write(tmp_path, [f"{each},{row % 2}" for row, each in enumerate(numbers_with(cell))])
    said = refusal(feature)
    assert f"{feature}, line 59: column 'x' is {what} while 99 of its 100 cells are" in said
    assert "leave it empty" in said
    target = write(tmp_path, [f"{row},{each}" for row, each in enumerate(numbers_with(cell))])
    said = refusal(target)
    assert f"{target}, line 59: column 'y' is {what} while 99 of its 100 cells are" in said
    assert "remove the row" in said


def test_several_bad_cells_are_counted_and_empty_ones_are_not(tmp_path: Path) -> None:
    cells = ["" if row % 2 else "?!" if row in (10, 40) else str(row) for row in range(100)]
    said = refusal(write(tmp_path, [f"{cell},{row % 2}" for row, cell in enumerate(cells)]))
    assert "line 12: column 'x' is '?!'" in said
    assert "(like 1 other), while 48 of its 50 cells are" in said


@pytest.mark.parametrize("num_words", [11, 50, 97])
def test_a_column_with_many_words_among_its_numbers_is_one_of_words(
    tmp_path: Path, num_words: int
) -> None:
    cells = ["other" if row < num_words else str(row % 3) for row in range(100)]
    task = load(write(tmp_path, [f"{cell},{row % 2}" for row, cell in enumerate(cells)], "x,y"))
    assert task.encoding is not None
    assert task.encoding["columns"][0]["kind"] == "words"


def test_a_missing_number_is_no_bad_cell(tmp_path: Path) -> None:
    rows = [f"{cell},{row % 2}" for row, cell in enumerate(numbers_with("N/A"))]
    assert "1 missing values became the median" in "\n".join(load(write(tmp_path, rows)).notes)


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_the_separator_is_found_in_the_header(tmp_path: Path, separator: str) -> None:
    rows = [separator.join((f'"a, b; {row}|"', str(row), str(row % 2))) for row in range(90)]
    task = load(write(tmp_path, rows, separator.join(("name", "size", "y"))))
    assert task.num_features == 1
    assert task.encoding is not None
    assert task.encoding["left_out"] == ["name"]


def test_a_comma_in_the_name_of_a_column_separates_nothing(tmp_path: Path) -> None:
    task = load(write(tmp_path, [f"{row};{row % 2}" for row in range(60)], "size, in cm;y"))
    assert task.encoding is not None
    assert [each["name"] for each in task.encoding["columns"]] == ["size, in cm"]


@pytest.mark.parametrize("cell", ["{0},5", "1.{0:03},25", "{0},125", '"1,{0:03}.5"'])
def test_numbers_with_commas_are_refused_and_not_taken_for_words(tmp_path: Path, cell: str) -> None:
    separator = "," if cell.startswith('"') else ";"
    rows = [f"{cell.format(row)}{separator}{row % 2}" for row in range(60)]
    path = write(tmp_path, rows, f"x{separator}y")
    said = refusal(path)
    assert f"{path}, line 2: column 'x' has numbers with commas" in said
    assert "decimals with a point" in said
    rows = [f"{row}{separator}{cell.format(row)}" for row in range(60)]
    assert "line 2: column 'y' has numbers with commas" in refusal(
        write(tmp_path, rows, f"x{separator}y")
    )


def test_lists_with_commas_stay_words(tmp_path: Path) -> None:
    task = load(write(tmp_path, [f"{row % 3},1,2;{row % 2}" for row in range(60)], "x;y"))
    assert task.num_features == 3


def test_lines_are_the_files_own_also_behind_blank_lines_and_breaks_in_cells(
    tmp_path: Path,
) -> None:
    path = tmp_path / "t.csv"
    blank = "".join(f"{row},{row % 2}\n\n" for row in range(20))  # lines 4, 6 and so on
    broken = '"one\nline\nmore",1\n'  # 44 to 46
    path.write_text(f"\n \nx,y\n{blank}{broken}3\n")
    assert f"{path}, line 47: 1 value for 2 columns" in refusal(path)
    path.write_text(f"\n \nx,y\n{blank}{broken}oops,1\n")
    assert f"{path}, line 44: column 'x' is 'one\\nline\\nmore'" in refusal(path)
    path.write_text(f'\n \nx,y\n{blank}{broken}"x,1\n')
    assert "the row that begins in line 47" in refusal(path)


def test_equal_numbers_are_one_class(tmp_path: Path) -> None:
    spellings = ("0", "1", "0.0", "1.0", "01", "1e0", "-0", "10")
    rows = [f"{row},{spellings[row % 8]}" for row in range(160)]
    task = load(write(tmp_path, rows))
    assert (task.goal, task.num_classes) == (Goal.CLASSIFICATION, 3)
    assert task.encoding is not None
    assert task.encoding["target"] == {"name": "y", "kind": "classes", "classes": ["0", "1", "10"]}
    for part in parts_of(task):
        sizes = part.inputs[:, 0] * scaling(task)["deviation"] + scaling(task)["mean"]
        for size, label in zip(floats(sizes), floats(part.targets), strict=True):
            expected = float(spellings[round(size) % 8])
            assert float(("0", "1", "10")[int(label)]) == expected


def parts_of(task: Task) -> list[Split]:
    return [part.known() for part in (task.train, task.validation, task.test)]


def scaling(task: Task) -> dict[str, Any]:
    assert task.encoding is not None
    return task.encoding["columns"][0]


@pytest.mark.parametrize("value", ["0.5", "rose", "3", "1e300"])
def test_a_target_that_is_always_the_same_is_refused(tmp_path: Path, value: str) -> None:
    said = refusal(write(tmp_path, [f"{row},{value}" for row in range(60)]))
    assert f"the target 'y' is '{value}' in every row; nothing to learn" in said


def test_a_target_that_is_the_same_in_all_rows_to_learn_from_is_refused(tmp_path: Path) -> None:
    learned = (
        load(write(tmp_path, [f"{row},{row % 2}" for row in range(20)])).train.known().inputs[:, 0]
    )
    task = load(write(tmp_path, [f"{row},{row % 2}" for row in range(20)]))
    numbers = learned * scaling(task)["deviation"] + scaling(task)["mean"]
    rows = {round(number) for number in floats(numbers)}
    for one, other in (("0.5", "1.5"), ("a", "b")):
        path = write(tmp_path, [f"{row},{one if row in rows else other}" for row in range(20)])
        assert "in all 14 rows to learn from (the other 6 are for decisions" in refusal(path)


def pretend_parquet(
    monkeypatch: pytest.MonkeyPatch, path: Path, columns: dict[str, list[Any]]
) -> None:
    """Have `path` read as Parquet with these columns, whether or not pyarrow is there."""

    class Table:
        def to_pydict(self) -> dict[str, list[Any]]:
            return columns

    arrow, parquet = ModuleType("pyarrow"), ModuleType("pyarrow.parquet")
    arrow.ArrowException = RuntimeError  # pyright: ignore[reportAttributeAccessIssue]
    parquet.read_table = lambda path: Table()  # pyright: ignore
    monkeypatch.setitem(sys.modules, "pyarrow", arrow)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", parquet)
    path.write_bytes(b"PAR1")


@pytest.mark.parametrize("name", ["t.parquet", "T.PARQUET", "t.pq", "t.Pq"])
def test_parquet_is_known_by_its_ending(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    columns = {"x": list(range(60)), "y": [row % 2 or None for row in range(60)]}
    pretend_parquet(monkeypatch, tmp_path / name, columns)
    assert "missing in 30 rows (the first: row 1, row 3, " in refusal(tmp_path / name)


def test_nested_columns_are_left_out_and_no_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t.parquet"
    columns = {
        "x": list(range(60)),
        "list": [[row, 2] for row in range(60)],
        "record": [{"a": row} for row in range(60)],
        "y": [row % 2 for row in range(60)],
    }
    pretend_parquet(monkeypatch, path, columns)
    notes = load(path).notes
    for name in ("list", "record"):
        assert f"column '{name}' was left out: its cells are lists or records, not values" in notes
    pretend_parquet(monkeypatch, path, columns | {"y": columns["list"]})
    assert "the cells of the target 'y' are lists or records" in refusal(path)


def test_a_number_that_never_changes_is_left_out(tmp_path: Path) -> None:
    task = load(write(tmp_path, [f"{row},5,{row % 2}" for row in range(60)], "x,same,y"))
    assert task.notes[0] == "target 'y': 2 classes, 0, 1"
    assert "column 'same' was left out: it is 5 in all train rows" in task.notes
    said = refusal(write(tmp_path, [f"5,{row % 2}" for row in range(60)]))
    assert "no usable column besides 'y'" in said


def test_a_class_of_very_few_rows_is_told(tmp_path: Path) -> None:
    rows = [f"{row},{'rare' if row < 2 else 'one' if row % 2 else 'two'}" for row in range(60)]
    told = load(write(tmp_path, rows)).notes[0]
    assert told.endswith("; fewer than 3 rows to learn, decide and measure with have rare")


def test_dates_are_told_to_be_better_as_numbers(tmp_path: Path) -> None:
    rows = [f"2026-11-{1 + row % 28:02},{row % 2}" for row in range(60)]
    (said,) = (note for note in load(write(tmp_path, rows)).notes if "column 'x'" in note)
    assert said.endswith(
        "if they are dates, give them as numbers, for example days since the first"
    )


def test_the_encoding_of_a_table_makes_the_inputs_that_were_learned_from(tmp_path: Path) -> None:
    cells = [(f"{row / 7}" if row % 9 else "na", ("red", "blue", "")[row % 3]) for row in range(90)]
    rows = [f"{size},{colour},{row},{row * 1.5}" for row, (size, colour) in enumerate(cells)]
    task = load(write(tmp_path, rows, "size,colour,huge,y"))
    encoding = json.loads(json.dumps(task.encoding))
    inputs = torch.cat([part.inputs for part in parts_of(task)])
    targets = torch.cat([part.targets for part in parts_of(task)])
    target = encoding["target"]
    for one, answer in zip(inputs, floats(targets), strict=True):
        y = (answer * target["deviation"] + target["mean"]) * target["unit"]
        row = round(y / 1.5)
        assert y == pytest.approx(row * 1.5, abs=1e-3)
        made = encoded(encoding, {"size": cells[row][0], "colour": cells[row][1], "huge": str(row)})
        assert torch.equal(torch.tensor(made), one)


def encoded(encoding: dict[str, Any], row: dict[str, str]) -> list[float]:
    made: list[float] = []
    for column in encoding["columns"]:
        cell = row[column["name"]].strip()
        value = column["if_missing"] if cell.lower() in encoding["missing"] else cell
        if column["kind"] == "words":
            made += [float(value == word) for word in column["words"]]
        else:
            made.append((float(value) / column["unit"] - column["mean"]) / column["deviation"])
    return made
