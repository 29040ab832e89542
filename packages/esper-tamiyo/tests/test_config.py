"""The run's configuration: validation, overriding, and no passwords on disk."""

from pathlib import Path

import pytest

from esper.contracts import ConfigError, load_yaml
from esper.tamiyo import RunConfig
from esper.tamiyo.config import override, without_password


def test_the_written_configuration_reads_back_as_the_same(tmp_path: Path) -> None:
    config = RunConfig(
        task="mnist1d", seed=7, epochs=3, library="sqlite:////srv/a.db", artifacts="file:///srv/b"
    )
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    assert load_yaml(tmp_path / "config.yaml", RunConfig) == config


def test_files_are_written_with_their_whole_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = RunConfig(task="table", data=Path("t.csv"), blueprints=(Path("b/gate.yaml"),))
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    written = load_yaml(tmp_path / "config.yaml", RunConfig)
    assert written.data == tmp_path / "t.csv"
    assert written.blueprints == (tmp_path / "b" / "gate.yaml",)
    monkeypatch.chdir(tmp_path.parent)
    assert load_yaml(tmp_path / "config.yaml", RunConfig).public() == config.public() | {
        "data": str(written.data),
        "blueprints": [str(path) for path in written.blueprints],
    }


def test_a_run_to_replay_is_written_with_its_full_path() -> None:
    written = RunConfig(policy="scripted:runs/one").public()["policy"]
    assert written == f"scripted:{Path('runs/one').absolute()}"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("seed: true", "seed: true means nothing here"),
        ("learning_rate: false", "learning_rate: false means nothing here"),
        ("data: 5", "data: expected a path, as text"),
        ("track: 5", "track: expected a list"),
        ("learning_rate: 1e38", r"learning_rate: 1e\+38 is beyond 1e\+30"),
    ],
)
def test_a_value_of_another_kind_is_explained(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ConfigError, match=rf"run\.yaml:1: {problem}"):
        load_yaml(tmp_path / "run.yaml", RunConfig)


