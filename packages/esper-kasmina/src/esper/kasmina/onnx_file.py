"""Writes a traced program as ONNX and has onnxruntime check that it answers as the host does.

The packages are no dependency of Esper: they come with the extra `esper-kasmina[onnx]`.
"""
# onnxruntime has no types, and torch leaves parts of its own open:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportAttributeAccessIssue=false

import importlib
import importlib.util
import logging
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from esper.contracts import ConfigError, HostError
from esper.contracts.words import install_hint
from esper.kasmina.calls import deviation
from esper.kasmina.tracing import Case, Traced

PACKAGES = ("onnx", "onnxscript", "onnxruntime")

TOLERANCE = 1e-5
"""Its kernels add in another order than torch's; 5e-7 was seen in small float32 models."""


def check_onnx_packages() -> None:
    """Pass silently if ONNX files can be written here.

    Raises:
        ConfigError: naming the packages that are missing.

    """
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise ConfigError(
            f"an ONNX export needs {', '.join(PACKAGES)}, and {', '.join(missing)} cannot be found; "
            f"{install_hint('esper-kasmina', 'onnx')}"
        )


def write_onnx(traced: Traced, path: Path) -> float:
    """Write the program to `path` and return its deviation; weights beyond 2 GB go beside it.

    Raises:
        HostError: if an operator has no counterpart, or onnxruntime does not answer as the host does.

    """
    if coarse := {str(t.dtype) for case in traced.cases for t in _floating(case) if t.itemsize < 4}:
        raise HostError(
            f"onnxruntime runs too few operators in {', '.join(sorted(coarse))} on a CPU to be checked "
            "there; export a copy of the host in float32"
        )
    try:
        with _errors_only("torch.onnx"), warnings.catch_warnings():
            # torch's own way of taking recurrent layers apart uses what torch warns of.
            warnings.filterwarnings("ignore", "_check_is_size will be removed", FutureWarning)
            warnings.filterwarnings("ignore", r"The \.grad attribute of a Tensor", UserWarning)
            exported: Any = torch.onnx.export(traced.program, dynamo=True, verbose=False)
            exported.save(str(path))
        session: Any = importlib.import_module("onnxruntime").InferenceSession(
            str(path), providers=["CPUExecutionProvider"]
        )
        return max(_compare(session, traced, case) for case in traced.cases)
    except HostError:
        raise
    except Exception as error:
        raise HostError(
            f"the host cannot be written as ONNX: {_words(error)}; export it without onnx=True, or as a "
            "copy in float32 if it is not"
        ) from error


@contextmanager
def _errors_only(name: str) -> Generator[None]:
    """Keep a logger from saying less than errors: torch tells of each torchvision operator it cannot find."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _floating(case: Case) -> list[Tensor]:
    return [t for t in (*case.call.tensors(), *case.outputs) if t.is_floating_point()]


def _compare(session: Any, traced: Traced, case: Case) -> float:
    names = [record.name for record in traced.record.inputs]
    values = (tensor.cpu().numpy() for tensor in case.call.tensors())
    given = dict(zip(names, values, strict=True))
    wanted = {entry.name for entry in session.get_inputs()}
    answers = session.run(None, {name: given[name] for name in names if name in wanted})
    found = [torch.from_numpy(np.asarray(answer)) for answer in answers]
    apart = deviation([output.cpu() for output in case.outputs], found)
    if apart > TOLERANCE:
        raise HostError(
            f"the ONNX file's outputs are off by {apart:.1e}, allowed is {TOLERANCE:.0e}; export the host "
            "without onnx=True"
        )
    return apart


def _words(error: BaseException) -> str:
    """Return the first line of the innermost cause; the others tell how torch got there."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
