"""Tezzeret, the forge: turns a blueprint into kernels for concrete signatures."""

from esper.tezzeret.forge import forge_kernel, seed_of
from esper.tezzeret.worker import Tezzeret, make_worker

__all__ = ["Tezzeret", "forge_kernel", "make_worker", "seed_of"]
