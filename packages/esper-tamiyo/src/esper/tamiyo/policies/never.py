"""The policy that never grows: plain training, and the yardstick of every other policy."""

from esper.tamiyo.policies.policy import Attention, Observation, Proposal


class Never:
    """Always waits."""

    name = "never"
    grows = False

    def attention(self, observation: Observation) -> Attention:  # noqa: ARG002
        """Return that it looks at nothing."""
        return Attention.NONE

    def propose(self, observation: Observation) -> Proposal:  # noqa: ARG002
        """Return a proposal to wait."""
        return Proposal(chosen=None, reason="the policy 'never' does not grow")
