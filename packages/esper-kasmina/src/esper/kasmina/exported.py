"""What an export folder holds, as `export.json` tells it, and the check that it still holds just that.

`export` writes the manifest last; whoever receives a folder calls `verify_export` before loading it, or
compares the sha256 of each file with the manifest's in any other language.
"""

import hashlib
import json
import re
import zipfile
from pathlib import Path
from typing import Literal

from pydantic import Field

from esper.contracts import (
    API_VERSION,
    ArtifactIntegrityError,
    Contract,
    NotFoundError,
    Sha256,
)
from esper.kasmina.sealed import read_sealed

EXPORT_FORMAT_VERSION = 1
PROGRAM_FILE = "model.pt2"
TRAINING_PROGRAM_FILE = "model_train.pt2"
ONNX_FILE = "model.onnx"
MANIFEST_FILE = "export.json"

OPTIONAL_FILES = frozenset({TRAINING_PROGRAM_FILE, ONNX_FILE, f"{ONNX_FILE}.data"})
"""What some exports have; beside a manifest that does not name it, such a file is a stranger's."""

_READ_AT_ONCE = 1 << 20

_RECORDS = re.compile(
    r"[^/]+/(archive_format|archive_version|byteorder|\.data/version|\.data/serialization_id"
    r"|models/model\.json|data/sample_inputs/model\.pt"
    r"|data/weights/(weight_\d+|model_weights_config\.json)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json))"
)
"""The records of a program that torch reads without unpickling; sample inputs only if empty."""


class TensorRecord(Contract):
    """One tensor that goes into a program or comes out of it."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    """Extents; a text names an axis of `ProgramRecord.axes`, or is a formula of such names."""


class AxisRecord(Contract):
    """An extent that may differ from call to call, such as the number of rows in a batch."""

    name: str
    least: int
    most: int | None
    """None: as many as fit into memory."""
    tried: tuple[int, ...]
    """With these the program was run against the host; the first is the example's own."""


class ProgramRecord(Contract):
    """One traced program, as it was found to be when it was written and read back."""

    file: str
    mode: Literal["eval", "train"]
    inputs: tuple[TensorRecord, ...]
    outputs: tuple[TensorRecord, ...]
    axes: tuple[AxisRecord, ...]
    deviation: float
    """Largest difference from the host's outputs, relative to the largest of these (at least 1)."""
    requires: tuple[str, ...]
    """What a process must import beside torch before it loads this: namespaces of operators, types."""
    notes: tuple[str, ...]
    """What the program cannot do that the host can, in sentences."""


class FileRecord(Contract):
    """One file of the folder."""

    name: str
    sha256: Sha256
    size_bytes: int = Field(ge=0)


class ExportManifest(Contract):
    """The content of `export.json`."""

    format_version: Literal[1] = EXPORT_FORMAT_VERSION
    api_version: str = API_VERSION
    torch_version: str
    """Which torch traced it; a program is promised to load in this version and, by torch, in few others."""
    weights_sha256: Sha256
    """As `Bed.weights_sha256()` and in `lineage.json`."""
    tolerance: float
    """What `deviation` may be for types of 32 bits and more."""
    programs: tuple[ProgramRecord, ...]
    onnx_deviation: float | None
    """As a program's `deviation`, measured with onnxruntime; None without an ONNX file."""
    files: tuple[FileRecord, ...]
    """Every other file of the export, in order of their names."""
    content_sha256: Sha256
    """Over the canonical JSON of the other fields."""


def verify_export(folder: Path | str) -> ExportManifest:
    """Return the manifest of `folder` if every file is what the export wrote.

    It tells accidents and careless changes. Somebody who rewrites the manifest too is told only by
    comparing `content_sha256` with the one that `export` returned. Programs that could make
    `torch.export.load` unpickle something are refused in any case.

    Raises:
        NotFoundError: if a file is missing.
        ConfigError: if the manifest was written by a newer version.
        ArtifactIntegrityError: if a file was changed, damaged or added.

    """
    folder = Path(folder)
    manifest = read_sealed(
        folder / MANIFEST_FILE,
        ExportManifest,
        newest=EXPORT_FORMAT_VERSION,
        advice="give a folder that export() wrote",
    )
    for record in manifest.files:
        if Path(record.name).name != record.name:
            raise ArtifactIntegrityError(
                f"{folder / MANIFEST_FILE} names {record.name!r}, which is not a plain file name"
            )
        path = folder / record.name
        if not path.is_file():
            raise NotFoundError(f"{path} is missing from the export; export the model again")
        found = file_record(path)
        if found != record:
            raise ArtifactIntegrityError(
                f"{path} was changed: sha256 {found.sha256[:12]} of {found.size_bytes} bytes, the "
                f"manifest says {record.sha256[:12]} of {record.size_bytes}; export the model again"
            )
    if added := OPTIONAL_FILES.intersection(_names(folder)) - {f.name for f in manifest.files}:
        raise ArtifactIntegrityError(
            f"{folder / min(added)} is not part of the export; the manifest does not name it"
        )
    for program in manifest.programs:
        if pickled := pickled_records(folder / program.file):
            raise ArtifactIntegrityError(
                f"{folder / program.file} would have torch unpickle {', '.join(pickled)}; do not load it"
            )
    return manifest


def file_record(path: Path) -> FileRecord:
    """Return name, sha256 and size of a file."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while part := file.read(_READ_AT_ONCE):
            digest.update(part)
            size += len(part)
    return FileRecord(name=path.name, sha256=digest.hexdigest(), size_bytes=size)


def pickled_records(path: Path) -> list[str]:
    """Return the records in a `.pt2` archive that torch would unpickle; none in what `export` writes.

    Raises:
        ArtifactIntegrityError: if it is no such archive.

    """
    try:
        with zipfile.ZipFile(path) as archive:
            found = [
                entry.filename
                for entry in archive.infolist()
                if _RECORDS.fullmatch(entry.filename) is None
                or (entry.filename.endswith("sample_inputs/model.pt") and entry.file_size > 0)
            ]
            for name in archive.namelist():
                if name.endswith(("model_weights_config.json", "model_constants_config.json")):
                    config = json.loads(archive.read(name))["config"]
                    found += [entry for entry, meta in config.items() if meta["use_pickle"]]
            return found
    except (zipfile.BadZipFile, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ArtifactIntegrityError(f"{path} is not a torch.export program: {error!r}") from error


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}
