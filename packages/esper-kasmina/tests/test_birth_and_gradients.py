"""Laws 3 to 5: birth is identity, gradients stay alive, every parameter has one owner."""
# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import pytest
import torch
from kasmina_factory import (
    PATHS,
    QUICK,
    TO_FOSSILIZED,
    TO_GRAFTING,
    Make,
    admit,
    batch_for,
    blueprint,
    cnn,
    grow,
    mlp,
    order,
    train,
)
from torch import nn

from esper.contracts import KernelSignature, SeedState, SiteKind
from esper.kasmina import (
    StageLengths,
    build_block,
    builtin_blueprints,
    initialise_block,
    probe_shape,
    wrap,
)

NAMES = [ir.name for ir in builtin_blueprints()]


def test_there_are_three_builtin_blueprints_of_each_kind() -> None:
    for kind in SiteKind:
        assert sum(ir.kind is kind for ir in builtin_blueprints()) >= 3


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("features", [1, 3, 16])
def test_every_builtin_blueprint_is_zero_at_birth_for_every_width(name: str, features: int) -> None:
    ir = blueprint(name)
    signature = KernelSignature(kind=ir.kind, features=features)
    block = build_block(ir, signature)
    initialise_block(block, torch.Generator().manual_seed(0))
    x = torch.randn(probe_shape(signature), generator=torch.Generator().manual_seed(1))
    assert torch.equal(block(x), torch.zeros_like(x))


@pytest.mark.parametrize("name", NAMES)
def test_a_fresh_graft_at_full_alpha_leaves_the_output(name: str) -> None:
    model = (cnn if blueprint(name).kind is SiteKind.CHANNELS_2D else mlp)().eval()
    bed = wrap(model, stages=StageLengths(ramp_steps=0))
    bed.attach(torch.optim.SGD(model.parameters(), lr=0.1))
    x, _ = batch_for(model)
    before = model(x)
    kernel_id = admit(bed, name)
    for state in (SeedState.GERMINATED, SeedState.LOADING, SeedState.GRAFTING):
        order(bed, state, kernel_id)
    assert bed.seeds()[0].alpha == 1.0
    assert torch.allclose(model(x), before, atol=1e-6, rtol=0)


def test_alpha_rises_by_equal_steps() -> None:
    model = mlp()
    bed = wrap(model, stages=StageLengths(ramp_steps=4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    bed.attach(optimizer)
    kernel_id = admit(bed)
    for state in (SeedState.GERMINATED, SeedState.LOADING, SeedState.GRAFTING):
        order(bed, state, kernel_id)
    alphas = [bed.seeds()[0].alpha]
    for step in range(5):
        assert bed.seeds()[0].is_ready_for_transition == (step >= 4)
        train(model, optimizer, 1)
        alphas.append(bed.seeds()[0].alpha)
    assert alphas == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]


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
