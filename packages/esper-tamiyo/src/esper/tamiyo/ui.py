"""What a person sees while a run goes on: a live bar in a terminal, plain lines elsewhere.

The trainer calls these methods; nothing flows back.
"""

from pathlib import Path
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from esper.contracts import Action, SeedState, SystemStatePacket
from esper.tamiyo.summary import Point, RunRecord

PLAIN_EVERY_EPOCHS = 10
"""Without a terminal, a line of figures this often; decisions always get one."""

_SHOWN = {Action.GERMINATE: "[green]grow[/]", Action.CULL: "[yellow]cull[/]"}


class Ui:
    """Shows a run's progress on standard output; a context manager."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._console = Console(quiet=quiet, highlight=False, soft_wrap=True)
        self._progress = Progress(
            TextColumn("{task.description:<6}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            console=self._console,
            disable=quiet or not self._console.is_terminal,
        )
        self._bars: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        """Start the live display."""
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the live display, so that the terminal is as it was."""
        self._progress.stop()

    def say(self, text: str) -> None:
        """Print one line; `text` may hold rich markup."""
        self._console.print(text)

    def begin(self, label: str, epochs: int) -> None:
        """Announce a training of `epochs` epochs."""
        self._bars[label] = self._progress.add_task(label, total=epochs, figures="")

    def epoch(self, label: str, point: Point, epochs: int) -> None:
        """Show the figures of one finished epoch."""
        epoch, figures = point.epoch, f"val loss {point.val_loss:.3f}"
        if point.val_accuracy is not None:
            figures += f", accuracy {point.val_accuracy:.1%}"
        self._progress.update(self._bars[label], advance=1, figures=figures)
        last = epoch + 1 == epochs
        if not self._console.is_terminal and (epoch % PLAIN_EVERY_EPOCHS == 0 or last):
            self.say(f"{label:<6} epoch {epoch + 1:>3}/{epochs}  {figures}")

    def decisions(self, label: str, packet: SystemStatePacket) -> None:
        """Print what was decided to grow or to remove, and what was kept."""
        for event in packet.events:
            if event.to_state is SeedState.FOSSILIZED:
                self._line(
                    label, packet.epoch, "[green]keep[/]", f"layer {event.site}: {event.reason}"
                )
        for decision in packet.decisions:
            if decision.action in _SHOWN:
                self._line(label, packet.epoch, _SHOWN[decision.action], decision.reason)

    def result(self, record: RunRecord, folder: Path) -> None:
        """Stop the live display, say how the run ended and where everything is."""
        self._progress.stop()
        before = record.parameters_before
        for label, training in (("grown", record.grown), ("twin", record.twin)):
            if training is not None and training.held_out is not None:
                figures = training.held_out
                grew = f", from {before:,}" if training.parameters != before else ""
                self.say(
                    f"[bold]{label:<6}[/] held-out accuracy {figures.accuracy or 0:.1%}, "
                    f"loss {figures.loss:.3f}, {training.parameters:,} parameters{grew}"
                )
        for note in _notes(record):
            self.say(f"[yellow]note[/]   {escape(note)}")
        if record.interrupted:
            self.say(
                f"[yellow]stopped[/] after {len(record.grown.curve)} of {record.config.epochs} "
                "epochs; the model as it stood, its record and the report were saved"
            )
            if record.checkpoint_failure is None:
                self.say(
                    f"go on  uv run --package esper-tamiyo tamiyo resume {escape(str(folder))}"
                )
        self.say(f"report {folder / 'report.html'}")

    def _line(self, label: str, epoch: int, verb: str, text: str) -> None:
        self.say(f"{label:<6} epoch {epoch + 1:>3}  {verb}  {escape(text)}")


def _notes(record: RunRecord) -> list[str]:
    """Return what the run's records lack, in words."""
    notes: list[str] = []
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
            f"{record.events_lost} events are missing, and the run cannot be verified from there on"
        )
    return notes
