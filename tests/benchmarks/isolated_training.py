"""Does isolated training help? A seed that learned at its site next to one that starts from zero.

    uv run python tests/benchmarks/isolated_training.py

Trains a small host for `--start` steps, then does four things from there, on the same batches:

- never: train on without a block;
- zero, now: graft a zero-initialised block at once and train on with it;
- zero, later: train on alone for `--own` steps, then graft it;
- learned: the block learns in TRAINING while the host trains on alone for `--own` steps; then graft it.

All take the same number of optimizer steps. "… same time" is "zero, now" with more steps: as many as take
the time that learning costs. Prints the change of the training loss against "never" right after the graft
(after `--own` steps) and `--joint` steps later, and what a step costs. `--variants` adds what was tried
and lost. What it prints is discussed in docs/experiments/0001-isolated-training.md. Takes one to two
minutes; with variants about ten.
"""
# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false, reportPrivateUsage=false

import argparse
import copy
import platform
import statistics
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from isolated_problems import Problem, problems
from kernel_cost import endorsed
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from esper.contracts import KasminaCommand, SeedState
from esper.kasmina import Bed, StageLengths, learning, wrap

type Losses = tuple[float, float]
"""Mean training loss right after the graft, and at the end."""

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


@dataclass(kw_only=True)
class Life:
    """A host in training at one moment, to be continued in several ways."""

    problem: Problem
    model: nn.Module
    optimizer: torch.optim.Optimizer
    generator: torch.Generator

    @classmethod
    def start(cls, problem: Problem, seed: int, steps: int) -> "Life":
        """Train a new host for some steps."""
        torch.manual_seed(seed)
        model = problem.host().train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=problem.rate)
        life = cls(
            problem=problem,
            model=model,
            optimizer=optimizer,
            generator=torch.Generator().manual_seed(seed),
        )
        life.train(steps)
        return life

    def again(self) -> "Life":
        """Return a copy that goes on with the same batches."""
        model = copy.deepcopy(self.model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=self.problem.rate)
        optimizer.load_state_dict(copy.deepcopy(self.optimizer.state_dict()))
        generator = torch.Generator()
        generator.set_state(self.generator.get_state())
        return Life(problem=self.problem, model=model, optimizer=optimizer, generator=generator)

    def train(self, steps: int) -> None:
        """Make optimizer steps."""
        for _ in range(steps):
            x, y = self.problem.batch(self.generator)
            self.optimizer.zero_grad()
            nn.functional.cross_entropy(self.model(x), y).backward()
            self.optimizer.step()

    def loss(self) -> float:
        """Return the training loss now; running statistics are made anew first, on a copy."""
        model, generator = copy.deepcopy(self.model), torch.Generator().manual_seed(3)
        with torch.no_grad():
            if any(isinstance(layer, nn.BatchNorm2d) for layer in model.modules()):
                for _ in range(30):
                    model(self.problem.batch(generator)[0])
            x, y = self.problem.held
            return float(nn.functional.cross_entropy(model.eval()(x), y))


def planted(life: Life, site: str) -> Bed:
    """Wrap the host with one seed, which waits with its kernel loaded."""
    stages = StageLengths(training_steps=1, ramp_steps=0)
    example = life.problem.held[0][:4]
    bed = wrap(life.model, targets=[site], example=example, stages=stages, sample_every_steps=None)
    bed.attach(life.optimizer)
    bed.trust(KEY.public_key().public_bytes_raw())
    kernel, blob = endorsed(life.problem.blueprint, bed.sites[0].signature.features, KEY)
    bed.admit(kernel, blob)
    for state in (SeedState.GERMINATED, SeedState.LOADING):
        order(bed, state, kernel.kernel_id)
    return bed


def order(bed: Bed, target: SeedState, kernel_id: str | None = None) -> None:
    """Command the bed's only seed."""
    bed.execute(
        KasminaCommand(
            seed_id=(0, 0),
            target=target,
            kernel_id=kernel_id if target is SeedState.GERMINATED else None,
            epoch=0,
            reason="benchmark",
        )
    )


def never(life: Life, _site: str, own: int, joint: int) -> Losses:
    """Train on without a block."""
    life.train(own)
    loss = life.loss()
    life.train(joint)
    return loss, life.loss()


def zero_now(life: Life, site: str, own: int, joint: int) -> Losses:
    """Graft a zero-initialised block at once."""
    bed = planted(life, site)
    order(bed, SeedState.GRAFTING)
    return never(life, site, own, joint)


