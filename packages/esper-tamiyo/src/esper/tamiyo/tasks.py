"""Tasks: labelled data in three parts, in memory.

The trainer learns on `train`, the controller decides on `validation`, and the figures that a run
reports come from `test`, which nothing else ever sees.

Shapes: N samples, then whatever one sample is, for example (64,) or (1, 8, 8).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from esper.contracts import ConfigError
from esper.tamiyo.loading import call, resolve


@dataclass(frozen=True, kw_only=True)
class Split:
    """One part of a task."""

    inputs: Tensor
    """(N, …), floating point."""
    targets: Tensor
    """(N,), int64 class indices."""

    def __len__(self) -> int:
        return len(self.inputs)


@dataclass(frozen=True, kw_only=True)
class Task:
    """A classification task."""

    name: str
    train: Split
    validation: Split
    test: Split
    num_classes: int
    image_shape: tuple[int, int, int] | None = None
    """(channels, height, width) when one sample, flat or not, is an image; None otherwise."""

    @property
    def num_features(self) -> int:
        """Numbers in one sample."""
        return int(self.train.inputs[0].numel())


def digits() -> Task:
    """Return scikit-learn's 1,797 handwritten digits, 8 x 8 pixels scaled to [0, 1], 10 classes."""
    from sklearn.datasets import load_digits  # pyright: ignore[reportUnknownVariableType]

    data = cast("Any", load_digits())
    inputs = torch.tensor(data.data / 16.0, dtype=torch.float32)
    targets = torch.tensor(data.target, dtype=torch.int64)
    return _split("digits", inputs, targets, held_out=(300, 450), image_shape=(1, 8, 8))


def mnist1d() -> Task:
    """Return MNIST-1D (Greydanus & Kobak 2024), generated: 5,000 signals of 40 numbers, 10 classes."""
    from mnist1d.data import (  # pyright: ignore[reportMissingTypeStubs]
        get_dataset_args,  # pyright: ignore[reportUnknownVariableType]
        make_dataset,  # pyright: ignore[reportUnknownVariableType]
    )

    # The generator draws from the global streams of numpy and random; the run's own must not notice.
    numpy_state = np.random.get_state()
    data: Any = make_dataset(get_dataset_args())
    np.random.set_state(numpy_state)
    inputs = torch.tensor(np.concatenate([data["x"], data["x_test"]]), dtype=torch.float32)
    targets = torch.tensor(np.concatenate([data["y"], data["y_test"]]), dtype=torch.int64)
    return _split("mnist1d", inputs, targets, held_out=(500, 1000), image_shape=(1, 1, 40))


TASKS: Mapping[str, Callable[[], object]] = {"digits": digits, "mnist1d": mnist1d}
"""The built-in tasks."""


def load_task(name: str) -> Task:
    """Return a built-in task, or what `module:function` returns.

    Raises:
        NotFoundError, ConfigError: if there is no such task, or it is no usable `Task`.

    """
    task: object = call("task", name, resolve("task", name, TASKS))
    if not isinstance(task, Task):
        raise ConfigError(
            f"task {name!r} returned a {type(task).__name__}; expected esper.tamiyo.Task"
        )
    _check_task(name, task)
    return task


def _check_task(name: str, task: Task) -> None:
    """Check every field: a function of the user's may have put anything in it."""
    for part in ("train", "validation", "test"):
        _check_types(f"task {name!r}, {part} data", getattr(task, part))
    if not (isinstance(task.name, str) and task.name):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(f"task {name!r}: its name is {task.name!r}; expected a word")
    if not (isinstance(task.num_classes, int) and task.num_classes > 0):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConfigError(
            f"task {name!r}: num_classes is {task.num_classes!r}; expected a whole number above 0"
        )
    for part in ("train", "validation", "test"):
        _check_split(task, part, getattr(task, part))
    _check_image_shape(name, task)


def _check_types(where: str, split: object) -> None:
    if not isinstance(split, Split):
        raise ConfigError(f"{where} is a {type(split).__name__}; expected esper.tamiyo.Split")
    for field in ("inputs", "targets"):
        value: object = getattr(split, field)
        if not isinstance(value, Tensor):
            raise ConfigError(f"{where}: {field} is a {type(value).__name__}; expected a Tensor")
        if value.ndim == 0:
            raise ConfigError(f"{where}: {field} is a single number; expected one per sample")


def _check_image_shape(name: str, task: Task) -> None:
    shape = cast("object", task.image_shape)
    if shape is None:
        return
    sizes = cast("tuple[object, ...]", shape) if isinstance(shape, tuple) else ()
    fits = len(sizes) == 3 and all(isinstance(size, int) and size > 0 for size in sizes)
    if not fits or math.prod(cast("tuple[int, ...]", sizes)) != task.num_features:
        raise ConfigError(
            f"task {name!r}: image_shape is {shape!r}; expected None or (channels, height, width) of "
            f"one sample, which has {task.num_features} numbers"
        )


def _check_split(task: Task, part: str, split: Split) -> None:
    where = f"task {task.name!r}, {part} data"
    if len(split) == 0 or len(split.targets) != len(split):
        raise ConfigError(
            f"{where}: {len(split)} inputs and {len(split.targets)} targets; "
            "expected as many of both, and at least one"
        )
    if split.inputs.shape[1:] != task.train.inputs.shape[1:]:
        raise ConfigError(
            f"{where}: one sample is {tuple(split.inputs.shape[1:])}; expected "
            f"{tuple(task.train.inputs.shape[1:])} as in the train data"
        )
    if not split.inputs.is_floating_point() or not bool(torch.isfinite(split.inputs).all()):
        raise ConfigError(f"{where}: inputs must be floating point and finite")
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


def _split(
    name: str,
    inputs: Tensor,
    targets: Tensor,
    *,
    held_out: tuple[int, int],
    image_shape: tuple[int, int, int],
) -> Task:
    """Shuffle once, the same way for every run, and cut off validation and test data."""
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(0))
    num_validation, num_test = held_out
    ends = (0, num_test, num_test + num_validation, len(order))
    test, validation, train = (
        Split(inputs=inputs[order[start:end]], targets=targets[order[start:end]])
        for start, end in pairwise(ends)
    )
    return Task(
        name=name,
        train=train,
        validation=validation,
        test=test,
        num_classes=int(targets.max()) + 1,
        image_shape=image_shape,
    )
