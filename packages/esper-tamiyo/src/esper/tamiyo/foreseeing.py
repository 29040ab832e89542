"""Says before the first step what a person would else wonder about at the end: what will not grow."""

from esper.contracts.words import plural
from esper.tamiyo.controller import Tamiyo
from esper.tamiyo.policies import Attention, Growing, Observation, Scripted, attention_of


def what_will_not_grow(controller: Tamiyo, epochs: int) -> str | None:
    """Return what a policy means to grow and will not in `epochs` epochs, and why; None if all may."""
    policy = controller.policy
    if isinstance(policy, Scripted):
        return _not_at_hand(policy, controller, epochs)
    return _too_late(policy, controller, epochs) if isinstance(policy, Growing) else None


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
    told = f"nothing will grow in {plural(epochs, 'epoch')}: after the first, {reason}"
    if epochs > policy.min_epochs_left:
        return told
    return f"{told}; more and shorter epochs give it time (--epochs, --epoch-samples)"
