"""The policy that never grows: plain training, and the yardstick of every other policy."""

from esper.tamiyo.policies.policy import Observation, Proposal


class Never:
    """Always waits."""

    name = "never"

    def propose(self, observation: Observation) -> Proposal:  # noqa: ARG002
        """Return a proposal to wait."""
        return Proposal(chosen=None, reason="the policy 'never' does not grow")
