"""Blueprints: what a design may say, and the message when it says something else."""

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import ValidationError

from esper.contracts import (
    OPERATORS,
    Blueprint,
    BlueprintError,
    BlueprintIR,
    CheckResult,
    CompiledKernelArtifact,
    Endorsement,
    KernelSignature,
    KernelStatus,
    OperatorSpec,
    SiteKind,
    ValidationReport,
    add_operator,
    is_custom,
    remove_operator,
)

UP = {"name": "up", "op": "linear", "inputs": ["input"], "params": {"out": "4*D"}}
ACT = {"name": "act", "op": "gelu", "inputs": ["up"]}
DOWN = {"name": "down", "op": "linear", "inputs": ["act"], "params": {"out": "D", "init": "zeros"}}
CONV = {"name": "conv", "op": "conv2d", "inputs": ["input"], "params": {"out": "D"}}


def ir(*nodes: dict[str, Any], **changes: Any) -> BlueprintIR:
    fields = {"name": "block", "kind": "features", "nodes": nodes or (UP, ACT, DOWN)}
    return BlueprintIR.model_validate(fields | changes)


def node(base: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return base | changes


def test_a_design_is_filed_under_the_hash_of_its_content() -> None:
    blueprint = Blueprint.from_ir(ir())
    assert blueprint.blueprint_id == ir().content_hash()
    assert ir(name="other").content_hash() != ir().content_hash()
    with pytest.raises(ValidationError, match="not the hash of the IR"):
        Blueprint(blueprint_id="0" * 64, ir=ir())


def test_a_branch_can_be_born_like_another_and_be_subtracted_from_it() -> None:
    other = node(UP, name="other", like="up")
    both = {"name": "difference", "op": "subtract", "inputs": ["up", "other"]}
    design = ir(UP, other, both)
    assert [each.like for each in design.nodes] == [None, "up", None]
    written = design.model_dump(mode="json")["nodes"]
    assert [each.get("like", "nothing") for each in written] == ["nothing", "up", "nothing"]
    assert design.content_hash() != ir(UP, node(other, like=None), both).content_hash()


@pytest.mark.parametrize(
    ("nodes", "num_hidden"),
    [
        ((UP,), 0),
        ((UP, ACT, DOWN), 1),
        ((ACT | {"inputs": ["input"]},), 0),
        (
            (
                UP,
                node(UP, name="second", inputs=["up"]),
                {"name": "sum", "op": "add", "inputs": ["up", "second"]},
                node(DOWN, inputs=["sum"]),
            ),
            2,
        ),
    ],
)
def test_hidden_layers_are_counted_along_the_longest_way(
    nodes: tuple[dict[str, Any], ...], num_hidden: int
) -> None:
    assert ir(*nodes).num_hidden == num_hidden


def test_the_hash_of_a_design_never_changes() -> None:
    golden = "7695c2ca"
    assert ir().content_hash()[:8] == golden


@pytest.mark.parametrize(
    ("nodes", "problem"),
    [
        ([node(UP, op="matmul")], r"node 'up' uses operator 'matmul'; allowed: linear, conv2d"),
        ([node(UP, op="__import__")], r"uses operator '__import__'"),
        ([ACT, UP], r"node 'act' reads \['up'\]; it may read \['input'\]"),
        ([UP, node(ACT, inputs=["act"])], r"node 'act' reads \['act'\]"),
        ([node(UP, like="up")], r"born like 'up'; expected an earlier node, one of \[\]"),
        ([UP, node(ACT, like="up")], r"born like 'up', which is another layer: linear"),
        (
            [UP, node(UP, name="other", params={"out": "D"}, like="up")],
            r"another layer: linear {'out': '4\*D'}, not linear {'out': 'D'}",
        ),
        ([UP, node(UP)], r"two values are called 'up'; names must be unique"),
        ([node(UP, name="input")], r"two values are called 'input'"),
        ([CONV], r"node 'conv': conv2d does not work on features sites"),
        ([node(UP, inputs=["input", "input"])], r"linear takes 1 inputs, got 2"),
        ([node(UP, params={})], r"linear needs the size 'out'"),
        ([node(UP, params={"out": True})], r"linear needs the size 'out'"),
        ([node(UP, params={"out": "W"})], r"'W' is not allowed"),
        ([node(UP, params={"out": 0})], r"size 0 is 0"),
        ([node(UP, params={"out": "D", "stride": 2})], r"has no parameter \['stride'\]; it has"),
        ([node(UP, params={"out": "D", "bias": 1})], r"bias=1; expected one of \[True, False\]"),
        (
            [node(UP, params={"out": "D", "init": "ones"})],
            r"init='ones'; expected one of \['kaiming', 'zeros'\]",
        ),
        ([node(UP, name="../up")], r"String should match pattern"),
        ([], r"at least 1 item"),
        ([node(UP, name=f"up{index}") for index in range(65)], r"at most 64 items"),
    ],
)
def test_a_malformed_design_is_refused_with_its_reason(
    nodes: list[dict[str, Any]], problem: str
) -> None:
    with pytest.raises(ValidationError, match=problem):
        ir(nodes=nodes)


def test_channel_operators_work_on_channel_sites_only() -> None:
    assert ir(CONV, kind="channels_2d").kind is SiteKind.CHANNELS_2D
    with pytest.raises(ValidationError, match="linear does not work on channels_2d sites"):
        ir(UP, kind="channels_2d")


@pytest.mark.parametrize("op", OPERATORS)
def test_the_first_value_of_every_option_is_its_default(op: str) -> None:
    spec = OPERATORS[op]
    fields = {"name": "n", "op": op, "inputs": ["input"] * spec.arity}
    kind = min(spec.kinds)
    sizes = dict.fromkeys(spec.sizes, "D")
    defaults = {option: legal[0] for option, legal in spec.options.items()}
    short = ir(node(fields, params=sizes), kind=kind)
    explicit = ir(node(fields, params=sizes | defaults), kind=kind)
    assert short.nodes[0].op == explicit.nodes[0].op == op


SIGNATURE = KernelSignature(kind=SiteKind.FEATURES, features=8)
ENDORSEMENT = Endorsement(key_id="1" * 64, signature="2" * 128)


def report(passed: bool = True, kernel_id: str = "0" * 64, **changes: Any) -> ValidationReport:
    check = CheckResult(name="finite", passed=passed, value=0, limit=0, detail="")
    fields = {
        "kernel_id": kernel_id,
        "validator_id": "urabrask",
        "passed": passed,
        "checks": (check,),
        "probe_shape": (32, 8),
        "latency_us": 1,
        "memory_bytes": 1,
        "num_parameters": 1,
        "flops": 1,
    }
    return ValidationReport.model_validate(fields | changes)


def kernel(**changes: Any) -> CompiledKernelArtifact:
    fields = {
        "kernel_id": "0" * 64,
        "blueprint_id": "3" * 64,
        "blueprint_name": "block",
        "signature": SIGNATURE,
        "size_bytes": 1,
        "num_parameters": 1,
    }
    return CompiledKernelArtifact.model_validate(fields | changes)


def test_signatures_have_readable_unique_keys() -> None:
    assert SIGNATURE.key == "features-8-float32-cpu"


def test_a_report_passes_exactly_when_every_check_did() -> None:
    assert report().passed
    with pytest.raises(ValidationError, match="exactly when every check passed"):
        report(passed=False, checks=report().checks)


@pytest.mark.parametrize(
    "missing", [{"report": None}, {"endorsement": None}, {"report": report(passed=False)}]
)
def test_a_validated_kernel_has_a_passing_report_and_an_endorsement(
    missing: dict[str, Any],
) -> None:
    complete = {
        "status": KernelStatus.VALIDATED,
        "report": report(),
        "endorsement": ENDORSEMENT,
    }
    assert kernel(**complete).status is KernelStatus.VALIDATED
    with pytest.raises(ValidationError, match="needs a report that passed and an endorsement"):
        kernel(**complete | missing)


def test_a_report_belongs_to_its_kernel() -> None:
    with pytest.raises(ValidationError, match="the report is about another kernel"):
        kernel(report=report(kernel_id="9" * 64))


def test_the_signed_statement_covers_identity_and_purpose_and_nothing_that_changes() -> None:
    plain = kernel()
    judged = kernel(status=KernelStatus.VALIDATED, report=report(), endorsement=ENDORSEMENT)
    assert plain.statement() == judged.statement()
    for change in (
        {"kernel_id": "4" * 64},
        {"blueprint_id": "5" * 64},
        {"signature": SIGNATURE.model_copy(update={"features": 9})},
    ):
        assert kernel(**change).statement() != plain.statement()


def test_operators_know_the_kinds_they_work_on() -> None:
    for kind, op in (
        ("features", "layer_norm"),
        ("sequence", "self_attention"),
        ("sequence", "causal_attention"),
        ("causal_sequence", "causal_token_conv"),
        ("channels_1d", "conv1d"),
        ("channels_3d", "global_mean"),
    ):
        fields = {"name": "n", "op": op, "inputs": ["input"]}
        params = dict.fromkeys(OPERATORS[op].sizes, "D")
        assert ir(node(fields, params=params), kind=kind).kind == kind
    for kind, op in (
        ("causal_sequence", "self_attention"),
        ("causal_sequence", "token_conv"),
        ("causal_sequence", "global_mean"),
        ("features", "global_mean"),
        ("channels_1d", "conv2d"),
    ):
        fields = {"name": "n", "op": op, "inputs": ["input"]}
        params = dict.fromkeys(OPERATORS[op].sizes, "D")
        with pytest.raises(ValidationError, match=rf"{op} does not work on {kind} sites; allowed"):
            ir(node(fields, params=params), kind=kind)


CUSTOM = {"name": "mix", "op": "fourier@1", "inputs": ["input"], "params": {"out": "D"}}


@pytest.fixture
def fourier() -> Iterator[OperatorSpec]:
    spec = OperatorSpec(
        arity=1, kinds=frozenset({SiteKind.FEATURES}), options={"mode": ("soft", "hard")}
    )
    add_operator("fourier@1", spec)
    yield spec
    if "fourier@1" in OPERATORS:
        remove_operator("fourier@1")


def test_a_design_may_name_an_operator_that_only_others_have() -> None:
    design = ir(CUSTOM, node(CUSTOM, name="more", params={"anything": True}))
    assert design.unknown_operators == ("fourier@1",)
    read = BlueprintIR.model_validate_json(design.model_dump_json())
    assert read.content_hash() == design.content_hash()
    assert ir().unknown_operators == ()


def test_a_registered_operator_is_checked_like_a_built_in_one(fourier: OperatorSpec) -> None:
    assert OPERATORS["fourier@1"] is fourier
    assert ir(node(CUSTOM, params={"mode": "hard"})).unknown_operators == ()
    with pytest.raises(ValidationError, match=r"fourier@1 has no parameter \['out'\]; it has"):
        ir(CUSTOM)
    with pytest.raises(ValidationError, match="fourier@1 does not work on channels_2d sites"):
        ir(node(CUSTOM, params={}), kind="channels_2d")
    with pytest.raises(ValidationError, match="fourier@1 takes 1 inputs, got 2"):
        ir(node(CUSTOM, params={}, inputs=["input", "input"]))


def test_an_operator_comes_and_goes_once(fourier: OperatorSpec) -> None:
    with pytest.raises(BlueprintError, match="already registered; give another implementation"):
        add_operator("fourier@1", fourier)
    remove_operator("fourier@1")
    assert "fourier@1" not in OPERATORS
    with pytest.raises(
        BlueprintError, match="'fourier@1' is not registered here; registered: none"
    ):
        remove_operator("fourier@1")


@pytest.mark.parametrize("op", ["fourier", "fourier@", "@1", "Fourier@1", "a b@1", "f@1\n", "f@é"])
def test_operators_of_ones_own_have_a_name_and_a_version(op: str) -> None:
    assert not is_custom(op)
    with pytest.raises(BlueprintError, match="expected name@version, for example 'fourier_mix@1'"):
        add_operator(op, OperatorSpec(arity=1, kinds=frozenset(SiteKind)))
    with pytest.raises(ValidationError, match="uses operator"):
        ir(node(CUSTOM, op=op))


@pytest.mark.parametrize("site", SiteKind)
def test_a_kernel_fits_a_site_that_takes_its_kind_and_is_alike_in_all_else(site: SiteKind) -> None:
    place = SIGNATURE.model_copy(update={"kind": site})
    for kind in SiteKind:
        kernel = SIGNATURE.model_copy(update={"kind": kind})
        assert kernel.fits(place) == (kind in site.takes)
        for change in ({"features": 9}, {"dtype": "float64"}, {"device": "cuda"}):
            assert not kernel.model_copy(update=change).fits(place)


def test_sequences_take_what_needs_less() -> None:
    assert SiteKind.FEATURES.takes == {SiteKind.FEATURES}
    assert SiteKind.CAUSAL_SEQUENCE.takes == {SiteKind.FEATURES, SiteKind.CAUSAL_SEQUENCE}
    assert SiteKind.SEQUENCE.takes == {*SiteKind.CAUSAL_SEQUENCE.takes, SiteKind.SEQUENCE}
    assert SiteKind.CHANNELS_2D.takes == {SiteKind.CHANNELS_2D}
