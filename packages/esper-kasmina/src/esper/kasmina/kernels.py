"""Turns a blueprint into a PyTorch block, and a block into the bytes of a kernel and back.

Tezzeret builds, initialises and packs; Urabrask and Kasmina's seeds unpack what the library stores.
Bytes are safetensors whose one metadata key holds the design as JSON, so nothing is ever unpickled.

Shapes: `B` batch, `D` features or channels at the site, `H`, `W` height and width.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import safetensors.torch
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from torch import Tensor, nn

from esper.contracts import (
    INPUT,
    OPERATORS,
    BlueprintError,
    BlueprintIR,
    Contract,
    KernelRejectedError,
    KernelSignature,
    OperatorNode,
    Parameter,
    SiteKind,
    canonical_json,
    evaluate_size,
)

KERNEL_FORMAT_VERSION = 1
METADATA_KEY = "esper.kernel"
"""The only metadata key: safetensors writes several in random order, one is deterministic."""

MAX_PARAMETERS = 1 << 28
"""Upper bound of a block's parameters (1 GiB of float32): a design can't allocate a machine away."""

DTYPES: Mapping[str, torch.dtype] = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}

type _Function = Callable[..., Tensor]

_FUNCTIONS: Mapping[str, _Function] = {
    "relu": torch.relu,
    "gelu": nn.functional.gelu,
    "silu": nn.functional.silu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "add": torch.add,
    "multiply": torch.mul,
}
"""Operators without weights; the others are modules made by `_layer`."""


class KernelHeader(Contract):
    """What a kernel's bytes say of themselves."""

    format_version: Literal[1] = KERNEL_FORMAT_VERSION
    ir: BlueprintIR
    signature: KernelSignature


@dataclass(frozen=True, kw_only=True)
class UnpackedKernel:
    """A kernel ready to run: the design, what it was built for, and the block with its weights."""

    ir: BlueprintIR
    signature: KernelSignature
    block: "Block"


class Block(nn.Module):
    """A blueprint's graph as a module: `(B, …, D) → (B, …, D)` or `(B, D, H, W) → (B, D, H, W)`.

    The layer of node `up` is the child `node_up`; nodes without weights have none.
    """

    def __init__(self, ir: BlueprintIR, signature: KernelSignature) -> None:
        super().__init__()
        self.ir = ir
        self.signature = signature
        # A plain table, so that torch.compile traces through it without knowing pydantic.
        self._table = tuple((node.name, node.op, node.inputs) for node in ir.nodes)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the graph to features `x`; the result has the shape of `x`."""
        values = {INPUT: x}
        result = x
        for name, op, inputs in self._table:
            function = _FUNCTIONS.get(op) or cast("_Function", getattr(self, f"node_{name}"))
            result = function(*(values[key] for key in inputs))
            values[name] = result
        return result


def build_block(ir: BlueprintIR, signature: KernelSignature, *, device: str | None = None) -> Block:
    """Build the block of `ir` for `signature`; every weight is zero until it is set.

    Shapes are checked on the meta device before anything is allocated, and no random stream is
    touched. `device` overrides the signature's, for building where that device is absent.

    Raises:
        BlueprintError: naming the node and the shapes that do not fit, or the missing device.

    """
    block = _build_on_meta(ir, signature)
    target = device or signature.device
    if target.startswith("cuda") and not torch.cuda.is_available():
        raise BlueprintError(
            f"blueprint {ir.name!r} is to be built on {target!r}, which this machine does not have; "
            "pass device='cpu' to build it on the CPU"
        )
    block.to_empty(device=target)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.zero_()
    return block


def initialise_block(block: Block, generator: torch.Generator) -> None:
    """Set every weight in place: Kaiming-uniform, zeros where the design says so, norms 1 and 0.

    Draws float32 on the CPU from `generator` only, so equal generators give equal weights on every
    device. The bound is `sqrt(3 / fan_in)` for weights (He et al. 2015 with gain 1, as hidden
    activations are not known to be ReLU) and `1 / sqrt(fan_in)` for biases.
    """
    with torch.no_grad():
        for node in block.ir.nodes:
            layer = getattr(block, f"node_{node.name}", None)
            if isinstance(layer, nn.LayerNorm | nn.GroupNorm):
                layer.weight.fill_(1)
                layer.bias.fill_(0)
            elif isinstance(layer, nn.Linear | nn.Conv2d):
                if _option(node, "init") == "zeros":
                    for parameter in layer.parameters():
                        parameter.zero_()
                else:
                    _draw(layer, generator)


def pack_kernel(ir: BlueprintIR, signature: KernelSignature, block: nn.Module) -> bytes:
    """Return the bytes of a kernel: equal content gives equal bytes, in any process."""
    header = canonical_json(KernelHeader(ir=ir, signature=signature)).decode()
    tensors = {
        name: value.detach().cpu().contiguous()
        for name, value in cast("dict[str, Tensor]", block.state_dict()).items()
    }
    return safetensors.torch.save(tensors, metadata={METADATA_KEY: header})


def unpack_kernel(blob: bytes, *, device: str | None = None) -> UnpackedKernel:
    """Read a kernel's bytes; strict, and never executes anything that they contain.

    Raises:
        KernelRejectedError: if the bytes are not exactly a kernel that this version understands.

    """
    header = read_header(blob)
    try:
        tensors = safetensors.torch.load(blob)
        expected = _build_on_meta(header.ir, header.signature)
        _check_tensors(expected, tensors)
        block = build_block(header.ir, header.signature, device=device)
        block.load_state_dict(tensors, strict=True)
    except (SafetensorError, BlueprintError, RuntimeError, KeyError, ValueError) as error:
        raise KernelRejectedError(f"the bytes are not a usable kernel: {error}") from error
    return UnpackedKernel(ir=header.ir, signature=header.signature, block=block)


def read_header(blob: bytes) -> KernelHeader:
    """Read only the design and signature of a kernel's bytes.

    Raises:
        KernelRejectedError: if they are missing or malformed.

    """
    try:
        length = int.from_bytes(blob[:8], "little")
        if not 2 <= length <= len(blob) - 8:
            raise ValueError(f"a header of {length} bytes in {len(blob)} bytes")
        fields = json.loads(blob[8 : 8 + length])
        metadata = fields["__metadata__"]
        if list(metadata) != [METADATA_KEY]:
            raise ValueError(f"metadata keys {list(metadata)}, expected [{METADATA_KEY!r}]")
        return KernelHeader.model_validate_json(metadata[METADATA_KEY])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        detail = _first_line(error)
        raise KernelRejectedError(
            f"the bytes are not a kernel ({detail}); expected safetensors written by pack_kernel"
        ) from error


def count_parameters(module: nn.Module, *, trainable_only: bool = False) -> int:
    """Count the numbers in the parameters of `module`; shared ones count once."""
    return sum(
        parameter.numel()
        for parameter in module.parameters()
        if parameter.requires_grad or not trainable_only
    )


def probe_shape(signature: KernelSignature, *, batch: int = 2, extent: int = 4) -> tuple[int, ...]:
    """Return a small input shape for a block: `(B, D)`, or `(B, D, extent, extent)`."""
    if signature.kind is SiteKind.CHANNELS_2D:
        return (batch, signature.features, extent, extent)
    return (batch, signature.features)


def _build_on_meta(ir: BlueprintIR, signature: KernelSignature) -> Block:
    if ir.kind is not signature.kind:
        raise BlueprintError(
            f"blueprint {ir.name!r} is for {ir.kind.value} sites, the signature is {signature.key}"
        )
    block = Block(ir, signature)
    shape = probe_shape(signature)
    values = {INPUT: torch.empty(shape, dtype=DTYPES[signature.dtype], device="meta")}
    for node in ir.nodes:
        values[node.name] = _add_node(block, node, [values[key] for key in node.inputs])
    out = tuple(values[ir.nodes[-1].name].shape)
    if out != shape:
        raise BlueprintError(
            f"blueprint {ir.name!r}: its last node {ir.nodes[-1].name!r} gives {out} for an input of "
            f"{shape}; a block must keep the shape"
        )
    if (size := count_parameters(block)) > MAX_PARAMETERS:
        raise BlueprintError(
            f"blueprint {ir.name!r} has {size} parameters for {signature.key}; "
            f"expected at most {MAX_PARAMETERS}"
        )
    return block


def _add_node(block: Block, node: OperatorNode, inputs: Sequence[Tensor]) -> Tensor:
    """Add the node's layer, if it has one, and return its output on the meta device."""
    try:
        function = _FUNCTIONS.get(node.op)
        if function is None:
            function = _layer(node, inputs[0].shape[1 if inputs[0].dim() == 4 else -1], block)
            block.add_module(f"node_{node.name}", function)
        return function(*inputs)
    except (RuntimeError, ValueError) as error:
        shapes = ", ".join(str(tuple(value.shape)) for value in inputs)
        raise BlueprintError(
            f"blueprint {block.ir.name!r}, node {node.name!r}: {node.op} does not fit inputs of "
            f"{shapes}: {_first_line(error)}"
        ) from error


