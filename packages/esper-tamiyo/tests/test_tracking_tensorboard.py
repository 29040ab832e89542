"""Tracking with the real TensorBoard, read back as TensorBoard itself reads it."""

from pathlib import Path
from typing import Any

import pytest
from tracking_factory import CONFIG, EPOCHS, GREW_AT, PASSWORD, REASON, record, tell

from esper.tamiyo.config import override
from esper.tamiyo.folder import RunFolder
from esper.tamiyo.tracking import tracking

MISSING = "the extra `tensorboard` is not installed"
EVENTS: Any = pytest.importorskip(
    "tensorboard.backend.event_processing.event_accumulator", reason=MISSING
)
TENSORS: Any = pytest.importorskip("tensorboard.util.tensor_util", reason=MISSING)
HPARAMS: Any = pytest.importorskip("tensorboard.plugins.hparams.metadata", reason=MISSING)
HPARAMS_DATA: Any = pytest.importorskip(
    "tensorboard.plugins.hparams.plugin_data_pb2", reason=MISSING
)


def read(folder: Path) -> Any:
    events: Any = EVENTS.EventAccumulator(str(folder))
    events.Reload()
    return events


def scalars(events: Any, name: str) -> list[tuple[int, float]]:
    """Return the figures called `name`, whichever of its two ways TensorBoard keeps them in."""
    if name in events.Tags()["scalars"]:
        return [(event.step, event.value) for event in events.Scalars(name)]
    return [
        (event.step, float(TENSORS.make_ndarray(event.tensor_proto)))
        for event in events.Tensors(name)
    ]


def texts(events: Any, name: str) -> list[tuple[int, str]]:
    return [
        (event.step, TENSORS.make_ndarray(event.tensor_proto).item().decode())
        for event in events.Tensors(f"{name}/text_summary")
    ]


def track(tmp_path: Path, track: str = "tensorboard", **told: Any) -> list[str]:
    """Track one run and return the warnings; its folder has its final name at the end, as always."""
    warnings = list[str]()
    folder = RunFolder("run", tmp_path)
    folder.path.mkdir(parents=True)
    with tracking(override(CONFIG, {"track": (track,)}), folder, warnings.append) as tracker:
        tell(tracker, **told)
        tracker.end(record(**told))
    folder.path.rename(folder.final_path)
    return warnings


def test_the_curves_of_both_trainings_have_the_same_names(tmp_path: Path) -> None:
    assert track(tmp_path) == []
    for label, parameters, loss in (("grown", 200, 0.5), ("twin", 100, 0.75)):
        events = read(tmp_path / "run" / "tensorboard" / label)
        losses = scalars(events, "validation_loss")
        assert losses == [(e, pytest.approx(2 / (e + 1))) for e in range(EPOCHS)]
        assert scalars(events, "train_loss")[1] == (1, 0.5)
        assert scalars(events, "validation_accuracy")[0] == (0, 0.5)
        assert scalars(events, "parameters")[-1] == (EPOCHS - 1, 100 + EPOCHS - 1)
        assert [value for _, value in scalars(events, "final_parameters")] == [parameters]
        assert [value for _, value in scalars(events, "held_out_loss")] == [loss]


def test_decisions_and_the_configuration_are_texts(tmp_path: Path) -> None:
    track(tmp_path)
    events = read(tmp_path / "run" / "tensorboard" / "grown")
    assert texts(events, "decisions") == [(GREW_AT, f"grow layer fc: {REASON}")]
    ((_, configuration),) = texts(events, "configuration")
    assert f"| epochs | {EPOCHS} |" in configuration
    assert PASSWORD not in configuration


def test_the_configuration_and_the_final_figures_are_hyperparameters(tmp_path: Path) -> None:
    track(tmp_path)
    events = read(tmp_path / "run" / "tensorboard" / "grown")
    content = events.PluginTagToContent(HPARAMS.PLUGIN_NAME)
    data = HPARAMS_DATA.HParamsPluginData.FromString(content[HPARAMS.SESSION_START_INFO_TAG])
    hparams = data.session_start_info.hparams
    assert hparams["epochs"].number_value == EPOCHS
    assert hparams["policy"].string_value == "gap"
    assert PASSWORD not in str(hparams)
    experiment = HPARAMS_DATA.HParamsPluginData.FromString(content[HPARAMS.EXPERIMENT_TAG])
    metrics = {info.name.tag for info in experiment.experiment.metric_infos}
    assert metrics == {"final_parameters", "held_out_loss", "held_out_accuracy"}


def test_without_accuracy_there_is_no_curve_of_it(tmp_path: Path) -> None:
    assert track(tmp_path, accuracy=None) == []
    events = read(tmp_path / "run" / "tensorboard" / "grown")
    tags = events.Tags()
    assert not [name for name in tags["scalars"] + tags["tensors"] if "accuracy" in name]


def test_a_folder_of_ones_own_gets_a_folder_for_each_run(tmp_path: Path) -> None:
    assert track(tmp_path / "runs", f"tensorboard:{tmp_path / 'board'}") == []
    assert scalars(read(tmp_path / "board" / "run" / "twin"), "train_loss")
    assert not (tmp_path / "runs" / "run" / "tensorboard").exists()


def test_a_folder_that_cannot_be_written_costs_the_tracking_only(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    (warning,) = track(tmp_path / "runs", f"tensorboard:{tmp_path / 'file'}")
    assert warning.startswith("tracking with tensorboard stopped (")
    assert "the training is not affected" in warning
