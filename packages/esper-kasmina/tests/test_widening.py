"""Layers that become wider: where that can be, what new units compute, and that nothing else changes.

The laws hold for them as for other seeds: `kasmina_hosts` has such hosts among those that all laws are
tried on.
"""
# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from kasmina_factory import QUICK, TO_FOSSILIZED, TO_GRAFTING, TO_TRAINING, grow, order, wake
from torch import Tensor, nn
from widening_factory import (
    IMAGES,
    Attentive,
    ByName,
    Flat,
    Half,
    Mean,
    Norm,
    X,
    cnn,
    every_pair,
    live,
    mlp,
    random,
    site_of,
    wide_bed,
)

from esper.contracts import BlueprintError, HostError, SeedState
from esper.kasmina import load, plan, wrap

S = SeedState


def pickled(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


def test_a_layer_can_be_wider_wherever_it_alone_feeds_another() -> None:
    model = nn.Sequential(nn.Linear(5, 8), Norm(), nn.Dropout(), nn.Linear(8, 6), nn.Linear(6, 3))
    found = plan(model, example=random(4, 5), widen=True)
    assert not found.problems
    assert [(s.layer_id, s.label, s.signature.key) for s in found.sites] == [
        (0, "0", "features-8-float32-cpu"),
        (1, "0 wider, into 1.up", "features-5-to-16-float32-cpu"),
        (2, "path past 2 layers from 0, into 1.down", "features-5-to-8-float32-cpu"),
        (3, "1.up", "features-16-float32-cpu"),
        (4, "1.up wider, into 1.down", "features-8-to-8-float32-cpu"),
        (5, "1.down", "features-8-float32-cpu"),
        (6, "1", "features-8-float32-cpu"),
        (7, "3", "features-6-float32-cpu"),
        (8, "3 wider, into 4", "features-8-to-3-float32-cpu"),
    ]


@pytest.mark.parametrize(
    ("make", "x", "reason"),
    [
        (lambda: nn.Linear(6, 3), X, "fed by the model's input"),
        (
            lambda: nn.Sequential(Norm(), nn.Linear(8, 3)),
            random(4, 8),
            "fed by 0.down and the model",
        ),
        (Attentive, random(4, 5, 8), "fed by values through something that mixes rows"),
        (ByName, random(4, 8), "fed by first, which is not called with one tensor"),
        (
            lambda: nn.Sequential(nn.Conv2d(2, 4, 3), Flat(), nn.Linear(4, 3)),
            IMAGES,
            "fed by 0, a Conv2d; widening needs two layers of one type",
        ),
        (
            lambda: nn.Sequential(nn.Conv1d(300, 4, 3), nn.Flatten(), nn.Linear(8, 3)),
            random(4, 300, 4),
            "fed by 0, which is given 300 channels; new units that read all positions at once read 256",
        ),
        (
            lambda: nn.Sequential(nn.Conv2d(2, 4, 3), Flat(), nn.Flatten(0, 2), nn.Linear(4, 3)),
            IMAGES,
            "fed by 0, which is given 4 samples for 16 rows",
        ),
        (
            lambda: nn.Sequential(nn.Conv2d(2, 4, 3), Half(), nn.Flatten(), nn.Linear(16, 3)),
            IMAGES,
            "fed by 0, which is given 4 samples for 2 rows",
        ),
        (
            lambda: nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), Mean(), nn.Linear(4, 3)),
            IMAGES,
            "fed by 0 through an average over all positions, and new units would tell them apart",
        ),
        (
            lambda: nn.Sequential(nn.Conv1d(2, 4, 3), nn.Conv1d(4, 4, 3, groups=2)),
            random(4, 2, 9),
            "has 2 groups",
        ),
    ],
)
def test_where_nothing_can_be_wider_the_plan_says_why(
    make: Callable[[], nn.Module], x: Tensor, reason: str
) -> None:
    model = nn.Sequential(make()) if isinstance(model := make(), nn.Linear) else model
    refused = plan(model, example=x, widen=True).refused
    assert any(reason in line and "nothing can be wider before" in line for line in refused), (
        refused
    )


def test_a_layer_that_is_called_twice_is_not_widened() -> None:
    shared = nn.Linear(6, 6)
    model = nn.Sequential(shared, nn.Tanh(), shared, nn.Linear(6, 3))
    refused = plan(model, example=X, widen=True).refused
    assert any("is called 2 times in a pass" in line for line in refused), refused


def test_only_an_example_can_tell() -> None:
    with pytest.raises(HostError, match=r"widen=True needs example="):
        wrap(mlp(), widen=True)


