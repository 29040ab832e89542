"""The expressivity gap: exactly what a layer's own weights cannot follow, whatever the layer."""
# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from esper.contracts import SiteKind
from esper.kasmina.expressivity import PAST_ROWS_PER_COLUMN, ROWS_PER_COLUMN, ExpressivityGap
from esper.kasmina.health import Health, HealthSampler
from esper.kasmina.rows import MAX_COLUMNS

FEATURES = SiteKind.FEATURES


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gap_of(inputs: Tensor, wanted: Tensor) -> float | None:
    gap = ExpressivityGap()
    gap.add(inputs.unsqueeze(1), wanted)
    return gap.value()


def health_of(
    layer: nn.Module, kind: SiteKind, samples: list[tuple[Tensor, Tensor]], features: int = 0
) -> Health:
    """Return the health after samples of the layer's inputs and of the gradient at its output."""
    sampler = HealthSampler(kind, layer)
    for x, g in samples:
        h = layer(x)
        sampler.observe(h[:, :features] if features else h, x)
        sampler.observe_gradient(g)
    return sampler.close()


def share(health: Health) -> float:
    """Return the part of the gradient's squared norm that the layer cannot follow."""
    assert health.expressivity_gap is not None
    assert health.gradient_norm is not None
    return health.expressivity_gap / health.gradient_norm**2


def least_squares(inputs: "np.ndarray[Any, Any]", wanted: "np.ndarray[Any, Any]") -> float:
    """Return what is left for each row beyond what chance could follow, by NumPy's own solver."""
    solution, _, rank, _ = np.linalg.lstsq(inputs, wanted, rcond=1e-3)
    left = wanted - inputs @ solution
    return float((left**2).sum() / (len(inputs) - rank))


@settings(max_examples=60, deadline=None)
@given(
    columns=st.integers(1, 7),
    features=st.integers(1, 4),
    more=st.integers(0, 40),
    dead=st.booleans(),
    twice=st.booleans(),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
    seed=st.integers(0, 1000),
)
def test_the_gap_is_what_least_squares_leaves(
    columns: int, features: int, more: int, dead: bool, twice: bool, scale: float, seed: int
) -> None:
    rows = ROWS_PER_COLUMN * (columns + twice) + more + 2
    p, v = noise(rows, columns, seed=seed) * scale, noise(rows, features, seed=seed + 1)
    if dead:
        p[:, 0] = 0
    if twice:
        p = torch.cat([p, p[:, :1]], dim=1)
    # Directions that are too small to count are told apart safely only if the others are not small.
    sizes = np.linalg.svd(p.numpy() / scale, compute_uv=False)
    if np.any((sizes > 1e-9) & (sizes < 0.05 * sizes[0])):
        return
    expected = least_squares(p.numpy(), v.numpy())
    assert gap_of(p, v) == pytest.approx(expected, rel=2e-3)


def test_rows_may_come_in_parts_and_those_that_are_not_finite_do_not_count() -> None:
    p, v = noise(60, 3), noise(60, 2, seed=1)
    gap = ExpressivityGap()
    for part in range(0, 60, 7):
        gap.add(p[part : part + 7].unsqueeze(1), v[part : part + 7])
    bad_p, bad_v = noise(3, 1, 3), noise(3, 2)
    bad_p[0, 0, 1] = math.nan
    bad_p[1, 0, 0] = math.inf
    bad_v[2, 0] = -math.inf
    gap.add(bad_p, bad_v)
    assert gap.value() == pytest.approx(gap_of(p, v))


def test_of_pure_noise_the_gap_does_not_depend_on_the_number_of_rows() -> None:
    def mean_gap(rows: int) -> float:
        values = [gap_of(noise(rows, 16, seed=s), noise(rows, 4, seed=s + 999)) for s in range(30)]
        return sum(value or 0.0 for value in values) / len(values)

    assert mean_gap(2 * 16) == pytest.approx(4.0, rel=0.1)
    assert mean_gap(20 * 16) == pytest.approx(4.0, rel=0.1)


