"""Does growth land where a host is too narrow? One layer in turn is planted narrow, and the policy decides.

    uv run python tests/benchmarks/growth/bottlenecks.py --seeds 5 --out bottlenecks.jsonl

Each host trains as ever, with the default sampling of health and a decision after every 400 steps. A policy
chooses among all blocks at all layers and all new units beside all layers; a hit is that its first choice is
new units beside the narrow layer, which has an eighth of its width.
"""

# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false

import argparse
import json
import logging
import os
import random
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from nets import WIDTH, Attention, Embedding, Residual
from problems import Problem, conv, language_model
from rich.progress import Progress
from torch import Tensor, nn

from esper.kasmina import wrap
from esper.tamiyo import AtRandom, Chance, Gap, Policy, Tamiyo

NARROW = 8
"""The planted layer has this part of its width."""

STEPS_PER_EPOCH = 400
EPOCHS = 20
LEARNING_RATE = 2e-3
SENSORS, SENSOR_NOISE = 2048, 0.1

POLICIES: Mapping[str, Callable[[int], Policy]] = {
    "gap": lambda _: Gap(),
    "random": lambda seed: Chance(seed=seed, timing=AtRandom(chance=1.0, seed=seed)),
}


@dataclass(frozen=True, kw_only=True)
class Family:
    """Hosts that are alike but for the place of the narrow layer."""

    build: Callable[[int], nn.Module]
    """Returns the host in which the layer of this number is narrow."""
    narrow: Callable[[int], str]
    """Returns the name of that layer."""
    num_places: int
    problem: Callable[[], Problem] = conv


def _widths(place: int, width: int, num_layers: int) -> list[int]:
    return [width // NARROW if number == place else width for number in range(num_layers)]


def plain_mlp(
    place: int, norm: Callable[[int], nn.Module] | None = None, inputs: int = 40
) -> nn.Module:
    """Return four hidden layers of 64 and a head: (B, inputs) → (B, 10)."""
    layers: list[nn.Module] = []
    before = inputs
    for width in _widths(place, 64, 4):
        layers += [nn.Linear(before, width), norm(width) if norm else nn.Identity(), nn.ReLU()]
        before = width
    return nn.Sequential(*layers, nn.Linear(before, 10))


def conv_net(place: int) -> nn.Module:
    """Return four convolutions of 16 channels and a head: (B, 40) → (B, 10)."""
    layers: list[nn.Module] = [nn.Unflatten(1, (1, 40))]
    before = 1
    for number, width in enumerate(_widths(place, 16, 4)):
        stride = 2 if number % 2 else 1
        layers += [nn.Conv1d(before, width, 5, padding=2, stride=stride), nn.ReLU()]
        before = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(before * 10, 10))


class Mlp(nn.Module):
    """A pre-norm residual MLP: (…, D) → (…, D)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, h: Tensor) -> Tensor:
        """Return features."""
        return h + self.down(nn.functional.gelu(self.up(self.norm(h))))


def residual_net(place: int) -> nn.Module:
    """Return four residual MLPs of 64 with 128 hidden units: (B, 40) → (B, 10)."""
    blocks = [Mlp(64, hidden) for hidden in _widths(place, 128, 4)]
    return nn.Sequential(nn.Linear(40, 64), *blocks, nn.LayerNorm(64), nn.Linear(64, 10))


class Transformer(nn.Module):
    """Three blocks with MLPs of 256 hidden units: (B, T) → (B, T, number of tokens)."""

    def __init__(self, place: int, width: int = WIDTH) -> None:
        super().__init__()
        num_tokens = _num_tokens()
        self.embed = Embedding(num_tokens)
        blocks: list[nn.Module] = []
        for hidden in _widths(place, 4 * width, 3):
            blocks += [Residual(Attention(width)), Mlp(width, hidden)]
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_tokens)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return logits."""
        return self.head(self.norm(self.blocks(self.embed(tokens))))


