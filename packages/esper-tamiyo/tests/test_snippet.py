"""The card's program for tables that tests of whole runs do not have; these need no model to be tried."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from esper.tamiyo import Task, load_task
from esper.tamiyo.snippet import snippet
from esper.tamiyo.tasks import Source
from esper.tamiyo.tasks.facts import facts_of, read_facts, write_facts


class Program:
    """Stands for torch's: its answer is the last class."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes

    def module(self) -> "Program":
        return self

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        return torch.arange(float(self.num_classes)).expand(len(inputs), -1)


def used(task: Task, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run the task's program in `folder`; return its variables."""
    write_facts(folder, facts_of(task), task.encoding)
    monkeypatch.chdir(folder)

    def load(path: str) -> Program:
        return Program(task.num_classes)

    monkeypatch.setattr(torch.export, "load", load)
    variables: dict[str, Any] = {}
    exec("\n".join(snippet(facts_of(task), task.encoding)), variables)
    return variables


@pytest.mark.parametrize("num_columns", [2, 40])
def test_a_row_has_every_column_whatever_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_columns: int
) -> None:
    names = ['"it\'s ""a\\b"" {x}"', "ä €", *(f"c{number}" for number in range(num_columns - 2))]
    rows = [",".join([*(str(row * 2) for _ in names), "ab"[row % 2]]) for row in range(60)]
    (tmp_path / "t.csv").write_text("\n".join([",".join([*names, "y"]), *rows]))
    task = load_task("table", Source(path=tmp_path / "t.csv", target="y"))
    seen = used(task, tmp_path, monkeypatch)
    assert list(seen["row"])[:2] == ['it\'s "a\\b" {x}', "ä €"]
    assert seen["inputs"].shape == (1, num_columns)
    assert seen["inputs"].dtype == torch.float32


def test_the_program_makes_the_inputs_that_were_learned_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = [f"{row / 7}" if row % 9 else " NA" for row in range(90)]
    colours = [("red", "b c", "")[row % 3] for row in range(90)]
    rows = [f"{sizes[row]},{colours[row]},{row},{row * 1.5}" for row in range(90)]
    (tmp_path / "t.csv").write_text("\n".join(["size,colour,number,y", *rows]))
    task = load_task("table", Source(path=tmp_path / "t.csv", target="y"))
    assert task.encoding is not None
    number = task.encoding["columns"][-1]
    encode = used(task, tmp_path, monkeypatch)["encode"]
    for one in task.test.known().inputs:
        row = round(float(one[-1]) * number["deviation"] + number["mean"])
        made = encode({"size": sizes[row], "colour": colours[row], "number": row})
        assert torch.equal(torch.tensor(made), one)


def test_what_is_kept_of_a_task_reads_back(tmp_path: Path) -> None:
    task = load_task("digits")
    write_facts(tmp_path, facts_of(task), task.encoding)
    assert read_facts(tmp_path) == (facts_of(task), task.encoding)
    assert json.loads((tmp_path / "task.json").read_text())["dtype"] == "float32"
    stand_in = facts_of(task).stand_in(task.encoding)
    assert stand_in.train.known().inputs.shape == (2, *task.sample_shape)
    (tmp_path / "task.json").unlink()
    assert read_facts(tmp_path) is None
