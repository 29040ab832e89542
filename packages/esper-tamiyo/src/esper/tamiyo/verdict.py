"""The verdict on a grafted block: keep it only if it is measured to help.

The controller gathers `Evidence` when a seed reaches EVALUATING; the verdict is a pure function of it.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from esper.contracts import SeedBed, SeedId
from esper.contracts.words import plural
from esper.tamiyo.policies import EpochFigures

MIN_GAIN = 0.005
"""A block must lower the validation loss by this share to stay: less would not pay its cost. It is young when
it is judged, and mostly gains more later."""


MIN_PAIRS = 16
"""Fewer paired losses say too little about noise to judge by."""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """A model's performance on one part of a task."""

    loss: float
    accuracy: float | None = None
    losses: Sequence[float] | None = None
    """Of each sample or batch, in the same order at every measurement: what the verdict's confidence
    interval comes from. Without them it cannot tell a gain from noise."""


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


def gather(
    bed: SeedBed,
    seed_id: SeedId,
    *,
    now: EpochFigures,
    before: EpochFigures | None,
    evaluate: Evaluate | None,
) -> Evidence:
    """Return the evidence on a block, measured anew with and without it where there is `evaluate`.

    Both with the batch norms' statistics taken anew: those of one side alone would lag behind its weights.
    `now` are the last epoch's figures, `before` those of the last epoch before the graft, if known.
    """
    measured, without = _figures(now), None
    if evaluate is not None:
        with bed.without(None, settle=evaluate):
            measured = evaluate()
        with bed.without(seed_id, settle=evaluate):
            without = evaluate()
    return Evidence(
        before=_figures(before) if before is not None else None,
        with_block=measured,
        without_block=without,
    )


def _figures(epoch: EpochFigures) -> Figures:
    return Figures(loss=epoch.val_loss, accuracy=epoch.val_accuracy)


def gain_interval(evidence: Evidence) -> tuple[float, float] | None:
    """Return the 95 % interval of the loss that the block saves on the same weights and data.

    The normal interval of the mean of paired differences; None without pairs, or from fewer than
    `MIN_PAIRS`.
    """
    without = evidence.without_block
    mine = evidence.with_block.losses
    if without is None or without.losses is None or mine is None:
        return None
    if len(mine) != len(without.losses) or len(mine) < MIN_PAIRS:
        return None
    gains = [b - a for a, b in zip(mine, without.losses, strict=True)]
    if not all(math.isfinite(gain) for gain in gains):
        return None
    middle = statistics.fmean(gains)
    half = 1.96 * statistics.stdev(gains) / math.sqrt(len(gains))
    return middle - half, middle + half


def _num_pairs(evidence: Evidence) -> int:
    return len(evidence.with_block.losses or ())


def judge(evidence: Evidence, *, min_gain: float = MIN_GAIN, is_last: bool = True) -> Verdict:
    """Keep a block that lowers the loss by `min_gain` against every yardstick there is.

    The yardsticks are the same weights without the block, and the model before the graft. The first
    alone would flatter a block that the host has come to lean on; the second alone would credit the
    block with what the host learned meanwhile. With a `min_gain` of 0 a block goes only if it is worse than
    none beyond noise, or than the model before the graft. Where it is not the last verdict, a block that is
    not worse than none beyond noise stays, too: it is still learning, and is judged again.
    """
    verdict = _judge(evidence, min_gain)
    if verdict.keep or is_last or evidence.without_block is None:
        return verdict
    loss, without = evidence.with_block.loss, evidence.without_block.loss
    if not (loss < without or _may_help(evidence)):
        return verdict
    reason = f"it may yet help, loss {loss:.4f} with it, {without:.4f} without it, though {verdict.reason}"
    return Verdict(keep=True, reason=reason, numbers=verdict.numbers)


def _may_help(evidence: Evidence) -> bool:
    """Tell whether noise alone could make a block that helps look as it does."""
    interval = gain_interval(evidence)
    return interval is not None and interval[1] > 0


def _judge(evidence: Evidence, min_gain: float) -> Verdict:
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
    interval = gain_interval(evidence)
    if interval is not None:
        numbers |= {"gain_low": interval[0], "gain_high": interval[1]}
        if min_gain > 0 and not interval[0] > 0:
            low, high = interval
            return Verdict(
                keep=False,
                reason=f"its gain is not beyond noise: {low:+.4f} to {high:+.4f} of the loss without it "
                f"(95 %, {_num_pairs(evidence)} pairs)",
                numbers=numbers,
            )
    for name, value in yardsticks.items():
        if name == "without" and min_gain == 0 and _may_help(evidence):
            continue
        # A loss without the block that is not finite shows that the host now needs it.
        if math.isfinite(value) and not loss <= value - min_gain * abs(value):
            return Verdict(
                keep=False,
                reason=f"it does not help: loss {loss:.4f} with it, {value:.4f} {name} it",
                numbers=numbers,
            )
    compared = ", ".join(f"{value:.4f} {name} it" for name, value in yardsticks.items())
    reason = f"it helps: loss {loss:.4f} with it, {compared}"
    if 0 < _num_pairs(evidence) < MIN_PAIRS:
        reason += (
            f" (by {plural(_num_pairs(evidence), 'loss', 'losses')}, too few to tell a gain from "
            f"noise: give evaluate at least {MIN_PAIRS} samples or batches)"
        )
    return Verdict(keep=True, reason=reason, numbers=numbers)
