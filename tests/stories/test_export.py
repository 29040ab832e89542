"""Taking the model home: what `tamiyo export` writes runs without Esper and is told truly."""

import hashlib
import json
import re
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from esper.contracts import load_yaml
from esper.contracts.words import place
from esper.kasmina import load
from esper.tamiyo import RunConfig, build_host, load_task
from esper.tamiyo.story import read_story
from esper.tamiyo.tasks import Source
from esper.testkit.runs import COMMAND, FinishedRun, Train, run_command, start_until

CARD = "README.md"

REFUSE_ESPER = """
import sys

class Refuse:
    def find_spec(self, name, *_):
        if name.split(".")[0] == "esper":
            raise ImportError("Esper is not installed here")

sys.meta_path.insert(0, Refuse())
"""

WITHOUT_ESPER = (
    REFUSE_ESPER
    + """
import torch
model = torch.export.load("model.pt2").module()
inputs, targets = torch.load("data.pt", weights_only=True)
print((model(inputs).argmax(dim=1) == targets).float().mean().item())
"""
)


@pytest.fixture(scope="module")
def grown(train: Train) -> FinishedRun:
    """A run in which something grew."""
    finished = train("--epochs", "20", "--no-twin", "--quiet")
    assert finished.exit_code == 0, finished.stderr
    return finished


def copy_of(run: Path, folder: Path) -> Path:
    """Copy the files of a run, to damage them."""
    copied = folder / "broken"
    copied.mkdir()
    for path in run.iterdir():
        if path.is_file():
            (copied / path.name).write_bytes(path.read_bytes())
    return copied


