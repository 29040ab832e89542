"""The heuristic: when it grows, where, and what it says about it."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from policy_factory import FALLING, STALLED, culled, kernel, observation, seed

from esper.contracts import KernelSignature, SeedState, SiteKind
from esper.tamiyo import Heuristic


def test_it_waits_while_the_loss_still_falls() -> None:
    proposal = Heuristic().propose(observation(FALLING))
    assert proposal.chosen is None
    assert "still learning" in proposal.reason


def test_it_waits_until_it_has_seen_a_trend() -> None:
    proposal = Heuristic().propose(observation([1.0, 1.0]))
    assert proposal.chosen is None
    assert "watching" in proposal.reason


def test_it_grows_on_the_input_side_with_the_block_of_most_capacity_when_learning_stalls() -> None:
    proposal = Heuristic().propose(observation(STALLED))
    assert proposal.chosen is not None
    assert proposal.chosen.site == "layer0"
    assert proposal.chosen.blueprint_name == "block2"
    assert "layer layer0: block2 scores highest" in proposal.reason


def test_it_puts_every_candidate_with_its_numbers_on_record() -> None:
    proposal = Heuristic().propose(observation(STALLED))
    assert len(proposal.candidates) == 4
    assert all("position" in candidate.numbers for candidate in proposal.candidates)
    scores = [candidate.score for candidate in proposal.candidates]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("state", [SeedState.TRAINING, SeedState.GRAFTING, SeedState.FINE_TUNING])
def test_it_grows_one_block_at_a_time(state: SeedState) -> None:
    proposal = Heuristic().propose(observation(STALLED, seeds=[seed(0, state), seed(1)]))
    assert proposal.chosen is None
    assert "one block at a time" in proposal.reason


def test_it_does_not_grow_what_could_no_longer_be_judged() -> None:
    proposal = Heuristic().propose(observation(STALLED, epochs_left=3))
    assert proposal.chosen is None
    assert "3 epochs left" in proposal.reason


def test_what_failed_at_a_site_is_not_tried_there_again() -> None:
    proposal = Heuristic().propose(observation(STALLED, outcomes=[culled(0, 2)]))
    assert proposal.chosen is not None
    assert (proposal.chosen.site, proposal.chosen.blueprint_name) == ("layer0", "block1")


def test_it_says_so_when_nothing_is_left_to_try() -> None:
    everything = [culled(layer, number) for layer in (0, 1) for number in (1, 2)]
    proposal = Heuristic().propose(observation(STALLED, outcomes=everything))
    assert proposal.chosen is None
    assert "left to try" in proposal.reason


def test_a_kernel_for_another_signature_is_no_candidate() -> None:
    other = kernel(1).model_copy(
        update={"signature": KernelSignature(kind=SiteKind.FEATURES, features=7)}
    )
    assert Heuristic().propose(observation(STALLED, kernels=[other])).chosen is None


@given(
    losses=st.lists(st.floats(allow_nan=True, allow_infinity=True), min_size=1, max_size=12),
    states=st.lists(st.sampled_from(SeedState), min_size=2, max_size=2),
)
def test_it_proposes_only_dormant_seeds_whatever_it_sees(
    losses: list[float], states: list[SeedState]
) -> None:
    seeds = [seed(index, state) for index, state in enumerate(states)]
    seen = observation(losses, seeds=seeds)
    proposal = Heuristic().propose(seen)
    assert proposal.reason
    if proposal.chosen is not None:
        chosen = next(s for s in seeds if s.seed_id == proposal.chosen.seed_id)
        assert chosen.state is SeedState.DORMANT
        assert math.isfinite(proposal.chosen.score)
    assert Heuristic().propose(seen).chosen == proposal.chosen
