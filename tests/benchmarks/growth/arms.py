"""Who competes: the controller with its policies, and nets that never grow, at equal training FLOPs.

One rule counts the FLOPs of everything: matrix products, convolutions and attention of the forward and
backward pass of a training step, multiply-add = 2, as torch's own counter has them. A run ends when its
budget, that of the small host trained for `Problem.steps` steps, is used up. Validation, decisions and the
rest of a step are not counted; the wall time of each run is in the table.
"""

# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from problems import Problem
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from esper.kasmina import Block, StageLengths, initialise_block, wrap
from esper.tamiyo import AtRandom, Chance, Figures, Gap, Periodic, Policy, Tamiyo

DECISIONS = 40
"""Decision points of a run."""

ARMS = ("grown", "random", "output side", "scratch", "scratch, zeros", "small host")
"""`scratch` is the net that `grown` ended as, all weights drawn as its layers draw them; `zeros`: with the
last layer of each block zero, as `grown` is born."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """One run."""

    accuracy: float | None
    """On test data, in per cent."""
    loss: float
    """On test data."""
    validation_loss: float
    """What learning rates are chosen by."""
    parameters: int
    flops: int
    steps: int
    seconds: float


def step_flops(model: nn.Module, problem: Problem) -> int:
    """Count one training step."""
    inputs, targets = problem.batch(torch.Generator().manual_seed(0))
    twin = copy.deepcopy(model).train()
    with FlopCounterMode(display=False) as counter:
        problem.loss_of(twin(inputs), targets).mean().backward()
    return counter.get_total_flops()


def measure(model: nn.Module, problem: Problem, data: tuple[Tensor, Tensor]) -> Figures:
    """Return loss and accuracy, with the losses of samples."""
    model.eval()
    with torch.no_grad():
        logits = model(data[0])
        losses = problem.loss_of(logits, data[1])
    correct = (logits.argmax(dim=-1) == data[1]).float().mean().item()
    model.train()
    accuracy = correct if problem.is_classification else None
    return Figures(loss=losses.mean().item(), accuracy=accuracy, losses=losses.tolist())


def train(
    problem: Problem,
    model: nn.Module,
    *,
    seed: int,
    rate: float,
    budget: int,
    attach: Callable[[torch.optim.Optimizer], Tamiyo] | None = None,
) -> Result:
    """Train until the budget of FLOPs is used up; with a controller, decide `DECISIONS` times."""
    begun = time.perf_counter()
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01)
    tamiyo = attach(optimizer) if attach is not None else None
    cost, used, step, decided = step_flops(model, problem), 0, 0, 0
    model.train()
    while used < budget:
        progress = used / budget
        warm = min(1, (step + 1) / 50)
        for group in optimizer.param_groups:
            group["lr"] = rate * warm * (1 + math.cos(math.pi * progress)) / 2
        inputs, targets = problem.batch(generator)
        loss = problem.loss_of(model(inputs), targets).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        used, step = used + cost, step + 1
        if tamiyo is not None and used / budget * DECISIONS >= decided + 1:
            decided += 1
            figures = measure(model, problem, problem.validation)
            before = len(tamiyo.events)
            tamiyo.end_epoch(val_loss=figures.loss, val_accuracy=figures.accuracy)
            if len(tamiyo.events) > before:
                cost = step_flops(model, problem)
    if tamiyo is not None:
        tamiyo.close()
    figures = measure(model, problem, problem.test)
    return Result(
        accuracy=None if figures.accuracy is None else 100 * figures.accuracy,
        loss=figures.loss,
        validation_loss=measure(model, problem, problem.validation).loss,
        parameters=sum(p.numel() for p in model.parameters()),
        flops=used,
        steps=step,
        seconds=time.perf_counter() - begun,
    )


def grow(
    problem: Problem, arm: str, *, seed: int, rate: float, budget: int
) -> tuple[Result, nn.Module]:
    """Train a host that may grow; return the result and the grown model."""
    torch.manual_seed(seed)
    model = problem.host()
    targets = problem.targets[-1:] if arm == "output side" else problem.targets
    bed = wrap(
        model,
        targets=targets,
        example=problem.batch(torch.Generator().manual_seed(0))[0][:8],
        blueprints=problem.blueprints,
        stages=StageLengths(
            training_steps=0,
            ramp_steps=problem.ramp_steps,
            settle_steps=0,
            fine_tuning_steps=0,
        ),
    )

    def attach(optimizer: torch.optim.Optimizer) -> Tamiyo:
        return Tamiyo(
            bed,
            optimizer,
            policy=policy_of(arm, seed),
            epochs=DECISIONS,
            evaluate=lambda: measure(model, problem, problem.validation),
        )

    result = train(problem, model, seed=seed, rate=rate, budget=budget, attach=attach)
    return result, model


def policy_of(arm: str, seed: int) -> Policy:
    """Return the policy of an arm that grows: early, except at random."""
    if arm == "random":
        return Chance(seed=seed, timing=AtRandom(chance=0.1, seed=seed), min_epochs_left=2)
    return Gap(timing=Periodic(every_epochs=DECISIONS), min_epochs_left=2)


def drawn_anew(model: nn.Module, seed: int, *, zeros: bool) -> nn.Module:
    """Return a net of the same architecture whose weights are all drawn as its layers draw them.

    With `zeros`, those of grown blocks are drawn as at their birth: the last layer zero.
    """
    torch.manual_seed(seed)
    fresh = copy.deepcopy(model)
    for module in fresh.modules():
        reset = getattr(module, "reset_parameters", None)
        if reset is not None:
            reset()
    if zeros:
        for module in fresh.modules():
            if isinstance(module, Block):
                initialise_block(module, torch.Generator().manual_seed(seed))
    return fresh


def compete(problem: Problem, seed: int, rate: float) -> dict[str, Result]:
    """Run every arm on one seed at one learning rate."""
    torch.manual_seed(seed)
    small = problem.host()
    budget = problem.steps * step_flops(small, problem)
    results: dict[str, Result] = {}
    results["grown"], grown = grow(problem, "grown", seed=seed, rate=rate, budget=budget)
    for arm in ("random", "output side"):
        results[arm], _ = grow(problem, arm, seed=seed, rate=rate, budget=budget)
    for arm, zeros in (("scratch", False), ("scratch, zeros", True)):
        fresh = drawn_anew(grown, seed, zeros=zeros)
        results[arm] = train(problem, fresh, seed=seed, rate=rate, budget=budget)
    results["small host"] = train(problem, small, seed=seed, rate=rate, budget=budget)
    return results
