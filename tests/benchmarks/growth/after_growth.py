"""What should happen when a block comes? Warm-ups of learning rates, isolated learning. Experiment 0006.

    uv run python tests/benchmarks/growth/after_growth.py --problems conv digits mlp --seeds 3

The default of the benchmark, but for what the variants say. Paired seeds, equal training FLOPs.
"""

# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false

import argparse
import logging
import os
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from statistics import mean

import torch
from problems import PROBLEMS
from tables import interval
from training import DECISIONS, measure, step_flops, train

from esper.kasmina import StageLengths, wrap
from esper.tamiyo import Tamiyo

AS_IT_IS = "as it is"

VARIANTS: Mapping[str, tuple[int, int]] = {
    AS_IT_IS: (50, 0),
    "no warm-up": (0, 0),
    "a warm-up over 200 steps": (200, 0),
    "isolated learning first": (50, 20),
    "isolated learning first, a warm-up over 200 steps": (200, 20),
}
"""Steps over which the learning rates rise anew, and the block's own steps before it is grafted."""


def figure(name: str, variant: str, seed: int) -> float:
    """Return the test accuracy in %, or the loss, of one run."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    problem = PROBLEMS[name]()
    warm_up_steps, training_steps = VARIANTS[variant]
    torch.manual_seed(seed)
    model = problem.host()
    bed = wrap(
        model,
        example=problem.batch(torch.Generator().manual_seed(0))[0][:8],
        widen=True,
        stages=StageLengths(training_steps=training_steps),
    )

    def attach(optimizer: torch.optim.Optimizer) -> Tamiyo:
        return Tamiyo(
            bed,
            optimizer,
            epochs=DECISIONS,
            evaluate=lambda: measure(model, problem, problem.validation),
            warm_up_steps=warm_up_steps,
        )

    result = train(
        problem,
        model,
        seed=seed,
        rate=problem.learning_rates[0],
        budget=problem.steps * step_flops(model, problem),
        attach=attach,
    )
    return result.loss if result.accuracy is None else result.accuracy


def main() -> None:
    """Try every variant, and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--problems", nargs="+", choices=PROBLEMS, default=["conv", "digits", "mlp"]
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    names: list[str] = arguments.problems
    with ProcessPoolExecutor(arguments.processes) as processes:
        for name in names:
            running = {
                variant: [
                    processes.submit(figure, name, variant, s) for s in range(arguments.seeds)
                ]
                for variant in VARIANTS
            }
            found = {variant: [run.result() for run in runs] for variant, runs in running.items()}
            print(f"\n| {name} | mean | next to {AS_IT_IS} (95 %) |\n|---|---|---|")
            for variant, values in found.items():
                changes = [a - b for a, b in zip(values, found[AS_IT_IS], strict=True)]
                low, high = interval(changes)
                change = f"{mean(changes):+.3g} ({low:+.3g} … {high:+.3g})"
                print(f"| {variant} | {mean(values):.4g} | {change} |", flush=True)


if __name__ == "__main__":
    main()
