"""After a graft all learning rates rise anew from zero, as at the start of training.

A block turns an optimizer's steps from what they were tuned for into something new: at full rate the first
ones throw the host back by more than the block brings (docs/experiments/0006). The controller begins a
warm-up with each graft and takes it back with an undo. Only steps feel it: between them the rates in the
optimizer are those of the user and of the user's scheduler.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

from esper.contracts import ConfigError

WARM_UP = 0.1
"""Share of the epochs that a warm-up lasts."""

EPOCHS_UNKNOWN = 2.0
"""Length of a warm-up in a loop that did not say how many epochs it will run."""


@dataclass(frozen=True, kw_only=True)
class Rise:
    """How far one warm-up has got."""

    epochs: float
    """Its length."""
    steps_per_epoch: int
    """As many as the last epoch had."""
    epochs_done: int = 0
    steps_done: int = 0
    """Of this epoch."""

    @property
    def share(self) -> float:
        """The part of their rates that the next step takes, above 0 and at most 1."""
        of_epoch = min(1.0, (self.steps_done + 1) / self.steps_per_epoch)
        return min(1.0, (self.epochs_done + of_epoch) / self.epochs)


class Warmup:
    """Scales the learning rates of one `torch.optim.Optimizer` for the length of a step."""

    def __init__(self, optimizer: Any, *, share_of_run: float, epochs: int | None) -> None:
        """Follow `optimizer`, whose run will have so many `epochs`; a share of 0 never warms up.

        Raises:
            ConfigError: if the share is not from 0 to 1.

        """
        if not 0.0 <= share_of_run <= 1.0:
            raise ConfigError(
                f"warm_up={share_of_run}; expected a share of the epochs from 0 (none) to 1"
            )
        self._optimizer = optimizer
        self._epochs = EPOCHS_UNKNOWN if epochs is None else max(1.0, share_of_run * epochs)
        self._is_wanted = share_of_run > 0
        self._steps = self._steps_per_epoch = 0
        """Of this epoch so far, and of the last one."""
        self._rates: list[Any] = []
        """Those of the groups while a step runs."""
        self.rise: Rise | None = None
        self._handles = [
            optimizer.register_step_pre_hook(self._lower),
            optimizer.register_step_post_hook(self._raise),
        ]

    def close(self) -> None:
        """Let go of the optimizer. Idempotent."""
        while self._handles:
            self._handles.pop().remove()

    def begin(self) -> None:
        """Let the rates rise anew from zero, at the end of an epoch."""
        if self._is_wanted:
            self.rise = Rise(epochs=self._epochs, steps_per_epoch=self._steps_per_epoch)

    def end_epoch(self) -> None:
        """Count an epoch."""
        self._steps_per_epoch, self._steps = max(1, self._steps), 0
        if self.rise is None:
            return
        self.rise = replace(
            self.rise,
            epochs_done=self.rise.epochs_done + 1,
            steps_done=0,
            steps_per_epoch=self._steps_per_epoch,
        )
        if self.rise.epochs_done >= self.rise.epochs:
            self.rise = None

    def state_dict(self) -> dict[str, Any]:
        """Return how far the epoch and the warm-up have got, as JSON data."""
        rise = None if self.rise is None else asdict(self.rise)
        return {"steps": self._steps, "steps_per_epoch": self._steps_per_epoch, "rise": rise}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self._steps, self._steps_per_epoch = state["steps"], state["steps_per_epoch"]
        self.rise = None if state["rise"] is None else Rise(**state["rise"])

    def _lower(self, *_: object) -> None:
        if self.rise is None:
            return
        for group in self._groups():
            self._rates.append(group["lr"])
            group["lr"] = group["lr"] * self.rise.share

    def _raise(self, *_: object) -> None:
        self._steps += 1
        if self.rise is None:
            return
        for group, rate in zip(self._groups(), self._rates, strict=True):
            group["lr"] = rate
        self._rates.clear()
        self.rise = replace(self.rise, steps_done=self.rise.steps_done + 1)

    def _groups(self) -> list[dict[str, Any]]:
        return cast("list[dict[str, Any]]", self._optimizer.param_groups)
