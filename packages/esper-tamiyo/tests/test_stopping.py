"""Signals: what each one does, from the first import to the last byte written."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import esper.tamiyo
from esper.tamiyo.entry import HANGUP, SIGNALS
from esper.tamiyo.stopping import StopSignals

INTERRUPT_AT_IMPORT = """
import builtins, os, signal
from esper.tamiyo.entry import main
imports = builtins.__import__
def interrupting(name, *arguments, **more):
    if name == {module!r}:
        os.kill(os.getpid(), signal.{number})
    return imports(name, *arguments, **more)
builtins.__import__ = interrupting
main()
"""


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("module", ["esper.tamiyo.cli", "typer", "torch", "esper.tamiyo.run"])
def test_a_signal_while_modules_are_imported_is_one_line(
    module: str, number: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPT_AT_IMPORT.format(module=module, number=number)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 130
    assert done.stderr.startswith("train: interrupted")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_the_package_and_the_entry_import_nothing_that_takes_time() -> None:
    code = "import sys, esper.tamiyo.entry; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "pydantic", "typer", "typing"} & set(done.stdout.split())


def test_every_public_name_is_there_and_no_other() -> None:
    for name in esper.tamiyo.__all__:
        assert getattr(esper.tamiyo, name) is not None
    assert set(esper.tamiyo.__all__) <= set(dir(esper.tamiyo))
    with pytest.raises(AttributeError, match="has no attribute 'Tamyo'"):
        _ = esper.tamiyo.Tamyo  # pyright: ignore


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_interrupts(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopSignals() as stop:
        stop.defer()
        assert not stop.honour()
        os.kill(os.getpid(), number)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


def test_a_signal_interrupts_at_once_while_there_is_nothing_to_save() -> None:
    with StopSignals(), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_no_signal_interrupts_what_is_being_saved() -> None:
    with StopSignals() as stop:
        stop.defer()
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.honour()  # from here on, the run is saving
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.skipif(
    HANGUP not in SIGNALS, reason="no SIGHUP here, or it is ignored, as under nohup"
)
def test_a_terminal_that_is_closed_asks_however_often_it_says_so() -> None:
    assert HANGUP is not None
    with StopSignals() as stop:
        stop.defer()
        os.kill(os.getpid(), HANGUP)
        os.kill(os.getpid(), HANGUP)
        assert stop.honour()


def test_a_signal_while_saving_is_honoured_afterwards() -> None:
    with StopSignals() as stop:
        stop.hold()
        os.kill(os.getpid(), signal.SIGINT)
        stop.defer()
        assert stop.honour()
