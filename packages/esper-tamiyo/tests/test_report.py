"""The report: self-contained, complete, and safe with odd names."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from run_factory import CULLED, KEPT, record, write_run

from esper.contracts import (
    ConfigError,
    KernelSignature,
    NotFoundError,
    SeedEvent,
    SeedState,
    Site,
    SiteKind,
)
from esper.tamiyo import Figures
from esper.tamiyo.model_picture import place, promised
from esper.tamiyo.report import PAGE, PICTURES, write_report
from esper.tamiyo.story import Attempt, read_story
from esper.tamiyo.summary import Layer, RunRecord, Training, adaptations, summarise

NARROW = ["model", "seeds"]


def page(folder: Path, made: RunRecord) -> str:
    write_report(write_run(folder, made))
    return (folder / PAGE).read_text()


def test_the_report_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    shown = page(tmp_path, record())
    loaded = re.findall(r"""(?:src|href)\s*=\s*["']([^"'#][^"']*)""", shown)
    assert [each for each in loaded if not each.startswith("data:image/png;")] == []
    assert "url(http" not in shown
    assert "@import" not in shown
    assert "<script" not in shown


def test_the_report_says_what_growing_changed_and_why_a_block_went(tmp_path: Path) -> None:
    shown = page(tmp_path, record())
    assert (
        "90.0% of the held-out data correctly; its twin that never grew, 80.0%: 10.0 points more"
        in shown
    )
    assert "residual_mlp" in shown
    assert "removed</span>: it does not help: loss 0.6 with it" in shown
    assert "one block at a time" in shown
    assert "3.12" in shown


def test_every_picture_is_in_the_page_and_beside_it(tmp_path: Path) -> None:
    shown = page(tmp_path, record())
    names = ["accuracy", "flops", "loss", "model", "parameters", "seeds"]
    assert sorted(path.stem for path in (tmp_path / PICTURES).iterdir()) == names
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in (tmp_path / PICTURES).iterdir())
    assert shown.count("<svg") == len(names) + len(NARROW)


def test_a_phone_has_forms_of_the_wide_pictures_and_words_for_each_cell(tmp_path: Path) -> None:
    shown = page(tmp_path, record())
    narrow = re.findall(r'class="on-phone" role="img" aria-label="(\w+)"', shown)
    assert sorted(narrow) == NARROW
    row = re.findall(r'<td(?: class="n")? data-is="(\w+)"', shown)
    assert row[:5] == ["epochs", "place", "block", "parameters", "outcome"]


def test_the_same_run_gives_the_same_page(tmp_path: Path) -> None:
    first = page(tmp_path, record())
    write_report(tmp_path)
    assert (tmp_path / PAGE).read_text() == first


def test_a_kept_block_is_in_the_lineage(tmp_path: Path) -> None:
    shown = page(tmp_path, record(life=KEPT))
    lineage = shown[shown.index("<h2>Lineage") : shown.index("<h2>The record")]
    assert "residual_mlp at layer 1, epoch 1" in lineage
    assert "residual_mlp" not in page(tmp_path / "culled", record())[shown.index("<h2>Lineage") :]


def test_a_run_without_a_twin_or_growth_still_has_a_report(tmp_path: Path) -> None:
    bare = record(twin=False)
    bare.events, bare.field_reports = [], []
    shown = page(tmp_path, bare)
    assert "Nothing was tried" in shown
    assert not (tmp_path / PICTURES / "seeds.png").exists()


def test_a_regression_is_told_by_its_losses(tmp_path: Path) -> None:
    made = record()
    assert made.twin is not None
    for training, loss in ((made.grown, 0.25), (made.twin, 0.5)):
        training.held_out = Figures(loss=loss)
        training.curve = [replace(point, val_accuracy=None) for point in training.curve]
    shown = page(tmp_path, made)
    assert "loss on the held-out data is 0.2500; its twin that never grew has 0.5000" in shown
    assert "accuracy" not in shown[: shown.index("Every decision")]


def test_a_run_stopped_in_its_first_epoch_still_has_a_report(tmp_path: Path) -> None:
    stopped = record(twin=False)
    stopped.grown = Training(parameters=9)
    stopped.events, stopped.field_reports, stopped.interrupted = [], [], True
    assert "stopped early" in page(tmp_path, stopped)


def test_a_loss_that_is_no_number_is_a_gap_in_the_curve(tmp_path: Path) -> None:
    folder = write_run(tmp_path, record())
    summary = json.loads((folder / "summary.json").read_text())
    summary["grown"]["curve"][4] |= {"val_loss": None, "train_loss": None}
    (folder / "summary.json").write_text(json.dumps(summary))
    assert math.isnan(read_story(folder).grown.curve[4].val_loss)
    assert len(write_report(folder)) == 7


def test_names_cannot_break_out_of_the_page(tmp_path: Path) -> None:
    made = record(task="<script>alert(1)</script>:f")
    made.layers = [Layer(name="<script>alert(2)", kind="<b>", parameters=3)]
    shown = page(tmp_path, made)
    assert "<script>" not in shown
    assert "<b>," not in shown


def test_a_damaged_record_is_said_and_what_was_whole_is_told(tmp_path: Path) -> None:
    folder = write_run(tmp_path, record())
    log = folder / "events.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:20]) + lines[20].replace(b"0", b"1", 1))
    story = read_story(folder)
    assert story.damage is not None
    assert story.attempts
    write_report(folder)
    assert "The record is damaged" in (folder / PAGE).read_text()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("summary.json", None, r"has no summary\.json.*tamiyo resume"),
        ("summary.json", "{", "is no JSON"),
        ("summary.json", "[]", "expected an object"),
        ("summary.json", "{}", "not what this version of Esper writes"),
        ("lineage.json", '{"sites": [{}]}', "not what this version of Esper writes"),
    ],
)
def test_a_folder_that_is_no_run_is_explained(
    tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    folder = write_run(tmp_path, record())
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    with pytest.raises((ConfigError, NotFoundError), match=message):
        write_report(folder)


@pytest.mark.parametrize("constant", ["0.9", [1], {"loss": "0.9", "accuracy": None}, {"loss": 1.0}])
def test_figures_that_are_none_are_explained(tmp_path: Path, constant: object) -> None:
    folder = write_run(tmp_path, record())
    summary = json.loads((folder / "summary.json").read_text())
    summary["best_constant"] = constant
    (folder / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(ConfigError, match="not what this version of Esper writes"):
        read_story(folder)


def test_a_folder_that_is_not_there_is_explained(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="there is no run folder"):
        read_story(tmp_path / "nowhere")


def test_a_run_that_was_killed_is_not_said_to_be_missing(tmp_path: Path) -> None:
    (tmp_path / ".one.partial").mkdir()
    with pytest.raises(
        NotFoundError, match=r"has not come to its end; .*tamiyo resume .*/one goes on"
    ):
        read_story(tmp_path / "one")


def test_layers_are_coloured_by_gain_where_some_can_become_wider(tmp_path: Path) -> None:
    story = read_story(write_run(tmp_path, record()))
    assert promised(story) == ({"1": 1.0}, "gain")
    story.health = [each for each in story.health if each.expressivity_gain is None]
    assert promised(story) == ({"1": 1.0}, "gap")
    story.health = []
    assert promised(story) == ({}, "gap")


def test_a_deep_model_is_drawn_by_its_sites(tmp_path: Path) -> None:
    made = record()
    made.layers = [Layer(name=str(n), kind="Linear", parameters=n) for n in range(60)]
    assert "and 58 layers without a place to grow" in page(tmp_path, made)


def test_a_block_is_drawn_beside_all_layers_that_it_has_to_do_with() -> None:
    signature = KernelSignature(kind=SiteKind.FEATURES, features=4)
    made_from = signature.model_copy(update={"inputs": 4})
    sites = [
        Site(layer_id=0, name="fc1", module_type="Linear", signature=signature),
        Site(
            layer_id=1, name="fc3", module_type="Linear", signature=made_from, widens="fc1", spans=2
        ),
        Site(layer_id=2, name="block", module_type="Block", signature=signature),
        Site(layer_id=3, name="blocker", module_type="Linear", signature=signature),
    ]
    layers = ["fc1", "fc2", "fc3", "block.up", "block.down", "blocker"]

    def attempt(layer_id: int, index: int, end: SeedState) -> Attempt:
        seed_id = (layer_id, index)
        event = SeedEvent(
            seed_id=seed_id,
            site="",
            from_state=SeedState.EVALUATING,
            to_state=end,
            epoch=3,
            step=0,
            command_id="",
            reason="",
        )
        return Attempt(
            seed_id=seed_id, site="", kernel_id="", name="block", parameters=1, states=[event]
        )

    gone = [attempt(0, 0, SeedState.CULLED) for _ in range(3)]
    kept = [attempt(n, 1, SeedState.FOSSILIZED) for n in range(4)]
    found = [
        (p.attempt.seed_id, p.first_row, p.last_row, p.column)
        for p in place([*gone, *kept], sites, layers)
    ]
    assert found == [
        ((0, 1), 0, 0, 0),
        ((1, 1), 0, 2, 1),
        ((2, 1), 3, 4, 0),
        ((3, 1), 5, 5, 0),
        ((0, 0), 0, 0, 2),
        ((0, 0), 0, 0, 3),
    ]


def test_an_attempt_lists_its_states_and_its_outcome() -> None:
    (attempt,) = adaptations(record())
    assert [step["state"] for step in attempt["states"]] == ["DORMANT", *CULLED]
    assert attempt["outcome"] == "CULLED"
    assert attempt["blueprint"] == "residual_mlp"


def test_a_block_that_came_with_a_loaded_model_is_an_attempt_too() -> None:
    resumed = record()
    resumed.events = [e for e in resumed.events if e.to_state is SeedState.CULLED]
    (attempt,) = adaptations(resumed)
    assert [step["state"] for step in attempt["states"]] == ["EVALUATING", "CULLED"]


def test_a_person_reads_epochs_from_1_and_a_program_from_0(tmp_path: Path) -> None:
    assert '<td class="n" data-is="epochs">1\u20137</td>' in page(tmp_path, record())
    summary = summarise(record())
    assert summary["first_epoch"] == summary["grown"]["curve"][0]["epoch"] == 0


def test_what_is_missing_from_the_record_is_said(tmp_path: Path) -> None:
    made = record()
    made.unfiled, made.events_lost, made.events_failure = 2, 7, "No space left on device"
    shown = page(tmp_path, made)
    assert "7 events could not be written (No space left on device)" in shown
    assert "2 outcomes were not filed" in shown


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
