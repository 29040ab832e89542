"""Exports answer as the host does where Esper is not installed, for other batches than the example's."""
# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Callable
from functools import partial

import pytest
import torch
from kasmina_exports import Grown, grown, grown_lm, grown_mlp, grown_with_every_blueprint
from kasmina_stranger import CALLS, ask_stranger
from safetensors.torch import save_file

from esper.contracts import SiteKind

pytestmark = pytest.mark.long

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
                calls |= {f"{number}.in.": x.contiguous(), f"{number}.out": model(x).contiguous()}
        save_file(calls, folder / CALLS)
    return ask_stranger(exports)


@pytest.mark.parametrize("name", MAKERS)
def test_an_export_answers_as_the_host_does_without_esper(
    name: str, answers: dict[str, float]
) -> None:
    assert answers[name] <= 1e-6
