"""Paths past whole rows of layers: where they can be, what they compute, and that nothing else changes."""
# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import copy
from pathlib import Path

import pytest
import torch
from kasmina_factory import QUICK, TO_FOSSILIZED, TO_GRAFTING, grow, order, wake
from torch import Tensor, nn

from esper.contracts import SeedState
from esper.kasmina import Bed, Block, load, plan, wrap

S = SeedState


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


X = random(16, 6)


def row(seed: int = 0) -> nn.Sequential:
    """Return three hidden layers in a row before a head, with all that may be between."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(6, 8),
        nn.LayerNorm(8),
        nn.ReLU(inplace=True),
        nn.Linear(8, 8),
        nn.Tanh(),
        nn.Linear(8, 8),
        nn.ReLU(),
        nn.Linear(8, 3),
    )


def bed_of(model: nn.Module) -> tuple[Bed, torch.optim.Optimizer]:
    bed = wrap(model, example=X, widen=True, stages=QUICK, sample_every_steps=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    bed.attach(optimizer)
    return bed, optimizer


def path_of(bed: Bed) -> int:
    return next(site.layer_id for site in bed.sites if site.spans > 1)


def live(bed: Bed, optimizer: torch.optim.Optimizer, steps: int) -> None:
    targets = torch.arange(len(X)) % 3
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(bed.model(X), targets).backward()
        optimizer.step()


def block_of(bed: Bed) -> Block:
    block = bed.seed((path_of(bed), 0)).block
    assert block is not None
    return block


def test_a_row_of_layers_has_one_path_past_all_of_them() -> None:
    paths = [site for site in plan(row(), example=X, widen=True).sites if site.spans > 1]
    assert [site.label for site in paths] == ["path past 3 layers from 0, into 7"]
    assert paths[0].signature.key == "features-6-to-3-float32-cpu"
    two = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    assert not [site for site in plan(two, example=X, widen=True).sites if site.spans > 1]


class DropsTokens(nn.Module):
    """Reads more tokens than it goes on with."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.second(self.first(x).relu()[:, :3]).relu())


def test_where_tokens_are_dropped_on_the_way_there_is_no_path_and_nothing_wider() -> None:
    found = plan(DropsTokens(), example=random(2, 5, 6), widen=True)
    assert [site.label for site in found.sites if site.widens] == ["second wider, into third"]
    assert any("second, which is fed by first" in line for line in found.refused)


@pytest.mark.parametrize(("num_layers", "depth"), [(2, 2), (3, 3), (4, 3), (6, 3)])
def test_designs_have_as_many_hidden_layers_as_the_path_goes_past_three_at_most(
    num_layers: int, depth: int
) -> None:
    layers = [nn.Sequential(nn.Linear(6, 6), nn.ReLU()) for _ in range(num_layers)]
    found = plan(nn.Sequential(*layers, nn.Linear(6, 3)), example=X, widen=True)
    (path,) = [site for site in found.sites if site.spans > 1]
    assert path.spans == num_layers
    bed = wrap(nn.Sequential(*layers, nn.Linear(6, 3)), example=X, widen=True)
    names = {ir.name for ir in bed.blueprints if path.suits(ir)}
    assert names == {f"path{depth}{size}" for size in ("", "_half", "_quarter")}
    pairs = [site for site in found.sites if site.widens is not None and site.spans == 1]
    assert {ir.name for ir in bed.blueprints if pairs[0].suits(ir)} == {
        f"wider{size}" for size in ("", "_half", "_quarter")
    }


def test_a_path_reads_what_the_first_layer_reads_and_adds_to_what_the_last_one_gives() -> None:
    bed, _ = bed_of(row())
    grow(bed, TO_FOSSILIZED, site=path_of(bed), name="path3_half", change=wake)
    block = block_of(bed)
    actual = bed.model(X)
    with bed.without((path_of(bed), 0)):
        plain = bed.model(X)
    torch.testing.assert_close(actual, plain + block(X))
    assert not torch.allclose(actual, plain)


def test_a_new_path_is_no_path_and_learns_everywhere_at_once() -> None:
    bed, optimizer = bed_of(row())
    before = bed.model(X)
    grow(bed, TO_GRAFTING, site=path_of(bed), name="path3")
    block = block_of(bed)
    assert all(p.abs().sum() > 0 for p in block.parameters())
    graft = bed.seed((path_of(bed), 0)).graft
    assert graft is not None
    graft.alpha.fill_(0.5)
    torch.testing.assert_close(bed.model(X), before, rtol=0, atol=0)
    live(bed, optimizer, 1)
    assert all(p.grad is not None and p.grad.any() for p in block.parameters())


def test_culling_a_path_puts_everything_back() -> None:
    bed, optimizer = bed_of(row())
    live(bed, optimizer, 2)
    before = copy.deepcopy([bed.model.state_dict(), optimizer.state_dict()])
    grow(
        bed,
        TO_GRAFTING,
        site=path_of(bed),
        name="path3",
        between=lambda state: live(bed, optimizer, 3 * (state is S.GRAFTING)),
    )
    order(bed, S.CULLED, seed_id=(path_of(bed), 0))
    assert str([bed.model.state_dict(), optimizer.state_dict()]) == str(before)
    assert not any(m._forward_pre_hooks for m in bed.model.modules())  # pyright: ignore[reportPrivateUsage]


def test_a_path_and_new_units_of_the_same_layer_live_side_by_side(tmp_path: Path) -> None:
    bed, optimizer = bed_of(row())
    beside = next(s.layer_id for s in bed.sites if s.label == "0 wider, into 3")
    into_head = next(s.layer_id for s in bed.sites if s.label == "5 wider, into 7")
    grow(bed, TO_FOSSILIZED, site=path_of(bed), name="path3", change=wake)
    grow(bed, TO_FOSSILIZED, site=beside, name="wider", change=wake)
    grow(bed, TO_FOSSILIZED, site=into_head, name="wider_half", change=wake)
    path = block_of(bed)
    live(bed, optimizer, 2)
    actual = bed.model(X)
    with bed.without((path_of(bed), 0)), bed.without((into_head, 0)):
        plain = bed.model(X)
    twin = copy.deepcopy(bed.model)
    assert torch.equal(twin(X), actual)
    assert not torch.allclose(actual, plain + path(X))  # the units at the head add to it, too
    bed.save(tmp_path)
    loaded = load(row(seed=5), tmp_path)
    assert torch.equal(loaded.model(X), actual)
    assert loaded.sites == bed.sites


def test_an_export_of_a_model_with_a_path_answers_as_it_does(tmp_path: Path) -> None:
    bed, _ = bed_of(row())
    grow(bed, TO_FOSSILIZED, site=path_of(bed), name="path3", change=wake)
    bed.export(tmp_path, X)
    program = torch.export.load(tmp_path / "model.pt2")
    bed.model.eval()
    torch.testing.assert_close(program.module()(X), bed.model(X))
