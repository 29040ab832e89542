"""A moving average of the weights beside a model."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from esper.contracts import ConfigError
from esper.tamiyo import RunConfig, build_host, load_task
from esper.tamiyo.averaging import average_of, averaged_weights
from esper.tamiyo.config import override
from esper.tamiyo.epochs import make_learner
from esper.tamiyo.training import choose_means, train_epoch

DECAY = 0.75


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def test_each_step_of_the_optimizer_moves_the_average() -> None:
    task, config = load_task("digits"), RunConfig(ema=DECAY, schedule="cosine")
    model = build_host("mlp", task, seed=0)
    average = average_of(model, config.ema)
    assert average is not None
    means = choose_means("cpu", "float32", 4)
    learner = make_learner(model, task, config, means, average)
    expected: list[torch.Tensor] = []

    def after_step() -> None:
        learner.after_step()
        now = weights(model)
        if not expected:
            expected.extend(now)
            return
        for before, new in zip(expected, now, strict=True):
            before.mul_(DECAY).add_(new, alpha=1 - DECAY)

    train_epoch(
        model,
        learner.optimizer,
        task.train,
        batch_size=64,
        order_seed=0,
        means=means,
        after_step=after_step,
    )
    for found, wanted in zip(weights(average.module), expected, strict=True):
        torch.testing.assert_close(found, wanted)
    assert learner.optimizer.param_groups[0]["lr"] < config.learning_rate


def test_a_model_has_the_averaged_weights_for_a_while_only() -> None:
    model = nn.Linear(2, 2)
    average = average_of(model, DECAY)
    assert average is not None
    averaged = weights(average.module)
    with torch.no_grad():
        model.weight.add_(1.0)
    own = weights(model)
    with averaged_weights(model, average):
        assert all(map(torch.equal, weights(model), averaged))
    assert all(map(torch.equal, weights(model), own))
    assert all(map(torch.equal, weights(average.module), averaged))


def test_without_a_decay_there_is_no_average() -> None:
    assert average_of(nn.Linear(2, 2), None) is None


def test_a_host_that_cannot_be_copied_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Any) -> None:
        raise TypeError("it holds a lock")

    monkeypatch.setattr(copy, "deepcopy", fail)
    monkeypatch.setattr("torch.optim.swa_utils.deepcopy", fail)
    with pytest.raises(ConfigError, match=r"--ema needs a copy .*TypeError: it holds a lock"):
        average_of(nn.Linear(2, 2), DECAY)


@pytest.mark.parametrize("decay", [0.0, 1.0, -1.0, float("nan")])
def test_a_decay_is_between_0_and_1(decay: float) -> None:
    with pytest.raises(ConfigError, match="ema: Input should be"):
        override(RunConfig(), {"ema": decay})
