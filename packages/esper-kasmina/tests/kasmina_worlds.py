"""Whole worlds for the tests of laws 5 to 7: hosts with every kind of trainer, and all there is to see.

Knows nothing of the code under test but that it is there: what it compares is asked of torch.
"""
# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kasmina_beds import wrap_host
from kasmina_factory import Crucible, batch_for, grow
from kasmina_hosts import HOSTS, Host, seed_everything
from torch import Tensor, nn, optim
from torch.optim import Optimizer
from torch.optim import lr_scheduler as schedules

from esper.contracts import HOST_VISIBLE, SeedState
from esper.kasmina import Bed, load
from esper.kasmina.undo import World

type Batch = Callable[[int], tuple[Tensor, Tensor]]
"""Gives the batch of a step."""

OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "sgd": lambda p: optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "adam": lambda p: optim.Adam(p, lr=1e-2, amsgrad=True),
    "adamw_foreach": lambda p: optim.AdamW(p, lr=1e-2, foreach=True),
    "adamw_fused": lambda p: optim.AdamW(p, lr=1e-2, fused=True),
    "adam_tensor_lr": lambda p: optim.Adam(p, lr=torch.tensor(1e-2), foreach=False),
    "adamax": lambda p: optim.Adamax(p, lr=1e-2),
    "nadam": lambda p: optim.NAdam(p, lr=1e-2),
    "radam": lambda p: optim.RAdam(p, lr=1e-2),
    "rmsprop": lambda p: optim.RMSprop(p, lr=1e-2, momentum=0.5, centered=True),
    "adagrad": lambda p: optim.Adagrad(p, lr=1e-2),
    "adadelta": lambda p: optim.Adadelta(p, lr=0.5),
    "adafactor": lambda p: optim.Adafactor(p, lr=1e-2),
    "asgd": lambda p: optim.ASGD(p, lr=1e-2),
    "rprop": lambda p: optim.Rprop(p, lr=1e-2),
}


