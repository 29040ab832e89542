"""What a bed follows while the host trains: optimizer, scheduler, gradient scaler and copies."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from esper.contracts import HostError
from esper.contracts.words import type_of
from esper.kasmina.owners import check_optimizer, check_scheduler
from esper.kasmina.undo import World


@dataclass(frozen=True, kw_only=True)
class Attachment:
    """The training of one host, checked; made by `Bed.attach`."""

    optimizer: torch.optim.Optimizer
    scheduler: Any | None
    scaler: Any | None
    copies: tuple[nn.Module, ...]
    _handles: list[RemovableHandle] = field(default_factory=list[RemovableHandle])

    @classmethod
    def check(
        cls,
        model: nn.Module,
        *,
        optimizer: object,
        scheduler: object | None,
        scaler: object | None,
        copies: Sequence[object],
    ) -> Self:
        """Return what was given, if a growing `model` can be trained with it.

        Raises:
            HostError: saying what cannot follow, and why.

        """
        if scheduler is not None:
            check_scheduler(scheduler)
        if scaler is not None and not isinstance(scaler, torch.amp.GradScaler):  # pyright: ignore[reportPrivateImportUsage]
            raise HostError(f"scaler is {type_of(scaler)}; expected a torch.amp.GradScaler")
        checked: list[nn.Module] = []
        for copy in copies:
            if not isinstance(copy, nn.Module) or copy is model:
                what = "the host itself" if copy is model else f"{type_of(copy)}"
                raise HostError(f"copies has {what}; expected modules made as copies of the host")
            checked.append(copy)
        return cls(
            optimizer=check_optimizer(optimizer, model),
            scheduler=scheduler,
            scaler=scaler,
            copies=tuple(checked),
        )

    def world(self, model: nn.Module) -> World:
        """Return everything that training changes, for a snapshot."""
        return World(
            model=model,
            optimizer=self.optimizer,
            scheduler=self.scheduler,
            scaler=self.scaler,
            copies=self.copies,
        )

    def follow(self, after_step: Callable[..., None]) -> None:
        """Have `after_step` called after each step of the optimizer that was taken."""

        def unless_skipped(*_: object) -> None:
            # Fused optimizers get to know only now that a scaler found gradients that are not finite.
            found_inf = getattr(self.optimizer, "found_inf", None)
            if found_inf is None or not bool(found_inf):
                after_step()

        self._handles.append(self.optimizer.register_step_post_hook(unless_skipped))

    def leave(self) -> None:
        """Stop following. Idempotent."""
        while self._handles:
            self._handles.pop().remove()
