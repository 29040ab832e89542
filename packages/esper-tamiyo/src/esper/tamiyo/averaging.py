"""A moving average of a model's weights, kept beside it while it trains: `train --ema`.

The controller has it grow along and checkpoints hold it (`copies` of `Tamiyo`); at the end of a run it is
measured and saved beside the model as trained. Buffers, such as a batch norm's statistics, are the model's.
"""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from esper.contracts import ConfigError


def average_of(model: nn.Module, decay: float | None) -> AveragedModel | None:
    """Return an exponential moving average that begins with the first update; None without a decay.

    Raises:
        ConfigError: if the model cannot be copied.

    """
    if decay is None:
        return None
    function: Any = get_ema_multi_avg_fn(decay)  # pyright: ignore[reportUnknownVariableType]
    try:
        return AveragedModel(model, multi_avg_fn=function)
    except Exception as error:  # anything may happen in a model of the user's
        raise ConfigError(
            f"--ema needs a copy of the host, and copy.deepcopy fails with {type(error).__name__}: "
            f"{error}; leave --ema out, or give the host a __deepcopy__"
        ) from error


@contextmanager
def averaged_weights(model: nn.Module, average: AveragedModel) -> Generator[None]:
    """Give `model` the averaged weights within the context, and its own ones back behind it."""
    _swap(model, average.module)
    try:
        yield
    finally:
        _swap(model, average.module)


@torch.no_grad()
def _swap(one: nn.Module, other: nn.Module) -> None:
    for ours, theirs in zip(one.parameters(), other.parameters(), strict=True):
        kept = ours.clone()
        ours.copy_(theirs)
        theirs.copy_(kept)
