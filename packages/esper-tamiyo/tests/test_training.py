"""The plain training loop, and stopping it."""

import logging

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from esper.tamiyo import build_host, load_task
from esper.tamiyo.compiling import compiled
from esper.tamiyo.stopping import StopRequestedError
from esper.tamiyo.tasks import Split
from esper.tamiyo.training import (
    measure,
    order_of_epoch,
    order_seed_of,
    train_epoch,
    trained_with,
)


def _trained(order_seed: int) -> torch.nn.Module:
    task = load_task("digits")
    model = build_host("mlp", task, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    train_epoch(model, optimizer, task.train, batch_size=64, order_seed=order_seed)
    return model


def _equal(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_an_epoch_depends_on_its_order_seed_only() -> None:
    one = _trained(5)
    torch.rand(3)
    assert _equal(one, _trained(5))
    assert not _equal(one, _trained(6))


@given(
    num_samples=st.integers(1, 30),
    size=st.integers(1, 70),
    num_epochs=st.integers(1, 6),
    seed=st.integers(0, 5),
)
def test_epochs_of_any_size_are_passes_cut_up(
    num_samples: int, size: int, num_epochs: int, seed: int
) -> None:
    epochs = [order_of_epoch(num_samples, n, size=size, seed=seed) for n in range(num_epochs)]
    assert all(len(each) == size for each in epochs)
    passes = torch.split(torch.cat(epochs), num_samples)  # pyright: ignore[reportUnknownMemberType]
    for number, part in enumerate(passes):
        generator = torch.Generator().manual_seed(order_seed_of(number, seed))
        whole = torch.randperm(num_samples, generator=generator)
        assert torch.equal(part, whole[: len(part)])


@pytest.mark.parametrize("num_samples", [1, 2, 3, 5, 6])
def test_a_last_batch_of_a_single_sample_is_left_out(num_samples: int) -> None:
    """Batch norms refuse one; with batches of one by choice nothing may be left out."""
    model = torch.nn.Sequential(
        torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2)
    )
    seen: list[int] = []
    model.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    data = Split(inputs=torch.randn(num_samples, 3), targets=torch.zeros(num_samples).long())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if num_samples > 1:
        train_epoch(model, optimizer, data, batch_size=2, order_seed=0)
        assert seen == [2] * (num_samples // 2)
    assert trained_with(num_samples, 1) == num_samples
    assert trained_with(1, 2) == 1


def test_training_lowers_the_loss() -> None:
    task = load_task("digits")
    before = measure(build_host("mlp", task, seed=0), task.validation)
    assert measure(_trained(0), task.validation).loss < before.loss


def test_measuring_leaves_the_mode_as_it_was() -> None:
    task = load_task("digits")
    model = build_host("mlp", task, seed=0).train()
    measure(model, task.test)
    assert model.training


def test_a_request_to_stop_is_honoured_between_two_steps() -> None:
    task = load_task("digits")
    model = build_host("mlp", task, seed=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    answers = iter([False, False, True])
    with pytest.raises(StopRequestedError):
        train_epoch(
            model, optimizer, task.train, batch_size=64, order_seed=0, stop=lambda: next(answers)
        )


def test_a_step_that_the_scaler_skips_is_followed_by_nothing() -> None:
    task = load_task("digits")
    model = build_host("mlp", task, seed=0)
    first = task.train.first(64)
    large = Split(inputs=1e6 * first.inputs, targets=first.targets)
    followed: list[int] = []
    for scale in (2.0**127, 2.0**10):
        train_epoch(
            model,
            torch.optim.SGD(model.parameters(), lr=0.0),
            large,
            batch_size=64,
            order_seed=0,
            scaler=torch.amp.GradScaler("cpu", init_scale=scale),  # pyright: ignore[reportPrivateImportUsage]
            after_step=lambda: followed.append(1),
        )
        assert len(followed) == (scale == 2.0**10)


def test_compiling_is_silent_about_a_cuda_toolkit_without_a_gpu(
    caplog: pytest.LogCaptureFixture,
) -> None:
    compiled(torch.nn.Linear(2, 2))
    logger = logging.getLogger("torch.utils.cpp_extension")
    logger.warning("No CUDA runtime is found, using CUDA_HOME='%s'", "somewhere")
    logger.warning("something else")
    assert [record.getMessage() for record in caplog.records] == ["something else"]
