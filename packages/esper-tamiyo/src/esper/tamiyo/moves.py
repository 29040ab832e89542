"""Where a seed goes next, and why: what follows from its state and the losses alone.

The controller asks at every decision point; verdicts, which need measurements, are its own.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from esper.contracts import HOST_VISIBLE, IN_FLIGHT, SeedState, SeedStatus
from esper.tamiyo.policies import EpochFigures

_S = SeedState

NEXT = {
    _S.GERMINATED: (_S.LOADING, "its turn has come"),
    _S.LOADING: (_S.TRAINING, "the kernel verified and is in place"),
    _S.TRAINING: (_S.GRAFTING, "it has learned in isolation"),
    _S.GRAFTING: (_S.STABILIZATION, "alpha has reached 1"),
    _S.STABILIZATION: (_S.EVALUATING, "the host has settled"),
    _S.FINE_TUNING: (_S.FOSSILIZED, "it was judged to help and has been fine-tuned"),
    _S.CULLED: (_S.DORMANT, "the embargo is over"),
    _S.CANCELLED: (_S.DORMANT, "the embargo is over"),
}
"""Where a seed that is ready goes, and why. EVALUATING is not here: its verdict decides."""

UNDONE = (_S.CULLED, _S.CANCELLED, _S.ROLLED_BACK)

PATIENCE_EPOCHS = 50
"""A seed in isolation that no gradient reaches would otherwise hold its place for ever."""

BAND = 0.5
"""With a block on trial the loss may rise by this share over the highest of the epochs before the graft."""
BAND_EPOCHS = 5

NO_DECISION = "the loss is not finite, and no block is to blame: nothing can be decided by it"

GRAFTED = HOST_VISIBLE & IN_FLIGHT
"""States of a block that is part of the model but not yet for good."""


class Move(NamedTuple):
    """A seed's next state, why, and the numbers behind it."""

    target: SeedState
    reason: str
    numbers: dict[str, float]


def emergency(
    seed: SeedStatus, history: Sequence[EpochFigures], before: EpochFigures | None
) -> Move | None:
    """Return the way back, now, for a block with which the loss has left its band.

    What was grafted when the loss was not finite any more is not to blame for that.

    Args:
        seed: any seed.
        history: figures of the epochs so far, the last one as the model stands.
        before: those of the last epoch before the seed's graft; None for one that was loaded.

    """
    if seed.state not in GRAFTED:
        return None
    last = history[-1]
    loss = last.val_loss
    if not last.is_finite:
        if before is not None and not before.is_finite:
            return None
        kind = "training" if math.isfinite(loss) else "validation"
        return Move(_S.ROLLED_BACK, f"the {kind} loss is not finite", {"val_loss": loss})
    if before is None:
        return None
    earlier = [f.val_loss for f in history if f.epoch <= before.epoch and math.isfinite(f.val_loss)]
    if not earlier:
        return None
    highest = max(earlier[-BAND_EPOCHS:])
    ceiling = highest + BAND * abs(highest)
    if loss <= ceiling:
        return None
    reason = f"the validation loss has left its band: {loss:.4f}, at most {ceiling:.4f} expected"
    return Move(_S.ROLLED_BACK, reason, {"val_loss": loss, "ceiling": ceiling})


def next_move(seed: SeedStatus, *, others_await_verdict: bool) -> Move | None:
    """Return where a seed without a verdict to wait for goes now; None if it stays."""
    if seed.state is _S.TRAINING and seed.failure is not None:
        return Move(_S.CULLED, f"it failed in isolation: {seed.failure}", {})
    if seed.state is _S.TRAINING and seed.epochs_in_state >= PATIENCE_EPOCHS:
        return Move(_S.CANCELLED, f"it learned nothing in {PATIENCE_EPOCHS} epochs", {})
    if not seed.is_ready_for_transition:
        return None
    if seed.state is _S.TRAINING and others_await_verdict:
        return None  # one undo must not take the other with it
    if seed.state in NEXT:
        return Move(*NEXT[seed.state], {})
    return None
