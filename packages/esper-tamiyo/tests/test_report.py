"""The report: self-contained, complete, and safe with odd names."""

import re

from esper.contracts import FieldReport, SeedEvent, SeedState
from esper.tamiyo import Figures, RunConfig
from esper.tamiyo.pictures import draw_timeline
from esper.tamiyo.report import render_report
from esper.tamiyo.summary import Point, RunRecord, Training, adaptations, summarise

LIFE = [
    SeedState.GERMINATED,
    SeedState.LOADING,
    SeedState.TRAINING,
    SeedState.GRAFTING,
    SeedState.STABILIZATION,
    SeedState.EVALUATING,
    SeedState.CULLED,
    SeedState.DORMANT,
]


def record(*, task: str = "digits", twin: bool = True) -> RunRecord:
    curve = [
        Point(
            epoch=e, train_loss=1 / (e + 1), val_loss=1 / (e + 1), val_accuracy=e / 10, parameters=9
        )
        for e in range(9)
    ]
    state, events = SeedState.DORMANT, list[SeedEvent]()
    for epoch, following in enumerate(LIFE):
        events.append(
            SeedEvent(
                seed_id=(0, 0),
                site="1",
                from_state=state,
                to_state=following,
                epoch=epoch,
                step=epoch,
                command_id=str(epoch),
                kernel_id="a" * 64,
                reason="r",
            )
        )
        state = following
    report = FieldReport(
        run_id="run",
        seed_id=(0, 0),
        site="1",
        kernel_id="a" * 64,
        blueprint_id="b" * 64,
        blueprint_name="residual_mlp",
        outcome=SeedState.CULLED,
        reason="it does not help",
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
        events=events,
        field_reports=[report],
        blueprint_names={"a" * 64: "residual_mlp"},
        topics={"system.events.epoch": 9},
    )
    if twin:
        made.twin = Training(parameters=9, curve=curve, held_out=Figures(loss=0.3, accuracy=0.8))
    return made


def test_the_report_loads_nothing_from_elsewhere() -> None:
    page = render_report(record())
    loaded = re.findall(r"""(?:src|href)\s*=\s*["']([^"'#][^"']*)""", page)
    assert loaded == []
    assert "url(http" not in page
    assert "<script" not in page


def test_the_report_says_what_growing_changed_and_why_a_block_went() -> None:
    page = render_report(record())
    assert (
        "90.0% of the held-out data correctly; its twin that never grew, 80.0%: 10.0 points more"
        in page
    )
    assert "residual_mlp" in page
    assert "0.6000 with it, 0.5500 without, 0.5000 before" in page
    assert page.count("<svg") == 3


def test_a_run_without_a_twin_or_growth_still_has_a_report() -> None:
    bare = record(twin=False)
    bare.events, bare.field_reports = [], []
    page = render_report(bare)
    assert "Nothing was tried" in page
    assert page.count("<svg") == 2


def test_a_run_stopped_in_its_first_epoch_still_has_a_report() -> None:
    stopped = record(twin=False)
    stopped.grown = Training(parameters=9)
    stopped.events, stopped.field_reports, stopped.interrupted = [], [], True
    assert "stopped early" in render_report(stopped)


def test_names_cannot_break_out_of_the_page() -> None:
    assert "<script>alert" not in render_report(record(task="<script>alert(1)</script>:f"))


def test_an_attempt_lists_its_states_and_its_outcome() -> None:
    (attempt,) = adaptations(record())
    assert [step["state"] for step in attempt["states"]] == ["DORMANT", *LIFE]
    assert attempt["outcome"] == "CULLED"
    assert attempt["blueprint"] == "residual_mlp"


def test_a_block_that_came_with_a_loaded_model_is_an_attempt_too() -> None:
    resumed = record()
    resumed.events = [e for e in resumed.events if e.to_state is SeedState.CULLED]
    (attempt,) = adaptations(resumed)
    assert [step["state"] for step in attempt["states"]] == ["EVALUATING", "CULLED"]


def test_a_person_reads_epochs_from_1_and_a_program_from_0() -> None:
    assert '<td class="n">1\u20137</td>' in render_report(record())
    assert ">0</text>" not in draw_timeline(record())
    summary = summarise(record())
    assert summary["first_epoch"] == summary["grown"]["curve"][0]["epoch"] == 0


def test_what_is_missing_from_the_record_is_said() -> None:
    made = record()
    made.unfiled, made.events_lost, made.events_failure = 2, 7, "No space left on device"
    page = render_report(made)
    assert "7 events could not be written (No space left on device)" in page
    assert "2 outcomes were not filed" in page


def test_the_summary_has_the_promised_keys() -> None:
    summary = summarise(record())
    assert {
        "task",
        "host",
        "seed",
        "policy",
        "parameters_before",
        "grown",
        "twin",
        "adaptations",
        "topics",
        "weights_sha256",
    } <= summary.keys()
    for model in ("grown", "twin"):
        assert {"accuracy", "loss", "parameters"} <= summary[model].keys()
