"""Tracking with the real MLflow, read back through its own client."""

import socket
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from tracking_factory import (
    CONFIG,
    EPOCHS,
    GREW_AT,
    PASSWORD,
    REASON,
    packet,
    point,
    record,
    tell,
    write_report,
)

from esper.tamiyo.config import override
from esper.tamiyo.folder import RunFolder
from esper.tamiyo.tracking import Tracker, tracking

mlflow: Any = pytest.importorskip("mlflow", reason="the extra `mlflow` is not installed")

# MLflow's own: how its tables are loaded, and how its database driver is closed.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:unclosed database in <sqlite3:ResourceWarning"),
]

ENDED = {"fails": "FAILED", "interrupted": "KILLED", "whole": "FINISHED"}


@pytest.fixture
def track(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Return a function that tracks one run from a folder of its own and returns the warnings."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    warnings = list[str]()

    def track(
        track: str = "mlflow", *, how: str = "whole", accuracy: float | None = 0.5
    ) -> list[str]:
        folder = RunFolder("run", tmp_path / "runs")
        folder.path.mkdir(parents=True, exist_ok=True)
        config = override(CONFIG, {"track": (track,)})
        with tracking(config, folder, warnings.append) as tracker:
            tell(tracker, accuracy=accuracy)
            if how == "fails":
                return warnings
            write_report(folder.path)
            tracker.end(record(interrupted=how == "interrupted", accuracy=accuracy))
        return warnings

    return track


def only_run(uri: str | None = None, experiment: str = "esper") -> tuple[Any, Any]:
    client = mlflow.MlflowClient(tracking_uri=uri)
    found = client.get_experiment_by_name(experiment)
    (run,) = client.search_runs([found.experiment_id])
    return client, run


def tracked_on(folder: Path) -> AbstractContextManager[Tracker]:
    """Go on with the run that `track` began in `folder`."""
    config = override(CONFIG, {"track": ("mlflow",)})
    return tracking(config, RunFolder("run", folder / "runs"), pytest.fail)


def kept_decisions(folder: Path) -> str:
    client, run = only_run()
    (folder / "kept").mkdir()
    path = client.download_artifacts(run.info.run_id, "decisions.txt", str(folder / "kept"))
    return Path(path).read_text()


def test_one_run_holds_the_curves_of_both_trainings(track: Callable[..., list[str]]) -> None:
    assert track() == []
    assert Path("mlflow.db").exists(), "MLflow's own default"
    client, run = only_run()
    assert run.info.run_name == "run"
    for label in ("grown", "twin"):
        history = client.get_metric_history(run.info.run_id, f"{label}/validation_loss")
        assert [(m.step, m.value) for m in history] == [(e, 2 / (e + 1)) for e in range(EPOCHS)]
        assert run.data.metrics[f"{label}/validation_accuracy"] == 0.5
    assert run.data.metrics["grown/final_parameters"] == 200
    assert run.data.metrics["twin/held_out_loss"] == 0.75
    assert run.data.tags["esper.weights_sha256"] == "ab" * 32


def test_the_configuration_is_parameters_without_passwords(
    track: Callable[..., list[str]],
) -> None:
    track()
    _, run = only_run()
    assert run.data.params["epochs"] == str(EPOCHS)
    assert run.data.params["bus"] == "redis://host:6379/0"
    assert PASSWORD not in str(run.to_dictionary())


def test_the_report_and_the_decisions_are_kept(
    track: Callable[..., list[str]], tmp_path: Path
) -> None:
    track()
    client, run = only_run()
    names = {item.path for item in client.list_artifacts(run.info.run_id)}
    assert names == {"report.html", "summary.json", "config.yaml", "decisions.txt"}

    def read(name: str) -> str:
        return Path(
            client.download_artifacts(run.info.run_id, name, str(tmp_path / "kept"))
        ).read_text()

    (tmp_path / "kept").mkdir()
    assert read("report.html") == "this is report.html"
    assert read("decisions.txt") == f"epoch {GREW_AT + 1}: grow layer fc: {REASON}\n"


@pytest.mark.parametrize("how", list(ENDED))
def test_the_status_says_how_the_run_ended(track: Callable[..., list[str]], how: str) -> None:
    assert track(how=how) == []
    _, run = only_run()
    assert run.info.status == ENDED[how]


def test_a_run_that_goes_on_stays_one_run(track: Callable[..., list[str]]) -> None:
    assert track(how="fails") == []
    assert track() == []
    client, run = only_run()
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "grown/validation_loss")
    assert len(history) == 2 * EPOCHS


def test_what_is_decided_anew_takes_the_place_of_what_was(
    track: Callable[..., list[str]], tmp_path: Path
) -> None:
    track(how="fails")
    with tracked_on(tmp_path) as tracker:
        tracker.epoch("grown", point(GREW_AT), packet(GREW_AT))
        later = packet(GREW_AT).model_copy(update={"epoch": GREW_AT + 1})
        tracker.epoch("grown", point(GREW_AT + 1), later)
    assert kept_decisions(tmp_path).splitlines() == [
        f"epoch {number}: grow layer fc: {REASON}" for number in (GREW_AT + 1, GREW_AT + 2)
    ]


def test_what_an_abandoned_epoch_decided_is_struck_though_nothing_else_is(
    track: Callable[..., list[str]], tmp_path: Path
) -> None:
    track(how="fails")
    with tracked_on(tmp_path) as tracker:
        tracker.epoch("grown", point(GREW_AT), packet(GREW_AT + 1))  # which decides nothing
    assert kept_decisions(tmp_path) == ""


def test_without_accuracy_there_is_no_curve_of_it(track: Callable[..., list[str]]) -> None:
    assert track(accuracy=None) == []
    _, run = only_run()
    assert not [name for name in run.data.metrics if "accuracy" in name]


def test_a_database_and_an_experiment_of_ones_own(
    track: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    uri = f"sqlite:///{tmp_path / 'other.db'}"
    assert track(f"mlflow:{uri}") == []
    assert not Path("mlflow.db").exists()
    only_run(uri, "mine")


def test_a_server_that_is_gone_costs_the_tracking_only(
    track: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and nobody listens
        port = unused.getsockname()[1]
        (warning,) = track(f"mlflow:http://me:{PASSWORD}@127.0.0.1:{port}")
    assert warning.startswith("tracking with mlflow stopped (")
    assert PASSWORD not in warning


def test_a_run_tells_nobody_else_of_its_use() -> None:
    telemetry: Any = import_module("mlflow.telemetry.utils")
    assert telemetry.is_telemetry_disabled()
