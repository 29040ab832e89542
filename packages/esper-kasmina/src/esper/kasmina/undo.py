"""The way back: everything that training may change, taken at one moment and put back bit for bit.

The bed takes a `Snapshot` when a seed enters GRAFTING and drops it at the verdict; a mark holds one too. It
costs one copy of weights, gradients, buffers and optimizer state, for the host and for each of its copies;
only one that a checkpoint writes at once is lent instead (`modulestate.lending`).
"""

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from esper.contracts import HostError
from esper.kasmina import modulestate, trainerstate
from esper.kasmina.modulestate import State, copied


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
            numpy=copied(np.random.get_state(legacy=False)),
        )

    def restore(self) -> None:
        """Put every stream back to where it was; those of devices that are missing are left out."""
        torch.set_rng_state(self.torch_cpu)
        if self.torch_cuda and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(self.torch_cuda[: torch.cuda.device_count()])
        random.setstate(self.python)
        np.random.set_state(self.numpy)


@dataclass(frozen=True, kw_only=True)
class World:
    """Everything that training changes: the host, what trains it, and its copies."""

    model: nn.Module
    optimizer: torch.optim.Optimizer | None = None
    scheduler: Any | None = None
    scaler: Any | None = None
    copies: Sequence[nn.Module] = ()


@dataclass(frozen=True, kw_only=True)
class _Identity:
    """The objects that held what a snapshot has copied."""

    world: World
    modules: list[modulestate.Identity]
    trainer: trainerstate.Identity | None


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """One moment of a world, and of the global random streams.

    `state` is plain data that `statetree` can write. One that was read back from a file knows no
    objects: it goes into whatever has the same names.
    """

    state: State
    _identity: _Identity | None = None

    @classmethod
    def take(cls, world: World) -> Self:
        """Copy everything; changes nothing, draws nothing."""
        optimizer = world.optimizer
        modules = (world.model, *world.copies)
        trainer = None
        if optimizer is not None:
            trainer = trainerstate.Identity.take(optimizer, world.scheduler, world.model)
        return cls(
            state={
                "host": modulestate.capture(world.model),
                "copies": [modulestate.capture(module) for module in world.copies],
                "optimizer": None
                if optimizer is None
                else trainerstate.capture_optimizer(optimizer, world.model),
                "scheduler": trainerstate.capture_scheduler(world.scheduler),
                "scaler": trainerstate.capture_scaler(world.scaler, optimizer),
                "random": dict(vars(RandomState.take())),
            },
            _identity=_Identity(
                world=world,
                modules=[modulestate.Identity.take(module) for module in modules],
                trainer=trainer,
            ),
        )

    def is_of(self, optimizer: torch.optim.Optimizer) -> bool:
        """Tell whether `optimizer` is the very one whose state this is, as far as is known."""
        return self._identity is None or self._identity.world.optimizer is optimizer

    def is_from(self, world: World) -> bool:
        """Tell whether this was taken of the very host and optimizer of `world`."""
        if self._identity is None:
            return False
        then = self._identity.world
        return then.model is world.model and then.optimizer is world.optimizer

    def check(
        self, world: World, *, gone: Collection[nn.Parameter] = (), is_whole: bool = False
    ) -> None:
        """Pass silently if this can be restored into `world`; changes nothing.

        With `is_whole`, the optimizer must not train anything that this does not know.

        Raises:
            HostError: saying what does not fit.

        """
        self.check_trainer(world)
        state = self.state
        modulestate.check(world.model, state["host"], what="the host")
        for index, (module, saved) in enumerate(zip(world.copies, state["copies"], strict=True)):
            modulestate.check(module, saved, what=f"copy {index} of the host")
        if (
            self._identity is None
            and world.optimizer is not None
            and state["optimizer"] is not None
        ):
            trainerstate.check_optimizer_state(
                world.optimizer, world.model, state["optimizer"], gone=gone, is_whole=is_whole
            )

    def check_trainer(self, world: World) -> None:
        """Pass silently if `world` is trained by the same kinds of things, however it has grown.

        Raises:
            HostError: saying what is of another kind, missing, or too much.

        """
        state = self.state
        if len(world.copies) != len(state["copies"]):
            raise HostError(
                f"{len(world.copies)} copies of the host are attached, the state has "
                f"{len(state['copies'])}; attach() the same ones"
            )
        if (world.scaler is None) != (state["scaler"] is None):
            expected = "none" if state["scaler"] is None else "one"
            raise HostError(
                f"the state is that of a run with {expected} gradient scaler; attach() so"
            )
        if world.optimizer is None or state["optimizer"] is None:
            return
        trainerstate.check_class(world.optimizer, state["optimizer"])
        trainerstate.check_scheduler_state(world.scheduler, state["scheduler"], likes=self._likes)

    def restore(
        self, world: World, *, gone: Collection[nn.Parameter] = (), is_whole: bool = False
    ) -> None:
        """Put everything back in place; parameters, buffers and groups stay the same objects.

        What the snapshot does not know stays as it is, unless it `is_whole`; parameters in `gone`
        leave the optimizer.

        Raises:
            HostError: if `world` is not one that it fits; then no value was changed.

        """
        identity = self._identity
        if identity is not None:
            for module in identity.modules:
                module.restore()
        self.check(world, gone=gone, is_whole=is_whole)
        state = self.state
        modulestate.apply(world.model, state["host"])
        for module, saved in zip(world.copies, state["copies"], strict=True):
            modulestate.apply(module, saved)
        if world.optimizer is not None and state["optimizer"] is not None:
            known = None if identity is None else identity.trainer
            late = trainerstate.apply_optimizer(
                world.optimizer, world.model, state["optimizer"], known=known, gone=gone
            )
            if identity is not None and identity.world.scheduler is not world.scheduler:
                known = None
            trainerstate.apply_scheduler(
                world.scheduler, state["scheduler"], likes=self._likes, known=known, late=late
            )
            trainerstate.apply_scaler(world.scaler, world.optimizer, state["scaler"])
        RandomState(**state["random"]).restore()

    @property
    def _likes(self) -> list[int | None]:
        return [group["like"] for group in self.state["optimizer"]["groups"]]
