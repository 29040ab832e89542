"""Makes run folders as `train` leaves them, without training anything."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from esper.contracts import (
    Action,
    AdaptationSignal,
    Candidate,
    CompiledKernelArtifact,
    Contract,
    EventLog,
    FieldReport,
    HealthSignal,
    KernelSignature,
    SeedEvent,
    SeedState,
    SeedStatus,
    Site,
    SystemStatePacket,
)
from esper.tamiyo import Figures, RunConfig
from esper.tamiyo.summary import Layer, Point, RunRecord, Training, summarise

CULLED = (
    SeedState.GERMINATED,
    SeedState.LOADING,
    SeedState.TRAINING,
    SeedState.GRAFTING,
    SeedState.STABILIZATION,
    SeedState.EVALUATING,
    SeedState.CULLED,
    SeedState.DORMANT,
)
KEPT = (*CULLED[:6], SeedState.FINE_TUNING, SeedState.FOSSILIZED)
KERNEL, OTHER = "a" * 64, "c" * 64
SITES = (
    Site(
        layer_id=0,
        name="1",
        module_type="Linear",
        signature=KernelSignature.model_validate({"kind": "features", "features": 6}),
    ),
    Site(
        layer_id=1,
        name="3",
        module_type="Linear",
        signature=KernelSignature.model_validate({"kind": "features", "features": 6, "inputs": 9}),
        widens="1",
    ),
)


def record(
    *, task: str = "digits", twin: bool = True, life: Sequence[SeedState] = CULLED
) -> RunRecord:
    """Return the record of nine epochs in which one block went the way of `life`."""
    curve = [
        Point(
            epoch=e,
            train_loss=1 / (e + 1),
            val_loss=1 / (e + 1),
            val_accuracy=e / 10,
            parameters=9,
            flops=18,
        )
        for e in range(9)
    ]
    is_kept = life[-1] is SeedState.FOSSILIZED
    report = FieldReport(
        run_id="run-1",
        seed_id=(0, 0),
        site="1",
        kernel_id=KERNEL,
        blueprint_id="b" * 64,
        blueprint_name="residual_mlp",
        outcome=SeedState.FOSSILIZED if is_kept else SeedState.CULLED,
        reason="it helps: loss 0.4 with it" if is_kept else "it does not help: loss 0.6 with it",
        epoch_started=0,
        epoch_ended=6,
        parameters_added=0,
        loss_before=0.5,
        loss_with=0.6,
        loss_without=0.55,
    )
    made = RunRecord(
        config=RunConfig(task=task),
        run_id="run-1",
        parameters_before=9,
        grown=Training(parameters=9, curve=curve, held_out=Figures(loss=0.2, accuracy=0.9)),
        events=_events(life),
        field_reports=[report],
        blueprint_names={KERNEL: "residual_mlp"},
        topics={"system.events.epoch": 9},
        layers=[
            Layer(name="1", kind="Linear", parameters=5),
            Layer(name="3", kind="Linear", parameters=4),
        ],
        environment={"Python": "3.12"},
    )
    if twin:
        made.twin = Training(parameters=9, curve=curve, held_out=Figures(loss=0.3, accuracy=0.8))
    return made


def write_run(folder: Path, made: RunRecord) -> Path:
    """Write the files of a run of this record into `folder`; return it."""
    folder.mkdir(parents=True, exist_ok=True)
    with EventLog(folder / "events.jsonl") as log:

        def append(kind: str, message: Contract) -> None:
            log.append(kind, message.model_dump(mode="json"))

        if made.events:
            append("kernel", _kernel())
        for point in made.grown.curve:
            for layer, (gap, gain) in enumerate([(0.5, None), (0.25, 0.125)]):
                append("health", _health(layer, point.epoch, gap, gain))
            for event in made.events:
                if event.epoch == point.epoch:
                    append("transition", event)
            append("epoch", _packet(made, point))
            for report in made.field_reports:
                if report.epoch_ended == point.epoch:
                    append("field_report", report)
        made = replace(made, events_head=log.head)
    (folder / "lineage.json").write_text(
        json.dumps({"sites": [site.model_dump(mode="json") for site in SITES], "grafts": []})
    )
    (folder / "summary.json").write_text(json.dumps(summarise(made)))
    return folder


def _events(life: Sequence[SeedState]) -> list[SeedEvent]:
    state, events = SeedState.DORMANT, list[SeedEvent]()
    for epoch, following in enumerate(life):
        events.append(
            SeedEvent(
                seed_id=(0, 0),
                site="1",
                from_state=state,
                to_state=following,
                epoch=epoch,
                step=epoch,
                command_id=str(epoch),
                kernel_id=KERNEL,
                reason="r",
            )
        )
        state = following
    return events


def _packet(made: RunRecord, point: Point) -> SystemStatePacket:
    states = [event.to_state for event in made.events if event.epoch <= point.epoch]
    state = states[-1] if states else SeedState.DORMANT
    seed = SeedStatus(seed_id=(0, 0), site="1", state=state, alpha=point.epoch / 10)
    decision = AdaptationSignal(
        epoch=point.epoch, policy="gap", action=Action.WAIT, reason="one block at a time"
    )
    if point.epoch == 0 and made.events:
        decision = AdaptationSignal(
            epoch=0,
            policy="gap",
            action=Action.GERMINATE,
            seed_id=(0, 0),
            reason="growth is due; layer 1: residual_mlp scores highest of 2",
            candidates=(
                _candidate((0, 0), "1", KERNEL, "residual_mlp", 2.5),
                _candidate((1, 0), "1 wider, into 3", OTHER, "wider", 1.5),
            ),
        )
    return SystemStatePacket(
        run_id=made.run_id,
        epoch=point.epoch,
        step=point.epoch,
        val_loss=point.val_loss,
        learning_rate=0.01,
        num_parameters=9,
        seeds=(seed,),
        decisions=(decision,),
    )


def _candidate(
    seed_id: tuple[int, int], site: str, kernel: str, name: str, score: float
) -> Candidate:
    return Candidate(
        seed_id=seed_id,
        site=site,
        kernel_id=kernel,
        blueprint_name=name,
        num_parameters=7,
        score=score,
        numbers={"gap": score / 10, "worth_so_far": 1.0},
    )


def _health(layer: int, epoch: int, gap: float, gain: float | None) -> HealthSignal:
    return HealthSignal(
        layer_id=layer,
        seed_id=0,
        chunk_id=0,
        epoch=epoch,
        activation_variance=1.0,
        dead_neuron_ratio=0.0,
        avg_correlation=0.0,
        expressivity_gap=gap,
        expressivity_gain=gain,
    )


def _kernel() -> CompiledKernelArtifact:
    return CompiledKernelArtifact(
        kernel_id=KERNEL,
        blueprint_id="b" * 64,
        blueprint_name="residual_mlp",
        signature=SITES[0].signature,
        size_bytes=1,
        num_parameters=7,
    )
