"""What a run ran on: for whoever wants to repeat it, or wonders why it differs."""

import os
import platform
from collections.abc import Iterable
from importlib.metadata import distributions
from typing import Any, cast

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from esper.tamiyo.summary import Layer
from esper.tamiyo.training import Means

_NAMED = ("torch", "numpy", "pydantic")


def describe_environment(means: Means) -> dict[str, str]:
    """Return versions and hardware by what they are called; nothing that names machine or user."""
    versions = {
        distribution.name: distribution.version
        for distribution in distributions()
        if distribution.name in _NAMED or distribution.name.startswith("esper-")
    }
    device = str(means.device)
    if means.device.type == "cuda":
        device = f"{device} ({torch.cuda.get_device_name(means.device)})"
    return {
        "device": device,
        "processor": f"{platform.machine()}, {os.cpu_count()} cores",
        "system": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
    } | dict(sorted(versions.items()))


def describe_layers(host: nn.Module) -> list[Layer]:
    """Return the host's layers that have parameters of their own, in the order of their definition."""
    layers: list[Layer] = []
    for name, module in cast("Iterable[tuple[str, nn.Module]]", host.named_modules()):
        own: int = sum(parameter.numel() for parameter in module.parameters(recurse=False))
        if own:
            layers.append(Layer(name=name or "model", kind=type(module).__name__, parameters=own))
    return layers


def count_flops(model: nn.Module, inputs: torch.Tensor) -> int:
    """Return the floating-point operations of a forward pass for each of these `inputs`, of shape (N, ...).

    Counts what costs: matrix products, convolutions and attention, a multiplication and an addition as two
    (torch.utils.flop_counter). Leaves the model's mode and the random streams as they were.
    """
    was_training = model.training
    devices = [inputs.device] if inputs.is_cuda else []
    counter = FlopCounterMode(display=False)
    keep_streams: Any = torch.random.fork_rng  # pyright: ignore
    with keep_streams(devices=devices), torch.no_grad(), counter:
        model.eval()
        model(inputs)
    model.train(was_training)
    return counter.get_total_flops() // len(inputs)
