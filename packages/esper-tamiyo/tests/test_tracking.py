"""Tracking in general: told in order, never waited for, never fatal, clear about what is missing."""

import sys
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tracking_factory import CONFIG, EPOCHS, PASSWORD, REASON, packet, point, record, tell

from esper.contracts import ConfigError
from esper.tamiyo import RunConfig
from esper.tamiyo import tracking as module
from esper.tamiyo.config import override
from esper.tamiyo.folder import RunFolder
from esper.tamiyo.summary import Point, RunRecord
from esper.tamiyo.tracking import OpenTracker, Tracker, decided, tracker_factory, tracking


class Diary:
    """A tracker that writes down what it is told, and fails or hangs where it is asked to."""

    def __init__(
        self, *, fails_at: str | None = None, hangs_at: str | None = None, text: str = "gone"
    ) -> None:
        self.lines: list[str] = []
        self.released = threading.Event()
        self._fails_at, self._hangs_at, self._text = fails_at, hangs_at, text

    def begin(self, run_id: str, config: Mapping[str, Any]) -> None:
        self.config = config
        self._note(f"begin {run_id}")

    def epoch(self, label: str, point: Point, packet: object) -> None:
        self._note(f"{label} {point.epoch}")

    def end(self, record: RunRecord) -> None:
        self._note("end")

    def close(self) -> None:
        self._note("close")

    def _note(self, line: str) -> None:
        if line == self._hangs_at:
            self.released.wait(60)
        if line == self._fails_at:
            raise ConnectionError(self._text)
        self.lines.append(line)


@pytest.fixture
def follow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """Return a context manager: a tracked run with one diary, and where its warnings go."""
    monkeypatch.setattr(module, "START_SECONDS", 0.2)
    monkeypatch.setattr(module, "END_SECONDS", 0.2)

    @contextmanager
    def follow(diary: Diary, warnings: list[str], track: str = "mlflow") -> Generator[Tracker]:
        def opened(folder: Path, target: str | None) -> Tracker:
            assert folder == tmp_path / ".run.partial"
            return diary

        def factory(kind: str) -> OpenTracker:
            assert kind == "mlflow"
            return opened

        monkeypatch.setattr(module, "tracker_factory", factory)
        config = override(CONFIG, {"track": (track,)})
        try:
            with tracking(config, RunFolder("run", tmp_path), warnings.append) as tracker:
                yield tracker
        finally:
            diary.released.set()

    return follow


def test_a_tracker_is_told_everything_in_order(follow: Callable[..., Any]) -> None:
    diary, warnings = Diary(), list[str]()
    with follow(diary, warnings) as tracker:
        assert diary.lines == ["begin run"], "before the first step"
        tell(tracker)
        tracker.end(record())
    epochs = [f"{label} {epoch}" for label in ("grown", "twin") for epoch in range(EPOCHS)]
    assert diary.lines == ["begin run", *epochs, "end", "close"]
    assert warnings == []


def test_no_password_is_tracked(follow: Callable[..., Any]) -> None:
    diary = Diary()
    with follow(diary, [], track=f"mlflow:http://me:{PASSWORD}@host/"):
        pass
    assert PASSWORD not in str(diary.config)
    assert diary.config["track"] == ["mlflow:http://me@host/"]


@pytest.mark.parametrize("when", ["begin run", "grown 2", "end"])
def test_a_failure_is_said_once_and_the_run_goes_on(follow: Callable[..., Any], when: str) -> None:
    diary, warnings = Diary(fails_at=when), list[str]()
    with follow(diary, warnings) as tracker:
        tell(tracker)
        tracker.end(record())
    assert warnings == [
        "tracking with mlflow stopped (ConnectionError: gone); the training is not affected"
    ]
    assert diary.lines[-1] == "close", "what it holds is let go of all the same"
    assert "twin 0" not in diary.lines or when == "end"


def test_closing_may_fail_too(follow: Callable[..., Any]) -> None:
    warnings = list[str]()
    with follow(Diary(fails_at="close"), warnings):
        pass
    assert len(warnings) == 1


def test_a_warning_is_short_and_without_the_password(follow: Callable[..., Any]) -> None:
    text = f"no answer from http://me:{PASSWORD}@host\n" + "<html>" * 500
    warnings = list[str]()
    with follow(
        Diary(fails_at="begin run", text=text), warnings, f"mlflow:http://me:{PASSWORD}@host"
    ):
        pass
    (warning,) = warnings
    assert PASSWORD not in warning
    assert "http://me:***@host <html>" in warning
    assert len(warning) < 400


@pytest.mark.parametrize("when", ["begin run", "grown 1", "end"])
def test_a_tracker_that_hangs_is_left_behind(follow: Callable[..., Any], when: str) -> None:
    diary, warnings = Diary(hangs_at=when), list[str]()
    with follow(diary, warnings) as tracker:
        tell(tracker)
        tracker.end(record())
    (warning,) = warnings
    assert "did not take in everything within" in warning


def test_a_slow_tracker_misses_epochs_rather_than_filling_the_memory(
    follow: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 3)
    diary, warnings = Diary(hangs_at="begin run"), list[str]()
    with follow(diary, warnings) as tracker:
        tell(tracker)
        monkeypatch.setattr(module, "END_SECONDS", 30.0)
        diary.released.set()
    assert diary.lines == ["begin run", "grown 0", "grown 1", "grown 2", "close"]
    (warning,) = warnings
    assert f"missed {2 * EPOCHS - 3} epochs" in warning


def test_a_failing_run_closes_its_trackers_without_an_end(follow: Callable[..., Any]) -> None:
    diary = Diary()
    with pytest.raises(RuntimeError, match="host"), follow(diary, []):
        raise RuntimeError("the host")
    assert diary.lines == ["begin run", "close"]


def test_without_trackers_nothing_is_opened(tmp_path: Path) -> None:
    with tracking(RunConfig(), RunFolder("run", tmp_path), pytest.fail) as tracker:
        tell(tracker)
        tracker.end(record())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kind", "package"), [("tensorboard", "torch.utils.tensorboard"), ("mlflow", "mlflow")]
)
def test_a_missing_extra_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, kind: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"esper.tamiyo.tracking_{kind}", raising=False)
    with pytest.raises(
        ConfigError, match=rf"--track {kind} needs .*--all-packages --extra {kind}`"
    ):
        tracker_factory(kind)


@pytest.mark.parametrize(
    ("track", "message"),
    [
        ("wandb", "track: unknown tracker 'wandb'; there are tensorboard, mlflow"),
        ("mlflow:", "track: mlflow: names no place"),
        ("mlflow:http://[::1", "track: the place for mlflow is malformed"),
    ],
)
def test_a_bad_tracker_is_refused(track: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        override(RunConfig(), {"track": (track,)})


def test_the_same_tracker_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="a tracker is given twice"):
        override(RunConfig(), {"track": ("mlflow", "mlflow")})
    override(RunConfig(), {"track": ("mlflow", "mlflow:http://host")})


def test_decisions_are_said_with_their_layer_and_waiting_is_none() -> None:
    assert decided(packet(0)) == []
    assert decided(packet(2)) == [f"grow layer fc: {REASON}"]
    assert point(0).val_accuracy == 0.5
