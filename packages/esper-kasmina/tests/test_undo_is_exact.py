"""Law 6: a cull or rollback puts everything back bit for bit, from every state."""
# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from kasmina_factory import (
    PATHS,
    QUICK,
    TO_FOSSILIZED,
    Make,
    admit,
    cnn,
    grow,
    mlp,
    order,
    state_bits,
    train,
)
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim import lr_scheduler as schedules

from esper.contracts import HostError, SeedState
from esper.kasmina import Bed, wrap

OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "momentum": lambda p: SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-3),
    "adam": lambda p: Adam(p, lr=1e-2, amsgrad=True),
    "adamw": lambda p: AdamW(p, lr=1e-2),
}


def decay(epoch: int) -> float:
    return 1 / (1 + epoch)


SCHEDULERS: dict[str, Callable[[Optimizer], Any]] = {
    "none": lambda _: None,
    "step": lambda o: schedules.StepLR(o, 2, 0.5),
    "cosine": lambda o: schedules.CosineAnnealingLR(o, 50),
    "lambda": lambda o: schedules.LambdaLR(o, [decay] * len(o.param_groups)),
    "one_cycle": lambda o: schedules.OneCycleLR(
        o, max_lr=[0.1] * len(o.param_groups), total_steps=200
    ),
    "cyclic": lambda o: schedules.CyclicLR(o, 1e-4, 1e-2, cycle_momentum=False),
    "warm_up": lambda o: schedules.SequentialLR(
        o, [schedules.LinearLR(o, 0.1, 1.0, 4), schedules.ExponentialLR(o, 0.9)], milestones=[4]
    ),
}


def everything(model: nn.Module, optimizer: Optimizer, scheduler: Any) -> dict[str, Any]:
    return {
        "state": state_bits(model),
        "parameters": [id(p) for p in model.parameters()],
        "gradients": [str(p.grad) for p in model.parameters()],
        "trainable": [p.requires_grad for p in model.parameters()],
        "modules": [name for name, _ in model.named_modules()],
        "optimizer": bits_of(optimizer.state_dict()),
        "scheduler": None if scheduler is None else str(scheduler.state_dict()),
        "torch": torch.get_rng_state().tolist(),
        "python": random.getstate(),
        "numpy": str(np.random.get_state()),
    }


