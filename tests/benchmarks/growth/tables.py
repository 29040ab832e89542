"""Results as tables: every arm next to the default, and whether the goals hold."""

import random
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from arms import DEFAULT, NEVER, SMALL, STATIC, arms_of
from problems import Problem

type Runs = Mapping[str, Mapping[str, Any]]
"""Results of one seed, by arm."""


def interval(differences: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the mean of paired differences."""
    dice = random.Random(0)
    means = sorted(mean(dice.choices(differences, k=len(differences))) for _ in range(4000))
    return means[100], means[3899]


class Table:
    """All runs of one problem, by learning rate and seed."""

    def __init__(self, problem: Problem, runs: Mapping[float, Sequence[Runs]]) -> None:
        self.problem = problem
        self._runs = runs
        self.arms = [arm for arm in arms_of(problem) if arm in next(iter(runs.values()))[0]]
        self._key, self._sign = ("accuracy", 1.0) if problem.is_classification else ("loss", -1.0)
        self.unit = "test accuracy in %" if problem.is_classification else "test loss"

    def best_rate(self, arm: str) -> float:
        """Return the learning rate that does best on validation data."""
        return max(self._runs, key=lambda rate: self.on_validation(arm, rate))

    def on_validation(self, arm: str, rate: float | None = None) -> float:
        """Return a figure of validation data, higher is better."""
        return self._sign * self.mean(arm, f"validation_{self._key}", rate)

    def values(self, arm: str, key: str | None = None, rate: float | None = None) -> list[float]:
        """Return the figures of all seeds, at the arm's best learning rate unless told."""
        runs = self._runs[self.best_rate(arm) if rate is None else rate]
        return [float(run[arm][key or self._key] or 0.0) for run in runs]

    def mean(self, arm: str, key: str | None = None, rate: float | None = None) -> float:
        """Return the mean of `values`."""
        return mean(self.values(arm, key, rate))

    def gain(self, over: str, arm: str = DEFAULT) -> tuple[float, float, float]:
        """Return by how much an arm is better than another: mean and 95 % interval over paired seeds."""
        pairs = zip(self.values(arm), self.values(over), strict=True)
        gains = [self._sign * (mine - other) for mine, other in pairs]
        return mean(gains), *interval(gains)

    def markdown(self) -> str:
        """Return the table."""
        lines = [
            f"**{self.problem.name}**, {len(self.values(DEFAULT))} seeds",
            "",
            f"| arm | {self.unit} | default is better by (95 %) | rate | parameters | GFLOPs | steps "
            "| seconds |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for arm in self.arms:
            by, low, high = self.gain(arm)
            gain = "" if arm == DEFAULT else f"{by:+.3g} ({low:+.3g} … {high:+.3g})"
            lines.append(
                f"| {arm} | {self.mean(arm):.4g} | {gain} | {self.best_rate(arm):g} "
                f"| {self.mean(arm, 'parameters'):,.0f} | {self.mean(arm, 'flops') / 1e9:,.1f} "
                f"| {self.mean(arm, 'steps'):,.0f} | {self.mean(arm, 'seconds'):.0f} |"
            )
        return "\n".join(lines)

    def goals(self) -> str:
        """Return one row: the default against chance, from scratch, and a sweep of static nets."""
        if not self.problem.statics:
            harm, cost = self.gain(NEVER), self.mean(DEFAULT, "flops") / self.mean(NEVER, "flops")
            return (
                f"| {self.problem.name} | | | {_with_interval(harm)} than never growing, at "
                f"{cost:.1%} of its FLOPs |"
            )
        statics = [arm for arm in self.arms if arm.startswith(STATIC) or arm == SMALL]
        best = max(statics, key=self.on_validation)
        share = 1 / len(statics)  # each is run with the same rates
        chance, scratch = self.gain("random"), self.gain("default's net from scratch")
        return (
            f"| {self.problem.name} | {_with_interval(chance)} | {_with_interval(scratch)} "
            f"| {_with_interval(self.gain(best))} ({best}) at {share:.0%} |"
        )


GOALS = (
    "| default is better by | than random place and time | than its net from scratch "
    "| than the best of the sweep, at what share of the sweep's FLOPs |\n|---|---|---|---|"
)


def _with_interval(gain: tuple[float, float, float]) -> str:
    by, low, high = gain
    return f"{by:+.3g} ({low:+.3g} … {high:+.3g})"
