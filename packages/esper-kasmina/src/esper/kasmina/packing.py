"""Turns a block into the bytes of a kernel and back.

Tezzeret packs; Urabrask and Kasmina's admission unpack what the library stores. Bytes are safetensors
whose one metadata key holds the design as JSON, so nothing is ever unpickled.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import safetensors.torch
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from torch import Tensor, nn

from esper.contracts import (
    BlueprintError,
    BlueprintIR,
    KernelRejectedError,
    KernelSignature,
    canonical_json,
)
from esper.kasmina.kernels import (
    Block,
    KernelHeader,
    Template,
    first_line,
    template_of_header,
)

METADATA_KEY = "esper.kernel"
"""The only metadata key: safetensors writes several in random order, one is deterministic."""


@dataclass(frozen=True, kw_only=True)
class UnpackedKernel:
    """A kernel ready to run: the design, what it was built for, and the block with its weights."""

    ir: BlueprintIR
    signature: KernelSignature
    block: Block
    blueprint_id: str
    num_parameters: int


def pack_kernel(ir: BlueprintIR, signature: KernelSignature, block: nn.Module) -> bytes:
    """Return the bytes of a kernel: equal content gives equal bytes, in any process."""
    header = canonical_json(KernelHeader(ir=ir, signature=signature)).decode()
    tensors = {
        name: value.detach().cpu().contiguous()
        for name, value in cast("dict[str, Tensor]", block.state_dict()).items()
    }
    return safetensors.torch.save(tensors, metadata={METADATA_KEY: header})


def unpack_kernel(blob: bytes, *, device: str | None = None) -> UnpackedKernel:
    """Read a kernel's bytes; strict, and never executes anything that they contain.

    `device` overrides the signature's.

    Raises:
        KernelRejectedError: if the bytes are not exactly a kernel that this version understands, or
            its design uses an operator that is not registered in this process.

    """
    template = _template_of(_read_header_text(blob))
    target = torch.device(device or template.header.signature.device)
    try:
        tensors = safetensors.torch.load(blob)
        _check_tensors(template.state, tensors)
        # Copies, because torch allocates with an alignment that these bytes need not have, and
        # vectorised sums may depend on it in their last bit.
        block = template.cast_from(
            {name: value.to(target, copy=True) for name, value in tensors.items()}
        )
    except (SafetensorError, RuntimeError, KeyError, ValueError) as error:
        raise KernelRejectedError(f"the bytes are not a usable kernel: {error}") from error
    return UnpackedKernel(
        ir=template.header.ir,
        signature=template.header.signature,
        block=block,
        blueprint_id=template.blueprint_id,
        num_parameters=template.num_parameters,
    )


def read_header(blob: bytes) -> KernelHeader:
    """Read only the design and signature of a kernel's bytes.

    Raises:
        KernelRejectedError: if they are missing or malformed.

    """
    try:
        return KernelHeader.model_validate_json(_read_header_text(blob))
    except ValidationError as error:
        raise _not_a_kernel(error) from error


def _read_header_text(blob: bytes) -> str:
    try:
        length = int.from_bytes(blob[:8], "little")
        if not 2 <= length <= len(blob) - 8:
            raise ValueError(f"a header of {length} bytes in {len(blob)} bytes")
        fields = json.loads(blob[8 : 8 + length])
        metadata = fields["__metadata__"]
        if list(metadata) != [METADATA_KEY]:
            raise ValueError(f"metadata keys {list(metadata)}, expected [{METADATA_KEY!r}]")
        text = metadata[METADATA_KEY]
        if not isinstance(text, str):
            raise TypeError(f"metadata of type {type(text).__name__}")
        return text
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _not_a_kernel(error) from error


def _template_of(text: str) -> Template:
    try:
        return template_of_header(text)
    except BlueprintError as error:
        raise KernelRejectedError(f"the bytes are not a usable kernel: {error}") from error
    except (ValueError, RecursionError) as error:  # pydantic's error is a ValueError
        raise _not_a_kernel(error) from error


def _not_a_kernel(error: Exception) -> KernelRejectedError:
    return KernelRejectedError(
        f"the bytes are not a kernel ({first_line(error)}); "
        "expected safetensors written by pack_kernel"
    )


def _check_tensors(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    wanted = {name: (tuple(p.shape), p.dtype) for name, p in expected.items()}
    found = {name: (tuple(t.shape), t.dtype) for name, t in tensors.items()}
    if wanted != found:
        names = [n for n in sorted(wanted | found) if wanted.get(n) != found.get(n)]
        detail = "; ".join(
            f"{n}: expected {wanted.get(n)}, found {found.get(n)}" for n in names[:4]
        )
        raise ValueError(f"its tensors do not fit its design: {detail}")
