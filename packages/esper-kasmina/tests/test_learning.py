"""Isolated training: what a block learns from features and gradients, and what can go wrong with it."""
# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import math
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from kasmina_factory import blueprint, explode, packed
from torch import Tensor, nn

from esper.contracts import BlueprintIR, KernelSignature, OperatorNode, SiteKind
from esper.kasmina import Block, build_block, builtin_blueprints, initialise_block
from esper.kasmina.learning import MAX_CALLS, MAX_ROWS, Learner, rms, select
from esper.kasmina.statetree import unpack

pytestmark = pytest.mark.long

SHAPES = {
    SiteKind.FEATURES: (64, 8),
    SiteKind.CAUSAL_SEQUENCE: (8, 8, 8),
    SiteKind.SEQUENCE: (8, 8, 8),
    SiteKind.CHANNELS_1D: (16, 8, 6),
    SiteKind.CHANNELS_2D: (16, 8, 4, 4),
    SiteKind.CHANNELS_3D: (8, 8, 3, 3, 2),
}


def make(name: str = "residual_mlp", *, dtype: Any = "float32", features: int = 8) -> Block:
    ir = blueprint(name)
    block = build_block(
        ir,
        KernelSignature(
            kind=ir.kind, features=features, inputs=features if ir.widens else None, dtype=dtype
        ),
    )
    initialise_block(block, torch.Generator().manual_seed(0))
    return block


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Task:
    """A loss of the features at a site, each element's own: `element_losses(h)` to be lowered."""

    def __init__(self, kind: SiteKind, dtype: torch.dtype = torch.float32) -> None:
        self.kind = kind
        self.dtype = dtype
        self.target = noise(8, 8, seed=77)

    def features(self, step: int) -> Tensor:
        return noise(*SHAPES[self.kind], seed=step).to(self.dtype)

    def loss(self, h: Tensor) -> Tensor:
        rows = (h.movedim(1, -1) if self.kind.is_channels else h).float()
        return (rows - torch.tanh(rows @ self.target)).square().mean()

    def gradient(self, h: Tensor) -> Tensor:
        with torch.enable_grad():
            h = h.detach().clone().requires_grad_()
            return torch.autograd.grad(self.loss(h), h)[0]

    def lowered(self, block: Block) -> float:
        """Return the share of the loss that adding the block's output takes away."""
        with torch.no_grad():
            h = self.features(999)
            return 1 - float(self.loss(h + block(h)) / self.loss(h))


def teach(learner: Learner, task: Task, steps: int, *, first: int = 0, scale: float = 1.0) -> None:
    for step in range(first, first + steps):
        h = task.features(step)
        learner.observe(h, task.gradient(h) * scale)
        learner.step()


def weights(block: Block) -> list[Tensor]:
    return [weight.detach().clone() for weight in block.parameters()]


@contextmanager
def global_streams_untouched() -> Generator[None]:
    before = torch.get_rng_state()
    yield
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("ir", builtin_blueprints(), ids=lambda ir: ir.name)
def test_every_builtin_block_learns_what_lowers_the_loss(ir: BlueprintIR) -> None:
    block, task = make(ir.name), Task(ir.kind)
    learner = Learner(block, seed=1)
    with global_streams_untouched():
        assert task.lowered(block) == 0.0
        teach(learner, task, 30)
    assert learner.num_steps == 30
    assert learner.failure is None
    assert task.lowered(block) > 0.02


@pytest.mark.parametrize("scale", [1e-20, 1e-6, 65536.0, 1e20])
def test_what_is_learned_does_not_depend_on_the_units_of_the_loss(scale: float) -> None:
    plain, scaled = make(), make()
    task = Task(SiteKind.FEATURES)
    teach(Learner(plain, seed=1), task, 5)
    teach(Learner(scaled, seed=1), task, 5, scale=scale)
    for weight, other in zip(weights(plain), weights(scaled), strict=True):
        torch.testing.assert_close(weight, other, rtol=1e-3, atol=1e-5)


def test_the_change_is_bounded_however_long_and_however_consistent_the_pull() -> None:
    block = make()
    learner, h = Learner(block, seed=1), noise(64, 8)
    for _ in range(200):
        learner.observe(h, torch.ones(64, 8))
        learner.step()
    with torch.no_grad():
        assert float(rms(block(h))) < 0.3 * float(rms(h))


