"""How a run computes: mixed precision, gradients of several mini-batches, parts of passes, compiled steps.

With a GPU, `ESPER_DEVICE=cuda uv run pytest tests/stories/test_means.py` runs all of it there.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from esper.testkit.runs import COMMAND, Train, run_command, start_until

DEVICE = os.environ.get("ESPER_DEVICE", "cpu")

MEANS = {
    "bfloat16": ("--precision", "bfloat16"),
    "accumulate": (
        "--accumulate",
        "3",
        "--batch-size",
        "24",
        "--schedule",
        "cosine",
        "--lr",
        "0.01",
    ),
    "parts of passes": ("--epoch-samples", "700", "--lr", "0.01"),
    "all": ("--precision", "float16", "--accumulate", "2", "--schedule", "cosine", "--lr", "0.01"),
}


@pytest.mark.parametrize("options", MEANS.values(), ids=MEANS)
def test_a_run_learns_grows_and_repeats_itself(
    train: Train, tmp_path: Path, options: tuple[str, ...]
) -> None:
    first = train("--epochs", "16", "--no-twin", "--device", DEVICE, *options)
    assert first.exit_code == 0, first.stderr
    summary = first.summary
    assert summary["grown"]["accuracy"] > 0.6
    assert any(each["outcome"] == "FOSSILIZED" for each in summary["adaptations"])
    again = train("--config", str(first.folder / "config.yaml"), cwd=tmp_path)
    assert again.exit_code == 0, again.stderr
    assert again.summary["weights_sha256"] == summary["weights_sha256"]


def test_an_interrupted_run_with_a_scaler_comes_to_the_same_weights(
    train: Train, tmp_path: Path
) -> None:
    means = (*MEANS["all"], "--epoch-samples", "1300")  # more than a pass
    options = ("--epochs", "30", "--no-twin", "--device", DEVICE, *means)
    undisturbed = train(*options)
    command = [*COMMAND, *options, "--checkpoint-seconds", "0"]
    process = start_until("epoch  11", command, tmp_path)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    (unfinished,) = (tmp_path / "runs").iterdir()
    done = run_command("tamiyo", "resume", unfinished, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["weights_sha256"] == undisturbed.summary["weights_sha256"]


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_run_grows_and_learns_what_an_uncompiled_one_does(tmp_path: Path) -> None:
    options = ("--epochs", "12", "--no-twin", "--device", DEVICE)
    figures: list[float] = []
    for number, more in enumerate(((), ("--compile",))):
        done = subprocess.run(
            # torch itself warns of its own parts while it compiles.
            [sys.executable, *COMMAND[3:], *options, *more, "--out", str(number)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        (folder,) = (tmp_path / str(number)).iterdir()
        summary = json.loads((folder / "summary.json").read_text())
        assert any(each["outcome"] == "FOSSILIZED" for each in summary["adaptations"])
        figures.append(summary["grown"]["accuracy"])
    assert figures[1] == pytest.approx(figures[0], abs=0.05)
