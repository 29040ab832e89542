"""Four small tasks with hosts that may grow, for the experiments on isolated training.

Shapes: `B` batch, `T` tokens, `D` features, `V` characters.
"""
# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false

import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from esper.tamiyo import load_task

type Batch = tuple[Tensor, Tensor]

TOKENS, WIDTH = 32, 32
"""Of the character model; small, so that two hundred runs fit into minutes."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A task with a host, and the places in it where a block may be grafted."""

    name: str
    host: Callable[[], nn.Module]
    sites: tuple[str, ...]
    blueprint: str
    rate: float
    batch: Callable[[torch.Generator], Batch]
    held: Batch
    """What the loss is measured on: all of the training data, or a fixed part of it."""


class TextBlock(nn.Module):
    """A pre-norm transformer block over `(B, T, D)`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, width))

    def forward(self, x: Tensor) -> Tensor:
        """Let each token look at earlier ones."""
        parts = self.qkv(self.norm1(x)).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(*parts.unbind(0), is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class TextModel(nn.Module):
    """A character model of one block: `(B, T)` to logits `(B, V, T)`."""

    def __init__(self, num_characters: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(num_characters, WIDTH)
        self.position = nn.Parameter(0.02 * torch.randn(TOKENS, WIDTH))
        self.block = TextBlock(WIDTH)
        self.head = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, num_characters))

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, classes second as `cross_entropy` wants them."""
        return self.head(self.block(self.embedding(x) + self.position)).movedim(-1, 1)


def text() -> Problem:
    """Return characters of some of Python's own sources."""
    folder = Path(sysconfig.get_path("stdlib"))
    files = ("argparse.py", "inspect.py", "socket.py", "subprocess.py", "threading.py")
    source = "".join((folder / name).read_text(encoding="utf-8") for name in files)
    index = {character: number for number, character in enumerate(sorted(set(source)))}
    stream = torch.tensor([index[character] for character in source])

    def windows(generator: torch.Generator, number: int) -> Batch:
        start = torch.randint(len(stream) - TOKENS, (number, 1), generator=generator)
        tokens = stream[start + torch.arange(TOKENS + 1)]
        return tokens[:, :-1], tokens[:, 1:]

    return Problem(
        name="text, LM",
        host=lambda: TextModel(len(index)),
        sites=("block", "block.out"),
        blueprint="normalised_mlp",
        rate=3e-3,
        batch=lambda generator: windows(generator, 16),
        held=windows(torch.Generator().manual_seed(5), 256),
    )


def images(name: str, task: str, host: Callable[[], nn.Module], **rest: Any) -> Problem:
    """Return a classification task of Tamiyo's."""
    data = load_task(task).train.known()
    inputs = data.inputs.flatten(1)

    def batch(generator: torch.Generator) -> Batch:
        rows = torch.randint(len(inputs), (64,), generator=generator)
        return inputs[rows], data.targets[rows]

    held = (inputs, data.targets)
    return Problem(name=name, host=host, rate=3e-3, batch=batch, held=held, **rest)


def mlp(inputs: int, width: int) -> nn.Sequential:
    """Return two hidden layers."""
    layers = [nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def cnn() -> nn.Sequential:
    """Return two convolutions over 8 x 8 pixels."""
    first = [
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
    ]
    second = [nn.Conv2d(6, 8, 3, padding=1, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(2)]
    return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(32, 10))


def problems() -> list[Problem]:
    """Return the four tasks."""
    flat: dict[str, Any] = {"sites": ("0", "2"), "blueprint": "residual_mlp"}
    image: dict[str, Any] = {"sites": ("1", "4"), "blueprint": "residual_conv"}
    return [
        images("digits, MLP", "digits", lambda: mlp(64, 10), **flat),
        images("MNIST-1D, MLP", "mnist1d", lambda: mlp(40, 16), **flat),
        images("digits, CNN", "digits", cnn, **image),
        text(),
    ]
