"""Reads a user's blueprint from a JSON or YAML file; errors name file, line, node and what is allowed.

The seed layer's `load_blueprint` calls it, and adds the check that every operator is registered.
"""

import difflib
import json
import re
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, cast, override

import yaml
from pydantic import BaseModel, ValidationError

from esper.contracts.blueprints import BlueprintIR, OperatorNode
from esper.contracts.errors import BlueprintError

MAX_FILE_BYTES = 1 << 20
"""A blueprint has at most 64 nodes; a larger file is something else."""

SUFFIXES = (".json", ".yaml", ".yml")


def read_blueprint(path: Path | str) -> BlueprintIR:
    """Read the design in `path`: JSON (`.json`) or YAML (`.yaml`, `.yml`).

    Raises:
        BlueprintError: listing every problem as `file:line: node: what is wrong`. The line is left
            out where a JSON file is not also valid YAML (one indented with tabs, say).

    """
    path = Path(path)
    text = _read_text(path)
    data = _parse_json(path, text) if path.suffix == ".json" else _parse_yaml(path, text)
    if not isinstance(data, dict):
        raise BlueprintError(
            f"{path}:1: expected the keys {', '.join(BlueprintIR.model_fields)} at the top level"
        )
    data = cast("dict[Any, Any]", data)
    try:
        return BlueprintIR.model_validate(data)
    except ValidationError as error:
        raise BlueprintError("\n".join(_problems(path, text, data, error))) from None


def _read_text(path: Path) -> str:
    if path.suffix not in SUFFIXES:
        raise BlueprintError(f"blueprint file {path}: expected a name that ends in {SUFFIXES}")
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise BlueprintError(
                f"blueprint file {path} has more than {MAX_FILE_BYTES} bytes; give a blueprint"
            )
        return content.decode("utf-8-sig")
    except FileNotFoundError:
        raise BlueprintError(f"blueprint file {path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BlueprintError(f"blueprint file {path} cannot be read: {error}") from error


def _parse_json(path: Path, text: str) -> object:
    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            key = next(key for key in keys if keys.count(key) > 1)
            raise ValueError(f"the key {key!r} is given twice; keep one")
        return found

    try:
        return json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise BlueprintError(f"{path}:{error.lineno}: not valid JSON: {error.msg}") from error
    except (RecursionError, ValueError) as error:  # ValueError: a key twice, endless digits
        raise BlueprintError(f"{path}: not valid JSON: {error}") from error


class _UniqueKeyLoader(yaml.SafeLoader):
    """Makes plain values only, as `yaml.SafeLoader` does, and refuses a key that is given twice."""

    @override
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
            if not isinstance(key, str):
                continue  # reported as an unknown key, or by YAML itself
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key!r} is given twice; keep one",
                    problem_mark=key_node.start_mark,
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def _parse_yaml(path: Path, text: str) -> object:
    try:
        return yaml.load(text, Loader=_UniqueKeyLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = "" if mark is None else f":{mark.line + 1}"
        raise BlueprintError(f"{path}{line}: not valid YAML: {error.problem}") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        # ValueError: what looks like a date and is none.
        raise BlueprintError(f"{path}: not valid YAML: {error}") from error


def _compose(text: str) -> yaml.Node | None:
    """Return the file's tree with line numbers; JSON is YAML too, but for tabs."""
    try:
        return cast("yaml.Node | None", yaml.compose(text, Loader=yaml.SafeLoader))  # pyright: ignore[reportUnknownMemberType]
    except (yaml.YAMLError, RecursionError):
        return None


def _problems(path: Path, text: str, data: dict[Any, Any], error: ValidationError) -> Sequence[str]:
    root = _compose(text)
    items = error.errors(include_url=False)
    if len(items) > 1:
        # pydantic counts only the nodes that are right, so this says nothing beside other problems.
        items = [item for item in items if item["type"] != "too_short"]
    found: dict[str, None] = {}
    for item in items:
        loc, message = item["loc"], item["msg"].removeprefix("Value error, ")
        if named := _NAMED_NODE.match(message):
            loc = ("nodes", _index_of(data, named[1]))
        elif "params" in loc[:-1]:
            loc = loc[:4]  # what follows names the alternatives of `Parameter`
            message = "expected a number, a size such as '4*D', a flag or a name"
        found[f"{_place(path, root, loc)}: {_explain(data, loc, message)}"] = None
    return list(found)


_NAMED_NODE = re.compile(r"node '(\w+)'")


def _index_of(data: dict[Any, Any], name: str) -> int:
    nodes = cast("list[dict[str, object]]", data["nodes"])
    # The last one: of two nodes of one name, the second is wrong.
    return max(index for index, node in enumerate(nodes) if node["name"] == name)


def _place(path: Path, root: yaml.Node | None, loc: Sequence[int | str]) -> str:
    """Return `file:line` of the value at `loc`, or of its nearest parent that is in the file."""
    if root is None:
        return str(path)
    node = root
    for part in loc:
        found = None
        if isinstance(node, yaml.MappingNode):
            found = next((v for k, v in node.value if k.value == str(part)), None)
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            found = node.value[part] if part < len(node.value) else None
        if found is None:
            break
        node = found
    return f"{path}:{node.start_mark.line + 1}"


def _explain(data: dict[Any, Any], loc: Sequence[int | str], message: str) -> str:
    """Put one problem into words: in which node, at which key, and what would be right."""
    match loc:
        case ("nodes", int() as index, *rest):
            where, model = f"node {_name_of(data, index)}: ", OperatorNode
        case _:
            where, model, rest = "", BlueprintIR, list(loc)
    if not rest:
        # The validators of whole nodes name the node themselves.
        return message if message.startswith("node ") else f"{where}{message}"
    key = ".".join(str(part) for part in rest)
    if len(rest) == 1 and rest[0] not in model.model_fields:
        return f"{where}unknown key {key!r}; {_hint(model, str(rest[0]))}"
    return f"{where}{key}: {message}"


def _name_of(data: dict[Any, Any], index: int) -> str:
    try:
        return repr(data["nodes"][index]["name"])
    except (LookupError, TypeError):
        return f"number {index + 1}"


def _hint(model: type[BaseModel], key: str) -> str:
    valid = list(model.model_fields)
    near = difflib.get_close_matches(key, valid, n=1)
    return f"did you mean {near[0]!r}?" if near else f"valid keys: {', '.join(valid)}"
