"""A loss that is not finite, with no block to blame: back once and on more slowly, then an end."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, override

import pytest
import torch
from torch import nn

from esper.contracts import Action, ConfigError, SeedState, SystemStatePacket, read_chain
from esper.kasmina import load, wrap
from esper.tamiyo import Heuristic, Plateau, RunConfig, Tamiyo, build_host, load_task
from esper.tamiyo import epochs as trainer
from esper.tamiyo.checkpoints import Checkpoints, Place, newest
from esper.tamiyo.commands import export
from esper.tamiyo.diverging import DivergedError
from esper.tamiyo.explaining import explain, headline
from esper.tamiyo.folder import RunFolder
from esper.tamiyo.moves import NO_DECISION
from esper.tamiyo.run import resume, run
from esper.tamiyo.story import read_story
from esper.tamiyo.summary import Point
from esper.tamiyo.ui import Ui
from esper.testkit.runs import Train

EPOCHS = 9
BAD = 5
"""The epoch, counted from 0, after which the weights are not finite."""

type Spoil = Callable[..., None]


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Spoil:
    """Return what makes the weights NaN in some of the epochs that this process trains, counted from 0."""
    original: Any = vars(trainer)["train_epoch"]

    def spoil_at(*bad: int) -> None:
        trained = iter(range(1_000))

        def train_epoch(model: nn.Module, *args: Any, **kwargs: Any) -> float:
            loss = original(model, *args, **kwargs)
            if next(trained) not in bad:
                return loss
            for parameter in model.parameters():
                nn.init.constant_(parameter, math.nan)
            return math.nan

        monkeypatch.setattr(trainer, "train_epoch", train_epoch)

    return spoil_at


class _Stops(Ui):
    """Ends the run at an epoch of its second beginning, as an error somewhere would."""

    def __init__(self, epoch: int) -> None:
        super().__init__(quiet=True)
        self._at, self._begun = epoch, 0

    @override
    def begin(self, *args: Any, **kwargs: Any) -> None:
        self._begun += 1
        super().begin(*args, **kwargs)

    @override
    def epoch(self, label: str, point: Point, epochs: int) -> None:
        if self._begun == 2 and point.epoch == self._at:
            raise RuntimeError("the lights went out")


def _config(folder: Path, **changes: Any) -> RunConfig:
    plain = RunConfig(
        policy="never", epochs=EPOCHS, twin=False, checkpoint_seconds=0, out=folder / "runs"
    )
    return plain.model_copy(update=changes)


def _folder(cwd: Path) -> Path:
    (folder,) = (cwd / "runs").iterdir()
    return folder


def _packets(folder: Path) -> list[SystemStatePacket]:
    events = read_chain(folder / "events.jsonl")
    return [SystemStatePacket.model_validate(e.data) for e in events if e.kind == "epoch"]


def test_a_run_goes_back_once_and_on_more_slowly(
    spoil: Spoil, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(BAD)
    record = run(_config(tmp_path), Ui())
    said = capsys.readouterr().out
    assert said.count("back   the loss was not finite in epoch 6") == 1
    assert said.count("went back to its state after epoch 5, and on from there at 0.5 of") == 2
    assert [point.epoch for point in record.grown.curve] == list(range(EPOCHS))
    assert all(point.is_finite for point in record.grown.curve)
    folder = _folder(tmp_path)
    rates = [packet.learning_rate for packet in _packets(folder)]
    assert rates == [record.config.learning_rate * (1.0 if n < BAD else 0.5) for n in range(EPOCHS)]
    story = read_story(folder)
    assert [(s.epoch, s.back_to, s.rate_share) for s in story.setbacks] == [(BAD, BAD, 0.5)]
    assert "On the way the loss was not finite in epoch 6" in explain(story)
    assert "On the way the loss was not finite in epoch 6" in (folder / "report.html").read_text()
    abandoned = list(read_chain(folder / "events-before-setback-1.jsonl"))
    assert abandoned[-1].data["val_loss"] == "NaN"


def test_what_was_slowed_down_stays_so_when_the_run_dies_and_goes_on(
    spoil: Spoil, tmp_path: Path
) -> None:
    spoil(BAD)
    whole = run(_config(tmp_path / "whole"), Ui(quiet=True))
    for died_at in (BAD, BAD + 2):
        cwd = tmp_path / str(died_at)
        spoil(BAD)
        with pytest.raises(RuntimeError, match="lights"):
            run(_config(cwd), _Stops(died_at))
        record = resume(_folder(cwd), Ui(quiet=True))
        assert record.weights_sha256 == whole.weights_sha256
        assert [s.told for s in record.setbacks] == [s.told for s in whole.setbacks]
        assert _packets(_folder(cwd))[-1].learning_rate == record.config.learning_rate * 0.5


def test_a_run_that_diverges_again_ends_with_its_last_good_model(
    spoil: Spoil, tmp_path: Path
) -> None:
    spoil(BAD, BAD + 2)  # of the process: one epoch is done a second time before it
    with pytest.raises(DivergedError, match=r"epoch 7 .* as it was after epoch 6") as caught:
        run(_config(tmp_path), Ui(quiet=True))
    folder = _folder(tmp_path)
    assert f"what was trained before that is in {folder}" in caught.value.__notes__
    slot, place, problems = newest(folder)
    assert (place.epoch, len(place.setbacks), problems) == (6, 1, [])
    assert len(list(slot.parent.iterdir())) == 3
    bed = load(build_host("mlp", load_task("digits"), seed=0), folder)
    assert bed.weights_sha256() == read_story(folder).summary["weights_sha256"]
    assert all(torch.isfinite(each).all() for each in bed.model.state_dict().values())
    story = read_story(folder)
    assert [setback.is_end for setback in story.setbacks] == [False, True]
    assert len(story.grown.curve) == 6
    assert story.grown.held_out is not None
    assert "The run diverged: the loss was not finite in epoch 7" in explain(story)
    # What spoiled it is mended: it goes on from there.
    assert len(resume(folder, Ui(quiet=True)).grown.curve) == EPOCHS


def test_a_comparison_with_a_twin_that_was_not_slowed_down_is_said_to_be_one(
    spoil: Spoil, tmp_path: Path
) -> None:
    spoil(BAD)
    run(_config(tmp_path, twin=True), Ui(quiet=True))
    folder = _folder(tmp_path)
    said = (
        "After a setback the grown model trained on at 0.5 of the learning rate, its twin did not."
    )
    assert said in headline(read_story(folder))
    export(folder, tmp_path / "home")
    card = (tmp_path / "home" / "README.md").read_text()
    assert "which did not grow" in card
    assert f"On the way the loss was not finite in epoch {BAD + 1}" in card


def test_a_setback_that_could_not_be_written_is_the_only_one_all_the_same(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write, written = Checkpoints.write, list[Place]()

    def once(self: Checkpoints, controller: Tamiyo, place: Place) -> bool:
        written.append(place)
        return len(written) == 1 and write(self, controller, place)

    monkeypatch.setattr(Checkpoints, "write", once)
    with pytest.raises(DivergedError, match="again after going back once"):
        run(_config(tmp_path, learning_rate=1e30), Ui())
    assert capsys.readouterr().out.count("back   the loss was not finite") == 1


@pytest.mark.parametrize("policy", ["gap", "never"])
def test_a_learning_rate_far_too_high_is_said_and_nothing_is_claimed(
    train: Train, policy: str
) -> None:
    run = train("--lr", "1e20", "--policy", policy, "--epochs", "12", "--no-twin")
    assert run.exit_code == 2, run.stdout
    assert run.stderr.startswith("train: the loss was not finite in epoch 1 ")
    assert "again after going back once; the model is as it was before the first" in run.stderr
    assert "smaller --learning-rate than 1e+20, and check the data" in run.stderr
    assert f"what was trained before that is in runs/{run.folder.name}" in run.stderr
    assert run.stdout.count("back   ") == 1
    assert run.summary["adaptations"] == []
    assert run.summary["interrupted"]
    assert "The run diverged" in (run.folder / "report.html").read_text()


def test_without_a_checkpoint_there_is_no_way_back_and_that_is_said(
    spoil: Spoil, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Tamiyo, folder: Path, **beside: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Tamiyo, "checkpoint", full)
    spoil(1)
    with pytest.raises(DivergedError, match="in epoch 2, with nothing to go back to"):
        run(_config(tmp_path), Ui(quiet=True))
    assert not (tmp_path / "runs").exists()


def test_a_twin_that_diverges_is_trained_no_further_and_not_compared_with(
    spoil: Spoil, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(EPOCHS + 2)
    record = run(_config(tmp_path, twin=True), Ui())
    assert record.twin is not None
    assert (len(record.twin.curve), record.twin.held_out) == (3, None)
    assert "the loss of the twin was not finite in epoch 3" in capsys.readouterr().out
    assert "twin&#39;s loss is not finite." in (_folder(tmp_path) / "report.html").read_text()


def test_a_model_whose_loss_is_not_finite_is_exported_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lost.py").write_text(
        "from torch import nn\n"
        "def build(task):\n"
        "    host = nn.Sequential(nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, 10))\n"
        "    nn.init.constant_(host[2].bias, float('nan'))\n"
        "    return host\n"
    )
    with pytest.raises(DivergedError):
        run(_config(tmp_path, host="lost:build", epochs=2), Ui(quiet=True))
    export(_folder(tmp_path), tmp_path / "home")
    warning = "The loss of this model on the held-out data is not finite"
    assert warning in capsys.readouterr().err
    assert warning in (tmp_path / "home" / "README.md").read_text()


def test_nothing_grows_and_nothing_is_blamed_while_the_loss_is_not_finite() -> None:
    model = nn.Sequential(nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    inputs, targets = torch.rand(64, 12), torch.randint(0, 3, (64,))
    eager = Heuristic(timing=Plateau(stall_improvement=10.0))
    with Tamiyo(wrap(model), optimizer, policy=eager) as tamiyo:

        def epoch(loss: float, train_loss: float | None = None) -> SystemStatePacket:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), targets).backward()  # pyright: ignore
            optimizer.step()  # pyright: ignore[reportUnknownMemberType]
            return tamiyo.end_epoch(val_loss=loss, train_loss=train_loss)

        lost = [epoch(math.nan) for _ in range(6)] + [epoch(1.0, math.inf) for _ in range(2)]
        assert {d.reason for packet in lost for d in packet.decisions} == {NO_DECISION}
        assert not [event for packet in lost for event in packet.events]
        later = [epoch(1.0) for _ in range(6)]
        decisions = [decision.action for packet in later for decision in packet.decisions]
        assert Action.GERMINATE in decisions
        assert SeedState.ROLLED_BACK not in {e.to_state for p in later for e in p.events}


def test_the_policy_never_has_no_kernels_forged(train: Train) -> None:
    run = train("--policy", "never", "--epochs", "1", "--no-twin")
    assert run.exit_code == 0, run.stderr
    assert "kernels" not in run.stdout
    assert not [e for e in read_chain(run.folder / "events.jsonl") if e.kind == "kernel"]


@pytest.mark.parametrize("name", ["summary.json", "report.html"])
def test_a_full_disk_at_the_end_costs_nothing_that_cannot_be_written_later(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device")

    command = "resume" if name == "summary.json" else "report"
    target = RunFolder if name == "summary.json" else None
    with monkeypatch.context() as full:
        if target is not None:
            full.setattr(target, "write_json", fails)
        else:
            full.setattr("esper.tamiyo.report.write_whole", fails)
        with pytest.raises(ConfigError, match=f"make room, then `.*tamiyo {command} "):
            run(_config(tmp_path, epochs=2, twin=True), Ui(quiet=True))
    folder = _folder(tmp_path)
    assert (folder / "model.safetensors").is_file()
    assert not (folder / name).exists()
    if command == "report":
        with pytest.raises(ConfigError, match=r"is complete; .*; tamiyo report"):
            resume(folder, Ui(quiet=True))
        return
    record = resume(folder, Ui(quiet=True))
    assert len(record.grown.curve) == 2
    assert record.twin is not None
    assert {"summary.json", "report.html"} <= {path.name for path in folder.iterdir()}
    assert not (folder / "checkpoints").exists()
