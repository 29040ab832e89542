"""Finds which layer a layer is fed by, and whether by it alone: there a host can become wider.

Between two linear layers (or two convolutions) that follow each other, with nothing but activations, norms
and pooling in between, new units of the first one are new inputs of the second one. Beside a convolution
whose output is flattened for a linear layer, new units see all positions at once. The plan asks for all
such pairs; an example is run through a copy of the host, with each layer's output cut off from its past, so
that what reaches the next layer tells which ones feed it.
"""

import copy
import warnings
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from esper.contracts import HostError
from esper.contracts.words import type_of
from esper.kasmina.adapters import adapter_of
from esper.kasmina.calls import Call
from esper.kasmina.probe import Example
from esper.kasmina.source import CONVOLUTIONS, MOST_FLATTENED, fitted_width, flattened_width
from esper.kasmina.undo import RandomState

INPUT = "the model's input"

_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True, kw_only=True)
class Feed:
    """A pair of layers between which new units can grow."""

    wide: str
    """The layer that would become wider; new units read what it is given."""
    num_read: int
    """Features or channels of that, as new units read them; see `source.fitted_width`."""
    reads_all_positions: bool = False
    """Whether they read a convolution's input at all positions at once, for a linear layer."""
    spans: int = 1
    """How many layers would become wider together, from `wide` on."""

    @property
    def fields(self) -> dict[str, Any]:
        """Those of the `Site`; what is the default is left out."""
        across = {"reads_all_positions": True} if self.reads_all_positions else {}
        return {"widens": self.wide, "spans": self.spans, **across}


@dataclass(kw_only=True)
class _Seen:
    """What one layer did while the example ran."""

    num_calls: int = 0
    given: Tensor | None = None
    """Its only positional argument, with what it was made from."""
    sources: set[str] = field(default_factory=set[str])
    """The layers whose outputs reach it directly."""
    leaf: Tensor | None = None
    """Its output as the following layers see it."""


@dataclass(frozen=True, kw_only=True)
class Feeds:
    """All that was found in one host."""

    pairs: Mapping[str, Feed | str]
    """For each linear layer and convolution, its feed, or why it has none."""
    paths: Mapping[str, Feed]
    """For each layer at the end of three or more of a type in a row, each fed by the one before alone, what a
    path past all of them would read: what the first of them is given."""

    @property
    def across(self) -> Set[str]:
        """The linear layers that one convolution feeds."""
        feeds = ((name, feed) for name, feed in self.pairs.items() if isinstance(feed, Feed))
        return {name for name, feed in feeds if feed.reads_all_positions}


def feeds(model: nn.Module, layers: Mapping[str, nn.Module], example: Example) -> Feeds:
    """Return where the layers of a host could become wider.

    Raises:
        HostError: if a copy of the model, whose layers' outputs are cut off from their past, does not run.

    """
    streams = RandomState.take()
    try:
        twin = copy.deepcopy(model).eval()
        seen = {name: _Seen() for name, layer in layers.items() if _is_cut(layer)}
        leaves: dict[int, str] = {}
        for name, record in seen.items():
            twin.get_submodule(name).register_forward_hook(_cutter(name, record, leaves))
        _run(twin, example, leaves)
    except Exception as error:
        raise HostError(
            f"cannot be told from what feeds it: {type(error).__name__}: {error}"
        ) from error
    finally:
        streams.restore()
    pairs = {
        name: _judge(name, layers, seen)
        for name, layer in layers.items()
        if isinstance(layer, (nn.Linear, *CONVOLUTIONS))
    }
    return Feeds(pairs=pairs, paths=_paths(pairs, layers, seen))


def _paths(
    pairs: Mapping[str, Feed | str], layers: Mapping[str, nn.Module], seen: Mapping[str, _Seen]
) -> dict[str, Feed]:
    """Return, for each layer at the end of a row, what a path past the whole row would read."""
    found: dict[str, Feed] = {}
    feeders = {f.wide for f in pairs.values() if isinstance(f, Feed) and not f.reads_all_positions}
    for end in (name for name in pairs if name not in feeders):
        first, spans = end, 0
        while isinstance(feed := pairs.get(first), Feed) and not feed.reads_all_positions:
            first, spans = feed.wide, spans + 1
        given, h = seen[first].given, seen[end].leaf
        if spans > 1 and given is not None and h is not None:
            width = _width_read(layers[end], given, h)
            found[end] = Feed(wide=first, num_read=width, spans=spans)
    return found


def _width_read(layer: nn.Module, given: Tensor, h: Tensor) -> int:
    """Return how many features new units read of what is `given`, at each place of what `layer` gives."""
    is_convolution = isinstance(layer, CONVOLUTIONS)
    return fitted_width(given.shape, h.shape) if is_convolution else given.shape[-1]


def _is_cut(layer: nn.Module) -> bool:
    """Tell whether a layer's output is a place to look back to: layers that mix features, not norms."""
    known = adapter_of(type(layer)).kind is not None
    return known and not isinstance(layer, _NORMS)


def _run(twin: nn.Module, example: Example, leaves: dict[int, str]) -> None:
    def leaf(value: Tensor) -> Tensor:
        if not value.is_floating_point():
            return value
        own = value.detach().clone().requires_grad_()
        leaves[id(own)] = INPUT
        kept.append(own)
        return own.clone()  # operations in place are not allowed on a leaf

    kept: list[Tensor] = []  # so that no other tensor takes its id
    call = Call.of(example).map(leaf)
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the host's own; they appear when it really runs
        twin(*call.args, **call.kwargs)


