"""Law 11: names, types, checkpoints and copies of the host stay valid."""
# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import copy
import io

import pytest
import torch
from kasmina_factory import (
    PATHS,
    QUICK,
    TO_FOSSILIZED,
    Make,
    batch_for,
    cnn,
    grow,
    mlp,
    order,
    state_bits,
    train,
)
from torch import nn

from esper.contracts import IllegalTransitionError, SeedState
from esper.kasmina import Bed, wrap


def grown(make: Make = mlp) -> tuple[Bed, torch.optim.Optimizer]:
    model = make()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    bed = wrap(model, stages=QUICK)
    bed.attach(optimizer)
    grow(bed, TO_FOSSILIZED, between=lambda _: train(model, optimizer, 3))
    return bed, optimizer


@pytest.mark.parametrize("make", [mlp, cnn])
def test_the_hosts_own_keys_and_types_survive_a_graft(make: Make) -> None:
    plain = make()
    bed, _ = grown(make)
    keys = list(bed.model.state_dict())
    assert set(plain.state_dict()) <= set(keys)
    assert all(".esper_seed." in key for key in set(keys) - set(plain.state_dict()))
    types = {name: type(module) for name, module in bed.model.named_modules()}
    for name, module in plain.named_modules():
        assert types[name] is type(module)


def test_a_checkpoint_of_the_bare_host_loads_strictly_into_a_grown_one() -> None:
    bed, _ = grown()
    checkpoint = mlp(3).state_dict()
    kernel = {n: v for n, v in state_bits(bed.model).items() if "esper_seed" in n}
    assert not bed.model.load_state_dict(checkpoint, strict=True).missing_keys
    after = state_bits(bed.model)
    assert {n: v for n, v in after.items() if "esper_seed" in n} == kernel
    assert all(torch.equal(bed.model.state_dict()[n], v) for n, v in checkpoint.items())


def test_a_checkpoint_with_half_a_graft_is_refused() -> None:
    bed, _ = grown()
    checkpoint = dict(bed.model.state_dict())
    del checkpoint["0.esper_seed.block.node_down.weight"]
    with pytest.raises(RuntimeError, match=r"Missing key.*node_down\.weight"):
        bed.model.load_state_dict(checkpoint)


def test_a_deep_copy_computes_the_same_and_lives_its_own_life() -> None:
    bed, optimizer = grown()
    model = bed.model
    x, _ = batch_for(model)
    twin = copy.deepcopy(model)
    assert torch.equal(twin(x), model(x))
    before = bed.weights_sha256(), bed.end_epoch(0)
    train(twin, torch.optim.SGD(twin.parameters(), lr=0.1), 3)
    assert bed.weights_sha256() == before[0]
    assert bed.end_epoch(1)[0].activation_variance == 0.0
    assert not torch.equal(twin(x), model(x))
    with bed.without((0, 0)):
        bare = model(x)
    train(model, optimizer, 1)
    assert not torch.equal(bare, model(x))


def test_a_copy_of_a_host_with_dormant_seeds_can_be_wrapped_and_grown() -> None:
    original = wrap(mlp())
    twin = copy.deepcopy(original.model)
    bed = wrap(twin, stages=QUICK)
    bed.attach(torch.optim.SGD(twin.parameters(), lr=0.1))
    grow(bed, PATHS[SeedState.GRAFTING])
    assert original.seeds()[0].state is SeedState.DORMANT
    assert len(vars(twin.get_submodule("0"))["_forward_hooks"]) == 1


def test_a_pickled_host_keeps_what_it_grew() -> None:
    bed, _ = grown(cnn)
    file = io.BytesIO()
    torch.save(bed.model, file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    x, _ = batch_for(bed.model)
    assert torch.equal(again.eval()(x), bed.model.eval()(x))


def test_unwrap_keeps_fossilized_blocks_and_refuses_open_ones() -> None:
    bed, _ = grown()
    grow(bed, PATHS[SeedState.GRAFTING], site=1)
    with pytest.raises(IllegalTransitionError, match=r"\(1, 0\) is in GRAFTING"):
        bed.unwrap()
    order(bed, SeedState.CULLED, seed_id=(1, 0))
    x, _ = batch_for(bed.model)
    expected = bed.model(x)
    model = bed.unwrap()
    assert torch.equal(model(x), expected)
    assert [site.name for site in wrap(model).sites] == ["2"]


def test_without_switches_one_block_off_and_on_again() -> None:
    bed, _ = grown()
    model = bed.model
    x, _ = batch_for(model)
    with_block = model(x)
    bare = mlp()
    bare.load_state_dict({n: v for n, v in model.state_dict().items() if "esper_seed" not in n})
    with bed.without((0, 0)):
        assert torch.equal(model(x), bare(x))
    assert torch.equal(model(x), with_block)
    with pytest.raises(RuntimeError, match="shapes"), bed.without((0, 0)):
        model(x[:, :2])
    assert torch.equal(model(x), with_block)
    with bed.without((1, 0)):
        assert torch.equal(model(x), with_block)


def test_a_host_may_move_to_another_type_with_what_it_grew() -> None:
    bed, _ = grown()
    model = bed.model.double()
    assert isinstance(model, nn.Sequential)
    x, _ = batch_for(model)
    assert model(x.double()).dtype is torch.float64


def test_a_grafted_host_keeps_its_type_under_autocast() -> None:
    model = mlp()
    bed = wrap(model, stages=QUICK)
    bed.attach(torch.optim.SGD(model.parameters(), lr=0.1))
    grow(bed, PATHS[SeedState.STABILIZATION], name="normalised_mlp")
    x, _ = batch_for(model)
    with torch.autocast("cpu", torch.bfloat16):
        assert model[0](x).dtype is torch.bfloat16
