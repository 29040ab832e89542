"""A run that checkpoints after every step, can be killed in any state, and goes on where it was.

python kasmina_run.py FOLDER STATE     run in FOLDER until the process kills itself in STATE
python kasmina_run.py FOLDER resume    resume every run below FOLDER; run one that nobody kills
"""
# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import hashlib
import json
import os
import signal
import sys
import tempfile
from pathlib import Path

import torch
from kasmina_beds import wrap_host
from kasmina_factory import QUICK, Crucible, admit, wake
from kasmina_hosts import HOSTS, seed_everything
from kasmina_worlds import attach, live, seen, surround

from esper.contracts import KasminaCommand, SeedState
from esper.kasmina import Bed, load
from esper.kasmina.undo import World

S = SeedState

COMMANDS: dict[int, tuple[tuple[int, SeedState], ...]] = {
    1: ((0, S.GERMINATED), (0, S.LOADING), (0, S.TRAINING)),
    4: ((0, S.GRAFTING),),
    7: ((0, S.STABILIZATION),),
    9: ((0, S.EVALUATING),),
    11: ((0, S.FINE_TUNING),),
    13: ((0, S.FOSSILIZED), (1, S.GERMINATED), (1, S.LOADING), (1, S.GRAFTING)),
    16: ((1, S.CULLED),),
}
"""Before which step each seed is told what: the first one stays, the second one goes."""

NUM_STEPS = 18

WHEN = {
    "TRAINING": 2,
    "GRAFTING": 5,
    "STABILIZATION": 8,
    "EVALUATING": 9,
    "FINE_TUNING": 12,
    "FOSSILIZED": 15,
}
"""In the middle of which step the process is killed; in the last one another graft is pending."""


def begin(folder: Path) -> tuple[Bed, World, int]:
    """Begin the run, or go on with it."""
    host = HOSTS["conv2d"]
    if not (folder / "checkpoint.json").exists():
        model = host.make()
        seed_everything(1)
        bed = wrap_host(host, model, sample_every_steps=3)
    else:
        model = host.make(5)
        bed = load(model, folder, stages=QUICK, sample_every_steps=3)
    bed.trust(Crucible().public_key)
    world = surround(model, "adamw_foreach", "sequential", scaled=True, averaged=True)
    attach(bed, world)
    step = bed.resume(folder) if (folder / "checkpoint.json").exists() else 0
    return bed, world, step


def run(folder: Path, kill_at: str | None) -> str:
    """Run to the end and return the hash of all there is to see then."""
    bed, world, start = begin(folder)
    for step in range(start, NUM_STEPS):
        for site, target in COMMANDS.get(step, ()):
            kernel_id = admit(bed, site=site, change=wake)
            command = KasminaCommand(
                command_id=f"{step}-{site}-{target}",
                seed_id=(site, 0),
                target=target,
                kernel_id=kernel_id if target is S.GERMINATED else None,
                epoch=step,
                reason="the run says so",
            )
            bed.execute(command)
        if kill_at is not None and step == WHEN[kill_at]:
            next(bed.model.parameters()).register_hook(_die)
        live(world, 1, step, HOSTS["conv2d"].batch)
        bed.checkpoint(folder)
    text = str(seen(world, objects=False)) + bed.weights_sha256() + str(bed.seeds())
    return hashlib.sha256(text.encode()).hexdigest()


def _die(_gradient: torch.Tensor) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill(folder: Path) -> dict[str, int]:
    """Run until killed, once for each place to be killed at; return which signals ended them."""
    signals: dict[str, int] = {}
    for kill_at in WHEN:
        # A fork is a process of its own that need not import torch again.
        child = os.fork()
        if child == 0:
            run(folder / kill_at, kill_at)
            os._exit(0)
        signals[kill_at] = os.WTERMSIG(os.waitpid(child, 0)[1])
    return signals


def resume(folder: Path) -> dict[str, str]:
    """Run every run to its end, and one that nobody killed; return what became of them."""
    ends = {path.name: run(path, None) for path in sorted(folder.iterdir())}
    with tempfile.TemporaryDirectory() as fresh:
        return ends | {"never killed": run(Path(fresh), None)}


def main() -> None:
    torch.set_num_threads(1)
    print(json.dumps({"kill": kill, "resume": resume}[sys.argv[2]](Path(sys.argv[1]))))


if __name__ == "__main__":
    main()
