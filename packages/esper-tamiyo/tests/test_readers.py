"""Data that is not in memory: the same batches however they are read, and what is said of bad samples."""

import random
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any, override

import numpy as np
import pytest
import sample_factory
import torch
from PIL import Image
from sample_factory import NUM_TRAINED, Noisy, good, noisy_task
from torch import nn
from torch.utils.data import IterableDataset, TensorDataset

from esper.contracts import ConfigError
from esper.tamiyo import DatasetSplit, Split, Task, load_task
from esper.tamiyo.stopping import StopRequestedError
from esper.tamiyo.tasks import Goal, Readers, Source, images
from esper.tamiyo.tasks.readers import ReaderDiedError
from esper.tamiyo.tasks.task import check_task
from esper.tamiyo.training import Progress, measure, train_epoch

NEVER_STOP = 99


@pytest.fixture(scope="module")
def two_readers() -> Iterator[Task]:
    """The noisy task, read ahead by two processes."""
    with Readers(2) as readers:
        yield check_task("noisy", noisy_task()).read_by(readers)


def _batches(task: Task, *, begin: int = 0, seed: int = 3) -> list[tuple[Any, Any]]:
    order = torch.randperm(NUM_TRAINED, generator=torch.Generator().manual_seed(1))
    return list(task.train.batches(order, 4, begin=begin, seed=seed))


def _equal(one: list[tuple[Any, Any]], other: list[tuple[Any, Any]]) -> bool:
    pairs = zip(one, other, strict=True)
    return all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in pairs)


def _streams() -> tuple[Any, ...]:
    return (
        torch.get_rng_state().numpy().tobytes(),
        random.getstate(),
        np.random.get_state()[1].tolist(),
    )


def test_batches_are_the_same_read_here_or_by_two_others(two_readers: Task) -> None:
    before = _streams(), signal.getsignal(signal.SIGCHLD), signal.pthread_sigmask(0, ())
    here, there = _batches(noisy_task()), _batches(two_readers)
    assert _equal(here, there)
    assert _equal(here[3:], _batches(two_readers, begin=3))
    assert not _equal(here, _batches(two_readers, seed=4))
    assert [len(targets) for _, targets in there] == [4, 4, 4, 4, 4, 2]
    assert (_streams(), signal.getsignal(signal.SIGCHLD), signal.pthread_sigmask(0, ())) == before


def test_a_reading_that_is_left_does_not_show_in_the_next(two_readers: Task) -> None:
    left = two_readers.train.batches(torch.arange(NUM_TRAINED), 2)
    next(left)
    assert _equal(_batches(noisy_task()), _batches(two_readers))


def _train(task: Task, stop_at: int = NEVER_STOP) -> tuple[nn.Module, float]:
    """Train one epoch of six mini-batches, stopped and gone on with at `stop_at`."""
    torch.manual_seed(0)  # pyright: ignore[reportUnknownMemberType]
    model = nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.3), nn.Linear(5, 2))
    optimizer = torch.optim.AdamW(model.parameters())
    progress, asked = Progress(), iter(range(NEVER_STOP))

    def go_on() -> float:
        return train_epoch(
            model,
            optimizer,
            task.train,
            batch_size=4,
            order_seed=7,
            progress=progress,
            stop=lambda: next(asked) == stop_at,
        )

    if stop_at != NEVER_STOP:
        with pytest.raises(StopRequestedError):
            go_on()
        assert progress.batches == stop_at
    return model, go_on()


def _weights(model: nn.Module) -> list[bytes]:
    return [parameter.detach().numpy().tobytes() for parameter in model.parameters()]


def test_weights_are_the_same_read_here_or_by_two_others_or_stopped(two_readers: Task) -> None:
    model, loss = _train(noisy_task())
    for task, stop_at in (
        (two_readers, NEVER_STOP),
        (two_readers, 2),
        (noisy_task(), 5),
    ):
        other, same_loss = _train(task, stop_at)
        assert _weights(other) == _weights(model)
        assert same_loss == pytest.approx(loss)
    assert measure(model, two_readers.test) == measure(model, noisy_task().test)


