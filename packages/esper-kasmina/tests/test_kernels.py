"""Kernels: what is built, packed and read back, and what is refused."""
# torch leaves parts of its types open:
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import io
import subprocess
import sys

import pytest
import safetensors.torch
import torch
from design_factory import design, node, signature_for
from hypothesis import given
from hypothesis import strategies as st
from kasmina_factory import blueprint

from esper.contracts import (
    BlueprintError,
    BlueprintIR,
    KernelRejectedError,
    KernelSignature,
    SiteKind,
    sha256_hex,
)
from esper.kasmina import (
    build_block,
    builtin_blueprints,
    count_parameters,
    initialise_block,
    pack_kernel,
    probe_shape,
    unpack_kernel,
)
from esper.kasmina.packing import read_header

NAMES = [ir.name for ir in builtin_blueprints()]


def packed(name: str, *, seed: int = 0, dtype: str = "float32") -> bytes:
    ir = blueprint(name)
    block = build_block(ir, signature_for(ir, dtype=dtype))
    initialise_block(block, torch.Generator().manual_seed(seed))
    return pack_kernel(ir, block.signature, block)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_a_kernel_survives_the_round_trip(name: str, dtype: str) -> None:
    blob = packed(name, dtype=dtype)
    kernel = unpack_kernel(blob)
    assert kernel.ir == blueprint(name)
    assert kernel.signature.dtype == dtype
    assert pack_kernel(kernel.ir, kernel.signature, kernel.block) == blob


