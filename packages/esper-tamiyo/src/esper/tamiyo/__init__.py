"""Esper's controller and trainer: decides when, where and what to grow."""

from esper.tamiyo.config import RunConfig
from esper.tamiyo.controller import Tamiyo
from esper.tamiyo.hosts import build_host
from esper.tamiyo.policies import Heuristic, Never, Observation, Policy, Proposal
from esper.tamiyo.runtime import Runtime, RuntimeUrls
from esper.tamiyo.tasks import Split, Task, load_task
from esper.tamiyo.verdict import Evaluate, Evidence, Figures, Verdict, judge

__all__ = [
    "Evaluate",
    "Evidence",
    "Figures",
    "Heuristic",
    "Never",
    "Observation",
    "Policy",
    "Proposal",
    "RunConfig",
    "Runtime",
    "RuntimeUrls",
    "Split",
    "Tamiyo",
    "Task",
    "Verdict",
    "build_host",
    "judge",
    "load_task",
]
