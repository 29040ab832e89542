"""Renders `report.html`: one self-contained page that a stranger understands in a minute.

Fed by the `RunRecord` alone; pictures come from `pictures`.
"""

from importlib.resources import files

from jinja2 import Environment, StrictUndefined

from esper.contracts import SeedState
from esper.tamiyo.pictures import draw_curves, draw_timeline
from esper.tamiyo.summary import RunRecord


def render_report(record: RunRecord) -> str:
    """Return the page as HTML; nothing in it is loaded from elsewhere."""
    source = files("esper.tamiyo").joinpath("templates/report.html.j2").read_text("utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    template = environment.from_string(source)
    reports = record.field_reports
    return template.render(
        record=record,
        config=record.config,
        kept=sum(report.outcome is SeedState.FOSSILIZED for report in reports),
        removed=sum(report.outcome is not SeedState.FOSSILIZED for report in reports),
        headline=_headline(record),
        curves=draw_curves(record),
        timeline=draw_timeline(record) if record.events else None,
    )


def _headline(record: RunRecord) -> str:
    """Say in one sentence what growing changed on held-out data."""
    grown, twin = record.grown.held_out, record.twin.held_out if record.twin else None
    if grown is None or grown.accuracy is None:
        return "The run was stopped before anything could be measured."
    sentence = f"The grown model answers {grown.accuracy:.1%} of the held-out data correctly"
    if twin is None or twin.accuracy is None:
        return sentence + "."
    points = 100 * (grown.accuracy - twin.accuracy)
    if points == 0:
        return sentence + ", just as its twin that never grew."
    comparison = "more" if points > 0 else "fewer"
    return (
        f"{sentence}; its twin that never grew, {twin.accuracy:.1%}: {abs(points):.1f} points "
        f"{comparison}."
    )
