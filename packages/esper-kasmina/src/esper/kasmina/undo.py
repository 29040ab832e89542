"""The way back: everything that a graft may change, taken before it and put back bit for bit.

The bed takes a `Snapshot` when a seed enters GRAFTING and drops it at the verdict. It costs one copy
of weights, gradients, buffers and optimizer state in memory.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self, cast

import numpy as np
import torch
from torch import Tensor, nn

from esper.kasmina.owners import (
    Group,
    copy_settings,
    copy_value,
    groups_of,
    per_group_lists,
    schedulers_in,
)


@dataclass(frozen=True, kw_only=True)
class RandomState:
    """The global random streams of torch (CPU, every CUDA device), Python and NumPy."""

    torch_cpu: Tensor
    torch_cuda: list[Tensor]
    python: tuple[Any, ...]
    numpy: dict[str, Any]

    @classmethod
    def take(cls) -> Self:
        """Read the streams; draws nothing."""
        used_cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
        return cls(
            torch_cpu=torch.get_rng_state().clone(),
            torch_cuda=torch.cuda.get_rng_state_all() if used_cuda else [],
            python=random.getstate(),
            numpy=np.random.get_state(legacy=False),
        )

    def restore(self) -> None:
        """Put every stream back to where it was."""
        torch.set_rng_state(self.torch_cpu)
        if self.torch_cuda:
            torch.cuda.set_rng_state_all(self.torch_cuda)
        random.setstate(self.python)
        np.random.set_state(self.numpy)


@dataclass(frozen=True, kw_only=True)
class _SavedParameter:
    parameter: nn.Parameter
    value: Tensor
    gradient: Tensor | None


@dataclass(frozen=True, kw_only=True)
class _SavedBuffer:
    module: nn.Module
    name: str
    buffer: Tensor
    value: Tensor


@dataclass(frozen=True, kw_only=True)
class _SavedScheduler:
    scheduler: Any
    state: Mapping[str, Any]
    lists: Mapping[str, list[Any]]


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The host, its optimizer and scheduler, and the global random streams at one moment."""

    optimizer: torch.optim.Optimizer
    _parameters: list[_SavedParameter]
    _buffers: list[_SavedBuffer]
    _groups: list[tuple[Group, Group]]
    _state: dict[Any, dict[Any, Any]]
    _schedulers: list[_SavedScheduler]
    _random: RandomState

    @classmethod
    def take(
        cls, model: nn.Module, optimizer: torch.optim.Optimizer, scheduler: object | None
    ) -> Self:
        """Copy everything; changes nothing."""
        state = cast("dict[Any, dict[Any, Any]]", optimizer.state)
        return cls(
            optimizer=optimizer,
            _parameters=[
                _SavedParameter(
                    parameter=parameter,
                    value=parameter.detach().clone(),
                    gradient=None if parameter.grad is None else parameter.grad.detach().clone(),
                )
                for parameter in model.parameters()
            ],
            _buffers=[
                _SavedBuffer(module=module, name=name, buffer=buffer, value=buffer.clone())
                for module in model.modules()
                for name, buffer in module.named_buffers(recurse=False)
            ],
            _groups=[(group, copy_settings(group)) for group in groups_of(optimizer)],
            _state={key: _copy_state(value) for key, value in state.items()},
            _schedulers=[_save_scheduler(part) for part in schedulers_in(scheduler)],
            _random=RandomState.take(),
        )

    def restore(self, added: Group | None) -> None:
        """Put everything back in place and drop the group that the graft `added`.

        Parameters, buffers and groups stay the same objects. To be called once: the copies are
        handed over to the optimizer.
        """
        self._restore_weights()
        groups = groups_of(self.optimizer)
        groups[:] = [group for group in groups if group is not added]
        for group, settings in self._groups:
            members = group["params"]
            group.clear()
            group.update(params=members, **settings)
        state = cast("dict[Any, dict[Any, Any]]", self.optimizer.state)
        state.clear()
        state.update(self._state)
        for saved in self._schedulers:
            for name, values in saved.lists.items():
                getattr(saved.scheduler, name)[:] = values
            saved.scheduler.load_state_dict(dict(saved.state))
        self._random.restore()

    @torch.no_grad()
    def _restore_weights(self) -> None:
        for saved in self._parameters:
            saved.parameter.copy_(saved.value)
            saved.parameter.grad = saved.gradient
        for saved in self._buffers:
            saved.buffer.copy_(saved.value)
            # A module may have put another tensor in its place.
            setattr(saved.module, saved.name, saved.buffer)


def _copy_state(state: Any) -> Any:
    if isinstance(state, dict):
        entries = cast("dict[Any, Any]", state)
        return {key: _copy_state(value) for key, value in entries.items()}
    return copy_value(state)


def _save_scheduler(scheduler: Any) -> _SavedScheduler:
    return _SavedScheduler(
        scheduler=scheduler,
        state=copy_value(scheduler.state_dict()),
        lists={name: list(values) for name, values in per_group_lists(scheduler).items()},
    )
