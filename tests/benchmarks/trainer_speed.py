"""What the trainer costs next to a minimal loop written by hand: speed, start, memory.

    uv run python tests/benchmarks/trainer_speed.py

Speed: a whole run, with its records, checkpoints and servers in the process, and after each of its epochs one
epoch of the minimal loop: the same host, data, batches and optimizer, and the same measurement at its end.
The loop over the mini-batches alone, and the whole epoch with what is measured, decided and recorded at its
end; both as the ratio of the sums of wall time, and of the epochs in which the default policy watches (the
first quarter) and those behind them. Start: from the process' birth to its first step of the optimizer, next
to a process that only imports torch. Memory: the peak of a process that trains, next to one that trains by
the minimal loop, for small hosts and for large ones. Takes about seven minutes.
"""
# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, override
from unittest.mock import patch

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from esper.tamiyo import Budget, RunConfig, Task, load_task
from esper.tamiyo.hosts import build_host
from esper.tamiyo.policies import Gap
from esper.tamiyo.run import run
from esper.tamiyo.summary import Point
from esper.tamiyo.tasks import Goal, Split
from esper.tamiyo.training import measure, train_epoch
from esper.tamiyo.ui import Ui

WARM_UP_EPOCHS = 2
STARTS = 5

GOALS = {"never": 0.97, "default": 0.90}
"""The least share of the minimal loop's throughput, by policy."""


@dataclass(frozen=True)
class Case:
    """One host on one task."""

    task: str
    host: str
    epochs: int


CASES = (
    Case("digits", "mlp", 60),
    Case("digits", "cnn", 60),
    Case("digits", "resnet", 24),
    Case("mnist1d", "mlp", 60),
    Case("text", "transformer", 12),
)


def idle() -> Gap:
    """Return the default policy with a budget that no block fits: it does all that it does but grow."""
    return Gap(budget=Budget(parameters=1))


POLICIES = {"never": "never", "default": "trainer_speed:idle"}


class MinimalLoop:
    """What somebody would write to train this host on this task and nothing else."""

    def __init__(self, task: Task, model: nn.Module, config: RunConfig) -> None:
        self.task, self.model, self.config = task, model, config
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate)

    def epoch(self) -> float:
        """Train one epoch and measure on validation data; return the seconds that training took."""
        begun = time.perf_counter()
        data, batch_size = self.task.train.known(), self.config.batch_size
        self.model.train()
        total = 0.0
        order = torch.randperm(len(data.inputs))
        batches: Sequence[torch.Tensor] = torch.split(order, batch_size)
        for batch in batches:
            self.optimizer.zero_grad()
            loss = self.loss(data, batch)
            loss.backward()
            self.optimizer.step()
            total += loss.item() * len(batch)
        trained = time.perf_counter()
        measure(self.model, self.task.validation, goal=self.task.goal)
        return trained - begun

    def loss(self, data: Split, batch: torch.Tensor) -> torch.Tensor:
        """Return the loss of a mini-batch."""
        answers, targets = self.model(data.inputs[batch]), data.targets[batch]
        if self.task.goal is Goal.LANGUAGE:
            return nn.functional.cross_entropy(answers.flatten(0, 1), targets.flatten())
        return nn.functional.cross_entropy(answers, targets)


@dataclass(frozen=True)
class Epoch:
    """Wall time of one epoch of a run, and of the minimal loop next to it, in seconds."""

    loop: float
    whole: float
    loop_by_hand: float
    whole_by_hand: float


class Alternating(Ui):
    """Between two epochs of the run, does one of the minimal loop, and times both."""

    def __init__(self, rival: MinimalLoop) -> None:
        super().__init__(quiet=True)
        self.rival = rival
        self.epochs: list[Epoch] = []
        self._in_loop = 0.0
        self._since: float | None = None

    def train_epoch(self, *args: Any, **kwargs: Any) -> float:
        """Do what the trainer does in its loop, with a watch in hand."""
        begun = time.perf_counter()
        loss = train_epoch(*args, **kwargs)
        self._in_loop = time.perf_counter() - begun
        return loss

    @override
    def epoch(self, label: str, point: Point, epochs: int) -> None:
        before = time.perf_counter()
        loop_by_hand = self.rival.epoch()
        after = time.perf_counter()
        if self._since is not None:
            whole = before - self._since
            self.epochs.append(Epoch(self._in_loop, whole, loop_by_hand, after - before))
        self._since = after


