"""Taking the model home: what `tamiyo export` writes runs without Esper and is told truly."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from esper.tamiyo import load_task
from esper.tamiyo.story import read_story
from esper.testkit.runs import FinishedRun, Train

COMMAND = (sys.executable, "-W", "error", "-c", "from esper.tamiyo.entry import tamiyo; tamiyo()")

WITHOUT_ESPER = """
import sys

class Refuse:
    def find_spec(self, name, *_):
        if name.split(".")[0] == "esper":
            raise ImportError("Esper is not installed here")

sys.meta_path.insert(0, Refuse())
import torch
model = torch.export.load("model.pt2").module()
inputs, targets = torch.load("data.pt", weights_only=True)
print((model(inputs).argmax(dim=1) == targets).float().mean().item())
"""


@pytest.fixture(scope="module")
def grown(train: Train) -> FinishedRun:
    """A run in which something grew."""
    finished = train("--epochs", "20", "--no-twin", "--quiet")
    assert finished.exit_code == 0, finished.stderr
    return finished


def export(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, "export", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_program_gives_the_grown_models_answers_without_esper(grown: FinishedRun) -> None:
    done = export(grown.folder, "--to", "home", cwd=grown.cwd)
    assert (done.returncode, done.stderr) == (0, "")
    home = grown.cwd / "home"
    test = load_task("digits").test
    torch.save((test.inputs, test.targets), home / "data.pt")
    answered = subprocess.run(
        [sys.executable, "-c", WITHOUT_ESPER], cwd=home, capture_output=True, text=True, check=False
    )
    assert answered.returncode == 0, answered.stderr
    assert float(answered.stdout) == pytest.approx(grown.summary["grown"]["accuracy"], abs=1e-6)


def test_the_card_is_true(grown: FinishedRun) -> None:
    done = export(grown.folder, "--to", "card", cwd=grown.cwd)
    assert done.returncode == 0, done.stderr
    folder = grown.cwd / "card"
    card = (folder / "README.md").read_text()
    files = {path.name for path in folder.iterdir()} - {"README.md"}
    assert {"model.safetensors", "model.pt2", "lineage.json"} <= files
    for name in files:
        sha256 = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        assert f"| {name} | `{sha256}` |" in card
    story = read_story(grown.folder)
    assert story.kept
    for attempt in story.kept:
        said = f"- {attempt.name} at layer {attempt.site}, from epoch {attempt.begun + 1} on"
        assert said in card
    assert "shape (batch, 64) and type float32; answers are 10 logits" in card
    assert grown.summary["weights_sha256"] in card


def test_a_folder_that_is_taken_or_a_run_that_is_none_is_left_alone(grown: FinishedRun) -> None:
    taken = grown.cwd / "taken"
    taken.mkdir()
    (taken / "mine.txt").write_text("mine")
    done = export(grown.folder, "--to", "taken", cwd=grown.cwd)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "tamiyo export: taken is taken; give a new folder with --to\n"
    assert [path.name for path in taken.iterdir()] == ["mine.txt"]
    missing = export("nowhere", "--to", "new", cwd=grown.cwd)
    assert missing.returncode == 2
    assert "takes the folder of a finished run" in missing.stderr
    assert not (grown.cwd / "new").exists()


def test_a_damaged_model_leaves_no_half_export(grown: FinishedRun, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in grown.folder.iterdir():
        if path.is_file():
            (broken / path.name).write_bytes(path.read_bytes())
    weights = bytearray((broken / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (broken / "model.safetensors").write_bytes(weights)
    done = export(broken, "--to", "new", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("tamiyo export: ")
    assert not (tmp_path / "new").exists()
