"""No committed file names a package registry: where packages come from is each machine's business.

The hosts are kept as hashes, or this file would break its own rule.
"""

import hashlib
import re
import subprocess
from pathlib import Path

import pytest

HOST = re.compile(rb"[a-z0-9-]+(?:\.[a-z0-9-]+)+", re.IGNORECASE)

REGISTRIES = {
    "00a7dc5a0cc388586b8665846e7d8ae94a6dd096f2aa1aa3b4aab4ac484f998a",
    "03e390c8d8a6f2cf7bd2459306b376972ea6d6d28453d4a52dcd6c6c06fc9091",
    "03eabd6c5c4ff24dcf640c4a5ab812c13b01334ff66f5ff111f66b1ee90c266e",
    "1ba4e37997a2e986efa6cd844e43fd25b9e816359d31612baa9c18b71e3b5294",
    "3ca29e55be4befa48f875d24c27f9bed32fe06588819ed6264084b6670a1ebb0",
    "51c6b9f69c48a75b146d2785c3d70d336d5fdce24868f2e22db377d736f2ef24",
    "62f256676f138898cceaf949b873418772bcd271961225c6de34f6443d2c6ccb",
    "71741fe2460a615058687c4585f665af5e825968e51a512ffb14c6f2684a397d",
    "789e46d79514e28093cabe2bb4a0798266f584b0e508ef269ebabb6e57859290",
    "8743857e3ea00fd1c64bbc68b8af241954ad2c285e7a60340eec7ea5dcb200db",
    "87d14f070cb9686970d008f9f94e668075fd37620381409858bf040ae1271d51",
    "8b5bb5eb9d758455b8635855cf8aaf05b68775e3f83f0291e800ef338fb9783c",
    "9da5f32d964125123cc368f231b473bea59307f811c7b9b2e731601e586b82b5",
    "a0f007d863a0ed19c5bd996ef6eaab194af2f1ac685c0f71a75270a0366f8983",
    "a4aa2ac280bb8d1a0ce7a1be5a7bfb10292b49fe9435ad5cff19f421f3c70e41",
    "c2b35955576ffa710bfb7c4e5de8141335829cb1333377cbaf7daaeff9647b35",
    "d6d7019ca9fcbf07c769e445342515ef0c92e4f18a96adbb3bf6460f5b0ba17f",
    "e514b0d3b0562f54b6622ba95659592c26a4f6473677346ffba9e876eee160ef",
    "e680c440a2e92079ab1bf7a927e8d3920f1bcd173c0487e28e020110b2e59efc",
}
"""sha256 of registry hosts (Python, npm, Debian, Ubuntu, Rust, Go, Ruby, Conda, PyTorch); a host
counts with all that is below it."""


def registries_in(content: bytes) -> list[str]:
    """Return every registry host that `content` names."""
    named = sorted({match.lower() for match in HOST.findall(content)})
    return [host.decode() for host in named if _is_registry(host.split(b"."))]


def _is_registry(labels: list[bytes]) -> bool:
    parents = (b".".join(labels[start:]) for start in range(len(labels) - 1))
    return any(hashlib.sha256(parent).hexdigest() in REGISTRIES for parent in parents)


def test_no_file_names_a_package_registry(root: Path, files: list[Path]) -> None:
    assert root / "requirements.lock" in files
    found = {str(path.relative_to(root)): registries_in(path.read_bytes()) for path in files}
    assert {name: hosts for name, hosts in found.items() if hosts} == {}


@pytest.mark.parametrize("prefix", ["", "https://", "https://user:secret@", "files.", "FILES."])
def test_a_registry_is_recognised_however_it_is_written(prefix: str) -> None:
    host = ".".join(["pythonhosted", "org"])
    assert registries_in(f'index = "{prefix}{host}/simple"'.encode())


@pytest.mark.parametrize("text", ["example.org/pypi", "esper.contracts.base", "python.org"])
def test_other_names_with_dots_are_no_registries(text: str) -> None:
    assert registries_in(text.encode()) == []


def test_the_lock_file_that_names_hosts_is_ignored(root: Path, files: list[Path]) -> None:
    assert root / "uv.lock" not in files
    subprocess.run(["git", "check-ignore", "--quiet", "uv.lock"], cwd=root, check=True)
