"""The command `tamiyo`: everything about runs."""

from pathlib import Path
from typing import Annotated, Any

import typer

from esper.tamiyo import cli
from esper.tamiyo.guarding import guarded

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
"""

app = typer.Typer(
    help=_HELP,
    add_completion=True,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command("run")(cli.train)

_Run = Annotated[
    Path, typer.Argument(help="A run folder, for example runs/ID.", show_default=False)
]
_Debug = Annotated[bool, typer.Option("--debug", help="Show log lines, and tracebacks of errors.")]
_Quiet = Annotated[bool, typer.Option("--quiet", help="Print errors only.")]


@app.command()
def resume(run: _Run, quiet: _Quiet = False, debug: _Debug = False) -> None:
    """Go on with a run that was stopped or killed, to the weights that it would have come to."""
    with guarded("tamiyo resume", debug=debug):
        from esper.tamiyo.run import resume as go_on
        from esper.tamiyo.ui import Ui

        with Ui(quiet=quiet) as ui:
            go_on(run, ui).stop_if_interrupted()


@app.command()
def export(
    run: _Run,
    to: Annotated[Path, typer.Option(help="A new folder for the model.", show_default=False)],
    onnx: Annotated[bool, typer.Option("--onnx", help="Also as ONNX.")] = False,
    debug: _Debug = False,
) -> None:
    """Take the grown model home: weights, a torch.export program, its lineage and a model card."""
    with guarded("tamiyo export", debug=debug):
        from esper.tamiyo.exporting import export_run

        written = export_run(run, to, onnx=onnx)
        for path in written:
            print(path)


@app.command()
def tasks(debug: _Debug = False) -> None:
    """List the built-in tasks and the hosts that fit them."""
    with guarded("tamiyo tasks", debug=debug):
        from esper.tamiyo.tasks import TASKS

        _table(
            ("task", "what it is", "hosts"),
            [(name, entry.about, ", ".join(entry.hosts)) for name, entry in TASKS.items()],
        )
        print("or module:function of your own, which returns an esper.tamiyo.Task")


@app.command()
def hosts(debug: _Debug = False) -> None:
    """List the built-in hosts."""
    with guarded("tamiyo hosts", debug=debug):
        from esper.tamiyo.hosts import HOSTS

        _table(
            ("host", "what it is", "width"),
            [(name, entry.about, str(entry.width)) for name, entry in HOSTS.items()],
        )
        print("or torchvision:NAME, timm:NAME where installed, or module:function of your own")


@app.command()
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
        table.add_column(name, no_wrap=name in ("task", "host", "policy"))
    for row in rows:
        table.add_row(*row)
    Console(highlight=False).print(table)


def main() -> None:
    """Run the command line."""
    app()
