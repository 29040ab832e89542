"""Growing beside not growing, on paired seeds at equal training FLOPs: one table and one picture.

    uv run python tests/benchmarks/growth --seeds 5 --out growth-results --picture growth.svg

Finished runs are kept in the folder, so that an interrupted command goes on where it was. `--problems conv
--seeds 1 --share 0.1` is a short form.
"""

import argparse
import dataclasses
import json
import logging
import os
import platform
import random
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from statistics import mean

import torch
from arms import ARMS, compete
from picture import draw
from problems import PROBLEMS
from rich.progress import Progress

type Runs = Mapping[str, Mapping[str, float | None]]
"""Results of one seed, by arm."""


def compete_once(name: str, seed: int, rate: float, share: float, out: Path) -> None:
    """Run every arm of one problem on one seed at one learning rate, and keep the results."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    problem = PROBLEMS[name]()
    problem = dataclasses.replace(
        problem,
        steps=max(400, round(problem.steps * share)),
        ramp_steps=max(4, round(problem.ramp_steps * share)),
    )
    results = {
        arm: dataclasses.asdict(result) for arm, result in compete(problem, seed, rate).items()
    }
    unfinished = _kept(out, name, seed, rate).with_suffix(".part")
    unfinished.write_text(json.dumps(results, indent=1), encoding="utf-8")
    unfinished.rename(_kept(out, name, seed, rate))


def _kept(out: Path, name: str, seed: int, rate: float) -> Path:
    return out / f"{name}-{seed}-{rate}.json"


def interval(differences: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the mean of paired differences."""
    dice = random.Random(0)
    means = sorted(mean(dice.choices(differences, k=len(differences))) for _ in range(4000))
    return means[100], means[3899]


def table(name: str, runs: Mapping[float, Sequence[Runs]]) -> str:
    """Return the table of one problem, in Markdown; `runs` are by learning rate."""
    problem = PROBLEMS[name]()
    key, better = ("accuracy", 1.0) if problem.is_classification else ("loss", -1.0)
    best = {arm: _best_rate(runs, arm) for arm in ARMS}
    grown = _values(runs[best["grown"]], "grown", key)
    lines = [
        f"**{problem.name}**, {len(grown)} seeds",
        "",
        f"| arm | {key} | grown is better by (95 %) | rate | parameters | GFLOPs | steps | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for arm in ARMS:
        mine = runs[best[arm]]
        values = _values(mine, arm, key)
        gains = [better * (a - b) for a, b in zip(grown, values, strict=True)]
        low, high = interval(gains)
        gain = "" if arm == "grown" else f"{mean(gains):+.3g} ({low:+.3g} … {high:+.3g})"
        lines.append(
            f"| {arm} | {mean(values):.4g} | {gain} | {best[arm]:g} "
            f"| {_mean(mine, arm, 'parameters'):,.0f} | {_mean(mine, arm, 'flops') / 1e9:,.1f} "
            f"| {_mean(mine, arm, 'steps'):,.0f} | {_mean(mine, arm, 'seconds'):.0f} |"
        )
    return "\n".join(lines)


def _best_rate(runs: Mapping[float, Sequence[Runs]], arm: str) -> float:
    return min(runs, key=lambda rate: _mean(runs[rate], arm, "validation_loss"))


def _values(runs: Sequence[Runs], arm: str, key: str) -> list[float]:
    return [float(run[arm][key] or 0.0) for run in runs]


def _mean(runs: Sequence[Runs], arm: str, key: str) -> float:
    return mean(_values(runs, arm, key))


def main() -> None:
    """Run what is missing, print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rates", type=float, nargs="+", help="instead of each problem's own")
    parser.add_argument("--share", type=float, default=1.0, help="of the budget of training FLOPs")
    parser.add_argument("--out", type=Path, default=Path("growth-results"))
    parser.add_argument("--picture", type=Path, help="an SVG or PNG file to draw the results into")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    names: list[str] = arguments.problems
    rates: dict[str, Sequence[float]] = {
        name: arguments.rates or PROBLEMS[name]().learning_rates for name in names
    }
    wanted = [
        (name, seed, rate)
        for seed in range(arguments.seeds)
        for name in names
        for rate in rates[name]
    ]
    missing = [each for each in wanted if not _kept(out, *each).exists()]
    with Progress() as progress, ProcessPoolExecutor(arguments.processes) as processes:
        shown = progress.add_task("runs", total=len(missing))
        running = [processes.submit(compete_once, *each, arguments.share, out) for each in missing]
        for finished in as_completed(running):
            finished.result()
            progress.advance(shown)
    print(f"{platform.platform()}, torch {torch.__version__}, one thread for each run\n")
    panels: dict[str, dict[str, list[float]]] = {}
    units: dict[str, str] = {}
    for name in names:
        runs = {
            rate: [
                json.loads(_kept(out, name, seed, rate).read_text(encoding="utf-8"))
                for seed in range(arguments.seeds)
            ]
            for rate in rates[name]
        }
        print(table(name, runs) + "\n")
        problem = PROBLEMS[name]()
        key = "accuracy" if problem.is_classification else "loss"
        units[problem.name] = "test accuracy in %" if problem.is_classification else "test loss"
        panels[problem.name] = {arm: _values(runs[_best_rate(runs, arm)], arm, key) for arm in ARMS}
    if arguments.picture is not None:
        draw(panels, units, arguments.picture)


if __name__ == "__main__":
    main()
