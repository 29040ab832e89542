"""Makes `docs/reference` from the code: what each command, setting, name and built-in part is.

    uv run python infra/reference.py [--check]

`--check` writes nothing and fails where a page is not what the code says; a test does the same.
"""

import argparse
import ast
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import typer
from pydantic import BaseModel, SecretStr

import esper.contracts
import esper.kasmina
import esper.tamiyo
from esper.contracts import LIFECYCLE, OPERATORS, Settings
from esper.contracts.messages import PAYLOADS
from esper.kasmina import builtin_blueprints
from esper.oona.cli import app as oona_app
from esper.tamiyo.cli import app as train_app
from esper.tamiyo.commands import app as tamiyo_app
from esper.tamiyo.config import RunConfig
from esper.tamiyo.hosts import HOSTS
from esper.tamiyo.run import POLICIES
from esper.tamiyo.tasks import TASKS
from esper.urza.cli import app as urza_app

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "reference"
MADE = "*Made from the code by `uv run python infra/reference.py`; do not edit by hand.*\n"
WIDTH = 100


def pages() -> dict[str, str]:
    """Return every page's text by file name."""
    return {
        "README.md": index(),
        "commands.md": commands(),
        "configuration.md": configuration(),
        "built-in.md": built_in(),
        "python.md": python(),
    }


def index() -> str:
    """Return the page that leads to the others."""
    lines = [
        "- [Commands](commands.md): every command and option",
        "- [Configuration](configuration.md): what a run can be told, and where the servers are",
        "- [Built-in parts](built-in.md): tasks, hosts, policies, blueprints, operators, states, topics",
        "- [Python](python.md): the public names of the packages",
    ]
    return _page("Reference", "\n".join(lines))


def commands() -> str:
    """Return the help of every command."""
    apps = {"train": train_app, "tamiyo": tamiyo_app, "urza": urza_app, "oona": oona_app}
    parts: list[str] = []
    for name, app in apps.items():
        for path, command in _commands(name, typer.main.get_command(app)):
            if path == "tamiyo run":
                parts.append("## `tamiyo run`\n\nThe same as `train`.")
                continue
            context = click.Context(
                command, info_name=path, terminal_width=WIDTH, max_content_width=WIDTH
            )
            text = "\n".join(line.rstrip() for line in command.get_help(context).splitlines())
            parts.append(f"{'#' * (2 + path.count(' '))} `{path}`\n\n```text\n{text}\n```")
    return _page("Commands", "\n\n".join(parts))


def _commands(path: str, command: Any) -> Iterator[tuple[str, Any]]:
    yield path, command
    for name, inner in sorted(getattr(command, "commands", {}).items()):
        yield from _commands(f"{path} {name}", inner)


def configuration() -> str:
    """Return what a run and the settings can be told."""
    runs = _fields(RunConfig, variable=lambda name: f"`ESPER_TRAIN_{name.upper()}`")
    settings = _fields(Settings, variable=lambda name: f"`{name.upper()}`")
    return _page(
        "Configuration",
        "## A run\n\nIn a YAML file for `train --config`, as an option (`batch_size` is `--batch-size`, "
        "`blueprints` is `--blueprint`), or in the environment (commas between several of "
        "`blueprints` or `track`). The command line wins over the environment, that over the file."
        f"\n\n{runs}\n\n"
        "## Where the servers are\n\nEnvironment variables, or a file `.env` in the working directory; "
        f"a run with embedded defaults needs none.\n\n{settings}",
    )


def _fields(model: type[BaseModel], *, variable: Callable[[str], str]) -> str:
    told = _told(model)
    rows = [
        (
            f"`{name}`",
            _default(field.default),
            variable(name),
            told.get(name, ""),
        )
        for name, field in model.model_fields.items()
    ]
    return _table(("key", "default", "variable", "what it is"), rows)


def _told(model: type) -> dict[str, str]:
    """Return the text below each field of a class."""
    (tree,) = ast.parse(inspect.getsource(model)).body
    assert isinstance(tree, ast.ClassDef)
    told: dict[str, str] = {}
    for before, node in zip(tree.body, tree.body[1:], strict=False):
        if not (isinstance(before, ast.AnnAssign) and isinstance(before.target, ast.Name)):
            continue
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            told[before.target.id] = " ".join(str(node.value.value).split())
    return told


