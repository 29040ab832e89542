"""Somebody who was handed exports and has never heard of Esper: cannot import it, and needs torch only.

Run as a program with a folder of exports; in each, `calls.safetensors` holds what it is to be tried
with, and `options.json` further arguments if there are any. Prints by name how far the answers are off,
relative to the largest wanted (at least 1).

    python kasmina_stranger.py FOLDER
"""
# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import hashlib
import json
import subprocess
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

CALLS = "calls.safetensors"
"""For each call `n`: inputs `n.in.NAME`, without a name if it is the only one, and `n.out`."""

OPTIONS = "options.json"

FOREIGN = {"esper", "pydantic", "structlog", "cryptography", "timm", "torchvision", "transformers"}


class NoEsper(MetaPathFinder):
    """As if neither Esper, nor what it brings, nor packages of models were installed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.split(".")[0] in FOREIGN:
            raise ModuleNotFoundError(f"{fullname} is not installed here")
        return None


def try_out(folder: Path) -> float:
    """Return how far the program in `folder` is off, over all calls that lie beside it."""
    import torch
    from safetensors.torch import load_file

    manifest = json.loads((folder / "export.json").read_text())
    for file in manifest["files"]:
        data = (folder / file["name"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == file["sha256"], file["name"]
    model = torch.export.load(folder / "model.pt2").module()
    # The weights file has the program's own names.
    model.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    calls = load_file(folder / CALLS)
    options = json.loads((folder / OPTIONS).read_text()) if (folder / OPTIONS).exists() else {}
    worst = 0.0
    for number in range(sum(name.endswith(".out") for name in calls)):
        prefix = f"{number}.in."
        given = {n.removeprefix(prefix): x for n, x in calls.items() if n.startswith(prefix)}
        wanted = calls[f"{number}.out"].double()
        with torch.no_grad():
            found = model(given[""]) if "" in given else model(**given, **options)
        found = (found["logits"] if isinstance(found, dict) else found).double()
        assert found.shape == wanted.shape
        worst = max(worst, float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1)))
    return worst


def ask_stranger(exports: Path) -> dict[str, float]:
    """Run this program on a folder of exports and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-I", __file__, str(exports)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    warnings.simplefilter("error")
    sys.meta_path.insert(0, NoEsper())
    try:
        import esper.kasmina  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ModuleNotFoundError:
        pass
    else:
        raise AssertionError("Esper can be imported here, so this proves nothing")
    import torch

    torch.set_num_threads(1)
    folders = sorted(path for path in Path(sys.argv[1]).iterdir() if path.is_dir())
    print(json.dumps({folder.name: try_out(folder) for folder in folders}))
    assert not any(name.split(".")[0] == "esper" for name in sys.modules)


if __name__ == "__main__":
    main()
