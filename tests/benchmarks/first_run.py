"""The default run next to its rivals, seeds 0 to 4: `uv run python tests/benchmarks/first_run.py`.

Prints held-out accuracy of the grown model, its twin that never grows, the same small host trained for
longer, and static nets of the final size. A step costs as much as there are parameters, which is what the
rows of equal FLOPs go by; what a seed learns beside the host for a few epochs is not counted. Takes about two
minutes; what it prints is in the README.
"""

import tempfile
from collections.abc import Callable
from itertools import count
from pathlib import Path
from statistics import mean

import torch

from esper.tamiyo import RunConfig, Task, load_task
from esper.tamiyo.architectures import mlp
from esper.tamiyo.run import run
from esper.tamiyo.training import measure, train_epoch
from esper.tamiyo.ui import Ui

SEEDS = range(5)
SMALL_WIDTH = 6
"""Of the two hidden layers of the host."""


def fit(task: Task, width: int, seed: int, epochs: int) -> tuple[float, int]:
    """Train an MLP as the default run does; return held-out accuracy and its parameters."""
    torch.manual_seed(seed)  # pyright: ignore[reportUnknownMemberType]
    model = mlp(task, width)
    config = RunConfig()
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate)
    for epoch in range(epochs):
        train_epoch(
            model,
            optimizer,
            task.train,
            batch_size=config.batch_size,
            order_seed=seed * 1_000_003 + epoch,
        )
    return measure(model, task.test).accuracy or 0.0, sum(p.numel() for p in model.parameters())


def static_width(num_parameters: int) -> int:
    """Return the width of the two hidden layers of the smallest MLP with at least so many parameters."""
    return next(width for width in count(1) if static_size(width) >= num_parameters)


def static_size(width: int) -> int:
    """Return the parameters of that MLP: 64 inputs, 10 outputs."""
    return 65 * width + (width + 1) * width + (width + 1) * 10


def grow(seed: int) -> tuple[tuple[float, int], tuple[float, int], int]:
    """Do the default run; return accuracy and parameters of the grown model and of its twin, and the cost.

    The cost is that of growing: the parameters that the model had, summed over the epochs.
    """
    with tempfile.TemporaryDirectory() as folder:
        record = run(RunConfig(seed=seed, out=Path(folder)), Ui(quiet=True))
    assert record.grown.held_out is not None
    assert record.twin is not None
    assert record.twin.held_out is not None
    return (
        (record.grown.held_out.accuracy or 0.0, record.grown.parameters),
        (record.twin.held_out.accuracy or 0.0, record.twin.parameters),
        sum(point.parameters for point in record.grown.curve),
    )


def main() -> None:
    """Print the table in Markdown."""
    torch.set_num_threads(1)
    task, epochs = load_task("digits"), RunConfig().epochs
    grown, twins, costs = zip(*(grow(seed) for seed in SEEDS), strict=True)
    widths = [static_width(parameters) for _, parameters in grown]
    sizes = [static_size(width) for width in widths]
    twin_epochs = [round(cost / size) for cost, (_, size) in zip(costs, twins, strict=True)]
    static_epochs = [round(cost / size) for cost, size in zip(costs, sizes, strict=True)]
    rivals: dict[str, Callable[[int], tuple[float, int]]] = {
        "grown": lambda seed: grown[seed],
        "twin, never grows": lambda seed: twins[seed],
        "twin, equal FLOPs": lambda s: fit(task, SMALL_WIDTH, s, twin_epochs[s]),
        "static net of that size": lambda s: fit(task, widths[s], s, epochs),
        "static net, equal FLOPs": lambda s: fit(task, widths[s], s, static_epochs[s]),
    }
    shares = [n / epochs for n in static_epochs]
    print(
        f"The static nets of equal FLOPs train for {min(shares):.0%} to {max(shares):.0%} of the epochs.\n"
    )
    print("| held-out accuracy in % | parameters, at most | seed 0 | 1 | 2 | 3 | 4 | mean |")
    print("|---|---|---|---|---|---|---|---|")
    for name, rival in rivals.items():
        results = [rival(seed) for seed in SEEDS]
        accuracies = [100 * accuracy for accuracy, _ in results]
        cells = " | ".join(f"{value:.1f}" for value in [*accuracies, mean(accuracies)])
        print(f"| {name} | {max(size for _, size in results):,} | {cells} |")


if __name__ == "__main__":
    main()
