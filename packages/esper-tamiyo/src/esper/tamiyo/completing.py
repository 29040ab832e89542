"""What shells offer for the values of options: names of built-in parts, and run folders.

The names stand here once more, because a shell waits for them: the modules that own them import torch,
which takes seconds. A test holds them against their owners.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from esper.tamiyo.config import SCRIPTED, TRACKERS

TASKS = (
    *("digits", "mnist1d", "text", "table", "images"),
    *("mnist", "fashion-mnist", "cifar10", "cifar100"),
)
HOSTS = ("mlp", "cnn", "resnet", "transformer")
COLLECTIONS = ("torchvision:", "timm:")
POLICIES = ("gap", "heuristic", "random", "never")


RUNS = Path("runs")
"""Where run folders are made by default."""

type Complete = Callable[[str], list[str]]


def names(*offered: str) -> Complete:
    """Return what completes one of these names."""

    def complete(incomplete: str) -> list[str]:
        return [name for name in offered if name.startswith(incomplete)]

    return complete


tasks = names(*TASKS)
hosts = names(*HOSTS, *COLLECTIONS)
devices = names("auto", "cpu", "cuda")
precisions = names("float32", "bfloat16", "float16")
schedules = names("constant", "cosine")
trackers = names(*TRACKERS)


def policies(incomplete: str) -> list[str]:
    """Complete a policy: a built-in one, or a run to replay."""
    if incomplete.startswith(SCRIPTED):
        return [f"{SCRIPTED}{run}" for run in runs(incomplete.removeprefix(SCRIPTED))]
    return names(*POLICIES, SCRIPTED)(incomplete)


def runs(incomplete: str) -> list[str]:
    """Complete a run folder, the newest first: those in `runs/`, and those that the text leads to."""
    typed = Path(incomplete)
    parent = typed if incomplete.endswith("/") else typed.parent
    found = dict.fromkeys([*_runs_in(RUNS), *_runs_in(parent)])
    return [str(run) for run in found if str(run).startswith(incomplete)]


def _runs_in(folder: Path) -> Sequence[Path]:
    return sorted(_run_folders(folder), reverse=True)


def _run_folders(folder: Path) -> Iterator[Path]:
    """Return the runs in a folder by the names that commands take, those that were killed, too."""
    try:
        for path in folder.iterdir():
            if (path / "config.yaml").is_file():
                yield path.with_name(path.name.removeprefix(".").removesuffix(".partial"))
    except OSError:
        return  # no such folder, or none that may be read: nothing to offer
