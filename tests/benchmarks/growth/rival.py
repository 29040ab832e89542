"""GroMo, the nearest library of its kind, on plain MLPs (package `gromo`, dependency group `rivals`).

Its own way: at a decision the statistics of ten batches, TINY's new neurons for the layer that promises most
(Verbockhaven et al. 2024), at most as many as the host is wide, scaled by a line search; a new optimizer.
"""

# gromo has no types, and torch leaves parts of its own open:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportMissingImports=false

import time
import warnings
from importlib.util import find_spec
from typing import Any

import torch
from problems import Problem
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode
from training import DECISIONS, Result, result_of, set_rate, step_flops

GROWTHS = range(1, DECISIONS // 4 + 1, 2)
"""Decision points at which it grows: those at which Esper's default may."""

SCALES = (0.03, 0.1, 0.3, 1.0)
STATISTICS_BATCHES = 10


def is_installed() -> bool:
    """Tell whether GroMo can take part."""
    return find_spec("gromo") is not None


def run(problem: Problem, *, seed: int, rate: float, budget: int) -> Result:
    """Train and grow until the budget of FLOPs is used up."""
    from gromo.containers.growing_mlp import GrowingMLP

    assert problem.mlp is not None
    begun = time.perf_counter()
    num_inputs, width, num_hidden, num_outputs = problem.mlp
    torch.manual_seed(seed)
    model: Any = GrowingMLP(num_inputs, num_outputs, width, num_hidden, activation=nn.ReLU())
    generator = torch.Generator().manual_seed(seed)
    optimizer, cost = _start(model, problem, rate)
    used, step, decided = 0, 0, 0
    while used < budget:
        set_rate(optimizer, rate, step, used / budget)
        inputs, targets = problem.batch(generator)
        optimizer.zero_grad()
        problem.loss_of(model(inputs), targets).mean().backward()
        optimizer.step()
        used, step = used + cost, step + 1
        if used / budget * DECISIONS >= decided + 1:
            decided += 1
            if decided in GROWTHS:
                used += _grow(model, problem, generator, width)
                optimizer, cost = _start(model, problem, rate)
    return result_of(model, problem, used, step, time.perf_counter() - begun)


def _start(model: Any, problem: Problem, rate: float) -> tuple[torch.optim.Optimizer, int]:
    """Return an optimizer, and what a step costs now: that of a plain net of these widths."""
    layers: list[nn.Module] = []
    for layer in model.layers:
        layers += [nn.Linear(layer.in_features, layer.out_features), nn.ReLU()]
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    return optimizer, step_flops(nn.Sequential(*layers[:-1]), problem)


def _grow(model: Any, problem: Problem, generator: torch.Generator, most: int) -> int:
    """Add neurons where GroMo thinks best; return the FLOPs of finding out."""
    batches = [problem.batch(generator) for _ in range(STATISTICS_BATCHES)]
    with FlopCounterMode(display=False) as counter, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its pseudo-inverses
        model.init_computation()
        for inputs, targets in batches:
            model.zero_grad()
            functional.cross_entropy(model(inputs), targets, reduction="sum").backward()
            model.update_computation()
        model.compute_optimal_updates(maximum_added_neurons=most, compute_delta=False)
        model.reset_computation()
        model.select_best_update()
        with torch.no_grad():
            losses = {scale: _loss(model, scale, *batches[0]) for scale in SCALES}
        model.set_scaling_factor(min(losses, key=lambda scale: losses[scale]))
        model.apply_change()
    return counter.get_total_flops()


def _loss(model: Any, scale: float, inputs: torch.Tensor, targets: torch.Tensor) -> float:
    model.set_scaling_factor(scale)
    return functional.cross_entropy(model.extended_forward(inputs), targets).item()
