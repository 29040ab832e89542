"""Every contract survives JSON: what is read back is what was written."""

import json
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from types import NoneType, UnionType
from typing import Any, Literal, TypeAliasType, cast, get_args, get_origin

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from esper.contracts import (
    INPUT,
    OPERATORS,
    AdaptationSignal,
    Blueprint,
    BlueprintIR,
    CheckResult,
    CompiledKernelArtifact,
    Contract,
    Endorsement,
    FieldReport,
    KasminaCommand,
    KernelStatus,
    OperatorNode,
    SeedState,
    SiteKind,
    ValidationReport,
    ValidatorKey,
    canonical_json,
    sha256_hex,
)
from esper.contracts.base import SeedId, Sha256, UtcDatetime
from esper.contracts.schemas import contract_models

DIGESTS = st.binary(min_size=32, max_size=32).map(bytes.hex)
COUNTS = st.integers(0, 2**53)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)
NAMES = ("a", "b", "c", "d")
SIZES = st.sampled_from(["D", "4*D", "max(1, D//4)", 8])

ALIASES: dict[object, st.SearchStrategy[Any]] = {
    Sha256: DIGESTS,
    SeedId: st.tuples(COUNTS, COUNTS),
    UtcDatetime: st.datetimes(timezones=st.timezones()).filter(lambda at: 2 < at.year < 9998),
}
PRIMITIVES: dict[object, st.SearchStrategy[Any]] = {
    bool: st.booleans(),
    int: COUNTS,
    float: st.floats(),
    str: st.text(min_size=1, max_size=8),
    NoneType: st.none(),
    Any: JSON_VALUES,
}


def values_of(annotation: Any) -> st.SearchStrategy[Any]:
    """Return a strategy for a field's type; bounds are the business of `values_of_field`."""
    if annotation in ALIASES:
        return ALIASES[annotation]
    if annotation in PRIMITIVES:
        return PRIMITIVES[annotation]
    if isinstance(annotation, TypeAliasType):
        return values_of(annotation.__value__)
    arguments = get_args(annotation)
    match get_origin(annotation):
        case origin if origin is Literal:
            return st.sampled_from(list(arguments))
        case origin if origin is tuple:
            return st.lists(values_of(arguments[0]), min_size=1, max_size=2).map(tuple)
        case origin if origin is frozenset:
            return st.frozensets(values_of(arguments[0]), max_size=2)
        case origin if origin in (dict, Mapping):
            return st.dictionaries(values_of(arguments[0]), values_of(arguments[1]), max_size=2)
        case origin if origin is UnionType:
            return st.one_of([values_of(argument) for argument in arguments])
        case _:
            if issubclass(annotation, Enum):
                return st.sampled_from(list(annotation))
            return instances_of(annotation)


def values_of_field(annotation: Any, metadata: Sequence[Any]) -> st.SearchStrategy[Any]:
    for item in metadata:
        if pattern := cast("str | None", getattr(item, "pattern", None)):
            return st.from_regex(pattern, fullmatch=True)
    bounds = {
        key: getattr(item, key)
        for item in metadata
        for key in ("ge", "gt", "le")
        if hasattr(item, key)
    }
    if not bounds:
        return values_of(annotation)
    low, high = bounds.get("ge", bounds.get("gt", -1)), bounds.get("le", 1000)
    kinds = [kind for kind in (get_args(annotation) or (annotation,)) if kind is not NoneType]
    numbers = (
        st.integers(int(low) + ("gt" in bounds), int(high))
        if kinds == [int]
        else st.floats(low, high, exclude_min="gt" in bounds)
    )
    return numbers if len(kinds) == len(get_args(annotation) or (1,)) else numbers | st.none()


def generic(model: type[Contract]) -> st.SearchStrategy[Any]:
    fields = {
        name: values_of_field(field.annotation, field.metadata)
        for name, field in model.model_fields.items()
    }
    return st.fixed_dictionaries(fields).map(model.model_validate)


@st.composite
def operator_nodes(draw: st.DrawFn) -> OperatorNode:
    op = draw(st.sampled_from(sorted(OPERATORS)))
    return draw(nodes_of(op, "n", st.just(INPUT)))


def nodes_of(op: str, name: str, inputs: st.SearchStrategy[str]) -> st.SearchStrategy[Any]:
    spec = OPERATORS[op]
    options = {option: st.sampled_from(legal) for option, legal in spec.options.items()}
    return st.builds(
        OperatorNode,
        name=st.just(name),
        op=st.just(op),
        inputs=st.tuples(*[inputs] * spec.arity),
        params=st.fixed_dictionaries(dict.fromkeys(spec.sizes, SIZES), optional=options),
    )


@st.composite
def blueprint_irs(draw: st.DrawFn) -> BlueprintIR:
    kind = draw(st.sampled_from(SiteKind))
    fitting = sorted(op for op, spec in OPERATORS.items() if kind in spec.kinds)
    nodes: list[OperatorNode] = []
    for index, name in enumerate(NAMES[: draw(st.integers(1, len(NAMES)))]):
        readable = st.sampled_from([INPUT, *NAMES[:index]])
        node = draw(nodes_of(draw(st.sampled_from(fitting)), name, readable))
        alike = [n.name for n in nodes if (n.op, n.params, n.like) == (node.op, node.params, None)]
        like = draw(st.sampled_from([None, *alike]))
        nodes.append(node.model_copy(update={"like": like}))
    return BlueprintIR(name="block", kind=kind, nodes=tuple(nodes))


