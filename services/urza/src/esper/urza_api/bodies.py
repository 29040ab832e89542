"""Ids in paths; what requests carry besides is in `esper.urza.wire`, for their senders too."""

from typing import Annotated

from fastapi import Path

Id = Annotated[str, Path(pattern=r"^[0-9a-f]{64}$", examples=["1" * 64])]
"""A sha256 in hexadecimal."""
