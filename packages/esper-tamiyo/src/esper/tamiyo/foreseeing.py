"""Says before the first step what a person would else wonder about at the end: that nothing will grow."""

from esper.contracts.words import plural
from esper.tamiyo.controller import Tamiyo
from esper.tamiyo.policies import Attention, Growing, Observation, attention_of


def why_nothing_grows(controller: Tamiyo, epochs: int) -> str | None:
    """Return why a policy that means to grow will not do so in `epochs` epochs; None if it may."""
    bed, policy = controller.bed, controller.policy
    if not isinstance(policy, Growing):
        return None
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