@st.composite
def reports(draw: st.DrawFn, kernel_id: str | None = None) -> ValidationReport:
    checks = tuple(draw(st.lists(instances_of(CheckResult), min_size=1, max_size=2)))
    return ValidationReport(
        kernel_id=kernel_id or draw(DIGESTS),
        validator_id="urabrask",
        passed=all(check.passed for check in checks),
        checks=checks,
        probe_shape=(32, 8),
        latency_us=draw(st.floats(0, 1e9)),
        memory_bytes=draw(COUNTS),
        num_parameters=draw(COUNTS),
        flops=draw(COUNTS),
    )


@st.composite
def judged_artifacts(draw: st.DrawFn) -> CompiledKernelArtifact:
    kernel_id = draw(DIGESTS)
    report = draw(reports(kernel_id))
    fields = {
        name: draw(values_of_field(field.annotation, field.metadata))
        for name, field in CompiledKernelArtifact.model_fields.items()
    }
    status = KernelStatus.VALIDATED if report.passed else KernelStatus.REJECTED
    endorsement = draw(instances_of(Endorsement)) if report.passed else None
    known = {
        "kernel_id": kernel_id,
        "report": report,
        "status": status,
        "endorsement": endorsement,
    }
    return CompiledKernelArtifact.model_validate(fields | known)


@st.composite
def commands(draw: st.DrawFn) -> KasminaCommand:
    target = draw(st.sampled_from(SeedState))
    return KasminaCommand(
        seed_id=draw(values_of(SeedId)),
        target=target,
        kernel_id=draw(DIGESTS) if target is SeedState.GERMINATED else None,
        epoch=draw(COUNTS),
        reason=draw(st.text(min_size=1)),
    )


@st.composite
def field_reports(draw: st.DrawFn) -> FieldReport:
    fields = {
        name: draw(values_of_field(field.annotation, field.metadata))
        for name, field in FieldReport.model_fields.items()
    }
    outcomes = (SeedState.FOSSILIZED, SeedState.CULLED, SeedState.CANCELLED, SeedState.ROLLED_BACK)
    return FieldReport.model_validate(fields | {"outcome": draw(st.sampled_from(outcomes))})


@st.composite
def validator_keys(draw: st.DrawFn) -> ValidatorKey:
    public_key = draw(st.binary(min_size=32, max_size=32))
    return ValidatorKey(
        key_id=sha256_hex(public_key),
        public_key=public_key.hex(),
        name=draw(st.text(min_size=1, max_size=200)),
        enrolled_at=draw(ALIASES[UtcDatetime]),
        revoked_at=draw(st.none() | ALIASES[UtcDatetime]),
    )


CONSTRAINED: dict[type[Contract], Callable[[], st.SearchStrategy[Any]]] = {
    OperatorNode: operator_nodes,
    BlueprintIR: blueprint_irs,
    Blueprint: lambda: blueprint_irs().map(Blueprint.from_ir),
    ValidationReport: reports,
    CompiledKernelArtifact: judged_artifacts,
    KasminaCommand: commands,
    FieldReport: field_reports,
    ValidatorKey: validator_keys,
}
"""Contracts whose fields depend on each other; the others follow from their fields."""


def instances_of(model: type[Contract]) -> st.SearchStrategy[Any]:
    make = CONSTRAINED.get(model)
    return st.deferred(make if make is not None else lambda: generic(model))


@pytest.mark.parametrize("model", contract_models(), ids=lambda model: model.__name__)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_what_is_read_back_from_json_is_what_was_written(
    model: type[Contract], data: st.DataObject
) -> None:
    written = data.draw(instances_of(model))
    read = model.model_validate_json(written.model_dump_json())
    # Compared as JSON, because NaN differs from itself.
    assert read.model_dump_json() == written.model_dump_json()
    assert canonical_json(read) == canonical_json(written)
    left_out = set(model.model_fields) - set(read.model_dump())
    # So that what was signed or logged before there were such fields still has the same bytes.
    assert left_out <= {name for name, field in model.model_fields.items() if field.exclude_if}
    assert all(getattr(read, name) == model.model_fields[name].default for name in left_out)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(instances_of(AdaptationSignal))
def test_canonical_json_does_not_depend_on_the_order_of_keys(signal: AdaptationSignal) -> None:
    fields = cast("dict[str, Any]", json.loads(signal.model_dump_json()))
    backwards = dict(reversed(fields.items()))
    assert canonical_json(backwards) == canonical_json(signal)
    assert json.loads(canonical_json(signal)) == fields


@settings(max_examples=50)
@given(blueprint_irs(), blueprint_irs())
def test_blueprints_have_equal_ids_exactly_when_they_are_equal(
    one: BlueprintIR, other: BlueprintIR
) -> None:
    assert (one.content_hash() == other.content_hash()) == (one == other)
    assert BlueprintIR.model_validate_json(one.model_dump_json()).content_hash() == (
        one.content_hash()
    )
