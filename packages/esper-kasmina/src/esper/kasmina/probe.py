"""Runs an example through a copy of a host and tells what came out of each layer.

The plan asks it when the user gives an example: only running the model shows which layers are called,
what a block of the user's own returns, and whether tokens look ahead. The host itself is not run, and
the random streams are put back.

Shapes: `B` batch, `T` tokens, `D` features.
"""

import copy
import warnings
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from esper.contracts import HostError
from esper.contracts.words import with_article
from esper.kasmina.adapters import adapter_of
from esper.kasmina.graft import CHILD
from esper.kasmina.nested import tensors_in
from esper.kasmina.undo import RandomState
from esper.kasmina.usage import Usage, rows_of

type Example = Tensor | tuple[Any, ...] | Mapping[str, Any]
"""Inputs for one forward pass: a tensor, positional arguments, or keyword arguments."""


@dataclass(frozen=True, kw_only=True)
class Sighting:
    """What one layer did while the example ran."""

    num_calls: int
    features: Tensor | None
    """What its adapter takes from the first output, on the meta device; None if not one tensor."""
    returned: str
    """The output in words."""
    reaches_output: bool
    """Whether the model's output depends on it, as far as gradients tell."""
    runs_its_children: bool
    """Whether it calls whatever children it has, so that a graft in it would run as one more layer."""
    cost: float
    """The rows of features that it returns, all calls together, next to those that a parameter of the model
    is used for on average (see `usage`); 1 where nobody can tell."""
    looks_ahead: bool
    """Whether the first token of the model's output depends on later tokens here, or the output is
    pooled, one row per sample. Where neither is certain this is false: a block that looks ahead could
    leak what a language model is to predict."""


@dataclass(kw_only=True)
class _Record:
    num_calls: int = 0
    features: Tensor | None = None
    returned: str = ""
    rows: int = 0


def probe(model: nn.Module, example: Example, names: Sequence[str]) -> dict[str, Sighting]:
    """Return a sighting for each of `names`, with zero calls for layers that never ran.

    Raises:
        HostError: if the model cannot be copied, or the example does not run through it.

    """
    try:
        twin = copy.deepcopy(model)
        inputs = copy.deepcopy(example)
    except Exception as error:
        raise HostError(
            f"the model cannot be copied for a trial run ({_words(error)}); plan without an example"
        ) from error
    records = {name: _Record() for name in names}
    hooks = [
        twin.get_submodule(name).register_forward_hook(_recorder(record))
        for name, record in records.items()
    ]
    usage = Usage(twin)
    random_state = RandomState.take()
    try:
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the host's own; they appear when it really runs
            output = _run(twin, inputs)
    except Exception as error:
        raise HostError(
            f"the example does not run through the model: {_words(error)}; give the inputs of one "
            "training batch: a tensor, a tuple of arguments, or a dict of keyword arguments"
        ) from error
    finally:
        random_state.restore()
    for hook in hooks:
        hook.remove()
    usage.close()
    mean_rows = usage.mean_rows()
    runs_children = _runs_children(twin, inputs, names)
    tensors = [t for t in tensors_in(output) if t.is_floating_point() and t.requires_grad]
    reach = _gradients(sum((t.float().sum() for t in tensors), torch.zeros(())), records)
    ahead = _looks_ahead(tensors, records, {n for t in tensors_in(inputs) for n in t.shape[:2]})
    return {
        name: _sighting(
            record,
            cost=record.rows * record.num_calls / mean_rows if mean_rows else 0.0,
            reached=reach[name] is not None,
            ahead=ahead[name],
            runs_its_children=name in runs_children,
        )
        for name, record in records.items()
    }


def _recorder(record: _Record) -> Any:
    def record_output(layer: nn.Module, _args: object, output: Any) -> Any:
        record.num_calls += 1
        if record.num_calls > 1:
            return None
        record.returned = _describe(output)
        adapter = adapter_of(type(layer))
        try:
            features = adapter.take(layer, output)
        except (HostError, TypeError, LookupError, AttributeError):
            return None
        if isinstance(features, Tensor) and features.is_floating_point():  # pyright: ignore[reportUnnecessaryIsInstance]
            record.features = features
            record.rows = rows_of(layer, features) if features.dim() else 0
            # Where they are a view, as of tokens first, the model has to go on from just that.
            return None if features is output else adapter.put(layer, output, features)
        return None

    return record_output


def _run(model: nn.Module, example: Example) -> object:
    if isinstance(example, Tensor):
        return model(example)
    if isinstance(example, Mapping):
        return model(**example)
    return model(*example)


