"""Operators of users' own are taken in, checked, named with their version, and refused rightly."""
# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import math
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest
import torch
from design_factory import built, design, node, normal
from torch import Tensor, nn

from esper.contracts import (
    OPERATORS,
    BlueprintError,
    BlueprintIR,
    KernelRejectedError,
    SiteKind,
)
from esper.kasmina import (
    LayerContext,
    cost_of,
    load_blueprint,
    operators,
    pack_kernel,
    register_operator,
    unpack_kernel,
    unregister_operator,
)
from esper.kasmina.operators import missing_operators

BOTH = {SiteKind.FEATURES, SiteKind.SEQUENCE}


@pytest.fixture(autouse=True)
def _clean_registry() -> Iterator[None]:
    before = set(OPERATORS)
    yield
    for op in set(OPERATORS) - before:
        unregister_operator(op)
    vars(operators)["_register_installed"].cache_clear()


class Fourier(nn.Module):
    """Mixes features with fixed cosines and learns a scale: an operator of a user's own."""

    def __init__(self, context: LayerContext) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(context.sizes["out"]))
        self.register_buffer("phases", torch.empty(context.width, context.sizes["out"]))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.get_buffer("phases") * self.scale


def set_fourier(layer: nn.Module, generator: torch.Generator, context: LayerContext) -> None:
    rows, columns = (torch.arange(size).double() for size in layer.get_buffer("phases").shape)
    layer.get_buffer("phases").copy_(torch.cos(rows.unsqueeze(1) * columns))
    layer.get_parameter("scale").fill_(0 if context.options["init"] == "zeros" else 1)


def register_fourier(op: str = "fourier@1") -> None:
    register_operator(
        op,
        kinds=BOTH,
        factory=Fourier,
        sizes={"out"},
        options={"init": ("ones", "zeros")},
        initialise=set_fourier,
    )


def fourier_design(op: str = "fourier@1") -> BlueprintIR:
    return design(node("up", "linear", out="2*D"), node("mix", op, "up", out="D", init="zeros"))


def test_an_operator_of_a_users_own_goes_all_the_way() -> None:
    register_fourier()
    ir = fourier_design()
    block = built(ir, dtype="bfloat16")
    assert block.get_parameter("node_mix.scale").dtype is torch.bfloat16
    x = normal(3, 4).bfloat16()
    assert not block(x).any()
    kernel = unpack_kernel(pack_kernel(ir, block.signature, block))
    with torch.no_grad():
        for each in (block, kernel.block):
            each.get_parameter("node_mix.scale").fill_(1)
    assert torch.equal(kernel.block(x), block(x))
    assert block(x).any()
    cost = cost_of(ir, block.signature, (3, 4))
    assert cost.num_parameters == 4 * 8 + 8 + 4
    assert cost.weight_bytes == 2 * (4 * 8 + 8 + 4 + 8 * 4)
    assert cost.flops == 2 * (2 * 3 * 4 * 8)


def test_the_parameters_of_a_users_operator_are_checked_where_it_is_registered() -> None:
    unchecked = design(node("mix", "fourier@1", "input", out="D", init="twos"))
    register_fourier()
    with pytest.raises(ValueError, match="init='twos'; expected one of"):
        node("mix", "fourier@1", "input", out="D", init="twos")
    with pytest.raises(ValueError, match="does not work on channels_2d sites"):
        design(node("mix", "fourier@1", out="D"), kind=SiteKind.CHANNELS_2D)
    with pytest.raises(BlueprintError, match="init='twos'; expected one of"):
        built(unchecked)


def test_a_kernel_with_an_operator_that_is_not_registered_is_refused_by_name() -> None:
    register_fourier()
    ir = fourier_design()
    block = built(ir)
    blob = pack_kernel(ir, block.signature, block)
    unregister_operator("fourier@1")
    register_fourier("fourier@2")
    with pytest.raises(KernelRejectedError, match="uses fourier@1, which is not registered in"):
        unpack_kernel(blob)
    with pytest.raises(BlueprintError, match="uses fourier@1, which is not registered in"):
        built(ir)
    assert block(normal(2, 4)).shape == (2, 4)  # what was built goes on working
    register_fourier()
    assert unpack_kernel(blob).ir == ir


