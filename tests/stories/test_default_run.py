"""The first story: one command, a network that grows, and everything that it leaves behind."""

import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from esper.contracts import LIFECYCLE, SeedState, TopicNames, read_chain
from esper.tamiyo import RunConfig, Split, load_task
from esper.tamiyo.run import run
from esper.tamiyo.tasks import TASKS, Source, Task
from esper.tamiyo.ui import Ui
from esper.testkit.runs import COMMAND, FinishedRun, Train

LOAD_IN_A_FRESH_PROCESS = """
import sys, json, torch
from esper.kasmina import load
from esper.tamiyo import build_host, load_task
from esper.tamiyo.training import measure
task = load_task("digits")
bed = load(build_host("mlp", task, seed=999), __import__("pathlib").Path(sys.argv[1]))
figures = measure(bed.model, task.test)
print(json.dumps([figures.loss, figures.accuracy, bed.weights_sha256()]))
"""


@pytest.fixture(scope="module")
def finished(train: Train) -> FinishedRun:
    run = train()
    assert run.exit_code == 0, run.stderr
    return run


def test_it_leaves_a_complete_run_folder(finished: FinishedRun) -> None:
    names = {path.name for path in finished.folder.iterdir()}
    assert {
        "summary.json",
        "events.jsonl",
        "model.safetensors",
        "lineage.json",
        "config.yaml",
        "report.html",
    } <= names
    assert not [path for path in finished.folder.parent.iterdir() if path.name.startswith(".")]


def test_all_seven_topics_carried_messages(finished: FinishedRun) -> None:
    topics = finished.summary["topics"]
    assert topics.keys() == {topic.value for topic in TopicNames}
    assert all(count > 0 for count in topics.values())
    assert finished.summary["lost"] == {}
    assert finished.summary["complete"]


def test_every_message_is_counted_once(finished: FinishedRun) -> None:
    events = list(read_chain(finished.folder / "events.jsonl"))
    kinds = Counter(event.kind for event in events)
    num_kernels = kinds["kernel"]
    assert finished.summary["topics"] == {
        TopicNames.TELEMETRY_SEED_HEALTH.value: kinds["health"],
        TopicNames.CONTROL_KASMINA_COMMANDS.value: kinds["command"],
        TopicNames.SYSTEM_EVENTS_EPOCH.value: finished.summary["epochs"],
        TopicNames.INNOVATION_FIELD_REPORTS.value: kinds["field_report"],
        TopicNames.COMPILATION_KERNEL_READY.value: num_kernels,
        TopicNames.VALIDATION_KERNEL_CHARACTERIZED.value: num_kernels,
        TopicNames.COMPILATION_BLUEPRINT_SUBMITTED.value: len(
            {event.data["blueprint_id"] for event in events if event.kind == "kernel"}
        ),
    }


def test_a_seed_went_the_whole_way_to_fossilized(finished: FinishedRun) -> None:
    adaptations = finished.summary["adaptations"]
    kept = [a for a in adaptations if a["outcome"] == "FOSSILIZED"]
    assert kept
    assert [step["state"] for step in kept[0]["states"]] == [
        "DORMANT",
        "GERMINATED",
        "LOADING",
        "TRAINING",
        "GRAFTING",
        "STABILIZATION",
        "EVALUATING",
        "FINE_TUNING",
        "FOSSILIZED",
    ]


def test_every_transition_on_record_is_legal_and_the_chain_holds(finished: FinishedRun) -> None:
    events = list(read_chain(finished.folder / "events.jsonl"))
    transitions = [event.data for event in events if event.kind == "transition"]
    assert transitions
    for data in transitions:
        legal = LIFECYCLE[SeedState(data["from_state"])].next
        assert SeedState(data["to_state"]) in legal
    assert events[-1].hash == finished.summary["events_head"]
    assert {"run", "kernel", "health", "command", "transition", "epoch", "field_report"} <= {
        event.kind for event in events
    }


def test_every_decision_is_on_record_with_its_reason(finished: FinishedRun) -> None:
    epochs = [
        event.data
        for event in read_chain(finished.folder / "events.jsonl")
        if event.kind == "epoch"
    ]
    assert len(epochs) == finished.summary["epochs"]
    assert all(epoch["decisions"] for epoch in epochs)
    grown = [d for e in epochs for d in e["decisions"] if d["action"] == "germinate"]
    assert len(grown) == len(finished.summary["adaptations"])
    assert all(decision["candidates"] and decision["numbers"] for decision in grown)


