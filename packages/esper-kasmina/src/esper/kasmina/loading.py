"""Brings a saved model back: a fresh host of the same architecture grows again what it had grown.

Reads what `saving.write` left in a folder and hands back a bed; this module implements the port
`esper.contracts.SavedBeds`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor, nn

from esper.contracts import (
    ArtifactIntegrityError,
    BlueprintIR,
    HostError,
    Site,
)
from esper.kasmina import checkpoint
from esper.kasmina.bed import Bed
from esper.kasmina.checkpoint import check, read_beside
from esper.kasmina.files import read
from esper.kasmina.graft import child_name, is_graft_name
from esper.kasmina.kernels import build_block
from esper.kasmina.plan import Plan, plan, plan_sites
from esper.kasmina.saving import (
    ADVICE,
    LINEAGE_FILE,
    MODEL_FILE,
    GraftRecord,
    Lineage,
    hash_state,
    read_lineage,
    state_of,
)
from esper.kasmina.seed import GRAFTED
from esper.kasmina.stages import StageLengths
from esper.kasmina.wrapping import SAMPLE_EVERY_STEPS, carry_out

__all__ = ["check", "load", "read_beside"]


def load(
    model: nn.Module,
    folder: Path | str,
    *,
    blueprints: Sequence[BlueprintIR] = (),
    stages: StageLengths | None = None,
    sample_every_steps: int | None = SAMPLE_EVERY_STEPS,
    sample_compiled: bool = False,
) -> Bed:
    """Grow `model`, a fresh host, into what `Bed.save` wrote into `folder`; outputs are identical.

    Everything is checked before the host is touched. Seeds that were not grafted yet are dormant; one
    that was before its verdict can be fossilized but not undone, since a saved model does not hold
    what the host was before. `Bed.checkpoint` does: load from its folder gives the model too, and
    then `Bed.resume` all the rest.

    Args:
        model: a host like the one that was saved; its own weights do not matter.
        folder: what `Bed.save` or `Bed.checkpoint` wrote.
        blueprints: as for `wrap`.
        stages: as for `wrap`; with a checkpoint, by default those of the run.
        sample_every_steps: as for `wrap`.
        sample_compiled: as for `wrap`.

    Raises:
        NotFoundError: if a file is missing.
        ConfigError: if it was written by a newer version.
        ArtifactIntegrityError: if a file was changed or damaged.
        HostError: if `model` is not such a host, or is already wrapped.

    """
    folder = Path(folder)
    if not (folder / LINEAGE_FILE).exists() and checkpoint.is_in(folder):
        manifest = checkpoint.read_manifest(folder)
        stages = stages or manifest.stages
        folder = folder / manifest.folder
    lineage = read_lineage(folder / LINEAGE_FILE)
    state = _read_state(folder / MODEL_FILE, lineage)
    found = _plan(model, lineage)
    _check_host(model, found, state, lineage)
    bed = carry_out(
        model,
        found,
        blueprints=blueprints,
        stages=stages,
        sample_every_steps=sample_every_steps,
        sample_compiled=sample_compiled,
    )
    for record in lineage.grafts:
        seed = bed.seed((record.layer_id, record.seed_idx))
        bed.adopt(seed, record, build_block(record.ir, record.signature, device=str(seed.device)))
    model.load_state_dict(state, strict=True)
    return bed


def _read_state(path: Path, lineage: Lineage) -> dict[str, Tensor]:
    try:
        state = safetensors.torch.load(read(path, advice=ADVICE))
    except SafetensorError as error:
        raise ArtifactIntegrityError(f"{path} is damaged: {error}") from error
    if (found := hash_state(state)) != lineage.weights_sha256:
        raise ArtifactIntegrityError(
            f"{path} was changed: its weights have the sha256 {found[:12]}, {LINEAGE_FILE} says "
            f"{lineage.weights_sha256[:12]}"
        )
    return state


def _plan(model: nn.Module, lineage: Lineage) -> Plan:
    """Plan the sites that the saved model had."""
    names = [site for site in lineage.sites if isinstance(site, str)]
    if names:
        return plan(model, names)
    return plan_sites(model, [site for site in lineage.sites if isinstance(site, Site)])


def _check_host(
    model: nn.Module, found: Plan, state: Mapping[str, Tensor], lineage: Lineage
) -> None:
    """Pass silently if `state` belongs to `model` grown as the lineage says; touches nothing."""
    problems = list(found.problems)
    sites = {site.layer_id: site for site in found.sites}
    expected = {n: _form(v) for n, v in state_of(model).items() if not is_graft_name(n)}
    for record in lineage.grafts:
        site = sites.get(record.layer_id)
        if problem := _graft_problem(record, site):
            problems.append(problem)
        elif site is not None:
            child = child_name(record.seed_idx, site)
            prefix = f"{record.site}.{child}." if record.site else f"{child}."
            expected |= {n: _form(v) for n, v in state.items() if n.startswith(prefix)}
    saved = {name: _form(value) for name, value in state.items()}
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


def _form(value: Tensor) -> str:
    """Return type and shape in words: a block runs in the type that it was saved in."""
    return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"


def _graft_problem(record: GraftRecord, site: Site | None) -> str | None:
    if record.state not in GRAFTED:
        return f"the block at {record.site!r} is saved in the state {record.state}"
    if site is None or site.name != record.site or record.seed_idx >= site.num_places:
        return f"the block at {record.site!r} says seed {(record.layer_id, record.seed_idx)}"
    return None