def export(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return run_command("tamiyo", "export", *arguments, cwd=cwd)


def accuracy_without_esper(home: Path) -> float:
    """Return what the exported program of a digits run gets right of the held-out data."""
    test = load_task("digits").test.known()
    torch.save((test.inputs, test.targets), home / "data.pt")
    answered = subprocess.run(
        [sys.executable, "-c", WITHOUT_ESPER], cwd=home, capture_output=True, text=True, check=False
    )
    assert answered.returncode == 0, answered.stderr
    return float(answered.stdout)


def test_the_program_gives_the_grown_models_answers_without_esper(grown: FinishedRun) -> None:
    done = export(grown.folder, "--to", "home", cwd=grown.cwd)
    assert (done.returncode, done.stderr) == (0, "")
    found = accuracy_without_esper(grown.cwd / "home")
    assert found == pytest.approx(grown.summary["grown"]["accuracy"], abs=1e-6)


def test_averaged_weights_come_home_on_request(train: Train, grown: FinishedRun) -> None:
    run = train("--epochs", "8", "--ema", "0.9", "--no-twin")
    done = export(run.folder, "--to", "home", "--averaged", cwd=run.cwd)
    assert (done.returncode, done.stderr) == (0, "")
    home = run.cwd / "home"
    figures = run.summary["grown"]
    found = accuracy_without_esper(home)
    assert found == pytest.approx(figures["averaged"]["accuracy"], abs=1e-6)
    card = (home / CARD).read_text()
    assert "the same answer" not in card
    assert f"| this model | {figures['averaged']['accuracy']:.1%} |" in card
    assert f"| its last weights, not averaged | {figures['accuracy']:.1%} |" in card
    assert run.summary["averaged_sha256"] in card
    assert "with averaged weights" in (run.folder / "report.html").read_text()

    refused = export(grown.folder, "--to", "none", "--averaged", cwd=grown.cwd)
    assert refused.returncode == 2
    assert "trained without --ema; leave out --averaged" in refused.stderr
    assert not (grown.cwd / "none").exists()


ONNX = find_spec("onnx") is not None and find_spec("onnxscript") is not None


def use(home: Path) -> tuple[torch.Tensor, torch.Tensor, str]:
    """Run the card's snippet as it is, without Esper; return inputs, answers and what it prints."""
    (code,) = re.findall(r"^```python\n(.*?)^```$", (home / CARD).read_text(), re.M | re.S)
    keep = '\ntorch.save((inputs, answers.detach()), "used.pt")\n'
    done = subprocess.run(
        [sys.executable, "-c", REFUSE_ESPER + code + keep],
        cwd=home,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    inputs, answers = torch.load(home / "used.pt", weights_only=True)
    return inputs, answers, done.stdout.strip()


def test_digits_are_used_as_the_card_says(grown: FinishedRun) -> None:
    assert export(grown.folder, "--to", "used", cwd=grown.cwd).returncode == 0
    inputs, answers, said = use(grown.cwd / "used")
    assert {float(value) * 16 for value in inputs.flatten()} <= set(range(17))
    assert said == str(int(answers[0].argmax()))
    assert inputs.shape == (1, 64)


def write_data(folder: Path) -> None:
    (folder / "book.txt").write_text("the quick brown fox jumps over the lazy dog. " * 200)
    rows = [f"{a},{b},{a + 2 * b + 0.5}" for a in range(20) for b in range(20)]
    (folder / "sums.csv").write_text("\n".join(["a,b,y", *rows]))
    kinds = [f"{a},{'red' if a % 3 else ''},{'high' if a > 100 else 'low'}" for a in range(200)]
    (folder / "kinds.csv").write_text("\n".join(["a,colour,y", *kinds]))


@pytest.mark.parametrize(
    "options",
    [
        ("--task", "text", "--data", "book.txt", "--host", "transformer", "--epochs", "10"),
        ("--task", "table", "--data", "sums.csv", "--target", "y", "--epochs", "12"),
        ("--task", "table", "--data", "kinds.csv", "--target", "y", "--epochs", "12"),
        ("--task", "mnist1d", "--host", "cnn", "--epochs", "4"),
    ],
    ids=["text", "regression", "classes", "cnn"],
)
def test_other_tasks_come_home_too_from_anywhere_and_without_their_data(
    train: Train, tmp_path: Path, options: tuple[str, ...]
) -> None:
    write_data(tmp_path)
    run = train(*options, "--no-twin", cwd=tmp_path)
    assert run.exit_code == 0, run.stderr
    config = load_yaml(run.folder / "config.yaml", RunConfig)
    task = load_task(config.task, Source(path=config.data, target=config.target))
    for path in (*tmp_path.glob("*.csv"), *tmp_path.glob("*.txt")):
        path.rename(path.with_suffix(".gone"))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = export(run.folder, "--to", "home", *(["--onnx"] if ONNX else []), cwd=elsewhere)
    assert (done.returncode, done.stderr) == (0, "")
    home = elsewhere / "home"
    assert (home / "model.onnx").exists() is ONNX
    host = build_host(config.host, task, seed=config.seed)
    load(host, run.folder)
    host.eval()
    program = torch.export.load(home / "model.pt2").module()
    inputs = task.test.known().inputs[:7]
    with torch.no_grad():
        assert torch.allclose(program(inputs), host(inputs), atol=1e-5)
    inputs, answers, said = use(home)
    with torch.no_grad():
        assert torch.allclose(answers, host(inputs), atol=1e-5)
    assert inputs.shape[1:] == task.sample_shape
    if "sums.csv" in options:  # the invented row has the middle of both columns
        assert abs(float(said) - (9.5 + 2 * 9.5 + 0.5)) < 15
    elif "kinds.csv" in options:
        assert said == ("high", "low")[int(answers[0].argmax())]
        assert torch.equal(inputs[0, 1:], torch.tensor([0.0, 1.0]))  # columns (missing) and red
    elif "book.txt" in options:
        alphabet = [*sorted(set("the quick brown fox jumps over the lazy dog. "))]
        codes = [1 + alphabet.index(character) for character in "def "]
        assert torch.equal(inputs[0], torch.tensor(codes + [0] * 60))
        likeliest = int(answers[0, 3].argmax())
        assert said == f"next: {['\N{REPLACEMENT CHARACTER}', *alphabet][likeliest]!r}"
    encoding = home / "encoding.json"
    assert encoding.exists() is (config.task != "mnist1d")
    if encoding.exists():
        assert json.loads(encoding.read_text()) == task.encoding
        assert "encoding.json" in (home / CARD).read_text()
        assert encoding.read_bytes() == (run.folder / "encoding.json").read_bytes()


def test_a_run_that_kept_nothing_of_its_task_comes_home_with_its_data_only(
    train: Train, tmp_path: Path
) -> None:
    write_data(tmp_path)
    options = ("--task", "table", "--data", "kinds.csv", "--target", "y", "--epochs", "3")
    run = train(*options, "--no-twin", cwd=tmp_path)
    assert run.exit_code == 0, run.stderr
    for name in ("task.json", "encoding.json"):
        (run.folder / name).unlink()
    assert export(run.folder, "--to", "home", cwd=tmp_path).returncode == 0
    assert (tmp_path / "home" / "encoding.json").exists()
    assert use(tmp_path / "home")[2] in ("high", "low")
    (tmp_path / "kinds.csv").rename(tmp_path / "other.csv")
    done = export(run.folder, "--to", "new", cwd=tmp_path)
    assert done.returncode == 2
    assert "there is no" in done.stderr
    assert "is of an older Esper and has no task.json; put it back, or say where" in done.stderr
    assert not (tmp_path / "new").exists()


OWN_HOST = """
from torch import nn

class Shifted(nn.Sequential):
    def forward(self, inputs):
        return super().forward(inputs - self.mean)

def build(task):
    model = Shifted(nn.Linear(task.num_features, 6), nn.ReLU(), nn.Linear(6, task.num_classes))
    model.mean = float(task.train.inputs.mean())
    return model
"""


def test_a_host_of_ones_own_is_given_the_data_again(train: Train, tmp_path: Path) -> None:
    write_data(tmp_path)
    (tmp_path / "mynet.py").write_text(OWN_HOST)
    options = ("--task", "table", "--data", "kinds.csv", "--target", "y", "--epochs", "3")
    run = train(*options, "--host", "mynet:build", "--no-twin", cwd=tmp_path)
    assert run.exit_code == 0, run.stderr
    assert export(run.folder, "--to", "home", cwd=tmp_path).returncode == 0
    (tmp_path / "kinds.csv").rename(tmp_path / "other.csv")
    done = export(run.folder, "--to", "new", cwd=tmp_path)
    assert done.returncode == 2
    assert (
        "host 'mynet:build' is a function of yours, which is given all of the task" in done.stderr
    )
    config = run.folder / "config.yaml"
    config.write_text(config.read_text().replace("kinds.csv", "other.csv"))
    assert export(run.folder, "--to", "new", cwd=tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("task.json", '{"format_version": 1}'),
        ("encoding.json", "\xff"),
    ],
)
def test_what_a_run_kept_of_its_task_may_be_damaged(
    grown: FinishedRun, tmp_path: Path, name: str, content: str
) -> None:
    broken = copy_of(grown.folder, tmp_path)
    (broken / name).write_text(content, encoding="latin-1")
    done = export(broken, "--to", "new", cwd=tmp_path)
    assert done.returncode == 2
    assert f"{name} is damaged" in done.stderr
    assert not (tmp_path / "new").exists()


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
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    again = train("--config", config, cwd=elsewhere)
    assert again.exit_code == 0, again.stderr
    assert again.summary["weights_sha256"] == first.summary["weights_sha256"]


def test_a_run_that_was_stopped_comes_home_as_it_stood(tmp_path: Path) -> None:
    process = start_until("epoch  21", [*COMMAND, "--epochs", "100000"], tmp_path)
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
    assert {"encoding.json", "model.safetensors", "model.pt2", "lineage.json"} <= files
    for name in files:
        sha256 = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        assert f"| {name} | `{sha256}` |" in card
    story = read_story(grown.folder)
    assert story.kept
    for attempt in story.kept:
        said = f"- {attempt.name} at {place(attempt.site)}, from epoch {attempt.begun + 1} on"
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
    broken = copy_of(grown.folder, tmp_path)
    weights = bytearray((broken / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (broken / "model.safetensors").write_bytes(weights)
    done = export(broken, "--to", "new", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("tamiyo export: ")
    assert not (tmp_path / "new").exists()


def test_the_card_says_of_a_model_that_it_has_learned_nothing(
    grown: FinishedRun, tmp_path: Path
) -> None:
    run = copy_of(grown.folder, tmp_path)
    summary = json.loads((run / "summary.json").read_text())
    summary["best_constant"] = {"loss": 1e-9, "accuracy": 1.0}
    (run / "summary.json").write_text(json.dumps(summary))
    assert export(run, "--to", "new", cwd=tmp_path).returncode == 0
    assert "no better on them than always giving the same" in (tmp_path / "new" / CARD).read_text()
    summary["best_constant"] = "0.9"
    (run / "summary.json").write_text(json.dumps(summary))
    done = export(run, "--to", "other", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "summary.json is not what this version of Esper writes" in done.stderr


def test_a_damaged_record_is_said_and_a_damaged_summary_refused(
    grown: FinishedRun, tmp_path: Path
) -> None:
    broken = copy_of(grown.folder, tmp_path)
    log = broken / "events.jsonl"
    lines = log.read_text().splitlines()
    log.write_text("\n".join(lines[:-1]) + "\n")
    done = export(broken, "--to", "new", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stderr.startswith(
        "tamiyo export: The record that this model's history is told from is damaged: "
    )
    assert done.stderr.split(": ", 1)[1] in (tmp_path / "new" / CARD).read_text()
    for content, said in (("{", "is no JSON"), ("{}", "is not what this version of Esper writes")):
        (broken / "summary.json").write_text(content)
        done = export(broken, "--to", "other", cwd=tmp_path)
        assert done.returncode == 2
        assert f"summary.json {said}" in done.stderr
        assert not (tmp_path / "other").exists()
