"""The verdict: a block stays only when it is measured to help."""

import math
from dataclasses import replace
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper.tamiyo import Evidence, Figures, judge
from esper.tamiyo.verdict import MIN_GAIN, MIN_PAIRS, gain_interval


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
    verdict = judge(evidence(0.999, without=1.0, before=1.0))
    assert not verdict.keep
    assert verdict.reason == "it helps too little: loss 0.9990 with it, 1.0000 without it"


def test_a_loss_that_is_not_finite_is_never_kept() -> None:
    assert not judge(evidence(math.nan, without=math.nan, before=1.0)).keep
    assert not judge(evidence(math.inf, without=None, before=None)).keep
    pairs = _pairs([0.1] * 40)
    for loss in (math.nan, math.inf):
        broken = replace(pairs, with_block=replace(pairs.with_block, loss=loss))
        assert not judge(broken, is_last=False).keep
        assert not judge(broken, min_gain=0.0).keep


def test_without_anything_to_compare_with_nothing_is_kept() -> None:
    assert not judge(evidence(0.1, without=None, before=None)).keep


@given(*[st.floats(min_value=0.01, max_value=100)] * 3)
def test_what_is_kept_is_better_than_every_yardstick(
    loss: float, without: float, before: float
) -> None:
    verdict = judge(evidence(loss, without, before))
    most = (1 - MIN_GAIN) * min(without, before)
    assert verdict.keep == (loss <= most) or math.isclose(loss, most, rel_tol=1e-9)


def _pairs(gains: list[float]) -> Evidence:
    without = [2.0 + number % 3 for number in range(len(gains))]
    with_block = [loss - gain for loss, gain in zip(without, gains, strict=True)]
    return Evidence(
        before=None,
        with_block=Figures(loss=fmean(with_block), losses=with_block),
        without_block=Figures(loss=fmean(without), losses=without),
    )


def test_a_gain_beyond_noise_is_kept_with_its_interval() -> None:
    verdict = judge(_pairs([0.2 + 0.1 * (number % 2) for number in range(40)]))
    assert verdict.keep
    assert 0.2 < verdict.numbers["gain_low"] < 0.25 < verdict.numbers["gain_high"] < 0.3


def test_a_gain_within_noise_is_not_kept_however_large_its_mean() -> None:
    noisy = _pairs([3.0 if number % 2 else -2.0 for number in range(40)])
    verdict = judge(noisy)
    assert not verdict.keep
    assert "not beyond noise" in verdict.reason
    assert "40 pairs" in verdict.reason
    assert judge(noisy, min_gain=0.0).keep  # what had convinced needs no second gain


def test_a_young_block_goes_only_if_it_is_worse_beyond_noise() -> None:
    level = _pairs([0.2 if number % 2 else -0.25 for number in range(40)])
    assert level.without_block is not None
    assert level.with_block.loss > level.without_block.loss
    trial = judge(level, is_last=False)
    assert trial.keep
    assert "it stays on trial" in trial.reason
    assert not judge(level).keep
    worse = _pairs([-0.2 - 0.1 * (number % 2) for number in range(40)])
    assert not judge(worse, is_last=False).keep
    lower = replace(
        worse, with_block=replace(worse.with_block, loss=0.1)
    )  # not the mean of its pairs
    assert not judge(lower, is_last=False).keep
    same = _pairs([0.0] * 40)
    assert judge(same, is_last=False).keep
    assert judge(same, min_gain=0.0).keep
    assert not judge(same).keep
    assert not judge(evidence(0.5, without=0.49, before=0.9), is_last=False).keep


def test_what_convinced_goes_at_the_last_verdict_only_if_it_is_worse_beyond_noise() -> None:
    level = _pairs([0.2 if number % 2 else -0.25 for number in range(40)])
    verdict = judge(level, min_gain=0.0)
    assert verdict.keep
    assert verdict.reason.startswith(
        "it is not worse beyond noise: loss 3.0000 with it, 2.9750 without it"
    )
    worse = _pairs([-0.2 - 0.1 * (number % 2) for number in range(40)])
    assert not judge(worse, min_gain=0.0).keep
    assert not judge(evidence(0.5, without=0.49, before=0.9), min_gain=0.0).keep
    spoiled = replace(level, before=Figures(loss=0.9 * level.with_block.loss))
    assert not judge(spoiled, min_gain=0.0).keep


def test_the_model_before_is_compared_with_what_the_loop_measures_now() -> None:
    """Its norms' statistics are those of training; the block's own figures have them taken anew."""
    found = evidence(0.5, without=0.6, before=0.7)
    assert judge(replace(found, now=Figures(loss=0.65))).keep
    lagging = judge(replace(found, now=Figures(loss=0.8)))
    assert not lagging.keep
    assert lagging.reason == "it does not help: loss 0.8000 with it, 0.7000 before it"
    kept = judge(replace(found, now=Figures(loss=0.65)))
    assert (
        "0.5000 with it, 0.6000 without it, 0.6500 at the end of the epoch, 0.7000 before"
        in kept.reason
    )


@pytest.mark.parametrize(
    ("count", "losses"), [(1, "1 loss"), (MIN_PAIRS - 1, f"{MIN_PAIRS - 1} losses")]
)
def test_too_few_pairs_say_nothing_about_noise(count: int, losses: str) -> None:
    verdict = judge(_pairs([1.0] * count))
    assert verdict.keep
    assert "gain_low" not in verdict.numbers
    assert f"{losses}, too few to tell a gain from noise" in verdict.reason


def test_losses_that_are_not_finite_give_no_interval() -> None:
    assert gain_interval(_pairs([math.inf] * 20)) is None
    lone = Evidence(
        before=None, with_block=Figures(loss=1.0, losses=[1.0] * 20), without_block=None
    )
    assert gain_interval(lone) is None
