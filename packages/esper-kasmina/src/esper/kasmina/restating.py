"""Running statistics of batch norms, restated while the host computes without one of its blocks, or with all.

Norms behind a block have got used to it. With statistics of the model that has the block, the model without
it would look worse than it is. So data is run through it first, as after weight averaging
(`torch.optim.swa_utils.update_bn`); at the end the statistics are again what they were. Statistics that were
kept while weights changed fast lag behind them: the model with the block is compared with restated ones, too.
"""

from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

type BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


@contextmanager
def restated(model: nn.Module, run: Callable[[], object] | None) -> Generator[None]:
    """Within the context, batch norms have the statistics of what `run` puts through `model`.

    Those that keep none, and those that `run` does not reach, stay as they are; `None` changes nothing.
    """
    norms = [
        _Restating(module)
        for module in model.modules()
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d))
        and module.running_mean is not None
    ]
    if run is None or not norms:
        yield
        return
    with ExitStack() as afterwards:
        for norm in norms:
            afterwards.callback(norm.restore)
        with ExitStack() as hooks:
            for norm in norms:
                norm.begin(hooks)
            run()
        for norm in norms:
            norm.end()
        yield


class _Restating:
    """One norm, which counts as in training while data runs through it."""

    def __init__(self, norm: BatchNorm) -> None:
        self._norm = norm
        self._momentum = norm.momentum
        self._is_running = False
        self._statistics = [statistic.clone() for statistic in self._live()]
        self._num_batches = 0

    def _live(self) -> list[Tensor]:
        norm = self._norm
        live = (norm.running_mean, norm.running_var, norm.num_batches_tracked)
        return [statistic for statistic in live if statistic is not None]

    def begin(self, hooks: ExitStack) -> None:
        """Begin anew, with the mean over all batches that come."""
        self._norm.momentum = None
        self._norm.reset_running_stats()
        hooks.callback(self._norm.register_forward_pre_hook(self._before).remove)
        hooks.callback(self._norm.register_forward_hook(self._after).remove)

    def _before(self, norm: nn.Module, args: tuple[Any, ...]) -> None:
        x = args[0]
        if x.numel() > x.shape[1] and not norm.training:  # of a single value there is no variance
            norm.training = self._is_running = True
        self._num_batches += norm.training

    def _after(self, norm: nn.Module, args: tuple[Any, ...], output: Any) -> None:  # noqa: ARG002
        self._leave()

    def _leave(self) -> None:
        if self._is_running:
            self._norm.training = self._is_running = False

    def end(self) -> None:
        """Keep what was found; where nothing came, the former statistics."""
        if self._num_batches == 0:
            self.restore()

    @torch.no_grad()
    def restore(self) -> None:
        """Be again what it was."""
        self._norm.momentum = self._momentum
        self._leave()
        for live, kept in zip(self._live(), self._statistics, strict=True):
            live.copy_(kept)
