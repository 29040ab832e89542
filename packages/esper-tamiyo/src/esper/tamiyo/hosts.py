"""Hosts: the models that a run starts from, by name; how one is found, built and tried on its task.

The built-in ones are deliberately small, with a bottleneck that growth can relieve; `width` makes them
larger.
"""

import copy
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from esper.contracts import ConfigError
from esper.contracts.words import type_of
from esper.tamiyo import architectures
from esper.tamiyo.loading import call, failure, resolve
from esper.tamiyo.tasks.goals import Goal, mean_loss
from esper.tamiyo.tasks.split import Split
from esper.tamiyo.tasks.task import Task


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A built-in host."""

    build: Callable[[Task, int], nn.Module]
    """`(task, width) → model`; raises `ConfigError` for a task that it does not fit."""
    width: int
    """Unless the user says another."""
    about: str


HOSTS: Mapping[str, Entry] = {
    "mlp": Entry(
        build=architectures.mlp,
        width=6,
        about="two hidden layers of WIDTH units, for anything but text",
    ),
    "cnn": Entry(
        build=architectures.cnn,
        width=2,
        about="two convolutions of WIDTH channels, for images and signals",
    ),
    "resnet": Entry(
        build=architectures.resnet,
        width=8,
        about="ResNet-18 with WIDTH channels at first (64 is the original's), for images",
    ),
    "transformer": Entry(
        build=architectures.transformer,
        width=32,
        about="two causal blocks of WIDTH features, for text",
    ),
}
"""The built-in hosts."""

COLLECTIONS = ("torchvision", "timm")
"""`torchvision:NAME` and `timm:NAME` are the models of these packages, where they are installed."""


def is_own(name: str) -> bool:
    """Tell whether a host is a function of the user's, which may look at all of the task it is given."""
    return name not in HOSTS and name.partition(":")[0] not in COLLECTIONS


def build_host(name: str, task: Task, *, seed: int, width: int | None = None) -> nn.Module:
    """Build a host with initial weights drawn from `seed`, and check that it fits the task.

    Seeds the global generators of torch, numpy and random: initialisers and layers draw from them.

    Raises:
        NotFoundError, ConfigError: if there is no such host, or it does not fit the task.

    """
    build = _builder(name, width)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType]
    model: object = call("host", name, build, task)
    if not isinstance(model, nn.Module):
        raise ConfigError(f"host {name!r} returned {type_of(model)}; expected an nn.Module")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError(
            f"host {name!r} has no parameter that requires a gradient, so there is nothing to train"
        )
    _check_fit(name, model, task)
    return model


def _builder(name: str, width: int | None) -> Callable[[Task], object]:
    if name in HOSTS:
        entry = HOSTS[name]
        return lambda task: entry.build(task, width or entry.width)
    if width is not None:
        raise ConfigError(f"host {name!r} is no built-in one, so --width means nothing to it")
    collection, _, model_name = name.partition(":")
    if collection in COLLECTIONS:
        return lambda task: _from_collection(collection, model_name, task)
    names: Mapping[str, Callable[..., object]] = dict.fromkeys(HOSTS, dict)
    return resolve("host", name, names)


def _from_collection(collection: str, name: str, task: Task) -> nn.Module:
    """Build a model of a package that the user has installed, untrained, for images."""
    if task.image_shape is None or task.goal is not Goal.CLASSIFICATION:
        raise ConfigError(f"{collection}'s models classify images, and task {task.name!r} has none")
    try:
        module: Any = import_module("torchvision.models" if collection == "torchvision" else "timm")
    except ImportError as error:
        raise ConfigError(
            f"host '{collection}:{name}' needs the package {collection}; install it with "
            "`uv sync --inexact --group hosts` in the workspace"
        ) from error
    names: list[str] = module.list_models()
    if name not in names:
        raise ConfigError(architectures.unknown(f"{collection}:{name}", collection, name, names))
    channels = task.image_shape[0]
    if collection == "timm":
        model: nn.Module = module.create_model(
            name, num_classes=task.num_classes, in_chans=channels
        )
        return nn.Sequential(nn.Flatten(), nn.Unflatten(1, task.image_shape), model)
    model = module.get_model(name, weights=None, num_classes=task.num_classes)
    # They take three channels; a grey image is the same in each.
    repeat = architectures.Repeat(3 // channels) if channels in (1, 3) else None
    if repeat is None:
        raise ConfigError(f"torchvision's models take 1 or 3 channels; the images have {channels}")
    return nn.Sequential(nn.Flatten(), nn.Unflatten(1, task.image_shape), repeat, model)


def _check_fit(name: str, model: nn.Module, task: Task) -> None:
    """Answer and train on two samples; leaves the model and the random streams as they were."""
    two = task.train.first(2)
    inputs = two.inputs
    with torch.random.fork_rng(devices=[]):  # pyright: ignore[reportUnknownMemberType]
        output = _attempt(name, task, " answering", model, lambda: _answer(model, inputs))
        expected = (len(inputs), task.num_classes)
        meaning = "one logit per class"
        if task.goal is Goal.LANGUAGE:
            expected = (*inputs.shape, task.num_classes)
            meaning = "one logit per character at each position"
        elif task.goal is Goal.REGRESSION:
            meaning = "one number per sample"
        if not isinstance(output, Tensor) or output.shape != expected:
            shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ConfigError(
                f"host {name!r} answers {len(inputs)} samples of task {task.name!r} with {shape}; "
                f"expected {meaning}: {expected}"
            )
        if (copied := _copy(model)) is not None:
            learn = partial(_learn, copied.train(), task.goal, two)
            _attempt(name, task, " learning", copied, learn)


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


def _learn(model: nn.Module, goal: Goal, two: Split) -> None:
    mean_loss(goal, model(two.inputs), two.targets).backward()  # pyright: ignore[reportUnknownMemberType]


def _attempt[T](name: str, task: Task, when: str, model: nn.Module, action: Callable[[], T]) -> T:
    entered: list[str] = []
    hooks = list(_noting(model, entered))
    try:
        return action()
    except (Exception, SystemExit) as error:  # anything may happen in a model of the user's
        shape = f"{when} a batch of shape {(2, *task.sample_shape)} of task {task.name!r}"
        where = f", in {entered[-1]}" if entered else ""
        raise failure("host", name, error, shape + where) from error
    finally:
        for hook in hooks:
            hook.remove()


def _noting(model: nn.Module, entered: list[str]) -> Iterator[RemovableHandle]:
    """Keep in `entered` the layers that compute at any moment, innermost last, with what each was given."""
    layers = cast("Iterator[tuple[str, nn.Module]]", model.named_modules())
    for name, layer in layers:
        if not name:
            continue

        def enter(layer: nn.Module, given: tuple[object, ...], name: str = name) -> None:
            shapes = [tuple(each.shape) for each in given if isinstance(each, Tensor)]
            of = ", ".join(map(str, shapes)) or "no tensor"
            entered.append(f"its layer {name!r} ({_one_line(layer)}), which was given {of}")

        def leave(*_: object) -> None:
            entered.pop()

        yield layer.register_forward_pre_hook(enter)  # pyright: ignore[reportUnknownMemberType]
        yield layer.register_forward_hook(leave)  # pyright: ignore[reportUnknownMemberType]


def _one_line(layer: nn.Module) -> str:
    return repr(layer) if not list(layer.children()) else type(layer).__name__
