"""What was trained survives: frozen servers, a full disk, signals at any moment, a failing twin."""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, override

import pytest

from esper.contracts import read_chain
from esper.kasmina import load
from esper.kasmina.files import write_together
from esper.tamiyo import RunConfig, build_host, load_task
from esper.tamiyo.run import run
from esper.tamiyo.summary import RunRecord
from esper.tamiyo.ui import Ui
from esper.testkit.postgres import start_postgres
from esper.testkit.redis import start_redis
from esper.testkit.runs import COMMAND

BOUND_SECONDS = 60.0
"""Far above the sum of the limits in `runtime`, far below for ever; the machine may be busy."""

FULL = Path("/dev/full")

FAILS_AS_A_TWIN = """
from torch import nn

class Second(nn.Sequential):
    def forward(self, inputs):
        if self.training and twins and inputs.shape[0] > 2:
            raise RuntimeError("not a second time")
        return super().forward(inputs)

built, twins = [], []

def build(task):
    if built:
        twins.append(1)
    built.append(1)
    return Second(nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 10))
"""


@contextmanager
def _training(folder: Path, *options: str) -> Generator[subprocess.Popen[str]]:
    """Start `train` and give it once it trains."""
    process = subprocess.Popen(
        [*COMMAND, *options],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if "epoch" in line:
                break
        yield process
    finally:
        process.kill()
        process.communicate()


def _finish(process: subprocess.Popen[str], folder: Path) -> tuple[str, str, dict[str, Any]]:
    stdout, stderr = process.communicate(timeout=300)
    (path,) = folder.glob("runs/*/summary.json")
    return stdout, stderr, json.loads(path.read_text())


def _comes_back(folder: Path, summary: dict[str, Any]) -> None:
    (saved,) = folder.glob("runs/*/model.safetensors")
    bed = load(build_host("mlp", load_task("digits"), seed=1), saved.parent)
    assert bed.weights_sha256() == summary["weights_sha256"]


def test_a_frozen_postgresql_costs_the_filing_of_outcomes_and_not_the_run(tmp_path: Path) -> None:
    with start_postgres() as server:
        library = ["--library", server.create_database(), "--artifacts", "file:kernels"]
        with _training(tmp_path, "--no-twin", "--epochs", "40", *library) as process:
            server.freeze()
            try:
                _wait_for_the_last_epoch(process)
                begun = time.monotonic()
                stdout, stderr, summary = _finish(process, tmp_path)
                assert time.monotonic() - begun < BOUND_SECONDS
            finally:
                server.thaw()
    assert process.returncode == 0, stderr
    assert "did not confirm every message" in stdout
    assert f"outcomes not filed: {summary['unfiled']}" in stdout
    assert summary["unfiled"] == sum(a["outcome"] is not None for a in summary["adaptations"]) > 0
    assert not summary["complete"]
    _comes_back(tmp_path, summary)


def test_a_frozen_redis_costs_telemetry_and_not_the_run(tmp_path: Path) -> None:
    with start_redis(tmp_path) as server:
        options = ("--no-twin", "--epochs", "40", "--bus", server.url)
        with _training(tmp_path, *options) as process:
            server.freeze()
            try:
                _wait_for_the_last_epoch(process)
                begun = time.monotonic()
                stdout, stderr, summary = _finish(process, tmp_path)
                assert time.monotonic() - begun < BOUND_SECONDS
            finally:
                server.thaw()
    assert process.returncode == 0, stderr
    assert "did not confirm every message" in stdout
    assert summary["lost"]["system.events.epoch"] > 0
    _comes_back(tmp_path, summary)


def _wait_for_the_last_epoch(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert any("40/40" in line for line in process.stdout)


def test_a_full_disk_costs_the_record_and_not_the_run(tmp_path: Path) -> None:
    """No file may grow beyond 150 kB: too little for the events, enough for the rest."""
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000)); {COMMAND[-1]}"
    done = subprocess.run(
        [
            *(*COMMAND[:-1], limited, "--no-twin", "--epochs", "60"),
            # A database in memory, as SQLite's file would meet the limit too.
            *("--library", "sqlite://", "--artifacts", "file:kernels"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    summary = json.loads((folder / "summary.json").read_text())
    assert "cannot be verified from there on" in done.stdout
    assert f"{summary['events_lost']} events are missing" in done.stdout
    written = list(read_chain(folder / "events.jsonl", head=summary["events_head"]))
    assert len(written) > 0
    assert summary["events_lost"] > 0
    _comes_back(tmp_path, summary)


def test_signals_while_the_run_is_saved_cost_nothing(tmp_path: Path) -> None:
    with _training(tmp_path, "--epochs", "100000") as process:
        process.send_signal(signal.SIGINT)
        while process.poll() is None:  # again and again, as an impatient person does
            if _is_saving(tmp_path):
                process.send_signal(signal.SIGINT)
        stdout, stderr, summary = _finish(process, tmp_path)
    assert process.returncode == 130
    assert stderr == "" or stderr.startswith("train: interrupted")
    assert summary["interrupted"]
    assert "report" in stdout
    _comes_back(tmp_path, summary)


def test_a_signal_cannot_cost_the_lines_that_say_where_all_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Impatient(Ui):
        @override
        def result(self, record: RunRecord, folder: Path) -> None:
            signal.raise_signal(signal.SIGINT)
            super().result(record, folder)

    monkeypatch.chdir(tmp_path)
    run(RunConfig(policy="never", epochs=1, twin=False), Impatient())
    (report,) = Path("runs").glob("*/report.html")
    assert f"report {report}" in capsys.readouterr().out


def test_ctrl_c_behind_a_pipe_whose_reader_is_gone_saves_everything(tmp_path: Path) -> None:
    """As in `train | tee log`, where Ctrl-C ends tee as well, and first."""
    with _training(tmp_path, "--epochs", "100000") as process:
        assert process.stdout is not None
        process.stdout.close()
        process.stdout = None
        process.send_signal(signal.SIGINT)
        _, stderr, summary = _finish(process, tmp_path)
    assert process.returncode == 130
    lost, stopped = stderr.splitlines()
    assert lost == (
        "train: its output cannot be written any more (Broken pipe); the run is not affected"
    )
    assert re.search(r"stopped, and saved; go on  .*tamiyo resume runs/\S+$", stopped)
    assert summary["interrupted"]
    _comes_back(tmp_path, summary)


@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full, which Linux has")
def test_a_log_on_a_full_disk_costs_the_log_and_not_the_run(tmp_path: Path) -> None:
    with FULL.open("w") as full:
        done = subprocess.run(
            [*COMMAND, "--epochs", "3", "--no-twin"],
            cwd=tmp_path,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("cannot be written any more (No space left on device)") == 1
    (path,) = tmp_path.glob("runs/*/summary.json")
    _comes_back(tmp_path, json.loads(path.read_text()))


def _is_saving(folder: Path) -> bool:
    return bool(list(folder.glob("runs/.*/model.safetensors")))


def test_a_twin_that_fails_leaves_the_grown_model_and_says_where(tmp_path: Path) -> None:
    (tmp_path / "second.py").write_text(FAILS_AS_A_TWIN)
    done = subprocess.run(
        [*COMMAND, "--host", "second:build", "--epochs", "3"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "not a second time" in done.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    assert f"what was trained before that is in runs/{folder.name}" in done.stderr
    assert {"model.safetensors", "lineage.json", "config.yaml", "events.jsonl"} <= {
        path.name for path in folder.iterdir()
    }


def test_a_model_that_cannot_be_saved_in_its_place_is_saved_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuge = tmp_path / "refuge"
    refuge.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(refuge))
    fails = _failing_within(tmp_path / "runs")
    monkeypatch.setattr("esper.kasmina.saving.write_together", fails)
    config = RunConfig(out=tmp_path / "runs", epochs=1, twin=False)
    with pytest.raises(
        Exception, match=r"No space left on device; the model was saved in .*refuge"
    ):
        run(config, Ui(quiet=True))
    assert list(refuge.glob("esper-model-*/model.safetensors"))
    assert not list(tmp_path.glob("runs/*/model.safetensors"))
    assert list(tmp_path.glob("runs/*/checkpoints/*/checkpoint.json"))  # to go on from


def _failing_within(folder: Path) -> Callable[[Path, Mapping[str, bytes]], None]:
    def write(place: Path, contents: Mapping[str, bytes]) -> None:
        if place.is_relative_to(folder):
            raise OSError(28, "No space left on device")
        write_together(place, contents)

    return write
