"""Law 2: until GRAFTING the host lives bit for bit as it would without Esper."""
# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import random
from typing import Any

import numpy as np
import pytest
import torch
from kasmina_beds import ALL_HOSTS, bed_of
from kasmina_factory import (
    QUICK,
    TO_TRAINING,
    Change,
    Make,
    admit,
    cnn,
    explode,
    mlp,
    order,
    state_bits,
    train,
)
from kasmina_hosts import digest
from kasmina_hosts import life as host_life
from torch import nn

from esper.contracts import IllegalTransitionError, SeedState
from esper.kasmina import wrap


def life(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> dict[str, Any]:
    """Train and return everything that an onlooker could compare."""
    losses = train(model, optimizer, steps, first=3)
    return {
        "losses": losses,
        "state": state_bits(model),
        "gradients": [str(p.grad) for p in model.parameters()],
        "optimizer": str(optimizer.state_dict()),
        "torch": torch.get_rng_state().tolist(),
        "python": random.getstate(),
        "numpy": str(np.random.get_state()),
    }


def seed_everything() -> None:
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)


@pytest.mark.parametrize("make", [mlp, cnn])
@pytest.mark.parametrize("change", [None, explode])
def test_a_training_seed_changes_nothing_of_the_host(make: Make, change: Change) -> None:
    plain = make()
    optimizer = torch.optim.Adam(plain.parameters(), lr=1e-2)
    train(plain, optimizer, 3)
    seed_everything()
    expected = life(plain, optimizer, 12)

    model = make()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    bed = wrap(model, stages=QUICK, sample_every_steps=2)
    bed.attach(optimizer)
    train(model, optimizer, 3)
    seed_everything()
    kernel_id = admit(bed, change=change)
    for state in TO_TRAINING:
        order(bed, state, kernel_id)
    found = life(model, optimizer, 12)
    bed.end_epoch(0)
    assert found == expected


def test_a_training_seed_learns_what_the_gradient_at_its_site_wants() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    bed = wrap(model, stages=QUICK)
    bed.attach(optimizer)
    kernel_id = admit(bed)
    for state in TO_TRAINING:
        order(bed, state, kernel_id)
    before = train(model, optimizer, 40)
    assert bed.seeds()[0].is_ready_for_transition
    order(bed, SeedState.GRAFTING)
    order(bed, SeedState.STABILIZATION)
    after = train(model, optimizer, 40)
    assert sum(after) < sum(before) - 0.1


def test_a_seed_that_diverges_says_so_and_cannot_be_grafted() -> None:
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters())
    bed = wrap(model, stages=QUICK)
    bed.attach(optimizer)
    kernel_id = admit(bed, change=explode)
    for state in TO_TRAINING:
        order(bed, state, kernel_id)
    train(model, optimizer, 5)
    status = bed.seeds()[0]
    assert status.failure is not None
    assert not status.is_ready_for_transition
    before = bed.weights_sha256()
    with pytest.raises(IllegalTransitionError, match=r"its own loss became .*cull it"):
        order(bed, SeedState.GRAFTING)
    assert bed.weights_sha256() == before
    order(bed, SeedState.CULLED)
    order(bed, SeedState.DORMANT)
    assert bed.seeds()[0].failure is None


def test_a_seed_learns_nothing_from_a_host_that_overflows() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    bed = wrap(model, stages=QUICK)
    bed.attach(optimizer)
    kernel_id = admit(bed)
    for state in TO_TRAINING:
        order(bed, state, kernel_id)
    model.train()
    model(torch.full((4, 6), float("inf"))).sum().backward()
    optimizer.zero_grad()
    optimizer.step()
    assert bed.seeds()[0].failure is None
    train(model, optimizer, 3)
    assert bed.seeds()[0].is_ready_for_transition


def test_a_seed_learns_the_same_whether_or_not_the_next_operation_is_in_place() -> None:
    finals: list[dict[str, bytes]] = []
    for inplace in (False, True):
        model = mlp()
        model[1] = nn.ReLU(inplace=inplace)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        bed = wrap(model, stages=QUICK)
        bed.attach(optimizer)
        kernel_id = admit(bed)
        for state in TO_TRAINING:
            order(bed, state, kernel_id)
        train(model, optimizer, 5)
        order(bed, SeedState.GRAFTING)
        finals.append(state_bits(model))
    assert finals[0] == finals[1]


@pytest.mark.parametrize("change", [None, explode], ids=["healthy", "exploding"])
@pytest.mark.parametrize("name", ALL_HOSTS)
def test_no_kind_of_host_notices_a_training_seed(
    name: str, change: Change, lives_without_esper: dict[str, str]
) -> None:
    host, bed, optimizer = bed_of(name, sample_every_steps=2)
    site = len(bed.sites) - 1 if host.targets else 0
    kernel_id = admit(bed, site=site, change=change)

    def germinate(step: int) -> None:
        if step == 2:
            for state in TO_TRAINING:
                order(bed, state, kernel_id, (site, 0))

    losses = host_life(host, bed.model, optimizer, before=germinate)
    assert digest(bed.model, optimizer, losses) == lives_without_esper[name]
    status = next(seed for seed in bed.seeds() if seed.seed_id == (site, 0))
    assert (status.failure is not None) == (change is explode)
    assert status.is_ready_for_transition == (change is None)