class _Canary(nn.Module):
    """Sits where a graft would, and sings when somebody calls it as a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.was_called = False

    def forward(self, *args: Any, **_: Any) -> Any:
        """Return the first argument, as a graft of no effect would."""
        self.was_called = True
        return args[0] if args else None


def _runs_children(twin: nn.Module, inputs: Example, names: Sequence[str]) -> set[str]:
    """Return those blocks of the user's own that call, or stumble over, a child added to them."""
    unknown = [n for n in names if n and adapter_of(type(twin.get_submodule(n))).kind is None]
    canaries = {name: _Canary() for name in unknown}
    for name, canary in canaries.items():
        twin.get_submodule(name).add_module(CHILD, canary)
    random_state = RandomState.take()
    failed = False
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _run(twin, inputs)
    except Exception:  # noqa: BLE001  # a block that takes the canary for a layer of its own
        failed = True
    finally:
        random_state.restore()
    for name in unknown:
        delattr(twin.get_submodule(name), CHILD)
    sang = {name for name, canary in canaries.items() if canary.was_called}
    return sang or (set(unknown) if failed else set())


def _sighting(
    record: _Record, *, cost: float, reached: bool, ahead: bool, runs_its_children: bool
) -> Sighting:
    features = record.features
    return Sighting(
        num_calls=record.num_calls,
        features=None if features is None else features.detach().to("meta"),
        returned=record.returned,
        # Frozen features have no gradient and say nothing.
        reaches_output=features is None or not features.requires_grad or reached,
        runs_its_children=runs_its_children,
        cost=cost or 1.0,
        looks_ahead=ahead,
    )


def _gradients(total: Tensor, records: Mapping[str, _Record]) -> dict[str, Tensor | None]:
    """Return the gradient of `total` at each layer's features; None where there is none."""
    wanted = {
        name: record.features
        for name, record in records.items()
        if record.features is not None and record.features.requires_grad
    }
    result: dict[str, Tensor | None] = dict.fromkeys(records)
    if wanted and total.requires_grad:
        found = torch.autograd.grad(
            total, list(wanted.values()), retain_graph=True, allow_unused=True
        )
        result.update(zip(wanted, cast("Sequence[Tensor | None]", found), strict=True))
    return result


def _looks_ahead(
    outputs: Sequence[Tensor], records: Mapping[str, _Record], batch_sizes: Set[int]
) -> dict[str, bool]:
    """Tell for each layer what `Sighting.looks_ahead` says.

    Every axis of every output that may be one of tokens has a say, and one that looks back only is
    enough. Outputs without such an axis matter only where there is nothing better.
    """
    evidence: dict[str, list[bool]] = {name: [] for name in records}
    pooled: dict[str, bool] = dict.fromkeys(records, False)
    shapes = {
        tuple(record.features.shape[:2])
        for record in records.values()
        if record.features is not None and record.features.dim() == 3
    }
    for output in outputs if shapes else ():
        is_pooled = output.dim() in (1, 2) and output.shape[0] in batch_sizes
        reach = _gradients(output.float().sum(), records)
        reached = {name for name, gradient in reach.items() if gradient is not None}
        pooled |= {name: pooled[name] or is_pooled for name in reached}
        for axis in _token_axes(output, shapes):
            first = _gradients(_mixed(output.select(axis, 0)), records)
            for name in reached:
                if (ahead := _depends_on_later(first[name], output, axis)) is not None:
                    evidence[name].append(ahead)
    return {name: all(found) if found else pooled[name] for name, found in evidence.items()}


def _mixed(values: Tensor) -> Tensor:
    """Return a number that depends on all values; a plain sum of what a norm gives does not."""
    weights = torch.arange(values.numel(), device=values.device).float().cos()
    return (values.float() * weights.reshape(values.shape)).sum()


def _token_axes(output: Tensor, shapes: Set[tuple[int, ...]]) -> list[int]:
    """Return each axis of `output` that is as long as features `(B, T, D)` have tokens.

    The first axis may also hold the tokens of all samples, as for a loss over them.
    """
    lengths = {tokens for _, tokens in shapes}
    flat = {batch * tokens for batch, tokens in shapes}
    return [
        axis
        for axis, length in enumerate(output.shape)
        if length in lengths or (axis == 0 and length in flat)
    ]


def _depends_on_later(first: Tensor | None, output: Tensor, axis: int) -> bool | None:
    """Tell whether the gradient of the first token touches later ones; None if nobody can tell."""
    if first is None:
        return False
    if first.dim() != 3:
        return None
    if axis == 0 and output.shape[0] == first.shape[0] > 1 and not bool(first[1:].any()):
        return None  # what was taken for the first token is the first sample
    return bool(first[:, 1:].any())


def _describe(value: Any) -> str:
    name = type(value).__name__
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, tuple | list):
        parts = ", ".join(type(part).__name__ for part in cast("Sequence[Any]", value))
        return f"{with_article(name)} ({parts})"
    return with_article(name)


def _words(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text if len(text) <= 200 else text[:200] + '…'}"
