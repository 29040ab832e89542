"""The command line: `train`.

Turns options into a `RunConfig`, runs it, and turns every `EsperError` into one clear message and exit
code 2.
"""

import logging
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from esper.contracts import EsperError, load_yaml, setup_logging
from esper.tamiyo.config import RunConfig, override
from esper.tamiyo.entry import EXIT_INTERRUPTED, INTERRUPTED

EXIT_UNEXPECTED = 1
EXIT_BAD_INPUT = 2

_DEFAULT = RunConfig()

_HELP = """
Train a small model that grows while it learns, next to a twin that never grows.

With no options: scikit-learn's digits, a deliberately small MLP, everything embedded. Leaves a folder
under runs/ with the grown model, its lineage, the hash-chained record, and report.html.

Examples:

\b
  train                                        the default run
  train --host cnn --seed 3                    another host, another life
  train --task mytask:load --host mynet:build  functions in files beside you
  train --policy never --no-twin               plain training
  train --config runs/ID/config.yaml           a run again, byte for byte

On real servers (README, "Real servers"; passwords come from .env):

\b
  train --bus redis://localhost:6379/0 \\
    --library postgresql+psycopg://esper_admin@localhost/urza_db \\
    --artifacts s3://esper-artifacts
"""

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


def _option(text: str, field: str | None, *names: str) -> Any:
    """Describe an option; its default is shown from the configuration, which owns it."""
    if field is not None:
        default = getattr(_DEFAULT, field)
        text += f" [default: {'in the run folder' if default is None else default}]"
    return typer.Option(*names, help=text, show_default=False)


@app.command(help=_HELP)
def train(
    task: Annotated[
        str | None, _option("digits, mnist1d, or module:function returning a Task.", "task")
    ] = None,
    host: Annotated[
        str | None, _option("mlp, cnn, or module:function taking the Task.", "host")
    ] = None,
    epochs: Annotated[int | None, _option("Passes over the training data.", "epochs")] = None,
    seed: Annotated[int | None, _option("Same seed, same decisions, same weights.", "seed")] = None,
    threads: Annotated[int | None, _option("Threads that torch computes with.", "threads")] = None,
    policy: Annotated[
        str | None,
        _option(
            "gap, heuristic, random, never (plain training), scripted:RUN_FOLDER, or module:function.",
            "policy",
        ),
    ] = None,
    widen: Annotated[
        bool | None, _option("Layers can also become wider.", "widen", "--widen/--no-widen")
    ] = None,
    bus: Annotated[str | None, _option("memory:// or redis://HOST:PORT/DB.", "bus")] = None,
    library: Annotated[
        str | None,
        _option("sqlite:///FILE or postgresql+psycopg://USER:PASSWORD@HOST/DB.", "library"),
    ] = None,
    artifacts: Annotated[
        str | None,
        _option(
            "file:FOLDER or s3://BUCKET?endpoint=URL (keys from MINIO_ROOT_USER and "
            "MINIO_ROOT_PASSWORD).",
            "artifacts",
        ),
    ] = None,
    out: Annotated[Path | None, _option("Where run folders are made.", "out")] = None,
    config: Annotated[
        Path | None, _option("A YAML file; options given here win over it.", None, "--config")
    ] = None,
    twin: Annotated[
        bool | None,
        _option("Also train the same host without growth, to compare.", None, "--twin/--no-twin"),
    ] = None,
    quiet: Annotated[bool, _option("Print errors only.", None, "--quiet")] = False,
    debug: Annotated[
        bool, _option("Show log lines, and tracebacks of errors.", None, "--debug")
    ] = False,
) -> None:
    """Run one training."""
    # What a person must know is said by the run itself, once; log lines are for --debug.
    setup_logging("train", logging.DEBUG if debug else logging.CRITICAL)
    changes = {
        "task": task,
        "host": host,
        "epochs": epochs,
        "seed": seed,
        "threads": threads,
        "policy": policy,
        "widen": widen,
        "bus": bus,
        "library": library,
        "artifacts": artifacts,
        "out": out,
        "twin": twin,
    }
    try:
        interrupted = _train(config, changes, quiet=quiet)
    except EsperError as error:
        if debug:
            raise
        _print_error(str(error), error)
        raise typer.Exit(EXIT_BAD_INPUT) from None
    except (Exception, SystemExit) as error:  # the last line of defence against a raw traceback
        if debug:
            raise
        text = f"unexpected {type(error).__name__}: {error}. This is a mistake in the task, in the host "
        _print_error(
            text + "or in Esper; --debug shows where", error, otherwise="nothing was saved"
        )
        raise typer.Exit(EXIT_UNEXPECTED) from None
    except KeyboardInterrupt:
        print(INTERRUPTED, file=sys.stderr)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    if interrupted:
        raise typer.Exit(EXIT_INTERRUPTED)


def _print_error(text: str, error: BaseException, *, otherwise: str | None = None) -> None:
    """Print one message, with what is left of the run where something is (see `folder`)."""
    left = getattr(error, "__notes__", None) or ([otherwise] if otherwise else [])
    print("; ".join([f"train: {text}", *left]), file=sys.stderr)


def _train(config_file: Path | None, changes: dict[str, Any], *, quiet: bool) -> bool:
    """Run, and tell whether that was interrupted."""
    config = load_yaml(config_file, RunConfig) if config_file is not None else _DEFAULT
    config = override(config, changes)
    # torch takes seconds to import; a mistake in the options is reported without it.
    from esper.tamiyo.run import run
    from esper.tamiyo.ui import Ui

    with Ui(quiet=quiet) as ui:
        return run(config, ui).interrupted


def main() -> None:
    """Run the command line."""
    app()
