"""Hosts that can become wider, with all that their tests need to let them."""
# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false

from collections.abc import Callable

import pytest
import torch
from kasmina_factory import QUICK
from torch import Tensor, nn

from esper.kasmina import Bed, wrap


class Norm(nn.Module):
    """A pre-norm residual MLP with a weight between its branches."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.up = nn.Linear(8, 16)
        self.down = nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu_(self.up(self.norm(x))))


class Attentive(nn.Module):
    """Tokens are mixed between its two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.values = nn.Linear(8, 8)
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.values(x).cumsum(dim=1))


class ByName(nn.Module):
    """Calls a layer with a keyword argument."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(input=x))


def mlp(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU(inplace=True), nn.Linear(8, 4), nn.Linear(4, 3)
    )


def cnn(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3, padding=1),
        nn.Flatten(),
        nn.Linear(24, 3),
    )


class Flat(nn.Module):
    """Puts the channels last: (B, D, H, W) → (B, H, W, D)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.movedim(1, -1)


class Mean(nn.Module):
    """Averages over positions."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3))


class Half(nn.Module):
    """Keeps the second half of a batch."""

    def forward(self, x: Tensor) -> Tensor:
        return x[len(x) // 2 :]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


X, IMAGES = random(16, 6), random(4, 2, 4, 4)

every_pair = pytest.mark.parametrize(
    ("make", "x", "name"),
    [(mlp, X, "3"), (cnn, IMAGES, "4"), (cnn, IMAGES, "6")],
    ids=["linear to linear", "convolution to convolution", "convolution to linear"],
)
"""A host, its inputs, and the layer that new units add to."""


def wide_bed(
    make: Callable[[], nn.Module] = mlp, x: Tensor = X, depth: int = 1
) -> tuple[Bed, torch.optim.Optimizer]:
    model = make()
    bed = wrap(model, example=x, widen=True, depth=depth, stages=QUICK, sample_every_steps=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    bed.attach(optimizer)
    return bed, optimizer


def site_of(bed: Bed, name: str) -> int:
    """Return the number of the place of new units that add to the layer `name`."""
    return next(s.layer_id for s in bed.sites if s.name == name and s.widens is not None)


def live(bed: Bed, optimizer: torch.optim.Optimizer, x: Tensor, steps: int) -> None:
    bed.model.train()
    targets = torch.arange(len(x)) % 3
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(bed.model(x), targets).backward()
        optimizer.step()
