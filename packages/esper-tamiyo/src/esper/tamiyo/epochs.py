"""One training of a run, epoch by epoch: the loop that the grown model and its twin share."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

from esper.tamiyo.compiling import compiled
from esper.tamiyo.config import RunConfig
from esper.tamiyo.environment import count_flops
from esper.tamiyo.stopping import StopSignals
from esper.tamiyo.summary import Point, Training
from esper.tamiyo.tasks import Task
from esper.tamiyo.training import (
    Means,
    Progress,
    measure,
    order_of_epoch,
    order_seed_of,
    train_epoch,
    trained_with,
)
from esper.tamiyo.ui import Ui
from esper.tamiyo.verdict import Figures


@dataclass(kw_only=True)
class Learner:
    """A model with what trains it."""

    model: nn.Module
    task: Task
    config: RunConfig
    means: Means
    optimizer: torch.optim.Optimizer
    scheduler: Any | None
    scaler: Any | None
    average: AveragedModel | None = None
    """A moving average of the weights, where the run keeps one."""

    def after_step(self) -> None:
        """Do what follows each step of the optimizer."""
        if self.scheduler is not None:
            self.scheduler.step()
        if self.average is not None:
            self.average.update_parameters(self.model)

    def measure(self, part: str = "validation") -> Figures:
        """Return the model's figures on a part of the task."""
        return measure(self.model, getattr(self.task, part), goal=self.task.goal, means=self.means)


def make_learner(
    model: nn.Module,
    task: Task,
    config: RunConfig,
    means: Means,
    average: AveragedModel | None = None,
) -> Learner:
    """Return a model with a fresh optimizer, and the schedule and the scaler that the run asks for."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate)
    scheduler = None
    if config.schedule == "cosine":
        samples = trained_with(samples_of_epoch(task, config), config.batch_size)
        batches = math.ceil(samples / config.batch_size)
        num_steps = config.epochs * math.ceil(batches / config.accumulate)
        scheduler = LambdaLR(
            optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * min(1.0, step / num_steps)))
        )
    return Learner(
        model=model,
        task=task.to(means.device),
        config=config,
        means=means,
        optimizer=optimizer,
        scheduler=scheduler,
        scaler=means.scaler(),
        average=average,
    )


def samples_of_epoch(task: Task, config: RunConfig) -> int:
    """Return how many samples an epoch of a run has."""
    return config.epoch_samples or len(task.train)


def epochs(
    label: str,
    training: Training,
    learner: Learner,
    ui: Ui,
    stop: StopSignals,
    *,
    progress: Progress | None = None,
) -> Iterator[Point]:
    """Train epoch by epoch, behind those on the curve, yielding each one's figures at its decision point.

    `progress` is how far the first of them has got already, and is kept up to date.

    Raises:
        StopRequestedError: between two steps, if the user asks to stop.

    """
    config, model = learner.config, learner.model
    progress = progress or Progress()
    forward: Any = compiled(model) if config.compile else model
    size, data = samples_of_epoch(learner.task, config), learner.task.train
    ui.begin(label, config.epochs, num_samples=size, earlier=tuple(training.curve))
    last = training.curve[-1] if training.curve else None
    for epoch in range(len(training.curve), config.epochs):
        train_loss = train_epoch(
            forward,
            learner.optimizer,
            data,
            goal=learner.task.goal,
            batch_size=config.batch_size,
            order_seed=order_seed_of(epoch, config.seed),
            order=order_of_epoch(len(data), epoch, size=size, seed=config.seed),
            means=learner.means,
            scaler=learner.scaler,
            after_step=learner.after_step,
            stop=stop.honour,
            progress=progress,
        )
        figures = learner.measure()
        parameters = sum(p.numel() for p in model.parameters())
        if last is None or parameters != last.parameters:
            two = data.first(2)  # as many as it was tried with
            flops = count_flops(model, two.inputs)
        else:
            flops = last.flops  # what did not grow costs the same
        last = Point(
            epoch=epoch,
            train_loss=train_loss,
            val_loss=figures.loss,
            val_accuracy=figures.accuracy,
            parameters=parameters,
            flops=flops,
        )
        training.curve.append(last)
        progress.batches, progress.loss_sum = 0, 0.0
        ui.epoch(label, last, config.epochs)
        yield last
