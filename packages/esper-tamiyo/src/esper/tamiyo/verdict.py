"""The verdict on a grafted block: keep it only if it is measured to help.

The controller gathers `Evidence` when a seed reaches EVALUATING; the verdict is a pure function of it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

MIN_GAIN = 0.01
"""A block must lower the validation loss by this share to stay: less would not pay its cost."""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """A model's performance on one part of a task."""

    loss: float
    accuracy: float | None = None


type Evaluate = Callable[[], Figures]
"""Measures the model as it stands on validation data, without training it."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What is known of one block when it is judged."""

    before: Figures | None
    """At the last epoch before the graft."""
    with_block: Figures
    without_block: Figures | None
    """On the same weights and data, the block left out; None when the loop gave no `evaluate`."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether a block stays, and why."""

    keep: bool
    reason: str
    numbers: dict[str, float]


def judge(evidence: Evidence, *, min_gain: float = MIN_GAIN) -> Verdict:
    """Keep a block that lowers the loss by `min_gain` against every yardstick there is.

    The yardsticks are the same weights without the block, and the model before the graft. The first
    alone would flatter a block that the host has come to lean on; the second alone would credit the
    block with what the host learned meanwhile.
    """
    loss = evidence.with_block.loss
    yardsticks = {
        name: figures.loss
        for name, figures in (("without", evidence.without_block), ("before", evidence.before))
        if figures is not None
    }
    numbers = {"loss_with": loss} | {f"loss_{name}": value for name, value in yardsticks.items()}
    if not math.isfinite(loss):
        return Verdict(keep=False, reason="the loss with it is not finite", numbers=numbers)
    if not yardsticks:
        return Verdict(keep=False, reason="nothing to compare it with", numbers=numbers)
    for name, value in yardsticks.items():
        # A loss without the block that is not finite shows that the host now needs it.
        if math.isfinite(value) and not loss <= value - min_gain * abs(value):
            return Verdict(
                keep=False,
                reason=f"it does not help: loss {loss:.4f} with it, {value:.4f} {name} it",
                numbers=numbers,
            )
    compared = ", ".join(f"{value:.4f} {name} it" for name, value in yardsticks.items())
    return Verdict(
        keep=True, reason=f"it helps: loss {loss:.4f} with it, {compared}", numbers=numbers
    )
