"""What is said before the first step."""

from types import SimpleNamespace
from typing import Any

import pytest
from policy_factory import kernel, seed, site

from esper.contracts import Candidate
from esper.tamiyo import Chance, Gap, Never, Plateau, Policy, RunConfig, Scripted
from esper.tamiyo.foreseeing import shorter_epochs, what_will_not_grow


def controller(policy: Policy) -> Any:
    bed = SimpleNamespace(
        sites=[site(0)], seeds=lambda: [seed(0)], num_parameters=lambda: 10, blueprints=()
    )
    return SimpleNamespace(policy=policy, bed=bed, kernels=[kernel(1)])


@pytest.mark.parametrize("policy", [Gap(), Gap(timing=Plateau()), Chance()])
def test_a_run_that_is_too_short_to_grow_is_told_so(policy: Policy) -> None:
    assert what_will_not_grow(controller(policy), 3) == (
        "nothing will grow in 3 epochs: after the first, 2 epochs left, too few to judge a new block "
        "(8 needed)"
    )
    assert what_will_not_grow(controller(policy), 8) is not None
    assert what_will_not_grow(controller(policy), 9) is None


@pytest.mark.parametrize("policy", [Never(), Scripted(script={})])
def test_a_policy_that_does_not_choose_needs_no_word(policy: Policy) -> None:
    assert what_will_not_grow(controller(policy), 3) is None


def test_a_script_of_what_is_not_at_hand_is_told_so() -> None:
    def grown(number: int) -> Candidate:
        return Candidate(
            seed_id=(0, 0),
            site="layer0",
            kernel_id=kernel(number).kernel_id,
            blueprint_name=f"block{number}",
            score=1.0,
            num_parameters=10,
        )

    assert what_will_not_grow(controller(Scripted(script={4: [grown(1)]})), 5) is None
    too_short = what_will_not_grow(controller(Scripted(script={4: [grown(1)]})), 4)
    assert too_short == "the script grows until epoch 5, and this run has 4 epochs"
    told = what_will_not_grow(controller(Scripted(script={4: [grown(1), grown(2)]})), 3)
    assert told is not None
    assert (
        "leaves out: block2 at layer layer0 in epoch 5; its run had a host of another width" in told
    )


def test_who_has_too_few_epochs_but_many_samples_is_told_how_to_have_more() -> None:
    instead = shorter_epochs(RunConfig(epochs=8), 45_000)
    assert instead == "--epochs 40 --epoch-samples 9000"
    told = what_will_not_grow(controller(Gap()), 8, instead=instead)
    assert told is not None
    assert told.endswith("(8 needed); --epochs 40 --epoch-samples 9000 makes more and shorter ones")
    assert shorter_epochs(RunConfig(epochs=8), 1000) is None
