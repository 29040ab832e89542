"""JSON files that carry a format version and the hash of their own content: sealing and reading them.

`saving`, `checkpoint` and `exported` each describe one such file as a contract with the fields
`format_version`, `api_version` and `content_sha256`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError

from esper.contracts import (
    API_VERSION,
    ArtifactIntegrityError,
    ConfigError,
    Contract,
    canonical_json,
    sha256_hex,
)
from esper.kasmina.files import read

UNSEALED = "0" * 64
"""Stands for the hash in a draft."""


def seal[T: Contract](draft: T) -> T:
    """Return `draft` with the hash over its other fields in `content_sha256`."""
    content = _content_sha256(draft.model_dump(mode="json"))
    return draft.model_copy(update={"content_sha256": content})


def text_of(sealed: Contract) -> str:
    """Return the content of the file."""
    return sealed.model_dump_json(indent=2) + "\n"


def read_sealed[T: Contract](path: Path, kind: type[T], *, newest: int, advice: str) -> T:
    """Read and verify the file at `path`, of format version `newest` or older.

    Raises:
        NotFoundError: if it is missing; ends with `advice`.
        ConfigError: if it was written by a newer version.
        ArtifactIntegrityError: if it was changed or damaged.

    """
    data = read(path, advice=advice)
    try:
        fields = cast("dict[str, Any]", json.loads(data))
        version, api_version = fields["format_version"], fields["api_version"]
        content = fields["content_sha256"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArtifactIntegrityError(
            f"{path} is damaged: it is not a {kind.__name__.lower()} ({error!r})"
        ) from error
    if version not in range(1, newest + 1) or api_version != API_VERSION:
        raise ConfigError(
            f"{path} has format version {version!r} of API {api_version!r}; this installation reads "
            f"version {newest} of {API_VERSION!r} and older ones; use the one that wrote it, or a newer"
        )
    if content != _content_sha256(fields):
        raise ArtifactIntegrityError(
            f"{path} was changed: its content does not have the sha256 that it carries"
        )
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ArtifactIntegrityError(f"{path} is damaged: {where}: {first['msg']}") from error


def _content_sha256(fields: Mapping[str, Any]) -> str:
    others = {name: value for name, value in fields.items() if name != "content_sha256"}
    return sha256_hex(canonical_json(others))
