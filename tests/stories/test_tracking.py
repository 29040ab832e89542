"""The story of a tracked run: TensorBoard and MLflow hold it, the run itself is the same.

Needs `--group tracking`. Runs in this process: MLflow's own warnings would end a `train` that is strict.
"""

import os
from pathlib import Path
from typing import Any

import pytest

from esper.tamiyo import RunConfig
from esper.tamiyo.run import run
from esper.tamiyo.ui import Ui

EPOCHS = 10

pytestmark = [
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:unclosed database in <sqlite3:ResourceWarning"),
]


def test_a_tracked_run_ends_in_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorboard")
    mlflow: Any = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    plain = run(RunConfig(epochs=EPOCHS, twin=False), Ui(quiet=True))
    tracked = run(RunConfig(epochs=EPOCHS, track=("tensorboard", "mlflow")), Ui(quiet=True))
    assert capsys.readouterr() == ("", "")
    assert tracked.weights_sha256 == plain.weights_sha256

    folder = Path("runs") / tracked.run_id / "tensorboard"
    assert {path.name for path in folder.iterdir()} == {"grown", "twin"}
    client = mlflow.MlflowClient()
    (found,) = client.search_runs([client.get_experiment_by_name("esper").experiment_id])
    assert found.info.run_name == tracked.run_id
    assert found.data.metrics["grown/validation_loss"] == tracked.grown.curve[-1].val_loss
    report = client.download_artifacts(found.info.run_id, "report.html", os.fspath(tmp_path))
    original = Path("runs") / tracked.run_id / "report.html"
    assert Path(report).read_bytes() == original.read_bytes()