@pytest.mark.parametrize("name", NAMES)
def test_every_builtin_blueprint_learns(name: str) -> None:
    block = unpack_kernel(packed(name)).block
    x = torch.randn(probe_shape(block.signature), generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.Adam(block.parameters(), lr=0.01)
    losses: list[float] = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = (block(x) - x).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


def test_equal_content_gives_equal_bytes_in_any_process() -> None:
    script = """
import torch
from esper.contracts import KernelSignature, sha256_hex
from esper.kasmina import build_block, builtin_blueprints, initialise_block, pack_kernel
for ir in builtin_blueprints():
    block = build_block(ir, KernelSignature(kind=ir.kind, features=4, inputs=4 if ir.widens else None))
    initialise_block(block, torch.Generator().manual_seed(0))
    print(sha256_hex(pack_kernel(ir, block.signature, block)))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [sha256_hex(packed(name)) for name in NAMES]


def test_other_weights_give_other_bytes() -> None:
    assert packed("low_rank", seed=0) != packed("low_rank", seed=1)


def test_building_draws_from_no_global_stream_and_gives_zeros() -> None:
    before = torch.get_rng_state()
    block = build_block(blueprint("gated_mlp"), signature_for(blueprint("gated_mlp")))
    initialise_block(block, torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), before)
    fresh = build_block(blueprint("gated_mlp"), signature_for(blueprint("gated_mlp")))
    assert all(not p.any() for p in fresh.parameters())


def test_a_default_device_of_the_users_changes_nothing() -> None:
    expected = packed("gated_mlp")
    with torch.device("meta"):
        assert packed("gated_mlp") == expected
        assert unpack_kernel(expected).block.get_parameter("node_down.bias").device.type == "cpu"


def test_initial_weights_fill_the_kaiming_interval() -> None:
    ir = design(node("only", "linear", "input", out="D"))
    block = build_block(ir, signature_for(ir, features=300))
    initialise_block(block, torch.Generator().manual_seed(0))
    weight = block.state_dict()["node_only.weight"]
    assert float(weight.abs().max()) == pytest.approx((3 / 300) ** 0.5, rel=1e-3)
    assert float(weight.var()) == pytest.approx(1 / 300, rel=0.02)


def test_parameters_are_counted() -> None:
    block = unpack_kernel(packed("low_rank")).block
    assert count_parameters(block) == 4 * 1 + (1 * 4 + 4)
    block.requires_grad_(False)
    assert count_parameters(block, trainable_only=True) == 0


def test_widths_follow_each_value_and_gates_may_broadcast() -> None:
    ir = design(
        node("gate", "linear", "input", out=1),
        node("open", "sigmoid", "gate"),
        node("wide", "linear", "input", out="3*D"),
        node("back", "linear", "wide", out="D"),
        node("end", "multiply", "open", "back"),
    )
    block = build_block(ir, signature_for(ir))
    assert block(torch.ones(2, 5, 4)).shape == (2, 5, 4)


@pytest.mark.parametrize(
    ("ir", "message"),
    [
        (
            design(node("up", "linear", "input", out="2*D"), node("sum", "add", "up", "input")),
            r"node 'sum': add does not fit inputs of \(2, 8\), \(2, 4\)",
        ),
        (
            design(node("up", "linear", "input", out="2*D")),
            r"last node 'up' gives \(2, 8\) for an input of \(2, 4\)",
        ),
        (
            design(node("up", "linear", "input", out="D//8")),
            "node 'up': linear does not fit .* bound it, for example",
        ),
        (
            design(
                node("up", "linear", "input", out=1 << 20),
                node("over", "linear", "up", out=1 << 20),
                node("down", "linear", "over", out="D"),
            ),
            "parameters for features-4-float32-cpu; expected at most",
        ),
        (
            design(
                node("mix", "conv2d", "input", out="D+1", depthwise=True),
                kind=SiteKind.CHANNELS_2D,
            ),
            "node 'mix': conv2d does not fit",
        ),
    ],
)
def test_a_design_that_does_not_fit_is_refused_before_anything_is_allocated(
    ir: BlueprintIR, message: str
) -> None:
    with pytest.raises(BlueprintError, match=message):
        build_block(ir, signature_for(ir))


def test_a_design_of_the_other_kind_is_refused() -> None:
    images = KernelSignature(kind=SiteKind.CHANNELS_2D, features=4)
    with pytest.raises(BlueprintError, match="is for features sites, the signature is channels_2d"):
        build_block(blueprint("low_rank"), images)


def test_wider_kernels_of_images_keep_height_and_width() -> None:
    ir = design(
        node("far", "conv2d", "input", out="D", kernel_size=7, dilation=3),
        kind=SiteKind.CHANNELS_2D,
    )
    assert build_block(ir, signature_for(ir))(torch.ones(1, 4, 5, 6)).shape == (1, 4, 5, 6)


@given(data=st.data())
def test_damaged_bytes_are_rejected_or_are_another_kernel(data: st.DataObject) -> None:
    blob = packed("low_rank")
    damaged = bytearray(blob)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    del damaged[data.draw(st.integers(len(blob) // 2, len(blob))) :]
    try:
        unpack_kernel(bytes(damaged))
    except KernelRejectedError:
        return
    # What still reads as a kernel is one with other content, which its hash tells apart.
    assert len(damaged) == len(blob)


@given(blob=st.binary(max_size=64))
def test_random_bytes_are_rejected(blob: bytes) -> None:
    with pytest.raises(KernelRejectedError, match="the bytes are not a kernel"):
        unpack_kernel(blob)


def test_a_header_nested_without_end_is_rejected() -> None:
    with pytest.raises(KernelRejectedError, match="not a kernel"):
        unpack_kernel((100_000).to_bytes(8, "little") + b"[" * 100_000)


def tensors_and_header(name: str) -> tuple[dict[str, torch.Tensor], str]:
    kernel = unpack_kernel(packed(name))
    blob = packed(name)
    return dict(kernel.block.state_dict()), read_header(blob).model_dump_json()


def test_bytes_with_other_tensors_than_the_design_are_rejected() -> None:
    tensors, header = tensors_and_header("low_rank")
    spoiled = [
        {**tensors, "node_extra.weight": torch.zeros(1)},
        {name: value for name, value in tensors.items() if "bias" not in name},
        {name: value.double() for name, value in tensors.items()},
        {name: value[:0] for name, value in tensors.items()},
    ]
    for other in spoiled:
        blob = safetensors.torch.save(other, metadata={"esper.kernel": header})
        with pytest.raises(KernelRejectedError, match="its tensors do not fit its design"):
            unpack_kernel(blob)


def test_bytes_of_a_newer_format_or_with_more_metadata_are_rejected() -> None:
    tensors, header = tensors_and_header("low_rank")
    newer = header.replace('"format_version":1', '"format_version":2')
    for metadata in ({"esper.kernel": newer}, {"esper.kernel": header, "more": "x"}, {}):
        blob = safetensors.torch.save(tensors, metadata=metadata)
        with pytest.raises(KernelRejectedError, match="the bytes are not a kernel"):
            unpack_kernel(blob)


def test_a_pickle_is_rejected_without_being_run() -> None:
    file = io.BytesIO()
    torch.save({"weight": torch.zeros(2)}, file)
    with pytest.raises(KernelRejectedError, match="the bytes are not a kernel"):
        unpack_kernel(file.getvalue())