def bits_of(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return (str(value.dtype), tuple(value.shape), value.reshape(-1).numpy().tobytes())
    if isinstance(value, dict):
        return {key: bits_of(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [bits_of(part) for part in value]
    return value


def check_undo(
    make: Make, optimizer_name: str, scheduler_name: str, state: SeedState, by: SeedState
) -> None:
    model = make()
    optimizer = OPTIMIZERS[optimizer_name](model.parameters())
    scheduler = SCHEDULERS[scheduler_name](optimizer)
    bed = wrap(model, stages=QUICK)
    bed.attach(optimizer, scheduler)
    train(model, optimizer, 5, scheduler=scheduler)
    path = PATHS[state]
    before: dict[str, Any] = {}
    kernel_id = admit(bed)
    for target in path:
        if target is SeedState.GRAFTING:
            before = everything(model, optimizer, scheduler)
        order(bed, target, kernel_id)
        train(model, optimizer, 4, first=5, scheduler=scheduler)
        random.random()
        np.random.random()
    assert everything(model, optimizer, scheduler) != before
    order(bed, by)
    assert everything(model, optimizer, scheduler) == before
    # What follows is the life that it would have had.
    expected = train(model, optimizer, 3, first=9, scheduler=scheduler)
    assert len(optimizer.param_groups) == 1
    assert all(loss == loss for loss in expected)


@pytest.mark.parametrize("by", [SeedState.CULLED, SeedState.ROLLED_BACK])
@pytest.mark.parametrize("state", list(PATHS))
@pytest.mark.parametrize("optimizer_name", list(OPTIMIZERS))
def test_undo_is_exact_from_every_state(
    optimizer_name: str, state: SeedState, by: SeedState
) -> None:
    check_undo(cnn, optimizer_name, "cosine", state, by)


@pytest.mark.parametrize("scheduler_name", list(SCHEDULERS))
def test_undo_is_exact_with_every_scheduler(scheduler_name: str) -> None:
    check_undo(mlp, "adamw", scheduler_name, SeedState.FINE_TUNING, SeedState.CULLED)


@pytest.mark.parametrize("scheduler_name", list(SCHEDULERS))
def test_the_scheduler_treats_grafted_parameters_like_their_layer(scheduler_name: str) -> None:
    model = mlp()
    optimizer = AdamW([{"params": model[:2].parameters()}, {"params": model[2:].parameters()}])
    optimizer.param_groups[1]["lr"] = 0.003
    scheduler = SCHEDULERS[scheduler_name](optimizer)
    bed = wrap(model, stages=QUICK)
    bed.attach(optimizer, scheduler)
    grow(bed, PATHS[SeedState.GRAFTING], site=1)
    for step in range(8):
        train(model, optimizer, 1, first=step, scheduler=scheduler)
        rates = [group["lr"] for group in optimizer.param_groups]
        assert rates[2] == pytest.approx(rates[1])


def test_a_plateau_scheduler_goes_on_after_a_graft() -> None:
    model = mlp()
    optimizer = SGD(model.parameters(), lr=0.1)
    scheduler = schedules.ReduceLROnPlateau(optimizer, patience=0, factor=0.5)
    bed = wrap(model, stages=QUICK)
    bed.attach(optimizer, scheduler)
    grow(bed, PATHS[SeedState.GRAFTING])
    for _ in range(4):
        scheduler.step(1.0)
    assert [group["lr"] for group in optimizer.param_groups] == [0.0125, 0.0125]
    order(bed, SeedState.CULLED)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1]


def test_undo_right_after_another_seed_was_fossilized_is_exact() -> None:
    model = cnn()
    optimizer = Adam(model.parameters(), lr=1e-2)
    bed = wrap(model, stages=QUICK)
    bed.attach(optimizer)
    grow(bed, TO_FOSSILIZED, between=lambda _: train(model, optimizer, 3))
    before = everything(model, optimizer, None)
    grow(bed, PATHS[SeedState.FINE_TUNING], site=1)
    train(model, optimizer, 3)
    order(bed, SeedState.CULLED, seed_id=(1, 0))
    assert everything(model, optimizer, None) == before


def test_a_culled_site_can_grow_again() -> None:
    model = mlp()
    optimizer = AdamW(model.parameters())
    bed = wrap(model, stages=QUICK)
    bed.attach(optimizer)
    grow(bed, PATHS[SeedState.GRAFTING])
    order(bed, SeedState.CULLED)
    assert not bed.seeds()[0].is_ready_for_transition
    bed.end_epoch(0)
    assert bed.seeds()[0].is_ready_for_transition
    order(bed, SeedState.DORMANT)
    grow(bed, TO_FOSSILIZED, between=lambda _: train(model, optimizer, 3))
    assert bed.seeds()[0].state is SeedState.FOSSILIZED


@pytest.mark.parametrize("path_length", [1, 2, 3])
def test_giving_up_before_the_graft_leaves_no_trace(path_length: int) -> None:
    model = mlp()
    optimizer = AdamW(model.parameters())
    bed: Bed = wrap(model)
    bed.attach(optimizer)
    before = everything(model, optimizer, None)
    grow(bed, PATHS[SeedState.GRAFTING][:path_length])
    order(bed, SeedState.CULLED if path_length == 2 else SeedState.CANCELLED)
    assert everything(model, optimizer, None) == before


def test_another_optimizer_is_refused_before_the_verdict() -> None:
    model = mlp()
    bed = wrap(model)
    first = AdamW(model.parameters())
    bed.attach(first)
    grow(bed, PATHS[SeedState.GRAFTING])
    with pytest.raises(HostError, match=r"\(0, 0\) is in GRAFTING .* fossilize or cull it first"):
        bed.attach(AdamW(model.parameters()))
    bed.detach()
    bed.detach()
    bed.attach(first)
    order(bed, SeedState.CULLED)
    assert len(first.param_groups) == 1


@pytest.mark.parametrize(
    ("optimizer_type", "of_host", "message"),
    [
        (list, True, r"list is not a torch\.optim\.Optimizer"),
        (torch.optim.LBFGS, True, "LBFGS has one fixed list"),
        (SGD, False, "the SGD holds none of the host's parameters"),
    ],
)
def test_an_optimizer_that_cannot_follow_is_refused(
    optimizer_type: Callable[[Any], Any], of_host: bool, message: str
) -> None:
    model = mlp()
    with pytest.raises(HostError, match=message):
        wrap(model).attach(optimizer_type((model if of_host else mlp()).parameters()))


def test_a_scheduler_that_cannot_be_restored_is_refused() -> None:
    model = mlp()
    with pytest.raises(HostError, match="object has no state_dict"):
        wrap(model).attach(SGD(model.parameters()), object())
