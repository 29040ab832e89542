"""Growing beside not growing, on paired seeds at equal training FLOPs: tables and one picture.

    uv run --group rivals python tests/benchmarks/growth --out growth-results --picture growth.svg

Finished runs are kept in the folder, so that an interrupted command goes on where it was. `--problems digits
--seeds 1 --share 0.1` is a short form. Without the group `rivals`, GroMo does not take part.
"""

import argparse
import dataclasses
import json
import logging
import os
import platform
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch
from arms import compete
from picture import draw
from problems import PROBLEMS
from rich.progress import Progress
from tables import GOALS, Table


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


def main() -> None:
    """Run what is missing, print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=list(PROBLEMS))
    parser.add_argument("--seeds", type=int, help="instead of each problem's own number")
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
    num_seeds = {name: arguments.seeds or PROBLEMS[name]().num_seeds for name in names}
    wanted = [
        (name, seed, rate)
        for seed in range(max(num_seeds.values()))
        for name in names
        for rate in rates[name]
        if seed < num_seeds[name]
    ]
    missing = [each for each in wanted if not _kept(out, *each).exists()]
    with Progress() as progress, ProcessPoolExecutor(arguments.processes) as processes:
        shown = progress.add_task("runs", total=len(missing))
        running = [processes.submit(compete_once, *each, arguments.share, out) for each in missing]
        for finished in as_completed(running):
            finished.result()
            progress.advance(shown)
    print(f"{platform.platform()}, torch {torch.__version__}, one thread for each run\n")
    tables = [
        Table(
            PROBLEMS[name](),
            {
                rate: [
                    json.loads(_kept(out, name, seed, rate).read_text(encoding="utf-8"))
                    for seed in range(num_seeds[name])
                ]
                for rate in rates[name]
            },
        )
        for name in names
    ]
    print(GOALS)
    for table in tables:
        print(table.goals())
    for table in tables:
        print("\n" + table.markdown())
    if arguments.picture is not None:
        draw(tables, arguments.picture)


if __name__ == "__main__":
    main()
