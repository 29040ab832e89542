"""Taking the model home: what `tamiyo export` writes runs without Esper and is told truly."""

import hashlib
import json
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from esper.contracts import load_yaml
from esper.kasmina import load
from esper.tamiyo import RunConfig, build_host, load_task
from esper.tamiyo.story import read_story
from esper.tamiyo.tasks import Source
from esper.testkit.runs import COMMAND as TRAIN
from esper.testkit.runs import FinishedRun, Train, start_until

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
    test = load_task("digits").test.known()
    torch.save((test.inputs, test.targets), home / "data.pt")
    answered = subprocess.run(
        [sys.executable, "-c", WITHOUT_ESPER], cwd=home, capture_output=True, text=True, check=False
    )
    assert answered.returncode == 0, answered.stderr
    assert float(answered.stdout) == pytest.approx(grown.summary["grown"]["accuracy"], abs=1e-6)


ONNX = find_spec("onnx") is not None and find_spec("onnxscript") is not None


@pytest.mark.parametrize(
    "options",
    [
        ("--task", "text", "--data", "book.txt", "--host", "transformer", "--epochs", "10"),
        ("--task", "table", "--data", "sums.csv", "--target", "y", "--epochs", "12"),
        ("--host", "cnn", "--epochs", "12"),
    ],
    ids=["text", "table", "cnn"],
)
def test_other_tasks_come_home_too(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    (tmp_path / "book.txt").write_text("the quick brown fox jumps over the lazy dog. " * 200)
    rows = [f"{a},{b},{a + 2 * b + 0.5}" for a in range(20) for b in range(20)]
    (tmp_path / "sums.csv").write_text("\n".join(["a,b,y", *rows]))
    run = train(*options, "--no-twin", cwd=tmp_path)
    assert run.exit_code == 0, run.stderr
    done = export(run.folder, "--to", "home", *(["--onnx"] if ONNX else []), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "home" / "model.onnx").exists() is ONNX
    monkeypatch.chdir(tmp_path)
    config = load_yaml(run.folder / "config.yaml", RunConfig)
    task = load_task(config.task, Source(path=config.data, target=config.target))
    host = build_host(config.host, task, seed=config.seed)
    load(host, run.folder)
    program = torch.export.load(tmp_path / "home" / "model.pt2").module()
    inputs = task.test.known().inputs[:7]
    with torch.no_grad():
        assert torch.allclose(program(inputs), host.eval()(inputs), atol=1e-5)


@pytest.mark.parametrize("task", ["text", "table"])
def test_a_run_on_data_of_ones_own_is_repeated_from_its_configuration(
    train: Train, tmp_path: Path, task: str
) -> None:
    (tmp_path / "data").write_text("".join(chr(97 + n * n % 23) for n in range(3000)))
    if task == "table":
        (tmp_path / "data.csv").write_text(
            "a,y\n" + "".join(f"{n % 7},{n % 3}\n" for n in range(90))
        )
    options = {
        "text": ("--data", "data", "--host", "transformer", "--epochs", "9"),
        "table": ("--data", "data.csv", "--target", "y", "--epochs", "20"),
    }
    first = train("--task", task, "--no-twin", *options[task], cwd=tmp_path)
    assert first.exit_code == 0, first.stderr
    config = str(first.folder / "config.yaml")
    again = train("--config", config, "--out", "again", cwd=tmp_path)
    assert again.exit_code == 0, again.stderr
    (folder,) = (tmp_path / "again").iterdir()
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["weights_sha256"] == first.summary["weights_sha256"]


def test_a_run_that_was_stopped_comes_home_as_it_stood(tmp_path: Path) -> None:
    process = start_until("epoch  21", [*TRAIN, "--epochs", "100000"], tmp_path)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    (folder,) = (tmp_path / "runs").iterdir()
    done = export(folder, "--to", "home", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "stopped" in (tmp_path / "home" / "README.md").read_text()


def test_onnx_without_its_packages_says_what_to_install(grown: FinishedRun) -> None:
    if ONNX:
        pytest.skip("the extra onnx is installed")
    done = export(grown.folder, "--to", "as_onnx", "--onnx", cwd=grown.cwd)
    assert done.returncode == 2
    assert "onnx" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (grown.cwd / "as_onnx").exists()


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
