"""The forge as a function: equal input gives equal bytes, everywhere, and touches nothing else."""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from esper.contracts import Blueprint, BlueprintError, BlueprintIR, KernelSignature, sha256_hex
from esper.kasmina import builtin_blueprints, unpack_kernel
from esper.tezzeret import forge_kernel, seed_of

type MakeIR = Callable[..., BlueprintIR]
type MakeSignature = Callable[..., KernelSignature]


def test_the_record_describes_the_bytes(make_ir: MakeIR, make_signature: MakeSignature) -> None:
    blueprint, signature = Blueprint.from_ir(make_ir()), make_signature(8)
    kernel, blob = forge_kernel(blueprint, signature)
    assert kernel.kernel_id == sha256_hex(blob)
    assert kernel.size_bytes == len(blob)
    assert kernel.num_parameters == 8 * 32 + 32 + 32 * 8 + 8
    unpacked = unpack_kernel(blob)
    assert (unpacked.ir, unpacked.signature) == (blueprint.ir, signature)
    assert (kernel.blueprint_id, kernel.blueprint_name) == (blueprint.blueprint_id, "block")


def test_a_forged_block_is_the_identity_at_birth_and_not_all_zero(
    make_ir: MakeIR, make_signature: MakeSignature
) -> None:
    _, blob = forge_kernel(Blueprint.from_ir(make_ir()), make_signature(8))
    block = unpack_kernel(blob).block
    with torch.no_grad():
        assert block(torch.ones(4, 8)).abs().max() == 0
    assert any(parameter.abs().max() > 0 for parameter in block.parameters())


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_equal_input_gives_equal_bytes(
    make_ir: MakeIR, make_signature: MakeSignature, dtype: str
) -> None:
    blueprint, signature = Blueprint.from_ir(make_ir()), make_signature(16, dtype=dtype)
    first = forge_kernel(blueprint, signature)[1]
    torch.rand(1)  # wherever the global stream stands
    assert forge_kernel(blueprint, signature)[1] == first


def test_the_bytes_of_a_kernel_are_the_same_on_every_machine(
    make_ir: MakeIR, make_signature: MakeSignature
) -> None:
    kernel, _ = forge_kernel(Blueprint.from_ir(make_ir()), make_signature(8))
    assert kernel.kernel_id[:16] == "02083cbf9da80a5c"


def test_another_process_forges_the_same_bytes(
    make_ir: MakeIR, make_signature: MakeSignature
) -> None:
    ir, signature = make_ir(), make_signature(8)
    code = (
        "import sys\n"
        "from esper.contracts import Blueprint, BlueprintIR, KernelSignature\n"
        "from esper.tezzeret import forge_kernel\n"
        "blueprint = Blueprint.from_ir(BlueprintIR.model_validate_json(sys.argv[1]))\n"
        "signature = KernelSignature.model_validate_json(sys.argv[2])\n"
        "print(forge_kernel(blueprint, signature)[0].kernel_id)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, ir.model_dump_json(), signature.model_dump_json()],
        env=os.environ | {"PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip() == forge_kernel(Blueprint.from_ir(ir), signature)[0].kernel_id


def test_designs_and_signatures_have_seeds_of_their_own(
    make_ir: MakeIR, make_signature: MakeSignature
) -> None:
    one, other = Blueprint.from_ir(make_ir()), Blueprint.from_ir(make_ir(name="other"))
    signatures = [make_signature(8), make_signature(9), make_signature(8, dtype="float64")]
    seeds = {
        seed_of(blueprint, signature) for blueprint in (one, other) for signature in signatures
    }
    assert len(seeds) == 6


def test_forging_leaves_the_global_random_stream_alone(
    make_ir: MakeIR, make_signature: MakeSignature
) -> None:
    before = torch.get_rng_state()
    forge_kernel(Blueprint.from_ir(make_ir()), make_signature(8))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_kernel_for_an_accelerator_is_forged_without_one(
    make_ir: MakeIR, make_signature: MakeSignature, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    kernel, blob = forge_kernel(Blueprint.from_ir(make_ir()), make_signature(8, device="cuda"))
    assert kernel.signature.device == "cuda"
    assert unpack_kernel(blob, device="cpu").signature == kernel.signature


@pytest.mark.parametrize(
    ("inner", "changes", "problem"),
    [
        (
            "D//16",
            {},
            r"'block' \(\w{12}\) cannot be built for features-8-float32-cpu: .*size 'D//16' is 0",
        ),
        ("4*D", {"kind": "channels_2d"}, r"for channels_2d-8-float32-cpu: .*is for features sites"),
    ],
)
def test_a_design_that_does_not_fit_the_signature_is_refused_with_the_reason(
    make_ir: MakeIR,
    make_signature: MakeSignature,
    inner: str,
    changes: dict[str, str],
    problem: str,
) -> None:
    with pytest.raises(BlueprintError, match=problem):
        forge_kernel(Blueprint.from_ir(make_ir(inner)), make_signature(8, **changes))


@pytest.mark.parametrize("ir", builtin_blueprints(), ids=lambda ir: ir.name)
def test_every_built_in_design_can_be_forged_at_any_usual_width(ir: BlueprintIR) -> None:
    for features in (1, 3, 16, 64):
        signature = KernelSignature(
            kind=ir.kind, features=features, inputs=features if ir.widens else None
        )
        kernel, blob = forge_kernel(Blueprint.from_ir(ir), signature)
        assert unpack_kernel(blob).signature == kernel.signature
