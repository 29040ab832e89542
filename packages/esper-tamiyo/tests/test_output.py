"""Output that nobody reads any more: a run goes on, a question ends quietly."""

import io
import os
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TextIO

import pytest
import typer
from run_factory import record

from esper.contracts import ConfigError, get_logger
from esper.tamiyo import cli, commands
from esper.tamiyo.guarding import guarded, run_command_line
from esper.tamiyo.output import Lasting
from esper.tamiyo.stopping import StoppedEarlyError
from esper.tamiyo.ui import Ui

FULL = Path("/dev/full")
LONG = "word " * 100_000
"""More than any pipe or buffer holds."""


@contextmanager
def unread() -> Generator[TextIO]:
    """Make standard output a pipe whose reader is gone, as behind `| head` once head has ended."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream, redirect_stdout(stream):
        yield stream


@pytest.mark.parametrize("text", ["one line", LONG], ids=["held in the buffer", "long"])
def test_a_question_whose_answer_nobody_reads_ends_quietly(
    text: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with unread() as stream:
        with pytest.raises(typer.Exit) as ended, guarded("tamiyo explain", debug=False):
            print(text)
        stream.flush()  # as Python does at its end
    assert ended.value.exit_code == 1
    assert capfd.readouterr().err == ""


def test_a_pipe_of_something_else_is_still_an_error(capfd: pytest.CaptureFixture[str]) -> None:
    with unread(), pytest.raises(typer.Exit), guarded("train", debug=False):
        raise BrokenPipeError(32, "Broken pipe")
    assert "unexpected BrokenPipeError" in capfd.readouterr().err


@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full, which Linux has")
def test_an_answer_on_a_full_disk_is_an_error(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with (
        FULL.open("w") as full,
        redirect_stdout(full),
        pytest.raises(typer.Exit) as ended,
        guarded("tamiyo explain", debug=False),
    ):
        print("one line")
    assert ended.value.exit_code == 1
    assert capfd.readouterr().err == (
        "tamiyo explain: the output cannot be written: No space left on device\n"
    )


@pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full, which Linux has")
@pytest.mark.parametrize(
    ("program", "main"), [("train", cli.main), ("tamiyo", commands.main)], ids=["train", "tamiyo"]
)
def test_help_on_a_full_disk_is_an_error(
    program: str,
    main: Callable[[], None],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", [program, "--help"])
    with FULL.open("w") as full, redirect_stdout(full), pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert capfd.readouterr().err == (
        f"{program}: the output cannot be written: No space left on device\n"
    )


def test_a_run_within_a_command_line_is_told_of_the_loss_and_goes_on(
    capfd: pytest.CaptureFixture[str],
) -> None:
    def app() -> None:
        with guarded("train", debug=False, goes_on=True):
            print(LONG)
        raise SystemExit(0)

    with unread(), pytest.raises(SystemExit) as ended:
        run_command_line(app, "train")
    assert ended.value.code == 0
    assert "the run is not affected" in capfd.readouterr().err


@pytest.mark.parametrize("goes_on", [True, False])
@pytest.mark.parametrize(
    ("error", "code"),
    [(ConfigError("wrong"), 2), (StoppedEarlyError(), 130)],
    ids=["bad", "stopped"],
)
def test_what_went_wrong_is_told_rather_than_that_its_output_is_lost(
    error: Exception, code: int, *, goes_on: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    def app() -> None:
        try:
            with guarded("train", debug=False, goes_on=goes_on):
                print("held in the buffer")
                raise error
        except typer.Exit as ended:
            raise SystemExit(ended.exit_code) from None

    with unread(), pytest.raises(SystemExit) as ended:
        run_command_line(app, "train")
    assert ended.value.code == code
    said = capfd.readouterr().err
    assert "cannot be written: " not in said
    assert ("train: wrong" in said) == (code == 2)


def test_a_run_goes_on_and_says_once_that_nobody_reads(capfd: pytest.CaptureFixture[str]) -> None:
    with unread(), guarded("train", debug=False, goes_on=True), Ui() as ui:
        for _ in range(3):
            ui.say(LONG)
            print(LONG, flush=True)  # as a host or a task may do
    assert capfd.readouterr().err == (
        "train: its output cannot be written any more (Broken pipe); the run is not affected\n"
    )


def test_how_a_stopped_run_goes_on_is_said_where_somebody_may_read_it(
    capfd: pytest.CaptureFixture[str],
) -> None:
    stopped = record()
    stopped.interrupted = True
    with unread(), guarded("train", debug=False, goes_on=True), Ui() as ui:
        print(LONG, flush=True)
        ui.result(stopped, Path("runs") / "one")
    _, said = capfd.readouterr().err.splitlines()
    assert said.endswith("go on  uv run --package esper-tamiyo tamiyo resume runs/one")


def test_a_run_goes_on_when_nobody_reads_its_errors_either() -> None:
    with (
        unread() as stream,
        redirect_stderr(stream),
        guarded("train", debug=True, goes_on=True),
        Ui() as ui,
    ):
        ui.say(LONG)
        ui.warn(LONG)
        get_logger(__name__).error(LONG)


def test_a_stream_without_a_file_is_dropped_too() -> None:
    class Full(io.StringIO):
        def write(self, _: str, /) -> int:
            raise OSError(28, "No space left on device")

    reasons: list[OSError] = []
    stream = Lasting(Full(), reasons.append)
    assert [stream.write("four"), stream.write("four")] == [4, 4]
    stream.flush()
    assert [each.errno for each in reasons] == [28]