def test_an_example_that_does_not_run_is_refused_and_leaves_the_host_alone() -> None:
    model = mlp()
    with pytest.raises(HostError, match="does not run through"):
        wrap(model, example=random(4, 7), widen=True)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())  # pyright: ignore[reportPrivateUsage]


def test_planning_leaves_the_host_and_the_random_streams_alone() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.Dropout(), nn.BatchNorm1d(8), nn.Linear(8, 3))
    before, stream = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    plan(model, example=X, widen=True)
    assert torch.equal(torch.get_rng_state(), stream)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())
    assert model.training


def test_new_units_read_what_the_wider_layer_reads_and_add_to_what_the_next_one_gives() -> None:
    bed, _ = wide_bed()
    grow(bed, TO_FOSSILIZED, site=site_of(bed, "3"), change=wake)
    block = bed.seed((site_of(bed, "3"), 0)).block
    model = bed.model
    assert block is not None
    assert isinstance(model, nn.Sequential)
    actual = model(X)
    with bed.without((site_of(bed, "3"), 0)):
        h = model[:4](X)
        plain = model(X)
    torch.testing.assert_close(actual, model[4](h + block(X)))
    assert not torch.allclose(actual, plain)


@pytest.mark.parametrize("size", [4, 5, 7])
def test_where_a_pooling_follows_new_channels_read_all_its_positions_side_by_side(
    size: int,
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*list(cnn())[:5], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))
    bed, _ = wide_bed(lambda: model, IMAGES)
    images = random(4, 2, size, size)
    site = site_of(bed, "4")
    assert bed.sites[site].signature.inputs == 8
    grow(bed, TO_FOSSILIZED, site=site, change=wake)
    block = bed.seed((site, 0)).block
    assert block is not None
    model.eval()
    actual = model(images)
    with bed.without((site, 0)):
        h = model[:5](images)
    even = nn.functional.pixel_unshuffle(images[:, :, : size // 2 * 2, : size // 2 * 2], 2)
    torch.testing.assert_close(actual, model[5:](h + block(even)))


@pytest.mark.parametrize(
    ("shape", "later", "num_read"),
    [
        ((6, 6), (6, 6), 144),  # each position of each of four channels
        ((6, 6), (9, 5), 144),  # later on averages, where there are more or fewer
        ((6, 9), (6, 9), 144),  # as many along each axis
        ((20, 20), (20, 20), 256),  # or all that can be read
        ((70,), (70,), 256),
    ],
)
def test_new_units_of_a_linear_layer_read_all_positions_of_the_convolution_that_they_are_beside(
    shape: tuple[int, ...], later: tuple[int, ...], num_read: int
) -> None:
    convolution = nn.Conv1d if len(shape) == 1 else nn.Conv2d
    pool = nn.AdaptiveMaxPool1d(2) if len(shape) == 1 else nn.AdaptiveMaxPool2d(2)
    torch.manual_seed(0)
    model = nn.Sequential(
        *(convolution(1, 4, 1), nn.ReLU(), convolution(4, 3, 3, padding=1)),
        *(nn.ReLU(), pool, nn.Flatten(), nn.Linear(3 * 2 ** len(shape), 5)),
    )
    bed, _ = wide_bed(lambda: model, random(4, 1, *shape))
    site = site_of(bed, "6")
    assert bed.sites[site].signature.key == f"features-{num_read}-to-5-float32-cpu"
    assert bed.sites[site].cost < bed.sites[0].cost
    grow(bed, TO_FOSSILIZED, site=site, change=wake)
    block = bed.seed((site, 0)).block
    assert block is not None
    x = random(6, 1, *later)
    actual = model(x)
    with bed.without((site, 0)):
        given, plain = model[:2](x), model(x)
    along = round((num_read / 4) ** (1 / len(shape)))
    average = nn.AdaptiveAvgPool1d(along) if len(shape) == 1 else nn.AdaptiveAvgPool2d(along)
    torch.testing.assert_close(actual, plain + block(average(given).flatten(1)))
    assert not torch.allclose(actual, plain)


def test_what_new_units_across_positions_cost_does_not_depend_on_the_other_targets() -> None:
    everywhere, alone = (plan(cnn(), t, example=IMAGES, widen=True) for t in (None, ["4"]))
    (expected,) = (site for site in everywhere.sites if site.reads_all_positions)
    (found,) = (site for site in alone.sites if site.reads_all_positions)
    assert (found.label, found.cost) == (expected.label, expected.cost)
    assert found.cost < 1


def test_new_units_across_positions_compute_in_the_type_of_the_layer_that_they_add_to() -> None:
    class Cast(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.float()

    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)).double()
    model = nn.Sequential(*body, Cast(), nn.Flatten(), nn.Linear(8, 3))
    images = IMAGES.double()
    bed, _ = wide_bed(lambda: model, images)
    before = model(images)
    grow(bed, TO_FOSSILIZED, site=site_of(bed, "5"), change=wake)
    assert model(images).dtype == torch.float32
    assert not torch.equal(model(images), before)


def uneven() -> nn.Sequential:
    """Return a host that pools one axis more than the other."""
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.MaxPool2d((2, 1)), nn.Conv2d(4, 3, 3, padding=1), Mean()
    )