def _default(value: object) -> str:
    value = value.get_secret_value() if isinstance(value, SecretStr) else value
    if value is None or value == ():
        return "none"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def built_in() -> str:
    """Return the lists of what Esper brings along."""
    tasks = [(f"`{n}`", entry.about, ", ".join(entry.hosts)) for n, entry in TASKS.items()]
    hosts = [(f"`{n}`", entry.about, str(entry.width)) for n, entry in HOSTS.items()]
    policies = [(f"`{n}`", _first_line(policy)) for n, policy in POLICIES.items()]
    blueprints = [(f"`{ir.name}`", ir.kind.value, ir.description) for ir in builtin_blueprints()]
    operators = [
        (
            f"`{name}`",
            str(spec.arity),
            ", ".join(sorted(kind.value for kind in spec.kinds)),
            "; ".join(
                [f"`{size}`: a size" for size in sorted(spec.sizes)]
                + [f"`{o}`: {', '.join(map(str, legal))}" for o, legal in spec.options.items()]
            ),
        )
        for name, spec in OPERATORS.items()
    ]
    states = [
        (
            state.value,
            rule.happens,
            rule.host_sees,
            ", ".join(s for s in type(state) if s in rule.next),
        )
        for state, rule in LIFECYCLE.items()
    ]
    topics = [
        (f"`{topic.value}`", model.__name__, _first_line(model))
        for topic, model in PAYLOADS.items()
    ]
    sections = {
        "Tasks": _table(("task", "what it is", "hosts that fit"), tasks),
        "Hosts": _table(("host", "what it is", "width"), hosts),
        "Policies": _table(("policy", "what it does"), policies),
        "Blueprints": _table(("blueprint", "for", "what it is"), blueprints),
        "Operators of blueprints": _table(("operator", "inputs", "on", "parameters"), operators),
        "States of a seed": _table(("state", "what happens", "the host sees", "next"), states),
        "Topics of the bus": _table(("topic", "payload", "what it says"), topics),
    }
    return _page("Built-in parts", "\n\n".join(f"## {k}\n\n{v}" for k, v in sections.items()))


def python() -> str:
    """Return every public name of the packages that people program with."""
    modules = (esper.tamiyo, esper.kasmina, esper.contracts)
    return _page("Python", "\n\n".join(_module(module) for module in modules))


def _module(module: ModuleType) -> str:
    rows = [_name(name, getattr(module, name)) for name in sorted(module.__all__)]
    first = (module.__doc__ or "").strip().splitlines()[0]
    table = _table(("name", "kind", "what it is", "has"), rows)
    return f"## `{module.__name__}`\n\n{first}\n\n{table}"


def _name(name: str, value: Any) -> tuple[str, str, str, str]:
    if isinstance(value, type):
        return f"`{name}`", _kind(value), _first_line(value), ", ".join(_members(value))
    if inspect.isfunction(value) or inspect.isbuiltin(value):
        parameters = inspect.signature(value).parameters.values()
        return f"`{name}({_signature(parameters)})`", "function", _first_line(value), ""
    return f"`{name}`", "type" if hasattr(value, "__value__") else "constant", "", ""


def _kind(value: Any) -> str:
    if issubclass(value, BaseException):
        return "error"
    return "enum" if issubclass(value, Enum) else "class"


def _members(value: type[Any]) -> list[str]:
    """Return the public names that a class itself brings: members, fields, methods."""
    if _kind(value) == "error":
        return []
    if _kind(value) == "enum":
        return [f"`{name}`" for name in value.__members__]
    fields: list[str] = list(getattr(value, "__annotations__", {}))
    contents: dict[str, object] = dict(vars(value))
    inherited = set(dir(BaseModel)) if issubclass(value, BaseModel) else set[str]()
    others = [
        f"{name}()" if callable(member) or isinstance(member, classmethod) else name
        for name, member in contents.items()
        if name not in inherited and name not in fields
    ]
    return [f"`{name}`" for name in [*fields, *others] if name[0] != "_" and name != "model_config"]


def _signature(parameters: Iterable[inspect.Parameter]) -> str:
    """Return the names of parameters, those with a default as `name=`."""
    shown: list[str] = []
    starred = False
    for parameter in parameters:
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            shown.append("*")
            starred = True
        star = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        starred = starred or star == "*"
        has_default = parameter.default is not parameter.empty
        shown.append(f"{star}{parameter.name}{'=' if has_default else ''}")
    return ", ".join(shown)


def _first_line(thing: object) -> str:
    text = inspect.getdoc(thing) or ""
    return " ".join(text.split("\n\n")[0].split())


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def _page(title: str, text: str) -> str:
    return f"# {title}\n\n{MADE}\n{text}\n"


def stale(wanted: Mapping[str, str]) -> list[str]:
    """Return the pages in `docs/reference` that are not as wanted."""
    there = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.md")}
    names = sorted(there.keys() | wanted.keys())
    return [name for name in names if there.get(name) != wanted.get(name)]


def main() -> None:
    """Write the pages, or check them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--check", action="store_true", help="write nothing, fail if stale")
    is_check = parser.parse_args().check
    wanted = pages()
    old = stale(wanted)
    if is_check and old:
        sys.exit(
            f"docs/reference is not what the code says: {', '.join(old)}; run infra/reference.py"
        )
    if not is_check:
        FOLDER.mkdir(parents=True, exist_ok=True)
        for path in FOLDER.glob("*.md"):
            path.unlink()
        for name, text in wanted.items():
            (FOLDER / name).write_text(text, encoding="utf-8")
        print(f"docs/reference: {', '.join(old) or 'nothing'} changed")


if __name__ == "__main__":
    main()
