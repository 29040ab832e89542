"""Health: the three numbers against a plain NumPy reference."""
# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import math
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from kasmina_factory import cnn, mlp
from torch import nn

from esper.contracts import HealthSignal
from esper.kasmina import wrap
from esper.kasmina.health import ROWS_PER_SAMPLE, measure


def reference(rows: "np.ndarray[Any, Any]") -> tuple[float, float, float]:
    """Compute variance, dead ratio and correlation by the definitions, pair by pair."""
    columns = [rows[:, i] for i in range(rows.shape[1])]
    alive = [c for c in columns if c.max() != c.min()]
    pairs = [abs(np.corrcoef(a, b)[0, 1]) for a, b in combinations(alive, 2)]
    return (
        float(np.mean([c.var() for c in columns])),
        1 - len(alive) / len(columns),
        float(np.mean(pairs)) if pairs else 0.0,
    )


def numbers(signal: HealthSignal) -> tuple[float, float, float]:
    return signal.activation_variance, signal.dead_neuron_ratio, signal.avg_correlation


@given(
    rows=arrays.arrays(
        np.float64,
        st.tuples(st.integers(2, 12), st.integers(1, 5)),
        elements=st.integers(-50, 50).map(lambda number: number / 4),
    )
)
def test_health_equals_the_plain_definition(rows: "np.ndarray[Any, Any]") -> None:
    health = measure(torch.from_numpy(rows))
    found = (health.activation_variance, health.dead_neuron_ratio, health.avg_correlation)
    assert found == pytest.approx(reference(rows), rel=1e-9, abs=1e-9)


def linear(model: nn.Module, x: torch.Tensor) -> "np.ndarray[Any, Any]":
    """Compute the first layer's output without calling it."""
    layer = model.get_submodule("0")
    with torch.no_grad():
        output = nn.functional.linear(x, layer.get_parameter("weight"), layer.get_parameter("bias"))
    return output.reshape(-1, output.shape[-1]).double().numpy()


def test_health_is_that_of_the_first_rows_of_every_nth_training_forward() -> None:
    model = mlp().train()
    bed = wrap(model, sample_every_steps=3)
    with torch.no_grad():
        model.get_submodule("0").get_parameter("weight")[2].zero_()
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(300, 6, generator=generator) for _ in range(7)]
    for x in batches:
        model(x)
    rows = np.concatenate([linear(model, x)[:ROWS_PER_SAMPLE] for x in batches[::3]])
    signal = bed.end_epoch(4)[0]
    assert (signal.layer_id, signal.seed_id, signal.chunk_id, signal.epoch) == (0, 0, 0, 4)
    assert signal.dead_neuron_ratio == 1 / 8
    assert numbers(signal) == pytest.approx(reference(rows), rel=1e-6)


def test_channels_are_features_and_positions_are_rows() -> None:
    model = cnn().train()
    bed = wrap(model, sample_every_steps=1)
    x = torch.randn(16, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    model(x)
    with torch.no_grad():
        features = nn.functional.conv2d(
            x,
            model.get_submodule("0").get_parameter("weight"),
            model.get_submodule("0").get_parameter("bias"),
            padding=1,
        )
    rows = features.double().numpy().transpose(0, 2, 3, 1).reshape(-1, 4)[:ROWS_PER_SAMPLE]
    assert numbers(bed.end_epoch(0)[0]) == pytest.approx(reference(rows), rel=1e-6)


def test_sequences_are_rows_too() -> None:
    model = mlp().train()
    bed = wrap(model, sample_every_steps=1)
    x = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(0))
    model(x)
    expected = reference(linear(model, x))
    assert numbers(bed.end_epoch(0)[0]) == pytest.approx(expected, rel=1e-6)


def test_evaluation_is_not_sampled_and_an_epoch_starts_anew() -> None:
    model = mlp()
    bed = wrap(model, sample_every_steps=1)
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    model.eval()(x)
    assert numbers(bed.end_epoch(0)[0]) == (0.0, 0.0, 0.0)
    model.train()(x)
    assert bed.end_epoch(1)[0].activation_variance > 0
    assert numbers(bed.end_epoch(2)[0]) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_activations_that_are_not_finite_are_reported_not_fatal(bad: float) -> None:
    model = mlp().train()
    bed = wrap(model, sample_every_steps=1)
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    x[1, 1] = bad
    model(x)
    signal = bed.end_epoch(0)[0]
    assert not math.isfinite(signal.activation_variance)
    assert HealthSignal.model_validate_json(signal.model_dump_json()).dead_neuron_ratio == 0.0


def test_extreme_scales_neither_overflow_nor_vanish() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(50, 4, generator=generator, dtype=torch.float64)
    expected = measure(rows).avg_correlation
    scales = torch.tensor([1e-200, 1.0, 1e100, 1e150], dtype=torch.float64)
    assert measure(rows * scales).avg_correlation == pytest.approx(expected)


def test_wide_sites_stay_affordable() -> None:
    rows = torch.randn(64, 3000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    health = measure(rows)
    assert 0.0 < health.avg_correlation < 0.2
