"""What a run keeps of its task, so that its model can be taken home where the data is no longer.

A run writes `task.json`, and `encoding.json` where the task has one; `exporting` reads them.
"""

import json
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, ValidationError, field_validator

from esper.contracts import ConfigError, Contract, Sha256
from esper.tamiyo.folder import write_whole
from esper.tamiyo.tasks.goals import Goal
from esper.tamiyo.tasks.split import Split
from esper.tamiyo.tasks.task import Task

FACTS_FILE = "task.json"
ENCODING_FILE = "encoding.json"


class TaskFacts(Contract):
    """A task without its data: the content of `task.json`."""

    format_version: Literal[1] = 1
    name: str
    goal: Goal
    num_classes: int = Field(ge=1)
    image_shape: tuple[int, int, int] | None
    shape: tuple[int, ...]
    """Of one sample's inputs."""
    dtype: str
    """Of the inputs, as torch calls it, for example `float32`."""
    num_train: int
    num_validation: int
    num_test: int
    data_sha256: Sha256 | None = None
    """Of the samples that the run saw, see `Task.data_sha256`; None if the run is older than that."""
    notes: tuple[str, ...]

    @field_validator("dtype")
    @classmethod
    def _check_dtype(cls, dtype: str) -> str:
        if not isinstance(getattr(torch, dtype, None), torch.dtype):
            raise ValueError(f"torch has no type {dtype!r}")
        return dtype

    def stand_in(self, encoding: dict[str, Any] | None) -> Task:
        """Return a task of this kind with two invented samples, for which a built-in host is the same."""
        dtype = getattr(torch, self.dtype)
        generator = torch.Generator().manual_seed(0)
        size = (2, *self.shape)
        if self.goal is Goal.LANGUAGE:
            inputs = torch.randint(self.num_classes, size, generator=generator, dtype=dtype)
            targets = inputs
        else:
            inputs = torch.rand(size, generator=generator).to(dtype)
            is_number = self.goal is Goal.REGRESSION
            targets = torch.zeros(2, dtype=torch.float32 if is_number else torch.int64)
        split = Split(inputs=inputs, targets=targets)
        return Task(
            name=self.name,
            train=split,
            validation=split,
            test=split,
            num_classes=self.num_classes,
            image_shape=self.image_shape,
            goal=self.goal,
            notes=self.notes,
            encoding=encoding,
        )


def facts_of(task: Task) -> TaskFacts:
    """Return what there is to know of a task beside its data."""
    inputs = task.train.first(1).inputs
    return TaskFacts(
        name=task.name,
        goal=task.goal,
        num_classes=task.num_classes,
        image_shape=task.image_shape,
        shape=tuple(inputs.shape[1:]),
        dtype=str(inputs.dtype).removeprefix("torch."),
        num_train=len(task.train),
        num_validation=len(task.validation),
        num_test=len(task.test),
        data_sha256=task.data_sha256(),
        notes=task.notes,
    )


def write_facts(folder: Path, facts: TaskFacts, encoding: dict[str, Any] | None) -> None:
    """Write `task.json`, and `encoding.json` if the task says how its inputs are made."""
    write_whole(folder / FACTS_FILE, facts.model_dump_json(indent=2) + "\n")
    if encoding is not None:
        write_encoding(folder, encoding)


def write_encoding(folder: Path, encoding: dict[str, Any]) -> None:
    """Write `encoding.json`."""
    text = json.dumps(encoding, indent=1, ensure_ascii=False, allow_nan=False)
    write_whole(folder / ENCODING_FILE, text + "\n")


def read_facts(folder: Path) -> tuple[TaskFacts, dict[str, Any] | None] | None:
    """Return what a run kept of its task, and its encoding; None if the run is older than that.

    Raises:
        ConfigError: if a file is damaged.

    """
    path, encoding = folder / FACTS_FILE, folder / ENCODING_FILE
    if not path.is_file():
        return None
    try:
        facts = TaskFacts.model_validate_json(path.read_bytes())
        path = encoding
        return facts, json.loads(path.read_bytes()) if path.is_file() else None
    except (ValidationError, ValueError) as error:
        raise ConfigError(f"{path} is damaged ({error}); restore a copy") from error
