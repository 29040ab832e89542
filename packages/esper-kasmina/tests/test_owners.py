"""Grafted parameters join the optimizer group of their layer."""
# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import pytest
import torch
from kasmina_factory import PATHS, QUICK, grow, mlp, train

from esper.contracts import SeedState
from esper.kasmina import wrap


@pytest.mark.parametrize("kind", ["momentum", "adam"])
def test_grafting_leaves_the_state_of_other_parameters_untouched(kind: str) -> None:
    model = mlp()
    slow, fast = list(model[0].parameters()), list(model[2].parameters())
    groups = [
        {"params": [*slow, *model[4].parameters()], "lr": 1e-3},
        {"params": fast, "lr": 5e-3, "weight_decay": 0.25},
    ]
    optimizer = (
        torch.optim.SGD(groups, momentum=0.9) if kind == "momentum" else torch.optim.Adam(groups)
    )
    bed = wrap(model, stages=QUICK)
    bed.attach(optimizer)
    train(model, optimizer, 3)
    host = list(model.parameters())
    before = [str(optimizer.state[p]) for p in host]
    grow(bed, PATHS[SeedState.GRAFTING], site=1)
    assert [str(optimizer.state[p]) for p in host] == before
    assert len(optimizer.param_groups) == 3
    added = optimizer.param_groups[2]
    assert (added["lr"], added["weight_decay"]) == (5e-3, 0.25)
    assert {id(p) for p in added["params"]} == {
        id(p) for n, p in model.named_parameters() if "esper_seed" in n
    }


def test_an_optimizer_of_named_parameters_gets_named_ones() -> None:
    model = mlp()
    optimizer = torch.optim.AdamW(model.named_parameters(), lr=1e-2)
    bed = wrap(model, stages=QUICK)
    bed.attach(optimizer)
    grow(bed, PATHS[SeedState.GRAFTING])
    names = [name for group in optimizer.param_groups for name in group["param_names"]]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
