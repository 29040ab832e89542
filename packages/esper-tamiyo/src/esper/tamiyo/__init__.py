"""Esper's controller and trainer: decides when, where and what to grow.

What is public is imported when it is first used (PEP 562): the command must answer Ctrl-C before torch
is there. For the same reason nothing is imported here, not even `typing`.
"""

TYPE_CHECKING = False

if TYPE_CHECKING:
    from esper.tamiyo.config import RunConfig
    from esper.tamiyo.controller import Tamiyo
    from esper.tamiyo.hosts import build_host
    from esper.tamiyo.policies import (
        AtRandom,
        Attention,
        Budget,
        Chance,
        Due,
        EpochFigures,
        Gap,
        Growing,
        Heuristic,
        LossSlope,
        Never,
        Observation,
        Periodic,
        Plateau,
        Policy,
        Proposal,
        Scripted,
        Timing,
    )
    from esper.tamiyo.runtime import Runtime, RuntimeUrls
    from esper.tamiyo.tasks import DatasetSplit, Split, Task, load_task
    from esper.tamiyo.verdict import Evaluate, Evidence, Figures, Verdict, judge

__all__ = [
    "AtRandom",
    "Attention",
    "Budget",
    "Chance",
    "DatasetSplit",
    "Due",
    "EpochFigures",
    "Evaluate",
    "Evidence",
    "Figures",
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
    "RunConfig",
    "Runtime",
    "RuntimeUrls",
    "Scripted",
    "Split",
    "Tamiyo",
    "Task",
    "Timing",
    "Verdict",
    "build_host",
    "judge",
    "load_task",
]

_MODULES = {
    "AtRandom": "policies",
    "Attention": "policies",
    "Budget": "policies",
    "Chance": "policies",
    "DatasetSplit": "tasks",
    "Due": "policies",
    "EpochFigures": "policies",
    "Evaluate": "verdict",
    "Evidence": "verdict",
    "Figures": "verdict",
    "Gap": "policies",
    "Growing": "policies",
    "Heuristic": "policies",
    "LossSlope": "policies",
    "Never": "policies",
    "Observation": "policies",
    "Periodic": "policies",
    "Plateau": "policies",
    "Policy": "policies",
    "Proposal": "policies",
    "RunConfig": "config",
    "Runtime": "runtime",
    "RuntimeUrls": "runtime",
    "Scripted": "policies",
    "Split": "tasks",
    "Tamiyo": "controller",
    "Task": "tasks",
    "Timing": "policies",
    "Verdict": "verdict",
    "build_host": "hosts",
    "judge": "verdict",
    "load_task": "tasks",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = globals()[name] = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]
