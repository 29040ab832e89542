"""Who competes: the controller with its policies, and nets that never grow, at equal training FLOPs."""

# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import override

import rival
import torch
from problems import Problem
from torch import nn
from training import DECISIONS, Result, measure, step_flops, train

from esper.kasmina import Bed, StageLengths, wrap
from esper.tamiyo import (
    AtRandom,
    Chance,
    Gap,
    Heuristic,
    Observation,
    Periodic,
    Policy,
    Proposal,
    Tamiyo,
)

DEFAULT = "default"
"""What anybody gets: `wrap(model, example=…, widen=True)` and `Tamiyo(bed, optimizer)`."""

BLOCKS_EARLY = "blocks, input side"

STATIC = "static, "

type Grow = Callable[[Problem, nn.Module, int], tuple[Bed, Policy]]


def _default(problem: Problem, model: nn.Module, seed: int) -> tuple[Bed, Policy]:
    return _bed(problem, model), Gap()


def _heuristic(problem: Problem, model: nn.Module, seed: int) -> tuple[Bed, Policy]:
    return _bed(problem, model), Heuristic()


def _random(problem: Problem, model: nn.Module, seed: int) -> tuple[Bed, Policy]:
    return _bed(problem, model), Chance(seed=seed, timing=AtRandom(chance=0.1, seed=seed))


def _bed(problem: Problem, model: nn.Module) -> Bed:
    return wrap(model, example=problem.batch(torch.Generator().manual_seed(0))[0][:8], widen=True)


@dataclass(frozen=True, kw_only=True)
class _Only(Gap):
    """The default, but for one design."""

    blueprint: str

    @override
    def propose(self, observation: Observation) -> Proposal:
        kernels = [k for k in observation.kernels if k.blueprint_name == self.blueprint]
        return super().propose(replace(observation, kernels=kernels))


def _blocks_at(number: int) -> Grow:
    """Return an arm that grows `Problem.block` at the place of this number, at the first decision."""

    def grow(problem: Problem, model: nn.Module, seed: int) -> tuple[Bed, Policy]:
        assert problem.block is not None
        bed = wrap(
            model,
            targets=[problem.places[number]],
            example=problem.batch(torch.Generator().manual_seed(0))[0][:8],
            blueprints=[problem.block],
            stages=StageLengths(
                training_steps=0,
                ramp_steps=problem.ramp_steps,
                settle_steps=0,
                fine_tuning_steps=0,
            ),
        )
        once = Periodic(every_epochs=DECISIONS)
        return bed, _Only(blueprint=problem.block.name, timing=once, min_epochs_left=2)

    return grow


GROWS: Mapping[str, Grow] = {
    DEFAULT: _default,
    "heuristic": _heuristic,
    "random": _random,
    BLOCKS_EARLY: _blocks_at(0),
    "blocks, output side": _blocks_at(-1),
}


@dataclass(frozen=True, kw_only=True)
class Scratch:
    """The net that another arm ended as, trained from scratch."""

    of: str
    equal_steps: bool = False
    """As many steps as the other arm took, whatever they cost; otherwise equal FLOPs."""
    times: int = 1
    """Of the FLOPs that every arm has."""


SCRATCH: Mapping[str, Scratch] = {
    "default's net from scratch": Scratch(of=DEFAULT),
    "… for as many steps": Scratch(of=DEFAULT, equal_steps=True),
    "blocks' net from scratch": Scratch(of=BLOCKS_EARLY),
}

MORE: Mapping[str, Scratch] = {
    f"from scratch, {times} times the FLOPs": Scratch(of=DEFAULT, times=times) for times in (2, 4)
}
"""No rivals: they tell how many operations growing is worth (`worth.py`)."""

GROMO = "GroMo"
SMALL, NEVER = "small host", "small host, as many steps"


def arms_of(problem: Problem) -> Sequence[str]:
    """Return the names of all that compete, those that grow first."""
    if not problem.statics:
        return (DEFAULT, NEVER)
    statics = [STATIC + name for name in problem.statics]
    names = [*GROWS, *SCRATCH, GROMO, SMALL, NEVER, *statics]
    absent = () if problem.mlp is not None and rival.is_installed() else (GROMO,)
    if problem.block is None:
        absent = (*absent, *(name for name in names if name.startswith("blocks")))
    return [name for name in names if name not in absent]


def compete(
    problem: Problem, seed: int, rate: float, names: Sequence[str] | None = None
) -> dict[str, Result]:
    """Run every arm on one seed at one learning rate; with `names`, only those."""
    results: dict[str, Result] = {}
    grown: dict[str, nn.Module] = {}
    torch.manual_seed(seed)
    budget = problem.steps * step_flops(problem.host(), problem)
    for name in names or arms_of(problem):
        torch.manual_seed(seed)
        limit, attach = budget, None
        if name == GROMO:
            results[name] = rival.run(problem, seed=seed, rate=rate, budget=budget)
            continue
        if name in GROWS:
            model = grown[name] = problem.host()
            attach = _controller(problem, model, GROWS[name](problem, model, seed))
        elif name in SCRATCH or name in MORE:
            arm = SCRATCH.get(name) or MORE[name]
            model, limit = drawn_anew(grown[arm.of], seed), arm.times * budget
            if arm.equal_steps:
                limit = results[arm.of].steps * step_flops(model, problem)
        elif name in (SMALL, NEVER):
            model = problem.host()
            if name == NEVER:
                limit = results[DEFAULT].steps * step_flops(model, problem)
        else:
            model = problem.statics[name.removeprefix(STATIC)]()
        results[name] = train(problem, model, seed=seed, rate=rate, budget=limit, attach=attach)
    return results


def _controller(
    problem: Problem, model: nn.Module, made: tuple[Bed, Policy]
) -> Callable[[torch.optim.Optimizer], Tamiyo]:
    bed, policy = made
    return lambda optimizer: Tamiyo(
        bed,
        optimizer,
        policy=policy,
        epochs=DECISIONS,
        evaluate=lambda: measure(model, problem, problem.validation),
    )


def drawn_anew(model: nn.Module, seed: int) -> nn.Module:
    """Return a net of the same architecture whose weights are all drawn as its layers draw them.

    Raises:
        ValueError: naming the parameters that no layer draws, and that would be those of `model`.

    """
    torch.manual_seed(seed)
    fresh = copy.deepcopy(model)
    for parameter in fresh.parameters():
        parameter.data.fill_(math.nan)
    for module in fresh.modules():
        # torch's own attention has an underscore before it.
        reset = getattr(module, "reset_parameters", getattr(module, "_reset_parameters", None))
        if reset is not None:
            reset()
    left = [name for name, each in fresh.named_parameters() if bool(each.isnan().any())]
    if left:
        raise ValueError(f"no layer draws {', '.join(left)}: give its module reset_parameters()")
    return fresh
