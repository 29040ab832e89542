"""Health is sampled while somebody may want it and computed when somebody does."""

import pytest
import torch
from torch import nn

from esper.kasmina import Bed, wrap


@pytest.fixture
def host() -> nn.Sequential:
    torch.manual_seed(0)  # pyright: ignore[reportUnknownMemberType]
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))


def _trained(host: nn.Sequential, bed: Bed, optimizer: torch.optim.Optimizer, steps: int) -> int:
    """Train and return in how many steps a hook was in place."""
    watched = 0
    for _ in range(steps):
        watched += any(layer.__dict__["_forward_hooks"] for layer in host)
        optimizer.zero_grad()
        host(torch.rand(16, 8)).square().mean().backward()
        optimizer.step()
    return watched


@pytest.fixture
def life(host: nn.Sequential) -> tuple[nn.Sequential, Bed, torch.optim.Optimizer]:
    optimizer = torch.optim.SGD(host.parameters(), lr=0.1)
    bed = wrap(host, example=torch.rand(4, 8), widen=True)
    bed.attach(optimizer)
    return host, bed, optimizer


def test_samples_of_several_epochs_wait_for_who_asks(
    life: tuple[nn.Sequential, Bed, torch.optim.Optimizer],
) -> None:
    host, bed, optimizer = life
    rows: list[int] = []
    for epoch in range(4):
        assert _trained(host, bed, optimizer, 9) > 0
        assert bed.end_epoch(epoch, with_health=False) == ()
        if epoch % 2:
            rows.append(bed.health(epoch)[0].num_rows)
    _trained(host, bed, optimizer, 9)
    assert bed.end_epoch(4)[0].num_rows < min(rows)


def test_who_is_not_watched_carries_no_hook_and_is_watched_again_on_request(
    life: tuple[nn.Sequential, Bed, torch.optim.Optimizer],
) -> None:
    host, bed, optimizer = life
    bed.watch(on=False)
    assert _trained(host, bed, optimizer, 40) == 0
    bed.end_epoch(0)
    assert _trained(host, bed, optimizer, 40) == 0
    assert bed.health(1)[0].num_rows == 0
    bed.watch(on=True)
    assert _trained(host, bed, optimizer, 40) > 0
    assert bed.health(2)[0].num_rows > 0


def test_a_mark_remembers_whether_it_was_watched(
    life: tuple[nn.Sequential, Bed, torch.optim.Optimizer],
) -> None:
    host, bed, optimizer = life
    bed.watch(on=False)
    mark = bed.mark()
    bed.watch(on=True)
    _trained(host, bed, optimizer, 5)
    bed.roll_back(mark)
    assert _trained(host, bed, optimizer, 20) == 0