def test_rows_that_want_opposite_things_of_equal_features_hold_the_block_back() -> None:
    block = make()
    learner, h = Learner(block, seed=1), noise(32, 8).repeat(2, 1)
    g = torch.cat([torch.ones(32, 8), -torch.ones(32, 8)])
    for _ in range(50):
        learner.observe(h, g)
        learner.step()
    with torch.no_grad():
        assert float(rms(block(h))) < 0.02 * float(rms(h))


def test_equal_seeds_learn_equally_and_another_seed_otherwise() -> None:
    finals: list[list[Tensor]] = []
    for seed in (1, 1, 2):
        block = make()
        teach(Learner(block, seed=seed), Task(SiteKind.FEATURES), 6)
        finals.append(weights(block))
    same = [torch.equal(a, b) for a, b in zip(finals[0], finals[1], strict=True)]
    other = [torch.equal(a, b) for a, b in zip(finals[0], finals[2], strict=True)]
    assert all(same)
    assert not all(other)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_learner_goes_on_from_its_packed_state_bit_for_bit(dtype: str) -> None:
    task = Task(SiteKind.FEATURES, getattr(torch, dtype))
    whole, block = make(dtype=dtype), make(dtype=dtype)
    teach(Learner(whole, seed=1), task, 8)
    first = Learner(block, seed=1)
    teach(first, task, 4)
    h = task.features(4)
    first.observe(h, task.gradient(h))  # killed between backward and step
    state = unpack(*packed(first.state_dict()))
    second = Learner(block, seed=5)
    second.load_state_dict(state)
    second.step()
    teach(second, task, 3, first=5)
    assert second.num_steps == 8
    for weight, other in zip(weights(whole), weights(block), strict=True):
        assert torch.equal(weight, other)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_blocks_learn_nearly_as_much(dtype: str) -> None:
    # Wide enough that Adam's squares of half-precision gradients would vanish.
    target, lowered = noise(128, 128, seed=77) / 8, dict[str, float]()

    def loss(h: Tensor) -> Tensor:
        return (h - torch.tanh(h @ target)).square().mean()

    for name in ("float32", dtype):
        block = make(dtype=name, features=128)
        learner, kind = Learner(block, seed=1), getattr(torch, name)
        for step in range(20):
            h = noise(128, 128, seed=step).requires_grad_()
            (g,) = torch.autograd.grad(loss(h), h)
            learner.observe(h.to(kind), g.to(kind))
            learner.step()
        assert {weight.dtype for weight in block.parameters()} == {kind}
        h = noise(128, 128, seed=99)
        with torch.no_grad():
            lowered[name] = 1 - float(loss(h + block(h.to(kind)).float()) / loss(h))
    assert lowered["float32"] > 0.05
    assert lowered[dtype] > 0.95 * lowered["float32"]


def test_an_exploding_block_becomes_a_failure_and_no_exception() -> None:
    block = make()
    with torch.no_grad():
        explode(block)
    learner = Learner(block, seed=1)
    teach(learner, Task(SiteKind.FEATURES), 3)
    assert learner.failure is not None
    assert learner.failure.startswith("its own loss became ")
    assert learner.failure.endswith("at its step 1")
    assert learner.num_steps == 1


def test_weights_that_are_not_finite_are_a_failure_even_if_the_loss_does_not_show_them() -> None:
    nodes = (
        OperatorNode(name="up", op="linear", inputs=("input",), params={"out": "D"}),
        OperatorNode(name="act", op="relu", inputs=("up",)),
        OperatorNode(name="down", op="linear", inputs=("act",), params={"out": "D"}),
    )
    ir = BlueprintIR(name="plain", kind=SiteKind.FEATURES, nodes=nodes)
    block = build_block(
        ir, KernelSignature(kind=ir.kind, features=8, inputs=8 if ir.widens else None)
    )
    with torch.no_grad():
        block.get_submodule("node_up").get_parameter("bias")[0] = -math.inf
    learner = Learner(block, seed=1)
    teach(learner, Task(SiteKind.FEATURES), 1)
    assert learner.failure == "its own largest weight became inf at its step 1"


class Refuses(nn.Module):
    """Stands for a user's operator that cannot take these features."""

    def forward(self, x: Tensor) -> Tensor:
        raise ValueError(f"no rows of {x.shape[1]} here")


