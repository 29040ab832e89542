"""Measures one forward pass: operations, memory, random draws, and the time it takes.

The crucible writes these numbers into its report; only the random draws and a very generous bound on
time are also checks.
"""

import statistics
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from esper.kasmina.costs import flops_of

NUM_WARMUPS = 3
NUM_REPEATS = 25
TIME_BUDGET_SECONDS = 1.0
"""A kernel so large that it takes longer is timed with fewer repeats, at least one."""


@dataclass(frozen=True, kw_only=True)
class ForwardCost:
    """What one forward pass takes, apart from time."""

    flops: int
    """As in `esper.kasmina.costs`: matrix products, convolutions, attention (multiply-add = 2)."""
    peak_bytes: int
    """The largest set of values alive at one moment, without the input and the weights."""
    num_random_draws: int
    """Operations that draw from a random stream."""


def forward_cost(block: nn.Module, x: Tensor) -> ForwardCost:
    """Run `block` on `x` once and count."""
    with torch.no_grad(), _Meter(block, x) as meter:
        block(x)
    return ForwardCost(
        flops=meter.flops, peak_bytes=meter.peak_bytes, num_random_draws=meter.num_random_draws
    )


def state_bytes(block: nn.Module) -> int:
    """Return the bytes of the parameters and buffers of `block`."""
    tensors = [*block.parameters(), *block.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def median_latency_us(block: nn.Module, x: Tensor) -> float:
    """Return the median time of one forward pass after warm-up, in microseconds."""
    times: list[float] = []
    with torch.no_grad():
        start = time.perf_counter()
        for index in range(NUM_WARMUPS + NUM_REPEATS):
            begin = time.perf_counter()
            block(x)
            _synchronise(x)
            end = time.perf_counter()
            # The first pass counts only if it is so slow that there will be no other.
            slow = end - start > TIME_BUDGET_SECONDS
            if index >= NUM_WARMUPS or slow:
                times.append(end - begin)
            if slow:
                break
    return statistics.median(times) * 1e6


def _synchronise(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)


class _Meter(TorchDispatchMode):
    """Sees every operation of this thread, and of no other."""

    def __init__(self, block: nn.Module, x: Tensor) -> None:
        super().__init__()  # pyright: ignore[reportUnknownMemberType]
        self.flops = 0
        self.peak_bytes = 0
        self.num_random_draws = 0
        given = [x, *block.parameters(), *block.buffers()]
        self._given = {tensor.untyped_storage().data_ptr() for tensor in given}
        self._alive: list[weakref.ref[Tensor]] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        self.num_random_draws += _draws(func, args, kwargs)
        self.flops += flops_of(func, args, kwargs, result)
        self._track(result)
        return result

    def _track(self, result: Any) -> None:
        values = cast("Sequence[Any]", result if isinstance(result, tuple | list) else (result,))
        self._alive += [weakref.ref(value) for value in values if isinstance(value, Tensor)]
        tensors = [tensor for reference in self._alive if (tensor := reference()) is not None]
        # Views share storage, which is counted once, and not at all if it was there before.
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
        made = sum(size for pointer, size in storages.items() if pointer not in self._given)
        self.peak_bytes = max(self.peak_bytes, made)


def _draws(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Tell whether one call draws from a random stream; attention without dropout does not."""
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return False
    names = [argument.name for argument in func._schema.arguments]
    given = dict(zip(names, args, strict=False)) | dict(kwargs)
    return "dropout_p" not in names or given.get("dropout_p", 0.0) > 0
