"""A snapshot puts a whole world back bit for bit, in place: host, trainer, copies, random streams."""
# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateUsage=false

import random
from typing import Any

import numpy as np
import pytest
import torch
from kasmina_factory import batch_for, cnn, mlp, packed
from kasmina_worlds import OPTIMIZERS, SCHEDULERS, bits, live, seen
from torch import nn, optim
from torch.optim import lr_scheduler as schedules

from esper.contracts import HostError
from esper.kasmina.statetree import unpack
from esper.kasmina.undo import Snapshot, World


def check_way_back(world: World, steps: int = 4) -> None:
    """Check that a life, put back, is as before, and goes on as it did."""
    before = seen(world)
    snapshot = Snapshot.take(world)
    assert seen(world) == before
    first = live(world, steps, first=10)
    assert seen(world) != before
    for _ in range(2):
        snapshot.restore(world)
        assert seen(world) == before
        assert live(world, steps, first=10) == first


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
@pytest.mark.parametrize("warm", [0, 3])
def test_every_optimizer_comes_back(optimizer: str, warm: int) -> None:
    model = mlp()
    world = World(model=model, optimizer=OPTIMIZERS[optimizer](model.parameters()))
    live(world, warm)
    check_way_back(world)


@pytest.mark.parametrize("scheduler", list(SCHEDULERS))
def test_every_scheduler_comes_back(scheduler: str) -> None:
    model = mlp()
    optimizer = optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    world = World(model=model, optimizer=optimizer, scheduler=SCHEDULERS[scheduler](optimizer))
    live(world, 3)
    check_way_back(world, steps=6)


def test_muon_comes_back() -> None:
    model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.Tanh(), nn.Linear(8, 3, bias=False))
    world = World(model=model, optimizer=optim.Muon(model.parameters(), lr=0.02))
    live(world, 2)
    check_way_back(world)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_every_type_come_back(dtype: torch.dtype) -> None:
    model = mlp().to(dtype)
    world = World(model=model, optimizer=optim.AdamW(model.parameters(), lr=1e-2))

    def train(first: int) -> None:
        assert world.optimizer is not None
        for step in range(first, first + 3):
            x, y = batch_for(model, step)
            world.optimizer.zero_grad()
            nn.functional.cross_entropy(model(x.to(dtype)).float(), y).backward()
            world.optimizer.step()

    train(0)
    before, snapshot = seen(world), Snapshot.take(world)
    train(3)
    after = seen(world)
    snapshot.restore(world)
    assert seen(world) == before
    train(3)
    assert seen(world) == after


def test_a_host_that_was_moved_to_another_type_comes_back() -> None:
    model = mlp()
    world = World(model=model, optimizer=optim.SGD(model.parameters(), lr=0.1))
    live(world, 2)
    before, snapshot = seen(world), Snapshot.take(world)
    model.to(torch.bfloat16)
    snapshot.restore(world)
    assert seen(world) == before


def test_a_world_with_scaler_scheduler_and_averages_comes_back() -> None:
    model = cnn()
    optimizer = optim.AdamW(model.parameters(), lr=1e-2)
    averages = [
        optim.swa_utils.AveragedModel(model),
        optim.swa_utils.AveragedModel(
            model, multi_avg_fn=optim.swa_utils.get_ema_multi_avg_fn(0.9), use_buffers=True
        ),
    ]
    world = World(
        model=model,
        optimizer=optimizer,
        scheduler=SCHEDULERS["sequential"](optimizer),
        scaler=torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2),  # pyright: ignore[reportPrivateImportUsage]
        copies=averages,
    )
    live(world, 3)
    check_way_back(world)


