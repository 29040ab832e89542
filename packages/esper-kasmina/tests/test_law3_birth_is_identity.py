"""Law 3: a block changes nothing when it is new, whatever its alpha; and how alpha rises."""
# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from itertools import pairwise

import pytest
import torch
from kasmina_beds import ALL_HOSTS, wrap_host
from kasmina_factory import ROW_NAMES, admit, blueprint, grow, mlp, order, train
from kasmina_hosts import HOSTS

from esper.contracts import KernelSignature, SeedState
from esper.kasmina import (
    StageLengths,
    build_block,
    builtin_blueprints,
    initialise_block,
    probe_shape,
    wrap,
)
from esper.kasmina.stages import RampShape

NAMES = [ir.name for ir in builtin_blueprints()]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("features", [1, 3, 16])
def test_every_builtin_blueprint_is_zero_at_birth_for_every_width(name: str, features: int) -> None:
    ir = blueprint(name)
    read = features if ir.widens else None
    signature = KernelSignature(kind=ir.kind, features=features, inputs=read)
    block = build_block(ir, signature)
    initialise_block(block, torch.Generator().manual_seed(0))
    x = torch.randn(probe_shape(signature), generator=torch.Generator().manual_seed(1))
    assert torch.equal(block(x), torch.zeros_like(x))


def scale(output: torch.Tensor) -> float:
    return float(output.detach().abs().max().clamp(min=1.0))


@pytest.mark.parametrize("name", ALL_HOSTS)
def test_a_fresh_graft_at_full_alpha_leaves_the_output_of_every_kind_of_host(name: str) -> None:
    host = HOSTS[name]
    model = host.make().eval()
    bed = wrap_host(host, model)
    bed.attach(torch.optim.SGD(model.parameters(), lr=0.1))
    x, _ = host.batch(0)
    before = model(x)
    site = len(bed.sites) - 1 if host.targets else 0
    fits = [ir.name for ir in bed.blueprints if ir.fits(bed.sites[site].signature)]
    fitting = [name for name in fits if name not in ROW_NAMES]
    assert fitting
    for blueprint_name in fitting:
        kernel_id = admit(bed, blueprint_name, site=site)
        for state in (SeedState.GERMINATED, SeedState.LOADING, SeedState.GRAFTING):
            order(bed, state, kernel_id, (site, 0))
        order(bed, SeedState.STABILIZATION, None, (site, 0))  # alpha is 1
        assert torch.allclose(model(x), before, atol=1e-6 * scale(before), rtol=0), blueprint_name
        order(bed, SeedState.CULLED, None, (site, 0))
        bed.end_epoch(0)
        order(bed, SeedState.DORMANT, None, (site, 0))


def alphas_over(stages: StageLengths, num_epochs: int, steps_per_epoch: int) -> list[float]:
    model = mlp()
    bed = wrap(model, stages=stages)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    bed.attach(optimizer)
    grow(bed, (SeedState.GERMINATED, SeedState.LOADING, SeedState.GRAFTING))
    alphas = [bed.seeds()[0].alpha]
    for epoch in range(num_epochs):
        for _ in range(steps_per_epoch):
            train(model, optimizer, 1)
            alphas.append(bed.seeds()[0].alpha)
            assert bed.seeds()[0].is_ready_for_transition == (alphas[-1] == 1.0)
        bed.end_epoch(epoch)
        alphas.append(bed.seeds()[0].alpha)
    return alphas


def test_alpha_rises_by_equal_steps() -> None:
    alphas = alphas_over(StageLengths(ramp_steps=4), 1, 5)
    assert alphas == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


@pytest.mark.parametrize("shape", ["cosine", "sigmoid"])
def test_alpha_may_rise_slowly_at_both_ends(shape: RampShape) -> None:
    alphas = alphas_over(StageLengths(ramp_steps=4, ramp_shape=shape), 1, 4)[:-1]
    rises = [later - earlier for earlier, later in pairwise(alphas)]
    assert alphas[0] == 0.0
    assert alphas[2] == pytest.approx(0.5)
    assert alphas[4] == 1.0
    assert rises[0] == pytest.approx(rises[3])
    assert 0 < rises[0] < rises[1]


def test_alpha_may_rise_with_the_epochs() -> None:
    assert alphas_over(StageLengths(ramp_epochs=2), 2, 2) == [0.0, 0.0, 0.0, 0.5, 0.5, 0.5, 1.0]
