"""Verdicts: good kernels pass, bad ones are rejected for the right reason, and nothing is disturbed."""

import re
import threading
from collections.abc import Callable

import pytest
import torch

from esper.contracts import (
    BackendUnavailableError,
    BlueprintIR,
    CompiledKernelArtifact,
    SiteKind,
    ValidationReport,
)
from esper.kasmina import builtin_blueprints, register_operator, unregister_operator
from esper.urabrask import judge
from esper.urabrask.checks import CHECKS

type Forged = tuple[CompiledKernelArtifact, bytes]
type Forge = Callable[..., Forged]
type MakeIR = Callable[..., BlueprintIR]

ROWS_OF_BLOCKS = [ir for ir in builtin_blueprints() if re.search(r"_x\d+$", ir.name)]
"""Other built-in designs several times in a row, which speak for them but for how deep blocks learn."""


def judged(forged: Forged) -> ValidationReport:
    kernel, blob = forged
    return judge(kernel, blob, validator_id="test")


def failed(report: ValidationReport) -> list[str]:
    assert report.passed == all(check.passed for check in report.checks)
    return [check.name for check in report.checks if not check.passed]


@pytest.mark.parametrize(
    ("ir", "features"),
    [
        (ir, n)
        for ir in builtin_blueprints()
        for n in ([32] if ir in ROWS_OF_BLOCKS else [3, 8, 32])
    ],
    ids=lambda value: value.name if isinstance(value, BlueprintIR) else str(value),
)
def test_every_built_in_design_passes(forge: Forge, ir: BlueprintIR, features: int) -> None:
    report = judged(forge(ir, features))
    assert failed(report) == []
    names = [check.name for check in report.checks]
    assert names == ["matches_record", *CHECKS, "latency_bounded"]


@pytest.mark.parametrize("dtype", ["float64", "bfloat16", "float16"])
@pytest.mark.parametrize(
    "ir",
    [ir for ir in builtin_blueprints() if ir not in ROWS_OF_BLOCKS],
    ids=lambda ir: ir.name,
)
def test_other_types_pass_too(forge: Forge, ir: BlueprintIR, dtype: str) -> None:
    report = judged(forge(ir, 8, dtype=dtype))
    # The product of two large halves is more than float16 can hold.
    assert failed(report) == ["finite"] * ((ir.name, dtype) == ("gated_mlp", "float16"))
    assert report.tags[:2] == (ir.kind, dtype)


def test_a_report_holds_the_measurements(forge: Forge) -> None:
    kernel, blob = forge(features=16)
    report = judge(kernel, blob, validator_id="test")
    rows, inner = 32, 64
    assert report.kernel_id == kernel.kernel_id
    assert report.probe_shape == (rows, 16)
    assert report.num_parameters == kernel.num_parameters == 2 * 16 * inner + inner + 16
    assert report.flops == 2 * rows * 16 * inner * 2
    assert report.memory_bytes == 4 * report.num_parameters + 4 * rows * (inner + inner + 16)
    assert report.latency_us > 0


def test_images_are_probed_with_images(forge: Forge) -> None:
    ir = next(ir for ir in builtin_blueprints() if ir.name == "residual_conv")
    assert judged(forge(ir, 4)).probe_shape == (8, 4, 8, 8)


@pytest.mark.parametrize(
    ("design", "reasons"),
    [
        ("not_identity", ["identity_at_birth"]),
        ("overflowing", ["finite"]),
        ("stuck", ["learns"]),
        ("with_dead_branch", ["gradients_flow"]),
    ],
)
def test_a_bad_kernel_is_rejected_for_what_is_bad(
    forge: Forge, request: pytest.FixtureRequest, design: str, reasons: list[str]
) -> None:
    report = judged(forge(request.getfixturevalue(design)))
    assert not report.passed
    assert set(reasons) <= set(failed(report))
    assert "matches_record" not in failed(report)


def test_a_design_that_a_width_makes_useless_is_rejected_at_that_width(forge: Forge) -> None:
    """A layer norm of one feature is always zero, so nothing is left to learn from."""
    useless = {ir.name for ir in builtin_blueprints() if "learns" in failed(judged(forge(ir, 1)))}
    mlps = {"normalised_mlp", "normalised_mlp_x2", "normalised_mlp_x4"}
    blocks = {"transformer_block", "transformer_block_x3"}
    assert useless == {"causal_attention", "self_attention", *mlps, *blocks}


