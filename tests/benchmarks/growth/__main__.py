"""Growing beside not growing, on paired seeds at equal training FLOPs: one table and one picture.

    uv run python tests/benchmarks/growth --seeds 5 --out growth-results

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
from problems import PROBLEMS
from rich.progress import Progress

type Runs = Mapping[str, Mapping[str, float | None]]
"""Results of one seed, by arm."""


def compete_once(name: str, seed: int, share: float, out: Path) -> None:
    """Run every arm of one problem on one seed, and keep the results."""
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    problem = PROBLEMS[name]()
    problem = dataclasses.replace(
        problem,
        steps=max(400, round(problem.steps * share)),
        ramp_steps=max(4, round(problem.ramp_steps * share)),
    )
    results = {arm: dataclasses.asdict(result) for arm, result in compete(problem, seed).items()}
    unfinished = _kept(out, name, seed).with_suffix(".part")
    unfinished.write_text(json.dumps(results, indent=1), encoding="utf-8")
    unfinished.rename(_kept(out, name, seed))


def _kept(out: Path, name: str, seed: int) -> Path:
    return out / f"{name}-{seed}.json"


def interval(differences: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the mean of paired differences."""
    dice = random.Random(0)
    means = sorted(mean(dice.choices(differences, k=len(differences))) for _ in range(4000))
    return means[100], means[3899]


def table(name: str, runs: Sequence[Runs]) -> str:
    """Return the table of one problem, in Markdown."""
    problem = PROBLEMS[name]()
    key, better = ("accuracy", 1.0) if problem.is_classification else ("loss", -1.0)
    lines = [
        f"**{problem.name}**, {len(runs)} seeds",
        "",
        f"| arm | {key} | grown is better by (95 %) | parameters | GFLOPs | steps | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for arm in ARMS:
        values = [float(run[arm][key] or 0.0) for run in runs]
        gains = [
            better * (float(run["grown"][key] or 0.0) - value)
            for run, value in zip(runs, values, strict=True)
        ]
        low, high = interval(gains)
        gain = "" if arm == "grown" else f"{mean(gains):+.3g} ({low:+.3g} … {high:+.3g})"
        others = [
            mean(float(run[arm][what] or 0.0) for run in runs)
            for what in ("parameters", "flops", "steps", "seconds")
        ]
        parameters, flops, steps, seconds = others
        lines.append(
            f"| {arm} | {mean(values):.4g} | {gain} | {parameters:,.0f} | {flops / 1e9:,.1f} "
            f"| {steps:,.0f} | {seconds:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--share", type=float, default=1.0, help="of the budget of training FLOPs")
    parser.add_argument("--out", type=Path, default=Path("growth-results"))
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    wanted = [(name, seed) for seed in range(arguments.seeds) for name in arguments.problems]
    missing = [(name, seed) for name, seed in wanted if not _kept(out, name, seed).exists()]
    with Progress() as progress, ProcessPoolExecutor(arguments.processes) as processes:
        shown = progress.add_task("runs", total=len(missing))
        running = [
            processes.submit(compete_once, name, seed, arguments.share, out)
            for name, seed in missing
        ]
        for finished in as_completed(running):
            finished.result()
            progress.advance(shown)
    print(f"{platform.platform()}, torch {torch.__version__}, one thread for each run\n")
    for name in arguments.problems:
        kept = [_kept(out, name, seed) for seed in range(arguments.seeds)]
        print(table(name, [json.loads(path.read_text(encoding="utf-8")) for path in kept]) + "\n")


if __name__ == "__main__":
    main()
