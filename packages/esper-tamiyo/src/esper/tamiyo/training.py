"""The training loop: one epoch of mini-batches, and a measurement.

Deliberately plain, as in anybody's script: nothing here knows of seeds. Shapes: B batch, N samples.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor, nn

from esper.contracts import ConfigError
from esper.contracts.words import plural
from esper.tamiyo.stopping import StopRequestedError
from esper.tamiyo.tasks.goals import Goal, correct, losses, mean_loss
from esper.tamiyo.tasks.split import DatasetSplit, Split
from esper.tamiyo.verdict import Figures

_MEASURED_AT_ONCE = 1_024
"""Samples; more would cost memory and gain nothing."""
_MEASURED_BYTES = 64 * 2**20
"""So large may these be: a thousand photographs at once are none too few."""

_DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Means:
    """What a run computes with."""

    device: torch.device
    autocast: torch.dtype | None = None
    """Type of mixed precision; None computes in the parameters' own."""
    accumulate: int = 1
    """Mini-batches whose gradients make one step of the optimizer."""

    def precision(self) -> AbstractContextManager[object]:
        """Return the context that a forward pass runs in."""
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.autocast)

    def scaler(self) -> torch.amp.GradScaler | None:  # pyright: ignore[reportPrivateImportUsage]
        """Return a gradient scaler where one is needed: for float16."""
        if self.autocast is not torch.float16:
            return None
        return torch.amp.GradScaler(self.device.type)  # pyright: ignore


def choose_means(device: str, precision: str, accumulate: int) -> Means:
    """Return what to compute with.

    Raises:
        ConfigError: if there is no such device, or it cannot compute in that precision.

    """
    has_cuda = torch.cuda.is_available()
    name = ("cuda" if has_cuda else "cpu") if device == "auto" else device
    if name.startswith("cuda"):
        count = torch.cuda.device_count() if has_cuda else 0
        number = int(name.partition(":")[2] or 0)
        if number >= count:
            has = plural(count, "CUDA device") if count else "no CUDA device"
            raise ConfigError(
                f"device {device!r} is not here: this machine has {has}; use --device cpu"
            )
    return Means(device=torch.device(name), autocast=_DTYPES[precision], accumulate=accumulate)


@dataclass(kw_only=True)
class Progress:
    """How far an epoch got: with it, an interrupted one goes on where it was."""

    batches: int = 0
    """Mini-batches done."""
    loss_sum: float = 0.0
    """Of their samples."""


def train_epoch(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: Split | DatasetSplit,
    *,
    goal: Goal = Goal.CLASSIFICATION,
    batch_size: int,
    order_seed: int,
    order: Tensor | None = None,
    means: Means | None = None,
    scaler: Any | None = None,
    after_step: Callable[[], None] = lambda: None,
    stop: Callable[[], bool] = lambda: False,
    progress: Progress | None = None,
) -> float:
    """Train one epoch of samples of `data` and return the mean loss.

    Their order is `order`, or depends on `order_seed` only, never on the global random streams.

    Args:
        model: to be trained.
        optimizer: of its parameters.
        data: on the model's device.
        goal: what the loss is.
        batch_size: samples of one mini-batch; see `trained_with` for the last one.
        order_seed: decides what chance has to do with reading them, and their order where none is given.
        order: which samples, in which order (`order_of_epoch`); None: one pass over all.
        means: precision, and mini-batches to one step.
        scaler: the gradient scaler that the precision needs.
        after_step: called behind each step of the optimizer, for example a scheduler's step.
        stop: asked before each mini-batch that begins a step.
        progress: where to begin, kept up to date.

    Raises:
        StopRequestedError: if `stop` said so; `progress` tells how far the epoch got.

    """
    means = means or Means(device=torch.device("cpu"))
    progress = progress or Progress()
    model.train()
    if order is None:
        order = _pass_over(len(data), order_seed)
    order = order[: trained_with(len(order), batch_size)]
    sizes = [min(batch_size, len(order) - start) for start in range(0, len(order), batch_size)]
    reading = data.batches(order, batch_size, begin=progress.batches, seed=order_seed)
    # On the device until the end: a GPU need not wait for each loss to be read.
    found: list[Tensor] = []
    begun = progress.batches
    precision = means.precision()
    roles = _roles(len(sizes), means.accumulate)[begun:]
    optimizer.zero_grad(set_to_none=True)
    for (inputs, targets), (begins, share, ends) in zip(reading, roles, strict=True):
        if begins and stop():
            progress.batches += len(found)
            progress.loss_sum = _add(progress.loss_sum, found, sizes[begun:])
            raise StopRequestedError
        with precision:
            loss = mean_loss(goal, model(inputs), targets)
        found.append(loss.detach())
        _backward(loss if share == 1 else loss / share, scaler)
        if ends:
            was_taken = _step(optimizer, scaler)
            optimizer.zero_grad(set_to_none=True)
            if was_taken:
                after_step()
    progress.loss_sum = _add(progress.loss_sum, found, sizes[begun:])
    progress.batches = len(sizes)
    return progress.loss_sum / len(order)