def test_where_positions_do_not_fall_together_evenly_new_channels_read_averages() -> None:
    bed, _ = wide_bed(uneven, IMAGES)
    site = site_of(bed, "2")
    assert bed.sites[site].signature.inputs == 2
    grow(bed, TO_FOSSILIZED, site=site, change=wake)
    block, model = bed.seed((site, 0)).block, bed.model.eval()
    assert block is not None
    assert isinstance(model, nn.Sequential)
    actual = model(IMAGES)
    with bed.without((site, 0)):
        h = model[:3](IMAGES)
    averaged = nn.functional.avg_pool2d(IMAGES, (2, 1))
    torch.testing.assert_close(actual, model[3:](h + block(averaged)))


def test_new_units_act_before_a_block_at_the_same_layer_does() -> None:
    bed, _ = wide_bed()
    block_site = next(s.layer_id for s in bed.sites if s.name == "3" and s.widens is None)
    wide_site = site_of(bed, "3")
    grow(bed, TO_FOSSILIZED, site=block_site, change=wake)
    grow(bed, TO_FOSSILIZED, site=wide_site, change=wake)
    block, units = bed.seed((block_site, 0)).block, bed.seed((wide_site, 0)).block
    model = bed.model
    assert block is not None
    assert units is not None
    assert isinstance(model, nn.Sequential)
    actual = model(X)
    with bed.without((block_site, 0)), bed.without((wide_site, 0)):
        h = model[:4](X) + units(X)
    torch.testing.assert_close(actual, model[4](h + block(h)))


def test_new_units_learn_in_isolation_from_what_they_will_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bed, optimizer = wide_bed()
    site = site_of(bed, "3")
    grow(bed, TO_TRAINING, site=site)
    learner = bed.seed((site, 0)).learner
    assert learner is not None
    seen: list[tuple[Tensor, Tensor]] = []
    observe = type(learner).observe

    def see(self: object, rows: Tensor, gradients: Tensor) -> None:
        seen.append((rows, gradients))
        observe(learner, rows, gradients)

    monkeypatch.setattr(type(learner), "observe", see)
    live(bed, optimizer, X, 2)
    assert all(torch.equal(rows, X) and g.shape == (16, 4) for rows, g in seen)
    assert len(seen) == 2
    assert learner.num_steps == 2


def test_the_gain_is_what_reading_more_would_make_of_the_gap() -> None:
    torch.manual_seed(0)
    narrow = nn.Sequential(nn.Linear(12, 1), nn.Linear(1, 12), nn.ReLU(), nn.Linear(12, 4))
    bed = wrap(narrow, example=random(4, 12), widen=True, sample_every_steps=1)
    optimizer = torch.optim.Adam(narrow.parameters(), lr=1e-3)
    bed.attach(optimizer)
    x = random(512, 12, seed=1)
    y = (x @ random(12, 4, seed=2)).argmax(dim=1)
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.cross_entropy(narrow(x), y).backward()
        optimizer.step()
    health = {s.layer_id: s for s in bed.end_epoch(0)}
    by_name = {site.label: health[site.layer_id] for site in bed.sites}
    bottleneck, other = by_name["0 wider, into 1"], by_name["1 wider, into 3"]
    assert by_name["1"].expressivity_gain is None
    assert bottleneck.expressivity_gain is not None
    assert bottleneck.expressivity_gap is not None
    assert other.expressivity_gain is not None
    assert other.expressivity_gap is not None
    # One unit carries one of the directions that matter; the layer after it has nothing more to read.
    assert bottleneck.expressivity_gain > 0.25 * bottleneck.expressivity_gap
    assert other.expressivity_gain < 0.05 * other.expressivity_gap


