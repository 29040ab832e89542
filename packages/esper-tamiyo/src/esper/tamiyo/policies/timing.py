"""When to grow, apart from where and what: a timing tells whether growth is due at a decision point.

Early growth pays more than late growth (docs/experiments), so waiting for a plateau is a choice, not the
only one. Every timing is a pure function of the observation.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import linear_regression
from typing import Protocol

from esper.contracts.words import plural
from esper.tamiyo.policies.policy import Observation


@dataclass(frozen=True, kw_only=True)
class Due:
    """Whether growth is due, why, and the numbers behind it."""

    now: bool
    reason: str
    numbers: Mapping[str, float] = field(default_factory=dict[str, float])


class Timing(Protocol):
    """Tells when to grow.

    A timing may also have a method `is_over(observation)`: whether growth will never be due again.
    """

    def due(self, observation: Observation) -> Due:
        """Return whether growth is due at this decision point."""
        ...


def is_over(timing: Timing, observation: Observation) -> bool:
    """Return whether growth will never be due again, as far as the timing can tell."""
    asked = getattr(timing, "is_over", None)
    return asked is not None and asked(observation)


@dataclass(frozen=True, kw_only=True)
class Plateau:
    """Due when the validation loss fell by less than a given share over the last epochs."""

    window_epochs: int = 3
    """Epochs over which progress is measured."""
    stall_improvement: float = 0.15
    """Stalled below this share. High, because early growth pays more than late growth."""

    def due(self, observation: Observation) -> Due:
        """Return whether learning stalls."""
        losses = [figures.val_loss for figures in observation.history]
        window = self.window_epochs
        if len(losses) <= window:
            numbers = {"epochs_observed": float(len(losses))}
            reason = f"watching: needs more than {plural(window, 'epoch')} to see a trend"
            return Due(now=False, reason=reason, numbers=numbers)
        before, recent = min(losses[:-window]), min(losses[-window:])
        improvement = (before - recent) / abs(before) if before else 0.0
        stalls = improvement < self.stall_improvement
        fell = f"loss fell {improvement:.1%} in {plural(window, 'epoch')}"
        reason = (
            f"learning stalls ({fell})"
            if stalls
            else f"still learning: {fell} (stalled below {self.stall_improvement:.0%})"
        )
        return Due(now=stalls, reason=reason, numbers={"improvement": improvement})


@dataclass(frozen=True, kw_only=True)
class LossSlope:
    """Due when the loss falls by less than a share of what it fell at its steepest.

    The slope is the least-squares line through the last epochs' losses.
    """

    window_epochs: int = 3
    share: float = 0.25

    def due(self, observation: Observation) -> Due:
        """Return whether the loss falls slowly now."""
        losses = [figures.val_loss for figures in observation.history]
        if len(losses) <= self.window_epochs:
            reason = (
                f"watching: needs more than {plural(self.window_epochs, 'epoch')} to see a slope"
            )
            return Due(now=False, reason=reason, numbers={"epochs_observed": float(len(losses))})
        if not all(math.isfinite(loss) for loss in losses):
            return Due(now=False, reason="a loss was not finite, so it has no slope")
        ends = range(self.window_epochs, len(losses) + 1)
        falls = [-_slope(losses[end - self.window_epochs : end]) for end in ends]
        steepest, now = max(falls), falls[-1]
        is_slow = now <= self.share * max(steepest, 0.0)
        reason = (
            f"the loss falls {now:.3g} per epoch, {'less' if is_slow else 'still more'} than "
            f"{self.share:.0%} of its steepest {steepest:.3g}"
        )
        return Due(now=is_slow, reason=reason, numbers={"slope": now, "steepest": steepest})


@dataclass(frozen=True, kw_only=True)
class Periodic:
    """Due every few epochs, in the first part of training only."""

    first_epoch: int = 0
    every_epochs: int = 2
    until_share: float = 0.25
    """Of the epochs that the loop will run."""
    most_epochs: int = 20
    """Without their number, growth ends after so many."""

    def due(self, observation: Observation) -> Due:
        """Return whether it is time again."""
        epoch = observation.epoch
        numbers = {"epoch": float(epoch)}
        if self.is_over(observation):
            first = (
                f"{self.most_epochs} epochs are"
                if observation.epochs_left is None
                else f"{self.until_share:.0%} of training is"
            )
            reason = f"the first {first} over: what comes late pays less"
            return Due(now=False, reason=reason, numbers=numbers)
        since = epoch - self.first_epoch
        now = since >= 0 and since % self.every_epochs == 0
        after = f" after the first {self.first_epoch}" if self.first_epoch else ""
        every = "epoch" if self.every_epochs == 1 else f"{self.every_epochs} epochs"
        reason = f"growth is due every {every}{after}"
        return Due(now=now, reason=reason if now else f"not yet: {reason}", numbers=numbers)

    def is_over(self, observation: Observation) -> bool:
        """Return whether the first part of training has passed."""
        epoch, left = observation.epoch, observation.epochs_left
        if left is None:
            return epoch >= self.most_epochs
        return epoch + 1 > max(1.0, self.until_share * (epoch + 1 + left))


@dataclass(frozen=True, kw_only=True)
class AtRandom:
    """Due with a given chance at each epoch: the time of the control arm."""

    chance: float = 0.2
    seed: int = 0

    def due(self, observation: Observation) -> Due:
        """Return whether the dice say so; the same at the same epoch of every run."""
        drawn = random.Random(f"time {self.seed} {observation.epoch}").random()  # noqa: S311
        reason = (
            f"the dice say {'now' if drawn < self.chance else 'not now'} (chance {self.chance:.0%})"
        )
        return Due(now=drawn < self.chance, reason=reason, numbers={"drawn": drawn})


def _slope(values: Sequence[float]) -> float:
    """Return the change per step of the least-squares line through `values`."""
    return linear_regression(range(len(values)), values).slope
