"""Tasks and hosts: the built-in ones, the user's own, and what is said of unusable ones."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from esper.contracts import ConfigError, NotFoundError
from esper.tamiyo import Split, Task, build_host, load_task
from esper.tamiyo.hosts import HOSTS
from esper.tamiyo.tasks import TASKS
from esper.tamiyo.training import measure

MODULE = """
import torch
from torch import nn
from esper.tamiyo import Split, Task

def part(n, labels=3):
    return Split(inputs=torch.randn(n, 5), targets=torch.arange(n) % labels)

def load():
    return Task(name="mine", train=part(30), validation=part(9), test=part(9), num_classes=3)

def build(task):
    return nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, task.num_classes))

def wide(task):
    return nn.Linear(5, task.num_classes + 1)

def wrong_input(task):
    return nn.Linear(6, task.num_classes)

def nothing(*task):
    return 42

def broken(*task):
    raise OSError("the disk is gone")

def frozen(task):
    return build(task).requires_grad_(False)
"""


@pytest.fixture
def my_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"mine_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))  # undoes what the loader adds
    return name


@pytest.mark.parametrize("name", sorted(TASKS))
def test_a_built_in_task_is_split_once_and_for_all(name: str) -> None:
    numpy_state = np.random.get_state()[1].tolist()
    first, again = load_task(name), load_task(name)
    assert np.random.get_state()[1].tolist() == numpy_state
    for part in ("train", "validation", "test"):
        one, other = getattr(first, part), getattr(again, part)
        assert torch.equal(one.inputs, other.inputs)
        assert torch.equal(one.targets, other.targets)
    rows = torch.cat([first.train.inputs, first.validation.inputs, first.test.inputs])
    assert len(rows) == {"digits": 1797, "mnist1d": 5000}[name]


@pytest.mark.parametrize("task", sorted(TASKS))
@pytest.mark.parametrize("host", sorted(HOSTS))
def test_every_built_in_host_fits_every_built_in_task(task: str, host: str) -> None:
    loaded = load_task(task)
    figures = measure(build_host(host, loaded, seed=0), loaded.test)
    assert figures.accuracy is not None
    assert 0.0 <= figures.accuracy <= 0.4


def test_equal_seeds_build_equal_hosts() -> None:
    task = load_task("digits")
    one, same, other = (build_host("mlp", task, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not all(torch.equal(one[key], other[key]) for key in one)


def test_a_users_own_task_and_host_are_found_beside_them(my_module: str) -> None:
    task = load_task(f"{my_module}:load")
    host = build_host(f"{my_module}:build", task, seed=0)
    assert host(task.test.inputs).shape == (9, 3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("digit", "unknown task 'digit'; there are digits, mnist1d"),
        ("no_such_module:load", "cannot import 'no_such_module'"),
        ("math:load", "math has no function 'load'"),
    ],
)
def test_an_unknown_task_says_what_there_is(name: str, message: str) -> None:
    with pytest.raises((NotFoundError, ConfigError), match=message):
        load_task(name)


@pytest.mark.parametrize(
    ("host", "message"),
    [
        ("wide", r"answers 2 samples of task 'mine' with \(2, 4\); expected one logit per class"),
        ("wrong_input", r"batch of shape \(2, 5\)"),
        ("nothing", "returned a int"),
        ("broken", r"failed with OSError: the disk is gone \(.*, line 25\); --debug shows"),
        ("frozen", "has no parameter that requires a gradient"),
    ],
)
def test_a_host_that_does_not_fit_is_explained(my_module: str, host: str, message: str) -> None:
    task = load_task(f"{my_module}:load")
    with pytest.raises(ConfigError, match=message):
        build_host(f"{my_module}:{host}", task, seed=0)


def test_a_cnn_for_a_task_without_images_is_explained(my_module: str) -> None:
    with pytest.raises(ConfigError, match="declares no image_shape"):
        build_host("cnn", load_task(f"{my_module}:load"), seed=0)


def test_a_function_that_returns_no_task_is_explained(my_module: str) -> None:
    with pytest.raises(ConfigError, match=r"returned a int; expected esper\.tamiyo\.Task"):
        load_task(f"{my_module}:nothing")


def _split(inputs: torch.Tensor, targets: torch.Tensor) -> Split:
    return Split(inputs=inputs, targets=targets)


SPOILED: list[tuple[Callable[[Split], Split], str]] = [
    (lambda s: _split(s.inputs, s.targets + 5), "labels run from 5 to"),
    (lambda s: _split(s.inputs, s.targets.float()), "expected one int64 class index"),
    (lambda s: _split(s.inputs * torch.nan, s.targets), "finite"),
    (lambda s: _split(s.inputs[:0], s.targets[:0]), "at least one"),
    (lambda s: _split(s.inputs[:, :3], s.targets), r"one sample is \(3,\)"),
    (lambda s: _split(s.inputs, s.targets[1:]), "as many of both"),
]


@pytest.mark.parametrize(("spoil", "message"), SPOILED)
def test_unusable_data_is_explained(
    my_module: str,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Split], Split],
    message: str,
) -> None:
    good = load_task(f"{my_module}:load")
    bad: Task = replace(good, test=spoil(good.test))
    monkeypatch.setitem(TASKS, "bad", lambda: bad)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match=message):
        load_task("bad")
