"""The command `tamiyo`: everything about runs."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from esper.tamiyo import cli, completing
from esper.tamiyo.guarding import guarded, run_command_line

_HELP = """
Train models that grow while they learn, and look into what they did.

Examples:

\b
  tamiyo run --host cnn                 train, the same as the command `train`
  tamiyo resume runs/ID                 go on with a run that was stopped or killed
  tamiyo report runs/ID                 make report.html and its pictures again
  tamiyo explain runs/ID                why did it grow there, and why then?
  tamiyo compare runs/A runs/B          draw runs together
  tamiyo export runs/ID --to mymodel    take the grown model home, to run without Esper
  tamiyo tasks                          what can be learned: names for `train --task`
  tamiyo hosts                          which models can grow: names for `train --host`
  tamiyo policies                       who decides what grows: names for `train --policy`
"""

app = typer.Typer(
    help=_HELP,
    add_completion=True,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command("run", help=cli.HELP)(cli.train)

_WIDTH_OF_FILES = 240

_Run = Annotated[
    Path,
    typer.Argument(
        help="A run folder, for example runs/ID.",
        show_default=False,
        autocompletion=completing.runs,
    ),
]
_Debug = Annotated[
    bool, typer.Option("--debug", help="Show log lines, and tracebacks of errors. [default: no]")
]
_Quiet = Annotated[bool, typer.Option("--quiet", help="Print errors only. [default: no]")]


def _examples(*lines: str) -> str:
    """Return what stands below the options; the mark keeps the lines apart."""
    return "\b\n" + "\n".join(["Examples:", *(f"  {line}" for line in lines)])


@app.command(
    epilog=_examples(
        "tamiyo resume runs/ID            the folder that was named when the run began",
    )
)
def resume(run: _Run, quiet: _Quiet = False, debug: _Debug = False) -> None:
    """Go on with a run that was stopped or killed, to the weights that it would have come to."""
    with guarded("tamiyo resume", debug=debug, goes_on=True):
        from esper.tamiyo.run import resume as go_on
        from esper.tamiyo.ui import Ui

        with Ui(quiet=quiet) as ui:
            go_on(run, ui).stop_if_interrupted()


@app.command(
    epilog=_examples(
        "tamiyo report runs/ID",
    )
)
def report(run: _Run, debug: _Debug = False) -> None:
    """Make a run's report.html and its pictures again, from what is in its folder."""
    with guarded("tamiyo report", debug=debug):
        from esper.contracts import ConfigError
        from esper.tamiyo.report import write_report
        from esper.tamiyo.story import read_story

        story = read_story(run)
        if story.damage is not None:
            print(f"tamiyo report: the record is damaged: {story.damage}", file=sys.stderr)
        try:
            written = write_report(run, story)
        except OSError as error:
            raise ConfigError(f"the report cannot be written in {run}: {error.strerror}") from error
        for path in written:
            print(path)


@app.command(
    epilog=_examples(
        "tamiyo explain runs/ID",
        "tamiyo explain runs/ID --seed 1,0    only the first seed of layer 1, or why nothing grew there",
    )
)
def explain(
    run: _Run,
    seed: Annotated[
        str | None,
        typer.Option(
            help="Only this seed: L,S, for example 1,0. [default: all]",
            metavar="L,S",
            show_default=False,
        ),
    ] = None,
    debug: _Debug = False,
) -> None:
    """Say in words why a run grew what it grew, where and when."""
    with guarded("tamiyo explain", debug=debug):
        from esper.tamiyo.explaining import explain as explain_story
        from esper.tamiyo.explaining import parse_seed
        from esper.tamiyo.story import read_story

        seed_id = parse_seed(seed) if seed is not None else None
        print(explain_story(read_story(run), seed_id), end="")


