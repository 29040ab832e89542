"""Copies of a host, such as moving averages, grow and shrink with it and hold the right values."""
# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import copy
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from kasmina_beds import wrap_host
from kasmina_factory import (
    PATHS,
    QUICK,
    TO_FOSSILIZED,
    TO_GRAFTING,
    admit,
    batch_for,
    cnn,
    grow,
    mlp,
    order,
    train,
    wake,
)
from kasmina_hosts import HOSTS
from torch import Tensor, nn, optim
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from esper.contracts import HostError, SeedState
from esper.kasmina import Bed, wrap

S = SeedState

DECAY = 0.75
"""A power of two in its parts, so that averages of equal values are exact."""


def by_hand(averaged: Tensor, value: Tensor, _count: Any) -> Tensor:
    return DECAY * averaged + (1 - DECAY) * value


AVERAGES: dict[str, Callable[[nn.Module], AveragedModel]] = {
    "ema": lambda m: AveragedModel(m, multi_avg_fn=get_ema_multi_avg_fn(DECAY)),
    "ema_of_buffers": lambda m: AveragedModel(
        m, multi_avg_fn=get_ema_multi_avg_fn(DECAY), use_buffers=True
    ),
    "own_function": lambda m: AveragedModel(m, avg_fn=by_hand, use_buffers=True),
}


class Reference:
    """The moving average of every parameter by name, from the moment that it first was there."""

    def __init__(self, average: AveragedModel) -> None:
        self.values = {n: p.detach().clone() for n, p in average.module.named_parameters()}

    def follow(self, model: nn.Module, *, first: bool) -> None:
        live = {name: p.detach() for name, p in model.named_parameters()}
        for name, value in live.items():
            if first:
                self.values[name] = value.clone()
            else:
                before = self.values.setdefault(name, value.clone())
                self.values[name] = torch.lerp(before, value, 1 - DECAY)
        for name in self.values.keys() - live.keys():
            del self.values[name]

    def born(self, model: nn.Module) -> None:
        """Begin with what is new in the model as it is now."""
        for name, p in model.named_parameters():
            self.values.setdefault(name, p.detach().clone())

    def check(self, average: AveragedModel) -> None:
        found = dict(average.module.named_parameters())
        assert found.keys() == self.values.keys()
        for name, value in self.values.items():
            assert torch.allclose(found[name], value, rtol=1e-6, atol=1e-7), name


@pytest.mark.parametrize("kind", list(AVERAGES))
def test_an_average_holds_the_right_values_through_graft_and_undo(kind: str) -> None:
    model = mlp()
    average = AVERAGES[kind](model)
    bed = wrap(model, stages=QUICK)
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    bed.attach(optimizer, copies=[average])
    reference = Reference(average)
    clock = iter(range(1000))

    def live(steps: int) -> None:
        for _ in range(steps):
            step = next(clock)
            train(model, optimizer, 1, first=step)
            average.update_parameters(model)
            reference.follow(model, first=step == 0)
        reference.check(average)

    live(3)
    kernel_id = admit(bed, change=wake)
    for state in TO_GRAFTING:
        order(bed, state, kernel_id)
        reference.born(model)
        reference.check(average)
        live(2)
    before_undo = {n: p.detach().clone() for n, p in average.module.named_parameters()}
    assert any("esper_seed" in name for name in before_undo)
    order(bed, S.CULLED)
    # Back to the values right before the graft: after the steps in TRAINING.
    assert not any("esper_seed" in name for name, _ in average.module.named_parameters())
    bed.end_epoch(0)
    order(bed, S.DORMANT)
    reference = Reference(average)
    for state in TO_FOSSILIZED:
        order(bed, state, kernel_id)
        reference.born(model)
        live(2)


@pytest.mark.parametrize("kind", list(AVERAGES))
def test_an_average_computes_as_a_model_with_its_weights_would(kind: str) -> None:
    model = cnn()
    average = AVERAGES[kind](model)
    bed = wrap(model, stages=QUICK)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    bed.attach(optimizer, copies=[average])

    def live(_: SeedState) -> None:
        for step in range(2):
            train(model, optimizer, 1, first=step)
            average.update_parameters(model)

    grow(bed, PATHS[S.GRAFTING], change=wake, between=live)
    twin = copy.deepcopy(model)
    twin.load_state_dict(average.module.state_dict())
    x, _ = batch_for(model)
    assert torch.equal(average.eval()(x), twin.eval()(x))
    with torch.no_grad():
        twin.get_submodule("0.esper_seed").get_buffer("alpha").zero_()
    assert not torch.equal(average(x), twin(x))


def test_alpha_is_never_averaged() -> None:
    model = mlp()
    average = AVERAGES["ema_of_buffers"](model)
    bed = wrap(model, stages=QUICK)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    bed.attach(optimizer, copies=[average])
    seen: list[float] = []

    def alphas() -> list[float]:
        return [float(m.get_buffer("0.esper_seed.alpha")) for m in (model, average.module)]

    grow(bed, PATHS[S.GRAFTING])
    for step in range(4):
        train(model, optimizer, 1, first=step)
        assert alphas()[0] == alphas()[1]
        average.update_parameters(model)
        seen.append(alphas()[1])
    assert seen == pytest.approx([1 / 3, 2 / 3, 1.0, 1.0])
    order(bed, S.STABILIZATION)
    assert alphas() == [1.0, 1.0]


