"""Says before the first step what a person would else wonder about at the end: what will not grow."""

from esper.contracts.words import plural
from esper.tamiyo.config import LEAST_STEPS, RunConfig
from esper.tamiyo.controller import Tamiyo
from esper.tamiyo.policies import Attention, Growing, Observation, Scripted, attention_of

MANY_EPOCHS = 40
"""In so many there is time to grow, and to judge it."""


def what_will_not_grow(
    controller: Tamiyo, epochs: int, *, instead: str | None = None
) -> str | None:
    """Return what a policy means to grow and will not in `epochs` epochs, and why; None if all may.

    Where that is for want of epochs, it says what to do `instead` (`shorter_epochs`).
    """
    policy = controller.policy
    if isinstance(policy, Scripted):
        return _not_at_hand(policy, controller, epochs)
    if not isinstance(policy, Growing):
        return None
    told = _too_late(policy, controller, epochs)
    is_short = told is not None and instead is not None and epochs <= policy.min_epochs_left
    return f"{told}; {instead} makes more and shorter ones" if is_short else told


def shorter_epochs(config: RunConfig, num_samples: int) -> str | None:
    """Return options that make more epochs of a run's samples; None where they would have too few steps."""
    parts = -(-MANY_EPOCHS // config.epochs)
    size = -(-(config.epoch_samples or num_samples) // parts)
    if size < LEAST_STEPS * config.batch_size * config.accumulate:
        return None
    return f"--epochs {parts * config.epochs} --epoch-samples {size}"


def _not_at_hand(policy: Scripted, controller: Tamiyo, epochs: int) -> str | None:
    missing = policy.without_kernel(controller.kernels)
    if missing:
        return (
            f"the script grows what this run has no kernel for, and leaves out: {', '.join(missing)}; its "
            "run had a host of another width, blueprints of its own (--blueprint), or another Esper"
        )
    last = max(policy.script, default=0)
    if last >= epochs:
        return (
            f"the script grows until epoch {last + 1}, and this run has {plural(epochs, 'epoch')}"
        )
    return None


def _too_late(policy: Growing, controller: Tamiyo, epochs: int) -> str | None:
    bed = controller.bed
    begin = Observation(
        epoch=0,
        epochs_left=epochs - 1,
        history=(),
        sites=bed.sites,
        seeds=bed.seeds(),
        health=(),
        kernels=controller.kernels,
        outcomes=(),
        num_parameters=bed.num_parameters(),
    )
    if attention_of(policy, begin) is not Attention.NONE:
        return None
    reason = policy.propose(begin).reason
    return f"nothing will grow in {plural(epochs, 'epoch')}: after the first, {reason}"
