"""What seeds cost: step time and memory of a host with dormant seeds next to the bare host.

    uv run python tests/benchmarks/seed_cost.py

Every figure is a median of ratios, taken side by side in one process: a round times the bare host and
the wrapped one for a few steps each, in alternating order. CPU time of one thread is what is measured,
so that other work on the machine disturbs little. Takes about four minutes; `--compiled` adds a compiled
host, which takes some minutes more.
"""
# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false

import argparse
import platform
import statistics
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from esper.kasmina import Bed, wrap

STEPS_PER_TURN = 32
"""One sampling period, so that every turn of a sampling host has one sampled step."""


class Residual(nn.Module):
    """A linear layer with a short cut, so that signals survive a thousand of them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to `(B, D)`."""
        return x + 0.1 * torch.relu(self.linear(x))


def mlp(num_layers: int, width: int = 64) -> nn.Sequential:
    """Return residual linear layers and a head."""
    return nn.Sequential(*(Residual(width) for _ in range(num_layers)), nn.Linear(width, 10))


def cnn(num_layers: int, width: int = 16) -> nn.Sequential:
    """Return 3x3 convolutions with a norm and a ReLU after each, and a head."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise([3, *[width] * num_layers]):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


class Block(nn.Module):
    """A pre-norm transformer block, written out so that each linear layer can carry a seed."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Apply attention with four heads and an MLP to `(B, T, D)`."""
        q, k, v = self.qkv(self.norms[0](x)).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(self.norms[1](x))))


def transformer(num_blocks: int, width: int = 64) -> nn.Sequential:
    """Return transformer blocks between an embedding and a head."""
    blocks = [Block(width) for _ in range(num_blocks)]
    return nn.Sequential(nn.Linear(8, width), *blocks, nn.Linear(width, 10))


@dataclass(frozen=True, kw_only=True)
class Host:
    """A kind of host and the batch that it is trained on."""

    name: str
    make: Callable[[], nn.Module]
    batch: Tensor
    fewer_rounds: int = 1
    """Divides the number of rounds: a host whose steps are long is steadier, and slower to measure."""


HOSTS = (
    Host(name="MLP 10", make=lambda: mlp(10), batch=torch.randn(64, 64)),
    Host(name="MLP 100", make=lambda: mlp(100), batch=torch.randn(64, 64)),
    Host(name="MLP 1000", make=lambda: mlp(1000), batch=torch.randn(64, 64), fewer_rounds=3),
    Host(name="CNN 12", make=lambda: cnn(12), batch=torch.randn(16, 3, 16, 16)),
    Host(name="transformer 6", make=lambda: transformer(6), batch=torch.randn(8, 32, 8)),
)


class Trainee:
    """One host in training."""

    def __init__(
        self,
        host: Host,
        *,
        sample_every_steps: int | None,
        wrapped: bool,
        compiled: bool = False,
    ) -> None:
        torch.manual_seed(0)
        self.model = host.make()
        self.batch = host.batch
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        self.bed: Bed | None = None
        self.wrap_seconds = 0.0
        if wrapped:
            start = time.perf_counter()
            self.bed = wrap(self.model, sample_every_steps=sample_every_steps)
            self.wrap_seconds = time.perf_counter() - start
            self.bed.attach(self.optimizer)
        self.run = torch.compile(self.model, fullgraph=True) if compiled else self.model

    def turn(self, num_steps: int) -> float:
        """Train some steps and return the CPU seconds that they took."""
        start = time.thread_time()
        for _ in range(num_steps):
            self.optimizer.zero_grad()
            self.run(self.batch).square().mean().backward()
            self.optimizer.step()
        return time.thread_time() - start


def ratios(bare: Trainee, other: Trainee, rounds: int, num_steps: int) -> list[float]:
    """Return the other's time over the bare one's, once per round."""
    found: list[float] = []
    for index in range(rounds + 2):
        if index % 2:
            first, second = bare.turn(num_steps), other.turn(num_steps)
        else:
            second, first = other.turn(num_steps), bare.turn(num_steps)
        if index >= 2:  # the first turns warm up
            found.append(second / first)
    return found


def seed_bytes() -> float:
    """Return what one dormant seed of a 1000-layer host holds, in bytes."""
    model = mlp(1000)
    wrap(model).unwrap()  # what is loaded once is not the seeds'
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    bed = wrap(model)
    held = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    return held / len(bed.seeds())


def compiled_ratio(rounds: int) -> str:
    """Compare a compiled host with dormant seeds, sampling as it can, with the compiled bare one."""
    host = HOSTS[0]
    bare = Trainee(host, sample_every_steps=None, wrapped=False, compiled=True)
    dormant = Trainee(host, sample_every_steps=32, wrapped=True, compiled=True)
    found = ratios(bare, dormant, rounds, STEPS_PER_TURN)
    low, middle, high = statistics.quantiles(found, n=4)
    return f"{host.name} compiled: {middle:.4f} (quartiles {low:.3f} to {high:.3f})"


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15, help="pairs per figure (default 15)")
    parser.add_argument("--compiled", action="store_true", help="also a host under torch.compile")
    arguments = parser.parse_args()
    rounds = arguments.rounds
    torch.set_num_threads(1)
    console = Console(width=110)
    table = Table(
        "host", "seeds", "ms/step", "dormant", "quartiles", "sampling", "quartiles", "wrap s"
    )
    for host in track(HOSTS, "measuring", console=console, transient=True):
        bare = Trainee(host, sample_every_steps=None, wrapped=False)
        dormant = Trainee(host, sample_every_steps=None, wrapped=True)
        sampling = Trainee(host, sample_every_steps=32, wrapped=True)
        num_steps = STEPS_PER_TURN
        step_ms = bare.turn(num_steps) / num_steps * 1e3
        cells: list[str] = []
        for trainee in (dormant, sampling):
            found = ratios(bare, trainee, max(5, rounds // host.fewer_rounds), num_steps)
            low, middle, high = statistics.quantiles(found, n=4)
            cells += [f"{middle:.4f}", f"{low:.3f} to {high:.3f}"]
        assert dormant.bed is not None
        seeds = len(dormant.bed.seeds())
        table.add_row(
            host.name, str(seeds), f"{step_ms:.2f}", *cells, f"{dormant.wrap_seconds:.3f}"
        )
    console.print(table)
    if arguments.compiled:
        console.print(compiled_ratio(rounds))
    console.print(f"one dormant seed holds {seed_bytes():.0f} bytes")
    console.print(f"torch {torch.__version__}, {platform.machine()}, one thread, AdamW, eager")


if __name__ == "__main__":
    main()
