"""What every command does about errors: one clear message and an exit code, never a raw traceback."""

import errno
import logging
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import TextIO, cast

import typer

from esper.contracts import EsperError, setup_logging
from esper.tamiyo.entry import EXIT_INTERRUPTED, what_is_left
from esper.tamiyo.output import Lasting, OutputLostError, give_up, no_matter
from esper.tamiyo.stopping import StoppedEarlyError

EXIT_UNEXPECTED = 1
EXIT_BAD_INPUT = 2


@contextmanager
def guarded(program: str, *, debug: bool, goes_on: bool = False) -> Generator[None]:
    """Turn what goes wrong within the context into a message and an exit code; `debug` lets it through.

    2 for a mistake in what was asked for, or a server that is not there; 130 after an interruption; 1 for
    anything that nobody expected. A program that `goes_on` does so when its output cannot be written any
    more; others are done then, with 1.
    """

    def tell(error: OSError) -> None:
        text = f"its output cannot be written any more ({error.strerror}); the run is not affected"
        print(f"{program}: {text}", file=sys.stderr)

    errors = cast(TextIO, Lasting(sys.stderr, on_loss=no_matter))
    output = cast(TextIO, Lasting(sys.stdout, on_loss=tell if goes_on else give_up))
    with redirect_stderr(errors), redirect_stdout(output), _guarded(program, debug=debug):
        try:
            yield
        except BaseException:
            with suppress(OutputLostError):  # there is something worse to be told
                output.flush()
            raise
        output.flush()


def run_command_line(app: Callable[[], object], program: str) -> None:
    """Run `app`, which prints help and completions itself, and commands in `guarded`.

    Raises:
        SystemExit: as `app` does, as typer's always do; with 1 instead of 0 where help cannot be written.

    """
    lost: list[OSError] = []  # not raised at once: typer swallows errors where it tries a stream
    output = cast(TextIO, Lasting(sys.stdout, on_loss=lost.append))
    with redirect_stdout(output):
        try:
            app()
        except SystemExit as ended:
            output.flush()
            if ended.code or not lost:
                raise
            _tell_lost(program, lost[0])
            raise SystemExit(EXIT_UNEXPECTED) from None


@contextmanager
def _guarded(program: str, *, debug: bool) -> Generator[None]:
    # What a person must know is said by the commands themselves, once; log lines are for --debug.
    setup_logging(program, logging.DEBUG if debug else logging.CRITICAL)
    try:
        yield
    except StoppedEarlyError:
        raise typer.Exit(EXIT_INTERRUPTED) from None
    except OutputLostError as error:
        _tell_lost(program, error)
        raise typer.Exit(EXIT_UNEXPECTED) from None
    except EsperError as error:
        if debug:
            raise
        _print_error(program, str(error), error)
        raise typer.Exit(EXIT_BAD_INPUT) from None
    except (Exception, SystemExit) as error:  # the last line of defence against a raw traceback
        if debug or isinstance(error, typer.Exit):
            raise
        text = f"unexpected {type(error).__name__}: {error}. This is a mistake in the task, in the host "
        text += "or in Esper; --debug shows where"
        _print_error(program, text, error, otherwise="nothing was saved")
        raise typer.Exit(EXIT_UNEXPECTED) from None
    except KeyboardInterrupt as error:
        _print_error(program, "interrupted", error, otherwise=what_is_left(program))
        raise typer.Exit(EXIT_INTERRUPTED) from None


def _tell_lost(program: str, error: OSError) -> None:
    if error.errno != errno.EPIPE:  # `tamiyo explain RUN | head` is no mistake
        with suppress(OSError):
            _print_error(program, f"the output cannot be written: {error.strerror}", error)


def _print_error(
    program: str, text: str, error: BaseException, *, otherwise: str | None = None
) -> None:
    """Print one message, with what is left of the run where something is (see `folder`)."""
    left = getattr(error, "__notes__", None) or ([otherwise] if otherwise else [])
    print("; ".join([f"{program}: {text}", *left]), file=sys.stderr)