def test_a_scaler_keeps_what_it_found_since_its_last_update() -> None:
    model: Any = mlp()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)  # pyright: ignore[reportPrivateImportUsage]
    world = World(model=model, optimizer=optimizer, scaler=scaler)
    live(world, 1)
    x, y = batch_for(model)
    scaler.scale(nn.functional.cross_entropy(model(x), y)).backward()
    model[0].weight.grad[0, 0] = float("inf")
    scaler.unscale_(optimizer)
    snapshot = Snapshot.take(world)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="already been called"):
            scaler.unscale_(optimizer)
        weights = model[0].weight.detach().clone()
        scaler.step(optimizer)  # skipped: an infinity was found
        assert torch.equal(model[0].weight, weights)
        scaler.update()
        assert scaler.get_scale() == 4.0
        snapshot.restore(world)
        assert scaler.get_scale() == 8.0


def test_a_scaler_that_was_never_used_is_so_again() -> None:
    model = mlp()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=1)  # pyright: ignore[reportPrivateImportUsage]
    world = World(model=model, optimizer=optimizer, scaler=scaler)
    snapshot = Snapshot.take(world)
    live(world, 2)
    assert scaler.get_scale() == 32.0
    snapshot.restore(world)
    assert scaler.get_scale() == 8.0
    live(world, 1)
    assert scaler.get_scale() == 16.0


class Counting(nn.Module):
    """Puts new tensors in the place of its buffers, counts, and keeps a tensor beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(6, 3)
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("seen", torch.zeros(3), persistent=False)
        self.register_buffer("late", None)
        self.calls = 0
        self.share = 0.5
        self.note: Any = None
        self.other = torch.zeros(2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.inner(x)
        self.mean = 0.9 * self.mean + 0.1 * h.detach().mean(0)
        self.seen = self.seen + 1
        self.late = h.detach()[0].clone()
        self.calls += 1
        self.share *= 0.9
        self.note = h.mean()
        self.other = self.other + 1
        return h * self.share


def test_buffers_that_were_replaced_and_numbers_come_back() -> None:
    model: Any = Counting()
    shared = model.mean
    holder = nn.Module()
    holder.register_buffer("mean", shared)
    model.add_module("holder", holder)
    world = World(model=model, optimizer=optim.SGD(model.parameters(), lr=0.1))
    snapshot = Snapshot.take(world)

    def everything() -> Any:
        names = ("mean", "seen", "late", "calls", "share", "note", "other")
        return bits({name: getattr(model, name) for name in names})

    before = everything()
    x, _ = batch_for(mlp())
    first = model(x)
    model.register_buffer("invented", torch.ones(1))
    model.added = 3
    assert everything() != before
    snapshot.restore(world)
    assert everything() == before
    assert not hasattr(model, "invented")
    assert not hasattr(model, "added")
    assert model.mean is shared
    assert torch.equal(model(x), first)


class Extra(nn.Linear):
    """Keeps state of its own kind."""

    memory: list[int]

    def get_extra_state(self) -> Any:
        return {"memory": self.memory}

    def set_extra_state(self, state: Any) -> None:
        self.memory = state["memory"]


def test_extra_state_comes_back() -> None:
    model = Extra(6, 3)
    model.memory = [1]
    snapshot = Snapshot.take(World(model=model))
    model.memory.append(2)
    snapshot.restore(World(model=model))
    assert model.memory == [1]


def test_a_buffer_that_repeats_itself_comes_back() -> None:
    model: Any = nn.Linear(2, 2)
    model.register_buffer("mask", torch.ones(1, 3).expand(4, 3))
    snapshot = Snapshot.take(World(model=model))
    model.mask[0] = 5
    snapshot.restore(World(model=model))
    assert torch.equal(model.mask, torch.ones(4, 3))
    assert model.mask.stride() == (0, 1)


def test_switches_come_back() -> None:
    model: Any = cnn()
    model[0].requires_grad_(False)
    model[1].eval()
    world = World(model=model, optimizer=optim.SGD(model.parameters(), lr=0.1))
    before, snapshot = seen(world), Snapshot.take(world)
    model.train()
    model.requires_grad_(True)
    model[4].weight = nn.Parameter(torch.zeros_like(model[4].weight))
    live(world, 1)
    snapshot.restore(world)
    assert seen(world) == before


def test_parameters_that_only_the_optimizer_has_come_back() -> None:
    model = mlp()
    extra = nn.Parameter(torch.ones(3))

    def scale(_module: nn.Module, _args: object, output: torch.Tensor) -> torch.Tensor:
        return output * extra

    model.register_forward_hook(scale)
    optimizer = optim.Adam([{"params": model.parameters()}, {"params": [extra]}], lr=0.1)
    world = World(model=model, optimizer=optimizer)
    live(world, 2)
    assert extra.grad is not None
    before = bits([extra, extra.grad])
    snapshot = Snapshot.take(world)
    live(world, 2)
    extra.requires_grad_(False)
    snapshot.restore(world)
    assert bits([extra, extra.grad]) == before
    assert extra.requires_grad


class Counted(optim.SGD):
    """Slows down by a count of its own, which is in no state."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, lr=0.1)
        self.calls = 0

    def step(self, closure: Any = None) -> Any:
        self.calls += 1
        self.param_groups[0]["lr"] = 0.1 / self.calls
        return super().step(closure)