def test_a_dataset_of_what_is_in_memory_trains_to_the_same_weights() -> None:
    inputs, targets = torch.rand(NUM_TRAINED, 4), torch.arange(NUM_TRAINED) % 2
    there = replace(noisy_task(), train=Split(inputs=inputs, targets=targets))
    read = replace(noisy_task(), train=DatasetSplit(dataset=TensorDataset(inputs, targets)))
    assert _weights(_train(there)[0]) == _weights(_train(read)[0])


BAD: list[tuple[object, str]] = [
    (good(), "sample 9 is a Tensor; expected a pair"),
    ((1.0, 1), "sample 9 has a float as its input; expected a Tensor"),
    ((good(shape=(3,)), 1), r"sample 9 is \(3,\) torch.float32; expected \(4,\) torch.float32"),
    ((good().double(), 1), r"sample 9 is \(4,\) torch.float64; expected \(4,\) torch.float32"),
    ((good(float("nan")), 1), "sample 9 has numbers in its input that are not finite"),
    ((good(), 2), "sample 9 has the label 2; expected 0 to 1"),
    ((good(), -1), "sample 9 has the label -1; expected 0 to 1"),
    ((good(), 1.0), "sample 9 has a target .*float32; expected one int64 index"),
    ((good(), "cat"), "sample 9 has a str as its target; expected a number or a Tensor"),
    (
        sample_factory.missing,
        r"failed reading sample 9 of its train data with KeyError: 'missing' \(sample_factory",
    ),
]


@pytest.mark.parametrize(("item", "message"), BAD)
def test_a_bad_sample_is_named(item: object, message: str) -> None:
    bad = Noisy(NUM_TRAINED, odd=9, odd_item=item)
    task = check_task("noisy", noisy_task(bad))  # the first samples are good
    with pytest.raises(ConfigError, match=f"^task 'noisy'(, train data:)? {message}"):
        _batches(task)


def test_a_target_that_is_not_finite_or_of_another_shape_is_named() -> None:
    bad = Noisy(NUM_TRAINED, odd=9, odd_item=(good(), float("inf")))
    task = check_task("noisy", noisy_task(bad, Goal.REGRESSION, 1))
    with pytest.raises(ConfigError, match="sample 9 has numbers in its target that are not finite"):
        _batches(task)
    with pytest.raises(ConfigError, match=r"sample 0 has a target of shape \(\).*shape \(4,\)"):
        check_task("noisy", noisy_task(goal=Goal.LANGUAGE))


def test_a_bad_sample_and_a_death_elsewhere_are_told_here() -> None:
    bad = Noisy(NUM_TRAINED, odd=9, odd_item=sample_factory.missing)
    dead = Noisy(NUM_TRAINED, odd=9, odd_item=sample_factory.leave)
    with Readers(1) as readers:
        task = check_task("noisy", noisy_task(bad)).read_by(readers)
        other = check_task("noisy", noisy_task(dead)).read_by(readers)
        with pytest.raises(
            ConfigError,
            match=r"^task 'noisy' failed reading sample 9 of its train data with KeyErr",
        ):
            _batches(task)
        with pytest.raises(ReaderDiedError, match=r"ahead died \(.+\); .*fewer --workers"):
            _batches(other)