def test_one_of_several_needs_no_list(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("track: tensorboard\nblueprints: gate.yaml\n")
    config = load_yaml(tmp_path / "run.yaml", RunConfig)
    assert (config.track, config.blueprints) == (("tensorboard",), (Path("gate.yaml"),))


@pytest.mark.parametrize(
    ("option", "given", "written"),
    [
        ("artifacts", "file:kernels", "file://{here}/kernels"),
        ("artifacts", "file:my%20kernels", "file://{here}/my%20kernels"),
        ("library", "sqlite:///urza.db", "sqlite:///{here}/urza.db"),
        ("library", "sqlite:///urza.db?timeout=5", "sqlite:///{here}/urza.db?timeout=5"),
        ("track", "tensorboard:board", "tensorboard:{here}/board"),
        ("track", "mlflow:sqlite:///mlflow.db", "mlflow:sqlite:///{here}/mlflow.db"),
        ("track", "mlflow:mlruns", "mlflow:{here}/mlruns"),
        # What names no place below the current folder stays as it is.
        ("artifacts", "file:///srv/kernels", "file:///srv/kernels"),
        ("artifacts", "s3://esper-artifacts", "s3://esper-artifacts"),
        ("library", "sqlite:////srv/urza.db", "sqlite:////srv/urza.db"),
        ("library", "sqlite://", "sqlite://"),
        ("library", "sqlite:///:memory:", "sqlite:///:memory:"),
        ("library", "sqlite:///file:a.db?uri=true", "sqlite:///file:a.db?uri=true"),
        ("library", "postgresql+psycopg://db/urza", "postgresql+psycopg://db/urza"),
        ("track", "tensorboard", "tensorboard"),
        ("track", "mlflow:http://host:5000", "mlflow:http://host:5000"),
        ("track", "mlflow:databricks", "mlflow:databricks"),
        ("track", "mlflow:databricks://mine", "mlflow:databricks://mine"),
    ],
)
def test_a_place_is_written_so_that_it_is_the_same_from_any_folder(
    option: str, given: str, written: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = {"library": "sqlite:///a.db", "artifacts": "file:a"}
    changes = {option: (given,) if option == "track" else given}
    found = RunConfig.model_validate(options | changes).public()[option]
    expected = written.format(here=tmp_path)
    assert found == ([expected] if option == "track" else expected)


def test_passwords_are_not_written() -> None:
    config = RunConfig(
        bus="redis://:hunter2@localhost:6379/0",
        library="postgresql+psycopg://me:hunter2@db:5432/urza_db",
        artifacts="s3://bucket?endpoint=http://localhost:9000",
    )
    text = config.to_yaml()
    assert "hunter2" not in text
    assert "postgresql+psycopg://me@db:5432/urza_db" in text


def test_a_password_in_the_query_is_not_written_either() -> None:
    url = "postgresql+psycopg://db/urza?user=me&password=hunter2&sslpassword=hunter2"
    assert without_password(url) == "postgresql+psycopg://db/urza?user=me"


def test_a_password_of_a_tracker_is_not_written() -> None:
    track = ("tensorboard", "tensorboard:board", "mlflow:https://me:hunter2@host/mlflow")
    text = RunConfig(track=track).to_yaml()
    assert "hunter2" not in text
    assert "- mlflow:https://me@host/mlflow" in text
    assert f"- tensorboard:{Path('board').absolute()}" in text


def test_a_url_without_a_password_stays_as_it_is() -> None:
    for url in ("memory://", "sqlite:///library.db", "s3://bucket?endpoint=http://localhost:9000"):
        assert without_password(url) == url


def test_given_options_win_and_missing_ones_change_nothing() -> None:
    config = override(RunConfig(seed=3, epochs=5), {"seed": 4, "epochs": None})
    assert (config.seed, config.epochs) == (4, 5)


@pytest.mark.parametrize(
    ("name", "full"), [("fp32", "float32"), ("bf16", "bfloat16"), ("fp16", "float16")]
)
def test_a_precision_has_a_customary_name_and_is_written_in_full(name: str, full: str) -> None:
    config = override(RunConfig(), {"precision": name})
    assert config.precision == full
    assert f"precision: {full}" in config.to_yaml()


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:1"])
def test_a_device_is_a_name_and_a_number_at_most(device: str) -> None:
    assert RunConfig(device=device).device == device


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"device": "gpu"},
            r"^device: unknown device 'gpu'; there are auto .*, cpu, cuda, and cuda:N",
        ),
        ({"device": "cuda:"}, "unknown device"),
        ({"precision": "bf8"}, "precision: Input should be 'float32', 'bfloat16' or 'float16'"),
        ({"precision": 16}, "precision: Input should be"),
        ({"epochs": 0}, "epochs: Input should be greater than or equal to 1"),
        ({"seed": -1}, "seed: Input should be greater than or equal to 0"),
        ({"library": "sqlite:///x.db"}, "^library is given without artifacts"),
        ({"bus": "redis://[::1"}, r"^bus: the URL is malformed \(Invalid IPv6 URL\)"),
        ({"library": "sqlite://[x", "artifacts": "file:x"}, "^library: the URL is malformed"),
        ({"learning_rate": float("inf")}, "learning_rate: Input should be a finite number"),
        ({"learning_rate": float("nan")}, "learning_rate: Input should be a finite number"),
        ({"workers": -1}, "workers: Input should be greater than or equal to 0"),
        ({"threads": 99_999}, "threads: Input should be less than or equal to 1024"),
    ],
)
def test_a_bad_option_is_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        override(RunConfig(), changes)


def test_an_unknown_key_in_a_file_names_the_line_and_the_nearest_key(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("task: digits\nepoch: 5\n")
    with pytest.raises(
        ConfigError, match=r"run\.yaml:2: unknown key 'epoch'; did you mean 'epochs'"
    ):
        load_yaml(path, RunConfig)


def test_an_epoch_of_too_few_steps_is_refused() -> None:
    assert RunConfig(epoch_samples=640).epoch_samples == 640
    with pytest.raises(ValueError, match="expected at least 640 with batch_size=64"):
        RunConfig(epoch_samples=639)
    with pytest.raises(ValueError, match="expected at least 1280"):
        RunConfig(epoch_samples=640, accumulate=2)