def test_what_an_optimizer_counts_comes_back() -> None:
    model = mlp()
    world = World(model=model, optimizer=Counted(model.parameters()))
    live(world, 2)
    check_way_back(world)


def test_sparse_gradients_come_back() -> None:
    model = nn.Embedding(5, 3, sparse=True)
    world = World(model=model, optimizer=optim.SGD(model.parameters(), lr=0.1))
    model(torch.tensor([1, 3])).sum().backward()
    assert model.weight.grad is not None
    before = model.weight.grad.to_dense()
    snapshot = Snapshot.take(world)
    model.zero_grad()
    snapshot.restore(world)
    assert model.weight.grad.is_sparse
    assert torch.equal(model.weight.grad.to_dense(), before)


def test_a_group_that_came_later_stays_with_its_state() -> None:
    model, late = mlp(), nn.Parameter(torch.ones(2))
    optimizer = optim.Adam(model.parameters(), lr=0.1)
    scheduler = schedules.LambdaLR(optimizer, lambda epoch: 1 / (1 + epoch))
    world = World(model=model, optimizer=optimizer, scheduler=scheduler)
    live(world, 2)
    snapshot = Snapshot.take(world)
    optimizer.add_param_group({"params": [late], "lr": 0.5, "initial_lr": 0.5})
    scheduler.base_lrs.append(0.5)
    scheduler._last_lr.append(0.5)
    scheduler.lr_lambdas.append(lambda _: 1.0)
    late.grad = torch.ones(2)
    live_late = optimizer.param_groups[1]
    live(world, 1)
    late.grad = torch.ones(2)
    optimizer.step()
    learned = optimizer.state[late]["exp_avg"].clone()
    snapshot.restore(world)
    assert optimizer.param_groups[1] is live_late
    assert torch.equal(optimizer.state[late]["exp_avg"], learned)
    assert scheduler.last_epoch == 2
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.1 / 4, 0.5]


def test_nothing_of_the_random_streams_is_drawn_by_looking() -> None:
    before = bits([torch.get_rng_state(), random.getstate(), np.random.get_state(legacy=False)])
    model = cnn()
    torch.set_rng_state(torch.Generator().manual_seed(4).get_state())
    start = torch.get_rng_state().clone()
    Snapshot.take(World(model=model, optimizer=optim.AdamW(model.parameters())))
    assert torch.equal(torch.get_rng_state(), start)
    assert before[1:] == bits([random.getstate(), np.random.get_state(legacy=False)])


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_every_state_can_be_written_and_goes_into_a_fresh_world(optimizer: str) -> None:
    def world_of(groups: int) -> World:
        model = cnn(seed=groups)
        layers = [[*model[:groups].parameters()], [*model[groups:].parameters()]]
        made = OPTIMIZERS[optimizer]([{"params": params} for params in layers if params])
        return World(model=model, optimizer=made, scheduler=SCHEDULERS["cosine"](made))

    old = world_of(0)
    live(old, 3)
    snapshot = Snapshot(state=unpack(*packed(Snapshot.take(old).state)))
    first = live(old, 3, first=3)
    for groups in (0, 4):
        fresh = world_of(groups)
        snapshot.restore(fresh)
        assert live(fresh, 3, first=3) == first
        assert bits(fresh.model.state_dict()) == bits(old.model.state_dict())
        assert bits(fresh.optimizer.state_dict()) == bits(old.optimizer.state_dict())  # pyright: ignore[reportOptionalMemberAccess]


