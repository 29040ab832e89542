"""`urza keys`, `urza export` and `urza import`, as a person uses them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from esper.contracts import BlueprintIR, CompiledKernelArtifact
from esper.urza import open_file_store, open_library
from esper.urza.cli import app
from esper.urza.signing import PASSWORD_VARIABLE

type Urza = Callable[..., str]


@pytest.fixture
def kernel(
    tmp_path: Path,
    make_ir: Callable[..., BlueprintIR],
    make_kernel: Callable[..., tuple[CompiledKernelArtifact, bytes]],
) -> tuple[CompiledKernelArtifact, bytes]:
    library = open_library(
        f"sqlite:///{tmp_path}/library.db", open_file_store((tmp_path / "artifacts").as_uri())
    )
    library.open()
    library.submit_blueprint(make_ir())
    kernel, blob = make_kernel(make_ir())
    library.register_kernel(kernel, blob)
    library.close()
    return kernel, blob


@pytest.fixture
def urza(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Urza:
    """Runs a command in a folder of its own, on the library there or one of another name."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, code: int = 0, library: str = "library") -> str:
        stores = ["--artifacts", "file:artifacts" if library == "library" else f"file:{library}"]
        where = ["--library", f"sqlite:///{library}.db", *stores]
        done = CliRunner().invoke(app, [*where, *arguments])
        assert done.exit_code == code, done.output
        return done.stdout if code == 0 else done.stderr

    return run


def _json(text: str) -> Any:
    return json.loads(text)


def test_a_kernel_is_signed_and_verified_from_files_alone(
    urza: Urza, kernel: tuple[CompiledKernelArtifact, bytes], tmp_path: Path
) -> None:
    assert "keep library.key to yourself" in urza("keys", "generate", "library.key")
    assert "is enrolled" in urza(
        "keys", "enroll", "library.key.pub", "--signing", "--name", "our library"
    )
    manifest, artifact = tmp_path / "kernel.json", tmp_path / "kernel.bin"
    manifest.write_text(urza("keys", "sign", kernel[0].kernel_id[:8], "--key", "library.key"))
    artifact.write_bytes(kernel[1])
    (tmp_path / "record.jsonl").write_text(urza("keys", "record"))
    alone = ("keys", "verify", "kernel.json", "--trust", "library.key.pub")
    said = urza(*alone, library="nowhere/at-all")
    assert f"true  kernel {kernel[0].kernel_id}" in said
    assert "was not given: --artifact" in said
    assert "is not known: --record" in said
    full = (*alone, "--artifact", "kernel.bin", "--record", "record.jsonl")
    found = _json(urza(*full, "--json", library="nowhere/at-all"))
    assert (found["artifact_checked"], found["record_checked"]) == (True, True)
    (tmp_path / "library.json").write_text(urza("keys", "sign", "--key", "library.key"))
    (tmp_path / "record.jsonl").write_text(urza("keys", "record"))
    whole = ("keys", "verify", "library.json", "--trust", "library.key.pub")
    assert "true  library" in urza(*whole, "--record", "record.jsonl", library="nowhere/at-all")
    artifact.write_bytes(kernel[1] + b"?")
    assert "is not the artifact of this manifest" in urza(*full, code=2)
    manifest.write_text(manifest.read_text().replace('"features":8', '"features":9'))
    assert "was changed or forged" in urza(*alone, code=2)


def test_keys_are_listed_shown_rotated_and_revoked(
    urza: Urza, kernel: tuple[CompiledKernelArtifact, bytes], tmp_path: Path
) -> None:
    assert "no keys" in urza("keys", "list")
    made = {
        name: _json(urza("keys", "generate", f"{name}.key", "--json"))
        for name in ("old", "new", "crucible")
    }
    urza("keys", "enroll", "old.key.pub", "--signing", "--name", "first")
    urza("keys", "enroll", made["crucible"]["public_key"], "--name", "crucible [1]")
    urza("keys", "rotate", "--old", "old.key", "--new", "new.key", "--name", "second")
    listed = urza("keys", "list")
    assert "first" in listed
    assert f"follows {made['old']['key_id'][:12]}" in listed
    assert "crucible [1]" in listed
    old_id, crucible_id = made["old"]["key_id"], made["crucible"]["key_id"]
    assert "only a signing key can revoke it" in urza("keys", "revoke", old_id, "--yes", code=2)
    lost = ("--key", "new.key", "--reason", "it was lost")
    assert "give --yes" in urza("keys", "revoke", old_id, *lost, code=2)
    assert "is revoked" in urza("keys", "revoke", old_id[:10], *lost, "--yes")
    assert "is revoked" in urza("keys", "revoke", crucible_id, "--yes")
    assert "it was lost" in _json(urza("keys", "show", old_id, "--json"))["status"]
    assert made["crucible"]["public_key"] in urza("keys", "show", crucible_id)
    assert "no key's id begins with" in urza("keys", "show", "nobody", code=2)
    assert "was revoked on" in urza("keys", "sign", kernel[0].kernel_id, "--key", "old.key", code=2)
    (tmp_path / "kernel.json").write_text(
        urza("keys", "sign", kernel[0].kernel_id, "--key", "new.key")
    )
    verify = ("keys", "verify", "kernel.json", "--trust", "old.key.pub")
    assert made["old"]["key_id"][:12] in urza(*verify)


def test_a_key_with_a_password_needs_it(urza: Urza, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PASSWORD_VARIABLE, "open sesame")
    urza("keys", "generate", "library.key")
    urza("keys", "generate", "next.key")
    urza("keys", "enroll", "library.key.pub", "--signing", "--name", "first")
    rotate = ("keys", "rotate", "--old", "library.key", "--new", "next.key", "--name", "next")
    monkeypatch.setenv(PASSWORD_VARIABLE, "wrong")
    refused = urza(*rotate, code=2)
    assert "is not its password" in refused
    assert "sesame" not in refused
    monkeypatch.setenv(PASSWORD_VARIABLE, "open sesame")
    assert "is rotated" in urza(*rotate)


def test_a_library_is_exported_and_imported(
    urza: Urza, kernel: tuple[CompiledKernelArtifact, bytes], tmp_path: Path
) -> None:
    urza("keys", "generate", "library.key")
    urza("keys", "enroll", "library.key.pub", "--signing", "--name", "first")
    said = urza("export", "library.tar", "--key", "library.key")
    assert "wrote library.tar" in said
    assert "signed by key" in said
    assert "never replaces a file" in urza("export", "library.tar", code=2)
    took = ("import", "library.tar", "--trust", "library.key.pub")
    found = _json(urza(*took, "--json", library="copy"))
    assert found["records"]["kernels.jsonl"] == 1
    assert found["num_artifacts"] == 1
    assert "is not empty" in urza(*took, code=2, library="copy")
    assert kernel[0].kernel_id[:12] in urza("kernels", "list", library="copy")
    urza("verify", library="copy")
    urza("export", "again.tar", "--key", "library.key", library="copy")
    assert (tmp_path / "again.tar").read_bytes() == (tmp_path / "library.tar").read_bytes()
    assert "library.tar is whole" in urza("import", "library.tar", "--check", library="no/where")
    urza("keys", "generate", "other.key")
    stranger = ("import", "library.tar", "--trust", "other.key.pub")
    assert "which is not trusted" in urza(*stranger, code=2, library="other")
    assert "nobody signed it" in urza("export", "unsigned.tar")
    assert "nobody signed it" in urza("import", "unsigned.tar", library="third")
