"""Takes a grown model home: what runs without Esper, and says what it is.

model.safetensors, lineage.json    the weights, and what grew where
model.pt2, model.onnx               the model as a program (torch.export), on request as ONNX
encoding.json                      how raw data becomes inputs, and answers classes or numbers
README.md                          the model card: use, data, host, growth, figures, hashes

It needs the run's folder only, not the data, unless the host is a function of the user's own.
"""

import shutil
from pathlib import Path

from pydantic import ValidationError

from esper.contracts import (
    ConfigError,
    EsperError,
    KasminaCommand,
    NotFoundError,
    SeedBed,
    SeedState,
    load_yaml,
    sha256_hex,
)
from esper.contracts.registry import saved_beds
from esper.contracts.words import place
from esper.tamiyo.card import model_card
from esper.tamiyo.config import RunConfig
from esper.tamiyo.hosts import build_host, is_own
from esper.tamiyo.saving import AVERAGED
from esper.tamiyo.story import damage_of, read_json
from esper.tamiyo.tasks import Source, Task, load_task
from esper.tamiyo.tasks.facts import FACTS_FILE, TaskFacts, facts_of, read_facts, write_encoding

CARD = "README.md"

_WAY = (
    SeedState.GRAFTING,
    SeedState.STABILIZATION,
    SeedState.EVALUATING,
    SeedState.FINE_TUNING,
    SeedState.FOSSILIZED,
)
"""From a graft to a part of the model."""


def export_run(run: Path, to: Path, *, onnx: bool = False, averaged: bool = False) -> list[Path]:
    """Write the model of a run into the new folder `to`; return the files.

    Args:
        run: the folder of the run.
        to: a new folder.
        onnx: also as ONNX.
        averaged: with the moving average of its weights.

    Raises:
        NotFoundError: if there is no such run, or it left no such model.
        ConfigError: if `to` is taken, or the data is needed and cannot be read.
        EsperError: if the model or the summary cannot be read, or the model not exported; `to` is not
            left half-written.

    """
    for name in ("config.yaml", "model.safetensors", "summary.json"):
        if not (run / name).is_file():
            raise NotFoundError(
                f"{run} has no {name}; tamiyo export takes the folder of a finished run, for example runs/ID"
            )
    saved = run / AVERAGED if averaged else run
    if not (saved / "model.safetensors").is_file():
        raise NotFoundError(
            f"{run} has no averaged weights, for it was trained without --ema; leave out --averaged"
        )
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise ConfigError(f"{to} is taken; give a new folder with --to")
    config = load_yaml(run / "config.yaml", RunConfig)
    summary = read_json(run, "summary.json")
    task, facts = _task(run, config)
    host = build_host(config.host, task, seed=config.seed, width=config.width)
    bed = saved_beds().load(host, saved)
    undecided = _decide(bed)
    was_there = to.is_dir()
    to.mkdir(parents=True, exist_ok=True)
    try:
        bed.export(to, task.train.first(2).inputs, onnx=onnx)
        if not (to / "lineage.json").exists():
            shutil.copyfile(saved / "lineage.json", to / "lineage.json")
        if task.encoding is not None:
            write_encoding(to, task.encoding)
        files = sorted(path for path in to.iterdir() if path.is_file())
        hashes = {path.name: sha256_hex(path.read_bytes()) for path in files}
        try:
            card = model_card(
                config,
                facts,
                task.encoding,
                summary,
                hashes,
                undecided,
                damage=damage_of(run, summary),
                averaged=averaged,
            )
        except (KeyError, TypeError, ValidationError) as error:
            raise ConfigError(
                f"{run / 'summary.json'} is not what this version of Esper writes "
                f"({type(error).__name__}: {error})"
            ) from error
        (to / CARD).write_text(card, encoding="utf-8")
    except BaseException:
        for path in to.iterdir():
            path.unlink()
        if not was_there:
            to.rmdir()
        raise
    return [*files, to / CARD]


def _task(run: Path, config: RunConfig) -> tuple[Task, TaskFacts]:
    """Return a task to build the host for, and what it was that the run learned from."""
    kept = read_facts(run)
    if kept is not None and not is_own(config.host):
        facts, encoding = kept
        return facts.stand_in(encoding), facts
    try:
        task = load_task(config.task, Source(path=config.data, target=config.target))
    except EsperError as error:
        why = (
            f"{run} is of an older Esper and has no {FACTS_FILE}"
            if kept is None
            else f"host {config.host!r} is a function of yours, which is given all of the task"
        )
        raise ConfigError(
            f"{error} (this export needs the data: {why}; put it back, or say where it is now in "
            f"{run / 'config.yaml'})"
        ) from error
    if kept is not None:
        return task, kept[0]
    # Of the data as it is now; whether the run saw the same nobody knows.
    return task, facts_of(task).model_copy(update={"data_sha256": None})


def _decide(bed: SeedBed) -> list[str]:
    """Make blocks part of the model that awaited their verdict when the run ended; say which.

    They were trained with, and the model that was saved no longer holds what the host was before them.
    """
    undecided: list[str] = []
    for seed in bed.seeds():
        if seed.state not in _WAY[:-1]:
            continue
        undecided.append(
            f"{seed.blueprint_name} at {place(seed.site)} had not been judged when the run ended; it is part "
            f"of this model in full (it was mixed in by {seed.alpha:.0%})"
        )
        for state in _WAY[_WAY.index(seed.state) + 1 :]:
            bed.execute(
                KasminaCommand(seed_id=seed.seed_id, target=state, epoch=0, reason="exported")
            )
    return undecided