def zero_later(life: Life, site: str, own: int, joint: int) -> Losses:
    """Graft a zero-initialised block after the host trained on alone."""
    bed = planted(life, site)
    life.train(own)
    order(bed, SeedState.GRAFTING)
    return never(life, site, 0, joint)


def learned(life: Life, site: str, own: int, joint: int) -> Losses:
    """Graft a block that learned while the host trained on alone."""
    bed = planted(life, site)
    order(bed, SeedState.TRAINING)
    life.train(own)
    order(bed, SeedState.GRAFTING)
    return never(life, site, 0, joint)


type Arm = Callable[[Life, str, int, int], Losses]

ARMS: Mapping[str, Arm] = {
    "never": never,
    "zero, now": zero_now,
    "zero, later": zero_later,
    "learned": learned,
}


SAME_TIME = "… same time"
"""As many steps more with the block grafted as take the time that it learned for."""


@contextmanager
def changed(**values: Any) -> Generator[None]:
    """Within the context, the learner has other constants or another objective."""
    before = {name: getattr(learning, name) for name in values}
    for name, value in values.items():
        setattr(learning, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(learning, name, value)


def towards_a_step(f: Tensor, call: learning._Call, _kind: object) -> Tensor:
    """Fit a step of fixed size against the gradient, by mean squares."""
    wanted = -2 * call.unit * call.g
    return (f - wanted).square().mean() / call.unit.square()


def along_the_gradient(f: Tensor, call: learning._Call, kind: Any) -> Tensor:
    """Point against the gradient at every row, with the norm held near the wanted one."""
    axis = 1 if kind.is_channels else -1
    u = f / call.unit
    size, pull = ((v.square().sum(dim=axis) + 1e-12).sqrt() for v in (u, call.g))
    cosine = (u * call.g).sum(dim=axis) / (pull * (size + 0.1))
    return cosine.mean() + (size - 1).relu().square().mean()


def without_curvature(f: Tensor, call: learning._Call, kind: Any) -> Tensor:
    """Go against the gradient, held back by the size of `f` only, not by what rows want of it."""
    u = f / call.unit
    return (u * call.g).sum(dim=1 if kind.is_channels else -1).mean() + u.square().mean() / 2


VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "… 1 own step": {"OWN_STEPS": 1, "MAX_CALLS": 1},
    "… 2 own steps": {"OWN_STEPS": 2},
    "… 8 own steps": {"OWN_STEPS": 8},
    "… 16 calls remembered": {"MAX_CALLS": 16},
    "… twice the change": {"RELATIVE_CHANGE": 0.3},
    "… half the change": {"RELATIVE_CHANGE": 0.075},
    "… a tenth of the damping": {"DAMPING": 0.1},
    "… one rate for all widths": {"LEARNING_RATE": 1e9, "MAX_LEARNING_RATE": 3e-3},
    "… no curvature": {"_objective": without_curvature},
    "… mean squares to a step": {"_objective": towards_a_step},
    "… cosine, bounded norm": {"_objective": along_the_gradient},
}


def varied(values: Mapping[str, Any]) -> Arm:
    """Return the arm "learned" with another learner."""

    def arm(life: Life, site: str, own: int, joint: int) -> Losses:
        with changed(**values):
            return learned(life, site, own, joint)

    return arm


def step_ratio(problem: Problem, site: str, state: SeedState) -> float:
    """Return the CPU time of a step with one seed in `state`, next to that of the bare host."""

    def timed(life: Life) -> float:
        begin = time.process_time()
        life.train(10)
        return time.process_time() - begin

    bare = Life.start(problem, 0, 5)
    wrapped = bare.again()
    bed = planted(wrapped, site)
    order(bed, state)
    wrapped.train(5)
    return statistics.median(timed(wrapped) / timed(bare) for _ in range(7))


@dataclass(kw_only=True)
class Results:
    """Relative changes of the loss against "never", by problem and arm, over sites and seeds."""

    after_graft: dict[tuple[str, str], list[float]] = field(
        default_factory=dict[tuple[str, str], list[float]]
    )
    at_end: dict[tuple[str, str], list[float]] = field(
        default_factory=dict[tuple[str, str], list[float]]
    )
    learning_ratio: dict[str, float] = field(default_factory=dict[str, float])
    grafted_ratio: dict[str, float] = field(default_factory=dict[str, float])

    def add(self, problem: str, arm: str, losses: Losses, base: Losses) -> None:
        """File one run."""
        for kept, loss, other in zip((self.after_graft, self.at_end), losses, base, strict=True):
            kept.setdefault((problem, arm), []).append(100 * (loss / other - 1))