def test_too_few_rows_say_nothing_until_later_epochs_bring_more() -> None:
    layer = nn.Linear(40, 3).double()
    sampler = HealthSampler(FEATURES, layer)
    found: list[float | None] = []
    for epoch in range(5):
        x = noise(30, 40, seed=epoch)
        sampler.observe(layer(x), x)
        sampler.observe_gradient(noise(30, 3, seed=50 + epoch) / 30)
        found.append(sampler.close().expressivity_gap)
    assert [value is None for value in found] == [True, True, False, False, False]
    assert found[2:] == [pytest.approx(3.0, rel=0.6)] * 3


def test_the_past_fades_once_there_are_rows_enough() -> None:
    gap, p = ExpressivityGap(), noise(400, 4)
    gap.add(p.unsqueeze(1), 100 * noise(400, 1, seed=1))
    gap.fade()
    for seed in range(2, 6):
        gap.add(p.unsqueeze(1), noise(400, 1, seed=seed))
        gap.fade()
    value = gap.value()
    weight_of_the_first = (PAST_ROWS_PER_COLUMN * 4 / 400) ** 4
    assert value is not None
    assert value == pytest.approx(1 + 100**2 * weight_of_the_first, rel=0.3)


CONVOLUTIONS: list[tuple[SiteKind, nn.Module, tuple[int, ...]]] = [
    (SiteKind.CHANNELS_1D, nn.Conv1d(2, 4, 3), (6, 2, 30)),
    (SiteKind.CHANNELS_1D, nn.Conv1d(2, 4, 4, padding="same", dilation=2), (6, 2, 30)),
    (SiteKind.CHANNELS_1D, nn.Conv1d(2, 4, 3, padding=2, padding_mode="circular"), (6, 2, 30)),
    (SiteKind.CHANNELS_2D, nn.Conv2d(2, 4, 3, padding=1), (4, 2, 9, 7)),
    (SiteKind.CHANNELS_2D, nn.Conv2d(2, 4, (3, 2), stride=(2, 1), bias=False), (4, 2, 9, 12)),
    (SiteKind.CHANNELS_2D, nn.Conv2d(4, 8, 3, padding=(2, 0), groups=4), (4, 4, 9, 12)),
    (SiteKind.CHANNELS_2D, nn.Conv2d(4, 4, 3, padding=1, groups=2, stride=2), (9, 4, 9, 12)),
    (SiteKind.CHANNELS_2D, nn.Conv2d(2, 4, 3, padding=2, padding_mode="reflect"), (4, 2, 6, 6)),
    (SiteKind.CHANNELS_2D, nn.Conv2d(2, 4, 3, padding=2, padding_mode="replicate"), (4, 2, 6, 6)),
    (SiteKind.CHANNELS_2D, nn.Conv2d(2, 4, 3, padding="valid", dilation=(2, 1)), (4, 2, 9, 9)),
    (SiteKind.CHANNELS_3D, nn.Conv3d(1, 3, (1, 2, 3), padding=(0, 1, 1)), (2, 1, 5, 5, 6)),
]


@pytest.mark.parametrize(("kind", "layer", "shape"), CONVOLUTIONS, ids=lambda part: str(part))
def test_a_convolution_follows_what_other_weights_of_it_could_do_and_nothing_else(
    kind: SiteKind, layer: nn.Module, shape: tuple[int, ...]
) -> None:
    layer = copy.deepcopy(layer).double()
    other = copy.deepcopy(layer)
    with torch.no_grad():
        for index, weight in enumerate(other.parameters()):
            weight.copy_(noise(*weight.shape, seed=index))
    xs = [noise(*shape, seed=step) for step in range(6)]
    with torch.no_grad():
        can = health_of(layer, kind, [(x, other(x)) for x in xs])
        # Noise; then a little of it beside what can be followed.
        cannot = health_of(layer, kind, [(x, noise(*layer(x).shape)) for x in xs])
        mixed = health_of(layer, kind, [(x, other(x) + 0.1 * noise(*layer(x).shape)) for x in xs])
    assert share(can) < 1e-9
    assert 0.8 < share(cannot) < 1.25
    assert 1e-4 < share(mixed) < 0.1


def test_linear_layers_follow_linear_changes_of_tokens_too() -> None:
    layer, other = nn.Linear(5, 3, bias=False).double(), nn.Linear(5, 3, bias=False).double()
    with torch.no_grad():
        for shape in [(50, 5), (4, 30, 5), (3, 4, 20, 5)]:
            x = noise(*shape)
            assert share(health_of(layer, FEATURES, [(x, other(x))])) < 1e-9
            # Without a bias a constant cannot be followed, nor can a product.
            assert share(health_of(layer, FEATURES, [(x, torch.ones_like(other(x)))])) > 0.5
            assert share(health_of(layer, FEATURES, [(x, x[..., :3] * x[..., 1:4])])) > 0.5


