"""Exports the JSON Schema of every contract: `uv run esper-schemas OUT_FOLDER`.

For clients in other languages, and for validating payloads at a border without Python.
"""

import argparse
import json
from pathlib import Path

from esper import contracts
from esper.contracts.base import Contract


def contract_models() -> list[type[Contract]]:
    """Return every public contract model, sorted by name."""
    members = (getattr(contracts, name) for name in contracts.__all__)
    models = [m for m in members if isinstance(m, type) and issubclass(m, Contract)]
    return sorted((m for m in models if m is not Contract), key=lambda m: m.__name__)


def export_schemas(folder: Path) -> list[Path]:
    """Write one `<Model>.schema.json` per contract (JSON Schema 2020-12); return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    for model in contract_models():
        schema = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
        schema |= model.model_json_schema()
        path = folder / f"{model.__name__}.schema.json"
        path.write_text(json.dumps(schema, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        written.append(path)
    return written


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="esper-schemas", description=__doc__)
    parser.add_argument("folder", type=Path, help="where to write the schema files")
    folder: Path = parser.parse_args().folder
    try:
        written = export_schemas(folder)
    except OSError as error:
        parser.exit(2, f"esper-schemas: cannot write to {folder}: {error}\n")
    print(f"wrote {len(written)} schemas to {folder}")
