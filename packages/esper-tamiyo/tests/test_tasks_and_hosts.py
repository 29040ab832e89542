"""Tasks and hosts: the built-in ones, the user's own, and what is said of unusable ones."""

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from esper.contracts import ConfigError, NotFoundError
from esper.tamiyo import Figures, Split, Task, build_host, load_task
from esper.tamiyo.tasks import TASKS, Goal
from esper.tamiyo.tasks.catalogue import Entry
from esper.tamiyo.tasks.goals import best_constant
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

class Moody(nn.Linear):
    def forward(self, inputs):
        if self.training:
            raise KeyError("not today")
        return super().forward(inputs)

def moody(task):
    return Moody(5, task.num_classes)

class Lost(nn.Linear):
    def forward(self, inputs):
        return {}["missing"]

def lost(task):
    return Lost(5, task.num_classes)

def leaves(*task):
    import sys
    sys.exit(3)

class Counting(nn.Linear):
    count = 0
    def forward(self, inputs):
        self.count += 1
        return super().forward(inputs)

def normed(task):
    return nn.Sequential(nn.BatchNorm1d(5), nn.Dropout(), Counting(5, task.num_classes))
"""


@pytest.fixture
def my_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"mine_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))  # undoes what the loader adds
    return name


OWN = ["digits", "mnist1d"]
"""The tasks that bring their own data; `test_loaders` has the others."""


@pytest.mark.parametrize("name", OWN)
def test_a_built_in_task_is_split_once_and_for_all(name: str) -> None:
    numpy_state = np.random.get_state()[1].tolist()
    first, again = load_task(name), load_task(name)
    assert np.random.get_state()[1].tolist() == numpy_state
    for part in ("train", "validation", "test"):
        one, other = getattr(first, part), getattr(again, part)
        assert torch.equal(one.inputs, other.inputs)
        assert torch.equal(one.targets, other.targets)
    rows = torch.cat(
        [first.train.known().inputs, first.validation.known().inputs, first.test.known().inputs]
    )
    assert len(rows) == {"digits": 1797, "mnist1d": 5000}[name]


@pytest.mark.parametrize(
    ("task", "host"), [(task, host) for task in OWN for host in TASKS[task].hosts]
)
def test_every_host_that_a_task_names_fits_it(task: str, host: str) -> None:
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
    assert host(task.test.known().inputs).shape == (9, 3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "digit",
            r"unknown task 'digit'; did you mean 'digits'\? There are digits, mnist1d, text, table",
        ),
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
        ("nothing", "returned an int"),
        ("broken", r"failed with OSError: the disk is gone \(.*, line 25\); --debug shows"),
        ("frozen", "has no parameter that requires a gradient"),
        (
            "moody",
            r"failed learning a batch of shape \(2, 5\).*KeyError: 'not today' \(mine.*, line 33",
        ),
        ("lost", r"failed answering a batch .* with KeyError: 'missing' \(mine.*, line 41\)"),
        ("leaves", r"failed with SystemExit: 3 \(mine.*, line 48\)"),
    ],
)
def test_a_host_that_does_not_fit_is_explained(my_module: str, host: str, message: str) -> None:
    task = load_task(f"{my_module}:load")
    with pytest.raises(ConfigError, match=message):
        build_host(f"{my_module}:{host}", task, seed=0)


def test_trying_a_host_leaves_it_and_the_random_streams_as_they_were(my_module: str) -> None:
    task = load_task(f"{my_module}:load")
    host = build_host(f"{my_module}:normed", task, seed=0)
    after = torch.get_rng_state()
    assert host[0].num_batches_tracked == 0  # pyright: ignore
    assert host[2].count == 1  # pyright: ignore
    assert host.training
    torch.manual_seed(0)  # pyright: ignore[reportUnknownMemberType]
    torch.nn.Linear(5, 3)
    assert torch.equal(torch.get_rng_state(), after)


def test_a_task_that_ends_the_process_is_explained(my_module: str) -> None:
    with pytest.raises(ConfigError, match=r"failed with SystemExit: 3 \(mine.*, line 48\)"):
        load_task(f"{my_module}:leaves")


def test_a_cnn_for_a_task_without_images_is_explained(my_module: str) -> None:
    with pytest.raises(ConfigError, match="declares no image_shape"):
        build_host("cnn", load_task(f"{my_module}:load"), seed=0)


def test_a_function_that_returns_no_task_is_explained(my_module: str) -> None:
    with pytest.raises(ConfigError, match=r"returned an int; expected esper\.tamiyo\.Task"):
        load_task(f"{my_module}:nothing")


def _split(inputs: torch.Tensor, targets: torch.Tensor) -> Split:
    return Split(inputs=inputs, targets=targets)


SPOILED: list[tuple[Callable[[Split], Split], str]] = [
    (lambda s: _split(s.inputs, s.targets + 5), "labels run from 5 to"),
    (lambda s: _split(s.inputs, s.targets.float()), "expected one int64 class index"),
    (
        lambda s: _split(s.inputs * torch.nan, s.targets),
        r"inputs are not finite in 9 of 9 samples; the first is sample 0 \(counted from 0\), with nan",
    ),
    (
        lambda s: _split(s.inputs.index_fill(0, torch.tensor([4]), torch.inf), s.targets),
        "inputs are not finite in 1 of 9 samples; the first is sample 4 .* with inf",
    ),
    (lambda s: _split(s.inputs.long(), s.targets), r"inputs are torch\.int64; expected floating"),
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
    bad: Task = replace(good, test=spoil(good.test.known()))
    _add(monkeypatch, bad)
    with pytest.raises(ConfigError, match=message):
        load_task("bad")


def _add(monkeypatch: pytest.MonkeyPatch, task: Task) -> None:
    entry = Entry(load=lambda source: task, about="", hosts=())
    monkeypatch.setitem(TASKS, "bad", entry)  # pyright: ignore[reportArgumentType]


NOT_TENSORS: Any = [[1.0]]

MALFORMED: list[tuple[dict[str, object], str]] = [
    ({"name": None}, "its name is None; expected a word"),
    ({"num_classes": "3"}, "num_classes is '3'; expected a whole number"),
    ({"num_classes": 0}, "num_classes is 0; expected a whole number"),
    ({"train": None}, "train data is a NoneType; expected esper.tamiyo.Split"),
    (
        {"test": _split(NOT_TENSORS, NOT_TENSORS)},
        "test data: inputs is a list; expected a Tensor",
    ),
    (
        {"validation": _split(torch.zeros(1, 5), None)},  # pyright: ignore
        "validation data: targets is a NoneType; expected a Tensor",
    ),
    (
        {"test": _split(torch.tensor(1.0), torch.tensor(0))},
        "test data: inputs is a single number; expected one per sample",
    ),
    ({"image_shape": (1, 5)}, r"image_shape is \(1, 5\); expected None or"),
    ({"image_shape": (1, 2, 3)}, r"image_shape is \(1, 2, 3\); .* which has 5 numbers"),
    ({"image_shape": "big"}, "image_shape is 'big'; expected None or"),
    ({"encoding": [1]}, "encoding is a list; expected a dict or None"),
    ({"encoding": {"mean": torch.zeros(2)}}, "encoding cannot be written as JSON .*Tensor"),
    ({"encoding": {"mean": float("nan")}}, "encoding cannot be written as JSON"),
]


@pytest.mark.parametrize(("changes", "message"), MALFORMED)
def test_a_malformed_task_is_explained(
    my_module: str, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], message: str
) -> None:
    bad = replace(load_task(f"{my_module}:load"), **changes)
    _add(monkeypatch, bad)
    with pytest.raises(ConfigError, match=message):
        load_task("bad")


def test_the_best_constant_answer_is_that_of_the_goal() -> None:
    classes = best_constant(Goal.CLASSIFICATION, torch.tensor([2, 0, 2, 1]))
    assert (classes.loss, classes.accuracy) == (pytest.approx(1.5 * math.log(2)), 0.5)
    text = best_constant(Goal.LANGUAGE, torch.tensor([[0, 1], [1, 1]]))
    assert (text.loss, text.accuracy) == (pytest.approx(0.5623, abs=1e-4), 0.75)
    assert best_constant(Goal.REGRESSION, torch.tensor([1.0, 3.0])) == Figures(loss=1.0)
    digits = load_task("digits").best_constant()
    assert digits is not None
    assert 2.29 < digits.loss < math.log(10)
    assert 0.1 < (digits.accuracy or 0.0) < 0.13
