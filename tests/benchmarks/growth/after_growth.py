"""What should become of learning rates and optimizer state when a block comes? Experiment 0004.

    uv run python tests/benchmarks/growth/after_growth.py --seeds 5

The residual MLP grows its blocks on the input side at the first decision, as the arm `blocks, input side` of
the benchmark; the variants differ in what happens at that moment. Paired seeds, equal training FLOPs.
"""

# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

import argparse
import dataclasses
import logging
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from statistics import mean
from typing import Any, override

import torch
from arms import BLOCKS_EARLY, GROWS
from problems import residual_mlp
from tables import interval
from training import DECISIONS, SHARE_OF_RATE, measure, step_flops, train

from esper.contracts import SeedState, SystemStatePacket
from esper.tamiyo import Tamiyo

RATE = 4e-3

type Change = Callable[[torch.optim.Optimizer, list[dict[str, Any]]], None]
"""Done to the optimizer, with the new groups, as soon as the block is grafted."""


def _share(share: float) -> Change:
    def change(optimizer: torch.optim.Optimizer, new: list[dict[str, Any]]) -> None:
        for group in new:
            group[SHARE_OF_RATE] = share

    return change


def _warm_up(steps: int, *, all_groups: bool) -> Change:
    def change(optimizer: torch.optim.Optimizer, new: list[dict[str, Any]]) -> None:
        groups = optimizer.param_groups if all_groups else new
        done = 0

        def rise(*_: object) -> None:
            nonlocal done
            done += 1
            for group in groups:
                group[SHARE_OF_RATE] = min(1.0, done / steps)

        rise()
        optimizer.register_step_post_hook(rise)

    return change


def _forget(optimizer: torch.optim.Optimizer, new: list[dict[str, Any]]) -> None:
    optimizer.state.clear()


CHANGES: Mapping[str, Change | None] = {
    "as it is": None,
    "half the rate for the block": _share(0.5),
    "twice the rate for the block": _share(2.0),
    "its rate warms up over 100 steps": _warm_up(100, all_groups=False),
    "all rates warm up over 100 steps": _warm_up(100, all_groups=True),
    "the host's optimizer state is forgotten": _forget,
}
RAMPS: Mapping[str, int] = {
    "no ramp": 0,
    "ramp of 10 steps, not 40": 10,
    "ramp of 160 steps": 160,
}


class Changing(Tamiyo):
    """Does something to the optimizer when a block is grafted."""

    change: Change | None = None

    @override
    def end_epoch(self, **figures: Any) -> SystemStatePacket:
        """Decide, then change."""
        optimizer: torch.optim.Optimizer = self._optimizer
        before = len(optimizer.param_groups)
        packet = super().end_epoch(**figures)
        grafted = any(event.to_state is SeedState.GRAFTING for event in packet.events)
        if grafted and self.change is not None:
            self.change(optimizer, optimizer.param_groups[before:])
        return packet


def accuracy(variant: str, seed: int) -> float:
    """Return the test accuracy of one run."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    problem = residual_mlp()
    problem = dataclasses.replace(problem, ramp_steps=RAMPS.get(variant, problem.ramp_steps))
    torch.manual_seed(seed)
    model = problem.host()
    bed, policy = GROWS[BLOCKS_EARLY](problem, model, seed)

    def attach(optimizer: torch.optim.Optimizer) -> Tamiyo:
        tamiyo = Changing(
            bed,
            optimizer,
            policy=policy,
            epochs=DECISIONS,
            evaluate=lambda: measure(model, problem, problem.validation),
        )
        tamiyo.change = CHANGES.get(variant)
        return tamiyo

    budget = problem.steps * step_flops(model, problem)
    result = train(problem, model, seed=seed, rate=RATE, budget=budget, attach=attach)
    return result.accuracy or 0.0


def main() -> None:
    """Try every variant, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    with ProcessPoolExecutor(arguments.processes) as processes:
        running = {
            variant: [processes.submit(accuracy, variant, s) for s in range(arguments.seeds)]
            for variant in (*CHANGES, *RAMPS)
        }
        found = {variant: [each.result() for each in runs] for variant, runs in running.items()}
    print("| variant | test accuracy in % | better than as it is by (95 %) |\n|---|---|---|")
    for variant, values in found.items():
        gains = [a - b for a, b in zip(values, found["as it is"], strict=True)]
        low, high = interval(gains)
        print(f"| {variant} | {mean(values):.2f} | {mean(gains):+.2f} ({low:+.2f} … {high:+.2f}) |")


if __name__ == "__main__":
    main()
