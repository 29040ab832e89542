"""The default on hosts beyond the suite, beside the small host and its own net from scratch.

    uv run --group rivals python tests/benchmarks/growth/beyond.py

Paired seeds, equal training FLOPs, each arm at the learning rate that is best for it on validation data.
"""

# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

import argparse
import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from statistics import mean
from typing import Any, cast

import kinds
import torch
from arms import DEFAULT, SCRATCH, SMALL, compete
from nets import image_net
from problems import Problem, conv, digits, mnist1d
from sklearn.datasets import load_breast_cancer, make_friedman1
from tables import interval
from torch import Tensor, nn
from torch.nn import functional
from training import Result

FROM_SCRATCH = next(iter(SCRATCH))
ARMS = (DEFAULT, SMALL, FROM_SCRATCH)


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


def from_rows(
    x: Tensor, y: Tensor, cuts: tuple[int, int], batch_size: int, **settings: Any
) -> Problem:
    """Return a problem of rows (N, inputs): to the first cut for training, to the second for validation."""
    first, second = cuts

    def batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(first, (batch_size,), generator=generator)
        return x[chosen], y[chosen]

    return Problem(
        statics={},
        batch=batch,
        validation=(x[first:second], y[first:second]),
        test=(x[second:], y[second:]),
        learning_rates=(),
        **settings,
    )


def friedman() -> Problem:
    """Return a regression on made data (Friedman 1991), targets with a variance of 1."""
    made = cast("Any", make_friedman1(6000, n_features=10, noise=0.5, random_state=0))
    x, y = (torch.tensor(part).float() for part in made)

    def squares(answers: Tensor, targets: Tensor) -> Tensor:
        return (answers.squeeze(1) - targets).square()

    return from_rows(
        2 * x - 1,
        (y - y.mean()) / y.std(),
        cuts=(4000, 5000),
        batch_size=64,
        name="regression",
        host=lambda: kinds.narrow_mlp(10, 6, 1),
        steps=6000,
        loss_of=squares,
        is_classification=False,
    )


