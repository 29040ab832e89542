"""Which layers a user means: by name, glob, type or predicate, or the defaults.

The plan asks for names; whether a seed can live there is decided in `refusals` and `plan`.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import cast

from torch import nn

from esper.contracts import HostError
from esper.kasmina.adapters import linear_inputs

type Target = str | type[nn.Module] | Callable[[str, nn.Module], bool]
"""A qualified name, a glob over such names, a type of layer, or a predicate of name and layer."""

WHOLE: tuple[type[nn.Module], ...] = (nn.RNNBase, nn.MultiheadAttention)
"""By default one site each; their inner layers are none."""

TRANSFORMERS: tuple[type[nn.Module], ...] = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
"""By default one site each, beside those within them."""

_STACKS: tuple[type[nn.Module], ...] = (nn.TransformerEncoder, nn.TransformerDecoder)

PLAIN: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)

_ROWS: tuple[type[nn.Module], ...] = (nn.Sequential, nn.ModuleList)


def named_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return every module under every name that it has, in order of registration."""
    return dict(
        cast("Iterable[tuple[str, nn.Module]]", model.named_modules(remove_duplicate=False))
    )


def defaults(layers: Mapping[str, nn.Module]) -> dict[str, list[str]]:
    """Return the layers that carry seeds when nobody names any, under one empty target."""
    found: list[str] = []
    seen: set[int] = set()
    inside: tuple[str, ...] = ()
    for name, layer in layers.items():
        if id(layer) in seen or name.startswith(inside):
            continue
        if isinstance(layer, WHOLE):
            inside = (*inside, f"{name}." if name else "")
        elif not isinstance(layer, (*PLAIN, *TRANSFORMERS)) and linear_inputs(layer) is None:
            continue
        seen.add(id(layer))
        found.append(name)
    return {"": found}


def blocks(layers: Mapping[str, nn.Module]) -> list[str]:
    """Return the blocks of a host: the outermost modules in a row that have layers within them.

    Between them runs the stream of features; what is grown there reaches all later blocks. The one with the
    output head is left out.
    """
    (plain,) = defaults(layers).values()
    rows = {name for name, layer in layers.items() if isinstance(layer, _ROWS)}
    found: list[str] = []
    for name, layer in layers.items():
        is_within = name.startswith(tuple(f"{block}." for block in found))
        if is_within or name in rows or name in plain or name.rpartition(".")[0] not in rows:
            continue
        within = [each for each in plain if each.startswith(f"{name}.")]
        if within and plain[-1] not in within and not isinstance(layer, (*WHOLE, *_STACKS)):
            found.append(name)
    return found


def match(layers: Mapping[str, nn.Module], targets: Sequence[Target]) -> dict[str, list[str]]:
    """Return the names of the layers that each target selects, by the target in words.

    Raises:
        HostError: for a target that is none.

    """
    first_names: dict[int, str] = {}
    for name, layer in layers.items():
        first_names.setdefault(id(layer), name)
    own = {name: layer for name, layer in layers.items() if first_names[id(layer)] == name}
    named: dict[str, list[str]] = {}
    for target in targets:
        if isinstance(target, str):
            words, matches = target, _by_name(layers, own, target)
        elif isinstance(target, type):
            if not issubclass(target, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise _no_target(target)  # pyright: ignore[reportUnknownArgumentType]
            words = target.__name__
            matches = [name for name, layer in own.items() if isinstance(layer, target)]
        elif callable(target):
            words = getattr(target, "__name__", "a predicate")
            matches = [name for name, layer in own.items() if target(name, layer)]
        else:
            raise _no_target(target)
        named[words] = named.get(words, []) + matches
    return named


def _no_target(target: object) -> HostError:
    return HostError(f"target {target!r}; expected a name, a glob, a module type or a predicate")


def _by_name(
    layers: Mapping[str, nn.Module], own: Mapping[str, nn.Module], target: str
) -> list[str]:
    if target in layers:
        return [target]
    pattern = _pattern(target)
    return [name for name in own if pattern.fullmatch(name)]


@cache
def _pattern(glob: str) -> re.Pattern[str]:
    """Translate a glob: `*` and `?` stay within one part of a name, `**` crosses dots."""
    parts = {"**": ".*", "*": "[^.]*", "?": "[^.]"}
    pieces = re.split(r"(\*\*|\*|\?|\[[^\]]+\])", glob)
    pattern = "".join(
        parts.get(piece) or (piece if piece.startswith("[") and piece != "[" else re.escape(piece))
        for piece in pieces
    )
    try:
        return re.compile(pattern)
    except re.error as error:
        raise HostError(f"target {glob!r} is no glob ({error}); use *, **, ? and [abc]") from error
