"""The command line's manners; runs that need the other packages are in the workspace's tests."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from esper.tamiyo.cli import app
from esper.tamiyo.commands import app as tamiyo
from esper.tamiyo.config import RunConfig
from esper.tamiyo.ui import Ui

RUNNER = CliRunner()


def test_help_teaches_with_examples_and_defaults() -> None:
    shown = RUNNER.invoke(app, ["--help"], env={"COLUMNS": "120"}).output
    assert "Examples:" in shown
    assert "[default: digits]" in shown
    for option in (
        "--task",
        "--host",
        "--epochs",
        "--seed",
        "--policy",
        "--bus",
        "--library",
        "--artifacts",
        "--out",
        "--config",
        "--no-twin",
        "--track",
        "--quiet",
        "--debug",
    ):
        assert option in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--policy", "oracle"],
            "unknown policy 'oracle'; there are gap, heuristic, random, never",
        ),
        (
            ["--task", "digit"],
            "unknown task 'digit'; did you mean 'digits'? There are digits, mnist1d, text, table",
        ),
        (["--policy", "gapp"], "unknown policy 'gapp'; did you mean 'gap'? There are gap, heur"),
        (["--host", "resnt"], "unknown host 'resnt'; did you mean 'resnet'? There are mlp, cnn"),
        (["--host", "vgg"], "unknown host 'vgg'; there are mlp, cnn, resnet, transformer"),
        (["--epochs", "0"], "epochs: Input should be greater than or equal to 1"),
        (["--config", "missing.yaml"], "missing.yaml does not exist"),
        (["--library", "sqlite:///x.db"], "train: library is given without artifacts"),
        (["--bus", "redis://[::1"], "bus: the URL is malformed"),
        (["--track", "wandb"], "track: unknown tracker 'wandb'; there are tensorboard, mlflow"),
        (["--threads", "99999"], "threads: Input should be less than or equal to 1024"),
        (["--device", "cuda:99"], "device 'cuda:99' is not here: this machine has"),
        (
            ["--device", "tpu"],
            "device: unknown device 'tpu'; there are auto (CUDA where there is some), cpu, cuda, and",
        ),
        (["--blueprint", "none.yaml"], "blueprint file none.yaml does not exist"),
        (["--data", "x.csv"], "task 'digits'"),
    ],
)
def test_bad_input_is_one_clear_message_and_exit_code_2(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = RUNNER.invoke(app, arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.count("train: ") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_bad_value_from_the_environment_names_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = RUNNER.invoke(app, [], env={"ESPER_TRAIN_EPOCHS": "0", "ESPER_TRAIN_SEED": "3"})
    assert result.exit_code == 2
    assert "epochs: Input should be greater than or equal to 1" in result.stderr
    assert "(from the environment: ESPER_TRAIN_EPOCHS)" in result.stderr


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        (
            "EPOCHZ",
            "1",
            "ESPER_TRAIN_EPOCHZ in the environment is no option of a run; did you mean E",
        ),
        ("XYZ", "", "ESPER_TRAIN_XYZ in the environment is no option of a run; there are ESPER_TR"),
        ("EPOCHS", "zz", "epochs: Input should be a valid integer"),
        ("TRACK", "tensorboard, wandb", "track: unknown tracker 'wandb'"),
        ("TWIN", "perhaps", "twin: Input should be a valid boolean"),
    ],
)
def test_a_variable_without_effect_or_sense_is_one_message(
    variable: str, value: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ESPER_TRAIN_OUT", "somewhere")
    result = RUNNER.invoke(app, [], env={f"ESPER_TRAIN_{variable}": value})
    assert result.exit_code == 2
    assert result.stderr.startswith(f"train: {message}")
    assert f"ESPER_TRAIN_{variable}" in result.stderr
    assert "environment: ESPER_TRAIN_OUT" not in result.stderr
    assert result.stderr.count("\n") == 1


def test_options_come_from_variables_too(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[RunConfig] = []
    monkeypatch.setattr("esper.tamiyo.run.run", lambda config, _: seen.append(config))  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
    environment = {
        "ESPER_TRAIN_TRACK": "tensorboard:board, mlflow",
        "ESPER_TRAIN_BLUEPRINTS": "a.yaml,b.json",
        "ESPER_TRAIN_TWIN": "no",
        "ESPER_TRAIN_WIDTH": "",
        "ESPER_TRAIN_PRECISION": "bf16",
    }
    RUNNER.invoke(app, [], env=environment)
    RUNNER.invoke(app, ["--track", "mlflow:there", "--twin"], env=environment)
    assert [c.track for c in seen] == [("tensorboard:board", "mlflow"), ("mlflow:there",)]
    assert [c.twin for c in seen] == [False, True]
    assert seen[0].blueprints == (Path("a.yaml"), Path("b.json"))
    assert (seen[0].width, seen[0].precision) == (None, "bfloat16")


def test_the_command_line_wins_over_the_environment_and_that_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[RunConfig] = []

    def note(config: RunConfig, _: Ui) -> None:
        seen.append(config)

    monkeypatch.setattr("esper.tamiyo.run.run", note)
    file = tmp_path / "run.yaml"
    file.write_text("epochs: 1\nseed: 1\nbatch_size: 1\n")
    environment = {"ESPER_TRAIN_EPOCHS": "2", "ESPER_TRAIN_SEED": "2"}
    RUNNER.invoke(app, ["--config", str(file), "--epochs", "3"], env=environment)
    assert [(c.epochs, c.seed, c.batch_size) for c in seen] == [(3, 2, 1)]


def test_every_option_of_a_run_is_on_the_command_line() -> None:
    shown = RUNNER.invoke(app, ["--help"], env={"COLUMNS": "200"}).output
    names = {name.replace("_", "-") for name in RunConfig.model_fields} - {"blueprints"}
    assert {name for name in names if f"--{name}" not in shown} == set()


@pytest.mark.parametrize(
    "command",
    ["run", "resume", "report", "explain", "compare", "export", "tasks", "hosts", "policies"],
)
def test_every_command_says_what_it_does(command: str) -> None:
    shown = RUNNER.invoke(tamiyo, [command, "--help"], env={"COLUMNS": "120"})
    assert shown.exit_code == 0
    assert f"Usage: root {command}" in shown.output
    assert len(shown.output.splitlines()[2].strip()) > 20


@pytest.mark.parametrize(
    ("command", "names"),
    [
        ("tasks", ["digits", "text", "table", "cifar100", "module:function"]),
        ("hosts", ["mlp", "transformer", "torchvision:NAME"]),
        ("policies", ["gap", "never", "scripted:RUN_FOLDER"]),
    ],
)
def test_the_lists_name_all_there_is(command: str, names: list[str]) -> None:
    shown = RUNNER.invoke(tamiyo, [command])
    assert shown.exit_code == 0
    assert [name for name in names if name not in shown.output] == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_can_complete_it(shell: str) -> None:
    for program, name in ((app, "train"), (tamiyo, "tamiyo")):
        variable = f"_{name.upper()}_COMPLETE"
        shown = RUNNER.invoke(program, [], prog_name=name, env={variable: f"source_{shell}"})
        assert variable in shown.output