def test_versions_of_an_operator_make_different_designs() -> None:
    assert fourier_design("fourier@1").content_hash() != fourier_design("fourier@2").content_hash()


def test_the_same_version_can_be_replaced_only_after_it_was_unregistered() -> None:
    register_fourier()
    with pytest.raises(BlueprintError, match=r"'fourier@1' is already registered; give another"):
        register_fourier()
    assert type(built(fourier_design()).get_submodule("node_mix")) is Fourier
    unregister_operator("fourier@1")

    class Other(Fourier):
        """The second implementation."""

    register_operator(
        "fourier@1",
        kinds=BOTH,
        factory=Other,
        sizes={"out"},
        options={"init": ("ones", "zeros")},
        initialise=set_fourier,
    )
    assert type(built(fourier_design()).get_submodule("node_mix")) is Other


@pytest.mark.parametrize(
    ("op", "changes", "problem"),
    [
        ("fourier", {}, "'fourier': expected name@version"),
        ("Fourier@1", {}, "expected name@version"),
        ("fourier@", {}, "expected name@version"),
        ("linear", {}, "expected name@version"),
        ("mine@1", {"arity": 0}, "has arity 0 and works on 2 kinds"),
        ("mine@1", {"kinds": set[SiteKind]()}, "works on 0 kinds"),
        ("mine@1", {"sizes": {"out"}, "options": {"out": (1, 2)}}, "both a size and an option"),
        ("mine@1", {"options": {"mode": ()}}, r"\['mode'\] has no legal value"),
    ],
)
def test_a_registration_that_makes_no_sense_is_refused(
    op: str, changes: dict[str, Any], problem: str
) -> None:
    before = dict(OPERATORS)
    register: Any = register_operator
    with pytest.raises(BlueprintError, match=problem):
        register(op, **({"kinds": BOTH, "factory": Fourier} | changes))
    assert dict(OPERATORS) == before


def test_only_registered_operators_can_be_unregistered() -> None:
    with pytest.raises(BlueprintError, match="'linear' is not registered here; registered: none"):
        unregister_operator("linear")
    with pytest.raises(BlueprintError, match="'mine@1' is not registered here"):
        unregister_operator("mine@1")


class Twice(nn.Module):
    """Two layers of a user's own, which need no initialiser of their own."""

    def __init__(self, context: LayerContext) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(context.width)
        self.inner = nn.Linear(context.width, 8)
        self.outer = nn.Linear(8, context.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(torch.relu(self.inner(self.norm(x))))


def test_known_layers_are_initialised_without_being_told_how() -> None:
    register_operator("twice@1", kinds=BOTH, factory=Twice, options={"init": ("kaiming", "zeros")})
    state = built(design(node("both", "twice@1", init="zeros"))).state_dict()
    assert not state["node_both.outer.weight"].any()
    assert state["node_both.inner.weight"].all()
    assert float(state["node_both.inner.weight"].abs().max()) <= math.sqrt(3 / 4)
    assert state["node_both.norm.weight"].tolist() == [1.0] * 4
    drawn = built(design(node("both", "twice@1"))).state_dict()
    assert drawn["node_both.outer.weight"].all()


class Wrong(nn.Module):
    """Does what `fault` says."""

    def __init__(self, context: LayerContext, fault: str) -> None:
        super().__init__()
        self.fault = fault
        if fault == "parameter":
            self.scale = nn.Parameter(torch.ones(context.width))
        if fault == "lost buffer":
            self.register_buffer("lost", torch.ones(1), persistent=False)
        if fault == "shared":
            self.one = nn.Linear(context.width, context.width)
            self.two = nn.Linear(context.width, context.width)
            self.two.weight = self.one.weight
        if fault == "crash":
            raise KeyError("no such thing")

    def forward(self, x: Tensor) -> Any:
        match self.fault:
            case "list":
                return [x]
            case "shape":
                return x[..., :1]
            case "type":
                return x.double()
            case "extent":
                return x.reshape(2, 4)
            case _:
                return x


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        ("parameter", r"how scale of wrong@1 \(Wrong\) is to be initialised; give register_oper"),
        (
            "lost buffer",
            "node_only.lost cannot be kept in a kernel; expected parameters and persis",
        ),
        ("shared", "node_only.two.weight cannot be kept in a kernel"),
        ("crash", "node 'only': wrong@1 does not fit inputs of .*no such thing"),
        ("list", "node 'only': .* it returned a list, expected a tensor"),
        ("shape", r"gives \(2, 1\) for an input of \(2, 4\); a block must keep the shape"),
        ("type", "gives torch.float64 for torch.float32; a block must keep the type"),
        ("extent", r"works on \(2, 4\), but not on \(3, 5, 4\): shape '\[2, 4\]' is invalid"),
    ],
)
def test_what_is_wrong_with_a_users_operator_is_told(fault: str, problem: str) -> None:
    register_operator("wrong@1", kinds=BOTH, factory=lambda context: Wrong(context, fault))
    with pytest.raises(BlueprintError, match=problem):
        built(design(node("only", "wrong@1")))


