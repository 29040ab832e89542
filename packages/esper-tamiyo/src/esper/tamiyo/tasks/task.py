"""Tasks: data in three parts.

The trainer learns on `train`, the controller decides on `validation`, and the figures that a run
reports come from `test`, which nothing else ever sees.

Shapes: N samples, then whatever one sample is, for example (64,) or (1, 8, 8).
"""

import hashlib
import json
import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor

from esper.contracts import ConfigError
from esper.contracts.words import plural, type_of
from esper.tamiyo.tasks.goals import Goal, best_constant
from esper.tamiyo.tasks.readers import Readers
from esper.tamiyo.tasks.samples import Rule
from esper.tamiyo.tasks.split import DatasetSplit, Split
from esper.tamiyo.verdict import Figures

_PARTS = ("train", "validation", "test")


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is to be learned, from which data."""

    name: str
    train: Split | DatasetSplit
    validation: Split | DatasetSplit
    test: Split | DatasetSplit
    num_classes: int
    """Classes, or characters of a language task's alphabet; 1 for regression."""
    image_shape: tuple[int, int, int] | None = None
    """(channels, height, width) when one sample, flat or not, is an image; None otherwise."""
    goal: Goal = Goal.CLASSIFICATION
    notes: tuple[str, ...] = ()
    """What was done with the data, in sentences for the user: scaling, missing values, what was left out."""
    encoding: dict[str, Any] | None = None
    """How raw data becomes `inputs`, and answers classes or numbers, as plain JSON data; exports carry it."""

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Of one input, without the batch."""
        return tuple(self.train.first(1).inputs.shape[1:])

    @property
    def num_features(self) -> int:
        """Numbers in one sample."""
        return math.prod(self.sample_shape)

    def best_constant(self) -> Figures | None:
        """Return how good always giving the same answer is on `test` (`goals.best_constant`).

        None where the data is not in memory, which is not read once more for it.
        """
        if isinstance(self.test, DatasetSplit):
            return None
        return best_constant(self.goal, self.test.targets)

    def data_sha256(self) -> str:
        """Return the sha256 of the samples of all parts; of a dataset, of their number and the first ones."""
        digests = " ".join(getattr(self, part).sha256() for part in _PARTS)
        return hashlib.sha256(digests.encode()).hexdigest()

    def to(self, device: torch.device) -> "Task":
        """Return the same task with its data on a device."""
        return replace(self, **{part: getattr(self, part).to(device) for part in _PARTS})

    def read_by(self, readers: Readers) -> "Task":
        """Return the same task with what is not in memory read by `readers`."""
        return replace(self, **{part: getattr(self, part).read_by(readers) for part in _PARTS})


def check_task(name: str, task: Task) -> Task:
    """Check every field: a function of the user's may have put anything in it.

    Return the task. What is not in memory has been checked by its first samples, and the others are held to
    the same when they are read.

    Raises:
        ConfigError: naming what is wrong.

    """
    for part in _PARTS:
        _check_types(f"task {name!r}, {part} data", getattr(task, part))
    if not (isinstance(task.name, str) and task.name):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(f"task {name!r}: its name is {task.name!r}; expected a word")
    if not (isinstance(task.num_classes, int) and task.num_classes > 0):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(
            f"task {name!r}: num_classes is {task.num_classes!r}; expected a whole number above 0"
        )
    rules = {part: Rule(task=task.name, part=part, goal=task.goal) for part in _PARTS}
    known: dict[str, Split] = {
        part: getattr(task, part).held_to(rule).known() for part, rule in rules.items()
    }
    for part in _PARTS:
        _check_split(task, part, known[part], known["train"])
    _check_image_shape(name, task)
    _check_encoding(name, task)
    inputs = known["train"].inputs
    return replace(
        task,
        **{
            part: getattr(task, part).held_to(
                replace(
                    rule,
                    num_classes=task.num_classes,
                    shape=tuple(inputs.shape[1:]),
                    dtype=inputs.dtype,
                )
            )
            for part, rule in rules.items()
        },
    )


def _check_types(where: str, split: object) -> None:
    if not isinstance(split, Split | DatasetSplit):
        raise ConfigError(
            f"{where} is {type_of(split)}; expected esper.tamiyo.Split or DatasetSplit"
        )
    split.check(where)


def _check_image_shape(name: str, task: Task) -> None:
    shape = cast("object", task.image_shape)
    if shape is None:
        return
    sizes = cast("tuple[object, ...]", shape) if isinstance(shape, tuple) else ()
    fits = len(sizes) == 3 and all(isinstance(size, int) and size > 0 for size in sizes)
    if not fits or math.prod(cast("tuple[int, ...]", sizes)) != task.num_features:
        raise ConfigError(
            f"task {name!r}: image_shape is {shape!r}; expected None or (channels, height, width) of "
            f"one sample, which has {plural(task.num_features, 'number')}"
        )


def _check_split(task: Task, part: str, split: Split, train: Split) -> None:
    where = f"task {task.name!r}, {part} data"
    if len(split) == 0 or len(split.targets) != len(split):
        raise ConfigError(
            f"{where}: {plural(len(split), 'input')} and {plural(len(split.targets), 'target')}; "
            "expected as many of both, and at least one"
        )
    if split.inputs.shape[1:] != train.inputs.shape[1:]:
        raise ConfigError(
            f"{where}: one sample is {tuple(split.inputs.shape[1:])}; expected "
            f"{tuple(train.inputs.shape[1:])} as in the train data"
        )
    if task.goal is Goal.LANGUAGE:
        _check_texts(where, task, split)
        return
    if not split.inputs.is_floating_point():
        raise ConfigError(f"{where}: inputs are {split.inputs.dtype}; expected floating point")
    _check_finite(where, "inputs", split.inputs)
    if task.goal is Goal.REGRESSION:
        _check_numbers(where, split.targets)
        return
    if split.targets.dtype != torch.int64 or split.targets.ndim != 1:
        raise ConfigError(
            f"{where}: targets are {tuple(split.targets.shape)} {split.targets.dtype}; "
            "expected one int64 class index per sample"
        )
    low, high = int(split.targets.min()), int(split.targets.max())
    if low < 0 or high >= task.num_classes:
        raise ConfigError(
            f"{where}: labels run from {low} to {high}; expected 0 to {task.num_classes - 1}"
        )


def _check_texts(where: str, task: Task, split: Split) -> None:
    for field, value in (("inputs", split.inputs), ("targets", split.targets)):
        if value.dtype != torch.int64 or value.ndim != 2 or value.shape != split.inputs.shape:
            raise ConfigError(
                f"{where}: {field} are {tuple(value.shape)} {value.dtype}; expected (samples, length) int64 "
                "character indices, targets one position behind the inputs"
            )
        low, high = int(value.min()), int(value.max())
        if low < 0 or high >= task.num_classes:
            raise ConfigError(
                f"{where}: {field} run from {low} to {high}; expected 0 to {task.num_classes - 1}"
            )


def _check_numbers(where: str, targets: Tensor) -> None:
    if not targets.is_floating_point() or targets.ndim != 1:
        raise ConfigError(
            f"{where}: targets are {tuple(targets.shape)} {targets.dtype}; expected one floating-point "
            "number per sample"
        )
    _check_finite(where, "targets", targets)


def _check_finite(where: str, field: str, values: Tensor) -> None:
    rows = values.flatten(1) if values.ndim > 1 else values[:, None]
    bad = torch.nonzero(~torch.isfinite(rows).all(dim=1))
    if len(bad) == 0:
        return
    row = rows[int(bad[0])]
    raise ConfigError(
        f"{where}: {field} are not finite in {len(bad)} of {len(values)} samples; the first is sample "
        f"{int(bad[0])} (counted from 0), with {float(row[~torch.isfinite(row)][0]):g}; mend or remove them"
    )


def _check_encoding(name: str, task: Task) -> None:
    encoding = cast("object", task.encoding)
    if encoding is not None and not isinstance(encoding, dict):
        raise ConfigError(
            f"task {name!r}: encoding is {type_of(encoding)}; expected a dict or None"
        )
    try:
        json.dumps(encoding, allow_nan=False, ensure_ascii=False).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"task {name!r}: encoding cannot be written as JSON ({error}); expected plain data"
        ) from error


def shuffled(
    name: str,
    inputs: Tensor,
    targets: Tensor,
    *,
    num_classes: int,
    held_out: tuple[int, int],
    image_shape: tuple[int, int, int] | None = None,
    goal: Goal = Goal.CLASSIFICATION,
    notes: tuple[str, ...] = (),
    encoding: dict[str, Any] | None = None,
) -> Task:
    """Shuffle once, the same way for every run, and cut off `held_out` validation and test samples."""
    train, validation, test = (
        Split(inputs=inputs[part], targets=targets[part]) for part in parts(len(inputs), held_out)
    )
    return Task(
        name=name,
        train=train,
        validation=validation,
        test=test,
        num_classes=num_classes,
        image_shape=image_shape,
        goal=goal,
        notes=notes,
        encoding=encoding,
    )


def parts(num_samples: int, held_out: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Return which samples are train, validation and test data, the same for every run."""
    order = torch.randperm(num_samples, generator=torch.Generator().manual_seed(0))
    num_validation, num_test = held_out
    ends = (0, num_test, num_test + num_validation, num_samples)
    test, validation, train = (order[start:end] for start, end in pairwise(ends))
    return train, validation, test
