"""The built-in operators compute what they are called."""
# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import math
from collections.abc import Callable

import pytest
import torch
from design_factory import built, design, node, normal
from torch import Tensor, nn

from esper.contracts import OPERATORS, BlueprintError, KernelSignature, SiteKind
from esper.kasmina import probe_shape


def attention_by_hand(layer: nn.Module, x: Tensor, num_heads: int, *, causal: bool) -> Tensor:
    """Vaswani et al. 2017, equation 1, one row, head and token at a time."""
    width = x.shape[-1]
    qkv = x @ layer.get_parameter("qkv.weight").T + layer.get_parameter("qkv.bias")
    heads: list[Tensor] = []
    for head in range(num_heads):
        q, k, v = (
            qkv[..., part * width : (part + 1) * width].chunk(num_heads, dim=-1)[head]
            for part in range(3)
        )
        rows: list[Tensor] = []
        for t in range(x.shape[1]):
            seen = slice(0, t + 1 if causal else x.shape[1])
            scores = (k[:, seen] @ q[:, t].unsqueeze(-1)).squeeze(-1) / math.sqrt(q.shape[-1])
            weights = scores.softmax(dim=-1).unsqueeze(1)
            rows.append((weights @ v[:, seen]).squeeze(1))
        heads.append(torch.stack(rows, dim=1))
    mixed = torch.cat(heads, dim=-1)
    return mixed @ layer.get_parameter("out.weight").T + layer.get_parameter("out.bias")


@pytest.mark.parametrize("op", ["self_attention", "causal_attention"])
@pytest.mark.parametrize(
    ("features", "heads", "num_heads"), [(8, 2, 2), (6, 4, 3), (5, 4, 1), (1, 4, 1), (3, 16, 3)]
)
def test_attention_is_what_it_is_by_hand(
    op: str, features: int, heads: int, num_heads: int
) -> None:
    ir = design(node("attend", op, out="D", heads=heads), kind=SiteKind.SEQUENCE)
    block, x = built(ir, features, "float64"), normal(2, 5, features).double()
    expected = attention_by_hand(
        block.get_submodule("node_attend"), x, num_heads, causal=op == "causal_attention"
    )
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize("op", ["token_conv", "causal_token_conv"])
@pytest.mark.parametrize(("kernel_size", "dilation"), [(3, 1), (7, 2), (15, 4)])
def test_a_token_convolution_is_what_it_is_by_hand(
    op: str, kernel_size: int, dilation: int
) -> None:
    mix = node("mix", op, kernel_size=kernel_size, dilation=dilation)
    block = built(design(mix, kind=SiteKind.SEQUENCE), 3, "float64")
    x = normal(2, 6, 3).double()
    weight = block.get_parameter("node_mix.conv.weight")  # (D, 1, kernel_size)
    expected = block.get_parameter("node_mix.conv.bias").expand(2, 6, 3).clone()
    first = -dilation * (kernel_size - 1) // (1 if op.startswith("causal") else 2)
    for t in range(6):
        for tap in range(kernel_size):
            source = t + first + tap * dilation
            if 0 <= source < 6:
                expected[:, t] += weight[:, 0, tap] * x[:, source]
    torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize(
    ("kind", "axes"),
    [
        (SiteKind.SEQUENCE, (1,)),
        (SiteKind.CHANNELS_1D, (2,)),
        (SiteKind.CHANNELS_2D, (2, 3)),
        (SiteKind.CHANNELS_3D, (2, 3, 4)),
    ],
)
def test_the_global_mean_is_over_positions_and_broadcasts(
    kind: SiteKind, axes: tuple[int, ...]
) -> None:
    ir = design(node("mean", "global_mean"), node("scaled", "multiply", "input", "mean"), kind=kind)
    x = normal(*probe_shape(KernelSignature(kind=kind, features=4)))
    assert torch.equal(built(ir)(x), x * x.mean(dim=axes, keepdim=True))
    with pytest.raises(BlueprintError, match="a block must keep the shape"):
        built(design(node("mean", "global_mean"), kind=kind))


@pytest.mark.parametrize(("rank", "conv"), [(1, nn.Conv1d), (2, nn.Conv2d), (3, nn.Conv3d)])
@pytest.mark.parametrize(
    ("kernel_size", "dilation", "depthwise"), [(3, 1, False), (1, 1, False), (5, 2, True)]
)
def test_convolutions_keep_every_extent(
    rank: int, conv: Callable[..., nn.Module], kernel_size: int, dilation: int, depthwise: bool
) -> None:
    params = {"kernel_size": kernel_size, "dilation": dilation, "depthwise": depthwise}
    kind = SiteKind(f"channels_{rank}d")
    block = built(design(node("mix", f"conv{rank}d", out="D", **params), kind=kind))
    reference = conv(
        4,
        4,
        kernel_size,
        dilation=dilation,
        groups=4 if depthwise else 1,
        padding="same",
    )
    reference.load_state_dict(block.get_submodule("node_mix").state_dict())
    x = normal(2, 4, *(6, 5, 3)[:rank])
    torch.testing.assert_close(block(x), reference(x))


@pytest.mark.parametrize("kind", [kind for kind in SiteKind if kind.is_channels])
def test_a_channel_norm_is_over_channels_and_positions_even_of_one_value(kind: SiteKind) -> None:
    ir = design(node("norm", "channel_norm"), kind=kind)
    x = normal(*probe_shape(KernelSignature(kind=kind, features=4)))
    torch.testing.assert_close(built(ir)(x), nn.functional.group_norm(x, 1))
    single = torch.full((1,) * kind.num_dims, 7.0)
    assert built(ir, 1)(single).item() == pytest.approx(0, abs=1e-3)


def test_only_causal_operators_mix_tokens_where_one_may_only_look_back() -> None:
    mixing = {"self_attention", "token_conv", "global_mean"}
    allowed = {op for op, spec in OPERATORS.items() if SiteKind.CAUSAL_SEQUENCE in spec.kinds}
    assert not allowed & mixing
    assert {"causal_attention", "causal_token_conv"} <= allowed
    both = {op for op, spec in OPERATORS.items() if SiteKind.SEQUENCE in spec.kinds}
    assert mixing | allowed <= both


def test_zero_initialisation_leaves_the_inner_projections_of_attention_alive() -> None:
    ir = design(node("attend", "self_attention", out="D", init="zeros"), kind=SiteKind.SEQUENCE)
    state = built(ir).state_dict()
    assert not any(state[f"node_attend.out.{name}"].any() for name in ("weight", "bias"))
    assert state["node_attend.qkv.weight"].all()
