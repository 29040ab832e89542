"""Watching must never disturb the host: what goes wrong while a seed looks becomes one line in the log.

The hook, the seeds and the taps wrap their looking in `unnoticed`.
"""

from collections.abc import Generator
from contextlib import contextmanager
from functools import lru_cache

import torch

from esper.contracts import EsperError, get_logger

_log = get_logger("kasmina")

_FAILURES = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, EsperError)
"""What tensor code raises for features of a kind that it did not expect."""


@contextmanager
def unnoticed(where: str) -> Generator[None]:
    """Within the context, a failure is logged, once for each kind, and the context left."""
    try:
        yield
    except _FAILURES as error:
        _warn(where, f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}")


def in_function_transform() -> bool:
    """Tell whether `torch.func` (`grad`, `vmap`, …) is at work, whose tensors must not be kept."""
    # Not public, but it is what torch's own hooks ask (torch 2.2 to 2.15).
    return torch._C._functorch.peek_interpreter_stack() is not None  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue, reportUnknownMemberType, reportUnknownVariableType]


@lru_cache(maxsize=256)
def _warn(where: str, error: str) -> None:
    _log.warning(
        "site_not_seen", layer=where, error=error, effect="no health and no isolated training there"
    )
