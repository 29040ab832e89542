"""Tracks a run in TensorBoard's event files: `tensorboard --logdir runs` shows them.

Written by `tracking`, into the run folder unless told otherwise. The grown model and its twin are two runs
of TensorBoard with the same names of figures, so that it draws each pair of curves into one picture.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from esper.contracts import SystemStatePacket
from esper.tamiyo.summary import Point, RunRecord
from esper.tamiyo.tracking import curve_figures, decided, final_figures, trainings

GROWN = "grown"


class TensorBoardTracker:
    """Writes one folder of event files for each training; see `tracking.Tracker`."""

    def __init__(self, run_folder: Path, target: str | None) -> None:
        self._run_folder, self._target = run_folder, target
        self._folder = run_folder / "tensorboard"
        self._writers: dict[str, Any] = {}  # torch's annotations of its writer are incomplete
        self._config: dict[str, str | int | float | bool] = {}

    def begin(self, run_id: str, config: Mapping[str, Any]) -> None:
        """Write the configuration as a table."""
        if self._target is not None:
            self._folder = Path(self._target) / run_id
        self._config = {
            key: value if isinstance(value, str | int | float) else str(value)
            for key, value in config.items()
        }
        rows = "\n".join(f"| {key} | {value} |" for key, value in self._config.items())
        writer = self._writer(GROWN)
        writer.add_text("configuration", f"| setting | value |\n|---|---|\n{rows}")
        writer.flush()

    def epoch(self, label: str, point: Point, packet: SystemStatePacket | None) -> None:
        """Write the figures as scalars, the decisions as text."""
        writer = self._writer(label)
        for name, value in curve_figures(point).items():
            writer.add_scalar(name, value, point.epoch, new_style=True)
        for line in decided(packet) if packet is not None else ():
            writer.add_text("decisions", line, point.epoch)
        writer.flush()

    def end(self, record: RunRecord) -> None:
        """Write the final figures, those of the grown model beside the hyperparameters."""
        for label, training in trainings(record).items():
            final = final_figures(training)
            if label == GROWN:
                # "." is the same folder: its own default is one run more per set of hyperparameters.
                self._writer(label).add_hparams(self._config, final, run_name=".")
            else:
                for name, value in final.items():
                    self._writer(label).add_scalar(name, value, new_style=True)

    def close(self) -> None:
        """Close the files."""
        for writer in self._writers.values():
            writer.close()

    def _writer(self, label: str) -> Any:
        if label not in self._writers:
            self._writers[label] = SummaryWriter(str(self._folder / label))
        return self._writers[label]


def open_tracker(run_folder: Path, target: str | None) -> TensorBoardTracker:
    """Return a tracker that writes into a folder below `target`, by default into the run folder."""
    return TensorBoardTracker(run_folder, target)
