"""After a graft all learning rates rise anew from zero, as at the start of training.

A block turns an optimizer's steps from what they were tuned for into something new: at full rate the first
ones throw the host back by more than the block brings (docs/experiments/0006). The controller begins a
warm-up with each graft and takes it back with an undo. Only steps feel it: between them the rates in the
optimizer are those of the user and of the user's scheduler.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, cast

from esper.contracts import ConfigError

WARM_UP_STEPS = 50
"""Longer warm-ups do no better on average (docs/experiments/0006)."""

MOST_OF_RUN = 0.1
"""No warm-up lasts longer than this share of a run whose length is known."""


@dataclass(frozen=True, kw_only=True)
class Rise:
    """One warm-up."""

    steps: int
    """Its length."""
    begun: int
    """Steps of the run before it."""

    def share(self, step: int) -> float:
        """Return the part of their rates that the run's next step takes after so many: above 0, at most 1."""
        return min(1.0, (step - self.begun + 1) / self.steps)


class Warmup:
    """Scales the learning rates of one `torch.optim.Optimizer` for the length of a step."""

    def __init__(
        self, optimizer: Any, *, steps: int, epochs: int | None, step: Callable[[], int]
    ) -> None:
        """Follow `optimizer`, whose run will have so many `epochs`; with 0 `steps` it never warms up.

        `step` tells how many steps the run has had: those that count, not those that a scaler skips.

        Raises:
            ConfigError: if `steps` is negative.

        """
        if steps < 0:
            raise ConfigError(f"warm_up_steps={steps}; expected at least 0, which is none")
        self.rise: Rise | None = None
        self.rate_share = 1.0
        """Part of their rates that all steps take, beside the warm-up."""
        self._optimizer = optimizer
        self._most_steps = steps
        self._epochs = epochs
        self._step = step
        self._rates: list[Any] = []
        """Those of the groups while a step runs."""
        self._handles = [
            optimizer.register_step_pre_hook(self._lower),
            optimizer.register_step_post_hook(self._put_back),
        ]

    def close(self) -> None:
        """Let go of the optimizer. Idempotent."""
        self._put_back()
        while self._handles:
            self._handles.pop().remove()

    def begin(self, epochs_done: int) -> None:
        """Let the rates rise anew from zero, after so many epochs."""
        steps, done = self._most_steps, self._step()
        if self._epochs is not None:
            steps = min(steps, round(MOST_OF_RUN * self._epochs * done / max(1, epochs_done)))
        self.rise = Rise(steps=steps, begun=done) if steps > 0 else None

    def state_dict(self) -> dict[str, Any] | None:
        """Return the warm-up that is under way, as JSON data."""
        self._put_back()
        return None if self.rise is None else asdict(self.rise)

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Go on from what `state_dict` returned."""
        self.rise = None if state is None else Rise(**state)

    def _lower(self, *_: object) -> None:
        if self.rise is None and self.rate_share == 1.0:
            return
        self._put_back()
        share = self.rate_share * self._risen()
        if share == 1.0:
            return
        for group in self._groups():
            self._rates.append(group["lr"])
            group["lr"] = group["lr"] * share

    def _risen(self) -> float:
        """Return how far the rates have risen at the next step; ends a warm-up that is over."""
        if self.rise is None:
            return 1.0
        step = self._step()
        if step - self.rise.begun >= self.rise.steps:
            self.rise = None
            return 1.0
        return self.rise.share(step)

    def _put_back(self, *_: object) -> None:
        """Return their rates to the groups; they are lowered still after a step that raised an error."""
        if not self._rates:
            return
        for group, rate in zip(self._groups(), self._rates, strict=False):
            group["lr"] = rate
        self._rates.clear()

    def _groups(self) -> list[dict[str, Any]]:
        return cast("list[dict[str, Any]]", self._optimizer.param_groups)
