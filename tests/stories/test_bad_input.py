"""Bad input: exit code 2, one clear message, no traceback, nothing half-written."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from esper.testkit.postgres import PostgresServer
from esper.testkit.runs import COMMAND, FinishedRun, Train, run_command, start_until

WITHOUT_SITES = """
from torch import nn

def build(task):
    return nn.Sequential(nn.Flatten(), nn.Linear(task.num_features, task.num_classes))
"""


FAILS_IN_TRAINING = """
from torch import nn

class Moody(nn.Sequential):
    def forward(self, inputs):
        if self.training:
            raise RuntimeError("not today")
        return super().forward(inputs)

class Weary(nn.Sequential):
    steps = 0

    def forward(self, inputs):
        self.steps += self.training
        if self.steps > 5:
            {fails}
        return super().forward(inputs)

def layers():
    return nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 10)

def moody(task):
    return Moody(*layers())

def weary(task):
    return Weary(*layers())
"""

ANSWERS_NAN = """
from torch import nn

class Nowhere(nn.Sequential):
    def forward(self, inputs):
        return super().forward(inputs) * float("nan")

def build(task):
    return Nowhere(nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 10))
"""


def _refused(run: FinishedRun, *messages: str) -> None:
    assert run.exit_code == 2, (run.stdout, run.stderr)
    for message in messages:
        assert message in run.stderr
    assert run.stderr.startswith("train: ")
    assert "Traceback" not in run.stderr
    assert not (run.cwd / "runs").exists()


@pytest.mark.parametrize(
    ("options", "messages"),
    [
        (["--bus", "kafka://x"], ["'kafka'", "memory", "redis"]),
        (
            ["--library", "mysql://x", "--artifacts", "file:a"],
            ["'mysql'", "postgresql", "sqlite"],
        ),
        (["--library", "sqlite:///l.db", "--artifacts", "ftp://x"], ["'ftp'", "file", "s3"]),
        (["--bus", "redis://localhost:1/0"], ["localhost:1"]),
        (
            [
                "--library",
                "postgresql+psycopg://me:hunter2@localhost:1/db",
                "--artifacts",
                "file:a",
            ],
            ["localhost:1"],
        ),
        (
            [
                "--library",
                "sqlite:///l.db",
                "--artifacts",
                "s3://bucket?endpoint=http://localhost:1",
            ],
            ["localhost:1"],
        ),
    ],
)
def test_an_unknown_or_absent_server_is_explained(
    train: Train, options: list[str], messages: list[str]
) -> None:
    env = {"MINIO_ROOT_USER": "someone", "MINIO_ROOT_PASSWORD": "hunter2hunter2"}
    run = train(*options, env=env)
    _refused(run, *messages)
    assert "hunter2" not in run.stderr


def test_a_wrong_password_is_explained(train: Train, postgres_server: PostgresServer) -> None:
    credentials, _, where = postgres_server.url().rpartition("@")
    wrong = f"{credentials.rpartition(':')[0]}:wrong-password@{where}"
    run = train("--library", wrong, "--artifacts", "file:artifacts")
    _refused(run, "password")
    assert "wrong-password" not in run.stderr


def test_a_malformed_configuration_names_file_line_and_nearest_key(
    train: Train, tmp_path: Path
) -> None:
    (tmp_path / "run.yaml").write_text("task: digits\nsed: 3\n")
    _refused(
        train("--config", "run.yaml", cwd=tmp_path), "run.yaml:2", "'sed'", "did you mean 'seed'"
    )


def test_a_host_without_sites_says_why_each_layer_was_refused(train: Train, tmp_path: Path) -> None:
    (tmp_path / "flat.py").write_text(WITHOUT_SITES)
    _refused(train("--host", "flat:build", cwd=tmp_path), "head")


def test_an_output_folder_that_is_a_file_is_explained(train: Train, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    run = train("--out", "taken", cwd=tmp_path)
    _refused(run, "taken", "--out")


def test_a_tampered_kernel_is_named_and_does_not_run(train: Train, tmp_path: Path) -> None:
    shared = ["--library", "sqlite:///library.db", "--artifacts", "file:kernels"]
    short = ["--epochs", "1", "--no-twin", "--out", "runs"]
    first = train(*shared, *short, cwd=tmp_path)
    assert first.exit_code == 0, first.stderr
    victim = next(path for path in (tmp_path / "kernels").rglob("*") if path.is_file())
    content = bytearray(victim.read_bytes())
    content[-1] ^= 1
    victim.write_bytes(content)
    second = train(*shared, "--epochs", "1", "--out", "other", cwd=tmp_path)
    assert second.exit_code == 2
    assert victim.name in second.stderr
    assert second.stderr.count("\n") == 1
    assert not (tmp_path / "other").exists()


def test_a_host_that_cannot_train_is_refused_before_the_run(train: Train, tmp_path: Path) -> None:
    (tmp_path / "hosts.py").write_text(FAILS_IN_TRAINING.format(fails="pass"))
    run = train("--host", "hosts:moody", cwd=tmp_path)
    _refused(run, "failed learning a batch", "RuntimeError: not today (hosts.py, line 7)")


@pytest.mark.parametrize(
    ("fails", "message"),
    [
        ("raise RuntimeError('no more')", "unexpected RuntimeError: no more"),
        ("raise SystemExit(0)", "unexpected SystemExit: 0"),
    ],
)
def test_a_host_that_fails_in_the_middle_is_one_message_and_leaves_nothing(
    train: Train, tmp_path: Path, fails: str, message: str
) -> None:
    (tmp_path / "hosts.py").write_text(FAILS_IN_TRAINING.format(fails=fails))
    run = train("--host", "hosts:weary", cwd=tmp_path)
    assert run.exit_code == 1
    assert message in run.stderr
    assert "nothing was saved" in run.stderr
    assert "Traceback" not in run.stderr
    assert not (tmp_path / "runs").exists()


DOES_NOT_FIT = """
from torch import nn

