"""What a decision costs: proposals for many seeds, and what scoring all sites adds to an epoch.

    uv run python tests/benchmarks/decision_cost.py

First: the time of one proposal of the default policy, for hosts of up to 10,000 places with eight kernels
that fit. Second: epochs of a host with seeds (health sampled as ever, places to widen too, then all sites
scored), next to epochs of the bare host, in alternating order; CPU time of one thread, medians of ratios. The
first epoch is apart, since health is sampled closely in it. Takes about three minutes.
"""
# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Mapping

import torch
from rich.progress import track
from torch import Tensor, nn

from esper.contracts import (
    CompiledKernelArtifact,
    HealthSignal,
    KernelSignature,
    SeedState,
    SeedStatus,
    Site,
    SiteKind,
)
from esper.kasmina import Bed, wrap
from esper.tamiyo import EpochFigures, Gap, Observation

SIZES = (100, 1000, 10_000)
NUM_KERNELS = 8
PROPOSALS = 7
STEPS_PER_EPOCH = 400
LATER_EPOCHS = 4

SIGNATURE = KernelSignature(kind=SiteKind.FEATURES, features=64)


def kernels(signature: KernelSignature) -> list[CompiledKernelArtifact]:
    """Return kernels of several sizes that fit one signature."""
    return [
        CompiledKernelArtifact(
            kernel_id=f"{number:064x}",
            blueprint_id="b" * 64,
            blueprint_name=f"block{number}",
            signature=signature,
            size_bytes=1,
            num_parameters=1000 * (number + 1),
        )
        for number in range(NUM_KERNELS)
    ]


def many_places(num_seeds: int) -> Observation:
    """Return what a policy sees of a host with one dormant seed at each of many places."""
    places = range(num_seeds)
    return Observation(
        epoch=0,
        epochs_left=50,
        history=[EpochFigures(epoch=0, val_loss=1.0)],
        sites=[
            Site(layer_id=n, name=f"layer{n}", module_type="Linear", signature=SIGNATURE)
            for n in places
        ],
        seeds=[
            SeedStatus(seed_id=(n, 0), site=f"layer{n}", state=SeedState.DORMANT, alpha=0.0)
            for n in places
        ],
        health=[
            HealthSignal(
                layer_id=n,
                seed_id=0,
                chunk_id=0,
                epoch=0,
                activation_variance=1.0,
                dead_neuron_ratio=0.1,
                avg_correlation=0.2,
                gradient_norm=1.0,
                expressivity_gap=1.0 + n % 7,
                num_rows=100,
                is_ready_for_transition=False,
            )
            for n in places
        ],
        kernels=kernels(SIGNATURE),
        outcomes=[],
        num_parameters=10_000,
    )


def proposal_seconds(num_seeds: int) -> float:
    """Return the median time of a proposal; each is for an observation that nobody has looked at."""
    found: list[float] = []
    for _ in range(PROPOSALS):
        observation = many_places(num_seeds)
        start = time.perf_counter()
        proposal = Gap().propose(observation)
        found.append(time.perf_counter() - start)
        assert proposal.chosen is not None
    return statistics.median(found)


def mlp() -> tuple[nn.Module, Tensor]:
    """Return ten layers of 64 units, and a batch."""
    layers = [layer for _ in range(9) for layer in (nn.Linear(64, 64), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(64, 10)), torch.randn(64, 64)


def cnn() -> tuple[nn.Module, Tensor]:
    """Return six convolutions of 32 channels, and a batch."""
    layers: list[nn.Module] = [nn.Conv2d(3, 32, 3, padding=1), nn.ReLU()]
    for _ in range(5):
        layers += [nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()]
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
    return nn.Sequential(*layers, *head), torch.randn(32, 3, 16, 16)


def wide_mlp() -> tuple[nn.Module, Tensor]:
    """Return four layers of 512 units, and a batch."""
    layers = [layer for _ in range(4) for layer in (nn.Linear(512, 512), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(512, 10)), torch.randn(128, 512)


HOSTS: Mapping[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "MLP, 10 layers of 64": mlp,
    "MLP, 4 layers of 512": wide_mlp,
    "CNN, 6 layers of 32": cnn,
}


class Trainee:
    """One host in training."""

    def __init__(self, make: Callable[[], tuple[nn.Module, Tensor]], *, seeds: bool) -> None:
        torch.manual_seed(0)
        self.model, self.batch = make()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4)
        self.bed: Bed | None = None
        if seeds:
            self.bed = wrap(self.model, example=self.batch[:4], widen=True)
            self.bed.attach(self.optimizer)
        self.num_epochs = 0

    def epoch(self) -> float:
        """Train an epoch, score all sites at its end, and return the CPU seconds that it took."""
        start = time.thread_time()
        for _ in range(STEPS_PER_EPOCH):
            self.optimizer.zero_grad()
            self.model(self.batch).square().mean().backward()
            self.optimizer.step()
        if self.bed is not None:
            self._score(self.bed)
        self.num_epochs += 1
        return time.thread_time() - start

    def _score(self, bed: Bed) -> None:
        health = bed.end_epoch(self.num_epochs)
        signatures = dict.fromkeys(site.signature for site in bed.sites)
        observation = Observation(
            epoch=0,
            epochs_left=50,
            history=[EpochFigures(epoch=0, val_loss=1.0)],
            sites=bed.sites,
            seeds=bed.seeds(),
            health=health,
            kernels=[kernel for signature in signatures for kernel in kernels(signature)],
            outcomes=[],
            num_parameters=bed.num_parameters(),
        )
        assert Gap().propose(observation).chosen is not None


def epoch_ratios(make: Callable[[], tuple[nn.Module, Tensor]]) -> tuple[float, float]:
    """Return CPU time with seeds over that without, of the first epoch and of later ones."""
    Trainee(make, seeds=False).epoch()  # warms up the process
    firsts: list[float] = []
    later: list[float] = []
    for _ in range(3):
        bare, seeded = Trainee(make, seeds=False), Trainee(make, seeds=True)
        firsts.append(seeded.epoch() / bare.epoch())
        for number in range(LATER_EPOCHS):
            turns = (bare, seeded) if number % 2 else (seeded, bare)
            seconds = {trainee: trainee.epoch() for trainee in turns}
            later.append(seconds[seeded] / seconds[bare])
    return statistics.median(firsts), statistics.median(later)


def main() -> None:
    """Print both tables."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    torch.set_num_threads(1)
    print(f"{platform.platform()}, torch {torch.__version__}, one thread\n")
    print("| places | ms for a proposal |\n|---|---|")
    for size in SIZES:
        print(f"| {size:,} | {1000 * proposal_seconds(size):.1f} |")
    rows = [
        (name, *epoch_ratios(make)) for name, make in track(HOSTS.items(), description="epochs")
    ]
    print(
        f"\n| host | first epoch of {STEPS_PER_EPOCH} steps, to bare | later epochs |\n|---|---|---|"
    )
    for name, first, later in rows:
        print(f"| {name} | {first:.3f} | {later:.3f} |")


if __name__ == "__main__":
    main()
