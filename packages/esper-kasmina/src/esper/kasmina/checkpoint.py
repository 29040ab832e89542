"""A whole run on disk: what a killed process needs to go on to the very same final weights.

The bed calls `write` with a mark of the run, and `read` to get one back in a new process.

    folder/checkpoint.json                 which moment is the current one; replaced last
    folder/step-000000120-5d1f0c2a/        that moment
        model.safetensors, lineage.json    the model, as `Bed.save` writes it
        run.json, run.safetensors          everything else, see `statetree`
        kernel-<sha256>.safetensors        the bytes of each admitted kernel
        <name>.json                        what the caller keeps beside it, of the same moment

Every file is named in `checkpoint.json` with its sha256. A process that dies while it writes leaves the
previous moment in place; the next `write` clears away what it left.
"""

import re
import shutil
import uuid
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

import safetensors.torch
import torch
from pydantic import Field
from torch import Tensor

from esper.contracts import (
    API_VERSION,
    ArtifactIntegrityError,
    CompiledKernelArtifact,
    ConfigError,
    Contract,
    HostError,
    NotFoundError,
    SeedState,
    Sha256,
    sha256_hex,
)
from esper.kasmina import files, statetree
from esper.kasmina.admission import Admission
from esper.kasmina.files import Content
from esper.kasmina.graft import Graft
from esper.kasmina.kernels import Block, build_block
from esper.kasmina.marks import HAS_BLOCK, Mark, SeedId
from esper.kasmina.modulestate import State
from esper.kasmina.saving import (
    LINEAGE_FILE,
    MANIFEST_FILE,
    MODEL_FILE,
    Lineage,
    read_lineage,
)
from esper.kasmina.sealed import UNSEALED, read_sealed, seal, text_of
from esper.kasmina.seed import Seed
from esper.kasmina.stages import StageLengths
from esper.kasmina.undo import Snapshot

FORMAT_VERSION = 1
RUN_FILE = "run.json"
RUN_TENSORS_FILE = "run.safetensors"

FOLDER = r"step-\d{9,}-[0-9a-f]{8}"
FILE = r"[a-z]+\.(json|safetensors)|kernel-[0-9a-f]{64}\.safetensors"
"""Names that a manifest may give: nothing outside its folder is ever read or removed."""

ADVICE = "give a folder that Bed.checkpoint wrote"


class Manifest(Contract):
    """The content of `checkpoint.json`."""

    format_version: Literal[1] = FORMAT_VERSION
    api_version: str = API_VERSION
    step: int = Field(ge=0)
    """Steps of the optimizer that the bed had counted."""
    folder: str = Field(pattern=f"^{FOLDER}$")
    files: dict[str, Sha256]
    stages: StageLengths
    content_sha256: Sha256
    """Over the canonical JSON of the other fields."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A run as it was read back."""

    step: int
    snapshot: Snapshot
    pending: Snapshot | None
    seeds: Mapping[SeedId, State]
    order: list[SeedId]
    sampling: State
    executed: frozenset[str]
    kernels: list[tuple[CompiledKernelArtifact, bytes]]
    lineage: Lineage

    def mark(self, seeds: Collection[Seed], admission: Admission) -> Mark:
        """Return the moment as a mark of these seeds, with a block for each that had one.

        A block that is in the host already, as after `load`, stays: the optimizer may hold it.

        Raises:
            HostError: if the run had other seeds.
            KernelRejectedError: if a kernel does not verify.

        """
        blank = Mark(
            step=self.step,
            snapshot=self.snapshot,
            pending=self.pending,
            seeds=self.seeds,
            order=self.order,
            sampling=self.sampling,
            blocks={},
            grafts={},
        )
        blank.check(seeds)
        records = {(record.layer_id, record.seed_idx): record for record in self.lineage.grafts}
        blocks: dict[SeedId, Block] = {}
        grafts: dict[SeedId, Graft] = {}
        for seed in seeds:
            state, kernel_id = (
                self.seeds[seed.seed_id]["state"],
                self.seeds[seed.seed_id]["kernel_id"],
            )
            if (record := records.get(seed.seed_id)) is not None:
                is_here = seed.graft is not None and seed.kernel_id == kernel_id
                graft = seed.graft if is_here else None
                if graft is None:
                    block = build_block(record.ir, record.signature, device=str(seed.device))
                    graft = Graft(block, seed.span, seed.device)
                blocks[seed.seed_id], grafts[seed.seed_id] = graft.block, graft
            elif SeedState(state) in HAS_BLOCK:
                blocks[seed.seed_id] = admission.load(kernel_id, seed.device)
        return replace(blank, blocks=blocks, grafts=grafts)