def parameters_pairwise(model: nn.Module, other: nn.Module) -> Iterator[tuple[str, str]]:
    for (a, _), (b, _) in zip(model.named_parameters(), other.named_parameters(), strict=True):
        yield a, b


def test_a_plain_copy_pairs_with_its_host_by_position() -> None:
    """Many averages are a loop over two `parameters()`; also with chunks in any order."""
    host = HOSTS["chunks"]
    model = host.make()
    teacher = copy.deepcopy(model).requires_grad_(False)
    bed = wrap_host(host, model)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    bed.attach(optimizer, copies=[teacher])
    for chunk in (2, 0, 1):
        grow(bed, TO_FOSSILIZED, chunk=chunk)
        assert all(a == b for a, b in parameters_pairwise(model, teacher))
        assert [n for n, _ in model.named_buffers()] == [n for n, _ in teacher.named_buffers()]
    assert not any(p.requires_grad for p in teacher.parameters())
    x, _ = host.batch(0)
    teacher.load_state_dict(model.state_dict())
    assert torch.equal(teacher.eval()(x), model.eval()(x))


def test_a_copy_that_grew_in_another_order_is_put_in_order() -> None:
    host = HOSTS["chunks"]

    def grown(chunks: tuple[int, ...]) -> Bed:
        bed = wrap_host(host, host.make())
        bed.attach(optim.SGD(bed.model.parameters(), lr=0.1))
        for chunk in chunks:
            grow(bed, TO_FOSSILIZED, chunk=chunk)
        return bed

    teacher, bed = grown((0, 1)).unwrap(), grown((1, 0))
    bed.attach(optim.SGD(bed.model.parameters(), lr=0.1), copies=[teacher])
    assert all(a == b for a, b in parameters_pairwise(bed.model, teacher))
    x, _ = host.batch(0)
    teacher.load_state_dict(bed.model.state_dict())
    assert torch.equal(teacher.eval()(x), bed.model.eval()(x))


def through_pickle(model: nn.Module) -> Any:
    return pickle.loads(pickle.dumps(model))


def test_a_copy_of_a_grown_host_goes_on_growing() -> None:
    host = HOSTS["chunks"]
    model = host.make()
    bed = wrap_host(host, model)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    bed.attach(optimizer)
    grow(bed, TO_FOSSILIZED, chunk=1, change=wake)
    for make in (copy.deepcopy, through_pickle, AveragedModel):
        average: Any = make(model)
        root = getattr(average, "module", average)
        bed.attach(optimizer, copies=[average])
        grow(bed, PATHS[S.GRAFTING], chunk=0, change=wake)
        order(bed, S.STABILIZATION)
        x, _ = host.batch(0)
        # Applied once each, not twice: the copied hook took the new block in.
        assert torch.equal(average.eval()(x), model.eval()(x))
        assert all(a == b for a, b in parameters_pairwise(model, root))
        order(bed, S.CULLED)
        assert torch.equal(average.eval()(x), model.eval()(x))
        bed.end_epoch(0)
        order(bed, S.DORMANT)


def test_a_copy_made_before_the_graft_gets_it_when_it_is_attached() -> None:
    model = mlp()
    early = copy.deepcopy(model)
    bed = wrap(model, stages=QUICK)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    bed.attach(optimizer)
    grow(bed, TO_FOSSILIZED, change=wake)
    bed.attach(optimizer, copies=[early])
    x, _ = batch_for(model)
    assert torch.equal(early.eval()(x), model.eval()(x))


def test_another_block_at_the_same_place_replaces_the_old_one() -> None:
    model = mlp()
    bed = wrap(model, stages=QUICK)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    bed.attach(optimizer)
    grow(bed, PATHS[S.GRAFTING], name="low_rank")
    stale = copy.deepcopy(model)
    order(bed, S.CULLED)
    bed.end_epoch(0)
    order(bed, S.DORMANT)
    grow(bed, TO_FOSSILIZED, name="residual_mlp", change=wake)
    bed.attach(optimizer, copies=[stale])
    assert all(a == b for a, b in parameters_pairwise(model, stale))


def test_a_copy_of_another_type_stays_of_its_type() -> None:
    model = mlp()
    exact = copy.deepcopy(model).double()
    bed = wrap(model, stages=QUICK)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    bed.attach(optimizer, copies=[exact])
    grow(bed, TO_FOSSILIZED)
    assert {p.dtype for p in exact.parameters()} == {torch.float64}
    x, _ = batch_for(model)
    exact.load_state_dict(model.state_dict())
    assert torch.allclose(exact.eval()(x.double()).float(), model.eval()(x), atol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (cnn, "copy 0 of the host, a Sequential, has not the host's parameters; make"),
        (lambda: wrap(mlp()).model, "copy 0 of the host, a Sequential, has a bed of its own"),
        (lambda: "mlp", "copies has a str; expected modules made as copies of the host"),
    ],
)
def test_what_is_no_copy_is_refused(make: Callable[[], Any], message: str) -> None:
    model = mlp()
    bed = wrap(model)
    optimizer = optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(HostError, match=message):
        bed.attach(optimizer, copies=[make()])
    with pytest.raises(HostError, match="copies has the host itself"):
        bed.attach(optimizer, copies=[model])