def _layer(node: OperatorNode, width: int, block: Block) -> nn.Module:
    common: dict[str, Any] = {"device": "meta", "dtype": DTYPES[block.signature.dtype]}
    if node.op == "layer_norm":
        return nn.LayerNorm(width, **common)
    if node.op == "channel_norm":
        return nn.GroupNorm(1, width, **common)
    size = cast("int | str", node.params["out"])
    out = evaluate_size(size, {"D": block.signature.features})
    bias = bool(_option(node, "bias"))
    if node.op == "linear":
        return nn.Linear(width, out, bias=bias, **common)
    kernel_size = cast("int", _option(node, "kernel_size"))
    dilation = cast("int", _option(node, "dilation"))
    return nn.Conv2d(
        width,
        out,
        kernel_size,
        padding=dilation * (kernel_size - 1) // 2,
        dilation=dilation,
        groups=width if _option(node, "depthwise") else 1,
        bias=bias,
        **common,
    )


def _option(node: OperatorNode, name: str) -> Parameter:
    return node.params.get(name, OPERATORS[node.op].options[name][0])


def _draw(layer: nn.Linear | nn.Conv2d, generator: torch.Generator) -> None:
    fan_in = layer.weight[0].numel()
    bounds = {"weight": math.sqrt(3.0 / fan_in), "bias": 1.0 / math.sqrt(fan_in)}
    for name, parameter in layer.named_parameters():
        drawn = torch.empty(parameter.shape, dtype=torch.float32)
        parameter.copy_(drawn.uniform_(-bounds[name], bounds[name], generator=generator))


def _check_tensors(expected: Block, tensors: Mapping[str, Tensor]) -> None:
    wanted = {name: (tuple(p.shape), p.dtype) for name, p in expected.state_dict().items()}
    found = {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()}
    if wanted != found:
        names = [n for n in sorted(wanted | found) if wanted.get(n) != found.get(n)]
        detail = "; ".join(
            f"{n}: expected {wanted.get(n)}, found {found.get(n)}" for n in names[:4]
        )
        raise ValueError(f"its tensors do not fit its design: {detail}")


def _first_line(error: BaseException) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
    return (str(error).splitlines() or [type(error).__name__])[0]
