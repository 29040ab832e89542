"""What the tests of tracking are about: one small run, told to a tracker as the trainer would."""

from pathlib import Path

from esper.contracts import Action, AdaptationSignal, SeedState, SeedStatus, SystemStatePacket
from esper.tamiyo import RunConfig
from esper.tamiyo.summary import Point, RunRecord, Training
from esper.tamiyo.tracking import Tracker
from esper.tamiyo.verdict import Figures

EPOCHS = 4
GREW_AT = 2
REASON = "layer fc scores highest of 3"
PASSWORD = "hunter2"
CONFIG = RunConfig(bus=f"redis://:{PASSWORD}@host:6379/0", epochs=EPOCHS)


def point(epoch: int, *, accuracy: float | None = 0.5) -> Point:
    return Point(
        epoch=epoch,
        train_loss=1 / (epoch + 1),
        val_loss=2 / (epoch + 1),
        val_accuracy=accuracy,
        parameters=100 + epoch,
    )


def packet(epoch: int) -> SystemStatePacket:
    grow = AdaptationSignal(
        epoch=epoch, policy="gap", action=Action.GERMINATE, seed_id=(0, 0), reason=REASON
    )
    wait = AdaptationSignal(epoch=epoch, policy="gap", action=Action.WAIT, reason="not yet")
    return SystemStatePacket(
        run_id="run",
        epoch=epoch,
        step=epoch,
        val_loss=1.0,
        learning_rate=0.1,
        num_parameters=100,
        seeds=(SeedStatus(seed_id=(0, 0), site="fc", state=SeedState.TRAINING, alpha=0.0),),
        decisions=(grow,) if epoch == GREW_AT else (wait,),
    )


def record(*, interrupted: bool = False, accuracy: float | None = 0.75) -> RunRecord:
    curve = [point(epoch) for epoch in range(EPOCHS)]
    grown = Training(parameters=200, curve=curve, held_out=Figures(loss=0.5, accuracy=accuracy))
    twin = Training(parameters=100, curve=curve, held_out=Figures(loss=0.75, accuracy=accuracy))
    return RunRecord(
        config=CONFIG,
        parameters_before=100,
        grown=grown,
        twin=twin,
        weights_sha256="ab" * 32,
        interrupted=interrupted,
    )


def tell(tracker: Tracker, *, accuracy: float | None = 0.5) -> None:
    """Tell `tracker` of every epoch of the run."""
    for epoch in range(EPOCHS):
        tracker.epoch("grown", point(epoch, accuracy=accuracy), packet(epoch))
    for epoch in range(EPOCHS):
        tracker.epoch("twin", point(epoch, accuracy=accuracy), None)


def write_report(folder: Path) -> None:
    """Write what a run leaves in its folder and MLflow keeps."""
    for name in ("report.html", "summary.json", "config.yaml"):
        (folder / name).write_text(f"this is {name}")
