"""The verdict: a block stays only when it is measured to help."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.tamiyo import Evidence, Figures, judge


def evidence(loss: float, without: float | None, before: float | None) -> Evidence:
    return Evidence(
        with_block=Figures(loss=loss),
        without_block=Figures(loss=without) if without is not None else None,
        before=Figures(loss=before) if before is not None else None,
    )


def test_a_block_that_lowers_the_loss_on_both_yardsticks_stays() -> None:
    verdict = judge(evidence(0.5, without=0.8, before=0.7))
    assert verdict.keep
    assert "0.8000 without it" in verdict.reason


@pytest.mark.parametrize(("without", "before"), [(0.5, 0.9), (0.9, 0.5), (0.3, 0.3)])
def test_a_block_that_fails_one_yardstick_goes(without: float, before: float) -> None:
    verdict = judge(evidence(0.5, without=without, before=before))
    assert not verdict.keep
    assert "does not help" in verdict.reason


def test_a_gain_below_its_cost_is_no_gain() -> None:
    assert not judge(evidence(0.999, without=1.0, before=1.0)).keep


def test_a_loss_that_is_not_finite_is_never_kept() -> None:
    assert not judge(evidence(math.nan, without=math.nan, before=1.0)).keep
    assert not judge(evidence(math.inf, without=None, before=None)).keep


def test_without_anything_to_compare_with_nothing_is_kept() -> None:
    assert not judge(evidence(0.1, without=None, before=None)).keep


@given(*[st.floats(min_value=0.01, max_value=100)] * 3)
def test_what_is_kept_is_better_than_every_yardstick(
    loss: float, without: float, before: float
) -> None:
    verdict = judge(evidence(loss, without, before))
    assert verdict.keep == (loss <= 0.99 * without and loss <= 0.99 * before) or math.isclose(
        loss, 0.99 * min(without, before), rel_tol=1e-9
    )
