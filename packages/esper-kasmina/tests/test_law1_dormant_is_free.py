"""Law 1: a dormant seed is a branch not taken."""
# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import pytest
import torch
from kasmina_beds import ALL_HOSTS, bed_of, wrap_host
from kasmina_factory import QUICK, Make, batch_for, cnn, mlp, state_bits, train
from kasmina_hosts import HOSTS, digest, life

from esper.contracts import SeedBed
from esper.kasmina import wrap


@pytest.mark.parametrize("make", [mlp, cnn])
def test_dormant_seeds_leave_the_output_bit_identical(make: Make) -> None:
    model = make().eval()
    x, _ = batch_for(model)
    before = model(x)
    bed: SeedBed = wrap(model)
    assert bed.model is model
    assert torch.equal(model(x), before)


@pytest.mark.parametrize("make", [mlp, cnn])
def test_dormant_seeds_leave_a_whole_training_bit_identical(make: Make) -> None:
    plain, wrapped = make(), make()
    bed = wrap(wrapped, stages=QUICK, sample_every_steps=1)
    finals = []
    for model in (plain, wrapped):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        if model is wrapped:
            bed.attach(optimizer)
        torch.manual_seed(5)
        losses = train(model, optimizer, 12)
        finals.append((losses, state_bits(model), torch.get_rng_state().tolist()))
    bed.end_epoch(0)
    assert finals[0] == finals[1]


def test_a_dormant_seed_adds_no_hook_and_no_operator() -> None:
    model = mlp().train()
    x, _ = batch_for(model)

    def operators() -> list[str]:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            model(x)
        return [event.name for event in profile.events() or [] if event.name.startswith("aten::")]

    before = operators()
    bed = wrap(model, sample_every_steps=4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    bed.attach(optimizer)
    hooked: list[int] = []
    for _ in range(9):
        hooked.append(sum(len(vars(module)["_forward_hooks"]) for module in model.modules()))
        if hooked[-1] == 0:
            assert operators() == before
        train(model, optimizer, 1)
    assert hooked == [0, 2, 0, 0, 0, 2, 0, 0, 0]


def test_unwrap_leaves_no_trace_of_dormant_seeds() -> None:
    model = mlp()
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    assert wrap(model).unwrap() is model
    assert {name: dict(vars(module)) for name, module in model.named_modules()} == before
    wrap(model)


@pytest.mark.parametrize("name", ALL_HOSTS)
def test_no_kind_of_host_notices_dormant_seeds(
    name: str, lives_without_esper: dict[str, str]
) -> None:
    host, bed, optimizer = bed_of(name, sample_every_steps=2)
    losses = life(host, bed.model, optimizer)
    assert digest(bed.model, optimizer, losses) == lives_without_esper[name]
    assert bed.end_epoch(0)[0].num_rows > 0


@pytest.mark.parametrize("name", ALL_HOSTS)
def test_evaluation_is_bit_identical_with_seeds_and_after_unwrapping(name: str) -> None:
    host = HOSTS[name]
    model = host.make().eval()
    x, _ = host.batch(0)
    expected = model(x)
    with torch.no_grad():  # in which torch's encoder layers take a path of their own
        faster = model(x)
    bed = wrap_host(host, model)
    assert torch.equal(model(x), expected)
    with torch.no_grad():
        assert torch.equal(model(x), faster)
        assert torch.equal(bed.unwrap()(x), faster)
    assert torch.equal(model(x), expected)