def test_a_block_that_raises_is_a_failure_of_the_seed_only() -> None:
    block = make()
    block.node_down = Refuses()
    learner = Learner(block, seed=1)
    teach(learner, Task(SiteKind.FEATURES), 2)
    assert learner.failure == "its block failed at its step 1: no rows of 32 here"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_host_that_overflows_is_skipped(bad: float) -> None:
    block, task = make(), Task(SiteKind.FEATURES)
    learner = Learner(block, seed=1)
    before = weights(block)
    h = task.features(0)
    broken = h.clone()
    broken[3, 2] = bad
    for pair in [(broken, task.gradient(h)), (h, broken), (h, torch.zeros_like(h)), (0 * h, h)]:
        learner.observe(*pair)
        learner.step()
    assert (learner.num_steps, learner.failure) == (0, None)
    assert all(torch.equal(a, b) for a, b in zip(before, weights(block), strict=True))
    teach(learner, task, 1)
    assert learner.num_steps == 1


def test_a_step_without_anything_observed_changes_nothing() -> None:
    block = make()
    learner = Learner(block, seed=1)
    learner.step()
    teach(learner, Task(SiteKind.FEATURES), 1)
    before = weights(block)
    learner.step()
    assert learner.num_steps == 1
    assert all(torch.equal(a, b) for a, b in zip(before, weights(block), strict=True))


def test_of_several_calls_in_a_step_the_last_ones_are_learned_from() -> None:
    task = Task(SiteKind.FEATURES)
    finals: list[list[Tensor]] = []
    for first in (0, 3):
        block = make()
        learner = Learner(block, seed=1)
        for call in range(first, 3 + MAX_CALLS):
            h = task.features(call)
            learner.observe(h, task.gradient(h))
        learner.step()
        assert learner.num_steps == 1
        finals.append(weights(block))
    assert all(torch.equal(a, b) for a, b in zip(*finals, strict=True))


def test_what_was_observed_may_be_overwritten() -> None:
    task = Task(SiteKind.FEATURES)
    finals: list[list[Tensor]] = []
    for overwrite in (False, True):
        block = make()
        learner = Learner(block, seed=1)
        h = task.features(0)
        g = task.gradient(h)
        learner.observe(h, g)
        if overwrite:
            h.zero_()
            g.zero_()
        learner.step()
        finals.append(weights(block))
    assert all(torch.equal(a, b) for a, b in zip(*finals, strict=True))


def test_a_block_without_weights_has_nothing_to_learn() -> None:
    node = OperatorNode(name="act", op="relu", inputs=("input",))
    ir = BlueprintIR(name="bare", kind=SiteKind.FEATURES, nodes=(node,))
    learner = Learner(
        build_block(ir, KernelSignature(kind=ir.kind, features=8, inputs=8 if ir.widens else None)),
        seed=1,
    )
    teach(learner, Task(SiteKind.FEATURES), 2)
    assert (learner.num_steps, learner.failure) == (0, None)


@pytest.mark.parametrize(
    ("kind", "shape", "kept"),
    [
        (SiteKind.FEATURES, (MAX_ROWS, 8), (MAX_ROWS, 8)),
        (SiteKind.FEATURES, (2 * MAX_ROWS + 1, 8), (342, 8)),
        (SiteKind.FEATURES, (10, 100, 8), (500, 8)),
        (SiteKind.FEATURES, (8,), (1, 8)),
        (SiteKind.SEQUENCE, (16, 100, 8), (4, 100, 8)),
        (SiteKind.CAUSAL_SEQUENCE, (3, 2000, 8), (1, 2000, 8)),
        (SiteKind.CHANNELS_2D, (32, 8, 8, 8), (8, 8, 8, 8)),
        (SiteKind.CHANNELS_2D, (8, 40, 40), (1, 8, 40, 40)),
        (SiteKind.CHANNELS_1D, (3, 8, 10), (3, 8, 10)),
        (SiteKind.CHANNELS_3D, (0, 8, 2, 2, 2), (0, 8, 2, 2, 2)),
    ],
)
def test_rows_are_bounded_and_elements_stay_whole(
    kind: SiteKind, shape: tuple[int, ...], kept: tuple[int, ...]
) -> None:
    values = noise(*shape)
    rows = select(values, kind)
    assert tuple(rows.shape) == kept
    assert torch.equal(select(rows, kind), rows)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_the_root_mean_square_neither_vanishes_nor_overflows(scale: float) -> None:
    values = noise(100)
    assert float(rms(values * scale)) == pytest.approx(
        float(values.std(correction=0)) * scale, rel=0.1
    )
    assert float(rms(torch.zeros(3))) == 0.0
    assert float(rms(torch.empty(0))) == 0.0
    assert not math.isfinite(float(rms(torch.tensor([1.0, math.inf]))))
