"""What happens in a run: bounds of health signals, and rules between fields."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from esper.contracts import FieldReport, HealthSignal, KasminaCommand, SeedState

DIGEST = "0" * 64


def health(**changes: object) -> HealthSignal:
    fields: dict[str, object] = {
        "layer_id": 0,
        "seed_id": 0,
        "chunk_id": 0,
        "epoch": 0,
        "activation_variance": 1.0,
        "dead_neuron_ratio": 0.5,
        "avg_correlation": 0.0,
    }
    return HealthSignal.model_validate(fields | changes)


def test_health_signals_have_the_fields_of_the_founding_document() -> None:
    assert set(HealthSignal.model_fields) >= {
        "layer_id",
        "seed_id",
        "chunk_id",
        "epoch",
        "activation_variance",
        "dead_neuron_ratio",
        "avg_correlation",
        "is_ready_for_transition",
    }
    assert health().is_ready_for_transition is False


@pytest.mark.parametrize(
    ("field", "low", "high"), [("dead_neuron_ratio", 0.0, 1.0), ("avg_correlation", -1.0, 1.0)]
)
@given(value=st.floats())
def test_ratios_and_correlations_keep_their_bounds(
    field: str, low: float, high: float, value: float
) -> None:
    if low <= value <= high:
        assert getattr(health(**{field: value}), field) == value
    else:
        with pytest.raises(ValidationError, match=field):
            health(**{field: value})


@pytest.mark.parametrize("field", ["layer_id", "seed_id", "chunk_id", "epoch"])
def test_ids_and_epochs_are_not_negative(field: str) -> None:
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        health(**{field: -1})


@pytest.mark.parametrize("target", list(SeedState))
def test_a_command_names_a_kernel_exactly_when_it_germinates(target: SeedState) -> None:
    germinates = target is SeedState.GERMINATED
    given_kernel, missing_kernel = (
        {"seed_id": (0, 0), "target": target, "kernel_id": kernel, "epoch": 0, "reason": "test"}
        for kernel in (DIGEST, None)
    )
    legal, illegal = (
        (given_kernel, missing_kernel) if germinates else (missing_kernel, given_kernel)
    )
    assert KasminaCommand.model_validate(legal).target is target
    with pytest.raises(ValidationError, match="exactly when target is GERMINATED"):
        KasminaCommand.model_validate(illegal)


@pytest.mark.parametrize("outcome", list(SeedState))
def test_a_field_report_tells_of_an_end(outcome: SeedState) -> None:
    fields = {
        "run_id": "run",
        "seed_id": (0, 0),
        "site": "fc1",
        "kernel_id": DIGEST,
        "blueprint_id": DIGEST,
        "blueprint_name": "block",
        "outcome": outcome,
        "reason": "test",
        "epoch_started": 1,
        "epoch_ended": 2,
        "parameters_added": 0,
    }
    if outcome in {"FOSSILIZED", "CULLED", "CANCELLED", "ROLLED_BACK"}:
        assert FieldReport.model_validate(fields).outcome is outcome
    else:
        with pytest.raises(ValidationError, match=f"outcome {outcome}; expected one of FOSSIL"):
            FieldReport.model_validate(fields)