def _cutter(name: str, record: _Seen, leaves: dict[int, str]) -> Any:
    def cut(layer: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        record.num_calls += 1
        if record.num_calls > 1:
            return None
        if len(args) == 1 and isinstance(args[0], Tensor):
            record.given = args[0]
            record.sources = {leaves[i] for i in _leaves_of(args[0]) if i in leaves}
        adapter = adapter_of(type(layer))
        h = adapter.take(layer, output)
        record.leaf = h.detach().clone().requires_grad_()
        leaves[id(record.leaf)] = name
        return adapter.put(layer, output, record.leaf.clone())

    return cut


def _leaves_of(value: Tensor) -> Iterator[int]:
    """Yield the ids of the leaves that a tensor was made from."""
    if value.grad_fn is None:
        yield id(value)
        return
    waiting, known = [cast("Any", value.grad_fn)], {value.grad_fn}
    while waiting:
        node = waiting.pop()
        if (variable := getattr(node, "variable", None)) is not None:
            yield id(variable)
        for before, _ in node.next_functions:
            if before is not None and before not in known:
                known.add(before)
                waiting.append(before)


def _judge(name: str, layers: Mapping[str, nn.Module], seen: Mapping[str, _Seen]) -> Feed | str:
    layer, record = layers[name], seen[name]
    if record.num_calls != 1 or record.given is None or record.leaf is None:
        return _call_problem(record)
    if len(record.sources) != 1:
        return f"is fed by {_listed(record.sources)} together, and widening one would change the others' part"
    (wide,) = record.sources
    if wide == INPUT:
        return "is fed by the model's input, before which there is no layer"
    before = seen[wide]
    is_flattened = _is_flattened(layer, record, layers[wide])
    if type(layers[wide]) is not type(layer) and not is_flattened:
        return f"is fed by {wide}, {type_of(layers[wide])}; widening needs two layers of one type"
    if isinstance(layer, CONVOLUTIONS) and layer.groups > 1:
        return f"has {layer.groups} groups, and new units would belong to none of them"
    if before.num_calls != 1 or before.given is None or before.leaf is None:
        return f"is fed by {wide}, which {_call_problem(before)}"
    if not _acts_on_rows_alone(record, before):
        return f"is fed by {wide} through something that mixes rows or positions, as attention does"
    if is_flattened:
        return _flat_feed(wide, layers[wide], before, record)
    # Convolutions may have fewer positions later on; rows stay the same.
    num_equal = 1 if isinstance(layer, CONVOLUTIONS) else record.leaf.dim() - 1
    is_even = before.given.shape[:num_equal] == record.leaf.shape[:num_equal]
    if before.given.dim() != record.leaf.dim() or not is_even:
        return f"is fed by {wide}, which is given {tuple(before.given.shape)} for {tuple(record.leaf.shape)}"
    if isinstance(layer, CONVOLUTIONS) and before.given.dim() != layer.weight.dim():
        return f"is fed by {wide}, which is given no batch; plan with one"
    return Feed(wide=wide, num_read=_width_read(layer, before.given, record.leaf))


def _is_flattened(layer: nn.Module, record: _Seen, wide: nn.Module) -> bool:
    """Tell whether a linear layer is given all positions of a convolution's output as one row."""
    is_pair = isinstance(wide, CONVOLUTIONS) and isinstance(layer, nn.Linear)
    return is_pair and record.given is not None and record.given.dim() == 2


def _flat_feed(wide: str, layer: nn.Module, before: _Seen, record: _Seen) -> Feed | str:
    """Return what new units of a linear layer read, all positions at once, or why they do not."""
    given, flat, h = before.given, record.given, before.leaf
    assert given is not None
    assert flat is not None
    assert h is not None
    if given.dim() != cast("Tensor", layer.weight).dim():
        return f"is fed by {wide}, which is given no batch; plan with one"
    if given.shape[0] != flat.shape[0]:
        return f"is fed by {wide}, which is given {given.shape[0]} samples for {flat.shape[0]} rows"
    if flat.shape[1] <= h.shape[1]:
        return f"is fed by {wide} through an average over all positions, and new units would tell them apart"
    num_read = flattened_width(given.shape)
    if not num_read:
        return (
            f"is fed by {wide}, which is given {given.shape[1]} channels; new units that read all positions "
            f"at once read {MOST_FLATTENED} numbers at most"
        )
    return Feed(wide=wide, num_read=num_read, reads_all_positions=True)


def _call_problem(record: _Seen) -> str:
    if record.num_calls != 1:
        return f"is called {record.num_calls} times in a pass; expected once"
    return "is not called with one tensor as its only argument"


def _acts_on_rows_alone(record: _Seen, before: _Seen) -> bool:
    """Tell whether the last row that a layer is given was made from the last row of the layer before.

    Rows are samples, and tokens where there are some. Convolutions read around them anyway.
    """
    given, leaf = record.given, before.leaf
    assert given is not None
    assert leaf is not None
    num_axes = 1 if given.dim() != leaf.dim() or given.dim() < 3 else given.dim() - 1
    is_rows = given.shape[:-1] == leaf.shape[:-1]
    row = (-1,) * (num_axes if is_rows else 1)
    (reach,) = cast(
        "tuple[Tensor]", torch.autograd.grad(given[row].sum(), [leaf], retain_graph=True)
    )
    reach[row] = 0
    return not bool(reach.any())


def _listed(names: Iterable[str]) -> str:
    return " and ".join(sorted(names)) or "nothing that is known"
