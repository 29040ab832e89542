"""Hosts: the small models that a run starts from.

Deliberately small: each has a bottleneck that growth can relieve. Shapes: B batch, C classes.
"""

import copy
import random
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from esper.contracts import ConfigError
from esper.tamiyo.loading import call, failure, resolve
from esper.tamiyo.tasks import Task


def mlp(task: Task, width: int = 6) -> nn.Module:
    """Return an MLP with two hidden layers of `width` units: (B, …) → (B, C)."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(task.num_features, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, task.num_classes),
    )


def cnn(task: Task, width: int = 2) -> nn.Module:
    """Return two convolutions of `width` channels and a linear head: (B, …) → (B, C).

    A one-dimensional signal is an image of height 1.

    Raises:
        ConfigError: if the task's samples are no images.

    """
    if task.image_shape is None:
        raise ConfigError(
            f"host 'cnn' needs images, and task {task.name!r} declares no image_shape; "
            "use host 'mlp', or set image_shape=(channels, height, width) on the task"
        )
    channels, height, columns = task.image_shape
    kernel = (1, 5) if height == 1 else (3, 3)
    padding = (kernel[0] // 2, kernel[1] // 2)
    reduced = (height + 1) // 2 * ((columns + 1) // 2)  # stride 2, "same" padding
    return nn.Sequential(
        nn.Flatten(),
        nn.Unflatten(1, task.image_shape),
        nn.Conv2d(channels, width, kernel, padding=padding),
        nn.ReLU(),
        nn.Conv2d(width, width, kernel, padding=padding, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(width * reduced, task.num_classes),
    )


HOSTS: Mapping[str, Callable[[Task], object]] = {"mlp": mlp, "cnn": cnn}
"""The built-in hosts."""


def build_host(name: str, task: Task, *, seed: int) -> nn.Module:
    """Build a host with initial weights drawn from `seed`, and check that it fits the task.

    Seeds the global generators of torch, numpy and random: initialisers and layers draw from them.

    Raises:
        NotFoundError, ConfigError: if there is no such host, or it does not fit the task.

    """
    factory = resolve("host", name, HOSTS)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType]
    model: object = call("host", name, factory, task)
    if not isinstance(model, nn.Module):
        raise ConfigError(f"host {name!r} returned a {type(model).__name__}; expected a nn.Module")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(
            f"host {name!r} has no parameter that requires a gradient, so there is nothing to train"
        )
    _check_fit(name, model, task)
    return model


def _check_fit(name: str, model: nn.Module, task: Task) -> None:
    """Answer and train on two samples; leaves the model and the random streams as they were."""
    inputs, targets = task.train.inputs[:2], task.train.targets[:2]
    with torch.random.fork_rng(devices=[]):  # pyright: ignore[reportUnknownMemberType]
        output = _attempt(name, task, " answering", lambda: _answer(model, inputs))
        expected = (len(inputs), task.num_classes)
        if not isinstance(output, Tensor) or output.shape != expected:
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ConfigError(
                f"host {name!r} answers {len(inputs)} samples of task {task.name!r} with {shape}; "
                f"expected one logit per class: {expected}"
            )
        if (copied := _copy(model)) is not None:
            _attempt(name, task, " learning", lambda: _learn(copied.train(), inputs, targets))


def _copy(model: nn.Module) -> nn.Module | None:
    """Return a copy to try training on, which may change statistics, counters, anything."""
    try:
        return copy.deepcopy(model)
    except Exception:  # noqa: BLE001 - its training will tell what this trial would have told
        return None


def _answer(model: nn.Module, inputs: Tensor) -> object:
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            return model(inputs)
    finally:
        model.train(was_training)


def _learn(model: nn.Module, inputs: Tensor, targets: Tensor) -> None:
    functional.cross_entropy(model(inputs), targets).backward()  # pyright: ignore[reportUnknownMemberType]


def _attempt[T](name: str, task: Task, when: str, action: Callable[[], T]) -> T:
    try:
        return action()
    except (Exception, SystemExit) as error:  # anything may happen in a model of the user's
        shape = f"{when} a batch of shape {(2, *task.train.inputs.shape[1:])} of task {task.name!r}"
        raise failure("host", name, error, shape) from error
