"""Decisions as a person reads them."""

import pytest

from esper.contracts import Action, AdaptationSignal
from esper.tamiyo.folding import fold


def waits(*reasons: str, begin: int = 0) -> list[AdaptationSignal]:
    return [
        AdaptationSignal(epoch=epoch, policy="gap", action=Action.WAIT, reason=reason)
        for epoch, reason in enumerate(reasons, start=begin)
    ]


def told(decisions: list[AdaptationSignal]) -> list[tuple[str, str]]:
    return [(each.epochs, each.reason) for each in fold(decisions)]


def test_equal_waits_are_one() -> None:
    assert told(waits("a", "a", "b")) == [("1\u20132", "a"), ("3", "b")]


def test_waits_that_differ_in_numbers_are_one_with_their_range() -> None:
    reasons = (f"{left} epochs left (8 needed), {left / 4:.1%}" for left in (4, 3, 2))
    assert told(waits(*reasons)) == [("1\u20133", "2 to 4 epochs left (8 needed), 50.0 to 100.0%")]


def test_waits_that_alternate_are_one() -> None:
    reasons = ("due, but too costly: 0.5", "not yet") * 5
    assert told(waits(*reasons, "it is over")) == [
        ("1\u201310", "due, but too costly: 0.5; in turn with: not yet"),
        ("11", "it is over"),
    ]


def test_one_reason_after_the_other_is_no_alternation() -> None:
    assert len(told(waits("a", "b", "c", "a"))) == 4
    assert len(told(waits("a", "a", "b", "b"))) == 2


@pytest.mark.parametrize("reason", ["layer {}: gate is GRAFTING", "fc{} is narrow", "v1.{}.x"])
def test_digits_in_names_are_no_numbers(reason: str) -> None:
    assert len(told(waits(reason.format(1), reason.format(2)))) == 2


def test_a_sign_for_numbers_is_no_number() -> None:
    assert len(told(waits("wait # 3", "wait 1 3"))) == 2


def test_what_was_done_is_told_one_by_one() -> None:
    grow = [
        AdaptationSignal(epoch=epoch, policy="gap", action=Action.GERMINATE, reason="grow")
        for epoch in (1, 3)
    ]
    first, second, third = waits("a"), waits("a", begin=2), waits("a", begin=4)
    assert len(told([*first, grow[0], *second, grow[1], *third])) == 5
    assert told([]) == []