def build(task):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(12, task.num_classes))

def narrow(task):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))
"""


def test_a_host_that_does_not_fit_its_task_is_told_in_shapes(train: Train, tmp_path: Path) -> None:
    (tmp_path / "misfit.py").write_text(DOES_NOT_FIT)
    run = train("--host", "misfit:build", cwd=tmp_path)
    _refused(
        run,
        "a batch of shape (2, 64) of task 'digits'",
        "in its layer '3' (Linear(in_features=12, out_features=10, bias=True)), which was given (2, 8)",
    )
    run = train("--host", "misfit:narrow", cwd=tmp_path)
    _refused(
        run, "answers 2 samples of task 'digits' with (2, 3); expected one logit per class: (2, 10)"
    )


def test_a_checkpoint_of_another_host_is_refused_and_stays(train: Train, tmp_path: Path) -> None:
    host = tmp_path / "myhost.py"
    host.write_text(
        "from torch import nn\n"
        "def build(task):\n"
        "    return nn.Sequential(nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 10))\n"
    )
    options = ("--host", "myhost:build", "--epochs", "100000", "--checkpoint-seconds", "0")
    process = start_until("epoch  11", [*COMMAND, *options], tmp_path)
    process.kill()
    process.communicate()
    (folder,) = (tmp_path / "runs").iterdir()
    host.write_text(host.read_text().replace("6", "7"))
    resumed = run_command("tamiyo", "resume", folder, cwd=tmp_path)
    assert resumed.returncode == 2, resumed.stderr
    assert resumed.stderr.count("\n") == 1
    assert "Traceback" not in resumed.stderr
    assert list(folder.glob("checkpoints/*"))


def test_a_loss_that_is_not_finite_leaves_valid_json(train: Train, tmp_path: Path) -> None:
    (tmp_path / "nowhere.py").write_text(ANSWERS_NAN)
    run = train("--host", "nowhere:build", "--epochs", "6", cwd=tmp_path)
    assert run.exit_code == 2, run.stdout
    assert run.stderr.startswith("train: the loss was not finite in epoch 1 ")
    assert run.stderr.count("\n") == 1
    assert run.summary["grown"]["loss"] is None
    assert run.summary["adaptations"] == []
    assert run.summary["twin"] is None


def test_debug_shows_the_traceback(train: Train) -> None:
    run = train("--task", "digit", "--debug")
    assert run.exit_code != 0
    assert "Traceback" in run.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_cleanly_and_says_what_was_saved(
    tmp_path: Path, number: signal.Signals
) -> None:
    process = subprocess.Popen(
        [*COMMAND, "--epochs", "100000"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    deadline = time.monotonic() + 120
    for line in process.stdout:
        if "epoch" in line or time.monotonic() > deadline:
            break
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "stopped" in stdout
    assert "saved" in stdout
    assert stderr == ""
    (folder,) = (tmp_path / "runs").iterdir()
    assert {"model.safetensors", "summary.json", "report.html"} <= {
        path.name for path in folder.iterdir()
    }
