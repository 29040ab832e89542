"""YAML configuration: errors name the file, the line, the key, and the nearest valid key."""

from collections.abc import Callable
from pathlib import Path
from typing import Self

import pytest
from pydantic import BaseModel, ConfigDict, model_validator

from esper.contracts import ConfigError, load_yaml


class Optimizer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    learning_rate: float = 0.1
    momentum: float = 0.9


class Config(BaseModel):
    model_config = ConfigDict(extra="forbid")
    epochs: int = 10
    task: str = "digits"
    optimizer: Optimizer = Optimizer()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.epochs == 13:
            raise ValueError("13 epochs are unlucky")
        return self


type Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def to_file(text: str) -> Path:
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return path

    return to_file


def test_a_valid_file_is_read(write: Write) -> None:
    path = write("# a comment\nepochs: 3\noptimizer:\n  momentum: 0.5\n")
    assert load_yaml(path, Config) == Config(epochs=3, optimizer=Optimizer(momentum=0.5))


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n"])
def test_an_empty_file_means_the_defaults(write: Write, text: str) -> None:
    assert load_yaml(write(text), Config) == Config()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("task: digits\nepoch: 3\n", r"run\.yaml:2: unknown key 'epoch'; did you mean 'epochs'\?"),
        ("zzz: 3\n", r"run\.yaml:1: unknown key 'zzz'; valid keys: epochs, task, optimizer"),
        (
            "epochs: 3\noptimizer:\n  momentum: 0.5\n  lerning_rate: 1\n",
            r"run\.yaml:4: unknown key 'optimizer\.lerning_rate'; did you mean 'learning_rate'\?",
        ),
        ("\nepochs: many\n", r"run\.yaml:2: epochs: .*valid integer"),
        ("optimizer:\n  momentum: [1]\n", r"run\.yaml:2: optimizer\.momentum: .*number"),
        ("optimizer: 3\n", r"run\.yaml:1: optimizer: "),
        (
            "epochs: 3\ntask: a\nepochs: 4\n",
            r"run\.yaml:3: the key 'epochs' is given twice; keep one",
        ),
        ("optimizer:\n  momentum: 1\n  momentum: 2\n", r"run\.yaml:3: the key 'momentum' is given"),
        ("epochs: 13\ntask: x\n", r"^\S*run\.yaml:1: 13 epochs are unlucky$"),
        ("- epochs\n", r"run\.yaml: expected 'key: value' lines at the top level"),
        ("epochs: [3\n", r"run\.yaml:2 is not valid YAML: expected ',' or ']'"),
        ("task: &a [*a]\n", r"run\.yaml:1: task: .*valid string"),
        ("epochs: !!python/object:os.system {}\n", r"not valid YAML: could not determine a con"),
    ],
)
def test_a_bad_file_is_refused_where_it_is_bad(write: Write, text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s){problem}"):
        load_yaml(write(text), Config)


def test_every_problem_is_listed(write: Write) -> None:
    with pytest.raises(ConfigError) as caught:
        load_yaml(write("epoch: 3\ntask: 4\n"), Config)
    assert len(str(caught.value).splitlines()) == 2


def test_a_missing_or_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml does not exist"):
        load_yaml(tmp_path / "absent.yaml", Config)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_yaml(tmp_path, Config)
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_yaml(binary, Config)
