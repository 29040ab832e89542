"""Laws 1 and 2 where a seed cannot see what it would like to: the host goes on as if nobody looked."""
# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Callable
from typing import Any

import pytest
import torch
from kasmina_factory import QUICK, TO_FOSSILIZED, TO_TRAINING, admit, grow, mlp, order
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from esper.kasmina import Bed, wrap


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.LSTM(6, 4, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, torch.tensor([3, 2]), batch_first=True)
        padded, _ = pad_packed_sequence(self.layer(packed)[0], batch_first=True)
        return self.head(padded.mean(dim=1))


class Pair(nn.Linear):
    """A linear layer that returns more than its type promises."""

    def forward(self, input: Tensor) -> Any:
        return super().forward(input), input


class WithPair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = Pair(6, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0])


def trained(make: Callable[[], nn.Module], shape: tuple[int, ...], seeds: str) -> list[float]:
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if seeds:
        bed = wrap(model, targets=["layer"], stages=QUICK, sample_every_steps=1)
        bed.attach(optimizer)
        if seeds == "training":
            grow(bed, TO_TRAINING)
    losses: list[float] = []
    for step in range(4):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("seeds", ["dormant", "training"])
@pytest.mark.parametrize(("make", "shape"), [(Packed, (2, 3, 6)), (WithPair, (2, 6))])
def test_a_host_whose_features_cannot_be_seen_trains_on(
    make: Callable[[], nn.Module],
    shape: tuple[int, ...],
    seeds: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert trained(make, shape, seeds) == trained(make, shape, "")


@pytest.mark.parametrize("seeds", ["dormant", "training"])
def test_function_transforms_are_not_watched(seeds: str) -> None:
    model = mlp().train()
    model[1] = nn.ReLU()
    bed = wrap(model, stages=QUICK, sample_every_steps=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    bed.attach(optimizer)
    if seeds == "training":
        grow(bed, TO_TRAINING)
    state = {name: value.detach() for name, value in model.named_parameters()}

    def loss_of(weights: dict[str, Tensor], sample: Tensor) -> Tensor:
        return torch.func.functional_call(model, weights, (sample.unsqueeze(0),)).square().mean()

    for _ in range(3):
        x = torch.randn(4, 6)
        each = torch.func.vmap(torch.func.grad(loss_of), in_dims=(None, 0))(state, x)
        for name, parameter in model.named_parameters():
            parameter.grad = each[name].mean(dim=0)
        optimizer.step()
    assert bed.end_epoch(0)[0].num_rows == 0
    assert bed.seed((0, 0)).failure is None


def test_unwrapping_a_learning_seed_leaves_no_hook() -> None:
    model = mlp()
    bed = wrap(model, stages=QUICK)
    bed.attach(torch.optim.SGD(model.parameters(), lr=0.1))
    grow(bed, TO_TRAINING)
    bed.unwrap()
    assert all(not vars(module)["_forward_hooks"] for module in model.modules())


def test_a_refused_optimizer_leaves_the_old_one_in_charge() -> None:
    bed, optimizer = grown()
    other: Any = torch.optim.SGD(bed.model.get_submodule("2").parameters(), lr=0.1)
    order_before = [len(group["params"]) for group in other.param_groups]

    def refuse(_: object) -> None:
        raise ValueError("no more groups")

    other.add_param_group = refuse
    with pytest.raises(ValueError, match="no more groups"):
        bed.attach(other)
    assert [len(group["params"]) for group in other.param_groups] == order_before
    step = bed.step
    other.step()
    assert bed.step == step
    optimizer.step()
    assert bed.step == step + 1


def grown() -> tuple[Bed, torch.optim.Optimizer]:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    bed = wrap(model, stages=QUICK)
    bed.attach(optimizer)
    kernel_id = admit(bed)
    for state in TO_FOSSILIZED:
        order(bed, state, kernel_id)
    return bed, optimizer
