"""What is said before the first step."""

from types import SimpleNamespace
from typing import Any

import pytest
from policy_factory import kernel, seed, site

from esper.tamiyo import Chance, Gap, Never, Plateau, Policy, Scripted
from esper.tamiyo.foreseeing import why_nothing_grows


def controller(policy: Policy) -> Any:
    bed = SimpleNamespace(
        sites=[site(0)], seeds=lambda: [seed(0)], num_parameters=lambda: 10, blueprints=()
    )
    return SimpleNamespace(policy=policy, bed=bed, kernels=[kernel(1)])


@pytest.mark.parametrize("policy", [Gap(), Gap(timing=Plateau()), Chance()])
def test_a_run_that_is_too_short_to_grow_is_told_so(policy: Policy) -> None:
    assert why_nothing_grows(controller(policy), 3) == (
        "nothing will grow in 3 epochs: after the first, 2 epochs left, too few to judge a new block "
        "(8 needed)"
    )
    assert why_nothing_grows(controller(policy), 8) is not None
    assert why_nothing_grows(controller(policy), 9) is None


@pytest.mark.parametrize("policy", [Never(), Scripted(script={})])
def test_a_policy_that_does_not_choose_needs_no_word(policy: Policy) -> None:
    assert why_nothing_grows(controller(policy), 3) is None
