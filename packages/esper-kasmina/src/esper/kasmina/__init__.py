"""Kasmina, the seed layer for PyTorch: seeds in a host model, grafting, health, undo, saving."""

from esper.kasmina.kernels import (
    Block,
    UnpackedKernel,
    build_block,
    count_parameters,
    initialise_block,
    pack_kernel,
    unpack_kernel,
)

__all__ = [
    "Block",
    "UnpackedKernel",
    "build_block",
    "count_parameters",
    "initialise_block",
    "pack_kernel",
    "unpack_kernel",
]
