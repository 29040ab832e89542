"""Learning rates rise anew after a graft, for the length of steps only."""

import pytest
import torch

from esper.contracts import ConfigError
from esper.tamiyo.warmup import Warmup


def optimizer_of(rates: tuple[float, ...]) -> torch.optim.Optimizer:
    """Return plain SGD with one parameter at 0 for each rate, whose gradient is 1 for ever."""
    groups: list[dict[str, object]] = []
    for rate in rates:
        parameter = torch.nn.Parameter(torch.zeros(()))
        parameter.grad = torch.ones(())
        groups.append({"params": [parameter], "lr": rate})
    return torch.optim.SGD(groups)


def moved_by_step(optimizer: torch.optim.Optimizer) -> list[float]:
    """Return how far one step moves each parameter."""
    parameters = [group["params"][0] for group in optimizer.param_groups]
    before = [p.item() for p in parameters]
    optimizer.step()  # pyright: ignore[reportUnknownMemberType]
    return [b - p.item() for b, p in zip(before, parameters, strict=True)]


def epoch(warmup: Warmup, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    """Return how far each step of an epoch moves the first parameter."""
    moved = [moved_by_step(optimizer)[0] for _ in range(steps)]
    warmup.end_epoch()
    return moved


def test_rates_rise_step_by_step_over_the_wanted_share_of_the_epochs() -> None:
    optimizer = optimizer_of((1.0,))
    warmup = Warmup(optimizer, share_of_run=0.2, epochs=10)
    assert epoch(warmup, optimizer, 4) == [1.0] * 4
    warmup.begin()
    found = [epoch(warmup, optimizer, 4) for _ in range(3)]
    assert found[0] == pytest.approx([0.125, 0.25, 0.375, 0.5], abs=1e-5)
    assert found[1] == pytest.approx([0.625, 0.75, 0.875, 1.0], abs=1e-5)
    assert found[2] == pytest.approx([1.0] * 4, abs=1e-5)


def test_between_steps_every_group_has_the_rate_that_its_owner_gave_it() -> None:
    optimizer = optimizer_of((1.0, 0.5))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.1)
    warmup = Warmup(optimizer, share_of_run=0.5, epochs=4)
    epoch(warmup, optimizer, 2)
    warmup.begin()
    assert moved_by_step(optimizer) == pytest.approx([0.25, 0.125])
    assert [group["lr"] for group in optimizer.param_groups] == [1.0, 0.5]
    scheduler.step()
    assert moved_by_step(optimizer) == pytest.approx([0.05, 0.025], abs=1e-6)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.05]


def test_an_epoch_with_fewer_steps_than_the_last_one_does_not_hold_the_rise_up() -> None:
    optimizer = optimizer_of((1.0,))
    warmup = Warmup(optimizer, share_of_run=1.0, epochs=3)
    epoch(warmup, optimizer, 10)
    warmup.begin()
    assert epoch(warmup, optimizer, 2) == pytest.approx([1 / 30, 2 / 30], abs=1e-5)
    assert epoch(warmup, optimizer, 2) == pytest.approx([1 / 2, 2 / 3], abs=1e-5)
    assert epoch(warmup, optimizer, 4) == pytest.approx([5 / 6, 1.0, 1.0, 1.0], abs=1e-5)
    assert warmup.rise is None


def test_what_was_saved_goes_on_at_the_very_next_step() -> None:
    first = optimizer_of((1.0,))
    warmup = Warmup(first, share_of_run=0.5, epochs=4)
    epoch(warmup, first, 4)
    warmup.begin()
    moved_by_step(first)
    second = optimizer_of((1.0,))
    again = Warmup(second, share_of_run=0.5, epochs=4)
    again.load_state_dict(warmup.state_dict())
    assert moved_by_step(second) == pytest.approx(moved_by_step(first))
    assert again.state_dict() == warmup.state_dict()


def test_a_share_of_zero_never_warms_up() -> None:
    optimizer = optimizer_of((1.0,))
    warmup = Warmup(optimizer, share_of_run=0.0, epochs=10)
    warmup.begin()
    assert warmup.rise is None
    assert moved_by_step(optimizer) == [1.0]


def test_a_closed_warm_up_leaves_the_optimizer_alone() -> None:
    optimizer = optimizer_of((1.0,))
    warmup = Warmup(optimizer, share_of_run=0.5, epochs=4)
    warmup.begin()
    warmup.close()
    assert moved_by_step(optimizer) == [1.0]


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match=r"warm_up=.*expected a share of the epochs"):
        Warmup(optimizer_of((1.0,)), share_of_run=share, epochs=10)