@pytest.mark.parametrize("damage", [b"", b"garbage", b"\x00" * 100])
def test_bytes_that_are_no_kernel_are_rejected_and_not_an_exception(
    forge: Forge, damage: bytes
) -> None:
    kernel, _ = forge()
    report = judge(kernel, damage, validator_id="test")
    assert failed(report) == ["unpacks"]
    assert "KernelRejectedError" in report.checks[0].detail
    assert (report.latency_us, report.probe_shape) == (0, ())


@pytest.mark.parametrize("cut", [1, 100, 4000])
def test_a_truncated_kernel_is_rejected(forge: Forge, cut: int) -> None:
    kernel, blob = forge()
    assert failed(judge(kernel, blob[:-cut], validator_id="test")) == ["unpacks"]


def test_a_kernel_that_is_not_what_its_record_says_is_rejected(
    forge: Forge, with_dead_branch: BlueprintIR
) -> None:
    kernel, _ = forge()
    _, other = forge(with_dead_branch, 8)
    report = judge(kernel, other, validator_id="test")
    assert failed(report)[0] == "matches_record"
    for word in ("blueprint", "signature is features-8", "parameters"):
        assert word in report.checks[0].detail


def test_a_kernel_that_crashes_is_rejected(forge: Forge, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object) -> torch.Tensor:
        raise RuntimeError("no such operation\nlong explanation")

    kernel, blob = forge()
    monkeypatch.setattr("esper.kasmina.kernels.Block.forward", crash)
    report = judge(kernel, blob, validator_id="test")
    assert failed(report) == ["runs"]
    assert report.checks[-1].detail == "RuntimeError: no such operation"


def test_one_crashing_check_does_not_hide_the_others(
    forge: Forge, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(_: object) -> object:
        raise ZeroDivisionError("oops")

    monkeypatch.setitem(CHECKS, "finite", crash)  # pyright: ignore[reportArgumentType]
    report = judged(forge())
    assert failed(report) == ["finite"]
    assert len(report.checks) == len(CHECKS) + 2


def test_the_same_kernel_gets_the_same_report_but_for_the_time(forge: Forge) -> None:
    forged = forge()
    varying = {"report_id", "measured_at", "latency_us", "checks"}
    one, other = judged(forged), judged(forged)
    assert one.model_dump(exclude=varying) == other.model_dump(exclude=varying)
    assert one.checks[:-1] == other.checks[:-1]
    assert one.checks[-1].name == "latency_bounded"


def test_a_kernel_for_a_device_that_is_not_here_is_left_to_others(
    forge: Forge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendUnavailableError, match="is for cuda, which this machine does not"):
        judged(forge(device="cuda"))


def test_a_kernel_with_an_operator_that_is_not_here_is_left_to_others(
    forge: Forge, make_ir: MakeIR
) -> None:
    register_operator(
        "plain@1",
        kinds={SiteKind.FEATURES},
        factory=lambda context: torch.nn.Linear(context.width, context.width),
        options={"init": ("kaiming", "zeros")},
    )
    try:
        kernel, blob = forge(make_ir(("out", "plain@1", "input", {"init": "zeros"})))
        assert failed(judge(kernel, blob, validator_id="test")) == []
    finally:
        unregister_operator("plain@1")
    with pytest.raises(BackendUnavailableError, match=r"uses plain@1, which is not registered in"):
        judge(kernel, blob, validator_id="test")


def settings_of_torch() -> tuple[object, ...]:
    return (
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.is_grad_enabled(),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_rng_state().numpy().tobytes(),
    )


def test_judging_changes_no_setting_and_no_shared_random_stream(forge: Forge) -> None:
    forged = forge()
    before = settings_of_torch()
    judged(forged)
    assert settings_of_torch() == before


def test_a_training_run_beside_it_draws_what_it_would_draw_alone(forge: Forge) -> None:
    """The other thread uses the global stream all the while; neither disturbs the other."""
    forged = forge()
    alone = judged(forged)

    def draw() -> list[float]:
        return [torch.rand(1).item() for _ in range(2000)]

    start = torch.get_rng_state()
    expected = draw()
    torch.set_rng_state(start)
    reports: list[ValidationReport] = []
    thread = threading.Thread(target=lambda: reports.append(judged(forged)))
    thread.start()
    drawn = draw()
    thread.join()
    assert drawn == expected
    assert reports[0].checks[:-1] == alone.checks[:-1]
