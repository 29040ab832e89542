"""Models that nobody here wrote are handed out, and run where neither they nor Esper are installed.

Needs the dependency group `hosts`, which no other test needs: uv run --group hosts pytest tests/hosts
"""
# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import json
from pathlib import Path

import pytest
import torch
import zoo
from kasmina_exports import AT_ONCE
from kasmina_factory import grow, wake
from kasmina_stranger import CALLS, OPTIONS, ask_stranger
from safetensors.torch import save_file
from torch import Tensor

from esper.contracts import HostError
from esper.kasmina import ExportManifest, wrap

for package in ("timm", "torchvision", "transformers"):
    pytest.importorskip(package, reason=f"{package} is not installed: uv run --group hosts …")

CACHING = {"gpt2", "llama", "t5"}
"""They return a cache for the next token, which no traced program can."""


def shrunk(inputs: zoo.Inputs, num_samples: int) -> dict[str, Tensor]:
    return {name: value[:num_samples].contiguous() for name, value in inputs.items()}


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, ExportManifest]]:
    """Every host with a fossil in its middle, handed out with calls to try it with."""
    folder = tmp_path_factory.mktemp("exports")
    manifests: dict[str, ExportManifest] = {}
    for name, host in zoo.HOSTS.items():
        model = host.make()
        bed = wrap(model, example=host.batch(0))
        bed.attach(zoo.optimizer_of(model))
        grow(bed, AT_ONCE, site=len(bed.sites) // 2, change=wake)
        options = {"use_cache": False} if name in CACHING else {}
        manifests[name] = bed.export(folder / name, {**host.batch(0), **options})
        model.eval()
        calls: dict[str, Tensor] = {}
        for number, inputs in enumerate((host.batch(1), shrunk(host.batch(2), 3))):
            with torch.no_grad():
                calls[f"{number}.out"] = zoo.logits(model(**inputs)).contiguous()
            calls |= {f"{number}.in.{key}": value for key, value in inputs.items()}
        save_file(calls, folder / name / CALLS)
        (folder / name / OPTIONS).write_text(json.dumps(options))
    return folder, manifests


@pytest.fixture(scope="module")
def answers(exports: tuple[Path, dict[str, ExportManifest]]) -> dict[str, float]:
    return ask_stranger(exports[0])


@pytest.mark.parametrize("name", list(zoo.HOSTS))
def test_an_export_answers_as_the_host_does_without_the_packages(
    name: str,
    answers: dict[str, float],
    exports: tuple[Path, dict[str, ExportManifest]],
) -> None:
    assert answers[name] <= 1e-6
    (program,) = exports[1][name].programs
    assert (program.requires, program.notes) == ((), ())
    assert program.axes[0].least == 1  # any number of samples
    assert program.axes[0].most is None


def test_a_model_that_answers_with_its_cache_is_told_how_to_leave_it_out(tmp_path: Path) -> None:
    host = zoo.HOSTS["gpt2"]
    bed = wrap(host.make(), example=host.batch(0))
    with pytest.raises(
        HostError, match=r"returns a DynamicCache.*\(use_cache=False, for example\)"
    ):
        bed.export(tmp_path, host.batch(0))
    assert list(tmp_path.iterdir()) == []
