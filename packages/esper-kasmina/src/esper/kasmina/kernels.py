"""Turns a blueprint into a PyTorch block, checked on the meta device before anything is allocated.

Tezzeret builds and initialises; `packing` turns blocks into the bytes of kernels and back; the seeds
run them. Nothing here draws from a global random stream.

Shapes: `B` batch, `D` features or channels at the site, `T` tokens; the others are positions.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, cast, override

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from esper.contracts import (
    INPUT,
    BlueprintError,
    BlueprintIR,
    Contract,
    KernelSignature,
    OperatorNode,
    canonical_json,
    is_custom,
)
from esper.contracts.words import type_of
from esper.kasmina.operators import (
    FUNCTIONS,
    LayerContext,
    context_of,
    implementation_of,
    initialise_layer,
    make_layer,
    missing_operators,
)

KERNEL_FORMAT_VERSION = 1

MAX_PARAMETERS = 1 << 28
"""Upper bound of a block's parameters (1 GiB of float32): a design can't allocate a machine away."""

TEMPLATES_KEPT = 512
"""Designs, per signature, whose meta build is remembered: building one takes some milliseconds."""

DTYPES: Mapping[str, torch.dtype] = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


class KernelHeader(Contract):
    """What a kernel's bytes say of themselves."""

    format_version: Literal[1] = KERNEL_FORMAT_VERSION
    ir: BlueprintIR
    signature: KernelSignature


class Block(nn.Module):
    """A blueprint's graph as a module: its output has the shape of the features at its site.

    The layer of node `up` is the child `node_up`; nodes without weights or options have none.
    """

    def __init__(self, ir: BlueprintIR, signature: KernelSignature) -> None:
        super().__init__()
        self.ir = ir
        self.signature = signature
        self.contexts: dict[str, LayerContext] = {}
        """What the layers were made from, by name of the node."""
        # A plain table, so that torch.compile traces through it without knowing pydantic.
        self.table = tuple((node.name, node.op, node.inputs) for node in ir.nodes)

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Apply the graph to what the block reads: `D` features for each row or position of it."""
        values = {INPUT: x}
        result = x
        for name, op, inputs in self.table:
            layer = cast(
                "Callable[..., Tensor]", FUNCTIONS.get(op) or getattr(self, f"node_{name}")
            )
            result = layer(*(values[key] for key in inputs))
            values[name] = result
        return result


@dataclass(frozen=True, kw_only=True)
class Template:
    """One design for one signature, checked and built on the meta device: a mould for blocks."""

    header: KernelHeader
    blueprint_id: str
    block: Block
    """On the meta device; shared, so never changed."""
    state: Mapping[str, Tensor]
    """Its parameters and buffers by name, on the meta device."""
    num_parameters: int
    implementations: tuple[object, ...]
    """What stood behind each operator when this was built."""

    def cast_from(self, tensors: Mapping[str, Tensor]) -> Block:
        """Return a new block with these tensors as its parameters and buffers; they are not copied."""
        memo: dict[int, object] = {
            id(self.block.ir): self.block.ir,
            id(self.block.signature): self.block.signature,
            id(self.block.contexts): self.block.contexts,
            id(self.block.table): self.block.table,
        }
        for name, value in self.state.items():
            if isinstance(value, nn.Parameter):
                memo[id(value)] = nn.Parameter(tensors[name], requires_grad=value.requires_grad)
            else:
                memo[id(value)] = tensors[name]
        # deepcopy copies what the memo does not already name a copy of: structure, no tensors.
        return copy.deepcopy(self.block, memo)


def template_of(ir: BlueprintIR, signature: KernelSignature) -> Template:
    """Return the checked mould of `ir` for `signature`, from memory if it was made before.

    Raises:
        BlueprintError: naming the node and the shapes that do not fit, or the unknown operator.

    """
    try:
        header = KernelHeader(ir=ir, signature=signature)
        return template_of_header(canonical_json(header).decode())
    except ValidationError as error:  # an operator was registered after the design was made
        raise BlueprintError(f"blueprint {ir.name!r}: {first_line(error)}") from error


def template_of_header(text: str) -> Template:
    """Return the checked mould of a kernel with this header, in JSON.

    Raises:
        pydantic.ValidationError: if it is no header.
        BlueprintError: as `template_of`.

    """
    template = _template(text)
    if template.implementations != _implementations(template.header.ir):
        _template.cache_clear()
        template = _template(text)
    return template


def build_block(ir: BlueprintIR, signature: KernelSignature, *, device: str | None = None) -> Block:
    """Build the block of `ir` for `signature`; every weight is zero until it is set.

    Shapes are checked on the meta device before anything is allocated, and no random stream is
    touched. `device` overrides the signature's, for building where that device is absent.

    Raises:
        BlueprintError: naming the node and the shapes that do not fit, or the missing device.

    """
    template = template_of(ir, signature)
    target = device or signature.device
    if target.startswith("cuda") and not torch.cuda.is_available():
        raise BlueprintError(
            f"blueprint {ir.name!r} is to be built on {target!r}, which this machine does not have; "
            "pass device='cpu' to build it on the CPU"
        )
    return template.cast_from(
        {
            name: torch.zeros(value.shape, dtype=value.dtype, device=target)
            for name, value in template.state.items()
        }
    )


def initialise_block(block: Block, generator: torch.Generator) -> None:
    """Set every weight in place: Kaiming-uniform, norms 1 and 0; zeros or as another's where the design says.

    Draws float32 on the CPU from `generator` only, so equal generators give equal weights on every
    device. The bound is `sqrt(3 / fan_in)` for weights (He et al. 2015 with gain 1, as hidden
    activations are not known to be ReLU) and `1 / sqrt(fan_in)` for biases.

    Raises:
        BlueprintError: if nothing is known about the initialisation of a registered operator.

    """
    with torch.no_grad():
        likes = {node.name: node.like for node in block.ir.nodes if node.like is not None}
        for name, context in block.contexts.items():
            layer = block.get_submodule(f"node_{name}")
            if name in likes:
                layer.load_state_dict(block.get_submodule(f"node_{likes[name]}").state_dict())
            else:
                initialise_layer(layer, generator, context)


def count_parameters(module: nn.Module, *, trainable_only: bool = False) -> int:
    """Count the numbers in the parameters of `module`; shared ones count once."""
    return sum(
        parameter.numel()
        for parameter in module.parameters()
        if parameter.requires_grad or not trainable_only
    )


def probe_shape(signature: KernelSignature, *, batch: int = 2, extent: int = 4) -> tuple[int, ...]:
    """Return a small input shape for a block: `extent` is the number of tokens, or each extent.

    `(B, D)` for features, `(B, extent, D)` for sequences, `(B, D, extent, …)` for channels; `I` instead of
    `D` for a widening.
    """
    positions = (extent,) * (signature.kind.num_dims - 2)
    if signature.kind.is_channels:
        return (batch, signature.width_read, *positions)
    return (batch, *positions, signature.width_read)


def output_shape(signature: KernelSignature, shape: Sequence[int]) -> torch.Size:
    """Return the shape of a block's output for an input of `shape`: that of the features at its site."""
    axis = 1 if signature.kind.is_channels else len(shape) - 1
    return torch.Size([*shape[:axis], signature.features, *shape[axis + 1 :]])


