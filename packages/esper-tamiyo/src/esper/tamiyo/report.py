"""Writes a run's report: `report.html`, one self-contained page, and its pictures as PNGs.

Made from the run folder alone (`story`), so it can be made again at any time: `tamiyo report`.
"""

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from matplotlib.figure import Figure

from esper.contracts.words import place, plural
from esper.tamiyo.explaining import headline
from esper.tamiyo.folder import write_whole
from esper.tamiyo.folding import fold
from esper.tamiyo.model_picture import draw_model, draw_narrow_model
from esper.tamiyo.pictures import draw_curve, draw_sizes, draw_timeline, save_png, to_svg
from esper.tamiyo.story import Story, read_story

PAGE, PICTURES = "report.html", "pictures"


def write_report(folder: Path, story: Story | None = None) -> list[Path]:
    """Write the report of the run in `folder` into it, as `story` if that was read already; return the files.

    Raises:
        NotFoundError, ConfigError: if it is no folder of a run that came to its end.
        OSError: if it cannot be written.

    """
    story = story or read_story(folder)
    pictures = draw(story)
    (folder / PICTURES).mkdir(exist_ok=True)
    written = [folder / PAGE]
    write_whole(written[0], render_report(story, pictures))
    for name, (figure, _) in pictures.items():
        written.append(folder / PICTURES / f"{name}.png")
        save_png(figure, written[-1])
    return written


def draw(story: Story) -> dict[str, tuple[Figure, str]]:
    """Return the pictures of a run with what they show, by name."""
    pictures: dict[str, tuple[Figure, str]] = {}
    if any(point.val_accuracy is not None for point in story.grown.curve):
        title = "validation accuracy"
        pictures["accuracy"] = draw_curve([story], "val_accuracy", title), f"{title} by epoch"
    title = "validation loss"
    pictures["loss"] = draw_curve([story], "val_loss", title), f"{title} by epoch"
    if story.attempts:
        pictures["seeds"] = draw_timeline(story), "the life of each seed by epoch"
    pictures["model"] = draw_model(story), "the model, and what grew where"
    for name, title in (("parameters", "parameters"), ("flops", "FLOPs of one forward pass")):
        if any(getattr(point, name) is not None for point in story.grown.curve):
            pictures[name] = draw_sizes([story], name, title), f"{title} by epoch"
    return pictures


def draw_narrow(story: Story) -> dict[str, tuple[Figure, str]]:
    """Return those pictures that a phone shows in another form, by the same names."""
    pictures = {"model": (draw_narrow_model(story), "the model, and what grew where, narrow")}
    if story.attempts:
        figure = draw_timeline(story, narrow=True)
        pictures["seeds"] = figure, "the life of each seed by epoch, narrow"
    return pictures


def render_report(story: Story, pictures: Mapping[str, tuple[Figure, str]]) -> str:
    """Return the page as HTML; nothing in it is loaded from elsewhere."""
    return render(
        "report.html.j2",
        story=story,
        config=story.config,
        summary=story.summary,
        headline=headline(story),
        decisions=fold(story.decisions),
        num_decisions=len(story.decisions),
        place=place,
        plural=plural,
        pictures=_as_svg(pictures),
        narrow=_as_svg(draw_narrow(story)),
    )


def _as_svg(pictures: Mapping[str, tuple[Figure, str]]) -> dict[str, str]:
    return {name: to_svg(figure, title) for name, (figure, title) in pictures.items()}


def render(template: str, **content: Any) -> str:
    """Return a page made from one of the package's templates."""
    folder = files("esper.tamiyo").joinpath("templates")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.from_string(folder.joinpath(template).read_text("utf-8")).render(
        style=folder.joinpath("page.css").read_text("utf-8"), **content
    )