@every_pair
def test_culling_puts_everything_back(make: Callable[[], nn.Module], x: Tensor, name: str) -> None:
    bed, optimizer = wide_bed(make, x)
    live(bed, optimizer, x, 2)
    before = copy.deepcopy([bed.model.state_dict(), optimizer.state_dict()])
    site = site_of(bed, name)
    grow(
        bed,
        TO_GRAFTING,
        site=site,
        between=lambda s: live(bed, optimizer, x, 2 * (s is S.GRAFTING)),
    )
    order(bed, S.CULLED, seed_id=(site, 0))
    after = [bed.model.state_dict(), optimizer.state_dict()]
    assert str(after) == str(before)
    assert not any(m._forward_pre_hooks for m in bed.model.modules())  # pyright: ignore[reportPrivateUsage]


@every_pair
@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickled])
def test_copies_are_as_wide_and_go_their_own_way(
    duplicate: Callable[[nn.Module], nn.Module],
    make: Callable[[], nn.Module],
    x: Tensor,
    name: str,
) -> None:
    bed, optimizer = wide_bed(make, x)
    grow(bed, TO_FOSSILIZED, site=site_of(bed, name), change=wake)
    expected = bed.model(x)
    twin = duplicate(bed.model)
    assert torch.equal(twin(x), expected)
    live(bed, optimizer, x, 2)
    assert torch.equal(twin(x), expected)


@every_pair
def test_averages_become_wider_with_the_host(
    make: Callable[[], nn.Module], x: Tensor, name: str
) -> None:
    model = make()
    bed = wrap(model, example=x, widen=True, stages=QUICK)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    average = torch.optim.swa_utils.AveragedModel(model, avg_fn=lambda _a, new, _n: new)
    bed.attach(optimizer, copies=[average])
    grow(bed, TO_FOSSILIZED, site=site_of(bed, name), change=wake)
    live(bed, optimizer, x, 2)
    average.update_parameters(model)
    assert torch.equal(average(x), model(x))


@every_pair
def test_a_wider_model_that_was_saved_comes_back(
    make: Callable[..., nn.Module], x: Tensor, name: str, tmp_path: Path
) -> None:
    bed, _ = wide_bed(make, x, depth=2)
    site = site_of(bed, name)
    for slot in (1, 0):
        grow(bed, TO_FOSSILIZED, site=site, chunk=slot, change=wake)
    bed.save(tmp_path)
    loaded = load(make(seed=5), tmp_path)
    assert torch.equal(loaded.model(x), bed.model(x))
    assert loaded.sites == bed.sites
    with pytest.raises(HostError, match=rf"the site '{name}' is missing|grew on a different host"):
        load(nn.Sequential(nn.Linear(6, 8)), tmp_path)


@every_pair
def test_a_wider_model_is_traced_whole(make: Callable[[], nn.Module], x: Tensor, name: str) -> None:
    bed, _ = wide_bed(make, x)
    grow(bed, TO_FOSSILIZED, site=site_of(bed, name), change=wake)
    bed.model.eval()
    compiled = torch.compile(bed.model, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), bed.model(x))


@every_pair
def test_an_export_of_a_wider_model_answers_as_it_does(
    make: Callable[[], nn.Module], x: Tensor, name: str, tmp_path: Path
) -> None:
    bed, _ = wide_bed(make, x)
    grow(bed, TO_FOSSILIZED, site=site_of(bed, name), change=wake)
    bed.export(tmp_path, x)
    program = torch.export.load(tmp_path / "model.pt2")
    bed.model.eval()
    torch.testing.assert_close(program.module()(x), bed.model(x))


def test_a_part_of_a_wider_model_says_what_it_misses() -> None:
    bed, _ = wide_bed()
    grow(bed, TO_FOSSILIZED, site=site_of(bed, "3"), change=wake)
    assert isinstance(bed.model, nn.Sequential)
    with pytest.raises(HostError, match="run the model as a whole"):
        bed.model[3](random(4, 8))


def test_kernels_go_only_where_they_fit() -> None:
    bed, _ = wide_bed()
    own = bed.blueprints
    wide = [ir for ir in own if ir.widens]
    sizes = ("", "_half", "_quarter")
    assert {ir.name for ir in wide} == {f"{n}{s}" for n in ("wider", "path2") for s in sizes}
    for site in bed.sites:
        assert {ir.widens for ir in own if ir.fits(site.signature)} == {site.widens is not None}
    with pytest.raises(BlueprintError, match=r"wrap\(…, widen=True\) makes places for them"):
        wrap(mlp(), blueprints=wide)