@lru_cache(maxsize=TEMPLATES_KEPT)
def _template(text: str) -> Template:
    header = KernelHeader.model_validate_json(text)
    if header.ir.unknown_operators and not missing_operators(header.ir):
        header = KernelHeader.model_validate_json(text)  # now its nodes can be checked
    ir, signature = header.ir, header.signature
    _check_usable(ir, signature)
    block = Block(ir, signature)
    _add_layers(block)
    _check_likes(block)
    if (size := count_parameters(block)) > MAX_PARAMETERS:
        raise BlueprintError(
            f"blueprint {ir.name!r} has {size} parameters for {signature.key}; "
            f"expected at most {MAX_PARAMETERS}"
        )
    return Template(
        header=header,
        blueprint_id=ir.content_hash(),
        block=block,
        state=_state_of(block),
        num_parameters=size,
        implementations=_implementations(ir),
    )


def _check_likes(block: Block) -> None:
    """Refuse a layer that is to be born like one of another shape: equal sizes may read unequal widths."""
    for node in block.ir.nodes:
        if node.like is None or node.name not in block.contexts:
            continue
        mine, other = (_shapes(block, name) for name in (node.name, node.like))
        if mine != other:
            raise BlueprintError(
                f"blueprint {block.ir.name!r}: node {node.name!r} is to be born like {node.like!r}, whose "
                f"weights have other shapes: {other}, not {mine}"
            )


def _shapes(block: Block, name: str) -> list[tuple[int, ...]]:
    layer = block.get_submodule(f"node_{name}")
    return [tuple(value.shape) for value in layer.state_dict().values()]


def _implementations(ir: BlueprintIR) -> tuple[object, ...]:
    return tuple(implementation_of(node.op) for node in ir.nodes if is_custom(node.op))


