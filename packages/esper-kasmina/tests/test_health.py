"""Health: what features do and how the loss pulls at them, against plain NumPy in float64."""
# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import math
import sys
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from kasmina_factory import mlp, train
from torch import Tensor, nn

from esper.contracts import HealthSignal, SiteKind
from esper.kasmina import wrap
from esper.kasmina.health import LARGE_BATCH, SAMPLES_KEPT, Health, HealthSampler
from esper.kasmina.rows import ROWS_PER_SAMPLE

type Rows = "np.ndarray[Any, Any]"


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sampler(kind: SiteKind = SiteKind.FEATURES, layer: nn.Module | None = None) -> HealthSampler:
    return HealthSampler(kind, layer or nn.Identity())


def health_of(*samples: Tensor, kind: SiteKind = SiteKind.FEATURES) -> Health:
    found = sampler(kind)
    for h in samples:
        found.observe(h, None)
    return found.close()


def reference(rows: Rows) -> tuple[float, float, float]:
    """Compute variance, dead ratio and correlation by the definitions, pair by pair."""
    columns = [rows[:, i] for i in range(rows.shape[1])]
    alive = [c for c in columns if c.max() != c.min()]
    pairs = [abs(np.corrcoef(a, b)[0, 1]) for a, b in combinations(alive, 2)]
    return (
        float(np.mean([c.var() for c in columns])),
        1 - len(alive) / len(columns),
        float(np.mean(pairs)) if pairs else 0.0,
    )


def numbers(health: Health) -> tuple[float, float, float]:
    return health.activation_variance, health.dead_neuron_ratio, health.avg_correlation


@given(
    rows=arrays.arrays(
        np.float64,
        st.tuples(st.integers(2, 24), st.integers(1, 5)),
        elements=st.integers(-50, 50).map(lambda number: number / 4),
    ),
    cut=st.integers(1, 23),
)
def test_health_of_several_samples_equals_the_plain_definition(rows: Rows, cut: int) -> None:
    samples = [torch.from_numpy(part) for part in (rows[:cut], rows[cut:]) if len(part)]
    health = health_of(*samples)
    assert numbers(health) == pytest.approx(reference(rows), rel=1e-9, abs=1e-9)
    assert health.num_rows == len(rows)


def test_sums_of_many_samples_of_large_batches_equal_the_plain_definition() -> None:
    # As many as are kept are turned into sums at once; here twice, and a rest.
    found, size = sampler(), LARGE_BATCH
    batches = [noise(size, 3, seed=i) * 5 + 100 * i for i in range(2 * SAMPLES_KEPT + 3)]
    seen: list[Tensor] = []
    for batch in batches:
        found.observe(batch, None)
        seen.append(found.state_dict()["samples"][-1][0])
    health = found.close()
    assert health.num_rows == len(batches) * ROWS_PER_SAMPLE
    assert numbers(health) == pytest.approx(reference(torch.cat(seen).numpy()), rel=1e-9)


def test_of_small_batches_the_latest_samples_count() -> None:
    batches = [noise(16, 3, seed=i) + i for i in range(SAMPLES_KEPT + 5)]
    rows = torch.cat(batches[-SAMPLES_KEPT:]).numpy()
    assert numbers(health_of(*batches)) == pytest.approx(reference(rows), rel=1e-9)


def test_a_sample_is_of_distinct_rows_from_all_over_the_batch_and_the_next_of_others() -> None:
    found = sampler()
    batch = torch.arange(1000.0).unsqueeze(1)
    chosen: list[set[float]] = []
    for _ in range(2):
        found.observe(batch, None)
        rows = found.state_dict()["samples"][-1][0]
        chosen.append(set(rows.flatten().tolist()))
    assert [len(rows) for rows in chosen] == [ROWS_PER_SAMPLE] * 2
    assert chosen[0] != chosen[1]
    assert min(chosen[0]) < 100
    assert max(chosen[0]) > 900


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        (SiteKind.CHANNELS_1D, (2, 4, 9)),
        (SiteKind.CHANNELS_2D, (3, 4, 5, 3)),
        (SiteKind.CHANNELS_3D, (1, 4, 3, 3, 2)),
    ],
)
def test_channels_are_features_and_positions_are_rows(
    kind: SiteKind, shape: tuple[int, ...]
) -> None:
    h = noise(*shape)
    rows = h.numpy().reshape(shape[0], 4, -1).transpose(0, 2, 1).reshape(-1, 4)
    assert numbers(health_of(h, kind=kind)) == pytest.approx(reference(rows), rel=1e-9)
    assert health_of(h[0], kind=kind).num_rows == math.prod(shape[2:])  # without a batch


def test_tokens_are_rows() -> None:
    h = noise(4, 5, 6)
    found = health_of(h, kind=SiteKind.SEQUENCE)
    assert numbers(found) == pytest.approx(reference(h.reshape(-1, 6).numpy()), rel=1e-9)


def test_an_epoch_starts_anew_and_nothing_seen_says_nothing() -> None:
    found = sampler()
    assert found.close() == Health()
    found.observe(noise(4, 3), None)
    assert found.close().num_rows == 4
    assert found.close() == Health()
    found.observe(noise(0, 3), None)
    assert found.close() == Health()


