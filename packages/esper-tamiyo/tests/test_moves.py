"""Where a seed goes next: the emergency stop, and what follows from its state."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from policy_factory import seed

from esper.contracts import LIFECYCLE, SeedState
from esper.tamiyo import EpochFigures
from esper.tamiyo.moves import GRAFTED, emergency, next_move

S = SeedState


def figures(losses: list[float]) -> list[EpochFigures]:
    return [EpochFigures(epoch=epoch, val_loss=loss) for epoch, loss in enumerate(losses)]


@pytest.mark.parametrize("state", sorted(GRAFTED))
@pytest.mark.parametrize(
    ("losses", "stops"),
    [
        ([2.0, 1.0, 1.4, 1.9], False),  # within half above the highest before the graft
        ([2.0, 1.0, 1.4, 3.1], True),
        ([0.010, 0.012, 0.011, 0.017], False),
        ([0.010, 0.012, 0.011, 0.019], True),
        ([-3.0, -2.0, -2.5, -0.9], True),
        ([2.0, 1.0, 1.4, math.inf], True),
        ([2.0, 1.0, 1.4, math.nan], True),
        ([math.nan, math.inf, 1.0, 5.0], True),
    ],
)
def test_a_loss_outside_its_band_rolls_the_block_back(
    state: SeedState, losses: list[float], stops: bool
) -> None:
    history = figures(losses)
    move = emergency(seed(0, state), history, history[-2])
    assert (move is not None) == stops
    if move is not None:
        assert move.target is S.ROLLED_BACK
        assert "loss" in move.reason


def test_only_the_last_epochs_before_the_graft_make_the_band() -> None:
    history = figures([9.0, 1.0, 1.0, 1.0, 1.0, 1.0, 2.0])
    assert emergency(seed(0, S.GRAFTING), history, history[-2]) is not None
    assert emergency(seed(0, S.GRAFTING), history[:1] + history[-2:], history[-2]) is None


@pytest.mark.parametrize("state", sorted(set(S) - GRAFTED))
def test_what_the_host_does_not_see_is_not_to_blame(state: SeedState) -> None:
    history = figures([1.0, 100.0])
    assert emergency(seed(0, state), history, history[0]) is None


@pytest.mark.parametrize("state", sorted(GRAFTED))
def test_a_block_grafted_when_the_loss_was_not_finite_is_not_to_blame(state: SeedState) -> None:
    history = figures([1.0, math.nan, math.nan])
    assert emergency(seed(0, state), history, history[0]) is not None
    assert emergency(seed(0, state), history, history[1]) is None


def test_a_training_loss_that_is_not_finite_is_one_too() -> None:
    history = [*figures([1.0]), EpochFigures(epoch=1, val_loss=1.0, train_loss=math.inf)]
    move = emergency(seed(0, SeedState.GRAFTING), history, history[0])
    assert move is not None
    assert move.reason == "the training loss is not finite"


def test_a_loaded_block_whose_past_is_unknown_is_stopped_by_what_is_not_finite_only() -> None:
    assert emergency(seed(0, S.GRAFTING), figures([1.0, 100.0]), None) is None
    assert emergency(seed(0, S.GRAFTING), figures([1.0, math.nan]), None) is not None


@given(
    state=st.sampled_from(S),
    ready=st.booleans(),
    epochs=st.integers(0, 100),
    failure=st.none() | st.just("overflow"),
    others=st.booleans(),
)
def test_every_move_is_one_that_the_lifecycle_allows(
    state: SeedState, ready: bool, epochs: int, failure: str | None, others: bool
) -> None:
    update = {"is_ready_for_transition": ready, "epochs_in_state": epochs, "failure": failure}
    status = seed(0, state).model_copy(update=update)
    move = next_move(status, others_await_verdict=others)
    if move is None:
        return
    assert move.target in LIFECYCLE[state].next
    assert move.reason
    if others and move.target is S.GRAFTING:
        raise AssertionError("two would be before their verdict at once")
