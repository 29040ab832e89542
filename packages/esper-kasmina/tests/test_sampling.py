"""Which training steps are looked at, and what the seeds see there."""
# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import pytest
import torch
from kasmina_factory import batch_for, mlp, train
from torch import nn

from esper.contracts import HealthSignal
from esper.kasmina import Bed, wrap


def watched(
    model: nn.Module, every: int | None, lr: float = 0.0
) -> tuple[Bed, torch.optim.Optimizer]:
    bed = wrap(model, sample_every_steps=every)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    bed.attach(optimizer)
    return bed, optimizer


def first(bed: Bed) -> HealthSignal:
    return bed.end_epoch(0)[0]


def variance_of(rows: torch.Tensor) -> float:
    return float(rows.double().var(dim=0, correction=0).mean())


def test_an_epoch_is_sampled_from_its_second_step_on_and_every_nth() -> None:
    model = mlp()
    bed, optimizer = watched(model, 3)
    num_rows: list[int] = []
    for num_steps in (1, 2, 4, 5, 8):
        bed.end_epoch(0)
        bed.detach()
        bed.attach(optimizer)
        train(model, optimizer, num_steps)
        num_rows.append(first(bed).num_rows)
    assert num_rows == [0, 16, 16, 32, 48]


def test_epochs_of_a_single_step_are_sampled_too() -> None:
    model = mlp()
    bed, optimizer = watched(model, 32)
    found: list[int] = []
    for _ in range(4):
        train(model, optimizer, 1)
        found.append(first(bed).num_rows)
    assert found == [0, 16, 16, 16]


def test_sampling_may_be_switched_off() -> None:
    model = mlp()
    bed, optimizer = watched(model, None)
    train(model, optimizer, 5)
    assert first(bed).num_rows == 0


def test_what_is_sampled_is_the_layers_output_even_if_the_next_operation_is_in_place() -> None:
    model = mlp()
    bed, optimizer = watched(model, 1)
    train(model, optimizer, 1)
    x, _ = batch_for(model, 1)
    with torch.no_grad():
        expected = variance_of(model[0](x))
    assert isinstance(model[1], nn.ReLU)
    assert model[1].inplace
    train(model, optimizer, 1, first=1)
    assert first(bed).activation_variance == pytest.approx(expected)


def test_evaluation_is_not_sampled() -> None:
    model = mlp()
    bed, optimizer = watched(model, 1)
    train(model, optimizer, 1)
    x, _ = batch_for(model)
    model.eval()(x)
    with torch.no_grad():
        model.train()(x)
    assert first(bed).num_rows == 0


def test_only_the_first_of_several_forwards_in_a_step_is_sampled() -> None:
    model = mlp()
    bed, optimizer = watched(model, 1)
    train(model, optimizer, 1)
    for step in range(4):  # gradients accumulate
        x, y = batch_for(model, step)
        (nn.functional.cross_entropy(model(x), y) / 4).backward()
    optimizer.step()
    assert first(bed).num_rows == 16


def test_detaching_stops_the_sampling() -> None:
    model = mlp()
    bed, optimizer = watched(model, 1)
    train(model, optimizer, 1)
    bed.detach()
    train(model, optimizer, 3)
    assert all(not vars(module)["_forward_hooks"] for module in model.modules())
    assert first(bed).num_rows == 0


def test_each_chunk_sees_its_own_part() -> None:
    model = mlp()
    bed = wrap(model, targets=["0"], chunks=4, sample_every_steps=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    bed.attach(optimizer)
    train(model, optimizer, 2)
    x, _ = batch_for(model, 1)
    with torch.no_grad():
        rows = model[0](x)
    found = [(s.layer_id, s.seed_id, s.activation_variance) for s in bed.end_epoch(0)]
    expected = [variance_of(rows[:, 2 * i : 2 * i + 2]) for i in range(4)]
    assert found == [(0, i, pytest.approx(value)) for i, value in enumerate(expected)]