def write(
    folder: Path,
    mark: Mark,
    *,
    model_files: Mapping[str, Content],
    stages: StageLengths,
    executed: Collection[str],
    kernels: Collection[tuple[CompiledKernelArtifact, bytes]],
    beside: Mapping[str, bytes],
) -> None:
    """Make `mark` the current moment of the run in `folder`.

    Raises:
        ConfigError: if the folder holds a saved model, or `beside` names a file in another way.
        HostError: if something in the run's state cannot be written, and what; or if another process
            is writing there.
        OSError: if the folder cannot be written; what was there before stays usable.

    """
    if (folder / LINEAGE_FILE).exists():
        raise ConfigError(f"{folder} holds a saved model; choose another folder for the checkpoint")
    model = cast("dict[str, Tensor]", model_files[MODEL_FILE])
    run = _run_of(mark, model) | {
        "executed": sorted(executed),
        "kernels": [record.model_dump_json() for record, _ in kernels],
    }
    document, tensors = statetree.pack(run, name="run")
    contents: dict[str, Content] = dict(model_files)
    contents |= {RUN_FILE: document, RUN_TENSORS_FILE: tensors}
    if odd := [n for n in beside if n in contents or not re.fullmatch(r"[a-z]+\.json", n)]:
        raise ConfigError(f"{odd} cannot stand beside a checkpoint; name them like mine.json")
    contents |= beside
    contents |= {_kernel_file(record.kernel_id): blob for record, blob in kernels}
    name = f"step-{mark.step:09d}-{uuid.uuid4().hex[:8]}"
    folder.mkdir(parents=True, exist_ok=True)
    with files.only_writer(folder):
        moment = folder / name
        moment.mkdir()
        try:
            for file, content in contents.items():
                files.write_atomically(moment / file, content)
            draft = Manifest(
                step=mark.step,
                folder=name,
                files={file: files.sha256_of(moment / file) for file in sorted(contents)},
                stages=stages,
                content_sha256=UNSEALED,
            )
            manifest = seal(draft)
        except BaseException:
            shutil.rmtree(moment, ignore_errors=True)
            raise
        # From here on the manifest may name this moment, whatever is raised: it stays.
        files.write_atomically(folder / MANIFEST_FILE, text_of(manifest).encode())
        _clear(folder, keep=name)


def is_in(folder: Path) -> bool:
    """Tell whether `folder` holds a checkpoint."""
    return (folder / MANIFEST_FILE).exists()


def read(folder: Path) -> Checkpoint:
    """Read and verify the current moment of a run.

    Raises:
        NotFoundError: if a file is missing.
        ConfigError: if it was written by a newer version.
        ArtifactIntegrityError: if a file was changed or damaged; names it.

    """
    manifest = read_manifest(folder)
    moment = folder / manifest.folder
    contents = {name: _verified(moment / name, sha) for name, sha in manifest.files.items()}
    path = moment / RUN_FILE
    try:
        run = statetree.unpack(contents[RUN_FILE], contents[RUN_TENSORS_FILE])
        model = safetensors.torch.load(contents[MODEL_FILE])
        records = [CompiledKernelArtifact.model_validate_json(text) for text in run["kernels"]]
        for name, saved in run["now"]["host"]["parameters"].items():
            saved["value"] = model[name] if saved["value"] is None else saved["value"]
        return Checkpoint(
            step=manifest.step,
            snapshot=Snapshot(state=run["now"]),
            pending=None if run["pending"] is None else Snapshot(state=run["pending"]),
            seeds={(a, b): state for a, b, state in run["seeds"]},
            order=[(a, b) for a, b in run["order"]],
            sampling=run["sampling"],
            executed=frozenset(run["executed"]),
            kernels=[(record, contents[_kernel_file(record.kernel_id)]) for record in records],
            lineage=read_lineage(moment / LINEAGE_FILE),
        )
    except (ArtifactIntegrityError, KeyError, TypeError, ValueError) as error:
        raise ArtifactIntegrityError(f"{path} is damaged: {error!r}") from error