def test_what_was_observed_may_be_overwritten() -> None:
    found, h, g = sampler(), noise(4, 3), noise(4, 3, seed=1)
    expected = math.sqrt(float(g.square().sum() * 4))
    variance = reference(h.numpy())[0]
    found.observe(h, None)
    h.zero_()
    found.observe_gradient(g)
    g.zero_()
    health = found.close()
    assert health.activation_variance == pytest.approx(variance)
    assert health.gradient_norm == pytest.approx(expected)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_activations_that_are_not_finite_are_reported_not_fatal(bad: float) -> None:
    h = noise(8, 4)
    h[1, 1] = bad
    health = health_of(h, noise(8, 4, seed=1))
    rows = torch.cat([h, noise(8, 4, seed=1)])[:, [0, 2, 3]].numpy()
    assert not math.isfinite(health.activation_variance)
    assert health.dead_neuron_ratio == 0.0
    assert health.avg_correlation == pytest.approx(reference(rows)[2])


def test_a_signal_of_activations_that_are_not_finite_survives_its_message() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    bed = wrap(model, sample_every_steps=1)
    bed.attach(optimizer)
    train(model, optimizer, 1)
    model(torch.full((4, 6), math.nan)).sum().backward()
    signal = bed.end_epoch(0)[0]
    assert math.isnan(signal.activation_variance)
    read = HealthSignal.model_validate_json(signal.model_dump_json())
    assert read.dead_neuron_ratio == 0.0
    assert read.gradient_norm is None


def test_extreme_scales_neither_overflow_nor_vanish() -> None:
    rows = noise(50, 4)
    expected = health_of(rows).avg_correlation
    scales = torch.tensor([1e-38, 1.0, 1e20, 1e38], dtype=torch.float64)
    assert health_of(rows * scales).avg_correlation == pytest.approx(expected)


def test_wide_sites_stay_affordable() -> None:
    health = health_of(noise(64, 3000))
    assert 0.0 < health.avg_correlation < 0.2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_sums_are_taken_in_double_precision(dtype: torch.dtype) -> None:
    h = (noise(40, 3) + 100).to(dtype)
    assert numbers(health_of(h)) == pytest.approx(reference(h.double().numpy()), rel=1e-9)


def pull(batch: Tensor, layer: nn.Module, kind: SiteKind = SiteKind.FEATURES) -> float:
    """Return the gradient norm at `layer`'s output for a loss that is a mean over the batch."""
    found = HealthSampler(kind, layer)
    h = layer(batch)
    found.observe(h, batch)
    h.register_hook(found.observe_gradient)
    h.square().flatten(1).sum(dim=1).mean().backward()
    norm = found.close().gradient_norm
    assert norm is not None
    return norm


def test_the_gradient_norm_is_that_of_an_elements_own_loss() -> None:
    linear = nn.Linear(4, 3).double()
    x = noise(8, 4)
    norms = (2 * linear(x)).detach().norm(dim=1)
    assert pull(x, linear) == pytest.approx(float(norms.square().mean().sqrt()))
    conv = nn.Conv2d(2, 3, 3).double()
    x = noise(5, 2, 5, 5)
    norms = (2 * conv(x)).detach().flatten(1).norm(dim=1)
    found = pull(x, conv, SiteKind.CHANNELS_2D)
    assert found == pytest.approx(float(norms.square().mean().sqrt()))


@pytest.mark.parametrize("copies", [3, 40])
def test_the_gradient_norm_does_not_depend_on_the_size_of_the_batch(copies: int) -> None:
    layer = nn.Linear(4, 3).double()
    x = noise(8, 4)
    # Beyond 64 rows some of them are drawn: 40 copies of 8 rows agree up to the draw.
    found = pull(x.repeat(copies, 1), layer)
    assert found == pytest.approx(pull(x, layer), rel=1e-9 if copies == 3 else 0.1)


def test_gradients_that_are_not_finite_or_never_come_are_left_out() -> None:
    found = sampler()
    h, g = noise(6, 3), noise(6, 3, seed=1)
    found.observe(h, None)
    assert found.close().gradient_norm is None
    found.observe_gradient(g)  # of features that are closed already
    found.observe(h, None)
    found.observe_gradient(torch.full_like(g, math.inf))
    assert found.close().gradient_norm is None
    found.observe(h, None)
    found.observe(h, None)
    found.observe_gradient(g)
    found.observe_gradient(100 * g)  # once per sampled step
    expected = math.sqrt(float(g.square().sum() * 6))
    assert found.close().gradient_norm == pytest.approx(expected)


def test_a_sampler_goes_on_from_its_state() -> None:
    layer = nn.Linear(4, 3).double()

    def look(found: HealthSampler, step: int) -> None:
        x = noise(700, 4, seed=step)
        found.observe(layer(x), x)
        found.observe_gradient(noise(700, 3, seed=100 + step))

    whole, first = (HealthSampler(SiteKind.FEATURES, layer) for _ in range(2))
    for step in range(SAMPLES_KEPT + 3):
        look(whole, step)
        look(first, step)
    second = HealthSampler(SiteKind.FEATURES, layer)
    second.load_state_dict(first.state_dict())
    for step in range(20, 23):
        look(whole, step)
        look(second, step)
    assert second.close() == whole.close()
    assert second.state_dict() == {**whole.state_dict(), "gap": second.state_dict()["gap"]}


def test_a_sampler_that_saw_nothing_is_tiny_and_draws_no_random_numbers() -> None:
    found = sampler()
    assert not hasattr(found, "__dict__")
    slots = [getattr(found, name) for name in HealthSampler.__slots__]
    assert sys.getsizeof(found) + sum(sys.getsizeof(v) for v in slots if v == []) < 512
    before = torch.get_rng_state()
    found.observe(noise(1000, 3), None)
    found.close()
    assert torch.equal(torch.get_rng_state(), before)
