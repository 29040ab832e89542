"""Compiles a model for training, without what torch says of a CUDA toolkit that no GPU is there for."""

import logging
from typing import Any

import torch
from torch import nn

_LOGGER, _MESSAGE = "torch.utils.cpp_extension", "No CUDA runtime is found"


def compiled(model: nn.Module) -> Any:
    """Return `model` with its forward pass compiled on its first call."""
    logging.getLogger(_LOGGER).addFilter(_is_of_interest)
    return torch.compile(model)


def _is_of_interest(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(_MESSAGE)