class Growing:
    """A function object with a memory, as `LambdaLR` takes it."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, epoch: int) -> float:
        self.calls += 1
        return 1 / (1 + epoch + 0.01 * self.calls)


SCHEDULERS: dict[str, Callable[[Optimizer], Any]] = {
    "step": lambda o: schedules.StepLR(o, 2, 0.5),
    "multi_step": lambda o: schedules.MultiStepLR(o, [2, 2, 5]),
    "cosine": lambda o: schedules.CosineAnnealingLR(o, 50),
    "restarts": lambda o: schedules.CosineAnnealingWarmRestarts(o, 3),
    "lambda": lambda o: schedules.LambdaLR(o, lambda epoch: 1 / (1 + epoch)),
    "lambda_object": lambda o: schedules.LambdaLR(o, [Growing() for _ in o.param_groups]),
    "multiplicative": lambda o: schedules.MultiplicativeLR(o, lambda _: 0.9),
    "one_cycle": lambda o: schedules.OneCycleLR(o, max_lr=0.1, total_steps=200),
    "cyclic": lambda o: schedules.CyclicLR(o, 1e-4, 1e-2, cycle_momentum=False),
    "sequential": lambda o: schedules.SequentialLR(
        o, [schedules.LinearLR(o, 0.1, 1.0, 4), schedules.ExponentialLR(o, 0.9)], milestones=[4]
    ),
    "chained": lambda o: schedules.ChainedScheduler(
        [schedules.ConstantLR(o, 0.5, 3), schedules.LambdaLR(o, [Growing()] * len(o.param_groups))]
    ),
    "plateau": lambda o: schedules.ReduceLROnPlateau(o, patience=1),
    "swa": lambda o: optim.swa_utils.SWALR(o, swa_lr=0.03, anneal_epochs=4),
}


def bits(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        flat = value.detach().contiguous().reshape(-1).view(torch.uint8)
        return (str(value.dtype), tuple(value.shape), bytes(flat.numpy()))
    if isinstance(value, np.ndarray):
        return value.tobytes()
    if isinstance(value, dict):
        return {key: bits(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [bits(part) for part in value]
    return value


def seen(world: World, *, objects: bool = True) -> Any:
    """Return everything that an onlooker can see of a world, without asking the code under test.

    With `objects`, also which objects it is made of; without, two worlds can be compared.
    """
    optimizer: Any = world.optimizer
    modules = (world.model, *world.copies)
    identities = {
        "objects": [[id(p) for p in module.parameters()] for module in modules],
        "groups": optimizer and [id(g) for g in optimizer.param_groups],
        "members": optimizer and [[id(p) for p in g["params"]] for g in optimizer.param_groups],
    }
    return bits(
        (identities if objects else {})
        | {
            "names": [[name for name, _ in module.named_modules()] for module in modules],
            "state": [module.state_dict() for module in modules],
            "buffers": [dict(module.named_buffers()) for module in modules],
            "gradients": [p.grad for module in modules for p in module.parameters()],
            "trained": [p.requires_grad for module in modules for p in module.parameters()],
            "training": [part.training for module in modules for part in module.modules()],
            "optimizer": optimizer and optimizer.state_dict(),
            "scheduler": world.scheduler and world.scheduler.state_dict(),
            "scaler": world.scaler and dict(world.scaler.state_dict()),
            "torch": torch.get_rng_state(),
            "python": random.getstate(),
            "numpy": np.random.get_state(legacy=False),
        }
    )


def live(world: World, steps: int, first: int = 0, batch: Batch | None = None) -> list[float]:
    """Train as a user would, with everything that the world has; returns the losses."""
    model, optimizer, scaler = world.model, world.optimizer, world.scaler
    assert optimizer is not None
    losses: list[float] = []
    for step in range(first, first + steps):
        x, y = batch_for(model, step) if batch is None else batch(step)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        if scaler is None:
            loss.backward()
            optimizer.step()
        else:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        for copy in world.copies:
            copy.update_parameters(model)  # pyright: ignore[reportCallIssue]
        if isinstance(world.scheduler, schedules.ReduceLROnPlateau):
            world.scheduler.step(1.0)
        elif world.scheduler is not None:
            world.scheduler.step()
        random.random()
        np.random.random()
        losses.append(float(loss.detach()))
    return losses


@dataclass(kw_only=True)
class Life:
    """One host of `kasmina_hosts` with everything that trains it, and a bed if it is wrapped."""

    host: Host
    world: World
    bed: Bed
    site: int
    """Where the tests grow."""
    made_with: tuple[str, str | None]
    clock: int = 0

    def live(self, steps: int) -> list[float]:
        losses = live(self.world, steps, self.clock, self.host.batch)
        self.clock += steps
        return losses

    def grow(self, path: Iterable[SeedState], *, steps: int = 2, **options: Any) -> None:
        """Lead the seed along `path` and live for some steps in every state from the graft on."""

        def between(state: SeedState) -> None:
            if state in HOST_VISIBLE:
                self.live(steps)

        given: dict[str, Any] = {"site": self.site, "between": between} | options
        grow(self.bed, path, **given)


def begin(
    name: str,
    optimizer: str = "adamw_foreach",
    scheduler: str | None = "cosine",
    *,
    scaled: bool = True,
    averaged: bool = True,
) -> Life:
    """Begin the life of a host, the same one every time, with all that an undo must mind."""
    host = HOSTS[name]
    model = host.make()
    seed_everything(1)
    world = surround(model, optimizer, scheduler, scaled=scaled, averaged=averaged)
    bed = wrap_host(host, model, sample_every_steps=3)
    attach(bed, world)
    site = len(bed.sites) - 1 if host.targets else 0
    return Life(host=host, world=world, bed=bed, site=site, made_with=(optimizer, scheduler))


def surround(
    model: nn.Module, optimizer: str, scheduler: str | None, *, scaled: bool, averaged: bool
) -> World:
    """Return a host with all that trains it."""
    made = OPTIMIZERS[optimizer](model.parameters())
    averages = [
        optim.swa_utils.AveragedModel(model),
        optim.swa_utils.AveragedModel(
            model, multi_avg_fn=optim.swa_utils.get_ema_multi_avg_fn(0.9), use_buffers=True
        ),
    ]
    return World(
        model=model,
        optimizer=made,
        scheduler=None if scheduler is None else SCHEDULERS[scheduler](made),
        scaler=torch.amp.GradScaler("cpu", init_scale=16.0, growth_interval=3) if scaled else None,  # pyright: ignore[reportPrivateImportUsage]
        copies=averages if averaged else [],
    )


def attach(bed: Bed, world: World) -> None:
    bed.attach(world.optimizer, world.scheduler, scaler=world.scaler, copies=world.copies)


def come_back(life: Life, folder: Path, *, model: nn.Module | None = None) -> Life:
    """Bring a life back from its checkpoint, as a new process would: with nothing of the old one."""
    model = life.host.make(7) if model is None else model
    bed = load(model, folder, sample_every_steps=3)
    bed.trust(Crucible().public_key)
    old = life.world
    world = surround(
        model, *life.made_with, scaled=old.scaler is not None, averaged=bool(old.copies)
    )
    attach(bed, world)
    assert bed.resume(folder) == bed.step
    return replace(life, world=world, bed=bed)
