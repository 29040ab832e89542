"""Tracks a run in MLflow: a server, a database, or the file `mlflow.db` of the current folder.

Written by `tracking`. One run of MLflow holds both trainings, their figures named `grown/…` and `twin/…`,
and keeps the report; a run that is resumed, or went back, goes on in it. Without a URI MLflow decides where:
`MLFLOW_TRACKING_URI`, else its own default.
"""

import logging
import os
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from esper.contracts import SystemStatePacket
from esper.tamiyo.summary import Point, RunRecord
from esper.tamiyo.tracking import curve_figures, decided, final_figures, trainings

SETTINGS = {
    # A training tool tells nobody of its use; MLflow's own default sends events to its makers.
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # Its defaults wait for many minutes, and what waits behind them is lost when the run ends.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}
"""What a run sets where the environment does not."""

for _name, _value in SETTINGS.items():  # before the import, which reads some of them
    os.environ.setdefault(_name, _value)

_mlflow: Any = import_module("mlflow")  # optional, so that its types are not always there
_entities: Any = import_module("mlflow.entities")

ARTIFACTS = ("report.html", "summary.json", "config.yaml")
DECISIONS = "decisions.txt"
EXPERIMENT = "esper"
RUN_ID = "esper.run_id"
MAX_VALUE = 500
"""Characters of a parameter that every version of MLflow's servers takes."""


class MlflowTracker:
    """Writes one run of MLflow; see `tracking.Tracker`."""

    def __init__(self, run_folder: Path, target: str | None) -> None:
        self._run_folder, self._target = run_folder, target
        self._client: Any = None
        self._run: str | None = None
        self._decisions: list[str] = []

    def begin(self, run_id: str, config: Mapping[str, Any]) -> None:
        """Make a run in the experiment `MLFLOW_EXPERIMENT_NAME`, by default `esper`, or go on in it."""
        logging.getLogger("mlflow").setLevel(
            logging.ERROR
        )  # or it tells of its tables on the terminal
        self._client = _mlflow.MlflowClient(tracking_uri=self._target)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", EXPERIMENT)
        experiment = self._client.get_experiment_by_name(name)
        number = (
            experiment.experiment_id
            if experiment is not None
            else self._client.create_experiment(name)
        )
        quote = '"' if "'" in run_id else "'"
        wanted = f"tags.`{RUN_ID}` = {quote}{run_id}{quote}"
        same = self._client.search_runs([number], wanted, max_results=1)
        if same:
            self._go_on(same[0].info.run_id)
            return
        run = self._client.create_run(number, run_name=run_id, tags={RUN_ID: run_id})
        self._run = run.info.run_id
        parameters = [_entities.Param(key, str(value)[:MAX_VALUE]) for key, value in config.items()]
        self._client.log_batch(self._run, params=parameters)

    def epoch(self, label: str, point: Point, packet: SystemStatePacket | None) -> None:
        """Log the figures in one request, and the decisions so far where there is a new one."""
        self._log(label, curve_figures(point), step=point.epoch)
        if packet is not None:
            # What was decided from here on, before the run was stopped or went back, is decided anew.
            self._decide_anew(
                point.epoch, [f"epoch {point.epoch + 1}: {line}" for line in decided(packet)]
            )

    def end(self, record: RunRecord) -> None:
        """Log the final figures, keep the report, and say how the run ended."""
        self._decide_anew(len(record.grown.curve))
        for label, training in trainings(record).items():
            self._log(label, final_figures(training), step=len(training.curve))
        self._client.set_tag(self._run, "esper.weights_sha256", record.weights_sha256)
        for name in ARTIFACTS:
            self._client.log_artifact(self._run, str(self._run_folder / name))
        self._terminate("KILLED" if record.interrupted else "FINISHED")

    def close(self) -> None:
        """End the run as failed, unless it has ended."""
        if self._run is not None:
            self._terminate("FAILED")

    def _decide_anew(self, epochs: int, new: Sequence[str] = ()) -> None:
        """Keep what was decided in so many epochs and then `new`, if that is not what there is."""
        before = [line for line in self._decisions if _epoch_of(line) <= epochs]
        if new or len(before) < len(self._decisions):
            self._decisions = [*before, *new]
            text = "".join(f"{line}\n" for line in self._decisions)
            self._client.log_text(self._run, text, DECISIONS)

    def _go_on(self, run: str) -> None:
        """Open a run of MLflow again, and read the decisions that it keeps."""
        self._run = run
        self._client.update_run(run, status="RUNNING")
        if any(item.path == DECISIONS for item in self._client.list_artifacts(run)):
            with tempfile.TemporaryDirectory(prefix="esper-") as folder:
                kept = Path(self._client.download_artifacts(run, DECISIONS, folder))
                self._decisions = kept.read_text(encoding="utf-8").splitlines()

    def _terminate(self, status: str) -> None:
        run, self._run = self._run, None
        self._client.set_terminated(run, status=status)

    def _log(self, label: str, figures: Mapping[str, float], *, step: int) -> None:
        now_ms = int(time.time() * 1000)
        metrics = [
            _entities.Metric(f"{label}/{name}", float(value), now_ms, step)
            for name, value in figures.items()
        ]
        self._client.log_batch(self._run, metrics=metrics)


def _epoch_of(line: str) -> int:
    """Return the epoch of a line of decisions, counted from 1; 0 for what is none."""
    found = re.match(r"epoch (\d+): ", line)
    return int(found[1]) if found else 0


def open_tracker(run_folder: Path, target: str | None) -> MlflowTracker:
    """Return a tracker that logs to the URI `target`, by default where MLflow itself would."""
    return MlflowTracker(run_folder, target)
