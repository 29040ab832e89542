"""The default on hosts beyond the suite, beside the small host with all operations.

    uv run --group rivals python tests/benchmarks/growth/beyond.py

Paired seeds, equal training FLOPs, each at the learning rate that is best for it on validation data.
"""

# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false

import argparse
import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from statistics import mean

import torch
from arms import DEFAULT, SMALL, compete
from nets import image_net
from problems import Problem, conv, digits, mnist1d
from tables import interval
from torch import nn
from training import Result

FIRST_SEED = 400
RATES = (0.01, 0.02, 0.03)


def with_norms() -> nn.Module:
    """Return strided convolutions with BatchNorm and two linear layers: (B, 1, 8, 8) → (B, 10)."""
    layers: list[nn.Module] = []
    for before, stride in ((1, 1), (6, 2), (6, 2)):
        convolution = nn.Conv2d(before, 6, 3, stride=stride, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(6), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 10))


def averaging() -> nn.Module:
    """Return convolutions whose positions are averaged before the head: (B, 40) → (B, 10)."""
    layers: list[nn.Module] = [nn.Unflatten(1, (1, 40))]
    for before, width, stride in ((1, 8, 1), (8, 16, 2), (16, 16, 2)):
        layers += [nn.Conv1d(before, width, 5, padding=2, stride=stride), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(16, 10))


CASES: Mapping[str, Callable[[], Problem]] = {
    "digits, convolutions of 8 channels": lambda: replace(
        digits(), host=lambda: image_net(8), steps=1500
    ),
    "digits, strides, BatchNorm, two linear layers": lambda: replace(
        digits(), host=with_norms, steps=1500
    ),
    "MNIST-1D 40,000, the conv net": lambda: replace(conv(), **mnist1d(50_000), steps=4000),
    "MNIST-1D 4,000, average over positions": lambda: replace(conv(), host=averaging, steps=3000),
}


def pair(case: str, seed: int, rate: float) -> dict[str, Result]:
    """Run the default and the small host."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    return compete(CASES[case](), seed, rate, (DEFAULT, SMALL))


def main() -> None:
    """Run everything, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    seeds = range(FIRST_SEED, FIRST_SEED + arguments.seeds)
    print(
        "| host | default | small host | better by (95 %) | parameters | what grew, and how often |"
    )
    print("|---|---|---|---|---|---|")
    with ProcessPoolExecutor(arguments.processes) as processes:
        for case in CASES:
            running = {
                rate: [processes.submit(pair, case, seed, rate) for seed in seeds] for rate in RATES
            }
            found = {rate: [run.result() for run in runs] for rate, runs in running.items()}
            grown, small = (
                max(
                    ([each[arm] for each in pairs] for pairs in found.values()),
                    key=lambda runs: mean(run.validation_accuracy or 0.0 for run in runs),
                )
                for arm in (DEFAULT, SMALL)
            )
            print(_row(case, grown, small), flush=True)


def _row(case: str, grown: list[Result], small: list[Result]) -> str:
    ends, bare = ([run.accuracy or 0.0 for run in runs] for runs in (grown, small))
    changes = [a - b for a, b in zip(ends, bare, strict=True)]
    low, high = interval(changes)
    sizes = f"{small[0].parameters:,} → {mean(run.parameters for run in grown):,.0f}"
    lives = Counter(", ".join(run.grown) or "nothing" for run in grown).most_common()
    what = "; ".join(f"{life}: {count}" for life, count in lives)
    change = f"{mean(changes):+.2f} ({low:+.2f} … {high:+.2f})"
    return f"| {case} | {mean(ends):.2f} | {mean(bare):.2f} | {change} | {sizes} | {what} |"


if __name__ == "__main__":
    main()
