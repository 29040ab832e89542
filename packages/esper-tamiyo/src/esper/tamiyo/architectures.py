"""The built-in hosts' architectures. Shapes: B batch, C classes, T positions, D features."""

import difflib
import math
from collections.abc import Sequence
from typing import override

import torch
from torch import Tensor, nn
from torch.nn import functional

from esper.contracts import ConfigError
from esper.contracts.words import plural
from esper.tamiyo.tasks.goals import Goal
from esper.tamiyo.tasks.task import Task

_HEADS = 2
_BLOCKS = 2


def mlp(task: Task, width: int) -> nn.Module:
    """Return an MLP with two hidden layers of `width` units: (B, …) → (B, C).

    Raises:
        ConfigError: if the task's samples are text.

    """
    if task.goal is Goal.LANGUAGE:
        raise ConfigError(
            f"host 'mlp' takes numbers, and task {task.name!r} is text; use 'transformer'"
        )
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(task.num_features, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, task.num_classes),
    )


def cnn(task: Task, width: int) -> nn.Module:
    """Return two convolutions of `width` channels and a linear head: (B, …) → (B, C).

    A one-dimensional signal is an image of height 1.

    Raises:
        ConfigError: if the task's samples are no images.

    """
    channels, height, columns = shape = _image_shape("cnn", task)
    kernel = (1, 5) if height == 1 else (3, 3)
    padding = (kernel[0] // 2, kernel[1] // 2)
    reduced = (height + 1) // 2 * ((columns + 1) // 2)  # stride 2, "same" padding
    return nn.Sequential(
        nn.Flatten(),
        nn.Unflatten(1, shape),
        nn.Conv2d(channels, width, kernel, padding=padding),
        nn.ReLU(),
        nn.Conv2d(width, width, kernel, padding=padding, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(width * reduced, task.num_classes),
    )


def resnet(task: Task, width: int) -> nn.Module:
    """Return a ResNet-18 (He et al. 2016) with a stem for small images: (B, …) → (B, C).

    Four stages of two blocks with `width`, 2, 4 and 8 times as many channels; the last three begin with
    stride 2.

    Raises:
        ConfigError: if the task's samples are no images.

    """
    shape = _image_shape("resnet", task)
    layers: list[nn.Module] = [
        nn.Flatten(),
        nn.Unflatten(1, shape),
        nn.Conv2d(shape[0], width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    ]
    channels = width
    for stage in range(4):
        for block in range(2):
            wider = width * 2**stage
            layers.append(ResidualBlock(channels, wider, stride=2 if stage and not block else 1))
            channels = wider
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, task.num_classes)]
    return nn.Sequential(*layers)


class ResidualBlock(nn.Module):
    """ResNet's basic block: two convolutions with batch norm, and a shortcut around them."""

    def __init__(self, channels_in: int, channels_out: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False),
                nn.BatchNorm2d(channels_out),
            )

    @override
    def forward(self, inputs: Tensor) -> Tensor:
        """Return (B, channels_out, H / stride, W / stride)."""
        inner = self.norm2(self.conv2(functional.relu(self.norm1(self.conv1(inputs)))))
        return functional.relu(inner + self.shortcut(inputs))


def transformer(task: Task, width: int) -> nn.Module:
    """Return a causal character transformer with `width` features: (B, T) → (B, T, C).

    Raises:
        ConfigError: if the task is no text, or `width` no multiple of its two heads.

    """
    if task.goal is not Goal.LANGUAGE:
        raise ConfigError(
            f"host 'transformer' reads text, and task {task.name!r} is none; use 'mlp'"
        )
    if width % _HEADS:
        raise ConfigError(
            f"host 'transformer' has {_HEADS} heads; width {width} is no multiple of that"
        )
    (length,) = task.sample_shape
    return nn.Sequential(
        Embedding(task.num_classes, length, width),
        *(TransformerBlock(width) for _ in range(_BLOCKS)),
        nn.LayerNorm(width),
        nn.Linear(width, task.num_classes),
    )


class Embedding(nn.Module):
    """Characters and their positions as features."""

    def __init__(self, num_characters: int, length: int, width: int) -> None:
        super().__init__()
        self.characters = nn.Embedding(num_characters, width)
        self.positions = nn.Parameter(torch.randn(length, width) / math.sqrt(width))

    @override
    def forward(self, indices: Tensor) -> Tensor:
        """Return (B, T, D) of (B, T)."""
        return self.characters(indices) + self.positions[: indices.shape[1]]


class TransformerBlock(nn.Module):
    """Pre-norm causal attention and a two-layer MLP, each around a shortcut (GPT-2's block)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    @override
    def forward(self, features: Tensor) -> Tensor:
        """Return (B, T, D) of (B, T, D)."""
        batch, length, width = features.shape
        mixed = self.mix(self.norm1(features)).view(batch, length, 3, _HEADS, width // _HEADS)
        query, key, value = mixed.permute(2, 0, 3, 1, 4)  # each (B, heads, T, D / heads)
        attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        features = features + self.out(attended.transpose(1, 2).reshape(batch, length, width))
        return features + self.mlp(self.norm2(features))


class Repeat(nn.Module):
    """Repeats the channels of images."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self._times = times

    @override
    def forward(self, images: Tensor) -> Tensor:
        """Return (B, times · C, H, W) of (B, C, H, W)."""
        return images if self._times == 1 else images.repeat(1, self._times, 1, 1)


def unknown(host: str, where: str, name: str, names: Sequence[str]) -> str:
    """Return what to say of a name that is none of many."""
    near = difflib.get_close_matches(name, names, n=3)
    hint = f"did you mean {', '.join(near)}?" if near else f"it has {plural(len(names), 'model')}"
    return f"host {host!r}: {where} has no model {name!r}; {hint}"


def _image_shape(host: str, task: Task) -> tuple[int, int, int]:
    if task.image_shape is None:
        other = "transformer" if task.goal is Goal.LANGUAGE else "mlp"
        raise ConfigError(
            f"host {host!r} needs images, and task {task.name!r} declares no image_shape; "
            f"use host {other!r}, or set image_shape=(channels, height, width) on the task"
        )
    return task.image_shape