@app.command(
    epilog=_examples(
        "tamiyo compare runs/A runs/B",
        "tamiyo compare runs/*digits* --to digits.html",
    )
)
def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(
            help="Run folders, two to ten.", show_default=False, autocompletion=completing.runs
        ),
    ],
    to: Annotated[Path, typer.Option(help="The page to write.")] = Path("comparison.html"),
    debug: _Debug = False,
) -> None:
    """Draw runs together on one page, and print their figures."""
    with guarded("tamiyo compare", debug=debug):
        from esper.contracts import ConfigError
        from esper.tamiyo.comparing import compared, read_runs, render_comparison

        stories = read_runs(runs)
        try:
            to.write_text(render_comparison(stories), encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{to} cannot be written: {error.strerror}") from error
        _table(
            ("run", "what differs", "accuracy", "loss", "parameters", "kept", "removed"),
            [
                (
                    row.run,
                    row.setting,
                    "-" if row.accuracy is None else f"{row.accuracy:.1%}",
                    "-" if row.loss is None else f"{row.loss:.4f}",
                    f"{row.parameters:,}",
                    str(row.kept),
                    str(row.removed),
                )
                for row in compared(stories)
            ],
        )
        print(f"page {to}")


@app.command(
    epilog=_examples(
        "tamiyo export runs/ID --to mymodel          mymodel/README.md says how to use it",
        "tamiyo export runs/ID --to mymodel --onnx   with the extra onnx of esper-kasmina",
    )
)
def export(
    run: _Run,
    to: Annotated[Path, typer.Option(help="A new folder for the model.", show_default=False)],
    onnx: Annotated[bool, typer.Option("--onnx", help="Also as ONNX. [default: no]")] = False,
    averaged: Annotated[
        bool,
        typer.Option(
            "--averaged", help="With the averaged weights of a run with --ema. [default: no]"
        ),
    ] = False,
    debug: _Debug = False,
) -> None:
    """Take the grown model home: weights, a torch.export program, its lineage and a model card."""
    with guarded("tamiyo export", debug=debug):
        from esper.tamiyo.card import DAMAGED, NOT_FINITE
        from esper.tamiyo.exporting import CARD, export_run

        written = export_run(run, to, onnx=onnx, averaged=averaged)
        for line in (to / CARD).read_text(encoding="utf-8").splitlines():
            if line.startswith((DAMAGED, NOT_FINITE)):
                print(f"tamiyo export: {line}", file=sys.stderr)
        for path in written:
            print(path)


@app.command(
    epilog=_examples(
        "tamiyo tasks",
        "train --task mnist --data FOLDER --host cnn",
    )
)
def tasks(debug: _Debug = False) -> None:
    """List the built-in tasks and the hosts that fit them."""
    with guarded("tamiyo tasks", debug=debug):
        from esper.tamiyo.tasks import TASKS

        _table(
            ("task", "what it is", "hosts"),
            [(name, entry.about, ", ".join(entry.hosts)) for name, entry in TASKS.items()],
        )
        print("or module:function of your own, which returns an esper.tamiyo.Task")


@app.command(
    epilog=_examples(
        "tamiyo hosts",
        "train --host cnn --width 8",
    )
)
def hosts(debug: _Debug = False) -> None:
    """List the built-in hosts."""
    with guarded("tamiyo hosts", debug=debug):
        from esper.tamiyo.hosts import HOSTS

        _table(
            ("host", "what it is", "width"),
            [(name, entry.about, str(entry.width)) for name, entry in HOSTS.items()],
        )
        print("or torchvision:NAME, timm:NAME where installed, or module:function of your own")


@app.command(
    epilog=_examples(
        "tamiyo policies",
        "train --policy random",
    )
)
def policies(debug: _Debug = False) -> None:
    """List the built-in policies: who decides where, when and what to grow."""
    with guarded("tamiyo policies", debug=debug):
        from esper.tamiyo.run import POLICIES

        rows = [
            (name, str(policy.__doc__).strip().splitlines()[0]) for name, policy in POLICIES.items()
        ]
        _table(("policy", "what it does"), rows)
        print("or scripted:RUN_FOLDER to replay what a run grew, or module:function of your own")


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table: Any = Table(box=None, pad_edge=False)
    for name in head:
        table.add_column(name, no_wrap=name in ("task", "host", "policy", "run"))
    for row in rows:
        table.add_row(*row)
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(
            highlight=False, width=_WIDTH_OF_FILES
        )  # nothing is cut that a program reads
    console.print(table)


def main() -> None:
    """Run the command line."""
    run_command_line(app, "tamiyo")
