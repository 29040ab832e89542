"""Urabrask, the crucible: measures every kernel, passes or rejects it."""

from esper.urabrask.crucible import judge
from esper.urabrask.keys import SigningKey, ephemeral_key, load_or_create_key
from esper.urabrask.worker import Urabrask, make_worker

__all__ = [
    "SigningKey",
    "Urabrask",
    "ephemeral_key",
    "judge",
    "load_or_create_key",
    "make_worker",
]
