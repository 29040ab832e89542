"""Exports answer as the host does where Esper is not installed, for other batches than the example's."""
# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from kasmina_exports import Grown, grown, grown_lm, grown_mlp, grown_with_every_blueprint
from kasmina_stranger import CALLS
from safetensors.torch import save_file

from esper.contracts import SiteKind

HOSTS = ("attention_tokens_first", "batch_norm", "channels_last", "chunks", "lstm", "tied")

MAKERS: dict[str, Callable[[], Grown]] = {
    **{name: partial(grown, name) for name in HOSTS},
    **{f"every {kind}": partial(grown_with_every_blueprint, kind) for kind in SiteKind},
    "causal transformer": grown_lm,
    "mlp in float64": partial(grown_mlp, torch.float64),
    "mlp in bfloat16": partial(grown_mlp, torch.bfloat16),
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """How far a process without Esper is off, by name of what was exported."""
    exports = tmp_path_factory.mktemp("exports")
    for name, make in MAKERS.items():
        made = make()
        folder = exports / name
        made.bed.export(folder, made.inputs[0])
        model = made.bed.model.eval()
        calls: dict[str, torch.Tensor] = {}
        with torch.no_grad():
            for number, x in enumerate(made.inputs):
                calls |= {f"{number}.x": x.contiguous(), f"{number}.y": model(x).contiguous()}
        save_file(calls, folder / CALLS)
    program = Path(__file__).with_name("kasmina_stranger.py")
    done = subprocess.run(
        [sys.executable, "-I", str(program), str(exports)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", MAKERS)
def test_an_export_answers_as_the_host_does_without_esper(
    name: str, answers: dict[str, float]
) -> None:
    assert answers[name] <= 1e-6
