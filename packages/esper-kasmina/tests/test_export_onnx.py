"""ONNX beside the export, checked by onnxruntime; needs the extra `esper-kasmina[onnx]`, else skipped."""
# torch and onnxruntime leave their types open:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false

import importlib
import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from kasmina_exports import Grown, grown, grown_lm, grown_mlp
from torch import Tensor, nn

from esper.contracts import ConfigError, HostError
from esper.kasmina import verify_export, wrap
from esper.kasmina.onnx_file import PACKAGES

needs_packages = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in PACKAGES),
    reason="the extra esper-kasmina[onnx] is not installed",
)

HOSTS: dict[str, Callable[[], Grown]] = {
    **{name: partial(grown, name) for name in ("attention", "batch_norm", "chunks", "lstm")},
    "causal transformer": grown_lm,
}


@needs_packages
@pytest.mark.parametrize("name", HOSTS)
def test_onnxruntime_answers_as_the_host_does(name: str, tmp_path: Path) -> None:
    made = HOSTS[name]()
    model = made.bed.model.eval()
    manifest = made.bed.export(tmp_path, made.inputs[0], onnx=True)
    assert verify_export(tmp_path) == manifest
    assert "model.onnx" in {file.name for file in manifest.files}
    assert manifest.onnx_deviation is not None
    assert manifest.onnx_deviation <= 1e-5
    onnxruntime: Any = importlib.import_module("onnxruntime")
    session = onnxruntime.InferenceSession(
        str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    (entry,) = session.get_inputs()
    for x in made.inputs:
        (found,) = session.run(None, {entry.name: x.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(found), model(x), atol=1e-5, rtol=1e-5)


@needs_packages
def test_an_onnx_file_holds_no_path_of_this_machine_and_comes_out_the_same_again(
    tmp_path: Path,
) -> None:
    small = grown_mlp(torch.float32)
    small.bed.export(tmp_path / "a", small.inputs[0], onnx=True)
    small.bed.export(tmp_path / "b", small.inputs[0], onnx=True)
    data = (tmp_path / "a" / "model.onnx").read_bytes()
    assert data == (tmp_path / "b" / "model.onnx").read_bytes()
    for path in (Path(__file__).parent, Path(torch.__file__).parent):
        assert str(path).encode() not in data
    small.bed.export(tmp_path / "a", small.inputs[0])
    assert not (tmp_path / "a" / "model.onnx").exists()


@needs_packages
@pytest.mark.parametrize(
    ("dtype", "reason"),
    [
        (torch.bfloat16, r"in torch\.bfloat16.*float32"),
        (torch.float64, "NotImplemented.*Erf.*float32"),
    ],
    ids=str,
)
def test_types_that_onnxruntime_does_not_run_are_refused_and_nothing_is_written(
    dtype: torch.dtype, reason: str, tmp_path: Path
) -> None:
    small = grown_mlp(dtype)
    with pytest.raises(HostError, match=reason):
        small.bed.export(tmp_path / "export", small.inputs[0], onnx=True)
    assert not list(tmp_path.iterdir())


@needs_packages
def test_an_operator_without_a_counterpart_is_refused_with_its_name(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.special.zeta(self.body(x).abs() + 2, torch.ones(())))

    with pytest.raises(HostError, match=r"cannot be written as ONNX: .*zeta"):
        wrap(Odd()).export(tmp_path / "export", torch.rand(4, 6), onnx=True)
    assert not list(tmp_path.iterdir())


def test_missing_packages_are_named_before_anything_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec

    def find_spec(name: str, package: str | None = None) -> Any:
        return None if name == "onnxscript" else found(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    small = grown_mlp(torch.float32)
    with pytest.raises(ConfigError, match=r"onnxscript.*--extra onnx`.*esper-kasmina\[onnx\]"):
        small.bed.export(tmp_path / "export", small.inputs[0], onnx=True)
    assert not list(tmp_path.iterdir())
