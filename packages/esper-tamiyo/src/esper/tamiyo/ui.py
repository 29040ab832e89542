"""What a person sees while a run goes on: a live bar in a terminal, plain lines elsewhere.

The trainer calls these methods; nothing flows back.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.markup import escape

from esper.contracts import Action, SeedState, SystemStatePacket
from esper.contracts.words import place, plural
from esper.tamiyo.folder import resume_command
from esper.tamiyo.live import Overview, Watched, figures
from esper.tamiyo.output import Lasting
from esper.tamiyo.summary import Point, RunRecord, has_learned_nothing
from esper.tamiyo.verdict import Figures

PLAIN_EVERY_EPOCHS = 10
"""Without a terminal, a line of figures this often; decisions always get one."""

FORGED_EVERY_SECONDS = 5.0
"""A person who waits so long wants to know for what."""

REFRESHES_PER_SECOND = 4
"""Drawn by a thread of its own, whatever the pace of training; more would cost it time."""

_SHOWN = {Action.GERMINATE: "[green]grow[/]", Action.CULL: "[yellow]cull[/]"}


class Ui:
    """Shows a run's progress on standard output; a context manager.

    In a terminal the picture of `live` stays at the bottom, from the first training on, and is gone at
    the end; what is said scrolls by above it.
    """

    def __init__(self, *, quiet: bool = False, console: Console | None = None) -> None:
        self._console = console or Console(quiet=quiet, highlight=False)
        self._is_live = self._console.is_interactive and not quiet
        self._overview = Overview()
        self._last_said = time.monotonic()
        self._live = Live(
            get_renderable=lambda: self._overview,
            console=self._console,
            refresh_per_second=REFRESHES_PER_SECOND,
            transient=True,
        )

    def __enter__(self) -> Self:
        """Return it; the picture comes with the first training."""
        return self

    def __exit__(self, *_: object) -> None:
        """Take the picture away, so that the terminal is as it was."""
        self._live.stop()

    def say(self, text: str) -> None:
        """Print one line; `text` may hold rich markup."""
        self._last_said = time.monotonic()
        # Where nobody looks, a line stays one line, however long: for grep and for logs.
        self._console.print(text, soft_wrap=not self._is_live)

    def warn(self, text: str) -> None:
        """Say on standard error, even when quiet, that something beside the training went wrong."""
        print(f"train: {text}", file=sys.stderr)

    def forged(self, done: int, total: int) -> None:
        """Say now and then how many of the kernels are ready: wide layers take minutes."""
        is_news = done > 0 or self._is_live  # in a log, a line that says nothing yet is noise
        if is_news and time.monotonic() - self._last_said > FORGED_EVERY_SECONDS:
            self.say(f"forging and judging kernels: {done} of {total} ready")

    def begin(
        self,
        label: str,
        epochs: int,
        *,
        num_samples: int | None = None,
        earlier: Sequence[Point] = (),
    ) -> None:
        """Announce a training of `epochs` epochs of `num_samples` samples each, `earlier` ones behind it."""
        watched = Watched(label, epochs, num_samples=num_samples, earlier=earlier)
        others = [each for each in self._overview.trainings if each.label != label]
        self._overview.trainings = [*others, watched]  # a run that went back begins anew
        if self._is_live:
            self._live.start()

    def epoch(self, label: str, point: Point, epochs: int) -> None:
        """Show the figures of one finished epoch."""
        epoch = point.epoch
        self._watched(label).add(point)
        last = epoch + 1 == epochs
        if not self._is_live and (epoch % PLAIN_EVERY_EPOCHS == 0 or last):
            self.say(f"{label:<6} epoch {epoch + 1:>3}/{epochs}  {figures(point)}")

    def decisions(self, label: str, packet: SystemStatePacket) -> None:
        """Print what was decided to grow or to remove, and what was kept."""
        self._watched(label).packet = packet
        for event in packet.events:
            if event.to_state is SeedState.FOSSILIZED:
                self._line(
                    label, packet.epoch, "[green]keep[/]", f"{place(event.site)}: {event.reason}"
                )
        for decision in packet.decisions:
            if decision.action in _SHOWN:
                self._line(label, packet.epoch, _SHOWN[decision.action], decision.reason)

    def result(self, record: RunRecord, folder: Path) -> None:
        """Take the picture away, say how the run ended and where everything is."""
        self._live.stop()
        before = record.parameters_before
        for label, training in (("grown", record.grown), ("twin", record.twin)):
            if training is not None and training.held_out is not None:
                grew = f", from {before:,}" if training.parameters != before else ""
                self.say(
                    f"[bold]{label:<6}[/] held-out {_held_out(training.held_out)}, "
                    f"{plural(training.parameters, 'parameter')}{grew}"
                )
                if training.averaged is not None:
                    self.say(f"       averaged weights: {_held_out(training.averaged)}")
        for note in _notes(record):
            self.say(f"[yellow]note[/]   {escape(note)}")
        if record.interrupted:
            self.say(
                f"[yellow]stopped[/] after {len(record.grown.curve)} of {record.config.epochs} "
                "epochs; the model as it stood, its record and the report were saved"
            )
            if record.checkpoint_failure is None:
                command = resume_command(folder)
                self.say(f"go on  {escape(command)}")
                if isinstance(sys.stdout, Lasting) and sys.stdout.is_lost:
                    self.warn(f"stopped, and saved; go on  {command}")
        self.say(f"report {folder / 'report.html'}")

    def _watched(self, label: str) -> Watched:
        (training,) = (item for item in self._overview.trainings if item.label == label)
        return training

    def _line(self, label: str, epoch: int, verb: str, text: str) -> None:
        self.say(f"{label:<6} epoch {epoch + 1:>3}  {verb}  {escape(text)}")


def _held_out(figures: Figures) -> str:
    accuracy = "" if figures.accuracy is None else f"accuracy {figures.accuracy:.1%}, "
    return f"{accuracy}loss {figures.loss:.3f}"


def _notes(record: RunRecord) -> list[str]:
    """Return what went another way than planned, and what the run's records lack, in words."""
    notes = [setback.told for setback in record.setbacks]
    if record.grown.curve and has_learned_nothing(record.grown.held_out, record.best_constant):
        notes.append(
            "the grown model does no better than always giving the same answer: let it learn longer "
            "(--epochs), or at another rate (--lr)"
        )
    if record.twin is not None and record.twin.curve and not record.twin.curve[-1].is_finite:
        notes.append(
            f"the loss of the twin was not finite in epoch {len(record.twin.curve)}: it was trained no "
            "further, and there is nothing to compare with"
        )
    if record.lost or not record.complete:
        lost = ", ".join(f"{topic} {count}" for topic, count in record.lost.items())
        unfiled = f", outcomes not filed: {record.unfiled}" if record.unfiled else ""
        notes.append(
            "the bus or the library did not confirm every message "
            f"(lost: {lost or 'none'}{unfiled})"
            + ("" if record.events_lost else "; events.jsonl is complete")
        )
    if record.checkpoint_failure is not None:
        notes.append(
            f"the last checkpoint could not be written ({record.checkpoint_failure}); the ones before stayed"
        )
    if record.events_lost:
        notes.append(
            f"events.jsonl could not be written to its end ({record.events_failure}): "
            f"{plural(record.events_lost, 'event')} {'is' if record.events_lost == 1 else 'are'} missing, "
            "and the run cannot be verified from there on"
        )
    return notes
