"""`urza lineage`: where a grown model, a kernel or a design comes from, as a tree, JSON or picture."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.tree import Tree

from esper.contracts import ConfigError, Library, NotFoundError, SeedState
from esper.urza import lineage as lineages
from esper.urza.commands.finding import record_named
from esper.urza.commands.session import Json, command, console, opened, print_json, print_whole
from esper.urza.library import SqlLibrary
from esper.urza.lineage import Lineage, Node
from esper.urza.lineage_picture import draw

HELP = """
Show where a grown model comes from: what its run tried and kept, which kernels that were, of which
designs, and who judged them.

\b
  urza --run runs/demo lineage demo
  urza lineage demo --svg lineage.svg --png lineage.png
  urza lineage 3f2a --json       a kernel's or a blueprint's, by the beginning of its id
"""

_COLOURS = {"run": "bold", "kernel": "yellow", "blueprint": "magenta", "missing": "red"}


@command
def lineage(
    record: Annotated[str, typer.Argument(help="A run, kernel or blueprint.")],
    svg: Annotated[Path | None, typer.Option(help="Draw it into this file.")] = None,
    png: Annotated[Path | None, typer.Option(help="Draw it into this file.")] = None,
    as_json: Json = False,
) -> None:
    """Show a lineage."""
    for path, ending in ((svg, ".svg"), (png, ".png")):
        if path is not None and path.suffix.lower() != ending:
            raise ConfigError(f"--{ending[1:]} {path}; expected a name that ends in {ending}")
    with opened() as library:
        found = _find(library, record)
    for path in (svg, png):
        if path is not None:
            try:
                draw(found, path)
            except OSError as error:
                raise ConfigError(f"{path} cannot be written: {error}") from error
    if as_json:
        print_json(found.model_dump(mode="json"))
        return
    print_whole(_tree(found))
    for path in (svg, png):
        if path is not None:
            console(is_for_progress=True).print(f"drawn into {escape(str(path))}")


def _find(library: Library, record: str) -> Lineage:
    if not isinstance(library, SqlLibrary):
        for find in (lineages.of_run, lineages.of_kernel, lineages.of_blueprint):
            try:
                return find(library, record)
            except NotFoundError:
                continue
        raise NotFoundError(
            f"{record!r} is no run, kernel or blueprint of the library; give whole ids"
        )
    kind, record_id = record_named(library, record, "run", "kernel", "blueprint")
    if kind == "run":
        return lineages.of_run(library, record_id)
    if kind == "kernel":
        return lineages.of_kernel(library, record_id)
    return lineages.of_blueprint(library, record_id)


def _tree(found: Lineage) -> Tree:
    root = next(node for node in found.nodes if node.node_id == found.root)
    tree = Tree(_described(root))
    _grow(found, root, tree, set())
    return tree


def _grow(found: Lineage, node: Node, tree: Tree, shown: set[str]) -> None:
    for relation, child in found.children(node.node_id):
        again = child.node_id in shown and bool(found.children(child.node_id))
        more = " [dim](as above)[/]" if again else ""
        branch = tree.add(f"[dim]{relation}[/] {_described(child)}{more}")
        if not again:
            shown.add(child.node_id)
            _grow(found, child, branch, shown)


def _described(node: Node) -> str:
    colour = _COLOURS.get(node.kind, "default")
    if node.kind == "outcome":
        colour = "green" if node.facts["outcome"] == SeedState.FOSSILIZED.value else "red"
    text = f"[{colour}]{escape(node.label)}[/]"
    facts = node.facts
    if node.kind == "outcome":
        text += f" {facts['outcome']}, epochs {facts['epochs']}: {escape(str(facts['reason']))}"
    elif node.kind == "run":
        text += f": {facts['kept']} of {facts['outcomes']} kept, "
        text += f"{facts['parameters_added']:,} parameters added"
    if node.kind == "kernel":
        text += f" for {facts['built_for']}"
    if node.kind in ("kernel", "blueprint", "key", "report"):
        text += f" [dim]{node.kind} {escape(node.node_id.partition(' ')[2][:12])}[/]"
    return text
