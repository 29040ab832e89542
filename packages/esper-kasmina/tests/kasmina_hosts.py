"""Hosts of many kinds and how each is trained; imports nothing of Esper, on purpose.

Run as a program it trains each host without Esper and prints what became of it: the reference for
every claim that a host with seeds lives as it would without.

    python kasmina_hosts.py [NAME …]

Shapes: `B` batch, `T` tokens, `D` features.
"""
# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import hashlib
import json
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

NUM_CLASSES = 3
B, T = 8, 5

type Meddle = Callable[[int], object]
"""Is told the number of the step that comes next."""


class Residual(nn.Module):
    """A block of a user's own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))


class Recurrent(nn.Module):
    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer = layer
        self.head = nn.LazyLinear(NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        output, _ = self.layer(x)
        return self.head(output.mean(dim=1 if self.layer.batch_first else 0))


class Attentive(nn.Module):
    def __init__(self, *, batch_first: bool) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 8)
        self.mix = nn.MultiheadAttention(8, 2, batch_first=batch_first, dropout=0.1)
        self.head = nn.Linear(8, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        mixed, _ = self.mix(h, h, h)
        return self.head((h + mixed).mean(dim=1 if self.mix.batch_first else 0))


def encoder() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(6, 8),
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
        nn.Flatten(),
        nn.Linear(8 * T, NUM_CLASSES),
    )


class Tied(nn.Module):
    """A language model whose head shares its weight with the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.blocks = nn.ModuleList([Residual(8), Residual(8)])
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        h = self.embed(ids)
        for block in self.blocks:
            h = block(h)
        return self.head(h).mean(dim=1)[:, :NUM_CLASSES]


