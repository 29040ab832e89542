"""The parts of a task: samples in memory, or in a dataset from which they are read batch by batch.

Whoever trains, measures or checks asks both for the same, and never which of them it is.

Shapes: N samples, B of a batch, then whatever one sample is, for example (64,) or (1, 8, 8).
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from esper.contracts import ConfigError
from esper.contracts.words import type_of
from esper.tamiyo.tasks.readers import Readers, Reading
from esper.tamiyo.tasks.samples import Batch, Rule, Samples

_KNOWN = 8
"""Samples of a dataset that are checked before training."""
_NOTHING_KNOWN = Rule()
_HERE = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Split:
    """One part of a task, in memory."""

    inputs: Tensor
    """(N, …), floating point; for a language task (N, T) int64 character indices."""
    targets: Tensor
    """(N,) int64 class indices; (N,) floating point for regression; (N, T) int64 for a language task."""

    def __len__(self) -> int:
        return len(self.inputs)

    def to(self, device: torch.device) -> "Split":
        """Return the same samples on a device."""
        return Split(inputs=self.inputs.to(device), targets=self.targets.to(device))

    def first(self, number: int) -> "Split":
        """Return the first samples, at most `number`."""
        return Split(inputs=self.inputs[:number], targets=self.targets[:number])

    def known(self) -> "Split":
        """Return what can be checked before training: everything."""
        return self

    def sha256(self) -> str:
        """Return the sha256 over types, shapes and bytes of all samples."""
        digest = hashlib.sha256()
        for values in (self.inputs, self.targets):
            digest.update(f"{values.dtype} {tuple(values.shape)};".encode())
            digest.update(values.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def batches(
        self, order: Tensor, size: int, *, begin: int = 0, seed: int = 0
    ) -> Iterator[Batch]:
        """Yield batches of `size` samples in this order, from number `begin` on; `seed` decides nothing."""
        del seed
        for batch in torch.split(order.to(self.inputs.device), size)[begin:]:
            yield self.inputs[batch], self.targets[batch]

    def in_order(self, size: int) -> Iterator[Batch]:
        """Yield all samples as they come, in batches of `size`."""
        for start in range(0, len(self), size):
            some = slice(start, start + size)
            yield self.inputs[some], self.targets[some]

    def held_to(self, rule: Rule) -> "Split":
        """Return it as it is: all of it has been checked."""
        del rule
        return self

    def read_by(self, readers: Readers) -> "Split":
        """Return it as it is: there is nothing to read."""
        del readers
        return self

    def check(self, where: str) -> None:
        """Pass silently if both are tensors of samples. Raises `ConfigError` otherwise."""
        for field in ("inputs", "targets"):
            value: object = getattr(self, field)
            if not isinstance(value, Tensor):
                raise ConfigError(f"{where}: {field} is {type_of(value)}; expected a Tensor")
            if value.ndim == 0:
                raise ConfigError(f"{where}: {field} is a single number; expected one per sample")


@dataclass(frozen=True, kw_only=True)
class DatasetSplit:
    """One part of a task, in a map-style dataset that is read batch by batch.

    What items draw from the global streams of torch, random and numpy, to augment them for example, is the
    same in every run of the same seed, by however many workers they are read and wherever a run goes on.
    """

    dataset: Dataset[Any]
    """Items `(input Tensor, target)`; a target is a number, for a language task a Tensor."""
    rule: Rule = _NOTHING_KNOWN
    """What its items are held to; found by the trainer."""
    device: torch.device = _HERE
    """Where batches go."""
    reading: Reading | None = None
    """What reads ahead; None reads here."""

    def __len__(self) -> int:
        return len(cast("Sequence[Any]", self.dataset))

    def to(self, device: torch.device) -> "DatasetSplit":
        """Return the same samples, which go to a device batch by batch."""
        return replace(self, device=device)

    def first(self, number: int) -> Split:
        """Return the first samples, at most `number`, in memory."""
        indices = range(min(number, len(self)))
        inputs, targets = Samples(dataset=self.dataset, rule=self.rule).read(indices, 0)
        return Split(inputs=inputs, targets=targets).to(self.device)

    def known(self) -> Split:
        """Return what can be checked before training: the first samples."""
        return self.first(_KNOWN)

    def sha256(self) -> str:
        """Return the sha256 over the number of samples and the first ones, as `known` has them."""
        return hashlib.sha256(f"{len(self)} {self.known().sha256()}".encode()).hexdigest()

    def batches(
        self, order: Tensor, size: int, *, begin: int = 0, seed: int = 0
    ) -> Iterator[Batch]:
        """Yield batches of `size` samples in this order, from number `begin` on; `seed` decides chance."""
        batches = torch.split(order, size)[begin:]
        return self._read((cast("list[int]", batch.tolist()) for batch in batches), seed)  # pyright: ignore[reportUnknownMemberType]

    def in_order(self, size: int) -> Iterator[Batch]:
        """Yield all samples as they come, in batches of `size`; chance is the same each time."""
        ends = range(size, len(self) + size, size)
        return self._read((range(end - size, min(end, len(self))) for end in ends), 0)

    def _read(self, batches: Iterable[Sequence[int]], seed: int) -> Iterator[Batch]:
        samples = Samples(dataset=self.dataset, rule=self.rule)
        read = self.reading or Readers().add(samples)
        is_far = self.device.type == "cuda"
        for inputs, targets in read(batches, seed):
            yield (
                inputs.to(self.device, non_blocking=is_far),
                targets.to(self.device, non_blocking=is_far),
            )

    def held_to(self, rule: Rule) -> "DatasetSplit":
        """Return it with every sample held to a rule, when it is read."""
        return replace(self, rule=rule)

    def read_by(self, readers: Readers) -> "DatasetSplit":
        """Return it read by processes of its own, if `readers` has any."""
        reading = readers.add(Samples(dataset=self.dataset, rule=self.rule))
        return replace(self, reading=reading)

    def check(self, where: str) -> None:
        """Pass silently if the dataset has a length and items. Raises `ConfigError` otherwise."""
        dataset: object = self.dataset
        has_items = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
        if isinstance(dataset, IterableDataset) or not has_items:
            raise ConfigError(
                f"{where}: dataset is {type_of(dataset)}; expected a map-style Dataset, which has "
                "a length, and items (input Tensor, target) by index"
            )
        if len(self) == 0:
            raise ConfigError(f"{where}: the dataset is empty; expected at least one sample")
