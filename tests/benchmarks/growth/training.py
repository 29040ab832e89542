"""Training within a budget of FLOPs, with or without a controller.

One rule counts the FLOPs of everything: matrix products, convolutions and attention of the forward and
backward pass of a training step, multiply-add = 2, as torch's own counter has them. While a seed is in
flight each step is counted as it runs, with what the seed learns beside the host; otherwise one step stands
for all. A run ends when its budget is used up. Validation and the statistics of dormant seeds are not
counted; the wall time of each run is in the table.
"""

# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import copy
import math
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from problems import Problem
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from esper.contracts import IN_FLIGHT, SeedState
from esper.tamiyo import Figures, Tamiyo

DECISIONS = 40
"""Decision points of a run."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """One run."""

    accuracy: float | None
    """On test data, in per cent."""
    loss: float
    """On test data."""
    validation_accuracy: float | None
    """What learning rates and the best static net are chosen by, where there is such a thing."""
    validation_loss: float
    """Otherwise that."""
    parameters: int
    flops: int
    steps: int
    seconds: float
    grown: tuple[str, ...] = ()
    """What was kept, in order: design and place."""


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
    is_counted = False
    model.train()
    while used < budget:
        set_rate(optimizer, rate, step, used / budget)
        inputs, targets = problem.batch(generator)
        with ExitStack() as counting:
            counter = FlopCounterMode(display=False)
            if is_counted:
                counting.enter_context(counter)
            loss = problem.loss_of(model(inputs), targets).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        used, step = used + (counter.get_total_flops() if is_counted else cost), step + 1
        if tamiyo is not None and used / budget * DECISIONS >= decided + 1:
            decided += 1
            figures = measure(model, problem, problem.validation)
            tamiyo.end_epoch(val_loss=figures.loss, val_accuracy=figures.accuracy)
            cost = step_flops(model, problem)
            is_counted = any(each.state in IN_FLIGHT for each in tamiyo.bed.seeds())
    if tamiyo is not None:
        tamiyo.close()
    seconds = time.perf_counter() - begun
    return result_of(model, problem, used, step, seconds, _grown(tamiyo))


def set_rate(optimizer: torch.optim.Optimizer, rate: float, step: int, progress: float) -> None:
    """Follow a warm-up of 50 steps and a cosine over the budget."""
    for group in optimizer.param_groups:
        group["lr"] = rate * min(1, (step + 1) / 50) * (1 + math.cos(math.pi * progress)) / 2


def result_of(
    model: nn.Module,
    problem: Problem,
    flops: int,
    steps: int,
    seconds: float,
    grown: tuple[str, ...] = (),
) -> Result:
    """Measure a trained model."""
    figures, seen = (measure(model, problem, data) for data in (problem.test, problem.validation))
    return Result(
        accuracy=None if figures.accuracy is None else 100 * figures.accuracy,
        loss=figures.loss,
        validation_accuracy=None if seen.accuracy is None else 100 * seen.accuracy,
        validation_loss=seen.loss,
        parameters=sum(p.numel() for p in model.parameters()),
        flops=flops,
        steps=steps,
        seconds=seconds,
        grown=grown,
    )


def _grown(tamiyo: Tamiyo | None) -> tuple[str, ...]:
    if tamiyo is None:
        return ()
    kernels = {kernel.kernel_id: kernel.blueprint_name for kernel in tamiyo.kernels}
    return tuple(
        f"{kernels[event.kernel_id]} at {event.site}"
        for event in tamiyo.events
        if event.to_state is SeedState.FOSSILIZED and event.kernel_id is not None
    )
