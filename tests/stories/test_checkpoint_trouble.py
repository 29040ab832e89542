"""Trouble with checkpoints: a full disk, another host, a newer version; nothing that was good is lost."""

import shutil
from pathlib import Path
from typing import Any, override

import pytest

from esper.contracts import ConfigError, EsperError
from esper.tamiyo import RunConfig
from esper.tamiyo.controller import Tamiyo
from esper.tamiyo.run import resume, run
from esper.tamiyo.summary import Point
from esper.tamiyo.ui import Ui

EPOCHS = 12
FULL_AFTER = 4
"""Checkpoints that still have room."""


class _DiesAt(Ui):
    """Ends the run in the middle, as an error somewhere would."""

    def __init__(self, epoch: int) -> None:
        super().__init__(quiet=True)
        self._at = epoch

    @override
    def epoch(self, label: str, point: Point, epochs: int) -> None:
        if point.epoch == self._at:
            raise RuntimeError("the lights went out")


def _config(folder: Path, **changes: Any) -> RunConfig:
    return RunConfig(
        epochs=EPOCHS, twin=False, checkpoint_seconds=0, out=folder / "runs", **changes
    )


@pytest.fixture(scope="module")
def died(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that ended in the middle."""
    folder = tmp_path_factory.mktemp("died")
    with pytest.raises(RuntimeError, match="the lights went out") as caught:
        run(_config(folder), _DiesAt(8))
    (left,) = (folder / "runs").iterdir()
    assert "esper-tamiyo tamiyo resume " in str(caught.value.__notes__)
    return left


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The weights that the run comes to when nothing happens."""
    return run(_config(tmp_path_factory.mktemp("whole")), Ui(quiet=True)).weights_sha256


def test_a_full_disk_during_a_checkpoint_leaves_the_one_before(
    undisturbed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = Tamiyo.checkpoint, iter(range(1_000))

    def fills_up(self: Tamiyo, folder: Path, **beside: Any) -> None:
        if next(calls) >= FULL_AFTER:
            (folder / "half-written.tmp").write_bytes(b"x")
            raise OSError(28, "No space left on device")
        original(self, folder, **beside)

    with monkeypatch.context() as patched:
        patched.setattr(Tamiyo, "checkpoint", fills_up)
        with pytest.raises(RuntimeError, match="lights"):
            run(_config(tmp_path), _DiesAt(8))
    (left,) = (tmp_path / "runs").iterdir()
    assert resume(left, Ui(quiet=True)).weights_sha256 == undisturbed


def test_a_run_says_that_its_last_checkpoint_could_not_be_written(
    undisturbed: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def full(self: Tamiyo, folder: Path, **beside: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Tamiyo, "checkpoint", full)
    record = run(_config(tmp_path), Ui())
    assert record.weights_sha256 == undisturbed
    assert "the last checkpoint could not be written (No space left on device)" in (
        capsys.readouterr().out
    )


def _copy(died: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(died, tmp_path / died.name))


def test_a_run_that_died_goes_on(died: Path, undisturbed: str, tmp_path: Path) -> None:
    assert resume(_copy(died, tmp_path), Ui(quiet=True)).weights_sha256 == undisturbed


def test_a_checkpoint_of_another_host_is_refused(died: Path, tmp_path: Path) -> None:
    copy = _copy(died, tmp_path)
    other = tmp_path / "other"
    with pytest.raises(RuntimeError, match="lights"):
        run(_config(other, width=9), _DiesAt(3))
    (theirs,) = (other / "runs").iterdir()
    for slot in (copy / "checkpoints").iterdir():
        shutil.rmtree(slot)
    for slot in (theirs / "checkpoints").iterdir():
        shutil.copytree(slot, copy / "checkpoints" / slot.name)
    before = {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()}
    # They go on as the run that they are from: its configuration is part of them. The log is not theirs.
    with pytest.raises(EsperError, match="is not the log to go on with"):
        resume(copy, Ui(quiet=True))
    assert {p: p.read_bytes() for p in copy.rglob("*") if p.is_file()} == before


def test_a_run_that_is_complete_has_nothing_to_go_on_with(tmp_path: Path) -> None:
    record = run(_config(tmp_path), Ui(quiet=True))
    with pytest.raises(ConfigError, match="is complete"):
        resume(tmp_path / "runs" / record.run_id, Ui(quiet=True))
