"""Brings a saved model back: a fresh host of the same architecture grows again what it had grown.

Reads what `saving.write` left in a folder and hands back a bed.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
from pydantic import ValidationError
from safetensors import SafetensorError
from torch import Tensor, nn

from esper.contracts import (
    API_VERSION,
    ArtifactIntegrityError,
    ConfigError,
    HostError,
    NotFoundError,
    SeedState,
)
from esper.kasmina.bed import Bed
from esper.kasmina.graft import CHILD
from esper.kasmina.kernels import build_block
from esper.kasmina.plan import plan
from esper.kasmina.saving import (
    LINEAGE_FILE,
    LINEAGE_FORMAT_VERSION,
    MODEL_FILE,
    GraftRecord,
    Lineage,
    hash_state,
    state_of,
)
from esper.kasmina.seed import GRAFTED
from esper.kasmina.stages import StageLengths
from esper.kasmina.wrapping import wrap


def load(
    model: nn.Module,
    folder: Path | str,
    *,
    stages: StageLengths | None = None,
    sample_every_steps: int = 8,
) -> Bed:
    """Grow `model`, a fresh host, into what `Bed.save` wrote into `folder`; outputs are identical.

    Everything is checked before the host is touched. Seeds that were not grafted yet are dormant; one
    that was before its verdict can be fossilized but not undone, since no snapshot is saved.

    Raises:
        NotFoundError: if a file is missing.
        ConfigError: if it was written by a newer version.
        ArtifactIntegrityError: if a file was changed or damaged.
        HostError: if `model` is not such a host, or is already wrapped.

    """
    folder = Path(folder)
    lineage = read_lineage(folder / LINEAGE_FILE)
    state = _read_state(folder / MODEL_FILE, lineage)
    _check_host(model, state, lineage)
    bed = wrap(model, targets=lineage.sites, stages=stages, sample_every_steps=sample_every_steps)
    for record in lineage.grafts:
        seed = bed.seed((record.layer_id, 0))
        device = str(seed.layer.get_parameter("weight").device)
        bed.adopt(seed, record, build_block(record.ir, seed.site.signature, device=device))
    model.load_state_dict(state, strict=True)
    return bed


def read_lineage(path: Path) -> Lineage:
    """Read and verify `lineage.json`.

    Raises:
        NotFoundError: if it is missing.
        ConfigError: if it was written by a newer version.
        ArtifactIntegrityError: if it was changed or damaged.

    """
    data = _read(path)
    try:
        fields = json.loads(data)
        version = fields["format_version"]
        api_version = fields["api_version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArtifactIntegrityError(
            f"{path} is damaged: it is not a lineage ({error!r})"
        ) from error
    if version != LINEAGE_FORMAT_VERSION or api_version != API_VERSION:
        raise ConfigError(
            f"{path} has format version {version!r} of API {api_version!r}; this installation reads "
            f"version {LINEAGE_FORMAT_VERSION} of {API_VERSION!r}; use the one that wrote it, or a newer"
        )
    try:
        lineage = Lineage.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ArtifactIntegrityError(f"{path} is damaged: {where}: {first['msg']}") from error
    if lineage.content_sha256 != lineage.expected_content_sha256():
        raise ArtifactIntegrityError(
            f"{path} was changed: its content does not have the sha256 that it carries"
        )
    return lineage


def _read_state(path: Path, lineage: Lineage) -> dict[str, Tensor]:
    try:
        state = safetensors.torch.load(_read(path))
    except SafetensorError as error:
        raise ArtifactIntegrityError(f"{path} is damaged: {error}") from error
    if (found := hash_state(state)) != lineage.weights_sha256:
        raise ArtifactIntegrityError(
            f"{path} was changed: its weights have the sha256 {found[:12]}, {LINEAGE_FILE} says "
            f"{lineage.weights_sha256[:12]}"
        )
    return state


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise NotFoundError(f"{path} does not exist; give a folder that Bed.save wrote") from None


def _check_host(model: nn.Module, state: Mapping[str, Tensor], lineage: Lineage) -> None:
    """Pass silently if `state` belongs to `model` grown as the lineage says; touches nothing."""
    found = plan(model, lineage.sites)
    found.check()
    sites = {site.name: site for site in found.sites}
    expected = {name: tuple(value.shape) for name, value in state_of(model).items()}
    problems = [f"the site {name!r} is missing" for name in lineage.sites if name not in sites]
    for record in lineage.grafts:
        problems.extend(_graft_problems(record, lineage))
        prefix = f"{record.site}.{CHILD}."
        expected |= {name: tuple(v.shape) for name, v in state.items() if name.startswith(prefix)}
    saved = {name: tuple(value.shape) for name, value in state.items()}
    for name in sorted(expected.keys() | saved.keys()):
        if expected.get(name) != saved.get(name):
            problems.append(
                f"{name}: the host has {expected.get(name)}, saved is {saved.get(name)}"
            )
    if problems:
        rest = f"\n- and {len(problems) - 8} more" if len(problems) > 8 else ""
        raise HostError(
            "the saved model grew on a different host; build the one that it was saved from:\n- "
            + "\n- ".join(problems[:8])
            + rest
        )


def _graft_problems(record: GraftRecord, lineage: Lineage) -> list[str]:
    if record.state not in GRAFTED or record.state is SeedState.DORMANT:
        return [f"the block at {record.site!r} is saved in the state {record.state}"]
    if record.layer_id >= len(lineage.sites) or lineage.sites[record.layer_id] != record.site:
        return [f"the block at {record.site!r} says layer {record.layer_id}"]
    return []
