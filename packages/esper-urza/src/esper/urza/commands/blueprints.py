"""`urza blueprints`: list designs, look at one, file one, archive one."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from esper.contracts import (
    Blueprint,
    BlueprintIR,
    BlueprintQuery,
    BlueprintStatus,
    SiteKind,
    load_yaml,
)
from esper.urza.commands.finding import blueprint_named
from esper.urza.commands.session import (
    Json,
    Number,
    Yes,
    command,
    confirm,
    console,
    opened,
    print_json,
    print_table,
)

HELP = """
List designs; look at one, file one, archive one.

\b
  urza blueprints list --text bottleneck
  urza blueprints show 3f2a
  urza blueprints submit design.yaml
  urza blueprints archive 3f2a

\b
A design.yaml:
  name: shift
  kind: features
  nodes:
    - {name: out, op: linear, inputs: [input], params: {out: D, init: zeros}}
"""

app = typer.Typer(help=HELP, rich_markup_mode=None, no_args_is_help=True)

_Id = Annotated[str, typer.Argument(help="Its id, or the beginning of it.")]


@app.command("list")
@command
def list_blueprints(
    text: Annotated[str, typer.Option(help="Words of the name or the description.")] = "",
    status: Annotated[BlueprintStatus | None, typer.Option(help="Only those.")] = None,
    kind: Annotated[SiteKind | None, typer.Option(help="Only those for such sites.")] = None,
    number: Number = 50,
    after: Annotated[str | None, typer.Option(help="Go on behind this id.")] = None,
    as_json: Json = False,
) -> None:
    """List designs, in order of their ids."""
    asked = BlueprintQuery(text=text, status=status, kind=kind, limit=number, after=after)
    with opened() as library:
        page = library.find_blueprints(asked)
    if as_json:
        print_json(page.model_dump(mode="json"))
        return
    rows = [
        [each.blueprint_id[:12], each.ir.name, each.ir.kind.value, each.status.value]
        for each in page.items
    ]
    if rows:
        print_table(["BLUEPRINT", "NAME", "FOR", "STATUS"], rows)
    else:
        console().print("no blueprints")
    if page.next is not None:
        console().print(f"[dim]there are more: --after {page.next}[/]")


@app.command()
@command
def show(blueprint_id: _Id, as_json: Json = False) -> None:
    """Show one design whole."""
    with opened() as library:
        found = library.get_blueprint(blueprint_named(library, blueprint_id))
    if as_json:
        print_json(found.model_dump(mode="json"))
    else:
        print_blueprint(found)


@app.command()
@command
def submit(
    file: Annotated[Path, typer.Argument(help="Its name, kind and nodes, in YAML or JSON.")],
    as_json: Json = False,
) -> None:
    """File a design under the hash of its content; the same design twice is one."""
    ir = load_yaml(file, BlueprintIR)
    with opened() as library:
        blueprint = library.submit_blueprint(ir)
    if as_json:
        print_json(blueprint.model_dump(mode="json"))
    else:
        status = blueprint.status.value
        console().print(f"{blueprint.blueprint_id} {escape(ir.name)} is on file, {status}")


@app.command()
@command
def archive(blueprint_id: _Id, yes: Yes = False, as_json: Json = False) -> None:
    """Take no more kernels of a design. That cannot be undone."""
    with opened() as library:
        found = library.get_blueprint(blueprint_named(library, blueprint_id))
        confirm(f"Archive {found.ir.name} ({found.blueprint_id[:12]}) for good?", is_agreed=yes)
        archived = library.archive_blueprint(found.blueprint_id)
    if as_json:
        print_json(archived.model_dump(mode="json"))
    else:
        console().print(f"{archived.blueprint_id[:12]} {escape(archived.ir.name)} is ARCHIVED")


def print_blueprint(blueprint: Blueprint) -> None:
    """Print one design for people."""
    out = console()
    out.print(f"[bold]blueprint {blueprint.blueprint_id}[/]")
    rows = [
        ["name", blueprint.ir.name],
        ["description", blueprint.ir.description],
        ["for", blueprint.ir.kind.value],
        ["status", blueprint.status.value],
        ["submitted", f"{blueprint.created_at:%Y-%m-%d %H:%M:%S} UTC"],
    ]
    for name, value in rows:
        if value:
            out.print(f"[dim]{name}[/] {escape(value)}")
    for node in blueprint.ir.nodes:
        parameters = ", ".join(f"{name}={value}" for name, value in node.params.items())
        inputs = ", ".join(node.inputs)
        out.print(f"  {node.name} = {node.op}({escape(inputs)}) {escape(parameters)}".rstrip())
