"""Blueprint files: what is read, and where and how a mistake is reported."""

import json
from pathlib import Path
from typing import Any

import pytest

from esper.contracts import BlueprintError, BlueprintIR
from esper.contracts.blueprint_files import MAX_FILE_BYTES, read_blueprint

YAML = """\
name: mine
kind: features
description: "low rank, # not a comment"
nodes:
  - {name: reduce, op: linear, inputs: [input], params: {out: "max(1, D//4)", bias: no}}
  - name: expand
    op: linear
    inputs: [reduce]
    params: {out: D, init: zeros}
"""


def as_json(**changes: Any) -> str:
    nodes = [
        {"name": "reduce", "op": "linear", "inputs": ["input"], "params": {"out": 4}},
        {"name": "expand", "op": "linear", "inputs": ["reduce"], "params": {"out": "D"}},
    ]
    return json.dumps({"name": "mine", "kind": "features", "nodes": nodes} | changes, indent=1)


def problem_of(path: Path, text: str | bytes) -> str:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(BlueprintError) as caught:
        read_blueprint(path)
    return str(caught.value).replace(str(path), "FILE")


@pytest.mark.parametrize("suffix", [".yaml", ".yml"])
def test_a_yaml_file_is_read(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"mine{suffix}"
    path.write_text(YAML)
    ir = read_blueprint(path)
    assert (ir.name, ir.description) == ("mine", "low rank, # not a comment")
    assert [node.params for node in ir.nodes] == [
        {"out": "max(1, D//4)", "bias": False},
        {"out": "D", "init": "zeros"},
    ]


def test_the_same_design_has_the_same_hash_from_json_and_from_yaml(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(YAML)
    ir = read_blueprint(tmp_path / "mine.yaml")
    (tmp_path / "mine.json").write_text(ir.model_dump_json(indent=2), encoding="utf-8-sig")
    assert read_blueprint(str(tmp_path / "mine.json")).content_hash() == ir.content_hash()


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (
            "op: linear\n",
            "op: liner\n",
            "FILE:6: node 'expand' uses operator 'liner'; allowed: lin",
        ),
        ("op: linear\n", "op: conv2d\n", "FILE:6: node 'expand': conv2d does not work on features"),
        (
            "[reduce]",
            "[reduc]",
            "FILE:6: node 'expand' reads ['reduc']; it may read ['input', 'redu",
        ),
        ("init: zeros", "init: ones", "FILE:6: node 'expand': init='ones'; expected one of ['kaim"),
        ("out: D,", "", "FILE:6: node 'expand': linear needs the size 'out'"),
        (
            "out: D,",
            "out: W,",
            "FILE:6: node 'expand': size 'W' cannot be evaluated ('W' is not al",
        ),
        (
            "out: D,",
            "out: [D],",
            "FILE:9: node 'expand': params.out: expected a number, a size such",
        ),
        (
            "params: {out: D",
            "param: {out: D",
            "FILE:9: node 'expand': unknown key 'param'; did you",
        ),
        ("name: expand", "name: reduce", "FILE:6: node 'reduce': two values are called 'reduce'"),
        ("kind: features", "kind: images", "FILE:2: kind: Input should be 'features', 'causal_seq"),
        (
            "kind: features",
            "sort: features",
            "FILE:2: unknown key 'sort'; valid keys: ir_version, n",
        ),
        ("kind: features\n", "", "FILE:1: kind: Field required"),
        ("name: mine", "name: Mine!", "FILE:1: name: String should match pattern"),
        (
            "    op: linear\n",
            "    op: linear\n    op: gelu\n",
            "FILE:8: not valid YAML: the key 'op' is",
        ),
        (
            "nodes:",
            "kind: features\nnodes:",
            "FILE:4: not valid YAML: the key 'kind' is given twice",
        ),
        ("nodes:", "nodes: [", "FILE:5: not valid YAML: "),
        ("out: D,", "out: *D,", "FILE:9: not valid YAML: found undefined alias 'D'"),
    ],
)
def test_a_mistake_is_reported_with_its_line_and_its_node(
    tmp_path: Path, old: str, new: str, problem: str
) -> None:
    path = tmp_path / "mine.yaml"
    changed = YAML.replace(old, new, 1)
    assert changed != YAML
    assert problem in problem_of(path, changed)


def test_every_mistake_is_reported_at_once(tmp_path: Path) -> None:
    text = YAML.replace("op: linear", "op: liner").replace("kind: features", "kind: none")
    problems = problem_of(tmp_path / "mine.yaml", text).splitlines()
    assert [problem.split(": ")[0] for problem in problems] == ["FILE:2", "FILE:5", "FILE:6"]


def test_an_operator_of_another_process_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(YAML.replace("op: linear\n", "op: fourier_mix@2.1\n"))
    ir = read_blueprint(path)
    assert ir.unknown_operators == ("fourier_mix@2.1",)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (as_json()[:-3], "FILE:25: not valid JSON: Expecting"),
        (
            as_json().replace('"kind"', '"name"'),
            "FILE: not valid JSON: the key 'name' is given twice",
        ),
        (
            as_json().replace('"linear"', '"relu6"', 1),
            "FILE:5: node 'reduce' uses operator 'relu6'",
        ),
        (as_json(nodes=[]), "FILE:4: nodes: Tuple should have at least 1 item"),
        (as_json(nodes=[7]), "FILE:5: node number 1: Input should be a valid dictionary"),
        (as_json(nodes=7), "FILE:4: nodes: Input should be a valid tuple"),
        ("[]", "FILE:1: expected the keys ir_version, name, description, kind, widens, nodes at"),
        ("", "FILE:1: not valid JSON"),
        ("[" * 100_000, "FILE: not valid JSON: maximum recursion depth"),
        (b"\xff\xfe", "blueprint file FILE cannot be read: 'utf-8' codec"),
        (b" " * (MAX_FILE_BYTES + 1), "blueprint file FILE has more than 1048576 bytes"),
    ],
)
def test_a_bad_json_file_is_refused(tmp_path: Path, text: str | bytes, problem: str) -> None:
    assert problem_of(tmp_path / "mine.json", text).startswith(problem)


def test_json_with_tabs_is_read_and_its_mistakes_have_no_line(tmp_path: Path) -> None:
    text = as_json().replace("\n ", "\n\t")
    path = tmp_path / "mine.json"
    path.write_text(text)
    assert isinstance(read_blueprint(path), BlueprintIR)
    found = problem_of(path, text.replace('"linear"', '"relu6"'))
    assert found.startswith("FILE: node 'reduce' uses operator 'relu6'")


def test_a_file_that_is_not_there_or_is_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BlueprintError, match=r"none\.yaml does not exist"):
        read_blueprint(tmp_path / "none.yaml")
    with pytest.raises(BlueprintError, match=r"expected a name that ends in \('\.json', '\.yaml'"):
        read_blueprint(tmp_path / "mine.toml")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(BlueprintError, match="cannot be read"):
        read_blueprint(tmp_path / "folder.json")


def test_yaml_makes_plain_values_only(tmp_path: Path) -> None:
    text = YAML.replace("kind: features", "kind: !!python/name:os.system")
    assert "could not determine a constructor" in problem_of(tmp_path / "mine.yaml", text)
