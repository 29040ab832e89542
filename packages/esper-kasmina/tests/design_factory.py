"""Makes what the tests of blueprints and kernels need: designs, blocks with weights, inputs."""
# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false

from typing import Any

import torch
from torch import Tensor

from esper.contracts import BlueprintIR, KernelSignature, OperatorNode, SiteKind
from esper.kasmina import Block, build_block, initialise_block

DTYPES = ("float64", "float32", "bfloat16", "float16")
TOLERANCES = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 5e-2, "float16": 5e-3}
"""Differences that rounding explains, relative to values of about 1."""


def node(name: str, op: str, *inputs: str, **params: Any) -> OperatorNode:
    return OperatorNode(name=name, op=op, inputs=inputs or ("input",), params=params)


def design(*nodes: OperatorNode, kind: SiteKind = SiteKind.FEATURES) -> BlueprintIR:
    return BlueprintIR(name="design", kind=kind, nodes=nodes)


def signature_for(ir: BlueprintIR, features: int = 4, dtype: str = "float32") -> KernelSignature:
    """Return what a block is built for; a widening reads as many features as it adds to."""
    read = features if ir.widens else None
    return KernelSignature.model_validate(
        {"kind": ir.kind, "features": features, "inputs": read, "dtype": dtype}
    )


def built(ir: BlueprintIR, features: int = 4, dtype: str = "float32", seed: int = 0) -> Block:
    block = build_block(ir, signature_for(ir, features, dtype))
    initialise_block(block, torch.Generator().manual_seed(seed))
    return block


def wake(block: Block) -> Block:
    """Move every weight a little, so that the block computes something."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter) * 0.3)
    return block


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def normal_like(shape: tuple[int, ...], block: Block, seed: int = 0) -> Tensor:
    """Inputs of the type that `block` is for."""
    return normal(*shape, seed=seed).to(next(block.parameters()))
