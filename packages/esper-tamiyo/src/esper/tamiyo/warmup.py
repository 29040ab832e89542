"""After a graft all learning rates rise anew from zero, as at the start of training.

A block turns an optimizer's steps from what they were tuned for into something new: at full rate the first
ones throw the host back by more than the block brings (docs/experiments/0006). The controller begins a
warm-up with each graft and takes it back with an undo. Only steps feel it: between them the rates in the
optimizer are those of the user and of the user's scheduler.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, cast

from esper.contracts import ConfigError

WARM_UP_STEPS = 50
"""Longer warm-ups do no better on average (docs/experiments/0006)."""

MOST_OF_RUN = 0.1
"""No warm-up lasts longer than this share of a run whose length is known."""


@dataclass(frozen=True, kw_only=True)
class Rise:
    """How far one warm-up has got."""

    steps: int
    """Its length."""
    steps_done: int = 0

    @property
    def share(self) -> float:
        """The part of their rates that the next step takes, above 0 and at most 1."""
        return min(1.0, (self.steps_done + 1) / self.steps)


class Warmup:
    """Scales the learning rates of one `torch.optim.Optimizer` for the length of a step."""

    def __init__(self, optimizer: Any, *, steps: int, epochs: int | None) -> None:
        """Follow `optimizer`, whose run will have so many `epochs`; with 0 `steps` it never warms up.

        Raises:
            ConfigError: if `steps` is negative.

        """
        if steps < 0:
            raise ConfigError(f"warm_up_steps={steps}; expected at least 0, which is none")
        self.rise: Rise | None = None
        self._optimizer = optimizer
        self._most_steps = steps
        self._epochs = epochs
        self._steps_done = 0
        """In all."""
        self._rates: list[Any] = []
        """Those of the groups while a step runs."""
        self._handles = [
            optimizer.register_step_pre_hook(self._lower),
            optimizer.register_step_post_hook(self._raise),
        ]

    def close(self) -> None:
        """Let go of the optimizer. Idempotent."""
        self._put_back()
        while self._handles:
            self._handles.pop().remove()

    def begin(self, epochs_done: int) -> None:
        """Let the rates rise anew from zero, after so many epochs."""
        steps = self._most_steps
        if self._epochs is not None:
            of_run = self._epochs * self._steps_done / max(1, epochs_done)
            steps = min(steps, round(MOST_OF_RUN * of_run))
        self.rise = Rise(steps=steps) if steps > 0 else None

    def state_dict(self) -> dict[str, Any]:
        """Return how far run and warm-up have got, as JSON data."""
        self._put_back()
        rise = None if self.rise is None else asdict(self.rise)
        return {"steps_done": self._steps_done, "rise": rise}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self._steps_done = state["steps_done"]
        self.rise = None if state["rise"] is None else Rise(**state["rise"])

    def _lower(self, *_: object) -> None:
        self._put_back()
        if self.rise is None:
            return
        for group in self._groups():
            self._rates.append(group["lr"])
            group["lr"] = group["lr"] * self.rise.share

    def _raise(self, *_: object) -> None:
        self._steps_done += 1
        if self.rise is None:
            return
        self._put_back()
        done = self.rise.steps_done + 1
        self.rise = Rise(steps=self.rise.steps, steps_done=done) if done < self.rise.steps else None

    def _put_back(self) -> None:
        """Return their rates to the groups; they are lowered still after a step that raised an error."""
        for group, rate in zip(self._groups(), self._rates, strict=False):
            group["lr"] = rate
        self._rates.clear()

    def _groups(self) -> list[dict[str, Any]]:
        return cast("list[dict[str, Any]]", self._optimizer.param_groups)
