"""Kasmina, the seed layer for PyTorch: seeds in a host model, grafting, health, undo, saving."""

from esper.kasmina.endorsements import key_id_of, verify_endorsement
from esper.kasmina.kernels import (
    Block,
    UnpackedKernel,
    build_block,
    count_parameters,
    initialise_block,
    pack_kernel,
    unpack_kernel,
)
from esper.kasmina.library import builtin_blueprints

__all__ = [
    "Block",
    "UnpackedKernel",
    "build_block",
    "builtin_blueprints",
    "count_parameters",
    "initialise_block",
    "key_id_of",
    "pack_kernel",
    "unpack_kernel",
    "verify_endorsement",
]