def test_a_factory_that_makes_no_module_is_told() -> None:
    factory: Any = LayerContext.__repr__
    register_operator("wrong@1", kinds=BOTH, factory=factory)
    with pytest.raises(BlueprintError, match=r"returned a str; expected an nn\.Module"):
        built(design(node("only", "wrong@1")))


def test_making_a_users_layer_draws_from_no_random_stream() -> None:
    before = torch.get_rng_state()
    register_operator("twice@1", kinds=BOTH, factory=Twice)
    built(design(node("both", "twice@1")))
    assert torch.equal(torch.get_rng_state(), before)


def test_operators_of_installed_packages_register_themselves_when_they_are_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "my_operators.py").write_text(
        "from torch import nn\n"
        "from esper.contracts import SiteKind\n"
        "from esper.kasmina import register_operator\n"
        "def register():\n"
        "    register_operator('plain@1', kinds={SiteKind.FEATURES},\n"
        "        factory=lambda c: nn.Linear(c.width, c.width), options={'init': ('x', 'zeros')})\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    install(monkeypatch, "my_operators:register")
    path = tmp_path / "mine.yaml"
    text = (
        "{name: mine, kind: features, nodes: [{name: a, op: plain@1, inputs: [input], params: P}]}"
    )
    path.write_text(text.replace("P", "{init: zeros}"))
    ir = load_blueprint(path)
    assert not built(ir)(normal(2, 4)).any()
    path.write_text(text.replace("P", "{init: ones}"))
    with pytest.raises(BlueprintError, match="init='ones'; expected one of"):
        load_blueprint(path)


def install(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    def entry_points(group: str) -> EntryPoints:
        return EntryPoints([EntryPoint(name="mine", value=value, group=group)])

    monkeypatch.setattr(operators, "entry_points", entry_points)
    vars(operators)["_register_installed"].cache_clear()


def test_an_installed_package_that_fails_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, "no_such_module:register")
    with pytest.raises(
        BlueprintError, match=r"operators 'mine' \(no_such_module:register\) cannot"
    ):
        missing_operators(fourier_design())
    install(monkeypatch, "builtins:list")
    assert missing_operators(fourier_design()) == ("fourier@1",)


def test_a_blueprint_file_with_an_operator_that_nobody_registers_is_refused(
    tmp_path: Path,
) -> None:
    path = tmp_path / "mine.json"
    path.write_text(fourier_design().model_dump_json())
    with pytest.raises(BlueprintError, match=r"mine\.json: fourier@1 is not registered in this"):
        load_blueprint(path)
    register_fourier()
    assert load_blueprint(path) == fourier_design()


def test_another_process_refuses_the_kernel_by_the_name_of_its_operator(tmp_path: Path) -> None:
    register_fourier()
    block = built(fourier_design())
    path = tmp_path / "kernel"
    path.write_bytes(pack_kernel(block.ir, block.signature, block))
    code = (
        "import sys, pathlib\n"
        "from esper.contracts import KernelRejectedError\n"
        "from esper.kasmina import unpack_kernel\n"
        "try: unpack_kernel(pathlib.Path(sys.argv[1]).read_bytes())\n"
        "except KernelRejectedError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    assert "uses fourier@1, which is not registered in this process" in done.stdout