def trained_with(num_samples: int, batch_size: int) -> int:
    """Return how many samples of an epoch are trained with: all, but for a last mini-batch of a single one.

    Batch norms have no variance of a single sample, and torch refuses it. In the next pass it is another one.
    """
    is_alone = num_samples > batch_size > 1 and num_samples % batch_size == 1
    return num_samples - is_alone


def order_of_epoch(num_samples: int, epoch: int, *, size: int, seed: int) -> Tensor:
    """Return which samples `(size,)` an epoch trains with, in which order.

    Passes over all samples follow each other, each in an order of its own, and are cut into epochs of `size`
    samples. With as many as there are, each epoch is one pass.
    """
    begin, end = epoch * size, (epoch + 1) * size
    first, last = begin // num_samples, (end - 1) // num_samples
    pass_over = _pass_over if size == num_samples else _kept_pass_over
    passes = [
        pass_over(num_samples, order_seed_of(number, seed)) for number in range(first, last + 1)
    ]
    order = passes[0] if len(passes) == 1 else torch.cat(passes)
    return order[begin - first * num_samples :][:size]


def order_seed_of(number: int, seed: int) -> int:
    """Return what decides the order in a run's pass, or a part of it, of this number."""
    return seed * 1_000_003 + number


@lru_cache(maxsize=1)
def _kept_pass_over(num_samples: int, order_seed: int) -> Tensor:
    """Return the same; the epochs of one pass follow each other."""
    return _pass_over(num_samples, order_seed)


def _pass_over(num_samples: int, order_seed: int) -> Tensor:
    return torch.randperm(num_samples, generator=torch.Generator().manual_seed(order_seed))


def _roles(num_batches: int, accumulate: int) -> list[tuple[bool, int, bool]]:
    """Tell of each mini-batch whether it begins a step, of how many that step is, and whether it ends it.

    The last step of an epoch may be of fewer mini-batches; it is their mean all the same.
    """
    starts = range(0, num_batches, accumulate)
    sizes = [min(accumulate, num_batches - start) for start in starts]
    return [(place == 0, size, place == size - 1) for size in sizes for place in range(size)]


def _add(total: float, found: Sequence[Tensor], sizes: Sequence[int]) -> float:
    """Return `total` and the losses of the samples of mini-batches, added one after the other."""
    values = cast("list[float]", torch.stack(list(found)).tolist()) if found else []  # pyright: ignore[reportUnknownMemberType]
    for value, size in zip(values, sizes, strict=False):  # the last ones were not trained with
        total += value * size
    return total


def _backward(loss: Tensor, scaler: Any | None) -> None:
    scaled: Any = loss if scaler is None else scaler.scale(loss)
    scaled.backward()


def _step(optimizer: torch.optim.Optimizer, scaler: Any | None) -> bool:
    """Take a step, and tell whether it was taken: a scaler skips one whose gradients are not finite."""
    if scaler is None:
        optimizer.step()  # pyright: ignore[reportUnknownMemberType]
        return True
    before = scaler.get_scale()
    scaler.step(optimizer)
    scaler.update()
    return scaler.get_scale() >= before


def measure(
    model: nn.Module,
    data: Split | DatasetSplit,
    *,
    goal: Goal = Goal.CLASSIFICATION,
    means: Means | None = None,
) -> Figures:
    """Return mean loss and accuracy on `data`; leaves the model's mode as it was."""
    means = means or Means(device=torch.device("cpu"))
    was_training = model.training
    model.eval()
    found: list[Tensor] = []
    right: list[Tensor] = []
    with torch.no_grad(), means.precision():
        for inputs, targets in data.in_order(_measured_at_once(data)):
            answers = model(inputs).float()
            found.append(losses(goal, answers, targets))
            correct_ones = correct(goal, answers, targets)
            if correct_ones is not None:
                right.append(correct_ones)
    model.train(was_training)
    all_losses = torch.cat(found)  # (N,)
    return Figures(
        loss=all_losses.mean().item(),
        accuracy=torch.cat(right).mean().item() if right else None,
        losses=cast("list[float]", all_losses.tolist()),  # pyright: ignore[reportUnknownMemberType]
    )


def _measured_at_once(data: Split | DatasetSplit) -> int:
    one = data.first(1).inputs
    return max(1, min(_MEASURED_AT_ONCE, _MEASURED_BYTES // max(1, one.nbytes)))
