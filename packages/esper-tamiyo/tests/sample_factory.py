"""Datasets for the tests of what reads samples; a module, so that other processes can import it."""

import os
import random
from typing import Any, override

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from esper.tamiyo import DatasetSplit, Task
from esper.tamiyo.tasks import Goal

NUM_TRAINED, NUM_HELD_OUT = 22, 6


class Noisy(Dataset[Any]):
    """Samples of four numbers, each with noise from all three global streams; item `odd` is `odd_item`."""

    def __init__(self, number: int, *, odd: int | None = None, odd_item: object = None) -> None:
        self._number = number
        self._odd = odd
        self._odd_item = odd_item

    def __len__(self) -> int:
        return self._number

    @override
    def __getitem__(self, index: int) -> Any:
        if index == self._odd:
            return self._odd_item() if callable(self._odd_item) else self._odd_item
        noise = [float(torch.rand(())), random.random(), np.random.random()]
        return torch.tensor([float(index % 2), *noise]), index % 2


def missing() -> object:
    raise KeyError("missing")


def leave() -> object:
    os._exit(3)


def good(value: float = 0.5, shape: tuple[int, ...] = (4,)) -> Tensor:
    return torch.full(shape, value)


def noisy_task(
    train: Dataset[Any] | None = None, goal: Goal = Goal.CLASSIFICATION, num_classes: int = 2
) -> Task:
    return Task(
        name="noisy",
        train=DatasetSplit(dataset=train or Noisy(NUM_TRAINED)),
        validation=DatasetSplit(dataset=Noisy(NUM_HELD_OUT)),
        test=DatasetSplit(dataset=Noisy(NUM_HELD_OUT)),
        num_classes=num_classes,
        goal=goal,
    )