def cancer() -> Problem:
    """Return scikit-learn's breast cancer: 350 samples to train with."""
    found = cast("Any", load_breast_cancer())
    x, y = torch.tensor(found.data).float(), torch.tensor(found.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return from_rows(
        ((x - x.mean(dim=0)) / x.std(dim=0))[order],
        y[order],
        cuts=(350, 450),
        batch_size=32,
        name="few rows",
        host=lambda: kinds.narrow_mlp(30, 8, 2),
        steps=1500,
        loss_of=partial(functional.cross_entropy, reduction="none"),
    )


@dataclass(frozen=True, kw_only=True)
class Group:
    """Hosts that were chosen at one time, with the seeds and rates that were fixed then."""

    first_seed: int
    rates: Sequence[float]
    cases: Mapping[str, Callable[[], Problem]]


def _digits(host: Callable[[], nn.Module], steps: int) -> Callable[[], Problem]:
    return lambda: replace(digits(), host=host, steps=steps)


def _signals(host: Callable[[], nn.Module], steps: int, **data: Any) -> Callable[[], Problem]:
    return lambda: replace(conv(), host=host, steps=steps, **data)


GROUPS: Mapping[str, Group] = {
    "convolutions": Group(
        first_seed=400,
        rates=(0.01, 0.02, 0.03),
        cases={
            "digits, convolutions of 8 channels": _digits(lambda: image_net(8), 1500),
            "digits, strides, BatchNorm, two linear layers": _digits(with_norms, 1500),
            "MNIST-1D 40,000, the conv net": lambda: replace(conv(), **mnist1d(50_000), steps=4000),
            "MNIST-1D 4,000, average over positions": _signals(averaging, 3000),
        },
    ),
    "kinds": Group(
        first_seed=600,
        rates=(0.005, 0.015),
        cases={
            "digits, depthwise convolutions, BatchNorm": _digits(kinds.depthwise, 1500),
            "digits, ResNet, BatchNorm": _digits(kinds.ResNet, 1500),
            "digits, DenseNet": _digits(kinds.DenseNet, 2000),
            "digits, convolutions, a hidden layer, dropout": _digits(kinds.with_hidden_layer, 1500),
            "digits, vision transformer": _digits(kinds.VisionTransformer, 2500),
            "digits, MLP-Mixer": _digits(kinds.Mixer, 2500),
            "digits, GRU": _digits(kinds.Recurrent, 2500),
            "digits, MLP, LayerNorm, dropout": _digits(kinds.normalised_mlp, 4000),
            "digits, gated MLP": _digits(kinds.Gated, 4000),
            "MNIST-1D 4,000, BatchNorm, a hidden layer": _signals(kinds.signals_with_norms, 3000),
            "MNIST-1D 4,000, residual convolutions": _signals(kinds.residual_signals, 2000),
            "MNIST-1D 40,000, residual convolutions": lambda: replace(
                conv(), **mnist1d(50_000), host=kinds.residual_signals, steps=3000
            ),
            "regression, MLP": friedman,
            "350 rows of a table, MLP": cancer,
        },
    ),
}


def run(group: str, case: str, seed: int, rate: float) -> dict[str, Result]:
    """Run all arms."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    return compete(GROUPS[group].cases[case](), seed, rate, ARMS)


def main() -> None:
    """Run everything, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--groups", nargs="+", choices=list(GROUPS), default=list(GROUPS))
    parser.add_argument(
        "--hosts",
        nargs="+",
        metavar="HOST",
        choices=[case for group in GROUPS.values() for case in group.cases],
        help="some of the groups' hosts, by the names in the table",
    )
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    print(
        "| host | default | small host | better by (95 %) | its net from scratch | better by (95 %) "
        "| parameters | what grew, and how often |"
    )
    print("|---|---|---|---|---|---|---|---|")
    with ProcessPoolExecutor(arguments.processes) as processes:
        for name in arguments.groups:
            group = GROUPS[name]
            seeds = range(group.first_seed, group.first_seed + arguments.seeds)
            for case in (c for c in group.cases if c in (arguments.hosts or group.cases)):
                running = {
                    rate: [processes.submit(run, name, case, seed, rate) for seed in seeds]
                    for rate in group.rates
                }
                found = {rate: [each.result() for each in runs] for rate, runs in running.items()}
                best = {
                    arm: max(
                        ([each[arm] for each in runs] for runs in found.values()),
                        key=lambda results: mean(_on_validation(each) for each in results),
                    )
                    for arm in ARMS
                }
                print(_row(case, best), flush=True)


def _row(case: str, best: Mapping[str, Sequence[Result]]) -> str:
    ends = {arm: [_on_test(each) for each in results] for arm, results in best.items()}
    grown, small = best[DEFAULT], best[SMALL]
    sizes = f"{small[0].parameters:,} → {mean(each.parameters for each in grown):,.0f}"
    lives = Counter(", ".join(each.grown) or "nothing" for each in grown).most_common()
    cells = [f"{mean(ends[DEFAULT]):.2f}"]
    for arm in (SMALL, FROM_SCRATCH):
        changes = [mine - other for mine, other in zip(ends[DEFAULT], ends[arm], strict=True)]
        low, high = interval(changes)
        cells += [f"{mean(ends[arm]):.2f}", f"{mean(changes):+.2f} ({low:+.2f} … {high:+.2f})"]
    cells += [sizes, "; ".join(f"{life}: {count}" for life, count in lives)]
    return f"| {case} | {' | '.join(cells)} |"


def _on_test(result: Result) -> float:
    """Return accuracy, or how much of the targets' variance is explained, in per cent."""
    return 100 * (1 - result.loss) if result.accuracy is None else result.accuracy


def _on_validation(result: Result) -> float:
    accuracy = result.validation_accuracy
    return 100 * (1 - result.validation_loss) if accuracy is None else accuracy


if __name__ == "__main__":
    main()