def timed(case: Case, policy: str) -> list[Epoch]:
    """Return the times of each epoch of a run but the first."""
    with tempfile.TemporaryDirectory() as folder:
        config = RunConfig(
            task=case.task,
            host=case.host,
            epochs=case.epochs,
            policy=POLICIES[policy],
            twin=False,
            out=Path(folder),
        )
        task = load_task(case.task)
        model = build_host(case.host, task, seed=0)
        ui = Alternating(MinimalLoop(task, model, config))
        with patch("esper.tamiyo.epochs.train_epoch", ui.train_epoch):
            run(config, ui)
    return ui.epochs[WARM_UP_EPOCHS - 1 :]


def shares(epochs: Sequence[Epoch]) -> tuple[str, str]:
    """Return the throughput of the loop and of whole epochs, as shares of the minimal loop's."""
    loop = sum(e.loop_by_hand for e in epochs) / sum(e.loop for e in epochs)
    whole = sum(e.whole_by_hand for e in epochs) / sum(e.whole for e in epochs)
    return f"{loop:.3f}", f"{whole:.3f}"


FIRST_STEP = """
import os, sys, time
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
def stop(*_):
    print(time.time(), flush=True)
    os._exit(0)
register_optimizer_step_post_hook(stop)
sys.argv = ["train", "--out", {out!r}, "--quiet", "--no-twin"]
from esper.tamiyo.entry import main
main()
"""


def starts() -> tuple[float, float]:
    """Return the median seconds until torch is imported, and until the default run's first step."""
    torch_only: list[float] = []
    first_step: list[float] = []
    with tempfile.TemporaryDirectory() as out:
        for _ in range(STARTS):
            torch_only.append(_seconds_of("import time, torch; print(time.time())"))
            first_step.append(_seconds_of(FIRST_STEP.format(out=out)))
    return statistics.median(torch_only), statistics.median(first_step)


def _seconds_of(program: str) -> float:
    begun = time.time()
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return float(done.stdout.split()[-1]) - begun


def peak_of(kind: str, task: str, host: str, width: int, epochs: int) -> float:
    """Return the peak memory of a process that trains, in MB."""
    arguments = [kind, task, host, str(width), str(epochs)]
    done = subprocess.run(
        [sys.executable, __file__, "--peak", *arguments], capture_output=True, text=True, check=True
    )
    return float(done.stdout.split()[-1])


def _peak(kind: str, task_name: str, host: str, width: str, epochs: str) -> None:
    """Be such a process."""
    with tempfile.TemporaryDirectory() as folder:
        config = RunConfig(
            task=task_name,
            host=host,
            width=int(width),
            epochs=int(epochs),
            policy="never",
            twin=False,
            out=Path(folder),
        )
        if kind == "trainer":
            run(config, Ui(quiet=True))
        else:
            task = load_task(task_name)
            loop = MinimalLoop(task, build_host(host, task, seed=0, width=int(width)), config)
            for _ in range(config.epochs):
                loop.epoch()
    # Not ru_maxrss: a child begins with its parent's.
    status = Path("/proc/self/status").read_text()
    print(int(status.partition("VmHWM:")[2].split()[0]) / 1024)


def main(arguments: Sequence[str]) -> None:
    """Print the tables."""
    torch.set_num_threads(1)
    if arguments[:1] == ["--peak"]:
        _peak(*arguments[1:])
        return
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args(arguments)
    sys.path.insert(0, str(Path(__file__).parent))
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    console = Console()
    table = Table("policy", "task", "host", "epochs", "training loop", "whole epochs", "goal")
    for policy, goal in GOALS.items():
        for case in CASES:
            found = timed(case, policy)
            quarter = case.epochs // 4 - WARM_UP_EPOCHS
            parts = {"all": found}
            if policy == "default":
                parts |= {"first quarter": found[:quarter], "behind it": found[quarter:]}
            for name, part in parts.items():
                table.add_row(policy, case.task, case.host, name, *shares(part), f"{goal:.2f}")
    console.print(table)
    torch_only, first_step = starts()
    console.print(
        f"start: {torch_only:.2f} s until torch is imported, {first_step:.2f} s until the first step: "
        f"{first_step - torch_only:.2f} s beyond it (goal: 3)"
    )
    memory = Table("task", "host", "width", "peak by hand, MB", "peak of the run, MB", "ratio")
    for task, host, width, epochs in (
        ("digits", "mlp", 6, 20),
        ("digits", "resnet", 8, 4),
        ("text", "transformer", 32, 3),
        ("digits", "mlp", 6000, 1),
        ("digits", "resnet", 128, 1),
    ):
        by_hand, ours = (
            peak_of(kind, task, host, width, epochs) for kind in ("by hand", "trainer")
        )
        memory.add_row(
            task, host, str(width), f"{by_hand:.0f}", f"{ours:.0f}", f"{ours / by_hand:.3f}"
        )
    console.print(memory)


if __name__ == "__main__":
    main(sys.argv[1:])
