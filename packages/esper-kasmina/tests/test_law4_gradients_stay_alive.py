"""Law 4: after any transition every trainable parameter of the host receives its gradient."""
# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import pytest
import torch
from kasmina_beds import ALL_HOSTS, bed_of
from kasmina_factory import (
    QUICK,
    TO_FOSSILIZED,
    TO_GRAFTING,
    Make,
    batch_for,
    cnn,
    grow,
    mlp,
    order,
    train,
    wake,
)
from kasmina_hosts import life
from torch import nn

from esper.contracts import SeedState
from esper.kasmina import wrap


@pytest.mark.parametrize("make", [mlp, cnn])
def test_after_every_transition_all_gradients_are_alive_and_owned_once(make: Make) -> None:
    model = make()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    bed = wrap(model, stages=QUICK)
    bed.attach(optimizer)

    def check(_: SeedState) -> None:
        train(model, optimizer, 4)
        gradients = [p.grad for p in model.parameters() if p.requires_grad]
        assert all(g is not None for g in gradients)
        host = [p for n, p in model.named_parameters() if "esper_seed" not in n]
        assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in host)
        owned = [id(p) for group in optimizer.param_groups for p in group["params"]]
        assert len(owned) == len(set(owned))
        assert {id(p) for p in model.parameters()} == set(owned)

    grow(bed, TO_FOSSILIZED, site=0, between=check)
    grow(bed, TO_FOSSILIZED, site=1, between=check)


def test_a_frozen_kernel_does_not_move_but_lets_gradients_through() -> None:
    model = mlp()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    bed = wrap(model, stages=QUICK)
    bed.attach(optimizer)
    # A later site, so that there are earlier layers that live from what flows through the kernel.
    grow(bed, TO_GRAFTING, site=1, between=lambda _: train(model, optimizer, 4))
    order(bed, SeedState.STABILIZATION, seed_id=(1, 0))
    kernel = [p for n, p in model.named_parameters() if "esper_seed" in n]
    before = [p.detach().clone() for p in kernel]

    # A loop that clears gradients late still holds those of the step before the freeze.
    optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(kernel, before, strict=True))

    def first_gradient() -> torch.Tensor:
        x, y = batch_for(model)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        gradient = model[0].get_parameter("weight").grad
        assert gradient is not None
        return gradient.clone()

    with bed.without((1, 0)):
        alone = first_gradient()
    assert not torch.equal(first_gradient(), alone)
    train(model, optimizer, 4)
    assert all(torch.equal(p, q) for p, q in zip(kernel, before, strict=True))
    assert bed.num_parameters() == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", ALL_HOSTS)
def test_every_kind_of_host_keeps_all_its_gradients(name: str) -> None:
    host, bed, optimizer = bed_of(name)
    site, chunk = (len(bed.sites) - 1 if host.targets else 0), bed.sites[0].num_seeds - 1
    life(host, bed.model, optimizer, steps=1)
    alive = {n for n, p in bed.model.named_parameters() if p.grad is not None and p.grad.any()}

    def check(_: SeedState) -> None:
        life(host, bed.model, optimizer, steps=4)
        now = dict(bed.model.named_parameters())
        assert all(now[n].grad is not None and bool(now[n].grad.any()) for n in alive)  # pyright: ignore[reportOptionalMemberAccess]
        owned = [id(p) for group in optimizer.param_groups for p in group["params"]]
        assert sorted(owned) == sorted(id(p) for p in now.values())

    grow(bed, TO_FOSSILIZED, site=site, chunk=chunk, change=wake, between=check)
    grafted = [p for n, p in bed.model.named_parameters() if "esper_seed" in n]
    assert grafted
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in grafted)
