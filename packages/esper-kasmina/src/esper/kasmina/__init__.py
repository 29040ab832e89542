"""Kasmina, the seed layer for PyTorch: seeds in a host model, grafting, health, undo, saving."""

from esper.kasmina.adapters import FIRST_OF_TUPLE, Adapter, register_adapter
from esper.kasmina.bed import Bed
from esper.kasmina.cache import CacheStatus
from esper.kasmina.costs import Cost, cost_of
from esper.kasmina.endorsements import key_id_of, verify_endorsement
from esper.kasmina.export import export
from esper.kasmina.exported import ExportManifest, verify_export
from esper.kasmina.kernels import (
    Block,
    build_block,
    count_parameters,
    initialise_block,
    probe_shape,
)
from esper.kasmina.library import builtin_blueprints, load_blueprint
from esper.kasmina.loading import load
from esper.kasmina.marks import Mark
from esper.kasmina.operators import LayerContext, register_operator, unregister_operator
from esper.kasmina.packing import UnpackedKernel, pack_kernel, unpack_kernel
from esper.kasmina.plan import Plan, plan
from esper.kasmina.probe import Example
from esper.kasmina.stages import StageLengths
from esper.kasmina.targets import Target
from esper.kasmina.wrapping import wrap

__all__ = [
    "FIRST_OF_TUPLE",
    "Adapter",
    "Bed",
    "Block",
    "CacheStatus",
    "Cost",
    "Example",
    "ExportManifest",
    "LayerContext",
    "Mark",
    "Plan",
    "StageLengths",
    "Target",
    "UnpackedKernel",
    "build_block",
    "builtin_blueprints",
    "cost_of",
    "count_parameters",
    "export",
    "initialise_block",
    "key_id_of",
    "load",
    "load_blueprint",
    "pack_kernel",
    "plan",
    "probe_shape",
    "register_adapter",
    "register_operator",
    "unpack_kernel",
    "unregister_operator",
    "verify_endorsement",
    "verify_export",
    "wrap",
]
