"""Writes a grown model to a folder: its state as safetensors, and how it grew as JSON.

The bed calls `write`; `loading.load` reads both files back onto a fresh host.
"""

import hashlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, cast

import safetensors.torch
import torch
from pydantic import Field
from torch import Tensor, nn

from esper.contracts import (
    API_VERSION,
    BlueprintIR,
    Contract,
    HostError,
    KernelSignature,
    SeedState,
    Sha256,
    canonical_json,
    sha256_hex,
)
from esper.kasmina.seed import Seed

LINEAGE_FORMAT_VERSION = 1
MODEL_FILE = "model.safetensors"
LINEAGE_FILE = "lineage.json"


class GraftRecord(Contract):
    """One block that is part of the saved model; its weights are in the model's state."""

    site: str
    layer_id: int = Field(ge=0)
    state: SeedState
    alpha: float = Field(ge=0.0, le=1.0)
    kernel_id: Sha256
    blueprint_id: Sha256
    signature: KernelSignature
    ir: BlueprintIR


class Lineage(Contract):
    """The content of `lineage.json`."""

    format_version: Literal[1] = LINEAGE_FORMAT_VERSION
    api_version: str = API_VERSION
    sites: tuple[str, ...]
    """Every place that had a seed, grown or not, in order."""
    grafts: tuple[GraftRecord, ...]
    weights_sha256: Sha256
    """As `Bed.weights_sha256()`: over names, shapes, types and bytes of the model's whole state."""
    content_sha256: Sha256
    """Over the canonical JSON of the other fields."""

    def expected_content_sha256(self) -> str:
        """Return the hash that this lineage must carry."""
        return sha256_hex(canonical_json(self.model_dump(mode="json", exclude={"content_sha256"})))


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the model's state by name, in order of the names.

    Raises:
        HostError: if an entry is not a tensor (a module with `get_extra_state`).

    """
    state = cast("dict[str, object]", model.state_dict())
    result: dict[str, Tensor] = {}
    for name in sorted(state):
        value = state[name]
        if not isinstance(value, Tensor):
            raise HostError(
                f"{name!r} in the host's state is a {type(value).__name__}; only tensors can be "
                "hashed and saved; keep it out of get_extra_state()"
            )
        result[name] = value.detach()
    return result


def hash_state(state: Mapping[str, Tensor]) -> str:
    """Return the sha256 over names, types, shapes and bytes; the same on every device."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].cpu().contiguous()
        digest.update(canonical_json({name: [str(value.dtype), list(value.shape)]}))
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write(folder: Path, model: nn.Module, sites: Sequence[str], seeds: Sequence[Seed]) -> None:
    """Write the state of `model` and the lineage of the grafted `seeds`, each file atomically."""
    # Clones, because safetensors refuses tensors that share memory, as tied weights do. The fresh
    # host ties its own again.
    state = {name: value.cpu().clone().contiguous() for name, value in state_of(model).items()}
    draft = Lineage(
        sites=tuple(sites),
        grafts=tuple(_record(seed) for seed in seeds),
        weights_sha256=hash_state(state),
        content_sha256="0" * 64,
    )
    lineage = draft.model_copy(update={"content_sha256": draft.expected_content_sha256()})
    folder.mkdir(parents=True, exist_ok=True)
    _write_atomically(folder / MODEL_FILE, safetensors.torch.save(state))
    _write_atomically(folder / LINEAGE_FILE, (lineage.model_dump_json(indent=2) + "\n").encode())


def _record(seed: Seed) -> GraftRecord:
    assert seed.block is not None
    assert seed.kernel_id is not None
    return GraftRecord(
        site=seed.site.name,
        layer_id=seed.site.layer_id,
        state=seed.state,
        alpha=seed.alpha,
        kernel_id=seed.kernel_id,
        blueprint_id=seed.block.ir.content_hash(),
        signature=seed.block.signature,
        ir=seed.block.ir,
    )


def _write_atomically(path: Path, data: bytes) -> None:
    """Write all of it or nothing: readers see the old file or the new one."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