def test_the_grown_model_comes_back_in_a_fresh_process(finished: FinishedRun) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOAD_IN_A_FRESH_PROCESS, str(finished.folder)],
        capture_output=True,
        text=True,
        check=True,
    )
    loss, accuracy, sha256 = json.loads(done.stdout)
    summary = finished.summary
    assert (loss, accuracy) == (summary["grown"]["loss"], summary["grown"]["accuracy"])
    assert sha256 == summary["weights_sha256"]


def test_the_written_configuration_repeats_the_run_byte_for_byte(
    finished: FinishedRun, tmp_path: Path
) -> None:
    command = [*COMMAND, "--config", str(finished.folder / "config.yaml"), "--no-twin"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    again = FinishedRun(
        exit_code=done.returncode, stdout=done.stdout, stderr=done.stderr, cwd=tmp_path
    )
    assert again.exit_code == 0, again.stderr
    assert again.summary["weights_sha256"] == finished.summary["weights_sha256"]
    one, other = (run.folder / "model.safetensors" for run in (finished, again))
    assert one.read_bytes() == other.read_bytes()
    assert _decisions(again) == _decisions(finished)


def _decisions(run: FinishedRun) -> list[tuple[object, ...]]:
    return [
        (e["epoch"], d["action"], d["seed_id"], d["reason"], d["numbers"])
        for e in (x.data for x in read_chain(run.folder / "events.jsonl") if x.kind == "epoch")
        for d in e["decisions"]
    ]


def test_the_configuration_is_written_in_full(finished: FinishedRun) -> None:
    written = yaml.safe_load((finished.folder / "config.yaml").read_text())
    assert written["task"] == "digits"
    assert written["epochs"] == finished.summary["epochs"]
    assert {"policy", "seed", "batch_size", "learning_rate", "bus", "out"} <= written.keys()


def test_the_report_is_a_well_formed_page(finished: FinishedRun) -> None:
    class Tags(HTMLParser):
        open_tags: list[str] = []  # noqa: RUF012

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            if tag in ("html", "body", "div", "table", "svg"):
                self.open_tags.append(tag)

        def handle_endtag(self, tag: str) -> None:
            if tag in ("html", "body", "div", "table", "svg"):
                assert self.open_tags.pop() == tag

    parser = Tags()
    page = (finished.folder / "report.html").read_text()
    parser.feed(page)
    assert parser.open_tags == []
    assert page.count("<svg") == 8  # the model and the lives of seeds have a form for phones, too


def test_it_says_how_it_went(finished: FinishedRun) -> None:
    assert "kernels forged and judged" in finished.stdout
    assert "grow" in finished.stdout
    assert "held-out accuracy" in finished.stdout
    assert str(Path("runs") / finished.folder.name / "report.html") in finished.stdout
    assert finished.stderr == ""


def test_quiet_is_quiet(train: Train) -> None:
    run = train("--quiet", "--epochs", "1", "--no-twin")
    assert (run.exit_code, run.stdout, run.stderr) == (0, "", "")


def _run(folder: Path, **options: Any) -> dict[str, Any]:
    """Run in this process, which spares the imports, and return the summary."""
    record = run(RunConfig(out=folder, **options), Ui(quiet=True))
    return json.loads((folder / record.run_id / "summary.json").read_text())


def test_the_policy_never_trains_exactly_like_its_twin(tmp_path: Path) -> None:
    summary = _run(tmp_path, policy="never", epochs=6)
    assert summary["adaptations"] == []
    assert summary["grown"] == summary["twin"]
    assert summary["parameters_before"] == summary["grown"]["parameters"]


def test_no_decision_ever_sees_test_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = load_task("digits")
    other = Split(inputs=task.test.known().inputs.flip(0) * 3, targets=task.test.known().targets)

    def load_other(_: Source) -> Task:
        return replace(task, test=other)

    monkeypatch.setitem(TASKS, "other", replace(TASKS["digits"], load=load_other))  # pyright: ignore
    one, another = (
        _run(tmp_path, task=name, epochs=25, twin=False) for name in ("digits", "other")
    )
    assert one["grown"]["loss"] != another["grown"]["loss"]
    assert one["adaptations"] == another["adaptations"] != []
    assert one["weights_sha256"] == another["weights_sha256"]


def test_the_grown_model_beats_its_twin_for_each_seed(tmp_path: Path) -> None:
    for seed in range(3):
        summary = _run(tmp_path, seed=seed)
        assert summary["grown"]["accuracy"] > summary["twin"]["accuracy"]


@pytest.mark.parametrize(
    ("task", "host"), [("digits", "cnn"), ("mnist1d", "mlp"), ("mnist1d", "cnn")]
)
def test_the_other_built_in_tasks_and_hosts_grow_too(tmp_path: Path, task: str, host: str) -> None:
    assert _run(tmp_path, task=task, host=host, epochs=20, twin=False)["adaptations"]
