"""Reads a YAML file into a validated model; errors name file, line, key and the nearest valid key."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from esper.contracts.errors import ConfigError

_IN_WORDS = {
    "tuple_type": "expected a list",
    "path_type": "expected a path, as text",
}
"""What pydantic says in Python's words, by its type of the error."""


def load_yaml[Model: BaseModel](path: Path, model: type[Model]) -> Model:
    """Read `path` as YAML and validate it as `model`; an empty file means all defaults.

    Raises:
        ConfigError: for a missing or unreadable file, a YAML syntax error, an unknown key (with the
            nearest valid one) or a bad value, each with its line.

    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"config file {path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {path} cannot be read: {error}") from error
    try:
        root = cast("yaml.Node | None", yaml.compose(text, Loader=yaml.SafeLoader))  # pyright: ignore[reportUnknownMemberType]
        data = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f":{error.problem_mark.line + 1}"
        raise ConfigError(f"config file {path}{line} is not valid YAML: {error.problem}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"config file {path} is not valid YAML: {error}") from error
    if twice := _repeated_key(root, set()):
        raise ConfigError(
            f"{path}:{twice.start_mark.line + 1}: the key {twice.value!r} is given twice; keep one"
        )
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise ConfigError(f"config file {path}: expected 'key: value' lines at the top level")
    try:
        return model.model_validate(data)
    except ValidationError as error:
        problems = [
            f"{path}:{_line_of(root, item['loc'])}: {_explain(model, item['loc'], message_of(item))}"
            for item in error.errors(include_url=False)
        ]
        raise ConfigError("\n".join(problems)) from None


def message_of(item: ErrorDetails) -> str:
    """Return what one of pydantic's errors says, without its name for errors that are ours."""
    return _IN_WORDS.get(item["type"]) or item["msg"].removeprefix("Value error, ")


def _repeated_key(node: yaml.Node | None, seen_nodes: set[int]) -> yaml.ScalarNode | None:
    """Return the first key that stands twice in one mapping; YAML itself would keep the last one."""
    if id(node) in seen_nodes:  # an alias, maybe of what it is itself in
        return None
    seen_nodes.add(id(node))
    children: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    return key
                seen.add(key.value)
            children.append(value)
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    return next((found for child in children if (found := _repeated_key(child, seen_nodes))), None)


def _explain(model: type[BaseModel], loc: Sequence[int | str], message: str) -> str:
    if not loc:
        return message
    key = ".".join(str(part) for part in loc)
    owner = _model_at(model, loc[:-1])
    if owner is None or loc[-1] in owner.model_fields:
        return f"{key}: {message}"
    valid = list(owner.model_fields)
    near = difflib.get_close_matches(str(loc[-1]), valid, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"valid keys: {', '.join(valid)}"
    return f"unknown key {key!r}; {hint}"


def _model_at(model: type[BaseModel], loc: Sequence[int | str]) -> type[BaseModel] | None:
    """Follow `loc` through nested models; None where it leaves them."""
    for part in loc:
        field = model.model_fields.get(str(part))
        annotation = field.annotation if field is not None else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            return None
        model = annotation
    return model


def _line_of(root: yaml.Node | None, loc: Sequence[int | str]) -> int:
    """Return the 1-based line of the key at `loc`, or of its nearest parent that is in the file."""
    line, node = 1, root
    for part in loc:
        if not isinstance(node, yaml.MappingNode):
            break
        found = next(((k, v) for k, v in node.value if k.value == str(part)), None)
        if found is None:
            break
        line, node = found[0].start_mark.line + 1, found[1]
    return line
