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
    now: Figures | None = None
    """At the end of this epoch, as `before` was measured; None: as `with_block`, which takes batch norms'
    statistics anew."""


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

    Both with the batch norms' statistics taken anew: those that are kept lag behind the weights.
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
        now=_figures(now),
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
    """Keep a block that lowers the loss by `min_gain`, next to the same weights without it and to before.

    The first alone would flatter a block that the host has come to lean on; the model before the graft alone
    would credit it with what the host learned meanwhile. Where there are pairs, the gain over none must be
    beyond noise.

    With a `min_gain` of 0, for what had convinced, a block goes only if it is worse than none beyond noise
    (without pairs: by the mean), or worse than the model before. Where this is not the last verdict, it goes
    only if it is worse than none beyond noise (without pairs: if its loss is not lower): it is still
    learning, and is judged again.
    """
    verdict = _judge(evidence, min_gain)
    without = evidence.without_block
    if verdict.keep or is_last or without is None or not math.isfinite(evidence.with_block.loss):
        return verdict
    if not _may_help(evidence, without):
        return verdict
    pairs = _in_pairs(evidence)
    reason = f"it stays on trial: {_compared(evidence)}{pairs and f', a gain of {pairs}'}"
    return Verdict(keep=True, reason=reason, numbers=verdict.numbers)


def _may_help(evidence: Evidence, without: Figures) -> bool:
    """Tell whether a block that helps could look like this one by noise; without pairs, whether it helps."""
    interval = gain_interval(evidence)
    return evidence.with_block.loss < without.loss if interval is None else interval[1] >= 0


def _judge(evidence: Evidence, min_gain: float) -> Verdict:
    loss, without, before = evidence.with_block.loss, evidence.without_block, evidence.before
    now = evidence.with_block if evidence.now is None else evidence.now
    numbers = {"loss_with": loss}
    numbers |= {} if without is None else {"loss_without": without.loss}
    numbers |= {} if before is None else {"loss_before": before.loss, "loss_now": now.loss}

    def cull(reason: str) -> Verdict:
        return Verdict(keep=False, reason=reason, numbers=numbers)

    if not math.isfinite(loss):
        return cull("the loss with it is not finite")
    if without is None and before is None:
        return cull("nothing to compare it with")
    interval = gain_interval(evidence)
    if interval is not None:
        numbers |= {"gain_low": interval[0], "gain_high": interval[1]}
        if min_gain > 0 and not interval[0] > 0:
            return cull(f"its gain is not beyond noise: {_in_pairs(evidence)}")
    if without is not None:
        is_exempt = min_gain == 0 and _may_help(evidence, without)
        if not is_exempt and not _is_lower(loss, without.loss, min_gain):
            words = _too_little(loss, without.loss)
            return cull(f"{words}: loss {loss:.4f} with it, {without.loss:.4f} without it")
    if before is not None and not _is_lower(now.loss, before.loss, min_gain):
        words = _too_little(now.loss, before.loss)
        return cull(f"{words}: loss {now.loss:.4f} with it, {before.loss:.4f} before it")
    reason = f"it helps: {_compared(evidence)}"
    if without is not None and loss >= without.loss:
        reason = (
            f"it is not worse beyond noise: {_compared(evidence)}, a gain of {_in_pairs(evidence)}"
        )
    if 0 < _num_pairs(evidence) < MIN_PAIRS:
        reason += (
            f" (by {plural(_num_pairs(evidence), 'loss', 'losses')}, too few to tell a gain from "
            f"noise: give evaluate at least {MIN_PAIRS} samples or batches)"
        )
    return Verdict(keep=True, reason=reason, numbers=numbers)


def _is_lower(loss: float, other: float, min_gain: float) -> bool:
    # A loss without the block that is not finite shows that the host now needs it.
    return not math.isfinite(other) or loss <= other - min_gain * abs(other)


def _too_little(loss: float, other: float) -> str:
    return "it helps too little" if loss < other else "it does not help"


def _compared(evidence: Evidence) -> str:
    """Return what was compared, in words; what the loop measured itself where that differs."""
    loss, now = evidence.with_block.loss, evidence.now
    parts = [f"loss {loss:.4f} with it"]
    if evidence.without_block is not None:
        parts.append(f"{evidence.without_block.loss:.4f} without it")
    if evidence.before is not None:
        if now is not None and not math.isclose(now.loss, loss, rel_tol=1e-3):
            parts.append(f"{now.loss:.4f} at the end of the epoch")
        parts.append(f"{evidence.before.loss:.4f} before it")
    return ", ".join(parts)


def _in_pairs(evidence: Evidence) -> str:
    """Return the interval of the gain in words; nothing where there is none."""
    interval = gain_interval(evidence)
    if interval is None:
        return ""
    low, high = interval
    return f"{low:+.4f} to {high:+.4f} of the loss without it (95 %, {_num_pairs(evidence)} pairs)"