def measure(arguments: argparse.Namespace) -> Results:
    """Do all the runs."""
    results = Results()
    arms = dict(ARMS)
    if arguments.variants:
        arms |= {name: varied(values) for name, values in VARIANTS.items()}
    found = problems()
    for problem in found:
        for kept, state in (
            (results.learning_ratio, SeedState.TRAINING),
            (results.grafted_ratio, SeedState.GRAFTING),
        ):
            ratios = [step_ratio(problem, site, state) for site in problem.sites]
            kept[problem.name] = statistics.mean(ratios)
    todo = [(problem, seed) for problem in found for seed in range(arguments.seeds)]
    for problem, seed in track(todo, description="training"):
        start = Life.start(problem, seed, arguments.start)
        base = never(start.again(), "", arguments.own, arguments.joint)
        for site in problem.sites:
            for name, arm in arms.items():
                losses = base
                if name != "never":
                    losses = arm(start.again(), site, arguments.own, arguments.joint)
                results.add(problem.name, name, losses, base)
            cost = results.learning_ratio[problem.name] / results.grafted_ratio[problem.name]
            longer = zero_now(start.again(), site, round(cost * arguments.own), arguments.joint)
            results.add(problem.name, SAME_TIME, longer, base)
    return results


def show(results: Results, arguments: argparse.Namespace) -> None:
    """Print the tables in Markdown's shape."""
    console = Console(width=110)
    names = list(results.learning_ratio)
    arms = list(dict.fromkeys(arm for _, arm in results.after_graft))
    for title, figures in (
        (f"right after the graft, after {arguments.own} steps", results.after_graft),
        (f"{arguments.joint} joint steps later", results.at_end),
    ):
        table = Table(title=f"Training loss against never growing, in %, {title}")
        for column in ("", *names, "mean", "below zero, now"):
            table.add_column(column, justify="right" if column else "left")
        for arm in arms[1:]:
            means = [statistics.mean(figures[name, arm]) for name in names]
            cells = [f"{mean:+.1f}" for mean in (*means, statistics.mean(means))]
            pairs = [
                mine < other
                for name in names
                for mine, other in zip(figures[name, arm], figures[name, "zero, now"], strict=True)
            ]
            table.add_row(arm, *cells, f"{sum(pairs)}/{len(pairs)}")
        console.print(table)
    for what, ratio in (
        ("while a seed learns", results.learning_ratio),
        ("with its block grafted", results.grafted_ratio),
    ):
        cells = ", ".join(f"{name} {ratio[name]:.1f}" for name in names)
        console.print(f"A step {what} costs, in bare steps: {cells}.")
    console.print(
        f"{arguments.seeds} seeds and 2 sites each, from step {arguments.start}; "
        f"torch {torch.__version__}, one thread, {platform.machine()}"
    )


def draw(results: Results, path: Path) -> None:
    """Draw the two moments side by side as an SVG."""
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "esper", "font.size": 9})
    figure = Figure(figsize=(8, 2.8), layout="constrained")
    panels = figure.subplots(1, 2, sharey=False)
    names, arms = list(results.learning_ratio), ("zero, now", "zero, later", "learned")
    for panel, title, figures in (
        (panels[0], "right after the graft", results.after_graft),
        (panels[1], "after joint training", results.at_end),
    ):
        for offset, (arm, colour) in enumerate(zip(arms, ("#999", "#ccc", "#1b7837"), strict=True)):
            values = [statistics.mean(figures[name, arm]) for name in names]
            places = [place + 0.27 * (offset - 1) for place in range(len(names))]
            panel.bar(places, values, 0.25, label=arm, color=colour)
        panel.set_xticks(range(len(names)), [name.replace(", ", "\n") for name in names])
        panel.axhline(0, color="black", linewidth=0.6)
        panel.set_title(title)
    panels[0].set_ylabel("loss against never growing, %")
    panels[1].legend(frameon=False)
    figure.savefig(path, format="svg", metadata={"Date": None})


def main() -> None:
    """Measure, print, and draw if asked to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--start", type=int, default=60, help="steps of the host before")
    parser.add_argument("--own", type=int, default=20, help="steps in TRAINING")
    parser.add_argument("--joint", type=int, default=50, help="steps after the graft")
    parser.add_argument("--variants", action="store_true", help="other learners too; takes longer")
    parser.add_argument("--picture", type=Path, help="where to write an SVG")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = measure(arguments)
    show(results, arguments)
    if arguments.picture:
        draw(results, arguments.picture)


if __name__ == "__main__":
    main()
