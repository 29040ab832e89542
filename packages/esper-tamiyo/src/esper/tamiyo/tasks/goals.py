"""What a task asks of a model: how an answer is scored.

Shapes: B batch, C classes, T positions of a text, V characters of its alphabet.
"""

from enum import StrEnum

import torch
from torch import Tensor
from torch.nn import functional

from esper.tamiyo.verdict import Figures


class Goal(StrEnum):
    """The kinds of tasks that the trainer knows."""

    CLASSIFICATION = "classification"
    """Answers (B, C) logits; targets (B,) class indices; cross-entropy."""
    REGRESSION = "regression"
    """Answers (B, 1); targets (B,) numbers; squared error."""
    LANGUAGE = "language"
    """Answers (B, T, V) logits of the next character; targets (B, T); cross-entropy in nats."""


def losses(goal: Goal, answers: Tensor, targets: Tensor) -> Tensor:
    """Return the loss of each sample: (B,)."""
    if goal is Goal.REGRESSION:
        return functional.mse_loss(answers.squeeze(-1), targets, reduction="none")
    if goal is Goal.LANGUAGE:
        by_position = functional.cross_entropy(answers.transpose(1, 2), targets, reduction="none")
        return by_position.mean(dim=1)
    return functional.cross_entropy(answers, targets, reduction="none")


def mean_loss(goal: Goal, answers: Tensor, targets: Tensor) -> Tensor:
    """Return the mean loss of a batch, a scalar."""
    if goal is Goal.CLASSIFICATION:
        return functional.cross_entropy(answers, targets)
    return losses(goal, answers, targets).mean()


def correct(goal: Goal, answers: Tensor, targets: Tensor) -> Tensor | None:
    """Return what is right of each sample, 0 to 1: (B,); None where answers are not right or wrong."""
    if goal is Goal.REGRESSION:
        return None
    right = (answers.argmax(dim=-1) == targets).float()
    return right.mean(dim=1) if goal is Goal.LANGUAGE else right


def best_constant(goal: Goal, targets: Tensor) -> Figures:
    """Return how good the best answers are that are always the same: the loss of one, the accuracy of one.

    Of classes the loss is the entropy of their shares, in nats.
    """
    if goal is Goal.REGRESSION:
        return Figures(loss=float(targets.double().var(unbiased=False)))
    shares = targets.flatten().bincount().double() / targets.numel()
    loss = -float(torch.xlogy(shares, shares).sum())
    return Figures(loss=loss, accuracy=float(shares.max()))
