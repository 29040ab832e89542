"""A change to an exported folder does not go unnoticed, and no program can smuggle in a pickle."""

import zipfile
from pathlib import Path

import pytest
import torch
from kasmina_exports import grown_mlp

from esper.contracts import ArtifactIntegrityError, ConfigError, NotFoundError
from esper.kasmina import ExportManifest, verify_export
from esper.kasmina.exported import file_record
from esper.kasmina.sealed import seal, text_of

FILES = ["export.json", "lineage.json", "model.pt2", "model.safetensors"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ExportManifest]:
    """An export that tests may copy, not change."""
    folder = tmp_path_factory.mktemp("made") / "export"
    small = grown_mlp(torch.float32)
    return folder, small.bed.export(folder, small.inputs[0])


@pytest.fixture
def copied(made: tuple[Path, ExportManifest], tmp_path: Path) -> Path:
    for name in FILES:
        (tmp_path / name).write_bytes((made[0] / name).read_bytes())
    return tmp_path


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", FILES[1:])
def test_a_changed_file_is_told(name: str, copied: Path) -> None:
    verify_export(copied)
    flip(copied / name)
    with pytest.raises(ArtifactIntegrityError, match=rf"{name} was changed"):
        verify_export(copied)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_told(name: str, copied: Path) -> None:
    (copied / name).unlink()
    with pytest.raises(NotFoundError, match=name):
        verify_export(copied)


def test_an_added_program_is_told(copied: Path) -> None:
    (copied / "model_train.pt2").write_bytes((copied / "model.pt2").read_bytes())
    with pytest.raises(ArtifactIntegrityError, match=r"model_train\.pt2 is not part of the export"):
        verify_export(copied)


@pytest.mark.parametrize(
    ("find", "put", "error", "reason"),
    [
        ('"tolerance": 1e-6', '"tolerance": 1.0', ArtifactIntegrityError, "was changed"),
        ('"format_version": 1', '"format_version": 2', ConfigError, "format version 2"),
        ("{", "", ArtifactIntegrityError, "is damaged"),
    ],
    ids=["content", "newer", "damaged"],
)
def test_a_changed_manifest_is_told(
    find: str, put: str, error: type[Exception], reason: str, copied: Path
) -> None:
    path = copied / "export.json"
    text = path.read_text()
    assert find in text
    path.write_text(text.replace(find, put, 1))
    with pytest.raises(error, match=reason):
        verify_export(copied)


def test_a_manifest_that_names_files_elsewhere_is_told(
    made: tuple[Path, ExportManifest], copied: Path
) -> None:
    first, *others = made[1].files
    away = first.model_copy(update={"name": "../" + first.name})
    forged = seal(made[1].model_copy(update={"files": (away, *others)}))
    (copied / "export.json").write_text(text_of(forged))
    with pytest.raises(ArtifactIntegrityError, match="not a plain file name"):
        verify_export(copied)


@pytest.mark.parametrize("record", ["data/sample_inputs/model.pt", "data/constants/custom_obj_0"])
def test_a_pickle_in_a_program_is_told_even_under_a_forged_manifest(
    record: str, made: tuple[Path, ExportManifest], copied: Path
) -> None:
    path = copied / "model.pt2"
    with zipfile.ZipFile(path) as archive:
        records = {entry: archive.read(entry) for entry in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for entry, data in (records | {f"model/{record}": b"not harmless"}).items():
            archive.writestr(entry, data)
    files = tuple(file_record(copied / file.name) for file in made[1].files)
    (copied / "export.json").write_text(text_of(seal(made[1].model_copy(update={"files": files}))))
    with pytest.raises(ArtifactIntegrityError, match=f"unpickle model/{record}"):
        verify_export(copied)
