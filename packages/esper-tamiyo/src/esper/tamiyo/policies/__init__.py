"""Policies: pure functions from what was observed to where, when and what to grow."""

from esper.tamiyo.policies.budget import Budget
from esper.tamiyo.policies.chance import Chance
from esper.tamiyo.policies.gap import Gap
from esper.tamiyo.policies.growing import Growing
from esper.tamiyo.policies.heuristic import Heuristic
from esper.tamiyo.policies.never import Never
from esper.tamiyo.policies.policy import (
    Attention,
    EpochFigures,
    Observation,
    Policy,
    Proposal,
    attention_of,
)
from esper.tamiyo.policies.scripted import Scripted
from esper.tamiyo.policies.timing import AtRandom, Due, LossSlope, Periodic, Plateau, Timing

__all__ = [
    "AtRandom",
    "Attention",
    "Budget",
    "Chance",
    "Due",
    "EpochFigures",
    "Gap",
    "Growing",
    "Heuristic",
    "LossSlope",
    "Never",
    "Observation",
    "Periodic",
    "Plateau",
    "Policy",
    "Proposal",
    "Scripted",
    "Timing",
    "attention_of",
]
