"""What a block costs, known before it is built: parameters, bytes, operations.

Everything is counted on the meta device, where nothing is allocated or computed. Urabrask counts the
operations of real passes with the same formulas.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast, override

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from esper.contracts import BlueprintError, BlueprintIR, KernelSignature, SiteKind
from esper.kasmina.kernels import DTYPES, probe_shape, template_of


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of one block."""

    num_parameters: int
    weight_bytes: int
    """Parameters and buffers, in bytes."""
    flops: int
    """Floating-point operations of the matrix products, convolutions and attention of one forward
    pass (multiply-add = 2); a backward pass takes about twice as many. Element-wise operations,
    which are bound by memory and not by arithmetic, are not counted."""
    input_shape: tuple[int, ...]
    """What `flops` is about."""


def cost_of(
    ir: BlueprintIR, signature: KernelSignature, shape: Sequence[int] | None = None
) -> Cost:
    """Return what the block of `ir` for `signature` would cost on an input of `shape`.

    Without a shape: two rows, with 4 tokens or 4 positions along each axis (`probe_shape`). Causal
    attention is counted like full attention, because that is how most implementations compute it.

    Raises:
        BlueprintError: if the design does not fit the signature, or the shape the signature.

    """
    template = template_of(ir, signature)
    shape = probe_shape(signature) if shape is None else tuple(shape)
    _check_shape(signature, shape)
    x = torch.empty(shape, dtype=DTYPES[signature.dtype], device="meta")
    with torch.no_grad(), _FlopMeter() as meter:
        template.block(x)
    return Cost(
        num_parameters=template.num_parameters,
        weight_bytes=sum(t.numel() * t.element_size() for t in template.state.values()),
        flops=meter.flops,
        input_shape=shape,
    )


def flops_of(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> int:
    """Return the operations of one call of an ATen operator that gave `result`."""
    formula = cast("Callable[..., int] | None", flop_registry.get(func._overloadpacket))
    return 0 if formula is None else formula(*args, **kwargs, out_val=result)


class _FlopMeter(TorchDispatchMode):
    """Counts the operations of this thread, and of no other.

    `torch.utils.flop_counter.FlopCounterMode` hooks every module of the process, those of a training
    run in another thread too, so only its table of formulas is used.
    """

    def __init__(self) -> None:
        super().__init__()  # pyright: ignore[reportUnknownMemberType]
        self.flops = 0

    @override
    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.flops += flops_of(func, args, kwargs or {}, result)
        return result


def _check_shape(signature: KernelSignature, shape: tuple[int, ...]) -> None:
    kind = signature.kind
    ranks_fit = (
        len(shape) >= kind.num_dims if kind is SiteKind.FEATURES else len(shape) == kind.num_dims
    )
    if not ranks_fit or shape[1 if kind.is_channels else -1] != signature.width_read:
        raise BlueprintError(
            f"an input of shape {shape} does not fit {signature.key}; expected, for example, "
            f"{probe_shape(signature)}"
        )
