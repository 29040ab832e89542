"""The command `train`, which is also `tamiyo run`: options become a `RunConfig`, which is run."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from esper.contracts import ConfigError, load_yaml
from esper.tamiyo import completing
from esper.tamiyo.config import RunConfig, override
from esper.tamiyo.guarding import guarded, run_command_line
from esper.tamiyo.variables import blamed, from_environment

_DEFAULT = RunConfig()

HELP = """
Train a small model that grows while it learns, next to a twin that never grows.

With no options: scikit-learn's digits, a deliberately small MLP, everything embedded. Leaves a folder
under runs/ with the grown model, its lineage, the hash-chained record, and report.html.

Examples:

\b
  train                                        the default run
  train --host cnn --seed 3                    another host, another life
  train --task text --host transformer         predict characters of Python's own source
  train --task table --data wine.csv --target quality
  train --task cifar10 --data cifar-10-batches-bin --host resnet --device cuda --precision bfloat16
  train --task mytask:load --host mynet:build  functions in files beside you
  train --blueprint gate.yaml                  a design of your own to grow with, too
  train --policy never --no-twin               plain training
  train --config runs/ID/config.yaml           a run again, byte for byte

Options may also come from the environment, as ESPER_TRAIN_EPOCHS and so on; in ESPER_TRAIN_TRACK and
ESPER_TRAIN_BLUEPRINTS, commas are between several. `tamiyo --help` shows what else can be done with runs:
resume, report, explain, compare, export.

On real servers (README, "Real servers"; passwords come from .env):

\b
  train --bus redis://localhost:6379/0 \\
    --library postgresql+psycopg://esper_admin@localhost/urza_db \\
    --artifacts s3://esper-artifacts
