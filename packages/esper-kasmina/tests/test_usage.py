"""What a parameter costs at a site, next to one of the host's: told by an example."""
# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from typing import override

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from esper.kasmina import Example, plan


def costs(model: nn.Module, example: Example, *, widen: bool = False) -> dict[str, float]:
    found = plan(model, example=example, widen=widen)
    assert not found.problems
    return {site.label: site.cost for site in found.sites}


def test_an_early_convolution_costs_more_than_a_late_one() -> None:
    host = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, padding=1, stride=4, bias=False),
        nn.Flatten(),
        nn.Linear(24, 10, bias=False),
    )
    batch = 5
    example = torch.rand(batch, 3, 8, 8)
    with FlopCounterMode(display=False) as counter:
        host(example)
    parameters = sum(p.numel() for p in host.parameters())
    mean = counter.get_total_flops() / 2 / batch / parameters
    expected = {"0": 64 / mean, "2": 4 / mean, "0 wider, into 2": 64 / mean}
    expected["2 wider, into 4"] = 1 / mean  # units of a linear layer, with one row to a sample
    assert costs(host, example, widen=True) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("batch", [1, 7])
def test_where_every_layer_works_on_the_same_rows_costs_are_even(batch: int) -> None:
    mlp = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    assert set(costs(mlp, torch.rand(batch, 4)).values()) == {1.0}


class Tokens(nn.Module):
    """A table of tokens, torch's attention (which calls none of its own layers), and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(1000, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.up = nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    @override
    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(self.up(x))


def test_a_table_of_tokens_counts_for_nothing() -> None:
    found = costs(Tokens(), torch.randint(1000, (3, 5)))
    assert found
    assert set(found.values()) == {1.0}


class Twice(nn.Module):
    """Calls one layer twice."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.other = nn.Linear(4, 4), nn.Linear(4, 4)
        self.head = nn.Linear(4, 2)

    @override
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.other(self.shared(torch.relu(self.shared(x)))))


def test_a_layer_that_is_called_twice_costs_twice() -> None:
    found = costs(Twice(), torch.rand(3, 4))
    assert found["shared"] == pytest.approx(2 * found["other"], rel=1e-3)


def test_without_an_example_nobody_knows() -> None:
    mlp = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    assert {site.cost for site in plan(mlp).sites} == {1.0}
