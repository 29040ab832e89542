"""Draws runs together: `tamiyo compare`. One page with a table and the curves of every run in a colour."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from esper.contracts import ConfigError
from esper.contracts.words import plural
from esper.tamiyo.pictures import draw_curve, draw_sizes, to_svg
from esper.tamiyo.report import render
from esper.tamiyo.story import Story, read_story

MAX_RUNS = 10
"""As many as there are colours that a person can tell apart."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One run in the table."""

    run: str
    setting: str
    """What is not the same in all runs."""
    accuracy: float | None
    loss: float | None
    parameters: int
    kept: int
    removed: int


def read_runs(folders: Sequence[Path]) -> list[Story]:
    """Read the runs that are to be compared.

    Raises:
        ConfigError: for fewer than two runs, one that is named twice, or more than `MAX_RUNS`.
        EsperError: if one cannot be read.

    """
    if not 2 <= len(folders) <= MAX_RUNS:
        raise ConfigError(
            f"{plural(len(folders), 'run')}; expected 2 to {MAX_RUNS} different ones to compare: name those "
            "that belong together, for example runs/*digits*"
        )
    stories = [read_story(folder) for folder in folders]
    names = [story.run_id for story in stories]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"run {', '.join(twice)} is named twice; compare different ones")
    return stories


def compared(stories: Sequence[Story]) -> list[Row]:
    """Return the rows of the table, in the order of the runs."""
    configs = [story.config.public() for story in stories]
    different = [
        key
        for key in configs[0]
        if key != "out" and any(config[key] != configs[0][key] for config in configs)
    ]
    rows: list[Row] = []
    for story, config in zip(stories, configs, strict=True):
        held_out = story.grown.held_out
        rows.append(
            Row(
                run=story.run_id,
                setting=", ".join(f"{key} {config[key]}" for key in different) or "the same",
                accuracy=held_out.accuracy if held_out is not None else None,
                loss=held_out.loss if held_out is not None else None,
                parameters=story.grown.parameters,
                kept=len(story.kept),
                removed=len(story.removed),
            )
        )
    return rows


def render_comparison(stories: Sequence[Story]) -> str:
    """Return the page as HTML; nothing in it is loaded from elsewhere."""
    pictures: list[str] = []
    if any(p.val_accuracy is not None for story in stories for p in story.grown.curve):
        pictures.append(
            to_svg(draw_curve(stories, "val_accuracy", "validation accuracy"), "accuracy by epoch")
        )
    pictures.append(to_svg(draw_curve(stories, "val_loss", "validation loss"), "loss by epoch"))
    pictures.append(to_svg(draw_sizes(stories, "parameters", "parameters"), "parameters by epoch"))
    tasks = sorted({story.config.task for story in stories})
    return render("comparison.html.j2", rows=compared(stories), pictures=pictures, tasks=tasks)