"""

app = typer.Typer(add_completion=True, rich_markup_mode=None, pretty_exceptions_enable=False)


def _option(
    text: str,
    field: str | None,
    *names: str,
    complete: Callable[[str], list[str]] | None = None,
) -> Any:
    """Describe an option; its default is shown from the configuration, which owns it."""
    if field is None:
        return typer.Option(*names, help=text, show_default=False, autocompletion=complete)
    default = getattr(_DEFAULT, field)
    if default is None:
        shown = "in the run folder" if field in ("library", "artifacts") else "none"
    else:
        shown = str(default).lower() if isinstance(default, bool) else str(default)
    return typer.Option(
        *names,
        help=f"{text} [default: {shown}]",
        show_default=False,
        autocompletion=complete,
    )


@app.command(help=HELP)
def train(
    task: Annotated[
        str | None,
        _option(
            "A built-in task (`tamiyo tasks`) or module:function.",
            "task",
            complete=completing.tasks,
        ),
    ] = None,
    data: Annotated[
        Path | None, _option("Your data's file or folder, for tasks that need some.", "data")
    ] = None,
    target: Annotated[
        str | None, _option("The column to be learned, for --task table.", "target")
    ] = None,
    host: Annotated[
        str | None,
        _option(
            "A built-in host (`tamiyo hosts`), torchvision:NAME, timm:NAME, or module:function.",
            "host",
            complete=completing.hosts,
        ),
    ] = None,
    width: Annotated[
        int | None,
        _option("Units or channels of a built-in host; deliberately few if none.", "width"),
    ] = None,
    epochs: Annotated[
        int | None,
        _option("Passes over the training data, or parts of them (--epoch-samples).", "epochs"),
    ] = None,
    epoch_samples: Annotated[
        int | None,
        _option(
            "Samples of one epoch, for large data: decisions come sooner; all of the data if none.",
            "epoch_samples",
            "--epoch-samples",
        ),
    ] = None,
    batch_size: Annotated[
        int | None, _option("Samples of one mini-batch.", "batch_size", "--batch-size")
    ] = None,
    accumulate: Annotated[
        int | None, _option("Mini-batches to one step of the optimizer.", "accumulate")
    ] = None,
    learning_rate: Annotated[
        float | None, _option("AdamW's, at first.", "learning_rate", "--learning-rate", "--lr")
    ] = None,
    schedule: Annotated[
        str | None,
        _option(
            "Of the learning rate: constant, or cosine to zero.",
            "schedule",
            complete=completing.schedules,
        ),
    ] = None,
    ema: Annotated[
        float | None,
        _option("Also keep a moving average of the weights: its decay, for example 0.99.", "ema"),
    ] = None,
    seed: Annotated[int | None, _option("Same seed, same decisions, same weights.", "seed")] = None,
    threads: Annotated[int | None, _option("Threads that torch computes with.", "threads")] = None,
    workers: Annotated[
        int | None,
        _option(
            "Processes that read samples ahead, of data that is not held in memory.", "workers"
        ),
    ] = None,
    device: Annotated[
        str | None,
        _option(
            "auto (CUDA where there is some), cpu, cuda or cuda:N.",
            "device",
            complete=completing.devices,
        ),
    ] = None,
    precision: Annotated[
        str | None,
        _option(
            "float32, or bfloat16 or float16 for mixed precision; also fp32, bf16 and fp16.",
            "precision",
            complete=completing.precisions,
        ),
    ] = None,
    compile: Annotated[
        bool | None, _option("Compile the training step.", "compile", "--compile/--no-compile")
    ] = None,
    policy: Annotated[
        str | None,
        _option(
            "A built-in policy (`tamiyo policies`), scripted:RUN_FOLDER, or module:function.",
            "policy",
            complete=completing.policies,
        ),
    ] = None,
    widen: Annotated[
        bool | None, _option("Layers can also become wider.", "widen", "--widen/--no-widen")
    ] = None,
    blueprint: Annotated[
        list[Path] | None,
        _option(
            "A JSON or YAML file with a design of your own to grow with, too; can be repeated.",
            None,
            "--blueprint",
        ),
    ] = None,
    checkpoint_seconds: Annotated[
        float | None,
        _option(
            "How often a checkpoint is written; 0: every epoch.",
            "checkpoint_seconds",
            "--checkpoint-seconds",
        ),
    ] = None,
    keep_checkpoints: Annotated[
        int | None, _option("How many are kept.", "keep_checkpoints", "--keep-checkpoints")
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
    track: Annotated[
        list[str] | None,
        _option(
            "Also follow the run with tensorboard[:FOLDER] or mlflow[:URI]; can be repeated.",
            None,
            "--track",
            complete=completing.trackers,
        ),
    ] = None,
    twin: Annotated[
        bool | None,
        _option("Also train the same host without growth, to compare.", "twin", "--twin/--no-twin"),
    ] = None,
    config: Annotated[
        Path | None, _option("A YAML file; options given here win over it.", None, "--config")
    ] = None,
    quiet: Annotated[bool, _option("Print errors only.", None, "--quiet")] = False,
    debug: Annotated[
        bool, _option("Show log lines, and tracebacks of errors.", None, "--debug")
    ] = False,
) -> None:
    """Run one training."""
    options = {name: value for name, value in locals().items() if name in RunConfig.model_fields}
    options |= {"track": track or None, "blueprints": blueprint or None}
    given = {name: value for name, value in options.items() if value is not None}
    with guarded("train", debug=debug, goes_on=True):
        chosen = load_yaml(config, RunConfig) if config is not None else _DEFAULT
        variables = from_environment(os.environ)
        try:
            chosen = override(chosen, variables | given)
        except ConfigError as error:
            blame = blamed(str(error), variables.keys() - given.keys())
            raise ConfigError(f"{error}{blame}") from None
        # torch takes seconds to import; a mistake in the options is reported without it.
        from esper.tamiyo.run import run
        from esper.tamiyo.ui import Ui

        with Ui(quiet=quiet) as ui:
            run(chosen, ui).stop_if_interrupted()


def main() -> None:
    """Run the command line."""
    run_command_line(app, "train")
