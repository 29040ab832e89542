"""Policies: pure functions from what was observed to where, when and what to grow."""

from esper.tamiyo.policies.heuristic import Heuristic
from esper.tamiyo.policies.never import Never
from esper.tamiyo.policies.policy import EpochFigures, Observation, Policy, Proposal

__all__ = ["EpochFigures", "Heuristic", "Never", "Observation", "Policy", "Proposal"]
