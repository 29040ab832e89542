"""Law 7 while something is being written: whatever happens, one whole moment stays usable."""
# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import errno
import os
from pathlib import Path

import pytest
import torch
from kasmina_factory import QUICK, TO_FOSSILIZED, grow, mlp, train

from esper.contracts import ArtifactIntegrityError, HostError
from esper.kasmina import Bed, files, load, wrap


def grown() -> tuple[Bed, torch.optim.Optimizer]:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    bed = wrap(model, stages=QUICK)
    bed.attach(optimizer)
    grow(bed, TO_FOSSILIZED, between=lambda _: train(model, optimizer, 3))
    return bed, optimizer


class Failing:
    """Lets `os.fsync` succeed so many times, then fail."""

    def __init__(self, successes: int, error: type[BaseException]) -> None:
        self.left, self.error, self.real = successes, error, os.fsync

    def __call__(self, descriptor: int) -> None:
        self.left -= 1
        if self.left < 0:
            raise self.error(errno.EIO, "the disk failed")
        self.real(descriptor)


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("successes", range(12))
def test_a_checkpoint_that_is_interrupted_anywhere_leaves_a_usable_one(
    successes: int, error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bed, optimizer = grown()
    bed.checkpoint(tmp_path)
    before = bed.weights_sha256()
    train(bed.model, optimizer, 2)
    after = bed.weights_sha256()
    monkeypatch.setattr(os, "fsync", Failing(successes, error))
    try:
        bed.checkpoint(tmp_path)
        interrupted = False
    except (OSError, KeyboardInterrupt):
        interrupted = True
    monkeypatch.undo()
    found = load(mlp(1), tmp_path, stages=QUICK).weights_sha256()
    assert found in ((before, after) if interrupted else (after,))
    bed.checkpoint(tmp_path)
    assert load(mlp(1), tmp_path, stages=QUICK).weights_sha256() == after
    assert len(list(tmp_path.glob("step-*"))) == 1


def test_a_second_writer_is_refused_and_takes_nothing_away(tmp_path: Path) -> None:
    bed, _ = grown()
    bed.checkpoint(tmp_path)
    with (
        files.only_writer(tmp_path),
        pytest.raises(HostError, match="another process is writing a checkpoint into"),
    ):
        bed.checkpoint(tmp_path)
    assert load(mlp(1), tmp_path, stages=QUICK).weights_sha256() == bed.weights_sha256()
    bed.checkpoint(tmp_path)


@pytest.mark.parametrize("successes", [0, 1])
def test_a_save_that_fails_leaves_the_model_of_before(
    successes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bed, optimizer = grown()
    bed.save(tmp_path)
    before = bed.weights_sha256()
    train(bed.model, optimizer, 2)
    monkeypatch.setattr(os, "fsync", Failing(successes, OSError))
    with pytest.raises(OSError, match="the disk failed"):
        bed.save(tmp_path)
    monkeypatch.undo()
    assert load(mlp(1), tmp_path, stages=QUICK).weights_sha256() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lineage.json", "model.safetensors"]


def test_a_folder_in_place_of_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "lineage.json").mkdir()
    with pytest.raises(ArtifactIntegrityError, match=r"lineage\.json is a folder, not a file"):
        load(mlp(), tmp_path)


def test_a_host_of_another_type_is_refused_before_it_is_touched(tmp_path: Path) -> None:
    bed, _ = grown()
    bed.save(tmp_path)
    other = mlp(1).double()
    with pytest.raises(HostError, match=r"0\.bias: the host has float64 \(8,\), saved is float32"):
        load(other, tmp_path)
    assert [site.name for site in wrap(other).sites] == ["0", "2"]


def test_an_unwrapped_bed_saves_nothing(tmp_path: Path) -> None:
    bed, _ = grown()
    bed.unwrap()
    with pytest.raises(HostError, match="this bed was unwrapped"):
        bed.save(tmp_path)
