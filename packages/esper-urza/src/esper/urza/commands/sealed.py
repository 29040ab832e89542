"""`urza keys verify`: whether a manifest, and the artifact beside it, is what somebody trusted signed."""

from pathlib import Path
from typing import Annotated

import typer

from esper.urza.commands.session import Json, command, console, print_json
from esper.urza.manifests import KernelManifest
from esper.urza.offline import Verified, verify_manifest
from esper.urza.signing import read_public_key

HELP = """
Verify a signed manifest from files alone: no library, no network.

Exit code 2 if anything was changed, or is signed by nobody who is trusted. Without --record nobody
knows whether a key was revoked; `urza keys record` writes it, and every export holds it
(library.jsonl).

\b
  urza keys verify kernel.json --trust library.key.pub
  urza keys verify kernel.json --trust library.key.pub --artifact kernel.safetensors
  urza keys verify manifest.json --trust library.key.pub --record library.jsonl
"""


@command
def verify(
    manifest: Annotated[Path, typer.Argument(help="The manifest.")],
    trust: Annotated[
        list[str],
        typer.Option(help="A public key: a file, or 64 hexadecimal digits; may be repeated."),
    ],
    artifact: Annotated[Path | None, typer.Option(help="The kernel's bytes.")] = None,
    record: Annotated[Path | None, typer.Option(help="The library's record.")] = None,
    as_json: Json = False,
) -> None:
    """Verify."""
    trusted = [read_public_key(each) for each in trust]
    found = verify_manifest(manifest, trusted=trusted, artifact=artifact, record=record)
    if as_json:
        print_json(_as_json(found))
        return
    out = console()
    out.print(f"[bold green]true[/]  {found.signed.manifest.subject}")
    out.print(f"signed by key {' via '.join(each[:12] for each in reversed(found.path))}")
    if isinstance(found.signed.manifest, KernelManifest):
        kernel = found.signed.manifest.kernel
        out.print(f"{kernel.blueprint_name} for {kernel.signature.key}, {kernel.status.value}")
        said = "is its artifact" if found.artifact_checked else "was not given: --artifact"
        out.print(f"[dim]the file with its bytes {said}[/]")
    if not found.record_checked:
        out.print("[dim]whether a key was revoked since is not known: --record[/]")


def _as_json(found: Verified) -> dict[str, object]:
    return {
        "subject": found.signed.manifest.subject,
        "manifest": found.signed.digest,
        "keys": found.path,
        "artifact_checked": found.artifact_checked,
        "record_checked": found.record_checked,
    }
