"""Runs an example through a copy of a host and tells what came out of each layer.

The plan asks it when the user gives an example: only running the model shows which layers are called,
what a block of the user's own returns, and whether tokens look ahead. The host itself is not run, and
the random streams are put back.

Shapes: `B` batch, `T` tokens, `D` features.
"""

import copy
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from esper.contracts import HostError
from esper.kasmina.adapters import adapter_of
from esper.kasmina.undo import RandomState

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
    looks_ahead: bool
    """Whether the first token of the model's output depends on later tokens here, or there is no
    such token since the output is pooled. Where this is false a block that looks ahead could leak."""


@dataclass(kw_only=True)
class _Record:
    num_calls: int = 0
    features: Tensor | None = None
    returned: str = ""


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
    for name, record in records.items():
        twin.get_submodule(name).register_forward_hook(_recorder(record))
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
    tensors = [t for t in _tensors(output) if t.is_floating_point() and t.requires_grad]
    reach = _gradients(sum((t.float().sum() for t in tensors), torch.zeros(())), records)
    early = [e for t in tensors for e in _early_tokens(t, records)]
    ahead = _gradients(sum(early, torch.zeros(())), records)
    pooled = not early
    return {
        name: _sighting(record, reach[name], ahead[name], pooled=pooled)
        for name, record in records.items()
    }


def _recorder(record: _Record) -> Any:
    def record_output(layer: nn.Module, _args: object, output: Any) -> None:
        record.num_calls += 1
        if record.num_calls > 1:
            return
        record.returned = _describe(output)
        try:
            features = adapter_of(type(layer)).take(layer, output)
        except (HostError, TypeError, LookupError, AttributeError):
            return
        if isinstance(features, Tensor) and features.is_floating_point():  # pyright: ignore[reportUnnecessaryIsInstance]
            record.features = features

    return record_output


def _run(model: nn.Module, example: Example) -> object:
    if isinstance(example, Tensor):
        return model(example)
    if isinstance(example, Mapping):
        return model(**example)
    return model(*example)


def _sighting(
    record: _Record, reach: Tensor | None, ahead: Tensor | None, *, pooled: bool
) -> Sighting:
    features = record.features
    return Sighting(
        num_calls=record.num_calls,
        features=None if features is None else features.detach().to("meta"),
        returned=record.returned,
        # Frozen features have no gradient and say nothing.
        reaches_output=features is None or not features.requires_grad or reach is not None,
        looks_ahead=pooled or (ahead is not None and bool(ahead[:, 1:].any())),
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
    return {
        name: gradient if gradient is None or gradient.dim() >= 2 else None
        for name, gradient in result.items()
    }


def _early_tokens(output: Tensor, records: Mapping[str, _Record]) -> Iterator[Tensor]:
    """Yield the sum over the first token, for each axis of `output` that may be one of tokens."""
    lengths = {
        record.features.shape[1]
        for record in records.values()
        if record.features is not None and record.features.dim() == 3
    }
    for axis in (1, 0):
        if axis < output.dim() and output.shape[axis] in lengths:
            yield output.select(axis, 0).float().sum()
            return


def _tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in an output: a tensor, or tuples, lists and dicts of such."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in cast("Mapping[str, Any]", value).values():
            yield from _tensors(part)
    elif isinstance(value, tuple | list):
        for part in cast("Sequence[Any]", value):
            yield from _tensors(part)


def _describe(value: Any) -> str:
    name = type(value).__name__
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, tuple | list):
        parts = ", ".join(type(part).__name__ for part in cast("Sequence[Any]", value))
        return f"a {name} ({parts})"
    return f"a {name}"


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