class Repeated(nn.Module):
    """Calls one layer three times in a forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({"step": nn.Linear(6, 6), "head": nn.Linear(6, NUM_CLASSES)})

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = torch.tanh(self.parts["step"](x))
        return self.parts["head"](x)


def convolutional(rank: int, **options: Any) -> nn.Sequential:
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
    norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[rank - 1]
    pool = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[rank - 1]
    return nn.Sequential(
        conv(2, 4, 3, padding=1),
        norm(4),
        nn.ReLU(inplace=True),
        nn.Dropout(0.2),
        conv(4, 6, 3, padding=1, **options),
        nn.ReLU(inplace=True),
        pool(1),
        nn.Flatten(),
        nn.Linear(6, NUM_CLASSES),
    )


@dataclass(frozen=True, kw_only=True)
class Host:
    """A kind of host."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...] = (B, 6)
    targets: tuple[str, ...] | None = None
    """Whom to name; the last one is where the tests grow. None: the defaults, and the first."""
    options: tuple[tuple[str, Any], ...] = ()
    """Further arguments of `wrap`."""
    vocabulary: int = 0
    """Inputs are token ids below this number, if it is not 0."""
    needs_example: bool = False

    def make(self, seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        model = self.build()
        if any(isinstance(module, nn.LazyLinear) for module in model.modules()):
            model(self.batch(0)[0])
        return model

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Return a batch from a stream of its own: a function of `step` only."""
        generator = torch.Generator().manual_seed(1000 + step)
        y = torch.randint(0, NUM_CLASSES, (B,), generator=generator)
        if self.vocabulary:
            return torch.randint(0, self.vocabulary, self.shape, generator=generator), y
        return torch.randn(self.shape, generator=generator), y


TOKENS = (B, T, 6)
TOKENS_FIRST = (T, B, 6)

HOSTS: dict[str, Host] = {
    "mlp": Host(
        build=lambda: nn.Sequential(
            nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)
        )
    ),
    "normed": Host(
        build=lambda: nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3)),
        targets=("1",),
    ),
    "conv1d": Host(build=lambda: convolutional(1, groups=2), shape=(B, 2, 7), targets=("0", "4")),
    "conv2d": Host(build=lambda: convolutional(2, stride=2), shape=(B, 2, 5, 5)),
    "conv3d": Host(build=lambda: convolutional(3), shape=(B, 2, 3, 4, 3)),
    "channels_last": Host(
        build=lambda: convolutional(2).to(memory_format=torch.channels_last), shape=(B, 2, 5, 5)
    ),
    "batch_norm": Host(
        build=lambda: convolutional(2), shape=(B, 2, 5, 5), targets=("1",), needs_example=True
    ),
    "lstm": Host(
        build=lambda: Recurrent(nn.LSTM(6, 4, bidirectional=True, batch_first=True)), shape=TOKENS
    ),
    "lstm_tokens_first": Host(build=lambda: Recurrent(nn.LSTM(6, 4)), shape=TOKENS_FIRST),
    "gru": Host(build=lambda: Recurrent(nn.GRU(6, 4, batch_first=True)), shape=TOKENS),
    "attention": Host(
        build=lambda: Attentive(batch_first=True), shape=TOKENS, targets=("embed", "mix")
    ),
    "attention_tokens_first": Host(
        build=lambda: Attentive(batch_first=False), shape=TOKENS_FIRST, targets=("mix",)
    ),
    "encoder": Host(build=encoder, shape=TOKENS, targets=("1",)),
    "encoder_within": Host(
        build=encoder, shape=TOKENS, targets=("1.self_attn", "1.linear1", "1.linear2")
    ),
    "blocks": Host(
        build=lambda: nn.Sequential(
            nn.Linear(6, 8), Residual(8), Residual(8), nn.Linear(8, NUM_CLASSES)
        ),
        targets=("1", "2"),
        needs_example=True,
    ),
    "tied": Host(build=Tied, shape=(B, T), vocabulary=11, targets=("embed", "blocks.0.up")),
    "repeated": Host(build=Repeated, targets=("parts.step",)),
    "chunks": Host(
        build=lambda: convolutional(2),
        shape=(B, 2, 5, 5),
        targets=("4",),
        options=(("chunks", 3),),
    ),
    "depth": Host(
        build=lambda: nn.Sequential(nn.Linear(6, 8), Residual(8), nn.Linear(8, NUM_CLASSES)),
        targets=("0",),
        options=(("chunks", 2), ("depth", 2)),
    ),
    "wider": Host(
        build=lambda: nn.Sequential(
            nn.Linear(6, 4), nn.LayerNorm(4), nn.ReLU(), nn.Dropout(0.2), nn.Linear(4, NUM_CLASSES)
        ),
        targets=("0",),
        options=(("widen", True), ("depth", 2)),
        needs_example=True,
    ),
    "wider_conv": Host(
        build=lambda: convolutional(2, stride=2),
        shape=(B, 2, 5, 5),
        targets=("0",),
        options=(("widen", True),),
        needs_example=True,
    ),
}


def seed_everything(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


def life(
    host: Host,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    steps: int = 8,
    before: Meddle | None = None,
) -> list[float]:
    """Train as any user would; `before` may meddle before each step. Returns the losses."""
    seed_everything(1)
    model.train()
    losses: list[float] = []
    for step in range(steps):
        if before is not None:
            before(step)
        x, y = host.batch(step)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def digest(model: nn.Module, optimizer: torch.optim.Optimizer, losses: list[float]) -> str:
    """Hash everything that an onlooker could compare: all state, gradients, random streams."""
    sha = hashlib.sha256()

    def add(value: Any) -> None:
        if isinstance(value, Tensor):
            dense = value.detach().cpu().contiguous().reshape(-1)
            sha.update(dense.view(torch.uint8).numpy().tobytes())
        elif isinstance(value, dict):
            for key in value:
                sha.update(str(key).encode())
                add(value[key])
        elif isinstance(value, list | tuple):
            for part in value:
                add(part)
        else:
            sha.update(repr(value).encode())

    add(losses)
    add(dict(model.state_dict()))
    add([p.grad for p in model.parameters()])
    add(optimizer.state_dict())
    add([torch.get_rng_state(), random.getstate(), str(np.random.get_state())])
    return sha.hexdigest()


def plain_life(host: Host) -> str:
    """Return the digest of a host's life without any seed."""
    model = host.make()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    return digest(model, optimizer, life(host, model, optimizer))


def main() -> None:
    torch.set_num_threads(1)
    print(json.dumps({name: plain_life(HOSTS[name]) for name in sys.argv[1:] or HOSTS}))
    assert not any(name.startswith("esper") for name in sys.modules)


if __name__ == "__main__":
    main()