def _check_usable(ir: BlueprintIR, signature: KernelSignature) -> None:
    if ir.kind is not signature.kind:
        raise BlueprintError(
            f"blueprint {ir.name!r} is for {ir.kind.value} sites, the signature is {signature.key}"
        )
    if ir.widens != (signature.inputs is not None):
        what = "widens a layer" if ir.widens else "does not widen a layer"
        raise BlueprintError(f"blueprint {ir.name!r} {what}, the signature is {signature.key}")
    if unknown := ir.unknown_operators:
        raise BlueprintError(
            f"blueprint {ir.name!r} uses {', '.join(unknown)}, which is not registered in this "
            "process; call register_operator() with it first"
        )


def _add_layers(block: Block) -> None:
    """Make the layer of every node, and check on the way that shapes and types fit."""
    ir, dtype = block.ir, DTYPES[block.signature.dtype]
    shape = probe_shape(block.signature)
    values = {INPUT: torch.empty(shape, dtype=dtype, device="meta")}
    with torch.no_grad():
        for node in ir.nodes:
            values[node.name] = _add_node(block, node, [values[key] for key in node.inputs])
        _check_output(block, values[INPUT], values[ir.nodes[-1].name])
        if any(is_custom(node.op) for node in ir.nodes):
            # Built-in operators treat all extents alike; others may depend on the ones they saw.
            x = torch.empty(_other_shape(block.signature), dtype=dtype, device="meta")
            _check_output(block, x, _run(block, x))


def _run(block: Block, x: Tensor) -> Tensor:
    try:
        return block(x)
    except _UNFIT as error:
        raise BlueprintError(
            f"blueprint {block.ir.name!r} works on {probe_shape(block.signature)}, but not on "
            f"{tuple(x.shape)}: {first_line(error)}"
        ) from error


def _check_output(block: Block, x: Tensor, out: Tensor) -> None:
    ir, expected = block.ir, output_shape(block.signature, x.shape)
    last = f"blueprint {ir.name!r}: its last node {ir.nodes[-1].name!r} gives"
    if out.shape != expected:
        raise BlueprintError(
            f"{last} {tuple(out.shape)} for an input of {tuple(x.shape)}; a block must "
            + ("keep the shape" if expected == x.shape else f"give {tuple(expected)}")
        )
    if out.dtype != x.dtype:
        raise BlueprintError(f"{last} {out.dtype} for {x.dtype}; a block must keep the type")


def _other_shape(signature: KernelSignature) -> tuple[int, ...]:
    """Return a shape with other extents than `probe_shape`, all different; features have tokens."""
    positions = (5, 6, 7)[: max(1, signature.kind.num_dims - 2)]
    if signature.kind.is_channels:
        return (3, signature.width_read, *positions)
    return (3, *positions, signature.width_read)


def _add_node(block: Block, node: OperatorNode, inputs: Sequence[Tensor]) -> Tensor:
    """Add the node's layer, if it has one, and return its output on the meta device."""
    try:
        layer = FUNCTIONS.get(node.op)
        if layer is None:
            width = inputs[0].shape[1 if block.signature.kind.is_channels else -1]
            context = context_of(node, block.signature, width, inputs[0].dtype)
            layer = make_layer(context)
            block.add_module(f"node_{node.name}", layer)
            block.contexts[node.name] = context
        out = cast("object", layer(*inputs))
        if not isinstance(out, Tensor):
            raise TypeError(f"it returned {type_of(out)}, expected a tensor")
        return out
    except _UNFIT as error:
        shapes = ", ".join(str(tuple(value.shape)) for value in inputs)
        raise BlueprintError(
            f"blueprint {block.ir.name!r}, node {node.name!r}: {node.op} does not fit inputs of "
            f"{shapes}: {first_line(error)}"
        ) from error


_UNFIT = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError)
"""What torch raises for shapes that do not fit, and what somebody's own operator may raise."""


def _state_of(block: Block) -> Mapping[str, Tensor]:
    """Return parameters and buffers by name: what a kernel's bytes hold."""
    state = cast("dict[str, object]", block.state_dict(keep_vars=True))
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    own = [*block.named_parameters(), *block.named_buffers()]
    lost = [name for name, value in own if tensors.get(name) is not value]
    if lost or len(own) < len(state):
        names = ", ".join(lost or state.keys() - dict(own).keys())
        raise BlueprintError(
            f"blueprint {block.ir.name!r}: {names} cannot be kept in a kernel; expected parameters and "
            "persistent buffers only, none of them shared"
        )
    return tensors


def first_line(error: BaseException) -> str:
    """Return what an error says, without what follows in later lines."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
    return (str(error).splitlines() or [type(error).__name__])[0]
