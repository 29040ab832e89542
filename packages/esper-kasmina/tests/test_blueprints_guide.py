"""BLUEPRINTS.md is true: its table, its code and its file."""
# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false

import re
from pathlib import Path

import pytest
import torch
from design_factory import built, design, node, normal

from esper.kasmina import (
    builtin_blueprints,
    count_parameters,
    load_blueprint,
    unregister_operator,
)

GUIDE = (Path(__file__).parents[1] / "BLUEPRINTS.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, flags=re.DOTALL)


def test_the_table_lists_every_built_in_design_with_its_kind_and_size() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| ([\d,]+) \|", GUIDE, flags=re.MULTILINE)
    found = {(name, kind, int(count.replace(",", ""))) for name, kind, count in rows}
    expected = {
        (ir.name, ir.kind.value, count_parameters(built(ir, 64))) for ir in builtin_blueprints()
    }
    assert found == expected


def test_its_code_runs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    costs, operator = blocks("python")
    exec(compile(costs, "BLUEPRINTS.md", "exec"), {})
    assert "residual_conv: 73,984 parameters, 151.0 MFLOP" in capsys.readouterr().out
    (design_file,) = blocks("yaml")
    path = tmp_path / "narrow_gate.yaml"
    path.write_text(design_file)
    assert not built(load_blueprint(path))(normal(3, 4)).any()
    exec(compile(operator, "BLUEPRINTS.md", "exec"), {})
    try:
        block, x = built(design(node("act", "snake@1"))), normal(3, 4)
        torch.testing.assert_close(block(x), x + torch.sin(x).square())
    finally:
        unregister_operator("snake@1")
