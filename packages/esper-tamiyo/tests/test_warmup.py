"""Learning rates rise anew after a graft, for the length of steps only."""

import pytest
import torch

from esper.contracts import ConfigError
from esper.tamiyo.warmup import Warmup


def optimizer_of(*rates: float) -> torch.optim.Optimizer:
    """Return plain SGD with one parameter at 0 for each rate, whose gradient is 1 for ever."""
    groups: list[dict[str, object]] = []
    for rate in rates:
        parameter = torch.nn.Parameter(torch.zeros(()))
        parameter.grad = torch.ones(())
        groups.append({"params": [parameter], "lr": rate})
    return torch.optim.SGD(groups)


class Run:
    """Counts steps, as a bed does."""

    def __init__(self, optimizer: torch.optim.Optimizer, *, before: int = 0) -> None:
        self.steps = before
        optimizer.register_step_post_hook(self._count)  # pyright: ignore[reportUnknownMemberType]

    def _count(self, *_: object) -> None:
        self.steps += 1


def warmup_of(
    optimizer: torch.optim.Optimizer, *, steps: int, epochs: int | None, before: int = 0
) -> Warmup:
    run = Run(optimizer, before=before)
    return Warmup(optimizer, steps=steps, epochs=epochs, step=lambda: run.steps)


def step(optimizer: torch.optim.Optimizer) -> list[float]:
    """Return how far one step moves each parameter."""
    parameters = [group["params"][0] for group in optimizer.param_groups]
    before = [p.item() for p in parameters]
    optimizer.step()  # pyright: ignore[reportUnknownMemberType]
    return [b - p.item() for b, p in zip(before, parameters, strict=True)]


def steps(optimizer: torch.optim.Optimizer, number: int) -> list[float]:
    """Return how far each of so many steps moves the first parameter."""
    return [step(optimizer)[0] for _ in range(number)]


def test_rates_rise_step_by_step_to_what_they_were() -> None:
    optimizer = optimizer_of(1.0)
    warmup = warmup_of(optimizer, steps=4, epochs=None)
    assert steps(optimizer, 2) == [1.0, 1.0]
    warmup.begin(1)
    assert steps(optimizer, 5) == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert warmup.rise is None


def test_a_warm_up_lasts_no_longer_than_a_tenth_of_a_run_of_known_length() -> None:
    optimizer = optimizer_of(1.0)
    warmup = warmup_of(optimizer, steps=100, epochs=10)
    steps(optimizer, 6)
    warmup.begin(2)  # 3 steps an epoch, 30 in all
    assert steps(optimizer, 4) == pytest.approx([1 / 3, 2 / 3, 1.0, 1.0], abs=1e-6)


def test_between_steps_every_group_has_the_rate_that_its_owner_gave_it() -> None:
    optimizer = optimizer_of(1.0, 0.5)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.1)
    warmup = warmup_of(optimizer, steps=4, epochs=None)
    warmup.begin(1)
    assert step(optimizer) == pytest.approx([0.25, 0.125])
    assert [group["lr"] for group in optimizer.param_groups] == [1.0, 0.5]
    scheduler.step()
    assert step(optimizer) == pytest.approx([0.05, 0.025], abs=1e-6)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.05]


def test_what_was_saved_goes_on_at_the_very_next_step() -> None:
    first, second = optimizer_of(1.0), optimizer_of(1.0)
    warmup, again = (
        warmup_of(first, steps=4, epochs=None),
        warmup_of(second, steps=4, epochs=None, before=1),
    )
    warmup.begin(1)
    step(first)
    again.load_state_dict(warmup.state_dict())
    assert step(second) == pytest.approx(step(first))
    assert again.state_dict() == warmup.state_dict()


def test_no_steps_are_no_warm_up() -> None:
    optimizer = optimizer_of(1.0)
    warmup = warmup_of(optimizer, steps=0, epochs=10)
    warmup.begin(1)
    assert warmup.rise is None
    assert step(optimizer) == [1.0]


def test_a_closed_warm_up_leaves_the_optimizer_alone() -> None:
    optimizer = optimizer_of(1.0)
    warmup = warmup_of(optimizer, steps=4, epochs=None)
    warmup.begin(1)
    warmup.close()
    assert step(optimizer) == [1.0]


def test_a_negative_length_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"warm_up_steps=-1; expected at least 0"):
        warmup_of(optimizer_of(1.0), steps=-1, epochs=10)


def test_a_step_that_raises_an_error_leaves_no_rate_lowered() -> None:
    optimizer = optimizer_of(1.0)
    warmup = warmup_of(optimizer, steps=10, epochs=None)
    warmup.begin(1)

    def fails() -> float:
        raise RuntimeError("out of memory")

    for _ in range(2):
        with pytest.raises(RuntimeError, match="out of memory"):
            optimizer.step(fails)  # pyright: ignore[reportUnknownMemberType, reportArgumentType]
    assert steps(optimizer, 2) == pytest.approx([0.1, 0.2])
    with pytest.raises(RuntimeError, match="out of memory"):
        optimizer.step(fails)  # pyright: ignore[reportUnknownMemberType, reportArgumentType]
    warmup.state_dict()
    assert optimizer.param_groups[0]["lr"] == 1.0


def test_a_run_that_was_slowed_down_takes_a_share_of_its_rates_in_and_behind_a_warm_up() -> None:
    optimizer = optimizer_of(1.0)
    warmup = warmup_of(optimizer, steps=2, epochs=None)
    warmup.rate_share = 0.5
    assert steps(optimizer, 1) == pytest.approx([0.5])
    warmup.begin(1)
    assert steps(optimizer, 3) == pytest.approx([0.25, 0.5, 0.5])
    assert optimizer.param_groups[0]["lr"] == 1.0