@pytest.mark.parametrize(
    "scheduler", [name for name in SCHEDULERS if name not in ("chained", "lambda_object")]
)
def test_every_scheduler_goes_into_a_fresh_world(scheduler: str) -> None:
    def world_of() -> World:
        model = mlp()
        made = optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        return World(model=model, optimizer=made, scheduler=SCHEDULERS[scheduler](made))

    old = world_of()
    live(old, 3)
    snapshot = Snapshot(state=unpack(*packed(Snapshot.take(old).state)))
    first = live(old, 6, first=3)
    fresh = world_of()
    snapshot.restore(fresh)
    assert live(fresh, 6, first=3) == first


def stranger(kind: str) -> World:
    """Return a world that a snapshot of `mlp()` with SGD and StepLR does not fit."""
    model: Any = mlp()
    if kind == "shape":
        model[4] = nn.Linear(8, 4)
    if kind == "module":
        model = model[:4]
    optimizer: Any = optim.SGD(model.parameters(), lr=0.1)
    if kind == "class":
        optimizer = optim.Adam(model.parameters())
    if kind == "missing":
        optimizer = optim.SGD(model[:2].parameters(), lr=0.1)
    if kind == "extra":
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
    scheduler: Any = schedules.StepLR(optimizer, 2)
    if kind == "scheduler":
        scheduler = None
    copies = [mlp()] if kind == "copies" else []
    return World(model=model, optimizer=optimizer, scheduler=scheduler, copies=copies)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("shape", r"4\.bias: it has \(4,\), the state has \(3,\)"),
        ("module", r"the module '4' is missing"),
        ("class", "the optimizer is an Adam, the state is that of a SGD"),
        ("extra", r"the optimizer trains \+0, of which the state says nothing"),
        ("scheduler", "the scheduler is None, the state is that of StepLR"),
        ("copies", "1 copies of the host are attached, the state has 0"),
    ],
)
def test_a_world_that_does_not_fit_is_refused_unchanged(kind: str, message: str) -> None:
    model = mlp()
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    world = World(model=model, optimizer=optimizer, scheduler=schedules.StepLR(optimizer, 2))
    snapshot = Snapshot(state=Snapshot.take(world).state)
    other = stranger(kind)
    before = seen(other)
    with pytest.raises(HostError, match=message):
        snapshot.restore(other, is_whole=True)
    assert seen(other) == before


def test_functions_for_too_few_groups_are_refused() -> None:
    def world_of(splits: list[int]) -> World:
        model = mlp()
        parts = [model[a:b].parameters() for a, b in zip([0, *splits], [*splits, 5], strict=True)]
        optimizer = optim.SGD([{"params": list(p)} for p in parts], lr=0.1)
        scheduler = schedules.LambdaLR(optimizer, lambda epoch: 1 / (1 + epoch))
        return World(model=model, optimizer=optimizer, scheduler=scheduler)

    snapshot = Snapshot(state=Snapshot.take(world_of([2])).state)
    with pytest.raises(HostError, match="has functions for 1 groups, the state is that of 2"):
        snapshot.restore(world_of([]))
    snapshot.restore(world_of([3]))