def test_no_thread_is_left_that_holds_what_the_readers_share(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    feed: Any = vars(Queue)["_feed"].__func__

    def slow(*given: Any) -> None:
        feed(*given)
        time.sleep(0.3)

    monkeypatch.setattr(Queue, "_feed", staticmethod(slow))
    before = set(threading.enumerate())
    with Readers(1) as readers:
        _batches(check_task("noisy", noisy_task()).read_by(readers))
    assert set(threading.enumerate()) <= before


def test_data_that_cannot_be_handed_over_is_explained() -> None:
    class Local(Noisy):
        pass

    with Readers(1) as readers:
        task = check_task("noisy", noisy_task(Local(NUM_TRAINED))).read_by(readers)
        with pytest.raises(ConfigError, match=r"cannot be handed to --workers: .*Local"):
            _batches(task)


class Stream(IterableDataset[Any]):
    @override
    def __iter__(self) -> Iterator[Any]:
        return iter(())


UNUSABLE: list[tuple[Any, str]] = [
    (Stream(), "dataset is a Stream; expected a map-style Dataset"),
    (None, "dataset is a NoneType; expected a map-style Dataset"),
    (Noisy(0), "the dataset is empty; expected at least one sample"),
    (Noisy(9, odd=0, odd_item=(good(), 7)), r"labels run from \d to 7; expected 0 to 1"),
    (Noisy(9, odd=3, odd_item=(good(float("nan")), 1)), "sample 3 has numbers .* not finite"),
]


@pytest.mark.parametrize(("dataset", "message"), UNUSABLE)
def test_an_unusable_dataset_is_explained(dataset: Any, message: str) -> None:
    task = replace(noisy_task(), test=DatasetSplit(dataset=dataset))
    with pytest.raises(ConfigError, match=f"^task 'noisy', test data: {message}"):
        check_task("noisy", task)


def test_samples_of_another_shape_than_the_train_data_are_explained() -> None:
    other = Split(inputs=torch.rand(5, 3), targets=torch.zeros(5).long())
    with pytest.raises(ConfigError, match=r"test data: one sample is \(3,\); expected \(4,\)"):
        check_task("noisy", replace(noisy_task(), test=other))


def _write_images(folder: Path) -> None:
    numbers = np.random.default_rng(0)
    for label, low in (("dark", 0), ("light", 100)):
        (folder / label).mkdir()
        for number in range(12):
            pixels = numbers.integers(low, low + 128, (6, 5, 3), dtype=np.uint8)
            grey = Image.fromarray(pixels).convert("L" if number % 2 else "RGB")
            grey.save(folder / label / f"{number}.png")


def test_images_that_are_read_late_are_those_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write_images(tmp_path)
    early = load_task("images", Source(path=tmp_path))
    monkeypatch.setattr(images, "IN_MEMORY_BYTES", 24 * 3 * 6 * 5 * 4 - 1)
    late = load_task("images", Source(path=tmp_path))
    assert isinstance(early.train, Split)
    assert isinstance(late.train, DatasetSplit)
    assert (late.image_shape, late.num_classes) == (early.image_shape, early.num_classes)
    assert "each is read when it is needed; --workers N" in late.notes[-1]
    for part in ("train", "validation", "test"):
        one, other = getattr(early, part), getattr(late, part)
        assert len(one) == len(other)
        assert _equal(list(one.in_order(5)), list(other.in_order(5)))
    flat = nn.Sequential(nn.Flatten(), nn.Linear(90, 2))
    assert measure(flat, late.test) == measure(flat, early.test)


def test_an_image_that_is_cut_or_changed_is_named_when_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write_images(tmp_path)
    monkeypatch.setattr(images, "IN_MEMORY_BYTES", 0)
    task = load_task("images", Source(path=tmp_path))
    assert isinstance(task.train, DatasetSplit)
    path = task.train.dataset.found[10][0]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType, reportUnknownVariableType]
    Image.new("RGB", (9, 9)).save(path)  # pyright: ignore[reportUnknownArgumentType]
    with pytest.raises(ConfigError, match=r"train data: sample 10 is \(3, 9, 9\)"):
        list(task.train.in_order(4))
    path.write_bytes(path.read_bytes()[:45])  # pyright: ignore
    with pytest.raises(ConfigError, match=r"\.png cannot be read as an image"):
        list(task.train.in_order(4))


def test_the_heads_of_images_are_checked_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write_images(tmp_path)
    monkeypatch.setattr(images, "IN_MEMORY_BYTES", 0)
    Image.new("L", (9, 8)).save(tmp_path / "light" / "odd.png")
    with pytest.raises(ConfigError, match=r"odd\.png is 9 x 8 pixels"):
        load_task("images", Source(path=tmp_path))