class Encoder(nn.Module):
    """Three of torch's encoder layers of 32 over ten tokens of four positions: (B, 40) → (B, 10)."""

    def __init__(self, place: int) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 32)
        self.mark = nn.Embedding(10, 32)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(32, 4, hidden, dropout=0.0, batch_first=True)
            for hidden in _widths(place, 128, 3)
        )
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits."""
        h = self.embed(x.unflatten(1, (10, 4))) + self.mark(torch.arange(10))
        for layer in self.layers:
            h = layer(h)
        return self.head(h.mean(dim=1))


@cache
def many_inputs() -> Problem:
    """Return the signals of MNIST-1D seen by many noisy sensors, each at a random mixture of positions."""
    generator = torch.Generator().manual_seed(0)
    seen = torch.randn(40, SENSORS, generator=generator) / 40**0.5
    problem = conv()

    def look(data: tuple[Tensor, Tensor], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        sensed = data[0] @ seen
        return sensed + SENSOR_NOISE * torch.randn(sensed.shape, generator=generator), data[1]

    def batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return look(problem.batch(generator), generator)

    return replace(problem, batch=batch, validation=look(problem.validation, generator))


@cache
def _num_tokens() -> int:
    (embedding,) = (m for m in language_model().host().modules() if isinstance(m, Embedding))
    return embedding.token.num_embeddings


FAMILIES: Mapping[str, Family] = {
    "plain MLP": Family(build=plain_mlp, narrow=lambda n: f"{3 * n}", num_places=4),
    "MLP, LayerNorm": Family(
        build=lambda n: plain_mlp(n, nn.LayerNorm), narrow=lambda n: f"{3 * n}", num_places=4
    ),
    "MLP, BatchNorm": Family(
        build=lambda n: plain_mlp(n, nn.BatchNorm1d), narrow=lambda n: f"{3 * n}", num_places=4
    ),
    "MLP, 2,048 inputs": Family(
        build=lambda n: plain_mlp(n, inputs=SENSORS),
        narrow=lambda n: f"{3 * n}",
        num_places=4,
        problem=many_inputs,
    ),
    "conv net": Family(build=conv_net, narrow=lambda n: f"{1 + 2 * n}", num_places=4),
    "residual net": Family(build=residual_net, narrow=lambda n: f"{1 + n}.up", num_places=4),
    "transformer": Family(
        build=Transformer,
        narrow=lambda n: f"blocks.{2 * n + 1}.up",
        num_places=3,
        problem=language_model,
    ),
    "torch's encoder": Family(build=Encoder, narrow=lambda n: f"layers.{n}.linear1", num_places=3),
}


def first_growth(family: Family, place: int, seed: int, policy: Policy) -> str | None:
    """Return the layer beside which the policy grows first; None if it grows something else."""
    torch.manual_seed(seed)
    problem = family.problem()
    model = family.build(place)
    generator = torch.Generator().manual_seed(seed)
    bed = wrap(model, example=problem.batch(generator)[0][:8], widen=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    with Tamiyo(bed, optimizer, policy=policy, epochs=EPOCHS) as tamiyo:
        for _ in range(EPOCHS):
            for _ in range(STEPS_PER_EPOCH):
                inputs, targets = problem.batch(generator)
                loss = problem.loss_of(model(inputs), targets).mean()
                optimizer.zero_grad()
                loss.backward()  # pyright: ignore[reportUnknownMemberType]
                optimizer.step()  # pyright: ignore[reportUnknownMemberType]
            packet = tamiyo.end_epoch(val_loss=_validation_loss(model, problem))
            for decision in packet.decisions:
                if decision.seed_id is not None:
                    return bed.sites[decision.seed_id[0]].widens
    return None


def _validation_loss(model: nn.Module, problem: Problem) -> float:
    model.eval()
    with torch.no_grad():
        inputs, targets = problem.validation
        loss = problem.loss_of(model(inputs), targets).mean().item()
    model.train()
    return loss


def hits(name: str, place: int, seed: int, policy: str) -> bool:
    """Tell whether a policy's first growth lands on the narrow layer."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    family = FAMILIES[name]
    return first_growth(family, place, seed, POLICIES[policy](seed)) == family.narrow(place)


def main() -> None:
    """Try every place in every family, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=list(POLICIES))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, help="keeps what is done, one line for each run")
    arguments = parser.parse_args()
    names: list[str] = arguments.families
    policies: list[str] = arguments.policies
    done = _kept(arguments.out)
    wanted = [
        (name, place, seed, policy)
        for name in names
        for place in range(FAMILIES[name].num_places)
        for seed in range(arguments.seeds)
        for policy in policies
    ]
    missing = [run for run in wanted if run not in done]
    random.Random(0).shuffle(missing)  # so that the bar is about right
    with Progress() as progress, ProcessPoolExecutor(arguments.processes) as processes:
        shown = progress.add_task("hosts", total=len(missing))
        running = {processes.submit(hits, *run): run for run in missing}
        for finished in as_completed(running):
            run = running[finished]
            done[run] = finished.result()
            if arguments.out is not None:
                with arguments.out.open("a", encoding="utf-8") as lines:
                    lines.write(json.dumps([*run, done[run]]) + "\n")
            progress.advance(shown)
    print(f"| hosts | places | {' | '.join(policies)} |")
    print("|" + "---|" * (2 + len(policies)))
    for name in names:
        shares: list[str] = []
        for policy in policies:
            found = [done[run] for run in wanted if (run[0], run[3]) == (name, policy)]
            shares.append(f"{sum(found)} of {len(found)}")
        print(f"| {name} | {FAMILIES[name].num_places} | {' | '.join(shares)} |")


def _kept(path: Path | None) -> dict[tuple[str, int, int, str], bool]:
    """Return what an interrupted command had done."""
    if path is None or not path.exists():
        return {}
    lines = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    return {(name, place, seed, policy): hit for name, place, seed, policy, hit in lines}


if __name__ == "__main__":
    main()
