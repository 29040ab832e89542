"""How many operations is growing worth? The default next to its own net from scratch with more of them.

    uv run --group rivals python tests/benchmarks/growth/worth.py --problems digits conv mlp plain plain40 lm

The net that the default ends as is trained from scratch with once, twice and four times the training FLOPs
that the default had. What four times as many do not bring, no way to grow that net can be expected to bring.
Paired seeds; each column at the rate that is best on validation data.
"""

# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false

import argparse
import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from statistics import mean

import torch
from arms import DEFAULT, MORE, compete
from problems import PROBLEMS
from tables import interval
from training import Result

ARMS = (DEFAULT, "default's net from scratch", *MORE)


def run(name: str, seed: int, rate: float) -> dict[str, Result]:
    """Run all arms once."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    return compete(PROBLEMS[name](), seed, rate, ARMS)


def row(name: str, runs: Mapping[float, Sequence[dict[str, Result]]]) -> str:
    """Return the row of a problem: each arm, and by how much more operations are better than the default."""
    best = {
        arm: max(runs, key=lambda rate: mean(_on_validation(r[arm]) for r in runs[rate]))
        for arm in ARMS
    }
    sign = -1 if runs[best[DEFAULT]][0][DEFAULT].accuracy is None else 1  # a loss
    figures = {arm: [_figure(each[arm]) for each in runs[best[arm]]] for arm in ARMS}
    cells = [name, f"{mean(figures[DEFAULT]):.4g}"]
    for arm in ARMS[1:]:
        pairs = zip(figures[arm], figures[DEFAULT], strict=True)
        by = [sign * (other - default) for other, default in pairs]
        low, high = interval(by)
        cells.append(f"{mean(figures[arm]):.4g}, {mean(by):+.3g} ({low:+.3g} … {high:+.3g})")
    return "| " + " | ".join(cells) + " |"


def _figure(result: Result) -> float:
    return result.loss if result.accuracy is None else result.accuracy


def _on_validation(result: Result) -> float:
    """Higher is better."""
    if result.validation_accuracy is None:
        return -result.validation_loss
    return result.validation_accuracy


def main() -> None:
    """Run everything, and print the table row by row."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--problems", nargs="+", choices=PROBLEMS, default=["digits", "conv", "mlp", "lm"]
    )
    parser.add_argument("--seeds", type=int, help="instead of each problem's own number")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    names: list[str] = arguments.problems
    print(f"| | {' | '.join(ARMS)} |\n{'|---' * (len(ARMS) + 1)}|", flush=True)
    with ProcessPoolExecutor(arguments.processes) as processes:
        for name in names:
            problem = PROBLEMS[name]()
            seeds = range(arguments.seeds or problem.num_seeds)
            running = {
                rate: [processes.submit(run, name, seed, rate) for seed in seeds]
                for rate in problem.learning_rates
            }
            runs = {rate: [each.result() for each in some] for rate, some in running.items()}
            print(row(problem.name, runs), flush=True)


if __name__ == "__main__":
    main()