def check(folder: Path | str) -> None:
    """Pass silently if every file of the current moment is there and unchanged. Raises as `read`."""
    folder = Path(folder)
    manifest = read_manifest(folder)
    for name, sha256 in manifest.files.items():
        _verified(folder / manifest.folder / name, sha256)


def read_beside(folder: Path | str, name: str) -> bytes:
    """Return what the caller of `Bed.checkpoint` put beside the current moment under `name`, verified.

    Raises:
        NotFoundError: if there is no such file.
        ConfigError: if the checkpoint was written by a newer version.
        ArtifactIntegrityError: if a file was changed or damaged.

    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    if name not in manifest.files:
        raise NotFoundError(f"the checkpoint in {folder} has no {name}: another program wrote it")
    return _verified(folder / manifest.folder / name, manifest.files[name])


def read_manifest(folder: Path) -> Manifest:
    """Read and verify `checkpoint.json`.

    Raises:
        NotFoundError: if it is missing.
        ConfigError: if it was written by a newer version.
        ArtifactIntegrityError: if it was changed or damaged.

    """
    path = folder / MANIFEST_FILE
    manifest = read_sealed(path, Manifest, newest=FORMAT_VERSION, advice=ADVICE)
    if odd := [name for name in manifest.files if not re.fullmatch(FILE, name)]:
        raise ArtifactIntegrityError(f"{path} was changed: {odd} are not names of its files")
    return manifest


def _run_of(mark: Mark, model: Mapping[str, Tensor]) -> State:
    """Return what `mark` holds and the model's own file does not, as plain data."""
    now = dict(mark.snapshot.state)
    for part in (now, *([] if mark.pending is None else [mark.pending.state])):
        _check_scaler(part)
    host = dict(now["host"])
    host["parameters"] = {
        name: state | {"value": None} if _is_same(state["value"], model.get(name)) else state
        for name, state in host["parameters"].items()
    }
    return {
        "now": now | {"host": host},
        "pending": None if mark.pending is None else mark.pending.state,
        "seeds": [[*seed_id, dict(state)] for seed_id, state in mark.seeds.items()],
        "order": [list(seed_id) for seed_id in mark.order],
        "sampling": mark.sampling,
    }


def _check_scaler(state: State) -> None:
    if state["scaler"] is not None and state["scaler"]["others"]:
        raise HostError(
            "the gradient scaler holds what it found for another optimizer, which means nothing in "
            "another process; make the checkpoint after scaler.update()"
        )


def _is_same(value: Tensor, saved: Tensor | None) -> bool:
    return saved is not None and value.dtype == saved.dtype and torch.equal(value.cpu(), saved)


def _kernel_file(kernel_id: str) -> str:
    return f"kernel-{kernel_id}.safetensors"


def _verified(path: Path, sha256: str) -> bytes:
    data = files.read(path, advice=f"{MANIFEST_FILE} names it: the checkpoint is incomplete")
    if (found := sha256_hex(data)) != sha256:
        raise ArtifactIntegrityError(
            f"{path} was changed or cut: it has the sha256 {found[:12]}, {MANIFEST_FILE} says "
            f"{sha256[:12]}"
        )
    return data


def _clear(folder: Path, *, keep: str) -> None:
    """Remove earlier moments, and what a process that died may have left of one."""
    for path in folder.iterdir():
        if path.name != keep and re.fullmatch(FOLDER, path.name):
            # What cannot be removed costs space only; the checkpoint is complete.
            shutil.rmtree(path, ignore_errors=True)