def test_a_chunk_has_a_gap_of_its_own_features() -> None:
    layer = nn.Linear(5, 8).double()
    x = noise(50, 5)
    with torch.no_grad():
        g = torch.cat([layer(x)[:, :4], noise(50, 4)], dim=1)
        parts: list[Health] = []
        for part in (slice(0, 4), slice(4, 8)):
            sampler = HealthSampler(FEATURES, layer)
            sampler.observe(layer(x)[:, part], x)
            sampler.observe_gradient(g[:, part])
            parts.append(sampler.close())
    assert share(parts[0]) < 1e-9
    assert share(parts[1]) > 0.5


@pytest.mark.parametrize(
    ("layer", "kind", "inputs", "features"),
    [
        (nn.LayerNorm(4), FEATURES, (300, 4), 4),
        (nn.Identity(), FEATURES, (300, 4), 4),
        (nn.Linear(MAX_COLUMNS, 2), FEATURES, (300, MAX_COLUMNS), 2),
        (nn.Conv2d(120, 2, 3), SiteKind.CHANNELS_2D, (2, 120, 14, 14), 2),
        (nn.Conv2d(4, 4, 1, groups=2), SiteKind.CHANNELS_2D, (2, 4, 14, 14), 2),
    ],
    ids=["norm", "unknown", "wide", "wide patches", "part of a grouped convolution"],
)
def test_other_layers_have_a_gradient_norm_but_no_gap(
    layer: nn.Module, kind: SiteKind, inputs: tuple[int, ...], features: int
) -> None:
    x = noise(*inputs).float()
    with torch.no_grad():
        g = layer(x)[:, :features]
        health = health_of(layer, kind, [(x, g)], features=features)
    assert health.expressivity_gap is None
    assert health.gradient_norm is not None


def test_inputs_that_do_not_belong_to_the_output_give_no_gap() -> None:
    layer = nn.Linear(5, 3).double()
    sampler = HealthSampler(FEATURES, layer)
    h = noise(40, 3)
    for x in (noise(40, 6), noise(20, 5), noise(5), None):
        sampler.observe(h, x)
        sampler.observe_gradient(h)
    health = sampler.close()
    assert health.expressivity_gap is None
    assert health.gradient_norm is not None


class Branches(nn.Module):
    """Parallel branches whose outputs add up, so that the loss pulls at all of them alike."""

    def __init__(self, narrow: int) -> None:
        super().__init__()
        widths = [6 if index == narrow else 48 for index in range(4)]
        self.below = nn.ModuleList(nn.Linear(20, width) for width in widths)
        self.sites = nn.ModuleList(nn.Linear(width, 10) for width in widths)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        parts = zip(self.below, self.sites, strict=True)
        return sum((site(torch.relu(below(x))) for below, site in parts), torch.zeros(()))


@pytest.mark.parametrize("narrow", range(4))
@pytest.mark.parametrize("seed", range(3))
def test_a_planted_bottleneck_has_the_largest_gap(narrow: int, seed: int) -> None:
    torch.manual_seed(seed)
    model, teacher = (
        Branches(narrow),
        nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 10)),
    )
    samplers = [HealthSampler(FEATURES, site) for site in model.sites]

    def watch(sampler: HealthSampler, site: nn.Module) -> None:
        def look(_site: nn.Module, args: tuple[Tensor], h: Tensor) -> None:
            sampler.observe(h, args[0])
            h.register_hook(sampler.observe_gradient)

        site.register_forward_hook(look)

    for sampler, site in zip(samplers, model.sites, strict=True):
        watch(sampler, site)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(8):
        x = torch.randn(64, 20)
        loss = nn.functional.cross_entropy(model(x), teacher(x).argmax(dim=1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    health = [sampler.close() for sampler in samplers]
    gaps = [part.expressivity_gap or 0.0 for part in health]
    assert gaps.index(max(gaps)) == narrow
    # No other number finds it: the pull is the same at every branch.
    assert len({part.gradient_norm for part in health}) == 1
