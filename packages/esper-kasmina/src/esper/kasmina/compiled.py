"""What a growing host must tell `torch.compile`.

Compiled code does not look whether a hook was added since (torch 2.15), so after a change of structure
its graphs are forgotten and made anew on the next call; a ramp of alpha never comes here.
"""

import sys

import torch


def forget_graphs() -> None:
    """Have everything that was compiled in this process compiled again when it is next called."""
    # Not loaded means that nothing was compiled; loading it would take seconds.
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
