"""Costs before building: against counts by hand, against what a real pass does, and bad shapes."""
# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from math import prod

import pytest
import torch
from design_factory import built, design, node, normal_like, signature_for
from hypothesis import given, settings
from hypothesis import strategies as st
from kasmina_factory import blueprint
from torch.utils.flop_counter import FlopCounterMode

from esper.contracts import BlueprintError, BlueprintIR, KernelSignature, OperatorNode, SiteKind
from esper.kasmina import builtin_blueprints, cost_of, probe_shape


def size_of(size: str, features: int) -> int:
    """What the sizes of the built-in designs mean where as much is read as is added to."""
    sizes = {"D": features, "2*D": 2 * features, "4*D": 4 * features, "max(D, I)": features}
    sizes["min(4*D, I)"] = features
    if size in ("max(1, max(D, I)//2)", "max(1, min(4*D, I)//2)"):
        return max(1, features // 2)
    return sizes.get(size, max(1, features // 4))


def flops_by_hand(node: OperatorNode, shape: tuple[int, ...], features: int, width: int) -> int:
    """Multiply-adds of one node, twice, with plain products over rows, positions and weights."""
    out = size_of(str(node.params.get("out")), features)
    positions = prod(shape) // features
    match node.op:
        case "linear":
            return 2 * positions * width * out
        case "conv1d" | "conv2d" | "conv3d":
            taps = int(node.params.get("kernel_size", 3)) ** int(node.op[4])
            sources = 1 if node.params.get("depthwise") else width
            return 2 * positions * sources * out * taps
        case "token_conv" | "causal_token_conv":
            return 2 * positions * width * int(node.params["kernel_size"])
        case "self_attention" | "causal_attention":
            num_tokens = shape[1]
            projections = 2 * positions * width * (3 * width + out)
            return projections + 2 * (2 * positions * num_tokens * width)
        case _:
            return 0


def width_of(ir: BlueprintIR, name: str, features: int) -> int:
    """Follow the widths through the graph: each layer with a size sets its own."""
    if name == "input":
        return features
    node = next(node for node in ir.nodes if node.name == name)
    if "out" in node.params:
        return size_of(str(node.params["out"]), features)
    return width_of(ir, node.inputs[0], features)


@pytest.mark.parametrize(
    "ir",
    [ir for ir in builtin_blueprints() if ir.name != "squeeze_excite"],
    ids=lambda ir: ir.name,
)
@settings(max_examples=10)
@given(features=st.sampled_from([1, 3, 8, 20]), batch=st.integers(1, 3), extent=st.integers(1, 6))
def test_operations_are_those_that_are_counted_by_hand(
    ir: BlueprintIR, features: int, batch: int, extent: int
) -> None:
    signature = signature_for(ir, features)
    shape = probe_shape(signature, batch=batch, extent=extent)
    expected = sum(
        flops_by_hand(node, shape, features, width_of(ir, node.inputs[0], features))
        for node in ir.nodes
    )
    assert cost_of(ir, signature, shape).flops == expected


def test_what_is_squeezed_costs_one_position() -> None:
    ir = blueprint("squeeze_excite")
    cost = cost_of(ir, signature_for(ir, 8), (3, 8, 32, 32))
    assert cost.flops == 2 * 3 * (8 * 2 + 2 * 8)


@pytest.mark.parametrize("ir", builtin_blueprints(), ids=lambda ir: ir.name)
def test_operations_are_those_of_a_real_pass(ir: BlueprintIR) -> None:
    block = built(ir, 6)
    x = normal_like(probe_shape(block.signature, batch=3, extent=5), block)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        block(x)
    cost = cost_of(ir, block.signature, x.shape)
    assert cost.flops == counter.get_total_flops()
    assert cost.input_shape == tuple(x.shape)


def test_a_block_for_features_costs_as_much_per_token_as_per_row() -> None:
    ir = blueprint("residual_mlp")
    signature = signature_for(ir, 16)
    tokens, rows = cost_of(ir, signature, (2, 10, 16)), cost_of(ir, signature, (20, 16))
    assert tokens.flops == rows.flops == 2 * 20 * (16 * 64 + 64 * 16)
    assert cost_of(ir, signature).input_shape == probe_shape(signature)


def test_half_precision_halves_the_bytes_and_not_the_operations() -> None:
    ir = blueprint("gated_mlp")
    whole, half = (cost_of(ir, signature_for(ir, 8, dtype)) for dtype in ("float32", "float16"))
    assert whole.weight_bytes == 2 * half.weight_bytes == 4 * whole.num_parameters
    assert whole.flops == half.flops


def test_a_pass_too_large_for_any_machine_is_only_counted() -> None:
    ir = design(node("up", "linear", out="D"))
    width, num_rows = 1 << 13, 1 << 30
    cost = cost_of(ir, signature_for(ir, width), (num_rows, width))  # 32 TiB of inputs
    assert cost.num_parameters == width * width + width
    assert cost.flops == 2 * num_rows * width * width


@pytest.mark.parametrize(
    ("name", "shape", "example"),
    [
        ("residual_mlp", (8,), r"\(2, 8\)"),
        ("residual_mlp", (2, 9), r"\(2, 8\)"),
        ("token_mixing", (2, 8), r"\(2, 4, 8\)"),
        ("token_mixing", (2, 3, 4, 8), r"\(2, 4, 8\)"),
        ("residual_conv", (2, 9, 4, 4), r"\(2, 8, 4, 4\)"),
        ("residual_conv", (8, 4, 4), r"\(2, 8, 4, 4\)"),
        ("residual_conv1d", (2, 4, 8), r"\(2, 8, 4\)"),
    ],
)
def test_an_input_that_does_not_fit_is_refused_with_one_that_does(
    name: str, shape: tuple[int, ...], example: str
) -> None:
    ir = blueprint(name)
    with pytest.raises(BlueprintError, match=f"does not fit .*; expected, for example, {example}"):
        cost_of(ir, signature_for(ir, 8), shape)


def test_a_design_that_does_not_fit_has_no_cost() -> None:
    with pytest.raises(BlueprintError, match="is for features sites, the signature is channels_1d"):
        cost_of(blueprint("low_rank"), KernelSignature(kind=SiteKind.CHANNELS_1D, features=8))
