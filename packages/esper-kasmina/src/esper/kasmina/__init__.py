"""Kasmina, the seed layer for PyTorch: seeds in a host model, grafting, health, undo, saving."""

from esper.kasmina.bed import Bed, wrap
from esper.kasmina.endorsements import key_id_of, verify_endorsement
from esper.kasmina.kernels import (
    Block,
    UnpackedKernel,
    build_block,
    count_parameters,
    initialise_block,
    pack_kernel,
    probe_shape,
    unpack_kernel,
)
from esper.kasmina.library import builtin_blueprints
from esper.kasmina.loading import load
from esper.kasmina.plan import Plan, Target, plan
from esper.kasmina.stages import StageLengths

__all__ = [
    "Bed",
    "Block",
    "Plan",
    "StageLengths",
    "Target",
    "UnpackedKernel",
    "build_block",
    "builtin_blueprints",
    "count_parameters",
    "initialise_block",
    "key_id_of",
    "load",
    "pack_kernel",
    "plan",
    "probe_shape",
    "unpack_kernel",
    "verify_endorsement",
    "wrap",
]
