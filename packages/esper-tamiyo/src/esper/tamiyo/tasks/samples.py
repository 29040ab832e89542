"""Samples of a dataset, read and made into batches: the same numbers wherever and whenever that is.

A part of a task (`split`) reads so in its own process, a worker (`readers`) in another one.

Shapes: B samples of a batch, then whatever one sample is.
"""

import random
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    Dataset,
    default_collate,  # pyright: ignore[reportUnknownVariableType]
)

from esper.contracts import ConfigError, EsperError
from esper.contracts.words import type_of
from esper.tamiyo.loading import failure
from esper.tamiyo.tasks.goals import Goal

type Batch = tuple[Tensor, Tensor]
"""Inputs and targets."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What every sample of a part must be; None: not known yet."""

    task: str = ""
    part: str = ""
    goal: Goal | None = None
    num_classes: int | None = None
    shape: tuple[int, ...] | None = None
    """Of one input."""
    dtype: torch.dtype | None = None
    """Of the inputs."""

    def refusal(self, index: int, what: str) -> ConfigError:
        """Return the error that sample `index` is not as it must be."""
        return ConfigError(f"task {self.task!r}, {self.part} data: sample {index} {what}")


@dataclass(frozen=True, kw_only=True)
class Samples:
    """The samples of a dataset, held to a rule."""

    dataset: Dataset[Any]
    rule: Rule = Rule()

    def read(self, indices: Sequence[int], seed: int) -> Batch:
        """Return these samples as one batch, inputs (B, ...) and targets (B, ...).

        Whatever a sample draws from the global streams of torch, random and numpy depends on `seed` and
        its index only; the streams are left as they were.

        Raises:
            ConfigError: naming the first sample that cannot be read, or is not what the rule says.

        """
        with _streams_kept():
            found = [self._read_one(index, seed) for index in indices]
        first = found[0][0]
        shape, dtype = self.rule.shape or tuple(first.shape), self.rule.dtype or first.dtype
        for index, (one, _) in zip(indices, found, strict=True):
            if tuple(one.shape) != shape or one.dtype != dtype:
                raise self.rule.refusal(
                    index, f"is {tuple(one.shape)} {one.dtype}; expected {shape} {dtype}"
                )
        # In a worker this puts them where the other process sees them, without one more copy.
        inputs: Tensor = default_collate([one for one, _ in found])
        targets: Tensor = default_collate([target for _, target in found])
        _check_values(self.rule, inputs, targets, indices)
        return inputs, targets

    def _read_one(self, index: int, seed: int) -> Batch:
        _seed_streams(seed, index)
        try:
            item: object = self.dataset[index]
        except EsperError:
            raise
        except (Exception, SystemExit) as error:  # anything may happen in a dataset of the user's
            when = f" reading sample {index} of its {self.rule.part} data"
            raise failure("task", self.rule.task, error, when) from error
        is_pair = isinstance(item, tuple | list) and len(cast("Sequence[object]", item)) == 2
        if not is_pair:
            raise self.rule.refusal(
                index,
                f"is {type_of(cast('object', item))}; expected a pair (input Tensor, target)",
            )
        one, target = cast("Sequence[object]", item)
        if not isinstance(one, Tensor):
            raise self.rule.refusal(index, f"has {type_of(one)} as its input; expected a Tensor")
        return one, self._target(index, target, one)

    def _target(self, index: int, target: Any, one: Tensor) -> Tensor:
        """Return a target, which may be a plain number, in the type that the goal asks for."""
        try:
            found = torch.as_tensor(target)
        except (TypeError, ValueError, RuntimeError):
            raise self.rule.refusal(
                index, f"has {type_of(target)} as its target; expected a number or a Tensor"
            ) from None
        goal = self.rule.goal
        if goal is Goal.REGRESSION:
            found = found.to(one.dtype)
        elif goal is not None and not found.is_floating_point():
            found = found.long()
        shape = tuple(one.shape) if goal is Goal.LANGUAGE else ()
        is_right = goal is Goal.REGRESSION or found.dtype == torch.int64
        if goal is not None and not (is_right and tuple(found.shape) == shape):
            kind = "number" if goal is Goal.REGRESSION else "int64 index"
            raise self.rule.refusal(
                index,
                f"has a target of shape {tuple(found.shape)} {found.dtype}; expected "
                + (f"{kind}, shape {shape}" if shape else f"one {kind}"),
            )
        return found


def _check_values(rule: Rule, inputs: Tensor, targets: Tensor, indices: Sequence[int]) -> None:
    for what, values in (("input", inputs), ("target", targets)):
        if values.is_floating_point() and not bool(torch.isfinite(values).all()):
            row = _first_row(~torch.isfinite(values))
            raise rule.refusal(indices[row], f"has numbers in its {what} that are not finite")
    if rule.num_classes is None or rule.goal is Goal.REGRESSION:
        return
    what = "character" if rule.goal is Goal.LANGUAGE else "label"
    for values in (inputs, targets) if rule.goal is Goal.LANGUAGE else (targets,):
        odd = (values < 0) | (values >= rule.num_classes)
        if bool(odd.any()):
            row = _first_row(odd)
            value = int(values[row][odd[row]].flatten()[0])
            raise rule.refusal(
                indices[row], f"has the {what} {value}; expected 0 to {rule.num_classes - 1}"
            )


def _first_row(odd: Tensor) -> int:
    """Return the first sample of which something is odd: (B, ...) booleans."""
    return int(torch.nonzero(odd.reshape(len(odd), -1).any(dim=1))[0])


@contextmanager
def _streams_kept() -> Generator[None]:
    """Leave the global random streams of the CPU as they were."""
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])


def _seed_streams(seed: int, index: int) -> None:
    numbers = np.random.SeedSequence((seed, index)).generate_state(3).tolist()
    # Not `torch.manual_seed`, which would begin the streams of GPUs anew, too.
    torch.default_generator.manual_seed(numbers[0])
    random.seed(numbers[1])
    np.random.seed(numbers[2])
