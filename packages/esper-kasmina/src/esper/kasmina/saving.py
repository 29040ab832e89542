"""A grown model on disk: its state as safetensors, and how it grew as JSON.

The bed calls `write`; `loading.load` brings both files back onto a fresh host. A checkpoint holds the
same two files.
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from esper.contracts import (
    API_VERSION,
    BlueprintIR,
    ConfigError,
    Contract,
    HostError,
    KernelSignature,
    SeedState,
    Sha256,
    Site,
    canonical_json,
)
from esper.contracts.words import type_of
from esper.kasmina.files import Apart, Content, write_together
from esper.kasmina.sealed import UNSEALED, read_sealed, seal, text_of
from esper.kasmina.seed import GRAFTED, Seed

LINEAGE_FORMAT_VERSION = 2
MODEL_FILE = "model.safetensors"
LINEAGE_FILE = "lineage.json"
MANIFEST_FILE = "checkpoint.json"
"""In the folder of a checkpoint."""

ADVICE = "give a folder that Bed.save or Bed.checkpoint wrote"


class GraftRecord(Contract):
    """One block that is part of the saved model; its weights are in the model's state."""

    site: str
    layer_id: int = Field(ge=0)
    seed_idx: int = Field(default=0, ge=0)
    state: SeedState
    alpha: float = Field(ge=0.0, le=1.0)
    kernel_id: Sha256
    blueprint_id: Sha256
    signature: KernelSignature
    """What the kernel was built for."""
    ir: BlueprintIR


class Lineage(Contract):
    """The content of `lineage.json`."""

    format_version: Literal[1, 2] = LINEAGE_FORMAT_VERSION
    """1 knew only names of sites, and one seed at each."""
    api_version: str = API_VERSION
    sites: tuple[Site | str, ...]
    """Every place that had a seed, grown or not, in order."""
    grafts: tuple[GraftRecord, ...]
    """In the order in which their layers hold them."""
    weights_sha256: Sha256
    """As `Bed.weights_sha256()`: over names, shapes, types and bytes of the model's whole state."""
    content_sha256: Sha256
    """Over the canonical JSON of the other fields."""


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
                f"{name!r} in the host's state is {type_of(value)}; only tensors can be "
                "hashed and saved; keep it out of get_extra_state()"
            )
        result[name] = value.detach()
    return result


def hash_state(state: Mapping[str, Tensor]) -> str:
    """Return the sha256 over names, types, shapes and bytes; the same on every device."""
    digest = hashlib.sha256()
    for name in sorted(state):
        value = _dense(state[name])
        digest.update(canonical_json({name: [str(value.dtype), list(value.shape)]}))
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write(folder: Path, model: nn.Module, sites: Sequence[Site], seeds: Collection[Seed]) -> None:
    """Write the state of `model` and the lineage of its grafted `seeds`, each file atomically.

    Raises:
        ConfigError: if the folder holds a checkpoint.
        HostError: as `render`.

    """
    if (folder / MANIFEST_FILE).exists():
        raise ConfigError(f"{folder} holds a checkpoint; choose another folder for the model")
    folder.mkdir(parents=True, exist_ok=True)
    write_together(folder, render(model, sites, seeds))


def render(model: nn.Module, sites: Sequence[Site], seeds: Collection[Seed]) -> dict[str, Content]:
    """Return the content of each file that `write` writes, by name; on a CPU that of the live tensors.

    Raises:
        HostError: if the host's state holds something other than tensors, or the bed was unwrapped.

    """
    if not sites:
        raise HostError("this bed was unwrapped; wrap() the host again before it is saved")
    apart = Apart()  # tied weights share memory; the fresh host ties its own again
    state = {name: apart.take(_dense(value)) for name, value in state_of(model).items()}
    draft = Lineage(
        sites=tuple(sites),
        grafts=tuple(_record(seed) for seed in in_order(seeds)),
        weights_sha256=hash_state(state),
        content_sha256=UNSEALED,
    )
    return {
        MODEL_FILE: state,
        LINEAGE_FILE: text_of(seal(draft)).encode(),
    }


def _dense(value: Tensor) -> Tensor:
    """Return its numbers as they are read, one after the other, in the CPU's memory."""
    return value.resolve_conj().resolve_neg().cpu().contiguous()


def in_order(seeds: Collection[Seed]) -> list[Seed]:
    """Return the seeds whose blocks are in the host, in the order in which their layers hold them."""
    places = {
        id(child): place
        for layer in {seed.layer for seed in seeds if seed.graft is not None}
        for place, child in enumerate(layer.children())
    }
    grafted = [seed for seed in seeds if seed.state in GRAFTED]
    return sorted(grafted, key=lambda seed: (seed.seed_id[0], places[id(seed.graft)]))


def _record(seed: Seed) -> GraftRecord:
    assert seed.block is not None
    assert seed.kernel_id is not None
    return GraftRecord(
        site=seed.site.name,
        layer_id=seed.site.layer_id,
        seed_idx=seed.seed_id[1],
        state=seed.state,
        alpha=seed.alpha,
        kernel_id=seed.kernel_id,
        blueprint_id=seed.block.ir.content_hash(),
        signature=seed.block.signature,
        ir=seed.block.ir,
    )


def read_lineage(path: Path) -> Lineage:
    """Read and verify `lineage.json`.

    Raises:
        NotFoundError: if it is missing.
        ConfigError: if it was written by a newer version.
        ArtifactIntegrityError: if it was changed or damaged.

    """
    return read_sealed(path, Lineage, newest=LINEAGE_FORMAT_VERSION, advice=ADVICE)
